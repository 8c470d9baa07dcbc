"""Preparing ChestX-ray14: real films end to end, films as people have them, and one clear line for each fault."""

import errno
import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from data import making
from data.films import reduce_film
from data.making import count_findings
from dataset import FINDINGS, encode_findings, load_set
from tests.films import (
    FILM,
    FILMS,
    FULL_TABLE,
    PATIENTS,
    SHARED,
    SIZE,
    TESTED,
    bytes_of,
    film_name,
    flip_a_bit,
    overwritten,
    path_of,
    prepare,
    run,
    same_set,
)  # fmt: skip

MINI = SHARED / "nih_mini"
NIH10K = SHARED / "nih10k" / "images_002.zip"


# --- Real films and labels


@pytest.mark.skipif(not MINI.is_dir(), reason="shared/nih_mini, real ChestX-ray14 films, is not there")
def test_real_films_become_a_set_with_the_official_test_list(tmp_path, capsys):
    table = MINI / "Data_Entry_2017_v2020.csv"
    options = ["--images", MINI / "images", "--labels", table, "--lists", MINI, "--size", "64"]
    assert run(*options, "--name", "nih_mini", "--out", tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == "" and "Infiltration" in said.out and said.out.endswith("nih_mini is ready\n")

    prepared = load_set(tmp_path / "nih_mini")
    assert prepared.images.shape == (970, 64, 64)
    found = prepared.table.set_index("Image Index")
    assert set(found.index[found["split"] == "test"]) == set((MINI / "test_list.txt").read_text().split())
    official = pd.read_csv(table).set_index("Image Index").loc[found.index]
    assert (found["Patient ID"] == official["Patient ID"]).all()
    assert (prepared.labels == encode_findings(official["Finding Labels"], FINDINGS)).all()
    assert (found["Age"].astype(int) == official["Patient Age"]).all()
    assert (found[["Sex", "View"]].to_numpy() == official[["Patient Gender", "View Position"]].to_numpy()).all()
    for row in range(0, 970, 97):  # these films are 64 px: nothing is reduced
        film = np.asarray(Image.open(MINI / "images" / found.index[row]))
        assert (prepared.images[row] == film[..., 0]).all()


@pytest.mark.long  # 12 s: 9,998 films
@pytest.mark.skipif(not NIH10K.is_file(), reason="shared/nih10k, an archive of real films, is not there")
def test_one_archive_on_disk_is_nih10k(tmp_path):
    options = ["--archives", NIH10K, "--labels", FULL_TABLE, "--size", 64, "--name", "nih10k", "--out", tmp_path]
    assert run(*options) == 0
    data = load_set(tmp_path / "nih10k")
    assert data.table["split"].value_counts().to_dict() == {"train": 6425, "val": 1218, "test": 2355}
    assert data.checksum == "efce16598a6b4e993707b88cb4d160e1a86530ea528aa06d2e6a1836c6e66485"


# --- Sets


def test_nested_films_and_labels_stay_together_and_leave_nothing_else(raw):
    (raw / "films" / "images_002").rename(raw / "disk")  # a folder of films on another disk
    (raw / "films" / "images_002").symlink_to(raw / "disk")
    assert prepare(raw) == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert len(prepared.table) == PATIENTS * FILMS
    assert (prepared.preset, prepared.synthetic, prepared.patients) == ("small", False, True)
    for row, name in enumerate(prepared.table["Image Index"]):
        assert (prepared.images[row] == reduce_film(path_of(raw, name), SIZE)).all()
        assert prepared.table["Finding Labels"][row] == ("No Finding", "Mass|Hernia")[int(name[-5])]
        assert prepared.table["Patient ID"][row] == int(name[:8])
    assert {path.name for path in (raw.parent / "out").iterdir()} == {"set", "films_32px"}
    source = json.loads((raw.parent / "out" / "set" / "source.json").read_text())
    assert source["origin"] == {"films": "films", "archive": None, "labels": "table.csv", "lists": True}
    counts = count_findings(prepared.table, FINDINGS).to_dict()
    assert source["counts"] == counts and str(raw.parent) not in json.dumps(source)


def test_sets_of_one_size_share_their_films_and_one_that_is_not_whole_is_made_again(raw, capsys, one_line):
    assert prepare(raw) == 0
    films = raw.parent / "out" / "films_32px"
    before, whole = bytes_of(films), bytes_of(films.parent / "set")
    (films / film_name(1, 0)).unlink()
    (films / FILM).write_bytes(flip_a_bit(before[FILM], 500))
    Image.new("L", (SIZE, SIZE + 1), 99).save(films / TESTED)
    capsys.readouterr()
    for name, there in (("other", 17), ("third", 20)):
        assert prepare(raw, name=name) == 0
        assert f"{there} of 20 films are in" in capsys.readouterr().out
        assert bytes_of(films.parent / name) == whole and bytes_of(films) == before
        for path in (raw / "films").rglob("*.png"):
            path.write_bytes(b"not read again")
    assert "20 films" in one_line(lambda: prepare(raw, "--size", SIZE // 2, name="smaller"))  # has films of its own


def test_a_set_that_another_process_made_meanwhile_is_left_as_it_is(raw, monkeypatch, capsys):
    def meanwhile(path):
        monkeypatch.undo()
        assert prepare(raw, lists=False) == 0
        return making.lock(path)

    monkeypatch.setattr(making, "lock", meanwhile)
    assert prepare(raw) == 0
    said = capsys.readouterr().out
    assert "not the official split" in said and "is left as it is" in said and said.count("is ready") == 1


# --- Films as people have them


def upper_case(raw):
    for path in list(raw.rglob("*.png")):
        path.rename(path.with_name(path.name.upper()))


def broken_copy(raw):
    (raw / "films" / FILM).write_bytes(path_of(raw, FILM).read_bytes()[:-500])


def beside(raw, name):
    """A path among raw's films, whose folder is there."""
    (raw / "films" / name).parent.mkdir()
    return raw / "films" / name


FORMS = {
    "upper case": upper_case,
    "link to nothing": lambda raw: (raw / "films" / FILM).symlink_to(raw / "nowhere.png"),
    "pipe": lambda raw: os.mkfifo(raw / "films" / FILM),
    "unpacked twice": lambda raw: shutil.copytree(raw / "films" / "images_001", raw / "films" / "again"),
    "broken copy": broken_copy,
    "thumbnails": lambda raw: Image.new("L", (SIZE, SIZE), 99).save(beside(raw, f"@eaDir/{FILM}")),
    "of a notebook": lambda raw: Image.new("L", (SIZE, SIZE), 99).save(beside(raw, f".ipynb_checkpoints/{FILM}")),
    "other forms": lambda raw: beside(raw, "more/a.tif").touch(),
}


@pytest.mark.parametrize("form", FORMS)
def test_films_are_read_as_people_have_them(form, raw, capsys):
    assert prepare(raw) == 0
    FORMS[form](raw)
    capsys.readouterr()
    assert prepare(raw, "--out", raw.parent / "again") == 0
    assert ("left out: 1 file, not PNG, JPEG or DICOM (1 .tif)" in capsys.readouterr().out) == (form == "other forms")
    assert same_set(raw.parent / "again" / "set", raw.parent / "out" / "set")


# --- Faults: one line that names file, problem and next step, status 2, no set


cut_film = overwritten(FILM, lambda content: content[:-500])
FAULTS = {
    "small film": (
        lambda raw: Image.new("L", (SIZE - 1, SIZE - 1), 99).save(path_of(raw, FILM)),
        ("films: 1 film", FILM, "unusable", "smaller than 32 px", "missing.txt", "same command", "--skip-bad"),
    ),
    "films lost": (lambda raw: (raw / "films").rename(raw / "elsewhere"), ("films is not a folder", "--images")),
    "something there": (
        lambda raw: shutil.copytree(raw / "films", raw.parent / "out" / "set"),
        ("set is there but is no finished set", "--name"),
    ),
    "no folder": (lambda raw: (raw.parent / "out").touch(), ("/out", "--out")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_with_one_line_and_makes_no_set(fault, raw, one_line):
    change, words = FAULTS[fault]
    change(raw)
    before = set(raw.parent.rglob("*"))
    skip = [] if "--skip-bad" in words else ["--skip-bad"]  # which skips bad films, and nothing else
    for _ in range(2):
        said = one_line(lambda: prepare(raw, *skip))
        assert all(word in said for word in words), said
    left = {path.name for path in set(raw.parent.rglob("*")) - before if path.suffix != ".png"}
    assert left <= {"out", "films_32px", "lock", "missing.txt"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *((["--name", name], "--name") for name in ("../other", "a/b", "", "films_32px", "small")),
        (["--images", ""], "--images is empty: say what it is, or leave it out"),
        (["--labels", ""], "--labels is empty"),
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--size", 0], "--size 0 must be at least 1"),
        (["--seed", -1], "--seed -1 at least 0"),
        (["--split", "original"], "--lists has no part in --split original"),
        (["--archive", 1], "--archive 1 must be 1 to 12, with --download or --archives"),
    ],
)
def test_options_that_do_not_fit_are_named(options, words, raw, one_line):
    assert words in one_line(lambda: prepare(raw, *options))
    assert not (raw.parent / "out").exists()


def test_skip_bad_leaves_out_bad_films_only_and_counts_them(raw, capsys, one_line):
    lost = [film_name(patient, 0) for patient in (1, 2, 4, 5)]
    for name in (*lost, film_name(5, 1)):
        path_of(raw, name).unlink()
    cut_film(raw)
    (raw / "films" / film_name(5, 1)).symlink_to(raw / "nowhere.png")
    said, bad = one_line(lambda: prepare(raw)), [FILM, film_name(5, 1)]
    assert f"4 films ({lost[0]}, {lost[1]}, {lost[2]}, ...) missing" in said and "link to nothing" in said
    assert (raw.parent / "out" / "films_32px" / "missing.txt").read_text().split() == lost + bad
    assert prepare(raw, "--skip-bad") == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert len(prepared.table) == PATIENTS * FILMS - 6 and not {*lost, *bad} & set(prepared.table["Image Index"])
    for row, name in enumerate(prepared.table["Image Index"]):  # the films after the gap are still their own
        assert (prepared.images[row] == reduce_film(path_of(raw, name), SIZE)).all()
    assert f"and 2 films ({', '.join(bad)}) unusable" in capsys.readouterr().out
    skipped = json.loads((raw.parent / "out" / "set" / "source.json").read_text())["skipped"]
    assert skipped == {"missing": lost, "undecodable": bad}


# --- Places


def link(at, place):
    place.mkdir(parents=True)
    at.parent.mkdir(exist_ok=True)
    at.symlink_to(place)


@pytest.mark.parametrize("place", ["out/set", "out/films_32px", "out"])
def test_places_may_be_links_to_other_disks_and_mount_points(place, raw, monkeypatch):
    link(raw.parent / place, raw.parent / "disk" / "mounted")

    def disk(path):
        return "disk" in os.path.realpath(path).split(os.sep), os.path.realpath(path).endswith("mounted")

    def replace(old, new, real=os.replace):
        if disk(old) != disk(new) or disk(old)[1]:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(old))
        real(old, new)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, replace)
    assert prepare(raw) == 0
    assert (raw.parent / place).is_symlink() and len(load_set(raw.parent / "out" / "set").table) == PATIENTS * FILMS


def test_what_a_killed_run_left_in_the_sets_folder_is_removed(raw, one_line):
    left = raw.parent / "out" / "set" / "unfinished_1"
    left.mkdir(parents=True)
    (left.parent / "images.npy").touch()  # it was killed as it moved the files
    assert prepare(raw) == 0
    assert set(bytes_of(left.parent)) == {"images.npy", "labels.csv", "source.json"}
    (raw.parent / "out" / "gone").symlink_to(raw / "nowhere")
    assert "gone is there but is no finished set" in one_line(lambda: prepare(raw, name="gone"))


@pytest.mark.parametrize("given", ["out/films_32px", "out/films_32px/deeper", "link"])
def test_films_are_not_read_where_they_are_written(given, raw, one_line):
    link(raw.parent / "link", raw.parent / "out" / "films_32px")
    shutil.copytree(raw / "films", raw.parent / given, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in (raw.parent / given).rglob("*.png")}
    said = one_line(lambda: prepare(raw, "--images", raw.parent / given))
    assert "is in a folder that this command writes" in said
    assert len(before) == 20 and before == {path: path.read_bytes() for path in before}


def test_a_folder_of_films_may_hold_those_of_reduced_films(raw):
    for out in (raw.parent / "out", raw / "films"):
        for size in (SIZE, SIZE // 2):
            assert prepare(raw, "--size", size, "--out", out, name=f"size_{size}") == 0
    assert same_set(raw.parent / "out" / f"size_{size}", raw / "films" / f"size_{size}")


def test_larger_films_in_the_place_of_reduced_ones_are_not_replaced(raw, one_line):
    films = raw.parent / "out" / f"films_{SIZE}px"
    films.mkdir(parents=True)
    for path in (raw / "films").rglob("*.png"):
        shutil.copy(path, films)
    before = bytes_of(films)
    for given in (films.parent, raw / "films"):
        said = one_line(lambda given=given: prepare(raw, "--images", given))
        assert "20 films (00000001_000.png, " in said and f"larger than {SIZE} px" in said
    assert bytes_of(films) == before


@pytest.mark.parametrize("disks", [1, 2])
def test_there_is_room_on_each_disk_before_it_starts(disks, raw, monkeypatch, one_line):
    stat, films = os.stat, PATIENTS * FILMS * SIZE**2

    def other_disk(path, **more):
        found = stat(path, **more)
        return os.stat_result((*found[:2], -1, *found[3:])) if str(path).endswith("out/set") else found

    if disks == 2:
        monkeypatch.setattr(os, "stat", other_disk)
    free = dict.fromkeys(("films_32px", "set"), films * 2 // disks)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free[path.name]))
    for full in free:
        free[full] -= 1
        said = one_line(prepare, raw)
        assert f"out/{full} needs" in said and "GB" in said and not list((raw.parent / "out").rglob("*.png"))
        free[full] += 1
    assert prepare(raw) == 0


def test_a_second_process_is_refused(raw, one_line):
    (raw.parent / "out" / "films_32px").mkdir(parents=True)
    with FileLock(raw.parent / "out" / "films_32px" / "lock"):
        assert "another process works there" in one_line(prepare, raw)
    assert prepare(raw) == 0


def test_a_disk_that_fills_up_is_no_fault_of_the_films(raw, monkeypatch, one_line):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        said = one_line(prepare, raw)
        assert "films_32px: No space left" in said and "--out" in said
    assert prepare(raw) == 0
