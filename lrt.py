"""Latent Recurrent Transformer (LRT, arXiv:2605.26797): a GPT that hands on what it has computed.

A GPT computes a rich hidden state for every token, reads one next-token guess off it and drops it.
LRT keeps it. What a position hands on, its hidden state, is called its *latent*; what it gets is
its *memory* m: the latent of the position before it, 0 at the first one. The memory enters every
layer twice: it is added to the residual stream, and it is projected into keys and values. All else
is a plain GPT; with config.lrt = False the model below is just that.

Decoding goes from token to token anyway, so the memory costs one more vector. Training in that loop
is exact, too, but slow; in parallel it is approximated. Pass 0 computes all positions at once, with
m = 0. Then, in each of K sweeps, S subsets of the positions (t, from 0, is in subset t mod S) are
computed again in turn, each position with the newest latent of its left neighbour as its memory,
and the newest keys and values of all before it. S = T, K = 1 is exactly the loop.

    code               symbol         shape         meaning (B rows of T tokens)
    x0, x              x_0, x         (B, T, C)     normed embeddings; residual stream, C = n_embd
    h                  h_t            (B, T, C)     normed end of the stream, for the logits
    latent             m_{t+1}        (B, T, C)     normed x after memory_layer; after the last: h
    q, k, v            q, k, v        (B, H, T, D)  queries, keys, values: H heads, D = C / H
    m_k, m_v           U_k m, U_v m   (B, H, T, D)  what the memory gives to keys and values
    alpha, beta, gamma α_i, β_i, γ_i  (L,)          of x, x0, m at the entry of layer i = 1..L
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

def need(ok, message):
    if not ok:
        raise ValueError(message)

@dataclass
class GPTConfig:
    """Sizes and options. Raises ValueError that says which value is impossible, and why."""
    block_size: int = 128           # W: attention sees the last W positions, its own among them
    vocab_size: int = 65            # V
    n_layer: int = 2                # L
    n_head: int = 4                 # H
    n_embd: int = 128               # C: a multiple of 2 H, as positions turn pairs in each head
    dropout: float = 0.0            # on embeddings and on what each layer adds to the stream
    lrt: bool = False               # hand each token the latent of the one before it
    memory_layer: int = -1          # the latent is taken after this layer, 1..L; -1: the last
    memory_proj: str = "shared"     # U_k, U_v: "shared" by all layers, or "layerwise"

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            n = getattr(self, name)
            need(isinstance(n, int) and n > 0, f"{name}={n!r}: must be a whole number of 1 or more")
        C, H, L, layer = self.n_embd, self.n_head, self.n_layer, self.memory_layer
        need(C % (2 * H) == 0, f"n_embd={C}: must be a multiple of 2 * n_head = {2 * H}")
        need(0 <= self.dropout < 1, f"dropout={self.dropout}: must be at least 0 and less than 1")
        need(1 <= abs(layer) <= L, f"memory_layer={layer}: must be 1 to {L}, or -1 (last) to -{L}")
        need(self.lrt in (0, 1), f"lrt={self.lrt!r}: must be 0 or 1")
        need(self.memory_proj in ("shared", "layerwise"), "memory_proj: 'shared' or 'layerwise'")

def norm(x):
    """RMSNorm without parameters, x / sqrt(mean(x²)): F.rms_norm, faster on a CPU. 0 stays 0."""
    return x * (x.size(-1) ** 0.5 / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-15))

def rotary(start, T, D, like):
    """Rotary positions (arXiv:2104.09864): cos and sin, (T, D/2) each, of t / 10000^(2j/D) for
    t = start .. start + T - 1 and j = 0 .. D/2 - 1, in the dtype and on the device of `like`."""
    t = torch.arange(start, start + T, dtype=torch.float64)     # late positions need the digits
    angle = t[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    return angle.cos().to(like), angle.sin().to(like)

def rotate(x, cos, sin):
    """Turn each pair (a, b) = (x[j], x[j + D/2]) of a head by its angle. (..., T, D) -> same."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)

def shift_right(latent, first=None):
    """The recurrence: m_t = latent_{t-1}, m_0 = first (B, C), None for 0. (B, T, C) -> same."""
    first = torch.zeros_like(latent[:, 0]) if first is None else first
    return torch.cat([first[:, None], latent[:, :-1]], dim=1)

