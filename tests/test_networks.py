"""The derived network and CheXNet: sizes, wiring, drop path."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model_eval
import model_search
from chexnet import CheXNet, Transition
from dataset import FINDINGS
from genotypes import PRIMITIVES, PUBLISHED, Genotype, random_genotype
from operations import OPS, multiply_adds
from support.files import InputError
from utils import criterion, descend

REFERENCE = PUBLISHED["CHESTXRAY14_FIRST_ORDER"]


def test_reference_recipes_have_the_published_numbers_of_weights():
    derived, supernet = model_eval.Network(36, 14, 20, REFERENCE), model_search.Network(16, 14, 12)
    weights = supernet.weight_parameters(), derived.parameters(), CheXNet(14).parameters()
    assert [sum(p.numel() for p in some) for some in weights] == [7_090_494, 7_341_098, 6_968_206]


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_divide_the_size_and_cost_what_torch_counts(stride):
    assert tuple(OPS) == PRIMITIVES[1:]
    C, pixels = 6, (8 // stride) ** 2
    for name, make in OPS.items():
        with FlopCounterMode(display=False) as counter:
            y = make(C, stride).eval()(torch.randn(1, C, 8, 8))
        assert y.shape == (1, C, 8 // stride, 8 // stride) and not (y == 0).all(), name
        assert multiply_adds(C, stride)[name] * pixels == counter.get_total_flops() / 2, name


def test_pools_have_no_batch_normalisation_and_all_others_are_affine():
    network = model_eval.Network(4, 3, 5, REFERENCE)
    assert all(m.affine for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert isinstance(OPS["max_pool_3x3"](4, 1), nn.MaxPool2d)
    # Averages of ones are ones at the border as well, because padding is not counted.
    assert torch.equal(OPS["avg_pool_3x3"](4, 1)(torch.ones(1, 4, 4, 4)), torch.ones(1, 4, 4, 4))


def test_a_cell_adds_two_operations_per_node_and_concatenates():
    pairs = [("skip_connect", 0), ("skip_connect", 1)] * 4
    cell = model_eval.Cell(pairs, [2, 4], C_pp=4, C_p=4, C=4, reduction=False, reduction_p=False).eval()
    s0, s1 = torch.rand(2, 2, 4, 8, 8).unbind()  # as after a ReLU
    node = cell.preprocess0(s0) + cell.preprocess1(s1)
    assert torch.equal(cell(s0, s1), torch.cat([node, node], dim=1))


def plain_derived(network, films):
    """The derived network where each operation has its own ReLU, and the stem has its ReLU before its pool."""
    conv, bn, pool, relu = network.stem
    s0 = s1 = pool(relu(bn(conv(films))))
    for cell in network.cells:
        states = [cell.preprocess0(s0), cell.preprocess1(s1)]
        for k in range(0, len(cell.ops), 2):
            states.append(sum(cell.ops[op](states[cell.sources[op]]) for op in (k, k + 1)))
        s0, s1 = s1, torch.cat([states[node] for node in cell.concat], dim=1)
    return network.classifier(network.pool(s1).flatten(1))


def plain_chexnet(network, films):
    """CheXNet with torchvision's transitions, which convolve before they pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transition, "forward", nn.Sequential.forward)
        return network(films)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda: model_eval.Network(4, 3, 5, REFERENCE), plain_derived),
        (lambda: model_eval.Network(4, 3, 4, random_genotype(1)), plain_derived),
        (lambda: CheXNet(3), plain_chexnet),
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_networks(make, plain, training):
    network = make().double().train(training)
    films = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs = network(films), plain(network, films)
    weights = list(network.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), weights, materialize_grads=True) for y in outputs]
    for ours, others in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        assert (ours - others).norm() <= 1e-9 * others.norm()


def test_drop_path_drops_per_film_and_never_an_identity():
    genotype = Genotype([("skip_connect", 0), ("max_pool_3x3", 1)] * 4, [2], REFERENCE.reduce, [2])
    network = model_eval.Network(4, 3, 5, genotype)
    cell, generator = network.cells[0], torch.Generator().manual_seed(0)
    keep = network.drop_path(1000, 0.2, generator)
    assert keep.shape == (1000, 5, 8)
    assert set(keep.unique().tolist()) == {0.0, 1.25}
    assert abs((keep == 0).float().mean() - 0.2) < 0.01

    s0, s1 = torch.rand(2, 3, 12, 8, 8).unbind()
    keep = torch.ones(3, 8)
    keep[1] = 0
    full, dropped = cell(s0, s1), cell(s0, s1, keep)
    assert torch.equal(full[[0, 2]], dropped[[0, 2]])
    assert torch.equal(dropped[1], cell.preprocess0(s0)[1])  # the identity on node 0 is all that is left


def test_too_few_cells_and_bad_genotypes_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        model_eval.Network(4, 3, 3, REFERENCE)
    with pytest.raises(InputError, match="unknown operation"):
        model_eval.Network(4, 3, 5, REFERENCE._replace(normal=[("conv", 0)] * 8))


IMAGENET = "densenet121-a639ec97.pth"


def test_imagenet_weights_are_read_from_the_folder_under_the_old_names(tmp_path):
    """The published file has the names of an older torchvision, such as denselayer1.norm.1.weight."""
    state = CheXNet(1000).densenet.state_dict()
    old = {}
    for key, tensor in state.items():
        for part in ("norm", "relu", "conv"):
            key = key.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
        old[key] = tensor
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / IMAGENET)
    read = CheXNet(14, pretrained=True, folder=tmp_path).densenet.state_dict()
    assert all(torch.equal(read[key], state[key]) for key in state if not key.startswith("classifier"))

    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    for content in ((tmp_path / IMAGENET).read_bytes()[:-1000], b"", (tmp_path / "other.pth").read_bytes()):
        (tmp_path / IMAGENET).write_bytes(content)
        with pytest.raises(InputError, match=rf"{IMAGENET} is damaged, or another network's: .*--no-pretrained"):
            CheXNet(14, pretrained=True, folder=tmp_path)


def test_imagenet_weights_that_cannot_be_downloaded_are_named_with_the_way_out(tmp_path, monkeypatch):
    def refuse(*_, **more):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(InputError, match=rf"{IMAGENET} is missing and cannot be downloaded .*--no-pretrained"):
        CheXNet(14, pretrained=True, folder=tmp_path)


NETWORKS = {"supernet": partial(model_search.Network, 4, layers=4), "CheXNet": CheXNet}
NETWORKS["derived network"] = partial(model_eval.Network, 8, layers=4, genotype=REFERENCE)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_batch_is_overfitted(name):
    """The layers before the classifier bring the loss of 8 noise films with random labels from 0.69 to below 0.2."""
    torch.manual_seed(0)
    network = NETWORKS[name](num_classes=len(FINDINGS))
    films, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 2, (8, len(FINDINGS))).float()
    network.classifier.requires_grad_(False)  # it could do the same alone
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(15):
        loss = criterion(network(films), labels)
        descend(loss, [p for p in network.parameters() if p.requires_grad], optimizer)
    assert loss < 0.2
