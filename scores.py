"""Scores: the AUC of each finding, its interval by resampling patients, and the table of all networks.

The AUC (area under the ROC curve) is the share of pairs of a positive and a negative film in which the positive one has
the higher score; a tie counts half.
"""

import math

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from dataset import FINDINGS
from utils import predict


def auc_per_finding(labels, scores):
    """Area under the ROC curve of each finding; NaN where all labels of a finding are equal. Both (N, findings)."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    both = (labels.min(axis=0) == 0) & (labels.max(axis=0) == 1)
    return np.array([roc_auc_score(labels[:, k], scores[:, k]) if both[k] else np.nan for k in range(labels.shape[1])])


def mean_auc(auc):
    """Mean over the findings that have one; NaN if none has."""
    scored = [value for value in auc if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan


def evaluate(network, films, batch_size, pause=lambda: None):
    """The mean AUC over the findings, and the mean loss, of all films of a split; pause: see `utils.predict`."""
    probabilities, loss = predict(network, films, batch_size, pause)
    return mean_auc(auc_per_finding(films.labels.cpu(), probabilities)), loss


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


# --- The table


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
        each = auc_per_finding(labels, p)
        values[name] = np.append(each, mean_auc(each[averaged]))
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
