"""docs/learn.md and docs/exercises.md: the names are there, each bug is found by its test, each first step runs."""

import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.exercises import BUGS, ROOT, copy_code, page, pytest_command
from tests.films import edit
from tests.test_scripts import NETWORK, SMALL

LEARN = (ROOT / "docs" / "learn.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+)\.py\)", LEARN)))
DIFFS = re.findall(r"```diff\n(.*?)```", LEARN, re.DOTALL)


def test_every_function_that_the_page_names_is_in_the_file_that_it_links():
    assert len(NAMES) > 20
    for name, path in NAMES:
        module = path.replace("/", ".")
        assert name.startswith(f"{module}."), name
        found = importlib.import_module(module)
        for part in name.removeprefix(f"{module}.").split("."):
            found = getattr(found, part)


def test_every_link_of_the_page_leads_to_a_file_and_its_heading():
    for path, anchor in re.findall(r"\]\(([\w./]*\.[a-z]+)?(#[\w-]+)?\)", LEARN):
        assert (ROOT / "docs" / path).exists(), path
        if anchor:
            text = (ROOT / "docs" / (path or "learn.md")).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_of_exercises_is_that_of_the_table():
    assert (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_each_bug_fits_into_its_file(bug):
    assert (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old) == 1 and bug.old != bug.new
    path, name = bug.test.split("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def run(command, folder, status=0):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_without_the_bugs_their_tests_pass(tmp_path):
    run(pytest_command(*{bug.test for bug in BUGS}), copy_code(tmp_path / "copy"))


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_the_test_of_each_bug_fails_by_an_assertion(bug, tmp_path):
    folder = copy_code(tmp_path / "copy")
    edit(folder / bug.file, bug.old, bug.new)
    shown = run(pytest_command(bug.test), folder, status=1)
    assert set(re.findall(r"^tests/\w+\.py:\d+: (\w+)$", shown, re.MULTILINE)) == {"AssertionError"}


TEXTBOOK = [
    "tests/test_supernet.py::test_outputs_gradients_and_statistics_equal_the_textbook",
    "tests/test_supernet.py::test_the_textbook_derives_the_same_cells",
    "tests/test_genotypes.py::test_random_genotypes_are_those_of_their_seed_and_use_every_operation_and_source",
]
COSTS = ["tests/test_networks.py::test_operations_divide_the_size_and_cost_what_torch_counts"]
FIRST_STEPS = {"add an operation": (TEXTBOOK + COSTS, (14, 9)), "change the nodes": (TEXTBOOK, (9, 8))}
FIRST_STEPS |= {"price another thing": (TEXTBOOK, (14, 8))}


@pytest.mark.long
@pytest.mark.parametrize("number", range(3), ids=FIRST_STEPS)
def test_each_first_step_applies_and_runs(number, small_set, tmp_path):
    """The tests that should still hold do, a search runs, and the cell that it found is trained."""
    tests, shape = [*FIRST_STEPS.values()][number]
    folder = copy_code(tmp_path / "copy")
    (tmp_path / "step.diff").write_text(DIFFS[number], encoding="utf-8")
    run(["git", "apply", tmp_path / "step.diff"], folder)
    run(pytest_command(*tests), folder)
    common = [*SMALL, *NETWORK, "--data", small_set, "--out", tmp_path]
    run([sys.executable, "search_train.py", *common, "--epochs", "3", "--alpha-lr", "0.5", "--price", "100"], folder)
    run([sys.executable, "val_train.py", *common], folder)
    last = json.loads((tmp_path / "search_first_order" / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.shape(last["alphas"]["normal"]) == shape
    if number == 2:  # whose price leaves none
        assert "skip_connect" not in last["genotype"]
