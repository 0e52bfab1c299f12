"""The data and the code of a study: each worker reads them once, before it takes a trial.

A worker that lacks them, or has others, is refused; its trials would fail at once, and use up the study.
"""

from dataclasses import replace

from sparsify.data import load_data
from sparsify.data.digest import hash_datasets
from sparsify.runs.source_digests import (
    check_data,
    check_sources,
    hash_sources,
    list_callables,
    require_sources,
)
from sparsify.tuning.study_folder import StudyState
from sparsify_schemas.recipe import Recipe


def add_digests(state: StudyState, recipe: Recipe) -> StudyState:
    """The state of a new study with digests of its data and code. The test set is not read.

    Raises SparsifyError where the data cannot be read, or code that every trial needs.
    """
    # A model file may hold the whole module: then nobody needs its builder.
    named = list_callables(recipe)
    needed = [f"{key} '{path}'" for key, path in named if key != "model.build" or state.from_scratch]
    require_sources(recipe, needed)
    return replace(state, data=_hash_data(recipe), sources=hash_sources(recipe))


def check_digests(state: StudyState, recipe: Recipe) -> None:
    """Raises SparsifyError where this worker cannot read data and code of the study, or has others."""
    if state.sources is None:  # of an older version
        return
    require_sources(recipe, state.sources)
    check_sources(state.sources, recipe, "study")
    check_data(state.data, recipe, _hash_data(recipe), "study")


def _hash_data(recipe: Recipe) -> dict[str, str]:
    if recipe.data is None:
        return {}
    datasets = load_data(recipe.data, recipe.seed, recipe.task, reads_test=False)
    return {part: digest for part, digest in hash_datasets(datasets).items() if part.startswith("training")}
