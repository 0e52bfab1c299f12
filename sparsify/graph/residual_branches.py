"""Find residual blocks and branches in the graph of one forward call, and what can replace them.

In a sum p + q in which q is computed from p, a branch joins its shortcut p. A *block* that returns its
input if its branches are zero is replaced by its input. If a *branch* is elsewhere (a normalisation
follows the sum), the sum stays, and the branch's modules are replaced by modules that return zeros.
Source: layer depth in Wen et al., arXiv:1608.03665, section 3.2. That paper uses the shortcuts of a
ResNet; here the sums of any network are found.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.graph.class_names import class_names
from sparsify.graph.model_map import Branch, Coupled, ModelMap, Slice, Span, Stub, Sum
from sparsify.graph.names import canonical_names
from sparsify.graph.trace.operator_graph import (
    Addition,
    Bits,
    Graph,
    ModuleCall,
    list_nodes,
    record_graph,
    unite,
)
from sparsify.graph.trace.zero_branches import zero_branches

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_branches(
    model: nn.Module, model_map: ModelMap, inputs: Inputs, macs: Mapping[str, int]
) -> tuple[Branch, ...]:
    """Find every residual block and branch that could be removed, and similar blocks that cannot, with the
    reason.

    Weights only matter for blocks: a block must return its input exactly if its branches are zero.
    macs: multiply-accumulates by module name. Pass a copy of the model.
    """
    found = _ResidualGraph(model, record_graph(model, inputs))
    found.identities = _find_identities(model, inputs, found)
    blocks = _find_blocks(found)
    units = []
    for unit in _keep_with_parameters([*blocks, *_find_single_branches(found)], model_map):
        own_macs = sum(count for name, count in macs.items() if unit.holds(name))
        units.append(replace(unit, macs=own_macs))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted([*units, *_find_refused(found, blocks, units)], key=lambda b: order[b.module]))


@dataclass(frozen=True)
class _Residual:
    """One sum of a shortcut and a branch."""

    node: int
    shortcut: int
    sum: Sum
    inside: Bits
    """the branch's operators, and the operators whose results only it uses"""
    escapes: bool
    """whether a value inside is used elsewhere"""


class _ResidualGraph:
    """The graph, with cached answers."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.names = canonical_names(model)
        self.times = Counter(c.module for c in graph.calls)
        self.by_size = sorted(graph.calls, key=lambda c: c.own.bit_count())
        self.identities: frozenset[str] = frozenset()
        """modules that return their first tensor input if the branches inside are zero"""

    @cached_property
    def residuals(self) -> list[_Residual]:
        found = [r for a in self.graph.added if (r := self._read_residual(a)) is not None]
        return [r for r in found if self._reads_parameters(r.inside)]

    def _reads_parameters(self, inside: Bits) -> bool:
        """Whether one of these operators computes with a parameter."""
        inputs = {i for n in list_nodes(inside) for i in self.graph.inputs[n]}
        return not inputs.isdisjoint(self.graph.parameters)

    def _read_residual(self, added: Addition) -> _Residual | None:
        g, (a, b) = self.graph, added.operands
        if not g.live >> added.node & 1:
            return None
        shortcut, branch, operand = (a, b, 1) if g.before[b] >> a & 1 else (b, a, 0)
        if not g.before[branch] >> shortcut & 1 or not (g.before[shortcut] | 1 << shortcut) & g.given:
            return None
        between = g.after[shortcut] & (g.before[branch] | 1 << branch)
        escapes = any(g.users[n] & ~(between | 1 << added.node) for n in list_nodes(between)) or bool(
            between & g.outputs
        )
        return _Residual(
            added.node,
            shortcut,
            Sum(added.module, added.nth, operand),
            self._add_feeders(between, shortcut),
            escapes,
        )

    def _add_feeders(self, inside: Bits, shortcut: int) -> Bits:
        """The branch with operators that only it uses: transposed weights, masks. Parameters and inputs do
        not count."""
        g, open_ = self.graph, inside
        while open_:
            candidates = (
                unite(1 << i for n in list_nodes(open_) for i in g.inputs[n]) & ~inside & ~(1 << shortcut)
            )
            open_ = unite(
                1 << n for n in list_nodes(candidates) if not g.leaves >> n & 1 and not g.users[n] & ~inside
            )
            inside |= open_
        return inside

    def blocks(self) -> Iterator[tuple[ModuleCall, list[_Residual]]]:
        """Calls, innermost first, that hold whole branches together with their sums, and those branches."""
        for own in self.by_size:
            inner = [r for r in self.residuals if own.own >> r.node & 1]
            covered = reduce(or_, (residual.inside for residual in inner), 0)
            outer = [residual for residual in inner if not covered >> residual.node & 1]
            if own.module and outer and not any(r.inside & ~own.own for r in outer):
                yield own, outer

    def largest_calls(self, residual: _Residual) -> list[ModuleCall]:
        """The largest calls that ran wholly inside a branch, in the order in which they ran."""
        live = self.graph.live

        def inside(c: ModuleCall) -> bool:
            return bool(c.own & live) and not c.own & live & ~residual.inside and self.times[c.module] == 1

        wholly = [call for call in self.graph.calls if inside(call)]
        return [call for call in wholly if not any(map(inside, call.outer_calls()))]

    def tensors_within(self, modules: Sequence[str]) -> frozenset[str]:
        """Parameters and buffers that are removed with these modules; tied ones only if all who share them
        are removed."""
        prefixes = tuple(f"{module}." for module in modules)
        own = {name for name in self.names if name.startswith(prefixes)}
        shared = {first for name, first in self.names.items() if name not in own}
        return frozenset(self.names[name] for name in own) - shared

    def params(self, module: str) -> int:
        return sum(p.numel() for p in self.model.get_submodule(module).parameters())

    def classes(self, module: str) -> tuple[str, ...]:
        """Names of a module's class and of its base classes."""
        return class_names(self.model.get_submodule(module))


