"""What `tune` finds on the digits: a penalty's strength under a budget, and a front of accuracy and MACs.

    python tests/benchmarks/tune_digits.py [--out FOLDER]

The strength of a group lasso is searched under a budget of 20 % of the MACs, and compared with the strength
that the controller finds (`auto`) and with fixed ones. The front is that of budget, criterion and rate.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import sparsify
from sparsify.reporting.report_file import read_report

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "20%"},
    "budget": {"macs": "20%"},
    "rules": [{"layers": "Conv2d", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 0.001}}],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 6, "batch": 64, "optimizer": SGD},
        {"kind": "cut"},
        {
            "kind": "train",
            "name": "finetune",
            "epochs": 2,
            "batch": 64,
            "penalties": False,
            "optimizer": {**SGD, "lr": 0.01},
        },
    ],
}
STRENGTH = {"rules.0.penalty.strength": {"log": [1e-5, 1e-1]}}
FRONT = {
    "budget.macs": ["10%", "80%"],
    "rules.0.criterion": {"choices": [{"kind": "magnitude"}, {"kind": "taylor"}, {"kind": "reconstruction"}]},
    "stages.2.optimizer.lr": {"log": [1e-3, 1e-1]},
}


def search_strength(out: Path) -> None:
    started = time.monotonic()
    search = {"parameters": STRENGTH, "trials": 24}
    result = sparsify.tune({**RECIPE, "search": search}, from_scratch=True, out=out)
    seconds = time.monotonic() - started
    print(f"{len(result.trials)} trials in {seconds:.0f} s")
    print("| strength | validation | test |\n| --- | ---: | ---: |")
    best = result.best
    print(f"| {best.parameters} (searched) | {best.metric:.2%} | {best.test_metric:.2%} |")
    for strength in ("auto", 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        overrides = [f"rules.0.penalty.strength={strength}"]
        run = sparsify.apply(RECIPE, from_scratch=True, out=out, overrides=overrides, timing=0)
        cut = read_report(run).cut
        print(f"| {strength} | {cut.validation_metric:.2%} | {cut.test_metric:.2%} |")


def search_front(out: Path) -> None:
    started = time.monotonic()
    search = {"parameters": FRONT, "trials": 40, "objective": {"cost": "macs"}}
    rules = [{"layers": "Conv2d", "group": "filter"}]
    recipe = {**RECIPE, "title": "digits front", "rules": rules, "search": search}
    result = sparsify.tune(recipe, from_scratch=True, out=out)
    print(f"\n{len(result.trials)} trials in {time.monotonic() - started:.0f} s")
    print("| MACs left | validation | test | parameters |\n| ---: | ---: | ---: | --- |")
    dense = result.study.dense
    assert dense is not None
    for row in result.front:
        assert row.costs is not None
        values = ", ".join(str(value) for value in row.parameters.values())
        left = row.costs.macs / dense.costs.macs
        print(f"| {left:.1%} | {row.metric:.2%} | {row.test_metric:.2%} | {values} |")
    print(f"importance: {result.study.importance}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    out = parser.parse_args().out
    search_strength(out)
    search_front(out)


if __name__ == "__main__":
    main()
