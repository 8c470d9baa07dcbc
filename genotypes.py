"""Genotypes: a cell written down as data (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055).

A cell has two input nodes, 0 and 1 (the outputs of the two cells before it), and four intermediate nodes,
2 to 5. A genotype lists, node by node, the two edges that an intermediate node keeps, each as a pair
(operation, source node). The cell's output is the concatenation of the nodes in `*_concat`.
"""

import hashlib
import os
import random
import re
from pathlib import Path
from typing import NamedTuple

from support.files import InputError, read_text, write
from support.genotype_text import choose_genotype, read_genotype, shown

# The candidate operations of the paper's section 3.1, in the order of its authors' code and of the columns of α.
PRIMITIVES = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip

INPUT_NODES = 2
NODES = 4  # intermediate nodes
INTERMEDIATE = range(INPUT_NODES, INPUT_NODES + NODES)  # their numbers
EDGES_PER_NODE = 2  # how many the derivation keeps

# The rows of α: edge (source i, node j), node by node.
EDGES = tuple((i, j) for j in INTERMEDIATE for i in range(j))

MAX_FILE = 10_000_000  # bytes of a file that a genotype is read from; it may be a whole log


class Genotype(NamedTuple):
    """A normal and a reduction cell: (operation, source node) pairs, two per node, and the nodes concatenated."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def derive(alphas_normal, alphas_reduce):
    """The two discrete cells of section 2.4: per node the two edges with the strongest operation.

    alphas_*: tensors, shape (edges, operations), as the supernet holds them (before the softmax). The strength
    of an edge is the softmax weight of its best operation other than `none`. The two edges of a node are listed
    in falling strength; ties go to the lower source node, then to the earlier primitive.
    """

    def cell(alphas):
        weights = alphas.detach().cpu().double().softmax(dim=-1).tolist()
        pairs = []
        for node in INTERMEDIATE:
            incoming = []
            for (source, target), row in zip(EDGES, weights, strict=True):
                if target == node:
                    best = max(range(1, len(PRIMITIVES)), key=row.__getitem__)  # the first of equals; 0 is `none`
                    incoming.append((-row[best], source, PRIMITIVES[best]))
            pairs += [(op, source) for _, source, op in sorted(incoming)[:EDGES_PER_NODE]]
        return pairs

    return Genotype(cell(alphas_normal), list(INTERMEDIATE), cell(alphas_reduce), list(INTERMEDIATE))


def diagnostics(genotype, logits_normal, logits_reduce):
    """Numbers that show how far a search has decided, and whether it collapses to skip connections: a dict.

    genotype: what `derive` makes of α. logits_*: α / τ, as the softmax gets it, shape (edges, operations).
    entropy_*: of softmax, in nats, the mean over the edges; ln 8 = 2.08 where all operations weigh the same.
    skips, pools: how many of the 16 edges of the genotype's two cells are skip connections, and how many are pools.
    """
    state = {}
    for kind, logits in (("normal", logits_normal), ("reduce", logits_reduce)):
        log_weights = logits.detach().cpu().double().log_softmax(dim=-1)
        state[f"entropy_{kind}"] = -(log_weights.exp() * log_weights).sum(dim=-1).mean().item()
    kept = [op for op, _ in genotype.normal + genotype.reduce]
    return state | {"skips": kept.count("skip_connect"), "pools": sum(op.endswith("pool_3x3") for op in kept)}


def random_genotype(seed):
    """A cell drawn uniformly: per node two different earlier nodes, per edge any operation but `none`."""
    rng = random.Random(seed % 2**64)  # Random itself would draw the same for -seed as for seed

    def cell():
        drawn = (source for node in INTERMEDIATE for source in sorted(rng.sample(range(node), EDGES_PER_NODE)))
        return [(rng.choice(PRIMITIVES[1:]), source) for source in drawn]

    return Genotype(cell(), list(INTERMEDIATE), cell(), list(INTERMEDIATE))


def check_genotype(genotype):
    """Raise InputError, saying what does not fit first, unless `genotype` describes two cells that can be built."""
    expected = EDGES_PER_NODE * NODES
    for kind in ("normal", "reduce"):
        pairs, concat = getattr(genotype, kind), getattr(genotype, f"{kind}_concat")
        if not isinstance(pairs, list) or len(pairs) != expected:
            there = f"a list of {len(pairs)}" if isinstance(pairs, list) else shown(pairs)
            raise InputError(f"{kind} must be a list of {expected} (operation, node) pairs, two per node, not {there}")
        for k, pair in enumerate(pairs):
            node = INPUT_NODES + k // EDGES_PER_NODE
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise InputError(f"{kind}[{k}] must be an (operation, node) pair, not {shown(pair)}")
            op, source = pair
            if op not in PRIMITIVES[1:]:
                raise InputError(f"{kind}[{k}]: unknown operation {shown(op)}; known: {', '.join(PRIMITIVES[1:])}")
            if source not in range(node):
                raise InputError(f"{kind}[{k}]: node {node} can take nodes 0 to {node - 1}, not {shown(source)}")
            if k % EDGES_PER_NODE and source == pairs[k - 1][1]:
                raise InputError(f"{kind}[{k}]: node {node} takes node {source} twice")
        nodes = concat if isinstance(concat, list) else []
        if not nodes or not all(n in INTERMEDIATE and nodes.count(n) == 1 for n in nodes):
            raise InputError(f"{kind}_concat must list different intermediate nodes, not {shown(concat)}")


def find_genotype(text, source):
    """The genotype in a text, whatever stands around it (`support.genotype_text`), and the name in front of it or "".

    Of several genotypes one is taken, which a printed line says. source: what messages call the text. Raises
    InputError, in one line, for the first thing that does not fit.
    """
    written, name, which = choose_genotype(text, source)
    where = f"{source}: {which}" if which else source
    try:
        genotype = Genotype(**read_genotype(written, Genotype._fields))
        check_genotype(genotype)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if which:
        print(f"{where} is taken")
    return genotype, name


def parse_genotype(text):
    """The genotype in a text. Raises InputError."""
    return find_genotype(text, "genotype")[0]


def load_genotype(path):
    """The genotype in a file. Raises InputError."""
    return find_genotype(read_text(path, MAX_FILE), path)[0]


def format_genotype(genotype):
    """The one line `genotype = Genotype(normal=[...], ...)` of genotype.txt, without a line break."""
    return f"genotype = {genotype!r}"


def save_genotype(path, genotype):
    """Write a genotype.txt. Raises InputError, before it writes, for a genotype that cannot be built."""
    check_genotype(genotype)
    write(path, format_genotype(genotype) + "\n")


def _cells(*texts):
    """A genotype from two texts "operation source, operation source, …"; all intermediate nodes are concatenated."""
    cells = [[(op, int(source)) for op, source in map(str.split, text.split(","))] for text in texts]
    return Genotype(cells[0], list(INTERMEDIATE), cells[1], list(INTERMEDIATE))


# Cells that `val_train.py --genotype NAME` trains.
PUBLISHED = {
    # The paper's cells for CIFAR-10, as its authors' code names them: found by the first order ...
    "DARTS_V1": _cells(
        "sep_conv_3x3 1, sep_conv_3x3 0, skip_connect 0, sep_conv_3x3 1, "
        "skip_connect 0, sep_conv_3x3 1, sep_conv_3x3 0, skip_connect 2",
        "max_pool_3x3 0, max_pool_3x3 1, skip_connect 2, max_pool_3x3 0, "
        "max_pool_3x3 0, skip_connect 2, skip_connect 2, avg_pool_3x3 0",
    ),
    # ... and by the second.
    "DARTS_V2": _cells(
        "sep_conv_3x3 0, sep_conv_3x3 1, sep_conv_3x3 0, sep_conv_3x3 1, "
        "sep_conv_3x3 1, skip_connect 0, skip_connect 0, dil_conv_3x3 2",
        "max_pool_3x3 0, max_pool_3x3 1, skip_connect 2, max_pool_3x3 1, "
        "max_pool_3x3 0, skip_connect 2, skip_connect 2, max_pool_3x3 1",
    ),
    # The first-order cell that the original of this project published for its ChestX-ray14 toy set.
    "CHESTXRAY14_FIRST_ORDER": _cells(
        "dil_conv_5x5 0, sep_conv_3x3 1, max_pool_3x3 2, max_pool_3x3 0, "
        "dil_conv_3x3 1, avg_pool_3x3 2, dil_conv_3x3 0, dil_conv_5x5 4",
        "avg_pool_3x3 0, sep_conv_3x3 1, avg_pool_3x3 0, skip_connect 2, "
        "skip_connect 1, sep_conv_3x3 3, avg_pool_3x3 0, dil_conv_3x3 1",
    ),
}


# --- What --genotype says

# Names that the scripts themselves give to networks, and names of weights files.
TAKEN = re.compile(r"chexnet|first_order|second_order|random_-?\d+|.*_net\.pth", re.IGNORECASE)

# The network of a file with one of these names is named after the file's folder, with this ending.
OF_FOLDER = {"genotype": "", "genotype_last": "_last", "log": "_log"}


def given_genotype(given):
    """The genotype in a file or a text, as (the name of its network, genotype). The name is safe as a file name.

    given: the path or the text. Raises InputError.
    """
    if os.path.exists(given):
        genotype, remedy = load_genotype(given), "rename the file"
        path = Path(given.removesuffix(".gz"))
        name = path.parent.resolve().name + OF_FOLDER[path.stem] if path.stem in OF_FOLDER else path.stem
    elif "Genotype(" in given:
        genotype, name = find_genotype(given, "--genotype")
        remedy = "write another NAME = Genotype(...)"
        if name in ("", "genotype"):
            name = "cell_" + hashlib.sha256(format_genotype(genotype).encode()).hexdigest()[:8]
    else:
        known = ", ".join(["random", *PUBLISHED])
        raise InputError(f"genotype {shown(given)}: no such file, no 'Genotype(...)', and not one of {known}")
    published = {known.lower(): cell for known, cell in PUBLISHED.items()}
    try:
        check_name(name)
        if TAKEN.fullmatch(name) or published.get(name.lower(), genotype) != genotype:
            raise InputError(f"its network would be called {name}, which is taken")
    except InputError as error:
        raise InputError(f"genotype {shown(given)}: {error}: {remedy}") from None
    return name, genotype


def check_name(name):
    """Raise InputError unless a network may have this name, which names files, columns and lines of a plot, too."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{,63}", name):
        rule = "1 to 64 of a-z, A-Z, 0-9, '_', '-' and '.' (not in front)"
        raise InputError(f"a network's name has {rule}, not {shown(name)}")
