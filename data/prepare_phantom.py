"""Make the phantom: a synthetic set of chest X-ray films with the 14 findings of ChestX-ray14.

    python -m data.prepare_phantom [FOLDER] [--seed N]    makes data/phantom/, or FOLDER: a prepared set

Every film is drawn from numbers: a patient's anatomy, pose and exposure, and the sign of each finding, subtle or
obvious by chance. 4,500 films of 64 x 64 px take about 20 s on a CPU core; a seed always gives the same bytes.
The signs are simplified from the Fleischner Society's glossary (Hansell et al., Radiology 246:697, 2008).
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.making import is_finished, write_set
from dataset import FINDINGS, read_source
from support.files import InputError, lock
from support.progress import progress
from support.settings import Parser, guarded

FOLDER = Path(__file__).resolve().parent / "phantom"
WHAT = "synthetic chest X-ray films, drawn by data/prepare_phantom.py"
NOTICE = "synthetic, not for clinical use"
SEED = 1  # any integer >= 0; another seed draws other patients (the signs' strengths were set on seed 0)
SIZE = 64  # height and width of a film, px
FILMS = {"train": 2000, "val": 500, "test": 2000}  # films per split
MIN_POSITIVE = {"train": 0.05, "val": 0.03, "test": 0.04}  # least share of a split's films, for every finding
QUIET = 0.1  # share of an ill patient's films that show no finding
SEVERITY = (1.7, 0.9)  # Beta distribution of a sign's severity, 0 hardly visible to 1 obvious
NOISE = (0.01, 0.025)  # standard deviation of the detector's noise, in units of the brightest film value

# Shares of patients with 1 to 5 and with 6 or more films, from ChestX-ray14's Data_Entry_2017_v2020.csv.
FILMS_PER_PATIENT = (0.57, 0.13, 0.07, 0.04, 0.03, 0.16)
# An ill patient has one principal finding, and each film of the patient may show companions of it.
# COMPANIONS[row][column]: of 100 films with the row's principal finding, how many show the column's finding, too;
# from the same file (112,120 films), where each of a film's n findings counts as its principal one with weight 1/n.
COMPANIONS = (
    (0, 2, 17, 17, 3, 3, 1, 4, 6, 1, 2, 1, 2, 0),  # Atelectasis
    (7, 0, 23, 12, 2, 2, 1, 1, 3, 2, 1, 1, 2, 0),  # Cardiomegaly
    (15, 5, 0, 19, 6, 4, 1, 5, 6, 3, 2, 1, 4, 0),  # Effusion
    (9, 2, 11, 0, 3, 4, 2, 2, 3, 3, 1, 1, 2, 0),  # Infiltration
    (7, 1, 12, 11, 0, 9, 1, 4, 5, 1, 2, 1, 4, 0),  # Mass
    (5, 1, 7, 15, 8, 0, 1, 3, 3, 1, 1, 1, 3, 0),  # Nodule
    (13, 2, 12, 29, 3, 3, 0, 2, 6, 15, 1, 1, 2, 0),  # Pneumonia
    (8, 0, 11, 10, 5, 4, 0, 0, 2, 0, 8, 1, 3, 0),  # Pneumothorax
    (16, 2, 16, 17, 7, 5, 2, 3, 0, 2, 1, 1, 3, 0),  # Consolidation
    (5, 3, 16, 29, 3, 3, 9, 1, 4, 0, 1, 0, 1, 0),  # Edema
    (9, 1, 8, 10, 5, 2, 0, 19, 2, 1, 0, 1, 3, 0),  # Emphysema
    (8, 1, 6, 12, 3, 5, 0, 2, 2, 0, 1, 0, 6, 0),  # Fibrosis
    (8, 2, 14, 13, 7, 7, 1, 5, 4, 1, 3, 3, 0, 0),  # Pleural_Thickening
    (10, 2, 5, 8, 7, 3, 1, 2, 1, 0, 1, 2, 2, 0),  # Hernia
)
# Of 1,000 films, how many have each principal finding; the last number is for healthy patients. Solved from COMPANIONS
# so that common findings are as frequent as in the toy set's train split (of 7,133 films Infiltration 1196, Effusion
# 707, Atelectasis 696, Nodule 396, ..., Hernia 100) and rare ones are raised to 5.6 of 100 films.
PRINCIPAL = (52, 50, 32, 90, 35, 43, 52, 38, 43, 47, 51, 55, 46, 61, 305)


# --- Labels: drawn separately from the films, so that they can be counted without drawing films


def stream(seed, *key):
    """The random numbers of one patient, film or sign: a stream of its own, independent of all other draws."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_labels(films, seed):
    """The table of all films, one row per film: Image Index, Patient ID, Finding Labels, split."""
    rows, patient = [], 0
    for number, (split, count) in enumerate(films.items()):
        rng = stream(seed, 0, number)
        missing = count * np.array(PRINCIPAL) / 1000  # films still to come, per principal finding
        names, found = [], []
        while len(names) < count:
            patient += 1
            chance = np.maximum(missing, 1e-9)
            principal = rng.choice(len(chance), p=chance / chance.sum())
            n = min(1 + rng.choice(len(FILMS_PER_PATIENT), p=FILMS_PER_PATIENT), count - len(names))
            missing[principal] -= n
            names += [(f"p{patient:05d}_{film:03d}.png", patient) for film in range(n)]
            for quiet, companions in zip(rng.random(n) < QUIET, rng.random((n, len(FINDINGS))), strict=True):
                ill = principal < len(FINDINGS) and not quiet
                shown = np.flatnonzero(100 * companions < COMPANIONS[principal]) if ill else []
                found.append({principal, *shown} if ill else set())
        top_up(found, int(np.ceil(MIN_POSITIVE[split] * count)), rng)
        labels = ["|".join(FINDINGS[i] for i in sorted(one)) or "No Finding" for one in found]
        rows += [(*name, label, split) for name, label in zip(names, labels, strict=True)]
    return pd.DataFrame(rows, columns=["Image Index", "Patient ID", "Finding Labels", "split"])


