"""Recipes for structured sparsity in PyTorch.

    plan = sparsify.make_plan("recipe.yaml", model, inputs)
    with sparsify.attach(plan, model, optimizer) as hooks:
        ...                                                     # the training loop, unchanged
    result = sparsify.cut(plan, model, optimizer=optimizer)
    run = sparsify.save_run(result, "runs/lenet")
    model = sparsify.load_run(run)
    sparsify.export(run, "onnx", "lenet.onnx")

Names are resolved on first use, so that checking a recipe never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.cost.measure.timing import bench
    from sparsify.errors import SparsifyError
    from sparsify.exporters import export
    from sparsify.forward.calls import Call
    from sparsify.objective.distillation import distillation_losses
    from sparsify.objective.objective import evaluate_batches as evaluate
    from sparsify.objective.objective import make_objective
    from sparsify.pruning.baseline_cut import cut_baseline
    from sparsify.pruning.cut import cut
    from sparsify.pruning.make_plan import make_plan
    from sparsify.pruning.repair.batch_norm import calibrate
    from sparsify.pruning.repair.repair import repair
    from sparsify.recipe import load as load_recipe
    from sparsify.reporting.plan_tables import describe
    from sparsify.runs.adopt import adopt
    from sparsify.runs.apply import apply
    from sparsify.runs.save_load import load_run, save_run
    from sparsify.runs.sensitivity import sensitivity
    from sparsify.training.features import FeaturePairs
    from sparsify.training.hooks import attach
    from sparsify.tuning.tune import tune

    __version__: str

_WHERE = {
    "Call": ("sparsify.forward.calls", "Call"),
    "SparsifyError": ("sparsify.errors", "SparsifyError"),
    "FeaturePairs": ("sparsify.training.features", "FeaturePairs"),
    "adopt": ("sparsify.runs.adopt", "adopt"),
    "apply": ("sparsify.runs.apply", "apply"),
    "attach": ("sparsify.training.hooks", "attach"),
    "bench": ("sparsify.cost.measure.timing", "bench"),
    "calibrate": ("sparsify.pruning.repair.batch_norm", "calibrate"),
    "cut": ("sparsify.pruning.cut", "cut"),
    "cut_baseline": ("sparsify.pruning.baseline_cut", "cut_baseline"),
    "describe": ("sparsify.reporting.plan_tables", "describe"),
    "distillation_losses": ("sparsify.objective.distillation", "distillation_losses"),
    "evaluate": ("sparsify.objective.objective", "evaluate_batches"),
    "export": ("sparsify.exporters", "export"),
    "load_recipe": ("sparsify.recipe", "load"),
    "load_run": ("sparsify.runs.save_load", "load_run"),
    "make_objective": ("sparsify.objective.objective", "make_objective"),
    "make_plan": ("sparsify.pruning.make_plan", "make_plan"),
    "repair": ("sparsify.pruning.repair.repair", "repair"),
    "save_run": ("sparsify.runs.save_load", "save_run"),
    "sensitivity": ("sparsify.runs.sensitivity", "sensitivity"),
    "tune": ("sparsify.tuning.tune", "tune"),
}
__all__ = [
    "Call",
    "FeaturePairs",
    "SparsifyError",
    "__version__",
    "adopt",
    "apply",
    "attach",
    "bench",
    "calibrate",
    "cut",
    "cut_baseline",
    "describe",
    "distillation_losses",
    "evaluate",
    "export",
    "load_recipe",
    "load_run",
    "make_objective",
    "make_plan",
    "repair",
    "save_run",
    "sensitivity",
    "tune",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sparsify-recipes")
    if name not in _WHERE:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
