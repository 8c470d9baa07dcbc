"""A run's folder: settings, log, metrics and checkpoint; continuing, finishing and starting anew.

    settings.json   the settings that affect the result, and where it ran: git commit, versions, device
    log.txt         for people
    metrics.jsonl   one JSON object per epoch
    checkpoint.pt   all that is needed to go on after the last finished epoch: plain tensors and plain Python

Files are written beside their place and renamed into it, and nothing is overwritten: a finished run stays as it is,
other settings are refused, `--fresh` moves the old folder aside.
"""

import json
import platform
import subprocess
import time
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from utils import fail

TRAINING_HEADER = "epoch         lr   train loss   val loss   val AUC"

LOGS = ("log.txt", "metrics.jsonl")

# Settings that say where and how loudly a run goes, not what it computes.
WITHOUT_EFFECT = {"out", "data", "fresh", "log_every"}


def save_atomically(path, state):
    """torch.save beside `path`, then renamed into it: a reader never meets half a file."""
    partial = path.with_name(path.name + ".part")
    torch.save(state, partial)
    partial.replace(path)


def environment(device):
    """Where a run runs: {"commit", "python", "torch", "machine", "device", "threads", "date"}."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": name,
        "threads": torch.get_num_threads(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def read_run(folder):
    """A run's {"settings", "epochs": how many are done}; None where there is no run."""
    folder = Path(folder)
    if not (folder / "settings.json").exists():
        return None
    record = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    metrics = folder / "metrics.jsonl"
    return {"settings": record["settings"], "epochs": len(metrics.read_text().splitlines()) if metrics.exists() else 0}


class Run:
    """The folder of one run, opened for a new run or to continue one.

    settings: the script's, with anything else that affects the result in `also` (the set's checksum, the genotype).
    product: a file outside the folder that the run makes at its end; `--fresh` moves it aside with the folder.
    """

    def __init__(self, folder, settings, device, also, product=None):
        self.folder, self.product = Path(folder), product
        self.tracked = {}
        self.started = time.perf_counter()
        if settings.epochs < 1:
            fail(f"epochs {settings.epochs} must be at least 1")
        self.checkpoint, self.best = self.folder / "checkpoint.pt", self.folder / "best.pth"
        wanted = {k: v for k, v in vars(settings).items() if k not in WITHOUT_EFFECT}
        self.settings = wanted | {"device": device.type} | also
        if settings.fresh:
            self.move_aside()
        at = self.folder / "settings.json"
        if at.exists():
            self.compare(json.loads(at.read_text(encoding="utf-8"))["settings"])
        elif self.checkpoint.exists():
            fail(f"{at} is missing beside checkpoint.pt: put it back, or pass --fresh")
        elif product is not None and product.exists():
            fail(f"{product} is there without its run folder {self.folder}: move it away, or pass --fresh")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            record = {"settings": self.settings, "environment": environment(device)}
            partial = self.folder / "settings.json.part"
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            partial.replace(at)
        self.saved = None
        if self.checkpoint.exists():
            self.saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.finished = self.saved is not None and self.saved["finished"]
        if self.finished:
            best = self.saved["progress"]["best_auc"]
            print(f"{self.folder}: finished already (best val AUC {best:.3f}), left as it is; --fresh starts anew")

    def move_aside(self):
        """Rename an old folder, and its product, to dated names."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
        for old in (self.folder, self.product):
            if old is not None and old.exists():
                aside = old.with_name(f"{old.stem}.{stamp}{old.suffix}")
                old.rename(aside)
                print(f"{old} moved to {aside}")

    def compare(self, before):
        """Refuse to go on under other settings than the folder's."""
        now = json.loads(json.dumps(self.settings))
        names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        if names:
            name, *others = sorted(names, key=lambda name: (name != "dataset", name))
            also = f" (other differences: {', '.join(others)})" if others else ""
            fail(
                f"{self.folder / 'settings.json'}: {name} was {before.get(name)!r}, now {now.get(name)!r}{also}; "
                "set it back, start elsewhere with --out FOLDER, or move the old run aside with --fresh"
            )

    def track(self, **objects):
        """Name the objects whose state a checkpoint holds: state_dict() or, for generators, get_state()."""
        self.tracked = objects

    def restore(self, progress):
        """Load a checkpoint, if there is one, into the tracked objects; returns its progress, else the given one."""
        lengths = {} if self.saved is None else self.saved["lengths"]
        for name in LOGS:  # what was written after the checkpoint comes again
            if (self.folder / name).exists():
                with open(self.folder / name, "r+b") as file:
                    file.truncate(lengths.get(name, 0))
        if self.saved is None:
            return progress
        for name, item in self.tracked.items():
            state = self.saved["tracked"][name]
            if isinstance(item, torch.Generator):
                item.set_state(state)
            else:
                item.load_state_dict(state)
        self.started -= self.saved["seconds"]
        self.log(f"continued after epoch {self.saved['progress']['epoch']}")
        return self.saved["progress"]

    def log(self, text):
        """A line on the screen, clear of progress bars, and in log.txt."""
        tqdm.write(text)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def end_epoch(self, row, progress):
        """Append `row` to metrics.jsonl, then write the checkpoint from which the next epoch can start."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"seconds": round(self.seconds(), 1)}) + "\n")
        self.save(progress, finished=False)

    def end_training_epoch(self, network, row, auc, progress):
        """The same for a training whose product is a weights file: keeps the weights if `auc` is the best so far."""
        progress["epoch"] += 1
        better = auc > progress["best_auc"]
        if better:
            progress["best_auc"] = auc
            weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            state = {"weights": weights, "epoch": progress["epoch"], "val_auc": auc, "settings": self.settings}
            save_atomically(self.best, state)
        losses = f"{row['train_loss']:10.4f}   {row['val_loss']:8.4f}"
        self.log(f"{progress['epoch']:5}   {row['lr']:8.1e}   {losses}   {auc:7.3f}{'  best so far' if better else ''}")
        self.end_epoch({"epoch": progress["epoch"]} | row | {"val_auc": auc}, progress)

    def finish_training(self, progress):
        """Put the best weights in their place, which an unfinished training leaves empty, and finish."""
        if self.best.exists():
            self.best.replace(self.product)
        self.log(f"best val AUC {progress['best_auc']:.3f}, in {self.product}; {self.seconds() / 60:.1f} minutes")
        self.finish(progress)

    def finish(self, progress):
        """Mark the run as finished."""
        self.save(progress, finished=True)

    def seconds(self):
        """Time spent on this run so far, over all its starts."""
        return time.perf_counter() - self.started

    def save(self, progress, finished):
        states = {
            name: item.get_state() if isinstance(item, torch.Generator) else item.state_dict()
            for name, item in self.tracked.items()
        }
        lengths = {name: (self.folder / name).stat().st_size for name in LOGS if (self.folder / name).exists()}
        state = {"tracked": states, "progress": progress, "lengths": lengths}
        save_atomically(self.checkpoint, state | {"seconds": self.seconds(), "finished": finished})
