"""Preparing ChestX-ray14: real films end to end, every film mode, and one clear line for each fault."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

from data import prepare_chestxray14 as chestxray14
from dataset import count_findings, encode_findings, load_set
from tests.films import (
    FILM,
    FILMS,
    FULL_TABLE,
    PATIENTS,
    REPO,
    SHARED,
    SIZE,
    bytes_of,
    film_name,
    flip_a_bit,
    overwritten,
    path_of,
    picture,
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
    assert found.index.is_monotonic_increasing
    test = (MINI / "test_list.txt").read_text().split()
    assert len(test) == 207 and set(found.index[found["split"] == "test"]) == set(test)
    patients = found.groupby("split")["Patient ID"].agg(set)
    assert len(patients["val"]) == round(0.2 * len(patients["train"] | patients["val"]))

    official = pd.read_csv(table).set_index("Image Index").loc[found.index]
    assert (found["Patient ID"] == official["Patient ID"]).all()
    assert (prepared.labels == encode_findings(official["Finding Labels"])).all()
    for row in range(0, 970, 97):  # these films are 64 px: nothing is reduced
        film = np.asarray(Image.open(MINI / "images" / found.index[row]))
        assert (prepared.images[row] == film[..., 0]).all()


@pytest.mark.long  # 12 s: 9,998 films
@pytest.mark.skipif(not NIH10K.is_file(), reason="shared/nih10k, an archive of real films, is not there")
def test_one_archive_on_disk_is_nih10k(tmp_path):
    options = ["--archives", NIH10K, "--labels", FULL_TABLE, "--size", 64, "--name", "nih10k", "--out", tmp_path]
    assert run(*options) == 0
    splits = load_set(tmp_path / "nih10k").table["split"]
    assert splits.value_counts().to_dict() == {"train": 6425, "val": 1218, "test": 2355}


# --- One film


def reduce(values, path):
    """The film of these grey values, reduced."""
    Image.fromarray(values).save(path)
    return chestxray14.reduce_film(path, SIZE)


def test_every_mode_gives_the_same_grey_values(tmp_path):
    grey = picture(0)
    deep = grey.astype(np.uint16) * 257 + 100  # 16-bit, not only the multiples of 257
    alpha = np.full_like(grey, 255)
    alpha[:40] = 0  # transparency hides nothing
    films = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(np.dstack([grey] * 3)),
        "RGBA": Image.fromarray(np.dstack([grey] * 3 + [alpha])),
        "LA": Image.fromarray(np.dstack([grey, alpha])),
        "P": Image.fromarray(grey).convert("P"),
        "I;16": Image.fromarray(deep),
    }
    expected = grey.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    reduced = {}
    for mode, film in films.items():
        assert film.mode == mode
        film.save(tmp_path / "film.png")
        reduced[mode] = chestxray14.reduce_film(tmp_path / "film.png", SIZE)
        assert reduced[mode].shape == (SIZE, SIZE) and reduced[mode].dtype == np.uint8
        assert np.abs(reduced[mode].astype(int) - reduced["L"]).max() <= 1, mode
    assert np.abs(reduced["L"] - expected).mean() < 1.5


def test_reducing_leaves_no_aliases(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (4 * SIZE, 2 * SIZE))  # too fine for the reduced film
    inner = reduce(stripes, tmp_path / "film.png")[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 2


def test_a_film_that_is_not_square_keeps_its_shape_on_black(tmp_path):
    reduced = reduce(np.full((2 * SIZE, 4 * SIZE), 200, np.uint8), tmp_path / "film.png")
    border = SIZE // 4
    assert (reduced[border:-border] == 200).all()
    assert not reduced[:border].any() and not reduced[-border:].any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_films_of_a_detectors_bits_are_scaled_by_them(bits, tmp_path):
    values = np.linspace(0, 2**bits - 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    grey = reduce(values, tmp_path / "film.png")
    assert abs(grey - values * (255 / (2**bits - 1))).max() <= 0.51


def film(value, kind, share=0.0, white=0):
    """A film of one value, of which a share is white, such as the letter that marks a side."""
    values = np.full((4 * SIZE, 4 * SIZE), value, kind)
    values.ravel()[: int(share * values.size)] = white
    return values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (film(15, np.uint8), "nearly black: 99 % of its grey values are below 64 of 255"),
        (film(63, np.uint8, 0.009, 255), "nearly black"),
        (film(4095, np.uint16, 0.009, 65535), "nearly black"),  # 12 bits in a range of 16
        (film(0.5, np.float32), "grey values of type float32"),
        (film(-5, np.int32), "from -5 to -5, not 0 to 65535"),
        (film(65536, np.int32), "from 65536 to 65536, not 0 to 65535"),
        (film(200, np.uint8)[: SIZE - 1, : SIZE - 1], "smaller than 32 px: choose a smaller --size"),
    ],
)
def test_films_with_values_far_below_their_range_and_small_films_are_refused(values, problem, tmp_path):
    with pytest.raises(OSError, match=problem):
        reduce(values, tmp_path / "film.tif")


@pytest.mark.parametrize("values", [film(64, np.uint8), film(0, np.uint8, 0.011, 64)])
def test_a_dark_film_is_a_film(values, tmp_path):
    assert reduce(values, tmp_path / "film.png").any()


# --- Sets


def test_nested_films_and_labels_stay_together_and_leave_nothing_else(raw):
    (raw / "films" / "images_002").rename(raw / "disk")  # a folder of films on another disk
    (raw / "films" / "images_002").symlink_to(raw / "disk")
    assert prepare(raw) == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert len(prepared.table) == PATIENTS * FILMS
    for row, name in enumerate(prepared.table["Image Index"]):
        assert (prepared.images[row] == chestxray14.reduce_film(path_of(raw, name), SIZE)).all()
        assert prepared.table["Finding Labels"][row] == ("No Finding", "Mass|Hernia")[int(name[-5])]
        assert prepared.table["Patient ID"][row] == int(name[:8])
    assert {path.name for path in (raw.parent / "out").iterdir()} == {"set", "films_32px"}
    source = json.loads((raw.parent / "out" / "set" / "source.json").read_text())
    assert source["origin"] == {"films": "films", "archive": None, "labels": "table.csv", "lists": True}
    assert source["counts"] == count_findings(prepared.table) and str(raw.parent) not in json.dumps(source)


def test_without_lists_patients_are_divided_and_it_says_so(raw, capsys):
    assert prepare(raw, lists=False) == 0
    table = load_set(raw.parent / "out" / "set").table  # refuses a patient in two splits
    patients = table.groupby("split")["Patient ID"].nunique()
    assert patients.to_dict() == {"train": 7, "val": 1, "test": 2}
    assert len(table) == PATIENTS * FILMS
    assert "not the official split" in capsys.readouterr().out


def test_one_thread_and_several_write_the_same_bytes(raw, monkeypatch):
    sets = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert prepare(raw, "--out", raw.parent / f"out{cores}") == 0
        sets.append(bytes_of(raw.parent / f"out{cores}" / "set"))
    assert sets[0] == sets[1]


def test_sets_of_one_size_share_their_films(raw, capsys, one_line):
    assert prepare(raw) == 0
    films = bytes_of(raw.parent / "out" / "films_32px")
    for path in raw.rglob("*.png"):
        path.write_bytes(b"not read again")
    capsys.readouterr()
    assert prepare(raw, name="other") == 0
    assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")
    assert bytes_of(raw.parent / "out" / "films_32px") == films
    assert "20 of 20 films are in" in capsys.readouterr().out
    smaller = one_line(lambda: prepare(raw, "--size", SIZE // 2, name="smaller"))  # another size has films of its own
    assert "20 films" in smaller
    assert prepare(raw) == 0
    assert "is left as it is" in capsys.readouterr().out


def test_a_set_that_another_process_made_meanwhile_is_left_as_it_is(raw, monkeypatch, capsys):
    def locked(folder):
        monkeypatch.setattr(chestxray14, "locked", as_it_is)
        assert prepare(raw) == 0
        return as_it_is(folder)

    as_it_is = chestxray14.locked
    monkeypatch.setattr(chestxray14, "locked", locked)
    assert prepare(raw) == 0
    assert "is left as it is" in capsys.readouterr().out


def other_size(path):
    Image.new("L", (SIZE, SIZE + 1), 99).save(path)


def other_mode(path):
    Image.open(path).convert("RGB").save(path)


DAMAGES = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "bit": lambda path: path.write_bytes(flip_a_bit(path.read_bytes(), 500)),
    "another size": other_size,
    "another mode": other_mode,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reduced_film_that_is_not_whole_is_made_again(damage, raw, capsys):
    assert prepare(raw) == 0
    film = raw.parent / "out" / "films_32px" / FILM
    whole = film.read_bytes()
    DAMAGES[damage](film)
    assert prepare(raw, name="other") == 0
    assert "19 of 20 films are in" in capsys.readouterr().out
    assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")
    assert film.read_bytes() == whole


# --- Films as people have them


def upper_case(raw):
    for path in list(raw.rglob("*.png")):
        path.rename(path.with_name(path.name.upper()))


def link_beside_a_film(raw):
    (raw / "films" / FILM).symlink_to(raw / "nowhere.png")


def pipe_beside_a_film(raw):
    os.mkfifo(raw / "films" / FILM)


def unpacked_twice(raw):
    shutil.copytree(raw / "films" / "images_001", raw / "films" / "again")


def one_unreadable(raw):
    (raw / "films" / "again").mkdir()
    (raw / "films" / "again" / FILM).write_bytes(path_of(raw, FILM).read_bytes()[:-500])


@pytest.mark.parametrize(
    "form",
    [upper_case, link_beside_a_film, pipe_beside_a_film, unpacked_twice, one_unreadable],
    ids=lambda form: form.__name__,
)
def test_films_are_read_as_people_have_them(form, raw):
    assert prepare(raw) == 0
    form(raw)
    assert prepare(raw, "--out", raw.parent / "again") == 0
    assert same_set(raw.parent / "again" / "set", raw.parent / "out" / "set")


def test_photos_are_films(raw):
    for path in list(raw.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".JPEG"), quality=95)
        path.unlink()
    assert prepare(raw) == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert abs(prepared.images[0].astype(int) - picture(100).reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))).mean() < 2


# --- Faults: one line that names file, problem and next step, status 2, no set


def flip_a_bit_that_decodes(content):
    """Only the chunk's own checksum shows it: here, the checksum is what is changed."""
    content = flip_a_bit(content, len(content) - 13)  # the end of the chunk before IEND, which has 12 bytes
    Image.open(io.BytesIO(content)).load()
    return content


