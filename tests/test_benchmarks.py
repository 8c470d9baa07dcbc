"""The benchmarks at their smallest: they run, and print every row they promise."""

import importlib
import json
import re
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import compare, hypergradient, parts, quality, recipes, speed
from genotypes import PUBLISHED, random_genotype
from scores import AVERAGE, COSTS, read_scores
from support import settings
from support.files import InputError
from tests.test_scripts import NETWORK, ROOT, SMALL


@pytest.mark.long
def test_speed_prints_every_row(capsys, monkeypatch):
    monkeypatch.setattr(speed, "peak_memory", lambda side, order, setting: 1.0)
    monkeypatch.setattr(sys, "argv", ["speed", "--setting", "tiny", "--steps", "1"])
    speed.main()
    text = capsys.readouterr().out
    rows = ["first order", "second order", "exact product"]
    rows = [f"search step, {row}" for row in rows]
    rows += [f"{name}, {what}" for name in ("derived network", "CheXNet") for what in ("training step", "inference")]
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines() if " s | " in line] == rows
    assert "A second-order step takes" in text
    assert re.search(
        r"a first-order step makes \d+ G multiply-adds, \d+ G a second; a matrix product makes \d+ G", text
    )


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_memory_is_measured_in_a_process_of_its_own():
    """A parent that has used much more must not count."""
    torch.ones(500_000_000)  # 2 GB, given back at once
    options = ["--setting", "tiny", "--memory-of", "ours", "second"]
    command = [sys.executable, "-m", "benchmarks.speed", *options]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert 0.1 < float(result.stdout) < 1.5


@pytest.mark.long
def test_hypergradient_prints_every_precision_and_radius(capsys, monkeypatch, small_set):
    monkeypatch.setattr(hypergradient, "RADII", [1e-2, 1e-4])
    monkeypatch.setattr(sys, "argv", ["hypergradient", "--tiny", "--data", str(small_set), "--dataset", "noise"])
    hypergradient.main()
    text = capsys.readouterr().out
    assert text.count("###") == 4  # fresh and trained, each with its smooth twin
    for precision in hypergradient.PRECISIONS:
        rows = [line for line in text.splitlines() if line.startswith(f"| {precision} ")]
        assert len(rows) == 4 * (len(hypergradient.RADII) + 2)
    # Float64, the smooth twin, a small radius: the differences are right there.
    fresh_smooth = text.split("### fresh, smooth twin")[1].split("###")[0]
    (row,) = [line for line in fresh_smooth.splitlines() if line.startswith("| float64 | 1e-04")]
    assert float(row.split("|")[4]) < 1e-4


@pytest.fixture
def here(monkeypatch, small_set, table_alone):
    """Scripts in this process, not in one of their own; options of a smallest set and network."""

    def run(name, out, *arguments):
        module = importlib.import_module(name.removesuffix(".py"))
        settings.start(module.main, ROOT / name, list(map(str, ["--out", out, *arguments])))

    for module in (compare, quality, recipes):
        monkeypatch.setattr(module, "script", run)
    for module in (parts, quality):
        monkeypatch.setattr(module, "side_by_side", lambda parts, jobs: [part() for part in parts])
    small = " ".join(SMALL[2:])
    networks = ["--train", " ".join([small, *NETWORK]), "--chexnet", small]
    return ["--dataset", "noise", "--data", str(small_set), *networks]


