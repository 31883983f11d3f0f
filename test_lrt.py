"""What lrt.py has to do, as tests.

    python -m pytest test_lrt.py                  all of it
    python -m pytest test_lrt.py -k ex3           exercise 3 of the course
    python -m pytest test_lrt.py -k consistent    what holds whatever the equations in GPT.layers

Tiny models in float64 are compared with slow definitions, with each other, and with known.npz, the
numbers of a second implementation (course/second.py). The order is that of lrt.py. The tests of
exercise n need exercises 1 to n and nothing later.
"""
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lrt

torch.set_num_threads(1)        # the models are tiny


# ---- Tiny models and their inputs


def leaky(model):
    """Other equations: half of the memory is passed on."""
    def layers(chunk, at, m=None, given=model.layers):
        h, latent = given(chunk, at, m)
        return h, 0.5 * latent + (0 if m is None else 0.5 * m)
    model.layers = layers


def two_back(model):
    """Other equations: half of the latent comes from the token before the last."""
    def layers(chunk, at, m=None, given=model.layers):
        h, latent = given(chunk, at, m)
        before = torch.zeros_like(latent) if m is None else m
        return h, torch.cat([latent[..., :4], before[..., :4]], dim=-1)
    model.layers = layers


def upper(model):
    """Other equations: no memory in keys and values of the first layer."""
    model.memory_kv = lambda m, given=model.memory_kv: [(None, None)] + given(m)[1:]


LRT = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(n_layer=3, memory_layer=1),
    "middle layer": dict(n_layer=3, memory_layer=-2, memory_proj="layerwise"),
    "one head": dict(n_layer=1, n_head=1, n_embd=6),
}
PLAIN = dict(plain=dict(lrt=False))
OTHER = {f.__name__: dict(equations=f) for f in (leaky, two_back, upper)}
CONFIGS = {**LRT, **PLAIN, **OTHER}

each_lrt = pytest.mark.parametrize("name", LRT)
each_config = pytest.mark.parametrize("name", {**LRT, **PLAIN})
whatever_the_equations = pytest.mark.parametrize("name", {**LRT, **OTHER})
with_and_without_gradients = pytest.mark.parametrize("grad", [True, False])


def tiny(name="shared", scale=0.3, **changes):
    """A float64 model with the same random weights on every machine; none is 0."""
    config = dict(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, lrt=True)
    config.update({**CONFIGS[name], **changes})
    equations = config.pop("equations", None)
    model = lrt.GPT(lrt.GPTConfig(**config)).double().eval()
    rng, start = np.random.RandomState(0), dict(alpha=1, beta=0.1, gamma=0.1)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            kind = name.removesuffix(".weight").split(".")[-1]
            small = kind in ("head", "w_o", "w_2", "w_g", *start)
            spread = scale if small else p.size(-1) ** -0.5
            p.copy_(torch.from_numpy(start.get(kind, 0) + spread * rng.randn(*p.shape)))
    if equations:
        equations(model)
    return model


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape))


def tokens(B, T, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).randint(11, size=(B, T)))


def loop(model, idx):
    """Logits (B, T, V) by the definition, one token after another."""
    with torch.no_grad():
        return model.forward_sequential(idx)[0]


def steps(model, idx, cache):
    """Logits (B, T, V) of one step after another, which go on with a cache."""
    return torch.stack([model.step(token, cache) for token in idx.unbind(1)], dim=1)


def after(model, idx):
    """The cache after tokens idx (B, T), without gradients."""
    cache = model.init_cache(len(idx))
    with torch.no_grad():
        steps(model, idx, cache)
    return cache


def passes(model):
    """A list in which each later pass notes its chunk's T, its positions and torch's grad mode."""
    noted = []
    def layers(chunk, at, *m, given=model.layers, **named):
        T = chunk.x0.size(1)
        noted.append((T, len(range(T)[at]), torch.is_grad_enabled()))
        return given(chunk, at, *m, **named)
    model.layers = layers
    return noted


def state(x):
    """What a cache or a chunk holds, as copies."""
    held = dict(h=getattr(x, "h", x.latent), latent=x.latent)
    held.update((f"keys and values of layer {i}", kv) for i, kv in enumerate(x.kv, 1))
    return {name: tensor.clone() for name, tensor in held.items()}


def known(*which):
    """{name: numbers} of the second implementation."""
    here = Path(__file__).parent
    path = next(p for p in (here / "known.npz", here / "course" / "known.npz") if p.exists())
    with np.load(path) as file:
        start = "/".join(which) + "/"
        return {name.removeprefix(start): torch.from_numpy(file[name])
                for name in file if name.startswith(start)}


# ---- What is compared, and how


def close(mine, expected, what="", atol=1e-10):
    """Fails, and says what is wrong, unless tensors (or dicts or lists of them) are alike."""
    torch.testing.assert_close(mine, expected, rtol=0, atol=atol, msg=lambda m: f"{what}: {m}")


