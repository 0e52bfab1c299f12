"""Other people's trainers: each example runs, resumes to the same bits, and trains as a plain loop with the
hooks would."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from apart import Apart
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "accelerate_loop": "accelerate",
    "lightning_trainer": "lightning",
    "transformers_trainer": "transformers",
}
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3
PENALTIES = {
    "proximal": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 0.5}, "every": 2},
    "gradient": {
        "kind": "group_lasso",
        "strength": {"kind": "linear", "from": 0, "to": 0.5},
        "solver": "subgradient",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str) -> None:
    """Each asserts by itself that the resumed training ends with the same bits."""
    pytest.importorskip(EXAMPLES[name])
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(ROOT / 'tests/zoo')!r}); import shim; "
        f"runpy.run_path({str(ROOT / 'examples' / f'{name}.py')!r}, run_name='__main__')"
    )
    process = Apart(code)
    said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    assert "cut verified: equal" in said


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def plan(net: nn.Module, penalty: str) -> Plan:
    rules = [{"layers": "0", "group": "neuron", "penalty": PENALTIES[penalty]}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (X[:2],))


def by_hand(penalty: str, clip: float | None) -> nn.Module:
    """Two epochs of four steps of two micro-batches of 8."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    with sparsify.attach(plan(net, penalty), net, optimizer, steps_per_epoch=4, steps=8):
        for _ in range(2):
            for i in range(0, 64, 16):
                optimizer.zero_grad()
                for x, y in zip(X[i : i + 16].split(8), Y[i : i + 16].split(8), strict=True):
                    (nn.functional.cross_entropy(net(x), y) / 2).backward()
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
    return net


def close(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_accelerate_trains_as_a_plain_loop(penalty: str) -> None:
    net = model()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer, loader = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9), DataLoader(TensorDataset(X, Y), 8)
    )
    with sparsify.attach(plan(net, penalty), prepared, optimizer, steps_per_epoch=4, steps=8) as hooks:
        for _ in range(2):
            for x, y in loader:
                with accelerator.accumulate(prepared):
                    accelerator.backward(nn.functional.cross_entropy(prepared(x), y))
                    accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
                    optimizer.step()
                    optimizer.zero_grad()
        assert hooks.state_dict()["step"] == 8
    close(net, by_hand(penalty, 0.5))


def lightning_module(net: nn.Module, make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> Any:
    """A LightningModule around a classifier. make_optimizer: of its parameters."""
    lightning = import_module("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.parameters())

    return Module()


def fit(net: nn.Module, callback: Any, batch: int = 8, **options: Any) -> None:
    """Two epochs of Lightning's Trainer, without what it shows and saves."""
    lightning = import_module("lightning.pytorch")

    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[callback],
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        **options,
    )
    module = lightning_module(net, partial(torch.optim.SGD, lr=0.2, momentum=0.9))
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch))


IN_PARTS = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
"""as `by_hand` does"""


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_as_a_plain_loop(penalty: str, precision: str) -> None:
    """Its gradients come into being inside the optimizer's step; the penalty acts once per step and after the
    clipping."""
    pytest.importorskip("lightning")
    adapter = import_module("sparsify.adapters.lightning")
    net = model()
    callback = adapter.SparsifyCallback(plan(net, penalty), net)
    fit(net, callback, precision=precision, **IN_PARTS)
    assert callback.state_dict()["step"] == 8
    wanted = by_hand(penalty, 0.5)
    if precision == "32-true":
        close(net, wanted)
    else:
        for x, y in zip(net.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=0.1, atol=0.03)


def test_lightning_without_the_parameters_is_refused() -> None:
    pytest.importorskip("lightning")
    adapter = import_module("sparsify.adapters.lightning")
    other = model()
    with pytest.raises(
        ModelError,
        match=(
            "no optimizer of the Trainer holds the model's parameters; "
            "give SparsifyCallback the module that is trained"
        ),
    ):
        fit(model(), adapter.SparsifyCallback(plan(other, "proximal"), other), **IN_PARTS)


