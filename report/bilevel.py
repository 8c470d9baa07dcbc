"""Figure 2 of the DARTS paper (arXiv 1806.09055) as a program: w and α are numbers, the architect is the real one.

    python -m report.bilevel    draws docs/figure2.png, or the PATH given, and prints where each path ends

The best w for an α is w*(α) = α, so L_val(w*(α), α) = (α − 1)², whose minimum is at α = 1. docs/learn.md has the rest.
"""

from argparse import RawDescriptionHelpFormatter

import numpy as np
import torch
from torch import nn
from torch.optim import SGD

import utils
from architect import Architect
from report.cells import DARK, FAINT, SMALL, save_picture
from report.figures import STYLES, make_panels
from support.settings import Parser, guarded

START = 2.0, -2.0  # (α, w)
W_LR, ALPHA_LR = 0.1, 0.05  # learning rates; W_LR serves where ξ is 0, elsewhere ξ is that of w
STEPS = 1000  # of α and of w


def train_loss(w, alpha):
    """L_train(w, α) = w² − 2αw + α² = (w − α)²."""
    return w**2 - 2 * alpha * w + alpha**2


def val_loss(w, alpha):
    """L_val(w, α) = αw − 2α + 1."""
    return alpha * w - 2 * alpha + 1


TRN, VAL = (train_loss, None), (val_loss, None)  # what the architect takes for batches: "films" and "labels"


class TwoNumbers(nn.Module):
    """w and α, tensors () of float64. Its films are one of the two losses above, and its logits that loss's value."""

    def __init__(self, alpha, w):
        super().__init__()
        self.alpha, self.w = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (alpha, w))

    def forward(self, loss):
        return loss(self.w, self.alpha)

    def weight_parameters(self):
        return [self.w]

    def arch_parameters(self):
        return [self.alpha]

    def cost(self):
        return self.alpha  # any: its price is 0 here


class WithoutSecondTerm(Architect):
    """The often asked mistake: the gradient of L_val at w', taken as if w' did not depend on α."""

    def second(self, trn, val, xi):
        return self.look_ahead(trn, val, xi)[:2]


def make_architect(xi, alpha, w, kind=Architect, exact=False):
    """An architect of the first order for ξ = 0, else of the second, with plain SGD for both numbers."""
    numbers = TwoNumbers(alpha, w)
    optimizers = SGD([numbers.w], xi or W_LR), SGD([numbers.alpha], ALPHA_LR)
    return kind(numbers, lambda value, _: value, *optimizers, xi > 0, exact)


def path(xi, kind=Architect, exact=False):
    """(α, w) before the first and after each of the STEPS steps of Algorithm 1: an array (STEPS + 1, 2)."""
    architect = make_architect(xi, *START, kind, exact)
    numbers, points = architect.network, [START]
    for _ in range(STEPS):
        architect.step(TRN, VAL)
        utils.descend(numbers(train_loss), [numbers.w], architect.w_optimizer)
        points.append((numbers.alpha.item(), numbers.w.item()))
    return np.array(points)


def draw(picture):
    """Draw the paths over the contours of L_val and print where they end."""
    figure, (axes,) = make_panels(1, 1, 7, 5)
    alpha, w = np.meshgrid(np.linspace(0.3, 3, 200), np.linspace(-2.3, 3.4, 200))
    lines = axes.contour(alpha, w, val_loss(w, alpha), range(-8, 5), colors=FAINT, linewidths=0.6, linestyles="-")
    axes.clabel(lines, fontsize=SMALL)
    axes.plot((0.3, 3), (0.3, 3), color=FAINT, ls="--", label="w = α: w is the best for α")
    axes.plot(1, 1, "o", ms=13, mfc="none", mec=DARK, mew=1.5, label="solution, (1, 1)")
    paths = {"first order, ξ = 0": path(0.0)} | {f"second order, ξ = {xi}": path(xi) for xi in (0.1, 0.5, 0.7)}
    paths["mistake: no second term, ξ = 0.5"] = path(0.5, WithoutSecondTerm)
    for (name, points), style in zip(paths.items(), STYLES, strict=False):
        axes.plot(*points.T, **style, ms=4, lw=1.5, markevery=(0, 5), label=name)
        print(f"{name}: ends at α = {points[-1, 0]:.3f}, w = {points[-1, 1]:.3f}")
    axes.set(xlabel="α", ylabel="w", title=r"Lines: $L_{val}(w,\alpha)=\alpha w-2\alpha+1$. Start: (2, −2)")
    axes.legend(fontsize=SMALL, loc="lower left")
    save_picture(figure.savefig, picture)


def main():
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default="docs/figure2.png", help="of the picture (docs/figure2.png)")
    with guarded():
        draw(parser.parse_args().path)


if __name__ == "__main__":
    main()
