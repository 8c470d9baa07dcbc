"""test.py: which columns the table has, what is written beside it, and what is refused."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from sklearn.metrics import roc_auc_score

import model_eval
import test as table_script
from chexnet import CheXNet
from dataset import FINDINGS, load_set, write_set
from genotypes import PUBLISHED, format_genotype
from scores import AVERAGE, read_scores
from support.files import save_state
from tests.conftest import small_table
from tests.test_scripts import files, run

NAMES = ["first_order", "DARTS_V1", "second_order", "chexnet"]  # in the table's order
AUC = ["auc", "low", "high"]


def save_network(folder, name, data, **settings):
    """A weights file as a training leaves it, of a network that has learnt nothing."""
    settings = {"checksum": data.checksum, "dataset": data.name, "crop": 32} | settings
    if name == "chexnet":
        network = CheXNet(len(FINDINGS))
    else:
        settings |= {"c": 4, "layers": 4, "genotype": format_genotype(PUBLISHED["DARTS_V1"])}
        network = model_eval.Network(4, len(FINDINGS), 4, PUBLISHED["DARTS_V1"])
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


@pytest.fixture(scope="session")
def another_set(tmp_path_factory):
    """A folder with another set of the same name."""
    data = tmp_path_factory.mktemp("other")
    films = small_table()
    images = np.random.default_rng(9).integers(0, 256, (len(films), 64, 64), dtype=np.uint8)
    write_set(data / "noise", images, films, {})
    return data


# --- What is written


def test_the_table_agrees_with_scikit_learn_on_the_written_predictions(tabled, prepared):
    scores = read_scores(tabled / "results" / "auc.csv")
    assert columns(scores) == NAMES
    labels = prepared.labels[prepared.rows("test")]
    for name in NAMES:
        predictions = pd.read_csv(tabled / "results" / f"predictions_{name}.csv")
        assert list(predictions["Image Index"]) == list(prepared.table["Image Index"].iloc[prepared.rows("test")])
        values = predictions[[f"prob_{finding}" for finding in FINDINGS]].to_numpy()
        expected = [roc_auc_score(labels[:, k], values[:, k]) for k in range(len(FINDINGS))]
        expected.append(np.mean(expected))
        assert np.allclose(scores.loc[name, "auc"], expected, rtol=0, atol=1e-12)
        gaps = scores.loc[name, "auc"] - scores.loc["chexnet", "auc"]
        if name == "chexnet":
            assert scores.loc[name, "difference"].isna().all()
        else:
            assert np.allclose(scores.loc[name, "difference"], gaps, rtol=0, atol=1e-12)
    assert scores.loc[("chexnet", AVERAGE), "parameters_millions"] == pytest.approx(6.968206)
    markdown = (tabled / "results" / "auc.md").read_text(encoding="utf-8")
    for text in (" 6.97 |\n", "Average of 14 |", "Average − CheXNet", "not for clinical use", "32 films"):
        assert text in markdown


def test_other_programs_read_the_csv_in_two_lines(tabled):
    table = pd.read_csv(tabled / "results" / "auc.csv")
    wide = table.pivot(index="finding", columns="network", values="auc")
    assert wide.shape == (len(FINDINGS) + 1, len(NAMES)) and wide.loc[AVERAGE].notna().all()
    averages = table[table["finding"] == AVERAGE].set_index("network")
    assert (averages["averaged"] == 14).all() and averages.loc["chexnet", "multiply_adds_billions"] > 0


def test_the_option_decides_who_has_too_few_patients_for_an_interval(copy, table):
    scores = table(copy, "--min-patients", 99)
    assert "fewer than 99 patients" in (copy / "results" / "auc.md").read_text(encoding="utf-8")
    assert scores.loc["first_order", "low"][list(FINDINGS)].isna().all()


# --- Which columns


def test_the_networks_that_are_there_make_the_table(copy, table, capsys):
    assert columns(table(copy)) == ["first_order", "DARTS_V1", "second_order"]
    assert "'python chexnet.py' trains it" in capsys.readouterr().out
    assert columns(table(copy, "--second-order"))[0] == "second_order"
    (copy / "weights" / "first_order_net.pth").unlink()
    (copy / "weights" / "second_order_net.pth").unlink()
    capsys.readouterr()
    assert columns(table(copy)) == ["DARTS_V1"]
    assert "first_order_net.pth is not there: 'python val_train.py' makes it" in capsys.readouterr().out


def test_what_is_missing_is_named_with_its_command(copy, table, tmp_path_factory, one_line):
    empty = tmp_path_factory.mktemp("empty")
    assert "first_order_net.pth is missing: run 'python val_train.py' first" in one_line(table, empty)
    (copy / "weights" / "second_order_net.pth").unlink()
    for out in (empty, copy):
        line = one_line(table, out, "--second-order")
        assert "second_order_net.pth is missing: run 'python val_train.py --second-order' first" in line
    assert not list(empty.iterdir())


def test_predictions_alone_make_a_table(copy, small_set, capsys):
    (copy / "results" / "predictions_chexnet.csv").rename(copy / "mine.csv")
    before = read_scores(copy / "results" / "auc.csv")
    for name in ("weights", "results"):
        shutil.rmtree(copy / name)
    run(table_script, small_set, copy, "--second-order", "--predictions", f"mine={copy}/mine.csv")
    scores = read_scores(copy / "results" / "auc.csv")
    assert columns(scores) == ["mine"] and scores.loc["mine", AUC].equals(before.loc["chexnet", AUC])
    output = capsys.readouterr().out
    assert "val_train.py" not in output and "'python chexnet.py' trains it" in output
    written = {path.name for path in (copy / "results").iterdir()}
    assert written == {"index.html", "auc.csv", "auc.md", "roc.png", "auc.png", "films.png", "lock"}
    page = (copy / "results" / "index.html").read_text(encoding="utf-8")
    assert "Activation maps" not in page and "Settings" not in page


def test_a_second_process_is_refused(copy, small_set, one_line):
    before = files(copy / "results")
    with FileLock(copy / "results" / "lock"):
        assert "results: another process works there" in one_line(run, table_script, small_set, copy)
    assert files(copy / "results") == before


def test_pictures_are_drawn_for_what_is_there(copy, small_set):
    shutil.rmtree(copy / "results")
    (copy / "weights" / "first_order_net.pth").unlink()
    run(table_script, small_set, copy)
    drawn = {path.name for path in (copy / "results").glob("*.png")}
    assert drawn == {"roc.png", "auc.png", "films.png", "activation_DARTS_V1.png"}


def test_networks_of_different_crops_are_not_compared(copy, table, prepared, one_line):
    save_network(copy / "weights", "DARTS_V2", prepared, crop=64)
    assert "the networks were trained at different crops, {" in one_line(table, copy)


# --- Weights of another set


def test_weights_of_another_set_are_left_out(copy, table, another_set, capsys):
    save_network(copy / "weights", "DARTS_V2", load_set(another_set / "noise"))
    save_network(copy / "weights", "first_order", load_set(another_set / "noise"))
    assert columns(table(copy)) == ["DARTS_V1", "second_order"]
    output = capsys.readouterr().out
    for name in ("DARTS_V2", "first_order"):
        assert f"{name}_net.pth: trained on another set (noise, or another version of noise), left out\n" in output
    assert "is not there" not in output


def test_where_nothing_is_left_one_line_says_so(copy, another_set, one_line):
    for order in ("first", "second"):
        line = one_line(run, table_script, another_set, copy, f"--{'no-' * (order == 'first')}second-order")
        assert f"{order}_order_net.pth: trained on another set" in line
    (copy / "weights" / "first_order_net.pth").unlink()
    assert "first_order_net.pth is missing: run " in one_line(run, table_script, another_set, copy)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_damaged_and_foreign_weights_are_refused(copy, table, one_line):
    path = copy / "weights" / "DARTS_V1_net.pth"
    whole_file = path.read_bytes()
    for content in (b"", whole_file[: len(whole_file) // 2], b"no weights"):
        path.write_bytes(content)
        line = one_line(table, copy)
        assert "DARTS_V1_net.pth: damaged, or not a weights file" in line and "weights_only" not in line
    middle = len(whole_file) // 2
    path.write_bytes(whole_file[:middle] + bytes([whole_file[middle] ^ 1]) + whole_file[middle + 1 :])
    assert "DARTS_V1_net.pth: damaged" in one_line(table, copy)
    torch.save({"weights": Touch(copy / "executed")}, path)
    assert "DARTS_V1_net.pth: damaged, or not a weights file" in one_line(table, copy)
    assert not (copy / "executed").exists()
    saved = torch.load(copy / "weights" / "first_order_net.pth", weights_only=True)
    saved["weights"]["classifier.bias"][3] = torch.nan
    torch.save(saved, path)
    assert "DARTS_V1_net.pth: holds weights that are not finite" in one_line(table, copy)
    saved["weights"]["classifier.bias"][3] = 0
    for part, name in ((saved, "val_auc"), (saved["settings"], "crop")):
        value = part.pop(name)
        torch.save(saved, path)
        assert "DARTS_V1_net.pth: damaged, or not a weights file of this project (KeyError)" in one_line(table, copy)
        part[name] = value
    saved["settings"]["c"] = 8
    torch.save(saved, path)
    assert "DARTS_V1_net.pth: damaged, or not a weights file" in one_line(table, copy)


# --- Other models' predictions


def test_written_predictions_come_back_exactly(copy, table):
    names = {"A": "chexnet", "B": "second_order"}
    options = [f"--predictions={mine}={copy}/results/predictions_{name}.csv" for mine, name in names.items()]
    before = read_scores(copy / "results" / "auc.csv")
    scores = table(copy, *options)
    assert columns(scores) == ["first_order", "DARTS_V1", "second_order", "A", "B"]
    for mine, name in names.items():
        assert scores.loc[mine, AUC].equals(before.loc[name, AUC])
        assert np.isnan(scores.loc[(mine, AVERAGE), "parameters_millions"])
    assert " – | – |\n" in (copy / "results" / "auc.md").read_text(encoding="utf-8")  # the costs of A and B


def test_predictions_called_chexnet_are_what_differences_are_taken_from(copy, table):
    before = read_scores(copy / "results" / "auc.csv")
    scores = table(copy, f"--predictions=chexnet={copy}/results/predictions_chexnet.csv")
    gaps = ["difference", "difference_low", "difference_high"]
    assert scores.loc["first_order", gaps].equals(before.loc["first_order", gaps])


@pytest.mark.parametrize(
    "name", ["second_order_high", "first_order_minus_chexnet", "a|b", "<script>", "../up", "_x $y$", "ä β"]
)
def test_a_column_may_be_called_anything(copy, table, name):
    before = table(copy)
    scores = table(copy, "--predictions", f"{name}={copy}/results/predictions_chexnet.csv")
    assert columns(scores) == [*columns(before), name]
    pd.testing.assert_frame_equal(scores.loc[columns(before)], before, check_exact=True)
    assert name not in ("a|b", "<script>") or name not in (copy / "results" / "auc.md").read_text(encoding="utf-8")
    written = {path.name for path in copy.rglob("predictions_*.csv")}
    assert written == {f"predictions_{network}.csv" for network in NAMES}


@pytest.mark.filterwarnings("error")
def test_every_name_can_be_drawn(copy, small_set):
    shutil.rmtree(copy / "weights")
    names = ["_x $\\frac$", "$", "__", "a$b$c"]
    path = copy / "results" / "predictions_chexnet.csv"
    run(table_script, small_set, copy, *(f"--predictions={name}={path}" for name in names))
    assert columns(read_scores(copy / "results" / "auc.csv")) == names


@pytest.mark.filterwarnings("error")
def test_a_model_of_some_findings_has_its_column(copy, small_set, capsys):
    predictions = pd.read_csv(copy / "results" / "predictions_chexnet.csv")
    predictions.drop(columns=["prob_Mass"]).assign(prob_Edema="n/a").to_csv(copy / "some.csv", index=False)
    before = read_scores(copy / "results" / "auc.csv")
    shutil.rmtree(copy / "weights")
    run(table_script, small_set, copy, "--predictions", f"some={copy}/some.csv")
    assert "some.csv: no numbers for Mass, Edema; columns that are not read: none\n" in capsys.readouterr().out
    scores = read_scores(copy / "results" / "auc.csv")
    known = [finding for finding in FINDINGS if finding not in ("Mass", "Edema")]
    assert scores.loc["some", "auc"].index[scores.loc["some", "auc"].isna()].tolist() == ["Mass", "Edema"]
    assert scores.loc["some", "auc"][known].equals(before.loc["chexnet", "auc"][known])
    markdown = (copy / "results" / "auc.md").read_text(encoding="utf-8")
    assert "] (of 12) |\n" in markdown and f"is over what it knows: {', '.join(known)}.\n" in markdown
    for name in ("auc.md", "index.html"):
        assert "Average of 14" in (copy / "results" / name).read_text(encoding="utf-8")


def test_bad_predictions_are_named_and_change_nothing(copy, table, one_line):
    predictions = pd.read_csv(copy / "results" / "predictions_chexnet.csv")
    predictions.assign(prob_Edema="high").to_csv(copy / "bad.csv", index=False)
    before = files(copy / "results")
    line = one_line(table, copy, "--predictions", f"Bad={copy}/bad.csv")
    assert f"{copy}/bad.csv: film " in line and "Edema: 'high' is not a finite number" in line
    assert files(copy / "results") == before


@pytest.mark.parametrize(
    "option",
    ["Name", "Name=", "=x.csv", " =x.csv", "first_order=x.csv", "a\nb=x.csv", "\udc80=x.csv", "Name=no/file.csv"],
)
def test_bad_prediction_options_are_one_line(tabled, table, one_line, option):
    one_line(table, tabled, "--predictions", option)


def test_a_name_is_taken_once(tabled, table, one_line):
    path = tabled / "results" / "predictions_chexnet.csv"
    assert "not yet in use" in one_line(table, tabled, f"--predictions=A={path}", f"--predictions=A={path}")
