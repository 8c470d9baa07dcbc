"""The results page: one HTML file with every table and picture of `test.py` in it, which opens without a network.

Its layout is page.html, a Jinja template, which escapes every text.
"""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from report.tables import NOTHING, Cell, Table
from scores import BASELINE
from support.files import write
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
        own={film: show_sheets(sheets) for film, sheets in own.items()},
        cells=show_cells(Path(out), networks),
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
    """{network built of cells: (its genotype, {what a picture shows: picture})}; pictures of the search, if there."""
    shown = {}
    for name, (_, saved) in networks.items():
        if "genotype" in saved["settings"]:
            folder = find_search(out, name, saved)
            files = {"Cells": folder / "cells.png", "The search": folder / "search.png"} if folder else {}
            pictures = {title: embed(path.read_bytes()) for title, path in files.items() if path.exists()}
            shown[name] = saved["settings"]["genotype"], pictures
    return shown


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
