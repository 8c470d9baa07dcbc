"""From a weights file to a network, which networks a table compares, and what they cost."""

from functools import partial
from pathlib import Path

import torch

import model_eval
import utils
from chexnet import CheXNet
from dataset import FINDINGS, crop_of
from genotypes import check_name, parse_genotype
from scores import BASELINE
from support.files import InputError, load_state


def load_network(path):
    """The network of a weights file, on the CPU, and the dict that the file holds (docs/runs.md), with its `path`.

    Raises InputError.
    """
    try:
        saved = load_state(path)
        settings = saved["settings"]
        if absent := {"checksum", "crop", "dataset"} - settings.keys() | {"epoch", "val_auc"} - saved.keys():
            raise KeyError(*absent)
        classes = len(findings_of(saved))
        if "genotype" in settings:
            genotype = parse_genotype(settings["genotype"])
            network = model_eval.Network(settings["c"], classes, settings["layers"], genotype)
        else:
            network = CheXNet(classes)
        network.load_state_dict(saved["weights"])
    except (OSError, MemoryError):
        raise
    except Exception:  # torch raises many kinds for a file that is not what it should be
        what = "damaged, or not a weights file of this project"
        raise InputError(f"{path}: {what}: train it again, or move it away") from None
    if not all(tensor.isfinite().all() for tensor in saved["weights"].values()):
        raise InputError(f"{path}: holds weights that are not finite: train it again, or move it away")
    return network, saved | {"path": str(path)}


def findings_of(saved):
    """The names of a network's outputs, in order, from its weights file; older files have ChestX-ray14's."""
    return tuple(saved["settings"].get("findings", FINDINGS))


def find_networks(folder, data, second_order, optional):
    """{name: (network, what its file holds)} of the weights files in `folder` that were trained on the set `data`.

    The network of the selected order comes first, CheXNet last. Files of other sets are left out, with a line. Raises
    InputError where none is left, or not that of the second order if it is selected, unless networks are `optional`;
    and for a network whose findings are not those of the set, in the same order.
    """
    selected = "second_order" if second_order else "first_order"
    networks, foreign = {}, {}
    for path in sorted(Path(folder).glob("*_net.pth")):
        name = path.name.removesuffix("_net.pth")
        check_name(name)
        network, saved = load_network(path)
        if saved["settings"]["checksum"] != data.checksum:
            trained_on = saved["settings"]["dataset"]
            foreign[name] = f"{path}: trained on another set ({trained_on}, or another version of {data.name})"
        elif findings_of(saved) != data.findings:
            theirs, ours = ", ".join(findings_of(saved)), ", ".join(data.findings)
            raise InputError(f"{path}: its findings are {theirs}, those of {data.name} are {ours}: train it again")
        else:
            networks[name] = network, saved

    if selected not in networks and not optional and (second_order or not networks):
        if selected in foreign:
            raise InputError(f"{foreign[selected]}: give --out the folder of this set's runs")
        command = f"'python val_train.py{' --second-order' * second_order}'"
        raise InputError(f"{Path(folder) / selected}_net.pth is missing: run {command} first, with the same --out")
    for problem in foreign.values():
        print(f"{problem}, left out")
    return {name: networks[name] for name in sorted(networks, key=lambda n: (n == BASELINE, n != selected, n))}


def common_crop(networks, data):
    """The networks' common crop, px; without networks the films' size, down to a multiple of 32. Raises InputError."""
    crops = {name: saved["settings"]["crop"] for name, (_, saved) in networks.items()}
    if len(set(crops.values())) > 1:  # their scores would not be comparable
        where = "move the others out of weights/, or train them again with --crop"
        raise InputError(f"the networks were trained at different crops, {crops}: {where}")
    return next(iter(crops.values()), crop_of(data.images.shape[1], 0))


def costs(network, crop):
    """A network's parameters in millions, and its multiply-adds in billions for one film of `crop` × `crop` px."""
    film = torch.zeros(1, 3, crop, crop, device=network.classifier.weight.device)
    with torch.inference_mode():
        multiply_adds = utils.count_multiply_adds(partial(network.eval(), film))
    return sum(p.numel() for p in network.parameters()) / 1e6, multiply_adds / 1e9
