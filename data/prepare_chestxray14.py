"""Prepare ChestX-ray14: its films and its label table become a set that the scripts read.

    python -m data.prepare_chestxray14 --download

fetches the toy set, 11,042 of the 112,120 films, and makes data/chestxray14/ (images.npy, labels.csv, source.json):
uint8 films of 256 x 256 px. With --archive 2 --name nih10k --size 64 it is the 10,000 films of one archive instead.
Films already on disk come in by --images (a folder of PNG or JPEG files) or --archives (zip and tar.gz), with --labels.

Every film is reduced and kept as a PNG in data/films_256px/, or what --size says. Sets of one size share it, and a
command that was stopped goes on from there. A film is known by its name and size alone: one that is there is not read
again, wherever it came from; the folder can be deleted at any time, and should be before films of another source are
prepared in the same size. The same films, labels, lists and seed give the same bytes, whatever the number of cores and
however often the command was stopped.

The data set: 112,120 frontal films, 1024 x 1024 px, of 30,805 patients of the NIH Clinical Center. Wang et al.,
"ChestX-ray8", CVPR 2017, arXiv 1705.02315; https://nihcc.app.box.com/v/ChestXray-NIHCC. A label is one of 14 findings
that text mining took from the radiologist's report (the authors expect over 90 % to be right); no one labelled the
films themselves. No filter is applied here: both views, all ages, all films of a patient.

Splits: `original` is that of the original project's toy set, in toy_set.csv. With `all`, `test` is the official
test_list.txt and `val` a fifth of the patients of train_val_list.txt; without lists, the patients of the label table
are divided 70 / 10 / 20. A set of one archive has those films of the split that the archive holds: a film is in the
same split there as in the set of all films.
"""

import argparse
import difflib
import hashlib
import os
import re
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image

from data import fetch_chestxray14 as fetch
from data.fetch_chestxray14 import reduce_film, some
from dataset import COLUMNS, FINDINGS, NO_FINDING, SPLITS, format_counts, write_set
from support.files import InputError, lock, read_table, read_text, write
from support.progress import progress
from support.settings import guarded

OUT = Path(__file__).resolve().parent  # the set's folder is made here
NAME = "chestxray14"  # the set's folder
SIZE = 256  # height and width of a prepared film, px
SEED = 0  # any integer >= 0; another seed draws other patients into val (without lists, into test, too)
VAL_OF_TRAIN_VAL = 0.2  # share of the official train_val patients that become val
VAL, TEST = 0.1, 0.2  # shares of all patients, without the official lists
TABLE = "Data_Entry_2017_v2020.csv"  # the official label table
LISTS = ("train_val_list.txt", "test_list.txt")  # the official split, one film name per line
TOY_SET = Path(__file__).with_name("toy_set.csv")  # film, split: the original project's lists

# A film's name in a line of a list, which ends in .png or .jpg, or is NIH's number without an ending.
LISTED = re.compile(
    r"[^\s,;'\"/\\]+\.(?:png|jpe?g)(?![^\s,;'\"])|(?<![^\s,;'\"/\\])\d{8}_\d{3}(?![^\s,;'\"])", re.IGNORECASE
)
UNFINISHED = "unfinished_"  # begins the names of folders that a killed run leaves behind
CITATION = (
    "NIH Clinical Center, ChestX-ray14 (Wang et al., CVPR 2017, arXiv 1705.02315), "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC, free to use with this attribution"
)


# --- Labels and splits


def plain(name):
    """A name without regard to case, spaces and underscores."""
    return re.sub(r"[\W_]+", "", name).lower()


def film_name(text):
    """The name of a film in a table or list: without its folder; NIH's name may lack its ending."""
    name = os.path.basename(text.strip(" '\"").replace("\\", "/"))
    return f"{name}.png" if re.fullmatch(r"\d{8}_\d{3}", name) else name


