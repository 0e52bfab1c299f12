"""Repair through the public calls: what can be made up for is, what cannot be is not made worse."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model
from sparsify.forward.copies import copy_model
from sparsify.pruning.cut import Result
from sparsify.pruning.repair.agreement import measure_agreement
from sparsify.pruning.repair.choose_fit import Settings, repair_row
from sparsify.pruning.repair.least_squares import refit_layers
from sparsify.pruning.repair.repair import Repaired, repair_model
from sparsify.pruning.repair.sites import Operator, OperatorCounter, find_sites
from sparsify_schemas.stage import Repair

RULE = {"layers": "*", "group": "neuron", "sparsity": "50%"}


def recipe(**rule: object) -> dict[str, object]:
    return {"version": 1, "title": "t", "rules": [{**RULE, **rule}]}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SMALL = 0.01


class Duplicated(nn.Module):
    """Every hidden unit is there twice, so half of them can go without any loss."""

    def __init__(self, convolution: bool = False, norm: bool = False, front: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = convolution
        small, large = (slice(4), slice(4, 8)) if front else (slice(4, 8), slice(4))
        if convolution:
            self.first: nn.Module = nn.Conv2d(3, 8, 3, padding=1, bias=not norm)
            self.second: nn.Module = nn.Conv2d(8, 5, 3, padding=1)
        else:
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.norm: nn.Module = nn.BatchNorm2d(8) if norm else nn.Identity()
        with torch.no_grad():
            for parameter in self.first.parameters():
                parameter[small] = SMALL * parameter[large]  # by magnitude the copies go first
            if norm:
                self.norm.running_mean[large], self.norm.running_mean[small] = draw(4), SMALL * draw(4)
                self.norm.running_var[small] *= SMALL**2
                self.norm.eps = 0.0

    def forward(self, x: Tensor) -> Tensor:
        made = self.second(F.relu(self.norm(self.first(x))))
        return made.mean((2, 3)) if self.convolution else made


def cut_half(model: nn.Module, x: Tensor, **rule: object) -> Result:
    plan = sparsify.make_plan(recipe(**rule), model.eval(), (x[:2],))
    return sparsify.cut(plan, model)


def largest(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest output."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("front", [False, True], ids=["the last half goes", "the first half goes"])
@pytest.mark.parametrize(("convolution", "norm"), [(False, False), (True, False), (True, True)])
def test_what_other_units_still_carry_is_restored(convolution: bool, norm: bool, front: bool) -> None:
    model = Duplicated(convolution, norm, front).eval()
    shape = (3, 8, 8) if convolution else (6,)
    x, fresh = draw(400, *shape), draw(50, *shape, seed=1)
    group = "filter" if convolution else "neuron"
    result = cut_half(model, x, layers="first", group=group, criterion={"kind": "magnitude"})
    assert next(w for w in result.cuts.widths if w.group == "first").keep == (
        ((4, 8),) if front else ((0, 4),)
    )
    before = largest(result.model(fresh), model(fresh))
    repaired = sparsify.repair(result, [x], ridge=1e-7)
    assert repaired.model is result.model and not repaired.reverted
    assert largest(result.model(fresh), model(fresh)) < 1e-3 < 1e-2 < before


def test_labels_mappings_and_tensors_are_taken_alike() -> None:
    x = draw(300, 6)
    outputs = []
    for batches in ([x], [(x[:100], 0), (x[100:], 1)], [{"x": x}], ((part,) for part in x.split(77))):
        model = Duplicated().eval()
        result = cut_half(model, x, layers="first")
        sparsify.repair(result, batches)
        outputs.append(result.model(draw(20, 6, seed=3)))
    assert all(torch.allclose(one, outputs[0], atol=1e-5) for one in outputs)


def test_without_examples_it_says_so() -> None:
    result = cut_half(Duplicated().eval(), draw(4, 6), layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, [])
    assert str(caught.value) == (
        "repair needs calibration examples, and the batches held none; pass unlabelled training examples"
    )
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, [7])
    assert str(caught.value) == (
        "repair takes batches that are tensors, mappings of tensors or (x, y) pairs, found int"
    )


def test_layers_that_do_no_better_on_held_out_examples_keep_their_weights() -> None:
    """The fitted examples are far from those held out, and fewer than the inputs: they teach nothing."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = draw(400, 30)
    result = cut_half(model, x, layers="2", sparsity="5%")
    state = {name: value.clone() for name, value in result.model.state_dict().items()}
    misleading = torch.cat([100 * draw(18, 30, seed=2), x[:2]])
    repaired = sparsify.repair(result, [misleading], ridge=1e-9)
    kept = [one.layer for one in repaired.layers if one.outcome == "reverted"]
    assert kept and all(one.after >= one.before for one in repaired.layers if one.layer in kept)  # type: ignore[operator]
    for name in kept:
        assert torch.equal(result.model.state_dict()[f"{name}.weight"], state[f"{name}.weight"])


