"""`sparsify sensitivity`: how much each layer of a network can lose."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify.formatting.numbers import MISSING, count_noun, format_digits, format_share, is_known
from sparsify.formatting.table import Table, make_columns
from sparsify.reporting.html.sensitivity_page import describe_metric
from sparsify_cli.options import Allow, ModelFile, Overrides, Quiet
from sparsify_cli.render import say, show, show_json
from sparsify_cli.stopping import StoppedError
from sparsify_schemas.profile import By, Curve, Profile, Tolerance, read_tolerance

_TITLES: dict[By, str] = {
    "ablation": "validation {metric} with this fraction of a layer's units removed",
    "taylor": "predicted validation loss (first order) with this fraction of a layer's units removed",
    "gsm": "fraction of a layer's units below the threshold, by the fraction of all units below it",
}


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="The recipe: its rules name the layers, its data the examples.",
            show_default=False,
        ),
    ],
    model: ModelFile,
    by: Annotated[
        By,
        typer.Option(
            "--by",
            metavar="ablation|taylor|gsm",
            help="Remove and validate; predict to first order; or rank as global sparse momentum does.",
        ),
    ] = "ablation",
    limits: Annotated[
        str | None,
        typer.Option(
            "--limits",
            metavar="TOLERANCE",
            help="Set limits for a recipe: the largest fraction of each layer whose removal lowers accuracy "
            "by no more than this, such as 1pp (1% means the same). By taylor: raises the loss by no more "
            "than this fraction of it. By gsm: what is below the threshold when this fraction of all "
            "units is.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="Where the profile is written; an unfinished one is continued."
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
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace existing files that are of another kind or another profile."),
    ] = False,
    overrides: Overrides = None,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="The profile as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Show how much each layer can lose. After an interruption, run the same command again to continue.

    ablation: remove 10 % to 90 % of a layer's units, lowest scores first, and validate.
    taylor: predict the rise of the loss, sum over these units of | sum over w of w * dL/dw |.
    gsm: rank the units of all layers by that number; show how many of each layer are below the threshold.

    A recipe uses the limits by `keep: {limits: sensitivity.json}` in its rules.
    """
    allowed = _read_tolerance(by, limits)
    if plot is not None and plot.resolve() == out.resolve():
        raise typer.BadParameter(f"--plot and --out both name {out}")
    try:
        from sparsify import files
        from sparsify.reporting.html import PAGE, profile_html
        from sparsify.runs import run_folder
        from sparsify.runs.sensitivity import profile_layers
        from sparsify_cli.progress import narrate

        if plot is not None:
            run_folder.refuse_own_name(plot, "--plot")
            files.check_output(plot, PAGE, "--plot", force)
        with narrate(quiet) as listener:
            found = profile_layers(
                recipe,
                model,
                out,
                by=by,
                tolerance=allowed,
                examples=examples,
                overrides=overrides or (),
                allow=allow or (),
                force=force,
                listener=listener,
            )
    except KeyboardInterrupt as stop:
        more = f"; run the same command again to continue {out}"
        raise StoppedError(stop, more if out.exists() else " before anything was measured") from None
    if plot is not None:
        files.write_output(plot, profile_html(found).encode(), PAGE, "--plot", force)
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show(*_make_tables(found))
    say(f"saved in {out}{'' if plot is None else f' and {plot}'}")


def _read_tolerance(by: By, text: str | None) -> Tolerance | None:
    try:
        return None if text is None else read_tolerance(by, text)
    except ValueError as error:
        raise typer.BadParameter(f"--limits: {error}") from None


def _make_tables(found: Profile) -> tuple[str, Table]:
    shares = sorted({point.share for curve in found.curves for point in curve.points})
    rows = tuple(_make_row(found, curve, shares) for curve in found.curves)
    heads = make_columns(
        "layers", ">units", *(f">{100 * s:.0f} %" for s in shares), *([">limit"] if found.limits else [])
    )
    examples = count_noun(found.examples, "validation example")
    whole = f"Whole model: {describe_metric(found)}, loss {format_digits(found.loss)} on {examples}."
    notes = []
    if found.limits:
        meaning = f"largest fraction within {found.tolerance}"
        if found.by == "gsm":
            meaning = f"fraction below the threshold when {found.tolerance} of all units are"
        notes.append(f"limit: {meaning}; `keep: {{limits: FILE}}` in a rule applies it.")
    title = _TITLES[found.by].format(metric=found.judged_by.name)
    return whole, Table(f"Sensitivity by {found.by}: {title}", heads, rows, tuple(notes))


def _make_row(found: Profile, curve: Curve, shares: list[float]) -> tuple[str, ...]:
    known = {point.share: point for point in curve.points}
    cells = (
        _format_cell(found, curve, known[s].removed, known[s].loss, known[s].metric)
        if s in known
        else MISSING
        for s in shares
    )
    more = f" and {len(curve.layers) - 1} more" if curve.layers[1:] else ""
    limit = found.limits.get(curve.group)
    return (
        f"{curve.layers[0]}{more}",
        str(curve.width),
        *cells,
        *([MISSING if limit is None else format_share(limit.fraction)] if found.limits else []),
    )


def _format_cell(found: Profile, curve: Curve, removed: int, loss: float | None, figure: float | None) -> str:
    if found.by == "gsm":
        return format_share(removed / curve.width)
    if figure is not None and is_known(figure):
        return f"{100 * figure:.1f}" if found.judged_by.percent else format_digits(figure)
    return MISSING if loss is None else format_digits(loss)
