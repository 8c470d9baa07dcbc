"""How a script makes a set: in a place that is checked before and locked meanwhile, whole or not at all.

Every script has a folder beside the sets for what is on its way into one, `work` below. A set is made in its own folder
by `support.files.filling`.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from dataset import (
    COLUMNS,
    MORE_COLUMNS,
    NO_FINDING,
    PRESETS,
    SPLITS,
    check_set,
    check_source,
    encode_findings,
    set_checksum,
)
from support.files import UNFINISHED, InputError, lock, replacing, write
from support.settings import guarded

OUT = Path(__file__).resolve().parent  # the sets' folders are made here


def is_finished(folder):
    """Whether `folder` is a finished set."""
    return (folder / "source.json").exists()


def check_place(name, folder, work, *inputs):
    """Raise InputError unless a set called `name` can be made as `folder`, and no input lies where the script writes.

    inputs: files and folders that it reads, or None.
    """
    if name in PRESETS or name != folder.name or folder == work:
        raise InputError(f"--name {name!r} must name a folder of its own, and no preset; say where with --out")
    there = os.listdir(folder) if folder.is_dir() else [folder.name] * os.path.lexists(folder)
    if there and not any(name.startswith(UNFINISHED) for name in there):
        raise InputError(f"{folder} is there but is no finished set: move it away or choose another --name")
    for read in filter(None, inputs):
        if {folder.resolve(), work.resolve()} & {Path(read).resolve(), *Path(read).resolve().parents}:
            raise InputError(f"{read} is in a folder that this command writes: move it, or choose another --out")


def check_space(need):
    """Raise InputError where a disk has too little room. need {folder: bytes}; those on one disk share its room."""
    disks = {}
    for folder, size in need.items():
        on_disk = disks.setdefault(folder.stat().st_dev, [folder, 0])
        on_disk[1] += size
    for folder, size in disks.values():
        if size > (free := shutil.disk_usage(folder).free):
            raise InputError(f"{folder} needs {size / 1e9:.1f} GB and has {free / 1e9:.1f}: say where with --out")


@contextmanager
def locked(work):
    """Make `work` where it is missing, and lock it against a second process."""
    work.mkdir(parents=True, exist_ok=True)
    held = lock(work / "lock")
    try:
        for left in work.glob(f"{UNFINISHED}*"):  # left by a run that was killed
            shutil.rmtree(left)
        yield
    finally:
        held.release(force=True)


@contextmanager
def write_films(path, films, size):
    """Opens the images.npy of a set of so many films for their grey values, one film after the other, as bytes.

    The films need not be in memory together: all of ChestX-ray14 at 224 px are 5.6 GB.
    """
    with replacing(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (films, size, size)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def count_findings(table, findings):
    """A table of counts: a column per split; rows for films, patients, "No Finding" and each finding."""
    counts = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        labels = encode_findings(rows["Finding Labels"], findings)
        found = dict(zip(findings, labels.sum(axis=0).astype(int), strict=True))
        none = (labels.sum(axis=1) == 0).sum()
        counts[split] = {"films": len(rows), "patients": rows["Patient ID"].nunique(), NO_FINDING: none} | found
    return pd.DataFrame(counts)


def write_set(folder, images, table, source):
    """Write a prepared set. source.json, which marks it as complete, is written last. Returns `count_findings`.

    images: uint8 (N, H, W), or None where the folder's images.npy has them already; table: the columns of labels.csv;
    source: for source.json, what is not as in DEFAULTS and where the set comes from. Raises InputError for a set that
    `load_set` would refuse.
    """
    folder, source = Path(folder), check_source(source)
    there = np.load(folder / "images.npy", mmap_mode="r") if images is None else images
    check_set(folder, there, table, source["findings"])
    table = table[[column for column in COLUMNS + MORE_COLUMNS if column in table.columns]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.json").unlink(missing_ok=True)
    if images is not None:
        with replacing(folder / "images.npy") as file:
            np.save(file, images)
    write(folder / "labels.csv", table.to_csv(index=False, lineterminator="\n"))
    counts = count_findings(table, source["findings"])
    source |= {"counts": counts.to_dict(), "checksum": set_checksum(folder)}
    write(folder / "source.json", json.dumps(source, indent=1) + "\n")
    return counts


def run_script(parse_options, prepare, argv):
    """A script's command line; returns 0. Errors that users may cause end it with one line, see `guarded`.

    prepare(options) makes the set options.name in options.out. It returns the set's counts, or None where the set is
    there already.
    """
    with guarded():
        options = parse_options(argv)
        if empty := [name for name, value in vars(options).items() if value == "" and not name.endswith("_column")]:
            raise InputError(f"--{empty[0]} is empty: say what it is, or leave it out")
        folder = Path(options.out) / options.name
        if (counts := prepare(options)) is None:
            print(f"{folder} holds a finished set and is left as it is; to make another, choose another --name")
        else:
            print(counts.to_string(), f"{folder} is ready", sep="\n")
    return 0