def cross_entropy(logits, targets):
    """Mean in nats over all targets but those of -1; 0 if none is left. (B, T, V), (B, T) -> ()."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    return nll / (targets != -1).sum().clamp(min=1)

class Cache:
    """All that later tokens need of earlier ones, and what is being computed of the newest T.
    pos: how many tokens are done; latent (B, C): of the last of them (None without LRT); kv: of
    each layer, keys and values (2, B, H, n, D): of up to W - 1 positions that are done, then of
    the newest. x0, h, latents (B, T, C), rope: of the newest. sweeps, residual: see GPT.prefill."""
    def __init__(self, config, batch_size, like):
        self.W, self.pos, self.sweeps, self.residual = config.block_size, 0, 0, 0.0
        self.latent = like.new_zeros(batch_size, config.n_embd) if config.lrt else None
        self.kv = [None] * config.n_layer

    def append(self, i, k, v):
        """k, v (B, H, T, D) of the newest go to the end of layer i. Returns all there are."""
        new, old = torch.stack([k, v]), self.kv[i]
        self.kv[i] = new if old is None else torch.cat([old, new], dim=3)
        return self.kv[i]

    def replace(self, s, S, i, k, v):
        """The same of every S-th of the newest, from s on, in the place of the old (in a copy)."""
        start = self.kv[i].size(3) - self.x0.size(1) + s
        self.kv[i] = self.kv[i].slice_scatter(torch.stack([k, v]), dim=3, start=start, step=S)
        return self.kv[i]

    def mask(self, s=0, S=1):
        """Which of n keys every S-th of the newest may see, from s on: (T/S, n), True for its own
        and the W - 1 before it. None for a single one, which sees all, and for causal order."""
        T, n = self.x0.size(1), min(self.pos, self.W - 1) + self.x0.size(1)
        if T == 1 or S == 1 and T == n <= self.W:
            return None
        return self.x0.new_ones(n, n, dtype=torch.bool).tril().triu(1 - self.W)[n - T + s::S]

    def advance(self):
        """The newest are done: pos, latent; of keys and values those stay that the next sees."""
        self.pos += self.x0.size(1)
        self.latent = None if self.latent is None else self.latents[:, -1]
        self.kv = [kv[..., max(0, kv.size(3) - self.W + 1):, :] for kv in self.kv]

class Block(nn.Module):
    """A layer. config.lrt: with 2 H gates, 2 σ(W_g y), first H local, then H for the memory."""
    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.w_1, self.w_2 = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        self.w_g = nn.Linear(C, 2 * config.n_head, bias=False) if config.lrt else None
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x):
        """(B, T, C) -> (B, H, T, D): head 0 has the first D numbers, and so on."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def qkv(self, y, m_k=0, m_v=0):
        """Queries, keys, values, (B, H, T, D) each, of normed inputs y (B, T, C) and of what memory
        gives, m_k, m_v, same or 0: W_q y, g_local W_k y + g_mem m_k; v as k. Plain: no gates."""
        q, k, v = self.heads(self.w_q(y)), self.heads(self.w_k(y)), self.heads(self.w_v(y))
        if self.w_g is not None:                                                            # LRT
            gates = 2 * torch.sigmoid(self.w_g(y))          # (B, T, 2H): H local, then H memory
            g_local, g_mem = gates.transpose(1, 2)[..., None].chunk(2, dim=1)   # (B, H, T, 1)
            k = g_local * k + g_mem * m_k
            v = g_local * v + g_mem * m_v
        return q, k, v

    def forward(self, x, rope, mask, store, m_k=0, m_v=0):
        """x (B, T, C) -> (B, T, C). m_k, m_v: see qkv; the others: see GPT.layers."""
        q, k, v = self.qkv(norm(x), m_k, m_v)
        q, k = norm(rotate(torch.stack([q, k]), *rope))     # both at once, which is faster
        k, v = store(k, v)                                  # from here on, of all positions
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.size(2) > 1)
        x = x + self.dropout(self.w_o(y.transpose(1, 2).flatten(2)))
        y = F.relu(self.w_1(norm(x)))
        return x + self.dropout(self.w_2(y * y))            # y.square() takes twice the time

