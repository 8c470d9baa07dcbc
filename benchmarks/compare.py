"""Which cells are better: searched, by either order or the exact product, drawn at random, or published; and CheXNet.

    python -m benchmarks.compare first_order=10 random=30 chexnet=3 --jobs 2

makes 10 first-order searches and trains each cell that they find, trains 30 random cells, and CheXNet 3 times, and
scores all networks on the test split. The seeds run from 1 on; a seed also draws the random cell. Further rows are
second_order, second_order_exact, random_small (random cells about as small as searched ones), published cells by name,
and chexnet_equal_time. All cells share one recipe, the default of val_train.py, and one time of training: that of
DARTS_V2's cell for the default number of epochs. A cell whose steps take longer has fewer epochs, which is measured by
steps of both networks in turn. chexnet_equal_time has this time, too; chexnet has the epochs of chexnet.py.

A part is a row with one seed; it has a folder <out>/<row>_<seed>/ and runs in processes of one thread. The command can
be stopped and repeated: what is finished is not run again. Every training becomes a row of <out>/compare.csv, beside
the rows of earlier commands; the table and the figure made from them are <out>/compare.md and compare.png.

random=11-30 means the seeds 11 to 30, so that several machines can share the work; --rows makes the table and the
figure of all their rows. --beside OTHER, the rows of another set, adds how far the two sets agree on which cells are
better.
"""

import re
import shlex
import sys
import threading
from functools import partial
from itertools import combinations
from math import isnan, nan, prod, sqrt
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import stats
from benchmarks.parts import (
    FACTS,
    collect,
    facts,
    format_table,
    make_parser,
    read_rows,
    scores_on_test,
    script,
    script_settings,
)
from benchmarks.speed import alternate, network_step
from benchmarks.stats import by_row
from chexnet import CheXNet
from dataset import crop_of, open_set
from genotypes import PUBLISHED, load_genotype, parse_genotype, random_genotype, save_genotype
from model_eval import Network
from report.figures import draw_comparison
from scores import COSTS
from support.files import InputError, write
from support.settings import guarded

SEARCHED = {
    "first_order": [],
    "second_order": ["--second-order"],
    "second_order_exact": ["--second-order", "--exact-product"],
}
ROWS = (*SEARCHED, "random", "random_small", *PUBLISHED, "chexnet_equal_time", "chexnet")
KEY = ["dataset", "row", "seed"]
COLUMNS = FACTS | {"dataset": str, "row": str, "seed": int, "genotype": str}  # of the CSV
COLUMNS |= dict.fromkeys(("test_auc", *COSTS, "search_minutes"), float)
REFERENCE = "DARTS_V2"  # trains for the default number of epochs, all other cells for as long as it does
STEPS = 31  # timed of each of two networks
TIMING = threading.Lock()  # the parts are threads of this process, and two measurements would slow each other down
DRAWS = 100  # a cell of random_small is the smallest of so many: about 0.33 M parameters, searched cells have 0.31 M
SIZE_BAND = 0.1  # two cells are of one size where their parameters differ by at most this share
read = partial(read_rows, columns=COLUMNS, key=KEY)
DEFAULT = ("first_order=3", "second_order=3", "random=6", "chexnet=3")


# --- What is compared


def read_part(text):
    """ROW=N, the seeds 1 to N, or ROW=A-B -> the row and the range of its seeds. Raises InputError."""
    row, _, seeds = text.partition("=")
    given = re.fullmatch("(?:([1-9][0-9]{0,3})-)?([1-9][0-9]{0,3})", seeds)
    seeds = range(int(given[1] or 1), int(given[2]) + 1) if given else ()
    if row not in ROWS or not seeds:
        raise InputError(f"{text!r} must be ROW=N or ROW=A-B, seeds 1 to N or A to B, and ROW one of {', '.join(ROWS)}")
    return row, seeds


def find_cells(path, parts):
    """{(row, seed): (genotype, minutes of its search)} of those parts that search, from the rows of a compare.csv."""
    known, cells = read([path]), {}
    for row, seed in [part for part in parts if part[0] in SEARCHED]:
        found = known[(known["row"] == row) & (known["seed"] == seed)]
        if len(found) != 1:
            raise InputError(f"--cells {path}: {len(found)} rows are {row} of seed {seed}, it takes 1")
        cells[row, seed] = parse_genotype(found["genotype"].item()), found["search_minutes"].item()
    return cells


