"""Preparing ChestX-ray14: real films and labels end to end, every film mode, one clear line for each fault; and the
download, from a server on loopback."""

import fcntl
import gzip
import io
import itertools
import json
import os
import random
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
from PIL import Image

import search_train
from data import prepare_chestxray14 as chestxray14
from dataset import FINDINGS, SPLITS, count_findings, encode_findings, load_set
from support.settings import parse_settings
from tests.loopback import serve

REPO = Path(__file__).parents[1]
MINI = REPO.parent / "shared" / "nih_mini"
FULL_TABLE = REPO.parent / "shared" / "Data_Entry_2017_v2020.csv.gz"
ORIGINAL = REPO.parent / "shared" / "original_split"
SIZE = 32  # of the prepared films, px; the films made here are four times as large
PATIENTS, FILMS = 10, 2  # films per patient
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position,"  # 2017: ends in a comma


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


def run(raw, *more, lists=True):
    """Prepare raw's films as the set `out`/set beside them; returns the exit status."""
    options = ["--images", raw / "films", "--labels", raw / "table.csv", "--size", SIZE]
    options += ["--out", raw.parent / "out", "--name", "set", *(["--lists", raw] if lists else []), *more]
    return chestxray14.main([str(option) for option in options])


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Real films and labels


@pytest.mark.skipif(not MINI.is_dir(), reason="shared/nih_mini, real ChestX-ray14 films, is not there")
def test_real_films_become_a_set_with_the_official_test_list(tmp_path):
    table = MINI / "Data_Entry_2017_v2020.csv"
    command = [sys.executable, REPO / "data" / "prepare_chestxray14.py", "--images", MINI / "images"]
    command += ["--labels", table, "--lists", MINI, "--size", "64", "--name", "nih_mini", "--out", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
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


def test_16_bit_films_use_the_whole_range_of_grey_values(tmp_path):
    ramp = np.linspace(0, 65535, SIZE).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (SIZE, 1))).save(tmp_path / "film.png")
    reduced = chestxray14.reduce_film(tmp_path / "film.png", SIZE)
    assert (reduced[0] == np.round(ramp / 257)).all()


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
    assert run(raw) == 0
    prepared = load_set(raw.parent / "out" / "set")
    assert len(prepared.table) == PATIENTS * FILMS
    for row, name in enumerate(prepared.table["Image Index"]):
        assert (prepared.images[row] == chestxray14.reduce_film(path_of(raw, name), SIZE)).all()
        assert prepared.table["Finding Labels"][row] == ("No Finding", "Mass|Hernia")[int(name[-5])]
        assert prepared.table["Patient ID"][row] == int(name[:8])
    assert set(prepared.table["Patient ID"][prepared.rows("test")]) == {9, 10}
    assert prepared.table["Patient ID"][prepared.rows("val")].nunique() == 2  # of 8
    assert [path.name for path in (raw.parent / "out").iterdir()] == ["set"]
    source = json.loads((raw.parent / "out" / "set" / "source.json").read_text())
    assert source["origin"] == {"films": "films", "labels": "table.csv", "lists": True}
    assert str(raw.parent) not in json.dumps(source)


def test_without_lists_patients_are_divided_and_it_says_so(raw, capsys):
    assert run(raw, lists=False) == 0
    table = load_set(raw.parent / "out" / "set").table  # refuses a patient in two splits
    patients = table.groupby("split")["Patient ID"].nunique()
    assert patients.to_dict() == {"train": 7, "val": 1, "test": 2}
    assert len(table) == PATIENTS * FILMS
    assert "not the official split" in capsys.readouterr().out


def test_the_lists_choose_the_films(raw):
    edit(raw / "train_val_list.txt", film_name(1, 0) + "\n", "")
    path_of(raw, film_name(1, 0)).unlink()  # not listed: not needed
    assert run(raw) == 0
    assert film_name(1, 0) not in set(load_set(raw.parent / "out" / "set").table["Image Index"])


