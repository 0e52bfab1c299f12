"""A stream and heads whose size is computed from it leave in step."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.graph import build_map
from sparsify.graph.model_map import Coupled, Slice, Span
from sparsify.graph.proportional_groups import bundle_groups
from sparsify.graph.surgery import operations
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence, trial_cuts


class Block(nn.Module):
    """Attention as Swin writes it: C // heads features a head, whatever C is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return x + self.out(
            ((q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v).transpose(1, 2).reshape(b, t, c)
        )


X = (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("heads", [2, 3, 6])
def test_a_head_of_each_block_leaves_with_its_share_of_the_stream(heads: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 24), Block(24, heads), Block(24, heads), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, X, {}), X)
    assert [(c.name, c.width, c.protected is None) for c in map.coupled] == [
        ("0", heads, True),
        ("3", 10, True),
        ("5", 3, False),
    ]
    for kept in range(1, heads):
        keep = {"0": list(range(kept))}
        thin, cuts = operations.cut(model, map, keep, "test")
        assert equivalence.verify_cut(model, thin, map, keep, X).difference <= 1e-12
        assert thin[1].heads == kept and thin[0].out_features == kept * (24 // heads)
        again = replay_cuts(model, cuts)
        assert torch.equal(again.eval()(*X), thin.eval()(*X))


def test_units_are_counted_in_the_coarser_group() -> None:
    stream = Coupled(
        "a", 6, (Slice("a.weight", 0, "out", (Span(0, 0, 6),)), Slice("q.weight", 1, "in", (Span(0, 0, 6),)))
    )
    heads = Coupled(
        "q",
        2,
        (
            Slice("q.weight", 0, "out", (Span(0, 0, 2, 3), Span(6, 0, 2, 3))),
            Slice("m:heads", 0, "size", (Span(0, 0, 2),)),
        ),
        statistics=True,
    )
    other = Coupled("z", 2, (Slice("z.weight", 0, "out", (Span(0, 0, 2, 3),)),))
    ((bundle, names),) = bundle_groups([stream, heads, other])
    assert names == ("a", "q") and (bundle.name, bundle.width, bundle.statistics) == ("a", 2, True)
    assert [part.spans for part in bundle.slices] == [
        (Span(0, 0, 2, 3),),
        (Span(0, 0, 2, 3),),
        (Span(0, 0, 2, 3), Span(6, 0, 2, 3)),
        (Span(0, 0, 2),),
    ]


class Shortened(nn.Module):
    """Keys and values from fewer tokens, as Segformer writes it: what a convolution makes gets the stream's
    shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shorten, self.norm = nn.Conv1d(width, width, 2, 2), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        fewer = self.shorten(x.transpose(1, 2)).reshape(b, c, -1).transpose(1, 2)
        return x + self.mix(self.norm(fewer)).mean(1, keepdim=True)


def test_a_layer_that_gets_the_shape_of_the_stream_leaves_with_it() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 8, 6),)
    model = nn.Sequential(nn.Linear(6, 12), Shortened(12), nn.ReLU(), Shortened(12), nn.Linear(12, 3)).eval()
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, inputs, {}), inputs)
    assert [(c.name, c.width, c.protected is None) for c in map.coupled] == [("0", 12, True), ("4", 3, False)]
    keep = {"0": [0, 3, 4, 8, 11]}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert equivalence.verify_cut(model, thin, map, keep, inputs).difference <= 1e-12
    assert (thin[1].shorten.in_channels, thin[3].shorten.out_channels, thin[4].in_features) == (5, 5, 5)
    assert torch.equal(replay_cuts(model, cuts).eval()(*inputs), thin.eval()(*inputs))
