"""Text as tokens: the bytes of the text, or what a tokenizer of transformers makes of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.data.columns import Column, stack
from sparsify.errors import DataError, first_line
from sparsify_schemas.data import Tokens

Example = Any
"""list of tokens, or a mapping of such lists: tokens, attention mask and what else a tokenizer gives"""


Tokenize = Callable[[Sequence[str], bool], list[Example]]
"""(texts, whether to cut them off at `max_length`) -> their tokens"""


def tokenize_texts(texts: Sequence[str], tokenize: Tokenize, name: str) -> Column:
    """One example for each text, cut off after `max_length` tokens. Raises DataError at an empty text."""
    examples = tokenize(texts, True)
    empty = next((place for place, example in enumerate(examples) if not _count_tokens(example)), None)
    if empty is not None:
        raise DataError(f"{name}: text {empty + 1} is empty")
    return _stack_examples(examples)


def divide_texts(texts: Sequence[str], tokenize: Tokenize, length: int, name: str) -> Column:
    """Each text in pieces of `length` tokens; a rest of one token, of which nothing can be learned, is
    left out. Raises DataError."""
    pieces = []
    for example in tokenize(texts, False):
        for start in range(0, _count_tokens(example), length):
            piece = _take_tokens(example, start, start + length)
            if _count_tokens(piece) > 1:
                pieces.append(piece)
    if not pieces:
        raise DataError(f"{name}: has no text of two tokens or more")
    return _stack_examples(pieces)


def make_tokenizer(spec: Tokens) -> Tokenize:
    """Raises DataError where it is no folder of a tokenizer."""
    if spec.tokenizer == "bytes":
        return lambda texts, is_cut: [
            list(text.encode()[: spec.max_length if is_cut else None]) for text in texts
        ]
    tokenizer = _load_tokenizer(spec.tokenizer)

    def tokenize(texts: Sequence[str], is_cut: bool) -> list[Example]:
        limit = {"truncation": True, "max_length": spec.max_length} if is_cut else {}
        found = tokenizer(list(texts), verbose=False, **limit)
        return [{key: found[key][place] for key in found} for place in range(len(texts))]

    return tokenize


def _load_tokenizer(folder: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise DataError(
            "data.text.tokenizer needs transformers, which is not installed: "
            "pip install 'sparsify-recipes[transformers]'"
        ) from None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(
            f"data.text.tokenizer: there is no folder {folder}; expected one that save_pretrained of a "
            "tokenizer wrote, or 'bytes'"
        )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise DataError(f"data.text.tokenizer: {folder} holds no tokenizer ({first_line(error)})") from error


def _count_tokens(example: Example) -> int:
    return len(example["input_ids"] if isinstance(example, Mapping) else example)


def _take_tokens(example: Example, start: int, end: int) -> Example:
    if isinstance(example, Mapping):
        return {key: values[start:end] for key, values in example.items()}
    return example[start:end]


def _stack_examples(examples: Sequence[Example]) -> Column:
    if isinstance(examples[0], Mapping):
        return stack(examples)
    return stack([np.array(example, dtype=np.int64) for example in examples])
