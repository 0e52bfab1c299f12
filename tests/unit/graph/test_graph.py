"""Structure, cutting and proof on one small network per construct."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.errors import ModelError, RunError, VerificationError
from sparsify.forward import call_model
from sparsify.graph import build_map
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery import operations, transfer_state
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence, trial_cuts
from sparsify_schemas.cuts import Cuts, Narrow


class Net(nn.Module):
    """Layers a, b, c ... and a forward given as a function: one line per construct."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def __getattr__(self, name: str) -> nn.Module:
        return super().__getattr__(name)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(i: int, o: int, k: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def chain() -> Net:
    return Net(
        lambda m, x: m.fc(pooled(m.c(m.bn(m.b(m.a(x).relu())).relu()))),
        a=conv(3, 8),
        b=conv(8, 12),
        bn=nn.BatchNorm2d(12),
        c=conv(12, 6),
        fc=nn.Linear(6, 4),
    )


EQUAL: dict[str, Callable[[], Net]] = {
    "chain": chain,
    "sigmoid": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(m.a(x).sigmoid()))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)
    ),
    "residual": lambda: Net(
        lambda m, x: m.fc(pooled((y := m.a(x).relu()) + m.c(m.b(y).relu()))),
        a=conv(3, 8),
        b=conv(8, 12),
        c=conv(12, 8),
        fc=nn.Linear(8, 4),
    ),
    "flatten": lambda: Net(
        lambda m, x: m.c(m.b(F.max_pool2d(m.a(x), 2).flatten(1)).relu()),
        a=conv(3, 8),
        b=nn.Linear(8 * 16, 10),
        c=nn.Linear(10, 4),
    ),
    "view": lambda: Net(
        lambda m, x: m.b(m.a(x).relu().view(x.shape[0], -1)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)
    ),
    "concat": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(torch.cat([m.a(x), m.b(x)], 1)).relu())),
        a=conv(3, 8),
        b=conv(3, 6),
        c=conv(14, 6),
        fc=nn.Linear(6, 4),
    ),
    "concat with input": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(torch.cat([m.a(x), x], 1)).relu())),
        a=conv(3, 8),
        b=conv(11, 6),
        fc=nn.Linear(6, 4),
    ),
    "concat plus residual": lambda: Net(
        lambda m, x: m.fc(pooled(torch.cat([m.a(x), m.b(x)], 1) + m.c(x))),
        a=conv(3, 8),
        b=conv(3, 6),
        c=conv(3, 14),
        fc=nn.Linear(14, 4),
    ),
    "grouped": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(m.b(m.a(x)).relu()))),
        a=conv(3, 8),
        b=conv(8, 12, groups=4),
        c=conv(12, 6),
        fc=nn.Linear(6, 4),
    ),
    "mixed groups": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(y := m.a(x))) + pooled(m.c(y))),
        a=conv(3, 24),
        b=conv(24, 12, groups=2),
        c=conv(24, 12, groups=3),
        fc=nn.Linear(12, 4),
    ),
    "depthwise": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(m.b(m.a(x)).relu()))),
        a=conv(3, 8),
        b=conv(8, 8, groups=8),
        c=conv(8, 6, 1),
        fc=nn.Linear(6, 4),
    ),
    "squeeze and excite": lambda: Net(
        lambda m, x: m.fc(pooled((y := m.a(x)) * m.c(m.b(y.mean((2, 3), keepdim=True)).relu()).sigmoid())),
        a=conv(3, 8),
        b=conv(8, 4, 1),
        c=conv(4, 8, 1),
        fc=nn.Linear(8, 4),
    ),
    "prelu": lambda: Net(
        lambda m, x: m.fc(pooled(m.p(m.a(x)))), a=conv(3, 8), p=nn.PReLU(8), fc=nn.Linear(8, 4)
    ),
    "instance norm": lambda: Net(
        lambda m, x: m.fc(pooled(m.n(m.a(x)).relu())),
        a=conv(3, 8),
        n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        fc=nn.Linear(8, 4),
    ),
    "transposed": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(m.b(m.a(x)).relu()))),
        a=conv(3, 8),
        b=nn.ConvTranspose2d(8, 6, 2, 2),
        c=conv(6, 5),
        fc=nn.Linear(5, 4),
    ),
    "shared layer": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(m.b(m.a(x)).relu()))), a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 4)
    ),
    "batch norm without affine": lambda: Net(
        lambda m, x: m.fc(pooled(m.n(m.a(x)).relu())),
        a=conv(3, 8),
        n=nn.BatchNorm2d(8, affine=False),
        fc=nn.Linear(8, 4),
    ),
    "flip": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(m.a(x).flip(1)))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)
    ),
    "padded shortcut": lambda: Net(
        lambda m, x: m.fc(pooled(F.pad(m.a(x), (0, 0, 0, 0, 2, 2)) + m.b(x))),
        a=conv(3, 8),
        b=conv(3, 12),
        fc=nn.Linear(12, 4),
    ),
    "behind the input in a concat": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(torch.cat([x, m.a(x)], 1)))),
        a=conv(3, 8),
        b=conv(11, 6),
        fc=nn.Linear(6, 4),
    ),
    "buffer per channel": lambda: _with_buffer(),
    "depth multiplier": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(m.b(m.a(x))))),
        a=conv(3, 4),
        b=conv(4, 8, groups=4),
        c=conv(8, 4),
        fc=nn.Linear(4, 4),
    ),
    "chunk, used twice and in another order": lambda: Net(
        lambda m, x: m.fc(pooled(m.c(torch.cat([(y := m.a(x).chunk(2, 1))[1], y[0], m.b(y[1])], 1)))),
        a=conv(3, 8),
        b=conv(4, 4),
        c=conv(12, 6),
        fc=nn.Linear(6, 4),
    ),
    "unbind": lambda: Net(
        lambda m, x: m.fc(pooled(sum(m.a(x).unflatten(1, (2, -1)).unbind(1)))),
        a=conv(3, 8),
        fc=nn.Linear(4, 4),
    ),
    "channel shuffle": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(F.channel_shuffle(m.a(x), 2)))),
        a=conv(3, 8),
        b=conv(8, 8, groups=2),
        fc=nn.Linear(8, 4),
    ),
    "permute, then flatten": lambda: Net(
        lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)
    ),
    "space to depth": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(F.pixel_unshuffle(m.a(x), 2)))),
        a=conv(3, 8),
        b=conv(32, 6),
        fc=nn.Linear(6, 4),
    ),
    "pixel shuffle": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(F.pixel_shuffle(m.a(x), 2)))),
        a=conv(3, 16),
        b=conv(4, 6),
        fc=nn.Linear(6, 4),
    ),
    "focus slices": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(torch.cat([(y := m.a(x))[..., ::2, ::2], y[..., 1::2, 1::2]], 1)))),
        a=conv(3, 8),
        b=conv(16, 6),
        fc=nn.Linear(6, 4),
    ),
    "repeated channels": lambda: Net(
        lambda m, x: m.fc(pooled(m.b(m.a(x).repeat(1, 2, 1, 1)))),
        a=conv(3, 8),
        b=conv(16, 6),
        fc=nn.Linear(6, 4),
    ),
    "einsum": lambda: Net(
        lambda m, x: m.fc(torch.einsum("bchw,dc->bd", m.a(x), m.b.weight)),
        a=conv(3, 8),
        b=nn.Linear(8, 6, bias=False),
        fc=nn.Linear(6, 4),
    ),
    "functional weight": lambda: Net(
        lambda m, x: m.fc(pooled(F.conv2d(m.a(x), m.b.weight, padding=1))),
        a=conv(3, 8),
        b=nn.Conv2d(8, 6, 3, bias=False),
        fc=nn.Linear(6, 4),
    ),
    "transposed tie": lambda: Net(
        lambda m, x: m.fc(F.linear(m.a(pooled(x)).relu(), m.a.weight.t())),
        a=nn.Linear(3, 8),
        fc=nn.Linear(3, 4),
    ),
    "gated linear unit": lambda: Net(
        lambda m, x: m.fc(pooled(F.glu(m.a(x), 1))), a=conv(3, 12), fc=nn.Linear(6, 4)
    ),
    "frozen batch norm": lambda: _frozen(),
    "tied layers": lambda: _tied(),
    "diagonal": lambda: Net(
        lambda m, x: m.fc((m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2)).diagonal(dim1=1, dim2=2)),
        a=conv(3, 8),
        b=conv(3, 8),
        fc=nn.Linear(8, 4),
    ),
    "attention": lambda: Net(
        lambda m, x: m.fc(m.att(*[m.a(x).flatten(2).transpose(1, 2)] * 3)[0].mean(1)),
        a=conv(3, 8),
        att=nn.MultiheadAttention(8, 2, batch_first=True),
        fc=nn.Linear(8, 4),
    ),
    "queries times keys": lambda: Net(
        lambda m, x: m.fc((m.a(y := x.flatten(2)).relu().transpose(1, 2) @ m.b(y)).amax(2)[:, :4].relu()),
        a=nn.Conv1d(3, 8, 1),
        b=nn.Conv1d(3, 8, 1),
        fc=nn.Linear(4, 4),
    ),
    "zeros of its own size": lambda: Net(
        lambda m, x: m.fc(
            (
                m.b(torch.zeros(len(x), m.b.weight.shape[1], dtype=x.dtype, device=x.device) + m.a(pooled(x)))
                + m.a(pooled(x))
            ).relu()
        ),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 8),
        fc=nn.Linear(8, 4),
    ),
    "written into zeros": lambda: Net(_filled, a=conv(3, 8), fc=nn.Linear(16, 4)),
    "unfold": lambda: Net(
        lambda m, x: m.fc(m.b(F.unfold(m.a(x), 2, stride=2).transpose(1, 2)).relu().mean(1)),
        a=conv(3, 8),
        b=nn.Linear(32, 6),
        fc=nn.Linear(6, 4),
    ),
    "split by an attribute": lambda: _halved(),
}
STATISTICS: dict[str, Callable[[], Net]] = {
    "group norm": lambda: Net(
        lambda m, x: m.fc(pooled(m.n(m.a(x)))), a=conv(3, 8), n=nn.GroupNorm(2, 8), fc=nn.Linear(8, 4)
    ),
    "layer norm": lambda: Net(
        lambda m, x: m.fc(m.n(pooled(m.a(x)))), a=conv(3, 8), n=nn.LayerNorm(8), fc=nn.Linear(8, 4)
    ),
    "RMS norm": lambda: Net(
        lambda m, x: m.fc(m.n(pooled(m.a(x)))), a=conv(3, 8), n=nn.RMSNorm(8), fc=nn.Linear(8, 4)
    ),
    "softmax over channels": lambda: Net(
        lambda m, x: m.fc(pooled(m.a(x).softmax(1))), a=conv(3, 8), fc=nn.Linear(8, 4)
    ),
    "layer norm without weights": lambda: Net(
        lambda m, x: m.fc(m.n(pooled(m.a(x)))),
        a=conv(3, 8),
        n=nn.LayerNorm(8, elementwise_affine=False),
        fc=nn.Linear(8, 4),
    ),
    "gated linear unit behind a layer norm": lambda: Net(
        lambda m, x: m.fc(F.glu(m.b(m.n(pooled(m.a(x)))), -1)),
        a=conv(3, 8),
        n=nn.LayerNorm(8),
        b=nn.Linear(8, 12),
        fc=nn.Linear(6, 4),
    ),
    "norm over channels against channels": lambda: Net(
        lambda m, x: m.fc(
            F.layer_norm(g := m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2), g.shape[1:]).amax(2)
        ),
        a=conv(3, 8),
        b=conv(3, 6),
        fc=nn.Linear(8, 4),
    ),
    "mean over channels": lambda: Net(
        lambda m, x: m.fc(pooled((y := m.a(x)) * y.mean(1, keepdim=True).sigmoid())),
        a=conv(3, 8),
        fc=nn.Linear(8, 4),
    ),
}
KEPT_WHOLE: dict[str, tuple[Callable[[], Net], str, str]] = {
    "added to the input": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x) + x))), a=conv(3, 3), b=conv(3, 6), fc=nn.Linear(6, 4)
        ),
        "a",
        "it is combined with something of fixed size",
    ),
    "one channel": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x)[:, :1]))), a=conv(3, 8), b=conv(1, 6), fc=nn.Linear(6, 4)
        ),
        "a",
        "its channels can only be removed all together",
    ),
    "uneven split": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x).split([2, 6], 1)[1]))),
            a=conv(3, 8),
            b=conv(6, 6),
            fc=nn.Linear(6, 4),
        ),
        "a",
        "it is split at fixed places",
    ),
    "permuted by index": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x)[:, [1, 0, 3, 2]]))),
            a=conv(3, 4),
            b=conv(4, 6),
            fc=nn.Linear(6, 4),
        ),
        "a",
        "its elements are taken by number",
    ),
    "rolled": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x).roll(1, 1)))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)
        ),
        "a",
        "it is rolled by a fixed number of places",
    ),
    "channels times channels": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.c((m.a(x).unsqueeze(2) * m.b(x).unsqueeze(1)).flatten(1, 2)))),
            a=conv(3, 4),
            b=conv(3, 6),
            c=conv(24, 6),
            fc=nn.Linear(6, 4),
        ),
        "a",
        "it is flattened together with another dimension",
    ),
    "hard-coded view": (
        lambda: Net(lambda m, x: m.b(m.a(x).view(-1, 512)), a=conv(3, 8), b=nn.Linear(512, 4)),
        "a",
        "a trial cut failed: the cut model does not run",
    ),
    "queries times keys, scaled by their width": (
        lambda: Net(
            lambda m, x: m.fc(((q := m.a(y := x.flatten(2))).transpose(1, 2) @ m.b(y) / q.shape[1]).amax(2)),
            a=nn.Conv1d(3, 8, 1),
            b=nn.Conv1d(3, 8, 1),
            fc=nn.Linear(64, 4),
        ),
        "a",
        "a trial cut failed: the cut model differs from the masked one",
    ),
    "queries that are never zero": (
        lambda: Net(
            lambda m, x: m.fc((m.a(y := x.flatten(2)).sigmoid().transpose(1, 2) @ m.b(y).sigmoid()).amax(2)),
            a=nn.Conv1d(3, 8, 1),
            b=nn.Conv1d(3, 8, 1),
            fc=nn.Linear(64, 4),
        ),
        "a",
        "a trial cut failed: the cut model differs from the masked one",
    ),
    "zeros of a fixed size": (
        lambda: Net(
            lambda m, x: m.fc(m.a(pooled(x)) + x.new_zeros(len(x), 8)), a=nn.Linear(3, 8), fc=nn.Linear(8, 4)
        ),
        "a",
        "a trial cut failed: the cut model does not run",
    ),
    "output": (chain, "fc", "it feeds the network's output"),
    "unused layer": (
        lambda: Net(lambda m, x: m.fc(pooled(m.a(x))), a=conv(3, 8), unused=conv(3, 8), fc=nn.Linear(8, 4)),
        "unused",
        "takes no part in a forward call with these inputs",
    ),
}


