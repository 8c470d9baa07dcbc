"""The results page: one HTML file with every table and picture of `test.py` in it, which opens without a network.

Its layout is page.html, a Jinja template, which escapes every text.
"""

import base64
import io
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from scipy.special import softmax

from genotypes import EDGES, INPUT_NODES, NODES
from report.activations import NO_MAPS
from report.cells import WORDS
from report.figures import COLOURS, KINDS_OF_CELL, chosen_row, kept_edges, rows_of
from report.tables import NOTHING, Cell, Table
from scores import BASELINE
from support.files import InputError, write
from support.records import read_record

LAYOUT = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
CHECKSUM = 12  # characters shown of it


def write_page(out, data, table, lines, sections, examples, own, networks):
    """Write out/results/index.html from the pictures that lie there and from

    data        the prepared set
    table       the scores, as `tables.describe` returns them
    lines       of text below the table
    sections    `sections.Section`s
    examples    {network: `activations.Sheet`} of films of the set
    own         {name of one's own film: {network: `activations.Sheet`}}: the first ones, empty without any
    networks    {name: (network, what its weights file holds)}
    """
    folder, test = Path(out) / "results", data.rows("test")
    number = len(data.findings)
    last = number - (number == 1)  # the average, or one finding alone, stands in both tables
    findings, totals = table.rows[: last + 1], table.rows[last:]
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), **LAYOUT).get_template("page.html")
    page = template.render(
        data=data,
        films=len(test),
        patients=data.table["Patient ID"].iloc[test].nunique(),
        summary=Table(
            ["network", *(label for label, _ in totals)],
            [(name, [cells[k] for _, cells in totals]) for k, name in enumerate(table.header[2:], start=1)],
        ),
        findings=Table(table.header, [(label.replace("_", " "), cells) for label, cells in findings]),
        marks=BASELINE in table.header,
        lines=lines,
        charts={name: embed((folder / f"{name}.png").read_bytes()) for name in ("auc", "roc", "calibration")},
        sections=[section for section in sections if section.tables],
        note=next((sheet.note for sheet in examples.values()), ""),  # all networks have one crop
        activations=show_sheets(examples),
        no_maps=NO_MAPS,
        own={film: show_sheets(sheets) for film, sheets in own.items()},
        cells=show_cells(Path(out), networks),
        nodes=INPUT_NODES + NODES,
        edges=EDGES,
        operations=dict(zip(WORDS.values(), cycle(COLOURS), strict=False)),
        runs=describe_runs(Path(out), networks) if networks else None,
    )
    write(folder / "index.html", page)


# --- Pictures


def embed(png):
    """The bytes of a PNG as an address that a page holds in itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def show_sheets(sheets):
    """{network: `Sheet`} as {network: [(picture, caption), ...]}."""
    shown = {name: [] for name in sheets}
    for name, sheet in sheets.items():
        for picture, caption in zip(sheet.pictures, sheet.captions, strict=True):
            png = io.BytesIO()
            Image.fromarray(picture).save(png, "PNG")
            shown[name].append((embed(png.getvalue()), caption.replace("_", " ")))
    return shown


def show_cells(out, networks):
    """{network built of cells: (its genotype, `show_epochs` of its search, the search's curves as a picture)}.

    What is not there is empty.
    """
    shown = {}
    for name, (_, saved) in networks.items():
        if "genotype" in saved["settings"]:
            folder = find_search(out, name, saved)
            epochs, curves = [], ""
            if folder:
                epochs = show_epochs(folder)
                with suppress(OSError):
                    curves = embed((folder / "search.png").read_bytes())
            shown[name] = saved["settings"]["genotype"], epochs, curves
    return shown


def show_epochs(folder):
    """What the page's slider shows of a search: a list of its epochs; empty where metrics.jsonl is lost or damaged.

    An epoch has what it "says", whether it was "chosen", and "cells", the normal and the reduction cell. A cell has
    a "name", the alternative text that it "says", the "weights" softmax(α / τ) (edges, operations), and "kept": for
    each edge the operation, or "" where the cell does not keep it.
    """
    with suppress(InputError), rows_of(folder) as rows:
        chosen = chosen_row(rows)
        return [show_epoch(row, row is chosen) for row in rows]
    return []


def show_epoch(row, chosen):
    cells = []
    for kind, name in KINDS_OF_CELL.items():
        kept = kept_edges(row, kind)
        says = f"{name}, epoch {row['epoch']}: " + ", ".join(f"{kept[i, j]} from {i} to {j}" for i, j in kept)
        weights = softmax(np.reshape(row["alphas"][kind], (len(EDGES), len(WORDS))), axis=-1).round(3).tolist()
        cells.append({"name": name, "says": says, "weights": weights, "kept": [kept.get(edge, "") for edge in EDGES]})
    says = f"Epoch {row['epoch']}, val AUC {row['val_auc']:.3f}{', chosen' * chosen}"
    return {"says": says, "chosen": chosen, "cells": cells}


# --- Runs


def find_search(out, name, saved):
    """The folder of the search that found a network's cells, or None where it holds other cells or is not there."""
    folder = out / f"search_{name}"
    at = folder / "genotype.txt"
    same = at.is_file() and at.read_text(encoding="utf-8", errors="replace").strip() == saved["settings"]["genotype"]
    return folder if same else None


def describe_runs(out, networks):
    """The `Table` of settings and versions: a column for each training and for each search that led to one.

    A training's versions are known while its folder in `out` still holds the run with the settings of the weights file.
    """
    runs = {}
    for name, (_, saved) in networks.items():
        settings = saved["settings"]
        if "genotype" in settings and (folder := find_search(out, name, saved)):
            record = read_record(folder)
            runs[f"search of {name}"] = record.get("settings", {}) | record.get("environment", {})
        record = read_record(out / "weights" / name)
        versions = record["environment"] if record.get("settings") == settings else {}
        runs[name] = {"best epoch": saved["epoch"], "its val AUC": f"{saved['val_auc']:.3f}"} | settings | versions
    rows = []
    for setting in dict.fromkeys(["best epoch", "its val AUC", *(name for run in runs.values() for name in run)]):
        if setting not in ("genotype", "findings"):  # which the page shows elsewhere
            length = CHECKSUM if setting == "checksum" else None
            cells = [Cell(str(run.get(setting, NOTHING))[:length]) for run in runs.values()]
            rows.append((setting.replace("_", " "), cells))
    return Table(["setting", *runs], rows)