def cell_of(row, seed, settings, findings):
    """The genotype of a row without a search; of random_small the one with the fewest parameters of DRAWS."""

    def size(genotype):
        with torch.device("meta"):  # without memory
            network = Network(settings.c, findings, settings.layers, genotype)
        return sum(p.numel() for p in network.parameters())

    if row == "random_small":
        return min(map(random_genotype, range(1000 * seed, 1000 * seed + DRAWS)), key=size)
    return PUBLISHED[row] if row in PUBLISHED else random_genotype(seed)


def step_ratio(network, batch_size, settings):
    """The seconds of a training step per film, divided by those of the reference's network; on one thread of the CPU.

    settings: val_train.py's, which say how the reference is trained.
    """
    findings = network.classifier.out_features
    reference = Network(settings.c, findings, settings.layers, PUBLISHED[REFERENCE])

    def step(some, films):
        noise = torch.randn(films, 3, settings.crop, settings.crop)
        return network_step(some, (noise, torch.zeros(films, findings)), training=True)

    with TIMING:
        torch.set_num_threads(1)
        ours, theirs = alternate([step(network, batch_size), step(reference, settings.batch_size)], STEPS)
    return (ours / batch_size) / (theirs / settings.batch_size)


def epochs_in_equal_time(out, network, batch_size, settings):
    """How many epochs this network can train in the time that the reference takes for settings.epochs.

    A network with these settings is measured once, so that a run that goes on has as many epochs as before.
    """
    of = f"{network} {batch_size} {settings.batch_size} {settings.crop} {settings.c} {settings.layers}"
    measured = out / f"step_ratio_{crc32(of.encode()):08x}.txt"
    if not measured.exists():
        write(measured, f"{step_ratio(network, batch_size, settings)}\n")
    return max(1, round(settings.epochs / float(measured.read_text(encoding="utf-8"))))


def run_part(options, data, row, seed, found):
    """Run what is not finished of a row's search, training and scores, with one seed; a row of the CSV.

    data: the PreparedSet. found: the (genotype, minutes) of an earlier search whose cell is trained, or None.
    """
    out, findings, search_minutes = Path(options.out) / f"{row}_{seed}", len(data.findings), None
    out.mkdir(parents=True, exist_ok=True)
    on_set = ["--dataset", options.dataset, "--data", options.data]
    on_seed = [*on_set, "--seed", str(seed)]
    settings = script_settings("val_train.py", [*options.train, *on_set])
    settings.crop = crop_of(data.images.shape[1], settings.crop)
    if row.startswith("chexnet"):
        name, given = "chexnet", [*options.chexnet, *on_seed]
        if row == "chexnet_equal_time":
            batch_size = script_settings("chexnet.py", given).batch_size
            given += ["--epochs", epochs_in_equal_time(out, CheXNet(findings), batch_size, settings)]
        script("chexnet.py", out, *given)
    else:
        name = f"{row}_cell"  # val_train.py keeps the names of searched and random cells to itself
        if found:
            genotype, search_minutes = found
        elif row in SEARCHED:
            script("search_train.py", out, *options.search, *on_seed, *SEARCHED[row])
            search = out / f"search_{row.removesuffix('_exact')}"
            genotype, search_minutes = load_genotype(search / "genotype.txt"), facts(search)["minutes"]
        else:
            genotype = cell_of(row, seed, settings, findings)
        epochs = settings.epochs
        if row != REFERENCE:
            network = Network(settings.c, findings, settings.layers, genotype)
            epochs = epochs_in_equal_time(out, network, settings.batch_size, settings)
        cell = out / f"{name}.txt"
        save_genotype(cell, genotype)
        script("val_train.py", out, *options.train, *on_seed, "--genotype", cell, "--epochs", epochs)
    scores = scores_on_test(out, name, *on_set)
    return {
        "dataset": data.name,
        "row": row,
        "seed": seed,
        "test_auc": scores["auc"],
        **{cost: round(scores[cost], 4) for cost in COSTS},
        "search_minutes": search_minutes,
        **facts(out / "weights" / name),
    }


# --- Tables, in Markdown


def format_difference(values, others):
    """The difference of two means, with its interval."""
    return stats.format_interval(*stats.difference(values, others), "{:+.3f}")


