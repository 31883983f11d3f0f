"""Latent Recurrent Transformer (LRT, arXiv:2605.26797): a GPT with memory, and how to train it in parallel.

A GPT computes a rich hidden state for every token, reads one next-token guess off it and throws it away.
LRT hands that state to the next token as memory m: it is added to the residual stream of every layer and
projected into every layer's keys and values. Attention, KV cache and the number of forward passes per
generated token stay those of the plain GPT; decoding carries one more vector of C numbers.

Training on that recurrence token by token is exact but slow, so a buffer of hidden states, keys and values is
filled once for all positions without memory, then refined in K sweeps over S interleaved subsets of positions.

    name         symbol     shape          meaning
    idx          -          (B, T)         token numbers
    x0           x_0        (B, T, C)      normed token embeddings, C = n_embd
    x            x          (B, T, C)      residual stream
    h            h_t        (B, T, C)      normed last residual stream: what the logits are read from
    state        m_{t+1}    (B, T, C)      normed x after memory_layer; after the last layer: h    LRT
    m            m_t        (B, T, C)      memory: the state of position t - 1; m_0 = 0            LRT
    u            U m        (B, T, 2C)     what the memory gives keys and values: U_k m, U_v m     LRT
    q, k, v      q, k, v    (B, H, T, D)   queries, keys, values: H = n_head heads of D = C / H
    gate         g          (B, T, 2H)     two gates in (0, 2) per head: g_local, g_mem            LRT
    alpha, beta  α_i, β_i   (L,)           weights of x and x0 at the entry of layer i = 1..L
    gamma        γ_i        (L,)           weight of m at the entry of layer i                     LRT
    subsets      S          -              position t (from 0) is in subset t mod S                LRT
    sweeps       K          -              how often every subset is recomputed                    LRT

`grep -n LRT lrt.py` lists the code that a plain GPT does not need. (A plain model's prefill goes through fill, too.)
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.functional import scaled_dot_product_attention as attention


@dataclass
class GPTConfig:
    """Sizes and options of the model. Raises ValueError, saying which value is impossible and why."""
    block_size: int = 128           # W: positions attention can see; rows in training have T ≤ W
    vocab_size: int = 65            # V
    n_layer: int = 2                # L
    n_head: int = 4                 # H
    n_embd: int = 128               # C
    dropout: float = 0.0            # on the embeddings and on what each layer adds to the residual stream
    lrt: bool = False               # LRT: hand each token the state of the one before it
    memory_layer: int = -1          # LRT: layer whose output is the memory, 1..L, or from the end: -1 is the last
    memory_proj: str = "shared"     # LRT: "shared": one U_k, U_v for all layers; "layerwise": one pair per layer

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be a whole number of 1 or more")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd}: must be a multiple of 2 * n_head = {2 * self.n_head}, "
                             "as rotary positions turn pairs of numbers in each head")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be at least 0 and less than 1")
        if self.lrt not in (0, 1):
            raise ValueError(f"lrt={self.lrt!r}: must be 0 or 1")
        if not 1 <= abs(self.memory_layer) <= self.n_layer:
            raise ValueError(f"memory_layer={self.memory_layer}: must be 1 to n_layer = {self.n_layer}, "
                             f"or -1 (the last) to -{self.n_layer}")
        if self.memory_proj not in ("shared", "layerwise"):
            raise ValueError(f"memory_proj={self.memory_proj!r}: must be 'shared' or 'layerwise'")


# ---- The pieces: each works on any number of positions -----------------------------------------------------------

def norm(x):
    """RMSNorm without parameters over the last dimension: x / sqrt(mean(x²) + eps). F.rms_norm is the definition; RMSNorm
    below is the same, with a faster backward pass."""
    return RMSNorm.apply(x) if x.requires_grad else F.rms_norm(x, (x.size(-1),))


class RMSNorm(torch.autograd.Function):
    """F.rms_norm with its derivative (the first one only) written out: autograd's own takes several times as long on a CPU."""

    @staticmethod
    def forward(ctx, x):
        dtype = torch.promote_types(x.dtype, torch.float32)             # as F.rms_norm does for bfloat16
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        r = torch.rsqrt(r.square() / x.size(-1) + torch.finfo(dtype).eps)
        y = (x * r).to(x.dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, r = ctx.saved_tensors
        dot = (grad.unsqueeze(-2) @ y.unsqueeze(-1)).squeeze(-1)        # sum over the last dimension of grad * y
        return (torch.addcmul(grad, y, dot, value=-1 / y.size(-1)) * r).to(grad.dtype)


class SquaredReLU(torch.autograd.Function):
    """relu(x)², with its derivative 2 relu(x) written out, for the same reason."""

    @staticmethod
    def forward(ctx, x):
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx, grad):
        r, = ctx.saved_tensors
        return 2 * r * grad


