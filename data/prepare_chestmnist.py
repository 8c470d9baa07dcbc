"""Prepare ChestMNIST: all 112,120 films of ChestX-ray14, from one file of MedMNIST+, become a set.

    python -m data.prepare_chestmnist --size 64

fetches chestmnist_64.npz (0.4 GB) into data/chestmnist_files/ and makes data/chestmnist_64/: uint8 films of 64 x 64 px.
Films and labels are read as a stream, so that files of any size need little memory. docs/data.md says what the set is,
what its split is not, and what each option does.
"""

import hashlib
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import read_array_header_1_0, read_magic
from PIL import Image
from requests import RequestException

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import fetch_chestxray14 as fetch
from data.films import FILTER
from data.labels_chestxray14 import film_name, find, refuse
from data.making import OUT, check_place, making, run_script, write_films, write_set
from dataset import FINDINGS, NO_FINDING
from support.files import InputError, read_table
from support.progress import progress
from support.settings import Parser

ADDRESS = "https://zenodo.org/records/10519652/files/"
FILES = {  # height and width of the films, px: the file that has them, its MD5 and its size, GB
    28: ("chestmnist.npz", "02c8a6516a18b556561a56cbdd36c4a8", 0.08),
    64: ("chestmnist_64.npz", "9de6cd0b934ebb5b7426cfba5efbae16", 0.4),
    128: ("chestmnist_128.npz", "db107e5590b27930b62dbaf558aebee3", 1.4),
    224: ("chestmnist_224.npz", "45bd33e6f06c3e8cdb481c74a89152aa", 3.9),
}
FILMS = {"train": 78468, "val": 11219, "test": 22433}  # films per split, in the order of the set
POSITIVES = {  # films with each of FINDINGS, which prove that a file is ChestMNIST
    "train": (7996, 1950, 9261, 13914, 3988, 4375, 978, 3705, 3263, 1690, 1799, 1158, 2279, 144),
    "test": (2420, 582, 2754, 3938, 1133, 1335, 242, 1089, 957, 413, 509, 362, 734, 42),
}
SIZE = 64  # px, one of FILES
LEAST = 32  # px: networks divide height and width by 32, so smaller films are enlarged
WHOLE = (np.uint8, np.bool_, np.int8, np.int16, np.int32, np.int64)  # what labels may be
ROWS = 256  # films that are in memory at once
WORK = "chestmnist_files"  # the folder of downloads, beside the sets
SPLIT = "by patient, 70 : 10 : 20, as arnoweng/CheXNet published it; not NIH's official one"
CITATION = "ChestMNIST of MedMNIST+ (Yang et al., Scientific Data 10:41, 2023), CC BY 4.0, https://medmnist.com; made "
CITATION += "from ChestX-ray14 of the NIH Clinical Center (Wang et al., CVPR 2017, arXiv 1705.02315)"


# --- The file


def md5_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch_npz(path, part, size):
    """Fetch the file with films of this size to `path`, by way of `part`. Raises InputError."""
    name, md5, _ = FILES[size]
    address = f"{ADDRESS}{name}?download=1"
    ways = f"try again, or get {name} by hand and give it with --npz"
    try:
        fetch.download(address, part)
    except (RequestException, *fetch.DROPPED) as error:
        raise InputError(f"{address} cannot be read ({error}), {part} has its beginning: {ways}") from None
    if (found := md5_of(part)) != md5:
        part.unlink()
        raise InputError(f"{address} sent a file with the MD5 {found}, not {md5}: {ways}")
    part.rename(path)


@contextmanager
def open_npz(path, size):
    """The npz file as an archive. Whatever a damaged or wrong one raises, here or later, becomes an InputError."""
    try:
        with zipfile.ZipFile(path) as npz:
            yield npz
    except (*fetch.UNREADABLE, KeyError, ValueError, RuntimeError) as error:  # no such member, no array, encrypted
        if isinstance(error, InputError) or getattr(error, "filename", None):  # the latter of what is written
            raise
        raise InputError(f"{path} cannot be read ({error}): give --npz MedMNIST's {FILES[size][0]}") from None


def read_rows(npz, name, shape, dtypes=(np.uint8,)):
    """Yields an array of an npz in blocks (at most ROWS, ...), as a stream, which also verifies its checksum.

    Raises InputError for other shapes and dtypes.
    """
    with npz.open(f"{name}.npy") as file:
        read_magic(file)
        found, by_columns, dtype = read_array_header_1_0(file)
        if found != shape or by_columns or dtype not in dtypes:
            problem = f"{name} is {dtype} {found}, and ChestMNIST's is {np.dtype(dtypes[0])} {shape}"
            raise InputError(f"{npz.filename}: {problem}: give --npz ChestMNIST, and --size the size of its films")
        for start in range(0, shape[0], ROWS):
            block = (min(ROWS, shape[0] - start), *shape[1:])
            yield np.frombuffer(file.read(int(np.prod(block)) * dtype.itemsize), dtype).reshape(block)
        if file.read(1):
            raise ValueError(f"{name} is longer than {shape}")


