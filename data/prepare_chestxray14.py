"""Prepare ChestX-ray14: its films and its label table become a set that the scripts read.

    python -m data.prepare_chestxray14 --download

fetches the toy set, 11,042 of the 112,120 films, and makes data/chestxray14/: uint8 films of 256 x 256 px. docs/data.md
describes the data set, its other forms and every option; labels_chestxray14.py the labels and splits.
Every film is reduced and kept as a PNG in data/films_256px/, from where a command that was stopped goes on.
"""

import hashlib
import io
import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import fetch_chestxray14 as fetch
from data.films import film_key, is_film, is_whole, reduce_film, tell_others
from data.labels_chestxray14 import LISTS, TABLE, assign_splits, original_split, read_labels, some
from data.making import OUT, check_place, check_space, is_finished, locked, run_script, write_films, write_set
from dataset import SPLITS
from support.files import UNFINISHED, InputError, filling, write
from support.progress import progress
from support.settings import Parser

# --- Films on their way into a set


class Intake:
    """Takes films into the folder of reduced films, where each becomes a PNG file, whole or not at all.

    needed: names of the films that are not there yet. broken: {name: why} of films that were found but cannot be used;
    others: (source, name) of files that are no films. The folder must be locked; `take` runs in threads.
    """

    def __init__(self, folder, size, needed):
        self.folder, self.size, self.needed = folder, size, set(needed)
        self.names = {film_key(name): name for name in needed}
        self.broken, self.others, self.stopped = {}, set(), False
        self.taken, self.differ = {}, {}  # {name: (place, checksum)}, {name: two places with different files}

    def read(self, sources, threads):
        """Take what is needed from all sources; returns the problems, one line for each source that failed.

        Raises InputError where two different files of one film were found.
        """
        pool = ThreadPoolExecutor(threads)  # as fast as processes: Pillow decodes and resizes without the GIL
        with progress(None, "films", len(self.needed)) as self.bar:
            try:
                problems = [problem for problem in pool.map(self.take, sources) if problem]
            finally:
                self.stopped = True  # after Ctrl-C or a fault, the threads end at their next film
                pool.shutdown(cancel_futures=True)
        tell_others(name for _, name in self.others)
        for name in self.differ:  # the same command must find them again
            (self.folder / name).unlink(missing_ok=True)
        if self.differ:
            both = " and ".join(sorted(self.differ[min(self.differ)]))
            raise InputError(f"there are different files of {some(sorted(self.differ))}, {both}: keep one of each")
        return problems

    def wants(self, source, name):
        """Whether to read the file `name` of a source: every file of a film, so that copies are compared."""
        if self.stopped:
            raise InterruptedError("stopped")
        if not is_film(name):
            self.others.add((source.name, name))
        return is_film(name) and film_key(name) in self.names

    def take(self, source):
        """Take what is needed from a source; returns the problem where it cannot be read to its end."""
        # Each source writes into a folder of its own, since two sources may have the same film.
        with TemporaryDirectory(prefix=UNFINISHED, dir=self.folder) as aside:
            waiting = []
            try:
                for file, content in source.read(partial(self.wants, source)):
                    name = self.names[film_key(file)]
                    if self.reduce(content, Path(aside) / name):
                        waiting.append((Path(aside) / name, f"{file} in {source.name}", zlib.crc32(content)))
                    if not source.checked_last:
                        self.accept(waiting)
            except fetch.UNREADABLE as error:
                return f"{source.name}: {error}"
            self.accept(waiting)

    def reduce(self, content, path):
        """Write a film, reduced, to `path`. Returns False for a film that cannot be used; `broken` says why."""
        try:
            if not isinstance(content, bytes):
                raise OSError(content or "the file is damaged, or a link to nothing")
            film = Image.fromarray(reduce_film(io.BytesIO(content), self.size))
        except OSError as error:
            self.broken[path.name] = str(error)
            return False
        try:
            # Compression would halve the file and take 1.5 ms more at 256 px. There is no fsync, because the PNG's
            # checksums show what a power cut has damaged.
            film.save(path, "PNG", compress_level=0)
        except OSError as error:  # such as a full disk: the film is not at fault
            raise InputError(f"{self.folder}: {error.strerror}: make room, or choose another --out") from None
        return True

    def accept(self, waiting):
        """Move films that are known to be whole to their place, compare their copies, and empty the list."""
        for path, place, checksum in waiting:
            other, before = self.taken.setdefault(path.name, (place, checksum))
            if before != checksum:
                self.differ[path.name] = (other, place)
            elif other == place and path.name in self.needed:
                path.replace(self.folder / path.name)
                self.needed.discard(path.name)
                self.bar.update()
        waiting.clear()


