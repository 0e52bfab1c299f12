"""Whatever ends a run, it can go on and ends with the same bits; an unfinished one never passes for
complete."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import BRIEFLY, Apart
from safetensors.torch import load_file

from sparsify.errors import RunError
from sparsify.events import EpochDone, Event, RunStarted, StepDone
from sparsify.models import digits_cnn
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.runs.listing import list_runs
from sparsify.runs.save_load import load_run, verify_run

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
RULES = [
    {
        "layers": "conv*",
        "group": "filter",
        "penalty": {
            "kind": "group_lasso",
            "strength": {"kind": "linear", "from": 0, "to": 2e-3, "end": "2ep"},
        },
    },
    {"layers": "fc", "group": "weight", "sparsity": "30%", "penalty": {"kind": "l1", "strength": 1e-3}},
]
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%", "augment": {"crop": 1}},
    "budget": {"macs": "50%"},
    "rules": RULES,
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 4, "optimizer": SGD},
        {"kind": "cut"},
        {"kind": "train", "name": "finetune", "epochs": 2, "optimizer": {"kind": "adam", "lr": 1e-3}},
    ],
}
SHORT = {
    **RECIPE,
    "stages": [{**RECIPE["stages"][0], "epochs": 1}, {"kind": "cut"}, {**RECIPE["stages"][2], "epochs": 1}],
}
RUN = Path("runs/digits-1")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without any interruption."""
    return apply(RECIPE, from_scratch=True, out=tmp_path_factory.mktemp("whole"), timing=0.05).resolve()


def same_end(a: Path, b: Path) -> bool:
    """Weights, cuts and history, to the last bit."""

    def history(run: Path) -> list[Any]:
        return [row.model_copy(update={"seconds": 0}) for row in verify_run(run).history]

    weights = all(
        (a / f).read_bytes() == (b / f).read_bytes()
        for f in (run_folder.WEIGHTS, run_folder.DENSE, run_folder.CUTS)
    )
    return weights and history(a) == history(b)


def script(code: str, *arguments: str) -> Apart:
    return Apart(
        "import json, os, sys, time, torch\nfrom pathlib import Path\ntorch.set_num_threads(1)\n" + code,
        *arguments,
    )


TWO_EPOCHS = (
    BRIEFLY
    + """
from sparsify.events import EpochDone, StepDone
from sparsify.runs.apply import apply
done = []

def wait_to_be_killed(event):
    if isinstance(event, EpochDone):
        done.append(event)
    if isinstance(event, StepDone) and len(done) == 2:
        Path("two epochs are done").touch()
        time.sleep(3600)

apply(json.loads(sys.argv[1]), from_scratch=True, timing=0.05, listener=wait_to_be_killed)
"""
)


def test_kill_9_in_training_then_resume_ends_with_the_same_bits(whole: Path) -> None:
    process = script(TWO_EPOCHS, json.dumps(RECIPE))
    while not Path("two epochs are done").exists():
        assert process.returncode is None
        time.sleep(0.01)
    assert torch.load(RUN / run_folder.CHECKPOINT)["moment"]["epochs"] == 2
    assert [r.state for r in list_runs("runs")] == ["running"]
    with pytest.raises(RunError, match=f"is in use by process {process.pid}"):
        apply(resume=RUN)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [r.state for r in list_runs("runs")] == ["interrupted"]

    heard: list[Event] = []
    assert apply(resume=RUN, timing=0.05, listener=heard.append) == RUN
    assert heard[0] == RunStarted(str(RUN), resumed=True)
    assert next(e.epoch for e in heard if isinstance(e, EpochDone)) == 3
    assert same_end(RUN, whole)
    assert not (RUN / run_folder.CHECKPOINT).exists()


AT_EACH_WRITE = (
    BRIEFLY
    + """
from sparsify.runs.listing import list_runs
from sparsify.runs.apply import apply
recipe, replace = json.loads(sys.argv[1]), Path.replace

def forked(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def dying(at):
    written = []
    def dies(self, target):
        if len(written) == at:
            os._exit(9)
        written.append(target)
        return replace(self, target)
    Path.replace = dies
    apply(recipe, from_scratch=True, out=f"at-{at}", timing=0.01)

apply(recipe, from_scratch=True, out="warm", timing=0.01)  # what is loaded on first use, loaded here
for at in range(99):
    first = forked(lambda: dying(at))
    rows = list_runs(f"at-{at}")
    run = Path(f"at-{at}/digits-1")
    left = sorted(p.name for p in run.iterdir())
    second = forked(lambda: apply(resume=run, timing=0.01)) if first == 9 and rows else None
    states, then = [r.state for r in rows], [r.state for r in list_runs(f"at-{at}")]
    print(json.dumps([first, states, left, second, then]), flush=True)
    if first != 9:
        break
"""
)


