"""One forward call as a graph of operators, with the module calls that they ran in."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.forward.call_model import float_tensors
from sparsify.forward.calls import Inputs, all_tensors, map_tensors
from sparsify.forward.calls import call_without_copies as call_model
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.opaque import is_nested
from sparsify.graph.names import canonical_names
from sparsify.graph.trace.module_stack import ModuleStack
from sparsify.graph.trace.operators import decompose_operators
from sparsify.graph.trace.zero_branches import first_tensor

Bits = int
"""a set of nodes: bit n is node n"""


@dataclass(frozen=True)
class Addition:
    """A sum of two tensors of one shape that both depend on the model's inputs."""

    node: int
    module: str
    nth: int
    operands: tuple[int, int]


@dataclass
class ModuleCall:
    """One call of a module."""

    module: str
    within: "ModuleCall | None"
    x: int | None
    """node of its first tensor input"""
    shape: tuple[int, ...]
    own: Bits = 0
    """operators that ran in it"""
    result: Any = None
    """what it returned, with nodes in place of tensors"""

    def outer_calls(self) -> Iterator["ModuleCall"]:
        """The calls that it ran in, innermost first."""
        at = self.within
        while at is not None:
            yield at
            at = at.within


@dataclass
class Graph:
    """Nodes are numbered in the order in which they ran; a parameter or an input is a node too."""

    inputs: list[tuple[int, ...]] = field(default_factory=list)
    """node -> the nodes that it is computed from"""
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    leaves: Bits = 0
    """nodes that no operator made"""
    given: Bits = 0
    """nodes that are inputs of the model"""
    added: list[Addition] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    before: list[Bits] = field(default_factory=list)
    """node -> all nodes that it depends on"""
    after: list[Bits] = field(default_factory=list)
    """node -> all nodes that depend on it, of those that reach an output"""
    users: list[Bits] = field(default_factory=list)
    """node -> the nodes computed from it, of those that reach an output"""
    outputs: Bits = 0
    live: Bits = 0
    """nodes that reach an output"""

    def finish(self) -> "Graph":
        for own in self.inputs:
            self.before.append(unite(self.before[i] | 1 << i for i in own))
        self.live = self.outputs | unite(self.before[n] for n in list_nodes(self.outputs))
        self.users, self.after = [0] * len(self.inputs), [0] * len(self.inputs)
        for n in reversed(range(len(self.inputs))):
            if self.live >> n & 1:
                for i in self.inputs[n]:
                    self.users[i] |= 1 << n
                    self.after[i] |= self.after[n] | 1 << n
        return self


class GraphRecorder(ModuleStack):
    """Records the operators and module calls that run under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = Graph()
        self._node: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._running: list[ModuleCall] = []
        names = canonical_names(model)
        self._names = {id(t): names[n] for n, t in [*model.named_parameters(), *model.named_buffers()]}

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        at = self.sum_at(func, args)
        operands = list(map(self._node_of, args[:2])) if at else []
        alike = at is not None and args[0].shape == args[1].shape
        node, out = self._run_and_record(func, args, kwargs)
        if at is not None and alike and out.is_floating_point():
            self.graph.added.append(Addition(node, *at, (operands[0], operands[1])))
        return out

    def run_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._run_and_record(func, args, kwargs)[1]

    def _run_and_record(self, func: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
        """(the node of what an operator made, its result)"""
        own = tuple(
            dict.fromkeys(self._node_of(v) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor))
        )
        out = func(*args, **kwargs)
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        node = self._add_node(own, _shape(made[0]) if made else ())
        for value in made:
            self._node[value] = node
        for running in self._running:
            running.own |= 1 << node
        return node, out

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        x = first_tensor(args, kwargs)
        outer = self._running[-1] if self._running else None
        node = None if x is None else self._node_of(x)
        shape = () if x is None else _shape(x)
        self._running.append(ModuleCall(name, outer, node, shape))
        self.graph.calls.append(self._running[-1])

    def on_exit(self, name: str, result: Any) -> None:
        done = self._running.pop()
        assert done.module == name
        done.result = self._replace_by_nodes(result)

    def note_inputs(self, inputs: Inputs) -> None:
        """Remember the tensors that the model is called with."""
        self.graph.given |= unite(1 << self._node_of(tensor) for tensor in all_tensors(inputs))

    def note_outputs(self, output: Any) -> None:
        """Remember the tensors that the model returned."""
        self.graph.outputs |= unite(1 << self._node_of(tensor) for tensor in float_tensors(output))

    def _replace_by_nodes(self, result: Any) -> Any:
        """A returned value with nodes in place of tensors, also in a tuple; Ellipsis for other values."""
        if isinstance(result, Tensor):
            return self._node_of(result)
        if type(result) is tuple:
            return tuple(map(self._replace_entry, result))
        return ...

    def _replace_entry(self, entry: Any) -> Any:
        if isinstance(entry, Tensor):
            return self._node_of(entry)
        return None if entry is None else ...

    def _node_of(self, tensor: Tensor) -> int:
        found: int | None = self._node.get(tensor)  # type: ignore[no-untyped-call]
        if found is None:
            found = self._add_node((), _shape(tensor))
            self._node[tensor] = found
            self.graph.leaves |= 1 << found
            if id(tensor) in self._names:
                self.graph.parameters[found] = self._names[id(tensor)]
        return found

    def _add_node(self, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.graph.inputs.append(inputs)
        self.graph.shapes.append(shape)
        return len(self.graph.inputs) - 1


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if is_nested(tensor) else tuple(tensor.shape)


def record_graph(model: nn.Module, inputs: Inputs) -> Graph:
    """Record the operators of one forward call in eval mode. Pass a copy of the model."""
    mode = GraphRecorder(model.eval())
    own = map_tensors(inputs, torch.clone)  # a forward may write into its inputs
    mode.note_inputs(own)
    with decompose_operators(model), torch.random.fork_rng(devices=[]), mode.track_modules(model), mode:
        seed_generators(0)
        mode.note_outputs(call_model(model, own))
    return mode.graph.finish()


def unite(sets: Iterable[Bits]) -> Bits:
    found = 0
    for own in sets:
        found |= own
    return found


def list_nodes(bits: Bits) -> Iterator[int]:
    """The members of a set, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
