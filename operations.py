"""The candidate operations of DARTS (section 3.1 of the paper, arXiv 1806.09055), one module each.

`OPS[name](C, stride)` makes the operation `name` on C channels: a separable convolution (applied twice), a dilated
separable convolution, a pool, or the identity. Those with convolutions have the order ReLU, convolution, batch
normalisation (BN). The eighth candidate, `none`, has no module: a derived cell never has it, and in the supernet it
adds zero.

Every operation maps (B, C, H, W) to (B, C, H/stride, W/stride); its padding keeps the size at stride 1.
"""

import torch
from torch import nn

from support.files import InputError
from support.separable import depthwise_pointwise

OPS = {
    "max_pool_3x3": lambda C, stride: nn.MaxPool2d(3, stride, padding=1),
    # A mean over those of the 3×3 pixels that lie within the map.
    "avg_pool_3x3": lambda C, stride: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride),
}


def multiply_adds(C, stride):
    """Multiply-adds per output pixel of each operation in `OPS` on C channels: {name: number}."""
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


class DepthwisePointwise(nn.Module):
    """A depthwise k×k convolution, then a pointwise 1×1 one. Together they are a separable convolution.

    E: the number of edges that it computes at once; their outputs are stacked edge by edge as E·C channels.
    """

    def __init__(self, C, kernel_size, stride=1, dilation=1, E=1):
        super().__init__()
        self.stride, self.dilation = stride, dilation
        # Both only hold weights. A grouped convolution scales its initial weights by the inputs of one group, so they
        # are distributed as those of E modules would be.
        self.depthwise = nn.Conv2d(E * C, E * C, kernel_size, groups=E * C, bias=False)
        self.pointwise = nn.Conv2d(E * C, E * C, 1, groups=E, bias=False)

    def forward(self, x):
        """x (B, C, H, W) for all edges, or (B, E·C, H, W) with C for each edge -> (B, E·C, H/stride, W/stride)."""
        weights = self.depthwise.weight, self.pointwise.weight
        return depthwise_pointwise(x, *weights, self.stride, self.dilation, self.training)


class ReLUFirst(nn.Sequential):
    """A ReLU, then other modules. Where several of these read one tensor, its ReLU is shared through `after_relu`."""

    def after_relu(self, x):
        """The output for an x that is after the ReLU already."""
        _, *after = self
        for module in after:
            x = module(x)
        return x


class SepConv(ReLUFirst):
    """sep_conv_k×k: ReLU, separable convolution, BN, then all three once more. The first convolution has the stride."""

    def __init__(self, C, kernel_size, stride):
        first, second = DepthwisePointwise(C, kernel_size, stride), DepthwisePointwise(C, kernel_size)
        super().__init__(nn.ReLU(), first, nn.BatchNorm2d(C), nn.ReLU(), second, nn.BatchNorm2d(C))


class DilConv(ReLUFirst):
    """dil_conv_k×k: ReLU, separable convolution whose kernel reads every second pixel (dilation 2), BN."""

    def __init__(self, C, kernel_size, stride):
        super().__init__(nn.ReLU(), DepthwisePointwise(C, kernel_size, stride, dilation=2), nn.BatchNorm2d(C))


class FactorizedReduce(nn.Module):
    """skip_connect of stride 2: (B, C_in, H, W) with even H and W -> (B, C_out, H/2, W/2).

    ReLU; two 1×1 convolutions of stride 2, on the even and on the odd pixels, make half of the channels each; BN.
    """

    def __init__(self, C_in, C_out, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.odd = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        return self.after_relu(self.relu(x))

    def after_relu(self, x):
        """The output for an x that is after the ReLU already."""
        even, odd = even_and_odd_pixels(x)
        return self.bn(torch.cat([self.even(even), self.odd(odd)], dim=1))


def even_and_odd_pixels(x):
    """Every second pixel from the first and from the second row and column: (B, C, H, W) -> two of (B, C, H/2, W/2).

    A 1×1 convolution of stride 2 reads the same pixels, but takes up to four times as long: its gradient is not
    channels-last, and neither is that of a slice x[:, :, ::2, ::2].
    """
    pixels = x.movedim(1, -1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
    return [pixels[:, :, parity, :, parity].movedim(-1, 1) for parity in (0, 1)]


# --- The parts that both networks have beside the operations


class ReLUConvBN(ReLUFirst):
    """ReLU, 1×1 convolution, BN bring a cell's input to C_out channels: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, C_in, C_out, affine=True):
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=affine))


def stem(C):
    """The first layers: films (B, 3, H, W) -> (B, 3·C, H/4, W/4)."""
    conv = nn.Conv2d(3, 3 * C, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(3 * C), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def reduction_cells(layers):
    """The numbers of the three cells, of `layers` cells in all, that halve height and width and double the channels.

    Raises InputError for fewer than 4 cells.
    """
    if layers < 4:
        raise InputError(f"{layers} cells: the three reduction cells need at least 4")
    return layers // 4, 2 * layers // 4, 3 * layers // 4
