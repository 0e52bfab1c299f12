"""Save and load a model's tensors as safetensors: no pickle, tied weights once, strict when loading."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsify.errors import ModelError, RunError, find_refusal, first_line
from sparsify.files import replace_file
from sparsify.nn.load_tensors import load_tensors


def list_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each stored tensor once, tied weights under their first name. Raises ModelError."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"the model's state '{name}' is a {type(value).__name__}; only tensors can be saved"
            )
        place = (value.data_ptr(), tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = value.detach()
    return found


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the model's tensors as safetensors, whole or not at all. Raises RunError, ModelError.

    The same tensors and metadata give the same bytes in every process.
    """
    found = {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in list_tensors(model).items()
    }
    try:
        with replace_file(path) as temporary:
            save_file(found, temporary, metadata)
            if metadata:
                _sort_metadata(temporary)
    except SafetensorError as error:
        raise RunError(f"cannot write {path}: {error}") from error


def _sort_metadata(path: Path) -> None:
    """Write the metadata of a safetensors file in the order of their keys, in place.

    The library writes them in an order that every process draws anew. The header keeps its length: the first
    8 bytes are that length, and spaces at its end are allowed.
    """
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else the library escapes what Python does not, and its own order stays
            stream.seek(8)
            stream.write(text.ljust(length))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load them strictly into a model of the same structure. Raises RunError, which names what is wrong."""
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is damaged: it is not a regular file")
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        if path.exists() and find_refusal(error):
            raise RunError(f"cannot read {path}: {find_refusal(error)}") from None
        raise RunError(
            f"{path} is {'damaged' if path.exists() else 'missing'}: {first_line(error)}"
        ) from None
    wanted = list_tensors(model)
    wrong = [f"'{name}' is missing" for name in wanted if name not in stored]
    wrong += [f"'{name}' is not in the model" for name in stored if name not in wanted]
    wrong += [
        f"'{n}' is {_kind(stored[n])} in the file and {_kind(t)} in the model"
        for n, t in wanted.items()
        if n in stored and _kind(stored[n]) != _kind(t)
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RunError(f"{path} does not fit the rebuilt model: {'; '.join(wrong[:3])}{more}")
    parameters = {name for name, _ in model.named_parameters()}
    bad = next(
        (
            n
            for n, t in stored.items()
            if n in parameters and t.is_floating_point() and not t.isfinite().all()
        ),
        None,
    )
    if bad is not None:
        raise RunError(f"{path} is damaged: '{bad}' holds NaN or infinity")
    load_tensors(model, stored, strict=False)  # strictness is checked above, where tied weights count once


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
