"""Films, label tables, lists and archives like NIH's, made small; and calls of the script that prepares them."""

import io
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from data import prepare_chestxray14 as chestxray14

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"  # real films, tables and lists, not part of the repository
FULL_TABLE = SHARED / "Data_Entry_2017_v2020.csv.gz"
SIZE = 32  # of the prepared films, px; the films made here are four times as large
PATIENTS, FILMS = 10, 2  # films per patient
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position,"  # 2017: ends in a comma


def film_name(patient, film):
    return f"{patient:08d}_{film:03d}.png"


FILM, TESTED = film_name(3, 1), film_name(9, 0)  # one of train or val, and one of test


def picture(seed):
    """A smooth 8-bit film with some noise, (4 SIZE, 4 SIZE)."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.random((6, 6)).astype(np.float32) * 200)
    values = np.asarray(smooth.resize((4 * SIZE, 4 * SIZE), Image.Resampling.BICUBIC))
    return np.clip(values + rng.normal(0, 2, values.shape), 0, 255).astype(np.uint8)


def make_raw(folder):
    """Films in two folders as on Kaggle, a 2017 label table, and lists (patients 1 to 8, 9 to 10), in `folder`."""
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, PATIENTS + 1):
        for film in range(FILMS):
            name = film_name(patient, film)
            path = folder / "films" / f"images_{1 + patient % 2:03d}" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(100 * patient + film)).save(path)
            rows.append(f"{name},{('No Finding', 'Mass|Hernia')[film]},{film},{patient},PA,")
            lists["train_val_list.txt" if patient <= 8 else "test_list.txt"].append(name)
    (folder / "table.csv").write_text("\n".join([HEADER, *rows[::-1]]) + "\n")
    for name, films in lists.items():
        (folder / name).write_text("\n".join(films) + "\n")
    return folder


# --- Files and what becomes of them


def path_of(raw, name):
    (path,) = {path.resolve() for path in raw.rglob(name)}
    return path


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def edited(file, old, new):
    """A function that replaces `old` by `new` in a file of raw."""
    return lambda raw: edit(raw / file, old, new)


def overwritten(file, change):
    """A function that makes change(bytes) of the bytes of a file of raw."""
    return lambda raw: path_of(raw, file).write_bytes(change(path_of(raw, file).read_bytes()))


def flip_a_bit(content, place):
    place %= len(content)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_set(one, other):
    """Whether two sets have the same films and rows; source.json says where they came from."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("images.npy", "labels.csv"))


# --- Calls of the script


def run(*options):
    """What `main` returns with these options; SystemExit where it fails."""
    return chestxray14.main([str(option) for option in options])


def prepare(raw, *more, lists=True, name="set", films="films"):
    """Prepare raw's films, or the archives in its folder `films`, as the set `out`/`name` beside raw."""
    options = ["--images" if films == "films" else "--archives", raw / films, "--labels", raw / "table.csv"]
    options += ["--lists", raw] if lists else []
    return run(*options, "--size", SIZE, "--out", raw.parent / "out", "--name", name, *more)


# --- Archives


def pack(films, folder="images", kind=".zip", method=zipfile.ZIP_DEFLATED):
    """{name: content} -> the bytes of a zip or tar.gz with the films below `folder`, and a long text at the end.

    The last 64 KiB of a zip are read to find its directory, so no film should lie there.
    """
    films = films | {"licence.txt": random.Random(0).randbytes(70000)}
    packed = io.BytesIO()
    if kind.lower() == ".zip":
        with zipfile.ZipFile(packed, "w", method) as archive:
            for name, content in films.items():
                archive.writestr(f"{folder}/{name}", content)
            archive.filelist.reverse()  # its directory need not be in the order of the films
        return packed.getvalue()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in films.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def contents(raw):
    """{name: content} of raw's films, sorted."""
    return {path.name: path.read_bytes() for path in sorted(raw.rglob("*.png"), key=lambda path: path.name)}


def halves(raw):
    """The films of patients 1 to 5, and those of 6 to 10."""
    films = contents(raw)
    return [{name: films[name] for name in list(films)[k : k + 10]} for k in (0, 10)]


def some_patients(raw):
    """The films of all patients but 1 and 6. If these patients were divided alone, they would get another split."""
    return {name: content for name, content in contents(raw).items() if int(name[:8]) not in (1, 6)}


def corrupt(content, name):
    """The zip `content` with one bit of the member `name` flipped."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (member,) = (member for member in archive.infolist() if member.filename.endswith(name))
    return flip_a_bit(content, member.header_offset + 60 + len(member.filename) + member.compress_size // 2)


def mirror_files(raw):
    """{path: content} of a mirror with raw's films in two archives, its table and lists."""
    files = {f"/mirror/images/images_{k + 1:03d}.zip": pack(half, f"images_{k}") for k, half in enumerate(halves(raw))}
    files["/mirror/Data_Entry_2017_v2020.csv"] = (raw / "table.csv").read_bytes()
    return files | {f"/mirror/{name}": (raw / name).read_bytes() for name in ("train_val_list.txt", "test_list.txt")}


# --- DICOM


def dicom(path, values, compress=None, **elements):
    """Write a DICOM film of these stored values, with these elements, to `path`, and return it."""
    import pydicom  # not at the top: most tests do without

    film = pydicom.Dataset()
    film.Rows, film.Columns = values.shape[-2:]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated = film.BitsStored = 8 * values.dtype.itemsize
    film.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(film, name, value)
    film.HighBit = film.BitsStored - 1
    film.PixelData = np.ascontiguousarray(values).tobytes()
    film.SOPClassUID, film.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    if compress:
        film.compress(getattr(pydicom.uid, compress), generate_instance_uid=False)
    film.save_as(path, enforce_file_format=True)
    return path
