"""Class activation maps: what each place of a film adds to the logit of a finding, as numbers and as pictures."""

import textwrap
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from torch.nn import functional as F

from report.cells import SMALL, save_picture
from report.figures import make_panels
from scores import BASELINE

LOWERS, RAISES = "#2f86d6", "#ffb000"  # colours of what lowers a logit, and of what raises it
COARSE = 2  # values across: maps of no more are not drawn, see NO_MAPS; 0 draws all
NO_MAPS = (
    "There are none of these films. Their maps would have 2 × 2 values or fewer, which do not say reliably where a "
    "finding is. On drawn films of 64 px the largest of the four values lay in the quarter with the finding's sign on "
    "43 and 26 of 100 films for two trainings of a cell, and on 52 for CheXNet; by chance it would be 32, 18 and 30 "
    "(docs/evidence.md). COARSE = 0 in report/activations.py draws them all the same."
)
MAP_NOTE = "Each map has a scale of its own, and one value for 32 × 32 pixels, drawn smoothly."


class Sheet(NamedTuple):
    """Pictures side by side."""

    pictures: list  # uint8 (H, W), or (H, W, 3) under a map, see `overlay`
    captions: list  # as many texts
    note: str = ""  # on how to read the maps, where there are any


def has_maps(films):
    """Whether the maps of these `dataset.Films` are fine enough to be drawn."""
    return films.crop // 32 > COARSE


def class_activation(network, films):
    """What each place of the last feature map adds to each logit: films (B, 3, H, W) -> (B, findings, h, w).

    The network, a model_eval.Network or chexnet.CheXNet in eval mode, ends in global average pooling and one linear
    layer. Both are linear, so they can be exchanged: the mean of a map is the logit minus the layer's bias, exactly.
    """
    with torch.no_grad():
        return torch.einsum("fc,bchw->bfhw", network.classifier.weight, network.features(films))


def overlay(film, values):
    """A film, uint8 (H, W), under its see-through activation map (h, w) -> uint8 (H, W, 3).

    Each map has a scale of its own: clear at zero, 70 % colour where it is farthest from zero.
    """
    smooth = F.interpolate(torch.tensor(values, dtype=torch.float64)[None, None], film.shape, mode="bilinear")
    share = smooth[0, 0, :, :, None].numpy() / (np.abs(values).max() or 1)
    opacity, colour = 0.7 * np.abs(share), 255 * np.where(share < 0, to_rgb(LOWERS), to_rgb(RAISES))
    return (film[:, :, None] * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def draw_sheet(path, sheet):
    """Draw the pictures of a `Sheet` with their captions."""
    figure, panels = make_panels(len(sheet.pictures), 6, 1.8, 2.3)
    for axes, picture, caption in zip(panels, sheet.pictures, sheet.captions, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=(), yticks=())
        lines = caption.replace("_", " ").split("\n")
        axes.set_xlabel("\n".join(textwrap.fill(line, 24) for line in lines), fontsize=SMALL)
    if sheet.note:
        scale = ScalarMappable(Normalize(-1, 1), LinearSegmentedColormap.from_list("", (LOWERS, "#b8b8b8", RAISES)))
        bar = figure.colorbar(scale, ax=list(panels), ticks=(-1, 0, 1), shrink=0.8)
        bar.ax.set_yticklabels(("lowers\nthe logit", "0", "raises\nthe logit"), fontsize=SMALL)
        figure.supxlabel(sheet.note, fontsize=SMALL)
    save_picture(figure.savefig, path)


def draw_examples(folder, films, findings, probabilities, networks):
    """Draw a film with each finding, films.png, and what two networks look at there, activation_<network>.png.

    The two are the first network and CheXNet; none where `has_maps` says no. films: a split as `dataset.Films`;
    networks {name: (network, its file)}; probabilities {name: (N, findings)}. Returns {name of each: `Sheet`}.
    """
    labels = films.labels.cpu().numpy()
    present = np.flatnonzero(labels.any(axis=0))
    index = labels[:, present].argmax(axis=0)  # the first film with each of these findings
    chosen = torch.from_numpy(index).to(films.labels.device)
    grey = films.whole(chosen).round().byte().cpu().numpy()
    found = [", ".join(findings[k] for k in np.flatnonzero(row)) for row in labels[index]]
    draw_sheet(folder / "films.png", Sheet(grey, found))
    for path in folder.glob("activation_*.png"):  # of an earlier call
        path.unlink()
    sheets = {}
    for name in [name for k, name in enumerate(networks) if has_maps(films) and (k == 0 or name == BASELINE)]:
        network, saved = networks[name]
        maps = class_activation(network, films.seen_by(saved["settings"]).eval_batch(chosen))
        maps = maps[np.arange(len(present)), present].cpu().numpy()
        captions = [f"{findings[k]}\n{probabilities[name][i, k]:.2f}" for i, k in zip(index, present, strict=True)]
        sheets[name] = Sheet([*map(overlay, grey, maps)], captions, MAP_NOTE)
        draw_sheet(folder / f"activation_{name}.png", sheets[name])
    return sheets
