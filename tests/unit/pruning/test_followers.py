"""What `follow=` takes: models, and objects that hold an averaged one."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.cut import Result

RECIPE = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron", "sparsity": "50%"}]}
X = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def average_of(model: nn.Module) -> nn.Module:
    """A copy with other weights."""
    made = deepcopy(model)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)
    return made


class Ema:
    """As many training loops have it: no module, the averaged model under some name."""

    def __init__(self, name: str, model: nn.Module, /, **others: Any) -> None:
        self.__dict__[name] = average_of(model)
        self.__dict__.update(others)
        self.updates, self.decay = 3, (lambda step: 1 - 1 / step)

    def update(self, model: nn.Module, name: str) -> None:
        self.updates += 1
        for mine, other in zip(self.__dict__[name].parameters(), model.parameters(), strict=True):
            mine.data.lerp_(other.data, 1 - self.decay(self.updates))


class EmaModule(nn.Module):
    """A module whose average is `ema_model`, beside the model that is trained, as ema-pytorch has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model = model
        self.ema_model = average_of(model)
        self.register_buffer("step", torch.tensor(7))


def cut(model: nn.Module, follow: list[Any]) -> Result:
    return sparsify.cut(sparsify.make_plan(RECIPE, model, X), model, follow=follow)


def fails(follower: Any, model: nn.Module | None = None) -> str:
    own = Net() if model is None else model
    before = {name: p.clone() for name, p in own.named_parameters()}
    with pytest.raises(ModelError) as caught:
        cut(own, [follower])
    assert all(torch.equal(p, before[name]) for name, p in own.named_parameters())
    return str(caught.value)


def check(result: Result, thin: nn.Module, wide: nn.Module) -> None:
    """The follower's average lost the units that the model lost."""
    (width,) = [w for w in result.cuts.widths if w.group == "a"]
    kept = [i for first, end in width.keep for i in range(first, end)]
    assert torch.equal(thin.a.weight, wide.a.weight[kept]) and torch.equal(
        thin.b.weight, wide.b.weight[:, kept]
    )
    assert wide.a.out_features == 8 and thin.a.out_features == 4


@pytest.mark.parametrize("name", ["module", "ema_model", "model", "ema"])
def test_an_object_that_holds_the_average_comes_back_with_the_cut_one(name: str) -> None:
    model = Net()
    follower = Ema(name, model)
    wide = vars(follower)[name]
    result = cut(model, [follower])
    (made,) = result.followers
    assert type(made) is Ema and made is not follower and made.updates == 3 and vars(follower)[name] is wide
    check(result, vars(made)[name], wide)
    made.update(result.model, name)
    assert made.updates == 4 and follower.updates == 3


def test_the_model_that_is_trained_is_the_cut_one_in_the_wrapper_as_well() -> None:
    model = Net()
    follower = EmaModule(model)
    other = Ema("ema", model, model=model)
    result = cut(model, [follower, other])
    made, beside = result.followers
    assert type(made) is EmaModule and made.online_model is result.model and int(made.step) == 7
    assert beside.model is result.model
    check(result, made.ema_model, follower.ema_model)
    check(result, beside.ema, other.ema)


def test_averages_of_torch_and_timm_go_on_averaging() -> None:
    from timm.utils.model_ema import ModelEmaV2, ModelEmaV3

    model = Net()
    averages: list[Any] = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
        ModelEmaV2(model, decay=0.8),
        ModelEmaV3(model, decay=0.8),
    ]
    updates: list[Callable[[Any, nn.Module], None]] = [
        lambda own, net: own.update_parameters(net),
        lambda own, net: own.update(net),
        lambda own, net: own.update(net, step=5),
    ]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    for average, update in zip(averages, updates, strict=True):
        update(average, model)
    result = cut(model, averages)
    for average, made, update in zip(averages, result.followers, updates, strict=True):
        assert type(made) is type(average)
        check(result, made.module, average.module)
        with torch.no_grad():
            for p in [*model.parameters(), *result.model.parameters()]:
                p.mul_(1.1)
        update(average, model)
        update(made, result.model)
        check(result, made.module, average.module)


def test_a_wrapper_around_a_wrapper_is_followed() -> None:
    model = Net()
    inner = AveragedModel(model)
    result = cut(model, [Ema("other", model, model=inner, other=None)])
    (made,) = result.followers
    assert isinstance(made.model, AveragedModel)
    check(result, made.model.module, inner.module)


def test_the_attribute_to_pass_is_named() -> None:
    model = Net()
    assert fails(Ema("shadow_net", model), model) == (
        "follow holds a Ema that is no model of this plan; pass its attribute 'shadow_net'"
    )
    inside = Ema("weights", model, weights=Ema("best", model))
    assert (
        fails(inside, model)
        == "follow holds a Ema that is no model of this plan; pass its attribute 'weights.best'"
    )
    callback = Ema("_", model, _=None, _average_model=AveragedModel(model))
    assert (
        fails(callback, model)
        == "follow holds a Ema that is no model of this plan; pass its attribute '_average_model'"
    )
    both = Ema("ema", model, module=average_of(model))
    assert (
        fails(both, model)
        == "follow holds a Ema with several models of this plan; pass its attribute 'module' or 'ema'"
    )
    unknown = Ema("fast", model, slow=average_of(model))
    assert (
        fails(unknown, model)
        == "follow holds a Ema that is no model of this plan; pass its attribute 'fast' or 'slow'"
    )


def test_averages_without_a_model_are_refused_with_what_to_do() -> None:
    class Shadows:
        def __init__(self, shadow: Any) -> None:
            self.shadow, self.decay = shadow, 0.9

    model = Net()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    advice = "load them into a copy of the model, pass that copy, "
    advice += "and make a new {} of what comes back in followers"
    assert fails(Shadows(state), model) == (
        "follow holds a Shadows that keeps averages as tensors in 'shadow' and no model; "
        + advice.format("Shadows")
    )
    assert fails(Shadows(list(state.values())), model) == (
        "follow holds a Shadows that keeps averages as tensors in 'shadow' and no model; "
        + advice.format("Shadows")
    )
    assert (
        fails(state, model)
        == f"follow holds a dict that keeps averages as tensors and no model; {advice.format('dict')}"
    )


def test_what_holds_no_average_is_refused() -> None:
    model = Net()
    assert fails(Ema("ema", nn.Linear(2, 2)), model) == (
        "follow holds a Ema that is no model of this plan, and none of its attributes holds one; "
        "pass the averaged model, a torch.nn.Module"
    )
    assert fails("ema.pt", model) == (
        "follow holds a str that is no model of this plan, and none of its attributes holds one; "
        "pass the averaged model, a torch.nn.Module"
    )
    assert fails(nn.Linear(2, 2), model) == (
        "the plan was made of another model: 'a.weight' was (8, 6), there is none now; "
        "make a plan of this model (of a cut model, after the cut)"
    )
    assert fails(Ema("ema", model, lock=(i for i in range(2))), model) == (
        "the Ema in follow cannot be copied: cannot pickle 'generator' object; "
        "copy.deepcopy must be able to copy what it holds"
    )
