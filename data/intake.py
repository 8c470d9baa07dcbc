"""Films on their way into a set: each is read once, reduced and kept as a PNG file; the set is made of these.

A command that was stopped goes on from the films that are there.
"""

import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image

from data import fetch_chestxray14 as fetch
from data.films import film_key, is_film, reduce_film, tell_others
from data.labels_chestxray14 import some
from data.making import making, write_films, write_set
from support.files import InputError, write
from support.progress import progress


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

    def read(self, sources):
        """Take what is needed from all sources; returns the problems, one line for each source that failed.

        Raises InputError where two different files of one film were found.
        """
        # Threads are as fast as processes: Pillow decodes and resizes without the GIL. Each source has one at most.
        pool = ThreadPoolExecutor(max(fetch.THREADS, os.cpu_count()))
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
        try:
            for file, content in source.read(partial(self.wants, source)):
                self.accept(self.names[film_key(file)], f"{file} in {source.name}", content)
        except fetch.UNREADABLE as error:
            return f"{source.name}: {error}"

    def accept(self, name, place, content):
        """Keep the film `name` reduced, unless a copy was kept before, or it cannot be used: then `broken` says why."""
        try:
            if not isinstance(content, bytes):
                raise OSError(content or "the file is damaged, or a link to nothing")
            film = Image.fromarray(reduce_film(io.BytesIO(content), self.size))
        except InputError as error:  # of the machine, not of the film
            raise InputError(f"{name}: {error}") from None
        except OSError as error:
            self.broken[name] = str(error)
            return
        checksum, part = zlib.crc32(content), self.folder / f"{name}.part"
        first, before = self.taken.setdefault(name, (place, checksum))  # of two threads, one is the first
        if before != checksum:
            self.differ[name] = (first, place)
        elif first == place and name in self.needed:
            try:
                # Compression would halve the file and take 1.5 ms more at 256 px. There is no fsync, because the PNG's
                # checksums show what a power cut has damaged.
                film.save(part, "PNG", compress_level=0)
            except OSError as error:  # such as a full disk: the film is not at fault
                raise InputError(f"{self.folder}: {error.strerror}: make room, or choose another --out") from None
            part.replace(self.folder / name)
            self.needed.discard(name)
            self.bar.update()


def list_skipped(intake, problems, options):
    """The films that the set goes without, for source.json. Raises InputError unless it may go without them.

    problems: one line for each source that was not read to its end.
    """
    broken, missing = sorted(intake.needed & intake.broken.keys()), sorted(intake.needed - intake.broken.keys())
    faults = [f"{some(missing)} missing"] if missing else []
    if broken:
        faults.append(f"{some(broken)} unusable ({intake.broken[broken[0]]})")
    if faults and (problems or not options.skip_bad):  # films of an unread archive may be good
        listed, why, ways = intake.folder / "missing.txt", "", "--skip-bad leaves them out"
        write(listed, "\n".join([*missing, *broken, ""]))
        if problems:
            why = f" ({problems[0]})"
            ways = f"or get the archives by hand from {fetch.BY_HAND} and give their folder with --archives"
        what = f"{options.where}: {' and '.join(faults)}{why}, all in {listed}"
        raise InputError(f"{what}: the same command tries them again, {ways}")
    if faults:
        print(f"skipped: {' and '.join(faults)}")
    return {"missing": missing, "undecodable": broken}


def make_set(options, folder, reduced, table, needed, sources, source):
    """Make the set `folder` of the films of `table`, by way of the folder `reduced`. Returns its counts.

    needed: names of the films that are not in `reduced` yet; source: for source.json.
    """
    size = options.size
    with making(folder, reduced, {reduced: len(needed) * size**2, folder: len(table) * size**2}) as made:
        (reduced / "missing.txt").unlink(missing_ok=True)
        if len(needed) < len(table):
            print(f"{len(table) - len(needed)} of {len(table)} films are in {reduced} already")
        intake = Intake(reduced, size, needed)
        problems = intake.read(sources) if needed else []
        source["skipped"] = list_skipped(intake, problems, options)
        table = table[~table["Image Index"].isin(intake.needed)]
        with write_films(made / "images.npy", len(table), size) as films:
            for name in table["Image Index"]:
                with Image.open(reduced / name) as film:
                    films.write(film.tobytes())
        return write_set(made, None, table, source)
