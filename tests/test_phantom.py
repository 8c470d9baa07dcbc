"""The phantom: same seed same bytes, patients in one split only, enough films per finding, signs in place."""

import json
import sys
import threading

import numpy as np
import pytest

from data import prepare_phantom as phantom
from dataset import FINDINGS, open_set, set_checksum

FEW = {"train": 20, "val": 10, "test": 10}
# Of the set that prepare makes with these films, and of the whole one. Weights files name the set by its checksum, and
# NumPy may change choice, beta and shuffle from one version to the next.
CHECKSUM_OF_FEW = "84418188fec507686be0b1982a167e9616b2f6c4296fc1ba3967233e855369ba"
CHECKSUM = "da526913362ac962f3be342cb76ec55e4290bb80cfc2e251fd904da36d8f5b38"
PATIENTS = range(1, 7)


def bare_chest(patient):
    """The chest of this patient's film 0 without findings, with its masks on the film's own pixels."""
    chest = phantom.draw_patient(phantom.stream(0, 1, patient))
    phantom.pose(chest, phantom.stream(0, 1, patient, 0), phantom.SIZE)
    phantom.fill_lungs(chest)
    return chest


def change(finding, patient, severity=1.0):
    """What an obvious sign does to a film of this patient, in grey values (64, 64)."""
    without = phantom.render([], 0, patient, 0).astype(int)
    return phantom.render([finding], 0, patient, 0, severity=severity).astype(int) - without


def mean_where(difference, mask):
    return difference[mask > 0.5].mean()


def by_side(finding, region):
    """Mean change within region(chest, side) on both sides, shape (patients, 2)."""
    rows = []
    for patient in PATIENTS:
        chest, difference = bare_chest(patient), change(finding, patient)
        masks = [chest.lung[side] * region(chest, side) for side in (-1, 1)]
        rows.append([mean_where(difference, mask) for mask in masks])
    return np.array(rows)


def test_the_bytes_are_those_of_every_version(tmp_path):
    phantom.prepare(tmp_path / "few", films=FEW)
    assert set_checksum(tmp_path / "few") == CHECKSUM_OF_FEW


@pytest.mark.long  # 20 s
def test_first_use_makes_the_whole_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_set("data", "phantom").checksum == CHECKSUM
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_two_scripts_at_once_draw_it_once(tmp_path, monkeypatch, capsys):
    second, calls = threading.Thread(target=phantom.main), []

    def prepare(folder, seed):
        calls.append((folder, seed))
        if len(calls) == 1:
            second.start()
            second.join(timeout=1)  # not locked out, it would be through by now
        (folder / "source.json").write_text(json.dumps({"what": phantom.WHAT, "seed": seed}))
        return {split: {} for split in FEW}

    monkeypatch.setattr(phantom, "prepare", prepare)
    monkeypatch.setattr(phantom, "format_counts", str)
    monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", str(tmp_path / "phantom")])
    phantom.main()
    second.join()
    assert calls == [(tmp_path / "phantom", 1)] and "left as it is" in capsys.readouterr().out


def test_the_seed_is_an_option_and_a_set_of_another_seed_is_left_as_it_is(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(phantom.prepare, "__defaults__", (phantom.SEED, FEW))
    monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", str(tmp_path / "seven"), "--seed", "7"])
    phantom.main()
    checksum = set_checksum(tmp_path / "seven")
    phantom.prepare(tmp_path / "same", seed=7)
    assert checksum == set_checksum(tmp_path / "same") and checksum != CHECKSUM_OF_FEW
    for seed, problem in (("8", "is a set of seed 7: name another folder for seed 8"), ("-1", "must be at least 0")):
        monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", str(tmp_path / "seven"), "--seed", seed])
        assert problem in one_line(phantom.main)
    assert checksum == set_checksum(tmp_path / "seven")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("images.npy", "mine", "has films in it, but is no finished set"),
        ("source.json", '{"seed": 1, "what": "my films"}', "is not a phantom's, or damaged"),
        ("source.json", "{", "is not a phantom's, or damaged"),
    ],
)
def test_films_of_others_are_left_as_they_are(name, text, problem, tmp_path, monkeypatch, one_line):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", str(tmp_path / "mine")])
    assert problem in one_line(phantom.main)
    assert (tmp_path / "mine" / name).read_text() == text


