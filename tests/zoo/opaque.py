"""Networks with parts that the tracer cannot follow, or follows only with rules of their own: small, one
construct each.

Complex numbers, Fourier transforms, covariances, `torch.func`, TorchScript, sparse tensors, inference mode,
autocast, views of a Parameter, NumPy, linear algebra, nested tensors, quantisation, custom operators, control
flow.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from own import Net, cbr, noise, pooled
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# complex numbers


class Rotary(nn.Module):
    """Attention with rotary embeddings as in the first Llama: pairs of features are complex numbers,
    turned by a table."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.heads, self.table = 4, table
        self.a = nn.Linear(6, 32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))
        self.up, self.fc = nn.Linear(32, 24), nn.Linear(24, 3)
        self.register_buffer("turns", self.angles(9), persistent=False)

    def angles(self, length: int) -> Tensor:
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, 8, 2).float() / 8))
        angles = torch.outer(torch.arange(length).float(), frequencies)
        return torch.polar(torch.ones_like(angles), angles)

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        if self.table == "made in forward":
            turns = self.angles(x.shape[1])
        elif self.table == "of float":
            turns = torch.complex(self.turns.real, self.turns.imag)
        else:
            turns = self.turns
        return torch.view_as_real(pairs * turns.view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        q, k, v = (p(x).view(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.fc(self.up(x + self.o(y)).relu().mean(1))


class ComplexLinear(nn.Module):
    """A layer whose weight is complex."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(o, i, dtype=torch.cfloat, generator=torch.Generator().manual_seed(3)) / i**0.5
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight)


class StateSpace(nn.Module):
    """A diagonal linear recurrence with complex poles, unrolled into a kernel over time and applied by FFT
    (S4D)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(width, states))
        self.frequency = nn.Parameter(torch.rand(width, states))
        self.out = nn.Parameter(torch.randn(width, states, 2))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        poles = torch.complex(-self.decay.exp(), self.frequency)
        kernel = (
            (
                torch.view_as_complex(self.out)[..., None]
                * torch.exp(poles[..., None] * torch.arange(length, device=x.device))
            )
            .sum(1)
            .real
        )
        spectrum = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(x, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


def _complex_gate(m: Any, x: Tensor) -> Tensor:
    z = torch.complex(m.a(x), m.b(x))
    return m.fc(m.c(torch.cat([z.abs(), z.angle()], 1)).relu())


def _parts(m: Any, x: Tensor) -> Tensor:
    z = torch.view_as_complex(torch.stack([m.a(x), m.b(x)], -1)).conj()
    return m.fc(m.c(z.real * z.imag).relu())


def _polar(m: Any, x: Tensor) -> Tensor:
    z = torch.polar(F.softplus(m.a(x)), m.b(x))
    return m.fc(m.c((z * z).real).relu())


def _chunked(m: Any, x: Tensor) -> Tensor:
    z = torch.complex(*m.a(x).chunk(2, 1))
    return m.fc(m.b(torch.cat([z.real, z.imag], 1)).relu())


# Fourier transforms


def _fnet(dims: tuple[int, ...]) -> Callable[[Any, Tensor], Tensor]:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        mixed = y
        for dim in dims:
            mixed = torch.fft.fft(mixed, dim=dim)
        y = y + mixed.real
        return m.fc((y + m.down(m.up(y).relu())).mean(1))

    return run


def _fnet_layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 16), "up": nn.Linear(16, 32), "down": nn.Linear(32, 16), "fc": nn.Linear(16, 3)}


class LongConvolution(nn.Module):
    """One filter over time a channel, as long as the sequence, applied by FFT (Hyena, S4)."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(width, length) / length)
        self.skip = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        size = 2 * x.shape[-1]
        y = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(self.filter, n=size), n=size)[
            ..., : x.shape[-1]
        ]
        return y + x * self.skip[:, None]


class GlobalFilter(nn.Module):
    """A complex weight for every frequency of every channel of images with channels last (GFNet)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(size, size // 2 + 1, width, 2) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.complex_weight)
        return torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


class SpectralConvolution(nn.Module):
    """Low frequencies are mixed over channels by complex weights (a Fourier neural operator)."""

    def __init__(self, i: int, o: int, modes: int) -> None:
        super().__init__()
        self.modes, self.width = modes, o
        self.weight = nn.Parameter(
            torch.randn(i, o, modes, dtype=torch.cfloat, generator=torch.Generator().manual_seed(4)) / i
        )

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        out = torch.zeros(
            x.shape[0], self.weight.shape[1], spectrum.shape[-1], dtype=spectrum.dtype, device=x.device
        )
        out[:, :, : self.modes] = torch.einsum("bix,iox->box", spectrum[:, :, : self.modes], self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


class DepthwiseByFourier(nn.Module):
    """A small filter of its own for every channel, applied by FFT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(width, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(self.filter, s=size), s=size)


def _spectral_pool(m: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.fftshift(torch.fft.fft2(m.a(x)), dim=(2, 3))
    half = torch.fft.ifft2(torch.fft.ifftshift(spectrum[:, :, 4:12, 4:12], dim=(2, 3))).real
    return m.fc(pooled(m.b(half).relu()))


def _spectral_mask(m: Any, x: Tensor) -> Tensor:
    window = torch.hann_window(8, dtype=x.dtype, device=x.device)
    spectrum = torch.stft(x.mean(1), 8, 4, window=window, return_complex=True)
    mask = m.b(m.a(spectrum.abs()).relu()).sigmoid()
    return torch.istft(spectrum * mask, 8, 4, window=window)


def _spectrogram(m: Any, x: Tensor) -> Tensor:
    signal = m.one(m.a(x).relu()).squeeze(1)
    spectrum = torch.stft(
        signal, 8, 4, window=torch.hann_window(8, device=x.device, dtype=x.dtype), return_complex=True
    )
    return m.fc(m.b(spectrum.abs()).relu().mean(2))


def _denoise(m: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(m.a(x), dim=1)  # along the channels
    return m.fc(m.b(torch.fft.irfft(spectrum, n=16, dim=1)).relu().mean(2))


# covariances


def _decorrelated(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.b(m.a(x).relu())
    c = torch.cov(y.T)
    return m.fc(y), (c - c.diag().diag()).square().sum()


def _covariance_pooling(m: Any, x: Tensor) -> Tensor:
    rows = m.b(m.a(x)).flatten(2)
    both = torch.stack([torch.cov(r) for r in rows])
    return m.fc(both.flatten(1))


def _correlated(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.fc(m.b(y) + torch.corrcoef(y)[:, :1])


# torch.func


class VmapHeads(nn.Module):
    """One matrix a head, applied by vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 16), nn.Linear(4 * 8, 3)
        self.weight = nn.Parameter(torch.randn(4, 16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        heads = vmap(lambda w: torch.tanh(y @ w))(self.weight)
        return self.fc(heads.permute(1, 0, 2).flatten(1))


class Ensemble(nn.Module):
    """Networks of one architecture whose weights are stacked in each call and run at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 12)
        self.members = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        parameters, buffers = stack_module_state(self.members)
        run = lambda p, b, y: functional_call(self.members[0], (p, b), (y,))  # noqa: E731
        return vmap(run, (0, 0, None))(parameters, buffers, self.a(x).relu()).mean(0)


class StackedEnsemble(nn.Module):
    """The same with the stacked weights as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 12)
        members = [nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(3)]
        parameters, _ = stack_module_state(members)
        self.stacked = nn.ParameterDict(
            {name.replace(".", "_"): value.detach() for name, value in parameters.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        def run(p: dict[str, Tensor], y: Tensor) -> Tensor:
            return F.linear(F.linear(y, p["0_weight"], p["0_bias"]).relu(), p["2_weight"], p["2_bias"])

        return vmap(run, (0, None))(dict(self.stacked), self.a(x).relu()).mean(0)


class Hypernetwork(nn.Module):
    """A layer runs with weights that another one makes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.make, self.layer, self.fc = (
            nn.Linear(6, 12),
            nn.Linear(5, 12),
            nn.Linear(12, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = self.make(z).mean(0)
        return self.fc(
            functional_call(self.layer, {"weight": self.layer.weight * scale}, (self.a(x).relu(),)).relu()
        )


def _by_example(m: Any, x: Tensor) -> Tensor:
    return m.fc(vmap(lambda row: m.b(m.a(row).relu()).relu())(x))


def _by_channel(function: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.fc(m.b(vmap(function, in_dims=1, out_dims=1)(m.a(x))).relu())


def _jacobian(m: Any, x: Tensor) -> Tensor:
    return vmap(jacrev(lambda point: m.fc(torch.tanh(m.b(torch.tanh(m.a(point)))))))(x)


def _curvature(m: Any, x: Tensor) -> Tensor:
    return vmap(hessian(lambda point: m.fc(torch.tanh(m.b(torch.tanh(m.a(point))))).sum()))(x)


def _inner_loop(m: Any, x: Tensor) -> Tensor:
    """A layer takes a step of gradient descent before it is used (MAML)."""
    y = m.a(x).relu()
    own = {"weight": m.b.weight, "bias": m.b.bias}
    slopes = grad(lambda p: functional_call(m.b, p, (y,)).square().mean())(own)
    return m.fc(functional_call(m.b, {name: own[name] - 0.1 * slopes[name] for name in own}, (y,)).relu())


def _physics(m: Any, x: Tensor) -> Tensor:
    run = lambda point: m.fc(torch.tanh(m.b(torch.tanh(m.a(point))))).sum()  # noqa: E731
    return vmap(grad(run))(x)


def _tangent(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return jvp(lambda y: m.fc(torch.tanh(m.b(torch.tanh(m.a(y))))), (x,), (torch.ones_like(x),))


def _forces(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = m.fc(torch.tanh(m.b(torch.tanh(m.a(x))))).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=torch.is_grad_enabled())
    return force


# TorchScript


class Block(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(i, o), nn.Linear(o, o)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()) + self.second(self.first(x).relu()).relu()


def _swish(x: Tensor, scale: float) -> Tensor:
    return x * torch.sigmoid(scale * x)


def _sigmoid_unit(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings():  # TorchScript is deprecated, and in use all the same
    warnings.simplefilter("ignore")
    scripted_swish = torch.jit.script(_swish)
    scripted_if_tracing = torch.jit.script_if_tracing(_sigmoid_unit)


def _traced() -> nn.Module:
    run = torch.jit.trace(lambda x: torch.tanh(x) * x, (torch.randn(4, 16),))
    return _three(lambda m, x: m.fc(m.b(run(m.a(x))).relu()))()


def _scripted(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.c(m.block(m.b(m.a(x).relu()).relu())).relu())


def _around(block: nn.Module) -> Net:
    return Net(
        _scripted,
        a=nn.Linear(6, 20),
        b=nn.Linear(20, 12),
        block=block,
        c=nn.Linear(16, 14),
        fc=nn.Linear(14, 3),
    )


def _forked(m: Any, x: Tensor) -> Tensor:
    return m.fc(torch.jit.wait(torch.jit.fork(m.b, m.a(x).relu())).relu())


def _compiled() -> nn.Module:
    run = torch.compile(lambda x: torch.tanh(x) * x, backend="eager")
    return _three(lambda m, x: m.fc(m.b(run(m.a(x))).relu()))()


def _traced_convolution() -> Net:
    block = nn.Sequential(nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    return Net(
        lambda m, x: m.fc(pooled(m.c(m.b(m.a(x).relu())).relu())),
        a=nn.Conv2d(3, 12, 3, padding=1),
        b=torch.jit.trace(block, torch.randn(2, 12, 16, 16)),
        c=nn.Conv2d(16, 8, 3),
        fc=nn.Linear(8, 3),
    )


# sparse tensors


def _ring(layout: str) -> Tensor:
    dense = torch.zeros(7, 7)
    for i in range(7):
        dense[i, i] = dense[i, (i + 1) % 7] = 0.5
    return dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()


class SparseGraph(nn.Module):
    """A graph convolution whose adjacency is a sparse buffer."""

    def __init__(self, layout: str, persistent: bool, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.product = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3), product
        self.register_buffer("adjacency", _ring(layout), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(self.adjacency, self.a(x)).relu()
        return self.fc(self.product(self.adjacency, self.b(y)).relu())


class SparseWeight(nn.Module):
    """A layer whose weight is stored sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 16), nn.Linear(12, 3)
        weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(5))
        self.weight = nn.Parameter((weight * (weight > 0)).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sparse.mm(self.weight, self.a(x).relu().t()).t().relu())


def _edges(m: Any, x: Tensor) -> Tensor:
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0]], device=x.device)
    weight = m.weigh(x).sigmoid().squeeze(1)
    adjacency = torch.sparse_coo_tensor(index, weight, (7, 7))
    return m.fc(m.b(torch.sparse.mm(adjacency, m.a(x).relu())).relu())


