"""Films without labels, scored as a set's own are, by test.py --films and without a set; what is refused."""

import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import test as table_script
from dataset import FINDINGS, load_set
from report import own_films
from report.predictions import read_predictions
from support.files import load_state, read_table, save_state
from tests.films import dicom
from tests.test_scripts import ROOT, files, run
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
def out(networks, tmp_path, table_alone, monkeypatch):
    """A copy of it. Maps of one value are drawn, too."""
    monkeypatch.setattr("report.activations.COARSE", 0)
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


def score_alone(out, folder, *options, weights=NAMES):
    """Without a prepared set."""
    weights = [out / "weights" / f"{name}_net.pth" for name in weights]
    own_films.main([*map(str, [folder, "--out", out, "--device", "cpu", *options, "--weights", *weights])])


def columns(out, kind, name=NAMES[0]):
    """The columns of films_<name>.csv that begin with this kind, as {finding: column}."""
    table = pd.read_csv(out / "results" / f"films_{name}.csv", index_col=0, keep_default_na=False)
    return table.filter(like=f"{kind}_").rename(columns=lambda column: column.removeprefix(f"{kind}_"))


def edit_network(out, name, **settings):
    """Change settings in a weights file; None takes one away."""
    path = out / "weights" / f"{name}_net.pth"
    saved = load_state(path)
    saved["settings"] = {key: value for key, value in (saved["settings"] | settings).items() if value is not None}
    save_state(path, saved)


def test_a_film_of_the_set_is_scored_as_it_was_there(small_set, out, own, capsys):
    edit_network(out, NAMES[1], standardise=True)
    score(small_set, out, own)
    said = capsys.readouterr().out
    for name in NAMES:
        at = out / "results" / f"films_{name}.csv"
        assert f"{at}: 3 films, by a network of noise (not for clinical use); no diagnosis\n" in said
        theirs = pd.read_csv(out / "results" / f"predictions_{name}.csv")[:3]
        mine = columns(out, "prob", name)
        assert list(mine.index) == FILMS
        np.testing.assert_allclose(mine, theirs.iloc[:, 1:], rtol=1e-5)
        assert (read_predictions(at, FILMS[::-1], FINDINGS) == mine[::-1].to_numpy()).all()
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
    for k, sheet in enumerate(drawn):
        captions = []
        for name in NAMES:
            strongest = columns(out, "prob", name).iloc[k].sort_values(ascending=False)[:5]
            captions += [name, *(f"{finding}\n{value:.2f}" for finding, value in strongest.items())]
        assert sheet.captions == captions
        assert [picture.ndim for picture in sheet.pictures] == 2 * ([2] + [3] * 5)  # the bare film, and under its maps
    monkeypatch.setattr("report.activations.COARSE", 2)
    score(small_set, out, own)
    for sheet, coarse in zip(drawn[:3], drawn[3:], strict=True):
        texts = [text.replace("\n", " ") for text in sheet.captions]
        assert coarse.captions == ["\n".join(texts[:6]), "\n".join(texts[6:])] and coarse.note == ""
        assert [picture.ndim for picture in coarse.pictures] == [2, 2]


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
    shutil.copy(own / "a.png", own / "more" / "a.jpe")
    for name in ("1.TIF", "2.tif", "3.webp", "4.bmp", "more/1.2.840.1"):
        (own / name).write_bytes(b"a film in another form")
    score(small_set, out, own)
    said = capsys.readouterr().out
    assert (
        "left out: 5 files, not PNG, JPEG or DICOM (2 .tif, 1 .webp, 1 .bmp, 1 without ending): convert films" in said
    )
    assert f"left out: {own}/more/a.jpe, a copy of {own}/a.png\n" in said
    assert list(columns(out, "prob").index) == FILMS


# --- Without a set


