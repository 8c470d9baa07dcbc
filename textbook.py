"""DARTS as the paper writes it (Liu, Simonyan, Yang, "DARTS", ICLR 2019, arXiv 1806.09055). Read this file first.

It is plain and slow: one module per edge and operation, one call per module. From top to bottom:

    the candidate operations     section 3.1
    MixedOp                      equation 2, an edge that carries a mix of all operations
    Cell                         equation 1, a node is the sum over its edges
    TextbookNetwork              the supernet, a stack of cells
    the gradient of α            equations 6 to 8

model_search.py and architect.py compute the same faster. The tests compare them with this file, and `benchmarks.speed`
times them against it; what only these two need is the last part. Nothing of the project is imported, so that an error
there cannot hide here.

Words: w weights, α architecture parameters, ξ step of the virtual update, ε finite-difference step.
C_pp, C_p, C: channels of cells k-2, k-1, k. Batches: films (B, 3, H, W), labels (B, classes).
"""

import torch
from torch import nn

INPUT_NODES = 2
NODES = 4  # intermediate nodes
EDGES = [(i, j) for j in range(INPUT_NODES, INPUT_NODES + NODES) for i in range(j)]  # the rows of α


# --- Operations: each maps (B, C, H, W) to (B, C, H / stride, W / stride)


def batch_norm(C):
    """BatchNorm as in the search phase, without scale and shift: those would rescale what α weighs."""
    return nn.BatchNorm2d(C, affine=False)


class Zero(nn.Module):
    """`none`: no connection. (B, C, H, W) -> zeros (B, C, H / stride, W / stride)."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Halves even H and W: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2), C_out even.

    Two 1x1 convolutions of stride 2, on even and on odd positions, make half of the channels each.
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
    """Brings a cell's input to C channels: (B, C_in, H, W) -> (B, C_out, H, W)."""
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
    """Section 3.1: a separable convolution stands twice in a row; the first one has the stride."""
    return nn.Sequential(*separable(C, kernel, stride), *separable(C, kernel, 1))


# name -> make(C, stride); the order is that of the columns of α
OPERATIONS = {
    "none": lambda C, stride: Zero(stride),
    "max_pool_3x3": lambda C, stride: nn.Sequential(nn.MaxPool2d(3, stride, padding=1), batch_norm(C)),
    "avg_pool_3x3": lambda C, stride: nn.Sequential(
        nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), batch_norm(C)
    ),
    "skip_connect": lambda C, stride: nn.Identity() if stride == 1 else FactorizedReduce(C, C),
    "sep_conv_3x3": lambda C, stride: sep_conv(C, 3, stride),
    "sep_conv_5x5": lambda C, stride: sep_conv(C, 5, stride),
    "dil_conv_3x3": lambda C, stride: separable(C, 3, stride, dilation=2),
    "dil_conv_5x5": lambda C, stride: separable(C, 5, stride, dilation=2),
}


# --- The supernet: mixed operation, cell, network


class MixedOp(nn.Module):
    """Equation 2: ō(x) = Σ_o softmax(α)_o · o(x) on one edge."""

    def __init__(self, C, stride):
        super().__init__()
        self.operations = nn.ModuleList(make(C, stride) for make in OPERATIONS.values())

    def forward(self, x, weights):
        """x (B, C, H, W), weights (8 operations) -> (B, C, H / stride, W / stride)."""
        return sum(weight * operation(x) for weight, operation in zip(weights, self.operations, strict=True))


class Cell(nn.Module):
    """Equation 1: node j is the sum over all i < j of the mixed operation on edge (i, j).

    Both inputs are first brought to C channels and to the size of the nearer one, s1. In a reduction cell the
    edges from the two input nodes have stride 2. The output has C_out = 4 C channels.
    """

    def __init__(self, C_pp, C_p, C, reduction, previous_reduction):
        super().__init__()
        self.preprocess0 = FactorizedReduce(C_pp, C) if previous_reduction else relu_conv_bn(C_pp, C)
        self.preprocess1 = relu_conv_bn(C_p, C)
        self.reduction = reduction
        self.edges = nn.ModuleList(MixedOp(C, 2 if reduction and i < INPUT_NODES else 1) for i, _ in EDGES)
        self.C_out = NODES * C

    def forward(self, s0, s1, weights):
        """s0 (B, C_pp, ...), s1 (B, C_p, H, W), weights (14 edges, 8 operations) -> (B, 4 C, H', W')."""
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        for target in range(INPUT_NODES, INPUT_NODES + NODES):
            incoming = [e for e, (_, j) in enumerate(EDGES) if j == target]
            nodes.append(sum(self.edges[e](nodes[EDGES[e][0]], weights[e]) for e in incoming))
        return torch.cat(nodes[INPUT_NODES:], dim=1)


