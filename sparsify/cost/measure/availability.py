"""What can be timed here: which runtimes are installed, and whether this machine is what a target asks for. Imports no torch
until a target needs it."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import assert_never

from sparsify.cost.measure.machine import cores
from sparsify.errors import TargetError
from sparsify.formatting.numbers import plural
from sparsify_schemas.target import Cpu, Cuda, Target

_EXTRAS = {"onnxruntime": ("ONNX Runtime", "onnx"), "openvino": ("OpenVINO", "openvino")}
"""runtime -> its name, the extra that brings it"""


def check_target(name: str, target: Target) -> None:
    """Refuse a target that cannot be timed here. Raises TargetError, which says what to do; one with a table is not timed."""
    problem = None if target.table is not None else _missing(target)
    if problem is not None:
        raise TargetError(f"target '{name}' {problem}")


def state(target: Target) -> str:
    """'here', 'predicted from phone.json', or why not."""
    if target.table is not None:
        return f"predicted from {target.table}"
    return _missing(target) or "here"


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


def _missing(target: Target) -> str | None:
    match target:
        case Cuda():
            return _no_cuda() or _no_compiler(target)
        case Cpu():
            return _no_runtime(target) or _too_many_threads(target) or _no_compiler(target)
        case _:
            assert_never(target)


def _no_runtime(target: Cpu) -> str | None:
    if target.runtime not in _EXTRAS:
        return None
    title, extra = _EXTRAS[target.runtime]
    needed = [target.runtime, "onnx", "onnxscript", *(["onnxruntime"] if target.dtype == "int8" else [])]
    lacking = [package for package in dict.fromkeys(needed) if find_spec(package) is None]
    if not lacking:
        return None
    extras = ",".join(dict.fromkeys([extra, *(["onnx"] if target.dtype == "int8" else [])]))
    return f"runs on {title}, for which {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed: pip install 'sparsify-recipes[{extras}]'"


def _too_many_threads(target: Cpu) -> str | None:
    have = cores()
    if target.threads <= have:
        return None
    return f"asks for {target.threads} threads, and this machine has {plural(have, 'core')}; lower 'threads', or give a 'table' measured on the machine it is for"


def _no_compiler(target: Target) -> str | None:
    if target.runtime != "compile" or any(
        shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if c
    ):
        return None
    return "runs through torch.compile, which needs a C++ compiler, and there is none; install g++"


def _no_cuda() -> str | None:
    import torch

    return (
        None
        if torch.cuda.is_available()
        else "runs on CUDA, and torch finds no GPU here; give a 'table' measured on a machine that has one"
    )
