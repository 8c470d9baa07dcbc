"""A prepared set of films on disk, and batches of it made on the device that the network runs on.

A set is a folder with three files:

    images.npy    uint8, shape (N, H, W), H = W: the films
    labels.csv    one row per film, in the same order: COLUMNS, and MORE_COLUMNS where they are known
    source.json   where it came from, the entries of DEFAULTS, counts, and the checksum of the two files above

`Finding Labels` joins findings with "|" or is "No Finding". No patient is in two of the splits train, val and test.
"""

import hashlib
import json
import math
import re
import subprocess
import sys
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from support import ranks
from support.files import InputError, named, plain, read_table
from support.settings import fail

FINDINGS = (  # of ChestX-ray14 (Wang et al., CVPR 2017, arXiv 1705.02315)
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
NO_FINDING, AVERAGE = "No Finding", "Average"  # these stand in the place of a finding, so none is called so
SPLITS = ("train", "val", "test")
PRESETS = ("phantom", "small", "reference")  # recipes; of all sets, only the phantom is called like one
COLUMNS = ("Image Index", "Patient ID", "Finding Labels", "split")
MORE_COLUMNS = ("Sex", "Age", "View")  # Age in whole years
DEFAULTS = {"findings": FINDINGS, "preset": "small", "synthetic": False, "patients": True}  # see PreparedSet

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # per channel; the films' three channels are equal
IMAGENET_STD = (0.229, 0.224, 0.225)


# --- A set on disk


@dataclass
class PreparedSet:
    """images (N, H, W) uint8, labels (N, findings) float32 of 0 and 1, table: the N rows of labels.csv."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    table: pd.DataFrame
    checksum: str
    findings: tuple  # their names, in the order of the columns of `labels`
    preset: str  # the recipe that the set takes: phantom, small or reference
    synthetic: bool  # True: the films are drawn, and what networks make of them says nothing about real ones
    patients: bool  # False: the set does not know them, and each film counts as one

    @property
    def notice(self):
        """The notice that every table of results on this set shows."""
        return f"{'synthetic, ' * self.synthetic}not for clinical use"

    def identity(self):
        """What a run and its weights file say of the set: a dict of plain values."""
        facts = {"checksum": self.checksum, "findings": list(self.findings)}
        return facts | {"film_size": self.images.shape[1], "synthetic": self.synthetic}

    def rows(self, split):
        """Row numbers of a split's films, in file order."""
        return np.flatnonzero(self.table["split"].to_numpy() == split)

    def truth(self, split):
        """The labels of a split's films, (N, findings), and whose films they are, (N,)."""
        rows = self.rows(split)
        return self.labels[rows], self.table["Patient ID"].to_numpy()[rows]


def encode_findings(finding_labels, findings):
    """`Finding Labels` strings (N,) -> float32 (N, findings) of 0 and 1."""
    films = (text.split("|") for text in finding_labels)
    labels = [[finding in film for finding in findings] for film in films]
    return np.array(labels, dtype=np.float32).reshape(-1, len(findings))  # also of no film


def check_set(folder, images, table, findings):
    """The labels of a set, (N, findings). Raises InputError, naming the file and the row, for what is no set."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise InputError(f"{folder}/images.npy must be uint8 (N, H, W) with H = W, not {images.dtype} {images.shape}")
    at = f"{folder}/labels.csv"
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise InputError(f"{at} has no column {missing[0]!r} among {', '.join(map(repr, table.columns))}")
    if len(table) != len(images):
        raise InputError(f"{at} has {len(table)} rows for the {len(images)} films of images.npy")
    names, patients, texts, splits = (table[column] for column in COLUMNS)
    known = [text == NO_FINDING or {*str(text).split("|")} <= {*findings} for text in texts]
    problems = [(table[column].isna() | (table[column] == ""), column, "is empty") for column in COLUMNS]
    problems += [
        (~np.array(known, bool), "Finding Labels", "names an unknown finding"),
        (~splits.isin(SPLITS), "split", f"must be one of {', '.join(SPLITS)}"),
        (names.duplicated(), "Image Index", "is there twice"),
        (splits != splits.groupby(patients).transform("first"), "Patient ID", "is in two splits"),
    ]
    for bad, column, problem in problems:
        if bad.any():
            row = np.flatnonzero(bad)[0]
            raise InputError(f"{at}, row {row + 1}: {column} {str(table[column].iloc[row])!r} {problem}")
    labels = encode_findings(texts, findings)
    for split in SPLITS:
        inside = labels[splits == split]
        if not (inside.any(axis=0) & ~inside.all(axis=0)).any():
            raise InputError(f"{at}: split {split!r} has no finding with a positive and a negative film, so no AUC")
    values = np.unique(images[:: len(images) // 100 + 1])
    if len(values) < 8 or values[-1] < 64:  # as of films that were scaled to 0..1 before they became uint8
        what = f"only {len(values)} grey values, {values[0]} to {values[-1]}"
        raise InputError(f"{folder}/images.npy has {what}: scale the films to 0..255 and write the set again")
    return labels


def check_findings(names):
    """Raise InputError unless these names can be those of a set's findings."""
    taken = {"", plain(NO_FINDING), plain(AVERAGE)}
    for name in names or [""]:
        if plain(name) in taken or len(name) > 60 or re.search(r"[|,/\\\n]|^\s|\s$", name):
            rule = "names of up to 60 characters without | , / \\, different in more than case and marks"
            raise InputError(f"findings must be {rule}, none of them {NO_FINDING!r} or {AVERAGE!r}: {name!r} is not")
        taken.add(plain(name))


def check_source(source):
    """`source`, the content of source.json, completed by DEFAULTS. Raises InputError for invalid values."""
    source = DEFAULTS | source
    source["findings"] = tuple(source["findings"])
    check_findings(source["findings"])
    flag = (True, False)
    for name, values in {"preset": PRESETS, "synthetic": flag, "patients": flag}.items():
        if source[name] not in values:
            raise InputError(f"{name} must be one of {', '.join(map(repr, values))}, not {source[name]!r}")
    return source


def set_checksum(folder):
    """SHA-256 over images.npy, then labels.csv."""
    digest = hashlib.sha256()
    for name in ("images.npy", "labels.csv"):
        with named(Path(folder) / name), open(Path(folder) / name, "rb") as file:
            hashlib.file_digest(file, lambda: digest)  # which goes on with this digest
    return digest.hexdigest()


def read_source(folder):
    """The content of a set's source.json, also of an older one, which says less. Raises InputError."""
    at = Path(folder) / "source.json"
    try:
        source = json.loads(at.read_text(encoding="utf-8"))
        preset = {"phantom": "phantom", "chestxray14": "reference"}.get(at.parent.name, "small")
        synthetic = source.get("notice", "").startswith("synthetic")
        return check_source({"preset": preset, "synthetic": synthetic} | source)
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{at}: {error}") from None


def find_preset(data, name):
    """The preset of the set `name` below the folder `data`; "phantom" where there is none yet. Raises InputError."""
    folder = Path(data) / name
    if name != folder.name or name == "..":
        raise InputError(f"DATASET (--dataset) is {name!r} and must be the name of a folder in DATA (--data)")
    return read_source(folder)["preset"] if (folder / "source.json").exists() else "phantom"


def load_set(folder):
    """Read and check a prepared set. Raises InputError with one line that names the file and the problem."""
    folder = Path(folder)
    if not (folder / "source.json").exists():
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/source.json"))) or "none"
        raise InputError(f"{folder} is no finished set: prepare the set first (see docs/data.md); sets there: {there}")
    source, table = read_source(folder), read_table(folder / "labels.csv")
    if "Patient ID" in table and table["Patient ID"].str.fullmatch("[0-9]{1,18}").all():
        table["Patient ID"] = table["Patient ID"].astype("int64")  # sorted as numbers, not as texts
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{folder}/images.npy cannot be read ({error}): prepare the set again") from None
    labels = check_set(folder, images, table, source["findings"])
    checksum = set_checksum(folder)
    if checksum != source.get("checksum"):
        raise InputError(f"{folder}/source.json: its checksum does not fit the other two files: prepare the set again")
    return PreparedSet(folder.name, images, labels, table, checksum, **{fact: source[fact] for fact in DEFAULTS})


def open_set(data, name):
    """`load_set` of the set `name` below the folder `data`; the phantom is made there on first use."""
    folder = Path(data) / name
    preset = find_preset(data, name)
    if name in PRESETS and not (name == preset == "phantom"):
        raise InputError(f"{folder} is called like the preset {name}, but is another set: rename its folder")
    with ranks.first_rank_first():
        if name == "phantom" and not (folder / "source.json").exists():
            script = Path(__file__).parent / "data" / "prepare_phantom.py"
            if status := subprocess.run([sys.executable, script, folder]).returncode:
                if status < 0:
                    fail(f"{script} was ended by signal {-status}, as by a full memory: repeat the command", status=1)
                raise SystemExit(status)  # the script has said why
    return load_set(folder)


# --- Batches on the device


def crop_of(size, crop):
    """The size, px, of a network's input for films of `size` px; crop: as for `Films`. Raises InputError."""
    if size < 32:
        raise InputError(f"films of {size} pixels must have at least 32: prepare the set again")
    if crop % 32:
        raise InputError(f"crop {crop} must be a multiple of 32, or 0 for the whole film")
    crop = min(crop or size, size) // 32 * 32
    if 2 * crop < size:  # training would see a corner at full scale, evaluation the whole film reduced
        raise InputError(f"crop {crop} is less than half of the films' {size} pixels: pass a larger --crop")
    return crop


def grey_statistics(pixels):
    """The mean and the deviation, at least 1, of each film's grey values: uint8 (N, H, W) -> (N,), (N,)."""
    mean, std = torch.empty(2, len(pixels))
    floats = torch.empty(1024, *pixels.shape[1:])  # one buffer for all parts: memory for each would stay in pieces
    for start in range(0, len(pixels), len(floats)):
        part = slice(start, min(start + len(floats), len(pixels)))
        films = floats[: part.stop - start].copy_(pixels[part])
        std[part], mean[part] = torch.std_mean(films, (1, 2))
    return mean, std.clamp(min=1)  # that of a film of one grey value is 0


def turned(films, turn, drawn):
    """Films (B, H, W) that are rotated, scaled and shifted at random; what comes in from outside is black.

    turn: largest angle in degrees; the scale is at most exp(± turn / 100), the shift ± 0.4 % of the side per degree.
    drawn (B, 4): each film's part, −1 to 1, of the angle, the scale and both shifts.
    """
    angle, scale = drawn[:, 0] * math.radians(turn), (drawn[:, 1] * turn / 100).exp()
    x, y = (drawn[:, 2:] * 0.008 * turn).T  # grid_sample's sides run from −1 to 1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrices = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3)
    films = films[:, None]
    return F.grid_sample(films, F.affine_grid(matrices, films.shape, align_corners=False), align_corners=False)[:, 0]


class Films:
    """The films and labels of one split, on `device`.

    Training batches are random crops with horizontal flips. Where the crop is as large as the film, the film is shifted
    by up to `crop` // 16 pixels over a black border instead. Evaluation takes the whole film, reduced to the crop size.
    crop: pixels, a multiple of 32; 0, or one larger than the films, is all of the film. Raises InputError.

    Grey values are normalised by ImageNet's mean and deviation, or, to `standardise`, by each film's own. Training
    films are also changed at random: in contrast by a factor of up to exp(± contrast) and in brightness by
    ± contrast / 2 of the whole range; in place, size and angle as in `turned`.
    """

    def __init__(self, prepared, split, crop, device, standardise=False, contrast=0.0, turn=0.0):
        rows = prepared.rows(split)
        pixels = torch.from_numpy(prepared.images[rows])
        self.split, self.crop = split, crop_of(pixels.shape[1], crop)
        self.standardise, self.contrast, self.turn = standardise, contrast, turn
        self.border = self.crop // 16 if self.crop == pixels.shape[1] else 0
        self.pixels = F.pad(pixels, (self.border,) * 4).to(device)  # uint8 (N, H, W), with the border
        self.labels = torch.from_numpy(prepared.labels[rows]).to(device)
        self.names = prepared.table["Image Index"].to_numpy()[rows]
        imagenet = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        own = (values.view(-1, 1, 1, 1) / 255 for values in grey_statistics(pixels))
        shape = len(rows), 3, 1, 1
        # greys[standardise]: mean and deviation of grey values 0..1
        self.greys = [[values.expand(shape).to(device) for values in pair] for pair in (imagenet, own)]

    def __len__(self):
        return len(self.pixels)

    def seen_by(self, settings):
        """These films with the grey values that a network with these settings, of its weights file, was trained on."""
        films = copy(self)
        films.standardise = settings.get("standardise", False)
        return films

    def train_batch(self, index, generator, part=slice(None)):
        """index (B,) on the device -> films (B, 3, crop, crop), labels (B, findings); or of that `part` of them.

        What is random is drawn for the whole batch, whatever the part.
        """
        B, device = len(index), self.pixels.device
        _, height, width = self.pixels.shape

        def draw(high):
            return torch.randint(0, high, (B, 1), generator=generator, device=device)

        def spread(columns):
            return 2 * torch.rand(B, columns, generator=generator, device=device)[part] - 1

        steps = torch.arange(self.crop, device=device)
        rows = draw(height - self.crop + 1) + steps  # (B, crop)
        columns = draw(width - self.crop + 1) + torch.where(draw(2) == 1, steps.flip(0), steps)
        index, rows, columns = index[part], rows[part], columns[part]
        films = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].float()
        if self.turn:
            films = turned(films, self.turn, spread(4))
        if self.contrast:
            factor, shift = self.contrast * spread(2).T[:, :, None, None]
            mean = 255 * self.greys[True][0][index, 0]
            films = (films - mean) * factor.exp() + mean + 255 / 2 * shift
        return self.normalise(films, index), self.labels[index]

    def eval_batch(self, index):
        """index: a slice or (B,) -> films (B, 3, crop, crop)."""
        return self.normalise(self.whole(index), index)

    def whole(self, index):
        """index: a slice or (B,) -> the films reduced to the crop size, grey values 0..255 (B, crop, crop)."""
        inside = slice(self.border, self.pixels.shape[1] - self.border)
        films = self.pixels[index][:, inside, inside].float()
        if films.shape[1] != self.crop:
            films = F.interpolate(films[:, None], (self.crop, self.crop), mode="bilinear", antialias=True)[:, 0]
        return films

    def normalise(self, films, index):
        """Grey values 0..255 (B, H, W) of the films `index` -> three channels (B, 3, H, W) for a network."""
        mean, std = (values[index] for values in self.greys[self.standardise])
        return ((films[:, None] / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class Sampler:
    """Endless batches of a split: shuffled for each pass, the incomplete last batch dropped.

    Every rank draws the whole batch, whose films are `index` (batch_size,), and makes its own `part` of it.
    """

    def __init__(self, films, batch_size, generator):
        if not 0 < batch_size <= len(films):
            raise InputError(f"batch size {batch_size} must be 1 to {len(films)}, the films of {films.split}")
        self.films, self.batch_size, self.generator = films, batch_size, generator
        self.part = ranks.part(batch_size)
        # The networks divide height and width by 32.
        if (self.part.stop - self.part.start) * (films.crop // 32) ** 2 < 2:
            where = f"batch size {batch_size} on {ranks.count()} ranks with crop {films.crop}"
            raise InputError(f"{where} leaves BatchNorm one value per channel: raise --batch-size or --crop")
        self.order, self.position = None, 0  # of the current pass

    def __len__(self):
        """Batches in one pass."""
        return len(self.films) // self.batch_size

    def next(self):
        """The next training batch (films, labels)."""
        if self.order is None or self.position == len(self):
            device = self.films.pixels.device
            self.order = torch.randperm(len(self.films), generator=self.generator, device=device)
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        self.index = self.order[start : start + self.batch_size]
        return self.films.train_batch(self.index, self.generator, self.part)

    def state_dict(self):
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.order, self.position = state["order"], state["position"]
        if self.order is not None:
            self.order = self.order.to(self.films.pixels.device)