def test_a_seed_draws_the_same_patients_and_another_seed_others(raw):
    table = chestxray14.read_labels(raw / "table.csv")
    splits = [chestxray14.assign_splits(table, None, seed)["split"].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for seed in range(5):
        listed = chestxray14.assign_splits(table, raw, seed)
        patients = listed.groupby("split")["Patient ID"].nunique()
        assert patients.to_dict() == {"train": 6, "val": 2, "test": 2}  # val: of the 8 patients of train_val


def test_a_gzipped_table_is_read_alike(raw):
    packed = raw / "table.csv.gz"
    packed.write_bytes(gzip.compress((raw / "table.csv").read_bytes()))
    assert chestxray14.read_labels(packed).equals(chestxray14.read_labels(raw / "table.csv"))


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
        assert run(raw, "--out", raw.parent / f"out{cores}") == 0
        sets.append(bytes_of(raw.parent / f"out{cores}" / "set"))
    assert sets[0] == sets[1]


def test_a_finished_set_is_left_alone(raw, capsys):
    assert run(raw) == 0
    folder = raw.parent / "out" / "set"
    before = bytes_of(folder), (folder / "images.npy").stat().st_mtime_ns
    capsys.readouterr()
    assert run(raw, "--seed", 1) == 0
    assert "left as it is" in capsys.readouterr().out
    assert (bytes_of(folder), (folder / "images.npy").stat().st_mtime_ns) == before


# --- Faults: one line that names file, problem and next step, status 2, no set


def lose_film(raw):
    path_of(raw, film_name(3, 1)).unlink()


def break_film(raw):
    path = path_of(raw, film_name(3, 1))
    path.write_bytes(path.read_bytes()[:-500])


def flip_a_bit(raw):
    path = path_of(raw, film_name(3, 1))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shrink_film(raw):
    Image.new("L", (SIZE - 1, SIZE - 1)).save(path_of(raw, film_name(3, 1)))


def repeat_film(raw):
    path = path_of(raw, film_name(3, 1))
    (raw / "films" / path.name).write_bytes(path.read_bytes())


def rename_finding(raw):
    edit(raw / "table.csv", f"{film_name(3, 1)},Mass|Hernia", f"{film_name(3, 1)},Mass|Cough")


def repeat_row(raw):
    rows = (raw / "table.csv").read_text()
    (raw / "table.csv").write_text(rows + f"{film_name(3, 1)},No Finding,1,3,PA,\n")


def rename_column(raw):
    edit(raw / "table.csv", "Patient ID", "Patient")


def lose_patient(raw):
    edit(raw / "table.csv", "1,3,PA", "1,,PA")


def cut_table(raw):
    rows = (raw / "table.csv").read_text()
    (raw / "table.csv").write_text(rows[: rows.index(film_name(3, 1)) + 16])


def lose_table(raw):
    (raw / "table.csv").unlink()


def garble_table(raw):
    (raw / "table.csv").write_bytes(b"\xff\xfe\x00,\n")


def lose_list(raw):
    (raw / "test_list.txt").unlink()


def list_unknown_film(raw):
    edit(raw / "test_list.txt", film_name(9, 0), "99999999_000.png")


def list_film_twice(raw):
    edit(raw / "test_list.txt", film_name(9, 0), film_name(3, 1))


def share_patient(raw):
    edit(raw / "table.csv", f"{film_name(9, 0)},No Finding,0,9", f"{film_name(9, 0)},No Finding,0,3")


def empty_split(raw):
    (raw / "test_list.txt").write_text("")


def lose_films(raw):
    (raw / "films").rename(raw / "elsewhere")


def leave_something(raw):
    (raw.parent / "out" / "set").mkdir(parents=True)
    (raw.parent / "out" / "set" / "notes.txt").write_text("mine")


FAULTS = {
    lose_film: ("films lacks 1 film", film_name(3, 1), "--skip-bad"),
    break_film: ("1 film", film_name(3, 1), "not decodable", "same command", "--skip-bad"),
    flip_a_bit: ("1 film", film_name(3, 1), "not decodable", "same command", "--skip-bad"),
    shrink_film: ("1 film", film_name(3, 1), "smaller than 32 px", "--size"),
    repeat_film: ("more than one file of 1 film", film_name(3, 1), "images_002", "keep one"),
    rename_finding: ("table.csv", "unknown findings", film_name(3, 1), "Cough", "mend"),
    repeat_row: ("table.csv", "more than one row", film_name(3, 1), "mend"),
    rename_column: ("table.csv", "no column 'Patient ID'", "official"),
    lose_patient: ("table.csv", "not a number", film_name(3, 1), "mend"),
    cut_table: ("table.csv", film_name(3, 1), "download it anew"),
    lose_table: ("table.csv is missing", "--labels"),
    garble_table: ("table.csv is not a table", "download it anew"),
    lose_list: ("test_list.txt is missing", "--lists"),
    list_unknown_film: ("99999999_000.png", "label table", "official"),
    list_film_twice: ("more than once", film_name(3, 1), "official"),
    share_patient: ("share", film_name(9, 0), "official"),
    empty_split: ("no film", "'test'", "films"),
    lose_films: ("films is not a folder", "--images"),
    leave_something: ("set is there but is no finished set", "--name"),
}


# Found while the films are read, or after: what is done stays in the working folder.
LATE = {break_film, flip_a_bit, shrink_film, empty_split}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_stops_with_one_line_and_makes_no_set(fault, raw, capsys):
    fault(raw)
    before = sorted(raw.parent.rglob("*"))
    assert run(raw, *(["--skip-bad"] if "--skip-bad" not in FAULTS[fault] else [])) == 2  # skips only those two
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.endswith("\n"), said
    for words in FAULTS[fault]:
        assert words in said.err
    left = {path for path in raw.parent.rglob("*") if path.name != "out"} - set(before)
    assert {path for path in left if path.parent.name != "set.part"} == (
        {raw.parent / "out" / "set.part"} if fault in LATE else set()
    )


def test_the_command_itself_ends_with_status_2_and_no_traceback(raw):
    break_film(raw)
    command = [sys.executable, REPO / "data" / "prepare_chestxray14.py", "--images", raw / "films"]
    command += ["--labels", raw / "table.csv", "--size", str(SIZE), "--out", raw.parent / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in (raw.parent / "out").iterdir()] == ["chestxray14.part"]


@pytest.mark.parametrize("name", ["../other", "a/b", ""])
def test_a_name_is_one_folder(name, raw, capsys):
    assert run(raw, "--name", name) == 2
    assert "--name" in capsys.readouterr().err and not (raw.parent / "out").exists()


def test_many_bad_films_are_counted_and_the_first_named(raw, capsys):
    for patient in range(1, 6):
        path_of(raw, film_name(patient, 0)).unlink()
    assert run(raw) == 2
    said = capsys.readouterr().err
    assert "5 films (00000001_000.png, 00000002_000.png, 00000003_000.png, ...)" in said


def test_skip_bad_leaves_out_missing_and_broken_films_only(raw, capsys):
    path_of(raw, film_name(1, 0)).unlink()
    break_film(raw)
    assert run(raw, "--skip-bad") == 0
    prepared = load_set(raw.parent / "out" / "set")
    left_out = {film_name(1, 0), film_name(3, 1)}
    assert len(prepared.table) == PATIENTS * FILMS - 2 and not left_out & set(prepared.table["Image Index"])
    for row, name in enumerate(prepared.table["Image Index"]):  # the films after the gap are still their own
        assert (prepared.images[row] == chestxray14.reduce_film(path_of(raw, name), SIZE)).all()
    said = capsys.readouterr().out
    assert f"1 film ({film_name(1, 0)}) missing" in said and f"1 film ({film_name(3, 1)}) not decodable" in said
    skipped = json.loads((raw.parent / "out" / "set" / "source.json").read_text())["skipped"]
    assert skipped == {"missing": [film_name(1, 0)], "undecodable": [film_name(3, 1)]}


# --- The splits of a toy set


@pytest.fixture(scope="module")
def official():
    if not FULL_TABLE.is_file() or not ORIGINAL.is_dir():
        pytest.skip("shared/, the official label table and the original's lists, is not there")
    return chestxray14.read_labels(FULL_TABLE)


def positives(table):
    counts = count_findings(table)
    return {split: tuple(counts[split][finding] for finding in FINDINGS) for split in SPLITS}


def test_the_original_split_is_that_of_its_lists_with_the_tables_labels(official, tmp_path):
    table, others = chestxray14.original_split(official, ORIGINAL)
    assert others == 0
    assert table["split"].value_counts().to_dict() == chestxray14.ORIGINAL_FILMS
    assert positives(table) == chestxray14.ORIGINAL_POSITIVES
    assert table.groupby("Patient ID")["split"].nunique().max() == 1
    for split in SPLITS:
        films = json.loads((ORIGINAL / f"small_{split}.json").read_text())
        assert set(films) == set(table["Image Index"][table["split"] == split])
        if split == "val":
            first, *_, last = (film for film in films if "|" in films[film]["label"])
            films[first]["label"] += "|Cough"
            films[last]["label"] = "|".join(reversed(films[last]["label"].split("|")))  # the order is no difference
        (tmp_path / f"small_{split}.json").write_text(json.dumps(films))
    assert chestxray14.original_split(official, tmp_path)[1] == 1


@pytest.mark.parametrize(
    "split, content, problem",
    [
        ("val", {film_name(1, 1): {"label": "Mass"}}, "patients are in two splits"),
        ("val", {"99999999_000.png": {"label": "Mass"}}, "does not have 1 film (99999999_000.png)"),
        (
            "val",
            {film_name(1, 0): {"label": "Mass"}},
            f"small_val.json names 1 film ({film_name(1, 0)}) of another list",
        ),
        ("test", {film_name(9, 1): {"labels": "Mass"}}, "small_test.json is not a list"),
        ("test", "<html>", "small_test.json is not a list"),
    ],
)
def test_lists_that_do_not_fit_are_refused(split, content, problem, raw, capsys):
    films = {"train": {film_name(1, 0): {"label": "Mass"}}, "val": {}, "test": {}} | {split: content}
    for name, listed in films.items():
        (raw / f"small_{name}.json").write_text(json.dumps(listed))
    assert run(raw, "--split", "original", "--split-dir", raw) == 2
    said = capsys.readouterr().err
    assert problem in said and said.count("\n") == 1


@pytest.mark.parametrize("lists", [False, True], ids=["by patient", "with lists"])
def test_a_sampled_split_is_like_the_original(lists, official, tmp_path):
    if lists:  # as the official ones: a fifth of the films, whole patients, and not the patients of any seed here
        patients = official["Patient ID"]
        test = patients.isin(np.random.default_rng(99).permutation(patients.unique())[:6161])
        for name, films in (("test_list.txt", test), ("train_val_list.txt", ~test)):
            (tmp_path / name).write_text("\n".join(official["Image Index"][films]))
    assigned = chestxray14.assign_splits(official, tmp_path if lists else None, 0)
    table = chestxray14.sample(assigned, lists, 0)
    assert table["split"].value_counts().to_dict() == chestxray14.ORIGINAL_FILMS
    assert table["Image Index"].is_unique and table["Image Index"].is_monotonic_increasing
    assert table.groupby("Patient ID")["split"].nunique().max() == 1
    rows = official.set_index("Image Index").loc[table["Image Index"]]
    assert rows["Finding Labels"].to_list() == table["Finding Labels"].to_list()
    assert set(table["Image Index"][table["split"] == "test"]) <= set(
        assigned["Image Index"][assigned["split"] == "test"] if lists else official["Image Index"]
    )

    found, *hernia = positives(table), *(positives(table)[split][-1] for split in SPLITS)
    pool = positives(assigned)["test"][-1]
    assert sum(hernia) == 227  # all there are
    if lists:
        assert hernia[2] == pool and abs(hernia[1] / (227 - pool) - 80 / 180) < 0.04
    else:
        assert np.abs(np.divide(hernia, 227) - np.divide((100, 80, 80), 260)).max() < 0.02
    for split in SPLITS:
        assert (np.array(found[split]) >= chestxray14.ORIGINAL_POSITIVES[split])[:-1].all()
    natural = encode_findings(official["Finding Labels"]).mean(axis=0)
    share = np.array(found["train"]) / chestxray14.ORIGINAL_FILMS["train"]
    common = natural > 0.04  # train has room for these as they come
    assert np.abs(share[common] / natural[common] - 1).max() < 0.15

    if lists:
        assert chestxray14.sample(assigned, lists, 0).equals(table)
        assert not chestxray14.sample(assigned, lists, 1).equals(table)
    else:  # pinned: the same films on every platform and with every NumPy
        assert [table["Image Index"][table["split"] == split].to_list()[:3] for split in ("val", "test")] == PINNED


PINNED = [
    ["00000032_004.png", "00000032_014.png", "00000032_023.png"],
    ["00000003_000.png", "00000003_001.png", "00000003_002.png"],
]


def test_a_small_pool_is_sampled_whole(raw):
    assert run(raw, "--split", "sampled") == 0
    table = load_set(raw.parent / "out" / "set").table
    assert len(table) == PATIENTS * FILMS and set(table["Patient ID"][table["split"] == "test"]) == {9, 10}


# --- The download, from a server on loopback


Site = namedtuple("Site", "server raw out zips tars small content")


def pack(films, folder):
    """{name: content} -> the bytes of a zip and of a tar.gz with the films below `folder`, and a long text at the end,
    so that no film lies in the last 64 KiB of the zip, which are read to find its directory.
    """
    films = films | {"licence.txt": random.Random(0).randbytes(70000)}
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in films.items():
            archive.writestr(f"{folder}/{name}", content)
        archive.filelist.reverse()  # its directory need not be in the order of the films
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        for name, content in films.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return zipped.getvalue(), tarred.getvalue()


@pytest.fixture
def site(raw, monkeypatch):
    """A server with raw's films in two archives of each kind, its table, lists, and lists of a toy set of 18 films.

    Patients 1 to 5 are in its train split, 6 and 7 in val, 8 and 9 in test; 10 is not in the toy set.
    """
    films = {path.name: path.read_bytes() for path in sorted(raw.rglob("*.png"), key=lambda path: path.name)}
    names = list(films)
    zips, tars = ["images/images_001.zip", "images/images_002.zip"], ["first.gz", "second.gz"]
    with serve() as server:
        for k in range(2):
            half = {name: films[name] for name in names[10 * k : 10 * k + 10]}
            server.files[f"/mirror/{zips[k]}"], server.files[f"/nih/{tars[k]}"] = pack(half, f"images_{k}")
        server.files["/mirror/Data_Entry_2017_v2020.csv"] = (raw / "table.csv").read_bytes()
        for name in chestxray14.LISTS:
            server.files[f"/mirror/{name}"] = (raw / name).read_bytes()
        for split, patients in {"train": range(1, 6), "val": (6, 7), "test": (8, 9)}.items():
            entries = {name: {"label": "No Finding"} for name in names if int(name[:8]) in patients}
            server.files[f"/split/small_{split}.json"] = json.dumps(entries).encode()
        for name, value in {
            "MIRROR": f"{server.url}/moved/mirror/",
            "MIRROR_FILMS": zips,
            "NIH": f"{server.url}/nih/",
            "NIH_FILMS": tars,
            "ORIGINAL_SPLIT": f"{server.url}/split/",
            "WAIT": 0.001,
            "TRIES": 3,
        }.items():
            monkeypatch.setattr(chestxray14, name, value)
        yield Site(server, raw, raw.parent / "out", zips, tars, names[:18], films)


def download(site, *more):
    options = ["--download", "--size", SIZE, "--out", site.out, "--name", "set", *more]
    return chestxray14.main([str(option) for option in options])


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
    assert [path.name for path in site.out.iterdir()] == ["set"]
    said = capsys.readouterr().out
    assert "Hernia" in said and "9 films have other labels" in said
    source = json.loads((site.out / "set" / "source.json").read_text())
    assert source["counts"] == count_findings(prepared.table)
    assert source["split"] == "original" and source["other_labels"] == 9
    assert site.server.asked("nih") == 0 and site.server.asked(".txt") == 0
    assert member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small)  # nothing else, and once
    films = [part for path, part, _ in site.server.log if path == of_zip(site) and not part.startswith("bytes=-")]
    starts = [int(part.split("=")[1].split("-")[0]) for part in films]
    assert starts == sorted(starts)
    assert site.server.asked("/moved/mirror/images") == 2  # where an archive has moved to is asked once

    arguments = ["--dataset", "set", "--data", site.out, "--out", tmp_path / "runs", "--device", "cpu", "--epochs", 1]
    arguments += ["--c", 4, "--layers", 4, "--crop", SIZE, "--batch-size", 2]
    search_train.main(parse_settings(REPO / "search_train.py", [str(argument) for argument in arguments]))
    assert (tmp_path / "runs" / "search_first_order" / "genotype.txt").exists()


