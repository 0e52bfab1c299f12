"""export: a run in, one file out that is written under a temporary name, reloaded, compared, and only then renamed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from sparsify import files
from sparsify.cost.measure.onnx_export import quiet
from sparsify.cost.measure.tensor_program import entry_tensors
from sparsify.data import Datasets, load_data
from sparsify.errors import ModelError, RunError
from sparsify.exporters.compare import Read, agreement, compared, in_memory
from sparsify.exporters.formats import CheckedBy, Format, reader, write
from sparsify.forward.calls import Inputs, all_tensors, calls_of, examples_of, plain
from sparsify.runs import run_folder
from sparsify.runs.int8 import EXAMPLES, calibration_batches
from sparsify.runs.save_load import Build, draw_planned_inputs, load_run, read_cut_base, read_planned_calls

BATCHES = (1, 5)
"""batch sizes at which the file is compared with the model; it is traced with another one"""
TOLERANCE = 1e-5
"""largest difference allowed, relative to the largest magnitude of the output in which it occurs"""
_ENDING = {"huggingface": "-hf", "onnx-int8": ".int8.onnx"}
_TRACED = (2, 3)
"""the batch that is traced, and another one that shows which dimensions are the batch"""


@dataclass(frozen=True)
class Quantised:
    """How well a file in eight-bit integers stands for its model."""

    examples: int
    """training examples that the calibration_batches of activations were found on; 0: random inputs, as the recipe has no data"""
    agreement: float | None = None
    """share of examples on which it predicts the class that the model predicts; None without data"""
    judged: int = 0
    """so many examples"""
    judged_on: Literal["validation", "training"] | None = None
    """of this set: training where the recipe keeps none for validation"""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far it is from the model that it was made from."""

    path: Path
    format: Format
    bytes: int
    checked_by: CheckedBy
    difference: float | None
    """largest difference of an output at any of the batch sizes, relative to that output's largest magnitude; None after
    onnx.checker, which reads the file without running it"""
    batches: tuple[int, ...]
    """the batch sizes compared"""
    quantised: Quantised | None = None
    """of `onnx-int8`: what can be said of it besides the difference, which is to be expected"""
    fixed: bool = False
    """whether the file takes the shapes of the plan's example inputs and no others"""
    notes: tuple[str, ...] = ()
    """why it is fixed, where nobody asked for that; what it does not hold"""


def export(
    run: str | Path,
    format: Format,
    path: str | Path | None = None,
    *,
    build: Build | None = None,
    force: bool = False,
    fixed: bool = False,
) -> Exported:
    """Write the cut model of a complete run as one file, reload the file, and compare it with the model.

    `pt2` and the ONNX formats take any batch size, unless `fixed` is set or the model takes no other batch
    than that of the plan's inputs.

    Args:
        run: The folder of the run.
        format: `pt2` is a torch.export program, which runs without the model's code. `onnx` needs the extra
            of that name. `onnx-int8` is quantised on 256 training examples, or on random inputs where the
            recipe has no data. `safetensors` holds the weights, with the builder and the cut log in its
            metadata. `huggingface` is a folder that `from_pretrained` loads, of a model of transformers.
        path: `<run>.<format>`, `<run>.int8.onnx` or `<run>-hf` in the current folder when left out.
        build: As in `load_run`.
        force: Replace a file that exists.
        fixed: Take the shapes of the plan's inputs and no others.

    Returns:
        What was written: its path, size and largest relative difference to the model.

    Raises:
        RunError: The run is incomplete or damaged, or the file exists.
        ModelError: The format cannot express the model.
        VerificationError: The reloaded file differs by more than 1e-5 of the largest output at batch 1 or 5
            (in integers, only where it is no number). After an error there is no file, or the earlier one.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> run = sparsify.save_run(result, "runs/exported")
        >>> sparsify.export(run, "safetensors", "tiny.safetensors", build=lambda: model).difference
        0.0
    """
    folder = Path(run)
    target = Path(folder.resolve().name + _ENDING.get(format, f".{format}")) if path is None else Path(path)
    _check_asked(folder, format, target, force)
    model, datasets = load_run(folder, build=build), _data(folder) if format == "onnx-int8" else None
    probes, notes = _probes(folder, model, format, fixed)
    try:
        return _written(folder, model, datasets, format, target, build, probes, notes)
    except ModelError as error:
        if probes.fixed or format not in _TRACED_FORMATS:
            raise
        narrower = _fixed_probes(folder, format)
        notes = (
            *notes,
            f"the file takes {_shapes(narrower)} and nothing else, as the model cannot be exported for any batch: {error}",
        )
        try:
            return _written(folder, model, datasets, format, target, build, narrower, notes)
        except ModelError:
            raise error from None  # it is not the batch that stands in the way


_TRACED_FORMATS = ("pt2", "onnx", "onnx-int8")
"""formats that hold one call, followed"""


@dataclass(frozen=True)
class _Probes:
    """What an export is followed on, and compared on."""

    traced: Inputs
    other: Inputs
    """at another batch size; of the same shapes where the file is fixed"""
    compared: Mapping[int, Inputs]
    """by batch size; 0 where nothing counts examples"""
    fixed: bool