def read_labels(npz):
    """{split: labels (N, findings) of 0 and 1}. Raises InputError for labels of anything but ChestMNIST."""
    labels = {}
    for split, films in FILMS.items():
        labels[split] = np.concatenate([*read_rows(npz, f"{split}_labels", (films, len(FINDINGS)), WHOLE)])
        if not np.isin(labels[split], (0, 1)).all():
            raise InputError(f"{npz.filename}: {split}_labels has other values than 0 and 1: give --npz ChestMNIST")
        found = labels[split].sum(axis=0, dtype=int)
        for k in np.flatnonzero(found != POSITIVES.get(split, found)):
            problem = f"{split}_labels has {found[k]} films with {FINDINGS[k]}, and ChestMNIST's {POSITIVES[split][k]}"
            raise InputError(f"{npz.filename}: {problem}: give --npz ChestMNIST as MedMNIST publishes it")
    return labels


# --- The set


def read_names(path):
    """The films' names in ChestX-ray14, in the order of the set, from MedMNIST's table. Raises InputError."""
    ways = "give --names MedMNIST's table of ChestMNIST, with the columns split, index and image_id"
    table = read_table(path)
    columns = [table[find(c, [*table.columns], f"the header of {path}", ways)] for c in ("split", "index", "image_id")]
    found = {(split, index): film_name(name) for split, index, name in zip(*columns, strict=True)}
    rows = [(split, str(row)) for split, films in FILMS.items() for row in range(films)]
    if len(table) != len(rows) or found.keys() != set(rows):
        raise InputError(f"{path} has not one row for each of ChestMNIST's {len(rows)} films: {ways}")
    names = pd.Series([found[row] for row in rows])
    split = pd.Series([split for split, _ in rows])
    problems = {
        "names that are not NIH's": ~names.str.fullmatch(r"\d{8}_\d{3}\.png"),
        "more than one row": names.duplicated(),
        "a patient in two splits": split != split.groupby(names.str[:8]).transform("first"),
    }
    refuse(path, names, problems, ways)
    return names.to_list()


def make_table(labels, names):
    """The rows of labels.csv. names: of the films; None: they are called by split and row, and patients are unknown."""
    index = names or [f"{split}_{row:05d}" for split, films in FILMS.items() for row in range(films)]
    patients = [int(name[:8]) for name in names] if names else index
    films = np.concatenate([*labels.values()])
    found = ["|".join(FINDINGS[k] for k in np.flatnonzero(film)) or NO_FINDING for film in films]
    split = np.repeat([*FILMS], [*FILMS.values()])
    return pd.DataFrame({"Image Index": index, "Patient ID": patients, "Finding Labels": found, "split": split})


def prepare(options, folder):
    """Make the set that the options describe as `folder`; returns its counts. Raises InputError, and Finished."""
    size, side, work = options.size, max(options.size, LEAST), folder.with_name(WORK)
    name, md5, gigabytes = FILES[size]
    path, part = Path(options.npz or work / name), work / f"{name}.part"
    check_place(options.name, folder, work, options.names)
    if options.npz and not path.is_file():
        raise InputError(f"{path} is no file: give --npz MedMNIST's {name}, or leave it out to fetch that file")
    names = read_names(options.names) if options.names else None
    missing = 0 if path.exists() else gigabytes * 1e9 - (part.stat().st_size if part.exists() else 0)
    with making(folder, work, {work: missing, folder: sum(FILMS.values()) * side**2}) as made:
        if not path.exists():
            fetch_npz(path, part, size)
        with open_npz(path, size) as npz:
            table = make_table(read_labels(npz), names)
            if (found := md5_of(path)) != md5:
                print(f"{path} has the MD5 {found}, and the published file {md5}; its labels are ChestMNIST's")
            with write_films(made / "images.npy", len(table), side) as out, progress(None, name, len(table)) as bar:
                for split, films in FILMS.items():
                    for block in read_rows(npz, f"{split}_images", (films, size, size)):
                        for film in map(Image.fromarray, block):
                            out.write(film.resize((side, side), FILTER).tobytes())  # a copy, but at 28 px
                        bar.update(len(block))
        source = {"citation": CITATION, "split": SPLIT, "size": side, "enlarged": side > size}
        source |= {"patients": names is not None, "origin": {"films": path.name, "size": size, "md5": found}}
        counts = write_set(made, None, table, source)
    if names is None:
        print("no --names: patients are not known, each film counts as one")
    return counts


def parse_options(argv=None):
    """The options of the command line."""
    parser = Parser(description="Prepare ChestMNIST, all films of ChestX-ray14 from one file.")
    parser.add_argument("--size", type=int, choices=FILES, default=SIZE, help="of the films, px (%(default)s)")
    parser.add_argument("--npz", help="MedMNIST's file with films of this size, instead of fetching it")
    parser.add_argument("--names", help="MedMNIST's table of the films' names (split, index, image_id)")
    parser.add_argument("--name", help="the set's name (chestmnist_64, or what --size says)")
    parser.add_argument("--out", default=OUT, help="where its folder is made (the data folder)")
    options = parser.parse_args(argv)
    options.name = f"chestmnist_{options.size}" if options.name is None else options.name
    return options


def main(argv=None):
    """The command line; returns 0, see `run_script`."""
    return run_script(parse_options, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
