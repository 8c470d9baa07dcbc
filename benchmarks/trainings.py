"""Which training is better: the val AUC of scripts with other options, on several sets, with several seeds.

    python -m benchmarks.trainings "val_train.py --genotype DARTS_V2" "chexnet.py --batch-size 32" --seeds 0 1 --jobs 2
    python -m benchmarks.trainings "val_train.py --genotype DARTS_V2" chexnet.py --minutes 1 2 4 8 16 --jobs 2

runs each command, a script with its options in one string, on each set with each seed, on one thread. With --minutes
there is one training for each of these lengths, from scratch, of as many whole epochs as fit into it, at least one; the
learning rate's schedule runs over just these. How long an epoch takes is measured by a training of its own. The table
has the AUC on `val`, or, with --test, on `test`.

Choose settings on sets that serve for this alone:

    for seed in 7 8; do python -m data.prepare_phantom data/seed$seed --seed $seed; done

and pass --sets seed7 seed8. On real films pass --folds 5: the commands are compared by cross-validation over the
patients of the set's train and val, and its test films are left alone; --first 2 trains on two of the five folds only.
The comparison is <out>/folds.md, its numbers folds.csv; benchmarks/folds.py says what a fold is.

The command can be stopped and repeated: what is finished is not run again. Every training becomes a row of
<out>/trainings.csv, beside the rows of earlier commands; the table made from them is <out>/trainings.md, and the
figure of those with --minutes trainings.png. --rows makes both of rows that several machines made.
"""

import re
import shlex
import sys
import threading
from functools import partial
from itertools import product
from pathlib import Path
from zlib import crc32

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.folds import fold_auc, make_folds, report_folds
from benchmarks.parts import FACTS, collect, facts, format_table, make_parser, read_rows, scores_on_test, script
from dataset import open_set
from report.figures import draw_quality
from report.networks import load_network
from support.files import InputError, write
from support.settings import guarded

SCRIPTS = ("val_train.py", "chexnet.py")
PACE = 2  # epochs of the training that measures how long one takes; the first one warms up
PACING = threading.Lock()  # parts of several seeds and lengths wait for one such training
KEY = ["command", "dataset", "seed", "asked_minutes"]
COLUMNS = FACTS | {"command": str, "dataset": str, "seed": int}  # of the CSV
COLUMNS |= dict.fromkeys(("asked_minutes", "parameters_millions"), float)  # asked_minutes: empty without --minutes
read = partial(read_rows, columns=COLUMNS, key=KEY)


def check_command(command, given):
    """Raise InputError unless `command` is a training script with options, none of those that are `given` to it."""
    try:
        name, *options = shlex.split(command) or [""]
    except ValueError as error:
        raise InputError(f"{command!r}: {error}") from None
    if name not in SCRIPTS:
        raise InputError(f"{command!r} must begin with {' or '.join(SCRIPTS)}")
    if twice := given & {option.partition("=")[0] for option in options}:
        raise InputError(f"{command!r}: leave out {min(twice)}, which this benchmark sets (see --help)")


def place(options, command, dataset, seed, length=""):
    """The folder for a training. length: the end of its name."""
    readable = re.sub(r"\W+", "_", command)[:150]
    return Path(options.out) / f"{readable}_{crc32(command.encode()):08x}_{dataset}_{seed}{length}"


def trained_in(out):
    """The run's folder of the training that was made in `out`."""
    (weights,) = (out / "weights").glob("*_net.pth")
    return weights.with_name(weights.name.removesuffix("_net.pth"))


def train(options, command, dataset, seed, length, *more):
    """Train by a command with `more` options; the folder of its run."""
    out = place(options, command, dataset, seed, length)
    name, *given = shlex.split(command)
    script(name, out, *given, "--dataset", dataset, "--data", options.data, "--seed", seed, *more)
    return trained_in(out)


def run_part(options, asked, dataset, seed, command):
    """One training, for `asked` minutes if that is not ""; a row of the CSV."""
    length, more = "", ()
    if asked:
        with PACING:
            pace = facts(train(options, command, dataset, 0, "_pace", "--epochs", PACE))["epoch_seconds"]
        length, more = f"_{asked:g}min", ("--epochs", max(1, int(60 * asked / pace)))
    run = train(options, command, dataset, seed, length, *more)
    network, _ = load_network(f"{run}_net.pth")
    parameters = sum(p.numel() for p in network.parameters())
    row = {"command": command, "dataset": dataset, "seed": seed, "asked_minutes": asked}
    row |= {"fold_auc": fold_auc(run, options.data, dataset)} if options.folds else {}
    if options.test:
        row["test_auc"] = scores_on_test(run.parents[1], run.name, "--dataset", dataset, "--data", options.data)["auc"]
    return row | {"parameters_millions": round(parameters / 1e6, 4)} | facts(run)


