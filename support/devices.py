"""Where a run computes: its device, its seeds, its floating-point types, and what is recorded of all this."""

import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import torch

from support import ranks
from support.files import InputError


def select_device(name):
    """The torch.device to compute on: "auto" is cuda, else mps, else cpu; or a name such as "cuda:1".

    Under torchrun this process joins the other ranks and has one GPU of its own. Raises InputError for a device that is
    unknown or not there.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if str(name).partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is unknown: use auto, cpu, cuda or mps")
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError):
        raise InputError(f"device {name!r}: there is no such device here") from None
    return ranks.join(torch.device(name))


def seed_everything(seed, device, deterministic=False):
    """Seed the initial weights (torch's own generator) and return the one generator of all other draws.

    deterministic: torch uses algorithms that give the same bits each time, and warns of operations that have none.
    """
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    return torch.Generator(device).manual_seed(seed)


def autocast_type(device):
    """The type of the w step and of trainings: bfloat16 on GPUs that have it (from Ampere on), else float32.

    Other GPUs emulate bfloat16 slowly, and float16 would need scaled losses.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def autocast(device):
    """A context in which a network computes in `autocast_type`."""
    dtype = autocast_type(device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def environment(device):
    """Where this runs: {"commit", "python", "torch", "machine", "device", "type", "threads", "ranks", "date"}."""
    root = Path(__file__).parent.parent
    # Else git would go on to a repository that holds this folder, or to the one that GIT_DIR names.
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    git += ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "type": str(autocast_type(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "ranks": ranks.count(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }
