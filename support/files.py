"""Files that are there as a whole or not at all."""

import errno
import io
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class InputError(ValueError):
    """What the user gave is at fault. Its text is one line: the file or setting, the problem, the next step."""


@contextmanager
def replacing(path, before=None):
    """A binary file to write, beside `path`; at the end it is renamed to `path`, so that nobody meets half a file.

    before: the name that an old file at `path` is given first; without it the old file is replaced.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk does not say where
    if before is not None and path.exists():
        path.replace(before)
    partial.replace(path)


def lock(path):
    """Take the lock file `path`; returns the lock, for release(). A dead process holds nothing.

    Raises InputError where another process holds it. Where the file system has no locks, as some network drives, a line
    says so and the work goes on without one.
    """
    held = FileLock(path, is_singleton=True, fallback_to_soft=False)  # this process may take it again
    try:
        held.acquire(timeout=0)
    except Timeout:
        what = "another process works there: wait for it, or start elsewhere with --out FOLDER"
        raise InputError(f"{Path(path).parent}: {what}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"warning: {path}: no locks here ({error.strerror}): start no second process in this folder")
    return held


def write(path, content, before=None):
    """Write text (as UTF-8) or bytes by `replacing`."""
    with replacing(path, before) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_state(path, state, before=None):
    """`torch.save` by `replacing`."""
    content = io.BytesIO()  # torch would end with an error of its own on a full disk
    torch.save(state, content)
    write(path, content.getbuffer(), before)


def load_state(path):
    """What `save_state` wrote: plain tensors and plain Python. Raises where a byte is wrong, as torch.load does not."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)
