"""The parts of a long benchmark: runs of the scripts, each a process of one thread, some side by side."""

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pandas as pd

from dataset import AVERAGE, find_preset
from scores import read_scores
from support.files import InputError, lock, write
from support.records import read_record
from support.settings import Parser, parse_settings
from utils import SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
STOPPED = threading.Event()  # set when a part fails: no other part begins, and no other script
RUNNING = set()  # processes of scripts
FACTS = {"val_auc": float, "epochs": int, "minutes": float, "epoch_seconds": float}  # columns, of `facts`
FACTS |= {"commit": str, "torch": str, "device": str, "threads": int, "date": str}


def make_parser(doc, name):
    """A parser with the options that these benchmarks share. name: that of the folder and of the CSV."""
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="parts that run side by side, one thread each")
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder of the prepared sets")
    parser.add_argument("--out", default=name, help="where everything is written")
    rows = f"only make the table and the figure of the rows of these {name}.csv, beside the first"
    parser.add_argument("--rows", nargs="+", metavar="FILE", help=rows)
    return parser


def script_settings(name, options):
    """The settings that a script has with these options. Raises InputError."""
    return parse_settings(ROOT / name, options, find_preset, SCHEDULES)


def read_rows(paths, columns, key):
    """The rows of CSV files that `collect` wrote, as one data frame. Raises InputError.

    columns {name: type}: every file must have them. key: no two rows may have the same values in these columns.
    """
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_csv(path, dtype=columns))
            if missing := [name for name in columns if name not in tables[-1]]:
                raise ValueError(f"no {', '.join(missing)} in its header")
        except ValueError as error:  # pandas' parser errors are ValueErrors
            raise InputError(f"{path}: not rows of this benchmark ({error})") from None
    rows = pd.concat(tables, ignore_index=True)
    for _, again in rows.loc[rows.duplicated(key), key].iterrows():
        row = ", ".join(f"{name} {value}" for name, value in again.items())
        raise InputError(f"{', '.join(map(str, paths))}: two rows are of {row}: leave one out")
    return rows


def format_table(columns, rows, notes):
    """A Markdown table with notes below it. rows: lists of texts; columns: the names of all but the first column."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", notes]) + "\n"


def collect(path, read, key, parts, jobs):
    """Run the parts `side_by_side`; each returns a row, a dict. Returns all rows of the CSV `path`, as `read` reads it.

    A row is written there when its part ends, and replaces a row with the same values of `key`. Other rows stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = lock(path.with_suffix(".lock"))
    saving = threading.Lock()

    def place(row):
        return [str(row[name]) for name in key]

    def save(rows):
        with saving:
            there = pd.read_csv(path, dtype=str, na_filter=False).to_dict("records") if path.exists() else []
            kept = [row for row in there if place(row) not in map(place, rows)]
            write(path, pd.DataFrame([*kept, *rows]).to_csv(index=False, lineterminator="\n"))

    def finish(part):
        row = part()
        save([row])
        return row

    if path.exists():
        read([path])  # before anything runs for hours
    save(side_by_side([partial(finish, part) for part in parts], jobs))  # in the order of the parts
    held.release()
    return read([path])


def script(name, out, *arguments):
    """Run a script with --out `out` and these arguments; what it prints goes to output.txt there."""
    if STOPPED.is_set():
        raise SystemExit(1)
    options = [*map(str, (*arguments, "--out", out))]
    print(f"{shlex.join(['python', name, *options])}\n", end="", flush=True)  # in one piece: parts share the screen
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "output.txt", "a", encoding="utf-8") as said:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # with two threads each, two parts would wait for each other
        command = [sys.executable, ROOT / name, *options]
        with subprocess.Popen(command, stdout=said, stderr=said, env=one_thread) as process:
            RUNNING.add(process)
            status = process.wait()
            RUNNING.remove(process)
    if status:
        raise SystemExit(f"error: {name} failed, see the end of {said.name}; start this command again to go on")


def scores_on_test(out, name, *on_set):
    """The averages of a network's column in the table of <out>/weights, which is made where it is not there yet."""
    scored, weights = out / "results" / "auc.csv", out / "weights" / f"{name}_net.pth"
    if not scored.exists() or scored.stat().st_mtime < weights.stat().st_mtime:
        script("test.py", out, *on_set)
    return read_scores(scored).loc[(name, AVERAGE)]


def side_by_side(parts, jobs):
    """Call the functions `parts`, up to `jobs` at once; their results in order. Where one fails, no other begins."""
    if jobs < 1:
        raise InputError(f"--jobs is {jobs} and must be at least 1")
    STOPPED.clear()
    failed = []

    def begin(part):
        try:
            return None if STOPPED.is_set() else part()
        except BaseException as error:
            if not STOPPED.is_set():
                print("a part failed: no other begins, and those under way end with their script")
                failed.append(error)
            STOPPED.set()

    with ThreadPoolExecutor(jobs) as pool:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            results = [pool.submit(begin, part) for part in parts]
            wait(results)
        except KeyboardInterrupt:
            STOPPED.set()
            for process in RUNNING.copy():
                process.terminate()  # it stops with a checkpoint; Ctrl-C has asked it to already
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if failed:
        raise failed[0]
    return [future.result() for future in results]


def processor():
    """What this machine's processor is called."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux, where platform.processor() is empty or says x86_64
    named = re.search(r"^model name\s*:\s*(.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1] if named else platform.processor()


def facts(folder):
    """What a run's folder says of it, for a row of a table: FACTS and its genotype."""
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [epoch["seconds"] for epoch in epochs]
    # The first epoch, which warms up, counts only where it is alone.
    lengths = [end - start for start, end in pairwise(ends)] or ends
    record = read_record(folder)
    return {
        "val_auc": max(epoch["val_auc"] for epoch in epochs),
        "epochs": len(epochs),
        "minutes": round(ends[-1] / 60, 2),
        "epoch_seconds": round(mean(lengths), 2),
        "genotype": record["settings"].get("genotype", "").removeprefix("genotype = "),
        "processor": processor(),
        **{name: record["environment"][name] for name in ("commit", "torch", "device", "threads", "date")},
    }
