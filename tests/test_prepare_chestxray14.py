"""Preparing ChestX-ray14: real films and labels end to end, every film mode, one clear line for each fault; archives
on disk; and the download, from a server on loopback."""

import errno
import fcntl
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

import search_train
from data import fetch_chestxray14 as fetch
from data import prepare_chestxray14 as chestxray14
from dataset import count_findings, encode_findings, load_set
from support.settings import parse_settings
from tests.loopback import serve

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"  # real films and lists, not part of the repository
MINI = SHARED / "nih_mini"
FULL_TABLE = SHARED / "Data_Entry_2017_v2020.csv.gz"
NIH10K = SHARED / "nih10k" / "images_002.zip"
ORIGINAL = SHARED / "original_split"
SIZE = 32  # of the prepared films, px; the films made here are four times as large
PATIENTS, FILMS = 10, 2  # films per patient
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position,"  # 2017: ends in a comma
COMMAND = [sys.executable, "-m", "data.prepare_chestxray14"]


def film_name(patient, film):
    return f"{patient:08d}_{film:03d}.png"


def picture(seed):
    """A smooth 8-bit film with some noise, (4 SIZE, 4 SIZE)."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.random((6, 6)).astype(np.float32) * 200)
    values = np.asarray(smooth.resize((4 * SIZE, 4 * SIZE), Image.Resampling.BICUBIC))
    return np.clip(values + rng.normal(0, 2, values.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def raw(tmp_path):
    """Films in two folders as on Kaggle, a 2017 label table and lists (patients 1 to 8, 9 to 10), in tmp_path/raw."""
    folder, rows, lists = tmp_path / "raw", [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, PATIENTS + 1):
        for film in range(FILMS):
            name = film_name(patient, film)
            path = folder / "films" / f"images_{1 + patient % 2:03d}" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(100 * patient + film)).save(path)
            rows.append(f"{name},{('No Finding', 'Mass|Hernia')[film]},{film},{patient},PA,")
            lists["train_val_list.txt" if patient <= 8 else "test_list.txt"].append(name)
    (folder / "table.csv").write_text("\n".join([HEADER, *rows[::-1]]) + "\n")
    for name, films in lists.items():
        (folder / name).write_text("\n".join(films) + "\n")
    return folder


def path_of(raw, name):
    (path,) = {path.resolve() for path in raw.rglob(name)}
    return path


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def run(*options):
    """The status of `main` with these options."""
    try:
        return chestxray14.main([str(option) for option in options])
    except SystemExit as stop:
        return stop.code


def prepare(raw, *more, lists=True, name="set"):
    """Prepare raw's films as the set `out`/`name` beside them; returns the exit status."""
    options = ["--images", raw / "films", "--labels", raw / "table.csv", *(["--lists", raw] if lists else [])]
    return run(*options, "--size", SIZE, "--out", raw.parent / "out", "--name", name, *more)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_error(capsys):
    """The one line on stderr, with which nothing else was said."""
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    return said.err


# --- Real films and labels


@pytest.mark.skipif(not MINI.is_dir(), reason="shared/nih_mini, real ChestX-ray14 films, is not there")
def test_real_films_become_a_set_with_the_official_test_list(tmp_path):
    table = MINI / "Data_Entry_2017_v2020.csv"
    command = [*COMMAND, "--images", MINI / "images", "--labels", table, "--lists", MINI, "--size", "64"]
    done = subprocess.run([*command, "--name", "nih_mini", "--out", tmp_path], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Infiltration" in done.stdout

    prepared = load_set(tmp_path / "nih_mini")
    assert prepared.images.shape == (970, 64, 64)
    found = prepared.table.set_index("Image Index")
    assert found.index.is_monotonic_increasing
    test = (MINI / "test_list.txt").read_text().split()
    assert len(test) == 207 and set(found.index[found["split"] == "test"]) == set(test)
    patients = found.groupby("split")["Patient ID"].agg(set)
    assert len(patients["val"]) == round(0.2 * len(patients["train"] | patients["val"]))
    assert not patients["train"] & patients["val"] | (patients["train"] | patients["val"]) & patients["test"]

    official = pd.read_csv(table).set_index("Image Index").loc[found.index]
    assert (found["Patient ID"] == official["Patient ID"]).all()
    assert (prepared.labels == encode_findings(official["Finding Labels"])).all()
    for row in range(0, 970, 97):  # these films are 64 px: nothing is reduced
        film = np.asarray(Image.open(MINI / "images" / found.index[row]))
        assert (prepared.images[row] == film[..., 0]).all()


@pytest.mark.skipif(not FULL_TABLE.is_file(), reason="shared/, the official label table, is not there")
def test_the_official_table_is_read_and_divided_by_patient():
    table = chestxray14.read_labels(FULL_TABLE)
    assert (len(table), table["Patient ID"].nunique()) == (112120, 30805)
    patients = chestxray14.assign_splits(table, None, seed=0).groupby("split")["Patient ID"].agg(set)
    assert [len(patients[split]) for split in ("train", "val", "test")] == [21564, 3080, 6161]
    assert len(patients["train"] | patients["val"] | patients["test"]) == 30805
    # Pinned: the same patients on every platform and with every NumPy.
    assert [sorted(patients[split])[:3] for split in ("val", "test")] == [[3, 4, 12], [2, 16, 19]]


@pytest.mark.skipif(not NIH10K.is_file(), reason="shared/nih10k, an archive of real films, is not there")
def test_one_archive_on_disk_is_nih10k(tmp_path, request):
    options = ["--archives", NIH10K, "--labels", FULL_TABLE, "--size", 64, "--name", "nih10k", "--out", tmp_path]
    if request.config.getoption("--all"):
        assert run(*options) == 0
        table = load_set(tmp_path / "nih10k").table
    else:
        table, _ = chestxray14.choose_films(chestxray14.parse_options([str(option) for option in options]), tmp_path)
    assert table["split"].value_counts().to_dict() == {"train": 6425, "val": 1218, "test": 2355}


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="shared/original_split, the original's lists, is not there")
def test_the_toy_set_is_the_originals():
    toy = pd.read_csv(chestxray14.TOY_SET)
    assert toy.columns.to_list() == ["film", "split"] and toy["film"].is_monotonic_increasing and toy["film"].is_unique
    for split, films in (("train", 7133), ("val", 1642), ("test", 2267)):
        listed = json.loads((ORIGINAL / f"small_{split}.json").read_text())
        assert len(listed) == films and set(toy["film"][toy["split"] == split]) == set(listed)
    table = chestxray14.original_split(chestxray14.read_labels(FULL_TABLE))
    assert len(table) == 11042 and table.groupby("Patient ID")["split"].nunique().max() == 1


