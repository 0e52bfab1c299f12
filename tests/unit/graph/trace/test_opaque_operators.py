"""Networks with parts that the tracer cannot follow: each plans, is cut where that is right, and says why the
rest stays.

The reference is independent of the cutter: a float64 copy of the dense model in which every index that the
log does not keep is zero, on inputs that nothing was planned with.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import opaque
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import ModelError
from sparsify.graph.surgery import operations as cut_operations
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.trace.operator_rules import RULES
from sparsify.graph.verify import trial_cuts
from sparsify.pruning.cut import Result
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import load
from sparsify_schemas.cuts import Narrow

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # TorchScript, nested and sparse tensors, quantisation: old or in beta

FOURIER = "a Fourier transform runs along it"
FIXED = "it is combined with something of fixed size"
ALONE = "its channels can only be removed all together"
TRIAL = "a trial cut failed"
NUMPY = "its values leave torch through numpy()"
BLOCK = "it enters the scripted module 'block'"
COND = "it passes through 'cond', whose functions are not followed"
SPARSE = "the sparse tensor 'weight' keeps its shape"
OUTSIDE = ("it feeds the network's output", "takes no part in a forward call with these inputs")


def unknown(operator: str) -> str:
    return f"it passes through '{operator}', an operator without a rule"


def matrices(operator: str) -> str:
    return f"'{operator}' takes whole matrices"


EXPECTED: dict[str, dict[str, str | None]] = {
    "rotary by complex numbers": {"a": None, "q": None, "up": None},
    "rotary, table made in forward": {"a": None, "q": None, "up": None},
    "rotary, table of two parts": {"a": None, "q": None, "up": None},
    "complex gate": {"a": None, "c": None},
    "real times imaginary part": {"a": None, "c": None},
    "polar": {"a": None, "c": None},
    "complex weights": {"a.weight": None, "b.weight": None, "c": None},
    "complex state space": {"a": None, "b": None},
    "complex numbers of two halves": {"a": None, "b": None},
    "complex output": {"a": None, "b": None, "fc": FOURIER},
    "FNet": {"a": FOURIER, "up": None},
    "FNet over tokens": {"a": None, "up": None},
    "FNet over features": {"a": FOURIER, "up": None},
    "long convolution": {"a": None, "b": None},
    "global filter": {"a": None, "b": None},
    "Fourier neural operator": {"a": None, "w": None, "c": None},
    "spectral pooling": {"a": None, "b": None},
    "spectrogram": {"a": None, "one": ALONE, "b": None},
    "Fourier along channels": {"a": FOURIER, "b": None},
    "depthwise by Fourier": {"a": None},
    "spectral mask": {"a": None, "b": FIXED},
    "Fourier along examples": {"a": None, "b": None},
    "decorrelated features": {"a": None, "b": unknown("diag_embed")},
    "covariance pooling": {"a.0": None, "b": "it is flattened together with another dimension"},
    "correlation of examples": {"a": TRIAL, "b": None},
    "vmap over heads": {"a": None, "weight": None},
    "vmap over examples": {"a": None, "b": None},
    "ensemble": {"a": None, "members.0.0": None},
    "stacked ensemble": {"a": None},
    "hypernetwork": {"a": None, "layer": None},
    "gradient of the network": {"a": None, "b": None, "fc": ALONE},
    "tangent of the network": {"a": FIXED, "b": FIXED, "fc": FIXED},
    "forces": {"a": None, "b": None, "fc": ALONE},
    "straight through": {"a": None, "b": None},
    "frugal function": {"a": None, "b": None},
    "gradient reversal": {"a": None, "b": None},
    "checkpoint": {"a": None, "b": None},
    "checkpoint, reentrant": {"a": None, "b": None},
    "vmap over channels": {"a": "a fixed index of it is taken", "b": None},
    "vmap of Fourier transforms": {"a": None, "b": None},
    "Jacobian": {"a": None, "b": None, "fc": "it is tied to something of fixed size"},
    "Hessian": {"a": FIXED, "b": FIXED, "fc": FIXED},
    "inner loop": {"a": None, "b": TRIAL},
    "scripted block": {"a": None, "b": BLOCK, "c": None},
    "traced block": {"a": None, "b": BLOCK, "c": None},
    "frozen block": {"a": None, "b": BLOCK, "c": None},
    "scripted activation": {"a": None, "b": BLOCK, "c": None},
    "scripted function": {"a": None, "b": None},
    "scripted if tracing": {"a": None, "b": None},
    "traced function": {"a": None, "b": None},
    "scripted first": {"b": None},
    "scripted last": {"a": None, "b": "it enters the scripted module 's'"},
    "scripted branch": {"a": "it enters the scripted module 's'"},
    "traced convolution": {"a": "it enters the scripted module 'b'", "c": None},
    "forked": {"a": None, "b": None},
    "compiled function": {"a": None, "b": None},
    "sparse adjacency": {"a": None, "b": None},
    "sparse adjacency, not saved": {"a": None, "b": None},
    "sparse rows": {"a": None, "b": None},
    "sparse rows, not saved": {"a": None, "b": None},
    "sparse weight": {"weight": SPARSE, "a": SPARSE},
    "weighted edges": {"a": None, "weigh": ALONE, "b": None},
    "sparse batch": {"a": None, "b": None},
    "sparse attention": {"a": None, "b": None},
    "sparse features": {"a": unknown("_to_sparse"), "b": None},
    "inference mode": {"a": None, "b": None},
    "inference mode, first half": {"a": None, "b": None, "c": None},
    "inference mode, decorated": {"a": None, "b": None},
    "autocast": {"a": None, "b": None},
    "autocast, first half": {"a": None, "b": None, "c": None},
    "autocast with a part off": {"a": None, "b": None},
    "deep autocast": {"layers.0": None, "layers.1": None, "layers.2": None},
    "transposed parameter": {"a": None, "weight": None},
    "slice of a parameter": {"weight": "it is sliced at a fixed place", "weight#2": None, "a": None},
    "entry of a stacked parameter": {"weight": None, "a": None},
    "parameter as a view": {"a": TRIAL},
    "sum of parameters": {"base": None, "a": None},
    "two parameters as one": {"learnt": "it is sliced at a fixed place", "learnt#2": None, "a": None},
    "learned queries": {"queries": None, "a": None, "att": None, "att.out_proj": None, "b": None},
    "adapters": {"a": None, "b": None},
    "branch on an item": {"a": "a fixed index of it is taken", "b": None},
    "branch on a truth": {"a": None, "c": None},
    "loop until sure": {"a": None, "halt": ALONE},
    "length from data": {"a": None, "b": "it is sliced at a fixed place", "gate": None},
    "cond": {"a": None, "b": COND},
    "cond between layers": {"a": COND},
    "while loop": {"a": "it passes through 'while_loop', whose functions are not followed", "b": None},
    "through NumPy": {"a": NUMPY, "b": None},
    "norm by NumPy": {"a": NUMPY, "b": None},
    "array of a tensor": {"a": "its values leave torch through numpy.asarray", "b": None},
    "through lists": {"a": "its values leave torch through tolist()", "b": None},
    "NumPy in a function": {"a": NUMPY, "b": None},
    "deep copy": {"a": "its values leave torch through copy.deepcopy", "b": None},
    "in a thread": {"a": TRIAL, "b": None},
    "singular values": {"a": matrices("_linalg_svd"), "b": None},
    "inverse": {"a": "'linalg_inv_ex' takes whole matrices", "b": None},
    "solve": {"a": "'_linalg_solve_ex' takes whole matrices", "b": None},
    "Cholesky": {"a": "'linalg_cholesky_ex' takes whole matrices", "b": None},
    "ridge regression": {"a": None, "b": "'_linalg_solve_ex' takes whole matrices"},
    "orthogonal weight": {"a": None, "b": "one side of its diagonal is taken by 'tril'"},
    "log-volume": {"a": "'_linalg_slogdet' takes whole matrices", "b": None},
    "inverse by channel": {"a": None, "b": None},
    "solve by channel": {"a": None, "b": None},
    "nested tensor": {
        "a": "it passes through '_nested_tensor_from_tensor_list', which works on nested tensors",
        "b": "it passes through 'linear', which works on nested tensors",
    },
    "jagged tensor": {"a": None, "b": unknown("_jagged_to_padded_dense_forward")},
    "quantisation stubs": {"a": None, "b": None},
    "quantised and back": {"a": unknown("quantize_per_tensor"), "b": None},
    "dynamically quantised layer": {"a": None, "b": unknown("linear_dynamic"), "c": None},
    "custom operator": {"a": unknown("squash"), "b": None},
    "custom operator, described": {"a": unknown("squash_described"), "b": None},
    "custom operator with weights": {"a": unknown("joined"), "b": unknown("joined"), "c": None},
    "custom operator in place": {"a": unknown("squash_in_place"), "b": None},
}
"""network -> coupled group -> why it stays, None where it can be cut; without those that feed the output
or do not run"""


def rules(layers: Iterable[tuple[str, str]], more: dict[str, Any]) -> list[dict[str, Any]]:
    found: dict[str, list[str]] = {}
    for group, layer in layers:
        found.setdefault(group, []).append(layer)
    return [
        {"layers": names, "group": group, "criterion": {"kind": "random"}, **more}
        for group, names in found.items()
    ]


def recipe(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Half of the layers named; all layers, and no amount, where none are."""
    modules = {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    }
    layers = []
    for name in modules if names is None else names:
        if name not in modules:  # a parameter of a module of the network's own, which goes by its class
            layers.append(("filter", type(model.get_submodule(name.rpartition(".")[0])).__name__))
        elif isinstance(modules[name], nn.Conv1d | nn.Conv2d):
            layers.append(("filter", name))
        elif type(modules[name]) is nn.Linear:
            layers.append(("neuron", name))
    unique = dict.fromkeys(layers)
    return {
        "version": 1,
        "title": "half",
        "rules": rules(unique, {} if names is None else {"sparsity": "50%"}),
    }


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    build, inputs = opaque.NETWORKS[name]
    torch.manual_seed(0)
    return build().eval(), inputs()


