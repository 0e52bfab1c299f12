"""Lets a CUDA build of torchvision import beside a CPU build of torch: two operator schemas are declared
first.

Import it before torchvision, timm or transformers. With a torchvision made for this torch, or none, it does
nothing.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
LIBRARY = None


def _made_for_cuda() -> bool:
    """Whether the installed torchvision is; read from its version file, since importing it is what fails."""
    found = find_spec("torchvision")
    file = Path(found.origin).with_name("version.py") if found and found.origin else None
    return file is not None and file.exists() and "+cu" in file.read_text()


if torch.version.cuda is None and _made_for_cuda() and not hasattr(torch.ops.torchvision, "nms"):
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS:
        LIBRARY.define(_schema)
