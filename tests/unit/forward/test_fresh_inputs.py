"""New inputs of the same kind as given ones."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from sparsify.forward.calls import Call, add_argument_names
from sparsify.forward.fresh_inputs import redraw

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def test_floats_keep_their_mean_and_spread_and_nothing_else() -> None:
    given = 5 + 3 * torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) - 4
    (new,) = redraw((given,), seed=1)
    assert new.shape == given.shape and new.dtype == given.dtype
    assert abs(float(new.mean() - given.mean())) < 0.1 and abs(float(new.std() - given.std())) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([new.flatten(), given.flatten()]))[0, 1])) < 0.05


def test_floats_without_negatives_stay_within_the_given_range() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 200 + 20
    (new,) = redraw((pixels,), seed=1)
    assert float(new.min()) >= 20 and float(new.max()) <= 220 and float(new.std()) > 40


def test_stand_ins_become_data() -> None:
    zeros, ones = redraw((torch.zeros(4, 5), torch.ones(4, 5)), seed=1)
    assert float(zeros.std()) > 0.5
    assert float(ones.std()) > 0.1 and float(ones.min()) > 0


def test_the_seed_decides() -> None:
    assert torch.equal(redraw((X,), seed=3)[0], redraw((X,), seed=3)[0])
    assert not torch.equal(redraw((X,), seed=3)[0], redraw((X,), seed=4)[0])


def test_integers_within_the_given_range_or_over_the_vocabulary() -> None:
    given = torch.tensor([[3, 7, 5], [4, 4, 3]])
    (new,) = redraw((given,), seed=1, batch=200)
    assert new.shape == (200, 3) and set(new.flatten().tolist()) == {3, 4, 5, 6, 7}
    (each,) = redraw((Call(inputs=(given,), vocabularies={"0": 40}),), seed=1, batch=500)
    assert set(each.inputs[0].flatten().tolist()) == set(range(40))


def test_masks_are_mixed_and_no_row_is_empty() -> None:
    given = {
        "x": X,
        "attention_mask": torch.ones(2, 6, dtype=torch.int64),
        "padding_mask": torch.zeros(2, 6, dtype=torch.bool),
        "seen": torch.ones(2, 6, dtype=torch.bool),
    }
    new = redraw(given, seed=1, batch=50)
    mask, padding, seen = new["attention_mask"], new["padding_mask"], new["seen"]
    assert mask.dtype == torch.int64 and bool(mask[:, 0].all()) and int((mask == 0).sum()) > 0
    assert bool((mask.diff(dim=1) <= 0).all()), "what is masked lies at the end"
    assert bool((~padding[:, 0]).all()) and bool(padding.any())
    assert bool(seen.any(1).all()) and bool((~seen).any(1).all())


def test_a_square_mask_blots_out_no_row_in_either_meaning() -> None:
    (mask,) = redraw(
        (Call(inputs=(torch.ones(5, 5, dtype=torch.bool),), names=("attn_mask",), batch=None),), seed=2
    )[0].inputs
    assert bool(mask.any(1).all()) and bool((~mask).any(1).all())


def test_a_mask_of_infinities_stays() -> None:
    causal = torch.full((4, 4), float("-inf")).triu(1)
    assert torch.equal(redraw((X, causal), seed=1)[1], causal)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return self.lstm(packed)[1][0]


def test_lengths_are_valid() -> None:
    model = Packed()
    calls = add_argument_names(model, (torch.randn(2, 9, 8), torch.tensor([9, 1])))
    for seed in range(20):
        (new,) = redraw(calls, seed, batch=6)
        lengths = new.inputs[1]
        assert (
            lengths.tolist() == sorted(lengths.tolist(), reverse=True)
            and int(lengths[0]) == 9
            and int(lengths.min()) >= 1
        )
        model(*new.inputs)


@dataclass
class Pair:
    left: Tensor
    scale: float


def test_nested_inputs_keep_their_form() -> None:
    given = ([X, X[0]], {"pair": Pair(X, 2.0)}, None, "text", 3)
    images, mapping, *rest = redraw(given, seed=1, batch=4)
    assert isinstance(images, list) and [tuple(x.shape) for x in images] == [(4, 3, 8), (3, 8)]
    assert (
        isinstance(mapping["pair"], Pair)
        and mapping["pair"].left.shape == (4, 3, 8)
        and mapping["pair"].scale == 2.0
    )
    assert rest == [None, "text", 3]


def test_the_stated_dimension_counts_examples() -> None:
    (time_first,) = redraw((Call(inputs=(X,), batch=1),), seed=1, batch=7)
    assert time_first.inputs[0].shape == (2, 7, 8)
    (graph,) = redraw(
        (Call(inputs={"x": X, "edges": torch.zeros(2, 5, dtype=torch.int64)}, batch=None),), seed=1, batch=7
    )
    assert graph.inputs["x"].shape == X.shape and graph.inputs["edges"].shape == (2, 5)
    (mixed,) = redraw((Call(inputs={"x": X, "y": X}, batch={"x": 2}),), seed=1, batch=7)
    assert mixed.inputs["x"].shape == (2, 3, 7) and mixed.inputs["y"].shape == X.shape
