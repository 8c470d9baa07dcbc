"""The figure of the README: a mixed cell, the network of cells, a step of the search, a cell that was found.

    python -m report.summary Summary.png

Colours and boxes are those of report/cells.py.
"""

import argparse

import numpy as np

from genotypes import EDGES, INPUT_NODES, PUBLISHED
from report.cells import FAINT, KIND, KINDS, NODE_NAMES, PALE, add_arrow, add_box, add_text, new_figure, save_picture
from support.settings import Parser, guarded

WIDTH, HEIGHT = 9, 7.2  # inches; the axes measure in inches, too
# Places of a cell's nodes in the order of NODE_NAMES, around (0, 0).
RING = np.array([(-1, 0.55), (-1, -0.55), (-0.35, 1), (-0.35, -1), (0.45, 0.9), (0.45, -0.9), (1, 0)])


def draw_summary(path):
    """The whole figure, four panels."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=(), yticks=(), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    draw_mixed_cell(axes)
    draw_network(axes)
    draw_search_step(axes)
    draw_way_to_the_table(axes)
    save_picture(figure.savefig, path)


def add_title(axes, x, y, title):
    add_text(axes, x, y, title, 12, weight="bold")


def add_cell(axes, places, edges):
    """A cell's nodes at `places` (nodes, 2) and its lines; edges: (source, node, key of KINDS, place in the bundle)."""
    for source, node, kind, k in edges:
        along = places[node] - places[source]
        across = np.array((-along[1], along[0])) / np.hypot(*along)
        _, colour, line, _ = KINDS[kind]
        axes.plot(*(places[[source, node]] + across * k * 0.05).T, color=colour, ls=line, lw=1.4)
    for k, name in enumerate(NODE_NAMES):
        intermediate = name.isdigit()
        add_box(axes, *places[k], name, fill="white" if intermediate else "#d6d6d6")
        if intermediate:
            axes.plot(*places[[k, -1]].T, color=FAINT, lw=0.8, ls="--", zorder=1)


def draw_mixed_cell(axes):
    add_title(axes, 0.15, 7, "1  A cell with mixed edges")
    mixed = [(source, node, kind, k - 1.5) for source, node in EDGES for k, kind in enumerate(KINDS)]
    add_cell(axes, RING * (1.75, 1) + (2.15, 5.55), mixed)
    for k, (name, colour, line, _) in enumerate(KINDS.values()):
        x, y = 0.15 + 2.1 * (k % 2), 4.22 - 0.22 * (k // 2)
        axes.plot((x, x + 0.35), (y, y), color=colour, ls=line, lw=1.6)
        add_text(axes, x + 0.42, y, name)
    formula = r"node $j=\sum_{i<j,\;o}\;\mathrm{softmax}(\alpha_{ij})_o\cdot o\,(\mathrm{node}\ i)$"
    add_text(axes, 0.15, 3.66, formula, 10)


def draw_network(axes):
    add_title(axes, 4.65, 7, "2  The network of cells")
    stages = (  # of the phantom's setting: name, shape of the output
        ("films", "3×64×64"),
        ("stem", "3C×16×16"),
        ("normal cell", "4C×16×16"),
        ("reduction cell", "8C×8×8"),
        ("reduction cell", "16C×4×4"),
        ("reduction cell", "32C×2×2"),
        ("normal cell", "32C×2×2"),
        ("average pool", "32C×1×1"),
        ("linear", "14 logits"),
    )
    for k, (name, shape) in enumerate(stages):
        x, y = 5.3 + 1.5 * (k % 3), 6.45 - 1.05 * (k // 3)
        add_box(axes, x, y, name, 1.2, 0.42, "#a9cbea" if "reduction" in name else PALE)
        add_text(axes, x, y - 0.34, shape, ha="center")
        if k % 3:
            add_arrow(axes, (x - 0.9, y), (x - 0.6, y))
        elif k:
            add_arrow(axes, (x + 3, y + 0.6), (x + 3, y + 0.43), (x, y + 0.43), (x, y + 0.21))
    add_text(axes, 4.7, 3.66, "channels × height × width; C: channels of the first cell")


def add_stations(axes, x, width, size, texts):
    """Boxes below each other, joined by arrows."""
    for k, text in enumerate(texts):
        y = 2.6 - 0.86 * k
        add_box(axes, x, y, text, width, 0.64, "#f2d5cd" if "α (" in text else PALE, size)
        if k:
            add_arrow(axes, (x, y + 0.54), (x, y + 0.32))


def draw_search_step(axes):
    add_title(axes, 0.15, 3.25, "3  One step of the search")
    steps = (
        "virtual step of w on a train batch\n" + r"$w'=w-\xi\,\nabla_wL_{train}(w,\alpha)$",
        "step of α (Adam) on a val batch along\n" + r"$\nabla_\alpha L_{val}(w',\alpha)"
        r"-\xi\,\nabla^2_{\alpha,w}L_{train}(w,\alpha)\,\nabla_{w'}L_{val}(w',\alpha)$",
        "step of w (SGD) on the same train batch along\n" + r"$\nabla_wL_{train}(w,\alpha)$",
    )
    add_stations(axes, 2.17, 4.04, 10, steps)
    orders = r"First order: $\xi=0$, so $w'=w$. Second order: $\xi$ is the rate of SGD."
    add_text(axes, 0.15, 0.3, orders + "\n(momentum and weight decay left out)")


def draw_way_to_the_table(axes):
    add_title(axes, 4.65, 3.25, "4  From the search to the table")
    found = [(source, INPUT_NODES + k // 2, KIND[op], 0) for k, (op, source) in enumerate(PUBLISHED["DARTS_V1"].normal)]
    add_cell(axes, RING * (1.15, 0.85) + (6.05, 2), found)
    add_text(axes, 4.7, 0.4, "Each node keeps its two strongest edges,\neach edge its strongest operation.")
    stations = "derive the cells", "stack, train\nfrom scratch", "AUC by finding,\nbeside CheXNet"
    add_stations(axes, 8.25, 1.25, 9, stations)


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="of the picture, such as Summary.png")
    with guarded():
        draw_summary(parser.parse_args().path)


if __name__ == "__main__":
    main()
