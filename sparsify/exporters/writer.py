"""export: write a file under a temporary name, reload it, compare it with the run's model, and rename it."""

import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from safetensors import SafetensorError
from torch import nn

from sparsify import files
from sparsify.cost.measure.onnx_export import silence_torch
from sparsify.cost.measure.tensor_program import program_inputs
from sparsify.data import Datasets, load_data
from sparsify.errors import ModelError, RunError, first_line
from sparsify.exporters import hugging_face
from sparsify.exporters.compare import Read, compare_outputs, measure_same_classes, run_in_memory
from sparsify.exporters.dynamic_axes import DynamicAxis, Requested
from sparsify.exporters.formats import Calibration, CheckedBy, Format, Trace, make_reader, write
from sparsify.exporters.probe_inputs import (
    TRACED_FORMATS,
    Probes,
    describe_limit,
    make_fixed_probes,
    make_probes,
)
from sparsify.graph.peft_adapters import has_adapters
from sparsify.runs import run_folder
from sparsify.runs.int8 import EXAMPLES, calibration_batches
from sparsify.runs.model_base import Build, read_cut_base
from sparsify.runs.save_load import load_run

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest magnitude of the output."""
_ENDING = {"huggingface": "-hf", "onnx-int8": ".int8.onnx", "torch-pruning": ".pth"}


@dataclass(frozen=True)
class Quantised:
    """How well an int8 file represents its model."""

    examples: int
    """Training examples that the ranges of activations were found on.

    0: random inputs, as the recipe has no data
    """
    agreement: float | None = None
    """Fraction of examples on which it predicts the same class as the model; None without data, and where it
    names no class of an example."""
    judged: int = 0
    """Number of those examples."""
    judged_on: Literal["validation", "training"] | None = None
    """Their set: training where the recipe has no validation set."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and its difference from the model."""

    path: Path
    format: Format
    bytes: int
    checked_by: CheckedBy
    difference: float | None
    """Largest difference of an output at any batch size, relative to its largest magnitude.

    None after onnx.checker, which does not run the file.
    """
    batches: tuple[int, ...]
    """The batch sizes compared."""
    quantised: Quantised | None = None
    """Of `onnx-int8`: its agreement with the model, as a difference is to be expected."""
    fixed: bool = False
    """Whether the file takes only the batch size of the plan's example inputs."""
    dynamic: tuple[DynamicAxis, ...] = ()
    """Axes besides the batch along which the file takes other sizes than the plan's."""
    notes: tuple[str, ...] = ()
    """Why it is fixed, where that was not asked for; what it does not hold."""


