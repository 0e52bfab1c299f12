"""apply on several processes: one run folder, the weights that one process would have trained, and what
happens when one dies."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from apart import BRIEFLY, Apart, free_port
from torch import nn

from sparsify.runs import run_folder
from sparsify.runs.listing import list_runs
from sparsify.runs.model_base import read_cuts
from sparsify.runs.save_load import load_dense, load_run, verify_run

NET = """
from torch import nn
def net(): return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
"""
SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9}
RECIPE = {
    "version": 1,
    "title": "Two",
    "model": {"build": "mynet.net"},
    "data": {"source": "data.npz", "validation": "25%", "split": "last"},
    "rules": [
        {
            "layers": "0",
            "group": "neuron",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": 1e-2},
        }
    ],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 2, "batch": 32, "optimizer": SGD},
        {"kind": "cut"},
        {
            "kind": "train",
            "name": "tune",
            "epochs": 1,
            "batch": 32,
            "penalties": False,
            "optimizer": SGD,
            "distill": {"features": ["0", "ReLU"]},
        },
    ],
}
FINE = {"warmup": "3it", "clip": 0.5, "accumulate": 4}
GRADUAL = RECIPE | {
    "stages": [
        {
            "kind": "train",
            "name": "shrink",
            "epochs": 4,
            "batch": 32,
            "optimizer": SGD,
            "cuts": {"end": "3ep"},
            **FINE,
        }
    ],
}
REPAIRED = RECIPE | {
    "stages": [*RECIPE["stages"][:2], {"kind": "repair", "examples": 60}, RECIPE["stages"][2]],  # type: ignore[index,misc]
}
SHARDED = GRADUAL | {
    "rules": [
        {
            "layers": "0",
            "group": "neuron",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": "auto", "every": 1},
        },
        {
            "layers": "*",
            "group": "weight",
            "override": True,
            "penalty": {
                "kind": "sensitivity",
                "of": "outputs",
                "strength": 1e-3,
                "threshold": {"patience": 1},
            },
        },
    ],
    "stages": [
        {
            "kind": "train",
            "name": "shrink",
            "epochs": 4,
            "batch": 32,
            "optimizer": {"kind": "adam", "lr": 0.01},
            "cuts": {"end": "3ep"},
            **FINE,
            "shard": True,
        },
        {
            "kind": "train",
            "name": "half",
            "epochs": 1,
            "batch": 32,
            "optimizer": SGD,
            "precision": "fp16",
            "clip": 1.0,
            "shard": True,
        },
        {
            "kind": "train",
            "name": "taught",
            "epochs": 1,
            "batch": 32,
            "optimizer": SGD,
            "shard": True,
            "distill": {"features": "0"},
        },
    ],
}
CODE = (
    BRIEFLY
    + """
import json, os, signal, sys, torch
from sparsify_cli.app import main
from torch.optim.optimizer import register_optimizer_step_post_hook
torch.set_num_threads(1)
steps, last = [], int(os.environ.get("DIES_AFTER", 0))
def die(*_):
    steps.append(0)
    if len(steps) == last:
        os.kill(os.getpid(), signal.Signals[os.environ.get("DIES_BY", "SIGKILL")])
if last and os.environ.get("RANK", "0") in os.environ.get("DYING", "01"):
    register_optimizer_step_post_hook(die)
if os.environ.get("SEES"):
    from sparsify.training import stage as training
    evaluate = training.evaluate
    def seeing(model, *given):
        kind = type(next(model.parameters())).__name__
        found = evaluate(model, *given)
        with open(f"seen-{os.environ['RANK']}", "a") as seen:
            print(found.loss, found.deciding, kind, file=seen)
        return found
    training.evaluate = seeing
