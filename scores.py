"""Scores: the AUC of each finding, its interval by resampling patients, and the table of all networks.

The AUC (area under the ROC curve) is the share of pairs of a positive and a negative film in which the positive one has
the higher score; a tie counts half.
"""

import math
import re

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from dataset import FINDINGS
from support.files import InputError, read_table, write
from utils import predict

BASELINE = "chexnet"  # the network that differences are taken from, where it is in the table
AVERAGE = "Average"  # stands in the place of a finding
COSTS = ["parameters_millions", "multiply_adds_billions"]
COLUMNS = ["auc", "low", "high", "difference", "difference_low", "difference_high", "averaged", *COSTS]


def auc_per_finding(labels, scores):
    """Area under the ROC curve of each finding; both (N, findings).

    NaN where all labels of a finding are equal, or its scores are NaN: the model does not know it.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    both = (labels.min(axis=0) == 0) & (labels.max(axis=0) == 1) & ~np.isnan(scores).any(axis=0)
    return np.array([roc_auc_score(labels[:, k], scores[:, k]) if both[k] else np.nan for k in range(labels.shape[1])])


def evaluate(network, films, batch_size, pause):
    """The mean AUC over the findings, and the mean loss, of all films of a split; pause: see `utils.predict`."""
    probabilities, loss = predict(network, films, batch_size, pause)
    return float(np.nanmean(auc_per_finding(films.labels.cpu(), probabilities))), loss


# --- Intervals


def draw_patients(patients, resamples, seed):
    """How often each film is drawn, (resamples, N): whole patients, as many as there are, with replacement."""
    _, patient_of_film = np.unique(patients, return_inverse=True)
    number = patient_of_film.max() + 1
    drawn = torch.randint(number, (resamples, number), generator=torch.Generator().manual_seed(seed)).numpy()
    times = np.stack([np.bincount(row, minlength=number) for row in drawn])
    return times[:, patient_of_film].astype(float)


def weighted_auc(positive, scores, weights):
    """The AUC of one finding in each resample, (resamples,); NaN where a class is missing.

    positive (N,) bool; scores (N,); weights (resamples, N): how often a film counts.
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


# --- The table


def add_average(auc, averaged):
    """auc (..., findings), with one more column: the mean over the findings that are `averaged`, (findings,) bool."""
    average = auc[..., averaged].mean(axis=-1, keepdims=True) if averaged.any() else np.full_like(auc[..., :1], np.nan)
    return np.concatenate([auc, average], axis=-1)


def with_limits(values, resampled, few):
    """Values (findings + 1,) and their resamples (resamples, findings + 1) -> (findings + 1, 3) with their intervals.

    The findings that are `few`, (findings,) bool, have no interval.
    """
    limits = np.array([interval(column) for column in resampled.T])
    limits[:-1][few] = math.nan
    return np.column_stack([values, limits])


def auc_table(labels, patients, probabilities, seed, resamples, min_patients):
    """The scores as a data frame, the findings in the average, and {finding: resamples left out for it}.

    labels (N, findings); patients (N,); probabilities {network: (N, findings)}, NaN for findings it does not know.
    Rows: (network, finding), the findings in order and then AVERAGE. Columns: COLUMNS, where `difference` is to
    BASELINE (NaN where that is missing) and COSTS are NaN, for the caller to fill in.

    All intervals are from the same resamples. A resample without a positive or a negative film of a finding is left
    out for it. The average runs over the findings that at least 99 % of the resamples can score and that the network
    knows (`averaged` is 1 for them, and their number in the average's row); an average difference over those that
    BASELINE knows, too. A finding with fewer than `min_patients` positive patients has no interval (NaN).
    """
    positive, weights = labels == 1, draw_patients(patients, resamples, seed)
    one_sided = (weights @ positive == 0) | (weights @ ~positive == 0)
    scored = one_sided.mean(axis=0) <= 0.01
    few = np.array([len(np.unique(patients[column])) < min_patients for column in positive.T])

    auc = {name: auc_per_finding(labels, p) for name, p in probabilities.items()}
    resampled = {}
    for name, p in probabilities.items():
        known = ~np.isnan(p).any(axis=0)
        resampled[name] = np.full((resamples, len(FINDINGS)), math.nan)
        for k in np.flatnonzero(known):
            resampled[name][:, k] = weighted_auc(positive[:, k], p[:, k], weights)

    tables = {}
    for name in probabilities:
        averaged = scored & ~np.isnan(auc[name])
        columns = [with_limits(add_average(auc[name], averaged), add_average(resampled[name], averaged), few)]
        if BASELINE in auc and name != BASELINE:
            both = averaged & ~np.isnan(auc[BASELINE])
            gaps = (add_average(each[name], both) - add_average(each[BASELINE], both) for each in (auc, resampled))
            columns.append(with_limits(*gaps, few))
        table = pd.DataFrame(np.hstack(columns), [*FINDINGS, AVERAGE], COLUMNS[: 3 * len(columns)])
        tables[name] = table.reindex(columns=COLUMNS).assign(averaged=[*averaged.astype(int), averaged.sum()])
    left_out = dict(zip(FINDINGS, one_sided.sum(axis=0).tolist(), strict=True))
    return (
        pd.concat(tables, names=["network", "finding"]),
        [finding for finding, inside in zip(FINDINGS, scored, strict=True) if inside],
        left_out,
    )