def export(
    run: str | Path,
    format: Format,
    path: str | Path | None = None,
    *,
    build: Build | None = None,
    force: bool = False,
    fixed: bool = False,
    dynamic: Requested | None = None,
    opset: int | None = None,
    original: str | Path | None = None,
    push_to_hub: str | None = None,
) -> Exported:
    """Write the cut model of a complete run as one file, reload the file, and compare it with the model.

    `pt2` and the ONNX formats take any batch size, unless `fixed` is set or the model takes no other batch
    than that of the plan's inputs. The other sizes are those of the plan's inputs, except along `dynamic`.
    ONNX keeps the names that inputs and outputs have in the model.

    Args:
        run: The folder of the run.
        format: `pt2` is a torch.export program, which runs without the model's code. `onnx` needs the extra
            of that name. `onnx-int8` is quantised on 256 training examples, or on random inputs where the
            recipe has no data. `safetensors` holds the weights, with the builder and the cut log in its
            metadata. `huggingface` is a folder that `from_pretrained` loads, of a model of transformers, with
            a model card; where config.json cannot express the model, with a modelling file, and then
            `from_pretrained` needs `trust_remote_code=True`. `torch-pruning` holds the weights and that
            package's history of the cut, which it repeats for a check: `{"model": ..., "pruning": ...}`.
        path: `<run>.<format>`, `<run>.int8.onnx`, `<run>.pth` or `<run>-hf` in the current folder when left
            out.
        build: As in `load_run`.
        force: Replace a file that exists.
        fixed: Take the shapes of the plan's inputs and no others.
        dynamic: Input -> axes along which the file takes other sizes too: `{"x": [2, 3]}`, or with a name for
            each, `{"x": {2: "height", 3: "width"}}`. Axes of one name have one size. The model is run to find
            out what it allows, and the file is compared with it at two other sizes.
        opset: The version of ONNX's operators; torch's own choice where it is left out.
        original: For `huggingface`, the folder of the dense model, whose tokenizer and generation
            configuration are copied.
        push_to_hub: For `huggingface`, the repository on the hub that the folder is uploaded to.

    Returns:
        What was written: its path, size and largest relative difference to the model.

    Raises:
        RunError: The run is incomplete or damaged, the file exists, or the model has no such input or axis.
        ModelError: The format cannot express the model, or the model takes no other size along an axis.
        VerificationError: The reloaded file differs by more than 1e-5 of the largest output at batch 1 or 5
            (in integers, only where it is no number). After an error there is no file, or the earlier one.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> run = sparsify.save_run(result, "runs/exported")
        >>> sparsify.export(run, "safetensors", "tiny.safetensors", build=lambda: model).difference
        0.0
    """
    folder = Path(run)
    ending = _ENDING.get(format, f".{format}")
    target = Path(folder.resolve().name + ending) if path is None else Path(path)
    _check_request(format, target, force)
    _check_options(format, fixed, dynamic, opset)
    _check_hub_options(format, original, push_to_hub)
    model = load_run(folder, build=build)
    datasets = _load_data(folder) if format == "onnx-int8" else None
    probes, notes = make_probes(folder, model, format, fixed, dynamic or {})
    source = None if original is None else Path(original)
    request = _Request(folder, model, datasets, format, target, build, opset, source)
    made = _write_for_batches(request, probes, notes)
    if push_to_hub is not None:
        hugging_face.push(target, push_to_hub)
    return made


@dataclass(frozen=True)
class _Request:
    """What is exported, and to where."""

    folder: Path
    model: nn.Module
    datasets: Datasets | None
    format: Format
    target: Path
    build: Build | None
    opset: int | None
    original: Path | None


def _write_for_batches(request: _Request, probes: Probes, notes: tuple[str, ...]) -> Exported:
    """Write for any batch size; for the plan's alone where the exporter cannot follow the model for all."""
    try:
        return _write_checked(request, probes, notes)
    except ModelError as error:
        if probes.fixed or request.format not in TRACED_FORMATS:
            raise
        narrower = make_fixed_probes(request.folder, request.model, request.format, probes.axes)
        note = (
            f"the file takes {describe_limit(narrower)}, "
            f"as the model cannot be exported for any batch size: {error}"
        )
        try:
            return _write_checked(request, narrower, (*notes, note))
        except ModelError:
            raise error from None  # the batch size is not the cause


def _write_checked(request: _Request, probes: Probes, notes: tuple[str, ...]) -> Exported:
    """Write to a temporary name, reload, compare, and rename."""
    model, format, target = request.model, request.format, request.target
    expected = {size: run_in_memory(model, inputs) for size, inputs in probes.compared.items()}
    given = dict(probes.compared)
    merged = format == "huggingface" and has_adapters(model)
    if merged:
        model = hugging_face.merge_adapters(model)
        notes = (*notes, "the adapters of peft are merged into the weights")
    if format in TRACED_FORMATS:
        given = {size: program_inputs(model, inputs) for size, inputs in given.items()}
    calibration: Calibration = ()
    if format == "onnx-int8":
        seed = run_folder.read_recipe(request.folder).seed
        calibration = calibration_batches(probes.traced, request.datasets, seed)
    trace = Trace(probes.traced, probes.other, probes.names, request.opset)
    replacing = files.replace_folder if format == "huggingface" else partial(files.replace_file, shared=True)
    tolerance = math.inf if format == "onnx-int8" else TOLERANCE
    with replacing(target) as temporary, silence_torch():
        base = read_cut_base(request.folder)
        own = hugging_face.Folder(request.folder, base, request.build, request.original, merged)
        try:
            notes = (*notes, *write(format, model, own, trace, calibration, temporary))
        except SafetensorError as error:  # of transformers' save_pretrained, when a disk is full
            raise RunError(f"cannot write {target}: {first_line(error)}") from error
        checked_by, read = make_reader(format, model, own, temporary)
        difference, agreement = None, None
        if read is not None:
            difference = compare_outputs(target, checked_by, read, given, expected, tolerance)
            agreement = _judge_int8(model, read, request) if format == "onnx-int8" else None
        parts = temporary.iterdir() if temporary.is_dir() else [temporary]
        size = sum(part.stat().st_size for part in parts)
    return Exported(
        path=target,
        format=format,
        bytes=size,
        checked_by=checked_by,
        difference=difference,
        batches=probes.batches if read else (),
        quantised=agreement,
        fixed=probes.fixed and format in TRACED_FORMATS,
        dynamic=probes.axes,
        notes=notes,
    )


