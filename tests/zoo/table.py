"""The zoo through recipes: each network is planned by `sparsify.make_plan`, cut by `sparsify.cut`, judged.

    python tests/zoo/table.py [--only PART ...] [--modes MODE ...] [--json FILE]
        [--pin FILE] [--markdown FILE]

The network gets a rule for each family of layers that it has (filters of convolutions, neurons of Linear
layers and embeddings, hidden units, heads); half of their units go. The plan is made with a batch of 1 and
with one of 2. The result is judged by the verdict that the library gives itself, and by a reference that
knows nothing of how the cut was made (tests/reference.py), on fresh inputs at batch 1 and 4.

Modes: `random` and `magnitude` name the scores; `dead`: half of the units of each convolution and linear
layer are made dead beforehand, their biases and the shifts behind them are about 1, and the rules name no
amount, so that dead units go and no others: the cut model must then agree with the dense one.

Outcome: `equal` or `statistics change` (the library's verdict), `protected` (nothing can be cut, with
reasons), or what went wrong. Judgement: `right`; `wrong`; `own verdict only`: a statistic is taken over
removed units in a way that the reference does not follow; `loss told`: constants could not be kept exactly,
and the result says so.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import networks
import reference
import torch
from torch import nn

import sparsify
from sparsify.errors import RecipeError, SparsifyError
from sparsify_schemas.cuts import Fold

VARIES = 1e-6
"""outputs of two examples differ by more than this, relative to the largest: far above what rounding makes"""
ENOUGH = 1e-6
"""largest difference to the reference: what is folded into biases is rounded to float32"""
DEAD = 1e-5
"""largest difference to the dense model where everything that left was dead"""
NOT_FOLLOWED = frozenset({"own.cross attention", "further.set transformer", "further.perceiver"})
"""networks that take statistics over removed units in a way that the reference does not follow: learnt
tokens leave, a mean is taken over the others, and a token of zeros is none that the reference could leave
out of it"""

MODES = ("random", "magnitude", "dead")
FAMILIES: dict[str, tuple[type[nn.Module], ...]] = {
    "filter": (nn.modules.conv._ConvNd,),
    "neuron": (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.Bilinear),
    "hidden": (nn.RNNBase, nn.RNNCellBase),
    "head": (nn.MultiheadAttention,),
}
"""Group type -> the layers that make a rule with it worth writing."""


@dataclass(frozen=True)
class Row:
    """One network, cut in one mode by a plan made with one batch size."""

    name: str
    mode: str
    planned: int
    """batch of the inputs that the plan was made with"""
    outcome: str
    judged: str
    own: float = math.nan
    """difference by the library's own verdict"""
    one: float = math.nan
    """difference to the reference, at batch 1; in mode dead to the dense model"""
    four: float = math.nan
    """the same at batch 4"""
    by: str = ""
    """how the reference took statistics"""
    control: float = math.nan
    """difference between the cut model and the dense one: were it zero, the row would prove nothing"""
    varies: float = math.nan
    """how far the outputs of two examples are apart: were it zero, the row would prove nothing"""
    gone: float = 0.0
    """share of the parameters removed"""
    cut: int = 0
    """coupled groups that lost units"""
    told: str = ""
    """what the result says of constants that it could not keep"""
    protected: Mapping[str, str] | None = None
    seconds: float = 0.0

    @property
    def worst(self) -> float:
        return max(self.one, self.four)


class CannotBeCut(Exception):
    """Every rule that could be written speaks of protected layers."""


def row(name: str, entry: networks.Entry, mode: str = "random", planned: int = 1) -> Row:
    """Build, plan, cut, judge. What goes wrong is a row as well."""
    started = time.perf_counter()
    empty = Row(name, mode, planned, "", "")
    try:
        found = _judged(empty, entry)
    except SparsifyError as error:
        found = replace(empty, outcome=f"{type(error).__name__}: {_line(error)}", judged="refused")
    except Exception as error:
        found = replace(empty, outcome=f"{type(error).__name__}: {_line(error)}", judged="raw error")
    return replace(found, seconds=time.perf_counter() - started)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _judged(found: Row, entry: networks.Entry) -> Row:
    torch.manual_seed(0)
    model = entry.build().eval()
    dead = found.mode == "dead"
    perturb(model, entry.fresh(2, 0), shift=1.0 if dead else 0.0)
    inputs = entry.fresh(found.planned, 0)
    if dead:
        reference.kill(model, inner_layers(model, inputs), 0.5, seed=0)
    try:
        plan = planned(model, inputs, found.mode)
    except CannotBeCut as why:
        return replace(found, outcome="protected", judged="right", protected=why.args[0])
    result = sparsify.cut(plan, model)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, result.model))
    verdict = result.verdicts[0]
    found = replace(
        found,
        outcome=verdict.outcome,
        own=verdict.difference,
        gone=1 - after / before,
        cut=len(verdict.groups),
        protected=reasons(plan),
        told=told(result),
    )
    one, four = (entry.fresh(batch, seed) for batch, seed in ((1, 11), (4, 12)))
    compared = [reference.compare(result, model, x, enough=ENOUGH, reference=not dead) for x in (one, four)]
    by = max(c.by for c in compared) + ("" if compared[0].double else ", float32")
    found = replace(
        found,
        one=compared[0].to_dense if dead else compared[0].difference,
        four=compared[1].to_dense if dead else compared[1].difference,
        by="" if dead or not found.cut else by,
        control=max(c.to_dense for c in compared),
        varies=compared[1].varies,
    )
    broken = [method for method in entry.methods if not dead and not _method_runs(result, model, one, method)]
    warned = any(method in note for method in broken for note in plan.notes)
    if broken and not warned and not any("no call reaches" in note for note in plan.notes):
        return replace(
            found, judged="wrong", told=f"broken, and no note of the plan says so: {', '.join(broken)}"
        )
    return replace(found, judged=judgement(found))