def top_up(found, minimum, rng):
    """Add each finding to films until `minimum` of them have it, first to those with the fewest findings."""
    for finding in range(len(FINDINGS)):
        short = max(minimum - sum(finding in one for one in found), 0)
        without = [one for one in found if finding not in one]
        rng.shuffle(without)
        for one in sorted(without, key=len)[:short]:
            one.add(finding)


# --- Brushes: soft shapes over the coordinates x, y (size, size); one unit is half a film, 32 px of 64


def step(distance, width=0.02):
    """0 where distance is negative, 1 where it is positive, with a smooth edge 3 widths wide between them."""
    t = np.clip(distance / (3 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def disc(x, y, centre, radii, edge=0.02, tilt=0.0):
    """A filled ellipse, 1 inside and 0 outside; tilt in radians."""
    dx, dy = x - centre[0], y - centre[1]
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    return step((1 - np.hypot(u / radii[0], v / radii[1])) * min(radii), edge)


def glow(x, y, centre, radii):
    """A Gaussian spot without an edge, 1 at its centre; the radii are standard deviations."""
    return np.exp(-0.5 * (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2))


def line(x, y, start, end, width):
    """A straight line, 1 along its middle; width is the standard deviation across it."""
    ax, ay = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * ax + (y - start[1]) * ay) / (ax * ax + ay * ay), 0, 1)
    across = np.hypot(x - start[0] - along * ax, y - start[1] - along * ay)
    return np.exp(-0.5 * (across / width) ** 2)


def clouds(rng, size, cells):
    """Smooth noise of mean 0 and standard deviation about 1; `cells` bumps fit across a film."""
    at = np.linspace(0, cells, size)[:, None] - np.arange(-1, cells + 2)  # (size, cells + 3)
    weights = np.exp(-0.5 * (at / 0.6) ** 2)
    weights /= np.sqrt((weights**2).sum(1, keepdims=True))
    return weights @ rng.standard_normal((cells + 3, cells + 3)) @ weights.T


# --- The chest without findings


