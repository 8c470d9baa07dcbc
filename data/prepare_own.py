"""Prepare one's own films: any folder of films and any table of labels become a set.

    python -m data.prepare_own --images FOLDER --labels TABLE.csv --name NAME

makes data/NAME/ of the PNG, JPEG and DICOM films anywhere below FOLDER: uint8 films of 64 x 64 px, or what --size says.
Which column of the table is what is guessed from usual names, said by options, and printed before a film is read.
docs/data.md has an example and all options. A command that was stopped goes on from the films that it had reduced.
"""

import hashlib
import os
import re
import shutil
import sys
import zlib
from pathlib import Path

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.fetch_chestxray14 import file_sources, list_files
from data.films import film_key, is_film, is_film_file, is_whole, tell_others
from data.intake import make_set
from data.labels_chestxray14 import some
from data.labels_own import USUAL, check_labels, read_own
from data.making import OUT, check_place, count_findings, run_script
from support.files import InputError
from support.settings import Parser

SIZE = 64  # height and width of a prepared film, px
LEAST = 32  # px: networks divide height and width by 32
SEED = 0  # any integer >= 0; another seed draws other patients into val and test
TWICE = "name both with their folders in the table, or keep one"


def key_of(name, depth):
    """What a film is matched by: `film_key`, after the names of the folders before it, `depth` parts in all."""
    return "/".join([*re.split(r"[/\\]+", name.strip().casefold())[-depth:-1], film_key(name)])


def keys_of(films, paths):
    """The keys of the table's films and of the files, two lists, and how many parts of their names are in a key: as few
    as tell all of them apart. Where the table's names have no folders, that is one.
    """
    most = min(len(re.split(r"[/\\]+", film)) for film in films)
    for depth in range(1, most + 1):
        keys = [[key_of(name, depth) for name in names] for names in (films, map(str, paths))]
        if all(len({*one}) == len(one) for one in keys):
            break
    return *keys, depth


def match_films(table, options):
    """The rows of `table` that the set has, with the films' names in the set, `Image Index`, and their files, `path`.

    Raises InputError for two rows or two files of one film and, unless options.skip_bad, rows without a film and films
    without a row, which it leaves out.
    """
    found = {path: is_film_file(path) for path in list_files(os.path.abspath(options.images), options.out)}
    tell_others(path.name for path, is_one in found.items() if not is_one)
    paths = [path for path, is_one in found.items() if is_one]
    films, files, depth = keys_of(table["film"], paths)
    rows, path_of = {}, {}  # {key: a film of the table}, {key: a file}
    both = (rows, films, table["film"], options.labels), (path_of, files, paths, options.images)
    for found, keys, names, where in both:
        for key, name in zip(keys, names, strict=True):
            if key in found:
                raise InputError(f"{where} has one film twice, {found[key]} and {name}: {TWICE}")
            found[key] = name
    both = (rows, path_of, options.images, "file of"), (path_of, rows, options.labels, "row for")
    for have, other, where, lacks in both:
        lost = [str(name) for key, name in have.items() if key not in other]
        if lost and not options.skip_bad:
            raise InputError(f"{where} has no {lacks} {some(lost)}: add it, or leave out such films with --skip-bad")
        if lost:
            print(f"left out: {some(lost)}, {where} has no {lacks} them")
    names = {key: "_".join(path.parts[-depth:]) for key, path in path_of.items()}
    names = {key: name if is_film(name) else f"{name}.dcm" for key, name in names.items()}
    table["Image Index"], table["path"] = [[by_key.get(key) for key in films] for by_key in (names, path_of)]
    table = table[table["keep"] & table["path"].notna()].sort_values("Image Index", ignore_index=True)
    if options.no_patients:
        table["Patient ID"] = table["Image Index"]
    return table


def is_done(reduced, path, size):
    """Whether the film of the file `path` is there, reduced, and not older than it."""
    return is_whole(reduced, ("L", (size, size))) and reduced.stat().st_mtime >= path.stat().st_mtime


def prepare(options, folder):
    """Make the set that the options describe as `folder`; returns its counts. Raises InputError, and Finished."""
    size = options.size
    mark = zlib.crc32(os.path.realpath(options.images).encode())  # films of another folder are other films
    reduced = folder.with_name(f"films_{options.name}_{size}px_{mark:08x}")
    check_place(options.name, folder, reduced, options.images, options.labels)
    if size < LEAST or options.seed < 0:
        raise InputError(f"--size {size} must be at least {LEAST} and --seed {options.seed} at least 0")
    table, findings, told = read_own(options.labels, options)
    print(*(f"{what + ':':<10} {how}" for what, how in told.items()), sep="\n")
    table = match_films(table, options)
    print(count_findings(table, findings).to_string())
    check_labels(options.labels, table, findings)
    source = {
        "findings": findings,
        "synthetic": options.synthetic,
        "patients": not options.no_patients,
        "size": size,
        "split": told["split"],
        "seed": options.seed,
        "uncertain": options.uncertain,
        "labels_sha256": hashlib.sha256(Path(options.labels).read_bytes()).hexdigest(),
        "origin": {"films": Path(options.images).resolve().name, "labels": Path(options.labels).name},
    }
    files = [*zip(table["Image Index"], table["path"], strict=True)]
    needed = [name for name, path in files if not is_done(reduced / name, path, size)]
    counts = make_set(options, folder, reduced, table, needed, file_sources(options.images, files), source)
    shutil.rmtree(reduced)
    return counts


def parse_options(argv=None):
    """The options of the command line."""
    parser = Parser(description="Prepare a set of one's own films and a table of their labels.")
    parser.add_argument("--images", required=True, help="folder with the films (PNG, JPEG, DICOM), at any depth")
    parser.add_argument("--labels", required=True, help="table (CSV), a row for each film, gzipped or not")
    parser.add_argument("--name", required=True, help="the set's name")
    for role in USUAL:
        what = {"film": "films' names", "label": "joined names of findings"}.get(role, role)
        parser.add_argument(f"--{role}-column", help=f"the column of {what}; '' for none (guessed)")
    parser.add_argument("--findings", nargs="+", metavar="NAME", help="the findings to take, as in the table (all)")
    choices = ("present", "absent", "leave-out")
    parser.add_argument("--uncertain", choices=choices, help="what -1 and u are; leave-out: the film")
    parser.add_argument("--no-patients", action="store_true", help="each film counts as a patient")
    parser.add_argument("--synthetic", action="store_true", help="the films are drawn: the set says so")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of a prepared film, px (%(default)s)")
    parser.add_argument("--out", default=OUT, help="where the set's folder is made (the data folder)")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the patients, without a split (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out films that are damaged or without a row")
    options = parser.parse_args(argv)
    options.where = options.images
    return options


def main(argv=None):
    """The command line; returns 0, see `run_script`."""
    return run_script(parse_options, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
