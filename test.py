"""Stage 3: the AUC of every finding on the test split, one column per trained network, beside CheXNet.

    python test.py                                      all networks in weights/ that were trained on the set
    python test.py --predictions OTHER=FILE.csv         and another model, from its predictions

Reads   data/<set>/, weights/*_net.pth
Writes  results/auc.md, auc.csv, predictions_<network>.csv; pictures: roc.png, auc.png, films.png, activation_*.png
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import model_eval
import utils
import visualize
from chexnet import CheXNet
from dataset import FINDINGS, Films, open_set
from genotypes import parse_genotype
from scores import auc_table, format_table
from support.files import InputError, load_state
from support.settings import start

SECOND_ORDER = False  # which order's network must be there: False: first order, True: second order
PREDICTIONS = []  # NAME=FILE.csv: another model's column, from `Image Index` and one `prob_<finding>` per finding
DATASET = "phantom"  # phantom, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
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
        if not {"checksum", "crop", "dataset"} <= settings.keys():
            raise ValueError("it does not say what it was trained on")
    except Exception as error:  # torch raises many kinds for a file that is not what it should be
        kind = type(error).__name__
        raise InputError(f"{path}: damaged, or not a weights file of this project ({kind}); train it anew") from None
    return network, saved


def find_networks(folder, order, data):
    """{name: (network, saved)} of the weights files trained on `data`, the selected order first, CheXNet last."""
    required = f"{order}_order"
    option = " --second-order" if order == "second" else ""
    for name, command in ((required, f"val_train.py{option}"), ("chexnet", "chexnet.py")):
        if not (folder / f"{name}_net.pth").exists():
            raise InputError(f"{folder / name}_net.pth is missing: run 'python {command}' first, with the same --out")
    networks = {}
    for path in sorted(folder.glob("*_net.pth")):
        name = path.name.removesuffix("_net.pth")
        network, saved = load_network(path)
        if saved["settings"]["checksum"] == data.checksum:
            networks[name] = network, saved
        elif name in (required, "chexnet"):
            trained_on = saved["settings"]["dataset"]
            raise InputError(f"{path}: trained on another set ({trained_on}, or another version of {data.name})")
        else:
            print(f"{path}: left out, trained on another set ({saved['settings']['dataset']})")
    names = sorted(networks, key=lambda name: (name == "chexnet", name != required, name))
    return {name: networks[name] for name in names}


def multiply_adds(network, crop):
    """Multiply-adds for one film, in convolutions and linear layers."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, crop, crop))
    return counter.get_total_flops() / 2


def read_predictions(path, names):
    """Probabilities (len(names), findings) from a CSV file, and how many other films it holds. Raises InputError."""
    columns = [f"prob_{finding}" for finding in FINDINGS]
    try:
        table = pd.read_csv(path, dtype={"Image Index": str})
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
    missing = [column for column in ["Image Index", *columns] if column not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}")
    repeated = table["Image Index"][table["Image Index"].duplicated()]
    if len(repeated):
        raise InputError(f"{path}: {repeated.nunique()} films are there more than once, {repeated.iloc[0]} among them")
    table = table.set_index("Image Index")
    absent = [name for name in names if name not in table.index]
    if absent:
        raise InputError(f"{path}: {len(absent)} test films are missing, {absent[0]} among them")
    values = table.loc[list(names), columns].apply(pd.to_numeric, errors="coerce")
    bad = ~np.isfinite(values.to_numpy(dtype=float))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(f"{path}: film {names[row]}, {columns[column]}: not a number ({bad.sum()} such values)")
    return values.to_numpy(dtype=float), len(table) - len(names)


def write_predictions(path, names, probabilities):
    """The form that `read_predictions` reads; every digit that a float64 has."""
    columns = {f"prob_{finding}": probabilities[:, k] for k, finding in enumerate(FINDINGS)}
    pd.DataFrame({"Image Index": names} | columns).to_csv(path, index=False, lineterminator="\n")