# --- Films


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
    Image.fromarray(stripes).save(tmp_path / "film.png")
    inner = chestxray14.reduce_film(tmp_path / "film.png", SIZE)[:, 2:-2].astype(int)
    assert np.abs(inner - 127).max() <= 2


def test_a_film_that_is_not_square_keeps_its_shape_on_black(tmp_path):
    Image.new("L", (4 * SIZE, 2 * SIZE), 200).save(tmp_path / "film.png")
    reduced = chestxray14.reduce_film(tmp_path / "film.png", SIZE)
    border = SIZE // 4
    assert (reduced[border:-border] == 200).all()
    assert not reduced[:border].any() and not reduced[-border:].any()


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
    assert set(prepared.table["Patient ID"][prepared.rows("test")]) == {9, 10}
    assert prepared.table["Patient ID"][prepared.rows("val")].nunique() == 2  # of 8
    assert {path.name for path in (raw.parent / "out").iterdir()} == {"set", "films_32px"}
    source = json.loads((raw.parent / "out" / "set" / "source.json").read_text())
    assert source["origin"] == {"films": "films", "archive": None, "labels": "table.csv", "lists": True}
    assert str(raw.parent) not in json.dumps(source)


def test_without_lists_patients_are_divided_and_it_says_so(raw, capsys):
    assert prepare(raw, lists=False) == 0
    table = load_set(raw.parent / "out" / "set").table  # refuses a patient in two splits
    patients = table.groupby("split")["Patient ID"].nunique()
    assert patients.to_dict() == {"train": 7, "val": 1, "test": 2}
    assert len(table) == PATIENTS * FILMS
    assert "not the official split" in capsys.readouterr().out


def test_the_lists_choose_the_films(raw):
    edit(raw / "train_val_list.txt", film_name(1, 0) + "\n", "")
    path_of(raw, film_name(1, 0)).unlink()  # not listed: not needed
    assert prepare(raw) == 0
    assert film_name(1, 0) not in set(load_set(raw.parent / "out" / "set").table["Image Index"])


def test_a_seed_draws_the_same_patients_and_another_seed_others(raw):
    table = chestxray14.read_labels(raw / "table.csv")
    splits = [chestxray14.assign_splits(table, None, seed)["split"].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for seed in range(5):
        listed = chestxray14.assign_splits(table, raw, seed)
        patients = listed.groupby("split")["Patient ID"].nunique()
        assert patients.to_dict() == {"train": 6, "val": 2, "test": 2}  # val: of the 8 patients of train_val


@pytest.mark.parametrize("edges", [(",\n", "\n"), (",\n", ",\n")], ids=["v2020", "2017"])
def test_a_comma_at_the_end_of_a_row_changes_nothing(edges, raw):
    rows = (raw / "table.csv").read_text()
    expected = chestxray14.read_labels(raw / "table.csv")
    for header in (HEADER, HEADER.rstrip(",")):
        (raw / "table.csv").write_text(rows.replace(*edges).replace(HEADER.rstrip(",") + edges[1], header + "\n"))
        assert chestxray14.read_labels(raw / "table.csv").equals(expected)


def test_one_thread_and_several_write_the_same_bytes(raw, monkeypatch):
    sets = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert prepare(raw, "--out", raw.parent / f"out{cores}") == 0
        sets.append(bytes_of(raw.parent / f"out{cores}" / "set"))
    assert sets[0] == sets[1]


def test_sets_of_one_size_share_their_films(raw, capsys):
    assert prepare(raw) == 0
    films = bytes_of(raw.parent / "out" / "films_32px")
    for path in raw.rglob("*.png"):
        path.write_bytes(b"not read again")
    capsys.readouterr()
    assert prepare(raw, name="other") == 0
    assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")
    assert bytes_of(raw.parent / "out" / "films_32px") == films
    assert "20 of 20 films are in" in capsys.readouterr().out
    assert prepare(raw, "--size", SIZE // 2, name="smaller") == 2  # another size has films of its own
    assert "20 films" in capsys.readouterr().err


def test_the_reduced_films_can_be_deleted(raw):
    assert prepare(raw) == 0
    shutil.rmtree(raw.parent / "out" / "films_32px")
    load_set(raw.parent / "out" / "set")
    assert prepare(raw, name="other") == 0
    assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")


def test_a_reduced_film_that_was_damaged_is_made_again(raw, capsys):
    assert prepare(raw) == 0
    film = raw.parent / "out" / "films_32px" / film_name(3, 1)
    whole = film.read_bytes()
    for content in (whole[:-9], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b""):
        film.write_bytes(content)
        shutil.rmtree(raw.parent / "out" / "other", ignore_errors=True)
        capsys.readouterr()
        assert prepare(raw, name="other") == 0
        assert "19 of 20 films are in" in capsys.readouterr().out
        assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")
        assert film.read_bytes() == whole


# --- Inputs as people have them


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_films_of_a_detectors_bits_are_scaled_by_them(bits, tmp_path):
    values = np.linspace(0, 2**bits - 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "film.png")
    grey = chestxray14.reduce_film(tmp_path / "film.png", SIZE)
    assert abs(grey - values * (255 / (2**bits - 1))).max() <= 0.51


def with_marker(values, white):
    """A film with a few white pixels, such as the letter that marks a side."""
    values[2, 2:8] = white
    return values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.full((SIZE, SIZE), 15, np.uint8), "nearly black: 99 % of its grey values are below 64 of 255"),
        (with_marker(np.full((SIZE, SIZE), 63, np.uint8), 255), "nearly black"),  # 14 of 16 bits
        (with_marker(np.full((SIZE, SIZE), 4095, np.uint16), 65535), "nearly black"),
        (np.full((SIZE, SIZE), 0.5, np.float32), "grey values of type float32"),
        (np.full((SIZE, SIZE), -5, np.int32), "from -5 to -5, not 0 to 65535"),
        (np.full((SIZE, SIZE), 65536, np.int32), "from 65536 to 65536, not 0 to 65535"),
    ],
)
def test_films_with_values_far_below_their_range_are_refused(values, problem, tmp_path):
    Image.fromarray(values).save(tmp_path / "film.tif")
    with pytest.raises(OSError, match=problem):
        chestxray14.reduce_film(tmp_path / "film.tif", SIZE)


