"""Lets a CUDA build of torchvision import beside a CPU build of torch: two operator schemas are declared first.

Import it before torchvision, timm or transformers. Where the operators exist it does nothing.
"""

import torch

_SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY = None
if not torch.cuda.is_available():
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS:
        try:
            LIBRARY.define(_schema)
        except RuntimeError:
            break  # they are there
