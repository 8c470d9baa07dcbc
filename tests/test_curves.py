"""TensorBoard's curves: what a run writes where the package is installed, and that nothing changes where it is not."""

import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

import search_train
import val_train
from support.runs import Run
from tests.test_scripts import metrics, run


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

        add_figure = add_scalar

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    return points_of


def test_without_the_package_a_run_is_as_ever(small_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import of it fails
    run(val_train, small_set, tmp_path, "--genotype", "DARTS_V1")
    assert len(metrics(tmp_path / "weights" / "DARTS_V1")) == 1
    assert "ensor" not in "".join(capsys.readouterr()) and not list(tmp_path.rglob("events.*"))


def test_a_search_shows_its_numbers_and_its_cells(small_set, tmp_path, shown):
    run(search_train, small_set, tmp_path, "--epochs", 2)
    rows = metrics(tmp_path / "search_first_order")
    numbers = {name for name, value in rows[0].items() if isinstance(value, (int, float))} - {"epoch", "seconds"}
    assert {"entropy_normal", "entropy_reduce", "val_auc", "train_loss"} < numbers
    for name in numbers:
        assert shown[name] == [(row["epoch"], row[name]) for row in rows]
    assert [step for step, _ in shown["cells"]] == [1, 2]
    assert all(isinstance(figure, Figure) for _, figure in shown["cells"])
    assert shown.keys() == numbers | {"cells"}


def stop_in_the_second_epoch(data, out, monkeypatch):
    """Run a search that dies after the numbers of its second epoch were shown, before its checkpoint; then go on."""
    save = Run.save

    def die(self, finished=False):
        if self.progress["epoch"] == 2:
            raise SystemExit(1)
        save(self, finished)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "save", die)
        run(search_train, data, out, "--epochs", 3)
    run(search_train, data, out, "--epochs", 3)


def test_a_run_that_goes_on_has_no_point_twice(small_set, tmp_path, shown, monkeypatch):
    stop_in_the_second_epoch(small_set, tmp_path, monkeypatch)
    assert all([step for step, _ in points] == [1, 2, 3] for points in shown.values())


def test_the_package_itself_reads_them(small_set, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop_in_the_second_epoch(small_set, tmp_path, monkeypatch)
    read = accumulator.EventAccumulator(str(tmp_path / "search_first_order")).Reload()
    rows = metrics(tmp_path / "search_first_order")
    assert [event.step for event in read.Scalars("val_auc")] == [1, 2, 3]
    assert [event.value for event in read.Scalars("entropy_normal")] == pytest.approx(
        [row["entropy_normal"] for row in rows]
    )
    assert [event.step for event in read.Images("cells")] == [1, 2, 3]