def upper_case(raw):
    for path in list(raw.rglob("*.png")):
        path.rename(path.with_name(path.name.upper()))


def unpacked_twice(raw):
    shutil.copytree(raw / "films" / "images_001", raw / "films" / "again")


def link_beside_a_film(raw):
    (raw / "films" / film_name(3, 1)).symlink_to(raw / "nowhere.png")


def folders_in_a_ring(raw):
    (raw / "films" / "images_001" / "all").symlink_to(raw / "films")


def kaggles_lists(raw):
    for name in ("train_val_list", "test_list"):
        (raw / f"{name}.txt").rename(raw / f"{name}_NIH.txt")


def windows_text(raw):
    for path in (raw / "table.csv", *raw.glob("*_list.txt")):
        path.write_bytes(path.read_text().rstrip("\n").replace("\n", "\r\n").encode("utf-16"))


def spreadsheet(raw):
    text = (raw / "table.csv").read_text().replace(",", ";").replace("Image Index", " image_index ")
    text = text.replace("Mass|Hernia", "hernia | Mass").replace("0;1;PA", "0;1.0;PA").replace("0000", "C:\\films\\0000")
    (raw / "table.csv").write_text("\ufeff" + text, encoding="utf-8")


def relist(raw, form):
    for path in raw.glob("*_list.txt"):
        path.write_text(form(path.read_text().split()))


def lists_with_labels(raw):
    relist(raw, lambda films: "Film,Mass,Edema\n" + "\n".join(f"images/{film.upper()},1,0" for film in films))


def lists_as_chexnets(raw):
    relist(raw, lambda films: "\n".join(f"{film} 0 1 0" for film in films))


def lists_in_one_line(raw):
    relist(raw, ", ".join)


def lists_without_endings(raw):
    relist(raw, lambda films: "\n".join(films).replace(".png", ""))


FORMS = [
    upper_case, unpacked_twice, link_beside_a_film, folders_in_a_ring, kaggles_lists, windows_text, spreadsheet,
    lists_with_labels, lists_as_chexnets, lists_in_one_line, lists_without_endings,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_films_tables_and_lists_are_read_as_people_have_them(form, raw):
    def findings(table):
        return [sorted(text.split("|")) for text in table["Finding Labels"]]

    assert prepare(raw) == 0
    form(raw)
    shutil.rmtree(raw.parent / "out" / "films_32px")
    assert prepare(raw, name="form") == 0
    expected, found = (load_set(raw.parent / "out" / name) for name in ("set", "form"))
    assert (found.images == expected.images).all() and findings(found.table) == findings(expected.table)
    columns = ["Image Index", "Patient ID", "split"]
    assert found.table[columns].equals(expected.table[columns])


def test_a_table_of_other_names_has_the_films_of_the_toy_set(raw, monkeypatch):
    monkeypatch.setattr(chestxray14, "TOY_SET", raw / "toy.csv")
    names = [film_name(patient, 1) for patient in (1, 2, 3)]
    pd.DataFrame({"film": names, "split": ["train", "val", "test"]}).to_csv(raw / "toy.csv", index=False)
    edit(raw / "table.csv", ".png", ".PNG")
    table = chestxray14.original_split(chestxray14.read_labels(raw / "table.csv"))
    assert table["Image Index"].to_list() == names and table["split"].to_list() == ["train", "val", "test"]


def test_photos_are_films(raw):
    for path in list(raw.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".JPEG"), quality=95)
        path.unlink()
    assert prepare(raw) == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert abs(prepared.images[0].astype(int) - picture(100).reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))).mean() < 2


def test_a_part_of_the_table_or_of_the_lists_is_told(raw, capsys):
    rows = (raw / "table.csv").read_text().splitlines(keepends=True)
    (raw / "table.csv").write_text("".join(row for row in rows if not row.startswith(film_name(3, 1))))
    assert prepare(raw) == 2
    assert "or leave them out with --skip-bad" in one_error(capsys)
    assert prepare(raw, "--skip-bad") == 0
    assert f"left out: 1 film ({film_name(3, 1)}) of the lists in {raw}, not in the" in capsys.readouterr().out
    edit(raw / "test_list.txt", film_name(9, 1) + "\n", "")
    assert prepare(raw, "--skip-bad", name="part") == 0
    assert f"left out: 1 film ({film_name(9, 1)}) of the label table, in neither list" in capsys.readouterr().out


def test_a_film_of_another_size_among_the_reduced_ones_is_made_again(raw):
    assert prepare(raw) == 0
    Image.new("L", (SIZE, SIZE + 1)).save(raw.parent / "out" / "films_32px" / film_name(3, 1))
    assert prepare(raw, name="other") == 0
    assert bytes_of(raw.parent / "out" / "other") == bytes_of(raw.parent / "out" / "set")


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_different_films_of_one_name_in_archives_are_refused_each_time(kind, raw, archives, capsys):
    films = contents(raw)
    other = {film_name(3, 1).upper(): films[film_name(4, 0)]}
    (archives / "films.ZIP").write_bytes(pack(films, "images"))
    (archives / f"more{kind}").write_bytes(pack(other, "images", kind))
    for _ in range(2):
        assert unpack(raw, archives) == 2
        said = capsys.readouterr().err
        assert all(words in said for words in ("films.ZIP", f"more{kind}", "different files of", "keep one of each"))