def _method_runs(result: Any, model: nn.Module, inputs: networks.Inputs, method: str) -> bool:
    try:
        return reference.compare(result, model, inputs, enough=ENOUGH, method=method).difference <= ENOUGH
    except Exception:
        return False


def judgement(found: Row) -> str:
    """In single precision, where a network does not run in double, a hundredfold difference is allowed."""
    allowed = DEAD if found.mode == "dead" else ENOUGH * (100 if "float32" in found.by else 1)
    if found.worst <= allowed:
        return "right"
    if found.mode == "dead":
        return "loss told" if found.told or found.outcome == "statistics change" else "wrong"
    return (
        "own verdict only" if found.name in NOT_FOLLOWED and found.outcome == "statistics change" else "wrong"
    )


def told(result: Any) -> str:
    """What the result says of constants that were lost: folds that are not exact, and notes that say so."""
    folds = [op for op in result.cuts.operations if isinstance(op, Fold) and not op.exact]
    inexact = [f"{len(folds)} folds are not exact"] if folds else []
    return "; ".join([*inexact, *(note for note in result.notes if "lost" in note)])


def reasons(plan: Any) -> dict[str, str]:
    """Coupled group -> why it is kept whole; the network's own output is not worth telling."""
    kept = {c.name: c.protected for c in plan.map.coupled if c.protected is not None}
    return {name: why for name, why in kept.items() if not why.startswith("it feeds the network's output")}


def planned(model: nn.Module, inputs: networks.Inputs, mode: str) -> Any:
    """The plan of a recipe with a rule for each family of layers that the network has. A rule all of whose
    layers are protected is an error in a recipe; it is left out here, as a user would."""
    rules = recipe_rules(model, mode)
    while rules:
        recipe = {"version": 1, "title": "zoo", "rules": rules}
        try:
            return sparsify.make_plan(recipe, model, inputs)
        except RecipeError as error:
            found = re.search(r"rules\.(\d+)\.(sparsity|layers): ", str(error))
            if found is None:
                raise
            last = error
            del rules[int(found[1])]
    raise CannotBeCut(_why(model, inputs, str(last)))


def _why(model: nn.Module, inputs: networks.Inputs, refusal: str) -> dict[str, str]:
    """Why each layer of a network is protected, from a plan that asks for nothing."""
    rules = [{"layers": "*", "protect": True}]
    with contextlib.suppress(SparsifyError):
        plan = sparsify.make_plan({"version": 1, "title": "zoo", "rules": rules}, model, inputs)
        return reasons(plan) or {"": refusal}
    return {"": refusal}


def recipe_rules(model: nn.Module, mode: str) -> list[dict[str, Any]]:
    own: dict[str, Any] = {} if mode == "dead" else {"sparsity": "50%", "criterion": {"kind": mode}}
    rules: list[dict[str, Any]] = []
    for group, kinds in FAMILIES.items():
        layers = [
            m
            for m in model.modules()
            if isinstance(m, kinds) or (group == "neuron" and type(m).__name__ == "Conv1D")
        ]
        alone = len(layers) == 1 and bool(rules) and group == "neuron"
        if layers and not (alone and mode != "dead" and _is_last(model, layers[0])):
            rules.append({"layers": "*", "group": group, **own, **({"override": True} if rules else {})})
    return rules or [
        {"layers": "*", "group": "neuron", **own},
        {"layers": "*", "group": "filter", **own, "override": True},
    ]


def _is_last(model: nn.Module, layer: nn.Module) -> bool:
    """Whether a layer stands last in its network: the classifier, most likely, which keeps its width."""
    return [m for m in model.modules() if not list(m.children())][-1] is layer


