"""Group-lasso gradient and proximal step against a closed form written element by element, on every kind
of layer."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.graph import build_map
from sparsify.graph.group_index import Axis, Layout, Part
from sparsify.graph.group_layouts import coupled_layout, inner_layout, layer_layout
from sparsify.training import penalties
from sparsify.training.penalties import group_lasso
from sparsify_schemas.group import Block
from sparsify_schemas.penalty import L1, L2, GroupLasso


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)).relu()).mean((2, 3))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu())


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().flatten(1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.b(x), self.a(x)], 1).relu())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c(y + self.b(y))


def rows(name: str, *indices: int) -> list[tuple[str, int, int]]:
    return [(name, 0, i) for i in indices]


def columns(name: str, *indices: int) -> list[tuple[str, int, int]]:
    return [(name, 1, i) for i in indices]


# What leaves with channel n, written down by hand: (tensor, dimension, index).
Group = Callable[[int], list[tuple[str, int, int]]]
CASES: list[tuple[type[nn.Module], str, int, Group]] = [
    (
        Plain,
        "a",
        4,
        lambda n: (
            rows("a.weight", n)
            + rows("a.bias", n)
            + rows("bn.weight", n)
            + rows("bn.bias", n)
            + columns("b.weight", n)
        ),
    ),
    # channels n and n + 3 feed the two blocks of b, whose weight holds columns 0..2 for both
    (
        Grouped,
        "a",
        3,
        lambda n: rows("a.weight", n, n + 3) + rows("a.bias", n, n + 3) + columns("b.weight", n),
    ),
    # rows n and n + 2 stand at the same place of b's two blocks
    (
        Grouped,
        "b",
        2,
        lambda n: rows("b.weight", n, n + 2) + rows("b.bias", n, n + 2) + columns("c.weight", n, n + 2),
    ),
    (
        Depthwise,
        "a",
        4,
        lambda n: (
            rows("a.weight", n)
            + rows("a.bias", n)
            + rows("b.weight", n)
            + rows("b.bias", n)
            + columns("c.weight", n)
        ),
    ),
    (
        Flattened,
        "a",
        4,
        lambda n: rows("a.weight", n) + rows("a.bias", n) + columns("b.weight", *range(36 * n, 36 * n + 36)),
    ),
    # b comes first in the concat, so a's channels start at column 2
    (Concat, "a", 4, lambda n: rows("a.weight", n) + rows("a.bias", n) + columns("c.weight", n + 2)),
    (Concat, "b", 2, lambda n: rows("b.weight", n) + rows("b.bias", n) + columns("c.weight", n)),
    (
        Residual,
        "a",
        4,
        lambda n: (
            rows("a.weight", n)
            + rows("a.bias", n)
            + rows("b.weight", n)
            + rows("b.bias", n)
            + columns("b.weight", n)
            + columns("c.weight", n)
        ),
    ),
]
IDS = [f"{net.__name__}.{name}" for net, name, _, _ in CASES]


def elements(
    parameters: dict[str, Tensor], group: list[tuple[str, int, int]]
) -> list[tuple[str, tuple[int, ...]]]:
    """Every element of a group, once for each slice that holds it."""
    found = []
    for name, dim, index in group:
        sizes = [range(size) for size in parameters[name].shape]
        sizes[dim] = range(index, index + 1)
        found += [(name, at) for at in itertools.product(*sizes)]
    return found


def prepared(net: type[nn.Module], name: str) -> tuple[dict[str, Tensor], Layout]:
    torch.manual_seed(0)
    model = net().double()
    for p in model.parameters():
        nn.init.normal_(p)
    map = build_map.build_map(model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),), {})
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    return parameters, coupled_layout(map, [name], parameters)


def lasso_terms(
    parameters: dict[str, Tensor], width: int, group: Group
) -> list[tuple[list[tuple[str, tuple[int, ...]]], float, float]]:
    """(elements, sqrt(|g|), ||w_g||) of every group, element by element."""
    terms = []
    for n in range(width):
        members = elements(parameters, group(n))
        norm = math.sqrt(sum(float(parameters[name][at]) ** 2 for name, at in members))
        terms.append((members, math.sqrt(len(members)), norm))
    return terms


@pytest.mark.parametrize(("net", "name", "width", "group"), CASES, ids=IDS)
def test_gradient_is_strength_times_root_size_times_unit_vector(
    net: type[nn.Module], name: str, width: int, group: Group
) -> None:
    parameters, layout = prepared(net, name)
    gradients = {n: torch.zeros_like(p) for n, p in parameters.items()}
    spec = GroupLasso(kind="group_lasso", strength=0.3, solver="subgradient")
    action = penalties.build(spec, [layout], parameters)
    assert action.gradient is not None and action.proximal is None
    action.gradient(parameters, gradients, 0.3)
    wanted = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for members, root, norm in lasso_terms(parameters, width, group):
        for tensor, at in members:
            wanted[tensor][at] += 0.3 * root * parameters[tensor][at] / norm
    for tensor in parameters:
        torch.testing.assert_close(gradients[tensor], wanted[tensor], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("net", "name", "width", "group"), CASES, ids=IDS)
def test_proximal_step_shrinks_every_group_by_its_factor(
    net: type[nn.Module], name: str, width: int, group: Group
) -> None:
    parameters, layout = prepared(net, name)
    terms = lasso_terms(parameters, width, group)
    # so strong that the weakest group dies and the strongest lives
    strengths = sorted(norm / root for _, root, norm in terms)
    amount = (strengths[0] + strengths[1]) / 2
    wanted = {n: p.clone() for n, p in parameters.items()}
    for members, root, norm in terms:
        factor = max(0.0, 1 - amount * root / norm)
        for tensor, at in members:
            wanted[tensor][at] *= factor
    action = penalties.build(GroupLasso(kind="group_lasso", strength=1.0), [layout], parameters)
    assert action.proximal is not None
    action.proximal(parameters, dict.fromkeys(parameters, amount))
    for tensor in parameters:
        torch.testing.assert_close(parameters[tensor], wanted[tensor], rtol=1e-12, atol=1e-12)
    dead = [all(float(parameters[t][at]) == 0.0 for t, at in members) for members, _, _ in terms]
    assert sum(dead) == 1, "exactly the weakest group must be exactly zero"


def test_gradient_is_zero_at_zero() -> None:
    parameters, layout = prepared(Plain, "a")
    for p in parameters.values():
        p.zero_()
    gradients = {n: torch.zeros_like(p) for n, p in parameters.items()}
    action = penalties.build(
        GroupLasso(kind="group_lasso", strength=1.0, solver="subgradient"), [layout], parameters
    )
    assert action.gradient is not None
    action.gradient(parameters, gradients, 1.0)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_layer_scope_is_the_papers_rows_and_columns() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    for dim in (0, 1):
        parameters = {"w": weight.clone()}
        action = penalties.build(
            GroupLasso(kind="group_lasso", strength=1.0, scope="layer"),
            [layer_layout([("w", dim)], parameters)],
            parameters,
        )
        assert action.proximal is not None
        action.proximal(parameters, {"w": 0.1})
        for i in range(weight.shape[dim]):
            own = weight.select(dim, i)
            wanted = own * max(0.0, 1 - 0.1 * math.sqrt(own.numel()) / float(own.norm()))
            torch.testing.assert_close(parameters["w"].select(dim, i), wanted, rtol=1e-12, atol=1e-12)


def test_channels_last_weights_shrink_alike() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 6, 3, 3, dtype=torch.float64)
    results = []
    for tensor in (weight.clone(), weight.clone().contiguous(memory_format=torch.channels_last)):
        parameters = {"w": tensor}
        for dim in (0, 1):
            group_lasso.group_lasso_proximal(
                layer_layout([("w", dim)], parameters),
                torch.full((9 if dim == 0 else 7,), 5.0, dtype=torch.float64),
                parameters,
                {"w": 0.1},
            )
        results.append(parameters["w"].contiguous())
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=0)


def test_l1_and_l2_closed_forms() -> None:
    parameters = {"w": torch.tensor([[-2.0, -0.05, 0.0, 0.05, 2.0]])}
    layout = layer_layout([("w", 0)], parameters)
    l1 = penalties.build(L1(kind="l1", strength=1.0), [layout], parameters)
    l2 = penalties.build(L2(kind="l2", strength=1.0), [layout], parameters)
    assert l1.proximal is not None and l2.proximal is not None
    l1.proximal(parameters, {"w": 0.1})
    torch.testing.assert_close(parameters["w"], torch.tensor([[-1.9, 0.0, 0.0, 0.0, 1.9]]))
    l2.proximal(parameters, {"w": 0.25})
    torch.testing.assert_close(parameters["w"], torch.tensor([[-1.52, 0.0, 0.0, 0.0, 1.52]]))
    for spec, wanted in (
        (L1(kind="l1", strength=1.0, solver="subgradient"), [-0.5, 0.0, 0.5]),
        (L2(kind="l2", strength=1.0, solver="subgradient"), [-1.0, 0.0, 1.5]),
    ):
        own = {"w": torch.tensor([[-2.0, 0.0, 3.0]])}
        gradients = {"w": torch.zeros(1, 3)}
        action = penalties.build(spec, [layer_layout([("w", 0)], own)], own)
        assert action.gradient is not None
        action.gradient(own, gradients, 0.5)
        torch.testing.assert_close(gradients["w"], torch.tensor([wanted]))


def test_proximal_minimises_its_objective() -> None:
    """prox(v) minimises 1/2 ||w - v||^2 + a * sum sqrt(|g|) ||w_g||: no small change of w does better."""
    torch.manual_seed(1)
    v = torch.randn(3, 2, 3, 3, dtype=torch.float64) * torch.tensor(
        [0.05, 0.5, 2.0], dtype=torch.float64
    ).view(3, 1, 1, 1)
    parameters = {"w": v.clone()}
    layout = layer_layout([("w", 0)], parameters)
    group_lasso.group_lasso_proximal(layout, layout.sizes(parameters).sqrt(), parameters, {"w": 0.1})

    def objective(w: Tensor) -> float:
        return float((w - v).square().sum() / 2 + 0.1 * (w.flatten(1).norm(dim=1) * math.sqrt(18)).sum())

    best = objective(parameters["w"])
    for _ in range(200):
        assert objective(parameters["w"] + 1e-3 * torch.randn_like(v)) > best
    assert F.relu(parameters["w"][0].abs().max() - 0) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_and_sums_in_single(dtype: torch.dtype) -> None:
    """A group of 70000 weights: their number and the sum of their squares pass the largest float16."""
    torch.manual_seed(0)
    parameters = {"w": (3 * torch.randn(2, 70000)).to(dtype)}
    layout = layer_layout([("w", 0)], parameters)
    roots = layout.sizes(parameters).sqrt()
    assert roots.tolist()[:2] == pytest.approx([math.sqrt(70000)] * 2)
    exact = parameters["w"].double()
    factor = 1 - 0.1 * math.sqrt(70000) / exact.norm(dim=1, keepdim=True)
    gradients = {"w": torch.zeros(2, 70000, dtype=dtype)}
    group_lasso.group_lasso_gradient(layout, roots, parameters, gradients, 0.5)
    torch.testing.assert_close(
        gradients["w"].double(),
        0.5 * math.sqrt(70000) * exact / exact.norm(dim=1, keepdim=True),
        rtol=2e-2,
        atol=1e-6,
    )
    group_lasso.group_lasso_proximal(layout, roots, parameters, {"w": 0.1})
    torch.testing.assert_close(parameters["w"].double(), exact * factor, rtol=1e-2, atol=1e-6)


def test_tensors_of_several_types_add_up() -> None:
    """A half-precision layer with its normalisation in single, and slots that are no plain range."""
    parameters: dict[str, Tensor] = {
        "a": torch.ones(4, 3, dtype=torch.bfloat16),
        "b": torch.ones(2, 8, dtype=torch.float64),
    }
    slots = torch.arange(4).repeat_interleave(2)
    layout = Layout(
        (Part("a", (Axis((0,), torch.arange(4), 0),)), Part("b", (Axis((1,), slots, None),))),
        (("a", 0, 4),),
        4,
    )
    assert layout.sizes(parameters).tolist() == [7, 7, 7, 7, 0]
    assert group_lasso.group_norms(layout, parameters)[:4].tolist() == pytest.approx([math.sqrt(7)] * 4)


INSIDE = {
    "shape": ("shape", lambda n, c, i, j: (c, i, j)),
    "tap": ("tap", lambda n, c, i, j: (i, j)),
    "block": (Block(2, 5), lambda n, c, i, j: (n // 2, (c * 9 + i * 3 + j) // 5)),
    "row block": (Block(1, 9), lambda n, c, i, j: (n, c)),
    "block and a rest": (
        Block(4, 7),
        lambda n, c, i, j: (n // 4, (c * 9 + i * 3 + j) // 7) if n < 4 and c * 9 + i * 3 + j < 42 else None,
    ),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("channels_last", [False, True])
def test_groups_inside_a_tensor_element_by_element(name: str, channels_last: bool) -> None:
    """Both forms of the lasso on W[6, 5, 3, 3], each weight by itself."""
    group, of = INSIDE[name]
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
    members: dict[object, list[tuple[int, ...]]] = {}
    for place in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        members.setdefault(of(*place), []).append(tuple(place))
    gradient, moved = torch.zeros_like(weight), weight.clone()
    for key, places in members.items():
        norm = math.sqrt(sum(float(weight[p]) ** 2 for p in places))
        for p in places if key is not None else ():
            gradient[p] = 0.3 * math.sqrt(len(places)) * weight[p] / norm
            moved[p] = weight[p] * max(0.0, 1 - 0.4 * math.sqrt(len(places)) / norm)
    layout = inner_layout(group, ["w"], {"w": weight})
    assert layout.count == len([key for key in members if key is not None])
    roots = layout.sizes({"w": weight}).sqrt().double()
    found = {"w": torch.zeros_like(weight)}
    group_lasso.group_lasso_gradient(layout, roots, {"w": weight}, found, 0.3)
    torch.testing.assert_close(found["w"], gradient)
    group_lasso.group_lasso_proximal(layout, roots, {"w": weight}, {"w": 0.4})
    torch.testing.assert_close(weight, moved)


def test_columns_of_a_linear_layer_are_its_shapes() -> None:
    weight = torch.tensor([[3.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    layout = inner_layout("shape", ["w"], {"w": weight})
    assert group_lasso.group_norms(layout, {"w": weight}).tolist()[:-1] == pytest.approx(
        [5.0, 0.0, math.sqrt(2)]
    )
