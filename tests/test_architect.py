"""The architect's gradients against differentiating straight through the virtual step, in float64."""

import pytest
import torch
from torch.nn import functional as F

import model_search
import textbook
from architect import Architect

CLASSES = 3
XI, MOMENTUM, WEIGHT_DECAY = 0.025, 0.9, 3e-4

criterion = F.binary_cross_entropy_with_logits


def batch(seed, films=16, pixels=32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(films, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (films, CLASSES), generator=generator).double()


TRN, VAL = batch(1), batch(2)


def setup(smooth=False, w_steps=0, second_order=True, exact=False, lr=XI):
    """An Architect over a small float64 supernet, after w_steps real SGD steps (which fill the momentum)."""
    torch.manual_seed(0)
    network = model_search.Network(4, CLASSES, 5).double()
    if smooth:
        textbook.smooth_twin(network)
    w_optimizer = torch.optim.SGD(network.weight_parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for seed in range(w_steps):
        w_optimizer.zero_grad()
        criterion(network(batch(seed + 10)[0]), batch(seed + 10)[1]).backward()
        w_optimizer.step()
    alpha_optimizer = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999))
    return Architect(network, criterion, w_optimizer, alpha_optimizer, second_order, exact)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def distance(a, b):
    return ((flat(a) - flat(b)).norm() / flat(b).norm()).item()


def momentum_of(architect):
    state = architect.w_optimizer.state
    return [state[p].get("momentum_buffer") for p in architect.network.weight_parameters()]


@pytest.mark.parametrize("w_steps", [0, 2])
def test_exact_second_order_equals_differentiating_through_the_virtual_step(w_steps):
    architect = setup(w_steps=w_steps, exact=True)
    reference = textbook.unrolled_gradient(
        architect.network, criterion, TRN, VAL, XI, momentum_of(architect), MOMENTUM, WEIGHT_DECAY
    )
    gradient = architect.second(TRN, VAL, XI)[1]
    assert distance(gradient, reference) < 1e-9
    first_order = architect.first(VAL)[1]
    assert distance(first_order, reference) > 1e-3  # the second-order term is not lost in the first


def product(architect, radius=None):
    """∇²α,w L_train · v for the v of a virtual step: by differences of radius/‖v‖, or exact without one."""
    architect.exact = True
    *_, v, w_grads = architect.look_ahead(TRN, VAL, XI)
    if radius is None:
        return architect.exact_product(w_grads, v)
    return architect.finite_difference_product(v, TRN, radius)


def test_differences_converge_quadratically_on_the_smooth_twin():
    architect = setup(smooth=True, w_steps=2)
    exact = product(architect)
    fine, coarse = (distance(product(architect, radius), exact) for radius in (1e-3, 1e-2))
    assert fine < 1e-4
    assert 80 < coarse / fine < 120


def test_differences_below_the_nearest_kink_are_exact_on_the_relu_network():
    architect = setup()
    assert distance(product(architect, radius=1e-7), product(architect)) < 1e-2


@pytest.mark.parametrize("exact", [False, True])
def test_first_order_is_second_order_with_xi_zero(exact):
    architect = setup(w_steps=1, exact=exact)
    first, second = architect.first(VAL), architect.second(TRN, VAL, xi=0.0)
    assert torch.equal(first[0], second[0])
    assert distance(second[1], first[1]) < 1e-12


@pytest.mark.parametrize(("second_order", "exact"), [(False, False), (True, False), (True, True)])
def test_a_step_moves_alpha_and_nothing_else(second_order, exact):
    architect = setup(w_steps=1, second_order=second_order, exact=exact)
    network = architect.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    momentum = [m.clone() for m in momentum_of(architect)]
    for p in network.weight_parameters():
        p.grad = None
    architect.step(TRN, VAL)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("alphas_"), name
    assert all(torch.equal(a, b) for a, b in zip(momentum, momentum_of(architect), strict=True))
    assert all(p.grad is None and p.requires_grad for p in network.weight_parameters())


@pytest.mark.parametrize("second_order", [False, True])
def test_a_price_adds_the_gradient_of_the_cost(second_order):
    gradients = []
    for price in (0.0, 0.5):
        architect = setup(second_order=second_order, exact=True)
        architect.price = price
        architect.step(TRN, VAL)
        gradients.append([a.grad for a in architect.network.arch_parameters()])
    network = setup().network
    costs = torch.autograd.grad(network.cost(), network.arch_parameters())
    added = [b - a for a, b in zip(*gradients, strict=True)]
    assert distance(added, [0.5 * cost for cost in costs]) < 1e-9


def test_step_takes_xi_from_the_current_learning_rate():
    architect = setup(exact=True, lr=XI)
    architect.w_optimizer.param_groups[0]["lr"] = 0.5
    expected = architect.second(TRN, VAL, xi=0.5)[1]
    architect.step(TRN, VAL)
    assert distance([a.grad for a in architect.network.arch_parameters()], expected) < 1e-12


def test_passes_that_need_alpha_alone_compute_no_weight_gradient(monkeypatch):
    """Counts what autograd is asked for, and what each loss was given: w with a gradient or without."""
    architect = setup()
    passes = []
    loss = architect.loss

    def recorded(w, alpha, data):
        passes.append((any(p.requires_grad for p in w), any(a.requires_grad for a in alpha)))
        return loss(w, alpha, data)

    monkeypatch.setattr(architect, "loss", recorded)
    architect.first(VAL)
    assert passes == [(False, True)]
    passes.clear()
    architect.second(TRN, VAL, XI)
    # ∇w L_train; v and ∇α L_val(w', α); ∇α at w⁺ and at w⁻
    assert passes == [(True, False), (True, True), (False, True), (False, True)]


def test_the_original_way_of_driving_a_step_gives_the_same_gradient():
    """The textbook's OriginalArchitect: a new network per virtual step, in-place differences, the paper's radius."""
    ours = setup(smooth=True, w_steps=2).second(TRN, VAL, XI)[1]
    architect = setup(smooth=True, w_steps=2)
    original = textbook.OriginalArchitect(
        architect.network,
        lambda: textbook.smooth_twin(model_search.Network(4, CLASSES, 5).double()),
        criterion,
        architect.w_optimizer,
    )
    assert distance(ours, original.second_order_gradient(TRN, VAL, XI)) < 1e-6