def _probes(folder: Path, model: nn.Module, format: Format, fixed: bool) -> tuple[_Probes, tuple[str, ...]]:
    """The inputs, and what there is to say of them. Fixed where the model takes no other batch."""
    own = read_planned_calls(folder)
    notes: tuple[str, ...] = ()
    if format in _TRACED_FORMATS and len(own) > 1:
        notes = (f"the file holds the first of {len(own)} calls, {own[0].method}",)
    if fixed or not _varies(folder, format):
        return _fixed_probes(folder, format), notes
    try:
        for batch in BATCHES:
            in_memory(model, _inputs(folder, format, batch))
    except ModelError as error:
        narrower = _fixed_probes(folder, format)
        in_memory(
            model, next(iter(narrower.compared.values()))
        )  # one that takes nothing cannot be exported either
        if format not in _TRACED_FORMATS:
            return narrower, notes
        return narrower, (*notes, f"the file takes {_shapes(narrower)} and nothing else: {error}")
    traced, other = (_inputs(folder, format, batch) for batch in _TRACED)
    return _Probes(traced, other, {batch: _inputs(folder, format, batch) for batch in BATCHES}, False), notes


def _fixed_probes(folder: Path, format: Format) -> _Probes:
    traced, other, compared = (_inputs(folder, format, None, seed) for seed in range(3))
    return _Probes(traced, other, {examples_of(calls_of(compared)[0]) or 0: compared}, True)


def _inputs(folder: Path, format: Format, batch: int | None, seed: int = 0) -> Inputs:
    """Random inputs as the plan had them: of its first call, for a file that holds one."""
    inputs = draw_planned_inputs(folder, batch, seed)
    return plain((calls_of(inputs)[0],)) if format in _TRACED_FORMATS else inputs


def _varies(folder: Path, format: Format) -> bool:
    return any(each.varies for each in calls_of(_inputs(folder, format, None)))


def _shapes(probes: _Probes) -> str:
    return "inputs of " + ", ".join(
        "x".join(map(str, tensor.shape)) or "one number" for tensor in all_tensors(probes.traced)
    )


def _written(
    folder: Path,
    model: nn.Module,
    datasets: Datasets | None,
    format: Format,
    target: Path,
    build: Build | None,
    probes: _Probes,
    notes: tuple[str, ...],
) -> Exported:
    expected = {batch: in_memory(model, inputs) for batch, inputs in probes.compared.items()}
    given = {
        batch: entry_tensors(model, inputs) if format in _TRACED_FORMATS else inputs
        for batch, inputs in probes.compared.items()
    }
    fed = (
        calibration_batches(probes.traced, datasets, run_folder.read_recipe(folder).seed)
        if format == "onnx-int8"
        else ()
    )
    replacing = files.replacing_folder if format == "huggingface" else files.replacing
    tolerance = math.inf if format == "onnx-int8" else TOLERANCE
    with replacing(target) as temporary, quiet():
        write(format, model, read_cut_base(folder), probes.traced, probes.other, fed, temporary)
        checked_by, read = reader(format, model, temporary, build)
        difference = None if read is None else compared(target, checked_by, read, given, expected, tolerance)
        size = sum(p.stat().st_size for p in (temporary.iterdir() if temporary.is_dir() else [temporary]))
        quantised = _judged(model, read, datasets) if format == "onnx-int8" and read is not None else None
    sizes = tuple(batch for batch in probes.compared if batch) if read else ()
    fixed = probes.fixed and format in _TRACED_FORMATS
    return Exported(target, format, size, checked_by, difference, sizes, quantised, fixed, notes)


def _data(folder: Path) -> Datasets | None:
    recipe = run_folder.read_recipe(folder)
    return None if recipe.data is None else load_data(recipe.data, recipe.seed)


def _judged(model: nn.Module, read: Read, datasets: Datasets | None) -> Quantised:
    if datasets is None:
        return Quantised(0)
    validated = len(datasets.validation) > 0
    examples = datasets.validation if validated else datasets.train[:EXAMPLES]
    share = agreement(model, read(), examples)
    return Quantised(
        min(EXAMPLES, len(datasets.train)), share, len(examples), "validation" if validated else "training"
    )


def _check_asked(folder: Path, format: str, target: Path, force: bool) -> None:
    """What can be refused before anything is loaded."""
    if format not in get_args(Format):
        raise RunError(f"no format '{format}' to export to; known: {', '.join(get_args(Format))}")
    if format == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise RunError(
            "export to ONNX needs onnx and onnxscript, which are not installed: pip install 'sparsify-recipes[onnx]'"
        )
    if format == "onnx-int8" and not (
        find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")
    ):
        raise RunError(
            "export to ONNX in int8 needs onnx, onnxscript and onnxruntime, which are not all installed: pip install 'sparsify-recipes[onnx]'"
        )
    if format == "huggingface" and not find_spec("transformers"):
        raise RunError(
            "export to a Hugging Face folder needs transformers, which is not installed: pip install 'sparsify-recipes[transformers]'"
        )
    if not target.parent.is_dir():
        raise RunError(f"cannot write {target}: there is no folder {target.parent}")
    if format == "huggingface" and target.exists() and not (target / "config.json").is_file():
        raise RunError(
            f"{target} is there and is no folder of a Hugging Face model; choose another place with --out"
        )
    if format != "huggingface" and target.is_dir():
        raise RunError(f"cannot write {target}: it is a folder; name a file in it")
    if target.resolve().parent == folder.resolve() and target.name in (
        *run_folder.SAVED_FILES,
        run_folder.REPORT,
    ):
        raise RunError(f"{target} is a file of the run itself; choose another place with --out")
    if target.exists() and not force:
        raise RunError(
            f"{target} exists already; choose another place with --out, or replace it with --force"
        )
