"""Prepare ChestX-ray14: its films and its label table become a set that the scripts read.

    python data/prepare_chestxray14.py --download

fetches the toy set, 11,042 of the 112,120 films, and makes data/chestxray14/ (images.npy, labels.csv, source.json):
uint8 films of 256 x 256 px, about 0.7 GB per 10,000, and as much again while it works. Films already on disk come in by
--images (a folder of PNGs) or --archives (zip and tar.gz), with --labels and --lists. The same films, labels, lists and
seed give the same bytes, whatever the number of cores, and however often the command was stopped and started again.

The data set: 112,120 frontal films, 1024 x 1024 px, of 30,805 patients of the NIH Clinical Center. Wang et al.,
"ChestX-ray8", CVPR 2017, arXiv 1705.02315; https://nihcc.app.box.com/v/ChestXray-NIHCC. A label is one of 14 findings
that text mining took from the radiologist's report (the authors expect over 90 % to be right); no one labelled the
films themselves. No filter is applied here: both views, all ages, all films of a patient.

Splits: `original` has the films of the original project's lists, `sampled` draws a set like it (see `sample`). With
`all`, `test` is the official test_list.txt and `val` a fifth of the patients of train_val_list.txt; without lists,
patients are divided 70 / 10 / 20. The films are those of the lists or, without lists, of the label table.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import requests
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # dataset.py lies one folder up
from dataset import COLUMNS, FINDINGS, NO_FINDING, SPLITS, encode_findings, format_counts, write_set

# Where --download finds things. The mirror has the label table, the lists and the films; NIH the films.
MIRROR = "https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset/resolve/main/data/"
MIRROR_FILMS = [f"images/images_{number:03d}.zip" for number in range(1, 13)]
NIH = "https://nihcc.box.com/shared/static/"
NIH_FILMS = [  # images_01.tar.gz to images_12.tar.gz
    "vfk49d74nhbxq3nqjg0900w5nvkorp5c.gz", "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1.gz", "f1t00wrtdk94satdfb9olcolqx20z2jp.gz",
    "0aowwzs5lhjrceb3qp67ahp0rd1l1etg.gz", "v5e3goj22zr6h8tzualxfsqlqaygfbsn.gz", "asi7ikud9jwnkrnkj99jnpfkjdes7l6l.gz",
    "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n.gz", "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j.gz", "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj.gz",
    "l6nilvfa9cg3s28tqv1qc1olm3gnz54p.gz", "hhq8fkdgvcari67vfhs7ppg2w6ni4jze.gz", "ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz",
]  # fmt: skip
ORIGINAL_SPLIT = "https://raw.githubusercontent.com/AlexHex7/Darts_ChestX-Ray14_pytorch/master/dataset/ChestX-ray8/"

OUT = Path(__file__).resolve().parent  # the set's folder is made here
NAME = "chestxray14"  # the set's folder
SIZE = 256  # height and width of a prepared film, px
SEED = 0  # any integer >= 0; another seed draws other patients into val (sampled or without lists, into test, too)
VAL_OF_TRAIN_VAL = 0.2  # share of the official train_val patients that become val
VAL, TEST = 0.1, 0.2  # shares of all patients, without the official lists
TABLE = "Data_Entry_2017_v2020.csv"  # the official label table
LISTS = ("train_val_list.txt", "test_list.txt")  # the official split, one film name per line
ORIGINAL_FILMS = {"train": 7133, "val": 1642, "test": 2267}  # the original's toy set
ORIGINAL_POSITIVES = {  # its films with each of FINDINGS, by the label table; its own labels are the same
    "train": (696, 149, 707, 1196, 330, 396, 100, 221, 231, 103, 114, 115, 185, 100),
    "val": (194, 102, 211, 316, 148, 127, 100, 107, 114, 105, 101, 100, 114, 19),
    "test": (283, 108, 407, 520, 181, 149, 103, 235, 146, 119, 102, 101, 115, 86),
}
RARE = {"train": 100, "val": 80, "test": 80}  # a finding with fewer films in all is rare: `sample` divides it like this

MIRROR_THREADS = 12  # one per archive: each film costs a request, and they share its latency
NIH_THREADS = 2  # archives read at once; an archive that was interrupted is read anew, so more would lose more
MAX_MEMBER = 1 << 24  # bytes of a film in an archive; a film of 1024 x 1024 px has at most about 4 MB
TRIES = 6  # times that a failed request or a dropped connection is tried again
WAIT = 1.0  # s before such a try, twice as long before each further one
TIMEOUT = 60  # s without an answer
DAMAGED = (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error)  # what a bad archive raises
UNREADABLE = (*DAMAGED, OSError, HTTPError, RemoteZipError)  # and what else can keep one from being read
MISSING, DONE, BROKEN, SMALL = range(4)  # states of a film
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


def original_split(table, folder):
    """The rows of `table` that the original's lists in `folder` name, with their `split`; and how many films have
    other labels there. Raises ValueError, naming the films, for lists that do not fit.
    """
    splits, labels = {}, {}
    for split in SPLITS:
        at = Path(folder) / f"small_{split}.json"
        try:
            films = {film: str(entry["label"]) for film, entry in json.loads(at.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{at} is not a list of the original ({error}): download it anew") from None
        if twice := sorted(splits.keys() & films):
            raise ValueError(f"{at} names {some(twice)} of another list, too: use the original's lists")
        splits |= dict.fromkeys(films, split)
        labels |= films
    if unknown := sorted(set(splits) - set(table["Image Index"])):
        raise ValueError(f"{folder}: the label table does not have {some(unknown)}: use the official label table")
    table = table[table["Image Index"].isin(splits)].reset_index(drop=True)
    table["split"] = table["Image Index"].map(splits)
    shared = table["Image Index"][table.groupby("Patient ID")["split"].transform("nunique") > 1].to_list()
    if shared:
        raise ValueError(f"{folder}: patients are in two splits with {some(shared)}: use the original's lists")
    official = zip(table["Image Index"], table["Finding Labels"], strict=True)
    return table, sum(set(labels[film].split("|")) != set(found.split("|")) for film, found in official)


def sample(table, official_test, seed):
    """The rows of a toy set like the original's, drawn from `table` (see assign_splits), with their `split`.

    First the patients: one after the other, in random order, goes to the split that has least in proportion; those
    with a rare finding come first, divided by its films as RARE says, then the others, by films as ORIGINAL_FILMS says.
    official_test: test has its patients already. Then each split takes films, in random order: first those with a
    finding that it still lacks, then any. It lacks ORIGINAL_POSITIVES, and of a rare finding all, as far as it has
    them. Sizes are ORIGINAL_FILMS, or all films.
    """
    rng = np.random.default_rng(seed)  # only .random, which every NumPy draws alike
    labels = encode_findings(table["Finding Labels"]).astype(int)
    patients, patient = np.unique(table["Patient ID"], return_inverse=True)
    films = np.zeros((len(patients), len(FINDINGS) + 1), int)  # of each patient: with each finding, and all
    np.add.at(films, patient, np.column_stack([labels, np.ones(len(labels), int)]))
    split = np.full(len(patients), -1)  # of each patient, as an index into SPLITS
    if official_test:
        split[patient[table["split"] == "test"]] = 2
    order = np.argsort(rng.random(len(patients)), kind="stable")
    total = labels.sum(axis=0)
    rare = [k for k in np.argsort(total, kind="stable") if total[k] < sum(RARE.values())]
    for column, shares in [*((finding, RARE) for finding in rare), (len(FINDINGS), ORIGINAL_FILMS)]:
        share = [shares[name] for name in SPLITS[: 2 if official_test else 3]]
        have = [films[split == k, column].sum() for k in range(len(share))]
        for p in order:
            if split[p] < 0 and films[p, column]:
                split[p] = np.argmin(np.divide(have, share))
                have[split[p]] += films[p, column]

    taken = np.zeros(len(table), bool)
    order = np.argsort(rng.random(len(table)), kind="stable")
    for k, name in enumerate(SPLITS):
        pool = order[split[patient[order]] == k]
        there = labels[pool].sum(axis=0)
        lacking = np.minimum(ORIGINAL_POSITIVES[name], there)
        lacking[rare] = there[rare]
        room = ORIGINAL_FILMS[name]
        for any_film in (False, True):
            for film in pool if room else ():
                if room and not taken[film] and (any_film or (labels[film] & (lacking > 0)).any()):
                    taken[film] = True
                    lacking -= labels[film]
                    room -= 1
    return table.assign(split=np.take(SPLITS, split[patient]))[taken].reset_index(drop=True)


def reduce_film(file, size):
    """A PNG of any mode -> its grey values, uint8 (size, size).

    Colours become luma, transparency is ignored, 16-bit grey is scaled from 0..65535; a film that is not square is
    centred on black, so that anatomy keeps its shape. Antialiased, in whole numbers: the same on every platform.
    Raises OSError for a file that does not decode, ValueError for a film smaller than `size`: it is never enlarged.
    """
    try:
        with Image.open(file) as film:
            small = max(film.size) < size
            if not small and film.mode.startswith("I"):  # convert("L") would cut off instead of scaling
                values = np.clip(np.asarray(film).astype(np.int64), 0, 65535)
                film = Image.fromarray(((values + 128) // 257).astype(np.uint8))
            elif not small:
                film = film.convert("L")
    except Exception as error:  # a broken file may raise anything: SyntaxError, zlib.error, struct.error, ...
        raise OSError(f"the film does not decode: {error}") from None
    if small:
        raise ValueError(f"the film is smaller than {size} px")
    return np.asarray(ImageOps.pad(film, (size, size), method=FILTER))


# --- The unfinished set


def replace(path, content):
    """Write a file beside its place and rename it: it is there as a whole or not at all."""
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


@contextmanager
def working_folder(folder):
    """`folder`, made where it is missing and locked against a second process; removed if nothing was left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            try:
                yield
            finally:
                if folder.exists() and os.listdir(folder) == ["lock"]:
                    shutil.rmtree(folder)
    except Timeout:
        raise ValueError(f"{folder} is in use by another process: let it finish") from None