def inner_layers(model: nn.Module, inputs: networks.Inputs) -> list[str]:
    """Convolutions and linear layers whose result is not itself an output of the network."""
    made: dict[str, list[torch.Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    hooks = [
        m.register_forward_hook(lambda _m, _x, y, name=name: made.setdefault(name, []).append(y))
        for name, m in layers.items()
    ]
    try:
        with torch.no_grad():
            called = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {t.untyped_storage().data_ptr() for t in reference.tensors_of(called)}
    feeding = {
        name for name, own in made.items() if any(y.untyped_storage().data_ptr() in outputs for y in own)
    }
    return [name for name in layers if name not in feeding]


def perturb(model: nn.Module, inputs: networks.Inputs, shift: float = 0.0) -> None:
    """Weights under which a wrong cut shows: no zero and no tiny weights, no block that starts as the
    identity, running statistics near those of the activations, so that nothing dies out on the way to the
    output. shift: what biases are about."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * own if name.endswith("weight") else shift + 0.1 * own)
            elif parameter.dim() > 1:
                ordinary = max(1, parameter[0].numel()) ** -0.5
                if parameter.numel() > 1 and not float(parameter.std()) > ordinary / 2:
                    parameter.copy_(own * ordinary)
        norms = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None
        ]
        for norm in norms:
            norm.momentum = 1.0
        with contextlib.suppress(
            Exception
        ):  # what cannot be trained on these inputs keeps the statistics it has
            model.train()
            own_inputs = reference.converted(inputs, torch.float32)
            model(**own_inputs) if isinstance(own_inputs, Mapping) else model(*own_inputs)
        model.eval()
        for norm in norms:
            norm.momentum = 0.1
            spread = norm.running_var.sqrt().nan_to_num(1.0) + 1e-3
            moved = 0.1 * spread * torch.randn(norm.num_features, generator=generator)
            norm.running_mean.add_(moved).nan_to_num_(0.0)
            norm.running_var.copy_(
                spread.square() * (0.5 + torch.rand(norm.num_features, generator=generator))
            )


# what is shown and written


def shown(found: Row) -> str:
    first = next(iter((found.protected or {}).items()), ("", ""))
    numbers = (
        f"own {found.own:7.0e} reference {found.one:7.0e} {found.four:7.0e} control {found.control:7.0e}"
    )
    kept = len(found.protected or {})
    amounts = f"gone {found.gone:4.0%} cut {found.cut:3} kept whole {kept:2} {found.seconds:5.1f}s"
    where = f"{found.name:36} {found.mode:9} {found.planned} {found.judged:16} {found.outcome[:60]:18}"
    return f"{where} {numbers} {amounts}  {found.by} {found.told[:60]} {first[0]}: {first[1][:80]}"


def pin(file: Path, rows: Iterable[Row]) -> None:
    """Outcome and percentage gone by random scores; pins of networks that did not run stay, those of
    networks that are no more go. What is not right cannot be pinned."""
    pins = json.loads(file.read_text()) if file.exists() else {}
    right = [r for r in rows if r.mode == "random" and r.judged in ("right", "own verdict only")]
    pins.update({r.name: {"outcome": r.outcome, "gone": int(100 * r.gone)} for r in right})
    lines = (
        f"{json.dumps(name)}: {json.dumps(pins[name])}" for name in networks.everything() if name in pins
    )
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


SOURCE_NAMES = {
    "micro": "one construct each",
    "own": "small networks of our own",
    "further": "further networks of our own",
    "tv": "torchvision",
    "timm": "timm",
    "hf": "transformers",
    "arch": "further architectures of transformers",
}


def markdown(rows: Iterable[Row]) -> str:
    """Two tables: how many networks of each source, and every network with both judges beside each other."""
    by_name: dict[str, list[Row]] = {}
    for found in rows:
        by_name.setdefault(found.name, []).append(found)
    return "\n".join([*_summary(by_name), "", *_network_by_network(by_name)]) + "\n"


SUMMARY = (
    "networks",
    "",
    "equal",
    "statistics change",
    "protected",
    "refused or raw error",
    "own verdict only",
    "wrong",
    "dead units: exact",
    "loss told",
    "lost silently",
    "40 % or more gone",
)


def _summary(by_name: Mapping[str, list[Row]]) -> Iterator[str]:
    yield "| " + " | ".join(SUMMARY) + " |"
    yield "|" + "---|" * len(SUMMARY)
    sources = [s for s in SOURCE_NAMES if any(name.split(".")[0] == s for name in by_name)]
    for source in (*sources, None):
        own = [rows for name, rows in by_name.items() if source is None or name.split(".")[0] == source]
        title = "all" if source is None else SOURCE_NAMES[source]
        yield f"| {title} | " + " | ".join(map(str, _counts(own))) + " |"


def _counts(own: list[list[Row]]) -> list[int]:
    """What stands in one line of the summary, for these networks."""
    living = [[r for r in rows if r.mode != "dead"] or rows for rows in own]
    dead = [_judgement(cut) for rows in own if (cut := [r for r in rows if r.mode == "dead" and r.cut])]
    outcomes, judged = [_outcome(rows) for rows in own], [_judgement(rows) for rows in living]
    return [
        len(own),
        *(outcomes.count(outcome) for outcome in ("equal", "statistics change", "protected")),
        judged.count("refused") + judged.count("raw error"),
        judged.count("own verdict only"),
        judged.count("wrong"),
        *(dead.count(judgement) for judgement in ("right", "loss told", "wrong")),
        sum(max(r.gone for r in rows) >= 0.4 for rows in living),
    ]


def _network_by_network(by_name: Mapping[str, list[Row]]) -> Iterator[str]:
    columns = (
        "network",
        "own verdict",
        "own difference",
        "reference, batch 1",
        "reference, batch 4",
        "dead units: to the dense model",
        "gone",
        "judged",
    )
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for name, rows in by_name.items():
        living = [r for r in rows if r.mode != "dead"]
        dead = [r for r in rows if r.mode == "dead" and r.cut]
        gone = next((r.gone for r in living if r.mode == "random"), 0.0)
        cells = (
            name,
            _outcome(rows),
            _number(r.own for r in living),
            _number(r.one for r in living),
            _number(r.four for r in living),
            _dead(dead),
            f"{gone:.0%}",
            _judgement(rows),
        )
        yield "| " + " | ".join(cells) + " |"


def _outcome(rows: Iterable[Row]) -> str:
    """Of the modes that cut living units: the worst verdict."""
    known = ("protected", "nothing cut", "equal", "statistics change")
    found = [r.outcome for r in rows if r.mode != "dead"] or [r.outcome for r in rows]
    worst = max(found, key=lambda o: known.index(o) if o in known else len(known))
    return worst[:80].replace("|", "/")


def _judgement(rows: Iterable[Row]) -> str:
    order = ("right", "loss told", "own verdict only", "refused", "raw error", "wrong")
    return max((r.judged for r in rows), key=order.index)


def _number(values: Iterable[float]) -> str:
    found = [v for v in values if not math.isnan(v)]
    return f"{max(found):.0e}" if found else ""


def _dead(rows: list[Row]) -> str:
    if not rows:
        return ""
    worst = max(rows, key=lambda r: r.worst)
    told = ", statistics change" if worst.outcome == "statistics change" else ", told" if worst.told else ""
    return f"{worst.worst:.0e}{told if worst.worst > DEAD else ''}"


def chosen_entries(parts: Iterable[str]) -> Iterator[tuple[str, networks.Entry]]:
    """Networks whose name holds one of the parts; a library is imported where a part may name a network of
    it."""
    parts = list(parts)
    for kind, source in networks.SOURCES.items():
        if parts and all(
            "." in part and part.split(".")[0] in networks.SOURCES and part.split(".")[0] != kind
            for part in parts
        ):
            continue
        for name, entry in source().items():
            if not parts or any(part in name for part in parts):
                yield name, entry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES)
    parser.add_argument(
        "--planned", nargs="*", type=int, default=[1, 2], help="batch sizes of the planning inputs"
    )
    parser.add_argument(
        "--json", type=Path, help="rows, one JSON value a line; those of an earlier run are kept"
    )
    parser.add_argument(
        "--pin", type=Path, help="write name -> outcome and percentage gone, which test_zoo.py holds to"
    )
    parser.add_argument("--markdown", type=Path, help="write the tables of docs/figures/zoo.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(given.json)
    there = {(r.name, r.mode, r.planned) for r in rows}
    for name, entry in chosen_entries(given.only):
        for mode in given.modes:
            for batch in given.planned:
                if (name, mode, batch) in there:
                    continue
                rows.append(row(name, entry, mode, batch))
                print(shown(rows[-1]), flush=True)
                if given.json:
                    with given.json.open("a") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
    if given.pin:
        pin(given.pin, [r for r in rows if r.planned == 1])
    if given.markdown:
        given.markdown.write_text(markdown(rows))
    counts = {j: sum(r.judged == j for r in rows) for j in dict.fromkeys(r.judged for r in rows)}
    told_counts = ", ".join(f"{n} {judged}" for judged, n in counts.items())
    print(f"{len({r.name for r in rows})} networks, {len(rows)} rows: {told_counts}")


def read(file: Path | None) -> list[Row]:
    if file is None or not file.exists():
        return []
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    main()
