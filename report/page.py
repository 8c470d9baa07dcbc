"""The results page: one HTML file with every table and picture of `test.py` in it, which opens without a network.

Its layout is page.html, a Jinja template that escapes every text; the tables are written by pandas.
"""

import base64
import io
import json
import math
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from dataset import FINDINGS
from report.figures import map_note, overlay
from scores import AVERAGE, BASELINE, COSTS, partial_networks
from support.files import write

SHOWN = 20  # of one's own films, on the page; more would make it too large to open
CHECKSUM = 12  # characters shown of it


def write_page(out, data, table, averaged, remarks, activations, own, networks):
    """Write out/results/index.html from the pictures that lie beside it and from

    data        the prepared set
    table       the frame of `scores.auc_table`
    averaged    the findings in the average, from there, too
    remarks     lines of text to stand under it
    activations {network: (films, maps, texts)} as `figures.draw_activation` takes them
    own         {name of one's own film: such a dict}, empty without any
    networks    {name: (network, what its weights file holds)}
    """
    out = Path(out)
    test = data.rows("test")
    positives = dict(zip(FINDINGS, data.labels[test].sum(axis=0).astype(int), strict=True))
    layout = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = layout.get_template("page.html")
    page = template.render(
        data=data,
        films=len(test),
        patients=data.table["Patient ID"].iloc[test].nunique(),
        summary=write_summary(table),
        findings=write_findings(table, positives, averaged),
        marks=BASELINE in table.index.unique("network"),
        remarks=remarks,
        charts={name: embed((out / "results" / f"{name}.png").read_bytes()) for name in ("auc", "roc")},
        note=next((map_note(maps) for _, maps, _ in activations.values()), ""),  # one crop for all networks
        activations=show_activations(activations),
        own={film: show_activations(rows) for film, rows in list(own.items())[:SHOWN]},
        others=max(len(own) - SHOWN, 0),
        cells=show_cells(out, networks),
        runs=write_runs(out, networks),
    )
    write(out / "results" / "index.html", page)


# --- Tables


def write_table(rows, header):
    """{label: cells} as an HTML table, where a header may break after "_"; a text that is not Markup is escaped."""
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=object).style
    table = table.format(escape="html").format_index(escape="html")
    table = table.format_index(lambda name: escape(name).replace("_", Markup("_<wbr>")), axis=1)
    return Markup(table.to_html(exclude_styles=True))


def with_interval(value, low, high, best=False, form="{:.3f}"):
    """The markup of a number and its interval; bold where it is the best of its row."""
    if math.isnan(value):
        return "n/a"
    number = Markup("<b>{}</b>" if best else "{}").format(form.format(value))
    interval = "*" if math.isnan(low) else f"[{form}, {form}]".format(low, high)
    return Markup("{} <small>{}</small>").format(number, interval)


def write_summary(table):
    """The average of each network, its difference to CheXNet, and its size; as HTML."""
    averages = table.xs(AVERAGE, level="finding")
    best = best_of_row(averages)
    rows = {}
    for name, row in averages.iterrows():
        gap = [row[column] for column in ("difference", "difference_low", "difference_high")]
        size = zip(COSTS, ("{:.2f}", "{:.3f}"), strict=True)
        rows[name] = [
            with_interval(row["auc"], row["low"], row["high"], name == best),
            "–" if math.isnan(row["difference"]) else with_interval(*gap, form="{:+.3f}"),
            *("–" if math.isnan(row[cost]) else form.format(row[cost]) for cost, form in size),
        ]
    return write_table(rows, ["Average AUC", "Difference to CheXNet", "Parameters (M)", "Multiply-adds (G)"])


