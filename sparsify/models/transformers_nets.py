"""Networks of the transformers library, built from their configuration with random weights."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn


def hugging_face(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Build a model of transformers, such as BertForSequenceClassification, from its config.json.

    Raises ImportError without the library, ValueError when it has no such model.
    """
    if find_spec("transformers") is None:
        raise ImportError(
            "the library transformers is not installed: pip install 'sparsify-recipes[transformers]'"
        )
    import transformers

    found = getattr(transformers, architecture, None)
    kind: Any = found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None
    if kind is None or kind.config_class is None:
        raise ValueError(
            f"transformers has no model '{architecture}'; config.json has the name under 'architectures'"
        )
    made: nn.Module = kind(kind.config_class.from_dict(dict(config)))
    return made
