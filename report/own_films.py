"""Reads a user's own films like those of a set, and shows what each network makes of them, with activation maps.

They have no labels, so there is no AUC. Nothing here is a diagnosis.
"""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.films import ENDINGS, KINDS, film_key, is_film_file, is_whole, reduce_film, tell_others, walk
from dataset import Films
from report.activations import MAP_NOTE, Sheet, class_activation, draw_sheet, overlay
from report.predictions import write_predictions
from support.files import InputError, read_table
from support.progress import progress

STRONGEST = 5  # findings of a film whose activation maps are shown: those with the highest probabilities


def open_own_films(folder, data, crop, device, anyway, results):
    """The films of `read_folder`, in the order of their names, as `dataset.Films` without labels.

    Each is squared with black and reduced to the size of the films of the prepared set `data`, as these were. Raises
    InputError where the set is synthetic and a film is not one of its own, pixel by pixel, unless `anyway` is true.
    """
    size = data.images.shape[1]
    films = read_folder(folder, size, results)
    if data.synthetic and not anyway:
        known = {film.tobytes() for film in data.images}
        for path in [path for pixels, path in films.items() if pixels not in known]:
            why = f"not one of {data.name}'s films, and its networks know synthetic ones only"
            raise InputError(f"{path}: {why}: what they say means nothing; --films-anyway lets them")
    images = np.frombuffer(b"".join(films), np.uint8).reshape(-1, size, size)
    labels = np.zeros((len(films), len(data.findings)), dtype=np.float32)
    table = pd.DataFrame({"Image Index": [path.name for path in films.values()], "split": "own"})
    return Films(replace(data, images=images, labels=labels, table=table), "own", crop, device)


def read_folder(folder, size, results):
    """The films anywhere below `folder`, {pixels: path}, sorted by name; a copy of another film is left out.

    Raises InputError, naming the film, for one that is broken or smaller than `size` px, for two of one name, and for
    one in the folder `results`, where its sheet might take its place; and for a folder without a film.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: give --films the folder with the films")
    found = {path: is_film_file(path) for path in walk(folder)}
    tell_others(path.name for path, is_film in found.items() if not is_film)
    films, names, copies = {}, {}, []  # names {film_key: path}
    paths = [path for path, is_film in found.items() if is_film]
    for path in sorted(paths, key=lambda path: (len(path.name), path)):  # a copy's name is longer
        if os.path.realpath(path).startswith(os.path.realpath(results) + os.sep):
            raise InputError(f"{path}: lies in {results}, where sheets are written: give --films another folder")
        if (first := films.setdefault(read_film(path, size).tobytes(), path)) != path:
            copies.append(f"{path} of {first}")
        elif (first := names.setdefault(film_key(path.name), path)) != path:
            raise InputError(f"{first} and {path} have one name: rename one, or move it away")
    if not films:
        raise InputError(f"{folder} has no film ({KINDS}) in it: convert others to PNG")
    if copies:
        print(f"left out: {len(copies)} files that are copies, such as {copies[0]}")
    return dict(sorted(films.items(), key=lambda film: film_key(film[1].name)))


def read_film(path, size):
    """A film as uint8 (size, size). Raises InputError."""
    if not is_whole(path):
        raise InputError(f"{path}: damaged, or no picture: give it whole, or move it away")
    try:
        return reduce_film(path, size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error}: give it as it was taken, or move it away") from None


def show_own_films(folder, films, findings, networks, probabilities):
    """Write films_<network>.csv into `folder`, and for each film a sheet, films/<film>.png, in the place of older ones.

    films: of `open_own_films`; networks {name: (network, its file)}; probabilities {name: (N, findings)}. Returns
    {film: {name: `Sheet`}}.
    """
    for path in folder.glob("films_*.csv"):  # of an earlier call, whose films these files name
        with suppress(ValueError, KeyError):  # not written here
            for film in read_table(path)["Image Index"]:
                sheet_path(folder, film).unlink(missing_ok=True)
    sheets = {film: {} for film in films.names}
    for name, (network, saved) in networks.items():
        seen = films.seen_by(saved["settings"])
        write_predictions(folder / f"films_{name}.csv", films.names, findings, probabilities[name])
        for k, film in enumerate(films.names):
            sheets[film][name] = strongest(network, seen, k, findings, probabilities[name][k])
    (folder / "films").mkdir(exist_ok=True)
    for film, of_network in progress(sheets.items(), "sheets", len(sheets)):
        pictures, captions = [], []
        for name, sheet in of_network.items():
            pictures, captions = pictures + sheet.pictures, [*captions, name, *sheet.captions[1:]]
        draw_sheet(sheet_path(folder, film), Sheet(pictures, captions, sheet.note))
    return sheets


def sheet_path(folder, film):
    return folder / "films" / f"{ENDINGS.sub('', film)}.png"


def strongest(network, films, k, findings, probabilities):
    """The `Sheet` of film number k: the film alone, then its STRONGEST findings in falling order.

    probabilities (findings,), of the network for this film.
    """
    maps = class_activation(network, films.eval_batch(slice(k, k + 1)))[0].cpu().numpy()
    film = films.whole(slice(k, k + 1))[0].round().byte().cpu().numpy()
    shown = np.argsort(-probabilities, kind="stable")[:STRONGEST]
    captions = [f"{findings[k]}\n{probabilities[k]:.2f}" for k in shown]
    return Sheet([film, *(overlay(film, maps[k]) for k in shown)], ["", *captions], MAP_NOTE)