def _load_data(folder: Path) -> Datasets | None:
    recipe = run_folder.read_recipe(folder)
    return None if recipe.data is None else load_data(recipe.data, recipe.seed, recipe.task)


def _judge_int8(model: nn.Module, read: Read, request: _Request) -> Quantised:
    datasets = request.datasets
    if datasets is None:
        return Quantised(0)
    if run_folder.read_recipe(request.folder).task.kind != "classification":
        return Quantised(min(EXAMPLES, len(datasets.train)))
    has_validation = len(datasets.validation) > 0
    examples = datasets.validation if has_validation else datasets.train[:EXAMPLES]
    return Quantised(
        examples=min(EXAMPLES, len(datasets.train)),
        agreement=measure_same_classes(model, read(), examples),
        judged=len(examples),
        judged_on="validation" if has_validation else "training",
    )


def _check_request(format: str, target: Path, force: bool) -> None:
    """Refuse what can be refused before anything is loaded."""
    if format not in get_args(Format):
        raise RunError(f"there is no format '{format}'; known: {', '.join(get_args(Format))}")
    if format == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise RunError(
            "export to ONNX needs onnx and onnxscript, which are not installed: "
            "pip install 'sparsify-recipes[onnx]'"
        )
    if format == "onnx-int8" and not (
        find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")
    ):
        raise RunError(
            "export to ONNX in int8 needs onnx, onnxscript and onnxruntime, which are not all installed: "
            "pip install 'sparsify-recipes[onnx]'"
        )
    if format == "huggingface" and not find_spec("transformers"):
        raise RunError(
            "export to a Hugging Face folder needs transformers, which is not installed: "
            "pip install 'sparsify-recipes[transformers]'"
        )
    files.check_folder(target)
    if format == "huggingface" and target.exists() and not (target / "config.json").is_file():
        raise RunError(f"{target} exists and is not a Hugging Face folder; choose another place with --out")
    if format != "huggingface" and target.is_dir():
        raise RunError(f"cannot write {target}: it is a folder; name a file in it")
    run_folder.refuse_own_name(target)
    if target.exists() and not force:
        raise RunError(
            f"{target} exists already; choose another place with --out, or replace it with --force"
        )


def _check_options(format: Format, fixed: bool, dynamic: Requested | None, opset: int | None) -> None:
    """Refuse options that the format does not have."""
    if dynamic and format not in TRACED_FORMATS:
        raise RunError(
            f"--dynamic is for {', '.join(TRACED_FORMATS)}; {format} takes every size that the model takes"
        )
    if dynamic and fixed:
        raise RunError("--fixed keeps every size and --dynamic leaves some open; leave one of them out")
    if opset is not None and format not in ("onnx", "onnx-int8"):
        raise RunError(f"--opset is for onnx and onnx-int8; {format} has no opset")


def _check_hub_options(format: Format, original: str | Path | None, push_to_hub: str | None) -> None:
    """Refuse options of Hugging Face folders for other formats."""
    if format == "huggingface":
        return
    if original is not None:
        raise RunError(f"--original is for huggingface; {format} holds no tokenizer")
    if push_to_hub is not None:
        raise RunError(f"--push-to-hub is for huggingface; {format} is not pushed")
