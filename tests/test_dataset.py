"""A prepared set on disk, and batches of it."""

import json

import numpy as np
import pytest
import torch

from dataset import (
    FINDINGS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Films,
    Sampler,
    encode_findings,
    load_set,
    open_set,
    set_checksum,
    write_set,
)
from support import ranks
from tests.conftest import FILMS, small_table

CPU = torch.device("cpu")


def images(table, size=64):
    return np.random.default_rng(1).integers(0, 256, (len(table), size, size), dtype=np.uint8)


def grey(films):
    """Grey values 0..255 back from normalised films, (B, H, W)."""
    assert torch.allclose(films[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0], films[:, 2] * 0.225 + 0.406, atol=1e-6)
    return (films[:, 1] * IMAGENET_STD[1] + IMAGENET_MEAN[1]) * 255


def test_a_set_reads_back_as_written(tmp_path):
    table = small_table()
    films = images(table)
    counts = write_set(tmp_path / "s", films, table, {"origin": "here", "seed": 3})
    data = load_set(tmp_path / "s")
    assert np.array_equal(data.images, films) and isinstance(data.images, np.memmap)
    assert data.table.equals(table)
    assert data.labels.sum() == sum(text.count("|") + 1 for text in table["Finding Labels"] if text != "No Finding")
    source = json.loads((tmp_path / "s" / "source.json").read_text())
    assert source["counts"] == counts and source["seed"] == 3 and source["checksum"] == data.checksum
    assert {split: counts[split]["films"] for split in FILMS} == FILMS
    assert counts["train"]["Hernia"] == data.labels[data.rows("train"), FINDINGS.index("Hernia")].sum()
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["images.npy", "labels.csv", "source.json"]


def test_labels_are_encoded_in_the_order_of_the_findings():
    labels = encode_findings(["Atelectasis|Hernia", "No Finding"])
    assert labels[0].nonzero()[0].tolist() == [0, 13] and not labels[1].any()


def no_positive_test_film(table):
    table.loc[table["split"] == "test", "Finding Labels"] = "No Finding"
    return table


