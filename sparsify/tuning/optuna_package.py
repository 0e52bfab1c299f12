"""Whether Optuna and the driver of a storage are installed; what they print is kept quiet."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from sparsify.errors import RunError

_DRIVERS = {"postgresql": ("psycopg2", "psycopg"), "mysql": ("pymysql", "MySQLdb")}
"""scheme of a URL -> packages that speak to such a server, where the URL names none"""
_PIP_NAMES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def check_installed(storage: str | None = None) -> None:
    """Raises RunError where Optuna or the driver of a storage's URL is missing."""
    if find_spec("optuna") is None:
        raise RunError("'tune' needs Optuna: pip install 'sparsify-recipes[tune]'")
    if storage is None or "://" not in storage:
        return
    scheme, _, driver = storage.partition("://")[0].partition("+")
    packages = (driver,) if driver else _DRIVERS.get(scheme, ())
    if packages and not any(map(find_spec, packages)):
        pip_name = _PIP_NAMES.get(packages[0], packages[0])
        raise RunError(f"a storage of {scheme} needs {packages[0]}: pip install {pip_name}")


def name_driver(url: str) -> str:
    """A URL that names the driver that is installed, where it names none."""
    scheme, colon, rest = url.partition("://")
    found = [package for package in _DRIVERS.get(scheme, ()) if find_spec(package) is not None]
    return f"{scheme}+{found[0].lower()}{colon}{rest}" if found else url


@contextmanager
def keep_quiet() -> Iterator[None]:
    """Neither Optuna's log nor its warnings are shown: what matters is said in our words."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
