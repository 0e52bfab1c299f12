"""export: a run in, one file out that is written under a temporary name, reloaded, compared, and only then renamed."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from sparsify import folder as files
from sparsify.artefact import Build, base_on, load_run, planned_inputs
from sparsify.data import Datasets, load_data
from sparsify.errors import RunError
from sparsify.exporting.comparing import Read, agreement, compared, in_memory
from sparsify.exporting.formats import CheckedBy, Format, reader, write
from sparsify.integers import EXAMPLES, ranges
from sparsify.measure.portable import quiet

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
    """training examples that the ranges of activations were found on; 0: random inputs, as the recipe has no data"""
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


def export(
    run: str | Path, format: Format, path: str | Path | None = None, *, build: Build | None = None, force: bool = False
) -> Exported:
    """Write the cut model of a complete run as one file, and prove the file by reloading it.

    format: `pt2` is a torch.export program, which runs without the code of the model; `onnx` needs the extra of that name.
    Both take any batch size. `onnx-int8` is quantised on 256 training examples, or on random inputs where the recipe has no data. `safetensors` holds the weights, with the builder and the cut log in its metadata.
    `huggingface` is a folder that `from_pretrained` loads, for models of transformers.
    path: `<run>.<format>`, `<run>.int8.onnx` or `<run>-hf`, in the current folder when left out; what is there already is replaced only with `force`.
    build: as in `load_run`.
    Raises RunError, ModelError when the format cannot express the model, and VerificationError when the file as reloaded
    differs by more than 1e-5 of the largest output at batch 1 or 5 (in integers only where it is no number). After an error there is no file, or the earlier one.
    """
    folder = Path(run)
    target = Path(folder.resolve().name + _ENDING.get(format, f".{format}")) if path is None else Path(path)
    _check_asked(folder, format, target, force)
    model, datasets = load_run(folder, build=build), _data(folder) if format == "onnx-int8" else None
    probes = {batch: planned_inputs(folder, batch) for batch in BATCHES}
    expected = {batch: in_memory(model, inputs) for batch, inputs in probes.items()}
    traced, other = (planned_inputs(folder, batch) for batch in _TRACED)
    fed = ranges(traced, datasets, files.read_recipe(folder).seed) if format == "onnx-int8" else ()
    replacing = files.replacing_folder if format == "huggingface" else files.replacing
    tolerance = math.inf if format == "onnx-int8" else TOLERANCE
    with replacing(target) as temporary, quiet():
        write(format, model, base_on(folder), traced, other, fed, temporary)
        checked_by, read = reader(format, model, temporary, build)
        difference = None if read is None else compared(target, checked_by, read, probes, expected, tolerance)
        size = sum(p.stat().st_size for p in (temporary.iterdir() if temporary.is_dir() else [temporary]))
        quantised = _judged(model, read, datasets) if format == "onnx-int8" and read is not None else None
    return Exported(target, format, size, checked_by, difference, BATCHES if read else (), quantised)


def _data(folder: Path) -> Datasets | None:
    recipe = files.read_recipe(folder)
    return None if recipe.data is None else load_data(recipe.data, recipe.seed)


def _judged(model: nn.Module, read: Read, datasets: Datasets | None) -> Quantised:
    if datasets is None:
        return Quantised(0)
    validated = len(datasets.validation) > 0
    examples = datasets.validation if validated else datasets.train[:EXAMPLES]
    share = agreement(model, read(), examples)
    return Quantised(min(EXAMPLES, len(datasets.train)), share, len(examples), "validation" if validated else "training")


def _check_asked(folder: Path, format: str, target: Path, force: bool) -> None:
    """What can be refused before anything is loaded."""
    if format not in get_args(Format):
        raise RunError(f"no format '{format}' to export to; known: {', '.join(get_args(Format))}")
    if format == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise RunError("export to ONNX needs onnx and onnxscript, which are not installed: pip install 'sparsify-recipes[onnx]'")
    if format == "onnx-int8" and not (find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime")):
        raise RunError("export to ONNX in int8 needs onnx, onnxscript and onnxruntime, which are not all installed: pip install 'sparsify-recipes[onnx]'")
    if format == "huggingface" and not find_spec("transformers"):
        raise RunError("export to a Hugging Face folder needs transformers, which is not installed: pip install 'sparsify-recipes[transformers]'")
    if not target.parent.is_dir():
        raise RunError(f"cannot write {target}: there is no folder {target.parent}")
    if format == "huggingface" and target.exists() and not (target / "config.json").is_file():
        raise RunError(f"{target} is there and is no folder of a Hugging Face model; choose another place with --out")
    if format != "huggingface" and target.is_dir():
        raise RunError(f"cannot write {target}: it is a folder; name a file in it")
    if target.resolve().parent == folder.resolve() and target.name in (*files.KEPT, files.REPORT):
        raise RunError(f"{target} is a file of the run itself; choose another place with --out")
    if target.exists() and not force:
        raise RunError(f"{target} exists already; choose another place with --out, or replace it with --force")