def draw_patient(rng):
    """The anatomy that a patient's films share, in film units; side -1 is left on the film, 1 right."""
    base, half = rng.uniform(0.36, 0.5), rng.uniform(0.29, 0.36)
    return SimpleNamespace(
        body=rng.uniform(0.88, 1.05),  # half width of the trunk
        half=half,  # half width of a lung
        centre=half + rng.uniform(0.05, 0.1),  # of a lung, from the midline
        top=rng.uniform(-0.86, -0.76),
        base={-1: base, 1: base + rng.uniform(0.0, 0.1)},  # height of each diaphragm
        dome={-1: rng.uniform(0.06, 0.2), 1: rng.uniform(0.06, 0.2)},  # how far it falls towards its edge
        air=rng.uniform(0.34, 0.42),  # by which the lung is darker than the tissue around it
        heart=np.array((rng.uniform(0.25, 0.31), rng.uniform(0.24, 0.29))),  # radii
        heart_x=rng.uniform(0.07, 0.14),
        shift=rng.normal(0, 0.015),  # of heart and windpipe to the right of the film
        rib_gap=rng.uniform(0.15, 0.19),
        rib_slope=rng.uniform(0.1, 0.35),
        breast=max(rng.uniform(-0.08, 0.08), 0),
        angles=rng.uniform(-1.5, 1.6, (12, 2)),  # of each lung's vessels at the hilum, radians
        bends=rng.normal(0, 0.5, (12, 2)),
        widths=rng.uniform(0.008, 0.02, 12),
    )


def pose(chest, rng, size):
    """Lay the body's coordinates x and y, both (size, size), over the film; the patient breathes in."""
    pixels = (np.arange(size) + 0.5) * 2 / size - 1
    dx, dy = pixels[None, :] - rng.normal(0, 0.04), pixels[:, None] - rng.normal(0, 0.04)
    turn, scale = rng.normal(0, np.deg2rad(2.5)), rng.normal(1, 0.04)
    chest.x = (dx * np.cos(turn) + dy * np.sin(turn)) / scale
    chest.y = (dy * np.cos(turn) - dx * np.sin(turn)) / scale
    chest.size = size
    breath = rng.normal(0, 0.03)
    chest.base = {side: base + breath for side, base in chest.base.items()}
    chest.heart = chest.heart * rng.normal(1, 0.03)
    chest.opacity = np.zeros((size, size))  # what the findings add inside the lungs
    chest.overlay = np.zeros((size, size))  # what they add anywhere
    chest.markings = np.ones((size, size))  # how much of the vessels is left


def fill_lungs(chest):
    """Each lung's mask, its depth (distance in from the outer wall) and its vessels, all (size, size)."""
    x, y, middle = chest.x, chest.y, (chest.top + 0.6) / 2
    chest.lung, chest.depth = {}, {}
    for side in (-1, 1):
        u = (side * x - chest.centre - 0.08 * y) / chest.half
        v = (y - middle) / (0.6 - middle)
        radius = np.hypot(u, v**2)  # round at the top, steep at the wall
        floor = chest.base[side] + chest.dome[side] * u**2
        chest.lung[side] = step((1 - radius) * chest.half) * step(floor - y)
        chest.depth[side] = (1 - radius) * chest.half + np.maximum(-0.2 - u, 0)  # not the inner wall
    right = (x > 0).astype(int)
    r, angle = np.hypot(np.abs(x) - 0.16, y + 0.06), np.arctan2(y + 0.06, np.abs(x) - 0.16)
    vessels = 0
    for first, bend, width in zip(chest.angles, chest.bends, chest.widths, strict=True):
        vessels = vessels + np.exp(-(((angle - first[right] - bend[right] * r) * r / width) ** 2))
    chest.both = np.maximum(chest.lung[-1], chest.lung[1])
    chest.vessels = np.minimum(vessels * np.exp(-2.5 * r), 1.2) * chest.both


