"""The val AUC that a network reaches in so many minutes of training on this machine: which is better, and when?

    python -m benchmarks.quality DARTS_V2 search_first_order/genotype.txt chexnet --jobs 2

trains each network for 1, 2, 4, 8 and 16 minutes, from scratch each time: as many whole epochs as fit, at least one,
with the learning rate's schedule over just these. A network is `chexnet` or a cell: the name of a published one, a
file, or a text, as for val_train.py's --genotype. One thread each, so that minutes are minutes of a core.

Every training is a row of <out>/quality.csv; the table and figure made from it are quality.md and quality.png. Stop
this and start it again as you like: what is finished is not run again. --rows FILE makes both from a file alone.
"""

from functools import partial
from pathlib import Path

from benchmarks.parts import FACTS, collect, facts, make_parser, read_rows, script, side_by_side
from genotypes import PUBLISHED, given_genotype
from report.figures import draw_quality
from support.files import InputError, load_state, write
from support.settings import guarded

PACE = 2  # epochs of the training that measures how long one takes; the first one warms up
KEY = ("dataset", "network", "seed", "asked")
COLUMNS = FACTS | {"dataset": str, "network": str, "seed": int, "asked": float}  # of the CSV
COLUMNS |= {"parameters_millions": float}
read = partial(read_rows, columns=COLUMNS)


def name_of(network):
    """What the scripts call it. Raises InputError for a cell that cannot be read."""
    return network if network == "chexnet" or network in PUBLISHED else given_genotype(network)[0]


def train(options, network, seed, out, epochs):
    """Train a network for so many epochs; its run's folder."""
    where = ["--dataset", options.dataset, "--data", options.data, "--seed", seed, "--epochs", epochs]
    if network == "chexnet":
        script("chexnet.py", out, *options.chexnet, *where)
    else:
        script("val_train.py", out, *options.train, *where, "--genotype", network)
    return out / "weights" / name_of(network)


def pace(options, network):
    """Seconds that an epoch of this network takes."""
    run = train(options, network, 0, Path(options.out) / "pace" / name_of(network), PACE)
    return facts(run)["epoch_seconds"]


def run_part(options, network, seconds, asked, seed):
    """Train for `asked` minutes at a pace of `seconds` an epoch; a row of the table."""
    name, epochs = name_of(network), max(1, int(60 * asked / seconds))
    run = train(options, network, seed, Path(options.out) / f"{name}_{asked:g}min_{seed}", epochs)
    weights = load_state(run.parent / f"{name}_net.pth")["weights"]
    parameters = sum(v.numel() for k, v in weights.items() if not k.endswith(("_mean", "_var", "_tracked")))
    row = {"dataset": options.dataset, "network": name, "seed": seed, "asked": asked}
    return row | {"parameters_millions": round(parameters / 1e6, 4)} | facts(run)


def format_table(trained):
    """The mean val AUC of each network and length, and the epochs that it had, in Markdown."""
    lengths = sorted(trained["asked"].unique())
    lines = ["| | Parameters (M) | " + " | ".join(f"{length:g} min" for length in lengths) + " |"]
    lines.append("|---" + "|---:" * (len(lengths) + 1) + "|")
    for name, runs in trained.groupby("network", sort=False):
        cells = []
        for length in lengths:
            some = runs[runs["asked"] == length]
            spread = f" ± {some['val_auc'].std():.3f}" if len(some) > 1 else ""
            epochs = some["epochs"].mean()
            had = f"{epochs:.0f} {'epoch' if epochs == 1 else 'epochs'}, {some['minutes'].mean():.1f} min"
            cells.append(f"{some['val_auc'].mean():.3f}{spread} ({had})" if len(some) else "–")
        lines.append(f"| {name} | {runs['parameters_millions'].iloc[0]:.2f} | " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, sorted(trained["seed"].unique())))
    lines += ["", f"Val AUC, mean over seeds {seeds}; in brackets what the training had and took, on one thread."]
    return "\n".join(lines) + "\n"


def report(trained, out):
    """Write and print the table; draw the figure beside it."""
    text = format_table(trained)
    write(out.with_suffix(".md"), text)
    curves = {name: runs[["minutes", "val_auc"]].to_numpy() for name, runs in trained.groupby("network", sort=False)}
    draw_quality(out.with_suffix(".png"), curves)
    print(text)


def main(arguments=None):
    parser = make_parser(__doc__, "quality", train="val_train.py", chexnet="chexnet.py")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="chexnet, or a cell as for val_train.py")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4, 8, 16], help="lengths of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="trainings of each network and length")
    parser.add_argument("--dataset", default="phantom", help="a prepared set")
    options = parser.parse_args(arguments)
    if options.rows:
        return report(read(options.rows), Path(options.rows))
    if not options.networks:
        raise InputError("name at least one network: chexnet, or a cell such as DARTS_V2 (see --help)")

    names = [name_of(network) for network in options.networks]
    if len(set(names)) < len(names):
        raise InputError(f"two networks have one name among {', '.join(names)}")
    paces = side_by_side([partial(pace, options, network) for network in options.networks], options.jobs)
    parts = [
        partial(run_part, options, network, seconds, asked, seed)
        for asked in options.minutes
        for network, seconds in zip(options.networks, paces, strict=True)
        for seed in options.seeds
    ]
    out = Path(options.out) / "quality.csv"
    return report(collect(out, read, KEY, parts, options.jobs), out)


if __name__ == "__main__":
    with guarded():
        main()