def draw(folder, table, films, labels, probabilities, networks):
    """ROC curves, the table as dots, and for each finding a film that has it, with what two networks made of it."""
    visualize.draw_roc(folder / "roc.png", labels, probabilities, FINDINGS)
    rows = [*FINDINGS, "Average"]
    scores = {name: table.loc[rows, [name, f"{name}_low", f"{name}_high"]].to_numpy() for name in probabilities}
    visualize.draw_auc(folder / "auc.png", scores, rows)

    shown = [k for k in range(len(FINDINGS)) if labels[:, k].any()]
    index = torch.tensor([int(labels[:, k].argmax()) for k in shown])  # the first film with the finding
    grey = films.whole(index.to(films.labels.device))
    batch, grey = films.normalise(grey), grey.round().byte().cpu().numpy()
    found = ["|".join(f for f, label in zip(FINDINGS, labels[i], strict=True) if label) for i in index.tolist()]
    visualize.draw_films(folder / "films.png", grey, found)
    for name in (next(iter(networks)), "chexnet"):
        maps = visualize.class_activation(networks[name][0], batch)[torch.arange(len(shown)), shown]
        visualize.draw_activation(
            folder / f"activation_{name}.png", grey, maps.cpu().numpy(), [FINDINGS[k] for k in shown]
        )


def main(settings):
    device = utils.select_device(settings.device)
    order = "second" if settings.second_order else "first"
    data = open_set(settings.data, settings.dataset)
    networks = find_networks(Path(settings.out) / "weights", order, data)
    # Every network was trained at the same crop of this set, or its score would not be comparable.
    crops = {name: saved["settings"]["crop"] for name, (_, saved) in networks.items()}
    if len(set(crops.values())) > 1:
        raise InputError(f"the networks were trained at different crops: {crops}")
    crop = crops["chexnet"]
    films = Films(data, "test", crop, device)
    probabilities, costs = {}, {}
    for item in settings.predictions:
        name, _, path = item.partition("=")
        if not name or not path or name in networks or name in probabilities:
            raise InputError(f"--predictions {item}: must be NAME=FILE.csv, with a name not yet in use")
        probabilities[name], ignored = read_predictions(path, films.names)
        if ignored:
            print(f"{path}: {ignored} films that are not in the test split are ignored")

    for name, (network, _) in networks.items():
        parameters = sum(p.numel() for p in network.parameters())
        costs[name] = {"Parameters (M)": parameters / 1e6, "Multiply-adds (G)": multiply_adds(network, crop) / 1e9}
        probabilities[name], _ = utils.predict(network.to(device), films, settings.batch_size)
    others = [name for name in probabilities if name not in networks]
    probabilities = {name: probabilities[name] for name in [*networks, *others]}

    labels = films.labels.cpu().numpy()
    patients = data.table["Patient ID"].to_numpy()[data.rows("test")]
    limits = settings.resamples, settings.min_patients
    table, averaged, left_out = auc_table(labels, patients, probabilities, settings.seed, *limits)
    title = f"AUC on the test split of {data.name}: {len(films)} films, {data.notice}"
    positives = dict(zip(FINDINGS, labels.sum(axis=0).astype(int).tolist(), strict=True))
    table = pd.concat([table, pd.DataFrame(costs).reindex(columns=table.columns)])
    text = format_table(table, list(probabilities), positives, averaged, left_out, title, *limits)

    results = Path(settings.out) / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "auc.md").write_text(text, encoding="utf-8")
    table.rename_axis("finding").to_csv(results / "auc.csv", lineterminator="\n")
    for name in networks:
        write_predictions(results / f"predictions_{name}.csv", films.names, probabilities[name])
    print(text)
    draw(results, table, films, labels, probabilities, networks)
    print(f"also in {results / 'auc.md'} and {results / 'auc.csv'}; predictions and pictures beside them")


if __name__ == "__main__":
    start(main, __file__)
