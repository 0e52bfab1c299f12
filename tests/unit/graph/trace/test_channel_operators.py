"""Operators between two layers: channels go through those that act element by element or along other
dimensions, and stay where an operator orders, counts or moves them."""

from copy import deepcopy

import operators
import pytest
import torch
from halved import apart, check, cut_in_half, emptied, others, outputs

TOGETHER = "its channels can only be removed all together"
FIXED = "it is combined with something of fixed size"
TAKEN = "its elements are taken by number"
PLACE = "it says where another tensor is read"

HELD: dict[str, dict[str, str]] = {
    "median of channels": {"a": "'median' runs along it"},
    "kthvalue of channels": {"a": "'kthvalue' runs along it"},
    "mode of channels": {"a": "'mode' runs along it"},
    "cummax of channels": {"a": "'cummax' runs along it"},
    "median of all": {"a": "'median' runs along it"},
    "median of channels at each place": {"a": "'median' runs along it"},
    "take": {"a": TAKEN},
    "gather of channels": {"a": TAKEN},
    "index_add along channels": {"a": "elements are written into it by number"},
    "scatter along channels": {"a": "elements are written into it by number"},
    "slice_scatter of channels": {"a": "a part of it is replaced at a fixed place"},
    "diagonal_scatter": {"a": "its elements are moved one by one ('diagonal_scatter')"},
    "masked_scatter of elements": {"a": "its elements are moved one by one ('masked_scatter')"},
    "masked_select": {"a": "its elements are moved one by one ('masked_select')"},
    "put": {"a": "its elements are moved one by one ('put')"},
    "renorm of channels": {"a": "'renorm' takes a norm over it"},
    "histc": {"a": "its elements are counted by 'histc'"},
    "unique": {"a": "equal elements of it are found by 'unique'"},
    "cross_entropy": {"a": "a loss takes its classes by number ('nll_loss')"},
    "cross_entropy, smoothed": {"a": "a loss takes its classes by number ('nll_loss')"},
    "cross_entropy of planes": {"a": "a loss takes its classes by number ('nll_loss')"},
    "multi_margin_loss": {"a": "a loss takes its classes by number ('multi_margin_loss')"},
    "ctc_loss": {"a": "a loss takes its classes by number ('ctc_loss')"},
    "triu of channels": {"a": "one side of its diagonal is taken by 'triu'"},
    "embedding bag of tokens": {"a": "rows of a table are summed by it"},
    "embedding with a largest norm": {"a": "its rows are scaled by their norm"},
    "local response norm": {"a": FIXED},
    "number along tokens": {"place": TOGETHER},
    "index by signs": {"t": "a fixed index of it is taken"},
    "index_select by signs": {"t": "a fixed index of it is taken"},
    "take by signs": {"t": TAKEN},
    "gather by signs": {"t": TOGETHER},
    "fake_quantize by a tensor": {"s": TOGETHER},
    "fake_quantize, learnable": {"s": TOGETHER},
    "addmv": {"u": FIXED, "v": TOGETHER},
    "addr": {"u": FIXED, "v": TOGETHER},
    "outer": {"u": FIXED, "v": TOGETHER},
    "einsum of three": {"v": TOGETHER},
    "spatial transformer": {"where": "it says where a grid is sampled"},
    "sampled at computed places": {"where": PLACE},
    "deformable convolution": {"offset": PLACE},
    "deformable convolution with a mask": {"offset": PLACE, "mask": PLACE},
    "deformable convolution in groups": {"offset": PLACE, "mask": PLACE},
}
"""network -> its layers that keep their width, beside the last one, and why"""
AVERAGED = frozenset(
    [
        "mse_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "soft_margin_loss",
        "l1_loss",
    ]
)
"""a mean over channels, or a loss that is not zero between zeros"""
CHANGED = AVERAGED | frozenset(
    [
        "aminmax of channels",
        "count_nonzero of channels",
        "cdist",
        "cdist, by the first norm",
        "pdist",
        "cosine_similarity",
        "pairwise_distance",
        "normalize",
        "vector_norm",
        "dist",
        "kl_div",
        "fake_quantize of a weight",
    ]
)
"""something is taken over channels that left"""
SINGLE = frozenset(["fake_quantize of channels", "fake_quantize of a weight"])


@pytest.mark.parametrize("name", [*operators.TOKENS, *operators.PLANES])
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_channels_go_through_an_operator_or_stay_with_a_reason(name: str) -> None:
    check(name, HELD.get(name, {}), changes=name in CHANGED, averages=name in AVERAGED, single=name in SINGLE)


def test_a_reference_with_other_units_differs() -> None:
    """The comparison sees a cut that kept the wrong channels."""
    build, draw = operators.NETWORKS["gather of tokens"]
    torch.manual_seed(0)
    model, inputs = build().eval(), draw()
    _, result = cut_in_half(model, inputs, ["fc"])
    wrong = deepcopy(result.model)
    with torch.no_grad():
        wrong.b.weight.copy_(wrong.b.weight.flip(1))  # type: ignore[operator, union-attr]
        fresh = others(inputs, 4)
        assert apart(outputs(result.model, fresh), outputs(emptied(model, result), fresh)) < 1e-5
        assert apart(outputs(wrong, fresh), outputs(emptied(model, result), fresh)) > 1e-2
