import gc
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.cost import measure
from sparsify.cost.measure import runtimes, timing
from sparsify.errors import ModelError
from sparsify.models import lenet5
from sparsify_schemas.report import Environment, Latency
from sparsify_schemas.target import Cpu

IMAGE = (torch.zeros(3, 1, 28, 28),)


def test_macs_of_lenet5_by_layer() -> None:
    total, by_module = measure.count_macs(lenet5(), IMAGE)
    assert by_module == {
        "conv1": 20 * 24 * 24 * 25,
        "conv2": 50 * 8 * 8 * 500,
        "fc1": 800 * 500,
        "fc2": 500 * 10,
    }
    assert total == sum(by_module.values()) == 2_293_000


class Tangled(nn.Module):
    """Calls a module from elsewhere than its parent, one module twice, and works without modules as well."""

    class Caller(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.other = [other]
            self.own = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(self.other[0](x)) @ torch.ones(4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4, bias=False)
        self.caller = self.Caller(self.shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.caller(self.shared(x)) @ torch.ones(4, 2)


def test_macs_go_to_the_module_in_whose_forward_they_happen() -> None:
    total, by_module = measure.count_macs(Tangled(), (torch.zeros(5, 4),))
    assert by_module == {"shared": 32, "caller.own": 16, "caller": 16, "": 8}
    assert total == 72


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Vector(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(16)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Bilinear(4, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x[..., :4], x[..., 4:])


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.LSTM(8, 16, batch_first=True), (5, 8), 5 * (8 * 64 + 16 * 64)),
        (
            nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True),
            (5, 8),
            10 * (8 * 64 + 16 * 64) + 10 * (32 * 64 + 16 * 64),
        ),
        (nn.GRU(8, 16, batch_first=True), (5, 8), 5 * (8 * 48 + 16 * 48)),
        (Attention(), (4, 10, 16), 2 * 4 * 10 * 10 * 16),
        (
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
            (10, 16),
            4 * 10 * 256 + 2 * 10 * 10 * 16 + 2 * 10 * 16 * 32,
        ),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 8, 8), 36 * 8 * 2 * 9),
        (Vector(), (10, 16), 160),
        (Pair(), (10,), 4 * 6 * 5),
        (Pair(), (3, 10), 3 * 4 * 6 * 5),
        (nn.Identity(), (4,), 0),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_macs_against_closed_forms(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    for batch in (1, 3):
        total, by_module = measure.count_macs(model, (torch.randn(batch, *shape),))
        assert total == macs == sum(by_module.values())


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5, bias=False), nn.Linear(4, 5, bias=False)

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) + self.b(right)


def test_keyword_inputs() -> None:
    inputs = {"left": torch.zeros(2, 3), "right": torch.zeros(2, 4)}
    assert measure.count_macs(Keyword(), inputs) == (35, {"a": 15, "b": 20})
    assert (
        measure.measure_latency(
            Keyword(), Keyword(), inputs, "here", Cpu(kind="cpu", batch=3), seconds=0.05
        ).pairs
        >= 8
    )


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    measure.count_macs(model, (torch.randn(3, 4),))
    assert (model.training, model[1].training, model[2].training) == (True, False, True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in model.modules()
    )
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Restless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.own(F.dropout(x.mul_(2), 0.5))


def test_counting_a_model_that_keeps_a_state_changes_neither_it_nor_its_inputs() -> None:
    model, inputs, generator = Restless(), (torch.ones(2, 4),), torch.get_rng_state()
    assert measure.count_macs(model, inputs)[0] == 16
    assert model.calls == 0
    assert torch.equal(inputs[0], torch.ones(2, 4))
    assert torch.equal(generator, torch.get_rng_state())


def test_a_failing_forward_call_says_which_inputs_it_had_and_leaves_nothing_behind() -> None:
    model = lenet5()
    with pytest.raises(ModelError, match=r"^a forward call with inputs 2x3x28x28 failed: RuntimeError: "):
        measure.count_macs(model, (torch.zeros(2, 3, 28, 28),))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert measure.count_macs(model, IMAGE)[0] == 2_293_000


def test_side_counts_the_model_and_its_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    model[1].weight = nn.Parameter(torch.tensor([[0.0, 1.0, 2.0]] * 4))
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"x" * 123)
    side = measure.measure_side(model, (torch.zeros(2, 4),), file, validation_metric=0.5)
    assert (side.params, side.nonzero, side.macs, side.bytes) == (31, 27, 24, 123)
    assert (side.validation_metric, side.test_metric) == (0.5, None)


