"""Latent Recurrent Transformer (LRT, arXiv:2605.26797): the whole model in one file.

A GPT computes a rich hidden state for every token, uses it once, to predict the next token, and
throws it away. An LRT gives it to the next token. What a position hands on is its *latent*; what it
receives, the latent of the position before it, is its *memory* m. For positions t = 0, 1, ... and
layers i = 1 .. L (delete the lines and terms marked LRT, and a plain GPT is left):

    m_t = latent_{t-1}, and m_0 = 0                                     LRT
    x_0 = norm(E[token_t])
    for i = 1 .. L:
        x    = α_i x_{i-1} + β_i x_0 + γ_i m_t                          LRT: γ_i m_t
        y    = norm(x);  q, k, v = W_q y, W_k y, W_v y
        g_local, g_mem = 2 σ(W_g y)                                     LRT: two numbers per head
        k    = g_local k + g_mem U_k m_t;  v = g_local v + g_mem U_v m_t                      LRT
        q, k = norm(rotate(q, t)), norm(rotate(k, t))
        x    = x + W_o attention(q, k and v of the last W positions)
        x_i  = x + W_2 relu(W_1 norm(x))²
    h_t      = norm(x_L);  logits_t = 15 tanh(W_head h_t / 15)
    latent_t = norm(x_i) of the layer i = memory_layer                  LRT: by default h_t

This is exact, and sequential: `step` computes one token, `forward_sequential` is a loop over it.
In parallel, the latents are approximated. Pass 0 computes all positions at once with m = 0. Then
come K sweeps. A sweep recomputes S subsets in turn: subset s is the positions s, s + S, s + 2S, ...
Each of them receives the latent that its left neighbour has by now, and attends to the keys and
values that all positions have by now. For example T = 6 and S = 2, two sweeps of two subsets:

                         position       0 1 2 3 4 5     exact so far
    pass 0               recomputes     0 1 2 3 4 5     0           with m = 0, which is right for 0
    sweep 1, subset 0    recomputes     0   2   4       0           from the latents of pass 0
             subset 1    recomputes       1   3   5     0 1         from the new latents of 0, 2, 4
    sweep 2, subset 0    recomputes     0   2   4       0 1 2       from the new latents of 1, 3
             subset 1    recomputes       1   3   5     0 1 2 3     and so on

A position is exact once it has been recomputed after all positions before it were exact. S = 2,
K = 1 is how the paper trains. S = T, K = 1 recomputes one position at a time and is exact. The cost
is 1 + K passes, whatever S is. Shapes in this file: B rows of T tokens, width C = n_embd, H heads
of size D = C / H, window W = block_size, vocabulary V.
"""
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
import torch.nn as nn
import torch.nn.functional as F


def require(ok, message):
    if not ok:
        raise ValueError(message)


def require_whole(least, **numbers):
    """Raises ValueError unless each is a whole number of at least `least`, or None: not given."""
    for name, n in numbers.items():
        require(n is None or isinstance(n, Integral) and n >= least,
                f"{name}={n!r}: must be a whole number, at least {least}")


@dataclass
class GPTConfig:
    """Raises ValueError that names the impossible value."""
    block_size: int = 128           # W: a position attends to the last W, itself included
    vocab_size: int = 65            # V
    n_layer: int = 2                # L
    n_head: int = 4                 # H
    n_embd: int = 128               # C: a multiple of 2 H, since rotary turns pairs of numbers
    dropout: float = 0.0
    lrt: bool = False               # latent recurrence; without it, a plain GPT
    memory_layer: int = -1          # the layer whose output is the latent: 1 .. L; -1: the last
    memory_proj: str = "shared"     # U_k and U_v: "shared" by all layers, or "layerwise"

    def __post_init__(self):
        L, H = self.n_layer, self.n_head
        require_whole(1, block_size=self.block_size, vocab_size=self.vocab_size,
                      n_layer=L, n_head=H, n_embd=self.n_embd)
        require(self.n_embd % (2 * H) == 0,
                f"n_embd={self.n_embd}: must be a multiple of 2 * n_head = {2 * H}")
        require(0 <= self.dropout < 1, f"dropout={self.dropout}: must be at least 0, less than 1")
        require(self.lrt in (0, 1), f"lrt={self.lrt!r}: must be 0 or 1")
        require(self.memory_layer in (*range(1, L + 1), *range(-L, 0)),
                f"memory_layer={self.memory_layer}: must be 1 to {L}, or -1 (the last) to {-L}")
        require(self.memory_proj in ("shared", "layerwise"),
                f"memory_proj={self.memory_proj!r}: must be 'shared' or 'layerwise'")


