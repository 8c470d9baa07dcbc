"""The labels, patients and splits of one's own films, from any table: which column says what, and what is in it.

Findings are names that one column joins, or one column each. The names of columns are guessed from USUAL or said.
"""

import numpy as np
import pandas as pd

from data.labels_chestxray14 import assign_splits, find, read_age, refuse
from dataset import NO_FINDING, SPLITS, check_findings, encode_findings
from support.files import InputError, plain, read_table

# What columns are usually called, in any spelling that `plain` makes equal; of several, the first in this order counts.
USUAL = {
    "film": "imageindex imageid image imagename imagefile imagepath dicomid filename filepath file path film",
    "patient": "patientid patient subjectid subject personid person",
    "split": "split set subset fold partition",
    "label": "findinglabels findings finding labels label diagnoses diagnosis",
    "sex": "sex gender patientsex patientgender",
    "age": "age patientage ageyears",
    "view": "view viewposition projection appa frontallateral",
}
MORE = {"sex": "Sex", "age": "Age", "view": "View"}  # what the set calls them
SPLIT_OF = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
SPLIT_OF |= {split: split for split in SPLITS}
NONE = ("", "nofinding", "normal")  # names that stand for no finding, as `plain` makes them
UNCERTAIN = -1
VALUES = dict.fromkeys(("1", "1.0", "yes", "true"), 1) | dict.fromkeys(("", "0", "0.0", "no", "false"), 0)
VALUES |= dict.fromkeys(("-1", "-1.0", "−1", "u", "uncertain"), UNCERTAIN)


# --- Columns


def choose_columns(path, names, said):
    """{role: its column, one of `names`, or "" where there is none}, for each of USUAL.

    said: {role: a column's name, "" for none, None for a usual one}. Raises InputError for one that is not there.
    """
    columns = {}
    for role, usual in USUAL.items():
        if said[role]:
            columns[role] = find(said[role], names, f"the header of {path}", f"correct --{role}-column")
        else:
            same = [name for word in usual.split() for name in names if plain(name) == word]
            columns[role] = same[0] if same and said[role] is None else ""
    return columns


def read_values(column):
    """1, 0 and UNCERTAIN for the texts of a column of one finding, NaN for other texts."""
    return column.str.strip().str.lower().map(VALUES).astype(float)


def labels_of_columns(path, table, wanted):
    """The findings that have a column each: a frame (films, findings) of 1, 0 and UNCERTAIN. Raises InputError.

    table: the columns that may be findings; wanted: those that are, or None for all that hold any value of VALUES.
    """
    if wanted:
        table = table[[find(name, [*table], f"the header of {path}", "correct --findings") for name in wanted]]
    labels = table.apply(read_values)
    if not wanted:
        labels = labels.loc[:, (labels.notna() & table.map(str.strip).ne("")).any()]  # others are of something else
    for name in labels:
        for row in np.flatnonzero(labels[name].isna()):
            problem = f"{name} is {table[name][row]!r}, neither 0 or 1, yes or no, true or false, nor empty"
            raise InputError(f"{path}, row {row + 1}: {problem}: correct it, or name the findings with --findings")
    return labels


def labels_of_names(path, column, wanted):
    """The findings whose names a column joins, as `labels_of_columns`, sorted. Their separator is the first of | ; and
    the comma that is there.
    """
    separator = next((mark for mark in "|;," if column.str.contains(mark, regex=False).any()), "|")
    films = [[part.strip(" '\"[]") for part in text.split(separator)] for text in column]
    parts = sorted({part for film in films for part in film}, reverse=True)  # of two spellings, the first one stays
    names = sorted({plain(part): part for part in parts if plain(part) not in NONE}.values())
    if wanted:
        names = [find(name, names, f"{column.name!r} of {path}", "correct --findings") for name in wanted]
    found = [{*map(plain, film)} for film in films]
    return pd.DataFrame({name: [float(plain(name) in film) for film in found] for name in names})


# --- The table


def decide(path, labels, uncertain):
    """(labels of 1 and 0, which films to keep). uncertain: present, absent or leave-out. Raises InputError."""
    unsure = labels == UNCERTAIN
    films = unsure.any(axis=1)
    if films.any() and uncertain is None:
        names = ", ".join(labels.columns[unsure.any()])
        ways = "say with --uncertain whether that is present, absent or leave-out"
        raise InputError(f"{path} is uncertain (-1, u) about {names} in {films.sum()} films: {ways}")
    if films.any():
        print(f"uncertain: {unsure.to_numpy().sum()} labels of {films.sum()} films: {uncertain}")
    return labels.mask(unsure, float(uncertain == "present")), ~films | (uncertain != "leave-out")


