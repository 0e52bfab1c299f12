"""Hugging Face: Trainer(..., callbacks=[SparsifyCallback(plan)]), with extra `transformers`."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import number_of_arguments

from sparsify.adapters.cut_in_place import cut_in_place
from sparsify.adapters.kept_cut import (
    CUT,
    are_of,
    check_cut_after,
    describe_cut,
    describe_weights,
    repeat_cut,
)
from sparsify.distributed import unwrap_optimizer
from sparsify.errors import ModelError
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify.training.fsdp import gather_state
from sparsify.training.hooks import Hooks, attach

FILE = "sparsify.pt"
"""the state of the hooks or the cut that was made, in each of the Trainer's checkpoints"""
_ROUNDING = 1e-6
"""of an epoch: the Trainer counts them in fractions"""


class SparsifyCallback(TrainerCallback):  # type: ignore[misc]
    """Attach a plan's penalties while a Trainer trains.

    Their state is saved in checkpoints, their effect logged.
    """

    def __init__(
        self, plan: Plan, *, cut_after: int | None = None, batches: Iterable[Any] | None = None
    ) -> None:
        """plan: of the Trainer's model.

        cut_after: whole epochs of training after which the model is cut in place; the optimizer goes on with
        what is left of its state, without penalties. None to cut afterwards. A checkpoint after the cut is
        resumed with the dense model and the same callback.
        batches: training batches for a criterion that looks at data.
        """
        check_cut_after(cut_after)
        self.plan = plan
        self.cut_after, self.batches = cut_after, batches
        self.result: Result | None = None
        """of the cut, once it was made"""
        self.hooks: Hooks | None = None
        self._loading: Any = None
        """handle of what looks at the weights of a checkpoint before they are loaded"""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Look at weights that are loaded: those of a cut model need the cut first.

        The Trainer loads them before any other of its events, into a model that its `model_init`, where it
        has one, makes right before.
        """
        model: nn.Module | None = given.get("model")
        if model is None:
            return
        self._watch(model, Path(args.output_dir), given.get("optimizer"))
        trainer = _find_trainer()
        if trainer is None or trainer.model_init is None:
            return
        make = trainer.model_init

        def watch(made: nn.Module) -> nn.Module:
            self._watch(made, Path(args.output_dir), None)
            return made

        # The Trainer counts the arguments: none, or a trial of a search.
        if number_of_arguments(make):
            trainer.model_init = lambda trial: watch(make(trial))
        else:
            trainer.model_init = lambda: watch(make())

    def _watch(self, model: nn.Module, folder: Path, optimizer: Any) -> None:
        # A plain function: a copy of the model shares it, and does not copy this callback.
        def look(module: nn.Module, weights: dict[str, Any], *_: Any) -> None:
            if module is model and not self._has_cut(model):
                self._repeat_cut(folder, optimizer, module, weights)

        if self._loading is not None:
            self._loading.remove()  # of a model that was made before
        self._loading = model.register_load_state_dict_pre_hook(look)  # type: ignore[no-untyped-call]

    def _has_cut(self, model: nn.Module) -> bool:
        """Whether the cut that was made is of this model, and not of one that a training had before."""
        return self.result is not None and self.result.model is model

    def _repeat_cut(self, folder: Path, optimizer: Any, model: nn.Module, weights: dict[str, Any]) -> None:
        for path in sorted(folder.glob(f"checkpoint-*/{FILE}")):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if CUT in saved and are_of(weights, saved["weights"]):
                if self.cut_after is None:
                    raise _say_cut(path.parent)
                held = None if optimizer is None else unwrap_optimizer(optimizer)
                self.result = repeat_cut(saved[CUT], self.plan, model, held)
                return
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        other = [name for name, value in weights.items() if shapes.get(name, value.shape) != value.shape]
        if other:
            raise ModelError(
                f"'{other[0]}' has the shape {tuple(weights[other[0]].shape)} in the checkpoint and "
                f"{tuple(shapes[other[0]])} in the model, and no {FILE} in {folder} holds the cut; resume "
                "from a checkpoint in output_dir, with the callback that it was written with"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Raises ModelError when training resumes from a checkpoint without this callback's state, or ends
        before `cut_after`."""
        if self._loading is not None:
            given["model"]._load_state_dict_pre_hooks.pop(self._loading.id, None)
            self._loading.remove()  # of the dense model, where the two are not one
            self._loading = None
        per_epoch = _count_steps(given.get("train_dataloader"), args.gradient_accumulation_steps)
        check_cut_after(self.cut_after, None if per_epoch is None else state.max_steps / per_epoch)
        model: nn.Module = given["model"]
        if self._has_cut(model):  # a training that goes on after its cut
            return
        self.result = None
        self.hooks = attach(
            self.plan, model, given["optimizer"], steps_per_epoch=per_epoch, steps=state.max_steps
        )
        if state.global_step:
            saved = _read(_checkpoint(args, state) / FILE)
            if CUT in saved:
                raise _say_cut(_checkpoint(args, state))
            self.hooks.load_state_dict(saved)
            self._cut_where_due(state, given)  # the checkpoint may be of the epoch's last step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._flush_where_due(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Cut where it is due."""
        self._cut_where_due(state, given)
        self._flush_where_due(control)

    def _flush_where_due(self, control: TrainerControl) -> None:
        if self.hooks is not None and (control.should_evaluate or control.should_save):
            self.hooks.flush()

    def _cut_where_due(self, state: TrainerState, given: Mapping[str, Any]) -> None:
        done = (state.epoch or 0) + _ROUNDING
        if self.cut_after is None or self.result is not None or done < self.cut_after:
            return
        if self.hooks is not None:
            self.hooks.flush()
            self.hooks.detach()
            self.hooks = None
        model: nn.Module = given["model"]
        self.result = cut_in_place(self.plan, model, unwrap_optimizer(given["optimizer"]), self.batches)
        # The best checkpoint until now is of the dense model, which the cut one cannot load.
        state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if state.is_hyper_param_search:  # its trials are not resumed, and their folders have other names
            return
        saved: dict[str, Any] | None = None
        if self.result is not None:
            model: nn.Module = given["model"]
            saved = {CUT: describe_cut(self.result), "weights": describe_weights(model.state_dict())}
        elif self.hooks is not None:
            saved = gather_state(self.hooks.state_dict())  # all processes take part
        if saved is not None and state.is_world_process_zero:
            torch.save(saved, _checkpoint(args, state) / FILE)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.hooks is not None:
            given["logs"].update(self.hooks.figures())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.hooks is not None:
            self.hooks.detach()


def _find_trainer() -> Any:
    """The Trainer that is being made, which calls `on_init_end` and hands itself to no callback; None where
    something else calls it."""
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None


def _say_cut(checkpoint: Path) -> ModelError:
    return ModelError(
        f"{checkpoint} is of a cut model; give SparsifyCallback its cut_after, and the Trainer the dense "
        "model, or the model_init that makes it"
    )


def _count_steps(loader: Any, accumulation: int) -> int | None:
    """Steps of the optimizer in an epoch; None where the length of the data is not known."""
    try:
        return max(-(-len(loader) // accumulation), 1)
    except TypeError:
        return None


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(
            f"{path} is missing: the checkpoint was written without SparsifyCallback, or is not in output_dir"
        )
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found
