"""AUC, and the table's intervals: the bootstrap of patients against scikit-learn, and what has no interval."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dataset import FINDINGS
from scores import (
    AVERAGE,
    COSTS,
    auc_per_finding,
    auc_table,
    draw_patients,
    format_table,
    notes,
    read_scores,
    weighted_auc,
    write_scores,
)
from support.files import InputError

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
        name: np.stack([weighted_auc(*pair, weights) for pair in zip(labels.T == 1, p.T, strict=True)], axis=1)
        for name, p in scores.items()
    }
    expected = [("a", "low", "high", each["a"]), ("chexnet", "low", "high", each["chexnet"])]
    expected.append(("a", "difference_low", "difference_high", each["a"] - each["chexnet"]))
    for name, low, high, resampled in expected:
        resampled = np.column_stack([resampled, resampled.mean(axis=1)])
        for column, percent in ((low, 2.5), (high, 97.5)):
            limit = np.percentile(resampled, percent, axis=0)
            assert np.allclose(table.loc[name, column], limit, rtol=0, atol=1e-12)
    assert table.loc["chexnet"].filter(like="difference").isna().all(axis=None)
    positives = dict.fromkeys(FINDINGS, 40)
    assert "fewer than" not in format_table(table, positives, averaged, notes(table, averaged, left_out, 200, 10), "")
    narrow = table.loc["a", "difference_high"] - table.loc["a", "difference_low"]
    assert narrow[AVERAGE] < narrow[list(FINDINGS)].min()


def test_rare_findings_have_no_interval_and_leave_the_average():
    labels, patients, scores = films()
    for k, number in enumerate((0, 1, 5, 9, 10)):  # positive patients, one film each
        labels[:, k] = 0
        labels[np.unique(patients, return_index=True)[1][:number], k] = 1
    table, averaged, left_out = auc_table(labels, patients, scores, 0, RESAMPLES, 10)
    assert math.isnan(table.loc[("a", FINDINGS[0]), "auc"]) and not math.isnan(table.loc[("a", FINDINGS[1]), "auc"])
    assert table.loc["a", "low"].isna().tolist()[:5] == [True, True, True, True, False]
    at_six = auc_table(labels, patients, scores, 0, RESAMPLES, 6)[0]
    assert at_six.loc["a", "low"].isna().tolist()[:5] == [True, True, True, False, False]
    assert averaged == list(FINDINGS[2:]) and left_out[FINDINGS[0]] == RESAMPLES
    # A patient who is one of n is missing from a resample with a probability of (1 - 1/n)^n, about 1/e.
    assert 0.25 < left_out[FINDINGS[1]] / RESAMPLES < 0.5 and left_out[FINDINGS[2]] <= 0.01 * RESAMPLES
    assert table.loc[("a", AVERAGE), "auc"] == pytest.approx(table.loc["a", "auc"][averaged].mean())
    assert table.loc["a", "averaged"].tolist() == [0, 0, *[1] * 12, 12]

    table.loc[("a", AVERAGE), COSTS] = 7.0, 2.0
    positives = dict(zip(FINDINGS, labels.sum(axis=0).astype(int), strict=True))
    text = format_table(table, positives, averaged, notes(table, averaged, left_out, RESAMPLES, 10), "title")
    assert f"| {FINDINGS[0]} | 0 | n/a | n/a |" in text and f"{FINDINGS[1]} {left_out[FINDINGS[1]]}" in text
    assert text.count("\\* |") == 6 and "fewer than 10 patients" in text and "Average of 12" in text
    assert "| Parameters (M) |  | 7.00 | – |" in text and "| Multiply-adds (G) |  | 2.000 | – |" in text


# --- Names, and models that do not know every finding

NAMES = [
    "chexnet_high",
    "chexnet_low",
    "a_minus_chexnet",
    "Average",
    "finding",
    "a|b",
    "<script>",
    "ä β ",
    "NA",
    "7",
    '"',
    "x\ny",
]


@hypothesis_settings(max_examples=12, deadline=None)
@given(st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1))
def test_no_name_changes_another_network_and_every_name_comes_back(tmp_path_factory, name):
    labels, patients, scores = films()
    labels, patients, scores = labels[:60], patients[:60], {network: p[:60] for network, p in scores.items()}
    alone = auc_table(labels, patients, scores, 0, 20, 1)[0]
    both = auc_table(labels, patients, scores | {name: scores.get(name, 1 - scores["a"])}, 0, 20, 1)[0]
    pd.testing.assert_frame_equal(both.loc[[*scores]], alone, check_exact=True)
    path = tmp_path_factory.getbasetemp() / "auc.csv"
    write_scores(path, both)
    pd.testing.assert_frame_equal(read_scores(path), both, check_exact=True)


def test_other_tables_are_refused_in_one_line(tmp_path):
    for text in ("", "finding,chexnet\nMass,0.5\n", "network,finding,auc\na,Mass,high\n"):
        (tmp_path / "auc.csv").write_text(text)
        with pytest.raises(InputError, match=r"auc\.csv: not a table"):
            read_scores(tmp_path / "auc.csv")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_breaks_no_line_of_the_markdown_table(name):
    labels, patients, scores = films()
    table, *rest = auc_table(labels, patients, {**scores, name: scores["a"]}, 0, 20, 1)
    text = format_table(table, dict.fromkeys(FINDINGS, 40), rest[0], notes(table, *rest, 20, 1), "title")
    header, *lines = [line for line in text.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in (header, *lines)]
    assert set(bars) == {6} and "<" not in header.replace("\\<", "") and "fewer than" not in text
    assert "a\\|b" in header or name != "a|b"


@pytest.mark.filterwarnings("error")
def test_a_model_that_knows_some_findings_is_averaged_and_compared_over_these():
    labels, patients, scores = films()
    known = [1, 4, 9]
    some = np.full_like(scores["a"], np.nan)
    some[:, known] = scores["a"][:, known]
    table, averaged, left_out = auc_table(labels, patients, {**scores, "some": some}, 0, RESAMPLES, 10)
    for finding in (FINDINGS[k] for k in known):
        assert table.loc[("some", finding)].equals(table.loc[("a", finding)])
    own, full = table.loc["some"], table.loc["a"]
    assert own["auc"].notna().tolist() == [k in known for k in range(len(FINDINGS))] + [True]
    mean = full["auc"].iloc[known].mean()
    assert own.loc[AVERAGE, "auc"] == pytest.approx(mean) and own.loc[AVERAGE, "averaged"] == 3
    assert own.loc[AVERAGE, "difference"] == pytest.approx(mean - table.loc["chexnet", "auc"].iloc[known].mean())

    weights = draw_patients(patients, RESAMPLES, 0)
    gaps = [
        weighted_auc(labels[:, k] == 1, scores["a"][:, k], weights)
        - weighted_auc(labels[:, k] == 1, scores["chexnet"][:, k], weights)
        for k in known
    ]
    limits = np.percentile(np.mean(gaps, axis=0), [2.5, 97.5])
    assert np.allclose(
        own.loc[AVERAGE, ["difference_low", "difference_high"]].astype(float), limits, rtol=0, atol=1e-12
    )

    text = format_table(
        table, dict.fromkeys(FINDINGS, 40), averaged, notes(table, averaged, left_out, RESAMPLES, 10), "title"
    )
    assert f"{own.loc[AVERAGE, 'high']:.3f}] (of 3) |" in text and "| n/a |\n" in text
    assert (
        f"some: the average, and any difference, is over what it knows: {', '.join(FINDINGS[k] for k in known)}."
        in text
    )
    nothing = auc_table(labels, patients, {**scores, "none": np.full_like(some, np.nan)}, 0, 20, 10)[0]
    assert nothing.loc["none", ["auc", "difference"]].isna().all(axis=None)


def test_without_chexnet_there_is_no_difference():
    labels, patients, scores = films()
    table, averaged, left_out = auc_table(labels, patients, {"a": scores["a"]}, 0, 20, 10)
    text = format_table(table, dict.fromkeys(FINDINGS, 40), averaged, notes(table, averaged, left_out, 20, 10), "title")
    assert table["difference"].isna().all() and "Average − CheXNet" not in text
    assert "No difference to CheXNet, which is not here: 'python chexnet.py' trains it." in text
    assert "Parameters" not in text and "Multiply-adds" not in text
