"""Detectors without anchor boxes: which cell answers for which box, the loss, and mean average precision.

Outputs are what `sparsify.models.detector` returns: a map for each stride, (N, 4 * BINS + classes, H, W).
Targets are, for each image, a mapping with `boxes`, (objects, 4) in pixels as x1, y1, x2, y2, and `labels`,
(objects,).
"""
