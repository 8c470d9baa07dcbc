"""Operating points, calibration and groups: every number by another way, their intervals, where there is none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_auc_score

import scores
from dataset import AVERAGE, PreparedSet
from report.sections import show_calibration, show_groups, show_operating_points
from scores import AUC, BRIER, GAP, MEASURES

FINDINGS = ("Mass", "Left_lung", "Hernia")
LIMITS = 7, 150, 10  # seed, resamples, MIN_PATIENTS
FILMS = {"train": 100, "val": 150, "test": 450}


@pytest.fixture
def made(tmp_path):
    """A set with 4 patients who have Hernia in val and in test, and probabilities of a network and of another model."""
    rng = np.random.default_rng(0)
    split = np.repeat([*FILMS], [*FILMS.values()])
    labels = (rng.random((len(split), 3)) < (0.3, 0.2, 0)).astype(np.float32)
    columns = {"Patient ID": np.arange(len(split)) // 3, "split": split, "Age": rng.integers(20, 90, len(split))}
    table = pd.DataFrame(columns).astype({"Age": str}).assign(Sex=rng.choice(["F", "M"], len(split)))
    table.loc[rng.random(len(split)) < 0.25, "Age"] = ""
    for name in ("val", "test"):
        labels[np.flatnonzero(split == name)[:12:3], 2] = 1
    data = PreparedSet("made", None, labels, table, "", FINDINGS, "small", False, True)
    logits = {"net": np.round(rng.normal(size=labels.shape) + 2 * labels - 2, 1)}  # ties
    logits["other"] = logits["net"] + (0.5, 1.8, 0)
    parts = {}
    for part in ("val", "test"):
        parts[part] = {name: 1 / (1 + np.exp(-z[split == part])) for name, z in logits.items()}
    del parts["val"]["other"]
    weights = scores.Resamples(data.truth("test")[1], *LIMITS[1::-1])
    weights = np.concatenate([block.T for block in weights.blocks()])[:, weights.patient].astype(float)
    return SimpleNamespace(data=data, folder=tmp_path, weights=weights, positive=data.truth("test")[0] == 1, **parts)


def read(made, name, *index):
    return pd.read_csv(made.folder / name).set_index([*index])


def check(row, columns, values, atol=1e-12):
    """The numbers in `columns` of a row, and their limits, are those by hand.

    columns (numbers, 3): their names; values (1 + resamples, numbers): of all films, then of each resample.
    """
    values = np.array(values)
    expected = [values[0], *np.nanpercentile(values[1:], [2.5, 97.5], axis=0)]
    assert np.allclose(row[np.transpose(columns).ravel()].astype(float), np.ravel(expected), rtol=0, atol=atol)


# --- Operating points


def points(made, sensitivity=0.9, of_val=None):
    return show_operating_points(
        made.folder, made.data, made.test, made.val if of_val is None else of_val, sensitivity, *LIMITS
    )


@pytest.mark.parametrize("sensitivity", [0.9, 0.5])
def test_operating_points_are_those_of_the_confusion_matrix(made, sensitivity):
    section = points(made, sensitivity)
    table = read(made, "operating_points.csv", "network", "finding")
    labels, p = made.data.truth("val")[0] == 1, made.val["net"]
    assert list(table.index) == [("net", finding) for finding in FINDINGS]
    for k, finding in enumerate(FINDINGS[:2]):
        row, scores_of = table.loc[("net", finding)], p[labels[:, k], k]
        higher = np.unique(p[:, k])[np.unique(p[:, k]) > row["threshold"]].min()
        assert (scores_of >= row["threshold"]).mean() >= sensitivity > (scores_of >= higher).mean()
        flagged, measured = made.test["net"][:, k] >= row["threshold"], []
        for w in made.weights:
            tn, fp, fn, tp = confusion_matrix(made.positive[:, k], flagged, sample_weight=w).ravel()
            shares = tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn), (tp + fp) / w.sum()
            measured.append(shares)
        check(row, [(m, f"{m}_low", f"{m}_high") for m in MEASURES], measured)
    assert f"at the threshold where it finds {100 * sensitivity:.0f} % of" in section.says


def test_too_few_patients_have_no_threshold_and_other_models_no_operating_point(made):
    section = points(made)
    assert read(made, "operating_points.csv", "network", "finding").loc[("net", "Hernia")].isna().all()
    assert [cell.text for cell in section.tables["net"].rows[2][1]] == ["0.009", *["n/a"] * 6]
    assert [line for line in section.lines if "Not here: other," in line]
    rows = made.data.rows("val")
    made.data.labels[rows[12:33:3], 2] = 1  # enough in val, too few in test
    hernia = points(made).tables["net"].rows[2][1]
    assert [cell.interval for cell in hernia] == ["", "", *["*"] * 5] and hernia[1].text != "n/a"
    assert not points(made, of_val={}).tables and not (made.folder / "operating_points.csv").exists()


# --- Calibration


def test_brier_scores_are_scikit_learns_beside_those_of_the_prevalence(made):
    prevalence = made.data.truth("train")[0].mean(axis=0)
    (shown,) = show_calibration(made.folder, made.data, made.test, *LIMITS).tables.values()
    table = read(made, "brier.csv", "network", "finding").loc["net"]

    every = []
    for k, finding in enumerate(FINDINGS):
        row, films = table.loc[finding], (made.test["net"][:, k], np.full(FILMS["test"], prevalence[k]))
        scored = [[brier_score_loss(made.positive[:, k], p, sample_weight=w) for p in films] for w in made.weights]
        every.append(np.transpose([np.transpose(scored)[0], -np.diff(scored)[:, 0]]))  # the score, the difference
        numbers = [scored[0][0], every[k][0, 1], prevalence[k], scored[0][1]]
        assert np.allclose(row[["brier", "difference", *BRIER[3:5]]], numbers, rtol=0, atol=1e-7)
        if k < 2:
            check(row, [BRIER[:3], GAP], every[k], 1e-7)
            assert shown.rows[k][1][2].text == f"{scored[0][0]:.4f}"
    check(table.loc[AVERAGE], [BRIER[:3], GAP], np.mean(every, axis=0), 1e-7)
    assert table.loc["Hernia", ["brier_low", "difference_low"]].isna().all()
    marks = [cell.best for _, cells in shown.rows[:2] for cell in cells[2:]]
    assert marks == [True, True, True, False]  # of the last one, zero lies within the interval
    assert (made.folder / "calibration.png").exists()


def test_calibration_curves_are_scikit_learns_over_all_findings(made, monkeypatch):
    monkeypatch.setattr(scores, "EDGES", np.linspace(0, 1, 6))
    labels, patients = made.data.truth("test")
    p = made.test["net"].copy()
    p[:, 1] = np.nan  # not known
    p[:3, 0], p[3:, 0] = 0.99, np.minimum(p[3:, 0], 0.79)  # of one patient
    curve = scores.calibration_curves(labels, patients, {"net": p}, *LIMITS)["net"]
    known = labels[:, [0, 2]].ravel(), p[:, [0, 2]].ravel()
    observed, predicted = calibration_curve(*known, n_bins=5)
    assert len(observed) == 5 and len(curve) == 4
    assert np.allclose(curve[:, :2], np.column_stack([predicted, observed])[:4], rtol=0, atol=1e-9)
    inside = (p >= 0.2) & (p < 0.4)
    shares = [(w @ (inside * labels)).sum() / (w @ inside).sum() for w in made.weights]
    limits = [shares[0], *np.percentile(shares[1:], [2.5, 97.5])]
    assert np.allclose(curve[1, 1:], limits, rtol=0, atol=1e-9)


def test_numbers_that_are_no_probabilities_have_no_calibration(made):
    made.test["other"][:, 1] *= 3
    section = show_calibration(made.folder, made.data, made.test, *LIMITS)
    table = read(made, "brier.csv", "network", "finding").loc["other", "brier"]
    assert table.isna().tolist() == [False, True, False, True]  # nor an average
    assert "n/a: other, whose numbers for a finding are not all between 0 and 1." in section.lines
    assert not [line for line in section.lines if "drawn films" in line]


# --- Groups


def test_groups_have_scikit_learns_auc_and_differences_within_the_resamples(made):
    section = show_groups(made.folder, made.data, made.test, *LIMITS)
    table = read(made, "groups.csv", "by", "finding", "network", "group")
    test = made.data.table.iloc[made.data.rows("test")]
    age = pd.to_numeric(test["Age"], errors="coerce").to_numpy()
    groups = {"0 to 39": age < 40, "40 to 64": (age >= 40) & (age < 65), "65 and more": age >= 65}
    largest = max(groups, key=lambda group: groups[group].sum())
    assert list(section.tables) == ["Sex", "Age"] and set(table.index.unique("finding")) == {*FINDINGS[:2], AVERAGE}

    def auc(inside, w, k):
        return roc_auc_score(made.positive[inside, k], made.test["net"][inside, k], sample_weight=w[inside])

    aucs = {group: [[auc(inside, w, k) for k in (0, 1)] for w in made.weights] for group, inside in groups.items()}
    aucs = {group: np.column_stack([each, np.mean(each, axis=1)]) for group, each in aucs.items()}
    for group, own in aucs.items():
        for k, finding in enumerate((*FINDINGS[:2], AVERAGE)):
            row = table.loc[("Age", finding, "net", group)]
            check(row, [AUC], own[:, [k]])
            if group == largest:
                assert row[GAP].isna().all()
            else:
                check(row, [GAP], own[:, [k]] - aucs[largest][:, [k]])
    labels = [label for label, _ in section.tables["Age"].rows]
    others = [group for group in groups if group != largest]
    assert labels[3:6] == [*(f"Mass: {group} − {largest}" for group in others), "Left lung: 0 to 39"]
    assert any("These are 18 comparisons" in line for line in section.lines)  # 3 rows × 3 differences × 2 networks


def test_small_groups_and_sets_without_columns_have_no_group(made):
    show_groups(made.folder, made.data, made.test, *LIMITS)
    made.data.table.loc[made.data.rows("test")[:30], "Sex"] = "O"  # of 10 patients, not all of them positive
    assert "O" not in read(made, "groups.csv", "group").index
    show_groups(made.folder, made.data, made.test, *LIMITS)
    assert set(read(made, "groups.csv", "by").loc["Sex", "group"]) == {"F", "M"}
    made.data.table = made.data.table.drop(columns="Age").assign(Sex="F")
    assert not show_groups(made.folder, made.data, made.test, *LIMITS).tables
    assert not (made.folder / "groups.csv").exists()
