"""What can be timed here: installed runtimes, and whether this machine is what a target asks for.

Imports no torch until a target needs it.
"""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import assert_never

from sparsify.cost.measure.machine import count_cores
from sparsify.errors import TargetError
from sparsify.formatting.numbers import count_noun
from sparsify_schemas.target import Cpu, Cuda, Target

_EXTRAS = {"onnxruntime": ("ONNX Runtime", "onnx"), "openvino": ("OpenVINO", "openvino")}
"""runtime -> its name, the extra that installs it"""


def check_target(name: str, target: Target) -> None:
    """Refuse a target that cannot be timed here. A target with a table is accepted, as it is not timed.

    Raises TargetError, which says what to do.
    """
    problem = None if target.table is not None else _why_unavailable(target)
    if problem is not None:
        raise TargetError(f"target '{name}' {problem}")


def describe_state(target: Target) -> str:
    """'here', 'predicted from phone.json', or why the target is not available."""
    if target.table is not None:
        return f"predicted from {target.table}"
    return _why_unavailable(target) or "here"


def runtime_version(target: Target) -> str:
    """'onnxruntime 1.31.1'."""
    package = target.runtime if target.runtime in _EXTRAS else "torch"
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "of unknown version"
    return (
        f"{target.runtime} {found}" if package == target.runtime else f"{target.runtime} of {package} {found}"
    )


def _why_unavailable(target: Target) -> str | None:
    match target:
        case Cuda():
            return _why_no_cuda() or _why_no_compiler(target)
        case Cpu():
            return _why_no_runtime(target) or _why_too_many_threads(target) or _why_no_compiler(target)
        case _:
            assert_never(target)


def _why_no_runtime(target: Cpu) -> str | None:
    if target.runtime not in _EXTRAS:
        return None
    title, extra = _EXTRAS[target.runtime]
    needed = [target.runtime, "onnx", "onnxscript", *(["onnxruntime"] if target.dtype == "int8" else [])]
    lacking = [package for package in dict.fromkeys(needed) if find_spec(package) is None]
    if not lacking:
        return None
    extras = ",".join(dict.fromkeys([extra, *(["onnx"] if target.dtype == "int8" else [])]))
    verb = "is" if len(lacking) == 1 else "are"
    return (
        f"runs on {title}, for which {' and '.join(lacking)} {verb} not installed: "
        f"pip install 'sparsify-recipes[{extras}]'"
    )


def _why_too_many_threads(target: Cpu) -> str | None:
    have = count_cores()
    if target.threads <= have:
        return None
    return (
        f"asks for {target.threads} threads, but this machine has {count_noun(have, 'core')}; "
        "lower 'threads', or give a 'table' that was measured on the target machine"
    )


def _why_no_compiler(target: Target) -> str | None:
    if target.runtime != "compile":
        return None
    compilers = [name for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name]
    if any(map(shutil.which, compilers)):
        return None
    return "runs through torch.compile, which needs a C++ compiler, and there is none; install g++"


def _why_no_cuda() -> str | None:
    import torch

    return (
        None
        if torch.cuda.is_available()
        else "runs on CUDA, and torch finds no GPU here; give a 'table' measured on a machine that has one"
    )
