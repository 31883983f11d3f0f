"""A second implementation of the equations: numpy, one position at a time, nothing shared.

`python course/second.py` writes known.npz, the numbers that test_lrt.py compares with.
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_lrt import DIALS, LAYERS, PLAIN, QKV, layers_case, numbers, qkv_case, random_model, tokens


def norm(v):
    return v / np.sqrt(np.mean(v * v) + np.finfo(np.float64).eps)


def rotate(v, t):
    """Turn each pair of a head (a: first half, b: second half) by the angle of position t."""
    D = len(v)
    a, b = v[:D // 2], v[D // 2:]
    angle = t * 10000.0 ** (-2 * np.arange(D // 2) / D)
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle),
                           b * np.cos(angle) - a * np.sin(angle)])


def qkv(w, H, h, y, m_k, m_v):
    """Query, key and value of head h. w(name) is a matrix; m_k = U_k m and m_v = U_v m."""
    D = len(y) // H
    head = slice(h * D, h * D + D)
    q, k, v = ((w(name) @ y)[head] for name in ("w_q", "w_k", "w_v"))
    if w("w_g") is not None:
        g = 2 / (1 + np.exp(-w("w_g") @ y))
        g_local, g_mem = g[h], g[H + h]
        k = g_local * k + g_mem * m_k[head]
        v = g_local * v + g_mem * m_v[head]
    return q, k, v


def weights(module):
    return {name.removesuffix(".weight"): p.detach().numpy()
            for name, p in module.named_parameters()}


def position(model, past, t, x0, m):
    """Position t of one sequence: h and latent. past[i][h][t] = (key, value) is read and written.
    """
    P, c = weights(model), model.config
    C, H, L, W = c.n_embd, c.n_head, c.n_layer, c.block_size
    x = x0
    for i in range(L):
        w = lambda name: P.get(f"blocks.{i}.{name}", P.get(f"blocks.{i}.attn.{name}"))
        pair = i if c.memory_proj == "layerwise" else 0
        x = P["alpha"][i] * x + P["beta"][i] * x0
        m_k = m_v = np.zeros(C)
        if c.lrt:
            x = x + P["gamma"][i] * m
            m_k, m_v = P[f"u_k.{pair}"] @ m, P[f"u_v.{pair}"] @ m
        y = norm(x)
        heads = []
        for h in range(H):
            q, k, v = qkv(w, H, h, y, m_k, m_v)
            q, k = norm(rotate(q, t)), norm(rotate(k, t))
            past[i][h][t] = k, v
            seen = [past[i][h][s] for s in range(max(0, t - W + 1), t + 1)]
            p = np.exp([q @ k / np.sqrt(C // H) for k, v in seen])
            heads.append(sum(p_s * v for p_s, (k, v) in zip(p / p.sum(), seen)))
        x = x + w("w_o") @ np.concatenate(heads)
        x = x + w("mlp.w_2") @ np.maximum(w("mlp.w_1") @ norm(x), 0) ** 2
        if i + 1 == c.memory_layer % (L + 1):
            latent = norm(x)
    return norm(x), latent


def empty_past(config):
    return [[{} for _ in range(config.n_head)] for _ in range(config.n_layer)]


def sequence(model, idx, passes, first=None):
    """One sequence of tokens. passes: lists of positions, which are computed together: each takes
    the latents that were there before. Yields h and latents (T, C) after each pass."""
    embed, past = model.embed.weight.detach().numpy(), empty_past(model.config)
    h, latents = np.zeros((len(idx), embed.shape[1])), np.zeros((len(idx), embed.shape[1]))
    first = latents[0].copy() if first is None else first
    for positions in passes:
        before = np.concatenate([first[None], latents])
        for t in positions:
            h[t], latents[t] = position(model, past, t, norm(embed[idx[t]]), before[t])
        yield h.copy(), latents.copy()


def token_loop(model, idx, first=None):
    """h and latents of one token after another."""
    return list(sequence(model, idx, [[t] for t in range(len(idx))], first))[-1]


def logits(model, h):
    return 15 * np.tanh(h @ model.head.weight.detach().numpy().T / 15)


def all_known():
    known = {}
    for name in (*PLAIN, "from another latent"):
        model = random_model(**PLAIN.get(name, {}))
        first = list(numbers(2, 16).numpy()) if name not in PLAIN else [None, None]
        rows = [token_loop(model, row, latent) for row, latent in zip(tokens(2, 12), first)]
        h, latents = (np.stack(part) for part in zip(*rows))
        known |= {f"exact/{name}/logits": logits(model, h), f"exact/{name}/latents": latents}
    for name, memory in LAYERS:
        model, chunk, m = layers_case(name)
        x0, m, pasts = chunk.x0.numpy(), m.numpy() * memory, [empty_past(model.config)] * 0
        found = np.empty((2, *x0.shape))
        for b in range(len(x0)):
            pasts.append(empty_past(model.config))
            for t in range(x0.shape[1]):
                found[:, b, t] = position(model, pasts[b], t, x0[b, t], m[b, t])
        known |= {f"layers/{name}/{memory}/h": found[0], f"layers/{name}/{memory}/latent": found[1]}
        for i in range(model.config.n_layer):           # (B, H, T, 2, D) -> (2, B, H, T, D)
            kv = np.array([[list(head.values()) for head in past[i]] for past in pasts])
            known[f"layers/{name}/{memory}/kv{i}"] = np.moveaxis(kv, 3, 0)
    for name in ("shared", "middle layer"):
        for S, K in DIALS:
            passes = [range(7)] + [range(s, 7, S) for s in range(S)] * K
            after = list(sequence(random_model(**PLAIN[name]), tokens(1, 7)[0], passes))
            if S * K == 0:
                continue
            for k in range(1, K + 1):
                known |= dict(zip((f"sweeps/{name}/{S}/{k}/h", f"sweeps/{name}/{S}/{k}/latent"),
                                  after[k * S]))
    for case, memory in QKV:
        attention, y, m_k, m_v = qkv_case(case)
        P, H = weights(attention), attention.n_head
        found = np.array([[[qkv(P.get, H, h, *(x.numpy() * scale for x, scale in zip(
            (y[b, t], m_k[b, t], m_v[b, t]), (1, memory, memory)))) for t in range(5)]
            for h in range(H)] for b in range(2)])                  # (B, H, T, 3, D)
        for n, name in enumerate(("queries", "keys", "values")):
            known[f"qkv/{case}/{memory}/{name}"] = found[..., n, :]
    return known


if __name__ == "__main__":
    with open(Path(__file__).parent / "known.npz", "wb") as file:
        np.savez_compressed(file, **all_known())