def read_labels(csv):
    """The label table, gzipped or not: Image Index, Patient ID (int), Finding Labels, in the order of Image Index.

    Reads Data_Entry_2017.csv (rows end in a comma) and v2020. Raises InputError, naming the file and the films, for
    a missing column, an unknown finding, a patient that is not a number, and a film with two rows.
    """
    columns = [column for column in COLUMNS if column != "split"]
    if not Path(csv).is_file():
        raise InputError(f"{csv} is missing: give --labels the official {TABLE}")
    table = read_table(csv)
    for column in columns:
        same = [name for name in table.columns if plain(name) == plain(column)]
        if len(same) > 1 and column not in same:
            raise InputError(f"{csv} has the columns {' and '.join(map(repr, same))}: name one of them {column!r}")
        if not same:
            near = difflib.get_close_matches(column, table.columns, 1, 0)
            there = ", ".join(map(repr, table.columns[:20]))
            nearest = f", nearest is {near[0]!r}" if near else ""
            raise InputError(
                f"{csv} has no column {column!r} among {there}{nearest}: give --labels the official {TABLE}"
            )
        table[column] = table[column if column in same else same[0]].str.strip()
    table["Image Index"] = table["Image Index"].map(film_name)
    table["Patient ID"] = table["Patient ID"].str.replace(
        r"\.0+$", "", regex=True
    )  # as pandas writes integers with gaps
    known = {plain(name): name for name in (*FINDINGS, NO_FINDING)}
    table["Finding Labels"] = [
        "|".join(known.get(plain(part), part) for part in text.split("|")) for text in table["Finding Labels"]
    ]

    unknown = [t != NO_FINDING and not set(t.split("|")) <= set(FINDINGS) for t in table["Finding Labels"]]
    for problem, bad in (
        ("names that are no films", table["Image Index"].map(fetch.key).isna()),
        ("more than one row", table["Image Index"].map(fetch.key).duplicated()),
        ("unknown findings", pd.Series(unknown, dtype=bool)),
        ("a patient that is not a number", ~table["Patient ID"].str.fullmatch("[0-9]{1,18}").astype(bool)),
    ):
        if bad.any():
            films, first = some(table["Image Index"][bad].unique()), table[bad].iloc[0].to_list()
            raise InputError(f"{csv} has {problem} for {films}, as in {first}: correct it or download it again")
    return table[columns].astype({"Patient ID": "int64"}).sort_values("Image Index", ignore_index=True)


def draw(patients, shares, seed):
    """Disjoint random groups of the distinct `patients`, one per share (at least one patient), as sets."""
    patients = np.unique(patients)
    # Plain draws, sorted, instead of a shuffle: they follow the bit stream, which NumPy keeps between versions.
    order = patients[np.argsort(np.random.default_rng(seed).random(len(patients)), kind="stable")]
    ends = np.cumsum([max(1, round(share * len(patients))) for share in shares])
    return [set(group.tolist()) for group in np.split(order, ends)[:-1]]


def assign_splits(table, lists, seed, skip_bad=False):
    """The rows of `table` (see read_labels) that take part, with their `split`; no patient is in two splits.

    lists: folder of the official lists, or None. Raises InputError, naming the films, for lists that do not fit.
    skip_bad: leave out films of the lists that are not in the table.
    """
    if lists is None:
        val, test = draw(table["Patient ID"], (VAL, TEST), seed)
        split = ["test" if p in test else "val" if p in val else "train" for p in table["Patient ID"]]
        return table.assign(split=split)
    names = dict(zip(table["Image Index"].map(fetch.key), table["Image Index"], strict=True))
    train_val, test = (read_list(Path(lists), name, names) for name in LISTS)
    listed = pd.Series(train_val + test, dtype=object)
    table_test = table[table["Image Index"].isin(test)]
    train_val_patients = table["Patient ID"][table["Image Index"].isin(train_val)]
    shared = table_test["Image Index"][table_test["Patient ID"].isin(train_val_patients)]
    for problem, films in (
        ("name more than once", listed[listed.duplicated()].unique()),
        ("share the patients of", shared),
    ):
        if len(films):
            raise InputError(f"{lists}: the lists {problem} {some(films)}: use the official lists and label table")
    leave_out(listed[~listed.isin(table["Image Index"])].unique(), f"the lists in {lists}", skip_bad)
    others = table["Image Index"][~table["Image Index"].isin(listed)].to_list()
    if others:
        print(f"left out: {some(others)} of the label table, in neither list")
    table = table[table["Image Index"].isin(listed)].reset_index(drop=True)
    is_test = table["Image Index"].isin(test)
    (val,) = draw(table["Patient ID"][~is_test], (VAL_OF_TRAIN_VAL,), seed)
    split = np.where(is_test, "test", np.where(table["Patient ID"].isin(val), "val", "train"))
    return table.assign(split=split)


