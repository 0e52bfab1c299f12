"""Which units of the dense model stayed: rows of a cut model's tensors are matched with the dense ones."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.model_map import Coupled, ModelMap, Slice, Span
from sparsify.graph.trace.labels import Ints

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Match:
    """The units of one coupled group that a cut model kept."""

    units: tuple[int, ...]
    """in the order in which the file has them"""
    exact: bool
    """whether rows of a tensor are equal bit for bit; else the likest rows were taken, in their order"""
    distance: float = 0.0
    """of rows matched by likeness: the root of the squared distance over the squared length, of the tensor
    that is farthest; single numbers for each unit, as a norm has them, count only where there is nothing
    else"""


def match_units(
    model_map: ModelMap, widths: Mapping[str, int], dense: State, found: State
) -> dict[str, Match]:
    """Find the units that stayed, for each group that lost some.

    Rows of a group's tensors are compared where the tensor's other dimensions are whole or known already, so
    that known groups make further ones known. A tensor whose rows all stand in the dense one, each once,
    decides exactly, whatever their order. Where none does, as after training, rows are matched by likeness
    in ascending order: the sum of squared distances is the least of all ascending choices (dynamic
    programming over units and places).

    Args:
        model_map: Of the dense model.
        widths: Coupled group -> units kept, of `infer_widths`.
        dense: The dense model's tensors by name.
        found: The cut model's tensors by the same names.

    Returns:
        Coupled group -> the units that stayed.
    """
    search = _Search(model_map, widths, dense, found)
    known: dict[str, Match] = {}
    waiting = [group for group in model_map.coupled if group.name in widths]
    while waiting:
        exact = {group.name: match for group in waiting if (match := search.match_exactly(group, known))}
        if not exact:
            name, match = search.match_likest(waiting, known)
            exact = {name: match}
        known |= exact
        waiting = [group for group in waiting if group.name not in exact]
    return known


def sort_tensors(
    model_map: ModelMap, matches: Mapping[str, Match], dense: State, found: State
) -> dict[str, Tensor]:
    """The found tensors with the units of each group in the order of the dense model."""
    widths = {name: len(match.units) for name, match in matches.items()}
    search = _Search(model_map, widths, dense, found)
    ordered = dict(found)
    for tensor, dim in model_map.slices_at:
        kept = search.find_kept(tensor, dim, matches) if tensor in ordered else None
        if kept is not None and (np.diff(kept) < 0).any():
            ordered[tensor] = ordered[tensor].index_select(dim, torch.from_numpy(np.argsort(kept)))
    return ordered


def find_strays(
    model_map: ModelMap, matches: Mapping[str, Match], dense: State, found: State
) -> dict[str, str]:
    """Tensors that hold other units of the dense model than the layers they are coupled with.

    Such a model was cut apart: it computes something else than the dense model without these units.

    Returns:
        Tensor -> the coupled group whose units it should hold.
    """
    widths = {name: len(match.units) for name, match in matches.items()}
    search = _Search(model_map, widths, dense, found)
    strays = {}
    for group in model_map.coupled:
        for rows in search.list_rows(group, matches) if group.name in matches else ():
            stayed = rows.dense[list(matches[group.name].units)].to(rows.found.dtype)
            if not torch.equal(stayed, rows.found) and _find_equal_rows(rows) is not None:
                strays[rows.tensor] = group.name
    return strays


@dataclass(frozen=True)
class _Rows:
    """The dense rows of all units of a group and the found rows of those that stayed, in one tensor."""

    tensor: str
    dense: Tensor
    """[width, features]"""
    found: Tensor
    """[kept, features]"""


class _Search:
    def __init__(self, model_map: ModelMap, widths: Mapping[str, int], dense: State, found: State) -> None:
        self.model_map, self.widths, self.dense, self.found = model_map, widths, dense, found

    def match_exactly(self, group: Coupled, known: Mapping[str, Match]) -> Match | None:
        for rows in self.list_rows(group, known):
            units = _find_equal_rows(rows)
            if units is not None:
                return Match(units, exact=True)
        return None

    def match_likest(self, groups: Sequence[Coupled], known: Mapping[str, Match]) -> tuple[str, Match]:
        """The group whose rows fit best, and its units: it is the surest that is left."""
        best: tuple[float, str, Match] | None = None
        for group in groups:
            rows = list(self.list_rows(group, known))
            if not rows:
                continue
            units, distance = _align_rows(rows)
            if best is None or distance < best[0]:
                best = distance, group.name, Match(units, distance == 0, distance)
        if best is None:  # nothing to compare by: the first units stand for those that stayed
            first = groups[0]
            return first.name, Match(tuple(range(self.widths[first.name])), exact=False, distance=1.0)
        return best[1], best[2]

    def list_rows(self, group: Coupled, known: Mapping[str, Match]) -> Iterator[_Rows]:
        """The rows of each tensor of a group whose other dimensions are whole or known."""
        for part in group.slices:
            if part.role not in ("in", "out") or part.tensor not in self.found:
                continue
            rows = self._read_rows(group, part, known)
            if rows is not None and rows.dense.shape[1]:
                yield rows

    def _read_rows(self, group: Coupled, part: Slice, known: Mapping[str, Match]) -> _Rows | None:
        dense, found = self.dense[part.tensor].detach(), self.found[part.tensor].detach()
        for dim in range(dense.dim()):
            if dim == part.dim or dense.shape[dim] == found.shape[dim]:
                continue
            kept = self.find_kept(part.tensor, dim, known)
            if kept is None:
                return None
            dense = dense.index_select(dim, torch.from_numpy(kept))
        places = self._find_places(group, part)
        if places is None or any(
            d != part.dim and dense.shape[d] != found.shape[d] for d in range(dense.dim())
        ):
            return None
        of_units, of_kept = places
        dense = dense.movedim(part.dim, 0)[torch.from_numpy(of_units)]
        found = found.movedim(part.dim, 0)[torch.from_numpy(of_kept)]
        return _Rows(part.tensor, dense.flatten(1), found.flatten(1))

    def find_kept(self, tensor: str, dim: int, known: Mapping[str, Match]) -> Ints | None:
        """Dense indices of a dimension in the order in which the file has them; None where a group in it is
        not known."""
        there = self.model_map.slices_at.get((tensor, dim), [])
        if any(group.name in self.widths and group.name not in known for group, _ in there):
            return None
        indices: list[Ints] = []
        at = 0
        for group, span in _list_spans(there):
            indices.append(np.arange(at, span.start))
            stay = known[group.name].units if group.name in known else range(group.width)
            own = np.asarray([u for u in stay if span.unit <= u < span.unit + span.units], np.int64)
            firsts = span.start + (own - span.unit) * span.repeat
            indices.append((firsts[:, None] + np.arange(span.repeat)).ravel())
            at = span.start + span.units * span.repeat
        indices.append(np.arange(at, self.dense[tensor].shape[dim]))
        return np.concatenate(indices)

    def _find_places(self, group: Coupled, part: Slice) -> tuple[Ints, Ints] | None:
        """([width, held] dense indices of each unit, [kept, held] indices in the file); None where the
        file's order does not tell them."""
        of_units: list[Ints] = []
        of_kept: list[Ints] = []
        at = found = 0
        for owner, span in _list_spans(self.model_map.slices_at[part.tensor, part.dim]):
            found += span.start - at
            at = span.start + span.units * span.repeat
            if span.units != owner.width:
                if owner.name in self.widths:
                    return None
                kept = span.units
            else:
                kept = self.widths.get(owner.name, owner.width)
            if owner.name == group.name:
                held = np.arange(span.repeat)
                of_units.append(span.start + np.arange(span.units)[:, None] * span.repeat + held)
                of_kept.append(found + np.arange(kept)[:, None] * span.repeat + held)
            found += kept * span.repeat
        return np.concatenate(of_units, 1), np.concatenate(of_kept, 1)