def test_equal_archives_count_as_one(raw, archives):
    for path in (archives / "images_01.tar.gz", archives / "deeper" / "IMAGES_01.TGZ"):
        path.write_bytes(pack(contents(raw), "images", ".tar.gz"))
    assert unpack(raw, archives) == unpack(raw, archives, "--archive", 1, name="numbered") == prepare(raw) == 0
    for name in ("packed", "numbered"):
        expected = (raw.parent / "out" / "set" / "images.npy").read_bytes()
        assert (raw.parent / "out" / name / "images.npy").read_bytes() == expected


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_archives_within_archives_are_named(kind, raw, archives, capsys):
    inner = {"IMAGES_002.zip": b"", "images_003.tar.gz": b""}
    (archives / f"films{kind}").write_bytes(pack(halves(raw)[0] | inner, "images", kind))
    assert unpack(raw, archives, lists=False) == 2
    named = f"unpack IMAGES_002.zip in films{kind}, images_003.tar.gz in films{kind}"
    assert f"archives within archives are not read: {named}" in one_error(capsys)


def test_a_place_that_cannot_be_used_is_named(raw, capsys):
    (raw / "file").write_text("")
    assert prepare(raw, "--out", raw / "file") == 2
    assert f"{raw}/file" in one_error(capsys)


def test_without_locks_films_are_prepared_all_the_same(raw, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert prepare(raw) == 0
    assert capsys.readouterr().out.count("warning: ") == 1


def test_a_terminal_without_a_films_letters_ends_no_run(raw, monkeypatch):
    (raw / "films").rename(raw / "filμs")
    (raw / "films").symlink_to(raw / "filμs")
    path_of(raw, film_name(3, 1)).unlink()
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(screen, "ascii", write_through=True))
    assert prepare(raw, "--images", raw / "filμs") == 2
    assert b"fil?s lacks 1 film" in screen.getvalue()


# --- Faults: one line that names file, problem and next step, status 2, no set


def edited(file, old, new):
    """A fault: in a file of raw, `old` becomes `new`."""
    return lambda raw: edit(raw / file, old, new)


def overwritten(file, change):
    """A fault: the bytes of a file of raw become change(bytes)."""
    return lambda raw: path_of(raw, file).write_bytes(change(path_of(raw, file).read_bytes()))


def flip_a_bit(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]


def flip_a_bit_that_decodes(content):
    """Only the chunk's own checksum shows it: here, the checksum is what is changed."""
    content = flip_a_bit(content, len(content) - 13)  # the end of the chunk before IEND, which has 12 bytes
    Image.open(io.BytesIO(content)).load()
    return content


def link_to_nothing(raw, name):
    path_of(raw, name).unlink()
    (raw / "films" / name).symlink_to(raw / "nowhere.png")


def shrink_film(raw):
    Image.new("L", (SIZE - 1, SIZE - 1)).save(path_of(raw, FILM))


def leave_something(raw):
    (raw.parent / "out" / "set").mkdir(parents=True)
    (raw.parent / "out" / "set" / "notes.txt").write_text("mine")