def link_to_nothing(raw, name=FILM):
    path_of(raw, name).unlink()
    (raw / "films" / name).symlink_to(raw / "nowhere.png")


def shrink_film(raw):
    Image.new("L", (SIZE - 1, SIZE - 1), 99).save(path_of(raw, FILM))


def second_film(raw):
    Image.fromarray(255 - picture(1)).save(raw / "films" / FILM)


def leave_something(raw):
    (raw.parent / "out" / "set").mkdir(parents=True)
    (raw.parent / "out" / "set" / "notes.txt").write_text("mine")


cut_film = overwritten(FILM, lambda content: content[:-500])
UNUSABLE = ("films: 1 film", FILM, "unusable", "missing.txt", "same command", "--skip-bad")
FAULTS = {
    "film lost": (lambda raw: path_of(raw, FILM).unlink(), ("films: 1 film", FILM, "missing", *UNUSABLE[3:])),
    "film cut": (cut_film, UNUSABLE),
    "bit": (overwritten(FILM, lambda content: flip_a_bit(content, len(content) // 2)), UNUSABLE),
    "bit that decodes": (overwritten(FILM, flip_a_bit_that_decodes), UNUSABLE),
    "dangling link": (link_to_nothing, (*UNUSABLE, "a link to nothing")),
    "small film": (shrink_film, (*UNUSABLE, "smaller than 32 px", "--size")),
    "two films": (
        second_film,
        (f"different files of 1 film ({FILM})", f"{FILM} in ", f"images_002/images/{FILM} in ", "keep one"),
    ),
    "films lost": (lambda raw: (raw / "films").rename(raw / "elsewhere"), ("films is not a folder", "--images")),
    "something there": (leave_something, ("set is there but is no finished set", "--name")),
    "labels": (lambda raw: (raw / "table.csv").unlink(), ("table.csv is missing", "--labels")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_with_one_line_and_makes_no_set(fault, raw, one_line):
    change, words = FAULTS[fault]
    change(raw)
    before = set(raw.parent.rglob("*"))
    skip = [] if "--skip-bad" in words else ["--skip-bad"]  # which skips bad films, and nothing else
    for _ in range(2):
        said = one_line(lambda: prepare(raw, *skip))
        for word in words:
            assert word in said
    left = {path.name for path in set(raw.parent.rglob("*")) - before if path.suffix != ".png"}
    assert left <= {"out", "films_32px", "lock", "missing.txt"}


def test_the_command_itself_ends_with_status_2_and_no_traceback(raw):
    cut_film(raw)
    command = [sys.executable, "-m", "data.prepare_chestxray14", "--images", raw / "films", "--size", str(SIZE)]
    command += ["--labels", raw / "table.csv", "--out", raw.parent / "out"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "../other"], "--name"),
        (["--name", "a/b"], "--name"),
        (["--name", ""], "--name"),
        (["--name", "films_32px"], "--name"),
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
    for name in lost:
        path_of(raw, name).unlink()
    cut_film(raw)
    link_to_nothing(raw, film_name(5, 1))
    assert f"4 films ({lost[0]}, {lost[1]}, {lost[2]}, ...) missing" in one_line(lambda: prepare(raw))
    bad = [FILM, film_name(5, 1)]
    assert (raw.parent / "out" / "films_32px" / "missing.txt").read_text().split() == lost + bad
    assert prepare(raw, "--skip-bad") == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert len(prepared.table) == PATIENTS * FILMS - 6 and not {*lost, *bad} & set(prepared.table["Image Index"])
    for row, name in enumerate(prepared.table["Image Index"]):  # the films after the gap are still their own
        assert (prepared.images[row] == chestxray14.reduce_film(path_of(raw, name), SIZE)).all()
    assert f"and 2 films ({', '.join(bad)}) unusable" in capsys.readouterr().out
    skipped = json.loads((raw.parent / "out" / "set" / "source.json").read_text())["skipped"]
    assert skipped == {"missing": lost, "undecodable": bad}


# --- Places


def test_a_place_that_cannot_be_used_is_named(raw, one_line):
    (raw / "file").write_text("")
    assert f"{raw}/file" in one_line(lambda: prepare(raw, "--out", raw / "file"))


def test_a_second_process_is_refused(raw, one_line):
    (raw.parent / "out" / "films_32px").mkdir(parents=True)
    with FileLock(raw.parent / "out" / "films_32px" / "lock"):
        assert "another process works there" in one_line(prepare, raw)
    assert prepare(raw) == 0


def test_too_little_disk_is_said_first(raw, monkeypatch, one_line):
    usage = namedtuple("usage", "total used free")
    need = 3 * PATIENTS * FILMS * SIZE**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need - 1))
    assert "GB" in one_line(prepare, raw)
    assert not list((raw.parent / "out").rglob("*.png"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need))
    assert prepare(raw) == 0


def test_a_full_disk_is_no_fault_of_the_films(raw, monkeypatch, one_line):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        said = one_line(prepare, raw)
    assert "films_32px: No space left" in said and "--out" in said
    assert prepare(raw) == 0