def test_a_checkpoint_without_hooks_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    adapter = import_module("sparsify.adapters.transformers")
    net = model()
    state = SimpleNamespace(global_step=4, max_steps=8, num_train_epochs=2)
    with pytest.raises(
        ModelError,
        match=r"checkpoint-4/sparsify\.pt is missing: the checkpoint was written without SparsifyCallback",
    ):
        adapter.SparsifyCallback(plan(net, "proximal")).on_train_begin(
            SimpleNamespace(output_dir=str(tmp_path), gradient_accumulation_steps=1),
            state,
            None,
            train_dataloader=range(4),
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        )


def halving_plan(net: nn.Module) -> Plan:
    rules = [{"layers": "0", "group": "neuron", "penalty": PENALTIES["proximal"], "sparsity": "50%"}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (X[:2],))


def cut_by_hand() -> nn.Module:
    """An epoch of four steps with the penalty, the cut with the optimizer carried over, an epoch without."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    own = halving_plan(net)

    def epoch(now: nn.Module) -> None:
        for i in range(0, 64, 16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(now(X[i : i + 16]), Y[i : i + 16]).backward()
            optimizer.step()

    with sparsify.attach(own, net, optimizer, steps_per_epoch=4, steps=8) as hooks:
        epoch(net)
        hooks.flush()
    thin = sparsify.cut(own, net, optimizer=optimizer).model
    epoch(thin)
    return thin


def test_lightning_goes_on_with_the_cut_model() -> None:
    pytest.importorskip("lightning")
    adapter = import_module("sparsify.adapters.lightning")
    net = model()
    callback = adapter.SparsifyCallback(halving_plan(net), net, cut_after=1)
    fit(net, callback, batch=16)
    assert callback.result.model is net and net[0].out_features == 4
    assert callback.result.dense[0].out_features == 8
    close(net, cut_by_hand())


class Wrapped(nn.Module):
    """What transformers' Trainer wants: a loss in what is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.nightly
def test_a_hugging_face_trainer_goes_on_with_the_cut_model(tmp_path: Path) -> None:
    """In a process of its own, since transformers imports whatever vision package lies about."""
    pytest.importorskip("transformers")
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests/zoo")!r}, {str(ROOT / "tests/integration")!r}]
import shim, torch, sparsify
import test_adapters as parts
from transformers import Trainer, TrainingArguments
from sparsify.adapters.transformers import SparsifyCallback
wrapped = parts.Wrapped()
rows = [{{"x": x, "labels": y}} for x, y in zip(parts.X, parts.Y)]
penalty = parts.PENALTIES["proximal"]
rules = [{{"layers": "net.0", "group": "neuron", "penalty": penalty, "sparsity": "50%"}}]
plan = sparsify.make_plan({{"version": 1, "title": "t", "rules": rules}}, wrapped, {{"x": parts.X[:2]}})
callback = SparsifyCallback(plan, cut_after=1)
options = TrainingArguments({str(tmp_path)!r}, num_train_epochs=2, per_device_train_batch_size=16,
    use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, seed=0, max_grad_norm=0,
    lr_scheduler_type="constant", train_sampling_strategy="sequential")
optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.2, momentum=0.9)
Trainer(wrapped, options, train_dataset=rows, callbacks=[callback],
    optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))).train()
assert callback.result.model is wrapped and wrapped.net[0].out_features == 4, wrapped
for a, b in zip(wrapped.net.parameters(), parts.cut_by_hand().parameters()):
    torch.testing.assert_close(a, b)
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600
    )
    assert "went on" in done.stdout, done.stderr


def fit_with_checkpoints(folder: Path, epochs: int = 3, resume: Path | None = None, **options: Any) -> Any:
    """(callback, net) of a training in Lightning that is cut after its first epoch of four steps."""
    lightning = import_module("lightning.pytorch")
    adapter = import_module("sparsify.adapters.lightning")
    net = model()
    callback = adapter.SparsifyCallback(halving_plan(net), net, cut_after=1)
    saver = lightning.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **options)

    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback, saver],
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    module = lightning_module(net, partial(torch.optim.Adam, lr=0.05))
    trainer.fit(module, DataLoader(TensorDataset(X, Y), 16), ckpt_path=resume)
    return callback, net


