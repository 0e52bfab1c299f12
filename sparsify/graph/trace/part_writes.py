"""Follow what operators write into a part of a tensor: its labels change for all that see the same memory."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.rule_api import Follower


def follow_write(tracer: Follower, name: str, args: Any) -> None:
    """An operator wrote into a part of a tensor.

    Labels that vary there already are joined with what is written. New labels can no longer be
    followed.
    """
    target = args[0] if args else None
    if not isinstance(target, Tensor) or name in ("zero", "fill") or _owns_storage(target):
        return
    own = tracer.labels_of(target)
    lies = {d for aspect in own.aspects for d in varying_dims(aspect)}
    for value in args[1:]:
        if isinstance(value, Tensor):
            axis_labels = tracer.algebra.join_elementwise(
                own.shape, [tracer.labels_of(value), AxisLabels((1,) * len(own.shape), own.aspects)]
            )
            strange = [aspect for aspect in axis_labels.aspects if not varying_dims(aspect) <= lies]
            if strange and not _label_filled_base(tracer, target, strange):
                reason = f"it is written into a part of another tensor ({name})"
                lost = []
                for aspect in strange:
                    whole = _hold_part(tracer, target, aspect)
                    if not _label_filled_base(tracer, target, [whole]):
                        lost.append(aspect)
                tracer.fix(AxisLabels(own.shape, tuple(lost)), reason)


def _hold_part(tracer: Follower, part: Tensor, aspect: Tensor) -> Tensor:
    """The aspect along those dimensions alone that are whole ones of the tensor that is written into.

    Along the others it fills fixed places, which stay: heads leave, the places of each do not (the keys of
    DeepSeek's attention, written beside their rotated part).
    """
    base = part._base
    if base is None:
        return aspect
    whole, varying = tracer.labels_of(base), varying_dims(aspect)
    fixed = {d for d in varying if len(_find_whole_dims(part, d, base, whole)) != 1}
    return tracer.algebra.tie(aspect, fixed) if varying - fixed else aspect


def follow_write_by_number(tracer: Follower, name: str, target: Tensor, made: AxisLabels | None) -> None:
    """The same for elements that were written into a view by their number."""
    if made is None or _owns_storage(target):
        return
    own = tracer.labels_of(target)
    lies = {d for aspect in own.aspects for d in varying_dims(aspect)}
    strange = [aspect for aspect in made.aspects if not varying_dims(aspect) <= lies]
    if strange and not _label_filled_base(tracer, target, strange):
        tracer.fix(
            AxisLabels(own.shape, tuple(strange)), f"it is written into a part of another tensor ({name})"
        )


def _label_filled_base(tracer: Follower, part: Tensor, aspects: Sequence[Tensor]) -> bool:
    """Label a tensor that was created to be filled part by part: whole dimensions of it get the part's
    labels."""
    base = part._base
    if base is None:
        return False
    whole, made = tracer.labels_of(base), []
    for aspect in aspects:
        places = {d: _find_whole_dims(part, d, base, whole) for d in varying_dims(aspect)}
        if any(len(found) != 1 for found in places.values()):
            return False
        order = sorted(places, key=lambda d: places[d][0])
        rest = [d for d in range(aspect.dim()) if d not in places]
        lengths = {places[d][0]: part.shape[d] for d in order}
        shape = [lengths.get(e, 1) for e in range(base.dim())]
        made.append(aspect.permute(*order, *rest).reshape(shape))
    taken = {d for aspect in made for d in varying_dims(aspect)}
    labels = AxisLabels(
        whole.shape,
        tracer.algebra.merge_aspects([*whole.aspects, *made]),
        whole.parameter,
        frozenset((d, cell) for d, cell in whole.flexible if d not in taken),
    )
    tracer.set_labels(base, labels)
    return True


def _find_whole_dims(part: Tensor, dim: int, base: Tensor, whole: AxisLabels) -> list[int]:
    """Flexible dimensions of the base that a dimension of the part can be: of equal stride and length."""
    flexible = [d for d, _ in whole.flexible]
    return [d for d in flexible if (base.stride(d), base.shape[d]) == (part.stride(dim), part.shape[dim])]


def _owns_storage(target: Tensor) -> bool:
    """Whether a tensor is all of its storage, so that no other tensor holds what is written into it."""
    whole = target.untyped_storage().nbytes() <= target.numel() * target.element_size()
    return whole and target._base is None