def test_statistics_that_do_not_help_are_taken_back() -> None:
    """Examples of one kind: batch normalisation would learn a spread that the held-out ones do not have."""
    model, x = Residual().eval(), draw(100, 3, 8, 8)
    result = cut_half(model, x, layers="conv1", group="filter", sparsity="5%")
    state = {name: value.clone() for name, value in result.model.state_dict().items()}
    misleading = torch.cat([50 * x[:90] + 100, x[90:]])
    repaired = sparsify.repair(result, [misleading], method="batch_norm")
    assert repaired.reverted and repaired.after == repaired.before
    assert all(torch.equal(value, state[name]) for name, value in result.model.state_dict().items())
    assert repr(repaired).startswith("<Repaired by batch_norm: taken back, as it did not help; error of the ")


class Shared(nn.Module):
    """One normalisation behind two layers: it cannot take the intercept of one of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 12)
        self.a, self.b = nn.Linear(12, 8, bias=False), nn.Linear(12, 8, bias=False)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(self.norm(self.a(y))) + F.relu(self.norm(self.b(y)))
        made: Tensor = self.head(y)
        return made


def test_a_norm_behind_two_layers_takes_no_intercept() -> None:
    model, x = Shared().eval(), draw(300, 6)
    assert {site.norm for site in find_sites(model, (x[:2],))[0].values()} == {None}
    result = cut_half(model, x, layers="stem")
    mean = result.model.norm.running_mean.clone()
    repaired = sparsify.repair(result, [x])
    assert {row.layer for row in repaired.layers if row.outcome == "refitted"} >= {"a", "b"}
    assert torch.equal(result.model.norm.running_mean, mean)
    assert not repaired.reverted and repaired.after.error < 0.5 * repaired.before.error


class Forked(Shared):
    """A normalisation behind a layer whose outputs are read elsewhere too, which an intercept in the mean
    would not reach."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(1 + F.relu(self.stem(x)))
        made: Tensor = self.head(F.relu(self.norm(y)) + y)
        return made


def test_a_norm_beside_another_reader_takes_no_intercept() -> None:
    model, x = Forked().eval(), draw(300, 6)
    assert find_sites(model, (x[:2],))[0]["a"].norm is None
    result = cut_half(model, x, layers="stem", criterion={"kind": "random"})
    repaired = sparsify.repair(result, [x])
    assert torch.equal(result.model.norm.running_mean, model.norm.running_mean)
    assert not repaired.reverted and repaired.after.error < 0.5 * repaired.before.error


def test_a_key_that_the_method_does_not_read_is_refused() -> None:
    result = cut_half(Duplicated().eval(), draw(4, 6), layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, [draw(20, 6)], method="mean", ridge=0.5)
    assert str(caught.value) == "repair: 'ridge': method 'mean' has no 'ridge'; leave it out"


