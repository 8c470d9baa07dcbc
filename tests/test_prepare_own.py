"""Preparing one's own films: tables as people have them, films of several forms, and one clear line for each fault."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data import prepare_own, prepare_phantom
from data.films import reduce_film
from data.intake import Intake
from dataset import load_set
from tests.exercises import ROOT, copy_code
from tests.films import SIZE, dicom, overwritten, path_of, picture, same_set

PATIENTS, FILMS = 20, 2
FINDINGS = ["Big heart", "Fluid"]
LABELS = "Finding Labels"
FILM, ROW, OTHER = "p003_1.png", 5, "p005_1.png"  # ROW: of FILM


def own_table():
    """A table of 40 films with two findings, as joined names, a film of each patient with one or more."""
    rows = []
    for patient in range(1, PATIENTS + 1):
        for film in range(FILMS):
            found = [name for k, name in enumerate(FINDINGS) if film and (patient + k) % 3]
            rows.append((f"p{patient:03d}_{film}.png", patient, "|".join(found) or "No Finding"))
    return pd.DataFrame(rows, columns=["Image Index", "Patient ID", "Finding Labels"])


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The folder of the table's films. Not to be written to."""
    folder = tmp_path_factory.mktemp("own") / "films"
    for k, name in enumerate(own_table()["Image Index"]):
        path = folder / f"{k % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k)).save(path)
    return folder


@pytest.fixture
def own(films, tmp_path):
    """A copy of the films, and the table beside it."""
    shutil.copytree(films, tmp_path / "films")
    own_table().to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def run(own, *options, table=None, name="mine"):
    """Prepare own's films as the set out/`name`. table: written in the place of its table."""
    if isinstance(table, pd.DataFrame):
        table.to_csv(own / "table.csv", index=False)
    command = ["--images", own / "films", "--labels", own / "table.csv", "--out", own / "out", "--name", name]
    return prepare_own.main([str(option) for option in (*command, "--size", SIZE, *options)])


def made(own, name="mine"):
    return load_set(own / "out" / name)


# --- Tables


def rewritten(column, change):
    """A function that changes the texts of a column of a table."""
    return lambda table: table.assign(**{column: [change(text) for text in table[column]]})


def renamed(*names, **more):
    """A function that renames the three columns of own_table, and adds more."""
    return lambda table: table.set_axis(names, axis=1).assign(**more)


def a_column_each(absent, present, **more):
    """A function that gives own_table a column for each finding with these two values, and adds more."""

    def change(table):
        found = table[LABELS].str.split("|")
        values = {name: [present if name in film else absent for film in found] for name in FINDINGS}
        return table.drop(columns=LABELS).assign(**values, **more)

    return change


