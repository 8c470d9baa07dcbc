"""A run's folder: settings, log, metrics and checkpoints; how a run continues, stops, finishes and starts again.

    settings.json   the settings that affect the result, and where it ran: git commit, versions, device
    log.txt         for people
    metrics.jsonl   one JSON object per epoch; its numbers are in events.*, too, where TensorBoard is installed
    checkpoint.pt   the state: all that is needed to go on, within an epoch, too, and what was best so far;
                    checkpoint_before.pt is the one before it
    lock            held by the process that works here; a dead process holds nothing

Texts and the product are written from the state, also when a run is opened again. Logs grow line by line, all else is
written as a whole or not at all. Nothing is overwritten: a finished run stays as it is, other settings are refused,
`--fresh` moves the old run aside.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from support import ranks
from support.files import InputError, load_state, lock, named, save_state, write
from support.progress import Losses, format_row, open_curves, progress
from support.records import WITH_EFFECT, count_epochs, make_record, refuse_changes

LOG_EVERY = 10  # steps between readings of the loss, and between the ranks' asking each other whether to stop
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch
FORMAT = 2  # of checkpoints

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # a closed terminal sends HUP; Slurm can warn by USR1

LOGS = ("log.txt", "metrics.jsonl")


class Run:
    """One run: its folder, and how far it is. Every rank has one, and rank 0 writes.

    new: no checkpoint is there to go on from. finished: nothing is left to do.
    """

    def __init__(self, folder, settings, device, also, product=None):
        """Lock the folder, and load the run in it, if there is one. Raises InputError for what must not be touched.

        settings: the script's; also: what else affects the result, {name: plain value}.
        product: the weights file outside the folder that the run makes when it finishes; `--fresh` moves it aside, too.
        """
        self.folder, self._device, self._product = Path(folder), device, product
        self._checkpoint, self._before = self.folder / "checkpoint.pt", self.folder / "checkpoint_before.pt"
        self._started = self._saved_at = time.perf_counter()
        self._signal = 0  # the number of the signal that asked this rank to stop
        self._record = make_record(settings, device, also)
        self._environment = self._record["environment"]
        with ranks.first_rank_first():
            saved = self._open(settings.fresh) if ranks.rank() == 0 else self._load()
        self._saved, self.new, self.finished = saved, saved is None, saved is not None and saved["finished"]
        # best: {"epoch", "val_auc", "kept"}, see end_epoch; texts: {file name: text}
        self._progress = {"epoch": 0, "step": 0, "best": None, "texts": {}} if self.new else saved["progress"]
        if ranks.rank() == 0:
            self._write_outputs(self.finished)
            if self.finished:
                self._lock.release(force=True)
                best = self._progress["best"]["val_auc"]
                print(f"{self.folder}: finished already (best val AUC {best:.3f}), left as it is; --fresh starts again")

    # --- Opening

    def _open(self, fresh):
        """Lock the folder, move an old run aside if asked to, compare or write the settings; returns the checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder / "lock")
        if fresh:
            self._move_aside()
        saved = self._load()
        made = self._product is not None and self._product.exists()
        if saved is None:
            # A run killed before its first checkpoint may have left these files; starting again loses one epoch.
            whole = {name for name in os.listdir(self.folder) if name != "lock" and not name.endswith(".part")}
            if made or (whole and "settings.json" not in whole) or count_epochs(self.folder) > 1:
                there = self._product if made else self.folder
                raise InputError(f"{there} is there without a checkpoint: move it away, or pass --fresh")
        else:
            refuse_changes(self.folder, saved["record"]["settings"], self._record["settings"])
            self._record = saved["record"]
            if made and not self._is_mine(saved):
                raise InputError(f"{self._product} is there, but is not of this run: move it away, or pass --fresh")
        at, text = self.folder / "settings.json", json.dumps(self._record, indent=1) + "\n"
        if not at.exists() or at.read_text(encoding="utf-8", errors="replace") != text:
            write(at, text)
        return saved

    def _move_aside(self):
        """Move what is in the folder, and the product, to dated names. The lock stays, and is held."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        aside = self.folder.with_name(f"{self.folder.name}.{stamp}")
        # Without settings.json, what is left when the moving breaks off is not taken for a run that may start again.
        files = sorted(self.folder.iterdir(), key=lambda path: (path.name != "settings.json", path))
        for old in [path for path in files if path.name != "lock"]:
            aside.mkdir(exist_ok=True)
            shutil.move(old, aside / old.name)
        if aside.exists():
            print(f"the old run was moved to {aside}")
        if self._product is not None and self._product.exists():
            new = self._product.with_name(f"{self._product.stem}.{stamp}{self._product.suffix}")
            print(f"its weights were moved to {shutil.move(self._product, new)}")

    def _is_mine(self, saved):
        """Whether the product is this run's, or a damaged one of a finished run, which can be written again."""
        try:
            there = dict(load_state(self._product))
        except (ValueError, TypeError):  # damaged, or not a state
            return saved["finished"]
        mine = (saved["progress"]["best"] or {}) | saved["record"]
        return all(there.get(name) == mine.get(name) for name in ("epoch", "val_auc", "settings"))

    def _load(self):
        """The last checkpoint that is whole, or None. Raises InputError where all are damaged."""
        there = [path for path in (self._checkpoint, self._before) if path.exists()]
        for path in there:
            try:
                saved = load_state(path)
            except InputError as error:
                print(f"warning: {error}: going on from the checkpoint before it")
                continue
            if saved.get("format") != FORMAT:
                raise InputError(f"{path} is of another version of this project: finish it there, or pass --fresh")
            if path == self._before:  # else the next save would move the damaged checkpoint over this good one
                self._checkpoint.unlink(missing_ok=True)
            return saved
        if there:
            raise InputError(f"{self.folder}: its checkpoints are damaged: move the old run aside with --fresh")
        return None

    def restore(self, **stateful):
        """Name what a checkpoint holds, and load it from the last one, if there is one.

        stateful: objects with state_dict() and load_state_dict(), or generators.
        """
        self._losses, self._curves = Losses(self._device), None
        self.add = self._losses.add  # of a step's loss
        self._stateful = stateful | {"losses": self._losses}
        if ranks.rank() == 0:
            lengths = {} if self.new else self._saved["lengths"]
            for path in [self.folder / name for name in LOGS]:  # lines after the checkpoint will be written again
                if path.exists() and len(content := path.read_bytes()) > lengths.get(path.name, 0):
                    write(path, content[: lengths.get(path.name, 0)])
            self._curves = open_curves(self.folder, self._progress["epoch"])
        if self.new:
            self.log("on {device}, {type}, threads: {threads}, ranks: {ranks}".format_map(self._environment))
        else:
            for name, item in self._stateful.items():
                state = self._saved["states"][name]
                (item.set_state if isinstance(item, torch.Generator) else item.load_state_dict)(state)
            self._started -= self._saved["seconds"]
            self.log(f"continued after epoch {self._progress['epoch']}, step {self._progress['step']}")
            there = self._saved["record"]["environment"]
            for name in [name for name in WITH_EFFECT if there[name] != self._environment[name]]:
                self.log(f"warning: {name} was {there[name]!r}, is {self._environment[name]!r}: the result may differ")
        self._saved = None  # frees its memory
        there = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        heard = [number for number in there if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        self._handlers = {number: signal.signal(number, self._ask) for number in heard}

    # --- Under way

    def epochs(self, total):
        """The numbers of the epochs that are left, from 1; a part of the first may be done."""
        while self._progress["epoch"] < total:
            yield self._progress["epoch"] + 1

    def steps(self, total):
        """Yields the steps that are left of the epoch; after each, the run may stop or write a checkpoint."""
        first = self._progress["step"]
        bar = progress(range(first, total), f"epoch {self._progress['epoch'] + 1}", total, first)
        for step in bar:
            yield step
            self._progress["step"] = step + 1
            reading = step % LOG_EVERY == 0
            if reading:
                bar.set_postfix({name: f"{mean:.4f}" for name, mean in self._means().items() if mean}, refresh=False)
            self.stop_or_save_if_due(together=reading)

    def _means(self):
        return self._losses.means(self._progress["epoch"] + 1)

    def _ask(self, number, _):
        """On a signal: stop after the step at hand; a second one stops at once."""
        self._signal = number
        if ranks.count() == 1:  # torchrun passes on what the terminal has sent to all already
            signal.signal(number, self._handlers[number])
        with suppress(OSError):  # there may be no screen any more; print() is not safe here
            os.write(2, b"\nstopping after this step, with a checkpoint ...\n")

    def stop_or_save_if_due(self, together=False):
        """Leave, after a checkpoint, if a signal asked for it; else write a checkpoint every CHECKPOINT_MINUTES.

        together: all ranks call this at the same step, so that all stop when one received a signal. A run of one rank
        may stop at any call.
        """
        number = ranks.largest(self._signal, self._device) if together or ranks.count() == 1 else 0
        if number:
            self._save()
            ranks.wait()
            name = signal.Signals(number).name
            print(f"stopped by {name}; the same command goes on from here (without --fresh)", file=sys.stderr)
            raise SystemExit(128 + number)
        if time.perf_counter() - self._saved_at > 60 * CHECKPOINT_MINUTES:
            self._save()

    # --- What it leaves behind

    def log(self, text):
        """A line on the screen, clear of progress bars, and in log.txt."""
        if ranks.rank() == 0:
            tqdm.write(text)
            self._append("log.txt", text)

    def _append(self, name, text):
        path = self.folder / name
        with named(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")

    def write(self, name, text):
        """A text file of the folder; it is written with the next checkpoint."""
        self._progress["texts"][name] = text

    def end_epoch(self, auc, shown, keep=None, **stored):
        """Decide whether the epoch is the best, and write its line, its row of metrics.jsonl, and a checkpoint.

        auc: its val AUC. keep: what is kept of the best epoch: weights for the product, {name: tensor}, or texts of
        files of the folder, {name: text}; without it the epoch cannot be the best.
        shown: numbers for the line and the row, {name: number or None}; stored: more for the row.
        """
        done, losses = self._progress, self._means()
        best = keep is not None and (done["best"] is None or auc > done["best"]["val_auc"])
        done["epoch"], done["step"] = done["epoch"] + 1, 0
        if best:  # copied: the next step changes the weights
            kept = {n: v.detach().to("cpu", copy=True) if isinstance(v, torch.Tensor) else v for n, v in keep.items()}
            done["best"] = {"epoch": done["epoch"], "val_auc": auc, "kept": kept}
        self._losses.begin_epoch()
        shown = {"epoch": done["epoch"]} | losses | {"val_auc": auc} | shown
        head, line = format_row(shown)
        if done["epoch"] == 1:
            self.log(head)
        self.log(line + "  best so far" * best)
        row = shown | stored | {"seconds": round(self._seconds(), 1)}
        if ranks.rank() == 0:
            self._append("metrics.jsonl", json.dumps(row))
        if self._curves is not None:
            for name in [name for name, value in row.items() if isinstance(value, (int, float))]:
                self._curves.add_scalar(name, row[name], done["epoch"])
            self._curves.flush()
        self._save()

    def finish(self, draw):
        """Draw the pictures of the folder (`draw` takes its path), mark the run as finished, write the product."""
        best = self._progress["best"]
        if ranks.rank() == 0:
            draw(self.folder)
        for text in [value for value in best["kept"].values() if isinstance(value, str)]:
            self.log(text)
        where = f", in {self._product}" if self._product is not None else ""
        self.log(f"best val AUC {best['val_auc']:.3f}{where}; {self._seconds() / 60:.1f} minutes")
        self._stateful = {}  # only what was best is of use from now on
        self._save(finished=True)
        if ranks.rank() == 0:
            self._lock.release(force=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _seconds(self):
        """Time spent on this run so far, over all its starts."""
        return time.perf_counter() - self._started

    def _save(self, finished=False):
        """Write the checkpoint, and what is written from it. A loss that is not finite ends the run instead."""
        self._means()
        self._saved_at = time.perf_counter()
        if ranks.rank() > 0:
            return
        lengths = {name: (self.folder / name).stat().st_size for name in LOGS if (self.folder / name).exists()}
        state = {"format": FORMAT, "record": self._record, "progress": self._progress, "lengths": lengths}
        state |= {"seconds": self._seconds(), "finished": finished}
        state["states"] = {
            name: item.get_state() if isinstance(item, torch.Generator) else item.state_dict()
            for name, item in self._stateful.items()
        }
        save_state(self._checkpoint, state, self._before)
        if finished:  # in the place of the one before, which still has the optimizer
            save_state(self._before, state)
        self._write_outputs(finished)

    def _write_outputs(self, finished):
        """Write the texts, and the product of a finished run, where they are not as the state has them."""
        best, texts = self._progress["best"], self._progress["texts"]
        if best and self._product is None:
            texts = texts | best["kept"]
        for name, text in texts.items():
            at = self.folder / name
            if not at.exists() or (not finished and at.read_text(encoding="utf-8", errors="replace") != text + "\n"):
                write(at, text + "\n")
        if finished and self._product is not None:
            try:
                load_state(self._product)
            except (FileNotFoundError, InputError):  # missing, or damaged
                weights = {"weights": best["kept"], "epoch": best["epoch"], "val_auc": best["val_auc"]}
                save_state(self._product, weights | {"settings": self._record["settings"]})
