"""Films on their way into a set: each is read once, reduced and kept as a PNG file; the set is made of these.

A command that was stopped goes on from the films that are there.
"""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from data import fetch_chestxray14 as fetch
from data.films import film_key, is_film, reduce_film, tell_others
from data.labels_chestxray14 import some
from data.making import write_films, write_set
from dataset import SPLITS
from support.files import UNFINISHED, InputError, write
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
        except InputError as error:  # of the machine, not of the film
            raise InputError(f"{path.name}: {error}") from None
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


def list_skipped(intake, problems, where, skip_bad, by_hand=""):
    """The films that the set goes without, for source.json. Raises InputError unless it may go without them.

    problems: one line for each source that was not read to its end; where: the films come from; by_hand: what else
    helps where there are problems.
    """
    broken, missing = sorted(intake.needed & intake.broken.keys()), sorted(intake.needed - intake.broken.keys())
    faults = [f"{some(missing)} missing"] if missing else []
    if broken:
        faults.append(f"{some(broken)} unusable ({intake.broken[broken[0]]})")
    if faults and (problems or not skip_bad):  # films of an unread archive may be good
        listed = intake.folder / "missing.txt"
        write(listed, "\n".join([*missing, *broken, ""]))
        ways = "the same command tries them again" + (by_hand if problems else ", --skip-bad leaves them out")
        why = f" ({problems[0]})" if problems else ""
        raise InputError(f"{where}: {' and '.join(faults)}{why}, all in {listed}: {ways}")
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
