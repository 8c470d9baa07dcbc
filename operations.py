"""The candidate operations of DARTS (section 3.1 of the paper, arXiv 1806.09055), one module each.

`OPS[name](C, stride)` builds the operation `name` on C channels: a separable convolution (applied twice), a dilated
separable convolution, a pool, or the identity. Convolutional ones go in the order ReLU, convolution, batch
normalisation (BN). The eighth candidate, `none`, is never part of a derived cell, and the supernet needs no module
for it: it contributes zero.

Every operation maps (B, C, H, W) to (B, C, H/stride, W/stride), padded so that stride 1 keeps the size.
"""

import torch
from torch import nn
from torch.nn import functional as F

from support.files import InputError
from support.separable import depthwise_pointwise

OPS = {
    "max_pool_3x3": lambda C, stride: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride: avg_pool_3x3(stride),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride),
}


def multiply_adds(C, stride):
    """Multiply-adds of each operation in `OPS` on C channels, for one pixel of its output: {name: number}."""
    separable = {k: C * (k * k + C) for k in (3, 5)}  # depthwise, then pointwise
    return {
        "max_pool_3x3": 0,
        "avg_pool_3x3": 0,
        "skip_connect": 0 if stride == 1 else C * C,
        "sep_conv_3x3": 2 * separable[3],
        "sep_conv_5x5": 2 * separable[5],
        "dil_conv_3x3": separable[3],
        "dil_conv_5x5": separable[5],
    }


def avg_pool_3x3(stride):
    """Averages over the pixels of the map; the padding is not counted."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


class DepthwisePointwise(nn.Module):
    """A depthwise k×k convolution, then a pointwise 1×1 one. Together they are a separable convolution.

    E: number of edges that are computed at once; their outputs are stacked edge by edge as E·C channels.
    """

    def __init__(self, C, kernel_size, stride=1, dilation=1, E=1):
        super().__init__()
        self.C, self.stride, self.dilation = C, stride, dilation
        # Both only hold weights. Grouped convolutions draw them by the fan-in of one group, as E modules would.
        self.depthwise = nn.Conv2d(E * C, E * C, kernel_size, groups=E * C, bias=False)
        self.pointwise = nn.Conv2d(E * C, E * C, 1, groups=E, bias=False)

    def forward(self, x):
        """x (B, C, H, W), read by all edges, or (B, E·C, H, W), each its own -> (B, E·C, H/stride, W/stride)."""
        weights = self.depthwise.weight, self.pointwise.weight
        return depthwise_pointwise(x, *weights, self.stride, self.dilation, self.training)


class SepConv(nn.Sequential):
    """sep_conv_k×k: ReLU, separable convolution, BN, and all three once more; the first one has the stride."""

    def __init__(self, C, kernel_size, stride):
        first, second = DepthwisePointwise(C, kernel_size, stride), DepthwisePointwise(C, kernel_size)
        super().__init__(nn.ReLU(), first, nn.BatchNorm2d(C), nn.ReLU(), second, nn.BatchNorm2d(C))


class DilConv(nn.Sequential):
    """dil_conv_k×k: ReLU, separable convolution whose kernel reads every second pixel (dilation 2), BN."""

    def __init__(self, C, kernel_size, stride):
        super().__init__(nn.ReLU(), DepthwisePointwise(C, kernel_size, stride, dilation=2), nn.BatchNorm2d(C))


class FactorizedReduce(nn.Module):
    """skip_connect with stride 2: (B, C_in, H, W), H and W even -> (B, C_out, H/2, W/2).

    ReLU, two 1×1 convolutions of stride 2, one on the even, one on the odd pixels, side by side; BN.
    """

    def __init__(self, C_in, C_out, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        x = self.relu(x)
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


# --- Around the operations: what both networks have besides


class ReLUConvBN(nn.Sequential):
    """ReLU, 1×1 convolution, BN: brings a cell's input to C_out channels."""

    def __init__(self, C_in, C_out, affine=True):
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=affine))


def stem(C):
    """The first layers: films (B, 3, H, W) -> (B, 3·C, H/4, W/4)."""
    conv = nn.Conv2d(3, 3 * C, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(3 * C), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def reduction_cells(layers):
    """Which of `layers` cells halve height and width and double the channels. Raises InputError for too few cells."""
    if layers < 4:
        raise InputError(f"{layers} cells: the three reduction cells need at least 4")
    return layers // 4, 2 * layers // 4, 3 * layers // 4


# --- For the supernet: one operation on all E edges that leave a node, outputs stacked as E·C channels, edge by edge.
# The operation's last BN is an EdgeBN, outside these modules; the others have no scale and shift (affine=False).


class EdgeBN(nn.BatchNorm2d):
    """BN over E·C stacked channels whose scale is the softmax weight of the edge: weight · BN(y)."""

    def __init__(self, channels):
        super().__init__(channels, affine=False)
        self.num_batches_tracked = None  # serves only a cumulative average, which is not used here

    def forward(self, y, scale):
        """y (B, E·C, H, W), scale (E·C,) -> (B, E·C, H, W)."""
        return F.batch_norm(y, self.running_mean, self.running_var, scale, None, self.training, self.momentum, self.eps)


class SepConvOnEdges(nn.Module):
    """sep_conv_k×k on E edges, from behind the first ReLU to before the last BN: (B, C, …) -> (B, E·C, …)."""

    def __init__(self, C, E, kernel_size, stride):
        super().__init__()
        self.first = DepthwisePointwise(C, kernel_size, stride, E=E)
        self.bn = nn.BatchNorm2d(E * C, affine=False)
        self.relu = nn.ReLU()
        self.second = DepthwisePointwise(C, kernel_size, E=E)

    def forward(self, x):
        return self.second(self.relu(self.bn(self.first(x))))


class FactorizedReduceOnEdges(nn.Module):
    """skip_connect with stride 2 on E edges, from behind the ReLU to before the BN: (B, C, …) -> (B, E·C, …)."""

    def __init__(self, C, E):
        super().__init__()
        self.E = E
        self.even = nn.Conv2d(C, E * C // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C, E * C // 2, 1, stride=2, bias=False)

    def forward(self, x):
        halves = self.even(x).chunk(self.E, dim=1), self.odd(x[:, :, 1:, 1:]).chunk(self.E, dim=1)
        return torch.cat([half for edge in zip(*halves, strict=True) for half in edge], dim=1)
