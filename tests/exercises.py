"""Exercises that are bugs: each is a change of one or two lines that other DARTS repositories had, and a test finds it.

    python -m tests.exercises 3    copies the repository, puts bug 3 into the copy and runs the test there
    python -m tests.exercises      prints docs/exercises.md

One table, BUGS, holds them: tests/test_learn.py requires that each test fails with its bug and passes without it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.films import edit

ROOT = Path(__file__).parents[1]


class Bug(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`. The symptom is what a student is told, the rest the answer."""

    title: str
    file: str
    old: str
    new: str
    symptom: str
    why: str
    test: str


BUGS = (
    Bug(
        "ε multiplies where it ought to divide",
        "architect.py",
        "return [(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)]",
        "return [(p - m) / 2.0 * eps for p, m in zip(plus, minus, strict=True)]",
        "Nothing crashes, but the second order finds what the first order finds: with this bug every path of Figure 2 "
        "ends at (2.000, 2.000), whatever ξ is.",
        "`/ 2.0 * eps` divides by 2 and then multiplies by ε. The product comes out ε² times as large as it is, with "
        "ε = 0.01 / ‖v‖, so the second term is all but gone. The formula in the docstring stays right, and searches "
        "still end in some cell, so that only a number tells (microsoft/nni#3044, antoyang/NAS-Benchmark#4).",
        "tests/test_bilevel.py::test_the_gradient_is_that_of_the_virtual_loss_in_both_forms",
    ),
    Bug(
        "w' for w in equation 8",
        "textbook.py",
        "    w_plus = [p + eps * d for p, d in zip(w, v, strict=True)]\n"
        "    w_minus = [p - eps * d for p, d in zip(w, v, strict=True)]\n",
        "    w_plus = [p + eps * d for p, d in zip(w_virtual, v, strict=True)]\n"
        "    w_minus = [p - eps * d for p, d in zip(w_virtual, v, strict=True)]\n",
        "The gradient of the second order is wrong, in the network of the test by 1.1 times its own length. Figure 2 "
        "would not show this bug: its L_train is quadratic.",
        "Equation 7 needs ∇²α,w L_train at w, because the virtual step starts there. v is taken at w', the points w± "
        "are not. The authors' own code had this at first (quark0/darts#21). The second derivative of a quadratic "
        "L_train is the same everywhere, so two numbers cannot find it.",
        "tests/test_supernet.py::test_gradients_by_differences_equal_the_textbook",
    ),
    Bug(
        "the sign of the second term",
        "architect.py",
        "[g - xi * p for g, p in zip(first_term, average(product), strict=True)]",
        "[g + xi * p for g, p in zip(first_term, average(product), strict=True)]",
        "The second order is worse than the first: in Figure 2 it ends at α = 2.5 for ξ = 0.1, and for ξ = 0.7 α grows "
        "without end.",
        "w' = w − ξ∇w L_train(w, α), so the derivative of w' by α is −ξ∇²α,w L_train, and this minus stays. With a "
        "plus, Figure 2 comes to rest where α − 2 − 2ξα = 0, at α = 2 / (1 − 2ξ), and for ξ = 0.5 nowhere.",
        "tests/test_bilevel.py::test_the_gradient_is_that_of_the_virtual_loss_in_both_forms",
    ),
    Bug(
        "α among the parameters of w's optimiser",
        "search_train.py",
        "weights, alphas = network.weight_parameters(), network.arch_parameters()",
        "weights, alphas = list(network.parameters()), network.arch_parameters()",
        "α moves when it must not: in the warm-up, where w alone learns.",
        "α are parameters of the network, too, so `network.parameters()` holds them. The step of w then trains α as "
        "well, on `train` and with w's learning rate. This is training with one level, which DARTS sets out to avoid.",
        "tests/test_scripts.py::test_w_alone_learns_in_the_warm_up",
    ),
    Bug(
        "raw α where softmax(α) belongs",
        "genotypes.py",
        "weights = alphas.detach().cpu().double().softmax(dim=-1).tolist()",
        "weights = alphas.detach().cpu().double().tolist()",
        "Many cells are derived as before. Now and then one keeps another edge than the paper's rule does.",
        "Within an edge, α and softmax(α) have the same order, so the operation is the same. But edges are compared "
        "with each other, too, and the softmax of an edge sees its `none`: an α of 5 beside a `none` of 9, and six "
        "others of 0, is a weight of 0.02.",
        "tests/test_genotypes.py::test_derivation_compares_softmax_weights_and_never_takes_none",
    ),
    Bug(
        "the architect's passes write running statistics",
        "architect.py",
        "functional_call(self.network, values | self.no_buffers, (films,))",
        "functional_call(self.network, values, (films,))",
        "A step of α changes more than α. Training losses stay as they were; the val AUC, for which the network is in "
        "evaluation mode, does not.",
        "In training mode every forward pass of a BatchNorm moves its running_mean and running_var, in the first order "
        "by films of val. Those of the second order at w', w⁺ and w⁻ are of weights that the network never has.",
        "tests/test_architect.py::test_a_step_moves_alpha_and_nothing_else",
    ),
    Bug(
        "the operation of another edge",
        "textbook.py",
        "cell[node] = [(names[best[e]], EDGES[e][0]) for e in strongest]",
        "cell[node] = [(names[best[EDGES[e][0]]], EDGES[e][0]) for e in strongest]",
        "The cells look plausible. All source nodes are right, and so is node 2; later nodes have wrong operations.",
        "An edge has a row among all 14 edges, and a source node. Here the row is looked up by the source. For node 2, "
        "whose two edges are the rows 0 and 1, they are the same number.",
        "tests/test_supernet.py::test_the_textbook_derives_the_same_cells",
    ),
    Bug(
        "test films as val",
        "search_train.py",
        'for split in ("train", "val"))',
        'for split in ("train", "test"))',
        "The search runs and its cells look as always, but the table's AUC is that of films which the search has used.",
        "α learns on the test films, and the best epoch is chosen on them, so their AUC is no estimate for new films. "
        "CIFAR-10 has no split `val`; the authors' training script calls its test images `valid_data`.",
        "tests/test_scripts.py::test_w_learns_on_train_and_alpha_on_val",
    ),
    Bug(
        "a virtual step without momentum",
        "architect.py",
        'momentum = self.w_optimizer.state.get(p, {}).get("momentum_buffer")',
        'momentum = self.w_optimizer.state.get(value, {}).get("momentum_buffer")',
        "The first gradient of a search is right. Later ones belong to another step than the one that SGD will make.",
        "w' is what the next step of SGD would make of w, and its direction is μ · velocity + ∇w L_train + λw. The "
        "optimiser keeps the velocity under the parameter itself; `value` is a detached copy, under which nothing is "
        "found, and nobody complains. The authors' code has a `try` with a bare `except` here, which takes zeros.",
        "tests/test_architect.py::test_the_exact_second_order_equals_differentiating_through_the_virtual_step",
    ),
    Bug(
        "`none` can be derived",
        "genotypes.py",
        "best = max(range(1, len(PRIMITIVES)), key=row.__getitem__)",
        "best = max(range(len(PRIMITIVES)), key=row.__getitem__)",
        "Some cells cannot be built: they have an operation that the derived network does not know.",
        "`none` is a candidate only, by which an edge may be weak. It is column 0 of α, and it often has the largest "
        "weight of its edge.",
        "tests/test_genotypes.py::test_derivation_compares_softmax_weights_and_never_takes_none",
    ),
)

