"""Labels and splits: the official table and the toy set, what people have, and one clear line for each fault."""

import gzip
import json

import pandas as pd
import pytest

from data import labels_chestxray14 as labels
from support.files import InputError
from tests.films import FILM, FULL_TABLE, HEADER, SHARED, TESTED, edit, edited, film_name, overwritten

ORIGINAL = SHARED / "original_split"
official = pytest.mark.skipif(not FULL_TABLE.is_file(), reason="shared/, the official label table, is not there")


def divide(raw, **more):
    """raw's table, divided by its lists."""
    return labels.assign_splits(labels.read_labels(raw / "table.csv"), raw, seed=0, **more)


# --- The real ones


@official
def test_the_official_table_is_read_and_divided_by_patient():
    table = labels.read_labels(FULL_TABLE)
    assert (len(table), table["Patient ID"].nunique()) == (112120, 30805)
    patients = labels.assign_splits(table, None, seed=0).groupby("split")["Patient ID"].agg(set)
    assert [len(patients[split]) for split in ("train", "val", "test")] == [21564, 3080, 6161]
    assert len(patients["train"] | patients["val"] | patients["test"]) == 30805
    # Pinned: the same patients on every platform and with every NumPy.
    assert [sorted(patients[split])[:3] for split in ("val", "test")] == [[3, 4, 12], [2, 16, 19]]


@official
@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="shared/original_split, the original's lists, is not there")
def test_the_toy_set_is_the_originals():
    toy = pd.read_csv(labels.TOY_SET)
    assert toy.columns.to_list() == ["film", "split"] and toy["film"].is_monotonic_increasing and toy["film"].is_unique
    for split, films in (("train", 7133), ("val", 1642), ("test", 2267)):
        listed = json.loads((ORIGINAL / f"small_{split}.json").read_text())
        assert len(listed) == films and set(toy["film"][toy["split"] == split]) == set(listed)
    table = labels.original_split(labels.read_labels(FULL_TABLE))
    assert len(table) == 11042 and table.groupby("Patient ID")["split"].nunique().max() == 1


# --- Splits


