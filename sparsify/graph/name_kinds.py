"""Which names differ in numbers alone: those of what a network repeats."""

import re


def name_kind(name: str) -> str:
    """The name with `#` for each number: `layers.#.mlp` of `layers.3.mlp`."""
    return re.sub(r"\d+", "#", name)
