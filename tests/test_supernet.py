"""The fast supernet computes what the textbook one computes: outputs, gradients of both orders, statistics."""

import pytest
import torch
from torch.nn import functional as F

import model_search
import textbook
from architect import Architect
from genotypes import EDGES, PRIMITIVES
from model_search import EDGES_FROM
from operations import Separable, SeparableConv

SIZES = [(4, 5, 32), (20, 4, 32), (36, 4, 96)]  # C, cells, pixels: every branch of operations.Separable
CLASSES = 3
TOLERANCE = 1e-9  # ‖difference‖ / ‖reference‖ in float64


def textbook_view(fast, tensor_of):
    """{name in the textbook: slice of the fast network's tensor}; tensor_of(name) gives the tensor or None."""
    view = {}

    def put(name, source, rows=slice(None)):
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            tensor = tensor_of(f"{source}.{suffix}")
            if tensor is not None:
                view[f"{name}.{suffix}"] = tensor[rows]

    def put_reduce(name, source, rows=slice(None), bn=None, bn_rows=slice(None)):
        put(f"{name}.conv1", f"{source}.even", rows)
        put(f"{name}.conv2", f"{source}.odd", rows)
        put(f"{name}.bn", bn or f"{source}.bn", bn_rows)

    for part in ("stem.0", "stem.1", "classifier"):
        put(part, part)
    for k, cell in enumerate(fast.cells):
        at = f"cells.{k}"
        for pre in ("preprocess0", "preprocess1"):
            put_reduce(f"{at}.{pre}", f"{at}.{pre}")
            put(f"{at}.{pre}.1", f"{at}.{pre}.1")
            put(f"{at}.{pre}.2", f"{at}.{pre}.2")
        for e, (i, _) in enumerate(EDGES):
            source, C, t = f"{at}.sources.{i}", cell.sources[i].C, EDGES_FROM[i].index(e)
            rows, half = slice(t * C, (t + 1) * C), slice(t * C // 2, (t + 1) * C // 2)
            for op, name in enumerate(PRIMITIVES):
                there, here = f"{at}.edges.{e}.operations.{op}", f"{source}.convs.{name}"
                if name == "skip_connect":
                    put_reduce(there, here, half, f"{source}.bns.{name}", rows)
                elif "pool" in name:
                    put(f"{there}.1", f"{source}.plain.{name}.1")
                elif "sep" in name:
                    put(f"{there}.1", f"{here}.first.depthwise", rows)
                    put(f"{there}.2", f"{here}.first.pointwise", rows)
                    put(f"{there}.3", f"{here}.bn", rows)
                    put(f"{there}.5", f"{here}.second.depthwise", rows)
                    put(f"{there}.6", f"{here}.second.pointwise", rows)
                    put(f"{there}.7", f"{source}.bns.{name}", rows)
                elif "dil" in name:
                    put(f"{there}.1", f"{here}.depthwise", rows)
                    put(f"{there}.2", f"{here}.pointwise", rows)
                    put(f"{there}.3", f"{source}.bns.{name}", rows)
    return view


def pair(C, layers, seed=0):
    """A fast and a textbook supernet in float64 with the same weights and the same, uneven, α."""
    torch.manual_seed(seed)
    fast = model_search.Network(C, CLASSES, layers).double()
    plain = textbook.TextbookNetwork(C, CLASSES, layers).double()
    for alpha, other in zip(fast.arch_parameters(), plain.arch_parameters(), strict=True):
        alpha.data.normal_()
        other.data.copy_(alpha.data)
    weights = textbook_view(fast, fast.state_dict().get)
    names = {n for n, _ in plain.named_parameters()} - {"alphas_normal", "alphas_reduce"}
    assert names <= weights.keys(), "the view misses weights of the textbook network"
    plain.load_state_dict(weights, strict=False)
    return fast, plain


def batch(pixels, films=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(films, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (films, CLASSES), generator=generator).double()


def distance(a, b, floor=0.0):
    return ((a - b).norm() / b.norm().clamp(min=floor)).item()


criterion = F.binary_cross_entropy_with_logits


@pytest.mark.parametrize(("C", "layers", "pixels"), SIZES)
def test_outputs_weight_gradients_and_statistics_equal_the_textbook(C, layers, pixels):
    fast, plain = pair(C, layers)
    films, labels = batch(pixels)
    outputs = fast(films), plain(films)
    assert distance(*outputs) < TOLERANCE
    for logits in outputs:
        criterion(logits, labels).backward()

    for alpha, other in zip(fast.arch_parameters(), plain.arch_parameters(), strict=True):
        assert distance(alpha.grad, other.grad) < TOLERANCE
    parameters = dict(fast.named_parameters())
    gradients = textbook_view(fast, lambda name: parameters[name].grad if name in parameters else None)
    for name, p in plain.named_parameters():
        if not name.startswith("alphas"):
            assert distance(gradients[name], p.grad) < TOLERANCE, name

    buffers = textbook_view(fast, dict(fast.named_buffers()).get)
    statistics = {n: b for n, b in plain.named_buffers() if "running" in n}
    assert statistics.keys() == buffers.keys()
    for name, b in statistics.items():
        assert distance(buffers[name], b, floor=1e-6) < TOLERANCE, name  # some means are 0 but for rounding
    assert distance(fast.eval()(films), plain.eval()(films)) < TOLERANCE


@pytest.mark.parametrize(("C", "layers", "pixels"), SIZES[:2])
@pytest.mark.parametrize("exact", [False, True])
def test_second_order_gradients_equal_the_textbook(C, layers, pixels, exact):
    gradients = []
    for network in pair(C, layers):
        # Differences over ReLU kinks would magnify rounding beyond any tolerance: the smooth twin has none.
        textbook.smooth_twin(network)
        optimizer = torch.optim.SGD(network.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
        architect = Architect(network, criterion, optimizer, None, second_order=True, exact=exact)
        gradients.append(architect.second(batch(pixels), batch(pixels, seed=2), xi=0.025)[1])
    for ours, reference in zip(*gradients, strict=True):
        assert distance(ours, reference) < TOLERANCE


@pytest.mark.parametrize("pixels", [2, 3, 4, 7, 8])
@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (5, 1, 1), (3, 1, 2), (5, 1, 2), (3, 2, 1), (5, 2, 1)]
)
@pytest.mark.parametrize("E", [1, 3])
def test_gradients_of_separable_convolutions_equal_the_librarys_twice(E, size, stride, dilation, pixels):
    pixels += pixels % stride  # maps that are halved are even
    generator = torch.Generator().manual_seed(size)
    C = 4
    x, taps, pointwise = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, C, pixels, pixels), (E * C, 1, size, size), (E * C, C, 1, 1))
    )
    inputs = x, taps, pointwise
    between = F.conv2d(x.repeat(1, E, 1, 1), taps, None, stride, dilation * (size // 2), dilation, groups=E * C)
    plain = F.conv2d(between, pointwise, groups=E)
    ours = SeparableConv.apply(*inputs, stride, dilation)
    assert distance(ours, plain) < TOLERANCE
    gradients = [torch.autograd.grad(y, inputs, y.detach() + 1, create_graph=True) for y in (ours, plain)]
    for first, second in zip(*gradients, strict=True):
        assert distance(first, second) < TOLERANCE
    twice = [torch.autograd.grad(sum(g.square().sum() for g in some), inputs) for some in gradients]
    for first, second in zip(*twice, strict=True):
        assert distance(first, second) < TOLERANCE


def test_reference_recipe_has_the_published_number_of_weights():
    assert sum(p.numel() for p in model_search.Network(16, 14, 12).weight_parameters()) == 7_090_494


def test_initial_weights_are_drawn_as_those_of_one_module_per_edge():
    torch.manual_seed(0)
    fast, plain = model_search.Network(16, CLASSES, 4), textbook.TextbookNetwork(16, CLASSES, 4)
    view = textbook_view(fast, fast.state_dict().get)
    for name, p in plain.named_parameters():
        if name.startswith("cells") and p.numel() > 1000:
            assert abs(view[name].std() / p.std() - 1) < 0.1, name
            assert abs(view[name].abs().max() / p.abs().max() - 1) < 0.02, name


def test_too_few_cells_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        model_search.Network(4, CLASSES, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_separable_convolutions_stay_channels_last(stride):
    # Otherwise everything up the graph runs in mixed layouts: nothing is wrong then but the speed.
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = Separable(32, 5, stride, E=2)(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
