"""Where the films of ChestX-ray14 come from: a folder of films, archives on disk, or the archives of a mirror.

The official archives are images_01.tar.gz to images_12.tar.gz (45 GB); the mirror has images_001.zip to images_012.zip.
From these, only the wanted films are transferred, each by a request for its range of bytes. A film counts when a
checksum has shown that it is whole: in a zip each film has its own, a tar.gz has one at its end.
"""

import gzip
import io
import lzma
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

import requests
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from data.films import is_whole, walk
from support.files import InputError
from support.progress import progress

# The mirror has the films, the label table and the lists.
MIRROR = "https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset/resolve/main/data/"
BY_HAND = "https://nihcc.app.box.com/v/ChestXray-NIHCC"  # the official archives, label table and lists
ARCHIVES = range(1, 13)  # their numbers

THREADS = 24  # of a download: each film costs a request, and they share its latency
MAX_MEMBER = 1 << 27  # bytes of a film in an archive; more is no film but a fault of the archive
TRIES = 6  # times that a failed request or a dropped connection is tried again
WAIT = 1.0  # s before such a try, twice as long before each further one
TIMEOUT = 60  # s without an answer
BLOCK = 1 << 20  # bytes of a file that are read at once
ZIP, TAR = (".zip",), (".tar.gz", ".tgz")  # endings of archives, in any case

# What a damaged archive raises, what a lost connection raises, and everything that can stop the reading of a source.
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
DAMAGED += (OverflowError, UnicodeDecodeError, struct.error)  # of a zip with a wrong directory
DROPPED = (RemoteIOError, HTTPError)
UNREADABLE = (*DAMAGED, NotImplementedError, OSError, HTTPError, RemoteZipError)


class Source(NamedTuple):
    """Films that one thread reads one after the other.

    read(wants) calls wants(name) for each file. Where that is true, it yields the name and the bytes of the file; None
    for those of a damaged file, and a text for those that cannot be unpacked. It raises one of UNREADABLE where it
    cannot go on.
    """

    name: str  # in messages
    read: Callable


def list_names(source):
    """The names of all files in a source."""
    names = []
    try:
        for _ in source.read(names.append):  # append returns None, so no file is wanted or read
            pass
    except UNREADABLE as error:
        ways = f"try again, or get it by hand from {BY_HAND} and give it with --archives"
        raise InputError(f"{source.name} cannot be read ({error}): {ways}") from None
    return names


# --- A folder of films


def read_files(files, wants):
    """The films of files, (name, path) pairs; see Source."""
    for name, path in files:
        content = None
        if wants(name):
            with suppress(OSError):
                content = path.read_bytes() if path.is_file() else None  # reading a pipe would wait for ever
            yield name, content if content and is_whole(io.BytesIO(content)) else None