def test_shared_parameters_count_once(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    (tmp_path / "w").write_bytes(b"x")
    assert (
        measure.measure_side(nn.Sequential(layer, layer), (torch.zeros(1, 4),), tmp_path / "w").params == 20
    )


def timed(dense: nn.Module, cut: nn.Module, seed: int = 0) -> Latency:
    return measure.measure_latency(
        dense, cut, (torch.randn(2, 64),), "laptop", Cpu(kind="cpu", batch=4), seconds=0.3, seed=seed
    )


class Machine:
    """A clock that only the models move on: each call takes what it costs, and now and then much more, as
    on a busy machine."""

    def __init__(self, slowness: float) -> None:
        self.slowness, self.now, self.chance = slowness, 0.0, random.Random(0)

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        disturbed = self.chance.expovariate(1 / 5) if self.chance.random() < 0.1 else 0.0
        self.now += self.slowness * seconds * (self.chance.uniform(0.95, 1.05) + disturbed)


class Costly(nn.Module):
    """Takes so many seconds of a machine."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        super().__init__()
        self.machine, self.seconds = machine, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.machine.work(self.seconds)
        return x


@pytest.fixture(params=[1, 10, 1000], ids="slower {}x".format)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(request.param)
    monkeypatch.setattr(timing.time, "perf_counter", found.clock)
    monkeypatch.setattr(timing.time, "process_time", found.clock)
    return found


def test_identical_models_are_equally_fast(machine: Machine) -> None:
    """The interval misses 1 in one of twenty measurements by its nature: of ten, eight must hold it."""
    results = [timed(Costly(machine, 0.002), Costly(machine, 0.002), seed) for seed in range(10)]
    assert sum(r.low <= 1 <= r.high for r in results) >= 8


def test_a_model_of_half_the_cost_is_twice_as_fast_on_a_busy_machine(machine: Machine) -> None:
    found = timed(Costly(machine, 0.002), Costly(machine, 0.001))
    assert 1.5 < found.low <= found.speedup <= found.high < 2.5
    assert found.dense_ms == pytest.approx(2 * machine.slowness, rel=0.1)
    assert found.cut_ms == pytest.approx(machine.slowness, rel=0.1)


def test_timing_keeps_to_its_time(machine: Machine) -> None:
    model = Costly(machine, 0.002)
    rounds = timed(model, model).pairs
    spent = machine.now / machine.slowness
    assert rounds == 8 if machine.slowness > 1 else rounds > 8, "never fewer than 8"
    assert spent < 0.6 if machine.slowness == 1 else spent < 0.2


def test_a_clock_that_does_not_tick_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "process_time", lambda: 5.0)
    found = measure.measure_latency(
        nn.ReLU(), nn.ReLU(), (torch.zeros(2, 4),), "x", Cpu(kind="cpu"), seconds=0.01
    )
    assert 0 < found.low <= found.speedup <= found.high < math.inf


def test_a_smaller_model_is_faster_and_the_figures_agree() -> None:
    dense, cut = nn.Linear(64, 8192), nn.Linear(64, 64)
    result = timed(dense, cut)
    assert result.target == "laptop"
    assert result.description == "cpu, eager, 1 thread, batch 4"
    assert result.dense_ms > result.cut_ms > 0
    assert 1 < result.low <= result.speedup <= result.high
    assert result.pairs >= 8
    assert math.isfinite(result.load)


def test_a_batch_beyond_the_memory_is_named() -> None:
    net = nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"^target 'here' with batch 1000000000000000 cannot be timed: "):
        measure.measure_latency(
            net, net, (torch.zeros(2, 4),), "here", Cpu(kind="cpu", batch=10**15), seconds=0.05
        )


def test_timing_restores_everything() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout())
    model[0].eval()
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    measure.measure_latency(model, model, (torch.randn(1, 64),), "x", Cpu(kind="cpu", threads=2), seconds=0.1)
    assert torch.get_num_threads() == threads
    assert gc.isenabled() == collecting
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


class Watcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, bool, bool, int]] = set()

    def forward(self, x: Tensor, fixed: Tensor) -> Tensor:
        self.seen.add((x.shape[0], self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        assert fixed.shape == (7, 2)
        return x


def test_models_run_in_inference_mode_with_the_targets_batch_and_threads() -> None:
    watcher = Watcher()
    measure.measure_latency(
        watcher,
        watcher,
        (torch.randn(2, 3), torch.zeros(7, 2)),
        "x",
        Cpu(kind="cpu", threads=1, batch=5),
        seconds=0.02,
    )
    assert watcher.seen == {(5, False, True, 1)}


def test_the_interval_covers_the_median_and_is_the_same_for_the_same_seed() -> None:
    ratios = np.random.default_rng(1).normal(2.0, 0.1, 200)
    low, high = timing.bootstrap_interval(ratios, np.random.default_rng(0))
    assert low < np.median(ratios) < high
    assert (high - low) == pytest.approx(2 * 1.96 * 1.2533 * 0.1 / math.sqrt(200), rel=0.35)
    assert timing.bootstrap_interval(ratios, np.random.default_rng(0)) == (low, high)


def test_environment_names_what_it_ran_on() -> None:
    found = measure.describe_environment()
    assert found == Environment.model_validate(found.model_dump())
    assert found.packages["torch"] == torch.__version__
    assert found.cores >= 1
    assert found.processor


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_timing_does_not_fetch_its_memory_from_the_system_with_every_call() -> None:
    """Run apart, as what a process did before decides what its heap does."""
    code = """
import resource
import numpy as np, torch
from sparsify.cost.measure.timing import time_interleaved
faults = []
def call():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(2**22) for _ in range(4)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
time_interleaved([call], 0.2, np.random.default_rng(0))
print(min(faults[-8:]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "64 MiB are 16384 pages"


@pytest.mark.filterwarnings("ignore")  # of torch's export
def test_what_onnxruntime_cannot_run_is_an_error_that_says_so() -> None:
    """torch exports an LSTM that projects its states as one that does not."""
    pytest.importorskip("onnxruntime")
    model = nn.LSTM(6, 8, proj_size=3, batch_first=True)
    with pytest.raises(ModelError) as caught:
        runtimes.prepare(model, (torch.randn(1, 4, 6),), Cpu(kind="cpu", runtime="onnxruntime"))
    assert str(caught.value).startswith("onnxruntime cannot run the exported model: ")
