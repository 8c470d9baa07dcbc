"""TensorBoard's curves: what a run writes where the package is installed, and that nothing changes where it is not."""

import sys
from collections import defaultdict
from importlib import import_module
from types import SimpleNamespace

import pytest

import search_train
import val_train
from tests.test_scripts import metrics, run

PACKAGE = "torch.utils.tensorboard"


@pytest.fixture
def shown(monkeypatch):
    """{tag: [(step, value)]}: what TensorBoard would show of the runs of a test. A stand-in takes it."""
    points_of = defaultdict(list)

    class Writer:
        def __init__(self, folder, purge_step):
            for points in points_of.values():
                points[:] = [point for point in points if point[0] < purge_step]

        def add_scalar(self, tag, value, step):
            points_of[tag].append((step, value))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(SummaryWriter=Writer))
    return points_of


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_package_or_with_a_broken_one_a_run_is_as_ever(broken, small_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace() if broken else None)  # None: an import of it fails
    run(val_train, small_set, tmp_path, "--genotype", "DARTS_V1")
    assert len(metrics(tmp_path / "weights" / "DARTS_V1")) == 1
    said = "".join(capsys.readouterr())
    assert ("TensorBoard cannot be used" in said) == ("ensor" in said) == broken
    assert not list(tmp_path.rglob("events.*"))


def stop_in_the_second_epoch(data, out, monkeypatch):
    """Run a search that dies when it has shown the numbers of its second epoch, before its checkpoint; then go on."""
    writer, flushed = import_module(PACKAGE).SummaryWriter, []
    flush = writer.flush

    def die(self):
        flush(self)
        flushed.append(True)
        if len(flushed) == 2:
            raise SystemExit(1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(writer, "flush", die)
        run(search_train, data, out, "--epochs", 3)
    run(search_train, data, out, "--epochs", 3)


def test_a_search_shows_its_numbers_and_none_twice(small_set, tmp_path, shown, monkeypatch):
    stop_in_the_second_epoch(small_set, tmp_path, monkeypatch)
    rows = metrics(tmp_path / "search_first_order")
    names = {name for name, value in rows[-1].items() if isinstance(value, (int, float))} - {"epoch", "seconds"}
    assert {"entropy_normal", "entropy_reduce", "val_auc", "train_loss", "alpha_loss"} < names
    for name in names:
        assert shown[name] == [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]


def test_the_package_itself_reads_them(small_set, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop_in_the_second_epoch(small_set, tmp_path, monkeypatch)
    read = accumulator.EventAccumulator(str(tmp_path / "search_first_order")).Reload()
    rows = metrics(tmp_path / "search_first_order")
    assert [event.step for event in read.Scalars("val_auc")] == [1, 2, 3]
    assert [event.value for event in read.Scalars("entropy_normal")] == pytest.approx(
        [row["entropy_normal"] for row in rows]
    )
