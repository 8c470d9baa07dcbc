"""Nothing is lost: runs killed, stopped, damaged, short of disk or memory, and started twice."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import chexnet
import search_train
import val_train
from dataset import Films, Sampler
from genotypes import load_genotype, random_genotype
from model_search import Network
from support import records, runs
from tests.conftest import equal
from tests.films import flip_a_bit
from tests.test_scripts import ROOT, metrics, run, small_options


@pytest.fixture(autouse=True)
def signals_are_heard():
    """Also where the tests themselves were started with signals ignored, as in the background of a script."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    hear()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def hear():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


CHANGED = ["--standardise", "--contrast", "0.3", "--turn", "15"]  # what films go through
SCRIPTS = {
    "search": (search_train, [], "search_first_order"),
    "second": (search_train, ["--second-order"], "search_second_order"),
    "val": (val_train, ["--genotype", "DARTS_V2", "--drop-path", "0.3", *CHANGED], "weights/DARTS_V2"),
    "chexnet": (chexnet, [], "weights/chexnet"),
}


def start(name, data, out, *options):
    """Run a script in this process as its command line would, 2 epochs of 3 steps."""
    script, more, _ = SCRIPTS[name]
    run(script, data, out, *more, "--epochs", 2, *options)


@pytest.fixture(scope="session")
def undisturbed(small_set, tmp_path_factory):
    """By the script's name: the folder of a run that was never stopped."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            start(name, small_set, made[name])
        return made[name]

    return get


def compare(name, whole, stopped):
    """What both runs have left is equal, times aside: what was best, metrics, genotypes, weights."""
    folder = SCRIPTS[name][2]
    states = [torch.load(side / folder / "checkpoint.pt") for side in (whole, stopped)]
    for state in states:
        assert state["finished"] and not state["states"]
        del state["seconds"], state["lengths"], state["record"]["environment"]
    equal(*states)
    rows = [[row | {"seconds": 0} for row in metrics(side / folder)] for side in (whole, stopped)]
    assert rows[0] == rows[1]
    networks, cells = ([path.relative_to(whole) for path in whole.rglob(n)] for n in ("*_net.pth", "genotype*.txt"))
    assert networks or cells
    for path in networks:
        equal(torch.load(whole / path), torch.load(stopped / path))
    for path in cells:
        assert (whole / path).read_text() == (stopped / path).read_text()
    assert not list(stopped.rglob("*.part"))


# --- Killed


@pytest.mark.long
@pytest.mark.parametrize(("name", "kills"), [("search", 20), ("second", 5), ("val", 5), ("chexnet", 5)])
def test_killed_runs_end_as_one_never_stopped(name, kills, small_set, tmp_path, undisturbed):
    """Every second kill falls on a file operation: an opening, a rename, a truncation.

    A process of its own, which has computed nothing yet, forks those that are killed: none has to import torch.
    """
    command = [sys.executable, __file__, name, small_set, tmp_path, str(kills), str(random.randrange(10**6))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    driver = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert driver.returncode == 0, driver.stderr[-2000:]
    for line in driver.stdout.split():
        compare(name, undisturbed(name), tmp_path / line)


def forked(name, data, out, at_operation):
    """Start the script in a fork, which kills itself before that file operation below `out`, if given."""
    if pid := os.fork():
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.truncate") and str(arguments[0]).startswith(out):
            seen += 1
            if seen == at_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    runs.CHECKPOINT_MINUTES = 0  # a checkpoint after every step
    start(name, data, out)
    os._exit(0)


def drive(name, data, folder, kills, seed):
    """Runs of a script in `folder`/0, 1, ..., killed at random moments and started again; prints the finished ones."""
    rng = random.Random(seed)
    print("seed", seed, file=sys.stderr)
    killed, run, seconds = 0, 0, 4.0
    while killed < kills:
        out, started = f"{folder}/{run}", time.monotonic()
        by_operation = killed % 2
        pid = forked(name, data, out, rng.randrange(1, 25) if by_operation else None)
        if not by_operation:
            time.sleep(rng.uniform(0, seconds / 2))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            assert status == 0
            seconds = min(seconds, time.monotonic() - started)
            print(run)
            run += 1
    for attempt in range(2):  # the last one to its end, and once more: it is finished
        assert os.waitpid(forked(name, data, f"{folder}/{run}", None), 0)[1] == 0, attempt
    print(run)


# --- Stopped


def sending(number, calls, original):
    """`original`, which sends this process the signal in its call number `calls`."""
    made = itertools.count(1)

    def interrupt(*arguments):
        if next(made) == calls:
            os.kill(os.getpid(), number)
        return original(*arguments)

    return interrupt


TERM, INT, HUP, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1


@pytest.mark.parametrize(
    ("name", "number"),
    [("search", TERM), ("search", INT), ("val", TERM), ("val", INT), ("val", HUP), ("val", USR1)]
    + [pytest.param(*pair, marks=pytest.mark.long) for pair in (("second", TERM), ("chexnet", INT))],
)
def test_a_stopped_run_saves_its_step_and_goes_on(name, number, small_set, tmp_path, undisturbed, monkeypatch, capsys):
    """SIGTERM comes in the second step of the second epoch, SIGINT during the evaluation after it."""
    place, after = (Sampler, "next"), 5 if name == "val" else 10
    if number == INT:
        place, after = (Films, "eval_batch"), 3
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(*place, sending(number, after, getattr(*place)))
        start(name, small_set, tmp_path)
    assert stop.value.code == 128 + number
    assert f"stopped by {number.name}; the same command goes on" in capsys.readouterr().err
    assert not list(tmp_path.glob("weights/*_net.pth"))
    log = tmp_path / SCRIPTS[name][2] / "log.txt"
    log.open("a").write("written after the checkpoint\n")
    start(name, small_set, tmp_path)
    assert f"continued after epoch 1, step {3 if number == INT else 2}" in capsys.readouterr().out
    assert "written after the checkpoint" not in log.read_text()
    assert signal.getsignal(number) == before
    compare(name, undisturbed(name), tmp_path)


def test_a_signal_that_is_ignored_stays_ignored(small_set, tmp_path, monkeypatch):
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(Sampler, "next", sending(signal.SIGHUP, 2, Sampler.next))
        start("val", small_set, tmp_path)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_a_platform_lacks_are_no_error(small_set, tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGUSR1")
    start("val", small_set, tmp_path)
    assert len(metrics(tmp_path / "weights" / "DARTS_V2")) == 2


def test_ctrl_c_saves_a_checkpoint_when_the_screen_has_gone(small_set, tmp_path):
    """As in `python search_train.py 2>&1 | tee log.txt`: Ctrl-C ends tee first."""
    options = small_options(search_train, small_set, tmp_path)
    command = [sys.executable, ROOT / "search_train.py", *options, "--epochs", "50", "--warm-up", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    look = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment, "preexec_fn": hear}
    with subprocess.Popen(command, **look) as process:
        while b"best so far" not in process.stdout.readline():
            pass
        process.stdout.close()
        time.sleep(1)  # lines that nobody reads are printed meanwhile
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    folder = tmp_path / "search_first_order"
    saved = torch.load(folder / "checkpoint.pt")
    assert 0 < saved["progress"]["epoch"] < 50 and not saved["finished"]
    assert len(metrics(folder)) == saved["progress"]["epoch"]


@pytest.fixture(scope="session")
def stopped_once(small_set, tmp_path_factory):
    """A search that was stopped in the second step of its second epoch."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Sampler, "next", sending(TERM, 10, Sampler.next))
        start("search", small_set, out)
    return out


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The run folder of a copy of it, below tmp_path."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "search_first_order"