def fresh(inputs: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(x.shape, generator=generator) for x in inputs)


def doubled(model: nn.Module) -> nn.Module:
    return model._apply(
        lambda t: t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t
    )


def masked(model: nn.Module, operations: Iterable[Any]) -> nn.Module:
    """The model, zero at every index that an operation of the log does not keep."""
    values = dict(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    )
    with torch.no_grad():
        for op in operations:
            if isinstance(op, Narrow):
                gone = torch.ones(op.size, dtype=torch.bool)
                for start, end in op.keep:
                    gone[start:end] = False
                values[op.tensor].index_fill_(op.dim, gone.nonzero().flatten(), 0)
    return model


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(3)
        out = model(*inputs)
    return [out] if isinstance(out, Tensor) else list(out)


def gap(thin: nn.Module, reference: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    pairs = zip(answers(thin, inputs), answers(reference, inputs), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def difference(name: str, result: Result, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """(largest relative difference to the reference, what it may be): in float64, where the network runs
    in it."""
    reference = masked(built(name)[0], result.cuts.operations)
    thin = replay_cuts(built(name)[0], result.cuts)
    thin.load_state_dict(result.model.state_dict())
    try:
        wide = tuple(x.double() for x in inputs)
        return gap(doubled(thin), doubled(reference), wide), 1e-9
    except RuntimeError:
        thin = replay_cuts(built(name)[0], result.cuts)
        thin.load_state_dict(result.model.state_dict())
        return gap(thin, masked(built(name)[0], result.cuts.operations), inputs), 1e-5


@pytest.mark.parametrize("name", opaque.NETWORKS)
def test_what_cannot_be_followed_stays_and_the_rest_is_cut_rightly(name: str) -> None:
    model, inputs = built(name)
    plan = plan_recipe(load(recipe(model)).recipe, model, inputs, every_group=True)
    found = {c.name: c.protected for c in plan.map.coupled if c.protected not in OUTSIDE}
    shown = {
        group: TRIAL if why is not None and why.startswith(TRIAL) else why for group, why in found.items()
    }
    assert shown == EXPECTED.get(name, shown)
    free = [group for group, why in found.items() if why is None and group not in LEFT_WHOLE.get(name, ())]
    chosen = recipe(model, free)
    if not chosen["rules"]:
        return
    result = sparsify.cut(sparsify.make_plan(chosen, model, inputs), model, inputs=inputs)
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    for seed in (11, 12):
        gone, allowed = difference(name, result, fresh(inputs, seed))
        assert gone <= allowed


LEFT_WHOLE = {
    "learned queries": ("queries", "att", "att.out_proj"),
    "slice of a parameter": ("weight#2",),
    "two parameters as one": ("learnt#2",),
}
"""what is cut over means or a softmax: those leave removed units out, which is proven elsewhere; rows that
nothing reads, of a layer whose other rows stay"""


def test_every_network_has_its_reasons_and_each_kind_three_networks() -> None:
    assert opaque.NETWORKS.keys() - EXPECTED.keys() == {
        "fake quantisation",
        "observers in eval mode",
        "one observer of all channels",
    }  # of their operators elsewhere
    kinds = (
        opaque.COMPLEX,
        opaque.FOURIER,
        opaque.COVARIANCE,
        opaque.FUNCTIONS,
        opaque.SCRIPTED,
        opaque.SPARSE,
        opaque.MODES,
        opaque.PARAMETERS,
        opaque.CONTROL,
        opaque.PYTHON,
        opaque.ALGEBRA,
    )
    assert all(len(kind) >= 3 for kind in kinds)


def planned(name: str) -> Plan:
    model, inputs = built(name)
    return sparsify.make_plan(recipe(model), model, inputs)


@pytest.mark.parametrize(
    ("name", "operator"), [("cond", "cond"), ("while loop", "while_loop"), ("nested tensor", "linear")]
)
def test_what_could_not_be_counted_is_noted(name: str, operator: str) -> None:
    assert (
        f"the MACs of '{operator}' are not counted: its operands have no plain shapes, "
        "or it runs functions of its own"
    ) in planned(name).notes


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("gradient of the network", 6 * 16 * 2 + 16 * 12 * 2 + 12 * 2),
        ("transposed parameter", 6 * 16 + 16 * 12 + 12 * 3),
    ],
)
def test_macs_are_counted_where_gradients_are_taken_and_views_of_parameters_are_passed(
    name: str, macs: int
) -> None:
    plan = planned(name)
    assert plan.map.macs == macs and not any("not counted" in note for note in plan.notes)


def test_a_model_with_torch_cond_still_runs_after_the_plan() -> None:
    model, inputs = built("cond")
    before = model(*inputs)
    sparsify.make_plan(recipe(model), model, inputs)
    assert torch.equal(model(*inputs), before)


@pytest.mark.nightly
def test_a_model_with_torch_cond_runs_after_a_plan_that_ran_it_first() -> None:
    """In a process of its own: what torch compiles is remembered for as long as it lives."""
    code = (
        "import test_opaque_operators as t, sparsify; m, x = t.built('cond'); "
        "sparsify.make_plan(t.recipe(m), m, x); m(*x)"
    )
    folders = [str(Path(__file__).parent), str(Path(opaque.__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["autocast, first half", "deep autocast", "rotary by complex numbers"])
def test_a_model_that_casts_inside_is_proven_in_float64_without_its_casts(name: str) -> None:
    model, inputs = built(name)
    chosen = recipe(model, [group for group, why in EXPECTED[name].items() if why is None])
    (verdict,) = sparsify.cut(sparsify.make_plan(chosen, model, inputs), model, inputs=inputs).verdicts
    assert verdict.outcome == "equal" and verdict.difference <= 1e-12
    assert (
        verdict.note == "the model casts to a lower precision inside: compared in float64 without these casts"
    )


def test_a_model_that_cannot_run_in_float64_is_proven_in_its_own_precision() -> None:
    model, inputs = built("frozen block")
    (verdict,) = sparsify.cut(
        sparsify.make_plan(recipe(model, ["a", "c"]), model, inputs), model, inputs=inputs
    ).verdicts
    assert verdict.outcome == "equal"
    assert verdict.note == "the model does not run in float64: compared in its own precision, within 1e-03"


def test_a_rule_that_fails_protects_what_flows_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(RULES, "addmm", fails)
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5, 3)).eval()
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "filter"}]},
        model,
        (torch.randn(2, 4, 5),),
    )
    assert (
        plan.map.by_name["0"].protected
        == "it passes through 'addmm' in '3', which could not be followed (ZeroDivisionError)"
    )


