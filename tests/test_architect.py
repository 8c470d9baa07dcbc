"""The architect's gradients against differentiating straight through the virtual step, in float64."""

import pytest
import torch

import model_search
import textbook
import utils
from benchmarks.original import OriginalArchitect, smooth_twin
from tests.test_supernet import CLASSES, XI, batch, criterion, make_architect

TRN, VAL = batch(32, 8, seed=1), batch(32, 8, seed=2)


def setup(smooth=False, w_steps=0, second_order=True, exact=False):
    """An Architect over a small float64 supernet, after w_steps steps of SGD, which fill the momentum."""
    torch.manual_seed(0)
    network = model_search.Network(4, CLASSES, 4).double()
    architect = make_architect(smooth_twin(network) if smooth else network, second_order, exact)
    for seed in range(w_steps):
        films, labels = batch(32, 8, seed + 10)
        utils.descend(criterion(network(films), labels), network.weight_parameters(), architect.w_optimizer)
    return architect


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def distance(a, b):
    return ((flat(a) - flat(b)).norm() / flat(b).norm()).item()


def momentum_of(architect):
    state = architect.w_optimizer.state
    return [state[p]["momentum_buffer"] for p in architect.network.weight_parameters()]


def test_the_exact_second_order_equals_differentiating_through_the_virtual_step():
    architect = setup(w_steps=2, exact=True)
    reference = textbook.unrolled_gradient(architect.network, momentum_of(architect), XI, TRN, VAL)
    assert distance(architect.second(TRN, VAL, XI)[1], reference) < 1e-9
    loss, first_order = architect.first(VAL)
    assert distance(first_order, reference) > 1e-3  # the second-order term is not lost in the first
    # First order is ξ = 0.
    loss_at_zero, gradient = architect.second(TRN, VAL, xi=0.0)
    assert torch.equal(loss, loss_at_zero) and distance(gradient, first_order) < 1e-12


def product(architect, radius=None):
    """∇²α,w L_train · v for the v of a virtual step: by differences of radius/‖v‖, or exact without a radius."""
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


def test_a_step_takes_xi_from_the_learning_rate_and_adds_the_gradient_of_the_cost():
    architect = setup()
    architect.w_optimizer.param_groups[0]["lr"] = 0.5
    architect.price = 0.3
    alphas = architect.network.arch_parameters()
    costs = torch.autograd.grad(architect.network.cost(), alphas)
    gradients = architect.second(TRN, VAL, xi=0.5)[1]
    architect.step(TRN, VAL)
    expected = [gradient + 0.3 * cost for gradient, cost in zip(gradients, costs, strict=True)]
    assert distance([a.grad for a in alphas], expected) < 1e-12


def test_passes_that_need_alpha_alone_compute_no_weight_gradient(monkeypatch):
    """Records for each loss whether w and α, as it was given them, ask autograd for a gradient."""
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


def test_the_original_way_of_making_a_step_gives_the_same_gradient():
    """On the smooth twin: ReLU kinks would magnify the rounding of the original's moves of w."""
    ours, other = (setup(smooth=True, w_steps=2) for _ in range(2))

    def make_network():
        return smooth_twin(model_search.Network(4, CLASSES, 4).double())

    original = OriginalArchitect(other.network, make_network, criterion, other.w_optimizer, second_order=True)
    original.step(TRN, VAL)
    gradient = [a.grad for a in other.network.arch_parameters()]
    assert distance(ours.second(TRN, VAL, XI)[1], gradient) < 1e-6
