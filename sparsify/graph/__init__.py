"""A model's structure: what is coupled to what, cutting it, and proving the cut.

`inspect` reads the structure, `cut` removes units from a copy, `replay` repeats a logged cut on a fresh dense model,
`verify` proves that a cut model computes what the masked dense one does.
"""

from sparsify.graph.call import Inputs, call, check_model, tensors
from sparsify.graph.cutting import cut, replay
from sparsify.graph.folding import fold
from sparsify.graph.inspecting import inspect, layers
from sparsify.graph.proving import probe, verify, with_branches

__all__ = ["Inputs", "call", "check_model", "cut", "fold", "inspect", "layers", "probe", "replay", "tensors", "verify", "with_branches"]
