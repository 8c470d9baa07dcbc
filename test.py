"""Stage 3: the AUC of every finding on the test split, one column per trained network, beside CheXNet.

    python test.py                                      all networks in weights/ that were trained on the set
    python test.py --predictions OTHER=FILE.csv         and another model, from its predictions; or that alone
    python test.py --films FOLDER                       and what the networks make of one's own films, without labels

Reads   data/<set>/, weights/*_net.pth
Writes  results/index.html, the page with all of it: auc.md, auc.csv, operating_points.csv, brier.csv, groups.csv,
        predictions_<network>.csv, and the pictures roc.png, auc.png, calibration.png, films.png, activation_*.png; of
        one's own films films_<network>.csv and films/*.png
"""

from pathlib import Path

import utils
from dataset import AVERAGE, Films, open_set
from report.activations import draw_examples
from report.figures import draw_auc, draw_roc
from report.networks import common_crop, costs, find_networks
from report.own_films import find_own_films, score_own_films
from report.page import write_page
from report.predictions import read_others, write_predictions
from report.sections import show_sections
from report.tables import as_markdown, describe, remarks
from scores import COSTS, auc_table, write_scores
from support import ranks
from support.devices import select_device
from support.files import lock, write
from support.settings import check_choice, check_numbers, check_texts, start

SECOND_ORDER = False  # which order's network comes first: False: first order, True: second order, which must be there
PREDICTIONS = []  # NAME=FILE.csv: another model's column, from `Image Index` and `prob_<finding>` for what it knows
FILMS = ""  # folder of films (PNG, JPEG, DICOM) without labels, to be scored by every network
FILMS_ANYWAY = False  # True: score FILMS, too, with networks that know synthetic ones only: that means nothing
SHEETS = 20  # of FILMS, the first ones: so many get a picture with activation maps; 0: none
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets, from that of this script
OUT = "."  # weights are read from below it, results written below it
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps
BATCH_SIZE = 64  # films
RESAMPLES = 2000  # of patients, for the intervals
SEED = 0  # of the resamples
MIN_PATIENTS = 10  # with a finding, for an interval of its AUC, and in val for a threshold
SENSITIVITY = 0.9  # on val, at the thresholds of the operating points


def check(settings):
    """Raise InputError for settings that make no sense."""
    check_numbers(settings, "batch_size resamples min_patients", low=1, whole=True)
    check_numbers(settings, "sheets", low=0, whole=True)
    check_numbers(settings, "seed", low=-(2**63), below=2**63, whole=True)
    check_numbers(settings, "sensitivity", above=0, below=1)
    check_choice(settings, "second_order films_anyway")
    check_texts(settings, "films")


def main(settings):
    check(settings)
    device = select_device(settings.device)
    data = open_set(settings.data, settings.dataset)

    # Networks, and what they are to score
    optional = bool(settings.predictions) and not settings.films
    networks = find_networks(Path(settings.out) / "weights", data, settings.second_order, optional)
    films, val = (Films(data, split, common_crop(networks, data), device) for split in ("test", "val"))
    folder = Path(settings.out) / "results"
    others = read_others(settings.predictions, networks, films.names, data.findings, folder)
    if settings.films:
        own = find_own_films(settings.films, networks, folder, settings.films_anyway)

    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / "lock") if ranks.rank() == 0 else None

    # Probabilities
    cost, probabilities, of_val = {}, {}, {}
    for name, (network, saved) in networks.items():
        cost[name], how = costs(network, films.crop), saved["settings"]
        probabilities[name], _ = utils.predict(network.to(device), films.seen_by(how), settings.batch_size)
        of_val[name], _ = utils.predict(network, val.seen_by(how), settings.batch_size)
    probabilities |= others
    if ranks.rank() > 0:  # under torchrun the ranks share the predictions, and the first one makes the table
        return

    # Scores
    labels, patients = data.truth("test")
    limits = settings.seed, settings.resamples, settings.min_patients
    scores, averaged, left_out = auc_table(labels, patients, probabilities, *limits, data.findings)
    for name in networks:
        scores.loc[(name, AVERAGE), COSTS] = cost[name]
        write_predictions(folder / f"predictions_{name}.csv", films.names, data.findings, probabilities[name])
    write_scores(folder / "auc.csv", scores)

    # Report
    positives = dict(zip(data.findings, labels.sum(axis=0).astype(int).tolist(), strict=True))
    table = describe(scores, positives, averaged)
    lines = remarks(scores, averaged, left_out, *limits[1:], "patients" if data.patients else "films")
    text = as_markdown(f"AUC on the test split of {data.name}: {len(films)} films, {data.notice}", table, lines)
    write(folder / "auc.md", text)
    print(text)
    draw_roc(folder / "roc.png", labels, probabilities, data.findings)
    draw_auc(folder / "auc.png", scores)
    sections = show_sections(folder, data, probabilities, of_val, settings.sensitivity, *limits)
    examples = draw_examples(folder, films, data.findings, probabilities, networks)
    sheets = {}
    if settings.films:
        points = folder / "operating_points.csv"
        sheets = score_own_films(own, networks, folder, device, settings.batch_size, settings.sheets, points)
    write_page(settings.out, data, table, lines, sections, examples, sheets, networks)
    print(f"{folder / 'index.html'} shows all of it; auc.md, auc.csv, predictions and pictures lie beside it")
    held.release()


if __name__ == "__main__":
    start(main, __file__)