def test_lightning_resumes_after_its_cut_as_if_nothing_had_happened(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    whole, net = fit_with_checkpoints(tmp_path / "whole")
    for step in (4, 8):
        resumed, other = fit_with_checkpoints(tmp_path / "other", resume=tmp_path / f"whole/step={step}.ckpt")
        assert resumed.result.model is other and other[0].out_features == 4
        assert resumed.result.cuts == whole.result.cuts and resumed.result.verdicts == whole.result.verdicts
        for one, two in ((other, net), (resumed.result.dense, whole.result.dense)):
            wanted = two.state_dict()
            assert all(torch.equal(value, wanted[name]) for name, value in one.state_dict().items())
            assert len(wanted) == len(one.state_dict())


def test_lightning_cuts_a_checkpoint_that_was_written_right_before(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    whole, net = fit_with_checkpoints(tmp_path / "whole", every_n_train_steps=4)
    stored = torch.load(tmp_path / "whole/step=4.ckpt", weights_only=False)
    assert stored["state_dict"]["net.0.weight"].shape == (8, 6), "of the dense model"
    resumed, other = fit_with_checkpoints(tmp_path / "other", resume=tmp_path / "whole/step=4.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))
    assert resumed.result.cuts == whole.result.cuts


def test_lightning_flushes_before_each_checkpoint(tmp_path: Path) -> None:
    """The penalty acts every second step; a checkpoint after an odd one holds what it had saved up."""
    pytest.importorskip("lightning")
    fit_with_checkpoints(tmp_path, epochs=1, every_n_train_steps=1)
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    with sparsify.attach(halving_plan(net), net, optimizer, steps_per_epoch=4, steps=4) as hooks:
        for step in range(3):
            x, y = X[16 * step : 16 * step + 16], Y[16 * step : 16 * step + 16]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            hooks.flush()
            stored = torch.load(tmp_path / f"step={step + 1}.ckpt", weights_only=False)["state_dict"]
            torch.testing.assert_close(stored["net.0.weight"], net[0].weight.detach())


def test_lightning_refuses_a_cut_that_never_comes() -> None:
    pytest.importorskip("lightning")
    adapter = import_module("sparsify.adapters.lightning")
    net = model()
    callback = adapter.SparsifyCallback(halving_plan(net), net, cut_after=3)
    with pytest.raises(ModelError) as error:
        fit(net, callback)
    assert str(error.value) == (
        "cut_after=3 is never reached: the training ends after 2 epochs; train longer, or cut earlier"
    )
    with pytest.raises(ModelError) as error:
        adapter.SparsifyCallback(halving_plan(net), net, cut_after=0)
    assert str(error.value) == "cut_after=0: the model is cut after a whole epoch, the first is 1"


HUGGING_FACE = """
import sys; sys.path[:0] = [{zoo!r}, {here!r}]
import shim, torch, sparsify
import test_adapters as parts
from pathlib import Path
from transformers import Trainer, TrainingArguments
import sparsify.adapters.transformers as adapter
rows = [{{"x": x, "labels": y}} for x, y in zip(parts.X, parts.Y)]
rules = [{{"layers": "net.0", "group": "neuron", "penalty": parts.PENALTIES["proximal"], "sparsity": "50%"}}]

def train(folder, resume=None, cut_after=1, model_init=None, **options):
    torch.manual_seed(0)
    wrapped = parts.Wrapped()
    plan = sparsify.make_plan({{"version": 1, "title": "t", "rules": rules}}, wrapped, {{"x": parts.X[:2]}})
    callback = adapter.SparsifyCallback(plan, cut_after=cut_after)
    settings = {{"num_train_epochs": 3, "save_strategy": "epoch", **options}}
    arguments = TrainingArguments(folder, per_device_train_batch_size=16, use_cpu=True, report_to=[],
        disable_tqdm=True, seed=0, optim="adamw_torch", learning_rate=0.05, logging_strategy="no", **settings)
    trainer = Trainer(None if model_init else wrapped, arguments, train_dataset=rows, callbacks=[callback],
        model_init=model_init)
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer.model
"""


def run_hugging_face(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, since transformers imports whatever vision package lies about."""
    pytest.importorskip("transformers")
    start = HUGGING_FACE.format(zoo=str(ROOT / "tests/zoo"), here=str(ROOT / "tests/integration"))
    monkeypatch.chdir(folder)
    said, complaints = Apart(f"{start}\n{code}\nprint('came to its end')").communicate()
    assert "came to its end" in said, complaints


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        pytest.param({"save_strategy": "steps", "save_steps": 4}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_hugging_face_resumes_after_its_cut_as_if_nothing_had_happened(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hugging_face(
        f"options = {options}"
        """
whole, net = train("out", **options)
for step in (4, 8):
    resumed, other = train("out", f"out/checkpoint-{step}", **options)
    assert resumed.result.model is other and other.net[0].out_features == 4
    assert resumed.result.cuts == whole.result.cuts and resumed.result.verdicts == whole.result.verdicts
    for one, two in ((other, net), (resumed.result.dense, whole.result.dense)):
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b), (options, step)
    assert not other._load_state_dict_pre_hooks and not resumed.result.dense._load_state_dict_pre_hooks
try:
    train("elsewhere", "out/checkpoint-12")
except sparsify.SparsifyError as error:
    assert "no sparsify.pt in elsewhere holds the cut; resume from a checkpoint in output_dir" in str(error)
else:
    raise AssertionError
""",
        tmp_path,
        monkeypatch,
    )


@pytest.mark.nightly
def test_hugging_face_resumes_after_its_cut_where_the_trainer_makes_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hugging_face(
        """
from functools import partial
import transformers
def make(trial=None, width=1):
    torch.manual_seed(width)
    return parts.Wrapped()
for init in (partial(make, None, width=1), lambda trial: make(trial)):
    whole, net = train("out", model_init=init)
    resumed, other = train("out", "out/checkpoint-8", model_init=init)
    assert resumed.result.model is other and other.net[0].out_features == 4
    for one, two in ((other, net), (resumed.result.dense, whole.result.dense)):
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert not other._load_state_dict_pre_hooks and not resumed.result.dense._load_state_dict_pre_hooks
try:
    train("out", "out/checkpoint-8", cut_after=None, model_init=init)
except sparsify.SparsifyError as error:
    assert str(error) == ("out/checkpoint-8 is of a cut model; give SparsifyCallback its cut_after, and the "
        "Trainer the dense model, or the model_init that makes it")
else:
    raise AssertionError

# Each trial of a search begins with a model of its own: it is trained with penalties and cut as the first.
found = []
def judge(metrics):
    found.append(callback.result)
    return metrics["eval_loss"]
wrapped = parts.Wrapped()
plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, wrapped, {"x": parts.X[:2]})
callback = adapter.SparsifyCallback(plan, cut_after=1)
arguments = TrainingArguments("search", num_train_epochs=2, use_cpu=True, report_to=[], disable_tqdm=True,
    save_strategy="epoch", eval_strategy="epoch", per_device_train_batch_size=16, logging_strategy="no")
trainer = Trainer(None, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback],
    model_init=lambda trial: make(trial))
space = lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.01, 0.02)}
trainer.hyperparameter_search(space,
    compute_objective=judge, n_trials=2, backend="optuna")
