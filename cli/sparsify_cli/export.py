"""`sparsify export`: write the cut model of a run as a file for other programs."""

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
        Literal["pt2", "onnx", "onnx-int8", "safetensors", "huggingface"],
        typer.Option(
            "--format",
            help="pt2: a torch.export program; onnx: needs the extra of that name; onnx-int8: the same in "
            "int8, calibrated on training examples; safetensors: weights, with the cut log as metadata; "
            "huggingface: a folder that from_pretrained loads, for models of transformers.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write. By default RUN.FORMAT in the current folder (RUN.int8.onnx for "
            "onnx-int8, a folder RUN-hf for huggingface).",
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
    as_json: Annotated[bool, typer.Option("--json", help="What was written and measured as JSON.")] = False,
) -> None:
    """Write the cut model of a run as a file, reload it, and compare it with the model at two batch sizes."""
    from sparsify.exporters import export

    say(f"exporting {run} as {format}")
    made = export(run, format, out, force=force, fixed=fixed)
    if as_json:
        show_json({**asdict(made), "path": str(made.path)})
    else:
        show("\n".join([f"{made.path}: {format_size(made.bytes)}", _describe_export(made), *made.notes]))


def _describe_export(made: "Exported") -> str:
    if made.difference is None:
        return (
            f"Checked by {made.checked_by} only, as onnxruntime is not installed: the file is well-formed, "
            "but its results were not compared. pip install 'sparsify-recipes[onnx]' installs onnxruntime."
        )
    inputs = "on inputs of the plan's shapes"
    if made.batches:
        inputs = f"at batch {' and '.join(map(str, made.batches))}"
    difference = f"largest difference {format_tiny(made.difference)} of the largest output"
    compared = f"Reloaded ({made.checked_by}) and compared {inputs}: {difference}."
    own = made.quantised
    if own is None:
        return compared
    if own.agreement is None:
        return (
            "Calibrated on random inputs, as the recipe has no data: use the file for timing only. "
            + compared
        )
    examples = count_noun(own.judged, f"{own.judged_on} example")
    return (
        f"Calibrated on {count_noun(own.examples, 'training example')}. Reloaded ({made.checked_by}): "
        f"it predicts the same class as the float32 model on {format_accuracy(own.agreement)} of {examples}."
    )