def test_without_a_set_numbers_and_sheets_are_the_same_also_in_small_batches(small_set, out, own, monkeypatch):
    """Not all films are in memory together."""
    score(small_set, out, own)
    before, tables = files(out), [columns(out, "prob", name) for name in NAMES]
    monkeypatch.setattr("report.own_films.BATCH_SIZE", 2)
    made, sizes = own_films.as_films, []
    monkeypatch.setattr(
        "report.own_films.as_films", lambda pixels, *rest: sizes.append(len(pixels)) or made(pixels, *rest)
    )
    score_alone(out, own, "--sheets", 1)
    assert sizes == [2, 2, 1, 1, 1, 1]  # two networks; then a sheet
    for name, table in zip(NAMES, tables, strict=True):
        assert list(columns(out, "prob", name).index) == FILMS
        np.testing.assert_allclose(columns(out, "prob", name), table, rtol=1e-5)
    sheet = out / "results" / "films" / "a.png"
    assert [*sheet.parent.iterdir()] == [sheet] and before[sheet][1] == sheet.read_bytes()


def test_dicom_films_without_an_ending_are_films_of_their_own(out, own):
    pytest.importorskip("pydicom")
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name, values in {"1.2.840.1": pixels, "1.2.840.2": pixels.T}.items():
        dicom(own / name, values, BitsStored=12)
    score_alone(out, own, "--sheets", 2, weights=NAMES[:1])
    names = ["1.2.840.1", "1.2.840.2"]
    assert list(columns(out, "prob").index) == [*names, *FILMS]
    assert {path.stem for path in (out / "results" / "films").iterdir()} == {*names}


@pytest.mark.parametrize(("asked", "sheets"), [(2, 2), (0, 0), (-1, 0)])
def test_so_many_sheets_are_drawn_as_are_asked_for_and_the_page_shows_the_first(out, own, monkeypatch, asked, sheets):
    drawn, returned = [], []
    monkeypatch.setattr("report.own_films.draw_sheet", lambda path, sheet: drawn.append(path.stem))
    monkeypatch.setattr("report.own_films.SHEETS", 1)
    made = own_films.score_own_films
    monkeypatch.setattr("report.own_films.score_own_films", lambda *rest: returned.append(made(*rest)))
    score_alone(out, own, "--sheets", asked)
    assert drawn == ["a", "B"][:sheets] and [*returned[0]] == FILMS[: min(sheets, 1)]
    assert len(columns(out, "prob")) == 3


def test_networks_may_have_findings_of_their_own(small_set, out, own):
    save_network(out / "weights", "chexnet", load_set(small_set / "noise"), findings=["Fracture"], crop=64)
    score_alone(out, own, weights=[NAMES[0], "chexnet"])
    assert list(columns(out, "prob", "chexnet")) == ["Fracture"] and list(columns(out, "prob")) == list(FINDINGS)


def test_films_are_flagged_by_the_thresholds_of_the_same_call_or_of_a_file(small_set, out, own, tmp_path):
    score(small_set, out, own, "--min-patients", 6)
    points = read_table(out / "results" / "operating_points.csv")
    thresholds = points.pivot(index="network", columns="finding", values="threshold")
    assert (thresholds == "").any(axis=None) and not (thresholds == "").all(axis=None)
    probability, flagged = columns(out, "prob"), columns(out, "flagged")
    for finding in FINDINGS:
        threshold = thresholds.loc[NAMES[0], finding]
        expected = ["yes" if p >= float(threshold) else "no" for p in probability[finding]] if threshold else [""] * 3
        assert list(flagged[finding]) == expected
    at = tmp_path / "points.csv"
    edge = probability["Mass"]["B.PNG"]  # a probability at the threshold is flagged
    points["threshold"] = ["" if finding == "Hernia" else str(edge) for finding in points["finding"]]
    points.to_csv(at, sep=";", index=False)
    score_alone(out, own, "--operating-points", at, "--sheets", 0)
    assert list(columns(out, "flagged")["Hernia"]) == [""] * 3
    assert ((columns(out, "flagged") == "yes") == (columns(out, "prob") >= edge)).drop(columns="Hernia").all(axis=None)
    score_alone(out, own, "--sheets", 0)
    assert columns(out, "flagged").empty


@pytest.mark.long
def test_it_works_by_its_path_from_another_folder(out, own, tmp_path):
    weights = out / "weights" / f"{NAMES[0]}_net.pth"
    command = [sys.executable, ROOT / "report" / "own_films.py", own, "--weights", weights, "--sheets", "0"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert len(pd.read_csv(tmp_path / "results" / f"films_{NAMES[0]}.csv")) == 3


# --- Films that cannot be used


def half(path):
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_jpeg(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8)).save(path)
    half(path)


