"""Read a model file of any format, told by its first bytes: tensors by name or a whole module.

Nothing is executed.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsify.errors import ModelError, SparsifyWarning, describe_error
from sparsify.modelfile.folders import find_weights
from sparsify.modelfile.safe_unpickle import NEVER, RefusedError, find_admitted
from sparsify.modelfile.skipped_objects import stand_in

State = dict[str, Tensor]

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_EXPANDED = 64
"""Bytes of tensors per byte of the file, at most."""
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
SAVE_WEIGHTS = (
    "torch.save(model.state_dict(), 'weights.pt') where the model can be loaded, "
    "and name its builder under 'model:' in the recipe"
)

_ARRAYS = "; an array file, not a model: examples are named under 'data' in the recipe"
_TABLE = "; a table, not a model: examples are named under 'data' in the recipe"
_ELSEWHERE = f"; save the PyTorch model's weights: {SAVE_WEIGHTS}"
_OTHERS = {
    **dict.fromkeys((".npy", ".npz"), _ARRAYS),
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), _TABLE),
    **dict.fromkeys((".onnx", ".tflite", ".gguf", ".h5", ".hdf5", ".keras", ".pb"), _ELSEWHERE),
    **dict.fromkeys((".yaml", ".yml"), "; a recipe? 'sparsify apply RECIPE MODEL' takes the recipe first"),
}
"""hints by the endings of files that are none"""


def read_contents(path: Path, allow: Sequence[str]) -> State | nn.Module:
    """Read a state dict, bare or inside a checkpoint, or a whole module. Raises ModelError."""
    files = find_weights(path)
    if len(files) == 1:
        return _read_checked(files[0], allow)
    state: State = {}
    for file in files:
        part = _read_checked(file, allow)
        if isinstance(part, nn.Module):
            raise ModelError(f"{file}: a whole model, where a shard of weights was expected")
        state |= part
    return state


def _read_checked(path: Path, allow: Sequence[str]) -> State | nn.Module:
    found = _read_file(path, allow)
    check_sizes(found.state_dict() if isinstance(found, nn.Module) else found, path)
    return found


def check_sizes(found: Any, path: Path) -> None:
    """Refuse tensors that expand a few stored numbers: a small file could exhaust the memory.

    Raises ModelError.
    """
    claimed = 0
    for leaf in pytree.tree_leaves(found):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_meta:
            claimed += leaf.numel() * leaf.element_size()
    if claimed > _EXPANDED * path.stat().st_size:
        raise ModelError(
            f"{path}: its tensors would take {claimed:,} bytes, many times more than the file has"
        )


def _read_file(path: Path, allow: Sequence[str]) -> State | nn.Module:
    start, size = _read_start(path)
    if start.startswith(_ZIP):
        _check_archive(path)
        return _read_archive(path, allow)
    if start.startswith(_LEGACY):
        return _unwrap_state(_load_pickle(path, []), path)
    if path.suffix == ".safetensors" or _is_safetensors(start, size):
        return _read_safetensors(path)
    if start[:1] == b"\x80":
        raise ModelError(
            f"{path}: a plain pickle, which would execute code when it is read; "
            f"save the weights: {SAVE_WEIGHTS}"
        )
    hint = _OTHERS.get(path.suffix.lower(), "")
    raise ModelError(f"{path}: not a model file; expected what torch.save or safetensors writes{hint}")


def _read_archive(path: Path, allow: Sequence[str]) -> State | nn.Module:
    """What torch.save wrote. Where it names more than weights, and holds weights, these alone are read."""
    try:
        known = find_admitted(path, allow)
    except RefusedError as error:
        skipped = None if error.has_layers else stand_in(error.names, NEVER | {"torch"})
        state = None if skipped is None else _read_state(path, skipped)
        if state is None:
            raise
        shown = ", ".join(error.names[:5]) + (", ..." if len(error.names) > 5 else "")
        text = f"{path}: the weights are read; skipped beside them: {shown}"
        warnings.warn(text, SparsifyWarning, stacklevel=2)
        return state
    return _unwrap_state(_load_pickle(path, known), path)


def _read_state(path: Path, skipped: list[Any]) -> State | None:
    """The weights in a file with stand-ins for what else it names, None where it holds none."""
    try:
        found = _unwrap_state(_load_pickle(path, skipped), path)
    except ModelError:
        return None
    return None if isinstance(found, nn.Module) else found


def _read_start(path: Path) -> tuple[bytes, int]:
    """The first bytes and the size."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the model file in it (.pt or .safetensors)")
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise ModelError(f"{path} is empty")
    return start, path.stat().st_size


