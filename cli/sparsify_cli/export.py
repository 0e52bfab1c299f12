"""`sparsify export`: write the cut model of a run as a file for other programs."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparsify.formatting.numbers import count_noun, format_accuracy, format_size, format_tiny
from sparsify_cli.options import RunFolder
from sparsify_cli.render import say, show, show_json

if TYPE_CHECKING:
    from sparsify.exporters import Exported


def command(
    run: RunFolder,
    format: Annotated[
        Literal["pt2", "onnx", "onnx-int8", "safetensors", "huggingface", "torch-pruning"],
        typer.Option(
            "--format",
            help="pt2: a torch.export program; onnx: needs the extra of that name; onnx-int8: the same in "
            "int8, calibrated on training examples; safetensors: weights, with the cut log as metadata; "
            "huggingface: a folder that from_pretrained loads, for models of transformers; torch-pruning: "
            "weights with that package's history of the cut.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write. By default RUN.FORMAT in the current folder (RUN.int8.onnx for "
            "onnx-int8, RUN.pth for torch-pruning, a folder RUN-hf for huggingface).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed",
            help="Export for the shapes of the plan's example inputs only, not for any batch size; this is "
            "automatic where the model takes no other.",
        ),
    ] = False,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            metavar="NAME:AXIS,...",
            help="Take other sizes along these axes of the inputs too, as in x:2,x:3, or with names as in "
            "x:2=height,x:3=width: axes of one name have one size. For pt2 and ONNX; may be repeated.",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            metavar="N",
            help="The version of ONNX's operators. By default torch chooses.",
            show_default=False,
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="FOLDER",
            help="For huggingface: a folder of the dense model, whose tokenizer and generation configuration "
            "are copied.",
            show_default=False,
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="REPOSITORY",
            help="For huggingface: upload the folder to this repository on the hub.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written and measured as JSON.")] = False,
) -> None:
    """Write the cut model of a run as a file, reload it, and compare it with the model at two batch sizes.

    With --dynamic it is compared at two other sizes of each axis too.
    """
    from sparsify.exporters import export

    axes = _parse_axes(dynamic or ())
    say(f"exporting {run} as {format}")
    made = export(
        run,
        format,
        out,
        force=force,
        fixed=fixed,
        dynamic=axes,
        opset=opset,
        original=original,
        push_to_hub=push_to_hub,
    )
    if as_json:
        show_json({**asdict(made), "path": str(made.path)})
    else:
        show("\n".join([f"{made.path}: {format_size(made.bytes)}", _describe_export(made), *made.notes]))


def _parse_axes(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """'x:2,x:3=width' as {'x': {2: '', 3: 'width'}}. Raises BadParameter."""
    found: dict[str, dict[int, str]] = {}
    for part in ",".join(texts).split(","):
        where, _, dimension = part.strip().partition("=")
        name, _, axis = where.rpartition(":")
        if not part and not found:
            continue
        if not name or not axis.removeprefix("-").isdecimal():
            raise typer.BadParameter(
                f"'{part}' is not NAME:AXIS or NAME:AXIS=DIMENSION, such as x:2 or x:2=height",
                param_hint="--dynamic",
            )
        if int(axis) in found.setdefault(name, {}):
            raise typer.BadParameter(f"'{name}:{axis}' is given twice", param_hint="--dynamic")
        found[name][int(axis)] = dimension
    return found


def _describe_export(made: "Exported") -> str:
    if made.difference is None:
        return (
            f"Checked by {made.checked_by} only, as onnxruntime is not installed: the file is well-formed, "
            "but its results were not compared. pip install 'sparsify-recipes[onnx]' installs onnxruntime."
        )
    inputs = "on inputs of the plan's shapes"
    if made.batches:
        inputs = f"at batch {' and '.join(map(str, made.batches))}"
    if made.dynamic:
        sizes = [f"{axis.name} {axis.planned}, {axis.sizes[0]} and {axis.sizes[1]}" for axis in made.dynamic]
        inputs = f"{inputs}, {', '.join(sizes)}"
    difference = f"largest difference {format_tiny(made.difference)} of the largest output"
    compared = f"Reloaded ({made.checked_by}) and compared {inputs}: {difference}."
    own = made.quantised
    if own is None:
        return compared
    if not own.examples:
        return (
            "Calibrated on random inputs, as the recipe has no data: use the file for timing only. "
            + compared
        )
    calibrated = f"Calibrated on {count_noun(own.examples, 'training example')}."
    if own.agreement is None:
        return f"{calibrated} {compared}"
    examples = count_noun(own.judged, f"{own.judged_on} example")
    return (
        f"{calibrated} Reloaded ({made.checked_by}): "
        f"it predicts the same class as the float32 model on {format_accuracy(own.agreement)} of {examples}."
    )