def test_films_that_cannot_be_used_are_named_and_the_others_scored(out, own, capsys):
    half_jpeg(own / "0.jpg")
    shutil.copy(own / "a.png", own / "1.png")
    half(own / "1.png")
    Image.new("L", (80, 80), 3).save(own / "2.png")
    Image.new("L", (40, 40)).save(own / "more" / "3.png")
    score_alone(out, own, "--sheets", 1)
    said = capsys.readouterr().out
    for words in (
        f"{own}/0.jpg: the film does not decode",
        f"{own}/1.png: damaged, or no picture",
        f"{own}/2.png: the film is nearly black",
        f"{own}/more/3.png: the film is smaller than 64 px",
    ):
        assert said.count(f"left out: {words}") == 1
    assert list(columns(out, "prob").index) == FILMS and (out / "results" / "films" / "a.png").exists()


def only_broken(own):
    for path in own.rglob("*.[pP]*"):
        half(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "own is not a folder: give the folder"),
        (lambda own: [shutil.rmtree(own), own.mkdir()], "own has no film (PNG, JPEG or DICOM)"),
        (only_broken, ".png: damaged, or no picture: give it whole, or move it away (no film of 3 can be used)"),
        (lambda own: Image.new("L", (80, 80), 99).save(own / "more" / "A.jpg"), "own/more/A.jpg have one name: rename"),
    ],
    ids=["no folder", "no film", "all broken", "twice"],
)
def test_bad_folders_are_one_line_and_change_nothing(out, own, one_line, damage, said):
    score_alone(out, own)
    damage(own)
    before = files(out)
    assert said in one_line(score_alone, out, own)
    assert files(out) == before


# --- Refusals


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


@pytest.mark.parametrize("older", [{}, {"synthetic": None, "film_size": None, "findings": None, "crop": 64}])
def test_networks_of_synthetic_films_score_none_unless_told_otherwise(small_set, out, own, one_line, capsys, older):
    """Those of an earlier version do not say what they were trained on."""
    for name in NAMES:
        edit_network(out, name, **{"synthetic": True} | older)
    before = files(out)
    for call in ((score, small_set), (score_alone,)):
        line = one_line(*call, out, own)
        assert "first_order_net.pth: trained on synthetic films, or by" in line and "--films-anyway lets it" in line
    assert files(out) == before
    score_alone(out, own, "--films-anyway", "--sheets", 0)
    assert "(synthetic, not for clinical use); no diagnosis" in capsys.readouterr().out
    assert len(columns(out, "prob")) == 3


def test_networks_that_cannot_stand_together_are_refused(out, own, one_line, tmp_path):
    assert "first_order_net.pth have one name: copy" in one_line(partial(score_alone, weights=NAMES[:1] * 2), out, own)
    edit_network(out, NAMES[1], film_size=128)
    line = one_line(score_alone, out, own)
    assert "trained on films of different sizes" in line and "DARTS_V1_net.pth': 128}" in line


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("network,finding,threshold\nother,Mass,0.5\n", "'Mass'"),
        ("network,finding,threshold\nfirst_order,Hernia,0.5\n", "'Mass'"),
        ("network,finding,threshold\nfirst_order,Mass,1.5\n", "Mass"),
        ("network,finding,threshold\nfirst_order,Mass,half\n", "Mass"),
        ("network,finding,threshold\nfirst_order,Mass,0.1\nfirst_order,Mass,0.2\n", "float"),
        ("network,finding\nfirst_order,Mass\n", "'threshold'"),
    ],
    ids=["no network", "no finding", "above 1", "no number", "twice", "no column"],
)
def test_operating_points_that_do_not_fit_are_one_line(small_set, out, own, one_line, text, wrong):
    save_network(out / "weights", NAMES[0], load_set(small_set / "noise"), findings=["Mass"])
    points, before = out / "points.csv", files(out / "weights")
    points.write_text(text)
    line = one_line(partial(score_alone, weights=NAMES[:1]), out, own, "--operating-points", points)
    assert f"{points}: needs one threshold of 0 to 1, or an empty cell, for network first_order" in line
    assert wrong in line and "give the operating_points.csv that test.py wrote" in line
    assert [path.name for path in files(out / "results")] == ["lock"] and files(out / "weights") == before
