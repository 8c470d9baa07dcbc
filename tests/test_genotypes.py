"""Genotypes: derivation as in the paper, drawing, published cells, diagnostics."""

import math

import numpy as np
import pytest
import torch

from genotypes import (
    EDGES,
    INPUT_NODES,
    NODES,
    PRIMITIVES,
    PUBLISHED,
    derive,
    diagnostics,
    format_genotype,
    load_genotype,
    parse_genotype,
    random_genotype,
    save_genotype,
)


def alphas(**cells):
    """An α tensor from {"e3_sep_conv_3x3": value}: edge number and operation."""
    alpha = torch.zeros(len(EDGES), len(PRIMITIVES))
    for key, value in cells.items():
        edge, op = key[1:].split("_", 1)
        alpha[int(edge), PRIMITIVES.index(op)] = value
    return alpha


def test_primitives_and_edges_have_the_order_of_the_authors_code():
    assert PRIMITIVES == (
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
        "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
    )  # fmt: skip
    assert EDGES[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)) and len(EDGES) == 14


def test_derivation_keeps_the_two_strongest_edges_in_falling_order():
    alpha = alphas(e0_sep_conv_3x3=1.0, e1_dil_conv_5x5=2.0, e2_max_pool_3x3=0.5, e4_skip_connect=3.0)
    normal = derive(alpha, alphas()).normal
    assert normal[:4] == [("dil_conv_5x5", 1), ("sep_conv_3x3", 0), ("skip_connect", 2), ("max_pool_3x3", 0)]


def test_derivation_compares_softmax_weights_and_never_takes_none():
    # Edge 0 has the larger α, but `none` takes most of its softmax; edge 1 of node 3 likewise is left out.
    alpha = alphas(e2_sep_conv_3x3=5.0, e2_none=9.0, e3_skip_connect=2.0, e4_avg_pool_3x3=1.0)
    pairs = derive(alpha, alphas()).normal[2:4]
    assert pairs == [("skip_connect", 1), ("avg_pool_3x3", 2)]
    all_none = derive(alphas(**{f"e{e}_none": 9.0 for e in range(len(EDGES))}), alphas())
    assert all(op != "none" for op, _ in all_none.normal)


def test_ties_go_to_the_lower_node_then_to_the_earlier_primitive():
    genotype = derive(alphas(), alphas())
    assert genotype.normal == [(PRIMITIVES[1], source) for _ in range(NODES) for source in (0, 1)]
    tied = alphas(e5_skip_connect=1.0, e7_dil_conv_3x3=1.0, e7_sep_conv_5x5=1.0)  # edges (0, 4) and (2, 4)
    assert derive(alphas(), tied).reduce[4:6] == [("skip_connect", 0), ("sep_conv_5x5", 2)]


def test_random_genotypes_are_those_of_their_seed_and_use_every_operation_and_source():
    assert random_genotype(-1) != random_genotype(1)
    drawn = [random_genotype(seed) for seed in range(200)]
    assert drawn == [parse_genotype(format_genotype(genotype)) for genotype in map(random_genotype, range(200))]
    assert {op for g in drawn for op, _ in g.normal + g.reduce} == set(PRIMITIVES[1:])
    assert {source for g in drawn for _, source in g.normal[-2:]} == set(range(INPUT_NODES + NODES - 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_are_valid(name, tmp_path):
    save_genotype(tmp_path / "genotype.txt", PUBLISHED[name])
    assert load_genotype(tmp_path / "genotype.txt") == PUBLISHED[name]
    text = (tmp_path / "genotype.txt").read_text()
    assert text.startswith("genotype = Genotype(normal=[('") and text.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["genotype.txt"]


def test_diagnostics_are_the_entropy_and_the_kinds_of_kept_edges():
    alphas = torch.zeros(2, len(EDGES), len(PRIMITIVES), dtype=torch.float64)
    assert diagnostics(derive(*alphas), *alphas)["entropy_normal"] == pytest.approx(math.log(len(PRIMITIVES)))
    alphas[0, :, PRIMITIVES.index("skip_connect")] = 50  # every edge decided
    alphas[1, :, PRIMITIVES.index("max_pool_3x3")] = 1
    state = diagnostics(derive(*alphas), *alphas)
    weights = np.array([math.e, *[1] * 7]) / (math.e + 7)
    assert state["entropy_reduce"] == pytest.approx(-(weights * np.log(weights)).sum())
    assert state["entropy_normal"] == pytest.approx(0, abs=1e-9)
    assert (state["skips"], state["pools"]) == (8, 8)
