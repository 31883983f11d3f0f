"""What test_lrt.py is made with: tiny models, their inputs, and the numbers that it compares with.

The models are in float64, on random weights that are all away from their initial values, so that no
path is silent.
"""
import functools
from pathlib import Path

import numpy as np
import torch

import lrt
from support.proof import array, check, distance

HERE = Path(__file__).resolve().parent.parent

# Sizes that are small and odd: 1 to 3 layers. Every identity is tested on each of them.
CONFIGS = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(n_layer=3, memory_layer=1),
    "middle layer, layerwise": dict(n_layer=3, memory_layer=-2, memory_proj="layerwise"),
    "one layer, one head": dict(n_layer=1, n_head=1, n_embd=6),
}
PLAIN = {**CONFIGS, "plain": dict(lrt=False)}


# ---- Models and inputs

def random_model(seed=0, scale=0.3, **changes):
    """A float64 model, every weight away from its initial value; the same on every machine."""
    config = dict(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, lrt=True)
    model = lrt.GPT(lrt.GPTConfig(**{**config, **changes})).double().eval()
    rng, start = np.random.RandomState(seed), {"alpha": 1, "beta": 0.1, "gamma": 0.1}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            kind, size = name.removesuffix(".weight").split(".")[-1], tuple(p.shape)
            spread = 1 if kind == "embed" else p.size(-1) ** -0.5
            value = rng.randn(*size) * spread + scale * rng.randn(*size)
            if kind in ("head", "w_o", "w_2", "w_g", *start):
                value = start.get(kind, 0) + scale * rng.randn(*size)
            p.copy_(torch.from_numpy(value))
    return model


@functools.cache
def trained_model():
    """A model that 60 steps have taught to go on counting, with jumps: its memory contracts, as a
    trained one's does."""
    torch.manual_seed(0)
    config = lrt.GPTConfig(block_size=24, vocab_size=11, n_layer=3, n_head=2, n_embd=16, lrt=True)
    model = lrt.GPT(config).double().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for n in range(60):
        jumps = np.random.RandomState(n).randint(1, 3, size=(16, 25))
        text = torch.from_numpy(jumps.cumsum(1) % 11)
        loss = model(text[:, :-1], text[:, 1:], subsets=2)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check(loss < 1.2, f"loss {loss:.2f} after 60 steps of training: expected less than 1.2")
    return model


def numbers(*size, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randn(*size))


def tokens(model, B, T, seed=1):
    rng = np.random.RandomState(seed)
    return torch.from_numpy(rng.randint(model.config.vocab_size, size=(B, T)))


def batch_for(model, B, T):
    """idx, targets, and the weights by their names."""
    return tokens(model, B, T), tokens(model, B, T, seed=2), dict(model.named_parameters())


def weighed(*tensors):
    """A number that depends on every number in tensors."""
    return sum((t * numbers(*t.shape, seed=7 + i)).sum() for i, t in enumerate(tensors))


# ---- What a model computes

def definition(model, idx):
    """Logits of the token loop, without gradients."""
    with torch.no_grad():
        return model.forward_sequential(idx)[0]


@functools.cache
def stepped(name, T):
    model = random_model(**PLAIN[name])
    return definition(model, tokens(model, 2, T))


@torch.no_grad()
def solution(model, idx):
    """h of the token loop, without it, where the memory contracts: all positions at once, until
    nothing changes any more. Each latent follows from those before it, so there is no other one."""
    cache, m, change = model.init_cache(idx.size(0)), None, 1
    while change > 1e-11:
        model.extend(idx, cache, m)
        old, m = m, lrt.shift_right(cache.m_next)
        change = distance(m, 0 if old is None else old)
    return cache.h


@functools.cache
def prefill_logits(case):
    model, idx, _ = prefill_case(case)
    return model.logits(solution(model, idx)[:, -1])


def steps(model, idx, cache):
    """Logits (B, T, V) of as many steps."""
    return torch.stack([model.step(token, cache) for token in idx.unbind(1)], dim=1)


def exact_positions(logits, exact):
    """How many, from the first one on."""
    wrong = (abs(array(logits) - array(exact)).max((0, 2)) > 1e-8).tolist()
    return wrong.index(True) if True in wrong else len(wrong)


# ---- Caches

def made_up_cache(W, n, T, has_lrt=True):
    """T newest positions, and n in all, of three layers; all numbers different."""
    config = lrt.GPTConfig(block_size=W, n_layer=3, n_head=2, n_embd=8, lrt=has_lrt)
    cache = lrt.Cache(config, 2, like=numbers(1))
    cache.pos = n - T if n < W else 40
    cache.begin(numbers(2, T, 8, seed=1))
    cache.h, cache.m_next = (numbers(2, T, 8, seed=s).requires_grad_() for s in (2, 3))
    cache.kv = [numbers(2, 2, 2, n, 4, seed=5 + i).requires_grad_() for i in range(3)]
    return cache


