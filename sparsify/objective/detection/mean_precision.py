"""Mean average precision of a detector, as the COCO evaluation defines it."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sparsify.errors import DataError
from sparsify.objective.detection.boxes import areas, keep_apart, objects_of, read_maps

_CANDIDATES = 300
"""boxes of an image that are compared with each other at most"""


class MeanAveragePrecision:
    """Precision averaged over recall, classes and overlaps: `map` over overlaps of 0.5 to 0.95, `map_50` at
    0.5.

    Computed by pycocotools, which torchmetrics' metric of this name calls as well; that one is not used,
    since it needs torchvision.

    Args:
        score: Boxes below this score are left out.
        overlap: Of two boxes of a class that overlap by more than this, the one with the lower score goes.
        most: Boxes of an image at most.

    Raises:
        DataError: pycocotools is not installed.
    """

    def __init__(self, score: float = 0.01, overlap: float = 0.6, most: int = 100) -> None:
        _coco()
        self._score, self._overlap, self._most = score, overlap, most
        self._found: list[dict[str, Any]] = []
        self._true: list[dict[str, Any]] = []
        self._images = 0

    def update(self, outputs: Sequence[Tensor], targets: Any) -> None:
        """outputs: maps of a detector; targets: for each image, its `boxes` and `labels`."""
        found = find_boxes(outputs, self._score, self._overlap, self._most)
        for one, (boxes, labels) in zip(found, objects_of(targets), strict=True):
            self._images += 1
            self._found += [
                {**_entry(self._images, box, label), "score": float(score)}
                for box, score, label in zip(*one, strict=True)
            ]
            for box, label in zip(boxes, labels, strict=True):
                entry = _entry(self._images, box, label)
                number = len(self._true) + 1
                self._true.append({**entry, "id": number, "area": float(areas(box)), "iscrowd": 0})

    def compute(self) -> dict[str, float]:
        """nan without objects, 0 where no box was found."""
        if not self._true:
            return {"map": float("nan"), "map_50": float("nan")}
        if not self._found:
            return {"map": 0.0, "map_50": 0.0}
        labels = sorted({entry["category_id"] for entry in self._true})
        precision = _measure(self._true, self._found, self._images, labels, self._most)
        return {"map": _mean(precision), "map_50": _mean(precision[0])}


def find_boxes(
    outputs: Sequence[Tensor], score: float = 0.25, overlap: float = 0.6, most: int = 100
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(boxes [K, 4] in pixels, scores [K], labels [K]) of each image, the best first.

    outputs: maps of a detector; score: the least that is wanted; overlap, most: as `MeanAveragePrecision`
    takes them.
    """
    predictions = read_maps(outputs)
    boxes, scores = predictions.boxes, predictions.scores.sigmoid()
    found = []
    for place in range(len(boxes)):
        best = scores[place].flatten().topk(min(_CANDIDATES, scores[place].numel()))
        enough = best.values >= score
        cells, labels = (
            part[enough] for part in (best.indices // scores.shape[2], best.indices % scores.shape[2])
        )
        values, chosen = best.values[enough], boxes[place, cells]
        kept = keep_apart(chosen, values, labels, overlap, most)
        found.append((chosen[kept], values[kept], labels[kept]))
    return found


def _entry(image: int, box: Tensor, label: Tensor) -> dict[str, Any]:
    """A box in the form of COCO: x, y, width, height; classes are numbered from 1."""
    x1, y1, x2, y2 = box.tolist()
    return {"image_id": image, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def _measure(
    true: list[dict[str, Any]], found: list[dict[str, Any]], images: int, labels: list[int], most: int
) -> np.ndarray[Any, Any]:
    """Precision [overlaps, recalls, classes], -1 where a class has no object."""
    coco, evaluation = _coco()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        wanted = coco()
        wanted.dataset = {
            "info": {},
            "images": [{"id": number + 1} for number in range(images)],
            "categories": [{"id": label} for label in labels],
            "annotations": true,
        }
        wanted.createIndex()
        ran = evaluation(wanted, wanted.loadRes(found), "bbox")
        ran.params.areaRng, ran.params.areaRngLbl = [[0, math.inf]], ["all"]
        ran.params.maxDets = [most]
        ran.evaluate()
        ran.accumulate()
    precision: np.ndarray[Any, Any] = ran.eval["precision"][:, :, :, 0, 0]
    return precision


def _mean(precision: np.ndarray[Any, Any]) -> float:
    return float(precision[precision > -1].mean())


def _coco() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(
            f"mean average precision needs pycocotools ({error}): pip install 'sparsify-recipes[detection]'"
        ) from error
    return COCO, COCOeval
