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


def start(main, script, find_preset=None, recipes=(), argv=None):
    """Run a script `guarded`: main(settings), with the settings of `parse_settings`."""
    with guarded():
        main(parse_settings(script, argv, find_preset, recipes))


@contextmanager
def guarded():
    """Turns the errors that a user can cause into one line on stderr.

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
    """End the process with one line if a path on disk caused this OSError; raise any other again."""
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
            constants[name] = value, comments.get(node.lineno, "")
    return constants


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{self.prog}: {message} (see --help)")


def number(text):
    """The number in an option: 5 is an integer, 5.0 is not. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def option(name):
    return "--" + name.lower().replace("_", "-")


def make_parser(script, constants):
    """The options of a script: one per constant, of which only those that are given have a value."""
    title = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8"))).split("\n")[0]
    parser = _Parser(Path(script).name, description=title, allow_abbrev=False)
    for name, (value, comment) in constants.items():
        example = next(iter(value.values())) if isinstance(value, dict) else value
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
    to this recipe, and are no settings under another RECIPE. Raises InputError.
    """
    constants = read_constants(script)
    given = vars(make_parser(script, constants).parse_args(argv))
    settings = {name.lower(): value for name, (value, _) in constants.items()} | given
    for name in ("out", "data"):
        settings[name] = os.path.expanduser(settings[name])
    if "data" not in given:  # the project's own, wherever the command is run
        settings["data"] = os.path.join(os.path.dirname(os.path.abspath(script)), settings["data"])
    if "preset" in settings:
        settings["preset"] = settings["preset"] or find_preset(settings["data"], settings["dataset"])
    for name, value in settings.items():
        if isinstance(value, dict):
            if settings["preset"] not in value:
                where, there = f"{name.upper()} ({option(name)})", ", ".join(value)
                raise InputError(f"{where} has values for {there}, none for the preset {settings['preset']!r}")
            settings[name] = value[settings["preset"]]
    others = [recipe for recipe in recipes if "recipe" in settings and recipe != settings["recipe"]]
    for name in [name for name in settings for recipe in others if name.startswith(f"{recipe}_")]:
        if name in given:
            mine = [option(other) for other in settings if other.startswith(f"{settings['recipe']}_")]
            raise InputError(
                f"{option(name)} is not read by the recipe {settings['recipe']}, which has {', '.join(mine)}; "
                "--recipe chooses another"
            )
        del settings[name]
    return SimpleNamespace(**settings)


# --- Checks, for the ranges that a script names


def check_numbers(settings, names, low=None, above=None, below=math.inf, whole=False):
    """Raise InputError unless each of the settings `names`, in one string, is a number: at least `low`, and so on."""
    limits = {"at least": low, "above": above, "below": below if below < math.inf else None}
    limits = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
    rule = f"{'a whole number' if whole else 'a number'}, {limits}"
    for name in names.split():
        value = getattr(settings, name)
        known = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (known and (low is None or value >= low) and (above is None or value > above) and value < below):
            raise InputError(f"{name.upper()} ({option(name)}) is {value!r} and must be {rule}")


def check_choice(settings, names, choices=(True, False)):
    """Raise InputError unless each of the settings `names`, in one string, is one of the `choices`."""
    for name in names.split():
        value = getattr(settings, name)
        if value not in choices:
            allowed = " or ".join(map(str, choices))
            raise InputError(f"{name.upper()} ({option(name)}) is {value!r} and must be {allowed}")