def gradients(loss, model):
    """{name: gradient}, 0 where the loss does not depend on a parameter."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), retain_graph=True,
                                               allow_unused=True, materialize_grads=True)))


def weighed(*tensors):
    """A number that depends on each number in the tensors."""
    return sum((x * numbers(*x.shape, seed=7)).sum() for x in tensors)


def slopes(f, named):
    """The gradient of f() by each named tensor fits finite differences along a random direction.
    (gradcheck takes minutes to say which gradient is wrong.)"""
    grads = torch.autograd.grad(f(), list(named.values()), allow_unused=True,
                                materialize_grads=True)
    for (name, p), grad in zip(named.items(), grads):
        way, ends = numbers(*p.shape), []
        for distance in (1e-6, -1e-6):
            p.data += distance * way
            ends.append(f().detach())
            p.data -= distance * way
        slope = (ends[0] - ends[1]) / 2e-6
        close((grad * way).sum(), slope, f"gradient of {name}", atol=1e-6 * (1 + abs(slope)))


# ---- Configuration, and functions of a few lines


@pytest.mark.parametrize("wrong", [
    dict(n_layer=0), dict(vocab_size=2.5), dict(n_embd=10), dict(n_embd=16, n_head=3),
    dict(dropout=1.0), dict(memory_layer=3), dict(memory_layer=0), dict(memory_layer=-3),
    dict(memory_layer=1.5), dict(memory_proj="both"), dict(lrt=2)], ids=str)
def test_impossible_configurations_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny(**wrong)


def test_norm_is_rms_norm():
    x = numbers(2, 3, 16)
    close(lrt.norm(x), x / x.square().mean(-1, keepdim=True).sqrt())
    close(lrt.norm(0 * x), 0 * x, "norm of zeros")


def test_rotary_angles():
    """Position t turns pair j by t / 10000^(2j/D), also for late positions in float32."""
    angles = [[t * 10000 ** (-2 * j / 8) for j in range(4)] for t in range(10**7, 10**7 + 3)]
    right = [[[f(x) for x in row] for row in angles] for f in (math.cos, math.sin)]
    mine = lrt.rotary(10**7, 3, 8, like=torch.zeros(1))
    close(mine, torch.tensor(right), "cos and sin", atol=1e-6)


@pytest.mark.parametrize("B, T", [(2, 5), (3, 1)])
def test_ex1_memory_is_the_latent_of_the_token_before(B, T):
    """m_t = latent_{t-1} and m_0 = first."""
    latent, first = numbers(B, T, 3).requires_grad_(), numbers(B, 3, seed=1).requires_grad_()
    m = lrt.shift_right(latent, first)
    close(m[:, 0], first, "m_0")
    for t in range(1, T):
        close(m[:, t], latent[:, t - 1], f"m_{t}")
    close([latent, first], [numbers(B, T, 3), numbers(B, 3, seed=1)], "changed in place")
    torch.autograd.gradcheck(lrt.shift_right, (latent, first), fast_mode=True)
    assert lrt.shift_right(latent.to("meta"), first.to("meta")).device.type == "meta"


def test_cross_entropy_is_a_mean_over_targets():
    """Targets of -1 do not count; without any target the loss is 0."""
    logits, targets = numbers(2, 3, 11), tokens(2, 3)
    p = logits.log_softmax(-1)
    targets[0, 1:] = -1
    kept = [p[0, 0, targets[0, 0]], *(p[1, t, targets[1, t]] for t in range(3))]
    close(lrt.cross_entropy(logits, targets), -sum(kept) / 4)
    assert lrt.cross_entropy(logits, torch.full_like(targets, -1)) == 0
    with pytest.raises(ValueError, match="targets"):
        lrt.cross_entropy(logits, targets[:, :2])


# ---- Attention.qkv


QKV = {"two heads": dict(), "three heads": dict(n_head=3, n_embd=12), "plain": dict(lrt=False)}


def qkv_case(case):
    """An attention, and its inputs y, U_k m and U_v m."""
    model = tiny(**QKV[case])
    return model.blocks[1].attn, [numbers(2, 4, model.config.n_embd, seed=s) for s in range(3)]


@pytest.mark.parametrize("case, memory", [
    (case, memory) for case in QKV for memory in ("with memory", "without memory")
    if (case, memory) != ("plain", "with memory")])
def test_ex3_memory_enters_keys_and_values_through_gates(case, memory):
    """k = g_local W_k y + g_mem U_k m, v alike, q = W_q y. Without memory, g_local W_k y; in a
    plain GPT, W_k y."""
    attention, inputs = qkv_case(case)
    inputs = [x.requires_grad_() for x in inputs[:3 if memory == "with memory" else 1]]
    close(dict(zip("qkv", attention.qkv(*inputs))), known("qkv", case, memory))
    close(inputs, qkv_case(case)[1][:len(inputs)], "changed in place")
    named = {**dict(attention.named_parameters()), **dict(zip(("y", "U_k m", "U_v m"), inputs))}
    for n in range(3):
        slopes(lambda: weighed(attention.qkv(*inputs)[n]), named)


# ---- Cache and Chunk: what is given


WINDOWS = pytest.mark.parametrize("W, past, T", [
    (7, 0, 3), (7, 2, 1), (7, 6, 1), (7, 5, 2), (7, 6, 9), (7, 0, 7), (1, 0, 1), (1, 0, 5), (2, 1, 2)])


def made_up_chunk(W, past, T):
    """A chunk of T tokens after `past` others that can still be seen. It holds random numbers."""
    finished = [numbers(2, 2, 2, past, 4, seed=i) for i in range(3)]
    chunk = lrt.Chunk(numbers(2, T, 8), lrt.Cache(finished, numbers(2, 8), pos=40), W)
    chunk.kv = [numbers(2, 2, 2, past + T, 4, seed=i).requires_grad_() for i in range(3)]
    chunk.h, chunk.latent = (numbers(2, T, 8, seed=s).requires_grad_() for s in (4, 5))
    return chunk


@WINDOWS
def test_each_position_sees_the_last_W(W, past, T):
    """Its own among them, and no later one: all positions of a chunk, a subset, or a stretch."""
    chunk = made_up_chunk(W, past, T)
    for at in (slice(None), slice(1, None, 2), slice(0, None, 3), slice(0, 4), slice(2, 5)):
        queries, keys = range(past, past + T)[at], range(past + T)
        if len(queries) == 0:
            continue
        right = torch.tensor([[0 <= q - k < W for k in keys] for q in queries])
        mask = chunk.attention_mask(at)
        mine = mask.get("attn_mask", torch.ones_like(right))
        close(mine.tril() if mask.get("is_causal") else mine, right, f"positions {at}")


@with_and_without_gradients
@pytest.mark.parametrize("at", [slice(1, None, 2), slice(0, 4), slice(2, 3)], ids=str)
def test_keys_and_values_are_kept_in_their_place(at, grad):
    """First those of all positions, behind the finished ones; then new ones at some positions."""
    cache = lrt.Cache([numbers(2, 2, 2, 3, 4)], numbers(2, 8), pos=3)
    chunk, new = lrt.Chunk(numbers(2, 5, 8), cache, 8), numbers(2, 2, 2, 5, 4, seed=1)
    with torch.set_grad_enabled(grad):
        chunk.store(0, slice(None), *new)
        close(chunk.kv[0], torch.cat([cache.kv[0], new], dim=3), "first pass")
        seen = chunk.store(0, at, *(2 * new[..., at, :]))
    new[..., at, :] *= 2
    close(seen, torch.cat([numbers(2, 2, 2, 3, 4), new], dim=3), f"positions {at}")
    close(chunk.kv[0], seen)


@with_and_without_gradients
def test_chunks_and_caches_do_not_write_over_each_other(grad):
    """Two chunks of one cache, a copy that goes on with other tokens, and steps in turn."""
    model = tiny()
    idx, cache = tokens(2, 12), after(model, tokens(2, 12)[:, :4])
    others = tokens(2, 12, seed=5)
    def alone(idx, n):
        return loop(model, idx[:, :n])[:, 4:]
    others[:, :4] = idx[:, :4]
    with torch.set_grad_enabled(grad):
        first, second = model.begin(idx[:, 4:7], cache), model.begin(others[:, 4:7], cache)
        before = state(second)
        model.sweep(first, 3)
        close(state(second), before, "a chunk, while another one of the same cache is swept")
        model.sweep(second, 3)
        close(model.logits(first.h), alone(idx, 7), "one chunk")
        close(model.logits(second.h), alone(others, 7), "another chunk of the same cache")
        copy = cache.copy()
        first.finish()
        for t in range(4, 12):
            close(model.step(others[:, t], copy), alone(others, t + 1)[:, -1], f"copy, step {t}")
            if t > 6:
                close(model.step(idx[:, t], cache), alone(idx, t + 1)[:, -1], f"cache, step {t}")


@with_and_without_gradients
def test_a_changed_cache_counts(grad):
    """Beam search takes other rows of a cache: the next steps are theirs."""
    model, order = tiny(), torch.tensor([2, 2, 0])
    idx = tokens(3, 12)
    with torch.set_grad_enabled(grad):
        cache = model.init_cache(3)
        steps(model, idx[:, :5], cache)
        cache.kv = [kv[:, order] for kv in cache.kv]
        cache.latent = cache.latent[order]
        close(steps(model, idx[order, 5:], cache), loop(model, idx)[order, 5:])


def test_steps_without_gradients_do_not_disturb_gradients():
    """Between forward and backward of one sequence, others go on, from the same cache too."""
    model, idx = tiny(), tokens(2, 9)
    def backward(disturb):
        cache = model.init_cache(2)
        model.prefill(idx[:, :3], cache, tol=0)
        logits = steps(model, idx[:, 3:6], cache)
        if disturb:
            with torch.no_grad():
                copy = cache.copy()
                copy.kv = [kv.detach() for kv in copy.kv]
                steps(model, idx[:, 6:], copy)
                steps(model, idx[:, 6:], cache)
        return gradients(weighed(logits), model)
    close(backward(True), backward(False))


def test_a_long_text_in_pieces():
    """Detaching the cache cuts the graph between two pieces, and changes no number."""
    model, idx = tiny(), tokens(2, 12)
    cache = after(model, idx[:, :6])
    separate = steps(model, idx[:, 6:], cache)
    cache = model.init_cache(2)
    steps(model, idx[:, :6], cache)
    cache.kv, cache.latent = [kv.detach() for kv in cache.kv], cache.latent.detach()
    whole = steps(model, idx[:, 6:], cache)
    close(whole, separate)
    close(gradients(weighed(whole), model), gradients(weighed(separate), model))


def test_without_gradients_steps_copy_no_keys():
    """Keys and values grow in place: of 40 steps few take new memory, and few positions stay."""
    model = tiny()
    held, cache = [], model.init_cache(2)
    with torch.no_grad():
        for token in tokens(2, 40).unbind(1):
            model.step(token, cache)
            held.append(cache.kv[1].untyped_storage())
    assert len({x.data_ptr() for x in held}) < 10
    assert cache.kv[1].size(3) == 7


# ---- Chunk.finish


@WINDOWS
def test_ex2_the_cache_keeps_what_later_tokens_need(W, past, T):
    """Keys and values of the last W - 1 positions, the last latent, the number of tokens."""
    chunk = made_up_chunk(W, past, T)
    cache, before, stays = chunk.cache, state(chunk), range(past + T)[max(0, past + T - W + 1):]
    chunk.finish()
    assert cache.pos == 40 + T
    close(cache.latent, chunk.latent[:, T - 1], "latent")
    for i in range(3):
        close(cache.kv[i].unbind(3), tuple(chunk.kv[i][..., j, :] for j in stays), f"layer {i}")
    close(state(chunk), before, "the chunk, changed in place")
    assert all(x.requires_grad for x in (cache.latent, *cache.kv)), "gradients end here"


@pytest.mark.parametrize("between", ["finish", "step"])
def test_ex2_a_chunk_is_finished_once(between):
    """ValueError for a chunk that is finished already, or whose cache went on without it."""
    model = tiny()
    cache = model.init_cache(2)
    chunk = model.begin(tokens(2, 3), cache)
    chunk.finish() if between == "finish" else model.step(tokens(2, 1)[:, 0], cache)
    before = state(cache)
    for call in (chunk.finish, lambda: model.sweep(chunk, 2)):
        with pytest.raises(ValueError):
            call()
    close(state(cache), before, "the cache, after an error")


# ---- GPT: parameters


@pytest.mark.parametrize("proj, n", [("shared", 1), ("layerwise", 2)])
def test_parameters_of_lrt(proj, n):
    """LRT adds γ and the gates to each layer, and n pairs U_k, U_v."""
    plain, model = tiny(lrt=False), tiny(memory_proj=proj)
    size = lambda m: sum(p.numel() for p in m.parameters())
    assert size(plain) == 2 * 11 * 8 + 2 * (12 * 8 * 8 + 2)
    assert size(model) - size(plain) == 2 + 2 * (2 * 2 * 8) + n * 2 * 8 * 8


def test_initial_values():
    """E ~ N(0, 1); head ~ N(0, 0.001²); branches and gates 0; other matrices uniform in ±√(3/C)."""
    torch.manual_seed(0)
    model, bound = lrt.GPT(lrt.GPTConfig(vocab_size=1000, lrt=True)), (3 / 128) ** 0.5
    for name, p in model.named_parameters():
        kind = name.removesuffix(".weight").split(".")[-1]
        if kind in ("alpha", "beta", "gamma", "w_o", "w_2", "w_g"):
            right = dict(alpha=1.0, beta=0.1, gamma=0.1).get(kind, 0.0)
            assert (p == right).all(), name
        elif kind in ("embed", "head"):
            std = dict(embed=1, head=0.001)[kind]
            assert abs(p.std() / std - 1) < 0.02 and p.abs().max() > 3.5 * std, name
        else:
            assert 0.99 * bound < p.abs().max() <= bound and p.mean().abs() < 0.01, name


def test_logits_are_capped_and_in_float32():
    model, h = tiny(), 100 * numbers(2, 8)
    close(model.logits(h), 15 * torch.tanh(h @ model.head.weight.T / 15))
    assert model.bfloat16().logits(h.bfloat16()).dtype == torch.float32


# ---- GPT.layers


def layers_case(name):
    """A model, x0 and m."""
    model = tiny(name)
    C = model.config.n_embd
    return model, lrt.norm(numbers(2, 4, C)), numbers(2, 4, C, seed=1)


def run_layers(model, x0, m):
    """One pass over a new chunk: a dict of all that comes out."""
    chunk = lrt.Chunk(x0, model.init_cache(len(x0)), model.config.block_size)
    h, latent = model.layers(chunk, slice(None), m)
    return dict(h=h, latent=latent, kv=torch.stack(chunk.kv))


@each_config
@pytest.mark.parametrize("memory", ["memory", "zeros", "none"])
def test_ex4_the_equations(name, memory):
    """h, latent, and the keys and values of each layer (kv). No memory is a memory of zeros."""
    model, x0, m = layers_case(name)
    right = known("layers", name, "memory" if memory == "memory" else "none")
    m = None if memory == "none" or name == "plain" else m * (memory == "memory")
    close(run_layers(model, x0, m), right)
    close(x0, layers_case(name)[1], "x0, changed in place")
    if memory != "zeros":
        named = {n: p for n, p in model.named_parameters() if n[:4] not in ("embe", "head")}
        named["x0"] = x0.requires_grad_()
        if m is not None:
            named["m"] = m.requires_grad_()
        for part in ("h", "latent", "kv"):
            slopes(lambda: weighed(run_layers(model, x0, m)[part]), named)


@with_and_without_gradients
@pytest.mark.parametrize("name", ["middle layer", "plain"])
@pytest.mark.parametrize("at", [slice(1, None, 2), slice(3, None, 4), slice(0, 4)], ids=str)
def test_ex4_some_positions_again(name, at, grad):
    """The same memory gives the same h and latent, and other positions stay as they are."""
    model = tiny(name, block_size=4)
    with torch.set_grad_enabled(grad):
        cache = after(model, tokens(2, 3))
        m = numbers(2, 6, 8) if name != "plain" else None
        chunk = model.begin(tokens(2, 6, seed=2), cache, m)
        before = state(chunk)
        h, latent = model.layers(chunk, at, None if m is None else m[:, at])
        close((h, latent), (chunk.h[:, at], chunk.latent[:, at]), "h, latent")
        close(state(chunk), before)


def test_ex4_embeddings_are_dropped_out_elsewhere():
    """x0 comes with its dropout; in layers only the blocks drop."""
    model, x0, m = layers_case("shared")
    expected, model.dropout.p = run_layers(model, x0, m), 0.5
    close(run_layers(model.train(), x0, m), expected)


def test_ex4_on_any_device():
    model, x0, m = layers_case("layerwise")
    for memory in (m.to("meta"), None):
        assert run_layers(model.to("meta"), x0.to("meta"), memory)["h"].device.type == "meta"


# ---- Exact: one token after another


@each_config
def test_ex5_step_is_the_recurrence(name):
    """12 tokens with a window of 8, each against the equations; the second of three rows."""
    model, right = tiny(name), known("exact", name)
    idx, cache = torch.cat([tokens(1, 12, seed) for seed in (5, 1, 6)]), None
    cache = model.init_cache(3)
    for t, token in enumerate(idx.unbind(1)):
        logits = model.step(token, cache)
        close(logits[1], right["logits"][t], f"logits at position {t}")
        close(cache.latent[1], right["latent"][t], f"latent of position {t}")
        assert cache.pos == t + 1
        assert cache.kv[0].size(3) == min(t + 1, 7), "positions kept for a window of 8"


@each_config
def test_ex5_every_latent_counts(name):
    """What is added to the latent before any of four tokens changes the last logits, and so says
    the gradient. Gradients also go through keys, values and parameters."""
    model, idx = tiny(name, block_size=3), tokens(2, 4)
    added = {f"latent before token {t}": torch.zeros(2, model.config.n_embd, requires_grad=True, dtype=torch.float64) for t in range(4)}
    def last():
        cache = model.init_cache(2)
        for token, more in zip(idx.unbind(1), added.values()):
            cache.latent = cache.latent + more
            logits = model.step(token, cache)
        return weighed(logits, cache.latent)
    slopes(last, {**added, **dict(model.named_parameters())})
    if model.config.lrt:
        for what, grad in zip(added, torch.autograd.grad(last(), list(added.values()))):
            assert grad.abs().max() > 1e-6, f"{what} has no effect"


def test_ex5_sequences_do_not_see_each_other():
    """Two sequences in turn, with one model."""
    model, one, other = tiny(), tokens(2, 4), tokens(2, 4, seed=5)
    a, b = model.init_cache(2), model.init_cache(2)
    for t in range(4):
        close(model.step(one[:, t], a), loop(model, one)[:, t], f"token {t} of the first")
        close(model.step(other[:, t], b), loop(model, other)[:, t], f"token {t} of the second")


def test_the_loop_has_the_mean_loss():
    model, idx, targets = tiny(), tokens(2, 6), tokens(2, 6, seed=2)
    targets[:, 4:] = -1
    logits, loss = model.forward_sequential(idx, targets)
    close(loss, F.cross_entropy(logits[:, :4].flatten(0, 1), targets[:, :4].flatten()))
    assert model.forward_sequential(idx)[1] is None
    for empty in (idx[:, :0], idx[:0]):
        with pytest.raises(ValueError):
            model.forward_sequential(empty)
    with pytest.raises(ValueError, match="idx"):
        model.step(idx[:1, 0], model.init_cache(2))


# ---- GPT.sweep


@with_and_without_gradients
@whatever_the_equations
@pytest.mark.parametrize("past, S", [(0, 1), (0, 2), (0, 3), (5, 1), (5, 3), (5, 9)])
def test_ex6_consistent_a_sweep_is_one_position_after_another(name, past, S, grad):
    """Subset after subset: position t with memory latent_{t-1}, as it was when the subset began.
    Of earlier passes, h and latent stay as they are."""
    model, idx = tiny(name), tokens(2, 7, seed=2)
    cache = after(model, tokens(2, past)) if past else model.init_cache(2)
    cache.latent = numbers(*cache.latent.shape)
    with torch.set_grad_enabled(grad):
        chunk, slow = model.begin(idx, cache), model.begin(idx, cache)
        for n in range(2):
            h, latent, kv = chunk.h, chunk.latent, state(cache)
            copies = h.clone(), latent.clone()
            model.sweep(chunk, S)
            close((h, latent), copies, "h and latent of the pass before, changed in place")
            close(state(cache), kv, "the cache, before the chunk is finished")
            for s in range(min(S, 7)):
                before = [cache.latent, *slow.latent.unbind(1)]
                h, latent = list(slow.h.unbind(1)), before[1:]
                for t in range(s, 7, S):
                    new = model.layers(slow, slice(t, t + 1), before[t][:, None])
                    h[t], latent[t] = (x[:, 0] for x in new)
                slow.h, slow.latent = torch.stack(h, dim=1), torch.stack(latent, dim=1)
            close(state(chunk), state(slow), f"sweep {n + 1}")
    assert cache.pos == past


@with_and_without_gradients
@whatever_the_equations
@pytest.mark.parametrize("past, T", [(0, 7), (5, 4), (9, 1), (0, 12)])
def test_ex6_consistent_S_T_is_step(name, past, T, grad):
    """A sweep of T subsets over T tokens is T steps, and so it goes on when they are finished."""
    model, idx = tiny(name), tokens(2, past + T + 2)
    right = loop(model, idx)
    with torch.set_grad_enabled(grad):
        cache = model.init_cache(2)
        if past:
            steps(model, idx[:, :past], cache)
        chunk = model.begin(idx[:, past:past + T], cache)
        model.sweep(chunk, T + 1)
        close(model.logits(chunk.h), right[:, past:past + T], "logits of the chunk")
        chunk.finish()
        close(steps(model, idx[:, past + T:], cache), right[:, past + T:], "logits after it")


@pytest.mark.parametrize("name, S, n", [
    ("shared", 1, 2), ("shared", 2, 2), ("first layer", 3, 1), ("layerwise", 5, 1)])
def test_ex6_consistent_gradients_go_through_all_passes(name, S, n):
    """To the parameters and to the latent that the cache begins with."""
    model, first = tiny(name, n_layer=2), numbers(2, 8).requires_grad_()
    def value():
        cache = model.init_cache(2)
        cache.latent = first
        chunk = model.begin(tokens(2, 5), cache)
        for _ in range(n):
            model.sweep(chunk, S)
        return weighed(chunk.h, chunk.latent, *chunk.kv)
    slopes(value, {**dict(model.named_parameters()), "first latent": first})


def test_ex6_on_any_device():
    model = tiny().to("meta")
    chunk = model.begin(tokens(2, 5).to("meta"), model.init_cache(2))
    model.sweep(chunk, 2)
    assert chunk.h.device.type == "meta"
    with pytest.raises(ValueError, match="subsets"):
        model.sweep(chunk, 0)


# ---- GPT.forward_parallel


DIALS = [(1, 2), (2, 1), (3, 2), (7, 1)]        # S, K for 7 tokens


@pytest.mark.parametrize("name", ["shared", "middle layer"])
@pytest.mark.parametrize("S, K", DIALS)
def test_ex7_logits_after_each_sweep(name, S, K):
    """Against the equations; the second of three rows."""
    model, right = tiny(name), known("passes", name, f"S={S}")["logits"]
    idx = torch.cat([tokens(1, 7, seed) for seed in (5, 1, 6)])
    for k in range(K + 1):
        logits, loss = model(idx, subsets=S, sweeps=k)
        assert loss is None
        close(logits[1], right[k], f"logits after sweep {k}")
    close(model(idx, idx, subsets=S, sweeps=K)[0], logits, "with targets")


@whatever_the_equations
@pytest.mark.parametrize("B, T", [(2, 5), (3, 1)])
def test_ex7_consistent_S_T_is_the_loop(name, B, T):
    """One sweep of T subsets: the loop's logits, and with loss weights (0, 1) its loss and
    gradients. More subsets than tokens are T."""
    model, idx, targets = tiny(name), tokens(B, T), tokens(B, T, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    for S in (T, T + 2):
        mine, its_loss = model(idx, targets, subsets=S, loss_weights=(0, 1))
        close((mine, its_loss), (logits, loss), f"logits, loss, S = {S}")
        close(gradients(its_loss, model), gradients(loss, model), f"S = {S}")
    close(model(idx, targets, subsets=T)[1], model(idx, targets, subsets=T + 2)[1])


@whatever_the_equations
def test_ex7_consistent_how_many_positions_are_exact(name):
    """The first max(K + 1, S K), and for random weights no more."""
    model, idx, T = tiny(name), tokens(2, 8), 8
    exact = loop(model, idx)
    for S, K in ((1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 3), (3, 2), (5, 1), (5, 2), (8, 1)):
        with torch.no_grad():
            off = (model(idx, subsets=S, sweeps=K)[0] - exact).abs().amax((0, 2)) > 1e-9
        assert [*off, True].index(True) == min(T, max(K + 1, S * K)), f"S = {S}, K = {K}"


def test_ex7_cost_is_one_pass_and_one_for_each_sweep():
    """Whatever S is. A zero-weight pass computes no logits."""
    model, idx = tiny(), tokens(2, 7)
    noted, heads = passes(model), []
    model.head.register_forward_hook(lambda *_: heads.append(1))
    for S, K in ((1, 0), *DIALS):
        noted.clear(), heads.clear()
        model(idx, idx, subsets=S, sweeps=K, loss_weights=[0] * K + [1])
        assert sum(n for _, n, _ in noted) == 7 * (1 + K), f"S = {S}, K = {K}"
        assert len(heads) == 1, f"logits of {len(heads)} passes; one has a weight"


@pytest.mark.parametrize("ignored", [[], [3], [0, 1, 2, 3], [0, 2, 4, 6], range(7)], ids=str)
@pytest.mark.parametrize("S, K", [(3, 2), (20, 1), (1, 0)])
def test_ex7_loss_is_a_mean_over_passes(S, K, ignored):
    """(L_0 + S Σ L_k) / (1 + S K), or Σ w_k L_k, where L_k is the mean loss after sweep k, and S is
    at most T. Targets of -1 do not count."""
    model, idx, targets = tiny(), tokens(2, 7), tokens(2, 7, seed=2)
    targets[:, list(ignored)] = -1
    L = [lrt.cross_entropy(model(idx, subsets=S, sweeps=k)[0], targets) for k in range(K + 1)]
    mean = (L[0] + min(S, 7) * sum(L[1:])) / (1 + min(S, 7) * K)
    close(model(idx, targets, subsets=S, sweeps=K)[1], mean)
    for w in ([0.3, 0.0, 1.5][:K + 1], [1.0] + [0.0] * K, [0.0] * K + [1.0]):
        loss = model(idx, targets, subsets=S, sweeps=K, loss_weights=w)[1]
        close(loss, sum(a * b for a, b in zip(w, L)), f"loss_weights = {w}")


@pytest.mark.parametrize("name, S, K, weights", [
    ("shared", 3, 2, (0, 0, 1)), ("shared", 2, 1, None), ("first layer", 1, 2, (0, 1, 0)),
    ("two_back", 3, 2, None), ("plain", 2, 1, None)])
def test_ex7_consistent_gradients_go_through_every_pass(name, S, K, weights):
    model, idx, targets = tiny(name, n_layer=2), tokens(2, 5), tokens(2, 5, seed=2)
    slopes(lambda: model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1],
           dict(model.named_parameters()))


@whatever_the_equations
@pytest.mark.parametrize("dial", [
    dict(), dict(subsets=1, sweeps=2), dict(subsets=2), dict(subsets=2, hops=1)], ids=str)
def test_consistent_causality(name, dial):
    """A token changes the logits at its own position and at all later ones, in its own row."""
    model, idx = tiny(name), tokens(2, 6)
    logits = model(idx, **dial)[0]
    for t in range(6):
        other = idx.clone()
        other[1, t] = (idx[1, t] + 1) % 11
        changed = (model(other, **dial)[0] - logits).abs().amax(2) > 1e-9
        assert changed.tolist() == [[False] * 6, [u >= t for u in range(6)]], f"token {t}"


def test_ex7_consistent_a_plain_gpt_is_pass_0():
    """One pass whatever the dial says, with the logits and loss of the loop."""
    model, idx, targets = tiny("plain"), tokens(2, 8), tokens(2, 8, seed=2)
    right, noted = model.forward_sequential(idx, targets), passes(model)
    for dial in (dict(), dict(subsets=3, sweeps=2), dict(subsets=8), dict(hops=3),
                 dict(subsets=2, loss_weights=(0.2, 0.3)), dict(subsets=2, hops=3, sweeps=0)):
        noted.clear()
        close(model(idx, targets, **dial), right, f"logits, loss of {dial}")
        assert noted == [(8, 8, True)], f"passes of {dial}"


def test_ex7_a_plain_gpt_is_lrt_without_memory():
    """γ, U_k and U_v of 0 give a plain GPT, and so does W_g of 0, since 2 σ(0) = 1."""
    plain, model, idx = tiny("plain"), tiny(), tokens(2, 8)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.load_state_dict(plain.state_dict(), strict=False)
    for S, K in ((1, 1), (3, 2), (8, 1)):
        close(model(idx, subsets=S, sweeps=K)[0], plain(idx)[0], f"S = {S}, K = {K}")


@pytest.mark.parametrize("has_lrt", [True, False])
@pytest.mark.parametrize("dial", [
    dict(subsets=0), dict(subsets=2.5), dict(sweeps=-1), dict(sweeps=1.5, subsets=2),
    dict(loss_weights=(1,), subsets=2), dict(loss_weights=(0, 0), subsets=2),
    dict(loss_weights=(1, 1, 1), subsets=2), dict(loss_weights=(1, 1)), dict(hops=-1), dict(hops=1.5),
    dict(loss_weights=(0, 1), subsets=2, hops=1), dict(subsets=0, hops=1)], ids=str)
def test_ex9_impossible_dials_are_named(dial, has_lrt):
    model, idx = tiny(lrt=has_lrt), tokens(1, 5)
    with pytest.raises(ValueError, match=next(iter(dial))):
        model(idx, idx, **dial)


@pytest.mark.parametrize("dial", [dict(), dict(subsets=2), dict(hops=1)], ids=str)
def test_impossible_texts_are_refused(dial):
    model, idx = tiny(), tokens(2, 9)
    for text, targets in ((idx, None), (idx[:, :0], None), (idx[:0], None), (idx[:, :4], idx)):
        with pytest.raises(ValueError):
            model(text, targets, **dial)


def test_without_subsets_forward_is_exact():
    model, idx, targets = tiny(), tokens(2, 5), tokens(2, 5, seed=2)
    for sweeps in (1, 3):
        close(model(idx, targets, sweeps=sweeps), model.forward_sequential(idx, targets))


def test_ex7_dropout_in_training():
    """It is drawn once for the embeddings of all passes, and not where gradients are off."""
    model, idx, drawn = tiny(dropout=0.5), tokens(2, 6), []
    exact = model(idx, subsets=2)[0]
    with torch.no_grad():
        close(model.train()(idx, subsets=2)[0], exact, "without gradients")
    model.dropout.register_forward_hook(lambda *_: drawn.append(1))
    logits = [model(idx, subsets=2, sweeps=2)[0] for _ in range(2)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert len(drawn) == 2, "embeddings in two calls"


# ---- GPT.forward_hops


def dial_latents(model, idx, S, K):
    """The latents z that the passes or the loop (S None) leave, without gradients."""
    cache, latents = model.init_cache(len(idx)), []
    with torch.no_grad():
        if S:
            chunk = model.begin(idx, cache)
            for _ in range(K):
                model.sweep(chunk, S)
            return chunk.latent
        for token in idx.unbind(1):
            model.step(token, cache)
            latents.append(cache.latent)
    return torch.stack(latents, dim=1)


@pytest.mark.parametrize("name, S, K", [
    ("shared", None, 1), ("first layer", None, 1), ("middle layer", 2, 1), ("layerwise", 1, 2),
    ("shared", 3, 0)])
def test_ex9_each_hop_adds_a_term_of_the_series(name, S, K):
    """dloss/dθ = ∂loss/∂θ + λᵀ ∂latent/∂θ with λ = g + Jᵀ g + Jᵀ Jᵀ g + ..., one term for each hop.
    Here g and J are written out: derivatives of one pass by the memory's latents z."""
    model, idx, targets = tiny(name), tokens(1, 4), tokens(1, 4, seed=2)
    z = dial_latents(model, idx, S, K).requires_grad_()
    def one_pass(z):
        m = lrt.shift_right(z, torch.zeros_like(z[:, 0]))
        return model.begin(idx, model.init_cache(1), m)
    chunk = one_pass(z)
    logits = model.logits(chunk.h)
    loss = lrt.cross_entropy(logits, targets)
    J = torch.autograd.functional.jacobian(lambda z: one_pass(z).latent, z)
    J = J.view(z.numel(), z.numel())
    term = torch.autograd.grad(loss, z, retain_graph=True)[0].flatten()
    lam = torch.zeros_like(term)
    for hops in range(5):
        mine, its_loss = model.forward_hops(idx, targets, S, K, hops)
        close((mine, its_loss), (logits, loss), f"logits, loss, {hops} hops")
        right = loss + (lam * chunk.latent.flatten()).sum()
        close(gradients(its_loss, model), gradients(right, model), f"{hops} hops")
        assert hops > 2 or term.norm() > 1e-4, "or the test would see nothing"
        lam, term = lam + term, J.T @ term


