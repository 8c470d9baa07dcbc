"""Where the films of ChestX-ray14 come from: a folder of films, archives on disk, or the archives of a mirror.

The official data set has twelve archives, images_01.tar.gz to images_12.tar.gz (45 GB); the mirror has the same films
as images_001.zip to images_012.zip. Of a zip of the mirror only the films wanted are transferred, each by a request
for its range of bytes. A film counts once a checksum says that it is whole: in a zip each film has its own, a tar.gz
has one at its very end.
"""

import filecmp
import gzip
import io
import os
import re
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image, ImageOps
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from support.files import InputError

# The mirror has the films, the label table and the lists.
MIRROR = "https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset/resolve/main/data/"
BY_HAND = "https://nihcc.app.box.com/v/ChestXray-NIHCC"  # the official archives, label table and lists
ARCHIVES = range(1, 13)  # their numbers

THREADS = 24  # of a download: each film costs a request, and they share its latency
MAX_MEMBER = 1 << 24  # bytes of a film in an archive; a film of 1024 x 1024 px has at most about 4 MB
TRIES = 6  # times that a failed request or a dropped connection is tried again
WAIT = 1.0  # s before such a try, twice as long before each further one
TIMEOUT = 60  # s without an answer
DAMAGED = (  # what a bad archive raises
    EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError,
    UnicodeDecodeError, OverflowError,
)  # fmt: skip
DROPPED = (RemoteIOError, HTTPError)  # what a connection raises that breaks off
UNREADABLE = (*DAMAGED, OSError, HTTPError, RemoteZipError)  # whatever can keep an archive from being read
NAMED = 3  # how many films a message names
FILTER = Image.Resampling.LANCZOS  # keeps thin lines (a pleural edge) sharpest; 5 of a film's 15 ms, BOX takes 1
DARK = (
    64  # a film of which 99 % is below this grey value of 255 was made with a wrong range; in nih10k the least is 121
)
PICTURES = (".png", ".jpg", ".jpeg")  # endings of films, in any case
ZIP, TAR = (".zip",), (".tar.gz", ".tgz")  # endings of archives, in any case
PACKED = (*ZIP, *TAR, ".tar", ".7z", ".rar")  # endings of archives within archives, which are only named


class Source(NamedTuple):
    """Films that one thread reads one after the other.

    read(wants) yields, for each film that wants(name) is true for, its name and its file: a path, an open file, or
    None where it is damaged. It raises one of UNREADABLE where it cannot go on.
    """

    name: str  # in messages
    read: Callable
    checked_last: bool = False  # no film counts before all are read


def some(names):
    """'4 films (a.png, b.png, c.png, ...)': their number and the first few."""
    first = [*names[:NAMED], "..."] if len(names) > NAMED else names
    return f"{len(names)} film{'s' * (len(names) != 1)}" + (f" ({', '.join(first)})" if len(names) else "")


def slices(parts):
    """Slices that divide a list into so many parts."""
    return [slice(first, None, parts) for first in range(parts)]


def key(name):
    """What a film is matched by: its name without folder, ending and case; None for a file that is no picture."""
    stem, ending = os.path.splitext(os.path.basename(name.strip()).lower())
    return stem if ending in PICTURES else None


def list_keys(source):
    """The keys of the films of a source that is one archive."""
    keys = set()
    try:
        for _ in source.read(lambda name: keys.add(key(name))):  # which is no name's yes: no film is read
            pass
    except UNREADABLE as error:
        ways = f"try again, or get it by hand from {BY_HAND} and give it with --archives"
        raise InputError(f"{source.name} cannot be read ({error}): {ways}") from None
    return keys


# --- One film