main(sys.argv[1:])
"""
)

ON_CPU = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
"""where there is nothing else it is found out"""


def start(*arguments: str, **environment: str) -> Apart:
    surroundings = (
        os.environ | ON_CPU | {"PYTHONPATH": f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} | environment
    )
    return Apart(CODE, "apply", "--quiet", *arguments, environment=surroundings)


def on(count: int, *arguments: str, **environment: str) -> list[tuple[int | None, str, str]]:
    """(exit code, stdout, stderr) of each process."""
    world = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), **world} for r in range(count)] if count > 1 else [{}]
    started = [start(*arguments, **rank, **environment) for rank in ranks]
    said = [p.communicate() for p in started]
    return [(p.returncode, *both) for p, both in zip(started, said, strict=True)]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    lay_out_files()


def lay_out_files() -> None:
    """Network, recipes and data, where one stands."""
    Path("mynet.py").write_text(NET)
    Path("briefly.py").write_text(
        f"{BRIEFLY}\nimport runpy\nrunpy.run_module('sparsify_cli', run_name='__main__', alter_sys=True)\n"
    )
    Path("recipe.json").write_text(json.dumps(RECIPE))
    Path("gradual.json").write_text(json.dumps(GRADUAL))
    Path("sharded.json").write_text(json.dumps(SHARDED))
    Path("repaired.json").write_text(json.dumps(REPAIRED))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((192, 6)).astype("float32")
    y = (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0)
    np.savez("data.npz", x_train=x[:128], y_train=y[:128], x_test=x[128:], y_test=y[128:])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Recipe -> the run that one process makes of it, which several tests compare with."""
    made: dict[str, Path] = {}

    def run(recipe: str) -> Path:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("alone")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                lay_out_files()
                ((code, _, said),) = on(1, recipe, "--from-scratch", "--out", "one")
            assert code == 0, said
            made[recipe] = folder / "one/two-1"
        return made[recipe]

    return run