def write_findings(table, positives, averaged):
    """One row per finding, one column per network, and last the averages over the findings `averaged`; as HTML.

    positives {finding: films}.
    """
    rows, partial = {}, partial_networks(table, averaged)
    for finding in [*FINDINGS, AVERAGE]:
        scores = table.xs(finding, level="finding")
        best = best_of_row(scores)
        limits = scores[["auc", "low", "high"]].itertuples(name=None)
        cells = [with_interval(*numbers, name == best) for name, *numbers in limits]
        if finding == AVERAGE:
            label = f"Average of {len(averaged)}"
            counts = [f" (of {partial[name]})" if name in partial else "" for name in scores.index]
            cells = [cell + count for cell, count in zip(cells, counts, strict=True)]
        else:
            label = finding.replace("_", " ")
        rows[label] = [positives.get(finding, ""), *cells]
    return write_table(rows, ["Films", *table.index.unique("network")])


def best_of_row(scores):
    """The network whose lead over the second best is beyond chance, or None; scores: one row per network.

    Beyond chance: the 95 % interval of the difference excludes zero. Intervals are of differences to BASELINE, so
    nothing is known of a lead between two others.
    """
    ranked = scores[scores["auc"].notna()].sort_values("auc", ascending=False)
    if len(ranked) < 2 or BASELINE not in ranked.index[:2]:
        return None
    first, second = ranked.index[:2]
    behind, ahead = scores.loc[second, "difference_high"] < 0, scores.loc[first, "difference_low"] > 0
    return first if (behind if first == BASELINE else ahead) else None


# --- Pictures


def embed(png):
    """The bytes of a PNG as an address that a page holds in itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def show_activations(rows):
    """{network: (films, maps, texts)} as {network: [(picture, text), ...]}."""
    shown = {}
    for name, (films, maps, texts) in rows.items():
        pictures = []
        for film, values, text in zip(films, maps, texts, strict=True):
            png = io.BytesIO()
            Image.fromarray(film if values is None else overlay(film, values)).save(png, "PNG")
            pictures.append((embed(png.getvalue()), text.replace("_", " ")))
        shown[name] = pictures
    return shown


def show_cells(out, networks):
    """{network built of cells: (its genotype, [(what a picture shows, picture), ...])}.

    There are pictures of the search that found the cells, where it lies in `out`.
    """
    shown = {}
    for name, (_, saved) in networks.items():
        if "genotype" in saved["settings"]:
            folder = find_search(out, name, saved)
            names = {"Cells": "cells.png", "The search": "search.png"} if folder else {}
            there = {title: folder / file for title, file in names.items() if (folder / file).exists()}
            pictures = [(title, embed(path.read_bytes())) for title, path in there.items()]
            shown[name] = saved["settings"]["genotype"], pictures
    return shown


# --- Runs


def find_search(out, name, saved):
    """The folder of the search that found a network's cells; None where it is not there, or has found others since."""
    folder = out / f"search_{name}"
    at = folder / "genotype.txt"
    same = at.is_file() and at.read_text(encoding="utf-8", errors="replace").strip() == saved["settings"]["genotype"]
    return folder if same else None


def read_record(folder, settings=None):
    """Settings, versions and place of a run, {name: value}; with `settings` only if they are the run's."""
    try:
        record = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        same = settings is None or record["settings"] == settings
        return {**record["settings"], **record["environment"]} if same else settings
    except (OSError, ValueError, KeyError, TypeError):  # lost or damaged: a weights file tells its settings itself
        return settings or {}


def write_runs(out, networks):
    """Settings and versions, a column for each training and each search that led to it; as HTML."""
    if not networks:
        return ""
    runs = {}
    for name, (_, saved) in networks.items():
        if "genotype" in saved["settings"] and (folder := find_search(out, name, saved)):
            runs[f"search of {name}"] = read_record(folder)
        best = {"best epoch": saved["epoch"], "its val AUC": f"{saved['val_auc']:.3f}"}
        runs[name] = best | read_record(out / "weights" / name, saved["settings"])
    names = dict.fromkeys(("best epoch", "its val AUC", *(name for run in runs.values() for name in run)))
    rows = {
        name.replace("_", " "): [str(run.get(name, "–")) for run in runs.values()]
        for name in names
        if name != "genotype"  # it stands with the cells
    }
    rows["checksum"] = [text[:CHECKSUM] for text in rows["checksum"]]
    return write_table(rows, list(runs))
