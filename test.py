"""Stage 3: the AUC of every finding on the test split, one column per trained network, beside CheXNet.

    python test.py                                      all networks in weights/ that were trained on the set
    python test.py --predictions OTHER=FILE.csv         and another model, from its predictions

Reads   data/<set>/, weights/*_net.pth
Writes  results/auc.md, auc.csv, predictions_<network>.csv; pictures: roc.png, auc.png, films.png, activation_*.png
"""

import math
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
from support.files import load_state
from support.settings import guarded, one_line_errors, parse_settings

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
    """The network in a weights file, and the file's plain data. Raises ValueError."""
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


def draw_patients(patients, resamples, seed):
    """How often each film is drawn, (resamples, N): whole patients, as many as there are, with replacement."""
    _, patient_of_film = np.unique(patients, return_inverse=True)
    number = patient_of_film.max() + 1
    drawn = torch.randint(number, (resamples, number), generator=torch.Generator().manual_seed(seed)).numpy()
    times = np.stack([np.bincount(row, minlength=number) for row in drawn])
    return times[:, patient_of_film].astype(float)


def weighted_auc(positive, scores, weights):
    """The AUC of one finding in each resample, (resamples,); NaN where a class is missing.

    positive (N,) bool; scores (N,); weights (resamples, N): how often a film counts. The AUC is the share of pairs of a
    positive and a negative film in which the positive one has the higher score; a tie counts half.
    """
    order = np.argsort(scores)
    positive, scores, weights = positive[order], scores[order], weights[:, order]
    negatives = np.pad(np.cumsum(weights * ~positive, axis=1), ((0, 0), (1, 0)))  # column n: among the n lowest
    lower, not_higher = (np.searchsorted(scores, scores[positive], side) for side in ("left", "right"))
    wins = (negatives[:, lower] + negatives[:, not_higher]) / 2
    positives = weights[:, positive]
    with np.errstate(invalid="ignore"):
        return (positives * wins).sum(axis=1) / (positives.sum(axis=1) * negatives[:, -1])


def interval(resampled):
    """95 % percentile interval of the resamples that are not NaN; NaN if there is none."""
    known = resampled[~np.isnan(resampled)]
    return np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)


def auc_table(labels, patients, probabilities, seed, resamples, min_patients):
    """The scores as a data frame, the findings in the average, and {finding: resamples left out for it}.

    labels (N, findings); patients (N,); probabilities {name: (N, findings)}, one of them chexnet's. Rows: the findings
    and Average. Columns: for each name `name`, `name_low`, `name_high`, and but for chexnet the same of
    `name_minus_chexnet`; all from the same resamples. A resample without a positive or a negative film of a finding is
    left out for it. The average runs over the findings that at least 99 % of the resamples can score, in every column;
    a finding with fewer than `min_patients` positive patients has no interval (NaN).
    """
    positive, weights = labels == 1, draw_patients(patients, resamples, seed)
    one_sided = (weights @ positive == 0) | (weights @ ~positive == 0)
    averaged = one_sided.mean(axis=0) <= 0.01
    few = [len(np.unique(patients[column])) < min_patients for column in positive.T]

    values, resampled = {}, {}
    for name, p in probabilities.items():
        each = np.stack([weighted_auc(*pair, weights) for pair in zip(positive.T, p.T, strict=True)], axis=1)
        resampled[name] = np.column_stack([each, each[:, averaged].mean(axis=1)])
        each = utils.auc_per_finding(labels, p)
        values[name] = np.append(each, utils.mean_auc(each[averaged]))
    for name in [name for name in probabilities if name != "chexnet"]:
        for scores in (values, resampled):
            scores[f"{name}_minus_chexnet"] = scores[name] - scores["chexnet"]

    table = pd.DataFrame(index=[*FINDINGS, "Average"])
    for name, value in values.items():
        limits = np.array([interval(column) for column in resampled[name].T])
        limits[:-1][few] = math.nan
        table[name], table[f"{name}_low"], table[f"{name}_high"] = value, *limits.T
    left_out = dict(zip(FINDINGS, one_sided.sum(axis=0).tolist(), strict=True))
    return table, [f for f, scored in zip(FINDINGS, averaged, strict=True) if scored], left_out


def format_table(table, names, positives, averaged, left_out, title, resamples, min_patients):
    """The table in Markdown; positives {finding: positive films}; a NaN among the costs is a dash."""

    def cell(row, column, form="{:.3f}"):
        value, low, high = table.loc[row, [column, f"{column}_low", f"{column}_high"]]
        if math.isnan(value):
            return "n/a"
        limits = "\\*" if math.isnan(low) else f" [{form}, {form}]".format(low, high)
        return form.format(value) + limits

    def line(label, films, cells):
        return f"| {label} | {films} | " + " | ".join(cells) + " |"

    lines = [f"**{title}**", "", line("finding", "positive films", names), "|---|---:|" + "---:|" * len(names)]
    lines += [line(finding, positives[finding], [cell(finding, name) for name in names]) for finding in FINDINGS]
    lines.append(line(f"Average of {len(averaged)}", "", [cell("Average", name) for name in names]))
    gaps = ["" if name == "chexnet" else cell("Average", f"{name}_minus_chexnet", "{:+.3f}") for name in names]
    lines.append(line("Average − CheXNet", "", gaps))
    for label, form in (("Parameters (M)", "{:.2f}"), ("Multiply-adds (G)", "{:.3f}")):
        costs = table.loc[label, names]
        lines.append(line(label, "", ["–" if math.isnan(cost) else form.format(cost) for cost in costs]))

    notes = [f"In brackets: 95 % intervals, percentile bootstrap of {resamples} resamples of patients."]
    if any("\\*" in text for text in lines):
        notes.append(f"\\*: fewer than {min_patients} patients with the finding, no interval.")
    if any(left_out.values()):
        counts = ", ".join(f"{finding} {count}" for finding, count in left_out.items() if count)
        notes.append(f"Resamples left out, for want of a positive or a negative film: {counts}.")
    if set(FINDINGS) - set(averaged):
        notes.append(f"The average is over {', '.join(averaged)}.")
    notes.append("Multiply-adds: convolutions and linear layers, one film.")
    return "\n".join([*lines, "", *notes]) + "\n"


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
    with one_line_errors():
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
    guarded(main, parse_settings(__file__))
