"""Data sets of the library datasets that lie in a local folder, and single files that it reads."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparsify.data.examples import Examples
from sparsify.data.tables import LateColumns, Table, make_both_sets, split_rows
from sparsify.errors import DataError, first_line
from sparsify_schemas.data import Data
from sparsify_schemas.task import Task
from sparsify_schemas.units import Share

_KINDS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def read_huggingface(spec: Data, task: Task) -> tuple[Examples, Examples]:
    """The training and test examples of what lies at `root`. Raises DataError."""
    library = _import_datasets()
    path = Path(spec.root or "").expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    with _silence_library(library), TemporaryDirectory() as cache:
        splits = _read_splits(library, path, cache)
        if isinstance(spec.test, str) and spec.test not in splits:
            other = path.parent / spec.test
            if other.suffix in _KINDS and other.is_file():
                splits[spec.test] = _read_file(library, other, cache)
        train = _make_table(splits, "train", path)
        if isinstance(spec.test, Share):
            train, test = split_rows(train, spec.test, spec)
        else:
            test = _make_table(splits, spec.test or "test", path)
        return make_both_sets(train, test, spec, task)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data source huggingface needs datasets, which is not installed: "
            "pip install 'sparsify-recipes[data]'"
        ) from None
    return datasets


@contextmanager
def _silence_library(library: Any) -> Iterator[None]:
    """Without progress bars while files are read, and without dill's warnings of pyarrow's own types."""
    were_shown = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Cannot (locate|pickle)")
            yield
    finally:
        if were_shown:
            library.enable_progress_bars()


def _read_splits(library: Any, path: Path, cache: str) -> dict[str, Any]:
    """Name -> split."""
    if path.is_file():
        return {"train": _read_file(library, path, cache)}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            found = library.load_from_disk(str(path))
        except Exception as error:
            raise DataError(f"{path}: cannot be read by datasets ({first_line(error)})") from error
        return dict(found) if isinstance(found, dict) else {"train": found}
    files = sorted(file for file in path.iterdir() if file.suffix in _KINDS)
    if not files:
        raise DataError(
            f"{path}: holds neither what save_to_disk writes nor files such as train.parquet and test.parquet"
        )
    return {file.stem: _read_file(library, file, cache) for file in files}


def _read_file(library: Any, path: Path, cache: str) -> Any:
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise DataError(f"{path}: expected a .parquet, .csv, .json or .jsonl, or a folder")
    try:
        read_by_kind = getattr(library.Dataset, f"from_{kind}")
        return read_by_kind(str(path), cache_dir=cache, keep_in_memory=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read by datasets ({first_line(error)})") from error


def _make_table(splits: dict[str, Any], name: str, path: Path) -> Table:
    if name not in splits:
        held = ", ".join(splits)
        raise DataError(
            f"{path}: has no split '{name}' (it holds {held}); say in data.test which split, or which share "
            "such as 20%, is the test set"
        )
    split = splits[name]
    where = str(path) if len(splits) == 1 else f"{path}: {name}"
    columns = LateColumns(tuple(split.column_names), lambda column: _read_column(split, column))
    return Table(where, columns, range(1, len(split) + 1))


def _read_column(split: Any, name: str) -> Sequence[Any]:
    """Numbers without null as an array, other single values as a list, lists and images as the library has
    them."""
    one, feature = split.select_columns([name]), split.features[name]
    if type(feature).__name__ not in ("Value", "ClassLabel"):
        decoded: Sequence[Any] = one.with_format("numpy")[:][name]
        return decoded
    # The library's own arrays hold float32 alone, and NaN in place of null.
    column = one.with_format("arrow")[:].column(name)
    is_number = feature.dtype.startswith(("int", "uint", "float")) and not column.null_count
    values: Sequence[Any] = column.to_numpy() if is_number else column.to_pylist()
    return values