FILM, TESTED = film_name(3, 1), film_name(9, 0)
UNDECODABLE = ("1 film", FILM, "not decodable", "same command", "--skip-bad")
FAULTS = {
    "film lost": (lambda raw: path_of(raw, FILM).unlink(), ("films lacks 1 film", FILM, "--skip-bad")),
    "film cut": (overwritten(FILM, lambda content: content[:-500]), UNDECODABLE),
    "bit": (overwritten(FILM, lambda content: flip_a_bit(content, len(content) // 2)), UNDECODABLE),
    "bit that decodes": (overwritten(FILM, flip_a_bit_that_decodes), UNDECODABLE),
    "dangling link": (lambda raw: link_to_nothing(raw, FILM), (*UNDECODABLE, "a link to nothing")),
    "small film": (shrink_film, ("1 film", FILM, "smaller than 32 px", "--size")),
    "two films": (
        lambda raw: Image.fromarray(255 - picture(1)).save(raw / "films" / FILM),
        ("different files of 1 film", FILM, "images_002", "keep one"),
    ),
    "finding": (
        edited("table.csv", f"{FILM},Mass|Hernia", f"{FILM},Mass|Cough"),
        ("table.csv", "unknown findings", FILM, "Cough", "correct"),
    ),
    "two rows": (
        overwritten("table.csv", lambda rows: rows + f"{FILM},No Finding,1,3,PA,\n".encode()),
        ("table.csv", "more than one row", FILM, "correct"),
    ),
    "column": (
        edited("table.csv", "Patient ID", "Patient"),
        ("table.csv", "no column 'Patient ID'", "'View Position'", "nearest is 'Patient'", "official"),
    ),
    "two columns": (
        edited("table.csv", "Patient ID,View Position", "patient_id,PatientID"),
        ("table.csv", "'patient_id' and 'PatientID'", "name one of them 'Patient ID'"),
    ),
    "patient": (edited("table.csv", "1,3,PA", "1,,PA"), ("table.csv", "not a number", FILM, "correct")),
    "table cut": (
        overwritten("table.csv", lambda rows: rows[: rows.index(FILM.encode()) + 16]),
        ("table.csv", FILM, "download it again"),
    ),
    "table lost": (lambda raw: (raw / "table.csv").unlink(), ("table.csv is missing", "--labels")),
    "no text": (overwritten("table.csv", lambda _: b"\xff\xfe\x00,\n"), ("table.csv", "neither UTF-8 nor UTF-16")),
    "list lost": (
        lambda raw: (raw / "test_list.txt").rename(raw / "tests.txt"),
        ("test_list.txt is missing", "nearest there is tests.txt", "--lists"),
    ),
    "unknown film": (
        edited("test_list.txt", TESTED, "99999999_000.png"),
        ("99999999_000.png", "label table", "official", "--skip-bad"),
    ),
    "listed twice": (edited("test_list.txt", TESTED, FILM), ("more than once", FILM, "official")),
    "no film": (edited("test_list.txt", film_name(10, 0), "none"), ("test_list.txt, line 3: 'none' names no film",)),
    "patient in two splits": (
        edited("table.csv", f"{TESTED},No Finding,0,9", f"{TESTED},No Finding,0,3"),
        ("share", TESTED, "official"),
    ),
    "empty list": (overwritten("test_list.txt", lambda _: b""), ("test_list.txt names no film", "official")),
    "films lost": (lambda raw: (raw / "films").rename(raw / "elsewhere"), ("films is not a folder", "--images")),
    "something there": (leave_something, ("set is there but is no finished set", "--name")),
}
# Found while the films are read, or after: the films that are done stay.
LATE = {"film cut", "bit", "bit that decodes", "dangling link", "small film"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_with_one_line_and_makes_no_set(fault, raw, capsys):
    change, words = FAULTS[fault]
    change(raw)
    before = set(raw.parent.rglob("*"))
    assert prepare(raw, *(["--skip-bad"] if "--skip-bad" not in words else [])) == 2  # skips only those two
    said = one_error(capsys)
    for word in words:
        assert word in said
    left = {path.name for path in set(raw.parent.rglob("*")) - before if path.parent.name != "films_32px"}
    assert left == ({"out", "films_32px"} if fault in LATE else set())


def test_the_command_itself_ends_with_status_2_and_no_traceback(raw):
    FAULTS["film cut"][0](raw)
    command = [*COMMAND, "--images", raw / "films", "--labels", raw / "table.csv", "--size", str(SIZE)]
    done = subprocess.run([*command, "--out", raw.parent / "out"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in (raw.parent / "out").iterdir()] == ["films_32px"]


@pytest.mark.parametrize("name", ["../other", "a/b", "", "films_32px"])
def test_a_name_is_one_folder(name, raw, capsys):
    assert prepare(raw, name=name) == 2
    assert "--name" in one_error(capsys) and not (raw.parent / "out").exists()


def test_many_bad_films_are_counted_and_the_first_named(raw, capsys):
    for patient in range(1, 6):
        path_of(raw, film_name(patient, 0)).unlink()
    assert prepare(raw) == 2
    said = capsys.readouterr().err
    assert "5 films (00000001_000.png, 00000002_000.png, 00000003_000.png, ...)" in said


def test_skip_bad_leaves_out_missing_and_broken_films_only(raw, capsys):
    path_of(raw, film_name(1, 0)).unlink()
    FAULTS["film cut"][0](raw)
    link_to_nothing(raw, film_name(5, 1))
    assert prepare(raw, "--skip-bad") == 0
    prepared = load_set(raw.parent / "out" / "set")
    left_out = {film_name(1, 0), film_name(3, 1), film_name(5, 1)}
    assert len(prepared.table) == PATIENTS * FILMS - 3 and not left_out & set(prepared.table["Image Index"])
    for row, name in enumerate(prepared.table["Image Index"]):  # the films after the gap are still their own
        assert (prepared.images[row] == chestxray14.reduce_film(path_of(raw, name), SIZE)).all()
    said = capsys.readouterr().out
    assert f"1 film ({film_name(1, 0)}) missing" in said
    assert f"2 films ({film_name(3, 1)}, {film_name(5, 1)}) not decodable" in said
    skipped = json.loads((raw.parent / "out" / "set" / "source.json").read_text())["skipped"]
    assert skipped == {"missing": [film_name(1, 0)], "undecodable": [film_name(3, 1), film_name(5, 1)]}


# --- Archives on disk


def pack(films, folder, kind=".zip"):
    """{name: content} -> the bytes of a zip or tar.gz with the films below `folder`, and a long text at the end, so
    that no film lies in the last 64 KiB of the zip, which are read to find its directory.
    """
    films = films | {"licence.txt": random.Random(0).randbytes(70000)}
    packed = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in films.items():
                archive.writestr(f"{folder}/{name}", content)
            archive.filelist.reverse()  # its directory need not be in the order of the films
        return packed.getvalue()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in films.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def contents(raw):
    """{name: content} of raw's films, sorted."""
    return {path.name: path.read_bytes() for path in sorted(raw.rglob("*.png"), key=lambda path: path.name)}


def halves(raw):
    """The films of patients 1 to 5, and those of 6 to 10."""
    films = contents(raw)
    return [{name: films[name] for name in list(films)[k : k + 10]} for k in (0, 10)]


def some_patients(raw):
    """The films of all patients but 1 and 6. To divide these patients anew would give another split."""
    return {name: content for name, content in contents(raw).items() if int(name[:8]) not in (1, 6)}


def corrupt(content, name):
    """The zip `content` with one bit of the member `name` flipped."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (member,) = (member for member in archive.infolist() if member.filename.endswith(name))
    changed = bytearray(content)
    changed[member.header_offset + 60 + len(member.filename) + member.compress_size // 2] ^= 1
    return bytes(changed)


@pytest.fixture
def archives(raw):
    """The folder raw/archives, for the archives of a test."""
    (raw / "archives" / "deeper").mkdir(parents=True)
    return raw / "archives"


def unpack(raw, archives, *more, lists=True, name="packed"):
    """Prepare the films of `archives` as the set `out`/`name`; returns the exit status."""
    options = ["--archives", archives, "--labels", raw / "table.csv", *(["--lists", raw] if lists else [])]
    return run(*options, "--size", SIZE, "--out", raw.parent / "out", "--name", name, *more)


@pytest.mark.parametrize("kinds", [(".zip", ".zip"), (".tar.gz", ".tar.gz"), (".zip", ".tar.gz")])
def test_archives_give_the_same_films(kinds, raw, archives):
    for k, kind in enumerate(kinds):
        (archives / ("", "deeper")[k] / f"films_{k}{kind}").write_bytes(pack(halves(raw)[k], f"images_{k}", kind))
    assert unpack(raw, archives, "--out", raw.parent / "unpacked") == 0
    assert prepare(raw) == 0
    for name in ("images.npy", "labels.csv"):
        expected = (raw.parent / "out" / "set" / name).read_bytes()
        assert (raw.parent / "unpacked" / "packed" / name).read_bytes() == expected


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
@pytest.mark.parametrize("lists", [True, False], ids=["lists", "by patient"])
def test_one_archive_gives_its_films_with_the_split_of_the_whole(lists, kind, cores, raw, archives, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    films = some_patients(raw)
    (archives / f"images_001{kind}").write_bytes(pack(films, "images", kind))
    other = archives / "deeper" / f"images_{'11' if kind == '.tar.gz' else '011'}{kind}"
    other.write_bytes(pack(halves(raw)[1], "images", kind))
    assert unpack(raw, archives / f"images_001{kind}", lists=lists) == 0
    assert unpack(raw, archives, "--archive", 1, lists=lists, name="numbered") == 0
    assert prepare(raw, lists=lists) == 0
    whole, packed, numbered = (load_set(raw.parent / "out" / name) for name in ("set", "packed", "numbered"))
    assert packed.table["Image Index"].to_list() == list(films)
    rows = whole.table["Image Index"].isin(films).to_numpy()
    assert (packed.images == whole.images[rows]).all() and (numbered.images == packed.images).all()
    assert packed.table.equals(whole.table[rows].reset_index(drop=True)) and numbered.table.equals(packed.table)


@pytest.mark.parametrize("number, words", [(3, "images_003.zip or images_03.tar.gz"), (13, "1 to 12"), (0, "1 to 12")])
def test_an_archive_that_is_not_there_is_named(number, words, raw, archives, capsys):
    (archives / "images_001.zip").write_bytes(pack(contents(raw), "images"))
    assert unpack(raw, archives, "--archive", number) == 2
    assert words in one_error(capsys)


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"<html>" * 1000,
        lambda packed: packed.replace(b"PK\1\2", b"PK\1\3"),  # its directory
        lambda packed: re.sub(
            b"(PK\1\2..).", lambda head: head[1] + b"\xff", packed, flags=re.DOTALL
        ),  # the version that it asks for
    ],
    ids=["page", "directory", "version"],
)
def test_an_archive_that_cannot_be_read_is_named(kind, damage, raw, archives, capsys):
    (archives / f"films{kind}").write_bytes(damage(pack(contents(raw), "images")))
    for path in (archives, archives / f"films{kind}"):
        assert unpack(raw, path) == 2
        assert f"films{kind}" in one_error(capsys)
    assert unpack(raw, archives / "deeper") == 2
    assert "has no .zip or .tar.gz" in one_error(capsys)


def damage_checksum(content):
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]


@pytest.mark.parametrize("damage", [damage_checksum, lambda content: content[:-3000]], ids=["checksum", "end"])
def test_films_of_a_damaged_tar_do_not_count(damage, raw, archives, capsys):
    first, second = (pack(half, "images", ".tar.gz") for half in halves(raw))
    (archives / "films_1.tar.gz").write_bytes(damage(first))
    (archives / "films_2.tar.gz").write_bytes(second)
    assert unpack(raw, archives, "--skip-bad") == 2  # skips no archive
    said = one_error(capsys)
    assert "10 films (00000001_000.png" in said and "missing" in said and "films_1.tar.gz" in said
    reduced = raw.parent / "out" / "films_32px"
    assert {path.name for path in reduced.glob("*.png")} == set(halves(raw)[1])
    assert (reduced / "missing.txt").read_text().split() == list(halves(raw)[0])
    assert not list(reduced.glob("unfinished*"))
    (archives / "films_1.tar.gz").write_bytes(first)
    assert unpack(raw, archives) == 0 and prepare(raw) == 0
    assert not (reduced / "missing.txt").exists()


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_a_damaged_film_of_an_archive_does_not_count(kind, raw, archives, capsys):
    films = contents(raw)
    if kind == ".zip":
        (archives / "films.zip").write_bytes(corrupt(pack(films, "images"), film_name(3, 1)))
    else:
        (archives / "films.tar.gz").write_bytes(pack(films | {film_name(3, 1): b"no film"}, "images", kind))
    assert unpack(raw, archives) == 2
    said = one_error(capsys)
    assert f"1 film ({film_name(3, 1)}) not decodable" in said and "--skip-bad" in said
    assert unpack(raw, archives, "--skip-bad") == 0
    assert f"1 film ({film_name(3, 1)}) not decodable" in capsys.readouterr().out
    table = load_set(raw.parent / "out" / "packed").table
    assert table["Image Index"].to_list() == [name for name in films if name != film_name(3, 1)]


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_names_in_archives_are_no_paths(kind, raw, archives):
    names = {}
    for k, (name, content) in enumerate(contents(raw).items()):
        names[f"{('../../..', '/', str(raw.parent), 'a/../..')[k % 4]}/{name}"] = content
    names |= {"../../films_32px/lock": b"x", "../escaped.txt": b"x", "/escaped.txt": b"x"}
    (archives / f"films{kind}").write_bytes(pack(names, "..", kind))
    before = set(raw.parent.rglob("*"))
    assert unpack(raw, archives) == 0
    new = {path.name for path in set(raw.parent.rglob("*")) - before}
    assert new - set(contents(raw)) == {
        "out", "packed", "images.npy", "labels.csv", "source.json", "films_32px", "lock",
    }  # fmt: skip
    assert not Path("/escaped.txt").exists() and not (raw.parent / "out" / "films_32px" / "lock").read_bytes()


@pytest.mark.parametrize("kind, lie", [(".zip", False), (".zip", True), (".tar.gz", False)])
def test_bombs_are_not_unpacked(kind, lie, raw, archives, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "MAX_MEMBER", 1 << 20)
    content = contents(raw)[film_name(1, 0)] + bytes(40 << 20)  # a film, and far more
    packed = pack({film_name(1, 0): content}, "x", kind)
    if lie:  # it says that it has 1000 bytes
        packed = packed.replace(len(content).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    (archives / f"films{kind}").write_bytes(packed)
    tracemalloc.start()
    assert unpack(raw, archives) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert f"1 film ({film_name(1, 0)}) not decodable" in capsys.readouterr().err


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
    monkeypatch.setattr(chestxray14, "TOY_SET", raw / "toy.csv")
    with serve() as server:
        for k, half in enumerate(halves(raw)):
            server.files[ZIPS[k]] = pack(half, f"images_{k}")
        server.files[CSV] = (raw / "table.csv").read_bytes()
        for name in chestxray14.LISTS:
            server.files[f"/mirror/{name}"] = (raw / name).read_bytes()
        constants = {"MIRROR": f"{server.url}/moved/mirror/", "ARCHIVES": (1, 2), "THREADS": 2}
        for name, value in (constants | {"WAIT": 0.001, "TRIES": 3}).items():
            monkeypatch.setattr(fetch, name, value)
        yield Site(server, raw, raw.parent / "out", list(films)[:18], films)


def download(site, *more):
    return run("--download", "--size", SIZE, "--out", site.out, "--name", "set", *more)


def member_bytes(site):
    """Bytes sent of members of zips: all but their directories."""
    return sum(size for path, part, size in site.server.log if ".zip" in path and not part.startswith("bytes=-"))


@pytest.fixture
def undisturbed(site):
    """The bytes of the set that an undisturbed download makes; what it asked is forgotten."""
    assert download(site, "--out", site.out / "undisturbed") == 0
    site.server.log.clear()
    return bytes_of(site.out / "undisturbed" / "set")


def test_one_command_downloads_the_toy_set_and_nothing_more(site, tmp_path, capsys):
    assert download(site) == 0
    prepared = load_set(site.out / "set")
    assert prepared.table["Image Index"].to_list() == site.small
    assert prepared.table["split"].to_list() == ["train"] * 10 + ["val"] * 4 + ["test"] * 4
    for image, name in zip(prepared.images, site.small, strict=True):
        assert (image == chestxray14.reduce_film(path_of(site.raw, name), SIZE)).all()
    assert "Hernia" in capsys.readouterr().out
    source = json.loads((site.out / "set" / "source.json").read_text())
    assert source["counts"] == count_findings(prepared.table) and source["split"] == "original"
    assert site.server.asked(".txt") == 0
    assert member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small)  # nothing else, and once
    films = [part for path, part, _ in site.server.log if path == ZIPS[0] and not part.startswith("bytes=-")]
    starts = [int(part.split("=")[1].split("-")[0]) for part in films]
    assert starts == sorted(starts)
    assert site.server.asked("/moved/mirror/images") == 2  # where an archive has moved to is asked once

    arguments = ["--dataset", "set", "--data", site.out, "--out", tmp_path / "runs", "--device", "cpu", "--epochs", 1]
    arguments += ["--c", 4, "--layers", 4, "--crop", SIZE, "--batch-size", 2]
    search_train.main(parse_settings(REPO / "search_train.py", [str(argument) for argument in arguments]))
    assert (tmp_path / "runs" / "search_first_order" / "genotype.txt").exists()


def test_all_films_are_divided_by_the_official_lists(site):
    assert download(site, "--split", "all") == 0
    assert prepare(site.raw, "--out", site.out / "images") == 0
    for name in ("images.npy", "labels.csv"):
        assert (site.out / "set" / name).read_bytes() == (site.out / "images" / "set" / name).read_bytes()


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "by patient"])
def test_one_archive_of_the_mirror_is_that_archive_on_disk(lists, site, archives):
    films = some_patients(site.raw)
    packed = pack(films | {"00009999_000.png": b"not in the label table"}, "images")
    site.server.files = {ZIPS[1]: packed, CSV: site.server.files[CSV]}
    (archives / "images_002.zip").write_bytes(packed)
    assert download(site, "--archive", 2, *(["--lists", site.raw] if lists else [])) == 0
    assert unpack(site.raw, archives / "images_002.zip", "--out", site.out / "disk", lists=lists) == 0
    for name in ("images.npy", "labels.csv"):
        assert (site.out / "set" / name).read_bytes() == (site.out / "disk" / "packed" / name).read_bytes()
    assert load_set(site.out / "set").table["Image Index"].to_list() == list(films)
    assert member_bytes(site) < sum(len(content) + 200 for content in films.values())


def test_what_is_given_is_not_fetched(site):
    assert download(site, "--labels", site.raw / "table.csv", "--lists", site.raw, "--split", "all") == 0
    assert not site.server.asked("csv") and not site.server.asked(".txt")


def test_a_label_table_without_films_of_the_toy_set_is_refused(site, capsys):
    edit(site.raw / "table.csv", film_name(3, 1), "00009999_000.png")
    assert download(site, "--labels", site.raw / "table.csv") == 2
    said = one_error(capsys)
    assert f"1 film ({film_name(3, 1)}) of the toy set" in said and "official" in said


# --- What a network does


def cut_zip(site):
    site.server.cuts[ZIPS[0]] = [None, None, 100, None, 5000, None, 0]


def cut_directory(site):
    site.server.cuts[ZIPS[0]] = [None, 1000]


def cut_table_twice(site):
    site.server.cuts[CSV] = [300, 0]


def refuse_for_a_while(site):
    site.server.status |= {ZIPS[0]: [503, 500], ZIPS[1]: [429], CSV: [502]}


def move_often(site):
    site.server.moves = 4


PASSING = [cut_zip, cut_directory, cut_table_twice, refuse_for_a_while, move_often]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.__name__)
def test_what_passes_leaves_no_trace(fault, site, undisturbed):
    fault(site)
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert not any(site.server.status.values()) and not any(site.server.cuts.values())  # and it happened


def lose_archive(site):
    del site.server.files[ZIPS[0]]


def garble_archive(site):
    site.server.files[ZIPS[0]] = b"<html>" * 1000


def overload_archive(site):
    site.server.status[ZIPS[0]] = [503] * 100


def ignore_ranges(site):
    site.server.ranges = False


def corrupt_member(site):
    site.server.files[ZIPS[0]] = corrupt(site.server.files[ZIPS[0]], film_name(3, 1))


def lose_member(site):
    films = {name: content for name, content in site.content.items() if name != film_name(3, 1)}
    site.server.files[ZIPS[0]] = pack(films, "x")


def lose_table_of_mirror(site):
    del site.server.files[CSV]


def answer_with_a_page(site):
    site.server.files[CSV] = b"<html>Log in to go on.</html>"


BY_HAND = ("by hand", "https://nihcc.app.box.com/v/ChestXray-NIHCC", "same command")
LASTING = {
    lose_archive: ("10 films (00000001_000.png", "missing", "images_001.zip", "404", "--archives", *BY_HAND),
    garble_archive: ("10 films", "images_001.zip", "--archives", *BY_HAND),
    overload_archive: ("10 films", "images_001.zip", "503", "--archives", *BY_HAND),
    ignore_ranges: ("18 films", "images_001.zip", "range", "--archives", *BY_HAND),
    corrupt_member: ("download", "1 film", film_name(3, 1), "not decodable", "same command", "--skip-bad"),
    lose_member: ("download", "1 film", film_name(3, 1), "missing", "same command", "--skip-bad"),
    lose_table_of_mirror: ("Data_Entry_2017_v2020.csv", "404", "--labels", *BY_HAND[:2]),
    answer_with_a_page: ("Data_Entry_2017_v2020.csv", "no column"),
}


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: fault.__name__)
def test_what_lasts_is_named_and_the_same_command_goes_on(fault, site, undisturbed, capsys):
    whole = dict(site.server.files)
    fault(site)
    capsys.readouterr()
    assert download(site) == 2
    said = one_error(capsys)
    for words in LASTING[fault]:
        assert words in said
    assert not (site.out / "set").exists()
    site.server.files, site.server.ranges = whole, True
    site.server.status.clear()
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed


def test_a_lost_archive_is_named_before_its_films_are_known(site, capsys):
    lose_archive(site)
    assert download(site, "--archive", 1) == 2
    said = one_error(capsys)
    assert all(words in said for words in ("images_001.zip", "404", "--archives", *BY_HAND[:2]))


def test_skip_bad_leaves_out_a_bad_member_but_no_archive(site, capsys):
    whole = site.server.files[ZIPS[0]]
    lose_archive(site)
    assert download(site, "--skip-bad") == 2
    assert "10 films" in capsys.readouterr().err and not (site.out / "set").exists()
    site.server.files[ZIPS[0]] = whole
    corrupt_member(site)
    assert download(site, "--skip-bad") == 0
    left = [name for name in site.small if name != film_name(3, 1)]
    assert load_set(site.out / "set").table["Image Index"].to_list() == left
    assert f"1 film ({film_name(3, 1)}) not decodable" in capsys.readouterr().out


# --- Stopped and started again


def test_only_what_is_missing_is_transferred(site, undisturbed):
    whole = dict(site.server.files)
    lose_archive(site)
    assert download(site) == 2
    site.server.files = whole
    site.server.log.clear()
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert 0 < member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small[:10])
    site.server.log.clear()
    shutil.rmtree(site.out / "set")
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed and not site.server.asked(".zip")


def test_a_second_process_is_refused(site, capsys):
    (site.out / "films_32px").mkdir(parents=True)
    with FileLock(site.out / "films_32px" / "lock"):
        assert download(site) == 2
    assert "another process works there" in one_error(capsys) and not site.server.asked(".zip")
    assert download(site) == 0


def test_too_little_disk_is_said_first(site, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    need = 3 * 18 * SIZE**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need - 1))
    assert download(site) == 2
    assert "GB" in one_error(capsys) and not site.server.asked(".zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need))
    assert download(site) == 0


def test_a_full_disk_is_no_fault_of_the_mirror(site, undisturbed, monkeypatch, capsys):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert download(site) == 2
    said = one_error(capsys)
    assert "films_32px: No space left" in said and "--out" in said and "mirror" not in said
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed


DRIVER = """
import json, os, sys
from data import fetch_chestxray14, prepare_chestxray14
for line in sys.stdin:
    constants, toy, options = json.loads(line)
    if not (child := os.fork()):
        prepare_chestxray14.TOY_SET = toy
        for name, value in constants.items():
            setattr(fetch_chestxray14, name, value)
        os._exit(prepare_chestxray14.main(options))
    print(child, flush=True)
    sys.stdin.readline()  # until then its number is not given to another process
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""  # imports once; each run is a process of its own


LONG = [pytest.param(origin, 20, marks=pytest.mark.long) for origin in ("mirror", "images", "zip", "tar.gz")]


@pytest.mark.parametrize(("origin", "all_stops"), [("mirror", 4), ("tar.gz", 4), *LONG])
def test_stopped_at_any_moment_it_ends_in_the_same_bytes(origin, all_stops, site, archives, undisturbed):
    random_moment = random.Random(origin)  # the moments differ all the same, as runs do
    constants = {"MIRROR": f"{site.server.url}/mirror/", "ARCHIVES": [1, 2], "THREADS": 2}
    options = ["--size", SIZE, "--out", site.out, "--name", "set", "--split", "original"]
    if origin == "mirror":
        options.append("--download")
        site.server.delay = 0.01
    else:
        films = site.raw / "films" if origin == "images" else archives
        options += ["--images" if origin == "images" else "--archives", films, "--labels", site.raw / "table.csv"]
        for k, half in enumerate(halves(site.raw)):
            (archives / f"films_{k}.{origin}").write_bytes(pack(half, "images", f".{origin}"))
    line = json.dumps([constants, str(site.raw / "toy.csv"), [str(option) for option in options]]) + "\n"
    command = [sys.executable, "-c", DRIVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=REPO, text=True, **pipes) as driver:

        def tell(text):
            """Send a line to the driver; returns the number that it answers."""
            driver.stdin.write(text)
            driver.stdin.flush()
            while not (said := driver.stdout.readline()).strip().lstrip("-").isdigit():  # the lines of the run itself
                assert said
            return int(said)

        def start_afresh():
            for folder in ("set", "films_32px"):
                shutil.rmtree(site.out / folder)

        tell(line)
        began = time.perf_counter()
        assert tell("\n") == 0
        whole = time.perf_counter() - began
        expected, stops = bytes_of(site.out / "set"), 0
        for name in ("images.npy", "labels.csv"):
            assert expected[name] == undisturbed[name]
        start_afresh()
        while stops < all_stops:
            child = tell(line)
            time.sleep(random_moment.uniform(0, 0.8 * whole))
            os.kill(child, random_moment.choice((signal.SIGKILL, signal.SIGINT)))
            if tell("\n"):
                stops += 1
            else:  # it had ended before
                assert bytes_of(site.out / "set") == expected
                start_afresh()
        tell(line)
        assert tell("\n") == 0
        assert bytes_of(site.out / "set") == expected
        assert {path.name for path in site.out.iterdir()} == {"undisturbed", "set", "films_32px"}
        assert {path.name for path in (site.out / "films_32px").iterdir()} == {"lock", *site.small}
        driver.stdin.close()
