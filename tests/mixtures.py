"""Mixtures of experts as people write them, small: each takes [batch, places, 6] and returns [batch, 3]."""

from collections.abc import Callable
from typing import Any

import torch
from reference import Experts
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (4, 5, 6)


def expert(width: int = 12, inner: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, width))


class Net(nn.Module):
    """A mixture beside its shortcut, between two linear layers."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(6, 12), mix, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        made: Tensor = self.head((y + self.mix(y)).mean(1))
        return made


class Soft(nn.Module):
    """All experts run on everything, weighted by a softmax."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(12, count)
        self.experts = nn.ModuleList(expert() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.stack([one(x) for one in self.experts], -2)
        return (self.router(x).softmax(-1)[..., None] * made).sum(-2)


class Switch(nn.Module):
    """Each place goes to its best expert, whose probability weighs the result (arXiv:2101.03961)."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(12, count, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        made = torch.zeros_like(x)
        for number, one in enumerate(self.experts):
            made = made + one(x) * (weight * (chosen == number))[..., None]
        return made


class TopTwo(nn.Module):
    """Mixtral's block as transformers wrote it until its version 4: experts are called by their number."""

    def __init__(self, count: int = 6, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = count, top_k
        self.gate = nn.Linear(12, count, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(-1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        made = torch.zeros_like(flat)
        mask = F.one_hot(chosen, num_classes=self.num_experts).permute(2, 1, 0)
        for number in range(self.num_experts):
            place, token = torch.where(mask[number])
            made.index_add_(0, token, self.experts[number](flat[token]) * weights[token, place, None])
        return made.view(x.shape)


class Noisy(nn.Module):
    """Two weights [width, experts], one of which adds noise in training (arXiv:1701.06538)."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.w_gate, self.w_noise = (nn.Parameter(torch.randn(12, count)) for _ in range(2))
        self.experts = nn.ModuleList(expert() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.w_gate
        if self.training:
            scores = scores + torch.randn_like(scores) * F.softplus(x @ self.w_noise)
        best, places = scores.topk(2, -1)
        shares = torch.zeros_like(scores).scatter(-1, places, best.softmax(-1))
        return torch.stack([one(x) for one in self.experts], -2).mul(shares[..., None]).sum(-2)


class Tasks(nn.Module):
    """Two gates over the same experts (multi-gate mixture, KDD 2018)."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.experts = nn.ModuleList(expert() for _ in range(count))
        self.gates = nn.ModuleList(nn.Linear(12, count) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.stack([one(x) for one in self.experts], -2)
        first, second = ((gate(x).softmax(-1)[..., None] * made).sum(-2) for gate in self.gates)
        return first * second.tanh()


class Stacked(nn.Module):
    """Stacked weights and biases in one product over all experts; the gate is a parameter beside them."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(12, count) / 3)
        self.up, self.down = (
            nn.Parameter(torch.randn(count, 12, 16) / 3),
            nn.Parameter(torch.randn(count, 16, 12) / 3),
        )
        self.up_bias = nn.Parameter(torch.randn(count, 16))

    def forward(self, x: Tensor) -> Tensor:
        shares = (x @ self.gate).softmax(-1)
        inner = (torch.einsum("bth,ehf->btef", x, self.up) + self.up_bias).relu()
        return torch.einsum("bte,btef,efh->bth", shares, inner, self.down)


class Corrected(nn.Module):
    """DeepSeek-V3's router: sigmoid scores, a correction added for the choice alone, shared expert; experts
    fall into groups, of which some are chosen first."""

    def __init__(self, count: int = 8, groups: int = 2, chosen_groups: int = 1) -> None:
        super().__init__()
        self.n_routed_experts, self.n_group, self.topk_group, self.top_k = count, groups, chosen_groups, 2
        self.weight = nn.Parameter(torch.randn(count, 12))
        self.e_score_correction_bias = nn.Buffer(torch.rand(count) - 0.2)
        self.experts = nn.ModuleList(expert() for _ in range(count))
        self.shared = expert()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        scores = F.linear(flat, self.weight).sigmoid()
        choice = scores + self.e_score_correction_bias
        grouped = choice.view(-1, self.n_group, self.n_routed_experts // self.n_group)
        best = grouped.topk(2, -1).values.sum(-1).topk(self.topk_group, -1).indices
        inside = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=x.device).scatter(-1, best, True)
        choice = grouped.masked_fill(~inside[..., None], -torch.inf).flatten(1)
        chosen = choice.topk(self.top_k, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        made = torch.zeros_like(flat)
        for number, one in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            made = made.index_add(0, token, one(flat[token]) * weights[token, place, None])
        return self.shared(x) + made.view(x.shape)


class Named(TopTwo):
    """Switch Transformers and NLLB as transformers writes them: experts in a ModuleDict, called by name."""

    def __init__(self, count: int = 6, top_k: int = 2) -> None:
        super().__init__(count, top_k)
        self.experts = nn.ModuleDict({f"expert_{number}": expert() for number in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k, -1)
        made = torch.zeros_like(x)
        for number in range(self.num_experts):
            share = (weights * (chosen == number)).sum(-1, keepdim=True)
            made = made + self.experts[f"expert_{number}"](x) * share
        return made


class Cosine(nn.Module):
    """Scores are cosines with a learnt direction for each expert, over a temperature (arXiv:2204.09179)."""

    def __init__(self, count: int = 6, off: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.down, self.scale = nn.Linear(12, 8), nn.Parameter(torch.tensor(0.4))
        self.directions = nn.Parameter(torch.randn(count, 8))
        self.experts = nn.ModuleList(expert() for _ in range(count))
        self.off = off
        """experts that count as not there, for the reference"""

    def forward(self, x: Tensor) -> Tensor:
        scores = F.normalize(self.down(x), dim=-1) @ F.normalize(self.directions, dim=-1).T / self.scale.exp()
        scores[..., list(self.off)] = -torch.inf
        best, places = scores.topk(2, -1)
        shares = torch.zeros_like(scores).scatter(-1, places, best.softmax(-1))
        return torch.stack([one(x) for one in self.experts], -2).mul(shares[..., None]).sum(-2)


class Free(nn.Module):
    """Experts are weighted by the scores as they are."""

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(12, count)
        self.experts = nn.ModuleList(expert() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return (self.router(x)[..., None] * torch.stack([one(x) for one in self.experts], -2)).sum(-2)


class Counted(TopTwo):
    """The number of experts stands in the code."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_experts = 6
        return super().forward(x)


class Telling(nn.Module):
    """A mixture whose network returns the router's scores as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Linear(6, 12), Soft()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return self.mix(y), self.mix.router(y)


CUTTABLE: dict[str, tuple[Callable[[], nn.Module], Experts]] = {
    "soft": (Soft, Experts({"mix.router.weight": 0})),
    "switch": (Switch, Experts({"mix.router.weight": 0})),
    "top two": (TopTwo, Experts({"mix.gate.weight": 0})),
    "named": (Named, Experts({"mix.gate.weight": 0})),
    "noisy": (Noisy, Experts({"mix.w_gate": 1})),
    "two gates": (Tasks, Experts({"mix.gates.0.weight": 0, "mix.gates.1.weight": 0})),
    "stacked": (Stacked, Experts({"mix.gate": 1})),
    "groups": (Corrected, Experts({"mix.weight": 0}, ("mix.e_score_correction_bias",))),
    "corrected": (
        lambda: Corrected(groups=1),
        Experts({"mix.weight": 0}, ("mix.e_score_correction_bias",)),
    ),
}


def build(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net(make()).eval()