def change(table, row, column, value):
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda t: change(t, 4, "Finding Labels", "Mass|Cough"), "row 5: unknown finding 'Cough'"),
        (lambda t: change(t, 1, "split", "test"), "row 2: patient 1 is in test and in train"),
        (lambda t: change(t, 0, "split", "holdout"), "row 1: split 'holdout' must be one of"),
        (lambda t: change(t, 9, "Image Index", t["Image Index"][3]), "row 10: Image Index .* is there twice"),
        (lambda t: t.iloc[:-1], "111 rows for the 112 films"),
        (
            lambda t: t.drop(columns="Patient ID"),
            "no column 'Patient ID' among 'Image Index', 'Finding Labels', 'split'",
        ),
        (lambda t: change(t.astype({"Patient ID": object}), 6, "Patient ID", ""), "row 7: no Patient ID"),
        (lambda t: change(t.astype({"Patient ID": object}), 6, "Patient ID", None), "row 7: no Patient ID"),
        (lambda t: change(t, 8, "Image Index", None), "row 9: no Image Index"),
        (no_positive_test_film, "split 'test' has no finding with a positive and a negative film"),
        (lambda t: t.assign(split=t["split"].replace("val", "train")), "split 'val' has no film"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_the_row(spoil, problem, tmp_path):
    table = small_table()
    films = images(table)
    write_set(tmp_path / "s", films, table, {})
    bad = spoil(table.copy())
    with pytest.raises(ValueError, match=problem):
        load_spoiled(tmp_path / "s", bad)
    if "Patient ID" in bad:
        with pytest.raises(ValueError, match=problem):
            write_set(tmp_path / "t", films, bad, {})
        assert not (tmp_path / "t" / "source.json").exists()


def load_spoiled(folder, table):
    table.to_csv(folder / "labels.csv", index=False)
    return load_set(folder)


def test_files_that_changed_or_are_missing_are_named(tmp_path):
    table = small_table()
    write_set(tmp_path / "s", images(table), table, {})
    films = np.load(tmp_path / "s" / "images.npy")
    np.save(tmp_path / "s" / "images.npy", films[::-1])
    with pytest.raises(ValueError, match="checksum does not fit"):
        load_set(tmp_path / "s")
    write_set(tmp_path / "s", films, table, {})
    change(table, 0, "Finding Labels", "Edema").to_csv(tmp_path / "s" / "labels.csv", index=False)
    with pytest.raises(ValueError, match="checksum does not fit"):
        load_set(tmp_path / "s")
    np.save(tmp_path / "s" / "images.npy", films.astype(np.float32))
    with pytest.raises(ValueError, match=r"images\.npy: must be uint8"):
        load_set(tmp_path / "s")
    (tmp_path / "s" / "images.npy").unlink()
    with pytest.raises(ValueError, match=r"images\.npy is missing: prepare the set first"):
        load_set(tmp_path / "s")
    write_set(tmp_path / "u", images(table), table, {})
    with pytest.raises(ValueError, match=r"other.*is missing: .*; sets there: s, u$"):
        open_set(tmp_path, "other")


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    table = small_table()
    write_set(tmp_path / "s", images(table), table, {})
    text = table.to_csv(index=False, sep=";", lineterminator="\r\n", encoding="utf-16")
    (tmp_path / "s" / "labels.csv").write_bytes(text.encode("utf-16"))
    record = json.loads((tmp_path / "s" / "source.json").read_text())
    record["checksum"] = set_checksum(tmp_path / "s")
    (tmp_path / "s" / "source.json").write_text(json.dumps(record))
    read = load_set(tmp_path / "s")
    assert read.table["Patient ID"].to_list() == table["Patient ID"].to_list()  # numbers, in the order of numbers
    assert np.array_equal(read.labels, encode_findings(table["Finding Labels"]))


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


def test_training_films_are_crops_and_mirrored_crops(data):
    films = Films(data, "train", 32, CPU)
    generator = torch.Generator().manual_seed(0)
    batch, labels = films.train_batch(torch.zeros(200, dtype=torch.long), generator)
    source = torch.tensor(data.images[data.rows("train")[0]]).float()
    windows = source.unfold(0, 32, 1).unfold(1, 32, 1)
    assert np.array_equal(labels[7], data.labels[data.rows("train")[0]])
    seen, mirrored = set(), 0
    for film in grey(batch):
        plain = (windows - film).abs().amax((2, 3)) < 0.01
        flipped = (windows - film.flip(1)).abs().amax((2, 3)) < 0.01
        assert plain.sum() + flipped.sum() == 1
        seen.add(tuple((plain | flipped).nonzero()[0].tolist()))
        mirrored += int(flipped.any())
    assert 70 < mirrored < 130
    assert len(seen) > 150 and max(y for y, _ in seen) > 29 and max(x for _, x in seen) > 29


def test_where_the_crop_is_the_film_training_shifts_over_a_black_border(data):
    films = Films(data, "train", 64, CPU)
    batch, _ = films.train_batch(torch.zeros(100, dtype=torch.long), torch.Generator().manual_seed(0))
    source = torch.tensor(data.images[data.rows("train")[0]]).float()
    padded = torch.nn.functional.pad(source, (4,) * 4)
    windows = padded.unfold(0, 64, 1).unfold(1, 64, 1)
    offsets = set()
    for film in grey(batch):
        match = [(windows - f).abs().amax((2, 3)) < 0.01 for f in (film, film.flip(1))]
        assert match[0].sum() + match[1].sum() == 1
        offsets.add(tuple((match[0] | match[1]).nonzero()[0].tolist()))
    assert {y for y, _ in offsets} == set(range(9)) == {x for _, x in offsets}


def test_a_crop_far_below_the_films_size_is_refused(tmp_path):
    table = small_table()
    write_set(tmp_path / "s", images(table, size=96), table, {})
    with pytest.raises(ValueError, match="crop 32 is less than half of the films' 96 pixels"):
        Films(load_set(tmp_path / "s"), "train", 32, CPU)


def test_films_that_are_not_square_are_refused(data):
    data.images = data.images[:, :, :-1]
    with pytest.raises(ValueError, match="films of 64 × 63 pixels must be square"):
        Films(data, "train", 32, CPU)


@pytest.mark.parametrize("crop", [0, 48, 96, -32])
def test_bad_crops_are_refused_in_one_line(data, crop):
    with pytest.raises(ValueError, match=f"crop {crop} must be a multiple of 32 and at most the films' 64 pixels"):
        Films(data, "train", crop, CPU)


def test_the_sampler_shuffles_anew_each_pass_and_drops_incomplete_batches(data):
    sampler = Sampler(Films(data, "train", 32, CPU), 20, torch.Generator().manual_seed(0))
    assert len(sampler) == 2  # of 20; 8 of the 48 films are left over
    passes = []
    for _ in range(3):
        indices = []
        for _ in range(len(sampler)):
            sampler.next()
            indices += sampler.order[(sampler.position - 1) * 20 : sampler.position * 20].tolist()
        assert len(set(indices)) == 40
        passes.append(indices)
    assert passes[0] != passes[1] != passes[2]


def test_batches_that_leave_batch_norm_one_value_per_channel_are_refused(data, monkeypatch):
    Sampler(Films(data, "train", 64, CPU), 1, torch.Generator())
    Sampler(Films(data, "train", 32, CPU), 2, torch.Generator())
    message = "with crop 32 leaves BatchNorm one value per channel: raise --batch-size or --crop"
    with pytest.raises(ValueError, match=f"batch size 1 on 1 ranks {message}"):
        Sampler(Films(data, "train", 32, CPU), 1, torch.Generator())
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(ValueError, match=f"batch size 2 on 2 ranks {message}"):
        Sampler(Films(data, "train", 32, CPU), 2, torch.Generator())