class TextbookNetwork(nn.Module):
    """The supernet: stem, `layers` cells (4 or more, so that both kinds occur), average pooling, linear head.

    Cells at layers//4, 2*layers//4 and 3*layers//4 reduce: half the size, twice the channels. Normal cells
    share `alphas_normal`, reduction cells `alphas_reduce`, each (14 edges, 8 operations). w is never shared.

    Not the paper's: it has two reduction cells, at a third and two thirds of the depth, a stem for 32 px, and α starts
    at 0.
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
            C_pp, C_p, previous_reduction = C_p, self.cells[-1].C_out, reduction
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_p, num_classes)
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(OPERATIONS)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(EDGES), len(OPERATIONS)))

    def arch_parameters(self):
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self):
        alphas = {id(p) for p in self.arch_parameters()}
        return [p for p in self.parameters() if id(p) not in alphas]

    def forward(self, films):
        """films (B, 3, H, W) -> logits (B, num_classes)."""
        s0 = s1 = self.stem(films)
        for cell in self.cells:
            alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
            s0, s1 = s1, cell(s0, s1, alphas.softmax(dim=-1))
        return self.classifier(self.pooling(s1).flatten(1))


# --- The gradient of α (section 2.3). The search minimises L_val(w*(α), α) over α, where w*(α) minimises L_train(w, α)
# (equations 3 and 4). Instead of w* it takes w'(α), one step of SGD from w. First order: ξ = 0, so w' = w, and the
# gradient is ∇α L_val(w, α). Second order: ξ is the learning rate of w, and w' depends on α.


def virtual_step(w, grad, momentum_buffers, xi, momentum, weight_decay):
    """w' of equation 6, one SGD step as values: w' = w − ξ (μ · buffer + ∇w L_train(w, α) + λ w).

    The paper leaves out momentum (μ, buffer) and weight decay (λ).

    w, grad: lists of tensors; momentum_buffers: a list beside them, where None is zero, as before the first step.
    Differentiable in all of them.
    """
    stepped = []
    for p, g, buffer in zip(w, grad, momentum_buffers, strict=True):
        direction = g + weight_decay * p
        stepped.append(p - xi * (direction if buffer is None else momentum * buffer + direction))
    return stepped


def unrolled_gradient(network, criterion, trn, val, xi, momentum_buffers, momentum, weight_decay):
    """The exact second-order gradient: equation 6, ∇α L_val(w'(α), α), differentiated as it stands.

    Autograd goes from L_val through w' (`virtual_step`) into ∇w L_train, so equation 7 comes out by itself:
    ∇α L_val(w', α) − ξ ∇²α,w L_train(w, α) · ∇w' L_val(w', α). Nothing is approximated; no `.grad` and no
    running statistic is written.

    network: any module with arch_parameters() and weight_parameters(), all of them used by its forward pass;
    trn, val: (films, labels); momentum_buffers: in the order of weight_parameters(), None for each that is zero.
    Returns the gradients in the order of arch_parameters().
    """
    names = {id(p): name for name, p in network.named_parameters()}
    w = list(network.weight_parameters())
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    no_buffers = {name: None for name, _ in network.named_buffers() if name.rpartition(".")[2] in statistics}

    def loss(weights, films, labels):
        values = {names[id(p)]: value for p, value in zip(w, weights, strict=True)}
        return criterion(torch.func.functional_call(network, values | no_buffers, (films,)), labels)

    grad = torch.autograd.grad(loss(w, *trn), w, create_graph=True)  # ∇w L_train(w, α)
    stepped = virtual_step(w, grad, momentum_buffers, xi, momentum, weight_decay)  # w'(α)
    return list(torch.autograd.grad(loss(stepped, *val), list(network.arch_parameters())))


def gradient_by_differences(first_term, alpha_gradient, w, v, xi):
    """Equation 7 with the product by central differences, equation 8, where v = ∇w' L_val(w', α) and w± = w ± εv:

    ∇α L_val(w', α) − ξ (∇α L_train(w⁺, α) − ∇α L_train(w⁻, α)) / 2ε   with   ε = 0.01 / ‖v‖.

    first_term: ∇α L_val(w', α); alpha_gradient: () -> ∇α L_train for w as it stands; w, v: lists of tensors. w moves
    to w⁺, to w⁻ and back in place, which restores it up to rounding. Returns a list in the order of first_term.
    """
    eps = 0.01 / torch.cat([g.flatten() for g in v]).norm()

    def move(distance):
        with torch.no_grad():
            for p, direction in zip(w, v, strict=True):
                p.add_(distance * direction)

    move(eps)  # w⁺ = w + ε v
    plus = alpha_gradient()
    move(-2 * eps)  # w⁻ = w − ε v
    minus = alpha_gradient()
    move(eps)  # w
    return [g - xi * (p - m) / (2 * eps) for g, p, m in zip(first_term, plus, minus, strict=True)]


# --- For tests and timing


def smooth_twin(network):
    """In any network, in place: nn.Softplus for each nn.ReLU, nn.AvgPool2d for each nn.MaxPool2d. Returns it.

    Without kinks the error of central differences falls with ε², so that they can be compared with exact
    products. A pool keeps kernel, stride and padding; it counts the padding, unlike `avg_pool_3x3`, so the
    two stay different. Weights and their names do not change.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, nn.Softplus())
        elif isinstance(module, nn.MaxPool2d):
            network.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
    return network


def plain_twin(network):
    """A derived network or CheXNet without the project's fast forms, changed in place; for timing. Returns it.

    Tensors are contiguous, and each separable convolution is two modules.
    """
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if hasattr(module, "depthwise"):
                kernel, dilation = module.depthwise.kernel_size[0], module.dilation
                depthwise = nn.Conv2d(
                    module.C, module.C, kernel, module.stride, dilation * (kernel // 2), dilation, module.C, bias=False
                )
                depthwise.weight = module.depthwise.weight
                setattr(parent, name, nn.Sequential(depthwise, module.pointwise))
    network.to(memory_format=torch.contiguous_format)
    entrance = network.stem if hasattr(network, "stem") else network.densenet
    entrance.register_forward_pre_hook(lambda module, films: (films[0].contiguous(),))  # undoes forward's channels-last
    return network


class OriginalArchitect:
    """One α step as in the repository that this one replaces, for `benchmarks.speed` and the tests.

    Each second-order step builds a new network for w' and moves the live weights to w⁺ and w⁻ and back. Its passes
    write the running statistics of the network, and each is a whole backward() with all weight gradients.

    make_network: () -> a network like `network`; w_optimizer: the SGD of w, whose μ, λ and momentum buffers are read.
    """

    def __init__(self, network, make_network, criterion, w_optimizer):
        self.network, self.make_network, self.criterion = network, make_network, criterion
        self.w_optimizer = w_optimizer
        self.optimizer = torch.optim.Adam(network.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, trn_films, trn_labels, val_films, val_labels, xi, second_order):
        """Fills α.grad and steps Adam. Weight gradients of its passes are cleared by the end."""
        if second_order:
            gradients = self.second_order_gradient((trn_films, trn_labels), (val_films, val_labels), xi)
            for alpha, gradient in zip(self.network.arch_parameters(), gradients, strict=True):
                alpha.grad = gradient
        else:
            self.network.zero_grad()
            self.criterion(self.network(val_films), val_labels).backward()
        self.optimizer.step()
        for p in self.network.weight_parameters():
            p.grad = None

    def second_order_gradient(self, trn, val, xi):
        """Equation 7, with equation 8 for its second term; lists in the order of arch_parameters()."""
        w = self.network.weight_parameters()
        unrolled = self.unrolled_network(trn, xi)
        self.criterion(unrolled(val[0]), val[1]).backward()  # L_val(w', α)
        v = [p.grad for p in unrolled.weight_parameters()]
        first_term = [alpha.grad for alpha in unrolled.arch_parameters()]
        alphas = self.network.arch_parameters()
        return gradient_by_differences(first_term, lambda: self.train_gradients(trn, alphas), w, v, xi)

    def unrolled_network(self, trn, xi):
        """A new network with the weights w' and a copy of α and of the running statistics."""
        w = self.network.weight_parameters()
        grad = self.train_gradients(trn, w)
        group = self.w_optimizer.param_groups[0]
        buffers = [self.w_optimizer.state[p].get("momentum_buffer") for p in w]
        unrolled = self.make_network().to(w[0]).train(self.network.training)  # dtype and device of w
        unrolled.load_state_dict(self.network.state_dict())
        with torch.no_grad():
            stepped = virtual_step(w, grad, buffers, xi, group["momentum"], group["weight_decay"])
            for p, value in zip(unrolled.weight_parameters(), stepped, strict=True):
                p.copy_(value)
        return unrolled

    def train_gradients(self, trn, parameters):
        """Gradients of L_train(w, α) for w as it stands now."""
        loss = self.criterion(self.network(trn[0]), trn[1])
        self.network.zero_grad()
        loss.backward()
        return [p.grad for p in parameters]
