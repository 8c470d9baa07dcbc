"""Scores: the AUC of each finding, its interval by resampling patients, and the scores of all networks as a frame.

The AUC (area under the ROC curve) is the share of pairs of a positive and a negative film in which the positive film
has the higher score; a tie counts half.
"""

import math

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from dataset import AVERAGE
from support.files import InputError, read_table, write
from utils import predict

BLOCK = 200  # resamples that are computed at once
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
    """How often each film is drawn, in blocks of (up to BLOCK resamples, N): whole patients, with replacement.

    A resample has as many patients as there are. patients (N,): whose film it is.
    """
    _, patient_of_film = np.unique(patients, return_inverse=True)
    number = patient_of_film.max() + 1
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, BLOCK):
        drawn = torch.randint(number, (min(BLOCK, resamples - start), number), generator=generator).numpy()
        times = np.stack([np.bincount(row, minlength=number) for row in drawn], axis=1)
        yield times.astype(np.float32)[patient_of_film].T  # in memory film by film, as `weighted_auc` reads them


def weighted_auc(positive, scores, weights):
    """The AUC of one finding in each resample, (resamples,); NaN where a class is missing or a score is NaN.

    positive (N,) bool; scores (N,); weights (resamples, N): how often each film counts.
    """
    if np.isnan(scores).any():
        return np.full(len(weights), math.nan)
    levels = np.unique(scores[positive])
    # The place of a score: 2k + 1 if it is level k, 2k if it lies between this one and the level before.
    place = sum(np.searchsorted(levels, scores, side) for side in ("left", "right"))

    def weight_at(films):
        """The weight of these films at each place, (places, resamples)."""
        rows, shape = np.flatnonzero(films), (2 * len(levels) + 1, len(scores))
        return csr_array((np.ones(len(rows), np.float32), (place[rows], rows)), shape) @ weights.T

    # Up to 2²⁴ films, float32 holds these whole numbers exactly; their products need float64.
    positives, up_to = weight_at(positive)[1::2].astype(float), np.cumsum(weight_at(~positive), axis=0)
    wins = (up_to[:-1:2] + up_to[1::2]) / 2  # negatives below a level, and those up to it: an equal one counts half
    with np.errstate(invalid="ignore"):
        return (positives * wins).sum(axis=0) / (positives.sum(axis=0) * up_to[-1])


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
    positive, tables = labels == 1, {}
    few = np.array([len(np.unique(patients[column])) < min_patients for column in positive.T])
    auc = {name: auc_per_finding(labels, p) for name, p in probabilities.items()}
    resampled, one_sided = {name: [] for name in probabilities}, []
    for weights in draw_patients(patients, resamples, seed):
        one_sided.append((weights @ positive == 0) | (weights @ ~positive == 0))
        for name, p in probabilities.items():
            columns = [weighted_auc(*column, weights) for column in zip(positive.T, p.T, strict=True)]
            resampled[name].append(np.stack(columns, axis=1))
    resampled = {name: np.concatenate(blocks) for name, blocks in resampled.items()}  # (resamples, findings)
    one_sided = np.concatenate(one_sided)
    scored = one_sided.mean(axis=0) <= 0.01
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