class Part:
    """The films of an unfinished set, in its working folder, from which a stopped run goes on.

    `films`: raw uint8, the film of each row of `table` at its final place; `done`: one byte per film, its state,
    written after the film; `read`: the tar.gz archives that need not be read again, one per line.
    Readers ask for the row of a name, and give a row the content of its film; they run in threads.
    """

    def __init__(self, folder, table, size):
        self.folder, self.size = folder, size
        self.rows = {name: row for row, name in enumerate(table["Image Index"])}
        self.films = os.open(folder / "films", os.O_RDWR | os.O_CREAT, 0o666)
        self.done = os.open(folder / "done", os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self.films, len(table) * size**2)
        os.truncate(self.done, len(table))
        self.state = np.frombuffer(os.pread(self.done, len(table), 0), np.uint8).copy()
        self.bytes, self.stopped, self.lock = 0, False, threading.Lock()
        self.bar = tqdm(total=len(table), initial=self.count(), unit="film", disable=None)  # None: only in a terminal

    def close(self):
        os.close(self.films)
        os.close(self.done)
        self.bar.close()

    def count(self):
        """Films done."""
        return int((self.state == DONE).sum())

    def row(self, name):
        """The row of a file or member by the last part of its name; None if it is not wanted (any more)."""
        if self.stopped:
            raise InterruptedError("stopped")
        row = self.rows.get(os.path.basename(name))
        return None if row is None or self.state[row] == DONE else row

    def show(self, films=0, size=0):
        """Move the bar on by films and bytes."""
        with self.lock:
            self.bytes += size
            self.bar.set_postfix_str(f"{self.bytes / 1e9:.2f} GB", refresh=False)
            self.bar.update(films)

    def keep(self, row, file):
        """Store the film in `file` (a path, an open file, or None for one that cannot be read); returns its state."""
        try:
            if file is None:
                return BROKEN
            film = reduce_film(file, self.size).tobytes()
        except OSError:
            return BROKEN
        except ValueError:
            return SMALL
        try:
            os.pwrite(self.films, film, row * self.size**2)
        except OSError as error:  # a full disk is no fault of the archive
            raise ValueError(f"{self.folder / 'films'}: {error}") from None
        self.show(films=1)
        return DONE

    def mark(self, states):
        """Record {row: state} of films that are stored and verified."""
        for row, state in states.items():
            os.pwrite(self.done, bytes([state]), row)
            self.state[row] = state

    def read(self, reader, sources, threads):
        """Call reader(self, source) for all sources; returns the problems, one line for each source that failed."""

        def attempt(source):
            try:
                if self.count() < len(self.rows):
                    reader(self, source)
            except UNREADABLE as error:
                return f"{os.path.basename(source)}: {error}"

        self.stopped = False
        pool = ThreadPoolExecutor(threads)  # as fast as processes: Pillow decodes and resizes without the GIL
        try:
            return [problem for problem in pool.map(attempt, sources) if problem]
        finally:
            self.stopped = True  # after Ctrl-C or a fault, the threads end at their next film
            pool.shutdown(cancel_futures=True)


