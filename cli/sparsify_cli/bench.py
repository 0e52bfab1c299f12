"""`sparsify bench`: time models again, interleaved, on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsify import report as reports
from sparsify.errors import SparsifyError
from sparsify.load import presets
from sparsify_cli.render import say, show, show_json
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Latency
from sparsify_schemas.target import Target

if TYPE_CHECKING:
    from torch import nn

    from sparsify.graph import Inputs


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="One run: its dense against its cut model. More: their cut models against that of the first.", show_default=False)],
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Only this target of the recipe, or a preset of `sparsify targets`.", show_default=False)] = None,
    seconds: Annotated[float, typer.Option("--seconds", metavar="SECONDS", min=0.1, help="Time spent on each target and pair.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="The timings as JSON.")] = False,
) -> None:
    """Time a run's dense against its cut model again, or the cut models of several runs against each other."""
    from sparsify.artefact import load_dense, load_run
    from sparsify.measure import environment

    for run in runs:
        reports.read(run)
    recipe = _recipe(runs[0])
    wanted = _targets(recipe, target)
    inputs = _inputs(runs[0], recipe)
    first = load_dense(runs[0]) if len(runs) == 1 else load_run(runs[0])
    pairs = [_Pair("dense", "cut", first, load_run(runs[0]))] if len(runs) == 1 else [_Pair(str(runs[0]), str(b), first, load_run(b)) for b in runs[1:]]
    for pair in pairs:
        _check(pair, inputs)
    timed = [(pair, _timed(pair, wanted, inputs, seconds)) for pair in pairs]
    if as_json:
        show_json([_row(pair, t) for pair, found in timed for t in found])
        return
    cores = environment().cores
    for pair, found in timed:
        title = f"Latency of {runs[0]}" if len(runs) == 1 else f"Latency: A is {pair.a}, B is {pair.b}"
        show(reports.latency_table(found, cores, ("dense", "cut") if len(runs) == 1 else ("A", "B"), title))


@dataclass(frozen=True)
class _Pair:
    """Two models that are timed against each other."""

    a: str
    b: str
    first: "nn.Module"
    second: "nn.Module"


def _timed(pair: _Pair, targets: Mapping[str, Target], inputs: "Inputs", seconds: float) -> tuple[Latency, ...]:
    from sparsify.measure import latency

    found = []
    for name, target in targets.items():
        say(f"timing {pair.a} against {pair.b} on {name} for {seconds:g} s")
        found.append(latency(pair.first, pair.second, inputs, name, target, seconds=seconds))
    return tuple(found)


def _row(pair: _Pair, timing: Latency) -> dict[str, Any]:
    values = timing.model_dump(mode="json")
    return {"a": pair.a, "b": pair.b, "a_ms": values.pop("dense_ms"), "b_ms": values.pop("cut_ms"), **values}


def _check(pair: _Pair, inputs: "Inputs") -> None:
    """Both models must take the same inputs."""
    import torch

    from sparsify.graph import call

    try:
        with torch.no_grad():
            call(pair.second, inputs)
    except Exception as error:
        raise SparsifyError(f"{pair.b} does not take the inputs of {pair.a}, so the two cannot be compared: {error}") from None


def _recipe(run: Path) -> Recipe:
    from sparsify.folder import read_recipe

    return read_recipe(run)


def _inputs(run: Path, recipe: Recipe) -> "Inputs":
    """As the recipe says; of a run saved from Python, what its plan was made with."""
    from sparsify.artefact import planned_inputs
    from sparsify.data import example_inputs, load_data

    if recipe.inputs is None and recipe.data is None:
        return planned_inputs(run)
    datasets = load_data(recipe.data, recipe.seed) if recipe.inputs is None and recipe.data is not None else None
    return example_inputs(recipe, datasets)


def _targets(recipe: Recipe, name: str | None) -> Mapping[str, Target]:
    from sparsify.assess import DEFAULT_TARGET

    known: Mapping[str, Target] = recipe.targets or DEFAULT_TARGET
    if name is None:
        return known
    if name not in known and name in presets():
        return {name: presets()[name]}
    if name not in known:
        near = get_close_matches(name, known, 1)
        raise SparsifyError(f"the run has no target '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"))
    return {name: known[name]}
