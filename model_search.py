"""The supernet of DARTS: every edge of a cell carries a softmax-weighted mix of all candidate operations (eq. 2).

Read textbook.py first. It has one module per edge and operation, as the paper writes it (arXiv 1806.09055). This file
computes the same function, up to rounding, several times faster: it goes from source node to source node. All edges
(i, j) that leave node i read the same x_i, so

- what has no weights is computed once for all of them: the ReLU, max pool + BN, avg pool + BN;
- operations of one kind run as one: their depthwise and pointwise kernels are stacked along the channels;
- the edge's softmax weight is the scale of the operation's last BN, which has none of its own:
  weight · BN(y) costs nothing beyond BN(y). `none` contributes zero and is not computed.

Tensors are channels-last, which roughly halves the time of a step on a CPU.

Legend: B films; C channels of this cell, C_p of the previous, C_pp of the one before; E edges that leave a node,
stacked as E·C channels, edge by edge. The "weights" of an edge are softmax(α / τ), shape (E, operations); the w of the
paper are the networks' other parameters.
"""

from functools import reduce

import torch
from torch import nn

from genotypes import EDGES, INPUT_NODES, INTERMEDIATE, NODES, PRIMITIVES, derive
from operations import (
    DepthwisePointwise,
    EdgeBN,
    FactorizedReduce,
    FactorizedReduceOnEdges,
    ReLUConvBN,
    SepConvOnEdges,
    avg_pool_3x3,
    multiply_adds,
    reduction_cells,
    stem,
)

# The rows of α that belong to the edges leaving each node; the last node has none.
EDGES_FROM = [[e for e, (i, _) in enumerate(EDGES) if i == n] for n in range(INPUT_NODES + NODES - 1)]


def total(tensors):
    """Their sum; the builtin would start from 0, one pass over memory more, and Tensor.sum() loses channels-last."""
    return reduce(torch.add, tensors)


def edge_costs(C, stride):
    """Multiply-adds of each operation on each edge, in units of its sep_conv_5x5, shape (edges, operations).

    stride: of the edges from the cell's inputs. `none` is never derived, so it is no way to save: it costs the mean.
    """
    rows = []
    for source, _ in EDGES:
        cost = multiply_adds(C, stride if source < INPUT_NODES else 1)
        cost = torch.tensor([cost[name] for name in PRIMITIVES if name != "none"]) / cost["sep_conv_5x5"]
        rows.append(torch.cat([cost.mean()[None], cost]))
    return torch.stack(rows)


class MixedEdges(nn.Module):
    """Equation 2, ō(x) = Σ_o softmax(α)_o · o(x), for all E edges that leave one node."""

    def __init__(self, C, E, stride):
        super().__init__()
        self.C, self.relu = C, nn.ReLU()
        self.convs = nn.ModuleDict(
            {
                "sep_conv_3x3": SepConvOnEdges(C, E, 3, stride),
                "sep_conv_5x5": SepConvOnEdges(C, E, 5, stride),
                "dil_conv_3x3": DepthwisePointwise(C, 3, stride, dilation=2, E=E),
                "dil_conv_5x5": DepthwisePointwise(C, 5, stride, dilation=2, E=E),
            }
        )
        # These have no w: their outputs are the same for all edges.
        self.plain = nn.ModuleDict(
            {
                "max_pool_3x3": nn.Sequential(nn.MaxPool2d(3, stride, padding=1), nn.BatchNorm2d(C, affine=False)),
                "avg_pool_3x3": nn.Sequential(avg_pool_3x3(stride), nn.BatchNorm2d(C, affine=False)),
            }
        )
        if stride == 1:
            self.plain["skip_connect"] = nn.Identity()
        else:
            self.convs["skip_connect"] = FactorizedReduceOnEdges(C, E)
        self.bns = nn.ModuleDict({name: EdgeBN(E * C) for name in self.convs})

    def forward(self, x, weights):
        """x (B, C, H, W), weights (E, operations) -> ō(x) of each edge: E tensors (B, C, H/stride, W/stride)."""
        weights = dict(zip(PRIMITIVES, weights.unbind(dim=1), strict=True))
        positive = self.relu(x)
        convolved = total(
            self.bns[name](conv(positive), weights[name].repeat_interleave(self.C)) for name, conv in self.convs.items()
        )
        # Weighted sums for all edges at once: (E, operations) times (operations, B·H·W·C), channels-last as stored.
        plain = torch.stack([op(x).permute(0, 2, 3, 1) for op in self.plain.values()])
        plain_weights = torch.stack([weights[name] for name in self.plain], dim=1)
        plain = (plain_weights @ plain.flatten(1)).view(-1, *plain.shape[1:]).permute(0, 1, 4, 2, 3)
        return [a + b for a, b in zip(convolved.chunk(len(plain), dim=1), plain, strict=True)]  # `none` adds 0