def leave_out(films, lists, skip_bad):
    """Tell of films of the lists that the label table does not have; InputError unless skip_bad is true."""
    if len(films) and not skip_bad:
        ways = "give the official label table, or leave them out with --skip-bad"
        raise InputError(f"the label table does not have {some(films)} of {lists}: {ways}")
    if len(films):
        print(f"left out: {some(films)} of {lists}, not in the label table")


def read_list(folder, name, names):
    """The films of an official list, or of Kaggle's copy of it, NAME_NIH.txt; names {key: film of the label table}.

    Names may have a folder before them, and further columns behind them; a header line may come first.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: give --lists the folder that holds {' and '.join(LISTS)}")
    there = {file.lower(): file for file in sorted(os.listdir(folder))} if folder.is_dir() else {}
    file = there.get(name, there.get(name.replace(".txt", "_nih.txt")))
    if file is None:
        near = difflib.get_close_matches(name, there.values(), 1, 0)
        nearest = f"; nearest there is {near[0]}" if near else ""
        raise InputError(f"{folder / name} is missing{nearest}: --lists needs the official {' and '.join(LISTS)}")
    films, path = [], folder / file
    for number, line in enumerate(read_text(path).splitlines()):
        first = film_name(re.split(r"[,;\t]", line)[0])  # its name may have spaces
        found = [first] if " " in first and fetch.key(first) in names else LISTED.findall(line)
        if not found and line.strip() and (films or re.search(r"\d", first)):  # a header stands first, without numbers
            raise InputError(f"{path}, line {number + 1}: {line.strip()[:60]!r} names no film")
        films += dict.fromkeys(names.get(fetch.key(name), name) for name in map(film_name, found))
    if not films:
        raise InputError(f"{path} names no film: use the official list")
    return films


def original_split(table, skip_bad=False):
    """The rows of `table` that are in the toy set, with their `split`. Raises InputError where some are missing.

    skip_bad: leave out films of the toy set that are not in the table.
    """
    toy = pd.read_csv(TOY_SET)
    toy.index = toy["film"].map(fetch.key)
    keys = table["Image Index"].map(fetch.key)
    leave_out(toy["film"][~toy.index.isin(keys)].to_list(), "the toy set", skip_bad)
    table, keys = table[keys.isin(toy.index)], keys[keys.isin(toy.index)]
    toy = toy.loc[keys].reset_index(drop=True)
    return table.reset_index(drop=True).assign(**{"Image Index": toy["film"], "split": toy["split"]})


def archives_of(options, threads):
    """The sources of the archives, on disk or of the mirror, that the options name."""
    if options.archives:
        return fetch.archive_sources(fetch.find_archives(options.archives, options.archive), threads)
    return fetch.mirror_sources([options.archive] if options.archive else fetch.ARCHIVES, threads)


def choose_films(options, folder):
    """The films of a set as rows of the label table with their `split`, and what source.json says of the choice.

    With --download, the label table and the official lists are fetched into `folder` unless they are given.
    """
    split = options.split or ("original" if options.download and not options.archive else "all")
    labels, lists = options.labels or fetch.fetch_file(TABLE, folder), options.lists
    table = read_labels(labels)
    if split == "original":
        lists, table = None, original_split(table, options.skip_bad)
    else:
        if options.download and not options.archive and not lists:
            lists = Path(folder)
            for name in LISTS:
                fetch.fetch_file(name, lists)
        table = assign_splits(table, lists, options.seed, options.skip_bad)
    if options.archive or (options.archives and Path(options.archives).is_file()):  # one archive: what it holds
        (source,) = archives_of(options, threads=1)
        table = table[table["Image Index"].map(fetch.key).isin(fetch.list_keys(source))].reset_index(drop=True)
    where = options.images or options.archives or "download"
    return table, {
        "citation": CITATION,
        "size": options.size,
        "split": split,
        "seed": options.seed,
        "labels_sha256": hashlib.sha256(Path(labels).read_bytes()).hexdigest(),
        "origin": {
            "films": Path(where).resolve().name,
            "archive": options.archive,
            "labels": Path(labels).name,
            "lists": lists is not None,
        },
    }


# --- Films


@contextmanager
def locked(folder):
    """`folder`, made where it is missing and locked against a second process."""
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / "lock")
    try:
        for left in folder.glob(f"{UNFINISHED}*"):  # by a run that was killed
            shutil.rmtree(left)
        yield
    finally:
        held.release(force=True)


class Intake:
    """Takes films into the folder of reduced films, where each is a PNG file: there as a whole or not at all.

    needed: names of the films that are not there yet. broken: {name: why} of those that were met but cannot be used;
    small: of those that are smaller than `size` px. nested: archives that were met within archives. The folder must be
    locked; `take` runs in threads.
    """

    def __init__(self, folder, size, needed):
        self.folder, self.size, self.needed = folder, size, set(needed)
        self.names = {fetch.key(name): name for name in needed}
        self.broken, self.small, self.stopped = {}, set(), False
        self.compare, self.contents, self.differ, self.nested = False, {}, {}, set()

    def read(self, sources, threads):
        """Take what is needed from all sources; returns the problems, one line for each source that failed.

        Raises InputError where archives hold two different files of one film.
        """
        # Zips are compared before by their directories. A tar has none, but is read to its end anyway.
        self.compare = any(source.checked_last for source in sources)
        pool = ThreadPoolExecutor(threads)  # as fast as processes: Pillow decodes and resizes without the GIL
        with progress(None, "films", len(self.needed)) as self.bar:
            try:
                problems = [problem for problem in pool.map(self.take, sources) if problem]
            finally:
                self.stopped = True  # after Ctrl-C or a fault, the threads end at their next film
                pool.shutdown(cancel_futures=True)
        for name in self.differ:  # the same command must find them again
            (self.folder / name).unlink(missing_ok=True)
        if self.differ:
            both = " and ".join(self.differ[min(self.differ)])
            raise InputError(f"{both} have different files of {some(sorted(self.differ))}: keep one of each")
        return problems

    def wants(self, source, name):
        if self.stopped:
            raise InterruptedError("stopped")
        if name.lower().endswith(fetch.PACKED):
            self.nested.add(f"{name} in {source.name}")
        film = self.names.get(fetch.key(name))
        return film in self.needed or (self.compare and film is not None)

    def take(self, source):
        """Take what is needed from a source; returns the problem where it cannot be read to its end."""
        # Each source writes in a folder of its own: another one may have the same film.
        with TemporaryDirectory(prefix=UNFINISHED, dir=self.folder) as aside:
            contents = []
            try:
                for found, file in source.read(partial(self.wants, source)):
                    name = self.names[fetch.key(found)]
                    if self.compare and file:
                        contents.append((name, zlib.crc32(file.getbuffer())))
                    film = self.reduce(name, file, Path(aside)) if name in self.needed else None
                    if film and not source.checked_last:
                        self.move_in(film)
            except fetch.UNREADABLE as error:
                return f"{source.name}: {error}"
            for name, content in contents:
                other, before = self.contents.setdefault(name, (source.name, content))
                if before != content:
                    self.differ[name] = (other, source.name)
            for film in Path(aside).iterdir():
                self.move_in(film)

    def reduce(self, name, file, folder):
        """Write a reduced film into `folder` and return its path, or note why it cannot be and return None."""
        path = folder / name
        try:
            if file is None:
                raise OSError("the file is damaged, or a link to nothing")
            film = Image.fromarray(reduce_film(file, self.size))
        except OSError as error:
            self.broken[name] = str(error)
            return None
        except ValueError:
            self.small.add(name)
            return None
        try:
            # Half the size would take 1.5 ms more at 256 px. No fsync: checksums show what a power cut damages.
            film.save(path, "PNG", compress_level=0)
        except OSError as error:  # a full disk is no fault of the archive
            raise InputError(f"{self.folder}: {error.strerror}: make room, or choose another --out") from None
        self.bar.update()
        return path

    def move_in(self, film):
        """Move the file of a film to its place."""
        film.replace(self.folder / film.name)
        self.needed.discard(film.name)


def stack(folder, names, size, file):
    """The films in `folder` as an array, uint8 (N, size, size). It lies in `file`: all films of 256 px are 7.3 GB."""
    images = np.memmap(file, np.uint8, "w+", shape=(len(names), size, size))
    for row, name in enumerate(names):
        with Image.open(folder / name) as film:
            images[row] = film
    return images


# --- From films to a set


def list_skipped(intake, problems, options):
    """The films that the set goes without, as source.json says it; InputError unless it may be made without them.

    problems: one line for each source that was not read to its end.
    """
    where = options.images or options.archives or "download"
    if small := sorted(intake.small & intake.needed):
        raise InputError(f"{where}: {some(small)} smaller than {intake.size} px: choose a smaller --size")
    broken, missing = (
        sorted(films) for films in (intake.needed & intake.broken.keys(), intake.needed - intake.broken.keys())
    )
    faults = [f"{some(missing)} missing"] if missing else []
    if broken:
        faults.append(f"{some(broken)} not decodable ({intake.broken[broken[0]]})")
    if faults and (problems or not options.skip_bad):  # what lies in an unread archive is not known to be bad
        listed = intake.folder / "missing.txt"
        write(listed, "\n".join([*missing, *broken, ""]))
        ways = "the same command tries them again" + (", --skip-bad leaves them out" if not problems else "")
        if problems and options.download:
            ways += f", or get the archives by hand from {fetch.BY_HAND} and give their folder with --archives"
        why = f" ({problems[0]})" if problems else ""
        if missing and intake.nested:
            why += f" (archives within archives are not read: unpack {', '.join(sorted(intake.nested)[:3])})"
        raise InputError(f"{where}: {' and '.join(faults)}{why}, all in {listed}: {ways}")
    if faults:
        print(f"skipped: {' and '.join(faults)}")
    return {"missing": missing, "undecodable": broken}


def make_set(folder, table, reduced, source):
    """Make the set `folder` of the films of `table`, all of which lie in the folder `reduced`; returns its counts."""
    if empty := set(SPLITS) - set(table["split"]):
        raise InputError(f"{source['origin']['films']} leaves no film for split {min(empty)!r}: add more of the films")
    with TemporaryDirectory(prefix=UNFINISHED, dir=reduced) as aside:
        images = stack(reduced, table["Image Index"].to_list(), source["size"], Path(aside) / "films")
        counts = write_set(Path(aside) / "set", images, table, source)
        if folder.exists():
            folder.rmdir()  # it is empty
        (Path(aside) / "set").rename(folder)
    return counts


def check_options(options, folder, reduced):
    """Raise InputError where the options do not fit together or the set cannot be made there."""
    if options.name != folder.name or folder == reduced:
        raise InputError(f"--name {options.name!r} must be the name of a folder of its own; say where with --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there but is no finished set: move it away or choose another --name")
    if options.size < 1 or options.seed < 0:
        raise InputError(f"--size {options.size} must be at least 1 and --seed {options.seed} at least 0")
    if options.labels is None and not options.download:
        raise InputError(f"--labels is missing: give it the official {TABLE}")
    if options.archive is not None and (options.images or options.archive not in fetch.ARCHIVES):
        raise InputError(f"--archive {options.archive} must be 1 to 12, with --download or --archives")


def prepare(options):
    """Write the set that the options describe; returns its counts, or None where it is there already.

    Raises InputError with one line that names the file, the problem and the next step. The same options go on from
    the films that are done by then.
    """
    out, size = Path(options.out), options.size
    folder, reduced = out / options.name, out / f"films_{size}px"
    if (folder / "source.json").exists():
        return None
    check_options(options, folder, reduced)
    with TemporaryDirectory() as fetched:
        table, source = choose_films(options, fetched)
    needed = [name for name in table["Image Index"] if not fetch.is_whole(reduced / name, ("L", (size, size)))]
    threads = fetch.THREADS if options.download else os.cpu_count()
    if options.archives:
        fetch.check_zips(fetch.find_archives(options.archives, options.archive))
    if options.images:
        sources = fetch.file_sources(options.images, needed, options.skip_bad, threads)
    else:
        sources = archives_of(options, threads)
    with locked(reduced):
        (reduced / "missing.txt").unlink(missing_ok=True)
        need, free = (len(needed) + 2 * len(table)) * size**2, shutil.disk_usage(reduced).free
        if need > free:
            raise InputError(f"{reduced} needs {need / 1e9:.1f} GB and has {free / 1e9:.1f}: say where with --out")
        if len(needed) < len(table):
            print(f"{len(table) - len(needed)} of {len(table)} films are in {reduced} already")
        intake = Intake(reduced, size, needed)
        problems = intake.read(sources, threads) if needed else []
        source["skipped"] = list_skipped(intake, problems, options)
        counts = make_set(folder, table[~table["Image Index"].isin(intake.needed)], reduced, source)
    if source["split"] == "all" and not source["origin"]["lists"]:
        print("no --lists: divided by patient, not the official split")
    return counts


def parse_options(argv=None):
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare_chestxray14", description="Prepare ChestX-ray14 from its films and label table."
    )
    films = parser.add_mutually_exclusive_group(required=True)
    films.add_argument("--download", action="store_true", help="fetch the films needed, the label table and the lists")
    films.add_argument("--archives", help="a zip or tar.gz of films, of which all are taken, or a folder of archives")
    films.add_argument("--images", help="folder with the films (PNG or JPEG), at any depth")
    parser.add_argument("--archive", type=int, help="take the films of this one of the twelve archives, 1 to 12")
    parser.add_argument("--split", choices=("original", "all"), help="original: the toy set, as --download; else all")
    parser.add_argument("--labels", help="Data_Entry_2017.csv or _v2020.csv, gzipped or not; --download can fetch it")
    parser.add_argument("--lists", help=f"folder with the official {' and '.join(LISTS)}; without, split by patient")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of a prepared film, px (%(default)s)")
    parser.add_argument("--name", default=NAME, help="the set's name (%(default)s)")
    parser.add_argument("--out", default=OUT, help="where its folder is made (the data folder)")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the patients (%(default)s)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out films that are missing, damaged or without a row"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """The command line; returns the exit status 0 or 130. What people may meet ends it with one line, see `guarded`."""
    with guarded():
        options = parse_options(argv)
        folder = Path(options.out) / options.name
        try:
            counts = prepare(options)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
    if counts is None:
        print(f"{folder} holds a finished set and is left as it is; to make another, choose another --name")
        return 0
    print(format_counts(counts))
    print(f"{folder} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