def list_files(folder, out):
    """The paths of all files below `folder`, see `films.walk`, but reduced films in `out`. Raises InputError."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: give --images the folder with the films")
    return list(walk(folder, *Path(out).glob("films_*px*")))


def file_sources(folder, files):
    """The sources of files below `folder`; files: their names and paths."""
    parts = os.cpu_count()
    return [Source(str(folder), partial(read_files, files[first::parts])) for first in range(parts)]


# --- Archives, on disk or of the mirror


def find_archives(path, number):
    """The zip and tar.gz archives at or anywhere below `path`; with a number, those of that number."""
    path = Path(path)
    found = [path] if path.is_file() else sorted(walk(path))
    found = [archive for archive in found if archive.name.lower().endswith(ZIP + TAR)]
    if number:
        found = [archive for archive in found if re.match(f"images_0*{number}[.]", archive.name.lower())]
    if not found:
        names = f"images_{number:03d}.zip or images_{number:02d}.tar.gz" if number else ".zip or .tar.gz"
        raise InputError(f"{path} has no {names}: give --archives an archive, or the folder with the archives")
    return found


def archive_sources(path, number, parts=None):
    """The sources of the archives at or below `path`, or of the mirror's where it is None; with a number, of that one.

    A zip is divided into so many parts, by default into enough to keep all threads busy.
    """
    if path is None:
        zips = {f"images_{n:03d}.zip": partial(open_mirror, n) for n in ([number] if number else ARCHIVES)}
        tars = []
    else:
        found = find_archives(path, number)
        tars = [archive for archive in found if archive.name.lower().endswith(TAR)]
        zips = {str(archive): partial(zipfile.ZipFile, archive) for archive in found if archive not in tars}
    parts = parts or -(-(THREADS if path is None else os.cpu_count()) // (len(zips) + len(tars)))
    part = [slice(first, None, parts) for first in range(parts)]
    sources = [Source(name, partial(read_zip, opened, some)) for name, opened in zips.items() for some in part]
    return sources + [Source(str(path), partial(read_tar, path)) for path in tars]


def read_zip(open_zip, part, wants):
    """The films of a part (a slice) of a zip, in the order in which they lie there; see Source.

    open_zip: a function that opens it as a ZipFile. After a lost connection the zip is opened again.
    """
    done = set()

    def read():
        with open_zip() as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.header_offset)[part]:
                if member.header_offset in done or not wants(member.filename):
                    continue
                content = None
                try:
                    # It is read to its end, where zipfile checks the CRC. A plain read() would unpack more bytes than
                    # the directory says the member has.
                    with suppress(*DAMAGED), archive.open(member) as file:
                        content = file.read(MAX_MEMBER + 1) if member.file_size <= MAX_MEMBER else None
                except RuntimeError as error:  # it has a password, or a method that Python lacks
                    content = f"{error}: unpack the archive by hand and give its folder with --images"
                done.add(member.header_offset)
                yield member.filename, content

    return persist(read)


def read_tar(path, wants):
    """The films of a tar.gz; see Source. No film counts before the checksum at its end is verified."""
    with gzip.open(path) as content:  # tarfile would not verify it
        while content.read(BLOCK):
            pass
        content.rewind()
        with tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                if member.isfile() and wants(member.name):
                    fits = member.size <= MAX_MEMBER
                    yield member.name, archive.extractfile(member).read() if fits else None


# --- The mirror


@contextmanager
def get(url, **headers):
    """A session and its answer to a request, which is repeated after a refusal, "too many requests" and 5xx."""
    retry = Retry(total=TRIES, backoff_factor=WAIT, status_forcelist=(429, 500, 502, 503, 504))
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        session.mount("https://", HTTPAdapter(max_retries=retry))
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            yield session, answer


def persist(read):
    """What read() yields. After a lost connection read() is called again."""
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
    # The address redirects to another. It is asked only once, since the host limits how often it is asked.
    with get(f"{MIRROR}images/images_{number:03d}.zip", Range="bytes=0-0") as (session, answer):
        answer.close()
        with RemoteZip(answer.url, session=session, timeout=TIMEOUT) as archive:
            yield archive


def download(url, path):
    """Copy the file at an address to `path`. What an earlier call left there is its beginning, and is not sent again.

    Raises one of UNREADABLE. A server that cannot send a part of the file sends it from its beginning.
    """
    path.touch()
    reached = 0

    def read():
        nonlocal reached
        with open(path, "r+b") as file:
            start = max(file.seek(0, io.SEEK_END) - 1, 0)  # the last byte once more, since no server sends no byte
            with get(url, **{"Range": f"bytes={start}-", "Accept-Encoding": "identity"}) as (_, answer):
                start = file.seek(start) if answer.status_code == 206 else file.truncate(file.seek(0))
                blocks = -(-(start + int(answer.headers.get("Content-Length", 0))) // BLOCK)
                for block in progress(answer.raw.stream(BLOCK), f"{path.name}, MB", blocks, start // BLOCK):
                    file.write(block)
                    if file.tell() > reached:  # else the server sends, and loses, the beginning again and again
                        reached = file.tell()
                        yield

    for _ in persist(read):
        pass


def fetch_file(name, folder):
    """Copy a small file of the mirror, the label table or a list, into `folder`; returns its path."""
    path = Path(folder) / name
    try:
        download(MIRROR + name, path)
    except UNREADABLE as error:
        ways = f"try again, or get it by hand from {BY_HAND} and give it with --labels or --lists"
        raise InputError(f"{name} of the mirror cannot be read ({error}): {ways}") from None
    return path