@whatever_the_equations
@pytest.mark.parametrize("B, T, S, K", [(2, 6, None, 1), (2, 6, 3, 2), (3, 1, None, 1)])
def test_ex9_consistent_T_1_hops_have_the_gradient_of_the_loop(name, B, T, S, K):
    """With exact latents, T - 1 hops give the loop's loss and gradients, and more hops as well."""
    model, idx, targets = tiny(name), tokens(B, T), tokens(B, T, seed=2)
    targets[0, 2:4] = -1
    right = model.forward_sequential(idx, targets)
    for hops in (T - 1, T + 2):
        mine = model(idx, targets, subsets=S, sweeps=K, hops=hops)
        close(mine, right, f"logits, loss, {hops} hops")
        close(gradients(mine[1], model), gradients(right[1], model), f"{hops} hops")


@pytest.mark.parametrize("S, K", [(1, 0), (1, 2), (2, 1), (3, 2), (100, 1)])
def test_ex9_consistent_one_position_more_is_exact(S, K):
    """Than in the passes that found the latents: max(K + 1, S K) + 1."""
    model, idx, T = tiny(), tokens(2, 8), 8
    logits, loss = model.forward_hops(idx, None, S, K, 2)
    off = (logits - loop(model, idx)).abs().amax((0, 2)) > 1e-9
    assert loss is None
    assert [*off, True].index(True) == min(T, max(K + 1, min(S, T) * K) + 1)


