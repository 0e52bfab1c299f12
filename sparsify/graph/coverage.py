"""Calls that reach layers which the given calls do not: other experts of a mixture, another branch on
data."""

from collections.abc import Iterator

import torch
from torch import nn

from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Call, Inputs, list_calls
from sparsify.forward.fresh_inputs import redraw
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_scripted, without_compiling
from sparsify.forward.scratch import copy_to_call

TRIES = 8
"""how many redrawn inputs are tried"""
EXAMPLES = 16
"""batch size of the redrawn inputs, if it can be changed"""


def find_further_calls(model: nn.Module, inputs: Inputs, unreached: frozenset[str]) -> tuple[Call, ...]:
    """The given calls, and redrawn calls that run layers which are still unreached.

    A model without weights does not branch on values: it gets the given calls only.
    """
    calls = list_calls(inputs)
    if not unreached or any(p.is_meta for p in model.parameters()):
        return calls
    found, left = list(calls), set(unreached)
    for each in _redraw_calls(calls):
        new = left & _find_modules_run(model, each)
        if new:
            found.append(each)
            left -= new
        if not left:
            break
    return tuple(found)


def _redraw_calls(calls: tuple[Call, ...]) -> Iterator[Call]:
    for seed in range(TRIES):
        for each in calls:
            yield from list_calls(redraw((each,), seed, EXAMPLES))


def _find_modules_run(model: nn.Module, each: Call) -> set[str]:
    """Modules that one call runs; none if it fails."""
    ran: set[str] = set()
    copy = copy_to_call(model).eval()
    for name, module in copy.named_modules():
        if not is_scripted(module):  # takes no hook
            module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            without_compiling(),
            without_fused_attention(),
        ):
            call_model(copy, (each,))
    except Exception:
        return set()
    return ran
