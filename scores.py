"""Scores: the AUC of each finding, by group, too, operating points and calibration, with intervals by patients.

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

BLOCK = 100  # resamples that are computed at once
BASELINE = "chexnet"  # the network that differences are taken from, where it is in the table
COSTS = ["parameters_millions", "multiply_adds_billions"]
AUC = ["auc", "low", "high"]  # with its 95 % interval
GAP = ["difference", "difference_low", "difference_high"]  # to BASELINE, with its 95 % interval
COLUMNS = [*AUC, *GAP, "averaged", *COSTS]
MEASURES = ["sensitivity", "specificity", "ppv", "npv", "flagged"]  # of an operating point; each with its interval
BRIER = ["brier", "brier_low", "brier_high", "prevalence", "prevalence_brier", *GAP]  # the gap is to prevalence_brier
EDGES = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1])  # of the ranges of probabilities in a calibration


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


# --- Resamples


class Resamples:
    """Resamples of patients, drawn with replacement, as many as there are; always the same ones for a seed.

    patients (N,): whose film it is. Results begin with the value of all films, then come the `resamples`.
    """

    def __init__(self, patients, resamples, seed):
        names, self.patient = np.unique(patients, return_inverse=True)  # (N,): the number of each film's patient
        self.number, self.resamples, self.seed = len(names), resamples, seed

    def blocks(self):
        """How often each patient is drawn, in blocks of (patients, up to BLOCK); the first one has everybody once."""
        yield np.ones((self.number, 1), np.float32)
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.resamples, BLOCK):
            size = min(BLOCK, self.resamples - start), self.number
            drawn = torch.randint(self.number, size, generator=generator).numpy()
            yield np.stack([np.bincount(row, minlength=self.number) for row in drawn], axis=1).astype(np.float32)

    def sums(self, values):
        """values (N, columns), floats -> their sums over the drawn films, (1 + resamples, columns)."""
        films = range(len(values))
        of_patient = csr_array((np.ones_like(values[:, 0]), (self.patient, films)), (self.number, len(values))) @ values
        return np.concatenate([drawn.T @ of_patient for drawn in self.blocks()])

    def aucs(self, columns):
        """The AUC of each column, (1 + resamples, columns); NaN where a class is missing or a score is NaN.

        columns: for each a pair (positive (N,) bool, scores (N,)), or a third, the numbers of the films that count.
        """
        counts = [self._count(*column) for column in columns]
        aucs = [np.stack([weighted_auc(*pair, drawn) for pair in counts], axis=1) for drawn in self.blocks()]
        return np.concatenate(aucs)

    def _count(self, positive, scores, films=slice(None)):
        """The two matrices that `weighted_auc` takes, sparse, (levels + 1, patients)."""
        positive, scores, patient = positive[films], scores[films], self.patient[films]
        if np.isnan(scores).any():
            return [csr_array((1, self.number), dtype=np.float32)] * 2
        levels = np.unique(scores[positive])

        def count(films, sides):
            rows = np.concatenate([np.searchsorted(levels, scores[films], side) for side in sides])
            each = np.full(len(rows), 1 / len(sides), np.float32), (rows, np.tile(patient[films], len(sides)))
            return csr_array(each, (len(levels) + 1, self.number))  # which adds up what is at one place

        # A negative film counts half from its own level on, where there is one, and half from the next one on.
        return count(positive, ["left"]), count(~positive, ["left", "right"])


def weighted_auc(positives, rises, drawn):
    """The AUC in each resample, (resamples,); drawn (patients, resamples): how often each patient is in it.

    Two matrices (levels + 1, patients) say what a patient's films add; a level is a score that positive films have, and
    the last row lies above all of them. positives: the positive films at each level. rises: by how much the number of
    negative films below a level, half of those at it included, exceeds that of the level before.
    """
    # Up to 2²³ films, float32 holds these whole and half numbers exactly; their products need float64.
    at, below = (positives @ drawn).astype(float), np.cumsum(rises @ drawn, axis=0)
    with np.errstate(invalid="ignore"):
        return (at * below).sum(axis=0) / (at.sum(axis=0) * below[-1])


def interval(resampled):
    """The 95 % percentile interval (low, high) of the resamples that are not NaN; NaN where all are."""
    known = resampled[~np.isnan(resampled)]
    return np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)


def with_limits(values, few):
    """Values (1 + resamples, columns), of all films first -> (columns, 3): that value with its 95 % interval.

    A column of which there are `few` patients, (columns,) bool, has no interval.
    """
    limits = np.array([interval(column) for column in values[1:].T])
    limits[few] = math.nan
    return np.column_stack([values[0], limits])


def add_average(values, averaged):
    """values (..., findings) with one more column, the mean over the findings that are `averaged`, (findings,) bool."""
    average = values[..., averaged].mean(axis=-1, keepdims=True) if averaged.any() else values[..., :1] * math.nan
    return np.concatenate([values, average], axis=-1)


def count_patients(films, patients):
    """The number of patients with films in each column, (columns,); films (N, columns) bool, patients (N,)."""
    return np.array([len(np.unique(patients[column])) for column in films.T])


# --- The table


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
    positive, tables, drawn = labels == 1, {}, Resamples(patients, resamples, seed)
    few = np.append(count_patients(positive, patients) < min_patients, False)
    auc = {name: drawn.aucs(zip(positive.T, p.T, strict=True)) for name, p in probabilities.items()}
    films = drawn.sums(np.hstack([positive, ~positive]).astype(np.float32))[1:]
    left_out = (films.reshape(resamples, 2, -1) == 0).any(axis=1).sum(axis=0)
    scored = left_out <= 0.01 * resamples
    for name in probabilities:
        averaged = scored & ~np.isnan(auc[name][0])
        columns = [with_limits(add_average(auc[name], averaged), few)]
        if BASELINE in auc and name != BASELINE:
            both = averaged & ~np.isnan(auc[BASELINE][0])
            columns.append(with_limits(add_average(auc[name], both) - add_average(auc[BASELINE], both), few))
        table = pd.DataFrame(np.hstack(columns), [*findings, AVERAGE], COLUMNS[: 3 * len(columns)])
        tables[name] = table.reindex(columns=COLUMNS).assign(averaged=[*averaged.astype(int), averaged.sum()])
    averaged = [findings[k] for k in np.flatnonzero(scored)]
    return (
        pd.concat(tables, names=["network", "finding"]),
        averaged,
        dict(zip(findings, left_out.tolist(), strict=True)),
    )


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


# --- Operating points, calibration, groups. Arguments that are not explained are those of `auc_table`, and a finding
# with fewer than `min_patients` positive patients has no interval here, either.


def thresholds_at(sensitivity, labels, patients, probabilities, min_patients):
    """{network: (findings,)}: the highest threshold at which this share of a finding's films, or more, is flagged.

    A film is flagged where its probability is at least the threshold. It is NaN for a finding with fewer than
    `min_patients` positive patients.
    """
    positive = labels == 1
    thresholds = {name: np.full(len(positive.T), math.nan) for name in probabilities}
    for k in np.flatnonzero(count_patients(positive, patients) >= min_patients):
        for name, p in probabilities.items():
            falling = np.sort(p[positive[:, k], k])[::-1]
            found = np.arange(1, len(falling) + 1) / len(falling)  # at a threshold of each of these
            thresholds[name][k] = falling[found >= sensitivity][0]
    return thresholds


def operating_points(labels, patients, probabilities, thresholds, seed, resamples, min_patients, findings):
    """A frame with a row for each (network, finding): the threshold, and MEASURES with their limits, NaN without it.

    thresholds: of `thresholds_at`, from other films. The intervals are for the thresholds as given.
    """
    positive, drawn, tables = labels == 1, Resamples(patients, resamples, seed), {}
    few = count_patients(positive, patients) < min_patients
    for name, threshold in thresholds.items():
        flagged = probabilities[name] >= threshold
        films = np.hstack([positive, ~positive, flagged & positive, flagged & ~positive]).astype(np.float32)
        present, absent, true, false = np.split(drawn.sums(films).astype(float), 4, axis=1)
        every, alarms = present + absent, true + false
        with np.errstate(invalid="ignore"):
            shares = true / present, 1 - false / absent, true / alarms, (absent - false) / (every - alarms)
        columns = np.hstack([with_limits(values, few) for values in (*shares, alarms / every)])
        columns[np.isnan(threshold)] = math.nan
        names = [measure + end for measure in MEASURES for end in ("", "_low", "_high")]
        tables[name] = pd.DataFrame(columns, findings, names)
        tables[name].insert(0, "threshold", threshold)
    return pd.concat(tables, names=["network", "finding"])


def brier_table(labels, patients, probabilities, prevalence, seed, resamples, min_patients, findings):
    """A frame with a row for each (network, finding), then AVERAGE, and the columns BRIER.

    The Brier score is the mean of (probability − label)². prevalence (findings,): what a forecaster says who knows
    nothing of a film. The average is over all findings, NaN for a network that does not know all.
    """
    few, tables = np.append(count_patients(labels == 1, patients) < min_patients, False), {}
    squares = [(p - labels) ** 2 for p in (prevalence, *probabilities.values())]
    drawn = Resamples(patients, resamples, seed).sums(np.hstack([np.ones(labels.shape), *squares]))
    films, *sums = np.split(drawn, len(squares) + 1, axis=1)
    alone, *briers = [add_average(each / films, np.ones(len(findings), bool)) for each in sums]
    for name, brier in zip(probabilities, briers, strict=True):
        columns = with_limits(brier, few), [*prevalence, math.nan], alone[0], with_limits(brier - alone, few)
        tables[name] = pd.DataFrame(np.column_stack(columns), [*findings, AVERAGE], BRIER)
    return pd.concat(tables, names=["network", "finding"])


def calibration_curves(labels, patients, probabilities, seed, resamples, min_patients):
    """{network: (points, 4)}: the mean probability of a range, the share of labels there that are 1, its limits.

    A point is of one range of EDGES, over all findings, for ranges with films of at least `min_patients` patients.
    """
    drawn, curves = Resamples(patients, resamples, seed), {}
    for name, p in probabilities.items():
        inside = np.digitize(p, EDGES[1:-1])[:, :, None] == range(len(EDGES) - 1)
        inside &= ~np.isnan(p)[:, :, None]  # (N, findings, ranges)
        columns = [np.einsum("nkr,nk->nr", inside, each) for each in (np.ones(p.shape), labels, np.nan_to_num(p))]
        enough = count_patients(columns[0] > 0, patients) >= min_patients
        films, present, said = (each[:, enough] for each in np.split(drawn.sums(np.hstack(columns)), 3, axis=1))
        with np.errstate(invalid="ignore"):
            curves[name] = np.column_stack([said[0] / films[0], with_limits(present / films, [])])
    return curves


def group_table(labels, patients, probabilities, groups, seed, resamples, min_patients, findings):
    """A frame with a row for each (by, finding, network, group), and the columns AUC and GAP.

    groups {what they are by: (N,), the name of each film's group, "" where it is not known}. The findings are those
    with at least `min_patients` positive patients in each group, then AVERAGE over these, NaN for a network that does
    not know all of them. A group that is too small for each of the findings is left out. Differences are to the group
    with the most films, NaN for itself. The frame has no row where there is no finding to show.
    """
    positive, drawn, tables = labels == 1, Resamples(patients, resamples, seed), []
    for by, names in groups.items():
        films = {group: np.flatnonzero(names == group) for group in np.unique(names) if group}
        enough = {g: count_patients(positive[rows], patients[rows]) >= min_patients for g, rows in films.items()}
        films = {group: rows for group, rows in films.items() if enough[group].any()}
        chosen = np.flatnonzero(np.all([enough[group] for group in films], axis=0))
        if len(films) < 2 or not len(chosen):
            continue
        pairs = [(positive[:, k], p[:, k]) for p in probabilities.values() for k in chosen]
        aucs = drawn.aucs([(*pair, rows) for rows in films.values() for pair in pairs])
        aucs = add_average(aucs.reshape(1 + resamples, len(films), len(probabilities), -1), chosen >= 0)
        largest = np.argmax([len(rows) for rows in films.values()])
        gaps = aucs - aucs[:, [largest]]
        gaps[:, largest] = math.nan
        rows = [by], [*(findings[k] for k in chosen), AVERAGE], [*probabilities], [*films]
        index = pd.MultiIndex.from_product(rows, names=["by", "finding", "network", "group"])
        columns = [with_limits(each.transpose(0, 3, 2, 1).reshape(1 + resamples, -1), []) for each in (aucs, gaps)]
        tables.append(pd.DataFrame(np.hstack(columns), index, AUC + GAP))
    return pd.concat(tables) if tables else pd.DataFrame(columns=AUC + GAP)