def write_scores(path, table):
    """Write the frame of `auc_table` as CSV: one row per network and finding; an empty cell is NaN."""
    write(path, table.to_csv(lineterminator="\n"))


def read_scores(path):
    """The frame that `write_scores` wrote, bit for bit, whatever networks are called. Raises InputError."""
    table = read_table(path)
    try:
        table = table.set_index(["network", "finding"])[COLUMNS].replace("", "nan").astype(float)
        return table.astype({"averaged": int})
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: not a table of this version's test.py, run that again ({error})") from None


def as_markdown(name):
    """A network's name as it shows in a cell of a Markdown table, whatever characters it has."""
    marks = r"[\\`*<>|&~$\[\]#]|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is no mark
    return re.sub(marks, r"\\\g<0>", " ".join(name.split()))


def format_table(table, positives, averaged, remarks, title):
    """The table in Markdown, with the `remarks` of `notes` under it.

    table, averaged: as `auc_table` returns them; positives {finding: films}.
    """
    names = list(table.index.unique("network"))
    averages = table.xs(AVERAGE, level="finding")
    partial = partial_networks(table, averaged)

    def cell(network, row, columns=("auc", "low", "high"), form="{:.3f}"):
        value, low, high = table.loc[(network, row), list(columns)]
        if math.isnan(value):
            return "n/a"
        limits = "\\*" if math.isnan(low) else f" [{form}, {form}]".format(low, high)
        return form.format(value) + limits

    def line(label, films, cells):
        return f"| {label} | {films} | " + " | ".join(cells) + " |"

    lines = [f"**{title}**", "", line("finding", "positive films", map(as_markdown, names))]
    lines.append("|---|---:|" + "---:|" * len(names))
    lines += [line(finding, positives[finding], [cell(name, finding) for name in names]) for finding in FINDINGS]
    counts = {name: f" (of {partial[name]})" if name in partial else "" for name in names}
    lines.append(line(f"Average of {len(averaged)}", "", [cell(name, AVERAGE) + counts[name] for name in names]))
    if BASELINE in names and len(names) > 1:
        gap = ["difference", "difference_low", "difference_high"]
        gaps = ["" if name == BASELINE else cell(name, AVERAGE, gap, "{:+.3f}") for name in names]
        lines.append(line("Average − CheXNet", "", gaps))
    for label, column, form in zip(("Parameters (M)", "Multiply-adds (G)"), COSTS, ("{:.2f}", "{:.3f}"), strict=True):
        if averages[column].notna().any():
            costs = averages[column]
            lines.append(line(label, "", ["–" if math.isnan(cost) else form.format(cost) for cost in costs]))
    return "\n".join([*lines, "", *map(as_markdown, remarks)]) + "\n"


def partial_networks(table, averaged):
    """{network that does not know all findings that are averaged: how many of them it knows}."""
    counts = table.xs(AVERAGE, level="finding")["averaged"]
    return counts[counts < len(averaged)].astype(int).to_dict()


def notes(table, averaged, left_out, resamples, min_patients):
    """What stands under the table, as lines of plain text; for the arguments see `auc_table`."""
    lines = [f"In brackets: 95 % intervals, percentile bootstrap of {resamples} resamples of patients."]
    if (table["auc"].notna() & table["low"].isna()).any():
        lines.append(f"*: fewer than {min_patients} patients with the finding, no interval.")
    if any(left_out.values()):
        counts = ", ".join(f"{finding} {count}" for finding, count in left_out.items() if count)
        lines.append(f"Resamples left out, for want of a positive or a negative film: {counts}.")
    if set(FINDINGS) - set(averaged):
        lines.append(f"The average is over {', '.join(averaged)}.")
    for name in partial_networks(table, averaged):
        known = ", ".join(finding for finding in averaged if table.loc[(name, finding), "averaged"])
        lines.append(f"{name}: the average, and any difference, is over what it knows: {known or 'none'}.")
    if BASELINE not in table.index.unique("network"):
        lines.append("No difference to CheXNet, which is not here: 'python chexnet.py' trains it.")
    if table[COSTS].notna().any(axis=None):
        lines.append("Multiply-adds: convolutions and linear layers, one film.")
    return lines
