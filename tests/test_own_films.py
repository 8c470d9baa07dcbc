"""test.py --films: films without labels, scored as the set's own are; what is refused, each with one line."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import test as table_script
from data.making import write_set
from dataset import FINDINGS, load_set
from report.predictions import read_predictions
from tests.test_scripts import files, run
from tests.test_table import save_network

NAMES = ["first_order", "DARTS_V1"]
FILMS = ["a.png", "B.PNG", "c $x$ <b>.png"]
SHEET = (1620, 690)  # pixels: six pictures a row, a row for each network


@pytest.fixture(scope="module")
def networks(small_set, tmp_path_factory):
    """A folder with two networks of the set `noise`. Not to be written to."""
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
    for row, name in zip(data.rows("test"), FILMS, strict=False):
        film = Image.fromarray(data.images[row])
        film.convert("RGB").save(folder / "more" / name) if name == "B.PNG" else film.save(folder / name)
    (folder / "notes.txt").write_text("not a film")
    return folder


def score(small_set, out, folder, *options):
    run(table_script, small_set, out, "--films", folder, *options)


def test_a_film_of_the_set_is_scored_as_it_was_there(small_set, out, own, capsys):
    score(small_set, out, own)
    line = f"films in {own}: 3, scored by networks of noise (not for clinical use); no diagnosis\n"
    assert line in capsys.readouterr().out
    for name in NAMES:
        mine = pd.read_csv(out / "results" / f"films_{name}.csv")
        theirs = pd.read_csv(out / "results" / f"predictions_{name}.csv")[:3]
        assert list(mine["Image Index"]) == FILMS
        np.testing.assert_allclose(mine.iloc[:, 1:], theirs.iloc[:, 1:], rtol=1e-5)
        again = read_predictions(out / "results" / f"films_{name}.csv", FILMS[::-1], FINDINGS)
        assert (again == mine.iloc[::-1, 1:].to_numpy()).all()
    sheets = list((out / "results" / "films").iterdir())
    assert {path.name for path in sheets} == {"a.png", "B.png", "c $x$ <b>.png"}
    for path in sheets:
        with Image.open(path) as sheet:
            assert sheet.size == SHEET
            assert np.ptp(np.asarray(sheet.convert("RGB"), int), axis=2).max() > 50  # the maps are coloured


def test_a_sheet_has_the_strongest_findings_with_their_maps(small_set, out, own, monkeypatch):
    drawn = []
    monkeypatch.setattr("report.own_films.draw_sheet", lambda path, sheet: drawn.append(sheet))
    score(small_set, out, own)
    assert len(drawn) == 3
    probabilities = [pd.read_csv(out / "results" / f"films_{name}.csv", index_col=0).astype(float) for name in NAMES]
    for k, sheet in enumerate(drawn):
        captions = []
        for name, p in zip(NAMES, probabilities, strict=True):
            strongest = p.iloc[k].sort_values(ascending=False)[:5]
            captions += [name, *(f"{column.removeprefix('prob_')}\n{value:.2f}" for column, value in strongest.items())]
        assert sheet.captions == captions
        assert [picture.ndim for picture in sheet.pictures] == 2 * ([2] + [3] * 5)  # the bare film, and under its maps


def test_sheets_of_an_earlier_call_are_gone_and_nothing_else(small_set, out, own):
    score(small_set, out, own)
    sheets = out / "results" / "films"
    shutil.copy(sheets / "a.png", sheets / "mine.png")
    for name in ("films_notes.csv", "films_list.csv"):
        (out / "results" / name).write_text("my notes\n" * (name == "films_notes.csv"))
    shutil.move(own / "a.png", own / "z.png")
    (own / "more" / "B.PNG").unlink()
    score(small_set, out, own)
    assert {path.name for path in sheets.iterdir()} == {"z.png", "c $x$ <b>.png", "mine.png"}
    assert (out / "results" / "films_notes.csv").read_text() == "my notes\n"


def test_copies_and_what_programs_put_beside_films_are_left_out_and_other_forms_are_named(small_set, out, own, capsys):
    for k, place in enumerate(
        ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/T.jpg", "Thumbnails/a.png")
    ):
        (own / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64), 90 + k).save(own / place)
    for name in ("Copy of a.png", "more/a.jpe"):
        shutil.copy(own / "a.png", own / name)
    for name in ("1.TIF", "2.tif", "3.webp", "4.bmp", "more/1.2.840.1"):
        (own / name).write_bytes(b"a film in another form")
    score(small_set, out, own)
    said = capsys.readouterr().out
    assert (
        "left out: 5 files, not PNG, JPEG or DICOM (2 .tif, 1 .webp, 1 .bmp, 1 without ending): convert films" in said
    )
    assert "left out: 2 files that are copies, such as" in said
    assert list(pd.read_csv(out / "results" / "films_first_order.csv")["Image Index"]) == FILMS


# --- Refusals


def half(path):
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_jpeg(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)).save(path)
    half(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "own is not a folder: give --films the folder"),
        (lambda own: [shutil.rmtree(own), own.mkdir()], "own has no film (PNG, JPEG or DICOM)"),
        (lambda own: half(own / "a.png"), "own/a.png: damaged, or no picture"),
        (lambda own: half_jpeg(own / "j.jpg"), "own/j.jpg: the film does not decode"),
        (lambda own: Image.new("L", (80, 80), 3).save(own / "a.png"), "own/a.png: the film is nearly black"),
        (lambda own: Image.new("L", (40, 40)).save(own / "a.png"), "own/a.png: the film is smaller than 64 px"),
        (lambda own: Image.new("L", (80, 80), 99).save(own / "more" / "A.jpg"), "own/more/A.jpg have one name: rename"),
    ],
    ids=["no folder", "no film", "broken", "broken jpeg", "black", "small", "twice"],
)
def test_bad_films_are_named_in_one_line_and_change_nothing(small_set, out, own, one_line, damage, said):
    damage(own)
    before = files(out)
    assert said in one_line(score, small_set, out, own)
    assert files(out) == before


def test_films_among_the_results_are_refused(small_set, out, own, one_line):
    """Their sheets would take their place, and pictures of results are no films."""
    score(small_set, out, own)
    before = files(out)
    (own.parent / "link").symlink_to(out / "results" / "films")
    for place in (out / "results" / "films", out, own.parent / "link"):
        assert "out/results, where sheets are written" in one_line(score, small_set, out, place)
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
    assert "mine.png: not one of noise's films" in line and "--films-anyway" in line
    score(tmp_path / "drawn", out, own, "--films-anyway")
    assert "(synthetic, not for clinical use); no diagnosis" in capsys.readouterr().out
    assert len(pd.read_csv(out / "results" / "films_first_order.csv")) == 4
