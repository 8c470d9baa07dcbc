"""Stage 2: train the found network from scratch (its cell stacked) and keep the weights of the best val AUC.

    python val_train.py                        the first-order cell
    python val_train.py --second-order         the second-order cell
    python val_train.py --genotype DARTS_V2    a published cell by name, "random", a file or log with a genotype in it,
                                           or the text "NAME = Genotype(normal=[...], ...)" itself

Reads   data/<set>/, search_first_order/genotype.txt or search_second_order/genotype.txt
Writes  weights/<name>_net.pth, and weights/<name>/ with log.txt, metrics.jsonl, settings.json, checkpoint.pt, picture
        where <name> is first_order, second_order, random_<seed>, or a cell's or file's (genotype.txt: folder's) name,
        or, for a text without a name, cell_<hash>
"""

from pathlib import Path

import utils
from dataset import Films, Sampler, find_preset, open_set
from genotypes import PUBLISHED, format_genotype, given_genotype, load_genotype, random_genotype
from model_eval import Network
from report.figures import draw_run
from scores import evaluate
from support.devices import autocast, seed_everything, select_device
from support.files import InputError
from support.records import count_epochs, read_record
from support.runs import Run
from support.settings import check_choice, check_numbers, check_texts, start

SECOND_ORDER = False  # which search's genotype to train: False: first order, True: second order
GENOTYPE = ""  # another cell instead: a file, Genotype(...), "random" (by SEED), or a name in genotypes.PUBLISHED
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets, from that of this script
OUT = "."  # what this run reads from a search, and what it writes, lies below it
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

PRESET = ""  # whose value of a dict below: phantom (drawn films), small (small real sets), reference; "": the set's own
CROP = {"phantom": 64, "small": 0, "reference": 224}  # pixels, a multiple of 32, at least half the film; 0: all of it
C = {"phantom": 16, "small": 16, "reference": 36}  # channels of the first cell
LAYERS = {"phantom": 5, "small": 5, "reference": 20}  # cells, at least 4
EPOCHS = {"phantom": 26, "small": 24, "reference": 500}  # passes over train
BATCH_SIZE = {"phantom": 32, "small": 32, "reference": 32}  # films
DROP_PATH = {"phantom": 0.0, "small": 0.0, "reference": 0.2}  # probability, which grows over the epochs from 0 to this
CLIP = 5.0  # largest norm of the gradient
START_AT_PREVALENCE = {"phantom": True, "small": True, "reference": False}  # classifier's bias: logits of frequencies

# What films go through before a network sees them (docs/tried.md).
STANDARDISE = {"phantom": False, "small": True, "reference": False}  # True: each film to one mean and deviation
CONTRAST = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: contrast × exp(± this), brightness ± half of it
TURN = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: ± degrees, with scale and shift (dataset.turned)

# The better recipe on small sets, and the original's (docs/tried.md).
RECIPE = {"phantom": "one_cycle", "small": "one_cycle", "reference": "cosine"}  # one_cycle: AdamW; cosine: SGD
ONE_CYCLE_LR = 0.01  # AdamW's highest rate: reached after 0.3 of all steps, then falling to almost 0
ONE_CYCLE_WEIGHT_DECAY = 0.05  # of AdamW
COSINE_LR = {"phantom": 0.3, "small": 0.3, "reference": 0.025}  # SGD's rate in the first epoch; it falls to 0
COSINE_MOMENTUM = 0.9  # of SGD
COSINE_WEIGHT_DECAY = 3e-4  # of SGD
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