def _is_safetensors(start: bytes, size: int) -> bool:
    """Eight bytes of header length, then the header in JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _read_safetensors(path: Path) -> State:
    try:
        state = load_file(path)
    except Exception as error:
        raise ModelError(
            f"{path}: damaged or cut short, or not safetensors ({error}); copy or save it again"
        ) from error
    if not state:
        raise ModelError(f"{path} holds no tensors")
    return state


def _check_archive(path: Path) -> None:
    """Refuse archives that torch.save did not write, and changed bytes: torch does not check the CRCs."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(n.endswith("constants.pkl") for n in names):
                raise ModelError(
                    f"{path}: a TorchScript archive, which cannot be cut; "
                    f"save the Python model's weights: {SAVE_WEIGHTS}"
                )
            if any(n.endswith("archive_format") for n in names):
                raise ModelError(
                    f"{path}: a torch.export program, which cannot be trained or cut; "
                    f"save the weights: {SAVE_WEIGHTS}"
                )
            if not any(n.endswith("data.pkl") for n in names):
                raise ModelError(f"{path}: a zip archive, but not one that torch.save wrote")
            check_entries(archive)
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise ModelError(f"{path}: damaged or cut short ({error}); copy or save it again") from error


def check_entries(archive: zipfile.ZipFile) -> None:
    """Check that every entry is stored as torch.save does, and complete.

    Raises BadZipFile and others of zipfile.
    """
    for entry in archive.infolist():
        _check_entry(archive, entry)


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, which checks its CRC. Torch may be told to write none, which is 0."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile(f"{entry.filename} is compressed, which torch.save never does")
    if entry.CRC:
        with archive.open(entry) as content:
            while content.read(1 << 20):
                pass


def _load_pickle(path: Path, known: list[Any]) -> Any:
    try:
        # An open file: given a path, torch decides by its suffix.
        with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file may make the unpickler raise anything.
        raise ModelError(
            f"{path}: damaged, or a pickled model that cannot be read without executing code "
            f"({_describe_error(error)}); save the weights: {SAVE_WEIGHTS}"
        ) from error


def _describe_error(error: Exception) -> str:
    """One line, without torch's advice to load the file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        return f"it names {named[1]}" if named else "it does something that weights never do"
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrap_state(found: Any, path: Path) -> State | nn.Module:
    if isinstance(found, nn.Module):
        return _check_complete(found.module if isinstance(found, nn.DataParallel) else found, path)
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} holds a {type(found).__name__}, neither weights nor a model")
    if not found:
        raise ModelError(f"{path} holds no tensors")
    if all(isinstance(v, Tensor) or str(k).endswith("_extra_state") for k, v in found.items()):
        return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    for key in _WRAPPERS:
        if isinstance(found.get(key), Mapping | nn.Module):
            return _unwrap_state(found[key], path)
    shown = ", ".join(str(k) for k in list(found)[:8])
    raise ModelError(
        f"{path}: is not a state dict and holds none under {', '.join(_WRAPPERS)}; its keys are {shown}"
    )


def _check_complete(module: nn.Module, path: Path) -> nn.Module:
    """Refuse a module that its pickle left half built, before the run starts."""
    try:
        for part in module.modules():
            part.state_dict()
    except Exception as error:
        raise ModelError(
            f"{path}: the pickled {type(module).__name__} is not complete ({describe_error(error)})"
        ) from error
    return module
