"""A smoke test of every script on a GPU; it needs one."""

import pytest
import torch

import chexnet
import search_train
import test as table_script
import val_train
from tests.test_scripts import metrics, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_every_script_runs_on_cuda_and_goes_on_there(small_set, tmp_path):
    on_gpu = small_set, tmp_path, "--device", "cuda"
    for order in ("--no-second-order", "--second-order"):
        run(search_train, *on_gpu, order)
    run(val_train, *on_gpu, "--drop-path", "0.2", "--deterministic")
    for script in (chexnet, table_script):
        run(script, *on_gpu)
    assert "Average of 14" in (tmp_path / "results" / "auc.md").read_text(encoding="utf-8")
    (row,) = metrics(tmp_path / "search_second_order")
    assert 0 < row["val_auc"] < 1
