"""Penalties on two processes, under DDP and under FSDP 2, leave the weights that one process would have
left."""

import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from apart import Apart, free_port

import sparsify
from sparsify_schemas.penalty import Penalty

NIGHTLY = os.environ.get("NIGHTLY") == "1"
WAYS = ("ddp", "fsdp")
RULES: dict[str, list[dict[str, Any]]] = {
    "structured": [{"layers": "0", "group": "filter"}, {"layers": "3", "group": "neuron"}],
    "channels": [{"layers": "6", "group": "neuron"}],
    "normed": [{"layers": "3", "group": "neuron"}],
    "shapes": [{"layers": "0", "group": "shape"}],
    "weights": [{"layers": "*", "group": "weight", "sparsity": "50%"}],
}
GROUPS, EVERY, HALF = ("structured", "channels"), ("structured", "channels", "weights"), {"sparsity": "50%"}
AUTO = {"strength": {"kind": "auto", "start": "0dur", "end": "0.8dur"}, "every": 1}
PENALTIES: list[
    tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]
] = [  # name, penalty, rules, what else the rules say
    ("group_lasso coupled", {"kind": "group_lasso", "strength": 0.3, "every": 2}, GROUPS, {}),
    ("group_lasso layer", {"kind": "group_lasso", "strength": 0.3, "scope": "layer", "every": 1}, GROUPS, {}),
    (
        "group_lasso sub-gradient",
        {"kind": "group_lasso", "strength": 0.3, "solver": "subgradient"},
        GROUPS,
        {},
    ),
    (
        "group_lasso half-space",
        {"kind": "group_lasso", "strength": 0.3, "solver": "half_space", "weight": "macs"},
        GROUPS,
        {},
    ),
    ("group_lasso auto", {"kind": "group_lasso", **AUTO}, GROUPS, HALF),
    ("l1", {"kind": "l1", "strength": 0.05, "every": 1}, EVERY, {}),
    ("l1 sub-gradient", {"kind": "l1", "strength": 0.05, "solver": "subgradient"}, EVERY, {}),
    ("l1 auto", {"kind": "l1", **AUTO}, ("weights",), HALF),
    ("l2", {"kind": "l2", "strength": 0.5, "every": 1}, EVERY, {}),
    ("l2 sub-gradient", {"kind": "l2", "strength": 0.5, "solver": "subgradient"}, EVERY, {}),
    ("gsm", {"kind": "gsm"}, (*EVERY, "shapes"), HALF),
    ("sensitivity of loss", {"kind": "sensitivity", "strength": 0.3}, EVERY, {}),
    ("sensitivity of outputs", {"kind": "sensitivity", "strength": 0.3, "of": "outputs"}, EVERY, {}),
    (
        "sensitivity of some outputs",
        {"kind": "sensitivity", "strength": 0.3, "of": "outputs", "classes": 2},
        EVERY,
        {},
    ),
    (
        "sensitivity of the right outputs",
        {"kind": "sensitivity", "strength": 0.3, "of": "outputs", "mode": "specific"},
        EVERY,
        {},
    ),
    ("bn_scale", {"kind": "bn_scale", "strength": 0.3, "every": 1}, ("normed",), {}),
    ("growing_l2", {"kind": "growing_l2", "delta": 0.5, "every": 1}, (*EVERY, "shapes"), HALF),
    ("agp", {"kind": "agp", "start": "0it", "end": "4it", "every": "1it"}, (*EVERY, "shapes"), HALF),
    ("dns", {"kind": "dns", "c_rate": 0.0}, ("weights",), {}),
    ("l0", {"kind": "l0", "strength": 0.05, "rate": 0.2, "closed": "40%"}, (*EVERY, "shapes"), {}),
    ("variational_dropout", {"kind": "variational_dropout", "strength": 1e-3, "rate": 0.5}, ("weights",), {}),
]
NET = """
import torch
from torch import nn

x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))

def net():
    torch.manual_seed(0)
    # 7 and 5 rows do not divide by two, 3 neither; the one row of a weight leaves a process with nothing
    model = nn.Sequential(
        nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 5), nn.BatchNorm1d(5), nn.ReLU(),
        nn.Linear(5, 3), nn.Linear(3, 1), nn.Linear(1, 4),
    )
    with torch.no_grad():
        model[7].weight.mul_(4)
        model[8].weight.mul_(4)
    model[4].eval()  # each process would normalise by its own half of the batch
    return model
"""
CODE = (
    NET
    + """
import os, sys
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import sparsify
from sparsify.training.fsdp import gather_state

plans, out, *ways = sys.argv[1:]
torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo")
y = torch.arange(16) % 4
mine = slice(rank * 16 // world, (rank + 1) * 16 // world)

def trained(how, plan, number):
    model, first = net(), plan.recipe.rules[0]
    if first.sparsity is not None:
        with torch.no_grad():
            model[3].weight[:, ::2] = 0  # equal ones, to choose among
            model[6].weight[:, 0] = 0.01
    outer = model
    if how == "ddp":
        outer = nn.parallel.DistributedDataParallel(model)
    if how == "fsdp":
        fully_shard(model[0])
        fully_shard(model[8])  # its weight is freed behind each backward pass through the last layer
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = {"steps_per_epoch": 6, "steps": 6, "hold_zeros": first.group == "weight"}
    with sparsify.attach(plan, outer, optimizer, **given) as hooks:
        for step in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(outer(x[mine]), y[mine]).backward()
            optimizer.step()
            if step == 2:
                hooks.load_state_dict(gather_state(hooks.state_dict()) if number % 2 else hooks.state_dict())
        hooks.flush()
        told = [hooks.sparsity(), *hooks.remaining().values(), *(hooks.goal() or ())]
        told += [hooks.strength or 0.0, hooks.reactivated() or 0.0]
    if how == "fsdp":
        try:
            sparsify.cut(plan, model, inputs=(x[:2],))
        except sparsify.errors.ModelError as error:
            assert "'0.weight' is sharded over processes" in str(error)
        else:
            raise AssertionError("a sharded model was cut")
    if how != "one":
        others = [None] * world
        dist.all_gather_object(others, told)
        assert others == [told] * world, (number, others)
    whole = {}
    for name, parameter in model.named_parameters():
        full = parameter.full_tensor() if how == "fsdp" else parameter
        whole[name] = full.detach().clone()
    return whole, told

for how in ways:
    made = torch.load(plans, weights_only=False)
    found = {name: trained(how, plan, n) for n, (name, plan) in enumerate(made.items())}
    if rank == 0:
        torch.save(found, f"{out}/{how}.pt")
if world > 1:
    dist.destroy_process_group()
"""
)


