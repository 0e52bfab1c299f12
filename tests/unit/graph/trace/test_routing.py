"""Numbers of elements: a dimension whose places are numbered by `max`, `argmax`, `topk`, `sort` keeps its
size once such numbers are read, and every other dimension goes on."""

import operators
import pytest
import torch
from halved import OUTPUT, check, cut_in_half, others, planned, recipe, rule
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import RecipeError

FIXED = "it is combined with something of fixed size"
TAKEN = "its elements are taken by number"
TOGETHER = "its channels can only be removed all together"


def largest(by: str) -> str:
    return f"the number of its largest element is taken by '{by}'"


HELD: dict[str, dict[str, str]] = {
    "experts by max": {"router": largest("max")},
    "experts by topk": {"router": "'topk' runs along it"},
    "experts by argsort": {"router": "'sort' runs along it"},
    "experts by a hard softmax": {"router": largest("max")},
    "experts by a draw": {"router": "the number of a drawn element is taken by 'multinomial'"},
    "experts that get their tokens": {"router": "'topk' runs along it"},
    "experts that get their tokens, added into a view": {"router": "'topk' runs along it"},
    "grouped products": {"router": largest("argmax")},
    "pruned tokens": {"score": TOGETHER},
    "top channels": {"a": TAKEN, "score": "'topk' runs along it"},
    "top channels by a mask": {"a": FIXED, "score": "'topk' runs along it"},
    "hash of bits": {"hash": FIXED},
    "hash of turned vectors": {"hash": largest("argmax")},
    "beam": {"words": "'sort' runs along it"},
    "greedy decoding": {"words": largest("argmax")},
    "number of the largest, returned": {"a": largest("max")},
    "number compared with a constant": {"gate": largest("max")},
    "number read in Python": {"gate": largest("max")},
    "hard attention": {"a": FIXED, "score": largest("argmax")},
    "where positive": {"gate": "the numbers of its nonzero elements are taken by 'nonzero'"},
    "interval of learnt edges": {"a": TOGETHER, "edges": "'cumsum' runs along it"},
    "interval of edges": {
        "a": "a fixed index of it is taken",
        "edges": "the number of an interval between its elements is taken by 'bucketize'",
    },
}
"""network -> its layers that keep their width, beside the last one, and why"""
AVERAGED = frozenset(["codebook by cdist", "codebook by squares"])
"""they return a mean over channels"""
CHANGED = AVERAGED | frozenset(
    [
        "neighbours by products",
        "neighbours by cdist",
        "embedded signs",
        "values of max alone",
        "mask of the largest",
    ]
)
NOTHING_LEFT = {"one channel": largest("argmax")}


@pytest.mark.parametrize("name", [name for name in operators.ROUTING if name not in NOTHING_LEFT])
def test_numbered_dimensions_stay_and_the_others_halve(name: str) -> None:
    check(
        name,
        HELD.get(name, {}),
        changes=name in CHANGED,
        averages=name in AVERAGED,
        single=name == "grouped products",
    )


@pytest.mark.parametrize("name", NOTHING_LEFT)
def test_where_nothing_can_leave_the_plan_says_why(name: str) -> None:
    build, draw = operators.NETWORKS[name]
    with pytest.raises(RecipeError) as caught:
        sparsify.make_plan(recipe(rule(model := build(), "a")), model, draw())
    assert f"'a' keeps its width: {NOTHING_LEFT[name]}" in str(caught.value)


