"""The benchmarks at their smallest, what they do when a part fails, and their statistics on a few numbers."""

import importlib
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t

from benchmarks import compare, folds, hypergradient, parts, speed, stats, trainings
from dataset import AVERAGE, Films, load_set
from genotypes import PUBLISHED, load_genotype, random_genotype
from model_eval import Network
from report.networks import load_network
from scores import AUC, COSTS, GAP, auc_per_finding, read_scores
from support.files import InputError
from tests.conftest import start
from tests.test_scripts import NETWORK, ROOT, SMALL
from utils import predict

CHEXNET = " ".join(SMALL[2:])  # without the set, which the benchmarks choose
CELL = " ".join([*SMALL[2:], *NETWORK])
TRAIN = f"val_train.py --genotype DARTS_V1 {CELL}"
ON_NOISE = ["--dataset", "noise", "--search", CELL, "--train", CELL, "--chexnet", CHEXNET]


@pytest.mark.long
@pytest.mark.parametrize("linux", [True, False])
def test_speed_prints_every_row(linux, capsys, monkeypatch):
    if linux:
        monkeypatch.setattr(speed, "peak_memory", lambda side, order, setting: 1.0)
    else:
        monkeypatch.setattr(speed, "MEMORY", Path("no/proc/self/status"))
    monkeypatch.setattr(sys, "argv", ["speed", "--setting", "tiny", "--steps", "1"])
    speed.main()
    text = capsys.readouterr().out
    rows = [f"search step, {row}" for row in ("first order", "second order", "exact product")]
    rows += [f"{name}, {what}" for name in ("derived network", "CheXNet") for what in ("training step", "inference")]
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines() if " s | " in line] == rows
    assert text.count(" | – |\n") == (0 if linux else 3)  # in the column of the memory
    assert re.search(r"step makes \d+ G multiply-adds, \d+ G a second; a matrix product makes \d+ G", text)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_memory_is_measured_in_a_process_of_its_own():
    """A parent that has used much more must not count."""
    torch.ones(500_000_000)  # 2 GB, given back at once
    assert 0.1 < speed.peak_memory("ours", "second", "tiny") < 1.5


@pytest.mark.long
def test_hypergradient_prints_every_precision_and_radius(capsys, monkeypatch, small_set):
    monkeypatch.setattr(hypergradient, "RADII", [1e-2, 1e-4])
    monkeypatch.setattr(hypergradient, "SETTING", (4, 4, 32, 8, 2))
    monkeypatch.setattr(hypergradient, "open_set", lambda *_: load_set(small_set / "noise"))
    monkeypatch.setattr(sys, "argv", ["hypergradient"])
    hypergradient.main()
    text = capsys.readouterr().out
    for precision in hypergradient.PRECISIONS:  # fresh and trained, each with its smooth twin
        assert text.count(f"\n| {precision} ") == 4 * (len(hypergradient.RADII) + 2)
    # In float64, on the smooth twin, differences of a small radius are right.
    (row,) = re.findall(r"\| float64 \| 1e-04.*", text.split("### fresh, smooth twin")[1].split("###")[0])
    assert float(row.split("|")[4]) < 1e-4


# --- Trainings


@pytest.fixture
def here(monkeypatch, small_set, table_alone, tmp_path):
    """Scripts run in this process, one after the other; returns the options for the small sets and the output."""

    def run(name, out, *arguments):
        module = importlib.import_module(name.removesuffix(".py"))
        start(module, "--out", out, *arguments)

    for module in (compare, trainings):
        monkeypatch.setattr(module, "script", run)
    monkeypatch.setattr(parts, "side_by_side", lambda parts, jobs: [part() for part in parts])
    return ["--data", str(small_set), "--out", str(tmp_path)]


