"""Fields of labels: of heads and the places in each, of which one side leaves, the other one stays."""

import numpy as np
import torch
from torch import Tensor

from sparsify.graph.trace.axis_labels import varying_dims
from sparsify.graph.trace.channel_groups import ChannelGroups
from sparsify.graph.trace.labels import CREATED, TIED, Ints, Labels
from sparsify.graph.trace.made_labels import MergedPlaces

FLATTENED = "it is flattened together with another dimension"
SHARED = "all heads share it"


def join_or_offer(labels: Labels, aspect: Tensor, other: Tensor, is_summed: bool = False) -> None:
    """Join labels that meet; a vector that meets a field of heads and places is joined with it only on
    the side on which it must leave too.

    is_summed: whether a product sums over the places, as of the queries of all heads with a single key.
    """
    if len(varying_dims(aspect)) < len(varying_dims(other)):
        aspect, other = other, aspect
    along, field = varying_dims(other), varying_dims(aspect)
    if len(field) != 2 or len(along) != 1 or not along < field:
        if aspect is not other:
            labels.join(aspect.numpy(), other.numpy())
        return
    channels, vector = aspect.squeeze().numpy(), other.flatten().numpy()
    if is_summed:
        labels.note_shared_key(channels)
    if along == {max(field)}:
        _offer(labels, channels, None, vector, SHARED if is_summed else TIED, is_summed)
    else:
        _offer(labels, channels, vector, None, TIED, is_summed)


def merge_or_none(labels: Labels, one: Tensor, other: Tensor) -> Tensor | None:
    """Heads and places that come from two tensors, flattened into one dimension: the field of new labels
    that lies along it. None if the two are not that.

    All heads may have the places of a single value (multi-query attention, Shazeer, arXiv:1911.02150): what
    reads the result loses the columns of a head, or those of a place in every head.
    """
    along = varying_dims(one)
    if len(along) != 1 or varying_dims(other) != along:
        return None
    a, b = one.flatten().numpy(), other.flatten().numpy()
    outer, inner = (a, b) if _first_run(a) > _first_run(b) else (b, a)
    length = _first_run(outer)
    if len(outer) % length:
        return None
    heads, places = outer.reshape(-1, length), inner.reshape(-1, length)
    if (heads != heads[:, :1]).any() or (places != places[:1]).any():
        return None
    heads = heads[: _find_period(heads[:, 0])]  # those of one example
    if 1 in heads.shape:
        return None
    axis = labels.add_axis(CREATED, 0, heads.size)
    made = torch.arange(axis.first, axis.first + axis.size)
    field = made.numpy().reshape(heads.shape)
    labels.made.append(MergedPlaces(field, heads[:, 0], places[0]))
    _offer(labels, field, heads[:, 0], places[0], FLATTENED, is_field=True)
    return made.repeat(len(outer) // heads.size).view(one.shape)


def offer_part(labels: Labels, aspect: Tensor, dim: int, reason: str, taken: Tensor | None = None) -> bool:
    """A part is taken of a field, at a fixed place along a dimension: heads or places leave along it where a
    trial cut shows that the part follows them, or along the other one.

    taken: the labels of those that are taken by number, which stay (the key and the value of Falcon, behind
    its queries). False, with nothing done, where it is no field.
    """
    field = varying_dims(aspect)
    if len(field) != 2 or dim not in field:
        return False
    own = aspect.squeeze().numpy()
    number = None if taken is None else taken.flatten().numpy()
    stays = (number, None) if dim == min(field) else (None, number)
    whole, along = [(own, own[:, :1])], [(own, own[:1])]
    labels.note_channel_groups(ChannelGroups(own, whole, along, False, None, stays, reason))
    labels.doubt(own, reason)
    return True


def _first_run(vector: Ints) -> int:
    """How many first entries are equal."""
    (changes,) = np.nonzero(vector != vector[0])
    return int(changes[0]) if len(changes) else len(vector)


def _find_period(vector: Ints) -> int:
    """How many first entries come again and again; all where they do not."""
    (again,) = np.nonzero(vector == vector[0])
    for length in again[1:].tolist():
        if len(vector) % length == 0 and (vector.reshape(-1, length) == vector[:length]).all():
            return int(length)
    return len(vector)


def _offer(
    labels: Labels, field: Ints, heads: Ints | None, places: Ints | None, why_stays: str, is_field: bool
) -> None:
    """Heads of a field [heads, places] leave with these labels, or the places of all heads with those; the
    others stay."""
    whole, along = [(field, field[:, :1])], [(field, field[:1])]
    if heads is not None:
        whole.append((field[:, :1], heads[:, None]))
    if places is not None:
        along.append((field[:1], places[None]))
    own = ChannelGroups(field, whole, along, False, None, (places, heads), why_stays, is_field)
    labels.note_channel_groups(own)
