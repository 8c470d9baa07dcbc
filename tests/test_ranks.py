"""Two ranks on CPUs (gloo), one thread each: equal on both, equal to one, and never a hang."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from PIL import Image

import chexnet
import search_train
import test as table_script
import utils
from architect import Architect
from dataset import FINDINGS, Films, Sampler, load_set
from genotypes import PUBLISHED
from model_eval import Network as DerivedNetwork
from model_search import Network
from support import ranks, runs
from tests.conftest import equal
from tests.test_resume import compare, start
from tests.test_scripts import ROOT, metrics, run, small_options
from tests.test_table import save_network

CPU = torch.device("cpu")
BATCH = 8
ORDERS = ("first", "second", "exact")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def search_steps(films, order, same_slice=False, steps=2):
    """α and w after every step of a small search, and the collectives of a step.

    same_slice: every rank is fed the first half of each batch.
    """
    torch.manual_seed(0)
    network = Network(4, len(FINDINGS), 4)
    weights = network.weight_parameters()
    w_optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=3e-4)
    alpha_optimizer = torch.optim.Adam(network.arch_parameters(), lr=0.01, betas=(0.5, 0.999))
    architect = Architect(network, utils.criterion, w_optimizer, alpha_optimizer, order != "first", order == "exact")
    generator = torch.Generator().manual_seed(1)
    samplers = [Sampler(films, BATCH, generator) for _ in range(2)]
    if same_slice:
        for sampler in samplers:
            sampler.part = slice(0, BATCH // 2)
    states = []
    with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as collective:
        for _ in range(steps):
            trn, val = (sampler.next() for sampler in samplers)
            alpha_loss = architect.step(trn, val)
            loss = utils.descend(utils.criterion(network(trn[0]), trn[1]), weights, w_optimizer, 5.0)
            parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
            states.append(parameters | {"losses": torch.stack([loss, alpha_loss])})
    return {"states": states, "collectives": collective.call_count / steps}


def worker(data, out):
    """What each of two ranks computes for the tests, written to `out`/<rank>.pt."""
    torch.set_num_threads(1)
    ranks.join(CPU)
    films = Films(load_set(data), "train", 32, CPU)
    result = {}
    for order in ORDERS:
        result[order] = search_steps(films, order)
        result[order, "same"] = search_steps(films, order, same_slice=True)
    sampler = Sampler(films, BATCH, torch.Generator().manual_seed(2))
    result["batches"] = [sampler.next() for _ in range(8)]  # two passes
    torch.manual_seed(3)
    network = DerivedNetwork(4, len(FINDINGS), 4, PUBLISHED["DARTS_V1"])
    network(films.eval_batch(slice(ranks.rank(), ranks.rank() + 8)))  # other BatchNorm statistics on every rank
    eval_batch, seen = films.eval_batch, []
    films.eval_batch = lambda batch: seen.append((batch.start, batch.stop)) or eval_batch(batch)
    result["predictions"] = torch.from_numpy(utils.predict(network, films, 5)[0])
    result["seen"] = seen
    result["buffers"] = dict(network.named_buffers())
    torch.save(result, Path(out) / f"{ranks.rank()}.pt")


@pytest.fixture
def films(small_set):
    return Films(load_set(small_set / "noise"), "train", 32, CPU)


@pytest.fixture(scope="session")
def both(small_set, tmp_path_factory):
    """What the two ranks have computed."""
    out = tmp_path_factory.mktemp("ranks")
    command = [*TORCHRUN, __file__, str(small_set / "noise"), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
def test_both_ranks_hold_the_same_bits_after_every_step_those_of_one_process_fed_the_same_slice(both, films, order):
    equal(both[0][order], both[1][order])
    assert both[0][order]["collectives"] == (2 if order == "first" else 4)
    alone = search_steps(films, order, same_slice=True)
    equal(both[0][order, "same"]["states"], alone["states"])
    assert not torch.equal(both[0][order]["states"][0]["losses"], alone["states"][0]["losses"])


@pytest.mark.long
def test_the_slices_of_both_ranks_are_the_batch_of_one(both, films):
    sampler = Sampler(films, BATCH, torch.Generator().manual_seed(2))
    for first, second in zip(both[0]["batches"], both[1]["batches"], strict=True):
        for whole, *parts in zip(sampler.next(), first, second, strict=True):
            assert torch.equal(whole, torch.cat(parts))


@pytest.mark.long
def test_evaluation_scores_every_film_once_with_the_statistics_of_rank_0(both, films):
    torch.manual_seed(3)
    network = DerivedNetwork(4, len(FINDINGS), 4, PUBLISHED["DARTS_V1"])
    network(films.eval_batch(slice(0, 8)))
    alone = torch.from_numpy(utils.predict(network, films, 5)[0])
    for rank in both:
        assert torch.equal(rank["predictions"], alone)
        equal(rank["buffers"], dict(network.named_buffers()))
    seen = sorted(both[0]["seen"] + both[1]["seen"])
    assert seen == [(k, k + 5) for k in range(0, len(films), 5)] and both[0]["seen"] and both[1]["seen"]


def launch(script, data, out, *options):
    """A script under torchrun with two ranks, which write a checkpoint and ask for signals after every step."""
    command = [*TORCHRUN, __file__, script.__file__, *small_options(script, data, out), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def finished(process):
    """What a process prints that ends well."""
    printed, error = process.communicate(timeout=200)
    assert process.returncode == 0, error[-3000:]
    return printed


def test_weights_that_no_output_depends_on_are_left_alone_on_several_ranks(monkeypatch):
    """As in a genotype whose cells leave a node out; here each rank has the same gradients."""
    used, unused = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    weights, before = [*used.parameters(), *unused.parameters()], unused.weight.clone()
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.mul_(2))
    loss = utils.descend(used(torch.ones(4, 3)).mean(), weights, torch.optim.SGD(weights, 0.1, weight_decay=0.1))
    assert loss.isfinite() and torch.equal(used.weight.grad, torch.ones(1, 3)) and torch.equal(unused.weight, before)


def test_drop_path_is_sliced_as_the_films_are(small_set, tmp_path, monkeypatch):
    forward, seen = DerivedNetwork.forward, []

    def noted(network, films, keep=None):
        if network.training:
            seen.append((len(films), keep.tolist()))
        return forward(network, films)

    monkeypatch.setattr(ranks, "part", lambda batch_size: slice(10, 16))
    monkeypatch.setattr(DerivedNetwork, "drop_path", lambda network, films, *_: torch.arange(films))
    monkeypatch.setattr(DerivedNetwork, "forward", noted)
    start("val", small_set, tmp_path)
    assert seen == [(6, [10, 11, 12, 13, 14, 15])] * 6


@pytest.mark.long
def test_chexnet_trains_on_two_ranks(small_set, tmp_path):
    printed = finished(launch(chexnet, small_set, tmp_path))
    assert printed.count("\n      1  ") == len(metrics(tmp_path / "weights" / "chexnet")) == 1
    assert (tmp_path / "weights" / "chexnet_net.pth").exists()


@pytest.mark.long
def test_two_ranks_share_the_work_of_the_table(small_set, tmp_path, table_alone):
    data = load_set(small_set / "noise")
    save_network(tmp_path / "weights", "first_order", data)
    (tmp_path / "own").mkdir()
    Image.fromarray(data.images[0]).save(tmp_path / "own" / "a.png")
    options = ["--films", str(tmp_path / "own"), "--batch-size", "5"]
    assert finished(launch(table_script, small_set, tmp_path, *options)).count("**AUC on the test split") == 1
    tables = {path: path.read_bytes() for path in (tmp_path / "results").glob("*.csv")}
    run(table_script, small_set, tmp_path, *options)
    assert len(tables) == 5 and tables == {path: path.read_bytes() for path in tables}


def pid_of_rank_1(process):
    """Of the processes that torchrun has started (Linux)."""
    pids = [pid for path in Path(f"/proc/{process.pid}/task").glob("*/children") for pid in path.read_text().split()]
    (found,) = [pid for pid in pids if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return int(found)


def search_on_two_ranks(data, out):
    return launch(search_train, data, out, "--epochs", "2")


def end_one_rank(number, data, out):
    """Begin a search on two ranks, send the second one a signal after the first epoch; what standard error has then."""
    process, metrics_of = search_on_two_ranks(data, out), out / "search_first_order" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics_of.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.02)
    os.kill(pid_of_rank_1(process), number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and metrics_of.read_text().count("\n") == 1
    return error


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_a_rank_that_dies_ends_the_run_which_goes_on(small_set, tmp_path, capsys):
    """With the same number of ranks as if nothing had happened, and with another one."""
    finished(search_on_two_ranks(small_set, tmp_path / "whole"))
    end_one_rank(signal.SIGKILL, small_set, tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    finished(search_on_two_ranks(small_set, tmp_path / "killed"))
    compare("search", tmp_path / "whole", tmp_path / "killed")
    start("search", small_set, tmp_path / "alone")
    out = capsys.readouterr().out
    assert "continued after epoch 1" in out and "warning: ranks was 2, is 1" in out
    assert len(metrics(tmp_path / "alone" / "search_first_order")) == 2


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_a_signal_to_one_rank_stops_both_and_the_run_goes_on(small_set, tmp_path):
    assert end_one_rank(signal.SIGTERM, small_set, tmp_path).count("stopped by SIGTERM") == 2
    finished(search_on_two_ranks(small_set, tmp_path))
    assert len(metrics(tmp_path / "search_first_order")) == 2


def test_a_batch_that_the_ranks_cannot_share_is_refused(monkeypatch):
    assert ranks.part(5) == slice(0, 5)
    monkeypatch.setattr(ranks, "count", lambda: 3)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert ranks.part(6) == slice(2, 4)
    with pytest.raises(ValueError, match="batch size 5 cannot be divided among 3 ranks"):
        ranks.part(5)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="more processes than there are GPUs, 1: --nproc-per-node 1"):
        ranks.join(torch.device("cuda"))


if __name__ == "__main__":
    if sys.argv[1].endswith(".py"):
        runs.CHECKPOINT_MINUTES, runs.LOG_EVERY = 0, 1
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        worker(*sys.argv[1:])
