"""export: write a file under a temporary name, reload it, compare it with the run's model, and rename it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from sparsify import files
from sparsify.cost.measure.onnx_export import silence_torch
from sparsify.cost.measure.tensor_program import program_inputs
from sparsify.data import Datasets, load_data
from sparsify.errors import ModelError, RunError
from sparsify.exporters.compare import Read, compare_outputs, measure_agreement, run_in_memory
from sparsify.exporters.formats import Calibration, CheckedBy, Format, make_reader, write
from sparsify.forward.calls import Inputs, all_tensors, count_examples, list_calls, simplify_inputs
from sparsify.runs import run_folder
from sparsify.runs.int8 import EXAMPLES, calibration_batches
from sparsify.runs.save_load import Build, draw_planned_inputs, load_run, read_cut_base, read_planned_calls

BATCHES = (1, 5)
"""Batch sizes at which the file is compared with the model; another one is traced."""
TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest magnitude of the output."""
_ENDING = {"huggingface": "-hf", "onnx-int8": ".int8.onnx"}
_TRACED = (2, 3)
"""The batch size that is traced, and another one that shows which dimensions are the batch."""


@dataclass(frozen=True)
class Quantised:
    """How well an int8 file represents its model."""

    examples: int
    """training examples that the calibration_batches of activations were found on.

    0: random inputs, as the recipe has no data
    """
    agreement: float | None = None
    """Fraction of examples on which it predicts the same class as the model; None without data."""
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
    """Whether the file takes only the shapes of the plan's example inputs."""
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
    ending = _ENDING.get(format, f".{format}")
    target = Path(folder.resolve().name + ending) if path is None else Path(path)
    _check_request(folder, format, target, force)
    model = load_run(folder, build=build)
    datasets = _load_data(folder) if format == "onnx-int8" else None
    probes, notes = _make_probes(folder, model, format, fixed)
    try:
        return _write_checked(folder, model, datasets, format, target, build, probes, notes)
    except ModelError as error:
        if probes.fixed or format not in _TRACED_FORMATS:
            raise
        narrower = _make_fixed_probes(folder, format)
        note = (
            f"the file takes {_describe_shapes(narrower)} and nothing else, "
            f"as the model cannot be exported for any batch size: {error}"
        )
        try:
            return _write_checked(folder, model, datasets, format, target, build, narrower, (*notes, note))
        except ModelError:
            raise error from None  # the batch size is not the cause


_TRACED_FORMATS = ("pt2", "onnx", "onnx-int8")
"""Formats that hold one traced call."""


@dataclass(frozen=True)
class _Probes:
    """The inputs that an export is traced and compared with."""

    traced: Inputs
    other: Inputs
    """At another batch size; in the same shapes where the file is fixed."""
    compared: Mapping[int, Inputs]
    """By batch size; 0 where no dimension counts examples."""
    fixed: bool


def _make_probes(
    folder: Path, model: nn.Module, format: Format, fixed: bool
) -> tuple[_Probes, tuple[str, ...]]:
    """The inputs and notes on them. They are fixed where the model takes no other batch size."""
    own = read_planned_calls(folder)
    notes: tuple[str, ...] = ()
    if format in _TRACED_FORMATS and len(own) > 1:
        notes = (f"the file holds the first of {len(own)} calls, {own[0].method}",)
    if fixed or not _can_vary(folder, format):
        return _make_fixed_probes(folder, format), notes
    try:
        for batch in BATCHES:
            run_in_memory(model, _draw_inputs(folder, format, batch))
    except ModelError as error:
        narrower = _make_fixed_probes(folder, format)
        # A model that does not take these either cannot be exported.
        run_in_memory(model, next(iter(narrower.compared.values())))
        if format not in _TRACED_FORMATS:
            return narrower, notes
        return narrower, (*notes, f"the file takes {_describe_shapes(narrower)} and nothing else: {error}")
    traced, other = (_draw_inputs(folder, format, batch) for batch in _TRACED)
    compared = {batch: _draw_inputs(folder, format, batch) for batch in BATCHES}
    return _Probes(traced, other, compared, False), notes


