"""The results page: every picture and number is there, nothing comes from elsewhere, every name shows as such."""

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import test as table_script
from dataset import FINDINGS, load_set
from genotypes import PUBLISHED, save_genotype
from report import figures, page
from scores import AVERAGE, read_scores
from tests.test_figures import search_rows, write_rows
from tests.test_scripts import run
from tests.test_table import save_network

ALIEN = "<script>alert(1)</script> & $x$"  # a network's name
FILM = 'a "<b>" & c.png'
CELL = PUBLISHED["DARTS_V1"]  # of save_network


class Parsed(HTMLParser):
    """A page as its tags, its tables (rows of cells' texts) and its other texts, as a browser would show them."""

    VOID = ("meta", "img", "wbr")

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
    """A folder with a search, two networks, another model called ALIEN, a film called FILM, and their results."""
    out = tmp_path_factory.mktemp("made")
    data = load_set(small_set / "noise")
    torch.manual_seed(0)
    for name in ("first_order", "chexnet"):
        save_network(out / "weights", name, data)
    search = write_rows(out / "search_first_order", search_rows())
    save_genotype(search / "genotype.txt", CELL)
    figures.draw_run(search)
    (search / "settings.json").write_text(json.dumps({"settings": {"c": 123}, "environment": {"torch": "9.8.7"}}))
    (out / "own").mkdir()
    Image.fromarray(data.images[data.rows("test")[0]]).save(out / "own" / FILM)
    predictions = pd.DataFrame({f"prob_{finding}": np.linspace(0, 1, 32) for finding in FINDINGS})
    predictions["Image Index"] = data.table["Image Index"].to_numpy()[data.rows("test")]
    predictions.drop(columns="prob_Hernia").to_csv(out / "alien.csv", index=False)
    make(small_set, out)
    return out


