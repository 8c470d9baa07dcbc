"""The baseline: CheXNet (Rajpurkar et al. 2017, arXiv 1711.05225), a DenseNet-121 with one logit per finding.

    python chexnet.py

Reads   data/<set>/, and for PRETRAINED weights/densenet121-a639ec97.pth, else torchvision's download
Writes  weights/chexnet_net.pth, and weights/chexnet/ with log.txt, metrics.jsonl, settings.json, checkpoint.pt, picture
"""

import re
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import DenseNet121_Weights, densenet121

import utils
from dataset import Films, Sampler, find_preset, open_set
from report.figures import draw_run
from scores import evaluate
from support import ranks
from support.devices import autocast, seed_everything, select_device
from support.files import InputError
from support.runs import Run
from support.settings import check_choice, check_numbers, start

DATASET = "phantom"  # phantom, nih10k, chestxray14, or any other folder below DATA
DATA = "data"  # folder of the prepared sets, from that of this script
OUT = "."  # everything this run writes lies below it, from where the command is run
FRESH = False  # True: move an old run of this name aside and start again from the first epoch
SEED = 0  # any integer
DEVICE = "auto"  # auto (cuda, else mps, else cpu), cpu, cuda, mps

PRESET = ""  # whose value of a dict below: phantom (drawn films), small (small real sets), reference; "": the set's own
PRETRAINED = {"phantom": False, "small": False, "reference": True}  # True: start from ImageNet weights
CROP = {"phantom": 64, "small": 0, "reference": 224}  # pixels, a multiple of 32, at least half the film; 0: all of it
EPOCHS = {"phantom": 6, "small": 20, "reference": 100}  # passes over train, at most
BATCH_SIZE = {"phantom": 16, "small": 16, "reference": 32}  # films
START_AT_PREVALENCE = {"phantom": True, "small": True, "reference": False}  # classifier's bias: logits of frequencies

# What films go through before a network sees them (docs/tried.md).
STANDARDISE = {"phantom": False, "small": False, "reference": False}  # True: each film to one mean and deviation
CONTRAST = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: contrast × exp(± this), brightness ± half of it
TURN = {"phantom": 0.0, "small": 0.0, "reference": 0.0}  # training: ± degrees, with scale and shift (dataset.turned)

# The better recipe on small sets, and the original's (docs/tried.md).
RECIPE = {"phantom": "one_cycle", "small": "one_cycle", "reference": "plateau"}  # one_cycle: AdamW; plateau: Adam
ONE_CYCLE_LR = 2e-3  # AdamW's highest rate: reached after 0.3 of all steps, then falling to almost 0
ONE_CYCLE_WEIGHT_DECAY = 0.05  # of AdamW
PLATEAU_LR = {"phantom": 1e-3, "small": 1e-3, "reference": 1e-4}  # Adam's rate at the start
PLATEAU_PATIENCE = 1  # epochs without a better val AUC that are tolerated; the next one divides the rate by 10
PLATEAU_LR_STOP = 1e-7  # training ends when the rate falls below
DETERMINISTIC = False  # True: the same bits each time on a GPU, too, where torch can (docs/speed.md: its cost)


class Transition(nn.Sequential):
    """DenseNet's transition: norm, relu, conv (1×1), pool (the average of 2×2).

    The last two are linear and do not mix what the other mixes, so a training step may pool first: up to rounding it
    is the same, with a quarter of the convolution's work. Evaluation, whose multiply-adds are reported, does not.
    """

    def forward(self, x):
        x = self.relu(self.norm(x))
        return self.conv(self.pool(x)) if self.training else self.pool(self.conv(x))


class CheXNet(nn.Module):
    """DenseNet-121; films (B, 3, H, W) -> logits (B, num_classes)."""

    def __init__(self, num_classes, pretrained=False, folder="weights"):
        """pretrained: start from torchvision's ImageNet weights, see `load_imagenet_weights`."""
        super().__init__()
        self.densenet = densenet121()
        if pretrained:
            load_imagenet_weights(self.densenet, folder)
        for k in (1, 2, 3):
            transition = getattr(self.densenet.features, f"transition{k}")
            setattr(self.densenet.features, f"transition{k}", Transition(OrderedDict(transition.named_children())))
        self.densenet.classifier = nn.Linear(self.densenet.classifier.in_features, num_classes)
        self.to(memory_format=torch.channels_last)

    @property
    def classifier(self):
        return self.densenet.classifier

    def features(self, films):
        """The last feature map, after its ReLU: films (B, 3, H, W) -> (B, 1024, H/32, W/32)."""
        return F.relu(self.densenet.features(films.contiguous(memory_format=torch.channels_last)), inplace=True)

    def forward(self, films):
        return self.classifier(F.adaptive_avg_pool2d(self.features(films), 1).flatten(1))


