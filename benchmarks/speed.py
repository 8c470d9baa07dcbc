"""How fast a search step is: this project against the textbook supernet driven the way the original drove it.

    python -m benchmarks.speed                      both settings below, 2 CPU cores: about 15 minutes
    python -m benchmarks.speed --setting small      about 2 minutes

A search step is an α step and a w step. The original's way: contiguous tensors, one module per edge and operation, a
new network for every virtual step, all weight gradients in every pass (tests/textbook.py). Both sides take the same
inputs in the same process in turn, and the medians of their steps are compared; memory is the peak of a process of
its own for each side. The derived network and CheXNet are timed against the same modules run the plain way:
contiguous, every convolution as written down. Prints a Markdown table.
"""

import argparse
import copy
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from statistics import median

import torch

import model_eval
import model_search
import utils
from architect import Architect
from chexnet import CheXNet
from genotypes import PUBLISHED
from tests import textbook

FINDINGS = 14
# name: C and cells of the supernet, C and cells of the derived network, pixels, films in a batch
SETTINGS = {
    "tiny": (4, 4, 4, 4, 32, 2),
    "small": (16, 8, 36, 8, 64, 16),
    "reference": (16, 12, 36, 20, 224, 16),
}
SIDES = ("textbook", "ours")


def batch(pixels, films, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(films, FINDINGS, generator=generator) < 0.1).float()
    return torch.randn(films, 3, pixels, pixels, generator=generator), labels


def search_step(side, order, setting):
    """A function that makes one search step, α and w, of one side and order."""
    C, layers, _, _, pixels, films = SETTINGS[setting]
    trn, val = batch(pixels, films, 1), batch(pixels, films, 2)
    torch.manual_seed(0)
    supernet = textbook.TextbookNetwork if side == "textbook" else model_search.Network
    network = supernet(C, FINDINGS, layers)
    optimizer = torch.optim.SGD(network.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    if side == "textbook":
        original = textbook.OriginalArchitect(
            network, lambda: supernet(C, FINDINGS, layers), utils.criterion, optimizer
        )
    else:
        adam = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        architect = Architect(
            network, utils.criterion, optimizer, adam, order != "first", exact=order == "second, exact"
        )

    def step():
        if side == "textbook":
            original.step(*trn, *val, optimizer.param_groups[0]["lr"], order == "second")
        else:
            architect.step(trn, val)
        loss = utils.criterion(network(trn[0]), trn[1])
        optimizer.zero_grad()
        # The original's backward() computes ∇α here, too, and throws it away.
        loss.backward(inputs=None if side == "textbook" else network.weight_parameters())
        torch.nn.utils.clip_grad_norm_(network.weight_parameters(), 5.0)
        optimizer.step()

    return step


def network_passes(make, plain, pixels, films):
    """{pass: {side: function}} of a trained network: a training step, and inference."""
    torch.manual_seed(0)
    network = make()
    sides = {"textbook": plain(copy.deepcopy(network)), "ours": network}
    x, labels = batch(pixels, films, 1)
    passes = {"training step": {}, "inference": {}}
    for side, net in sides.items():
        optimizer = torch.optim.SGD(net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)

        def train(net=net, optimizer=optimizer):
            net.train()
            optimizer.zero_grad()
            utils.criterion(net(x), labels).backward()
            optimizer.step()

        def infer(net=net):
            with torch.inference_mode():
                net.eval()(x)

        passes["training step"][side], passes["inference"][side] = train, infer
    return passes


def alternate(functions, steps):
    """{side: seconds}: medians of `steps` calls of each, in turn, after one call that is not counted."""
    times = {side: [] for side in functions}
    for step in range(steps + 1):
        for side, function in functions.items():
            start = time.perf_counter()
            function()
            if step:
                times[side].append(time.perf_counter() - start)
    return {side: median(values) for side, values in times.items()}


def peak_memory(side, order, setting):
    """Peak resident memory, GB, of a process that makes two search steps."""
    command = [sys.executable, "-m", "benchmarks.speed", "--setting", setting, "--memory-of", side, order]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(setting, steps):
    """Time one setting and print its rows as they come."""
    C, layers, C_eval, layers_eval, pixels, films = SETTINGS[setting]
    ours = {}
    print(f"\nC {C}, {layers} cells, {pixels} px, batch {films}:\n")
    print("| | original's way | ours | ratio | peak memory |\n|---|---:|---:|---:|---:|")

    def row(name, seconds, memory=""):
        ratio = seconds["textbook"] / seconds["ours"]
        print(
            f"| {name} | {seconds['textbook']:.2f} s | {seconds['ours']:.2f} s | {ratio:.2f}× | {memory} |", flush=True
        )

    for order in ("first", "second"):
        seconds = alternate({side: search_step(side, order, setting) for side in SIDES}, steps)
        memory = {side: peak_memory(side, order, setting) for side in SIDES}
        share = memory["ours"] / memory["textbook"]
        ours[order] = seconds["ours"]
        row(
            f"search step, {order} order", seconds, f"{memory['ours']:.1f} of {memory['textbook']:.1f} GB, {share:.2f}×"
        )
    exact = alternate({"ours": search_step("ours", "second, exact", setting)}, steps)["ours"]
    memory = peak_memory("ours", "second, exact", setting)
    print(f"| search step, second order, exact product | – | {exact:.2f} s | – | {memory:.1f} GB |", flush=True)

    cell = PUBLISHED["CHESTXRAY14_FIRST_ORDER"]
    networks = {
        "derived network": (lambda: model_eval.Network(C_eval, FINDINGS, layers_eval, cell), textbook.plain_twin),
        "CheXNet": (lambda: CheXNet(FINDINGS), textbook.plain_twin),
    }
    for name, (make, plain) in networks.items():
        for what, functions in network_passes(make, plain, pixels, films).items():
            row(f"{name}, {what}", alternate(functions, steps))
    print(f"\nOurs: a second-order step takes {ours['second'] / ours['first']:.2f}× a first-order step,", end=" ")
    print(f"{exact / ours['first']:.2f}× with the exact product.", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Times search steps against the original's way of making them.")
    parser.add_argument("--setting", choices=SETTINGS, help="one setting (default: small and reference)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side after one that is not counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "ORDER"), help="print one side's peak memory, GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        step = search_step(*options.memory_of, options.setting)
        step()
        step()
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)
        return
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}", end=", "
    )
    print(f"Python {platform.python_version()}, {date.today()}; medians of {options.steps} steps")
    for setting in [options.setting] if options.setting else ["small", "reference"]:
        report(setting, options.steps)


if __name__ == "__main__":
    main()
