"""`sparsify targets`: list what can be timed here; measure which widths are fast on a target."""

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparsify import files
from sparsify.errors import SparsifyError, TargetError
from sparsify.formatting.numbers import MISSING, count_noun, format_milliseconds
from sparsify.formatting.table import Table, make_columns
from sparsify.recipe import list_presets
from sparsify_cli.options import Force
from sparsify_cli.render import say, show, show_json
from sparsify_schemas.target import Cpu, Target

if TYPE_CHECKING:
    from sparsify_schemas.table import Table as Latencies


def command(
    what: Annotated[
        Literal["list", "measure"],
        typer.Argument(metavar="[list|measure]", help="List the presets, or measure one of them."),
    ] = "list",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The target to measure: a preset, or one of the recipe's.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE",
            help="Measure the layers of this recipe's network too, for a table to take elsewhere.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="Its weights; built with random ones when left out.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the table here as well.", show_default=False),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the targets and what is installed here; `measure NAME` finds which widths are fast on a target.

    Add your own targets to ~/.config/sparsify/targets.yaml, or to the file that $SPARSIFY_TARGETS names.
    """
    if what == "list":
        _list_targets(as_json)
        return
    if name is None:
        raise typer.BadParameter("say which target to measure; `sparsify targets` lists them")
    _measure_target(name, recipe, model, out, force, as_json)


def _list_targets(as_json: bool) -> None:
    from sparsify.cost.latency import tables
    from sparsify.cost.measure.availability import describe_state

    rows = []
    for name, target in list_presets().items():
        here = describe_state(target)
        steps = tables.width_steps(tables.read_table(name, target)) if here == "here" else None
        rows.append(
            (name, target, here, steps, here == "here" and tables.read_table(name, target).steps is not None)
        )
    if as_json:
        show_json(
            [
                {
                    "name": n,
                    **t.model_dump(),
                    "state": s,
                    "steps": w.model_dump() if w else None,
                    "steps_measured": m,
                }
                for n, t, s, w, m in rows
            ]
        )
        return
    shown = tuple(
        (
            n,
            t.runtime if t.table is None else "by table",
            str(t.threads) if isinstance(t, Cpu) else MISSING,
            str(t.batch),
            t.dtype,
            _format_steps(w, m),
            "here" if s == "here" else "no",
        )
        for n, t, s, w, m in rows
    )
    notes = [f"{n} {s}." for n, _, s, _, _ in rows if s != "here"]
    notes.append(
        "step: `keep: {multiple_of: auto}` rounds widths up to a multiple of it; ~ is an estimate from the "
        "vector instructions, until `sparsify targets measure NAME`."
    )
    notes.append(
        "Faster on every target: removed units (filter, channel, neuron, head, hidden, expert, depth), "
        "smaller kernels (tap), and gathered columns (shape) where timing shows a gain. Zeros inside tensors "
        "(weight, 4x1, 2:4) are multiplied like any number."
    )
    show(
        Table(
            "Targets",
            make_columns("name", "runtime", ">threads", ">batch", "dtype", ">step", "here"),
            shown,
            tuple(notes),
        )
    )


def _format_steps(steps: object, measured: bool) -> str:
    return MISSING if steps is None else f"{'' if measured else '~'}{getattr(steps, 'convolution', MISSING)}"


def _measure_target(
    name: str, recipe: Path | None, model: Path | None, out: Path | None, force: bool, as_json: bool
) -> None:
    from sparsify.cost.latency import tables
    from sparsify.cost.latency.width_steps import measure_steps
    from sparsify.cost.measure import check_target
    from sparsify.runs import run_folder
    from sparsify.runs.apply import measure_layers
    from sparsify_cli.progress import narrate

    target = _find_target(name, recipe)
    if target.table is not None:
        raise TargetError(
            f"target '{name}' is described by {target.table}; measure it on the machine that it is for"
        )
    check_target(name, target)
    if out is not None:
        with suppress(OSError):  # the check says what is wrong
            out.parent.mkdir(parents=True, exist_ok=True)
        run_folder.refuse_own_name(out)
        files.check_output(out, tables.TABLE, force=force)
    table = tables.read_table(name, target)
    with narrate(False) as listener:
        table = table.model_copy(update={"steps": measure_steps(target, listener)})
        tables.write_table(table, tables.table_path(target))
        if recipe is not None:
            measure_layers(recipe, model, name, target, listener=listener)
    table = tables.read_table(name, target)
    if out is not None:
        files.check_output(out, tables.TABLE, force=force)
        tables.write_table(table, out.resolve())
    _show_table(name, table, out or tables.table_path(target), as_json)


def _find_target(name: str, recipe: Path | None) -> Target:
    from sparsify.recipe import load

    known: dict[str, Target] = {
        **list_presets(),
        **(load(recipe).recipe.targets if recipe is not None else {}),
    }
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise SparsifyError(f"there is no target '{name}'; {hint}")
    return known[name]


def _show_table(name: str, table: "Latencies", path: Path, as_json: bool) -> None:
    if as_json:
        show_json(table.model_dump(mode="json"))
        return
    assert table.steps is not None
    points = sum(len(found) for found in table.layers.values())
    total = sum(ms for found in table.layers.values() for _, _, ms in found)
    machine, steps = table.machine, table.steps
    show(
        f"{name}: fast widths are multiples of {steps.convolution} for convolutions, of {steps.linear} for "
        f"linear layers ({machine.processor}, {machine.vectors}, {machine.runtime}).\n"
        f"The table has {count_noun(len(table.layers), 'layer')} at {count_noun(points, 'width')} "
        f"({format_milliseconds(total)} in all)."
    )
    say(f"saved in {path}")
