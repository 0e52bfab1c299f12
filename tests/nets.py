"""Networks that tests and benchmarks share; random weights."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) residual block."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        shapes = (
            [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            if bottleneck
            else [(inputs, width, 3), (width, width, 3)]
        )
        strided = 1 if bottleneck else 0
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride if n == strided else 1, k // 2, bias=False)
            for n, (i, o, k) in enumerate(shapes)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in shapes)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for n, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = bn(conv(y))
            if n + 1 < len(self.convs):
                y = y.relu()
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """The ImageNet ResNet: 18 (basic, 2-2-2-2) or 50 (bottleneck, 3-4-6-3)."""

    def __init__(self, depth: int, classes: int = 1000) -> None:
        super().__init__()
        counts, bottleneck = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}[depth]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for stage, count in enumerate(counts):
            for n in range(count):
                blocks.append(Block(inputs, 64 * 2**stage, 2 if stage and n == 0 else 1, bottleneck))
                inputs = 64 * 2**stage * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))
