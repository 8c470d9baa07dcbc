"""Figure 2 of the paper: where the paths end, and the architect's gradient against the one written by hand."""

import pytest
import torch

from report.bilevel import START, TRN, VAL, WithoutSecondTerm, draw, make_architect, path
from tests.test_figures import check_picture


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("xi", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_the_paths_end_where_the_gradient_is_zero(xi, exact):
    """w = α, and α − 2 + 2ξα = 0: at the solution for ξ = 0.5 alone."""
    assert path(xi, exact=exact)[-1] == pytest.approx([2 / (1 + 2 * xi)] * 2, abs=1e-12)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("xi", [0.1, 0.5, 0.7])
def test_the_gradient_is_that_of_the_virtual_loss_in_both_forms(xi, exact):
    for alpha, w in torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).tolist():
        w_virtual = w - xi * (2 * w - 2 * alpha)
        loss, (gradient,) = make_architect(xi, alpha, w, exact=exact).second(TRN, VAL, xi)
        assert loss.item() == pytest.approx(alpha * w_virtual - 2 * alpha + 1, abs=1e-12)
        assert gradient.item() == pytest.approx(w_virtual - 2 + 2 * xi * alpha, abs=1e-12)


def test_the_numbers_of_the_derivation_in_learn_md():
    architect = make_architect(0.5, *START)
    _, (first_term,), (v,), _ = architect.look_ahead(TRN, VAL, 0.5)
    (product,) = architect.finite_difference_product([v], TRN)
    gradients = [architect.second(TRN, VAL, 0.5)[1], architect.first(VAL)[1]]
    numbers = [first_term, v, product, *(gradient for (gradient,) in gradients)]
    assert torch.stack(numbers).tolist() == pytest.approx([0, 2, -4, 2, -4], abs=1e-12)


def test_without_the_second_term_alpha_ends_where_the_first_order_does_and_at_half_never_moves():
    assert path(0.1, WithoutSecondTerm)[-1] == pytest.approx([2, 2], abs=1e-12)
    assert (path(0.5, WithoutSecondTerm)[:, 0] == 2).all()


def test_the_picture_and_the_ends_are_shown(tmp_path, capsys):
    draw(tmp_path / "figure2.png")
    check_picture(tmp_path / "figure2.png")
    first, *_, mistake = capsys.readouterr().out.splitlines()
    assert first == "first order, ξ = 0: ends at α = 2.000, w = 2.000" and mistake.startswith("mistake: ")
