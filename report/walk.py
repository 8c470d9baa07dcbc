"""The pictures of docs/learn.md's walk through one search, from a search and the training of its cell.

    python -m report.walk OUT    OUT: what `--out` was for search_train.py and val_train.py

draws docs/walk_edge.png, walk_alphas.png, walk_cells.png and walk_network.png, and prints the network's probabilities.
"""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import torch
from scipy.special import softmax

from dataset import Films, open_set
from genotypes import EDGES, load_genotype
from report.activations import Sheet, draw_sheet
from report.cells import WORDS, cells_figure, save_picture
from report.figures import draw_alphas, rows_of
from report.networks import load_network
from support.settings import Parser, guarded
from textbook import MixedOp

EDGE = 0, 3  # of the normal cell, whose mix is shown


def grey(values):
    """Any numbers (H, W) as a picture, uint8, from their lowest, black, to their highest."""
    values = values - values.min()
    return (255 * values / (values.max() or 1)).byte().numpy()


def mixed_edge(film, rows):
    """A `Sheet`: what each operation makes of a film (1, 1, H, W), and their sums with the weights of three epochs.

    The operations are those of textbook.py with random kernels, as at the start of a search. rows: of metrics.jsonl.
    """
    torch.manual_seed(0)
    mixed = MixedOp(1, 1)
    pictures, captions = [film, *(operation(film) for operation in mixed.operations)], ["x: a film", *WORDS.values()]
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        weights = softmax(row["alphas"]["normal"][EDGES.index(EDGE)])
        pictures.append(mixed(film, weights))
        numbers = [f"{weight:.2f}" for weight in weights]
        captions.append(f"sum in epoch {row['epoch']}:\n{' '.join(numbers[:4])}\n{' '.join(numbers[4:])}")
    return Sheet([grey(picture[0, 0]) for picture in pictures], captions)


def stages(network, film):
    """A `Sheet`: a film (1, 3, H, W), and the output of each cell of a derived network, as its mean over channels."""
    pictures = [film]
    s0 = s1 = network.stem(film)
    for cell in network.cells:
        pictures.append(cell(s0, s1))
        s0, s1 = s1, network.relu(pictures[-1])
    shapes = [" × ".join(map(str, picture.shape[1:])) for picture in pictures]
    captions = [f"cell {k}: {shape}" if k else f"film: {shape}" for k, shape in enumerate(shapes)]
    return Sheet([grey(picture[0].mean(dim=0)) for picture in pictures], captions)


def draw_walk(out, data, docs):
    """Draw the pictures into the folder `docs`. data: the folder of the prepared sets. Raises InputError."""
    search, docs = Path(out) / "search_first_order", Path(docs)
    network, saved = load_network(Path(out) / "weights" / "first_order_net.pth")
    prepared = open_set(data, saved["settings"]["dataset"])
    films = Films(prepared, "test", saved["settings"]["crop"], "cpu").seen_by(saved["settings"])
    chosen = films.labels.sum(dim=1).argmax()[None]  # the film with the most findings
    film = films.eval_batch(chosen)
    with rows_of(search) as rows, torch.no_grad():
        draw_sheet(docs / "walk_edge.png", mixed_edge(film[:, :1], rows))
        draw_alphas(docs / "walk_alphas.png", rows, ["normal"])
        draw_sheet(docs / "walk_network.png", stages(network.eval(), film))
        probabilities = network(film).sigmoid()[0].tolist()
    save_picture(cells_figure(load_genotype(search / "genotype.txt")).savefig, docs / "walk_cells.png")
    for finding, present, probability in zip(prepared.findings, films.labels[chosen][0], probabilities, strict=True):
        print(f"{finding}{' (in the film)' if present else ''}: {probability:.3f}")


def main():
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder that holds search_first_order and weights")
    parser.add_argument("--data", default="data", help="folder of the prepared sets (data)")
    with guarded():
        arguments = parser.parse_args()
        draw_walk(arguments.out, arguments.data, "docs")


if __name__ == "__main__":
    main()
