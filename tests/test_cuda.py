"""A smoke test of every script on a GPU; it needs one."""

import pytest
import torch

import chexnet
import search_train
import test as table_script
import val_train
from tests.conftest import start
from tests.test_scripts import NETWORK, SMALL, metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_every_script_runs_on_cuda_and_goes_on_there(small_set, tmp_path):
    common = ["--data", str(small_set), "--out", str(tmp_path), "--dataset", "noise"]
    cuda = [*SMALL, *common, "--device", "cuda"]
    for order in ("--no-second-order", "--second-order"):
        start(search_train, *cuda, *NETWORK, order)
    start(val_train, *cuda, *NETWORK, "--drop-path", "0.2", "--deterministic")
    start(chexnet, *cuda)
    start(table_script, *common, "--device", "cuda")
    assert "Average of 14" in (tmp_path / "results" / "auc.md").read_text(encoding="utf-8")
    (row,) = metrics(tmp_path / "search_second_order")
    assert 0 < row["val_auc"] < 1
