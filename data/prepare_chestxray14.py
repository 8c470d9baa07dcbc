"""Prepare ChestX-ray14: its films and its label table become a set that the scripts read.

    python -m data.prepare_chestxray14 --download

fetches the toy set, 11,042 of the 112,120 films, and makes data/chestxray14/: uint8 films of 256 x 256 px. docs/data.md
describes the data set, its other forms and every option.
"""

import hashlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import fetch_chestxray14 as fetch
from data.films import KINDS, film_key, is_film, is_whole
from data.intake import make_set
from data.labels_chestxray14 import LISTS, TABLE, assign_splits, original_split, read_labels, some
from data.making import OUT, check_place, run_script
from support.files import InputError
from support.settings import Parser


def is_original(path, size):
    """Whether `path` is a whole film of more than `size` px, and so none that this script has reduced."""
    if not is_whole(path):
        return False
    with Image.open(path) as film:
        return min(film.size) > size


def choose_films(options, folder):
    """The films of a set as rows of the label table with their `split`, and what source.json says of the choice.

    With --download, the label table and the official lists are fetched into `folder` unless they are given.
    """
    labels, lists = options.labels or fetch.fetch_file(TABLE, folder), options.lists
    table, original = read_labels(labels), options.split == "original"
    if options.download and not (original or options.archive or lists):
        lists = folder
        for name in LISTS:
            fetch.fetch_file(name, folder)
    if original:
        table = original_split(table, options.skip_bad)
    else:
        table = assign_splits(table, lists, options.seed, options.skip_bad)
    if options.archive or (options.archives and Path(options.archives).is_file()):  # one archive: what it holds
        sources = fetch.archive_sources(options.archives, options.archive, parts=1)
        held = {film_key(name) for source in sources for name in fetch.list_names(source) if is_film(name)}
        table = table[table["Image Index"].map(film_key).isin(held)].reset_index(drop=True)
    return table, {
        "citation": "NIH Clinical Center, ChestX-ray14 (Wang et al., CVPR 2017, arXiv 1705.02315), "
        f"{fetch.BY_HAND}, free to use with this attribution",
        "preset": "reference" if original else "small",
        "size": options.size,
        "split": options.split,
        "seed": options.seed,
        "labels_sha256": hashlib.sha256(Path(labels).read_bytes()).hexdigest(),
        "origin": {
            "films": Path(options.where).resolve().name,
            "archive": options.archive,
            "labels": Path(labels).name,
            "lists": lists is not None,
        },
    }


def check_options(options, folder, reduced):
    """Raise InputError where the options do not fit together, or the set cannot be made there."""
    check_place(options.name, folder, reduced, options.images, options.archives)
    if options.split == "original" and options.lists:
        raise InputError("--lists has no part in --split original, whose patients are known: leave one of them out")
    if options.size < 1 or options.seed < 0:
        raise InputError(f"--size {options.size} must be at least 1 and --seed {options.seed} at least 0")
    if options.labels is None and not options.download:
        raise InputError(f"--labels is missing: give it the official {TABLE}")
    if options.archive is not None and (options.images or options.archive not in fetch.ARCHIVES):
        raise InputError(f"--archive {options.archive} must be 1 to 12, with --download or --archives")


def prepare(options, folder):
    """Make the set that the options describe as `folder`; returns its counts. Raises InputError, and Finished."""
    size, reduced = options.size, folder.with_name(f"films_{options.size}px")
    check_options(options, folder, reduced)
    with TemporaryDirectory() as fetched:
        table, source = choose_films(options, fetched)
    needed = [name for name in table["Image Index"] if not is_whole(reduced / name, ("L", (size, size)))]
    if originals := [name for name in needed if is_original(reduced / name, size)]:
        what = f"{some(originals)} larger than {size} px, which reduced films would replace"
        raise InputError(f"{reduced} has {what}: move them elsewhere, or choose another --out")
    if options.images:
        paths = fetch.list_files(options.images, options.out)
        files = [(str(path.relative_to(options.images)), path) for path in paths]
        sources = fetch.file_sources(options.images, files)
    else:
        sources = fetch.archive_sources(options.archives, options.archive)
    counts = make_set(options, folder, reduced, table, needed, sources, source)
    if options.split == "all" and not source["origin"]["lists"]:
        print("no --lists: divided by patient, not the official split")
    return counts


def parse_options(argv=None):
    """The options of the command line."""
    parser = Parser(description="Prepare ChestX-ray14 from its films and label table.")
    films = parser.add_mutually_exclusive_group(required=True)
    films.add_argument("--download", action="store_true", help="fetch the films needed, the label table and the lists")
    films.add_argument("--archives", help="a zip or tar.gz of films, of which all are taken, or a folder of archives")
    films.add_argument("--images", help=f"folder with the films ({KINDS}), at any depth")
    parser.add_argument("--archive", type=int, help="take the films of this one of the twelve archives, 1 to 12")
    parser.add_argument("--split", choices=("original", "all"), help="original: the toy set; all: all films")
    parser.add_argument("--labels", help="Data_Entry_2017.csv or _v2020.csv, gzipped or not; --download can fetch it")
    parser.add_argument("--lists", help="folder with the two official lists, or train_list.txt, val_ and test_")
    parser.add_argument("--size", type=int, default=256, help="height and width of a prepared film, px (%(default)s)")
    parser.add_argument("--name", default="chestxray14", help="the set's name (%(default)s)")
    parser.add_argument("--out", default=OUT, help="where its folder is made (the data folder)")
    parser.add_argument("--seed", type=int, default=0, help="at least 0, draws the patients (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out missing, damaged and unlabelled films")
    options = parser.parse_args(argv)
    options.where = options.images or options.archives or "download"
    options.split = options.split or ("original" if options.download and not options.archive else "all")
    return options


def main(argv=None):
    """The command line; returns 0, see `run_script`."""
    return run_script(parse_options, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
