"""Reads a film, a file with one radiograph: its name, whether it is whole, its grey values; without the network."""

import os
import re
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data.dicom import largest, read_dicom
from support.files import InputError

FILMS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".dcm", ".dicom")  # endings of the files that are read as films
KINDS = "PNG, JPEG or DICOM"  # what these are, for messages
TEXTS = (".txt", ".csv", ".tsv", ".json", ".xml", ".html", ".md", ".pdf", ".xls", ".xlsx")  # endings of no film
# What programs put beside films, in lower case: folders with thumbnails or what was deleted, and lists.
ASIDE = {"@eadir", "thumbnails", "thumbs", "__macosx", "@recycle", "#recycle", "$recycle.bin", "thumbs.db"}
ASIDE |= {"desktop.ini", "lost+found", "dicomdir"}
# Endings that a film's name may have in tables of other programs, which often read converted copies of the film. Other
# letters behind a dot belong to the name: p1.left.png and p1.right.png are two films.
ENDINGS = re.compile(r"(\.(png|jpe?g|jpe|jfif|bmp|gif|tiff?|webp|dcm|dicom|nii|gz|npy|npz|pt))+$", re.IGNORECASE)
ENDING = re.compile(r"(\.[a-z]\w{0,4})?$", re.IGNORECASE)  # of any file's name; 1.2.840.1, as DICOM has it, has none
FILTER = Image.Resampling.LANCZOS  # keeps thin lines (a pleural edge) sharpest; takes 5 of a film's 15 ms, BOX takes 1
# What an EXIF orientation of 2 to 8 asks a viewer to do; cameras and converters write it into JPEG and PNG files.
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
TURNS = {number: Image.Transpose[name] for number, name in enumerate(TURNS, 2)}
DARK = 64  # a film of which 99 % is below this grey value was made with a wrong range; the least in nih10k is 121


# --- Names and files


def film_key(name):
    """What a film is matched by, everywhere: its name without folder (with / or \\), without endings, in lower case."""
    return ENDINGS.sub("", re.split(r"[/\\]", name.strip().casefold())[-1])


def is_aside(name):
    """Whether a file, named from the folder or archive of films, is hidden, a thumbnail, or the like."""
    parts = re.split(r"[/\\]", name.casefold())
    return any(part in ASIDE or (part.startswith(".") and part.strip(".")) for part in parts)


def is_film(name):
    """Whether a file of this name is read as a film: it ends in one of FILMS, in any case, and is not `is_aside`."""
    return name.strip().lower().endswith(FILMS) and not is_aside(name)


def is_film_file(path):
    """Whether a file is read as a film: by its name (see `is_film`), or without an ending as DICOM."""
    if ENDING.search(path.name)[0] or not path.is_file():  # reading a pipe would wait for ever
        return is_film(path.name)
    return is_dicom(path) and not is_aside(path.name)


def is_dicom(file):
    """Whether a file, a path or open and binary, has DICOM's mark."""
    with nullcontext(file) if hasattr(file, "read") else open(file, "rb") as content:
        content.seek(0)
        begin = content.read(132)
        content.seek(0)
    return begin[128:] == b"DICM"


def tell_others(names):
    """Print one line on the files, of all these names, that are left out but may be films in another form."""
    others = [name.lower() for name in names if not (is_film(name) or is_aside(name) or name.endswith(("/", "\\")))]
    endings = [ENDING.search(name)[0] for name in others if not name.endswith(TEXTS)]
    if endings:
        kinds = ", ".join(f"{n} {ending or 'without ending'}" for ending, n in Counter(endings).most_common(5))
        count = f"{len(endings)} file{'s' * (len(endings) != 1)}"
        print(f"left out: {count}, not {KINDS} ({kinds}): convert films among them, unpack archives")


def walk(folder, *without):
    """The paths of all files below `folder` but those that `is_aside` or in the folders `without`, sorted.

    Links are followed, because Kaggle's folders often consist of links. Each folder is visited once.
    """
    seen = {*map(os.path.realpath, (folder, *without))}
    for parent, folders, names in os.walk(folder, followlinks=True):
        places = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if not is_aside(name)}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        yield from (Path(parent) / name for name in sorted(names) if not is_aside(name))


def is_whole(file, form=None):
    """Whether a film's file is undamaged. Of a PNG this verifies the checksums, which decoding does not look at.

    form: the mode and the size that the film must have, such as ("L", (256, 256)); None: any. A DICOM file, which has
    no checksums, counts as whole then.
    """
    try:
        if form is None and is_dicom(file):
            return True
        with Image.open(file) as film:
            film.verify()
        return form in (None, (film.mode, film.size))
    except Exception:  # no file, or a broken one, which may raise SyntaxError, zlib.error, struct.error, ...
        return False


# --- Grey values


def upright(film, grey):
    """`grey`, made of the pixels of `film`, turned as viewers show the film: by its EXIF orientation."""
    with suppress(Exception):  # a damaged EXIF block, which may raise anything, says nothing
        return grey.transpose(TURNS[film.getexif()[ExifTags.Base.Orientation]])
    return grey


def read_grey(file):
    """A film of any form and mode -> its grey values, a Pillow image of mode L. A broken file may raise anything."""
    if is_dicom(file):
        return Image.fromarray(read_dicom(file))
    with Image.open(file) as film:
        if film.mode[0] not in "IF":
            return upright(film, film.convert("L"))
        values = np.asarray(film)  # of more than 8 bits, which convert would clip
        white = largest(values)
        return upright(film, Image.fromarray(((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)))


def reduce_film(file, size):
    """A film of any form and mode -> its grey values, uint8 (size, size); `size` in pixels.

    Colours become luma, transparency is ignored, `largest` is white, and the film is turned upright. One that is not
    square is centred on black, so that anatomy keeps its shape. The reduction is antialiased and computed in whole
    numbers, which makes it the same on every platform. Raises OSError for a film that does not decode, is smaller than
    `size`, or is nearly black but for a side marker; and InputError where the package that reads it is missing.
    """
    try:
        film = read_grey(file)
    except InputError:
        raise
    except Exception as error:  # SyntaxError, zlib.error, struct.error, ...
        raise OSError(f"the film does not decode: {error}") from None
    if max(film.size) < size:
        raise OSError(f"the film is smaller than {size} px, the size of the set's films")
    if sum(film.histogram()[DARK:]) < 0.01 * film.width * film.height:
        raise OSError(f"the film is nearly black: 99 % of its grey values are below {DARK} of 255")
    return np.asarray(ImageOps.pad(film, (size, size), method=FILTER))
