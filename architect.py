"""The architecture step of DARTS (Liu, Simonyan, Yang, ICLR 2019, arXiv 1806.09055, section 2.3), both orders.

Words: w weights, α architecture parameters, ξ step of the virtual update (the current learning rate of w),
ε finite-difference step, v = ∇w' L_val(w', α). Equation numbers are the paper's; it minimises

    min_α L_val(w*(α), α)   with   w*(α) = argmin_w L_train(w, α)                     (eqs. 3 and 4)

by one gradient step on α and one on w in turn.
"""

import torch
from torch.func import functional_call

from support.ranks import average


class Architect:
    """Makes α steps on `network`, whose weights, momentum and BatchNorm buffers it only reads.

    Every loss is computed from values passed in, L(w, α): w' and w± never enter the model, so nothing has to
    be put back. Weights are passed detached unless their own gradient is needed, so that autograd computes no
    weight gradient in passes that need ∇α alone; these are most of the cost of a pass.
    """

    def __init__(self, network, criterion, w_optimizer, alpha_optimizer, second_order, exact=False, price=0.0):
        """w_optimizer: the SGD of w (eq. 7 assumes it); exact: the product of eq. 7 by differentiating twice.

        price: of what the cells are expected to cost; the step is then on L_val + price · network.cost().
        """
        self.network, self.criterion = network, criterion
        self.w_optimizer, self.alpha_optimizer = w_optimizer, alpha_optimizer
        self.second_order, self.exact, self.price = second_order, exact, price
        arch = {id(alpha) for alpha in network.arch_parameters()}
        self.names = [name for name, p in network.named_parameters() if id(p) not in arch]
        self.arch_names = [name for name, p in network.named_parameters() if id(p) in arch]
        # Without running statistics BatchNorm uses the batch's own, as in training, and writes nothing.
        statistics = {"running_mean", "running_var", "num_batches_tracked"}
        self.no_buffers = {name: None for name, _ in network.named_buffers() if name.rpartition(".")[2] in statistics}

    def step(self, trn, val):
        """One step on α, given a (films, labels) batch of train and one of val. Returns L_val (a tensor)."""
        xi = self.w_optimizer.param_groups[0]["lr"]
        loss, gradients = self.second(trn, val, xi) if self.second_order else self.first(val)
        alphas = self.network.arch_parameters()
        costs = torch.autograd.grad(self.price * self.network.cost(), alphas)  # of α alone, so equal in both orders
        for alpha, gradient, cost in zip(alphas, gradients, costs, strict=True):
            alpha.grad = gradient + cost
        self.alpha_optimizer.step()
        return loss

    def first(self, val):
        """First order, ξ = 0: L_val and ∇α L_val(w, α)."""
        w, alpha = self.values()
        loss = self.loss(w, alpha, val)
        loss, *gradients = average([loss.detach(), *torch.autograd.grad(loss, alpha)])
        return loss, gradients

    def second(self, trn, val, xi):
        """Second order (eq. 7): L_val(w', α) and ∇α L_val(w', α) − ξ ∇²α,w L_train(w, α) · v."""
        loss, first_term, v, w_grads = self.look_ahead(trn, val, xi)
        product = self.exact_product(w_grads, v) if self.exact else self.finite_difference_product(v, trn)
        return loss, [g - xi * p for g, p in zip(first_term, average(product), strict=True)]

    def look_ahead(self, trn, val, xi):
        """L_val(w', α), ∇α L_val(w', α), v = ∇w' L_val(w', α), and ∇w L_train(w, α) (with its graph if exact)."""
        w, alpha = self.values()
        w_graph = [p.detach().requires_grad_() for p in w]
        trn_alpha = alpha if self.exact else [a.detach() for a in alpha]
        # The loss gets no name, which would keep its graph in memory through the next pass (peak 6.1 GB, not 5.1).
        w_grads = torch.autograd.grad(self.loss(w_graph, trn_alpha, trn), w_graph, create_graph=self.exact)
        w_virtual = self.virtual_step(w, average([g.detach() for g in w_grads]), xi)
        val_loss = self.loss([p.requires_grad_() for p in w_virtual], alpha, val)
        gradients = torch.autograd.grad(val_loss, [*w_virtual, *alpha])
        val_loss, *gradients = average([val_loss.detach(), *gradients])
        return val_loss, gradients[len(w) :], gradients[: len(w)], w_grads

    def virtual_step(self, w, w_grads, xi):
        """w' = w − ξ(μ · momentum + ∇w L_train(w, α) + λw): eq. 6 for SGD with momentum and weight decay, unclipped."""
        group = self.w_optimizer.param_groups[0]
        w_virtual = []
        for p, value, gradient in zip(self.network.weight_parameters(), w, w_grads, strict=True):
            direction = gradient + group["weight_decay"] * value
            momentum = self.w_optimizer.state.get(p, {}).get("momentum_buffer")
            if momentum is not None:  # zero before the first step
                direction = direction + group["momentum"] * momentum
            w_virtual.append(value - xi * direction)
        return w_virtual

    def exact_product(self, w_grads, v):
        """∇²α,w L_train(w, α) · v = ∇α ⟨∇w L_train(w, α), v⟩, through the graph of the first backward pass."""
        return torch.autograd.grad(w_grads, self.network.arch_parameters(), grad_outputs=v)

    def finite_difference_product(self, v, trn, radius=0.01):
        """∇²α,w L_train(w, α) · v ≈ (∇α L_train(w⁺, α) − ∇α L_train(w⁻, α)) / 2ε, w± = w ± εv (eq. 8).

        ε = radius / ‖v‖, with the paper's radius. ε stays a tensor: reading it would halt a GPU.
        """
        w, alpha = self.values()
        eps = radius / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(v)))
        w_plus = [p + eps * d for p, d in zip(w, v, strict=True)]
        plus = torch.autograd.grad(self.loss(w_plus, alpha, trn), alpha)
        w_minus = [p - eps * d for p, d in zip(w, v, strict=True)]
        minus = torch.autograd.grad(self.loss(w_minus, alpha, trn), alpha)
        return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]

    def values(self):
        """w, detached from the model, and α, in the order of weight_parameters() and arch_parameters()."""
        return [p.detach() for p in self.network.weight_parameters()], self.network.arch_parameters()

    def loss(self, w, alpha, batch):
        """L(w, α) on a (films, labels) batch, with the values given in place of the network's own."""
        films, labels = batch
        values = dict(zip(self.names, w, strict=True)) | dict(zip(self.arch_names, alpha, strict=True))
        return self.criterion(functional_call(self.network, values | self.no_buffers, (films,)), labels)