def read_findings(path, found, columns, wanted):
    """The findings of the table `found`, as `labels_of_columns`, and the columns that are not read. Raises InputError.

    Takes the column of joined names out of `columns` where it is one finding's: there, it is 0 or 1.
    """
    if columns["label"] and read_values(found[columns["label"]]).notna().all():
        columns["label"] = ""
    others = [name for name in found if name not in columns.values()]
    if columns["label"]:
        labels = labels_of_names(path, found[columns["label"]], wanted)
    else:
        labels = labels_of_columns(path, found[[name for name in others if plain(name) not in NONE]], wanted)
    if labels.empty:
        ways = "name the column that joins their names with --label-column, or columns of 0 and 1 with --findings"
        raise InputError(f"{path} has no finding: {ways}")
    try:
        check_findings([*labels])
    except InputError as error:
        raise InputError(f"{path}: {error}: rename it there, or choose others with --findings") from None
    return labels, [name for name in others if name not in labels]


def read_own(path, options):
    """The rows of a label table: Patient ID, Finding Labels, split, Sex, Age, View as in a set, `film`, the film's name
    in the table, and `keep`, whether the set has it.

    Also the names of the findings, and {what: how it was understood}. options: of prepare_own. Raises InputError for
    what is missing, ambiguous or contradictory.
    """
    found = read_table(path)
    columns = choose_columns(path, [*found], {role: getattr(options, f"{role}_column") for role in USUAL})
    patient = columns["film" if options.no_patients else "patient"]
    more = ", or let each film count as one with --no-patients"
    for role, column, ways in (("film", columns["film"], ""), ("patient", patient, more)):
        if not column:
            listed = ", ".join(map(repr, found.columns[:20]))
            raise InputError(f"{path} has no {role} column among {listed}: name it with --{role}-column{ways}")
    labels, unread = read_findings(path, found, columns, options.findings)
    labels, keep = decide(path, labels, options.uncertain)

    table = pd.DataFrame({"film": found[columns["film"]].str.strip(), "keep": keep})
    films, patients = table["film"], found[patient].str.strip()
    refuse(path, pd.Series(films.index + 1).map("row {}".format), {"no film's name": films == ""}, "complete it")
    refuse(path, films, {"no patient": patients == ""}, f"complete it{more}")
    patients = patients.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)  # pandas writes 1.0 beside gaps
    # Such patients are numbers in a set, where 7 and 007 are one.
    table["Patient ID"] = patients.astype("int64") if patients.str.fullmatch("[0-9]{1,18}").all() else patients
    table["Finding Labels"] = ["|".join(labels.columns[film]) or NO_FINDING for film in labels.to_numpy() > 0]
    for role, name in MORE.items():
        if columns[role]:
            table[name] = found[columns[role]].str.strip().map(read_age if role == "age" else str)
    if columns["split"]:
        table["split"] = found[columns["split"]].str.strip().str.lower().map(SPLIT_OF)
        problems = {
            f"a {columns['split']} that is none of {', '.join(SPLIT_OF)}": table["split"].isna(),
            "a patient in two splits": table.groupby("Patient ID")["split"].transform("first") != table["split"],
        }
        refuse(path, films, problems, "correct it, or divide the patients anew with --split-column ''")
    else:
        table = assign_splits(table, None, options.seed)
    return table, [*labels], tell(options, columns, labels, unread)


def tell(options, columns, labels, unread):
    """{what: how it was understood}, for people."""
    said = {role: f"column {column}" for role, column in columns.items() if column}
    told = {"films": said["film"], "patients": "each film counts as one" if options.no_patients else said["patient"]}
    told["findings"] = f"joined in {said['label']}" if columns["label"] else f"columns {', '.join(labels)}"
    told["split"] = said.get("split", f"patients are divided 70 : 10 : 20, with seed {options.seed}")
    told |= {name: said[role] for role, name in MORE.items() if columns[role]}
    return told | ({"not read": ", ".join(unread)} if unread else {})


def check_labels(path, table, findings):
    """Raise InputError where a finding cannot be learned, or a split gives no AUC."""
    labels = encode_findings(table["Finding Labels"], findings)
    learned = labels[(table["split"] == "train").to_numpy()].any(axis=0)
    if not learned.all():
        names = ", ".join(name for name, known in zip(findings, learned, strict=True) if not known)
        ways = "name those to keep with --findings, or choose another --seed or split"
        raise InputError(f"{path} has no film in train with {names}: {ways}")
    for split in SPLITS:
        inside = labels[(table["split"] == split).to_numpy()]
        if not (inside.any(axis=0) & ~inside.all(axis=0)).any():
            problem = f"leaves split {split!r} {len(inside)} films, and no finding that some have and others have not"
            raise InputError(f"{path} {problem}: add films, or divide the patients anew with --split-column ''")
