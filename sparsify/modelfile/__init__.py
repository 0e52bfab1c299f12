"""Read the dense model from its file, without executing it, or build it with random weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sparsify.errors import ModelError, SparsifyWarning
from sparsify.modelfile.builder import build_model, build_seeded
from sparsify.modelfile.digest import weights_digest
from sparsify.modelfile.formats import read_contents
from sparsify.modelfile.match_state_dict import check_finite, load_state
from sparsify_schemas.recipe import Recipe

__all__ = ["build_model", "check_finite", "read_model", "weights_digest"]


def read_model(path: Path | None, recipe: Recipe, *, allow: Sequence[str] = ()) -> nn.Module:
    """Read the dense model, in eval mode. Nothing in the file is executed.

    Args:
        path: A state dict (.pt, bare or inside a checkpoint, .safetensors, its shards, or a folder of
            transformers), loaded into the recipe's `model`; a whole pickled module; or None, for the
            recipe's `model` with random weights from its seed.
        allow: Packages whose classes a pickled module may use, besides torch.nn and sparsify.models; see
            sparsify.modelfile.safe_unpickle.

    Raises:
        ModelError: With what is wrong and what to do.
    """
    if path is None:
        if recipe.model is None:
            raise ModelError(
                "there is no model: give a model file, or name a builder under 'model:' in the recipe"
            )
        return build_seeded(recipe.model, recipe.seed).eval()
    contents = read_contents(path, allow)
    if isinstance(contents, nn.Module):
        check_finite(contents.state_dict(), str(path))
        return _widen(contents, path).eval()
    if recipe.model is None:
        raise ModelError(
            f"{path} holds weights only; name its builder under 'model:' in the recipe, "
            "such as model: {build: sparsify.models.lenet5}"
        )
    model = build_seeded(recipe.model, recipe.seed)
    load_state(model, contents, path, recipe.model.build)
    return model.eval()


def _widen(model: nn.Module, path: Path) -> nn.Module:
    """A module of float16 or bfloat16 in float32, in which examples come and weights are trained."""
    low = sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)})
    if not low:
        return model
    kinds = " and ".join(name.removeprefix("torch.") for name in low)
    warnings.warn(f"{path}: its weights are {kinds}, and are read as float32", SparsifyWarning, stacklevel=3)
    return model.float()