def choose_genotype(settings, checksum):
    """The name under which the network is known, and its genotype. Raises InputError.

    checksum: that of the set; a search must have been made on it, and a line says so if it has not finished.
    """
    if settings.genotype == "random":
        return f"random_{settings.seed}", random_genotype(settings.seed)
    if settings.genotype in PUBLISHED:
        return settings.genotype, PUBLISHED[settings.genotype]
    if settings.genotype:
        return given_genotype(settings.genotype)
    name = "second_order" if settings.second_order else "first_order"
    folder = Path(settings.out) / f"search_{name}"
    path = folder / "genotype.txt"
    if not path.exists():
        option = " --second-order" if settings.second_order else ""
        raise InputError(f"{path} is missing: run 'python search_train.py{option}' first, with the same --out")
    searched = read_record(folder).get("settings", {})
    if searched.get("checksum", checksum) != checksum:
        raise InputError(
            f"{folder}: searched on another set ({searched['dataset']}, or another version of "
            f"{settings.dataset}): search on this one first, or name the cell with --genotype FILE"
        )
    if 0 < count_epochs(folder) < searched.get("epochs", 0):  # 0: metrics.jsonl was lost
        print(f"{folder}: the search has not finished; its best cell so far is trained")
    return name, load_genotype(path)


def check(settings):
    """Raise InputError for settings that make no sense."""
    check_texts(settings, "genotype")
    check_choice(settings, "recipe", ("one_cycle", "cosine"))
    check_numbers(settings, "epochs batch_size c", low=1, whole=True)
    check_numbers(settings, "layers", low=4, whole=True)
    check_numbers(settings, "crop", low=0, whole=True)
    check_numbers(settings, "contrast turn", low=0)
    check_numbers(settings, "seed", low=-(2**63), below=2**63, whole=True)
    check_numbers(settings, "drop_path", low=0, below=1)
    check_numbers(settings, "clip", above=0)
    if settings.recipe == "one_cycle":
        check_numbers(settings, "one_cycle_lr", above=0)
        check_numbers(settings, "one_cycle_weight_decay", low=0)
    else:
        check_numbers(settings, "cosine_lr", above=0)
        check_numbers(settings, "cosine_weight_decay", low=0)
        check_numbers(settings, "cosine_momentum", low=0, below=1)
    check_choice(settings, "second_order fresh start_at_prevalence deterministic standardise")


def main(settings):
    check(settings)
    device = select_device(settings.device)
    generator = seed_everything(settings.seed, device, settings.deterministic)

    data = open_set(settings.data, settings.dataset)
    name, genotype = choose_genotype(settings, data.checksum)
    looks = settings.standardise, settings.contrast, settings.turn
    trn_films, val_films = (Films(data, split, settings.crop, device, *looks) for split in ("train", "val"))
    sampler = Sampler(trn_films, settings.batch_size, generator)
    settings.crop = trn_films.crop  # in pixels, also where 0 was asked for

    out = Path(settings.out) / "weights"
    also = data.identity() | {"genotype": format_genotype(genotype)}
    run = Run(out / name, settings, device, also, product=out / f"{name}_net.pth")
    if run.finished:
        return

    network = Network(settings.c, len(data.findings), settings.layers, genotype).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights = list(network.parameters())
    schedule = utils.make_schedule(settings, weights, len(sampler))

    run.restore(network=network, schedule=schedule, sampler=sampler, generator=generator)
    if run.new:
        run.log(f"{name}, {data.name}: {len(trn_films)} train, {len(val_films)} val films, crop {settings.crop}")
        run.log(f"derived network: {sum(p.numel() for p in weights) / 1e6:.2f} M parameters")

    for epoch in run.epochs(settings.epochs):
        drop_path = settings.drop_path * (epoch - 1) / settings.epochs
        network.train()
        for _ in run.steps(len(sampler)):
            films, labels = sampler.next()
            keep = network.drop_path(settings.batch_size, drop_path, generator)  # drawn for the films of all ranks
            with autocast(device):
                logits = network(films, None if keep is None else keep[sampler.part])
                loss = utils.criterion(logits, labels)
            run.add("train_loss", utils.descend(loss, weights, schedule.optimizer, settings.clip), sampler)
            schedule.after_step()

        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.stop_or_save_if_due)
        shown = {"val_loss": val_loss, "lr": schedule.lr}
        schedule.after_epoch(auc)
        run.end_epoch(auc, shown, keep=network.state_dict())
    run.finish(draw_run)


if __name__ == "__main__":
    start(main, __file__, find_preset, utils.SCHEDULES)
