"""The baseline: CheXNet (Rajpurkar et al. 2017, arXiv 1711.05225), a DenseNet-121 with one logit per finding.

    python chexnet.py

Reads   data/<set>/, and for PRETRAINED weights/densenet121-a639ec97.pth, else torchvision's download
Writes  weights/chexnet_net.pth, and weights/chexnet/ with log.txt, metrics.jsonl, settings.json, checkpoint.pt, picture
"""

import math
import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import DenseNet121_Weights, densenet121

import utils
import visualize
from dataset import FINDINGS, Films, Sampler, open_set
from support.ranks import Ranks
from support.runs import TRAINING_HEADER, Run
from support.settings import guarded, one_line_errors, parse_settings

DATASET = "phantom"  # phantom, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets
OUT = "."  # everything this run writes lies below it
FRESH = False  # True: move an old run of this name aside and start anew
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

PRETRAINED = {"phantom": False, "chestxray14": True}  # True: start from ImageNet weights
# A dict has one value per set; a set without its own takes the phantom's.
CROP = {"phantom": 64, "chestxray14": 224}  # pixels, a multiple of 32, from half the film size to all of it
EPOCHS = {"phantom": 6, "chestxray14": 100}  # passes over train, at most
BATCH_SIZE = {"phantom": 32, "chestxray14": 32}  # films

LR = {"phantom": 1e-3, "chestxray14": 1e-4}  # Adam's learning rate at the start
PATIENCE = 1  # epochs without a better val AUC that are borne; the next divides the learning rate by 10
LR_STOP = 1e-7  # training ends when the learning rate falls below
START_AT_PREVALENCE = {"phantom": True, "chestxray14": False}  # classifier's bias: logits of train frequencies
LOG_EVERY = 10  # steps between readings of the loss
CHECKPOINT_MINUTES = 10.0  # between checkpoints within an epoch
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (README says what it costs)


class CheXNet(nn.Module):
    """DenseNet-121; films (B, 3, H, W) -> logits (B, num_classes)."""

    def __init__(self, num_classes, pretrained=False, folder="weights"):
        """pretrained: start from torchvision's ImageNet weights, see `imagenet_weights(folder)`."""
        super().__init__()
        self.densenet = densenet121()
        if pretrained:
            self.densenet.load_state_dict(imagenet_weights(folder))
        self.densenet.classifier = nn.Linear(self.densenet.classifier.in_features, num_classes)
        self.to(memory_format=torch.channels_last)

    @property
    def classifier(self):
        return self.densenet.classifier

    def forward(self, films):
        return self.densenet(films.contiguous(memory_format=torch.channels_last))


def imagenet_weights(folder):
    """torchvision's DenseNet-121 weights from `folder`, downloaded into it where missing. Raises ValueError."""
    url = DenseNet121_Weights.IMAGENET1K_V1.url
    path = Path(folder) / url.rpartition("/")[2]
    try:
        state = torch.hub.load_state_dict_from_url(url, model_dir=folder, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, a broken file, a full disk: each means the same to the user
        raise ValueError(
            f"{path}: ImageNet weights cannot be read or downloaded ({type(error).__name__}); "
            f"put {url} there by hand, or pass --no-pretrained"
        ) from None
    # The file is older than the names of today's modules: denselayer1.norm.1 is now denselayer1.norm1.
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): v for key, v in state.items()}


def main(settings):
    ranks = Ranks(utils.select_device(settings.device))
    device = ranks.device
    generator = utils.seed_everything(settings.seed, device, settings.deterministic)
    with one_line_errors():
        with ranks.first_rank_first():  # who makes the phantom if it is not there
            data = open_set(settings.data, settings.dataset)
        trn_films = Films(data, "train", settings.crop, device)
        val_films = Films(data, "val", settings.crop, device)
        sampler = Sampler(trn_films, settings.batch_size, generator, ranks.part(settings.batch_size))
    weights = Path(settings.out) / "weights"
    run = Run(weights / "chexnet", settings, ranks, {"checksum": data.checksum}, product=weights / "chexnet_net.pth")
    if run.finished:
        return

    with one_line_errors(), ranks.first_rank_first():  # who downloads; a continued run has its weights saved
        network = CheXNet(len(FINDINGS), settings.pretrained and run.new, weights).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=device.type == "cuda")
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.1, patience=settings.patience, threshold=0
    )
    losses = utils.Losses(sampler)
    run.track(losses, network=network, optimizer=optimizer, scheduler=scheduler, sampler=sampler, generator=generator)
    progress = run.restore()
    if run.new:
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        run.log(f"CheXNet, {data.name}: {len(trn_films)} train and {len(val_films)} val films, {device}")
        run.log(f"DenseNet-121: {millions:.2f} M parameters\n{TRAINING_HEADER}")

    while progress["epoch"] < settings.epochs and optimizer.param_groups[0]["lr"] >= settings.lr_stop:
        lr = optimizer.param_groups[0]["lr"]
        trn_loss = utils.train_epoch(network, network, sampler, losses, optimizer, math.inf, run)
        auc, val_loss = utils.evaluate(network, val_films, settings.batch_size, run)
        scheduler.step(auc)
        run.end_training_epoch(network, {"lr": lr, "train_loss": trn_loss, "val_loss": val_loss}, auc)
    if ranks.rank == 0:
        visualize.draw_run(run.folder)
    run.finish_training()


if __name__ == "__main__":
    guarded(main, parse_settings(__file__))
