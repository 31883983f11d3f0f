"""The proof that lrt.py is right, and the autograder.

    python -m pytest                    everything
    python -m pytest -k ex3             an exercise; the tests are told apart by their names
    python -m pytest -k consistent      dial, step, prefill and definition agree, whatever the equations
    python test_lrt.py --mutants        wrong versions of lrt.py, and which tests reject them
    python test_lrt.py --handout DIR    what a class gets: see assets/INSTRUCTOR.md
    python test_lrt.py --grade FILE...  points for students' lrt.py files; --json, --csv, --limit=SECONDS

The model is compared in float64, on random weights that are all away from their initial values, so that no
path is silent: with definitions that are too simple to be wrong, and with a second implementation, in numpy.
What fails says what is wrong, in which head, position or sweep. Sections whose titles begin with
"Instructor", and all from "Data" on, are not in the handout.
"""
import ast
import functools
import importlib
import inspect
import itertools
import json
import linecache
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F


lrt = importlib.import_module(os.environ.get("LRT_IMPL", "lrt").removesuffix(".py"))
HERE = Path(__file__).parent
torch.set_num_threads(1)        # the models are tiny; a busy machine does not matter then

# Sizes that are small and odd. Every identity is tested on each of them.
CONFIGS = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(memory_layer=1),
    "middle layer, layerwise": dict(memory_layer=-2, memory_proj="layerwise"),
    "one layer, one head": dict(n_layer=1, n_head=1, n_embd=6),
}
PLAIN = {**CONFIGS, "plain": dict(lrt=False)}
every_config = pytest.mark.parametrize("name", CONFIGS)
plain_too = pytest.mark.parametrize("name", PLAIN)
DIALS = [(1, 2), (2, 1), (3, 2), (7, 1)]        # S and K, for 7 tokens


def random_model(seed=0, scale=0.3, **changes):
    """A float64 model, every weight away from its initial value; the same numbers on every machine."""
    config = dict(block_size=13, vocab_size=11, n_layer=3, n_head=2, n_embd=16, lrt=True)
    model, rng = lrt.GPT(lrt.GPTConfig(**{**config, **changes})).double().eval(), np.random.RandomState(seed)
    start = {"alpha": 1, "beta": 0.1, "gamma": 0.1}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            kind, size = name.removesuffix(".weight").split(".")[-1], tuple(p.shape)
            value = rng.randn(*size) * (1 if kind == "embed"
                                        else p.size(-1) ** -0.5) + scale * rng.randn(*size)
            if kind in ("head", "w_o", "w_2", "w_g", *start):
                value = start.get(kind, 0) + scale * rng.randn(*size)
            p.copy_(torch.from_numpy(value))
    return model


def numbers(*size, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randn(*size))


def tokens(model, B, T, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).randint(model.config.vocab_size, size=(B, T)))


def decoded(model, idx, cache):
    """Logits after one more token, without gradients: so a cache that a prompt has filled wants it."""
    with torch.inference_mode():
        return model.step(idx, cache)


def windowed_reference(model, idx):
    """Logits when attention sees the last block_size positions and the memory goes on: the definition."""
    with torch.no_grad():
        return model.forward_sequential(idx)[0]


# ---- How a test fails: in words ----------------------------------------------------------------------------

# Number of an exercise (0: what is given): its tests; those that take long
TESTS, SLOW = {}, []
STUDENTS = {getattr(lrt, "__file__", "")}       # files that a student may have written


def exercise(n, slow=False):
    """For a test of exercise n. Whatever goes wrong in it is told in words, with the line of lrt.py where it
    went wrong."""
    def decorate(test):
        @functools.wraps(test)
        def told(*args, **named):
            try:
                return test(*args, **named)
            except Exception as e:
                message = told_of(e)
            pytest.fail(message, pytrace=False)
        TESTS.setdefault(n, []).append(told)
        SLOW.extend([told] * slow)
        return told
    return decorate


