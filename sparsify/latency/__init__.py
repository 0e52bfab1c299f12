"""How long a network of given widths takes on a target: measured layer by layer, corrected on whole networks, predicted.

`clock` gives the model that `choose` decides by; `settled` chooses until the budget holds as measured; `tables` keeps what
was measured; `measured_steps` finds the widths that pay.
"""

from sparsify.latency.measuring import clock, target_steps
from sparsify.latency.settling import settled
from sparsify.latency.staircase import measured_steps

__all__ = ["clock", "measured_steps", "settled", "target_steps"]
