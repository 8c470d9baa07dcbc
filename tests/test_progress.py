"""The means of a run's losses."""

import pytest
import torch

from dataset import Films, Sampler, load_set
from support.progress import Losses


def test_losses_that_are_not_finite_end_the_run_and_name_their_films(small_set):
    data, cpu = load_set(small_set / "noise"), torch.device("cpu")
    samplers = [Sampler(Films(data, split, 32, cpu), 4, torch.Generator()) for split in ("train", "val")]
    losses = Losses(cpu)
    assert losses.means(7) == {}
    for k, alpha_loss in enumerate((None, 1.0, 2.0, float("nan"), 3.0)):
        for sampler in samplers:
            sampler.next()
        losses.add("train_loss", torch.tensor(float(k)), samplers[0])
        losses.add("alpha_loss", alpha_loss and torch.tensor(alpha_loss), samplers[1])
        if k == 0:
            assert losses.means(7) == {"train_loss": 0.0, "alpha_loss": None}
        if k == 2:
            assert losses.means(7) == {"train_loss": 1.0, "alpha_loss": 1.5}
        if k == 3:
            films = ", ".join(samplers[1].films.names[samplers[1].index])
    with pytest.raises(SystemExit) as stop:
        losses.means(7)
    assert str(stop.value).startswith("error: epoch 7, step 3: the loss on val is nan; ") and films in str(stop.value)
