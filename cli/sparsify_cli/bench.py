"""`sparsify bench`: time two models against each other, interleaved, on this machine."""

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import SparsifyError
from sparsify.recipe import presets
from sparsify.reporting.benchmark_table import benchmark_table
from sparsify_cli.render import say, show, show_json
from sparsify_schemas.target import Target


def command(
    artefacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="A [B...]",
            help="One run: its dense against its cut model. More runs, .pt2 or .onnx files: each against the first.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--on",
            "--target",
            metavar="NAME",
            help="A target of the first run's recipe, or a preset of `sparsify targets`. Left out: all targets of the recipe; onnxruntime where an .onnx file takes part.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="SECONDS", min=0.1, help="Time spent on each target and pair."),
    ] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="The timings as JSON.")] = False,
) -> None:
    """Time a run's dense against its cut model again, or any two artefacts against each other.

    Both run interleaved, warmed up, pinned to as many cores as the target has threads, with a second copy of the first: what
    does not differ by more than the two copies do is called no difference.
    """
    from sparsify.cost.measure import environment
    from sparsify.runs.benchmark import compare, read_candidates

    found = read_candidates(artefacts)
    wanted = _targets([s.targets for s in found], target, any(isinstance(s.model, bytes) for s in found))
    pairs = []
    for other in found[1:]:
        timed = []
        for name, spec in wanted.items():
            say(f"timing {found[0].name} against {other.name} on {name} for {seconds:g} s")
            timed.append(compare(found[0], other, name, spec, seconds))
        pairs.append(tuple(timed))
    if as_json:
        show_json([{**asdict(c), "differs": c.differs} for timed in pairs for c in timed])
        return
    cores = environment().cores
    show(
        *(
            benchmark_table(timed, cores, f"Latency of {artefacts[0]}" if len(artefacts) == 1 else "Latency")
            for timed in pairs
        )
    )


def _targets(own: list[Mapping[str, Target]], name: str | None, onnx: bool) -> Mapping[str, Target]:
    """What was asked for; else the targets of the first artefact, or of the one that PyTorch cannot run."""
    known = own[0]
    if name is None:
        return {"onnxruntime": presets()["onnxruntime"]} if onnx else known
    if name not in known and name in presets():
        return {name: presets()[name]}
    if name not in known:
        near = get_close_matches(name, [*known, *presets()], 1)
        raise SparsifyError(
            f"there is no target '{name}'; "
            + (
                f"did you mean '{near[0]}'?"
                if near
                else f"the run has {', '.join(known)}, and `sparsify targets` lists the presets"
            )
        )
    return {name: known[name]}