def rotary_table(start, length, head_dim, like):
    """Rotary positions (RoPE, arXiv:2104.09864), base 10,000, in the dtype and on the device of `like`.

    For t = start .. start + length - 1 the angles t / 10000^(2j/D), j = 0 .. D/2 - 1, as two factors stacked
    (2, T, D): cos, cos for the two halves of a head, and sin, -sin."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64       # late positions need the digits
    t = torch.arange(start, start + length, device=like.device, dtype=dtype)
    frequency = 10000 ** (-torch.arange(0, head_dim, 2, device=like.device, dtype=dtype) / head_dim)
    angle = t[:, None] * frequency
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    return torch.stack([torch.cat([cos, cos], dim=1), torch.cat([sin, -sin], dim=1)])


def rotate(x, rope):
    """Turn each pair (a, b) = (first half, second half) of a head into (a cos + b sin, b cos - a sin).

    x (..., D), rope (2, ..., D), broadcast over x -> (..., D)."""
    cos, sin = rope                                     # sin holds sin, -sin
    b_a = x.roll(x.size(-1) // 2, dims=-1)              # (a, b) half-way round is (b, a)
    return torch.addcmul(x * cos, b_a, sin)             # addcmul(a, b, c) = a + b c, in one kernel


def shift_right(h, first=None):                                                                      # LRT
    """The recurrence for all positions at once: m_t = h_{t-1}, and m_0 = `first`, or 0.

    h (B, T, C), first (B, C) or None -> m (B, T, C)."""
    first = torch.zeros_like(h[:, 0]) if first is None else first                                    # LRT
    return torch.cat([first[:, None], h[:, :-1]], dim=1)                                             # LRT


def cross_entropy(logits, targets, subsets=1):
    """Mean cross-entropy, in nats, of each of S interleaved subsets of the positions; targets of -1 do not count.

    logits (B, T, V), targets (B, T) -> (S,)."""
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none").view_as(targets)
    count = (targets >= 0).to(nll.dtype)
    return torch.stack([nll[:, s::subsets].sum() / count[:, s::subsets].sum().clamp(min=1) for s in range(subsets)])


def split(x, S, dim):                                                                                # LRT
    """Positions along `dim`, a multiple of S of them, as S interleaved subsets: the list of x[s::S], s = 0 .. S-1."""
    return list(x.unflatten(dim, (-1, S)).unbind(dim + 1))                                           # LRT


def merge(parts, dim):                                                                               # LRT
    """The inverse of split: interleaved subsets back in natural order."""
    return parts[0] if len(parts) == 1 else torch.stack(parts, dim + 1).flatten(dim, dim + 1)        # LRT


class Block(nn.Module):
    """The weights of one layer, and what it computes of each position alone."""

    def __init__(self, config):
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.n_head, self.head_dim = H, C // H
        self.w_q, self.w_k, self.w_v = (nn.Linear(C, C, bias=False) for _ in range(3))
        self.w_o = nn.Linear(C, C, bias=False)
        self.w_1 = nn.Linear(C, 4 * C, bias=False)
        self.w_2 = nn.Linear(4 * C, C, bias=False)
        self.w_g = nn.Linear(C, 2 * H, bias=False) if config.lrt else None                           # LRT
        self.dropout = nn.Dropout(config.dropout)

    def projections(self):
        """W_q, W_k, W_v and W_g one under the other, (3C + 2H, C): one product with y instead of four."""
        weights = [self.w_q.weight, self.w_k.weight, self.w_v.weight]
        if self.w_g is not None:                                                                     # LRT
            weights.append(self.w_g.weight)                                                          # LRT
        return torch.cat(weights)

    def qkv(self, w, y, rope, u=None):
        """Queries, keys and values of normed inputs y (B, T, C), w being projections(): three tensors (B, H, T, D).
        u (B, T, 2C) is the memory's share of keys and values, (U_k m, U_v m).                         LRT"""
        C, heads = y.size(-1), (self.n_head, self.head_dim)
        if self.w_g is None:
            qk, v = F.linear(y, w).split([2 * C, C], dim=-1)
            qk, v = qk.unflatten(-1, (2, *heads)), v.unflatten(-1, heads)                    # (B, T, 2, H, D), (B, T, H, D)
        else:                                                                                        # LRT
            q, kv, gate = F.linear(y, w).split([C, 2 * C, 2 * self.n_head], dim=-1)                  # LRT
            gate = 2 * torch.sigmoid(gate.contiguous())     # sigmoid is faster on one piece of memory     LRT
            local, mem = gate.unflatten(-1, (2, 1, self.n_head, 1)).unbind(2)    # g_local, g_mem: (B, T, 1, H, 1)  LRT
            kv = local * kv.unflatten(-1, (2, *heads))                           # (B, T, 2, H, D)     LRT
            if u is not None:                                                                        # LRT
                kv = torch.addcmul(kv, mem, u.unflatten(-1, (2, *heads)))                            # LRT
            k, v = kv.unbind(2)                                                                      # LRT
            qk = torch.stack([q.unflatten(-1, heads), k], dim=2)                                     # LRT
        q, k = norm(rotate(qk, rope[:, :, None, None])).unbind(2)        # rope as (2, T, 1, 1, D)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def out(self, y):
        """W_o of the attention's result y (B, H, T, D) -> (B, T, C)."""
        return self.dropout(self.w_o(y.transpose(1, 2).flatten(2)))

    def mlp(self, y):
        """W_2 relu(W_1 y)²: (B, T, C) -> (B, T, C)."""
        return self.dropout(self.w_2(SquaredReLU.apply(self.w_1(y))))


