"""The scripts end to end at their smallest, and what they promise about a run's folder."""

import errno
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import chexnet
import model_eval
import search_train
import test as table_script
import utils
import val_train
from dataset import Films, find_preset, load_set
from genotypes import PUBLISHED, diagnostics, format_genotype, load_genotype, save_genotype
from model_search import Network
from report.networks import load_network
from support import settings
from support.files import InputError
from tests.conftest import start

ROOT = Path(__file__).parent.parent
SMALL = ["--dataset", "noise", "--crop", "32", "--batch-size", "16", "--epochs", "1", "--device", "cpu"]
NETWORK = ["--c", "4", "--layers", "4"]


def small_options(script, data, out):
    """The options that make a script's run small."""
    options = ["--data", str(data), "--out", str(out), "--dataset", "noise", "--device", "cpu"]
    options += [] if script is table_script else SMALL
    return options + (NETWORK if script in (search_train, val_train) else [])


def run(script, data, out, *options):
    """Run a script's main as its command line would."""
    start(script, *small_options(script, data, out), *options)


@pytest.fixture(scope="session")
def whole(small_set, tmp_path_factory):
    """Everything once: both searches, both networks, a random cell, CheXNet, the table."""
    out = tmp_path_factory.mktemp("whole")
    for order in ("--no-second-order", "--second-order"):
        run(search_train, small_set, out, order)
        run(val_train, small_set, out, order)
    run(val_train, small_set, out, "--genotype", "random", "--seed", 5)
    run(chexnet, small_set, out)
    run(table_script, small_set, out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it that a test may change."""
    subprocess.run(["cp", "-r", f"{whole}/.", tmp_path], check=True)
    return tmp_path


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- What a run leaves behind


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_search_leaves_its_genotypes_log_and_metrics(whole, order):
    folder = whole / f"search_{order}_order"
    assert load_genotype(folder / "genotype.txt") == load_genotype(folder / "genotype_last.txt")
    (row,) = metrics(folder)
    assert row["epoch"] == 1 and 0 < row["val_auc"] < 1 and row["seconds"] > 0
    assert np.shape(row["alphas"]["reduce"]) == (14, 8)
    assert row["genotype"] in (folder / "log.txt").read_text()
    alphas = [torch.tensor(row["alphas"][kind]) for kind in ("normal", "reduce")]
    assert diagnostics(load_genotype(folder / "genotype_last.txt"), *alphas).items() <= row.items()
    record = json.loads((folder / "settings.json").read_text())
    assert record["settings"]["second_order"] == (order == "second") and record["settings"]["c"] == 4
    assert record["environment"]["torch"] == torch.__version__
    trained = torch.load(whole / "weights" / f"{order}_order_net.pth", weights_only=True)["settings"]
    assert trained["genotype"] == (folder / "genotype.txt").read_text().strip()
    assert not list(whole.rglob("*.part"))


@pytest.mark.parametrize("name", ["first_order", "second_order", "random_5", "chexnet"])
def test_weights_files_are_plain_and_complete(whole, small_set, name):
    saved = torch.load(whole / "weights" / f"{name}_net.pth", weights_only=True)
    trained = saved["settings"]
    assert saved["epoch"] == 1 and trained["checksum"] == load_set(small_set / "noise").checksum
    assert ("genotype" in trained) == (name != "chexnet")
    network, _ = load_network(whole / "weights" / f"{name}_net.pth")
    assert all(torch.equal(v, saved["weights"][k]) for k, v in network.state_dict().items())
    (row,) = metrics(whole / "weights" / name)
    assert row["val_auc"] == saved["val_auc"]


def test_every_stage_draws_its_pictures(whole):
    drawn = {path.name for path in (whole / "search_second_order").glob("*.png")}
    assert drawn == {"cells.png", "alphas.png", "search.png"}
    assert all((whole / "weights" / name / "training.png").exists() for name in ("first_order", "chexnet"))
    drawn = {path.name for path in (whole / "results").glob("*.png")}
    assert drawn == {"roc.png", "auc.png", "calibration.png", "films.png"}
    page = (whole / "results" / "index.html").read_text(encoding="utf-8")
    assert page.count('href="#maps"') == page.count("There are none of these films. Their maps would have 2 × 2") == 1


def test_the_weights_are_those_of_the_best_epoch(small_set, tmp_path, monkeypatch):
    aucs, states = iter([0.5, 0.7, 0.6]), []

    def evaluate(network, *_):
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        return next(aucs), 1.0

    monkeypatch.setattr(val_train, "evaluate", evaluate)
    run(val_train, small_set, tmp_path, "--genotype", "DARTS_V1", "--epochs", 3)
    saved = torch.load(tmp_path / "weights" / "DARTS_V1_net.pth", weights_only=True)
    assert saved["epoch"] == 2 and saved["val_auc"] == 0.7
    assert all(torch.equal(v, states[1][k]) for k, v in saved["weights"].items())


# --- Repeating, continuing, refusing


@pytest.mark.parametrize(
    ("script", "folder"),
    [(search_train, "search_first_order"), (val_train, "weights/first_order"), (chexnet, "weights/chexnet")],
)
def test_a_finished_run_is_left_as_it_is(copy, small_set, script, folder, capsys):
    (copy / "data").symlink_to(small_set)
    before = files(copy)
    run(script, copy / "data", copy)  # DATA is elsewhere, too
    assert f"{folder}: finished already (best val AUC 0." in capsys.readouterr().out
    assert files(copy) == before


def test_other_settings_are_refused_by_name(copy, small_set, one_line):
    before = files(copy)
    line = one_line(run, search_train, small_set, copy, "--alpha-lr", 0.1)
    assert "search_first_order: alpha_lr was 0.02, now 0.1; " in line and "--fresh" in line
    line = one_line(run, search_train, small_set, copy, "--dataset", "noise", "--w-lr", 1, "--c", 8)
    assert "c was 4, now 8 (other differences: w_lr)" in line
    line = one_line(run, chexnet, small_set, copy, "--epochs", 2)
    assert "epochs was 1, now 2; set it back, start elsewhere with --out FOLDER, or move the old run aside" in line
    save_genotype(copy / "search_first_order" / "genotype.txt", PUBLISHED["DARTS_V2"])
    assert "genotype was" in one_line(run, val_train, small_set, copy)
    del before[copy / "search_first_order" / "genotype.txt"]
    after = files(copy)
    assert {path: after[path] for path in before} == before


def test_another_order_of_the_findings_is_refused(copy, small_set, tmp_path, one_line):
    shutil.copytree(small_set, tmp_path / "data")
    at = tmp_path / "data" / "noise" / "source.json"
    source = json.loads(at.read_text())
    at.write_text(json.dumps(source | {"findings": source["findings"][::-1]}))
    for script in (search_train, val_train, chexnet):
        assert "findings was" in one_line(run, script, at.parent.parent, copy)


@pytest.mark.parametrize(
    ("script", "options", "problem"),
    [
        (search_train, "--alpha-lr nan", "--alpha-lr is nan and must be a number, above 0"),
        (search_train, "--w-lr 0", "--w-lr is 0 and must be a number, above 0"),
        (search_train, "--w-clip 0", "--w-clip is 0 and must be a number, above 0"),
        (val_train, "--clip 0", "--clip is 0 and must be a number, above 0"),
        (val_train, "--one-cycle-lr 0", "--one-cycle-lr is 0 and must be a number, above 0"),
        (val_train, "--recipe cosine --cosine-lr 0", "--cosine-lr is 0 and must be a number, above 0"),
        (chexnet, "--one-cycle-lr 0", "--one-cycle-lr is 0 and must be a number, above 0"),
        (chexnet, "--recipe plateau --plateau-lr 0 --plateau-lr-stop 0", "--plateau-lr is 0 and must be a number, at"),
        (search_train, "--warm-up 1", "--warm-up is 1 and must be a number, at least 0 and below 1"),
        (search_train, "--batch-size 49", "batch size 49 must be 1 to 48, the films of train"),
        (search_train, f"--seed {2**63}", "and must be a whole number, at least -9223372036854775808 and below 92"),
        (search_train, "--crop 40", "crop 40 must be a multiple of 32, or 0 for the whole film"),
        (val_train, "--genotype DARTS_V1 --layers 3", "--layers is 3 and must be a whole number, at least 4"),
        (val_train, "--recipe adam", "--recipe is 'adam' and must be one_cycle or cosine"),
        (table_script, "--sensitivity 1", "--sensitivity is 1 and must be a number, above 0 and below 1"),
        (chexnet, "--epochs 2.0", "--epochs is 2.0 and must be a whole number, at least 1"),
        (chexnet, "--recipe plateau --plateau-lr 5e-8", "is 5e-08 and must be a number, at least 1e-07"),  # its stop
    ],
)
def test_settings_out_of_range_are_one_line_and_write_nothing(script, options, problem, small_set, tmp_path, one_line):
    assert problem in one_line(run, script, small_set, tmp_path, *options.split())
    assert not list(tmp_path.iterdir())


RUNS = [(val_train, "one_cycle"), (val_train, "cosine"), (chexnet, "one_cycle"), (chexnet, "plateau")]


@pytest.mark.parametrize(("script", "recipe"), [(search_train, None), *RUNS])
def test_each_constant_is_read_or_its_option_is_refused(script, recipe, copy, small_set, monkeypatch):
    """What `check` reads does not count: it is replaced here."""
    read = set()

    class Noted(settings.Settings):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    given = [*small_options(script, small_set, copy), "--fresh", *(["--recipe", recipe] if recipe else [])]
    parse = partial(settings.parse_settings, script.__file__, find_preset=find_preset, recipes=utils.SCHEDULES)
    noted = Noted(**vars(parse(given)))
    monkeypatch.setattr(script, "check", lambda settings: read.clear())
    script.main(noted)
    unread = {constant.lower() for constant in settings.read_constants(script.__file__)} - read - {"preset"}
    assert not unread & vars(noted).keys()
    for name in unread:
        with pytest.raises(InputError, match=f"is not read by the recipe {recipe}, which has --{recipe[:3]}"):
            parse([*given, f"{settings.option(name)}=1"])


def test_deterministic_algorithms_are_asked_for(small_set, tmp_path):
    try:
        run(val_train, small_set, tmp_path, "--genotype", "DARTS_V2", "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("disks", [1, 2])
def test_fresh_moves_the_old_run_and_its_weights_aside(disks, copy, small_set, monkeypatch):
    def no_rename(old, _):
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(old))

    if disks == 2:  # its folder is a mount point, or a link
        monkeypatch.setattr(os, "rename", no_rename)
    old = files(copy / "weights")
    run(chexnet, small_set, copy, "--fresh", "--one-cycle-lr", 0.01)
    moved = {p.name: p for p in (copy / "weights").iterdir() if p.name.startswith("chexnet") and "." in p.name}
    (folder,) = [p for p in moved.values() if p.is_dir()]
    (weights,) = [p for p in moved.values() if p.is_file() and p.name != "chexnet_net.pth"]
    assert (folder / "log.txt").read_bytes() == old[copy / "weights" / "chexnet" / "log.txt"][1]
    assert not (folder / "lock").exists()  # it is held: Windows would not let the folder around it be renamed
    assert weights.read_bytes() == old[copy / "weights" / "chexnet_net.pth"][1]
    assert (copy / "weights" / "chexnet_net.pth").read_bytes() != weights.read_bytes()


def test_what_is_left_when_moving_aside_breaks_off_is_not_written_over(copy, small_set, monkeypatch, one_line):
    move, moved = shutil.move, []

    def full(old, new):
        if len(moved) == 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(old))
        moved.append(move(old, new))

    def contents():
        return {path.name: path.read_bytes() for path in copy.glob("search_first_order*/*") if path.name != "lock"}

    whole = contents()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", full)
        assert "No space left" in one_line(run, search_train, small_set, copy, "--fresh", status=1)
    assert "is there without a checkpoint" in one_line(run, search_train, small_set, copy)
    assert contents() == whole


def test_fresh_without_an_old_run_moves_nothing(small_set, tmp_path):
    run(search_train, small_set, tmp_path, "--fresh")
    assert [path.name for path in tmp_path.iterdir()] == ["search_first_order"]


def test_a_cell_that_lies_in_a_searchs_folder_is_not_overwritten(small_set, tmp_path, one_line):
    folder = tmp_path / "search_first_order"
    folder.mkdir()
    save_genotype(folder / "genotype.txt", PUBLISHED["DARTS_V1"])
    assert "search_first_order is there without a checkpoint" in one_line(run, search_train, small_set, tmp_path)
    assert load_genotype(folder / "genotype.txt") == PUBLISHED["DARTS_V1"]


def test_what_is_written_before_the_first_checkpoint_comes_again_under_any_settings(small_set, tmp_path):
    run(search_train, small_set, tmp_path)
    folder = tmp_path / "search_first_order"
    for path in folder.glob("checkpoint*"):
        path.unlink()
    log = (folder / "log.txt").read_text()
    run(search_train, small_set, tmp_path, "--seed", 1)
    assert len(metrics(folder)) == 1 and (folder / "log.txt").read_text().count("\n") == log.count("\n")
    assert json.loads((folder / "settings.json").read_text())["settings"]["seed"] == 1


def test_a_run_that_lost_its_checkpoints_is_not_written_over(copy, small_set, one_line):
    run(search_train, small_set, copy / "two", "--epochs", 2)
    for path in copy.rglob("checkpoint*"):
        path.unlink()
    before = files(copy)
    assert "chexnet_net.pth is there without a checkpoint" in one_line(run, chexnet, small_set, copy)
    line = one_line(run, search_train, small_set, copy / "two", "--epochs", 2)
    assert "search_first_order is there without a checkpoint" in line
    assert files(copy) == before


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_settings_that_were_lost_or_damaged_come_back_from_the_checkpoint(copy, small_set, one_line, content):
    at = copy / "search_first_order" / "settings.json"
    before = at.read_text()
    at.unlink()
    if content is not None:
        at.write_text(content)
    assert "alpha_lr was" in one_line(run, search_train, small_set, copy, "--alpha-lr", 0.1)
    run(search_train, small_set, copy)
    assert at.read_text() == before


def test_a_run_of_an_older_version_is_left_as_it_is(copy, small_set, one_line):
    at = copy / "search_first_order" / "checkpoint.pt"
    saved = torch.load(at)
    del saved["format"]
    torch.save(saved, at)
    before = files(copy)
    assert "checkpoint.pt is of another version" in one_line(run, search_train, small_set, copy)
    assert files(copy) == before


def test_w_learns_on_train_and_alpha_on_val(small_set, tmp_path, monkeypatch):
    """Films of val are made brighter than any of train: each step must see its own."""
    seen, train_batch, forward = [], Films.train_batch, Network.forward

    def marked(films, *more):
        batch, labels = train_batch(films, *more)
        return batch + (100 if films.split == "val" else 0), labels

    def is_val(films):
        return bool(films.mean() > 50)

    def step(architect, trn, val):
        seen.append(("α", is_val(trn[0]), is_val(val[0])))
        return torch.zeros(())

    monkeypatch.setattr(Films, "train_batch", marked)
    monkeypatch.setattr(search_train.Architect, "step", step)
    monkeypatch.setattr(Network, "forward", lambda net, films: seen.append(is_val(films)) or forward(net, films))
    monkeypatch.setattr(search_train, "evaluate", lambda *_: (0.5, 1.0))
    run(search_train, small_set, tmp_path)
    assert seen == [("α", False, True), False] * 3


def test_the_temperature_falls_from_1_after_the_warm_up_to_the_lowest_in_the_last_two_epochs():
    taus = [search_train.temperature(epoch, 2, 8, 0.05) for epoch in range(1, 9)]
    assert taus == pytest.approx([1, 1, 1, 0.05**0.25, 0.05**0.5, 0.05**0.75, 0.05, 0.05])
    assert [search_train.temperature(epoch, 0, 50, 1.0) for epoch in range(1, 51)] == [1.0] * 50  # the paper's search
    assert [search_train.temperature(1, 0, 1, 0.05), search_train.temperature(2, 0, 2, 0.05)] == [1, 0.05]


def test_a_high_price_leaves_nothing_that_costs(small_set, tmp_path):
    run(search_train, small_set, tmp_path, "--epochs", 3, "--alpha-lr", 0.5, "--price", 100)
    assert "conv" not in (tmp_path / "search_first_order" / "genotype_last.txt").read_text()


def test_w_alone_learns_in_the_warm_up(small_set, tmp_path, monkeypatch):
    seen = []  # at the end of each epoch: τ, α, w

    def evaluate(network, *_):
        groups = network.arch_parameters(), network.weight_parameters()
        seen.append((network.temperature, *(torch.cat([p.detach().flatten() for p in group]) for group in groups)))
        return [0.9, 0.8, 0.6, 0.5][len(seen) - 1], 1.0

    monkeypatch.setattr(search_train, "evaluate", evaluate)
    run(search_train, small_set, tmp_path, "--epochs", 4, "--warm-up", 0.5)
    taus, alphas, weights = zip(*seen, strict=True)
    assert taus == (1, 1, 1, 0.05)
    assert torch.equal(alphas[0], alphas[1]) and alphas[1].abs().max() < 0.01  # as they were drawn
    assert not torch.equal(alphas[1], alphas[2]) and not torch.equal(alphas[2], alphas[3])
    assert not torch.equal(weights[0], weights[1])
    folder = tmp_path / "search_first_order"
    rows = metrics(folder)
    assert [row["alpha_loss"] is None for row in rows] == [True, True, False, False]
    assert [row["temperature"] for row in rows] == [1, 1, 1, 0.05]
    assert (folder / "log.txt").read_text().count(" –  ") == 2
    # The cell is of the best epoch after the warm-up: before, it is one of α's random start.
    assert format_genotype(load_genotype(folder / "genotype.txt")) == rows[2]["genotype"]
    assert "best val AUC 0.600" in (folder / "log.txt").read_text()
    # What is stored and drawn is what the softmax gets: α / τ.
    stored = torch.tensor([rows[3]["alphas"][kind] for kind in ("normal", "reduce")]).flatten()
    assert torch.allclose(stored, alphas[3] / 0.05)
    weights = stored.view(2, 14, 8).double().softmax(-1)
    assert rows[3]["entropy_normal"] == pytest.approx(torch.special.entr(weights[0]).sum(-1).mean().item())


def test_drop_path_grows_linearly_over_the_epochs(small_set, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(model_eval.Network, "drop_path", lambda net, films, p, generator: drawn.append(p))
    run(val_train, small_set, tmp_path, "--genotype", "DARTS_V1", "--epochs", 4, "--drop-path", 0.2)
    assert sorted(set(drawn)) == pytest.approx([0.0, 0.05, 0.1, 0.15])
    assert drawn == sorted(drawn)


@pytest.mark.long
def test_the_bfloat16_path_of_gpus_runs(small_set, tmp_path, monkeypatch):
    """On the CPU here: the w step and the trainings under autocast; the α step and predictions in float32."""
    criterion, seen = utils.criterion, []
    for script in (search_train, val_train, chexnet):
        monkeypatch.setattr(script, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(utils, "criterion", lambda logits, y: seen.append(logits.dtype) or criterion(logits, y))
    run(search_train, small_set, tmp_path, "--second-order")
    # Each of 3 steps: L_train, L_val(w'), L_train(w⁺), L_train(w⁻), then L_train of the w step; last, val's loss
    assert seen == ([torch.float32] * 4 + [torch.bfloat16]) * 3 + [torch.float32]
    for script in (val_train, chexnet):
        seen.clear()
        run(script, small_set, tmp_path, *(["--second-order"] if script is val_train else []))
        assert seen == [torch.bfloat16] * 3 + [torch.float32]


def test_seeds_decide_the_result(small_set, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(search_train, small_set, tmp_path / name, "--seed", seed)
    rows = [metrics(tmp_path / name / "search_first_order")[0] | {"seconds": 0} for name in "abc"]
    assert rows[0] == rows[1] != rows[2]


# --- What is missing is named with the command that makes it


def test_missing_steps_are_named(small_set, tmp_path, one_line):
    assert "run 'python search_train.py' first" in one_line(run, val_train, small_set, tmp_path)
    line = one_line(run, val_train, small_set, tmp_path, "--second-order")
    assert "run 'python search_train.py --second-order' first" in line
    assert "prepare the set first" in one_line(run, search_train, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cell_of_another_set_is_not_trained_unasked_and_one_of_an_unfinished_search_with_a_word(
    copy, small_set, one_line, capsys
):
    at = copy / "search_first_order" / "settings.json"
    searched = json.loads(at.read_text())["settings"]
    at.write_text(json.dumps({"settings": searched | {"epochs": 5}}))
    run(val_train, small_set, copy)
    assert "the search has not finished" in capsys.readouterr().out
    (copy / "search_first_order" / "metrics.jsonl").unlink()
    run(val_train, small_set, copy)
    assert "the search has not finished" not in capsys.readouterr().out
    at.write_text(json.dumps({"settings": searched | {"checksum": "another"}}))
    line = one_line(run, val_train, small_set, copy, "--fresh")
    assert "search_first_order: searched on another set" in line
    assert (copy / "weights" / "first_order_net.pth").exists()


def test_a_genotype_is_trained_as_it_stands_in_a_text(small_set, tmp_path, one_line, capsys):
    cell = PUBLISHED["DARTS_V1"]
    for given in (tmp_path, f"../x = {cell}", f"x = {cell}"[:-9]):
        assert "genotype" in one_line(run, val_train, small_set, tmp_path, "--genotype", given).lower()
    assert not list(tmp_path.iterdir())
    run(val_train, small_set, tmp_path, "--genotype", f"{PUBLISHED['DARTS_V2']}, my_cell = {cell}")
    assert "--genotype: the last one of 2 genotypes is taken\n" in capsys.readouterr().out
    saved = torch.load(tmp_path / "weights" / "my_cell_net.pth", weights_only=True)
    assert saved["settings"]["genotype"] == format_genotype(cell)
