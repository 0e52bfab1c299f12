"""What is odd about the data of a recipe and stops nothing: classes that teach or test nothing, crops beyond
the image."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsify.data.examples import Datasets, Examples
from sparsify.formatting.numbers import list_few
from sparsify_schemas.data import Data


def list_warnings(spec: Data, datasets: Datasets) -> Iterator[str]:
    """Sentences, each with the key of the recipe that it is about."""
    yield from _check_classes(datasets)
    inputs = datasets.train.inputs
    if spec.augment.crop and isinstance(inputs, Tensor) and inputs.dim() == 4:
        shortest = min(inputs.shape[-2:])
        if spec.augment.crop >= shortest:
            yield (
                f"data.augment.crop moves images by up to {spec.augment.crop} pixels, and they are "
                f"{shortest} high or wide: nothing of some is left"
            )


def _check_classes(datasets: Datasets) -> Iterator[str]:
    """Of a classification whose targets are in memory."""
    if not datasets.classes:
        return
    known = _find_classes(datasets.train)
    if len(known) == 1:
        yield f"the training set has one class, {known.pop()}: there is nothing to learn"
        return
    for name, examples in (("validation", datasets.validation), ("test", datasets.test)):
        unseen = sorted(_find_classes(examples) - known)
        if unseen:
            shown = list_few(tuple(map(str, unseen)), 5)
            yield f"the {name} set has classes that training never sees: {shown}"


def _find_classes(examples: Examples) -> set[int]:
    targets = examples.targets
    return set(torch.unique(targets).tolist()) if isinstance(targets, Tensor) else set()
