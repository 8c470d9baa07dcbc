"""The step on α, first or second order (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055, section 2.3).

The problem is min_α L_val(w*(α), α), where w*(α) = argmin_w L_train(w, α) (eqs. 3 and 4). DARTS solves it by one step
on α and one step on w in turn. textbook.py has the same gradients in their plainest form.

Words: w weights, α architecture parameters, ξ step of the virtual update (the current learning rate of w), w' the
weights after it, v = ∇w' L_val(w', α), ε finite-difference step, w± = w ± εv. Equation numbers are the paper's.
"""

import torch
from torch.func import functional_call

from support.ranks import average


class Architect:
    """Makes steps on the α of `network`. It only reads the weights, their momentum and the BatchNorm buffers.

    Every loss L(w, α) is a function of values that are passed in. The network itself never holds w' or w±, so there is
    nothing to restore. Weights are passed detached, unless a pass needs their gradient: weight gradients are most of
    the cost of a pass, and a pass for ∇α alone computes none.
    """

    def __init__(self, network, criterion, w_optimizer, alpha_optimizer, second_order, exact=False, price=0.0):
        """criterion: (logits, labels) -> loss. w_optimizer: SGD, as eq. 7 assumes. alpha_optimizer: any.

        exact: compute the product of eq. 7 by differentiating twice, not by differences. price: the step descends
        L_val + price · network.cost().
        """
        self.network, self.criterion = network, criterion
        self.w_optimizer, self.alpha_optimizer = w_optimizer, alpha_optimizer
        self.second_order, self.exact, self.price = second_order, exact, price
        arch = {id(alpha) for alpha in network.arch_parameters()}
        self.names = [name for name, p in network.named_parameters() if id(p) not in arch]
        self.arch_names = [name for name, p in network.named_parameters() if id(p) in arch]
        # A BatchNorm without running statistics uses those of the batch, as in training, and writes none.
        statistics = {"running_mean", "running_var", "num_batches_tracked"}
        self.no_buffers = {name: None for name, _ in network.named_buffers() if name.rpartition(".")[2] in statistics}

    def step(self, trn, val):
        """Make one step on α, given a (films, labels) batch of train and one of val. Returns L_val, a tensor ().

        L_val is L_val(w, α) in the first order and L_val(w', α) in the second, both before the step.
        """
        xi = self.w_optimizer.param_groups[0]["lr"]
        loss, gradients = self.second(trn, val, xi) if self.second_order else self.first(val)
        alphas = self.network.arch_parameters()
        costs = torch.autograd.grad(self.price * self.network.cost(), alphas)  # the same in both orders: no w in it
        for alpha, gradient, cost in zip(alphas, gradients, costs, strict=True):
            alpha.grad = gradient + cost
        self.alpha_optimizer.step()
        return loss

    def first(self, val):
        """First order, ξ = 0. Returns L_val(w, α) and ∇α L_val(w, α), a list like arch_parameters()."""
        w, alpha = self.values()
        loss = self.loss(w, alpha, val)
        loss, *gradients = average([loss.detach(), *torch.autograd.grad(loss, alpha)])
        return loss, gradients

    def second(self, trn, val, xi):
        """Second order. Returns L_val(w', α) and eq. 7, ∇α L_val(w', α) − ξ ∇²α,w L_train(w, α) · v, likewise."""
        loss, first_term, v, w_grads = self.look_ahead(trn, val, xi)
        product = self.exact_product(w_grads, v) if self.exact else self.finite_difference_product(v, trn)
        return loss, [g - xi * p for g, p in zip(first_term, average(product), strict=True)]

    def look_ahead(self, trn, val, xi):
        """Returns L_val(w', α), ∇α L_val(w', α), v, and ∇w L_train(w, α), which has its graph if `exact`."""
        w, alpha = self.values()
        w_graph = [p.detach().requires_grad_() for p in w]
        trn_alpha = alpha if self.exact else [a.detach() for a in alpha]
        # A name for this loss would keep its graph in memory through the next pass: a peak of 6.1 GB instead of 5.1.
        w_grads = torch.autograd.grad(self.loss(w_graph, trn_alpha, trn), w_graph, create_graph=self.exact)
        w_virtual = self.virtual_step(w, average([g.detach() for g in w_grads]), xi)
        val_loss = self.loss([p.requires_grad_() for p in w_virtual], alpha, val)
        gradients = torch.autograd.grad(val_loss, [*w_virtual, *alpha])
        val_loss, *gradients = average([val_loss.detach(), *gradients])
        return val_loss, gradients[len(w) :], gradients[: len(w)], w_grads

    def virtual_step(self, w, w_grads, xi):
        """w' = w − ξ (μ · momentum + ∇w L_train(w, α) + λw), eq. 6 for the SGD of w, without clipping: a list."""
        group = self.w_optimizer.param_groups[0]
        w_virtual = []
        for p, value, gradient in zip(self.network.weight_parameters(), w, w_grads, strict=True):
            direction = gradient + group["weight_decay"] * value
            momentum = self.w_optimizer.state.get(p, {}).get("momentum_buffer")
            if momentum is not None:  # None before the first step
                direction = direction + group["momentum"] * momentum
            w_virtual.append(value - xi * direction)
        return w_virtual

    def exact_product(self, w_grads, v):
        """∇²α,w L_train(w, α) · v = ∇α ⟨∇w L_train(w, α), v⟩, by the graph that w_grads carries."""
        return torch.autograd.grad(w_grads, self.network.arch_parameters(), grad_outputs=v)

    def finite_difference_product(self, v, trn, radius=0.01):
        """∇²α,w L_train(w, α) · v ≈ (∇α L_train(w⁺, α) − ∇α L_train(w⁻, α)) / 2ε, eq. 8.

        ε = radius / ‖v‖; 0.01 is the paper's radius. ε stays a tensor, because a GPU would have to wait for a number.
        """
        w, alpha = self.values()
        eps = radius / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(v)))
        w_plus = [p + eps * d for p, d in zip(w, v, strict=True)]
        plus = torch.autograd.grad(self.loss(w_plus, alpha, trn), alpha)
        w_minus = [p - eps * d for p, d in zip(w, v, strict=True)]
        minus = torch.autograd.grad(self.loss(w_minus, alpha, trn), alpha)
        return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]

    def values(self):
        """The network's w, detached, and its α, in the orders of weight_parameters() and arch_parameters()."""
        return [p.detach() for p in self.network.weight_parameters()], self.network.arch_parameters()

    def loss(self, w, alpha, batch):
        """L(w, α) on a (films, labels) batch; w and alpha stand in for the network's own values."""
        films, labels = batch
        values = dict(zip(self.names, w, strict=True)) | dict(zip(self.arch_names, alpha, strict=True))
        return self.criterion(functional_call(self.network, values | self.no_buffers, (films,)), labels)