def norm(x):
    """RMSNorm without parameters, over the last dimension."""
    return F.rms_norm(x, (x.size(-1),))


def rotary(start, T, D, like):
    """Rotary positions (arXiv:2104.09864) start .. start + T - 1: cos and sin, each (T, D/2), with
    dtype and device of `like`. Angles are computed in float64, as late positions need the digits.
    """
    exact = dict(dtype=torch.float64, device="cpu" if like.is_mps else like.device)
    t = torch.arange(start, start + T, **exact)
    frequency = torch.logspace(0, 8 / D - 4, D // 2, **exact)       # 10000^(-2j/D), j = 0, 1, ...
    angle = torch.outer(t, frequency)
    return torch.stack([angle.cos(), angle.sin()]).to(like)


def rotate(x, rope):
    """Turn each pair (x[j], x[j + D/2]) of x (..., T, D) by the angle of its position."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


def shift_right(latent, first):
    """The recurrence: m_t = latent_{t-1}, and m_0 = first (B, C). latent (B, T, C) -> the same."""
    return torch.cat([first[:, None], latent[:, :-1]], dim=1)


def cross_entropy(logits, targets):
    """Mean in nats over all targets but those of -1; 0 if there are none. (B, T, V), (B, T) -> ()
    """
    require(targets.shape == logits.shape[:2],
            f"targets {tuple(targets.shape)}: must have the shape of idx, {(*logits.shape[:2],)}")
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1,
                            reduction="sum")
    return total / (targets != -1).sum().clamp(min=1)


@torch.compiler.disable         # torch.compile does not trace autograd.grad
def implicit_gradient(loss, latent, z, hops):
    """The first `hops` terms of λ = g + Jᵀ g + Jᵀ Jᵀ g + ..., with g = ∂loss/∂z, J = ∂latent/∂z;
    z and latent are (B, T, C), and so is λ."""
    lam, term = torch.zeros_like(z), loss
    for _ in range(hops):
        g, = torch.autograd.grad(term, z, retain_graph=True)
        lam = lam + g
        term = (g * latent).sum()           # the gradient of this one is Jᵀ g
    return lam


# ---- The layers


class Dropout(nn.Dropout):
    """Passes without gradients only look for latents: dropout would keep these from settling."""

    def forward(self, x):
        return super().forward(x) if self.training and torch.is_grad_enabled() else x


class Attention(nn.Module):
    """Causal self-attention, in which the memory contributes to keys and values."""

    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.w_q = nn.Linear(C, C, bias=False)
        self.w_k = nn.Linear(C, C, bias=False)
        self.w_v = nn.Linear(C, C, bias=False)
        self.w_o = nn.Linear(C, C, bias=False)
        self.w_g = nn.Linear(C, 2 * config.n_head, bias=False) if config.lrt else None  # LRT

    def heads(self, x):
        """(B, n, C) -> (B, H, n, D); head 0 has the first D numbers."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def qkv(self, y, m_k=None, m_v=None):
        """Queries, keys and values (B, H, n, D) of the normed input y (B, n, C), and of U_k m and
        U_v m (B, n, C each). Without them m = 0; the gate g_local acts all the same."""
        q, k, v = self.heads(self.w_q(y)), self.heads(self.w_k(y)), self.heads(self.w_v(y))
        if self.w_g is not None:                                                        # LRT
            gates = 2 * torch.sigmoid(self.w_g(y))                      # (B, n, 2H), in (0, 2)
            g_local, g_mem = gates.transpose(1, 2)[..., None].chunk(2, dim=1)   # (B, H, n, 1)
            k, v = g_local * k, g_local * v
            if m_k is not None:
                k = k + g_mem * self.heads(m_k)
                v = v + g_mem * self.heads(m_v)
        return q, k, v

    def forward(self, y, m_k, m_v, rope, mask, store):
        """y (B, n, C) -> (B, n, C). store(k, v) keeps keys and values of these n positions, and
        returns those of all positions. mask holds the arguments of scaled_dot_product_attention
        that say which of them each query sees."""
        q, k, v = self.qkv(y, m_k, m_v)
        q, k = norm(rotate(torch.stack([q, k]), rope))
        k, v = store(k, v)
        y = F.scaled_dot_product_attention(q, k, v, **mask)
        return self.w_o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w_1 = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.w_2 = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, y):
        return self.w_2(F.relu(self.w_1(y)).square())


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x, m_k, m_v, rope, mask, store):
        x = x + self.dropout(self.attn(norm(x), m_k, m_v, rope, mask, store))
        return x + self.dropout(self.mlp(norm(x)))


