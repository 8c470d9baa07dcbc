"""Every picture of the project. Colours differ in lightness, lines in marker or style: all survive print in grey.

python -m report.figures FOLDER    redraw the pictures of a run folder from its metrics.jsonl
"""

import argparse
import json
import re
import textwrap
from itertools import compress, cycle
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Polygon
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image
from sklearn.metrics import auc, roc_curve
from torch.nn import functional

from genotypes import (
    EDGES,
    EDGES_PER_NODE,
    INPUT_NODES,
    INTERMEDIATE,
    NODES,
    PRIMITIVES,
    edge_entropy,
    load_genotype,
    parse_genotype,
)
from support.files import InputError, replacing
from support.settings import guarded

COLOURS = ("#00204d", "#c8553d", "#3b8bc4", "#8a8678", "#d9a400", "#5b2a86", "#58a55c", "#1b1b1b")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)), (0, (1, 2)))
STYLES = [{"color": c, "ls": line, "marker": m} for c, line, m in zip(COLOURS, LINES, "osD^vPX*", strict=True)]
LOWERS, RAISES = "#2f86d6", "#ffb000"  # of activation maps: what lowers a logit, what raises it
DARK, FAINT, PALE, SMALL = "#1b1b1b", "#8c8c8c", "#f4f4f4", 8  # SMALL: points, of the smallest text
KINDS = {  # of an operation: name, line colour, line style, fill of its label
    "pool": ("max and average pools", "#d9a400", ":", "#fff3cc"),
    "skip": ("skip connection", "#8c8c8c", "-", "#ececec"),
    "sep": ("separable convolutions", "#00204d", "-", "#a9cbea"),
    "dil": ("dilated convolutions", "#c8553d", "--", "#f2d5cd"),
}
KIND = {name: "pool" if "pool" in name else name.split("_")[0] for name in PRIMITIVES}  # operation -> key of KINDS
WORDS = {name: re.sub(r"(\d)x(\d)", r"\1×\2", name.replace("_", " ")) for name in PRIMITIVES}
# Intermediate nodes have the numbers of genotype.txt, where the inputs c_{k-2} and c_{k-1} are 0 and 1.
NODE_NAMES = (r"$c_{k-2}$", r"$c_{k-1}$", *map(str, INTERMEDIATE), r"$c_k$")
COLUMN, FIRST_TRACK, TRACK, CELL_HEIGHT = 1.9, 0.5, 0.29, 3.35  # inches, of a drawn cell


def save_picture(save, path, **options):
    """Let `save`, such as a figure's savefig, write to `path`, as a whole or not at all."""
    path = Path(path)
    with replacing(path) as file:
        save(file, format=path.suffix[1:], **options)


def _panels(count, columns, width, height):
    """A figure of `count` axes, `width` × `height` inches each, laid out so that labels do not overlap."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels[:count]


def add_text(axes, x, y, text, size=9, **look):
    """Text around height y, `size` in points."""
    axes.text(x, y, text, fontsize=size, va="center", zorder=4, **look)


def add_box(axes, x, y, text, width=0.52, height=0.34, fill="white", size=10):
    """A rounded box around (x, y) with text in it."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.06", "fc": fill, "ec": DARK, "zorder": 3}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    add_text(axes, x, y, text, size, ha="center")


def add_arrow(axes, *points, colour=DARK):
    """A line through the points with a head at the last."""
    axes.add_patch(FancyArrowPatch(path=Polygon(points), arrowstyle="-|>", mutation_scale=11, color=colour))


def cells_figure(genotype, title=""):
    """A figure of the normal cell above the reduction cell."""
    width, height = COLUMN * NODES + 1.8, 2 * CELL_HEIGHT + 0.1
    figure = Figure(figsize=(width, height), dpi=150)  # the axes measure in inches
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=(), yticks=(), xlim=(0, width), ylim=(0, height))
    _add_cell(axes, CELL_HEIGHT, f"Normal cell   {title}", genotype.normal, genotype.normal_concat)
    _add_cell(axes, 0, f"Reduction cell   {title}", genotype.reduce, genotype.reduce_concat)
    return figure