def test_a_seed_draws_the_same_patients_and_another_seed_others(raw):
    table = labels.read_labels(raw / "table.csv")
    splits = [labels.assign_splits(table, None, seed)["split"].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for seed in range(5):
        listed = labels.assign_splits(table, raw, seed)
        patients = listed.groupby("split")["Patient ID"].agg(set)
        assert patients["test"] == {9, 10} and len(patients["val"]) == 2  # of the 8 patients of train_val
        assert not patients["train"] & patients["val"] and len(listed) == 20


@pytest.fixture
def toy(raw, monkeypatch):
    """A toy set of three films."""
    names = [film_name(patient, 1) for patient in (1, 3, 5)]
    pd.DataFrame({"film": names, "split": ["train", "val", "test"]}).to_csv(raw / "toy.csv", index=False)
    monkeypatch.setattr(labels, "TOY_SET", raw / "toy.csv")
    return names


@pytest.mark.parametrize("ending", [".png", ".PNG", ".jpeg", ""])
def test_a_table_with_other_endings_has_the_films_of_the_toy_set(ending, raw, toy):
    edit(raw / "table.csv", ".png", ending)
    table = labels.original_split(labels.read_labels(raw / "table.csv"))
    assert table["Image Index"].to_list() == toy and table["split"].to_list() == ["train", "val", "test"]


def test_a_part_of_the_table_or_of_the_lists_is_told(raw, toy, capsys):
    overwritten("table.csv", lambda rows: rows.replace(FILM.encode(), b"00000099_001.png"))(raw)
    table = labels.read_labels(raw / "table.csv")
    with pytest.raises(InputError, match=f"does not have 1 film .{FILM}. of the toy set: .* with --skip-bad"):
        labels.original_split(table)
    assert labels.original_split(table, skip_bad=True)["Image Index"].to_list() == [toy[0], toy[2]]
    assert f"left out: 1 film ({FILM}) of the toy set, not in the label table\n" == capsys.readouterr().out
    assert len(divide(raw, skip_bad=True)) == 19
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"left out: 1 film ({FILM}) of the lists in {raw}, not in the label table"
    assert said[1] == "left out: 1 film (00000099_001.png) of the label table, in neither list"


# --- Tables and lists as people have them


def no_comma_at_the_end(raw):
    edit(raw / "table.csv", ",\n", "\n")


def comma_only_behind_the_rows(raw):
    edit(raw / "table.csv", HEADER, HEADER.rstrip(","))


def spreadsheet(raw):
    text = (raw / "table.csv").read_text().replace(",", ";").replace("Image Index", " image_index ")
    text = text.replace("Mass|Hernia", "mass | HERNIA").replace("0;1;PA", "0;1.0;PA")
    text = text.replace("0000", "C:\\films\\0000")
    (raw / "table.csv").write_text("\ufeff" + text, encoding="utf-8")


def windows_text(raw):
    for path in (raw / "table.csv", *raw.glob("*_list.txt")):
        path.write_bytes(path.read_text().rstrip("\n").replace("\n", "\r\n").encode("utf-16"))


def kaggles_lists(raw):
    for name in ("train_val_list", "test_list"):
        (raw / f"{name}.txt").rename(raw / f"{name}_NIH.txt")


def other_lists_beside_them(raw):
    for name in ("train_val_list", "test_list"):
        (raw / f"{name}_NIH.txt").write_text("")


def lists(form):
    """A change: form(names) becomes the text of each list."""

    def change(raw):
        for path in raw.glob("*_list.txt"):
            path.write_text(form(path.read_text().split()))

    return change


FORMS = {
    "v2020": no_comma_at_the_end,
    "commas behind the rows": comma_only_behind_the_rows,
    "spreadsheet": spreadsheet,
    "gzipped": overwritten("table.csv", gzip.compress),
    "Windows": windows_text,
    "Kaggle": kaggles_lists,
    "two lists": other_lists_beside_them,
    "with labels": lists(lambda films: "Film,Mass\n" + "\n".join(f"images/{film.upper()},1" for film in films)),
    "spaces": lists(lambda films: "\n".join(f"{film} 0 1 0" for film in films)),
    "one line": lists(", ".join),
    "no endings": lists(lambda films: "\n".join(films).replace(".png", "")),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_and_lists_are_read_as_people_have_them(form, raw):
    expected = divide(raw)
    assert len(expected) == 20 and set(expected["Finding Labels"]) == {"No Finding", "Mass|Hernia"}
    FORMS[form](raw)
    assert divide(raw).equals(expected)


def test_names_with_spaces_are_those_of_the_table(raw):
    for file in ("table.csv", "train_val_list.txt"):
        edit(raw / file, FILM, "film 3 b.png")
    edit(raw / "train_val_list.txt", "b.png", "b.jpg")
    assert len(divide(raw)) == 20 and "film 3 b.png" in set(divide(raw)["Image Index"])


# --- Faults


def lose(file, left=None):
    return lambda raw: (raw / file).rename(raw / (left or "lost"))


FAULTS = {
    "finding": (edited("table.csv", f"{FILM},Mass", f"{FILM},Cough"), ("table.csv", "unknown findings", FILM, "Cough")),
    "two kinds": (edited("table.csv", f"{FILM},Mass", f"{FILM},No Finding"), ("unknown findings", FILM, "correct")),
    "two rows": (
        overwritten("table.csv", lambda rows: rows + b"a.png,No Finding,1,3,PA,\nA.JPG,No Finding,1,3,PA,\n"),
        ("table.csv", "more than one row", "A.JPG", "correct"),
    ),
    "no picture": (edited("table.csv", FILM, "3.txt"), ("table.csv", "no films", "3.txt")),
    "column": (
        edited("table.csv", "Patient ID", "Patient"),
        ("table.csv has no 'Patient ID'", "'View Position'", "nearest is 'Patient'", "official"),
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
    "table lost": (lose("table.csv"), ("table.csv is missing", "--labels")),
    "list lost": (lose("test_list.txt", "tests.txt"), ("has no 'test_list.txt'", "nearest is 'tests.txt'", "--lists")),
    "unknown film": (
        edited("test_list.txt", TESTED, "99999999_000.png"),
        ("99999999_000.png", "label table", "official", "--skip-bad"),
    ),
    "listed twice": (edited("test_list.txt", TESTED, FILM), ("more than once", FILM, "official")),
    "no film": (edited("test_list.txt", film_name(10, 0), "none"), ("test_list.txt, line 3: 'none' names no film",)),
    "film in a header": (edited("test_list.txt", TESTED, "9.txt"), ("test_list.txt, line 1: '9.txt' names no film",)),
    "patient in two splits": (
        edited("table.csv", f"{TESTED},No Finding,0,9", f"{TESTED},No Finding,0,3"),
        ("share", TESTED, "official"),
    ),
    "empty list": (overwritten("test_list.txt", lambda _: b""), ("test_list.txt names no film", "official")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(fault, raw):
    change, words = FAULTS[fault]
    change(raw)
    with pytest.raises(InputError) as error:
        divide(raw)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_lists_are_a_folder(raw):
    table = labels.read_labels(raw / "table.csv")
    with pytest.raises(InputError, match="--lists the folder"):
        labels.assign_splits(table, raw / "test_list.txt", seed=0)
