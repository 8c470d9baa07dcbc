"""DARTS as the paper writes it (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055). Read this file first.

    python textbook.py    searches for a few steps on noise and prints the two cells

It is complete, plain and slow: one module per edge and operation, one call per module. From top to bottom:

    the candidate operations     section 3.1
    MixedOp                      equation 2: an edge carries a mix of all operations
    Cell                         equation 1: a node is the sum over its edges
    TextbookNetwork              the supernet, a stack of cells
    three gradients of α         equations 3 to 8: first order, second order exact and by differences
    derive                       section 2.4: the cell that α stands for
    search                       Algorithm 1

model_search.py and architect.py compute the same faster, and the tests compare them with this file. This file imports
nothing of the project, so that an error there cannot hide here.

Words: w weights, α architecture parameters, ξ step of the virtual update, ε finite-difference step.
C_pp, C_p, C: channels of cells k-2, k-1, k. A batch is films (B, 3, H, W) and labels (B, classes) of 0 and 1.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import get_total_norm

INPUT_NODES = 2
NODES = range(INPUT_NODES, 6)  # the intermediate nodes
EDGES = [(i, j) for j in NODES for i in range(j)]  # the rows of α


# --- Operations: each maps (B, C, H, W) to (B, C, H / stride, W / stride)


def batch_norm(C):
    """BatchNorm as in the search, without scale and shift, which would rescale what α weighs."""
    return nn.BatchNorm2d(C, affine=False)


class Zero(nn.Module):
    """`none`, no connection: (B, C, H, W) -> zeros (B, C, H / stride, W / stride)."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """`skip_connect` of stride 2: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2), with even H, W and C_out.

    Two 1x1 convolutions of stride 2, on the even and on the odd pixels, make half of the channels each.
    """

    def __init__(self, C_in, C_out):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = batch_norm(C_out)

    def forward(self, x):
        x = self.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


def relu_conv_bn(C_in, C_out):
    """Changes the number of channels: (B, C_in, H, W) -> (B, C_out, H, W)."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(C_in, C_out, 1, bias=False), batch_norm(C_out))


