"""Networks of `operators.py` cut in half through a recipe and the public `cut`, and compared with a reference
that knows nothing of the cutter: the dense model in float64, every index that the log does not keep set to
zero, on inputs of its own.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy

import operators
import torch
from torch import Tensor, nn

import sparsify
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Fold, Narrow

OUTPUT = "it feeds the network's output"
PRODUCERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding, operators.Stack)
RANDOM = {"kind": "random"}


def planned(model: nn.Module, inputs: tuple[Tensor, ...]) -> Plan:
    """A plan that cuts nothing: what could be cut, and what could not and why."""
    return sparsify.make_plan(
        recipe({"layers": "*", "group": "weight", "sparsity": "50%", "criterion": RANDOM}), model, inputs
    )


def recipe(*rules: dict[str, object]) -> dict[str, object]:
    return {"version": 1, "title": "half", "rules": list(rules)}


def rule(model: nn.Module, name: str) -> dict[str, object]:
    """Half the outputs of a layer, or of a bare parameter, chosen at random."""
    modules = dict(model.named_modules())
    layer = name if name in modules else name.rpartition(".")[0]
    group = "filter" if "Conv" in type(modules[layer]).__name__ else "neuron"
    return {"layers": layer, "group": group, "sparsity": "50%", "criterion": RANDOM}


def cut_in_half(model: nn.Module, inputs: tuple[Tensor, ...], held: Collection[str]) -> tuple[Plan, Result]:
    """Half the outputs of every layer that is not held; of layers whose outputs leave together the last
    one speaks."""
    layers = [
        name for name, module in model.named_modules() if name not in held and isinstance(module, PRODUCERS)
    ]
    rules = [{**rule(model, name), "override": number > 0} for number, name in enumerate(layers)]
    plan = sparsify.make_plan(recipe(*rules), model, inputs)
    return plan, sparsify.cut(plan, model)


def emptied(model: nn.Module, result: Result) -> nn.Module:
    """The dense model with zeros at every index that the log does not keep."""
    copy = deepcopy(model)
    tensors = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
    with torch.no_grad():
        for op in result.cuts.operations:
            if isinstance(op, Narrow):
                kept = {i for first, end in op.keep for i in range(first, end)}
                gone = [i for i in range(op.size) if i not in kept]
                tensors[op.tensor].index_fill_(op.dim, torch.tensor(gone), 0)
    return copy


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(3)
    found = model(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


def others(inputs: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """Inputs that neither plan nor cut have seen."""
    generator = torch.Generator().manual_seed(100 + batch)
    return tuple(torch.randn((batch, *x.shape[1:]), generator=generator) for x in inputs)


def apart(one: list[Tensor], two: list[Tensor]) -> float:
    """The largest difference of an output, relative to its largest value."""
    assert [a.shape for a in one] == [b.shape for b in two]
    gaps = [
        (a.detach().double() - b.detach().double()).abs().max() / b.double().abs().max().clamp(min=1e-30)
        for a, b in zip(one, two, strict=True)
    ]
    return float(torch.stack(gaps).max())


def check(
    name: str, protected: Mapping[str, str], *, changes: bool, averages: bool, single: bool = False
) -> None:
    """Everything that is not protected, with its reason, halves; and what is left computes what the reference
    does.

    changes: the verdict says that statistics change. averages: a mean is taken over what left, so that a
    model with zeros is no reference. single: the network does not run in double precision.
    """
    build, draw = operators.NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = build().eval(), draw()
    last = "out" if hasattr(model, "out") else "fc"
    plan, result = cut_in_half(model, inputs, [*protected, last])
    reasons = {group.name: group.protected for group in plan.map.coupled if group.protected}
    assert reasons == {last: OUTPUT, **protected}
    free = {group.name: group.width for group in plan.map.coupled if not group.protected}
    assert free and {w.group: w.kept for w in result.cuts.widths} == {
        group: width // 2 for group, width in free.items()
    }
    assert [v.outcome for v in result.verdicts] == ["statistics change" if changes else "equal"]
    assert not any(isinstance(op, Fold) for op in result.cuts.operations)
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-9)
    dense, thin = emptied(model, result).to(dtype), deepcopy(result.model).to(dtype).eval()
    for batch in (1, 4):
        fresh = tuple(x.to(dtype) for x in others(inputs, batch))
        with torch.no_grad():
            wanted, found = outputs(dense, fresh), outputs(thin, fresh)
            whole = outputs(deepcopy(model).to(dtype), fresh)
        if averages:
            assert [t.shape for t in found] == [t.shape for t in wanted]
            continue
        assert apart(found, wanted) <= tolerance
        assert apart(whole[:1], wanted[:1]) > 1e-3, (
            "what left does not matter: the comparison could not have seen a wrong cut"
        )
