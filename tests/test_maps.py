"""The benchmark of activation maps: what a hit is, what chance is, and whom it asks."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import maps
from dataset import FINDINGS, Films, load_set
from tests.test_table import save_network


def test_a_map_and_a_sign_in_the_same_quarter_have_the_same_number(small_set, monkeypatch):
    """And a sign that is spread over more than half of the film, or is not to be seen, has no place."""
    data = load_set(small_set / "noise")
    images = np.zeros((6, 64, 64), np.uint8)
    for film, quarter in zip(images, ("[:9, :30]", "[5:20, 40:]", "[33:, 2:5]", "[40:50, 50:60]"), strict=False):
        rows, columns = (
            slice(*(int(end) if end else None for end in part.split(":"))) for part in quarter[1:-1].split(", ")
        )
        film[rows, columns] = 200
    images[4, 20:44, 20:44] = 200
    drawn = replace(data, images=images, labels=data.labels[:6], table=data.table[:6].assign(split="test"))
    monkeypatch.setattr(maps, "class_activation", lambda network, films: F.avg_pool2d(films, 32))
    found = maps.tops(torch.nn.Identity(), Films(drawn, "test", 64, torch.device("cpu")))
    place, counts = maps.places(images > 0, 2)
    assert found[:4].tolist() == [[k] * 3 for k in range(4)] and place[:4].tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [True] * 4 + [False] * 2


def test_chance_is_what_the_same_maps_hit_on_other_films():
    place = np.tile([0, 1, 1, 3], 30)
    of_finding = np.stack([np.arange(120) < 40, np.arange(120) >= 40], axis=1)
    patients = np.arange(120) // 2
    sure = maps.leads(place, place, of_finding, patients)
    np.testing.assert_allclose(sure[:, :3], [[1, 0.375, 0.625]] * 3)
    assert (sure[:, 3] < 0.625).all() and (sure[:, 4] > sure[:, 3]).all()
    same = maps.leads(np.full(120, 1), place, of_finding, patients)  # half of the signs are there
    np.testing.assert_allclose(same, [[0.5, 0.5, 0, 0, 0]] * 3, atol=1e-12)
    assert (maps.leads(np.full(120, 2), place, of_finding, patients) == 0).all()  # where no sign is


def test_it_asks_networks_of_the_phantom_about_findings_that_have_a_place(small_set, tmp_path, monkeypatch, capsys):
    data = load_set(small_set / "noise")
    monkeypatch.setattr(maps, "FILMS", 150)
    monkeypatch.setattr(maps, "MIN_FILMS", 5)

    def show(name, **settings):
        save_network(tmp_path, name, data, **settings)
        monkeypatch.setattr(sys, "argv", ["maps", str(tmp_path / f"{name}_net.pth")])
        maps.main()
        return capsys.readouterr().out.splitlines()

    lines = show("cell", crop=64, synthetic=True)
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines[2:] if line[:1] == "|"}
    assert [*rows] == [*FINDINGS, "Average"] and lines[0].count("cell: hits") == 1
    assert {name for name in FINDINGS if rows[name][5] == "–"} >= {"Cardiomegaly", "Edema", "Emphysema"}
    assert float(rows["Mass"][6]) > 0 and "[" in rows["Average"][-1] and int(rows["Mass"][2]) >= 5
    for name, settings, problem in (
        ("real", {"crop": 64}, "not trained on the phantom"),
        ("few", {"synthetic": True}, "too few values"),
    ):
        with pytest.raises(maps.InputError, match=problem):
            show(name, **settings)
