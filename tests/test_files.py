"""Files are written whole, locks, and texts in all encodings."""

import errno
import fcntl
import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.files import InputError, lock, read_table, read_text, replacing, write


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    write(tmp_path / "a.txt", "old α\n")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old α\n"
    write(tmp_path / "a.txt", b"new", before=tmp_path / "before.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"new" and (tmp_path / "before.txt").exists()
    assert not list(tmp_path.glob("*.part"))


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


def test_a_drive_without_fsync_is_written_all_the_same(tmp_path, monkeypatch):
    def no_fsync(_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "fsync", no_fsync)
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


LETTERS = st.characters(min_codepoint=32, max_codepoint=0xFF, exclude_characters="\x85\x7f")
LATIN = st.text(LETTERS, min_size=2, max_size=40)
WORD = st.text("abcXYZ 0123456789._-αß", min_size=1, max_size=8).filter(str.strip)


@given(LATIN, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]), st.booleans())
def test_any_text_reads_back_from_any_encoding(tmp_path_factory, text, encoding, packed):
    path = tmp_path_factory.getbasetemp() / "text"
    content = f"{text}\r\nEnd".encode(encoding)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_text(path) == f"{text}\nEnd"


@given(st.binary(max_size=200))
def test_any_bytes_give_text_and_a_table_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    for read in (read_text, read_table):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@given(
    st.lists(st.tuples(WORD, WORD), min_size=1, max_size=5),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8-sig", "utf-16"]),
    st.booleans(),
    st.sampled_from([[], ["sep={0}"], ['"SEP={0}"'], ["sep={0}{0}{0}"]]),
)
def test_any_table_reads_back_whatever_separates_its_columns(
    tmp_path_factory, rows, separator, end, encoding, trailing, excel
):
    path = tmp_path_factory.getbasetemp() / "table"
    lines = [separator.join(row) + separator * trailing for row in [("first", " second "), *rows]]
    path.write_bytes(end.join([line.format(separator) for line in excel] + lines).encode(encoding))
    table = read_table(path)
    assert list(table.columns) == ["first", "second"]
    assert list(table.itertuples(index=False, name=None)) == rows
