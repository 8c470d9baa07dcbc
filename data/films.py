"""How a film is found, told by its name, and read."""

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg")  # endings of films, in any case
FILTER = Image.Resampling.LANCZOS  # keeps thin lines (a pleural edge) sharpest; 5 of a film's 15 ms, BOX takes 1
DARK = 64  # a film of which 99 % is below this grey value was made with a wrong range; the least in nih10k is 121


def is_film(name):
    """Whether a file of this name is a film."""
    return os.path.splitext(name.lower())[1] in PICTURES


def film_key(name):
    """What a film is matched by: its name without folder, endings (as .png, .nii.gz) and case."""
    name = re.split(r"[/\\]", name.strip().casefold())[-1]
    return re.sub(r"(\.[a-z][a-z0-9]{0,4})+$", "", name)


def walk(folder):
    """The paths of all files below `folder`. Links are followed, as Kaggle's folders often are; each folder once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        places = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        yield from (Path(parent) / name for name in sorted(names))


def is_whole(file, form=None):
    """Whether a film is whole: a PNG by its checksums, at which decoding does not look.

    form: the mode and size that it must have, ("L", (256, 256)); None: any.
    """
    try:
        with Image.open(file) as film:
            film.verify()
        return form in (None, (film.mode, film.size))
    except Exception:  # no file, or a broken one, which may raise SyntaxError, zlib.error, struct.error, ...
        return False


def scale_grey(film):
    """A film of more than 8 bits, scaled to 8: by 10, 12, 14 or 16 bits, the least that hold its values.

    Detectors have 10 to 14 bits, and a DICOM file that was converted to 16 often keeps their values. convert("L")
    would cut them off. Raises ValueError for other values, such as shares of 1.
    """
    values = np.asarray(film)
    if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values of type {values.dtype} from {values.min()} to {values.max()}, not 0 to 65535")
    white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return Image.fromarray(((values.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8))


def reduce_film(file, size):
    """A film of any mode -> its grey values, uint8 (size, size).

    Colours become luma, transparency is ignored, 16-bit grey is scaled by the bits that it uses; a film that is not
    square is centred on black, so that anatomy keeps its shape. Antialiased, in whole numbers: the same on every
    platform. Raises OSError for a film that does not decode, is smaller than `size` (it is never enlarged), or is
    nearly black but for a few pixels, such as a marker.
    """
    try:
        with Image.open(file) as film:
            small = max(film.size) < size
            if not small:
                film = scale_grey(film) if film.mode[0] in "IF" else film.convert("L")
    except Exception as error:  # a broken file may raise anything: SyntaxError, zlib.error, struct.error, ...
        raise OSError(f"the film does not decode: {error}") from None
    if small:
        raise OSError(f"the film is smaller than {size} px: choose a smaller --size")
    if sum(film.histogram()[DARK:]) < 0.01 * film.width * film.height:
        raise OSError(f"the film is nearly black: 99 % of its grey values are below {DARK} of 255")
    return np.asarray(ImageOps.pad(film, (size, size), method=FILTER))
