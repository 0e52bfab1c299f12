"""Build a latency model: measure the layers that a network needs, and time the network and cuts of it."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, lcm

import numpy as np
import torch
from torch import nn

from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.cost.latency import tables
from sparsify.cost.latency.layer_benchmark import FAST_QUANTILE, time_layers
from sparsify.cost.latency.layer_geometry import Geometry, read_layers
from sparsify.cost.latency_model import UNIT, LatencyModel, Surface, TimedNetwork, Work, choose_widths
from sparsify.cost.measure.availability import check_target
from sparsify.cost.measure.timing import choose_clock
from sparsify.errors import TargetError
from sparsify.events import Listener, Measuring, silence
from sparsify.forward.calls import Inputs
from sparsify.graph.layer_types import layer_type_of
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery import operations
from sparsify_schemas.table import Network, Steps, Table
from sparsify_schemas.target import Target

CALIBRATION_SHARES = (0.75, 0.5, 0.3, 0.6, 0.2, 0.9, 0.4, 0.25)
"""shares of each width, give or take a quarter, that the cut networks for calibration keep"""
_TOGETHER = 4
"""layers that are timed interleaved; the table is saved after each such batch"""
_SECONDS = 0.4
"""time spent on each whole network"""
_LIKE_DENSE = 8

NeededWidths = dict[str, set[tuple[int, int]]]


def build_latency_model(
    name: str,
    target: Target,
    model: nn.Module,
    model_map: ModelMap,
    inputs: Inputs,
    listener: Listener = silence,
) -> LatencyModel:
    """Build the latency model of a network on a target. Missing table entries are measured first, and
    saved.

    Raises TargetError (the target is not available, or its table is damaged, of another machine, or lacks
    a layer) and ModelError.
    """
    check_target(name, target)
    table = tables.read_table(name, target)
    steps = tables.width_steps(table)
    works, geometries = note_leaving_groups(*read_layers(model, inputs, target.batch), model_map)
    wanted = list_needed_widths(works, model_map, steps)
    table = extend_table(name, target, table, geometries, wanted, listener)
    bare = LatencyModel(
        name, works, build_surfaces(works, table, steps), steps, measured=target.table is None
    )
    if target.table is not None or any(p.is_meta for p in model.parameters()):
        return bare
    digest = network_digest(works, model_map)
    found = table.networks.get(digest, ())
    if not found:
        found = tuple(_time_networks(name, target, model, model_map, inputs, steps, listener))
        tables.write_table(
            table.model_copy(update={"networks": {**table.networks, digest: found}}),
            tables.table_path(target),
        )
    return calibrate_table(bare, model_map, found)


def read_width_steps(targets: Mapping[str, Target]) -> dict[str, Steps]:
    """The width steps of each target: measured, or expected from its vector instructions. Raises
    TargetError."""
    return {name: tables.width_steps(tables.read_table(name, target)) for name, target in targets.items()}


def calibrate_table(bare: LatencyModel, model_map: ModelMap, networks: Iterable[Network]) -> LatencyModel:
    """The latency model, corrected by networks that were timed whole."""
    shapes = Costs(model_map).shapes
    of = {c.name: c.width for c in model_map.coupled}
    timed_whole = []
    for network in networks:
        gone = {group: range(kept, of[group]) for group, kept in network.kept.items()}
        timed_whole.append(TimedNetwork(bare.sums(shapes(gone)), network.ms))
    return replace(bare, networks=tuple(timed_whole), seen=())


def build_surfaces(works: Iterable[Work], table: Table, steps: Steps) -> dict[tuple[str, int, int], Surface]:
    """The cost of each layer by its widths."""
    found = {}
    for w in works:
        if w.kind != "other":
            points = tuple(p for p in table.layers.get(w.key, ()) if p[0] <= w.inputs and p[1] <= w.outputs)
            found[w.key, w.inputs, w.outputs] = Surface(
                points,
                (w.inputs, w.outputs),
                (1, 1) if w.kind == "linear" else (steps.inputs, steps.convolution),
            )
    return found


def note_leaving_groups(
    works: Iterable[Work], geometries: Mapping[str, Geometry], model_map: ModelMap
) -> tuple[tuple[Work, ...], dict[str, Geometry]]:
    """The layers, where those that can lose whole groups have as many groups as their width says."""
    counts = {part.tensor for group in model_map.coupled for part in group.slices if part.role == "size"}
    found, known = [], dict(geometries)
    for work in works:
        if work.groups > 1 and f"{work.tensor.removesuffix('.weight')}:groups" in counts:
            geometry = replace(geometries[work.key], group_inputs=work.inputs // work.groups)
            work = replace(work, key=geometry.key, group_outputs=work.outputs // work.groups)
            known[geometry.key] = geometry
        found.append(work)
    return tuple(found), known


def list_needed_widths(works: Iterable[Work], model_map: ModelMap, steps: Steps) -> NeededWidths:
    """For each layer the widths that must be measured: a grid, and points off the multiples of four."""
    open_dims = {(s.tensor, s.dim) for c in model_map.coupled if c.protected is None for s in c.slices}
    wanted: NeededWidths = {}
    for w in works:
        if w.kind != "other":
            wanted.setdefault(w.key, set()).update(_list_points(w, open_dims, steps))
    return wanted


def _list_points(work: Work, open_dims: set[tuple[str, int]], steps: Steps) -> Iterator[tuple[int, int]]:
    step = steps.linear if work.kind == "linear" else steps.convolution
    first, second = (work.tensor, 0) in open_dims, (work.tensor, 1) in open_dims
    ins, outs = (first, second) if work.transposed else (second, first)
    if work.kind == "depthwise":
        yield from ((width, width) for width in choose_widths(work.outputs, step, first))
        odd = _unaligned_width(work.outputs, first)
        yield from ((odd, odd),) if odd else ()
        return
    if work.group_outputs:
        outputs = choose_widths(work.outputs, lcm(step, work.group_outputs), first)
        yield from ((width * work.inputs // work.outputs, width) for width in outputs)
        return
    # all groups of a grouped convolution stay, so their channels leave in equal numbers
    inputs = choose_widths(work.inputs, max(step, work.groups), ins)
    outputs = choose_widths(work.outputs, max(step, work.groups), outs)
    both = itertools.zip_longest(reversed(inputs), reversed(outputs), fillvalue=0)
    diagonal = {(i or inputs[0], o or outputs[0]) for i, o in both}
    across_inputs = {(width, work.outputs) for width in inputs}
    cross = across_inputs | {(work.inputs, width) for width in outputs}
    yield from sorted((i, o) for i, o in diagonal | cross if i % work.groups == 0 and o % work.groups == 0)
    if work.groups == 1:
        i, o = _unaligned_width(work.inputs, ins), _unaligned_width(work.outputs, outs)
        even_in, even_out = _next_aligned(i, work.inputs), _next_aligned(o, work.outputs)
        yield from [(a, b) for a, b in ((i, even_out), (even_in, o), (i, o)) if a and b]


def _next_aligned(odd: int | None, dense: int) -> int:
    """The next multiple of four above a width; the dense width without one."""
    return dense if odd is None else min(dense, ceil(odd / UNIT) * UNIT)


def _unaligned_width(dense: int, cuttable: bool) -> int | None:
    """A width near the middle that is no multiple of four."""
    middle = round(dense * 0.6) // UNIT * UNIT
    return middle - 1 if cuttable and middle > UNIT else None


def extend_table(
    name: str,
    target: Target,
    table: Table,
    geometries: Mapping[str, Geometry],
    wanted: NeededWidths,
    listener: Listener,
) -> Table:
    """Add missing widths of every layer to the table, and save it after each batch of layers.

    Raises TargetError if the table is of another machine and lacks a layer.
    """
    have = {}
    for key, points in table.layers.items():
        have[key] = {point[:2] for point in points}
    if target.table is not None:
        lacking = [key for key, widths in wanted.items() if not covers_widths(have.get(key, set()), widths)]
        if lacking:
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            raise TargetError(
                f"target '{name}': {target.table} has no '{lacking[0]}'{more}; "
                "measure the network's layers on that machine: "
                f"sparsify targets measure {name} RECIPE MODEL --out {target.table}"
            )
        return table
    missing = [
        (key, *widths) for key, found in wanted.items() for widths in sorted(found - have.get(key, set()))
    ]
    for start in range(0, len(missing), _TOGETHER):
        listener(Measuring(f"timing layers on {name}", start, len(missing)))
        handful = missing[start : start + _TOGETHER]
        ms = time_layers([(geometries[key], i, o) for key, i, o in handful], target)
        layers = dict(table.layers)
        for (key, i, o), value in zip(handful, ms, strict=True):
            layers[key] = tables.merge_points(layers.get(key, ()), ((i, o, value),))
        table = table.model_copy(update={"layers": layers})
        tables.write_table(table, tables.table_path(target))
    if missing:
        listener(Measuring(f"timing layers on {name}", len(missing), len(missing)))
    return table


def covers_widths(have: set[tuple[int, int]], wanted: set[tuple[int, int]]) -> bool:
    """Whether a table from another machine covers the widths.

    It must reach as far as the dense layer and have two points; it need not have the exact widths.
    """
    if not have:
        return False
    if len(wanted) > 1 and len(have) == 1:
        return False
    reaches_inputs = _find_largest(have, 0) >= _find_largest(wanted, 0)
    reaches_outputs = _find_largest(have, 1) >= _find_largest(wanted, 1)
    return reaches_inputs and reaches_outputs


def _find_largest(points: Iterable[Sequence[int]], side: int) -> int:
    """The largest width of one side: 0 for inputs, 1 for outputs."""
    return max(point[side] for point in points)


def network_digest(works: Sequence[Work], model_map: ModelMap) -> str:
    """Digest of what is timed: the layers with their widths, and how they are coupled."""
    text = repr((works, [(c.name, c.width, c.protected is None) for c in model_map.coupled]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _time_networks(
    name: str,
    target: Target,
    model: nn.Module,
    model_map: ModelMap,
    inputs: Inputs,
    steps: Steps,
    listener: Listener,
) -> Iterator[Network]:
    """Time the dense network and cuts of it, interleaved.

    A cut's milliseconds are its median share of the dense time, times the fast quantile of the dense
    network.
    """
    keeps: list[dict[str, int]] = [{}, *draw_widths(model_map, steps, CALIBRATION_SHARES)]
    what = f"timing {len(keeps)} whole networks on {name}"
    listener(Measuring(what, 0, len(keeps)))
    dense = measure.copy_model(model).cpu().eval()
    with torch.random.fork_rng(devices=[]):
        models = [dense, *(cut_to_widths(dense, model_map, kept) for kept in keeps[1:])]
        rounds = measure.time_models(
            models,
            inputs,
            name,
            target,
            seconds=_SECONDS * len(models),
            rng=np.random.default_rng(0),
            now=choose_clock(target),
        )
    listener(Measuring(what, len(keeps), len(keeps)))
    whole = float(np.quantile(rounds[:, 0], FAST_QUANTILE)) * 1e3
    for kept, part in zip(keeps, np.median(rounds / rounds[:, :1], axis=0), strict=True):
        yield Network(kept=kept, ms=float(part) * whole)


def cut_to_widths(model: nn.Module, model_map: ModelMap, kept: Mapping[str, int]) -> nn.Module:
    """A copy with the first units of each group: which units are kept does not change its speed."""
    return operations.cut(
        model, model_map, {name: list(range(count)) for name, count in kept.items()}, "timing"
    )[0]


def draw_widths(
    model_map: ModelMap, steps: Steps | None, shares: Iterable[float], seed: int = 0, spread: float = 0.25
) -> Iterator[dict[str, int]]:
    """Coupled group -> kept units: random shares around `shares`, in whole steps if those are given."""
    rng = np.random.default_rng(seed)
    linear = {layer.name for layer in model_map.layers if layer_type_of(layer.kind).timed == "linear"}
    for share in shares:
        kept = {}
        for c in model_map.coupled:
            if c.protected is None:
                step = 1
                if steps is not None and c.width >= _LIKE_DENSE:
                    step = steps.linear if c.name in linear else steps.convolution
                wish = c.width * float(np.clip(share + rng.uniform(-spread, spread), 0.08, 1.0))
                kept[c.name] = max(1, min(c.width, ceil(wish / step) * step))
        yield kept