def read_png(part, path):
    if (row := part.row(path)) is not None:
        part.mark({row: part.keep(row, path)})
        part.show(size=os.path.getsize(path))


def read_zip(part, archive):
    """Take the films wanted from an open ZipFile, in the order in which they lie there; yields after each."""
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        if (row := part.row(member.filename)) is None:
            continue
        file = None
        if member.file_size <= MAX_MEMBER:
            # Damaged, encrypted, an unknown compression ... Read to its end, where the CRC is checked, and not by
            # read(), which would unpack more than the member says it has.
            with suppress(*DAMAGED, RuntimeError), archive.open(member) as content:
                file = io.BytesIO(content.read(MAX_MEMBER + 1))
        part.mark({row: part.keep(row, file)})
        part.show(size=member.compress_size)
        yield


def read_tar(part, name, file):
    """Take the films wanted from the tar.gz `name`, an open file that is read once from start to end.

    They count once the checksum at its end is verified: a stopped or damaged archive is read anew.
    """
    finished = part.folder / "read"
    if finished.exists() and name in finished.read_text(encoding="utf-8").splitlines():
        return
    states = {}
    try:
        # Not mode "r|gz", which does not look at the checksum.
        with gzip.GzipFile(fileobj=file) as content, tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                part.show(size=member.size)
                if (row := part.row(member.name)) is not None and member.isfile():
                    fits = member.size <= MAX_MEMBER
                    states[row] = part.keep(row, io.BytesIO(archive.extractfile(member).read()) if fits else None)
            while content.read(1 << 20):
                pass
    except BaseException:
        part.show(films=-[*states.values()].count(DONE))
        raise
    part.mark(states)
    with open(finished, "a", encoding="utf-8") as lines:
        lines.write(f"{name}\n")