def same_end(a: Path, b: Path) -> None:
    """Weights to rounding, cuts exactly."""
    torch.testing.assert_close(weights(load_dense(a)), weights(load_dense(b)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(load_run(a)), weights(load_run(b)), rtol=1e-4, atol=1e-6)
    assert [c.widths for c in read_cuts(a)] == [c.widths for c in read_cuts(b)]
    for x, y in zip(verify_run(a).history, verify_run(b).history, strict=True):
        assert (x.epoch, x.train_metric, x.validation_metric) == (
            y.epoch,
            y.train_metric,
            y.validation_metric,
        )
        assert x.loss == pytest.approx(y.loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    ["recipe.json", "gradual.json", "repaired.json", pytest.param("sharded.json", marks=pytest.mark.nightly)],
)
def test_two_processes_make_one_run(recipe: str, alone: Callable[[str], Path]) -> None:
    # The recipe says how to train, whatever precision a launcher was told.
    told = {"SEES": "1", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true"}
    two, one = on(2, recipe, "--from-scratch", "--out", "two", **told), alone(recipe)
    assert [code for code, *_ in two] == [0, 0], two
    assert "saved in two/two-1" in two[0][2] and two[1][1:] == ("", ""), "the first process speaks for all"
    assert [p.name for p in Path("two").iterdir()] == ["two-1"]
    same_end(Path("two/two-1"), one)
    assert [{epoch.processes for epoch in verify_run(run).history} for run in (Path("two/two-1"), one)] == [
        {2},
        {1},
    ]
    assert ("DTensor" in Path("seen-1").read_text()) == (recipe == "sharded.json")
    log = [
        json.loads(line)["event"] for line in (Path("two/two-1") / run_folder.LOG).read_text().splitlines()
    ]
    assert log.count("EpochDone") == {"gradual.json": 4, "sharded.json": 6}.get(recipe, 3)
    repairs = [[row.repair for row in verify_run(run).stages] for run in (Path("two/two-1"), one)]
    for two_rows, one_row in zip(*repairs, strict=True):
        if one_row is not None and two_rows is not None:
            assert (two_rows.examples, two_rows.reverted) == (one_row.examples, one_row.reverted)
            assert two_rows.after.error == pytest.approx(one_row.after.error, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("gradual.json", marks=pytest.mark.nightly),
        "sharded.json",
        pytest.param("repaired.json", marks=pytest.mark.nightly),
    ],
)
def test_a_killed_process_ends_the_run_with_a_message_and_it_goes_on_with_other_numbers_of_processes(
    recipe: str, alone: Callable[[str], Path]
) -> None:
    """Two processes, then one, then two; each time some are killed by kill -9, at the end the weights of a
    run left alone."""
    (code, _, said), (killed, *_) = on(2, recipe, "--from-scratch", DIES_AFTER="5", DYING="1")
    assert (code, killed) == (1, -9)
    assert said.strip() == (
        "another process of this run has stopped (its own output says why), and "
        "this one cannot continue alone; run "
        "'sparsify apply --resume runs/two-1', on any number of processes"
    )
    (row,) = list_runs("runs")
    assert row.state == "failed"
    assert json.loads((Path("runs/two-1") / run_folder.STATE).read_text())["failure"] == said.strip()
    assert [code for code, *_ in on(1, "--resume", "runs/two-1", DIES_AFTER="5")] == [-9]
    done = on(2, "--resume", "runs/two-1")
    assert [code for code, *_ in done] == [0, 0], done
    same_end(Path("runs/two-1"), alone(recipe))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_processes_validate_the_same_model(shard: bool) -> None:
    """Each has seen other batches, and so other means and variances; all go on with those of the first."""
    Path("mynet.py").write_text(NET.replace("nn.ReLU()", "nn.BatchNorm1d(24), nn.ReLU()"))
    Path("normed.json").write_text(
        json.dumps(RECIPE | {"stages": [{**RECIPE["stages"][0], "shard": shard}, {"kind": "cut"}]})
    )  # type: ignore[index]
    done = on(2, "normed.json", "--from-scratch", SEES="1")
    assert [code for code, *_ in done] == [0, 0], done
    first, second = (Path(f"seen-{rank}").read_text().splitlines() for rank in "01")
    assert len(first) >= 2 and first[:2] == second[:2]


@pytest.mark.slow
def test_sigterm_ends_the_run_with_a_message() -> None:
    ((code, _, said),) = on(1, "gradual.json", "--from-scratch", DIES_AFTER="5", DIES_BY="SIGTERM")
    assert (code, said) == (143, "stopped by SIGTERM; continue with: sparsify apply --resume runs/two-1\n")
    assert [row.state for row in list_runs("runs")] == ["interrupted"]


DYING_NET = (
    NET
    + """
import os, signal
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = []
def die(*_):
    steps.append(0)
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("RANK", "alone") == os.environ.get("DYING"):
    register_optimizer_step_post_hook(die)
"""
)


@pytest.mark.nightly
@pytest.mark.slow
def test_under_torchrun_a_killed_process_ends_the_run_and_it_goes_on_with_one_or_two(
    alone: Callable[[str], Path],
) -> None:
    """torchrun ends the others by SIGTERM; whichever they notice first, they say how to go on."""
    Path("mynet.py").write_text(DYING_NET)
    done = launched(
        "torch.distributed.run", "--nproc-per-node", "2", "gradual.json", "--from-scratch", DYING="1"
    )
    assert done.returncode == 1
    gone, stopped = (
        "another process of this run has stopped (its own output says why)",
        "another process of the run is gone (its own output says why)",
    )
    (said,) = [line for line in done.stderr.splitlines() if gone in line or stopped in line]
    assert re.search(
        r"(go on with:?|run) '?sparsify apply --resume runs/two-1'?, on any number of processes$", said
    )
    shutil.copytree("runs", "again")
    assert on(1, "--resume", "runs/two-1")[0][0] == 0
    two = launched("torch.distributed.run", "--nproc-per-node", "2", "--resume", "again/two-1")
    assert two.returncode == 0, two.stderr
    same_end(Path("runs/two-1"), alone("gradual.json"))
    same_end(Path("again/two-1"), alone("gradual.json"))


def launched(*launcher: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`sparsify apply` on two processes. launcher: its module, its options up to the number of processes, the
    arguments of the command."""
    flag = "--main_process_port" if launcher[0].startswith("accelerate") else "--master-port"
    count = launcher.index("2") + 1
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        *launcher[:count],
        flag,
        free_port(),
        "-m",
        "briefly",
        "apply",
        *launcher[count:],
        "--quiet",
    ]
    surroundings = (
        os.environ
        | ON_CPU
        | {"PYTHONPATH": f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    )
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=surroundings | environment
    )


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        (
            "accelerate.commands.launch",
            "--cpu",
            "--num_machines",
            "1",
            "--mixed_precision",
            "bf16",
            "--dynamo_backend",
            "no",
            "--num_processes",
            "2",
        ),
        ("torch.distributed.run", "--nproc-per-node", "2"),
    ],
)
def test_the_launchers(launcher: tuple[str, ...], alone: Callable[[str], Path]) -> None:
    """The recipe says how to train, whatever precision the launcher was told."""
    done = launched(*launcher, "gradual.json", "--from-scratch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Dense and cut") == 1
    assert [run.name for run in Path("runs").iterdir()] == ["two-1"], "one run of both, not one of each"
    same_end(Path("runs/two-1"), alone("gradual.json"))


def test_each_process_mixes_its_part_of_the_batch_in_the_same_shares() -> None:
    """Examples are unit vectors, so that an input says of which it is made and in which shares."""
    x, y = np.eye(32, dtype="float32"), np.arange(32) % 3
    np.savez("units.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    Path("mynet.py").write_text(
        """
import os, torch
from torch import nn
class Watched(nn.Linear):
    def forward(self, x):
        if self.training and len(x) == 8:  # and not as the structure is looked at
            with open(f"seen-{os.environ['RANK']}", "a") as file:
                print(x.tolist(), file=file)
        return super().forward(x)
def net(): return nn.Sequential(Watched(32, 8), nn.ReLU(), nn.Linear(8, 3))
"""
    )
    learn = {"kind": "train", "epochs": 2, "batch": 16, "optimizer": SGD, "mixup": 1.0}
    given = {
        **RECIPE,
        "data": {"source": "units.npz", "validation": "0%"},
        "stages": [learn, {"kind": "cut"}],
    }
    Path("mixed.json").write_text(json.dumps(given))
    for code, _, said in on(2, "mixed.json", "--from-scratch"):
        assert code == 0, said
    seen = [[json.loads(line) for line in Path(f"seen-{rank}").read_text().splitlines()] for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 4
    for parts in zip(*seen, strict=True):
        made = [{i for row in part for i, share in enumerate(row) if share} for part in parts]
        assert [len(numbers) for numbers in made] == [8, 8] and not made[0] & made[1]
        shares = {round(max(row), 5) for part in parts for row in part}
        assert len(shares - {1.0}) == 1  # 1 where an example is its own partner
        assert all(sum(row) == pytest.approx(1, abs=1e-6) for part in parts for row in part)


@pytest.mark.nightly
@pytest.mark.slow
def test_activations_are_recomputed_under_ddp_and_fsdp() -> None:
    """To the bit what two processes end with that keep them."""
    Path("mynet.py").write_text(
        """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.drop, self.b = nn.Dropout(0.2), nn.Linear(12, 6)
    def forward(self, x): return x + self.b(self.drop(self.norm(self.a(x)).relu()))
def net():
    first = [nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten()]
    # an order that FSDP does not take
    return nn.Sequential(*first, Block(), Block(), nn.Linear(6, 3)).to(memory_format=torch.channels_last)
"""
    )
    learn = {"kind": "train", "name": "learn", "epochs": 2, "batch": 32, "optimizer": SGD}
    apart = {**learn, "name": "apart", "shard": True, "penalties": False}
    rule = {"layers": "*.a", "group": "neuron", "sparsity": "50%"}
    penalty = {"kind": "sensitivity", "of": "outputs", "strength": 0.1}
    ends = []
    for recompute in (False, True):
        stages = [{**stage, "recompute_activations": recompute} for stage in (learn, apart)]
        given = {**RECIPE, "rules": [{**rule, "penalty": penalty}], "stages": [*stages, {"kind": "cut"}]}
        Path("blocks.json").write_text(json.dumps(given))
        for code, _, said in on(2, "blocks.json", "--from-scratch", "--out", f"runs-{recompute}"):
            assert code == 0, said
        run = Path(f"runs-{recompute}/two-1")
        ends.append(((run / run_folder.WEIGHTS).read_bytes(), [row.loss for row in verify_run(run).history]))
    assert ends[0] == ends[1]
