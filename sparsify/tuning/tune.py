"""tune: find the best recipe by many trials, on one worker or on many."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.errors import RunError
from sparsify.tuning.optuna_package import check_installed, keep_quiet
from sparsify.tuning.study_folder import PAGE
from sparsify.tuning.tune_events import TuneListener, silence_study
from sparsify_schemas.study import Study, StudyTrial

if TYPE_CHECKING:
    from sparsify.tuning.open_study import StudySource


@dataclass(frozen=True)
class TuneResult:
    """What a study found."""

    folder: Path
    """of the study"""
    study: Study
    """the record, study.json"""

    @property
    def trials(self) -> tuple[StudyTrial, ...]:
        """Every trial, by number."""
        return self.study.trials

    @property
    def front(self) -> tuple[StudyTrial, ...]:
        """The chosen trials: the best one, or the front by ascending cost."""
        return tuple(self.study.trials[number] for number in self.study.chosen)

    @property
    def best(self) -> StudyTrial:
        """The best trial; of a front the one with the best metric, which is the last."""
        return self.front[-1]

    @property
    def best_parameters(self) -> dict[str, Any]:
        """Key of the recipe -> value, of the best trial."""
        return self.best.parameters

    @property
    def best_recipe(self) -> Path:
        """The file of the best trial's recipe, which `apply` takes."""
        return self.folder / self.study.recipes[str(self.best.number)]

    @property
    def page(self) -> Path:
        """report.html of the study."""
        return self.folder / PAGE


def tune(
    recipe: "StudySource | None" = None,
    model_file: str | Path | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    trials: int | None = None,
    storage: str | None = None,
    join: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int = 1,
    timing: float | None = None,
    listener: TuneListener = silence_study,
) -> TuneResult:
    """Carry out the `search` of a recipe and return what it found.

    Each trial is a run of the recipe in the study's folder, `out/<title>-study-<n>`, with its own values and
    with the recipe's seed. Trials are judged on the validation set; the test set is read once, at the end,
    for the chosen trials.

    Args:
        recipe: A path, a mapping or a Recipe with a `search`.
        model_file: Weights, a module or an earlier run, as in `apply`.
        out: The folder in which the study's folder is made.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        allow: Packages whose classes a pickled model may use.
        from_scratch: Every trial trains from random weights; takes no model file.
        strict: As in `apply`.
        trials: How many trials, in place of the recipe's number; with `resume` more of them.
        storage: URL of a database (`postgresql://...`), or the file of a journal; a database in the study's
            folder when left out.
        join: The folder of a study to take part in as another worker; with `storage` its name there, from a
            machine that does not see the folder.
        resume: The folder of an interrupted study to go on with.
        workers: Processes of this machine that run trials, this one included.
        timing: Seconds spent on timing each target in each trial; 3 where the study goes by latency, else as
            few as possible.
        listener: Called with progress events.

    Returns:
        The folder, the record of every trial, and the best one or the front.

    Raises:
        SparsifyError: The recipe, the model or the storage are wrong, or every trial failed. A study that was
            interrupted or killed goes on with `resume`.

    Examples:
        >>> digits = {
        ...     "version": 1,
        ...     "title": "small",
        ...     "model": {"build": "sparsify.models.digits_cnn"},
        ...     "data": {"source": "digits", "validation": "20%"},
        ...     "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
        ...     "search": {
        ...         "parameters": {"rules.0.sparsity": ["20%", "80%"]},
        ...         "trials": 2,
        ...         "objective": {"cost": "macs"},
        ...     },
        ... }
        >>> result = sparsify.tune(digits, from_scratch=True)
        >>> len(result.trials), result.best_recipe.exists()
        (2, True)
    """
    check_installed(storage)
    from sparsify.tuning.open_study import TuneRequest, open_study
    from sparsify.tuning.storage import close_storage
    from sparsify.tuning.work import carry_out

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise RunError("a trial runs in one process; start 'tune' without a launcher, and with workers")
    if workers < 1:
        raise RunError(f"a study has at least one worker, not {workers}")
    model = None if model_file is None else Path(model_file)
    goes_on = None if resume is None else Path(resume)
    request = TuneRequest(
        recipe=recipe,
        model_file=model,
        out=Path(out),
        overrides=overrides,
        allow=allow,
        from_scratch=from_scratch,
        strict=strict,
        trials=trials,
        storage=storage,
        join=None if join is None else str(join),
        resume=goes_on,
        timing=timing,
    )
    with keep_quiet():
        opened = open_study(request)
        try:
            record = carry_out(opened, workers, listener)
        finally:
            close_storage(opened.backend)
        return TuneResult(opened.setting.folder, record)
