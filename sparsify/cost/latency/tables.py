"""Latency tables on disk: one file per machine, runtime and thread count in the user's cache.

A table is written whole or not at all, and a table of another machine is never used by mistake.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

from pydantic import ValidationError

from sparsify import files
from sparsify.cost.measure.availability import runtime_version
from sparsify.cost.measure.machine import processor_name, vector_instructions
from sparsify.errors import RunError, TargetError, find_refusal
from sparsify_schemas.table import Machine, Point, Steps, Table
from sparsify_schemas.target import Cpu, Target

VECTOR_STEPS = {"AVX512": 16, "AVX2": 8, "NEON": 8}
"""float32 channels that fill a vector register (twice for NEON): the width step until it is measured"""
LEAST = 4
"""least width step of a processor: fast kernels want multiples of it"""


def cache_folder() -> Path:
    """$SPARSIFY_CACHE, or sparsify in the user's cache folder."""
    named = os.environ.get("SPARSIFY_CACHE")
    if named:
        return Path(named)
    match sys.platform:
        case "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sparsify"
        case "darwin":
            return Path.home() / "Library" / "Caches" / "sparsify"
        case _:
            return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsify"


def describe_machine(target: Target) -> Machine:
    """What a latency measured here depends on."""
    return Machine(
        processor=_gpu_name() if target.kind == "cuda" else processor_name(),
        vectors=vector_instructions(),
        system=f"{platform.system()} {platform.machine()}",
        runtime=runtime_version(target),
    )


def table_path(target: Target) -> Path:
    """Path of a target's table: the file that the target names, or its own in the cache."""
    if target.table is not None:
        return Path(target.table).expanduser()
    words = [
        target.kind,
        target.runtime,
        f"{target.threads}t" if isinstance(target, Cpu) else "",
        f"b{target.batch}",
        target.dtype,
    ]
    text = json.dumps([describe_machine(target).model_dump(), target.model_dump()], sort_keys=True)
    return (
        cache_folder()
        / "latency"
        / f"{'-'.join(filter(None, words))}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    )


def read_table(name: str, target: Target) -> Table:
    """Read the table of a target; an empty one if nothing was measured yet. Raises TargetError."""
    path = table_path(target)
    if not path.exists():
        if target.table is not None:
            raise TargetError(
                f"target '{name}': there is no table {path}; "
                f"'sparsify targets measure {name} RECIPE --out {path.name}' measures one; "
                "run it on the machine that the table is for"
            )
        return Table(machine=describe_machine(target), target=target)
    try:
        found = Table.model_validate_json(files.read_bytes(path))
    except (RunError, ValidationError) as error:
        mend = (
            "measure it again on its machine" if target.table is not None else "delete it to measure it again"
        )
        damaged = (
            f"{path} is damaged and cannot be read as a table of latencies ({_first_fault(error)}); {mend}"
        )
        raise TargetError(f"target '{name}': {files.explain_unreadable(path, error, damaged)}") from None
    if target.table is None and found.machine != describe_machine(target):
        raise TargetError(
            f"target '{name}': {path} was measured on another machine "
            f"({_format_machine(found.machine)}; this is {_format_machine(describe_machine(target))}); "
            "delete it to measure here, or name it as the target's 'table' to cut for that machine"
        )
    return found


def write_table(table: Table, path: Path) -> None:
    """Write a table atomically, merged with what another process added meanwhile. Raises TargetError."""
    advice = "choose another place with --out"
    if path.is_relative_to(cache_folder()):
        advice = "set SPARSIFY_CACHE to a folder that can be written to"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(
            path, (merge_with_file(table, path).model_dump_json(indent=1) + "\n").encode(), shared=True
        )
    except (OSError, RunError) as error:
        why = find_refusal(error) or find_refusal(error.__cause__ or error) or str(error)
        raise TargetError(f"cannot write the table {path}: {why}; {advice}") from None


TABLE = files.Kind.of_model("a table of latencies", Table)


def merge_with_file(table: Table, path: Path) -> Table:
    """The table, with layers and networks of an earlier file that it does not have."""
    try:
        before = Table.model_validate_json(files.read_bytes(path))
    except (RunError, ValidationError):
        return table
    if before.machine != table.machine:
        return table
    layers = {
        key: merge_points(before.layers.get(key, ()), table.layers.get(key, ()))
        for key in sorted({*before.layers, *table.layers})
    }
    return table.model_copy(
        update={
            "layers": layers,
            "networks": before.networks | table.networks,
            "steps": table.steps or before.steps,
        }
    )


def merge_points(before: tuple[Point, ...], more: tuple[Point, ...]) -> tuple[Point, ...]:
    """Points by widths; later ones win."""
    found = {point[:2]: point for point in (*before, *more)}
    return tuple(found[widths] for widths in sorted(found))


def width_steps(table: Table) -> Steps:
    """The measured steps, or those expected from the vector instructions; at least 4 on a processor."""
    least = LEAST if table.target.kind == "cpu" else 1
    if table.steps is not None:
        steps = table.steps
        return Steps(
            convolution=max(least, steps.convolution), inputs=steps.inputs, linear=max(least, steps.linear)
        )
    convolution = VECTOR_STEPS.get(table.machine.vectors, 8) if table.target.kind == "cpu" else 8
    return Steps(
        convolution=convolution,
        inputs=convolution if table.target.runtime == "onnxruntime" else 1,
        linear=LEAST,
    )


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _format_machine(machine: Machine) -> str:
    return f"{machine.processor} with {machine.vectors}, {machine.runtime}"


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(error)