def format_means(trained):
    """Mean ± standard deviation over the trainings of each row."""
    columns = {
        "test AUC": ("test_auc", "{:.3f}"),
        "search (min)": ("search_minutes", "{:.1f}"),
        "epochs": ("epochs", "{:.0f}"),
        "training (min)": ("minutes", "{:.1f}"),
        "Parameters (M)": (COSTS[0], "{:.2f}"),
        "Multiply-adds (G)": (COSTS[1], "{:.3f}"),
    }
    drawn = trained["test_auc"][trained["row"] == "random"]
    rows, lines = by_row(trained, ROWS), []
    others = [row for row in rows if row != "random" and len(drawn)]
    single = [stats.p_value(runs["test_auc"], drawn) if row in others else nan for row, runs in rows.items()]
    for (row, runs), *p in zip(rows.items(), single, stats.holm(single), strict=True):
        cells = [
            "–" if runs[key].isna().all() else f"{form} ± {form}".format(runs[key].mean(), runs[key].std())
            for key, form in columns.values()
        ]
        against = [""] * 4
        if row in others:
            share = f"{stats.percentile(runs['test_auc'], drawn):.0f}"
            against = [format_difference(runs["test_auc"], drawn), *map(format_p, p), share]
        lines.append([row, str(len(runs)), *(cell.removesuffix(" ± nan") for cell in cells), *against])
    notes = (
        "Mean ± standard deviation over trainings; minutes of one thread. In brackets: the 95 % interval of the "
        "difference of two means over trainings (Welch); p of the same test, alone and corrected for the number of "
        "lines (Holm). Percentile: the mean share, in %, of random cells that a row's trainings are better than."
    )
    against = ["AUC − random", "p", "p (Holm)", "percentile among random"]
    return format_table(["trainings", *columns, *against], lines, notes)


def format_p(p):
    """A p-value for a table; nothing where there is none."""
    return "" if isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_draws(trained):
    """Searched cells against random ones that had the same chances in another respect; "" where there are none."""
    rows = by_row(trained, ROWS)
    drawn, small = (rows.get(row, trained[:0]) for row in ("random", "random_small"))
    of_any_size, lines = pd.concat([drawn, small]), []
    for row in [row for row in SEARCHED if row in rows and len(drawn)]:
        runs = rows[row]
        auc, size = runs["test_auc"], runs[COSTS[0]].mean()
        alike = of_any_size["test_auc"][(of_any_size[COSTS[0]] / size - 1).abs() <= SIZE_BAND]
        gaps = [format_difference(auc, others) if len(others) else "–" for others in (alike, small["test_auc"])]
        for some in (drawn, small):
            k = stats.draws_in_equal_time(runs, some)
            gaps.append(f"{auc.mean() - stats.best_of(some, k):+.3f} ({k})" if k else "–")
        lines.append([row, str(len(alike)), *gaps])
    notes = (
        f"Of its size: parameters within {SIZE_BAND:.0%} of the row's mean. random_small: each the smallest of {DRAWS} "
        "random cells. Best of k: the cell with the best val AUC of as many as can be trained in the minutes of a "
        "search and a training, or of all there are; k in brackets; its mean over all such draws."
    )
    columns = ["random cells of its size", "AUC − these", "AUC − random_small"]
    columns += ["AUC − best random of k", "AUC − best random_small of k"]
    return "\n" + format_table(columns, lines, notes) if lines else ""


def format_pairs(trained):
    """The difference of every two rows of several trainings, but random, which `format_means` has."""
    several = {row: runs for row, runs in by_row(trained, ROWS).items() if len(runs) > 1 and row != "random"}
    lines = []
    for (row, runs), (other, others) in combinations(several.items(), 2):
        pair = runs["test_auc"], others["test_auc"]
        lines.append([f"{row} − {other}", format_difference(*pair), format_p(stats.p_value(*pair))])
    notes = "95 % intervals and p over trainings (Welch), each alone: not corrected for the number of lines."
    return "\n" + format_table(["test AUC", "p"], lines, notes) if lines else ""


def format_best(trained):
    """The expected test AUC of the training that is best on val, of k trainings of a row."""
    rows = by_row(trained, ROWS)
    longest = max(map(len, rows.values()))
    ks = [k for k in (1, 2, 3, 4, 6, 10, 15, 30) if k <= longest]
    best = {row: [f"{stats.best_of(runs, k):.3f}" if k <= len(runs) else "" for k in ks] for row, runs in rows.items()}
    notes = (
        "The test AUC of the training with the best val AUC of k: its mean over all draws of k of a row's trainings."
    )
    return "\n" + format_table([f"best of {k}" for k in ks], [[row, *cells] for row, cells in best.items()], notes)


def format_ceiling(reliabilities):
    """How high a correlation can be expected to be, for all that chance of a training leaves; "" where not known."""
    highest = sqrt(prod(reliabilities))
    return "" if isnan(highest) else f"; chance of the trainings leaves at most {highest:.2f}"


