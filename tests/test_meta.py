"""Training steps and evaluation on torch's meta device find a tensor that was left on the CPU; no GPU is needed.

Tensors on that device have shapes but no values. Some operations would take a CPU tensor beside them, such as an index
or a convolution's weights, so `OneDevice` looks at every operation.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model_eval
import model_search
import utils
from architect import Architect
from chexnet import CheXNet
from dataset import FINDINGS, Films, Sampler, load_set
from genotypes import PUBLISHED

META = torch.device("meta")
CLASSES = len(FINDINGS)  # of small_set


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices. A tensor without dimensions counts as a number."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        assert len({t.device for t in tensors}) <= 1, f"{operation}: {[(t.device, tuple(t.shape)) for t in tensors]}"
        return operation(*args, **kwargs or {})


@pytest.fixture
def films(small_set):
    return Films(load_set(small_set / "noise"), "train", 32, META)


@pytest.fixture
def sampler(films):
    return Sampler(films, 4, torch.Generator())  # a generator of the CPU, which meta tensors accept


def test_search_steps_of_every_kind_stay_on_their_device(sampler, monkeypatch):
    monkeypatch.setattr(model_search, "reduction_cells", lambda layers: (0,))  # half as many cells of both kinds
    with META:
        network = model_search.Network(4, CLASSES, 2)
    weights = network.weight_parameters()
    w_optimizer = torch.optim.SGD(weights, 0.1, 0.9)
    alpha_optimizer = torch.optim.Adam(network.arch_parameters())
    with OneDevice():
        utils.start_at_prevalence(network.classifier, sampler.films.labels)
        films, labels = trn = sampler.next()
        loss = utils.descend(utils.criterion(network(films), labels), weights, w_optimizer, 5.0)  # fills the momentum
        for second_order, exact in ((False, False), (True, False), (True, True)):
            architect = Architect(network, utils.criterion, w_optimizer, alpha_optimizer, second_order, exact, 0.1)
            assert loss.device == architect.step(trn, sampler.next()).device == META


def make_derived():
    return model_eval.Network(4, CLASSES, 4, PUBLISHED["CHESTXRAY14_FIRST_ORDER"])


@pytest.mark.parametrize("make", [make_derived, lambda: CheXNet(CLASSES)], ids=["derived network", "CheXNet"])
def test_a_training_step_and_an_evaluation_stay_on_their_device(films, sampler, make):
    with META:
        network = make()
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights)
    with OneDevice():
        batch, labels = sampler.next()
        keep = [network.drop_path(4, 0.2, torch.Generator())] if make is make_derived else []
        utils.descend(utils.criterion(network(batch, *keep), labels), weights, optimizer)
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):  # all but the loss as a number
            utils.predict(network, films, 20)
