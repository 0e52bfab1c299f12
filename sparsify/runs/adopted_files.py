"""The files of a model that was cut elsewhere: its weights or module, its history, and the dense model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsify import modelfile
from sparsify.errors import ModelError
from sparsify.modelfile.formats import read_contents
from sparsify.modelfile.history_file import find_history, read_history_file
from sparsify.modelfile.match_state_dict import fit_names
from sparsify.runs import run_folder
from sparsify_schemas.recipe import Recipe


@dataclass(frozen=True)
class AdoptedFiles:
    """What is known of a model that was cut elsewhere."""

    dense: nn.Module
    dense_known: bool
    """whether the dense model has its own weights; else random ones"""
    path: Path
    """of the cut model, else of the history"""
    state: Mapping[str, Tensor] | None
    """the cut model's tensors, by their names in the dense model"""
    module: nn.Module | None
    """the cut model, where the file holds it whole"""
    history: Any
    has_own_history: bool
    """whether the history was found beside the weights"""
    build: str
    """what built the dense model, for messages"""


def read_files(
    recipe: Recipe,
    model_file: str | Path | None,
    dense: str | Path | None,
    history: str | Path | None,
    allow: Sequence[str],
) -> AdoptedFiles:
    """Read all files. Raises ModelError."""
    if model_file is None and (history is None or dense is None):
        raise ModelError(
            "nothing to adopt: give the cut model's file, or the dense weights (--dense) and a pruning "
            "history (--history)"
        )
    path = Path(model_file if model_file is not None else str(history))
    if not path.exists():
        raise ModelError(f"there is no model file {path}")
    if run_folder.is_run(path):
        raise ModelError(
            f"{path} is a run already: 'sparsify report', 'export' and 'apply RECIPE {path}' take it as it is"
        )
    if recipe.model is None and dense is None:
        raise ModelError(
            "the dense model is not known: name its builder under 'model:' in the recipe, or give the whole "
            "dense model by --dense"
        )
    model = modelfile.read_model(None if dense is None else Path(dense), recipe, allow=allow)
    build = recipe.model.build if recipe.model is not None else str(dense)
    contents = read_contents(path, allow) if model_file is not None else None
    module = contents.eval() if isinstance(contents, nn.Module) else None
    state = contents.state_dict() if isinstance(contents, nn.Module) else contents
    told = read_history_file(Path(history)) if history is not None else find_history(path)
    return AdoptedFiles(
        dense=model,
        dense_known=dense is not None,
        path=path,
        state=None if state is None else fit_names(model, _only_tensors(state), path, build),
        module=module,
        history=told,
        has_own_history=history is None,
        build=build,
    )


def _only_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