def compose(chest, rng):
    """Add everything up to a density (size, size): 0 air, about 0.5 soft tissue, towards 1 bone and heart."""
    x, y, size, middle = chest.x, chest.y, chest.size, chest.x - chest.shift
    heart_y = min(chest.base.values()) - 0.7 * chest.heart[1]
    heart = disc(middle, y, (chest.heart_x, heart_y), chest.heart, 0.03, tilt=0.5)
    stem = step(0.11 + 0.05 * y - np.abs(middle), 0.03) * step(heart_y - y, 0.1)
    aorta = disc(middle, y, (0.1, -0.3), (0.07, 0.09))
    solid = np.maximum.reduce((heart, stem, aorta))
    shoulders = np.maximum(step(y + 0.95 - 0.25 * np.abs(x), 0.05), step(0.25 - np.abs(x), 0.04))  # and neck
    body = step(chest.body + 0.05 * y - np.abs(x), 0.03) * shoulders
    spine = step(0.075 - np.abs(x), 0.015) * (0.8 + 0.2 * np.cos(y * 40))
    arch = (y + 0.9 * (np.abs(x) - 0.3) ** 2 - chest.rib_slope * np.abs(x)) / chest.rib_gap
    front = (y - 0.6 * np.abs(x)) / (1.2 * chest.rib_gap)
    ribs = step(np.cos(2 * np.pi * arch) - 0.3, 0.3) + 0.5 * step(np.cos(2 * np.pi * front) - 0.5, 0.3)
    ribs *= step(0.85 - np.abs(x), 0.04) * step(0.6 - y, 0.1) * step(y + 0.85, 0.05)
    collars = sum(line(x, y, (s * 0.08, -0.62), (s * 0.65, -0.76), 0.025) for s in (-1, 1))
    breasts = sum(disc(x, y, (s * 0.45, 0.3), (0.3, 0.3), 0.04) for s in (-1, 1))
    bubble = rng.uniform(0, 0.2) * disc(x, y, (0.38, chest.base[1] + 0.14), (0.1, 0.06), 0.03)  # stomach
    windpipe = step(0.035 - np.abs(middle), 0.012) * step(-0.2 - y, 0.05)
    density = body * (0.52 + 0.04 * clouds(rng, size, 4)) + 0.2 * solid + chest.breast * breasts
    density += 0.12 * spine + 0.06 * ribs + 0.1 * collars - 0.1 * windpipe - bubble
    texture = 0.016 * clouds(rng, size, 30) + 0.022 * clouds(rng, size, 9)
    density += chest.both * (1 - 0.9 * solid) * (0.2 * chest.markings * chest.vessels + texture - chest.air)
    return density + chest.both * chest.opacity * (1 - 0.5 * solid) + chest.overlay


# --- The signs. Each takes the chest, a severity, 0 (hardly visible) to 1 (obvious), and random numbers


def atelectasis(chest, severity, rng):
    """A plate or wedge of collapsed lung; its diaphragm rises, heart and windpipe move towards it."""
    side = rng.choice((-1, 1))
    chest.base[side] -= 0.01 + 0.14 * severity
    chest.shift += side * 0.07 * severity
    start = (rng.uniform(0.12, 0.25), chest.base[side] - rng.uniform(0.05, 0.35))
    end = (start[0] + rng.uniform(0.2, 0.45), start[1] + rng.uniform(-0.1, 0.15))
    widen = rng.uniform(0, 0.12) * np.clip((side * chest.x - start[0]) / 0.4, 0, 1)
    chest.opacity += (0.04 + 0.24 * severity) * line(side * chest.x, chest.y, start, end, 0.018 + widen)


def cardiomegaly(chest, severity, rng):
    """The heart is wider than half of the chest."""
    chest.heart = chest.heart * (1.04 + 0.36 * severity, 1.02 + 0.15 * severity)
    chest.heart_x += rng.uniform(0, 0.1) * severity


def emphysema(chest, severity, rng):
    """Too much air: dark lungs with few markings, low flat diaphragms, a slender heart."""
    chest.air *= 1.01 + 0.19 * severity
    chest.markings *= 1 - 0.35 * severity
    for side in (-1, 1):
        chest.dome[side] *= 0.9 - 0.8 * severity
        chest.base[side] += rng.uniform(0.04, 0.12) * severity
    chest.heart = chest.heart * (1 - 0.1 * severity, 1)


