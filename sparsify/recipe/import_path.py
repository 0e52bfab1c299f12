"""Import what a dotted path in a recipe names: `package.module.thing` or `package.module:thing`."""

import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from sparsify.errors import DataError
from sparsify.recipe.user_code import run_user_code

_AWAY = "a recipe must not name; name a callable of your own"
_MISSING = object()
_SCRIPT_HINT = "; keep what belongs to a script below `if __name__ == '__main__':`"


def resolve(path: str) -> Any:
    """Import the object that a dotted path names. Modules in the current folder are found as well.

    The standard library is refused: a recipe that came with a run must not name os.system.
    Raises ImportError, which says which part is missing or what the module raised.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if _is_standard(module):
        raise ImportError(f"'{path}' is in the standard library, which {_AWAY}")
    found = load_module(module)
    try:
        with run_user_code(f"'{path}'", lambda why: ImportError(f"reading '{path}' failed: {why}")):
            thing: Any = getattr(found, name, _MISSING)
        if thing is _MISSING:
            raise AttributeError
        is_named = isinstance(thing, type | FunctionType | BuiltinFunctionType)
        if is_named and _is_standard(thing.__module__ or ""):
            raise ImportError(
                f"'{path}' is {thing.__module__}.{thing.__name__} of the standard library, which {_AWAY}"
            )
        return thing
    except AttributeError:
        public = [
            n for n, v in vars(found).items() if not n.startswith("_") and not isinstance(v, ModuleType)
        ]
        close = get_close_matches(name, public, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ImportError(f"module '{module}' has no '{name}'{hint}") from None


def resolve_callable(key: str, path: str) -> Any:
    """The callable that a key of the recipe names. Raises DataError, which names both."""
    try:
        found = resolve(path)
    except ImportError as error:
        raise DataError(f"{key} '{path}': {error}") from error
    if not callable(found):
        raise DataError(f"{key} '{path}' is a {type(found).__name__}, which cannot be called")
    return found


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def load_module(name: str) -> ModuleType:
    """Import a module; the current folder is searched last. Raises ImportError as `resolve` does."""

    def failed(why: str) -> ImportError:
        hint = _SCRIPT_HINT if why.startswith("it called sys.exit") else ""
        return ImportError(f"importing '{name}' failed: {why}{hint}")

    missing: ModuleNotFoundError | None = None
    with run_user_code(f"importing '{name}'", failed, keep_chance=True):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            missing = error
    if missing.name and (name == missing.name or name.startswith(missing.name + ".")):
        raise ImportError(
            f"there is no module '{missing.name}' (looked in the installed packages and in {Path.cwd()})"
        ) from missing
    raise ImportError(f"importing '{name}' failed: {missing}") from missing