class Picked(nn.Module):
    """One number out of 8 scores: `number` of [N, 8] and [N], which a table is read by."""

    def __init__(self, number: str) -> None:
        super().__init__()
        self.number = number
        self.a, self.table, self.fc = nn.Linear(6, 8), nn.Embedding(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.a(x)
        return self.fc(self.table(NUMBERS[self.number][0](scores)))


NUMBERS = {
    "max": (lambda s: s.max(1)[1], largest("max")),
    "max, kept": (lambda s: s.max(1, keepdim=True)[1].squeeze(1), largest("max")),
    "min": (lambda s: s.min(1)[1], "the number of its smallest element is taken by 'min'"),
    "argmax": (lambda s: s.argmax(1), largest("argmax")),
    "argmin": (lambda s: s.argmin(1), "the number of its smallest element is taken by 'argmin'"),
    "topk": (lambda s: s.topk(1, 1)[1][:, 0], "'topk' runs along it"),
    "sort": (lambda s: s.sort(1)[1][:, 0], "'sort' runs along it"),
    "argsort": (lambda s: s.argsort(1)[:, 0], "'sort' runs along it"),
    "kthvalue": (lambda s: s.kthvalue(2, 1)[1], "'kthvalue' runs along it"),
    "median": (lambda s: s.median(1)[1], "'median' runs along it"),
    "nanmedian": (lambda s: s.nanmedian(1)[1], "'nanmedian' runs along it"),
    "mode": (lambda s: s.mode(1)[1], "'mode' runs along it"),
    "cummax": (lambda s: s.cummax(1)[1][:, -1], "'cummax' runs along it"),
    "cummin": (lambda s: s.cummin(1)[1][:, -1], "'cummin' runs along it"),
    "count of those below": (lambda s: (s < s[:, :1]).sum(1), TOGETHER),
    "through one_hot": (
        lambda s: (F.one_hot(s.max(1)[1], 8) * torch.arange(8, device=s.device)).sum(1),
        largest("max"),
    ),
    "through float": (lambda s: s.max(1)[1].float().long(), largest("max")),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_every_way_to_number_an_element_protects_what_it_runs_over(number: str) -> None:
    torch.manual_seed(0)
    model = Picked(number).eval()
    plan, result = cut_in_half(model, (torch.randn(16, 6),), ["a", "fc"])
    assert plan.map.by_name["a"].protected == NUMBERS[number][1]
    x = (torch.randn(4, 6),)
    numbers = [NUMBERS[number][0](m.a(*x)) for m in (model, result.model)]
    assert torch.equal(*numbers)
    assert result.model.table.weight.shape == (8, 6)


def test_blocks_of_channels_whose_largest_is_numbered_lose_whole_columns() -> None:
    """[4 choices, 2 places]: the choices are numbered and stay, the places can leave."""
    torch.manual_seed(0)

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.table, self.b, self.fc = (
                nn.Linear(6, 24),
                nn.Embedding(4, 10),
                nn.Linear(10, 8),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            numbers = self.a(x).view(len(x), 4, -1).max(1)[1]
            return self.fc(self.b(self.table(numbers)).relu().amax(1))

    model = Blocks().eval()
    plan, result = cut_in_half(model, (torch.randn(16, 6),), ["fc"])
    assert plan.map.by_name["a"].width == 6 and result.model.a.out_features == 12
    kept = result.model.a.weight.view(4, 3, 6)
    whole = model.a.weight.view(4, 6, 6)
    columns = [next(i for i in range(6) if torch.equal(whole[:, i], kept[:, j])) for j in range(3)]
    fresh = torch.randn(4, 6)
    left, right = (m.a(fresh).view(4, 4, -1).max(1)[1] for m in (model, result.model))
    assert torch.equal(left[:, columns], right)


def test_numbers_that_nobody_reads_protect_nothing() -> None:
    torch.manual_seed(0)

    class Maxout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            value, _number = y.max(1, keepdim=True)
            y.argmax(1)
            return self.fc(self.b(y * value.sigmoid()).relu())

    plan, result = cut_in_half(Maxout().eval(), (torch.randn(16, 6),), ["fc"])
    assert plan.map.by_name["a"].protected is None and result.model.a.out_features == 8
    assert [v.outcome for v in result.verdicts] == ["statistics change"]


def test_truth_values_and_integers_that_are_returned_keep_their_shape() -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, z = self.a(x), self.b(self.a(x).relu())
            return self.fc(z.relu()), y > 0, z.long()

    plan = planned(Flags(), (torch.randn(4, 6),))
    assert {group.name: group.protected for group in plan.map.coupled} == dict.fromkeys(
        ("a", "b", "fc"), OUTPUT
    )


def test_a_number_sends_every_example_to_the_expert_that_it_went_to() -> None:
    """What went wrong before: the cut router renumbered its experts, and the verdict agreed."""
    build, draw = operators.NETWORKS["experts by max"]
    torch.manual_seed(0)
    model, inputs = build().eval(), draw()
    plan = sparsify.make_plan(
        recipe(rule(model, "experts.up")), model, inputs
    )  # what is routed stays, to compare
    result = sparsify.cut(plan, model)
    assert result.model.router.out_features == 4 and result.model.experts.up.shape == (4, 16, 6)
    (fresh,) = others(inputs, 40)
    one, two = (m.router(m.a(fresh)).argmax(1) for m in (model, result.model))
    assert torch.equal(one, two) and len(one.unique()) > 1
