"""Load tensors by name into a model, as the versions of its classes that the model itself states."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn


def load_tensors(model: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """`load_state_dict` of a state that may have come as a plain mapping.

    A state dict of torch carries the version of each class beside its tensors, and some classes refuse a
    state without it (torchvision's MNASNet). Files of safetensors and plain mappings have none; they are
    taken for those of the model as it is.
    """
    given = OrderedDict(state)
    given._metadata = getattr(state, "_metadata", None) or model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(given, strict=strict)
