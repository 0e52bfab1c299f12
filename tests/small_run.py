"""A recipe of the smallest run that trains, cuts and measures: for tests of what happens around it."""

from typing import Any


def make_recipe(epochs: int) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "Small",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits", "validation": "90%"},
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
        "targets": {"here": {"kind": "cpu"}},
        "stages": [
            {"kind": "train", "name": "learn", "epochs": epochs, "optimizer": {"kind": "sgd", "lr": 0.05}},
            {"kind": "cut", "repair": False},
        ],
    }
