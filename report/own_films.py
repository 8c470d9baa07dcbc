"""Scores a folder of one's own films, without labels: their probabilities, and sheets with activation maps.

    python -m report.own_films FOLDER --weights weights/first_order_net.pth weights/chexnet_net.pth

needs weights files alone, and no prepared set; `test.py --films FOLDER` does the same beside its table. It reads the
PNG, JPEG and DICOM films anywhere below FOLDER, and writes films_<network>.csv and films/<film>.png into results/.
There are no labels, so there is no AUC. Nothing here is a diagnosis.
"""

import filecmp
import os
import sys
from argparse import RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch

from data.films import ENDINGS, KINDS, film_key, is_film_file, is_whole, reduce_film, tell_others, walk
from dataset import Films, PreparedSet
from report.activations import MAP_NOTE, Sheet, class_activation, draw_sheet, has_maps, overlay
from report.networks import findings_of, load_network
from report.predictions import read_thresholds, write_predictions
from support.devices import select_device
from support.files import InputError, lock, read_table
from support.progress import progress
from support.settings import Parser, guarded

STRONGEST = 5  # findings of a film whose activation maps are shown: those with the highest probabilities
SHEETS = 20  # films that get a sheet where no number is given; also the most that the page shows, which has to open
BATCH_SIZE = 64  # films


def check_networks(networks, anyway):
    """The size, px, of the films that all these networks were trained on; an older weights file says only the crop.

    Raises InputError where it differs, and for a network of a synthetic set, unless `anyway` is true.
    """
    sizes = {}
    for _, saved in networks.values():
        settings, path = saved["settings"], saved["path"]
        if settings.get("synthetic", True) and not anyway:
            why = "trained on synthetic films, or by a version that does not say on which"
            raise InputError(f"{path}: {why}: what it says of real ones means nothing; --films-anyway lets it")
        sizes[path] = settings.get("film_size", settings["crop"])
    if len(set(sizes.values())) > 1:
        raise InputError(f"the networks were trained on films of different sizes, {sizes} px: score them one by one")
    return sizes.popitem()[1]


def find_own_films(folder, networks, results, anyway):
    """The paths of the films anywhere below `folder`, in the order of their names, and the size of `check_networks`.

    networks {name: (network, what its weights file holds)}, as `load_network` returns them. Raises InputError for a
    folder without a film; and, naming the film, for two of one name, unless they have the same bytes, and for one in
    the folder `results`, where its sheet might take its place. No film is read yet.
    """
    size = check_networks(networks, anyway)
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: give the folder with the films")
    found = {path: is_film_file(path) for path in walk(folder)}
    tell_others(path.name for path, is_film in found.items() if not is_film)
    films = {}
    for path in [path for path, is_film in found.items() if is_film]:
        if os.path.realpath(path).startswith(os.path.realpath(results) + os.sep):
            raise InputError(f"{path}: lies in {results}, where sheets are written: give another folder of films")
        if (first := films.setdefault(film_key(path.name), path)) != path:
            if not filecmp.cmp(first, path, shallow=False):
                raise InputError(f"{first} and {path} have one name: rename one, or move it away")
            print(f"left out: {path}, a copy of {first}")
    if not films:
        raise InputError(f"{folder} has no film ({KINDS}) in it: convert others to PNG")
    return [films[key] for key in sorted(films)], size


def score_own_films(own, networks, results, device, batch_size, sheets, points=None):
    """Write films_<network>.csv into the folder `results`, then a sheet, films/<film>.png, of each of the first films.

    own, networks: what `find_own_films` returned and took; sheets: their number; points: operating_points.csv, by which
    films are flagged. A film that cannot be used is left out, with a line. Sheets of an earlier call are removed.
    Returns up to SHEETS of the sheets, {film: {network: `Sheet`}}. Raises InputError for `points` as
    `read_thresholds`, and where no film can be used; then nothing is written.
    """
    findings = {name: findings_of(saved) for name, (_, saved) in networks.items()}
    thresholds = {name: read_thresholds(points, name, findings[name]) if points else None for name in networks}
    names, parts, shown = [], {name: [] for name in networks}, []
    for films in read_films(*own, batch_size):
        names += [path.name for path in films]
        shown += [*films.values()][: max(sheets - len(shown), 0)]
        for name, (network, saved) in networks.items():
            batch = as_films([*films.values()], saved, device).eval_batch(slice(None))
            with torch.inference_mode():
                parts[name].append(network.to(device).eval()(batch).cpu().double().sigmoid().numpy())
    probabilities = {name: np.concatenate(part) for name, part in parts.items()}

    forget_sheets(results)
    for name, (_, saved) in networks.items():
        at, settings = results / f"films_{name}.csv", saved["settings"]
        write_predictions(at, names, findings[name], probabilities[name], thresholds[name])
        notice = f"{'synthetic, ' * settings.get('synthetic', True)}not for clinical use"
        print(f"{at}: {len(names)} films, by a network of {settings['dataset']} ({notice}); no diagnosis")
    (results / "films").mkdir(exist_ok=True)
    first = {}
    for k, film in enumerate(progress(shown, "sheets", len(shown))):
        of_film = {}
        for name, (network, saved) in networks.items():
            one = as_films([film], saved, device)
            of_film[name] = strongest(network, one, findings[name], probabilities[name][k])
        pictures = [picture for sheet in of_film.values() for picture in sheet.pictures]
        captions = []
        for name, sheet in of_film.items():
            captions += [f"{name}\n{sheet.captions[0]}".strip(), *sheet.captions[1:]]
        note = max(sheet.note for sheet in of_film.values())  # "" for a network whose films have no maps
        draw_sheet(sheet_path(results, names[k]), Sheet(pictures, captions, note))
        if k < SHEETS:
            first[names[k]] = of_film
    return first


