"""export: a run in, one file out that is written under a temporary name, reloaded, compared, and only then renamed."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from sparsify import folder as files
from sparsify.artefact import Build, base_on, load_run, planned_inputs
from sparsify.errors import RunError
from sparsify.exporting.comparing import compared, in_memory
from sparsify.exporting.formats import CheckedBy, Format, reader, write
from sparsify.measure.portable import quiet

BATCHES = (1, 5)
"""batch sizes at which the file is compared with the model; it is traced with another one"""
TOLERANCE = 1e-5
"""largest difference allowed, relative to the largest magnitude of the output in which it occurs"""
_TRACED = (2, 3)
"""the batch that is traced, and another one that shows which dimensions are the batch"""


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


def export(
    run: str | Path, format: Format, path: str | Path | None = None, *, build: Build | None = None, force: bool = False
) -> Exported:
    """Write the cut model of a complete run as one file, and prove the file by reloading it.

    format: `pt2` is a torch.export program, which runs without the code of the model; `onnx` needs the extra of that name.
    Both take any batch size. `safetensors` holds the weights, with the builder and the cut log in its metadata.
    `huggingface` is a folder that `from_pretrained` loads, for models of transformers.
    path: `<run>.<format>`, or `<run>-hf`, in the current folder when left out; what is there already is replaced only with `force`.
    build: as in `load_run`.
    Raises RunError, ModelError when the format cannot express the model, and VerificationError when the file as reloaded
    differs by more than 1e-5 of the largest output at batch 1 or 5. After an error there is no file, or the earlier one.
    """
    folder = Path(run)
    target = Path(folder.resolve().name + ("-hf" if format == "huggingface" else f".{format}")) if path is None else Path(path)
    _check_asked(folder, format, target, force)
    model = load_run(folder, build=build)
    probes = {batch: planned_inputs(folder, batch) for batch in BATCHES}
    expected = {batch: in_memory(model, inputs) for batch, inputs in probes.items()}
    traced, other = (planned_inputs(folder, batch) for batch in _TRACED)
    replacing = files.replacing_folder if format == "huggingface" else files.replacing
    with replacing(target) as temporary, quiet():
        write(format, model, base_on(folder), traced, other, temporary)
        checked_by, read = reader(format, model, temporary, build)
        difference = None if read is None else compared(target, checked_by, read, probes, expected, TOLERANCE)
        size = sum(p.stat().st_size for p in (temporary.iterdir() if temporary.is_dir() else [temporary]))
    return Exported(target, format, size, checked_by, difference, BATCHES if read else ())


def _check_asked(folder: Path, format: str, target: Path, force: bool) -> None:
    """What can be refused before anything is loaded."""
    if format not in get_args(Format):
        raise RunError(f"no format '{format}' to export to; known: {', '.join(get_args(Format))}")
    if format == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise RunError("export to ONNX needs onnx and onnxscript, which are not installed: pip install 'sparsify-recipes[onnx]'")
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