def scale_grey(film):
    """A film of more than 8 bits, scaled to 8: by 10, 12, 14 or 16 bits, the least that hold its values.

    Detectors have 10 to 14 bits, and a DICOM file that was converted to 16 often keeps their values. convert("L")
    would cut them off. Raises ValueError for other values, such as shares of 1.
    """
    values = np.asarray(film)
    if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values of type {values.dtype} from {values.min()} to {values.max()}, not 0 to 65535")
    white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return Image.fromarray(((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8))


def reduce_film(file, size):
    """A film of any mode -> its grey values, uint8 (size, size).

    Colours become luma, transparency is ignored, 16-bit grey is scaled by the bits that it uses; a film that is not
    square is centred on black, so that anatomy keeps its shape. Antialiased, in whole numbers: the same on every
    platform. Raises OSError for a file that does not decode or is nearly black but for a few pixels, such as a marker;
    ValueError for a film smaller than `size`: it is never enlarged.
    """
    try:
        with Image.open(file) as film:
            small = max(film.size) < size
            if not small:
                film = scale_grey(film) if film.mode[0] in "IF" else film.convert("L")
    except Exception as error:  # a broken file may raise anything: SyntaxError, zlib.error, struct.error, ...
        raise OSError(f"the film does not decode: {error}") from None
    if small:
        raise ValueError(f"the film is smaller than {size} px")
    if sum(film.histogram()[DARK:]) < 0.01 * film.width * film.height:
        raise OSError(f"the film is nearly black: 99 % of its grey values are below {DARK} of 255")
    return np.asarray(ImageOps.pad(film, (size, size), method=FILTER))


# --- A folder of films


def find_films(folder):
    """All films anywhere below `folder`: {key: [its paths]}."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: give --images the folder with the films")
    films = {}
    for path in walk(folder):
        if key(path.name):
            films.setdefault(key(path.name), []).append(path)
    return films


def walk(folder):
    """The paths of all files below `folder`. Links are followed, as Kaggle's folders often are; each folder once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        places = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        yield from (Path(parent) / name for name in sorted(names))


def choose_copy(paths):
    """The path of a film of which there may be several copies, or None where they differ. A dangling link is none."""
    first, *others = [path for path in paths if path.is_file()] or paths[:1]
    return first if all(filecmp.cmp(first, path, shallow=False) for path in others) else None


def is_whole(path, form=None):
    """Whether there is a film that is whole: a PNG by its checksums, at which decoding does not look.

    form: the mode and size that it must have, ("L", (256, 256)); None: any.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with Image.open(path) as film:
            film.verify()
        return form in (None, (film.mode, film.size))
    except Exception:  # a broken file may raise anything: SyntaxError, zlib.error, struct.error, ...
        return False


def read_films(paths, wants):
    """The films of files; see Source."""
    for path in paths:
        if wants(path.name):
            yield path.name, path if is_whole(path) else None


def file_sources(folder, needed, skip_bad, threads):
    """The sources of the films `needed` in the files of `folder`.

    Raises InputError, naming the films, where one has two files that differ; or none, unless skip_bad is true.
    """
    films = find_films(folder)
    chosen = {name: choose_copy(films[key(name)]) for name in needed if key(name) in films}
    if twice := [name for name, path in chosen.items() if path is None]:
        both = " and ".join(map(str, films[key(twice[0])][:2]))
        raise InputError(f"{folder} has different files of {some(twice)}, {both}: keep one of each")
    missing = [name for name in needed if name not in chosen]
    if missing and not skip_bad:
        raise InputError(f"{folder} lacks {some(missing)}: add them or leave them out with --skip-bad")
    paths = list(chosen.values())
    return [Source("the films' files", partial(read_films, paths[part])) for part in slices(threads)]


# --- Archives on disk


def find_archives(path, number=None):
    """The zip and tar.gz archives at or anywhere below `path`; with a number, the one of that number."""
    path = Path(path)
    found = [path] if path.is_file() else sorted(walk(path))
    found = [archive for archive in found if archive.name.lower().endswith(ZIP + TAR)]
    if not found:
        raise InputError(f"{path} has no .zip or .tar.gz: give --archives an archive, or the folder with the archives")
    if number is None:
        return found
    found = [archive for archive in found if re.fullmatch(f"images_0*{number}", archive.name.lower().split(".")[0])]
    if not found or choose_copy(found) is None:
        names = f"images_{number:03d}.zip or images_{number:02d}.tar.gz"
        raise InputError(f"{path} has {len(found)} files {names}: --archive {number} needs one")
    return found[:1]


def check_zips(paths):
    """Raise InputError where zips on disk hold two different files of one film."""
    found = {}
    for path in paths:
        members = []
        if path.name.lower().endswith(ZIP):
            with suppress(*DAMAGED, OSError), zipfile.ZipFile(path) as archive:  # it is named when its films are read
                members = archive.infolist()
        for member in members:
            if key(member.filename):
                place, content = f"{member.filename} in {path.name}", (member.CRC, member.file_size)
                other, before = found.setdefault(key(member.filename), (place, content))
                if before != content:
                    raise InputError(f"{other} and {place} are different files of one film: keep one of each")


def read_zip(open_zip, part, wants):
    """The films of a part (a slice) of a zip, in the order in which they lie there; see Source.

    open_zip: a function that opens it as a ZipFile.
    """
    with open_zip() as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset)[part]:
            name, file = os.path.basename(member.filename), None
            if not wants(name):
                continue
            if member.file_size <= MAX_MEMBER:
                # Damaged, encrypted, an unknown compression ... Read to its end, where the CRC is checked, and not by
                # read(), which would unpack more than the member says it has.
                with suppress(*DAMAGED, RuntimeError), archive.open(member) as content:
                    file = io.BytesIO(content.read(MAX_MEMBER + 1))
            yield name, file


def read_tar(path, wants):
    """The films of a tar.gz; see Source. At the end its checksum is verified."""
    # Not tarfile's mode "r|gz", which does not look at the checksum.
    with gzip.open(path) as content, tarfile.open(fileobj=content, mode="r|") as archive:
        for member in archive:
            name = os.path.basename(member.name)
            if member.isfile() and wants(name):
                fits = member.size <= MAX_MEMBER
                yield name, io.BytesIO(archive.extractfile(member).read()) if fits else None
        while content.read(1 << 20):
            pass


def archive_sources(paths, threads):
    """The sources of archives; a zip is read by several threads where there are fewer archives than threads."""
    sources = []
    for path in paths:
        if path.name.lower().endswith(ZIP):
            parts = slices(-(-threads // len(paths)))
            sources += [Source(path.name, partial(read_zip, partial(zipfile.ZipFile, path), part)) for part in parts]
        else:
            sources.append(Source(path.name, partial(read_tar, path), checked_last=True))
    return sources


# --- The mirror


@contextmanager
def connect():
    """A session that answers a refused or broken connection, "too many requests" and 5xx by trying again."""
    retry = Retry(total=TRIES, backoff_factor=WAIT, status_forcelist=(429, 500, 502, 503, 504))
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        session.mount("https://", HTTPAdapter(max_retries=retry))
        yield session


def persist(read):
    """What read() yields; where the connection breaks off, read() is called anew."""
    failures = 0
    while True:
        try:
            for item in read():
                failures = 0
                yield item
            return
        except DROPPED:
            failures += 1
            if failures > TRIES:
                raise
            time.sleep(WAIT * 2 ** (failures - 1))


@contextmanager
def open_mirror(number):
    """The mirror's archive of that number as a ZipFile."""
    # Films come from where the address leads, asked once: a host of many files counts its requests.
    with connect() as session:
        url = f"{MIRROR}images/images_{number:03d}.zip"
        with session.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
        with RemoteZip(answer.url, session=session, timeout=TIMEOUT) as archive:
            yield archive


def read_mirror(number, part, wants):
    """The films of a part of an archive of the mirror; see Source."""
    return persist(partial(read_zip, partial(open_mirror, number), part, wants))


def mirror_sources(numbers, threads):
    """The sources of the mirror's archives of these numbers; see archive_sources."""
    parts = slices(-(-threads // len(numbers)))
    return [Source(f"images_{n:03d}.zip", partial(read_mirror, n, part)) for n in numbers for part in parts]


def fetch_file(name, folder):
    """Copy a small file of the mirror, the label table or a list, into `folder`; returns its path."""

    def read():
        with connect() as session, session.get(MIRROR + name, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            yield answer.raw.read(decode_content=True)

    path = Path(folder) / name
    try:
        path.write_bytes(next(persist(read)))
    except UNREADABLE as error:
        ways = f"try again, or get it by hand from {BY_HAND} and give it with --labels or --lists"
        raise InputError(f"{name} of the mirror cannot be read ({error}): {ways}") from None
    return path
