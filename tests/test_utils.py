"""Settings from constants, AUC, prediction, losses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import utils
from dataset import FINDINGS, Films, Sampler, load_set
from support.settings import parse_settings, read_constants

SCRIPT = '''"""What it does.

More.
"""
NAME = "phantom"  # not an option by accident
ORDER = False  # True or False
RATE = {"phantom": 6e-3, "chestxray14": 3e-4}  # 100% of it
EPOCHS = {"phantom": 8, "chestxray14": 50}  # passes
FAST = {"phantom": True, "chestxray14": False}  # per set
DATASET = "phantom"  # which set
FILES = []  # NAME=FILE
lower = 3
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_settings_are_the_constants_and_each_is_an_option(script):
    settings = parse_settings(script, [])
    assert vars(settings) == {
        "name": "phantom", "order": False, "rate": 6e-3, "epochs": 8, "fast": True, "dataset": "phantom", "files": [],
    }  # fmt: skip
    given_options = [
        "--order",
        "--rate",
        "1",
        "--epochs",
        "3",
        "--no-fast",
        "--name",
        "x",
        "--files=a=b",
        "--files=c=d",
    ]
    settings = parse_settings(script, given_options)
    assert vars(settings) == {
        "name": "x", "order": True, "rate": 1.0, "epochs": 3, "fast": False, "dataset": "phantom",
        "files": ["a=b", "c=d"],
    }  # fmt: skip


def test_a_dict_gives_the_chosen_sets_value_and_other_sets_the_phantoms(script):
    toy = parse_settings(script, ["--dataset", "chestxray14"])
    assert (toy.rate, toy.epochs, toy.fast) == (3e-4, 50, False)
    assert parse_settings(script, ["--dataset", "nih_mini"]).epochs == 8
    assert parse_settings(script, ["--dataset", "chestxray14", "--epochs", "2"]).epochs == 2


def test_constants_that_are_no_plain_values_are_named_with_their_line(script, one_line):
    script.write_text(SCRIPT.replace('"phantom"  # which set', '"phan" + "tom"  # which set'))
    assert "line 10: DATASET must be a plain value" in one_line(parse_settings, script, [])


def test_help_shows_the_comments(script, capsys):
    with pytest.raises(SystemExit):
        parse_settings(script, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text and "100% of it" in text and "--no-order" in text and "lower" not in text


@pytest.mark.parametrize("arguments", [["--epochs", "few"], ["--epoch", "3"], ["--epochs"], ["3"]])
def test_bad_options_are_one_line(script, arguments, one_line):
    one_line(parse_settings, script, arguments)


@given(st.one_of(st.floats(), st.integers().map(float)))
def test_any_number_is_kept_as_it_is_or_refused(tmp_path_factory, number):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(SCRIPT)
    good = 0 <= number < float("inf")
    try:
        assert parse_settings(path, [f"--rate={number!r}"]).rate == number and good
    except SystemExit as stop:
        assert stop.code == 2 and not good


@given(st.lists(st.text(max_size=8), max_size=4))
def test_any_arguments_give_settings_or_an_exit(tmp_path_factory, arguments):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(SCRIPT)
    try:
        assert isinstance(parse_settings(path, arguments).epochs, int)
    except SystemExit as stop:
        assert stop.code in (0, 2)


@pytest.mark.parametrize("name", ["search_train", "val_train", "chexnet", "test"])
def test_every_constant_of_the_scripts_is_explained(name):
    constants = read_constants(f"{name}.py")
    assert len(constants) >= 6
    for constant, value, comment in constants:
        assert comment, constant
        if isinstance(value, dict):
            assert list(value) == ["phantom", "chestxray14"], constant


def test_unknown_devices_are_refused(one_line):
    for name in ("gpu7", "meta", "" if torch.cuda.is_available() else "cuda"):
        assert "use auto, cpu, cuda or mps" in one_line(utils.select_device, name)


def test_auc_equals_scikit_learns_and_is_nan_without_both_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 4))
    labels[:, 1], labels[:, 2] = 0, 1
    scores = rng.integers(0, 5, (60, 4)) / 4  # with ties
    auc = utils.auc_per_finding(labels, scores)
    assert np.isnan(auc[[1, 2]]).all()
    assert auc[0] == roc_auc_score(labels[:, 0], scores[:, 0])
    assert utils.mean_auc(auc) == pytest.approx((auc[0] + auc[3]) / 2)
    assert np.isnan(utils.mean_auc([np.nan, np.nan]))


def test_auc_counts_a_tie_as_half():
    assert utils.auc_per_finding([[0], [1], [0], [1]], [[0.1], [0.4], [0.4], [0.9]])[0] == 0.875


class Grey(torch.nn.Module):
    """Logits that are the films' mean grey value; refuses to work in training mode."""

    def forward(self, films):
        assert not self.training
        return films.mean((1, 2, 3))[:, None].expand(-1, len(FINDINGS))


def test_prediction_scores_every_film_once_and_in_order(small_set):
    films = Films(load_set(small_set / "small"), "test", 64, torch.device("cpu"))
    one, loss = utils.predict(Grey(), films, 5)
    other, _ = utils.predict(Grey(), films, len(films))
    assert one.shape == (len(films), len(FINDINGS)) and one.dtype == np.float64
    assert np.allclose(one, other, rtol=1e-6)
    expected = films.eval_batch(slice(None))[0].mean((1, 2, 3)).double().sigmoid()
    assert np.allclose(one[:, 3], expected, rtol=1e-6)
    assert np.isfinite(loss)


def test_losses_that_are_not_finite_end_the_run_and_name_their_films(small_set):
    data, cpu = load_set(small_set / "small"), torch.device("cpu")
    samplers = [Sampler(Films(data, split, 32, cpu), 4, torch.Generator()) for split in ("train", "val")]
    losses = utils.Losses(*samplers)
    for k, alpha_loss in enumerate((1.0, 2.0, float("nan"), 3.0)):
        for sampler in samplers:
            sampler.next()
        losses.add(torch.tensor(float(k)), torch.tensor(alpha_loss))
        if k == 1:
            assert losses.means() == [0.5, 1.5]
        if k == 2:
            films = ", ".join(samplers[1].films.names[samplers[1].index])
    with pytest.raises(SystemExit) as stop:
        losses.means()
    assert str(stop.value).startswith("error: epoch 1, step 3: the loss on val is nan; ") and films in str(stop.value)


def test_classifier_starts_at_the_findings_frequencies():
    classifier = torch.nn.Linear(5, 2)
    utils.start_at_prevalence(classifier, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(classifier.bias.sigmoid(), torch.tensor([0.25, 0.001]))
