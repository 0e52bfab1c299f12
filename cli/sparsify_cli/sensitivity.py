"""`sparsify sensitivity`: what each layer of a network bears to lose."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify.formatting.numbers import MISSING, accuracy, digits, known, plural, share
from sparsify.formatting.table import Table, columns
from sparsify_cli.render import say, show, show_json
from sparsify_schemas.profile import By, Curve, Profile, Tolerance, tolerance

_TITLES: dict[By, str] = {
    "ablation": "validation accuracy with this share of a layer's units removed",
    "taylor": "validation loss, as predicted to first order, with this share of a layer's units removed",
    "gsm": "share of a layer's units among so many of all layers that global sparse momentum would leave out",
}


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="The recipe: its rules say which layers, its data on what.",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Weights, a whole model, or an earlier run (its cut model).",
            show_default=False,
        ),
    ],
    by: Annotated[
        By,
        typer.Option(
            "--by",
            metavar="ablation|taylor|gsm",
            help="Remove and validate; predict by first order; or rank as global sparse momentum does.",
        ),
    ] = "ablation",
    limits: Annotated[
        str | None,
        typer.Option(
            "--limits",
            metavar="TOLERANCE",
            help="Set limits for a recipe: the largest share removed at which accuracy falls by no more, such as 1pp, or 1% for short (by taylor: the loss rises by no more than this share of it, 1%; by gsm: when this share of all goes).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="Where the profile is written; an unfinished one is gone on with."
        ),
    ] = Path("sensitivity.json"),
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Write a page with a plot of each layer as well, such as sensitivity.html.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option("--examples", metavar="N", min=1, help="Validation examples that layers are judged on."),
    ] = 1000,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Replace a value of the recipe; may be repeated.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="PACKAGE",
            help="Trust classes of this package in a whole pickled model; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The profile as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show how much each layer bears to lose. The same command goes on where it was interrupted.

    ablation: 10 % to 90 % of a layer's units leave, lowest scores of the rule's criterion first, and the rest is validated.
    taylor: the loss is predicted to rise by the sum over these units of | sum over w of w * dL/dw | (arXiv:1906.10771).
    gsm: the units of all layers are ranked together by that number, and each layer shows how many of its own would be left out.

    A recipe uses the limits by `keep: {limits: sensitivity.json}` in its rules.
    """
    allowed = _tolerance(by, limits)
    try:
        from sparsify import files
        from sparsify.reporting.html import profile_html
        from sparsify.runs.sensitivity import profile_layers
        from sparsify_cli.progress import narration

        with narration(quiet) as listener:
            found = profile_layers(
                recipe,
                model,
                out,
                by=by,
                tolerance=allowed,
                examples=examples,
                overrides=overrides or (),
                allow=allow or (),
                listener=listener,
            )
    except KeyboardInterrupt:
        say(
            f"interrupted; the same command goes on with {out}"
            if out.exists()
            else "interrupted before anything was measured"
        )
        raise typer.Exit(130) from None
    if plot is not None:
        files.write(plot, profile_html(found).encode())
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show(*_tables(found))
    say(f"saved in {out}{'' if plot is None else f' and {plot}'}")


def _tolerance(by: By, text: str | None) -> Tolerance | None:
    try:
        return None if text is None else tolerance(by, text)
    except ValueError as error:
        raise typer.BadParameter(f"--limits: {error}") from None


def _tables(found: Profile) -> tuple[str, Table]:
    shares = sorted({point.share for curve in found.curves for point in curve.points})
    rows = tuple(_row(found, curve, shares) for curve in found.curves)
    heads = columns(
        "layers", ">units", *(f">{100 * s:.0f} %" for s in shares), *([">limit"] if found.limits else [])
    )
    whole = f"Whole model: accuracy {accuracy(found.accuracy)}, loss {digits(found.loss)} on {plural(found.examples, 'validation example')}."
    what = (
        f"what of it goes when {found.tolerance} of all units go"
        if found.by == "gsm"
        else f"largest share within {found.tolerance}"
    )
    notes = (
        (f"limit: {what}; `keep: {{limits: FILE}}` in a rule holds a recipe to it.",) if found.limits else ()
    )
    return whole, Table(f"Sensitivity by {found.by}: {_TITLES[found.by]}", heads, rows, notes)


def _row(found: Profile, curve: Curve, shares: list[float]) -> tuple[str, ...]:
    known = {point.share: point for point in curve.points}
    cells = (
        _cell(found, curve, known[s].removed, known[s].loss, known[s].accuracy) if s in known else MISSING
        for s in shares
    )
    more = f" and {len(curve.layers) - 1} more" if curve.layers[1:] else ""
    limit = found.limits.get(curve.group)
    return (
        f"{curve.layers[0]}{more}",
        str(curve.width),
        *cells,
        *([MISSING if limit is None else share(limit.fraction)] if found.limits else []),
    )


def _cell(found: Profile, curve: Curve, removed: int, loss: float | None, right: float | None) -> str:
    if found.by == "gsm":
        return share(removed / curve.width)
    if right is not None and known(right):
        return f"{100 * right:.1f}"
    return MISSING if loss is None else digits(loss)
