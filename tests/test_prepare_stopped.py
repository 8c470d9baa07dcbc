"""Preparing ChestX-ray14, stopped and started again: whatever the moment, it ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.films import REPO, SIZE, bytes_of, contents, halves, mirror_files, pack, prepare, same_set
from tests.loopback import serve

DRIVER = """
import json, os, sys
from data import fetch_chestxray14, prepare_chestxray14
for line in sys.stdin:
    constants, options = json.loads(line)
    if not (child := os.fork()):
        for name, value in constants.items():
            setattr(fetch_chestxray14, name, value)
        os._exit(prepare_chestxray14.main(options))
    print(child, flush=True)
    sys.stdin.readline()  # until then its number is not given to another process
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""  # imports once; each run is a process of its own


class Driver:
    """A process that runs the script with the same options, each time in a process of its own."""

    def __init__(self, constants, options):
        self.line = json.dumps([constants, [str(option) for option in options]]) + "\n"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=REPO, text=True, **pipes)

    def tell(self, text):
        """Send a line to the driver; returns the number that it answers."""
        self.process.stdin.write(text)
        self.process.stdin.flush()
        while not (said := self.process.stdout.readline()).strip().lstrip("-").isdigit():  # the lines of the run itself
            assert said
        return int(said)

    def run(self, signal_number=None, after=0.0):
        """The exit status of a run, to which a signal is sent after so many seconds."""
        child = self.tell(self.line)
        if signal_number:
            time.sleep(after)
            os.kill(child, signal_number)
        return self.tell("\n")


@pytest.fixture
def driver(origin, raw):
    """A Driver of runs that take raw's films from `origin`."""
    films = raw / "films" if origin == "images" else raw / "archives"
    options = ["--images" if origin == "images" else "--archives", films, "--labels", raw / "table.csv", "--lists", raw]
    if origin in ("zip", "tar.gz"):
        films.mkdir()
        for k, half in enumerate(halves(raw)):
            (films / f"films_{k}.{origin}").write_bytes(pack(half, "images", f".{origin}"))
    with serve() as server:
        server.files, server.delay = mirror_files(raw), 0.01
        if origin == "mirror":
            options = ["--download", "--split", "all"]
        constants = {"MIRROR": f"{server.url}/mirror/", "ARCHIVES": [1, 2], "THREADS": 2}
        driver = Driver(constants, [*options, "--size", SIZE, "--out", raw.parent / "stopped", "--name", "set"])
        with driver.process:
            yield driver
            driver.process.stdin.close()


LONG = [pytest.param(origin, 20, marks=pytest.mark.long) for origin in ("mirror", "images", "zip", "tar.gz")]


@pytest.mark.parametrize(("origin", "all_stops"), [("mirror", 2), *LONG])
def test_stopped_at_any_moment_it_ends_in_the_same_bytes(origin, all_stops, raw, driver):
    random_moment = random.Random(origin)  # the moments differ all the same, as runs do
    out, stops = raw.parent / "stopped", 0

    began = time.perf_counter()
    assert driver.run() == 0
    whole = time.perf_counter() - began
    expected = bytes_of(out / "set")
    assert prepare(raw) == 0 and same_set(out / "set", raw.parent / "out" / "set")
    shutil.rmtree(out)
    while stops < all_stops:
        signal_number = random_moment.choice((signal.SIGKILL, signal.SIGINT))
        if driver.run(signal_number, random_moment.uniform(0, 0.8 * whole)):
            stops += 1
        else:  # it had ended before: the first run had been slow, on a busy machine
            whole *= 0.7
            assert bytes_of(out / "set") == expected
            shutil.rmtree(out)
    assert driver.run() == 0
    assert bytes_of(out / "set") == expected
    assert {path.name for path in out.iterdir()} == {"set", "films_32px"}
    assert {path.name for path in (out / "films_32px").iterdir()} == {"lock", *contents(raw / "films")}
