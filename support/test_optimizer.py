"""Muon, and which parameters it gets."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrt import GPT, GPTConfig
from support import optimizer


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24), (3, 40)])
def test_muon_is_torchs(shape):
    """To bfloat16's digits, with momentum and decay, over several steps; two matrices in a stack
    are two matrices."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape)), nn.Parameter(torch.randn(*shape[::-1]))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = optimizer.Muon(ours, lr=0.02, momentum=0.85, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.85, weight_decay=0.1,
                         adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [p.detach().clone() for p in ours]
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad, q.data = p.grad.clone(), p.data.clone()
        a.step()
        b.step()
        for p, q, old in zip(ours, theirs, before):
            assert (p - q).norm() < 0.06 * (q - old).norm()


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 16, 64), (2, 30, 40)])
def test_orthogonalized_directions_have_singular_values_of_about_one(shape):
    """Those that are not tiny; and all of them are what five polynomials make of them, in
    float64."""
    torch.manual_seed(0)
    n, rows, columns = shape
    X = torch.randn(shape) + 3 * torch.randn(n, rows, 1) @ torch.randn(n, 1, columns)
    U, old, V = torch.linalg.svd(X.double(), full_matrices=False)
    values = old / old.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values ** 3 + 2.0315 * values ** 5
    found = optimizer.orthogonalize(X).double()
    torch.testing.assert_close(found, U * values[:, None] @ V, atol=2e-5, rtol=0)
    large = values[old > 0.02 * old.norm(dim=1, keepdim=True)]
    assert 0.65 < large.min() and large.max() < 1.2


# ---- Which parameter gets which

def model_with_optimizers(change=None, **options):
    """A small model, changed by change(model), whose layers are not silent, and its optimizers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(8, 11, 2, 2, 16, **options))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    if change:
        change(model)
    return model, optimizer.make_optimizers(model, SimpleNamespace(weight_decay=0.1))


def names_of(model, kind, optimizers):
    """The names of the parameters that optimizers of a kind hold."""
    names = {p: name for name, p in model.named_parameters()}
    groups = [g for one in optimizers if isinstance(one, kind) for g in one.param_groups]
    held = [p for group in groups for p in group["params"]]
    assert len(set(held)) == len(held)
    return {names[p] for p in held}


def update(model, optimizers):
    """One step on random tokens, with a learning rate of 0.01."""
    x, y = torch.randint(11, (2, 2, 8))
    model(x, y, subsets=2)[1].backward()
    for one in optimizers:
        for group in one.param_groups:
            group["lr"] = 0.01
        one.step()


def test_muon_gets_the_linear_layers_between_hidden_states_and_nothing_else():
    model, optimizers = model_with_optimizers(lrt=True)
    matrices = names_of(model, optimizer.Muon, optimizers)
    names = [name for name, p in model.named_parameters()]
    assert matrices == {name for name in names if ".w_" in name or name.startswith("u_")}
    others = names_of(model, torch.optim.AdamW, optimizers)
    assert others == {"embed.weight", "head.weight", "alpha", "beta", "gamma"}
    scales = [group.get("scale", 1.0) for group in optimizers[1].param_groups]
    assert scales == [3.0, 1.0]                     # the head's is the plain learning rate


def gamma_per_channel(model):
    model.gamma = nn.Parameter(torch.full((2, 16), 0.1))


def three_dimensions(model):
    model.extra = nn.Parameter(torch.ones(2, 3, 4))


def a_bias(model):
    model.blocks[0].w_1 = nn.Linear(16, 64, bias=True)


@pytest.mark.parametrize("change, name", [(gamma_per_channel, "gamma"), (three_dimensions, "extra"),
                                          (a_bias, "blocks.0.w_1.bias")])
def test_a_parameter_of_ones_own_is_no_matrix_to_muon_whatever_its_shape(change, name):
    model, optimizers = model_with_optimizers(change, lrt=True)
    assert name in names_of(model, torch.optim.AdamW, optimizers)
    update(model, optimizers)


@pytest.mark.parametrize("frozen", ["blocks.0.w_q.weight", "embed.weight", "head.weight", "blocks",
                                    ""])
def test_frozen_parameters_stay_and_the_others_move(frozen):
    """One of them, all matrices, or all but gamma."""
    def freeze(model):
        for name, p in model.named_parameters():
            if name.startswith(frozen) and name != "gamma":
                p.requires_grad_(False)

    model, optimizers = model_with_optimizers(freeze, lrt=True)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names_of(model, torch.optim.Optimizer, optimizers) == free
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(model, optimizers)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_a_matrix_that_takes_no_part_stays_as_it_is():
    def unused(model):
        model.spare = nn.Linear(16, 16, bias=False)

    model, optimizers = model_with_optimizers(unused, lrt=True)
    assert "spare.weight" in names_of(model, optimizer.Muon, optimizers)
    before = model.spare.weight.detach().clone()
    update(model, optimizers)
    assert torch.equal(model.spare.weight, before)