def effusion(chest, severity, rng):
    """Fluid fills the angle beside the diaphragm; its upper border, the meniscus, rises towards the wall."""
    for side in rng.permutation((-1, 1))[: 1 + (rng.random() < 0.3)]:  # one side or both
        meniscus = 0.14 * np.exp(-np.maximum(chest.depth[side], 0) / 0.08)
        level = chest.base[side] + 0.13 - 0.36 * severity * rng.uniform(0.8, 1.2) - meniscus
        chest.opacity += (0.17 + 0.2 * severity) * step(chest.y - level, 0.035) * chest.lung[side]


def infiltration(chest, severity, rng):
    """Faint patches without a border, anywhere in one or both lungs."""
    where = glow(chest.x, chest.y, (rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3)), (0.45, 0.3))
    chest.opacity += (0.03 + 0.16 * severity) * where * np.clip(clouds(rng, chest.size, 7) + 0.3, 0, 2)


def spot(chest, rng, margin):
    """A random place (x, y) in a lung, at least `margin` from its wall."""
    side = rng.choice((-1, 1))
    x = side * (chest.centre + (chest.half - margin) * rng.uniform(-0.7, 0.9))
    return x, rng.uniform(chest.top + 0.2 + margin, chest.base[side] - margin)


def mass(chest, severity, rng):
    """A round opacity of more than 3 cm with a lobed border."""
    radius = rng.uniform(0.08, 0.12) + 0.05 * severity
    x, y = spot(chest, rng, radius)
    angle, distance = np.arctan2(chest.y - y, chest.x - x), np.hypot(chest.x - x, chest.y - y)
    lobes = 1 + 0.12 * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 6))
    chest.opacity += (0.05 + 0.3 * severity) * step(radius * lobes - distance, 0.03)


def nodule(chest, severity, rng):
    """One to three round opacities of less than 3 cm."""
    for _ in range(rng.integers(1, 4)):
        place, radius = spot(chest, rng, 0.06), rng.uniform(0.045, 0.065)
        chest.opacity += (0.08 + 0.4 * severity) * disc(chest.x, chest.y, place, (radius, radius), 0.015)


def pneumonia(chest, severity, rng):
    """A dense patch of one lobe; air-filled bronchi stay dark in it (the air bronchogram)."""
    place = spot(chest, rng, 0.15)
    patch = disc(chest.x, chest.y, place, (rng.uniform(0.16, 0.26), rng.uniform(0.16, 0.26)), 0.07)
    chest.markings *= 1 - 2 * patch * severity
    chest.opacity += (0.04 + 0.26 * severity) * patch * (0.8 + 0.2 * clouds(rng, chest.size, 14))


def pneumothorax(chest, severity, rng):
    """Air outside the lung: no markings and darker beyond a thin pleural line along the wall."""
    side = rng.choice((-1, 1))
    width = (0.04 + 0.2 * severity) * np.clip(1 - 0.6 * (chest.y - chest.top - 0.2), 0.3, 1.2)
    beyond = step(width - chest.depth[side], 0.012) * chest.lung[side]
    chest.markings *= 1 - beyond
    pleura = np.exp(-0.5 * ((chest.depth[side] - width) / 0.016) ** 2) * chest.lung[side]
    chest.opacity += (0.03 + 0.13 * severity) * pleura - (0.02 + 0.1 * severity) * beyond


def consolidation(chest, severity, rng):
    """Evenly dense lung that hides its vessels, with one sharp border at a fissure."""
    side, above = rng.choice((-1, 1)), rng.choice((-1, 1))
    fissure = chest.y - rng.uniform(-0.2, 0.15) - rng.uniform(-0.35, 0.35) * (side * chest.x - chest.centre)
    lobe = np.minimum(1.3 * glow(side * chest.x, fissure, (chest.centre, -0.15 * above), (0.28, 0.22)), 1)
    lobe *= step(-above * fissure, 0.012) * chest.lung[side]
    chest.markings *= 1 - lobe
    chest.opacity += (0.04 + 0.26 * severity) * lobe