def _find_identities(model: nn.Module, inputs: Inputs, found: _ResidualGraph) -> frozenset[str]:
    """Blocks that return their first tensor input exactly if all branches are zero."""
    equal: set[str] = set()

    def seen(name: str, x: Tensor, result: Any) -> None:
        entries = result if isinstance(result, tuple) else (result,)
        returned = next((e for e in entries if isinstance(e, Tensor)), None)
        if returned is not None and returned.shape == x.shape and torch.equal(returned, x):
            equal.add(name)

    watched = {own.module for own, _ in found.blocks() if found.times[own.module] == 1}
    sums = [r.sum for r in found.residuals]
    with torch.no_grad(), zero_branches(model, sums, watched, seen), torch.random.fork_rng(devices=[]):
        seed_generators(0)
        call_model(model, inputs)
    return frozenset(equal)


def _find_blocks(found: _ResidualGraph) -> list[Branch]:
    """Blocks that can be removed, innermost first. A repetition of blocks of one kind (a stage, an
    encoder) is none."""
    units: list[tuple[Branch, frozenset[int]]] = []
    for own, inner in found.blocks():
        reached = frozenset(r.node for r in inner)
        nested = [(b, r) for b, r in units if b.module.startswith(f"{own.module}.")]
        if (
            _why_block_stays(found, own, inner)
            or any(r == reached for _, r in nested)
            or _repeats_one_class(nested)
        ):
            continue
        if own.module in found.identities:
            stubs: tuple[Stub, ...] = (Stub(own.module, returns=_return_pattern(found, own) or ()),)
        else:
            stubs = tuple(stub for residual in inner for stub in _list_stubs(found, residual))
        units.append((_make_branch(found, own.module, stubs, inner), reached))
    return [unit for unit, _ in units]


def _repeats_one_class(nested: Sequence[tuple[Branch, frozenset[int]]]) -> bool:
    outer = tuple(f"{branch.module}." for branch, _ in nested)
    outermost = [branch for branch, _ in nested if not branch.module.startswith(outer)]
    return max(Counter(b.type for b in outermost).values(), default=0) > 1


def _find_single_branches(found: _ResidualGraph) -> Iterable[Branch]:
    """Single branches of blocks that hold several, named after the largest module in them."""
    alone = {
        r.node
        for own, inner in found.blocks()
        if len(inner) == 1 and not _why_block_stays(found, own, inner)
        for r in inner
    }
    for residual in found.residuals:
        if residual.node in alone or _why_branch_stays(found, residual):
            continue
        principal = max(found.largest_calls(residual), key=lambda c: found.params(c.module))
        yield _make_branch(found, principal.module, tuple(_list_stubs(found, residual)), [residual])


def _make_branch(
    found: _ResidualGraph, name: str, stubs: tuple[Stub, ...], inner: Sequence[_Residual]
) -> Branch:
    tensors = dict([*found.model.named_parameters(), *found.model.named_buffers()])
    carried = found.tensors_within([s.module for s in stubs])
    slices = []
    for tensor_name, tensor in tensors.items():
        if tensor_name in carried:
            length = tensor.shape[0] if tensor.dim() else 1
            slices.append(Slice(tensor_name, 0, "whole", (Span(0, 0, 1, length),)))
    own, *ancestors = found.classes(name)
    sums = tuple(r.sum for r in inner)
    return Branch(Coupled(name, 1, tuple(slices)), name, own, stubs, sums, ancestors=tuple(ancestors))


