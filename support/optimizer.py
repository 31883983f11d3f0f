"""Which optimizer each parameter gets: Muon for hidden matrices, AdamW for the rest."""
import torch
from torch import nn


def make_optimizers(model, s):
    """Optimizers for what the model trains, by what a parameter is. The weights of linear layers
    between hidden states: Muon. All others, of any shape (embedding, scalars, vectors): AdamW at 3
    times the learning rate; the output head at once that. Frozen parameters: none. A group's
    "scale" says what the learning rate is multiplied by. s: has weight_decay, for Muon's."""
    head, embedding = model.head.weight, model.embed.weight
    hidden = hidden_weights(model)
    matrices, others = [], []
    for p in model.parameters():
        if not p.requires_grad or p is head or p is embedding:
            continue
        if any(p is weight for weight in hidden):
            matrices.append(p)
        else:
            others.append(p)
    optimizers = []
    if matrices:
        optimizers.append(Muon(matrices, weight_decay=s.weight_decay))
    fast = [p for p in [embedding, *others] if p.requires_grad and p is not head]
    groups = [{"params": fast, "scale": 3.0}, {"params": [head] if head.requires_grad else []}]
    groups = [group for group in groups if group["params"]]
    if groups:
        fused = head.device.type in ("cpu", "cuda")
        optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0,
                                            fused=fused))
    return optimizers


def hidden_weights(model):
    """The weights of linear layers between hidden states: all but the output head's."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers if layer is not model.head]


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Keller Jordan, kellerjordan.github.io/posts/muon), as large as
    AdamW's: torch.optim.Muon(adjust_lr_fn="match_rms_adamw") (arXiv:2502.16982), but matrices of
    like shape are updated together, as a stack."""

    def __init__(self, matrices, lr=1e-3, momentum=0.85, weight_decay=0.1):
        stacks = {}                                     # (short side, long side): matrices
        for p in sorted(matrices, key=lambda p: sorted(p.shape)):
            stacks.setdefault(tuple(sorted(p.shape)), []).append(p)
        groups = [{"params": stack} for stack in stacks.values()]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                self.update(group)

    def update(self, group):
        """One stack. A matrix with no gradient stays as it is."""
        params, lr, momentum = group["params"], group["lr"], group["momentum"]
        grad = torch.stack([wide(gradient(p)) for p in params])
        state = self.state[params[0]]                   # of all the stack
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        updates = orthogonalize(grad.lerp_(average, momentum)).to(grad)
        size = -lr * 0.2 * max(params[0].shape) ** 0.5  # as large as AdamW's, as a root mean square
        for p, update in zip(params, updates):
            if p.grad is not None:
                wide(p).mul_(1 - lr * group["weight_decay"]).add_(update, alpha=size)


def gradient(p):
    """Of a matrix that took no part: zeros."""
    return torch.zeros_like(p) if p.grad is None else p.grad


def wide(x):
    """A matrix, transposed if it has more rows than columns."""
    return x if x.size(0) <= x.size(1) else x.mT


def orthogonalize(X):
    """Newton-Schulz: five times a X + b (X Xᵀ) X + c (X Xᵀ)² X takes singular values to 0.7 .. 1.2.
    X (n, rows, columns), rows <= columns -> the same. In float32 on a CPU, since one without
    AVX-512 emulates bfloat16, at 15 times the time."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = X.bfloat16() if X.is_cuda else X.float()
    X = X / torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if X.is_cuda or X.size(2) < 2 * X.size(1):
        for _ in range(5):
            A = X @ X.mT
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)    # a X + ...
        return X
    # Long rows: X stays on the right of it all, so the same polynomials of the short sides alone
    A = X @ X.mT
    identity = a * torch.eye(X.size(1), device=X.device)
    P = Q = identity + torch.baddbmm(A, A, A, beta=b, alpha=c)
    for _ in range(4):
        A = P @ A @ P
        P = identity + torch.baddbmm(A, A, A, beta=b, alpha=c)
        Q = P @ Q
    return Q @ X
