"""Devices, prediction, the start of the classifier."""

import numpy as np
import pytest
import torch

import utils
from dataset import FINDINGS, Films, Sampler, load_set
from support import runs
from support.files import InputError
from support.runs import Losses


def test_unknown_devices_are_refused():
    for name in ("gpu7", "meta", "", "cuda:x"):
        with pytest.raises(InputError, match="is unknown: use auto, cpu, cuda or mps"):
            utils.select_device(name)
    for name, kind in (("cuda:99", "CUDA"), ("mps:7", "MPS")):
        with pytest.raises(InputError, match=f"device '{name}': there is no such {kind} device here"):
            utils.select_device(name)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_for_gpus_that_have_it(native, monkeypatch):
    """A T4, V100 or P100 only emulates it, slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert runs.environment(torch.device("cuda"))["type"] == ("bfloat16" if native else "float32")
    assert runs.environment(torch.device("cpu"))["type"] == "float32"
    with utils.autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


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
    losses = Losses(cpu)
    assert losses.means() == {}
    for k, alpha_loss in enumerate((1.0, 2.0, float("nan"), 3.0)):
        for sampler in samplers:
            sampler.next()
        losses.add({"train": torch.tensor(float(k)), "val": torch.tensor(alpha_loss)}, samplers)
        if k == 1:
            assert losses.means() == {"train": 0.5, "val": 1.5}
        if k == 2:
            films = ", ".join(samplers[1].films.names[samplers[1].index])
    with pytest.raises(SystemExit) as stop:
        losses.means()
    assert str(stop.value).startswith("error: epoch 1, step 3: the loss on val is nan; ") and films in str(stop.value)


def test_classifier_starts_at_the_findings_frequencies():
    classifier = torch.nn.Linear(5, 2)
    utils.start_at_prevalence(classifier, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(classifier.bias.sigmoid(), torch.tensor([0.25, 0.001]))
