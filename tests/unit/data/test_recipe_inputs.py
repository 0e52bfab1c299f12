"""Example inputs that tell something: the whole vocabulary, valid lengths, mixed masks, values, ranges,
plain arguments, lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_padded_sequence

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.recipe import dump, load

RULES = [{"layers": "tail.fc", "group": "neuron", "sparsity": "50%"}]


def recipe(inputs: Any, rules: Any = RULES) -> dict[str, Any]:
    return {"version": 1, "title": "t", "inputs": inputs, "rules": rules}


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


class Tail(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(width, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).relu())


class Words(nn.Module):
    """Two embeddings, of which one is indexed by a slice; a table that is indexed by hand, and one-hot
    classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(40, 8), nn.Embedding(7, 8)
        self.table = nn.Parameter(torch.zeros(9, 8))
        self.one = nn.Linear(5, 8)
        self.tail = Tail(8)

    def forward(self, ids: Tensor, pairs: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        x = (
            self.words(ids)
            + self.kinds(pairs[:, 0].long())
            + self.table[rows]
            + self.one(one_hot(classes, 5).float())
        )
        return self.tail(x)


WORDS = {name: {"shape": [2, 30], "dtype": "int64"} for name in ("ids", "rows", "classes")} | {
    "pairs": {"shape": [2, 2, 30], "dtype": "int32"}
}


def test_integers_are_drawn_over_the_whole_vocabulary() -> None:
    given = find_inputs(load(recipe(WORDS)).recipe, seeded(Words()))
    assert isinstance(given, Mapping)
    for name, rows in (("ids", 40), ("rows", 9), ("classes", 5), ("pairs", 7)):
        drawn = given[name]
        assert int(drawn.min()) >= 0 and int(drawn.max()) < rows
        assert len(drawn.unique()) > rows / 2, f"{name}: most of {rows} rows are met"


def test_the_proof_draws_over_the_whole_vocabulary_too() -> None:
    model = seeded(Words())
    plan = sparsify.make_plan(recipe(WORDS), model)
    drawn = {a.name: a.tensor for a in plan.map.inputs[0].arguments if a.tensor}
    assert {name: (tensor.kind, tensor.high) for name, tensor in drawn.items()} == {
        "ids": ("integers", 39),
        "rows": ("integers", 8),
        "classes": ("integers", 4),
        "pairs": ("integers", 6),
    }
    assert sparsify.cut(plan, model).verdicts[0].outcome == "equal"


def test_the_vocabulary_of_given_inputs_is_found_and_they_are_left_as_they_are() -> None:
    model = seeded(Words())
    given = (torch.tensor([[3, 3]]), torch.tensor([[[1, 1]]]), torch.tensor([[0, 0]]), torch.tensor([[2, 2]]))
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": RULES}, model, given)
    assert [a.tensor.high for a in plan.map.inputs[0].arguments if a.tensor] == [39, 6, 8, 4]
    assert [x.flatten().tolist() for x in given] == [[3, 3], [1, 1], [0, 0], [2, 2]]


class Read(nn.Module):
    """An encoder with attention over what a mask leaves, behind a recurrent layer over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
        self.rnn = nn.GRU(16, 8, batch_first=True)
        self.tail = Tail(8)

    def forward(self, ids: Tensor, attention_mask: Tensor, lengths: Tensor) -> Tensor:
        x = self.encoder(self.embed(ids), src_key_padding_mask=attention_mask == 0)
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return self.tail(self.rnn(packed)[1][0])


@pytest.mark.parametrize("named", [True, False])
def test_lengths_are_valid_and_masks_mixed(named: bool) -> None:
    entries = {
        "ids": {"shape": [2, 11], "dtype": "int64"},
        "attention_mask": {"shape": [2, 11], "dtype": "int64"},
        "lengths": {"shape": [2], "dtype": "int64"},
    }
    written = entries if named else list(entries.values())
    model = seeded(Read())
    given = find_inputs(load(recipe(written)).recipe, model)
    ids, mask, lengths = given.values() if isinstance(given, Mapping) else given
    assert int(ids.max()) > 1
    assert bool(mask[:, 0].all()) and int((mask == 0).sum()) > 0
    assert int(lengths[0]) == 11 and 1 <= int(lengths[1]) <= 11
    plan = sparsify.make_plan(recipe(written), model)
    assert {a.tensor.kind for a in plan.map.inputs[0].arguments if a.tensor} == {
        "integers",
        "mask",
        "lengths",
    }
    assert sparsify.cut(plan, model).verdicts[0].outcome == "equal"


class Scaled(nn.Module):
    """Takes a list of tensors, a switch, a scale and text, and returns a dataclass with a list in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(5, 8)
        self.tail = Tail(8)

    def forward(
        self, images: list[Tensor], both: bool, scale: float, mode: str, extra: Tensor | None
    ) -> "Answer":
        x = self.left(images[0]) * scale
        if both:
            x = x + self.right(images[1])
        if mode == "sum" and extra is None:
            return Answer(self.tail(x), [x.sum(1)])
        raise ValueError(mode)


@dataclass
class Answer:
    logits: Tensor
    more: list[Tensor]


IMAGES = [[{"shape": [2, 6]}, {"shape": [2, 5]}], {"value": True}, {"value": 0.5}, {"value": "sum"}, None]


def test_lists_plain_values_and_dataclasses_in_a_recipe() -> None:
    model = seeded(Scaled())
    plan = sparsify.make_plan(recipe(IMAGES), model)
    result = sparsify.cut(plan, model)
    assert result.model.get_parameter("tail.fc.weight").shape[0] == 6
    assert result.verdicts[0].outcome == "equal" and (result.verdicts[0].control or 0) > 0, (
        "the tensor inside the dataclass was compared"
    )


def test_lists_and_plain_values_in_python() -> None:
    model = seeded(Scaled())
    given = ([torch.randn(3, 6), torch.randn(3, 5)], True, 0.5, "sum", None)
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": RULES}, model, given)
    assert plan.map.macs == 8 * 6 + 8 * 5 + 12 * 8 + 3 * 12, "of one of three examples"
    assert sparsify.cut(plan, model).verdicts[0].outcome == "equal"
    assert sparsify.cut(plan, model, inputs=given).verdicts[0].outcome == "equal"


def test_inputs_with_nothing_that_could_be_an_argument_are_refused() -> None:
    with pytest.raises(
        ModelError,
        match=(
            r"inputs holds a set \('0.1'\); an argument can be a tensor, a number, text, true, false, "
            r"None, or a list, tuple, mapping or dataclass of these"
        ),
    ):
        sparsify.make_plan(
            {"version": 1, "title": "t", "rules": RULES}, seeded(Scaled()), ([torch.zeros(1), {1}],)
        )


@dataclass
class Question:
    x: Tensor
    scale: float


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tail = Tail(8)

    def forward(self, question: Question) -> dict[str, Answer]:
        y = self.tail(question.x * question.scale)
        return {"answer": Answer(y, [])}


def test_dataclasses_go_in_and_come_out() -> None:
    model, given = seeded(Asked()), (Question(torch.randn(3, 8), 2.0),)
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": RULES}, model, given)
    result = sparsify.cut(plan, model, inputs=given)
    assert result.verdicts[0].outcome == "equal" and (result.verdicts[0].control or 0) > 0
    with pytest.raises(
        ModelError, match="a call takes a Question, which cannot be drawn at random; pass inputs"
    ):
        sparsify.cut(plan, model)


def test_values_and_ranges() -> None:
    written = [
        {"values": [[0, 3, 1], [2, 2, 0]], "dtype": "int64"},
        {"shape": [2, 400], "range": [5, 6]},
        {"shape": [2, 400], "dtype": "int64", "range": [-1, 2]},
        {"values": 0.25},
        {"values": [[True], [False]], "dtype": "bool"},
    ]
    ids, uniform, whole, number, flags = find_inputs(load(recipe(written)).recipe, nn.Linear(1, 1))
    assert ids.tolist() == [[0, 3, 1], [2, 2, 0]] and ids.dtype == torch.int64
    assert float(uniform.min()) >= 5 and float(uniform.max()) < 6 and float(uniform.std()) > 0.2
    assert set(whole.flatten().tolist()) == {-1, 0, 1}
    assert number.shape == () and float(number) == 0.25 and flags.tolist() == [[True], [False]]


def test_such_a_recipe_reads_back_as_it_is_written() -> None:
    written = [
        *IMAGES,
        {"values": [[0, 3]], "dtype": "int32", "batch": "none"},
        {"shape": [4, 2], "range": [0, 3], "batch": 1},
    ]
    one = load(recipe(written)).recipe
    calls = load(
        {
            "version": 1,
            "title": "t",
            "rules": RULES,
            "calls": [{"method": "encode", "inputs": {"x": written[0], "y": None}}],
        }
    ).recipe
    for each in (one, calls):
        assert load(yaml.safe_load(dump(each))).recipe == each


def test_the_examples_of_the_documentation_are_recipes() -> None:
    text = (Path(__file__).parents[3] / "docs" / "how-to" / "inputs.md").read_text()
    blocks = [yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml")[1:]]
    assert [next(iter(block)) for block in blocks] == ["inputs", "calls"]
    for block in blocks:
        found = load({"version": 1, "title": "t", "rules": RULES} | block).recipe
        assert find_inputs(found, nn.Linear(1, 1))
