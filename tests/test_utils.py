"""Devices, recipes, prediction, the start of the classifier."""

import subprocess

import numpy as np
import pytest
import torch

import utils
from dataset import FINDINGS, Films, Sampler, load_set
from support import devices
from support.files import InputError
from support.progress import Losses

CPU = torch.device("cpu")


def test_unknown_devices_are_refused():
    for name in ("gpu7", "meta", "", None):
        with pytest.raises(InputError, match="is unknown: use auto, cpu, cuda or mps"):
            devices.select_device(name)
    for name in ("cuda:99", "cuda:x", "mps:7"):
        with pytest.raises(InputError, match=f"device '{name}': there is no such device here"):
            devices.select_device(name)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_for_gpus_that_have_it(native, monkeypatch):
    """A T4, V100 or P100 only emulates it, slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert devices.environment(torch.device("cuda"))["type"] == ("bfloat16" if native else "float32")
    assert devices.environment(CPU)["type"] == "float32"
    with devices.autocast(CPU):
        assert not torch.is_autocast_enabled("cpu")


def rates(schedule, steps, aucs):
    """The learning rate at the end of each epoch, before `after_epoch`, until the schedule is done."""
    seen = []
    for auc in aucs:
        if schedule.done:
            break
        for _ in range(steps):
            schedule.optimizer.step()
            schedule.after_step()
        seen.append(schedule.lr)
        schedule.after_epoch(auc)
    return seen


def test_one_cycle_is_adamw_whose_rate_rises_and_falls_by_the_step():
    schedule = utils.OneCycle([torch.nn.Parameter(torch.zeros(1))], 4, 3, 0.003, 0.05)
    seen = rates(schedule, 1, [0.5] * 12)
    assert max(seen) == seen[2] and 0.0025 < seen[2] < 0.003 and seen[2:] == sorted(seen[2:], reverse=True)
    assert seen[-1] == pytest.approx(0.003 / 25 / 1e4)  # a 10,000th of where it began, a 25th of the highest
    (group,) = schedule.optimizer.param_groups
    assert group["decoupled_weight_decay"] and group["weight_decay"] == 0.05


def test_cosine_is_sgd_whose_rate_falls_by_the_epoch():
    schedule = utils.Cosine([torch.nn.Parameter(torch.zeros(1))], 4, 3, 0.1, 0.9, 3e-4)
    assert rates(schedule, 3, [0.5] * 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    (group,) = schedule.optimizer.param_groups
    assert group["momentum"] == 0.9 and group["weight_decay"] == 3e-4


def test_plateau_is_adam_whose_rate_falls_without_a_better_auc_until_it_is_done():
    schedule = utils.Plateau([torch.nn.Parameter(torch.zeros(1))], 50, 3, 1e-6, patience=1, lr_stop=1e-7)
    # The first epoch is the best, the next changes nothing, the third divides; then every second epoch does.
    assert rates(schedule, 3, [0.5] * 50) == pytest.approx([1e-6] * 3 + [1e-7] * 2)
    better = utils.Plateau([torch.nn.Parameter(torch.zeros(1))], 50, 3, 1e-6, patience=1, lr_stop=1e-7)
    assert rates(better, 3, [0.1 * k for k in range(9)]) == [1e-6] * 9


def test_the_commit_of_another_repository_around_the_project_is_not_recorded(tmp_path, monkeypatch):
    mine = devices.environment(CPU)["commit"]
    assert mine != "unknown"
    make = "git init -q && git -c user.name=a -c user.email=a commit -q --allow-empty -m a"
    subprocess.run(make, shell=True, cwd=tmp_path, check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of that repository
    assert devices.environment(CPU)["commit"] == mine
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setattr(devices, "__file__", str(tmp_path / "project" / "support" / "devices.py"))
    for place in ("support", ".git"):  # git passes over an empty .git
        (tmp_path / "project" / place).mkdir(parents=True)
        assert devices.environment(CPU)["commit"] == "unknown"


class Grey(torch.nn.Module):
    """Logits that are the films' mean grey value; refuses to work in training mode."""

    def forward(self, films):
        assert not self.training
        return films.mean((1, 2, 3))[:, None].expand(-1, len(FINDINGS))


def test_prediction_scores_every_film_once_and_in_order(small_set):
    films = Films(load_set(small_set / "noise"), "test", 64, CPU)
    one, loss = utils.predict(Grey(), films, 5)
    other, _ = utils.predict(Grey(), films, len(films))
    assert one.shape == (len(films), len(FINDINGS)) and one.dtype == np.float64
    assert np.allclose(one, other, rtol=1e-6)
    expected = films.eval_batch(slice(None)).mean((1, 2, 3)).double().sigmoid()
    assert np.allclose(one[:, 3], expected, rtol=1e-6)
    assert np.isfinite(loss)


def test_losses_are_averaged_and_one_that_is_not_finite_ends_the_run(small_set):
    films, losses = Films(load_set(small_set / "noise"), "val", 32, CPU), Losses(CPU)
    sampler, drawn = Sampler(films, 4, torch.Generator()), []
    for loss, mean in ((None, None), (1.0, 1.0), (2.0, 1.5), (float("nan"), None), (4.0, None)):
        sampler.next()
        drawn.append(", ".join(films.names[sampler.index]))
        losses.add("alpha_loss", loss and torch.tensor(loss), sampler)
        if len(drawn) <= 3:
            assert losses.means(7) == {"alpha_loss": mean}
    with pytest.raises(SystemExit, match=f"^error: epoch 7, step 3: the loss on val is nan; .*{drawn[3]}"):
        losses.means(7)


def test_classifier_starts_at_the_findings_frequencies():
    classifier = torch.nn.Linear(5, 2)
    utils.start_at_prevalence(classifier, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(classifier.bias.sigmoid(), torch.tensor([0.25, 0.001]))


def test_multiply_adds_are_counted_forward_and_backward():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(5 * 64, 7))
    film = torch.zeros(1, 3, 8, 8)
    assert utils.count_multiply_adds(lambda: network(film)) == 64 * 5 * 3 * 9 + 5 * 64 * 7
    network[0].requires_grad_(False)  # the linear layer's weights alone have a gradient
    assert utils.count_multiply_adds(lambda: network(film).sum().backward()) == 64 * 5 * 3 * 9 + 2 * 5 * 64 * 7