@pytest.mark.long
def test_compare_runs_every_part_once_and_tables_all_trainings(here, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "DRAWS", 2)
    monkeypatch.setattr(compare, "step_ratio", lambda *of: 0.5)  # twice as fast as the reference: twice the epochs
    rows = ["first_order=1", "second_order_exact=1", "random=1", "random=2-2", "random_small=1", "DARTS_V1=1"]
    options = [*rows, "chexnet_equal_time=1", "chexnet=1", *here, *ON_NOISE]
    compare.main(options)
    trained = pd.read_csv(tmp_path / "compare.csv").set_index(["row", "seed"])
    assert len(trained) == 8 and (trained["processor"] == parts.processor()).all() and parts.processor()
    for row, seed in trained.index:
        scores = read_scores(tmp_path / f"{row}_{seed}" / "results" / "auc.csv").xs(AVERAGE, level="finding")
        in_row = trained.loc[(row, seed), ["test_auc", *COSTS]].to_list()
        assert [in_row] == [pytest.approx(numbers, abs=1e-4) for numbers in scores[["auc", *COSTS]].to_numpy().tolist()]
    assert trained["genotype"]["random", 2] == str(random_genotype(2))
    search = tmp_path / "second_order_exact_1" / "search_second_order"
    assert trained["genotype"]["second_order_exact", 1] == str(load_genotype(search / "genotype.txt"))
    record = json.loads((search / "settings.json").read_text())
    assert record["settings"]["exact_product"] and record["settings"]["seed"] == 1
    assert trained["epochs"][["DARTS_V1", "chexnet_equal_time", "chexnet"]].to_list() == [2, 2, 1]
    text = (tmp_path / "compare.md").read_text()
    average, deviation = trained["test_auc"]["random"].agg(["mean", "std"])
    assert f"| random | 2 | {average:.3f} ± {deviation:.3f} | – |" in text
    assert text.count("| first_order | ") == text.count("| second_order_exact | ") == 3  # means, draws, best of k

    made = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*_net.pth"), *tmp_path.rglob("auc.csv")]}
    monkeypatch.setattr(compare, "step_ratio", None)  # it is not measured again
    compare.main(options)
    assert {path: path.stat().st_mtime_ns for path in made} == made

    # A part that trains again is scored again, and its row takes the place of the old one among the others.
    compare.main(["random=1", *options[6:], "--train", f"{CELL} --one-cycle-lr 0.05 --fresh"])
    again = pd.read_csv(tmp_path / "compare.csv").set_index(["row", "seed"])
    scores = read_scores(tmp_path / "random_1" / "results" / "auc.csv").loc[("random_cell", AVERAGE)]
    assert again["test_auc"]["random", 1] == scores["auc"] != trained["test_auc"]["random", 1]
    others = trained.index.drop(("random", 1))
    pd.testing.assert_frame_equal(again.loc[others], trained.loc[others])


@pytest.mark.long
def test_compare_trains_the_cells_that_an_earlier_comparison_found(here, tmp_path, monkeypatch):
    rows = pd.read_csv(ROOT / "docs" / "compare.csv").set_index(["row", "seed"])
    options = [*here, *ON_NOISE, "--cells", str(ROOT / "docs" / "compare.csv")]
    compare.main(["first_order=2-2", *options])
    trained = pd.read_csv(tmp_path / "compare.csv").iloc[0]
    same = ["genotype", "search_minutes"]
    assert trained[same].to_list() == rows.loc[("first_order", 2), same].to_list()
    monkeypatch.setattr(compare, "script", lambda *_: pytest.fail("the error must come before any training"))
    with pytest.raises(InputError, match=r"compare\.csv: 0 rows are first_order of seed 11"):
        compare.main(["first_order=10-11", *options])