def _why_block_stays(found: _ResidualGraph, own: ModuleCall, inner: Sequence[_Residual]) -> str | None:
    """Why a block cannot be removed; None if it can."""
    g = found.graph
    if found.times[own.module] > 1:
        return f"it is called {found.times[own.module]} times"
    out = _returned_node(own)
    if own.x is None or out is None or own.shape != g.shapes[out]:
        return "its output has another shape than its input"
    if own.module not in found.identities:
        faults = [fault for r in inner if (fault := _why_branch_stays(found, r)) is not None]
        return (
            f"it does not return its input when its branches are zero, and in them {faults[0]}"
            if faults
            else None
        )
    if any(
        g.users[n] & ~own.own for n in list_nodes(own.own & g.live) if n != out
    ) or own.own & g.outputs & ~(1 << out):
        return "a value inside it is used elsewhere"
    return None if _return_pattern(found, own) is not None else "it returns more than a tensor"


def _why_branch_stays(found: _ResidualGraph, residual: _Residual) -> str | None:
    """Why a branch cannot be replaced by zeros; None if it can."""
    if residual.escapes:
        return "a value inside it is used elsewhere"
    calls = found.largest_calls(residual)
    if not calls:
        return "no module runs"
    covered, g = unite(c.own for c in calls), found.graph
    used = {i for n in list_nodes(residual.inside & ~covered) for i in g.inputs[n]} & g.parameters.keys()
    if used:
        return f"'{g.parameters[min(used)]}' belongs to a module around it"
    if any(_return_pattern(found, c) is None for c in calls):
        return "a module returns more than a tensor"
    return None


def _list_stubs(found: _ResidualGraph, residual: _Residual) -> Iterable[Stub]:
    """Stubs for a branch's modules: the last ones return zeros, those before them pass their input on."""
    calls, g = found.largest_calls(residual), found.graph
    for own in calls:
        behind = unite(g.after[n] for n in list_nodes(own.own & g.live))
        last = not any(behind & other.own for other in calls if other is not own)
        if g.after[residual.shortcut] & own.own or found.params(own.module):
            yield Stub(own.module, last, _return_pattern(found, own) or ())


def _returned_node(own: ModuleCall) -> int | None:
    """The node of the first tensor that a call returned."""
    entries = own.result if isinstance(own.result, tuple) else (own.result,)
    return next((e for e in entries if type(e) is int), None)


def _return_pattern(found: _ResidualGraph, own: ModuleCall) -> tuple[bool, ...] | None:
    """The place of the tensor in what a call returns; None if other tensors that it returns are used too."""
    if type(own.result) is int:
        return ()
    if not isinstance(own.result, tuple) or ... in own.result:
        return None
    out, g = _returned_node(own), found.graph
    others = [e for e in own.result if type(e) is int and e != out]
    if out is None or any(g.users[e] & ~own.own or g.outputs >> e & 1 for e in others):
        return None
    return tuple(i == own.result.index(out) for i in range(len(own.result)))


def _keep_with_parameters(units: Iterable[Branch], model_map: ModelMap) -> Iterator[Branch]:
    """Branches that would remove parameters, one of each name."""
    parameters = {t.name for t in model_map.tensors if t.parameter}
    names: set[str] = set()
    taken = {c.name for c in model_map.coupled}
    for unit in units:
        if unit.name not in names and unit.tensors & parameters:
            names.add(unit.name)
            called = f"{unit.name}#branch" if unit.name in taken else unit.name
            yield replace(unit, group=replace(unit.group, name=called))


def _find_refused(
    found: _ResidualGraph, blocks: Sequence[Branch], units: Sequence[Branch]
) -> Iterator[Branch]:
    """Modules of the classes of removable blocks that must stay, and why."""
    containers = {kind.__name__ for kind in CONTAINERS}
    kinds = {block.type for block in blocks} - containers
    held = {own.module: inner for own, inner in found.blocks()}
    for own in {c.module: c for c in found.graph.calls}.values():
        classes = found.classes(own.module) if own.module else ()
        leaves = any(own.module == b.module or b.holds(own.module) for b in units)
        if kinds.intersection(classes) and not leaves:
            why = _why_block_stays(found, own, held.get(own.module, ())) or "its shortcut is not its input"
            group = Coupled(own.module, 1, (), protected=why)
            yield Branch(group, own.module, classes[0], ancestors=classes[1:])
