"""The benchmarks at their smallest: they run, and print every row they promise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import hypergradient, speed
from tests.test_scripts import ROOT


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
