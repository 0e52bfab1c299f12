"""Which classes and functions a pickled model may name. Others are never imported, looked up or called.

1. Layers and parameters (torch.nn.Module, Parameter and their subclasses) that torch.nn or sparsify.models
define. 2. The same defined in a package that the user allows; `--allow torchvision.models` covers
everything below that name. 3. Other classes defined in an allowed package, if a layer of the same file
comes from that package too: a configuration
   that travels with its model.
4. Functions only when allowed by their full name, `--allow mynets.blocks.swish`, and those of
torch.nn.functional
   under `--allow torch.nn.functional`.
5. Never, whatever is allowed: the standard library, installers, numpy (its values take whatever bytes they
are given),
   and torch outside of torch.nn and torch.ao.nn.

"Defined in" is what counts: `os.system` imported by an allowed module stays refused.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError, describe_error
from sparsify.recipe.import_path import load_module

_OURS = ("torch.nn", "sparsify.models")
_TORCH = ("torch.nn", "torch.ao.nn", "torch._C._nn")
_FUNCTIONS = "torch.nn.functional"
NEVER = frozenset(sys.stdlib_module_names) | {
    "pip",
    "setuptools",
    "pkg_resources",
    "distutils",
    "_distutils_hack",
    "wheel",
    "torch_pruning",
}

Known = tuple[Callable[..., Any], str]


@dataclass(frozen=True)
class _Refused:
    name: str
    why: str
    flag: str = ""
    """The `--allow` that would admit it, if any."""


class RefusedError(ModelError):
    """A file names classes or functions that are not admitted.

    has_layers: whether it names layers that are, so that it holds a module.
    """

    def __init__(self, message: str, names: Sequence[str], has_layers: bool) -> None:
        super().__init__(message)
        self.names = tuple(names)
        self.has_layers = has_layers


def find_admitted(path: Path, allow: Sequence[str]) -> list[Known]:
    """The classes and functions that the file names, for torch's `safe_globals`. The file is not executed.

    Raises ModelError, which lists what is refused, the flag that would admit it, and what else to do.
    """
    _check_allowed(allow)
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        raise ModelError(
            f"{path}: its pickle cannot be read ({describe_error(error)}); "
            "it is damaged, or was not written by torch.save with its usual protocol"
        ) from error
    judged = [_judge_name(name, allow) for name in names]
    homes = {name.partition(".")[0] for (thing, name) in _list_known(judged) if _is_layer(thing)}
    judged = [_at_home(j, homes) for j in judged]
    refused = [j for j in judged if isinstance(j, _Refused)]
    if refused:
        raise RefusedError(_write_complaint(path, refused), [r.name for r in refused], bool(homes))
    return _list_known(judged)


def _list_known(judged: Iterable[Known | _Refused]) -> list[Known]:
    return [j for j in judged if not isinstance(j, _Refused)]


def _check_allowed(allow: Sequence[str]) -> None:
    for entry in allow:
        if not all(part.isidentifier() for part in entry.split(".")):
            raise ModelError(f"--allow {entry}: expected a dotted name such as torchvision.models")
        reason = _explain_refusal(entry)
        if reason:
            raise ModelError(f"--allow {entry}: {reason}; name the package that defines the model's layers")


def _explain_refusal(name: str) -> str:
    """Why no flag admits a name; '' if one may."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return "the standard library is never admitted, it can run commands"
    if top == "numpy":
        return "values of numpy are never admitted"
    if top in NEVER:
        return f"{top} is never admitted, it can run commands"
    if top == "torch" and not any(_is_within(name, t) for t in _TORCH):
        return "of torch only torch.nn and torch.ao.nn are ever admitted, the rest can run code"
    return ""


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _judge_name(name: str, allow: Sequence[str]) -> Known | _Refused:
    if _explain_refusal(name):
        return _Refused(name, _explain_refusal(name))
    module, _, attribute = name.rpartition(".")
    trusted = [p for p in (*_OURS, *allow) if _is_within(name, p)]
    if not trusted or not module:
        return _Refused(name, "not admitted", _name_flag(module))
    try:
        found = vars(load_module(module)).get(attribute)
    except ImportError as error:
        return _Refused(name, str(error))
    if found is None:
        return _Refused(name, "there is no such class; it was defined elsewhere when the file was written")
    return _judge_thing(name, found, [p for p in allow if _is_within(name, p)])


def _judge_thing(name: str, found: Any, allowed: Sequence[str]) -> Known | _Refused:
    home = str(getattr(found, "__module__", ""))
    if not any(
        _is_within(home, p) or _is_within(f"{home}.{name.rpartition('.')[2]}", p) for p in (*_OURS, *allowed)
    ) or _explain_refusal(home):
        return _Refused(name, f"defined elsewhere, in {home or 'no module'}")
    if isinstance(found, type):
        if _is_layer(found) or allowed:
            return found, name
        return _Refused(name, "not a layer")
    if not isinstance(found, FunctionType | BuiltinFunctionType):
        return _Refused(name, f"a {type(found).__name__}, neither a class nor a function")
    if name in allowed or _FUNCTIONS in allowed:
        return found, name
    return _Refused(name, "a function, admitted by its full name only", name)


def _at_home(judged: Known | _Refused, homes: set[str]) -> Known | _Refused:
    if isinstance(judged, _Refused):
        return judged
    thing, name = judged
    if not isinstance(thing, type) or _is_layer(thing) or name.partition(".")[0] in homes:
        return judged
    return _Refused(name, "no layer of the file comes from its package")


def _is_layer(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, nn.Module | nn.Parameter)


def _name_flag(module: str) -> str:
    """The package, two names deep at most: torchvision.models for torchvision.models.resnet."""
    return ".".join(module.split(".")[:2])


def _write_complaint(path: Path, refused: Sequence[_Refused]) -> str:
    wide = max(len(r.name) for r in refused[:20])
    lines = [f"{path} names classes or functions that are not admitted; nothing in the file was run:"]
    for r in refused[:20]:
        advice = f"; needs --allow {r.flag}" if r.flag else ""
        lines.append(f"  {r.name:<{wide}}  {r.why}{advice}")
    if len(refused) > 20:
        lines.append(f"  and {len(refused) - 20} more")
    lines.append("what to do:")
    save = "torch.save(model.state_dict(), 'weights.pt')"
    lines.append(f"  save only the weights where the model can be loaded: {save},")
    lines.append("  and name the model's builder under 'model:' in the recipe")
    flags = sorted({r.flag for r in refused})
    if all(flags):
        lines.append("  or, if you trust these packages: " + " ".join(f"--allow {f}" for f in flags))
    return "\n".join(lines)
