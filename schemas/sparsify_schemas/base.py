"""What every entry of a recipe, a cut log or a report has in common."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """A frozen, comparable value that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_by_name=True,
        # null, the default, could not be read back: a diverged loss would make a report unreadable
        ser_json_inf_nan="strings",
    )


class AtKey(ValueError):
    """What is wrong with an entry as a whole, and the key of it where one would mend that.

    key: of the entry itself, or the path of a deeper one: ("stages", 0, "ema").
    """

    def __init__(self, key: str | tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.path = (key,) if isinstance(key, str) else key


LARGEST = 2**63 - 1
"""the largest whole number that a tensor holds"""

Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Positive = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]


def refuse_script(text: str) -> str:
    """Refuse text that names a callable by the path of its file, as in ./nets.py:make. Raises ValueError."""
    script, colon, name = text.partition(":")
    folder, _, file = script.replace("\\", "/").rpartition("/")
    if folder or file.endswith(".py"):
        where = f", and run sparsify in {folder}" if folder not in ("", ".") else ""
        named = f"'{file.removesuffix('.py')}:{name if colon else 'NAME'}'"
        if not colon:
            named += " with the name of the callable"
        raise ValueError(f"{text!r} names a file; write its module, {named}{where}")
    return text


Callable = Annotated[str, Field(strict=True, min_length=1), AfterValidator(refuse_script)]
"""package.module:callable"""
NOT_BLANK = r"\S"
Title = Annotated[str, Field(strict=True, min_length=1, pattern=NOT_BLANK)]
"""text that shows something"""

Weigh = Literal["places", "none"]
"""whether places of what a layer gives count by how much predictions depend on them"""
