"""Prepare ChestX-ray14: a folder of its films and its label table become a set that the scripts read.

    python data/prepare_chestxray14.py --images DIR --labels Data_Entry_2017_v2020.csv --lists DIR

makes data/chestxray14/ (images.npy, labels.csv, source.json): uint8 films of 256 x 256 px, about 0.7 GB per 10,000,
and as much again while it works. The full set of 112,120 films takes about 15 minutes on 2 CPU cores. The same films,
labels, lists and seed give the same bytes, whatever the number of cores.

The data set: 112,120 frontal films, 1024 x 1024 px, of 30,805 patients of the NIH Clinical Center. Wang et al.,
"ChestX-ray8", CVPR 2017, arXiv 1705.02315; https://nihcc.app.box.com/v/ChestXray-NIHCC. A label is one of 14 findings
that text mining took from the radiologist's report (the authors expect over 90 % to be right); no one labelled the
films themselves. No filter is applied here: both views, all ages, all films of a patient.

Splits: with --lists, `test` is the official test_list.txt, and `val` a fifth of the patients of train_val_list.txt;
without, patients are divided 70 / 10 / 20. The films are those of the lists or, without lists, of the label table.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # dataset.py lies one folder up
from dataset import COLUMNS, FINDINGS, NO_FINDING, SPLITS, format_counts, write_set

OUT = Path(__file__).resolve().parent  # the set's folder is made here
NAME = "chestxray14"  # the set's folder
SIZE = 256  # height and width of a prepared film, px
SEED = 0  # any integer >= 0; another seed draws other patients into val (without lists, into test, too)
VAL_OF_TRAIN_VAL = 0.2  # share of the official train_val patients that become val
VAL, TEST = 0.1, 0.2  # shares of all patients, without the official lists
LISTS = ("train_val_list.txt", "test_list.txt")  # the official split, one film name per line
FILTER = Image.Resampling.LANCZOS  # keeps thin lines (a pleural edge) sharpest; 5 of a film's 15 ms, BOX takes 1
NAMED = 3  # how many films a message names
CITATION = (
    "NIH Clinical Center, ChestX-ray14 (Wang et al., CVPR 2017, arXiv 1705.02315), "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC, free to use with this attribution"
)


def some(names):
    """'4 films (a.png, b.png, c.png, ...)': their number and the first few."""
    first = [*names[:NAMED], "..."] if len(names) > NAMED else names
    return f"{len(names)} film{'s' * (len(names) != 1)}" + (f" ({', '.join(first)})" if len(names) else "")


def find_films(folder):
    """All PNG files anywhere below `folder`: {file name: [its paths]}."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder: give --images the folder with the PNG films")
    films = {}
    for parent, _, names in os.walk(folder, followlinks=True):  # Kaggle's folders are often links to a disk
        for name in names:
            if name.lower().endswith(".png"):
                films.setdefault(name, []).append(Path(parent) / name)
    return films


def read_labels(csv):
    """The label table, gzipped or not: Image Index, Patient ID (int), Finding Labels, in the order of Image Index.

    Reads Data_Entry_2017.csv (rows end in a comma) and v2020. Raises ValueError, naming the file and the films, for
    a missing column, an unknown finding, a patient that is not a number, and a film with two rows.
    """
    columns = [column for column in COLUMNS if column != "split"]
    if not Path(csv).is_file():
        raise ValueError(f"{csv} is missing: give --labels the official Data_Entry_2017_v2020.csv")
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, usecols=lambda c: c in columns, index_col=False)
    except Exception as error:  # whatever pandas and gzip raise for a file that is no table
        raise ValueError(f"{csv} is not a table ({error}): download it anew") from None
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{csv} has no column {missing[0]!r}: give --labels the official Data_Entry_2017_v2020.csv")

    unknown = [t != NO_FINDING and not set(t.split("|")) <= set(FINDINGS) for t in table["Finding Labels"]]
    for problem, bad in (
        ("more than one row", table["Image Index"].duplicated()),
        ("unknown findings", pd.Series(unknown, dtype=bool)),
        ("a patient that is not a number", ~table["Patient ID"].str.fullmatch("[0-9]{1,18}").astype(bool)),
    ):
        if bad.any():
            films, first = some(table["Image Index"][bad].unique()), table[bad].iloc[0].to_list()
            raise ValueError(f"{csv} has {problem} for {films}, as in {first}: mend it or download it anew")
    return table[columns].astype({"Patient ID": "int64"}).sort_values("Image Index", ignore_index=True)


