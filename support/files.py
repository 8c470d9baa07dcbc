"""Writes files whole or not at all, takes locks, and reads texts and tables in the forms in which users have them."""

import codecs
import errno
import gzip
import io
import os
import re
import shutil
import warnings
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from filelock import FileLock, Timeout

MAX_TEXT = 200_000_000  # bytes of a text file, unpacked
UNFINISHED = "unfinished_"  # begins the names of folders that a killed process leaves behind
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class InputError(ValueError):
    """The user's input is at fault. The text is one line: the file or setting, the problem, the next step."""


@contextmanager
def named(path):
    """Errors of the system name the file `path`, also those of reading and writing, which name none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replacing(path, before=None):
    """Opens a binary file beside `path` to write to, and renames it to `path` at the end: nobody reads half a file.

    before: the path to which an old file at `path` is moved first; without it the old file is replaced.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    with named(path), open(partial, "wb") as file:
        yield file
        file.flush()
        with suppress(OSError):  # some network drives have no fsync
            os.fsync(file.fileno())
    if before is not None and path.exists():
        path.replace(before)
    partial.replace(path)


@contextmanager
def filling(folder, last):
    """Makes `folder`, and yields a folder in it to write to; at the end its files move up, the file `last` at last.

    `folder` may be there, such as a mount point or a link. What a killed process left in it is removed.
    """
    made, before = not folder.exists(), list(folder.glob(f"{UNFINISHED}*"))
    folder.mkdir(exist_ok=True)
    try:
        with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as aside:
            for left in before:
                shutil.rmtree(left)
            yield Path(aside)
            for path in sorted(Path(aside).iterdir(), key=lambda path: path.name == last):
                path.replace(folder / path.name)
    finally:
        if made and not (folder / last).exists():
            shutil.rmtree(folder)


def lock(path, wait=False):
    """Take the lock file `path` and return the lock, which has release(). The lock of a dead process is free.

    Where another process holds it, this raises InputError; with `wait` it says so and waits. Where a network drive has
    no locks, a line says so, and the work goes on.
    """
    held = FileLock(path, is_singleton=True, fallback_to_soft=False)  # this process may take it again
    who = f"{Path(path).parent}: another process works there (one stopped with Ctrl-Z goes on by `fg` in its terminal)"
    try:
        held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise InputError(f"{who}: wait for it, or start elsewhere with --out FOLDER") from None
        print(f"{who}: waiting for it", flush=True)
        held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"warning: {path}: no locks here ({error.strerror}): start no second process in this folder")
    return held


def write(path, content, before=None):
    """Write text (as UTF-8) or bytes by `replacing`."""
    with replacing(path, before) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def save_state(path, state, before=None):
    """`torch.save` by `replacing`."""
    content = io.BytesIO()  # torch would end with an error of its own on a full disk
    torch.save(state, content)
    write(path, content.getbuffer(), before)


def load_state(path):
    """The content of a file that `save_state` wrote: plain tensors and plain Python, on the CPU.

    Raises InputError for any wrong byte, by the checksums of the zip file, which torch.load ignores. A drive that fails
    is no damage: its OSError passes.
    """
    with named(path):
        content = io.BytesIO(Path(path).read_bytes())  # zipfile would call an error of the drive a damage
    try:
        with zipfile.ZipFile(content) as file:
            if damaged := file.testzip():
                raise ValueError(f"{damaged} in it")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever zipfile and torch raise for a damaged file
        raise InputError(f"{path} is damaged ({type(error).__name__})") from None


def read_text(path, limit=MAX_TEXT):
    """The text of a file in UTF-8 or UTF-16, with or without byte order mark, gzipped or not; line ends become "\\n".

    Raises InputError, naming the file, for anything else and for more than `limit` bytes.
    """
    try:
        with open(path, "rb") as file:
            raw = _read(file, limit)
        if raw[:2] == b"\x1f\x8b":
            raw = _read(gzip.GzipFile(fileobj=io.BytesIO(raw)), limit)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "a damaged gzip file"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if len(raw) > limit:
        raise InputError(f"{path}: more than {limit / 1e6:.0f} MB of text")
    if raw[:4] == b"PK\3\4":
        raise InputError(f"{path}: a zip or Excel file, not text: save it as CSV")
    encoding = "utf-8-sig"  # with a mark or without
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in raw[:1000]:  # every second byte of Latin text in UTF-16 is zero; no text in UTF-8 has a zero
        encoding = "utf-16-be" if raw[0::2].count(0) > raw[1::2].count(0) else "utf-16-le"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{path}: neither UTF-8 nor UTF-16: save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read(file, limit):
    """The bytes of a file or pipe, but hardly more than `limit`. A single read(limit) would reserve all that memory."""
    blocks, size = [], 0
    while size <= limit and (block := file.read(1 << 20)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def plain(name):
    """A name as names of columns and findings are matched: without case, spaces and marks."""
    return re.sub(r"[\W_]+", "", name).casefold()


def read_table(path):
    """A table of texts, as a data frame: columns separated by commas, semicolons or tabs. Raises InputError.

    The separator is the one that the header line has most of. Names of columns lose spaces around them, and columns
    without a name (a separator at the end of each line) are left out.
    """
    excel = r'^"?sep=."?[,;\t]*\n'  # its own first line, also as other programs save it again
    text = re.sub(excel, "", read_text(path).lstrip("\n"), flags=re.IGNORECASE)
    header, _, rows = text.partition("\n")
    separator = max(",;\t", key=header.count)
    if rows and all(row.endswith(separator) for row in rows.split("\n") if row):  # a column without name or values
        header += separator
    text = f"{header}\n{rows}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # it would drop what is too much in a line
            table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.ParserWarning:
        raise InputError(f"{path}: its lines have more columns than its header: {header[:200]}") from None
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: not a table ({' '.join(str(error).split())})") from None
    table.columns = [str(name).strip() for name in table.columns]
    return table[[name for name in table.columns if not name.startswith("Unnamed: ")]]