def _make_fixed_probes(folder: Path, format: Format) -> _Probes:
    traced, other, compared = (_draw_inputs(folder, format, None, seed) for seed in range(3))
    batch = count_examples(list_calls(compared)[0]) or 0
    return _Probes(traced, other, {batch: compared}, True)


def _draw_inputs(folder: Path, format: Format, batch: int | None, seed: int = 0) -> Inputs:
    """Random inputs in the shapes of the plan; only its first call for a file that holds one."""
    inputs = draw_planned_inputs(folder, batch, seed)
    return simplify_inputs((list_calls(inputs)[0],)) if format in _TRACED_FORMATS else inputs


def _can_vary(folder: Path, format: Format) -> bool:
    return any(call.varies for call in list_calls(_draw_inputs(folder, format, None)))


def _describe_shapes(probes: _Probes) -> str:
    shapes = ["x".join(map(str, tensor.shape)) or "one number" for tensor in all_tensors(probes.traced)]
    return f"inputs of {', '.join(shapes)}"


def _write_checked(
    folder: Path,
    model: nn.Module,
    datasets: Datasets | None,
    format: Format,
    target: Path,
    build: Build | None,
    probes: _Probes,
    notes: tuple[str, ...],
) -> Exported:
    """Write to a temporary name, reload, compare, and rename."""
    expected = {batch: run_in_memory(model, inputs) for batch, inputs in probes.compared.items()}
    given = dict(probes.compared)
    if format in _TRACED_FORMATS:
        given = {batch: program_inputs(model, inputs) for batch, inputs in given.items()}
    calibration: Calibration = ()
    if format == "onnx-int8":
        seed = run_folder.read_recipe(folder).seed
        calibration = calibration_batches(probes.traced, datasets, seed)
    replacing = files.replace_folder if format == "huggingface" else files.replace_file
    tolerance = math.inf if format == "onnx-int8" else TOLERANCE
    with replacing(target) as temporary, silence_torch():
        write(format, model, read_cut_base(folder), probes.traced, probes.other, calibration, temporary)
        checked_by, read = make_reader(format, model, temporary, build)
        difference, agreement = None, None
        if read is not None:
            difference = compare_outputs(target, checked_by, read, given, expected, tolerance)
            agreement = _judge_int8(model, read, datasets) if format == "onnx-int8" else None
        parts = temporary.iterdir() if temporary.is_dir() else [temporary]
        size = sum(part.stat().st_size for part in parts)
    sizes = tuple(batch for batch in probes.compared if batch) if read else ()
    fixed = probes.fixed and format in _TRACED_FORMATS
    return Exported(target, format, size, checked_by, difference, sizes, agreement, fixed, notes)


def _load_data(folder: Path) -> Datasets | None:
    recipe = run_folder.read_recipe(folder)
    return None if recipe.data is None else load_data(recipe.data, recipe.seed, recipe.task)


def _judge_int8(model: nn.Module, read: Read, datasets: Datasets | None) -> Quantised:
    if datasets is None:
        return Quantised(0)
    has_validation = len(datasets.validation) > 0
    examples = datasets.validation if has_validation else datasets.train[:EXAMPLES]
    return Quantised(
        examples=min(EXAMPLES, len(datasets.train)),
        agreement=measure_agreement(model, read(), examples),
        judged=len(examples),
        judged_on="validation" if has_validation else "training",
    )


def _check_request(folder: Path, format: str, target: Path, force: bool) -> None:
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
    if not target.parent.is_dir():
        raise RunError(f"cannot write {target}: there is no folder {target.parent}")
    if format == "huggingface" and target.exists() and not (target / "config.json").is_file():
        raise RunError(f"{target} exists and is not a Hugging Face folder; choose another place with --out")
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
