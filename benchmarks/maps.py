"""Do activation maps show where a finding is? Drawn films can tell: each is drawn with the finding and without it.

    python -m benchmarks.maps weights/DARTS_V1_net.pth weights/chexnet_net.pth

prints a table for networks of the phantom, from films of other patients than the phantom's. All of the following was
written down before the first result was seen, on 2026-11-30.

- The sign of a finding is the pixels that differ by CHANGE grey values or more between the film and the same film
  without this finding. Its other findings stay.
- A map has one value for a cell of 32 × 32 pixels, so a film of 64 px has 2 × 2 cells. The sign's place is the cell
  that has the most of its pixels. A film counts where the cell has at least half of them; a sign that is spread over
  more of the film has no place to find. Nor is there a question where signs of a finding lie in one cell in more than
  9 of 10 films, or where fewer than MIN_FILMS films count.
- A hit: the map's largest value lies in the sign's place.
- Chance: the share of hits between the maps of all films with the finding and the places of all of them. A map that
  always points at the same cell, such as the one where this finding usually is, has no more hits than that.
- Lead: hits − chance, with a 95 % percentile interval over resamples of patients. The average is over the findings
  with a question. Maps are clearly better than chance where the whole interval of its lead is above 0.1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parts import format_table
from data.prepare_phantom import draw_labels, render
from dataset import AVERAGE, DEFAULTS, FINDINGS, Films, PreparedSet, encode_findings
from report.activations import class_activation
from report.networks import common_crop, findings_of, load_network
from scores import Resamples, add_average, with_limits
from support.files import InputError
from support.progress import progress
from support.settings import Parser, guarded

SEED, FILMS = 9, 2000  # of the films that are drawn
CHANGE = 4  # grey values, of 255
MIN_FILMS = 20  # that count, of a finding
RESAMPLES = 2000  # of patients


def draw():
    """Drawn films, and of each finding of each film: the film's row, the finding's number, and the sign (M, H, W)."""
    table = draw_labels({"test": FILMS}, SEED)
    labels, images, signs = encode_findings(table["Finding Labels"], FINDINGS), [], []
    keys = zip(table["Patient ID"], table.groupby("Patient ID").cumcount(), strict=True)
    for label, key in zip(labels, progress(keys, "films", FILMS), strict=True):
        present = {FINDINGS[k] for k in np.flatnonzero(label)}
        images.append(render(present, SEED, *key))
        without = [render(present - {name}, SEED, *key) for name in FINDINGS if name in present]
        signs += [abs(images[-1].astype(int) - film) >= CHANGE for film in without]
    return PreparedSet("drawn", np.stack(images), labels, table, "", **DEFAULTS), *labels.nonzero(), np.stack(signs)


def places(signs, size):
    """The cell, of size × size, with the most pixels of each sign, (M,), and whether it has half of them, (M,) bool."""
    pixels = signs.reshape(len(signs), size, signs.shape[1] // size, size, -1).sum(axis=(2, 4)).reshape(len(signs), -1)
    return pixels.argmax(axis=1), pixels.max(axis=1) >= np.maximum(pixels.sum(axis=1) / 2, 1)


def tops(network, films):
    """The number of the cell with the largest value in the map of each finding of each film, (N, findings)."""
    maps = [class_activation(network.eval(), films.eval_batch(part)) for part in torch.arange(len(films)).split(64)]
    return torch.cat(maps).flatten(2).argmax(dim=2).numpy()


def leads(top, place, of_finding, patients):
    """Hits, chance and lead with its limits, of each finding and their average, (findings + 1, 5).

    top, place (M,): numbers of cells; of_finding (M, findings) bool; patients (M,).
    """
    cells = np.arange(place.max() + 1)  # in any other a map hits nothing
    facts = np.column_stack([top == place, top[:, None] == cells, place[:, None] == cells])
    columns = (of_finding[:, :, None] & facts[:, None]).reshape(len(facts), -1)
    sums = Resamples(patients, RESAMPLES, seed=0).sums(columns.astype(float)).reshape(1 + RESAMPLES, -1, facts.shape[1])
    hits, at, there = sums[..., 0], *np.split(sums[..., 1:], 2, axis=2)
    films = there.sum(axis=2)
    with np.errstate(invalid="ignore"):  # a resample without a film of a rare finding
        shares = hits / films, (at * there).sum(axis=2) / films**2
    values = add_average(np.stack([*shares, shares[0] - shares[1]]), of_finding.any(axis=0))
    return np.column_stack([*values[:2, 0], with_limits(values[2], [])])


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", type=Path, help="weights files of networks of the phantom")
    networks = {path: load_network(path) for path in parser.parse_args().weights}
    for path, (_, saved) in networks.items():
        if not saved["settings"].get("synthetic") or findings_of(saved) != FINDINGS:
            raise InputError(f"{path}: was not trained on the phantom, so it knows none of its signs: leave it out")
    drawn, row, finding, signs = draw()
    films = Films(drawn, "test", common_crop(networks, drawn), torch.device("cpu"))
    place, counts = places(signs, films.crop // 32)
    found = finding[:, None] == range(len(FINDINGS))  # (M, findings)
    counted = found[counts].sum(axis=0)
    usual = np.array([np.bincount(place[of & counts], minlength=1).max() for of in found.T])
    asked = (counted >= MIN_FILMS) & (usual <= 0.9 * counted)
    if not asked.any():
        raise InputError(f"maps of {films.crop} px have too few values to ask: give networks of larger films")
    columns, patients = ["films", "count", "in the usual cell", "sign's share of the film"], drawn.table["Patient ID"]
    rows = [
        [name, f"{of.sum()}", f"{count}", f"{most / max(count, 1):.2f}", f"{signs[of].mean():.2f}"]
        for name, of, count, most in zip(FINDINGS, found.T, counted, usual, strict=True)
    ]
    rows.append([AVERAGE, *[""] * 4])
    for path, (network, saved) in networks.items():
        top = tops(network, films.seen_by(saved["settings"]))[row, finding]
        shown = iter(leads(top[counts], place[counts], found[counts][:, asked], patients.to_numpy()[row][counts]))
        columns += [f"{path.name.removesuffix('_net.pth')}: hits", "chance", "lead"]
        for line, known in zip(rows, [*asked, True], strict=True):
            cells = "{:.2f}|{:.2f}|{:+.2f} [{:+.2f}, {:+.2f}]".format(*next(shown)) if known else "–|–|–"
            line += cells.split("|")
    print(format_table(columns, rows, f"{FILMS:,} films of {patients.nunique()} patients, drawn with seed {SEED}."))


if __name__ == "__main__":
    with guarded():
        main()
