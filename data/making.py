"""How a script makes a set: in a place that is checked before and locked meanwhile, whole or not at all.

`work` below is a script's folder beside the sets for what is on its way into one.
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
from support.files import UNFINISHED, InputError, filling, lock, replacing, write
from support.settings import guarded

OUT = Path(__file__).resolve().parent  # the sets' folders are made here


class Finished(Exception):
    """The set is there already, and is left as it is."""


def is_finished(folder):
    """Whether `folder` is a finished set."""
    return (folder / "source.json").exists()


def check_place(name, folder, work, *inputs):
    """Raise InputError unless a set called `name` can be made as `folder`, and no input lies where the script writes.

    inputs: files and folders that it reads, or None. Raises Finished where the set is there.
    """
    if is_finished(folder):
        raise Finished
    if name in PRESETS or name != folder.name or folder == work:
        raise InputError(f"--name {name!r} must name a folder of its own, and no preset; say where with --out")
    there = os.listdir(folder) if folder.is_dir() else [folder.name] * os.path.lexists(folder)
    if there and not any(name.startswith(UNFINISHED) for name in there):
        raise InputError(f"{folder} is there but is no finished set: move it away or choose another --name")
    for read in filter(None, inputs):
        if {folder.resolve(), work.resolve()} & {Path(read).resolve(), *Path(read).resolve().parents}:
            raise InputError(f"{read} is in a folder that this command writes: move it, or choose another --out")


@contextmanager
def making(folder, work, need):
    """Yields a folder to write the set's files to, which become `folder` at the end. `work` is locked meanwhile.

    need: {work or folder: bytes that will come into it}. Raises InputError where a disk has too little room or another
    process works there, and Finished where it has made the set.
    """
    work.mkdir(parents=True, exist_ok=True)
    held = lock(work / "lock")
    try:
        if is_finished(folder):
            raise Finished
        with filling(folder, "source.json") as made:
            disk_of = {place: place.stat().st_dev for place in need}
            for place, disk in disk_of.items():
                size, free = sum(need[at] for at in need if disk_of[at] == disk), shutil.disk_usage(place).free
                if size > free:
                    raise InputError(
                        f"{place} needs {size / 1e9:.1f} GB and has {free / 1e9:.1f}: say where with --out"
                    )
            yield made
    finally:
        held.release(force=True)


@contextmanager
def write_films(path, films, size):
    """Opens images.npy for the bytes of so many films of size × size px, which need not be in memory together."""
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

    prepare(options, folder) makes the set and returns its counts, or raises Finished.
    """
    with guarded():
        options = parse_options(argv)
        if empty := [name for name, value in vars(options).items() if value == "" and not name.endswith("_column")]:
            raise InputError(f"--{empty[0]} is empty: say what it is, or leave it out")
        folder = Path(options.out) / options.name
        try:
            print(prepare(options, folder).to_string(), f"{folder} is ready", sep="\n")
        except Finished:
            print(f"{folder} holds a finished set and is left as it is; to make another, choose another --name")
    return 0
