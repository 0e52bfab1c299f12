"""Baselines: what a result is compared with, and the options of one that another package makes."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from sparsify_schemas.base import AtKey, Callable, Positive, Spec, Text, Whole
from sparsify_schemas.criterion import TorchPruning, check_importance
from sparsify_schemas.units import Size

Baseline = Literal["uniform_width", "random", "magnitude", "by_macs", "torch_pruning"]
NARROWING: tuple[Baseline, ...] = ("uniform_width", "torch_pruning")
"""baselines that take units from layers, and no blocks"""
PRUNERS = (
    "MetaPruner",
    "BasePruner",
    "MagnitudePruner",
    "GroupNormPruner",
    "BNScalePruner",
    "GrowingRegPruner",
)
_ARGS = ("global_pruning", "isomorphic", "max_pruning_ratio", "round_to")
"""what of a pruner's arguments is a choice; the rest follows from the run"""


class TorchPruningBaseline(Spec):
    """What torch-pruning itself makes of the dense model, by its own graph and its own cut.

    Its pruner removes channels of the layers that the rules reach, at the smallest ratio at which the model
    costs no more than the cut model. It runs in a process of its own. The cut is checked, not trusted:
    `exact`, `statistics` (equal once normalisations leave the removed channels out), `wrong`; or it has
    raised, or timed out. What runs is trained like the other baselines, and is not repaired.
    Source: Fang et al., arXiv:2301.12900.
    """

    kind: Literal["torch_pruning"]
    pruner: Callable = "MetaPruner"
    """MetaPruner, GroupNormPruner, BNScalePruner or GrowingRegPruner, of which the choice is taken and no
    training with their regularizers; or package.module:Class of your own that takes the same arguments"""
    args: dict[Text, Any] = {}
    """of the pruner: global_pruning, isomorphic, max_pruning_ratio, round_to"""
    importance: Callable = "MagnitudeImportance"
    """as that of criterion torch_pruning"""
    importance_args: dict[Text, Any] = {}
    """keyword arguments of the importance"""
    batches: Whole | None = None
    """training batches that the importance looks at, as those of criterion torch_pruning"""
    seconds: Positive = 600
    """its process is ended after so many"""
    memory: Size = Field(default=Size(8, "GiB"))
    """its process may take so much more than it holds when it begins; not limited on Windows"""

    @field_validator("pruner")
    @classmethod
    def _is_known_pruner(cls, pruner: str) -> str:
        if pruner not in PRUNERS and ":" not in pruner:
            known = f"known: {', '.join(PRUNERS)}, or package.module:Class"
            raise ValueError(f"torch-pruning has no pruner {pruner!r}; {known}")
        return pruner

    @field_validator("importance")
    @classmethod
    def _is_known_importance(cls, importance: str) -> str:
        check_importance(importance)
        return importance

    @model_validator(mode="after")
    def _args_are_choices(self) -> "TorchPruningBaseline":
        stranger = next((key for key in self.args if key not in _ARGS and ":" not in self.pruner), None)
        if stranger is not None:
            raise AtKey(
                ("args", stranger),
                f"'{stranger}' is no choice of a pruner here; known: {', '.join(_ARGS)}",
            )
        if self.args.get("isomorphic") and not self.args.get("global_pruning"):
            raise AtKey(
                ("args", "isomorphic"),
                "'isomorphic' ranks over several layers, and without 'global_pruning: true' torch-pruning "
                "applies the ranks of all to each; add it, or leave 'isomorphic' out",
            )
        _ = self.criterion  # its own checks of batches
        return self

    @property
    def criterion(self) -> TorchPruning:
        """The importance as a criterion, which says what it looks at."""
        return TorchPruning(
            kind="torch_pruning",
            importance=self.importance,
            args=self.importance_args,
            batches=self.batches,
        )


def _tag_baseline(given: Any) -> str:
    return "<options>" if isinstance(given, dict | TorchPruningBaseline) else "<name>"


AnyBaseline = Annotated[
    Annotated[Baseline, Tag("<name>")] | Annotated[TorchPruningBaseline, Tag("<options>")],
    Discriminator(_tag_baseline),
]


def name_baseline(given: Baseline | TorchPruningBaseline) -> Baseline:
    """The name by which tables and folders call it."""
    return given.kind if isinstance(given, TorchPruningBaseline) else given


def find_options(baselines: Iterable[Baseline | TorchPruningBaseline]) -> TorchPruningBaseline:
    """The options of baseline torch_pruning, the defaults where it is a name alone."""
    own = (given for given in baselines if isinstance(given, TorchPruningBaseline))
    return next(own, TorchPruningBaseline(kind="torch_pruning"))
