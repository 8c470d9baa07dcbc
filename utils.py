"""What the scripts share: the loss, one step of descent, optimizers with their schedules, prediction."""

import math

import torch
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.flop_counter import FlopCounterMode

from support import ranks

# --- Loss and step


def criterion(logits, labels):
    """Binary cross-entropy on the logits, mean over films and findings; both (B, findings)."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels)


def start_at_prevalence(classifier, labels):
    """Set the classifier's bias to the logits of the findings' frequencies in `labels` (N, findings)."""
    prevalence = labels.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        classifier.bias.copy_(prevalence.logit())


def descend(loss, weights, optimizer, clip=math.inf):
    """One step of `optimizer` along −∇w loss, averaged over the ranks; returns the loss, NaN if ∇w is not finite.

    clip: largest norm of the gradient.
    """
    optimizer.zero_grad()
    loss.backward(inputs=weights)
    used = [w for w in weights if w.grad is not None]  # a genotype may leave nodes out of a cell's output
    loss, *gradients = ranks.average([loss.detach(), *(w.grad for w in used)])
    for w, gradient in zip(used, gradients, strict=True):
        w.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    return torch.where(norm.isfinite(), loss, math.nan)  # one value, read rarely, tells of both


# --- Recipes


class Schedule:
    """An optimizer and how its learning rate moves. done: no epoch would change anything any more."""

    done = False

    def __init__(self, optimizer, scheduler):
        self.optimizer, self.scheduler = optimizer, scheduler

    @property
    def lr(self):
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def after_step(self):
        """To be called after each step."""

    def after_epoch(self, auc):
        """To be called after each epoch's evaluation; auc: its val AUC."""

    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class OneCycle(Schedule):
    """AdamW, whose rate rises to `lr` in 0.3 of all steps and falls to almost 0 (Smith and Topin, arXiv 1708.07120).

    Meanwhile β1 falls from 0.95 to 0.85, and rises again. steps: of one epoch.
    """

    def __init__(self, weights, epochs, steps, lr, weight_decay):
        optimizer = AdamW(weights, lr, weight_decay=weight_decay, fused=is_fused(weights))
        super().__init__(optimizer, OneCycleLR(optimizer, lr, epochs * steps + 1))  # it steps after the last one, too

    def after_step(self):
        self.scheduler.step()


class Cosine(Schedule):
    """SGD, whose rate falls from `lr` to `lr_min` along a half cosine over the epochs."""

    def __init__(self, weights, epochs, steps, lr, momentum, weight_decay, lr_min=0.0):
        optimizer = SGD(weights, lr, momentum, weight_decay=weight_decay, fused=is_fused(weights))
        super().__init__(optimizer, CosineAnnealingLR(optimizer, epochs, lr_min))

    def after_epoch(self, auc):
        self.scheduler.step()


class Plateau(Schedule):
    """Adam, whose rate is divided by 10 after more than `patience` epochs in a row without a better val AUC.

    Training is done when the rate is below `lr_stop`.
    """

    def __init__(self, weights, epochs, steps, lr, patience, lr_stop):
        optimizer = Adam(weights, lr, fused=is_fused(weights))
        super().__init__(optimizer, ReduceLROnPlateau(optimizer, "max", factor=0.1, patience=patience, threshold=0))
        self.lr_stop = lr_stop

    @property
    def done(self):
        return self.lr < self.lr_stop

    def after_epoch(self, auc):
        self.scheduler.step(auc)


SCHEDULES = {"one_cycle": OneCycle, "cosine": Cosine, "plateau": Plateau}


def make_schedule(settings, weights, steps):
    """The `Schedule` of settings.recipe, from the settings that begin with its name: cosine_lr is its `lr`."""
    start = f"{settings.recipe}_"
    own = {name.removeprefix(start): getattr(settings, name) for name in vars(settings) if name.startswith(start)}
    return SCHEDULES[settings.recipe](weights, settings.epochs, steps, **own)


def is_fused(weights):
    """Whether torch has one kernel for an optimizer's whole step: it does, but for tensors without values."""
    return not weights[0].is_meta


# --- Evaluation


@torch.inference_mode()
def predict(network, films, batch_size, pause=lambda: None):
    """Probabilities (N, findings) float64 of all films of a split, in order, and the mean loss.

    The ranks share the batches, with the BatchNorm statistics of rank 0. pause: called between two batches.
    """
    network.eval()
    ranks.share_buffers(network)
    logits = torch.zeros_like(films.labels)
    for start in range(ranks.rank() * batch_size, len(films), ranks.count() * batch_size):
        batch = slice(start, start + batch_size)
        logits[batch] = network(films.eval_batch(batch))
        pause()
    ranks.total(logits)
    loss = criterion(logits, films.labels).item()
    if not math.isfinite(loss):
        bad = ", ".join(films.names[~logits.isfinite().all(1).cpu().numpy()][:3])
        raise SystemExit(f"error: the loss on {films.split} is {loss} ({bad}): lower the learning rate, with --fresh")
    return logits.cpu().double().sigmoid().numpy(), loss


def count_multiply_adds(function):
    """Multiply-adds of what a function does: its convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2
