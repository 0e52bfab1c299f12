"""The study: what `sparsify tune` tried and what it found."""

import math
from typing import Any, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Seed, Spec, Text, Whole
from sparsify_schemas.search import EarlyStopping, Sampler
from sparsify_schemas.task import Facts

TrialState = Literal["complete", "stopped", "failed"]


class TrialCosts(Spec):
    """What a model costs, counted and measured."""

    macs: Whole
    """multiply-accumulates of one forward call on one example"""
    params: Whole
    """parameters stored"""
    bytes: Whole
    """size of the weights file"""
    latency: dict[Text, float] = {}
    """target -> milliseconds of a forward call"""


def find_cost(costs: TrialCosts | None, name: str) -> float:
    """The figure of a cost such as `macs` or `latency.phone`; nan where it is not known."""
    if costs is None:
        return math.nan
    kind, _, target = name.partition(".")
    if kind == "latency":
        return costs.latency.get(target, math.nan)
    return float(getattr(costs, kind))


class StudyTrial(Spec):
    """One trial: a run of the recipe with its own values of the parameters."""

    number: Whole
    """from 0, in the order in which trials began"""
    state: TrialState
    """complete; stopped: fell behind and was stopped early; failed: without a result"""
    parameters: dict[Text, Any]
    """key of the recipe -> the value that was tried"""
    metric: float | None = None
    """on the validation set; of a stopped trial the last one of its curve"""
    test_metric: float | None = None
    """on the test set, which is read for chosen trials alone, at the end"""
    costs: TrialCosts | None = None
    """of the cut model"""
    epochs: Whole = 0
    """that it trained"""
    seconds: float = 0.0
    """that the worker spent which finished it"""
    reason: str = ""
    """why it was stopped or failed"""
    folder: Text | None = None
    """its run folder, in the folder of the study of the worker that ran it"""
    worker: Text | None = None
    """machine and process that finished it"""
    restarts: Whole = 0
    """how many times it went on after its worker was lost"""


class DenseModel(Spec):
    """The dense model, as every trial compares with it."""

    metric: float | None = None
    """on the validation set"""
    test_metric: float | None = None
    costs: TrialCosts


class Study(Spec):
    """What a study tried and found. Figures are those of the reports of its runs."""

    version: Literal[1] = 1
    title: str
    created: str
    """UTC, ISO 8601"""
    recipe_digest: str
    model_digest: str | None
    """SHA-256 of the model's file; null where trials began from random weights"""
    sampler: Sampler
    early_stopping: EarlyStopping
    seed: Seed
    """of the sampler; trial n draws each value with SHA-256 of seed, n and the name of the parameter"""
    recipe_seed: Seed
    """of every trial's run"""
    wanted: Positive
    """trials that were asked for"""
    judged_by: Facts = Field(default=Facts(), exclude_if=lambda found: found == Facts())
    """what the metric is"""
    cost: Text | None = None
    """the second objective; null where the metric alone decides"""
    dense: DenseModel | None = None
    trials: tuple[StudyTrial, ...] = ()
    """by number"""
    chosen: tuple[Whole, ...] = ()
    """numbers of the best trial, or of those on the front by ascending cost"""
    recipes: dict[Text, Text] = {}
    """number of a chosen trial -> file of its recipe in the folder of the study"""
    importance: dict[Text, float] = {}
    """parameter -> its share of what decides whether a trial is among the better ones; PED-ANOVA
    (arXiv:2304.10255), of complete trials; empty where there are too few of them"""
    workers: Positive = 1
    """processes that finished trials"""
    notes: tuple[str, ...] = ()
    """what a reader must know, in plain words"""
