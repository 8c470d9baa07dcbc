"""Scores: the AUC of each finding, its interval by resampling patients, and the scores of all networks as a frame.

The AUC (area under the ROC curve) is the share of pairs of a positive and a negative film in which the positive film
has the higher score; a tie counts half.
"""

import math

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from dataset import AVERAGE
from support.files import InputError, read_table, write
from utils import predict

BASELINE = "chexnet"  # the network that differences are taken from, where it is in the table
COSTS = ["parameters_millions", "multiply_adds_billions"]
AUC = ["auc", "low", "high"]  # with its 95 % interval
GAP = ["difference", "difference_low", "difference_high"]  # to BASELINE, with its 95 % interval
COLUMNS = [*AUC, *GAP, "averaged", *COSTS]


def auc_per_finding(labels, scores):
    """The AUC of each finding, (findings,); labels (N, findings) of 0 and 1, scores (N, findings).

    It is NaN where all labels of a finding are equal, or where its scores are NaN, since the model does not know it.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    both = (labels.min(axis=0) == 0) & (labels.max(axis=0) == 1) & ~np.isnan(scores).any(axis=0)
    return np.array([roc_auc_score(labels[:, k], scores[:, k]) if both[k] else np.nan for k in range(labels.shape[1])])


def evaluate(network, films, batch_size, pause):
    """The mean AUC over the findings and the mean loss, over all films of a split; pause: see `utils.predict`."""
    probabilities, loss = predict(network, films, batch_size, pause)
    return float(np.nanmean(auc_per_finding(films.labels.cpu(), probabilities))), loss


# --- Intervals


def draw_patients(patients, resamples, seed):
    """How often each film is drawn, (resamples, N): whole patients, as many as there are, with replacement.

    patients (N,): whose film it is.
    """
    _, patient_of_film = np.unique(patients, return_inverse=True)
    number = patient_of_film.max() + 1
    drawn = torch.randint(number, (resamples, number), generator=torch.Generator().manual_seed(seed)).numpy()
    times = np.stack([np.bincount(row, minlength=number) for row in drawn])
    return times[:, patient_of_film].astype(float)


def weighted_auc(positive, scores, weights):
    """The AUC of one finding in each resample, (resamples,); NaN where a class is missing or a score is NaN.

    positive (N,) bool; scores (N,); weights (resamples, N): how often each film counts.
    """
    if np.isnan(scores).any():
        return np.full(len(weights), math.nan)
    order = np.argsort(scores)
    positive, scores, weights = positive[order], scores[order], weights[:, order]
    # Column n is how many negatives are among the n lowest scores.
    negatives = np.pad(np.cumsum(weights * ~positive, axis=1), ((0, 0), (1, 0)))
    lower, not_higher = (np.searchsorted(scores, scores[positive], side) for side in ("left", "right"))
    wins = (negatives[:, lower] + negatives[:, not_higher]) / 2
    positives = weights[:, positive]
    with np.errstate(invalid="ignore"):
        return (positives * wins).sum(axis=1) / (positives.sum(axis=1) * negatives[:, -1])


def interval(resampled):
    """The 95 % percentile interval (low, high) of the resamples that are not NaN; NaN where all are."""
    known = resampled[~np.isnan(resampled)]
    return np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)


# --- The table


def add_average(auc, averaged):
    """auc (..., findings) with one more column, the mean over the findings that are `averaged`, (findings,) bool."""
    average = auc[..., averaged].mean(axis=-1, keepdims=True) if averaged.any() else np.full_like(auc[..., :1], np.nan)
    return np.concatenate([auc, average], axis=-1)


def with_limits(values, resampled, few):
    """Values (findings + 1,) and their resamples (resamples, findings + 1) -> values and intervals (findings + 1, 3).

    A finding of which there are `few` patients, (findings,) bool, has no interval.
    """
    limits = np.array([interval(column) for column in resampled.T])
    limits[:-1][few] = math.nan
    return np.column_stack([values, limits])


def auc_table(labels, patients, probabilities, seed, resamples, min_patients, findings):
    """The scores as a data frame, the findings in the average, and {finding: resamples left out for it}.

    labels (N, findings); patients (N,); probabilities {network: (N, findings)}, NaN for findings that it does not know;
    findings: their names. The frame has a row for each (network, finding), the findings in order and then AVERAGE, and
    COLUMNS. Differences are to BASELINE, NaN without it. COSTS are NaN: the caller fills them in.

    All intervals are from the same resamples. A resample without a positive or a negative film of a finding is left
    out for this finding. The average runs over the findings that at least 99 % of the resamples can score and that the
    network knows. `averaged` is 1 for these, and in the row AVERAGE it is their number. An average difference runs over
    those of them that BASELINE knows, too. A finding with fewer than `min_patients` positive patients has no interval.
    """
    positive, weights = labels == 1, draw_patients(patients, resamples, seed)
    one_sided = (weights @ positive == 0) | (weights @ ~positive == 0)
    scored = one_sided.mean(axis=0) <= 0.01
    few = np.array([len(np.unique(patients[column])) < min_patients for column in positive.T])

    auc, resampled, tables = {}, {}, {}
    for name, p in probabilities.items():
        auc[name] = auc_per_finding(labels, p)
        columns = [weighted_auc(*column, weights) for column in zip(positive.T, p.T, strict=True)]
        resampled[name] = np.stack(columns, axis=1)  # (resamples, findings)
    for name in probabilities:
        averaged = scored & ~np.isnan(auc[name])
        columns = [with_limits(add_average(auc[name], averaged), add_average(resampled[name], averaged), few)]
        if BASELINE in auc and name != BASELINE:
            both = averaged & ~np.isnan(auc[BASELINE])
            gaps = (add_average(each[name], both) - add_average(each[BASELINE], both) for each in (auc, resampled))
            columns.append(with_limits(*gaps, few))
        table = pd.DataFrame(np.hstack(columns), [*findings, AVERAGE], COLUMNS[: 3 * len(columns)])
        tables[name] = table.reindex(columns=COLUMNS).assign(averaged=[*averaged.astype(int), averaged.sum()])
    table = pd.concat(tables, names=["network", "finding"])
    left_out = dict(zip(findings, one_sided.sum(axis=0).tolist(), strict=True))
    return table, [finding for finding, inside in zip(findings, scored, strict=True) if inside], left_out


def write_scores(path, table):
    """Write the frame of `auc_table` as CSV: one row per network and finding; an empty cell is NaN."""
    write(path, table.to_csv(lineterminator="\n"))


def read_scores(path):
    """The frame that `write_scores` wrote, bit for bit. Raises InputError."""
    table = read_table(path)
    try:
        table = table.set_index(["network", "finding"])[COLUMNS].replace("", "nan").astype(float)
        return table.astype({"averaged": int})
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: not a table of this version's test.py, run that again ({error})") from None