@pytest.mark.long
def test_compare_runs_every_part_once_and_tables_all_trainings(here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "DRAWS", 2)
    options = [*here, "--out", str(tmp_path), "--search", " ".join([*SMALL[2:], *NETWORK])]
    parts = ["first_order=1", "second_order_exact=1", "random=1", "random=2-2", "random_small=1", "DARTS_V1=1"]
    parts += ["chexnet_equal_time=1", "chexnet=1"]
    measured = []  # all are twice as fast as the reference: twice the epochs
    monkeypatch.setattr(compare, "step_ratio", lambda *of: measured.append(of) or 0.5)
    compare.main([*parts, *options])
    trained = pd.read_csv(tmp_path / "compare.csv").set_index(["row", "seed"])
    assert [f"{row}_{seed}" for row, seed in sorted(trained.index)] == sorted(
        path.name for path in tmp_path.iterdir() if path.is_dir()
    )
    for row, seed, name in (
        ("second_order_exact", 1, "second_order"),
        ("random", 2, "random_2"),
        ("random_small", 1, "random_small"),
        ("chexnet_equal_time", 1, "chexnet"),
        ("chexnet", 1, "chexnet"),
    ):
        scores = read_scores(tmp_path / f"{row}_{seed}" / "results" / "auc.csv").loc[(name, AVERAGE)]
        assert trained.loc[(row, seed), ["test_auc", *COSTS]].to_list() == pytest.approx(
            scores[["auc", *COSTS]].to_list(), abs=1e-4
        )
    assert trained.loc[("random", 2), "genotype"] == str(random_genotype(2))
    assert trained["epochs"][["DARTS_V1", "chexnet_equal_time", "chexnet"]].to_list() == [2, 2, 1]
    record = json.loads((tmp_path / "second_order_exact_1/search_second_order/settings.json").read_text())
    assert record["settings"]["exact_product"] and record["settings"]["seed"] == 1
    text = (tmp_path / "compare.md").read_text()
    average, deviation = trained.loc["random", "test_auc"].agg(["mean", "std"])
    assert f"| random | 2 | {average:.3f} ± {deviation:.3f} | – |" in text
    assert text.count("| first_order | ") == text.count("| second_order_exact | ") == 2  # and once among the draws

    made = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*_net.pth"), *tmp_path.rglob("auc.csv")]}
    compare.main([*parts, *options])
    assert len(measured) == 7 and {path: path.stat().st_mtime_ns for path in made} == made
    (tmp_path / "rows").mkdir()
    (tmp_path / "compare.csv").rename(tmp_path / "rows" / "compare.csv")
    compare.main(["--rows", str(tmp_path / "rows" / "compare.csv")])
    assert (tmp_path / "rows" / "compare.md").read_text() == text and (tmp_path / "rows" / "compare.png").exists()

    # A part that trains again is scored again, and its row takes the place of the old one among the others.
    (tmp_path / "rows" / "compare.csv").rename(tmp_path / "compare.csv")
    compare.main(
        ["random=1", *options, "--train", f"{options[options.index('--train') + 1]} --one-cycle-lr 0.05 --fresh"]
    )
    again = pd.read_csv(tmp_path / "compare.csv").set_index(["row", "seed"])
    scores = read_scores(tmp_path / "random_1" / "results" / "auc.csv").loc[("random_1", AVERAGE)]
    assert again.loc[("random", 1), "test_auc"] == scores["auc"] != trained.loc[("random", 1), "test_auc"]
    others = trained.index.drop(("random", 1))
    pd.testing.assert_frame_equal(again.loc[others], trained.loc[others])
    with pytest.raises(InputError, match="search_first_order is a search, and --cells is for cells of others"):
        compare.main(["first_order=1", *options, "--cells", str(tmp_path / "compare.csv")])


@pytest.mark.long
def test_compare_trains_the_cells_that_an_earlier_comparison_found(here, tmp_path):
    earlier = tmp_path / "earlier.csv"
    found = [("first_order", 1, 3), ("first_order", 2, 5), ("random", 2, 7)]
    rows = [{"row": row, "seed": seed, "genotype": random_genotype(draw)} for row, seed, draw in found]
    others = dict.fromkeys(compare.COLUMNS.keys() - rows[0].keys(), 1)
    pd.DataFrame(rows).assign(**others | {"search_minutes": [3.25, 4.5, None]}).to_csv(earlier)
    options = [*here, "--out", str(tmp_path / "out"), "--cells", str(earlier)]
    compare.main(["first_order=2-2", *options])
    trained = pd.read_csv(tmp_path / "out" / "compare.csv").iloc[0]
    assert trained["genotype"] == str(random_genotype(5)) and trained["search_minutes"] == 4.5
    with pytest.raises(InputError, match=r"earlier\.csv: 0 rows are first_order of seed 3"):
        compare.main(["first_order=1-3", *options])
    assert not (tmp_path / "out" / "first_order_1").exists()  # said before anything is trained


