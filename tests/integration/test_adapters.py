"""Other people's trainers: each example runs, resumes to the same bits, and trains as a plain loop with the
hooks would."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
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
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert "cut verified: equal" in done.stdout


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


def fit(net: nn.Module, callback: Any, batch: int = 8, **options: Any) -> None:
    """Two epochs of Lightning's Trainer, without what it shows and saves."""
    lightning = import_module("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)

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
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch))


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
            SimpleNamespace(output_dir=str(tmp_path)),
            state,
            None,
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
