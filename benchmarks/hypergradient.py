"""How good is the finite-difference product of DARTS? Equation 8 against differentiating twice, on phantom films.

    python -m benchmarks.hypergradient            10 minutes on one busy CPU core

Of a fresh and a partly trained supernet and their smooth twins (softplus for ReLU, average for max pools) it prints, in
float64 and float32, against the exact product in float64 at the same weights, batches and ξ:

- for the product ∇²α,w L_train(w, α) · v, exact and by differences with ε = radius / ‖v‖: cosine and relative error;
- for the whole gradient ∇α L_val(w', α) − ξ · product, and for the first-order gradient: the relative error;
- the size of the second-order term, ‖ξ · product‖ / ‖∇α L_val(w', α)‖.
"""

import copy
import platform
import sys
from datetime import date
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as criterion

if not __package__:  # run by its path: the project's folder, where the imports below lie, is not on Python's path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils
from architect import Architect
from benchmarks.original import smooth_twin
from benchmarks.parts import ROOT
from dataset import Films, Sampler, open_set
from model_search import Network
from support.devices import seed_everything
from support.settings import Parser, guarded

RADII = [10.0**-k for k in range(1, 9)]
W_LR = 0.1  # SGD's learning rate and ξ: those of the phantom's search at the time of the measurement
SETTING = 8, 5, 64, 32, 124  # C, cells, pixels, films in a batch, search steps before the second comparison: two epochs
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


def make_architect(network):
    w_optimizer = torch.optim.SGD(network.weight_parameters(), lr=W_LR, momentum=0.9, weight_decay=3e-4)
    alpha_optimizer = torch.optim.Adam(network.arch_parameters(), 6e-3, (0.5, 0.999), weight_decay=1e-3)
    return Architect(network, criterion, w_optimizer, alpha_optimizer, second_order=False, exact=True)


def search(architect, trn_sampler, val_sampler, steps):
    """Make `steps` first-order search steps, which also fill the momentum."""
    network = architect.network
    for _ in range(steps):
        films, labels = trn = trn_sampler.next()
        architect.step(trn, val_sampler.next())
        utils.descend(criterion(network(films), labels), network.weight_parameters(), architect.w_optimizer, 5.0)


def convert(architect, dtype, smooth):
    """The same point of the search in another precision; smooth: for the smooth twin of the network."""
    network = copy.deepcopy(architect.network).to(dtype)
    other = make_architect(smooth_twin(network) if smooth else network)
    other.w_optimizer.load_state_dict(architect.w_optimizer.state_dict())  # which converts the momentum, too
    return other


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def error(a, reference):
    return ((a - reference).norm() / reference.norm()).item()


def compare(architect, trn, val, smooth):
    """Print the table of one point of the search."""

    def row(precision, product, what):
        cosine = torch.cosine_similarity(product, reference, dim=0)
        errors = f"{error(product, reference):.1e} | {error(first_term - W_LR * product, whole):.1e}"
        print(f"| {precision} | {what} | {cosine:.4f} | {errors} |", flush=True)

    for precision, dtype in PRECISIONS.items():
        at = convert(architect, dtype, smooth)
        batches = [(films.to(dtype), labels.to(dtype)) for films, labels in (trn, val)]
        _, first_term, v, w_grads = at.look_ahead(*batches, W_LR)
        first_term, exact = flat(first_term), flat(at.exact_product(w_grads, v))
        if precision == "float64":
            reference, whole = exact, first_term - W_LR * exact
            print(f"second-order term: {W_LR * exact.norm() / first_term.norm():.2f} of ∇α L_val(w', α)\n")
            print("| precision | product | cosine | error of the product | error of the whole gradient |")
            print("|---|---|---:|---:|---:|")
        print(f"| {precision} | none: first order | – | – | {error(flat(at.first(batches[1])[1]), whole):.1e} |")
        row(precision, exact, "exact")
        for radius in RADII:
            mark = ", the paper's" if radius == 0.01 else ""
            row(precision, flat(at.finite_difference_product(v, batches[0], radius)), f"{radius:.0e}/‖v‖{mark}")


def main():
    Parser(description="Compares the products of the second order on phantom films.").parse_args()
    C, layers, crop, films, steps = SETTING
    device = torch.device("cpu")
    generator = seed_everything(0, device)
    data = open_set(ROOT / "data", "phantom")
    trn_sampler, val_sampler = (Sampler(Films(data, s, crop, device), films, generator) for s in ("train", "val"))
    network = Network(C, len(data.findings), layers)
    utils.start_at_prevalence(network.classifier, trn_sampler.films.labels)
    recipe = f"{data.name}, C {C}, {layers} cells, {crop} px, batch {films}, ξ = {W_LR}"
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}; {recipe}")
    architect = make_architect(network)
    trn, val = trn_sampler.next(), val_sampler.next()
    for count, name in ((0, "fresh"), (steps, f"after {steps} steps")):
        search(architect, trn_sampler, val_sampler, count)
        for smooth in (False, True):
            print(f"\n### {name}, {'smooth twin' if smooth else 'ReLU'}\n")
            compare(architect, trn, val, smooth)


if __name__ == "__main__":
    with guarded():
        main()
