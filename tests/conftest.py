"""What several tests share: one thread (the same results on every machine), and a small prepared set."""

import numpy as np
import pandas as pd
import pytest
import torch

import test as table_script
from data.making import write_set
from dataset import FINDINGS, find_preset
from support import settings
from tests.films import make_raw
from utils import SCHEDULES

FILMS = {"train": 48, "val": 32, "test": 32}
PATIENT_FILMS = 2


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also the long tests")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: runs with --all only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="with --all only"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing a run takes longer than the run, at these sizes. Runs of session-wide fixtures draw all the same."""
    for script in ("search_train", "val_train", "chexnet"):
        monkeypatch.setattr(f"{script}.draw_run", lambda folder: [])


@pytest.fixture
def table_alone(monkeypatch):
    """test.py makes its table without pictures, which take longer than all else, and without the page."""
    for name in ("draw_roc", "draw_auc", "draw_examples", "write_page"):
        monkeypatch.setattr(table_script, name, lambda *_: {})
    monkeypatch.setattr("report.sections.draw_calibration", lambda *_: None)


def small_table():
    """Rows of labels.csv: every finding is present and absent in every split; patients have two films each."""
    rows, patient = [], 0
    for split, films in FILMS.items():
        for film in range(films):
            patient += film % PATIENT_FILMS == 0
            found = [name for k, name in enumerate(FINDINGS) if (film + k) % 5 == 0 and film % 7]
            rows.append((f"{patient:05}_{film:03}.png", patient, "|".join(found) or "No Finding", split))
    return pd.DataFrame(rows, columns=["Image Index", "Patient ID", "Finding Labels", "split"])


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """The folder that holds a prepared set "noise" of 112 noise films, 64 × 64 px. Not to be written to."""
    data = tmp_path_factory.mktemp("data")
    table = small_table()
    images = np.random.default_rng(0).integers(0, 256, (len(table), 64, 64), dtype=np.uint8)
    write_set(data / "noise", images, table, {"origin": "noise", "seed": 0, "preset": "phantom"})
    return data


@pytest.fixture
def raw(tmp_path):
    """20 films, their label table and lists: see tests/films.py."""
    return make_raw(tmp_path / "raw")


@pytest.fixture
def one_line(capsys):
    """Calls something that must end with a status and one line on stderr; returns the line."""

    def call(function, *arguments, status=2):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            function(*arguments)
        error = capsys.readouterr().err
        assert stop.value.code == status
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return call


def start(script, *argv):
    """Run a script (its module) in this process as its command line would."""
    settings.start(script.main, script.__file__, find_preset, SCHEDULES, [*map(str, argv)])


def equal(a, b):
    """Nested states are equal, tensors bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert a == b
