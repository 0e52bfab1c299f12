"""Trial cuts on the meta device: whether a cut model runs, and with which shapes."""

from collections.abc import Sequence

import torch
from torch import nn

from sparsify.forward.call_model import call_model, float_tensors, move_inputs_to_meta
from sparsify.forward.calls import Inputs
from sparsify.forward.opaque import without_compiling
from sparsify.graph.copy import copy_to_meta
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.graph.surgery import operations
from sparsify.graph.surgery.operations import Keep
from sparsify.graph.trace.meta_kernels import FastMeta, KnownResults
from sparsify.graph.verify.run_models import (
    first_line,
)


class MetaTrials:
    """Trial cuts on the meta device. `works` says whether the dense model runs there."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.inputs = move_inputs_to_meta(inputs)
        self.known: KnownResults = {}
        self.model = copy_to_meta(model)
        found = {mode: self._run(self.model, mode) for mode in (False, True)}
        self.shapes = {mode: made for mode, made in found.items() if made is not None}
        self.works = False in self.shapes

    def _run(self, model: nn.Module, training: bool) -> list[torch.Size] | None:
        try:
            with torch.no_grad(), without_compiling(), FastMeta(self.known):
                return [t.shape for t in float_tensors(call_model(model.train(training), self.inputs))]
        except Exception as error:
            self.error = error
            return None

    def cut_half(self, groups: Sequence[Coupled], model_map: ModelMap) -> str | None:
        return self.find_fault(model_map, {c.name: choose_half(c) for c in groups})

    def find_fault(self, model_map: ModelMap, keep: Keep) -> str | None:
        """What is wrong with a cut, seen from shapes; None if nothing is."""
        thin = operations.cut_on_trial(self.model, model_map, keep)
        for mode, wanted in self.shapes.items():
            found = self._run(thin, mode)
            if found is None:
                return f"the cut model does not run: {type(self.error).__name__}: {first_line(self.error)}"
            if found != wanted:
                return "the cut model's outputs change their shapes"
        return None

    def cut_pairs_apart(self, groups: Sequence[Coupled], model_map: ModelMap) -> str | None:
        """Cut groups of two units in two halves: a trial of all of them could not keep different numbers
        of units."""
        for part in split_pairs(groups):
            why = self.cut_half(part, model_map) if part else None
            if why is not None:
                return why
        return None


def split_pairs(groups: Sequence[Coupled]) -> tuple[list[Coupled], list[Coupled]]:
    """The groups of two units, in two halves."""
    pairs = [c for c in groups if c.width == 2]
    return pairs[::2], pairs[1::2]


def choose_half(group: Coupled) -> list[int]:
    generator = torch.Generator().manual_seed(group.width)
    count = max(group.least, group.width // 2)
    return sorted(torch.randperm(group.width, generator=generator)[:count].tolist())
