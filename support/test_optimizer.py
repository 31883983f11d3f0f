"""Muon, and which parameters it gets."""

import pytest
import torch

from support import optimizer


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24), (3, 40)])
def test_muon_is_torchs(shape):
    """To bfloat16's digits, with momentum and decay, over several steps; two matrices in a stack are two matrices."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)), torch.nn.Parameter(torch.randn(*shape[::-1]))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = optimizer.Muon(ours, lr=0.02, momentum=0.85, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.85, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [p.detach().clone() for p in ours]
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad, q.data = p.grad.clone(), p.data.clone()
        a.step(), b.step()
        for p, q, old in zip(ours, theirs, before):
            assert (p - q).norm() < 0.06 * (q - old).norm()


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 16, 64), (2, 30, 40)])
def test_orthogonalized_directions_have_singular_values_of_about_one(shape):
    """Those that are not tiny; and all of them are what five polynomials make of them, in float64."""
    torch.manual_seed(0)
    X = torch.randn(shape) + 3 * torch.randn(shape[0], shape[1], 1) @ torch.randn(shape[0], 1, shape[2])
    U, old, V = torch.linalg.svd(X.double(), full_matrices=False)
    values = old / old.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values ** 3 + 2.0315 * values ** 5
    close(optimizer.orthogonalize(X).double(), U * values[:, None] @ V, atol=2e-5)
    large = values[old > 0.02 * old.norm(dim=1, keepdim=True)]
    assert 0.65 < large.min() and large.max() < 1.2
