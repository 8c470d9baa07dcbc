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

from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import utils
import visualize
from dataset import FINDINGS, Sampler, open_splits
from genotypes import PUBLISHED, format_genotype, given_genotype, open_genotype, random_genotype
from model_eval import Network
from scores import evaluate
from support.files import InputError
from support.runs import Run, read_run
from support.settings import start

SECOND_ORDER = False  # which search's genotype to train: False: first order, True: second order
GENOTYPE = ""  # another cell instead: a file, Genotype(...), "random" (by SEED), or a name in genotypes.PUBLISHED
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run reads from a search, and writes, lies below it
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

# A dict has one value per set; a set without its own takes the phantom's.
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
C = {"phantom": 16, "chestxray14": 36}  # channels of the first cell
LAYERS = {"phantom": 5, "chestxray14": 20}  # cells, at least 4
EPOCHS = {"phantom": 26, "nih10k": 8, "chestxray14": 500}  # passes over train
BATCH_SIZE = {"phantom": 32, "chestxray14": 32}  # films

# The better of two on small sets, and the original's (docs/evidence.md).
RECIPE = {"phantom": "one_cycle", "chestxray14": "reference"}  # one_cycle: AdamW; reference: SGD along a cosine
ONE_CYCLE_LR = 0.01  # AdamW's highest rate: reached after 0.3 of all steps, then falling to almost 0
ONE_CYCLE_WEIGHT_DECAY = 0.05  # of AdamW
LR = {"phantom": 0.3, "chestxray14": 0.025}  # SGD's rate in the first epoch; each epoch it falls, to 0
MOMENTUM = 0.9  # of SGD
WEIGHT_DECAY = 3e-4  # of SGD
CLIP = 5.0  # largest norm of the gradient
DROP_PATH = {"phantom": 0.0, "chestxray14": 0.2}  # probability, growing linearly over the epochs from 0 towards this
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's first bias: logits of train's frequencies
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


def choose_genotype(settings):
    """The name under which the network is known, and its genotype. Raises InputError."""
    if settings.genotype == "random":
        return f"random_{settings.seed}", random_genotype(settings.seed)
    if settings.genotype in PUBLISHED:
        return settings.genotype, PUBLISHED[settings.genotype]
    if settings.genotype:
        name, found = given_genotype(settings.genotype)
    else:
        order = "second" if settings.second_order else "first"
        path = Path(settings.out) / f"search_{order}_order" / "genotype.txt"
        if not path.exists():
            option = " --second-order" if settings.second_order else ""
            raise InputError(f"{path} is missing: run 'python search_train.py{option}' first, with the same --out")
        name, found = f"{order}_order", open_genotype(path)
    if found.choice:
        print(found.choice)
    return name, found.genotype


def check_search(settings, checksum):
    """Raise InputError if the selected order's search was made on another set; say so if it has not finished."""
    folder = Path(settings.out) / f"search_{'second' if settings.second_order else 'first'}_order"
    search = read_run(folder)
    if search is None:
        return
    searched, epochs = search
    if searched["checksum"] != checksum:
        raise InputError(
            f"{folder}: searched on another set ({searched['dataset']}, or another version of "
            f"{settings.dataset}): search on this one first, or name the cell with --genotype FILE"
        )
    if epochs < searched["epochs"]:
        print(f"{folder}: the search has not finished; its best cell so far is trained")


def make_optimizer(settings, weights, steps):
    """The optimizer of `weights` and its learning rate's schedule, by the recipe; steps: of one epoch."""
    if settings.recipe == "one_cycle":
        rate, decay = settings.one_cycle_lr, settings.one_cycle_weight_decay
        return utils.one_cycle(weights, rate, decay, settings.epochs * steps)
    fused = weights[0].is_cuda  # one kernel for all parameters
    optimizer = SGD(weights, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=fused)
    return optimizer, CosineAnnealingLR(optimizer, settings.epochs)


def main(settings):
    utils.check_recipe(settings.recipe)
    device = utils.select_device(settings.device)
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    name, genotype = choose_genotype(settings)
    data, trn_films, val_films = open_splits(settings.data, settings.dataset, settings.crop, device, "train", "val")
    if not settings.genotype:
        check_search(settings, data.checksum)
    sampler = Sampler(trn_films, settings.batch_size, generator)
    network = Network(settings.c, len(FINDINGS), settings.layers, genotype).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights = list(network.parameters())

    out = Path(settings.out) / "weights"
    also = {"checksum": data.checksum, "genotype": format_genotype(genotype)}
    run = Run(out / name, settings, device, also, product=out / f"{name}_net.pth")
    if run.finished:
        return

    one_cycle = settings.recipe == "one_cycle"
    optimizer, scheduler = make_optimizer(settings, weights, len(sampler))
    run.restore(network=network, optimizer=optimizer, scheduler=scheduler, train=sampler, generator=generator)
    if run.new:
        run.log(f"{name}, {data.name}: {len(trn_films)} train and {len(val_films)} val films; {run.where()}")
        run.log(f"derived network: {sum(p.numel() for p in weights) / 1e6:.2f} M parameters")
        run.log("epoch         lr   train loss   val loss   val AUC")

    for epoch in run.epochs(settings.epochs):
        drop_path = settings.drop_path * (epoch - 1) / settings.epochs
        network.train()
        for _ in run.steps(len(sampler)):
            films, labels = sampler.next()
            keep = network.drop_path(settings.batch_size, drop_path, generator)  # drawn for the films of all ranks
            with utils.autocast(device):
                logits = network(films, None if keep is None else keep[sampler.part])
                loss = utils.criterion(logits, labels)
            run.add(train=utils.descend(loss, weights, optimizer, settings.clip))
            if one_cycle:
                scheduler.step()

        lr, trn_loss = scheduler.get_last_lr()[0], run.means()["train"]
        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.pause)
        if not one_cycle:
            scheduler.step()
        if run.is_best(auc):
            run.save_weights(network)
        shown = f"{epoch:5}   {lr:8.1e}   {trn_loss:10.4f}   {val_loss:8.4f}   {auc:7.3f}"
        run.end_epoch(shown, lr=lr, train_loss=trn_loss, val_loss=val_loss, val_auc=auc)
    run.finish(visualize.draw_run)


if __name__ == "__main__":
    start(main, __file__)
