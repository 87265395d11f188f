"""Residual networks for 32 x 32 images, as CIFAR-10 checkpoints store them.

No command: other benchmarks and `--arch benchmarks/cifar_models.py:resnet20` build these. Keys are
`conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear`, and for option B also
`layer{2,3}.0.shortcut.{0,1}`. The file needs torch alone, so that it can be named as an `--arch`.

He et al. 2016 (arXiv 1512.03385), section 4.2: depth 6n + 2 with widths 16, 32 and 64. Option A
shortcuts have no weights: every second pixel, and zeros for the channels that are missing.
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Option A: (N, C, H, W) to (N, C + sum of the pads, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        # A tuple on the module, so that pruning can rewrite how many zero channels there are.
        self.pad = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Every second pixel, between zero channels."""
        return F.pad(x[:, :, ::2, ::2], self.pad)


def _shortcut(in_channels: int, out_channels: int, option: str) -> nn.Module:
    if in_channels == out_channels:
        return nn.Sequential()
    if option == "A":
        return PaddedShortcut(in_channels, out_channels)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; a change of width halves the image."""

    def __init__(self, in_channels: int, out_channels: int, option: str) -> None:
        super().__init__()
        stride = 1 if in_channels == out_channels else 2
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, option)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Depth 6 * `blocks_per_layer` + 2; `option` "A" or "B" says how shortcuts change width."""

    def __init__(self, blocks_per_layer: int, option: str, num_classes: int = 10) -> None:
        super().__init__()
        if option not in ("A", "B"):
            raise ValueError(f"option {option!r}: shortcuts are of option A or B")
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _layer(WIDTHS[0], WIDTHS[0], blocks_per_layer, option)
        self.layer2 = _layer(WIDTHS[0], WIDTHS[1], blocks_per_layer, option)
        self.layer3 = _layer(WIDTHS[1], WIDTHS[2], blocks_per_layer, option)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to class scores (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def _layer(in_channels: int, out_channels: int, num_blocks: int, option: str) -> nn.Sequential:
    rest = [Block(out_channels, out_channels, option) for _ in range(num_blocks - 1)]
    return nn.Sequential(Block(in_channels, out_channels, option), *rest)


def resnet20() -> CifarResNet:
    """Depth 20, option A; 41 MMACs at 32 x 32."""
    return CifarResNet(3, "A")


def resnet20_b() -> CifarResNet:
    """Depth 20, option B."""
    return CifarResNet(3, "B")


def resnet56() -> CifarResNet:
    """Depth 56, option A; 126 MMACs at 32 x 32."""
    return CifarResNet(9, "A")


def resnet56_b() -> CifarResNet:
    """Depth 56, option B."""
    return CifarResNet(9, "B")
