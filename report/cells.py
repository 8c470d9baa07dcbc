"""The drawn cell: nodes as boxes, edges as arrows with the name of their operation. Also what all pictures share."""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Polygon

from genotypes import EDGES_PER_NODE, INPUT_NODES, INTERMEDIATE, NODES, PRIMITIVES
from support.files import replacing

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
CELL_WIDTH = COLUMN * NODES + 1.8


def new_figure(width, height, **look):
    """An empty figure, in inches, with Matplotlib's defaults, whatever style the user has chosen for Matplotlib."""
    matplotlib.rcdefaults()
    return Figure(figsize=(width, height), dpi=150, **look)


def save_picture(save, path, **options):
    """Call `save`, such as a figure's savefig, with a file that becomes `path` only when it is whole."""
    path = Path(path)
    with replacing(path) as file:
        save(file, format=path.suffix[1:], **options)


def add_text(axes, x, y, text, size=9, **look):
    """Text that starts at x and is centred on the height y; size: points."""
    axes.text(x, y, text, fontsize=size, va="center", zorder=4, **look)


def add_box(axes, x, y, text, width=0.52, height=0.34, fill="white", size=10):
    """A rounded box with text in it, both centred on (x, y)."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.06", "fc": fill, "ec": DARK, "zorder": 3}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    add_text(axes, x, y, text, size, ha="center")


def add_arrow(axes, *points, colour=DARK):
    """A line through the points (x, y), with a head at the last one."""
    axes.add_patch(FancyArrowPatch(path=Polygon(points), arrowstyle="-|>", mutation_scale=11, color=colour))


def cells_figure(genotype):
    """A figure: the genotype's normal cell above its reduction cell."""
    figure = new_figure(CELL_WIDTH, 2 * CELL_HEIGHT)
    normal, reduction = (genotype.normal, genotype.normal_concat), (genotype.reduce, genotype.reduce_concat)
    add_cells(figure, {"Normal cell": normal, "Reduction cell": reduction})
    return figure


def add_cells(figure, cells):
    """Draw cells below each other, {title: (pairs, concat)}; the figure has CELL_WIDTH, and CELL_HEIGHT for each."""
    look = {"xlim": (0, CELL_WIDTH), "ylim": (0, CELL_HEIGHT * len(cells))}  # the axes measure in inches
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=(), yticks=(), **look)
    for k, (title, cell) in enumerate(reversed(cells.items())):
        add_cell(axes, k * CELL_HEIGHT, title, *cell)


def add_cell(axes, bottom, title, pairs, concat):
    """Draw a cell between the heights `bottom` and `bottom` + CELL_HEIGHT; pairs and concat as in a genotype.

    The nodes stand in a row. An edge from the node just before is a straight arrow. Every other edge runs along a track
    of its target, above the row or below it; edges from c_{k-2} run above, edges from c_{k-1} below. The label of an
    edge stands just before the target's column, where no vertical line runs, so that no line crosses a label.
    """
    add_text(axes, 0.2, bottom + CELL_HEIGHT - 0.15, title, 12, weight="bold")
    middle, low = bottom + 1.65, bottom + 0.06
    x = [0.5, *(0.5 + COLUMN * k for k in range(NODES + 1)), COLUMN * NODES + 1.4]  # of the nodes' centres
    y = [middle + FIRST_TRACK, middle - FIRST_TRACK] + [middle] * (NODES + 1)
    sources = [source for _, source in pairs]
    for k, node in enumerate(INTERMEDIATE):
        two = pairs[EDGES_PER_NODE * k :][:EDGES_PER_NODE]
        two = sorted(two, key=lambda pair: (pair[1] == 1, pair[1]))  # the second one, c_{k-1}, runs below
        for side, (operation, source) in zip((1, -1), two, strict=True):
            right, branch, left = x[source] + 0.26, x[source] + 0.38, x[node] - 0.26
            if INPUT_NODES <= source == node - 1:
                track = middle
                add_arrow(axes, (right, track), (left, track))
            else:
                track = middle + side * (FIRST_TRACK + k * TRACK)
                start = (right, y[source]), (branch, y[source])
                add_arrow(axes, *start, (branch, track), (x[node], track), (x[node], middle + side * 0.17))
            if sources.count(source) > 1:  # a dot marks where lines part, as opposed to lines that cross
                axes.plot((branch, branch), (y[source], track), "o", ms=4, color=DARK)
            look = {"boxstyle": "round,pad=0.2", "fc": KINDS[KIND[operation]][3], "ec": FAINT, "lw": 0.6}
            add_text(axes, left - 0.6, track, WORDS[operation], ha="center", bbox=look)
    for node in concat:
        axes.plot((x[node] + 0.17,) * 2, (middle, low), color=FAINT, ls="--", zorder=1)
    add_arrow(axes, (x[min(concat)] + 0.17, low), (x[-1], low), (x[-1], middle - 0.17), colour=FAINT)
    for place, name in zip(zip(x, y, strict=True), NODE_NAMES, strict=True):
        add_box(axes, *place, name, fill="white" if name.isdigit() else "#d6d6d6")