def read_archive(part, path):
    """A zip or tar.gz on disk."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for _ in read_zip(part, archive):
                pass
    else:
        with open(path, "rb") as file:
            read_tar(part, f"{path.resolve()}, {path.stat().st_size} bytes", file)


# --- The network


def connect():
    """A session that answers a refused or broken connection, "too many requests" and 5xx by trying again."""
    retry = Retry(total=TRIES, backoff_factor=WAIT, status_forcelist=(429, 500, 502, 503, 504))
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return session


def give_up(failures, error):
    """Wait before the next try, or raise `error` where there were too many."""
    if failures > TRIES:
        raise error
    time.sleep(WAIT * 2 ** (failures - 1))


class Stream:
    """An address as a file that is read once; where the connection drops, it is taken up at that byte.

    Raises requests.RequestException or urllib3's HTTPError when that fails for good.
    """

    def __init__(self, session, url):
        self.session, self.url = session, url
        self.at, self.failures, self.body = 0, 0, None

    def open(self):
        headers = {"Range": f"bytes={self.at}-", "Accept-Encoding": "identity"}
        answer = self.session.get(self.url, headers=headers, stream=True, timeout=TIMEOUT)
        answer.raise_for_status()
        skip = 0 if answer.status_code == 206 else self.at  # some servers know no ranges
        while skip and (data := answer.raw.read(min(skip, 1 << 16))):
            skip -= len(data)
        self.body = answer.raw

    def read(self, size=1 << 16):
        """At most `size` bytes; none at the end."""
        while True:
            try:
                if self.body is None:
                    self.open()
                data = self.body.read(size)
                break
            except HTTPError as error:
                self.body = None
                self.failures += 1
                give_up(self.failures, error)
        self.failures = 0
        self.at += len(data)
        return data


def fetch(address, names, folder):
    """Copy small files into the working folder and return it; once there is a plan, only files that are missing."""
    with connect() as session:
        for path in (folder / name for name in names):
            if path.exists() and (folder / "plan.json").exists():  # without a plan they may be some error page
                continue
            try:
                replace(path, b"".join(iter(Stream(session, address + path.name).read, b"")))
            except (requests.RequestException, HTTPError) as error:
                ways = "try again, or give it with --labels, --lists or --split-dir"
                raise ValueError(f"{address}{path.name} cannot be fetched ({error}): {ways}") from None
    return folder


def read_mirror(part, url):
    """A zip at an address, of which only the films wanted are transferred."""
    failures = 0
    with connect() as session:
        while True:
            try:
                # Films come from where the address leads, asked once: a host of many files counts its requests.
                with session.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT) as answer:
                    answer.raise_for_status()
                with RemoteZip(answer.url, session=session, timeout=TIMEOUT) as archive:
                    for _ in read_zip(part, archive):
                        failures = 0
                return
            except (RemoteIOError, HTTPError) as error:  # dropped, or the place it led to has moved
                failures += 1
                give_up(failures, error)


def read_nih(part, url):
    """A tar.gz at an address, read as a whole; once more where it arrives damaged."""
    for last in (False, True):
        try:
            with connect() as session:
                return read_tar(part, url, Stream(session, url))
        except DAMAGED:
            if last:
                raise


def download_films(part, source):
    """Take all films from the mirror, or NIH's archives, or those where the mirror fails; returns the problems."""
    if source == "mirror":
        problems = part.read(read_mirror, [MIRROR + name for name in MIRROR_FILMS], MIRROR_THREADS)
        if not problems:
            return []
        part.bar.write(f"the mirror failed ({problems[0]}): going on with NIH's archives")
    return part.read(read_nih, [NIH + name for name in NIH_FILMS], NIH_THREADS)


