"""test.py: which columns the table has, what is written beside it, and what is refused."""

import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from sklearn.metrics import roc_auc_score

import model_eval
import test as table_script
from chexnet import CheXNet
from dataset import AVERAGE, FINDINGS, Films, load_set
from genotypes import PUBLISHED, format_genotype
from report.networks import load_network
from scores import AUC, GAP, read_scores
from support.files import save_state
from tests.films import flip_a_bit
from tests.test_scripts import files, run
from utils import predict

NAMES = ["first_order", "DARTS_V1", "second_order", "chexnet"]  # in the table's order


def save_network(folder, name, data, **settings):
    """A weights file as a training leaves it, of a network that has learnt nothing."""
    settings = data.identity() | {"dataset": data.name, "crop": 32} | settings
    classes, cell = len(settings["findings"]), PUBLISHED["DARTS_V1"]
    network = CheXNet(classes) if name == "chexnet" else model_eval.Network(4, classes, 4, cell)
    if name != "chexnet":
        settings |= {"c": 4, "layers": 4, "genotype": format_genotype(cell)}
    folder.mkdir(exist_ok=True)
    state = {"weights": network.state_dict(), "epoch": 1, "val_auc": 0.5, "settings": settings}
    save_state(folder / f"{name}_net.pth", state)


@pytest.fixture(scope="session")
def prepared(small_set):
    return load_set(small_set / "noise")


@pytest.fixture(scope="session")
def tabled(prepared, small_set, tmp_path_factory):
    """A folder with four networks and their table. Not to be written to."""
    out = tmp_path_factory.mktemp("tabled")
    torch.manual_seed(0)
    for name in NAMES:
        save_network(out / "weights", name, prepared)
    run(table_script, small_set, out)
    return out