def test_trainings_runs_every_command_on_every_set_with_every_seed(here, tmp_path):
    commands = [TRAIN, f"{TRAIN} --one-cycle-lr 0.02"]
    trainings.main([*commands, "--sets", "noise", "--seeds", "0", "3", *here])
    trained = pd.read_csv(tmp_path / "trainings.csv").set_index(["command", "seed"])
    assert list(trained.index) == [(command, seed) for seed in (0, 3) for command in commands]
    (weights,) = tmp_path.glob("*one_cycle_lr_*_noise_3/weights/DARTS_V1_net.pth")
    saved = torch.load(weights, weights_only=True)
    assert trained["val_auc"][commands[1], 3] == saved["val_auc"]
    assert (saved["settings"]["one_cycle_lr"], saved["settings"]["seed"]) == (0.02, 3)
    size = sum(p.numel() for p in Network(4, 14, 4, PUBLISHED["DARTS_V1"]).parameters()) / 1e6
    assert trained["parameters_millions"].to_list() == pytest.approx([size] * 4, abs=1e-4)
    first, second = trained.loc[TRAIN, "val_auc"]
    cells = f"{size:.2f} | 1 | {trained['minutes'][TRAIN].mean():.1f} | {first:.3f} | {second:.3f}"
    assert f"| `{TRAIN}` | {cells} | {(first + second) / 2:.3f} |" in (tmp_path / "trainings.md").read_text()
    assert not (tmp_path / "trainings.png").exists()


def test_trainings_have_the_epochs_that_fit_into_the_minutes_asked(here, tmp_path, monkeypatch):
    facts = trainings.facts  # every epoch takes 3 s, so that 6 and 12 s are 2 and 4 epochs, whatever the machine does
    monkeypatch.setattr(trainings, "facts", lambda run: facts(run) | {"epoch_seconds": 3})
    command = TRAIN.replace(" --epochs 1", "")
    options = [command, "--sets", "noise", *here, "--test", "--minutes", "0.1"]
    trainings.main([*options, "0.2"])
    trained = pd.read_csv(tmp_path / "trainings.csv")
    assert trained[["asked_minutes", "epochs"]].to_numpy().tolist() == [[0.1, 2], [0.2, 4]]
    assert (tmp_path / "trainings.png").exists()
    (scored,) = tmp_path.glob("*_0.2min/results/auc.csv")
    auc = read_scores(scored).loc[("DARTS_V1", "Average"), "auc"]
    assert trained["test_auc"][1] == auc != trained["val_auc"][1]
    text = (tmp_path / "trainings.md").read_text()
    assert text.startswith("| | Parameters (M) | 0.1 min | 0.2 min |\n")
    assert f" ({trained['minutes'][0]:.1f}) | {auc:.3f} ({trained['minutes'][1]:.1f}) |\n" in text
    trainings.main(options)  # the row takes the place of the old one
    again = pd.read_csv(tmp_path / "trainings.csv").sort_values("asked_minutes", ignore_index=True)
    pd.testing.assert_frame_equal(again, trained)


def test_folds_leave_out_every_patient_once_and_never_touch_test(small_set, tmp_path):
    data = load_set(small_set / "noise")
    names = folds.make_folds(data, tmp_path, 3)
    assert names == folds.make_folds(data, tmp_path, 3) == [f"noise_fold{k}of3" for k in (1, 2, 3)]
    seen = data.table[data.table["split"] != "test"]
    left_out = []
    for name in names:
        fold = load_set(tmp_path / name)
        assert sorted(fold.table["Image Index"]) == sorted(seen["Image Index"])
        assert (fold.preset, fold.findings, fold.synthetic) == (data.preset, data.findings, data.synthetic)
        where = data.table["Image Index"].isin(fold.table["Image Index"])
        assert np.array_equal(fold.images, data.images[where]) and np.array_equal(fold.labels, data.labels[where])
        patients = fold.table.groupby("split")["Patient ID"].nunique()
        assert patients.tolist() == [patients["test"], *{13: [24, 3], 14: [23, 3]}[patients["test"]]]
        left_out += fold.table["Patient ID"][fold.rows("test")].unique().tolist()
    assert sorted(left_out) == sorted(seen["Patient ID"].unique())
    with pytest.raises(InputError, match="--folds is 5 and must be 2 to 4, for 40 patients"):
        folds.make_folds(data, tmp_path, 5)
    with pytest.raises(InputError, match="noise_fold1of3: made of another version of noise: move it away"):
        folds.make_folds(replace(data, checksum="other"), tmp_path, 3)


