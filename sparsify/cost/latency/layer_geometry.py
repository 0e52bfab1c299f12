"""Which layers a forward call runs, and on what shapes: all that their cost depends on besides their
widths."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import assert_never, cast

import torch
from torch import Tensor, nn

from sparsify.cost.latency_model import Kind, Work
from sparsify.cost.measure import copy_model, count_macs
from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_scripted
from sparsify.graph.layer_types import layer_type, layer_widths

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class Geometry:
    """A layer without its widths, on one example. A linear layer has `rows`, and `size` is ()."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    size: tuple[int, ...] = ()
    rows: int = 1
    depthwise: bool = False
    transposed: bool = False
    group_inputs: int = 0
    """channels that each group reads, where whole groups leave, so that their number follows from the width;
    else 0"""

    def count_groups(self, inputs: int) -> int:
        """Into how many groups so many channels fall."""
        if self.depthwise:
            return inputs
        return inputs // self.group_inputs if self.group_inputs else self.groups

    @property
    def key(self) -> str:
        """'conv 3x3 stride 2 pad 1 at 14x14', 'linear x197'; default values are left out."""
        if not self.size:
            return "linear" if self.rows == 1 else f"linear x{self.rows}"
        name = "transposed conv" if self.transposed else "conv"
        if self.depthwise:
            name = "depthwise"
        usual = {"stride": 1, "pad": 0, "dilation": 1}
        given = {"stride": self.stride, "pad": self.padding, "dilation": self.dilation}
        more = [
            f"{word} {_format_sizes(value)}" for word, value in given.items() if set(value) != {usual[word]}
        ]
        if self.group_inputs:
            more.append(f"groups of {self.group_inputs}")
        elif self.groups > 1:
            more.append(f"groups {self.groups}")
        return " ".join([name, "x".join(map(str, self.kernel)), *more, "at", "x".join(map(str, self.size))])


def _format_sizes(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def read_layers(model: nn.Module, inputs: Inputs, batch: int) -> tuple[tuple[Work, ...], dict[str, Geometry]]:
    """The layers that one forward call runs, in order, at this batch size; and the geometry behind each
    key."""
    model = copy_model(model).eval()
    found: list[tuple[Work, Geometry | None]] = []
    handles = [
        module.register_forward_hook(_make_hook(found, name, batch), with_kwargs=True)
        for name, module in model.named_modules()
        if not is_scripted(module)
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), without_fused_attention():
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    called = {work.tensor.rpartition(".")[0] for work, _ in found}
    rest = [
        work
        for work in _list_other_works(model, inputs, batch)
        if work.tensor.rpartition(".")[0] not in called
    ]
    works = [work for work, _ in found]
    geometries = {work.key: geometry for work, geometry in found if geometry is not None}
    return (*works, *rest), geometries


def _make_hook(found: list[tuple[Work, Geometry | None]], name: str, batch: int) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], made: object) -> None:
        x = next((value for value in (*args, *kwargs.values(), made) if isinstance(value, Tensor)), None)
        if x is not None and x.dim():
            works = _list_works(name, module, x, made, batch)
            found.extend(_drop_last(works, found) if _calls_its_projection(module) else works)

    return note


def _list_works(
    name: str, module: nn.Module, x: Tensor, made: object, batch: int
) -> Iterator[tuple[Work, Geometry]]:
    weight = f"{name}.weight" if name else "weight"
    row = layer_type(module)
    match row.timed:
        case "convolution":
            yield _convolution_work(weight, cast(Convolution, module), x, made, batch)
        case "attention":
            attention = cast(nn.MultiheadAttention, module)
            size = attention.embed_dim
            rows = x.numel() // x.shape[-1] // _count_examples(attention, x)
            stem = f"{name}." if name else ""
            if attention.in_proj_weight is not None:
                yield _linear_work(f"{stem}in_proj_weight", size, 3 * size, rows, batch)
            yield _linear_work(f"{stem}out_proj.weight", size, size, rows, batch)
        case "linear" if row.family == "transposed linear":
            inputs, outputs = module.get_parameter("weight").shape
            work, geometry = _linear_work(weight, inputs, outputs, _count_rows(x), batch)
            yield replace(work, transposed=True), geometry
        case "linear":
            yield _linear_work(weight, *layer_widths(module), _count_rows(x), batch)
        case None:
            return
        case _:
            assert_never(row.timed)


def _calls_its_projection(module: nn.Module) -> bool:
    """Whether an attention calls `out_proj`; torch's own forward reads its weights without calling it."""
    attention = isinstance(module, nn.MultiheadAttention)
    return attention and type(module).forward is not nn.MultiheadAttention.forward


def _drop_last(
    works: Iterator[tuple[Work, Geometry]], found: Sequence[tuple[Work, Geometry | None]]
) -> Iterator[tuple[Work, Geometry]]:
    """Without the work that was recorded just before, if it was the projection inside."""
    last = found[-1][0].tensor if found else None
    return (entry for entry in works if entry[0].tensor != last)


def _count_rows(x: Tensor) -> int:
    return max(1, x.numel() // max(1, x.shape[-1]) // x.shape[0])


def _count_examples(module: nn.MultiheadAttention, x: Tensor) -> int:
    if module.batch_first:
        return x.shape[0]
    return x.shape[1] if x.dim() == 3 else 1


def _linear_work(tensor: str, inputs: int, outputs: int, rows: int, batch: int) -> tuple[Work, Geometry]:
    geometry = Geometry(rows=rows)
    return Work(tensor, "linear", geometry.key, inputs, outputs, rows * batch), geometry


def _convolution_work(
    tensor: str, module: Convolution, x: Tensor, made: object, batch: int
) -> tuple[Work, Geometry]:
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    geometry = Geometry(
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=_read_padding(module),
        dilation=tuple(module.dilation),
        groups=1 if depthwise else module.groups,
        size=tuple(x.shape[2:]),
        depthwise=depthwise,
        transposed=module.transposed,
    )
    out = prod(made.shape[2:]) if isinstance(made, Tensor) else prod(geometry.size)
    kind: Kind = "depthwise" if depthwise else "convolution"
    return Work(
        tensor,
        kind,
        geometry.key,
        module.in_channels,
        module.out_channels,
        out * batch,
        geometry.groups,
        transposed=module.transposed,
    ), geometry


def _read_padding(module: Convolution) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        same = module.padding == "same"
        if not same:
            return (0,) * len(module.kernel_size)
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return tuple(module.padding)


def _list_other_works(model: nn.Module, inputs: Inputs, batch: int) -> Iterator[Work]:
    """Modules that multiply but are in no table, such as recurrent layers: they count by their MACs."""
    for name, macs in count_macs(model, inputs)[1].items():
        own: Mapping[str, Tensor] = dict(model.get_submodule(name).named_parameters(recurse=False))
        weight = next((part for part, value in own.items() if value.dim() > 1), None)
        yield Work(
            f"{name}.{weight}" if weight else f"{name}.",
            "other",
            "",
            1,
            1,
            0,
            macs=macs * batch,
            numel=own[weight].numel() if weight else 0,
        )