@pytest.fixture
def copy(tabled, tmp_path):
    """A copy of it without CheXNet, which takes most of the time; for tests to change."""
    shutil.copytree(tabled, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weights" / "chexnet_net.pth").unlink()
    return tmp_path


@pytest.fixture
def table(small_set, table_alone):
    """Runs test.py; returns the scores it wrote."""

    def make(out, *options):
        run(table_script, small_set, out, *options)
        return read_scores(out / "results" / "auc.csv")

    return make


def columns(scores):
    return list(scores.index.unique("network"))


# --- What is written


def test_the_table_agrees_with_scikit_learn_on_the_written_predictions(tabled, prepared):
    scores = read_scores(tabled / "results" / "auc.csv")
    assert columns(scores) == NAMES
    labels = prepared.labels[prepared.rows("test")]
    for name in NAMES:
        predictions = pd.read_csv(tabled / "results" / f"predictions_{name}.csv")
        assert list(predictions["Image Index"]) == list(prepared.table["Image Index"].iloc[prepared.rows("test")])
        values = predictions[[f"prob_{finding}" for finding in FINDINGS]].to_numpy()
        expected = roc_auc_score(labels, values, average=None)
        expected = [*expected, np.mean(expected)]
        assert np.allclose(scores.loc[name, "auc"], expected, rtol=0, atol=1e-12)
        gaps = scores.loc[name, "auc"] - scores.loc["chexnet", "auc"] if name != "chexnet" else math.nan
        assert np.allclose(scores.loc[name, "difference"], gaps, rtol=0, atol=1e-12, equal_nan=True)
    assert scores.loc[("chexnet", AVERAGE), "parameters_millions"] == pytest.approx(6.968206)
    wide = pd.read_csv(tabled / "results" / "auc.csv").pivot(index="finding", columns="network", values="auc")
    assert wide.shape == (len(FINDINGS) + 1, len(NAMES)) and wide.notna().all(axis=None)
    markdown = (tabled / "results" / "auc.md").read_text(encoding="utf-8")
    assert markdown.startswith("**AUC on the test split of noise: 32 films, not for clinical use**\n")


def test_a_set_that_knows_no_patients_says_films(copy, table, prepared, monkeypatch):
    monkeypatch.setattr(table_script, "open_set", lambda *_: replace(prepared, patients=False))
    scores = table(copy, "--min-patients", 99)
    assert scores.loc["first_order", "low"][list(FINDINGS)].isna().all()
    markdown = (copy / "results" / "auc.md").read_text(encoding="utf-8")
    assert "resamples of films." in markdown and "fewer than 99 films" in markdown and "patients" not in markdown


@pytest.mark.parametrize("findings", [("Left lung", "other_thing"), ("Fracture",)])
def test_findings_are_those_of_the_set_and_one_alone_has_no_average(
    findings, prepared, tmp_path, small_set, monkeypatch
):
    data = replace(prepared, labels=np.array(prepared.labels[:, 3 : 3 + len(findings)]), findings=findings)
    monkeypatch.setattr(table_script, "open_set", lambda *_: data)
    save_network(tmp_path / "weights", "first_order", data, findings=list(findings))
    run(table_script, small_set, tmp_path)
    results = tmp_path / "results"
    scores = read_scores(results / "auc.csv")
    assert list(scores.index.unique("finding")) == [*findings, AVERAGE] and scores["auc"].notna().all()
    predictions = pd.read_csv(results / "predictions_first_order.csv")
    assert list(predictions) == ["Image Index", *(f"prob_{finding}" for finding in findings)]
    for name, shown in (("auc.md", findings), ("index.html", [finding.replace("_", " ") for finding in findings])):
        text = re.sub('base64,[^"]*', "", (results / name).read_text(encoding="utf-8"))
        assert all(finding in text for finding in shown) and not set(FINDINGS) & set(re.findall("[A-Z][a-z_]+", text))
        assert "Parameters (M)" in text and ("Average" in text) == (len(findings) > 1)


# --- Which columns


def test_the_networks_that_are_there_make_the_table(copy, table, capsys):
    assert columns(table(copy)) == ["first_order", "DARTS_V1", "second_order"]
    assert "'python chexnet.py' trains it" in capsys.readouterr().out
    assert columns(table(copy, "--second-order"))[0] == "second_order"
    (copy / "weights" / "first_order_net.pth").unlink()
    (copy / "weights" / "second_order_net.pth").unlink()
    assert columns(table(copy)) == ["DARTS_V1"]


def test_each_network_sees_the_films_as_in_its_training(copy, table, prepared):
    save_network(copy / "weights", "DARTS_V1", prepared, standardise=True)
    table(copy)
    for name, standardise in (("first_order", False), ("DARTS_V1", True)):
        network, _ = load_network(copy / "weights" / f"{name}_net.pth")
        expected, _ = predict(network, Films(prepared, "test", 32, torch.device("cpu"), standardise), 64)
        written = pd.read_csv(copy / "results" / f"predictions_{name}.csv").iloc[:, 1:].to_numpy()
        assert np.array_equal(written, expected)


def test_what_is_missing_is_named_with_its_command(copy, table, tmp_path_factory, one_line):
    empty = tmp_path_factory.mktemp("empty")
    assert "first_order_net.pth is missing: run 'python val_train.py' first" in one_line(table, empty)
    (copy / "weights" / "second_order_net.pth").unlink()
    for out in (empty, copy):
        assert "is missing: run 'python val_train.py --second-order' first" in one_line(table, out, "--second-order")
    assert not list(empty.iterdir())


def test_predictions_alone_make_a_table(copy, small_set, capsys):
    (copy / "results" / "predictions_chexnet.csv").rename(copy / "mine.csv")
    before = read_scores(copy / "results" / "auc.csv")
    for name in ("weights", "results"):
        shutil.rmtree(copy / name)
    run(table_script, small_set, copy, "--second-order", "--predictions", f"mine={copy}/mine.csv")
    scores = read_scores(copy / "results" / "auc.csv")
    assert columns(scores) == ["mine"] and scores.loc["mine", AUC].equals(before.loc["chexnet", AUC])
    assert "val_train.py" not in capsys.readouterr().out
    written = {path.name for path in (copy / "results").iterdir()}
    pictures = {"roc.png", "auc.png", "calibration.png", "films.png"}
    assert written == {"index.html", "auc.csv", "auc.md", "brier.csv", "lock"} | pictures
    page = (copy / "results" / "index.html").read_text(encoding="utf-8")
    assert not [words for words in ("Operating points", "Activation maps", "Settings") if words in page]


def test_a_full_gpu_names_the_one_setting_that_helps(copy, table, monkeypatch, one_line):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model_eval.Network, "forward", full)
    line = one_line(table, copy, status=1)
    assert line == "error: the GPU's memory is full: choose smaller batches or networks\n"


def test_a_second_process_is_refused(copy, table, one_line):
    before = files(copy / "results")
    with FileLock(copy / "results" / "lock"):
        assert "results: another process works there" in one_line(table, copy)
    assert files(copy / "results") == before


# --- Weights that do not fit


@pytest.mark.parametrize("findings", [FINDINGS[::-1], FINDINGS[:-1], ("Fracture", *FINDINGS[1:])])
def test_weights_of_other_findings_are_refused(copy, table, prepared, one_line, findings):
    save_network(copy / "weights", "DARTS_V1", prepared, findings=list(findings))
    before = files(copy / "results")
    line = one_line(table, copy)
    assert f"DARTS_V1_net.pth: its findings are {', '.join(findings)}, those of noise are {FINDINGS[0]}, " in line
    assert files(copy / "results") == before