class Buffer:                                                                                        # LRT
    """What the dial sweeps over. A list over s holds one tensor for each of S interleaved subsets of the positions.

    P is the number of tokens before these that attention sees, 0 in training.
    x0, rope, mask: lists over s of (B, T/S, C), (2, T/S, D), (T/S, P + T), 0 where a position may see a key and -inf
    where not, or None for plain causal order;
    state, h: lists over s of (B, T/S, C), the latest state to hand on as memory and the latest h for logits;
    k, v: for each layer a list over s of (B, H, T/S, D), the latest keys and values;
    past: for each layer the keys, and the values, (B, H, P, D), of those P tokens; latent (B, C): memory of the first
    position; weights: projections() of the model."""

    def __init__(self, n_layer):                                                                     # LRT
        self.x0, self.rope, self.mask, self.state, self.h = [], [], [], [], []                       # LRT
        self.k, self.v = [None] * n_layer, [None] * n_layer                                          # LRT
        self.past, self.latent, self.weights = None, None, None                                      # LRT

    def keys_values(self, i):                                                                        # LRT
        """All keys and values of layer i, (B, H, P + T, D) each, in natural order."""
        kv = merge(self.k[i], dim=2), merge(self.v[i], dim=2)                                        # LRT
        return kv if self.past is None else [torch.cat([p[i], x], dim=2) for p, x in zip(self.past, kv)]  # LRT


