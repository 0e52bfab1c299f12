"""A model's structure: what is coupled to what, cutting it, and proving the cut.

`inspect` reads the structure, `cut` removes units from a copy, `replay` repeats a logged cut on a fresh dense model,
`carry` brings an optimizer along, `verify`
proves that a cut model computes what the masked dense one does.
"""

from sparsify.graph.call import Inputs, call, check_model, converted, on_cpu, tensors
from sparsify.graph.carrying import carry, carry_named
from sparsify.graph.constants import Constants, find_constants, same_constants
from sparsify.graph.coverage import further_calls
from sparsify.graph.cutting import cut, dropped, gone_branches, places, ranges, replay, trial
from sparsify.graph.folding import fold
from sparsify.graph.inspecting import inspect, layers
from sparsify.graph.naming import canonical_names
from sparsify.graph.precision import cast
from sparsify.graph.proving import compare, effect, verify
from sparsify.graph.reshaping import reshape
from sparsify.graph.stale_widths import follow_widths
from sparsify.graph.trying import probe, with_branches
from sparsify.graph.vocabulary import understood

__all__ = [
    "Constants",
    "Inputs",
    "call",
    "canonical_names",
    "carry",
    "carry_named",
    "cast",
    "check_model",
    "compare",
    "converted",
    "cut",
    "dropped",
    "effect",
    "find_constants",
    "fold",
    "follow_widths",
    "further_calls",
    "gone_branches",
    "inspect",
    "layers",
    "on_cpu",
    "places",
    "probe",
    "ranges",
    "replay",
    "reshape",
    "same_constants",
    "tensors",
    "trial",
    "understood",
    "verify",
    "with_branches",
]
