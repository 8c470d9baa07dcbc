"""Several processes, one run: each rank takes its slice of every batch, and gradients are averaged over the ranks.

    torchrun --nproc-per-node=2 search_train.py

One rank per GPU (NCCL), or ranks on CPUs (gloo), on one machine or on many that share the folders of DATA and OUT.
What is random is drawn for the whole batch by every rank and then sliced, so the number of ranks changes no draw.
BatchNorm trains on a rank's own slice. Without torchrun there is one rank, and nothing here does anything.
"""

import contextlib
import os
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import torch
import torch.distributed as dist


class Ranks:
    """The ranks of a run: `count` of them, this process is number `rank` and computes on `device`."""

    def __init__(self, device):
        """Join the other ranks if torchrun started this process; device: torch.device, any of its kind."""
        launched = dist.is_torchelastic_launched()
        self.rank, self.count = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE")) if launched else (0, 1)
        self.device = device
        self.signal = 0  # the number of the signal that asked this rank to stop
        self.signals = None  # the sum of all ranks' when they last met
        if self.count > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            else:
                self.device = torch.device("cpu")  # gloo knows no MPS
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.asking_waits = self.count > 1 and device.type == "cuda"  # reading a tensor makes a GPU wait

    def environment(self):
        """Where this runs: {"commit", "python", "torch", "machine", "device", "threads", "ranks", "date"}."""
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            commit = "unknown"
        return {
            "commit": commit,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.platform(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "threads": torch.get_num_threads(),
            "ranks": self.count,
            "date": datetime.now().isoformat(timespec="seconds"),
        }

    def part(self, batch_size):
        """This rank's slice of a batch. Raises ValueError where the batch cannot be divided evenly."""
        if batch_size % self.count:
            raise ValueError(f"batch size {batch_size} cannot be divided among {self.count} ranks")
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def average(self, tensors):
        """The mean of each tensor over the ranks, by one all-reduce of all of them together; bit-equal on every rank.

        For a gradient and its loss, of one floating-point type. Whether a rank was asked to stop travels along.
        """
        if self.count == 1:
            return tensors
        asked = tensors[0].new_full((1,), self.signal)
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), asked])
        dist.all_reduce(flat)
        self.signals = flat[-1]
        means = (flat[:-1] / self.count).split([tensor.numel() for tensor in tensors])
        # In the memory format of each, so that what follows is computed as by one process.
        return [torch.empty_like(t).copy_(mean.view(t.shape)) for t, mean in zip(tensors, means, strict=True)]

    def asked_to_stop(self):
        """Whether any rank was, by a signal: the same answer on all ranks, as of their last average."""
        return bool(self.signal if self.count == 1 else self.signals)

    def sum(self, tensor):
        """Add up a tensor over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def share_buffers(self, network):
        """Give every rank the BatchNorm statistics of rank 0; each has those of its own slices."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def wait(self):
        """Wait until all ranks are here."""
        if self.count > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first_rank_first(self):
        """Rank 0 passes through the block before the others do: what it makes there on disk, they find."""
        if self.rank > 0:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()