def _filled(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    made = x.new_empty(len(x), 2, y.shape[1])
    made[:, 0], made[:, 1] = pooled(y), y.amax((2, 3))
    return m.fc(made.flatten(1))


def _halved() -> Net:
    """The whole is written down, the places of the split are computed from it."""
    net = Net(
        lambda m, x: m.fc(pooled(torch.mul(*m.a(x).split(m.all // 2, 1)))), a=conv(3, 8), fc=nn.Linear(4, 4)
    )  # type: ignore[operator]
    net.all = 8  # type: ignore[assignment]
    return net


def _frozen() -> Net:
    """Normalisation by buffers alone, as detection networks have it."""
    net = Net(
        lambda m, x: m.fc(pooled((m.a(x) * m.scale.view(1, -1, 1, 1) + m.shift.view(1, -1, 1, 1)).relu())),
        a=conv(3, 8),
        fc=nn.Linear(8, 4),
    )  # type: ignore[operator]
    net.register_buffer("scale", torch.rand(8) + 0.5)
    net.register_buffer("shift", torch.randn(8))
    return net


def _tied() -> Net:
    """Two layers of one weight, square: neither the shapes nor the widths written in the modules tell rows
    from columns."""
    net = Net(
        lambda m, x: m.fc(m.c(m.n(m.b(m.a(pooled(x)))).relu())),
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 8),
        n=nn.BatchNorm1d(8),
        c=nn.Linear(8, 8),
        fc=nn.Linear(8, 4),
    )
    net.c.weight = net.b.weight
    return net


def _with_buffer() -> Net:
    def scaled(m: Net, x: Tensor) -> Tensor:
        return m.fc(pooled(m.a(x) * m.scale.view(1, -1, 1, 1)))  # type: ignore[operator]

    net = Net(scaled, a=conv(3, 8), fc=nn.Linear(8, 4))
    net.register_buffer("scale", torch.rand(8) + 0.5)
    return net


INPUTS = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def mapped(model: nn.Module) -> ModelMap:
    return trial_cuts.protect_failing_groups(model, build_map.build_map(model, INPUTS, {}), INPUTS)


def random_half(map: ModelMap, seed: int = 0) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        c.name: sorted(torch.randperm(c.width, generator=generator)[: max(1, c.width // 2)].tolist())
        for c in map.coupled
        if c.protected is None
    }


@pytest.mark.parametrize("name", EQUAL)
def test_cut_equals_masked(name: str) -> None:
    torch.manual_seed(0)
    model = EQUAL[name]()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    map = mapped(model)
    keep = random_half(map)
    assert keep, f"nothing can be cut: {[(c.name, c.protected) for c in map.coupled]}"
    last = "fc" if "fc" in dict(model.named_children()) else list(dict(model.named_children()))[-1]
    # what is padded with zeros stays, the rest of the layer goes with what it is added to
    assert [c.name for c in map.coupled if c.protected] == (
        ["b", last] if name == "padded shortcut" else [last]
    )
    thin, cuts = operations.cut(model, map, keep, "test")
    verdict = equivalence.verify_cut(model, thin, map, keep, INPUTS)
    assert verdict.outcome == "equal" and verdict.difference <= 1e-12
    assert verdict.control > 1e-3, "the check could not have seen a wrong cut"
    assert sum(p.numel() for p in thin.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
    again = replay_cuts(model, Cuts.model_validate_json(cuts.model_dump_json()))
    again.eval(), thin.eval()
    assert torch.equal(again(*INPUTS), thin(*INPUTS))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()), (
        "the user's model was changed"
    )


@pytest.mark.parametrize("name", KEPT_WHOLE)
def test_what_cannot_be_cut_is_protected_with_a_reason(name: str) -> None:
    torch.manual_seed(0)
    build, layer, reason = KEPT_WHOLE[name]
    map = mapped(build())
    protected = map.by_name[layer].protected
    assert protected is not None and protected.startswith(reason)


def test_of_two_dimensions_flattened_into_one_the_longer_is_cut() -> None:
    torch.manual_seed(0)
    model = KEPT_WHOLE["channels times channels"][0]()
    map = mapped(model)
    assert [c.name for c in map.coupled if c.protected is None] == ["b", "c"]
    keep = {"b": [0, 4], "c": [1, 2, 5]}
    thin, _ = operations.cut(model, map, keep, "test")
    assert equivalence.verify_cut(
        model, thin, map, keep, INPUTS
    ).outcome == "equal" and thin.c.weight.shape == (
        3,
        8,
        3,
        3,
    )


def test_layers_that_one_tensor_of_zeros_is_added_to_have_one_width() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        bias = torch.zeros(1, y.shape[1], 1, 1) + x.new_zeros(1)
        return m.fc(pooled((y + bias).relu())) + m.last(pooled((m.b(x) + bias).relu()))

    torch.manual_seed(0)
    model = Net(run, a=conv(3, 8), b=conv(3, 8), fc=nn.Linear(8, 4), last=nn.Linear(8, 4))
    map = mapped(model)
    (free,) = [c for c in map.coupled if c.protected is None]
    assert {s.tensor for s in free.slices} >= {"a.weight", "b.weight", "fc.weight", "last.weight"}
    keep = random_half(map)
    assert (
        equivalence.verify_cut(model, operations.cut(model, map, keep, "test")[0], map, keep, INPUTS).outcome
        == "equal"
    )


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_change_and_the_rest_is_equal(name: str) -> None:
    """Equal to the masked model whose normalisation leaves the removed units out; not to the one that
    keeps them."""
    torch.manual_seed(0)
    model = STATISTICS[name]()
    map = mapped(model)
    assert map.by_name["a"].protected is None and map.by_name["a"].statistics
    keep = random_half(map)
    thin, _ = operations.cut(model, map, keep, "test")
    verdict = equivalence.verify_cut(model, thin, map, keep, INPUTS)
    assert verdict.outcome == "statistics change" and verdict.difference <= 1e-9 and verdict.control > 1e-3


def test_verification_sees_a_wrong_cut() -> None:
    torch.manual_seed(0)
    model = chain()
    map = mapped(model)
    keep = random_half(map)
    thin, _ = operations.cut(model, map, keep, "test")
    wrong = {**keep, "b": sorted(set(range(12)) - set(keep["b"]))}
    with pytest.raises(
        VerificationError, match=r"the cut model differs from the masked one by .* \[groups: a, b, c\]"
    ):
        equivalence.verify_cut(model, thin, map, wrong, INPUTS)


def test_no_drops_is_the_identity() -> None:
    model = chain().eval()
    map = mapped(model)
    keep = {c.name: list(range(c.width)) for c in map.coupled if c.protected is None}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert cuts.operations == ()
    assert torch.equal(thin(*INPUTS), model(*INPUTS))
    assert equivalence.verify_cut(model, thin, map, keep, INPUTS).outcome == "nothing cut"


def test_flags_dtype_ties_and_modes_survive() -> None:
    model = EQUAL["flatten"]().to(torch.bfloat16)
    model.b.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    model.a.eval()
    map = build_map.build_map(model, tuple(x.to(torch.bfloat16) for x in INPUTS), {})
    thin, _ = operations.cut(model, map, random_half(map), "test")
    assert thin.a.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert not thin.b.weight.requires_grad and thin.a.weight.requires_grad  # type: ignore[union-attr]
    assert not thin.a.training and thin.b.training


def test_tied_weights_stay_tied() -> None:
    model = EQUAL["shared layer"]()
    model.add_module("d", conv(8, 8))
    model.d.weight = model.b.weight
    map = mapped(model)
    keep = random_half(map)
    thin, _ = operations.cut(model, map, keep, "test")
    assert thin.d.weight is thin.b.weight and thin.b.weight.shape[0] == 4


def test_width_attributes_are_those_of_the_weights() -> None:
    """In every layer that holds a weight, be it another's, and where an input and an output are of one
    length by chance."""
    model = Net(
        lambda m, x: m.fc(m.d(m.b(F.max_pool2d(x, 4).flatten(1))) + m.e(m.c(pooled(x)))),
        b=nn.Linear(12, 12),
        c=nn.Linear(3, 12),
        d=nn.Linear(12, 8),
        e=nn.Linear(12, 8),
        fc=nn.Linear(8, 4),
    )
    model.e.weight = model.d.weight
    map = mapped(model)
    thin, _ = operations.cut(model, map, random_half(map), "test")
    for layer in thin.children():
        assert isinstance(layer, nn.Linear) and (layer.out_features, layer.in_features) == tuple(
            layer.weight.shape
        )
    assert thin.e.weight.shape == (4, 6) and thin.b.weight.shape == (6, 12)


def test_optimizer_goes_on_with_the_cut_model() -> None:
    """A step of the cut model with the carried-over momentum equals the dense step of the masked model,
    cut."""
    torch.manual_seed(0)
    model = chain().double()
    inputs = tuple(x.double() for x in INPUTS)
    model.bn.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(*inputs).square().sum().backward()
        optimizer.step()
    map = build_map.build_map(model, inputs, {})
    keep = random_half(map)
    buffers = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert transfer_state.transfer_state(model, thin, cuts, optimizer) == ()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in thin.parameters()}
    for name, parameter in thin.named_parameters():
        wanted = buffers[name]
        for op in cuts.operations:
            if isinstance(op, Narrow) and op.tensor == name:
                wanted = wanted.index_select(
                    op.dim, torch.tensor([i for a, b in op.keep for i in range(a, b)])
                )
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], wanted)
    optimizer.zero_grad()
    thin(*inputs).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tensor": "nowhere.weight"},
            (
                "the cut log narrows 'nowhere.weight', which this model does not have; "
                "was it built by the same recipe?"
            ),
        ),
        ({"size": 99}, "the cut log expects 'a.weight' to have 99 entries in dimension 0, this model has 8"),
        ({"dim": 7}, "the cut log expects 'a.weight' to have 8 entries in dimension 7, this model has None"),
        (
            {"keep": ((4, 99),)},
            "the cut log keeps indices of 'a.weight' that are out of order or beyond its 8 entries",
        ),
        (
            {"keep": ((4, 6), (1, 2))},
            "the cut log keeps indices of 'a.weight' that are out of order or beyond its 8 entries",
        ),
        (
            {"keep": ()},
            "the cut log keeps indices of 'a.weight' that are out of order or beyond its 8 entries",
        ),
    ],
)
def test_a_log_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    values = {"tensor": "a.weight", "dim": 0, "size": 8, "keep": ((0, 4),), **change}
    with pytest.raises(RunError) as caught:
        replay_cuts(chain(), Cuts(plan="x", operations=(Narrow.model_validate(values),)))
    assert str(caught.value) == message


