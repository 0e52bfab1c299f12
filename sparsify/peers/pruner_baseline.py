"""A model cut by a pruner of torch-pruning at a given cost, rebuilt here and checked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from torch import nn

from sparsify.errors import RunError, first_line
from sparsify.forward.calls import Inputs
from sparsify.graph.layer_types import layer_type
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.graph.names import canonical_names
from sparsify.graph.surgery.operations import to_ranges
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.peers.channel_groups import list_entries
from sparsify.peers.check_cut import check_cut
from sparsify.peers.limited_process import PeerError, ask_process
from sparsify.peers.requests import CutRequest, Limits
from sparsify_schemas.cuts import Cuts, Narrow, SetAttribute, Width
from sparsify_schemas.report import Verdict

_OPERATIONS = TypeAdapter(tuple[Narrow | SetAttribute, ...])
_OUTPUTS = ("it feeds the network's output", "its rows are looked up by number")
"""how a map says that a group's channels are the model's outputs; the latter of a tied embedding"""


@dataclass(frozen=True)
class PeerCut:
    """What torch-pruning made of a dense model."""

    model: nn.Module
    log: Cuts
    verdict: Verdict
    ratio: float
    """of channels, that its pruner was asked to remove"""


def cut_by_peer(
    dense: nn.Module,
    map: ModelMap,
    request: CutRequest,
    limits: Limits,
    plan: str,
    fresh: Sequence[Inputs],
) -> PeerCut:
    """Ask the process for a cut, rebuild it from its log, and check it on fresh inputs. Raises PeerError.

    plan: digest that the log names.
    """
    answer = ask_process(request, limits)
    try:
        operations = _OPERATIONS.validate_python(answer["operations"])
        widths = tuple(_list_widths(map, operations))
        log = Cuts(plan=plan, widths=widths, operations=operations)
        model = replay_cuts(dense, log)
    except (ValidationError, RunError, RuntimeError) as error:
        raise PeerError(f"raised: its cut cannot be rebuilt: {first_line(error)}") from error
    verdict = check_cut(dense, model, log, fresh)
    return PeerCut(model, log, verdict, float(answer["ratio"]))


def list_ignored(model: nn.Module, map: ModelMap, prunable: Iterable[str]) -> tuple[str, ...]:
    """Convolutions and Linear layers whose outputs stay: those of the model, and what no rule reaches."""
    outputs = set(_list_output_layers(model, map))
    allowed = set(prunable) - outputs
    found = []
    for name, module in model.named_modules():
        is_layer = layer_type(module).timed in ("convolution", "linear")
        if is_layer and name not in allowed:
            found.append(name)
    return tuple(found)


def _list_output_layers(model: nn.Module, map: ModelMap) -> Iterator[str]:
    held = {
        (part.tensor, part.dim)
        for group in map.coupled
        if (group.protected or "").startswith(_OUTPUTS)
        for part in group.slices
        if part.role == "out"
    }
    names = canonical_names(model)
    for name, module in model.named_modules():
        if (names.get(f"{name}.weight"), layer_type(module).outputs) in held:
            yield name


def _list_widths(map: ModelMap, operations: Sequence[Narrow | SetAttribute]) -> Iterator[Width]:
    """What each coupled group keeps, where every slice of it lost the same units."""
    kept = {(op.tensor, op.dim): op for op in operations if isinstance(op, Narrow)}
    for group in map.coupled:
        units = _find_kept_units(group, kept)
        if units is not None and len(units) < group.width:
            yield Width(group=group.name, width=group.width, keep=to_ranges(sorted(units)))


def _find_kept_units(group: Coupled, kept: Mapping[tuple[str, int], Narrow]) -> set[int] | None:
    """The units that stay; None where the slices do not agree, or some unit stays in part."""
    found: set[int] | None = None
    for part in group.slices:
        if part.role == "size":
            continue
        stays: set[int] = set()
        leaves: set[int] = set()
        op = kept.get((part.tensor, part.dim))
        indices = None if op is None else _list_kept(op)
        for index, unit in list_entries(part):
            (stays if indices is None or index in indices else leaves).add(unit)
        if stays & leaves or (found is not None and found != stays):
            return None
        found = stays
    return found


def _list_kept(op: Narrow) -> set[int]:
    return {index for start, end in op.keep for index in range(start, end)}
