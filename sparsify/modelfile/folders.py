"""Folders of transformers and shards of safetensors, as places of weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sparsify.errors import ModelError

INDEX: Final = ".index.json"
"""ending of the file that says which shard holds which tensor"""
_WHOLE: Final = ("model.safetensors", "pytorch_model.bin")
_INDICES: Final = tuple(name + INDEX for name in _WHOLE)
_OF_A_RUN: Final = ("plan.json", "cuts.json", "state.json")
"""files of a run's folder, whose weights are those of a cut model"""
_LARGEST: Final = 2**26
"""bytes of an index"""


def find_weights(path: Path) -> tuple[Path, ...]:
    """The files that together hold the weights: the path itself, the file in a folder, or its shards.

    Raises ModelError.
    """
    if path.is_dir():
        if any((path / name).exists() for name in _OF_A_RUN):
            raise ModelError(f"{path} is a run that is not complete; give a finished run, or a file in it")
        names = [name for name in (*_WHOLE, *_INDICES) if (path / name).is_file()]
        if not names:
            raise ModelError(
                f"{path} is a folder with neither a finished run nor {_WHOLE[0]}; "
                "give the model file in it (.pt or .safetensors)"
            )
        return find_weights(path / names[0])
    return _list_shards(path) if path.name.endswith(INDEX) and path.is_file() else (path,)


def _list_shards(index: Path) -> tuple[Path, ...]:
    try:
        if index.stat().st_size > _LARGEST:
            raise ValueError("too large")
        written = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names: Sequence[str] = sorted({str(name) for name in written.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index}: not an index of shards ({type(error).__name__}); fetch it again"
        ) from error
    odd = [name for name in names if Path(name).name != name or name.endswith(INDEX)]
    if odd or not names:
        raise ModelError(f"{index}: names no shards beside it; fetch it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent} lacks {', '.join(missing[:5])}, which {index.name} names; fetch it")
    return tuple(index.parent / name for name in names)
