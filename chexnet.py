"""The baseline: CheXNet (Rajpurkar et al. 2017, arXiv 1711.05225), a DenseNet-121 with one logit per finding.

    python chexnet.py

Reads   data/<set>/, and for PRETRAINED weights/densenet121-a639ec97.pth, else torchvision's download
Writes  weights/chexnet_net.pth, and weights/chexnet/ with log.txt, metrics.jsonl, settings.json, checkpoint.pt, picture
"""

import re
from pathlib import Path

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchvision.models import DenseNet121_Weights, densenet121

import utils
import visualize
from dataset import FINDINGS, Sampler, open_splits
from scores import evaluate
from support import ranks
from support.files import InputError
from support.runs import Run
from support.settings import start

DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run writes lies below it
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

# A dict has one value per set; a set without its own takes the phantom's.
PRETRAINED = {"phantom": False, "chestxray14": True}  # True: start from ImageNet weights
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
EPOCHS = {"phantom": 6, "nih10k": 20, "chestxray14": 100}  # passes over train, at most
BATCH_SIZE = {"phantom": 16, "chestxray14": 32}  # films

# The better of two on small sets, and the original's (docs/evidence.md).
RECIPE = {"phantom": "one_cycle", "chestxray14": "reference"}  # one_cycle: AdamW; reference: Adam, rate by plateaus
ONE_CYCLE_LR = 2e-3  # AdamW's highest rate: reached after 0.3 of all steps, then falling to almost 0
ONE_CYCLE_WEIGHT_DECAY = 0.05  # of AdamW
LR = {"phantom": 1e-3, "chestxray14": 1e-4}  # Adam's rate at the start
PATIENCE = 1  # epochs in a row without a better val AUC that change nothing; one more divides Adam's rate by 10
LR_STOP = 1e-7  # training ends when Adam's rate falls below
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's first bias: logits of train's frequencies
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


class CheXNet(nn.Module):
    """DenseNet-121; films (B, 3, H, W) -> logits (B, num_classes)."""

    def __init__(self, num_classes, pretrained=False, folder="weights"):
        """pretrained: start from torchvision's ImageNet weights, see `load_imagenet_weights`."""
        super().__init__()
        self.densenet = densenet121()
        if pretrained:
            load_imagenet_weights(self.densenet, folder)
        self.densenet.classifier = nn.Linear(self.densenet.classifier.in_features, num_classes)
        self.to(memory_format=torch.channels_last)

    @property
    def classifier(self):
        return self.densenet.classifier

    def forward(self, films):
        return self.densenet(films.contiguous(memory_format=torch.channels_last))


def load_imagenet_weights(densenet, folder):
    """Load torchvision's ImageNet weights from `folder`, where they are downloaded to if missing. Raises InputError.

    densenet: torchvision's DenseNet-121 with its 1,000 classes.
    """
    url = DenseNet121_Weights.IMAGENET1K_V1.url
    path = Path(folder) / url.rpartition("/")[2]
    ways = f"put {url} there by hand, or pass --no-pretrained"
    with ranks.first_rank_first():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, path)
            except OSError as error:  # urllib's errors are OSErrors, too
                raise InputError(f"{path} is missing and cannot be downloaded ({error}): {ways}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The file is older than the names of today's modules: denselayer1.norm.1 is now denselayer1.norm1.
        state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): v for key, v in state.items()}
        densenet.load_state_dict(state)
    except Exception:  # torch raises many kinds for a file that is not what it should be
        raise InputError(f"{path} is damaged, or another network's: delete it, then {ways}") from None


def make_optimizer(settings, weights, steps):
    """The optimizer of `weights` and its learning rate's schedule, by the recipe; steps: of one epoch."""
    if settings.recipe == "one_cycle":
        rate, decay = settings.one_cycle_lr, settings.one_cycle_weight_decay
        return utils.one_cycle(weights, rate, decay, settings.epochs * steps)
    fused = weights[0].is_cuda  # one kernel for all parameters
    optimizer = Adam(weights, settings.lr, fused=fused)
    return optimizer, ReduceLROnPlateau(optimizer, "max", factor=0.1, patience=settings.patience, threshold=0)


def check_settings(settings):
    """Raise InputError for what would train nothing."""
    utils.check_recipe(settings.recipe)
    if settings.recipe == "reference" and settings.lr < settings.lr_stop:
        raise InputError(f"LR (--lr) is {settings.lr:g}, below LR_STOP (--lr-stop): no epoch would be trained")


def main(settings):
    check_settings(settings)
    device = utils.select_device(settings.device)
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    data, trn_films, val_films = open_splits(settings.data, settings.dataset, settings.crop, device, "train", "val")
    sampler = Sampler(trn_films, settings.batch_size, generator)
    out = Path(settings.out) / "weights"
    run = Run(out / "chexnet", settings, device, {"checksum": data.checksum}, product=out / "chexnet_net.pth")
    if run.finished:
        return

    # A run that goes on has its weights in the checkpoint.
    network = CheXNet(len(FINDINGS), settings.pretrained and run.new, out).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights = list(network.parameters())
    one_cycle = settings.recipe == "one_cycle"
    optimizer, scheduler = make_optimizer(settings, weights, len(sampler))
    run.restore(network=network, optimizer=optimizer, scheduler=scheduler, train=sampler, generator=generator)
    if run.new:
        run.log(f"CheXNet, {data.name}: {len(trn_films)} train and {len(val_films)} val films; {run.where()}")
        run.log(f"DenseNet-121: {sum(p.numel() for p in weights) / 1e6:.2f} M parameters")
        run.log("epoch         lr   train loss   val loss   val AUC")

    for epoch in run.epochs(settings.epochs):
        if not one_cycle and scheduler.get_last_lr()[0] < settings.lr_stop:
            break
        network.train()
        for _ in run.steps(len(sampler)):
            films, labels = sampler.next()
            with utils.autocast(device):
                loss = utils.criterion(network(films), labels)
            run.add(train=utils.descend(loss, weights, optimizer))
            if one_cycle:
                scheduler.step()

        lr, trn_loss = scheduler.get_last_lr()[0], run.means()["train"]
        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.pause)
        if not one_cycle:
            scheduler.step(auc)
        if run.is_best(auc):
            run.save_weights(network)
        shown = f"{epoch:5}   {lr:8.1e}   {trn_loss:10.4f}   {val_loss:8.4f}   {auc:7.3f}"
        run.end_epoch(shown, lr=lr, train_loss=trn_loss, val_loss=val_loss, val_auc=auc)
    run.finish(visualize.draw_run)


if __name__ == "__main__":
    start(main, __file__)
