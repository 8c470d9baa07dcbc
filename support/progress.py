"""How far a run is: progress as a bar or as lines, the means of the losses, the pace of the steps."""

import math
import sys
import time

import torch
from tqdm import tqdm

from support import ranks

MINUTE = 60  # seconds between lines of progress in a log
SLOWER = 3  # times as long as in the run's fastest stretch a step may take before a line says what may help


def progress(items, title, total, done=0):
    """A bar over `items`; where standard error is no terminal, a line at most every minute instead.

    total: number of items, of which `done` were done before.
    """
    look = {"desc": title, "total": total, "initial": done, "leave": False}
    if sys.stderr.isatty():
        return tqdm(items, mininterval=1, disable=ranks.rank() > 0, **look)
    form = "{desc}: {n_fmt} of {total_fmt}{postfix}, {remaining} left"
    slow = {"mininterval": MINUTE, "delay": MINUTE, "miniters": 1}
    return tqdm(items, bar_format=form, file=_Lines(), disable=ranks.rank() > 0, **slow, **look)


class _Lines:
    """Standard error for tqdm, whose updates become lines instead of overwriting each other."""

    def write(self, text):
        if text.strip("\r\n "):
            print(text.strip("\r\n "), file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


class Losses:
    """Means of an epoch's losses, summed on the device. Reading them blocks it, so it is done rarely.

    A loss that is not finite ends the run when it is read: its step and films are named.
    """

    def __init__(self, device):
        self.device = device
        self.begin_epoch()

    def begin_epoch(self):
        self.steps, self.names, self.recent = 0, [], []
        self.sums = torch.zeros((), device=self.device)

    def add(self, losses, samplers):
        """losses {name: tensor}; samplers: those that drew the batch of each."""
        values = torch.stack([loss.detach() for loss in losses.values()])
        self.names, self.sums, self.steps = list(losses), self.sums + values, self.steps + 1
        self.recent.append((values, [(sampler.films, sampler.index) for sampler in samplers]))

    def means(self, epoch):
        """{name: mean so far}, numbers; empty before the first step. epoch: what a message calls this one."""
        read = torch.stack([values for values, _ in self.recent]).tolist() if self.recent else []  # one wait for all
        first = self.steps - len(read) + 1
        for step, (losses, (_, batches)) in enumerate(zip(read, self.recent, strict=True), first):
            for loss, (films, index) in zip(losses, batches, strict=True):
                if not math.isfinite(loss):
                    names = ", ".join(films.names[index.cpu().numpy()])
                    where = f"epoch {epoch}, step {step}: the loss on {films.split} is {loss}"
                    raise SystemExit(f"error: {where}; lower the learning rate, with --fresh; its films: {names}")
        self.recent = []
        return dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True)) if self.steps else {}

    def state_dict(self):
        return {"steps": self.steps, "names": self.names, "sums": self.sums}

    def load_state_dict(self, state):
        self.steps, self.names = state["steps"], state["names"]
        self.sums = state["sums"].to(self.device)


class Pace:
    """Notices on a CPU with several threads that steps have become slow, as beside another busy program."""

    def __init__(self, device):
        self.fastest, self.losses = math.inf, None  # seconds a step, and the losses of these steps
        self.watching = device.type == "cpu" and torch.get_num_threads() > 1

    def begin(self):
        """Before the first step of an epoch, or of what is left of it."""
        self.last = None

    def read(self, step, losses):
        """After a step: a line, once in a run, where the steps since the last reading were SLOWER times as slow.

        losses: their names. Steps with others, as after the warm-up of a search, are other steps.
        """
        now, before = time.perf_counter(), self.last
        self.last = step, now
        if before is None or not self.watching:
            return ""
        if losses != self.losses:
            self.fastest, self.losses = math.inf, losses
        seconds = (now - before[1]) / (step - before[0])
        self.fastest = min(self.fastest, seconds)
        if seconds < SLOWER * self.fastest:
            return ""
        self.watching = False
        return (
            f"a step takes {seconds:.1f} s, {seconds / self.fastest:.0f} times the fastest so far: beside other busy "
            "programs a run is faster with OMP_NUM_THREADS=1 in front of its command (docs/speed.md)"
        )
