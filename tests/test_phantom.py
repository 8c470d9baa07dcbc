"""The phantom: same seed same bytes, patients in one split only, enough films per finding, signs in place."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from data import prepare_phantom as phantom
from dataset import FINDINGS, load_set, open_set, set_checksum

FEW = {"train": 20, "val": 10, "test": 10}
# Of the set that prepare makes with these films, and of the whole one. Weights files name the set by its checksum, and
# NumPy may change choice, beta and shuffle from one version to the next.
CHECKSUM_OF_FEW = "84418188fec507686be0b1982a167e9616b2f6c4296fc1ba3967233e855369ba"
CHECKSUM = "da526913362ac962f3be342cb76ec55e4290bb80cfc2e251fd904da36d8f5b38"
PATIENTS = range(1, 7)


def change(finding, patient, severity=1.0):
    """What an obvious sign does to a film of this patient, in grey values (64, 64)."""
    without = phantom.render([], 0, patient, 0).astype(int)
    return phantom.render([finding], 0, patient, 0, severity=severity).astype(int) - without


@pytest.fixture
def main(monkeypatch):
    """Calls the script with these arguments; it draws FEW films."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_phantom.py", *map(str, arguments)])
        phantom.main()

    monkeypatch.setattr(phantom.prepare, "__defaults__", (phantom.SEED, FEW))
    return call


@pytest.mark.long  # 20 s
def test_first_use_makes_the_whole_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_set("data", "phantom").checksum == CHECKSUM
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_seed_gives_the_bytes_of_every_version_and_is_left_as_it_is(tmp_path, main, capsys, one_line):
    main(tmp_path / "few")
    data = load_set(tmp_path / "few")
    assert data.checksum == CHECKSUM_OF_FEW and (data.preset, data.synthetic) == ("phantom", True)
    main(tmp_path / "few")
    assert "left as it is" in capsys.readouterr().out
    main(tmp_path / "seven", "--seed", 7)
    seven = set_checksum(tmp_path / "seven")
    phantom.prepare(tmp_path / "same", seed=7)
    assert seven == set_checksum(tmp_path / "same") and seven != CHECKSUM_OF_FEW
    for seed, problem in ((8, "is a set, but no phantom of seed 8: name another folder"), (-1, "must be at least 0")):
        assert problem in one_line(main, tmp_path / "seven", "--seed", seed)
    assert seven == set_checksum(tmp_path / "seven")


def test_two_scripts_at_once_draw_it_once(tmp_path, main, monkeypatch, capsys):
    second, calls, prepare = threading.Thread(target=phantom.main), [], phantom.prepare

    def begin(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            second.start()
            second.join(timeout=1)  # if it were not locked out, it would be through by now
        return prepare(*arguments)

    monkeypatch.setattr(phantom, "prepare", begin)
    main(tmp_path / "phantom")
    second.join()
    said = capsys.readouterr().out
    assert calls == [(tmp_path / "phantom", 1)] and "left as it is" in said
    assert "phantom: another process works there (one stopped with Ctrl-Z goes on" in said and ": waiting for" in said


def test_a_process_that_was_ended_while_it_drew_is_named(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, -9))
    line = "prepare_phantom.py was ended by signal 9, as by a full memory: repeat the command"
    assert line in one_line(open_set, tmp_path, "phantom", status=1)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("images.npy", "mine", "has films in it, but is no finished set"),
        ("source.json", '{"seed": 1, "what": "my films"}', "is a set, but no phantom"),
        ("source.json", "{", "source.json: "),
    ],
)
def test_films_of_others_are_left_as_they_are(name, text, problem, tmp_path, main, one_line):
    (tmp_path / name).write_text(text)
    assert problem in one_line(main, tmp_path)
    assert (tmp_path / name).read_text() == text


def test_the_script_works_by_its_path_and_names_a_place_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, phantom.__file__, "file/phantom"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: file/phantom: "), done.stderr


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
    few = phantom.draw_labels(FEW, seed)
    assert few["Finding Labels"].str.get_dummies("|").groupby(few["split"]).sum()[list(FINDINGS)].min(axis=None) >= 1


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_sign_changes_the_chest_and_nothing_else_and_its_severity_shows(finding):
    faint, obvious = (np.abs([change(finding, patient, severity) for patient in PATIENTS]) for severity in (0.0, 1.0))
    assert (obvious > 8).any(axis=(1, 2)).all() and obvious.sum() > 1.3 * faint.sum()
    # Noise, exposure, collimation and foreign objects are those of the film without the finding.
    assert not obvious[:, :, :3].any() and not obvious[:, :, -3:].any()


@pytest.mark.parametrize(
    ("finding", "where", "fits"),  # fits: the mean change where(chest, side), on the side with less and with more of it
    [
        ("Pneumothorax", lambda c, side: c.lung[side] * (c.depth[side] < 0.05), lambda a, b: a < -4 and abs(b) < 1),
        ("Effusion", lambda c, side: c.lung[side] * (c.y > c.base[side] - 0.1), lambda a, b: b > 15),
        ("Cardiomegaly", lambda c, _: (np.abs(c.x) < 0.5) & (c.y > 0) & (c.y < 0.4), lambda a, b: a > 5),
        ("Emphysema", lambda c, side: c.lung[side] * (c.y < 0.2), lambda a, b: b < -5),
        ("Edema", lambda c, side: c.lung[side] * (np.abs(c.y) < 0.2), lambda a, b: a > 5),
        ("Hernia", lambda c, _: np.abs(c.x) > 0.45, lambda a, b: abs(a) < 0.1),
    ],
)
def test_a_sign_lies_where_radiologists_see_it(finding, where, fits):
    for patient in PATIENTS:
        chest = phantom.draw_patient(phantom.stream(0, 1, patient))  # without findings, on the film's own pixels
        phantom.pose(chest, phantom.stream(0, 1, patient, 0), phantom.SIZE)
        phantom.fill_lungs(chest)
        difference = change(finding, patient)
        assert fits(*sorted(difference[where(chest, side) > 0.5].mean() for side in (-1, 1))), patient


def test_a_mass_is_larger_than_a_nodule():
    mass, nodule = (sum((change(name, p) > 8).sum() for p in PATIENTS) for name in ("Mass", "Nodule"))
    assert mass > 1.5 * nodule > 0
