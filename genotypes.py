"""Genotypes: a cell written down as data (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055).

A cell has two input nodes, 0 and 1 (the outputs of the two cells before it), and four intermediate nodes,
2 to 5. A genotype lists, node by node, the two edges that each intermediate node keeps as pairs
(operation, source node); the cell's output is the concatenation of the nodes in `*_concat`.
"""

import hashlib
import os
import random
import re
from pathlib import Path
from typing import NamedTuple

from support.calls import find_call, shown
from support.files import InputError, read_text, write

# The candidate operations of the paper's section 3.1, in the order of its authors' code and of the columns of α.
PRIMITIVES = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip

INPUT_NODES = 2
NODES = 4  # intermediate nodes ...
INTERMEDIATE = range(INPUT_NODES, INPUT_NODES + NODES)  # ... and their numbers
EDGES_PER_NODE = 2  # kept by the derivation

# The rows of α: edge (source i, node j), node by node.
EDGES = tuple((i, j) for j in INTERMEDIATE for i in range(j))

MAX_FILE = 10_000_000  # bytes; it may be a whole log


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
    in falling strength; ties go to the lower source node, then to the earlier primitive. Raises ValueError for α of
    another shape or with values that are not finite.
    """

    def cell(alphas):
        weights = alphas.detach().cpu().double().softmax(dim=-1).tolist()
        pairs = []
        for node in INTERMEDIATE:
            incoming = []
            for (source, target), row in zip(EDGES, weights, strict=True):
                if target == node:
                    best = max(range(1, len(PRIMITIVES)), key=row.__getitem__)  # 0 is `none`; first of equals
                    incoming.append((-row[best], source, PRIMITIVES[best]))
            pairs += [(op, source) for _, source, op in sorted(incoming)[:EDGES_PER_NODE]]
        return pairs

    for alphas in (alphas_normal, alphas_reduce):
        if alphas.shape != (len(EDGES), len(PRIMITIVES)):
            raise ValueError(f"α must be {len(EDGES)} edges × {len(PRIMITIVES)} operations, not {alphas.shape}")
        if not alphas.isfinite().all():
            raise ValueError("α holds values that are not finite: no cell can be derived from it")
    return Genotype(cell(alphas_normal), list(INTERMEDIATE), cell(alphas_reduce), list(INTERMEDIATE))


def edge_entropy(logits):
    """Entropy of softmax(logits) in nats: a tensor (…, edges, operations) -> (…, edges), at most ln 8 = 2.08."""
    log_weights = logits.log_softmax(dim=-1)
    return -(log_weights.exp() * log_weights).sum(dim=-1)


def diagnostics(genotype, logits_normal, logits_reduce):
    """How a search stands, and whether it collapses: plain numbers, one dict. genotype: what `derive` makes of α.

    logits_*: α / τ, as the softmax gets it.
    entropy_*: mean of `edge_entropy`: ln 8 = 2.08 where nothing is decided, 0 where all is.
    skips, pools: how many of the 16 edges of the genotype's two cells are skip connections, and pools.
    """
    state = {}
    for kind, logits in (("normal", logits_normal), ("reduce", logits_reduce)):
        state[f"entropy_{kind}"] = edge_entropy(logits.detach().cpu().double()).mean().item()
    kept = [op for op, _ in genotype.normal + genotype.reduce]
    return state | {"skips": kept.count("skip_connect"), "pools": sum(op.endswith("pool_3x3") for op in kept)}


def random_genotype(seed):
    """A cell drawn uniformly: per node two different earlier nodes, per edge any operation but `none`."""
    rng = random.Random(seed % 2**64)  # which takes the absolute value of a negative seed

    def cell():
        pairs = []
        for node in INTERMEDIATE:
            for source in sorted(rng.sample(range(node), EDGES_PER_NODE)):
                pairs.append((rng.choice(PRIMITIVES[1:]), source))
        return pairs

    return Genotype(cell(), list(INTERMEDIATE), cell(), list(INTERMEDIATE))


def check_genotype(genotype):
    """Raise InputError, saying what is wrong, unless `genotype` describes two cells that can be built."""
    for kind in ("normal", "reduce"):
        pairs, concat = getattr(genotype, kind), getattr(genotype, kind + "_concat")
        expected = EDGES_PER_NODE * NODES
        if not isinstance(pairs, list) or len(pairs) != expected:
            there = f"a list of {len(pairs)}" if isinstance(pairs, list) else shown(pairs)
            raise InputError(f"{kind} must be a list of {expected} (operation, node) pairs, two per node, not {there}")
        for k, pair in enumerate(pairs):
            node = INPUT_NODES + k // EDGES_PER_NODE
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise InputError(f"{kind}[{k}] must be an (operation, node) pair, not {shown(pair)}")
            op, source = pair
            if op not in PRIMITIVES or op == "none":
                raise InputError(f"{kind}[{k}]: unknown operation {shown(op)}; known: {', '.join(PRIMITIVES[1:])}")
            if type(source) is not int or not 0 <= source < node:
                raise InputError(f"{kind}[{k}]: node {node} can take nodes 0 to {node - 1}, not {shown(source)}")
            if k % EDGES_PER_NODE and source == pairs[k - 1][1]:
                raise InputError(f"{kind}[{k}]: node {node} takes node {source} twice")
        if not (
            isinstance(concat, list)
            and concat
            and all(type(node) is int and node in INTERMEDIATE for node in concat)
            and len(set(concat)) == len(concat)
        ):
            raise InputError(f"{kind}_concat must list different intermediate nodes, not {shown(concat)}")


def format_genotype(genotype):
    """The one line `genotype = Genotype(normal=[...], ...)` of genotype.txt, without a line break."""
    return f"genotype = {genotype!r}"


def parse_genotype(text):
    """The genotype in a text, read as data (`find_genotype`). Raises InputError."""
    return find_genotype(text, "genotype").genotype


def load_genotype(path):
    """The genotype in a file. Raises InputError with one line that names the file and the problem."""
    return open_genotype(path).genotype


def save_genotype(path, genotype):
    """Write a genotype.txt. Raises InputError, before it writes, for a genotype that cannot be built."""
    check_genotype(genotype)
    write(path, format_genotype(genotype) + "\n")


def _cells(normal, reduce):
    """A genotype from two texts "operation source, operation source, …"; all intermediate nodes are concatenated."""

    def pairs(text):
        return [(op, int(source)) for op, source in (pair.split() for pair in text.split(","))]

    return Genotype(pairs(normal), list(INTERMEDIATE), pairs(reduce), list(INTERMEDIATE))


# Cells known by name: `val_train.py --genotype NAME` trains them.
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

# Names of networks that the scripts give themselves.
TAKEN = re.compile(r"chexnet|first_order|second_order|random_-?\d+", re.IGNORECASE)

# Files whose names say nothing: their network is called as the folder, with this at the end.
OF_FOLDER = {"genotype": "", "genotype_last": "_last", "log": "_log"}


def given_genotype(given):
    """What a file or a text with a genotype says: the name of its network, safe as a file name, and a `Found`.

    given: the path or the text. Raises InputError.
    """
    if os.path.exists(given):
        found, name, remedy = open_genotype(given), _name_of_file(Path(given)), "rename the file"
    elif "Genotype(" in given:
        found = find_genotype(given, "--genotype")
        name, remedy = found.name, "write another NAME = Genotype(...)"
        if not name or name.rpartition(".")[2].lower() == "genotype":
            name = "cell_" + hashlib.sha256(format_genotype(found.genotype).encode()).hexdigest()[:8]
    else:
        known = ", ".join(["random", *PUBLISHED])
        raise InputError(f"genotype {shown(given)}: no such file, no 'Genotype(...)', and not one of {known}")
    try:
        check_name(name)
    except InputError as error:
        raise InputError(f"genotype {shown(given)}: {error}: {remedy}") from None
    published = {known.lower(): genotype for known, genotype in PUBLISHED.items()}
    if name.lower().removesuffix(".pth").endswith("_net"):
        raise InputError(f"genotype {shown(given)}: a weights file is called so, not a network: {remedy}")
    if TAKEN.fullmatch(name) or published.get(name.lower(), found.genotype) != found.genotype:
        raise InputError(f"genotype {shown(given)}: its network would be called {name}, which is taken: {remedy}")
    return name, found


def check_name(name):
    """Raise InputError unless a network may be called so: its name is that of files, columns and lines of a plot."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{,63}", name):
        rule = "1 to 64 of a-z, A-Z, 0-9, '_', '-' and '.' (not in front)"
        raise InputError(f"a network's name has {rule}, not {shown(name)}")


