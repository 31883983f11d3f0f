"""The proof that lrt.py is right, and the definition of the exercises.

    python -m pytest test_lrt.py                    all of it
    python -m pytest test_lrt.py -k ex3             an exercise: its tests need exercises 1 to 3
    python -m pytest test_lrt.py -k consistent      loop, dial, prefill and gradients agree, whatever
                                                    the equations in GPT.layers are

Tiny models with random weights are compared in float64: with each other, where two ways must give
the same, and with numbers of a second implementation (known.npz).
"""
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

import lrt

torch.set_num_threads(1)

# Configurations that every identity has to hold for
CONFIGS = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(n_layer=3, memory_layer=1),
    "middle layer": dict(n_layer=3, memory_layer=-2, memory_proj="layerwise"),
    "one head": dict(n_layer=1, n_head=1, n_embd=6),
}
PLAIN = {**CONFIGS, "plain": dict(lrt=False)}
DIALS = [(1, 2), (2, 1), (3, 2), (7, 1)]                    # S, K for rows of 7 tokens

every_config = pytest.mark.parametrize("name", CONFIGS)
plain_too = pytest.mark.parametrize("name", PLAIN)


def random_model(seed=0, scale=0.3, **changes):
    """A model with all weights away from their initial values; the same on every machine."""
    config = dict(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, lrt=True)
    model = lrt.GPT(lrt.GPTConfig(**{**config, **changes})).double().eval()
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            kind = name.removesuffix(".weight").split(".")[-1]
            value = scale * rng.randn(*p.shape)
            if kind in ("w_q", "w_k", "w_v", "w_1", "embed") or name.startswith("u_"):
                value = value + rng.randn(*p.shape) * (1 if kind == "embed" else p.size(1) ** -0.5)
            value = value + dict(alpha=1, beta=0.1, gamma=0.1).get(kind, 0)
            p.copy_(torch.from_numpy(value))
    return model


def numbers(*shape, seed=0):
    return torch.from_numpy(np.asarray(np.random.RandomState(seed).randn(*shape)))


def tokens(B, T, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).randint(11, size=(B, T)))


@functools.cache
def all_known():
    here = Path(__file__).resolve().parent
    path = here / "known.npz" if (here / "known.npz").exists() else here / "course" / "known.npz"
    return {name: torch.from_numpy(x) for name, x in np.load(path).items()}


def known(*which):
    """Numbers of the second implementation, such as known("exact", "shared", "logits")."""
    return all_known()["/".join(map(str, which))]


def close(mine, right, what, tol=1e-10):
    assert isinstance(mine, torch.Tensor), f"{what} must be a tensor, not {type(mine).__name__}"
    torch.testing.assert_close(mine, right, atol=tol, rtol=0,
                               msg=lambda text: f"{what} is wrong. {text}")


def same_gradients(mine, right, model, what):
    """The gradients of two losses (); no gradient is a gradient of 0."""
    names, weights = zip(*model.named_parameters())
    grads = [torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
             for loss in (mine, right)]
    for name, a, b in zip(names, *grads):
        close(a, b, f"the gradient of {name}, {what},")


def check_gradients(f, named):
    """The gradients of f(), one tensor or several, with respect to named tensors, against finite
    differences."""
    def weighed(_):
        outputs = f()
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return sum((x * numbers(*x.shape, seed=n)).sum() for n, x in enumerate(outputs))

    for name, x in dict(named).items():
        try:
            gradcheck(weighed, x, fast_mode=True)
        except Exception as e:
            pytest.fail(f"the gradient with respect to {name} is wrong (is a part of the way "
                        f"detached?): {e}")


def refuses(call, name):
    """call() must raise a ValueError that names what is wrong."""
    with pytest.raises(ValueError, match=name):
        call()


def loop(model, idx):
    """Logits (B, T, V) of T steps."""
    return steps(model, idx, model.init_cache(len(idx)))


def steps(model, idx, cache):
    return torch.stack([model.step(token, cache) for token in idx.unbind(1)], dim=1)


def prefilled(model, idx, **options):
    cache = model.init_cache(len(idx))
    model.prefill(idx, cache, **options)
    return cache


def counted(object, method, calls):
    """Let a method note its arguments in a list."""
    original = getattr(object, method)
    setattr(object, method, lambda *args, **named: calls.append(args) or original(*args, **named))


# ---- Exercise 1: shift_right


@pytest.mark.parametrize("B, T", [(2, 5), (3, 1)])
def test_ex1_each_position_gets_the_latent_of_the_one_before(B, T):
    """m_t = latent_{t-1}, and m_0 = first."""
    latent, first = numbers(B, T, 3), numbers(B, 3, seed=1)
    before = latent.clone(), first.clone()
    m = lrt.shift_right(latent, first)
    assert m.shape == latent.shape
    close(m[:, 0], first, "m_0")
    for t in range(1, T):
        close(m[:, t], latent[:, t - 1], f"m_{t}")
    assert latent.equal(before[0]) and first.equal(before[1]), "an argument was changed in place"


def test_ex1_gradients_reach_latent_and_first():
    latent, first = numbers(2, 5, 3).requires_grad_(), numbers(2, 3).requires_grad_()
    check_gradients(lambda: lrt.shift_right(latent, first), dict(latent=latent, first=first))


# ---- Exercise 2: Chunk.finish


def made_up_chunk(W, past, T):
    """T tokens in progress after `past` that can still be seen; three layers, all numbers differ.
    Position numbers begin at 40."""
    cache = lrt.Cache([numbers(2, 2, 2, past, 4, seed=i) for i in range(3)], numbers(2, 8), 40)
    chunk = lrt.Chunk(numbers(2, T, 8, seed=3), cache, W)
    chunk.h, chunk.latent = (numbers(2, T, 8, seed=s).requires_grad_() for s in (4, 5))
    chunk.kv = [numbers(2, 2, 2, past + T, 4, seed=6 + i).requires_grad_() for i in range(3)]
    return chunk


SIZES = pytest.mark.parametrize("W, past, T", [
    (7, 0, 3), (7, 5, 1), (7, 6, 1), (7, 0, 7), (7, 5, 4), (7, 0, 20), (1, 0, 1), (1, 0, 5),
    (2, 1, 2)])


@SIZES
def test_ex2_the_cache_takes_what_later_tokens_need(W, past, T):
    """pos + T, the last latent, and keys and values of the last W - 1 positions."""
    chunk = made_up_chunk(W, past, T)
    cache, kv, h = chunk.cache, list(chunk.kv), chunk.h
    chunk.finish()
    assert cache.pos == 40 + T
    close(cache.latent, chunk.latent[:, T - 1], "the latent of the cache")
    keep = min(past + T, W - 1)
    for i in range(3):
        close(cache.kv[i], kv[i][..., past + T - keep:, :], f"keys and values of layer {i}")
    assert chunk.h is h, "logits are still to be read from h"


def test_ex2_gradients_go_on_into_the_cache():
    chunk = made_up_chunk(7, 5, 4)
    cache, named = chunk.cache, {f"kv of layer {i}": kv for i, kv in enumerate(chunk.kv)}

    def finished():
        cache.pos = 40
        chunk.finish()
        return cache.latent, *cache.kv

    check_gradients(finished, dict(named, latent=chunk.latent))