cuts = list({id(result): result for result in found if result is not None}.values())
assert len(cuts) == 2 and cuts[0].model is not cuts[1].model, cuts
assert [cut.model.net[0].out_features for cut in cuts] == [4, 4]
""",
        tmp_path,
        monkeypatch,
    )


@pytest.mark.nightly
def test_hugging_face_counts_the_steps_of_an_epoch_by_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hugging_face(
        """
seen = []
attach = adapter.attach
adapter.attach = lambda *given, **named: seen.append(named) or attach(*given, **named)
cases = ({"max_steps": 5}, {"num_train_epochs": 0.5}, {"num_train_epochs": 1.25}, {"num_train_epochs": 2})
for options in cases:
    train("out", cut_after=None, save_strategy="no", **options)
train("out", cut_after=None, save_strategy="no", gradient_accumulation_steps=3, num_train_epochs=2)
assert [one["steps_per_epoch"] for one in seen] == [4, 4, 4, 4, 2], seen
assert [one["steps"] for one in seen] == [5, 2, 5, 8, 4], seen
for cut_after, epochs in ((2, 1.5), (3, 2)):
    try:
        train("out", cut_after=cut_after, save_strategy="no", num_train_epochs=epochs)
    except sparsify.SparsifyError as error:
        assert str(error) == (f"cut_after={cut_after} is never reached: the training ends after {epochs:g} "
            "epochs; train longer, or cut earlier")
    else:
        raise AssertionError(cut_after)
""",
        tmp_path,
        monkeypatch,
    )