def cache_after(model, idx, n, latents):
    """The cache when n tokens are done: computed at once, with the memory that is right."""
    cache = model.init_cache(idx.size(0))
    if n > 0:
        m = torch.cat([torch.zeros_like(latents[:, :1]), latents[:, :n - 1]], dim=1)
        model.extend(idx[:, :n], cache, m if model.config.lrt else None)
        cache.advance()
    return cache


def swept(model, idx, S, passes, latent=None):
    """The cache after pass 0 and so many subset passes. latent: the one that it begins with."""
    cache = model.init_cache(idx.size(0))
    if latent is not None:
        cache.latent = latent
    model.extend(idx, cache)
    for n in range(passes):
        model.refine(cache, n % S, S)
    return cache


def prefilled(model, idx, cache=None, **options):
    """The cache after a prompt. Without one: a new one."""
    cache = model.init_cache(idx.size(0)) if cache is None else cache
    model.prefill(idx, cache, **options)
    return cache


def written(cache):
    """All that a subset pass writes."""
    return [cache.h, cache.m_next, *cache.kv]


# ---- Known numbers: what the equations give, by a second implementation of them

DIALS = [(1, 2), (2, 1), (3, 2), (7, 1)]        # S and K, for 7 tokens

LAYERS = [(name, memory) for name in PLAIN for memory in (0, 1)]
PASSES = [(name, S, K) for name in ("shared", "middle layer, layerwise") for S, K in DIALS]
QKV = [("gates", 0), ("gates", 1), ("three heads", 0), ("three heads", 1), ("one head", 0),
       ("one head", 1), ("plain", 0)]
PREFILL = [("two rows", 1e-2), ("two rows", 1e-6), ("pieces", 3e-3), ("last piece", 1e-2),
           ("more in the last", 1e-2)]
PREFILL += [(case, tol) for tol in (1e-1, 1e-4, 1e-7) for case in ("first layer", "S = 1")]

KNOWN = [("exact", name, 0) for name in PLAIN] + [("exact", "shared", 1)]
for kind, those in dict(layers=LAYERS, passes=PASSES, qkv=QKV, prefill=PREFILL).items():
    KNOWN += [(kind, *which) for which in those]

KNOWN_NPZ = HERE / "known.npz"                  # beside test_lrt.py in a handout, else in course/
if not KNOWN_NPZ.exists():
    KNOWN_NPZ = HERE / "course" / "known.npz"


@functools.cache
def known(*which):
    """One of KNOWN: what the equations give for weights and inputs that are the same everywhere."""
    return {name: torch.from_numpy(x) for name, x in all_known()[str(which)].items()}


@functools.cache
def all_known():
    found = {}
    with np.load(KNOWN_NPZ) as file:
        for name in file:
            which, _, part = name.rpartition("/")
            found.setdefault(which, {})[part] = file[name]
    return found


def qkv_case(case, memory):
    """A block, and the inputs of its qkv()."""
    changes = {"plain": dict(lrt=False), "gates": dict(), "three heads": dict(n_head=3, n_embd=24),
               "one head": dict(n_head=1)}
    model = random_model(**changes[case])
    H, C = model.config.n_head, model.config.n_embd
    m_k, m_v = (numbers(2, H, 5, C // H, seed=s) if memory else 0 for s in (1, 2))
    return model.blocks[1], numbers(2, 5, C), m_k, m_v


def layers_case(name, memory):
    """A model, x0 and m."""
    model = random_model(**PLAIN[name])
    C = model.config.n_embd
    m = numbers(2, 5, C, seed=1) if memory else None
    return model, lrt.norm(numbers(2, 5, C)), m


def prefill_case(case):
    """A model, prompt and S. Weights near their initial values, so that the memory contracts."""
    changes, B, T, S = {
        "two rows": (dict(), 2, 24, 3),
        "first layer": (dict(n_layer=3, memory_layer=1), 1, 24, 2),
        "S = 1": (dict(), 1, 20, 1),
        "pieces": (dict(block_size=4, n_layer=1), 1, 600, 2),
        "last piece": (dict(block_size=4, n_layer=1), 1, 515, 8),
        "more in the last": (dict(block_size=4, n_layer=1, seed=1), 1, 600, 2),
    }[case]
    model = random_model(**{**dict(scale=0.05, block_size=64), **changes})
    idx = tokens(model, B, T)
    if case == "two rows":
        idx[0] = 3                              # tokens that are all alike settle at another time
    return model, idx, S
