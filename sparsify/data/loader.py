"""Batches of examples: whole batches are indexed, converted and augmented at once."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from sparsify.data.boxes import holds_boxes, mirror, move_boxes, shift
from sparsify.data.columns import IGNORED, Varied, first_of, leaves, map_leaves
from sparsify.data.examples import Examples
from sparsify.data.targets import describe, holds_pixels
from sparsify.data.transforms import ChangeImage, make_transforms, transform_examples
from sparsify.errors import DataError
from sparsify_schemas.data import Augment

Batch = tuple[Any, Any]
"""(inputs, targets): tensors [N, ...], or mappings, tuples and lists of these"""
_NONE = Augment()


def batches(
    examples: Examples, size: int, *, seed: int | None = None, augment: Augment = _NONE
) -> DataLoader[Batch]:
    """A loader of (x, y) batches; the last one may be smaller, no example is dropped.

    A seed shuffles and augments, None gives the examples in order as they are. The same seed gives the same
    batches to the last bit, each time the loader is iterated and with any number of workers; use another
    seed for each epoch. torch's global random state is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    order = (
        torch.arange(len(examples)) if seed is None else torch.randperm(len(examples), generator=generator)
    )
    moves = seed is not None and (augment.flip or augment.crop > 0)
    changes = _Changes.draw(len(examples), augment, generator) if moves else None
    is_transformed = seed is not None and augment.transforms
    transforms = make_transforms(augment.transforms) if is_transformed else None
    chunks = _Chunks(order, size)
    workers = min(examples.workers, len(chunks))
    return DataLoader(
        _Stacked(examples, changes, transforms, seed or 0),
        batch_sampler=chunks,
        collate_fn=_same,
        generator=generator,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=examples.pin and torch.accelerator.is_available(),
    )


_MARK = "\x1f"
"""around a message on its way out of a worker"""


class _WorkerError(DataError):
    """A DataError of a worker, which torch raises again in the main process with a traceback in its text."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if get_worker_info() is not None else text.split(_MARK)[1]


def _same(batch: Any) -> Any:
    return batch


@dataclass(frozen=True, eq=False)
class _Changes:
    """Which change each example gets in this epoch.

    Drawn for all of them at once, so it does not matter in which
    order, or in which process, batches are made."""

    pad: int
    flips: Tensor | None
    down: Tensor | None
    right: Tensor | None

    @staticmethod
    def draw(count: int, augment: Augment, generator: torch.Generator) -> "_Changes":
        def below(limit: int) -> Tensor:
            return torch.randint(limit, (count,), generator=generator)

        flips = below(2).bool() if augment.flip else None
        down, right = (
            (below(2 * augment.crop + 1), below(2 * augment.crop + 1)) if augment.crop else (None, None)
        )
        return _Changes(augment.crop, flips, down, right)

    def apply(self, x: Tensor, at: Tensor, filler: float = 0) -> Tensor:
        if self.flips is not None:
            x = torch.where(self.flips[at].view(-1, 1, 1, 1), x.flip(-1), x)
        if self.down is not None and self.right is not None:
            windows = (
                F.pad(x, (self.pad,) * 4, value=filler).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
            )
            x = windows[torch.arange(len(x)), :, self.down[at], self.right[at]]
        return x

    def apply_to_boxes(self, boxes: Tensor, at: int, width: int) -> Tensor:
        """Boxes [objects, 4] of example `at`, whose image `apply` changes."""
        if self.flips is not None and bool(self.flips[at]):
            boxes = mirror(boxes, width)
        if self.down is not None and self.right is not None:
            boxes = shift(boxes, self.pad - int(self.right[at]), self.pad - int(self.down[at]))
        return boxes


class _Stacked(Dataset[Batch]):
    """Examples by the batch."""

    def __init__(
        self, examples: Examples, changes: _Changes | None, transforms: ChangeImage | None, seed: int
    ) -> None:
        self.examples, self.changes, self.transforms, self.seed = examples, changes, transforms, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.__getitems__([index])
        return first_of(x), first_of(y)

    def __getitems__(self, indices: list[int]) -> Batch:
        try:
            return self._make_batch(torch.tensor(indices, dtype=torch.int64))
        except DataError as error:
            raise error if get_worker_info() is None else _WorkerError(f"{_MARK}{error}{_MARK}") from None

    def _make_batch(self, at: Tensor) -> Batch:
        chosen = self.examples[at].loaded(self.seed)
        if self.transforms is not None or self.changes is not None:
            _check_images(chosen.inputs)
        if self.changes is not None:
            changed = self.changes.apply(chosen.inputs, at)
            chosen = replace(chosen, inputs=changed, targets=self._move_targets(chosen, at))
        if self.transforms is not None:
            # Not the seed itself, by which a Dataset that is read lazily has drawn its own numbers.
            chosen = transform_examples(chosen, self.transforms, at.tolist(), self.seed + 1)
        return chosen.batch()

    def _move_targets(self, chosen: Examples, at: Tensor) -> Any:
        """Targets with a number for each pixel, and boxes, move with the pixels; the border counts for
        nothing."""
        changes, size = self.changes, chosen.inputs.shape[-2:]
        targets = chosen.targets
        if changes is not None and holds_boxes(targets):
            numbers = at.tolist()
            targets = move_boxes(
                targets,
                lambda boxes, place: changes.apply_to_boxes(boxes, numbers[place], size[1]),
                (size[0], size[1]),
            )

        def move(leaf: Tensor | Varied) -> Tensor | Varied:
            if changes is None or not holds_pixels(leaf, size):
                return leaf
            by_channel = leaf.reshape(len(leaf), -1, *size)
            filler = 0 if leaf.is_floating_point() or leaf.dtype == torch.bool else IGNORED
            return changes.apply(by_channel, at, filler).view(leaf.shape)

        return map_leaves(targets, move)


def _check_images(inputs: Any) -> None:
    """Raises DataError where a batch that is read lazily holds no images of one size."""
    if isinstance(inputs, Tensor) and inputs.dim() == 4:
        return
    items = [item for leaf in leaves(inputs) for item in (leaf.items if isinstance(leaf, Varied) else leaf)]
    shapes = ", ".join(sorted({describe(item) for item in items})[:3])
    raise DataError(
        "data.augment changes images (channels, height, width) of one size, and the examples of a batch are "
        f"{shapes}; give all of them one size, or leave data.augment out"
    )


class _Chunks(Sampler[list[int]]):
    """A fixed order in chunks.

    The two attributes are those that a BatchSampler has: accelerate shards by them.
    """

    drop_last = False

    def __init__(self, order: Tensor, size: int) -> None:
        self.order, self.batch_size = order, size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.order), self.batch_size):
            yield self.order[start : start + self.batch_size].tolist()
