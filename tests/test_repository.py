"""What holds for every file: importing does no work, imports run downwards, nothing read is executed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES += sorted(f"report.{path.stem}" for path in ROOT.glob("report/*.py"))


def test_importing_any_file_prints_and_writes_nothing(tmp_path):
    names = [*MODULES, *(f"data.{path.stem}" for path in ROOT.glob("data/*.py"))]
    lines = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", *(f"import {name}" for name in names)]
    command = [sys.executable, "-B", "-c", "\n".join(lines)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["-m data.prepare_{}", "data/prepare_{}.py"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("chestxray14", ["--download"]), ("chestmnist", []), ("own", ["--images", "films", "--labels", "table.csv"])],
)
def test_a_script_that_makes_a_set_runs_as_a_module_and_by_its_path(form, name, options, tmp_path):
    command = [sys.executable, *form.format(name).split(), *options, "--name", "small", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --name 'small' must name a folder of its own, and no preset"), done.stderr


# A file imports only files of a lower number; support/ is 0, and its files import each other.
LAYER = {"support": 0, "operations": 1, "genotypes": 1, "dataset": 1, "utils": 1, "textbook": 1}
LAYER |= {"architect": 2, "model_search": 2, "model_eval": 2, "scores": 2}
LAYER |= {"report.cells": 2, "report.predictions": 2, "report.figures": 3, "report.summary": 3, "report.tables": 3}
LAYER |= {
    "chexnet": 4,
    "report.activations": 4,
    "report.sections": 4,
    "report.bilevel": 4,
}  # chexnet: the network and its script
LAYER |= {"report.networks": 5, "report.page": 5, "report.own_films": 6}
LAYER |= {"report.walk": 6, "search_train": 6, "val_train": 6, "test": 7}
FILES = [*ROOT.glob("*.py"), *ROOT.glob("report/*.py"), *ROOT.glob("support/*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_run_downwards(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name if name in LAYER else name.split(".")[0] for name in imported} & LAYER.keys()
    if path.parent.name == "support":
        assert ours <= {"support"}
    else:
        own = path.stem if path.parent == ROOT else f"{path.parent.name}.{path.stem}"
        assert all(LAYER[name] < LAYER[own] for name in ours), ours


def test_every_script_has_the_options_that_expand_a_home_folder_and_end_with_one_line():
    for path in [*FILES, *ROOT.glob("data/*.py"), *ROOT.glob("benchmarks/*.py")]:
        assert path.stem == "settings" or "ArgumentParser(" not in path.read_text(encoding="utf-8"), path


def test_nothing_is_executed_or_unpickled_from_files():
    for path in [*FILES, *ROOT.glob("data/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), path
                if name == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
