"""Boxes, assignment, loss and mean average precision of detectors, against values worked out by hand."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify.errors import DataError
from sparsify.models.detectors import BINS, STRIDES, detector
from sparsify.objective.detection.assignment import CELLS, assign
from sparsify.objective.detection.boxes import (
    Predictions,
    complete_overlap,
    distance_losses,
    keep_apart,
    objects_of,
    overlap,
    read_maps,
)
from sparsify.objective.detection.loss import detection_loss
from sparsify.objective.detection.mean_precision import MeanAveragePrecision, find_boxes

CLASSES = 3
SIZE = 32
SILENT = -20.0
"""logit of a class that is not there"""


def silent_maps(images: int = 1) -> list[Tensor]:
    """Maps of images in which nothing is found."""
    maps = []
    for stride in STRIDES:
        one = torch.zeros(images, 4 * BINS + CLASSES, SIZE // stride, SIZE // stride)
        one[:, 4 * BINS :] = SILENT
        maps.append(one)
    return maps


def say(maps: list[Tensor], image: int, box: list[float], label: int, score: float, level: int = 0) -> None:
    """Let the cell in the middle of a box state exactly this box, with this score."""
    stride = STRIDES[level]
    column, row = (int((box[axis] + box[axis + 2]) / 2 // stride) for axis in (0, 1))
    centre = ((column + 0.5) * stride, (row + 0.5) * stride)
    sides = (centre[0] - box[0], centre[1] - box[1], box[2] - centre[0], box[3] - centre[1])
    cell = maps[level][image, :, row, column]
    for side, distance in enumerate(sides):
        whole, rest = divmod(distance / stride, 1)
        chances = torch.full((BINS,), 1e-12)
        chances[int(whole)] = 1 - rest
        chances[min(int(whole) + 1, BINS - 1)] += rest
        cell[side * BINS : (side + 1) * BINS] = chances.log()
    cell[4 * BINS + label] = math.log(score / (1 - score))


def target(*objects: tuple[list[float], int]) -> dict[str, Tensor]:
    boxes = torch.tensor([box for box, _ in objects]).view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in objects], dtype=torch.int64)}


def boxes_at_random(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 30
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    return torch.cat([low, high + 1], dim=1)


def plain_complete_overlap(one: list[float], other: list[float]) -> float:
    """The formula of arXiv:1911.08287 with plain numbers."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    sizes = [(box[2] - box[0], box[3] - box[1]) for box in (one, other)]
    shared = width * height / (sizes[0][0] * sizes[0][1] + sizes[1][0] * sizes[1][1] - width * height)
    apart_x = (one[0] + one[2] - other[0] - other[2]) / 2
    apart_y = (one[1] + one[3] - other[1] - other[3]) / 2
    around_x = max(one[2], other[2]) - min(one[0], other[0])
    around_y = max(one[3], other[3]) - min(one[1], other[1])
    v = 4 / math.pi**2 * (math.atan(sizes[0][0] / sizes[0][1]) - math.atan(sizes[1][0] / sizes[1][1])) ** 2
    a = v / (1 - shared + v) if v else 0.0
    return shared - (apart_x**2 + apart_y**2) / (around_x**2 + around_y**2) - a * v


def test_the_complete_overlap_of_two_squares_side_by_side() -> None:
    one, other = torch.tensor([0.0, 0, 4, 4]), torch.tensor([2.0, 0, 6, 4])
    assert float(overlap(one, other)) == pytest.approx(8 / 24)
    assert float(complete_overlap(one, other)) == pytest.approx(8 / 24 - 4 / 52)
    assert float(complete_overlap(one, one)) == pytest.approx(1)