# --- From films to a set


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
        sources = fetch.archive_sources(options.archives, options.archive, threads=1)
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


def list_skipped(intake, problems, options):
    """The films that the set goes without, for source.json. Raises InputError unless it may go without them.

    problems: one line for each source that was not read to its end.
    """
    broken, missing = sorted(intake.needed & intake.broken.keys()), sorted(intake.needed - intake.broken.keys())
    faults = [f"{some(missing)} missing"] if missing else []
    if broken:
        faults.append(f"{some(broken)} unusable ({intake.broken[broken[0]]})")
    if faults and (problems or not options.skip_bad):  # films of an unread archive may be good
        listed = intake.folder / "missing.txt"
        write(listed, "\n".join([*missing, *broken, ""]))
        ways = "the same command tries them again" + (", --skip-bad leaves them out" if not problems else "")
        if problems and options.download:
            ways += f", or get the archives by hand from {fetch.BY_HAND} and give their folder with --archives"
        why = f" ({problems[0]})" if problems else ""
        raise InputError(f"{options.where}: {' and '.join(faults)}{why}, all in {listed}: {ways}")
    if faults:
        print(f"skipped: {' and '.join(faults)}")
    return {"missing": missing, "undecodable": broken}


def make_set(folder, table, reduced, source):
    """Write the set of the films of `table`, all of them in the folder `reduced`, into `folder`. Returns its counts."""
    if empty := set(SPLITS) - set(table["split"]):
        raise InputError(f"{source['origin']['films']} leaves no film for split {min(empty)!r}: add more of the films")
    with write_films(folder / "images.npy", len(table), source["size"]) as films:
        for name in table["Image Index"]:
            with Image.open(reduced / name) as film:
                films.write(film.tobytes())
    return write_set(folder, None, table, source)


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


def prepare(options):
    """Write the set that the options describe; returns its counts, or None where it is there already.

    Raises InputError. The same options, given again, go on from the films that are done by then.
    """
    out, size = Path(options.out), options.size
    folder, reduced = out / options.name, out / f"films_{size}px"
    if is_finished(folder):
        return None
    check_options(options, folder, reduced)
    with TemporaryDirectory() as fetched:
        table, source = choose_films(options, fetched)
    needed = [name for name in table["Image Index"] if not is_whole(reduced / name, ("L", (size, size)))]
    threads = fetch.THREADS if options.download else os.cpu_count()
    if options.images:
        sources = fetch.file_sources(options.images, threads)
    else:
        sources = fetch.archive_sources(options.archives, options.archive, threads)
    with locked(reduced):
        if is_finished(folder):  # made by another process meanwhile
            return None
        (reduced / "missing.txt").unlink(missing_ok=True)
        with filling(folder, "source.json") as made:
            check_space({reduced: len(needed) * size**2, folder: len(table) * size**2})
            if len(needed) < len(table):
                print(f"{len(table) - len(needed)} of {len(table)} films are in {reduced} already")
            intake = Intake(reduced, size, needed)
            problems = intake.read(sources, threads) if needed else []
            source["skipped"] = list_skipped(intake, problems, options)
            counts = make_set(made, table[~table["Image Index"].isin(intake.needed)], reduced, source)
    if source["split"] == "all" and not source["origin"]["lists"]:
        print("no --lists: divided by patient, not the official split")
    return counts


def parse_options(argv=None):
    """The options of the command line."""
    parser = Parser(description="Prepare ChestX-ray14 from its films and label table.")
    films = parser.add_mutually_exclusive_group(required=True)
    films.add_argument("--download", action="store_true", help="fetch the films needed, the label table and the lists")
    films.add_argument("--archives", help="a zip or tar.gz of films, of which all are taken, or a folder of archives")
    films.add_argument("--images", help="folder with the films (PNG or JPEG), at any depth")
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