@pytest.mark.nightly
@pytest.mark.slow
def test_death_at_any_write_never_looks_complete_and_can_be_resumed(whole: Path) -> None:
    output, _ = script(AT_EACH_WRITE, json.dumps(SHORT)).communicate()
    *deaths, unhurt = [json.loads(line) for line in output.splitlines()]
    assert unhurt[:2] == [0, ["complete"]]
    # state, recipe, plan, checkpoint 1, dense, checkpoints 2, 3 and 4, cuts, weights, page in Markdown,
    # page in HTML, report
    assert len(deaths) == 13
    assert deaths[0][:2] == [9, []]  # not even state.json: nothing was begun, an empty folder is left
    for death, before, left, resumed, after in deaths[1:]:
        assert (death, before, resumed, after) == (9, ["interrupted"], 0, ["complete"]), left
    ends = {
        tuple((Path(f"at-{at}/digits-1") / f).read_bytes() for f in (run_folder.WEIGHTS, run_folder.CUTS))
        for at in range(1, len(deaths) + 1)
    }
    assert len(ends) == 1


def interrupted(recipe: dict[str, Any] = RECIPE, after: int = 2, **more: Any) -> Path:
    """A run that Ctrl-C ended in the epoch after so many."""
    done: list[EpochDone] = []

    def listener(event: Event) -> None:
        if isinstance(event, EpochDone):
            done.append(event)
        if isinstance(event, StepDone) and len(done) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(
            recipe, **{"from_scratch": "model_file" not in more, "listener": listener, "timing": 0.05, **more}
        )
    return Path(more.get("out", "runs")) / RUN.name


@pytest.mark.parametrize("after", [0, 1, 4, 5])
def test_ctrl_c_then_resume_ends_with_the_same_bits(whole: Path, after: int) -> None:
    run = interrupted(after=after)
    assert list_runs("runs")[0].state == "interrupted"
    apply(resume=run, timing=0.05)
    assert same_end(run, whole)


def test_gates_and_noise_go_on_where_they_were(tmp_path: Path) -> None:
    """Between epochs the model is without them; a checkpoint holds that and what is behind it. In the end
    closed gates are cut."""
    rules = [
        {"layers": "conv*", "group": "filter", "penalty": {"kind": "l0", "strength": 2e-3, "rate": 0.1}},
        {
            "layers": "fc",
            "group": "weight",
            "penalty": {"kind": "variational_dropout", "strength": 2e-3, "rate": 0.1},
        },
    ]
    recipe = {**RECIPE, "data": {**RECIPE["data"], "validation": "10%"}, "rules": rules}
    end = apply(recipe, from_scratch=True, out=tmp_path / "whole", timing=0.05)
    history = verify_run(end).history
    assert history[0].sparsity < history[3].sparsity and history[3].sparsity > 0.3
    run = interrupted(recipe, after=2)
    apply(resume=run, timing=0.05)
    assert same_end(run, end)


@pytest.mark.nightly
def test_interrupted_twice(whole: Path) -> None:
    run = interrupted(after=1)

    def listener(event: Event) -> None:
        if isinstance(event, EpochDone) and event.stage == "finetune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(resume=run, listener=listener)
    apply(resume=run, timing=0.05)
    assert same_end(run, whole)


def test_resume_from_another_folder_finds_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(digits_cnn().state_dict(), "model.pt")
    run = interrupted(SHORT, after=1, model_file="model.pt").resolve()
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert load_run(apply(resume=run, timing=0.05))


def test_a_model_file_that_changed_is_refused() -> None:
    torch.save(digits_cnn().state_dict(), "model.pt")
    run = interrupted(SHORT, after=1, model_file="model.pt")
    torch.save(digits_cnn().state_dict(), "model.pt")
    with pytest.raises(RunError, match=r"model.pt was changed since the run began"):
        apply(resume=run)
    Path("model.pt").unlink()
    with pytest.raises(RunError, match=r"cannot read .*model.pt"):
        apply(resume=run)


def test_what_cannot_be_resumed_says_why() -> None:
    with pytest.raises(RunError, match="there is no run runs/digits-1"):
        apply(resume=RUN)
    Path("runs/digits-1").mkdir(parents=True)
    with pytest.raises(RunError, match=r"holds no interrupted run: state.json is missing"):
        apply(resume=RUN)
    RUN.rmdir()
    run = interrupted(SHORT, after=1)
    for more in ({"recipe": SHORT}, {"overrides": ("seed=1",)}):
        with pytest.raises(RunError, match="continues with its own recipe; start a new run to use another"):
            apply(resume=run, **more)


