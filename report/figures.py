"""The charts, and the pictures of a run. Lines differ in style and colours in lightness, so that grey prints serve.

    python -m report.figures FOLDER

redraws the pictures of a run's folder from its metrics.jsonl.
"""

import argparse
import json
from contextlib import contextmanager
from itertools import compress, cycle
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.special import softmax
from sklearn.metrics import auc, roc_curve

from genotypes import EDGES, EDGES_PER_NODE, INPUT_NODES, NODES, PRIMITIVES, load_genotype, parse_genotype
from report.cells import (
    CELL_HEIGHT,
    CELL_WIDTH,
    DARK,
    FAINT,
    SMALL,
    WORDS,
    add_cells,
    cells_figure,
    new_figure,
    save_picture,
)
from support.files import InputError, read_text
from support.settings import Parser, guarded

COLOURS = ("#00204d", "#c8553d", "#3b8bc4", "#8a8678", "#d9a400", "#5b2a86", "#58a55c", "#1b1b1b")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)), (0, (1, 2)))
STYLES = [{"color": c, "ls": line, "marker": m} for c, line, m in zip(COLOURS, LINES, "osD^vPX*", strict=True)]
KINDS_OF_CELL = {"normal": "Normal cell", "reduce": "Reduction cell"}


def make_panels(count, columns, width, height):
    """A figure and its `count` axes of `width` × `height` inches, at most `columns` in a row. No labels overlap."""
    columns = min(columns, max(count, 3))  # the legend of a single panel needs the width of three
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels[:count]


def add_curves(axes, rows, title, curves):
    """Draw curves over the epochs of `rows`; curves: {name: one value per row, or the key of the values in the rows}.

    A value that is None or missing leaves a gap.
    """
    for (name, values), style in zip(curves.items(), cycle(STYLES), strict=False):
        values = [row.get(values) for row in rows] if isinstance(values, str) else values
        axes.plot([row["epoch"] for row in rows], np.array(values, float), label=name, ms=4, **style)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if len(curves) < 4:  # the legend of more curves would hide them
        axes.legend(fontsize=SMALL)


def draw_search(path, rows):
    """Losses, val AUC and entropy of softmax(α / τ); rows: the dicts of a search's metrics.jsonl."""
    figure, panels = make_panels(3, 3, 3.5, 3.1)
    losses = {"train (step of w)": "train_loss", "val (step of α)": "alpha_loss", "val, whole": "val_loss"}
    add_curves(panels[0], rows, "Loss", losses)
    add_curves(panels[1], rows, "Val AUC, mean of the findings", {"val": "val_auc"})
    panels[2].axhline(np.log(len(PRIMITIVES)), color=FAINT, ls=":", label=f"ln {len(PRIMITIVES)}: all weights equal")
    entropies = {"normal cell": "entropy_normal", "reduction cell": "entropy_reduce"}
    add_curves(panels[2], rows, "Entropy in nats, mean over edges", entropies)
    save_picture(figure.savefig, path)


def chosen_row(rows):
    """Of a search, the row of the epoch whose cells are in genotype.txt: the best val AUC after the warm-up."""
    return max((row for row in rows if row.get("alpha_loss") is not None), key=lambda row: row["val_auc"])


