"""Stage 3: the AUC of every finding on the test split, one column per trained network, beside CheXNet.

    python test.py                                      all networks in weights/ that were trained on the set
    python test.py --predictions OTHER=FILE.csv         and another model, from its predictions; or that alone
    python test.py --films FOLDER                       and what the networks make of one's own films, without labels

Reads   data/<set>/, weights/*_net.pth
Writes  results/index.html, the page with all of it: auc.md, auc.csv, predictions_<network>.csv, and the pictures
        roc.png, auc.png, films.png, activation_*.png; of one's own films films_<network>.csv and films/*.png
"""

import re
from functools import partial
from pathlib import Path

import torch

import model_eval
import utils
from chexnet import CheXNet
from dataset import FINDINGS, Films, open_set
from genotypes import parse_genotype
from report import figures
from report.own_films import open_own_films, score_own_films
from report.page import write_page
from report.predictions import read_predictions, write_predictions
from scores import AVERAGE, BASELINE, COSTS, auc_table, format_table, notes, write_scores
from support.devices import select_device
from support.files import InputError, load_state, lock, write
from support.settings import start

SECOND_ORDER = False  # which order's network comes first: False: first order, True: second order, which must be there
PREDICTIONS = []  # NAME=FILE.csv: another model's column, from `Image Index` and `prob_<finding>` for what it knows
FILMS = ""  # folder of films (PNG, JPEG) without labels, to be scored by every network
FILMS_ANYWAY = False  # True: score real FILMS, too, with networks that know synthetic ones only: that means nothing
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets, from that of this script
OUT = "."  # weights are read from below it, results written below it
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps
BATCH_SIZE = 64  # films
RESAMPLES = 2000  # of patients, for the intervals
SEED = 0  # of the resamples
MIN_PATIENTS = 10  # with a finding, for an interval of its AUC


def load_network(path):
    """The network in a weights file, and the file's plain data. Raises InputError."""
    try:
        saved = load_state(path)
        settings, genotype = saved["settings"], saved["settings"].get("genotype")
        if genotype is None:
            network = CheXNet(len(FINDINGS))
        else:
            network = model_eval.Network(settings["c"], len(FINDINGS), settings["layers"], parse_genotype(genotype))
        network.load_state_dict(saved["weights"])
        if absent := {"checksum", "crop", "dataset"} - settings.keys() | {"epoch", "val_auc"} - saved.keys():
            raise KeyError(*absent)
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        what = f"damaged, or not a weights file of this project ({type(error).__name__})"
        raise InputError(f"{path}: {what}: train it again, or move it away") from None
    if not all(tensor.isfinite().all() for tensor in saved["weights"].values()):
        raise InputError(f"{path}: holds weights that are not finite: train it again, or move it away")
    return network, saved


def find_networks(folder, order, data, others):
    """{name: (network, saved)} of the weights files trained on `data`, the selected order first, CheXNet last.

    others: whether other columns are enough. If not, one network must be there, and the second order's, if that is
    selected. Raises InputError.
    """
    selected, networks, foreign = f"{order}_order", {}, {}
    for path in sorted(folder.glob("*_net.pth")):
        name = path.name.removesuffix("_net.pth")
        network, saved = load_network(path)
        if saved["settings"]["checksum"] == data.checksum:
            networks[name] = network, saved
        else:
            trained_on = saved["settings"]["dataset"]
            foreign[name] = f"{path}: trained on another set ({trained_on}, or another version of {data.name})"
    missing = selected not in networks and not others
    required = missing and (order == "second" or not networks)
    for name, problem in foreign.items():
        if name != selected or not required:
            print(f"{problem}, left out")
    command = f"'python val_train.py{' --second-order' * (order == 'second')}'"
    if required:
        raise InputError(
            foreign.get(selected, f"{folder / selected}_net.pth is missing: run {command} first, with the same --out")
        )
    if missing and selected not in foreign:
        print(f"{folder / selected}_net.pth is not there: {command} makes it")
    names = sorted(networks, key=lambda name: (name == BASELINE, name != selected, name))
    return {name: networks[name] for name in names}


