"""What the scripts share: settings from their constants, devices, one training epoch, prediction, AUC."""

import argparse
import ast
import contextlib
import math
import sys
import tokenize
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from tqdm import tqdm

# --- Settings and errors


def fail(message):
    """End the script with one line on stderr and status 2: the input is at fault, not the code."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def one_line_errors():
    """Turn the ValueError by which a module refuses a file or a setting into that one line."""
    try:
        yield
    except ValueError as error:
        fail(error)


def read_constants(script):
    """The UPPER_CASE constants of a script with the comment behind each: [(name, value, comment)].

    Read from the source as data, since the comments are the options' help.
    """
    with tokenize.open(script) as file:
        source = file.read()
    tokens = tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    constants = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            name = node.targets[0].id
            try:
                constants.append((name, ast.literal_eval(node.value), comments.get(node.lineno, "")))
            except ValueError:
                fail(f"{script}, line {node.lineno}: {name} must be a plain value, not an expression")
    return constants


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(f"{self.prog}: {message} (see --help)")


def parse_settings(script, argv=None):
    """The settings of a script: its constants, each changed by the option of its name, in lower case.

    A dict holds one value per prepared set: the chosen set's counts, the phantom's for a set without one, and the
    option replaces it.
    """
    constants = read_constants(script)
    title = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8"))).split("\n")[0]
    parser = _Parser(Path(script).name, description=title, allow_abbrev=False)
    for name, value, comment in constants:
        example = value["phantom"] if isinstance(value, dict) else value
        option = {"help": f"{comment} [{value}]".replace("%", "%%"), "default": argparse.SUPPRESS}
        if isinstance(example, bool):
            option["action"] = argparse.BooleanOptionalAction
        elif isinstance(example, list):
            option["action"] = "append"
        else:
            option["type"] = float if isinstance(example, float) else type(example)
            option["metavar"] = type(example).__name__.upper()
        parser.add_argument("--" + name.lower().replace("_", "-"), **option)

    settings = {name.lower(): value for name, value, _ in constants} | vars(parser.parse_args(argv))
    for name, value in settings.items():
        if isinstance(value, dict):
            settings[name] = value.get(settings["dataset"], value["phantom"])
    return SimpleNamespace(**settings)


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


def seed_everything(seed, device):
    """Seed the initial weights (torch's own generator) and return the one generator of all other draws."""
    torch.manual_seed(seed)
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
    """Mean of the losses of an epoch, summed on the device; reading it makes the device wait, so it is rare."""

    def __init__(self, device):
        self.sum, self.steps = torch.zeros((), device=device), 0

    def add(self, loss):
        self.sum += loss.detach()
        self.steps += 1

    def mean(self):
        """The mean so far, a number; a loss that is not finite ends the run."""
        mean = self.sum.item() / max(self.steps, 1)
        if not math.isfinite(mean):
            raise SystemExit(f"error: the loss is no longer finite after {self.steps} steps of this epoch")
        return mean


def train_epoch(forward, network, sampler, optimizer, clip, log_every, title):
    """One pass over the sampler: forward(films) -> logits; `clip`: largest gradient norm or None. Returns the loss."""
    network.train()
    losses = Losses(sampler.films.labels.device)
    bar = tqdm(range(len(sampler)), title, leave=False, mininterval=1)
    for step in bar:
        films, labels = sampler.next()
        with autocast(films.device):
            loss = criterion(forward(films), labels)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        losses.add(loss)
        if step % log_every == 0:
            bar.set_postfix(loss=f"{losses.mean():.4f}")
    return losses.mean()


@torch.inference_mode()
def predict(network, films, batch_size):
    """Probabilities (N, findings) float64 of all films of a split, in order, and the mean loss."""
    network.eval()
    logits = []
    for start in range(0, len(films), batch_size):
        batch, _ = films.eval_batch(slice(start, start + batch_size))
        logits.append(network(batch))
    logits = torch.cat(logits)
    loss = criterion(logits, films.labels).item()
    if not math.isfinite(loss):
        raise SystemExit(f"error: the loss on {films.split} is no longer finite")
    return logits.cpu().double().sigmoid().numpy(), loss


def evaluate(network, films, batch_size):
    """The mean AUC over the findings, and the mean loss, of all films of a split."""
    probabilities, loss = predict(network, films, batch_size)
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
