"""The zoo at half width, one row a network: what became of it, proven.

    python tests/zoo/table.py [--scores random|magnitude] [--only PART ...] [--json FILE] [--pin FILE]

Outcome: `equal` (difference to the masked dense model at most 1e-9 in float64), `statistics change` (the same with the
removed units left out of normalisations), `protected` (every layer is kept whole, with reasons), or what went wrong. `gone`: share of the parameters removed at half width.
`varies`: the outputs differ between examples; `control`: the masked model differs from the dense one; were either zero,
the row would prove nothing.
"""

import argparse
import contextlib
import json
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import networks
import torch

from sparsify import graph
from sparsify.criteria import group_scores
from sparsify.graph.call import call, converted, tensors
from sparsify.groups import coupled_layout
from sparsify_schemas.criterion import Magnitude, Random

VARIES = 1e-6
"""outputs of two examples differ by more than this, relative to the largest: far above the tolerance of the proof, 1e-9"""


@dataclass(frozen=True)
class Row:
    """One network at half width."""

    name: str
    outcome: str
    difference: float
    control: float
    varies: float
    gone: float
    cut: int
    protected: dict[str, str]
    seconds: float


def row(name: str, entry: networks.Entry, scores: str = "random") -> Row:
    """Inspect, try, cut at half width, prove."""
    torch.manual_seed(0)
    model, inputs = entry.build().eval(), entry.inputs()
    perturb(model, inputs)
    started = time.perf_counter()
    map = graph.probe(model, graph.inspect(model, inputs, {}), inputs)
    keep = half(model, map, scores)
    thin, _ = graph.cut(model, map, keep, "zoo")
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, thin))
    outcome, difference, control = "broken", float("nan"), float("nan")
    try:
        verdict = graph.verify(model, thin, map, keep, inputs)
        outcome, difference, control = verdict.outcome, verdict.difference, verdict.control
        if outcome == "nothing cut" and map.coupled and all(c.protected for c in map.coupled):
            outcome = "protected"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    protected = {c.name: c.protected for c in map.coupled if c.protected is not None and not c.protected.startswith("it feeds the network's output")}
    return Row(name, outcome, difference, control, varies(model, inputs), 1 - after / before, len(keep), protected, time.perf_counter() - started)


def perturb(model: torch.nn.Module, inputs: networks.Inputs) -> None:
    """Weights under which a wrong cut shows: no zero and no tiny weights, no block that starts as the identity, running
    statistics near those of the activations, so that nothing dies out on the way to the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * own if name.endswith("weight") else 0.1 * own)
            elif parameter.dim() > 1:
                ordinary = max(1, parameter[0].numel()) ** -0.5
                if parameter.numel() > 1 and not float(parameter.std()) > ordinary / 2:
                    parameter.copy_(own * ordinary)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.running_var is not None]
        for norm in norms:
            norm.momentum = 1.0
        with contextlib.suppress(Exception):  # what cannot be trained on these inputs keeps the statistics it has
            call(model.train(), inputs)
        model.eval()
        for norm in norms:
            norm.momentum = 0.1
            spread = norm.running_var.sqrt().nan_to_num(1.0) + 1e-3
            norm.running_mean.add_(0.1 * spread * torch.randn(norm.num_features, generator=generator)).nan_to_num_(0.0)
            norm.running_var.copy_(spread.square() * (0.5 + torch.rand(norm.num_features, generator=generator)))


def half(model: torch.nn.Module, map: object, scores: str) -> dict[str, list[int]]:
    names = [c.name for c in map.coupled if c.protected is None]
    weights = dict(model.named_parameters())
    layout = coupled_layout(map, names, weights)
    spec = Random(kind="random") if scores == "random" else Magnitude(kind="magnitude")
    found = layout.split(group_scores(spec, layout, weights, None, 0)) if layout.count else {}
    return {name: sorted(values.argsort(descending=True)[: max(1, len(values) // 2)].tolist()) for name, values in found.items()}


def varies(model: torch.nn.Module, inputs: networks.Inputs) -> float:
    """How far the outputs of two examples are apart, in float64 where the model runs in it."""
    with torch.no_grad():
        try:
            outputs = list(tensors(call(deepcopy(model).double().eval(), converted(inputs, torch.float64))))
        except RuntimeError:
            outputs = list(tensors(call(model.eval(), inputs)))
    return float((outputs[0][0] - outputs[0][-1]).abs().max() / outputs[0].abs().max().clamp(min=1e-30))


def _pin(file: Path, rows: list[Row]) -> None:
    """Outcome and percentage gone of these rows; others that are pinned stay, those of networks that are no more go."""
    pins = json.loads(file.read_text()) if file.exists() else {}
    pins.update({r.name: {"outcome": r.outcome, "gone": int(100 * r.gone)} for r in rows})
    lines = (f"{json.dumps(name)}: {json.dumps(pins[name])}" for name in networks.everything() if name in pins)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", choices=("random", "magnitude"), default="random")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pin", type=Path, help="write name -> outcome and percentage gone, which test_zoo.py holds to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, entry in networks.everything().items():
        if given.only and not any(part in name for part in given.only):
            continue
        try:
            rows.append(row(name, entry, given.scores))
        except Exception as error:
            rows.append(Row(name, f"{type(error).__name__}: {str(error)[:100]}", float("nan"), float("nan"), float("nan"), 0.0, 0, {}, 0.0))
        r = rows[-1]
        first = next(iter(r.protected.items()), ("", ""))
        print(f"{r.name:36} {r.outcome[:60]:18} {r.difference:8.0e} control {r.control:7.0e} varies {r.varies:7.0e} gone {r.gone:4.0%} cut {r.cut:3} protected {len(r.protected):2} {r.seconds:5.1f}s  {first[0]}: {first[1][:80]}", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    if given.pin:
        _pin(given.pin, rows)
    good = [r for r in rows if r.outcome in ("equal", "statistics change")]
    kept = sum(r.outcome == "protected" for r in rows)
    print(f"{len(rows)} networks: {len(good)} proven, {kept} protected, {len(rows) - len(good) - kept} else; {sum(r.gone >= 0.4 for r in good)} with 40 % or more of the parameters gone")


if __name__ == "__main__":
    main()
