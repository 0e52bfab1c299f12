"""Pruning while training goes on: what a cut carries over, and that training continues as if the units had
been masked."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.graph.surgery import transfer_state
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.pruning.cut import Result
from sparsify_schemas.cuts import Crop, Cuts, Gather, Narrow, Silence

FILTERS = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "filter", "sparsity": "50%"}]}


class Residual(nn.Module):
    def __init__(self, wrapped: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a, self.bn1 = wrapped(nn.Conv2d(6, 8, 3, padding=1)), nn.BatchNorm2d(8)
        self.b, self.bn2 = wrapped(nn.Conv2d(8, 6, 3, padding=1)), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = (x + self.bn2(self.b(self.bn1(self.a(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        q, k, v = (m(h).view(*h.shape[:2], self.heads, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[dict[str, Any]]]] = {
    "residual": (
        Residual,
        (8, 3, 6, 6),
        [{"layers": ["stem", "a", "b"], "group": "filter", "sparsity": "40%"}],
    ),
    "attention": (
        Attention,
        (8, 7, 5),
        [
            {"layers": ["q", "k", "v"], "group": "head", "sparsity": "50%"},
            {"layers": ["up"], "group": "neuron", "sparsity": "50%"},
        ],
    ),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
}


def batch(shape: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(shape, generator=generator, dtype=torch.float64), torch.randint(
        0, 4, shape[:1], generator=generator
    )


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shape: tuple[int, ...],
    n: int,
    masks: dict[str, Tensor] | None = None,
) -> float:
    x, y = batch(shape, n)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    for name, p in model.named_parameters():
        if masks and name in masks:
            assert p.grad is not None
            p.grad.mul_(masks[name])
    optimizer.step()
    return float(loss.detach())


def masks_of(model: nn.Module, cuts: Cuts) -> dict[str, Tensor]:
    """1 where an element stays."""
    found: dict[str, Tensor] = {}
    values = dict([*model.named_parameters(), *model.named_buffers()])
    for op in cuts.operations:
        if isinstance(op, Narrow):
            lies = torch.zeros(op.size, dtype=torch.float64)
            for a, b in op.keep:
                lies[a:b] = 1
            shape = [-1 if d == op.dim else 1 for d in range(values[op.tensor].dim())]
            found[op.tensor] = found.get(op.tensor, torch.ones_like(values[op.tensor])) * lies.view(shape)
    return found


def narrowed(values: dict[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    for op in cuts.operations:
        if isinstance(op, Narrow) and op.tensor in values:
            kept = torch.tensor([i for a, b in op.keep for i in range(a, b)])
            values = {**values, op.tensor: values[op.tensor].index_select(op.dim, kept)}
    return values


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_training_after_a_cut_is_that_of_the_masked_model(name: str, kind: str) -> None:
    """Losses, weights and averaged weights, with a scheduler, against the dense model whose cut units are
    held at zero."""
    build, shape, rules = NETS[name]
    torch.manual_seed(3)
    model = build().double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for n in range(6):
        step(model, optimizer, shape, n)
        scheduler.step()
        average.update_parameters(model)
    dense, other = deepcopy((model, average)), deepcopy(optimizer.state_dict())
    dense_optimizer = OPTIMIZERS[kind](dense[0].parameters())
    dense_optimizer.load_state_dict(other)
    dense_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(dense_optimizer, 12)
    dense_scheduler.load_state_dict(scheduler.state_dict())

    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (batch(shape, 0)[0],))
    result = sparsify.cut(plan, model, optimizer=optimizer, follow=[average])
    thin, (thin_average,) = result.model, result.followers
    assert result.notes == () and sum(p.numel() for p in thin.parameters()) < 0.8 * sum(
        p.numel() for p in model.parameters()
    )

    masks = masks_of(dense[0], result.cuts)
    with torch.no_grad():
        for part in (dense[0], dense[1].module):
            for key, p in part.named_parameters():
                p.mul_(masks.get(key, torch.ones(())))
        for key, p in dense[0].named_parameters():
            for value in dense_optimizer.state[p].values():
                if value is not None and value.shape == p.shape:
                    value.mul_(masks.get(key, torch.ones(())))
    for n in range(6, 12):
        wanted, found = step(dense[0], dense_optimizer, shape, n, masks), step(thin, optimizer, shape, n)
        dense_scheduler.step()
        scheduler.step()
        dense[1].update_parameters(dense[0])
        thin_average.update_parameters(thin)
        assert found == pytest.approx(wanted, rel=1e-6)
    assert isinstance(thin_average, AveragedModel) and int(thin_average.n_averaged) == 12
    for whole, part in ((dense[0], thin), (dense[1].module, thin_average.module)):
        wanted_values = narrowed(dict([*whole.named_parameters(), *whole.named_buffers()]), result.cuts)
        for key, value in [*part.named_parameters(), *part.named_buffers()]:
            torch.testing.assert_close(value.detach(), wanted_values[key].detach(), rtol=1e-6, atol=1e-9)


ALL = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    "SGD foreach": {"lr": 0.01, "momentum": 0.9, "foreach": True},
    "SGD fused": {"lr": 0.01, "momentum": 0.9, "fused": True},
    "Adam": {"amsgrad": True},
    "Adam foreach": {"foreach": True},
    "Adam fused": {"fused": True},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Adagrad": {},
    "Adagrad fused": {"fused": True},
    "Adadelta": {},
    "Adafactor": {},
    "ASGD": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
}


def test_every_optimizer_of_torch_is_tried() -> None:
    known = {n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type)} - {"Optimizer"}
    apart = {"SparseAdam", "LBFGS", "Muon"}  # sparse gradients; refused; matrices alone, below
    assert known - apart == {name.split()[0] for name in ALL}


@pytest.mark.parametrize("name", [*ALL, "Muon"])
def test_state_of_every_optimizer_is_narrowed_with_its_parameters(name: str) -> None:
    torch.manual_seed(0)
    matrices = name == "Muon"
    model = (
        nn.Sequential(nn.Linear(6, 8, bias=not matrices), nn.ReLU(), nn.Linear(8, 4, bias=not matrices))
        if matrices
        else Residual()
    )
    x = torch.randn(4, 6) if matrices else torch.randn(4, 3, 6, 6)
    optimizer = getattr(torch.optim, name.split()[0])(model.parameters(), **ALL.get(name, {}))
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    before = {n: dict(optimizer.state[p]) for n, p in model.named_parameters()}
    recipe = (
        {**FILTERS, "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}]} if matrices else FILTERS
    )
    result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model, optimizer=optimizer)
    assert result.notes == ()
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [
        id(p) for p in result.model.parameters()
    ]
    assert len(optimizer.state) == len(before)
    for key, p in result.model.named_parameters():
        assert optimizer.state[p].keys() == before[key].keys()
        for what, value in optimizer.state[p].items():
            old = before[key][what]
            if not isinstance(old, Tensor) or old.numel() == 1:
                assert value is old
            elif old.shape == model.get_parameter(key).shape:
                assert torch.equal(value, narrowed({key: old}, result.cuts)[key])
            else:  # a factored moment: a row's or a column's
                assert (
                    all(n in (1, m) for n, m in zip(value.shape, p.shape, strict=True))
                    and value.numel() < old.numel() + 1
                )
    optimizer.zero_grad()
    result.model(x).square().mean().backward()
    optimizer.step()


def test_state_on_the_device_stays_as_it_is() -> None:
    """With `capturable` the count of steps is a tensor beside the parameter; it is the same tensor
    afterwards."""
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    for p in model.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(5.0),
            "exp_avg": torch.ones_like(p),
            "exp_avg_sq": torch.ones_like(p),
        }
    steps = {n: optimizer.state[p]["step"] for n, p in model.named_parameters()}
    thin = sparsify.cut(
        sparsify.make_plan(FILTERS, model, (torch.randn(2, 3, 6, 6),)), model, optimizer=optimizer
    ).model
    assert optimizer.param_groups[0]["capturable"] is True
    assert all(
        optimizer.state[p]["step"] is steps[n] and optimizer.state[p]["exp_avg"].shape == p.shape
        for n, p in thin.named_parameters()
    )


def cut(model: nn.Module, x: Tensor | None = None, **more: Any) -> Result:
    return sparsify.cut(
        sparsify.make_plan(FILTERS, model, (torch.randn(2, 3, 6, 6) if x is None else x,)), model, **more
    )


def test_state_that_cannot_be_narrowed_starts_afresh_and_is_named() -> None:
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        optimizer.state[p] = {"history": [torch.ones(p.numel())]}
    result = cut(model, optimizer=optimizer)
    assert result.notes == (
        (
            "the optimizer's state of a.weight, a.bias, bn1.weight and 2 more starts afresh: "
            "it does not have the shape of the parameter"
        ),
    )
    assert (
        result.model.get_parameter("a.weight") not in optimizer.state
        and result.model.get_parameter("stem.weight") in optimizer.state
    )


def test_cropped_gathered_and_removed_layers_are_carried_too() -> None:
    """A kernel that shrinks takes its momentum along, columns that are gathered theirs, and what left is
    forgotten."""
    model, x = Residual(), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    before = {
        n: (p.grad.clone(), optimizer.state[p]["momentum_buffer"].clone())
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    plan = sparsify.make_plan(FILTERS, model, (x,))
    result = sparsify.cut(plan, model)
    shrunk = Crop(module="b", kernel=(3, 3), grids=((1, 1, 1), (0, 2, 2)))
    lined = Gather(module="head", size=6, keep=((0, 2), (5, 6)))
    gone = Silence(module="bn0")
    cuts = result.cuts.model_copy(update={"operations": (*result.cuts.operations, gone, shrunk, lined)})
    thin = replay_cuts(model, cuts)
    assert transfer_state.transfer_state(model, thin, cuts, optimizer) == ()
    wanted = narrowed({n: torch.stack(v, -1) for n, v in before.items()}, result.cuts)
    wanted["b.weight"] = wanted["b.weight"][:, :, 1:2, 0::2]
    wanted["head.weight"] = wanted["head.weight"][:, [0, 1, 5]]
    left = {n: v for n, v in wanted.items() if not n.startswith("bn0")}
    assert {n for n, _ in thin.named_parameters()} == set(left) and len(optimizer.state) == len(left)
    for name, p in thin.named_parameters():
        assert p.grad is not None and torch.equal(
            torch.stack((p.grad, optimizer.state[p]["momentum_buffer"]), -1), left[name]
        )
    optimizer.step()


def test_optimizers_that_cannot_be_carried_are_refused_and_left_alone() -> None:
    model = Residual()
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ModelError) as caught:
        cut(model, optimizer=lbfgs)
    assert str(caught.value) == (
        "LBFGS keeps one history over all parameters together, which cannot be carried through a cut; "
        "cut without it and make a new one of the cut model's parameters"
    )
    assert lbfgs.param_groups[0]["params"][0] is model.stem.weight
    with pytest.raises(ModelError) as caught:
        cut(model, optimizer=torch.optim.SGD(Residual().parameters(), lr=0.1))
    assert (
        str(caught.value)
        == "the optimizer holds none of the model's parameters; pass the optimizer that trains this model"
    )


def test_parameters_of_another_model_stay_in_the_optimizer() -> None:
    model, loss = Residual(), nn.Linear(4, 4)
    optimizer = torch.optim.SGD(
        [
            {"params": [*loss.parameters(), *model.parameters()], "lr": 0.1},
            {"params": [nn.Parameter(torch.ones(2))]},
        ],
        lr=1.0,
    )
    thin = cut(model, optimizer=optimizer).model
    assert [
        p is q
        for p, q in zip(
            optimizer.param_groups[0]["params"], [*loss.parameters(), *thin.parameters()], strict=True
        )
    ].count(False) == 0
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.param_groups[1]["params"][0].shape == (2,)


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def see(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.seen.append(tuple(output.shape))


def test_gradients_hooks_flags_types_and_formats_are_carried() -> None:
    model = Residual().to(memory_format=torch.channels_last)
    model.bn2.eval()
    model.stem.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    model(x).square().mean().backward()
    scaled, done, recorder = [], [], Recorder()
    model.a.weight.register_hook(lambda grad: scaled.append(tuple(grad.shape)) or grad * 0)
    model.head.weight.register_post_accumulate_grad_hook(lambda p: done.append(tuple(p.shape)))
    model.a.register_forward_hook(recorder.see)
    result = cut(model, x)
    thin = result.model
    assert tuple(thin.a.weight.shape) == (4, 6, 3, 3)
    for name, p in thin.named_parameters():
        old = model.get_parameter(name)
        assert p.requires_grad == old.requires_grad and p.dtype == old.dtype
        if old.grad is None:
            assert p.grad is None
        else:
            assert (
                p.grad is not None
                and p.grad is not old.grad
                and torch.equal(p.grad, narrowed({name: old.grad}, result.cuts)[name])
            )
    for weight in (thin.a.weight, thin.b.weight, thin.a.weight.grad):
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert [n for n, m in thin.named_modules() if not m.training] == ["bn2"]
    scaled.clear(), done.clear(), recorder.seen.clear()
    thin.zero_grad()
    thin(x).square().mean().backward()
    assert (scaled, done, recorder.seen) == ([(4, 6, 3, 3)], [(4, 6)], [(2, 4, 6, 6)])
    assert not thin.a.weight.grad.any() and thin.b.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_a_gradient_scaler_go_on(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    master = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    x, recipe = (
        torch.randn(4, 6),
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}]},
    )
    thin = sparsify.cut(sparsify.make_plan(recipe, model, (x.to(dtype),)), model).model
    assert {p.dtype for p in thin.parameters()} == {dtype} and thin(x.to(dtype)).dtype == dtype
    optimizer, scaler = torch.optim.Adam(master.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
    net = master
    for n in range(4):
        if n == 2:
            net = sparsify.cut(sparsify.make_plan(recipe, net, (x,)), net, optimizer=optimizer).model
        before = net[0].weight.detach().clone()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = net(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert not torch.equal(before, net[0].weight)
    assert net[0].weight.shape == (4, 6) and int(next(iter(optimizer.state.values()))["step"]) == 4


def test_models_that_follow_lose_the_same_units() -> None:
    """A plain copy with other weights; of single weights the same ones become zero."""
    model = Residual()
    twin, keeps = Residual().double().eval(), [[0, 1, 2]]
    recipe = {
        **FILTERS,
        "rules": [FILTERS["rules"][0], {"layers": "head", "group": "weight", "sparsity": "50%"}],
    }  # type: ignore[misc]
    result = sparsify.cut(sparsify.make_plan(recipe, model, (torch.randn(2, 3, 6, 6),)), model, follow=[twin])
    (other,) = result.followers
    for name, value in narrowed(dict(twin.named_parameters()), result.cuts).items():
        assert torch.equal(
            other.get_parameter(name),
            value * (result.model.head.weight != 0) if name == "head.weight" else value,
        )
    assert (
        not other.training and other.a.weight.dtype == torch.float64 and twin.a.weight.shape[0] == 8 and keeps
    )
    with pytest.raises(
        ModelError,
        match=r"^the plan was made of another model: 'stem.weight' was \(6, 3, 3, 3\), there is none now",
    ):
        cut(model, follow=[nn.Linear(2, 2)])


def test_penalties_notice_the_cut_and_go_on_with_the_cut_model() -> None:
    recipe = {
        **FILTERS,
        "rules": [
            {
                "layers": ["a"],
                "group": "filter",
                "sparsity": "50%",
                "penalty": {
                    "kind": "group_lasso",
                    "strength": {"kind": "linear", "from": 0, "to": 1, "end": "10it"},
                },
            }
        ],
    }
    model, x = Residual(), torch.randn(2, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(net: nn.Module) -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    plan = sparsify.make_plan(recipe, model, (x,))
    hooks = sparsify.attach(plan, model, optimizer, steps_per_epoch=5, steps=10)
    for _ in range(4):
        train(model)
    result = sparsify.cut(plan, model, optimizer=optimizer)
    with pytest.raises(ModelError) as caught:
        train(result.model)
    assert str(caught.value) == (
        "the optimizer has gone on to a cut model, and these penalties are of the model before: detach them, "
        "and attach a plan of the cut model"
    )
    hooks.detach()
    again = {**recipe, "rules": [{k: v for k, v in recipe["rules"][0].items() if k != "sparsity"}]}
    with sparsify.attach(
        sparsify.make_plan(again, result.model, (x,)), result.model, optimizer, steps_per_epoch=5, steps=10
    ) as more:
        more.load_state_dict(hooks.state_dict())
        assert more.strength == pytest.approx(0.4)
        train(result.model)
        assert more.strength == pytest.approx(0.5)


def test_zeros_that_were_held_before_the_cut_are_held_after_it() -> None:
    recipe = {
        **FILTERS,
        "rules": [FILTERS["rules"][0], {"layers": "b", "group": "weight", "sparsity": "10%"}],
    }  # type: ignore[misc]
    model, x = Residual(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        model.b.weight[:, :, 0] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = sparsify.make_plan(recipe, model, (x,))
    hooks = sparsify.attach(plan, model, optimizer, hold_zeros=True)
    result = sparsify.cut(plan, model, optimizer=optimizer)
    hooks.detach()
    again = {**recipe, "rules": recipe["rules"][1:]}
    with sparsify.attach(
        sparsify.make_plan(again, result.model, (x,)), result.model, optimizer, hold_zeros=True
    ) as more:
        more.load_state_dict(hooks.state_dict())
        result.model(x).square().mean().backward()
        optimizer.step()
    assert (
        result.model.b.weight.shape[1] == 4
        and not result.model.b.weight[:, :, 0].any()
        and result.model.b.weight[:, :, 1].all()
    )


def unstructured(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.4)


def filters(layer: nn.Module) -> nn.Module:
    return prune.ln_structured(layer, "weight", 0.5, 2, 0)


def twice(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.2)
    prune.random_unstructured(layer, "weight", 0.2)
    return prune.l1_unstructured(layer, "bias", 0.5)


class Squashed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


def squashed(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Squashed())


@pytest.mark.parametrize("wrapped", [unstructured, filters, twice, squashed])
def test_masks_and_simple_parametrizations_are_narrowed_with_their_weights(
    wrapped: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    model, x = Residual(wrapped), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    result = cut(model, x, optimizer=optimizer)
    thin = result.model
    assert [v.outcome for v in result.verdicts] == ["equal"] and dict(result.plan.preview) == {"a": 4}
    assert [
        thin.a.out_channels,
        thin.a.weight.shape[0],
        thin.b.in_channels,
        thin.b.weight.shape[1],
        thin.b.out_channels,
    ] == [4, 4, 4, 4, 6]
    for _ in range(2):
        optimizer.zero_grad()
        thin(x).square().mean().backward()
        optimizer.step()
    thin(x)
    if wrapped is squashed:
        assert torch.equal(thin.a.weight, thin.a.parametrizations.weight.original.tanh())
    else:  # a mask still holds after training, and prune.remove works
        assert (
            thin.a.weight_mask.shape == thin.a.weight.shape
            and not thin.b.weight[thin.b.weight_mask == 0].any()
        )
        prune.remove(thin.a, "weight")
        assert isinstance(thin.a.weight, nn.Parameter) and tuple(thin.a.weight.shape) == (4, 6, 3, 3)


def test_filters_under_a_mask_go_first() -> None:
    torch.manual_seed(0)
    model = Residual(filters)
    masked = model.a.weight_mask.flatten(1).sum(1) == 0
    result = cut(model)
    assert int(masked.sum()) == 4
    (kept,) = [w.keep for w in result.cuts.widths if w.group == "a"]
    assert [i for a, b in kept for i in range(a, b)] == torch.nonzero(~masked).flatten().tolist()


@pytest.mark.parametrize("wrapped", [weight_norm, spectral_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_normalised_weights_are_cut_and_go_on_training(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    model, x = Residual(wrapped), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    result = cut(model, x, optimizer=optimizer)
    assert [v.outcome for v in result.verdicts] == ["statistics change"]  # a norm is taken over what left
    assert [result.model.a.out_channels, *result.model.a.weight.shape] == [
        4,
        4,
        6,
        3,
        3,
    ] and result.model.b.in_channels == 4
    assert all(
        value.shape == p.shape
        for p in result.model.parameters()
        for value in optimizer.state[p].values()
        if value.dim()
    )
    before = result.model(x)
    optimizer.zero_grad()
    before.square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, result.model(x))
    assert repr(result).startswith("<Result: 57.9 % of the MACs") or wrapped is spectral_norm


def test_weights_computed_in_ways_that_cannot_be_followed_are_protected() -> None:
    with pytest.raises(
        RecipeError,
        match=(
            r"50% cannot be reached: 'a' keeps its width: a weight passes through 'linalg_matrix_exp'; "
            r"select other layers"
        ),
    ):
        cut(Residual(parametrizations.orthogonal))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile
def test_wrapped_models_are_refused_wherever_the_wrapper_sits() -> None:
    x = (torch.randn(2, 3, 6, 6),)
    inner = nn.Sequential(Residual(), nn.Identity())
    inner[0].a = torch.compile(inner[0].a)
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(FILTERS, inner, x)
    assert str(caught.value) == (
        "'0.a' is wrapped by torch.compile; put the module inside it (._orig_mod) in its place and "
        "compile after the cut"
    )
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(FILTERS, nn.DataParallel(Residual()), x)
    assert str(caught.value) == (
        "the model is wrapped by DataParallel; pass the module inside it (model.module) and wrap "
        "after the cut"
    )
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(FILTERS, nn.Sequential(nn.DataParallel(Residual())), x)
    assert str(caught.value) == (
        "'0' is wrapped by DataParallel; put the module inside it (.module) in its place and wrap "
        "after the cut"
    )


def test_a_module_compiled_in_place_is_cut_and_the_copy_is_not_compiled() -> None:
    model = Residual()
    model.compile(backend="eager")
    result = cut(model)
    assert result.verdicts[0].outcome == "equal" and result.model._compiled_call_impl is None
    assert model._compiled_call_impl is not None


def test_frozen_parameters_are_followed_and_stay_frozen() -> None:
    model = Residual().requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = torch.optim.Adam(model.head.parameters())
    x = torch.randn(2, 3, 6, 6)
    model(x).square().mean().backward()
    optimizer.step()
    thin = cut(model, x, optimizer=optimizer).model
    assert thin.a.weight.shape[0] == 4
    assert {n for n, p in thin.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in thin.head.parameters()]


def test_a_cut_that_is_replayed_brings_nothing_along() -> None:
    model = Residual()
    model(torch.randn(2, 3, 6, 6)).square().mean().backward()
    result = cut(model)
    assert all(p.grad is None for p in replay_cuts(model, result.cuts).parameters())
    assert all(p.grad is not None for p in result.model.parameters())