# --- From films to a set


def choose_films(split, split_dir, labels, lists, seed, download, part):
    """The films of a set as rows of the label table with their `split`, and what source.json says of the choice.

    Where `download` is true, the label table and the official lists are fetched unless they are given.
    """
    if labels is None:
        labels = fetch(MIRROR, [TABLE], part) / TABLE
    if split == "original":
        lists = None
        split_dir = split_dir or fetch(ORIGINAL_SPLIT, [f"small_{name}.json" for name in SPLITS], part)
    elif lists is None and download:
        lists = fetch(MIRROR, LISTS, part)
    table = read_labels(labels)
    record = {
        "split": split,
        "seed": seed,
        "labels_sha256": hashlib.sha256(Path(labels).read_bytes()).hexdigest(),
        "origin": {"labels": Path(labels).name, "lists": lists is not None},
    }
    if split == "original":
        table, record["other_labels"] = original_split(table, split_dir)
    else:
        table = assign_splits(table, lists, seed)
    if split == "sampled":
        table = sample(table, lists is not None, seed)
    return table, record


def keep_to_plan(part, plan):
    """Write down the plan of a new working folder; ValueError where it was begun with another one."""
    at = part / "plan.json"
    if not at.exists():
        replace(at, json.dumps(plan, indent=1).encode())
    begun = json.loads(at.read_text(encoding="utf-8"))
    for name in plan:
        if begun.get(name) != plan[name]:
            raise ValueError(
                f"{part} was begun with {name} {begun.get(name)}, which is now {plan[name]}: "
                "repeat that command, choose another --name, or delete the folder"
            )