class GPT(nn.Module):
    """A plain GPT as nanochat's: normed queries and keys, squared ReLU, untied head; and memory."""
    def __init__(self, config):
        super().__init__()
        self.config, C, L = config, config.n_embd, config.n_layer
        self.embed, self.dropout = nn.Embedding(config.vocab_size, C), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(L))
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self.alpha, self.beta = nn.Parameter(torch.ones(L)), nn.Parameter(torch.full((L,), 0.1))
        if config.lrt:
            n = 1 if config.memory_proj == "shared" else L
            self.u_k = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(n))
            self.u_v = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(n))
            self.gamma = nn.Parameter(torch.full((L,), 0.1))
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight, std=0.001)
        for name, p in self.named_parameters():
            if name.endswith(("w_o.weight", "w_2.weight", "w_g.weight")):
                nn.init.zeros_(p)                           # layers add nothing; gates are 1
            elif ".w_" in name or name.startswith("u_"):
                nn.init.uniform_(p, -(3 / C) ** 0.5, (3 / C) ** 0.5)        # variance 1/C

    def logits(self, h):
        """15 tanh(W_head h / 15): (..., C) -> (..., V), in float32 or float64."""
        return 15 * torch.tanh(self.head(h).to(torch.promote_types(h.dtype, torch.float32)) / 15)

    def layers(self, x0, rope, mask, store, m=None):
        """The equations, for any positions: all, a subset, or one. x0 (B, T, C); rope: cos and sin;
        mask: see Cache; store(i, k, v) takes keys and values of these positions in layer i, returns
        all there are; m (B, T, C), None for 0. Returns h and the latent to hand on, (B, T, C)."""
        x, m_k, m_v, outputs = x0, 0, 0, []
        for i, block in enumerate(self.blocks):
            x = self.alpha[i] * x + self.beta[i] * x0 + (0 if m is None else self.gamma[i] * m)
            if m is not None and i < len(self.u_k):         # shared: once, for all layers
                m_k, m_v = block.heads(self.u_k[i](m)), block.heads(self.u_v[i](m))
            x = block(x, rope, mask, partial(store, i), m_k, m_v)
            outputs.append(x)
        source, h = outputs[self.config.memory_layer - (self.config.memory_layer > 0)], norm(x)
        return h, h if source is x else norm(source)

    # ---- Exact: one token after the other
    def init_cache(self, batch_size):       # for sequences of which there is nothing yet
        return Cache(self.config, batch_size, like=self.alpha)

    def extend(self, idx, cache, m=None):
        """Compute new positions, all at once: the tokens idx (B, T) that come after those in the
        cache, with memory m (B, T, C), None for 0. From now on they are the cache's newest."""
        cache.x0, D = self.dropout(norm(self.embed(idx))), self.config.n_embd // self.config.n_head
        cache.rope = rotary(cache.pos, idx.size(1), D, like=self.alpha)
        cache.h, cache.latents = self.layers(cache.x0, cache.rope, cache.mask(), cache.append, m)

    def recur(self, idx, cache):
        """The recurrence: a token idx (B,), its memory the latent of the one before -> h (B, C)."""
        self.extend(idx[:, None], cache, cache.latent[:, None] if self.config.lrt else None)
        cache.advance()
        return cache.h[:, 0]

    def step(self, idx, cache):
        """Decode a token: idx (B,) -> logits (B, V) for the next one. Advances the cache. Exact,
        and differentiable: call it under torch.inference_mode() where you need no gradients."""
        return self.logits(self.recur(idx, cache))

    def forward_sequential(self, idx, targets=None):
        """The definition: the recurrence in a loop. idx, targets (B, T) -> logits (B, T, V), and
        mean cross-entropy in nats per token or None. T may be more than block_size."""
        cache = self.init_cache(idx.size(0))
        logits = self.logits(torch.stack([self.recur(t, cache) for t in idx.unbind(1)], dim=1))
        return logits, None if targets is None else cross_entropy(logits, targets)

    # ---- In parallel: pass 0, then sweeps over subsets
    def refine(self, cache, s, S):
        """A subset pass: compute every S-th of the newest, from s on, once more; memory: the newest
        latents, of the first cache.latent. What comes out takes the place of the old, in copies."""
        m = shift_right(cache.latents, cache.latent)[:, s::S]
        rope, store = [x[s::S] for x in cache.rope], partial(cache.replace, s, S)
        h, latents = self.layers(cache.x0[:, s::S], rope, cache.mask(s, S), store, m)
        cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)
        cache.latents = cache.latents.slice_scatter(latents, dim=1, start=s, step=S)

    def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None):
        """idx, targets (B, T), -1 where there is none -> logits (B, T, V), loss in nats or None.
        Exact without subsets; a plain GPT is pass 0 alone, whatever the dial says. With S subsets
        (S > T means T): logits are those after K sweeps; the loss is the sum of K + 1 loss_weights
        times the mean cross-entropies after pass 0 and after each sweep, by default 1 / (1 + S K)
        for pass 0, S times that for a sweep: all passes count alike. The first max(K + 1, S K)
        positions are exact. Raises ValueError for what is impossible."""
        T, W = idx.size(1), self.config.block_size
        S, K, weights = (subsets, sweeps, loss_weights) if self.config.lrt else (1, 0, None)
        need(1 <= T <= W, f"{T} positions: must be 1 to block_size = {W}")
        if S is None:
            return self.forward_sequential(idx, targets)
        need(S >= 1 and K >= 0, f"subsets={S}, sweeps={K}: must be at least 1 and at least 0")
        S = min(S, T)
        weights = [n / (1 + S * K) for n in [1] + [S] * K] if weights is None else weights
        need(len(weights) == K + 1 and any(weights), f"loss_weights: {K + 1} numbers, not all 0")
        cache = self.init_cache(idx.size(0))
        self.extend(idx, cache)
        hidden = [cache.h]                                  # after pass 0, and after each sweep
        for _ in range(K):
            for s in range(S):
                self.refine(cache, s, S)
            hidden.append(cache.h)
        if targets is None:
            return self.logits(cache.h), None
        logits = [self.logits(h) for h in hidden]
        return logits[-1], sum(w * cross_entropy(z, targets) for w, z in zip(weights, logits) if w)

    @torch.inference_mode()
    def prefill(self, idx, cache, subsets=2, tol=1e-3):
        """A prompt in parallel: idx (B, T) -> logits (B, V) after its last token; the cache is as
        after T steps. Pieces of 512 tokens (or W, if more) are swept until a sweep changes nothing
        that it writes (h, latents, keys, values) by more than tol; all is exact after ⌈T/S⌉.
        cache.sweeps: the most that a piece took (plain: 0); cache.residual: the largest change in a
        piece's last sweep, 0 in number ⌈T/S⌉. Raises ValueError for S < 1 or T < 1."""
        need(subsets > 0 and idx.size(1) > 0, f"subsets={subsets}, or no token: at least 1 each")
        cache.sweeps, cache.residual = 0, 0.0
        for piece in idx.split(max(self.config.block_size, 512), dim=1):
            self.extend(piece, cache)
            S, n, change = min(subsets, piece.size(1)), 0, 0.0
            enough = -(-piece.size(1) // S) if self.config.lrt else 0
            for n in range(1, enough + 1):
                old = [cache.h, cache.latents, *cache.kv]
                for s in range(S):
                    self.refine(cache, s, S)
                new = zip(old, [cache.h, cache.latents, *cache.kv])
                change = max((b - a).abs().max().item() for a, b in new) if n < enough else 0.0
                if change <= tol:
                    break
            cache.sweeps, cache.residual = max(cache.sweeps, n), max(cache.residual, change)
            cache.advance()
        return self.logits(cache.h[:, -1])

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, temperature=1, top_k=None, generator=None, cache=None):
        """Sample after the prompt idx (B, T): yields tokens (B,), max_new_tokens times; temperature
        0: the likeliest. A cache holds what came before, in the end all but the last token."""
        cache = cache or self.init_cache(idx.size(0))
        for n in range(max_new_tokens):
            logits = self.step(token, cache) if n else self.prefill(idx, cache)
            if top_k is not None:
                least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < least, -float("inf"))
            token = logits.argmax(-1)
            if temperature > 0:
                token = (logits / temperature).softmax(-1).multinomial(1, generator=generator)[:, 0]
            yield token
