"""Reads and compares what a run's folder records: settings and environment (settings.json), epochs (metrics.jsonl)."""

import json
from pathlib import Path

from support.devices import environment
from support.files import InputError

WITHOUT_EFFECT = {"out", "data", "fresh"}  # settings that say where a run goes, not what it computes
# What affects the result: a run that goes on elsewhere warns.
WITH_EFFECT = ("commit", "torch", "machine", "device", "type", "threads", "ranks")


def make_record(settings, device, also):
    """The content of settings.json: {"settings": {...}, "environment": {...}}.

    settings: the script's; also: what else affects the result, {name: plain value}.
    """
    values = {name: value for name, value in vars(settings).items() if name not in WITHOUT_EFFECT}
    return {"settings": values | {"device": device.type} | also, "environment": environment(device)}


def read_record(folder):
    """What settings.json says of a run, see `make_record`; an empty dict where it is lost or damaged."""
    try:
        return dict(json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def count_epochs(folder):
    """The rows of metrics.jsonl."""
    metrics = Path(folder) / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def refuse_changes(folder, before, now):
    """Raise InputError where the settings `now` are not those of the run in `folder`, `before`; both dicts."""
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if names:
        name, *others = sorted(names, key=lambda name: (name != "dataset", name))
        also = f" (other differences: {', '.join(others)})" if others else ""
        raise InputError(
            f"{folder}: {name} was {before.get(name)!r}, now {now.get(name)!r}{also}; "
            "set it back, start elsewhere with --out FOLDER, or move the old run aside with --fresh"
        )