def test_ex2_a_chunk_is_finished_once():
    """Neither twice, nor when the cache has gone on without it."""
    chunk = made_up_chunk(7, 5, 4)
    chunk.finish()
    refuses(chunk.finish, "finished")


# ---- Exercise 3: Attention.qkv


def qkv_case(case):
    """An attention, its input y, and U_k m and U_v m."""
    changes = {"plain": dict(lrt=False), "two heads": dict(),
               "three heads": dict(n_head=3, n_embd=24), "one head": dict(n_head=1)}[case]
    attention = random_model(**changes).blocks[1].attn
    C = attention.w_q.in_features
    return attention, *(numbers(2, 5, C, seed=s) for s in range(3))


QKV = [(case, memory) for case in ("two heads", "three heads", "one head") for memory in (0, 1)]
QKV += [("plain", 0)]


@pytest.mark.parametrize("case, memory", QKV)
def test_ex3_queries_keys_and_values(case, memory):
    """q = W_q y; k = g_local W_k y + g_mem U_k m; v alike. Without memory, g_local acts alone."""
    attention, y, *m_kv = qkv_case(case)
    before = [x.clone() for x in (y, *m_kv)]
    found = attention.qkv(y, *m_kv) if memory else attention.qkv(y)
    for name, mine in zip(("queries", "keys", "values"), found, strict=True):
        close(mine, known("qkv", case, memory, name), name)
    assert all(x.equal(b) for x, b in zip((y, *m_kv), before)), "an argument was changed in place"


@pytest.mark.parametrize("case", ["two heads", "plain"])
def test_ex3_gradients(case):
    attention, *inputs = qkv_case(case)
    if case == "plain":
        inputs = inputs[:1]
    named = dict(zip(("y", "m_k", "m_v"), (x.requires_grad_() for x in inputs)))
    named |= {n: p for n, p in attention.named_parameters() if n != "w_o.weight"}
    check_gradients(lambda: attention.qkv(*inputs), named)


# ---- Exercise 4: GPT.layers


def layers_case(name, T=5):
    """A model, a chunk without tokens before it, and a memory."""
    model = random_model(**PLAIN[name])
    C = model.config.n_embd
    chunk = lrt.Chunk(lrt.norm(numbers(2, T, C)), model.init_cache(2), model.config.block_size)
    return model, chunk, numbers(2, T, C, seed=1)


LAYERS = [(name, memory) for name in CONFIGS for memory in (0, 1)] + [("plain", 0)]


@pytest.mark.parametrize("name, memory", LAYERS)
def test_ex4_one_pass_is_the_equations(name, memory):
    """h, latent, and the keys and values that are stored, of all positions at once."""
    model, chunk, m = layers_case(name)
    x0, given = chunk.x0.clone(), m.clone()
    h, latent = model.layers(chunk, slice(None), m if memory else None)
    for i, kv in enumerate(chunk.kv):
        close(kv, known("layers", name, memory, f"kv{i}"), f"keys and values of layer {i}")
    close(h, known("layers", name, memory, "h"), "h")
    close(latent, known("layers", name, memory, "latent"), "latent")
    assert chunk.x0.equal(x0) and m.equal(given), "x0 or m was changed in place"


@every_config
def test_ex4_no_memory_is_a_memory_of_zero(name):
    model, chunk, m = layers_case(name)
    none = model.layers(chunk, slice(None), None)
    zero = model.layers(chunk, slice(None), 0 * m)
    for what, a, b in zip(("h", "latent"), none, zero):
        close(a, b, f"{what} with m = None, against m = 0,")


@pytest.mark.parametrize("at", [slice(1, None, 2), slice(0, None, 3), slice(4, None, 5),
                                slice(0, 4), slice(2, 5), slice(-2, None)], ids=str)
@pytest.mark.parametrize("name", ["shared", "middle layer", "plain"])
def test_ex4_some_positions_with_the_same_memory_stay_as_they_are(name, at):
    """They have their own places in time, and attend to all positions before them, whether they are
    every S-th or side by side."""
    model, chunk, m = layers_case(name)
    m = None if name == "plain" else m
    h, latent = model.layers(chunk, slice(None), m)
    kv = [x.clone() for x in chunk.kv]
    mine, its_latent = model.layers(chunk, at, None if m is None else m[:, at])
    close(mine, h[:, at], f"h at {at}")
    close(its_latent, latent[:, at], f"latent at {at}")
    for i, old in enumerate(kv):
        close(chunk.kv[i], old, f"keys and values of layer {i} of all positions")


@pytest.mark.parametrize("name, memory", [
    ("shared", 1), ("layerwise", 1), ("first layer", 1), ("middle layer", 1), ("shared", 0),
    ("plain", 0)])
def test_ex4_gradients(name, memory):
    model, chunk, m = layers_case(name)
    chunk.x0.requires_grad_()
    m = m.requires_grad_() if memory else None

    def one_pass():
        again = lrt.Chunk(chunk.x0, model.init_cache(2), 8)
        return model.layers(again, slice(None), m)

    named = {n: p for n, p in model.named_parameters() if not n.startswith(("embed", "head"))}
    check_gradients(one_pass, named | ({"m": m} if memory else {}) | {"x0": chunk.x0})


def test_ex4_embeddings_are_dropped_out_elsewhere():
    """x0 has its dropout already, and all passes share it."""
    model, chunk, m = layers_case("shared")
    right = model.layers(chunk, slice(None), m)[0]
    model.train().dropout.p = 0.5
    close(model.layers(chunk, slice(None), m)[0], right, "h in training, blocks without dropout,")


def test_ex4_tensors_are_made_on_the_device_of_the_model():
    """A tensor on "meta" has no numbers, and mixes with those of no other device."""
    model = random_model(n_layer=1).to("meta")
    for m in (None, torch.zeros(2, 5, 16, dtype=torch.float64, device="meta")):
        chunk = lrt.Chunk(torch.zeros(2, 5, 16, dtype=torch.float64, device="meta"),
                          model.init_cache(2), 3)
        assert all(x.is_meta for x in model.layers(chunk, slice(None), m))


# ---- Exercise 5: GPT.step


@plain_too
@torch.no_grad()
def test_ex5_each_step_is_the_equations(name):
    """12 tokens with a window of 8: logits, latent and position after each."""
    model, idx = random_model(**PLAIN[name]), tokens(2, 12)
    cache = model.init_cache(2)
    for t in range(12):
        logits = model.step(idx[:, t], cache)
        close(logits, known("exact", name, "logits")[:, t], f"logits at position {t}")
        assert cache.pos == t + 1
        if model.config.lrt:
            close(cache.latent, known("exact", name, "latents")[:, t], f"the latent of {t}")


@pytest.mark.parametrize("at", range(4))
@torch.no_grad()
def test_ex5_every_latent_counts(at):
    """Whatever latent the cache holds, from the first token on, is the memory of the next token:
    another one at position `at` changes the logits of position 3."""
    model, idx = random_model(), tokens(2, 12)
    right, cache = loop(model, idx[:, :4]), model.init_cache(2)
    steps(model, idx[:, :at], cache) if at else None
    cache.latent = numbers(2, 16)
    mine = steps(model, idx[:, at:4], cache)[:, -1]
    assert (mine - right[:, 3]).abs().max() > 1e-6, f"the latent at position {at} is not used"
    if at == 0:
        close(mine, known("exact", "from another latent", "logits")[:, 3], "logits")


