"""The labels and splits of ChestX-ray14, from its label table, the official lists or the original project's toy set.

docs/data.md says what the labels are, which splits there are, and which forms of tables and lists are read.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from data.films import film_key, is_film
from dataset import FINDINGS, NO_FINDING, SPLITS
from support.files import InputError, plain, read_table, read_text

VAL_OF_TRAIN_VAL = 0.2  # share of the official train_val patients that become val
VAL, TEST = 0.1, 0.2  # shares of all patients, without the official lists
TABLE = "Data_Entry_2017_v2020.csv"  # the official label table
LISTS = ("train_val_list.txt", "test_list.txt")  # the official split, one film name per line
THREE_LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")  # as others publish theirs
TOY_SET = Path(__file__).with_name("toy_set.csv")  # film, split: the original project's lists
# Columns that a label table may have, in any spelling that `plain` makes equal, and what the set calls them.
FURTHER = {"patientgender": "Sex", "patientsex": "Sex", "patientage": "Age", "viewposition": "View"}
AGE_UNITS = {"": 1, "Y": 1, "M": 12, "D": 365}  # the letter behind an age -> how many of its units make a year


# --- Names


def film_name(text):
    """A film's name as the set has it, from a table or list: without its folder, and NIH's films always end in .png."""
    name = re.split(r"[/\\]", text.strip(" '\""))[-1]
    return f"{film_key(name)}.png" if re.fullmatch(r"\d{8}_\d{3}", film_key(name)) else name


def some(names):
    """'4 films (a.png, b.png, c.png, ...)': their number and the first few."""
    first = [*names[:3], "..."] if len(names) > 3 else names
    return f"{len(names)} film{'s' * (len(names) != 1)} ({', '.join(first)})"


def find(wanted, names, where, ways):
    """The one of `names` that is `wanted`, in any spelling that `plain` makes equal.

    Raises InputError, naming the place `where` and the next step `ways`, where there is none, or where there are two
    and neither is exactly `wanted`.
    """
    same = [name for name in names if plain(name) == plain(wanted)]
    if wanted in same or len(same) == 1:
        return wanted if wanted in same else same[0]
    if same:
        raise InputError(f"{where} has {' and '.join(map(repr, same))}: name one of them {wanted!r}")
    raise InputError(f"{where} has no {wanted!r} among {', '.join(map(repr, names[:20]))}: {ways}")


def refuse(where, films, problems, ways):
    """Raise InputError for the first of the problems, {what: a mask of the `films`, a series}, that there is."""
    for problem, bad in problems.items():
        if any(bad):
            raise InputError(f"{where} has {problem} for {some(films[np.array(bad)].to_list())}: {ways}")


# --- The label table


def read_age(text):
    """A patient's age in whole years, as text, from '57', '057Y', '010M' or '021D'; '' for what is no age."""
    age = re.fullmatch(r"(\d{1,3})(?:\.0*)?([YMD]?)", text.upper())
    return str(int(age[1]) // AGE_UNITS[age[2]]) if age else ""


def read_labels(csv):
    """The label table: Image Index, Patient ID (int), Finding Labels, in the order of Image Index.

    Sex, Age and View (texts) follow where the table has them. Raises InputError, naming the file and the films.
    """
    found, ways = read_table(csv), f"give --labels the official {TABLE}"
    there = found.columns.to_list()
    table = pd.DataFrame()
    for column in ("Image Index", "Patient ID", "Finding Labels"):
        table[column] = found[find(column, there, f"the header of {csv}", ways)].str.strip()
    table["Image Index"] = table["Image Index"].map(film_name)
    table["Patient ID"] = table["Patient ID"].str.replace(r"\.0+$", "", regex=True)  # pandas writes 1.0 beside gaps
    known = {plain(name): name for name in (*FINDINGS, NO_FINDING)}
    findings = [[known.get(plain(part), part) for part in text.split("|")] for text in table["Finding Labels"]]
    table["Finding Labels"] = ["|".join(parts) for parts in findings]

    problems = {
        "names that are no films": [not is_film(name) for name in table["Image Index"]],
        "more than one row": table["Image Index"].map(film_key).duplicated(),
        "unknown findings": [parts != [NO_FINDING] and not {*parts} <= {*FINDINGS} for parts in findings],
        "a patient that is not a number": [not re.fullmatch("[0-9]{1,18}", text) for text in table["Patient ID"]],
    }
    shown = table["Image Index"] + ": " + table["Finding Labels"]
    refuse(csv, shown, problems, "correct it or download it again")
    for name in there:
        if more := FURTHER.get(plain(name)):
            table[more] = found[name].str.strip().map(read_age if more == "Age" else str)
    return table.astype({"Patient ID": "int64"}).sort_values("Image Index", ignore_index=True)


# --- Splits


def draw(patients, shares, seed):
    """Disjoint random groups of the distinct `patients`, one per share (at least one patient), as sets."""
    patients = np.unique(patients)
    # Sorting plain draws, instead of a shuffle: they follow the bit stream, which NumPy keeps between versions.
    order = patients[np.argsort(np.random.default_rng(seed).random(len(patients)), kind="stable")]
    ends = np.cumsum([max(1, round(share * len(patients))) for share in shares])
    return [set(group.tolist()) for group in np.split(order, ends)[:-1]]


def leave_out(films, lists, skip_bad):
    """Print which films of the lists the label table does not have; InputError unless skip_bad is true."""
    if len(films) and not skip_bad:
        ways = "give the official label table, or leave them out with --skip-bad"
        raise InputError(f"the label table does not have {some(films)} of {lists}: {ways}")
    if len(films):
        print(f"left out: {some(films)} of {lists}, not in the label table")


def find_lists(folder):
    """{name: file} of a folder, where Kaggle's copy of a list, NAME_NIH.txt, has the list's name, and what to read.

    Raises InputError where lists of both kinds are there.
    """
    files = sorted((path.name for path in Path(folder).glob("*")), reverse=True)  # the official list after the copy
    files = {re.sub("_NIH(?=[.])", "", file): file for file in files}
    there = {plain(name) for name in files}
    three = [name for name in THREE_LISTS[:2] if plain(name) in there]
    if three and plain(LISTS[0]) in there:
        raise InputError(f"{folder} has {LISTS[0]} and {three[0]}, of two divisions: keep the lists of one in a folder")
    return files, THREE_LISTS if three else LISTS


def read_list(folder, name, files, names):
    """The films of a list; files: see `find_lists`; names: {key: film of the label table}.

    Names may have a folder before them and further columns behind them. The first line may be a header.
    """
    ways = f"give --lists the folder with the official {' and '.join(LISTS)}, or with {', '.join(THREE_LISTS)}"
    path = Path(folder) / files[find(name, list(files), folder, ways)]
    films = []
    for number, line in enumerate(read_text(path).splitlines()):
        words = map(film_name, re.split(r"[\s,;'\"]+", line))
        found = dict.fromkeys(names.get(film_key(word), word) for word in words if is_film(word))
        first = re.split(r"[,;\t]", line)[0]
        if not found and line.strip() and (films or re.search(r"\d", first)):  # a header comes first, without numbers
            raise InputError(f"{path}, line {number + 1}: {line.strip()[:60]!r} names no film")
        films += found
    if not films:
        raise InputError(f"{path} names no film: use the official list")
    return films


def assign_splits(table, lists, seed, skip_bad=False):
    """The rows of `table` (see read_labels) that take part, with their `split`; no patient is in two splits.

    lists: folder of the two official lists or of three, or None; skip_bad: leave out films of the lists that are not in
    the table. Raises InputError, naming the films, for lists that do not fit.
    """
    if lists is None:
        val, test = draw(table["Patient ID"], (VAL, TEST), seed)
        split = ["test" if p in test else "val" if p in val else "train" for p in table["Patient ID"]]
        return table.assign(split=split)
    films = table["Image Index"]
    names = dict(zip(films.map(film_key), films, strict=True))
    files, parts = find_lists(lists)
    rows = [(film, k) for k, name in enumerate(parts) for film in read_list(lists, name, files, names)]
    listed = pd.DataFrame(rows, columns=["film", "part"])
    twice = listed["film"].duplicated()
    part = films.map(listed[~twice].set_index("film")["part"])  # the number of a film's list, NaN in none
    first = part.groupby(table["Patient ID"]).transform("min")
    for problem, bad in (
        ("name more than once", listed["film"][twice].unique()),
        ("share the patients of", films[part > first].to_list()),
    ):
        if len(bad):
            raise InputError(f"{lists}: the lists {problem} {some(bad)}: use the official lists and label table")
    leave_out(listed["film"][~listed["film"].isin(films)].to_list(), f"the lists in {lists}", skip_bad)
    if others := films[part.isna()].to_list():
        print(f"left out: {some(others)} of the label table, in no list")
    if parts == THREE_LISTS:
        split = part.map(dict(enumerate(SPLITS)))
    else:
        (val,) = draw(table["Patient ID"][part == 0], (VAL_OF_TRAIN_VAL,), seed)
        split = np.where(part == 1, "test", np.where(table["Patient ID"].isin(val), "val", "train"))
    return table.assign(split=split)[part.notna()].reset_index(drop=True)


def original_split(table, skip_bad=False):
    """The rows of `table` that are in the toy set, with their `split`.

    Raises InputError where the table lacks films of it, unless skip_bad is true.
    """
    split = pd.read_csv(TOY_SET, index_col="film")["split"]
    leave_out(split.index.difference(table["Image Index"]), "the toy set", skip_bad)
    return table.join(split, "Image Index", how="inner").reset_index(drop=True)
