"""A prepared set on disk, and batches of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from data.making import write_set
from dataset import (
    DEFAULTS,
    FINDINGS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Films,
    Sampler,
    crop_of,
    find_preset,
    load_set,
    open_set,
    turned,
)
from support import ranks
from support.files import InputError
from tests.conftest import FILMS, small_table

CPU = torch.device("cpu")


def images(table):
    return np.random.default_rng(1).integers(0, 256, (len(table), 64, 64), dtype=np.uint8)


def grey(films):
    """Grey values 0..255 back from normalised films, (B, H, W)."""
    assert torch.allclose(films[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0], films[:, 2] * 0.225 + 0.406, atol=1e-6)
    return (films[:, 1] * IMAGENET_STD[1] + IMAGENET_MEAN[1]) * 255


# --- A set on disk


@pytest.fixture
def written(tmp_path):
    """A set that a test may spoil."""
    write_set(tmp_path / "s", images(small_table()), small_table(), {})
    return tmp_path / "s"


def change_source(folder, **changes):
    """Change fields of source.json; None removes one."""
    source = json.loads((folder / "source.json").read_text()) | changes
    source = {name: value for name, value in source.items() if value is not None}
    (folder / "source.json").write_text(json.dumps(source))


def test_a_set_reads_back_as_written(tmp_path):
    table = small_table().assign(View="PA", Age="", Sex="F")
    films = images(table)
    counts = write_set(tmp_path / "s", films, table.assign(Height=1), {"origin": "here", "seed": 3})
    data = load_set(tmp_path / "s")
    assert np.array_equal(data.images, films) and isinstance(data.images, np.memmap)
    assert data.table.equals(table[["Image Index", "Patient ID", "Finding Labels", "split", "Sex", "Age", "View"]])
    assert data.labels.sum() == sum(text.count("|") + 1 for text in table["Finding Labels"] if text != "No Finding")
    assert (data.findings, data.preset, data.synthetic, data.patients) == (FINDINGS, "small", False, True)
    source = json.loads((tmp_path / "s" / "source.json").read_text())
    assert source["counts"] == counts.to_dict() and source["seed"] == 3 and source["checksum"] == data.checksum
    assert {name: source[name] for name in DEFAULTS} == DEFAULTS | {"findings": list(FINDINGS)}
    assert counts.loc["films"].to_dict() == FILMS and counts.loc["patients", "val"] == FILMS["val"] / 2
    assert counts["train"]["Hernia"] == data.labels[data.rows("train"), FINDINGS.index("Hernia")].sum()
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["images.npy", "labels.csv", "source.json"]


def test_a_set_has_the_findings_that_it_names_in_their_order(tmp_path):
    table = small_table()
    table["Finding Labels"] = ["Cough|Broken rib", "Cough", "No Finding", "Broken rib"] * (len(table) // 4)
    facts = {"findings": ["Cough", "Broken rib"], "preset": "reference", "synthetic": True, "patients": False}
    counts = write_set(tmp_path / "s", images(table), table, facts)
    data = load_set(tmp_path / "s")
    assert data.labels[:4].tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
    assert {name: getattr(data, name) for name in facts} == facts | {"findings": ("Cough", "Broken rib")}
    assert counts["val"].to_dict() == {"films": 32, "patients": 16, "No Finding": 8, "Cough": 16, "Broken rib": 16}
    with pytest.raises(InputError, match=r"row 1: .* 'Cough.Broken rib' names an unknown"):
        write_set(tmp_path / "t", images(table), table, {"findings": ["Cough"]})


def change(table, row, column, value):
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda t: change(t, 4, "Finding Labels", "Mass|Cough"), "row 5: Finding Labels 'Mass.Cough' names an unknown"),
        (lambda t: change(t, 4, "Finding Labels", "Mass|No Finding"), "row 5: .* names an unknown finding"),
        (lambda t: change(t, 1, "split", "test"), "row 2: Patient ID '1' is in two splits"),
        (lambda t: change(t, 0, "split", "holdout"), "row 1: split 'holdout' must be one of"),
        (lambda t: change(t, 9, "Image Index", t["Image Index"][3]), "row 10: Image Index .* is there twice"),
        (lambda t: t.iloc[:-1], "111 rows for the 112 films"),
        (lambda t: t.drop(columns="Patient ID"), "no column 'Patient ID' among 'Image Index', 'Finding Labels', 's"),
        (lambda t: change(t.astype({"Patient ID": object}), 6, "Patient ID", ""), "row 7: Patient ID '' is empty"),
        (lambda t: change(t, 8, "Image Index", None), "row 9: Image Index .* is empty"),
        (lambda t: t.assign(**{"Finding Labels": "No Finding"}), "split 'train' has no finding with a positive and a"),
        (lambda t: t.assign(split=t["split"].replace("val", "train")), "split 'val' has no finding"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_the_row(spoil, problem, written):
    bad = spoil(small_table())
    with pytest.raises(InputError, match=f"t/labels.csv.*{problem}"):
        write_set(written.parent / "t", np.load(written / "images.npy"), bad, {})
    assert not (written.parent / "t").exists()
    bad.to_csv(written / "labels.csv", index=False)
    with pytest.raises(InputError, match=f"s/labels.csv.*{problem}"):
        load_set(written)


@pytest.mark.parametrize(
    ("name", "value"),
    [("findings", []), ("preset", "nih10k"), ("synthetic", "no"), ("patients", "yes")]
    + [("findings", ["A b", name]) for name in ("a_B", "", "?", "b ", "a,b", "a/b", "a\\b", "a\nb", "a|b", 61 * "b")]
    + [("findings", ["A b", name]) for name in ("No Finding", "average")],
)
def test_an_invalid_source_is_refused(name, value, written):
    with pytest.raises(InputError, match=f"^{name} must be "):
        write_set(written.parent / "t", images(small_table()), small_table(), {name: value})
    change_source(written, **{name: value})
    for read in (load_set, lambda folder: find_preset(folder.parent, folder.name)):
        with pytest.raises(InputError, match=f"source.json: {name} must be "):
            read(written)


def test_files_that_changed_or_are_missing_are_named(written):
    films = np.load(written / "images.npy")

    def refused(name, change, problem=""):
        content = (written / name).read_bytes()
        change(written / name)
        with pytest.raises(InputError, match=problem or name):
            load_set(written)
        (written / name).write_bytes(content)
        load_set(written)

    refused("images.npy", lambda path: np.save(path, films[::-1]), "source.json: its checksum does not fit")
    other = change(small_table(), 0, "Finding Labels", "Edema")
    refused("labels.csv", lambda path: other.to_csv(path, index=False), "source.json: its checksum does not fit")
    refused("images.npy", lambda path: np.save(path, films.astype(np.float32)), "images.npy must be uint8")
    missing = "s is no finished set: prepare the set first .*; sets there: none"
    for name, problem in {"images.npy": "", "labels.csv": "", "source.json": missing}.items():
        for content in ("", "{", "[]", "[" * 99999):
            refused(name, lambda path, content=content: path.write_text(content))
        refused(name, Path.unlink, problem)


@pytest.mark.parametrize("name, preset", [("phantom", "phantom"), ("chestxray14", "reference"), ("nih10k", "small")])
def test_the_preset_is_what_the_set_names_or_for_older_sets_follows_from_the_name(name, preset, written):
    folder = written.rename(written.with_name(name))
    assert find_preset(folder.parent, name) == load_set(folder).preset == "small"  # which it names
    notice = "synthetic, not for clinical use" if name == "phantom" else "not for clinical use"
    change_source(folder, **dict.fromkeys(DEFAULTS), notice=notice)
    data = open_set(folder.parent, name)
    assert find_preset(folder.parent, name) == data.preset == preset
    assert (data.findings, data.synthetic, data.patients) == (FINDINGS, name == "phantom", True)
    assert find_preset(folder.parent, "not there yet") == "phantom"


@pytest.mark.parametrize("name", ["phantom", "small", "reference"])
def test_no_set_but_the_phantom_is_called_like_a_preset(name, written):
    written.rename(written.with_name(name))
    with pytest.raises(InputError, match=f"{name} is called like the preset {name}, but is another set: rename its"):
        open_set(written.parent, name)


def test_films_that_are_no_square_bytes_of_the_whole_range_are_refused(tmp_path):
    films = images(small_table())
    form, values = r"must be uint8 \(N, H, W\) with H = W, not ", r"has only \d+ grey values, 0 to \d+: scale the films"
    wrong = [(films[:, :, :-1], form), (films / 255, form)]
    for scale, middle in ((255, 0), (127.5, 1), (60, 2), (16, 0)):  # scaled before they became bytes
        wrong.append(((films / scale - middle).astype(np.int64).astype(np.uint8), values))
    for spoiled, problem in wrong:
        with pytest.raises(InputError, match=f"images.npy {problem}"):
            write_set(tmp_path / "t", spoiled, small_table(), {})
    assert not (tmp_path / "t").exists()


# --- Batches on the device


@pytest.fixture
def data(small_set):
    return load_set(small_set / "noise")


def test_evaluation_films_are_the_whole_film_reduced(data):
    films = Films(data, "test", 64, CPU)
    batch = films.eval_batch(slice(0, 5))
    rows = data.rows("test")[:5]
    assert torch.allclose(grey(batch), torch.tensor(data.images[rows]).float(), atol=1e-3)
    small = Films(data, "test", 32, CPU).eval_batch(slice(0, 5))
    assert small.shape == (5, 3, 32, 32) and small.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(grey(small).mean((1, 2)), grey(batch).mean((1, 2)), atol=3)


@pytest.mark.parametrize(("crop", "border", "places"), [(32, 0, 33), (64, 4, 9)])
def test_training_films_are_crops_or_shifts_over_a_black_border_and_their_mirror_images(crop, border, places, data):
    films = Films(data, "train", crop, CPU)
    batch, labels = films.train_batch(torch.zeros(300, dtype=torch.long), torch.Generator().manual_seed(0))
    film = torch.tensor(data.images[data.rows("train")[0]]).float()
    windows = torch.nn.functional.pad(film, (border,) * 4).unfold(0, crop, 1).unfold(1, crop, 1)
    assert np.array_equal(labels[7], data.labels[data.rows("train")[0]])
    both = torch.stack([windows, windows.flip(3)])
    seen = [((both - film).abs().amax((3, 4)) < 0.01).nonzero() for film in grey(batch)]
    assert {len(found) for found in seen} == {1}
    mirrored, y, x = torch.cat(seen).T.tolist()
    assert 110 < sum(mirrored) < 190 and {*y} == {*x} == {*range(places)} and len({*zip(y, x, strict=True)}) > 75


def test_each_film_gets_its_own_mean_and_deviation_in_training_and_evaluation(data):
    data = replace(data, images=data.images.copy())
    data.images[data.rows("train")[1]] = 0
    films = Films(data, "train", 64, CPU, standardise=True)
    batch = films.eval_batch(torch.tensor([1, 4]))
    assert not batch[0].any() and torch.equal(batch[1, 0], batch[1, 2])
    assert batch[1].mean().abs() < 1e-5 and (batch[1, 0].std() - 1).abs() < 1e-5
    trained, _ = films.train_batch(torch.full((9,), 4), torch.Generator().manual_seed(0))
    pixel = films.pixels[4, 30, 30] / 255  # in the middle: in every window
    expected = (pixel - films.whole(slice(4, 5)).mean() / 255) / (films.whole(slice(4, 5)).std() / 255)
    assert all((film - expected).abs().min() < 1e-4 for film in trained[:, 0, 20:44, 20:44])
    plain = Films(data, "train", 64, CPU)
    assert torch.equal(plain.seen_by({"standardise": True}).eval_batch(slice(0, 5)), films.eval_batch(slice(0, 5)))
    assert torch.equal(films.seen_by({}).eval_batch(slice(0, 5)), plain.eval_batch(slice(0, 5)))  # an older file


def both_ways(data, index, **changes):
    """A plain and a changed training batch of the same crops and flips, grey values."""
    return [
        grey(Films(data, "train", 64, CPU, **how).train_batch(index, torch.Generator().manual_seed(0))[0])
        for how in ({}, changes)
    ]


def test_contrast_and_brightness_change_from_film_to_film(data):
    plain, changed = both_ways(data, torch.arange(48), contrast=0.3)
    mean = torch.tensor(data.images[data.rows("train")]).float().mean((1, 2))
    factor = (changed.flatten(1).std(1) / plain.flatten(1).std(1)).log()
    rest = changed - factor.exp()[:, None, None] * (plain - mean[:, None, None]) - mean[:, None, None]
    assert rest.std((1, 2)).max() < 0.01
    shift = rest.mean((1, 2)) / 255
    for drawn, limit in ((factor, 0.3), (shift, 0.15)):
        assert -limit < drawn.min() < -0.7 * limit and 0.7 * limit < drawn.max() < limit
    assert torch.corrcoef(torch.stack([factor, shift]))[0, 1].abs() < 0.4


def test_a_turned_film_is_what_its_matrix_says():
    film = torch.tensor(gaussian_filter(np.random.default_rng(0).uniform(0, 255, (40, 40)), 2)).float()
    drawn = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -0.5], [-0.4, 0.7, -0.3, 0.2]])
    for found, (angle, scale, x, y) in zip(turned(film.expand(4, 40, 40), 15, drawn), drawn.numpy(), strict=True):
        angle, scale = np.radians(15 * angle), np.exp(0.15 * scale)
        matrix = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # of (y, x)
        centre = np.full(2, 19.5)
        offset = centre + 0.06 * 40 * np.array([y, x]) - matrix @ centre
        expected = affine_transform(film.numpy(), matrix, offset, order=1, mode="grid-constant")
        assert np.abs(found.numpy() - expected).max() < 0.01


def test_what_is_drawn_does_not_depend_on_the_part_and_nothing_more_is_drawn_without_changes(data):
    index = torch.arange(20)
    for how, more in (({}, 0), ({"contrast": 0.3}, 2), ({"turn": 15}, 4), ({"contrast": 0.3, "turn": 15}, 6)):
        films, generator, by_hand = Films(data, "train", 32, CPU, **how), torch.Generator(), torch.Generator()
        whole, _ = films.train_batch(index, generator.manual_seed(0))
        part, labels = films.train_batch(index, torch.Generator().manual_seed(0), slice(5, 9))
        assert torch.equal(part, whole[5:9]) and torch.equal(labels, films.labels[5:9])
        by_hand.manual_seed(0)
        y, x, flip = (torch.randint(0, high, (20, 1), generator=by_hand) for high in (33, 33, 2))
        torch.rand(20, more, generator=by_hand)
        assert torch.equal(generator.get_state(), by_hand.get_state())
        if not more:  # the bytes of a plain batch
            windows = films.pixels.unfold(1, 32, 1).unfold(2, 32, 1)[index, y[:, 0], x[:, 0]]
            windows = torch.where(flip[:, :, None] == 1, windows.flip(2), windows)
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            assert torch.equal(whole, (windows[:, None].float() / 255 - mean) / std)


def test_a_crop_is_a_multiple_of_32_and_at_most_the_film(data):
    assert [Films(data, "train", crop, CPU).crop for crop in (32, 64, 0, 96, 224)] == [32, 64, 64, 64, 64]
    assert [crop_of(100, crop) for crop in (64, 0, 224)] == [64, 96, 96]
    for size, crop, problem in (
        (64, 48, "crop 48 must be a multiple of 32, or 0 for the whole film"),
        (256, 96, "crop 96 is less than half of the films' 256 pixels"),
        (28, 0, "films of 28 pixels must have at least 32"),
    ):
        with pytest.raises(InputError, match=problem):
            crop_of(size, crop)


def test_the_sampler_shuffles_anew_each_pass_and_drops_incomplete_batches(data):
    sampler = Sampler(Films(data, "train", 32, CPU), 20, torch.Generator().manual_seed(0))
    assert len(sampler) == 2  # of 20; 8 of the 48 films are left over
    passes = []
    for _ in range(3):
        passes.append([k for _ in range(len(sampler)) if sampler.next() for k in sampler.index.tolist()])
        assert len({*passes[-1]}) == 40
    assert passes[0] != passes[1] != passes[2]


def test_batches_that_leave_batch_norm_one_value_per_channel_are_refused(data, monkeypatch):
    small, large = (Films(data, "train", crop, CPU) for crop in (32, 64))
    Sampler(large, 1, torch.Generator())
    Sampler(small, 2, torch.Generator())
    message = "with crop 32 leaves BatchNorm one value per channel: raise --batch-size or --crop"
    for number in (1, 2):
        monkeypatch.setattr(ranks, "count", lambda number=number: number)
        with pytest.raises(InputError, match=f"batch size {number} on {number} ranks {message}"):
            Sampler(small, number, torch.Generator())