def draw(patients, shares, seed):
    """Disjoint random groups of the distinct `patients`, one per share (at least one patient), as sets."""
    patients = np.unique(patients)
    # Plain draws, sorted, instead of a shuffle: they follow the bit stream, which NumPy keeps between versions.
    order = patients[np.argsort(np.random.default_rng(seed).random(len(patients)), kind="stable")]
    ends = np.cumsum([max(1, round(share * len(patients))) for share in shares])
    return [set(group.tolist()) for group in np.split(order, ends)[:-1]]


def assign_splits(table, lists, seed):
    """The rows of `table` (see read_labels) that take part, with their `split`; no patient is in two splits.

    lists: folder of the official lists, or None. Raises ValueError, naming the films, for lists that do not fit.
    """
    if lists is None:
        val, test = draw(table["Patient ID"], (VAL, TEST), seed)
        split = ["test" if p in test else "val" if p in val else "train" for p in table["Patient ID"]]
        return table.assign(split=split)
    for file in (Path(lists) / name for name in LISTS):
        if not file.is_file():
            raise ValueError(f"{file} is missing: --lists needs the official {' and '.join(LISTS)}")
    train_val, test = ((Path(lists) / name).read_text(encoding="utf-8").split() for name in LISTS)
    listed = pd.Series(train_val + test, dtype=object)
    table_test = table[table["Image Index"].isin(test)]
    train_val_patients = table["Patient ID"][table["Image Index"].isin(train_val)]
    shared = table_test["Image Index"][table_test["Patient ID"].isin(train_val_patients)]
    for problem, films in (
        ("name more than once", listed[listed.duplicated()].unique()),
        ("name, but the label table does not have,", listed[~listed.isin(table["Image Index"])]),
        ("share the patients of", shared),
    ):
        if len(films):
            raise ValueError(f"{lists}: the lists {problem} {some(films)}: use the official lists and label table")
    table = table[table["Image Index"].isin(listed)].reset_index(drop=True)
    is_test = table["Image Index"].isin(test)
    (val,) = draw(table["Patient ID"][~is_test], (VAL_OF_TRAIN_VAL,), seed)
    split = np.where(is_test, "test", np.where(table["Patient ID"].isin(val), "val", "train"))
    return table.assign(split=split)


