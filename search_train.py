"""Stage 1: search a cell with DARTS. Alternates a step on α (val batch) and a step on w (train batch).

    python search_train.py                   first order, on the phantom
    python search_train.py --second-order    second order

Reads   data/<set>/
Writes  search_first_order/ or search_second_order/: genotype.txt (the epoch with the best val AUC after the
        warm-up), genotype_last.txt (the last epoch), log.txt, metrics.jsonl, settings.json, checkpoint.pt, pictures
"""

from pathlib import Path

from torch.optim import Adam

import utils
from architect import Architect
from dataset import Films, Sampler, find_preset, open_set
from genotypes import diagnostics, format_genotype
from model_search import Network
from report.figures import draw_run
from scores import evaluate
from support.devices import autocast, seed_everything, select_device
from support.files import InputError
from support.runs import Run
from support.settings import check_choice, check_numbers, start

SECOND_ORDER = False  # False: first order, ξ = 0; True: second order, ξ = the learning rate of w
EXACT_PRODUCT = False  # second order only; False: the paper's finite differences (eq. 8); True: differentiate twice
DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets, from that of this script
OUT = "."  # everything this run writes lies below it, from where the command is run
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

PRESET = ""  # whose value of a dict below: phantom (drawn films), small (small real sets), reference; "": the set's own
CROP = {"phantom": 64, "small": 0, "reference": 224}  # pixels, a multiple of 32, at least half the film; 0: all of it
C = {"phantom": 8, "small": 8, "reference": 16}  # channels of the first cell
LAYERS = {"phantom": 5, "small": 5, "reference": 12}  # cells, at least 4
EPOCHS = {"phantom": 8, "small": 6, "reference": 50}  # passes over train
BATCH_SIZE = {"phantom": 32, "small": 32, "reference": 16}  # films

# What films go through before a network sees them (docs/tried.md).
STANDARDISE = {"phantom": False, "small": True, "reference": False}  # True: each film to one mean and deviation
CONTRAST = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: contrast × exp(± this), brightness ± half of it
TURN = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: ± degrees, with scale and shift (dataset.turned)

W_LR = {"phantom": 0.4, "small": 0.4, "reference": 0.025}  # SGD's learning rate, in the first epoch
W_LR_MIN = {"phantom": 0.05, "small": 0.05, "reference": 0.0001}  # approached in the last epoch, along a cosine
W_MOMENTUM = 0.9  # of SGD
W_WEIGHT_DECAY = 3e-4  # λ
W_CLIP = 5.0  # largest norm of ∇w
ALPHA_LR = {"phantom": 0.02, "small": 0.02, "reference": 3e-4}  # Adam's learning rate
ALPHA_BETA1 = 0.5  # Adam's first β; the second is 0.999
ALPHA_WEIGHT_DECAY = {"phantom": 0.0, "small": 0.0, "reference": 1e-3}  # of α; on small sets it would outweigh ∇α
# Not in the paper: w learns before α chooses, each edge's mix approaches the single operation that it becomes, cheap
# operations are preferred, and the classifier's bias need not be learned.
WARM_UP = {"phantom": 0.25, "small": 0.25, "reference": 0.0}  # share of the epochs, at the start, when only w learns
LOWEST_TEMPERATURE = {"phantom": 0.05, "small": 0.05, "reference": 1.0}  # τ of softmax(α / τ) in the last two epochs
PRICE = {"phantom": 0.002, "small": 0.002, "reference": 0.0}  # of a sep_conv_5x5 in α's loss; of others by cost
START_AT_PREVALENCE = {"phantom": True, "small": True, "reference": False}  # classifier's bias: logits of frequencies
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


def check(settings):
    """Raise InputError for settings that make no sense."""
    check_numbers(settings, "epochs batch_size c", low=1, whole=True)
    check_numbers(settings, "layers", low=4, whole=True)
    check_numbers(settings, "crop", low=0, whole=True)
    check_numbers(settings, "contrast turn", low=0)
    check_numbers(settings, "seed", low=-(2**63), below=2**63, whole=True)
    check_numbers(settings, "w_lr_min w_weight_decay alpha_weight_decay price", low=0)
    check_numbers(settings, "w_lr w_clip alpha_lr", above=0)
    check_numbers(settings, "w_momentum alpha_beta1 warm_up", low=0, below=1)
    check_numbers(settings, "lowest_temperature", low=1e-3)
    check_choice(settings, "second_order exact_product fresh start_at_prevalence deterministic standardise")
    if settings.exact_product and not settings.second_order:
        raise InputError("--exact-product is a way to compute the second order: pass --second-order, too")