def test_trainings_are_compared_on_the_parts_that_were_left_out(here, tmp_path):
    commands = [TRAIN, f"{TRAIN} --standardise"]
    trainings.main([*commands, "--sets", "noise", "--folds", "4", "--first", "3", *here])
    rows = pd.read_csv(tmp_path / "trainings.csv").set_index(["command", "dataset"])
    wins, pairs = np.zeros((2, 14)), np.zeros(14)
    for k in (1, 2, 3):
        fold = load_set(tmp_path / "sets" / f"noise_fold{k}of4")
        labels = fold.labels[fold.rows("test")] == 1
        pairs += labels.sum(0) * (~labels).sum(0)
        for c, text in enumerate(commands):
            run = trainings.trained_in(trainings.place(SimpleNamespace(out=tmp_path), text, fold.name, 0))
            films = Films(fold, "test", 32, torch.device("cpu"), standardise=c == 1)
            p, _ = predict(load_network(f"{run}_net.pth")[0], films, 64)
            for finding, (positive, score) in enumerate(zip(labels.T, p.T, strict=True)):
                wins[c, finding] += (score[positive][:, None] > score[~positive]).sum()
            assert rows["fold_auc"][text, fold.name] == pytest.approx(np.nanmean(auc_per_finding(labels, p)), abs=1e-12)
    compared = pd.read_csv(tmp_path / "folds.csv")
    assert compared[["folds", "findings"]].to_numpy().tolist() == [[3, 14]] * 2
    assert compared["auc"].to_numpy() == pytest.approx((wins / pairs).mean(axis=1), abs=1e-12)
    first, second = compared.itertuples()
    assert first.low < first.auc < first.high and np.isnan(first.difference)
    gap = second.difference, second.difference_low, second.difference_high
    assert gap[0] == pytest.approx(second.auc - first.auc, abs=1e-12) and gap[1] < gap[0] < gap[2]
    better = (rows["fold_auc"][commands[1]] > rows["fold_auc"][commands[0]]).sum()
    assert second.better_folds == better
    text = (tmp_path / "folds.md").read_text()
    assert "| {:+.3f} [{:+.3f}, {:+.3f}] | {} of 3 |".format(*gap, better) in text


REFUSED = [
    (compare, part, f"{part!r} must be ROW=N") for part in ("first_order", "first=3", "random=0", "=3", "random=3-2")
]
REFUSED += [
    (trainings, "rm -r data", "must begin with val_train"),
    (trainings, "val_train.py --genotype 'x", "No closing quotation"),
    (trainings, "chexnet.py --seed=3", "leave out --seed, which this benchmark sets"),
]


@pytest.mark.parametrize(("module", "argument", "problem"), REFUSED)
def test_what_cannot_be_run_is_named(module, argument, problem, monkeypatch):
    monkeypatch.setattr(module, "open_set", lambda *_: pytest.fail("it must be said before anything else"))
    with pytest.raises(InputError, match=problem):
        module.main([argument])


def test_parts_run_side_by_side_and_end_where_one_fails(tmp_path):
    both = threading.Barrier(2)  # each of two parts waits for the other
    begun = []
    assert sorted(parts.side_by_side([partial(both.wait, 60)] * 2, 2)) == [0, 1]
    fails = partial(parts.script, "val_train.py", tmp_path, "--epochs", 0)
    with pytest.raises(SystemExit, match=r"val_train\.py failed, see the end of .*output\.txt; start this command"):
        parts.side_by_side([fails, *[partial(begun.append, 1)] * 9], 1)
    assert "--epochs is 0" in (tmp_path / "output.txt").read_text()
    assert not begun