def separable(C, kernel, stride, dilation=1):
    """ReLU, depthwise convolution, pointwise convolution, BatchNorm; padded to keep the size at stride 1."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        batch_norm(C),
    )


def sep_conv(C, kernel, stride):
    """Two separable convolutions in a row (section 3.1), of which the first has the stride."""
    return nn.Sequential(*separable(C, kernel, stride), *separable(C, kernel, 1))


# The columns of α, in this order; each makes its operation for C channels. Pools do not count their padding.
OPERATIONS = {
    "none": lambda C, stride: Zero(stride),
    "max_pool_3x3": lambda C, stride: nn.Sequential(nn.MaxPool2d(3, stride, 1), batch_norm(C)),
    "avg_pool_3x3": lambda C, stride: nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), batch_norm(C)),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: sep_conv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: sep_conv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: separable(C, 3, stride, dilation=2),
    "dil_conv_5x5": lambda C, stride: separable(C, 5, stride, dilation=2),
}


# --- The supernet: mixed operation, cell, network


class MixedOp(nn.Module):
    """Equation 2, the mixed operation of one edge: ō(x) = Σ_o softmax(α)_o · o(x)."""

    def __init__(self, C, stride):
        super().__init__()
        self.operations = nn.ModuleList(make(C, stride) for make in OPERATIONS.values())

    def forward(self, x, weights):
        """x (B, C, H, W), weights (8 operations) -> (B, C, H / stride, W / stride)."""
        return sum(weight * operation(x) for weight, operation in zip(weights, self.operations, strict=True))


class Cell(nn.Module):
    """Equation 1: node x_j = Σ_{i<j} ō_ij(x_i). Nodes 0 and 1 are the outputs of the two cells before this one.

    Both are first brought to C channels and to the size of the nearer one, s1. In a reduction cell their edges have
    stride 2. The output concatenates the four intermediate nodes: 4 C channels.
    """

    def __init__(self, C_pp, C_p, C, reduction, previous_reduction):
        super().__init__()
        self.preprocess0 = FactorizedReduce(C_pp, C) if previous_reduction else relu_conv_bn(C_pp, C)
        self.preprocess1 = relu_conv_bn(C_p, C)
        self.reduction = reduction
        self.edges = nn.ModuleList(MixedOp(C, 2 if reduction and i < INPUT_NODES else 1) for i, _ in EDGES)

    def forward(self, s0, s1, weights):
        """s0 (B, C_pp, ...), s1 (B, C_p, H, W), weights (14 edges, 8 operations) -> (B, 4 C, H or H / 2, ...)."""
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in NODES:
            incoming = [(e, i) for e, (i, j) in enumerate(EDGES) if j == node]
            nodes.append(sum(self.edges[e](nodes[i], weights[e]) for e, i in incoming))
        return torch.cat(nodes[INPUT_NODES:], dim=1)


class TextbookNetwork(nn.Module):
    """The supernet: a stem, `layers` cells (at least 4), average pooling, a linear classifier.

    The cells at layers//4, 2*layers//4 and 3*layers//4 are reduction cells: half the size, twice the channels. Normal
    cells share `alphas_normal`, reduction cells `alphas_reduce`, each (14 edges, 8 operations); w is not shared.
    The paper has two reduction cells, at a third and two thirds of the depth, a stem for 32 pixels, and α = 0 at first.
    """

    def __init__(self, C, num_classes, layers):
        super().__init__()
        self.stem = nn.Sequential(  # (B, 3, H, W) -> (B, 3 C, H / 4, W / 4)
            nn.Conv2d(3, 3 * C, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(3 * C),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.cells = nn.ModuleList()
        C_pp, C_p, previous_reduction = 3 * C, 3 * C, False
        for k in range(layers):
            reduction = k in (layers // 4, 2 * layers // 4, 3 * layers // 4)
            C = 2 * C if reduction else C
            self.cells.append(Cell(C_pp, C_p, C, reduction, previous_reduction))
            C_pp, C_p, previous_reduction = C_p, len(NODES) * C, reduction
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_p, num_classes)
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(OPERATIONS)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(OPERATIONS)))

    def arch_parameters(self):
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self):
        return [p for name, p in self.named_parameters() if not name.startswith("alphas_")]

    def forward(self, films):
        """films (B, 3, H, W) -> logits (B, num_classes)."""
        s0 = s1 = self.stem(films)
        for cell in self.cells:
            alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
            s0, s1 = s1, cell(s0, s1, alphas.softmax(dim=-1))
        return self.classifier(self.pooling(s1).flatten(1))


# --- The gradient of α (section 2.3). The search minimises L_val(w*(α), α) over α, where w*(α) minimises L_train(w, α)
# (equations 3 and 4). Each step of α needs ∇α L_val(w*(α), α) (equation 5), but to train until w* takes too long.
# Equation 6 takes one step of SGD instead: w'(α) = w − ξ ∇w L_train(w, α).
#
# Three functions compute the gradient: first order, second order exactly, second order by differences. All take the
# network, the velocity of SGD (see `sgd_direction`), ξ, a batch of train and one of val. They return one tensor for
# each of arch_parameters() and change neither α nor w.

MOMENTUM = 0.9  # μ of SGD; the paper's experiments have μ and λ, its equations leave them out
WEIGHT_DECAY = 3e-4  # λ of SGD
CLIP = 5.0  # largest norm of ∇w L_train in a step of w


def loss(network, w, batch):
    """L(w, α) on a batch, a tensor (): the binary cross-entropy, mean over films and classes.

    w: tensors in the order of weight_parameters(), which stand in for the network's own weights.
    """
    films, labels = batch
    names = [name for name, _ in network.named_parameters() if not name.startswith("alphas_")]
    logits = functional_call(network, dict(zip(names, w, strict=True)), (films,))
    return binary_cross_entropy_with_logits(logits, labels)


def sgd_direction(w, grad, velocity):
    """u = μ · velocity + grad + λ w. A step of SGD is w − ξ u, and u is the velocity in the next step.

    w, grad, velocity: lists of tensors of the same shapes. The velocity is zero in the first step.
    """
    return [MOMENTUM * u + g + WEIGHT_DECAY * p for p, g, u in zip(w, grad, velocity, strict=True)]


def virtual_step(w, grad, velocity, xi):
    """w' of equation 6, a list of tensors: what one step of SGD would make of w. Differentiable in w and grad."""
    return [p - xi * u for p, u in zip(w, sgd_direction(w, grad, velocity), strict=True)]


def first_order_gradient(network, velocity, xi, trn, val):
    """First order, equation 6 with ξ = 0: w' = w, and the gradient is ∇α L_val(w, α)."""
    return torch.autograd.grad(loss(network, network.weight_parameters(), val), network.arch_parameters())