def reduce_film(path, size):
    """A PNG of any mode -> its grey values, uint8 (size, size).

    Colours become luma, transparency is ignored, 16-bit grey is scaled from 0..65535; a film that is not square is
    centred on black, so that anatomy keeps its shape. Antialiased, in whole numbers: the same on every platform.
    Raises OSError for a file that does not decode, ValueError for a film smaller than `size`: it is never enlarged.
    """
    try:
        with Image.open(path) as film:
            small = max(film.size) < size
            if not small and film.mode.startswith("I"):  # convert("L") would cut off instead of scaling
                values = np.clip(np.asarray(film).astype(np.int64), 0, 65535)
                film = Image.fromarray(((values + 128) // 257).astype(np.uint8))
            elif not small:
                film = film.convert("L")
    except Exception as error:  # a broken file may raise anything: SyntaxError, zlib.error, struct.error, ...
        raise OSError(f"{path} does not decode: {error}") from None
    if small:
        raise ValueError(f"{path} is smaller than {size} px")
    return np.asarray(ImageOps.pad(film, (size, size), method=FILTER))


def reduce_films(paths, size, file, workers):
    """Append the reduced films to the open `file`, in order; returns two lists of names: (undecodable, too small)."""

    def attempt(path):
        try:
            return reduce_film(path, size)
        except (OSError, ValueError) as error:
            return error

    problems = {OSError: [], ValueError: []}
    pool = ThreadPoolExecutor(workers)  # as fast as processes: Pillow decodes and resizes without the GIL
    try:
        bar = tqdm(pool.map(attempt, paths), total=len(paths), unit="film", disable=None)  # None: only in a terminal
        for path, film in zip(paths, bar, strict=True):
            if isinstance(film, Exception):
                problems[type(film)].append(path.name)
            else:
                file.write(film.tobytes())
    finally:
        pool.shutdown(cancel_futures=True)
    return problems[OSError], problems[ValueError]


def prepare(images, labels, lists=None, size=SIZE, name=NAME, out=OUT, seed=SEED, skip_bad=False, workers=None):
    """Write the set `out`/`name` and return its counts, or None where a finished set is there already.

    images: folder of PNGs; labels: the label table; lists: folder of the official lists or None; size in px;
    skip_bad: leave out films that are missing or do not decode; workers: threads, None for one per core.
    Raises ValueError with one line that names the file, the problem and the next step; nothing is written then.
    """
    folder = Path(out) / name
    if name != folder.name:
        raise ValueError(f"--name {name!r} must be the name of one folder; say where it lies with --out")
    if (folder / "source.json").exists():
        return None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there but is no finished set: move it away or choose another --name")
    if size < 1 or seed < 0:
        raise ValueError(f"--size {size} must be at least 1 and --seed {seed} at least 0")
    table = assign_splits(read_labels(labels), lists, seed)
    films = find_films(images)
    twice = [film for film in table["Image Index"] if len(films.get(film, ())) > 1]
    if twice:
        where = " and ".join(str(path.parent) for path in films[twice[0]][:2])
        raise ValueError(f"{images} has more than one file of {some(twice)}, in {where}: keep one of each")
    missing = [film for film in table["Image Index"] if film not in films]
    if missing and not skip_bad:
        raise ValueError(f"{images} lacks {some(missing)}: add them or leave them out with --skip-bad")
    table = table[~table["Image Index"].isin(missing)]

    Path(out).mkdir(parents=True, exist_ok=True)
    # Everything is written in a folder beside the set's place and moved there once complete. Films go straight
    # to disk: all of ChestX-ray14 at 256 px is 7.3 GB. A killed run leaves the folder NAME.part-...: delete it.
    with tempfile.TemporaryDirectory(prefix=f"{name}.part-", dir=out) as part:
        raw = Path(part) / "films"
        with open(raw, "wb") as file:
            paths = [films[film][0] for film in table["Image Index"]]
            broken, small = reduce_films(paths, size, file, workers or os.cpu_count())
        if small:
            raise ValueError(f"{images}: {some(small)} smaller than {size} px: choose a smaller --size")
        if broken and not skip_bad:
            raise ValueError(
                f"{images}: {some(broken)} do not decode: download them anew or leave them out with --skip-bad"
            )
        table = table[~table["Image Index"].isin(broken)]
        if empty := set(SPLITS) - set(table["split"]):
            raise ValueError(f"no film is left for split {min(empty)!r}: give --images a folder with more of the films")
        source = {
            "origin": {"films": Path(images).resolve().name, "labels": Path(labels).name, "lists": lists is not None},
            "citation": CITATION,
            "labels_sha256": hashlib.sha256(Path(labels).read_bytes()).hexdigest(),
            "seed": seed,
            "size": size,
            "skipped": {"missing": some(missing), "undecodable": some(broken)},
        }
        reduced = np.memmap(raw, np.uint8, "r", shape=(len(table), size, size))
        counts = write_set(Path(part) / "set", reduced, table, source)
        del reduced  # some systems do not delete a file that is mapped
        if folder.exists():
            folder.rmdir()  # it is empty
        (Path(part) / "set").rename(folder)
    if missing or broken:
        print(f"skipped: {some(missing)} missing, {some(broken)} not decodable")
    return counts


def main(argv=None):
    """The command line; returns the exit status: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Prepare ChestX-ray14 from its PNG films and its label table.")
    parser.add_argument("--images", required=True, help="folder with the PNG films, at any depth")
    parser.add_argument("--labels", required=True, help="Data_Entry_2017.csv or _v2020.csv, gzipped or not")
    parser.add_argument("--lists", help=f"folder with the official {' and '.join(LISTS)}; without, split by patient")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of a prepared film, px (%(default)s)")
    parser.add_argument("--name", default=NAME, help="the set's name (%(default)s)")
    parser.add_argument("--out", default=OUT, help="where its folder is made (the data folder)")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the patients of val (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out films that are missing or do not decode")
    options = parser.parse_args(argv)
    folder = Path(options.out) / options.name
    try:
        counts = prepare(**vars(options))
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    if counts is None:
        print(f"{folder} holds a finished set and is left as it is; to make another, choose another --name")
        return 0
    if options.lists is None:
        print(f"no --lists: patients divided {1 - VAL - TEST:.0%} / {VAL:.0%} / {TEST:.0%}, not the official split")
    print(format_counts(counts))
    print(f"{folder} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
