"""One thread per test process: results do not depend on the machine, and two processes do not fight for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