class SparseBatch(nn.Module):
    """One sparse adjacency for each graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.register_buffer("adjacency", torch.eye(9).expand(2, 9, 9).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(torch.bmm(self.adjacency, self.a(x)).relu()).relu().mean(1))


def _sparse_attention(m: Any, x: Tensor) -> Tensor:
    scores = (m.a(x) @ m.c(x).t()).sigmoid().to_sparse()
    return m.fc(m.b(torch.sparse.softmax(scores, 1).to_dense() @ m.a(x)).relu())


def _sparse_features(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.b(m.a(x).relu().to_sparse().to_dense()).relu())


# inference mode and autocast


def _whole_inference(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return m.fc(m.b(m.a(x).relu()).relu())


def _frozen_features(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = m.b(m.a(x).relu())
    return m.fc(m.c(y.clone()).relu())


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.fc = (
            nn.Conv2d(3, 12, 3),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 16, 3),
            nn.Linear(16, 3),
        )

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.b(self.n(self.a(x)).relu()).relu()))


def _autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.fc(m.b(m.a(x).relu()).relu())


def _half_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.b(m.a(x).relu()).relu()
    return m.fc(m.c(y.float()).relu())


def _autocast_off(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.a(x).relu()
        with torch.autocast("cpu", enabled=False):
            y = m.b(y.float())
        return m.fc(y.relu()).float()


class DeepAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                x = layer(x).relu()
            x = x.float()
        return self.fc(x)


# parameters of a parent


class Product(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


class PassedView(nn.Module):
    """A parameter of the parent reaches a submodule as a view of itself."""

    def __init__(self, view: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.a, self.product, self.fc, self.view = nn.Linear(6, 16), Product(), nn.Linear(12, 3), view
        self.weight = nn.Parameter(torch.randn(shape) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.product(self.a(x).relu(), self.view(self.weight)).relu())


class Queries(nn.Module):
    """Learned queries, expanded to the batch, are given to an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.a, self.att, self.b, self.fc = (
            nn.Linear(6, 16),
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        keys = self.a(x)
        return self.fc(
            self.b(self.att(self.queries.expand(x.shape[0], -1, -1), keys, keys)[0]).relu().mean(1)
        )


class LowRank(nn.Module):
    """Adapters in a ParameterList and a ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.pair = nn.ParameterList([torch.randn(16, 4) / 4, torch.randn(4, 12) / 4])
        self.more = nn.ParameterDict({"scale": torch.rand(12) + 0.5, "shift": torch.rand(12)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.fc(
            ((self.b(y) + y @ self.pair[0] @ self.pair[1]) * self.more["scale"] + self.more["shift"]).relu()
        )


class Sum(nn.Module):
    """A frozen weight and what was learnt on top of it, side by side with a second such layer."""

    def __init__(self, put: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.fc, self.put = nn.Linear(6, 16), nn.Linear(24, 3), put
        self.base, self.learnt = nn.Parameter(torch.randn(24, 16) / 4), nn.Parameter(torch.randn(24, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.linear(self.a(x).relu(), self.put(self.base, self.learnt)).relu()[:, :24])


# functions of autograd


class Quantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Frugal(torch.autograd.Function):
    """A linear layer and its activation in one function that keeps little for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x @ weight.t()).relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient * ((x @ weight.t()) > 0)
        return gradient @ weight, gradient.t() @ x


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


