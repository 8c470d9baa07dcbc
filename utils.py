"""What the scripts share: devices and seeds, the loss, one step of descent, prediction, counting multiply-adds."""

import math
import os

import torch
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode

from support import ranks
from support.files import InputError
from support.runs import autocast_type


def select_device(name):
    """The device to compute on: "auto" is cuda, else mps, else cpu; or a name that torch knows. Raises InputError.

    Under torchrun this process joins the other ranks, and has one GPU of its own.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return ranks.join(torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is unknown: use auto, cpu, cuda or mps")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError):
        there = f"; there are {torch.cuda.device_count()}" if torch.cuda.is_available() else ""
        raise InputError(f"device {name!r}: there is no such {device.type.upper()} device here{there}") from None
    return ranks.join(device)


def seed_everything(seed, device, deterministic=False):
    """Seed the initial weights (torch's own generator) and return the one generator of all other draws."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # torch names operations without one
    return torch.Generator(device).manual_seed(seed)


def check_recipe(name):
    """Raise InputError unless `name` is a recipe of val_train.py and chexnet.py."""
    if name not in ("one_cycle", "reference"):
        raise InputError(f"RECIPE (--recipe) is {name!r} and must be one_cycle or reference")


def one_cycle(weights, rate, decay, steps):
    """AdamW and its rate's schedule (Smith and Topin, arXiv 1708.07120), which is to be stepped after each of `steps`.

    The rate rises to `rate` in 0.3 of the steps and falls to almost 0; meanwhile β1 falls from 0.95 to 0.85, and rises
    again. decay: AdamW's weight decay.
    """
    optimizer = AdamW(weights, rate, weight_decay=decay, fused=weights[0].is_cuda)  # fused: one kernel for all
    return optimizer, OneCycleLR(optimizer, rate, steps + 1)  # one more: after the last step


def autocast(device):
    """bfloat16 on GPUs that have it; elsewhere nothing changes."""
    dtype = autocast_type(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


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
    return torch.where(norm.isfinite(), loss, math.nan)  # reading the loss shows both


@torch.inference_mode()
def predict(network, films, batch_size, pause=lambda: None):
    """Probabilities (N, findings) float64 of all films of a split, in order, and the mean loss.

    The ranks share the batches, with the BatchNorm statistics of rank 0. pause: called between two batches.
    """
    network.eval()
    ranks.share_buffers(network)
    batches = [slice(start, start + batch_size) for start in range(0, len(films), batch_size)]
    logits = torch.zeros_like(films.labels)
    for batch in batches[ranks.rank() :: ranks.count()]:
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
