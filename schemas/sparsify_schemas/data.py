"""Data: where training, validation and test examples come from."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sparsify_schemas.base import AtKey, Flag, Number, Positive, Spec, Text, Whole, refuse_script
from sparsify_schemas.units import Share

BUILT_IN = ("digits", "mnist", "fashion_mnist", "cifar10", "folder", "huggingface")
HAVE_TARGETS = ("digits", "mnist", "fashion_mnist", "cifar10", "folder")
"""sources whose targets have no name"""
_ROOTS = {
    "folder": "the folder that holds train/<class>/ and test/<class>/",
    "huggingface": "the folder that save_to_disk wrote, a folder of train.parquet and test.parquet (or .csv, "
    ".json, .jsonl), or one such file",
}
"""sources that are nothing without `root`, and what it is"""
TABLES = (".csv", ".tsv")
"""ends of the names of tables"""
TEXTS = (".txt", ".jsonl")
"""ends of the names of files of text"""


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


class Transform(Spec):
    """A transform of torchvision.transforms.v2. A name alone means this without arguments."""

    use: Text
    """name of the class, such as RandomRotation or ColorJitter"""
    args: dict[Text, Any] = {}
    """keyword arguments, such as {degrees: 10}"""


def _from_name(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


NamedTransform = Annotated[Transform, BeforeValidator(_from_name, json_schema_input_type=Text | Transform)]


class Augment(Spec):
    """What is done to training images, anew in each epoch.

    Targets with a number for each pixel move with the pixels, and so do `boxes` of targets that are a
    mapping: [objects, 4] as x1, y1, x2, y2 in pixels. An object that is gone leaves every other part with a
    row for each.
    """

    flip: Flag = False
    """mirror left to right with probability one half"""
    crop: Whole = 0
    """pad by so many pixels of zero and crop back at random"""
    transforms: tuple[NamedTransform, ...] = ()
    """further changes by torchvision, in order, of each image by itself, of the mask of its classes and of
    its boxes"""

    @property
    def is_used(self) -> bool:
        """Whether anything is done to images."""
        return self.flip or self.crop > 0 or bool(self.transforms)


class Tokens(Spec):
    """How text becomes the tokens that a model takes."""

    column: Text = "text"
    """the column that holds the text, in anything but a .txt"""
    tokenizer: Text = "bytes"
    """`bytes`: each byte of the text in UTF-8 is a token, of 256; or the folder of a tokenizer of
    transformers, as `save_pretrained` writes it"""
    max_length: Positive = 128
    """tokens of an example: the rest of a longer text is left out; a language model gets it as further
    examples"""


_READ_BY = {
    ".npy": "an .npy holds one array; write x_train, y_train, x_test and y_test into one .npz by numpy.savez",
    ".parquet": "write the table as .csv",
    ".pt": "write arrays as .npz, or name a callable that returns Datasets, such as mydata:load",
    ".py": "name the callable in it, such as mydata:load",
}
"""what to do with files of other kinds"""


def _refuse_places(source: str) -> None:
    """Say what to write in place of a URL, a path to a script, or a file of another kind."""
    if "://" in source:
        raise ValueError(f"{source!r} is a URL; download the file, and write its path")
    if ":" in source:
        refuse_script(source)
    for ending, advice in _READ_BY.items():
        if source.endswith(ending):
            raise ValueError(f"{source!r} is no source; {advice}")


class Data(Spec):
    """A data set, its split and its preprocessing. The test set is read once, at the end."""

    source: Text
    """digits, mnist, fashion_mnist, cifar10, folder (images in train/<class>/ and test/<class>/ under
    `root`; for a segmentation in train/images/, train/masks/, test/images/ and test/masks/), a path to an
    .npz with x_train, y_train, x_test, y_test, to a table (.csv, .tsv, with the names of the columns in its
    first line) or to text (.txt, .jsonl), huggingface (a data set of the library datasets, a .parquet, .csv,
    .json or .jsonl at `root`), or package.module:callable that takes
    nothing and returns (train, test), each a pair (x, y) of arrays or tensors, a mapping of them with the
    targets among them, or a torch Dataset of such pairs or mappings; x may be a mapping or tuple of tensors
    as the model takes them, y is what the `task` takes: classes counted from 0 unless it says otherwise"""
    test: Annotated[Share | Text, Field(union_mode="left_to_right")] | None = None
    """tables, text and huggingface: the file of the test set, or the share of the one file that is it, the
    same for every seed; for huggingface also the name of a split, `test` when left out"""
    target: Text | tuple[Text, ...] | None = None
    """key of the targets in examples that are mappings, or column of them in a table (several columns where
    an example has several numbers); labels, label, targets, target or y when left out. Classes that are text
    are numbered in the order of their names"""
    features: tuple[Text, ...] | None = Field(default=None, min_length=1)
    """columns of a table or of huggingface that are the inputs; all but the target when left out"""
    categories: tuple[Text, ...] = ()
    """columns of a table that hold names: each becomes as many inputs as it has values, in the order of the
    values, of which one is 1 and the others 0"""
    text: Tokens | None = None
    """which column of a table, of .jsonl or of huggingface is text, and how it becomes tokens"""
    root: Text | None = None
    """folder of the files; for mnist, fashion_mnist and cifar10 $SPARSIFY_DATA when left out, else
    ~/.cache/sparsify; for paths the current folder; huggingface: the folder that `save_to_disk` wrote, a
    folder of train.parquet and test.parquet, or one such file"""
    validation: Share = Share(10, "%")
    """share of the training set kept aside for every choice that is made"""
    split: Literal["random", "last"] = "random"
    """validation examples: drawn with the recipe's seed, or the last ones of the training set; likewise the
    test examples of one file, drawn with a seed of their own"""
    normalize: Normalize | None = None
    """subtract a mean and divide by a deviation; pixels are scaled to 0..1 either way"""
    augment: Augment = Augment()
    """random changes of training images"""
    workers: Whole = 0
    """processes that make batches beside the training; batches are the same to the last bit with any number
    of them"""
    pin: Flag = False
    """keep batches in page-locked memory, from which a GPU copies faster; without a GPU it does nothing"""
    lazy: Flag = False
    """package.module:callable: read each example of a Dataset when a batch needs it, in place of all of them
    at the start; what is random in it is seeded for each example and epoch"""
    size: Positive | None = None
    """folder: images are resized to size x size pixels"""
    channels: Literal[1, 3, 4] | None = None
    """folder: 1 gray, 3 colours, 4 colours and opacity, to which images are converted; those of the richest
    image when left out"""

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        _refuse_places(source)
        if source in BUILT_IN or source.endswith((".npz", *TABLES, *TEXTS)) or ":" in source:
            return source
        module, dot, name = source.rpartition(".")
        near = get_close_matches(source, BUILT_IN, 1) or (
            [f"{module}:{name}"] if dot and source.replace(".", "").isidentifier() else []
        )
        files = "a path to an .npz, .csv, .tsv, .txt or .jsonl"
        known = f"{', '.join(BUILT_IN)}, {files}, or package.module:callable"
        raise ValueError(
            f"unknown source {source!r}; " + (f"did you mean '{near[0]}'?" if near else f"known: {known}")
        )

    @field_validator("test", mode="before")
    @classmethod
    def _test_is_written(cls, test: Any) -> Any:
        """One message in place of one for each form that it may have."""
        if test is None or (test and isinstance(test, str | Share)):
            return test
        found, hint = f"a {type(test).__name__}", ""
        if isinstance(test, int | float):
            found = f"the number {test}"
            hint = f"; write {100 * test:g}%" if 0 < test < 1 else ""
        elif test == "":
            found = "an empty one"
        raise ValueError(f"expected a share such as 20% or a path, found {found}{hint}")

    @field_validator("target", mode="before")
    @classmethod
    def _target_is_written(cls, target: Any) -> Any:
        if isinstance(target, int | float):
            raise ValueError(f"expected a name or a list of names, found the number {target}; quote it")
        return target

    @property
    def is_table(self) -> bool:
        """Whether the source is a file with named columns."""
        return ":" not in self.source and self.source.endswith(TABLES)

    @property
    def is_text(self) -> bool:
        """Whether the source is a file of text."""
        return ":" not in self.source and self.source.endswith(TEXTS)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Data":
        for key, value in (("size", self.size), ("channels", self.channels)):
            if value is not None and self.source != "folder":
                raise AtKey(key, f"'{key}' acts on source 'folder' only; leave it out")
        if self.lazy and ":" not in self.source:
            raise AtKey(
                "lazy",
                f"'lazy' acts on package.module:callable; '{self.source}' is read at once, leave it out",
            )
        if self.validation.value == 100:
            raise AtKey("validation", "100% leaves no example to train on; write a smaller share")
        if self.root is not None and (self.source == "digits" or ":" in self.source):
            raise AtKey("root", f"source '{self.source}' reads no folder; leave 'root' out")
        if self.root is None and self.source in _ROOTS:
            raise AtKey("root", f"source '{self.source}' needs 'root': {_ROOTS[self.source]}")
        if self.target is not None and (self.source in HAVE_TARGETS or self._is_npz):
            raise AtKey("target", f"the targets of '{self.source}' have no name; leave 'target' out")
        return self

    @property
    def _is_npz(self) -> bool:
        return ":" not in self.source and self.source.endswith(".npz")

    @model_validator(mode="after")
    def _names_differ(self) -> "Data":
        targets = (self.target,) if isinstance(self.target, str) else self.target or ()
        features = self.features or ()
        for key, names in (("target", targets), ("features", features), ("categories", self.categories)):
            doubled = next((i for i, name in enumerate(names) if name in names[:i]), None)
            if doubled is not None:
                raise AtKey((key, doubled), f"'{names[doubled]}' stands there twice; leave one out")
        for key, names in (("features", features), ("categories", self.categories)):
            wrong = next((i for i, name in enumerate(names) if name in targets), None)
            if wrong is not None:
                raise AtKey((key, wrong), f"'{names[wrong]}' is the target; leave it out")
        for index, name in enumerate(self.categories):
            if features and name not in features:
                raise AtKey(
                    ("categories", index), f"'{name}' is no input; add it to 'features', or leave it out here"
                )
        return self

    @model_validator(mode="after")
    def _columns_are_of_files(self) -> "Data":
        has_columns = self.is_table or self.source == "huggingface"
        for key, value in (("features", self.features), ("categories", self.categories)):
            if value and not has_columns:
                raise AtKey(key, f"'{key}' acts on .csv, .tsv and huggingface only")
        if self.text is not None and not (has_columns or self.is_text):
            raise AtKey("text", "'text' acts on .csv, .tsv, .txt, .jsonl and huggingface only")
        if self.test is not None and not (has_columns or self.is_text):
            raise AtKey("test", f"source '{self.source}' has a test set of its own; leave 'test' out")
        if self.text is not None and self.source.endswith(".txt") and self.text.column != "text":
            raise AtKey(("text", "column"), "a .txt has no columns; leave 'column' out")
        if self.text is not None and (self.features or self.categories):
            raise AtKey("text", "'text' is the input; leave 'features' and 'categories' out")
        if isinstance(self.target, tuple) and not has_columns:
            raise AtKey("target", "several columns are of .csv, .tsv and huggingface only")
        if self.target is not None and self.source.endswith(".txt") and self.is_text:
            raise AtKey("target", "a .txt holds text alone; leave 'target' out")
        if self.test is None and (self.is_table or self.is_text):
            raise AtKey(
                "test",
                f"'{self.source}' is one file; write the path of another with the test set, or a share of "
                "this one such as 20%",
            )
        if isinstance(self.test, str) and self.test.endswith("%"):
            raise AtKey("test", f"expected a share such as 20% or a path, found '{self.test}'")
        if isinstance(self.test, Share) and not 0 < self.test.fraction < 1:
            raise AtKey("test", f"a test set of {self.test} leaves nothing to train on or nothing to test")
        return self