def told_of(e):
    """An exception in a line: what it says, and the last line of lrt.py on the way to it."""
    frames = [(f"{getattr(frame.f_code, 'co_qualname', frame.f_code.co_name)}, line {line}",
               frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(e.__traceback__)]
    mine = [f for f in frames if f[1] in STUDENTS]
    where, file, line = (mine or [f for f in frames if f[1] == __file__] or frames)[-1]
    said = " ".join(str(e).split())[:300]
    if isinstance(e, NotImplementedError):
        return f"not written yet: {said}"
    code = linecache.getline(file, line).strip()
    how = "in" if mine else "what came back does not fit the test, in"
    return f"{type(e).__name__}: {said}\n    {how} {where}: {code}"


def check(ok, message):
    if not ok:
        pytest.fail(message, pytrace=False)


def close(mine, expected, what="the result", axes=(), atol=1e-10):
    """Fails, naming the first value that differs, unless both are alike. axes: names of the dimensions."""
    expected = torch.as_tensor(expected).detach()
    check(isinstance(mine, torch.Tensor), f"{what}: expected a tensor, not {type(mine).__name__}")
    check(mine.shape == expected.shape,
          f"{what}: shape is {tuple(mine.shape)}, expected {tuple(expected.shape)}")
    wrong = ~((mine.detach() - expected).abs() <= atol)
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        place = ", ".join(f"{axis} {i}" for axis, i in itertools.zip_longest(axes, where, fillvalue="number"))
        check(False, f"{what}: first wrong value at {place or 'the only place'}: "
                     f"{mine[tuple(where)].item():.12g}, "
                     f"expected {expected[tuple(where)].item():.12g}; {int(wrong.sum())} of {wrong.numel()} "
                     f"are wrong, "
                     f"by up to {(mine - expected).abs().max().item():.3g}")


THERE, HEADS = ("row", "position", "number"), ("row", "head", "position", "number")


def slopes(f, named, what):
    """The gradients of f() -> () against finite differences, all together along a random direction. If they
    differ, one by one, so that the first wrong one has a name. named: tensors that f uses, by their names."""
    named = dict(named)
    before, rng = {n: p.detach().clone() for n, p in named.items()}, np.random.RandomState(3)
    ways = {n: torch.from_numpy(np.asarray(rng.randn(*p.shape))) for n, p in named.items()}
    value = f()
    check(value.requires_grad, f"{what}: no gradient at all: is everything detached, or under no_grad?")
    grads = dict(zip(named, torch.autograd.grad(value, list(named.values()), allow_unused=True)))
    def compare(names):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for n in names:
                    named[n].copy_(before[n] + sign * 1e-6 * ways[n])
                ends.append(f().item())
                for n in names:
                    named[n].copy_(before[n])
        slope = (ends[0] - ends[1]) / 2e-6
        mine = sum((grads[n] * ways[n]).sum().item() for n in names if grads[n] is not None)
        return mine, slope, abs(mine - slope) <= 1e-6 * (1 + abs(slope))
    if not compare(list(named))[2]:
        for n in named:
            mine, slope, right = compare([n])
            check(right or mine, f"{what}: no gradient reaches {n}: is something detached?")
            check(right, f"{what}: the gradient of {n} is wrong: {mine:.8g} along a direction in which the "
                         f"slope is "
                         f"{slope:.8g}. Is a part of the way detached?")
        check(False, f"{what}: the gradients are wrong")


def weighed(*tensors):
    """A number that depends on every number in tensors."""
    return sum((t * numbers(*t.shape, seed=7 + i)).sum() for i, t in enumerate(tensors))


def refuses(call, what):
    """call() must raise ValueError, of its own accord."""
    try:
        call()
    except ValueError as e:
        check(str(e), f"{what}: the ValueError does not say what is impossible, and why")
    except Exception as e:
        check(False, f"{what}: must raise ValueError, raised {told_of(e)}")
    else:
        check(False, f"{what}: must raise ValueError")


# ---- Instructor: a second implementation, one sequence and one position at a time, nothing shared ----------

def naive_norm(v):
    return v / np.sqrt(np.mean(v * v) + np.finfo(np.float64).eps)


def naive_rope(v, t):
    out, D = np.empty(len(v)), len(v)
    for j in range(D // 2):
        angle = t * 10000.0 ** (-2 * j / D)
        a, b = v[j], v[j + D // 2]
        out[j] = a * math.cos(angle) + b * math.sin(angle)
        out[j + D // 2] = b * math.cos(angle) - a * math.sin(angle)
    return out


def naive_qkv(w, H, h, y, m_k, m_v):
    """Query, key and value of head h: w(name) gives a matrix, m_k and m_v what the memory gives to this
    head, or 0."""
    D = len(y) // H
    q, k, v = ((w(name) @ y)[h * D:h * D + D] for name in ("w_q", "w_k", "w_v"))
    if w("w_g") is None:
        return q, k, v
    g = 2 / (1 + np.exp(-w("w_g") @ y))
    return q, g[h] * k + g[H + h] * m_k, g[h] * v + g[H + h] * m_v


def naive_position(model, past, t, x0, m):
    """Position t of one sequence: h and latent. past[i][head][t]: (key, value), to read and to write."""
    W, c = {name: p.detach().numpy() for name, p in model.named_parameters()}, model.config
    C, H, L = c.n_embd, c.n_head, c.n_layer
    D, source, x = C // H, c.memory_layer if c.memory_layer > 0 else L + 1 + c.memory_layer, x0
    for i in range(L):
        w = lambda name: W.get(f"blocks.{i}.{name}.weight")
        x = W["alpha"][i] * x + W["beta"][i] * x0 + (W["gamma"][i] * m if c.lrt else 0)
        y, result, pair = naive_norm(x), np.zeros(C), i if c.memory_proj == "layerwise" else 0
        mk, mv = (W[f"{u}.{pair}.weight"] @ m if c.lrt else np.zeros(C) for u in ("u_k", "u_v"))
        for h in range(H):
            part = slice(h * D, h * D + D)
            q, k, v = naive_qkv(w, H, h, y, mk[part], mv[part])
            past[i][h][t] = naive_norm(naive_rope(k, t)), v
            seen = [past[i][h][p] for p in range(max(0, t - c.block_size + 1), t + 1)]
            scores = np.array([naive_norm(naive_rope(q, t)) @ key / math.sqrt(D) for key, _ in seen])
            p = np.exp(scores - scores.max())
            result[part] = sum(p_t * value for p_t, (_, value) in zip(p / p.sum(), seen))
        x = x + w("w_o") @ result
        x = x + w("w_2") @ np.maximum(w("w_1") @ naive_norm(x), 0) ** 2
        if i + 1 == source:
            latent = naive_norm(x)
    return naive_norm(x), latent


def naive_lrt(model, idx, S=None, K=1):
    """One sequence of token numbers: a list of what is there after each pass, (h (T, C), latents (T, C),
    past). Without S one pass: the token loop. With S: first the pass without memory, then K times S subset
    passes."""
    c, T = model.config, len(idx)
    embed, zero = model.embed.weight.detach().numpy(), np.zeros(c.n_embd)
    x0, h, latents = [naive_norm(embed[n]) for n in idx], [zero] * T, [zero] * T
    past = [[{} for _ in range(c.n_head)] for _ in range(c.n_layer)]
    passes = [(range(T), latents if S is None
               else [zero] * T)]         # which positions, with which latents before
    out = []
    later = ((range(s, T, S), None) for _ in range(K if S else 0) for s in range(S))
    for which, before in itertools.chain(passes, later):
        before = list(latents) if before is None else before    # of this pass: as they were when it began
        for t in which:
            h[t], latents[t] = naive_position(model, past, t, x0[t], before[t - 1] if t else zero)
        out.append((np.stack(h), np.stack(latents), [[dict(p) for p in heads] for heads in past]))
    return out


def naive_logits(model, h):
    return 15 * np.tanh(h @ model.head.weight.detach().numpy().T / 15)


def known_exact(name, T):
    model = random_model(**PLAIN[name])
    rows = [naive_lrt(model, row)[0] for row in tokens(model, 2, T).tolist()]
    h = np.stack([row[0] for row in rows])
    return dict(h=h, logits=naive_logits(model, h), latents=np.stack([row[1] for row in rows]))


def known_passes(name, S, K):
    """After each pass over 7 tokens, (n, T, ...) each; keys and values (n, L, H, T, D)."""
    model = random_model(**CONFIGS[name])
    passes = naive_lrt(model, tokens(model, 1, 7)[0].tolist(), S, K)
    kv = np.array([[[[list(p[t]) for t in range(7)] for p in heads] for heads in past] for _, _,
                   past in passes])
    h, latents = (np.stack([p[i] for p in passes]) for i in (0, 1))
    return dict(h=h, latents=latents, logits=naive_logits(model, h), keys=kv[..., 0, :], values=kv[..., 1, :])


def known_qkv(case, memory):
    block, y, m_k, m_v = qkv_case(case, memory)
    w = lambda name: None if getattr(block, name) is None else getattr(block, name).weight.detach().numpy()
    part = lambda m, *at: m[at].numpy() if memory else 0
    q, k, v = np.array([[[naive_qkv(w, block.n_head, h, y[b, t].numpy(), part(m_k, b, h, t),
                                    part(m_v, b, h, t))
                          for t in range(y.size(1))] for h in range(block.n_head)]
                        for b in range(y.size(0))]).transpose(3, 0, 1, 2, 4)
    return dict(q=q, k=k, v=v)


def known_layers(name, memory):
    model, x0, m = layers_case(name, memory)
    rows = []
    for b in range(2):
        past = [[{} for _ in range(model.config.n_head)] for _ in range(model.config.n_layer)]
        there = [naive_position(model, past, t, x0[b, t].numpy(), m[b, t].numpy() if memory
                                else np.zeros(x0.size(2)))
                 for t in range(5)]
        kv = np.array([[[list(p[t]) for t in range(5)] for p in heads] for heads in past])
        rows.append((*np.array(there).transpose(1, 0, 2), kv[..., 0, :], kv[..., 1, :]))
    h, latent, keys, values = (np.stack(x) for x in zip(*rows))
    return dict(h=h, latent=latent, keys=keys.swapaxes(0, 1), values=values.swapaxes(0, 1))


@torch.no_grad()
def known_prefill(case, tol):
    """How many sweeps, and the change in the last, of the rule as GPT.prefill's docstring has it."""
    model, idx, S = prefill_case(case)
    cache, sweeps, residual = model.init_cache(idx.size(0)), 0, 0.0
    for piece in idx.split(512, dim=1):
        model.extend(piece, cache)
        T, n, change = piece.size(1), 0, None
        while change is None or change > tol:
            before = [x.clone() for x in (cache.h, cache.latents, *cache.kv)]
            for s in range(S):
                model.refine(cache, s, S)
            n, change = n + 1, max(float((a - b).abs().max()) for a,
                                   b in zip(before, (cache.h, cache.latents, *cache.kv)))
            if n * S >= T:
                change = 0.0
        sweeps, residual = max(sweeps, n), max(residual, change)
        cache.advance()
    return dict(sweeps=np.array(sweeps), residual=np.array(residual))


SECOND = dict(exact=known_exact, passes=known_passes, qkv=known_qkv, layers=known_layers,
              prefill=known_prefill)


# ---- Known numbers -----------------------------------------------------------------------------------------

def qkv_case(case, memory):
    changes = {"plain": dict(lrt=False), "gates": dict(), "three heads": dict(n_head=3, n_embd=24),
               "one head": dict(n_head=1)}
    model = random_model(**changes[case])
    H, C = model.config.n_head, model.config.n_embd
    return (model.blocks[1], numbers(2, 5, C), *(numbers(2, H, 5, C // H, seed=s) if memory else 0
                                                 for s in (1, 2)))


def layers_case(name, memory):
    model = random_model(**PLAIN[name])
    C = model.config.n_embd
    return model, lrt.norm(numbers(2, 5, C)), numbers(2, 5, C, seed=1) if memory else None


def prefill_case(case):
    """Model, prompt and S. Weights near their initial values, so that the memory contracts."""
    changes, B, T, S = {
        "two rows": (dict(), 2, 40, 3),
        "first layer": (dict(memory_layer=1), 1, 40, 2),
        "S = 1": (dict(), 1, 30, 1),
        "pieces": (dict(block_size=4, n_layer=1), 1, 600, 2),
        "last piece": (dict(block_size=4, n_layer=1), 1, 515, 8),
        "more in the last": (dict(block_size=4, n_layer=1, seed=1), 1, 600, 2),
    }[case]
    model = random_model(**{**dict(scale=0.05, block_size=64), **changes})
    idx = tokens(model, B, T)
    if case == "two rows":
        idx[0] = 3                              # tokens that are all alike settle at another time
    return model, idx, S


KNOWN = ([("exact", name, 20) for name in PLAIN]
         + [("layers", name, memory) for name in PLAIN for memory in (0, 1)]
         + [("passes", name, S, K) for name in ("shared", "middle layer, layerwise") for S, K in DIALS]
         + [("qkv", case, memory) for case in ("gates", "three heads", "one head") for memory in (0, 1)]
         + [("qkv", "plain", 0)]
         + [("prefill", "two rows", 1e-2), ("prefill", "two rows", 1e-6), ("prefill", "pieces", 3e-3)]
         + [("prefill", case, 1e-2) for case in ("last piece", "more in the last")]
         + [("prefill", case, tol) for tol in (1e-1, 1e-2, 1e-4, 1e-7) for case in ("first layer", "S = 1")])


@functools.cache
def known(*which):
    """One of KNOWN: what the equations give for weights and inputs that are the same on every machine."""
    # Made by the numpy implementation, which is not in the handout
    if (HERE / "known.npz").exists():
        with np.load(HERE / "known.npz") as file:
            names = [name for name in file if name.rpartition("/")[0] == str(which)]
            return {name.rpartition("/")[2]: torch.from_numpy(file[name]) for name in names}
    return {name: torch.from_numpy(x) for name, x in SECOND[which[0]](*which[1:]).items()}


# ---- Exercise 1: shift_right -------------------------------------------------------------------------------

@exercise(1)
@pytest.mark.parametrize("B, T", [(2, 5), (1, 2), (3, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_ex1_each_gets_the_latent_of_the_one_before(B, T, first):
    latent, given = numbers(B, T, 3), numbers(B, 3, seed=1) if first else None
    copies = latent.clone(), None if given is None else given.clone()
    m = lrt.shift_right(latent, given) if first else lrt.shift_right(latent)
    check(isinstance(m, torch.Tensor) and m.shape == latent.shape,
          f"m: expected a tensor of shape {tuple(latent.shape)}")
    close(m[:, 0], torch.zeros(B, 3) if given is None else given, "m_0", ("row", "number"))
    for t in range(1, T):
        close(m[:, t], latent[:, t - 1], f"m_{t}", ("row", "number"))
    check(torch.equal(latent, copies[0]) and (given is None or torch.equal(given, copies[1])),
          "the inputs were changed in place")


@exercise(1)
def test_ex1_gradients_reach_latent_and_first():
    latent, first = numbers(2, 5, 3).requires_grad_(), numbers(2, 3, seed=1).requires_grad_()
    slopes(lambda: weighed(lrt.shift_right(latent, first)), dict(latent=latent, first=first), "shift_right")
    slopes(lambda: weighed(lrt.shift_right(latent)), dict(latent=latent), "shift_right without first")


@exercise(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ex1_dtype_stays(dtype):
    latent = numbers(1, 3, 2).to(dtype)
    for m in (lrt.shift_right(latent), lrt.shift_right(latent, latent[:, 2])):
        check(m.dtype == dtype, f"latent is {dtype}, the memory {m.dtype}")


@exercise(1)
def test_ex1_on_any_device():
    latent = torch.empty(2, 3, 4, device="meta")            # tensors without numbers: they mix with no others
    for m in (lrt.shift_right(latent), lrt.shift_right(latent, latent[:, 0])):
        check(m.device == latent.device, f"latent is on {latent.device}, the memory on {m.device}")


# ---- Exercise 2: Cache.advance -----------------------------------------------------------------------------

def made_up_cache(W, n, T, has_lrt=True):
    """T newest positions, and n in all, of three layers; all numbers different."""
    config = lrt.GPTConfig(block_size=W, n_layer=3, n_head=2, n_embd=8, lrt=has_lrt)
    cache = lrt.Cache(config, 2, like=numbers(1))
    cache.pos, cache.rope = n - T if n < W else 40, (numbers(T, 2), numbers(T, 2))
    cache.x0, cache.h, cache.latents = (numbers(2, T, 8, seed=s).requires_grad_() for s in (1, 2, 3))
    cache.kv = [numbers(2, 2, 2, n, 4, seed=5 + i).requires_grad_() for i in range(3)]
    return cache


SIZES = pytest.mark.parametrize("W, n, T", [(7, 3, 3), (7, 3, 1), (7, 6, 1), (7, 7, 1), (7, 7, 7), (7, 9, 4),
                                            (7, 20, 20),
                                            (1, 1, 1), (1, 5, 5), (2, 3, 2)])


@exercise(2)
@SIZES
def test_ex2_what_stays_of_the_newest(W, n, T):
    cache = made_up_cache(W, n, T)
    pos, kv, h, latents = cache.pos, list(cache.kv), cache.h, cache.latents
    copies = [x.detach().clone() for x in (*kv, h, latents)]
    cache.advance()
    check(type(cache.pos) is int and cache.pos == pos + T,
          f"pos was {pos}, {T} are done, and now it is {cache.pos!r}")
    close(cache.latent, latents[:, T - 1], "latent", ("row", "number"))
    keep = min(n, W - 1)
    check(len(cache.kv) == 3, f"kv: {len(cache.kv)} layers, expected 3")
    for i in range(3):
        check(cache.kv[i].shape == (2, 2, 2, keep, 4),
              f"kv of layer {i}: shape {tuple(cache.kv[i].shape)}: of {n} positions "
              f"{keep} stay when W = {W}: those that the next token sees, beside itself")
        for j in range(keep):
            close(cache.kv[i][..., j, :], kv[i][..., n - keep + j, :], f"layer {i}, place {j} of {keep}",
                  ("k or v", "row", "head"))
    close(cache.h, h, "h, from which logits are still to be read", THERE)
    check(all(torch.equal(a, b) for a, b in zip(copies, (*kv, h, latents))), "tensors were changed in place")


@exercise(2)
@SIZES
def test_ex2_gradients_go_on(W, n, T):
    """Back-propagation through time goes through the latent and through keys and values."""
    def value(*tensors):
        cache = made_up_cache(W, n, T)
        cache.latents, *cache.kv = tensors
        cache.advance()
        return weighed(cache.latent, *cache.kv)
    start = made_up_cache(W, n, T)
    named = dict(latents=start.latents, **{f"kv of layer {i}": kv for i, kv in enumerate(start.kv)})
    slopes(lambda: value(*named.values()), named, "advance")


@exercise(2)
def test_ex2_a_plain_gpt_has_no_latent():
    cache = made_up_cache(7, 9, 4, has_lrt=False)
    cache.advance()
    check(cache.latent is None, "without LRT, latent stays None")
    check(cache.pos == 44 and cache.kv[2].size(3) == 6, "without LRT, position and window go on as with it")


@exercise(2)
def test_ex2_twice():
    cache = made_up_cache(4, 2, 2)
    seen = list(cache.kv)
    for step in range(4):
        pos = cache.pos
        cache.advance()
        check(cache.pos == pos + cache.x0.size(1),
              f"advance number {step}: position {pos} became {cache.pos}")
        close(cache.latent, cache.latents[:, -1], f"latent after advance number {step}", ("row", "number"))
        for i in range(3):
            close(cache.kv[i], seen[i][..., -3:, :], f"layer {i} after advance number {step}",
                  ("k or v", *HEADS))
        cache.latents, cache.x0 = (numbers(2, 1, 8, seed=step + s) for s in (20, 40))
        for i in range(3):
            seen[i] = torch.cat([seen[i], numbers(2, 2, 2, 1, 4, seed=50 + step)], dim=3)
            cache.kv[i] = torch.cat([cache.kv[i], numbers(2, 2, 2, 1, 4, seed=50 + step)], dim=3)


# ---- Exercise 3: Block.qkv ---------------------------------------------------------------------------------

@exercise(3)
@pytest.mark.parametrize("case, memory", [k[1:] for k in KNOWN if k[0] == "qkv"])
def test_ex3_keys_and_values_with_memory(case, memory):
    block, y, m_k, m_v = qkv_case(case, memory)
    copies = [x.clone() if memory else x for x in (y, m_k, m_v)]
    out = block.qkv(y, m_k, m_v) if memory else block.qkv(y)
    check(isinstance(out, (tuple, list)) and len(out) == 3, "qkv returns three tensors")
    without = "" if memory else " without memory (they still have the local gate)"
    of = " of a plain GPT" if case == "plain" else without
    for name, mine in zip("qkv", out):
        close(mine, known("qkv", case, memory)[name], f"{dict(q='queries', k='keys', v='values')[name]}{of}",
              HEADS)
    check(torch.equal(y, copies[0]) and (not memory or torch.equal(m_k, copies[1])
                                         and torch.equal(m_v, copies[2])),
          "the inputs were changed in place")


@exercise(3)
@pytest.mark.parametrize("case, memory", [("gates", 1), ("gates", 0), ("plain", 0)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_ex3_gradients(case, memory, which):
    block, y, m_k, m_v = qkv_case(case, memory)
    named = {n: p for n, p in block.named_parameters()
             if n.split(".")[0] in ("w_q", ("w_k", "w_q", "w_v")[which], "w_g")}
    named.update(y=y.requires_grad_(), **(dict(m_k=m_k.requires_grad_(), m_v=m_v.requires_grad_()) if memory
                                          else {}))
    slopes(lambda: weighed(block.qkv(y, m_k, m_v)[(1, 0, 2)[which]]), named,
           ("keys", "queries", "values")[which])


@exercise(3)
def test_ex3_positions_and_rows_stand_alone():
    """Of one position what there is of it among others; gates of 1 without weights, and a memory that goes
    in by itself."""
    block, y, m_k, m_v = qkv_case("gates", 1)
    whole = block.qkv(y, m_k, m_v)
    for b, t in ((0, 0), (1, 3)):
        at = slice(t, t + 1)
        alone = block.qkv(y[b:b + 1, at], m_k[b:b + 1, :, at], m_v[b:b + 1, :, at])
        for name, mine, expected in zip("qkv", alone, whole):
            close(mine, expected[b:b + 1, :, t:t + 1], f"{name} of position {t} alone", HEADS)
    with torch.no_grad():
        block.w_g.weight.zero_()
    for name, mine, without, m in zip("kv", block.qkv(y, m_k, m_v)[1:], block.qkv(y)[1:], (m_k, m_v)):
        close(mine, without + m, f"{name} where all gates are 1", HEADS)


# ---- Exercise 4: GPT.layers --------------------------------------------------------------------------------

def run_layers(model, x0, m, mask=None, start=0, store=None):
    """h, latent, and what was stored: {layer: (k, v)}."""
    stored = {}
    def keep(i, k, v):
        check(i not in stored, f"layer {i} was stored twice")
        stored[i] = (k, v)
        return store(i, k, v) if store else torch.stack([k, v])
    rope = lrt.rotary(start, x0.size(1), model.config.n_embd // model.config.n_head, like=model.alpha)
    out = model.layers(x0, rope, mask, keep, m) if m is not None else model.layers(x0, rope, mask, keep)
    check(isinstance(out, (tuple, list)) and len(out) == 2, "layers returns h and the latent")
    return *out, stored


@exercise(4)
@pytest.mark.parametrize("name, memory", [k[1:] for k in KNOWN if k[0] == "layers" and k[1:] != ("plain", 1)])
def test_ex4_the_equations(name, memory):
    model, x0, m = layers_case(name, memory)
    copies = x0.clone(), None if m is None else m.clone()
    h, latent, stored = run_layers(model, x0, m)
    right, of = known("layers", name, memory), f" ({name}; {'with' if memory else 'without'} memory)"
    check(list(stored) == list(range(model.config.n_layer)),
          f"stored were layers {list(stored)}: expected all, in order")
    for i in stored:
        for kind, mine in zip(("keys", "values"), stored[i]):
            close(mine, right[kind][i], f"{kind} of layer {i}{of}", HEADS)
    close(h, right["h"], f"h{of}", THERE)
    if model.config.lrt:
        close(latent, right["latent"], f"latent{of}", THERE)
    check(torch.equal(x0, copies[0]) and (m is None or torch.equal(m, copies[1])),
          "x0 or m was changed in place")


@exercise(4)
@every_config
def test_ex4_no_memory_is_a_memory_of_zero(name):
    model, x0, _ = layers_case(name, 0)
    for what, a, b in zip(("h", "latent"), run_layers(model, x0, None),
                          run_layers(model, x0, torch.zeros_like(x0))):
        close(a, b, f"{what} with m = None, against m = 0", THERE)


@exercise(4)
@pytest.mark.parametrize("name, memory", [("shared", 1), ("layerwise", 1), ("first layer", 1),
                                          ("middle layer, layerwise", 1),
                                          ("shared", 0), ("plain", 0)])
def test_ex4_gradients(name, memory):
    model, x0, m = layers_case(name, memory)
    named = {n: p for n, p in model.named_parameters() if not n.startswith(("embed", "head"))}
    named.update(x0=x0.requires_grad_(), **(dict(m=m.requires_grad_()) if memory else {}))
    for part, kind in enumerate(("h", "latent")[:1 + model.config.lrt]):
        slopes(lambda: weighed(run_layers(model, x0, m)[part]), named, f"{kind} ({name})")


@exercise(4)
@pytest.mark.parametrize("name", ["shared", "middle layer, layerwise", "plain"])
def test_ex4_some_positions_at_a_time(name):
    """The last two of five positions alone, with mask and rotary positions of their own: store gives all
    keys."""
    model, x0, m = layers_case(name, int(name != "plain"))
    h, latent, all_kv = run_layers(model, x0, m)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[3:]
    late = lambda i, k, v: torch.stack([torch.cat([old[:, :, :3], new], dim=2) for old,
                                        new in zip(all_kv[i], (k, v))])
    mine, its_latent, _ = run_layers(model, x0[:, 3:], None if m is None else m[:, 3:], mask, 3, late)
    close(mine, h[:, 3:], "h of the last two positions alone", THERE)
    if model.config.lrt:
        close(its_latent, latent[:, 3:], "latent of the last two positions alone", THERE)


@exercise(4)
def test_ex4_embeddings_are_dropped_out_elsewhere():
    """x0 comes with its dropout, which is that of all passes; in layers only blocks drop."""
    model, x0, m = layers_case("shared", 1)
    expected, model.dropout.p = run_layers(model, x0, m)[0], 0.5
    close(run_layers(model.train(), x0, m)[0], expected, "h in training, where blocks drop nothing", THERE)


@exercise(4)
def test_ex4_on_any_device():
    model, x0, m = layers_case("layerwise", 1)
    for memory in (m.to("meta"), None):
        h, latent, _ = run_layers(model.to("meta"), x0.to("meta"), memory)
        check(h.device == latent.device == x0.to("meta").device, "h or latent is on another device")


# ---- Exercise 5: GPT.recur ---------------------------------------------------------------------------------

@exercise(5)
@plain_too
def test_ex5_the_recurrence(name):
    """20 tokens with a window of 13, each against the equations."""
    model = random_model(**PLAIN[name])
    idx, right, cache = tokens(model, 2, 20), known("exact", name, 20), model.init_cache(2)
    for t in range(20):
        h = model.recur(idx[:, t], cache)
        of = f"position {t} ({name})"
        close(h, right["h"][:, t], f"h at {of}", ("row", "number"))
        check(cache.pos == t + 1, f"pos is {cache.pos} after {t + 1} tokens")
        if model.config.lrt:
            close(cache.latent, right["latents"][:, t], f"latent after {of}", ("row", "number"))
        else:
            check(cache.latent is None, "a plain GPT has a latent")
        check(cache.kv[0].size(3) == min(t + 1, 12),
              f"keys and values of {cache.kv[0].size(3)} positions after {t + 1} tokens, W = 13")
    logits, loss = model.forward_sequential(idx)
    close(logits, right["logits"], "logits of forward_sequential", THERE)
    check(loss is None, "forward_sequential: a loss without targets")


@exercise(5)
@pytest.mark.parametrize("name", ["shared", "middle layer, layerwise", "plain"])
def test_ex5_gradients_go_through_time(name):
    """Through the latent, and through the keys and values of earlier tokens."""
    model = random_model(**PLAIN[name], block_size=4)
    idx, targets, first = tokens(model, 2, 6), tokens(model, 2, 6, seed=2), numbers(2, 16).requires_grad_()
    slopes(lambda: model.forward_sequential(idx, targets)[1], model.named_parameters(),
           "loss of forward_sequential")
    def last():
        cache = model.init_cache(2)
        if model.config.lrt:
            cache.latent = first
        for t in range(6):
            h = model.recur(idx[:, t], cache)
        return weighed(h) if not model.config.lrt else weighed(h, cache.latent)
    extra = dict(first=first) if model.config.lrt else {}
    slopes(last, dict(**dict(model.named_parameters()), **extra), "h and latent after six tokens")


@exercise(5)
def test_ex5_every_latent_counts():
    """It starts from the latent that it finds, at the first token too; and looks at it anew at each."""
    model = random_model()
    idx, latent = tokens(model, 2, 6), numbers(2, 16)
    def last(change, at):
        cache = model.init_cache(2)
        for t in range(6):
            if t == at:
                cache.latent = change(cache.latent)
            h = model.recur(idx[:, t], cache)
        return h
    plain = last(lambda m: m, 0)
    for at in range(6):
        for what, change in (("another one", lambda m: latent), ("doubled", lambda m: 2 * m + 0.1),
                             ("of other rows", lambda m: m.flip(0) - 0.1)):
            check((last(change, at) - plain).abs().max() > 1e-6,
                  f"latent {what} at position {at}: h at 5 does not notice")
    expected = last(lambda m: latent, 0)
    # The same with the reference's own pieces, in one go
    cache = model.init_cache(2)
    cache.latent = latent
    model.extend(idx, cache)
    for s in range(6):
        model.refine(cache, s, 6)
    close(expected, cache.h[:, 5], "h at position 5, from a latent that is not 0", ("row", "number"))


@exercise(5)
def test_ex5_sequences_do_not_see_each_other():
    """Not those of a batch, not those decoded before, not those decoded in turn with it."""
    model = random_model()
    idx, order = tokens(model, 4, 8), torch.tensor([2, 0, 3, 1])
    copy = idx.clone()
    def decode(idx):
        cache = model.init_cache(idx.size(0))
        return torch.stack([model.recur(idx[:, t], cache) for t in range(8)], 1)
    first = decode(idx)
    close(decode(idx[order]), first[order], "h of rows in another order", THERE)
    close(decode(idx), first, "h when decoded a second time", THERE)
    close(decode(idx[1:2]), first[1:2], "h of row 1 alone", THERE)
    a, b = model.init_cache(4), model.init_cache(4)
    for t in range(8):
        close(model.recur(idx[:, t], a), first[:, t], f"h at {t} of two sequences in turn", ("row", "number"))
        model.recur(idx[order, t], b)
    check(torch.equal(idx, copy), "idx was changed in place")


@exercise(5)
@pytest.mark.parametrize("has_lrt", [False, True])
def test_ex5_step_goes_on_where_a_pass_stopped(has_lrt):
    """After positions that were computed at once; and without gradients."""
    model = random_model(lrt=has_lrt)
    idx = tokens(model, 1, 18)
    expected = windowed_reference(model, idx)
    with torch.inference_mode():
        cache = model.init_cache(1)
        model.extend(idx[:, :9], cache)
        for s in range(9 * has_lrt):
            model.refine(cache, s, 9)
        cache.advance()
        for t in range(9, 18):
            close(model.step(idx[:, t], cache), expected[:, t], f"logits at position {t}", ("row", "number"))


# ---- Exercise 6: GPT.refine --------------------------------------------------------------------------------

def window_of(cache, i):
    """Keys and values of the newest positions in layer i."""
    return cache.kv[i][..., cache.kv[i].size(3) - cache.x0.size(1):, :]


@exercise(6)
@pytest.mark.parametrize("name, S, K", [k[1:] for k in KNOWN if k[0] == "passes"])
def test_ex6_subset_passes(name, S, K):
    """After each: h, latents, keys and values of all positions, against the equations. What was not computed
    again stays."""
    model = random_model(**CONFIGS[name])
    right, cache = known("passes", name, S, K), model.init_cache(1)
    model.extend(tokens(model, 1, 7), cache)
    for n in range(1, S * K + 1):
        s, old = (n - 1) % S, [cache.h, cache.latents, *cache.kv]
        copies = [x.clone() for x in old]
        model.refine(cache, s, S)
        of = f" after the pass over subset {s} of {S} in sweep {(n - 1) // S + 1} ({name})"
        for i in range(model.config.n_layer):
            for kind, mine in zip(("keys", "values"), cache.kv[i]):
                close(mine[0], right[kind][n, i], f"{kind} of layer {i}{of}", HEADS[1:])
        close(cache.latents[0], right["latents"][n], f"latents{of}", THERE[1:])
        close(cache.h[0], right["h"][n], f"h{of}", THERE[1:])
        for was, copy, new in zip(old, copies, (cache.h, cache.latents, *cache.kv)):
            check(torch.equal(was, copy),
                  "tensors of the pass before were changed in place; forward and prefill still need them")
            for t in range(7):
                dim = 1 if new.dim() == 3 else 3
                check(t % S == s or torch.equal(new.select(dim, t), copy.select(dim, t)),
                      f"position {t} was changed{of}")


@exercise(6)
@every_config
def test_ex6_after_what_is_done(name):
    """Positions 9 to 14 refined in turn, when nine tokens are in the cache and the window is 13; and over 20
    at once."""
    model = random_model(**CONFIGS[name])
    idx, right = tokens(model, 2, 20), known("exact", name, 20)
    for start, T in ((9, 6), (0, 20), (15, 1)):
        cache = model.init_cache(2)
        for t in range(start):
            model.recur(idx[:, t], cache)
        model.extend(idx[:, start:start + T], cache)
        for s in range(T):
            model.refine(cache, s, T)
            of = f" of position {start + s}, number {s} of {T} new ones after {start} ({name})"
            close(cache.h[:, s], right["h"][:, start + s], f"h{of}", ("row", "number"))
            close(cache.latents[:, s], right["latents"][:, start + s], f"latent{of}", ("row", "number"))
        check(cache.pos == start and cache.h.size(1) == T, "refine is not to advance the cache")
        cache.advance()
        if start + T < 20:
            close(model.recur(idx[:, start + T], cache), right["h"][:, start + T], "h of the next token",
                  ("row", "number"))


@exercise(6)
@pytest.mark.parametrize("S", [1, 2, 3, 8])
def test_ex6_longer_than_the_window(S):
    """A sweep over 8 new positions, five of which lie behind the window of the last, is the same in any
    company."""
    model = random_model(block_size=3)
    idx, latent = tokens(model, 2, 8), numbers(2, 16)
    def swept(idx, latent):
        cache = model.init_cache(idx.size(0))
        cache.latent = latent
        model.extend(idx, cache)
        for s in [*range(S), 0]:
            model.refine(cache, s, S)
        return cache
    both, one = swept(idx, latent), swept(idx[1:], latent[1:])
    close(both.h[1:], one.h, "h of row 1 alone", THERE)
    other = swept(idx, latent + 1)
    check((other.h[:, 0] - both.h[:, 0]).abs().max() > 1e-6,
          "the first of the newest does not use the latent of the cache")
    for t in range(1, 8):                       # exact prefix, by the token loop
        cache = model.init_cache(2)
        cache.latent = latent
        for u in range(t):
            h = model.recur(idx[:, u], cache)
        if t <= S:
            close(both.h[:, t - 1], h, f"h of position {t - 1}, which {S} subsets make exact",
                  ("row", "number"))


@exercise(6)
@pytest.mark.parametrize("S, passes", [(1, 2), (2, 3), (3, 4), (6, 6)])
@pytest.mark.parametrize("name", ["shared", "first layer", "layerwise"])
def test_ex6_gradients(name, S, passes):
    """Through latents, keys and values of all passes; and into the latent that the cache begins with."""
    model = random_model(**CONFIGS[name], n_layer=2)
    idx, latent = tokens(model, 2, 6), numbers(2, 16).requires_grad_()
    def refined(part):
        cache = model.init_cache(2)
        cache.latent = latent
        model.extend(idx, cache)
        for n in range(passes):
            model.refine(cache, n % S, S)
        return weighed(*((cache.h,), (cache.latents,), cache.kv)[part])
    for part, kind in enumerate(("h", "latents", "keys and values")):
        named = dict(latent=latent, **{n: p for n, p in model.named_parameters() if not n.startswith("head")})
        slopes(lambda: refined(part), named, f"{kind} after {passes} of {S} subset passes")


@exercise(6)
def test_ex6_on_any_device():
    """As on a GPU: all that is made must be made where the model is. (meta: tensors without numbers.)"""
    model = random_model().to("meta")
    cache, idx = model.init_cache(2), torch.zeros(2, 5, dtype=torch.long, device="meta")
    model.extend(idx, cache)
    for s in range(2):
        model.refine(cache, s, 2)
    check(cache.h.device == idx.device and cache.latents.shape == (2, 5, 16), "h: another device")


# ---- Exercise 7: GPT.forward -------------------------------------------------------------------------------

@exercise(7)
@pytest.mark.parametrize("name, S, K", [k[1:] for k in KNOWN if k[0] == "passes"])
def test_ex7_logits_after_each_sweep(name, S, K):
    model, right = random_model(**CONFIGS[name]), known("passes", name, S, K)["logits"]
    idx = tokens(model, 1, 7)
    for k in range(K + 1):
        logits, loss = model(idx, subsets=S, sweeps=k)
        check(loss is None, "a loss without targets")
        close(logits[0], right[k * S], f"logits after {k} sweeps of {S} subsets ({name})", THERE[1:])
        close(model(idx, idx, subsets=S, sweeps=k)[0][0], right[k * S], f"the same, with targets ({name})",
              THERE[1:])
    close(model(idx, subsets=S)[0][0], right[S],
          f"logits for subsets={S}: one sweep where nothing else is said", THERE[1:])


@exercise(7)
@every_config
@pytest.mark.parametrize("B, T", [(2, 6), (3, 1)])
def test_ex7_dial_at_S_equals_T_is_the_definition(name, B, T):
    """Logits, loss and every gradient."""
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, B, T), tokens(model, B, T, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    for S in (T, T + 1, 100):
        mine, its_loss = model(idx, targets, subsets=S, sweeps=1, loss_weights=(0, 1))
        close(mine, logits, f"logits, S = {S}, T = {T}", THERE)
        close(its_loss, loss, f"loss, S = {S}, T = {T}, loss_weights=(0, 1)")
    grads = lambda loss: torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (which, _), a, b in zip(model.named_parameters(), grads(its_loss), grads(loss)):
        check(a is not None, f"no gradient reaches {which}: is something detached?")
        close(a, b, f"gradient of {which}, S = T = {T}")


@exercise(7)
@every_config
def test_ex7_exact_unless_an_approximation_is_asked_for(name):
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, 2, 8), tokens(model, 2, 8, seed=2)
    exact = model.forward_sequential(idx, targets)
    for a, b, what in zip(model(idx, targets), exact, ("logits", "loss")):
        close(a, b, f"{what} of model(idx, targets) without subsets")
    close(model(idx)[0], exact[0], "logits of model(idx)", THERE)
    close(model(idx, targets, sweeps=3)[1], exact[1], "loss without subsets, whatever sweeps is")


@exercise(7, slow=True)
@every_config
def test_ex7_exact_prefix_is_as_long_as_predicted_and_no_longer(name):
    model = random_model(**CONFIGS[name])
    T = 12
    idx = tokens(model, 2, T)
    exact, _ = model.forward_sequential(idx)
    for S in (1, 2, 3, 5, 7, T):
        for K in range(4):
            wrong = ((model(idx, subsets=S, sweeps=K)[0] - exact).abs().amax((0, 2)) > 1e-8).tolist()
            prefix = wrong.index(True) if True in wrong else T
            right = min(T, max(K + 1, S * K))
            check(prefix == right, f"S = {S}, K = {K}: {prefix} exact positions, expected {right}")


@exercise(7)
@pytest.mark.parametrize("S, K", [(3, 2), (1, 2), (2, 1), (20, 1), (1, 0)])
@pytest.mark.parametrize("ignored", [(3,), range(6), (0, 2, 4, 6, 8, 10)])
def test_ex7_loss_is_one_mean_for_each_sweep(S, K, ignored):
    """The default loss and weighted ones, put together from the logits after each sweep."""
    model, T = random_model(), 12
    idx, targets = tokens(model, 2, T), tokens(model, 2, T, seed=2)
    for t in ignored:
        targets[:, t] = -1
    targets[1, 4] = -1
    kept = targets != -1
    means = []
    for k in range(K + 1):
        p = model(idx, subsets=S, sweeps=k)[0].log_softmax(-1)
        means.append(-p.gather(2, targets.clamp(min=0)[..., None])[..., 0][kept].mean())
    passes, of = 1 + min(S, T) * K, f"S = {S}, K = {K}, {int((~kept).sum())} of {kept.numel()} targets -1"
    default = means[0] / passes + sum(means[1:]) * min(S, T) / passes
    close(model(idx, targets, subsets=S, sweeps=K)[1], default, f"loss, {of}")
    for weights in ([0.3, 0.0, 1.5][:K + 1], [0.0] * K + [1.0], (2.0,) + (0.5,) * K):
        mine = model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1]
        close(mine, sum(w * mean for w, mean in zip(weights, means)), f"loss, loss_weights={weights}, {of}")
        check(mine.requires_grad, "the loss has no gradient")


@exercise(7)
@pytest.mark.parametrize("dial", [dict(), dict(subsets=2), dict(subsets=12),
                                  dict(subsets=3, sweeps=2, loss_weights=(0, 1, 1))])
def test_ex7_targets_of_minus_one_do_not_count(dial):
    model = random_model()
    idx, targets = tokens(model, 2, 12), tokens(model, 2, 12, seed=2)
    targets[:, 5:] = -1
    short = (idx[:, :5], targets[:, :5])
    if dial.get("subsets", 12) == 12:
        dial = {**dial, **(dict(loss_weights=(0, 1)) if dial else {})}
        close(model(idx, targets, **dial)[1], model.forward_sequential(*short)[1],
              "loss where later targets are -1")
    else:
        close(model(idx, targets, **dial)[1], model(*short, **dial)[1], "loss where later targets are -1")
    loss = model(idx, torch.full_like(targets, -1), **dial)[1]
    check(loss is not None and loss.item() == 0, f"all targets -1: the loss is {loss}, expected 0")


@exercise(7)
@pytest.mark.parametrize("S, K, weights", [(3, 2, (0, 0, 1)), (3, 2, None), (1, 2, (0, 0, 1)), (2, 1, (1, 1)),
                                           (2, 2, (0, 1, 0)), (5, 1, None)])
@pytest.mark.parametrize("name", ["shared", "first layer"])
def test_ex7_gradients_go_through_every_pass(name, S, K, weights):
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, 2, 8), tokens(model, 2, 8, seed=2)
    slopes(lambda: model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1],
           model.named_parameters(),
           f"loss, S = {S}, K = {K}, loss_weights = {weights}")


@exercise(7, slow=True)
@pytest.mark.parametrize("has_lrt", [False, True])
def test_ex7_causality(has_lrt):
    """No position sees a later one: not in its logits, not through a gradient. And it sees all earlier
    ones."""
    model = random_model(lrt=has_lrt)
    idx = tokens(model, 2, 11)
    for S, K in ((1, 1), (2, 1), (3, 2), (11, 1)):
        run = lambda i: model(i, subsets=S, sweeps=K)[0]
        before, of = run(idx), f"S = {S}, K = {K}"
        for t in (0, 5, 10):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            difference = (run(changed) - before).abs().amax((0, 2))
            check((difference[:t] == 0).all(), f"{of}: a position before {t} sees the token at {t}")
            check((difference[t:] > 1e-9).all(),
                  f"{of}: a position from {t} on does not see the token at {t}")
        # Token t at position t alone, so its embedding is that position
        logits = run(torch.arange(11)[None])
        for t in range(11):
            grad = torch.autograd.grad(logits[0, t].sum(), model.embed.weight,
                                       retain_graph=True)[0].abs().sum(1)
            check((grad[:t + 1] > 0).all(), f"{of}: no gradient from position {t} to one before it")
            check((grad[t + 1:] == 0).all(), f"{of}: a gradient from position {t} to a later one")


@exercise(7)
def test_ex7_plain_is_one_pass_whatever_the_dial_says():
    plain, calls = random_model(lrt=False), []
    idx, targets = tokens(plain, 2, 13), tokens(plain, 2, 13, seed=2)
    logits, loss = plain.forward_sequential(idx, targets)
    layers = plain.layers
    plain.layers = lambda *args: calls.append(args[0].shape) or layers(*args)
    for dial in (dict(), dict(subsets=1), dict(subsets=3, sweeps=2), dict(subsets=13),
                 dict(subsets=2, sweeps=0),
                 dict(subsets=2, loss_weights=(0.2, 0.3)), dict(sweeps=5)):
        calls.clear()
        mine, its_loss = plain(idx, targets, **dial)
        close(mine, logits, f"logits of a plain GPT, {dial}", THERE)
        close(its_loss, loss, f"loss of a plain GPT, {dial}")
        check(calls == [(2, 13, 16)],
              f"a plain GPT computed {len(calls)} passes, expected one over all 13 positions ({dial})")
    plain.layers = layers
    slopes(lambda: plain(idx, targets)[1], plain.named_parameters(), "loss of a plain GPT")


@exercise(7)
def test_ex7_plain_is_lrt_without_memory_and_without_gates():
    plain, model = random_model(lrt=False), random_model()
    extra = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    with torch.no_grad():
        for name in extra:
            # Gates 2 σ(0) = 1, and nothing for g_mem to let in
            model.get_parameter(name).zero_()
    idx, targets = tokens(model, 2, 13), tokens(model, 2, 13, seed=2)
    logits, loss = plain(idx, targets)
    close(model.forward_sequential(idx)[0], logits, "logits of the loop", THERE)
    for S, K in ((1, 1), (2, 1), (3, 2), (13, 1)):
        close(model(idx, subsets=S, sweeps=K)[0], logits, f"logits, S = {S}, K = {K}", THERE)
    close(model(idx, targets, subsets=2, loss_weights=(0.5, 0.5))[1], loss, "loss")


@exercise(7, slow=True)
def test_ex7_flops_depend_on_sweeps_alone():
    """(1 + K) passes whatever S is. (A sweep is a pass and what projects the memory, 2C² of 12 L C².)"""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    model = random_model(n_layer=4, block_size=12, vocab_size=2)
    def count(S, K):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(tokens(model, 2, 12), subsets=S, sweeps=K)
        return counter.get_total_flops()
    for S, K in ((1, 1), (1, 3), (2, 1), (3, 2), (12, 1)):
        cost = count(S, K) / count(1, 0)
        check(abs(cost / (1 + K) - 1) < 0.05, f"S = {S}, K = {K}: {cost:.2f} passes, expected {1 + K}")


@exercise(7)
def test_ex7_rows_do_not_see_each_other():
    model = random_model()
    idx, order = tokens(model, 4, 12), torch.tensor([2, 0, 3, 1])
    close(model(idx[order], subsets=3)[0], model(idx, subsets=3)[0][order], "logits of rows in another order",
          THERE)
    close(model(idx[1:2], subsets=3)[0], model(idx, subsets=3)[0][1:2], "logits of row 1 alone", THERE)


@exercise(7)
@pytest.mark.parametrize("has_lrt", [False, True])
def test_ex7_impossible_dials_are_refused(has_lrt):
    model = random_model(lrt=has_lrt)
    idx = tokens(model, 1, 5)
    wrong = [dict(subsets=0), dict(subsets=-1), dict(subsets=2, sweeps=-1),
             dict(subsets=2, loss_weights=(1,)),
             dict(subsets=2, loss_weights=(0, 0)), dict(subsets=2, sweeps=2, loss_weights=(1, 1)),
             dict(subsets=2, loss_weights=(1, 1, 1))]
    for dial in wrong if has_lrt else []:
        refuses(lambda: model(idx, idx, **dial), str(dial))
    for dial in (dict(), dict(subsets=1), dict(subsets=2)):
        refuses(lambda: model(tokens(model, 1, 14), **dial), f"14 tokens where block_size is 13, {dial}")
        refuses(lambda: model(idx[:, :0], **dial), f"no token at all, {dial}")


@exercise(7)
@pytest.mark.parametrize("has_lrt", [True, False])
def test_ex7_on_any_device(has_lrt):
    model, idx = random_model(lrt=has_lrt).to("meta"), torch.zeros(2, 5, dtype=torch.long, device="meta")
    for dial in (dict(subsets=2), dict(subsets=3, sweeps=2, loss_weights=(0, 1, 1))):
        logits, loss = model(idx, idx, **dial)
        check(logits.device == loss.device == idx.device and loss.shape == (), "logits or loss: device")


@exercise(7)
def test_ex7_embeddings_are_dropped_out_once():
    """In training the sweeps see the embeddings of pass 0: S = T over the same ones is the loop over them."""
    model = random_model(dropout=0.0).train()
    idx, drawn, model.dropout.p = tokens(model, 2, 6), [], 0.5
    dropout = model.dropout.forward
    model.dropout.forward = lambda x: drawn.append(x) or dropout(x)
    model(idx, idx, subsets=3, sweeps=2)
    check(len(drawn) == 1, f"dropout of embeddings was drawn {len(drawn)} times in one call; expected once")


# ---- Exercise 8: GPT.prefill -------------------------------------------------------------------------------

@exercise(8)
@pytest.mark.parametrize("case, tol", [k[1:] for k in KNOWN if k[0] == "prefill"])
def test_ex8_stops_when_a_sweep_has_changed_nothing(case, tol):
    model, idx, S = prefill_case(case)
    right, cache = known("prefill", case, tol), model.init_cache(idx.size(0))
    logits, of = model.prefill(idx, cache, subsets=S, tol=tol), f"({case}, tol = {tol:g})"
    check(cache.sweeps == right["sweeps"],
          f"{cache.sweeps} sweeps, expected {right['sweeps']} {of}: what has to settle is all "
          f"that a sweep writes, in all rows, positions and layers; the largest change counts")
    close(torch.tensor(float(cache.residual)).double(), right["residual"], f"residual {of}", atol=1e-12
          + 1e-6 * right["residual"].item())
    if idx.size(1) < 50:
        close(logits, windowed_reference(model, idx)[:, -1], f"logits {of}", ("row", "number"),
              atol=100 * tol)


@exercise(8)
@pytest.mark.parametrize("name, S", [("shared", 1), ("layerwise", 4), ("first layer", 100),
                                     ("first layer", 4), ("plain", 4),
                                     ("middle layer, layerwise", 3), ("one layer, one head", 4)])
@pytest.mark.parametrize("cuts", [[30], [1, 1, 28], [5, 8, 1, 13, 3], [13, 13, 4]])
def test_ex8_prefill_in_pieces_is_stepping(name, S, cuts):
    """For random weights, which need not contract: exact when it has used up its sweeps."""
    model = random_model(**PLAIN[name])
    idx = tokens(model, 2, 32)
    expected, cache, end = stepped(name), model.init_cache(2), 0
    for cut in cuts:
        logits = model.prefill(idx[:, end:end + cut], cache, subsets=S, tol=0.0)
        end += cut
        close(logits, expected[:, end - 1], f"logits after {end} tokens, the last {cut} at once",
              ("row", "number"))
        most = math.ceil(cut / min(S, cut)) if model.config.lrt else 0
        check(type(cache.sweeps) is int and cache.sweeps <= most,
              f"{cache.sweeps!r} sweeps over {cut} tokens, S = {S}: at most {most}")
        check(cache.pos == end, f"pos is {cache.pos} after {end} tokens")
    for t in range(end, 32):                                # and the cache goes on as if all had been steps
        close(decoded(model, idx[:, t], cache), expected[:, t], f"logits of step {t}, after the prompt",
              ("row", "number"))


@functools.cache
def stepped(name):
    model = random_model(**PLAIN[name])
    return windowed_reference(model, tokens(model, 2, 32))


@exercise(8)
def test_ex8_never_wrongly_settled():
    """No memory enters the first layer, after which the latent is taken: the latents stand still from the
    first pass on, but keys and values of the layers above still move."""
    model = random_model(memory_layer=1, memory_proj="layerwise")
    with torch.no_grad():
        model.gamma[0] = 0
        model.u_k[0].weight.zero_()
        model.u_v[0].weight.zero_()
    idx = tokens(model, 2, 13)
    expected = model.forward_sequential(idx)[0][:, -1]
    for S in (1, 2, 3):
        cache = model.init_cache(2)
        close(model.prefill(idx, cache, subsets=S, tol=0), expected, f"logits, S = {S}, tol = 0",
              ("row", "number"))
        check(cache.residual == 0, f"residual {cache.residual} for tol = 0")
    # Memory layers below the last, keys and values that move last
    for seed in range(4):
        model = random_model(memory_layer=1 + seed % 2, n_layer=3, memory_proj="layerwise", seed=seed,
                             scale=0.2)
        with torch.no_grad():
            model.gamma[:2] = 0
            for u in (*model.u_k[:2], *model.u_v[:2], *((model.u_k[2],) if seed < 2 else (model.u_v[2],))):
                u.weight.zero_()
        expected = model.forward_sequential(idx)[0][:, -1]
        close(model.prefill(idx, model.init_cache(2), subsets=2, tol=0), expected,
              f"logits, weights {seed}, tol = 0", ("row", "number"))


def still_model(which):
    """One layer whose memory reaches only keys, only values, or only h and the latent. It contracts."""
    model = random_model(n_layer=1, n_head=2, n_embd=16, scale=0.02, block_size=64)
    with torch.no_grad():
        model.blocks[0].w_o.weight.copy_(numbers(16, 16) * 0.01)
        for name, p in (("keys", model.u_k[0].weight), ("values", model.u_v[0].weight),
                        ("latents", model.gamma)):
            p.mul_(name == which)
    return model


@exercise(8)
@pytest.mark.parametrize("which", ["keys", "values", "latents"])
def test_ex8_each_thing_written_has_to_settle(which):
    """residual is the largest change in what the last sweep wrote: measured here by one more prompt without
    the sweep."""
    model = still_model(which)
    idx = tokens(model, 2, 24)
    def after(n):
        """What is there after n sweeps."""
        cache = model.init_cache(2)
        model.extend(idx, cache)
        for s in range(3 * n):
            model.refine(cache, s % 3, 3)
        return [cache.h, cache.latents, *cache.kv]
    seen = 0
    for tol in (1.0, 0.1, 0.03, 1e-2, 1e-3, 1e-4):
        cache = model.init_cache(2)
        model.prefill(idx, cache, subsets=3, tol=tol)
        n = cache.sweeps
        if n < 8:                                           # not by the bound
            changes = [max((a - b).abs().max().item() for a, b in zip(after(k), after(k - 1)))
                       for k in range(1, n + 1)]
            close(torch.tensor(float(cache.residual)).double(), torch.tensor(changes[-1]).double(),
                  f"residual, tol = {tol}", atol=1e-9)
            check(changes[-1] <= tol and all(c > tol for c in changes[:-1]),
                  f"stopped after sweep {n}, tol = {tol}; the largest changes "
                  f"in each sweep: {', '.join(f'{c:.2g}' for c in changes)}")
            seen += 1
    check(seen > 1, "prefill always uses up its sweeps: it never notices that nothing changes any more")


@exercise(8)
def test_ex8_at_most_tol_is_enough():
    model, idx, S = prefill_case("two rows")
    cache = model.init_cache(2)
    model.prefill(idx, cache, subsets=S, tol=1e-3)
    sweeps, residual = cache.sweeps, cache.residual
    for tol, least in ((residual, sweeps), (residual * 0.999, sweeps + 1)):
        model.prefill(idx, cache := model.init_cache(2), subsets=S, tol=tol)
        check(cache.sweeps == least if tol == residual else cache.sweeps >= least,
              f"largest change {residual:.6g}, tol "
              f"{'the same' if tol == residual else 'a little less'}: {cache.sweeps} sweeps, expected "
              f"{least}")
    model.prefill(idx, cache := model.init_cache(2), subsets=S, tol=1e9)
    check(cache.sweeps == 1, f"{cache.sweeps} sweeps where any change is allowed: expected 1")
    model.prefill(idx[:, :1], cache, tol=1e9)               # on a cache that has seen more
    check(cache.sweeps == 1 and cache.residual == 0,
          f"a prompt of one token: {cache.sweeps} sweeps, residual {cache.residual}, "
          f"expected 1 and 0: do they still tell of the prompt before?")
    model.prefill(idx[:, :4], cache := model.init_cache(2), subsets=2, tol=0)
    check(cache.sweeps == 2 and cache.residual == 0,
          f"4 tokens, S = 2, tol = 0: {cache.sweeps} sweeps, residual {cache.residual}, expected 2 and 0")


@exercise(8)
def test_ex8_each_row_counts():
    """One row settles at once, the other late, whichever comes first; both are right."""
    model = random_model(scale=0.08, block_size=64, n_layer=2)
    idx = tokens(model, 3, 32)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        cache, alone = model.init_cache(3), []
        model.prefill(idx[order], cache, subsets=2, tol=1e-5)
        for row in order:
            model.prefill(idx[row:row + 1], one := model.init_cache(1), subsets=2, tol=1e-5)
            alone.append(one.sweeps)
        check(cache.sweeps == max(alone), f"rows that need {alone} sweeps alone took {cache.sweeps} together")


@exercise(8)
@pytest.mark.parametrize("has_lrt", [True, False])
def test_ex8_starts_from_the_latent_it_is_given(has_lrt):
    """Also before the first token, where a zero latent would be the usual one. And refuses what is
    impossible."""
    model = random_model(lrt=has_lrt)
    idx, latent = tokens(model, 2, 9), numbers(2, 16) if has_lrt else None
    a, b = model.init_cache(2), model.init_cache(2)
    a.latent = b.latent = latent
    for t in range(9):
        logits = model.step(idx[:, t], a)
    close(model.prefill(idx, b, subsets=3, tol=0.0), logits, "logits", ("row", "number"))
    refuses(lambda: model.prefill(idx, model.init_cache(2), subsets=0), "subsets=0")
    refuses(lambda: model.prefill(idx, model.init_cache(2), subsets=-2), "subsets=-2")
    refuses(lambda: model.prefill(idx[:, :0], model.init_cache(2)), "a prompt without tokens")


@functools.cache
def trained_model():
    """A model that 60 steps have taught to go on counting, with jumps: its memory contracts, as a trained
    one's does."""
    torch.manual_seed(0)
    model = lrt.GPT(lrt.GPTConfig(block_size=24, vocab_size=11, n_layer=3, n_head=2, n_embd=16,
                                  lrt=True)).double().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for n in range(60):
        text = torch.from_numpy(np.random.RandomState(n).randint(1, 3, size=(16, 25)).cumsum(1) % 11)
        loss = model(text[:, :-1], text[:, 1:], subsets=2)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check(loss < 1.2, f"loss {loss:.2f} after 60 steps of training: expected less than 1.2")
    return model


@exercise(8, slow=True)
@pytest.mark.parametrize("weights", ["trained", "random"])
def test_ex8_prefill_anyhow_is_stepping(weights):
    """At random cuts, lengths, batch sizes, subsets and tolerances: next-token distributions, here and after
    more steps. Random weights need not contract, so there only the bound on sweeps makes it exact."""
    model = trained_model() if weights == "trained" else random_model(scale=1.0, block_size=24)
    rng = np.random.RandomState(0)
    for case in range(8):
        B, T, tol = int(rng.randint(1, 4)), int(rng.randint(2, 60)), 10 ** rng.uniform(-9, -2)
        tol = tol if weights == "trained" else 0.0
        cuts = [0, *sorted(rng.choice(np.arange(1, T), size=min(T - 1, rng.randint(4)),
                                      replace=False).tolist()), T]
        idx = tokens(model, B, T + 3, seed=case)
        expected = windowed_reference(model, idx).log_softmax(-1)
        cache = model.init_cache(B)
        for a, b in zip(cuts, cuts[1:]):
            S = int(rng.randint(1, 9))
            logits = model.prefill(idx[:, a:b], cache, subsets=S, tol=tol)
            close(logits.log_softmax(-1), expected[:, b - 1],
                  f"log-probabilities after tokens {a} to {b - 1} at once, tol = {tol:.1g}",
                  ("row", "number"), atol=20 * tol + 1e-9)
            check(cache.sweeps <= math.ceil((b - a) / min(S, b - a)) and cache.pos == b,
                  f"{cache.sweeps} sweeps over {b - a} tokens, S = {S}")
            check(0 <= cache.residual <= tol, f"residual {cache.residual:.3g}, tol {tol:.3g}")
        for t in range(T, T + 3):
            close(decoded(model, idx[:, t], cache).log_softmax(-1), expected[:, t],
                  "log-probabilities of a step after the prompt", atol=20 * tol + 1e-9)


@exercise(8, slow=True)
def test_ex8_prompt_longer_than_a_piece():
    """600 tokens: a piece of 512, and one of 88; both wider than the window of 13."""
    model = random_model(scale=0.1, n_layer=1)
    idx, sizes, extend = tokens(model, 1, 600), [], model.extend
    expected = windowed_reference(model, idx)
    model.extend = lambda idx, *rest: sizes.append(idx.size(1)) or extend(idx, *rest)
    cache = model.init_cache(1)
    close(model.prefill(idx[:, :599], cache, subsets=4, tol=1e-12), expected[:, 598], "logits",
          ("row", "number"), atol=1e-9)
    check(sizes == [512, 87], f"pieces of {sizes} tokens; expected 512 and 87")
    close(decoded(model, idx[:, 599], cache), expected[:, 599], "logits of the next step", ("row", "number"),
          atol=1e-9)
    check(cache.kv[0].size(3) == 12 and cache.pos == 600, "the cache holds more than the window")
    wide, sizes[:] = random_model(n_layer=1, n_head=1, n_embd=6, block_size=530, scale=0.05), []
    extend, wide.extend = wide.extend, lambda idx, *rest: sizes.append(idx.size(1)) or extend(idx, *rest)
    wide.prefill(idx, wide.init_cache(1), subsets=4, tol=1.0)
    check(sizes == [530, 70], f"pieces of {sizes} tokens where block_size is 530; expected 530 and 70")


@exercise(8)
def test_ex8_a_plain_gpt_needs_no_sweep():
    model = random_model(lrt=False)
    idx, cache = tokens(model, 2, 30), model.init_cache(2)
    close(model.prefill(idx, cache), windowed_reference(model, idx)[:, -1], "logits", ("row", "number"))
    check(cache.sweeps == 0 and cache.residual == 0 and cache.pos == 30,
          f"{cache.sweeps} sweeps, residual {cache.residual}; expected 0 and 0")


@exercise(8, slow=True)
def test_ex8_greedy_text_is_the_definition():
    """Longer than block_size: generation never stops."""
    model = random_model(scale=1.0)
    idx = prompt = tokens(model, 2, 3)
    text = torch.stack(list(model.generate(prompt, 20, temperature=0)), 1)
    for _ in range(20):
        idx = torch.cat([idx, windowed_reference(model, idx)[:, -1].argmax(-1)[:, None]], 1)
    check(torch.equal(text, idx[:, 3:]), f"{text.tolist()}, expected {idx[:, 3:].tolist()}")


# ---- What is given -----------------------------------------------------------------------------------------

@exercise(0)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5),
                                              (torch.bfloat16, 4e-2)])
def test_norm_is_rms_norm(dtype, tolerance):
    """Value and gradient, for large and small inputs; and zero stays zero."""
    sizes = torch.tensor([100.0, 1, 1e-1, 1e-2, 1])[:, None, None]
    x = (numbers(5, 5, 16) * sizes).to(dtype).requires_grad_()
    weight = numbers(5, 5, 16, seed=1).to(dtype)
    value, slope = ([y.double(), torch.autograd.grad((y * weight).sum(), x)[0].double()]
                    for y in (lrt.norm(x), F.rms_norm(x, (16,), eps=0.0)))
    for a, b, what in zip(value, slope, ("value", "gradient")):
        close(a / b.abs().amax((1, 2), keepdim=True), b / b.abs().amax((1, 2), keepdim=True), what,
              atol=tolerance)
    zero = torch.zeros(2, 16, dtype=dtype, requires_grad=True)
    close(lrt.norm(zero), torch.zeros(2, 16), "norm of zero")
    check(torch.autograd.grad(lrt.norm(zero).sum(), zero)[0].isfinite().all(),
          "the gradient at zero is not finite")


@exercise(0)
def test_rotary_keeps_its_digits_at_late_positions():
    """Generation goes on for ever; in float32 alone the angle of position 10,000,000 would be wrong by up to
    0.5."""
    late = [lrt.rotary(10 ** 7, 4, 8, torch.zeros(1, dtype=dtype))
            for dtype in (torch.float32, torch.float64)]
    for a, b in zip(*late):
        close(a.double(), b, "cos or sin", atol=1e-6)
    for turned, angle in zip(zip(*late[1]), range(10 ** 7, 10 ** 7 + 4)):
        for j in range(4):
            right = angle * 10000 ** (-2 * j / 8)
            check(abs(turned[0][j] - math.cos(right)) < 1e-8 and abs(turned[1][j] - math.sin(right)) < 1e-8,
                  f"angle {j} of {angle}")


@exercise(0)
@pytest.mark.parametrize("proj", ["shared", "layerwise"])
def test_parameter_counts(proj):
    C, L, H, V = 16, 3, 2, 11
    plain = 2 * V * C + L * (12 * C * C) + 2 * L
    extra = L + L * 2 * H * C + 2 * C * C * (L if proj == "layerwise" else 1)
    for model, right in ((random_model(lrt=False), plain), (random_model(memory_proj=proj), plain + extra)):
        n = sum(p.numel() for p in model.parameters())
        check(n == right, f"{n} parameters, expected {right}")
    names = set(model.state_dict()) - set(random_model(lrt=False).state_dict())
    check({name.split(".")[0] for name in names} == {"gamma", "u_k", "u_v", "blocks"},
          f"what LRT adds: {sorted(names)}")


@exercise(0)
def test_initial_values():
    """E ~ N(0, 1); head ~ N(0, 0.001²); matrices uniform in ±√(3/C); what layers add, and the gates'
    weights, 0."""
    torch.manual_seed(0)
    C = 128
    model = lrt.GPT(lrt.GPTConfig(vocab_size=1000, n_embd=C, lrt=True, memory_proj="layerwise"))
    for name, p in model.named_parameters():
        kind = name.removesuffix(".weight").split(".")[-1 if "blocks" in name else 0]
        if kind in ("embed", "head"):
            std = dict(embed=1, head=0.001)[kind]
            check(abs(p.std() / std - 1) < 0.02 and abs(p.mean()) < 0.02 * std and p.abs().max() > 3.5 * std,
                  f"{name} is not N(0, {std}²)")
        elif kind in ("w_o", "w_2", "w_g"):
            check((p == 0).all(), f"{name} is not 0")
        elif kind in ("alpha", "beta", "gamma"):
            check((p == torch.tensor(dict(alpha=1, beta=0.1, gamma=0.1)[kind])).all(),
                  f"{name} starts at {p.tolist()}")
        else:
            bound = (3 / C) ** 0.5
            check(0.99 * bound < p.abs().max() <= bound and abs(p.std() * C ** 0.5 - 1) < 0.02,
                  f"{name} is not uniform in ±√(3/C)")


@exercise(0)
@pytest.mark.parametrize("wrong", [dict(n_layer=0), dict(n_embd=10), dict(n_head=3), dict(dropout=1.0),
                                   dict(memory_layer=4),
                                   dict(memory_layer=0), dict(memory_layer=-4), dict(memory_proj="both"),
                                   dict(vocab_size=2.5), dict(lrt=2)])
def test_impossible_configurations_are_named(wrong):
    name = "n_embd" if "n_head" in wrong else next(iter(wrong))
    try:
        random_model(**wrong)
    except ValueError as e:
        return check(name in str(e), f"{name} is not named: {e}")
    check(False, f"{wrong} is accepted")


@exercise(0)
def test_logits_are_capped_and_in_float32():
    model = random_model()
    h = 100 * numbers(2, 16)
    check(model.logits(h).abs().max() <= 15, "logits are more than 15")
    close(model.logits(h), 15 * torch.tanh(h @ model.head.weight.T / 15), "logits")
    check(model.bfloat16().logits(h.bfloat16()).dtype == torch.float32,
          "logits of a bfloat16 model are not in float32")


@exercise(0)
def test_generate_options():
    model = random_model()
    prompt = tokens(model, 3, 4)
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    draw = lambda seed, **k: torch.stack(list(model.generate(prompt, 30, generator=seeded(seed), **k)), 1)
    check(torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2)),
          "the same seed gives the same text, another another")
    check(torch.equal(draw(1, top_k=1), draw(2, temperature=0)), "top_k=1 is temperature 0")
    check(torch.equal(draw(1, top_k=100), draw(1)), "top_k of more than there are is none")
    check(draw(1).shape == (3, 30), "30 tokens of 3 rows")
    cache, text = model.init_cache(3), draw(1, temperature=0)
    first = torch.stack(list(model.generate(prompt, 10, temperature=0, cache=cache)), 1)
    rest = torch.stack(list(model.generate(first[:, -1:], 20, temperature=0, cache=cache)), 1)
    check(cache.pos == 4 + 9 + 1 + 19 and torch.equal(torch.cat([first, rest], 1), text),
          "with its cache, text goes on where it stopped")


@exercise(0)
def test_dropout_is_drawn_once_and_only_in_training():
    model = random_model(dropout=0.5)
    idx = tokens(model, 2, 6)
    close(model(idx)[0], random_model()(idx)[0], "logits of an evaluation", THERE)
    model.train()
    check((model(idx, subsets=2)[0] - model(idx, subsets=2)[0]).abs().max() > 1e-3, "no dropout in training")
    cache = model.init_cache(2)
    model.extend(idx, cache)
    x0 = cache.x0
    model.refine(cache, 0, 2)
    check(cache.x0 is x0 or torch.equal(cache.x0, x0), "another dropout of the same embeddings in a sweep")


# ---- Consistent: whatever the equations in GPT.layers ------------------------------------------------------

EQUATIONS = {"as they are": None}       # name: a GPT.layers in the place of the file's


# ---- Instructor: other equations ---------------------------------------------------------------------------

def owner_of(function, module=None):
    """("GPT.refine") -> the class (or module) it belongs to, and its name there."""
    *path, name = function.split(".")
    return functools.reduce(getattr, path, module or lrt), name


def changed(function, *texts):
    """A function of lrt.py with some of its text changed: right, wrong, right, wrong ..."""
    owner, name = owner_of(function)
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    for right, wrong in zip(texts[::2], texts[1::2]):
        assert source.count(right) == 1, f"{function} has {source.count(right)} places {right!r}"
        source = source.replace(right, wrong)
    return defined(source, name)


def defined(source, name):
    namespace = {}
    exec(compile(textwrap.dedent(source), "<changed>", "exec"), vars(lrt), namespace)
    return namespace[name]


def leaky(self, x0, rope, mask, store, m=None):
    h, latent = given_layers(self, x0, rope, mask, store, m)
    return h, 0.5 * latent + (0 if m is None else 0.5 * m)


def two_back(self, x0, rope, mask, store, m=None):
    h, latent = given_layers(self, x0, rope, mask, store, m)
    old, n = torch.zeros_like(latent) if m is None else m, latent.size(-1) // 2
    return h, torch.cat([latent[..., :n], old[..., :n]],
                        dim=-1)       # half of its own, half of the one before's


given_layers = lrt.GPT.layers
EQUATIONS.update({"leaky memory": leaky, "two tokens back": two_back})
if lrt.__name__ == "lrt" and "LRT_GRADE" not in os.environ:
    try:
        EQUATIONS["upper layers alone"] = changed(
            "GPT.layers", "0 if m is None else", "0 if m is None or i < 1 else",
            "m_k, m_v)\n", "*((m_k, m_v) if i >= 1 else (0, 0)))\n")
    except (AssertionError, KeyError):
        pass                            # somebody has changed the equations in the file itself


# ---- Consistent, the tests ---------------------------------------------------------------------------------

@pytest.fixture(params=EQUATIONS)
def equations(request, monkeypatch):
    if EQUATIONS[request.param] is not None:
        monkeypatch.setattr(lrt.GPT, "layers", EQUATIONS[request.param])


two_configs = pytest.mark.parametrize("name", ["shared", "middle layer, layerwise"])


@exercise(0)
@two_configs
def test_consistent_dial_and_definition(equations, name):
    """S = T is the token loop, logits and gradients; after K sweeps max(K + 1, S K) positions are exact."""
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, 2, 9), tokens(model, 2, 9, seed=2)
    exact, loss = model(idx, targets)
    logits, its_loss = model(idx, targets, subsets=9, loss_weights=(0, 1))
    close(logits, exact, "logits, S = T, against the token loop", THERE)
    close(its_loss, loss, "loss, S = T, against the token loop")
    a, b = (torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (its_loss, loss))
    for (which, p), x, y in zip(model.named_parameters(), a, b):
        close(torch.zeros_like(p) if x is None else x, torch.zeros_like(p) if y is None else y,
              f"gradient of {which}, S = T, against the token loop")
    for S in (1, 2, 3, 5):
        for K in (0, 1, 2, 3):
            n = max(K + 1, S * K)
            close(model(idx, subsets=S, sweeps=K)[0][:, :n], exact[:, :n],
                  f"the first {n} logits, S = {S}, K = {K}", THERE)


@exercise(0)
@two_configs
def test_consistent_prefill_and_steps(equations, name):
    """A prompt at once, in pieces and token by token, over several windows; and the text after it."""
    model = random_model(**CONFIGS[name], block_size=6)
    idx = tokens(model, 2, 20)
    expected = windowed_reference(model, idx)
    for cuts in ([18], [1, 17], [7, 4, 6, 1]):
        for S in (1, 3, 30):
            cache, end = model.init_cache(2), 0
            for cut in cuts:
                end += cut
                close(model.prefill(idx[:, end - cut:end], cache, subsets=S, tol=0.0), expected[:, end - 1],
                      f"logits after pieces of {cuts}, S = {S}")
            for t in range(end, 20):
                close(decoded(model, idx[:, t], cache), expected[:, t],
                      f"logits of step {t} after pieces of {cuts}, S = {S}")


@exercise(0)
@two_configs
def test_consistent_causality_and_rows(equations, name):
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 3, 9)
    for dial in (dict(), dict(subsets=1, sweeps=2), dict(subsets=2), dict(subsets=4, sweeps=2)):
        logits, other = model(idx, **dial)[0], idx.clone()
        other[:, 5] = (other[:, 5] + 1) % 11
        difference = (model(other, **dial)[0] - logits).abs().amax((0, 2))
        check((difference[:5] < 1e-12).all(), f"{dial}: a position before 5 sees token 5")
        check((difference[5:] > 1e-9).all(), f"{dial}: a position after 5 does not see token 5")
        close(model(idx[1:2], **dial)[0], logits[1:2], f"row 1 alone, {dial}", THERE)


@exercise(0)
@two_configs
def test_consistent_gradients(equations, name):
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, 2, 7), tokens(model, 2, 7, seed=2)
    for dial in (dict(), dict(subsets=1, sweeps=2), dict(subsets=2),
                 dict(subsets=3, sweeps=2, loss_weights=(0, 0, 1))):
        slopes(lambda: model(idx, targets, **dial)[1], model.named_parameters(), f"loss, {dial}")