def test_weights_of_another_crop_or_of_no_proper_name_are_refused(copy, table, prepared, one_line):
    save_network(copy / "weights", "DARTS_V2", prepared, crop=64)
    assert "the networks were trained at different crops, {" in one_line(table, copy)
    (copy / "weights" / "DARTS_V2_net.pth").rename(copy / "weights" / "a|b_net.pth")
    assert re.search(r"a network's name has 1 to 64 of a-z.*a\|b", one_line(table, copy))


def test_weights_of_another_set_are_left_out_and_alone_refused(copy, table, prepared, capsys, one_line):
    save_network(copy / "weights", "first_order", prepared, checksum="other")
    assert columns(table(copy)) == ["DARTS_V1", "second_order"]
    left_out = "first_order_net.pth: trained on another set (noise, or another version of noise), left out\n"
    assert left_out in capsys.readouterr().out
    for name in ("DARTS_V1", "second_order"):
        save_network(copy / "weights", name, prepared, checksum="other")
    for order, option in (("first", "--no-second-order"), ("second", "--second-order")):
        line = one_line(table, copy, option)
        assert f"{order}_order_net.pth: trained on another set" in line and "give --out the folder" in line
    (copy / "weights" / "first_order_net.pth").unlink()
    assert "first_order_net.pth is missing: run " in one_line(table, copy)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_and_foreign_weights_are_refused(copy, table, one_line, monkeypatch):
    path = copy / "weights" / "DARTS_V1_net.pth"
    content = path.read_bytes()
    weight = load_network(path)[0].classifier.weight.detach().numpy()
    place = content.index(weight.tobytes())  # not a byte between two parts of the file, which no checksum covers
    for wrong in (b"", content[:place], b"no weights", flip_a_bit(content, place)):
        path.write_bytes(wrong)
        line = one_line(table, copy)
        assert "DARTS_V1_net.pth: damaged, or not a weights file" in line and "weights_only" not in line
    torch.save({"weights": Touch(copy / "executed")}, path)
    assert "DARTS_V1_net.pth: damaged, or not a weights file" in one_line(table, copy)
    assert not (copy / "executed").exists()
    path.write_bytes(content)
    with monkeypatch.context() as patch:  # a drive that fails is no damage
        patch.setattr(Path, "read_bytes", lambda _: os.read(-1, 1))
        assert "DARTS_V1_net.pth: Bad file descriptor: check it" in one_line(table, copy)
    saved = torch.load(path, weights_only=True)
    saved["weights"]["classifier.bias"][3] = torch.nan
    torch.save(saved, path)
    assert "DARTS_V1_net.pth: holds weights that are not finite" in one_line(table, copy)
    saved["weights"]["classifier.bias"][3] = 0
    for part, name, value in ((saved, "val_auc", None), (saved["settings"], "crop", None), (saved["settings"], "c", 8)):
        right = part.pop(name)
        part |= {} if value is None else {name: value}
        torch.save(saved, path)
        assert "DARTS_V1_net.pth: damaged, or not a weights file of this project" in one_line(table, copy)
        part[name] = right


# --- Other models' predictions


def test_written_predictions_come_back_exactly(copy, table):
    names = {"A": "second_order", "chexnet": "chexnet"}
    shutil.copy(copy / "results" / "predictions_second_order.csv", copy / "A.csv")
    options = [f"--predictions=A={copy}/A.csv", f"--predictions=chexnet={copy}/results/predictions_chexnet.csv"]
    before = read_scores(copy / "results" / "auc.csv")
    scores = table(copy, *options)
    assert columns(scores) == ["first_order", "DARTS_V1", "second_order", "A", "chexnet"]
    for mine, name in names.items():
        assert scores.loc[mine, AUC].equals(before.loc[name, AUC])
        assert np.isnan(scores.loc[(mine, AVERAGE), "parameters_millions"])
    assert scores.loc["first_order", GAP].equals(before.loc["first_order", GAP])  # to the CheXNet of the file


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["Name="], "must be NAME=FILE.csv"),
        (["first_order=x.csv"], "with a name that is not yet in use"),
        (["A={}", "A={}"], "with a name that is not yet in use"),
        (["A={}", "Name=no/file.csv"], "no/file.csv: cannot be read"),
        (["<script>={}"], "a network's name has 1 to 64 of a-z"),
        (["A={}", "Name={results}/predictions_DARTS_V1.csv"], "DARTS_V1.csv: this command writes it anew: rename it, "),
        (["A={}", "Name={results}/../results/films_chexnet.csv"], "films_chexnet.csv: this command writes it anew"),
    ],
)
def test_bad_prediction_options_are_one_line_and_change_nothing(tabled, table, tmp_path, one_line, options, said):
    before, results = files(tabled), tabled / "results"
    path = shutil.copy(results / "predictions_chexnet.csv", tmp_path)
    given = [f"--predictions={option.format(path, results=results)}" for option in options]
    assert said in one_line(table, tabled, *given)
    assert files(tabled) == before
