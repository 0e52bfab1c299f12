"""What a run did: plan, cuts, rounds, stages and baselines.

The report is made of this and the models on disk.
"""

from dataclasses import dataclass

from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.baseline import Baseline
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import Epoch, FailedBaseline, Round, Search, StageRow, Verdict


@dataclass(frozen=True)
class BaselineResult:
    """What the run did for one baseline. Its model is on disk."""

    kind: Baseline
    cuts: tuple[Cuts, ...]
    rounds: tuple[Round, ...]
    epochs: int
    """Epochs of training in this run."""


@dataclass(frozen=True)
class RunRecord:
    """What a run did. Its two models are on disk."""

    plan: Plan
    cuts: tuple[Cuts, ...]
    """Logs of the cuts, in order."""
    verdicts: tuple[Verdict, ...]
    rounds: tuple[Round, ...] = ()
    """A row for each cut."""
    stages: tuple[StageRow, ...] = ()
    history: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()
    search: Search | None = None
    """The trials, where the budget limits the accuracy drop."""
    dense_trained: bool = False
    """Whether the dense model had the training before the first cut as well."""
    dense_known: bool = True
    """Whether the dense model's weights are known; else only its structure is, and it is not judged."""
    placed: bool = True
    """Whether it is known which epochs came after the cut."""
    baselines: tuple[BaselineResult, ...] = ()
    failed: tuple[FailedBaseline, ...] = ()
    """Baselines of other packages that came to no model."""

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs of training before the first cut and after it; none where that is not known."""
        if not self.placed:
            return 0, 0
        total = sum(stage.epochs for stage in self.stages)
        if not self.rounds:
            return 0, total
        first = self.rounds[0]
        names = [stage.name for stage in self.stages]
        earlier = self.stages[: names.index(first.stage)]
        before = sum(stage.epochs for stage in earlier) + first.epoch
        return before, total - before
