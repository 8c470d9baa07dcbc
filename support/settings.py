"""A script's settings: its UPPER_CASE constants, each of them a command-line option, too. And errors of one line."""

import argparse
import ast
import errno
import io
import math
import os
import re
import sys
import tokenize
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import torch

from support.files import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DRIVE = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV}  # a disk or network drive fails


def start(main, script, find_preset=None, recipes=(), argv=None):
    """Run a script `guarded`: main(settings), with the settings of `parse_settings`."""
    with guarded():
        main(parse_settings(script, argv, find_preset, recipes))


class Screen:
    """Standard output or error: what cannot be shown is left out or becomes "?", and no command depends on a reader."""

    def __init__(self, stream):
        if stream is None:  # closed before the start, as by `2>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115
        with suppress(AttributeError):  # a test's or a notebook's stream
            stream.reconfigure(errors="replace")
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self):
        self._attempt(self.stream.flush)

    def _attempt(self, action, *arguments):
        try:
            action(*arguments)
        except OSError:  # the reader of a pipe, such as `less`, or the terminal has gone
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def guarded():
    """Turns the errors that a user can cause into one line on stderr.

    Status 2 where the input is at fault: an InputError, or a place that cannot be read or written. Status 1 where a
    disk or a memory is full.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Screen, streams)
    try:
        yield
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; the same command goes on", status=130)
    except (MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
            raise
        fail(f"the {'GPU' if gpu else 'computer'}'s memory is full: choose smaller batches or networks", status=1)
    except OSError as error:
        where = f"{error.filename or 'a disk or network drive'}: {error.strerror}"
        if error.errno in FULL:
            fail(f"{where}; make room and repeat the command: it goes on where it was saved", status=1)
        if not error.filename and error.errno not in DRIVE:
            raise
        fail(f"{where}: check it, or choose another place with --out or --data")
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = streams


def fail(message, status=2):
    """End the process with one line on stderr."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status) from None


def read_constants(script):
    """The UPPER_CASE constants of a script: {name: (value, the comment behind it, its line's number)}.

    Read from the source as data, since the comments are the options' help. Raises InputError.
    """
    source = Path(script).read_text(encoding="utf-8-sig")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    constants = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        for name in [part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id.isupper()]:
            try:
                if name not in getattr(node, "targets", []):  # as in `C += 1`, `if FAST: C = 4`, `C: int = 8`
                    raise ValueError
                value = ast.literal_eval(node.value)
            except ValueError:
                what = f"{name.id} must be a plain value, in a line of its own"
                raise InputError(f"{script}, line {name.lineno}: {what}") from None
            constants[name.id] = value, comments.get(node.lineno, ""), node.lineno
    return constants


class Settings(SimpleNamespace):
    """A script's settings as attributes. script: its name; said: {name: what messages call the setting}."""

    __slots__ = ("said", "script")

    def __getattr__(self, name):  # called for what is not there
        if name.startswith("_") or name in Settings.__slots__:
            raise AttributeError(name)
        raise InputError(f"{self.script}: the constant {name.upper()} is missing: write it again")

    def refuse(self, name, rule):
        """Raise InputError: the setting `name` must be what the `rule` says."""
        raise InputError(f"{self.said[name]} is {getattr(self, name)!r} and must be {rule}")


