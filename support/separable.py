"""Fast forms of a separable convolution: a depthwise convolution, then a pointwise (1×1) one.

`depthwise_pointwise` chooses among three: `composed`, `Recomputing` and `plain`. They agree up to rounding.

Shapes: E separable convolutions are computed at once, those of E edges of a cell, with C output channels each. Outputs
are stacked edge by edge as E·C channels. Weights: depthwise (E·C, 1, k, k) with odd k, pointwise (E·C, C, 1, 1).
With x (B, C, H, W) all edges read the same x. With x (B, E·C, H, W) each edge reads its own C channels.
"""

from functools import reduce

import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

# One dense convolution is faster than the two up to this k²·C, its multiplications per output value.
MAX_COMPOSED = 144


def depthwise_pointwise(x, depthwise, pointwise, stride, dilation, training):
    """x (B, C, H, W) or (B, E·C, H, W) -> (B, E·C, H/stride, W/stride), padded by dilation · (k // 2)."""
    if stride == dilation == 2:  # an ordinary convolution of the even pixels, because it reads no others
        x, stride, dilation = x[:, :, ::2, ::2], 1, 1
    depthwise = without_outer_ring(depthwise, max(x.shape[-2:]), dilation)

    shared = x.shape[1] == pointwise.shape[1]
    if training and shared and depthwise.shape[-1] ** 2 * pointwise.shape[1] <= MAX_COMPOSED:
        return composed(x, depthwise, pointwise, stride, dilation)
    if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return Recomputing.apply(x, depthwise, pointwise, stride, dilation)
    return plain(x, depthwise, pointwise, stride, dilation)


def without_outer_ring(depthwise, size, dilation):
    """The kernels without the weights that meet only padding on a map of size × size pixels, as of 2×2 and 4×4."""
    centre = depthwise.shape[-1] // 2
    reach = min(centre, (size - 1) // dilation)
    near = slice(centre - reach, centre + reach + 1)
    return depthwise if reach == centre else depthwise[:, :, near, near]


def plain(x, depthwise, pointwise, stride, dilation):
    """The two convolutions, one after the other."""
    between = depthwise_conv(x, depthwise, stride, dilation)
    return F.conv2d(between, pointwise, groups=len(pointwise) // pointwise.shape[1])


def composed(x, depthwise, pointwise, stride, dilation):
    """One convolution with a dense kernel, the product of the two, for x (B, C, H, W).

    It needs more multiplications, but neither E copies of x nor memory for what lies between the two.
    """
    C, k = pointwise.shape[1], depthwise.shape[-1]
    mixing = pointwise.view(-1, C, 1, 1, C)  # (edge, output, 1, 1, input)
    kernels = depthwise.reshape(-1, 1, C, k, k).movedim(2, -1)  # (edge, 1, k, k, input)
    kernel = (mixing * kernels).flatten(0, 1).movedim(-1, 1)  # (E·C, C, k, k)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, kernel, None, stride, dilation * (k // 2), dilation)


class Recomputing(torch.autograd.Function):
    """`plain`, except that the backward pass computes again what lies between the two convolutions.

    To store it would take two fifths of the supernet's memory, and a pass without weight gradients does not need it.
    The gradients are computed by convolutions that are fast on a CPU (`depthwise_gradients`).
    """

    @staticmethod
    def forward(ctx, x, depthwise, pointwise, stride, dilation):
        ctx.save_for_backward(x, depthwise, pointwise)
        ctx.stride, ctx.dilation = stride, dilation
        return plain(x, depthwise, pointwise, stride, dilation)

    @staticmethod
    def backward(ctx, grad):
        x, depthwise, pointwise = ctx.saved_tensors
        E = len(pointwise) // pointwise.shape[1]
        # torch.nn.grad.conv2d_input would do the same, but leave channels-last: a step would take a tenth longer.
        transposed = pointwise.view(E, -1, pointwise.shape[1]).mT.reshape_as(pointwise)
        between_grad = F.conv2d(grad, transposed, groups=E)
        grads = depthwise_gradients(x, depthwise, ctx.stride, ctx.dilation, between_grad, ctx.needs_input_grad)
        pointwise_grad = None
        if ctx.needs_input_grad[2]:  # for each edge a product of matrices, (C, B·H·W) times (B·H·W, C)
            between = depthwise_conv(x, depthwise, ctx.stride, ctx.dilation)
            pixels = [y.movedim(1, -1).reshape(-1, E, y.shape[1] // E).transpose(0, 1) for y in (grad, between)]
            pointwise_grad = (pixels[0].transpose(1, 2) @ pixels[1]).view_as(pointwise)
        return *grads, pointwise_grad, None, None


def depthwise_conv(x, depthwise, stride, dilation):
    """The first of the two convolutions: x (B, C, H, W) or (B, E·C, H, W) -> (B, E·C, H/stride, W/stride)."""
    padding = dilation * (depthwise.shape[-1] // 2)
    x = repeat_channels(x, len(depthwise))
    return F.conv2d(x, depthwise, None, stride, padding, dilation, groups=len(depthwise))


def depthwise_gradients(x, depthwise, stride, dilation, grad, needed):
    """The gradients of `depthwise_conv` for x and for the weights, each None unless `needed`. grad: that of its output.

    oneDNN's own gradients are slow for dilated kernels and for kernels of more than three columns. On 2 cores with
    AVX2, 16 films and 64 channels of 56×56 pixels, they take 17 ms for 5×5 and 97 ms for dilated 5×5; forward takes 2.
    """
    x_grad = weight_grad = None
    k = depthwise.shape[-1]
    if needed[0]:
        if stride == 1:  # a convolution with the flipped kernel
            x_grad = depthwise_conv(grad, depthwise.flip(2, 3), 1, dilation)
        else:  # output_padding is 1 because height and width of x are even
            x_grad = F.conv_transpose2d(grad, depthwise, None, stride, k // 2, 1, len(depthwise))
        x_grad = reduce(torch.add, x_grad.split(x.shape[1], dim=1))  # over the edges; sum() would lose channels-last
    if needed[1]:
        if dilation == 2:  # an ordinary convolution for each parity of row and column: two parities never meet
            x, grad = split_by_parity(x), split_by_parity(grad)
        three_columns = [slice(first, min(first + 3, k)) for first in range(0, k, 3)]
        parts = [gradient_of_columns(x, depthwise, stride, grad, columns) for columns in three_columns]
        weight_grad = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
    return x_grad, weight_grad


def gradient_of_columns(x, depthwise, stride, grad, columns):
    """The gradient for some columns of depthwise weights without dilation: (E·C, 1, k, columns)."""
    k = depthwise.shape[-1]
    padding, last = k // 2, columns.stop - 1
    # oneDNN's weight gradient takes 2 to 6 times as long when it pads by the width of the map: F.pad does all of it.
    x = F.pad(x, (padding - columns.start, last - padding, padding, padding))
    x = repeat_channels(x, len(depthwise))
    return conv2d_weight(x, depthwise[..., columns].shape, grad, stride, groups=len(depthwise))


def repeat_channels(x, channels):
    """x with its channels repeated up to `channels`. cat keeps channels-last, repeat() would not."""
    copies = channels // x.shape[1]
    return torch.cat([x] * copies, dim=1) if copies > 1 else x


def split_by_parity(x):
    """(B, C, H, W) -> (4·B, C, ⌈H/2⌉, ⌈W/2⌉): the pixels by parity of row and column; odd sizes end in zeros."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
