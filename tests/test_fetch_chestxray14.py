"""Where films come from: archives on disk; and the download, from a server on loopback."""

import re
import shutil
import tracemalloc
import zipfile
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest

from data import fetch_chestxray14 as fetch
from data import labels_chestxray14 as labels
from dataset import load_set
from tests.films import (
    FILM,
    SIZE,
    bytes_of,
    contents,
    corrupt,
    film_name,
    flip_a_bit,
    halves,
    mirror_files,
    pack,
    prepare,
    run,
    same_set,
    some_patients,
)  # fmt: skip
from tests.loopback import serve

KINDS = pytest.mark.parametrize("kind", [".zip", ".tar.gz"])


@pytest.fixture
def archives(raw):
    """The folder raw/archives, for the archives of a test."""
    (raw / "archives" / "deeper").mkdir(parents=True)
    return raw / "archives"


def unpack(archives, *more, at="", **options):
    """Prepare the films of `archives`, or of one in it, as the set `out`/packed; see tests/films.py."""
    return prepare(archives.parent, *more, films=archives / at, **{"name": "packed"} | options)


# --- On disk


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kind", [".zip", ".ZIP", ".tar.gz", ".TGZ"])
@pytest.mark.parametrize("lists", [True, False], ids=["lists", "by patient"])
def test_one_archive_gives_its_films_with_the_split_of_the_whole(lists, kind, cores, raw, archives, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    films = some_patients(raw)
    (archives / f"IMAGES_001{kind}").write_bytes(pack(films, "images", kind))
    shutil.copy(archives / f"IMAGES_001{kind}", archives / "deeper" / f"IMAGES_01{kind}")  # a copy does no harm
    (archives / f"images_11{kind}").write_bytes(pack(halves(raw)[1], "images", kind))
    assert unpack(archives, at=f"IMAGES_001{kind}", lists=lists) == 0
    assert unpack(archives, "--archive", 1, "--out", raw.parent / "numbered", lists=lists) == 0
    assert prepare(raw, lists=lists) == 0
    whole, packed = (load_set(raw.parent / "out" / name) for name in ("set", "packed"))
    assert packed.table["Image Index"].to_list() == list(films)
    rows = whole.table["Image Index"].isin(films).to_numpy()
    assert (packed.images == whole.images[rows]).all()
    assert packed.table.equals(whole.table[rows].reset_index(drop=True))
    assert same_set(raw.parent / "numbered" / "packed", raw.parent / "out" / "packed")


@pytest.mark.parametrize("number, words", [(3, "images_003.zip or images_03.tar.gz"), (13, "1 to 12"), (0, "1 to 12")])
def test_an_archive_that_is_not_there_is_named(number, words, raw, archives, one_line):
    (archives / "images_001.zip").write_bytes(pack(contents(raw)))
    assert words in one_line(unpack, archives, "--archive", number)
    assert "deeper has no .zip or .tar.gz" in one_line(lambda: unpack(archives, at="deeper"))


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kinds", [(".zip", ".zip"), (".zip", ".tar.gz"), (".tar.gz", ".tar.gz")])
def test_different_files_of_one_film_are_refused_each_time(kinds, cores, raw, archives, monkeypatch, one_line):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    films = contents(raw)
    other = {FILM.upper(): films[film_name(4, 0)]}
    for k, kind in enumerate(kinds):
        (archives / f"films_{k}{kind}").write_bytes(pack((films, other)[k], "images", kind))
    for _ in range(2):
        said = one_line(unpack, archives)
        assert f"different files of 1 film ({FILM})" in said and "keep one of each" in said
        assert all(f"films_{k}{kind}" in said for k, kind in enumerate(kinds))
    (archives / f"films_1{kinds[1]}").unlink()
    (archives / "deeper" / f"more{kinds[1]}").write_bytes(pack({FILM: films[FILM]}, "images", kinds[1]))
    assert unpack(archives) == prepare(raw, "--out", raw.parent / "images") == 0
    assert same_set(raw.parent / "out" / "packed", raw.parent / "images" / "set")


DAMAGES = {  # of a zip
    "page": lambda _: b"<html>" * 1000,
    "version": lambda packed: re.sub(b"(PK\1\2..).", b"\\1\xff", packed, flags=re.DOTALL),  # that it asks for
    "name": lambda packed: re.sub(b"(PK\1\2.{4}).{2}(.{36})..", b"\\1\0\x08\\2\xff\xff", packed, flags=re.DOTALL),
}


@pytest.mark.parametrize("kind, damage", [(".tar.gz", "page"), *((".zip", damage) for damage in DAMAGES)])
def test_an_archive_that_cannot_be_read_is_named(kind, damage, raw, archives, one_line):
    (archives / f"films{kind}").write_bytes(DAMAGES[damage](pack(contents(raw), "images", kind)))
    for at in ("", f"films{kind}"):
        assert f"films{kind}" in one_line(lambda at=at: unpack(archives, at=at))


@pytest.mark.parametrize("damage", [lambda tar: flip_a_bit(tar, -6), lambda tar: tar[:-3000]], ids=["checksum", "end"])
def test_films_of_a_damaged_tar_do_not_count(damage, raw, archives, one_line):
    first, second = (pack(half, "images", ".tar.gz") for half in halves(raw))
    (archives / "films_1.tar.gz").write_bytes(damage(first))
    (archives / "films_2.tar.gz").write_bytes(second)
    said = one_line(unpack, archives, "--skip-bad")  # skips no archive
    assert "10 films (00000001_000.png" in said and "missing" in said and "films_1.tar.gz" in said
    reduced = raw.parent / "out" / "films_32px"
    assert {path.name for path in reduced.glob("*.png")} == set(halves(raw)[1])
    assert (reduced / "missing.txt").read_text().split() == list(halves(raw)[0])


DAMAGED = {
    ".zip": lambda films: corrupt(pack(films), FILM),
    "lzma.zip": lambda films: corrupt(pack(films, method=zipfile.ZIP_LZMA), FILM),
    ".tar.gz": lambda films: pack(films | {FILM: b"no film"}, kind=".tar.gz"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_film_of_an_archive_does_not_count(kind, raw, archives, one_line):
    films = contents(raw)
    (archives / f"films{kind}").write_bytes(DAMAGED[kind](films))
    assert f"1 film ({FILM}) unusable" in one_line(unpack, archives)
    assert unpack(archives, "--skip-bad") == 0
    left = [name for name in films if name != FILM]
    assert load_set(raw.parent / "out" / "packed").table["Image Index"].to_list() == left


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [(b"(PK\1\2.{6})..", b"\x09\0", "That compression method is not supported"),
     (b"(PK\1\2.{4})..", b"\1\0", "password required for extraction")],
)  # fmt: skip
def test_what_python_cannot_unpack_is_named_with_a_way(place, value, said, raw, archives, one_line):
    packed = pack(contents(raw))
    (archives / "films.zip").write_bytes(re.sub(place, lambda found: found[1] + value, packed, flags=re.DOTALL))
    assert f"{said}: unpack the archive by hand and give its folder with --images)" in one_line(unpack, archives)


@KINDS
def test_names_in_archives_are_no_paths(kind, raw, archives):
    names, folders = {}, ("../../../", "//", f"{raw.parent}/", "a/../../", "C:\\x\\", "a\\..\\")
    for k, (name, content) in enumerate(contents(raw).items()):
        names[folders[k % 6] + name] = content
    names |= {"../../films_32px/lock": b"x", "../escaped.txt": b"x", "/escaped.txt": b"x"}
    (archives / f"films{kind}").write_bytes(pack(names, "..", kind))
    before = set(raw.parent.rglob("*"))
    assert unpack(archives) == 0
    new = {path.name for path in set(raw.parent.rglob("*")) - before} - set(contents(raw))
    assert new == {"out", "packed", "images.npy", "labels.csv", "source.json", "films_32px", "lock"}
    assert not Path("/escaped.txt").exists() and not (raw.parent / "out" / "films_32px" / "lock").read_bytes()


@pytest.mark.parametrize("kind, lie", [(".zip", False), (".zip", True), (".tar.gz", False)])
def test_bombs_are_not_unpacked(kind, lie, raw, archives, monkeypatch, one_line):
    monkeypatch.setattr(fetch, "MAX_MEMBER", 1 << 20)
    content = contents(raw)[film_name(1, 0)] + bytes(40 << 20)  # a film, and far more
    packed = pack({film_name(1, 0): content}, "x", kind)
    if lie:  # it says that it has 1000 bytes
        packed = packed.replace(len(content).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    (archives / f"films{kind}").write_bytes(packed)
    tracemalloc.start()
    said = one_line(lambda: unpack(archives, at=f"films{kind}"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert f"1 film ({film_name(1, 0)}) unusable" in said


# --- The download, from a server on loopback


Site = namedtuple("Site", "server raw out small content")
ZIPS = ("/mirror/images/images_001.zip", "/mirror/images/images_002.zip")
CSV = "/mirror/Data_Entry_2017_v2020.csv"


@pytest.fixture
def site(raw, monkeypatch):
    """A mirror with raw's films in two archives, its table and lists; and a toy set of 18 films.

    Patients 1 to 5 are in its train split, 6 and 7 in val, 8 and 9 in test; 10 is not in the toy set.
    """
    films = contents(raw)
    splits = ["train"] * 10 + ["val"] * 4 + ["test"] * 4
    pd.DataFrame({"film": list(films)[:18], "split": splits}).to_csv(raw / "toy.csv", index=False)
    monkeypatch.setattr(labels, "TOY_SET", raw / "toy.csv")
    with serve() as server:
        server.files = mirror_files(raw)
        constants = {"MIRROR": f"{server.url}/moved/mirror/", "ARCHIVES": (1, 2), "THREADS": 2}
        for name, value in (constants | {"WAIT": 0.001, "TRIES": 3}).items():
            monkeypatch.setattr(fetch, name, value)
        yield Site(server, raw, raw.parent / "out", list(films)[:18], films)


def download(site, *more, name="set"):
    return run("--download", "--size", SIZE, "--out", site.out, "--name", name, *more)


def member_bytes(site):
    """Bytes sent of members of zips: all but their directories."""
    return sum(size for path, part, size in site.server.log if ".zip" in path and not part.startswith("bytes=-"))


@pytest.fixture
def undisturbed(site):
    """The bytes of the set that an undisturbed download makes; what it asked is forgotten."""
    assert download(site, "--out", site.out / "undisturbed") == 0
    site.server.log.clear()
    return bytes_of(site.out / "undisturbed" / "set")


def test_one_command_downloads_the_toy_set_and_nothing_more(site, capsys):
    assert download(site) == 0
    assert "Hernia" in capsys.readouterr().out
    prepared = load_set(site.out / "set")
    assert prepared.table["Image Index"].to_list() == site.small and prepared.preset == "reference"
    assert prepared.table["split"].to_list() == ["train"] * 10 + ["val"] * 4 + ["test"] * 4
    assert site.server.asked(".txt") == 0
    assert member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small)  # nothing else, and once
    assert site.server.asked("/moved/mirror/images") == 2  # where an archive has moved to is asked once
    assert prepare(site.raw, "--split", "original", name="images", lists=False) == 0
    assert same_set(site.out / "set", site.out / "images")


def test_all_films_are_divided_by_the_official_lists(site):
    assert download(site, "--split", "all") == 0
    assert prepare(site.raw, "--out", site.out / "images") == 0
    assert same_set(site.out / "set", site.out / "images" / "set")
    site.server.log.clear()  # what is given is not fetched
    assert download(site, "--labels", site.raw / "table.csv", "--lists", site.raw, "--split", "all", name="given") == 0
    assert same_set(site.out / "given", site.out / "set") and not site.server.log


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "by patient"])
def test_one_archive_of_the_mirror_is_that_archive_on_disk(lists, site, archives):
    films = some_patients(site.raw)
    packed = pack(films | {"00009999_000.png": b"not in the label table"}, "images")
    site.server.files = {ZIPS[1]: packed, CSV: site.server.files[CSV]}
    (archives / "images_002.zip").write_bytes(packed)
    assert download(site, "--archive", 2, *(["--lists", site.raw] if lists else [])) == 0
    assert unpack(archives, "--out", site.out / "disk", at="images_002.zip", lists=lists) == 0
    assert same_set(site.out / "set", site.out / "disk" / "packed")
    assert load_set(site.out / "set").table["Image Index"].to_list() == list(films)
    assert member_bytes(site) < sum(len(content) + 200 for content in films.values())


# --- What a network does


PASSING = {
    "zip cut": lambda server: server.cuts[ZIPS[0]].extend([None, None, 100, None, 5000, None, 0]),
    "directory cut": lambda server: server.cuts[ZIPS[0]].extend([None, 1000]),
    "table cut twice": lambda server: server.cuts[CSV].extend([300, 0]),
    "busy": lambda server: server.status[ZIPS[0]].extend([503, 429, 500]),
    "table refused": lambda server: server.status[CSV].append(502),
    "moved": lambda server: setattr(server, "moves", 4),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_leaves_no_trace(fault, site, undisturbed):
    PASSING[fault](site.server)
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert not any(site.server.status.values()) and not any(site.server.cuts.values())  # and it happened


def serving(path, change):
    """A fault: the file at `path` becomes change(its bytes), or is lost where that is None."""

    def alter(server):
        content = change(server.files.pop(path))
        server.files |= {} if content is None else {path: content}

    return alter


lose_archive = serving(ZIPS[0], lambda _: None)
corrupt_member = serving(ZIPS[0], lambda packed: corrupt(packed, FILM))
BY_HAND = ("by hand", "https://nihcc.app.box.com/v/ChestXray-NIHCC", "same command", "--archives")
LASTING = {
    "archive lost": (lose_archive, ("10 films (00000001_000.png", "images_001.zip", "404", *BY_HAND)),
    "no archive": (serving(ZIPS[0], lambda _: b"<html>" * 1000), ("10 films", "images_001.zip", *BY_HAND)),
    "overload": (lambda server: server.status[ZIPS[0]].extend([503] * 99), ("images_001.zip", "503", *BY_HAND)),
    "no ranges": (lambda server: setattr(server, "ranges", False), ("18 films", "images_001.zip", "range", *BY_HAND)),
    "member corrupt": (corrupt_member, ("download", "1 film", FILM, "unusable", "same command", "--skip-bad")),
    "member lost": (
        serving(ZIPS[0], lambda packed: packed.replace(FILM.encode(), b"00000099_000.png")),
        ("download", "1 film", FILM, "missing", "same command", "--skip-bad"),
    ),
    "table lost": (serving(CSV, lambda _: None), ("Data_Entry_2017_v2020.csv", "404", "--labels", *BY_HAND[:2])),
    "page for a table": (serving(CSV, lambda _: b"<html>Log in.</html>"), ("Data_Entry_2017_v2020.csv", "has no")),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_named_and_the_same_command_goes_on(fault, site, undisturbed, one_line):
    whole = dict(site.server.files)
    change, words = LASTING[fault]
    change(site.server)
    said = one_line(download, site, *["--skip-bad"] * ("--skip-bad" not in words))  # which skips no archive
    assert all(word in said for word in words), said
    assert not (site.out / "set").exists()
    site.server.files, site.server.ranges = whole, True
    site.server.status.clear()
    site.server.log.clear()
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    if fault in ("archive lost", "no archive", "overload"):  # only what is missing is transferred
        assert 0 < member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small[:10])


def test_a_lost_archive_is_named_before_its_films_are_known(site, one_line):
    lose_archive(site.server)
    said = one_line(download, site, "--archive", 1, "--skip-bad")  # which skips no archive
    assert all(words in said for words in ("images_001.zip", "404", "--archives", *BY_HAND[:2]))
