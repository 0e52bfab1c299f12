"""Storages of Optuna: a database in the study's folder, any URL, or the file of a journal."""

import json
import re
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_plus

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url

from sparsify.errors import RunError, first_line
from sparsify.runs.run_folder import try_lock
from sparsify.tuning.optuna_package import name_driver
from sparsify.tuning.study_folder import DATABASE, StudyState
from sparsify_schemas.search import Search
from sparsify_schemas.task import Facts

_META, _WANTED = "sparsify", "wanted"
REDUCTION = 3
"""Of the trials that come to 1, 3, 9, ... epochs, the best third goes on."""
_LOOK = 0.005
"""Seconds between two looks at the lock of a journal."""
_PATIENCE = 120
"""Seconds that SQLite waits for a lock."""


_SECRET = re.compile(r"(pass|password|passwd|passphrase|pwd|secret|token)$", re.IGNORECASE)
_HOLDS_SECRET = re.compile(r"\b(password|pwd)\s*=", re.IGNORECASE)


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """The storage of a URL or a journal's file; without either the database in the folder.

    Raises RunError where it cannot be opened.
    """
    url = storage if storage is not None else f"sqlite:///{(folder / DATABASE).resolve()}"
    try:
        if "://" not in url:
            path = Path(url).expanduser().resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path), _KernelLock(str(path))))
        _check_url(url)
        arguments = {"connect_args": {"timeout": _PATIENCE}} if url.startswith("sqlite") else {}
        return RDBStorage(name_driver(url), engine_kwargs={**arguments, "pool_pre_ping": True})
    except RunError:
        raise
    except Exception as error:  # each driver has its own errors
        reason = _hide_in_text(first_line(error), url)
        raise RunError(f"the storage {hide_password(url)} cannot be opened: {reason}") from None


def _check_url(url: str) -> None:
    try:
        make_url(url)
    except Exception:  # its text may hold a part of the password
        raise RunError(
            f"the storage {hide_password(url)} is no URL of SQLAlchemy; "
            "write @, : and / of a password as %40, %3A and %2F"
        ) from None


class _KernelLock(JournalFileOpenLock):
    """A lock that the kernel frees when a worker is killed in it; Optuna's own stay behind."""

    def __init__(self, filepath: str) -> None:
        self._path = Path(f"{filepath}.lock")
        self._stream: IO[str] | None = None

    def acquire(self) -> bool:
        stream = self._path.open("a+")
        while not try_lock(stream):
            time.sleep(_LOOK)
        self._stream = stream
        return True

    def release(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def hide_password(url: str) -> str:
    """A URL without its passwords, which belong neither into messages nor into files."""
    try:
        read = make_url(url)
    except Exception:
        # Wherever the password ends: all up to the last @, and whatever is asked for.
        return re.sub(r"://.*@", "://", url, flags=re.DOTALL).partition("?")[0]
    secret = [key for key, value in read.query.items() if _is_secret(key, value)]
    if read.password is None and not secret:
        return url
    open_part = read.difference_update_query(secret)
    # `set` leaves alone what is None.
    return open_part._replace(username=read.username or None, password=None).render_as_string(
        hide_password=False
    )


def _is_secret(key: str, value: str | tuple[str, ...]) -> bool:
    """Whether a parameter of a URL is a password, or the whole address of a server with one."""
    values = (value,) if isinstance(value, str) else value
    return _SECRET.search(key) is not None or any(_HOLDS_SECRET.search(one) for one in values)


def _hide_in_text(text: str, url: str) -> str:
    """A message of a driver, which may quote the URL, without the URL's passwords."""
    if "://" not in url:
        return text
    read = make_url(url)
    found: list[str | None] = [read.password]
    for key, value in read.query.items():
        if _is_secret(key, value):
            found += [value] if isinstance(value, str) else value
    text = text.replace(url, hide_password(url))
    for secret in filter(None, found):
        text = text.replace(str(secret), "***").replace(quote_plus(str(secret)), "***")
    return text


def create_study(
    state: StudyState, storage: BaseStorage, text: str, search: Search, judged_by: Facts, wanted: int
) -> tuple[optuna.Study, optuna.Study]:
    """Make a study and that of its claims, with all that a worker of another machine needs."""
    better = StudyDirection.MAXIMIZE if judged_by.better == "higher" else StudyDirection.MINIMIZE
    directions = [better] if search.objective.cost is None else [better, StudyDirection.MINIMIZE]
    claims = optuna.create_study(storage=storage, study_name=_name_claims(state.name))
    study = optuna.create_study(storage=storage, study_name=state.name, directions=directions)
    study.set_user_attr(_WANTED, wanted)
    study.set_user_attr(_META, json.dumps({"state": state.to_json(), "recipe": text}))
    study.pruner = make_pruner(search)
    return study, claims


def load_study(name: str, storage: BaseStorage, search: Search | None) -> tuple[optuna.Study, optuna.Study]:
    """A study and that of its claims. Raises RunError where the storage has no such study."""
    pruner = NopPruner() if search is None else make_pruner(search)
    try:
        study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        return study, optuna.load_study(study_name=_name_claims(name), storage=storage)
    except KeyError:
        raise RunError(f"the storage has no study '{name}'") from None


def _name_claims(name: str) -> str:
    return f"{name} claims"


def make_pruner(search: Search) -> BasePruner:
    if search.early_stopping == "none":
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)


def read_meta(study: optuna.Study, name: str) -> tuple[dict[str, Any], str]:
    """(state of the study as JSON, text of its recipe). Raises RunError where another program made it."""
    found = study.user_attrs.get(_META)
    if found is None:
        raise RunError(f"the study '{name}' was not made by sparsify, or is only just being made")
    body = json.loads(found)
    return body["state"], body["recipe"]


def read_wanted(study: optuna.Study) -> int:
    return int(study.user_attrs[_WANTED])


def write_wanted(study: optuna.Study, wanted: int) -> None:
    study.set_user_attr(_WANTED, wanted)