class Cache:
    """All that decoding needs to know of the tokens so far. Keys and values of the last `block_size` positions
    are preallocated: position p is in slot p mod block_size, so that generation can go on for ever.

    weights: projections() of the model; k, v: for each layer (B, H, block_size, D); pos: how many tokens there have
    been; rope (2, block_size, D): for the current lap; latent (B, C): memory for the next token (None without LRT);
    sweeps, residual: of the last prefill, how many it took and the largest change of the memory in the last one."""

    def __init__(self, config, batch_size, weights):
        B, C, H, W = batch_size, config.n_embd, config.n_head, config.block_size
        self.weights, self.block_size, self.pos, self.rope = weights, W, 0, None
        self.k, self.v = ([w.new_zeros(B, H, W, C // H) for w in weights[0]] for _ in range(2))
        self.latent = weights[0][0].new_zeros(B, C) if config.lrt else None                          # LRT
        self.sweeps, self.residual = 0, 0.0                                                          # LRT

    def past(self, T):
        """For T positions that come next: which of the P kept positions each may see, (T, P), being less than
        block_size away; and the kept keys and values, for each layer (B, H, P, D)."""
        W, P, device = self.block_size, min(self.pos, self.block_size), self.k[0].device
        slot = torch.arange(P, device=device)
        position = self.pos - 1 - (self.pos - 1 - slot) % W     # of the token in that slot: the latest p with p % W = slot
        query = self.pos + torch.arange(T, device=device)
        return query[:, None] - position < W, ([k[:, :, :P] for k in self.k], [v[:, :, :P] for v in self.v])

    def extend(self, buffer, T):
        """Take over the first T positions of a finished Buffer: the last block_size of them are kept."""
        new = torch.arange(max(0, T - self.block_size), T, device=self.k[0].device)
        slots = (self.pos + new) % self.block_size
        for i in range(len(buffer.k)):
            self.k[i][:, :, slots] = merge(buffer.k[i], dim=2)[:, :, new]
            self.v[i][:, :, slots] = merge(buffer.v[i], dim=2)[:, :, new]
        if self.latent is not None:                                                                  # LRT
            self.latent = merge(buffer.state, dim=1)[:, T - 1]                                       # LRT
        self.pos, self.rope = self.pos + T, None


# ---- The model ---------------------------------------------------------------------------------------------------

class GPT(nn.Module):
    """Decoder-only transformer in the style of nanochat's: rotary positions, norms without parameters, query/key
    norm, squared ReLU, no biases, untied head, capped logits. With config.lrt, each position also gets a memory."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        C, L = config.n_embd, config.n_layer
        self.memory_index = (config.memory_layer - (config.memory_layer > 0)) % L if config.lrt else None  # LRT 0 .. L-1
        self.embed = nn.Embedding(config.vocab_size, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(L))
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.alpha, self.beta = nn.Parameter(torch.empty(L)), nn.Parameter(torch.empty(L))
        if config.lrt:                                                                               # LRT
            pairs = {"shared": 1, "layerwise": L}[config.memory_proj]                                # LRT
            self.u_k = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(pairs))              # LRT
            self.u_v = nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(pairs))              # LRT
            self.gamma = nn.Parameter(torch.empty(L))                                                # LRT
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """All initial values, in one place."""
        bound = (3 / self.config.n_embd) ** 0.5         # uniform in ±√(3/C) has variance 1/C
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight, std=0.001)
        self.alpha.fill_(1.0)
        self.beta.fill_(0.1)
        for block in self.blocks:
            for linear in (block.w_q, block.w_k, block.w_v, block.w_1):
                nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(block.w_o.weight)
            nn.init.zeros_(block.w_2.weight)
        if self.config.lrt:                                                                          # LRT
            self.gamma.fill_(0.1)                                                                    # LRT
            for block in self.blocks:                                                                # LRT
                nn.init.zeros_(block.w_g.weight)        # gates start at 2 σ(0) = 1                    LRT
            for linear in (*self.u_k, *self.u_v):                                                    # LRT
                nn.init.uniform_(linear.weight, -bound, bound)                                       # LRT

    def embedding(self, idx):
        """x0 = norm(E[idx]): (B, T) -> (B, T, C)."""
        return self.dropout(norm(self.embed(idx)))

    def logits(self, h):
        """15 tanh(W_head h / 15): (..., C) -> (..., V), in float32 (float64 for a float64 model)."""
        z = self.head(h)
        return 15 * torch.tanh(z.to(torch.promote_types(z.dtype, torch.float32)) / 15)

    def check_length(self, T):
        """Raises ValueError if T positions are more than attention can see at once; decoding has no such limit."""
        if T > self.config.block_size:
            raise ValueError(f"{T} positions are more than block_size={self.config.block_size}; cut them, or prefill a cache")

    def projections(self):
        """Weights side by side, for any number of calls of `layers`: of each layer, and of each pair (U_k, U_v)."""
        pairs = [torch.cat([k.weight, v.weight]) for k, v in zip(self.u_k, self.u_v)] if self.config.lrt else None    # LRT
        return [block.projections() for block in self.blocks], pairs

    def rope(self, start, length):
        """The rotary table of positions start .. start + length - 1."""
        return rotary_table(start, length, self.config.n_embd // self.config.n_head, self.embed.weight)

    def layers(self, weights, x0, rope, attend, m=None):
        """The equations of the model, for any positions: all of them, a subset, one. Everything goes through here.

        weights from projections(), x0 (B, T, C), rope (2, T, D), memory m (B, T, C) or None for zero. attend(i, q, k, v)
        is the attention of layer i, (B, H, T, D) -> (B, H, T, D); it knows what these may see and where to keep k and v.
        Returns h (B, T, C), to read logits from, and the state (B, T, C) to hand on as memory (None without LRT)."""
        x, state, (w, pairs) = x0, None, weights
        enter = self.beta[:, None, None, None] * x0     # what enters each layer beside x: (L, B, T, C)
        if m is not None:                                                                            # LRT
            enter = torch.addcmul(enter, self.gamma[:, None, None, None], m)                         # LRT
            u = [F.linear(m, pair) for pair in pairs]   # U_k m and U_v m: (B, T, 2C)                  LRT
        for i, (block, alpha, r) in enumerate(zip(self.blocks, self.alpha.unbind(), enter.unbind())):
            x = torch.addcmul(r, alpha, x)
            q, k, v = block.qkv(w[i], norm(x), rope, None if m is None else u[i % len(u)])
            x = x + block.out(attend(i, q, k, v))
            x = x + block.mlp(norm(x))
            if i == self.memory_index:                                                               # LRT
                state = x                                                                            # LRT
        h = norm(x)
        if state is not None:                                                                        # LRT
            state = h if self.memory_index == len(self.blocks) - 1 else norm(state)                  # LRT
        return h, state

    # ---- Training: one dial from parallel to exact -----------------------------------------------------------

    def forward(self, idx, targets=None, subsets=2, sweeps=1, loss_weights=None):
        """All positions in parallel: one pass without memory, then K sweeps over S interleaved subsets.

        idx (B, T); targets (B, T), -1 where there is none. Returns logits (B, T, V) after the last sweep, and
        None or the loss in nats per token: the mean of 1 + S·K cross-entropies, one for the first pass and one for
        each subset in each sweep. Instead, loss_weights (K + 1 numbers) gives the sum over k of loss_weights[k] times
        the cross-entropy of all positions after sweep k. A plain model does one pass, whatever the dial says.

        S = T, K = 1 is exactly the recurrence (S > T means S = T); the first max(K + 1, S·K) positions always are.
        Raises ValueError for S < 1, K < 0, loss_weights of another length or all zero, or T > block_size."""
        T, S, K = idx.size(1), min(subsets, idx.size(1)), sweeps
        self.check_length(T)
        if not self.config.lrt:
            h, _ = self.layers(self.projections(), self.embedding(idx), self.rope(0, T),
                               lambda i, q, k, v: attention(q, k, v, is_causal=True))
            hidden, loss_weights = [h], None
        else:                                                                                        # LRT
            if S < 1 or K < 0:                                                                       # LRT
                raise ValueError(f"subsets={subsets}, sweeps={K}: must be at least 1 and at least 0")    # LRT
            if loss_weights is not None and not (len(loss_weights) == K + 1 and any(loss_weights)):  # LRT
                raise ValueError(f"loss_weights={loss_weights}: must be {K + 1} numbers, not all 0") # LRT
            buffer = self.fill(idx, S)                                                               # LRT
            hidden = [merge(buffer.h, dim=1)[:, :T]]    # after each sweep, (B, T, C)                  LRT
            for _ in range(K):                                                                       # LRT
                for s in range(S):                                                                   # LRT
                    self.refine(buffer, s)                                                           # LRT
                hidden.append(merge(buffer.h, dim=1)[:, :T])                                         # LRT
        if targets is None:
            return self.logits(hidden[-1]), None
        logits = [self.logits(h) for h in hidden]
        if loss_weights is None:
            losses = [cross_entropy(z, targets, S if k else 1) for k, z in enumerate(logits)]
            return logits[-1], torch.cat(losses).mean()
        losses = [w * cross_entropy(z, targets) for w, z in zip(loss_weights, logits) if w]          # LRT
        return logits[-1], torch.cat(losses).sum()                                                   # LRT

    def fill(self, idx, subsets, cache=None):                                                        # LRT
        """The initialization pass: all positions at once, m = 0. idx (B, T) -> Buffer.

        With a cache, the positions are those after its last one, and the first one's memory is its latent.
        If S does not divide T, positions that nobody looks back at are added at the end."""
        S, buffer = subsets, Buffer(self.config.n_layer)                                             # LRT
        idx = F.pad(idx, (0, -idx.size(1) % S))                                                      # LRT
        T, start = idx.size(1), cache.pos if cache else 0                                            # LRT
        buffer.weights = cache.weights if cache else self.projections()                             # LRT
        x0, rope, m = self.embedding(idx), self.rope(start, T), None                                 # LRT
        W = self.config.block_size                                                                   # LRT
        mask = torch.ones(T, T, dtype=torch.bool, device=idx.device).tril().triu(1 - W)  # t - W < key ≤ t    LRT
        if start:                                                                                    # LRT
            seen, buffer.past = cache.past(T)                                                        # LRT
            mask = torch.cat([seen, mask], dim=1)       # (T, P + T)                                   LRT
        if cache and self.config.lrt:                                                                # LRT
            buffer.latent = cache.latent                                                             # LRT
            m = shift_right(torch.zeros_like(x0), cache.latent)                                      # LRT
        mask = x0.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))   # what attention adds to its scores   LRT
        causal = not start and T <= W                   # no mask needed for all positions together   LRT
        buffer.x0, buffer.rope = split(x0, S, dim=1), split(rope, S, dim=1)                          # LRT
        buffer.mask = [None] if causal and S == 1 else split(mask, S, dim=0)                         # LRT

        def attend(i, q, k, v):                                                                      # LRT
            buffer.k[i], buffer.v[i] = split(k, S, dim=2), split(v, S, dim=2)                        # LRT
            if causal:                                                                               # LRT
                return attention(q, k, v, is_causal=True)                                            # LRT
            return attention(q, *buffer.keys_values(i), attn_mask=mask)                              # LRT

        h, state = self.layers(buffer.weights, x0, rope, attend, m)                                  # LRT
        buffer.h = split(h, S, dim=1)                                                                # LRT
        buffer.state = split(state, S, dim=1) if self.config.lrt else None                           # LRT
        return buffer                                                                                # LRT

    def refine(self, buffer, s):                                                                     # LRT
        """One subset pass: recompute the positions t with t mod S = s from the buffer, and write them back.

        The memory of each is the latest state of the position before it. That one belongs to subset s - 1, which this
        sweep has recomputed already, or for s = 0 to the last subset, one place earlier, from the sweep before. All
        attend to the latest keys and values."""
        m = buffer.state[s - 1] if s else shift_right(buffer.state[-1], buffer.latent)               # LRT

        def attend(i, q, k, v):                                                                      # LRT
            buffer.k[i][s], buffer.v[i][s] = k, v                                                    # LRT
            mask = buffer.mask[s]                                                                    # LRT
            return attention(q, *buffer.keys_values(i), attn_mask=mask, is_causal=mask is None)      # LRT

        buffer.h[s], buffer.state[s] = self.layers(buffer.weights, buffer.x0[s], buffer.rope[s], attend, m)    # LRT

    def forward_sequential(self, idx, targets=None):
        """The definition: one position after the other, each with the state of the one before it as its memory.

        idx, targets (B, T) -> logits (B, T, V), mean cross-entropy in nats per token or None. Differentiable.
        Raises ValueError for T > block_size."""
        self.check_length(idx.size(1))
        weights, x0, rope = self.projections(), self.embedding(idx), self.rope(0, idx.size(1))
        keys, values = ([x0.new_empty(idx.size(0), block.n_head, 0, block.head_dim) for block in self.blocks] for _ in range(2))

        def attend(i, q, k, v):
            keys[i], values[i] = torch.cat([keys[i], k], dim=2), torch.cat([values[i], v], dim=2)
            return attention(q, keys[i], values[i])

        hidden, m = [], torch.zeros_like(x0[:, :1]) if self.config.lrt else None
        for x0_t, rope_t in zip(x0.split(1, dim=1), rope.split(1, dim=1)):
            h, m = self.layers(weights, x0_t, rope_t, attend, m)                # m_{t+1} = state of t
            hidden.append(h)
        logits = self.logits(torch.cat(hidden, dim=1))
        return logits, None if targets is None else cross_entropy(logits, targets)[0]

    # ---- Inference ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_cache(self, batch_size):
        """An empty Cache for `batch_size` sequences; for the weights as they are now. Call model.eval() before you decode:
        nothing here switches dropout off."""
        return Cache(self.config, batch_size, self.projections())

    @torch.inference_mode()
    def step(self, idx, cache):
        """One token: idx (B,) -> logits (B, V) for the next one. Exact; advances the cache."""
        W = self.config.block_size
        slot, filled = cache.pos % W, min(cache.pos + 1, W)
        if slot == 0 or cache.rope is None:
            cache.rope = self.rope(cache.pos - slot, W)

        def attend(i, q, k, v):
            cache.k[i][:, :, slot:slot + 1], cache.v[i][:, :, slot:slot + 1] = k, v
            return attention(q, cache.k[i][:, :, :filled], cache.v[i][:, :, :filled])

        m = cache.latent[:, None] if self.config.lrt else None                                       # LRT
        h, state = self.layers(cache.weights, self.embedding(idx[:, None]), cache.rope[:, slot:slot + 1], attend, m)
        if self.config.lrt:                                                                          # LRT
            cache.latent = state[:, 0]                                                               # LRT
        cache.pos += 1
        return self.logits(h[:, 0])

    @torch.inference_mode()
    def prefill(self, idx, cache, subsets=2, tol=1e-3):
        """A prompt in parallel: idx (B, T) -> logits (B, V) after its last token. Advances the cache.

        Sweeps until no number in the memory changes by more than `tol` in a sweep (tol=0: until it is exact), but no
        more than ⌈T/S⌉ times, as max(sweeps + 1, S·sweeps) positions are exact by construction. Prompts are read in
        pieces of 512, or block_size if that is more. cache.sweeps is the most that a piece took, cache.residual the
        largest change in a piece's last sweep, 0 where it is exact by construction. Raises ValueError for S < 1 or T < 1.
        The defaults were the fastest that kept log-probabilities within 1e-4 on the trained default model on two cores, for
        prompts of 256 to 1,024 tokens: S = 2 takes 8 sweeps, S = 1 up to 12, S = 8 takes 6 but dearer ones."""
        if subsets < 1 or idx.size(1) < 1:
            raise ValueError(f"subsets={subsets}, {idx.size(1)} tokens: must be at least 1 each")
        cache.sweeps, cache.residual = 0, 0.0
        for piece in idx.split(max(self.config.block_size, 512), dim=1):
            T, S = piece.size(1), min(subsets, piece.size(1))
            buffer, sweeps, residual = self.fill(piece, S, cache), 0, float("inf")
            while self.config.lrt and max(sweeps + 1, S * sweeps) < T and not residual <= tol:       # LRT
                before = list(buffer.state)                                                          # LRT
                for s in range(S):                                                                   # LRT
                    self.refine(buffer, s)                                                           # LRT
                sweeps += 1                                                                          # LRT
                change = torch.stack([(new - old).abs().max() for new, old in zip(buffer.state, before)])    # LRT
                residual = 0.0 if max(sweeps + 1, S * sweeps) >= T else change.max().item()          # LRT
            if sweeps:                                                                               # LRT
                cache.sweeps, cache.residual = max(cache.sweeps, sweeps), max(cache.residual, residual)  # LRT
            cache.extend(buffer, T)
        return self.logits(merge(buffer.h, dim=1)[:, T - 1])

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, generator=None, cache=None):
        """Sample max_new_tokens tokens after the prompt idx (B, T): yields one (B,) tensor of tokens at a time.

        temperature 0 takes the likeliest token; top_k keeps only the k likeliest. A cache holds what came before the
        prompt, and afterwards all but the last token, with which a next prompt has to begin. There is no end to it:
        attention sees the last block_size tokens, the latent goes on."""
        cache = cache or self.init_cache(idx.size(0))
        for n in range(max_new_tokens):
            logits = self.step(token, cache) if n else self.prefill(idx, cache)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                if top_k is not None:
                    least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                    logits = logits.masked_fill(logits < least, float("-inf"))
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            yield token


# ---- python lrt.py: the dial and the decoder, measured -----------------------------------------------------------------

def main(argv=None):
    """Two tables for a small model with random weights: what each setting of the dial costs and how far from exact
    it is, and decoding and prefill. Times are medians of alternating runs, so that a busy machine is fair to all."""
    import platform
    import statistics
    import time
    from prepare_data import Parser, check, fail
    from sample import find_device
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    parser = Parser("Measure the dial and the decoder:  python lrt.py")
    for name, default in (("block_size", 128), ("batch_size", 16), ("n_layer", 2), ("n_head", 4), ("n_embd", 128), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (default: cpu)")
    a = parser.parse_args(argv)
    check(a, block_size=(2, 10 ** 6), batch_size=(1, 10 ** 6), n_layer=(1, 1000), runs=(1, 10 ** 6))
    T, B, device = a.block_size, a.batch_size, find_device(a.device)
    try:
        configs = [GPTConfig(T, 64, a.n_layer, a.n_head, a.n_embd, lrt=lrt) for lrt in (False, True)]
    except ValueError as e:
        fail(f"--{e}")
    torch.manual_seed(0)
    models = [GPT(config).to(device) for config in configs]
    with torch.no_grad():                               # weights that start at zero would leave the layers silent
        for model in models:
            for p in model.parameters():
                if p.ndim == 2 and not p.any():
                    p.normal_(std=0.5 / p.size(1) ** 0.5)
            model.head.weight.normal_(std=a.n_embd ** -0.5)
    plain, model = models
    idx, targets = torch.randint(64, (2, B, T), device=device)

    def median_ms(functions):
        """Milliseconds of each, called in turn."""
        times = [[] for _ in functions]
        for run in range(a.runs + 1):                   # the first run is a warm-up
            for f, t in zip(functions, times):
                start = time.perf_counter()
                f()
                if device.type != "cpu":
                    getattr(torch, device.type).synchronize()
                t.append(1000 * (time.perf_counter() - start))
        return [statistics.median(t[1:]) for t in times]

    def step(m, call):
        m.zero_grad(set_to_none=True)
        call()[1].backward()

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}; "
          f"{a.n_layer} layers of width {a.n_embd}, T = {T}, B = {B}, {sum(p.numel() for p in model.parameters()):,} parameters")
    with torch.no_grad():
        exact, _ = model.forward_sequential(idx)
    rows = [("plain GPT", plain, lambda: plain(idx, targets))]
    rows += [(f"S = {S:3}, K = {K}", model, lambda S=S, K=K: model(idx, targets, S, K))
             for S, K in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (8, 1), (8, 2), (T, 1))]
    rows += [("token by token", model, lambda: model.forward_sequential(idx, targets))]
    times = median_ms([lambda m=m, call=call: step(m, call) for _, m, call in rows])
    print(f"\n{'training':16}{'error':>10}{'exact':>8}{'FLOPs':>8}{'ms/step':>9}{'ratio':>7}     (random weights; error: of "
          f"logits; exact: first positions)")
    flops = []
    for (name, m, call), ms in zip(rows, times):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            logits, _ = call()
        flops.append(counter.get_total_flops())
        error = (logits - exact).abs().amax((0, 2))
        prefix = int((error < 1e-3).long().cumprod(0).sum())
        accuracy = f"{'':18}" if m is plain else f"{error.max().item():10.1e}{prefix:8}"
        print(f"{name:16}{accuracy}{flops[-1] / flops[0]:8.2f}{ms:9.1f}{ms / times[0]:7.2f}")

    tokens = 64
    def decode(m):
        cache = m.init_cache(1)
        for t in range(tokens):
            m.step(idx[:1, t % T], cache)
    decode_ms = median_ms([lambda: decode(plain), lambda: decode(model)])
    print(f"\n{'decoding, B = 1':24}{'ms/token':>10}{'tokens/s':>10}")
    for name, ms in zip(("plain GPT", "LRT"), decode_ms):
        print(f"{name:24}{ms / tokens:10.2f}{1000 * tokens / ms:10,.0f}")
    print(f"{'LRT / plain':24}{decode_ms[1] / decode_ms[0]:10.2f}")
    caches = {}
    def fill_cache(S):
        caches[S] = model.init_cache(1)
        model.prefill(idx[:1], caches[S], subsets=S)
    subsets = [S for S in (1, 2, 4, 8, 16, 32) if S <= T]
    prefill_ms = median_ms([lambda S=S: fill_cache(S) for S in subsets])
    print(f"\n{f'prompt of {T} tokens':24}{'ms':>10}{'sweeps':>10}{'residual':>10}")
    print(f"{'step by step':24}{decode_ms[1] / tokens * T:10.1f}")
    for S, ms in zip(subsets, prefill_ms):
        print(f"{f'prefill, S = {S}':24}{ms:10.1f}{caches[S].sweeps:10}{caches[S].residual:10.0e}")


if __name__ == "__main__":
    main()
