"""Preparing ChestMNIST: files of its form, made small, from a server on loopback or from disk."""

import hashlib
import io
import json
import shutil
import tracemalloc
import zipfile
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data import fetch_chestxray14 as fetch
from data import prepare_chestmnist as chestmnist
from dataset import FINDINGS, load_set
from tests.films import bytes_of, corrupt, same_set
from tests.loopback import serve

FILMS = {"train": 40, "val": 20, "test": 25}
NAME = "chestmnist_64.npz"
ASKED = f"/{NAME}?download=1"


def arrays(size=64, films=FILMS):
    """The six arrays of a ChestMNIST of noise."""
    made = {}
    for k, (split, count) in enumerate(films.items()):
        rng = np.random.default_rng(k)
        made[f"{split}_labels"] = (rng.random((count, len(FINDINGS))) < 0.3).astype(np.uint8)
        made[f"{split}_images"] = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
    return made


def packed(made, save=np.savez_compressed):
    file = io.BytesIO()
    save(file, **made)
    return file.getvalue()


Site = namedtuple("Site", "server out npz")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server with a small ChestMNIST, which the script takes for the published one; out/ and own.npz for a test."""
    made = {size: packed(arrays(size)) for size in (28, 64)}
    names = {28: "chestmnist.npz", 64: NAME}
    files = {size: (names[size], hashlib.md5(made[size]).hexdigest(), len(made[size]) / 1e9) for size in made}
    found = {split: tuple(arrays()[f"{split}_labels"].sum(0, dtype=int)) for split in ("train", "test")}
    with serve() as server:
        server.files = {f"/{names[size]}?download=1": made[size] for size in made}
        facts = {"ADDRESS": f"{server.url}/", "FILES": files, "FILMS": FILMS, "POSITIVES": found, "ROWS": 16}
        for module, constants in ((chestmnist, facts), (fetch, {"WAIT": 0.001, "TRIES": 3, "BLOCK": 1000})):
            for name, value in constants.items():
                monkeypatch.setattr(module, name, value)
        yield Site(server, tmp_path / "out", tmp_path / "own.npz")


def run(site, *options):
    return chestmnist.main([str(option) for option in ("--out", site.out, *options)])


def left_in(out):
    """The names of all that is in `out`, but for what a download may leave."""
    return {path.name for path in out.rglob("*")} - {"chestmnist_files", "lock", NAME, f"{NAME}.part"}


@pytest.mark.parametrize(("size", "side"), [(64, 64), (28, 32)])
def test_one_command_downloads_all_films_and_labels(size, side, site, capsys):
    assert run(site, "--size", size) == 0
    said, made = capsys.readouterr(), arrays(size)
    assert said.err == "" and said.out.endswith(f"chestmnist_{size} is ready\n") and "MD5" not in said.out
    data = load_set(site.out / f"chestmnist_{size}")
    films = np.concatenate([made[f"{split}_images"] for split in FILMS])
    wanted = [np.asarray(Image.fromarray(film).resize((side, side), chestmnist.FILTER)) for film in films]
    assert (data.images == np.stack(wanted)).all()
    assert (data.labels == np.concatenate([made[f"{split}_labels"] for split in FILMS])).all()
    assert data.table["split"].to_list() == [split for split, count in FILMS.items() for _ in range(count)]
    assert data.table["Image Index"][41] == "val_00001" and data.table["Patient ID"].is_unique
    assert (data.patients, data.preset, data.synthetic) == (False, "small", False)
    source = json.loads((site.out / data.name / "source.json").read_text())
    assert source["size"] == side and source["enlarged"] == (size < side) and source["origin"]["size"] == size
    assert left_in(site.out) - {"chestmnist.npz"} == {data.name, "images.npy", "labels.csv", "source.json"}
    asked = len(site.server.log)
    assert run(site, "--size", size) == run(site, "--size", size, "--name", "other") == 0  # the file is there
    assert "is left as it is" in capsys.readouterr().out and len(site.server.log) == asked
    assert bytes_of(site.out / "other") == bytes_of(site.out / data.name)


def test_a_download_goes_on_where_it_broke_off_also_in_the_next_call(site, one_line):
    content = site.server.files[ASKED]
    site.server.cuts[ASKED] += [5000, 0, 70000, 0, 0, 0]
    site.server.status[ASKED] += [200, 503]
    assert "by hand and give it with --npz" in one_line(run, site)  # TRIES in a row brought nothing more
    assert left_in(site.out) == set() and not site.server.cuts[ASKED]
    assert run(site) == 0
    assert site.server.log[-1][1:] == ("bytes=74998-", len(content) - 74998)
    assert (site.out / "chestmnist_files" / NAME).read_bytes() == content


def lose_beginning(server):
    server.ranges, server.cuts[ASKED] = False, [5000] * 99


LASTING = {
    "lost": (lambda server: server.files.clear(), ("404", "by hand", "--npz")),
    "beginning only": (lose_beginning, ("IncompleteRead", "by hand", "--npz")),
    "other file": (lambda server: server.files.update({ASKED: b"<html>"}), ("sent a file with the MD5", "--npz")),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_download_that_fails_is_named_with_its_address(fault, site, one_line):
    whole, (change, words) = dict(site.server.files), LASTING[fault]
    change(site.server)
    said = one_line(run, site)
    assert all(word in said for word in (site.server.url, NAME, *words)), said
    assert left_in(site.out) == set()
    site.server.files, site.server.cuts[ASKED] = whole, []
    assert run(site) == 0


def test_a_full_disk_is_said_before_the_download(site, monkeypatch, one_line):
    need = len(site.server.files[ASKED]) + sum(FILMS.values()) * 64**2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(need - 1))
    assert "GB" in one_line(run, site) and not site.server.log
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(need))
    assert run(site) == 0


def test_a_file_that_is_packed_in_another_way_is_taken_with_a_word(site, capsys):
    made = arrays()
    site.npz.write_bytes(packed(made | {"train_labels": made["train_labels"].astype(np.int64)}, np.savez))
    assert run(site, "--npz", site.npz) == 0
    assert "own.npz has the MD5" in capsys.readouterr().out and not site.server.log
    assert run(site, "--name", "other") == 0 and same_set(site.out / "chestmnist_64", site.out / "other")


def changed(**changes):
    """The bytes of ChestMNIST with arrays changed, or left out where a change is None."""
    made = arrays()
    made |= {name: change and change(made[name]) for name, change in changes.items()}
    return packed({name: array for name, array in made.items() if array is not None})


def one_more(labels):
    labels[0, 3] ^= 1
    return labels


def resized(change):
    """The bytes of ChestMNIST with other bytes of an array, whose header stays as it is."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed(arrays()))) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == "val_images.npy" else old.read(name))
    return file.getvalue()


