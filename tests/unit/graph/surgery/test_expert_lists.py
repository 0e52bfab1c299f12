"""Lists of experts that get shorter: names, the log, and what replay refuses."""

from typing import Any

import mixtures
import pytest
import torch
from torch import nn

from sparsify.errors import RunError
from sparsify.graph.expert_numbers import list_kept_widths, rename, rename_in_turn
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.surgery.transfer_state import transfer_named_values
from sparsify_schemas.cuts import Cuts, Narrow, Shorten, Width


def shorten(**changes: Any) -> Shorten:
    return Shorten(**({"module": "mix.experts", "size": 6, "keep": ((1, 2), (4, 6))} | changes))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("stem.weight", "stem.weight"),
        ("mix.experts", "mix.experts"),
        ("mix.experts_too.0", "mix.experts_too.0"),
        ("mix.experts.0.2.bias", None),
        ("mix.experts.1", "mix.experts.0"),
        ("mix.experts.4.0.weight", "mix.experts.1.0.weight"),
        ("mix.experts.5.2.bias", "mix.experts.2.2.bias"),
    ],
)
def test_members_are_counted_anew(before: str, after: str | None) -> None:
    assert rename(before, (shorten(),)) == after


def test_a_second_cut_goes_on_with_the_numbers_of_the_first() -> None:
    second = shorten(size=3, keep=((0, 1), (2, 3)))
    assert rename_in_turn("mix.experts.5.0.weight", (shorten(), second)) == "mix.experts.1.0.weight"
    assert rename_in_turn("mix.experts.4.0.weight", (shorten(), second)) is None


def test_values_of_groups_go_with_the_layers_that_they_are_called_after() -> None:
    widths = (
        Width(group="mix.experts.0.0", width=4, keep=()),
        Width(group="mix.experts.4.0", width=4, keep=((1, 3),)),
    )
    cuts = Cuts(plan="0", widths=widths, operations=(shorten(),))
    values = {f"mix.experts.{at}.0": at + torch.arange(4.0) for at in range(6)}
    found = transfer_named_values(values, cuts, {})
    assert {name: value.tolist() for name, value in found.items()} == {
        "mix.experts.0.0": [1.0, 2.0, 3.0, 4.0],
        "mix.experts.1.0": [5.0, 6.0],
        "mix.experts.2.0": [5.0, 6.0, 7.0, 8.0],
    }


def test_widths_of_several_cuts_are_told_by_the_names_of_the_dense_model() -> None:
    first = Cuts(
        plan="0", widths=(Width(group="mix", width=6, keep=((1, 2), (4, 6))),), operations=(shorten(),)
    )
    second = Cuts(
        plan="0",
        widths=(
            Width(group="mix", width=3, keep=((0, 1), (2, 3))),
            Width(group="mix.experts.2.0", width=4, keep=((0, 3),)),
        ),
        operations=(shorten(size=3, keep=((0, 1), (2, 3))),),
    )
    third = Cuts(plan="0", widths=(Width(group="mix.experts.1.0", width=3, keep=((0, 2),)),))
    assert list_kept_widths((first, second)) == {"mix": 2, "mix.experts.5.0": 3}
    assert list_kept_widths((first, second, third)) == {"mix": 2, "mix.experts.5.0": 2}


def test_values_by_name_go_with_the_experts_that_stay() -> None:
    cuts = Cuts(
        plan="0",
        operations=(shorten(), Narrow(tensor="mix.experts.1.0.weight", dim=0, size=4, keep=((0, 2),))),
    )
    shapes: dict[str, tuple[int, ...]] = {f"mix.experts.{at}.0.weight": (4, 3) for at in range(6)}
    values = {name: torch.full((4, 3), float(at)) for at, name in enumerate(shapes)}
    found = transfer_named_values(values, cuts, shapes)
    assert {name: (float(value[0, 0]), len(value)) for name, value in found.items()} == {
        "mix.experts.0.0.weight": (1.0, 4),
        "mix.experts.1.0.weight": (4.0, 2),
        "mix.experts.2.0.weight": (5.0, 4),
    }


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            shorten(module="mix.gate"),
            "the cut log shortens 'mix.gate', which is no ModuleList in this model; "
            "was it built by the same recipe?",
        ),
        (
            shorten(module="mix.other"),
            "the cut log shortens 'mix.other', which is no ModuleList in this model; "
            "was it built by the same recipe?",
        ),
        (shorten(size=8), "the cut log expects 'mix.experts' to have 8 members, this model has 6"),
        (
            shorten(keep=((4, 6), (1, 2))),
            "the cut log keeps members of 'mix.experts' that are out of order or beyond its 6",
        ),
        (
            shorten(keep=((4, 9),)),
            "the cut log keeps members of 'mix.experts' that are out of order or beyond its 6",
        ),
        (
            shorten(keep=()),
            "the cut log keeps members of 'mix.experts' that are out of order or beyond its 6",
        ),
    ],
)
def test_a_log_of_another_model_is_refused(op: Shorten, message: str) -> None:
    model = mixtures.build(mixtures.TopTwo)
    with pytest.raises(RunError) as caught:
        replay_cuts(model, Cuts(plan="0", operations=(op,)))
    assert str(caught.value) == message
    assert len(model.mix.experts) == 6


def test_a_subclass_of_a_list_stays_what_it_is() -> None:
    class Own(nn.ModuleList):
        pass

    model = mixtures.build(mixtures.TopTwo)
    model.mix.experts = Own(model.mix.experts)
    thin = replay_cuts(model, Cuts(plan="0", operations=(shorten(),)))
    assert type(thin.mix.experts) is Own and [name for name, _ in thin.mix.experts.named_children()] == [
        "0",
        "1",
        "2",
    ]