def expand(value):
    """A text, or a list of texts, with ~ as the home folder, at the beginning or as in OTHER=~/predictions.csv."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub("^([^=~]*=)?(~[^/]*)", lambda found: (found[1] or "") + os.path.expanduser(found[2]), value)


class Parser(argparse.ArgumentParser):
    """The options of a script; ~ is expanded in them, and an error is an InputError of one line."""

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(map(expand, sys.argv[1:] if args is None else args), namespace)

    def error(self, message):
        raise InputError(f"{self.prog}: {message} (see --help)")


def number(text):
    """The number in an option: 5 is an integer, 5.0 is not. Raises ValueError."""
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def option(name):
    return "--" + name.lower().replace("_", "-")


def make_parser(script, constants):
    """The options of a script: one per constant, of which only those that are given have a value."""
    title = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8-sig"))).split("\n")[0]
    parser = Parser(Path(script).name, description=title, allow_abbrev=False)
    for name, (value, comment, _) in constants.items():
        example = next(iter(value.values()), "") if isinstance(value, dict) else value
        look = {"help": f"{comment} [{value}]".replace("%", "%%"), "default": argparse.SUPPRESS}
        if isinstance(example, bool):
            look["action"] = argparse.BooleanOptionalAction
        elif isinstance(example, list):
            look["action"] = "append"
        else:
            look["type"] = number if isinstance(example, (int, float)) else str
            look["metavar"] = "NUMBER" if look["type"] is number else "TEXT"
        parser.add_argument(option(name), **look)
    return parser


def parse_settings(script, argv=None, find_preset=None, recipes=()):
    """The settings of a script: its constants, each changed by the option of its name, in lower case.

    find_preset: (data, dataset) -> the preset that the set names, for an empty PRESET; a constant that is a dict holds
    a value for each preset. recipes: names of recipes; constants that begin with one of them, such as COSINE_LR, belong
    to this recipe, and are no settings under another RECIPE. Texts are expanded by `expand`. Raises InputError.
    """
    constants = read_constants(script)
    given = vars(make_parser(script, constants).parse_args(argv))
    settings = Settings(**{name.lower(): value for name, (value, *_) in constants.items()} | given)
    settings.script = Path(script).name
    settings.said = {n.lower(): f"{settings.script}, line {line}: {n}" for n, (*_, line) in constants.items()}
    settings.said |= {name: option(name) for name in given}

    values = vars(settings)
    check_texts(settings, "out data dataset")
    values |= {name: expand(value) for name, value in values.items()}
    if "data" not in given:  # the project's own, wherever the command is run
        settings.data = os.path.join(os.path.dirname(os.path.abspath(script)), settings.data)
    if "preset" in values:
        settings.preset = settings.preset or find_preset(settings.data, settings.dataset)
    for name, value in values.items():
        if isinstance(value, dict):
            if settings.preset not in [*value]:
                rest = f"has values for {', '.join(map(str, value))}, none for the preset {settings.preset!r}"
                raise InputError(f"{settings.said[name]} {rest}")
            values[name] = value[settings.preset]
    starts = tuple(f"{recipe}_" for recipe in recipes)
    for name in [name for name in values if name.startswith(starts) and not name.startswith(f"{settings.recipe}_")]:
        if name in given:
            mine = ", ".join(option(other) for other in values if other.startswith(f"{settings.recipe}_"))
            rest = f"is not read by the recipe {settings.recipe}, which has {mine}; --recipe chooses another"
            raise InputError(f"{option(name)} {rest}")
        del values[name]
    return settings


# --- Checks, for the ranges that a script names. `names` are settings in one string; each raises InputError.


def check_numbers(settings, names, low=None, above=None, below=math.inf, whole=False):
    """Each is a number: at least `low`, or above `above`, and below `below`."""
    limits = {"at least": low, "above": above, "below": below if below < math.inf else None}
    limits = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
    for name in names.split():
        value = getattr(settings, name)
        known = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (known and (low is None or value >= low) and (above is None or value > above) and value < below):
            settings.refuse(name, f"{'a whole number' if whole else 'a number'}, {limits}")


def check_texts(settings, names):
    """Each is a text."""
    for name in names.split():
        if not isinstance(getattr(settings, name), str):
            settings.refuse(name, "a text in quotes")


def check_choice(settings, names, choices=(True, False)):
    """Each is one of the `choices`."""
    for name in names.split():
        if getattr(settings, name) not in choices:
            settings.refuse(name, " or ".join(map(str, choices)))