# ---- State: of the finished tokens (Cache), and of tokens in progress (Chunk)


@dataclass
class Cache:
    """What later tokens need of the finished ones.

    To try two continuations, let the second one go on with cache.copy(). To train on a long text
    piece by piece, cut the graph between two pieces:
        cache.kv = [kv.detach() for kv in cache.kv]
        cache.latent = cache.latent.detach()
    """
    kv: list                # for each layer: (2, B, H, n, D), keys and values of the last n < W
    latent: torch.Tensor    # (B, C), of the last one; zeros before the first
    pos: int = 0            # how many tokens are finished

    def __post_init__(self):
        self.rooms = [Room() for _ in self.kv]

    def copy(self):
        return Cache(list(self.kv), self.latent, self.pos)


class Room:
    """Where keys and values of a layer grow in place, as long as nobody needs gradients: a step
    copies none of the earlier ones. No two caches or chunks write over each other, since what has
    been written stays, and only the holder of `newest` may write behind it. Any other tensor (of a
    cache that was copied or changed, or of another chunk) is first copied into new space."""

    def __init__(self):
        self.space = self.newest = None         # (2, B, H, N, D); the written part that ends last
        self.end = 0                            # where it ends

    def extend(self, kv, T):
        """Make room for T more positions behind kv (2, B, H, n, D) -> (2, B, H, n + T, D)."""
        n = kv.size(3)
        if kv is not self.newest or self.end + T > self.space.size(3):
            with torch.inference_mode(False):   # so that it can be written to in any mode
                self.space = kv.new_empty(*kv.shape[:3], 2 * (n + T), kv.size(4))
            self.space[..., :n, :] = kv
            self.end = n
        self.end += T
        self.newest = self.space[..., self.end - n - T:self.end, :]
        return self.newest

    def trim(self, kv, n):
        """The last n positions of kv, or all if there are fewer."""
        last = kv[..., max(0, kv.size(3) - n):, :]
        if kv is self.newest:
            self.newest = last
        return last


class Chunk:
    """T tokens in progress, which follow the finished ones of a cache. GPT.begin makes it, with a
    first pass over all of it; GPT.sweep recomputes it as often as you like; finish() ends it."""

    def __init__(self, x0, cache, window):
        self.x0 = x0                        # (B, T, C) normed embeddings
        self.cache, self.window = cache, window
        self.pos = cache.pos                # position of its first token
        self.past = cache.kv[0].size(3)     # how many finished positions can still be seen
        self.kv = list(cache.kv)            # for each layer: finished positions, then own ones
        self.rope = rotary(cache.pos, x0.size(1), cache.kv[0].size(4), like=x0)
        self.h = self.latent = None         # (B, T, C), as the last pass over each position left it

    def store(self, i, at, k, v):
        """Keep keys and values (B, H, n, D) of layer i at the positions `at`, a slice of the chunk.
        Returns those of all positions, finished ones first: (2, B, H, past + T, D)."""
        T, kv = self.x0.size(1), self.kv[i]
        first_pass = kv.size(3) == self.past
        if torch.is_grad_enabled() or kv.requires_grad:     # new tensors: backward needs the old
            new = torch.stack([k, v])
            if first_pass:
                kv = torch.cat([kv, new], dim=3)
            else:
                start, end, step = at.indices(T)
                kv = kv.slice_scatter(new, 3, self.past + start, self.past + end, step)
        else:                                               # in place
            if first_pass:
                kv = self.cache.rooms[i].extend(kv, T)
            own = kv[..., self.past:, :]
            own[0, :, :, at] = k
            own[1, :, :, at] = v
        self.kv[i] = kv
        return kv

    def attention_mask(self, at):
        """Queries at `at` see their own position and the W - 1 before it. Returns arguments of
        scaled_dot_product_attention."""
        T = self.x0.size(1)
        if T == 1:
            return {}                                       # all: a cache keeps only W - 1
        if at.indices(T) == (0, T, 1) and self.past == 0 and T <= self.window:
            return {"is_causal": True}
        keys = torch.arange(-self.past, T, device=self.x0.device)
        back = keys[self.past:][at][:, None] - keys         # how far back each key is
        return {"attn_mask": (back >= 0) & (back < self.window)}

    def require_unfinished(self):
        require(self.cache.pos == self.pos, "this chunk is finished, or its cache went on without "
                f"it: it begins at position {self.pos}, and {self.cache.pos} tokens are finished")

    def finish(self):
        """The tokens are done: the cache takes what later ones need, keys and values of the last
        W - 1 positions among it."""
        self.require_unfinished()
        keep = self.window - 1
        self.cache.kv = [room.trim(kv, keep) for room, kv in zip(self.cache.rooms, self.kv)]
        self.cache.latent = self.latent[:, -1]
        self.cache.pos += self.x0.size(1)


