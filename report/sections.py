"""The page's sections on what a probability is good for: operating points, calibration, groups.

Each function writes the numbers into the results' folder and returns the `Section` that shows them. Arguments that are
not explained are those of `scores.auc_table`; data: the prepared set, whose test films the probabilities are of.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

import scores
from dataset import AVERAGE, MORE_COLUMNS
from report.figures import draw_calibration
from report.tables import Cell, Table, with_interval
from scores import AUC, GAP, MEASURES


class Section(NamedTuple):
    title: str
    says: str  # what it tells
    lines: list  # of text
    tables: dict  # {heading: `tables.Table`}, shown folded; without any there is no section
    picture: str = ""  # the name of a PNG in the results' folder


def save(path, table):
    """Write a table as CSV; one without rows is not written, nor does one of an earlier call stay."""
    if len(table):
        scores.write_scores(path, table)
    else:
        path.unlink(missing_ok=True)


def units(data):
    """What is resampled."""
    return "patients" if data.patients else "films"


def spaced(finding):
    return finding.replace("_", " ")


def show_sections(folder, data, probabilities, of_val, sensitivity, *limits):
    """All sections, in the order of the page. limits: seed, resamples, min_patients."""
    return [
        show_operating_points(folder, data, probabilities, of_val, sensitivity, *limits),
        show_calibration(folder, data, probabilities, *limits),
        show_groups(folder, data, probabilities, *limits),
    ]


# --- Operating points


def show_operating_points(folder, data, probabilities, of_val, sensitivity, seed, resamples, min_patients):
    """At the threshold where val reaches a sensitivity. of_val: probabilities of val, for networks that have them."""
    thresholds = scores.thresholds_at(sensitivity, *data.truth("val"), of_val, min_patients)
    labels, patients = data.truth("test")
    table = pd.DataFrame()
    if of_val:
        limits = seed, resamples, min_patients, data.findings
        table = scores.operating_points(labels, patients, probabilities, thresholds, *limits)
    save(folder / "operating_points.csv", table)

    header = ["finding", "share in test", "threshold", "sensitivity", "specificity", "PPV", "NPV", "flagged"]
    tables = {}
    for name in of_val:
        rows = []
        for finding, share in zip(data.findings, labels.mean(axis=0), strict=True):
            row = table.loc[(name, finding)]
            measured = [with_interval(*row[[m, f"{m}_low", f"{m}_high"]], "{:.2f}", "n/a") for m in MEASURES]
            threshold = with_interval(row["threshold"], 0, 0, "{:#.3g}", "n/a")._replace(interval="")
            rows.append((spaced(finding), [Cell(f"{share:.3f}"), threshold, *measured]))
        tables[name] = Table(header, rows)
    whose = units(data)
    lines = [
        "A film is flagged where its probability is at least the threshold. PPV and NPV, the positive and the negative "
        "predictive value, are the share of flagged films that have the finding, and of other films that do not. They "
        "hold where the finding is as frequent as here; where it is rarer, PPV is lower.",
        f"Thresholds are chosen on val alone. In brackets: 95 % intervals from the {resamples} resamples of {whose} of "
        "test, for the threshold as given; other val films would give another one.",
    ]
    if table.isna().any(axis=None):
        rare = f"fewer than {min_patients} {whose} with the finding"
        lines.append(f"n/a: {rare} in val, so no threshold. *: {rare} in test, so no interval.")
    if others := [name for name in probabilities if name not in of_val]:
        lines.append(f"Not here: {', '.join(others)}, of which there are no predictions of val films.")
    share = f"{100 * sensitivity:g} %"
    says = (
        f"What a network finds and flags in test, at the threshold where it finds {share} of the positive films of val."
    )
    return Section("Operating points", says, lines, tables)


# --- Calibration


def show_calibration(folder, data, probabilities, seed, resamples, min_patients):
    """Brier scores in a table, predicted against observed shares in a picture."""
    labels, patients = data.truth("test")
    known = {}
    for name, p in probabilities.items():  # another model's scores need not lie between 0 and 1
        known[name] = np.where(((p >= 0) & (p <= 1)).all(axis=0), p, np.nan)
    limits = seed, resamples, min_patients
    prevalence = data.truth("train")[0].mean(axis=0, dtype=float)
    table = scores.brier_table(labels, patients, known, prevalence, *limits, data.findings)
    save(folder / "brier.csv", table)
    draw_calibration(folder / "calibration.png", scores.calibration_curves(labels, patients, known, *limits))

    rows, whose = [], units(data)
    for finding in (*data.findings, *[AVERAGE] * (len(data.findings) > 1)):
        of_finding = table.xs(finding, level="finding")
        first = of_finding.iloc[0]
        cells = [with_interval(first["prevalence"], 0, 0, "{:.3f}", "")._replace(interval="")]
        cells.append(Cell(f"{first['prevalence_brier']:.4f}"))
        for _, row in of_finding.iterrows():
            cell = with_interval(*row[["brier", "brier_low", "brier_high"]], "{:.4f}", "n/a")
            cells.append(cell._replace(best=row["difference_high"] < 0))
        rows.append((spaced(finding), cells))
    lines = [
        "A network is overconfident where its high probabilities come true less often than they say (dots below the "
        "line at the right) and its low ones more often; the other way round it is underconfident.",
        f"The picture has all findings together, with 95 % intervals over {whose}. The dots are of probabilities from "
        f"{', '.join(f'{edge:g}' for edge in scores.EDGES[:-1])} on, where {min_patients} {whose} have such.",
        "The Brier score is the mean square of probability minus label, so smaller is better. Beside it is that of a "
        "forecaster who knows the share of train films with the finding, and says this share of every film. Bold: "
        "better than this, where the 95 % interval of the difference excludes zero.",
    ]
    if (table["brier"].notna() & table["brier_low"].isna()).any():
        lines.append(f"*: fewer than {min_patients} {whose} with the finding in test, so no interval.")
    if data.synthetic:
        lines.append("Rare findings are more frequent in drawn films than in real ones, and so are the probabilities.")
    if strange := [name for name, p in probabilities.items() if (np.isnan(known[name]) & ~np.isnan(p)).any()]:
        lines.append(f"n/a: {', '.join(strange)}, whose numbers for a finding are not all between 0 and 1.")
    says = "Of the films for which a network says 0.2, do 20 % have the finding? Then its dots lie on the dashed line."
    header = ["finding", "share in train", "score of the share", *probabilities]
    return Section("Calibration", says, lines, {"Brier score": Table(header, rows)}, "calibration")


# --- Groups


def show_groups(folder, data, probabilities, seed, resamples, min_patients):
    """AUC by Sex, Age and View, where the set knows them."""
    test = data.table.iloc[data.rows("test")]
    groups = {by: test[by].to_numpy() for by in MORE_COLUMNS if by in test}
    if "Age" in groups:
        age = pd.to_numeric(test["Age"], errors="coerce").to_numpy()
        groups["Age"] = np.select([age < 40, age < 65, age >= 65], ["0 to 39", "40 to 64", "65 and more"], "")
    limits = seed, resamples, min_patients, data.findings
    table = scores.group_table(*data.truth("test"), probabilities, groups, *limits)
    save(folder / "groups.csv", table)

    tables = {}
    for by, rows in table.groupby("by", sort=False) if len(table) else ():
        shown, largest = [], rows.groupby("group")["difference"].count().idxmin()  # it has no difference to itself
        for finding, of_finding in rows.groupby("finding", sort=False):
            for columns, form, minus in ((AUC, "{:.3f}", ""), (GAP, "{:+.3f}", f" − {largest}")):
                for group, numbers in of_finding[columns].groupby("group"):
                    cells = [with_interval(*row, form, "n/a") for row in numbers.to_numpy()]
                    if not (minus and group == largest):
                        shown.append((f"{spaced(finding)}: {group}{minus}", cells))
        tables[by] = Table(["finding: group", *probabilities], shown)
    number = int(table["difference"].notna().sum())
    lines = [
        f"Findings that at least {min_patients} {units(data)} of each group have, and their average. Differences are "
        f"to the group with the most films, within the same resamples of {units(data)}. In brackets: 95 % intervals.",
        f"These are {number} comparisons. If no group differed from another, about {number / 20:.0f} intervals would "
        "exclude zero all the same.",
        "A difference does not say what causes it: groups differ in other things, too, such as how ill patients are.",
    ]
    says = "Is a network as good in one group of patients as in another? Its AUC within each, and the differences."
    return Section("Groups", says, lines, tables)