def cases() -> dict[str, list[dict[str, Any]]]:
    """Each penalty on what its rules cover; by day the coverings take turns, one for each penalty."""
    return {
        f"{name}, {covered}": [{**rule, **more, "penalty": penalty} for rule in RULES[covered]]
        for number, (name, penalty, coverings, more) in enumerate(PENALTIES)
        for turn, covered in enumerate(coverings)
        if NIGHTLY or turn == number % len(coverings)
    }


def test_every_penalty_is_among_them() -> None:
    assert {penalty["kind"] for _, penalty, *_ in PENALTIES} == {
        get_args(get_type_hints(kind)["kind"])[0] for kind in get_args(get_args(Penalty)[0])
    }


def start(plans: Path, out: Path, *ways: str, **environment: str) -> Apart:
    return Apart(CODE, str(plans), str(out), *ways, environment=os.environ | environment)


def world() -> dict[str, str]:
    return {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, as planning takes longer than the six steps of training."""
    own: dict[str, Any] = {}
    exec(NET, own)
    made = {
        name: sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, own["net"](), (own["x"][:2],))
        for name, rules in cases().items()
    }
    file = tmp_path_factory.mktemp("plans") / "plans.pt"
    torch.save(made, file)
    return file


@pytest.fixture(scope="module")
def one(plans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("one")
    process = start(plans, out, "one")
    said = process.communicate()[1]
    assert process.returncode == 0, said
    found: dict[str, Any] = torch.load(out / "one.pt")
    return found


@pytest.fixture(scope="module")
def both(plans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where two processes left what each way of training together came to, and what they said if one
    failed."""
    out, environment = tmp_path_factory.mktemp("two"), world()
    processes = [start(plans, out, *WAYS, RANK=rank, LOCAL_RANK=rank, **environment) for rank in "01"]
    said = [p.communicate()[1] for p in processes]
    return out, [] if all(p.returncode == 0 for p in processes) else said


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_two_processes_equal_one(how: str, one: dict[str, Any], both: tuple[Path, list[str]]) -> None:
    out, said = both
    assert said == []
    two = torch.load(out / f"{how}.pt")
    assert two.keys() == one.keys()
    for case, (weights, told) in one.items():
        for name, weight in weights.items():
            torch.testing.assert_close(
                two[case][0][name], weight, rtol=1e-5, atol=1e-6, msg=f"{case}: {name}"
            )
        assert two[case][1] == pytest.approx(told), case
    dead = {case: told[0] for case, (_, told) in one.items()}
    assert dead["group_lasso coupled, structured"] > 0 and dead["l1, weights"] > 0.2
