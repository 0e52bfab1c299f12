"""`sparsify bench`: time two models against each other, in turn, on this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import SparsifyError
from sparsify.recipe import list_presets
from sparsify.reporting.benchmark_table import benchmark_table
from sparsify_cli.render import say, show, show_json
from sparsify_schemas.target import Target


def command(
    artefacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="One run: its dense against its cut model. Several runs, .pt2 or .onnx files: "
            "each against the first.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--on",
            "--target",
            metavar="NAME",
            help="A target of the first run's recipe, or a preset of `sparsify targets`. By default all "
            "targets of the recipe; onnxruntime where one of the files is .onnx.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="SECONDS", min=0.1, help="Time spent on each target and pair."),
    ] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="The timings as JSON.")] = False,
) -> None:
    """Time a run's dense against its cut model again, or any two models against each other.

    The models run in turn, warmed up and pinned to as many cores as the target has threads. A second copy of
    the first model shows the noise: a difference no larger than that between the two copies is reported as no
    difference.
    """
    from sparsify.cost.measure import describe_environment
    from sparsify.runs.benchmark import read_candidates, time_pair

    found = read_candidates(artefacts)
    wanted = _choose_targets(found[0].targets, target, any(isinstance(c.model, bytes) for c in found))
    pairs = []
    for other in found[1:]:
        timed = []
        for name, spec in wanted.items():
            say(f"timing {found[0].name} against {other.name} on {name} for {seconds:g} s")
            timed.append(time_pair(found[0], other, name, spec, seconds))
        pairs.append(tuple(timed))
    if as_json:
        show_json([{**asdict(c), "differs": c.differs} for timed in pairs for c in timed])
        return
    cores = describe_environment().cores
    title = f"Latency of {artefacts[0]}" if len(artefacts) == 1 else "Latency"
    show(*(benchmark_table(timed, cores, title) for timed in pairs))


def _choose_targets(known: Mapping[str, Target], name: str | None, onnx: bool) -> Mapping[str, Target]:
    """The target that was asked for, else those of the first model, or onnxruntime for an ONNX file."""
    if name is None:
        return {"onnxruntime": list_presets()["onnxruntime"]} if onnx else known
    if name not in known and name in list_presets():
        return {name: list_presets()[name]}
    if name not in known:
        near = get_close_matches(name, [*known, *list_presets()], 1)
        hint = f"the run has {', '.join(known)}, and `sparsify targets` lists the presets"
        if near:
            hint = f"did you mean '{near[0]}'?"
        raise SparsifyError(f"there is no target '{name}'; {hint}")
    return {name: known[name]}
