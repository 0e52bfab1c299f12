"""Small models, data, losses and metrics of every kind of task, as a user's own module has them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

TOKENS, WORDS = 9, 12


def _numbers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    y = torch.stack([x[:, 0] * x[:, 1] + x[:, 2], x[:, 3].abs()], dim=1)
    return x, y


def numbers() -> Any:
    """Two numbers of six."""
    return _numbers(300, 0), _numbers(60, 1)


def one_number() -> Any:
    """One number of six, without a dimension of its own."""
    (x, y), (other, wanted) = numbers()
    return (x, y[:, 0]), (other, wanted[:, 0])


def labels() -> Any:
    """Which of the two numbers are large."""
    return tuple((x, (y > 0.5).long()) for x, y in numbers())


def _squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bright rectangles on noise, as bytes, and the mask of them; a border of 255 that does not count."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 12, 12, generator=generator) * 0.3
    masks = torch.zeros(count, 12, 12, dtype=torch.int64)
    for image, mask in zip(images, masks, strict=True):
        top, left = torch.randint(0, 7, (2,), generator=generator).tolist()
        image[0, top : top + 5, left : left + 5] += 0.6
        mask[top : top + 5, left : left + 5] = 1
        mask[0] = 255
    return (images * 255).to(torch.uint8), masks


def squares() -> Any:
    """For a segmentation."""
    return _squares(200, 0), _squares(40, 1)


class _Sentences(torch.utils.data.Dataset):
    """Sentences of different lengths that count upwards, as mappings of lists, the way tokenizers give
    them."""

    def __init__(self, count: int, seed: int, masked: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, TOKENS + 1, (count,), generator=generator).tolist()
        starts = torch.randint(1, WORDS - 1, (count,), generator=generator).tolist()
        self._rows = [
            [1 + (s + i) % (WORDS - 1) for i in range(n)] for s, n in zip(starts, lengths, strict=True)
        ]
        self._masked = masked

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        example: dict[str, Any] = {"input_ids": list(row)}
        if self._masked:
            example["input_ids"][1] = 0
            example["labels"] = [-100, row[1], *[-100] * (len(row) - 2)]
        return example


def sentences() -> Any:
    """For a language model: the targets are the tokens."""
    return _Sentences(200, 0, masked=False), _Sentences(40, 1, masked=False)


def masked_sentences() -> Any:
    """For a masked language model."""
    return _Sentences(200, 0, masked=True), _Sentences(40, 1, masked=True)


def equal_sentences() -> Any:
    """Sentences of one length, for a language model."""
    starts = torch.arange(200)[:, None] % (WORDS - 1)
    rows = 1 + (starts + torch.arange(TOKENS)) % (WORDS - 1)
    parts = []
    for part in (rows[:160], rows[160:]):
        parts.append({"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part})
    return tuple(parts)


class _Boxes(torch.utils.data.Dataset):
    """Images with a number of points each: targets of another length for every example."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._x = torch.randn(count, 6, generator=generator)
        self._counts = torch.randint(1, 4, (count,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = self._x[index]
        points = x[:2].expand(self._counts[index], 2) + 0.1 * torch.arange(self._counts[index])[:, None]
        return x, {"points": points}


def boxes() -> Any:
    """For a task of its own."""
    return _Boxes(200, 0), _Boxes(40, 1)


class _Pictures(torch.utils.data.Dataset):
    """Images of different heights, and how bright they are."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        heights = torch.randint(6, 9, (count,), generator=generator).tolist()
        self._x = [torch.rand(2, height, 6, generator=generator) for height in heights]

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._x[index], self._x[index].mean()[None]


def pictures() -> Any:
    """For a regression that takes lists of images."""
    return _Pictures(80, 0), _Pictures(20, 1)


def as_lists(examples: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """A batch as detectors take it."""
    return [x for x, _ in examples], torch.stack([y for _, y in examples])


class ListModel(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 8, 3), nn.Linear(8, 1)

    def forward(self, images: list[Tensor]) -> Tensor:
        rows = [self.conv(image[None]).relu().mean((2, 3)) for image in images]
        return self.head(torch.cat(rows))


def nearest_point(outputs: Tensor, targets: dict[str, list[Tensor]]) -> Tensor:
    """Squared distance to the mean of an example's points, for each example."""
    means = torch.stack([points.mean(dim=0) for points in targets["points"]])
    return (outputs - means).square().sum(dim=1)


class HitRate:
    """The share of examples whose output lies within 0.5 of the mean of its points."""

    def __init__(self, radius: float = 0.5) -> None:
        self.radius, self.hits, self.count = radius, 0, 0

    def update(self, outputs: Tensor, targets: dict[str, list[Tensor]]) -> None:
        """Count a batch."""
        near = nearest_point(outputs, targets) <= self.radius**2
        self.hits += int(near.sum())
        self.count += len(near)

    def compute(self) -> float:
        """hits / examples"""
        return self.hits / self.count


def mlp() -> nn.Module:
    """Two numbers of six."""
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))


def one_output() -> nn.Module:
    """One number of six, in a dimension of its own."""
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))


def conv_net(channels: int = 2) -> nn.Module:
    """Logits for each pixel, at half the size of the mask."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, channels, 1),
    )


class TextModel(nn.Module):
    """Tokens and their mask -> an object with logits, and with a loss where labels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.place = nn.Embedding(TOKENS, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        x = self.embed(input_ids) + self.place.weight[: input_ids.shape[1]]
        mask = attention_mask[:, :, None].to(x.dtype)
        x = x + (x * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        logits = self.head(x + self.down(torch.relu(self.up(x))))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


class TupleModel(nn.Module):
    """The prediction in second place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.net(x)


def token_loss(outputs: dict[str, Tensor], targets: list[Tensor]) -> Tensor:
    """Cross-entropy of the tokens, out of the mapping that the model returns."""
    padded = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), padded.flatten(), ignore_index=-100)


def pixel_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the pixels that count, which the built-in loss of a segmentation is."""
    resized = nn.functional.interpolate(outputs, targets.shape[1:], mode="bilinear", align_corners=False)
    return nn.functional.cross_entropy(resized, targets, ignore_index=-100)


def next_token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over all tokens but the first, which the built-in loss of a language model is."""
    return nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def constant_loss(outputs: Tensor, _targets: Any) -> Tensor:
    """Does not depend on the model."""
    return torch.ones(len(outputs))


def wrong_loss(outputs: Tensor, _targets: Any) -> Tensor:
    """A number for each output."""
    return outputs


def failing_metric(_outputs: Tensor, _targets: Any) -> float:
    """Raises."""
    raise ValueError("no such thing")


def dropping_collate(examples: list[tuple[dict[str, Any], Any]]) -> tuple[dict[str, Tensor], Tensor]:
    """Forgets the mask."""
    rows = [torch.as_tensor(x["input_ids"]) for x, _ in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids}, ids


def good_collate(examples: list[tuple[dict[str, Any], Any]]) -> tuple[dict[str, Tensor], Tensor]:
    """Pads, and makes the mask."""
    inputs, ids = dropping_collate(examples)
    mask = (ids > 0).long()
    return {**inputs, "attention_mask": mask}, ids.masked_fill(mask == 0, -100)


def classes() -> Any:
    """Which of the two numbers is larger."""
    return tuple((x, y.argmax(dim=1)) for x, y in numbers())
