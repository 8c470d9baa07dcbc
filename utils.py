"""What the scripts share: devices and seeds, losses, one training epoch, prediction, AUC."""

import math
import os

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from support.settings import fail


def select_device(name):
    """ "auto": cuda, else mps, else cpu; or a name that torch knows."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.zeros(1, device=device).cpu()  # fails where the device is known but not there
            return device
        except (RuntimeError, AssertionError):
            fail(f"device {name!r} is not to be had here: use auto, cpu, cuda or mps")
    mps = torch.backends.mps.is_available()
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")


def seed_everything(seed, device, deterministic=False):
    """Seed the initial weights (torch's own generator) and return the one generator of all other draws."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # it names what it has none for
    return torch.Generator(device).manual_seed(seed)


def autocast(device):
    """bfloat16 where it pays, on CUDA; elsewhere nothing changes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


# --- Training and prediction


def criterion(logits, labels):
    """Binary cross-entropy on the logits, mean over films and findings; both (B, findings)."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels)


def start_at_prevalence(classifier, labels):
    """Set the classifier's bias to the logits of the findings' frequencies in `labels` (N, findings)."""
    prevalence = labels.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        classifier.bias.copy_(prevalence.logit())


class Losses:
    """Means of an epoch's losses, summed on the device; reading them makes it wait, so it is rare.

    One loss for each sampler. A loss that is not finite ends the run when it is read: its step and films are named.
    """

    def __init__(self, *samplers):
        self.samplers, self.epoch = samplers, 0
        self.reset()

    def reset(self):
        """Begin the next epoch."""
        self.epoch, self.steps, self.recent, self.drawn = self.epoch + 1, 0, [], []
        self.sums = torch.zeros(len(self.samplers), device=self.samplers[0].films.labels.device)

    def add(self, *losses):
        """The losses of the batches that the samplers drew last."""
        losses = torch.stack([loss.detach() for loss in losses])
        self.sums, self.steps = self.sums + losses, self.steps + 1
        self.recent.append(losses)
        self.drawn.append([sampler.index for sampler in self.samplers])

    def means(self):
        """The means so far, numbers."""
        recent = torch.stack(self.recent).tolist() if self.recent else []  # at once: every reading is a wait
        for step, (losses, indices) in enumerate(zip(recent, self.drawn, strict=True), self.steps - len(recent) + 1):
            for loss, sampler, index in zip(losses, self.samplers, indices, strict=True):
                if not math.isfinite(loss):
                    films = ", ".join(sampler.films.names[index.cpu().numpy()])
                    where = f"epoch {self.epoch}, step {step}: the loss on {sampler.films.split} is {loss}"
                    raise SystemExit(f"error: {where}; lower the learning rate, with --fresh; its films: {films}")
        self.recent, self.drawn = [], []
        return (self.sums / max(self.steps, 1)).tolist()

    def state_dict(self):
        return {"sums": self.sums, "steps": self.steps, "epoch": self.epoch}

    def load_state_dict(self, state):
        self.sums = state["sums"].to(self.sums.device)
        self.steps, self.epoch = state["steps"], state["epoch"]


def descend(loss, weights, optimizer, clip, average):
    """One step of `optimizer` along −∇w loss; clip: largest norm of the gradient, or math.inf. Returns the loss.

    average: makes the mean over the ranks of the loss and the gradient, see `ranks.Ranks.average`.
    """
    optimizer.zero_grad()
    loss.backward(inputs=weights)
    loss, *gradients = average([loss.detach(), *(w.grad for w in weights)])
    for w, gradient in zip(weights, gradients, strict=True):
        w.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    return loss + 0 * norm  # a gradient that is not finite makes the loss NaN, which ends the run


def train_epoch(forward, network, sampler, losses, optimizer, clip, run):
    """What is left of a pass over the sampler: forward(films) -> logits; `clip` as for `descend`. Returns the loss."""
    network.train()
    weights = list(network.parameters())
    for _ in run.steps(len(sampler)):
        films, labels = sampler.next()
        with autocast(films.device):
            loss = criterion(forward(films), labels)
        losses.add(descend(loss, weights, optimizer, clip, run.ranks.average))
    return losses.means()[0]


@torch.inference_mode()
def predict(network, films, batch_size, run=None):
    """Probabilities (N, findings) float64 of all films of a split, in order, and the mean loss.

    run: during a run; its ranks share the batches, and it may be stopped between two of them.
    """
    network.eval()
    batches = [slice(start, start + batch_size) for start in range(0, len(films), batch_size)]
    logits = torch.zeros_like(films.labels)
    for batch in batches if run is None else run.share(batches, network):
        logits[batch] = network(films.eval_batch(batch)[0])
    if run is not None:
        run.ranks.sum(logits)
    loss = criterion(logits, films.labels).item()
    if not math.isfinite(loss):
        bad = ", ".join(films.names[~logits.isfinite().all(1).cpu().numpy()][:3])
        raise SystemExit(f"error: the loss on {films.split} is {loss} ({bad}): lower the learning rate, with --fresh")
    return logits.cpu().double().sigmoid().numpy(), loss


def evaluate(network, films, batch_size, run):
    """The mean AUC over the findings, and the mean loss, of all films of a split, during a run."""
    probabilities, loss = predict(network, films, batch_size, run)
    return mean_auc(auc_per_finding(films.labels.cpu(), probabilities)), loss


# --- Scores


def auc_per_finding(labels, scores):
    """Area under the ROC curve of each finding; NaN where all labels of a finding are equal. Both (N, findings)."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    both = (labels.min(axis=0) == 0) & (labels.max(axis=0) == 1)
    return np.array([roc_auc_score(labels[:, k], scores[:, k]) if both[k] else np.nan for k in range(labels.shape[1])])


def mean_auc(auc):
    """Mean over the findings that have one; NaN if none has."""
    scored = [value for value in auc if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan
