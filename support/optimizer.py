"""Muon for hidden matrices, AdamW for the rest."""
from itertools import groupby

import torch

def orthogonalize(X):
    """Newton-Schulz: five times a X + b (X Xᵀ) X + c (X Xᵀ)² X takes singular values to 0.7 .. 1.2.
    X (n, rows, columns), rows <= columns -> the same. In float32 on a CPU: in bfloat16, torch's Muon took
    518 to 709 ms of a step on one without AVX-512, this one 34."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = X.bfloat16() if X.is_cuda else X.float()
    X = X / torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    polynomial = lambda A: torch.baddbmm(A, A, A, beta=b, alpha=c)
    if X.is_cuda or X.size(2) < 2 * X.size(1):
        for _ in range(5):
            X = torch.baddbmm(X, polynomial(X @ X.mT), X, beta=a)
        return X
    A, I = X @ X.mT, a * torch.eye(X.size(1), device=X.device)
    P = Q = I + polynomial(A)                   # long rows: the same polynomials, on the short sides alone
    for _ in range(4):
        A = P @ A @ P
        P = I + polynomial(A)
        Q = P @ Q
    return Q @ X

class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Keller Jordan, kellerjordan.github.io/posts/muon), as large as AdamW's: it is
    torch.optim.Muon(adjust_lr_fn="match_rms_adamw") (arXiv:2502.16982), but stacks matrices of like shape."""
    def __init__(self, matrices, lr=1e-3, momentum=0.85, weight_decay=0.1):
        shape = lambda p: sorted(p.shape)
        stacks = [{"params": list(stack)} for _, stack in groupby(sorted(matrices, key=shape), key=shape)]
        super().__init__(stacks, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, momentum = group["params"], group["lr"], group["momentum"]
            wide = lambda x: x if x.size(0) <= x.size(1) else x.mT
            grad, state = torch.stack([wide(p.grad) for p in params]), self.state[params[0]]
            if not state:
                state["momentum"] = torch.zeros_like(grad)
            average = state["momentum"].lerp_(grad, 1 - momentum)
            size = -lr * 0.2 * max(params[0].shape) ** 0.5
            for p, update in zip(params, orthogonalize(grad.lerp_(average, momentum)).to(grad)):
                wide(p).mul_(1 - lr * group["weight_decay"]).add_(update, alpha=size)

def make_optimizers(model, s):
    """Muon for hidden matrices, AdamW for the others: at 3 times the learning rate, but for the head."""
    head, fast = model.head.weight, [model.embed.weight, *(p for p in model.parameters() if p.ndim < 2)]
    matrices = [p for p in model.parameters() if not any(p is q for q in (head, *fast))]
    return [Muon(matrices, weight_decay=s.weight_decay),
            torch.optim.AdamW([{"params": fast, "scale": 3.0}, {"params": [head]}], betas=(0.9, 0.95),
                              eps=1e-10, weight_decay=0.0, fused=head.device.type in ("cpu", "cuda"))]