def _name_of_file(path):
    """What the network of a genotype file is called; "" where its folder has to name it and has no name (`/`)."""
    stem = Path(path.name.removesuffix(".gz")).stem
    if stem.lower() not in OF_FOLDER:
        return stem
    folder = path.parent.resolve().name
    return folder and folder + OF_FOLDER[stem.lower()]


def open_genotype(path):
    """What `find_genotype` finds in a file. Raises InputError with one line that names the file and the problem."""
    return find_genotype(read_text(path, MAX_FILE), path)


class Found(NamedTuple):
    """A genotype in a text; the name in front of it there, or ""; a line on how it was chosen, "" for the only one."""

    genotype: Genotype
    name: str
    choice: str


def find_genotype(text, source):
    """The genotype in a text, whatever stands around it (`support.calls.find_call`), as `Found`.

    source: what messages call the text. Raises InputError with one line on the first thing that does not fit.
    """
    which = ""
    try:
        call = find_call(text, "Genotype", Genotype._fields, PRIMITIVES)
        which = call.which
        parts = {name: v if name.endswith("concat") else _pairs(v, name) for name, v in call.parts.items()}
        check_genotype(genotype := Genotype(**parts))
    except InputError as error:
        raise InputError(f"{source}: {which}: {error}" if which else f"{source}: {error}") from None
    return Found(genotype, call.name, f"{source}: {which} is taken" if which else "")


def _pairs(value, kind):
    """[(operation, node), ...] from pairs in a row, or node by node, as pt.darts prints them. Raises InputError."""
    if not isinstance(value, list):
        return value
    if value and all(isinstance(group, list) and all(isinstance(pair, list) for pair in group) for group in value):
        if len(value) != NODES:
            raise InputError(f"{kind} must have {NODES} nodes, not {len(value)}")
        for node, group in enumerate(value, start=INPUT_NODES):
            if len(group) != EDGES_PER_NODE:
                raise InputError(f"{kind}: node {node} must have {EDGES_PER_NODE} pairs, not {len(group)}")
        value = [pair for group in value for pair in group]
    return [tuple(pair) if isinstance(pair, list) else pair for pair in value]