@pytest.mark.long
def test_quality_trains_for_the_minutes_asked_and_tables_them(here, tmp_path, capsys, monkeypatch):
    facts = quality.facts  # 3 s an epoch, so that 6 and 12 s are 2 and 4 epochs, whatever the machine does
    monkeypatch.setattr(quality, "facts", lambda run: facts(run) | {"epoch_seconds": 3})
    here = [part.replace(" --epochs 1", "") for part in here]
    options = ["DARTS_V1", "chexnet", "--minutes", "0.1", "0.2", *here, "--out", str(tmp_path)]
    quality.main(options)
    trained = pd.read_csv(tmp_path / "quality.csv")
    assert trained[["network", "asked", "epochs"]].to_numpy().tolist() == [
        ["DARTS_V1", 0.1, 2], ["chexnet", 0.1, 2], ["DARTS_V1", 0.2, 4], ["chexnet", 0.2, 4],
    ]  # fmt: skip
    weights = torch.load(tmp_path / "chexnet_0.2min_0" / "weights" / "chexnet_net.pth", weights_only=True)
    assert trained["val_auc"][3] == weights["val_auc"] and trained["parameters_millions"][3] == 6.9682
    text = (tmp_path / "quality.md").read_text()
    assert f"| chexnet | 6.97 | {trained['val_auc'][1]:.3f} (2 epochs" in text
    quality.main(["--rows", str(tmp_path / "quality.csv")])
    assert (tmp_path / "quality.md").read_text() == text and (tmp_path / "quality.png").exists()


def test_recipes_trains_every_command_on_every_set_with_every_seed(here, tmp_path, capsys):
    small = "val_train.py --genotype DARTS_V1 " + " ".join([*SMALL[2:], *NETWORK])
    options = ["--sets", "noise", "--seeds", "0", "3", *here[2:4], "--out", str(tmp_path)]
    recipes.main([small, f"{small} --recipe reference", *options])
    trained = pd.read_csv(tmp_path / "recipes.csv").set_index(["command", "seed"])
    assert list(trained.index) == [
        (command, seed) for seed in (0, 3) for command in (small, f"{small} --recipe reference")
    ]
    saved = torch.load(
        next(tmp_path.glob("*recipe_reference_*_small_3")) / "weights" / "DARTS_V1_net.pth", weights_only=True
    )
    assert trained["val_auc"][f"{small} --recipe reference", 3] == saved["val_auc"]
    assert saved["settings"]["recipe"] == "reference"
    text = (tmp_path / "recipes.md").read_text()
    first, second = trained.loc[small, "val_auc"]
    minutes = trained.loc[small, "minutes"].mean()
    assert f"| `{small}` | 1 | {minutes:.1f} | {first:.3f} | {second:.3f} | {(first + second) / 2:.3f} |" in text
    recipes.main(["--rows", str(tmp_path / "recipes.csv")])
    assert (tmp_path / "recipes.md").read_text() == text
    with pytest.raises(InputError, match="must begin with val_train"):
        recipes.main(["rm -r data"])
    with pytest.raises(InputError, match="No closing quotation"):
        recipes.main(["val_train.py --genotype 'x"])
    with pytest.raises(InputError, match="name at least one command"):
        recipes.main([])


def test_the_error_of_the_part_that_failed_first_is_shown(tmp_path):
    def goes_on():
        failed.wait(60)
        parts.script("val_train.py", tmp_path)

    def fails():
        failed.set()
        raise InputError("why")

    failed = threading.Event()
    with pytest.raises(InputError, match="why"):
        parts.side_by_side([goes_on, fails], 2)
    with pytest.raises(InputError, match="--jobs is 0 and must be at least 1"):
        parts.side_by_side([fails], 0)