def test_nothing_is_refitted_where_nothing_was_lost() -> None:
    """Dead units leave: every layer computes what it did."""
    model = Duplicated().eval()
    with torch.no_grad():
        for parameter in model.first.parameters():
            parameter[4:] = 0
    x = draw(200, 6)
    result = cut_half(model, x, layers="first", sparsity=None)
    repaired = sparsify.repair(result, [x])
    assert {one.outcome for one in repaired.layers} == {"unchanged"}
    assert repaired.before.correlation == pytest.approx(1)


class Residual(nn.Module):
    """A block whose shortcut loses units that its branch can make up for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn4 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)
        x = F.relu(self.bn4(self.conv3(x)) + self.bn3(self.down(x)))
        return self.head(x.mean((2, 3)))


def test_the_last_layer_of_a_sum_knows_the_other_addend() -> None:
    sites, operators = find_sites(Residual().eval(), (draw(2, 3, 8, 8),))
    assert list(sites) == ["stem", "conv1", "conv2", "conv3", "down", "head"]
    assert [site.norm for site in sites.values()] == [None, "bn1", "bn2", "bn4", "bn3", None]
    with_addend = {name for name, site in sites.items() if site.addend is not None}
    assert with_addend == {"conv2", "down"}  # conv3 runs before the other addend of its sum is there
    assert all(sites[name].through_norm for name in with_addend)
    assert operators > len(sites)


class Positions(nn.Module):
    """Blocks without batch normalisation, behind positions that each call makes anew."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = nn.Embedding(5, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(8, 32) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place(torch.arange(x.shape[1]))
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(F.relu(up(norm(x))))
        return x


def test_the_addend_that_is_kept_is_that_of_the_sum() -> None:
    """Numbers of operators hold from call to call, although torch copies what somebody else holds."""
    model, x = Positions().eval(), draw(6, 5, 8)
    sites, _ = find_sites(model, (x[:2],))
    operators = {name: site.addend for name, site in sites.items() if site.addend is not None}
    assert list(operators) == ["downs.0", "downs.1", "downs.2"]
    arrived: dict[str, Tensor] = {}
    for number, norm in enumerate(model.norms):
        norm.register_forward_pre_hook(
            lambda _, given, name=f"downs.{number}": arrived.update({name: given[0]})
        )
    watch = OperatorCounter(frozenset(operators.values()))
    with torch.no_grad(), watch:
        call_model(model, (x,))
    assert all(torch.equal(watch.kept[operator], arrived[name]) for name, operator in operators.items())
    other = {Operator(one.number, "aten.mul.Tensor") for one in operators.values()}
    watch = OperatorCounter(frozenset(other))
    with torch.no_grad(), watch:
        call_model(model, (x,))
    assert watch.kept == {}