def scored_split(trained):
    """The split whose AUC the table and the figure show: `test` with --test, else `val`."""
    return "test" if "test_auc" in trained else "val"


def format_trainings(trained):
    """The AUC of each training and their mean, in Markdown: a line for each command."""
    split = scored_split(trained)
    places = list(trained.groupby(["dataset", "seed"], sort=False).groups)
    columns, lines = ["Parameters (M)", "epochs", "minutes"], []
    for command, runs in trained.groupby("command", sort=False):
        auc = runs.set_index(["dataset", "seed"])[f"{split}_auc"]
        cells = [f"{runs['parameters_millions'].iloc[0]:.2f}"]
        cells += [f"{runs['epochs'].mean():.0f}", f"{runs['minutes'].mean():.1f}"]
        cells += [f"{auc[place]:.3f}" if place in auc.index else "–" for place in places]
        lines.append([f"`{command}`", *cells, f"{auc.mean():.3f}"])
    columns += [*(f"{dataset}, {seed}" for dataset, seed in places), "mean"]
    notes = (
        f"{split.capitalize()} AUC of the best epoch, by set and seed of the training; mean epochs and minutes, on one "
        "thread."
    )
    return format_table(columns, lines, notes)


def format_lengths(trained):
    """The AUC by the minutes that were asked for, in Markdown: a line for each command and set, means over seeds."""
    split = scored_split(trained)
    lengths, lines = sorted(trained["asked_minutes"].unique()), []
    for (command, dataset), runs in trained.groupby(["command", "dataset"], sort=False):
        means = runs.groupby("asked_minutes")[[f"{split}_auc", "minutes"]].mean()
        cells = ["{:.3f} ({:.1f})".format(*means.loc[asked]) if asked in means.index else "–" for asked in lengths]
        lines.append([f"`{command}`, {dataset}", f"{runs['parameters_millions'].iloc[0]:.2f}", *cells])
    notes = f"{split.capitalize()} AUC of the best epoch, and the minutes that the training took, on one thread."
    return format_table(["Parameters (M)", *(f"{asked:g} min" for asked in lengths)], lines, notes)


def report(trained, out):
    """Write and print the tables; draw the figure beside them where there are trainings of asked minutes."""
    has_length, split = trained["asked_minutes"].notna(), scored_split(trained)
    parts = (format_trainings, trained[~has_length]), (format_lengths, trained[has_length])
    text = "\n".join(form(rows) for form, rows in parts if len(rows))
    write(out.with_suffix(".md"), text)
    timed = trained[has_length].groupby(["command", "dataset"], sort=False)
    if curves := {", ".join(names): runs[["minutes", f"{split}_auc"]].to_numpy() for names, runs in timed}:
        draw_quality(out.with_suffix(".png"), curves, split)
    print(text)


def main(arguments=None):
    parser = make_parser(__doc__, "trainings")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="a script and its options, in one string")
    parser.add_argument("--sets", nargs="+", default=["phantom"], help="prepared sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    parser.add_argument("--folds", type=int, default=0, help="compare by cross-validation over patients, so many folds")
    parser.add_argument("--first", type=int, default=0, help="of the folds, only so many")
    parser.add_argument("--test", action="store_true", help="score the test films, once all settings are chosen")
    parser.add_argument("--minutes", type=float, nargs="+", default=[], help="lengths of a training")
    options = parser.parse_args(arguments)
    if options.rows:
        return report(read(options.rows), Path(options.rows[0]))
    if not options.commands:
        raise InputError("name at least one command, such as 'chexnet.py --batch-size 32' (see --help)")
    for command in options.commands:
        check_command(command, {"--dataset", "--data", "--seed", "--out", *["--epochs"] * bool(options.minutes)})
    if options.folds and (len(options.sets) > 1 or options.minutes or options.test):
        raise InputError("--folds is for one of --sets, without --minutes and --test")
    data = [open_set(options.data, name) for name in options.sets]  # before anything runs for hours; makes the phantom
    if options.folds:
        options.data = Path(options.out) / "sets"
        options.sets = make_folds(*data, options.data, options.folds)[: options.first or None]

    trainings = product(options.minutes or [""], options.sets, options.seeds, options.commands)
    parts = [partial(run_part, options, *training) for training in dict.fromkeys(trainings)]
    out = Path(options.out) / "trainings.csv"
    report(collect(out, read, KEY, parts, options.jobs), out)
    if options.folds:
        runs = {
            name: {c: [trained_in(place(options, c, name, seed)) for seed in options.seeds] for c in options.commands}
            for name in options.sets
        }
        report_folds(runs, options.data, out.with_name("folds"))


if __name__ == "__main__":
    with guarded():
        main()
