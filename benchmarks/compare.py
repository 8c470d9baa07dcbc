"""Which cells are better: searched, by either order or the exact product, drawn at random, or published; and CheXNet.

    python -m benchmarks.compare first_order=10 random=30 chexnet=3 --jobs 2

makes 10 first-order searches and a training of each cell found, trainings of 30 random cells, and 3 of CheXNet, with
the seeds from 1 on, which also draw the random cells; then it scores them on the test split. Further rows are
second_order, second_order_exact, random_small (random cells about as small as searched ones), published cells by name,
and chexnet_equal_time. Cells share one recipe, the default of val_train.py, and one time of training, that of
DARTS_V2's cell in the default number of epochs: a cell whose steps take longer has fewer epochs. How much longer is
measured by steps of both networks in turn. chexnet_equal_time has this time, too; chexnet has chexnet.py's epochs.

Each part has a folder <out>/<row>_<seed>/ and is a process of one thread. Stop this and start it again as you like:
what is finished is not run again. Every training becomes a row of <out>/compare.csv, beside the rows of earlier
commands. A table and a figure are made from it, <out>/compare.md and compare.png; --rows FILE makes them from a file
alone. random=11-30 are the seeds 11 to 30: several machines can share the work, and their rows, put into one file, make
one table. --cells FILE, rows of an earlier comparison, trains the cells that its searches found, on another set or
longer. --beside OTHER, the rows of another set, adds how far the two sets agree on which cells are better.
"""

import re
import threading
from functools import partial
from math import comb
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from scipy.stats import percentileofscore, ttest_ind

from benchmarks.parts import FACTS, ROOT, collect, facts, make_parser, read_rows, script
from benchmarks.speed import alternate, batch, network_step
from chexnet import CheXNet
from dataset import FINDINGS
from genotypes import PUBLISHED, load_genotype, parse_genotype, random_genotype, save_genotype
from model_eval import Network
from report.figures import draw_comparison
from scores import AVERAGE, COSTS, read_scores
from support.files import InputError, write
from support.settings import guarded, parse_settings

SEARCHED = {
    "first_order": [],
    "second_order": ["--second-order"],
    "second_order_exact": ["--second-order", "--exact-product"],
}
ROWS = (*SEARCHED, "random", "random_small", *PUBLISHED, "chexnet_equal_time", "chexnet")
KEY = ("dataset", "row", "seed")
COLUMNS = FACTS | {"dataset": str, "row": str, "seed": int, "genotype": str}  # of the CSV
COLUMNS |= dict.fromkeys(("test_auc", *COSTS, "search_minutes"), float)
REFERENCE = "DARTS_V2"  # trains for the default number of epochs, other cells as long as it does
STEPS = 31  # of each of two networks, to measure which takes longer
MEASURING = threading.Lock()  # parts share this process
DRAWS = 100  # of which random_small is the smallest: about 0.33 M parameters, searched cells have 0.31 M
SIZE_BAND = 0.1  # a random cell is of some size where its parameters differ by at most this share
DEFAULT = ("first_order=3", "second_order=3", "random=6", "chexnet=3")


def read_part(text):
    """(row, its seeds, a range) of "ROW=N", which are 1 to N, or of "ROW=A-B"."""
    row, _, seeds = text.partition("=")
    given = re.fullmatch("(?:([1-9][0-9]{0,3})-)?([1-9][0-9]{0,3})", seeds)
    seeds = range(int(given[1] or 1), int(given[2]) + 1) if given else ()
    if row not in ROWS or not seeds:
        raise InputError(f"{text!r} must be ROW=N or ROW=A-B, seeds 1 to N or A to B, and ROW one of {', '.join(ROWS)}")
    return row, seeds


def small_genotype(seed, settings):
    """The random cell with the fewest parameters of DRAWS, of the seeds from 1000 · seed on."""

    def size(genotype):
        with torch.device("meta"):  # without memory
            network = Network(settings.c, len(FINDINGS), settings.layers, genotype)
        return sum(p.numel() for p in network.parameters())

    return min(map(random_genotype, range(1000 * seed, 1000 * seed + DRAWS)), key=size)