def test_single_weights_of_a_complex_layer_leave_by_their_size() -> None:
    model, inputs = built("complex weights")
    plan = sparsify.make_plan(
        {
            "version": 1,
            "title": "t",
            "rules": [{"layers": "ComplexLinear", "group": "weight", "sparsity": "50%"}],
        },
        model,
        inputs,
    )
    result = sparsify.cut(plan, model, inputs=inputs)
    gone = torch.cat([(layer.weight == 0).flatten() for layer in (result.model.a, result.model.b)])
    sizes = torch.cat([layer.weight.abs().flatten() for layer in (model.a, model.b)])
    assert int(gone.sum()) == len(gone) // 2 and sizes[gone].max() <= sizes[~gone].min()


class Moody(nn.Module):
    """Fails in every call once it is told to, or where its first layer has lost outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.fails = nn.Linear(6, 16), nn.Linear(16, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails or self.a.weight.shape[0] < 16:
            raise KeyError("a")
        return self.fc(self.a(x).relu())


MOODY = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron"}]}
CURE = "protect the layers that it concerns (a rule with 'protect: true'), or pass simpler inputs"


def test_a_model_that_refuses_to_be_narrow_is_protected() -> None:
    plan = sparsify.make_plan(MOODY, Moody().eval(), (torch.randn(4, 6),))
    assert plan.map.by_name["a"].protected == "a trial cut failed: the cut model does not run: KeyError: 'a'"


def test_a_model_that_does_not_run_is_refused_in_one_sentence() -> None:
    model = Moody().eval()
    model.fails = True
    with pytest.raises(ModelError, match=r"^a forward call with inputs 4x6 failed: KeyError: 'a'$"):
        sparsify.make_plan(MOODY, model, (torch.randn(4, 6),))


def test_what_fails_inside_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, *_: object) -> None:
        model.fails = True
        model(torch.randn(4, 6))

    model, inputs = Moody().eval(), (torch.randn(4, 6),)
    plan = sparsify.make_plan(MOODY, model, inputs)
    monkeypatch.setattr(cut_operations, "cut", fails)
    with pytest.raises(ModelError) as caught:
        sparsify.cut(plan, model, inputs=inputs)
    assert (
        str(caught.value) == f"cutting the model failed in the forward call of a Moody: KeyError: 'a'; {CURE}"
    )
    monkeypatch.setattr(trial_cuts, "protect_failing_groups", fails)
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(MOODY, model, inputs)
    assert (
        str(caught.value)
        == f"trying out which layers can be cut failed in the forward call of a Moody: KeyError: 'a'; {CURE}"
    )


class Joined(nn.Module):
    """Two weights that together make one, the second frozen."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.fc, self.join = nn.Linear(6, 16), nn.Linear(24, 3), join
        self.one, self.two = (nn.Parameter(torch.randn(24, 16) / 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.linear(self.a(x).relu(), self.join(self.one, self.two)).relu())


@pytest.mark.parametrize("join", [torch.add, torch.sub, lambda one, two: torch.stack([one, two]).sum(0)])
def test_both_of_two_parameters_that_make_one_weight_lose_their_inputs(
    join: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    model, inputs = Joined(join).eval(), (torch.randn(4, 6),)
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron", "sparsity": "50%"}]},
        model,
        inputs,
    )
    result = sparsify.cut(plan, model, inputs=inputs)
    assert result.model.one.shape == result.model.two.shape == (24, 8)
    assert (
        gap(
            doubled(deepcopy(result.model)),
            doubled(masked(deepcopy(model), result.cuts.operations)),
            (torch.randn(5, 6).double(),),
        )
        <= 1e-12
    )