def _add_cell(axes, bottom, title, pairs, concat):
    """One cell, from height `bottom` to `bottom` + CELL_HEIGHT; pairs and concat as in a genotype.

    The nodes stand in a row, each in a column of its own. An edge from the node just before is a straight arrow.
    Any other takes its target's track above the row or below it: those from c_{k-2} above, from c_{k-1} below.
    The label stands before the target's column, where no vertical line runs: whatever the cell, nothing crosses it.
    """
    add_text(axes, 0.2, bottom + CELL_HEIGHT - 0.15, title, 12, weight="bold")
    middle, low = bottom + 1.65, bottom + 0.06
    x = [0.5, *(0.5 + COLUMN * k for k in range(NODES + 1)), COLUMN * NODES + 1.4]  # of the nodes' centres
    y = [middle + FIRST_TRACK, middle - FIRST_TRACK] + [middle] * (NODES + 1)
    sources = [source for _, source in pairs]
    for k, node in enumerate(INTERMEDIATE):
        two = pairs[EDGES_PER_NODE * k :][:EDGES_PER_NODE]
        two = sorted(two, key=lambda pair: (pair[1] == 1, pair[1]))  # c_{k-1} comes last: below
        for side, (operation, source) in zip((1, -1), two, strict=True):
            right, branch, left = x[source] + 0.26, x[source] + 0.38, x[node] - 0.26
            if INPUT_NODES <= source == node - 1:
                track = middle
                add_arrow(axes, (right, track), (left, track))
            else:
                track = middle + side * (FIRST_TRACK + k * TRACK)
                start = (right, y[source]), (branch, y[source])
                add_arrow(axes, *start, (branch, track), (x[node], track), (x[node], middle + side * 0.17))
            if sources.count(source) > 1:  # lines part at dots; lines that cross have none
                axes.plot((branch, branch), (y[source], track), "o", ms=4, color=DARK)
            look = {"boxstyle": "round,pad=0.2", "fc": KINDS[KIND[operation]][3], "ec": FAINT, "lw": 0.6}
            add_text(axes, left - 0.6, track, WORDS[operation], ha="center", bbox=look)
    for node in concat:
        axes.plot((x[node] + 0.17,) * 2, (middle, low), color=FAINT, ls="--", zorder=1)
    add_arrow(axes, (x[min(concat)] + 0.17, low), (x[-1], low), (x[-1], middle - 0.17), colour=FAINT)
    for place, name in zip(zip(x, y, strict=True), NODE_NAMES, strict=True):
        add_box(axes, *place, name, fill="white" if name.isdigit() else "#d6d6d6")


def draw_cells_over_epochs(path, genotypes):
    """An animated GIF of the cells, one frame per epoch; genotypes: one per epoch, in order."""
    frames = []
    for epoch, genotype in enumerate(genotypes, start=1):
        canvas = FigureCanvasAgg(cells_figure(genotype, f"epoch {epoch}"))
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64))
    save_picture(frames[0].save, path, save_all=True, append_images=frames[1:], duration=800, loop=0)


def edge_weights(alphas):
    """α / τ (…, edges, operations) -> its softmax, same shape, and the entropy of that in nats, (…, edges)."""
    alphas = torch.tensor(alphas, dtype=torch.float64)
    return alphas.softmax(dim=-1).numpy(), edge_entropy(alphas).numpy()


def draw_alphas(path, normal, reduce):
    """softmax(α / τ) of both cells as heat maps; normal, reduce: α / τ (edges, operations)."""
    figure, panels = _panels(2, 2, 4.5, 5)
    weights, _ = edge_weights([normal, reduce])
    for axes, values, kind in zip(panels, weights, ("Normal", "Reduction"), strict=True):
        picture = axes.imshow(values, cmap="cividis", vmin=weights.min(), vmax=weights.max(), aspect="auto")
        axes.set_xticks(range(len(PRIMITIVES)), WORDS.values(), rotation=90)
        axes.set_yticks(range(len(EDGES)), [f"{source}→{node}" for source, node in EDGES])
        axes.set_title(f"{kind} cell")
    figure.supxlabel(r"edges source→node: 0 is $c_{k-2}$, 1 is $c_{k-1}$, 2 to 5 are the intermediate nodes")
    figure.colorbar(picture, ax=list(panels), label="softmax(α / τ)")
    save_picture(figure.savefig, path)


def _curves(axes, rows, title, curves):
    """Curves {name: one value per row, or the key of `rows` that has it} over the epochs of `rows`."""
    for (name, values), style in zip(curves.items(), cycle(STYLES), strict=False):
        values = [row[values] for row in rows] if isinstance(values, str) else values
        axes.plot([row["epoch"] for row in rows], np.array(values, float), label=name, ms=4, **style)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if len(curves) < 4:  # more hide what they explain
        axes.legend(fontsize=SMALL)


