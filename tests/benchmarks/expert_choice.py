"""Which experts of a trained mixture go: accuracy after a cut by each criterion, and after the repair.

    python tests/benchmarks/expert_choice.py [--criteria NAME ...] [--shares PERCENT ...] [--seeds N ...]

A network of three blocks on the 16 patches of an image of Fashion-MNIST; each block mixes the patches and has
a mixture of eight experts, of which two are chosen for each patch. It learns 20,000 images for three epochs,
with the loss that balances the experts (arXiv:2101.03961), from a start that the seed draws. All mixtures are
cut in one ranking. 512 training images score and calibrate; labels are seen by `taylor` and `fisher` alone.
Accuracy is of the first 5,000 images that were not learnt, in percent; the test set is not read. One thread;
seconds are of the processor.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from rows import spread
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.data import Datasets, batches
from sparsify.data.sources import load_data
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify_schemas.data import Data

EXPERTS, CHOSEN, WIDTH, INNER, PATCH = 8, 2, 64, 96, 7
LEARNT, EPOCHS, BATCH, SCORED, JUDGED = 20_000, 3, 100, 512, 5000


class Mixture(nn.Module):
    """Two of the experts for each patch, weighed by a softmax over their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
        )
        self.unbalanced: Tensor | None = None
        """the loss that balances the experts, of the last call in training"""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        probability = self.gate(flat).softmax(-1)
        weights, chosen = probability.topk(CHOSEN, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        made = torch.zeros_like(flat)
        for number, one in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            made = made.index_add(0, token, one(flat[token]) * weights[token, place, None])
        if self.training:
            count = len(self.experts)
            load = F.one_hot(chosen, count).sum(1).float().mean(0)
            self.unbalanced = count * (load * probability.mean(0)).sum()
        return made.view(x.shape)


class Block(nn.Module):
    def __init__(self, places: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.across, self.mix = nn.Linear(places, places), Mixture()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        made: Tensor = x + self.mix(self.norms[1](x))
        return made


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        places = (28 // PATCH) ** 2
        self.stem = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block(places) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def train(datasets: Datasets, seed: int) -> Network:
    torch.manual_seed(seed)
    model = Network().train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    steps = EPOCHS * LEARNT // BATCH
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(EPOCHS):
        for x, y in batches(datasets.train[:LEARNT], BATCH, seed=10 * seed + epoch):
            loss = F.cross_entropy(model(x), y)
            for block in model.blocks:
                loss = loss + 0.01 * block.mix.unbalanced
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    return model.eval()


def measure(model: Network, datasets: Datasets, criterion: str, share: int, seed: int) -> dict[str, Any]:
    """Accuracy right after the cut and repaired, experts of each mixture, seconds of the choice."""
    rule = {"layers": "blocks.*.mix", "group": "expert", "criterion": {"kind": criterion}}
    recipe = {
        "version": 1,
        "title": "experts",
        "seed": seed,
        "data": {"source": "fashion_mnist"},
        "rules": [{**rule, "sparsity": f"{share}%"}],
    }
    order = torch.randperm(LEARNT, generator=torch.Generator().manual_seed(seed))[:SCORED]
    scored = list(batches(datasets.train[order], 64))
    plan = sparsify.make_plan(recipe, model, (scored[0][0][:2],))
    started = time.process_time()
    result = sparsify.cut(plan, model, batches=scored)
    seconds = time.process_time() - started

    def judge(one: nn.Module) -> float:
        return 100 * float(evaluate(one, datasets.validation[:JUDGED], CLASSIFICATION).deciding)

    cut = judge(result.model)
    sparsify.repair(result, [x for x, _ in scored], seed=seed)
    left = [len(result.model.get_submodule(f"blocks.{at}.mix.experts")._modules) for at in range(3)]
    return {"cut": cut, "repaired": judge(result.model), "left": left, "seconds": seconds}


def compare(criteria: list[str], shares: list[int], seeds: list[int]) -> Iterator[str]:
    """Rows of a Markdown table: mean and standard deviation over the seeds."""
    data = {"source": "fashion_mnist", "validation": "10%", "split": "last"}
    datasets = load_data(Data.model_validate(data), 0)
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    dense = []
    for seed in seeds:
        model = train(datasets, seed)
        dense.append(100 * float(evaluate(model, datasets.validation[:JUDGED], CLASSIFICATION).deciding))
        for share in shares:
            for criterion in criteria:
                found = measure(model, datasets, criterion, share, seed)
                print(seed, share, criterion, found, flush=True)
                rows.setdefault((share, criterion), []).append(found)
    yield f"dense: {spread(dense)}"
    yield "| experts that go | criterion | cut | + repair | cut, s |"
    yield "|---|---|---|---|---|"
    for (share, criterion), own in rows.items():
        cells = [spread([row[name] for row in own]) for name in ("cut", "repaired", "seconds")]
        yield f"| {share} % | {criterion} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    usual = ["random", "magnitude", "taylor", "fisher", "reconstruction"]
    parser.add_argument("--criteria", nargs="*", default=usual)
    parser.add_argument("--shares", nargs="*", type=int, default=[25, 50, 75])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in compare(options.criteria, options.shares, options.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