def test_an_edited_recipe_is_refused() -> None:
    run = interrupted(SHORT, after=1)
    text = (run / run_folder.RECIPE).read_text()
    (run / run_folder.RECIPE).write_text("# a remark is no change\n" + text)
    run_folder.State.read(run)
    (run / run_folder.RECIPE).write_text(
        text.replace("seed: 0", "seed: 1") if "seed: 0" in text else text + "\nseed: 1\n"
    )
    with pytest.raises(RunError, match=r"recipe.yaml was changed since the run began"):
        apply(resume=run)
    (run / run_folder.RECIPE).write_text("# a remark is no change\n" + text)
    assert apply(resume=run, timing=0.05)


@pytest.mark.parametrize("name", [run_folder.STATE, run_folder.CHECKPOINT])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 nonsense"])
def test_damage_is_named(name: str, content: bytes) -> None:
    run = interrupted(SHORT, after=1)
    (run / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is damaged.*start a new one"):
        apply(resume=run)


def test_a_complete_run_has_nothing_to_resume(whole: Path) -> None:
    with pytest.raises(RunError, match="nothing to resume"):
        apply(resume=whole)


def test_a_checkpoint_is_read_without_pickle() -> None:
    run = interrupted(after=1)
    body = torch.load(run / run_folder.CHECKPOINT, weights_only=True)
    assert body["moment"]["epochs"] == 1
    assert set(body["weights"]) == set(digits_cnn().state_dict())


def test_what_is_compared_with_is_kept_from_before_the_cut(whole: Path) -> None:
    dense, thin = load_file(whole / run_folder.DENSE), load_file(whole / run_folder.WEIGHTS)
    assert dense["conv2.weight"].shape == (32, 16, 3, 3)
    narrower = {name for name in dense if thin[name].numel() < dense[name].numel()}
    assert {name for name in narrower if name.startswith("conv") and name.endswith("weight")}


def test_a_run_with_a_cropped_kernel_goes_on_after_its_cut(tmp_path: Path) -> None:
    """One of nine kernel positions lives: the checkpoint's weights fit the 1x1 kernel that the cut log
    brings about."""
    recipe = {
        **SHORT,
        "budget": {},
        "rules": [{"layers": "conv3", "group": "tap", "sparsity": "89%"}, RULES[1]],
    }
    undisturbed = apply(recipe, from_scratch=True, out=tmp_path / "undisturbed", timing=0.05).resolve()

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == "finetune" and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(recipe, from_scratch=True, timing=0.05, listener=stop)
    assert apply(resume=RUN, timing=0.05) == RUN
    assert load_run(RUN).conv3.weight.shape[2:] == (1, 1)
    assert same_end(RUN, undisturbed)


BLOCKS = """
from torch import nn
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop, self.b = nn.Dropout(0.1), nn.Conv2d(width, width, 3, padding=1)
    def forward(self, x): return x + self.b(self.drop(self.norm(self.a(x)).relu()))
def net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
"""


@pytest.mark.nightly
def test_mixed_recomputed_and_channels_last_stages_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cuts between epochs, a penalty, Adam's state, an average and a teacher; and recomputing changes
    nothing."""
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("blocknet.py").write_text(BLOCKS)
    manner = {"mixup": 0.4, "cutmix": 1.0, "layout": "channels_last", "recompute_activations": True}
    adam = {"kind": "adam", "lr": 1e-3}
    shrink = {"kind": "train", "name": "shrink", "epochs": 3, "optimizer": adam, "cuts": {"end": "2ep"}}
    tune = {"kind": "train", "name": "tune", "epochs": 2, "penalties": False, "optimizer": adam}
    rule = {"layers": "*.a", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 1e-3}}
    more = {
        "distill": {"features": ["*.a", "*.norm", "2"]},
        "ema": 0.9,
        "label_smoothing": 0.1,
        "accumulate": 2,
    }
    stages = [{**shrink, **manner, "batch": 256}, {**tune, **manner, **more, "batch": 256}]
    recipe = {
        **RECIPE,
        "model": {"build": "blocknet.net"},
        "budget": {"macs": "70%"},
        "rules": [rule],
        "stages": stages,
    }
    end = apply(recipe, from_scratch=True, out=tmp_path / "whole", timing=0.05)
    kept = [{**stage, "recompute_activations": False} for stage in stages]
    plain = apply({**recipe, "stages": kept}, from_scratch=True, out=tmp_path / "plain", timing=0.05)
    ends = [load_file(run / run_folder.WEIGHTS) for run in (plain, end)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for after in (1, 4):
        run = interrupted(recipe, after=after, out=tmp_path / f"after-{after}")
        apply(resume=run, timing=0.05)
        assert same_end(run, end)
    assert all(p.is_contiguous() for p in load_run(end).parameters())
