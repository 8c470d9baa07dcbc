"""The parts of a long benchmark: runs of the scripts, each a process of one thread, some side by side."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from support.files import InputError, write

ROOT = Path(__file__).resolve().parents[1]
STOPPED = threading.Event()  # set when a part fails: no other part begins, and no other script


def make_parser(doc, name, **scripts):
    """The options that these benchmarks share. name: what the folder and the CSV are called.

    scripts {option: script}: options that hold a script's own, in one string.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="parts that run side by side, one thread each")
    parser.add_argument("--data", default="data", help="folder of the prepared sets")
    parser.add_argument("--out", default=name, help="where everything is written")
    parser.add_argument("--rows", metavar="FILE", help=f"only make what is made of a {name}.csv, beside it")
    for option, file in scripts.items():
        example = f'options for {file} in one string: --{option}="--batch-size 16"'
        parser.add_argument(f"--{option}", default="", help=example)
    return parser


def save_rows(path, rows):
    """Write rows (dicts) as CSV; returns them as a data frame."""
    trained = pd.DataFrame(rows)
    write(path, trained.to_csv(index=False, lineterminator="\n"))
    return trained


def read_rows(path, columns):
    """Rows that `save_rows` wrote, as a data frame. columns {name: type} must be there. Raises InputError."""
    try:
        rows = pd.read_csv(path, dtype=columns)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: not rows of this benchmark ({error})") from None
    if missing := [name for name in columns if name not in rows]:
        raise InputError(f"{path}: not rows of this benchmark (no {', '.join(missing)} in its header)")
    return rows


def script(name, out, *arguments):
    """Run a script with --out `out` and these arguments; what it says goes to output.txt there.

    A run that is finished is left as it is, one that was stopped goes on. Where it fails, the benchmark ends.
    """
    if STOPPED.is_set():
        raise SystemExit(1)
    options = [*map(str, ("--out", out, *arguments))]
    print(f"{shlex.join(['python', name, *options])}\n", end="", flush=True)  # in one piece: parts share the screen
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "output.txt", "a", encoding="utf-8") as said:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # of two parts with two threads each, both would wait
        command = [sys.executable, ROOT / name, *options]
        done = subprocess.run(command, stdout=said, stderr=said, env=one_thread, check=False)
    if done.returncode:
        raise SystemExit(f"error: {name} failed, see the end of {said.name}; start this command again to go on")


def side_by_side(parts, jobs):
    """The results of `parts`, functions, of which up to `jobs` run at once. Where one fails, no other begins."""
    STOPPED.clear()

    def begin(part):
        if STOPPED.is_set():
            raise SystemExit(1)
        try:
            return part()
        except BaseException:
            STOPPED.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return [future.result() for future in [pool.submit(begin, part) for part in parts]]
        except KeyboardInterrupt:
            STOPPED.set()
            raise


def facts(folder):
    """What a run's folder says of it, for a row of a table."""
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [0, *(epoch["seconds"] for epoch in epochs)]
    record = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return {
        "val_auc": max(epoch["val_auc"] for epoch in epochs),
        "epochs": len(epochs),
        "minutes": round(epochs[-1]["seconds"] / 60, 2),
        # The first epoch warms up.
        "epoch_seconds": round((seconds[-1] - seconds[1]) / (len(seconds) - 2), 2) if len(seconds) > 2 else seconds[-1],
        "genotype": record["settings"].get("genotype", "").removeprefix("genotype = "),
        **{name: record["environment"][name] for name in ("commit", "torch", "device", "threads", "date")},
    }
