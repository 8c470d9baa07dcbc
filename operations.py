"""The candidate operations of DARTS (section 3.1 of the paper), one module each.

`OPS[name](C, stride)` builds the operation named `name` on C channels, as the derived network uses it. The
supernet evaluates the same operations for all edges that leave a node at once: the second half of the file.
All inputs and outputs have shape (B, C, H, W) and (B, C, H // stride, W // stride).
"""

from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

OPS = {
    "none": lambda C, stride: Zero(stride),
    "max_pool_3x3": lambda C, stride: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride: avg_pool_3x3(stride),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: SepConv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: SepConv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: DilConv(C, 3, stride),
    "dil_conv_5x5": lambda C, stride: DilConv(C, 5, stride),
}


def total(tensors):
    """Their sum; the builtin would start from 0, a pass over memory more, and Tensor.sum() lose channels-last."""
    return reduce(torch.add, tensors)


def avg_pool_3x3(stride):
    """Averages over the pixels that exist: the padding is not counted."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def stem(C):
    """The first layers of both networks: films (B, 3, H, W) -> (B, 3·C, H/4, W/4)."""
    conv = nn.Conv2d(3, 3 * C, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(3 * C), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def reduction_cells(layers):
    """Which of `layers` cells halve height and width and double the channels. Raises ValueError for too few cells."""
    if layers < 4:
        raise ValueError(f"{layers} cells: the three reduction cells need at least 4")
    return layers // 4, 2 * layers // 4, 3 * layers // 4


class Zero(nn.Module):
    """`none`: no connection."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class ReLUConvBN(nn.Sequential):
    """ReLU, 1×1 convolution, batch normalisation: brings a cell's input to C_out channels."""

    def __init__(self, C_in, C_out, affine=True):
        super().__init__(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=affine))