def edema(chest, severity, rng):
    """Haze around both hila, the bat wing, and short horizontal lines at the outer bases (Kerley B)."""
    size, strength = rng.uniform(0.13, 0.2), 0.02 + 0.14 * severity
    for side in (-1, 1):
        wing = glow(side * chest.x, chest.y, (0.27, rng.uniform(-0.08, 0.04)), (size, 1.3 * size))
        rungs = step(np.cos(2 * np.pi * chest.y / 0.1 + rng.uniform(0, 6)) - 0.4, 0.3) * chest.lung[side]
        rungs *= step(0.15 - chest.depth[side]) * step(chest.y, 0.05)
        chest.opacity += strength * (wing + 0.5 * rungs)


def fibrosis(chest, severity, rng):
    """A net of fine lines (reticulation) at both bases."""
    net = np.exp(-((clouds(rng, chest.size, 23) / 0.4) ** 2))
    chest.opacity += (0.03 + 0.25 * severity) * (net - 0.3) * step(chest.y - rng.uniform(-0.1, 0.15), 0.12)


def pleural_thickening(chest, severity, rng):
    """A band of uneven width along the outer wall of one or both lungs."""
    width = (0.035 + 0.07 * severity) * (1 + 0.3 * clouds(rng, chest.size, 6))
    for side in rng.permutation((-1, 1))[: 1 + (rng.random() < 0.3)]:  # one side or both
        start = chest.y - rng.uniform(-0.6, -0.1)
        band = step(start, 0.04) * step(rng.uniform(0.5, 0.9) - start, 0.04)
        band *= step(width - chest.depth[side], 0.015) * chest.lung[side]
        chest.opacity += (0.18 + 0.24 * severity) * band


def hernia(chest, severity, rng):
    """A round shadow behind the heart, above the diaphragm: stomach, often with air over fluid."""
    radius = rng.uniform(0.1, 0.15) + 0.06 * severity
    x = chest.shift + rng.uniform(-0.08, 0.15)
    y = min(chest.base.values()) - radius * rng.uniform(0.6, 1.2)
    ball = disc(chest.x, chest.y, (x, y), (radius, radius))
    air = disc(chest.x, chest.y, (x, y), (radius - 0.04, radius - 0.04))
    air *= step(y + radius * rng.uniform(-0.6, 0.6) - chest.y)  # level over the fluid
    chest.overlay += (0.06 + 0.15 * severity) * ball - (0.12 + 0.34 * severity) * air


SIGNS = [atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumonia, pneumothorax]
SIGNS += [consolidation, edema, emphysema, fibrosis, pleural_thickening, hernia]  # in the order of FINDINGS
MOVE_ORGANS = (atelectasis, cardiomegaly, emphysema)  # drawn first: the lungs are laid out after them


# --- One film, and the set


def add_foreign_objects(film, rng):
    """Add tubes, electrodes and a side marker, bright on the film (size, size), independent of the findings."""
    y, x = np.meshgrid(*[(np.arange(len(film)) + 0.5) * 2 / len(film) - 1] * 2, indexing="ij")
    for _ in range(rng.poisson(0.6)):  # a tube comes in at the top, bends and goes down
        start, bend = (rng.uniform(-0.9, 0.9), -1), (rng.uniform(-0.3, 0.3), rng.uniform(-0.5, 0.1))
        end, width = (bend[0] + rng.uniform(-0.2, 0.2), rng.uniform(0, 0.7)), rng.uniform(0.008, 0.02)
        tube = np.maximum(line(x, y, start, bend, width), line(x, y, bend, end, width))
        film = film + rng.uniform(0.1, 0.3) * tube
    for _ in range(rng.poisson(0.5)):  # an electrode
        film = film + rng.uniform(0.2, 0.4) * disc(x, y, rng.uniform(-0.7, 0.7, 2), (0.04, 0.04))
    top, left = rng.uniform(-0.95, -0.6), rng.choice((-1, 1)) * rng.uniform(0.75, 0.9)
    stem = line(x, y, (left, top), (left, top + 0.15), 0.015)
    foot = line(x, y, (left, top + 0.15), (left + 0.08, top + 0.15), 0.015)
    return film + rng.uniform(0, 0.7) * np.maximum(stem, foot)  # the marker: the letter L


