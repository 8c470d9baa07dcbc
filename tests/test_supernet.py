"""The fast supernet computes what the textbook one computes: outputs, gradients of both orders, statistics."""

import pytest
import torch
from torch.nn import functional as F

import model_search
import textbook
from architect import Architect
from genotypes import EDGES, PRIMITIVES
from model_search import EDGES_FROM
from operations import multiply_adds

# C, cells, pixels: every way of support.separable
SIZES = [(4, 5, 32), (20, 4, 32), pytest.param(36, 4, 96, marks=pytest.mark.long)]
CLASSES = 3
TOLERANCE = 1e-9  # ‖difference‖ / ‖reference‖ in float64


# Parts of an operation in textbook.OPERATIONS and in model_search.MixedEdges; `bns` has the operation's last BN.
PARTS = {
    "max": {"1": "plain.{}.1"},
    "avg": {"1": "plain.{}.1"},
    "skip": {"conv1": "convs.{}.even", "conv2": "convs.{}.odd", "bn": "bns.{}"},
    "sep": {
        "1": "convs.{}.first.depthwise",
        "2": "convs.{}.first.pointwise",
        "3": "convs.{}.bn",
        "5": "convs.{}.second.depthwise",
        "6": "convs.{}.second.pointwise",
        "7": "bns.{}",
    },
    "dil": {"1": "convs.{}.depthwise", "2": "convs.{}.pointwise", "3": "bns.{}"},
}


def modules_of_both(fast):
    """(module in the textbook, module of the fast network, its rows there) for all that have weights or statistics."""
    everything = slice(None)
    for part in ("stem.0", "stem.1", "classifier"):
        yield part, part, everything
    for k, cell in enumerate(fast.cells):
        for pre in (f"cells.{k}.preprocess0", f"cells.{k}.preprocess1"):  # ReLUConvBN or FactorizedReduce
            for there, here in (("1", "1"), ("2", "2"), ("conv1", "even"), ("conv2", "odd"), ("bn", "bn")):
                yield f"{pre}.{there}", f"{pre}.{here}", everything
        for e, (i, _) in enumerate(EDGES):
            C, place = cell.sources[i].C, EDGES_FROM[i].index(e)
            for op, name in enumerate(PRIMITIVES[1:], start=1):
                for there, here in PARTS[name.split("_")[0]].items():
                    width = C // 2 if there.startswith("conv") else C
                    rows = everything if "pool" in name else slice(place * width, (place + 1) * width)
                    yield (
                        f"cells.{k}.edges.{e}.operations.{op}.{there}",
                        f"cells.{k}.sources.{i}.{here.format(name)}",
                        rows,
                    )


def textbook_view(fast, tensor_of):
    """{name in the textbook: slice of the fast network's tensor}; tensor_of(name) gives the tensor or None."""
    view = {}
    for there, here, rows in modules_of_both(fast):
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            tensor = tensor_of(f"{here}.{suffix}")
            if tensor is not None:
                view[f"{there}.{suffix}"] = tensor[rows]
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


def test_a_temperature_divides_alpha_in_both_cells_and_leaves_the_derived_cells():
    tau = 0.05
    fast, plain = pair(4, 4)
    derived = fast.genotype()
    fast.temperature = tau
    for alpha in plain.arch_parameters():
        alpha.data /= tau
    films, labels = batch(32)
    outputs = fast(films), plain(films)
    assert distance(*outputs) < TOLERANCE
    for logits in outputs:
        criterion(logits, labels).backward()
    for alpha, other, logits in zip(fast.arch_parameters(), plain.arch_parameters(), fast.edge_logits(), strict=True):
        assert distance(alpha.grad, other.grad / tau) < TOLERANCE and torch.equal(logits, other)
    fast.temperature = 1e-3  # softmax(α / τ) is 1 for an operation of every edge: no edge would be the strongest
    assert fast.genotype() == derived


def test_the_cost_is_that_of_the_operations_which_alpha_weights():
    network = model_search.Network(4, CLASSES, 4)
    inputs = sum(source < 2 for source, _ in EDGES)  # in a reduction cell these edges have stride 2
    largest = multiply_adds(4, 1)["sep_conv_5x5"]

    def forced(name):
        for alphas in network.arch_parameters():
            alphas.data.zero_()[:, PRIMITIVES.index(name)] = 2
        network.temperature = 0.05  # 2 / 0.05 = 40: one operation has all the weight
        return network.cost().item()

    for name in ("max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5"):
        assert forced(name) == pytest.approx(2 * len(EDGES) * multiply_adds(4, 1)[name] / largest), name
    assert forced("skip_connect") == pytest.approx(inputs * multiply_adds(4, 2)["skip_connect"] / largest)

    # `none` is no way to save: at equal weights it changes nothing.
    others = sum(forced(name) for name in PRIMITIVES[1:]) / len(PRIMITIVES[1:])
    assert forced("none") == pytest.approx(others)
    network.temperature = 1e9
    assert network.cost().item() == pytest.approx(others)


@pytest.mark.parametrize(("C", "layers", "pixels"), [SIZES[0], pytest.param(*SIZES[1], marks=pytest.mark.long)])
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