@pytest.mark.parametrize("name", ["shared", "middle layer", "plain"])
def test_ex5_gradients_go_through_time(name):
    """Through the latents, and through keys and values of earlier tokens."""
    model, idx = random_model(**PLAIN[name], block_size=3), tokens(2, 4)
    first = numbers(2, 16).requires_grad_()

    def last():
        cache = model.init_cache(2)
        cache.latent = first
        return steps(model, idx, cache)[:, -1], cache.latent

    named = dict(model.named_parameters())
    check_gradients(last, named if name == "plain" else dict(named, first=first))


def test_ex5_sequences_do_not_see_each_other():
    """Not those of a batch, and not those that are decoded in turn."""
    model, idx, order = random_model(), tokens(4, 4), torch.tensor([2, 0, 3, 1])
    right = loop(model, idx)
    close(loop(model, idx[order]), right[order], "logits of rows in another order")
    a, b = model.init_cache(4), model.init_cache(1)
    for t in range(4):
        close(model.step(idx[:, t], a), right[:, t], f"logits at {t}, two sequences in turn,")
        close(model.step(idx[1:2, t], b), right[1:2, t], f"logits at {t} of row 1 alone")


# ---- Exercise 6: GPT.sweep


@pytest.mark.parametrize("S, K", DIALS)
@pytest.mark.parametrize("name", ["shared", "middle layer"])
def test_ex6_each_sweep_is_the_equations(name, S, K):
    """Subset s takes the latents of pass s - 1. What a sweep replaces stays whole: gradients and
    earlier results need it."""
    model = random_model(**CONFIGS[name])
    chunk = model.begin(tokens(1, 7), model.init_cache(1))
    for k in range(1, K + 1):
        old = [chunk.h, chunk.latent, *chunk.kv]
        copies = [x.clone() for x in old]
        model.sweep(chunk, S)
        for what in ("h", "latent"):
            close(getattr(chunk, what)[0], known("sweeps", name, S, k, what),
                  f"{what} after sweep {k} of {S} subsets")
        assert all(a.equal(b) for a, b in zip(old, copies)), "an old tensor was changed in place"
    assert chunk.cache.pos == 0, "a sweep must not finish the chunk"


@every_config
@pytest.mark.parametrize("start, T", [(5, 4), (0, 12), (9, 1), (8, 4)])
@torch.no_grad()
def test_ex6_as_many_subsets_as_tokens_is_the_loop(name, start, T):
    """Also for a chunk after finished tokens, and for one that is longer than the window. Steps go
    on from there."""
    model, idx = random_model(**CONFIGS[name]), tokens(2, 12)
    right, cache = known("exact", name, "logits"), model.init_cache(2)
    for t in range(start):
        model.step(idx[:, t], cache)
    chunk = model.begin(idx[:, start:start + T], cache)
    model.sweep(chunk, T + 1)
    close(model.logits(chunk.h), right[:, start:start + T], "logits")
    chunk.finish()
    if start + T < 12:
        close(steps(model, idx[:, start + T:], cache), right[:, start + T:], "logits of later steps")


@pytest.mark.parametrize("name, S, K", [("shared", 1, 2), ("first layer", 3, 1), ("layerwise", 2, 2)])
def test_ex6_gradients(name, S, K):
    """Through latents, keys and values of all passes, and into the latent of the cache."""
    model, idx = random_model(**{**CONFIGS[name], "n_layer": 2}), tokens(2, 5)
    first = numbers(2, 16).requires_grad_()

    def swept():
        cache = model.init_cache(2)
        cache.latent = first
        chunk = model.begin(idx, cache)
        for _ in range(K):
            model.sweep(chunk, S)
        return chunk.h, chunk.latent, *chunk.kv

    named = {n: p for n, p in model.named_parameters() if not n.startswith("head")}
    check_gradients(swept, dict(named, first=first))


def test_ex6_impossible_sweeps_are_refused():
    model = random_model()
    chunk = model.begin(tokens(2, 5), model.init_cache(2))
    for S in (0, -1, 2.5):
        refuses(lambda: model.sweep(chunk, S), "subsets")
    chunk.finish()
    refuses(lambda: model.sweep(chunk, 2), "finished")


# ---- Exercise 7: GPT.forward_parallel


@pytest.mark.parametrize("S, K", DIALS)
@pytest.mark.parametrize("name", ["shared", "middle layer"])
@torch.no_grad()
def test_ex7_logits_are_those_after_the_last_sweep(name, S, K):
    model = random_model(**CONFIGS[name])
    idx = torch.cat([tokens(1, 7, seed) for seed in (5, 1, 6)])
    logits, loss = model.forward_parallel(idx, None, S, K)
    right = model.logits(known("sweeps", name, S, K, "h"))
    close(logits[1], right, f"logits after {K} sweeps of {S} subsets")
    assert loss is None, "there is no loss without targets"


