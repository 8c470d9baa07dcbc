"""The original's way of computing, which `benchmarks.speed` times against this project's, and the networks' twins.

The original is the repository of 2019 that this project replaces; textbook.py has its supernet.
"""

from functools import partial

import torch
from torch import nn

from operations import DepthwisePointwise
from support.separable import plain


def smooth_twin(network):
    """Replace each nn.ReLU of a network by nn.Softplus and each nn.MaxPool2d by nn.AvgPool2d, in place; return it.

    A network without kinks has differences whose error falls with ε². The new pools count their padding and the others
    do not, so the two operations stay different.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, nn.Softplus())
        elif isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    return network


def plain_twin(network):
    """Make a derived network or CheXNet contiguous, each separable convolution two, in place, and return it."""
    for module in network.modules():
        if isinstance(module, DepthwisePointwise):
            weights = {"depthwise": module.depthwise.weight, "pointwise": module.pointwise.weight}
            module.forward = partial(plain, **weights, stride=module.stride, dilation=module.dilation)
    network.to(memory_format=torch.contiguous_format)
    entrance = network.stem if hasattr(network, "stem") else network.densenet
    entrance.register_forward_pre_hook(lambda module, films: (films[0].contiguous(),))  # undoes forward's channels-last
    return network


class OriginalArchitect:
    """The step on α as the original made it.

    In the second order each step makes a new network for w', and moves the weights to w⁺, to w⁻ and back. Each pass
    writes running statistics and computes the gradients of all weights.

    make_network: () -> a network like `network`; w_optimizer: the SGD of w, whose ξ, μ, λ and momentum it reads.
    """

    def __init__(self, network, make_network, criterion, w_optimizer, second_order):
        self.network, self.make_network, self.criterion = network, make_network, criterion
        self.w_optimizer, self.second_order = w_optimizer, second_order
        self.optimizer = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, trn, val):
        """One step of Adam on α, given a (films, labels) batch of train and one of val."""
        if self.second_order:
            gradients = self.second_order_gradient(trn, val, self.w_optimizer.param_groups[0]["lr"])
            for alpha, gradient in zip(self.network.arch_parameters(), gradients, strict=True):
                alpha.grad = gradient
        else:
            self.network.zero_grad()
            self.criterion(self.network(val[0]), val[1]).backward()
        self.optimizer.step()
        for p in self.network.weight_parameters():
            p.grad = None

    def second_order_gradient(self, trn, val, xi):
        """Equations 7 and 8 of the paper: a list of tensors in the order of arch_parameters()."""
        w = self.network.weight_parameters()
        unrolled = self.unrolled_network(trn, xi)
        self.criterion(unrolled(val[0]), val[1]).backward()  # L_val(w', α)
        v = [p.grad for p in unrolled.weight_parameters()]
        first_term = [alpha.grad for alpha in unrolled.arch_parameters()]
        eps = 0.01 / torch.cat([g.flatten() for g in v]).norm()

        def move(distance):
            with torch.no_grad():
                for p, direction in zip(w, v, strict=True):
                    p.add_(distance * direction)

        alphas = self.network.arch_parameters()
        move(eps)  # w⁺ = w + ε v
        plus = self.train_gradients(trn, alphas)
        move(-2 * eps)  # w⁻ = w − ε v
        minus = self.train_gradients(trn, alphas)
        move(eps)  # w, up to rounding
        return [g - xi * (p - m) / (2 * eps) for g, p, m in zip(first_term, plus, minus, strict=True)]

    def unrolled_network(self, trn, xi):
        """A new network with the weights w' and a copy of α and of the running statistics."""
        w = self.network.weight_parameters()
        gradients = self.train_gradients(trn, w)
        group = self.w_optimizer.param_groups[0]
        unrolled = self.make_network()
        unrolled.load_state_dict(self.network.state_dict())
        with torch.no_grad():
            for p, gradient, p_virtual in zip(w, gradients, unrolled.weight_parameters(), strict=True):
                velocity = self.w_optimizer.state[p].get("momentum_buffer", 0)  # none before the first step
                direction = group["momentum"] * velocity + gradient + group["weight_decay"] * p
                p_virtual.copy_(p - xi * direction)
        return unrolled

    def train_gradients(self, trn, parameters):
        """∇ L_train(w, α) for the w that the network has now: a list, one tensor for each of `parameters`."""
        loss = self.criterion(self.network(trn[0]), trn[1])
        self.network.zero_grad()
        loss.backward()
        return [p.grad for p in parameters]
