"""The table of all networks, described once as rows of cells. It is written as Markdown here, as HTML by page.html."""

import math
from typing import NamedTuple

from dataset import AVERAGE
from scores import AUC, BASELINE, COSTS, GAP

NOTHING = "–"  # where a number makes no sense, as for CheXNet's difference to itself


class Cell(NamedTuple):
    text: str  # a number, NOTHING, or "n/a" for a number that cannot be known
    interval: str = ""  # "[0.801, 0.823]"; "*" where it is left out
    note: str = ""  # stands behind the interval
    best: bool = False  # of its row, see `best_of_row`


class Table(NamedTuple):
    header: list  # a text for each column
    rows: list  # of pairs: the text of the first column, and a `Cell` for each other column


# --- What the table says


def describe(scores, positives, averaged):
    """The `Table` of the frame `scores` and the findings `averaged` that `scores.auc_table` returns.

    positives {finding: films that have it}. There is a row for each finding, then the rows of `totals`, and a column
    for the films and for each network.
    """
    rows = []
    for finding, films in positives.items():
        rows.append((finding, [Cell(str(films)), *auc_cells(scores.xs(finding, level="finding"))]))
    header = ["finding", "positive films", *scores.index.unique("network")]
    return Table(header, rows + totals(scores.xs(AVERAGE, level="finding"), len(averaged), alone=len(rows) == 1))


def totals(scores, averaged, alone):
    """The rows of average AUC, difference to CheXNet, parameters and multiply-adds, without those that have no number.

    scores: a row for each network; averaged: the number of findings in the average; alone: whether the set has one
    finding, which needs no average.
    """
    cells = auc_cells(scores)
    for k, known in enumerate(scores["averaged"]):
        if known < averaged:
            cells[k] = cells[k]._replace(note=f" (of {known:.0f})")
    gaps = [with_interval(*numbers, "{:+.3f}", NOTHING) for numbers in scores[GAP].to_numpy()]
    rows = {"AUC − CheXNet": gaps} if alone else {f"Average of {averaged}": cells, "Average − CheXNet": gaps}
    for label, column, form in zip(("Parameters (M)", "Multiply-adds (G)"), COSTS, ("{:.2f}", "{:.3f}"), strict=True):
        rows[label] = [Cell(NOTHING if math.isnan(cost) else form.format(cost)) for cost in scores[column]]
    return [(label, [Cell(""), *cells]) for label, cells in rows.items() if any(cell.text != NOTHING for cell in cells)]


def auc_cells(scores):
    """The AUCs with their intervals, a `Cell` for each row of `scores`, which are networks."""
    best = best_of_row(scores)
    cells = [with_interval(*numbers, "{:.3f}", "n/a") for numbers in scores[AUC].to_numpy()]
    return [cell._replace(best=name == best) for name, cell in zip(scores.index, cells, strict=True)]


def with_interval(value, low, high, form, unknown):
    """The `Cell` of a number and its interval; `unknown` is its text where the number is NaN."""
    if math.isnan(value):
        return Cell(unknown)
    return Cell(form.format(value), "*" if math.isnan(low) else f"[{form.format(low)}, {form.format(high)}]")


def best_of_row(scores):
    """The network whose lead over the second best is beyond chance, or None; scores: a row for each network.

    Beyond chance: the 95 % interval of the difference excludes zero. Intervals are of differences to BASELINE, so
    nothing is known of a lead between two others.
    """
    ranked = scores[scores["auc"].notna()].sort_values("auc", ascending=False)
    if len(ranked) < 2 or BASELINE not in ranked.index[:2]:
        return None
    first, second = ranked.index[:2]
    behind, ahead = scores.loc[second, "difference_high"] < 0, scores.loc[first, "difference_low"] > 0
    return first if (behind if first == BASELINE else ahead) else None


def remarks(scores, averaged, left_out, resamples, min_patients, units):
    """The lines below the table. For the arguments see `scores.auc_table`.

    units: what is resampled, "patients", or "films" where the set does not know its patients.
    """
    lines = [f"In brackets: 95 % intervals, percentile bootstrap of {resamples} resamples of {units}."]
    if (scores["auc"].notna() & scores["low"].isna()).any():
        lines.append(f"*: fewer than {min_patients} {units} with the finding, no interval.")
    if any(left_out.values()):
        counts = ", ".join(f"{finding} {count}" for finding, count in left_out.items() if count)
        lines.append(f"Resamples left out, for want of a positive or a negative film: {counts}.")
    if len(averaged) < len(left_out):
        lines.append(f"The average is over {', '.join(averaged)}.")
    for name, counts in scores["averaged"].groupby("network", sort=False):
        if counts[name, AVERAGE] < len(averaged):
            known = ", ".join(finding for finding in averaged if counts[name, finding])
            lines.append(f"{name}: the average, and any difference, is over what it knows: {known or 'none'}.")
    if BASELINE not in scores.index.unique("network"):
        lines.append("No difference to CheXNet, which is not here: 'python chexnet.py' trains it.")
    if scores[COSTS].notna().any(axis=None):
        lines.append("Multiply-adds: convolutions and linear layers, one film.")
    return lines


# --- The text of auc.md


def as_markdown(title, table, lines):
    """Title, table and the lines below it in Markdown."""

    def text(cell):
        interval = f" {cell.interval}" if cell.interval.startswith("[") else cell.interval
        return cell.text + escape(interval) + cell.note

    def escape(text):
        return text.replace("*", r"\*")  # Markdown would begin italics

    rows = [table.header, *([label, *map(text, cells)] for label, cells in table.rows)]
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|---|" + "---:|" * (len(table.header) - 1)
    return "\n".join([f"**{title}**", "", head, rule, *body, "", *map(escape, lines)]) + "\n"