def test_a_linear_layer_is_fitted_to_many_rows_of_each_example() -> None:
    """64 rows for each input, however few places of an example are asked for."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    x = draw(20, 12, 6)
    result = cut_half(model, x, layers="0", criterion={"kind": "random"})
    settings = Settings(ridge=1e-9, rows=20)  # one place of each example
    refit_layers(model, result.model, (result.cuts,), (x,), 20, settings)
    with torch.no_grad():
        inputs = result.model[1](result.model[0](x)).double().flatten(0, 1)
        wanted = model(x).double().flatten(0, 1)
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    exact = torch.linalg.lstsq(torch.cat([inputs, ones], 1), wanted).solution
    assert torch.allclose(result.model[2].weight.detach().double(), exact[:-1].T, atol=1e-4)


def test_a_deep_sum_makes_up_for_what_it_lost() -> None:
    """Each block takes the whole loss of those before it upon itself, not its own alone."""
    model, x, fresh = Positions().eval(), draw(400, 5, 8), draw(200, 5, 8, seed=5)
    errors = {}
    for shortcuts in (True, False):
        plan = sparsify.make_plan(recipe(layers="ups.*"), model, (x[:2],))
        result = sparsify.cut(plan, model)
        stage = Repair(kind="repair", shortcuts=shortcuts)
        done = repair_model(model, result.model, (result.cuts,), (x,), 400, stage, 0, plan.map)
        assert not done.reverted
        errors[shortcuts] = measure_agreement(model, result.model, (fresh,), 200).error
    assert errors[True] < 0.8 * errors[False]


@pytest.mark.parametrize(("memory", "kept"), [("1GiB", True), ("500kB", False)])
def test_freed_memory_is_kept_only_where_there_is_room(
    memory: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 kB are enough for some of the examples, and leave nothing."""
    asked: list[bool] = []

    @contextmanager
    def note(any_size: bool = False) -> Iterator[None]:
        asked.append(any_size)
        yield

    monkeypatch.setattr("sparsify.pruning.repair.repair.keep_heap", note)
    model, x = Duplicated(convolution=True).eval(), draw(100, 3, 8, 8)
    plan = sparsify.make_plan(recipe(layers="first", group="filter"), model, (x[:2],))
    result = sparsify.cut(plan, model)
    stage = Repair.model_validate({"kind": "repair", "memory": memory})
    done = repair_model(model, result.model, (result.cuts,), (x,), 100, stage, 0, plan.map)
    assert asked == [True] * kept and (done.examples == 100) == kept


@pytest.mark.parametrize("method", ["least_squares", "batch_norm", "mean"])
def test_outputs_come_nearer_to_the_dense_ones(method: str) -> None:
    model = Residual().eval()
    x, fresh = draw(600, 3, 8, 8), draw(200, 3, 8, 8, seed=5)
    for norm in (model.bn1, model.bn2, model.bn3, model.bn4):
        norm.momentum = None  # after one batch the running statistics are those of the batch
    with torch.no_grad():
        model.train()(x)
    model.eval()
    result = cut_half(model, x, layers="conv1", group="filter", criterion={"kind": "random"})
    before = measure_agreement(model, result.model, (fresh,), 200)
    repaired = sparsify.repair(result, [x], method=method)
    after = measure_agreement(model, result.model, (fresh,), 200)
    assert after.error < before.error
    assert repaired.after.error < repaired.before.error and repaired.examples == 600


def test_a_shared_layer_is_left_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(F.relu(self.shared(F.relu(self.first(x))))))

    model = Twice().eval()
    x = draw(100, 6)
    result = cut_half(model, x, layers="first", sparsity="25%")
    repaired = sparsify.repair(result, [x])
    reasons = {one.layer: one.reason for one in repaired.layers if one.outcome == "skipped"}
    assert reasons == {"shared": "it runs 2 times in one call"}


def test_the_agreement_of_a_model_with_itself_and_with_a_constant() -> None:
    model = nn.Linear(6, 3).eval()
    constant = nn.Linear(6, 3).eval()
    with torch.no_grad():
        constant.weight.zero_()
    x = draw(100, 6)
    same, flat = (measure_agreement(model, other, (x,), 100) for other in (model, constant))
    assert (same.correlation, same.error, same.same_prediction) == (pytest.approx(1), 0, 1)
    assert flat.correlation == 0 and flat.error >= 1


def test_the_summary_of_a_repair() -> None:
    model, x = Duplicated().eval(), draw(300, 6)
    repaired: Repaired = sparsify.repair(cut_half(model, x, layers="first"), [x])
    done = sum(one.outcome == "refitted" for one in repaired.layers)
    assert repr(repaired).startswith(
        f"<Repaired by least_squares: {done} layers refitted, error of the outputs "
    )
    again = replace(repaired, layers=tuple(repair_row(one.layer, "reverted") for one in repaired.layers))
    assert repr(again).startswith("<Repaired by least_squares: no layer changed, error of the outputs ")


