"""The walk of docs/learn.md: a mixed edge is the sum that it says, and one command draws all pictures."""

import sys

import numpy as np
import pytest
import torch

from dataset import load_set
from genotypes import EDGES, PUBLISHED, save_genotype
from model_eval import Network
from report import walk
from tests.test_figures import check_picture, search_rows, write_rows
from tests.test_table import save_network


@pytest.fixture
def out(small_set, tmp_path):
    """The folder of a search and of the network that it led to."""
    write_rows(tmp_path / "search_first_order", search_rows())
    save_genotype(tmp_path / "search_first_order" / "genotype.txt", PUBLISHED["DARTS_V1"])
    save_network(tmp_path / "weights", "first_order", load_set(small_set / "noise"))
    return tmp_path


def test_a_mixed_edge_is_the_weighted_sum_of_its_operations():
    film, rows = torch.randn(1, 1, 32, 32), search_rows()
    alphas = rows[1]["alphas"]["normal"][EDGES.index(walk.EDGE)]
    alphas[:] = [50.0 * (k == 3) for k in range(8)]  # the skip connection has all weight
    pictures, captions, _ = walk.mixed_edge(film, rows)
    assert len(pictures) == len(captions) == 1 + 8 + 3 and captions[4] == "skip connect"
    assert not pictures[1].any()  # none
    for same in (4, 10):
        np.testing.assert_array_equal(pictures[same], pictures[0])
    assert captions[10] == "sum in epoch 2:\n0.00 0.00 0.00 1.00\n0.00 0.00 0.00 0.00"
    assert all(picture.std() > 10 for picture in pictures[2:])


def test_the_last_picture_is_the_output_of_the_last_cell():
    network, film = Network(4, 3, 5, PUBLISHED["DARTS_V1"]).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        last = walk.grey(network.features(film)[0].mean(dim=0))
        np.testing.assert_array_equal(walk.stages(network, film).pictures[-1], last)


def test_one_command_draws_the_walk_and_prints_what_the_network_says(out, small_set, monkeypatch, capsys):
    (out / "docs").mkdir()
    monkeypatch.chdir(out)
    monkeypatch.setattr(sys, "argv", ["walk.py", str(out), "--data", str(small_set)])
    walk.main()
    for name in ("edge", "alphas", "cells", "network"):
        check_picture(out / "docs" / f"walk_{name}.png")
    first, *_ = lines = capsys.readouterr().out.splitlines()
    data = load_set(small_set / "noise")
    labels = data.labels[data.rows("test")]
    assert first.startswith("Atelectasis") and len(lines) == 14
    assert sum("(in the film)" in line for line in lines) == labels.sum(axis=1).max()


def test_without_a_network_there_is_one_line(out, monkeypatch, one_line):
    (out / "weights" / "first_order_net.pth").unlink()
    monkeypatch.setattr(sys, "argv", ["walk.py", str(out)])
    assert "first_order_net.pth" in one_line(walk.main)
