"""The benchmarks at their smallest: they run, and print every row they promise."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import compare, hypergradient, speed
from scores import AVERAGE, COSTS, read_scores
from support import settings
from tests.test_scripts import NETWORK, ROOT, SMALL


def test_speed_prints_every_row(capsys, monkeypatch):
    monkeypatch.setattr(speed, "peak_memory", lambda side, order, setting: 1.0)
    monkeypatch.setattr(sys, "argv", ["speed", "--setting", "tiny", "--steps", "1"])
    speed.main()
    text = capsys.readouterr().out
    rows = ["first order", "second order", "exact product"]
    rows = [f"search step, {row}" for row in rows]
    rows += [f"{name}, {what}" for name in ("derived network", "CheXNet") for what in ("training step", "inference")]
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines() if " s | " in line] == rows
    assert "a second-order step takes" in text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_memory_is_measured_in_a_process_of_its_own():
    """A parent that has used much more must not count."""
    torch.ones(500_000_000)  # 2 GB, given back at once
    options = ["--setting", "tiny", "--memory-of", "ours", "second"]
    command = [sys.executable, "-m", "benchmarks.speed", *options]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert 0.1 < float(result.stdout) < 1.5


def test_hypergradient_prints_every_precision_and_radius(capsys, monkeypatch, small_set):
    monkeypatch.setattr(hypergradient, "RADII", [1e-2, 1e-4])
    monkeypatch.setattr(sys, "argv", ["hypergradient", "--tiny", "--data", str(small_set), "--dataset", "small"])
    hypergradient.main()
    text = capsys.readouterr().out
    assert text.count("###") == 4  # fresh and trained, each with its smooth twin
    for precision in hypergradient.PRECISIONS:
        rows = [line for line in text.splitlines() if line.startswith(f"| {precision} ")]
        assert len(rows) == 4 * (len(hypergradient.RADII) + 2)
    # Float64, the smooth twin, a small radius: the differences are right there.
    fresh_smooth = text.split("### fresh, smooth twin")[1].split("###")[0]
    (row,) = [line for line in fresh_smooth.splitlines() if line.startswith("| float64 | 1e-04")]
    assert float(row.split("|")[4]) < 1e-4


def test_compare_runs_every_part_once_and_tables_all_trainings(tmp_path, small_set, capsys, monkeypatch):
    def run_here(options, script, *arguments):  # as compare.run, without starting a process
        common = ["--dataset", options.dataset, "--data", options.data]
        module = importlib.import_module(script.removesuffix(".py"))
        settings.start(module.main, ROOT / script, list(map(str, [*common, *arguments])))

    monkeypatch.setattr(compare, "run", run_here)
    small = " ".join(SMALL[2:])
    networks = " ".join([small, *NETWORK])
    options = [
        "--seeds",
        "3",
        "3",
        "--random",
        "2",
        "--dataset",
        "small",
        "--data",
        str(small_set),
        "--out",
        str(tmp_path),
    ]
    options += ["--search", networks, "--train", networks, "--chexnet", small]
    compare.main(options)
    trained = pd.read_csv(tmp_path / "compare.csv", index_col="name")
    names = ["first_order", "second_order", "second_order_exact", "draw_0", "draw_1", "chexnet"]
    assert sorted(trained.index) == sorted(names)
    scores = read_scores(tmp_path / "seed_3" / "results" / "auc.csv")
    for name in names:
        columns = ["auc", "Parameters (M)", "Multiply-adds (G)"]
        assert trained.loc[name, columns].tolist() == scores.loc[(name, AVERAGE), ["auc", *COSTS]].tolist()
    mean, deviation = trained["auc"][["draw_0", "draw_1"]].agg(["mean", "std"])
    assert f"| random | 2 | {mean:.3f} ± {deviation:.3f} | – |" in (tmp_path / "compare.md").read_text()
    assert "**Average AUC on the test split of small: 32 films, " in (tmp_path / "compare.md").read_text()
    record = json.loads((tmp_path / "seed_3/exact/search_second_order/settings.json").read_text())
    assert record["settings"]["exact_product"] and (tmp_path / "compare.png").exists()

    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_net.pth")}
    compare.main(options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_net.pth")} == weights


def test_the_interval_of_a_difference_is_welchs():
    # By hand: standard error sqrt(0.0025 + 0.01 / 12), 12 / 7 degrees of freedom, t = 5.068.
    assert compare.difference(pd.Series([0.8, 0.9]), pd.Series([0.5, 0.5, 0.6, 0.6])) == "+0.300 [+0.007, +0.593]"
    assert compare.difference(pd.Series([0.8]), pd.Series([0.5, 0.6])) == "+0.250"


def test_compare_ends_where_a_script_fails(tmp_path):
    command = [sys.executable, "-m", "benchmarks.compare", "--dataset", "none", "--data", tmp_path, "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "search_train.py failed, see above" in result.stderr.splitlines()[-1]
