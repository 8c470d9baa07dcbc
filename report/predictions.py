"""Reads and writes a model's predictions as CSV, in this project's form and in those of other programs."""

import difflib
import math
import os
import re

import numpy as np
import pandas as pd

from data.films import film_key
from genotypes import check_name
from support.files import InputError, plain, read_table, write

NO_NUMBER = ("", "nan", "-nan", "n/a", "#n/a", "na", "<na>", "null", "none")  # in lower case
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def write_predictions(path, films, findings, probabilities, thresholds=None):
    """Write a CSV that `read_predictions` reads bit for bit: films (N,), their names; probabilities (N, findings).

    thresholds (findings,): for columns that say whether a film is flagged: yes, no, or nothing where there is none.
    """
    columns = {"Image Index": films}
    for k, finding in enumerate(findings):
        columns[f"prob_{finding}"] = p = probabilities[:, k]
        if thresholds is not None:
            columns[f"flagged_{finding}"] = np.select([p >= thresholds[k], p < thresholds[k]], ["yes", "no"], "")
    write(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))


def read_thresholds(path, network, findings):
    """The thresholds of a network in operating_points.csv, (findings,), NaN where it has none. Raises InputError."""
    table, thresholds = read_table(path), []
    try:
        column = table[table["network"] == network].set_index("finding")["threshold"].map(read_number)
        for finding in findings:
            thresholds.append(float(column[finding]))  # a TypeError where there are several
            if thresholds[-1] < 0 or thresholds[-1] > 1:
                raise ValueError(finding)
    except (KeyError, TypeError, ValueError) as error:
        what = f"one threshold of 0 to 1, or an empty cell, for network {network} and each of its findings ({error})"
        raise InputError(f"{path}: needs {what}: give the operating_points.csv that test.py wrote for it") from None
    return np.array(thresholds)


def read_others(items, taken, films, findings, results):
    """{name: what `read_predictions` returns} of the items NAME=FILE. Raises InputError.

    taken: names of networks, whose own files will be written into the folder `results`.
    """
    others = {}
    written = [os.path.realpath(results / f"{kind}_{name}.csv") for kind in ("predictions", "films") for name in taken]
    for item in items if isinstance(items, (list, tuple)) else [items] if items else []:  # as people edit PREDICTIONS
        name, _, path = (part.strip() for part in str(item).partition("="))
        if not path or name in taken or name in others:
            raise InputError(f"--predictions {item!r}: must be NAME=FILE.csv, with a name that is not yet in use")
        check_name(name)
        path = os.path.expanduser(path)
        if os.path.realpath(path) in written:
            raise InputError(f"{path}: this command writes it anew: rename it, or copy it elsewhere")
        others[name] = read_predictions(path, films, findings)
    return others


def read_predictions(path, films, findings):
    """The probabilities in a file, (N, findings) float64. Prints what is missing or left out. Raises InputError.

    films (N,): their names, in the order of the result. A finding for which the file has no number at all is NaN. The
    file may have its rows in any order, and rows of other films, too. Names match by `find_columns`, `match_films`.
    """
    table = read_table(path)
    place, columns = find_columns(path, list(table.columns), findings)
    film_of_row = match_films(path, table.iloc[:, place], films)
    if others := int((film_of_row < 0).sum()):
        print(f"{path}: {others} rows of films that are not in the test split are left out")
    table, film_of_row = table[film_of_row >= 0], film_of_row[film_of_row >= 0]

    values = np.full((len(table), len(findings)), math.nan)
    for k, column in columns.items():
        values[:, k] = [read_number(text) for text in table.iloc[:, column]]
    for row, k in np.argwhere(np.isinf(values)):
        text, film = table.iloc[row, columns[k]], films[film_of_row[row]]
        raise InputError(f"{path}: film {film}, {findings[k]}: {text!r} is not a finite number")
    first = values[np.unique(film_of_row, return_index=True)[1]]  # the first row of each film
    differs = (values != first[film_of_row]) & ~(np.isnan(values) & np.isnan(first[film_of_row]))
    for row in np.flatnonzero(differs.any(axis=1)):
        raise InputError(f"{path}: film {films[film_of_row[row]]} is there more than once, with different numbers")

    if decided := ", ".join(finding for k, finding in enumerate(findings) if np.isin(first[:, k], (0, 1)).all()):
        print(f"{path}: only 0 and 1 for {decided}: are these decisions? An AUC needs probabilities or other scores")
    unknown = np.isnan(first)
    nowhere = unknown.all(axis=0)
    for row, k in np.argwhere(unknown & ~nowhere):
        raise InputError(f"{path}: film {films[row]} has no number for {findings[k]}, though other films have")
    if nowhere.all():
        raise InputError(f"{path}: no number for any finding")
    if nowhere.any():
        missing = ", ".join(findings[k] for k in np.flatnonzero(nowhere))
        unread = [name for k, name in enumerate(table.columns) if k != place and k not in columns.values()]
        print(f"{path}: no numbers for {missing}; columns that are not read: {shown(unread)}")
    return first


