"""Genotypes: a cell written down as data (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055).

A cell has two input nodes, 0 and 1 (the outputs of the two cells before it), and four intermediate nodes,
2 to 5. A genotype lists, node by node, the two edges that each intermediate node keeps as pairs
(operation, source node); the cell's output is the concatenation of the nodes in `*_concat`.
"""

import ast
import random
from pathlib import Path
from typing import NamedTuple

from support.files import InputError, write

# The candidate operations of the paper's section 3.1, in the order of its authors' code and of the columns of α.
PRIMITIVES = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip

INPUT_NODES = 2
NODES = 4  # intermediate nodes
EDGES_PER_NODE = 2  # kept by the derivation

# The rows of α: edge (source i, node j), node by node.
EDGES = tuple((i, j) for j in range(INPUT_NODES, INPUT_NODES + NODES) for i in range(j))

MAX_GENOTYPE_BYTES = 10_000  # a real one has about 600


class Genotype(NamedTuple):
    """A normal and a reduction cell: (operation, source node) pairs, two per node, and the nodes concatenated."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


def derive(alphas_normal, alphas_reduce):
    """The discrete cell of section 2.4: per node the two edges with the strongest operation.

    alphas_*: tensors, shape (edges, operations), as the supernet holds them (before the softmax). The strength
    of an edge is the softmax weight of its best operation other than `none`. The two edges of a node are listed
    in falling strength; ties go to the lower source node, then to the earlier primitive. Raises ValueError for α of
    another shape or with values that are not finite.
    """

    def cell(alphas):
        weights = alphas.detach().cpu().double().softmax(dim=-1).tolist()
        pairs = []
        for node in range(INPUT_NODES, INPUT_NODES + NODES):
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
    concat = list(range(INPUT_NODES, INPUT_NODES + NODES))
    return Genotype(cell(alphas_normal), concat, cell(alphas_reduce), list(concat))


def edge_entropy(alphas):
    """Entropy of softmax(α) in nats: α (…, edges, operations), a tensor, -> (…, edges), at most ln 8 = 2.08."""
    log_weights = alphas.log_softmax(dim=-1)
    return -(log_weights.exp() * log_weights).sum(dim=-1)


def diagnostics(genotype, alphas_normal, alphas_reduce):
    """How a search stands, and whether it collapses: plain numbers, one dict. genotype: what `derive` makes of α.

    entropy_*: mean of `edge_entropy`: ln 8 = 2.08 where nothing is decided, 0 where all is.
    skips, pools: how many of the 16 edges of the genotype's two cells are skip connections, and pools.
    """
    state = {}
    for kind, alphas in (("normal", alphas_normal), ("reduce", alphas_reduce)):
        state[f"entropy_{kind}"] = edge_entropy(alphas.detach().cpu().double()).mean().item()
    kept = [op for op, _ in genotype.normal + genotype.reduce]
    return state | {"skips": kept.count("skip_connect"), "pools": sum(op.endswith("pool_3x3") for op in kept)}


def random_genotype(seed):
    """A cell drawn uniformly: per node two different earlier nodes, per edge any operation but `none`."""
    rng = random.Random(seed)

    def cell():
        pairs = []
        for node in range(INPUT_NODES, INPUT_NODES + NODES):
            for source in sorted(rng.sample(range(node), EDGES_PER_NODE)):
                pairs.append((rng.choice(PRIMITIVES[1:]), source))
        return pairs

    concat = list(range(INPUT_NODES, INPUT_NODES + NODES))
    return Genotype(cell(), concat, cell(), list(concat))


def check_genotype(genotype):
    """Raise InputError, saying what is wrong, unless `genotype` describes two cells that can be built."""
    for kind in ("normal", "reduce"):
        pairs, concat = getattr(genotype, kind), getattr(genotype, kind + "_concat")
        expected = EDGES_PER_NODE * NODES
        if not isinstance(pairs, list) or len(pairs) != expected:
            raise InputError(f"{kind} must be a list of {expected} (operation, node) pairs, two per node")
        for k, pair in enumerate(pairs):
            node = INPUT_NODES + k // EDGES_PER_NODE
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise InputError(f"{kind}[{k}] must be an (operation, node) pair, not {pair!r}")
            op, source = pair
            if op not in PRIMITIVES or op == "none":
                raise InputError(f"{kind}[{k}]: unknown operation {op!r}; known: {', '.join(PRIMITIVES[1:])}")
            if type(source) is not int or not 0 <= source < node:
                raise InputError(f"{kind}[{k}]: node {node} can take nodes 0 to {node - 1}, not {source!r}")
            if k % EDGES_PER_NODE and source == pairs[k - 1][1]:
                raise InputError(f"{kind}[{k}]: node {node} takes node {source} twice")
        allowed = set(range(INPUT_NODES, INPUT_NODES + NODES))
        if not (
            isinstance(concat, list)
            and concat
            and all(type(node) is int and node in allowed for node in concat)
            and len(set(concat)) == len(concat)
        ):
            raise InputError(f"{kind}_concat must list different intermediate nodes, not {concat!r}")


def format_genotype(genotype):
    """The one line `genotype = Genotype(normal=[...], ...)` of genotype.txt, without a line break."""
    return f"genotype = {genotype!r}"


def parse_genotype(text):
    """Read what `format_genotype` writes. Nothing in the text is executed. Raises InputError."""
    if len(text) > MAX_GENOTYPE_BYTES:
        raise InputError(f"{len(text)} characters, which is no genotype (at most {MAX_GENOTYPE_BYTES})")
    try:
        body = ast.parse(text.strip(), mode="exec").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        body = []
    call = body[0].value if len(body) == 1 and isinstance(body[0], (ast.Assign, ast.Expr)) else None
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "Genotype"
        and not call.args
        and sorted(str(keyword.arg) for keyword in call.keywords) == sorted(Genotype._fields)
    ):
        raise InputError(f"not one line of the form 'genotype = Genotype({', '.join(Genotype._fields)})'")

    genotype = Genotype(**{keyword.arg: _literal(keyword.value) for keyword in call.keywords})
    check_genotype(genotype)
    return genotype


def _literal(node):
    """A list literal, or `range(a, b)` as quark0/darts writes its concatenation."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        bounds = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if len(bounds) == 2 and not node.keywords and all(type(b) is int and 0 <= b < 100 for b in bounds):
            return list(range(*bounds))
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InputError("a genotype holds only lists of (operation, node) pairs and of nodes") from None
    return list(value) if isinstance(value, (list, tuple)) else value


def load_genotype(path):
    """Read a genotype.txt. Raises InputError with one line that names the file and the problem."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_GENOTYPE_BYTES:
            raise InputError(f"{path.stat().st_size} bytes, which is no genotype (at most {MAX_GENOTYPE_BYTES})")
        return parse_genotype(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a UnicodeDecodeError is one, too
        raise InputError(f"{path}: {error}") from None


def save_genotype(path, genotype):
    """Write a genotype.txt. Raises InputError, before it writes, for a genotype that cannot be built."""
    check_genotype(genotype)
    write(path, format_genotype(genotype) + "\n")


def _cells(normal, reduce):
    """A genotype from two texts "operation source, operation source, …"; all intermediate nodes are concatenated."""

    def pairs(text):
        return [(op, int(source)) for op, source in (pair.split() for pair in text.split(","))]

    return Genotype(pairs(normal), [2, 3, 4, 5], pairs(reduce), [2, 3, 4, 5])


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
