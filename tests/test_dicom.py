"""DICOM films: what is one, its grey values as viewers show them, and what is said of those that cannot be read."""

import io
import sys

import numpy as np
import pytest

from data.films import is_film_file, is_whole, read_grey, reduce_film
from report.own_films import read_film
from support.files import InputError
from tests.films import SIZE, dicom

pydicom = pytest.importorskip("pydicom")
BITS = 12
WHITE = 2**BITS - 1
RAMP = np.arange(2**BITS, dtype=np.uint16).reshape(64, 64)  # every number of 12 bits
WINDOW = {"WindowCenter": 1000.5, "WindowWidth": 2001}  # 0 to 2000


def windowed(values, low=0, high=2000):
    return np.clip((values - float(low)) / (high - low), 0, 1)


def table_of(values):
    """A VOI LUT that maps 0, 1, 2, ... to these values of 8 bits, 16 grey values of the film to one."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), 0, 8], list(values)
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return {"VOILUTSequence": [item]}


LINE = {"RescaleSlope": 2, "RescaleIntercept": -1000}
SHOWN = {  # stored values and elements of the file; what viewers show, from black at 0 to white at 1
    "no window": (RAMP, {}, RAMP / WHITE),
    "window": (RAMP, WINDOW, windowed(RAMP)),
    "dark film, window": (RAMP // 4, WINDOW, windowed(RAMP // 4)),
    "two windows": (RAMP, {"WindowCenter": [1000.5, 9], "WindowWidth": [2001, 9]}, windowed(RAMP)),
    "empty window": (RAMP, {"WindowCenter": None, "WindowWidth": None}, RAMP / WHITE),
    "inverted": (RAMP, {"PhotometricInterpretation": "MONOCHROME1"}, 1 - RAMP / WHITE),
    "inverted window": (RAMP, WINDOW | {"PhotometricInterpretation": "MONOCHROME1"}, 1 - windowed(RAMP)),
    "rescaled": (RAMP, LINE, RAMP / WHITE),
    "rescaled window": (RAMP, LINE | WINDOW, windowed(RAMP, 500, 1500)),
    "falling line": (RAMP, {"RescaleSlope": -1, "RescaleIntercept": WHITE}, 1 - RAMP / WHITE),
    "falling line, window": (
        RAMP,
        WINDOW | {"RescaleSlope": -1, "RescaleIntercept": WHITE},
        windowed(WHITE - RAMP.astype(int)),
    ),
    "signed": ((RAMP.astype(np.int16) - 2048), {}, RAMP / WHITE),
    "table": (RAMP // 16, table_of(range(255, -1, -1)), 1 - (RAMP // 16) / 255),
    "8 bits": ((RAMP // 16).astype(np.uint8), {"BitsStored": 8}, (RAMP // 16) / 255),
    "10 bits in 16": (RAMP // 4, {"BitsStored": 16}, (RAMP // 4) / 1023),
    "16 bits": (RAMP * 16, {"BitsStored": 16}, (RAMP * 16) / 65535),
    "run lengths": (RAMP, {"compress": "RLELossless"}, RAMP / WHITE),
}


@pytest.mark.parametrize("case", SHOWN)
def test_grey_values_are_those_that_viewers_show(case, tmp_path):
    stored, elements, shown = SHOWN[case]
    path = dicom(tmp_path / "film.dcm", stored, **{"BitsStored": BITS} | elements)
    grey = np.asarray(read_grey(path))
    assert grey.dtype == np.uint8 and np.abs(grey - 255 * shown).max() <= 0.51
    assert (np.asarray(read_grey(io.BytesIO(path.read_bytes()))) == grey).all()


def test_a_dicom_film_is_known_by_its_ending_or_without_one_by_its_mark(tmp_path):
    film = dicom(tmp_path / "a.dcm", RAMP).read_bytes()
    names = {"b.DICOM": True, "1.2.840.10008.1": True, "IM0001": True, "notes.txt": False, "DICOMDIR": False}
    for name, known in names.items():
        (tmp_path / name).write_bytes(film)
        assert is_film_file(tmp_path / name) == known, name
    (tmp_path / "LICENCE").write_bytes(bytes(200))
    assert not is_film_file(tmp_path / "LICENCE") and not is_film_file(tmp_path)
    assert is_whole(tmp_path / "a.dcm") and not is_whole(tmp_path / "a.dcm", ("L", (64, 64)))


def edited(path, **elements):
    film = pydicom.dcmread(path)
    for name, value in elements.items():
        if value is None:
            del film[name]
        else:
            setattr(film, name, value)
    film.save_as(path)


REFUSED = {
    "frames": (lambda path: edited(path, NumberOfFrames=2), "a DICOM file of 2 frames, and a film is one"),
    "no pixels": (lambda path: edited(path, PixelData=None), "a DICOM file without pixels"),
    "colours": (lambda path: edited(path, PhotometricInterpretation="PALETTE COLOR"), "the colours PALETTE COLOR"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-999]), "the film does not decode"),
    "dark": (lambda path: dicom(path, RAMP, BitsStored=BITS, WindowCenter=9000, WindowWidth=9), "nearly black"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_single_grey_film_is_refused(case, tmp_path):
    change, words = REFUSED[case]
    change(dicom(tmp_path / "film.dcm", RAMP))
    with pytest.raises(OSError, match=words):
        reduce_film(tmp_path / "film.dcm", SIZE)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    path = dicom(tmp_path / "film.dcm", RAMP, compress="RLELossless")
    rle = pydicom.pixels.get_decoder(pydicom.uid.RLELossless)
    with monkeypatch.context() as patch:
        patch.setattr(rle, "_available", {})
        patch.setattr(rle, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-rle>=2.0")})
        with pytest.raises(InputError, match=r"no decoder of RLE Lossless .* pylibjpeg>=2.0 and pylibjpeg-rle>=2.0"):
            reduce_film(path, SIZE)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"film.dcm: DICOM .* pip install 'pydicom>=3,<4'"):
        read_film(path, SIZE)