def common_crop(networks, data):
    """The networks' common crop; without networks the films' size, down to a multiple of 32. Raises InputError."""
    crops = {name: saved["settings"]["crop"] for name, (_, saved) in networks.items()}
    if len(set(crops.values())) > 1:  # their scores would not be comparable
        where = "move the others out of weights/, or train them again with --crop"
        raise InputError(f"the networks were trained at different crops, {crops}: {where}")
    return next(iter(crops.values()), data.images.shape[1] // 32 * 32)


def read_others(items, taken, films):
    """{name: probabilities (N, findings)} of the items NAME=FILE; taken: names in use. Raises InputError."""
    others = {}
    for item in items:
        name, _, path = (part.strip() for part in item.partition("="))
        if not name or not path or name in taken or name in others or re.search(r"[\0-\x1f\x7f\ud800-\udfff]", name):
            raise InputError(f"--predictions {item!r}: must be NAME=FILE.csv, with a printable name not yet in use")
        others[name], remarks = read_predictions(path, films, FINDINGS)
        for remark in remarks:
            print(remark)
    return others


def draw(folder, table, films, probabilities, networks):
    """ROC curves, the table as dots, and for each finding a film that has it, with what two networks made of it.

    Returns {network: (films, maps, texts)} of the two, as `figures.draw_activation` takes them.
    """
    labels = films.labels.cpu().numpy()
    shown = {name: name.replace("$", "\\$") for name in probabilities}  # Matplotlib would take it for a formula,
    shown |= {name: f" {text}" for name, text in shown.items() if text[0] == "_"}  # and leave it out of legends
    scores = {text: probabilities[name] for name, text in shown.items()}
    figures.draw_roc(folder / "roc.png", labels, scores, FINDINGS)
    scores = {text: table.loc[name, ["auc", "low", "high"]].to_numpy() for name, text in shown.items()}
    figures.draw_auc(folder / "auc.png", scores, [*FINDINGS, AVERAGE])

    present = [k for k in range(len(FINDINGS)) if labels[:, k].any()]
    index = torch.tensor([int(labels[:, k].argmax()) for k in present])  # the first film with the finding
    grey = films.whole(index.to(films.labels.device))
    batch, grey = films.normalise(grey), grey.round().byte().cpu().numpy()
    found = ["|".join(f for f, label in zip(FINDINGS, labels[i], strict=True) if label) for i in index.tolist()]
    figures.draw_activation(folder / "films.png", grey, [None] * len(grey), found)
    drawn = {}
    for name in [name for k, name in enumerate(networks) if k == 0 or name == BASELINE]:
        maps = figures.class_activation(networks[name][0], batch)[torch.arange(len(present)), present]
        scores = probabilities[name][index.numpy(), present]
        texts = [f"{FINDINGS[k]}\n{score:.2f}" for k, score in zip(present, scores, strict=True)]
        drawn[name] = grey, maps.cpu().numpy(), texts
        figures.draw_activation(folder / f"activation_{name}.png", *drawn[name])
    return drawn


def main(settings):
    device = select_device(settings.device)
    order = "second" if settings.second_order else "first"
    data = open_set(settings.data, settings.dataset)
    enough = bool(settings.predictions) and not settings.films
    networks = find_networks(Path(settings.out) / "weights", order, data, enough)
    films = Films(data, "test", common_crop(networks, data), device)
    others = read_others(settings.predictions, networks, films.names)
    own = None
    if settings.films:
        own = open_own_films(settings.films, data, films.crop, device, settings.films_anyway)
    results = Path(settings.out) / "results"
    results.mkdir(parents=True, exist_ok=True)
    held = lock(results / "lock")
    probabilities, costs = {}, {}
    for name, (network, _) in networks.items():
        with torch.inference_mode():
            film = torch.zeros(1, 3, films.crop, films.crop)
            multiply_adds = utils.count_multiply_adds(partial(network.eval(), film))
        costs[name] = sum(p.numel() for p in network.parameters()) / 1e6, multiply_adds / 1e9
        probabilities[name], _ = utils.predict(network.to(device), films, settings.batch_size)

    labels = films.labels.cpu().numpy()
    patients = data.table["Patient ID"].to_numpy()[data.rows("test")]
    limits = settings.resamples, settings.min_patients
    table, averaged, left_out = auc_table(labels, patients, probabilities | others, settings.seed, *limits)
    for name in networks:
        table.loc[(name, AVERAGE), COSTS] = costs[name]
    title = f"AUC on the test split of {data.name}: {len(films)} films, {data.notice}"
    positives = dict(zip(FINDINGS, labels.sum(axis=0).astype(int).tolist(), strict=True))
    remarks = notes(table, averaged, left_out, *limits)
    text = format_table(table, positives, averaged, remarks, title)

    write(results / "auc.md", text)
    write_scores(results / "auc.csv", table)
    for name in networks:
        write_predictions(results / f"predictions_{name}.csv", films.names, FINDINGS, probabilities[name])
    print(text)
    activations = draw(results, table, films, probabilities | others, networks)
    sheets = score_own_films(results, own, networks, settings.batch_size) if own else {}
    write_page(settings.out, data, table, averaged, remarks, activations, sheets, networks)
    if own:
        print(f"films in {settings.films}: {len(own)}, scored by networks of {data.name} ({data.notice}); no diagnosis")
    print(f"{results / 'index.html'} shows all of it; auc.md, auc.csv, predictions and pictures lie beside it")
    held.release()


if __name__ == "__main__":
    start(main, __file__)
