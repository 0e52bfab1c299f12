"""One thread per test process: results do not depend on the machine, and two processes do not fight for
cores.

Hypothesis draws the same examples in every run, whatever ran before, and writes nothing; NIGHTLY=1 draws
fresh ones. And torchvision, timm and transformers import, whichever torch they were built for: see
zoo/shim.py.
"""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, configuration, settings
from hypothesis.internal.conjecture import providers

from sparsify_schemas.target import Cpu

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "zoo"))

import nightly
import shim  # noqa: F401

from sparsify.cost.latency import calibrate
from sparsify.pruning import latency_budget, layer_compaction
from sparsify.runs import apply, baselines, save_load

torch.set_num_threads(1)
if not torch.accelerator.is_available():
    torch.manual_seed = (
        torch.default_generator.manual_seed
    )  # torch's own notes a traceback, in milliseconds, for every accelerator that is absent
for of_the_terminal in (
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "PY_COLORS",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "GITHUB_ACTIONS",
):
    os.environ.pop(
        of_the_terminal, None
    )  # output is as wide and as plain as in a pipe, wherever the tests run

NIGHTLY = os.environ.get("NIGHTLY") == "1"
# No deadline and no check of the speed of drawing: neither may fail on a busy machine.
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("repeatable", REPEATABLE)
settings.register_profile("fresh", REPEATABLE, derandomize=False, print_blob=True, max_examples=1000)
settings.load_profile("fresh" if NIGHTLY else "repeatable")
# Hypothesis also draws constants of the modules that happen to be loaded, so that examples depend on what ran
# before.
providers._get_local_constants = providers.Constants
HOME = tempfile.TemporaryDirectory(prefix="hypothesis-")
configuration.set_hypothesis_home_dir(
    HOME.name
)  # what it keeps besides examples goes here, not into the repository


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not NIGHTLY:
        listed = nightly.find_left_out([item.nodeid for item in items], nightly.LINES)
        left_out = [item for item in items if item.nodeid in listed or item.get_closest_marker("nightly")]
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """All that was imported lives to the end, so no later collection of garbage looks through it: each stage
    of training ends with one, which took a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _collected_once() -> Iterator[None]:
    """The same for what the tests of a module have imported or left."""
    yield
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    HOME.cleanup()


@pytest.fixture(autouse=True, scope="session")
def _timed_in_eager() -> Iterator[None]:
    """Recipes without targets are timed in eager PyTorch alone: what ONNX Runtime wants, an export, takes
    seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsify.runs.timed_targets.default_targets", lambda: {"eager": Cpu(kind="cpu")})
        yield


@pytest.fixture(autouse=True, scope="session")
def _timed_briefly() -> Iterator[None]:
    """What is timed where a test does not say for how long: enough for the fewest rounds, as no test may
    depend on a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(apply.apply.__kwdefaults__, "timing", 0.05)
        patch.setitem(save_load.save_run.__kwdefaults__, "timing", 0.05)
        patch.setattr(baselines, "_SECONDS", 0.05)
        patch.setattr(layer_compaction, "SECONDS", 0.05)
        patch.setattr(latency_budget, "SECONDS", 0.05)
        patch.setattr(calibrate, "_SECONDS", 0.05)
        yield


@pytest.fixture(autouse=True, scope="session")
def _not_brought_to_the_disk() -> Iterator[None]:
    """No test pulls the plug: files stay where the system holds them, as a busy disk takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_translations() -> Iterator[None]:
    """torch.onnx makes its table of all translations anew for every export, which takes half of the time;
    here it makes one."""
    export = torch.onnx.export

    @cache
    def shared() -> None:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))

    def exported(*args: Any, **kwargs: Any) -> Any:
        shared()
        return export(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exported)
        yield