def depthwise(x, taps, stride, dilation):
    """x (B, C, H, W), taps (E·C, 1, k, k), edge by edge -> (B, E·C, H/stride, W/stride)."""
    reach = dilation * (taps.shape[-1] // 2)
    return F.conv2d(copies(x, taps), taps, None, stride, reach, dilation, groups=len(taps))


class SeparableConv(torch.autograd.Function):
    """A depthwise and a pointwise convolution; what lies between them is computed again instead of stored.

    Stored, it would be two fifths of the supernet's memory. Where the pointwise weights want no gradient it is not
    needed at all. Gradients are convolutions that a CPU is fast at, see `depthwise_grads`.
    """

    @staticmethod
    def forward(ctx, x, taps, pointwise, stride, dilation):
        """x, taps: as in `depthwise`; pointwise (E·C, C, 1, 1): each edge mixes its own C channels."""
        ctx.save_for_backward(x, taps, pointwise)
        ctx.stride, ctx.dilation = stride, dilation
        return F.conv2d(depthwise(x, taps, stride, dilation), pointwise, groups=edges(pointwise))

    @staticmethod
    def backward(ctx, grad):
        x, taps, pointwise = ctx.saved_tensors
        E = edges(pointwise)
        # By the transposed matrices. torch.nn.grad.conv2d_input would leave channels-last here: a step a tenth slower.
        transposed = pointwise.view(E, -1, pointwise.shape[1]).mT.reshape_as(pointwise)
        between_grad = F.conv2d(grad, transposed, groups=E)
        grads = depthwise_grads(x, taps, ctx.stride, ctx.dilation, between_grad, ctx.needs_input_grad)
        pointwise_grad = None
        if ctx.needs_input_grad[2]:  # edge by edge a product of matrices, (C, B·H·W) times (B·H·W, C)
            between = depthwise(x, taps, ctx.stride, ctx.dilation)
            pixels = [y.movedim(1, -1).reshape(-1, E, y.shape[1] // E).transpose(0, 1) for y in (grad, between)]
            pointwise_grad = (pixels[0].transpose(1, 2) @ pixels[1]).view_as(pointwise)
        return *grads, pointwise_grad, None, None


def depthwise_grads(x, taps, stride, dilation, grad, needed):
    """The gradients of `depthwise` for x and taps, each None unless `needed`, given that of its output.

    oneDNN's own are slow for dilated kernels and those of more than three columns. On 2 cores with AVX2, 16 films and
    64 channels of 56×56 px: 17 ms for 5×5 and 97 ms for dilated 5×5, against 2 ms forward.
    """
    x_grad = taps_grad = None
    if needed[0]:
        if stride == 1:  # a convolution with the flipped kernel
            x_grad = depthwise(grad, taps.flip(2, 3), 1, dilation)
        else:  # height and width are even: one row and column more than stride and taps reach
            x_grad = F.conv_transpose2d(grad, taps, None, stride, taps.shape[-1] // 2, 1, len(taps))
        x_grad = total(x_grad.split(x.shape[1], dim=1))
    if needed[1]:
        if dilation == 2:  # reads pixels of equal parity: an ordinary convolution within each of four phases
            x, grad = phases(x), phases(grad)
        size = taps.shape[-1]
        columns = [slice(first, min(first + 3, size)) for first in range(0, size, 3)]
        parts = [columns_grad(x, taps, stride, grad, some) for some in columns]
        taps_grad = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
    return x_grad, taps_grad


def columns_grad(x, taps, stride, grad, columns):
    """The gradient of some columns of undilated taps: shape (E·C, 1, k, columns)."""
    size = taps.shape[-1]
    reach, last = size // 2, columns.stop - 1
    # All padding by hand: where it is as wide as the map, oneDNN's weight gradient is 2 to 6 times slower.
    x = F.pad(x, (reach - columns.start, last - reach, reach, reach))
    return conv2d_weight(copies(x, taps), taps[..., columns].shape, grad, stride, groups=len(taps))


def copies(x, taps):
    """x (B, C, H, W), repeated to the E·C channels of `taps`; cat keeps channels-last, which repeat() does not."""
    E = len(taps) // x.shape[1]
    return torch.cat([x] * E, dim=1) if E > 1 else x


def phases(x):
    """(B, C, H, W) -> (4·B, C, ⌈H/2⌉, ⌈W/2⌉): the pixels of each parity of row and column, zeros at odd ends."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def edges(pointwise):
    """E, of grouped 1×1 weights (E·C, C, 1, 1)."""
    return len(pointwise) // pointwise.shape[1]


class Separable(nn.Module):
    """A depthwise k×k and a pointwise 1×1 convolution; for E edges at once, stacked as E·C channels, edge by edge.

    `shared`: all E edges read the same C channels; otherwise each has its own.
    """

    def __init__(self, C, kernel_size, stride=1, dilation=1, E=1, shared=True):
        super().__init__()
        self.C, self.E, self.stride, self.dilation, self.shared = C, E, stride, dilation, shared or E == 1
        # Both only hold weights. A grouped convolution draws them from the fan-in of one group: as E modules would.
        self.depthwise = nn.Conv2d(E * C, E * C, kernel_size, groups=E * C, bias=False)
        self.pointwise = nn.Conv2d(E * C, E * C, 1, groups=E, bias=False)

    def forward(self, x):
        """x (B, C, H, W), or (B, E·C, H, W) where not `shared` -> (B, E·C, H/stride, W/stride)."""
        C, E, stride, dilation = self.C, self.E, self.stride, self.dilation
        if stride == dilation == 2:  # reads even pixels only: an ordinary convolution of those
            x, stride, dilation = x[:, :, ::2, ::2], 1, 1

        # Taps that meet only padding, wherever the kernel stands, are cut off (maps of 2×2 and 4×4 pixels).
        taps, pointwise = self.depthwise.weight, self.pointwise.weight
        centre, size = taps.shape[-1] // 2, max(x.shape[-2:])
        reach = min(centre, (size - 1) // dilation)
        if reach < centre:
            near = slice(centre - reach, centre + reach + 1)
            taps = taps[:, :, near, near]

        if self.training and self.shared and taps.shape[-1] ** 2 * C <= 144:
            # Nothing stands between the two convolutions, so they compose to one with a dense kernel. It takes more
            # multiplications, but x is not copied E times and nothing in between is stored.
            mixing = pointwise.view(E, C, 1, 1, C)  # (edge, output, 1, 1, input)
            kernels = taps.reshape(E, 1, C, *taps.shape[-2:]).movedim(2, -1)  # (edge, 1, k, k, input)
            kernel = (mixing * kernels).flatten(0, 1).movedim(-1, 1)  # (E·C, C, k, k)
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, kernel, None, stride, reach * dilation, dilation)
        if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return SeparableConv.apply(x, taps, pointwise, stride, dilation)
        return F.conv2d(depthwise(x, taps, stride, dilation), pointwise, groups=E)


class SepConv(nn.Sequential):
    """Separable convolution, applied twice: ReLU, depthwise k×k, pointwise 1×1, BN; the stride in the first."""

    def __init__(self, C, kernel_size, stride):
        first, second = Separable(C, kernel_size, stride), Separable(C, kernel_size)
        super().__init__(nn.ReLU(), first, nn.BatchNorm2d(C), nn.ReLU(), second, nn.BatchNorm2d(C))


class DilConv(nn.Sequential):
    """Dilated separable convolution: ReLU, depthwise k×k with every second pixel, pointwise 1×1, BN."""

    def __init__(self, C, kernel_size, stride):
        super().__init__(nn.ReLU(), Separable(C, kernel_size, stride, dilation=2), nn.BatchNorm2d(C))


class FactorizedReduce(nn.Module):
    """Halves height and width (both even) with two 1×1 convolutions, one on the even, one on the odd pixels."""

    def __init__(self, C_in, C_out, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        x = self.relu(x)
        return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


# --- Parts of the supernet: one operation on E edges that leave the same node, outputs stacked as E·C channels, edge
# by edge. BN has no scale and shift of its own.


class EdgeBN(nn.BatchNorm2d):
    """BN over E·C stacked channels whose scale is the weight of their edge: w · BN(y)."""

    def __init__(self, channels):
        super().__init__(channels, affine=False)
        self.num_batches_tracked = None  # serves only a cumulative average, which is not used here

    def forward(self, y, scale):
        """y (B, E·C, H, W), scale (E·C,) -> (B, E·C, H, W)."""
        return F.batch_norm(y, self.running_mean, self.running_var, scale, None, self.training, self.momentum, self.eps)


class SepConvs(nn.Module):
    """sep_conv_k×k on E edges, before the last BN; x is past the ReLU."""

    def __init__(self, C, E, kernel_size, stride):
        super().__init__()
        self.first = Separable(C, kernel_size, stride, E=E)
        self.bn = nn.BatchNorm2d(E * C, affine=False)
        self.relu = nn.ReLU()
        self.second = Separable(C, kernel_size, E=E, shared=False)

    def forward(self, x):
        return self.second(self.relu(self.bn(self.first(x))))


class FactorizedReduces(nn.Module):
    """skip_connect with stride 2 on E edges, before the BN; x is past the ReLU."""

    def __init__(self, C, E):
        super().__init__()
        self.E = E
        self.even = nn.Conv2d(C, E * C // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C, E * C // 2, 1, stride=2, bias=False)

    def forward(self, x):
        halves = self.even(x).chunk(self.E, dim=1), self.odd(x[:, :, 1:, 1:]).chunk(self.E, dim=1)
        return torch.cat([half for edge in zip(*halves, strict=True) for half in edge], dim=1)