@pytest.mark.parametrize("split", ["all", "sampled"])
def test_other_splits_fetch_the_official_lists(split, site):
    assert download(site, "--split", split) == 0
    table = load_set(site.out / "set").table
    assert len(table) == PATIENTS * FILMS
    assert set(table["Patient ID"][table["split"] == "test"]) == {9, 10}
    assert site.server.asked(".txt") and not site.server.asked("small_")


def test_what_is_given_is_not_fetched(site):
    for split in SPLITS:
        (site.raw / f"small_{split}.json").write_bytes(site.server.files[f"/split/small_{split}.json"])
    assert download(site, "--labels", site.raw / "table.csv", "--split-dir", site.raw) == 0
    assert not site.server.asked("csv") and not site.server.asked("small_")


def test_nihs_archives_give_the_same_bytes(site, undisturbed):
    assert download(site, "--source", "nih") == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert not site.server.asked(".zip")


@pytest.mark.parametrize("kinds", [(".zip", ".zip"), (".tar.gz", ".tar.gz"), (".zip", ".tar.gz")])
def test_archives_on_disk_give_the_same_films(kinds, site):
    for k, kind in enumerate(kinds):
        at = site.raw / "archives" / str(k) / f"films{kind}"
        at.parent.mkdir(parents=True)
        at.write_bytes(site.server.files[f"/mirror/{site.zips[k]}" if kind == ".zip" else f"/nih/{site.tars[k]}"])
    options = ["--archives", site.raw / "archives", "--labels", site.raw / "table.csv", "--lists", site.raw]
    options += ["--size", SIZE, "--out", site.out, "--name", "packed"]
    assert chestxray14.main([str(option) for option in options]) == 0
    assert run(site.raw) == 0
    for name in ("images.npy", "labels.csv"):
        assert (site.out / "packed" / name).read_bytes() == (site.out / "set" / name).read_bytes()
    assert not site.server.log


