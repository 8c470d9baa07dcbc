"""One run by several processes: each rank takes its slice of every batch, and gradients are averaged over the ranks.

    torchrun --nproc-per-node=2 search_train.py

One rank per GPU (NCCL), or ranks on CPUs (gloo), on one machine or on many that share the folders of DATA and OUT.
What is random is drawn for the whole batch by every rank and then sliced, so the number of ranks changes no draw.
BatchNorm trains on a rank's own slice. Without torchrun there is one rank, and every function here changes nothing.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from support.files import InputError


def join(device):
    """Join the other ranks if torchrun started this process; returns the device of this rank, like `device`."""
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return device
    if device.type != "cuda":
        dist.init_process_group("gloo")
        return torch.device("cpu")  # gloo does not support MPS
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise InputError(f"torchrun started more processes than there are GPUs, {gpus}: --nproc-per-node {gpus}")
    torch.cuda.set_device(local)
    dist.init_process_group("nccl")
    return torch.device("cuda", local)


def count():
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def part(batch_size):
    """This rank's slice of a batch. Raises InputError where the batch cannot be divided evenly."""
    if batch_size % count():
        raise InputError(f"batch size {batch_size} cannot be divided among {count()} ranks")
    size = batch_size // count()
    return slice(rank() * size, (rank() + 1) * size)


def average(tensors):
    """The mean of each tensor over the ranks, by one all-reduce of all of them together; bit-equal on every rank.

    tensors: of one floating-point type, such as a loss and its gradient.
    """
    if count() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    means = (flat / count()).split([tensor.numel() for tensor in tensors])
    # Each keeps its memory format, so that later operations run as in a single process.
    return [torch.empty_like(t).copy_(mean.view(t.shape)) for t, mean in zip(tensors, means, strict=True)]


def total(tensor):
    """Add up a tensor over the ranks, in place."""
    if count() > 1:
        dist.all_reduce(tensor)


def largest(number, device):
    """The largest of the ranks' integers."""
    if count() == 1:
        return number
    number = torch.tensor(number, device=device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def share_buffers(network):
    """Give every rank the BatchNorm statistics of rank 0; each has those of its own slices."""
    if count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def wait():
    """Wait until all ranks are here."""
    if count() > 1:
        dist.barrier()


@contextmanager
def first_rank_first():
    """Rank 0 runs the block first; the other ranks then find the files that it made."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()
