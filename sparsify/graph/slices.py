"""Which tensor dimensions a module offers on its output and on its input side, and what ties channels together."""

from dataclasses import dataclass

from torch import nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
BatchNorm = nn.modules.batchnorm._BatchNorm
InstanceNorm = nn.modules.instancenorm._InstanceNorm


@dataclass(frozen=True)
class Side:
    """(attribute name of the tensor, dimension) pairs that channels index, how many channels there are, into how many
    equal blocks they fall from which the same positions must leave (groups of a convolution or of a GroupNorm), and
    whether statistics are taken over them."""

    tensors: tuple[tuple[str, int], ...]
    role: str
    channels: int
    tied: int = 1
    statistics: bool = False

    def index(self, channel: int) -> int:
        """Where a channel lies in the tensors: a grouped convolution's blocks share the columns of its weight."""
        return channel % (self.channels // self.tied) if self.role == "in" else channel


class Unsupported(Exception):
    """A module whose slices are not known; the message becomes the reason of a protection."""


def side(module: nn.Module, out: bool) -> Side:
    """The slices of one module on its output side (`out`) or input side. Raises Unsupported."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _conv(module, out)
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return _conv_transpose(module, out)
        case nn.Linear():
            if out:
                return Side(_present(module, ("weight", 0), ("bias", 0)), "out", module.out_features)
            return Side((("weight", 1),), "in", module.in_features)
        case BatchNorm() | InstanceNorm():
            names = _present(module, ("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
            return Side(names, "out", module.num_features)
        case nn.GroupNorm():
            names = _present(module, ("weight", 0), ("bias", 0))
            return Side(names, "out", module.num_channels, tied=module.num_groups, statistics=True)
        case nn.LayerNorm():
            if len(module.normalized_shape) != 1 or module.weight is None:
                raise Unsupported(f"LayerNorm over {tuple(module.normalized_shape)} without a weight of one dimension")
            return Side(_present(module, ("weight", 0), ("bias", 0)), "out", module.normalized_shape[0], statistics=True)
        case nn.PReLU():
            names = (("weight", 0),) if module.num_parameters > 1 else ()
            return Side(names, "out", module.num_parameters)
        case nn.Embedding():
            return Side((("weight", 1),), "out", module.embedding_dim)
        case _:
            raise Unsupported(f"{type(module).__name__}, which this version cannot cut")


def _present(module: nn.Module, *names: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((n, d) for n, d in names if getattr(module, n) is not None)


def _conv(module: Conv, out: bool) -> Side:
    own = _present(module, ("weight", 0), ("bias", 0))
    if is_depthwise(module):
        return Side(own, "out", module.out_channels)
    if out:
        return Side(own, "out", module.out_channels, tied=module.groups)
    return Side((("weight", 1),), "in", module.in_channels, tied=module.groups)


def _conv_transpose(module: ConvTranspose, out: bool) -> Side:
    if is_depthwise(module):
        return Side(_present(module, ("weight", 0), ("bias", 0)), "out", module.out_channels)
    if module.groups > 1:
        raise Unsupported("grouped transposed convolution, which this version cannot cut")
    if out:
        return Side(_present(module, ("weight", 1), ("bias", 0)), "out", module.out_channels)
    return Side((("weight", 0),), "in", module.in_channels)


def is_depthwise(module: Conv | ConvTranspose) -> bool:
    """groups == in == out > 1: each channel has a filter of its own."""
    return module.groups == module.in_channels == module.out_channels > 1


def attributes(module: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """Width attributes as the module's tensors now imply them."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            rows, columns = module.weight.shape[0], module.weight.shape[1]
            if is_depthwise(module):
                return {"out_channels": rows, "in_channels": rows, "groups": rows}
            return {"out_channels": rows, "in_channels": columns * module.groups}
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            rows, columns = module.weight.shape[0], module.weight.shape[1]
            if is_depthwise(module):
                return {"out_channels": rows, "in_channels": rows, "groups": rows}
            return {"in_channels": rows, "out_channels": columns * module.groups}
        case nn.Linear():
            return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
        case BatchNorm() | InstanceNorm():
            first = module.weight if module.weight is not None else module.running_mean
            return {} if first is None else {"num_features": first.shape[0]}
        case nn.GroupNorm():
            return {} if module.weight is None else {"num_channels": module.weight.shape[0]}
        case nn.LayerNorm():
            return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}
        case nn.PReLU():
            return {"num_parameters": module.weight.shape[0]}
        case nn.Embedding():
            return {"embedding_dim": module.weight.shape[1]}
        case _:
            return {}
