"""Cross-validation over patients: how good trainings are on films of a set's train and val that they did not see.

The patients of train and val are divided into parts of equal size. For each part, a fold is a set of its own: the part
is its `test`, a tenth of the other patients its `val`, on which a training chooses its epoch, and the rest its `train`.
The set's own test films are in none of them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.parts import format_table
from benchmarks.stats import auc_over_folds, format_interval
from data.making import is_finished, write_set
from dataset import Films, load_set, read_source
from report.networks import load_network
from report.predictions import read_predictions, write_predictions
from scores import AUC, GAP, auc_per_finding, with_limits
from support.files import InputError, write
from utils import predict

RESAMPLES = 2000  # of patients, for the intervals
VAL = 10  # one in so many of the patients that are not left out is in val


def make_folds(data, folder, folds):
    """Write the folds of a `PreparedSet` below `folder`, where they are not there yet; their names. Raises InputError.

    Which patient is where depends on the patients alone.
    """
    rows = np.flatnonzero(data.table["split"] != "test")
    table = data.table.iloc[rows]
    patients = np.unique(table["Patient ID"])
    if not 2 <= folds <= len(patients) // VAL:
        raise InputError(f"--folds is {folds} and must be 2 to {len(patients) // VAL}, for {len(patients)} patients")
    patients = patients[torch.randperm(len(patients), generator=torch.Generator().manual_seed(0))]
    names = [f"{data.name}_fold{k + 1}of{folds}" for k in range(folds)]
    for k, name in enumerate(names):
        at = Path(folder) / name
        if is_finished(at):
            if read_source(at).get("divided") != data.checksum:
                raise InputError(f"{at}: made of another version of {data.name}: move it away, or give another --out")
            continue
        others = np.delete(patients, slice(k, None, folds))
        split = dict.fromkeys(patients, "test") | dict.fromkeys(others, "train") | dict.fromkeys(others[::VAL], "val")
        source = {fact: getattr(data, fact) for fact in ("findings", "preset", "synthetic", "patients")}
        source |= {"origin": f"fold {k + 1} of {folds} of {data.name}", "divided": data.checksum}
        write_set(at, data.images[rows], table.assign(split=table["Patient ID"].map(split)), source)
    return names


def score_fold(run, fold):
    """A training's probabilities on the part of a fold that was left out, (N, findings); written into its folder."""
    path, names = run / "predictions.csv", fold.table["Image Index"].to_numpy()[fold.rows("test")]
    if not path.exists():
        network, saved = load_network(f"{run}_net.pth")
        films = Films(fold, "test", saved["settings"]["crop"], torch.device("cpu")).seen_by(saved["settings"])
        write_predictions(path, names, fold.findings, predict(network, films, 64)[0])
    return read_predictions(path, names, fold.findings)


def fold_auc(run, data, name):
    """A training's mean AUC over the findings on the part that was left out. data: the folder of the folds."""
    fold = load_set(Path(data) / name)
    return mean_auc(fold.truth("test")[0], score_fold(run, fold))


def mean_auc(labels, probabilities):
    return float(np.nanmean(auc_per_finding(labels, probabilities)))


def report_folds(runs, data, out):
    """Write and print the commands' AUC over all folds and their differences to the first: <out>.csv and <out>.md.

    runs {fold's name: {command: [the runs' folders, one for each seed]}}; data: the folder of the folds. Intervals are
    over patients, resampled within their fold: they tell nothing of how much two trainings of one command differ.
    """
    folds = []
    for name, trained in runs.items():
        fold = load_set(Path(data) / name)
        labels, patients = fold.truth("test")
        predictions = {command: [score_fold(run, fold) for run in each] for command, each in trained.items()}
        folds.append((labels == 1, patients, predictions))
    aucs, findings = auc_over_folds(folds, RESAMPLES)
    first, rows = next(iter(aucs)), []
    seeds = len(folds[0][2][first])
    for command, auc in aucs.items():
        gap, better = auc - (aucs[first] if command != first else np.nan), np.nan
        if command != first:
            means = [[np.mean([mean_auc(p, each) for each in q[c]]) for c in (command, first)] for p, _, q in folds]
            better = sum(own > other for own, other in means)
        row = {"command": command, "folds": len(folds), "seeds": seeds, "findings": findings}
        row |= dict(zip([*AUC, *GAP], np.ravel(with_limits(np.column_stack([auc, gap]), [])), strict=True))
        rows.append(row | {"better_folds": better})
    compared = pd.DataFrame(rows)
    write(out.with_suffix(".csv"), compared.to_csv(index=False, lineterminator="\n"))
    text = format_folds(compared)
    write(out.with_suffix(".md"), text)
    print(text)


def format_folds(compared):
    """The table of the rows of a folds.csv, in Markdown."""
    lines = []
    for row in compared.to_dict("records"):
        cells = [f"`{row['command']}`", format_interval(*(row[name] for name in AUC), "{:.3f}"), "", ""]
        if not np.isnan(row["better_folds"]):
            cells[2] = format_interval(*(row[name] for name in GAP), "{:+.3f}")
            cells[3] = f"{row['better_folds']:.0f} of {row['folds']}"
        lines.append(cells)
    about = compared.iloc[0]
    notes = (
        f"Mean AUC over {about['findings']} findings, over all pairs of films of one fold; folds: {about['folds']}, "
        f"seeds: {about['seeds']}. In brackets: 95 % intervals over patients, who are resampled within their fold."
    )
    return format_table(["AUC", "difference to the first", "better folds"], lines, notes)
