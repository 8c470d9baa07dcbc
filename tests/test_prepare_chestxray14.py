"""Preparing ChestX-ray14: real films and labels end to end, every film mode, and one clear line for each fault."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data import prepare_chestxray14 as chestxray14
from dataset import encode_findings, load_set

REPO = Path(__file__).parents[1]
MINI = REPO.parent / "shared" / "nih_mini"
FULL_TABLE = REPO.parent / "shared" / "Data_Entry_2017_v2020.csv.gz"
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


def test_one_worker_and_two_write_the_same_bytes(raw):
    sets = []
    for workers in (1, 2):
        out = raw.parent / f"out{workers}"
        chestxray14.prepare(raw / "films", raw / "table.csv", raw, SIZE, "set", out, workers=workers)
        sets.append(bytes_of(out / "set"))
    assert sets[0] == sets[1]


def test_a_finished_set_is_left_alone(raw, capsys):
    assert run(raw) == 0
    folder = raw.parent / "out" / "set"
    before = bytes_of(folder), (folder / "images.npy").stat().st_mtime_ns
    capsys.readouterr()
    assert run(raw, "--seed", 1) == 0
    assert "left as it is" in capsys.readouterr().out
    assert (bytes_of(folder), (folder / "images.npy").stat().st_mtime_ns) == before


# --- Faults: one line that names file, problem and next step, status 2, nothing written


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
    break_film: ("1 film", film_name(3, 1), "not decode", "--skip-bad"),
    flip_a_bit: ("1 film", film_name(3, 1), "not decode", "--skip-bad"),
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
    empty_split: ("no film", "'test'", "--images"),
    lose_films: ("films is not a folder", "--images"),
    leave_something: ("set is there but is no finished set", "--name"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_stops_with_one_line_and_writes_nothing(fault, raw, capsys):
    fault(raw)
    before = sorted(raw.parent.rglob("*"))
    assert run(raw, *(["--skip-bad"] if "--skip-bad" not in FAULTS[fault] else [])) == 2  # skips only those two
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.endswith("\n"), said
    for words in FAULTS[fault]:
        assert words in said.err
    assert [path for path in sorted(raw.parent.rglob("*")) if path.name != "out"] == [
        path for path in before if path.name != "out"
    ]


def test_the_command_itself_ends_with_status_2_and_no_traceback(raw):
    break_film(raw)
    command = [sys.executable, REPO / "data" / "prepare_chestxray14.py", "--images", raw / "films"]
    command += ["--labels", raw / "table.csv", "--size", str(SIZE), "--out", raw.parent / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not any((raw.parent / "out").iterdir())


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
    assert film_name(1, 0) in skipped["missing"] and film_name(3, 1) in skipped["undecodable"]
