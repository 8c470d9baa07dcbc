"""A run's folder: settings, log, metrics and checkpoints; continuing, stopping, finishing and starting anew.

    settings.json   the settings that affect the result, and where it ran: git commit, versions, device
    log.txt         for people
    metrics.jsonl   one JSON object per epoch
    checkpoint.pt   all that is needed to go on, within an epoch, too; checkpoint_before.pt is the one before it
    lock            held by the process that works here; a dead process holds nothing

Logs grow line by line, all else is written beside its place and renamed into it. Nothing is overwritten: a finished
run stays as it is, other settings are refused, `--fresh` moves the old folder aside.
"""

import json
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from support.files import load_state, save_state, write
from support.settings import WITHOUT_EFFECT, fail, refuse_changes

TRAINING_HEADER = "epoch         lr   train loss   val loss   val AUC"
LOGS = ("log.txt", "metrics.jsonl")
WITH_EFFECT = ("commit", "torch", "machine", "device", "threads", "ranks")  # on the result: a continued run warns


def read_run(folder):
    """A run's {"settings", "epochs": how many are done}; None where there is no run."""
    at, metrics = Path(folder) / "settings.json", Path(folder) / "metrics.jsonl"
    if not at.exists():
        return None
    try:
        settings = json.loads(at.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        fail(f"{at} is damaged: put it back, or move {folder} away")
    return {"settings": settings, "epochs": len(metrics.read_text().splitlines()) if metrics.exists() else 0}


class Run:
    """The folder of one run, opened for a new run or to continue one. Every rank has one; only rank 0 writes.

    settings: the script's, with anything else that affects the result in `also` (the set's checksum, the genotype).
    product: a file outside the folder that the run makes at its end; `--fresh` moves it aside with the folder.
    """

    def __init__(self, folder, settings, ranks, also, product=None):
        self.folder, self.ranks, self.product = Path(folder), ranks, product
        self.checkpoint, self.before = self.folder / "checkpoint.pt", self.folder / "checkpoint_before.pt"
        self.best, self.spare = self.folder / "best.pth", self.before
        self.lock = FileLock(self.folder / "lock", is_singleton=True)  # this process may come again
        self.started = self.saved_at = time.perf_counter()
        self.log_every, self.minutes = settings.log_every, settings.checkpoint_minutes
        wanted = {k: v for k, v in vars(settings).items() if k not in WITHOUT_EFFECT}
        self.settings = wanted | {"device": ranks.device.type} | also
        with ranks.first_rank_first():
            if ranks.rank == 0:
                self.open(settings.fresh)
            self.saved = self.load()
        self.new = self.saved is None
        self.finished = self.saved is not None and self.saved["finished"]
        if self.finished and ranks.rank == 0:
            self.lock.release(force=True)
            best = self.saved["progress"]["best_auc"]
            print(f"{self.folder}: finished already (best val AUC {best:.3f}), left as it is; --fresh starts anew")

    def open(self, fresh):
        """Lock the folder, move an old run aside if asked to, and compare or write its settings."""
        at, old = self.folder / "settings.json", read_run(self.folder)
        saved, epochs = self.checkpoint.exists() or self.before.exists(), old["epochs"] if old else 0
        made = self.product is not None and self.product.exists()
        if not fresh and not saved and (made or epochs > 1):
            fail(f"{self.product if made else at} is there without a checkpoint: move it away, or pass --fresh")
        if not fresh and saved and old is None:
            fail(f"{at} is missing beside the checkpoint: put it back, or pass --fresh")
        self.take_lock()
        if fresh and (old or saved or made):
            self.move_aside()
            self.lock.release(force=True)
            self.take_lock()
        elif saved or epochs:  # before that nothing is lost
            refuse_changes(at, old["settings"], self.settings)
        if not at.exists() or not saved:
            record = {"settings": self.settings, "environment": self.ranks.environment()}
            write(at, json.dumps(record, indent=1) + "\n")

    def take_lock(self):
        """Refuse a folder in which another process works."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            fail(f"{self.folder}: another process works there: wait for it, or start elsewhere with --out FOLDER")

    def move_aside(self):
        """Rename an old folder, and its product, to dated names."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        for old in (self.folder, self.product):
            if old is not None and old.exists():
                aside = old.with_name(f"{old.stem}.{stamp}{old.suffix}")
                old.rename(aside)
                print(f"{old} moved to {aside}")

    def load(self):
        """The last checkpoint that is whole, or None."""
        there = [path for path in (self.checkpoint, self.before) if path.exists()]
        for path in there:
            # The next one written shall not put a damaged one in the place of the good one.
            self.spare = self.before if path == self.checkpoint else None
            try:
                return load_state(path)
            except Exception as error:  # whatever zipfile and torch raise for a damaged file
                print(f"warning: {path} is damaged ({error}): going on from the checkpoint before it")
        if there:
            fail(f"{self.folder}: its checkpoints are damaged: move the old run aside with --fresh")
        return None

    def track(self, losses, **objects):
        """Name the objects whose state a checkpoint holds: state_dict() or, for generators, get_state()."""
        self.losses, self.tracked = losses, objects | {"losses": losses}

    def restore(self):
        """Load the checkpoint, if there is one, into the tracked objects; returns {"epoch": done, "best_auc"}."""
        self.progress = {"epoch": 0, "best_auc": -1.0} if self.saved is None else self.saved["progress"]
        lengths = {} if self.saved is None else self.saved["lengths"]
        for name in LOGS:  # what was written after the checkpoint comes again
            if self.ranks.rank == 0 and (self.folder / name).exists():
                size = (self.folder / name).stat().st_size  # less than it was, at worst, after a power cut
                os.truncate(self.folder / name, min(size, lengths.get(name, 0)))
        if self.saved is not None:
            for name, item in self.tracked.items():
                state = self.saved["tracked"][name]
                (item.set_state if isinstance(item, torch.Generator) else item.load_state_dict)(state)
            self.started -= self.saved["seconds"]
        if self.saved is not None and self.ranks.rank == 0:
            self.log(f"continued after epoch {self.progress['epoch']}, step {self.losses.steps}")
            there = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))["environment"]
            for name, here in self.ranks.environment().items():
                if name in WITH_EFFECT and there.get(name) != here:
                    self.log(f"warning: {name} was {there.get(name)!r}, is {here!r}: the result may differ")
        self.saved = None  # its memory is wanted
        self.handlers = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self.progress

    def ask(self, number, _):
        """On a signal: stop after the step at hand; a second one stops at once."""
        self.ranks.signal = number
        if self.ranks.count == 1:  # torchrun passes on what the terminal has sent to all already
            signal.signal(number, self.handlers[number])
        os.write(2, b"\nstopping after this step, with a checkpoint ...\n")  # print() is not safe here

    def steps(self, total):
        """Count the steps that are left of the epoch; in between: the loss, checkpoints, leaving if asked to."""
        title, first, quiet = f"epoch {self.progress['epoch'] + 1}", self.losses.steps, self.ranks.rank > 0
        bar = tqdm(range(first, total), title, total, leave=False, mininterval=1, initial=first, disable=quiet)
        for step in bar:
            yield step
            if step % self.log_every == 0:
                bar.set_postfix(loss=f"{self.losses.means()[0]:.4f}")
            if step % self.log_every == 0 or not self.ranks.asking_waits:
                self.pause()

    def share(self, batches, network):
        """This rank's part of an evaluation's batches, with the BatchNorm statistics of rank 0."""
        self.ranks.share_buffers(network)
        for batch in batches[self.ranks.rank :: self.ranks.count]:
            yield batch
            self.pause()

    def pause(self):
        """Leave if asked to, after a checkpoint; without being asked, write one every CHECKPOINT_MINUTES."""
        if self.ranks.asked_to_stop():
            self.save()
            self.ranks.wait()
            number = self.ranks.signal or signal.SIGTERM
            name = signal.Signals(number).name
            print(f"stopped by {name}; the same command goes on from here (without --fresh)", file=sys.stderr)
            raise SystemExit(128 + number)
        if time.perf_counter() - self.saved_at > 60 * self.minutes:
            self.save()

    def log(self, text):
        """A line on the screen, clear of progress bars, and in log.txt."""
        if self.ranks.rank == 0:
            tqdm.write(text)
            self.append("log.txt", text)

    def append(self, name, text):
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def end_epoch(self, row):
        """Append `row` to metrics.jsonl, then write the checkpoint from which the next epoch can start."""
        self.losses.reset()
        if self.ranks.rank == 0:
            self.append("metrics.jsonl", json.dumps(row | {"seconds": round(self.seconds(), 1)}))
        self.save()

    def end_training_epoch(self, network, row, auc):
        """The same for a training whose product is a weights file: keeps the weights if `auc` is the best so far."""
        progress = self.progress
        progress["epoch"] += 1
        better = auc > progress["best_auc"]
        if better:
            progress["best_auc"] = auc
            weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            state = {"weights": weights, "epoch": progress["epoch"], "val_auc": auc, "settings": self.settings}
            if self.ranks.rank == 0:
                save_state(self.best, state)
        losses = f"{row['train_loss']:10.4f}   {row['val_loss']:8.4f}"
        self.log(f"{progress['epoch']:5}   {row['lr']:8.1e}   {losses}   {auc:7.3f}{'  best so far' if better else ''}")
        self.end_epoch({"epoch": progress["epoch"]} | row | {"val_auc": auc})

    def finish_training(self):
        """Put the best weights in their place, which an unfinished training leaves empty, and finish."""
        if self.ranks.rank == 0 and self.best.exists():
            self.best.replace(self.product)
        self.log(f"best val AUC {self.progress['best_auc']:.3f}, in {self.product}; {self.seconds() / 60:.1f} minutes")
        self.finish()

    def finish(self):
        """Mark the run as finished."""
        self.save(finished=True)
        self.lock.release(force=True)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def seconds(self):
        """Time spent on this run so far, over all its starts."""
        return time.perf_counter() - self.started

    def save(self, finished=False):
        """Write the checkpoint, and keep the one before it. A loss that is not finite ends the run instead."""
        self.losses.means()
        self.saved_at = time.perf_counter()
        if self.ranks.rank > 0:
            return
        states = {
            name: item.get_state() if isinstance(item, torch.Generator) else item.state_dict()
            for name, item in self.tracked.items()
        }
        lengths = {name: (self.folder / name).stat().st_size for name in LOGS if (self.folder / name).exists()}
        state = {"tracked": states, "progress": self.progress, "lengths": lengths, "seconds": self.seconds()}
        save_state(self.checkpoint, state | {"finished": finished}, self.spare)
        self.spare = self.before
