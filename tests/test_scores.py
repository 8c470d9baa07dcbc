"""AUC and the intervals: the bootstrap of patients against scikit-learn, and what has no interval."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from dataset import AVERAGE, FINDINGS
from scores import AUC, BLOCK, GAP, Resamples, auc_per_finding, auc_table, read_scores, write_scores
from support.files import InputError

FILMS, RESAMPLES = 200, 2 * BLOCK + 20


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


def films_drawn(drawn):
    """How often each film is drawn, (1 + resamples, FILMS)."""
    return np.concatenate([block.T for block in drawn.blocks()])[:, drawn.patient]


def table_of(labels, patients, scores, seed=0, resamples=RESAMPLES, min_patients=10):
    return auc_table(labels, patients, scores, seed, resamples, min_patients, FINDINGS)


def test_auc_equals_scikit_learns_and_is_nan_without_both_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 4))
    labels[:, 1], labels[:, 2] = 0, 1
    scores = rng.integers(0, 5, (60, 4)) / 4  # with ties
    auc = auc_per_finding(labels, scores)
    assert np.isnan(auc[[1, 2]]).all()
    assert auc[0] == roc_auc_score(labels[:, 0], scores[:, 0])


def test_every_resample_agrees_with_scikit_learn():
    labels, patients, scores = films()
    drawn = Resamples(patients, RESAMPLES, seed=0)
    weights, some = films_drawn(drawn), np.flatnonzero(labels[:, 1] + labels[:, 2])
    for k in range(3):
        for part in (slice(None), some):
            (ours,) = drawn.aucs([(labels[:, k] == 1, scores["a"][:, k], part)]).T
            pair = labels[part, k], scores["a"][part, k]
            theirs = [roc_auc_score(*pair, sample_weight=w[part]) for w in weights]
            assert np.allclose(ours, theirs, rtol=0, atol=1e-12), FINDINGS[k]
    sums = drawn.sums(scores["a"])
    assert np.allclose(sums, weights @ scores["a"], rtol=0, atol=1e-9)


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    _, patients, _ = films()
    everybody, *weights = films_drawn(Resamples(patients, RESAMPLES, seed=0))
    weights = np.array(weights)
    assert len(weights) == RESAMPLES and (everybody == 1).all()
    first = np.unique(patients, return_index=True)[1]
    assert (weights == weights[:, first][:, np.searchsorted(patients[first], patients)]).all()
    assert (weights[:, first].sum(axis=1) == len(first)).all()
    assert weights[:, first].std() == pytest.approx(1, abs=0.05)  # with replacement: nearly a Poisson distribution
    assert (weights != films_drawn(Resamples(patients, RESAMPLES, seed=1))[1:]).any()


def test_intervals_are_percentiles_and_differences_are_taken_within_a_resample():
    labels, patients, scores = films()
    table, averaged, left_out = table_of(labels, patients, scores, seed=3)
    assert averaged == list(FINDINGS) and not any(left_out.values())
    drawn = Resamples(patients, RESAMPLES, seed=3)
    each = {name: drawn.aucs(zip(labels.T == 1, p.T, strict=True))[1:] for name, p in scores.items()}
    expected = [("a", AUC, each["a"]), ("chexnet", AUC, each["chexnet"]), ("a", GAP, each["a"] - each["chexnet"])]
    for name, (_, low, high), resampled in expected:
        resampled = np.column_stack([resampled, resampled.mean(axis=1)])
        for column, percent in ((low, 2.5), (high, 97.5)):
            limit = np.percentile(resampled, percent, axis=0)
            assert np.allclose(table.loc[name, column], limit, rtol=0, atol=1e-12)
    assert table.loc["chexnet", GAP].isna().all(axis=None)
    narrow = table.loc["a", "difference_high"] - table.loc["a", "difference_low"]
    assert narrow[AVERAGE] < narrow[list(FINDINGS)].min()


def test_rare_findings_have_no_interval_and_leave_the_average():
    labels, patients, scores = films()
    for k, number in enumerate((0, 1, 5, 9, 10)):  # positive patients, one film each
        labels[:, k] = 0
        labels[np.unique(patients, return_index=True)[1][:number], k] = 1
    table, averaged, left_out = table_of(labels, patients, scores)
    assert math.isnan(table.loc[("a", FINDINGS[0]), "auc"]) and not math.isnan(table.loc[("a", FINDINGS[1]), "auc"])
    assert table.loc["a", "low"].isna().tolist()[:5] == [True, True, True, True, False]
    at_six = table_of(labels, patients, scores, min_patients=6)[0]
    assert at_six.loc["a", "low"].isna().tolist()[:5] == [True, True, True, False, False]
    assert averaged == list(FINDINGS[2:]) and left_out[FINDINGS[0]] == RESAMPLES
    # A patient who is one of n is missing from a resample with a probability of (1 - 1/n)^n, about 1/e.
    assert 0.25 < left_out[FINDINGS[1]] / RESAMPLES < 0.5 and left_out[FINDINGS[2]] <= 0.01 * RESAMPLES
    assert table.loc[("a", AVERAGE), "auc"] == pytest.approx(table.loc["a", "auc"][averaged].mean())
    assert table.loc["a", "averaged"].tolist() == [0, 0, *[1] * 12, 12]


@pytest.mark.filterwarnings("error")
def test_a_model_that_knows_some_findings_is_averaged_and_compared_over_these():
    labels, patients, scores = films()
    known = [1, 4, 9]
    some = np.full_like(scores["a"], np.nan)
    some[:, known] = scores["a"][:, known]
    table = table_of(labels, patients, {**scores, "some": some})[0]
    for finding in (FINDINGS[k] for k in known):
        assert table.loc[("some", finding)].equals(table.loc[("a", finding)])
    own, is_known = table.loc["some"], [k in known for k in range(len(FINDINGS))] + [True]
    assert all(own[column].notna().tolist() == is_known for column in (*AUC, *GAP))
    few = {name: p[:, known] for name, p in scores.items()}, 0, RESAMPLES, 10, [FINDINGS[k] for k in known]
    pd.testing.assert_series_equal(
        own.loc[AVERAGE], auc_table(labels[:, known], patients, *few)[0].loc["a", AVERAGE], check_names=False
    )
    nothing = table_of(labels, patients, {**scores, "none": np.full_like(some, np.nan)}, resamples=20)[0]
    assert nothing.loc["none", ["auc", "difference"]].isna().all(axis=None)
    assert table_of(labels, patients, {"a": scores["a"]}, resamples=20)[0]["difference"].isna().all()  # no CheXNet


# --- The file


@pytest.mark.parametrize("name", ["chexnet", "NA", "7", "-1e5", "Average", "_a.b-c_"])
def test_every_name_comes_back_and_changes_no_other_network(tmp_path, name):
    labels, patients, scores = films()
    labels, patients, scores = labels[:60], patients[:60], {network: p[:60] for network, p in scores.items()}
    alone = table_of(labels, patients, scores, resamples=20, min_patients=1)[0]
    more = scores | {name: scores.get(name, 1 - scores["a"])}
    both = table_of(labels, patients, more, resamples=20, min_patients=1)[0]
    pd.testing.assert_frame_equal(both.loc[[*scores]], alone, check_exact=True)
    write_scores(tmp_path / "auc.csv", both)
    pd.testing.assert_frame_equal(read_scores(tmp_path / "auc.csv"), both, check_exact=True)


def test_other_tables_are_refused_in_one_line(tmp_path):
    for text in ("", "finding,chexnet\nMass,0.5\n", "network,finding,auc\na,Mass,high\n"):
        (tmp_path / "auc.csv").write_text(text)
        with pytest.raises(InputError, match=r"auc\.csv: not a table"):
            read_scores(tmp_path / "auc.csv")
