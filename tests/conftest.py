"""One thread per test process: results do not depend on the machine, and two processes do not fight for cores.

And torchvision, timm and transformers import, whichever torch they were built for: see zoo/shim.py.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsify_schemas.target import Cpu

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.append(str(Path(__file__).parent / "zoo"))

import shim  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _timed_in_eager() -> Iterator[None]:
    """Recipes without targets are timed in eager PyTorch alone: what ONNX Runtime wants, an export, takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsify.assess.default_targets", lambda: {"eager": Cpu(kind="cpu")})
        yield
