"""`sparsify schema`: print a JSON Schema."""

from enum import StrEnum
from typing import Annotated

import typer

from sparsify_schemas.export import SCHEMAS, text_of


class What(StrEnum):
    """What is described."""

    recipe = "recipe"
    cuts = "cuts"
    report = "report"


def command(
    what: Annotated[What, typer.Argument(metavar="[recipe|cuts|report]", help="What the schema describes.", show_default=False)] = What.recipe,
) -> None:
    """Print the JSON Schema of recipe, cuts or report, for editors and other languages."""
    typer.echo(text_of(SCHEMAS[what]()), nl=False)