SAID = ["--film-column", "A", "--patient-column", "b", "--label-column", "c", "--split-column", ""]
TABLES = {  # changes of own_table, and the options with which it still gives the same set
    "semicolons": (rewritten(LABELS, lambda text: text.replace("|", "; ")), []),
    "list": (rewritten(LABELS, lambda text: str(text.split("|"))), []),
    "normal": (rewritten(LABELS, lambda text: {"No Finding": "Normal", "Fluid": "fluid"}.get(text, text)), []),
    "empty": (rewritten(LABELS, lambda text: text.replace("No Finding", "")), []),
    "other names": (renamed("path", "subject_id", "LABELS"), []),
    "other order": (lambda table: table.sample(frac=1, random_state=0), []),
    "floats": (rewritten("Patient ID", float), []),
    "no endings": (rewritten("Image Index", lambda text: f"C:\\films\\{text[:-4].upper()}"), []),
    "said": (renamed("a", "b", "c", patient="x", image="y", split="z", labels="w"), SAID),
    "0/1": (a_column_each(0, 1, **{"No Finding": 1, "note": "seen"}), []),
    "yes/no": (a_column_each("no", "Yes"), []),
    "true/false": (a_column_each(False, True), []),
    "1.0/empty": (a_column_each("", 1.0), []),
    "chosen": (a_column_each(0, 1, rest=range(40)), ["--findings", "big_heart", "Fluid"]),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_as_people_have_them_give_the_same_set(form, own, capsys):
    assert run(own) == 0
    change, options = TABLES[form]
    assert run(own, *options, table=change(own_table()), name="again") == 0
    assert same_set(own / "out" / "mine", own / "out" / "again"), capsys.readouterr().out
    data = made(own, "again")
    assert data.findings == (*FINDINGS,) and (data.patients, data.preset, data.synthetic) == (True, "small", False)
    assert {path.name for path in (own / "out").iterdir()} == {"mine", "again"}
    source = json.loads((own / "out" / "again" / "source.json").read_text())
    assert source["origin"] == {"films": "films", "labels": "table.csv"}
    split = data.table.groupby("Patient ID")["split"].agg(set)
    assert split.map(len).max() == 1 and split.map(min).value_counts().to_dict() == {"train": 14, "val": 2, "test": 4}
    for name, row in zip(data.table["Image Index"], data.images, strict=True):
        assert (row == reduce_film(path_of(own, name), SIZE)).all()


def test_a_column_called_label_may_be_one_finding(own):
    assert run(own, table=own_table().drop(columns=LABELS).assign(label=[0, 1] * 20)) == 0
    assert made(own).findings == ("label",) and made(own).labels[:, 0].tolist() == [0, 1] * 20


def test_what_was_understood_is_printed_before_a_film_is_read(own, capsys, monkeypatch):
    monkeypatch.setattr(Intake, "read", lambda *_: print("reading") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(own, table=a_column_each(0, 1, gender="F", note="x")(own_table()))
    said = capsys.readouterr().out.splitlines()
    assert said[:6] == [
        "films:     column Image Index",
        "patients:  column Patient ID",
        "findings:  columns Big heart, Fluid",
        "split:     patients are divided 70 : 10 : 20, with seed 0",
        "Sex:       column gender",
        "not read:  note",
    ]
    assert re.match(r" +train +val +test", said[6]) and said[8].split() == ["patients", "14", "2", "4"]
    assert said[10].split()[:2] == ["Big", "heart"] and said[-1] == "reading" and len(said) == 13


def test_splits_sex_age_and_view_are_those_of_the_table(own):
    words = ["Train", "TRAINING", "val", "Valid", "validation", "dev", "test", "Testing"]
    splits = ["train", "train", "val", "val", "val", "val", "test", "test"]
    patient = own_table()["Patient ID"]
    more = {"fold": [words[p % 8] for p in patient], "Sex": "M", "patient_age": "030Y", "AP/PA": "PA"}
    assert run(own, table=own_table().assign(**more)) == 0
    table = made(own).table
    assert table["split"].to_list() == [splits[p % 8] for p in table["Patient ID"]]
    assert set(map(tuple, table[["Sex", "Age", "View"]].to_numpy())) == {("M", "30", "PA")}
    assert run(own, "--split-column", "", name="again") == 0
    assert made(own, "again").table["split"].value_counts().to_dict() == {"train": 28, "val": 4, "test": 8}


def test_uncertain_labels_are_what_the_option_says(own, one_line, capsys):
    table = a_column_each("0", "1")(own_table())
    unsure = [f"p{patient:03d}_0.png" for patient in (3, 5, 6, 7)]
    for name, mark in zip(unsure, ("-1", "-1.0", "u", "Uncertain"), strict=True):
        table.loc[table["Image Index"] == name, "Fluid"] = mark
    said = one_line(lambda: run(own, table=table))
    assert "table.csv is uncertain (-1, u) about Fluid in 4 films: say with --uncertain" in said
    for choice, words in (("present", ["Fluid"] * 4), ("absent", ["No Finding"] * 4), ("leave-out", [])):
        assert run(own, "--uncertain", choice, name=choice) == 0
        assert f"uncertain: 4 labels of 4 films: {choice}" in capsys.readouterr().out
        found = made(own, choice).table
        assert found[LABELS][found["Image Index"].isin(unsure)].to_list() == words
        assert len(found) == (40 if words else 36)


def test_films_without_patients_count_as_one_each(own, one_line):
    table = rewritten("Image Index", lambda text: text[:-4])(own_table()).drop(columns="Patient ID")
    said = one_line(lambda: run(own, table=table))
    assert "has no patient column among 'Image Index', 'Finding Labels': name it with --patient-column, or" in said
    assert run(own, "--no-patients") == run(own, "--no-patients", "--synthetic", table=own_table(), name="again") == 0
    assert not made(own).patients and made(own, "again").synthetic
    assert made(own).table["Patient ID"].to_list() == made(own).table["Image Index"].to_list()
    assert same_set(own / "out" / "mine", own / "out" / "again")


# --- Films


def test_films_of_several_forms_and_with_names_that_only_their_folders_tell_apart(own):
    pytest.importorskip("pydicom")
    table, films = own_table(), own / "films"
    for k, name in enumerate(table["Image Index"]):
        path = path_of(films, name)
        place = films / "all" / name[:4] / ("front", "side.dcm", "side.JPG")[0 if name[5] == "0" else 1 + k // 2 % 2]
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".JPG":
            Image.open(path).convert("RGB").save(place)
        else:
            dicom(place, np.asarray(Image.open(path)).astype(np.uint16) * 16, BitsStored=12)
        table.loc[k, "Image Index"] = f"set/train/{name[:4]}/{'front' if name[5] == '0' else 'Side'}"
        path.unlink()
    assert run(own, table=table) == 0
    data = made(own)
    names = data.table["Image Index"].to_list()
    assert names[:4] == ["p001_front.dcm", "p001_side.dcm", "p002_front.dcm", "p002_side.JPG"]
    wanted = [reduce_film(films / "all" / name[:4] / name[5:].replace("front.dcm", "front"), SIZE) for name in names]
    assert (data.images == np.stack(wanted)).all()


def test_files_of_one_name_are_told_apart_by_the_folders_in_the_table(own):
    add(FILM)(own)  # beside films/2/FILM
    table = own_table().assign(**{"Image Index": [f"{k % 3}/{name}" for k, name in enumerate(TABLE["Image Index"])]})
    assert run(own, "--skip-bad", table=table) == 0
    data = made(own)
    (image,) = data.images[data.table["Image Index"] == f"2_{FILM}"]
    assert (image == reduce_film(own / "films" / "2" / FILM, SIZE)).all() and len(data.images) == 40


def test_a_stopped_command_goes_on_and_reads_changed_films_and_other_folders_again(own, one_line, monkeypatch):
    whole = path_of(own, FILM).read_bytes()
    path_of(own, FILM).write_bytes(whole[:-500])
    said = one_line(lambda: run(own))
    assert f"films: 1 film ({FILM}) unusable" in said and "--skip-bad leaves them out" in said
    shutil.copytree(own / "films", own / "others")  # with the times of the files
    seen, accept = [], Intake.accept
    monkeypatch.setattr(Intake, "accept", lambda *all: seen.append(all[1]) or accept(*all))
    for folder, newer in (("films", 2e9), ("others", 1e9)):
        path_of(own / folder, FILM).write_bytes(whole)
        changed = path_of(own / folder, OTHER)
        Image.fromarray(255 - picture(int(newer))).save(changed)
        os.utime(changed, (newer, newer))
    assert run(own) == 0 and sorted(seen) == [FILM, OTHER]
    assert {path.name for path in (own / "out").iterdir()} == {"mine"}
    path_of(own / "films", FILM).write_bytes(whole[:-500])
    one_line(lambda: run(own, name="again"))
    assert run(own, "--images", own / "others", name="again") == 0  # also of a film that is older than ours
    for name, folder in (("mine", "films"), ("again", "others")):
        image = made(own, name).images[made(own, name).table["Image Index"] == OTHER][0]
        assert (image == reduce_film(path_of(own / folder, OTHER), SIZE)).all()


def test_a_folder_of_films_may_hold_those_of_reduced_films(own, one_line):
    whole, path = path_of(own, FILM).read_bytes(), path_of(own, FILM)
    path.write_bytes(whole[:-500])
    one_line(lambda: run(own, "--out", own / "films"))
    path.write_bytes(whole)
    assert run(own, "--out", own / "films") == run(own) == 0
    assert same_set(own / "films" / "mine", own / "out" / "mine")


def test_skip_bad_leaves_out_what_is_damaged_or_alone(own, capsys):
    overwritten(FILM, lambda content: content[:-500])(own)
    path_of(own, OTHER).rename(own / "films" / "x.png")
    assert run(own, "--skip-bad") == 0
    said = capsys.readouterr().out
    assert f"left out: 1 film ({OTHER}), {own}/films has no file of them" in said
    assert f"left out: 1 film ({own}/films/x.png), {own}/table.csv has no row for them" in said
    assert f"skipped: 1 film ({FILM}) unusable" in said
    assert not {FILM, OTHER, "x.png"} & {*made(own).table["Image Index"]} and len(made(own).images) == 38


# --- Faults: one line that names the file, the problem and the next step, and no set


def put(column, value, form=lambda table: table):
    """A function that makes a table with this value in FILM's row; a new column has "train" in the others."""

    def table(own):
        changed = form(own_table()).astype(object)
        if column not in changed:
            changed[column] = "train"
        changed.loc[ROW, column] = value
        return changed

    return table


def add(name):
    return lambda own: Image.fromarray(picture(0)).save(own / "films" / name)


TABLE, HOT = own_table(), a_column_each(0, 1)
BAD = {  # changes of the films, or of the table, which is then returned; options; words of the line, {}: the folder
    "no table": (lambda own: (own / "table.csv").unlink(), "table.csv: cannot be read (No such file or directory)"),
    "no films": (lambda own: shutil.rmtree(own / "films"), "films is not a folder: give --images"),
    "no column": (lambda own: renamed("x", "patient", "labels")(TABLE), "has no film column among 'x', 'patient'"),
    "unknown column": (None, "the header of {}/table.csv has no 'sett' among", "--split-column", "sett"),
    "no finding": (lambda own: TABLE.drop(columns=LABELS), "table.csv has no finding: name the column that joins"),
    "unknown finding": (None, "of {}/table.csv has no 'Flud' among 'Big heart', 'Fluid'", "--findings", "Flud"),
    "forbidden finding": (lambda own: HOT(TABLE).assign(**{"a/b": 1}), "'a/b' is not: rename it there, or choose"),
    "neither": (put("Fluid", "2", HOT), "table.csv, row 6: Fluid is '2', neither 0 or 1, yes or no, true or false,"),
    "no patient": (put("Patient ID", ""), f"has no patient for 1 film ({FILM}): complete it, or let"),
    "no name": (put("Image Index", ""), "table.csv has no film's name for 1 film (row 6): complete it"),
    "other split": (put("split", "later"), "has a split that is none of training, valid, validation, dev, testing"),
    "two splits": (put("split", "test"), "has a patient in two splits for 1 film (p003_1.png): correct it, or"),
    "no val": (lambda own: TABLE.assign(split="train"), "leaves split 'val' 0 films, and no finding that some have"),
    "not in train": (
        lambda own: put(LABELS, "Rare")(own).assign(split=["train", "test", "val", "train"] * 10),
        "table.csv has no film in train with Rare: name those to keep with --findings",
        "--no-patients",
    ),
    "two rows": (lambda own: pd.concat([TABLE, TABLE[5:6]]), f"table.csv has one film twice, {FILM} and {FILM}: name"),
    "two files": (add(FILM), "films has one film twice, {}/films/p003_1.png and {}/films/2/p003_1.png: name both"),
    "no row": (add("x.png"), "table.csv has no row for 1 film ({}/films/x.png): add it, or leave out"),
    "no file": (lambda own: path_of(own, FILM).unlink(), f"films has no file of 1 film ({FILM}): add it, or leave out"),
    "too small": (None, "--size 31 must be at least 32", "--size", 31),
    "preset": (None, "--name 'small' must name a folder of its own", "--name", "small"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_is_named_in_one_line_and_leaves_no_set(fault, own, one_line):
    change, words, *options = BAD[fault]
    said = one_line(lambda: run(own, *options, table=change and change(own)))
    assert words.format(own, own) in said, said
    assert not (own / "out" / "mine").exists() and not [*(own / "out").rglob("unfinished_*")]


def test_a_missing_package_is_named_and_its_films_are_not_skipped(own, monkeypatch, one_line):
    path_of(own, FILM).write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    said = one_line(lambda: run(own, "--skip-bad"))
    assert f"{FILM}: DICOM films need the package pydicom: pip install 'pydicom>=3,<4'" in said


# --- The guide


SMALL = {"search_train.py": "--epochs 1 --c 4 --layers 4 --batch-size 8", "chexnet.py": "--epochs 1 --batch-size 8"}
SMALL |= {"val_train.py": SMALL["search_train.py"], "test.py": "--resamples 20"}


@pytest.mark.long  # a minute
def test_the_guide_runs_from_a_folder_to_the_table(tmp_path):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    guide = text.partition("## My own films, from folder to table\n")[2].partition("\n## ")[0]
    commands = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    found = re.findall(r"^    (\.venv/bin/python .*)$", guide.replace("\\\n", " "), re.MULTILINE)
    commands += [command for command in found if "FOLDER" not in command]
    assert len(commands) == 6
    folder = copy_code(tmp_path / "copy")
    shutil.copy(ROOT / "report" / "page.html", folder / "report")
    prepare_phantom.prepare(folder / "data" / "phantom", films={"train": 300, "val": 60, "test": 60})
    for command in commands:
        script = re.match(r"\.venv/bin/python (\S+)", command)[1]
        command = command.replace(".venv/bin/python", sys.executable, 1) + " " + SMALL.get(script, "")
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "| big heart |" in (folder / "runs" / "mine" / "results" / "auc.md").read_text()
