"""The proof that lrt.py is right, and the autograder.

    python -m pytest                                    everything
    python test_lrt.py --mutants                        wrong versions of lrt.py, and which tests reject them
    python test_lrt.py --handout > student.py           lrt.py with the bodies of the exercises taken out
    LRT_IMPL=student python -m pytest -k task3          grade an exercise; it needs only the ones before it

The model is compared in float64, on random weights that are all away from their initial values, so that no path is
silent: with definitions that are too simple to be wrong, and with a second implementation, in numpy.
"""
import ast
import dataclasses
import errno
import functools
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prepare_data
import sample
import train

lrt = importlib.import_module(os.environ.get("LRT_IMPL", "lrt").removesuffix(".py"))
HERE = Path(__file__).parent
torch.set_num_threads(1)        # the models are tiny; a busy machine does not matter then

EXERCISES = [       # (function, what to write); in the order in which they build on each other
    ("shift_right", "the recurrence: the memory of each position is the state of the one before it"),
    ("Block.qkv", "queries, keys and values, with the memory let in through the gates"),
    ("GPT.forward_sequential", "the definition: one position after the other"),
    ("GPT.step", "one token, with the cache"),
    ("GPT.refine", "one subset pass over the buffer"),
    ("GPT.forward", "the dial: first pass, sweeps, loss"),
    ("GPT.prefill", "a prompt in parallel, exactly"),
]

# Sizes that are small and odd. Every identity is tested on each of them.
CONFIGS = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(memory_layer=1),
    "middle layer, layerwise": dict(memory_layer=2, memory_proj="layerwise"),
    "one layer, one head": dict(n_layer=1, n_head=1, n_embd=6),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def random_model(seed=0, scale=0.3, **changes):
    """A float64 model, every weight of it away from its initial value."""
    torch.manual_seed(seed)
    config = dict(block_size=13, vocab_size=11, n_layer=3, n_head=2, n_embd=16, lrt=True)
    model = lrt.GPT(lrt.GPTConfig(**{**config, **changes})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * scale)
    return model


