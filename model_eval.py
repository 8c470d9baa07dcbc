"""The derived network: the cell of a genotype, stacked. Trained from scratch by val_train.py.

Legend: B films; C channels of this cell, C_p of the previous, C_pp of the one before. Every intermediate node is the
sum of two operations; a cell's output is the nodes in the genotype's `*_concat`, concatenated along the channels.
"""

import torch
from torch import nn

from genotypes import INPUT_NODES, check_genotype
from operations import OPS, FactorizedReduce, ReLUConvBN, reduction_cells, stem


class Cell(nn.Module):
    """One cell. pairs: the genotype's (operation, source node) list, two per node; concat: its list of output nodes."""

    def __init__(self, pairs, concat, C_pp, C_p, C, reduction, reduction_p):
        super().__init__()
        self.sources, self.concat = [source for _, source in pairs], concat
        # Where the previous cell reduced, s0 has twice the height and width of s1.
        self.preprocess0 = (FactorizedReduce if reduction_p else ReLUConvBN)(C_pp, C)
        self.preprocess1 = ReLUConvBN(C_p, C)
        self.relu = nn.ReLU()
        self.ops = nn.ModuleList(OPS[name](C, 2 if reduction and source < INPUT_NODES else 1) for name, source in pairs)

    def forward(self, s0, s1, keep=None):
        """s0 (B, C_pp, …), s1 (B, C_p, …), keep (B, ops) drop-path factors or None -> (B, len(concat)·C, …).

        s0 and s1 are after their ReLU. All operations that begin with a ReLU share that of the node they read.
        """
        states = [self.preprocess0.after_relu(s0), self.preprocess1.after_relu(s1)]
        rectified = {}
        for k, (op, source) in enumerate(zip(self.ops, self.sources, strict=True)):
            if hasattr(op, "after_relu"):
                if source not in rectified:
                    rectified[source] = self.relu(states[source])
                y = op.after_relu(rectified[source])
            else:
                y = op(states[source])
            if keep is not None and not isinstance(op, nn.Identity):
                y = y * keep[:, k, None, None, None].to(y.dtype)
            if k % 2 == 0:
                first = y
            else:
                states.append(first + y)
        return torch.cat([states[node] for node in self.concat], dim=1)


class Network(nn.Module):
    """Stem, `layers` cells (three of them reduction cells), average pool, linear classifier.

    Raises InputError for fewer than 4 cells and for a genotype that cannot be built.
    """

    def __init__(self, C, num_classes, layers, genotype):
        super().__init__()
        check_genotype(genotype)
        conv, bn, relu, pool = stem(C)
        self.stem = nn.Sequential(conv, bn, pool, relu)  # the same output, with a ReLU of a quarter of the pixels
        self.relu = nn.ReLU()
        C_pp, C_p = 3 * C, 3 * C
        self.cells = nn.ModuleList()
        reductions, reduction_p = reduction_cells(layers), False
        for k in range(layers):
            reduction = k in reductions
            C = 2 * C if reduction else C
            pairs, concat = genotype[2:] if reduction else genotype[:2]
            self.cells.append(Cell(pairs, concat, C_pp, C_p, C, reduction, reduction_p))
            C_pp, C_p, reduction_p = C_p, len(concat) * C, reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_p, num_classes)
        self.to(memory_format=torch.channels_last)

    def drop_path(self, films, probability, generator):
        """Drop-path factors (films, cells, ops of a cell): 0 with `probability`, else 1 / (1 − probability); or None.

        Each film loses each operation's output on its own; identities are never dropped (`Cell.forward`).
        """
        if probability == 0:
            return None
        device = self.classifier.weight.device
        shape = (films, len(self.cells), len(self.cells[0].ops))
        kept = torch.rand(shape, generator=generator, device=device) >= probability
        return kept / (1 - probability)

    def features(self, films, keep=None):
        """The last cell's output: films (B, 3, H, W), H and W multiples of 32 -> (B, channels, H/32, W/32)."""
        s0 = s1 = self.stem(films.contiguous(memory_format=torch.channels_last))
        for k, cell in enumerate(self.cells):
            output = cell(s0, s1, None if keep is None else keep[:, k])
            s0, s1 = s1, self.relu(output)  # once for the two cells that read it
        return output

    def forward(self, films, keep=None):
        """films as `features` takes them; keep: drop-path factors of `drop_path`, or None -> logits (B, classes)."""
        return self.classifier(self.pool(self.features(films, keep)).flatten(1))