@pytest.mark.parametrize("kind", ["not asked for", "two outputs", "one column"])
def test_the_same_prediction_is_one_of_classes(kind: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    model: nn.Module = {"two outputs": Two(), "one column": nn.Linear(6, 1)}.get(kind, nn.Linear(6, 3))
    found = measure_agreement(model, model, (draw(100, 6),), 100, classes=kind != "not asked for")
    assert found.same_prediction is None and found.error == 0


def test_the_last_layer_of_a_branch_makes_up_for_its_shortcut() -> None:
    """Channels of the sum leave, so that the block's input is no longer what it was: the sum comes nearer
    to the dense one."""
    model = Residual().eval()
    x = draw(600, 3, 8, 8)
    result = cut_half(model, x, layers="stem", group="filter", sparsity="25%", criterion={"kind": "random"})
    errors = []
    for shortcuts in (False, True):
        thin = copy_model(result.model).eval()
        settings = Settings(held_out=60, shortcuts=shortcuts)
        refit_layers(model, thin, (result.cuts,), (x,), 600, settings)
        errors.append(measure_agreement(model, thin, (draw(200, 3, 8, 8, seed=5),), 200).error)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_examples_are_refused(count: int) -> None:
    result = cut_half(Duplicated().eval(), draw(4, 6), layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, [draw(count, 6)])
    assert str(caught.value).startswith(f"repair needs at least 10 examples, found {count}; pass more ")


def test_ten_examples_are_enough_for_the_means() -> None:
    model, x = Residual().eval(), draw(600, 3, 8, 8)
    rule = {"layers": "conv1", "group": "filter", "criterion": {"kind": "random"}}
    repaired = sparsify.repair(cut_half(model, x, **rule), [x[:10]], method="mean")
    assert repaired.examples == 10 and repaired.before.error > 0


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (draw(20, 6), "repair takes an iterable of batches, found Tensor; put a single batch in a list"),
        (
            None,
            "a repair by 'least_squares' needs unlabelled training examples: pass batches; method 'merge' "
            "alone takes none",
        ),
        (
            [(draw(20, 6).numpy(), 0)],
            "repair takes batches that are tensors, mappings of tensors or (x, y) pairs, found tuple "
            "(ndarray, int); make tensors of NumPy's arrays by torch.from_numpy",
        ),
        (["a"], "repair takes batches that are tensors, mappings of tensors or (x, y) pairs, found str"),
        (
            [{"x": [1, 2]}],
            ("repair takes batches that are tensors, mappings of tensors or (x, y) pairs, found dict"),
        ),
        (
            [draw(8, 6), draw(8, 5)],
            "the batches do not fit each other: input '0' has the shape [8, 5] in batch 2 and [8, 6] in the "
            "first; only the number of examples, which comes first, may differ, and the length of rows of "
            "tokens: pad the others to one size",
        ),
        (
            [{"x": draw(8, 6)}, {"x": draw(8, 6), "mask": draw(8, 6)}],
            "the batches do not fit each other: batch 2 has the inputs x, mask, the first one x",
        ),
        (
            [((draw(8, 6), draw(2)),), ((draw(8, 6), draw(2, seed=1)),)],
            "the batches do not fit each other: input '1' has no dimension for the examples, and batch 2 has "
            "another one than the first; give the repair batches that have the same, or one batch",
        ),
        (
            [draw(20, 6) * float("nan")],
            "the calibration examples hold numbers that are not finite (input '0')",
        ),
        (
            [draw(20, 6).masked_fill(draw(20, 6) > 1, -torch.inf)],
            "the calibration examples hold numbers that are not finite (input '0'); write -inf of a mask as "
            "booleans, or as a large negative number such as -1e9",
        ),
        (
            [[[draw(20, 6), draw(20, 6)], draw(20)]],
            "repair found a list of 2 tensors as the inputs of a batch; if they are arguments of the model, "
            "as torch's DataLoader lists them, give a tuple or a mapping: [(tuple(x), y) for x, y in loader]",
        ),
        (
            [draw(20, 6).double()],
            "repairing the cut model failed in the forward call of a Linear: RuntimeError: mat1 and mat2 "
            "must have the same dtype, but got Double and Float; pass batches as the model takes them in "
            "training",
        ),
        (
            [draw(1, 6).repeat(100, 1)],
            "the dense model returns the same for all 10 calibration examples held out, so nothing tells "
            "whether a repair helps; pass examples that differ",
        ),
    ],
)
def test_batches_of_another_kind_are_told(batches: object, words: str) -> None:
    result = cut_half(Duplicated().eval(), draw(4, 6), layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, batches)  # type: ignore[arg-type]
    assert str(caught.value).startswith(words)