@pytest.mark.parametrize("S, K", [(1, 2), (3, 1), (None, 1)])
def test_ex9_one_pass_has_gradients_logits_and_dropout(S, K):
    """The last one, over all positions. Those before only find the latents."""
    model, idx, heads = tiny(dropout=0.5).train(), tokens(2, 4), []
    model.head.register_forward_hook(lambda *_: heads.append(1))
    noted = passes(model)
    model.forward_hops(idx, idx, S, K, 1)
    assert [grad for _, _, grad in noted] == [False] * (len(noted) - 1) + [True]
    assert sum(n for _, n, _ in noted) == 4 * (2 + K if S else 2)
    assert noted[-1][:2] == (4, 4) and len(heads) == 1
    losses = []
    for dial in ((4, 1), (4, 2), (None, 1)):        # all of these find the exact latents
        torch.manual_seed(0)
        losses.append(model.forward_hops(idx, idx, *dial, 0)[1])
    close(losses, losses[:1] * 3, "loss, of which only the last pass draws dropout")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ex9_without_gradients_there_are_logits_and_loss(mode):
    model, idx, targets = tiny(), tokens(2, 6), tokens(2, 6, seed=2)
    right = model.forward_hops(idx, targets, 2, 1, 2)
    for dial in ((2, 1), (None, 1)):
        with mode():
            logits, loss = model.forward_hops(idx, targets, *dial, 2)
        assert not loss.requires_grad
        if dial[0]:
            close((logits.clone(), loss.clone()), right)


