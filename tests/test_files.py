"""Whole files, locks, and text as people have it."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from support.files import InputError, lock, replacing, write
from tests.test_scripts import ROOT

HOLD = "import sys; from support.files import lock; held = lock(sys.argv[1]); print(flush=True); sys.stdin.read()"


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    write(tmp_path / "a.txt", "old α\n")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old α\n"
    write(tmp_path / "a.txt", b"new", before=tmp_path / "before.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"new" and (tmp_path / "before.txt").exists()
    assert not list(tmp_path.glob("*.part"))


def test_a_lock_is_refused_to_a_second_process_and_free_when_the_first_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="another process works there: wait for it, or start elsewhere"):
            lock(tmp_path / "lock")
        other.kill()
    lock(tmp_path / "lock").release(force=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_there_is_a_warning_of_one_line(number, tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for name in ("a", "b"):
        lock(tmp_path / name).release(force=True)
    out, err = capsys.readouterr()
    assert out.count("warning: ") == out.count("\n") == 2 and not err
    assert "no locks here" in out and "start no second process in this folder" in out
