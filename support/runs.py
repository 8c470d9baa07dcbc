"""A run's folder: settings, log, metrics and checkpoints; continuing, stopping, finishing, starting again.

    settings.json   the settings that affect the result, and where it ran: git commit, versions, device
    log.txt         for people
    metrics.jsonl   one JSON object per epoch; its numbers are in events.*, too, where TensorBoard is installed
    checkpoint.pt   all that is needed to go on, within an epoch, too; checkpoint_before.pt is the one before it
    lock            held by the process that works here; a dead process holds nothing

Logs grow line by line, all else is written as a whole or not at all. Nothing is overwritten: a finished run stays as
it is, other settings are refused, `--fresh` moves the old folder aside.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from support import ranks
from support.files import InputError, load_state, lock, save_state, write
from support.progress import Losses, Pace, progress

LOG_EVERY = 10  # steps between readings of the loss, and between the ranks' asking each other whether to stop
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch

LOGS = ("log.txt", "metrics.jsonl")
WITHOUT_EFFECT = {"out", "data", "fresh"}  # settings that say where a run goes, not what it computes
# What affects the result: a run that goes on elsewhere warns.
WITH_EFFECT = ("commit", "torch", "machine", "device", "type", "threads", "ranks")


def autocast_type(device):
    """The type of the w step and of trainings: bfloat16 on GPUs that have it (from Ampere on), else float32.

    A GPU that only emulates bfloat16 is slow at it. float16, in which older GPUs are fast, would need scaled losses.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def environment(device):
    """Where this runs: {"commit", "python", "torch", "machine", "device", "type", "threads", "ranks", "date"}."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "type": str(autocast_type(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ranks": ranks.count(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def read_run(folder):
    """A run's settings and how many epochs it has done: (dict, int), or None where there is no run."""
    at = Path(folder) / "settings.json"
    if not at.exists():
        return None
    try:
        settings = json.loads(at.read_text(encoding="utf-8"))["settings"]
        settings["checksum"], settings["dataset"], settings["epochs"] + 1
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{at} is damaged: repeat the command of that run, which writes it again") from None
    return settings, count_epochs(folder)


def count_epochs(folder):
    """The rows of metrics.jsonl."""
    metrics = Path(folder) / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def refuse_changes(folder, before, now):
    """Raise InputError where the settings `now` are not those of the run in `folder`, `before`; both dicts."""
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if names:
        name, *others = sorted(names, key=lambda name: (name != "dataset", name))
        also = f" (other differences: {', '.join(others)})" if others else ""
        raise InputError(
            f"{folder}: {name} was {before.get(name)!r}, now {now.get(name)!r}{also}; "
            "set it back, start elsewhere with --out FOLDER, or move the old run aside with --fresh"
        )


