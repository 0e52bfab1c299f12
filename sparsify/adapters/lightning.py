"""Lightning: Trainer(callbacks=[SparsifyCallback(plan, net)]), with extra `lightning`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from sparsify.adapters.cut_in_place import cut_in_place
from sparsify.adapters.kept_cut import CUT, check_cut_after, describe_cut, repeat_cut
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

        cut_after: whole epochs of training after which the module is cut in place; the optimizer goes on
        with what is left of its state, without penalties. None to cut afterwards. A checkpoint after the cut
        is resumed with the dense module and the same callback.
        batches: training batches for a criterion that looks at data.
        """
        check_cut_after(cut_after)
        self.plan, self.model = plan, model
        self.cut_after, self.batches = cut_after, batches
        self.result: Result | None = None
        """of the cut, once it was made"""
        self.hooks: Hooks | None = None
        self._saved: dict[str, Any] = {}
        self._saving: Any = None
        """handle of what flushes the hooks before weights are saved"""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at a checkpoint before its weights are loaded: those of a cut model need the cut first.

        Lightning gives callbacks their state after the weights; the module alone sees a checkpoint before.
        """
        own = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            vars(pl_module).pop("on_load_checkpoint", None)
            saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
            if CUT in saved and self.result is None:
                optimizer = _holder(trainer, self.model) if trainer.optimizers else None
                held = None if optimizer is None else unwrap_optimizer(optimizer)
                self.result = repeat_cut(saved[CUT], self.plan, self.model, held)
            own(checkpoint)

        vars(pl_module)["on_load_checkpoint"] = on_load_checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:
            vars(pl_module).pop("on_load_checkpoint", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ModelError when none of the trainer's optimizers holds the model's parameters, or when the
        training ends before `cut_after`."""
        vars(pl_module).pop("on_load_checkpoint", None)
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
        check_cut_after(self.cut_after, None if steps is None or not per_epoch else steps / per_epoch)
        if self.result is not None:  # a training that goes on after its cut
            return
        self.hooks = attach(
            self.plan, self.model, _holder(trainer, self.model), steps_per_epoch=per_epoch, steps=steps
        )
        if self._saved:
            self.hooks.load_state_dict(self._saved)
        flush = _make_flush(self.hooks)
        self._saving = self.model.register_state_dict_pre_hook(flush)  # type: ignore[no-untyped-call]
        if self.cut_after is not None and trainer.current_epoch >= self.cut_after:
            self._cut(trainer)  # the checkpoint was written right before it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hooks is not None:
            self.hooks.flush()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hooks is not None:
            for name, value in self.hooks.figures().items():
                pl_module.log(name, value, rank_zero_only=True)
        if trainer.current_epoch + 1 == self.cut_after and self.result is None:
            self._cut(trainer)

    def _cut(self, trainer: Trainer) -> None:
        optimizer = _holder(trainer, self.model)
        if self.hooks is not None:
            self.hooks.flush()
            self._detach()
            self.hooks = None
        self.result = cut_in_place(self.plan, self.model, unwrap_optimizer(optimizer), self.batches)

    def _detach(self) -> None:
        if self.hooks is not None:
            self.hooks.detach()
        if self._saving is not None:
            self._saving.remove()
            self._saving = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        if self.result is not None:
            return {CUT: describe_cut(self.result)}
        state: dict[str, Any] = (
            gather_state(self.hooks.state_dict()) if self.hooks is not None else self._saved
        )
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Kept until the optimizer is there."""
        self._saved = {} if CUT in state_dict else dict(state_dict)


def _make_flush(hooks: Hooks) -> Callable[[nn.Module, str, bool], None]:
    """What is called before the weights of a module are read. A copy of the module shares it."""

    def flush(module: nn.Module, prefix: str, keep_vars: bool) -> None:
        hooks.flush()

    return flush


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
