"""Reading a film: the one rule for names, files that are whole, and grey values of every mode."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from data.films import film_key, is_film, is_whole, reduce_film, tell_others, walk
from tests.films import REPO, SIZE, flip_a_bit, picture


def test_a_film_is_matched_by_its_name_without_folder_ending_and_case():
    names = ["A_1", "a_1.png", "A_1.JPG", "x/y.z/a_1.jpeg", "C:\\x\\a_1.dcm", "a_1.nii.gz", " a_1.png.npy\n"]
    assert {film_key(name) for name in names} == {"a_1"}
    names = ["p1.left.png", "p1.right.png", "p1.v2", "1.2.840.1", "1.2.840.2", "p1 a.png", "p1 b.png", "p1"]
    assert len({film_key(name) for name in names}) == len(names)
    assert all(is_film(name) for name in ("a.PNG", "x/a.jpeg", "a.jpg", "../x/a.JPE", "./a.jfif", "a.DCM", "a.dicom"))
    others = ("a.tif", "a", "DICOMDIR", "a.png.gz", "._a.png", "@eaDir\\a.png", "x/.y/a.png")
    assert not any(is_film(name) for name in others)


def test_files_that_may_be_films_in_another_form_are_counted_in_one_line(capsys):
    tell_others(["a.png", "x/b.JPE", "notes.txt", "x/", "x\\", "._a.tif", ".git/a", "@eaDir/a.tif"])
    assert capsys.readouterr().out == ""
    tell_others(["x/a.TIF", "b.tif", "1.2.840.1", "I0001", "c.nii.gz", "films.zip", "notes.txt"])
    kinds = "2 .tif, 2 without ending, 1 .gz, 1 .zip"
    line = f"left out: 6 files, not PNG, JPEG or DICOM ({kinds}): convert films among them, unpack archives\n"
    assert capsys.readouterr().out == line


def test_links_that_make_a_ring_are_followed_once_and_hidden_files_and_thumbnails_left_out(raw):
    files = sorted(walk(raw))
    for place in (".films", "films/@eaDir", "Thumbs"):
        shutil.copytree(raw / "films" / "images_001", raw / place)
    shutil.copy(files[0], raw / f"._{files[0].name}")
    (raw / "films" / "images_001" / "all").symlink_to(raw / "films")
    assert sorted(walk(raw)) == files


DAMAGES = {
    "lost": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "bit": lambda path: path.write_bytes(flip_a_bit(path.read_bytes(), 500)),
    "size": lambda path: Image.new("L", (SIZE, SIZE + 1), 99).save(path),
    "mode": lambda path: Image.open(path).convert("RGB").save(path),
    # The checksum of the chunk before IEND, which has 12 bytes. Decoding does not look at it.
    "checksum": lambda path: path.write_bytes(flip_a_bit(path.read_bytes(), -13)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_film_is_not_whole(damage, tmp_path):
    film, form = tmp_path / "film.png", ("L", (4 * SIZE, 4 * SIZE))
    Image.fromarray(picture(0)).save(film)
    assert is_whole(film) and is_whole(film, form)
    DAMAGES[damage](film)
    assert not is_whole(film, form) and is_whole(film) == (damage in ("size", "mode"))


def test_scripts_that_only_read_films_load_no_library_for_the_network_and_none_for_dicom():
    command = "import sys, test, data.dicom; print({'requests', 'remotezip', 'pydicom'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", command], cwd=REPO, text=True) == "set()\n"


def reduce(values, path):
    """The film of these grey values, reduced."""
    Image.fromarray(values).save(path)
    return reduce_film(path, SIZE)


def test_every_mode_gives_the_same_grey_values(tmp_path):
    grey = picture(0)
    clear = Image.fromarray(np.dstack([grey, np.where(grey > 99, 0, 255).astype(np.uint8)]))
    films = {mode: Image.fromarray(grey).convert(mode) for mode in ("L", "RGB", "P")}
    films |= {mode: clear.convert(mode) for mode in ("LA", "RGBA")}  # transparency hides nothing
    films["I;16"] = Image.fromarray(grey.astype(np.uint16) * 257 + 100)  # not only the multiples of 257
    reduced = {}
    for mode, film in films.items():
        assert film.mode == mode
        film.save(tmp_path / "film.png")
        reduced[mode] = reduce_film(tmp_path / "film.png", SIZE)
        assert reduced[mode].shape == (SIZE, SIZE) and reduced[mode].dtype == np.uint8
        assert np.abs(reduced[mode].astype(int) - reduced["L"]).max() <= 1, mode
    assert np.abs(reduced["L"] - grey.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))).mean() < 1.5


# {EXIF orientation: how the film lies in its file, (quarters of a turn to the left, whether it is mirrored before)}
STORED = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (1, False)}
STORED |= {7: (3, True), 8: (3, False)}


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_film_is_read_upright_as_viewers_show_it(ending, tmp_path):
    shown = np.full((3 * SIZE, 4 * SIZE), 100, np.uint8)
    shown[:SIZE, : 2 * SIZE] = 250
    for orientation, (quarters, mirrored) in STORED.items():
        exif, lies = Image.Exif(), np.rot90(np.fliplr(shown) if mirrored else shown, quarters)
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(np.ascontiguousarray(lies)).save(tmp_path / f"{orientation}.{ending}", exif=exif)
        grey = reduce_film(tmp_path / f"{orientation}.{ending}", SIZE)
        assert np.abs(grey - reduce(shown, tmp_path / "shown.png").astype(int)).max() < 9, orientation
    Image.fromarray(shown).save(tmp_path / "film.png", exif=b"Exif\0\0damaged")
    assert (reduce_film(tmp_path / "film.png", SIZE) == reduce(shown, tmp_path / "shown.png")).all()


def test_reducing_leaves_no_aliases_and_a_film_that_is_not_square_keeps_its_shape_on_black(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (4 * SIZE, 2 * SIZE))  # too fine for the reduced film
    assert np.abs(reduce(stripes, tmp_path / "film.png")[:, 2:-2].astype(int) - 127).max() <= 2
    reduced, border = reduce(np.full((2 * SIZE, 4 * SIZE), 200, np.uint8), tmp_path / "film.png"), SIZE // 4
    assert (reduced[border:-border] == 200).all() and not reduced[:border].any() and not reduced[-border:].any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_films_of_a_detectors_bits_are_scaled_by_them(bits, tmp_path):
    values = np.linspace(0, 2**bits - 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    grey = reduce(values, tmp_path / "film.png")
    assert abs(grey - values * (255 / (2**bits - 1))).max() <= 0.51


def film(value, kind, share=0.0, white=0):
    """A film of one value, of which a share is white, such as the letter that marks a side."""
    values = np.full((4 * SIZE, 4 * SIZE), value, kind)
    values.ravel()[: int(share * values.size)] = white
    return values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (film(63, np.uint8, 0.009, 255), "nearly black: 99 % of its grey values are below 64 of 255"),
        (film(4095, np.uint16, 0.009, 65535), "nearly black"),  # 12 bits in a range of 16
        (film(0.5, np.float32), "grey values of type float32"),
        (film(-5, np.int32), "from -5 to -5, not 0 to 65535"),
        (film(65536, np.int32), "from 65536 to 65536, not 0 to 65535"),
        (film(200, np.uint8)[: SIZE - 1, : SIZE - 1], "smaller than 32 px, the size of the set's films"),
    ],
)
def test_films_with_values_far_below_their_range_and_small_films_are_refused(values, problem, tmp_path):
    with pytest.raises(OSError, match=problem):
        reduce(values, tmp_path / "film.tif")


@pytest.mark.parametrize("values", [film(64, np.uint8), film(0, np.uint8, 0.011, 64)])
def test_a_dark_film_is_a_film(values, tmp_path):
    assert reduce(values, tmp_path / "film.png").any()
