"""Stage 2: train the found network from scratch (its cell stacked) and keep the weights of the best val AUC.

    python val_train.py                        the first-order cell
    python val_train.py --second-order         the second-order cell
    python val_train.py --genotype DARTS_V2    a published cell by name, a genotype file, or "random"

Reads   data/<set>/, search_first_order/genotype.txt or search_second_order/genotype.txt
Writes  weights/<name>_net.pth, and weights/<name>/ with log.txt, metrics.jsonl, settings.json, checkpoint.pt, picture
        where <name> is first_order, second_order, random_<seed>, or a cell's or file's (genotype.txt: folder's) name
"""

from pathlib import Path

import torch

import utils
import visualize
from dataset import FINDINGS, Films, Sampler, open_set
from genotypes import PUBLISHED, format_genotype, load_genotype, random_genotype
from model_eval import Network
from support.ranks import Ranks
from support.runs import TRAINING_HEADER, Run, read_run
from support.settings import guarded, one_line_errors, parse_settings

SECOND_ORDER = False  # which search's genotype to train: False: first order, True: second order
GENOTYPE = ""  # another cell instead: a file, "random" (drawn with SEED), or a name in genotypes.PUBLISHED
DATASET = "phantom"  # phantom, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run reads from a search, and writes, lies below it
FRESH = False  # True: move an old run of this name aside and start anew
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

# A dict has one value per set; a set without its own takes the phantom's.
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
C = {"phantom": 16, "chestxray14": 36}  # channels of the first cell
LAYERS = {"phantom": 5, "chestxray14": 20}  # cells, at least 4
EPOCHS = {"phantom": 20, "chestxray14": 500}  # passes over train
BATCH_SIZE = {"phantom": 32, "chestxray14": 32}  # films

LR = {"phantom": 0.3, "chestxray14": 0.025}  # SGD's learning rate in the first epoch; towards 0 along a cosine
MOMENTUM = 0.9  # of SGD
WEIGHT_DECAY = 3e-4  # of SGD
CLIP = 5.0  # largest norm of the gradient
DROP_PATH = {"phantom": 0.0, "chestxray14": 0.2}  # probability, growing linearly over the epochs from 0 towards this
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's bias: logits of train frequencies
LOG_EVERY = 10  # steps between readings of the loss
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (README says what it costs)


def choose_genotype(settings):
    """The name under which the network is known, and its genotype. Raises ValueError."""
    if settings.genotype == "random":
        return f"random_{settings.seed}", random_genotype(settings.seed)
    if settings.genotype in PUBLISHED:
        return settings.genotype, PUBLISHED[settings.genotype]
    if settings.genotype:
        path = Path(settings.genotype)
        if not path.exists():
            names = ", ".join(PUBLISHED)
            raise ValueError(f"genotype {path}: no such file, and not one of random, {names}")
        # The scripts call every search's file genotype.txt: its folder tells them apart.
        name = path.resolve().parent.name if path.stem == "genotype" else path.stem
        if name in ("chexnet", "first_order", "second_order"):
            raise ValueError(f"genotype {path}: its network would be called {name}, which is taken: rename the file")
        return name, load_genotype(path)
    order = "second" if settings.second_order else "first"
    path = Path(settings.out) / f"search_{order}_order" / "genotype.txt"
    if not path.exists():
        option = " --second-order" if settings.second_order else ""
        raise ValueError(f"{path} is missing: run 'python search_train.py{option}' first, with the same --out")
    return f"{order}_order", load_genotype(path)


def check_search(settings, checksum):
    """Raise ValueError if the selected order's search was made on another set; say so if it has not finished."""
    folder = Path(settings.out) / f"search_{'second' if settings.second_order else 'first'}_order"
    search = read_run(folder)
    if search is not None and search["settings"]["checksum"] != checksum:
        raise ValueError(
            f"{folder}: searched on another set ({search['settings']['dataset']}, or another version of "
            f"{settings.dataset}): search on this one first, or name the cell with --genotype FILE"
        )
    if search is not None and search["epochs"] < search["settings"]["epochs"]:
        print(f"{folder}: the search has not finished; its best cell so far is trained")


def main(settings):
    ranks = Ranks(utils.select_device(settings.device))
    device = ranks.device
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    with one_line_errors():
        name, genotype = choose_genotype(settings)
        with ranks.first_rank_first():  # who makes the phantom if it is not there
            data = open_set(settings.data, settings.dataset)
        if not settings.genotype:
            check_search(settings, data.checksum)
        trn_films = Films(data, "train", settings.crop, device)
        val_films = Films(data, "val", settings.crop, device)
        part = ranks.part(settings.batch_size)
        sampler = Sampler(trn_films, settings.batch_size, generator, part)
        network = Network(settings.c, len(FINDINGS), settings.layers, genotype).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)

    weights = Path(settings.out) / "weights"
    also = {"checksum": data.checksum, "genotype": format_genotype(genotype)}
    run = Run(weights / name, settings, ranks, also, product=weights / f"{name}_net.pth")
    if run.finished:
        return

    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    losses = utils.Losses(sampler)
    run.track(losses, network=network, optimizer=optimizer, scheduler=scheduler, sampler=sampler, generator=generator)
    progress = run.restore()
    if run.new:
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        run.log(f"{name}, {data.name}: {len(trn_films)} train and {len(val_films)} val films, {device}")
        run.log(f"derived network: {millions:.2f} M parameters\n{TRAINING_HEADER}")

    def forward(films):
        probability = settings.drop_path * progress["epoch"] / settings.epochs
        keep = network.drop_path(settings.batch_size, probability, generator)  # drawn for the films of all ranks
        return network(films, None if keep is None else keep[part])

    while progress["epoch"] < settings.epochs:
        lr = scheduler.get_last_lr()[0]
        trn_loss = utils.train_epoch(forward, network, sampler, losses, optimizer, settings.clip, run)
        auc, val_loss = utils.evaluate(network, val_films, settings.batch_size, run)
        scheduler.step()
        run.end_training_epoch(network, {"lr": lr, "train_loss": trn_loss, "val_loss": val_loss}, auc)
    if ranks.rank == 0:
        visualize.draw_run(run.folder)
    run.finish_training()


if __name__ == "__main__":
    guarded(main, parse_settings(__file__))
