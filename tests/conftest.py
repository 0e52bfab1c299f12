"""One thread per test process: results do not depend on the machine, and two processes do not fight for cores.

And torchvision, timm and transformers import, whichever torch they were built for: see zoo/shim.py.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.append(str(Path(__file__).parent / "zoo"))

import shim  # noqa: F401

torch.set_num_threads(1)