def temperature(epoch, warm_up, epochs, lowest):
    """τ of softmax(α / τ): 1 in the first epoch after the warm-up, `lowest` in the last two, geometric in between."""
    done = (epoch - warm_up - 1) / max(1, epochs - warm_up - 2)
    return lowest ** min(1, max(0, done))


def main(settings):
    check(settings)
    order = "second" if settings.second_order else "first"
    device = select_device(settings.device)
    generator = seed_everything(settings.seed, device, settings.deterministic)

    data = open_set(settings.data, settings.dataset)
    looks = settings.standardise, settings.contrast, settings.turn
    trn_films, val_films = (Films(data, split, settings.crop, device, *looks) for split in ("train", "val"))
    trn_sampler, val_sampler = (Sampler(films, settings.batch_size, generator) for films in (trn_films, val_films))
    settings.crop = trn_films.crop  # in pixels, also where 0 was asked for

    run = Run(Path(settings.out) / f"search_{order}_order", settings, device, data.identity())
    if run.finished:
        return

    network = Network(settings.c, len(data.findings), settings.layers).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights, alphas = network.weight_parameters(), network.arch_parameters()
    of_w = settings.w_lr, settings.w_momentum, settings.w_weight_decay, settings.w_lr_min
    w_schedule = utils.Cosine(weights, settings.epochs, len(trn_sampler), *of_w)
    betas, decay = (settings.alpha_beta1, 0.999), settings.alpha_weight_decay
    alpha_optimizer = Adam(alphas, settings.alpha_lr, betas, weight_decay=decay, fused=utils.is_fused(alphas))
    how = settings.second_order, settings.exact_product, settings.price
    architect = Architect(network, utils.criterion, w_schedule.optimizer, alpha_optimizer, *how)
    state = {"network": network, "w_schedule": w_schedule, "alpha_optimizer": alpha_optimizer}
    run.restore(**state, trn_sampler=trn_sampler, val_sampler=val_sampler, generator=generator)
    if run.new:
        run.log(f"{order} order, {data.name}: {len(trn_films)} train, {len(val_films)} val films, crop {settings.crop}")
        run.log(f"supernet: {sum(p.numel() for p in weights) / 1e6:.2f} M weights")

    warm_up = int(settings.epochs * settings.warm_up)
    for epoch in run.epochs(settings.epochs):
        network.temperature = temperature(epoch, warm_up, settings.epochs, settings.lowest_temperature)
        network.train()
        for _ in run.steps(len(trn_sampler)):  # Algorithm 1 of the paper
            films, labels = trn = trn_sampler.next()

            # 1. α step, in float32: the second-order term is a small difference
            alpha_loss = architect.step(trn, val_sampler.next()) if epoch > warm_up else None

            # 2. w step: ∇w L_train(w, α)
            with autocast(device):
                loss = utils.criterion(network(films), labels)
            trn_loss = utils.descend(loss, weights, w_schedule.optimizer, settings.w_clip)
            run.add("train_loss", trn_loss, trn_sampler)
            run.add("alpha_loss", alpha_loss, val_sampler)

        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.stop_or_save_if_due)
        genotype, (normal, reduce) = network.genotype(), network.edge_logits()
        text = format_genotype(genotype)
        shown = {"val_loss": val_loss, "lr": w_schedule.lr} | diagnostics(genotype, normal, reduce)
        stored = {"genotype": text, "alphas": {"normal": normal.tolist(), "reduce": reduce.tolist()}}
        w_schedule.after_epoch(auc)
        run.write("genotype_last.txt", text)
        keep = {"genotype.txt": text} if epoch > warm_up else None  # during the warm-up α has its random start
        run.end_epoch(auc, shown, keep, temperature=network.temperature, **stored)
    run.finish(draw_run)


if __name__ == "__main__":
    start(main, __file__, find_preset)
