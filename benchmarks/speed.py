"""How fast a search step is: this project against the original's way of making one.

    python -m benchmarks.speed --setting small    4 minutes on 2 CPU cores; without the option far longer

A search step is a step on α and a step on w. The original's way is the supernet of textbook.py with the architect of
benchmarks/original.py; the derived network and CheXNet are timed against their `plain_twin`. Both sides run in turn, on
the same inputs; times are medians, memory is the peak of a process of its own (on Linux alone).
"""

import copy
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model_eval
import model_search
import textbook
import utils
from architect import Architect
from benchmarks.original import OriginalArchitect, plain_twin
from chexnet import CheXNet
from dataset import FINDINGS
from genotypes import PUBLISHED
from support.settings import Parser, guarded

MEMORY = Path("/proc/self/status")  # its VmHWM is the peak resident memory; Linux alone has it
# name: C and cells of the supernet, C and cells of the derived network, pixels, films in a batch
SETTINGS = {"tiny": (4, 4, 4, 4, 32, 2), "small": (16, 8, 36, 8, 64, 16), "reference": (16, 12, 36, 20, 224, 16)}


def batch(pixels, films, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(films, len(FINDINGS), generator=generator) < 0.1).float()
    return torch.randn(films, 3, pixels, pixels, generator=generator), labels


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.025, momentum=0.9, weight_decay=3e-4)


def search_step(side, order, setting):
    """A function that makes one search step, α and w. side: original or ours; order: first, second or exact."""
    C, layers, _, _, pixels, films = SETTINGS[setting]
    trn, val = batch(pixels, films, 1), batch(pixels, films, 2)
    torch.manual_seed(0)
    original = side == "original"
    make_network = partial(textbook.TextbookNetwork if original else model_search.Network, C, len(FINDINGS), layers)
    network = make_network()
    weights = network.weight_parameters()
    optimizer = sgd(weights)
    if original:
        architect = OriginalArchitect(network, make_network, utils.criterion, optimizer, order == "second")
    else:
        adam = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        architect = Architect(network, utils.criterion, optimizer, adam, order != "first", exact=order == "exact")

    def step():
        architect.step(trn, val)
        loss = utils.criterion(network(trn[0]), trn[1])
        optimizer.zero_grad()
        # The original's backward() computes ∇α as well, and throws it away.
        loss.backward(inputs=None if original else weights)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()

    return step


def network_step(network, data, training):
    """A function that makes one training step of a derived network or CheXNet, or one inference."""
    optimizer = sgd(network.parameters())

    def step():
        network.train(training)
        with torch.inference_mode(not training):
            loss = utils.criterion(network(data[0]), data[1])
        if training:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def alternate(functions, steps):
    """Call the functions in turn, each `steps` times and once before; returns the median of each one's seconds."""
    times = [[] for _ in functions]
    for _ in range(steps + 1):
        for function, values in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            values.append(time.perf_counter() - start)
    return [median(values[1:]) for values in times]


def memory_of_steps(side, order, setting):
    """This process's peak resident memory after two search steps, GB."""
    step = search_step(side, order, setting)
    step()
    step()
    # getrusage() would not do: on Linux, a new process starts with the peak of its parent there.
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+)", MEMORY.read_text())
    return int(kilobytes) * 1024 / 1e9


def peak_memory(side, order, setting):
    """`memory_of_steps` of a process of its own; None where /proc does not tell it."""
    if not MEMORY.exists():
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(memory_of_steps, side, order, setting).result()


def report(setting, steps):
    """Time one setting and print its rows as they come."""
    C, layers, C_eval, layers_eval, pixels, films = SETTINGS[setting]
    print(f"\nC {C}, {layers} cells, {pixels} px, batch {films}:\n")
    print("| | original's way | here | ratio | peak memory |\n|---|---:|---:|---:|---:|")

    def row(name, plain, ours, memory=""):
        print(f"| {name} | {plain:.2f} s | {ours:.2f} s | {plain / ours:.2f}× | {memory} |", flush=True)

    seconds = {}
    # Memory comes first, while this process is small: the exact product takes 20 GB in the reference setting.
    memory = {order: peak_memory("ours", order, setting) for order in ("first", "second", "exact")}
    for order in ("first", "second"):
        theirs = peak_memory("original", order, setting)
        plain, seconds[order] = alternate([search_step(side, order, setting) for side in ("original", "ours")], steps)
        peak = f"{memory[order]:.1f} of {theirs:.1f} GB, {memory[order] / theirs:.2f}×" if theirs else "–"
        row(f"search step, {order} order", plain, seconds[order], peak)
    (seconds["exact"],) = alternate([search_step("ours", "exact", setting)], steps)
    peak = f"{memory['exact']:.1f} GB" if memory["exact"] else "–"
    print(f"| search step, exact product | – | {seconds['exact']:.2f} s | – | {peak} |", flush=True)

    data = batch(pixels, films, 1)
    derived = model_eval.Network(C_eval, len(FINDINGS), layers_eval, PUBLISHED["CHESTXRAY14_FIRST_ORDER"])
    for name, network in (("derived network", derived), ("CheXNet", CheXNet(len(FINDINGS)))):
        plain = plain_twin(copy.deepcopy(network))
        for training in (True, False):
            pair = alternate([network_step(net, data, training) for net in (plain, network)], steps)
            row(f"{name}, {'training step' if training else 'inference'}", *pair)
    product = partial(torch.mm, *torch.randn(2, 2048, 2048))  # which a processor does at about its highest rate
    (alone,) = alternate([product], steps)
    work = utils.count_multiply_adds(search_step("ours", "first", setting)) / 1e9
    most = utils.count_multiply_adds(product) / 1e9 / alone
    rate = f"{work:.0f} G multiply-adds, {work / seconds['first']:.0f} G a second"
    print(f"\nHere a first-order step makes {rate}; a matrix product makes {most:.0f} G a second.")
    ratios = [seconds[order] / seconds["first"] for order in ("second", "exact")]
    print("A second-order step takes {:.2f}× a first-order step, {:.2f}× with the exact product.".format(*ratios))


def main():
    parser = Parser(description="Times search steps against the original's way of making them.")
    parser.add_argument("--setting", choices=SETTINGS, help="one setting (default: small and reference)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side after one that is not counted")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}")
    for setting in [options.setting] if options.setting else ["small", "reference"]:
        report(setting, options.steps)


if __name__ == "__main__":
    with guarded():
        main()