def unrolled_gradient(network, velocity, xi, trn, val):
    """Second order, equation 6 as it stands: ∇α L_val(w'(α), α), exactly.

    Autograd goes from L_val through w' into ∇w L_train. The chain rule makes equation 7 of it:
    ∇α L_val(w', α) − ξ ∇²α,w L_train(w, α) · ∇w' L_val(w', α).
    """
    w = network.weight_parameters()
    grad = torch.autograd.grad(loss(network, w, trn), w, create_graph=True)  # ∇w L_train(w, α), a function of α
    w_virtual = virtual_step(w, grad, velocity, xi)  # w'(α)
    return torch.autograd.grad(loss(network, w_virtual, val), network.arch_parameters())


def gradient_by_differences(network, velocity, xi, trn, val):
    """Second order as in the paper: equation 7 with its product by central differences (equation 8),

    ∇α L_val(w', α) − ξ (∇α L_train(w⁺, α) − ∇α L_train(w⁻, α)) / 2ε,
    where w± = w ± ε v, v = ∇w' L_val(w', α) and ε = 0.01 / ‖v‖.
    """
    w, alpha = network.weight_parameters(), network.arch_parameters()
    grad = torch.autograd.grad(loss(network, w, trn), w)
    w_virtual = virtual_step(w, grad, velocity, xi)
    val_loss = loss(network, w_virtual, val)
    first_term = torch.autograd.grad(val_loss, alpha, retain_graph=True)  # ∇α L_val(w', α)
    v = torch.autograd.grad(val_loss, w_virtual)  # ∇w' L_val(w', α)
    eps = 0.01 / get_total_norm(v)
    w_plus = [p + eps * d for p, d in zip(w, v, strict=True)]
    w_minus = [p - eps * d for p, d in zip(w, v, strict=True)]
    plus = torch.autograd.grad(loss(network, w_plus, trn), alpha)
    minus = torch.autograd.grad(loss(network, w_minus, trn), alpha)
    return [g - xi * (p - m) / (2 * eps) for g, p, m in zip(first_term, plus, minus, strict=True)]


# --- The search, and the cells it finds


def derive(alphas):
    """Section 2.4: α (14 edges, 8 operations) -> the discrete cell, {node: its two (operation, source node) pairs}.

    The strength of an edge is the softmax weight of its best operation other than `none`. Each intermediate node keeps
    its two strongest edges, the stronger one first; of equal edges, the one from the earlier node.
    """
    strengths, best = alphas.detach().softmax(dim=-1)[:, 1:].max(dim=-1)  # column 0 is `none`
    names, cell = list(OPERATIONS)[1:], {}
    for node in NODES:
        incoming = [e for e, (_, j) in enumerate(EDGES) if j == node]
        strongest = sorted(incoming, key=lambda e: -strengths[e])[:2]
        cell[node] = [(names[best[e]], EDGES[e][0]) for e in strongest]
    return cell


def search(network, batches, alpha_gradient, xi=0.025):
    """Algorithm 1: a step on α and a step on w in turn. Returns the derived normal and reduction cell (`derive`).

    network: a TextbookNetwork in training mode, whose α and w change; batches: for each step, a batch of train and one
    of val; alpha_gradient: one of the three functions above; xi: ξ and the learning rate of w. It stays the same here;
    in the paper it falls along a cosine.
    """
    w, alpha = network.weight_parameters(), network.arch_parameters()
    velocity = [torch.zeros_like(p) for p in w]
    adam = torch.optim.Adam(alpha, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    for trn, val in batches:
        # 1. Update α by descending ∇α L_val(w', α).
        for a, gradient in zip(alpha, alpha_gradient(network, velocity, xi, trn, val), strict=True):
            a.grad = gradient
        adam.step()

        # 2. Update w by descending ∇w L_train(w, α).
        grad = torch.autograd.grad(loss(network, w, trn), w)
        shrink = min(1.0, CLIP / get_total_norm(grad))
        with torch.no_grad():
            velocity = sgd_direction(w, [shrink * g for g in grad], velocity)
            for p, u in zip(w, velocity, strict=True):
                p -= xi * u
    return derive(network.alphas_normal), derive(network.alphas_reduce)


def main():
    """Search for three steps of the second order on films of noise with a tiny supernet, and print the cells."""
    torch.manual_seed(0)
    network = TextbookNetwork(C=4, num_classes=3, layers=4)
    batches = list(zip(torch.randn(6, 4, 3, 32, 32), torch.randint(0, 2, (6, 4, 3)).float(), strict=True))
    cells = search(network, zip(batches[:3], batches[3:], strict=True), gradient_by_differences)
    for kind, cell in zip(("normal", "reduction"), cells, strict=True):
        print(f"{kind} cell")
        for node, pairs in cell.items():
            terms = [f"{operation}(node {source})" for operation, source in pairs]
            print(f"  node {node} = {' + '.join(terms)}")


if __name__ == "__main__":
    main()
