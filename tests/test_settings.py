"""Settings from constants and command lines."""

import errno
import importlib
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import search_train
import test as table_script
import val_train
from support import progress
from support.files import InputError
from support.settings import Settings, check_choice, check_numbers, guarded, parse_settings, read_constants, start
from tests import conftest
from tests.test_scripts import ROOT, run

SCRIPT = '''"""What it does.

More.
"""
NAME = "phantom"  # not an option by accident
ORDER = False  # True or False
PRESET = ""  # slow or fast
RATE = {"slow": 6e-3, "fast": 3e-4}  # 100% of it
EPOCHS = {"slow": 8, "fast": 50}  # passes
CLIP = {"slow": True, "fast": False}  # per preset
RECIPE = {"slow": "cosine", "fast": "plateau"}  # cosine or plateau
COSINE_LR = 0.1  # of cosine
COSINE_MOMENTUM = 0.9  # of cosine
PLATEAU_LR = 0.3  # of plateau
DATASET = "phantom"  # which set
DATA = "sets"  # where it is
OUT = "."  # where to write
FILES = []  # NAME=FILE
lower = 3
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def parse(script, *argv, preset="slow"):
    """Settings of the script, whose set names `preset`."""
    return parse_settings(script, argv, lambda data, dataset: preset, ("cosine", "plateau"))


def test_settings_are_the_constants_and_each_is_an_option(script):
    of_both = {"dataset": "phantom", "data": str(script.parent / "sets"), "out": "."}
    assert vars(parse(script)) == of_both | {
        "name": "phantom", "order": False, "preset": "slow", "rate": 6e-3, "epochs": 8, "clip": True,
        "recipe": "cosine", "cosine_lr": 0.1, "cosine_momentum": 0.9, "files": [],
    }  # fmt: skip
    given = "--order --rate 1 --epochs 3 --no-clip --name x --files=a=b --files=c=d --recipe plateau --plateau-lr 5"
    assert vars(parse(script, *given.split())) == of_both | {
        "name": "x", "order": True, "preset": "slow", "rate": 1, "epochs": 3, "clip": False,
        "recipe": "plateau", "plateau_lr": 5, "files": ["a=b", "c=d"],
    }  # fmt: skip


def test_home_is_known_by_its_short_name(script, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = [parse(script, "--data=~/sets", "--files=A=~/a.csv")]
    made.append(parse(script, "--data", "~/sets", "--files", "A=~/a.csv", "--name", "a~b"))
    script.write_text(SCRIPT.replace('"sets"', '"~/sets"').replace("FILES = []", 'FILES = ["A=~/a.csv"]'))
    for settings in (*made, parse(script)):
        assert (settings.data, settings.files) == ("/home/me/sets", ["A=/home/me/a.csv"])
    assert made[1].name == "a~b"


def test_a_dict_gives_the_value_of_the_preset_which_the_set_names_or_the_user(script):
    of_set, said = parse(script, preset="fast"), parse(script, "--preset", "fast")
    assert vars(of_set) == vars(said) and (said.rate, said.epochs, said.recipe) == (3e-4, 50, "plateau")
    assert parse(script, "--preset", "fast", "--epochs", "2").epochs == 2
    with pytest.raises(InputError, match="line 8: RATE has values for slow, fast, none for the preset 'other'"):
        parse(script, "--preset", "other")


def test_an_option_of_another_recipe_is_refused_with_those_of_the_chosen_one(script):
    with pytest.raises(InputError, match="--plateau-lr is not read by the recipe cosine, which has --cosine-lr, --co"):
        parse(script, "--plateau-lr", "1")
    with pytest.raises(InputError, match="-momentum is not read by the recipe plateau, which has --plateau-lr; --rec"):
        parse(script, "--recipe", "plateau", "--cosine-momentum", "0.9")


@pytest.mark.parametrize(
    "edited",
    [
        'DATASET = "phan" + "tom"',
        "DATASET += 's'",
        "if True:\n    DATASET = 's'",
        "DATASET: str = 's'",
        "DATASET, A = 'a', 'b'",
    ],
)
def test_constants_that_are_no_plain_values_are_named_with_their_line(edited, script, one_line):
    script.write_text(SCRIPT.replace('DATASET = "phantom"', edited))
    line = 15 + edited.startswith("if")
    assert f"line {line}: DATASET must be a plain value, in a line of its own" in one_line(start, print, script)


@pytest.mark.parametrize(("text", "kind"), [("4", int), ("-4", int), ("4.0", float), ("4e0", float)])
def test_a_number_keeps_its_type(text, kind, script):
    assert type(parse(script, f"--rate={text}").rate) is kind
    script.write_text(SCRIPT.replace("6e-3", text))
    assert type(parse(script).rate) is kind


def test_ranges_are_checked_and_the_line_says_what_is_allowed():
    settings = Settings(a=1, w_lr=1, order=False, kind="b")
    settings.said = {name: f"script.py, line 7: {name.upper()}" for name in vars(settings)}

    def check(value, **limits):
        settings.w_lr = value
        check_numbers(settings, "a w_lr", **limits)

    for good in (1, 1.5, 0.0):
        check(good, low=0, below=2)
    for bad in (-1, 2, math.nan, math.inf, "1", None, True):
        with pytest.raises(InputError, match=r"line 7: W_LR is .* and must be a number, at least 0 and below 2"):
            check(bad, low=0, below=2)
    with pytest.raises(InputError, match=r"is 3\.0 and must be a whole number, above 0"):
        check(3.0, above=0, whole=True)
    check_choice(settings, "a order")
    check_choice(settings, "kind", ("a", "b"))
    settings.order, settings.kind = "False", "c"
    with pytest.raises(InputError, match="line 7: ORDER is 'False' and must be True or False"):
        check_choice(settings, "a order")
    with pytest.raises(InputError, match="line 7: KIND is 'c' and must be a or b"):
        check_choice(settings, "kind", ("a", "b"))


@pytest.mark.parametrize(("script", "name"), [(val_train, "genotype"), (table_script, "films")])
def test_a_text_must_be_one(script, name):
    settings = parse(script.__file__, preset="phantom")
    setattr(settings, name, 5)
    with pytest.raises(InputError, match=f": {name.upper()} is 5 and must be a text in quotes"):
        script.check(settings)


def test_help_shows_the_comments(script, capsys):
    with pytest.raises(SystemExit):
        parse(script, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text and "100% of it" in text and "--no-order" in text and "lower" not in text


@pytest.mark.parametrize("arguments", [["--epochs", "few"], ["--epoch", "3"], ["--epochs"], ["3"]])
def test_bad_options_are_one_line(script, arguments, one_line):
    assert "(see --help)" in one_line(start, print, script, None, (), arguments)


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_every_constant_of_the_scripts_is_explained(name):
    constants = read_constants(f"{name}.py")
    assert len(constants) >= 6
    for constant, (value, comment, _) in constants.items():
        assert comment, constant
        if isinstance(value, dict):
            assert list(value) == ["phantom", "small", "reference"], constant


# --- Errors of one line


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_a_place_that_cannot_be_written_is_one_line(name, small_set, tmp_path, one_line):
    script = importlib.import_module(name)
    (tmp_path / "file").write_text("")
    cell = ["--genotype", "DARTS_V1"] if name == "val_train" else []
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        assert str(place) in one_line(run, script, small_set, place, *cell)


def test_a_terminal_without_greek_letters_does_not_end_a_run(small_set, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    run(search_train, small_set, tmp_path)
    with pytest.raises(SystemExit, match="0"):
        conftest.start(search_train, "--help")
    terminal.flush()
    assert b"of softmax(? / ?)" in terminal.buffer.getvalue()


def test_a_bar_in_a_log_file_is_a_line_a_minute(small_set, tmp_path, monkeypatch, capsys):
    for minute, lines in ((60, 0), (0, 3)):
        monkeypatch.setattr(progress, "MINUTE", minute)
        run(search_train, small_set, tmp_path / str(minute))
        error = capsys.readouterr().err
        assert "\r" not in error and len(error.splitlines()) >= lines and bool(lines) == bool(error)
    shown = r"^epoch 1: 2 of 3, train_loss=0\.\d{4}, alpha_loss=0\.\d{4}, \d\d:\d\d left$"
    assert re.search(shown, error, re.MULTILINE), error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (torch.OutOfMemoryError(), 1, "the GPU's memory is full: choose smaller batches or networks"),
        (MemoryError(), 1, "the computer's memory is full: choose"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "the computer's memory is full: "),
        (OSError(errno.EIO, "Input/output error", "/a/b"), 2, "/a/b: Input/output error: check it, or choose another"),
        (OSError(errno.ESTALE, "Stale file handle"), 2, "a disk or network drive: Stale file handle: check it, or"),
    ],
)
def test_what_ends_a_command_is_one_line(error, status, words, one_line):
    def main(_):
        raise error

    assert words in one_line(start, main, "search_train.py", lambda *_: "phantom", (), [], status=status)


def test_other_errors_keep_their_traceback():
    for error in (RuntimeError("a bug"), ValueError("a bug"), OSError(errno.EINVAL, "Invalid argument")):
        with pytest.raises(type(error)), guarded():
            raise error


@pytest.mark.parametrize("screen", ["| head -n 1", ">&-", "2>&-", "> /dev/full 2>&1"])
def test_a_command_goes_on_when_nothing_can_be_shown(screen, tmp_path):
    code = "from support.settings import guarded\nwith guarded():\n    for k in range(10**5): print(k)\n"
    code += "    import sys; print(k, file=sys.stderr); open(sys.argv[1], 'w').close()"
    command = f"set -o pipefail; '{sys.executable}' -c \"$0\" '{tmp_path}/done' {screen}"
    done = subprocess.run(["bash", "-c", command, code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('OUT = "."', "OUT = None", "script.py, line 17: OUT is None and must be a text in quotes"),
        ('DATASET = "phantom"', "DATASET = 5", "script.py, line 15: DATASET is 5 and must be a text in quotes"),
        ('DATA = "sets"', "data = 0", "script.py: the constant DATA is missing: write it again"),
        ('PRESET = ""', "", "script.py: the constant PRESET is missing: write it again"),
        ('PRESET = ""', 'PRESET = ["slow"]', r"RATE has values for slow, fast, none for the preset \['slow'\]"),
        ('"slow": 8, "fast": 50', "", "line 9: EPOCHS has values for , none for the preset 'slow'"),
    ],
)
def test_constants_edited_into_nonsense_are_one_line(old, new, line, script):
    script.write_text("\ufeff" + SCRIPT.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=line):
        parse(script)
