"""How far a run is: progress as a bar or as lines, means of the losses, an epoch's line, TensorBoard's curves."""

import math
import sys

import torch
from tqdm import tqdm

from support import ranks

MINUTE = 60  # seconds between lines of progress in a log


def progress(items, title, total, done=0):
    """A bar over `items`; where standard error is no terminal, a line at most every minute instead.

    total: number of items, of which `done` were done before.
    """
    look = {"desc": title, "total": total, "initial": done, "leave": False, "disable": ranks.rank() > 0}
    if sys.stderr.isatty():
        return tqdm(items, mininterval=1, **look)
    form = "{desc}: {n_fmt} of {total_fmt}{postfix}, {remaining} left"
    return tqdm(items, bar_format=form, file=_Lines(), mininterval=MINUTE, delay=MINUTE, miniters=1, **look)


class _Lines:
    """Standard error for tqdm, whose updates become lines instead of overwriting each other."""

    def write(self, text):
        if text.strip("\r\n "):
            print(text.strip("\r\n "), file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


class Losses:
    """Means of an epoch's losses, summed on the device. Reading them waits for the device, so it is done rarely."""

    def __init__(self, device):
        self.device = device
        self.begin_epoch()

    def begin_epoch(self):
        self.sums, self.counts, self.unread = {}, {}, []

    def add(self, name, loss, sampler):
        """A loss of a step, a scalar tensor, on the last batch of `sampler`; None where the step has none.

        Its mean over the epoch becomes the number `name` of the epoch's row. One that is not finite ends the run.
        """
        self.counts.setdefault(name, 0)
        if loss is not None:
            loss = loss.detach()
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
            self.counts[name] += 1
            self.unread.append((loss, self.counts[name], sampler.films, sampler.index))

    def means(self, epoch):
        """{name: mean so far as a number, None without a value}. epoch: its number in messages.

        Ends the run, naming the step and its films, where a loss is not finite.
        """
        values = torch.stack([loss for loss, *_ in self.unread]).tolist() if self.unread else []  # one wait for all
        for value, (_, step, films, index) in zip(values, self.unread, strict=True):
            if not math.isfinite(value):
                names = ", ".join(films.names[index.cpu().numpy()])
                where = f"epoch {epoch}, step {step}: the loss on {films.split} is {value}"
                raise SystemExit(f"error: {where}; lower the learning rate, with --fresh; its films: {names}")
        self.unread = []
        return {n: (self.sums[n] / count).item() if count else None for n, count in self.counts.items()}

    def state_dict(self):
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state):
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


def format_row(numbers):
    """{name: number or None} as two lines for people: the names of the columns, and the numbers below them."""
    cells = {n: "–" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for n, v in numbers.items()}
    rows = zip(*((f"{name:>7}", f"{cell:>{max(7, len(name))}}") for name, cell in cells.items()), strict=True)
    return ["  ".join(row) for row in rows]


def open_curves(folder, epochs):
    """TensorBoard's writer, or None where that package is missing or broken.

    epochs: how many are done. It hides the points of later ones, which the run computes again.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # not at the top: few have it, and it takes a second

        return SummaryWriter(folder, purge_step=epochs + 1)
    except Exception as error:  # its own dependencies may raise anything
        if not isinstance(error, ModuleNotFoundError):
            print(f"warning: TensorBoard cannot be used ({type(error).__name__}: {error}): no curves are written")
        return None
