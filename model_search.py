"""The supernet of DARTS: every edge of a cell carries a softmax-weighted mix of all candidate operations (eq. 2).

Read textbook.py first. It has one module per edge and operation, as the paper writes it (arXiv 1806.09055). This file
computes the same function, up to rounding, in about a third of the time: it computes a cell one source node at a time.
All edges (i, j) that leave node i read the same x_i, so

- operations without weights are computed once for all these edges: the ReLU, max pool + BN, avg pool + BN;
- operations of one kind run as one: their depthwise and pointwise kernels are stacked along the channels;
- the softmax weight of an edge is the scale of the operation's last BN, which has no scale of its own, so that
  weight · BN(y) costs no more than BN(y);
- `none` contributes zero and is not computed.

Tensors are channels-last: on a CPU this halves the time of a step.

Legend: B films; C channels of this cell, C_p of the previous, C_pp of the one before; E edges that leave a node,
stacked as E·C channels, edge by edge. The "weights" of an edge are softmax(α / τ), shape (E, operations). They are not
the paper's w, which are all other parameters of the network.
"""

from collections import OrderedDict
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

from genotypes import EDGES, INPUT_NODES, INTERMEDIATE, NODES, PRIMITIVES, derive
from operations import (
    OPS,
    DepthwisePointwise,
    FactorizedReduce,
    ReLUConvBN,
    even_and_odd_pixels,
    multiply_adds,
    reduction_cells,
    stem,
)

# For each node but the last: the rows of α of the edges that leave it.
EDGES_FROM = [[e for e, (i, _) in enumerate(EDGES) if i == n] for n in range(INPUT_NODES + NODES - 1)]


def total(tensors):
    """The sum of tensors of one shape. The builtin sum() would add 0 first; Tensor.sum() would lose channels-last."""
    return reduce(torch.add, tensors)


def edge_costs(C, stride):
    """Multiply-adds of each operation on each edge, divided by those of sep_conv_5x5 there: (edges, operations).

    stride: that of the edges from the cell's two inputs; the others have stride 1. `none` costs the mean of the other
    operations, because a derived cell never has it: another operation will stand there.
    """
    each = [multiply_adds(C, stride if source < INPUT_NODES else 1) for source, _ in EDGES]
    costs = torch.tensor([[cost[name] / cost["sep_conv_5x5"] for name in PRIMITIVES[1:]] for cost in each])
    return torch.cat([costs.mean(dim=1, keepdim=True), costs], dim=1)


# --- Operations on all E edges that leave a node, outputs stacked edge by edge as E·C channels. `MixedEdges` has their
# first ReLU and their last BN. A BN within has no scale and shift, as everywhere in the search.


class EdgeBN(nn.BatchNorm2d):
    """BN over E·C stacked channels whose scale is the softmax weight of the edge: weight · BN(y)."""

    def __init__(self, channels):
        super().__init__(channels, affine=False)
        self.num_batches_tracked = None  # torch needs it for cumulative averages alone, and these are moving ones

    def forward(self, y, scale):
        """y (B, E·C, H, W), scale (E·C,) -> (B, E·C, H, W)."""
        return F.batch_norm(y, self.running_mean, self.running_var, scale, None, self.training, self.momentum, self.eps)


class SepConvOnEdges(nn.Sequential):
    """sep_conv_k×k, from after its first ReLU to before its last BN: (B, C, H, W) -> (B, E·C, H/stride, W/stride)."""

    def __init__(self, C, E, kernel_size, stride):
        first, second = DepthwisePointwise(C, kernel_size, stride, E=E), DepthwisePointwise(C, kernel_size, E=E)
        bn = nn.BatchNorm2d(E * C, affine=False)
        super().__init__(OrderedDict(first=first, bn=bn, relu=nn.ReLU(), second=second))


