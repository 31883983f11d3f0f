"""The proof that lrt.py is right, for us and for a class.

    python -m pytest test_lrt.py        all of it
    python -m pytest -k ex3             an exercise; the tests are told apart by their names
    python -m pytest -k consistent      dial, step, prefill and definition agree, whatever the equations

The model is compared in float64, on random weights that are all away from their initial values, so that no
path is silent: with definitions that are too simple to be wrong, and with numbers that a second implementation
gave (known.npz). What fails says what is wrong, in which head, position or sweep.
"""
import functools
import itertools
import linecache
import math
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lrt

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


KNOWN_NPZ = HERE / "known.npz"                  # beside this file in a handout, else in course/
if not KNOWN_NPZ.exists():
    KNOWN_NPZ = HERE / "course" / "known.npz"


@functools.cache
def known(*which):
    """One of KNOWN: what the equations give for weights and inputs that are the same on every machine."""
    with np.load(KNOWN_NPZ) as file:
        names = [name for name in file if name.rpartition("/")[0] == str(which)]
        return {name.rpartition("/")[2]: torch.from_numpy(file[name]) for name in names}


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


# ---- The compiler ----

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
