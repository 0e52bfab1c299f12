"""The front of ResNet-56 on CIFAR-10 by `tune` beside a grid of as many trials.

    python tests/benchmarks/tune_resnet56.py MODEL [--trials 8] [--out FOLDER]

MODEL: weights of sparsify.models.cifar_resnet56 with shortcut B, trained on the first 45,000 images. Each
trial is one cut and one repair without training, judged on the last 1,000 training images. The grid is MACs x
ridge; the sampler draws MACs from the range that the grid spans, and ridges from 0.001 to 1. `area` is the
area between the front and the corner (100 % of the MACs, 80 % accuracy), as a share of the rectangle from
there to (30 %, 100 %).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import sparsify
from sparsify.tuning.tune import TuneResult
from sparsify.tuning.tune_events import TrialFinished, TuneEvent

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "ResNet-56",
    "model": {"build": "sparsify.models.cifar_resnet56", "args": {"shortcut": "B"}},
    "data": {"source": "cifar10", "validation": "2%", "split": "last"},
    "budget": {"macs": "50%"},
    "rules": [{"layers": r"re:layer\d\.\d\.conv1", "group": "filter", "criterion": {"kind": "magnitude"}}],
    "stages": [{"kind": "cut"}, {"kind": "repair", "examples": 300}],
}
GRID = {
    "budget.macs": {"range": ["35%", "80%"], "step": "15%"},
    "stages.1.ridge": {"choices": [0.01, 1.0]},
}
RANGES = {
    "budget.macs": ["35%", "80%"],
    "stages.1.ridge": {"log": [0.001, 1.0]},
}
WORST, BEST_MACS = 0.8, 0.3


def run_study(sampler: str, parameters: dict[str, Any], model: Path, trials: int, out: Path) -> TuneResult:
    search = {"parameters": parameters, "trials": trials, "sampler": sampler, "objective": {"cost": "macs"}}
    started = time.monotonic()

    def tell(event: TuneEvent) -> None:
        if isinstance(event, TrialFinished):
            row = event.trial
            print(f"{sampler} {row.number}: {row.metric} {row.parameters} {row.reason}", flush=True)

    result = sparsify.tune({**RECIPE, "search": search}, model, out=out / sampler, listener=tell)
    print(f"{sampler}: {len(result.trials)} trials in {time.monotonic() - started:.0f} s", flush=True)
    return result


def list_points(result: TuneResult) -> list[tuple[float, float, float, int]]:
    """(MACs left, validation accuracy, test accuracy, trial) of the front."""
    dense = result.study.dense
    assert dense is not None
    return [
        (row.costs.macs / dense.costs.macs, row.metric or 0.0, row.test_metric or 0.0, row.number)
        for row in result.front
        if row.costs is not None
    ]


def measure_area(points: list[tuple[float, float, float, int]]) -> float:
    """The part of the rectangle that the front covers."""
    steps = sorted(points)
    area = 0.0
    for place, (macs, reached, _, _) in enumerate(steps):
        end = steps[place + 1][0] if place + 1 < len(steps) else 1.0
        area += max(0.0, end - max(macs, BEST_MACS)) * max(0.0, reached - WORST)
    return area / ((1 - BEST_MACS) * (1 - WORST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    studies = {
        "grid": run_study("grid", GRID, arguments.model, arguments.trials, arguments.out),
        "tpe": run_study("tpe", RANGES, arguments.model, arguments.trials, arguments.out),
    }
    for sampler, result in studies.items():
        points = list_points(result)
        seconds = sum(row.seconds for row in result.trials)
        print(f"\n{sampler}: {len(result.trials)} trials, {seconds:.0f} s, area {measure_area(points):.3f}")
        print("| MACs left | validation | test | parameters |\n| ---: | ---: | ---: | --- |")
        for macs, reached, tested, number in points:
            values = ", ".join(f"{name} {value}" for name, value in result.trials[number].parameters.items())
            print(f"| {macs:.1%} | {reached:.2%} | {tested:.2%} | {values} |")
        print(f"importance: {result.study.importance}")


if __name__ == "__main__":
    main()
