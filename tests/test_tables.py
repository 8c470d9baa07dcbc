"""The table of all networks: which rows it has, what stands below it, what is marked as the best, its Markdown."""

import math

import pandas as pd
import pytest

from dataset import AVERAGE
from report.tables import as_markdown, best_of_row, describe, remarks
from scores import COLUMNS, COSTS, GAP

NAN = math.nan
POSITIVES = {"Mass": 12, "Pleural_Thickening": 3, "Hernia": 0}
AVERAGED = ["Mass", "Pleural_Thickening"]


@pytest.fixture
def scores():
    """Of two networks and of another model, which knows Mass only."""
    rows = {
        ("first_order", "Mass"): [0.8, 0.7, 0.9, 0.1, 0.05, 0.15, 1],
        ("first_order", "Pleural_Thickening"): [0.6, NAN, NAN, -0.1, NAN, NAN, 1],
        ("first_order", "Hernia"): [NAN] * 6 + [0],
        ("first_order", AVERAGE): [0.7, 0.65, 0.75, 0.0004, -0.05, 0.05, 2],
        ("chexnet", "Mass"): [0.7, 0.6, 0.8, NAN, NAN, NAN, 1],
        ("chexnet", "Pleural_Thickening"): [0.7, NAN, NAN, NAN, NAN, NAN, 1],
        ("chexnet", "Hernia"): [NAN] * 6 + [0],
        ("chexnet", AVERAGE): [0.7, 0.65, 0.75, NAN, NAN, NAN, 2],
        ("other", "Mass"): [0.5, 0.4, 0.6, -0.2, -0.3, -0.1, 1],
        ("other", "Pleural_Thickening"): [NAN] * 6 + [0],
        ("other", "Hernia"): [NAN] * 6 + [0],
        ("other", AVERAGE): [0.5, 0.4, 0.6, -0.2, -0.3, -0.1, 1],
    }
    index = pd.MultiIndex.from_tuples(rows, names=["network", "finding"])
    frame = pd.DataFrame([*rows.values()], index, COLUMNS[:7]).reindex(columns=COLUMNS)
    frame.loc[("first_order", AVERAGE), COSTS] = 0.294, 0.0571
    frame.loc[("chexnet", AVERAGE), COSTS] = 6.968, 2.9
    return frame


def test_the_text_of_auc_md(scores):
    left_out = {"Mass": 0, "Pleural_Thickening": 5, "Hernia": 2000}
    lines = remarks(scores, AVERAGED, left_out, 2000, 10, "patients")
    expected = r"""**title**

| finding | positive films | first_order | chexnet | other |
|---|---:|---:|---:|---:|
| Mass | 12 | 0.800 [0.700, 0.900] | 0.700 [0.600, 0.800] | 0.500 [0.400, 0.600] |
| Pleural_Thickening | 3 | 0.600\* | 0.700\* | n/a |
| Hernia | 0 | n/a | n/a | n/a |
| Average of 2 |  | 0.700 [0.650, 0.750] | 0.700 [0.650, 0.750] | 0.500 [0.400, 0.600] (of 1) |
| Average − CheXNet |  | +0.000 [-0.050, +0.050] | – | -0.200 [-0.300, -0.100] |
| Parameters (M) |  | 0.29 | 6.97 | – |
| Multiply-adds (G) |  | 0.057 | 2.900 | – |

In brackets: 95 % intervals, percentile bootstrap of 2000 resamples of patients.
\*: fewer than 10 patients with the finding, no interval.
Resamples left out, for want of a positive or a negative film: Pleural_Thickening 5, Hernia 2000.
The average is over Mass, Pleural_Thickening.
other: the average, and any difference, is over what it knows: Mass.
Multiply-adds: convolutions and linear layers, one film.
"""
    assert as_markdown("title", describe(scores, POSITIVES, AVERAGED), lines) == expected


def test_what_is_not_known_has_no_row_and_no_remark_and_one_finding_alone_no_average(scores):
    labels = [label for label, _ in describe(scores, {"Mass": 12}, ["Mass"]).rows]
    assert labels == ["Mass", "AUC − CheXNet", "Parameters (M)", "Multiply-adds (G)"]
    scores = scores.loc[["other"]].assign(**dict.fromkeys(GAP, NAN))
    assert [label for label, _ in describe(scores, {"Mass": 12}, ["Mass"]).rows] == ["Mass"]
    assert remarks(scores, ["Mass"], {"Mass": 0}, 20, 2, "films") == [
        "In brackets: 95 % intervals, percentile bootstrap of 20 resamples of films.",
        "No difference to CheXNet, which is not here: 'python chexnet.py' trains it.",
    ]


def test_the_best_of_a_row_is_marked(scores):
    cells = [(label, cell) for label, cells in describe(scores, POSITIVES, AVERAGED).rows for cell in cells]
    assert [(label, cell.text) for label, cell in cells if cell.best] == [("Mass", "0.800")]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ({"a": (0.8, -0.01, 0.2), "chexnet": (0.7, NAN, NAN)}, None),
        ({"a": (0.6, -0.2, -0.01), "chexnet": (0.7, NAN, NAN)}, "chexnet"),
        ({"a": (0.6, -0.2, 0.01), "b": (0.5, -0.3, -0.1), "chexnet": (0.7, NAN, NAN)}, None),
        ({"a": (0.9, 0.1, 0.2), "b": (0.8, 0.01, 0.2), "chexnet": (0.7, NAN, NAN)}, None),
        # The difference is over what both know, so its sign need not be that of the difference of the averages.
        ({"a": (0.8, -0.2, -0.1), "chexnet": (0.7, NAN, NAN)}, None),
        ({"a": (NAN, NAN, NAN), "chexnet": (0.7, NAN, NAN)}, None),
    ],
)
def test_the_best_leads_beyond_chance(rows, best):
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=["auc", "difference_low", "difference_high"])
    assert best_of_row(scores) == best
