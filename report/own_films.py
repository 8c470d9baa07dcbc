"""One's own films: read as the films of a set are, scored by each of its networks, and shown with what these look at.

They have no labels, so there is no AUC. Nothing here is a diagnosis.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from data.fetch_chestxray14 import is_whole, walk
from data.labels_chestxray14 import key
from data.prepare_chestxray14 import reduce_film
from dataset import FINDINGS, Films
from report.figures import class_activation, draw_activation
from report.predictions import write_predictions
from support.files import InputError
from support.progress import progress
from utils import predict

STRONGEST = 5  # findings of a film whose activation maps are shown, by its probabilities


def open_own_films(folder, data, crop, device, anyway):
    """The films anywhere below `folder`, by name, as a split of the prepared set `data` would be; without labels.

    Each is squared with black and reduced to the size of the set's films, as they were. Raises InputError, naming the
    film, for one that is broken or too small, and for two of one name; for a folder without a film; and where the set
    is synthetic and a film is not pixel by pixel one of its own, unless `anyway` is true.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: give --films the folder with the films")
    found = {}
    for path in walk(folder):
        if name := key(path.name):
            if name in found:
                raise InputError(f"{found[name]} and {path} have one name: rename one, or move it away")
            found[name] = path
    if not found:
        raise InputError(f"{folder} has no film (.png, .jpg, .jpeg) in it: convert others, such as DICOM, to PNG")
    paths = [found[name] for name in sorted(found)]
    images = np.stack([read_film(path, data.images.shape[1]) for path in paths])
    if data.synthetic and not anyway:
        known = {film.tobytes() for film in data.images}
        for path, film in zip(paths, images, strict=True):
            if film.tobytes() not in known:
                why = f"not one of {data.name}'s films, and its networks know synthetic ones only"
                raise InputError(f"{path}: {why}: what they say means nothing; --films-anyway lets them")
    labels = np.zeros((len(paths), len(FINDINGS)), dtype=np.float32)
    table = pd.DataFrame({"Image Index": [path.name for path in paths], "split": "own"})
    return Films(replace(data, images=images, labels=labels, table=table), "own", crop, device)


def read_film(path, size):
    """A film as uint8 (size, size). Raises InputError."""
    if not is_whole(path):
        raise InputError(f"{path}: damaged, or no picture: give it whole, or move it away")
    with Image.open(path) as film:
        if max(film.size) < size:
            raise InputError(f"{path}: smaller than the set's films, {size} px: give it larger, or move it away")
    try:
        return reduce_film(path, size)
    except OSError as error:
        raise InputError(f"{path}: {error}: give it as it was taken, or move it away") from None


def score_own_films(results, films, networks, batch_size):
    """Write films_<network>.csv into `results`, and for each film a sheet, films/<film>.png.

    networks {name: (network, ...)}. Returns {film: {name: (films, maps, texts)}}, its sheet as
    `figures.draw_activation` takes it: the bare film, then its STRONGEST findings in falling order.
    """
    probabilities = {}
    for name, (network, *_) in networks.items():
        probabilities[name], _ = predict(network, films, batch_size)
        write_predictions(results / f"films_{name}.csv", films.names, FINDINGS, probabilities[name])
    (results / "films").mkdir(exist_ok=True)
    sheets = {}
    for k, film in enumerate(progress(films.names, "sheets", len(films))):
        sheets[film] = {name: strongest(networks[name][0], films, k, p[k]) for name, p in probabilities.items()}
        pictures, maps, texts = [], [], []
        for name, (bare_and_shown, values, captions) in sheets[film].items():
            pictures, maps = pictures + bare_and_shown, maps + values
            texts += [name.replace("$", "\\$"), *captions[1:]]  # Matplotlib would take it for a formula
        draw_activation(results / "films" / f"{Path(film).stem}.png", pictures, maps, texts)
    return sheets


def strongest(network, films, k, probabilities):
    """(films, maps, texts) of film number k for one network, see `score_own_films`; probabilities (findings,)."""
    grey = films.whole(torch.tensor([k], device=films.films.device))
    maps = class_activation(network, films.normalise(grey))[0].cpu().numpy()
    shown = np.argsort(-probabilities, kind="stable")[:STRONGEST]
    film = grey[0].round().byte().cpu().numpy()
    texts = [f"{FINDINGS[finding]}\n{probabilities[finding]:.2f}" for finding in shown]
    return [film] * (1 + len(shown)), [None, *maps[shown]], ["", *texts]
