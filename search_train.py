"""Stage 1: search a cell with DARTS. Alternates a step on α (val batch) and a step on w (train batch).

    python search_train.py                   first order, on the phantom
    python search_train.py --second-order    second order

Reads   data/<set>/
Writes  search_first_order/ or search_second_order/: genotype.txt (the epoch with the best val AUC after the
        warm-up), genotype_last.txt (the last epoch), log.txt, metrics.jsonl, settings.json, checkpoint.pt, pictures
"""

from functools import partial
from pathlib import Path

from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import utils
import visualize
from architect import Architect
from dataset import FINDINGS, Sampler, open_splits
from genotypes import diagnostics, format_genotype
from model_search import Network
from scores import evaluate
from support.files import InputError
from support.runs import Run
from support.settings import start

SECOND_ORDER = False  # False: first order, ξ = 0; True: second order, ξ = the learning rate of w
EXACT_PRODUCT = False  # second order only; False: the paper's finite differences (eq. 8); True: differentiate twice
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run writes lies below it
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

# A dict has one value per set; a set without its own takes the phantom's.
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
C = {"phantom": 8, "chestxray14": 16}  # channels of the first cell
LAYERS = {"phantom": 5, "chestxray14": 12}  # cells, at least 4
EPOCHS = {"phantom": 8, "nih10k": 6, "chestxray14": 50}  # passes over train
BATCH_SIZE = {"phantom": 32, "chestxray14": 16}  # films

W_LR = {"phantom": 0.4, "chestxray14": 0.025}  # SGD's learning rate, in the first epoch
W_LR_MIN = {"phantom": 0.05, "chestxray14": 0.0001}  # approached in the last epoch, along a cosine
W_MOMENTUM = 0.9  # of SGD
W_WEIGHT_DECAY = 3e-4  # λ
W_CLIP = 5.0  # largest norm of ∇w
ALPHA_LR = {"phantom": 0.02, "chestxray14": 3e-4}  # Adam's learning rate
ALPHA_BETA1 = 0.5  # Adam's first β; the second is 0.999
ALPHA_WEIGHT_DECAY = {"phantom": 0.0, "chestxray14": 1e-3}  # of α; off on small sets, where it outweighs ∇α
# Not in the paper: w learns before α chooses, the mix on an edge comes close to the one operation it ends as, cheap
# operations are preferred, and the classifier's bias need not be learned.
WARM_UP = {"phantom": 0.25, "chestxray14": 0.0}  # share of the epochs, at the start, in which w alone learns
TEMPERATURE = {"phantom": 0.05, "chestxray14": 1.0}  # τ of softmax(α / τ) in the last two epochs; it falls from 1
PRICE = {"phantom": 0.002, "chestxray14": 0.0}  # of a sep_conv_5x5, in α's loss; of others by multiply-adds
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's first bias: logits of train's frequencies
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


def temperature(epoch, warm_up, epochs, lowest):
    """τ of softmax(α / τ): 1 in the first epoch after the warm-up, `lowest` in the last two, geometric in between."""
    done = (epoch - warm_up - 1) / max(1, epochs - warm_up - 2)
    return lowest ** min(1, max(0, done))


def main(settings):
    if settings.exact_product and not settings.second_order:
        raise InputError("--exact-product is a way to compute the second order: pass --second-order, too")
    device = utils.select_device(settings.device)
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    data, trn_films, val_films = open_splits(settings.data, settings.dataset, settings.crop, device, "train", "val")
    trn_sampler = Sampler(trn_films, settings.batch_size, generator)
    val_sampler = Sampler(val_films, settings.batch_size, generator)
    network = Network(settings.c, len(FINDINGS), settings.layers).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights, alphas = network.weight_parameters(), network.arch_parameters()

    order = "second" if settings.second_order else "first"
    run = Run(Path(settings.out) / f"search_{order}_order", settings, device, {"checksum": data.checksum})
    if run.finished:
        return

    fused = device.type == "cuda"  # one kernel for all parameters
    betas = settings.alpha_beta1, 0.999
    w_optimizer = SGD(weights, settings.w_lr, settings.w_momentum, weight_decay=settings.w_weight_decay, fused=fused)
    alpha_optimizer = Adam(alphas, settings.alpha_lr, betas, weight_decay=settings.alpha_weight_decay, fused=fused)
    scheduler = CosineAnnealingLR(w_optimizer, settings.epochs, settings.w_lr_min)
    architect = Architect(
        network,
        utils.criterion,
        w_optimizer,
        alpha_optimizer,
        settings.second_order,
        exact=settings.exact_product,
        price=settings.price,
    )
    run.restore(
        network=network,
        w_optimizer=w_optimizer,
        alpha_optimizer=alpha_optimizer,
        scheduler=scheduler,
        train=trn_sampler,
        val=val_sampler,
        generator=generator,
    )
    if run.new:
        run.log(f"{order} order, {data.name}: {len(trn_films)} train and {len(val_films)} val films; {run.where()}")
        run.log(f"supernet: {sum(p.numel() for p in weights) / 1e6:.2f} M weights")
        run.log("epoch   lr of w   train loss   α's val loss   val AUC   normal's entropy   skips+pools")

    warm_up = int(settings.epochs * settings.warm_up)
    for epoch in run.epochs(settings.epochs):
        warming_up = epoch <= warm_up
        lr = scheduler.get_last_lr()[0]
        network.temperature = temperature(epoch, warm_up, settings.epochs, settings.temperature)
        network.train()
        for _ in run.steps(len(trn_sampler)):  # Algorithm 1 of the paper
            films, labels = trn = trn_sampler.next()

            # 1. α step, in float32: the second-order term is a small difference
            alpha_loss = None if warming_up else architect.step(trn, val_sampler.next())

            # 2. w step: ∇w L_train(w, α)
            with utils.autocast(device):
                loss = utils.criterion(network(films), labels)
            trn_loss = utils.descend(loss, weights, w_optimizer, settings.w_clip)
            run.add(train=trn_loss, val=alpha_loss)

        means = run.means()
        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.pause)
        scheduler.step()

        genotype = network.genotype()
        run.write("genotype_last.txt", format_genotype(genotype))
        if run.is_best(auc, counts=not warming_up):  # until then the cell is that of α's random start
            run.write("genotype.txt", format_genotype(genotype))
        logits = dict(zip(("normal", "reduce"), network.edge_logits(), strict=True))
        state = diagnostics(genotype, *logits.values())
        alpha_loss = "–" if warming_up else f"{means['val']:.4f}"
        scores = f"{epoch:5}   {lr:7.4f}   {means['train']:10.4f}   {alpha_loss:>12}   {auc:7.3f}"
        run.end_epoch(
            f"{scores}   {state['entropy_normal']:16.3f}   {state['skips']:5} + {state['pools']:<3}",
            partial(visualize.cells_figure, genotype),
            lr=lr,
            train_loss=means["train"],
            alpha_loss=means.get("val"),
            temperature=network.temperature,
            val_loss=val_loss,
            **state,
            val_auc=auc,
            genotype=format_genotype(genotype),
            alphas={kind: values.tolist() for kind, values in logits.items()},
        )

    run.log((run.folder / "genotype.txt").read_text(encoding="utf-8").strip())
    run.finish(visualize.draw_run)


if __name__ == "__main__":
    start(main, __file__)
