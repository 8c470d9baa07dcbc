"""How fast a search step is: this project against the textbook supernet driven the way the original drove it.

    python -m benchmarks.speed --setting small    4 minutes on 2 CPU cores; without the option far longer

A search step is an α step and a w step. The original's way: contiguous tensors, one module per edge and operation, a
new network for every virtual step, all weight gradients in every pass (textbook.py). Both sides take the same
inputs in the same process in turn, and the medians of their steps are compared; memory is the peak of a process of
its own for each side. The derived network and CheXNet are timed against the same modules run the plain way:
contiguous, every convolution as written down. Prints a Markdown table.
"""

import argparse
import copy
import platform
import subprocess
import sys
import time
from datetime import date
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
from chexnet import CheXNet
from dataset import FINDINGS
from genotypes import PUBLISHED
from support.settings import guarded

CELL = PUBLISHED["CHESTXRAY14_FIRST_ORDER"]
# name: C and cells of the supernet, C and cells of the derived network, pixels, films in a batch
SETTINGS = {"tiny": (4, 4, 4, 4, 32, 2), "small": (16, 8, 36, 8, 64, 16), "reference": (16, 12, 36, 20, 224, 16)}


def batch(pixels, films, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(films, len(FINDINGS), generator=generator) < 0.1).float()
    return torch.randn(films, 3, pixels, pixels, generator=generator), labels


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.025, momentum=0.9, weight_decay=3e-4)


def search_step(side, order, setting):
    """A function that makes one search step, α and w; side: textbook or ours; order: first, second or exact."""
    C, layers, _, _, pixels, films = SETTINGS[setting]
    trn, val = batch(pixels, films, 1), batch(pixels, films, 2)
    torch.manual_seed(0)
    supernet = textbook.TextbookNetwork if side == "textbook" else model_search.Network
    network = supernet(C, len(FINDINGS), layers)
    weights = network.weight_parameters()
    optimizer = sgd(weights)
    adam = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    ours = Architect(network, utils.criterion, optimizer, adam, order != "first", exact=order == "exact")
    original = textbook.OriginalArchitect(
        network, lambda: supernet(C, len(FINDINGS), layers), utils.criterion, optimizer
    )

    def step():
        if side == "textbook":
            original.step(*trn, *val, optimizer.param_groups[0]["lr"], order == "second")
        else:
            ours.step(trn, val)
        loss = utils.criterion(network(trn[0]), trn[1])
        optimizer.zero_grad()
        # The original's backward() computes ∇α here, too, and throws it away.
        loss.backward(inputs=None if side == "textbook" else weights)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()

    return step


def network_step(network, data, training):
    """A function that makes one training step, or one inference, of a derived network or CheXNet."""
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
    """Medians, in seconds, of `steps` calls of each function, in turn, after one call that is not counted."""
    times = [[] for _ in functions]
    for _ in range(steps + 1):
        for function, values in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            values.append(time.perf_counter() - start)
    return [median(values[1:]) for values in times]


def matrix_product():
    """A function that multiplies two square matrices, float32: about the most that a processor can do."""
    a = torch.randn(2048, 2048)
    return lambda: a @ a


def peak_memory(side, order, setting):
    """Peak resident memory, GB, of a process that makes two search steps (Linux)."""
    command = [sys.executable, __file__, "--setting", setting, "--memory-of", side, order]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(setting, steps):
    """Time one setting and print its rows as they come."""
    C, layers, C_eval, layers_eval, pixels, films = SETTINGS[setting]
    print(f"\nC {C}, {layers} cells, {pixels} px, batch {films}:\n")
    print("| | original's way | here | ratio | peak memory |\n|---|---:|---:|---:|---:|")

    def row(name, plain, ours, memory=""):
        print(f"| {name} | {plain:.2f} s | {ours:.2f} s | {plain / ours:.2f}× | {memory} |", flush=True)

    orders, seconds = ("first", "second", "exact"), {}
    # First of all, while this process is small: the exact product takes 20 GB in the reference setting.
    memory = {order: peak_memory("ours", order, setting) for order in orders}
    for order in ("first", "second"):
        theirs = peak_memory("textbook", order, setting)
        plain, seconds[order] = alternate([search_step(side, order, setting) for side in ("textbook", "ours")], steps)
        peak = f"{memory[order]:.1f} of {theirs:.1f} GB, {memory[order] / theirs:.2f}×"
        row(f"search step, {order} order", plain, seconds[order], peak)
    (seconds["exact"],) = alternate([search_step("ours", "exact", setting)], steps)
    print(f"| search step, exact product | – | {seconds['exact']:.2f} s | – | {memory['exact']:.1f} GB |", flush=True)

    data = batch(pixels, films, 1)
    for name, network in (
        ("derived network", model_eval.Network(C_eval, len(FINDINGS), layers_eval, CELL)),
        ("CheXNet", CheXNet(len(FINDINGS))),
    ):
        plain = textbook.plain_twin(copy.deepcopy(network))
        for training in (True, False):
            pair = alternate([network_step(net, data, training) for net in (plain, network)], steps)
            row(f"{name}, {'training step' if training else 'inference'}", *pair)
    step = search_step("ours", "first", setting)
    product = matrix_product()
    (alone,) = alternate([product], steps)
    work = utils.count_multiply_adds(step) / 1e9
    most = utils.count_multiply_adds(product) / 1e9 / alone
    rate = f"{work:.0f} G multiply-adds, {work / seconds['first']:.0f} G a second"
    print(f"\nHere a first-order step makes {rate}; a matrix product makes {most:.0f} G a second.")
    ratios = [seconds[order] / seconds["first"] for order in ("second", "exact")]
    print("A second-order step takes {:.2f}× a first-order step, {:.2f}× with the exact product.".format(*ratios))


def main():
    parser = argparse.ArgumentParser(description="Times search steps against the original's way of making them.")
    parser.add_argument("--setting", choices=SETTINGS, help="one setting (default: small and reference)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side after one that is not counted")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "ORDER"), help="print one side's peak memory, GB")
    options = parser.parse_args()
    if options.steps < 1 or (options.memory_of and not options.setting):
        parser.error("--steps must be at least 1, and --memory-of goes with a --setting")
    if options.memory_of:
        step = search_step(*options.memory_of, options.setting)
        step()
        step()
        # Not getrusage(): on Linux a new process starts with its parent's peak there.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) * 1024 / 1e9)
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}")
    for setting in [options.setting] if options.setting else ["small", "reference"]:
        report(setting, options.steps)


if __name__ == "__main__":
    with guarded():
        main()