# --- Damaged


def test_a_damaged_checkpoint_falls_back_to_the_one_before(stopped, small_set, tmp_path, undisturbed, capsys):
    content = (stopped / "checkpoint.pt").read_bytes()
    (stopped / "checkpoint.pt").write_bytes(flip_a_bit(content, len(content) // 2))
    start("search", small_set, tmp_path)
    out = capsys.readouterr().out
    assert "warning: " in out and "checkpoint.pt is damaged" in out and "continued after epoch 1, step 0" in out
    compare("search", undisturbed("search"), tmp_path)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(stopped, small_set, tmp_path, monkeypatch):
    """Killed while the first checkpoint after the fallback is put into its place."""
    good = (stopped / "checkpoint_before.pt").read_bytes()
    (stopped / "checkpoint.pt").write_bytes(b"damaged")
    replace = Path.replace

    def killed(path, target):
        if path.name == "checkpoint.pt.part":
            raise InterruptedError
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(InterruptedError):
        start("search", small_set, tmp_path)
    assert (stopped / "checkpoint_before.pt").read_bytes() == good


def test_without_a_whole_checkpoint_the_run_is_not_started_over(stopped, small_set, tmp_path, one_line):
    for path in stopped.glob("checkpoint*"):
        path.write_bytes(path.read_bytes()[:-1000])
    log = (stopped / "log.txt").read_bytes()
    assert "checkpoints are damaged" in one_line(start, "search", small_set, tmp_path)
    assert (stopped / "log.txt").read_bytes() == log


def test_a_drive_that_fails_is_one_line_and_loses_nothing(
    stopped, small_set, tmp_path, undisturbed, monkeypatch, one_line
):
    """A checkpoint that cannot be read now is not damaged."""

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    before = {path: path.read_bytes() for path in stopped.glob("checkpoint*")}
    for place, name, file in ((Path, "read_bytes", "checkpoint.pt"), (runs, "open", "log.txt")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stale, raising=False)
            assert f"{file}: Stale file handle: check it" in one_line(start, "search", small_set, tmp_path)
        assert {path: path.read_bytes() for path in stopped.glob("checkpoint*")} == before
    start("search", small_set, tmp_path)
    compare("search", undisturbed("search"), tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("file", ["checkpoint.pt.part", "genotype_last.txt.part"])
def test_a_full_disk_is_one_line_and_loses_nothing(file, stopped, small_set, tmp_path, undisturbed, one_line):
    saved = torch.load(stopped / "checkpoint.pt")
    place = stopped / file
    place.symlink_to("/dev/full")  # every write to it fails as on a full disk
    line = one_line(start, "search", small_set, tmp_path, status=1)
    assert "No space left on device; make room and repeat the command" in line
    if file == "checkpoint.pt.part":  # the texts are written after it, from it
        equal(torch.load(stopped / "checkpoint.pt"), saved)
    place.unlink()
    start("search", small_set, tmp_path)
    compare("search", undisturbed("search"), tmp_path)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_a_run_before_anything_is_written(what, stopped, small_set, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in stopped.iterdir() if path.name != "lock"}
    train_batch, backward, bad = Films.train_batch, torch.Tensor.backward, []

    def spoiled_films(films, index, *more):
        batch, labels = train_batch(films, index, *more)
        if films.split == "train":
            bad.append(films.names[index])
        return batch * float("nan" if what == "loss" and films.split == "train" else 1), labels

    def spoiled_gradient(loss, inputs):
        backward(loss, inputs=inputs)
        inputs[0].grad.mul_(float("inf" if what == "gradient" else 1))

    monkeypatch.setattr(Films, "train_batch", spoiled_films)
    monkeypatch.setattr(torch.Tensor, "backward", spoiled_gradient)
    monkeypatch.setattr(runs, "CHECKPOINT_MINUTES", 0)  # one is due just after it
    with pytest.raises(SystemExit) as stop:
        start("search", small_set, tmp_path)
    line = str(stop.value)
    assert "epoch 2, step 3: the loss on train is nan" in line and ", ".join(bad[0]) in line
    del before[stopped / "log.txt"]  # it says that the run was continued
    assert {path: path.read_bytes() for path in before} == before


def test_a_foreign_network_in_the_place_of_the_product_is_not_overwritten(
    small_set, tmp_path, monkeypatch, one_line, undisturbed
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Sampler, "next", sending(TERM, 4, Sampler.next))
        start("val", small_set, tmp_path)
    product = tmp_path / "weights" / "DARTS_V2_net.pth"
    product.write_bytes(b"a colleague's")
    assert "is there, but is not of this run" in one_line(start, "val", small_set, tmp_path)
    assert product.read_bytes() == b"a colleague's"
    product.unlink()
    start("val", small_set, tmp_path)
    compare("val", undisturbed("val"), tmp_path)
    other = torch.load(product) | {"epoch": 7}
    torch.save(other, product)
    assert "is there, but is not of this run" in one_line(start, "val", small_set, tmp_path)
    equal(torch.load(product), other)


@pytest.mark.parametrize("name", ["search", "val"])
def test_what_a_finished_run_has_made_comes_back_from_its_checkpoint(name, small_set, tmp_path, undisturbed):
    shutil.copytree(undisturbed(name), tmp_path, dirs_exist_ok=True)
    for product in [*tmp_path.rglob("*_net.pth"), *tmp_path.rglob("genotype*.txt")]:
        product.unlink()
    start(name, small_set, tmp_path)
    compare(name, undisturbed(name), tmp_path)
    for product in tmp_path.rglob("*_net.pth"):
        product.write_bytes(product.read_bytes()[:-1000])
    start(name, small_set, tmp_path)
    compare(name, undisturbed(name), tmp_path)


@pytest.mark.parametrize("name", ["search", "val"])
def test_the_best_of_an_epoch_that_is_done_again_is_forgotten(name, small_set, tmp_path, monkeypatch, one_line):
    """Epoch 2 is the best, but its checkpoint fails; repeated, it has another AUC and is no longer the best."""
    script, _, folder = SCRIPTS[name]
    aucs, cells = iter([0.6, 0.8, 0.55]), map(random_genotype, range(3))
    monkeypatch.setattr(script, "evaluate", lambda *_: (next(aucs), 1.0))
    monkeypatch.setattr(Network, "genotype", lambda _: next(cells))

    def full(path, state, before=None):
        if state["progress"]["epoch"] == 2:
            raise OSError(28, "No space left on device", "checkpoint.pt")
        save_state(path, state, before)

    save_state = runs.save_state
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_state", full)
        assert "No space left" in one_line(start, name, small_set, tmp_path, status=1)
    start(name, small_set, tmp_path)
    if name == "search":
        assert load_genotype(tmp_path / folder / "genotype.txt") == random_genotype(0)
        assert load_genotype(tmp_path / folder / "genotype_last.txt") == random_genotype(2)
    else:
        saved = torch.load(tmp_path / "weights" / "DARTS_V2_net.pth")
        assert (saved["epoch"], saved["val_auc"]) == (1, 0.6)


# --- Twice, and elsewhere

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire(timeout=0)
print(flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_is_refused_until_the_first_is_dead(small_set, tmp_path, one_line):
    folder = tmp_path / "search_first_order"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, folder / "lock", "99"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        line = one_line(start, "search", small_set, tmp_path)
        assert "search_first_order: another process works there (one stopped with Ctrl-Z goes on by `fg`" in line
        assert "another process works there" in one_line(start, "search", small_set, tmp_path, "--fresh")
        other.kill()
    assert os.listdir(folder) == ["lock"]
    start("search", small_set, tmp_path)


def test_a_run_holds_its_lock_until_it_has_finished(small_set, tmp_path, monkeypatch):
    held = []

    def evaluate(*_):
        command = [sys.executable, "-c", HOLD, tmp_path / "search_first_order" / "lock", "0"]
        held.append(b"Timeout" in subprocess.run(command, capture_output=True).stderr)
        return 0.5, 1.0

    monkeypatch.setattr(search_train, "evaluate", evaluate)
    start("search", small_set, tmp_path)
    assert held == [True, True]
    FileLock(tmp_path / "search_first_order" / "lock").acquire(timeout=0)


def test_going_on_in_another_environment_warns(stopped, small_set, tmp_path, capsys):
    saved = torch.load(stopped / "checkpoint.pt")
    now = dict(saved["record"]["environment"])
    saved["record"]["environment"] |= dict.fromkeys(records.WITH_EFFECT, "another")
    torch.save(saved, stopped / "checkpoint.pt")
    start("search", small_set, tmp_path)
    out = capsys.readouterr().out
    assert out.count("warning: ") == len(records.WITH_EFFECT) == 7
    for name in records.WITH_EFFECT:
        assert f"warning: {name} was 'another', is {now[name]!r}: the result may differ" in out


if __name__ == "__main__":
    torch.set_num_threads(1)
    drive(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
