"""A second implementation, one sequence and one position at a time, nothing shared.

python course/second.py writes the numbers that test_lrt.py compares with.
"""
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.tiny import (CONFIGS, KNOWN, PLAIN, layers_case, numbers, prefill_case, qkv_case,
                          random_model, tokens)


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
    """Query, key and value of head h: w(name) gives a matrix, m_k and m_v what the memory gives to
    this head, or 0."""
    D = len(y) // H
    q, k, v = ((w(name) @ y)[h * D:h * D + D] for name in ("w_q", "w_k", "w_v"))
    if w("w_g") is None:
        return q, k, v
    g = 2 / (1 + np.exp(-w("w_g") @ y))
    return q, g[h] * k + g[H + h] * m_k, g[h] * v + g[H + h] * m_v


def naive_position(model, past, t, x0, m):
    """Position t of one sequence: h and latent. past[i][head][t]: (key, value), to read and to
    write."""
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
            query = naive_norm(naive_rope(q, t))
            scores = np.array([query @ key / math.sqrt(D) for key, _ in seen])
            p = np.exp(scores - scores.max())
            result[part] = sum(p_t * value for p_t, (_, value) in zip(p / p.sum(), seen))
        x = x + w("w_o") @ result
        x = x + w("w_2") @ np.maximum(w("w_1") @ naive_norm(x), 0) ** 2
        if i + 1 == source:
            latent = naive_norm(x)
    return naive_norm(x), latent


def naive_lrt(model, idx, S=None, K=1, first=None):
    """One sequence of token numbers: a list of what is there after each pass, (h (T, C), latents
    (T, C), past). Without S one pass: the token loop, its first memory `first`. With S: first the
    pass without memory, then K times S subset passes."""
    c, T = model.config, len(idx)
    embed, zero = model.embed.weight.detach().numpy(), np.zeros(c.n_embd)
    first = zero if first is None else first
    x0 = [naive_norm(embed[n]) for n in idx]
    h, latents = [zero] * T, [zero] * T
    past = [[{} for _ in range(c.n_head)] for _ in range(c.n_layer)]
    out = []

    def one_pass(positions, before):
        for t in positions:
            m = before[t - 1] if t else first
            h[t], latents[t] = naive_position(model, past, t, x0[t], m)
        kept = [[dict(p) for p in heads] for heads in past]
        out.append((np.stack(h), np.stack(latents), kept))

    if S is None:
        one_pass(range(T), latents)                 # each sees what this pass has found
    else:
        one_pass(range(T), [zero] * T)
        for _ in range(K):
            for s in range(S):
                one_pass(range(s, T, S), list(latents))     # as they were when this pass began
    return out


def naive_logits(model, h):
    return 15 * np.tanh(h @ model.head.weight.detach().numpy().T / 15)


def known_exact(name, first):
    """12 tokens, in rows; first: whether they begin with a latent that is not 0."""
    model = random_model(**PLAIN[name])
    start = numbers(2, model.config.n_embd).numpy()
    rows = []
    for row, latent in zip(tokens(model, 2, 12).tolist(), start):
        rows.append(naive_lrt(model, row, first=latent if first else None)[0])
    h = np.stack([row[0] for row in rows])
    return dict(h=h, logits=naive_logits(model, h), latents=np.stack([row[1] for row in rows]))


def known_passes(name, S, K):
    """After each pass over 7 tokens, (n, T, ...) each; keys and values (n, L, H, T, D)."""
    model = random_model(**CONFIGS[name])
    passes = naive_lrt(model, tokens(model, 1, 7)[0].tolist(), S, K)
    kv = np.array([keys_and_values(past, 7) for _, _, past in passes])
    h, latents = (np.stack([p[i] for p in passes]) for i in (0, 1))
    return dict(h=h, latents=latents, logits=naive_logits(model, h), keys=kv[..., 0, :],
                values=kv[..., 1, :])


def keys_and_values(past, T):
    """(L, H, T, 2, D) of one sequence."""
    return [[[list(p[t]) for t in range(T)] for p in heads] for heads in past]


def known_qkv(case, memory):
    block, y, m_k, m_v = qkv_case(case, memory)

    def w(name):
        linear = getattr(block, name)
        return None if linear is None else linear.weight.detach().numpy()

    B, T, H = y.size(0), y.size(1), block.n_head
    found = np.empty((3, B, H, T, y.size(2) // H))
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        given = (m_k[b, h, t].numpy(), m_v[b, h, t].numpy()) if memory else (0, 0)
        found[:, b, h, t] = naive_qkv(w, H, h, y[b, t].numpy(), *given)
    return dict(zip("qkv", found))


def known_layers(name, memory):
    model, x0, m = layers_case(name, memory)
    c, B, T = model.config, *x0.shape[:2]
    h, latent, kv = np.empty(x0.shape), np.empty(x0.shape), []
    for b in range(B):
        past = [[{} for _ in range(c.n_head)] for _ in range(c.n_layer)]
        for t in range(T):
            m_t = m[b, t].numpy() if memory else np.zeros(c.n_embd)
            h[b, t], latent[b, t] = naive_position(model, past, t, x0[b, t].numpy(), m_t)
        kv.append(keys_and_values(past, T))
    kv = np.array(kv).swapaxes(0, 1)                # (L, B, H, T, 2, D)
    return dict(h=h, latent=latent, keys=kv[..., 0, :], values=kv[..., 1, :])


@torch.no_grad()
def known_prefill(case, tol):
    """How many sweeps, and the change in the last, of the rule in GPT.prefill's docstring."""
    model, idx, S = prefill_case(case)
    cache, sweeps, residual = model.init_cache(idx.size(0)), 0, 0.0
    for piece in idx.split(512, dim=1):
        model.extend(piece, cache)
        T, n, change = piece.size(1), 0, None
        while change is None or change > tol:
            before = [x.clone() for x in (cache.h, cache.m_next, *cache.kv)]
            for s in range(S):
                model.refine(cache, s, S)
            after = cache.h, cache.m_next, *cache.kv
            n, change = n + 1, max(float((a - b).abs().max()) for a, b in zip(before, after))
            if n * S >= T:
                change = 0.0
        sweeps, residual = max(sweeps, n), max(residual, change)
        cache.advance()
    return dict(sweeps=np.array(sweeps), residual=np.array(residual))


SECOND = dict(exact=known_exact, passes=known_passes, qkv=known_qkv, layers=known_layers,
              prefill=known_prefill)


if __name__ == "__main__":
    with open(Path(__file__).parent / "known.npz", "wb") as file:
        np.savez_compressed(file, **{f"{which}/{name}": x for which in KNOWN
                                     for name, x in SECOND[which[0]](*which[1:]).items()})