def finish(part, table, folder, source, where, problems, skip_bad):
    """Make the set of the films that are done, move it to `folder`, and return its counts.

    problems: one line for each archive that was not read to its end. Raises ValueError if films are missing.
    """
    part.bar.close()
    missing, broken, small = (table["Image Index"][part.state == s].to_list() for s in (MISSING, BROKEN, SMALL))
    if small:
        raise ValueError(f"{where}: {some(small)} smaller than {part.size} px: choose a smaller --size")
    faults = [f"{some(names)} {what}" for names, what in ((missing, "missing"), (broken, "not decodable")) if names]
    if faults and (problems or not skip_bad):  # what lies in an unread archive is not known to be bad
        why = f" ({problems[0]})" if problems else ""
        skip = "" if problems else ", --skip-bad leaves them out"
        if not problems:  # to try again is to read all archives again
            (part.folder / "read").unlink(missing_ok=True)
        replace(part.folder / "missing.txt", "\n".join([*missing, *broken, ""]).encode())
        listed = f"all in {part.folder / 'missing.txt'}"
        raise ValueError(f"{where}: {' and '.join(faults)}{why}, {listed}: the same command tries them again{skip}")
    table = table[part.state == DONE]
    if empty := set(SPLITS) - set(table["split"]):
        raise ValueError(f"no film is left for split {min(empty)!r}: add more of the films to {where}")
    shape = (len(part.state), part.size, part.size)
    films = np.memmap(part.folder / "films", np.uint8, "r", shape=shape)
    if faults:  # close the gaps, on disk: the whole of ChestX-ray14 at 256 px is 7.3 GB
        with open(part.folder / "together", "wb") as file:
            for row in np.flatnonzero(part.state == DONE):
                file.write(films[row])
        films = np.memmap(part.folder / "together", np.uint8, "r", shape=(len(table), *shape[1:]))
    skipped = {"missing": missing, "undecodable": broken}
    counts = write_set(part.folder / "set", films, table, source | {"skipped": skipped})
    if folder.exists():
        folder.rmdir()  # it is empty
    (part.folder / "set").rename(folder)
    shutil.rmtree(part.folder, ignore_errors=True)
    if faults:
        print(f"skipped: {' and '.join(faults)}")
    if source["split"] == "original":
        print(f"{source['other_labels']} films have other labels in the original's lists; the label table's are taken")
    elif not source["origin"]["lists"]:
        print("no --lists: divided by patient, not the official split")
    return counts