# --- What a network does


def of_zip(site):
    return f"/mirror/{site.zips[0]}"


def of_tar(site):
    return f"/nih/{site.tars[0]}"


def cut_zip(site):
    site.server.cuts[of_zip(site)] = [None, None, 100, None, 5000, None, 0]


def cut_directory(site):
    site.server.cuts[of_zip(site)] = [None, 1000]


def cut_table(site):
    site.server.cuts["/mirror/Data_Entry_2017_v2020.csv"] = [300, 0]


def cut_tar(site):
    site.server.cuts[of_tar(site)] = [20000, 9000, 0, 30000]


def cut_tar_without_ranges(site):
    site.server.ranges = False
    cut_tar(site)


def damage_tar_once(site):
    content = bytearray(site.server.files[of_tar(site)])
    content[-6] ^= 1  # of the checksum: nothing else would show it
    site.server.once[of_tar(site)] = bytes(content)


def shorten_tar_once(site):
    site.server.once[of_tar(site)] = site.server.files[of_tar(site)][:-3000]


def refuse_for_a_while(site):
    site.server.status |= {of_zip(site): [503, 500], "/split/small_val.json": [502]}


def refuse_tar_for_a_while(site):
    site.server.status[of_tar(site)] = [503, 429, 504]


def move_often(site):
    site.server.moves = 4


