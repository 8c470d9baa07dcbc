"""The pictures: nothing overlaps in a drawn cell, class activations add up, every picture shows something."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from scipy.special import softmax

from chexnet import CheXNet
from dataset import FINDINGS
from genotypes import EDGES, PRIMITIVES, derive, format_genotype, parse_genotype, random_genotype, save_genotype
from model_eval import Network
from report import activations, figures
from report.activations import Sheet
from report.cells import cells_figure
from report.summary import draw_summary

EPOCHS = 3
ROOT = Path(__file__).parent.parent


def search_rows():
    """Rows of a search's metrics.jsonl: α / τ at random; a warm-up of one epoch, the best epoch, another."""
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(1, EPOCHS + 1):
        alphas = {kind: rng.normal(size=(len(EDGES), len(PRIMITIVES))).tolist() for kind in ("normal", "reduce")}
        numbers = {"train_loss": 0.3, "val_loss": 0.32 / epoch, "val_auc": 1 - epoch / 10, "entropy_normal": 2.0}
        rows.append({"epoch": epoch, **numbers, "entropy_reduce": 1.9, "alphas": alphas, "temperature": 0.5})
        alphas = [0.5 * torch.tensor(values) for values in alphas.values()]
        rows[-1] |= {"genotype": format_genotype(derive(*alphas)), "alpha_loss": None if epoch == 1 else 0.31}
    return rows


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def check_picture(path):
    with Image.open(path) as image:
        assert min(image.size) >= 300 and max(image.size) <= 3000, image.size
        grey = np.asarray(image.convert("L"), float)
    assert grey.std() > 5, "blank"
    assert not list(path.parent.glob("*.part"))


# --- Cells


@pytest.mark.parametrize("seed", range(20))
def test_nothing_covers_a_label_of_a_cell(seed):
    genotype = random_genotype(seed)
    figure = cells_figure(genotype)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # places the labels' boxes
    (axes,) = figure.axes
    operations = [op for op, _ in genotype.normal + genotype.reduce]
    words = [op.replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5") for op in operations]
    texts = [text for text in axes.texts if text.get_text() in words]
    labels = [text.get_bbox_patch().get_window_extent(renderer) for text in texts]
    nodes = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    titles = [text.get_window_extent(renderer) for text in axes.texts if "cell" in text.get_text()]
    assert sorted(text.get_text() for text in texts) == sorted(words)
    assert len(nodes) == 2 * (2 + 4 + 1) and len(titles) == 2
    assert [text.get_text() for text in axes.texts if text.get_text().isdigit()] == ["2", "3", "4", "5"] * 2
    for k, box in enumerate(labels):
        assert not any(box.overlaps(other) for other in labels[k + 1 :] + nodes + titles)
        assert box.x0 > 0 and box.y0 > 0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1

    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    edges = [axes.transData.transform(arrow.get_path().vertices) for arrow in arrows]
    lines = edges + [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    pieces = [(*np.sort(pair, axis=0), k) for k, line in enumerate(lines) for pair in pairwise(line)]
    pieces = [piece for piece in pieces if (piece[1] - piece[0]).min() < 1]  # without the arrows' heads
    for box in labels:  # its own edge alone runs through it
        assert len({k for low, high, k in pieces if (low < box.max).all() and (high > box.min).all()}) == 1
    for low, high, k in pieces:  # edges of different nodes may cross, not lie on each other
        for other_low, other_high, m in pieces:
            shared = np.minimum(high, other_high) - np.maximum(low, other_low)
            foreign = max(k, m) < len(edges) and np.abs(edges[k][0] - edges[m][0]).max() > 1
            assert not (foreign and shared.min() > -1 and shared.max() > 1)


# --- Class activation


@pytest.mark.parametrize("name", ["derived", "chexnet"])
def test_mean_of_a_class_activation_is_the_logit_without_the_bias(name):
    torch.manual_seed(0)
    network = CheXNet(3) if name == "chexnet" else Network(4, 3, 4, random_genotype(0))
    network = network.double().eval()
    torch.nn.init.normal_(network.classifier.bias)
    films = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    maps = activations.class_activation(network, films)
    assert not maps.requires_grad and maps.shape == (2, 3, 4, 4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # BatchNorm's, too
    with torch.no_grad():
        logits = network(films)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), logits - network.classifier.bias, rtol=1e-5, atol=1e-12)


def test_chexnet_computes_what_torchvisions_densenet_computes():
    network, films = CheXNet(3), torch.randn(2, 3, 64, 64)
    assert torch.equal(network(films), network.densenet(films))
    assert (network.features(films) >= 0).all()  # after the ReLU


def test_a_map_has_a_scale_of_its_own_with_zero_in_the_middle():
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    values = np.array([[0.0, 0.0], [-1.0, 2.0]])
    shown = activations.overlay(film, values).astype(int)
    assert shown.shape == (64, 64, 3)
    assert (shown[:16, :, :] == film[:16, :, None]).all()  # clear where the map is zero
    assert (activations.overlay(film, values * 2**-10) == shown).all()
    red, blue = shown[..., 0], shown[..., 2]
    assert (red[50:, 50:] > blue[50:, 50:]).all() and (blue[50:, :14] > red[50:, :14]).all()  # raises, lowers
    np.testing.assert_array_equal(activations.overlay(film, -np.abs(values))[50:, 50:, 2] > 100, True)
    assert (activations.overlay(film, np.zeros((2, 2))) == film[:, :, None]).all()
    grey = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in (activations.LOWERS, activations.RAISES)]
    assert grey[1] - grey[0] > 0.2  # print in grey tells them apart


