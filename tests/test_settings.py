"""Settings from constants and command lines."""

import importlib
import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_train
from support import progress
from support.files import InputError
from support.settings import INTEGERS, guarded, parse_settings, read_constants, start
from tests.test_scripts import NETWORK, ROOT, SMALL

SCRIPT = '''"""What it does.

More.
"""
NAME = "phantom"  # not an option by accident
ORDER = False  # True or False
RATE = {"phantom": 6e-3, "chestxray14": 3e-4}  # 100% of it
EPOCHS = {"phantom": 8, "chestxray14": 50}  # passes
FAST = {"phantom": True, "chestxray14": False}  # per set
DATASET = "phantom"  # which set
FILES = []  # NAME=FILE
lower = 3
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_settings_are_the_constants_and_each_is_an_option(script):
    settings = parse_settings(script, [])
    assert vars(settings) == {
        "name": "phantom", "order": False, "rate": 6e-3, "epochs": 8, "fast": True, "dataset": "phantom", "files": [],
    }  # fmt: skip
    given_options = [
        "--order",
        "--rate",
        "1",
        "--epochs",
        "3",
        "--no-fast",
        "--name",
        "x",
        "--files=a=b",
        "--files=c=d",
    ]
    settings = parse_settings(script, given_options)
    assert vars(settings) == {
        "name": "x", "order": True, "rate": 1.0, "epochs": 3, "fast": False, "dataset": "phantom",
        "files": ["a=b", "c=d"],
    }  # fmt: skip


def test_a_dict_gives_the_chosen_sets_value_and_other_sets_the_phantoms(script):
    toy = parse_settings(script, ["--dataset", "chestxray14"])
    assert (toy.rate, toy.epochs, toy.fast) == (3e-4, 50, False)
    assert parse_settings(script, ["--dataset", "nih_mini"]).epochs == 8
    assert parse_settings(script, ["--dataset", "chestxray14", "--epochs", "2"]).epochs == 2


def test_constants_that_are_no_plain_values_are_named_with_their_line(script):
    script.write_text(SCRIPT.replace('"phantom"  # which set', '"phan" + "tom"  # which set'))
    with pytest.raises(InputError, match="line 10: DATASET must be a plain value"):
        parse_settings(script, [])


def test_numbers_may_be_written_with_or_without_a_point(script):
    script.write_text(SCRIPT.replace("RATE = {", "RATE = 1 #"))
    assert parse_settings(script, []).rate == 1.0 and parse_settings(script, ["--rate", "0.4"]).rate == 0.4
    script.write_text(SCRIPT.replace("6e-3", "0"))
    assert parse_settings(script, []).rate == 0.0
    script.write_text(SCRIPT.replace('"phantom": 8', '"phantom": 8.0'))
    with pytest.raises(InputError, match=r"EPOCHS \(--epochs\) is 8.0 and must be an integer, at least 1"):
        parse_settings(script, [])


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_the_integers_among_the_constants_are_known(name):
    values = {constant.lower(): value for constant, (value, _) in read_constants(f"{name}.py").items()}
    examples = {constant: v["phantom"] if isinstance(v, dict) else v for constant, v in values.items()}
    assert INTEGERS & examples.keys() == {constant for constant, v in examples.items() if type(v) is int}


def test_a_constant_written_twice_has_its_last_value(script):
    script.write_text(SCRIPT + "ORDER = True  # for now\n")
    assert parse_settings(script, []).order and not parse_settings(script, ["--no-order"]).order


def test_a_constant_without_a_value_for_other_sets_is_named(script):
    script.write_text(SCRIPT.replace('{"phantom": 8, ', "{"))
    with pytest.raises(InputError, match="line 8: EPOCHS has no 'phantom', whose value other sets take"):
        parse_settings(script, [])


def test_help_shows_the_comments(script, capsys):
    with pytest.raises(SystemExit):
        parse_settings(script, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text and "100% of it" in text and "--no-order" in text and "lower" not in text


@pytest.mark.parametrize("arguments", [["--epochs", "few"], ["--epoch", "3"], ["--epochs"], ["3"]])
def test_bad_options_are_one_line(script, arguments, one_line):
    assert "(see --help)" in one_line(start, print, script, arguments)


@given(st.one_of(st.floats(), st.integers().map(float)))
def test_any_number_is_kept_as_it_is_or_refused(tmp_path_factory, number):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(SCRIPT)
    good = 0 <= number < float("inf")
    try:
        assert parse_settings(path, [f"--rate={number!r}"]).rate == number and good
    except InputError:
        assert not good


@given(st.lists(st.text(max_size=8), max_size=4))
def test_any_arguments_give_settings_or_an_exit(tmp_path_factory, arguments):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(SCRIPT)
    try:
        assert isinstance(parse_settings(path, arguments).epochs, int)
    except InputError:
        pass
    except SystemExit as stop:  # --help
        assert stop.code == 0


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_every_constant_of_the_scripts_is_explained(name):
    constants = read_constants(f"{name}.py")
    assert len(constants) >= 6
    for constant, (value, comment) in constants.items():
        assert comment, constant
        if isinstance(value, dict):
            assert list(value) in (["phantom", "chestxray14"], ["phantom", "nih10k", "chestxray14"]), constant


# --- Errors of one line


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_a_place_that_cannot_be_written_is_one_line(name, small_set, tmp_path, one_line):
    """A file where a folder must be, and folders that no one can make."""
    script = importlib.import_module(name)
    (tmp_path / "file").write_text("")
    common = ["--data", str(small_set), "--dataset", "noise", "--device", "cpu"]
    if name == "val_train":
        common += ["--genotype", "DARTS_V1"]
    if name != "test":
        common += ["--crop", "32"]
    places = [tmp_path / "file", tmp_path / "file" / "below", *(["/proc/none"] if os.path.isdir("/proc") else [])]
    for place in places:
        line = one_line(start, script.main, script.__file__, [*common, "--out", str(place)])
        assert str(place) in line, line


def test_a_terminal_without_greek_letters_does_not_end_a_run(small_set, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    options = [*SMALL, *NETWORK, "--data", str(small_set), "--out", str(tmp_path)]
    start(search_train.main, search_train.__file__, options)
    with pytest.raises(SystemExit, match="0"):
        start(search_train.main, search_train.__file__, ["--help"])
    terminal.flush()
    assert b"?'s val loss" in terminal.buffer.getvalue()
    log = (tmp_path / "search_first_order" / "log.txt").read_text(encoding="utf-8")
    assert "α's val loss" in log


def test_a_bar_in_a_log_file_is_a_line_a_minute(small_set, tmp_path, monkeypatch, capsys):
    for minute, lines in ((60, 0), (0, 3)):
        monkeypatch.setattr(progress, "MINUTE", minute)
        options = [*SMALL, *NETWORK, "--data", str(small_set), "--out", str(tmp_path / str(minute))]
        start(search_train.main, search_train.__file__, options)
        error = capsys.readouterr().err
        assert "\r" not in error and len(error.splitlines()) >= lines and bool(lines) == bool(error)
    assert re.search(r"^epoch 1, 1 thread: 2 of 3, loss=0\.\d{4}, \d\d:\d\d left$", error, re.MULTILINE), error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (MemoryError(), 1, "the memory is full: lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "the memory is full"),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            2,
            "/a/b: Permission denied: check it, or choose another place",
        ),
    ],
)
def test_what_ends_a_command_is_one_line(error, status, words, one_line):
    def command():
        with guarded():
            raise error

    assert words in one_line(command, status=status)


def test_other_errors_keep_their_traceback():
    for error in (RuntimeError("a bug"), ValueError("a bug"), OSError(5, "Input/output error")):
        with pytest.raises(type(error)), guarded():
            raise error


def test_a_reader_of_a_pipe_may_leave():
    code = "from support.settings import guarded\nwith guarded():\n    for k in range(10**6): print(k)"
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **options) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=60) == 1


@pytest.mark.parametrize("name", ["", "..", "phantom/", "a/b"])
def test_a_set_is_the_name_of_a_folder(script, name):
    with pytest.raises(InputError, match="must be the name of a folder in DATA"):
        parse_settings(script, ["--dataset", name])