PASSING = [(cut_zip, "mirror"), (cut_directory, "mirror"), (cut_table, "mirror"), (move_often, "mirror")]
PASSING += [(cut_tar, "nih"), (cut_tar_without_ranges, "nih"), (damage_tar_once, "nih"), (shorten_tar_once, "nih")]
PASSING += [(refuse_for_a_while, "mirror"), (refuse_tar_for_a_while, "nih")]


@pytest.mark.parametrize("fault, source", PASSING, ids=lambda value: getattr(value, "__name__", value))
def test_what_passes_leaves_no_trace(fault, source, site, undisturbed, capsys):
    fault(site)
    assert download(site, "--source", source) == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert "mirror failed" not in capsys.readouterr().out
    server = site.server  # and it happened
    assert not any(server.status.values()) and not any(server.cuts.values()) and not server.once


def test_a_dropped_connection_is_taken_up_at_its_byte(site, undisturbed):
    cut_tar(site)
    assert download(site, "--source", "nih") == 0
    assert site.server.sent(of_tar(site)) == len(site.server.files[of_tar(site)])


def lose_mirror_archive(site):
    del site.server.files[of_zip(site)]


def garble_mirror_archive(site):
    site.server.files[of_zip(site)] = b"<html>" * 1000


def overload_mirror_archive(site):
    site.server.status[of_zip(site)] = [503] * 100