def test_the_complete_overlap_agrees_with_the_formula_in_plain_numbers() -> None:
    one, other = boxes_at_random(50, 1), boxes_at_random(50, 2)
    wanted = [plain_complete_overlap(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    torch.testing.assert_close(complete_overlap(one, other), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_boxes_apart_still_pull_on_each_other() -> None:
    box = torch.tensor([0.0, 0, 4, 4], requires_grad=True)
    complete_overlap(box, torch.tensor([10.0, 10, 14, 14])).backward()
    assert box.grad is not None and bool((box.grad.view(2, 2).mean(dim=0) > 0).all())


def test_the_loss_of_a_distance_is_cross_entropy_with_both_whole_numbers_around_it() -> None:
    logits = torch.randn(BINS, generator=torch.Generator().manual_seed(0))
    total = sum(math.exp(float(logit)) for logit in logits)
    chances = [math.exp(float(logit)) / total for logit in logits]
    wanted = -0.75 * math.log(chances[2]) - 0.25 * math.log(chances[3])
    assert float(distance_losses(logits, torch.tensor(2.25))) == pytest.approx(wanted, rel=1e-5)
    assert float(distance_losses(torch.zeros(BINS), torch.tensor(0.0))) == pytest.approx(math.log(BINS))


def test_a_distance_beyond_the_last_number_counts_as_the_last() -> None:
    sure = torch.full((BINS,), -30.0)
    sure[-1] = 30.0
    assert float(distance_losses(sure, torch.tensor(100.0))) < 1


def test_maps_are_read_cell_by_cell() -> None:
    maps = silent_maps()
    say(maps, 0, [3.0, 6.0, 12.0, 13.0], 1, 0.9)
    say(maps, 0, [4.0, 2.0, 30.0, 25.0], 2, 0.6, level=2)
    found = read_maps(maps)
    assert found.scores.shape == (1, 64 + 16 + 4, CLASSES)
    assert found.strides.tolist() == [4.0] * 64 + [8.0] * 16 + [16.0] * 4
    assert found.centres[[0, 1, 8, 64, 83]].tolist() == [[2, 2], [6, 2], [2, 6], [4, 4], [24, 24]]
    ((boxes, scores, labels),) = find_boxes(maps, score=0.5)
    torch.testing.assert_close(boxes, torch.tensor([[3.0, 6, 12, 13], [4, 2, 30, 25]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6]))
    assert labels.tolist() == [1, 2]


def test_a_box_goes_where_a_better_one_of_its_class_overlaps_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    same, other = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 0])
    assert keep_apart(boxes, scores, same, 0.6, 100).tolist() == [1, 3]
    assert keep_apart(boxes, scores, other, 0.6, 100).tolist() == [1, 2, 3]
    assert keep_apart(boxes, scores, same, 0.95, 2).tolist() == [1, 2]


def predictions_of(
    boxes: list[list[float]], scores: list[list[float]], centres: list[list[float]]
) -> Predictions:
    """Cells of one image and of stride 1 that state these boxes."""
    given, places = torch.tensor(boxes), torch.tensor(centres)
    sides = torch.cat([places - given[:, :2], given[:, 2:] - places], dim=1)
    distances = torch.full((1, len(boxes), 4, BINS), -30.0)
    distances.scatter_(3, sides.long()[None, :, :, None], 30.0)
    return Predictions(distances, torch.tensor([scores]).logit(), places, torch.ones(len(boxes)))


def test_an_object_gets_the_cells_inside_it_that_agree_best() -> None:
    found = predictions_of(
        boxes=[[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 6, 4], [6, 6, 8, 8]],
        scores=[[0.81, 0.1], [0.81, 0.1], [0.81, 0.1], [0.5, 0.5]],
        centres=[[1, 1], [2, 1], [5, 3], [7, 7]],  # the third lies outside the first object
    )
    objects = [(torch.tensor([[0.0, 0, 4, 4], [6, 6, 8, 8]]), torch.tensor([0, 1]))]
    asked = assign(found, objects)
    # agreement of the second: 0.9 * 0.5 ** 6, of the first: 0.9; the best cell is asked for the overlap 1
    torch.testing.assert_close(asked.scores[0], torch.tensor([1, 0.5**6, 0, 1.0]), rtol=0, atol=1e-5)
    assert asked.labels[0, [0, 1, 3]].tolist() == [0, 0, 1]
    assert asked.boxes[0, 3].tolist() == [6, 6, 8, 8]


def test_a_cell_that_two_objects_ask_for_goes_to_the_one_that_it_overlaps_more() -> None:
    found = predictions_of([[0, 0, 4, 4]], [[0.9, 0.9]], [[2, 2]])
    objects = [(torch.tensor([[0.0, 0, 7, 7], [0, 0, 4, 5]]), torch.tensor([0, 1]))]
    asked = assign(found, objects)
    assert asked.labels[0, 0] == 1
    assert float(asked.scores[0, 0]) == pytest.approx(0.8)


def test_no_more_than_ten_cells_answer_for_an_object() -> None:
    found = read_maps(silent_maps())
    asked = assign(found, [(torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([0]))])
    assert int((asked.scores > 0).sum()) == CELLS


def plain_loss(maps: list[Tensor], boxes: Tensor, labels: Tensor) -> float:
    """The loss of one image in plain loops, with the assignment given."""
    found = read_maps(maps)
    asked = assign(found, [(boxes, labels)])
    total = max(1.0, float(asked.scores.sum()))
    classes = box_part = side_part = 0.0
    for cell in range(found.scores.shape[1]):
        share = float(asked.scores[0, cell])
        for number in range(CLASSES):
            wanted = share if number == int(asked.labels[0, cell]) else 0.0
            chance = 1 / (1 + math.exp(-float(found.scores[0, cell, number])))
            classes -= wanted * math.log(chance) + (1 - wanted) * math.log(1 - chance)
        if share == 0:
            continue
        own, (x, y) = asked.boxes[0, cell].tolist(), found.centres[cell].tolist()
        box_part += share * (1 - plain_complete_overlap(found.boxes[0, cell].tolist(), own))
        for side, distance in enumerate((x - own[0], y - own[1], own[2] - x, own[3] - y)):
            strides = min(distance / float(found.strides[cell]), BINS - 1.01)
            likely = found.distances[0, cell, side].log_softmax(dim=0)
            low = int(strides)
            nearest = (1 - strides + low) * likely[low] + (strides - low) * likely[low + 1]
            side_part -= share * float(nearest) / 4
    return (7.5 * box_part + 0.5 * classes + 1.5 * side_part) / total


def test_the_loss_agrees_with_plain_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(one.shape, generator=generator) for one in silent_maps()]
    given = target(([2.0, 3, 14, 17], 0), ([12.0, 10, 30, 31], 2))
    wanted = plain_loss(maps, given["boxes"], given["labels"])
    assert float(detection_loss(maps, [given])[0]) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_of_an_image_without_objects_is_that_of_its_scores() -> None:
    maps = [one.clamp(min=-2.0) for one in silent_maps()]
    cells = (64 + 16 + 4) * CLASSES
    wanted = 0.5 * cells * math.log1p(math.exp(-2.0))
    assert float(detection_loss(maps, [target()])[0]) == pytest.approx(wanted)


