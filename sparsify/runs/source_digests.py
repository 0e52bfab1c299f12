"""Digests of the code and the teachers that a recipe names and of its data, so that a run goes on with what
it began with."""

import hashlib
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparsify.errors import RunError
from sparsify.recipe.import_path import load_module, resolve, resolve_callable
from sparsify.runs.run_folder import hash_file
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.stage import Train

_OWN = ("sparsify", "torch")
"""packages whose code is no part of a recipe"""


def hash_sources(recipe: Recipe) -> dict[str, str]:
    """What names a callable, such as "task.loss 'mytask:loss'" -> SHA-256 of the files that it stands in; and
    what names a teacher's file -> its SHA-256.

    Callables of this package and of torch are left out, and so is what cannot be imported or read: reading
    the data or the model says so.
    """
    found = {}
    for key, path in list_callables(recipe):
        files = find_files(path)
        if files:
            found[f"{key} '{path}'"] = _hash_files(files)
    for key, path in list_teachers(recipe):
        with suppress(RunError):
            found[f"{key} '{path}'"] = hash_file(Path(path))
    return found


def list_teachers(recipe: Recipe) -> list[tuple[str, str]]:
    """(key, path) of each file that a train stage learns from."""
    return [
        (f"stages.{place}.distill.teacher", stage.distill.teacher)
        for place, stage in enumerate(recipe.stages)
        if isinstance(stage, Train) and stage.distill is not None and stage.distill.is_from_file
    ]


def list_callables(recipe: Recipe) -> list[tuple[str, str]]:
    """(key, dotted path) of each callable in a recipe."""
    task, data = recipe.task, recipe.data
    named: list[tuple[str, Any]] = [
        ("model.build", recipe.model.build if recipe.model is not None else None),
        ("data.source", data.source if data is not None else None),
        ("task.loss", task.loss),
        ("task.collate", task.collate),
    ]
    named += [(f"task.metrics.{place}", metric.use) for place, metric in enumerate(task.metrics)]
    for place, stage in enumerate(recipe.stages):
        if isinstance(stage, Train):
            named.append((f"stages.{place}.optimizer", getattr(stage.optimizer, "use", None)))
    return [
        (key, path) for key, path in named if isinstance(path, str) and (":" in path or key == "model.build")
    ]


def find_files(path: str) -> list[Path]:
    """The file of the module that a dotted path names, and of the one where its callable is defined."""
    try:
        thing = resolve(path)
        named = load_module(path.replace(":", ".").rpartition(".")[0])
    except ImportError:
        return []
    defined = sys.modules.get(getattr(thing, "__module__", None) or "", named)
    modules = [module for module in (named, defined) if module.__name__.partition(".")[0] not in _OWN]
    files = [Path(module.__file__) for module in modules if module.__file__ is not None]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check_sources(known: dict[str, str] | None, recipe: Recipe, what: str = "run") -> None:
    """Raises RunError where code or a teacher that the recipe names is not that of the start.

    known: of `hash_sources` at the start; None of an older version. what: that goes on, a run or a study.
    """
    if known is None:
        return
    now = hash_sources(recipe)
    for name, path in ((f"{key} '{path}'", path) for key, path in list_callables(recipe)):
        if name in now and now[name] != known.get(name):
            files = ", ".join(map(str, find_files(path)))
            raise RunError(f"{files} ({name}) {_write_changed('was', what)} it")
    for key, path in list_teachers(recipe):
        name = f"{key} '{path}'"
        if name in now and now[name] != known.get(name):
            raise RunError(f"{path} ({key}) {_write_changed('was', what)} it")


def check_data(
    known: dict[str, str] | None, recipe: Recipe, found: dict[str, str], what: str = "run"
) -> None:
    """Raises RunError where the data are not those of the start. known, found: of `hash_datasets`."""
    if known is None or recipe.data is None:
        return
    changed = [part for part, digest in found.items() if digest != known.get(part)]
    if changed:
        raise RunError(
            f"the {' and the '.join(changed)} of data.source '{recipe.data.source}' "
            f"{_write_changed('were', what)} them"
        )


def _write_changed(verb: str, what: str) -> str:
    return f"{verb} changed since the {what} began; start a new {what} with"


def require_sources(recipe: Recipe, needed: Container[str]) -> None:
    """Raises SparsifyError where a callable or a teacher cannot be read, of those that are needed.

    needed: as `hash_sources` names them, such as "data.source 'mydata:load'".
    """
    for key, path in list_callables(recipe):
        if f"{key} '{path}'" in needed:
            resolve_callable(key, path)
    for key, path in list_teachers(recipe):
        if f"{key} '{path}'" in needed:
            hash_file(Path(path))