def draw_search(path, rows):
    """Losses, val AUC, entropy and weights of the operations; rows: the dicts of a search's metrics.jsonl."""
    figure, panels = _panels(6, 3, 3.5, 3.1)
    losses = {"train (step of w)": "train_loss", "val (step of α)": "alpha_loss", "val, whole": "val_loss"}
    _curves(panels[0], rows, "Loss", losses)
    _curves(panels[1], rows, "Val AUC, mean of the findings", {"val": "val_auc"})
    entropies = {}
    for axes, name, kind in ((panels[3], "normal cell", "normal"), (panels[4], "reduction cell", "reduce")):
        weights, entropy = edge_weights([row["alphas"][kind] for row in rows])  # (epochs, edges, operations)
        entropies[name] = entropy.mean(axis=1)
        curves = dict(zip(WORDS.values(), weights.mean(axis=1).T, strict=True))
        _curves(axes, rows, f"Mean weight over edges, {name}", curves)
    panels[2].axhline(np.log(len(PRIMITIVES)), color=FAINT, ls=":", label=f"ln {len(PRIMITIVES)}: all weights equal")
    _curves(panels[2], rows, "Entropy in nats, mean over edges", entropies)
    panels[5].axis("off")
    panels[5].legend(*panels[4].get_legend_handles_labels(), loc="center", title="operation", handlelength=4)
    save_picture(figure.savefig, path)


def draw_training(path, rows):
    """Train and val loss, and val AUC; rows: the dicts of a training's metrics.jsonl."""
    figure, panels = _panels(2, 2, 4, 3.2)
    _curves(panels[0], rows, "Loss", {"train": "train_loss", "val": "val_loss"})
    _curves(panels[1], rows, "Val AUC, mean of the findings", {"val": "val_auc"})
    save_picture(figure.savefig, path)


def draw_roc(path, labels, probabilities, findings):
    """ROC curves, one panel per finding; labels (N, findings) of 0 and 1, probabilities {model: (N, findings)}.

    A model has no curve for a finding where its probabilities are NaN.
    """
    figure, panels = _panels(len(findings), 5, 2.1, 2.2)
    styles = [style | {"marker": ""} for style, _ in zip(cycle(STYLES), probabilities, strict=False)]
    for k, axes in enumerate(panels):
        axes.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_title(findings[k].replace("_", " "), fontsize=10)
        known = [not np.isnan(scores[:, k]).any() for scores in probabilities.values()]
        if labels[:, k].min() == labels[:, k].max() or not any(known):
            add_text(axes, 0.5, 0.5, "n/a", ha="center")
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


def draw_auc(path, table, rows):
    """AUC with intervals as dots and bars; rows: labels; table: {model: (rows, 3) of AUC, low, high, or NaN}."""
    figure, (axes,) = _panels(1, 1, 7, 1.2 + len(rows) * (0.12 + 0.08 * len(table)))
    for m, ((name, values), style) in enumerate(zip(table.items(), cycle(STYLES), strict=False)):
        middle, low, high = np.asarray(values, float).T
        places = np.arange(len(rows)) + 0.7 * ((m + 0.5) / len(table) - 0.5)
        look = style | {"ls": "none", "ms": 5, "elinewidth": 1.2, "capsize": 2}
        axes.errorbar(middle, places, xerr=np.maximum((middle - low, high - middle), 0), label=name, **look)
    for k in range(0, len(rows), 2):
        axes.axhspan(k - 0.5, k + 0.5, color="0.94", zorder=0)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="AUC with 95 % interval")
    axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows])
    figure.legend(loc="outside upper center", ncols=min(5, len(table)))
    save_picture(figure.savefig, path)


def draw_comparison(path, groups):
    """Test AUC of repeated trainings as dots, with their mean as a line; groups: {name: AUCs}."""
    figure, (axes,) = _panels(1, 1, 8, 0.7 + 0.3 * len(groups))
    for k, values in enumerate(groups.values()):
        axes.plot(values, np.full(len(values), k), "o", color=DARK, alpha=0.5)
        axes.plot([np.mean(values)] * 2, (k - 0.3, k + 0.3), color=DARK, lw=2)
    axes.set(yticks=range(len(groups)), yticklabels=groups, xlabel="test AUC, mean of the findings")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    save_picture(figure.savefig, path)


def draw_quality(path, curves):
    """Val AUC against minutes of training, a training as a dot; curves: {name: (trainings, 2) of minutes and AUC}."""
    figure, (axes,) = _panels(1, 1, 6.5, 4)
    for (name, points), style in zip(curves.items(), cycle(STYLES), strict=False):
        points = points[np.argsort(points[:, 0])]
        axes.plot(*points.T, label=name, **style)
    axes.set(xscale="log", xlabel="minutes of training, one thread", ylabel="val AUC, mean of the findings")
    axes.xaxis.set_major_locator(LogLocator(2))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_picture(figure.savefig, path)


