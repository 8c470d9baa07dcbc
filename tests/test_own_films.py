"""test.py --films: films without labels, scored as the set's own are; what is refused, each with one line."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import test as table_script
from dataset import FINDINGS, load_set, write_set
from report.predictions import read_predictions
from tests.test_scripts import files, run
from tests.test_table import save_network

NAMES = ["first_order", "DARTS_V1"]
SHEET = (1620, 690)  # pixels: six pictures a row, a row for each network


@pytest.fixture(scope="module")
def networks(small_set, tmp_path_factory):
    """A folder with two networks of the set `small`. Not to be written to."""
    out = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name in NAMES:
        save_network(out / "weights", name, load_set(small_set / "noise"))
    return out


@pytest.fixture
def out(networks, tmp_path, table_alone):
    """A copy of it."""
    shutil.copytree(networks, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def own(small_set, tmp_path):
    """A folder with three test films of the set, in different files and folders."""
    data = load_set(small_set / "noise")
    folder = tmp_path / "own"
    (folder / "more").mkdir(parents=True)
    for row, name in zip(data.rows("test"), ("a.png", "more/B.PNG", "c $x$ <b>.png"), strict=False):
        Image.fromarray(data.images[row]).convert("RGB" if "B" in name else "L").save(folder / name)
    (folder / "notes.txt").write_text("not a film")
    return folder


def score(small_set, out, folder, *options):
    run(table_script, small_set, out, "--films", folder, *options)


def test_a_film_of_the_set_is_scored_as_it_was_there(small_set, out, own, capsys):
    score(small_set, out, own)
    assert (
        f"films in {own}: 3, scored by networks of noise (not for clinical use); no diagnosis\n"
        in capsys.readouterr().out
    )
    names = ["a.png", "B.PNG", "c $x$ <b>.png"]
    for name in NAMES:
        mine = pd.read_csv(out / "results" / f"films_{name}.csv")
        theirs = pd.read_csv(out / "results" / f"predictions_{name}.csv")[:3]
        assert list(mine["Image Index"]) == names
        np.testing.assert_allclose(mine.iloc[:, 1:], theirs.iloc[:, 1:], rtol=1e-5)
        again, remarks = read_predictions(out / "results" / f"films_{name}.csv", names[::-1], FINDINGS)
        assert (again == mine.iloc[::-1, 1:].to_numpy()).all() and not remarks
    sheets = {path.name for path in (out / "results" / "films").iterdir()}
    assert sheets == {"a.png", "B.png", "c $x$ <b>.png"}
    for path in (out / "results" / "films").iterdir():
        with Image.open(path) as sheet:
            assert sheet.size == SHEET
            assert np.ptp(np.asarray(sheet.convert("RGB"), int), axis=2).max() > 50  # the maps are coloured


def test_a_sheet_has_the_strongest_findings_with_their_maps(small_set, out, own, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "report.own_films.draw_activation", lambda path, films, maps, texts: drawn.append((films, maps, texts))
    )
    score(small_set, out, own)
    assert len(drawn) == 3
    for k, (films, maps, texts) in enumerate(drawn):
        assert len(films) == len(maps) == len(texts) == 2 * 6
        for name, part in zip(NAMES, (slice(0, 6), slice(6, 12)), strict=True):
            row = (
                pd.read_csv(out / "results" / f"films_{name}.csv")
                .iloc[k, 1:]
                .astype(float)
                .sort_values(ascending=False)
            )
            expected = [f"{column.removeprefix('prob_')}\n{p:.2f}" for column, p in row[:5].items()]
            assert texts[part] == [name, *expected]
            assert [values is None for values in maps[part]] == [True] + [False] * 5


# --- Refusals


def empty(folder):
    (folder / "scan.dcm").write_bytes(b"")


def broken(folder):
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[: len(content) // 2])


def broken_jpeg(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)).save(folder / "j.jpg")
    content = (folder / "j.jpg").read_bytes()
    (folder / "j.jpg").write_bytes(content[: len(content) // 2])


def black(folder):
    Image.new("L", (80, 80), 3).save(folder / "a.png")


def small(folder):
    Image.new("L", (40, 40), 200).save(folder / "a.png")


def twice(folder):
    shutil.copy(folder / "a.png", folder / "more" / "A.jpg")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "own is not a folder: give --films the folder"),
        (
            lambda folder: shutil.rmtree(folder) or folder.mkdir() or empty(folder),
            "own has no film (.png, .jpg, .jpeg)",
        ),
        (broken, "own/a.png: damaged, or no picture"),
        (broken_jpeg, "own/j.jpg: the film does not decode"),
        (black, "own/a.png: the film is nearly black"),
        (small, "own/a.png: smaller than the set's films, 64 px"),
        (twice, "own/more/A.jpg have one name: rename one"),
    ],
    ids=["no folder", "no film", "broken", "broken jpeg", "black", "small", "twice"],
)
def test_bad_films_are_named_in_one_line_and_change_nothing(small_set, out, own, one_line, damage, said):
    damage(own)
    before = files(out)
    assert said in one_line(score, small_set, out, own)
    assert files(out) == before


def test_films_need_a_network(small_set, tmp_path, own, one_line):
    # Another model's column is enough for a table, but scores no film.
    line = one_line(score, small_set, tmp_path, own, "--predictions", "A=a.csv")
    assert "first_order_net.pth is missing: run 'python val_train.py' first" in line


def test_networks_of_synthetic_films_refuse_others_unless_told_otherwise(
    small_set, out, own, tmp_path, one_line, capsys
):
    data = load_set(small_set / "noise")
    write_set(tmp_path / "drawn" / "noise", np.array(data.images), data.table, {"synthetic": True})
    score(tmp_path / "drawn", out, own)  # its own films are known by their pixels
    capsys.readouterr()
    Image.new("L", (300, 200), 90).save(own / "mine.png")
    line = one_line(score, tmp_path / "drawn", out, own)
    assert "mine.png: not one of small's films" in line and "--films-anyway" in line
    score(tmp_path / "drawn", out, own, "--films-anyway")
    assert "(synthetic, not for clinical use); no diagnosis" in capsys.readouterr().out
    assert len(pd.read_csv(out / "results" / "films_first_order.csv")) == 4
