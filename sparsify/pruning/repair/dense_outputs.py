"""What the dense model computes at each layer, one by one, while a cut model is refitted beside it."""

import queue
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import counts_of
from sparsify.forward.call_model import call_model, restore_buffers
from sparsify.forward.calls import Inputs
from sparsify.pruning.layer_matrix import (
    Places,
    move_channels_last,
    output_rows,
    sample_places,
    weight_rows,
)
from sparsify.pruning.repair.attention import AttentionOutputs, is_attention, sample_attention
from sparsify.pruning.repair.choose_fit import Settings
from sparsify.pruning.repair.recurrent import RecurrentOutputs, is_recurrent, sample_recurrent
from sparsify.pruning.repair.sites import OperatorCounter, Site, list_operators

ROWS_OF_INPUT = 64
"""rows that a Linear layer is fitted to for each of its inputs, where the examples have so many"""


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of one convolution or Linear layer of the dense model."""

    name: str
    places: Places
    targets: Tensor
    """[rows, outputs that stay]"""
    addend: Tensor | None
    """the other addend of its sum at the same places"""
    mean: Tensor | None
    """what the batch normalisation right behind subtracts from the outputs that stay"""
    weights: Tensor | None = None
    """[rows], how much each counts; None: all alike"""


@dataclass(frozen=True)
class NoOutputs:
    """A layer ran in the dense model, in a way that cannot be followed."""

    name: str


DenseOutput = LayerOutputs | AttentionOutputs | RecurrentOutputs | NoOutputs
"""what the dense model tells of one layer"""


class StoppedEarly(Exception):
    """Nothing of what the model would go on to compute is needed. One that catches it goes on to its end."""


class DenseRun:
    """The dense model in a thread of its own, at most two layers ahead of whoever asks for its outputs."""

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        partners: frozenset[str],
        outputs: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        inputs: Inputs,
        examples: int,
        settings: Settings,
        wanted: frozenset[str],
    ) -> None:
        self._model, self._sites, self._partners = model, sites, partners
        self._outputs, self._rows, self._inputs = outputs, rows, inputs
        self._wanted = set(wanted)
        self._everywhere = (
            examples if settings.processes is None else sum(counts_of(examples, settings.processes))
        )
        self._examples = examples
        self._rows_asked = settings.rows
        self._count = self._count_places(settings.rows)
        self._seed, self._weights = settings.seed, settings.weights
        self._talk: queue.Queue[DenseOutput | BaseException | None] = queue.Queue(maxsize=2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = False

    def __enter__(self) -> "DenseRun":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def outputs_of(self, name: str) -> DenseOutput | None:
        """Outputs of a layer, passing over those of layers that ran before it; None if it does not come."""
        while not self._ended:
            message = self._talk.get()
            if isinstance(message, BaseException):
                self._ended = True
                raise message
            if message is None:
                self._ended = True
            elif message.name == name:
                return message
        return None

    def _run(self) -> None:
        watch = OperatorCounter(list_operators(self._sites, self._partners))
        handles = [
            self._model.get_submodule(name).register_forward_hook(
                self._after(name, watch), prepend=True, with_kwargs=True
            )
            for name, site in self._sites.items()
            if site.calls == 1 and name in self._wanted
        ]
        try:
            with torch.no_grad(), restore_buffers(self._model), watch:
                call_model(self._model, self._inputs)
            self._put(None)
        except StoppedEarly:
            pass
        except BaseException as error:  # it is raised where the outputs are asked for
            self._put(error)
        finally:
            for handle in handles:
                handle.remove()

    def _after(self, name: str, watch: OperatorCounter) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            with watch.pause():
                call = args, kwargs
                generator = torch.Generator().manual_seed(self._seed + zlib.crc32(name.encode()))
                if is_attention(module):
                    message = self._of_attention(name, module, call, output, watch, generator)
                elif is_recurrent(module):
                    stay = self._rows_of(name)
                    message = sample_recurrent(name, module, stay, call, self._count, generator)
                else:
                    message = self._of_layer(name, module, output, watch, generator)
            self._put(message or NoOutputs(name))
            self._wanted.discard(name)
            if not self._wanted:
                self._put(None)
                raise StoppedEarly

        return hook

    def _of_layer(
        self, name: str, module: nn.Module, output: Tensor, watch: OperatorCounter, generator: torch.Generator
    ) -> DenseOutput | None:
        if output.dim() < 2:
            return None  # one number for each example, or no example dimension
        wanted = self._rows_asked
        if isinstance(module, nn.Linear):  # whose inputs lie there as rows: more of them take no more memory
            wanted = max(wanted, ROWS_OF_INPUT * module.in_features)
        places = sample_places(module, output, self._count_places(wanted), generator, self._examples)
        rows = self._stay(name, output_rows(module, output, places))
        addend, other = self._addend(name, watch), None
        if addend is not None and addend.shape == output.shape:
            other = self._stay(name, output_rows(module, addend, places))
        weights = self._weights.get(name)
        if weights is not None and weights.shape == move_channels_last(module, output).shape[:-1]:
            weights = weight_rows(module, weights, places)
        else:
            weights = None
        return LayerOutputs(name, places, rows, other, self._mean_behind(name), weights)

    def _of_attention(
        self,
        name: str,
        module: nn.MultiheadAttention,
        call: tuple[Any, Mapping[str, Any]],
        result: Any,
        watch: OperatorCounter,
        generator: torch.Generator,
    ) -> DenseOutput | None:
        stay, outputs_stay = self._rows_of(name), self._outputs.get(f"{name}.out_proj")
        addend = self._addend(name, watch)
        return sample_attention(
            name, module, stay, outputs_stay, call, result, addend, self._count, generator
        )

    def _count_places(self, rows: int) -> int:
        """Places of each example that give so many rows, over the examples of all processes."""
        return max(1, -(-rows // self._everywhere))

    def _rows_of(self, name: str) -> dict[str, Tensor]:
        """Tensor of a module -> numbers of its rows that stay."""
        every = ((tensor.rpartition("."), rows) for tensor, rows in self._rows.items())
        return {tensor: rows for (owner, _, tensor), rows in every if owner == name}

    def _mean_behind(self, name: str) -> Tensor | None:
        norm = self._sites[name].norm
        mean = None if norm is None else self._model.get_submodule(norm)._buffers.get("running_mean")
        stay = self._outputs.get(name)
        return mean if mean is None or stay is None else mean[stay.to(mean.device)]

    def _addend(self, name: str, watch: OperatorCounter) -> Tensor | None:
        """The other addend of the sum that the layer ends in, where both models have it."""
        operator = self._sites[name].addend
        return watch.kept.pop(operator, None) if name in self._partners and operator is not None else None

    def _stay(self, name: str, rows: Tensor) -> Tensor:
        stay = self._outputs.get(name)
        return rows if stay is None else rows[:, stay.to(rows.device)]

    def _put(self, message: DenseOutput | BaseException | None) -> None:
        while True:
            if self._stop.is_set():
                raise StoppedEarly
            try:
                self._talk.put(message, timeout=0.05)
                return
            except queue.Full:
                continue