def ignore_ranges(site):
    site.server.ranges = False


@pytest.mark.parametrize("fault", [lose_mirror_archive, garble_mirror_archive, overload_mirror_archive, ignore_ranges])
def test_where_the_mirror_fails_nih_has_the_films(fault, site, undisturbed, capsys):
    fault(site)
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    said = capsys.readouterr()
    assert said.out.count("the mirror failed") == 1 and "going on with NIH" in said.out and said.err == ""
    if fault is lose_mirror_archive:  # not asked again; what the other archive has is kept
        assert site.server.asked(of_zip(site)) == 2  # redirected, then lost
        assert "404" in said.out


def corrupt(content, name):
    """The zip `content` with one bit of the member `name` flipped."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (member,) = (member for member in archive.infolist() if member.filename.endswith(name))
    changed = bytearray(content)
    changed[member.header_offset + 60 + len(member.filename) + member.compress_size // 2] ^= 1
    return bytes(changed)


def corrupt_member(site):
    site.server.files[of_zip(site)] = corrupt(site.server.files[of_zip(site)], film_name(3, 1))


def lose_member(site):
    films = {name: content for name, content in site.content.items() if name != film_name(3, 1)}
    site.server.files[of_zip(site)] = pack(films, "x")[0]


def lose_everything(site):
    del site.server.files[of_zip(site)], site.server.files[of_tar(site)]


def shorten_tar(site):
    del site.server.files[of_zip(site)]
    site.server.files[of_tar(site)] = site.server.files[of_tar(site)][:-3000]


def lose_table_of_mirror(site):
    del site.server.files["/mirror/Data_Entry_2017_v2020.csv"]


def answer_with_a_page(site):
    site.server.files["/mirror/Data_Entry_2017_v2020.csv"] = b"<html>Log in to go on.</html>"


LASTING = {
    corrupt_member: ("download", "1 film", film_name(3, 1), "not decodable", "same command", "--skip-bad"),
    lose_member: ("download", "1 film", film_name(3, 1), "missing", "same command", "--skip-bad"),
    lose_everything: ("10 films", film_name(1, 0), "missing", "first.gz", "404", "same command"),
    shorten_tar: ("10 films", film_name(1, 0), "missing", "first.gz", "same command"),
    lose_table_of_mirror: ("Data_Entry_2017_v2020.csv", "404", "--labels"),
    answer_with_a_page: ("Data_Entry_2017_v2020.csv", "no column"),
}


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: fault.__name__)
def test_what_lasts_is_named_and_the_same_command_goes_on(fault, site, undisturbed, capsys):
    whole = dict(site.server.files)
    fault(site)
    assert download(site) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    for words in LASTING[fault]:
        assert words in said
    assert not (site.out / "set").exists()
    site.server.files = whole
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed


def test_a_film_that_is_broken_in_a_tar_is_listed_and_tried_again(site, undisturbed):
    whole, first = dict(site.server.files), [name for name in site.content if int(name[:8]) <= 5]
    films = {name: site.content[name] for name in first} | {film_name(3, 1): b"no film"}
    site.server.files["/nih/first.gz"] = pack(films, "images_0")[1]
    assert download(site, "--source", "nih") == 2
    assert (site.out / "set.part" / "missing.txt").read_text().split() == [film_name(3, 1)]
    site.server.files = whole
    assert download(site, "--source", "nih") == 0
    assert bytes_of(site.out / "set") == undisturbed


def test_skip_bad_leaves_out_a_bad_member_but_no_archive(site, capsys):
    lose_everything(site)
    assert download(site, "--skip-bad") == 2
    assert "10 films" in capsys.readouterr().err and not (site.out / "set").exists()
    site.server.files |= {of_zip(site): pack(site.content, "x")[0]}
    corrupt_member(site)
    assert download(site, "--skip-bad") == 0
    assert load_set(site.out / "set").table["Image Index"].to_list() == [
        name for name in site.small if name != film_name(3, 1)
    ]
    assert f"1 film ({film_name(3, 1)}) not decodable" in capsys.readouterr().out


# --- Names and sizes that are not to be trusted


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_names_in_archives_are_no_paths(kind, raw):
    films = {path.name: path.read_bytes() for path in raw.rglob("*.png")}
    names = {
        f"{('../../..', '/', str(raw.parent), 'a/../..')[k % 4]}/{name}": films[name] for k, name in enumerate(films)
    }
    names |= {"../../set.part/done": b"\1" * 20, "../escaped.txt": b"x", "/escaped.txt": b"x"}
    (raw / "archives").mkdir()
    (raw / "archives" / f"films{kind}").write_bytes(pack(names, "..")[kind != ".zip"])
    before = set(raw.parent.rglob("*"))
    options = ["--archives", raw / "archives", "--labels", raw / "table.csv", "--lists", raw]
    options += ["--size", SIZE, "--out", raw.parent / "out", "--name", "set"]
    assert chestxray14.main([str(option) for option in options]) == 0
    assert {path.name for path in set(raw.parent.rglob("*")) - before} == {
        "out", "set", "images.npy", "labels.csv", "source.json",
    }  # fmt: skip
    assert not Path("/escaped.txt").exists()


def bomb(kind, film, lie):
    """An archive whose one member unpacks to a film and far more; lie: it says that it has 1000 bytes."""
    content = film + bytes(40 * chestxray14.MAX_MEMBER)
    packed = pack({film_name(1, 0): content}, "x")[kind != ".zip"]
    return packed.replace(len(content).to_bytes(4, "little"), (1000).to_bytes(4, "little")) if lie else packed


@pytest.mark.parametrize("kind, lie", [(".zip", False), (".zip", True), (".tar.gz", False)])
def test_bombs_are_not_unpacked(kind, lie, raw, monkeypatch, capsys):
    monkeypatch.setattr(chestxray14, "MAX_MEMBER", 1 << 20)
    (raw / "archives").mkdir()
    (raw / "archives" / f"films{kind}").write_bytes(bomb(kind, path_of(raw, film_name(1, 0)).read_bytes(), lie))
    options = ["--archives", raw / "archives", "--labels", raw / "table.csv", "--lists", raw]
    options += ["--size", SIZE, "--out", raw.parent / "out", "--name", "set"]
    tracemalloc.start()
    assert chestxray14.main([str(option) for option in options]) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * chestxray14.MAX_MEMBER
    assert f"1 film ({film_name(1, 0)}) not decodable" in capsys.readouterr().err


# --- Stopped and started again


def test_a_restart_transfers_only_what_is_missing(site, undisturbed, monkeypatch):
    keep = chestxray14.Part.keep
    monkeypatch.setattr(chestxray14, "MIRROR_THREADS", 1)

    def stop_at_the_sixth(part, row, file):
        if part.count() == 5:
            raise KeyboardInterrupt
        return keep(part, row, file)

    monkeypatch.setattr(chestxray14.Part, "keep", stop_at_the_sixth)
    assert download(site) == 130
    monkeypatch.setattr(chestxray14.Part, "keep", keep)
    site.server.log.clear()
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert not site.server.asked("csv") and not site.server.asked("small_")
    assert member_bytes(site) < sum(len(site.content[name]) + 200 for name in site.small[5:])


def test_stopped_before_any_write_it_ends_in_the_same_bytes(raw, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert run(raw, "--out", raw.parent / "undisturbed") == 0
    write = os.pwrite

    def stop_at(last):
        calls = itertools.count(1)

        def pwrite(*arguments):
            if next(calls) == last:
                raise KeyboardInterrupt
            return write(*arguments)

        return pwrite

    for last in range(1, 9):  # each film is written, then its state
        monkeypatch.setattr("os.pwrite", stop_at(last))
        assert run(raw) == 130
        monkeypatch.setattr("os.pwrite", write)
        assert run(raw) == 0
        assert bytes_of(raw.parent / "out" / "set") == bytes_of(raw.parent / "undisturbed" / "set")
        shutil.rmtree(raw.parent / "out" / "set")


def test_once_all_films_are_there_nothing_is_asked(site, undisturbed, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chestxray14, "write_set", stop)
        assert download(site) == 130
    site.server.log.clear()
    assert download(site) == 0
    assert bytes_of(site.out / "set") == undisturbed and not site.server.log


def test_a_tar_that_was_read_is_not_read_again(site, undisturbed):
    whole = dict(site.server.files)
    del site.server.files[f"/nih/{site.tars[1]}"]
    assert download(site, "--source", "nih") == 2
    site.server.files = whole
    site.server.log.clear()
    assert download(site, "--source", "nih") == 0
    assert bytes_of(site.out / "set") == undisturbed
    assert site.server.asked(site.tars[0]) == 0 and site.server.asked(site.tars[1]) == 1


def test_films_of_an_unverified_tar_are_not_kept(site):
    del site.server.files[of_zip(site)]
    damage_tar_once(site)
    site.server.files[of_tar(site)] = site.server.once.pop(of_tar(site))
    assert download(site) == 2
    assert (site.out / "set.part" / "done").read_bytes() == b"\0" * 10 + b"\1" * 8


@pytest.mark.parametrize("change", [("--size", 16), ("--seed", 1), ("--split", "all")])
def test_another_plan_is_refused(change, site, capsys):
    lose_everything(site)
    assert download(site) == 2
    part = {path.name: path.read_bytes() for path in (site.out / "set.part").iterdir()}
    capsys.readouterr()
    assert download(site, *change) == 2
    said = capsys.readouterr().err
    assert "set.part" in said and change[0].strip("-") in said and "--name" in said and said.count("\n") == 1
    after = {path.name: path.read_bytes() for path in (site.out / "set.part").iterdir()}
    assert after.items() >= part.items()


def test_changed_labels_are_another_plan(raw, capsys):
    break_film(raw)
    assert run(raw) == 2
    edit(raw / "table.csv", "Mass|Hernia", "Mass")
    capsys.readouterr()
    assert run(raw) == 2
    assert "labels_sha256" in capsys.readouterr().err


def test_a_second_process_is_refused(site, capsys):
    (site.out / "set.part").mkdir(parents=True)
    with open(site.out / "set.part" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert download(site) == 2
    assert "in use" in capsys.readouterr().err and not site.server.log
    assert download(site) == 0


def test_too_little_disk_is_said_first(site, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    need = 2 * 18 * SIZE**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need - 1))
    assert download(site) == 2
    assert "GB" in capsys.readouterr().err and not site.server.asked(".zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, need))
    assert download(site) == 0


def test_a_full_disk_is_no_fault_of_the_mirror(site, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert download(site) == 2
    said = capsys.readouterr()
    assert "No space left" in said.err and said.out == "" and not site.server.asked("nih")
    assert download(site) == 0


def test_a_run_stopped_at_its_very_end_is_finished(site, undisturbed, capsys):
    assert download(site) == 0
    (site.out / "set.part").mkdir()
    (site.out / "set.part" / "films").write_bytes(b"x")
    assert download(site) == 0
    assert "left as it is" in capsys.readouterr().out and not (site.out / "set.part").exists()
    assert bytes_of(site.out / "set") == undisturbed


DRIVER = """
import json, os, sys
from data import prepare_chestxray14 as chestxray14
for line in sys.stdin:
    constants, options = json.loads(line)
    if not (child := os.fork()):
        for name, value in constants.items():
            setattr(chestxray14, name, value)
        os._exit(chestxray14.main(options))
    print(child, flush=True)
    sys.stdin.readline()  # until then its number is not given to another process
    print(os.waitpid(child, 0)[1], flush=True)