def open_curves(folder, epochs):
    """TensorBoard's writer, or None without that package. It hides points after `epochs`: their work is done again."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # not at the top: few have it, and it takes a second
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=epochs + 1)


class Run:
    """One run: its folder, and how far it is. Every rank has one; only rank 0 writes.

    run = Run(folder, settings, device, {"checksum": data.checksum})
    if run.finished:
        return
    run.restore(network=network, optimizer=optimizer, train=sampler, generator=generator)
    for epoch in run.epochs(settings.epochs):
        for _ in run.steps(len(sampler)):
            ...
            run.add(train=loss)
        run.is_best(auc)
        run.end_epoch("what people read", val_auc=auc)
    run.finish(draw)
    """

    def __init__(self, folder, settings, device, also, product=None):
        """Open the folder for a new run or to continue one. Raises InputError for what must not be touched.

        settings: the script's; also: what else affects the result, {name: plain value}.
        product: a file outside the folder that the run makes at its end; `--fresh` moves it aside with the folder.
        """
        self.folder, self.device, self.product = Path(folder), device, product
        self.checkpoint, self.before = self.folder / "checkpoint.pt", self.folder / "checkpoint_before.pt"
        self.best, self.best_before = self.folder / "best.pth", self.folder / "best_before.pth"
        self.spare = self.before
        self.started = self.saved_at = time.perf_counter()
        self.signal = 0  # the number of the signal that asked this rank to stop
        values = {name: value for name, value in vars(settings).items() if name not in WITHOUT_EFFECT}
        self.environment = environment(device)
        self.record = {"settings": values | {"device": device.type} | also, "environment": self.environment}
        with ranks.first_rank_first():
            self.saved = self.open(settings.fresh) if ranks.rank() == 0 else self.load()
        self.new = self.saved is None
        self.finished = self.saved is not None and self.saved["finished"]
        if self.finished and ranks.rank() == 0:
            self.lock.release(force=True)
            best = self.saved["progress"]["best_auc"]
            print(f"{self.folder}: finished already (best val AUC {best:.3f}), left as it is; --fresh starts again")

    # --- Opening

    def open(self, fresh):
        """Lock the folder, move an old run aside if asked to, compare or write the settings; returns the checkpoint."""
        self.take_lock()
        made = self.product is not None and self.product.exists()
        if fresh and (made or set(os.listdir(self.folder)) - {"lock"}):
            self.move_aside()
            self.lock.release(force=True)
            self.take_lock()
            made = False
        saved = self.load()
        if saved is None:
            self.refuse_results(made)
        else:
            refuse_changes(self.folder, saved["record"]["settings"], self.record["settings"])
            self.record = saved["record"]
            if made and self.best.exists() and not saved["finished"]:
                raise InputError(f"{self.product} is there, but is not of this run: move it away, or pass --fresh")
        at, text = self.folder / "settings.json", json.dumps(self.record, indent=1) + "\n"
        if not at.exists() or at.read_text(encoding="utf-8", errors="replace") != text:
            write(at, text)
        return saved

    def refuse_results(self, made):
        """Raise InputError where, without a checkpoint, there are results. Up to the first epoch nothing is lost.

        made: whether the product is there.
        """
        whole = {name for name in os.listdir(self.folder) if name != "lock" and not name.endswith(".part")}
        foreign = bool(whole) and "settings.json" not in whole
        if made or foreign or count_epochs(self.folder) > 1:
            there = self.product if made else self.folder
            raise InputError(f"{there} is there without a checkpoint: move it away, or pass --fresh")

    def take_lock(self):
        """Refuse a folder in which another process works."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder / "lock")

    def move_aside(self):
        """Rename an old folder, and its product, to dated names."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        for old in (self.folder, self.product):
            if old is not None and old.exists():
                aside = old.with_name(f"{old.stem}.{stamp}{old.suffix}")
                old.rename(aside)
                print(f"{old} moved to {aside}")

    def load(self):
        """The last checkpoint that is whole, or None. Raises InputError where all are damaged."""
        there = [path for path in (self.checkpoint, self.before) if path.exists()]
        for path in there:
            # The next one written must not put a damaged one in the place of the good one.
            self.spare = self.before if path == self.checkpoint else None
            try:
                saved = dict(load_state(path))
            except Exception as error:  # whatever zipfile and torch raise for a damaged file
                print(f"warning: {path} is damaged ({type(error).__name__}): going on from the checkpoint before it")
                continue
            if not {"record", "states", "progress", "lengths", "finished"} <= saved.keys():
                raise InputError(f"{path} is of an older version of this project: finish it there, or pass --fresh")
            return saved
        if there:
            raise InputError(f"{self.folder}: its checkpoints are damaged: move the old run aside with --fresh")
        return None

    def restore(self, **stateful):
        """Name what a checkpoint holds, and load it from the last one, if there is one.

        stateful: objects with state_dict(), or generators. A sampler has the name of the loss on its batches (`add`).
        """
        self.losses, self.pace = Losses(self.device), Pace(self.device)
        self.stateful = stateful | {"losses": self.losses}
        self.progress = {"epoch": 0, "best_auc": -1.0, "lines": {}}  # epochs done; what `write` wrote
        lengths = {}
        if self.saved is not None:
            self.progress, lengths = self.progress | self.saved["progress"], self.saved["lengths"]
            for name, item in self.stateful.items():
                state = self.saved["states"][name]
                (item.set_state if isinstance(item, torch.Generator) else item.load_state_dict)(state)
            self.started -= self.saved["seconds"]
        if ranks.rank() == 0:
            for path in [self.folder / name for name in LOGS]:  # what was written after the checkpoint is written again
                if path.exists():  # after a power cut it may be shorter than it was
                    os.truncate(path, min(path.stat().st_size, lengths.get(path.name, 0)))
            self.forget_later_best()
        if self.saved is not None:
            self.log(f"continued after epoch {self.progress['epoch']}, step {self.losses.steps}")
            there, here = self.saved["record"]["environment"], self.environment
            for name in WITH_EFFECT:
                if there[name] != here[name]:
                    self.log(f"warning: {name} was {there[name]!r}, is {here[name]!r}: the result may differ")
        self.curves = open_curves(self.folder, self.progress["epoch"]) if ranks.rank() == 0 else None
        self.saved = None  # frees its memory
        self.handlers = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def forget_later_best(self):
        """Go back to the best of the epochs that are done: one that is done again may come out otherwise."""
        for name, line in self.progress["lines"].items():
            write(self.folder / name, line + "\n")
        for kept in (self.best, self.best_before):
            try:
                there = load_state(kept)["val_auc"]
            except Exception:  # none there, or damaged: whatever zipfile and torch raise
                continue
            if there == self.progress["best_auc"]:
                kept.replace(self.best)
                break

    def where(self):
        """What computes, for the log: "cpu, float32, 2 threads", or also "..., 4 ranks"."""
        here = self.environment
        several = f", {here['ranks']} ranks" if here["ranks"] > 1 else ""
        return f"{here['device']}, {here['type']}, {self.threads()}{several}"

    def threads(self):
        number = self.environment["threads"]
        return f"{number} thread{'s' * (number > 1)}"

    # --- Under way

    def epochs(self, total):
        """The numbers of the epochs that are left, from 1; a part of the first may be done."""
        while self.progress["epoch"] < total:
            yield self.progress["epoch"] + 1

    def steps(self, total):
        """The steps that are left of the epoch; after each, the run may leave if asked to, or write a checkpoint."""
        first = self.losses.steps
        bar = progress(range(first, total), f"epoch {self.progress['epoch'] + 1}, {self.threads()}", total, first)
        self.pace.begin()
        for step in bar:
            yield step
            reading = step % LOG_EVERY == 0
            if reading:
                bar.set_postfix(loss=f"{next(iter(self.means().values())):.4f}", refresh=False)
                if warning := self.pace.read(step, self.losses.names):
                    self.log(warning)
            self.pause(together=reading)

    def add(self, **losses):
        """The losses of a step (tensors), each under the name of the sampler whose last batch it is of; or None."""
        losses = {name: loss for name, loss in losses.items() if loss is not None}
        self.losses.add(losses, [self.stateful[name] for name in losses])

    def means(self):
        """{name: mean of this loss over the epoch so far}. A loss that is not finite ends the run."""
        return self.losses.means(self.progress["epoch"] + 1)

    def ask(self, number, _):
        """On a signal: stop after the step at hand; a second one stops at once."""
        self.signal = number
        if ranks.count() == 1:  # torchrun passes on what the terminal has sent to all already
            signal.signal(number, self.handlers[number])
        os.write(2, b"\nstopping after this step, with a checkpoint ...\n")  # print() is not safe here

    def pause(self, together=False):
        """Leave, after a checkpoint, if a signal asked for it; else write a checkpoint every CHECKPOINT_MINUTES.

        together: all ranks are here at the same step, and stop if one was asked to. One rank may stop anywhere.
        """
        number = ranks.largest(self.signal, self.device) if together or ranks.count() == 1 else 0
        if number:
            self.save()
            ranks.wait()
            name = signal.Signals(number).name
            print(f"stopped by {name}; the same command goes on from here (without --fresh)", file=sys.stderr)
            raise SystemExit(128 + number)
        if time.perf_counter() - self.saved_at > 60 * CHECKPOINT_MINUTES:
            self.save()

    # --- What it leaves behind

    def log(self, text):
        """A line on the screen, clear of progress bars, and in log.txt."""
        if ranks.rank() == 0:
            tqdm.write(text)
            self.append("log.txt", text)

    def append(self, name, text):
        with open(self.folder / name, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")

    def write(self, name, line):
        """A text file of one line in the folder, whole or not at all; every rank finds it there afterwards."""
        self.progress["lines"][name] = line
        if ranks.rank() == 0:
            write(self.folder / name, line + "\n")
        ranks.wait()

    def is_best(self, auc, counts=True):
        """Whether this epoch's val AUC is the best so far. counts: False for an epoch that must not be the best."""
        self.better = counts and auc > self.progress["best_auc"]
        if self.better:
            self.progress["best_auc"] = auc
        return self.better

    def save_weights(self, network):
        """Keep the network as it is now, for the product."""
        weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        epoch, auc = self.progress["epoch"] + 1, self.progress["best_auc"]
        state = {"weights": weights, "epoch": epoch, "val_auc": auc, "settings": self.record["settings"]}
        if ranks.rank() == 0:
            save_state(self.best, state, self.best_before)

    def end_epoch(self, shown, draw=None, **stored):
        """Log the line `shown`, append `stored` to metrics.jsonl, and write a checkpoint.

        draw: makes a figure of the cells; called where TensorBoard shows them beside its curves of `stored`.
        """
        self.progress["epoch"] += 1
        self.losses.begin_epoch()
        self.log(f"{shown}{'  best so far' if self.better else ''}")
        if ranks.rank() == 0:
            row = {"epoch": self.progress["epoch"]} | stored | {"seconds": round(self.seconds(), 1)}
            self.append("metrics.jsonl", json.dumps(row))
        if self.curves is not None:
            for name in [name for name, value in stored.items() if isinstance(value, (int, float))]:
                self.curves.add_scalar(name, stored[name], self.progress["epoch"])
            if draw is not None:
                self.curves.add_figure("cells", draw(), self.progress["epoch"])
            self.curves.flush()
        self.save()

    def finish(self, draw):
        """Draw the pictures of the folder, put the product into its place, and mark the run as finished."""
        if ranks.rank() == 0:
            if self.product is not None and self.best.exists():
                self.best.replace(self.product)
                self.best_before.unlink(missing_ok=True)
            elif self.product is not None and not self.product.exists():
                raise InputError(f"{self.best} is missing, which held the network: train again with --fresh")
            draw(self.folder)
        where = f", in {self.product}" if self.product is not None else ""
        self.log(f"best val AUC {self.progress['best_auc']:.3f}{where}; {self.seconds() / 60:.1f} minutes")
        self.save(finished=True)
        if ranks.rank() == 0:
            self.lock.release(force=True)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def seconds(self):
        """Time spent on this run so far, over all its starts."""
        return time.perf_counter() - self.started

    def save(self, finished=False):
        """Write the checkpoint, and keep the one before it. A loss that is not finite ends the run instead."""
        self.means()
        self.saved_at = time.perf_counter()
        if ranks.rank() > 0:
            return
        states = {
            name: item.get_state() if isinstance(item, torch.Generator) else item.state_dict()
            for name, item in self.stateful.items()
        }
        lengths = {name: (self.folder / name).stat().st_size for name in LOGS if (self.folder / name).exists()}
        state = {"record": self.record, "states": states, "progress": self.progress, "lengths": lengths}
        save_state(self.checkpoint, state | {"seconds": self.seconds(), "finished": finished}, self.spare)
        self.spare = self.before
