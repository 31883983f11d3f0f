"""A second implementation of the equations in lrt.py, one sequence and one position at a time.

    python course/second.py         writes known.npz beside it, which test_lrt.py compares with
"""
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import test_lrt as tests


def norm(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.finfo(np.float64).eps)


def rotate(x, t):
    """x (H, D): the pairs (a, b) of all heads, at position t."""
    a, b = np.split(x, 2, axis=-1)
    angle = t * 10000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle),
                           b * np.cos(angle) - a * np.sin(angle)], axis=-1)


def attention(q, seen):
    """q (H, D), seen: a list of (k, v), each (H, D) -> (H D,)"""
    k, v = np.array([k for k, _ in seen]), np.array([v for _, v in seen])
    p = np.exp(np.einsum("hd,nhd->hn", q, k) / np.sqrt(q.shape[1]))
    p = p / p.sum(axis=1, keepdims=True)
    return np.einsum("hn,nhd->hd", p, v).flatten()


def qkv(w, H, y, m_k, m_v):
    """w: matrices by their names, w_q, ...; m_k = U_k m, m_v = U_v m. q, k, v: (H, D) each."""
    q, k, v, m_k, m_v = (x.reshape(H, -1)
                         for x in (w["w_q"] @ y, w["w_k"] @ y, w["w_v"] @ y, m_k, m_v))
    if "w_g" not in w:
        return q, k, v
    g_local, g_mem = (2 / (1 + np.exp(-w["w_g"] @ y))).reshape(2, H, 1)
    k = g_local * k + g_mem * m_k
    v = g_local * v + g_mem * m_v
    return q, k, v


def position(model, past, t, x_0, m):
    """Position t: h and latent (C,). past[i][t] is (k, v) of layer i, to be read and written."""
    w = {name.removesuffix(".weight"): p.detach().numpy() for name, p in model.named_parameters()}
    c, x = model.config, x_0
    L, W = c.n_layer, c.block_size
    for i in range(L):
        layer = {name.split(".")[-1]: p for name, p in w.items() if f"blocks.{i}." in name}
        u = i if c.memory_proj == "layerwise" else 0
        x = w["alpha"][i] * x + w["beta"][i] * x_0
        m_k, m_v = 0 * x, 0 * x
        if c.lrt:
            x = x + w["gamma"][i] * m
            m_k, m_v = w[f"u_k.{u}"] @ m, w[f"u_v.{u}"] @ m
        q, k, v = qkv(layer, c.n_head, norm(x), m_k, m_v)
        q, k = norm(rotate(q, t)), norm(rotate(k, t))
        past[i][t] = k, v
        x = x + layer["w_o"] @ attention(q, [past[i][s] for s in range(max(0, t - W + 1), t + 1)])
        x = x + layer["w_2"] @ np.maximum(layer["w_1"] @ norm(x), 0) ** 2
        if i + 1 == (c.memory_layer if c.memory_layer > 0 else L + 1 + c.memory_layer):
            latent = norm(x)
    return norm(x), latent


def logits(model, h):
    return 15 * np.tanh(h @ model.head.weight.detach().numpy().T / 15)


class Sequence:
    """The passes over one sequence of tokens: h and latent (T, C), keys and values."""

    def __init__(self, model, tokens):
        embed = model.embed.weight.detach().numpy()
        self.model, self.x_0 = model, norm(embed[tokens])
        self.h, self.latent = np.zeros_like(self.x_0), np.zeros_like(self.x_0)
        self.past = [{} for _ in range(model.config.n_layer)]

    def compute(self, positions, latent):
        """Each with memory m_t = latent_{t-1}, and m_0 = 0."""
        for t in positions:
            m = latent[t - 1] if t > 0 else np.zeros(self.x_0.shape[1])
            self.h[t], self.latent[t] = position(self.model, self.past, t, self.x_0[t], m)

    def loop(self):
        self.compute(range(len(self.h)), self.latent)           # as it is by then
        return self

    def pass_0(self):
        self.compute(range(len(self.h)), 0 * self.latent)
        return self

    def sweep(self, S):
        for s in range(S):
            self.compute(range(s, len(self.h), S), self.latent.copy())

    def kv(self):
        """(L, 2, H, T, D)"""
        return np.array([[layer[t] for t in range(len(self.h))]
                         for layer in self.past]).transpose(0, 2, 3, 1, 4)


def known_exact(name):
    model = tests.tiny(name)
    sequence = Sequence(model, tests.tokens(1, 12)[0].numpy()).loop()
    return dict(logits=logits(model, sequence.h), latent=sequence.latent)


def known_passes(name, S, K):
    model = tests.tiny(name)
    sequence = Sequence(model, tests.tokens(1, 7)[0].numpy()).pass_0()
    found = [sequence.h.copy()]
    for _ in range(K):
        sequence.sweep(S)
        found.append(sequence.h.copy())
    return dict(logits=logits(model, np.array(found)))


def known_qkv(name, memory):
    attention, (y, m_k, m_v) = tests.qkv_case(name)
    w = {name.split(".")[0]: p.detach().numpy() for name, p in attention.named_parameters()}
    m_k, m_v = (x.numpy() * memory for x in (m_k, m_v))
    rows = [[qkv(w, attention.n_head, y[b, t].numpy(), m_k[b, t], m_v[b, t]) for t in range(4)]
            for b in range(2)]
    return dict(zip("qkv", np.array(rows).transpose(2, 0, 3, 1, 4)))        # (B, H, T, D) each


def known_layers(name, memory):
    model, x_0, m = tests.layers_case(name)
    rows = [Sequence(model, [0] * 4) for _ in x_0]
    for row, x_0_row, m_row in zip(rows, x_0.numpy(), m.numpy() * memory):
        for t in range(4):
            row.h[t], row.latent[t] = position(model, row.past, t, x_0_row[t], m_row[t])
    return dict(h=np.array([row.h for row in rows]), latent=np.array([row.latent for row in rows]),
                kv=np.array([row.kv() for row in rows]).swapaxes(0, 1).swapaxes(1, 2))


def known_prefill(case):
    """How many sweeps it takes until nothing changes by more than each tolerance."""
    model, idx, S = tests.prefill_case(case)
    rows = [Sequence(model, row.numpy()).pass_0() for row in idx]
    changes = []
    for _ in range(-(-20 // S)):
        before = [(row.h.copy(), row.latent.copy(), row.kv()) for row in rows]
        for row in rows:
            row.sweep(S)
        after = [(row.h, row.latent, row.kv()) for row in rows]
        changes.append(max(abs(x - y).max() for a, b in zip(after, before) for x, y in zip(a, b)))
    sweeps = [next((n for n, change in enumerate(changes, 1) if change <= tol), len(changes))
              for tol in tests.TOLERANCES]
    return dict(sweeps=np.array(sweeps))


def all_known():
    """{"layers/shared/memory/h": numbers, ...}"""
    found = {}
    for name, memory in tests.QKV:
        found[f"qkv/{name}/{memory}"] = known_qkv(name, memory)
    for name in (*tests.LRT, "plain"):
        found[f"exact/{name}"] = known_exact(name)
        for memory in (True, False):
            found[f"layers/{name}/{memory}"] = known_layers(name, memory)
    for name in ("shared", "middle layer"):
        for S, K in tests.DIALS:
            found[f"passes/{name}/S={S}"] = known_passes(name, S, K)
    for case in tests.PREFILL:
        found[f"prefill/{case}"] = known_prefill(case)
    return {f"{which}/{part}": x for which, parts in found.items() for part, x in parts.items()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "known.npz", **all_known())
