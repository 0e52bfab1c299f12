"""Write a folder that `from_pretrained` loads, from the run of a model of transformers."""

from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.cost.measure.onnx_export import short_reason
from sparsify.errors import ModelError, RunError
from sparsify.exporters import model_card, modeling_file, original_files
from sparsify.forward.copies import copy_model
from sparsify.graph.peft_adapters import has_adapters
from sparsify.graph.surgery.transformers_config import find_config
from sparsify.runs.model_base import Base, Build
from sparsify_schemas.cuts import Select

_OTHERS = "--format pt2, onnx and safetensors take the model as it is"


@dataclass(frozen=True)
class Folder:
    """What goes into the folder beside the model."""

    run: Path
    base: Base
    """How to rebuild the cut model's structure."""
    build: Build | None
    """Builds the dense model where the recipe names no builder."""
    original: Path | None
    """A folder of the dense model, whose tokenizer is copied."""
    merged: bool = False
    """Whether adapters of peft were merged into the model."""


def is_hugging_face(model: nn.Module) -> bool:
    """Whether it is a model of transformers, or derived from one."""
    if find_spec("transformers") is None:
        return False
    import transformers

    return isinstance(model, transformers.PreTrainedModel)


def merge_adapters(model: nn.Module) -> nn.Module:
    """The model of transformers inside a model of peft, with the active adapters merged into its weights.

    Any other model as it is. The model itself is left as it is.
    """
    if not has_adapters(model):
        return model
    own: Any = copy_model(model)
    merged: nn.Module = own.merge_and_unload().eval()
    return merged


def check_model(model: nn.Module) -> None:
    """Raises ModelError when it is no model of transformers."""
    if not is_hugging_face(model):
        raise ModelError(
            f"the run's model is a {type(model).__name__}, not a model of transformers; "
            "export it with --format pt2, onnx or safetensors"
        )


def save_pretrained(model: nn.Module, given: Folder, folder: Path) -> tuple[str, ...]:
    """Write config.json and model.safetensors, the original's tokenizer, and a model card. Returns notes.

    Where no configuration has the model's widths, modeling_cut.py builds it. Raises ModelError when that
    cannot either.
    """
    check_model(model)
    if given.original is not None:
        original_files.check(model, given.original)
    notes: tuple[str, ...] = ()
    with torch.random.fork_rng(devices=[]), redirect_stderr(StringIO()):  # no progress bars
        try:
            made = _with_config(model, given)
        except ModelError as cause:
            if given.merged:
                raise ModelError(
                    f"{cause}; the folder of a model with adapters has no modelling file: {_OTHERS}"
                ) from None
            made, written = _with_modeling_file(model, given, str(cause), folder)
            notes = (
                f"config.json alone cannot express the model: {cause}. "
                f"{written} builds it: load the folder with trust_remote_code=True",
            )
        own: Any = model
        if own.can_generate():
            made.generation_config = own.generation_config
        made.save_pretrained(folder)
    if given.original is not None:
        notes = (*notes, *original_files.copy(given.original, folder))
    model_card.write(made, given.run, given.original, folder)
    return notes


def load_pretrained(kind: type[nn.Module], folder: Path) -> nn.Module:
    """Load the folder by `from_pretrained`. Raises ModelError when a weight is missing or unknown."""
    loader: Any = modeling_file.read_class(folder) or kind
    with redirect_stderr(StringIO()):
        model, told = loader.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    absent = [*told["missing_keys"], *told["mismatched_keys"], *told["unexpected_keys"]]
    if absent:
        raise ModelError(f"from_pretrained cannot load {absent[0]}")
    made: nn.Module = model.eval()
    return made


def push(folder: Path, repository: str) -> None:
    """Upload the folder to the Hugging Face hub, by the hub's own library. Raises RunError."""
    import huggingface_hub

    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload cut model")
    except Exception as error:
        raise RunError(
            f"{folder} was written, but not pushed to {repository}: {short_reason(error)}"
        ) from error


def _with_config(model: nn.Module, given: Folder) -> Any:
    """A new model with the weights, built from a configuration of its widths. Raises ModelError."""
    for op in (op for cuts in given.base.cuts for op in cuts.operations):
        if isinstance(op, Select):
            raise ModelError(
                f"'{op.module}' selects its heads' of what {type(model).__name__} makes for {op.size} heads "
                "(slopes of positions), which it would make otherwise for fewer"
            )
    config = find_config(model)
    made: Any = type(model)(config).to(_dtype(model))
    made.load_state_dict(model.state_dict())
    return made


def _with_modeling_file(model: nn.Module, given: Folder, reason: str, folder: Path) -> tuple[Any, str]:
    """A new model of the class that modeling_cut.py defines, with the weights, and the file's name."""
    dense = replace(given.base, cuts=()).build_structure(given.build)
    try:
        changes = modeling_file.describe_changes(dense, model, given.base.cuts)
    except ModelError as error:
        raise ModelError(f"{reason}; {error}; {_OTHERS}") from None
    own: Any = model
    folder.mkdir(exist_ok=True)
    modeling_file.write(dense, folder)
    kind: Any = modeling_file.read_class(folder)
    made = kind(modeling_file.make_config(own.config, dense, changes)).to(_dtype(model))
    made.load_state_dict(model.state_dict())
    return made, modeling_file.NAME


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
