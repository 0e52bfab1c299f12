"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe.", show_default=False)]
_MODEL = typer.Argument(
    metavar="MODEL",
    help="Weights, a whole model, or an earlier run (its cut model).",
    show_default=False,
)
ModelFile = Annotated[Path, _MODEL]
OptionalModelFile = Annotated[Path | None, _MODEL]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a value of the recipe, such as stages.0.epochs=3; may be repeated.",
        show_default=False,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="PACKAGE",
        help="Trust classes of this package in a whole pickled model; may be repeated.",
        show_default=False,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Make it an error where a layer must be protected, where a layer that no call runs would have "
        "to be narrowed, or where a part of the recipe has no effect.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file that is of another kind.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Where the run's folder is made; ./runs when left out.",
        show_default=False,
    ),
]
