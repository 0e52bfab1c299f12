"""Which machine and software this is."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sparsify_schemas.report import Environment

_PACKAGES = (
    "torch",
    "numpy",
    "accelerate",
    "pydantic",
    "safetensors",
    "onnxruntime",
    "openvino",
    "sparsify-recipes",
)


def describe_environment() -> Environment:
    """Python, packages, processor."""
    return Environment(
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _find_version(name)) is not None},
        processor=processor_name(),
        cores=count_cores(),
        platform=platform.platform(),
    )


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def vector_instructions() -> str:
    """The widest vector instructions: AVX512, AVX2, NEON, or the architecture if none of them is known."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "NEON"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = next(
        (set(line.partition(":")[2].split()) for line in text.splitlines() if line.startswith("flags")), set()
    )
    return next(
        (name for flag, name in (("avx512f", "AVX512"), ("avx2", "AVX2"), ("sse2", "SSE2")) if flag in flags),
        platform.machine() or "unknown",
    )


def count_cores() -> int:
    """Number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_load_average() -> float:
    """Load average of the last minute; -1 if the system does not tell."""
    if sys.platform == "win32":
        return -1.0
    return os.getloadavg()[0]