def prepare(images, archives, download, split, split_dir, source, labels, lists, size, name, out, seed, skip_bad):
    """Write the set `out`/`name` and return its counts, or None where a finished set is there already.

    The arguments are the options of `main`. Raises ValueError with one line that names the file, the problem and the
    next step; what was done by then is in `out`/`name`.part, where the same command goes on.
    """
    folder, working = Path(out) / name, Path(out) / f"{name}.part"
    if name != folder.name:
        raise ValueError(f"--name {name!r} must be the name of one folder; say where it lies with --out")
    if (folder / "source.json").exists():
        shutil.rmtree(working, ignore_errors=True)  # left by a run that was stopped just before it did this
        return None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there but is no finished set: move it away or choose another --name")
    if size < 1 or seed < 0:
        raise ValueError(f"--size {size} must be at least 1 and --seed {seed} at least 0")
    if labels is None and not download:
        raise ValueError(f"--labels is missing: give it the official {TABLE}")
    split = split or ("original" if download else "all")
    where = images or archives or "download"
    with working_folder(working):
        table, record = choose_films(split, split_dir, labels, lists, seed, download, working)
        record["origin"] = {"films": Path(where).resolve().name} | record["origin"]
        expected, read = len(table), None
        if images:
            films = find_films(images)
            if twice := [film for film in table["Image Index"] if len(films.get(film, ())) > 1]:
                both = " and ".join(str(path.parent) for path in films[twice[0]][:2])
                raise ValueError(f"{images} has more than one file of {some(twice)}, in {both}: keep one of each")
            missing = [film for film in table["Image Index"] if film not in films]
            if missing and not skip_bad:
                raise ValueError(f"{images} lacks {some(missing)}: add them or leave them out with --skip-bad")
            read, sources = read_png, [films[film][0] for film in table["Image Index"] if film in films]
            expected = len(sources)
        elif archives:
            read = read_archive
            sources = sorted(path for ending in (".zip", ".tar.gz") for path in Path(archives).rglob(f"*{ending}"))
            if not sources:
                raise ValueError(f"{archives} has no .zip or .tar.gz: give --archives the folder with the archives")
        source_json = {"citation": CITATION, "size": size} | record
        listed = table.to_csv(index=False, lineterminator="\n").encode()
        keep_to_plan(working, source_json | {"films_sha256": hashlib.sha256(listed).hexdigest()})
        part = Part(working, table, size)
        try:
            shutil.rmtree(working / "set", ignore_errors=True)  # of a run that was stopped while it wrote the set
            (working / "together").unlink(missing_ok=True)
            copies = 3 if skip_bad else 2  # films, the same without gaps, images.npy
            need, free = (copies * expected - part.count()) * size**2, shutil.disk_usage(working).free
            if need > free:
                raise ValueError(f"{working} needs {need / 1e9:.1f} GB and has {free / 1e9:.1f}: say where with --out")
            problems = part.read(read, sources, os.cpu_count()) if read else download_films(part, source)
            return finish(part, table, folder, source_json, where, problems, skip_bad)
        finally:
            part.close()


def main(argv=None):
    """The command line; returns the exit status: 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Prepare ChestX-ray14 from its films and its label table.")
    films = parser.add_mutually_exclusive_group(required=True)
    films.add_argument("--download", action="store_true", help="fetch the films needed, the label table and the lists")
    films.add_argument("--archives", help="folder with the films in .zip and .tar.gz archives, at any depth")
    films.add_argument("--images", help="folder with the PNG films, at any depth")
    parser.add_argument("--source", choices=("mirror", "nih"), default="mirror", help="of --download (%(default)s)")
    choices = ("original", "sampled", "all")
    parser.add_argument("--split", choices=choices, help="which films (original with --download, else all)")
    parser.add_argument("--split-dir", help="folder with the original's small_train.json, ...; without, fetched")
    parser.add_argument("--labels", help="Data_Entry_2017.csv or _v2020.csv, gzipped or not; --download can fetch it")
    parser.add_argument("--lists", help=f"folder with the official {' and '.join(LISTS)}; without, split by patient")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of a prepared film, px (%(default)s)")
    parser.add_argument("--name", default=NAME, help="the set's name (%(default)s)")
    parser.add_argument("--out", default=OUT, help="where its folder is made (the data folder)")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the patients (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out films that are missing or do not decode")
    options = parser.parse_args(argv)
    folder = Path(options.out) / options.name
    try:
        counts = prepare(**vars(options))
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
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
