"""Activations computed again in the backward pass: the same bits for fewer bytes."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.parametrizations import spectral_norm

import sparsify
from sparsify.data import Datasets, Examples
from sparsify.errors import SparsifyError, TrainingError
from sparsify.models import cifar_resnet20
from sparsify.objective.objective import make_objective
from sparsify.training.accelerator import make_accelerator
from sparsify.training.recompute import find_blocks, recompute_activations
from sparsify.training.stage import train_stage
from sparsify_schemas.stage import Train

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}


class Block(nn.Module):
    """A residual block with all that a second pass could upset."""

    def __init__(self, width: int, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(0.3)
        self.act = nn.ReLU(inplace=inplace)
        self.second = spectral_norm(nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.second(self.drop(self.norm(self.first(self.act(x)))))
        return found


class Net(nn.Module):
    def __init__(
        self, blocks: int = 3, width: int = 4, inplace: bool = False, kind: type[Block] = Block
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(width, momentum=None)
        self.blocks = nn.Sequential(*(kind(width, inplace) for _ in range(blocks)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem_norm(self.stem(x))).mean((2, 3)))
        return found


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def make_data(count: int = 40) -> Datasets:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    given = Examples(x, torch.arange(count) % 3)
    return Datasets(given, given[:10], given[:10], 3)


def train(model: nn.Module, plan: Any = None, data: Datasets | None = None, **more: Any) -> list[Any]:
    """Losses and metrics of the epochs."""
    keys = {"kind": "train", "name": "learn", "epochs": 2, "batch": 16, "optimizer": SGD}
    objective = make_objective(more.pop("task", "classification"))
    state = train_stage(
        model,
        Train.model_validate({**keys, **more}),
        data or make_data(),
        plan,
        seed=5,
        stage_index=0,
        accelerator=make_accelerator(),
        objective=objective,
    )
    return [(row.loss, row.train_metric, row.validation_loss, row.sparsity) for row in state.history]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


SENSITIVITY = {"kind": "sensitivity", "of": "outputs", "strength": 0.3}


@pytest.mark.parametrize(
    "more",
    [{}, {"accumulate": 3}, {"precision": "bf16"}, {"ema": 0.9}, {"mixup": 0.4}, {"layout": "channels_last"}],
    ids=str,
)
def test_training_ends_with_the_same_bits(more: dict[str, Any]) -> None:
    """Dropout draws the same numbers again; running statistics, the vectors of spectral norms and the rest of
    the stage see each batch once."""
    plain, again = seeded(Net), seeded(Net)
    wanted = train(plain, **more)
    assert train(again, recompute_activations=True, **more) == wanted
    assert_same(again, plain)
    assert not any("forward" in vars(module) for module in again.modules())


@pytest.mark.parametrize("penalty", [SENSITIVITY, {"kind": "group_lasso", "strength": 0.05}], ids=str)
def test_penalties_see_each_pass_once(penalty: dict[str, Any]) -> None:
    rule = {"layers": "blocks.*.first", "group": "filter", "penalty": penalty}
    recipe = {"version": 1, "title": "t", "inputs": [{"shape": [2, 1, 6, 6]}], "rules": [rule]}
    plain, again = seeded(Net), seeded(Net)
    plan = sparsify.make_plan(recipe, plain)
    wanted = train(plain, plan)
    assert train(again, plan, recompute_activations=True) == wanted
    assert_same(again, plain)


def held_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct memories that a training pass keeps for its backward pass, weights aside: what
    autograd saves, and what blocks are given."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: list[Tensor] = []  # held, so that no memory is used twice
    handles = []
    for block in find_blocks(model).values():
        handles.append(block.register_forward_pre_hook(lambda _module, given: kept.extend(given)))

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).sum()
    for handle in handles:
        handle.remove()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in own)


def test_fewer_bytes_are_held() -> None:
    model, x = seeded(lambda: Net(blocks=6)).train(), torch.randn(8, 1, 16, 16)
    plain = held_bytes(model, x)
    with recompute_activations(model):
        recomputed = held_bytes(model, x)
    block = 8 * 4 * 16 * 16 * 4  # the input of a block
    assert 7 * block <= recomputed < 10 * block  # one for each block, and what the stem keeps
    assert recomputed < 0.25 * plain


def test_one_graph_may_be_passed_twice() -> None:
    model, plain = seeded(Net).train(), seeded(Net).train()
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    found = []
    for net in (model, plain):
        torch.manual_seed(3)
        with recompute_activations(net) if net is model else torch.enable_grad():
            out = net(x).square().sum()
            weights = list(net.parameters())
            first = torch.autograd.grad(out, weights, retain_graph=True)
            found.append((*first, *torch.autograd.grad(out, weights)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert_same(model, plain)


def test_blocks_are_the_outermost_modules_of_several_layers() -> None:
    assert list(find_blocks(cifar_resnet20())) == [
        f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3)
    ]
    pair = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    nested = nn.Sequential(nn.Linear(4, 4), nn.Sequential(pair, deepcopy(pair)), nn.ModuleList([pair]))
    assert list(find_blocks(nested)) == ["1.0", "1.1"]  # the last is the first once more
    assert not find_blocks(pair)


def test_a_transformer_with_a_cache_trains_alike() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        attention_dropout=0.2,
    )
    plain, again = (seeded(lambda: transformers.LlamaForCausalLM(config)) for _ in range(2))
    tokens = torch.randint(0, 20, (24, 6), generator=torch.Generator().manual_seed(1))
    given = Examples(tokens, tokens)
    data = Datasets(given, given[:4], given[:4], 0)
    more = {"task": "language_model", "batch": 8}
    assert list(find_blocks(again)) == [f"model.layers.{place}" for place in range(3)]
    wanted = train(plain, data=data, **more)
    assert train(again, data=data, recompute_activations=True, **more) == wanted
    assert_same(again, plain)
    assert again.config.use_cache is True


def test_a_block_that_changes_its_input_is_refused() -> None:
    """A second pass would begin with another input."""
    with pytest.raises(TrainingError) as caught:
        train(seeded(lambda: Net(inplace=True)), recompute_activations=True)
    assert str(caught.value) == (
        "the input of block 'blocks.0' is changed in place, so the block cannot be computed again; write "
        "inplace=False there, or leave 'recompute_activations' out"
    )


def test_an_input_that_is_changed_after_its_block_is_refused_too() -> None:
    class After(Net):
        def forward(self, x: Tensor) -> Tensor:
            given = self.stem(x)
            found: Tensor = self.head(self.blocks(given).mean((2, 3)))
            given.mul_(2)
            return found

    with pytest.raises(TrainingError) as caught:
        train(seeded(After), recompute_activations=True)
    assert "the input of block 'blocks.0' is changed in place" in str(caught.value)


def test_chance_of_random_and_numpy_is_the_same_again() -> None:
    class Noisy(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x) * (random.random() + np.random.random())

    found = []
    for recomputed in (False, True):
        random.seed(1)
        np.random.seed(1)
        model = seeded(lambda: Net(kind=Noisy))
        train(model, recompute_activations=recomputed)
        found.append((model, random.random(), np.random.random()))
    assert found[0][1:] == found[1][1:]
    assert_same(found[0][0], found[1][0])


def test_a_block_that_computes_something_else_the_second_time_is_refused() -> None:
    class Counts(Block):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x[:, :, : 6 - self.calls % 2])

    with pytest.raises(TrainingError) as caught:
        train(seeded(lambda: Net(kind=Counts)), recompute_activations=True)
    assert str(caught.value) == (
        "stage 'learn', epoch 1, step 1: a block of the model computes something else when it is called "
        "again with the same inputs, so it cannot be computed again; leave 'recompute_activations' out"
    )


def test_a_model_without_blocks_is_refused_before_the_first_epoch(tmp_path: Any) -> None:
    learn = {"kind": "train", "epochs": 1, "optimizer": {"kind": "adam"}, "recompute_activations": True}
    recipe = {
        "version": 1,
        "title": "t",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits"},
        "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
        "stages": [learn, {"kind": "cut"}],
    }
    with pytest.raises(SparsifyError) as caught:
        sparsify.apply(recipe, from_scratch=True, out=tmp_path, timing=0.02)
    assert str(caught.value) == (
        "<recipe>: stages.0.recompute_activations: 'recompute_activations' keeps the inputs of repeated "
        "blocks alone, and the model has no two modules of several layers in an nn.Sequential or "
        "nn.ModuleList; build it of such, or leave this out and write 'accumulate' for less memory"
    )
    assert not list(tmp_path.iterdir())