def test_a_place_that_cannot_be_used_is_named(tmp_path, monkeypatch, one_line):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "phantom"):
        monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", str(place)])
        assert f"{tmp_path}/file" in one_line(phantom.main)


def test_a_film_does_not_depend_on_the_films_before_it():
    later = phantom.render(["Mass"], 0, 7, 2)
    phantom.render(["Edema", "Nodule"], 0, 6, 0)
    assert np.array_equal(later, phantom.render(["Mass"], 0, 7, 2))
    assert not np.array_equal(phantom.render([], 0, 7, 2), phantom.render([], 0, 7, 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_draw_of_labels(seed):
    table = phantom.draw_labels(phantom.FILMS, seed)
    assert table["split"].value_counts().to_dict() == phantom.FILMS
    assert table["Image Index"].is_unique
    assert (table.groupby("Patient ID")["split"].nunique() == 1).all()
    assert 1 < table.groupby("Patient ID").size().max() <= len(phantom.FILMS_PER_PATIENT)
    counts = table["Finding Labels"].str.get_dummies("|").groupby(table["split"]).sum()
    assert counts.loc["train", list(FINDINGS)].min() >= 100
    assert counts.loc["test", list(FINDINGS)].min() >= 40
    assert 0.33 <= counts.loc["train", "No Finding"] / phantom.FILMS["train"] <= 0.5


def test_tiny_sets_hold_every_finding_in_every_split():
    table = phantom.draw_labels(FEW, 0)
    counts = table["Finding Labels"].str.get_dummies("|").groupby(table["split"]).sum()
    assert counts[list(FINDINGS)].min().min() >= 1


@pytest.mark.parametrize("finding", FINDINGS)
def test_sign_changes_the_chest_and_nothing_else(finding):
    differences = np.array([change(finding, patient) for patient in PATIENTS])
    assert (np.abs(differences) > 8).any(axis=(1, 2)).all(), "an obvious sign must show on every film"
    # Noise, exposure, collimation and foreign objects are those of the film without the finding.
    assert not differences[:, :, :3].any()
    assert not differences[:, :, -3:].any()


def test_pneumothorax_is_darker_along_the_wall_of_one_lung():
    sides = by_side("Pneumothorax", lambda chest, side: chest.depth[side] < 0.05)
    assert (sides.min(1) < -4).all()
    assert (np.abs(sides).min(1) < 1).all()


def test_effusion_is_brighter_above_the_diaphragm():
    low = by_side("Effusion", lambda chest, side: chest.y > chest.base[side] - 0.1)
    high = by_side("Effusion", lambda chest, side: chest.y < chest.base[side] - 0.7)
    assert (low.max(1) > 15).all()
    assert (np.abs(high) < 1).all()


def test_cardiomegaly_is_brighter_beside_the_heart():
    for patient in PATIENTS:
        chest, difference = bare_chest(patient), change("Cardiomegaly", patient)
        beside = (np.abs(chest.x) < 0.5) & (chest.y > 0) & (chest.y < 0.4)
        assert mean_where(difference, beside) > 5
        assert np.abs(difference[(chest.y < -0.5)]).max() <= 1


def test_emphysema_darkens_and_edema_brightens_both_lungs():
    assert (by_side("Emphysema", lambda chest, side: chest.y < 0.2) < -5).all()
    assert (by_side("Edema", lambda chest, side: np.abs(chest.y) < 0.2) > 5).all()


def test_fibrosis_lies_at_the_bases_and_hernia_behind_the_heart():
    for patient in PATIENTS:
        chest = bare_chest(patient)
        assert np.abs(change("Fibrosis", patient)[chest.y < -0.45]).max() <= 1
        assert np.abs(change("Hernia", patient)[np.abs(chest.x) > 0.45]).max() <= 1


def test_a_mass_is_larger_than_a_nodule_and_severity_shows():
    area = {name: np.mean([(change(name, p) > 8).sum() for p in PATIENTS]) for name in ("Mass", "Nodule")}
    assert area["Mass"] > 1.5 * area["Nodule"] > 0
    for finding in FINDINGS:
        size = [np.mean([np.abs(change(finding, p, s)).sum() for p in (1, 2, 3)]) for s in (0.0, 1.0)]
        assert size[1] > 1.3 * size[0], finding