def test_untraceable_models_are_refused_in_words() -> None:
    with pytest.raises(ModelError, match="could not be traced with the inputs of the recipe: RuntimeError"):
        build_map.build_map(chain(), (torch.randn(2, 5, 8, 8),), {})
    with pytest.raises(
        ModelError, match=r"wrapped by DataParallel; pass the module inside it \(model\.module\)"
    ):
        call_model.check_model(nn.DataParallel(chain()))


class Heads(nn.Module):
    """Attention with as many heads as features a head, so that two attributes hold the same number."""

    def __init__(self, heads: int, per_head: int) -> None:
        super().__init__()
        self.per_head, self.heads = per_head, heads
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(*x.shape[:2], self.heads, self.per_head).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        return self.fc(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize(("heads", "per_head"), [(2, 8), (8, 2), (4, 4)])
def test_the_attribute_that_counts_heads_is_found(heads: int, per_head: int) -> None:
    torch.manual_seed(0)
    model, inputs = Heads(heads, per_head), (torch.randn(2, 5, 16),)
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, inputs, {}), inputs)
    group = map.by_name["q"]
    assert (group.width, group.protected) == (heads, None)
    keep = {"q": list(range(heads // 2))}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert (thin.heads, thin.per_head) == (heads // 2, per_head)
    assert equivalence.verify_cut(model, thin, map, keep, inputs).difference <= 1e-12
    again = replay_cuts(Heads(heads, per_head), cuts)
    assert (again.heads, again.per_head) == (heads // 2, per_head)


class Recurrent(nn.Module):
    """A recurrent layer of some kind, depth and direction."""

    def __init__(self, kind: str, layers: int, both: bool) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(5, 8, layers, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(16 if both else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_hidden_units_leave_over_all_gates_layers_and_directions(kind: str, layers: int, both: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Recurrent(kind, layers, both), (torch.randn(3, 6, 5),)
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, inputs, {}), inputs)
    assert (map.by_name["rnn"].width, map.by_name["rnn"].protected) == (8, None)
    keep = {"rnn": [0, 3, 6]}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert thin.rnn.hidden_size == 3
    verdict = equivalence.verify_cut(model, thin, map, keep, inputs)
    assert verdict.outcome == "equal" and verdict.difference <= 1e-12 and verdict.control > 1e-3
    thin(torch.randn(7, 9, 5)).sum().backward()
    again = replay_cuts(Recurrent(kind, layers, both), cuts)
    again.load_state_dict(thin.state_dict())
    assert torch.equal(again(*inputs), thin(*inputs))
