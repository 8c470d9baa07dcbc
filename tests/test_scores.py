"""AUC, and the table's intervals: the bootstrap of patients against scikit-learn, and what has no interval."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dataset import FINDINGS
from scores import auc_per_finding, auc_table, draw_patients, format_table, mean_auc, weighted_auc

FILMS, RESAMPLES = 200, 200


def films(seed=0, rate=0.2):
    """Labels (FILMS, findings), patients (FILMS,) of 1 to 5 films each, scores of two models with many ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((FILMS, len(FINDINGS))) < rate).astype(float)
    patients = np.repeat(np.arange(FILMS), rng.integers(1, 6, FILMS))[:FILMS]
    scores = {
        name: np.round(labels * shift + rng.normal(size=labels.shape), 1)
        for name, shift in (("a", 1), ("chexnet", 0.5))
    }
    return labels, patients, scores


def test_auc_equals_scikit_learns_and_is_nan_without_both_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 4))
    labels[:, 1], labels[:, 2] = 0, 1
    scores = rng.integers(0, 5, (60, 4)) / 4  # with ties
    auc = auc_per_finding(labels, scores)
    assert np.isnan(auc[[1, 2]]).all()
    assert auc[0] == roc_auc_score(labels[:, 0], scores[:, 0])
    assert mean_auc(auc) == pytest.approx((auc[0] + auc[3]) / 2)
    assert np.isnan(mean_auc([np.nan, np.nan]))


def test_auc_counts_a_tie_as_half():
    assert auc_per_finding([[0], [1], [0], [1]], [[0.1], [0.4], [0.4], [0.9]])[0] == 0.875


def test_every_resample_of_every_finding_agrees_with_scikit_learn():
    labels, patients, scores = films()
    weights = draw_patients(patients, RESAMPLES, seed=0)
    for k in range(len(FINDINGS)):
        ours = weighted_auc(labels[:, k] == 1, scores["a"][:, k], weights)
        theirs = [roc_auc_score(labels[:, k], scores["a"][:, k], sample_weight=w) for w in weights]
        assert np.allclose(ours, theirs, rtol=0, atol=1e-12), FINDINGS[k]


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    _, patients, _ = films()
    weights = draw_patients(patients, RESAMPLES, seed=0)
    first = np.unique(patients, return_index=True)[1]
    assert (weights == weights[:, first][:, np.searchsorted(patients[first], patients)]).all()
    assert (weights[:, first].sum(axis=1) == len(first)).all()
    assert weights[:, first].std() == pytest.approx(1, abs=0.05)  # with replacement: nearly a Poisson distribution
    assert (weights != draw_patients(patients, RESAMPLES, seed=1)).any()


def test_intervals_are_percentiles_and_differences_are_taken_within_a_resample():
    labels, patients, scores = films()
    table, averaged, left_out = auc_table(labels, patients, scores, 3, RESAMPLES, 10)
    assert averaged == list(FINDINGS) and not any(left_out.values())
    weights = draw_patients(patients, RESAMPLES, seed=3)
    each = {
        name: np.array(
            [[roc_auc_score(labels[:, k], p[:, k], sample_weight=w) for k in range(len(FINDINGS))] for w in weights]
        )
        for name, p in scores.items()
    }
    each["a_minus_chexnet"] = each["a"] - each["chexnet"]
    for name, resampled in each.items():
        resampled = np.column_stack([resampled, resampled.mean(axis=1)])
        for end, percent in (("low", 2.5), ("high", 97.5)):
            assert np.allclose(table[f"{name}_{end}"], np.percentile(resampled, percent, axis=0), rtol=0, atol=1e-12)
    table.loc["Parameters (M)", "chexnet"], table.loc["Multiply-adds (G)", "chexnet"] = 7.0, 2.0
    positives = dict.fromkeys(FINDINGS, 40)
    assert "fewer than" not in format_table(table, [*scores], positives, averaged, left_out, "", 200, 10)
    narrow = table["a_minus_chexnet_high"] - table["a_minus_chexnet_low"]
    assert narrow["Average"] < narrow[list(FINDINGS)].min()


def test_rare_findings_have_no_interval_and_leave_the_average():
    labels, patients, scores = films()
    for k, number in enumerate((0, 1, 5, 9, 10)):  # positive patients, one film each
        labels[:, k] = 0
        labels[np.unique(patients, return_index=True)[1][:number], k] = 1
    table, averaged, left_out = auc_table(labels, patients, scores, 0, RESAMPLES, 10)
    assert math.isnan(table.loc[FINDINGS[0], "a"]) and not math.isnan(table.loc[FINDINGS[1], "a"])
    assert table["a_low"].isna().tolist()[:5] == [True, True, True, True, False]
    at_six = auc_table(labels, patients, scores, 0, RESAMPLES, 6)[0]
    assert at_six["a_low"].isna().tolist()[:5] == [True, True, True, False, False]
    assert averaged == list(FINDINGS[2:]) and left_out[FINDINGS[0]] == RESAMPLES
    # A patient who is one of n is missing from a resample with a probability of (1 - 1/n)^n, about 1/e.
    assert 0.25 < left_out[FINDINGS[1]] / RESAMPLES < 0.5 and left_out[FINDINGS[2]] <= 0.01 * RESAMPLES
    assert table.loc["Average", "a"] == pytest.approx(table.loc[averaged, "a"].mean())

    table.loc["Parameters (M)", "a"], table.loc["Multiply-adds (G)", "a"] = 7.0, 2.0
    positives = dict(zip(FINDINGS, labels.sum(axis=0).astype(int), strict=True))
    text = format_table(table, [*scores], positives, averaged, left_out, "title", RESAMPLES, 10)
    assert f"| {FINDINGS[0]} | 0 | n/a | n/a |" in text and f"{FINDINGS[1]} {left_out[FINDINGS[1]]}" in text
    assert text.count("\\* |") == 6 and "fewer than 10 patients" in text and "Average of 12" in text
    assert "| Parameters (M) |  | 7.00 | – |" in text and "| Multiply-adds (G) |  | 2.000 | – |" in text
