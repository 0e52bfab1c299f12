"""Hugging Face: Trainer(..., callbacks=[SparsifyCallback(plan)]), with extra `transformers`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparsify.adapters.cut_in_place import cut_in_place
from sparsify.distributed import unwrap_optimizer
from sparsify.errors import ModelError
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify.training.fsdp import gather_state
from sparsify.training.hooks import Hooks, attach

FILE = "sparsify.pt"
"""the state of the hooks, in each of the Trainer's checkpoints"""


class SparsifyCallback(TrainerCallback):  # type: ignore[misc]
    """Attach a plan's penalties while a Trainer trains.

    Their state is saved in checkpoints, their effect logged.
    """

    def __init__(
        self, plan: Plan, *, cut_after: int | None = None, batches: Iterable[Any] | None = None
    ) -> None:
        """plan: of the Trainer's model.

        cut_after: epochs of training after which the model is cut in place; the optimizer goes on with what
        is left of its state, without penalties. None to cut afterwards.
        batches: training batches for a criterion that looks at data.
        """
        self.plan = plan
        self.cut_after, self.batches = cut_after, batches
        self.result: Result | None = None
        """of the cut, once it was made"""
        self.hooks: Hooks | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Raises ModelError when training resumes from a checkpoint without this callback's state."""
        model: nn.Module = given["model"]
        per_epoch = max(round(state.max_steps / state.num_train_epochs), 1)
        self.hooks = attach(
            self.plan, model, given["optimizer"], steps_per_epoch=per_epoch, steps=state.max_steps
        )
        if state.global_step:
            self.hooks.load_state_dict(_read(_checkpoint(args, state) / FILE))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if self.hooks is not None and (control.should_evaluate or control.should_save):
            self.hooks.flush()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Cut where it is due."""
        if self.cut_after is None or self.result is not None or round(state.epoch or 0) < self.cut_after:
            return
        if self.hooks is not None:
            self.hooks.flush()
            self.hooks.detach()
            self.hooks = None
        model: nn.Module = given["model"]
        self.result = cut_in_place(self.plan, model, unwrap_optimizer(given["optimizer"]), self.batches)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        saved = (
            gather_state(self.hooks.state_dict()) if self.hooks is not None else None
        )  # all processes take part
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


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(
            f"{path} is missing: the checkpoint was written without SparsifyCallback, or is not in output_dir"
        )
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found
