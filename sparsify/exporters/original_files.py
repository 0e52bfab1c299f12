"""Copy the tokenizer and other settings of a dense model's folder beside its cut model."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from sparsify.errors import RunError

PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",
    "LICENSE*",
)
"""What is copied: nothing that holds weights, widths or code."""


def check(model: nn.Module, original: Path) -> None:
    """Refuse a folder of another kind of model. Raises RunError."""
    path = original / "config.json"
    try:
        stated = json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        raise RunError(
            f"{original} is no folder of a model of transformers: {path} names no model_type"
        ) from None
    own: Any = type(model)
    kind = own.config_class.model_type
    if stated != kind:
        raise RunError(f"{original} holds a model of type {stated}, the run's model is of type {kind}")


def copy(original: Path, folder: Path) -> tuple[str, ...]:
    """Copy what is there. Returns a note when there is nothing."""
    found = sorted({path for pattern in PATTERNS for path in original.glob(pattern) if path.is_file()})
    for path in found:
        shutil.copyfile(path, folder / path.name)
    return () if found else (f"{original} holds no tokenizer to copy",)
