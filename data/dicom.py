"""Reads the grey values of a DICOM film. The package pydicom is optional: only the first such film imports it."""

import numpy as np

from support.files import InputError

PACKAGE = "'pydicom>=3,<4'"


def open_dicom(file):
    """A DICOM film, as a dataset of pydicom whose pixels can be decoded.

    Raises InputError where a package is missing, and ValueError for what is no single grey film.
    """
    try:
        from pydicom import dcmread, pixels
    except ImportError:
        raise InputError(f"DICOM films need the package pydicom: pip install {PACKAGE}") from None
    film = dcmread(file)
    frames, form = film.get("NumberOfFrames") or 1, film.get("PhotometricInterpretation")
    if "PixelData" not in film:
        raise ValueError("a DICOM file without pixels")
    if frames != 1:
        raise ValueError(f"a DICOM file of {frames} frames, and a film is one")
    if form not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"a DICOM file with the colours {form}, and a film is MONOCHROME1 or MONOCHROME2")
    decoder = pixels.get_decoder(film.file_meta.TransferSyntaxUID)
    if not decoder.is_available:
        ways = "; or ".join(decoder.missing_dependencies)
        raise InputError(f"no decoder of {decoder.UID.name} is installed: install with pip one of these: {ways}")
    return film


def read_dicom(file):
    """The grey values of a DICOM film, uint8 (H, W), as viewers show it: rescaled, windowed, black at 0.

    Its first VOI LUT or window counts. Without one, white is the largest number of the fewest bits that hold the film's
    values, as of other films (see `largest`). Raises as `open_dicom` does, and what pydicom raises for a damaged
    film.
    """
    film = open_dicom(file)
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    stored = film.pixel_array
    table, window = film.get("VOILUTSequence"), film.get("WindowWidth") is not None
    if film.PixelRepresentation:  # signed
        ends = -(1 << film.BitsStored - 1), (1 << film.BitsStored - 1) - 1
    else:
        ends = 0, (1 << film.BitsStored) - 1 if table or window else largest(stored)
    black, white = apply_modality_lut(np.array(ends), film).tolist()
    if table:
        black, white = 0, (1 << table[0].LUTDescriptor[2]) - 1
    elif not window:
        black, white = sorted((black, white))
    values = apply_voi_lut(apply_modality_lut(stored, film), film)
    grey = np.clip((values - black) / (white - black), 0, 1)
    if film.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return (255 * grey + 0.5).astype(np.uint8)


def largest(values):
    """The largest number of 8, 10, 12, 14 or 16 bits: the fewest that hold these values, as detectors have them.

    Raises ValueError for values that are not whole numbers from 0 to 65535.
    """
    if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values of type {values.dtype} from {values.min()} to {values.max()}, not 0 to 65535")
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
