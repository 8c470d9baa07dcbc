"""The fast supernet computes what the textbook one computes: outputs, gradients, statistics, and ten search steps."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as criterion

import model_search
import textbook
import utils
from architect import Architect
from benchmarks.original import smooth_twin
from genotypes import EDGES, INTERMEDIATE, PRIMITIVES, derive
from model_search import EDGES_FROM
from operations import multiply_adds

# C, cells, pixels: every way of support.separable
SIZES = [(4, 5, 32), (20, 4, 32), pytest.param(36, 4, 96, marks=pytest.mark.long)]
CLASSES = 3
TOLERANCE = 1e-9  # ‖difference‖ / ‖reference‖ in float64
XI = 0.025

# Modules within an operation of the textbook, and the fast network's names of them, with the operation's name for {}.
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
                    there = f"cells.{k}.edges.{e}.operations.{op}.{there}"
                    yield there, f"cells.{k}.sources.{i}.{here.format(name)}", rows


def textbook_view(fast, tensors):
    """{name in the textbook: slice of the fast network's tensor}, of the tensors (a dict by name) that are there."""
    view = {}
    for there, here, rows in modules_of_both(fast):
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            if f"{here}.{suffix}" in tensors:
                view[f"{there}.{suffix}"] = tensors[f"{here}.{suffix}"][rows]
    return view


def pair(C, layers):
    """A fast and a textbook supernet in float64 with the same weights and the same, uneven α."""
    torch.manual_seed(0)
    fast = model_search.Network(C, CLASSES, layers).double()
    plain = textbook.TextbookNetwork(C, CLASSES, layers).double()
    for alpha in fast.arch_parameters():
        alpha.data.normal_()
    alphas = {name: alpha for name, alpha in fast.named_parameters() if name.startswith("alphas_")}
    weights = alphas | textbook_view(fast, fast.state_dict())
    assert dict(plain.named_parameters()).keys() <= weights.keys(), "the view misses weights of the textbook network"
    plain.load_state_dict(weights, strict=False)
    return fast, plain


def batch(pixels, films=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(films, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (films, CLASSES), generator=generator).double()


def distance(a, b, floor=0.0):
    return ((a - b).norm() / b.norm().clamp(min=floor)).item()


def make_architect(network, second_order, exact, loss=criterion):
    """An Architect with the optimisers of textbook.search."""
    weights, alphas = network.weight_parameters(), network.arch_parameters()
    sgd = torch.optim.SGD(weights, XI, textbook.MOMENTUM, weight_decay=textbook.WEIGHT_DECAY)
    adam = torch.optim.Adam(alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3)
    return Architect(network, loss, sgd, adam, second_order, exact)


@pytest.mark.parametrize(("C", "layers", "pixels"), SIZES)
def test_outputs_gradients_and_statistics_equal_the_textbook(C, layers, pixels):
    fast, plain = pair(C, layers)
    films, labels = batch(pixels)
    outputs = fast(films), plain(films)
    assert distance(*outputs) < TOLERANCE
    for logits in outputs:
        criterion(logits, labels).backward()

    gradients = {name: p.grad for name, p in fast.named_parameters()}
    gradients |= textbook_view(fast, gradients)
    for name, p in plain.named_parameters():
        assert distance(gradients[name], p.grad) < TOLERANCE, name

    buffers = textbook_view(fast, dict(fast.named_buffers()))
    statistics = {n: b for n, b in plain.named_buffers() if "running" in n}
    assert statistics.keys() == buffers.keys()
    for name, b in statistics.items():
        assert distance(buffers[name], b, floor=1e-6) < TOLERANCE, name  # some means are 0 but for rounding
    assert distance(fast.eval()(films), plain.eval()(films)) < TOLERANCE


@pytest.mark.parametrize(("C", "layers", "pixels"), [SIZES[0], pytest.param(*SIZES[1], marks=pytest.mark.long)])
def test_gradients_by_differences_equal_the_textbook(C, layers, pixels):
    fast, plain = (smooth_twin(network) for network in pair(C, layers))  # kinks would magnify rounding
    trn, val = batch(pixels), batch(pixels, seed=2)
    velocity = [torch.zeros_like(p) for p in plain.weight_parameters()]
    gradient = make_architect(fast, second_order=True, exact=False).second(trn, val, XI)[1]
    for ours, expected in zip(gradient, textbook.gradient_by_differences(plain, velocity, XI, trn, val), strict=True):
        assert distance(ours, expected) < TOLERANCE


@pytest.mark.parametrize("second_order", [False, True])
def test_ten_steps_of_the_search_equal_algorithm_1_of_the_textbook(second_order, monkeypatch):
    """First order and exact second order, with momentum, decay and clipping. α and w have moved equally far."""
    monkeypatch.setattr(textbook, "CLIP", 0.5)  # smaller than all gradients here
    fast, plain = pair(C=2, layers=4)
    start = {name: p.clone() for name, p in plain.state_dict().items()}
    batches = [(batch(32, 6, seed), batch(32, 6, seed + 100)) for seed in range(10)]
    gradient = textbook.unrolled_gradient if second_order else textbook.first_order_gradient
    cells = textbook.search(plain, batches, gradient, XI)

    architect = make_architect(fast, second_order, exact=True, loss=utils.criterion)
    for trn, val in batches:
        architect.step(trn, val)
        loss = utils.criterion(fast(trn[0]), trn[1])
        utils.descend(loss, fast.weight_parameters(), architect.w_optimizer, textbook.CLIP)

    state, reference = fast.state_dict(), plain.state_dict()
    state |= textbook_view(fast, state)
    w = [name for name, _ in plain.named_parameters() if not name.startswith("alphas_")]
    for names in (["alphas_normal"], ["alphas_reduce"], w):
        ours, expected, before = (torch.cat([s[n].flatten() for n in names]) for s in (state, reference, start))
        assert distance(ours, expected) < 1e-6, names
        assert distance(ours - before, expected - before) < 1e-5, names
    genotype = fast.genotype()
    assert [in_a_row(cell) for cell in cells] == [genotype.normal, genotype.reduce]


def in_a_row(cell):
    """The pairs of a textbook cell, node after node, as a genotype has them."""
    return [pair for pairs in cell.values() for pair in pairs]


@pytest.mark.parametrize("ties", [False, True])
def test_the_textbook_derives_the_same_cells(ties):
    alphas = torch.randn(100, len(EDGES), len(PRIMITIVES), dtype=torch.float64, generator=torch.Generator())
    for alpha in alphas.round() if ties else alphas:
        assert in_a_row(textbook.derive(alpha)) == derive(alpha, alpha).normal


def test_the_textbook_alone_prints_both_cells(capsys):
    textbook.main()
    lines = [line.split(" = ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    nodes = [f"node {node}" for node in INTERMEDIATE]
    assert lines == ["normal cell", *nodes, "reduction cell", *nodes]


def test_a_temperature_divides_alpha_in_both_cells_and_leaves_the_derived_cells():
    fast, plain = pair(4, 4)
    derived = fast.genotype()
    fast.temperature = 0.05
    for alpha in plain.arch_parameters():
        alpha.data /= 0.05
    films, _ = batch(32)
    assert distance(fast(films), plain(films)) < TOLERANCE
    for logits, divided in zip(fast.edge_logits(), plain.arch_parameters(), strict=True):
        assert torch.equal(logits, divided)
    fast.temperature = 1e-3  # every edge has a softmax weight of 1, so none would be stronger than another
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
    # `none` costs the mean of the others, which is also the cost of equal weights.
    others = sum(forced(name) for name in PRIMITIVES[1:]) / len(PRIMITIVES[1:])
    assert forced("none") == pytest.approx(others)
    network.temperature = 1e9
    assert network.cost().item() == pytest.approx(others)


def test_initial_weights_are_drawn_as_those_of_one_module_per_edge():
    torch.manual_seed(0)
    fast, plain = model_search.Network(16, CLASSES, 4), textbook.TextbookNetwork(16, CLASSES, 4)
    view = textbook_view(fast, fast.state_dict())
    for name, p in plain.named_parameters():
        if name.startswith("cells") and p.numel() > 1000:
            assert abs(view[name].std() / p.std() - 1) < 0.1, name
            assert abs(view[name].abs().max() / p.abs().max() - 1) < 0.02, name
