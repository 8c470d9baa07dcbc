"""How far a run is: the means of its losses, and the word on a machine that others keep busy."""

import time

import pytest
import torch

from dataset import Films, Sampler, load_set
from support.progress import Losses, Pace

CPU = torch.device("cpu")


def test_losses_that_are_not_finite_end_the_run_and_name_their_films(small_set):
    data, cpu = load_set(small_set / "noise"), torch.device("cpu")
    samplers = [Sampler(Films(data, split, 32, cpu), 4, torch.Generator()) for split in ("train", "val")]
    losses = Losses(cpu)
    assert losses.means(7) == {}
    for k, alpha_loss in enumerate((1.0, 2.0, float("nan"), 3.0)):
        for sampler in samplers:
            sampler.next()
        losses.add({"train": torch.tensor(float(k)), "val": torch.tensor(alpha_loss)}, samplers)
        if k == 1:
            assert losses.means(7) == {"train": 0.5, "val": 1.5}
        if k == 2:
            films = ", ".join(samplers[1].films.names[samplers[1].index])
    with pytest.raises(SystemExit) as stop:
        losses.means(7)
    assert str(stop.value).startswith("error: epoch 7, step 3: the loss on val is nan; ") and films in str(stop.value)


def say(readings, monkeypatch, device=CPU, threads=2, losses=lambda epoch: ["train"]):
    """What Pace says at readings [(step, seconds)], one list for each epoch; losses(epoch): those of a step."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pace, said = Pace(device), []
    for number, epoch in enumerate(readings):
        pace.begin()
        for step, seconds in epoch:
            monkeypatch.setattr(time, "perf_counter", lambda now=seconds: now)
            said.append(pace.read(step, losses(number)))
    return said


def test_steps_that_became_slow_are_met_with_one_line(monkeypatch):
    """1 s a step, then 2.9 s, then 3 s, which is said once; the time between two epochs is no step's."""
    first = [(0, 0), (10, 10), (20, 39), (30, 69), (40, 169)]
    said = say([first, [(0, 1000), (10, 1100)]], monkeypatch)
    assert said[:3] == said[4:] == [""] * 3 and "OMP_NUM_THREADS=1" in said[3]
    assert said[3].startswith("a step takes 3.0 s, 3 times the fastest so far: ")
    assert say([[(0, 0), (10, 10)], [(0, 100), (10, 129)]], monkeypatch) == [""] * 4

    after_warm_up = [[(0, 0), (10, 10)], [(0, 100), (10, 140)]]  # 1 s, then 4 s, with a step of α
    assert any(say(after_warm_up, monkeypatch))
    assert not any(say(after_warm_up, monkeypatch, losses=lambda epoch: ["train", "val"][: epoch + 1]))
    assert not any(say([first], monkeypatch, threads=1)) and not any(say([first], monkeypatch, torch.device("meta")))
