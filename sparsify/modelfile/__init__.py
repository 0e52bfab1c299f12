"""The dense model: from its file without running what the file says, or from the recipe with random weights."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sparsify.errors import ModelError
from sparsify.modelfile.builder import build_model, build_seeded
from sparsify.modelfile.digest import weights_digest
from sparsify.modelfile.formats import read_contents
from sparsify.modelfile.match_state_dict import check_finite, fit
from sparsify_schemas.recipe import Recipe

__all__ = ["build_model", "check_finite", "read_model", "weights_digest"]


def read_model(path: Path | None, recipe: Recipe, *, allow: Sequence[str] = ()) -> nn.Module:
    """The dense model, in eval mode.

    path: a state dict (.pt, bare or inside a checkpoint, or .safetensors), for which the recipe's `model` is built and
    filled; a whole pickled module, which is taken as it is; or None, for `model` with random weights from the recipe's
    seed. Nothing in the file is executed: classes of torch.nn and sparsify.models are admitted, and what `allow` names
    (see sparsify.modelfile.safe_unpickle). Raises ModelError with what is wrong and the ways out.
    """
    if path is None:
        if recipe.model is None:
            raise ModelError(
                "there is no model: give a model file, or name what builds one under 'model:' in the recipe"
            )
        return build_seeded(recipe.model, recipe.seed).eval()
    contents = read_contents(path, allow)
    if isinstance(contents, nn.Module):
        check_finite(contents.state_dict(), str(path))
        return contents.eval()
    if recipe.model is None:
        raise ModelError(
            f"{path} holds weights only; name what builds the model under 'model:' in the recipe, "
            "such as model: {build: sparsify.models.lenet5}"
        )
    model = build_seeded(recipe.model, recipe.seed)
    fit(model, contents, path, recipe.model.build)
    return model.eval()
