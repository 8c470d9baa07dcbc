"""A model's predictions as a CSV file: as this project writes them, and as people have them from other models."""

import difflib
import math
import re

import numpy as np
import pandas as pd

from support.files import InputError, read_table, write

NO_NUMBER = ("", "nan", "-nan", "n/a", "#n/a", "na", "<na>", "null", "none")  # in lower case
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def write_predictions(path, films, findings, probabilities):
    """A CSV that `read_predictions` reads: films (N,), probabilities (N, findings), every digit of a float64."""
    columns = {f"prob_{finding}": probabilities[:, k] for k, finding in enumerate(findings)}
    write(path, pd.DataFrame({"Image Index": films} | columns).to_csv(index=False, lineterminator="\n"))


def read_predictions(path, films, findings):
    """The probabilities in a file, (N, findings) float64, and lines to tell about it. Raises InputError.

    films (N,): names, in the order of the result. A finding that the file has no number for at all is NaN. Rows may
    stand in any order, and for other films, too; for the names see `find_columns` and `match_films`.
    """
    table = read_table(path)
    place, columns = find_columns(path, list(table.columns), findings)
    film_of_row, row_of_film, others = match_films(path, table.iloc[:, place], films)

    inside = film_of_row >= 0
    values = np.full((len(table), len(findings)), math.nan)
    for k, column in columns.items():
        values[inside, k] = [read_number(text) for text in table.iloc[inside, column]]
    for row, k in np.argwhere(np.isinf(values)):
        text, film = table.iloc[row, columns[k]], films[film_of_row[row]]
        raise InputError(f"{path}: film {film}, {findings[k]}: {text!r} is not a finite number")
    first = values[row_of_film]
    of_film = first[film_of_row]  # (rows, findings); what it holds for other films is not looked at
    same = (values == of_film) | (np.isnan(values) & np.isnan(of_film))
    for row in np.flatnonzero(inside & ~same.all(axis=1)):
        raise InputError(f"{path}: film {films[film_of_row[row]]} is there more than once, with different numbers")

    unknown = np.isnan(first)
    nowhere = unknown.all(axis=0)
    for row, k in np.argwhere(unknown & ~nowhere):
        raise InputError(f"{path}: film {films[row]} has no number for {findings[k]}, though other films have")
    if nowhere.all():
        raise InputError(f"{path}: no number for any finding")
    remarks = [f"{path}: {others} films that are not in the test split are ignored"] if others else []
    if nowhere.any():
        missing = ", ".join(findings[k] for k in np.flatnonzero(nowhere))
        unread = [name for k, name in enumerate(table.columns) if k != place and k not in columns.values()]
        remarks.append(f"{path}: no numbers for {missing}; columns that are not read: {shown(unread)}")
    return first, remarks


def shown(names):
    """Names of columns for a line of text."""
    return (", ".join(map(repr, names[:20])) or "none") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def plain(name):
    """A column's name without what does not matter: case, spaces, marks, `prob_`, and the ".1" of a second column."""
    return re.sub(r"[\W_]+", "", re.sub(r"\.\d+$", "", name)).casefold().removeprefix("prob")


def find_columns(path, header, findings):
    """The place of the films' names in a header, and {finding's number: place of its probabilities}. Raises InputError.

    The films' column is `Image Index`; a finding's is `prob_<finding>`, or `<finding>` where there is no such column.
    Case, spaces and underscores do not matter. A name that is nearly a missing finding's is an error: it may be meant.
    """
    names = [plain(name) for name in header]

    def find(wanted):
        places = [place for place, name in enumerate(names) if name == plain(wanted)]
        marked = [place for place in places if header[place].casefold().startswith("prob")]
        places = marked or places
        if len(places) > 1:
            raise InputError(f"{path}: columns {header[places[0]]!r} and {header[places[1]]!r} mean the same")
        return places[0] if places else None

    def nearest(wanted, places, likeness):
        close = difflib.get_close_matches(plain(wanted), [names[place] for place in places], 1, likeness)
        return header[names.index(close[0])] if close else None

    place = find("Image Index")
    if place is None:
        near = nearest("Image Index", range(len(names)), 0.5)
        hint = f" (nearest: {near!r})" if near else ""
        raise InputError(f"{path}: no column 'Image Index'{hint}; its columns: {shown(header)}")
    found = {k: find(finding) for k, finding in enumerate(findings)}
    columns = {k: column for k, column in found.items() if column is not None}
    unread = [k for k in range(len(names)) if k != place and k not in columns.values()]
    for k, finding in enumerate(findings):
        near = None if k in columns else nearest(finding, unread, 0.8)
        if near:
            raise InputError(f"{path}: no column 'prob_{finding}'; is {near!r} meant? Its columns: {shown(header)}")
    if not columns:
        raise InputError(f"{path}: no column of a finding, such as 'prob_{findings[0]}'; its columns: {shown(header)}")
    return place, columns


def match_films(path, names, films):
    """For each row its film's number or -1, for each film its first row, and how many other films there are.

    names (rows,), of a file's rows, and films (N,) match without regard to case, folder and extension, unless the films
    themselves differ in nothing else. Raises InputError for a film without a row.
    """

    def stem(name):
        return re.sub(r"(\.[a-z][a-z0-9]{0,4})+$", "", re.split(r"[/\\]", name.strip().casefold())[-1])

    key = stem if len({stem(film) for film in films}) == len(films) else str.strip
    keys = np.array([key(name) for name in names], dtype=object)
    film_of_row = pd.Index([key(film) for film in films]).get_indexer(keys)
    inside = np.flatnonzero(film_of_row >= 0)[::-1]
    row_of_film = np.full(len(films), -1)
    row_of_film[film_of_row[inside]] = inside  # the first of a film's rows comes last, and stays
    absent = np.flatnonzero(row_of_film < 0)
    if len(absent):
        hint = f"; the first film there is {names.iloc[0]!r}" if len(names) else ""
        raise InputError(f"{path}: {len(absent)} test films are missing, {films[absent[0]]} among them{hint}")
    return film_of_row, row_of_film, len(set(keys[film_of_row < 0]))


def read_number(text):
    """The number in a cell, also with a decimal comma; NaN where it says that there is none; else infinity."""
    text = text.strip()
    if text.casefold() in NO_NUMBER:
        return math.nan
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    return float(text) if NUMBER.fullmatch(text) else math.inf