class GPT(nn.Module):
    """nanochat's GPT (rotary positions, normed queries and keys, squared ReLU, no biases, untied
    head), with an optional latent recurrence."""

    def __init__(self, config):
        super().__init__()
        self.config, C, L = config, config.n_embd, config.n_layer
        self.embed = nn.Embedding(config.vocab_size, C)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(L))
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self.alpha = nn.Parameter(torch.ones(L))
        self.beta = nn.Parameter(torch.full((L,), 0.1))
        if config.lrt:
            n = 1 if config.memory_proj == "shared" else L
            self.u_k = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(n))
            self.u_v = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(n))
            self.gamma = nn.Parameter(torch.full((L,), 0.1))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Branches start at zero, gates at 1, all other matrices with variance 1/C."""
        bound = (3 / self.config.n_embd) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.uniform_(-bound, bound)
        for block in self.blocks:
            block.attn.w_o.weight.zero_()
            block.mlp.w_2.weight.zero_()
            if self.config.lrt:
                block.attn.w_g.weight.zero_()
        self.embed.weight.normal_()
        self.head.weight.normal_(std=0.001)

    def logits(self, h):
        """15 tanh(W_head h / 15): (..., C) -> (..., V), at least in float32."""
        z = self.head(h)
        z = z.to(torch.promote_types(z.dtype, torch.float32))       # bfloat16 is too coarse here
        return 15 * torch.tanh(z / 15)

    def memory_kv(self, m):
        """What memory m (B, n, C) adds to keys and values: a pair (U_k m, U_v m) for each layer."""
        if m is None:
            return [(None, None)] * self.config.n_layer
        pairs = [(u_k(m), u_v(m)) for u_k, u_v in zip(self.u_k, self.u_v)]
        return pairs * self.config.n_layer if self.config.memory_proj == "shared" else pairs

    def layers(self, chunk, at, m=None):
        """One pass over the positions `at` of a chunk, a slice, with their memory m (B, n, C) or
        None for 0: the equations above. Returns h and latent, (B, n, C) each."""
        x = x0 = chunk.x0[:, at]
        rope, mask, memory = chunk.rope[:, at], chunk.attention_mask(at), self.memory_kv(m)
        memory_layer = self.config.memory_layer % (self.config.n_layer + 1)     # -1: L
        for i, block in enumerate(self.blocks):
            x = self.alpha[i] * x + self.beta[i] * x0
            if m is not None:
                x = x + self.gamma[i] * m                                               # LRT
            x = block(x, *memory[i], rope, mask, partial(chunk.store, i, at))
            if i + 1 == memory_layer:
                latent = norm(x)
        h = latent if memory_layer == self.config.n_layer else norm(x)
        return h, latent

    # ---- Exact: one token after another

    def init_cache(self, batch_size):
        """A cache with no token in it."""
        H, D = self.config.n_head, self.config.n_embd // self.config.n_head
        empty = self.alpha.new_zeros(2, batch_size, H, 0, D)
        return Cache([empty] * self.config.n_layer, self.alpha.new_zeros(batch_size, H * D))

    def begin(self, idx, cache, m=None):
        """A new chunk: all tokens idx (B, T) at once, with memory m (B, T, C) or None for 0."""
        B = len(cache.latent)
        require(len(idx) == B and idx.numel() > 0,
                f"idx {tuple(idx.shape)}: must be (B, T), with B = {B} as in the cache, T > 0")
        chunk = Chunk(self.dropout(norm(self.embed(idx))), cache, self.config.block_size)
        chunk.h, chunk.latent = self.layers(chunk, slice(None), m)
        return chunk

    def step(self, idx, cache):
        """One token idx (B,) -> logits (B, V) for the next one. Differentiable."""
        m = cache.latent[:, None] if self.config.lrt else None
        chunk = self.begin(idx[:, None], cache, m)
        chunk.finish()
        return self.logits(chunk.h[:, 0])

    def forward_sequential(self, idx, targets=None):
        """The definition: a loop over step. Arguments and results are those of forward, but T may
        be larger than block_size."""
        require(idx.size(1) > 0, "idx has rows of 0 tokens")
        cache = self.init_cache(len(idx))
        logits = torch.stack([self.step(token, cache) for token in idx.unbind(1)], dim=1)
        return logits, None if targets is None else cross_entropy(logits, targets)

    # ---- In parallel: pass 0, then sweeps over subsets

    def sweep(self, chunk, S):
        """Recompute every position of a chunk once, in S subsets, each with the newest latents."""
        require_whole(1, subsets=S)
        chunk.require_unfinished()
        for s in range(min(S, chunk.x0.size(1))):
            at = slice(s, None, S)
            m = shift_right(chunk.latent, chunk.cache.latent)[:, at]
            h, latent = self.layers(chunk, at, m)
            chunk.h = chunk.h.slice_scatter(h, dim=1, start=s, step=S)
            chunk.latent = chunk.latent.slice_scatter(latent, dim=1, start=s, step=S)

    def forward_parallel(self, idx, targets=None, subsets=2, sweeps=1, loss_weights=None):
        """Pass 0 and K sweeps over S subsets (of a plain GPT, pass 0 alone). Logits are those after
        the last sweep; the first max(K + 1, S K) positions are exact. With L_0 the mean loss after
        pass 0, and L_k that after sweep k, the loss is the mean over pass 0 and all S K subset
        passes, (L_0 + S Σ L_k) / (1 + S K), or Σ w_k L_k with K + 1 loss_weights w."""
        require_whole(1, subsets=subsets)
        require_whole(0, sweeps=sweeps)
        S, K = min(subsets, idx.size(1)), sweeps
        if loss_weights is None:
            loss_weights = [n / (1 + S * K) for n in [1] + [S] * K]
        require(len(loss_weights) == K + 1 and any(loss_weights),
                f"{loss_weights=}: must be {K + 1} numbers, one for each pass, not all 0")
        if not self.config.lrt:
            K, loss_weights = 0, [1]
        chunk = self.begin(idx, self.init_cache(len(idx)))
        hidden = [chunk.h]                              # after pass 0, and after each sweep
        for _ in range(K):
            self.sweep(chunk, S)
            hidden.append(chunk.h)
        logits = self.logits(chunk.h)
        if targets is None:
            return logits, None
        loss = loss_weights[-1] * cross_entropy(logits, targets)
        for weight, h in zip(loss_weights, hidden[:-1]):
            if weight != 0:
                loss = loss + weight * cross_entropy(self.logits(h), targets)
        return logits, loss

    def forward_hops(self, idx, targets=None, subsets=None, sweeps=1, hops=2):
        """Almost exact training, without backpropagation through all passes. First the latents z
        are found without gradients: by the dial, or without subsets by the loop, which is exact.
        Then one pass with memory shift_right(z) gives logits and loss, and new latents latent(z).

        z solves z = latent(z), so its gradient follows from this equation and does not depend on
        how z was found (arXiv:1909.01377). With g = ∂loss/∂z and J = ∂latent/∂z:
            dloss/dθ = ∂loss/∂θ + λᵀ ∂latent/∂θ,   λ = g + Jᵀ g + Jᵀ Jᵀ g + ...
        `hops` terms of λ are computed. J leads one position to the right, so T - 1 terms are all.
        """
        require_whole(1, subsets=subsets)
        require_whole(0, sweeps=sweeps, hops=hops)
        if not self.config.lrt:
            return self.forward_parallel(idx, targets)
        cache = self.init_cache(len(idx))
        zeros = cache.latent
        with torch.no_grad():
            if subsets is None:
                z = torch.empty(*idx.shape, self.config.n_embd).to(zeros)
                for t, token in enumerate(idx.unbind(1)):
                    self.begin(token[:, None], cache, cache.latent[:, None]).finish()
                    z[:, t] = cache.latent
            else:
                chunk = self.begin(idx, cache)
                for _ in range(sweeps):
                    self.sweep(chunk, subsets)
                z = chunk.latent
        torch.clear_autocast_cache()    # torch 2.9 keeps weights in it that were cast without graph
        z = z.detach().requires_grad_(torch.is_grad_enabled())
        chunk = self.begin(idx, self.init_cache(len(idx)), shift_right(z, zeros))
        logits = self.logits(chunk.h)
        if targets is None:
            return logits, None
        loss = cross_entropy(logits, targets)
        if not loss.requires_grad:
            return logits, loss
        lam = implicit_gradient(loss, chunk.latent, z, hops)
        bonus = (lam * chunk.latent).sum()              # its gradient is λᵀ ∂latent/∂θ
        return logits, loss + bonus - bonus.detach()

    def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None, hops=None):
        """idx (B, T) with T <= block_size, targets (B, T) or None; targets of -1 do not count.
        Returns logits (B, T, V), and the mean loss in nats or None. Raises ValueError for
        impossible arguments. WITHOUT subsets it is exact, and slow; with hops, see forward_hops;
        else, see forward_parallel. A plain GPT always takes one pass."""
        W = self.config.block_size
        require(1 <= idx.size(1) <= W, f"rows of {idx.size(1)} tokens: must be 1 to block_size={W}")
        require_whole(0, sweeps=sweeps)
        require(loss_weights is None or subsets is not None and hops is None,
                f"{loss_weights=}: only with subsets, and without hops")
        if hops is not None:
            return self.forward_hops(idx, targets, subsets, sweeps, hops)
        if subsets is not None:
            return self.forward_parallel(idx, targets, subsets, sweeps, loss_weights)
        if self.config.lrt:
            return self.forward_sequential(idx, targets)
        return self.forward_parallel(idx, targets)

    # ---- Inference

    @torch.no_grad()
    def prefill(self, idx, cache, subsets=2, tol=1e-3):
        """Read a prompt idx (B, T) in parallel -> logits (B, V) after its last token; the cache is
        as after T steps. Sweeps are repeated until no value changes by more than tol (or by
        rounding), ⌈T/S⌉ times at most, which is exact. Pieces of 512 tokens (or W, if that is more)
        are read one after another, as attention takes memory for pairs of tokens."""
        require_whole(1, subsets=subsets)
        require(tol >= 0 and idx.numel() > 0, f"prompt of {tuple(idx.shape)} tokens, {tol=}: "
                "there must be tokens, and tol must be at least 0")
        tol = max(tol, 40 * torch.finfo(self.alpha.dtype).eps)
        for piece in idx.split(max(self.config.block_size, 512), dim=1):
            chunk = self.begin(piece, cache)
            most = -(-piece.size(1) // subsets) if self.config.lrt else 0
            for _ in range(most):
                before = [chunk.h, chunk.latent, *(kv.clone() for kv in chunk.kv)]
                self.sweep(chunk, subsets)
                after = [chunk.h, chunk.latent, *chunk.kv]
                if max((a - b).abs().max() for a, b in zip(after, before)) <= tol:
                    break
            chunk.finish()
        return self.logits(chunk.h[:, -1])

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, generator=None,
                 cache=None):
        """Continue the prompt idx (B, T): yields max_new_tokens tokens (B,), one after another.
        Temperature 0 takes the likeliest token. A cache may hold what came before the prompt; in
        the end it lacks only the last token, so that text can be continued."""
        require_whole(0, max_new_tokens=max_new_tokens)
        require_whole(1, top_k=top_k)
        require(temperature >= 0, f"{temperature=}: must be at least 0")
        if cache is None:
            cache = self.init_cache(len(idx))
        logits = self.prefill(idx, cache)
        for n in range(max_new_tokens):
            if n > 0:
                logits = self.step(token, cache)
            if temperature < 1e-6 or top_k == 1:
                token = logits.argmax(-1)
            else:
                if top_k is not None:
                    best, where = logits.topk(min(top_k, logits.size(-1)))
                    logits = torch.full_like(logits, -torch.inf).scatter(-1, where, best)
                p = (logits / temperature).softmax(-1)
                token = p.multinomial(1, generator=generator)[:, 0]
            yield token