@pytest.mark.long
def test_a_benchmark_that_is_asked_to_stop_stops_its_script(small_set, tmp_path):
    training = " ".join(["val_train.py --genotype DARTS_V1", *SMALL[2:], *NETWORK, "--epochs 1000"])
    options = ["--sets", "noise", "--seeds", "1", "--data", str(small_set), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.recipes", training, *options]
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not list(tmp_path.rglob("metrics.jsonl")):
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 130
    (said,) = tmp_path.rglob("output.txt")
    assert "stopped by SIGTERM; the same command goes on" in said.read_text()


def test_parts_run_side_by_side_and_end_where_one_fails(tmp_path):
    both = threading.Barrier(2)  # each of two parts waits for the other
    begun = []
    assert sorted(parts.side_by_side([partial(both.wait, 60)] * 2, 2)) == [0, 1]
    with pytest.raises(
        SystemExit, match=r"val_train\.py failed, see the end of .*output\.txt; start this command again"
    ):
        fails = partial(parts.script, "val_train.py", tmp_path, "--epochs", 0)
        parts.side_by_side([fails, *[partial(begun.append, 1)] * 9], 1)
    assert "EPOCHS (--epochs) is 0" in (tmp_path / "output.txt").read_text()
    assert not begun
    with pytest.raises(SystemExit):  # nothing more starts
        parts.script("val_train.py", tmp_path / "next")
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("module", [compare, quality, recipes])
@pytest.mark.parametrize(("text", "problem"), [("", "No columns"), ("seed,epochs\none,2\n", "one"), ("a\n1\n", "no ")])
def test_files_that_hold_no_rows_are_named(module, text, problem, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(InputError, match=rf"rows\.csv: not rows of this benchmark \(.*{problem}"):
        module.main(["--rows", str(tmp_path / "rows.csv")])


def test_rows_of_an_unknown_name_are_named(tmp_path, monkeypatch):
    (tmp_path / "compare.csv").write_text(Path("docs/compare.csv").read_text().replace(",second_order,", ",second,", 1))
    with pytest.raises(InputError, match=r"compare\.csv: row 'second' must be one of first_order, "):
        compare.main(["--rows", str(tmp_path / "compare.csv")])
    trained = []
    monkeypatch.setattr(compare, "run_part", lambda *part: trained.append(part) or {})
    with pytest.raises(InputError, match=r"compare\.csv: row 'second' must be"):
        compare.main(["random=1", "--out", str(tmp_path)])
    assert not trained


@pytest.mark.parametrize("text", ["first_order", "first=3", "random=0", "random=x", "=3", "random=3-2"])
def test_compare_names_a_part_that_it_does_not_know(text):
    with pytest.raises(InputError, match=f"{text!r} must be ROW=N"):
        compare.main([text])


def test_compare_takes_a_number_of_seeds_or_the_first_and_the_last():
    assert compare.read_part("random=3") == ("random", range(1, 4))
    assert compare.read_part("chexnet=11-30") == ("chexnet", range(11, 31))


def test_a_small_random_cell_is_the_smallest_of_its_draws(monkeypatch):
    monkeypatch.setattr(compare, "DRAWS", 5)
    settings = SimpleNamespace(c=4, layers=4)
    for seed in (1, 2):
        drawn = [random_genotype(1000 * seed + k) for k in range(5)]
        sizes = [sum(p.numel() for p in compare.Network(4, 14, 4, cell).parameters()) for cell in drawn]
        assert compare.small_genotype(seed, settings) == drawn[sizes.index(min(sizes))]


def test_the_interval_of_a_difference_is_welchs():
    # By hand: standard error sqrt(0.0025 + 0.01 / 12), 12 / 7 degrees of freedom, t = 5.068.
    assert compare.difference(pd.Series([0.8, 0.9]), pd.Series([0.5, 0.5, 0.6, 0.6])) == "+0.300 [+0.007, +0.593]"
    assert compare.difference(pd.Series([0.8]), pd.Series([0.5, 0.6])) == "+0.250"


def test_networks_train_for_the_time_of_the_reference(tmp_path, monkeypatch):
    settings = SimpleNamespace(epochs=26, crop=32, batch_size=4, c=4, layers=4)
    trained = []

    def alternate(steps, number):
        for step in steps:
            step()
        return times

    def network_step(network, data, training):
        trained.append((network, len(data[0])))
        return real_step(network, data, training)

    real_step = compare.network_step
    monkeypatch.setattr(compare, "alternate", alternate)
    monkeypatch.setattr(compare, "network_step", network_step)
    network = compare.Network(4, 14, 4, random_genotype(1))
    times = [1.3, 1.0]
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 20
    reference = compare.Network(4, 14, 4, PUBLISHED["DARTS_V2"])
    assert trained[0] == (network, 4) and trained[1][1] == 4
    assert sorted(trained[1][0].state_dict()) == sorted(reference.state_dict())
    times = [1.0, 1.0]  # it is measured once
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 20
    settings.epochs = 52
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 40
    settings.epochs = 26
    assert compare.epochs_in_equal_time(tmp_path, network, 2, settings) == 13  # half the films in a step
    assert trained[2] == (network, 2) and trained[3][1] == 4
    times = [100.0, 1.0]
    network = compare.Network(4, 14, 4, random_genotype(2))
    assert compare.epochs_in_equal_time(tmp_path, network, 4, settings) == 1


def test_the_best_of_k_draws_is_the_mean_over_all_of_them():
    drawn = pd.DataFrame({"val_auc": [0.7, 0.9, 0.6, 0.8, 0.5], "test_auc": [0.75, 0.81, 0.66, 0.84, 0.52]})
    for k in range(1, 6):
        best = [max(draw, key=lambda row: row[0])[1] for draw in combinations(drawn.to_numpy(), k)]
        assert compare.best_of(drawn, k) == pytest.approx(mean(best))


def test_searched_cells_are_set_against_random_ones_of_their_size_and_against_k_of_them():
    random = {"row": "random", "parameters_millions": [0.40, 0.45, 0.37, 0.43], "test_auc": [0.5, 0.9, 0.6, 0.7]}
    random |= {"val_auc": [0.5, 0.9, 0.6, 0.7], "minutes": 2.0}
    found = {"row": "first_order", "parameters_millions": [0.38, 0.42], "test_auc": [0.8, 0.95]}
    found |= {"val_auc": 0.8, "minutes": 2.0, "search_minutes": [3.0, 5.0]}
    trained = pd.concat([pd.DataFrame(random), pd.DataFrame(found)])
    # Three random cells have 0.36 to 0.44 M; 6 minutes are three draws, and three of four choices hold the best cell.
    apart = compare.difference(pd.Series([0.8, 0.95]), pd.Series([0.5, 0.6, 0.7]))
    ahead = f"{0.875 - (3 * 0.9 + 0.7) / 4:+.3f} (3)"
    assert f"| first_order | 3 | {apart} | – | {ahead} | – |" in compare.format_draws(trained)
    small = {"row": "random_small", "parameters_millions": [0.41, 0.5], "test_auc": [0.4, 0.3]}
    small = pd.DataFrame(small | {"val_auc": [0.3, 0.4], "minutes": 5.0})  # one in the minutes
    apart = compare.difference(pd.Series([0.8, 0.95]), pd.Series([0.5, 0.6, 0.7, 0.4]))
    apart += " | " + compare.difference(pd.Series([0.8, 0.95]), small["test_auc"])
    assert f"| first_order | 4 | {apart} | {ahead} | +0.525 (1) |" in compare.format_draws(pd.concat([trained, small]))
    assert " (4) | " in compare.format_draws(trained.assign(minutes=0.0))  # all of them
    assert compare.format_draws(pd.DataFrame(found)) == ""


def test_two_sets_are_set_beside_each_other_over_the_cells_that_both_have():
    def rows(dataset, **cells):
        trained = [(dataset, cell, auc) for cell, aucs in cells.items() for auc in aucs]
        return pd.DataFrame([*trained, (dataset, None, 0.9)], columns=["dataset", "genotype", "test_auc"])

    drawn = rows("phantom", a=[0.80], b=[0.72, 0.90], c=[0.82], d=[0.84], only_here=[0.1])
    real = rows("nih10k", d=[0.64], c=[0.65], a=[0.61], b=[0.60, 0.65], only_there=[0.9])
    text = compare.format_agreement(drawn, real)
    # Ranks by the means 1, 2, 3, 4 and 1, 2, 4, 3: 1 − 6 · 2 / (4 · 15).
    assert "on phantom and on nih10k, over the 4 cells" in text and " +0.80 [" in text
    low, high = map(float, re.search(r"\[(.*), (.*)\] \(95 %", text).groups())
    assert -1 <= low < 0.8 < high <= 1
    with pytest.raises(InputError, match="0 cells were trained on phantom and on noise"):
        compare.format_agreement(drawn, rows("noise", e=[0.5]))