def expose(density, rng):
    """From density to grey values, uint8 (size, size): exposure, objects, blur, noise, collimation."""
    size, pixels = len(density), np.arange(len(density))
    film = 0.08 + rng.normal(0, 0.03) + rng.normal(0.9, 0.07) * density
    film = np.clip(film + 0.03 * clouds(rng, size, 2), 0, 1) ** np.exp(rng.normal(0, 0.12))
    film = add_foreign_objects(film, rng)
    blur = np.exp(-0.5 * (np.subtract.outer(pixels, pixels) / (rng.uniform(0.3, 0.7) * size / 64)) ** 2)
    blur /= blur.sum(1, keepdims=True)
    film = blur @ film @ blur.T + rng.uniform(*NOISE) * rng.standard_normal((size, size))
    for _ in range(4):  # the collimator leaves an unexposed border on some sides
        if rng.random() < 0.25:
            film[: rng.integers(1, max(size // 16, 2) + 1)] = rng.uniform(0, 0.1)
        film = np.rot90(film)
    return (np.clip(film, 0, 1) * 255).round().astype(np.uint8)


def render(findings, seed, patient, film, severity=None):
    """Draw one film, uint8 (SIZE, SIZE). severity: 0 to 1, of all its signs; None: each sign's is drawn."""
    # The patient, the film and each sign have streams of their own, so only the signs depend on the findings.
    chest = draw_patient(stream(seed, 1, patient))
    rng = stream(seed, 1, patient, film)
    pose(chest, rng, SIZE)
    for moving in (True, False):
        for number, (name, sign) in enumerate(zip(FINDINGS, SIGNS, strict=True)):
            if name in findings and (sign in MOVE_ORGANS) == moving:
                strokes = stream(seed, 1, patient, film, number)
                sign(chest, strokes.beta(*SEVERITY) if severity is None else severity, strokes)
        if moving:
            fill_lungs(chest)
    return expose(compose(chest, rng), rng)


def prepare(folder, seed=SEED, films=FILMS):
    """Draw all films and write the set into `folder`; returns the counts per split and finding."""
    table = draw_labels(films, seed)
    labels = table["Finding Labels"].str.split("|")
    film = table.groupby("Patient ID").cumcount()  # number among the patient's films
    images = np.empty((len(table), SIZE, SIZE), np.uint8)
    for row, patient in enumerate(progress(table["Patient ID"], "phantom", len(table))):
        images[row] = render(labels[row], seed, int(patient), int(film[row]))
    source = {"what": WHAT, "preset": "phantom", "synthetic": True, "seed": seed, "size": SIZE}
    return write_set(folder, images, table, source)


def main():
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where it is made (%(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="another one draws other patients (%(default)s)")
    with guarded():
        options = parser.parse_args()
        folder, seed = options.folder, options.seed
        if seed < 0:
            raise InputError(f"--seed is {seed} and must be at least 0")
        folder.mkdir(parents=True, exist_ok=True)
        # Two scripts that are started in a new clone both need the phantom: the second waits, and finds it there.
        held = lock(folder / "lock", wait=True)
        if is_finished(folder):
            source = read_source(folder)
            if not source["synthetic"] or source.get("seed") != seed:
                raise InputError(f"{folder} is a set, but no phantom of seed {seed}: name another folder")
            print(f"{folder} is there already and left as it is ({NOTICE})")
        # A stopped run leaves half a phantom in its usual folder, which holds nothing else: it is drawn again.
        elif folder.name != FOLDER.name and any((folder / name).exists() for name in ("images.npy", "labels.csv")):
            raise InputError(f"{folder} has films in it, but is no finished set: name another folder, or move it away")
        else:
            print(prepare(folder, seed).to_string(), f"made {folder}: {NOTICE}", sep="\n")
        held.release()


if __name__ == "__main__":
    main()
