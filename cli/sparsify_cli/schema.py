"""`sparsify schema`: print a JSON Schema."""

from typing import Annotated

import typer

from sparsify_cli.output import write_result
from sparsify_schemas.export import SCHEMAS, text_of


def command(
    what: Annotated[
        str, typer.Argument(metavar="|".join(SCHEMAS), help="What the schema describes.")
    ] = "recipe",
) -> None:
    """Print the JSON Schema of recipe, cuts, report, table, profile or study, for editors and other
    languages."""
    if what not in SCHEMAS:
        raise typer.BadParameter(f"no schema of '{what}'; known: {', '.join(SCHEMAS)}")
    write_result(text_of(SCHEMAS[what]()), nl=False)
