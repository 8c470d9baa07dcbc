"""The results page: every picture and number is there, nothing comes from elsewhere, every text shows as such."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import softmax

import test as table_script
from dataset import FINDINGS, load_set
from genotypes import EDGES, PUBLISHED, format_genotype, parse_genotype, save_genotype
from report import page
from report.figures import draw_run
from report.tables import Cell, Table
from tests.test_figures import search_rows, write_rows
from tests.test_scripts import run
from tests.test_table import save_network

OTHER = "an-other_model.2"
FILM = 'a "<b>" & c $x$.png'
CELL = PUBLISHED["DARTS_V1"]  # of save_network


class Parsed(HTMLParser):
    """A page as its tags, its tables (rows of cells' texts) and its other texts, as a browser would show them."""

    VOID = ("meta", "img", "wbr", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.tables, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # every element ends where it should

    def handle_data(self, text):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += text
        elif text.strip():
            self.texts.append(text.strip())

    def pictures(self):
        """{alternative text: [the bytes of its pictures]}."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, code = attributes["src"].partition(",")
                assert kind == "data:image/png;base64"
                found.setdefault(attributes["alt"], []).append(base64.b64decode(code, validate=True))
        return found


@pytest.fixture(scope="module")
def made(small_set, tmp_path_factory):
    """A folder with a search, two networks, another model called OTHER, a film called FILM, and their results."""
    out = tmp_path_factory.mktemp("made")
    data = load_set(small_set / "noise")
    torch.manual_seed(0)
    for name in ("first_order", "chexnet"):
        save_network(out / "weights", name, data)
    rows = search_rows()
    rows[1]["genotype"] = format_genotype(CELL)  # the chosen epoch's
    search = write_rows(out / "search_first_order", rows)
    save_genotype(search / "genotype.txt", CELL)
    draw_run(search)
    (search / "settings.json").write_text(json.dumps({"settings": {"c": 123}, "environment": {"torch": "9.8.7"}}))
    (out / "own").mkdir()
    Image.fromarray(data.images[data.rows("test")[0]]).save(out / "own" / FILM)
    predictions = pd.DataFrame({f"prob_{finding}": np.linspace(0, 1, 32) for finding in FINDINGS})
    predictions["Image Index"] = data.table["Image Index"].to_numpy()[data.rows("test")]
    predictions.drop(columns="prob_Hernia").to_csv(out / "other.csv", index=False)
    options = f"--predictions={OTHER}={out / 'other.csv'}", "--films", out / "own", "--min-patients", 2
    (out / "results").mkdir()
    (out / "results" / "activation_gone.png").write_text("of an earlier call")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.activations.COARSE", 0)
        run(table_script, small_set, out, *options)
    return out


def parsed(out):
    return Parsed((out / "results" / "index.html").read_text(encoding="utf-8"))


def read_rows(out):
    return [json.loads(line) for line in (out / "search_first_order" / "metrics.jsonl").read_text().splitlines()]


# --- What is on it


def test_its_tables_are_those_of_auc_md(made):
    lines = (made / "results" / "auc.md").read_text(encoding="utf-8").splitlines()
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    names = ["first_order", "chexnet", OTHER]
    summary, findings, *_ = parsed(made).tables
    assert findings[0] == header == ["finding", "positive films", *names]
    shown = [[label.replace("_", " "), *cells] for label, *cells in rows[: len(FINDINGS) + 1]]
    assert findings[1:] == shown
    totals = rows[len(FINDINGS) :]
    assert summary[0] == ["network", *(label for label, *_ in totals)]
    assert summary[1:] == [[name, *(row[k] for row in totals)] for k, name in enumerate(names, start=2)]
    assert findings[14][4] == "n/a" and findings[15][4].endswith("] (of 13)")  # OTHER knows no hernia


def test_every_picture_is_there(made):
    pictures = parsed(made).pictures()
    for text, path in {
        "AUC of each finding with its interval": "results/auc.png",
        "ROC curves of each finding": "results/roc.png",
        "Calibration of each network": "results/calibration.png",
        "The search of first_order": "search_first_order/search.png",
    }.items():
        assert pictures.pop(text) == [(made / path).read_bytes()]
    drawn = {path.stem for path in (made / "results").glob("activation_*")}
    assert drawn == {"activation_first_order", "activation_chexnet"}
    films = [png for same in pictures.values() for png in same]
    assert len(films) == 2 * len(FINDINGS) + 2 * 6  # the test films' maps; one's own film and its strongest findings
    for png in films:
        with Image.open(io.BytesIO(png)) as film:
            assert film.size == (32, 32)
            film.load()


def test_the_captions_have_the_probabilities(made, small_set):
    data = load_set(small_set / "noise")
    positive = data.labels[data.rows("test")]
    texts = parsed(made).texts
    for name in ("first_order", "chexnet"):
        p = pd.read_csv(made / "results" / f"predictions_{name}.csv").iloc[:, 1:].to_numpy()
        first = positive.argmax(axis=0)  # the first film with each finding
        expected = [f"{f.replace('_', ' ')}\n{p[first[k], k]:.2f}" for k, f in enumerate(FINDINGS)]
        place = len(texts) - 1 - texts[::-1].index(expected[0])
        assert texts[place - 1] == name and texts[place : place + len(FINDINGS)] == expected
    (own,) = pd.read_csv(made / "results" / "films_chexnet.csv").filter(like="prob_").to_numpy()
    assert f"{FINDINGS[own.argmax()].replace('_', ' ')}\n{own.max():.2f}" in texts
    assert "raises it. Each map has a scale of its own, and one value for 32 × 32 pixels, drawn smoothly." in texts


def test_sections_come_in_the_order_of_a_readers_questions(made):
    found = parsed(made)
    order = [attributes["id"] for tag, attributes in found.tags if tag == "h2"]  # no groups in this set
    assert order == ["findings", "roc", "Operating-points", "Calibration", "own", "maps", "cells", "runs"]
    first, second, brier = found.tables[2:5]
    written = pd.read_csv(made / "results" / "operating_points.csv").set_index(["network", "finding"])
    for name, table in (("first_order", first), ("chexnet", second)):
        row = written.loc[(name, FINDINGS[0])]
        assert table[1][2:4] == [f"{row['threshold']:#.3g}", "{:.2f} [{:.2f}, {:.2f}]".format(*row.iloc[1:4])]
    assert brier[0] == ["finding", "share in train", "score of the share", "first_order", "chexnet", OTHER]
    assert len(brier) == len(FINDINGS) + 2 and len(found.tables) == 6


def test_the_notice_stands_on_top_and_films_are_no_diagnosis(made):
    texts = parsed(made).texts
    title, films = texts[texts.index("Not for clinical use") + 1 :][:2]
    assert title == "AUC on the test split of noise" and films.startswith("32 films of 16 patients. The AUC is")
    assert "This is no diagnosis. The networks were trained on noise (not for clinical use)." in texts
    assert FILM in texts


def test_nothing_comes_from_elsewhere(made):
    found = parsed(made)
    addresses = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    targets = {attributes.get("id") for _, attributes in found.tags}
    assert {address[1:] for address in addresses if address[0] == "#"} <= targets
    tags = [tag for tag, _ in found.tags]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(tags) and tags.count("script") == 1
    text = re.sub(r"base64,[^\"]*", "", (made / "results" / "index.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert "default-src 'none'" in text


def test_texts_show_as_they_are(small_set, tmp_path):
    """Of a set that does not know its patients."""
    data = replace(load_set(small_set / "noise"), findings=("<i>", "b_c"), patients=False)
    (tmp_path / "results").mkdir()
    for name in ("roc", "auc", "calibration"):
        (tmp_path / "results" / f"{name}.png").write_bytes(b"png")
    best, other = Cell("0.9", "[0.8, 1.0]", best=True), Cell("0.5", "*", " (of 1)")
    rows = [("<i>", [Cell("3"), best, other]), ("b_c", [Cell("2"), other, best]), ("mean", [Cell(""), other, other])]
    page.write_page(tmp_path, data, Table(["finding", "films", "a_b", "c"], rows), ["a > b"], [], {}, {FILM: {}}, {})
    text = (tmp_path / "results" / "index.html").read_text(encoding="utf-8")
    assert "<th>a_<wbr>b</th>" in text  # a long name may go on in a second line
    assert "<td><b>0.9</b> <small>[0.8, 1.0]</small></td><td>0.5 <small>*</small> (of 1)</td>" in text
    summary, findings = parsed(tmp_path).tables
    assert [row[0] for row in findings[1:]] == ["<i>", "b c", "mean"] and summary[0] == ["network", "mean"]
    texts = parsed(tmp_path).texts
    assert "a > b" in texts and "32 films. The AUC is" in text
    assert FILM in texts and "films_<network>.csv" in texts


# --- The slider over the epochs of a search


def shown_cells(found):
    """The epoch that a page shows, and of its two cells: [(alternative text, {edge: operation}, widths of bars)]."""
    cells = []
    for tag, attributes in found.tags:
        if tag == "svg":
            cells.append((attributes["aria-label"], [], []))
        elif tag in ("path", "g"):
            cells[-1][1].append(attributes["class"])
        elif attributes.get("class") == "bar":
            cells[-1][2].append(float(attributes["width"]))
    (says,) = [text for text in found.texts if text.startswith("Epoch ")]
    return says, cells


def check_cells(found, row, chosen=""):
    """The page `found` shows the cells and the weights of the epoch of a row of metrics.jsonl."""
    says, cells = shown_cells(found)
    assert says == f"Epoch {row['epoch']}, val AUC {row['val_auc']:.3f}{chosen}"
    for (text, classes, bars), kind in zip(cells, ("normal", "reduce"), strict=True):
        pairs = [
            (op, source, 2 + k // 2) for k, (op, source) in enumerate(getattr(parse_genotype(row["genotype"]), kind))
        ]
        words = [
            f"{op.replace('_', ' ').replace('x3', '×3').replace('x5', '×5')} from {i} to {j}" for op, i, j in pairs
        ]
        assert text.endswith(f" cell, epoch {row['epoch']}: {', '.join(words)}")
        kept = ["kept" if edge in {(i, j) for _, i, j in pairs} else "" for edge in EDGES]
        assert classes == kept + kept  # lines, then boxes
        np.testing.assert_allclose(
            np.reshape(bars, (len(EDGES), -1)) / 78, softmax(row["alphas"][kind], axis=-1), atol=6e-4
        )
        assert all(words[k].rsplit(" from ")[0] in found.texts for k in range(len(words)))


def test_without_the_script_the_chosen_epoch_is_shown_and_the_others_are_there(made):
    rows = read_rows(made)
    check_cells(parsed(made), rows[1], ", chosen")
    (epochs,) = [json.loads(a["data-epochs"]) for _, a in parsed(made).tags if "data-epochs" in a]
    for epoch, row in zip(epochs, rows, strict=True):
        weights = [cell["weights"] for cell in epoch["cells"]]
        np.testing.assert_allclose(weights, softmax([*row["alphas"].values()], axis=-1), atol=6e-4)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize(("action", "shown"), [("", 1), ("slide(3)", 2), ("slide(1)", 0), ("slide(3); print()", 1)])
def test_the_slider_shows_another_epoch_and_print_the_chosen_one(made, tmp_path, action, shown):
    text = (made / "results" / "index.html").read_text(encoding="utf-8")
    slide = 's = document.querySelector("input"); slide = n => { s.value = n; s.dispatchEvent(new Event("input")) };'
    prints = 'print = () => window.dispatchEvent(new Event("beforeprint"));'
    (tmp_path / "page.html").write_text(f"{text}<script>{slide} {prints} {action}</script>", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    check_cells(Parsed(done.stdout), read_rows(made)[shown], ", chosen" * (shown == 1))


def test_a_damaged_search_has_no_slider(tmp_path):
    assert page.show_epochs(tmp_path) == []
    rows = search_rows()
    rows[2]["alphas"]["reduce"].pop()  # as of a search with fewer edges
    assert page.show_epochs(write_rows(tmp_path, rows)) == []


# --- In a browser

PROBE = """<script>
const errors = []
addEventListener("error", event => errors.push(event.message || event.target.outerHTML.slice(0, 99)), true)
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective))
addEventListener("load", () => {
  for (const table of document.querySelectorAll("table"))
    if (/model|chexnet/.test(table.tHead.rows[0].lastElementChild.textContent))  // make it one of nine networks
      for (const row of table.rows)
        for (let k = 0; k < 6; k++) row.append(row.lastElementChild.cloneNode(true))
  const inside = (element, what) => what(element.parentElement) || inside(element.parentElement, what)
  const scrolls = element => element === document.body ? -1 : getComputedStyle(element).overflowX === "auto"
  const all = [...document.body.querySelectorAll("*")]
  const wide = all.filter(one => one.getBoundingClientRect().right > innerWidth + .5 && inside(one, scrolls) === -1)
  const table = document.querySelectorAll(".sortable table")[1], orders = []
  const hidden = all.filter(one => one.tagName === "TABLE" && !one.checkVisibility({contentVisibilityAuto: true}))
  for (const column of [2, 2, 0]) {
    table.tHead.rows[0].cells[column].click()
    orders.push([...table.tBodies[0].rows].map(row => row.cells[column].textContent))
  }
  const bad = [...wide, ...all.filter(one => one.tagName === "IMG" && !(one.alt && one.naturalWidth))]
  const say = {errors, bad: bad.map(one => one.outerHTML.slice(0, 99)), hidden: hidden.length, orders}
  parent.postMessage({...say, width: document.documentElement.scrollWidth}, "*")
})
</script>"""
FRAME = """<iframe src="page.html" style="width: {width}px; height: 999px; border: 0"></iframe><pre></pre>
<script>onmessage = event => document.querySelector("pre").textContent = JSON.stringify(event.data)</script>"""


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize(("medium", "width"), [("screen", 390), ("print", 717)])  # px: a phone; A4 without its margins
def test_a_browser_shows_it_on_a_phone_and_in_print(made, tmp_path, medium, width):
    text = (made / "results" / "index.html").read_text(encoding="utf-8")
    if medium == "print":
        text = text.replace("@media print", "@media all")
    (tmp_path / "page.html").write_text(text.replace("<meta", PROBE + "<meta", 1), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))  # a window would not be that narrow
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=9000", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    seen = json.loads(html.unescape(re.search("<pre>(.*)</pre>", said).group(1)))
    assert (seen["errors"], seen["bad"]) == ([], []) and seen["width"] <= width
    assert (seen["hidden"] == 0) == (medium == "print")  # folded tables are printed
    *numbers, names = seen["orders"]
    falling, rising = ([float(cell[:5]) for cell in column[:-1]] for column in numbers)  # without the average, pinned
    assert falling == sorted(falling, reverse=True) and rising == sorted(falling) and len(set(rising)) > 1
    assert names == [*sorted(names[:-1]), "Average of 14"]


# --- Runs


def test_settings_and_versions_are_those_of_the_run(made, tmp_path):
    saved = torch.load(made / "weights" / "chexnet_net.pth", weights_only=True)
    record = {"settings": saved["settings"], "environment": {"commit": "abc", "threads": 3}}

    def shown():
        return {label: cells[0].text for label, cells in page.describe_runs(tmp_path, {"chexnet": (None, saved)}).rows}

    (tmp_path / "weights" / "chexnet").mkdir(parents=True)
    at = tmp_path / "weights" / "chexnet" / "settings.json"
    at.write_text(json.dumps(record))
    expected = {"best epoch": "1", "its val AUC": "0.500", "checksum": saved["settings"]["checksum"][:12]}
    expected |= {"film size": "64", "synthetic": "False", "dataset": "noise", "crop": "32"}
    assert shown() == expected | {"commit": "abc", "threads": "3"}
    record["settings"] = saved["settings"] | {"crop": 64}  # another run's, by now
    for text in (json.dumps(record), "{"):
        at.write_text(text)
        assert shown() == expected


def test_a_search_is_shown_while_it_has_the_cells_of_the_network(made, tmp_path):
    header, *rows = parsed(made).tables[-1]
    assert header == ["setting", "search of first_order", "first_order", "chexnet"]
    assert ["torch", "9.8.7", "–", "–"] in rows and ["c", "123", "4", "–"] in rows
    saved = torch.load(made / "weights" / "first_order_net.pth", weights_only=True)
    assert page.find_search(made, "first_order", saved) == made / "search_first_order"
    (tmp_path / "search_first_order").mkdir()
    save_genotype(tmp_path / "search_first_order" / "genotype.txt", PUBLISHED["DARTS_V2"])
    assert page.find_search(tmp_path, "first_order", saved) is None