def tokens(model, B, T, seed=1):
    return torch.randint(model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def close(mine, expected, atol=1e-10):
    """Fails, naming the first value that differs, unless both are alike."""
    expected = torch.as_tensor(expected)
    assert mine.shape == expected.shape, f"shape is {tuple(mine.shape)}, expected {tuple(expected.shape)}"
    wrong = ~((mine - expected).abs() <= atol)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        pytest.fail(f"first wrong value at {list(where)} of {list(mine.shape)}: {mine[where].item():.12g}, expected "
                    f"{expected[where].item():.12g}; {int(wrong.sum())} of {wrong.numel()} are wrong, by up to "
                    f"{(mine - expected).abs().max().item():.3g}")


# ---- A second implementation, as naive as can be: one sequence, one position at a time, nothing shared ----------

def naive_lrt(model, idx):
    """The equations in numpy: logits (T, V) and states (T, C) of one sequence of token numbers."""
    W = {name: p.detach().numpy() for name, p in model.named_parameters()}
    c = model.config
    C, H, L = c.n_embd, c.n_head, c.n_layer
    D = C // H
    source = c.memory_layer if c.memory_layer > 0 else L + 1 + c.memory_layer
    eps = np.finfo(np.float64).eps

    def norm(v):
        return v / np.sqrt(np.mean(v * v) + eps)

    def rope(v, t):
        out = np.empty(D)
        for j in range(D // 2):
            angle = t * 10000.0 ** (-2 * j / D)
            a, b = v[j], v[j + D // 2]
            out[j] = a * math.cos(angle) + b * math.sin(angle)
            out[j + D // 2] = b * math.cos(angle) - a * math.sin(angle)
        return out

    past = [[[] for _ in range(H)] for _ in range(L)]       # past[i][head]: (key, value) of each position so far
    m, all_logits, states = np.zeros(C), [], []
    for t, token in enumerate(idx):
        x = x0 = norm(W["embed.weight"][token])
        for i in range(L):
            w = lambda name: W[f"blocks.{i}.{name}.weight"]
            x = W["alpha"][i] * x + W["beta"][i] * x0 + W["gamma"][i] * m
            y = norm(x)
            q, k, v = w("w_q") @ y, w("w_k") @ y, w("w_v") @ y
            g = 2 / (1 + np.exp(-w("w_g") @ y))
            pair = i if c.memory_proj == "layerwise" else 0
            mk, mv = W[f"u_k.{pair}.weight"] @ m, W[f"u_v.{pair}.weight"] @ m
            result = np.zeros(C)
            for h in range(H):
                part = slice(h * D, h * D + D)
                key = norm(rope(g[h] * k[part] + g[H + h] * mk[part], t))
                past[i][h].append((key, g[h] * v[part] + g[H + h] * mv[part]))
                scores = np.array([norm(rope(q[part], t)) @ key / math.sqrt(D) for key, _ in past[i][h]])
                p = np.exp(scores - scores.max())
                result[part] = sum(p_t * value for p_t, (_, value) in zip(p / p.sum(), past[i][h]))
            x = x + w("w_o") @ result
            x = x + w("w_2") @ np.maximum(w("w_1") @ norm(x), 0) ** 2
            if i + 1 == source:
                m_next = norm(x)
        m = m_next
        states.append(m)
        all_logits.append(15 * np.tanh(W["head.weight"] @ norm(x) / 15))
    return np.array(all_logits), np.array(states)


# ---- Exercise 1: the recurrence ------------------------------------------------------------------------------------

def test_task1_shift_right():
    h = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    close(lrt.shift_right(h), torch.cat([torch.zeros(2, 1, 3), h[:, :-1]], 1))
    close(lrt.shift_right(h, h[:, 4]), torch.stack([h[:, t] for t in (4, 0, 1, 2, 3)], 1))
    close(lrt.shift_right(h[:, :1]), torch.zeros(2, 1, 3))
    grad = torch.autograd.grad(lrt.shift_right(h).sum(), h)[0]
    close(grad, torch.tensor([1.0, 1, 1, 1, 0])[None, :, None].expand(2, 5, 3))


# ---- Exercise 2: the memory in keys and values -------------------------------------------------------------------------

@pytest.mark.parametrize("has_lrt, has_memory", [(False, False), (True, False), (True, True)])
def test_task2_keys_and_values_with_memory(has_lrt, has_memory):
    """Against the equations, a head and a position at a time."""
    model = random_model(lrt=has_lrt)
    block, H, D = model.blocks[0], 2, 8
    y, u, rope = torch.randn(2, 5, 16).double(), torch.randn(2, 5, 32).double(), model.rope(3, 5)
    q, k, v = block.qkv(block.projections(), y, rope, u if has_memory else None)
    for b in range(2):
        for t in range(5):
            gate = 2 / (1 + torch.exp(-block.w_g.weight @ y[b, t])) if has_lrt else torch.ones(4)
            for h in range(H):
                head = slice(h * D, h * D + D)
                k_m, v_m = (u[b, t][head], u[b, t][16:][head]) if has_memory else (0, 0)
                query = (block.w_q.weight @ y[b, t])[head]
                key = gate[h] * (block.w_k.weight @ y[b, t])[head] + gate[H + h] * k_m
                turn = lambda x: lrt.norm(lrt.rotate(x[None], rope[:, t:t + 1]))[0]
                close(q[b, h, t], turn(query))
                close(k[b, h, t], turn(key))
                close(v[b, h, t], gate[h] * (block.w_v.weight @ y[b, t])[head] + gate[H + h] * v_m)


# ---- Exercise 3: the definition ------------------------------------------------------------------------------------------

@every_config
def test_task3_definition_is_the_equations(name):
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, 2, 13), tokens(model, 2, 13, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    for row in range(2):
        close(logits[row], naive_lrt(model, idx[row].tolist())[0])
    close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert model.forward_sequential(idx)[1] is None


def test_task3_definition_is_differentiable_through_time():
    """The first token's embedding gets a gradient from the last logits even where attention is blind to it."""
    model = random_model(n_layer=1, n_head=1, n_embd=6)
    with torch.no_grad():
        model.blocks[0].w_o.weight.zero_()                  # attention adds nothing: what is left is the memory
    idx = torch.arange(6)[None]
    grad = torch.autograd.grad(model.forward_sequential(idx)[0][0, 5].square().sum(), model.embed.weight)[0].abs().sum(1)
    assert (grad[:6] > 0).all() and (grad[6:] == 0).all()


def test_task3_plain_model():
    model = random_model(lrt=False)
    idx = tokens(model, 2, 13)
    mask = torch.ones(13, 13, dtype=torch.bool).tril()
    h, state = model.layers(model.projections(), model.embedding(idx), model.rope(0, 13), lambda i, q, k, v: lrt.attention(q, k, v, attn_mask=mask))
    assert state is None
    close(model.forward_sequential(idx)[0], model.logits(h))


# ---- Exercise 4: one token -----------------------------------------------------------------------------------------------

@every_config
@pytest.mark.parametrize("B, T", [(2, 13), (1, 7), (3, 1)])
def test_task4_steps_are_the_definition(name, B, T):
    """At every length from 1; and the latent is the state of the equations."""
    model = random_model(**CONFIGS[name])
    idx = tokens(model, B, T)
    logits, _ = model.forward_sequential(idx)
    states = [naive_lrt(model, row)[1] for row in idx.tolist()]
    cache = model.init_cache(B)
    for t in range(T):
        close(model.step(idx[:, t], cache), logits[:, t])
        close(cache.latent, np.stack([s[t] for s in states]))
        assert cache.pos == t + 1


def windowed_reference(model, idx):
    """Logits when attention sees the last block_size positions and the memory goes on: the token loop, with all keys
    kept and an explicit window."""
    W, weights, x0, rope = model.config.block_size, model.projections(), model.embedding(idx), model.rope(0, idx.size(1))
    keys, values = ([[] for _ in model.blocks] for _ in range(2))
    def attend(i, q, k, v):
        keys[i].append(k)
        values[i].append(v)
        return lrt.attention(q, torch.cat(keys[i][-W:], 2), torch.cat(values[i][-W:], 2))
    out, m = [], torch.zeros_like(x0[:, :1]) if model.config.lrt else None
    with torch.no_grad():
        for t in range(idx.size(1)):
            h, m = model.layers(weights, x0[:, t:t + 1], rope[:, t:t + 1], attend, m)
            out.append(model.logits(h[:, 0]))
    return torch.stack(out, 1)


@pytest.mark.parametrize("has_lrt", [False, True])
def test_task4_steps_slide_over_the_last_block(has_lrt):
    model = random_model(lrt=has_lrt)
    idx = tokens(model, 2, 45)
    cache, expected = model.init_cache(2), windowed_reference(model, idx)
    for t in range(45):
        close(model.step(idx[:, t], cache), expected[:, t])
    assert cache.k[0].shape == model.init_cache(2).k[0].shape and cache.pos == 45


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_own_derivatives_are_autograds(dtype, tolerance):
    """RMSNorm and SquaredReLU against torch's functions, value and gradient, for large, small and zero inputs."""
    torch.manual_seed(0)
    x = (torch.randn(6, 5, 16).double() * torch.tensor([100.0, 1, 1e-2, 1e-4, 0, 1])[:, None, None]).to(dtype).requires_grad_()
    weight = torch.randn(6, 5, 16).to(dtype)
    for mine, theirs in ((lrt.norm, lambda x: F.rms_norm(x, (16,))), (lrt.SquaredReLU.apply, lambda x: F.relu(x).square())):
        results = [(y.double(), torch.autograd.grad((y * weight).sum(), x)[0].double()) for y in (mine(x), theirs(x))]
        for a, b in zip(*results):
            close(a / b.abs().amax().clamp(min=1e-30), b / b.abs().amax().clamp(min=1e-30), atol=tolerance)


def test_rotary_keeps_its_digits_at_late_positions():
    """Generation goes on for ever; in float32 alone the angle of position 10,000,000 would be wrong by up to 0.5."""
    late = [lrt.rotary_table(10 ** 7, 4, 8, torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    close(late[0].double(), late[1], atol=1e-6)


def test_task4_sequences_do_not_see_each_other():
    """Not those of a batch, and not those decoded before."""
    model = random_model()
    idx, order = tokens(model, 4, 12), torch.tensor([2, 0, 3, 1])
    def decode(idx):
        cache = model.init_cache(4)
        return torch.stack([model.step(idx[:, t], cache) for t in range(12)], 1)
    first = decode(idx)
    close(decode(idx[order]), first[order])
    close(decode(idx), first)


def test_task4_every_latent_counts():
    """The next logits change when the latent is dropped, stale, doubled or another sequence's."""
    model = random_model()
    idx = tokens(model, 2, 6)
    expected, _ = model.forward_sequential(idx)
    for spoil in (lambda new, old: new * 0, lambda new, old: old, lambda new, old: new * 2, lambda new, old: new.roll(1, 0)):
        cache = model.init_cache(2)
        for t in range(6):
            old = cache.latent
            logits = model.step(idx[:, t], cache)
            cache.latent = spoil(cache.latent, old)
        assert (logits - expected[:, 5]).abs().max() > 1e-3


# ---- Exercise 5: one subset pass -----------------------------------------------------------------------------------------

@every_config
def test_task5_refining_all_positions_in_turn_is_the_definition(name):
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, 9)
    expected = [naive_lrt(model, row) for row in idx.tolist()]
    buffer = model.fill(idx, 9)
    for s in range(9):
        model.refine(buffer, s)
        close(model.logits(buffer.h[s][:, 0]), np.stack([logits[s] for logits, _ in expected]))
        close(buffer.state[s][:, 0], np.stack([states[s] for _, states in expected]))


@pytest.mark.parametrize("S", [1, 2, 3])
def test_task5_one_subset_pass(S):
    """Only that subset changes, and it is what the layers give for it, position by position, from the latest buffer."""
    model = random_model()
    idx = tokens(model, 2, 12)
    buffer = model.fill(idx, S)
    for s in list(range(S)) + [0]:
        old = {name: [x.clone() for x in getattr(buffer, name)] for name in ("h", "state")}
        k = [[x.clone() for x in parts] for parts in buffer.k]
        v = [[x.clone() for x in parts] for parts in buffer.v]
        state = lrt.merge(buffer.state, 1)
        model.refine(buffer, s)
        for r in range(S):
            if r != s:
                close(buffer.h[r], old["h"][r])
                close(buffer.state[r], old["state"][r])
        for t in range(s, 12, S):                           # the keys before t: the latest, and from this pass its own
            def attend(i, q, *_):
                keys = [buffer.k[i][p % S][:, :, p // S] for p in range(t + 1)]
                values = [buffer.v[i][p % S][:, :, p // S] for p in range(t + 1)]
                return lrt.attention(q, torch.stack(keys, 2), torch.stack(values, 2))
            m = state[:, t - 1:t] if t else torch.zeros(2, 1, 16).double()
            h, new = model.layers(buffer.weights, model.embedding(idx[:, t:t + 1]), model.rope(t, 1), attend, m)
            close(buffer.h[s][:, t // S], h[:, 0])
            close(buffer.state[s][:, t // S], new[:, 0])
        assert all(not torch.equal(buffer.k[i][s], k[i][s]) and not torch.equal(buffer.v[i][s], v[i][s]) for i in range(3)) or s == 0


# ---- Exercise 6: the dial ------------------------------------------------------------------------------------------------

@every_config
@pytest.mark.parametrize("B, T", [(2, 13), (1, 8), (3, 1)])
def test_task6_dial_at_S_equals_T_is_the_definition(name, B, T):
    """Logits, loss and every gradient."""
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, B, T), tokens(model, B, T, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    dial_logits, dial_loss = model(idx, targets, subsets=T, sweeps=1, loss_weights=(0, 1))
    close(dial_logits, logits)
    close(dial_loss, loss)
    for mine, expected in zip(gradients(dial_loss, model), gradients(loss, model)):
        close(mine, expected)


@every_config
@pytest.mark.parametrize("T", [13, 12])
def test_task6_exact_prefix_is_as_long_as_predicted_and_no_longer(name, T):
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, T)
    exact, _ = model.forward_sequential(idx)
    for S in (1, 2, 3, 5, 7, T):
        for K in range(4):
            logits, _ = model(idx, subsets=S, sweeps=K)
            wrong = ((logits - exact).abs().amax((0, 2)) > 1e-8).tolist()
            prefix = wrong.index(True) if True in wrong else T
            assert prefix == min(T, max(K + 1, S * K)), f"S = {S}, K = {K}: {prefix} exact positions"


@pytest.mark.parametrize("S, K", [(1, 0), (1, 2), (2, 1), (3, 2), (5, 1)])
def test_task6_loss_is_one_mean_for_each_pass(S, K):
    """The default loss, put together from the logits after each sweep; and the weighted one."""
    model = random_model()
    idx, targets = tokens(model, 2, 13), tokens(model, 2, 13, seed=2)
    nll = lambda k: F.cross_entropy(model(idx, subsets=S, sweeps=k)[0].transpose(1, 2), targets, reduction="none")
    terms = [nll(0).mean()] + [nll(k)[:, s::S].mean() for k in range(1, K + 1) for s in range(S)]
    assert len(terms) == 1 + S * K
    close(model(idx, targets, subsets=S, sweeps=K)[1], torch.stack(terms).mean())
    weights = [0.3, 0.0, 1.5][:K + 1]
    close(model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1],
          torch.stack([w * nll(k).mean() for k, w in enumerate(weights)]).sum())


def test_task6_targets_of_minus_one_do_not_count():
    model = random_model()
    idx, targets = tokens(model, 2, 12), tokens(model, 2, 12, seed=2)
    targets[:, 5:] = -1
    close(model.forward_sequential(idx, targets)[1], model.forward_sequential(idx[:, :5], targets[:, :5])[1])
    close(model(idx, targets, subsets=12, loss_weights=(0, 1))[1], model.forward_sequential(idx, targets)[1])


def test_task6_gradients_go_through_every_pass():
    """With the loss on the last sweep alone: against finite differences, along a random direction."""
    model = random_model()
    idx, targets = tokens(model, 2, 12), tokens(model, 2, 12, seed=2)
    loss = lambda: model(idx, targets, subsets=3, sweeps=2, loss_weights=(0, 0, 1))[1]
    torch.manual_seed(3)
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((g * d).sum() for g, d in zip(gradients(loss(), model), direction))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction):
                p.add_(d, alpha=sign * 1e-5)
            ends.append(loss())
            for p, d in zip(model.parameters(), direction):
                p.sub_(d, alpha=sign * 1e-5)
    close((ends[0] - ends[1]) / 2e-5, slope.detach(), atol=1e-6)


@pytest.mark.parametrize("has_lrt", [False, True])
def test_task6_causality(has_lrt):
    """No position sees a later one: not in its logits, not through a gradient. And it sees all earlier ones."""
    model = random_model(lrt=has_lrt)
    idx = tokens(model, 2, 12)
    for S, K in ((1, 1), (2, 1), (3, 2), (5, 1), (12, 1)):
        run = lambda i: model(i, subsets=S, sweeps=K)[0]
        before = run(idx)
        for t in (0, 5, 11):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            difference = (run(changed) - before).abs().amax((0, 2))
            assert (difference[:t] == 0).all(), f"S = {S}, K = {K}: position {difference.nonzero()[0].item()} sees {t}"
            assert (difference[t:] > 1e-9).all()
        logits = run(torch.arange(11)[None])               # token t at position t alone, so its embedding is that position
        for t in range(11):
            grad = torch.autograd.grad(logits[0, t].sum(), model.embed.weight, retain_graph=True)[0].abs().sum(1)
            assert (grad[:t + 1] > 0).all() and (grad[t + 1:] == 0).all()


def test_task6_plain_is_lrt_without_memory_and_without_gates():
    plain, model = random_model(lrt=False), random_model()
    extra = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert extra == {"gamma", "u_k.0.weight", "u_v.0.weight"} | {f"blocks.{i}.w_g.weight" for i in range(3)}
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    with torch.no_grad():
        for name in extra:
            model.get_parameter(name).zero_()               # gates 2 σ(0) = 1, and nothing for g_mem to let in
    idx, targets = tokens(model, 2, 13), tokens(model, 2, 13, seed=2)
    logits, loss = plain(idx, targets)
    close(plain.forward_sequential(idx)[0], logits)
    close(model.forward_sequential(idx)[0], logits)
    for S, K in ((1, 1), (2, 1), (3, 2), (13, 1)):
        close(model(idx, subsets=S, sweeps=K)[0], logits)
        close(plain(idx, targets, subsets=S, sweeps=K)[1], loss)
    close(model(idx, targets, subsets=2, loss_weights=(0.5, 0.5))[1], loss)


def test_task6_flops_depend_on_sweeps_alone():
    """(1 + K) passes whatever S is. (A sweep is a pass and the projections of the memory, 2C² of 12 L C².)"""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    model = random_model(n_layer=8, block_size=24, vocab_size=2)
    def count(S, K):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(tokens(model, 2, 24), subsets=S, sweeps=K)
        return counter.get_total_flops()
    for S in (1, 2, 3, 8, 24):
        for K in (1, 2, 3):
            assert count(S, K) / count(1, 0) == pytest.approx(1 + K, rel=0.03), (S, K)


def test_task6_batch_order_does_not_matter():
    model = random_model()
    idx, order = tokens(model, 4, 12), torch.tensor([2, 0, 3, 1])
    close(model(idx[order], subsets=3)[0], model(idx, subsets=3)[0][order])
    close(model.forward_sequential(idx[order])[0], model.forward_sequential(idx)[0][order])


def test_task6_impossible_dials_are_named():
    model = random_model()
    for wrong in (dict(subsets=0), dict(sweeps=-1), dict(loss_weights=(1,)), dict(loss_weights=(0, 0))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model(tokens(model, 1, 5), tokens(model, 1, 5), **wrong)
    for forward in (model, model.forward_sequential):
        with pytest.raises(ValueError, match="block_size"):
            forward(tokens(model, 1, 14))


# ---- Exercise 7: a prompt in parallel ------------------------------------------------------------------------------------

@every_config
@pytest.mark.parametrize("cuts", [[45], [1, 1, 43], [5, 8, 1, 20, 11], [13, 13, 13, 6]])
def test_task7_prefill_in_pieces_is_stepping(name, cuts):
    """For random weights, which need not contract: exact when it has used up its sweeps."""
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, 49)
    expected = windowed_reference(model, idx)
    for S in (1, 4, 100):
        cache, end = model.init_cache(2), 0
        for cut in cuts:
            logits = model.prefill(idx[:, end:end + cut], cache, subsets=S, tol=0.0)
            end += cut
            close(logits, expected[:, end - 1])
            assert cache.sweeps <= math.ceil(cut / min(S, cut)) and cache.pos == end
        for t in range(end, 49):                            # and the cache goes on as if all had been steps
            close(model.step(idx[:, t], cache), expected[:, t])


def test_task7_prefill_starts_from_the_latent_it_is_given():
    """Also before the first token, where a zero latent would be the usual one."""
    model = random_model()
    idx, latent = tokens(model, 2, 9), torch.randn(2, 16).double()
    a, b = model.init_cache(2), model.init_cache(2)
    a.latent = b.latent = latent
    for t in range(9):
        logits = model.step(idx[:, t], a)
    close(model.prefill(idx, b, subsets=3, tol=0.0), logits)
    for wrong in (dict(idx=idx, subsets=0), dict(idx=idx[:, :0])):
        with pytest.raises(ValueError, match="at least 1"):
            model.prefill(cache=b, **wrong)


def trained_model():
    """A model that 60 steps have taught to go on counting, with jumps: its memory contracts, as a trained one's does."""
    model = random_model(scale=0.0, vocab_size=11, block_size=24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        steps = torch.randint(1, 3, (16, 25), generator=generator)
        text = steps.cumsum(1) % 11
        loss = model(text[:, :-1], text[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.2
    return model


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_task7_prefill_anyhow_is_stepping(weights):
    """At random cuts, lengths, batch sizes, subsets and tolerances: next-token distributions, here and after more steps.
    Random weights need not contract, so there only the bound on sweeps makes it exact."""
    model = trained_model() if weights == "trained" else random_model(scale=1.0, block_size=24)
    rng = np.random.default_rng(0)
    for case in range(25):
        B, T, tol = int(rng.integers(1, 4)), int(rng.integers(2, 80)), 10 ** rng.uniform(-9, -2) if weights == "trained" else 0.0
        cuts = [0, *sorted(rng.choice(np.arange(1, T), size=min(T - 1, rng.integers(4)), replace=False).tolist()), T]
        idx = tokens(model, B, T + 5, seed=case)
        expected = windowed_reference(model, idx).log_softmax(-1)
        cache = model.init_cache(B)
        for a, b in zip(cuts, cuts[1:]):
            S = int(rng.integers(1, 9))
            logits = model.prefill(idx[:, a:b], cache, subsets=S, tol=tol)
            close(logits.log_softmax(-1), expected[:, b - 1], atol=20 * tol + 1e-9)
            assert cache.sweeps <= math.ceil((b - a) / min(S, b - a)) and cache.residual <= tol and cache.pos == b
        for t in range(T, T + 5):
            close(model.step(idx[:, t], cache).log_softmax(-1), expected[:, t], atol=20 * tol + 1e-9)


def test_task7_prompt_longer_than_a_piece():
    """2,000 tokens: pieces of 512, each wider than the window of 13."""
    model = random_model(scale=0.1)
    idx = tokens(model, 1, 2000)
    expected = windowed_reference(model, idx)
    cache = model.init_cache(1)
    close(model.prefill(idx[:, :1999], cache, subsets=4, tol=1e-12), expected[:, 1998], atol=1e-9)
    close(model.step(idx[:, 1999], cache), expected[:, 1999], atol=1e-9)
    assert cache.k[0].shape == model.init_cache(1).k[0].shape


def test_task7_prefill_stops_at_its_tolerance():
    model = random_model(scale=0.05, block_size=64)
    idx = tokens(model, 2, 64)
    exact = model.prefill(idx, model.init_cache(2), subsets=64)
    sweeps = []
    for tol in (1e-1, 1e-3, 1e-6):
        cache = model.init_cache(2)
        close(model.prefill(idx, cache, subsets=4, tol=tol), exact, atol=30 * tol)
        assert cache.residual <= tol
        sweeps.append(cache.sweeps)
    assert sweeps == sorted(sweeps) and 1 <= sweeps[0] < sweeps[-1] < 16


def test_task7_plain_prefill_needs_no_sweep():
    model = random_model(lrt=False)
    idx = tokens(model, 2, 30)
    cache = model.init_cache(2)
    close(model.prefill(idx, cache), windowed_reference(model, idx)[:, -1])
    assert cache.sweeps == 0 and cache.pos == 30


def test_task7_greedy_text_is_the_definition():
    model = random_model()
    idx = prompt = tokens(model, 2, 3)
    text = torch.stack(list(model.generate(prompt, 10, temperature=0)), 1)
    for _ in range(10):
        idx = torch.cat([idx, model.forward_sequential(idx)[0][:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(text, idx[:, 3:]), f"{text.tolist()}, expected {idx[:, 3:].tolist()}"


def test_task7_generate_options():
    model = random_model()
    prompt = tokens(model, 3, 4)
    draw = lambda seed, **k: torch.stack(list(model.generate(prompt, 30, generator=torch.Generator().manual_seed(seed), **k)), 1)
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1, top_k=1), draw(2, temperature=0))
    assert draw(1).shape == (3, 30)


# ---- Sizes ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("proj", ["shared", "layerwise"])
def test_parameter_counts(proj):
    C, L, H, V = 16, 3, 2, 11
    plain = 2 * V * C + L * (12 * C * C) + 2 * L
    assert sum(p.numel() for p in random_model(lrt=False).parameters()) == plain
    extra = L + L * 2 * H * C + 2 * C * C * (L if proj == "layerwise" else 1)
    assert sum(p.numel() for p in random_model(memory_proj=proj).parameters()) == plain + extra


@pytest.mark.parametrize("wrong", [dict(n_layer=0), dict(n_embd=10), dict(n_head=3), dict(dropout=1.0), dict(memory_layer=4),
                                   dict(memory_layer=0), dict(memory_proj="both"), dict(vocab_size=2.5), dict(lrt=2)])
def test_impossible_configurations_are_named(wrong):
    with pytest.raises(ValueError, match="n_embd" if "n_head" in wrong else next(iter(wrong))):
        random_model(**wrong)


# ---- Mutants: wrong versions of lrt.py, and that the tests above see it --------------------------------------------------

MUTANTS = [         # (what is wrong, function, its text, the wrong text)
    ("memory shifted by 0", "shift_right", "torch.cat([first[:, None], h[:, :-1]], dim=1)", "h"),
    ("memory shifted by 2", "shift_right", "h[:, :-1]", "first[:, None], h[:, :-2]"),
    ("memory from the wrong layer", "GPT.layers", "i == self.memory_index", "i == 0"),
    ("memory not normed", "GPT.layers", "norm(state)", "state"),
    ("memory detached between passes", "GPT.refine", "m = buffer.state[s - 1]", "m = buffer.state[s - 1].detach()"),
    ("memory detached in the definition", "GPT.forward_sequential", "attend, m)", "attend, None if m is None else m.detach())"),
    ("memory stale in later subsets", "GPT.refine", "buffer.h[s], buffer.state[s] =", "buffer.h[s], _ ="),
    ("memory of the next subset", "GPT.refine", "buffer.state[s - 1] if s", "buffer.state[s] if s"),
    ("keys not written back", "GPT.refine", "buffer.k[i][s], buffer.v[i][s] = k, v", "buffer.v[i][s] = v"),
    ("values not written back", "GPT.refine", "buffer.k[i][s], buffer.v[i][s] = k, v", "buffer.k[i][s] = k"),
    ("buffer detached", "GPT.refine", "= k, v", "= k.detach(), v.detach()"),
    ("positions of the first subset for all", "GPT.refine", "buffer.rope[s]", "buffer.rope[0]"),
    ("local gate ignored", "Block.qkv", "local * kv.", "kv."),
    ("gates swapped", "Block.qkv", "local, mem =", "mem, local ="),
    ("memory gate ignored", "Block.qkv", "mem, u", "torch.ones_like(mem), u"),
    ("gamma ignored", "GPT.layers", "self.gamma[:, None, None, None], m", "0 * self.gamma[:, None, None, None], m"),
    ("U_k and U_v swapped", "GPT.layers", "[F.linear(m, pair) for pair in pairs]", "[F.linear(m, pair.roll(m.size(-1), 0)) for pair in pairs]"),
    ("first pair of U for all layers", "GPT.layers", "u[i % len(u)]", "u[0]"),
    ("mask lets one later position in", "GPT.fill", ".tril()", ".tril(1)"),
    ("window of a long prompt too wide", "GPT.fill", "triu(1 - W)", "triu(-W)"),
    ("subset sees itself one place too early", "GPT.fill", "split(mask, S, dim=0)", "split(mask.roll(-1, 0), S, dim=0)"),
    ("one sweep too few", "GPT.forward", "range(K)", "range(K - 1)"),
    ("last subset left out", "GPT.forward", "range(S)", "range(max(1, S - 1))"),
    ("loss averaged over positions, not passes", "GPT.forward", "S if k else 1", "1"),
    ("loss weights ignored", "GPT.forward", "w * cross_entropy", "cross_entropy"),
    ("ignored targets counted", "cross_entropy", "targets >= 0", "targets >= -1"),
    ("rotary position restarts in a step", "GPT.step", "cache.rope[:, slot:slot + 1]", "cache.rope[:, :1]"),
    ("rotary table of the first lap for ever", "GPT.step", "if slot == 0 or cache.rope is None", "if cache.rope is None"),
    ("step keeps the old latent", "GPT.step", "cache.latent = state[:, 0]", "pass"),
    ("step sees a key too many", "GPT.step", "min(cache.pos + 1, W)", "min(cache.pos + 2, W)"),
    ("new sequence, old cache", "GPT.init_cache", "return Cache(self.config, batch_size, self.projections())",
     "return self.__dict__.setdefault('old', Cache(self.config, batch_size, self.projections()))"),
    ("latent dropped after the prompt", "Cache.extend", "merge(buffer.state, dim=1)[:, T - 1]", "torch.zeros_like(self.latent)"),
    ("latent of a padding position", "Cache.extend", "merge(buffer.state, dim=1)[:, T - 1]", "merge(buffer.state, dim=1)[:, -1]"),
    ("prompt starts without the latent", "GPT.refine", "shift_right(buffer.state[-1], buffer.latent)", "shift_right(buffer.state[-1])"),
    ("prompt ignores a latent before the first token", "GPT.fill", "if cache and self.config.lrt", "if start and self.config.lrt"),
    ("window one position too wide", "Cache.past", "< W", "<= W"),
    ("prefill one sweep too short", "GPT.prefill", "S * sweeps) < T and", "S * sweeps + S) < T and"),
    ("prefill looks at the wrong residual", "GPT.prefill", "not residual <= tol", "not residual <= 1000 * tol + 0.01"),
]

KILLERS = [         # quick tests, with arguments, in the order in which they are tried
    lambda: test_task1_shift_right(),
    lambda: test_task2_keys_and_values_with_memory(True, True),
    *[lambda name=name: test_task3_definition_is_the_equations(name) for name in CONFIGS],
    lambda: test_task3_definition_is_differentiable_through_time(),
    lambda: test_task4_steps_are_the_definition("shared", 2, 13),
    lambda: test_task4_steps_slide_over_the_last_block(True),
    lambda: test_task4_sequences_do_not_see_each_other(),
    lambda: test_task5_refining_all_positions_in_turn_is_the_definition("shared"),
    lambda: test_task5_one_subset_pass(3),
    lambda: test_task6_causality(True),
    lambda: test_task6_dial_at_S_equals_T_is_the_definition("shared", 2, 13),
    lambda: test_task6_exact_prefix_is_as_long_as_predicted_and_no_longer("shared", 13),
    lambda: test_task6_loss_is_one_mean_for_each_pass(3, 2),
    lambda: test_task6_targets_of_minus_one_do_not_count(),
    lambda: test_task6_gradients_go_through_every_pass(),
    lambda: test_task7_prefill_in_pieces_is_stepping("shared", [5, 8, 1, 20, 11]),
    lambda: test_task7_prefill_stops_at_its_tolerance(),
    lambda: test_task7_prefill_starts_from_the_latent_it_is_given(),
]


def with_mutant(function, right, wrong):
    """lrt with one function's text changed: (object, name, changed function)."""
    owner = lrt
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(right) == 1, f"{function} has {source.count(right)} places {right!r}"
    namespace = {}
    exec(source.replace(right, wrong), vars(lrt), namespace)
    return owner, name, namespace[name]


def killed_by(monkeypatch, mutant, first_only=True):
    """Names of the tests that fail with the mutant in place."""
    killers = []
    with monkeypatch.context() as patch:
        patch.setattr(*with_mutant(*mutant[1:]))
        for test in KILLERS:
            try:
                test()
            except (Exception, pytest.fail.Exception):      # the latter is not one of the former
                killers.append(test.__code__.co_names[0])
            if killers and first_only:
                break
    return list(dict.fromkeys(killers))


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="mutants are of lrt.py")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_rejected(monkeypatch, mutant):
    assert killed_by(monkeypatch, mutant)


# ---- The handout ---------------------------------------------------------------------------------------------------------

def handout():
    """lrt.py with the bodies of the exercises replaced; signatures and docstrings stay."""
    source = (HERE / "lrt.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    functions = {}
    for node in ast.parse(source).body:
        functions[getattr(node, "name", None)] = node
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            functions[f"{node.name}.{getattr(method, 'name', None)}"] = method
    bodies = [(functions[name].body[1:], n, what) for n, (name, what) in enumerate(EXERCISES, 1)]   # body[0]: docstring
    for body, n, what in sorted(bodies, key=lambda b: -b[0][0].lineno):
        indent = " " * body[0].col_offset
        lines[body[0].lineno - 1:body[-1].end_lineno] = [f'{indent}raise NotImplementedError("task {n}: {what}")']
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="made from lrt.py")
def test_handout_leaves_out_just_the_exercises():
    original, blanked = (HERE / "lrt.py").read_text(encoding="utf-8"), handout()
    assert blanked.count("raise NotImplementedError") == len(EXERCISES) >= 5
    for n, (name, _) in enumerate(EXERCISES, 1):
        assert any(f.startswith(f"test_task{n}_") for f in globals())
        code = compile(blanked, "student.py", "exec")
    assert set(blanked.splitlines()) - set(original.splitlines()) == {l for l in blanked.splitlines() if "NotImplementedError" in l}
    student = type(lrt)("student")
    sys.modules["student"] = student
    exec(code, vars(student))
    for n, (name, _) in enumerate(EXERCISES, 1):
        owner = student
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner.__doc__
        with pytest.raises(NotImplementedError, match=f"task {n}"):
            inspect.unwrap(owner)(*[None] * sum(p.default is p.empty for p in inspect.signature(owner).parameters.values()))
    del sys.modules["student"]


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="about lrt.py")
def test_readme_maps_lrt_as_it_is():
    table = re.findall(r"^\| `([\w.]+)` \| (\d+)–(\d+) \|.*\| (\d?) \|$", (HERE / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    for name, first, last, _ in table:
        lines, start = inspect.getsourcelines(inspect.unwrap(functools.reduce(getattr, name.split("."), lrt)))
        assert (name, int(first), int(last)) == (name, start, start + len(lines) - 1)
    assert {(name, exercise) for name, _, _, exercise in table if exercise} == {(name, str(n)) for n, (name, _) in enumerate(EXERCISES, 1)}


# ---- Data --------------------------------------------------------------------------------------------------

TEXT = "".join(f"SPEAKER {i % 7}:\nThe {i * 37 % 101} words of line {i}, naïvely counted — "
               f"{'lo ' * (i % 5)}end.\n\n" for i in range(120))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.mark.parametrize("tokenizer", ["char", "bpe:40"])
def test_prepared_text_comes_back(here, tokenizer):
    prepare_data.prepare("mine", tokenizer, "text.txt")
    meta, codec, tokens = prepare_data.load("mine")
    cut = int(len(TEXT) * 0.9)
    assert codec.decode(tokens["train"].tolist()) == TEXT[:cut]
    assert codec.decode(tokens["val"].tolist()) == TEXT[cut:]
    decode = codec.decoder()
    assert "".join(decode(t) for t in tokens["val"].tolist()) == TEXT[cut:]
    assert meta["train_tokens"] == len(tokens["train"]) and meta["vocab_size"] == codec.vocab_size
    assert codec.vocab_size == (len(set(TEXT)) if tokenizer == "char" else 256 + 40)


def test_bpe_learns_from_the_training_split_alone_and_encodes_anything(here):
    cut = int(len(TEXT) * 0.9)
    other = TEXT[:cut] + "QXQX" * ((len(TEXT) - cut) // 4)
    Path("other.txt").write_text(other, encoding="utf-8", newline="\n")
    prepare_data.prepare("a", "bpe:40", "text.txt")
    prepare_data.prepare("b", "bpe:40", "other.txt")
    a, b = (prepare_data.load(name)[0]["codec"] for name in "ab")
    assert a["tokens"] == b["tokens"]
    strange = "tab\t_under_ 12½ ٣ x\u0301 日本 \u200d\x1c\x85 🙂\n\n  end  "
    codec = prepare_data.Codec(a)
    assert codec.decode(codec.encode(strange)) == strange
    first = prepare_data.bpe_codec("ab ab abc", 2)["tokens"][256:]    # the commonest pair, then the next
    assert [prepare_data.base64.b64decode(t) for t in first] == [b"ab", b" ab"]


class Server:
    """What urlopen returns; without data, what it does with no network."""
    def __init__(self, data): self.data = data
    def __call__(self, url, timeout):
        if self.data is None:
            raise OSError("no network")
        return io.BytesIO(self.data)


@pytest.mark.parametrize("data", [None, b"<html>not the file</html>", b"x" * 3_000_000])
def test_embedded_corpus_when_the_download_fails_or_is_another_file(here, monkeypatch, capsys, data):
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(data))
    prepare_data.prepare()
    err = capsys.readouterr().err
    assert "EMBEDDED CORPUS" in err and ("no network" if data is None else "sha256") in err
    meta, _, tokens = prepare_data.load("shakespeare")
    assert meta["source"].startswith("embedded") and len(tokens["train"]) > 300_000


def test_download_is_kept_for_other_tokens(here, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "SHAKESPEARE_SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(TEXT.encode()))
    prepare_data.prepare()
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(None))
    prepare_data.prepare(tokenizer="bpe:10")
    meta, codec, tokens = prepare_data.load("shakespeare")
    assert meta["tokenizer"] == "bpe:10" and meta["source"] == prepare_data.SHAKESPEARE_URL
    assert codec.decode(tokens["val"].tolist()) == TEXT[int(len(TEXT) * 0.9):]
    Path("data/shakespeare/input.txt").write_text("somebody's own text", encoding="utf-8")
    prepare_data.prepare()
    assert "EMBEDDED CORPUS" in capsys.readouterr().err


def test_whatever_looking_can_raise_ends_in_one_line(here, capsys):
    """A folder one may not enter, a name that is too long, a NUL, somebody without a home; but no mistake."""
    denied = PermissionError(errno.EACCES, "Permission denied", "secret/last.pt")
    def looking(look):
        @prepare_data.script
        def main(argv):
            look()
        return type("module", (), {"main": main})
    def deny():
        raise denied
    for look, named in ((deny, "secret/last.pt: Permission denied"), (lambda: os.stat("x" * 300), "too long"),
                        (lambda: open("a\0b"), "null"),
                        (lambda: Path("~no-such-user/x").expanduser(), "home")):
        assert named in ends_in_one_line(looking(look), [], capsys)
    with pytest.raises(ValueError):
        run(looking(lambda: int("x")))


@dataclasses.dataclass
class SomeSettings:
    max_iters: int = prepare_data.option(10, "5% of all", (1, 1000))
    min_lr: float = prepare_data.option(0.0, "any number")
    lrt: int = prepare_data.option(0, "on or off", [0, 1])
    lrt_sweeps: int = prepare_data.option(1, "some")
    lrt_mode: str = prepare_data.option("parallel", "how", ["parallel", "sequential"])
    n_layer: int = prepare_data.option(2, "layers", (1, 100))
    out_dir: str = prepare_data.option("out", "where")


def test_settings_carry_their_range_and_help(capsys):
    parse = functools.partial(prepare_data.parse, SomeSettings, "what it is")
    assert parse([]) == (SomeSettings(), ()) and parse([], n_layer=5)[0] == SomeSettings(n_layer=5)
    assert parse(["--lrt=True", "--min_lr", "-1.5", "--n_layer=3", "--out_dir=True"], n_layer=5) == (
        SomeSettings(lrt=1, min_lr=-1.5, n_layer=3, out_dir="True"), ("lrt", "min_lr", "n_layer", "out_dir"))
    with pytest.raises(SystemExit):
        parse(["-h"], n_layer=7)
    out = " ".join(capsys.readouterr().out.split())
    for text in ("what it is", "5% of all (a whole number from 1 to 1,000; default: 10)", "default: 7",
                 "how (parallel or sequential; default: parallel)"):
        assert text in out
    for arg, message in {
            "--max_iters=0": "=0: must be a whole number from 1 to 1,000", "--max_iters=1.5": "must",
            "--min_lr=nan": "nan: must be a number", "--min_lr=inf": "be a number", "--min_lr=": "must",
            "--lrt=2": "=2: must be 0 or 1", "--lrt=maybe": "must be 0 or 1", "--max_iters=" + "9" * 5000: "",
            "--lrt_mode=x": "must be parallel or sequential", "--lrt": "--lrt: expected one argument",
            "--steps=3": "did you mean --max_iters?", "--epochs": "--max_iters?", "--n_layers=3": "n_layer?",
            "--max-iters=3": "--max_iters?", "out": "no out (did you mean --out_dir?", "lrt=1": "mean --lrt?",
            "--lr=0.1": "lr;", "--init_from=x": "from;", "--dim=3": "dim;", "--top_k=3": "top_k;"}.items():
        with pytest.raises(SystemExit):
            parse([arg])
        err = capsys.readouterr().err
        assert message in err and err.startswith("error: ") and err.count("\n") == 1, (arg, err)


def test_folder_has_one_owner_until_its_process_dies(here, capsys):
    code = "import prepare_data; prepare_data.own('run', '--x'); print('ok', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(HERE)})
    assert holder.stdout.readline().strip() == b"ok"
    with pytest.raises(SystemExit):
        prepare_data.own("run", "--out_dir")
    message = "error: run is in use by another run; wait for it or use another --out_dir\n"
    assert capsys.readouterr().err == message
    holder.kill()
    holder.wait()
    with prepare_data.own("run", "--out_dir"):
        with pytest.raises(SystemExit):
            prepare_data.own("run", "--out_dir")
    prepare_data.own("run", "--out_dir").close()


def test_data_are_prepared_once_and_read_whole(here, monkeypatch, capsys):
    """Two first runs at once: one prepares, the other waits for it. A reader waits for who replaces."""
    downloads = []
    def slow_download(*args, **kwargs):
        downloads.append(args)
        time.sleep(1.5)
        raise OSError("no network")
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", slow_download)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(prepare_data.load, ["shakespeare"] * 2)
        assert len(downloads) == 1 and first[0] == second[0]
        assert capsys.readouterr().err.count("waiting for") == 1
        with prepare_data.own("data/shakespeare", "--dataset"):
            reading = pool.submit(prepare_data.load, "shakespeare")
            time.sleep(0.3)
            assert not reading.done()
            for path in Path("data/shakespeare").glob("*.bin"):
                path.write_bytes(bytes(20))
            meta = {**first[0], "train_tokens": 10, "val_tokens": 10, "source": "new"}
            Path("data/shakespeare/meta.json").write_text(json.dumps(meta), encoding="utf-8")
        assert reading.result()[0]["source"] == "new" and len(reading.result()[2]["val"]) == 10
    prepare_data.prepare("shakespeare", input="text.txt")               # by hand it is replaced
    assert prepare_data.load("shakespeare")[0]["source"] == "file: text.txt"
    assert "replaced" in capsys.readouterr().err


SCRIPTS = ["हिन्दी", "ภาษาไทย", "العَرَبِيَّة", "עִבְרִית",
           "தமிழ்", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한국어",
           "👩\u200d🚀", "e\u0301te\u0301", "٣٤٥", "a\u200bb", "a\ufeffb", "a\u180eb", "a\u0378b", "a\ue000b",
           "ὀδύσσεια", "日本語", "Việt", "naïve", "a\u0308\u0323"]


@pytest.mark.parametrize("word", SCRIPTS)
def test_learned_word_is_one_token_in_every_script(word):
    codec = prepare_data.Codec(prepare_data.bpe_codec(f"{word} " * 100, 100))
    assert len(codec.encode(word)) == len(codec.encode(f" {word}")) == 1
    assert codec.decode(codec.encode(word)) == word


def test_learning_and_encoding_cut_alike():
    """Nothing is left out by the cut; and each piece of it, as a token, is what encoding finds."""
    everything = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xd800 <= c <= 0xdfff)
    words = prepare_data.WORDS
    assert re.sub(words, "", everything) == ""
    text = " ".join(SCRIPTS) + "  two \n\n\t three" + "x" * 100 + " " * 100 + "9" * 70 + "-" * 70
    text += "\x1c\x85 \u3000 "
    text += "".join(f"a{c}{c}b{c} {c}5" for c in map(chr, [*range(0x400), *range(0x2000, 0x2070)]))
    pieces = [p.encode() for p in re.findall(words, text)]
    tokens = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *pieces]))
    encoded = [prepare_data.base64.b64encode(token).decode() for token in tokens]
    codec = prepare_data.Codec({"kind": "bpe", "pattern": "words", "tokens": encoded})
    assert [tokens[t] for t in codec.encode(text)] == pieces
    ascii_text = "".join(map(chr, np.random.default_rng(0).choice([9, 10, 13, *range(32, 127)], 20_000)))
    plain = r" ?[A-Za-z]+| ?[0-9]+| ?[^A-Za-z0-9\s]+|\s+(?!\S)|\s+"      # as GPT-2's, without its 's and 'll
    assert re.findall(words, ascii_text) == re.findall(plain, ascii_text)


@pytest.mark.parametrize("alphabet", ["ACGT", "abcdefghijklmnopqrstuvwxyz", " ", "-"])
def test_one_line_without_a_space_takes_no_time(alphabet):
    line = "".join(np.random.default_rng(0).choice(list(alphabet), 100_000))
    start = time.process_time()
    codec = prepare_data.Codec(prepare_data.bpe_codec(line, 200))
    assert codec.decode(codec.encode(line)) == line and time.process_time() - start < 3
    assert max(map(len, re.findall(prepare_data.WORDS, line))) <= 33


def test_bpe_learns_what_counting_anew_learns():
    """Each merge from scratch: all pairs of all words counted, the most frequent one joined everywhere."""
    text = "aaa aaaa abab ababa banana bandana " * 3 + TEXT[:1500]
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(prepare_data.WORDS, text)]
    merged = []
    for _ in range(60):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged.append(a + b)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i:i + 2] = [a + b]
                i += 1
    learned = prepare_data.bpe_codec(text, 60)["tokens"][256:]
    assert [prepare_data.base64.b64decode(token) for token in learned] == merged


def test_text_that_is_too_short_to_validate_is_refused(here, capsys):
    """Also when the validation split has two characters, but is one token."""
    Path("short.txt").write_text("ab" * 10, encoding="utf-8")
    Path("shorter.txt").write_text("abc", encoding="utf-8")
    assert "2 tokens" in ends_in_one_line(prepare_data, ["--input=short.txt", "--tokenizer=bpe:1"], capsys)
    assert "2 tokens" in ends_in_one_line(prepare_data, ["--input=shorter.txt"], capsys)
    assert not Path("data").exists()
    prepare_data.prepare("mine", input="text.txt")
    meta = json.loads(Path("data/mine/meta.json").read_text(encoding="utf-8"))
    Path("data/mine/val.bin").write_bytes(b"\1\0")
    Path("data/mine/meta.json").write_text(json.dumps({**meta, "val_tokens": 1}), encoding="utf-8")
    with pytest.raises(SystemExit):
        prepare_data.load("mine")
    assert "needs two" in capsys.readouterr().err


def test_text_is_named_after_its_file(here, capsys):
    for file, name in (("my text (1).txt", "my-text-1"), ("../x/.hidden.txt", "hidden"), ("日本.txt", "text"),
                       ("parity.txt", "parity-text")):
        path = Path("files", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one line " * 20, encoding="utf-8-sig")     # with a mark at its start, as on Windows
        assert run(prepare_data, f"--input={path}") == 0
        err = capsys.readouterr().err
        assert f"python train.py --dataset={name}\n" in err and "vocabulary of 6" in err, err
        assert prepare_data.load(name)[0]["tokenizer"] == "char"
        assert prepare_data.load(name)[1].start() == [0]                # " ": there is no line break
    prepare_data.prepare("mine", "bpe:5", "text.txt")
    codec = prepare_data.load("mine")[1]
    assert codec.decode(codec.start()) == "\n" and codec.start() == codec.encode("\n")


def test_commands_can_be_pasted(monkeypatch):
    words = ["python", "train.py", "--out_dir=my run", Path("a/b")]
    assert prepare_data.command(*words) == "python train.py '--out_dir=my run' a/b"
    monkeypatch.setattr(prepare_data.os, "name", "nt")
    assert prepare_data.command(*words[:3], r"C:\out") == r'python train.py "--out_dir=my run" C:\out'


# ---- Tasks -------------------------------------------------------------------------------------------------

def test_task_targets_are_what_they_say():
    """A row at a time: bits counted, and objects carried from place to place."""
    rng = np.random.default_rng(0)
    x, y = prepare_data.task_rows("parity", 20, 33, rng)
    assert all(y[r, t] == sum(x[r, :t + 1]) % 2 for r in range(20) for t in range(33))
    assert set(x.flat) == {0, 1}
    x, y = prepare_data.task_rows("swaps", 20, 33, rng)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    for row, targets in zip(x.tolist(), y.tolist()):
        objects = list("abcde")
        for operation, target in zip(row, targets):
            if operation:
                i, j = pairs[operation - 1]
                objects[i], objects[j] = objects[j], objects[i]
            smaller = [sum(other < o for other in objects[k + 1:]) for k, o in enumerate(objects)]
            rank = sum(n * math.factorial(4 - k) for k, n in enumerate(smaller))        # of a permutation
            assert target == rank
    assert set(x.flat) == set(range(11)) and len(set(y.flat)) > 100


def test_task_has_no_more_inputs_than_it_was_trained_on():
    codec = prepare_data.Codec({"kind": "numbers", "count": 120, "inputs": 11})
    assert codec.encode("0 10") == [0, 10] and codec.decode([119]) == "119 "
    for text in ("1 11", "1011", "1 x", "-1", "1,0"):
        with pytest.raises(ValueError, match="no token for .*0 to 10, with spaces between"):
            codec.encode(text)


def test_task_rows_are_different_and_seeded(here):
    read = lambda: prepare_data.load("parity")[2]
    prepare_data.prepare("parity", length=9, rows=200)
    data = read()
    train_rows, val_rows = ({tuple(row) for row in data[name].tolist()} for name in ("train", "val"))
    assert len(train_rows) == 180 and len(val_rows) == 20 and not train_rows & val_rows
    first = data["train"].copy()
    prepare_data.prepare("parity", length=9, rows=200)
    assert np.array_equal(first, read()["train"])
    prepare_data.prepare("parity", length=9, rows=200, seed=1)
    assert not np.array_equal(first, read()["train"])


SMALL_TASK = "--dataset=parity --n_layer=1 --n_head=2 --n_embd=48 --batch_size=32 --eval_interval=20 --device=cpu --lrt=1".split()


def test_task_is_learned_exactly_and_reported_by_length(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_mode=sequential", "--max_iters=60", "--curriculum=2:10") == 0
    out, log = capsys.readouterr().out, rows("out")
    assert "% at 8, " in out
    assert out.endswith("$ python sample.py --out_dir=out '--prompt=1 0 1 1' --device=cpu\n1 1 0 1\n")
    assert [row["tokens"] for row in log] == [32 * (2 * 10 + 8 * (n - 10)) for n in (20, 40, 60)]
    assert list(log[-1]["accuracy_by_length"]) == ["8", "16", "32", "64", "128"] and log[-1]["val_accuracy_exact"] > 0.9
    model, codec, _ = sample.load_checkpoint(Path("out/last.pt"), "cpu")
    x, y = prepare_data.task_rows("parity", 256, 128, np.random.default_rng((1337, 60)))
    right = model.forward_sequential(torch.from_numpy(x))[0].argmax(-1).numpy() == y
    assert log[-1]["accuracy_by_length"]["128"] == pytest.approx(right[:, 115:].mean(), abs=1e-3)
    assert run(sample, "--prompt=1 0 1 1 0 1") == 0
    assert capsys.readouterr().out.split() == ["1", "1", "0", "1", "1", "0"]


def test_verdict_follows_the_answers_and_its_threshold():
    def verdict(exact, graph, **accuracies):
        return train.verdict({"val_loss_exact": exact, "val_loss": graph, **accuracies})
    assert "agree" in verdict(1.528, 1.5) and "DISAGREE" not in verdict(1.528, 1.5)
    assert "DISAGREE" in verdict(1.56, 1.5) and "0.05" in verdict(1.56, 1.5) and "better" in verdict(1.44, 1.5)
    assert "better" in verdict(2.0, 1.5, val_accuracy_exact=0.68, val_accuracy=0.649)   # never against the answers
    assert "DISAGREE" in verdict(1.0, 1.5, val_accuracy_exact=0.6, val_accuracy=0.649)


def test_task_run_says_that_decoding_disagrees_with_training(here, capsys):
    """After training on the last sweep alone, S = 1: what the first pass leaves behind is not there when decoding."""
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_subsets=1", "--lrt_loss_weights=0,1", "--max_iters=60") == 0
    row = min(rows("out"), key=train.badness)
    assert row["val_accuracy"] > row["val_accuracy_exact"] + 0.02
    assert "THEY DISAGREE" in capsys.readouterr().out


# ---- The scripts -------------------------------------------------------------------------------------------------

SMALL = ("--dataset=mine --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 --batch_size=4 --max_iters=6 --eval_interval=3 "
         "--log_interval=2 --device=cpu").split()


def run(module, *args):
    """A script's main() in this process; its exit status."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        module.main(list(args))
    except SystemExit as e:
        return e.code
    finally:                                    # as when a process ends
        for n, handler in handlers.items():
            signal.signal(n, handler)
        while prepare_data.HELD:
            prepare_data.HELD.pop().close()
    return 0


def rows(folder):
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder):
    return torch.load(Path(folder, "last.pt"), weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_command_line_from_text_to_text(here):
    """As a user would: three commands, each a process of its own."""
    def command(script, *args):
        done = subprocess.run([sys.executable, HERE / script, *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert done.returncode == 0, done.stderr
        return done.stdout
    command("prepare_data.py", "--dataset=mine", "--input=text.txt")
    out = command("train.py", "--lrt=1", *SMALL)
    assert "100%" in out and "exact - training graph" in out
    log = rows("out")
    assert [row["iter"] for row in log] == [3, 6] and log[0]["val_loss_exact"] < math.log(60)
    assert set(log[0]) == {"iter", "tokens", "flops", "seconds", "train_loss", "val_loss", "val_loss_exact",
                           "val_bpb_exact", "val_tokens"} and len(json.dumps(log[0])) < 200
    positions = [row["by_position"] for row in torch.load("out/last.pt", weights_only=True)["rows"]]
    assert [len(p) for p in positions] == [16, 16]
    assert np.mean(positions[1]) == pytest.approx(log[1]["val_loss_exact"], abs=0.01)
    text = command("sample.py", "--prompt=The ", "--max_new_tokens=40", "--num_samples=2")
    assert text.startswith("The ") and text.count("The ") >= 2 and "---" in text
    assert command("sample.py", "--max_new_tokens=40") == command("sample.py", "--max_new_tokens=40")


@pytest.mark.parametrize("flags", [["--lrt=0"], ["--lrt=1", "--lrt_mode=sequential"], ["--lrt=1", "--lrt_subsets=4", "--lrt_sweeps=2"],
                                   ["--lrt=1", "--lrt_loss_weights=0.5,1"], ["--lrt=1", "--lrt_memory_layer=1", "--dropout=0.2"],
                                   ["--lrt=1", "--lrt_memory_proj=layerwise", "--gradient_accumulation_steps=2"],
                                   ["--lrt=1", "--dtype=bfloat16"]])
def test_trains_in_every_mode(here, flags):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, *flags) == 0
    row = rows("out")[-1]
    assert row["val_loss_exact"] < 4.2 and abs(row["val_loss_exact"] - row["val_loss"]) < 0.1
    assert row["val_bpb_exact"] == pytest.approx(row["val_loss_exact"] / math.log(2) * 1, rel=0.05)


def test_sequential_training_is_the_dial_at_S_equals_T(here):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--lrt_mode=sequential", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--lrt_subsets=16", "--lrt_loss_weights=0,1", "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss_exact"] == pytest.approx(b["val_loss_exact"], abs=1e-4)


def test_evaluation_covers_the_split_and_stands_apart(here, monkeypatch):
    """The same whatever the batch size; equal to decoding the windows one by one; training does not notice it."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--eval_interval=1", "--out_dir=b") == 0
    assert same(weights("a"), weights("b"))
    model, codec, _ = sample.load_checkpoint(Path("a/last.pt"), "cpu")
    val = prepare_data.load("mine")[2]["val"]
    text = torch.from_numpy(val.astype(np.int64))
    nll = []
    for start in range(0, len(text) - 1, 16):
        x, y = text[start:start + 16][None], text[start + 1:start + 17][None]
        logits, _ = model.eval().forward_sequential(x[:, :y.size(1)])
        nll += torch.nn.functional.cross_entropy(logits[0], y[0], reduction="none").tolist()
    assert len(nll) == len(val) - 1
    assert rows("a")[-1]["val_loss_exact"] == pytest.approx(np.mean(nll), abs=1e-5)
    n_bytes = len(codec.decode(val[1:].tolist()).encode())
    assert rows("a")[-1]["val_bpb_exact"] == pytest.approx(sum(nll) / math.log(2) / n_bytes, abs=1e-5)


KILLER = """
import os, random, sys
import prepare_data, torch, train

moments, random_number = [0], random.Random(int(sys.argv[1]))
last = random_number.randrange(1, 30)

def moment(f):
    def counted(*args, **named):            # a call of f is two moments: before it, and after it
        for when in range(2):
            moments[0] += 1
            if moments[0] == last:
                os._exit(9)                 # as sudden as kill -9: nothing is flushed or tidied up
            if when == 0:
                result = f(*args, **named)
        return result
    return counted

def save_half(state, f):                    # a checkpoint is being written
    save(state, f)
    moments[0] += 1
    if moments[0] == last:
        f.truncate(f.tell() // 2)
        f.flush()
        os._exit(9)

save, torch.save = torch.save, save_half
train.batch, os.fsync, os.replace = moment(train.batch), moment(os.fsync), moment(os.replace)
train.main(sys.argv[2:])
"""


def test_run_killed_at_random_moments_is_the_same_run(here):
    """Between steps and in the middle of writing a file. Then resumed, or begun again where there is nothing to resume."""
    prepare_data.prepare("mine", "char", "text.txt")
    flags = [*SMALL, "--lrt=1", "--dropout=0.1", "--max_iters=40", "--eval_interval=3"]
    assert run(train, *flags, "--out_dir=a") == 0
    kills = 0
    for seed in range(40):
        args = ["--resume=b"] if Path("b/last.pt").exists() else [*flags, "--out_dir=b"]
        done = subprocess.run([sys.executable, "-c", KILLER, str(seed), *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
        assert done.returncode in (0, 9), done.stderr
        kills += done.returncode == 9
        if Path("b/best.pt").exists():
            sample.load_checkpoint(Path("b/best.pt"), "cpu")        # whole at any moment
        if kills == 5 or done.returncode == 0:
            break
    assert kills >= 3
    if done.returncode:
        assert run(train, "--resume=b") == 0
    assert same(weights("a"), weights("b"))
    strip = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    assert strip(rows("a")) == strip(rows("b"))
    state = lambda folder: torch.load(Path(folder, "last.pt"), weights_only=True)["optimizers"]
    assert str(state("a")) == str(state("b"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["batch", "windows"])
def test_told_to_stop_it_saves_and_says_how_to_go_on(here, capsys, monkeypatch, name, where):
    """Between two steps, and between two batches of an evaluation, which is then made up for."""
    if not hasattr(signal, name):
        pytest.skip("not on this system")
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--out_dir=a") == 0
    function, calls = getattr(train, where), []
    def interrupted(*args):
        calls.append(1)
        if where == "windows" and len(calls) > 1 or where == "batch" and args[3] == 4:      # one: the estimate
            signal.raise_signal(getattr(signal, name))
        return function(*args)
    monkeypatch.setattr(train, where, interrupted)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=the run") == 128 + getattr(signal, name)
    monkeypatch.undo()
    os.chdir(here)
    assert f"go on with: {prepare_data.command('python', 'train.py', '--resume=the run')}" in capsys.readouterr().out
    last = torch.load("the run/last.pt", weights_only=True)
    assert (last["iter"], len(last["rows"])) == ((5, 1) if where == "batch" else (3, 0))
    assert run(train, "--resume=the run") == 0 and same(weights("a"), weights("the run"))
    assert [row["val_loss_exact"] for row in rows("a")] == [row["val_loss_exact"] for row in rows("the run")]


def test_going_on(here, capsys):
    """Longer, as it was, or from its weights; anything else is refused with what to do."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--out_dir=a") == 0
    capsys.readouterr()
    assert run(train, "--resume=a/last.pt", "--n_embd=16", "--device=cpu") == 0     # its own settings may be repeated
    assert "finished" in capsys.readouterr().out
    assert run(train, "--resume=a", "--max_iters=8") == 0 and [row["iter"] for row in rows("a")] == [3, 6, 8]
    assert "falls over 8 steps" in capsys.readouterr().out
    assert torch.load("a/last.pt", weights_only=True)["settings"]["max_iters"] == 8
    for flags, named in ((["--resume=a", "--max_iters=7"], "less than 8"), (["--resume=a", "--n_embd=32"], "init_from"),
                         (["--resume=a", "--dataset=other"], "init_from"), (["--resume=nowhere"], "no checkpoint"),
                         ([*SMALL, "--out_dir=b", "--init_from=a", "--n_embd=32"], "--n_embd=16"),
                         ([*SMALL, "--out_dir=b", "--init_from=nowhere"], "no checkpoint")):
        assert named in ends_in_one_line(train, flags, capsys)
    assert run(train, *SMALL, "--lrt=1", "--init_from=a/best.pt", "--out_dir=b", "--learning_rate=0") == 0
    assert "u_k.0.weight" in capsys.readouterr().out                            # what a plain GPT does not have
    assert torch.equal(weights("b")["embed.weight"], torch.load("a/best.pt", weights_only=True)["model"]["embed.weight"])
    assert "--lrt=1" in ends_in_one_line(train, [*SMALL, "--init_from=b", "--out_dir=c"], capsys)
    prepare_data.prepare("mine", "bpe:40", "text.txt")
    for flags in (["--resume=a"], [*SMALL, "--init_from=a", "--out_dir=c"]):
        assert "--tokenizer=char" in (err := ends_in_one_line(train, flags, capsys)) and "--tokenizer=bpe:40" in err
    assert not Path("c").exists() and not Path("nowhere").exists()


def test_it_saves_before_the_first_evaluation_and_owns_its_folder(here, capsys, monkeypatch):
    prepare_data.prepare("mine", "char", "text.txt")
    draw, seen = train.batch, []
    def busy(data, s, T, step, *rest):
        if step == 2:
            seen.append(Path("out/last.pt").exists())
            for flags in ([*SMALL, "--overwrite=1"], ["--resume=out"]):
                seen.append(subprocess.run([sys.executable, HERE / "train.py", *flags], capture_output=True, text=True))
        return draw(data, s, T, step, *rest)
    monkeypatch.setattr(train, "batch", busy)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    assert run(train, *SMALL) == 0
    assert seen[0] and all(r.returncode == 2 and "in use" in r.stderr and r.stderr.count("\n") == 1 for r in seen[1:])
    assert [row["iter"] for row in rows("out")] == [3, 6]


def test_long_validation_splits_are_sampled_evenly(here, capsys):
    val = np.arange(1000, dtype=np.uint16)
    def places(most, T=8):
        return [row for x, y in train.windows({"val": val}, T, most, 65, "cpu") for row in x.tolist()]
    assert sum(places(1000), []) == list(range(999)) and places(999) == places(1000)        # all of it, once
    some = places(80)
    assert len(some) == 10 and places(80) == some and all(row == list(range(row[0], row[0] + 8)) for row in some)
    assert {b[0] - a[0] for a, b in zip(some, some[1:])} <= {96, 104} and some[-1][0] >= 880
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--eval_tokens=100") == 0
    assert rows("out")[-1]["val_tokens"] == 96 and "96 tokens" in capsys.readouterr().out


def test_time_left_counts_all_that_is_left(here, capsys, monkeypatch):
    """With steps of 1 s, evaluations of 20 s and a report of 5 s, by a clock that only they move."""
    now, step, evaluate = [0.0], train.Run.step, train.evaluate
    def takes(seconds, function):
        def timed(*args, **named):
            now[0] += seconds(*args, **named)
            return function(*args, **named)
        return timed
    share = lambda model, s, codec, data, *_: (20 if s.lrt else 5) * min(1, s.eval_tokens / 1000)
    monkeypatch.setattr(train, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train.Run, "step", takes(lambda run: 1, step))
    monkeypatch.setattr(train, "evaluate", takes(share, evaluate))
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--max_iters=100", "--eval_interval=40", "--log_interval=10", "--eval_tokens=1000") == 0
    lines = {int(n): int(left) for n, left in re.findall(r"step +(\d+)/.* (\d+) s left", capsys.readouterr().out)}
    assert min(lines) <= 3                                                      # a line soon after the header
    for n, left in lines.items():
        evaluations = sum(n <= at for at in (40, 80, 100))
        assert left == pytest.approx(100 - n + 20 * evaluations + 5, rel=0.03), n


def test_overwrite_leaves_nothing_of_the_old_run_and_bad_numbers_stop_it(here, capsys):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1") == 0
    assert run(train, *SMALL, "--learning_rate=1e9", "--warmup_iters=0", "--overwrite=1") == 2
    err = capsys.readouterr().err
    assert "loss is nan" in err and "smaller --learning_rate" in err
    assert {p.name for p in Path("out").iterdir()} == {".lock", "run.json"}


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24), (3, 40)])
def test_muon_is_torchs(shape):
    """To bfloat16's digits, with momentum and decay, over several steps; two matrices in a stack are two matrices."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)), torch.nn.Parameter(torch.randn(*shape[::-1]))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = train.Muon(ours, lr=0.02, momentum=0.85, weight_decay=0.1)
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
    close(train.orthogonalize(X).double(), U * values[:, None] @ V, atol=2e-5)
    large = values[old > 0.02 * old.norm(dim=1, keepdim=True)]
    assert 0.65 < large.min() and large.max() < 1.2


BAD_INPUT = [       # (script, flags, what the message must name); the folders are made in the test below
    (train, ["--lrt=1", "--n_layers=3"], "n_layers"),
    (train, ["--n_embd=10"], "n_embd"),
    (train, ["--n_head=3"], "head"),
    (train, ["--dropout=1"], "dropout"),
    (train, ["--lrt=2"], "--lrt"),
    (train, ["--block_size=0"], "block_size"),
    (train, ["--block_size=100000"], "block_size"),
    (train, ["--batch_size=0"], "--batch_size"),
    (train, ["--lrt=1", "--lrt_memory_layer=9"], "memory_layer"),
    (train, ["--lrt=1", "--lrt_memory_proj=none"], "memory_proj"),
    (train, ["--lrt=1", "--lrt_subsets=17"], "lrt_subsets"),
    (train, ["--lrt=1", "--lrt_subsets=0"], "lrt_subsets"),
    (train, ["--lrt=1", "--lrt_sweeps=0"], "lrt_sweeps"),
    (train, ["--lrt=1", "--lrt_loss_weights=1,2,3"], "lrt_loss_weights"),
    (train, ["--lrt=1", "--lrt_loss_weights=a,b"], "lrt_loss_weights"),
    (train, ["--lrt=1", "--lrt_loss_weights=1,inf"], "lrt_loss_weights"),
    (train, ["--lrt_mode=exact"], "lrt_mode"),
    (train, ["--lrt=1", "--lrt_mode=sequential", "--lrt_subsets=4"], "lrt_subsets"),
    (train, ["--lrt_sweeps=2"], "--lrt=1"),
    (train, ["--learning_rate=-1"], "learning_rate"),
    (train, ["--learning_rate=nan"], "learning_rate"),
    (train, ["--learning_rate=0.001", "--min_lr=0.01"], "min_lr"),
    (train, ["--max_iters=1.5"], "max_iters"),
    (train, ["--max_flops=inf"], "max_flops"),
    (train, ["--max_flops=10"], "max_flops"),
    (train, ["--seed=-1"], "--seed"),
    (train, ["--seed=99999999999999999999"], "--seed"),
    (train, ["--dtype=float16"], "--dtype"),
    (train, ["--device=gpu"], "--device"),
    (train, ["--device=meta"], "--device"),
    (train, ["--curriculum=4"], "curriculum"),
    (train, ["--curriculum=0:5"], "curriculum"),
    (train, ["--dataset=unknown"], "--dataset"),
    (train, ["--dataset=../mine"], "--dataset"),
    (train, ["--dataset=/mine"], "--dataset"),
    (train, ["--dataset="], "--dataset"),
    (train, ["--dataset=parity", "--block_size=4"], "block_size"),
    (train, ["--dataset=broken"], "broken"),
    (train, ["--dataset=short"], "train.bin"),
    (train, ["--dataset=odd"], "val.bin"),
    (train, ["--dataset=beyond"], "train.bin"),
    (train, ["--dataset=other_codec"], "other_codec"),
    (train, ["--dataset=own_pattern"], "own_pattern"),
    (train, ["--dataset=few_targets"], "few_targets"),
    (train, ["--out_dir=text.txt"], "out_dir"),
    (train, ["--out_dir=text.txt/run"], "out_dir"),
    (train, ["--out_dir="], "out_dir"),
    (train, ["--out_dir=run"], "run"),
    (train, ["--out_dir=~/run"], "run"),
    (train, ["--resume="], "--resume"),
    (train, ["--lrt=1", "--lrt_mode=sequential", "--eval_tokens=0"], "eval_tokens"),
    (prepare_data, ["--input=missing.txt"], "missing.txt"),
    (prepare_data, ["--input=data"], "data"),
    (prepare_data, ["--input="], "no name"),
    (prepare_data, ["--input=empty.txt"], "empty.txt"),
    (prepare_data, ["--input=latin1.txt"], "UTF-8"),
    (prepare_data, ["--tokenizer=bpe:0", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--tokenizer=bpe:99999", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--tokenizer=words", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--dataset=a/b", "--input=text.txt"], "--dataset"),
    (prepare_data, ["--dataset=..", "--input=text.txt"], "--dataset"),
    (prepare_data, ["--dataset=parity", "--input=text.txt"], "name of a task"),
    (train, ["--out_dir=only_best"], "only_best"),
    (prepare_data, ["--dataset=parity", "--length=0"], "--length"),
    (prepare_data, ["--dataset=parity", "--length=5", "--rows=20"], "--rows"),
    (prepare_data, ["--dataset=swaps", "--rows=1"], "--rows"),
    (prepare_data, ["--inputs=text.txt"], "mean --input"),
    (prepare_data, ["--input=" + "x" * 300], "too long"),
    (prepare_data, ["--input=a\0b"], "null"),
    (prepare_data, ["--input=~no-such-user/x"], "home"),
    (prepare_data, ["--dataset=" + "x" * 300, "--input=text.txt"], "--dataset"),
    (sample, ["--out_dir=nowhere"], "no checkpoint"),
    (sample, ["--out_dir=pickled"], "pickled"),
    (sample, ["--out_dir=truncated"], "truncated"),
    (sample, ["--out_dir=flipped"], "flipped"),
    (sample, ["--out_dir=foreign"], "foreign"),
    (sample, ["--out_dir=run", "--prompt=日本"], "日"),
    (sample, ["--out_dir=run", "--prompt="], "--prompt"),
    (sample, ["--out_dir=run", "--prompt=FILE:missing.txt"], "missing.txt"),
    (sample, ["--out_dir=task", "--prompt=1 2"], "'2'"),
    (sample, ["--out_dir=run", "--temperature=-1"], "--temperature"),
    (sample, ["--out_dir=run", "--num_samples=0"], "--num_samples"),
    (sample, ["--out_dir=run", "--max_new_tokens=0"], "--max_new_tokens"),
    (sample, ["--out_dir=run", "--seed=-1"], "--seed"),
    (sample, ["--out_dir=run", "--prefill=fast"], "--prefill"),
    (sample, ["--out_dir=run", "--top_k=x"], "--top_k"),
    (sample, ["--out_dir=run", "--block_size=64"], "block_size"),
]


def all_files():
    return {p: p.read_bytes() for p in sorted(Path(".").rglob("*")) if p.is_file() and p.name != ".lock"}


def ends_in_one_line(module, args, capsys):
    """Runs a script that must refuse: exit status 2, one line. Returns the line."""
    capsys.readouterr()
    status, err = run(module, *args), capsys.readouterr().err
    assert status == 2, (args, status, err)
    assert err.startswith("error: ") and err.count("\n") == 1, (args, err)
    return err


@pytest.fixture
def trained(here):
    """text.txt, data/mine, data/parity, and the runs `run` and `task`."""
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=task") == 0


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="of all scripts")
def test_bad_input_ends_in_one_line_and_changes_nothing(trained, capsys, monkeypatch):
    for home in ("HOME", "USERPROFILE"):                # of ~ in a path, on Windows the latter
        monkeypatch.setenv(home, str(Path.cwd()))
    def copy(source, name, change):
        """data/name, as data/source with its meta.json and files changed."""
        folder = Path("data", name)
        shutil.copytree(Path("data", source), folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        change(folder, meta)
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes("naïve".encode("latin-1"))
    Path("data/broken").mkdir()
    Path("data/broken/meta.json").write_text("{", encoding="utf-8")
    copy("mine", "short", lambda folder, meta: os.truncate(folder / "train.bin", 100))
    copy("mine", "odd", lambda folder, meta: (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes() + b"x"))
    copy("mine", "beyond", lambda folder, meta: (folder / "train.bin").write_bytes(b"\xff" * 2 * meta["train_tokens"]))
    copy("mine", "other_codec", lambda folder, meta: meta["codec"].update(kind="pickle"))
    copy("mine", "own_pattern", lambda folder, meta: meta.update(codec={"kind": "bpe", "pattern": "(a+)+$", "tokens": []}))
    copy("parity", "few_targets", lambda folder, meta: meta.update(val_y_tokens=8) or os.truncate(folder / "val_y.bin", 16))
    whole = Path("run/best.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    class Evil:
        def __reduce__(self):
            return (open, ("evil_was_here", "w"))
    for name, content in (("pickled", None), ("truncated", whole[:-100]), ("flipped", bytes(flipped)), ("foreign", None)):
        Path(name).mkdir()
        if content:
            Path(name, "best.pt").write_bytes(content)
    torch.save(Evil(), "pickled/best.pt")
    Path("only_best").mkdir()
    shutil.copy("run/best.pt", "only_best/best.pt")
    torch.save({**torch.load("run/best.pt", weights_only=True), "config": torch.load("task/best.pt", weights_only=True)["config"]},
               "foreign/best.pt")
    before = all_files()
    for module, args, named in BAD_INPUT:
        err = ends_in_one_line(module, [*(SMALL if module is train and args[0] != "--dataset=parity" else []), *args], capsys)
        assert named in err, (args, err)
        assert all_files() == before, args
    for folder, named in (("nowhere", "no checkpoint"), ("foreign", "last.pt"), ("pickled", "last.pt")):
        if folder != "nowhere":
            Path(folder, "best.pt").rename(Path(folder, "last.pt"))
        before = all_files()
        assert named in ends_in_one_line(train, [f"--resume={folder}"], capsys) and all_files() == before
    good = torch.load("run/last.pt", weights_only=True)
    for changes in (dict(iter="x"), dict(rows=7), dict(optimizers=[]), dict(optimizers=[{}, {}]), dict(meta={"codec": good["meta"]["codec"]}),
                    dict(settings={**good["settings"], "batch_size": "x"}), dict(settings=3), dict(processes=2)):
        torch.save({**good, **changes}, "foreign/last.pt")
        before = all_files()
        assert re.search("foreign|batch_size", ends_in_one_line(train, ["--resume=foreign"], capsys)), changes
        assert all_files() == before, changes
    shutil.copy("run/best.pt", "foreign/last.pt")               # whole, but nothing to go on with
    assert "a new run with its weights" in ends_in_one_line(train, ["--resume=foreign"], capsys)


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="of all scripts")
def test_damaged_files_are_refused_or_harmless(trained, capsys):
    """500 random mutations, bytes flipped, cut off or doubled: no traceback, no hang, no file changed."""
    rng, refused = np.random.default_rng(0), 0
    files = [Path(p) for p in ("data/mine/meta.json", "data/mine/train.bin", "data/mine/val.bin", "data/parity/meta.json",
                               "data/parity/train_y.bin", "run/best.pt", "run/last.pt", "task/best.pt")]
    for n in range(500):
        path = files[n % len(files)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        kind = ("flip", "flip", "cut", "double")[rng.integers(4)]
        if kind == "flip":
            for position in rng.integers(len(whole), size=rng.integers(1, 9)):
                damaged[position] ^= 1 << rng.integers(8)
        elif kind == "cut":
            del damaged[rng.integers(len(whole)):]
        else:
            damaged = damaged * 2
        path.write_bytes(damaged)
        before = all_files()
        if path.suffix == ".pt" and path.name == "best.pt":
            module, args = sample, [f"--out_dir={path.parent}", "--prompt=1", "--max_new_tokens=2"]
        elif path.suffix == ".pt":
            module, args = train, ["--resume=run"]
        else:
            module, args = train, [*(SMALL if path.parent.name == "mine" else SMALL_TASK), "--max_flops=1"]   # ends after loading
        capsys.readouterr()
        status, err = run(module, *args), capsys.readouterr().err
        assert status in (0, 2), (n, path, kind, status, err)
        if status == 2:
            assert err.startswith("error: ") and err.count("\n") == 1, (n, path, kind, err)
            assert all_files() == before, (n, path, kind)
            refused += "max_flops" not in err
        path.write_bytes(whole)
    assert refused > 250


def test_a_text_has_no_end(monkeypatch):
    """Nothing of 100 MB of text is kept, whatever the number of samples."""
    class Endless:
        embed = SimpleNamespace(weight=torch.zeros(1))
        def init_cache(self, B): return SimpleNamespace(sweeps=1, residual=0.0)
        def generate(self, idx, n, *_): return (torch.tensor([7]) for _ in range(n))
    codec = SimpleNamespace(decoder=lambda: lambda token: "x" * 50_000 if token == 7 else "")
    printed = []
    class Terminal:
        def write(self, text): printed[:] = [len(text) + sum(printed)]
        def flush(self): pass
    monkeypatch.setattr(sys, "stdout", Terminal())
    tracemalloc.start()
    for _ in range(2):
        sample.stream(Endless(), codec, [0], 1000, 1.0, 5, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.undo()
    assert sum(printed) > 10 ** 8 and peak < 10 ** 6


def test_paths_and_texts_that_others_trip_over(here, capsys):
    """A text without a line break; a folder with a space; the file in place of its folder; from Python, exceptions."""
    Path("dna.txt").write_text("ACGTTGCAAC" * 200, encoding="utf-8")
    prepare_data.prepare("dna", "char", "dna.txt")
    assert run(train, "--dataset=dna", *SMALL[1:], "--out_dir=a run", "--max_iters=1") == 0
    said = re.findall(r"\$ python sample.py (.*)", capsys.readouterr().out)[0]
    assert run(sample, *shlex.split(said), "--max_new_tokens=5") == 0
    assert len(capsys.readouterr().out) == 1 + 5 + 1                    # a first token, since there is no line break
    for path in ("a run/last.pt", "a run/best.pt"):
        assert run(sample, f"--out_dir={path}", "--prompt=AC", "--max_new_tokens=1") == 0
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        sample.load_checkpoint("nowhere")
    with pytest.raises(ValueError, match="not a checkpoint"):
        Path("x.pt").write_bytes(b"x")
        sample.load_checkpoint("x.pt")
    flags = ["--lrt=1", "--lrt_mode=sequential", "--block_size=1", "--out_dir=one", "--max_iters=1"]
    assert run(train, "--dataset=dna", *SMALL[2:], *flags) == 0         # no S to contradict it
    assert run(train, "--dataset=dna", *SMALL[2:], "--lrt=1", "--block_size=1", "--out_dir=two", "--max_iters=1") == 0


def test_checkpoints_of_wrapped_models_load(trained):
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        checkpoint = torch.load("run/best.pt", weights_only=True)
        checkpoint["model"] = {prefix + name: w for name, w in checkpoint["model"].items()}
        Path("wrapped").mkdir(exist_ok=True)
        torch.save(checkpoint, "wrapped/best.pt")
        assert same(sample.load_checkpoint(Path("wrapped/best.pt"), "cpu")[0].state_dict(), sample.load_checkpoint(Path("run/best.pt"), "cpu")[0].state_dict())


@pytest.mark.parametrize("after", [0, 1000])
def test_full_disk_loses_nothing(trained, capsys, monkeypatch, after):
    """The disk is full after some bytes of every file."""
    class FullDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)
    before = all_files()
    monkeypatch.setattr(prepare_data, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    for path in ("run/last.pt", "run/new.pt"):
        with pytest.raises(SystemExit):
            prepare_data.write_atomic(path, lambda f: torch.save({"w": torch.zeros(10_000)}, f))
        assert path in capsys.readouterr().err
    assert "No space left" in ends_in_one_line(prepare_data, ["--dataset=mine", "--input=text.txt"], capsys)
    assert all_files() == before


def test_memory_that_is_not_there_is_said_so(trained, capsys):
    err = ends_in_one_line(train, [*SMALL, "--n_embd=1000000", "--out_dir=big"], capsys)
    assert "memory" in err and not Path("big").exists()


def test_terminals_that_are_not_utf8(here):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for args in (["prepare_data.py", "--dataset=mine", "--input=text.txt"], ["train.py", *SMALL, "--max_iters=3"],
                 ["sample.py", "--prompt=na", "--device=cpu"]):
        done = subprocess.run([sys.executable, HERE / args[0], *args[1:]], capture_output=True, env=env)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_nothing_newer_than_python_3_10_is_used():
    for script in HERE.glob("*.py"):
        ast.parse(script.read_text(encoding="utf-8"), feature_version=(3, 10))


# ---- Several processes -----------------------------------------------------------------------------------------------

def torchrun(*args):
    """Two processes."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *args],
                          capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8",
                               "PYTHONPATH": str(HERE)})


@pytest.mark.parametrize("flags", [["--lrt=1"], ["--lrt=1", "--lrt_mode=sequential"], []], ids=["LRT", "sequential", "plain"])
def test_two_processes_are_one_with_twice_the_batch(here, flags):
    """With gradient accumulation, and one that stops half-way and is resumed."""
    prepare_data.prepare("mine", "char", "text.txt")
    flags = [*SMALL, *flags, "--gradient_accumulation_steps=2"]
    assert run(train, *flags, "--batch_size=8", "--out_dir=one") == 0
    done = torchrun(HERE / "train.py", *flags, "--batch_size=4", "--out_dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("100%") == 1                          # only the first process prints
    one, two = rows("one"), rows("two")
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    for a, b in zip(one, two):
        for key in ("train_loss", "val_loss", "val_loss_exact", "flops"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-5), key


STOPPED = """
import os, signal, train

def signalled(step, rank, function):
    def called(*args, **named):
        result = function(*args, **named)
        if train.RANK == rank and running[0].iter == step:
            os.kill(os.getpid(), signal.SIGINT)
        return result
    return called

running, step = [], train.Run.step
train.Run.step = lambda run: (running.append(run), step(run))[1]
train.together, train.batch = signalled(10, 1, train.together), signalled(10, 0, train.batch)
train.main()
"""


def test_all_processes_stop_after_the_same_step(here):
    """Process 1 is told just after step 10 was agreed on; process 0 as it begins step 11: both stop after that."""
    prepare_data.prepare("mine", "char", "text.txt")
    Path("stopped.py").write_text(STOPPED, encoding="utf-8")
    done = torchrun("stopped.py", *SMALL, "--max_iters=40", "--eval_interval=40")
    assert done.returncode and 'train.py", line' not in done.stderr and done.stderr.count("exitcode  : 130") == 2
    assert done.stdout.count("stopped after step 11; go on with: torchrun") == 1
    assert torch.load("out/last.pt", weights_only=True)["iter"] == 11


if __name__ == "__main__":
    if sys.argv[1:] == ["--handout"]:
        print(handout(), end="")
    elif sys.argv[1:] == ["--mutants"]:
        for mutant in MUTANTS:
            killers = killed_by(pytest.MonkeyPatch(), mutant, first_only=False)
            print(f"{'rejected' if killers else 'SURVIVED'}  {mutant[0]}: {mutant[1]}: {mutant[2]}  ->  {mutant[3]}")
            for name in killers:
                print(f"              {name}")
    else:
        sys.exit(__doc__)