INTRODUCTION = """\
# Ten bugs to find

Each exercise is a bug of a kind that repositories of DARTS have had: one line, or two that belong together. The command
puts it into a copy of this repository, in a temporary folder, runs a test that fails there, and prints where the copy
is. Read the test first: what does it require? Then find the line in the copy, mend it, and run the test again by the
last line that the command printed. If you are lost, the summary of the answer names the file. In the answer, the line
with `-` is right and the line with `+` is the bug. No exercise needs films, and each takes less than a minute on a
computer that is not busy. Exercises 1, 2, 3 and 9 are about
[the gradient of α](learn.md#2-from-the-problem-to-the-code), 4, 6 and 8 about the search, 5, 7 and 10 about the way
from α to a cell. With 1 and 3, `python -m report.bilevel figure2.png`, run in the copy, draws the wrong paths.
"""


def copy_code(folder):
    """Copy what the tests of the table need into `folder`, which is made."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py"), ROOT / "pyproject.toml"]:
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    return folder


def pytest_command(*tests):
    return [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", *tests]


def page():
    """docs/exercises.md."""
    wrap = partial(textwrap.fill, width=118, break_on_hyphens=False, break_long_words=False)
    parts = [INTRODUCTION]
    for number, bug in enumerate(BUGS, start=1):
        change = [f"{sign} {line}" for sign, text in (("-", bug.old), ("+", bug.new)) for line in text.splitlines()]
        parts += [f"## Exercise {number}", "", wrap(bug.symptom), "", f"    python -m tests.exercises {number}", ""]
        parts += ["<details>", f"<summary>Answer, in {bug.file}</summary>", "", f"**{bug.title}**", ""]
        parts += ["```diff", *change, "```", "", wrap(bug.why), "", "</details>", ""]
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", nargs="?", type=int, choices=range(1, len(BUGS) + 1), help="of the exercise")
    number = parser.parse_args().number
    if number is None:
        print(page(), end="")
        return
    bug = BUGS[number - 1]
    folder = copy_code(Path(tempfile.mkdtemp(prefix=f"exercise_{number}_")))
    edit(folder / bug.file, bug.old, bug.new)
    subprocess.run(pytest_command(bug.test), cwd=folder)
    print(f"Exercise {number}: {bug.symptom}\nFind it in {folder} and mend it there. To see whether you have:")
    print(f"  cd {folder} && {' '.join(pytest_command(bug.test))}")


if __name__ == "__main__":
    main()
