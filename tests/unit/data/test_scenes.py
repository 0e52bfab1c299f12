"""Scenes of digits: what is known of them is true of their pixels; and the table of diabetes."""

import numpy as np
import pytest
import torch

from sparsify.data.diabetes import diabetes
from sparsify.data.scenes import draw_scenes, few_digit_boxes, few_digit_labels, few_digit_masks


def test_a_box_fits_tightly_around_the_pixels_of_its_digit() -> None:
    bars = torch.zeros(2, 12, 12)
    bars[0, 2:10, 4:8] = 1
    bars[1, 4:8, 2:10] = 1
    scenes = draw_scenes((bars, torch.tensor([3, 7])), 30, 48, (1, 3), (10, 16), np.random.default_rng(0))
    assert scenes.images.shape == (30, 3, 48, 48) and scenes.images.dtype == torch.uint8
    for mask, objects in zip(scenes.masks, scenes.objects, strict=True):
        assert 1 <= len(objects["labels"]) <= 3
        covered = torch.zeros_like(mask)
        for (x1, y1, x2, y2), label in zip(objects["boxes"].int().tolist(), objects["labels"], strict=True):
            assert bool((mask[y1:y2, x1:x2] == 1 + label).all())
            assert max(x2 - x1, y2 - y1) in range(10, 17) and min(x2 - x1, y2 - y1) in range(5, 9)
            covered[y1:y2, x1:x2] += 1
        assert torch.equal(covered > 0, mask > 0) and int(covered.max()) == 1
    wanted = [sorted(set(objects["labels"].tolist())) for objects in scenes.objects]
    assert [row.nonzero()[:, 0].tolist() for row in scenes.labels] == wanted


def test_digits_are_brighter_than_what_is_around_them() -> None:
    pytest.importorskip("sklearn")
    images, masks = few_digit_masks()[0]
    bright = images.float().mean(dim=1)
    assert float(bright[masks > 0].mean()) > 1.5 * float(bright[masks == 0].mean())


def test_scenes_are_the_same_each_time_and_agree_with_each_other() -> None:
    pytest.importorskip("sklearn")
    (images, objects), (test_images, _) = few_digit_boxes()
    again, labels = few_digit_labels()[0]
    assert torch.equal(images, again) and len(images) == 80 and len(test_images) == 20
    assert [row.nonzero()[:, 0].tolist() for row in labels] == [
        sorted(set(scene["labels"].tolist())) for scene in objects
    ]


def test_the_table_of_diabetes_is_scaled_and_drawn_once() -> None:
    pytest.importorskip("sklearn")
    (x, y), (x_test, y_test) = diabetes()
    assert (
        x.shape == (353, 10) and y.shape == (353, 1) and x_test.shape == (89, 10) and y_test.shape == (89, 1)
    )
    everything = torch.cat([y, y_test])
    assert abs(float(everything.mean())) < 1e-5 and float(everything.std()) == pytest.approx(1)
    assert torch.equal(x, diabetes()[0][0])