def kept_edges(row, kind):
    """The edges that the cells of an epoch keep: {(source, node): the words of its operation}; kind: normal, reduce."""
    pairs = enumerate(getattr(parse_genotype(row["genotype"]), kind))
    return {(source, INPUT_NODES + k // EDGES_PER_NODE): WORDS[operation] for k, (operation, source) in pairs}


def draw_alphas(path, rows, kinds=KINDS_OF_CELL):
    """softmax(α / τ) of each edge over the epochs, a row of panels per source and a column per node, for each kind.

    A panel's title is the edge's strength, the softmax(α) by which `genotypes.derive` ranks the edges of a column, in
    the epoch of `chosen_row` (dotted line). The edges that its cell keeps are framed, and their operation is named.
    """
    sources = INPUT_NODES + NODES - 1
    figure, panels = make_panels(len(kinds) * sources * NODES, NODES, 1.9, 1)
    chosen, epochs = chosen_row(rows), [row["epoch"] for row in rows]
    for kind, grid in zip(kinds, panels.reshape(-1, sources, NODES), strict=True):
        weights = softmax([row["alphas"][kind] for row in rows], axis=-1)  # (epochs, edges, operations)
        strengths = softmax(np.multiply(chosen["alphas"][kind], chosen["temperature"]), axis=-1)[:, 1:].max(axis=-1)
        kept = kept_edges(chosen, kind)
        for axes in grid.flat:
            axes.axis("off")
        grid[-1, 0].text(0, 0.5, KINDS_OF_CELL[kind])
        for k, (source, node) in enumerate(EDGES):
            axes, operation = grid[source, node - INPUT_NODES], kept.get((source, node), "")
            for values, name, style in zip(weights[:, k].T, WORDS.values(), cycle(STYLES), strict=False):
                axes.plot(epochs, values, **style | {"marker": "", "lw": 1.2}, label=name)
            axes.axvline(chosen["epoch"], color=FAINT, ls=":", lw=0.8)
            axes.axis("on")
            axes.set(ylim=(-0.05, 1.05), yticks=(0, 1))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axes.tick_params(labelsize=SMALL)
            axes.spines[:].set(color=DARK if operation else FAINT, linewidth=2 if operation else 0.5)
            title = f"{source}→{node}: {strengths[k]:.3f} {operation}"
            axes.set_title(title, fontsize=SMALL, weight="bold" if operation else None)
    look = {"loc": "outside lower center", "ncols": 4, "handlelength": 4, "fontsize": SMALL}
    figure.legend(*axes.get_legend_handles_labels(), **look)
    save_picture(figure.savefig, path)


def draw_training(path, rows):
    """Train and val loss, and val AUC; rows: the dicts of a training's metrics.jsonl."""
    figure, panels = make_panels(2, 2, 4, 3.2)
    add_curves(panels[0], rows, "Loss", {"train": "train_loss", "val": "val_loss"})
    add_curves(panels[1], rows, "Val AUC, mean of the findings", {"val": "val_auc"})
    save_picture(figure.savefig, path)


def draw_roc(path, labels, probabilities, findings):
    """ROC curves, one panel per finding.

    labels (N, findings) of 0 and 1; probabilities {model: (N, findings)}, NaN for findings that a model does not know.
    """
    height = 2.2 if len(findings) > 5 else 3.2  # inches; one row alone needs room for the label of the y axis
    figure, panels = make_panels(len(findings), 5, 2.1, height)
    styles = [style | {"marker": ""} for style, _ in zip(cycle(STYLES), probabilities, strict=False)]
    for k, axes in enumerate(panels):
        axes.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_title(findings[k].replace("_", " "), fontsize=10)
        known = [not np.isnan(scores[:, k]).any() for scores in probabilities.values()]
        if labels[:, k].min() == labels[:, k].max() or not any(known):
            axes.text(0.5, 0.5, "n/a", ha="center", va="center")
            continue
        for scores, style in compress(zip(probabilities.values(), styles, strict=True), known):
            false, true, _ = roc_curve(labels[:, k], scores[:, k])
            axes.plot(false, true, label=f"{auc(false, true):.3f}", **style)
        axes.legend(loc="lower right", fontsize=SMALL, handlelength=2.4, labelspacing=0.1, borderpad=0.2)
    lines = [panels[0].plot([], [], **style)[0] for style in styles]
    look = {"loc": "outside upper center", "ncols": min(5, len(lines)), "handlelength": 4}
    figure.legend(lines, probabilities, title="AUC in the panels", **look)
    figure.supxlabel("false positive rate (1 − specificity)")
    figure.supylabel("true positive rate (sensitivity)")
    save_picture(figure.savefig, path)


def draw_auc(path, scores):
    """The AUCs of the frame of `scores.auc_table` as dots, with their intervals as bars."""
    names, rows = list(scores.index.unique("network")), list(scores.index.unique("finding"))
    rows = rows[:1] if len(rows) == 2 else rows  # one finding alone needs no average
    figure, (axes,) = make_panels(1, 1, 7, 1.2 + len(rows) * (0.12 + 0.08 * len(names)))
    drawn = []
    for m, (name, style) in enumerate(zip(names, cycle(STYLES), strict=False)):
        middle, low, high = scores.loc[name, ["auc", "low", "high"]].to_numpy()[: len(rows)].T
        places = np.arange(len(rows)) + 0.7 * ((m + 0.5) / len(names) - 0.5)
        look = style | {"ls": "none", "ms": 5, "elinewidth": 1.2, "capsize": 2}
        drawn.append(axes.errorbar(middle, places, xerr=np.maximum((middle - low, high - middle), 0), **look))
    for k in range(0, len(rows), 2):
        axes.axhspan(k - 0.5, k + 0.5, color="0.94", zorder=0)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="AUC with 95 % interval")
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    figure.legend(drawn, names, loc="outside upper center", ncols=min(5, len(names)))
    save_picture(figure.savefig, path)


def draw_calibration(path, curves):
    """The curves of `scores.calibration_curves`, one panel per network."""
    figure, panels = make_panels(len(curves), 4, 2.6, 2.9)
    ticks = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    largest = max([points[:, [0, 3]].max() for points in curves.values() if len(points)], default=1)
    ticks = ticks[: np.searchsorted(ticks, largest) + 1]
    for axes, (name, points) in zip(panels, curves.items(), strict=True):
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("function", functions=(np.sqrt, np.square))  # room for the small probabilities of rare findings
        axes.set(box_aspect=1, xlim=(0, ticks[-1]), ylim=(0, ticks[-1]))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=SMALL)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=SMALL)
        axes.set_title(name, fontsize=10)
        axes.plot((0, 1), (0, 1), color=FAINT, ls="--")
        predicted, observed, low, high = points.T
        limits = np.maximum((observed - low, high - observed), 0)
        axes.errorbar(predicted, observed, yerr=limits, color=DARK, marker="o", ms=4, capsize=2)
        axes.set_xlabel("probability that the network gives", fontsize=SMALL)
    figure.supylabel("share of films with the finding", fontsize=10)
    save_picture(figure.savefig, path)