class Cell(nn.Module):
    """Equation 1, x_j = Σ_{i<j} ō_ij(x_i), for the four intermediate nodes j. Nodes 0 and 1 are the inputs.

    The output is the intermediate nodes, concatenated along the channels: 4·C of them.
    """

    def __init__(self, C_pp, C_p, C, reduction, reduction_p):
        super().__init__()
        self.reduction = reduction
        if reduction_p:  # the previous cell reduced: s0 has twice the height and width of s1
            self.preprocess0 = FactorizedReduce(C_pp, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_pp, C, affine=False)
        self.preprocess1 = ReLUConvBN(C_p, C, affine=False)
        self.sources = nn.ModuleList(
            MixedEdges(C, len(edges), stride=2 if reduction and node < INPUT_NODES else 1)
            for node, edges in enumerate(EDGES_FROM)
        )

    def forward(self, s0, s1, weights):
        """s0 (B, C_pp, …), s1 (B, C_p, …), weights: a tensor (E, operations) per source node -> (B, 4·C, …)."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        incoming = {node: [] for node in INTERMEDIATE}
        for node, source in enumerate(self.sources):
            if node >= INPUT_NODES:
                states.append(total(incoming[node]))
            for e, y in zip(EDGES_FROM[node], source(states[node], weights[node]), strict=True):
                incoming[EDGES[e][1]].append(y)
        states.append(total(incoming[INTERMEDIATE[-1]]))
        return torch.cat(states[INPUT_NODES:], dim=1)


class Network(nn.Module):
    """The supernet: stem, `layers` cells (three of them reduction cells), average pool, linear classifier.

    All normal cells share `alphas_normal`, all reduction cells `alphas_reduce`, each (edges, operations); every cell
    has its own w. Raises InputError for fewer than 4 cells.
    """

    def __init__(self, C, num_classes, layers):
        super().__init__()
        costs = torch.stack([edge_costs(C, stride=1), edge_costs(C, stride=2)])  # normal cells, reduction cells
        self.register_buffer("costs", costs, persistent=False)
        self.stem = stem(C)
        C_pp, C_p = 3 * C, 3 * C
        self.cells = nn.ModuleList()
        reductions, reduction_p = reduction_cells(layers), False
        for k in range(layers):
            reduction = k in reductions
            C = 2 * C if reduction else C
            self.cells.append(Cell(C_pp, C_p, C, reduction, reduction_p))
            C_pp, C_p, reduction_p = C_p, NODES * C, reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_p, num_classes)

        # Almost equal, as in the code of the paper's authors; the paper starts at 0 (appendix A.1.1).
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(PRIMITIVES)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(PRIMITIVES)))
        self.temperature = 1.0  # τ of softmax(α / τ); the paper has no τ
        by_source = torch.tensor([e for edges in EDGES_FROM for e in edges])
        self.register_buffer("by_source", by_source, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, films):
        """films (B, 3, H, W), height and width multiples of 32 -> logits (B, num_classes)."""
        sizes = [len(edges) for edges in EDGES_FROM]
        weights_normal, weights_reduce = (
            logits.softmax(dim=-1)[self.by_source].split(sizes) for logits in self.edge_logits()
        )
        s0 = s1 = self.stem(films.contiguous(memory_format=torch.channels_last))
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, weights_reduce if cell.reduction else weights_normal)
        return self.classifier(self.pool(s1).flatten(1))

    def arch_parameters(self):
        """α: of the normal cells, of the reduction cells."""
        return [self.alphas_normal, self.alphas_reduce]

    def edge_logits(self):
        """α / τ of the normal cells and of the reduction cells: what the softmax of each edge is taken of."""
        return [alphas / self.temperature for alphas in self.arch_parameters()]

    def cost(self):
        """Σ softmax(α / τ) · cost over the edges of one normal and one reduction cell of the first cell's C channels.

        cost: an operation's multiply-adds, as a share of those of a sep_conv_5x5 on the same edge (`edge_costs`).
        """
        edges = zip(self.edge_logits(), self.costs, strict=True)
        return total((logits.softmax(dim=-1) * costs).sum() for logits, costs in edges)

    def weight_parameters(self):
        """w: all parameters but α."""
        return [p for name, p in self.named_parameters() if not name.startswith("alphas_")]

    def genotype(self):
        """The cells that `derive` makes of the present α; not of α / τ: at a low τ all edges are near 1."""
        return derive(self.alphas_normal, self.alphas_reduce)
