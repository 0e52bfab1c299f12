"""Examples for training, validation and testing, and the batches made of them."""

from sparsify.data.examples import Datasets, Examples
from sparsify.data.loader import batches
from sparsify.data.recipe_inputs import example_inputs, open_integers
from sparsify.data.sources import data_for_inputs, load_data

__all__ = [
    "Datasets",
    "Examples",
    "batches",
    "data_for_inputs",
    "example_inputs",
    "load_data",
    "open_integers",
]