# ---- GPT.prefill


# Model, silent parameters, S, rows. The name says what settles last. Weights are near their initial
# values, so that the memory contracts.
PREFILL = {
    "all": (dict(), [], 3, [1]),
    "the latest row, the first one": (dict(), [], 3, [1, 3]),
    "the latest row, the last one": (dict(), [], 3, [3, 1]),
    "latents of a lower layer": (dict(n_layer=3, memory_layer=1), [], 2, [1]),
    "one subset": (dict(n_layer=1), [], 1, [1]),
    "keys": (dict(n_layer=1), ["gamma", "u_v"], 3, [1]),
    "values": (dict(n_layer=1), ["gamma", "u_k"], 3, [1]),
    "h and latents": (dict(n_layer=1), ["u_k", "u_v"], 3, [1]),
    "upper layers": (dict(n_layer=3, memory_layer=1, memory_proj="layerwise"),
                     ["gamma", "u_k.0", "u_v.0"], 2, [1]),
}
TOLERANCES = [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6]


def prefill_case(case):
    """A model, a prompt and S."""
    changes, silent, S, rows = PREFILL[case]
    model = tiny(scale=0.05, block_size=64, **changes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p *= not name.startswith(tuple(silent))
    return model, torch.cat([tokens(1, 20, seed) for seed in rows]), S


@pytest.mark.parametrize("case", PREFILL)
def test_ex8_sweeps_go_on_until_all_has_settled(case):
    """That is, until a sweep changes no number of h, latents, keys and values by more than tol, in
    no row, position and layer."""
    model, idx, S = prefill_case(case)
    noted, sweeps = passes(model), []
    for tol in TOLERANCES:
        noted.clear()
        model.prefill(idx, model.init_cache(len(idx)), subsets=S, tol=tol)
        sweeps.append(sum(n for _, n, _ in noted) // 20 - 1)
    assert sweeps == known("prefill", case)["sweeps"].tolist(), f"sweeps for tol = {TOLERANCES}"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("S, cuts", [(1, [10]), (3, [3, 4, 1, 2]), (4, [1, 1, 8]), (100, [8, 2]),
                                     (1, [25])])
def test_ex8_consistent_prefill_then_step_is_step(name, S, cuts):
    """A prompt in pieces, and steps after it, whatever the weights: S T sweeps are always enough.
    The latent that the cache begins with counts."""
    model, idx = tiny(name), tokens(2, sum(cuts) + 2)
    noted, caches = passes(model), [model.init_cache(2), model.init_cache(2)]
    for cache in caches:
        cache.latent = numbers(*cache.latent.shape)
    for piece in idx[:, :-2].split(cuts, dim=1):
        right, most = steps(model, piece, caches[1])[:, -1].detach(), -(-piece.size(1) // S)
        noted.clear()
        logits = model.prefill(piece, caches[0], subsets=S, tol=0)
        close(logits, right, f"logits after {caches[0].pos} tokens")
        close(state(caches[0]), state(caches[1]), "cache")
        most = 1 + (most if model.config.lrt else 0)
        assert sum(n for _, n, _ in noted) <= most * piece.size(1), "too many sweeps"
    close(steps(model, idx[:, -2:], caches[0]), steps(model, idx[:, -2:], caches[1]), "steps")


def test_ex8_a_change_of_tol_is_small_enough():
    """A sweep that changes a number by exactly tol, and none by more, is the last one."""
    model, idx, S = prefill_case("all")
    with torch.no_grad():
        chunk = model.begin(idx, model.init_cache(1))
        before = state(chunk)
        model.sweep(chunk, S)
    change = max((x - before[name]).abs().max().item() for name, x in state(chunk).items())
    noted = passes(model)
    for tol, sweeps in ((change, 1), (change * 0.999, 2)):
        noted.clear()
        model.prefill(idx, model.init_cache(1), subsets=S, tol=tol)
        assert sum(n for _, n, _ in noted) == 20 * (1 + sweeps)


def test_ex8_a_long_prompt_is_read_in_pieces():
    """Of 512 tokens, or block_size if that is more; each is swept until it has settled."""
    model, idx = tiny(scale=0.05, n_layer=1), tokens(1, 515)
    right, noted, cache = loop(model, idx), passes(model), model.init_cache(1)
    close(model.prefill(idx[:, :514], cache, tol=1e-10), right[:, 513], "logits", atol=1e-8)
    assert [T for T, n, _ in noted if T == n] == [512, 2]
    close(model.step(idx[:, 514], cache), right[:, 514], "the next step", atol=1e-8)
    model = tiny(n_layer=1, block_size=530)
    noted = passes(model)
    model.prefill(tokens(1, 600), model.init_cache(1), tol=1.0)
    assert [T for T, n, _ in noted if T == n] == [530, 70]


def test_ex8_defaults_are_two_subsets_and_a_thousandth():
    model, idx, _ = prefill_case("all")
    noted = passes(model)
    mine, right = model.init_cache(1), model.init_cache(1)
    model.prefill(idx, mine)
    first = list(noted)
    model.prefill(idx, right, subsets=2, tol=1e-3)
    assert noted == 2 * first
    close(state(mine), state(right))


def test_ex8_a_tolerance_is_no_less_than_rounding():
    """In bfloat16 rounding moves numbers by more than 1e-3; that is no reason to go on."""
    model = tiny(scale=0.05, block_size=128).bfloat16()
    noted = passes(model)
    model.prefill(tokens(1, 120), model.init_cache(1))
    assert sum(n for _, n, _ in noted) <= 120 * 20


def test_ex8_prompts_have_neither_dropout_nor_gradients():
    """But the steps after a prompt have gradients, those of steps after the detached loop."""
    model, idx = tiny(dropout=0.5).train(), tokens(2, 6)
    cache, right = model.init_cache(2), after(model, idx[:, :5])
    assert not model.prefill(idx[:, :5], cache, tol=0).requires_grad
    close(state(cache), state(right))
    mine, its = (gradients(weighed(model.eval().step(idx[:, 5], c)), model) for c in (cache, right))
    close(mine, its)
    assert mine["gamma"].any()


@pytest.mark.parametrize("wrong", [dict(subsets=0), dict(subsets=1.5), dict(tol=-1)], ids=str)
def test_ex8_impossible_prompts_are_refused(wrong):
    model, idx = tiny(), tokens(2, 5)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.prefill(idx, model.init_cache(2), **wrong)
    for text in (idx[:, :0], idx[:0], idx[:1]):
        with pytest.raises(ValueError):
            model.prefill(text, model.init_cache(2))


# ---- GPT.generate


def generated(model, prompt, n, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(model.generate(prompt, n, generator=generator, **options)), dim=1)


def test_generated_text_is_the_likeliest_by_the_loop():
    """Temperature 0, and text longer than the window."""
    model, prompt = tiny(scale=1.0), tokens(2, 3)
    text = generated(model, prompt, 12, temperature=0)
    close(text, loop(model, torch.cat([prompt, text], dim=1))[:, 2:-1].argmax(-1))
    for options in (dict(top_k=1), dict(temperature=1e-320)):
        close(generated(model, prompt, 12, **options), text, str(options))


def test_generated_text_depends_on_the_seed():
    model, prompt = tiny(), tokens(2, 3)
    texts = [generated(model, prompt, 12, seed, top_k=k) for seed, k in ((1, None), (1, 100), (2, None))]
    close(texts[1], texts[0], "the same seed; top_k of more than there are")
    assert not texts[2].equal(texts[0])


def test_top_k_takes_k_also_of_equal_logits():
    model, prompt, seen = tiny(), tokens(1, 3), []
    with torch.no_grad():
        model.head.weight[:] = model.head.weight[:1]
    for top_k, most in ((1, 1), (2, 2)):
        assert len({generated(model, prompt, 1, seed, top_k=top_k).item() for seed in range(40)}) == most


def test_generate_goes_on_with_its_cache():
    """Which in the end holds all but the last token."""
    model, prompt, cache = tiny(), tokens(3, 4), tiny().init_cache(3)
    text = generated(model, prompt, 20, temperature=0)
    first = generated(model, prompt, 8, temperature=0, cache=cache)
    assert cache.pos == 4 + 7
    rest = generated(model, first[:, -1:], 12, temperature=0, cache=cache)
    close(torch.cat([first, rest], dim=1), text)
    assert list(model.generate(prompt, 0, cache=cache)) == [] and cache.pos == 4 + 7 + 12 + 4


@pytest.mark.parametrize("wrong", [
    dict(top_k=0), dict(top_k=1.5), dict(temperature=-1), dict(temperature=math.nan),
    dict(max_new_tokens=-1)], ids=str)
def test_impossible_text_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(tiny().generate(tokens(1, 3), **{"max_new_tokens": 2, **wrong}))


# ---- The compiler


@pytest.mark.parametrize("dial, most", [(dict(subsets=2), 1), (dict(hops=1, subsets=2), 3)])
def test_torch_compile_keeps_loss_and_gradients(dial, most):
    """In one graph; with hops, in one before implicit_gradient and one after it."""
    model, idx, graphs = tiny(n_layer=1), tokens(2, 4), []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph)
    loss, right = compiled(idx, idx, **dial)[1], model(idx, idx, **dial)[1]
    close(loss, right)
    close(gradients(loss, model), gradients(right, model))
    assert len(graphs) <= most
