"""Labels and splits: the official table and the toy set, what people have, and one clear line for each fault."""

import gzip
import json
from functools import partial

import pandas as pd
import pytest

from data import labels_chestxray14 as labels
from support.files import InputError
from tests.films import FILM, FULL_TABLE, HEADER, SHARED, TESTED, edited, film_name, overwritten

in_table, in_list = partial(edited, "table.csv"), partial(edited, "test_list.txt")  # changes of raw's files
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


def test_films_of_the_lists_that_the_table_lacks_are_named_or_left_out(raw, toy, capsys):
    overwritten("table.csv", lambda rows: rows.replace(FILM.encode(), b"00000099_001.png"))(raw)
    table = labels.read_labels(raw / "table.csv")
    with pytest.raises(InputError, match=f"does not have 1 film .{FILM}. of the toy set: .* with --skip-bad"):
        labels.original_split(table)
    assert labels.original_split(table, skip_bad=True)["Image Index"].to_list() == [toy[0], toy[2]]
    assert len(divide(raw, skip_bad=True)) == 19
    assert capsys.readouterr().out.splitlines() == [
        f"left out: 1 film ({FILM}) of the toy set, not in the label table",
        f"left out: 1 film ({FILM}) of the lists in {raw}, not in the label table",
        "left out: 1 film (00000099_001.png) of the label table, in no list",
    ]


# --- Tables and lists as people have them


@pytest.mark.parametrize("age, sex", [("Patient Age", "Patient Gender"), ("patient_age", "Patient Sex"), ("Days", "S")])
def test_sex_age_and_view_are_kept_where_the_table_has_them(age, sex, raw):
    ages, years = ("58", "058Y", "007M", "30M", "700D", "61.0", "", "old"), ("58", "58", "0", "2", "1", "61", "", "")
    rows = (raw / "table.csv").read_text().splitlines()[1:]
    rows = [f"{row}{ages[k % 8]},{'FM'[k % 2]} ," for k, row in enumerate(rows)]
    (raw / "table.csv").write_text("\n".join([f"{HEADER}{age},{sex},", *rows]))
    table = labels.read_labels(raw / "table.csv")[::-1]  # in the order of the file
    assert set(table["View"]) == {"PA"} and ("Age" in table) == ("Sex" in table) == (age != "Days")
    if "Age" in table:
        assert table["Age"].to_list() == [years[k % 8] for k in range(20)] and table["Sex"].to_list() == ["F", "M"] * 10


def spreadsheet(raw):
    text = (raw / "table.csv").read_text().replace(",", ";").replace("Image Index", " image_index ")
    text = text.replace("Mass|Hernia", "mass | HERNIA").replace("0;1;PA", "0;1.0;PA")
    text = text.replace("0000", "C:\\films\\0000")
    (raw / "table.csv").write_text("\ufeff" + text, encoding="utf-8")


def windows_text(raw):
    for path in (raw / "table.csv", *raw.glob("*_list.txt")):
        path.write_bytes(path.read_text().rstrip("\n").replace("\n", "\r\n").encode("utf-16"))


def kaggles(path):
    """Where Kaggle's copy of a list lies."""
    return path.with_stem(f"{path.stem}_NIH")


def lists(form):
    """A change: form(names) becomes the text of each list."""

    def change(raw):
        for path in raw.glob("*_list.txt"):
            path.write_text(form(path.read_text().split()))

    return change


FORMS = {
    "v2020": in_table(",\n", "\n"),  # no comma at the end
    "commas behind the rows": in_table(HEADER, HEADER.rstrip(",")),
    "spreadsheet": spreadsheet,
    "gzipped": overwritten("table.csv", gzip.compress),
    "Windows": windows_text,
    "Kaggle": lambda raw: [path.rename(kaggles(path)) for path in [*raw.glob("*_list.txt")]],
    "two lists": lambda raw: [kaggles(path).touch() for path in [*raw.glob("*_list.txt")]],
    "no endings in the table": in_table(".png", ""),
    "other endings": in_table(".png", ".JPEG"),
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


def three_lists(raw):
    """raw's films as others publish their splits: patients 1 to 6, 7, 8, and of test only patient 9."""
    (raw / "train_val_list.txt").unlink()
    for split, patients in (("train", range(1, 7)), ("val", (7, 8)), ("test", (9,))):
        films = [f"images_001/{film_name(patient, film)} 0 1 0" for patient in patients for film in (0, 1)]
        (raw / f"{split}_list.txt").write_text("\n".join(films))


def test_three_lists_are_the_splits(raw, capsys):
    three_lists(raw)
    table = divide(raw)
    splits = {name: set(rows["Patient ID"]) for name, rows in table.groupby("split")}
    assert splits == {"train": {1, 2, 3, 4, 5, 6}, "val": {7, 8}, "test": {9}} and len(table) == 18
    assert "left out: 2 films (00000010_000.png, 00000010_001.png) of the label" in capsys.readouterr().out


# --- Faults


def renamed(old, new):
    return lambda raw: (raw / old).rename(raw / new)


cut_table = overwritten("table.csv", lambda rows: rows[: rows.index(FILM.encode()) + 16])
FAULTS = {  # words of the line, and what is done
    f"unknown findings for 1 film ({FILM}: Cough|Hernia): correct it or": in_table(f"{FILM},Mass", f"{FILM},Cough"),
    f"unknown findings for 1 film ({FILM}: No Finding|": in_table(f"{FILM},Mass", f"{FILM},No Finding"),
    "more than one row for 1 film (A.JPG": in_table("ition,\n", "ition,\na.png,Mass,1,3,,\nA.JPG,Mass,1,3,,\n"),
    "names that are no films for 1 film (3.txt": in_table(FILM, "3.txt"),
    "table.csv has no 'Patient ID' among 'Image Index', 'F": in_table("Patient ID", "Patient"),
    "has 'patient_id' and 'PatientID': name one of": in_table("Patient ID,View Position", "patient_id,PatientID"),
    f"a patient that is not a number for 1 film ({FILM}": in_table("1,3,PA", "1,,PA"),
    f"({FILM}: ): correct it or download it again": cut_table,
    "table.csv: cannot be read (No such file": renamed("table.csv", "t.csv"),
    "has no 'test_list.txt' among 'train_val_list.txt', 'tests.txt'": renamed("test_list.txt", "tests.txt"),
    "does not have 1 film (99999999_000.png) of the lists": in_list(TESTED, "99999999_000.png"),
    f"the lists name more than once 1 film ({FILM}): use the official lists": in_list(TESTED, FILM),
    "test_list.txt, line 3: 'none' names no film": in_list(film_name(10, 0), "none"),
    "test_list.txt, line 1: '9.txt' names no film": in_list(TESTED, "9.txt"),
    f"the lists share the patients of 1 film ({TESTED})": in_table(f"{TESTED},No Finding,0,9", f"{TESTED},Mass,0,3"),
    "has train_val_list.txt and val_list.txt, of two": lambda raw: (raw / "val_list.txt").write_text(FILM),
    "has no 'train_list.txt' among": renamed("train_val_list.txt", "val_list.txt"),
    "test_list.txt names no film: use the official list": overwritten("test_list.txt", lambda _: b""),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_is_named_in_one_line(words, raw):
    FAULTS[words](raw)
    with pytest.raises(InputError) as error:
        divide(raw)
    assert "\n" not in str(error.value) and words in str(error.value), error.value