BAD = {  # words of the line, and what makes the file
    "(9, 28, 28, 3)": lambda: packed(arrays(28) | {"train_images": np.zeros((9, 28, 28, 3), np.uint8)}),  # PathMNIST
    "train_labels is uint8 (40, 1)": lambda: changed(train_labels=lambda labels: labels[:, :1]),  # BreastMNIST
    "no item named 'val_labels.npy'": lambda: changed(val_labels=None),
    "test_images is float64 (25, 64, 64)": lambda: changed(test_images=lambda films: films / 255),
    "--size the size of its films": lambda: packed(arrays(28)),
    "val_images is uint8 (20, 64, 64), and": lambda: changed(val_images=np.asfortranarray),
    "val_labels has other values than 0 and 1": lambda: changed(val_labels=lambda labels: 2 * labels),
    f"films with {FINDINGS[3]}, and ChestMNIST's": lambda: changed(train_labels=one_more),
    "val_labels is object": lambda: changed(val_labels=lambda labels: labels.astype(object)),
    "not a zip file": lambda: b"<html>" * 1000,
    "cannot be read (Bad": lambda: packed(arrays(), np.savez).replace(b"\x93NUMPY", b"\x93NUMPI"),
    "val_images.npy": lambda: corrupt(packed(arrays()), "val_images.npy"),
    "cannot reshape": lambda: resized(lambda content: content[:-64]),
    "val_images is longer than (20, 64, 64)": lambda: resized(lambda content: content + b"x"),
    "cannot be read": lambda: packed(arrays())[:5000] + packed(arrays())[99000:],
    "is no file": lambda: None,
}


@pytest.mark.parametrize("words", BAD)
def test_a_wrong_file_is_named_and_leaves_nothing(words, site, one_line):
    if content := BAD[words]():
        site.npz.write_bytes(content)
    said = one_line(run, site, "--npz", site.npz)
    assert "own.npz" in said and words in said and "give --npz" in said, said
    assert not site.out.exists() or left_in(site.out) == set()


def names_table():
    """MedMNIST's table: two films a patient, the val films' patients after those of train, and so on."""
    rows = [(split, row) for split, count in FILMS.items() for row in range(count)]
    first = {"train": 1, "val": 101, "test": 201}
    ids = [f"{first[split] + row // 2:08d}_{row % 2:03d}" for split, row in rows]
    return pd.DataFrame(rows, columns=["split", "index"]).assign(image_id=ids)


def test_patients_come_from_the_table_of_names_in_any_order(site):
    table = names_table()
    table.sample(frac=1, random_state=0).to_csv(site.npz, index=False)
    assert run(site, "--names", site.npz) == 0
    data = load_set(site.out / "chestmnist_64")
    assert data.patients and data.table["Image Index"].to_list() == [f"{name}.png" for name in table["image_id"]]
    assert data.table["Patient ID"].to_list() == [int(name[:8]) for name in table["image_id"]]


BAD_NAMES = {  # words of the line, and what is done to the table
    "has no 'index'": lambda table: table.drop(columns="index"),
    "not one row for each of ChestMNIST's 85 films": lambda table: table.iloc[1:],
    "has not one row for": lambda table: pd.concat([table, table[:1]]),
    "one row for each of": lambda table: table.replace({"index": {7: 8}}),
    "names that are not NIH's for 1 film (p3)": lambda table: table.replace("00000003_001", "p3"),
    "more than one row for 1 film (00000003_000.": lambda table: table.replace("00000003_001", "00000003_000"),
    "a patient in two splits for 1 film (00000001_0": lambda table: table.replace("00000101_000", "00000001_009"),
}


@pytest.mark.parametrize("words", BAD_NAMES)
def test_a_table_of_names_that_does_not_fit_is_refused_before_the_download(words, site, one_line):
    BAD_NAMES[words](names_table()).to_csv(site.npz, index=False)
    said = one_line(run, site, "--names", site.npz)
    assert "own.npz" in said and words in said and "give --names" in said, said
    assert not site.server.log and not site.out.exists()


def test_films_are_a_stream(site, monkeypatch):
    films = {"train": 600, "val": 20, "test": 25}  # 10 MB
    monkeypatch.setattr(chestmnist, "FILMS", films)
    monkeypatch.setattr(chestmnist, "POSITIVES", {})
    monkeypatch.setattr(chestmnist, "FILES", {128: ("x.npz", "", 0)})
    site.npz.write_bytes(packed(arrays(128, films)))
    tracemalloc.start()
    assert run(site, "--npz", site.npz, "--size", 128) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20
