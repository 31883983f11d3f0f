"""What lrt.py has to do, as tests.

    python -m pytest test_lrt.py                  all of it
    python -m pytest test_lrt.py -k ex3           exercise 3 of the course
    python -m pytest test_lrt.py -k consistent    what holds whatever the equations in GPT.layers

Tiny models in float64 are compared with slow definitions, with each other, and with known.npz, the
numbers of a second implementation (course/second.py). The order is that of lrt.py. The tests of
exercise n need exercises 1 to n and nothing later. T tokens, S subsets and K sweeps as in lrt.py.
"""
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lrt

torch.set_num_threads(1)        # the models are tiny


# ---- Tiny models and their inputs


LRT = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(n_layer=3, memory_layer=1),
    "middle layer": dict(n_layer=3, memory_layer=-2, memory_proj="layerwise"),
    "one head": dict(n_layer=1, n_head=1, n_embd=6),
}
OTHER = {       # equations: what the token passes on, given its latent and its memory
    "leaky": lambda latent, m: (latent + m) / 2,
    "two back": lambda latent, m: torch.cat([latent[..., :4], m[..., :4]], dim=-1),
}
each_config = pytest.mark.parametrize("name", [*LRT, "plain"])
any_equations = pytest.mark.parametrize("name", [*LRT, *OTHER])
any_equations_and_plain = pytest.mark.parametrize("name", [*LRT, *OTHER, "plain"])
with_and_without_gradients = pytest.mark.parametrize("grad", [True, False])


def tiny(name="shared", scale=0.3, **changes):
    """A float64 model with the same random weights on every machine; none is 0."""
    config = dict(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, lrt=name != "plain")
    config.update({**LRT.get(name, {}), **changes})
    model = lrt.GPT(lrt.GPTConfig(**config)).double().eval()
    rng, start = np.random.RandomState(0), dict(alpha=1, beta=0.1, gamma=0.1)
    for parameter, p in sorted(model.named_parameters()):
        kind = parameter.removesuffix(".weight").split(".")[-1]
        small = kind in ("head", "w_o", "w_2", "w_g", *start)
        values = rng.randn(*p.shape) * (scale if small else p.size(-1) ** -0.5)
        p.data[:] = torch.from_numpy(values + start.get(kind, 0))

    def other(chunk, at, m=None, layers=model.layers):
        h, latent = layers(chunk, at, m)
        return h, OTHER[name](latent, torch.zeros_like(latent) if m is None else m)

    if name in OTHER:
        model.layers = other
    return model


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape))


def tokens(B, T, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).randint(11, size=(B, T)))


def batch(name="shared", B=2, T=6, **changes):
    """A model, idx and targets."""
    return tiny(name, **changes), tokens(B, T), tokens(B, T, seed=2)


def loop(model, idx):
    """Logits (B, T, V) by the definition, one token after another."""
    with torch.no_grad():
        return model.forward_sequential(idx)[0]


def steps(model, idx, cache):
    """Logits (B, T, V) of T steps that go on with a cache."""
    return torch.stack([model.step(token, cache) for token in idx.unbind(1)], dim=1)


def after(model, idx):
    """The cache after tokens idx, without gradients."""
    cache = model.init_cache(len(idx))
    with torch.no_grad():
        [model.step(token, cache) for token in idx.unbind(1)]
    return cache


def passes(model):
    """A list in which each later pass notes how many positions of T it computes, T, and whether
    with gradients."""
    noted = []
    def layers(chunk, at, *m, given=model.layers, **named):
        T = chunk.x0.size(1)
        noted.append((len(range(T)[at]), T, torch.is_grad_enabled()))
        return given(chunk, at, *m, **named)
    model.layers = layers
    return noted


def cost(noted):
    """In positions. Empties the list."""
    positions = sum(n for n, _, _ in noted)
    noted.clear()
    return positions


def state(x):
    """What a cache or a chunk holds, as copies."""
    h = getattr(x, "h", x.latent)
    return dict(h=h.clone(), latent=x.latent.clone(), kv=torch.stack(x.kv))


def known(*which):
    """{name: numbers} of the second implementation."""
    start, here = "/".join(which) + "/", Path(__file__).parent
    path, = [*here.glob("known.npz"), *here.glob("course/known.npz")][:1]
    file = np.load(path)
    return {name.removeprefix(start): torch.from_numpy(file[name])
            for name in file if name.startswith(start)}


# ---- How things are compared


def close(mine, expected, what="", atol=1e-10):
    """Fails unless tensors, or dicts or lists of them, are alike."""
    torch.testing.assert_close(mine, expected, rtol=0, atol=atol, msg=lambda m: f"{what} {m}")


def refused(call, wrong):
    """Each of the wrong options raises ValueError that names it (the first one of several)."""
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            call(**options)


