"""Data: where training, validation and test examples come from."""

from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sparsify_schemas.base import Flag, Number, Positive, Spec, Text, Whole
from sparsify_schemas.units import Share

BUILT_IN = ("digits", "mnist", "fashion_mnist", "cifar10", "folder")


class Normalize(Spec):
    """x <- (x / 255 - mean) / std, per channel."""

    mean: tuple[Number, ...] = Field(min_length=1)
    """one number per channel, of pixels in 0..1"""
    std: tuple[Number, ...] = Field(min_length=1)
    """one number per channel, of pixels in 0..1"""

    @model_validator(mode="after")
    def _fit(self) -> "Normalize":
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; both need one per channel"
            )
        if any(s <= 0 for s in self.std):
            raise ValueError("every std must be above zero")
        return self


class Augment(Spec):
    """What is done to training images, anew in each epoch."""

    flip: Flag = False
    """mirror left to right with probability one half"""
    crop: Whole = 0
    """pad by so many pixels of zero and crop back at random"""


class Data(Spec):
    """A data set, its split and its preprocessing. The test set is read once, at the end."""

    source: Text
    """digits, mnist, fashion_mnist, cifar10, folder (images in train/<class>/ and test/<class>/ under
    `root`), a path to an .npz with x_train, y_train, x_test, y_test, or package.module:callable that takes
    nothing and returns (train, test), each a pair (x, y) of arrays or tensors, a mapping of them with the
    targets among them, or a torch Dataset of such pairs or mappings; x may be a mapping or tuple of tensors
    as the model takes them, y is what the `task` takes: classes counted from 0 unless it says otherwise"""
    target: Text | None = None
    """key of the targets in examples that are mappings; labels, label, targets, target or y when left out"""
    root: Text | None = None
    """folder of the files; $SPARSIFY_DATA when left out, else ~/.cache/sparsify"""
    validation: Share = Share(10, "%")
    """share of the training set kept aside for every choice that is made"""
    split: Literal["random", "last"] = "random"
    """validation examples: drawn with the recipe's seed, or the last ones of the training set"""
    normalize: Normalize | None = None
    """subtract a mean and divide by a deviation; pixels are scaled to 0..1 either way"""
    augment: Augment = Augment()
    """random changes of training images"""
    size: Positive | None = None
    """folder: images are resized to size x size pixels"""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source in BUILT_IN or source.endswith(".npz") or ":" in source:
            return source
        module, dot, name = source.rpartition(".")
        near = get_close_matches(source, BUILT_IN, 1) or (
            [f"{module}:{name}"] if dot and source.replace(".", "").isidentifier() else []
        )
        known = f"{', '.join(BUILT_IN)}, a path to an .npz, or package.module:callable"
        raise ValueError(
            f"unknown source {source!r}; " + (f"did you mean '{near[0]}'?" if near else f"known: {known}")
        )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Data":
        if self.size is not None and self.source != "folder":
            raise ValueError("'size' acts on source 'folder' only")
        if self.validation.value == 100:
            raise ValueError("validation: 100% leaves no example to train on")
        return self