def shown(names):
    """Names of columns for a line of text."""
    return (", ".join(map(repr, names[:20])) or "none") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def column_key(name):
    """A column's name as `plain`, without `prob_` and the ".1" of a second column of that name."""
    return plain(re.sub(r"\.\d+$", "", name)).removeprefix("prob")


def find_columns(path, header, findings):
    """The place of the films' names in a header, and {finding's number: place of its probabilities}. Raises InputError.

    The films' column is `Image Index`; a finding's is `prob_<finding>`, or `<finding>` where there is no such column.
    Case, spaces and underscores do not matter. A column is an error if its name is nearly that of a missing finding,
    since it may be meant.
    """
    names = [column_key(name) for name in header]

    def find(wanted):
        places = [place for place, name in enumerate(names) if name == column_key(wanted)]
        places = [place for place in places if header[place].casefold().startswith("prob")] or places
        if len(places) > 1:
            raise InputError(f"{path}: columns {header[places[0]]!r} and {header[places[1]]!r} mean the same")
        return places[0] if places else None

    place = find("Image Index")
    columns = {k: column for k, finding in enumerate(findings) if (column := find(finding)) is not None}
    others = [name for k, name in enumerate(names) if k != place and k not in columns.values()]
    for finding in [finding for k, finding in enumerate(findings) if k not in columns]:
        if near := difflib.get_close_matches(column_key(finding), others, 1, 0.8):
            meant = header[names.index(near[0])]
            raise InputError(f"{path}: no column 'prob_{finding}'; is {meant!r} meant? Its columns: {shown(header)}")
    if place is None or not columns:
        wanted = "'Image Index'" if place is None else f"of a finding, such as 'prob_{findings[0]}'"
        raise InputError(f"{path}: no column {wanted}; its columns: {shown(header)}")
    return place, columns


def match_films(path, names, films):
    """The number of each row's film, (rows,), -1 for a film that is not one of `films` (N,). Raises InputError.

    names (rows,): those in the file, one at least for each of the films. Names match by `film_key`, unless two of the
    films differ in folder or ending only.
    """
    key = film_key if len({film_key(film) for film in films}) == len(films) else str.strip
    numbers = {key(film): k for k, film in enumerate(films)}
    film_of_row = np.array([numbers.get(key(name), -1) for name in names], dtype=int)
    absent = np.setdiff1d(range(len(films)), film_of_row)
    if len(absent):
        hint = f"; the first film there is {names.iloc[0]!r}" if len(names) else ""
        raise InputError(f"{path}: {len(absent)} test films are missing, {films[absent[0]]} among them{hint}")
    return film_of_row


def read_number(text):
    """The number in a cell, also with a decimal comma; NaN where it says that there is none; otherwise infinity."""
    text = text.strip()
    if text.casefold() in NO_NUMBER:
        return math.nan
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    return float(text) if NUMBER.fullmatch(text) else math.inf
