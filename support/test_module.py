"""lrt.py in other people's programs: traced, exported."""
import warnings

import pytest
import torch

from lrt import GPT, GPTConfig


class Logits(torch.nn.Module):
    """Of a model, with fixed arguments: what is exported has one output."""
    def __init__(self, **arguments):
        super().__init__()
        torch.manual_seed(0)
        self.model = GPT(GPTConfig(block_size=32, vocab_size=11, n_embd=16, n_head=2,
                                   lrt=bool(arguments))).eval()
        torch.nn.init.normal_(self.model.head.weight)
        self.arguments = arguments

    def forward(self, idx):
        return self.model(idx, **self.arguments)[0]


def tokens(T):
    return torch.randint(11, (2, T), generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize("arguments, other", [({}, 9), (dict(subsets=2), 16)], ids=["plain", "S=2"])
def test_traced(arguments, other):
    """A plain GPT for any length, the dial for the length that it is traced with."""
    model = Logits(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (tokens(16),))
    assert torch.allclose(traced(tokens(other)), model(tokens(other)), atol=1e-5)


def test_exported_with_any_length():
    model = Logits()
    lengths = ({1: torch.export.Dim("T", min=2, max=32)},)
    exported = torch.export.export(model, (tokens(16),), dynamic_shapes=lengths).module()
    for T in (2, 9, 32):
        assert torch.allclose(exported(tokens(T)), model(tokens(T)), atol=1e-5)
