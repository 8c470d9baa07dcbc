"""Stage 1: search a cell with DARTS. Alternates a step on α (val batch) and a step on w (train batch).

    python search_train.py                   first order, on the phantom
    python search_train.py --second-order    second order

Reads   data/<set>/
Writes  search_first_order/ or search_second_order/: genotype.txt (the epoch with the best val AUC),
        genotype_last.txt (the last epoch), log.txt, metrics.jsonl, settings.json, checkpoint.pt, pictures
"""

from pathlib import Path

import torch

import utils
import visualize
from architect import Architect
from dataset import FINDINGS, Films, Sampler, open_set
from genotypes import diagnostics, format_genotype, save_genotype
from model_search import Network
from support.ranks import Ranks
from support.runs import Run
from support.settings import fail, guarded, one_line_errors, parse_settings

SECOND_ORDER = False  # False: first order, ξ = 0; True: second order, ξ = the learning rate of w
EXACT_PRODUCT = False  # second order only; False: the paper's finite differences (eq. 8); True: differentiate twice
DATASET = "phantom"  # phantom, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run writes lies below it
FRESH = False  # True: move an old run of this name aside and start anew
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

# A dict has one value per set; a set without its own takes the phantom's.
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
C = {"phantom": 8, "chestxray14": 16}  # channels of the first cell
LAYERS = {"phantom": 5, "chestxray14": 12}  # cells, at least 4
EPOCHS = {"phantom": 5, "chestxray14": 50}  # passes over train
BATCH_SIZE = {"phantom": 32, "chestxray14": 16}  # films

W_LR = {"phantom": 0.1, "chestxray14": 0.025}  # SGD's learning rate, in the first epoch
W_LR_MIN = 0.0001  # approached in the last epoch, along a cosine
W_MOMENTUM = 0.9  # of SGD
W_WEIGHT_DECAY = 3e-4  # λ
W_CLIP = 5.0  # largest norm of ∇w
ALPHA_LR = {"phantom": 6e-3, "chestxray14": 3e-4}  # Adam's learning rate
ALPHA_BETA1 = 0.5  # Adam's first β; the second is 0.999
ALPHA_WEIGHT_DECAY = 1e-3  # of α
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's bias: logits of train frequencies
LOG_EVERY = 10  # steps between readings of the loss
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (README says what it costs)


def main(settings):
    ranks = Ranks(utils.select_device(settings.device))
    device = ranks.device
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    order = "second" if settings.second_order else "first"
    if settings.exact_product and not settings.second_order:
        fail("--exact-product is a way to compute the second order: pass --second-order, too")
    with one_line_errors():
        with ranks.first_rank_first():  # who makes the phantom if it is not there
            data = open_set(settings.data, settings.dataset)
        trn_films = Films(data, "train", settings.crop, device)
        val_films = Films(data, "val", settings.crop, device)
        part = ranks.part(settings.batch_size)
        trn_sampler = Sampler(trn_films, settings.batch_size, generator, part)
        val_sampler = Sampler(val_films, settings.batch_size, generator, part)
        network = Network(settings.c, len(FINDINGS), settings.layers).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)

    run = Run(Path(settings.out) / f"search_{order}_order", settings, ranks, {"checksum": data.checksum})
    if run.finished:
        return

    fused = device.type == "cuda"  # one kernel for all parameters
    w_optimizer = torch.optim.SGD(
        network.weight_parameters(),
        lr=settings.w_lr,
        momentum=settings.w_momentum,
        weight_decay=settings.w_weight_decay,
        fused=fused,
    )
    alpha_optimizer = torch.optim.Adam(
        network.arch_parameters(),
        lr=settings.alpha_lr,
        betas=(settings.alpha_beta1, 0.999),
        weight_decay=settings.alpha_weight_decay,
        fused=fused,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(w_optimizer, settings.epochs, settings.w_lr_min)
    architect = Architect(
        network,
        utils.criterion,
        w_optimizer,
        alpha_optimizer,
        settings.second_order,
        settings.exact_product,
        ranks.average,
    )
    losses = utils.Losses(trn_sampler, val_sampler)
    run.track(
        losses,
        network=network,
        w_optimizer=w_optimizer,
        alpha_optimizer=alpha_optimizer,
        scheduler=scheduler,
        trn_sampler=trn_sampler,
        val_sampler=val_sampler,
        generator=generator,
    )
    progress = run.restore()
    if run.new:
        weights = sum(p.numel() for p in network.weight_parameters())
        run.log(f"{order} order, {data.name}: {len(trn_films)} train and {len(val_films)} val films, {device}")
        run.log(f"supernet: {weights / 1e6:.2f} M weights")
        run.log("epoch   lr of w   train loss   α's val loss   val AUC   entropy   skips+pools")

    while progress["epoch"] < settings.epochs:
        epoch = progress["epoch"] + 1
        lr = scheduler.get_last_lr()[0]
        trn_loss, alpha_loss = search_epoch(
            network, architect, w_optimizer, trn_sampler, val_sampler, losses, settings.w_clip, run
        )
        auc, val_loss = utils.evaluate(network, val_films, settings.batch_size, run)
        scheduler.step()

        genotype, state = network.genotype(), diagnostics(*network.arch_parameters())
        better = auc > progress["best_auc"]
        if ranks.rank == 0:
            save_genotype(run.folder / "genotype_last.txt", genotype)
            if better:
                save_genotype(run.folder / "genotype.txt", genotype)
        progress |= {"epoch": epoch, "best_auc": max(auc, progress["best_auc"])}
        scores = f"{epoch:5}   {lr:7.4f}   {trn_loss:10.4f}   {alpha_loss:12.4f}   {auc:7.3f}"
        collapse = f"{state['entropy_normal']:7.3f}   {state['skips']:5} + {state['pools']:<3}"
        run.log(f"{scores}   {collapse}{'  best so far' if better else ''}")
        row = {"epoch": epoch, "lr": lr, "train_loss": trn_loss, "alpha_loss": alpha_loss, "val_loss": val_loss}
        alphas = {"normal": network.alphas_normal.tolist(), "reduce": network.alphas_reduce.tolist()}
        row |= {"generalisation_gap": val_loss - trn_loss} | state
        run.end_epoch(row | {"val_auc": auc, "genotype": format_genotype(genotype), "alphas": alphas})

    if ranks.rank == 0:
        visualize.draw_run(run.folder)
        run.log(f"{(run.folder / 'genotype.txt').read_text().strip()}\n{run.seconds() / 60:.1f} minutes")
    run.finish()


def search_epoch(network, architect, w_optimizer, trn_sampler, val_sampler, losses, clip, run):
    """What is left of a pass over train: an α step and a w step per batch (Algorithm 1). Returns both mean losses."""
    network.train()
    for _ in run.steps(len(trn_sampler)):
        trn, val = trn_sampler.next(), val_sampler.next()

        # 1. α step, in float32: the second-order term is a small difference
        alpha_loss = architect.step(trn, val)

        # 2. w step: ∇w L_train(w, α)
        films, labels = trn
        with utils.autocast(films.device):
            loss = utils.criterion(network(films), labels)
        trn_loss = utils.descend(loss, network.weight_parameters(), w_optimizer, clip, run.ranks.average)
        losses.add(trn_loss, alpha_loss)
    return losses.means()


if __name__ == "__main__":
    guarded(main, parse_settings(__file__))