def load_imagenet_weights(densenet, folder):
    """Load torchvision's ImageNet weights from `folder`, where they are downloaded to if missing. Raises InputError."""
    url = DenseNet121_Weights.IMAGENET1K_V1.url
    path = Path(folder) / url.rpartition("/")[2]
    ways = f"put {url} there by hand, or pass --no-pretrained"
    try:
        with ranks.first_rank_first():
            state = torch.hub.load_state_dict_from_url(url, folder, "cpu", weights_only=True)
        # The file is older than the names of today's modules: denselayer1.norm.1 is now denselayer1.norm1.
        state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", key): v for key, v in state.items()}
        densenet.load_state_dict(state)
    except OSError as error:  # urllib's errors are OSErrors, too
        raise InputError(f"{path} is missing and cannot be downloaded ({error}): {ways}") from None
    except Exception:  # torch raises many kinds for a file that is not what it should be
        raise InputError(f"{path} is damaged, or another network's: delete it, then {ways}") from None


def check(settings):
    """Raise InputError for settings that make no sense, and for those that would train nothing."""
    check_choice(settings, "recipe", ("one_cycle", "plateau"))
    check_numbers(settings, "epochs batch_size", low=1, whole=True)
    check_numbers(settings, "crop", low=0, whole=True)
    check_numbers(settings, "contrast turn", low=0)
    check_numbers(settings, "seed", low=-(2**63), below=2**63, whole=True)
    if settings.recipe == "one_cycle":
        check_numbers(settings, "one_cycle_lr", above=0)
        check_numbers(settings, "one_cycle_weight_decay", low=0)
    else:
        check_numbers(settings, "plateau_patience", low=0, whole=True)
        check_numbers(settings, "plateau_lr_stop", low=0)
        check_numbers(settings, "plateau_lr", low=settings.plateau_lr_stop, above=0)
    check_choice(settings, "pretrained fresh start_at_prevalence deterministic standardise")


def main(settings):
    check(settings)
    device = select_device(settings.device)
    generator = seed_everything(settings.seed, device, settings.deterministic)

    data = open_set(settings.data, settings.dataset)
    looks = settings.standardise, settings.contrast, settings.turn
    trn_films, val_films = (Films(data, split, settings.crop, device, *looks) for split in ("train", "val"))
    sampler = Sampler(trn_films, settings.batch_size, generator)
    settings.crop = trn_films.crop  # in pixels, also where 0 was asked for

    out = Path(settings.out) / "weights"
    run = Run(out / "chexnet", settings, device, data.identity(), product=out / "chexnet_net.pth")
    if run.finished:
        return

    # A run that goes on has its weights in the checkpoint.
    network = CheXNet(len(data.findings), settings.pretrained and run.new, out).to(device)
    if settings.start_at_prevalence:
        utils.start_at_prevalence(network.classifier, trn_films.labels)
    weights = list(network.parameters())
    schedule = utils.make_schedule(settings, weights, len(sampler))

    run.restore(network=network, schedule=schedule, sampler=sampler, generator=generator)
    if run.new:
        run.log(f"CheXNet, {data.name}: {len(trn_films)} train, {len(val_films)} val films, crop {settings.crop}")
        run.log(f"DenseNet-121: {sum(p.numel() for p in weights) / 1e6:.2f} M parameters")

    for _ in run.epochs(settings.epochs):
        if schedule.done:
            break
        network.train()
        for _ in run.steps(len(sampler)):
            films, labels = sampler.next()
            with autocast(device):
                loss = utils.criterion(network(films), labels)
            run.add("train_loss", utils.descend(loss, weights, schedule.optimizer), sampler)
            schedule.after_step()

        auc, val_loss = evaluate(network, val_films, settings.batch_size, run.stop_or_save_if_due)
        shown = {"val_loss": val_loss, "lr": schedule.lr}
        schedule.after_epoch(auc)
        run.end_epoch(auc, shown, keep=network.state_dict())
    run.finish(draw_run)


if __name__ == "__main__":
    start(main, __file__, find_preset, utils.SCHEDULES)