def test_a_batch_adds_up_from_its_images() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(one.shape, generator=generator) for one in silent_maps(3)]
    given = [target(([2.0, 3, 14, 17], 0)), target(), target(([12.0, 10, 30, 31], 2), ([1.0, 1, 8, 9], 1))]
    together = detection_loss(maps, given)
    alone = [detection_loss([one[i : i + 1] for one in maps], given[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))
    by_name = {name: [part[name] for part in given] for name in ("boxes", "labels")}
    torch.testing.assert_close(detection_loss(maps, by_name), together)


def test_a_step_down_the_gradient_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = detector(classes=CLASSES, width=4)
    images = torch.rand(2, 3, SIZE, SIZE)
    given = [target(([2.0, 3, 14, 17], 0)), target(([12.0, 10, 30, 31], 2))]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = detection_loss(model(images), given).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("given", [[torch.zeros(4)], {"boxes": []}, [{"boxes": torch.zeros(1, 4)}]])
def test_targets_of_another_form_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="for each image, a mapping with 'boxes' and 'labels'"):
        objects_of(given)


def test_outputs_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="a map for each of the strides 4, 8, 16; this one returns a Tensor"):
        read_maps(torch.zeros(3, 2, 2, 2))  # type: ignore[arg-type]


FIRST, SECOND, NOWHERE = [2.0, 2.0, 12.0, 14.0], [14.0, 12.0, 26.0, 28.0], [1.0, 20.0, 9.0, 30.0]


def test_mean_average_precision_worked_out_by_hand() -> None:
    """Two objects; found in the order of their scores: right, wrong, right.

    Precision is 1 up to a recall of 0.5 and 2 / 3 up to 1, read at the 101 recalls 0, 0.01 ... 1.
    """
    pytest.importorskip("pycocotools")
    maps = silent_maps(2)
    say(maps, 0, FIRST, 1, 0.9)
    say(maps, 0, NOWHERE, 1, 0.8)
    say(maps, 1, SECOND, 1, 0.7)
    metric = MeanAveragePrecision()
    metric.update([one[:1] for one in maps], [target((FIRST, 1))])
    metric.update([one[1:] for one in maps], [target((SECOND, 1))])
    found = metric.compute()
    assert found["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found["map_50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_counts_at_the_overlaps_that_it_reaches() -> None:
    pytest.importorskip("pycocotools")
    maps = silent_maps()
    low = [
        FIRST[0],
        FIRST[1],
        FIRST[2],
        FIRST[3] - 3.2,
    ]  # 8.8 of 12 rows: 0.733, above five of ten thresholds
    say(maps, 0, low, 0, 0.9)
    metric = MeanAveragePrecision()
    metric.update(maps, [target((FIRST, 0))])
    assert metric.compute() == {"map": pytest.approx(0.5), "map_50": pytest.approx(1.0)}


def test_classes_count_alike_and_a_wrong_class_is_a_miss() -> None:
    pytest.importorskip("pycocotools")
    maps = silent_maps()
    say(maps, 0, FIRST, 0, 0.9)
    say(maps, 0, SECOND, 1, 0.9)  # it is of class 2
    metric = MeanAveragePrecision()
    metric.update(maps, [target((FIRST, 0), (SECOND, 2))])
    assert metric.compute()["map"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_nothing_there_has_no_precision() -> None:
    pytest.importorskip("pycocotools")
    metric = MeanAveragePrecision(score=0.5)
    metric.update(silent_maps(), [target()])
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(silent_maps(), [target((FIRST, 0))])
    assert metric.compute() == {"map": 0.0, "map_50": 0.0}


def test_a_missing_pycocotools_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocotools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"pip install 'sparsify-recipes\[detection\]'"):
        MeanAveragePrecision()