class Labelled(nn.Module):
    """An argument has one of the names that targets usually have, and the outputs depend on it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.embed, self.last = nn.Linear(6, 16), nn.Embedding(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = self.first(x) if label is None else self.first(x) + 5 * self.embed(label)
        made: Tensor = self.last(F.relu(hidden))
        return made


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.last = nn.Linear(6, 16), nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = self.last(F.relu(self.first(x) + self.other(y)))
        return made


def test_arguments_with_the_names_of_targets_are_passed_on() -> None:
    x, numbers, other = draw(60, 6), torch.arange(60) % 5, draw(60, 5, seed=1)
    cases: list[tuple[type[nn.Module], dict[str, Tensor], tuple[Tensor, Tensor]]] = [
        (Labelled, {"x": x, "label": numbers}, (x, numbers)),
        (Pair, {"x": x, "y": other}, (x, other)),
    ]
    rules = recipe(layers="first")
    for kind, named, placed in cases:
        model = kind().eval()
        result = sparsify.cut(sparsify.make_plan(rules, model, placed), model)
        states = []
        for batch in ((placed, 0), named, (named, torch.zeros(60))):
            own = replace(result, model=copy_model(result.model))
            sparsify.repair(own, [batch])
            states.append(own.model.get_parameter("last.weight"))
        assert all(torch.equal(state, states[0]) for state in states)
    model = Labelled().eval()  # a plan without the label: targets beside the arguments are left out
    result = sparsify.cut(sparsify.make_plan(rules, model, {"x": x}), model)
    assert not sparsify.repair(result, [{"x": x, "label": draw(60, 3)}]).reverted


def test_an_argument_that_batches_lack_is_named() -> None:
    model, x, y = Pair().eval(), draw(200, 6), draw(200, 5, seed=1)
    result = sparsify.cut(sparsify.make_plan(recipe(layers="first"), model, (x, y)), model)
    for batch in ((x, y), {"x": x}):
        with pytest.raises(ModelError) as caught:
            sparsify.repair(result, [batch])
        assert str(caught.value) == (
            "the model needs 'y' as well, and the batches do not give it: of a pair (x, y) x alone is taken; "
            "give the arguments of the model as a tuple, ((a, b), y), or as a mapping of their names"
        )


def test_a_dense_model_that_is_not_the_one_that_was_cut_is_refused() -> None:
    """After a second cut, the units of its log are numbered as in the model that the first one left."""
    model, x = Duplicated().eval(), draw(60, 6)
    first = cut_half(model, x, layers="first")
    second = cut_half(first.model, x, layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(replace(second, dense=model), [x])
    assert str(caught.value).startswith(
        "the plan was made of another model: 'first.weight' was (4, 6), it is (8, 6) now"
    )
    with pytest.raises(ModelError) as caught:
        sparsify.repair(replace(first, model=model), [x])
    assert str(caught.value) == (
        "the cut model and the dense model of the result share modules, so that a repair would change both; "
        "give the result a copy of the dense model as it was before the cut"
    )


def test_statistics_are_not_taken_anew_where_nothing_keeps_them() -> None:
    result = cut_half(Duplicated().eval(), draw(4, 6), layers="first")
    with pytest.raises(ModelError) as caught:
        sparsify.repair(result, [draw(20, 6)], method="batch_norm")
    assert str(caught.value) == (
        "repair: 'method': 'batch_norm' takes running statistics anew, and the model has no batch "
        "normalisation that keeps them; take 'least_squares'"
    )


@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_layer_is_fitted_to_what_it_returns_before_hooks_of_the_user(layer: str) -> None:
    model, x = Duplicated().eval(), draw(300, 6)
    model.get_submodule(layer).register_forward_hook(lambda _module, _given, made: 3 * made)
    result = cut_half(model, x, layers="first")
    repaired = sparsify.repair(result, [x])
    assert not repaired.reverted and repaired.after.error < 0.01 * repaired.before.error
    assert torch.equal(result.model.first.weight, model.first.weight[:4])


def test_a_layer_with_a_forward_put_on_it_is_left_as_it_is() -> None:
    model, x = Duplicated().eval(), draw(300, 6)
    result = cut_half(model, x, layers="first")
    second, weight = result.model.second, result.model.second.weight.clone()
    second.forward = lambda given: F.linear(given, second.weight.abs(), second.bias)
    repaired = sparsify.repair(result, [x])
    assert torch.equal(second.weight, weight) and "second" not in {row.layer for row in repaired.layers}


def test_models_that_drop_dimensions_of_length_one_are_repaired() -> None:
    """They fail with a single example, or return what has no dimension for it."""

    class Squeezing(Duplicated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, None]).squeeze().log_softmax(1)

    model, x = Squeezing().eval(), draw(90, 6)  # of which 9 are held out, and 8 are compared at once
    repaired = sparsify.repair(cut_half(model, x, layers="first"), [x])
    assert repaired.after.error < 0.01 * repaired.before.error and repaired.after.same_prediction == 1


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    model, x = Residual().eval(), draw(100, 3, 8, 8)
    result = cut_half(model, x, layers="conv1", group="filter", criterion={"kind": "random"})
    state = {name: value.clone() for name, value in result.model.state_dict().items()}
    seen = []

    def stop_late(*_: object) -> None:
        seen.append(1)
        if len(seen) > 2:
            raise KeyboardInterrupt

    result.model.get_submodule("head").register_forward_pre_hook(stop_late)
    with pytest.raises(KeyboardInterrupt):
        sparsify.repair(result, [x])
    assert all(torch.equal(value, state[name]) for name, value in result.model.state_dict().items())


def test_a_second_repair_starts_where_the_first_one_ended() -> None:
    """The intercept in the mean of a normalisation is counted once."""
    model, x = Residual().eval(), draw(600, 3, 8, 8)
    result = cut_half(model, x, layers="conv1", group="filter", criterion={"kind": "random"})
    means, rows = [], []
    for _ in range(3):
        settings = Settings(held_out=60, ridge=1e-6)
        repairs = refit_layers(model, result.model.eval(), (result.cuts,), (x,), 600, settings)
        rows.append({one.layer: one for one in repairs}["conv2"])
        means.append(result.model.get_submodule("bn2").get_buffer("running_mean").clone())
    first, last = (means[1] - means[0]).abs().max(), (means[2] - means[1]).abs().max()
    moved = (means[0] - model.bn2.running_mean).abs().max()
    assert float(first) < 0.2 * float(moved) and float(last) < 0.2 * float(moved)
    # What the first one left is what the second one finds, intercept included.
    assert rows[1].before == pytest.approx(rows[0].after, rel=0.05)


def test_autocast_around_it_changes_nothing() -> None:
    after = []
    for enabled in (False, True):
        model, x = Residual().eval(), draw(200, 3, 8, 8)
        rule = {"layers": "conv1", "group": "filter", "criterion": {"kind": "random"}}
        result = cut_half(model, x, **rule)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sparsify.repair(result, [x])
        after.append(result.model.state_dict())
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])