def make(small_set, out, films=True):
    options = ["--min-patients", 2, *(["--films", out / "own"] if films else [])]
    run(table_script, small_set, out, f"--predictions={ALIEN}={out / 'alien.csv'}", *options)


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    """A copy of it; the pictures that are there serve again."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(table_script, "draw", lambda *_: {})
    return tmp_path


def parsed(out):
    return Parsed((out / "results" / "index.html").read_text(encoding="utf-8"))


# --- What is on it


def test_every_number_is_that_of_the_table(made):
    scores = read_scores(made / "results" / "auc.csv")
    names = ["first_order", "chexnet", ALIEN]
    summary, findings, _ = parsed(made).tables

    def shown(row, columns=("auc", "low", "high"), form="{:.3f}"):
        value, low, high = row[list(columns)]
        return "n/a" if math.isnan(value) else form.format(value) + f" [{form}, {form}]".format(low, high)

    assert [name.strip() for name in findings[0]] == ["", "Films", *names]
    assert [row[0] for row in findings[1:]] == [*(f.replace("_", " ") for f in FINDINGS), "Average of 14"]
    for finding, row in zip([*FINDINGS, AVERAGE], findings[1:], strict=True):
        known = ["", "", " (of 13)" if finding == AVERAGE else ""]  # ALIEN knows no hernia
        assert row[2:] == [shown(scores.loc[(n, finding)]) + of for n, of in zip(names, known, strict=True)]
    assert findings[14][4] == "n/a"
    assert [row[0] for row in summary[1:]] == names
    for name, row in zip(names, summary[1:], strict=True):
        average = scores.loc[(name, AVERAGE)]
        gap = shown(average, ("difference", "difference_low", "difference_high"), "{:+.3f}")
        size = [average["parameters_millions"], average["multiply_adds_billions"]]
        sizes = ["–", "–"] if name == ALIEN else [f"{size[0]:.2f}", f"{size[1]:.3f}"]
        assert row[1:] == [shown(average), "–" if name == "chexnet" else gap, *sizes]


def test_the_number_of_films_with_a_finding(made, small_set):
    data = load_set(small_set / "noise")
    films = data.labels[data.rows("test")].sum(axis=0)
    assert [row[1] for row in parsed(made).tables[1][1:]] == [*(f"{count:.0f}" for count in films), ""]


def test_every_picture_is_there(made):
    pictures = parsed(made).pictures()
    for text, path in {
        "AUC of each finding with its interval": "results/auc.png",
        "ROC curves of each finding": "results/roc.png",
        "Cells of first_order": "search_first_order/cells.png",
        "The search of first_order": "search_first_order/search.png",
    }.items():
        assert pictures.pop(text) == [(made / path).read_bytes()]
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
        expected = [
            f"{finding.replace('_', ' ')}\n{p[positive[:, k].argmax(), k]:.2f}" for k, finding in enumerate(FINDINGS)
        ]
        place = len(texts) - 1 - texts[::-1].index(expected[0])
        assert texts[place - 1] == name and texts[place : place + len(FINDINGS)] == expected
    (own,) = pd.read_csv(made / "results" / "films_chexnet.csv").iloc[:, 1:].to_numpy()
    assert f"{FINDINGS[own.argmax()].replace('_', ' ')}\n{own.max():.2f}" in texts
    assert "raises it. Each map has a scale of its own, and one value only." in texts


def test_the_notice_stands_on_top_and_films_are_no_diagnosis(made):
    texts = parsed(made).texts
    body = texts.index("Not for clinical use")
    assert texts[body + 1] == "AUC on the test split of noise"
    assert "This is no diagnosis. The networks were trained on small (not for clinical use)." in texts
    assert FILM in texts


# --- Nothing from elsewhere, nothing but text in names


def test_nothing_comes_from_elsewhere(made):
    found = parsed(made)
    addresses = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    targets = {attributes.get("id") for _, attributes in found.tags}
    assert {address[1:] for address in addresses if address[0] == "#"} <= targets
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
    text = re.sub(r"base64,[^\"]*", "", (made / "results" / "index.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert "default-src 'none'" in text


def test_names_show_as_they_are(made):
    found = parsed(made)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 1 and "wbr" in tags  # a long name may go on in a second line
    assert found.tables[0][3][0] == ALIEN and found.tables[1][0][4].strip() == ALIEN
    assert (
        f"{ALIEN}: the average, and any difference, is over what it knows: {', '.join(FINDINGS[:-1])}." in found.texts
    )


# --- The best of a row


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ({"a": (0.8, 0.01, 0.2), "chexnet": (0.7, math.nan, math.nan)}, "a"),
        ({"a": (0.8, -0.01, 0.2), "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (0.6, -0.2, -0.01), "chexnet": (0.7, math.nan, math.nan)}, "chexnet"),
        ({"a": (0.6, -0.2, 0.01), "b": (0.5, -0.3, -0.1), "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (0.9, 0.1, 0.2), "b": (0.8, 0.01, 0.2), "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (0.8, math.nan, math.nan), "chexnet": (0.7, math.nan, math.nan)}, None),
        # The difference is over what both know, so its sign need not be that of the difference of the averages.
        ({"a": (0.8, -0.2, -0.1), "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (0.6, 0.1, 0.2), "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (math.nan,) * 3, "chexnet": (0.7, math.nan, math.nan)}, None),
        ({"a": (0.8, math.nan, math.nan), "b": (0.7, math.nan, math.nan)}, None),
    ],
)
def test_the_best_is_marked_only_where_its_lead_is_beyond_chance(rows, best):
    scores = pd.DataFrame.from_dict(rows, orient="index", columns=["auc", "difference_low", "difference_high"])
    assert page.best_of_row(scores) == best


def test_the_mark_is_bold():
    assert page.with_interval(0.5, 0.4, 0.6, best=True) == "<b>0.500</b> <small>[0.400, 0.600]</small>"
    assert page.with_interval(0.5, math.nan, math.nan) == "0.500 <small>*</small>"


# --- Runs


def settings_of(out, run_name):
    """{setting: value} of a run in the last table."""
    header, *rows = parsed(out).tables[-1]
    column = [name.strip() for name in header].index(run_name)
    return {row[0]: row[column] for row in rows}


def test_settings_and_versions_are_those_of_the_run(copy, small_set):
    folder = copy / "weights" / "chexnet"
    folder.mkdir()
    settings = torch.load(copy / "weights" / "chexnet_net.pth", weights_only=True)["settings"]
    record = {"settings": settings, "environment": {"commit": "abc<i>", "threads": 3}}
    (folder / "settings.json").write_text(json.dumps(record))
    make(small_set, copy, films=False)
    shown = settings_of(copy, "chexnet")
    assert (shown["crop"], shown["commit"], shown["threads"], shown["best epoch"]) == ("32", "abc<i>", "3", "1")
    assert shown["checksum"] == settings["checksum"][:12]
    assert settings_of(copy, "search of first_order")["torch"] == "9.8.7"
    record["settings"]["crop"] = 64  # another run's, by now
    for text in (json.dumps(record), "{", "[]", '{"settings": 1}'):
        (folder / "settings.json").write_text(text)
        make(small_set, copy, films=False)
        shown = settings_of(copy, "chexnet")
        assert (shown["crop"], shown.get("commit", "–")) == ("32", "–")


def test_a_search_that_has_found_other_cells_is_not_shown(copy, small_set):
    save_genotype(copy / "search_first_order" / "genotype.txt", PUBLISHED["DARTS_V2"])
    make(small_set, copy, films=False)
    assert not {"Cells of first_order", "The search of first_order"} & parsed(copy).pictures().keys()
    assert "search of first_order" not in [name.strip() for name in parsed(copy).tables[-1][0]]


def test_more_films_than_a_page_holds_are_counted(copy, small_set, monkeypatch):
    monkeypatch.setattr(page, "SHOWN", 1)
    shutil.copy(copy / "own" / FILM, copy / "own" / "z.png")
    make(small_set, copy)
    texts = parsed(copy).texts
    assert FILM in texts and "z.png" not in texts and "Not shown here: 1. All sheets are in the folder" in texts