def overlay(film, values):
    """A film (H, W) uint8 under its see-through activation map (h, w) -> (H, W, 3) uint8.

    The map has a scale of its own: clear at zero, 70 % colour where it is farthest from zero.
    """
    smooth = functional.interpolate(torch.tensor(values, dtype=torch.float64)[None, None], film.shape, mode="bilinear")
    share = smooth[0, 0, :, :, None].numpy() / (np.abs(values).max() or 1)
    opacity, colour = 0.7 * np.abs(share), 255 * np.where(share < 0, to_rgb(LOWERS), to_rgb(RAISES))
    return (film[:, :, None] * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def map_note(maps):
    """What people must know about maps, each (h, w) or None."""
    height, width = next(values.shape for values in maps if values is not None)
    values = f"{height} × {width} values, drawn smoothly" if height * width > 1 else "one value only"
    return f"Each map has a scale of its own, and {values}."


def draw_activation(path, films, maps, texts):
    """Films (N, H, W) uint8 with captions, each under its map (h, w), see `overlay`, or bare where that is None."""
    figure, panels = _panels(len(films), 6, 1.8, 2.3)
    for axes, film, values, text in zip(panels, films, maps, texts, strict=True):
        axes.imshow(film if values is None else overlay(film, values), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=(), yticks=())
        lines = text.replace("|", ", ").replace("_", " ").split("\n")
        axes.set_xlabel("\n".join(textwrap.fill(line, 24) for line in lines), fontsize=SMALL)
    if any(values is not None for values in maps):
        scale = ScalarMappable(Normalize(-1, 1), LinearSegmentedColormap.from_list("", (LOWERS, "#b8b8b8", RAISES)))
        bar = figure.colorbar(scale, ax=list(panels), ticks=(-1, 0, 1), shrink=0.8)
        bar.ax.set_yticklabels(("lowers\nthe logit", "0", "raises\nthe logit"), fontsize=SMALL)
        figure.supxlabel(map_note(maps), fontsize=SMALL)
    save_picture(figure.savefig, path)


def class_activation(network, films):
    """What each place of the last feature map adds to each logit: films (B, 3, H, W) -> (B, findings, h, w).

    model_eval.Network and chexnet.CheXNet end in global average pooling and one linear layer. Both are linear, so they
    can be exchanged: the mean of a map is the logit minus the layer's bias, exactly. The network is in eval mode.
    """
    features = []
    if hasattr(network, "densenet"):  # torchvision's: a ReLU and the pooling follow `features`, as functions
        last = network.densenet.features
        hook = last.register_forward_hook(lambda _, inputs, output: features.append(output.relu()))
    else:
        hook = network.pool.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad(), hook:  # the hook is removed at the end
        network(films)
        return torch.einsum("fc,bchw->bfhw", network.classifier.weight, features[0])


def draw_run(folder):
    """Draw a run's pictures into its folder; returns their paths. Raises InputError with one line.

    Of a search: cells.png (of genotype.txt), cells.gif, alphas.png (last epoch), search.png; else training.png.
    """
    source, rows = Path(folder) / "metrics.jsonl", []
    try:
        for line in source.read_text(encoding="utf-8").splitlines():
            rows.append(json.loads(line))
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{source}, line {len(rows) + 1}: not JSON") from None
    keys = {"epoch", "train_loss", "val_loss", "val_auc"}
    if not rows or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise InputError(f"{source}: no epoch, or one without {', '.join(sorted(keys))}")
    names = ("cells.png", "cells.gif", "alphas.png", "search.png") if "alphas" in rows[-1] else ("training.png",)
    paths = [source.with_name(name) for name in names]
    try:
        if len(paths) == 1:
            draw_training(*paths, rows)
        else:
            save_picture(cells_figure(load_genotype(source.with_name("genotype.txt"))).savefig, paths[0])
            draw_cells_over_epochs(paths[1], [parse_genotype(row["genotype"]) for row in rows])
            draw_alphas(paths[2], **rows[-1]["alphas"])
            draw_search(paths[3], rows)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{source}: a row is not as this project writes it ({what})") from None
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a run, such as search_first_order or weights/chexnet")
    with guarded():
        print(*draw_run(parser.parse_args().folder), sep="\n")


if __name__ == "__main__":
    main()