# --- Every picture


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # error: such as scikit-learn's for one class
def test_results_films_and_summary(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    labels[:, 0] = 0  # no positive film: n/a
    scores = {name: rng.random(labels.shape) + labels * 0.3 for name in ("first_order", "_x.y_", "chexnet")}
    findings = ["None", "Left_lung", "Mass"]
    figures.draw_roc(tmp_path / "roc.png", labels, scores, findings)
    rows = pd.MultiIndex.from_product([scores, [*findings, "Average"]], names=["network", "finding"])
    middle = rng.uniform(0.6, 0.9, len(rows))
    table = pd.DataFrame({"auc": middle, "low": middle - 0.02, "high": middle + 0.03}, rows)
    table.loc["chexnet", "low"] += 0.03  # of few resamples all may lie above
    table.iloc[0] = np.nan
    figures.draw_auc(tmp_path / "auc.png", table)
    curve = np.array([(0.01, 0.02, 0.01, 0.03), (0.3, 0.2, 0.21, 0.35)])
    figures.draw_calibration(tmp_path / "calibration.png", {"first_order": curve, "nothing": curve[:0]})
    figures.draw_comparison(tmp_path / "comparison.png", {"random": [0.8, 0.9], "chexnet": [0.7]}, random_genotype(1))
    films = list(rng.integers(0, 256, (7, 64, 64), dtype=np.uint8))
    captions = ["No Finding"] * 6 + [", ".join(FINDINGS)]
    activations.draw_sheet(tmp_path / "films.png", Sheet(films, captions))
    overlaid = [*map(activations.overlay, films, rng.normal(size=(7, 2, 2)))]
    activations.draw_sheet(tmp_path / "activation.png", Sheet(overlaid, captions, "a note"))
    draw_summary(tmp_path / "Summary.png")
    for name in ("roc", "auc", "calibration", "comparison", "films", "activation", "Summary"):
        check_picture(tmp_path / f"{name}.png")
    with Image.open(tmp_path / "activation.png") as image:
        assert np.ptp(np.asarray(image.convert("RGB"), int), axis=2).max() > 20  # the map is coloured, films are grey


# --- A run folder

DRAWN = ("cells.png", "alphas.png", "search.png")


def test_pictures_of_a_search(tmp_path):
    search = write_rows(tmp_path / "search", search_rows())
    save_genotype(search / "genotype.txt", random_genotype(2))
    figures.draw_run(search)
    assert {path.name for path in search.iterdir()} == {*DRAWN, "metrics.jsonl", "genotype.txt"}
    for name in DRAWN:
        check_picture(search / name)


def test_the_edges_that_a_cell_keeps_are_the_two_strongest_of_their_column(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_picture", lambda save, path: drawn.append(save.__self__))
    rows = search_rows()
    figures.draw_alphas("alphas.png", rows)
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    for kind, half in (("normal", panels[: len(EDGES)]), ("reduce", panels[len(EDGES) :])):
        last = [line.get_ydata()[-1] for line in half[0].lines[: len(PRIMITIVES)]]
        np.testing.assert_allclose(last, softmax(rows[-1]["alphas"][kind][0]))
        for k, (operation, source) in enumerate(getattr(parse_genotype(rows[1]["genotype"]), kind)):
            node = 2 + k // 2
            into = [axes.title for axes in half if f"→{node}: " in axes.get_title()]
            into.sort(key=lambda title: -float(title.get_text().split()[1]))
            edge, _, *words = into[k % 2].get_text().split()
            assert (edge, "_".join(words).replace("×", "x")) == (f"{source}→{node}:", operation)
            assert [title.get_weight() for title in into[:3]] == ["bold", "bold", "normal"][: len(into)]


def test_pictures_of_a_training_are_the_same_whatever_the_user_has_chosen_for_matplotlib(tmp_path):
    style = "text.usetex: True\nfont.family: Nowhere\nfigure.facecolor: black\nsavefig.bbox: tight\n"
    (tmp_path / "matplotlibrc").write_text(style)  # Matplotlib reads it in the folder where it is imported
    training = write_rows(
        tmp_path / "training",
        [{k: row[k] for k in ("epoch", "train_loss", "val_loss", "val_auc")} for row in search_rows()],
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "not_installed"}
    command = [sys.executable, "-m", "report.figures", "training"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    picture = (training / "training.png").read_bytes()
    check_picture(training / "training.png")
    figures.draw_run(training)
    assert (training / "training.png").read_bytes() == picture
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("report/*.py"))
    assert sources.count(" Figure(") == 1 and "pyplot" not in sources  # all figures are made in that one place


def test_a_folder_that_is_no_run_gets_one_line(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path)])
    assert "metrics.jsonl: cannot be read" in one_line(figures.main)
    rows = search_rows()
    write_rows(tmp_path, rows)
    assert "genotype.txt: cannot be read" in one_line(figures.main)
    for text in (json.dumps(rows[0]) + '\n{"epoch": 2, "tr', "", "3\n", '{"val_auc": 1}\n'):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert "metrics.jsonl: no rows of a run" in one_line(figures.main)
