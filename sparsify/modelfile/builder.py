"""Build the dense model that a recipe names."""

import torch
from torch import nn

from sparsify.errors import ModelError
from sparsify.recipe.import_path import resolve
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.model import Model


def build_model(spec: Model) -> nn.Module:
    """Call what `build` names with `args`. Raises ModelError with the dotted path and the cause."""
    where = f"model.build '{spec.build}'"
    try:
        builder = resolve(spec.build)
    except ImportError as error:
        raise ModelError(f"{where}: {error}") from error
    if isinstance(builder, nn.Module) or not callable(builder):
        raise ModelError(
            f"{where} is a {type(builder).__name__}, which cannot build a model; name a function or a class"
        )
    given = ", ".join(f"{k}={v!r}" for k, v in spec.args.items()) or "no arguments"

    def failed(why: str) -> ModelError:
        return ModelError(f"{where} failed with {given}: {why}")

    with run_user_code(where, failed, keep_chance=True):
        model = builder(**spec.args)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} returned a {type(model).__name__}; expected a torch.nn.Module")
    return model


def build_seeded(spec: Model, seed: int) -> nn.Module:
    """Build a model with torch's random numbers seeded; restore torch's random state afterwards."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        return build_model(spec)
    finally:
        torch.set_rng_state(before)