def step_ratio(network, batch_size, settings):
    """Seconds that training takes for a film, over those of the reference's network; on one thread of the CPU."""
    reference = Network(settings.c, len(FINDINGS), settings.layers, PUBLISHED[REFERENCE])
    pairs = (network, batch_size), (reference, settings.batch_size)
    with MEASURING:
        torch.set_num_threads(1)
        steps = [network_step(some, batch(settings.crop, films, seed=0), training=True) for some, films in pairs]
        ours, theirs = alternate(steps, STEPS)
    return (ours / batch_size) / (theirs / settings.batch_size)


def epochs_in_equal_time(out, network, batch_size, settings):
    """Epochs of this network in the time of the reference's settings.epochs.

    Measured once for a network and its settings, in out/step_ratio_<checksum of these>.txt: a run goes on with as many.
    """
    of = f"{network} {batch_size} {settings.batch_size} {settings.crop} {settings.c} {settings.layers}"
    measured = out / f"step_ratio_{crc32(of.encode()):08x}.txt"
    if not measured.exists():
        out.mkdir(parents=True, exist_ok=True)
        write(measured, f"{step_ratio(network, batch_size, settings)}\n")
    return max(1, round(settings.epochs / float(measured.read_text(encoding="utf-8"))))


def read(path):
    """The rows of a compare.csv, as a data frame. Raises InputError."""
    rows = read_rows(path, COLUMNS)
    if unknown := set(rows["row"]) - set(ROWS):
        raise InputError(f"{path}: row {min(unknown)!r} must be one of {', '.join(ROWS)}")
    return rows


def find_cells(path, parts):
    """{(row, seed): (genotype, minutes of its search)} of those parts that search, from the rows of a compare.csv."""
    known = read(path)
    cells = {}
    for row, seed in parts:
        if row in SEARCHED:
            found = known[(known["row"] == row) & (known["seed"] == seed)]
            if len(found) != 1:
                raise InputError(f"--cells {path}: {len(found)} rows are {row} of seed {seed}, it takes 1")
            cells[row, seed] = parse_genotype(found["genotype"].item()), found["search_minutes"].item()
    return cells


