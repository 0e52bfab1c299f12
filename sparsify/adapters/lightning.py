"""Lightning: Trainer(callbacks=[SparsifyCallback(plan, net)]), with extra `lightning`."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from sparsify.adapters.cut_in_place import cut_in_place
from sparsify.distributed import unwrap_optimizer
from sparsify.errors import ModelError
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify.training.fsdp import gather_state
from sparsify.training.hooks import Hooks, attach
from sparsify.training.optimizers import trained_parameters


class SparsifyCallback(Callback):  # type: ignore[misc]
    """Attach a plan's penalties while a Trainer fits.

    Their state is saved in checkpoints, their effect logged.

    Lightning makes the gradients inside the optimizer's step; hooks act after them, and after its clipping.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        *,
        cut_after: int | None = None,
        batches: Iterable[Any] | None = None,
    ) -> None:
        """model: what the plan was made of, the LightningModule itself or a module in it.

        cut_after: epochs of training after which the module is cut in place; the optimizer goes on with what
        is left of its state, without penalties. None to cut afterwards.
        batches: training batches for a criterion that looks at data.
        """
        self.plan, self.model = plan, model
        self.cut_after, self.batches = cut_after, batches
        self.result: Result | None = None
        """of the cut, once it was made"""
        self.hooks: Hooks | None = None
        self._saved: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ModelError when none of the trainer's optimizers holds the model's parameters."""
        steps = (
            int(trainer.estimated_stepping_batches)
            if trainer.estimated_stepping_batches != float("inf")
            else None
        )
        per_epoch = (
            -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
            if trainer.num_training_batches != float("inf")
            else None
        )
        self.hooks = attach(
            self.plan, self.model, _holder(trainer, self.model), steps_per_epoch=per_epoch, steps=steps
        )
        if self._saved:
            self.hooks.load_state_dict(self._saved)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hooks is not None:
            self.hooks.flush()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hooks is not None:
            for name, value in self.hooks.figures().items():
                pl_module.log(name, value, rank_zero_only=True)
        if trainer.current_epoch + 1 == self.cut_after:
            self._cut(trainer)

    def _cut(self, trainer: Trainer) -> None:
        optimizer = _holder(trainer, self.model)
        if self.hooks is not None:
            self.hooks.flush()
            self.hooks.detach()
            self.hooks = None
        self.result = cut_in_place(self.plan, self.model, unwrap_optimizer(optimizer), self.batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hooks is not None:
            self.hooks.detach()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = (
            gather_state(self.hooks.state_dict()) if self.hooks is not None else self._saved
        )
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Kept until the optimizer is there."""
        self._saved = dict(state_dict)


def _holder(trainer: Trainer, model: nn.Module) -> Any:
    for optimizer in trainer.optimizers:
        try:
            trained_parameters(model, optimizer)
        except ModelError:
            continue
        return optimizer
    raise ModelError(
        "no optimizer of the Trainer holds the model's parameters; "
        "give SparsifyCallback the module that is trained"
    )