"""  # imports once; each run is a process of its own


@pytest.mark.parametrize("source", ["mirror", "nih", "images"])
def test_killed_at_any_moment_it_ends_in_the_same_bytes(source, site, undisturbed, request):
    draw = random.Random(source)  # the moments differ all the same, as runs do
    constants = {name: getattr(chestxray14, name) for name in ("MIRROR_FILMS", "NIH", "NIH_FILMS", "ORIGINAL_SPLIT")}
    constants["MIRROR"] = site.server.url + "/mirror/"
    options = ["--size", SIZE, "--out", site.out, "--name", "set"]
    options += ["--images", site.raw / "films", "--labels", site.raw / "table.csv", "--split", "original"]
    if source != "images":
        options = [*options[:6], "--download", "--source", source]
        site.server.delay = 0.01
    line = json.dumps([constants, [str(option) for option in options]]) + "\n"
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:

        def tell(text):
            """Send a line to the driver; returns the number that it answers."""
            driver.stdin.write(text)
            driver.stdin.flush()
            while not (said := driver.stdout.readline()).strip().isdigit():  # the lines of the run itself
                assert said
            return int(said)

        tell(line)
        began = time.perf_counter()
        assert tell("\n") == 0
        whole = time.perf_counter() - began
        expected, kills = bytes_of(site.out / "set"), 0
        assert source == "images" or expected == undisturbed
        shutil.rmtree(site.out / "set")
        while kills < (20 if request.config.getoption("--all") else 3):
            child = tell(line)
            time.sleep(draw.uniform(0, 0.7 * whole))
            os.kill(child, signal.SIGKILL)
            if status := tell("\n"):
                assert status == signal.SIGKILL
                kills += 1
            else:  # it had ended before
                assert bytes_of(site.out / "set") == expected
                shutil.rmtree(site.out / "set")
        tell(line)
        assert tell("\n") == 0
        assert bytes_of(site.out / "set") == expected
        assert [path.name for path in site.out.iterdir() if path.name != "undisturbed"] == ["set"]
        driver.stdin.close()