@every_config
@pytest.mark.parametrize("T", [5, 1])
def test_ex7_S_equals_T_is_the_loop(name, T):
    """Logits, and with loss_weights=(0, 1) loss and every gradient."""
    model, idx, targets = random_model(**CONFIGS[name]), tokens(2, T), tokens(2, T, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    for S in (T, T + 1):
        mine, its_loss = model.forward_parallel(idx, targets, S, 1, (0, 1))
        close(mine, logits, f"logits, {S=}, {T=},")
        close(its_loss, loss, f"the loss, {S=}, {T=},")
    same_gradients(its_loss, loss, model, f"S = T = {T}")


@every_config
@torch.no_grad()
def test_ex7_the_first_positions_are_exact(name):
    """max(K + 1, S K) of them, and with random weights no more."""
    model, idx, T = random_model(**CONFIGS[name]), tokens(2, 8), 8
    right = loop(model, idx)
    for S, K in ((1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 3), (3, 1), (3, 2), (5, 1), (T, 1)):
        off = (model.forward_parallel(idx, None, S, K)[0] - right).abs().amax((0, 2)) > 1e-8
        exact = off.tolist().index(True) if off.any() else T
        assert exact == min(T, max(K + 1, S * K)), f"{S=}, {K=}: {exact} positions are exact"


@pytest.mark.parametrize("S, K, without", [
    (3, 2, [3]), (3, 2, range(7)), (1, 2, [0, 2, 4]), (2, 1, range(4)), (20, 1, [3]), (1, 0, [3])])
def test_ex7_loss_is_the_mean_over_all_passes(S, K, without):
    """(L_0 + S Σ L_k) / (1 + S K), or Σ w_k L_k. L_k: mean over targets but those of -1."""
    model, idx, targets = random_model(n_layer=1), tokens(2, 7), tokens(2, 7, seed=2)
    targets[:, list(without)] = -1
    kept, L = targets != -1, []
    for k in range(K + 1):
        nll = -model.forward_parallel(idx, None, S, k)[0].log_softmax(-1)
        nll = nll.gather(2, targets.clamp(min=0)[..., None])[..., 0][kept]
        L.append(nll.mean() if kept.any() else nll.sum())
    n = min(S, 7)
    close(model.forward_parallel(idx, targets, S, K)[1],
          (L[0] + n * sum(L[1:])) / (1 + n * K), f"the loss, {S=}, {K=},")
    for weights in ([0.3, 0, 1.5][:K + 1], [0] * K + [1.0]):
        close(model.forward_parallel(idx, targets, S, K, weights)[1],
              sum(w * one for w, one in zip(weights, L)), f"the loss with {weights=}")


@pytest.mark.parametrize("name, S, K, weights", [
    ("shared", 3, 2, (0, 0, 1)), ("shared", 1, 2, None), ("first layer", 2, 2, (0, 1, 0)),
    ("first layer", 5, 1, None)])
def test_ex7_gradients_go_through_every_pass(name, S, K, weights):
    model = random_model(**{**CONFIGS[name], "n_layer": 2})
    idx, targets = tokens(2, 6), tokens(2, 6, seed=2)
    check_gradients(lambda: model.forward_parallel(idx, targets, S, K, weights)[1],
                    model.named_parameters())


@pytest.mark.parametrize("S, K", [(1, 1), (2, 1), (3, 2)])
def test_ex7_causality(S, K):
    """Token t changes the logits of position t and of all later ones, and of no earlier one."""
    model, idx = random_model(n_layer=1), tokens(2, 6)
    before = model.forward_parallel(idx, None, S, K)[0]
    for t in range(6):
        other = idx.clone()
        other[:, t] = (other[:, t] + 1) % 11
        off = (model.forward_parallel(other, None, S, K)[0] - before).abs().amax((0, 2))
        assert (off[:t] == 0).all(), f"a position before {t} sees token {t}"
        assert (off[t:] > 1e-9).all(), f"a position from {t} on does not see token {t}"


def test_ex7_a_plain_gpt_is_pass_0():
    """Whatever the dial says: one pass, which is the loop."""
    plain, calls = random_model(lrt=False), []
    idx, targets = tokens(2, 8), tokens(2, 8, seed=2)
    logits, loss = plain.forward_sequential(idx, targets)
    counted(plain, "layers", calls)
    for dial in ((1, 1), (3, 2), (8, 1), (2, 1, (0.2, 0.3))):
        mine, its_loss = plain.forward_parallel(idx, targets, *dial)
        close(mine, logits, f"logits of a plain GPT, {dial},")
        close(its_loss, loss, f"the loss of a plain GPT, {dial},")
    assert len(calls) == 4, "a plain GPT needs one pass"


def test_ex7_an_lrt_without_memory_and_gates_is_a_plain_gpt():
    plain, model = random_model(lrt=False), random_model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            theirs = dict(plain.named_parameters()).get(name)
            p.copy_(torch.zeros_like(p) if theirs is None else theirs)
    idx = tokens(2, 8)
    for S, K in ((1, 1), (3, 2)):
        close(model.forward_parallel(idx, None, S, K)[0], plain(idx)[0], f"logits, {S=}, {K=},")


def test_ex7_each_sweep_computes_every_position_once():
    """1 + K passes' work, whatever S is; logits are computed once, and for a loss once a pass, but
    not of passes that do not count."""
    model, idx, at, logits = random_model(block_size=4), tokens(2, 4), [], []
    counted(model, "layers", at)
    counted(model, "logits", logits)
    for S, K in ((1, 2), (2, 1), (3, 2), (4, 1), (9, 1)):
        at.clear()
        model.forward_parallel(idx, None, S, K)
        positions = [t for call in at for t in range(4)[call[1]]]
        assert sorted(positions) == sorted(list(range(4)) * (1 + K)), f"{S=}, {K=}"
    for weights, n in (((0, 1), 1), ((0.5, 0.5), 2), (None, 2)):
        logits.clear()
        model.forward_parallel(idx, idx, 2, 1, weights)
        assert len(logits) == n, f"logits of {len(logits)} passes with loss_weights={weights}"


@pytest.mark.parametrize("has_lrt", [True, False])
def test_ex7_impossible_dials_are_refused(has_lrt):
    model, idx = random_model(lrt=has_lrt), tokens(1, 5)
    for name, dials in {"subsets": [(0, 1), (-1, 1), (2.5, 1)], "sweeps": [(2, -1), (2, 1.5)],
                        "loss_weights": [(2, 1, (1,)), (2, 1, (0, 0)), (2, 1, (1, 1, 1))]}.items():
        for dial in dials:
            refuses(lambda: model.forward_parallel(idx, idx, *dial), name)
    refuses(lambda: model.forward_parallel(idx, idx[:, :3]), "targets")


def test_ex7_embeddings_are_dropped_out_once():
    model, drawn = random_model(dropout=0.5).train(), []
    counted(model.dropout, "forward", drawn)
    model.forward_parallel(tokens(2, 6), None, 3, 2)
    assert len(drawn) == 1, "the sweeps must see the embeddings of pass 0"


# ---- Exercise 8: GPT.prefill


PIECES = [("shared", 1, [10]), ("shared", 3, [3, 4, 1, 2]), ("layerwise", 4, [1, 1, 8]),
          ("first layer", 100, [8, 2]), ("middle layer", 3, [10]), ("one head", 2, [1, 9]),
          ("shared", 1, [30]), ("plain", 4, [3, 4, 1, 2])]


@pytest.mark.parametrize("name, S, cuts", PIECES)
@torch.no_grad()
def test_ex8_prefill_then_step_is_step(name, S, cuts):
    """A prompt in one piece or several, longer than the window, too. With tol=0 it is exact, even
    for weights whose sweeps do not settle."""
    model, T = random_model(**PLAIN[name]), sum(cuts)
    idx, cache, end = tokens(2, T + 2), model.init_cache(2), 0
    right = loop(model, idx)
    for cut in cuts:
        logits = model.prefill(idx[:, end:end + cut], cache, subsets=S, tol=0)
        end += cut
        close(logits, right[:, end - 1], f"logits after {end} tokens")
        assert cache.pos == end
    close(steps(model, idx[:, T:], cache), right[:, T:], "logits of steps after the prompt")


@torch.no_grad()
def changes_by_sweep(model, idx, S):
    """The largest change of h, latents, keys and values in each sweep, up to the exact result."""
    chunk, changes = model.begin(idx, model.init_cache(len(idx))), []
    for _ in range(-(-idx.size(1) // S)):
        before = [x.clone() for x in (chunk.h, chunk.latent, *chunk.kv)]
        model.sweep(chunk, S)
        after = chunk.h, chunk.latent, *chunk.kv
        changes.append(max((a - b).abs().max().item() for a, b in zip(after, before)))
    return changes


def sweeps_of(model, idx, **options):
    """How many sweeps prefill takes."""
    calls = []
    counted(model, "sweep", calls)
    model.prefill(idx, model.init_cache(len(idx)), **options)
    del model.sweep
    return len(calls)


@pytest.mark.parametrize("what", ["keys", "values", "h and latents", "all"])
def test_ex8_sweeps_end_when_the_largest_change_is_at_most_tol(what):
    """All that a sweep writes has to settle. In three of these models the memory reaches only keys,
    only values, or only h and latents; their changes in each sweep are computed here."""
    model, idx = random_model(n_layer=1, scale=0.02, block_size=64), tokens(2, 20)
    with torch.no_grad():
        model.blocks[0].attn.w_o.weight.copy_(0.01 * numbers(16, 16))
        for only, p in {"keys": model.u_k[0].weight, "values": model.u_v[0].weight,
                        "h and latents": model.gamma}.items():
            p.mul_(what in (only, "all"))
    changes = changes_by_sweep(model, idx, 3)
    for n, change in enumerate(changes[:4], 1):
        if change > 1e-12:
            assert sweeps_of(model, idx, subsets=3, tol=change) == n, f"{changes}, tol={change}"
            assert sweeps_of(model, idx, subsets=3, tol=0.999 * change) > n
    assert sweeps_of(model, idx, subsets=3, tol=1e9) == 1


@torch.no_grad()
@pytest.mark.parametrize("last", ["u_k", "u_v"])
@pytest.mark.parametrize("S", [1, 2])
def test_ex8_never_wrongly_settled(S, last):
    """Latents that stand still do not mean that all has settled: here they are those of the first
    layer, which sees no memory; only keys or values of the last layer depend on it."""
    model = random_model(memory_layer=1, memory_proj="layerwise", n_layer=3)
    for p in (model.gamma[:2], *(u.weight for u in (*model.u_k, *model.u_v))):
        if p is not getattr(model, last)[2].weight:
            p.zero_()
    idx = tokens(2, 6)
    mine = model.prefill(idx, model.init_cache(2), subsets=S, tol=0)
    close(mine, loop(model, idx)[:, -1], "logits")


def test_ex8_all_rows_have_to_settle():
    model, idx = random_model(scale=0.2, block_size=64, n_layer=1), tokens(3, 24)
    idx[0] = 3                                  # equal tokens settle soon
    alone = [sweeps_of(model, row[None], tol=1e-3) for row in idx]
    assert len(set(alone)) == 3
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert sweeps_of(model, idx[order], tol=1e-3) == max(alone)


@pytest.mark.parametrize("S, most", [(2, 10), (3, 7), (7, 3), (19, 1), (40, 1)])
def test_ex8_n_tokens_take_at_most_n_over_S_sweeps(S, most):
    model = random_model(scale=1.0, block_size=64)
    assert sweeps_of(model, tokens(1, 19), subsets=S, tol=0) <= most


@pytest.mark.parametrize("has_lrt", [True, False])
@torch.no_grad()
def test_ex8_it_begins_with_the_latent_of_the_cache(has_lrt):
    model, idx = random_model(lrt=has_lrt), tokens(2, 9)
    a, b = model.init_cache(2), model.init_cache(2)
    a.latent = b.latent = numbers(2, 16)
    right = steps(model, idx, a)[:, -1]
    close(model.prefill(idx, b, subsets=3, tol=0), right, "logits")


def test_ex8_long_prompts_are_read_in_pieces_of_512_or_W():
    model, sizes = random_model(scale=0.05, n_layer=1), []
    idx = tokens(1, 516)
    right = prefilled(model, idx, subsets=300, tol=0)
    counted(model, "begin", sizes)
    cache = prefilled(model, idx[:, :514], subsets=4, tol=1e-10)
    assert [args[0].size(1) for args in sizes] == [512, 2]
    steps(model, idx[:, 514:], cache)
    close(cache.latent, right.latent, "the latent after a long prompt", 1e-8)
    wide, sizes = random_model(n_layer=1, block_size=530, scale=0.05), []
    counted(wide, "begin", sizes)
    prefilled(wide, idx.repeat(1, 2)[:, :600], tol=1.0)
    assert [args[0].size(1) for args in sizes] == [530, 70]


def test_ex8_two_subsets_and_a_thousandth_by_default():
    model, idx = random_model(), tokens(2, 30)
    a, b = prefilled(model, idx), prefilled(model, idx, subsets=2, tol=1e-3)
    close(a.latent, b.latent, "the latent", 0.0)
    assert 1 < sweeps_of(model, idx) == sweeps_of(model, idx, subsets=2, tol=1e-3) < 15


def test_ex8_rounding_is_no_reason_to_go_on():
    """In bfloat16 rounding alone changes more than tol."""
    model = random_model(scale=0.05, block_size=128).bfloat16()
    assert sweeps_of(model, tokens(1, 120)) <= 20


def test_ex8_a_prompt_is_read_without_dropout_and_gradients():
    """In training mode, too. Later steps have gradients."""
    model, idx = random_model(dropout=0.5).train(), tokens(2, 5)
    caches = [prefilled(model, idx), prefilled(model, idx), prefilled(model.eval(), idx)]
    for cache in caches[:2]:
        close(cache.latent, caches[2].latent, "the latent after a prompt")
    assert not caches[0].latent.requires_grad
    model.step(idx[:, 0], caches[0]).sum().backward()
    assert model.gamma.grad.abs().max() > 0


def test_ex8_impossible_prompts_are_refused():
    model, idx = random_model(), tokens(2, 5)
    for S in (0, -2, 1.5):
        refuses(lambda: prefilled(model, idx, subsets=S), "subsets")
    refuses(lambda: prefilled(model, idx, tol=-1.0), "tol")
    refuses(lambda: prefilled(model, idx[:, :0]), "tokens")
    refuses(lambda: model.prefill(idx, model.init_cache(3)), "idx")


# ---- Exercise 9: GPT.forward_hops


def latents_of(model, idx, S, K):
    """The latents z that the last pass starts from."""
    with torch.no_grad():
        if S is None:
            cache, z = model.init_cache(len(idx)), []
            for token in idx.unbind(1):
                model.step(token, cache)
                z.append(cache.latent)
            return torch.stack(z, dim=1)
        chunk = model.begin(idx, model.init_cache(len(idx)))
        for _ in range(K):
            model.sweep(chunk, S)
        return chunk.latent


@pytest.mark.parametrize("name, S, K", [
    ("shared", None, 1), ("first layer", None, 1), ("layerwise", 2, 2), ("middle layer", 2, 1),
    ("one head", 1, 0)])
def test_ex9_each_hop_adds_a_term_of_the_series(name, S, K):
    """dloss/dθ = ∂loss/∂θ + λᵀ ∂latent/∂θ with λ = g + Jᵀ g + Jᵀ Jᵀ g + ..., where J = ∂latent/∂z
    is written out as a matrix, for 0 to T - 1 hops."""
    small = dict(n_embd=4, n_head=1, n_layer=min(2, CONFIGS[name].get("n_layer", 2)))
    model, T = random_model(**{**CONFIGS[name], **small}), 4
    idx, targets = tokens(1, T), tokens(1, T, seed=2)
    z = latents_of(model, idx, S, K).requires_grad_()

    def last_pass(z):
        m = lrt.shift_right(z, torch.zeros_like(z[:, 0]))
        chunk = model.begin(idx, model.init_cache(1), m)
        return model.logits(chunk.h), chunk.latent

    logits, latent = last_pass(z)
    loss = lrt.cross_entropy(logits, targets)
    J = torch.autograd.functional.jacobian(lambda z: last_pass(z)[1].flatten(), z).flatten(1)
    g = torch.autograd.grad(loss, z, retain_graph=True)[0].flatten()
    lam = torch.zeros_like(g)
    for hops in range(T):
        mine_logits, mine = model.forward_hops(idx, targets, S, K, hops)
        close(mine_logits, logits, "logits")
        close(mine, loss, "the loss")
        with_credit = lrt.cross_entropy(last_pass(z.detach())[0], targets) + (
            lam.detach() @ last_pass(z.detach())[1].flatten())
        same_gradients(mine, with_credit, model, f"{hops=}")
        lam, g = lam + g, J.T @ g


@every_config
@pytest.mark.parametrize("T, S, K", [(6, None, 1), (6, 3, 2), (1, None, 1)])
def test_ex9_exact_latents_and_T_minus_1_hops_are_the_loop(name, T, S, K):
    """Logits, loss and every gradient; targets of -1 do not count."""
    model, idx, targets = random_model(**CONFIGS[name]), tokens(2, T), tokens(2, T, seed=2)
    targets[0, 2:4] = -1
    logits, loss = model.forward_sequential(idx, targets)
    for hops in (T - 1, T + 2):
        mine, its_loss = model.forward_hops(idx, targets, S, K, hops)
        close(mine, logits, f"logits, {S=}, {hops=},")
        close(its_loss, loss, f"the loss, {S=}, {hops=},")
        same_gradients(its_loss, loss, model, f"{S=}, {hops=}")


@pytest.mark.parametrize("S, K", [(1, 0), (1, 2), (2, 1), (3, 2), (100, 1)])
def test_ex9_the_last_pass_makes_one_position_more_exact(S, K):
    model, idx = random_model(n_layer=1), tokens(2, 8)
    logits, loss = model.forward_hops(idx, None, S, K)
    off = (logits - loop(model, idx)).abs().amax((0, 2)) > 1e-8
    exact = off.tolist().index(True) if off.any() else 8
    assert exact == min(8, max(K + 1, min(S, 8) * K) + 1) and loss is None


def test_ex9_only_the_last_pass_keeps_a_graph():
    """What backward needs does not grow with K and S; the loop computes no logits."""
    model, idx, calls = random_model(), tokens(2, 8), []

    def kept(S, K):
        sizes = {}
        note = lambda x: sizes.update({x.untyped_storage().data_ptr(): x.numel()}) or x
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            graph = model.forward_hops(idx, idx, S, K, 0)[1]
        assert graph.requires_grad
        return sum(sizes.values())

    assert max(kept(1, 4), kept(4, 2), kept(None, 1)) <= 1.2 * kept(1, 0)
    counted(model, "logits", calls)
    model.forward_hops(idx, idx)
    assert len(calls) == 1, "logits are needed of the last pass alone"


def test_ex9_without_gradients_there_are_logits_and_loss():
    model, idx = random_model(), tokens(2, 6)
    right = model.forward_hops(idx, idx, 2, 1, 2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for mine, its in zip(model.forward_hops(idx, idx, 2, 1, 2), right):
                close(mine, its.detach(), f"logits or loss under {mode.__name__}")
    assert model.forward_hops(idx, torch.full_like(idx, -1), 2, 1, 2)[1].item() == 0


def test_ex9_no_dropout_while_latents_are_looked_for():
    """The dropout of the last pass alone decides, whatever K is."""
    model, idx = random_model(dropout=0.5, n_layer=1).train(), tokens(2, 4)
    losses = []
    for S, K in ((4, 1), (4, 2), (None, 1)):                # all of them find the exact latents
        torch.manual_seed(0)
        losses.append(model.forward_hops(idx, idx, S, K, 0)[1])
    close(losses[1], losses[0], "the loss with one sweep more")
    close(losses[2], losses[0], "the loss with latents of the loop")


def test_ex9_impossible_hops_are_refused():
    for has_lrt in (True, False):
        model, idx = random_model(lrt=has_lrt), tokens(2, 6)
        for name, wrong in {"subsets": (0, 1, 1), "sweeps": (2, -1, 1), "hops": (2, 1, -1)}.items():
            refuses(lambda: model.forward_hops(idx, idx, *wrong), name)
    close(model.forward_hops(idx, idx)[1], model.forward_parallel(idx, idx)[1], "loss of a plain GPT")


# ---- What is given: functions


def test_norm_and_rotary():
    """x / sqrt(mean(x²)); and angles t 10000^(-2j/D), whose digits late positions keep."""
    x = numbers(5, 16)
    close(lrt.norm(x), x / x.square().mean(-1, keepdim=True).sqrt(), "norm")
    assert lrt.norm(torch.zeros(2, 4)).equal(torch.zeros(2, 4))
    start = 10 ** 7
    angle = torch.tensor([[t * 10000 ** (-2 * j / 8) for j in range(4)]
                          for t in range(start, start + 3)], dtype=torch.float64)
    for dtype, tol in ((torch.float64, 1e-8), (torch.float32, 1e-6)):
        cos, sin = lrt.rotary(start, 3, 8, torch.zeros(1, dtype=dtype))
        close(cos.double(), angle.cos(), "cos", tol)
        close(sin.double(), angle.sin(), "sin", tol)
    turned = lrt.rotate(numbers(2, 3, 8), lrt.rotary(5, 3, 8, x))
    a, b = numbers(2, 3, 8).chunk(2, -1)
    close(torch.complex(*turned.chunk(2, -1)),
          torch.complex(a, b) * torch.polar(torch.ones(3, 4).double(), -torch.outer(
              torch.arange(5, 8).double(), 10000 ** (-torch.arange(4).double() / 4))), "rotate")


def test_cross_entropy_is_the_mean_over_targets():
    logits, targets = numbers(2, 3, 11), tokens(2, 3)
    targets[0] = -1
    close(lrt.cross_entropy(logits, targets), F.cross_entropy(logits[1], targets[1]), "the mean")
    assert lrt.cross_entropy(logits, 0 * targets - 1).item() == 0
    refuses(lambda: lrt.cross_entropy(logits, targets[:, :2]), "targets")


def test_logits_are_capped_and_in_float32():
    model, h = random_model(), 100 * numbers(2, 16)
    close(model.logits(h), 15 * torch.tanh(h @ model.head.weight.T / 15), "logits")
    assert model.bfloat16().logits(h.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("wrong", [
    dict(n_layer=0), dict(n_embd=10), dict(n_head=3), dict(dropout=1.0), dict(memory_layer=3),
    dict(memory_layer=0), dict(memory_layer=1.5), dict(memory_proj="both"), dict(vocab_size=2.5),
    dict(lrt=2)], ids=str)
def test_impossible_configurations_are_refused(wrong):
    refuses(lambda: random_model(**wrong), next(iter(wrong)))


def test_initial_values():
    """E ~ N(0, 1); head ~ N(0, 0.001²); W_o, W_2, W_g zero; all other matrices uniform in
    ±√(3/C). The names are those of the documentation."""
    torch.manual_seed(0)
    C = 128
    model = lrt.GPT(lrt.GPTConfig(vocab_size=1000, n_embd=C, lrt=True))
    starts = dict(alpha=1, beta=0.1, gamma=0.1, w_o=0, w_2=0, w_g=0)
    for name, p in model.named_parameters():
        kind = name.removesuffix(".weight").split(".")[-1 if "blocks" in name else 0]
        std, most = {"embed": (1, 9), "head": (0.001, 0.009)}.get(kind, (C ** -0.5, (3 / C) ** 0.5))
        if kind in starts:
            assert (p == torch.tensor(starts[kind])).all(), name
        else:
            assert abs(p.std() / std - 1) < 0.02 and 0.4 * most < p.abs().max() <= most, name
    assert {n for n, _ in model.named_parameters()} == {
        "embed.weight", "head.weight", "alpha", "beta", "gamma", "u_k.0.weight", "u_v.0.weight",
        *(f"blocks.{i}.attn.{w}.weight" for i in (0, 1) for w in ("w_q", "w_k", "w_v", "w_o", "w_g")),
        *(f"blocks.{i}.mlp.{w}.weight" for i in (0, 1) for w in ("w_1", "w_2"))}


# ---- What is given: state


def test_what_is_stored_with_gradients_replaces_no_tensor():
    """Steps without gradients between forward and backward of another pass leave it right."""
    model, idx = random_model(), tokens(2, 8)
    right = torch.autograd.grad(loop(model, idx[:, :5]).sum(), model.u_k[0].weight)[0]
    cache = model.init_cache(2)
    value = steps(model, idx[:, :5], cache).sum()
    with torch.no_grad():
        steps(model, idx[:, 5:], cache)
        chunk = model.begin(idx, cache)
        model.sweep(chunk, 2)
    close(torch.autograd.grad(value, model.u_k[0].weight)[0], right, "the gradient")
    chunk = model.begin(idx, model.init_cache(2))
    value = chunk.h.sum()
    right = torch.autograd.grad(value, model.u_k[0].weight, retain_graph=True, allow_unused=True,
                                materialize_grads=True)[0]
    w = torch.autograd.grad(value, model.blocks[0].attn.w_k.weight, retain_graph=True)[0]
    with torch.no_grad():
        model.sweep(chunk, 3)
    close(torch.autograd.grad(value, model.blocks[0].attn.w_k.weight)[0], w, "the gradient of w_k")


@pytest.mark.parametrize("T", [1, 3, 8, 20])
def test_steps_with_gradients_after_a_prompt(T):
    """Gradients of later steps are those after a cache that never was written in place."""
    model, idx = random_model(), tokens(2, T + 4)
    cache = prefilled(model, idx[:, :T], subsets=T, tol=0)
    other = lrt.Cache([kv.clone() for kv in cache.kv], cache.latent.clone(), cache.pos)
    mine, right = (steps(model, idx[:, T:], c).square().sum() for c in (cache, other))
    same_gradients(mine, right, model, "after a prompt")


@pytest.mark.parametrize("copy", ["copy", "deepcopy", "replace", "chunk"])
@torch.no_grad()
def test_two_continuations_do_not_see_each_other(copy):
    """Two caches, or two chunks of one cache, never share room."""
    import copy as python
    import dataclasses
    model, idx, other = random_model(), tokens(2, 16), tokens(2, 16, seed=5)
    other[:, :7] = idx[:, :7]
    right, its = loop(model, idx)[:, 7:], loop(model, other)[:, 7:]
    a = model.init_cache(2)
    steps(model, idx[:, :7], a)
    if copy == "chunk":
        chunks = [model.begin(x[:, 7:], a) for x in (idx, other)]
        for chunk in chunks * 9:
            model.sweep(chunk, 1)
        close(model.logits(chunks[0].h), right, "logits of the first chunk")
        close(model.logits(chunks[1].h), its, "logits of the second chunk")
        return
    b = {"copy": a.copy, "deepcopy": lambda: python.deepcopy(a),
         "replace": lambda: dataclasses.replace(a)}[copy]()
    for t in range(7, 16):
        close(model.step(idx[:, t], a), right[:, t - 7], f"logits at {t}")
        close(model.step(other[:, t], b), its[:, t - 7], f"logits at {t} of the copy")


@torch.no_grad()
def test_a_changed_cache_is_what_steps_see():
    """Rows in another order, for example, as in beam search."""
    model, idx, order = random_model(), tokens(3, 9), torch.tensor([2, 2, 0])
    cache, right = model.init_cache(3), loop(model, idx[order])
    steps(model, idx[:, :5], cache)
    cache.kv = [kv[:, order] for kv in cache.kv]
    cache.latent = cache.latent[order]
    close(steps(model, idx[order, 5:], cache), right[:, 5:], "logits after a change of rows")


def test_the_graph_is_cut_between_two_pieces():
    """As the docstring of Cache says; values stay the same."""
    model, idx = random_model(), tokens(2, 8)
    cache = model.init_cache(2)
    first = steps(model, idx[:, :4], cache).sum()
    cache.kv = [kv.detach() for kv in cache.kv]
    cache.latent = cache.latent.detach()
    second = steps(model, idx[:, 4:], cache)
    close(second, loop(model, idx)[:, 4:], "logits of the second piece")
    first.backward()
    second.sum().backward()                     # would need the freed graph of the first piece


def test_inference_mode_and_no_grad_can_be_mixed():
    model, idx = random_model(), tokens(2, 9)
    cache, right = model.init_cache(2), loop(model, idx)
    with torch.inference_mode():
        model.prefill(idx[:, :4], cache, tol=0)
    with torch.no_grad():
        close(steps(model, idx[:, 4:], cache), right[:, 4:], "logits")


def test_a_chunk_whose_cache_went_on_is_refused():
    model, idx = random_model(), tokens(2, 5)
    cache = model.init_cache(2)
    chunk = model.begin(idx, cache)
    model.step(idx[:, 0], cache)
    refuses(chunk.finish, "cache")
    refuses(lambda: model.begin(tokens(3, 1), cache), "idx")
    refuses(lambda: model.begin(idx[:, :0], cache), "idx")


# ---- What is given: forward, generate


def test_forward_is_exact_unless_an_approximation_is_asked_for():
    model, idx, targets = random_model(), tokens(2, 5), tokens(2, 5, seed=2)
    for asked, right in [
            (dict(), model.forward_sequential(idx, targets)),
            (dict(subsets=2, sweeps=2), model.forward_parallel(idx, targets, 2, 2)),
            (dict(subsets=2, loss_weights=(0, 1)), model.forward_parallel(idx, targets, 2, 1, (0, 1))),
            (dict(hops=1), model.forward_hops(idx, targets, hops=1)),
            (dict(hops=0, subsets=3, sweeps=2), model.forward_hops(idx, targets, 3, 2, 0))]:
        mine = model(idx, targets, **asked)
        close(mine[0], right[0], f"logits, {asked},")
        same_gradients(mine[1], right[1], model, f"{asked}")


@pytest.mark.parametrize("has_lrt", [True, False])
def test_forward_refuses_what_is_impossible(has_lrt):
    """A wrong argument is never taken silently for another."""
    model, idx = random_model(lrt=has_lrt), tokens(2, 5)
    for name, asked in {"subsets": dict(subsets=0), "sweeps": dict(sweeps=-1), "hops": dict(hops=-1),
                        "weights": dict(loss_weights=(0, 1)),
                        "loss_weights": dict(subsets=2, hops=1, loss_weights=(0, 1))}.items():
        refuses(lambda: model(idx, idx, **asked), name)
    refuses(lambda: model(tokens(2, 9), subsets=2), "block_size")
    refuses(lambda: model(idx[:, :0]), "tokens")
    refuses(lambda: model.forward_sequential(idx[:, :0]), "tokens")
    refuses(lambda: model(idx[:0]), "idx")


def generated(model, prompt, n=12, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(model.generate(prompt, n, generator=generator, **options)), 1)


def test_greedy_text_is_the_likeliest_of_the_loop():
    """Text longer than the window; temperature 0, a tiny one, and top_k=1 are the same."""
    model, prompt = random_model(scale=1.0), tokens(2, 3)
    text = generated(model, prompt, 30, temperature=0)
    with torch.no_grad():
        logits = loop(model, torch.cat([prompt, text], 1))
    assert text.equal(logits[:, 2:-1].argmax(-1))
    assert text.equal(generated(model, prompt, 30, temperature=1e-320))
    assert text.equal(generated(model, prompt, 30, top_k=1))


def test_sampling():
    """The seed decides; top_k takes from the k likeliest, and exactly k, equal logits or not."""
    model, prompt = random_model(), tokens(3, 4)
    assert generated(model, prompt).equal(generated(model, prompt))
    assert not generated(model, prompt).equal(generated(model, prompt, seed=2))
    assert generated(model, prompt, top_k=100).equal(generated(model, prompt))
    best = loop(model, prompt)[0, -1].topk(2).indices.tolist()
    assert {generated(model, prompt, 1, s, top_k=2)[0, 0].item() for s in range(40)} == set(best)
    with torch.no_grad():
        model.head.weight.zero_()                           # all logits are equal
    assert len({generated(model, prompt, 1, s, top_k=2)[0, 0].item() for s in range(40)}) == 2
    assert len({generated(model, prompt, 1, s, top_k=1)[0, 0].item() for s in range(9)}) == 1


def test_text_goes_on_with_its_cache():
    model, prompt, cache = random_model(), tokens(3, 4), random_model().init_cache(3)
    text = generated(model, prompt, 20, temperature=0)
    first = generated(model, prompt, 8, temperature=0, cache=cache)
    rest = generated(model, first[:, -1:], 12, temperature=0, cache=cache)
    assert torch.cat([first, rest], 1).equal(text) and cache.pos == 4 + 7 + 1 + 11
    assert list(model.generate(prompt, 0, cache=model.init_cache(3))) == []


@pytest.mark.parametrize("wrong", [dict(top_k=0), dict(top_k=1.5), dict(temperature=-1),
                                   dict(temperature=math.nan), dict(max_new_tokens=-1)], ids=str)
def test_generate_refuses_what_is_impossible(wrong):
    model = random_model()
    refuses(lambda: list(model.generate(tokens(2, 3), **dict(max_new_tokens=2) | wrong)),
            next(iter(wrong)))


def test_dropout_acts_in_training_alone():
    model, idx = random_model(dropout=0.5), tokens(2, 6)
    close(model(idx)[0], random_model()(idx)[0], "logits of an evaluation")
    model.train()
    assert (model(idx)[0] - model(idx)[0]).abs().max() > 1e-3


def test_hops_have_all_gradients_in_bfloat16():
    """(torch 2.9 keeps weights that autocast has cast without gradients.)"""
    model, idx = random_model().float(), tokens(2, 7)
    with torch.autocast("cpu", torch.bfloat16):
        model.forward_hops(idx, idx, 2, 2, 2)[1].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("asked, most", [(dict(subsets=2), 1), (dict(subsets=1, hops=1), 3)],
                         ids=str)
def test_training_compiles(asked, most):
    """Into one graph, or with hops three: the search, the last pass, and the sum."""
    model, idx, graphs = random_model(n_layer=1), tokens(2, 3), []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    same_gradients(compiled(idx, idx, **asked)[1], model(idx, idx, **asked)[1], model, "compiled")
    assert len(graphs) <= most, f"{len(graphs)} graphs"


# ---- Consistent: whatever the equations in GPT.layers

given_layers = lrt.GPT.layers


def leaky(self, chunk, at, m=None):
    h, latent = given_layers(self, chunk, at, m)
    return h, 0.5 * latent + (0 if m is None else 0.5 * m)


def two_back(self, chunk, at, m=None):
    """Half of the latent is the position's own, half is of what it received."""
    h, latent = given_layers(self, chunk, at, m)
    n, old = latent.size(-1) // 2, torch.zeros_like(latent) if m is None else m
    return h, torch.cat([latent[..., :n], old[..., :n]], dim=-1)


@pytest.fixture(params=[given_layers, leaky, two_back], ids=["as they are", "leaky", "two back"])
def equations(request, monkeypatch):
    monkeypatch.setattr(lrt.GPT, "layers", request.param)


two_configs = pytest.mark.parametrize("name", ["shared", "middle layer"])


@two_configs
def test_consistent_dial_and_hops_are_the_loop(equations, name):
    """S = T and hops = T - 1: logits, loss, gradients. The first positions are exact."""
    model, idx, targets = random_model(**CONFIGS[name]), tokens(2, 7), tokens(2, 7, seed=2)
    exact, loss = model(idx, targets)
    for dial in (dict(subsets=7, loss_weights=(0, 1)), dict(subsets=3, sweeps=3, hops=8)):
        logits, its_loss = model(idx, targets, **dial)
        close(logits, exact, f"logits, {dial},")
        same_gradients(its_loss, loss, model, f"{dial}")
    for S, K in ((1, 0), (1, 3), (2, 1), (3, 2), (5, 1)):
        n = max(K + 1, S * K)
        close(model(idx, subsets=S, sweeps=K)[0][:, :n], exact[:, :n], f"logits, {S=}, {K=},")


@two_configs
@torch.no_grad()
def test_consistent_prefill_then_step_is_step(equations, name):
    model, idx = random_model(**CONFIGS[name], block_size=4), tokens(2, 12)
    right = loop(model, idx)
    for cuts, S in (([10], 1), ([1, 9], 3), ([5, 2, 3], 30)):
        cache, end = model.init_cache(2), 0
        for cut in cuts:
            logits = model.prefill(idx[:, end:end + cut], cache, subsets=S, tol=0)
            end += cut
            close(logits, right[:, end - 1], f"logits after pieces of {cuts}, {S=},")
        close(steps(model, idx[:, 10:], cache), right[:, 10:], f"steps after {cuts}, {S=},")


@two_configs
def test_consistent_causality(equations, name):
    model, idx = random_model(**CONFIGS[name]), tokens(3, 7)
    for dial in (dict(), dict(subsets=2), dict(subsets=4, sweeps=2), dict(subsets=2, hops=1)):
        logits, other = model(idx, **dial)[0], idx.clone()
        other[:, 4] = (other[:, 4] + 1) % 11
        off = (model(other, **dial)[0] - logits).abs().amax((0, 2))
        assert (off[:4] < 1e-12).all() and (off[4:] > 1e-9).all(), dial
        close(model(idx[1:2], **dial)[0], logits[1:2], f"row 1 alone, {dial},")


def test_consistent_gradients(equations):
    model, idx, targets = random_model(), tokens(2, 5), tokens(2, 5, seed=2)
    for dial in (dict(), dict(subsets=1, sweeps=2), dict(subsets=3, loss_weights=(0, 1))):
        check_gradients(lambda: model(idx, targets, **dial)[1], model.named_parameters())


def test_consistent_plain_pass_is_the_loop(equations):
    model, idx = random_model(lrt=False), tokens(2, 8)
    close(model(idx)[0], loop(model, idx), "logits of a plain GPT")