def test_a_part_under_way_starts_no_script_after_another_failed_whose_error_is_shown(tmp_path):
    def goes_on():
        parts.STOPPED.wait(60)
        parts.script("val_train.py", tmp_path / "next")

    def fails():
        raise InputError("why")

    with pytest.raises(InputError, match="why"):
        parts.side_by_side([goes_on, fails], 2)
    assert not (tmp_path / "next").exists()
    with pytest.raises(InputError, match="--jobs is 0 and must be at least 1"):
        parts.side_by_side([], 0)


@pytest.mark.long
def test_a_benchmark_that_is_asked_to_stop_stops_its_script(small_set, tmp_path):
    options = ["--sets", "noise", "--data", str(small_set), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.trainings", f"{TRAIN} --epochs 1000", *options]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not list(tmp_path.rglob("metrics.jsonl")):
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 130
    (said,) = tmp_path.rglob("output.txt")
    assert "stopped by SIGTERM; the same command goes on" in said.read_text()


# --- Rows


PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/evidence.md", "docs/tried.md")}
COMMITTED = [  # rows in docs/, and how many of the tables that are made of them the pages have
    (compare, ["compare"], 2),
    (compare, ["compare_long", "compare_long_small"], 1),
    (compare, ["compare_seed2"], 1),
    (compare, ["compare_nih10k"], 1),
    (compare, ["compare_nih10k_first"], 2),
    (compare, ["compare_nih10k_128"], 0),
    (trainings, ["quality"], 1),
    (trainings, ["recipes"], 1),
    (trainings, ["recipes_nih10k"], 1),
]
WITHOUT_ROWS = "## The comparison over three seeds"  # they were not kept


def stated(text):
    """The numbers in a text that have a deviation or an interval: {(mean, deviation) or (number, low, high)}."""
    text, number = re.sub(r"\s+", " ", text).replace("−", "-"), r"([+-]?\d+\.\d+)"
    found = re.findall(rf"{number} ± {number}", text) + re.findall(rf"{number} \[{number}, {number}\]", text)
    return {tuple(map(float, numbers)) for numbers in found}


def test_tables_and_numbers_of_the_pages_are_made_from_the_committed_rows(tmp_path):
    printed = set()
    for name in ("auc_phantom", "auc_nih10k", "auc_nih10k_first", "auc_nih_mini", "groups_nih10k", "maps"):
        table = pd.read_csv(ROOT / "docs" / f"{name}.csv").round(3)
        for columns in (AUC, GAP, ["lead", "lead_low", "lead_high"]):
            printed |= set(table.reindex(columns=columns).dropna().itertuples(index=False, name=None))
    for module, names, tables in COMMITTED:
        rows = pd.concat(pd.read_csv(ROOT / "docs" / f"{name}.csv", dtype=str) for name in names)
        rows[:8].to_csv(tmp_path / "rows.csv")
        rows[8:].assign(processor="AMD EPYC").to_csv(tmp_path / "more.csv")  # older rows lack this column
        has_others = names[0] in ("compare_nih10k", "compare_nih10k_first")  # cells of the phantom, too
        beside = ["--beside", str(ROOT / "docs" / "compare.csv")] * has_others
        module.main(["--rows", str(tmp_path / "rows.csv"), str(tmp_path / "more.csv"), *beside])
        without_minutes = names[0].startswith("recipes")  # there is no figure of them
        assert (tmp_path / "rows.png").exists() != without_minutes
        (tmp_path / "rows.png").unlink(missing_ok=True)
        text = (tmp_path / "rows.md").read_text()
        made = [part.strip() for part in text.split("\n\n") if part.strip().startswith("|")]
        missing = [table for table in made[:tables] if not any(f"\n{table}\n" in page for page in PAGES.values())]
        assert not missing, names
        printed |= stated(text)
    for name in ("folds_nih10k_auc", "folds_nih10k_chexnet_auc"):
        text = folds.format_folds(pd.read_csv(ROOT / "docs" / f"{name}.csv"))
        assert "\n" + text.partition("\n\n")[0] + "\n" in PAGES["docs/tried.md"]
        printed |= stated(text)
    printed |= {(-some[0], -some[2], -some[1]) for some in printed if len(some) == 3}  # the difference the other way
    for name, page in PAGES.items():
        page = re.sub(rf"^{WITHOUT_ROWS}\n.*?(?=^##)", "", page, flags=re.MULTILINE | re.DOTALL)
        assert stated(page) <= printed, name


def test_the_table_of_128_pixels_is_made_from_the_rows_of_both_sizes():
    both = [
        pd.read_csv(ROOT / f"docs/compare_nih10k_{name}.csv").set_index(["row", "seed"]) for name in ("128", "first")
    ]
    for (row, seed), large in both[0].drop(index=("chexnet", 1)).iterrows():  # at 64 px with these epochs no row
        aucs = [f"{rows.loc[(row, seed), auc]:.3f}" for auc in ("test_auc", "val_auc") for rows in both]
        line = [f"{row}, seed {seed}", *aucs, f"{large['epochs']:.0f}", f"{large['minutes']:.1f}"]
        assert f"\n| {' | '.join(line)} |\n" in PAGES["docs/tried.md"]


def test_the_table_of_groups_and_the_numbers_of_skips_are_made_from_the_rows_of_real_films():
    page = PAGES["docs/evidence.md"].replace("−", "-")
    groups = pd.read_csv(ROOT / "docs" / "groups_nih10k.csv")
    means = groups.query("finding == 'Average'")
    of_all = means.groupby("group")["difference"].mean().dropna()  # the largest groups have none
    for numbers in means.query("row == 'DARTS_V2' and seed == 1").itertuples():
        line = "| " + stats.format_interval(numbers.auc, numbers.low, numbers.high, "{:.3f}") + " |"
        if numbers.group in of_all:
            gap = numbers.difference, numbers.difference_low, numbers.difference_high
            line += f" {stats.format_interval(*gap, '{:+.3f}')} | {of_all[numbers.group]:+.3f} |"
        assert re.search(rf"^\|.*\| {numbers.group} \|.*{re.escape(line)}", page, flags=re.MULTILINE)
    trained = pd.read_csv(ROOT / "docs" / "compare_nih10k.csv")
    skips = trained["genotype"].str.count("skip_connect").groupby(trained["row"]).mean()
    told = f"{skips['first_order']:.1f} of the 16 edges of a normal and a reduction cell on average, where random ones "
    told += f"have {skips['random']:.1f} and small random ones {skips['random_small']:.1f}."
    page = re.sub(r"\s+", " ", page)
    assert told in page
    groups["sure"] = (groups["difference_low"] > 0) | (groups["difference_high"] < 0)
    sure = groups.groupby(["group", "finding"])["sure"].sum()
    counts = [sure["AP", finding] for finding in ("Effusion", "Pneumothorax", "Atelectasis", "Infiltration")]
    assert "effusion ({} of 35), pneumothorax ({}), atelectasis ({}) and infiltration ({})".format(*counts) in page
    assert f"in {sure['AP', 'Average']} of them the interval excludes zero" in page
    assert f"in {sure['0 to 39', 'Average']} the interval excludes zero" in page
    assert f"in {sure['F', 'Nodule']} the interval excludes zero" in page
    assert f"in these 35 trainings it is {sure.sum() / 35:.0f} on average" in page


@pytest.mark.long
@pytest.mark.parametrize("name", ["compare", "trainings", "speed", "hypergradient", "maps"])
def test_benchmarks_work_by_their_path_from_another_folder(name, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--help"]
    assert "usage: " in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("module", "name", "asked"),
    [
        (compare, "compare", ["random=1", "--dataset", "noise"]),
        (trainings, "trainings", ["chexnet.py", "--sets", "noise"]),
    ],
)
@pytest.mark.parametrize(("text", "problem"), [("", "No columns"), ("seed,epochs\none,2\n", "one"), ("a\n1\n", "no ")])
def test_files_that_hold_no_rows_are_named_before_anything_runs(module, name, asked, text, problem, here, tmp_path):
    rows = tmp_path / f"{name}.csv"
    rows.write_text(text)
    for arguments in (["--rows", str(rows)], [*asked, *here]):
        with pytest.raises(InputError, match=rf"{name}\.csv: not rows of this benchmark \(.*{problem}"):
            module.main(arguments)
    assert {path.stem for path in tmp_path.iterdir()} == {name}  # the rows and their lock


def test_a_training_that_is_there_twice_is_named_and_rows_of_other_names_come_last(tmp_path, capsys):
    known, rows = str(ROOT / "docs" / "compare.csv"), tmp_path / "compare.csv"
    twice = r"two rows are of dataset phantom, row CHESTXRAY14_FIRST_ORDER, seed 1: leave"
    with pytest.raises(InputError, match=twice):
        compare.main(["--rows", known, known])
    rows.write_text(Path(known).read_text().replace(",random,", ",mine,").replace(",chexnet,", ",another,"))
    compare.main(["--rows", str(rows)])
    table = re.findall(r"^\| (\w+) \| \d", capsys.readouterr().out, re.MULTILINE)
    assert table[0] == "first_order" and table[-2:] == ["another", "mine"]


# --- What cells are compared with, and statistics


def test_a_small_random_cell_is_the_smallest_of_its_draws(monkeypatch):
    monkeypatch.setattr(compare, "DRAWS", 5)
    for seed in (1, 2):
        drawn = [random_genotype(1000 * seed + k) for k in range(5)]
        sizes = [sum(p.numel() for p in Network(4, 3, 4, cell).parameters()) for cell in drawn]
        small = compare.cell_of("random_small", seed, SimpleNamespace(c=4, layers=4), findings=3)
        assert small == drawn[sizes.index(min(sizes))]


def test_networks_train_for_the_time_of_the_reference(tmp_path, monkeypatch):
    def network_step(network, data, training):
        timed.append((network, data[0].shape))
        return speed.network_step(network, data, training)

    timed, seconds = [], [1.3, 1.0]  # of a step of the network, and of the reference
    monkeypatch.setattr(compare, "network_step", network_step)
    monkeypatch.setattr(compare, "alternate", lambda steps, number: [step() for step in steps] and seconds)
    settings = SimpleNamespace(epochs=26, crop=32, batch_size=4, c=4, layers=4)
    network, other = (Network(4, 3, 4, cell) for cell in map(random_genotype, (1, 2)))
    reference = Network(4, 3, 4, PUBLISHED["DARTS_V2"])
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 20
    assert timed[0] == (network, (4, 3, 32, 32)) and timed[1][1] == (4, 3, 32, 32)
    assert sorted(timed[1][0].state_dict()) == sorted(reference.state_dict())
    seconds[0] = 1.0
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 20  # it is measured once
    assert compare.epochs_in_equal_time(tmp_path, network, 2, settings) == 13  # half the films in a step
    settings.epochs = 52
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 40
    seconds[0] = 100.0
    assert compare.epochs_in_equal_time(tmp_path, other, 4, settings) == 1


def test_the_interval_of_a_difference_is_welchs():
    # By hand: standard error sqrt(0.0025 + 0.01 / 12), 12 / 7 degrees of freedom, t = 5.068.
    middle, low, high = stats.difference(pd.Series([0.8, 0.9]), pd.Series([0.5, 0.5, 0.6, 0.6]))
    assert (middle, low, high) == pytest.approx((0.3, 0.0074, 0.5926), abs=1e-4)
    assert compare.format_difference(pd.Series([0.8]), pd.Series([0.5, 0.6])) == "+0.250"  # one training: no interval


def test_p_values_are_corrected_for_their_number():
    # Holm: the smallest times 3, the next times 2, none below one before it; a comparison that is none does not count.
    assert stats.holm([0.02, 0.01, np.nan, 0.9]) == pytest.approx([0.04, 0.03, np.nan, 0.9], nan_ok=True)
    assert stats.holm([0.011, 0.01, 0.7]) == pytest.approx([0.03, 0.03, 0.7])
    values, others = pd.Series([0.8, 0.9]), pd.Series([0.5, 0.5, 0.6, 0.6])  # as above
    assert stats.p_value(values, others) == pytest.approx(2 * t.sf(0.3 / sqrt(0.0025 + 0.01 / 12), 12 / 7))


def test_the_share_of_a_lead_has_the_spread_of_all_three_rows():
    part, whole, base = np.array([0.85, 0.87]), np.array([0.88, 0.90]), np.array([0.80, 0.82])
    share, low, high = stats.share_of_lead(part, whole, base)
    assert share == pytest.approx(0.05 / 0.08)
    # Of two trainings a resample has the lower, the higher or both: (0.85 − 0.82) / (0.90 − 0.82) is the least share.
    assert 0.03 / 0.08 - 1e-9 <= low < 0.5 and 0.75 < high <= 0.07 / 0.08 + 1e-9
    assert stats.share_of_lead(whole, whole, base)[0] == 1


def test_the_chance_of_a_training_is_that_between_trainings_of_one_cell():
    values, cells = pd.Series([0.70, 0.72, 0.80, 0.84, 0.90]), list("aabbc")
    # Variances within: 0.0002 and 0.0008, one degree of freedom each; of all: 0.00692; of 0.71, 0.82 and 0.90: 0.00910.
    assert stats.reliability(values, cells) == pytest.approx(1 - 0.0005 / 0.00692)
    assert stats.reliability(values, cells, of_means=True) == pytest.approx(1 - 0.0005 * 2 / 3 / 0.0091)
    assert stats.reliability(pd.Series([0.6, 0.8, 0.6, 0.8]), list("aabb")) == 0  # more between trainings than cells
    assert np.isnan(stats.reliability(values, list(range(5))))


def test_the_best_of_k_draws_is_the_mean_over_all_of_them():
    drawn = pd.DataFrame({"val_auc": [0.7, 0.9, 0.6, 0.8, 0.5], "test_auc": [0.75, 0.81, 0.66, 0.84, 0.52]})
    for k in range(1, 6):
        best = [max(draw, key=lambda row: row[0])[1] for draw in combinations(drawn.to_numpy(), k)]
        assert stats.best_of(drawn, k) == pytest.approx(mean(best))


def test_as_many_cells_are_drawn_as_the_minutes_of_a_search_and_a_training_allow():
    searched = pd.DataFrame({"search_minutes": [3.0, 5.0], "minutes": 2.0})  # 6 minutes on average
    for minutes, draws in ((2.0, 3), (5.0, 1), (50.0, 1), (0.0, 4)):  # at least one, at most all
        assert stats.draws_in_equal_time(searched, pd.DataFrame({"minutes": [minutes] * 4})) == draws


def test_two_sets_are_set_beside_each_other_over_the_cells_that_both_have():
    def rows(dataset, **cells):
        trained = [(dataset, cell, auc) for cell, aucs in cells.items() for auc in aucs]
        return pd.DataFrame([*trained, (dataset, None, 0.9)], columns=["dataset", "genotype", "test_auc"])

    drawn = rows("phantom", a=[0.80], b=[0.72, 0.90], c=[0.82], d=[0.84], only_here=[0.1])
    real = rows("nih10k", d=[0.64], c=[0.65], a=[0.61], b=[0.60, 0.65], only_there=[0.9])
    # Ranks by the means 1, 2, 3, 4 and 1, 2, 4, 3: 1 − 6 · 2 / (4 · 15).
    text = r"on phantom and on nih10k, over the 4 cells trained on both: \+0\.80 \[(.*), (.*)\] \(95 %"
    low, high = map(float, re.search(text, compare.format_agreement(drawn, real)).groups())
    assert -1 <= low < 0.8 < high <= 1
    with pytest.raises(InputError, match="0 cells were trained on phantom and on noise"):
        compare.format_agreement(drawn, rows("noise", e=[0.5]))
