"""Stage 3: the AUC of every finding on the test split, one column per trained network, beside CheXNet.

    python test.py                                      all networks in weights/ that were trained on the set
    python test.py --predictions OTHER=FILE.csv         and another model, from its predictions

Reads   data/<set>/, weights/*_net.pth
Writes  results/auc.md, results/auc.csv, results/predictions_<network>.csv
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import model_eval
import utils
from chexnet import CheXNet
from dataset import FINDINGS, Films, open_set
from genotypes import parse_genotype

SECOND_ORDER = False  # which order's network must be there: False: first order, True: second order
PREDICTIONS = []  # NAME=FILE.csv: another model's column, from `Image Index` and one `prob_<finding>` per finding
DATASET = "phantom"  # phantom, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # weights are read from below it, results written below it
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps
BATCH_SIZE = 64  # films


def load_network(path):
    """The network in a weights file, and the file's plain data. Raises ValueError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
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
        raise ValueError(f"{path}: damaged, or not a weights file of this project ({kind}); train it anew") from None
    return network, saved


def find_networks(folder, order, data):
    """{name: (network, saved)} of the weights files trained on `data`, the selected order first, CheXNet last."""
    required = f"{order}_order"
    option = " --second-order" if order == "second" else ""
    for name, command in ((required, f"val_train.py{option}"), ("chexnet", "chexnet.py")):
        if not (folder / f"{name}_net.pth").exists():
            raise ValueError(f"{folder / name}_net.pth is missing: run 'python {command}' first, with the same --out")
    networks = {}
    for path in sorted(folder.glob("*_net.pth")):
        name = path.name.removesuffix("_net.pth")
        network, saved = load_network(path)
        if saved["settings"]["checksum"] == data.checksum:
            networks[name] = network, saved
        elif name in (required, "chexnet"):
            trained_on = saved["settings"]["dataset"]
            raise ValueError(f"{path}: trained on another set ({trained_on}, or another version of {data.name})")
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
    """Probabilities (len(names), findings) from a CSV file, and how many other films it holds. Raises ValueError."""
    columns = [f"prob_{finding}" for finding in FINDINGS]
    try:
        table = pd.read_csv(path, dtype={"Image Index": str})
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path}: cannot be read as CSV ({str(error).strip()})") from None
    missing = [column for column in ["Image Index", *columns] if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]!r}")
    repeated = table["Image Index"][table["Image Index"].duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: {repeated.nunique()} films are there more than once, {repeated.iloc[0]} among them")
    table = table.set_index("Image Index")
    absent = [name for name in names if name not in table.index]
    if absent:
        raise ValueError(f"{path}: {len(absent)} test films are missing, {absent[0]} among them")
    values = table.loc[list(names), columns].apply(pd.to_numeric, errors="coerce")
    bad = ~np.isfinite(values.to_numpy(dtype=float))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"{path}: film {names[row]}, {columns[column]}: not a number ({bad.sum()} such values)")
    return values.to_numpy(dtype=float), len(table) - len(names)


def write_predictions(path, names, probabilities):
    """The form that `read_predictions` reads; every digit that a float64 has."""
    columns = {f"prob_{finding}": probabilities[:, k] for k, finding in enumerate(FINDINGS)}
    pd.DataFrame({"Image Index": names} | columns).to_csv(path, index=False, lineterminator="\n")


def auc_table(labels, probabilities, costs):
    """The table as a data frame: a row per finding, then the average, the costs and the difference to the baseline.

    labels (N, findings); probabilities {name: (N, findings)}; costs {name: (parameters, multiply-adds)}. The average
    runs over the findings that have a positive and a negative film, the same for every column.
    """
    table = pd.DataFrame({name: utils.auc_per_finding(labels, p) for name, p in probabilities.items()}, FINDINGS)
    average = table.apply(utils.mean_auc)
    table.loc["Average"] = average
    table.loc["Parameters (M)"] = {name: costs.get(name, (math.nan,))[0] / 1e6 for name in table}
    table.loc["Multiply-adds (G)"] = {name: costs[name][1] / 1e9 if name in costs else math.nan for name in table}
    table.loc["Average − CheXNet"] = average - average["chexnet"]
    return table


def format_table(table, positives, title):
    """The table in Markdown; `positives`: {finding: positive films}."""
    scored = int(table.loc[list(FINDINGS)].notna().all(axis=1).sum())
    lines = [f"**{title}**", "", "| finding | positive films | " + " | ".join(table.columns) + " |"]
    lines += ["|---|---:|" + "---:|" * len(table.columns)]
    for row, values in table.iterrows():
        form = {"Parameters (M)": "{:.2f}", "Average − CheXNet": "{:+.3f}"}.get(row, "{:.3f}")
        absent = "n/a" if row in FINDINGS else "–"
        cells = [absent if math.isnan(value) else form.format(value) for value in values]
        label = f"Average of {scored}" if row == "Average" else row
        lines.append(f"| {label} | {positives.get(row, '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(settings):
    device = utils.select_device(settings.device)
    order = "second" if settings.second_order else "first"
    with utils.one_line_errors():
        data = open_set(settings.data, settings.dataset)
        networks = find_networks(Path(settings.out) / "weights", order, data)
        # Every network was trained at the same crop of this set, or its score would not be comparable.
        crops = {name: saved["settings"]["crop"] for name, (_, saved) in networks.items()}
        if len(set(crops.values())) > 1:
            raise ValueError(f"the networks were trained at different crops: {crops}")
        crop = crops["chexnet"]
        films = Films(data, "test", crop, device)
        probabilities, costs = {}, {}
        for item in settings.predictions:
            name, _, path = item.partition("=")
            if not name or not path or name in networks or name in probabilities:
                raise ValueError(f"--predictions {item}: must be NAME=FILE.csv, with a name not yet in use")
            probabilities[name], ignored = read_predictions(path, films.names)
            if ignored:
                print(f"{path}: {ignored} films that are not in the test split are ignored")

    for name, (network, _) in networks.items():
        costs[name] = sum(p.numel() for p in network.parameters()), multiply_adds(network, crop)
        probabilities[name], _ = utils.predict(network.to(device), films, settings.batch_size)
    others = [name for name in probabilities if name not in networks]
    probabilities = {name: probabilities[name] for name in [*networks, *others]}

    labels = films.labels.cpu().numpy()
    table = auc_table(labels, probabilities, costs)
    title = f"AUC on the test split of {data.name}: {len(films)} films, {data.notice}"
    positives = dict(zip(FINDINGS, labels.sum(axis=0).astype(int).tolist(), strict=True))
    text = format_table(table, positives, title)

    results = Path(settings.out) / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "auc.md").write_text(text, encoding="utf-8")
    table.rename_axis("finding").to_csv(results / "auc.csv", lineterminator="\n")
    for name in networks:
        write_predictions(results / f"predictions_{name}.csv", films.names, probabilities[name])
    print(text)
    print(f"also in {results / 'auc.md'} and {results / 'auc.csv'}; predictions beside them")


if __name__ == "__main__":
    main(utils.parse_settings(__file__))
