"""TensorBoard's curves: what a run writes where the package is installed, and that nothing changes where it is not."""

import sys
from collections import defaultdict
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


@pytest.mark.parametrize("package", [None, SimpleNamespace(), SimpleNamespace(SummaryWriter=object)])
def test_without_the_package_or_with_a_broken_one_a_run_is_as_ever(package, small_set, tmp_path, monkeypatch, capsys):
    """None: an import of it fails; the last one imports, but its writer cannot be made."""
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    run(val_train, small_set, tmp_path, "--genotype", "DARTS_V1")
    assert len(metrics(tmp_path / "weights" / "DARTS_V1")) == 1
    said = "".join(capsys.readouterr())
    assert ("TensorBoard cannot be used" in said) == ("ensor" in said) == (package is not None)
    assert not list(tmp_path.rglob("events.*"))


def test_a_search_shows_its_numbers_and_none_twice(small_set, tmp_path, shown, monkeypatch):
    """It dies when it has shown the numbers of its second epoch, before its checkpoint, and goes on."""

    def die(_):
        if len(shown["val_auc"]) == 2:
            raise SystemExit(1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys.modules[PACKAGE].SummaryWriter, "flush", die)
        run(search_train, small_set, tmp_path, "--epochs", 3)
    run(search_train, small_set, tmp_path, "--epochs", 3)
    rows = metrics(tmp_path / "search_first_order")
    names = {name for name, value in rows[-1].items() if isinstance(value, (int, float))} - {"epoch", "seconds"}
    assert {"entropy_normal", "entropy_reduce", "val_auc", "train_loss", "alpha_loss"} < names
    for name in names:
        assert shown[name] == [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