def read_films(paths, size, batch_size):
    """Yields the films in batches, {path: uint8 (size, size)}, without those that cannot be used: a line names each.

    Raises InputError where no film can be used, and where the package that reads one is missing.
    """
    broken = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(None, "films", len(paths)) as bar:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            films = dict(zip(part, pool.map(read_film, part, repeat(size)), strict=True))
            broken += [(path, films.pop(path)) for path in part if isinstance(films[path], str)]
            if films:
                yield films
            bar.update(len(part))
    for path, why in broken:
        print(f"left out: {path}: {why}")
    if len(broken) == len(paths):
        raise InputError(f"{path}: {why} (no film of {len(paths)} can be used)")


def read_film(path, size):
    """A film as uint8 (size, size), or a text on why it cannot be used. Raises InputError for a missing package."""
    if not is_whole(path):
        return "damaged, or no picture: give it whole, or move it away"
    try:
        return reduce_film(path, size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        return f"{error}: give it as it was taken, or move it away"


def as_films(pixels, saved, device):
    """Reduced films, each uint8 (size, size), as `dataset.Films` without labels for the network of a weights file."""
    settings, findings = saved["settings"], findings_of(saved)
    table = pd.DataFrame({"Image Index": range(len(pixels)), "split": "own"})
    labels = np.zeros((len(pixels), len(findings)), np.float32)
    data = PreparedSet("own", np.stack(pixels), labels, table, "", findings, "small", False, False)
    return Films(data, "own", settings["crop"], device, settings.get("standardise", False))


def forget_sheets(results):
    """Remove the sheets of an earlier call, whose films its films_<network>.csv name."""
    for path in results.glob("films_*.csv"):
        with suppress(ValueError, KeyError):  # not written here
            for film in read_table(path)["Image Index"]:
                sheet_path(results, film).unlink(missing_ok=True)


def sheet_path(folder, film):
    return folder / "films" / f"{ENDINGS.sub('', film)}.png"


def strongest(network, films, findings, probabilities):
    """The `Sheet` of a single film: the film alone, then its STRONGEST findings in falling order.

    films: it, as of `as_films`; probabilities (findings,), of the network for it. Where `has_maps` says no, the
    findings stand below the film.
    """
    film = films.whole(slice(None))[0].round().byte().cpu().numpy()
    shown = np.argsort(-probabilities, kind="stable")[:STRONGEST]
    if not has_maps(films):
        return Sheet([film], ["\n".join(f"{findings[k]} {probabilities[k]:.2f}" for k in shown)])
    maps = class_activation(network, films.eval_batch(slice(None)))[0].cpu().numpy()
    captions = [f"{findings[k]}\n{probabilities[k]:.2f}" for k in shown]
    return Sheet([film, *(overlay(film, maps[k]) for k in shown)], ["", *captions], MAP_NOTE)


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with the films")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="of the networks, <name>_net.pth")
    parser.add_argument("--operating-points", metavar="FILE", help="of test.py: flags films by the thresholds in it")
    parser.add_argument("--films-anyway", action="store_true", help="also with networks of synthetic films")
    parser.add_argument("--sheets", type=int, default=SHEETS, help="for so many films; 0: none (%(default)s)")
    parser.add_argument("--out", default=".", help="results/ is written below it (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    with guarded():
        options = parser.parse_args(argv)
        networks, results = {}, Path(options.out) / "results"
        for path in options.weights:
            name = Path(path).name.removesuffix(".pth").removesuffix("_net")
            if name in networks:
                raise InputError(f"{networks[name][1]['path']} and {path} have one name: copy one to another name")
            networks[name] = load_network(path)
        paths = find_own_films(options.folder, networks, results, options.films_anyway)
        device = select_device(options.device)
        results.mkdir(parents=True, exist_ok=True)
        held = lock(results / "lock")
        score_own_films(paths, networks, results, device, BATCH_SIZE, options.sheets, options.operating_points)
        held.release()


if __name__ == "__main__":
    main()