@exercise(0)
def test_consistent_plain(equations):
    model = random_model(lrt=False)
    idx = tokens(model, 2, 9)
    close(model(idx)[0], model.forward_sequential(idx)[0],
          "logits of a plain GPT, one pass against one token after the other", THERE)


# ---- Instructor: lrt.py itself -----------------------------------------------------------------------------

only_lrt = pytest.mark.skipif(lrt.__name__ != "lrt", reason="about lrt.py")


@only_lrt
def test_lrt_is_short_and_stands_alone():
    text = (HERE / "lrt.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300 and max(map(len, text.splitlines())) <= 100
    imported = {(node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
                for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names}
    assert "torch" in imported and imported - {"torch"} <= set(sys.stdlib_module_names)
    done = subprocess.run([sys.executable, "-B", HERE / "lrt.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@only_lrt
def test_compiler_finds_one_graph():
    """Loss and gradients of a training step, without a compiler behind it: fullgraph fails at the first
    break."""
    model = random_model(n_layer=2)
    idx, targets = tokens(model, 2, 4), tokens(model, 2, 4, seed=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for dial in (dict(subsets=2), dict()):
        loss, expected = compiled(idx, targets, **dial)[1], model(idx, targets, **dial)[1]
        close(loss, expected, "loss")
        for (name, _), a, b in zip(model.named_parameters(),
                                   *(torch.autograd.grad(x, list(model.parameters()))
                                     for x in (loss, expected))):
            close(a, b, f"gradient of {name}")


# ---- Instructor: the exercises, in the order in which lrt.py is read ---------------------------------------

EXERCISES = [       # (function, points, minutes, what to write)
    ("shift_right", 5, 10, "the memory of every position: the latent of the one before it"),
    ("Cache.advance", 7, 30, "hand on the latent; keep the keys and values that the next token sees"),
    ("Block.qkv", 12, 40, "queries, keys and values; the memory enters through gates"),
    ("GPT.layers", 13, 50, "the equations of one pass"),
    ("GPT.recur", 8, 20, "the recurrence, one token"),
    ("GPT.refine", 13, 60, "a subset pass"),
    ("GPT.forward", 12, 50, "the dial: pass 0, sweeps, loss"),
    ("GPT.prefill", 10, 60, "a prompt in parallel, until it has settled"),
]
KEPT = {"GPT.forward": "return self.forward_sequential(idx, targets)"}     # the body up to this line is given


# ---- Instructor: mutants, wrong versions of lrt.py as students write them, and that the tests see it -------

MUTANTS = [         # (what is wrong, function, its text, the wrong text, and so on)
    # shift_right
    ("shifted by 0", "shift_right", "torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent"),
    ("shifted by 2", "shift_right", "latent[:, :-1]", "first[:, None], latent[:, :-2]"),
    ("shifted to the left", "shift_right", "[first[:, None], latent[:, :-1]]",
     "[latent[:, 1:], first[:, None]]"),
    ("rolled: the last latent comes first", "shift_right",
     "torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent.roll(1, 1)"),
    ("shifted over rows", "shift_right", "latent[:, :-1]", "latent.roll(1, 0)[:, :-1]"),
    ("first ignored", "shift_right", "if first is None", "if True"),
    ("first is that of row 0", "shift_right", "[first[:, None]",
     "[first[:1, None].expand(len(first), 1, -1)"),
    ("m_0 is latent 0", "shift_right", "torch.zeros_like(latent[:, 0])", "latent[:, 0]"),
    ("memory detached", "shift_right", "latent[:, :-1]", "latent[:, :-1].detach()"),
    ("first detached", "shift_right", "[first[:, None]", "[first[:, None].detach()"),
    ("zeros in float32", "shift_right", "torch.zeros_like(latent[:, 0])",
     "torch.zeros(latent.size(0), latent.size(2))"),
    ("written into its input", "shift_right", "return torch.cat([first[:, None], latent[:, :-1]], dim=1)",
     "new = torch.cat([first[:, None], latent[:, :-1]], dim=1)\n    return latent.copy_(new)"),
    # Cache.advance
    ("position goes on by 1", "Cache.advance", "+= self.x0.size(1)", "+= 1"),
    ("position starts again", "Cache.advance", "+= self.x0.size(1)", "= self.x0.size(1)"),
    ("position counts rows", "Cache.advance", "self.x0.size(1)", "self.x0.size(0)"),
    ("latent of the first of the newest", "Cache.advance", "[:, -1]", "[:, 0]"),
    ("latent of the last row", "Cache.advance", "self.latents[:, -1]",
     "self.latents[-1:, -1].expand(len(self.latents), -1)"),
    ("latent is h", "Cache.advance", "self.latents[:, -1]", "self.h[:, -1]"),
    ("latent is a mean", "Cache.advance", "self.latents[:, -1]", "self.latents.mean(1)"),
    ("latent with a dimension too many", "Cache.advance", "[:, -1]", "[:, -1:]"),
    ("latent detached", "Cache.advance", "[:, -1]", "[:, -1].detach()"),
    ("keys and values detached", "Cache.advance", "[kv[", "[kv.detach()["),
    ("latent of a plain model", "Cache.advance", "None if self.latent is None else", ""),
    ("no latent before the first token", "Cache.advance", "self.latent is None",
     "self.latent is None or self.pos == self.x0.size(1)"),
    ("window one too wide", "Cache.advance", "- self.W + 1", "- self.W"),
    ("window one too narrow", "Cache.advance", "- self.W + 1", "- self.W + 2"),
    ("window of the oldest", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", ":self.W - 1"),
    ("window by a negative index", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", "-(self.W - 1):"),
    ("window that is empty while there is room", "Cache.advance", "max(0, kv.size(3) - self.W + 1)",
     "kv.size(3) - self.W + 1"),
    ("no window", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", ":"),
    ("window of layer 0 alone", "Cache.advance", "for kv in self.kv]",
     "for kv in self.kv[:1]] + self.kv[1:]"),
    ("one key dropped, however many there are", "Cache.advance", "max(0, kv.size(3) - self.W + 1):",
     "int(kv.size(3) >= self.W):"),
    ("keys and values rolled", "Cache.advance", "+ 1):, :]", "+ 1):, :].roll(1, 3)"),
    ("h dropped", "Cache.advance", "self.pos +=", "self.h = None\n    self.pos +="),
    # Block.qkv
    ("local gate of keys ignored", "Block.qkv", "k = g_local * k", "k = k"),
    ("local gate of values ignored", "Block.qkv", "v = g_local * v", "v = v"),
    ("memory gate of keys ignored", "Block.qkv", "g_mem * m_k", "m_k"),
    ("memory gate of values ignored", "Block.qkv", "g_mem * m_v", "m_v"),
    ("gates swapped", "Block.qkv", "g_local, g_mem =", "g_mem, g_local ="),
    ("gates in (0, 1)", "Block.qkv", "2 * torch.sigmoid", "torch.sigmoid"),
    ("gates by tanh", "Block.qkv", "2 * torch.sigmoid(self.w_g(y))", "1 + torch.tanh(self.w_g(y))"),
    ("gates local and memory in turn", "Block.qkv", "gates.transpose(1, 2)[..., None].chunk(2, dim=1)",
     "(gates.unflatten(-1, (-1, 2)).transpose(1, 2)[..., n, None] for n in (0, 1))"),
    ("gates of head 0 for all", "Block.qkv", ".chunk(2, dim=1)", "[:, ::self.n_head].chunk(2, dim=1)"),
    ("gates of position 0 for all", "Block.qkv", "torch.sigmoid(self.w_g(y))",
     "torch.sigmoid(self.w_g(y[:, :1].expand_as(y)))"),
    ("gates detached", "Block.qkv", "self.w_g(y))", "self.w_g(y)).detach()"),
    ("gates of y detached", "Block.qkv", "self.w_g(y)", "self.w_g(y.detach())"),
    ("memory gate detached", "Block.qkv", "g_mem * m_k", "g_mem.detach() * m_k"),
    ("memory gate is what the local one leaves", "Block.qkv", "    k = g_local * k",
     "    g_mem = 2 - g_local\n        k = g_local * k"),
    ("one gate, the local, for both", "Block.qkv", "g_mem * m_v", "g_local * m_v"),
    ("keys of the memory detached", "Block.qkv", "g_mem * m_k",
     "g_mem * (m_k.detach() if torch.is_tensor(m_k) else 0)"),
    ("values of the memory detached", "Block.qkv", "g_mem * m_v",
     "g_mem * (m_v.detach() if torch.is_tensor(m_v) else 0)"),
    ("keys detached", "Block.qkv", "self.heads(self.w_k(y))", "self.heads(self.w_k(y)).detach()"),
    ("keys get the memory's values", "Block.qkv", "g_mem * m_k", "g_mem * m_v"),
    ("values get the memory's keys", "Block.qkv", "g_mem * m_v", "g_mem * m_k"),
    ("queries gated too", "Block.qkv", "k = g_local * k", "q, k = g_local * q, g_local * k"),
    ("queries get the memory", "Block.qkv", "k = g_local * k",
     "q = q + g_mem * m_k\n        k = g_local * k"),
    ("no gates where there is no memory", "Block.qkv", "is not None:",
     "is not None and torch.is_tensor(m_k):"),
    ("memory replaces keys", "Block.qkv", "k = g_local * k + g_mem * m_k",
     "k = g_mem * m_k if torch.is_tensor(m_k) else g_local * k"),
    ("heads take every H-th number", "Block.qkv", "self.heads(self.w_v(y))",
     "self.w_v(y).unflatten(-1, (-1, self.n_head)).permute(0, 3, 1, 2)"),
    ("queries are keys", "Block.qkv", "self.w_q(y)", "self.w_k(y)"),
    ("plain model without values", "Block.qkv", "return q, k, v",
     "return (q, k, v) if self.w_g is not None else (q, k, k)"),
    ("memory changed in place", "Block.qkv", "g_mem * m_v",
     "(m_v.mul_(g_mem) if torch.is_tensor(m_v) and not m_v.requires_grad else g_mem * m_v)"),
    # GPT.layers
    ("gamma ignored", "GPT.layers", "self.gamma[i] * m", "0 * m"),
    ("gamma is 1", "GPT.layers", "self.gamma[i] * m", "m"),
    ("gamma of layer 0 for all", "GPT.layers", "self.gamma[i]", "self.gamma[0]"),
    ("gamma detached", "GPT.layers", "self.gamma[i] * m", "self.gamma[i].detach() * m"),
    ("memory detached in the stream", "GPT.layers", "self.gamma[i] * m", "self.gamma[i] * m.detach()"),
    ("memory detached in keys", "GPT.layers", "self.u_k[i](m)", "self.u_k[i](m.detach())"),
    ("memory detached in keys and values", "GPT.layers", "self.u_k[i](m)", "self.u_k[i](m.detach())",
     "self.u_v[i](m)", "self.u_v[i](m.detach())"),
    ("memory enters the first layer alone", "GPT.layers", "self.gamma[i] * m",
     "self.gamma[i] * m * (i == 0)"),
    ("memory normed once more", "GPT.layers", "self.gamma[i] * m", "self.gamma[i] * norm(m)"),
    ("alpha ignored", "GPT.layers", "self.alpha[i] * x +", "x +"),
    ("alpha applied to x0 and beta to x", "GPT.layers", "self.alpha[i] * x + self.beta[i] * x0",
     "self.alpha[i] * x0 + self.beta[i] * x"),
    ("x0 dropped out once more", "GPT.layers", "x, m_k, m_v, outputs = x0,",
     "x, m_k, m_v, outputs = self.dropout(x0),"),
    ("zeros on the CPU", "GPT.layers", "0 if m is None else", "torch.zeros(x0.shape) if m is None else"),
    ("beta ignored", "GPT.layers", "self.beta[i] * x0", "0 * x0"),
    ("x0 is the layer's own input", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x"),
    ("x0 left out of the first layer", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x0 * (i > 0)"),
    ("x0 detached where it is added again", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x0.detach()"),
    ("U_k and U_v swapped", "GPT.layers", "self.u_k[i](m)", "self.u_v[i](m)", "self.u_v[i](m))\n",
     "self.u_k[i](m))\n"),
    ("U_k for both", "GPT.layers", "self.u_v[i](m)", "self.u_k[i](m)"),
    ("first pair of U for all layers", "GPT.layers", "i < len(self.u_k)", "i < 1"),
    ("shared pair for the first layer alone", "GPT.layers", "m_k, m_v)\n",
     "*((m_k, m_v) if i < len(getattr(self, 'u_k', [])) else (0, 0)))\n"),
    ("no memory in keys and values", "GPT.layers", "m_k, m_v)\n", "0, 0)\n"),
    ("memory in values alone", "GPT.layers", "m_k, m_v)\n", "0, m_v)\n"),
    ("latent not normed", "GPT.layers", "norm(source)", "source", "if source is x else", "if False else"),
    ("h not normed", "GPT.layers", "source, h =", "h0 = x\n    source, h =", "return h,", "return h0,"),
    ("latent always from the last layer", "GPT.layers", "h if source is x else norm(source)", "h"),
    ("latent one layer too early", "GPT.layers",
     "outputs[self.config.memory_layer - (self.config.memory_layer > 0)]",
     "([x0] + outputs)[self.config.memory_layer - 1]"),
    ("latent one layer too late", "GPT.layers",
     "outputs[self.config.memory_layer - (self.config.memory_layer > 0)]",
     "outputs[min(self.config.memory_layer, len(outputs) - 1)]"),
    ("negative memory_layer is off by one", "GPT.layers", "- (self.config.memory_layer > 0)", "- 1"),
    ("latent from before the layer", "GPT.layers", "outputs.append(x)",
     "outputs.append(x0 if i == 0 else x)"),
    ("latent detached", "GPT.layers", "h if source is x else norm(source)",
     "(h if source is x else norm(source)).detach()"),
    ("latent of an earlier layer detached", "GPT.layers", "norm(source)", "norm(source.detach())"),
    ("h is the latent", "GPT.layers", "return h, h if source is x else norm(source)",
     "return norm(source), norm(source)"),
    ("mask ignored", "GPT.layers", "block(x, rope, mask,", "block(x, rope, None,"),
    ("keys and values detached as they are stored", "GPT.layers", "partial(store, i)",
     "lambda k, v: store(i, k.detach(), v.detach())"),
    ("layers stored under the next number", "GPT.layers", "partial(store, i)",
     "partial(store, (i + 1) % len(self.blocks))"),
    ("last layer left out", "GPT.layers", "enumerate(self.blocks)",
     "enumerate(list(self.blocks)[:max(1, len(self.blocks) - 1)])"),
    ("no memory is a memory of x0", "GPT.layers", "x, m_k, m_v, outputs = x0, 0, 0, []",
     "m = x0 if m is None and self.config.lrt else m\n    x, m_k, m_v, outputs = x0, 0, 0, []"),
    # GPT.recur
    ("memory left out", "GPT.recur", "cache.latent[:, None] if self.config.lrt else None", "None"),
    ("memory detached", "GPT.recur", "cache.latent[:, None]", "cache.latent[:, None].detach()"),
    ("latent not used by the first position", "GPT.recur", "if self.config.lrt",
     "if self.config.lrt and cache.pos"),
    ("memory forgotten behind the window", "GPT.recur", "if self.config.lrt",
     "if self.config.lrt and cache.pos < self.config.block_size"),
    ("memory of another row", "GPT.recur", "cache.latent[:, None]", "cache.latent.flip(0)[:, None]"),
    ("memory is h", "GPT.recur", "cache.latent[:, None]",
     "(cache.h[:, -1:] if cache.pos else cache.latent[:, None])"),
    ("memory one token late", "GPT.recur", "self.extend(",
     "m, cache.before = getattr(cache, 'before', cache.latent), cache.latent\n    self.extend(",
     "cache.latent[:, None]", "m[:, None]"),
    ("never advanced", "GPT.recur", "cache.advance()", "pass"),
    ("advanced before it is computed", "GPT.recur", "    cache.advance()\n", "", "self.extend(",
     "if cache.pos:\n        cache.advance()\n    self.extend("),
    ("advanced twice", "GPT.recur", "cache.advance()", "cache.advance(), cache.advance()"),
    ("returns the latent", "GPT.recur", "return cache.h[:, 0]", "return cache.latents[:, 0]"),
    ("returns h detached", "GPT.recur", "return cache.h[:, 0]", "return cache.h[:, 0].detach()"),
    ("returns (B, 1, C)", "GPT.recur", "return cache.h[:, 0]", "return cache.h"),
    ("back-propagation cut after three tokens", "GPT.recur", "cache.advance()",
     "cache.advance()\n    if cache.pos % 3 == 0 and self.config.lrt:\n        cache.latent = "
     "cache.latent.detach()"),
    ("keys and values of the past detached", "GPT.recur", "cache.advance()",
     "cache.advance()\n    cache.kv = [kv.detach() for kv in cache.kv]"),
    ("all under no_grad", "GPT.recur", "def recur", "@torch.no_grad()\ndef recur"),
    ("latent kept by the model", "GPT.recur", "cache.advance()",
     "cache.advance()\n    if self.config.lrt:\n        self.last = cache.latent", "cache.latent[:, None]",
     "getattr(self, 'last', cache.latent)[:, None]"),
    ("memory added to a plain model", "GPT.recur", "if self.config.lrt else None",
     "if self.config.lrt else self.embed(idx[:, None])"),
    # GPT.refine
    ("memory not shifted", "GPT.refine", "shift_right(cache.latents, cache.latent)", "cache.latents"),
    ("latent of the cache left out", "GPT.refine", ", cache.latent)", ")"),
    ("latent of the cache left out at position 0", "GPT.refine", ", cache.latent)",
     ", cache.latent if cache.pos else None)"),
    ("latent of the cache detached", "GPT.refine", ", cache.latent)", ", cache.latent.detach())"),
    ("memory is h", "GPT.refine", "shift_right(cache.latents,", "shift_right(cache.h,"),
    ("memory detached", "GPT.refine", "shift_right(cache.latents,", "shift_right(cache.latents.detach(),"),
    ("memory of the first of the subset alone detached", "GPT.refine", "[:, s::S]\n",
     "[:, s::S]\n    m = torch.cat([m[:, :1].detach(), m[:, 1:]], 1)\n"),
    ("memory of the neighbour in the subset", "GPT.refine",
     "shift_right(cache.latents, cache.latent)[:, s::S]",
     "shift_right(cache.latents[:, s::S], cache.latent)"),
    ("memory of the next subset", "GPT.refine", "[:, s::S]\n",
     "[:, (s + 1) % S::S][:, :len(range(s, cache.x0.size(1), S))]\n"),
    ("memory of pass 0 for ever", "GPT.refine", "shift_right(cache.latents,",
     "shift_right(cache.__dict__.setdefault('old', cache.latents),"),
    ("no memory", "GPT.refine", "store, m)", "store)"),
    ("positions of the first subset", "GPT.refine", "x[s::S] for x",
     "x[::S][:len(range(s, len(x), S))] for x"),
    ("positions counted in the subset", "GPT.refine", "x[s::S] for x", "x[:len(range(s, len(x), S))] for x"),
    ("mask of the first subset", "GPT.refine", "cache.mask(s, S)",
     "cache.mask(0, S)[:len(range(s, cache.x0.size(1), S))] if S > 1 else cache.mask(s, S)"),
    ("mask of the whole row", "GPT.refine", "cache.mask(s, S)", "cache.mask()"),
    ("keys appended", "GPT.refine", "partial(cache.replace, s, S)", "cache.append"),
    ("keys and values not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.kv[i]"),
    ("keys not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, cache.kv[i][0][:, :, cache.kv[i].size(3) - "
     "cache.x0.size(1) + s::S], v)"),
    ("values not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k, cache.kv[i][1][:, :, cache.kv[i].size(3) - "
     "cache.x0.size(1) + s::S])"),
    ("keys and values written detached", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k.detach(), v.detach())"),
    ("keys written detached", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k.detach(), v)"),
    ("old keys and values detached", "GPT.refine", "    m = shift",
     "    cache.kv = [kv.detach() for kv in cache.kv]\n    m = shift"),
    ("keys and values written when all is computed", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: later.append((i, k, v)) or cache.kv[i]", "    m = shift",
     "    later = []\n    m = shift", "    cache.h =",
     "    [cache.replace(s, S, *x) for x in later]\n    cache.h ="),
    ("h not written back", "GPT.refine", "cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)",
     "pass"),
    ("latents not written back", "GPT.refine",
     "cache.latents = cache.latents.slice_scatter(latents, dim=1, start=s, step=S)", "pass"),
    ("latents are h", "GPT.refine", "slice_scatter(latents,", "slice_scatter(h,"),
    ("latents written detached", "GPT.refine", "slice_scatter(latents,", "slice_scatter(latents.detach(),"),
    ("h written detached", "GPT.refine", "slice_scatter(h,", "slice_scatter(h.detach(),"),
    ("old latents detached", "GPT.refine", "cache.latents = cache.latents.slice",
     "cache.latents = cache.latents.detach().slice"),
    ("latents written one to the left", "GPT.refine", "(latents, dim=1, start=s,",
     "(latents, dim=1, start=max(0, s - 1),"),
    ("h written into the row in place", "GPT.refine",
     "cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)", "cache.h[:, s::S] = h"),
    ("latents written into the row in place", "GPT.refine",
     "cache.latents = cache.latents.slice_scatter(latents, dim=1, start=s, step=S)",
     "cache.latents[:, s::S] = latents"),
    ("all under no_grad", "GPT.refine", "def refine", "@torch.no_grad()\ndef refine"),
    ("x0 detached", "GPT.refine", "cache.x0[:, s::S]", "cache.x0[:, s::S].detach()"),
    ("made on the CPU", "GPT.refine", "    m = shift",
     "    cache.h = cache.h + torch.zeros(cache.h.size(0), 1, 1)\n    m = shift"),
    ("all positions computed", "GPT.refine", "    m = shift", "    s, S = 0, 1\n    m = shift"),
    ("later subsets too", "GPT.refine", "    m = shift", "    S = 1\n    m = shift"),
    ("advances", "GPT.refine", "    h, latents =",
     "    cache.pos += 0 if s + 1 < S else 1\n    h, latents ="),
    # GPT.forward
    ("pass 0 again for each sweep", "GPT.forward", "for _ in range(K):",
     "for _ in range(K):\n        self.extend(idx, new := self.init_cache(idx.size(0)))\n        "
     "cache.x0 = new.x0"),
    ("one sweep too few", "GPT.forward", "range(K):", "range(K - 1):"),
    ("one sweep too many", "GPT.forward", "range(K):", "range(K + 1):"),
    ("last subset left out", "GPT.forward", "range(S):", "range(max(1, S - 1)):"),
    ("subsets from the last to the first", "GPT.forward", "range(S):", "reversed(range(S)):"),
    ("first subset for all", "GPT.forward", "refine(cache, s, S)", "refine(cache, 0, S)"),
    ("S of more than T taken as it is", "GPT.forward", "S = min(S, T)", "pass"),
    ("S of more than T in the weights", "GPT.forward", "    S = min(S, T)\n", "", "self.refine(cache, s, S)",
     "self.refine(cache, s, S) if s < T else None"),
    ("S of more than T refused", "GPT.forward", "S = min(S, T)", "need(S <= T, 'S > T')"),
    ("logits of pass 0", "GPT.forward", "return logits[-1],", "return logits[0],"),
    ("logits of pass 0, without targets", "GPT.forward", "return self.logits(cache.h), None",
     "return self.logits(hidden[0]), None"),
    ("each sweep weighs as much as pass 0", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]",
     "[1 / (1 + K)] * (K + 1)"),
    ("loss of the last sweep alone", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]",
     "[0] * K + [1]"),
    ("loss a sum, not a mean", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]", "[1] + [S] * K"),
    ("loss without pass 0", "GPT.forward", "n in [1] + [S] * K", "n in [0] + [S] * K"),
    ("weights ignored", "GPT.forward", "if weights is None else weights", ""),
    ("weights made to sum to 1", "GPT.forward", "    cache = self.init",
     "    weights = [w / sum(weights) for w in weights]\n    cache = self.init"),
    ("weights backwards", "GPT.forward", "zip(weights, logits)", "zip(weights, logits[::-1])"),
    ("weights by their size alone", "GPT.forward", "w * cross_entropy(z, targets)",
     "cross_entropy(z, targets)"),
    ("loss of each subset by itself, nan where it has no target", "GPT.forward",
     "cross_entropy(z, targets) for",
     "sum(F.cross_entropy(z[:, s::S].flatten(0, 1), targets[:, s::S].flatten(), ignore_index=-1) for s "
     "in range(S)) / S for"),
    ("loss of each subset by itself, 0 where it has no target", "GPT.forward",
     "cross_entropy(z, targets) for",
     "sum(cross_entropy(z[:, s::S], targets[:, s::S]) for s in range(S)) / S for"),
    ("targets of -1 counted", "GPT.forward", "cross_entropy(z, targets) for",
     "cross_entropy(z, targets.clamp(min=0)) for"),
    ("nan when no target is left", "GPT.forward", "cross_entropy(z, targets) for",
     "F.cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=-1) for"),
    ("loss over all positions", "GPT.forward", "cross_entropy(z, targets) for",
     "cross_entropy(z, targets) * (targets != -1).double().mean() for"),
    ("hidden detached but for the last", "GPT.forward", "hidden.append(cache.h)",
     "hidden = [h.detach() for h in hidden] + [cache.h]"),
    ("pass 0 under no_grad", "GPT.forward", "self.extend(idx, cache)",
     "with torch.no_grad():\n        self.extend(idx, cache)"),
    ("gradient cut after each sweep", "GPT.forward", "hidden.append(cache.h)",
     "hidden.append(cache.h)\n        cache.latents, cache.kv = cache.latents.detach(), [kv.detach() "
     "for kv in cache.kv]"),
    ("latents detached between sweeps", "GPT.forward", "hidden.append(cache.h)",
     "hidden.append(cache.h)\n        cache.latents = cache.latents.detach()"),
    ("latents detached after pass 0", "GPT.forward", "hidden = [cache.h]",
     "cache.latents, hidden = cache.latents.detach(), [cache.h]"),
    ("keys and values of pass 0 detached", "GPT.forward", "hidden = [cache.h]",
     "cache.kv, hidden = [kv.detach() for kv in cache.kv], [cache.h]"),
    ("all sweeps but the last under no_grad", "GPT.forward", "self.refine(cache, s, S)",
     "with torch.set_grad_enabled(len(hidden) == K):\n                self.refine(cache, s, S)"),
    ("back-propagation through the last subset alone", "GPT.forward", "self.refine(cache, s, S)",
     "self.refine(cache, s, S)\n            cache.latents = cache.latents.detach() if s + 1 < S else "
     "cache.latents"),
    ("approximate without subsets", "GPT.forward", "return self.forward_sequential(idx, targets)", "S = 2"),
    ("exact without subsets, its loss not", "GPT.forward",
     "        return self.forward_sequential(idx, targets)", "        S, K = T, 1"),
    ("a plain model swept", "GPT.forward", "if self.config.lrt else (1, 0, None)",
     "if self.config.lrt else (1, 1, None)", "self.refine(cache, s, S)", "self.extend(idx, cache)"),
    ("a plain model token by token", "GPT.forward", "else (1, 0, None)", "else (None, 0, None)"),
    ("loss weights of a plain model", "GPT.forward", "else (1, 0, None)",
     "else (1, 0, loss_weights and loss_weights[:1])"),
    ("more positions than block_size", "GPT.forward", "1 <= T <= W", "1 <= T"),
    ("no position", "GPT.forward", "1 <= T <= W", "T <= W"),
    ("weights of any number", "GPT.forward", "len(weights) == K + 1 and any(weights)", "any(weights)"),
    ("weights all 0", "GPT.forward", "len(weights) == K + 1 and any(weights)", "len(weights) == K + 1"),
    ("too many weights are cut off", "GPT.forward", "len(weights) == K + 1", "len(weights) >= K + 1"),
    ("subsets of 0", "GPT.forward", "S >= 1 and", "S != -1 and", "S = min(S, T)", "S = max(1, min(S, T))"),
    ("sweeps of less than 0", "GPT.forward", "and K >= 0", "", "[S] * K]", "[S] * K]",
     "len(weights) == K + 1", "True"),
    ("no loss", "GPT.forward", "sum(w *", "0 * sum(w *"),
    ("a new cache for each sweep", "GPT.forward", "for _ in range(K):",
     "for _ in range(K):\n        cache = self.init_cache(idx.size(0))\n        self.extend(idx, cache)"),
    # GPT.prefill
    ("mean change, not the largest", "GPT.prefill", ".abs().max()", ".abs().mean()"),
    ("change by its sign", "GPT.prefill", "(b - a).abs().max()", "(b - a).max()"),
    ("change by its other sign", "GPT.prefill", "(b - a).abs().max()", "(a - b).max()"),
    ("change squared", "GPT.prefill", ".abs().max()", ".square().max()"),
    ("change relative to what there is", "GPT.prefill", "(b - a).abs().max()",
     "((b - a).abs().max() / b.abs().max())"),
    ("change as a norm", "GPT.prefill", ".abs().max()", ".norm()"),
    ("first row alone", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:, :1].abs().max() if a.dim() == 5 else (b - a)[:1].abs().max()"),
    ("last row alone", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:, -1:].abs().max() if a.dim() == 5 else (b - a)[-1:].abs().max()"),
    ("last position alone", "GPT.prefill", "(b - a).abs().max()", "(b - a)[..., -1:, :].abs().max()"),
    ("first position alone", "GPT.prefill", "(b - a).abs().max()", "(b - a)[..., :1, :].abs().max()"),
    ("smallest of the changes", "GPT.prefill", "change = max((b", "change = min((b"),
    ("h alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = [cache.h]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, [cache.h])"),
    ("latents alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = [cache.latents]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, [cache.latents])"),
    ("h and latents alone", "GPT.prefill", "zip(old, [cache.h, cache.latents, *cache.kv])",
     "zip(old, [cache.h, cache.latents])"),
    ("keys and values alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = cache.kv[:]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, cache.kv)"),
    ("without the keys", "GPT.prefill", "(b - a).abs().max()", "(b - a)[int(a.dim() == 5):].abs().max()"),
    ("without the values", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:1 if a.dim() == 5 else None].abs().max()"),
    ("without the last layer", "GPT.prefill", "new = zip(old, [cache.h, cache.latents, *cache.kv])",
     "new = zip(old[1:-1], [cache.latents, *cache.kv])"),
    ("of the first layer alone", "GPT.prefill", "new = zip(old, [cache.h, cache.latents, *cache.kv])",
     "new = zip(old[:3], [cache.h, cache.latents, *cache.kv])"),
    ("change since pass 0", "GPT.prefill", "            old = [", "            old = old if n > 1 else ["),
    ("change of the last subset alone", "GPT.prefill", "self.refine(cache, s, S)",
     "old = [cache.h, cache.latents, *cache.kv]; self.refine(cache, s, S)"),
    ("less than tol, not at most", "GPT.prefill", "change <= tol", "change < tol or n == enough"),
    ("ten times the tolerance", "GPT.prefill", "change <= tol", "change <= 10 * tol"),
    ("a tenth of the tolerance", "GPT.prefill", "change <= tol", "change <= tol / 10"),
    ("stops one sweep late", "GPT.prefill", "if change <= tol:", "if n > 1 and last <= tol:",
     "            old = [", "            last = change\n            old = ["),
    ("never stops before the bound", "GPT.prefill", "change <= tol", "n == enough"),
    ("always one sweep", "GPT.prefill", "change <= tol", "True"),
    ("bound one sweep too low", "GPT.prefill", "-(-piece.size(1) // S)",
     "max(1, -(-piece.size(1) // S) - 1)"),
    ("bound one sweep too high", "GPT.prefill", "-(-piece.size(1) // S)", "1 - (-piece.size(1) // S)"),
    ("bound rounded down", "GPT.prefill", "-(-piece.size(1) // S)", "max(1, piece.size(1) // S)"),
    ("at most 20 sweeps", "GPT.prefill", "-(-piece.size(1) // S)", "min(20, -(-piece.size(1) // S))"),
    ("residual at the bound as measured", "GPT.prefill", "if n < enough else 0.0", ""),
    ("residual is of the first sweep", "GPT.prefill", "max(cache.residual, change)",
     "max(cache.residual, first)", "if change <= tol",
     "first = change if n == 1 else first\n            if change <= tol", "n, change = min(",
     "n, change, first = min(", "0, 0.0\n        enough", "0, 0.0, 0.0\n        enough"),
    ("residual of the last piece", "GPT.prefill", "max(cache.residual, change)", "change"),
    ("residual of the first piece", "GPT.prefill", "max(cache.residual, change)", "cache.residual or change"),
    ("sweeps of the last piece", "GPT.prefill", "max(cache.sweeps, n)", "n"),
    ("sweeps added up", "GPT.prefill", "max(cache.sweeps, n)", "cache.sweeps + n"),
    ("sweeps and residual of the prompt before", "GPT.prefill", "cache.sweeps, cache.residual = 0, 0.0",
     "pass"),
    ("one more than the sweeps", "GPT.prefill", "max(cache.sweeps, n)", "max(cache.sweeps, n + 1)"),
    ("not advanced", "GPT.prefill", "cache.advance()", "pass"),
    ("advanced after the last piece alone", "GPT.prefill", "        cache.advance()\n",
     "    cache.advance()\n"),
    ("one piece, however long", "GPT.prefill", "max(self.config.block_size, 512)", "idx.size(1)"),
    ("pieces of block_size", "GPT.prefill", "max(self.config.block_size, 512)", "self.config.block_size"),
    ("pieces of 512 also where block_size is more", "GPT.prefill", "max(self.config.block_size, 512)", "512"),
    ("first piece alone", "GPT.prefill", "        cache.advance()\n",
     "        cache.advance()\n        break\n"),
    ("a prompt starts a new sequence", "GPT.prefill", "self.extend(piece, cache)",
     "cache.latent = cache.latent * 0 if self.config.lrt else None\n        self.extend(piece, cache)"),
    ("a prompt on an empty cache ignores its latent", "GPT.prefill", "self.extend(piece, cache)",
     "cache.latent = cache.latent * 0 if self.config.lrt and not cache.pos else cache.latent\n        "
     "self.extend(piece, cache)"),
    ("two subsets, whatever is asked", "GPT.prefill", "min(subsets, piece.size(1))", "min(2, piece.size(1))"),
    ("subsets of 0", "GPT.prefill", "subsets > 0 and", "", "min(subsets, piece.size(1))",
     "max(1, min(subsets, piece.size(1)))"),
    ("a prompt of nothing", "GPT.prefill", "and idx.size(1) > 0", "and True"),
    ("a plain model swept", "GPT.prefill", "if self.config.lrt else 0", "", "self.refine(cache, s, S)",
     "self.refine(cache, s, S) if self.config.lrt else None", "old = [cache.h, cache.latents",
     "old = [cache.h, cache.h", "[cache.h, cache.latents, *cache.kv])", "[cache.h, cache.h, *cache.kv])"),
    ("logits of the first token", "GPT.prefill", "cache.h[:, -1]", "cache.h[:, 0]"),
    ("logits from the latent", "GPT.prefill", "cache.h[:, -1]",
     "(cache.h if cache.latent is None else cache.latents)[:, -1]"),
    ("logits of all tokens", "GPT.prefill", "cache.h[:, -1]", "cache.h"),
    ("logits of pass 0", "GPT.prefill", "    S, n, change =", "    first = cache.h\n        S, n, change =",
     "cache.h[:, -1]", "first[:, -1]"),
    # what is given
    ("a class of targets of -1", "cross_entropy", "ignore_index=-1, ", "", "targets.flatten()",
     "targets.flatten().clamp(min=0)"),
    ("mean over all positions", "cross_entropy", "(targets != -1).sum().clamp(min=1)", "targets.numel()"),
    ("nothing to divide by", "cross_entropy", ".clamp(min=1)", ""),
    ("norm with a large epsilon", "norm", "1e-15", "1e-3"),
    ("norm by the largest", "norm", "torch.linalg.vector_norm(x, dim=-1, keepdim=True)",
     "x.abs().amax(-1, keepdim=True)"),
    ("rotary in float32", "rotary", "start + T, dtype=torch.float64", "start + T, dtype=torch.float32",
     "dtype=torch.float64) / D", "dtype=torch.float32) / D"),
    ("rotary base", "rotary", "10000 **", "1000 **"),
    ("rotary turns the other way", "rotate", "a * cos + b * sin, b * cos - a * sin",
     "a * cos - b * sin, b * cos + a * sin"),
    ("rotary of neighbouring pairs", "rotate", "a, b = x.chunk(2, dim=-1)",
     "a, b = x[..., ::2], x[..., 1::2]"),
    ("mask lets one later position in", "Cache.mask", ".tril()", ".tril(1)"),
    ("mask one too wide", "Cache.mask", "1 - self.W", "-self.W"),
    ("mask one too narrow", "Cache.mask", "1 - self.W", "2 - self.W"),
    ("mask of the wrong positions", "Cache.mask", "[n - T + s::S]", "[n - T::S]"),
    ("no mask for a long prompt", "Cache.mask", "T == n <= self.W", "T == n"),
    ("mask for a subset forgotten", "Cache.mask", "S == 1 and T == n", "T == n"),
    ("replaced one too early", "Cache.replace", "+ s\n", "+ max(0, s - 1)\n"),
    ("replaced as if there were no past", "Cache.replace", "self.kv[i].size(3) - self.x0.size(1) + s", "s"),
    ("newest first", "Cache.append", "[old, new]", "[new, old]"),
    ("rotary position starts again", "GPT.extend", "rotary(cache.pos,", "rotary(0,"),
    ("embeddings not normed", "GPT.extend", "norm(self.embed(idx))", "self.embed(idx)"),
    ("new sequence, old cache", "GPT.init_cache", "return Cache(self.config, batch_size, like=self.alpha)",
     "return self.__dict__.setdefault('old', Cache(self.config, batch_size, like=self.alpha))"),
    ("definition with a cache for each token", "GPT.forward_sequential", "self.recur(t, cache)",
     "self.recur(t, self.init_cache(idx.size(0)))"),
    ("definition detached", "GPT.forward_sequential", "self.recur(t, cache) for",
     "self.recur(t, cache).detach() for"),
    ("logits not capped", "GPT.logits", "15 * torch.tanh(", "15 * ("),
    ("logits in bfloat16", "GPT.logits", ".to(torch.promote_types(h.dtype, torch.float32))", ""),
    ("attention not causal", "Block.forward", "is_causal=mask is None and q.size(2) > 1", "is_causal=False"),
    ("queries and keys not normed", "Block.forward", "norm(rotate(torch.stack([q, k]), *rope))",
     "rotate(torch.stack([q, k]), *rope)"),
    ("ReLU not squared", "Block.forward", "self.w_2(y * y)", "self.w_2(y)"),
    ("head order lost on the way out", "Block.forward", "y.transpose(1, 2).flatten(2)",
     "y.flatten(1, 2).unflatten(1, (x.size(1), -1)).flatten(2)"),
    ("top_k keeps one too few", "GPT.generate", "logits < least", "logits <= least"),
    ("the same token for ever", "GPT.generate", "self.step(token, cache) if n else",
     "self.step(idx[:, -1], cache) if n else"),
    ("seed ignored", "GPT.generate", "generator=generator)[:, 0]", "generator=None)[:, 0]"),
]

RIGHT = [           # the same by another hand, which has to pass
    ("shift_right", """
        def shift_right(latent, first=None):
            m = F.pad(latent, (0, 0, 1, -1))
            if first is not None:
                m = m.clone()
                m[:, 0] = first
            return m
    """),
    ("Cache.advance", """
        def advance(self):
            T = self.x0.shape[1]
            self.pos = self.pos + T
            if self.latent is not None:
                self.latent = self.latents[:, T - 1, :]
            for i in range(len(self.kv)):
                n = self.kv[i].shape[3]
                keep = min(n, self.W - 1)
                self.kv[i] = self.kv[i].narrow(3, n - keep, keep)
    """),
    ("Block.qkv", """
        def qkv(self, y, m_k=0, m_v=0):
            B, T, C = y.shape
            H = self.n_head
            q, k, v = (w(y).view(B, T, H, C // H).permute(0, 2, 1, 3) for w in (self.w_q, self.w_k, self.w_v))
            if self.w_g is None:
                return [q, k, v]
            g = (1 + torch.tanh(self.w_g(y) / 2)).view(B, T, 2, H, 1).permute(2, 0, 3, 1, 4)
            return q, g[0] * k + g[1] * m_k, g[0] * v + g[1] * m_v
    """),
    ("GPT.layers", """
        def layers(self, x0, rope, mask, store, m=None):
            c, x = self.config, x0
            where = c.memory_layer if c.memory_layer > 0 else c.n_layer + 1 + c.memory_layer
            if m is None and c.lrt:
                m = torch.zeros_like(x0)
            for i in range(c.n_layer):
                x = x * self.alpha[i] + x0 * self.beta[i]
                m_k = m_v = 0
                if m is not None:
                    x = x + m * self.gamma[i]
                    j = i if len(self.u_k) > 1 else 0
                    m_k, m_v = self.blocks[i].heads(self.u_k[j](m)), self.blocks[i].heads(self.u_v[j](m))
                x = self.blocks[i](x, rope, mask, lambda k, v, i=i: store(i, k, v), m_k, m_v)
                if i + 1 == where:
                    latent = norm(x)
            return norm(x), latent
    """),
    ("GPT.recur", """
        def recur(self, idx, cache):
            if self.config.lrt:
                self.extend(idx.view(-1, 1), cache, cache.latent.unsqueeze(1))
            else:
                self.extend(idx.view(-1, 1), cache)
            h = cache.h.squeeze(1)
            cache.advance()
            return h
    """),
    ("GPT.refine", """
        def refine(self, cache, s, S):
            T = cache.x0.size(1)
            which = torch.arange(s, T, S, device=cache.h.device)
            before = torch.cat([cache.latent.unsqueeze(1), cache.latents], dim=1)
            def store(i, k, v):
                kv = cache.kv[i].clone()
                kv[..., kv.size(3) - T + which, :] = torch.stack([k, v])
                cache.kv[i] = kv
                return kv[0], kv[1]
            rope = cache.rope[0][which], cache.rope[1][which]
            h, latent = self.layers(cache.x0[:, which], rope, cache.mask(s, S), store, before[:, which])
            cache.h = cache.h.index_copy(1, which, h)
            cache.latents = cache.latents.index_copy(1, which, latent)
    """),
    ("GPT.forward", """
        def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None):
            B, T = idx.shape
            if T < 1 or T > self.config.block_size:
                raise ValueError('T')
            if not self.config.lrt:
                subsets, sweeps, loss_weights = 1, 0, None
            elif subsets is None:
                return self.forward_sequential(idx, targets)
            if subsets < 1 or sweeps < 0:
                raise ValueError('dial')
            if loss_weights is not None and (len(loss_weights) != sweeps + 1 or not any(loss_weights)):
                raise ValueError('weights')
            S = min(subsets, T)
            cache = self.init_cache(B)
            self.extend(idx, cache)
            losses = []
            def note():
                z = self.logits(cache.h)
                if targets is not None:
                    losses.append(cross_entropy(z, targets))
                return z
            z = note()
            for k in range(sweeps):
                for s in range(S):
                    self.refine(cache, s, S)
                z = note()
            if targets is None:
                return z, None
            if loss_weights is None:
                return z, (losses[0] + S * sum(losses[1:])) / (1 + S * sweeps)
            return z, sum(w * l for w, l in zip(loss_weights, losses))
    """),
    ("GPT.prefill", """
        def prefill(self, idx, cache, subsets=2, tol=1e-3):
            if subsets < 1 or idx.shape[1] < 1:
                raise ValueError('nothing')
            sweeps, residual = [0], [0.0]
            with torch.no_grad():
                for piece in torch.split(idx, max(512, self.config.block_size), 1):
                    self.extend(piece, cache)
                    T, n, change = piece.shape[1], 0, float('inf')
                    S = min(T, subsets)
                    while self.config.lrt and change > tol:
                        before = [t.clone() for t in [cache.h, cache.latents] + cache.kv]
                        for s in range(S):
                            self.refine(cache, s, S)
                        n += 1
                        after = [cache.h, cache.latents] + cache.kv
                        change = max(float(torch.max(torch.abs(x - y))) for x, y in zip(before, after))
                        if n * S >= T:
                            change = 0.0
                    sweeps.append(n)
                    residual.append(change if self.config.lrt else 0.0)
                    cache.advance()
                cache.sweeps, cache.residual = max(sweeps), max(residual)
                return self.logits(cache.h[:, -1])
    """),
]


def cases(tests, quick=False):
    """The name and a call of each test with each of its parameters; none of those with a fixture. Quick
    tests come first, and of each test the first parameters, as that finds what is wrong soonest."""
    found = []
    for test in tests:
        marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        names = [[name.strip() for name in args[0].split(",")] for args in marks]
        if set(inspect.signature(test).parameters) - {name for part in names for name in part}:
            continue
        for n, chosen in enumerate(itertools.product(*(args[1] for args in marks))):
            values = [value if len(part) > 1 else (value,) for part, value in zip(names, chosen)]
            named = {name: v for part, value in zip(names, values) for name, v in zip(part, value)}
            found.append((test in SLOW, n, test.__name__, functools.partial(test, **named)))
    found = [case for case in found if not quick or not case[0] and case[1] < 2]
    return [(name, call) for _, _, name, call in sorted(found, key=lambda case: case[:2])]


def killed_by(function, new, first_only=True, quick=False):
    """Names of the tests that fail with a function of lrt.py replaced, and what the first one says. Of an
    exercise only its own tests are run. quick: none that take long, and each with two parameters at most."""
    for which in KNOWN:
        known(*which)                                       # now, while all is right
    numbers_of = {name: n for n, (name, *_) in enumerate(EXERCISES, 1)}
    tests = TESTS[numbers_of[function]] if function in numbers_of else sum((TESTS[n] for n in range(9)), [])
    killers, said = [], ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*owner_of(function), new)
        for name, test in cases(tests, quick):
            try:
                test()
            except pytest.fail.Exception as e:
                said = said or str(e)
                killers.append(name)
                if first_only:
                    break
    return list(dict.fromkeys(killers)), said


@only_lrt
@pytest.mark.parametrize("mutant", MUTANTS[::9], ids=[f"{m[1]}: {m[0]}" for m in MUTANTS[::9]])
def test_mutant_is_rejected(mutant):
    """Every ninth, for the sake of time; python test_lrt.py --mutants tries all."""
    killers, said = killed_by(mutant[1], changed(*mutant[1:]))
    assert killers, f"{mutant[1]} passes its tests: {mutant[0]}"


@only_lrt
@pytest.mark.parametrize("function, source", RIGHT, ids=[f for f, _ in RIGHT])
def test_right_work_by_another_hand_passes(function, source):
    killers, said = killed_by(function, defined(source, function.split(".")[-1]), quick=True)
    assert not killers, f"{killers}: {said}"


# ---- Instructor: the handout -------------------------------------------------------------------------------

STUDENTS_DOC = '''"""The tests of the exercises.

    python -m pytest                    all; some minutes at most
    python -m pytest -k ex3             those of exercise 3
    python -m pytest -k consistent      for equations of your own: holds whatever GPT.layers computes

The model is compared in float64, on random weights that are all away from their initial values, so that no
path is silent: with numbers that another implementation of the equations gave (known.npz), and with itself,
as the exact form, the dial and a prompt in parallel are three ways to one result. What fails says what is
wrong, in which head, position or sweep.
"""'''


def definitions(source):
    """{"shift_right": node, "GPT.refine": node, ...}: all that is defined or imported at the top, and in
    classes there."""
    found = {}
    for node in ast.parse(source).body:
        names = [getattr(node, "name", "")]
        names += [(a.asname or a.name).split(".")[0] for a in getattr(node, "names", [])]
        for name in names + [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]:
            found[name] = node
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef):
                found[f"{node.name}.{inner.name}"] = inner
    return found


def blanked(source):
    """lrt.py with the bodies of the exercises taken out, and the lines taken out. Signatures and docstrings
    stay."""
    lines, found, removed = source.splitlines(), definitions(source), []
    for n, (name, _, _, what) in sorted(enumerate(EXERCISES, 1), key=lambda e: -found[e[1][0]].lineno):
        first, last = found[name].body[1].lineno - 1, found[name].end_lineno            # body[0]: docstring
        if name in KEPT:
            first = next(i for i in range(first, last) if KEPT[name] in lines[i]) + 1
        while lines[first - 1].strip().startswith("#"):
            first -= 1
        removed += lines[first:last]
        lines[first:last] = [" " * found[name].body[0].col_offset
                             + f'raise NotImplementedError("exercise {n}: {what}")']
    return "\n".join(lines) + "\n", removed


def students_tests():
    """This file without the sections of the instructor, and without imports that nothing needs then."""
    text = Path(__file__).read_text(encoding="utf-8")
    text = STUDENTS_DOC + text[len(ast.get_source_segment(text, ast.parse(text).body[0])):]
    sections = re.split(r"(?=^# ---- )", text[:text.index("\n# ---- Data")], flags=re.MULTILINE)
    text = "".join(s for s in sections if not s.startswith("# ---- Instructor")).rstrip() + "\n"
    for line in re.findall(r"^(?:import|from) .*\n", text, re.MULTILINE):
        if len(re.findall(rf"\b{line.split()[-1].split('.')[0]}\b", text.replace(STUDENTS_DOC, ""))) == 1:
            text = text.replace(line, "", 1)
    return text


def handout(folder):
    """Writes what a class gets into a folder that is new or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"error: {folder} is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8", newline="\n")
    write("lrt.py", blanked((HERE / "lrt.py").read_text(encoding="utf-8"))[0])
    write("test_lrt.py", students_tests())
    table = "\n".join(f"| {n} | `{name}` | {points} | {minutes} min | {what} |"
                      for n, (name, points, minutes, what) in enumerate(EXERCISES, 1))
    readme = (HERE / "assets" / "STUDENT.md").read_text(encoding="utf-8")
    write("README.md", readme.replace("{exercises}", table))
    for name in ("train.py", "sample.py", "prepare_data.py", "requirements.txt", "LICENSE"):
        write(name, (HERE / name).read_text(encoding="utf-8"))
    with open(folder / "known.npz", "wb") as file:
        np.savez_compressed(file, **{f"{which}/{name}": x.numpy() for which in KNOWN for name,
                                     x in known(*which).items()})


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout")
    handout(folder)
    return folder


def pytest_in(folder, *args):
    done = subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *args],
                          cwd=folder, text=True,
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"})
    return done.stdout + done.stderr


@only_lrt
def test_handout_gives_no_solution_away(given):
    text, removed = blanked((HERE / "lrt.py").read_text(encoding="utf-8"))
    assert text.count("raise NotImplementedError") == len(EXERCISES) and sum(e[1] for e in EXERCISES) == 80
    trivial = {line.strip() for line in text.splitlines()}              # in the handout because it is given
    secrets = {line.split("  #")[0].strip() for line in removed if len(line.strip()) > 16} - trivial
    assert len(secrets) > 50
    names = sorted(p.name for p in given.rglob("*"))
    assert names == sorted("lrt.py test_lrt.py README.md train.py sample.py prepare_data.py requirements.txt "
                           "LICENSE known.npz".split())
    for path in given.rglob("*"):
        lines = path.read_bytes().decode("utf-8", "replace")
        assert not [secret for secret in secrets if secret in lines], path.name
    tests = (given / "test_lrt.py").read_text(encoding="utf-8")
    for word in ("MUTANTS", "naive_", "EXERCISES", "def grade", "Instructor"):
        assert word not in tests, word
    numbers_in_text = re.findall(r"\d+(?:[,.]\d+)* %", (given / "README.md").read_text(encoding="utf-8"))
    assert set(numbers_in_text) <= {"100 %"}
    with pytest.raises(SystemExit, match="not an empty folder"):
        handout(given)


@only_lrt
def test_handout_is_complete(given, tmp_path):
    """Every name that the tests use is there; what is not written fails and says so; what is written
    passes."""
    tree = ast.parse((given / "test_lrt.py").read_text(encoding="utf-8"))
    nodes, stored = list(ast.walk(tree)), {*dir(__import__("builtins")), "SECOND", "__file__", "__name__"}
    for n in nodes:
        stored |= {getattr(n, "name", None), getattr(n, "arg", None)}
        aliases = [a for a in getattr(n, "names", []) if isinstance(a, ast.alias)]
        stored |= {(a.asname or a.name).split(".")[0] for a in aliases}
        stored |= {n.id} if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load) else set()
    used = {n.id for n in nodes if isinstance(n, ast.Name)} - stored
    assert not used
    out = pytest_in(given, "-k", "ex1 or ex4 or plain_needs or parameter", "--tb=line")
    assert " passed" in out and all(f"not written yet: exercise {n}" in out for n in (1, 4)), out
    shutil.copytree(given, tmp_path / "done")
    shutil.copy(HERE / "lrt.py", tmp_path / "done" / "lrt.py")
    out = pytest_in(tmp_path / "done", "-k",
                    "ex1 or ex2 or ex3 or ex4 or ex5_the or ex6_subset or ex7_logits or ex8_stops",
                    "--tb=line")
    assert " passed" in out and "failed" not in out and "error" not in out, out
    assert not list(given.rglob("__pycache__"))


# ---- Instructor: the grader --------------------------------------------------------------------------------

ALLOWED = {"torch", "math", "functools", "itertools", "operator", "typing", "collections", "dataclasses",
           "contextlib", "copy", "numpy", "__future__"}
FORBIDDEN = {"os", "sys", "subprocess", "importlib", "builtins", "inspect", "gc", "ctypes", "pytest",
             "test_lrt", "_exit", "exit", "quit", "open", "eval",
             "exec", "compile", "__import__", "__builtins__", "__globals__", "__subclasses__", "__code__",
             "modules", "globals", "vars"}


class Refused(Exception):
    pass


def students_part(path, name):
    """[(qualified name, node)] of a student's file: the function, and what it uses of functions, methods,
    imports and constants at the top of that file that lrt.py does not have. Nothing else of the file is
    looked at, and none of it is run."""
    try:
        data = Path(path).read_bytes()
        if len(data) > 10 ** 6:
            raise Refused(f"the file has {len(data):,} bytes: too many")
        found = definitions(data.decode("utf-8-sig"))
    except OSError as e:
        raise Refused(f"cannot be read: {e.strerror}")
    except UnicodeDecodeError:
        raise Refused("is not text in UTF-8")
    except SyntaxError as e:
        raise Refused(f"syntax error in line {e.lineno}: {e.msg}")
    except (ValueError, RecursionError, MemoryError) as e:
        raise Refused(f"is not Python: {e}")
    if not isinstance(found.get(name), ast.FunctionDef):
        raise Refused(f"there is no function {name} in the file")
    ours, wanted, taken = definitions((HERE / "lrt.py").read_text(encoding="utf-8")), [name], {}
    while wanted:
        part = wanted.pop()
        taken[part] = found[part]
        for node in ast.walk(found[part]):
            used = [node.id] if isinstance(node, ast.Name) else []
            if isinstance(node, ast.Attribute):
                used = [f"{owner}.{node.attr}" for owner in ("Cache", "Block", "GPT")]
            wanted += [u for u in used if u in found and u not in ours and u not in taken]
            bad = {getattr(node, "id", ""), getattr(node, "attr", "")} & FORBIDDEN
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            bad |= {module for module in modules if module.split(".")[0] not in ALLOWED}
            if isinstance(node, ast.ImportFrom):
                bad |= {a.name for a in node.names} & FORBIDDEN
            if bad:
                raise Refused(f"uses {', '.join(sorted(bad))} (line {node.lineno}), which no exercise needs")
    if any(isinstance(n, ast.Raise) and "NotImplementedError" in ast.unparse(n) for n in found[name].body):
        raise Refused("not written yet")
    return sorted(taken.items(), key=lambda item: item[1].lineno)


def take_over(path, name):
    """Puts a student's function into lrt, in the place of its own."""
    path = str(path)
    STUDENTS.add(path)
    for part, node in students_part(path, name):
        namespace = vars(lrt)
        exec(compile(ast.Module([node], []), path, "exec"), namespace, made := {})
        for key, value in made.items():
            if "." in part:
                setattr(*owner_of(part), value)
            else:
                namespace[key] = value


if "LRT_GRADE" in os.environ:           # this is a process that grades one exercise of one file: see below
    take_over(*json.loads(os.environ["LRT_GRADE"]))


def grade_exercise(path, n, limit=30):
    """(points, what to say about it) of exercise n of a student's file."""
    name, points, *_ = EXERCISES[n - 1]
    try:
        students_part(path, name)
    except Refused as e:
        return 0, str(e)
    expected = len(cases(TESTS[n]))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        env = {**os.environ, "LRT_GRADE": json.dumps([str(Path(path).resolve()), name]),
               "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        child = subprocess.Popen([sys.executable, "-m", "pytest", __file__, "-q", "-s", "-k", f"test_ex{n}_",
                                  "-p", "no:cacheprovider", "--assert=plain",
                                  f"--junitxml={report}", "-W", "ignore"], cwd=folder,
                                 env={**env, "PYTHONPATH": str(HERE)}, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            return 0, f"not done after {limit} s: an endless loop?"
        finally:
            if os.name == "posix":
                try:
                    os.killpg(child.pid, signal.SIGKILL)        # it, and what it has started
                except OSError:
                    pass
            child.kill()
            child.wait()
        try:
            ran = list(xml.etree.ElementTree.parse(report).iter("testcase"))
        except (OSError, xml.etree.ElementTree.ParseError):
            return 0, "the process ended before the tests did"
    failed = [(case.get("name"), " ".join((case[0].text or case[0].get("message") or "").split()))
              for case in ran if len(case)]
    passed = len(ran) - len(failed)
    if failed:
        return 0, f"{passed} of {expected} tests pass; {failed[0][0]}: {failed[0][1]}"[:500]
    if passed < expected or passed != len(ran):
        return 0, f"{passed} of {expected} tests were run"
    return points, f"all {expected} tests pass"


def grade(path, limit=30, exercises=range(1, len(EXERCISES) + 1)):
    """One submission: [(number, function, points, of how many, what to say)]."""
    return [(n, EXERCISES[n - 1][0], *(p := grade_exercise(path, n, limit))[:1], EXERCISES[n - 1][1], p[1])
            for n in exercises]


def grade_files(paths, form="", limit=30):
    """Prints the report: for people, as Gradescope's results.json (a list of them for several files), or a
    line of CSV each."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    say = lambda text: re.sub(r"[^\x20-\x7e]" if plain else r"[\x00-\x1f\x7f]", "?", text)
    total, results = sum(e[1] for e in EXERCISES), []
    if form == "csv":
        print("file," + ",".join(f"ex{n}" for n in range(1, len(EXERCISES) + 1)) + ",points,of", flush=True)
    for path in paths:
        rows = grade(path, limit)
        points = sum(row[2] for row in rows)
        if form == "json":
            results.append({"score": points, "output": say(f"{path}: {points} of {total} points"), "tests": [
                {"name": f"exercise {n}: {name}", "score": got, "max_score": of, "status": "passed" if got
                 else "failed", "output": said}
                for n, name, got, of, said in rows]})
        elif form == "csv":
            quoted = '"' + str(path).replace('"', '""') + '"'
            print(say(",".join([quoted, *(str(row[2]) for row in rows), str(points), str(total)])),
                  flush=True)
        else:
            print(say(f"{path}: {points} of {total} points"))
            if not points and len({row[4] for row in rows}) == 1:
                rows = [(0, "the file", 0, total, rows[0][4])]
            for n, name, got, of, said in rows:
                print(say(f"    {f'exercise {n}' if n else '':11} {name:14} {got:2} of {of:2}   {said}"),
                      flush=True)
    if form == "json":
        print(json.dumps(results[0] if len(results) == 1 else results, indent=1))


GOOD = ast.get_source_segment((HERE / "lrt.py").read_text(encoding="utf-8"),
                              definitions((HERE / "lrt.py").read_text(encoding="utf-8"))["shift_right"])
BROKEN = {          # file: (its bytes, points for exercise 1, what is said about it)
    "windows.py": (("\ufeffimport nothing_like_it\r\nraise SystemExit\r\n"
                    + GOOD.replace("\n", "\r\n")).encode(), 5, "all"),
    "helper.py": (b"from math import pi\nLAST = -1\n\ndef zeros(x):\n    return 0 * x[:, :1]\n\n\ndef "
                  b"shift_right(latent, first=None):\n"
                  b"    print('x' * 1000000)\n    return helped(latent, first)\n\n\ndef helped(latent, "
                  b"first):\n"
                  b"    return torch.cat([zeros(latent) if first is None else first[:, None], latent[:, "
                  b":LAST]], 1)\n", 5, "all"),
    "endless.py": (b"def shift_right(latent, first=None):\n    while True:\n        print(1)\n", 0,
                   "endless"),
    "exits.py": (b"def shift_right(latent, first=None):\n    torch.os._exit(0)\n", 0, "_exit"),
    "quits.py": (b"def shift_right(latent, first=None):\n    raise SystemExit(0)\n", 0, "tests"),
    "wrong.py": (GOOD.replace("latent[:, :-1]", "latent[:, :-1].detach()").encode(), 0,
                 "no gradient reaches latent"),
    "decorated.py": (b"@nothing\ndef shift_right(latent, first=None):\n    return latent\n", 0, "nothing"),
    "imports.py": (b"import os\ndef shift_right(latent, first=None):\n    return os.nothing\n", 0, "uses os"),
    "absent.py": (b"def shift_right(latent, first=None):\n    import nothing_like_it\n", 0,
                  "nothing_like_it"),
    "syntax.py": (b"def shift_right(latent:\n", 0, "syntax error in line 1"),
    "binary.py": (bytes(range(256)), 0, "UTF-8"),
    "zeros.py": (b"x = 1\0", 0, "source code"),
    "deep.py": (b"x = " + b"(" * 5000, 0, ""),
    "large.py": (b"#" * 2_000_000, 0, "too many"),
    "empty.py": (b"", 0, "no function shift_right"),
    "class.py": (b"class shift_right:\n    pass\n", 0, "no function shift_right"),
    "blank.py": (b"def shift_right(latent, first=None):\n    raise NotImplementedError('exercise 1')\n", 0,
                 "not written yet"),
}


@only_lrt
def test_grader_takes_any_file(tmp_path):
    """Two at a time, as each may need a process."""
    def graded(name):
        (tmp_path / name).write_bytes(BROKEN[name][0])
        return grade_exercise(tmp_path / name, 1, 8 if name == "endless.py" else 60)

    with ThreadPoolExecutor(2) as pool:
        for (name, (_, points, said)), got in zip(BROKEN.items(), pool.map(graded, BROKEN)):
            assert got[0] == points and said in got[1] and "\n" not in got[1] and len(got[1]) <= 500, (name, got)


@only_lrt
def test_grader_counts_tests(tmp_path, monkeypatch):
    """Where the process ends early with status 0, no points; nor where a name is guessed that is not
    forbidden."""
    monkeypatch.setattr(sys.modules[__name__], "EXERCISES", [("shift_right", 5, 10, "")] + EXERCISES[1:])
    (tmp_path / "a.py").write_text("def shift_right(latent, first=None):\n    getattr(getattr(torch, 'o' + "
                                   "'s'), '_ex' + 'it')(0)\n", encoding="utf-8")
    assert grade_exercise(tmp_path / "a.py", 1) == (0, "the process ended before the tests did")


@only_lrt
def test_report_of_several_files(tmp_path, capsys, monkeypatch):
    files = [str(tmp_path / name) for name in ("missing.py", "comma, and é.py")]
    Path(files[1]).write_bytes(b"(")
    monkeypatch.setattr(sys.modules[__name__], "grade_exercise", lambda path, n,
                        limit: (EXERCISES[n - 1][1], "fine") if "missing" not in path
                        else (0, "cannot be read"))
    grade_files(files)
    out = capsys.readouterr().out
    assert out.count("\n") == 2 + 1 + len(EXERCISES) and "0 of 80" in out and "80 of 80" in out
    grade_files(files, "csv")
    table = [line.split(",")[-2:] for line in capsys.readouterr().out.splitlines()]
    assert table == [["points", "of"], ["0", "80"], ["80", "80"]]
    grade_files(files[:1], "json")
    result = json.loads(capsys.readouterr().out)
    assert result["score"] == 0 and [t["max_score"] for t in result["tests"]] == [e[1] for e in EXERCISES]


if __name__ == "__main__":
    flags = dict(arg.partition("=")[::2] for arg in sys.argv[1:] if arg.startswith("--"))
    names = [flags[f] for f in ("--handout", "--grade") if flags.get(f)]
    names += [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    sys.dont_write_bytecode = True
    if set(flags) == {"--handout"} and len(names) == 1:
        handout(*names)
    elif set(flags) == {"--mutants"} and not names:
        survived = 0
        for mutant in MUTANTS:
            killers, said = killed_by(mutant[1], changed(*mutant[1:]))
            print(f"{'rejected' if killers else 'SURVIVED'}  {mutant[1]}: {mutant[0]}")
            print(f"          {killers[0]}: {said}" if killers else "", flush=True)
            survived += not killers
        sys.exit(f"{survived} of {len(MUTANTS)} survived" if survived else 0)
    elif "--grade" in flags and set(flags) <= {"--grade", "--json", "--csv", "--limit"} and names:
        form = "json" if "--json" in flags else "csv" if "--csv" in flags else ""
        grade_files(names, form, float(flags.get("--limit", 30)))
    else:
        sys.exit(__doc__)