def take_cell(genotype, folder):
    """Write a cell that another search found as the genotype.txt of a search."""
    if (folder / "settings.json").exists():
        raise InputError(f"{folder} is a search, and --cells is for cells of others: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    save_genotype(folder / "genotype.txt", genotype)


def run_part(options, row, seed, cell_found):
    """Search where the row says so, train, score; a row of the table.

    cell_found (genotype, minutes of its search), of `find_cells`: is trained instead of searching. Else None.
    """
    out = Path(options.out) / f"{row}_{seed}"
    on = ["--dataset", options.dataset, "--data", options.data]
    on_seed = [*on, "--seed", str(seed)]
    settings = parse_settings(ROOT / "val_train.py", [*options.train, *on])
    name = f"random_{seed}" if row == "random" else re.sub("_(exact|equal_time)$", "", row)  # of the network
    order = ["--second-order"] if name == "second_order" else []
    search_minutes = None
    if name == "chexnet":
        given = [*options.chexnet, *on_seed]
        if row == "chexnet_equal_time":
            batch_size = parse_settings(ROOT / "chexnet.py", given).batch_size
            given += ["--epochs", epochs_in_equal_time(out, CheXNet(len(FINDINGS)), batch_size, settings)]
        script("chexnet.py", out, *given)
    else:
        if row in SEARCHED:
            if cell_found:
                genotype, search_minutes = cell_found
                take_cell(genotype, out / f"search_{name}")
            else:
                script("search_train.py", out, *options.search, *on_seed, *SEARCHED[row])
                search_minutes = facts(out / f"search_{name}")["minutes"]
            genotype, cell = load_genotype(out / f"search_{name}" / "genotype.txt"), order
        elif row == "random_small":
            genotype = small_genotype(seed, settings)
            cell = ["--genotype", f"{row} = {genotype!r}"]
        else:
            genotype, cell = PUBLISHED[row] if row in PUBLISHED else random_genotype(seed), ["--genotype", row]
        epochs = settings.epochs
        if row != REFERENCE:
            network = Network(settings.c, len(FINDINGS), settings.layers, genotype)
            epochs = epochs_in_equal_time(out, network, settings.batch_size, settings)
        script("val_train.py", out, *options.train, *on_seed, *cell, "--epochs", epochs)
    scored, weights = out / "results" / "auc.csv", out / "weights" / f"{name}_net.pth"
    if not scored.exists() or scored.stat().st_mtime < weights.stat().st_mtime:
        script("test.py", out, *on, *order)
    scores = read_scores(scored).loc[(name, AVERAGE)]
    trained = facts(out / "weights" / name)
    return {
        "dataset": options.dataset,
        "row": row,
        "seed": seed,
        "test_auc": scores["auc"],
        **{cost: round(scores[cost], 4) for cost in COSTS},
        "search_minutes": search_minutes,
        **trained,
    }


def by_row(trained):
    """{row: its trainings}, in the order of ROWS."""
    return {row: trained[trained["row"] == row] for row in ROWS if (trained["row"] == row).any()}


def difference(auc, other):
    """Difference of two means and its 95 % interval over trainings (Welch's t), where each has at least two."""
    low, high = ttest_ind(auc, other, equal_var=False).confidence_interval(0.95)
    return f"{auc.mean() - other.mean():+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low < high else "")


def best_of(drawn, k):
    """Expected test AUC of the cell with the best val AUC among k of these, drawn without replacement."""
    ranked = drawn.sort_values("val_auc")["test_auc"]
    # The cell with i worse ones is the best of k in comb(i, k − 1) of all comb(n, k) draws.
    return sum(comb(i, k - 1) * auc for i, auc in enumerate(ranked)) / comb(len(ranked), k)


def draws_in_the_minutes_of(searched, drawn):
    """How many drawn cells can be trained in the minutes of a search and a training, at most all there are."""
    minutes = (searched["search_minutes"] + searched["minutes"]).mean()
    each = max(0.01, drawn["minutes"].mean())  # minutes are rounded: the shortest training has 0.00
    return min(len(drawn), max(1, round(minutes / each))) if len(drawn) else 0


def format_draws(trained):
    """Searched cells against random ones that had the same chances in another respect, in Markdown."""
    rows = by_row(trained)
    drawn = rows.pop("random", trained[:0])
    small = rows.pop("random_small", trained[:0])
    of_any_size = pd.concat([drawn, small])
    searched = {row: runs for row, runs in rows.items() if row in SEARCHED and len(drawn)}
    if not searched:
        return ""
    columns = ["random cells of its size", "AUC − these", "AUC − random_small"]
    columns += ["AUC − best random of k", "AUC − best random_small of k"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for row, runs in searched.items():
        size = runs[COSTS[0]].mean()
        alike = of_any_size["test_auc"][(of_any_size[COSTS[0]] / size - 1).abs() <= SIZE_BAND]
        gaps = [difference(runs["test_auc"], some) if len(some) else "–" for some in (alike, small["test_auc"])]
        for some in (drawn, small):
            k = draws_in_the_minutes_of(runs, some)
            gaps.append(f"{runs['test_auc'].mean() - best_of(some, k):+.3f} ({k})" if k else "–")
        lines.append(f"| {row} | {len(alike)} | {' | '.join(gaps)} |")
    notes = (
        f"Of its size: parameters within {SIZE_BAND:.0%} of the row's mean. random_small: each the smallest of {DRAWS} "
        "random cells. Best of k: the cell with the best val AUC of as many as can be trained in the minutes of a "
        "search and a training, or of all there are; k in brackets; its mean over all such draws."
    )
    return "\n".join(["", *lines, "", notes]) + "\n"


def format_table(trained):
    """Mean ± standard deviation over the trainings of a row, in Markdown."""
    columns = {
        "test AUC": ("test_auc", "{:.3f}"),
        "search (min)": ("search_minutes", "{:.1f}"),
        "epochs": ("epochs", "{:.0f}"),
        "training (min)": ("minutes", "{:.1f}"),
        "Parameters (M)": (COSTS[0], "{:.2f}"),
        "Multiply-adds (G)": (COSTS[1], "{:.3f}"),
    }
    lines = ["| | trainings | " + " | ".join(columns) + " | AUC − random | percentile among random |"]
    lines.append("|---" + "|---:" * (len(columns) + 3) + "|")
    drawn = trained["test_auc"][trained["row"] == "random"]
    for row, runs in by_row(trained).items():
        cells = [
            "–" if runs[key].isna().all() else f"{form} ± {form}".format(runs[key].mean(), runs[key].std())
            for key, form in columns.values()
        ]
        if row != "random" and len(drawn):
            rank = percentileofscore(drawn, runs["test_auc"], kind="mean").mean()
            cells += [difference(runs["test_auc"], drawn), f"{rank:.0f}"]
        else:
            cells += ["", ""]
        lines.append(f"| {row} | {len(runs)} | " + " | ".join(cells).replace(" ± nan", "") + " |")
    notes = (
        "Mean ± standard deviation over trainings; minutes of one thread. In brackets: the 95 % interval of the "
        "difference of two means over trainings (Welch). Percentile: the mean share, in %, of random cells that a "
        "row's trainings are better than."
    )
    return "\n".join([*lines, "", notes]) + "\n"


def format_agreement(trained, beside):
    """How far two sets order the cells alike that were trained on both, in Markdown."""
    sets = [" and ".join(rows["dataset"].unique()) for rows in (trained, beside)]
    means = [rows.groupby("genotype")["test_auc"].mean() for rows in (trained, beside)]
    both = pd.concat(means, axis=1, join="inner")
    if len(both) < 3:
        raise InputError(f"--beside: {len(both)} cells were trained on {sets[0]} and on {sets[1]}, it takes 3")
    resamples = [both, *(both.sample(frac=1, replace=True, random_state=seed) for seed in range(2000))]
    ranks, *by_chance = [resample.corr("spearman").iloc[0, 1] for resample in resamples]
    low, high = np.nanquantile(by_chance, [0.025, 0.975])  # nan: one cell drawn every time
    return (
        f"\nRank correlation of the test AUCs on {sets[0]} and on {sets[1]}, over the {len(both)} cells trained on "
        f"both: {ranks:+.2f} [{low:+.2f}, {high:+.2f}] (95 %, 2,000 bootstrap resamples of the cells).\n"
    )


def report(trained, out, beside=None):
    """Write and print the table; draw the figure beside it."""
    text = format_table(trained) + format_draws(trained)
    if beside is not None:
        text += format_agreement(trained, beside)
    write(out.with_suffix(".md"), text)
    draw_comparison(out.with_suffix(".png"), {row: runs["test_auc"] for row, runs in by_row(trained).items()})
    print(text)


def main(arguments=None):
    scripts = {"search": "search_train.py", "train": "val_train.py", "chexnet": "chexnet.py"}
    parser = make_parser(__doc__, "compare", **scripts)
    parser.add_argument("parts", nargs="*", metavar="ROW=N", help=f"rows and seeds ({' '.join(DEFAULT)})")
    parser.add_argument("--dataset", default="phantom", help="a prepared set")
    parser.add_argument("--cells", metavar="FILE", help="a compare.csv whose searched cells are trained; no search")
    parser.add_argument("--beside", metavar="OTHER", help="the compare.csv of another set")
    options = parser.parse_args(arguments)
    beside = read(options.beside) if options.beside else None
    if options.rows:
        return report(read(options.rows), Path(options.rows), beside)

    parts = {(row, seed) for row, seeds in map(read_part, options.parts or DEFAULT) for seed in seeds}
    # Seed by seed, so that a comparison that was stopped early has something of every row.
    order = sorted(parts, key=lambda part: (part[1], ROWS.index(part[0])))
    cells = find_cells(options.cells, order) if options.cells else {}
    out = Path(options.out) / "compare.csv"
    runs = [partial(run_part, options, *part, cells.get(part)) for part in order]
    trained = collect(out, read, KEY, runs, options.jobs)
    return report(trained, out, beside)


if __name__ == "__main__":
    with guarded():
        main()
