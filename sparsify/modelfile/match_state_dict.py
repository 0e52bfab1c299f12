"""Load tensors of a file into a model, or say why they do not fit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.nn.load_tensors import load_tensors

_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 5
_Check = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], str]
"""of (the model's tensors, the file's): what does not fit, '' where all does"""


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, build: str) -> None:
    """Load every tensor, also under names with the prefix of DataParallel, torch.compile or Lightning.

    Tied tensors may be stored once, and the batch counters of old BatchNorms may be missing. Raises
    ModelError with at most five names of each kind of mismatch.
    """
    state = check_fits(model, state, path, build)
    check_finite(state, str(path))
    try:
        load_tensors(model, state, strict=False)
    except Exception as error:
        raise ModelError(f"{path} does not fit {build}: {error}") from error


def check_fits(model: nn.Module, state: Mapping[str, Tensor], path: Path, build: str) -> Mapping[str, Tensor]:
    """The state under the model's own names. Raises ModelError where names, shapes or types differ."""
    checks = (_describe_missing, _describe_unexpected, _describe_shapes, _describe_types, _describe_untied)
    return _fit(model, state, path, build, checks)


def fit_names(model: nn.Module, state: Mapping[str, Tensor], path: Path, build: str) -> Mapping[str, Tensor]:
    """The same, whatever its shapes."""
    return _fit(model, state, path, build, (_describe_missing, _describe_unexpected, _describe_types))


def _fit(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, build: str, checks: Iterable[_Check]
) -> Mapping[str, Tensor]:
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    state = _strip_prefix(state, wanted)
    faults = [fault for check in checks if (fault := check(wanted, state))]
    if faults:
        raise ModelError(f"{path} does not fit {build}: {'; '.join(faults)}{_suggest(path)}")
    return state


def check_finite(state: Mapping[str, Any], name: str) -> None:
    """Refuse NaN and infinity. Raises ModelError."""
    bad = [name for name, value in state.items() if isinstance(value, Tensor) and not _is_finite(value)]
    if bad:
        raise ModelError(
            f"{name}: NaN or infinite weights in {_list_some(bad)}; the training that made them failed"
        )


def _is_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    # 8-bit floats have no isfinite.
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())


def _strip_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    while state and not state.keys() & wanted.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _describe_missing(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    given = {_find_storage(wanted[k]) for k in state if k in wanted}
    names = []
    for name, value in wanted.items():
        is_counter = name.endswith("num_batches_tracked")
        if name not in state and not is_counter and _find_storage(value) not in given:
            names.append(name)
    return f"{len(names)} missing ({_list_some(names)})" if names else ""


def _find_storage(value: Tensor) -> tuple[int, tuple[int, ...]]:
    """Equal for tied tensors. Tensors without elements have no memory and never count as tied."""
    return (value.data_ptr() or id(value), tuple(value.shape))


def _describe_unexpected(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    names = [k for k in state if k not in wanted]
    return f"{len(names)} unexpected ({_list_some(names)})" if names else ""


def _describe_shapes(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    names = [k for k, v in state.items() if k in wanted and v.shape != wanted[k].shape]
    shown = [
        f"{k}: {format_shape(state[k].shape)} in the file, {format_shape(wanted[k].shape)} in the model"
        for k in names
    ]
    return f"{len(names)} of another shape ({_list_some(shown)})" if names else ""


def _describe_types(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    def real(value: Tensor) -> bool:
        return value.is_floating_point()

    names = [k for k, v in state.items() if k in wanted and (real(v) != real(wanted[k]) or _is_odd(v))]
    shown = [
        f"{k}: {_format_type(state[k])} in the file, {_format_type(wanted[k])} in the model" for k in names
    ]
    return f"{len(names)} of another type ({_list_some(shown)})" if names else ""


def _is_odd(value: Tensor) -> bool:
    return value.is_meta or value.is_quantized or value.layout != torch.strided


def _describe_untied(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Names that are one tensor in the model and several in the file: the last would win."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    pairs = []
    for name in (name for name in wanted if name in state):
        one = first.setdefault(_find_storage(wanted[name]), name)
        if one != name and not torch.equal(state[one], state[name]):
            pairs.append(f"{one} and {name}")
    return f"{len(pairs)} tied in the model and different in the file ({_list_some(pairs)})" if pairs else ""


def _format_type(value: Tensor) -> str:
    place = "" if value.layout == torch.strided else " sparse"
    if value.is_meta:
        place = " without data"
    return str(value.dtype).removeprefix("torch.") + place


def format_shape(shape: Iterable[int]) -> str:
    """'8x3x3x3'."""
    return "x".join(map(str, shape)) or "a single number"


def _list_some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _suggest(path: Path) -> str:
    if (path.parent / "cuts.json").is_file():
        return f"; it is the cut model of a run, which loads with its folder: {path.parent}"
    return (
        "\nhint: does 'model:' in the recipe build the model that the file was saved from? check its 'args'"
    )