class FactorizedReduceOnEdges(nn.Module):
    """skip_connect of stride 2, from after its ReLU to before its BN: (B, C, H, W) -> (B, E·C, H/2, W/2)."""

    def __init__(self, C, E):
        super().__init__()
        self.E = E
        self.even = nn.Conv2d(C, E * C // 2, 1, bias=False)
        self.odd = nn.Conv2d(C, E * C // 2, 1, bias=False)

    def forward(self, x):
        even, odd = even_and_odd_pixels(x)
        halves = self.even(even).chunk(self.E, dim=1), self.odd(odd).chunk(self.E, dim=1)
        return torch.cat([half for edge in zip(*halves, strict=True) for half in edge], dim=1)


# --- The supernet


class MixedEdges(nn.Module):
    """Equation 2, ō(x) = Σ_o softmax(α)_o · o(x), for all E edges that leave one node."""

    def __init__(self, C, E, stride):
        super().__init__()
        self.C, self.relu = C, nn.ReLU()
        convs = {
            "sep_conv_3x3": SepConvOnEdges(C, E, 3, stride),
            "sep_conv_5x5": SepConvOnEdges(C, E, 5, stride),
            "dil_conv_3x3": DepthwisePointwise(C, 3, stride, dilation=2, E=E),
            "dil_conv_5x5": DepthwisePointwise(C, 5, stride, dilation=2, E=E),
        }
        # Without weights, so their outputs are the same on all edges.
        pools = {name: OPS[name](C, stride) for name in ("max_pool_3x3", "avg_pool_3x3")}
        plain = {name: nn.Sequential(pool, nn.BatchNorm2d(C, affine=False)) for name, pool in pools.items()}
        self.convs, self.plain = nn.ModuleDict(convs), nn.ModuleDict(plain)
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
        # The weighted sums of all edges are one product of matrices: (E, operations) times (operations, B·H·W·C).
        plain = torch.stack([op(x).permute(0, 2, 3, 1) for op in self.plain.values()])
        plain_weights = torch.stack([weights[name] for name in self.plain], dim=1)
        plain = (plain_weights @ plain.flatten(1)).view(-1, *plain.shape[1:]).permute(0, 1, 4, 2, 3)
        return [a + b for a, b in zip(convolved.chunk(len(plain), dim=1), plain, strict=True)]  # `none` adds 0


class Cell(nn.Module):
    """Equation 1, x_j = Σ_{i<j} ō_ij(x_i), for the four intermediate nodes j. Nodes 0 and 1 are the inputs.

    The output concatenates the intermediate nodes along the channels, 4·C in all.
    """

    def __init__(self, C_pp, C_p, C, reduction, reduction_p):
        super().__init__()
        self.reduction = reduction
        # Where the previous cell reduced, s0 has twice the height and width of s1.
        self.preprocess0 = (FactorizedReduce if reduction_p else ReLUConvBN)(C_pp, C, affine=False)
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

    All normal cells share `alphas_normal`, all reduction cells `alphas_reduce`, each (edges, operations). Every cell
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

        # Nearly equal at the start, as in the code of the paper's authors. The paper starts at 0 (appendix A.1.1).
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(PRIMITIVES)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(PRIMITIVES)))
        self.temperature = 1.0  # τ of softmax(α / τ); the paper has no τ
        by_source = torch.tensor([e for edges in EDGES_FROM for e in edges])
        self.register_buffer("by_source", by_source, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, films):
        """films (B, 3, H, W), height and width multiples of 32 -> logits (B, num_classes)."""
        sizes = [len(edges) for edges in EDGES_FROM]
        weights = [logits.softmax(dim=-1)[self.by_source].split(sizes) for logits in self.edge_logits()]
        s0 = s1 = self.stem(films.contiguous(memory_format=torch.channels_last))
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, weights[cell.reduction])  # of normal cells, of reduction cells
        return self.classifier(self.pool(s1).flatten(1))

    def arch_parameters(self):
        """α: of the normal cells, of the reduction cells."""
        return [self.alphas_normal, self.alphas_reduce]

    def edge_logits(self):
        """α / τ of the normal and of the reduction cells, each (edges, operations): the input of the softmax."""
        return [alphas / self.temperature for alphas in self.arch_parameters()]

    def cost(self):
        """Σ softmax(α / τ) · `edge_costs` over the edges of one normal and one reduction cell with C channels: ()."""
        edges = zip(self.edge_logits(), self.costs, strict=True)
        return total((logits.softmax(dim=-1) * costs).sum() for logits, costs in edges)

    def weight_parameters(self):
        """w: all parameters but α, a list."""
        return [p for name, p in self.named_parameters() if not name.startswith("alphas_")]

    def genotype(self):
        """What `derive` makes of α; not of α / τ, since at a low τ the best weight of every edge is near 1."""
        return derive(self.alphas_normal, self.alphas_reduce)