def _list_spans(there: Sequence[tuple[Coupled, Slice]]) -> list[tuple[Coupled, Span]]:
    spans = [(group, span) for group, part in there for span in part.spans]
    return sorted(spans, key=lambda entry: entry[1].start)


def _find_equal_rows(rows: _Rows) -> tuple[int, ...] | None:
    """The dense row of each found one; None where one stands there never, or where equal rows leave open
    which of them stayed."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for unit, row in enumerate(_to_bytes(rows.dense.to(rows.found.dtype))):  # a file may be of less precision
        places[row].append(unit)
    wanted = _to_bytes(rows.found)
    if any(len(places.get(row, ())) != count for row, count in Counter(wanted).items()):
        return None
    taken: Counter[bytes] = Counter()
    units = []
    for row in wanted:
        units.append(places[row][taken[row]])
        taken[row] += 1
    return tuple(units)


def _to_bytes(rows: Tensor) -> list[bytes]:
    flat = rows.detach().cpu().contiguous()
    whole = flat.view(torch.uint8) if flat.element_size() > 1 else flat
    return [row.numpy().tobytes() for row in whole]


def _align_rows(parts: Sequence[_Rows]) -> tuple[tuple[int, ...], float]:
    """The ascending choice of dense rows with the least sum of squared distances to the found ones, each
    tensor's over its own length, and the distance of the farthest tensor."""
    width, kept = len(parts[0].dense), len(parts[0].found)
    total = torch.zeros(kept, width, dtype=torch.float64)
    for rows in parts:
        dense, found = rows.dense.double(), rows.found.double()
        scale = float(found.square().sum()) or 1.0
        total += torch.cdist(found, dense, compute_mode="donot_use_mm_for_euclid_dist").square() / scale
    cost = total.numpy() / len(parts)
    best = np.full((kept + 1, width + 1), np.inf)
    best[0] = 0.0
    for place in range(1, kept + 1):
        taken = best[place - 1, :-1] + cost[place - 1]
        best[place, 1:] = np.minimum.accumulate(taken)
    units: list[int] = []
    column = width
    for place in range(kept, 0, -1):
        while column > 1 and best[place, column - 1] == best[place, column]:
            column -= 1
        units.append(column - 1)
        column -= 1
    chosen = tuple(reversed(units))
    wide = [rows for rows in parts if rows.dense.shape[1] > 1] or parts
    return chosen, max(measure_distance(rows.dense[list(chosen)], rows.found) for rows in wide)


def measure_distance(dense: Tensor, found: Tensor) -> float:
    """|dense - found| / |found|, in the norm of all elements."""
    apart = float((dense.double() - found.double()).norm())
    return apart / (float(found.double().norm()) or 1.0)