# control flow


def _asked(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.fc(m.b(y).relu() if y[:, 0].sum().item() > -1 else m.c(y))


def _asked_by_bool(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.fc(m.b(y).relu() if bool((y > 100).any()) else m.c(y).relu())


def _halting(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    for _ in range(3):
        y = m.b(y).tanh()
        if float(m.halt(y).sigmoid().mean()) > 0.99:
            break
    return m.fc(y)


def _length_of_data(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    count = int((m.gate(y).mean(0).sigmoid() > 0).sum())
    return m.fc(m.b(y)[:, : 8 + count // 100].relu())


def _conditional(m: Any, x: Tensor) -> Tensor:
    return m.fc(torch.cond(x.sum() > 1000, lambda y: y.sin(), lambda y: y.cos(), (m.b(m.a(x).relu()),)))


def _conditional_layers(m: Any, x: Tensor) -> Tensor:
    return m.fc(torch.cond(x.sum() > 1000, lambda y: m.b(y), lambda y: m.c(y), (m.a(x).relu(),)).relu())


def _repeated(m: Any, x: Tensor) -> Tensor:
    def going(i: Tensor, y: Tensor) -> Tensor:
        return i < 3

    def step(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, torch.tanh(y)

    from torch._higher_order_ops.while_loop import while_loop

    return m.fc(m.b(while_loop(going, step, (torch.tensor(0), m.a(x).relu()))[1]).relu())


# NumPy and Python


def _numpy(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.fc(m.b(torch.from_numpy(np.tanh(y.detach().numpy()))).relu())


def _numpy_scale(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    scale = np.linalg.norm(y.detach().numpy(), axis=1, keepdims=True)
    return m.fc(m.b(y).relu() * torch.from_numpy(scale))


def _numpy_first(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    first = np.asarray(y.detach())[:, :1].copy()
    return m.fc(m.b(y).relu() * torch.from_numpy(first))


def _listed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    lengths = torch.tensor([[sum(v * v for v in row)] for row in y.tolist()], dtype=y.dtype)
    return m.fc(m.b(y).relu() * lengths)


class Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _deep_copied(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    return m.fc(m.b(y).relu() * deepcopy(y.detach()).norm(dim=1, keepdim=True))


def _in_a_thread(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    with ThreadPoolExecutor(1) as pool:
        size = pool.submit(lambda: y.detach().norm(dim=1, keepdim=True)).result()
    return m.fc(m.b(y).relu() * size)


# linear algebra


def _gram(y: Tensor) -> Tensor:
    return y.mT @ y + torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)


def _whitened(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    u, s, v = torch.linalg.svd(y, full_matrices=False)
    return m.fc(m.b(u @ torch.diag_embed(s / (1 + s)) @ v).relu())


def _inverse(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.fc(m.b(y @ torch.linalg.inv(_gram(y))).relu())


def _solved(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.fc(m.b(torch.linalg.solve(_gram(y), y.mT).mT).relu())


def _cholesky(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    lower = torch.linalg.cholesky(_gram(y))
    return m.fc(m.b(y @ lower).relu())


def _ridge(m: Any, x: Tensor, target: Tensor) -> Tensor:
    """Meta-learning by ridge regression (R2D2): the last layer is solved for from the features."""
    y = m.b(m.a(x).relu())
    weights = torch.linalg.solve(_gram(y), y.mT @ target)
    return y @ weights


def _orthogonal(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.b(m.a(x).relu()).relu())


def _inverse_by_channel(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).unflatten(2, (4, 6))
    return m.fc(m.b((torch.linalg.inv(_gram(y)) @ y.mT).flatten(2)).relu().mean(2))


def _solved_by_channel(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).unflatten(2, (4, 6))
    return m.fc(m.b(torch.linalg.solve(_gram(y), y.mT).flatten(2)).relu().mean(2))


def _log_volume(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.fc(m.b(y := m.a(x)).relu()), torch.linalg.slogdet(_gram(y))[1]


# nested tensors


def _nested(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    rows = torch.nested.nested_tensor([y[0, :5], y[1, :7]])
    return m.fc(torch.nested.to_padded_tensor(m.b(rows), 0.0).sum(1).relu())


def _as_nested(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    rows = torch.nested.as_nested_tensor([y[0, :5], y[1, :7]], layout=torch.jagged)
    return m.fc(torch.nested.to_padded_tensor(m.b(rows).relu(), 0.0).sum(1))


# quantisation


class Stubbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.b(self.a(self.quant(x)).relu()).relu()))


def _fake_quantised(m: Any, x: Tensor) -> Tensor:
    y = torch.fake_quantize_per_tensor_affine(m.a(x).relu(), 0.05, 0, 0, 255)
    return m.fc(m.b(y).relu())


def _dequantised(m: Any, x: Tensor) -> Tensor:
    y = torch.quantize_per_tensor(m.a(x).relu().float(), 0.05, 0, torch.quint8).dequantize().to(x.dtype)
    return m.fc(m.b(y).relu())


def _dynamic() -> nn.Module:
    inner = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(12, 16)), {nn.Linear}, dtype=torch.qint8
    )
    return _around(inner)


def _observed() -> Net:
    """Ranges are observed in eval mode too, so that each call changes the next."""
    kind = torch.ao.quantization.MovingAveragePerChannelMinMaxObserver
    net = Net(
        _observing,
        a=nn.Linear(6, 16),
        q=torch.ao.quantization.FakeQuantize(kind, ch_axis=1),
        b=nn.Linear(16, 12),
        fc=nn.Linear(12, 3),
    )
    net(torch.randn(4, 6))
    return net


def _observed_together() -> Net:
    """One range for all channels, which no call has set yet."""
    kind = torch.ao.quantization.MovingAverageMinMaxObserver
    return Net(
        _observing,
        a=nn.Linear(6, 16),
        q=torch.ao.quantization.FakeQuantize(kind),
        b=nn.Linear(16, 12),
        fc=nn.Linear(12, 3),
    )


def _observing(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.b(m.q(m.a(x).relu().float()).to(x.dtype)).relu())


# custom operators


@torch.library.custom_op("sparsify_zoo::squash", mutates_args=())
def squash(x: Tensor) -> Tensor:
    return torch.tanh(x)


@torch.library.custom_op("sparsify_zoo::squash_described", mutates_args=())
def squash_described(x: Tensor) -> Tensor:
    return torch.tanh(x)


@squash_described.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("sparsify_zoo::joined", mutates_args=())
def joined(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight.t()).relu()


@torch.library.custom_op("sparsify_zoo::squash_in_place", mutates_args=("x",))
def squash_in_place(x: Tensor) -> None:
    x.tanh_()


def _custom(op: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.fc(m.b(op(m.a(x))).relu())


def _custom_joined(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.c(joined(m.a(x).relu(), m.b.weight, m.b.bias)).relu())


def _custom_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    squash_in_place(y)
    return m.fc(m.b(y).relu())


def _three(run: Callable[..., Any], width: int = 16, out: int = 12) -> Callable[[], nn.Module]:
    return lambda: Net(
        run, a=nn.Linear(6, width), b=nn.Linear(width, out), c=nn.Linear(width, out), fc=nn.Linear(out, 3)
    )


ROWS = noise((4, 6))
NODES = noise((7, 6))
SEQUENCE = noise((2, 9, 6))
IMAGE = noise((2, 3, 16, 16))
SIGNAL = noise((2, 4, 24))

COMPLEX: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "rotary by complex numbers": (lambda: Rotary("stored"), SEQUENCE),
    "rotary, table made in forward": (lambda: Rotary("made in forward"), SEQUENCE),
    "rotary, table of two parts": (lambda: Rotary("of float"), SEQUENCE),
    "complex gate": (
        lambda: Net(
            _complex_gate, a=nn.Linear(6, 16), b=nn.Linear(6, 16), c=nn.Linear(32, 12), fc=nn.Linear(12, 3)
        ),
        ROWS,
    ),
    "real times imaginary part": (
        lambda: Net(_parts, a=nn.Linear(6, 16), b=nn.Linear(6, 16), c=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        ROWS,
    ),
    "polar": (
        lambda: Net(_polar, a=nn.Linear(6, 16), b=nn.Linear(6, 16), c=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        ROWS,
    ),
    "complex weights": (
        lambda: Net(
            lambda m, x: m.fc(m.c(m.b(m.a(x)).abs()).relu()),
            a=ComplexLinear(6, 16),
            b=ComplexLinear(16, 12),
            c=nn.Linear(12, 8),
            fc=nn.Linear(8, 3),
        ),
        ROWS,
    ),
    "complex state space": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.s(m.a(x)).relu()).relu().mean(2)),
            a=nn.Conv1d(4, 12, 1),
            s=StateSpace(12, 4),
            b=nn.Conv1d(12, 8, 1),
            fc=nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    "complex numbers of two halves": (
        lambda: Net(_chunked, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        ROWS,
    ),
    "complex output": (_three(lambda m, x: torch.fft.fft(m.fc(m.b(m.a(x).relu()).relu()))), ROWS),
}
FOURIER: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "FNet": (lambda: Net(_fnet((-1, -2)), **_fnet_layers()), SEQUENCE),
    "FNet over tokens": (lambda: Net(_fnet((1,)), **_fnet_layers()), SEQUENCE),
    "FNet over features": (lambda: Net(_fnet((2,)), **_fnet_layers()), SEQUENCE),
    "long convolution": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.s(m.a(x)).relu()).relu().mean(2)),
            a=nn.Conv1d(4, 12, 1),
            s=LongConvolution(12, 24),
            b=nn.Conv1d(12, 8, 1),
            fc=nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    "global filter": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.s(m.a(x).permute(0, 2, 3, 1)).relu()).relu().mean((1, 2))),
            a=nn.Conv2d(3, 12, 3, padding=1),
            s=GlobalFilter(12, 16),
            b=nn.Linear(12, 8),
            fc=nn.Linear(8, 3),
        ),
        IMAGE,
    ),
    "Fourier neural operator": (
        lambda: Net(
            lambda m, x: m.fc(m.c((m.s(y := m.a(x)) + m.w(y)).relu()).relu().mean(2)),
            a=nn.Conv1d(4, 12, 1),
            s=SpectralConvolution(12, 16, 5),
            w=nn.Conv1d(12, 16, 1),
            c=nn.Conv1d(16, 8, 1),
            fc=nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    "spectral pooling": (
        lambda: Net(
            _spectral_pool, a=nn.Conv2d(3, 12, 3, padding=1), b=nn.Conv2d(12, 8, 3), fc=nn.Linear(8, 3)
        ),
        IMAGE,
    ),
    "spectrogram": (
        lambda: Net(
            _spectrogram,
            a=nn.Conv1d(4, 12, 3, padding=1),
            one=nn.Conv1d(12, 1, 1),
            b=nn.Conv1d(5, 8, 3),
            fc=nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    "Fourier along channels": (
        lambda: Net(_denoise, a=nn.Conv1d(4, 16, 1), b=nn.Conv1d(16, 8, 1), fc=nn.Linear(8, 3)),
        SIGNAL,
    ),
    "depthwise by Fourier": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.s(m.a(x)).relu())),
            a=nn.Conv2d(3, 12, 3, padding=1),
            s=DepthwiseByFourier(12),
            fc=nn.Linear(12, 3),
        ),
        IMAGE,
    ),
    "spectral mask": (lambda: Net(_spectral_mask, a=nn.Conv1d(5, 12, 1), b=nn.Conv1d(12, 5, 1)), SIGNAL),
    "Fourier along examples": (
        _three(lambda m, x: m.fc(m.b(torch.fft.fft(m.a(x), dim=0).abs()).relu())),
        ROWS,
    ),
}
COVARIANCE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "decorrelated features": (_three(_decorrelated), ROWS),
    "covariance pooling": (
        lambda: Net(_covariance_pooling, a=cbr(3, 12), b=nn.Conv2d(12, 8, 1), fc=nn.Linear(64, 3)),
        IMAGE,
    ),
    "correlation of examples": (_three(_correlated), ROWS),
}
FUNCTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "vmap over heads": (VmapHeads, ROWS),
    "vmap over examples": (_three(_by_example), ROWS),
    "ensemble": (Ensemble, ROWS),
    "stacked ensemble": (StackedEnsemble, ROWS),
    "hypernetwork": (Hypernetwork, noise((4, 6), (4, 5))),
    "gradient of the network": (
        lambda: Net(_physics, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 1)),
        ROWS,
    ),
    "tangent of the network": (_three(_tangent), ROWS),
    "forces": (lambda: Net(_forces, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 1)), ROWS),
    "straight through": (_three(lambda m, x: m.fc(m.b(Quantise.apply(m.a(x))).relu())), ROWS),
    "frugal function": (_three(lambda m, x: m.fc(Frugal.apply(m.a(x).relu(), m.b.weight))), ROWS),
    "gradient reversal": (_three(lambda m, x: m.fc(m.b(Reverse.apply(m.a(x))).relu())), ROWS),
    "checkpoint": (
        _three(lambda m, x: m.fc(checkpoint(lambda y: m.b(y).relu(), m.a(x).relu(), use_reentrant=False))),
        ROWS,
    ),
    "checkpoint, reentrant": (
        _three(lambda m, x: m.fc(checkpoint(lambda y: m.b(y).relu(), m.a(x).relu(), use_reentrant=True))),
        ROWS,
    ),
    "vmap over channels": (_three(_by_channel(lambda c: c / (1 + c.square().sum()))), ROWS),
    "vmap of Fourier transforms": (_three(_by_channel(lambda c: torch.fft.fft(c).real)), ROWS),
    "Jacobian": (_three(_jacobian), ROWS),
    "Hessian": (_three(_curvature), ROWS),
    "inner loop": (_three(_inner_loop), ROWS),
}
SCRIPTED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "scripted block": (lambda: _around(torch.jit.script(Block(12, 16))), ROWS),
    "traced block": (lambda: _around(torch.jit.trace(Block(12, 16), torch.randn(4, 12))), ROWS),
    "frozen block": (lambda: _around(torch.jit.freeze(torch.jit.script(Block(12, 16).eval()))), ROWS),
    "scripted activation": (
        lambda: _around(torch.jit.script(nn.Sequential(nn.Linear(12, 16), nn.GELU()))),
        ROWS,
    ),
    "scripted function": (_three(lambda m, x: m.fc(m.b(scripted_swish(m.a(x), 1.5)).relu())), ROWS),
    "scripted if tracing": (_three(lambda m, x: m.fc(m.b(scripted_if_tracing(m.a(x))).relu())), ROWS),
    "traced function": (_traced, ROWS),
    "scripted first": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.s(x)).relu()),
            s=torch.jit.script(Block(6, 16)),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        ROWS,
    ),
    "scripted last": (
        lambda: Net(
            lambda m, x: m.s(m.b(m.a(x).relu()).relu()),
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            s=torch.jit.script(Block(12, 3)),
        ),
        ROWS,
    ),
    "scripted branch": (
        lambda: Net(
            lambda m, x: m.fc((y := m.a(x)) + m.s(y)),
            a=nn.Linear(6, 12),
            s=torch.jit.script(Block(12, 12)),
            fc=nn.Linear(12, 3),
        ),
        ROWS,
    ),
    "traced convolution": (_traced_convolution, IMAGE),
    "forked": (_three(_forked), ROWS),
    "compiled function": (_compiled, ROWS),
}
SPARSE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "sparse adjacency": (lambda: SparseGraph("coo", True, torch.sparse.mm), NODES),
    "sparse adjacency, not saved": (lambda: SparseGraph("coo", False, torch.sparse.mm), NODES),
    "sparse rows": (lambda: SparseGraph("csr", True, torch.matmul), NODES),
    "sparse rows, not saved": (lambda: SparseGraph("csr", False, torch.matmul), NODES),
    "sparse weight": (SparseWeight, NODES),
    "weighted edges": (
        lambda: Net(
            _edges, a=nn.Linear(6, 16), weigh=nn.Linear(6, 1), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)
        ),
        NODES,
    ),
    "sparse batch": (SparseBatch, SEQUENCE),
    "sparse attention": (
        lambda: Net(
            _sparse_attention,
            a=nn.Linear(6, 16),
            c=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        NODES,
    ),
    "sparse features": (_three(_sparse_features), ROWS),
}
MODES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "inference mode": (_three(_whole_inference), ROWS),
    "inference mode, first half": (
        lambda: Net(
            _frozen_features, a=nn.Linear(6, 16), b=nn.Linear(16, 12), c=nn.Linear(12, 8), fc=nn.Linear(8, 3)
        ),
        ROWS,
    ),
    "inference mode, decorated": (Decorated, IMAGE),
    "autocast": (_three(_autocast), ROWS),
    "autocast, first half": (
        lambda: Net(
            _half_autocast, a=nn.Linear(6, 16), b=nn.Linear(16, 12), c=nn.Linear(12, 8), fc=nn.Linear(8, 3)
        ),
        ROWS,
    ),
    "autocast with a part off": (_three(_autocast_off), ROWS),
    "deep autocast": (DeepAutocast, noise((8, 16))),
}
PARAMETERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "transposed parameter": (lambda: PassedView(lambda w: w.t(), (16, 12)), ROWS),
    "slice of a parameter": (lambda: PassedView(lambda w: w[:12], (20, 16)), ROWS),
    "entry of a stacked parameter": (lambda: PassedView(lambda w: w[1], (2, 12, 16)), ROWS),
    "parameter as a view": (lambda: PassedView(lambda w: w.view(12, 16), (12 * 16,)), ROWS),
    "sum of parameters": (lambda: Sum(torch.add), ROWS),
    "two parameters as one": (lambda: Sum(lambda one, two: torch.cat([one, two])[12:36]), ROWS),
    "learned queries": (Queries, SEQUENCE),
    "adapters": (LowRank, ROWS),
}  # fmt: skip
CONTROL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "branch on an item": (_three(_asked), ROWS),
    "branch on a truth": (_three(_asked_by_bool), ROWS),
    "loop until sure": (
        lambda: Net(
            _halting, a=nn.Linear(6, 16), b=nn.Linear(16, 16), halt=nn.Linear(16, 1), fc=nn.Linear(16, 3)
        ),
        ROWS,
    ),
    "length from data": (
        lambda: Net(
            _length_of_data,
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            gate=nn.Linear(16, 20),
            fc=nn.Linear(8, 3),
        ),
        ROWS,
    ),
    "cond": (_three(_conditional), ROWS),
    "cond between layers": (_three(_conditional_layers), ROWS),
    "while loop": (_three(_repeated), ROWS),
}
PYTHON: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "through NumPy": (_three(_numpy), ROWS),
    "norm by NumPy": (_three(_numpy_scale), ROWS),
    "array of a tensor": (_three(_numpy_first), ROWS),
    "through lists": (_three(_listed), ROWS),
    "NumPy in a function": (_three(lambda m, x: m.fc(m.b(Sorted.apply(m.a(x))).relu())), ROWS),
    "deep copy": (_three(_deep_copied), ROWS),
    "in a thread": (_three(_in_a_thread), ROWS),
}  # fmt: skip
ALGEBRA: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "singular values": (_three(_whitened), ROWS),
    "inverse": (_three(_inverse), ROWS),
    "solve": (_three(_solved), ROWS),
    "Cholesky": (_three(_cholesky), ROWS),
    "ridge regression": (
        lambda: Net(_ridge, a=nn.Linear(6, 16), b=nn.Linear(16, 8)),
        noise((10, 6), (10, 3)),
    ),
    "orthogonal weight": (
        lambda: Net(
            _orthogonal,
            a=nn.Linear(6, 16),
            b=nn.utils.parametrizations.orthogonal(nn.Linear(16, 12)),
            fc=nn.Linear(12, 3),
        ),
        ROWS,
    ),
    "log-volume": (_three(_log_volume), ROWS),
    "inverse by channel": (
        lambda: Net(_inverse_by_channel, a=nn.Conv1d(4, 12, 1), b=nn.Conv1d(12, 8, 1), fc=nn.Linear(8, 3)),
        SIGNAL,
    ),
    "solve by channel": (
        lambda: Net(_solved_by_channel, a=nn.Conv1d(4, 12, 1), b=nn.Conv1d(12, 8, 1), fc=nn.Linear(8, 3)),
        SIGNAL,
    ),
}
OTHER: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "nested tensor": (_three(_nested), SEQUENCE),
    "jagged tensor": (_three(_as_nested), SEQUENCE),
    "quantisation stubs": (Stubbed, ROWS),
    "fake quantisation": (_three(_fake_quantised), ROWS),
    "quantised and back": (_three(_dequantised), ROWS),
    "dynamically quantised layer": (_dynamic, ROWS),
    "custom operator": (_three(_custom(squash)), ROWS),
    "custom operator, described": (_three(_custom(squash_described)), ROWS),
    "custom operator with weights": (
        lambda: Net(
            _custom_joined, a=nn.Linear(6, 16), b=nn.Linear(16, 12), c=nn.Linear(12, 8), fc=nn.Linear(8, 3)
        ),
        ROWS,
    ),
    "custom operator in place": (_three(_custom_in_place), ROWS),
    "observers in eval mode": (_observed, ROWS),
    "one observer of all channels": (_observed_together, ROWS),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    **COMPLEX,
    **FOURIER,
    **COVARIANCE,
    **FUNCTIONS,
    **SCRIPTED,
    **SPARSE,
    **MODES,
    **PARAMETERS,
    **CONTROL,
    **PYTHON,
    **ALGEBRA,
    **OTHER,
}