def draw_comparison(path, groups, genotype=None):
    """Test AUC of repeated trainings as dots, with their mean as a line; groups: {name: AUCs}.

    Above them stands the normal cell of `genotype`, where one is given.
    """
    width, dots = CELL_WIDTH, 0.7 + 0.3 * len(groups)
    figure = new_figure(width, dots + CELL_HEIGHT * bool(genotype))
    below = figure
    if genotype:
        above, below = figure.subfigures(2, 1, height_ratios=(CELL_HEIGHT, dots))
        add_cells(above, {"A found cell": (genotype.normal, genotype.normal_concat)})
    axes = below.add_axes((0.26, 0.55 / dots, 0.71, 1 - 0.7 / dots))  # room for ticks and the label below
    for k, values in enumerate(groups.values()):
        axes.plot(values, np.full(len(values), k), "o", color=DARK, alpha=0.5)
        axes.plot([np.mean(values)] * 2, (k - 0.3, k + 0.3), color=DARK, lw=2)
    axes.set(yticks=range(len(groups)), yticklabels=groups, xlabel="test AUC, mean of the findings")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    save_picture(figure.savefig, path)


def draw_quality(path, curves, split):
    """AUC on a split against minutes of training, a training as a dot; {name: (trainings, 2) of minutes and AUC}."""
    figure, (axes,) = make_panels(1, 1, 6.5, 4)
    for (name, points), style in zip(curves.items(), cycle(STYLES), strict=False):
        points = points[np.argsort(points[:, 0])]
        axes.plot(*points.T, label=name, **style)
    axes.set(xscale="log", xlabel="minutes of training, one thread", ylabel=f"{split} AUC, mean of the findings")
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center")
    save_picture(figure.savefig, path)


@contextmanager
def rows_of(folder):
    """The dicts of a run's metrics.jsonl, for a block that uses them. What they do not have there is an InputError."""
    source = Path(folder) / "metrics.jsonl"
    try:
        yield [json.loads(line) for line in read_text(source).splitlines()]
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        what = f"no rows of a run, or not as this version writes them ({type(error).__name__})"
        raise InputError(f"{source}: {what}: repeat the command of the run") from None


def draw_run(folder):
    """Draw a run's pictures into its folder. Raises InputError.

    Of a search: cells.png (of genotype.txt), alphas.png, search.png; else training.png.
    """
    folder = Path(folder)
    with rows_of(folder) as rows:
        if "alphas" in rows[-1]:
            save_picture(cells_figure(load_genotype(folder / "genotype.txt")).savefig, folder / "cells.png")
            draw_alphas(folder / "alphas.png", rows)
            draw_search(folder / "search.png", rows)
        else:
            draw_training(folder / "training.png", rows)


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a run, such as search_first_order or weights/chexnet")
    with guarded():
        draw_run(parser.parse_args().folder)


if __name__ == "__main__":
    main()