def format_relations(trained):
    """Rank correlations within these rows, and the share of the searched cells' lead that small random ones have."""
    rows, lines = by_row(trained, ROWS), []
    cells = trained[~trained["row"].str.startswith("chexnet")]
    ceiling = format_ceiling(stats.reliability(cells[auc], cells["genotype"]) for auc in ("val_auc", "test_auc"))
    for what, column, some, name, limit in (
        ("parameters and test AUC", COSTS[0], rows.get("random", cells[:0]), "random cells", ""),
        ("val and test AUC", "val_auc", cells, "trainings of cells", ceiling),
    ):
        if len(some) > 2:
            number = stats.format_interval(*stats.rank_correlation(some[[column, "test_auc"]]), "{:+.2f}")
            lines.append(f"Rank correlation of {what}, over {len(some)} {name}: {number}{limit}.")
    for row in [row for row in SEARCHED if row in rows and {"random", "random_small"} <= rows.keys()]:
        small, searched, drawn = (rows[name]["test_auc"].to_numpy() for name in ("random_small", row, "random"))
        if stats.difference(searched, drawn)[1] > 0:  # there is no share of a lead that is not shown
            number = stats.format_interval(*stats.share_of_lead(small, searched, drawn), "{:.2f}")
            lines.append(f"Share of {row}'s lead over random that random_small has: {number}.")
    notes = f"95 % intervals: {stats.RESAMPLES:,} bootstrap resamples of the trainings."
    return "\n" + "\n\n".join([*lines, notes]) + "\n" if lines else ""


def format_agreement(trained, beside):
    """How far two sets order the cells alike that were trained on both. Raises InputError for fewer than 3 of them."""
    sets = [" and ".join(rows["dataset"].unique()) for rows in (trained, beside)]
    means = [rows.groupby("genotype")["test_auc"].mean() for rows in (trained, beside)]
    both = pd.concat(means, axis=1, join="inner")
    if len(both) < 3:
        raise InputError(f"--beside: {len(both)} cells were trained on {sets[0]} and on {sets[1]}, it takes 3")
    correlation, low, high = stats.rank_correlation(both)
    known = [rows[rows["genotype"].isin(both.index)] for rows in (trained, beside)]
    ceiling = format_ceiling(stats.reliability(rows["test_auc"], rows["genotype"], of_means=True) for rows in known)
    return (
        f"\nRank correlation of the test AUCs on {sets[0]} and on {sets[1]}, over the {len(both)} cells trained on "
        f"both: {correlation:+.2f} [{low:+.2f}, {high:+.2f}] (95 %, {stats.RESAMPLES:,} bootstrap resamples of the "
        f"cells){ceiling}.\n"
    )


def report(trained, out, beside):
    """Write and print the tables; draw the figure beside them."""
    text = "".join(form(trained) for form in (format_means, format_draws, format_pairs, format_best, format_relations))
    if beside is not None:
        text += format_agreement(trained, beside)
    write(out.with_suffix(".md"), text)
    searched = trained[trained["row"].isin(SEARCHED)].nlargest(1, "val_auc")  # whose cell is shown
    rows = {row: runs["test_auc"] for row, runs in by_row(trained, ROWS).items()}
    draw_comparison(out.with_suffix(".png"), rows, *map(parse_genotype, searched["genotype"]))
    print(text)


def main(arguments=None):
    parser = make_parser(__doc__, "compare")
    for option, file in (("search", "search_train.py"), ("train", "val_train.py"), ("chexnet", "chexnet.py")):
        example = f'options for {file} in one string: --{option}="--batch-size 16"'
        parser.add_argument(f"--{option}", default=[], type=shlex.split, help=example)
    parser.add_argument("parts", nargs="*", metavar="ROW=N", help=f"rows and seeds ({' '.join(DEFAULT)})")
    parser.add_argument("--dataset", default="phantom", help="a prepared set")
    parser.add_argument("--cells", metavar="FILE", help="a compare.csv whose searched cells are trained; no search")
    parser.add_argument("--beside", metavar="OTHER", help="the compare.csv of another set")
    options = parser.parse_args(arguments)
    beside = read([options.beside]) if options.beside else None
    if options.rows:
        return report(read(options.rows), Path(options.rows[0]), beside)

    parts = {(row, seed) for row, seeds in map(read_part, options.parts or DEFAULT) for seed in seeds}
    # Seed by seed, so that a comparison that was stopped early has something of every row.
    order = sorted(parts, key=lambda part: (part[1], ROWS.index(part[0])))
    cells = find_cells(options.cells, order) if options.cells else {}
    data = open_set(options.data, options.dataset)
    runs = [partial(run_part, options, data, *part, cells.get(part)) for part in order]
    out = Path(options.out) / "compare.csv"
    return report(collect(out, read, KEY, runs, options.jobs), out, beside)


if __name__ == "__main__":
    with guarded():
        main()
