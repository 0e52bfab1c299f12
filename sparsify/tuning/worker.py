"""`python -m sparsify.tuning.worker STUDY` takes part in a study until it is finished, without a word."""

import os
import sys
from pathlib import Path

from sparsify.errors import SparsifyError
from sparsify.tuning.tune import tune
from sparsify.tuning.work import STORAGE_VARIABLE


def main(arguments: list[str]) -> int:
    """Join the study in the folder that the first argument names."""
    try:
        tune(join=Path(arguments[0]), storage=os.environ.get(STORAGE_VARIABLE))
    except SparsifyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
