"""Which training recipe is better: the val AUC of trainings with other options, on sets that serve for this alone.

    for seed in 7 8; do python -m data.prepare_phantom data/seed$seed --seed $seed; done
    python -m benchmarks.recipes "val_train.py --genotype DARTS_V2" "val_train.py --genotype DARTS_V2 --lr 0.1" --jobs 2

runs each command on each set with each seed, one thread each. Every training is a row of <out>/recipes.csv, and the
table made from it is recipes.md. Stop this and start it again as you like: what is finished is not run again. --rows
FILE makes the table from a file alone.
"""

import re
import shlex
from functools import partial
from pathlib import Path
from zlib import crc32

from benchmarks.parts import FACTS, collect, facts, make_parser, read_rows, script
from support.files import InputError, write
from support.settings import guarded

KEY = ("command", "dataset", "seed")
COLUMNS = FACTS | {"command": str, "dataset": str, "seed": int}  # of the CSV
read = partial(read_rows, columns=COLUMNS)


def run_part(options, command, dataset, seed):
    """One training; a row of the table."""
    readable = re.sub(r"\W+", "_", command)[:150]
    out = Path(options.out) / f"{readable}_{crc32(command.encode()):08x}_{dataset}_{seed}"
    name, *arguments = shlex.split(command)
    script(name, out, *arguments, "--dataset", dataset, "--data", options.data, "--seed", seed)
    (weights,) = (out / "weights").glob("*_net.pth")
    row = {"command": command, "dataset": dataset, "seed": seed}
    return row | facts(out / "weights" / weights.name.removesuffix("_net.pth"))


def format_table(trained):
    """The val AUC of each training and their mean, in Markdown, a line per command."""
    places = list(trained.groupby(["dataset", "seed"], sort=False).groups)
    columns = ["command", "epochs", "minutes", *(f"{dataset}, {seed}" for dataset, seed in places), "mean"]
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|---" + "|---:" * (len(columns) - 1) + "|")
    for command, runs in trained.groupby("command", sort=False):
        auc = runs.set_index(["dataset", "seed"])["val_auc"]
        cells = [f"{auc[place]:.3f}" if place in auc.index else "–" for place in places]
        took = f"{runs['epochs'].max()} | {runs['minutes'].mean():.1f}"
        lines.append(f"| `{command}` | {took} | " + " | ".join(cells) + f" | {auc.mean():.3f} |")
    note = "Val AUC of the best epoch, by set and seed of the training; mean minutes of a training, on one thread."
    return "\n".join([*lines, "", note]) + "\n"


def report(trained, out):
    """Write and print the table."""
    text = format_table(trained)
    write(out.with_suffix(".md"), text)
    print(text)


def main(arguments=None):
    parser = make_parser(__doc__, "recipes")
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="a script and its options, in one string")
    parser.add_argument("--sets", nargs="+", default=["seed7", "seed8"], help="prepared sets; not the one to report on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    options = parser.parse_args(arguments)
    if options.rows:
        return report(read(options.rows), Path(options.rows))
    if not options.commands:
        raise InputError("name at least one command, such as 'chexnet.py --batch-size 32' (see --help)")
    for command in options.commands:
        try:
            name = shlex.split(command)[:1]
        except ValueError as error:
            raise InputError(f"{command!r}: {error}") from None
        if name not in (["val_train.py"], ["chexnet.py"]):
            raise InputError(f"{command!r} must begin with val_train.py or chexnet.py")
    parts = [
        partial(run_part, options, command, dataset, seed)
        for dataset in options.sets
        for seed in options.seeds
        for command in options.commands
    ]
    out = Path(options.out) / "recipes.csv"
    return report(collect(out, read, KEY, parts, options.jobs), out)


if __name__ == "__main__":
    with guarded():
        main()
