"""A second implementation, one sequence and one position at a time, nothing shared:  python course/second.py
writes the numbers that test_lrt.py compares with."""
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_lrt import CONFIGS, KNOWN, PLAIN, layers_case, prefill_case, qkv_case, random_model, tokens


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


if __name__ == "__main__":
    with open(Path(__file__).parent / "known.npz", "wb") as file:
        np.savez_compressed(file, **{f"{which}/{name}": x for which in KNOWN
                                     for name, x in SECOND[which[0]](*which[1:]).items()})
