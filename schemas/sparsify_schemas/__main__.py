"""`python -m sparsify_schemas [FOLDER]` writes the JSON Schemas; FOLDER is `schemas/` of the repository when
left out."""

import sys
from pathlib import Path

from sparsify_schemas.export import write_all


def main(arguments: list[str]) -> int:
    """Write the files and name them."""
    folder = Path(arguments[0]) if arguments else Path(__file__).parents[1]
    if not arguments and folder.name != "schemas":
        sys.stderr.write("this is an installed package: name the folder to write to\n")
        return 2
    sys.stdout.writelines(f"{file}\n" for file in write_all(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
