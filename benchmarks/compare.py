"""Which cells are better: searched with either order or with the exact product, or drawn at random; beside CheXNet.

    python -m benchmarks.compare --seeds 1 2 3      hours: about 50 minutes a seed on one CPU core (phantom)

For each seed: a first-order search, a second-order one with the paper's product and one with the exact product; a
training of each cell found and of random cells, other ones for every seed; CheXNet; and the test AUC. Cells share one
recipe, the default of val_train.py; CheXNet has its own. Each part is a script's run below <out>/seed_<seed>/: stop
this and start it again as you like, or start one per core with seeds of its own; what is finished is not run again.

Prints a table over the seeds and writes it to <out>/compare.md, every run to <out>/compare.csv, a figure beside them.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
from scipy.stats import ttest_ind

import visualize
from genotypes import random_genotype, save_genotype
from scores import AVERAGE, COSTS, read_scores
from support.settings import guarded

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("first_order", "second_order", "second_order_exact", "random", "chexnet")


def run(options, script, *arguments):
    """One script, in a process of its own; where it fails, everything ends."""
    command = [ROOT / script, "--dataset", options.dataset, "--data", options.data, *arguments]
    print(" ".join(map(str, command)), flush=True)
    if subprocess.run([sys.executable, *command], check=False).returncode:
        raise SystemExit(f"error: {script} failed, see above; start this command again to go on")


def run_seed(options, seed):
    """Everything for one seed; its folder."""
    folder = Path(options.out) / f"seed_{seed}"
    here = ["--seed", str(seed), "--out", folder]
    search, train = shlex.split(options.search), shlex.split(options.train)
    for order in ([], ["--second-order"]):
        run(options, "search_train.py", *here, *order, *search)
        run(options, "val_train.py", *here, *order, *train)

    # Both products write search_second_order, so the exact one's search lies elsewhere; a cell is named by its file.
    exact = folder / "exact"
    run(options, "search_train.py", "--seed", str(seed), "--out", exact, "--second-order", "--exact-product", *search)
    cells = folder / "cells"
    cells.mkdir(exist_ok=True)
    found = exact / "search_second_order" / "genotype.txt"
    (cells / "second_order_exact.txt").write_bytes(found.read_bytes())
    for k in range(options.random):
        save_genotype(cells / f"draw_{k}.txt", random_genotype(1000 * seed + k))
    for cell in sorted(cells.glob("*.txt")):
        run(options, "val_train.py", *here, "--genotype", cell, *train)

    run(options, "chexnet.py", *here, *shlex.split(options.chexnet))
    run(options, "test.py", "--out", folder)
    return folder


def search_minutes(folder):
    """{row: minutes that its search took}."""
    places = {name: folder / f"search_{name}" for name in ("first_order", "second_order")}
    places["second_order_exact"] = folder / "exact" / "search_second_order"
    lines = {name: (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name, place in places.items()}
    return {name: json.loads(rows[-1])["seconds"] / 60 for name, rows in lines.items()}


def collect(folders):
    """A data frame with a row per trained network: seed, name, row of the table, test AUC, costs, search minutes."""
    trained = []
    for folder in folders:
        averages = read_scores(folder / "results" / "auc.csv").xs(AVERAGE, level="finding")
        minutes = search_minutes(folder)
        for name, scores in averages.iterrows():
            row = "random" if name.startswith("draw_") else name
            costs = dict(zip(("Parameters (M)", "Multiply-adds (G)"), scores[COSTS], strict=True))
            auc = {"auc": scores["auc"], "search (min)": minutes.get(row)}
            trained.append({"seed": folder.name.removeprefix("seed_"), "name": name, "row": row} | auc | costs)
    return pd.DataFrame(trained)


def difference(auc, other):
    """Difference of two means and its 95 % interval over trainings (Welch's t), where each has at least two."""
    low, high = ttest_ind(auc, other, equal_var=False).confidence_interval(0.95)
    return f"{auc.mean() - other.mean():+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low < high else "")


def format_table(trained, title):
    """Mean ± standard deviation over all trainings of a row, in Markdown."""
    columns = {"auc": "{:.3f}", "search (min)": "{:.1f}", "Parameters (M)": "{:.2f}", "Multiply-adds (G)": "{:.3f}"}
    lines = [f"**{title}**", "", "| | trainings | test AUC | " + " | ".join([*columns][1:]) + " | AUC − random |"]
    lines.append("|---" + "|---:" * (len(columns) + 2) + "|")
    drawn = trained["auc"][trained["row"] == "random"]
    for row in ROWS:
        runs = trained[trained["row"] == row]
        cells = [
            "–" if runs[key].isna().all() else f"{form} ± {form}".format(runs[key].mean(), runs[key].std())
            for key, form in columns.items()
        ]
        cells.append("" if row == "random" else difference(runs["auc"], drawn))
        lines.append(f"| {row} | {len(runs)} | " + " | ".join(cells) + " |")
    note = "In brackets: 95 % interval of the difference of two means over trainings (Welch)."
    return "\n".join([*lines, "", note]) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="none that a setting was chosen with")
    parser.add_argument("--random", type=int, default=5, help="random cells for each seed")
    parser.add_argument("--dataset", default="phantom", help="a prepared set")
    parser.add_argument("--data", default="data", help="folder of the prepared sets")
    parser.add_argument("--out", default="compare", help="where everything is written")
    for name, script in (("search", "search_train.py"), ("train", "val_train.py"), ("chexnet", "chexnet.py")):
        parser.add_argument(f"--{name}", default="", help=f'options for {script} in one string: --{name}="--epochs 3"')
    options = parser.parse_args(arguments)

    options.seeds = list(dict.fromkeys(options.seeds))  # a seed given twice is one training, not two
    trained = collect(folders := [run_seed(options, seed) for seed in options.seeds])
    title = (folders[0] / "results" / "auc.md").read_text(encoding="utf-8").split("**")[1]
    text = format_table(trained, f"Average {title}; seeds {', '.join(map(str, options.seeds))}")
    out = Path(options.out)
    trained.to_csv(out / "compare.csv", index=False)
    (out / "compare.md").write_text(text, encoding="utf-8")
    visualize.draw_comparison(out / "compare.png", {row: trained["auc"][trained["row"] == row] for row in ROWS})
    print(text)


if __name__ == "__main__":
    with guarded():
        main()
