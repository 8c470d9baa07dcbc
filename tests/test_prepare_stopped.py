"""Preparing ChestX-ray14, stopped and started again: whatever the moment, it ends in the same bytes."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import pytest

from data import fetch_chestxray14
from tests.films import SIZE, bytes_of, contents, halves, mirror_files, pack, prepare, run, same_set
from tests.loopback import serve

PROCESSES = multiprocessing.get_context("forkserver")  # which imports once; each run is a process of its own
PROCESSES.set_forkserver_preload(["tests.test_prepare_stopped"])


def run_with(constants, options, signal_number, after):
    """What a process of its own does: the script, which meets a signal, if one is given, after so many seconds."""
    for name, value in constants.items():
        setattr(fetch_chestxray14, name, value)
    if signal_number:
        stop = threading.Timer(after, os.kill, (os.getpid(), signal_number))
        stop.daemon = True
        stop.start()
    raise SystemExit(run(*options))


@pytest.fixture
def script(origin, raw):
    """Calls the script, see `run_with`, which takes raw's films from `origin`; returns its exit status."""
    films = raw / "films" if origin == "images" else raw / "archives"
    options = ["--images" if origin == "images" else "--archives", films, "--labels", raw / "table.csv", "--lists", raw]
    if origin in ("zip", "tar.gz"):
        films.mkdir()
        for k, half in enumerate(halves(raw)):
            (films / f"films_{k}.{origin}").write_bytes(pack(half, "images", f".{origin}"))
    if origin == "mirror":
        options = ["--download", "--split", "all"]
    options += ["--size", SIZE, "--out", raw.parent / "stopped", "--name", "set"]
    with serve() as server:
        server.files, server.delay = mirror_files(raw), 0.01
        constants = {"MIRROR": f"{server.url}/mirror/", "ARCHIVES": [1, 2], "THREADS": 2}

        def call(signal_number=None, after=0.0):
            process = PROCESSES.Process(target=run_with, args=(constants, options, signal_number, after))
            process.start()
            process.join()
            return process.exitcode

        yield call


LONG = [pytest.param(origin, 20, marks=pytest.mark.long) for origin in ("mirror", "images", "zip", "tar.gz")]


@pytest.mark.parametrize(("origin", "all_stops"), [("mirror", 2), *LONG])
def test_stopped_at_any_moment_it_ends_in_the_same_bytes(origin, all_stops, raw, script):
    random_moment = random.Random(origin)  # the moments differ all the same, as runs do
    out, stops = raw.parent / "stopped", 0

    assert script() == 0  # which also imports, once for all processes
    shutil.rmtree(out)
    began = time.perf_counter()
    assert script() == 0
    whole = time.perf_counter() - began
    expected = bytes_of(out / "set")
    assert prepare(raw) == 0 and same_set(out / "set", raw.parent / "out" / "set")
    shutil.rmtree(out)
    while stops < all_stops:
        signal_number = random_moment.choice((signal.SIGKILL, signal.SIGINT))
        if script(signal_number, random_moment.uniform(0, 0.8 * whole)):
            stops += 1
        else:  # it had ended before the signal came: the first run was slow, on a busy machine
            whole *= 0.7
            assert bytes_of(out / "set") == expected
            shutil.rmtree(out)
    assert script() == 0
    assert bytes_of(out / "set") == expected
    assert {path.name for path in out.iterdir()} == {"set", "films_32px"}
    assert {path.name for path in (out / "films_32px").iterdir()} == {"lock", *contents(raw / "films")}
