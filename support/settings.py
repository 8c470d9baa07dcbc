"""A script's settings: its UPPER_CASE constants, each of them a command-line option, too. And errors of one line."""

import argparse
import ast
import errno
import io
import math
import os
import sys
import tokenize
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from support.files import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT}
NO_PLACE |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTEMPTY}
# Settings that are integers; all other numbers are not, also where somebody writes 5 for 5.0.
INTEGERS = {"batch_size", "c", "crop", "epochs", "layers", "min_patients", "patience", "resamples", "seed"}


def start(main, script, argv=None):
    """Run a script `guarded`: main(settings), with settings as its constants and command line say."""
    with guarded():
        main(parse_settings(script, argv))


@contextmanager
def guarded():
    """What people may meet in a command, in one line on stderr.

    Status 2 where the input is at fault: an InputError, or a place that cannot be read or written. Status 1 where a
    disk or a GPU is full. A terminal without the letters α, ε or − shows a question mark instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # which a test's or a notebook's stream may lack
            stream.reconfigure(errors="replace")
    try:
        yield
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; the same command goes on", status=130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
            raise
        memory = "the GPU's memory" if gpu else "the memory"
        fail(f"{memory} is full: lower --batch-size, --c, --layers or --crop", status=1)
    except OSError as error:
        fail_at_place(error)


def fail_at_place(error):
    """End the process with one line on an OSError that a place on disk is the reason of; raise any other."""
    where = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in FULL:
        fail(f"{where}; make room and repeat the command: it goes on where it was saved", status=1)
    if error.errno not in NO_PLACE or not error.filename:
        raise error
    fail(f"{where}: check it, or choose another place with --out or --data")


def fail(message, status=2):
    """End the process with one line on stderr."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status) from None


def read_constants(script):
    """The UPPER_CASE constants of a script with the comment behind each: {name: (value, comment)}.

    Read from the source as data, since the comments are the options' help. Raises InputError.
    """
    source = Path(script).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    constants = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            name = node.targets[0].id
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                raise InputError(f"{script}, line {node.lineno}: {name} must be a plain value") from None
            if isinstance(value, dict) and "phantom" not in value:
                raise InputError(f"{script}, line {node.lineno}: {name} has no 'phantom', whose value other sets take")
            constants[name] = value, comments.get(node.lineno, "")
    return constants


def check_number(name, value):
    """Raise InputError unless the number makes sense: counts from 1, all else from 0, a share below 1."""
    kind = "an integer" if name in INTEGERS else "a number"
    low, high, rule = 0, math.inf, f"{kind}, at least 0"
    if name == "seed":
        low, high, rule = -(2**63), 2**63, "an integer of 64 bits"
    elif name == "temperature":
        low, rule = 1e-3, "at least 0.001"
    elif name in ("drop_path", "alpha_beta1", "warm_up") or name.endswith("momentum"):
        high, rule = 1, "at least 0 and below 1"
    elif name in INTEGERS - {"patience"}:
        low, rule = 1, "an integer, at least 1"
    if not low <= value < high or (name in INTEGERS and not isinstance(value, int)):
        raise InputError(f"{name.upper()} (--{name.replace('_', '-')}) is {value} and must be {rule}")


def check_set(name):
    """Raise InputError for what is not the name of one folder."""
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise InputError(f"DATASET (--dataset) is {name!r} and must be the name of a folder in DATA (--data)")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{self.prog}: {message} (see --help)")


def parse_settings(script, argv=None):
    """The settings of a script: its constants, each changed by the option of its name, in lower case.

    A dict holds one value per prepared set: the chosen set's counts, the phantom's for a set without one, and the
    option replaces it. Raises InputError.
    """
    constants = read_constants(script)
    title = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8"))).split("\n")[0]
    parser = _Parser(Path(script).name, description=title, allow_abbrev=False)
    for name, (value, comment) in constants.items():
        example = value["phantom"] if isinstance(value, dict) else value
        option = {"help": f"{comment} [{value}]".replace("%", "%%"), "default": argparse.SUPPRESS}
        if isinstance(example, bool):
            option["action"] = argparse.BooleanOptionalAction
        elif isinstance(example, list):
            option["action"] = "append"
        else:
            number = isinstance(example, (int, float))
            option["type"] = str if not number else int if name.lower() in INTEGERS else float
            option["metavar"] = option["type"].__name__.upper()
        parser.add_argument("--" + name.lower().replace("_", "-"), **option)

    settings = {name.lower(): value for name, (value, _) in constants.items()} | vars(parser.parse_args(argv))
    for name, value in settings.items():
        if isinstance(value, dict):
            settings[name] = value = value.get(settings["dataset"], value["phantom"])
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(name, value)
            settings[name] = value if name in INTEGERS else float(value)
        if name in ("out", "data"):
            settings[name] = os.path.expanduser(value)
    check_set(settings["dataset"])
    return SimpleNamespace(**settings)
