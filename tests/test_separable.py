"""The fast forms of separable convolutions compute what PyTorch's own two convolutions compute, to rounding."""

import pytest
import torch
from torch.nn import functional as F

from operations import DepthwisePointwise
from support import separable

TOLERANCE = 1e-9  # ‖difference‖ / ‖reference‖ in float64


def assert_close(ours, reference):
    assert ours.shape == reference.shape
    assert (ours - reference).norm() < TOLERANCE * reference.norm()


def inputs(E, C, k, pixels):
    """x (2, C, H, W) and the weights of E edges, drawn at random."""
    generator = torch.Generator().manual_seed(k)
    shapes = (2, C, pixels, pixels), (E * C, 1, k, k), (E * C, C, 1, 1)
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def reference(x, depthwise, pointwise, stride, dilation):
    """x (B, C, H, W), repeated for each edge, through two convolutions of PyTorch."""
    channels, C, k = len(depthwise), pointwise.shape[1], depthwise.shape[-1]
    x = x.repeat(1, channels // x.shape[1], 1, 1)
    between = F.conv2d(x, depthwise, None, stride, dilation * (k // 2), dilation, groups=channels)
    return F.conv2d(between, pointwise, groups=channels // C)


@pytest.mark.parametrize("pixels", [2, 4, 14])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("k", "dilation"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_output_and_gradients_are_those_of_two_convolutions(k, dilation, stride, pixels):
    """Dense kernels, kernels without their outer weights, and even pixels alone change nothing but rounding."""
    for C in (4, 12, 24):  # with 4 channels both kernels are composed, with 12 the smaller one, with 24 none
        tensors = inputs(2, C, k, pixels)
        expected = reference(*tensors, stride, dilation)
        assert_close(separable.depthwise_pointwise(*tensors, stride, dilation, training=False), expected)
        ours = separable.depthwise_pointwise(*tensors, stride, dilation, training=True)
        assert_close(ours, expected)
        gradients = (torch.autograd.grad(y.square().sum(), tensors) for y in (ours, expected))
        for gradient, other in zip(*gradients, strict=True):
            assert_close(gradient, other)


@pytest.mark.parametrize("way", [separable.plain, separable.composed, separable.Recomputing.apply])
def test_each_form_computes_the_same_for_edges_that_share_their_input_and_for_others(way):
    x, *weights = inputs(3, 4, 5, 8)
    assert_close(way(x, *weights, 1, 2), reference(x, *weights, 1, 2))
    if way is not separable.composed:
        x = torch.cat([x, 2 * x, 3 * x], dim=1)
        assert_close(way(x, *weights, 1, 1), reference(x, *weights, 1, 1))


@pytest.mark.parametrize("pixels", [2, 3, 4, 7, 8])
@pytest.mark.parametrize(("k", "stride", "dilation"), [(k, *form) for k in (3, 5) for form in ((1, 1), (1, 2), (2, 1))])
def test_recomputing_has_the_first_and_second_derivatives_of_two_convolutions(k, stride, dilation, pixels):
    pixels += pixels % stride  # maps that are halved are even
    for E in (1, 3):
        tensors = inputs(E, 4, k, pixels)
        outputs = separable.Recomputing.apply(*tensors, stride, dilation), reference(*tensors, stride, dilation)
        gradients = [torch.autograd.grad(y, tensors, y.detach() + 1, create_graph=True) for y in outputs]
        twice = [torch.autograd.grad(sum(g.square().sum() for g in some), tensors) for some in gradients]
        for ours, expected in [*zip(*gradients, strict=True), *zip(*twice, strict=True)]:
            assert_close(ours, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_stay_channels_last(stride):
    """Otherwise all that autograd does next would be slower; no value would show it."""
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = DepthwisePointwise(32, 5, stride, E=2)(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