def gradients(loss, model):
    """{parameter: gradient}, 0 for those on which the loss does not depend."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), retain_graph=True,
                                               allow_unused=True, materialize_grads=True)))


def weighed(*tensors):
    """A number that depends on each number in the tensors."""
    return sum((x * numbers(*x.shape, seed=7)).sum() for x in tensors)


def slopes(f, model, **inputs):
    """The gradients of f() fit finite differences, each along a random direction. (gradcheck takes
    minutes to say which gradient is wrong.)"""
    named, value = {**dict(model.named_parameters()), **inputs}, f()
    assert value.requires_grad, "no gradient at all"
    mine = torch.autograd.grad(value, list(named.values()), allow_unused=True,
                               materialize_grads=True)
    for (name, p), grad in zip(named.items(), mine):
        way, ends = numbers(*p.shape), []
        for distance in (1e-6, -1e-6):
            p.data += distance * way
            ends.append(f().detach())
            p.data -= distance * way
        slope = (ends[0] - ends[1]) / 2e-6
        close((grad * way).sum(), slope, f"gradient of {name}", atol=1e-6 * (1 + abs(slope)))


# ---- Configuration, and functions of a few lines


def test_impossible_configurations_are_named():
    refused(tiny, [
        dict(n_layer=0), dict(vocab_size=2.5), dict(n_embd=10), dict(dropout=1.0), dict(lrt=2),
        dict(memory_layer=3), dict(memory_layer=0), dict(memory_layer=-3),
        dict(memory_layer=1.5), dict(memory_proj="both")])


def test_rotary_turns_pair_j_by_t_over_10000_to_the_2j_over_D():
    """Also at late positions in float32."""
    angles = [10**7 * 10000 ** (-2 * j / 8) for j in range(4)]
    right = [[[f(angle) for angle in angles]] for f in (math.cos, math.sin)]
    close(lrt.rotary(10**7, 1, 8, like=torch.zeros(1)), torch.tensor(right), atol=1e-6)


@pytest.mark.parametrize("B, T", [(2, 5), (3, 1)])
def test_ex1_memory_is_the_latent_of_the_token_before(B, T):
    """m_t = latent_{t-1} and m_0 = first."""
    latent, first = numbers(B, T, 3).requires_grad_(), numbers(B, 3, seed=1).requires_grad_()
    m = lrt.shift_right(latent, first)
    close(m[:, 0], first, "m_0")
    for t in range(1, T):
        close(m[:, t], latent[:, t - 1], f"m_{t}")
    torch.autograd.gradcheck(lrt.shift_right, (latent, first), fast_mode=True)
    assert lrt.shift_right(latent.to("meta"), first.to("meta")).is_meta


def test_cross_entropy_is_a_mean_over_targets():
    """Those of -1 do not count; without any other the loss is 0."""
    logits, targets = numbers(1, 3, 11), torch.tensor([[4, -1, 7]])
    right = torch.nn.functional.cross_entropy(logits[0, ::2], targets[0, ::2])
    close(lrt.cross_entropy(logits, targets), right)
    assert lrt.cross_entropy(logits[:, 1:2], targets[:, 1:2]) == 0
    with pytest.raises(ValueError, match="targets"):
        lrt.cross_entropy(logits, targets[:, :2])


# ---- Attention.qkv


QKV = [("shared", 1), ("shared", 0), ("plain", 0)]       # with memory and without


def qkv_case(name):
    """An attention, and its inputs y, U_k m and U_v m."""
    return tiny(name).blocks[1].attn, [numbers(2, 4, 8, seed=s) for s in range(3)]


@pytest.mark.parametrize("name, memory", QKV)
def test_ex3_memory_enters_keys_and_values_through_gates(name, memory):
    """k = g_local W_k y + g_mem U_k m, v alike, and q = W_q y. Without memory, k = g_local W_k y.
    In a plain GPT, k = W_k y."""
    attention, inputs = qkv_case(name)
    inputs = [x.requires_grad_() for x in inputs[:3 if memory else 1]]
    close(dict(zip("qkv", attention.qkv(*inputs))), known("qkv", name, str(memory)))
    slopes(lambda: weighed(*attention.qkv(*inputs)), attention,
           **dict(zip(("y", "m_k", "m_v"), inputs)))


# ---- Chunk.finish


@pytest.mark.parametrize("W, past, T", [
    (7, 1, 3), (7, 6, 1), (7, 5, 9), (1, 0, 5), (2, 1, 2)])
def test_ex2_the_cache_keeps_what_later_tokens_need(W, past, T):
    """Keys and values of the last W - 1 positions, the last latent, and the number of tokens.
    ValueError for a chunk that is finished already, or whose cache went on without it."""
    n, cache = past + T, lrt.Cache([numbers(2, 2, 2, past, 4)] * 3, numbers(2, 8), pos=40)
    chunk = lrt.Chunk(numbers(2, T, 8), cache, W)
    chunk.kv = [numbers(2, 2, 2, n, 4, seed=i).requires_grad_() for i in range(3)]
    chunk.h, chunk.latent = (numbers(2, T, 8, seed=s).requires_grad_() for s in (4, 5))
    before, stays = state(chunk), [t for t in range(n) if t > n - W]
    chunk.finish()
    close(cache.latent, before["latent"][:, T - 1], "latent")
    close(torch.stack(cache.kv), before["kv"][..., stays, :], "keys and values")
    close(chunk.h, before["h"], "h, of which logits are still computed")
    assert cache.pos == 40 + T
    assert all(x.requires_grad for x in (cache.latent, *cache.kv)), "gradients end here"
    with pytest.raises(ValueError):
        chunk.finish()


# ---- Caches and chunks in use


@with_and_without_gradients
def test_chunks_and_caches_do_not_write_over_each_other(grad):
    """Two chunks of one cache, then a copy of it that goes on with other tokens, in turn."""
    model, idx, other = batch(T=12)
    texts = [idx, torch.cat([idx[:, :4], other[:, 4:]], dim=1)]
    right = [loop(model, text) for text in texts]
    with torch.set_grad_enabled(grad):
        cache = after(model, idx[:, :4])
        chunks = [model.begin(text[:, 4:7], cache) for text in texts]
        for chunk in chunks:
            model.sweep(chunk, 3)
        for n in (0, 1):
            close(model.logits(chunks[n].h), right[n][:, 4:7], f"chunk {n}")
        caches = [cache, cache.copy()]
        chunks[0].finish()
        for n in (0, 1) * 5:
            pos = caches[n].pos
            close(model.step(texts[n][:, pos], caches[n]), right[n][:, pos], f"cache {n}, {pos}")


@with_and_without_gradients
def test_a_changed_cache_counts(grad):
    """Beam search takes other rows of a cache: the next steps are theirs."""
    model, idx, _ = batch(B=3, T=12)
    order = torch.tensor([2, 2, 0])
    with torch.set_grad_enabled(grad):
        cache = after(model, idx[:, :5])
        cache.kv = [kv[:, order] for kv in cache.kv]
        cache.latent = cache.latent[order]
        close(steps(model, idx[order, 5:], cache), loop(model, idx)[order, 5:])


def test_a_long_text_in_pieces():
    """A detached cache cuts the graph between two pieces. Steps without gradients, from the same
    cache and between forward and backward, do not disturb."""
    model, idx, other = batch(T=12)
    cache = model.init_cache(2)
    steps(model, idx[:, :6], cache)
    cache.kv, cache.latent = [kv.detach() for kv in cache.kv], cache.latent.detach()
    logits = steps(model, idx[:, 6:], cache)
    cache.kv = [kv.detach() for kv in cache.kv]
    with torch.no_grad():
        steps(model, other, cache.copy())
        steps(model, other, cache)
    separate = steps(model, idx[:, 6:], after(model, idx[:, :6]))
    close(logits, separate)
    close(gradients(weighed(logits), model), gradients(weighed(separate), model))


def test_a_sweep_without_gradients_cuts_no_graph_of_finished_tokens():
    """It may look for latents before a sweep with gradients, which leads back to finished ones."""
    model, idx, _ = batch(T=6)

    def in_pieces(modes):
        cache, hidden = model.init_cache(2), []
        for piece in idx.split(3, dim=1):
            chunk = model.begin(piece, cache)
            for grad in modes:
                with torch.set_grad_enabled(grad):
                    model.sweep(chunk, 3)
            hidden.append(chunk.h)
            chunk.finish()
        return gradients(weighed(*hidden), model)

    close(in_pieces([False, True]), in_pieces([True]))


def test_a_prompt_that_is_read_in_inference_mode():
    """Steps without gradients go on from it."""
    model, idx, _ = batch(T=9)
    cache = model.init_cache(2)
    with torch.inference_mode():
        model.prefill(idx[:, :4], cache, tol=0.0)
    with torch.no_grad():
        close(steps(model, idx[:, 4:], cache), loop(model, idx)[:, 4:])


def test_new_caches_and_chunks():
    """A cache begins empty; a chunk has its dropout, and refuses tokens and memory that do not fit.
    """
    model, idx, _ = batch(T=5)
    steps(model, idx, model.init_cache(2))
    assert model.init_cache(2).pos == 0 and not model.init_cache(2).latent.any()
    for call in (lambda: model.begin(idx[:1], model.init_cache(2)),
                 lambda: model.forward_sequential(idx[:, :0]),
                 lambda: model.begin(idx, model.init_cache(2), numbers(2, 1, 8)),
                 lambda: tiny("plain").begin(idx, model.init_cache(2), numbers(2, 5, 8))):
        with pytest.raises(ValueError, match="idx|m:"):
            call()
    model.dropout.p = 0.5
    assert (model.train().begin(idx, model.init_cache(2)).x0 == 0).any()


# ---- Parameters


def test_initial_values():
    """α 1, β and γ 0.1, E ~ N(0, 1), head ~ N(0, 0.001²), branches and gates 0, others 1/√C."""
    torch.manual_seed(0)
    start = dict(alpha=1.0, beta=0.1, gamma=0.1, w_o=0.0, w_2=0.0, w_g=0.0)
    for name, p in lrt.GPT(lrt.GPTConfig(vocab_size=1000, lrt=True)).named_parameters():
        kind = name.removesuffix(".weight").split(".")[-1]
        if kind in start:
            assert (p == start[kind]).all(), name
        else:
            std = dict(embed=1, head=0.001).get(kind, 128 ** -0.5)
            assert abs(p.std() / std - 1) < 0.02, name


def test_logits_are_in_float32_or_more():
    assert tiny().bfloat16().logits(numbers(2, 8).bfloat16()).dtype == torch.float32


# ---- GPT.layers


def layers_case(name):
    """A model, x0 and m."""
    model = tiny(name)
    C = model.config.n_embd
    return model, lrt.norm(numbers(2, 4, C)), numbers(2, 4, C, seed=1)


def run_layers(model, x0, m):
    """One pass over a new chunk: all that comes out."""
    chunk = lrt.Chunk(x0, model.init_cache(len(x0)), model.config.block_size)
    h, latent = model.layers(chunk, slice(None), m)
    return dict(h=h, latent=latent, kv=torch.stack(chunk.kv))


@each_config
@pytest.mark.parametrize("memory", ["memory", "zeros", "none"])
def test_ex4_the_equations(name, memory):
    """h, latent, and the keys and values of each layer (kv). No memory is a memory of zeros."""
    model, x0, m = layers_case(name)
    m = None if memory == "none" or name == "plain" else (m * (memory == "memory"))
    close(run_layers(model, x0, m), known("layers", name, str(memory == "memory")))
    inputs = dict(x0=x0.requires_grad_())
    if m is not None:
        inputs["m"] = m.requires_grad_()
    slopes(lambda: weighed(*run_layers(model, x0, m).values()), model, **inputs)


@with_and_without_gradients
@pytest.mark.parametrize("at", [slice(1, None, 2), slice(3, None, 4), slice(0, 4)], ids=str)
def test_ex4_some_positions_again(at, grad):
    """The same memory gives the same h and latent, and other positions stay as they are."""
    model, idx, _ = batch("middle layer", block_size=4)
    with torch.set_grad_enabled(grad):
        cache, m = model.init_cache(2), numbers(2, 6, 8)
        model.begin(idx, cache).finish()
        chunk = model.begin(idx, cache, m)
        before = state(chunk)
        close(model.layers(chunk, at, m[:, at]), (chunk.h[:, at], chunk.latent[:, at]))
        close(state(chunk), before)


def test_ex4_dropout_and_device_of_x0_stay():
    model, x0, m = layers_case("shared")
    expected, model.dropout.p = run_layers(model, x0, m), 0.5
    close(run_layers(model.train(), x0, m), expected, "x0 comes with its dropout")
    assert run_layers(model.to("meta"), x0.to("meta"), None)["h"].is_meta


# ---- Exact: one token after another


@each_config
def test_ex5_step_is_the_recurrence(name):
    """12 tokens with a window of 8, each against the equations; the second of two rows."""
    model, right = tiny(name), known("exact", name)
    idx, cache = torch.cat([tokens(1, 12, seed=5), tokens(1, 12)]), model.init_cache(2)
    for t, token in enumerate(idx.unbind(1)):
        close(model.step(token, cache)[1], right["logits"][t], f"logits at position {t}")
        close(cache.latent[1], right["latent"][t], f"latent of position {t}")


@pytest.mark.parametrize("name", LRT)
def test_ex5_every_latent_counts(name):
    """Whatever is added to the latent before one of four tokens changes the last logits, and the
    gradients say how much. So do those of the parameters, through all tokens."""
    model, idx, _ = batch(name, T=4, block_size=3)
    added = {f"latent before token {t}": 0 * numbers(2, model.config.n_embd) for t in range(4)}

    def last():
        cache = model.init_cache(2)
        for token, more in zip(idx.unbind(1), added.values()):
            cache.latent = cache.latent + more.requires_grad_()
            logits = model.step(token, cache)
        return weighed(logits, cache.latent)

    slopes(last, model, **added)
    for what, grad in zip(added, torch.autograd.grad(last(), list(added.values()))):
        assert grad.abs().max() > 1e-6, f"{what} has no effect"


# ---- GPT.sweep


@with_and_without_gradients
@any_equations
@pytest.mark.parametrize("past, S", [(0, 1), (0, 2), (5, 3), (5, 9)])
def test_ex6_consistent_a_sweep_is_one_position_after_another(name, past, S, grad):
    """Subset after subset. Position t has the memory that latent_{t-1} was when its subset began.
    Gradients go through all of it. h and latent of the sweep before stay as they were, and so does
    the cache."""
    model, idx, _ = batch(name, T=7)
    cache = after(model, tokens(2, past))
    model.first = cache.latent = torch.nn.Parameter(numbers(*cache.latent.shape))
    with torch.set_grad_enabled(grad):
        chunk, slow = model.begin(idx, cache), model.begin(idx, cache)
        for n in range(2):
            h, latent = chunk.h, chunk.latent
            before = state(cache), h.clone(), latent.clone()
            model.sweep(chunk, S)
            close((state(cache), h, latent), before, "changed in place")
            for s in range(min(S, 7)):
                h, latent = slow.h.clone(), slow.latent.clone()
                for t in range(s, 7, S):
                    m = slow.latent[:, t - 1] if t else cache.latent
                    new = model.layers(slow, slice(t, t + 1), m[:, None])
                    h[:, t], latent[:, t] = (x[:, 0] for x in new)
                slow.h, slow.latent = h, latent
            close(state(chunk), state(slow), f"sweep {n + 1}")
    assert cache.pos == past
    if grad:
        close(*(gradients(weighed(*state(x).values()), model) for x in (chunk, slow)))


def test_ex6_impossible_sweeps_and_other_devices():
    """ValueError for no subsets, for a finished chunk, and for a plain GPT."""
    model = tiny().to("meta")
    chunk = model.begin(tokens(2, 5).to("meta"), model.init_cache(2))
    model.sweep(chunk, 2)
    assert chunk.h.is_meta
    with pytest.raises(ValueError, match="subsets"):
        model.sweep(chunk, 0)
    chunk.finish()
    plain = tiny("plain")
    for model, chunk in ((model, chunk), (plain, plain.begin(tokens(2, 5), plain.init_cache(2)))):
        with pytest.raises(ValueError):
            model.sweep(chunk, 2)


# ---- GPT.forward_parallel


DIALS = [(1, 2), (2, 1), (3, 2), (7, 1)]        # S, K for 7 tokens


@pytest.mark.parametrize("name", ["shared", "middle layer"])
@pytest.mark.parametrize("S, K", DIALS)
def test_ex7_logits_after_each_sweep(name, S, K):
    """Against the equations; the second of two rows."""
    model, right = tiny(name), known("passes", name, f"S={S}")["logits"]
    idx = torch.cat([tokens(1, 7, seed=5), tokens(1, 7)])
    for k in range(K + 1):
        logits, loss = model(idx, subsets=S, sweeps=k)
        close(logits[1], right[k], f"logits after sweep {k}")
        assert loss is None


@any_equations
@pytest.mark.parametrize("B, T", [(2, 5), (3, 1)])
def test_ex7_consistent_S_T_is_the_loop(name, B, T):
    """T subsets or more, and one sweep: the logits of the loop, and with loss weights (0, 1) its
    loss and gradients."""
    model, idx, targets = batch(name, B, T)
    right = model(idx, targets)
    for S in (T, T + 2):
        mine = model(idx, targets, subsets=S, loss_weights=(0, 1))
        close(mine, right, f"logits, loss, S = {S}")
    close(gradients(mine[1], model), gradients(right[1], model))


@any_equations
def test_ex7_consistent_how_many_positions_are_exact(name):
    """The first max(K + 1, S K), and for random weights no more."""
    model, idx, _ = batch(name, T=8)
    exact = loop(model, idx)
    for S, K in ((1, 0), (1, 3), (2, 0), (2, 1), (2, 3), (3, 2), (5, 1), (8, 1)):
        off = (model(idx, subsets=S, sweeps=K)[0] - exact).abs().amax((0, 2)) > 1e-9
        assert [*off, True].index(True) == max(K + 1, S * K), f"S = {S}, K = {K}"


def test_ex7_cost_is_a_pass_and_one_more_for_each_sweep():
    """Whatever S is. Passes of weight 0 compute no logits."""
    model, idx, targets = batch(T=7)
    noted, heads = passes(model), []
    model.head.register_forward_hook(lambda *_: heads.append(1))
    for S, K in ((1, 0), *DIALS):
        model(idx, targets, subsets=S, sweeps=K, loss_weights=[0] * K + [1])
        assert cost(noted) == 7 * (1 + K), f"S = {S}, K = {K}"
    assert len(heads) == 5, "one of the passes has a weight, in each of 5 calls"


@pytest.mark.parametrize("ignored", [[3], [0, 1, 2, 3], [0, 2, 4, 6], range(7)], ids=str)
@pytest.mark.parametrize("S, K", [(3, 2), (20, 1), (1, 0)])
def test_ex7_loss_is_a_mean_over_passes(S, K, ignored):
    """(L_0 + S Σ L_k) / (1 + S K), or Σ w_k L_k, where L_k is the mean loss after sweep k, and S is
    at most T. Targets of -1 do not count."""
    model, idx, targets = batch(T=7)
    targets[:, list(ignored)] = -1
    L = [lrt.cross_entropy(model(idx, subsets=S, sweeps=k)[0], targets) for k in range(K + 1)]
    n = min(S, 7)
    for w in ([0.3, 0.0, 1.5], [1.0, 0.0, 0.0], None):
        loss = model(idx, targets, subsets=S, sweeps=K, loss_weights=w and w[:K + 1])[1]
        w = w or [x / (1 + n * K) for x in (1, n, n)]
        close(loss, sum(a * b for a, b in zip(w, L)), f"weights of the passes: {w}")


@pytest.mark.parametrize("name, S, K, weights", [
    ("shared", 3, 2, (0, 0, 1)), ("shared", 2, 1, None), ("first layer", 1, 2, (0, 1, 0)),
    ("two back", 3, 2, None), ("plain", 2, 1, None)])
def test_ex7_consistent_gradients_go_through_every_pass(name, S, K, weights):
    model, idx, targets = batch(name, T=5, n_layer=2)
    slopes(lambda: model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1], model)


def test_ex7_consistent_a_plain_gpt_is_pass_0():
    """One pass whatever the dial says, with the logits and the loss of the loop."""
    model, idx, targets = batch("plain")
    right, noted = model.forward_sequential(idx, targets), passes(model)
    for dial in (dict(), dict(subsets=3, sweeps=2), dict(subsets=2, loss_weights=(0.2, 0.3))):
        close(model(idx, targets, **dial), right, f"logits, loss, {dial}")
        assert noted.pop() == (6, 6, True) and not noted, f"more than one pass, {dial}"


# ---- GPT.forward_hops


def one_pass(model, idx, z):
    """A chunk after one pass with latents z of the tokens before."""
    return model.begin(idx, model.init_cache(len(z)), lrt.shift_right(z, torch.zeros_like(z[:, 0])))


@pytest.mark.parametrize("name, S, K", [
    ("shared", None, 1), ("first layer", None, 1), ("middle layer", 2, 1), ("layerwise", 1, 2)])
def test_ex9_each_hop_adds_a_term_of_the_series(name, S, K):
    """dloss/dθ = ∂loss/∂θ + λᵀ ∂latent/∂θ with λ = g + Jᵀ g + Jᵀ Jᵀ g + ..., one term for each hop.
    Here g and J are written out: derivatives of one pass by the latents z, which the dial leaves."""
    model, idx, targets = batch(name, B=1, T=4)
    chunk = model.begin(idx, model.init_cache(1))
    for _ in range(K):
        model.sweep(chunk, S or 4)              # S = T is the loop
    z = chunk.latent.detach().requires_grad_()
    chunk = one_pass(model, idx, z)
    logits = model.logits(chunk.h)
    loss = lrt.cross_entropy(logits, targets)
    J = torch.autograd.functional.jacobian(lambda z: one_pass(model, idx, z).latent.flatten(), z)
    term, lam = torch.autograd.grad(loss, z, retain_graph=True)[0].flatten(), 0
    for hops in range(5):
        mine = model.forward_hops(idx, targets, S, K, hops)
        close(mine, (logits, loss), f"logits, loss, {hops} hops")
        right = loss + (lam * chunk.latent.flatten()).sum()
        close(gradients(mine[1], model), gradients(right, model), f"{hops} hops")
        assert all(p.grad is None for p in model.parameters()), "gradients before backward"
        assert hops > 2 or term.norm() > 1e-4, "or this test would see nothing"
        lam, term = lam + term, J.flatten(1).T @ term


@any_equations_and_plain
@pytest.mark.parametrize("B, T, S, K", [(2, 6, None, 1), (2, 6, 3, 2), (3, 1, None, 1)])
def test_ex9_consistent_T_1_hops_have_the_gradient_of_the_loop(name, B, T, S, K):
    """With exact latents, T - 1 hops and more: logits, loss and gradients of the loop."""
    model, idx, targets = batch(name, B, T)
    right = model.forward_sequential(idx, targets)
    for hops in (T - 1, T + 1):
        mine = model(idx, targets, subsets=S, sweeps=K, hops=hops)
        close(mine, right, f"logits, loss, {hops} hops")
        close(gradients(mine[1], model), gradients(right[1], model), f"{hops} hops")


@pytest.mark.parametrize("S, K", [(1, 4), (4, 2), (None, 0)])
def test_ex9_only_the_last_pass_has_gradients_logits_and_dropout(S, K):
    """It computes all positions; those before it look for the latents."""
    model, idx, targets = batch(T=4, dropout=0.5)
    heads, noted, losses = [], passes(model.train()), []
    model.head.register_forward_hook(lambda *_: heads.append(1))
    for dial in ((S, K), (4, 1)):
        torch.manual_seed(0)
        losses.append(model.forward_hops(idx, targets, *dial, 0)[1])
        assert noted[-1] == (4, 4, True) and not any(grad for _, _, grad in noted[:-1])
        assert cost(noted) == 4 * (2 + dial[1])
    assert len(heads) == 2, "logits of the last pass, in two calls"
    close(losses[0], losses[1], "losses with exact latents and the same dropout")


@pytest.mark.parametrize("S", [2, None])
def test_ex9_without_gradients_there_are_logits_and_loss(S):
    model, idx, targets = batch()
    right = model.forward_hops(idx, targets, S)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            mine = model.forward_hops(idx, targets, S)
            close(mine, right)
        assert not mine[1].requires_grad
    assert model.forward_hops(idx, subsets=S)[1] is None


# ---- GPT.forward


@pytest.mark.parametrize("name", ["shared", "plain"])
def test_ex7_impossible_dials_are_named(name):
    refused(functools.partial(*batch(name)), [
        dict(subsets=0), dict(subsets=2.5), dict(sweeps=-1), dict(sweeps=1.5, subsets=2),
        dict(loss_weights=(1,), subsets=2), dict(loss_weights=(0, 0), subsets=2),
        dict(loss_weights=(1, 1, 1), subsets=2), dict(loss_weights=(1, 1))])


@pytest.mark.parametrize("name", ["shared", "plain"])
def test_ex9_impossible_hops_are_named(name):
    refused(functools.partial(*batch(name)), [
        dict(hops=-1), dict(hops=1.5), dict(subsets=0, hops=1), dict(sweeps=-1, hops=1),
        dict(loss_weights=(0, 1), subsets=2, hops=1)])


@pytest.mark.parametrize("dial", [dict(), dict(subsets=2), dict(hops=1)])
def test_impossible_texts_are_refused(dial):
    model, idx, _ = batch(T=9)
    for text in (idx, idx[:, :0], idx[:0]):
        with pytest.raises(ValueError):
            model(text, **dial)


@any_equations
@pytest.mark.parametrize("dial", [dict(), dict(subsets=1, sweeps=2), dict(subsets=2)])
def test_consistent_causality(name, dial):
    """A token changes the logits at its own position and at all later ones, in its own row."""
    model, idx, _ = batch(name)
    logits = model(idx, **dial)[0]
    idx[1, 3] = (idx[1, 3] + 1) % 11
    changed = (model(idx, **dial)[0] - logits).abs().amax(2) > 1e-9
    assert changed.tolist() == [[False] * 6, [False] * 3 + [True] * 3]


def test_dropout_is_drawn_in_training_and_with_gradients():
    model, idx, _ = batch(dropout=0.5)
    exact = loop(model, idx)
    close(loop(model.train(), idx), exact)
    assert (model(idx)[0] - exact).abs().max() > 1e-3


@pytest.mark.parametrize("dial", [dict(subsets=2), dict(subsets=2, hops=1)])
def test_torch_compile_keeps_loss_and_gradients(dial):
    """In one graph. (Hops break it once, where they take gradients.)"""
    model, idx, targets = batch(T=4, n_layer=1)
    right = model(idx, targets, **dial)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph="hops" not in dial)
    mine = compiled(idx, targets, **dial)
    close(mine, right)
    close(gradients(mine[1], model), gradients(right[1], model))


# ---- GPT.prefill


# Settings, parameters of 0, S, and the rows. The name says what settles last. The weights are near
# their initial values, so that the memory contracts.
PREFILL = {
    "all": (dict(), "none", 3, [1]),
    "the first row": (dict(), "none", 3, [1, 3]),
    "the last row": (dict(), "none", 3, [3, 1]),
    "upper keys and values": (dict(n_layer=3, memory_layer=1, memory_proj="layerwise"),
                              ("gamma", "u_k.0", "u_v.0"), 2, [1]),
    "keys": (dict(n_layer=1), ("gamma", "u_v"), 3, [1]),
    "values": (dict(n_layer=1), ("gamma", "u_k"), 3, [1]),
    "h and latents": (dict(n_layer=1), ("u_", *(f"blocks.0.attn.w_{x}" for x in "kv")), 1, [1]),
}
TOLERANCES = [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6]


def prefill_case(case):
    """A model, a prompt and S."""
    changes, zero, S, rows = PREFILL[case]
    model = tiny(scale=0.05, block_size=64, **changes)
    for name, p in model.named_parameters():
        p.data *= not name.startswith(zero)
    return model, torch.cat([tokens(1, 20, seed) for seed in rows]), S


@pytest.mark.parametrize("case", PREFILL)
def test_ex8_sweeps_go_on_until_all_has_settled(case):
    """That is, until a sweep changes no number of h, latents, keys and values by more than tol, in
    no row, position and layer."""
    model, idx, S = prefill_case(case)
    noted, sweeps = passes(model), []
    for tol in TOLERANCES:
        model.prefill(idx, model.init_cache(len(idx)), subsets=S, tol=tol)
        sweeps.append(cost(noted) / 20 - 1)
    assert sweeps == known("prefill", case)["sweeps"].tolist(), f"sweeps for tol = {TOLERANCES}"


@any_equations_and_plain
@pytest.mark.parametrize("S, cuts", [(1, [25]), (3, [3, 4, 1, 2]), (100, [8, 2])])
def test_ex8_consistent_prefill_then_step_is_step(name, S, cuts):
    """A prompt in pieces, whatever the weights: ⌈T/S⌉ sweeps are enough. The latent that the cache
    begins with counts."""
    model, idx, _ = batch(name, T=sum(cuts) + 2)
    cache, right, noted = model.init_cache(2), model.init_cache(2), passes(model)
    cache.latent = right.latent = numbers(*cache.latent.shape)
    for piece in idx[:, :-2].split(cuts, dim=1):
        logits, T = steps(model, piece, right)[:, -1].detach(), piece.size(1)
        cost(noted)
        close(model.prefill(piece, cache, subsets=S, tol=0), logits, f"logits at {cache.pos}")
        assert cost(noted) <= T * (1 + (math.ceil(T / S) if model.config.lrt else 0))
        close(state(cache), state(right), f"cache at {cache.pos}")
    close(steps(model, idx[:, -2:], cache), steps(model, idx[:, -2:], right), "later steps")


@pytest.mark.parametrize("W, sizes", [(8, [512, 3]), (513, [513, 2])])
def test_ex8_a_long_prompt_is_read_in_pieces(W, sizes):
    """Of 512 tokens, or block_size if that is more; each is swept until it has settled."""
    model, idx, _ = batch(B=1, T=516, scale=0.05, n_layer=1, block_size=W)
    right, cache, noted = loop(model, idx), model.init_cache(1), passes(model)
    close(model.prefill(idx[:, :515], cache, tol=1e-10), right[:, 514], "logits", atol=1e-8)
    assert [T for n, T, _ in noted if n == T] == sizes
    close(model.step(idx[:, 515], cache), right[:, 515], "the next step", atol=1e-8)


def test_ex8_a_tolerance_is_no_less_than_rounding():
    """In bfloat16 rounding moves numbers by more than 1e-3; that is no reason to go on."""
    model, idx, _ = batch(B=1, T=120, scale=0.05, block_size=128)
    noted = passes(model.bfloat16())
    model.prefill(idx, model.init_cache(1))
    assert cost(noted) <= 120 * 20


def test_ex8_prompts_have_neither_dropout_nor_gradients():
    """But the steps after a prompt have gradients, those of steps after the detached loop."""
    model, idx, _ = batch(dropout=0.5)
    cache, right = model.train().init_cache(2), after(model, idx[:, :5])
    assert not model.prefill(idx[:, :5], cache, tol=0).requires_grad
    close(state(cache), state(right))
    model.eval()
    close(*(gradients(weighed(model.step(idx[:, 5], c)), model) for c in (cache, right)))


def test_ex8_impossible_prompts_are_refused():
    model, idx, _ = batch()
    refused(functools.partial(model.prefill, idx, model.init_cache(2)),
            [dict(subsets=0), dict(subsets=1.5), dict(tol=-1)])
    with pytest.raises(ValueError):
        model.prefill(idx[:, :0], model.init_cache(2))


# ---- GPT.generate


def generated(model, prompt, n, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(model.generate(prompt, n, generator=generator, **options)), dim=1)


def test_text_of_temperature_0_is_the_likeliest_by_the_loop():
    """Also where it is longer than the window, and where it goes on with the cache of a text
    before, which lacks only the last token."""
    model, prompt, _ = batch(T=3, scale=1.0)
    text, cache = generated(model, prompt, 12, temperature=0), model.init_cache(2)
    close(text, loop(model, torch.cat([prompt, text], dim=1))[:, 2:-1].argmax(-1))
    close(generated(model, prompt, 5, temperature=1e-320, cache=cache), text[:, :5])
    assert cache.pos == 3 + 4
    close(generated(model, text[:, 4:5], 7, top_k=1, cache=cache), text[:, 5:])
    assert not list(model.generate(prompt, 0, cache=cache)) and cache.pos == 3 + 4 + 7 + 3


def test_text_depends_on_seed_and_top_k():
    """top_k takes k tokens, also if others have the same logits, or if there are fewer."""
    model, prompt, _ = batch(B=1, T=3)
    text = generated(model, prompt, 20)
    close(generated(model, prompt, 20, top_k=100), text)
    assert not generated(model, prompt, 20, seed=1).equal(text)
    model.head.weight.data[:] = 0
    for k in (1, 2):
        assert len(set(generated(model, prompt, 40, top_k=k)[0].tolist())) == k


def test_impossible_text_is_refused():
    model, prompt, _ = batch()
    refused(lambda max_new_tokens=2, **wrong: generated(model, prompt, max_new_tokens, **wrong), [
        dict(top_k=0), dict(top_k=1.5), dict(temperature=-1), dict(temperature=math.nan),
        dict(temperature=math.inf), dict(max_new_tokens=-1)])
