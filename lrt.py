"""Latent Recurrent Transformer (LRT, arXiv:2605.26797): a GPT that hands on what it has computed.

A GPT computes a rich hidden state for every token, reads one guess off it and drops it. LRT keeps
it. What a position hands on is its *latent*; what it gets is its *memory* m: the latent of the one
before, 0 at the first. m is added to the stream in every layer, and projected into keys and
values; all else is a plain GPT. Decoding, and exact training, go from token to token. In parallel,
pass 0 computes all positions at once, with m = 0; then, in each of K sweeps, S subsets of them (t,
from 0, is in subset t mod S) are computed again in turn, with the latest latents, keys and values.
S and K are the *dial*; S = T, K = 1 is exact. Gradients: through all passes, or the last (hops).

    code               symbol         shape         meaning (B rows of T tokens)
    x0, x              x_0, x         (B, T, C)     normed embeddings; residual stream, C = n_embd
    h                  h_t            (B, T, C)     normed end of the stream, for the logits
    m, m_next          m_t, m_{t+1}   (B, T, C)     memory got; latent: norm(x after memory_layer)
    cache.latent       m_{t+1}        (B, C)        m_next of the last token that is done
    q, k, v; m_k, m_v  .., U_k m, ..  (B, H, T, D)  H heads, D = C / H; what m gives to k and v
    alpha, beta, gamma α_i, β_i, γ_i  (L,)          of x, x0, m at the entry of layer i = 1..L
"""
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn as nn
import torch.nn.functional as F

def need(ok, message):
    if not ok:
        raise ValueError(message)
def need_whole(least, **numbers):
    for name, n in numbers.items():
        need(isinstance(n, Integral) and n >= least, f"{name}={n!r}: must be whole, from {least}")

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
        W, V, L, H, C = self.block_size, self.vocab_size, self.n_layer, self.n_head, self.n_embd
        need_whole(1, block_size=W, vocab_size=V, n_layer=L, n_head=H, n_embd=C)
        need_whole(-L, memory_layer=self.memory_layer)
        need(C % (2 * H) == 0, f"n_embd={C}: must be a multiple of 2 * n_head = {2 * H}")
        need(0 <= self.dropout < 1, f"dropout={self.dropout}: must be at least 0 and less than 1")
        need(1 <= abs(self.memory_layer) <= L, f"memory_layer: 1 to {L}, or -1 (last) to -{L}")
        need(self.lrt in (0, 1), f"lrt={self.lrt!r}: must be 0 or 1")
        need(self.memory_proj in ("shared", "layerwise"), "memory_proj: 'shared' or 'layerwise'")

def norm(x):
    """RMSNorm without parameters or eps, x / sqrt(mean(x²)). Faster on a CPU than F.rms_norm."""
    least = torch.finfo(x.dtype).tiny ** 0.5                # so that 1 / least is finite, too
    return x * (x.size(-1) ** 0.5 / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + least))

def rotary(start, T, D, like):
    """Rotary positions, arXiv:2104.09864: cos, sin of t / 10000^(2j/D), t >= start: (2, T, D/2)"""
    exact = dict(dtype=torch.float64, device="cpu" if like.is_mps else like.device)
    t = torch.arange(start, start + T, **exact)             # late positions need the digits
    angle = t[:, None] * 10000 ** (-torch.arange(0, D, 2, **exact) / D)
    return torch.stack([angle.cos(), angle.sin()]).to(like)
def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)               # each pair (x[j], x[j + D/2]) is turned by its angle
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)

def shift_right(latent, first=None):
    """The recurrence: m_t = latent_{t-1}, m_0 = first (B, C), None for 0. (B, T, C) -> same."""
    first = torch.zeros_like(latent[:, 0]) if first is None else first
    return torch.cat([first[:, None], latent[:, :-1]], dim=1)

def cross_entropy(logits, targets):
    """Mean in nats over all targets but those of -1; 0 if none is left. (B, T, V), (B, T) -> ()."""
    need(targets.shape == logits.shape[:2], f"targets {tuple(targets.shape)}: must be as idx")
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    return nll / (targets != -1).sum().clamp(min=1)

class Cache:
    """All that later tokens need of earlier ones, and the *newest* T while they are computed: begin
    says which; put, as often as you like, takes their keys and values; advance: they are done. pos:
    how many are done; latent: of the last (plain: None); kv: for each layer, (2, B, H, n, D), of up
    to W - 1 done, then newest; x0, rope, h, m_next: of the newest. at: a slice of these."""
    def __init__(self, config, batch_size, like):
        self.W, self.B, self.D = config.block_size, batch_size, config.n_embd // config.n_head
        self.latent = like.new_zeros(batch_size, config.n_embd) if config.lrt else None
        self.pos, self.kv, self.sweeps, self.residual = 0, [None] * config.n_layer, 0, 0.0

    def begin(self, x0):            # (B, T, C) of those that are the newest from now on
        self.x0, self.rope = x0, rotary(self.pos, x0.size(1), self.D, like=x0)
        self.kept = min(self.pos, self.W - 1)               # so many of the done are in kv
    def put(self, i, k, v, at):     # (B, H, T', D) at `at` (step 1: all newest) -> kv of layer i
        old, new = self.kv[i], torch.stack([k, v])
        if at.step > 1:
            new = old.slice_scatter(new, dim=3, start=self.kept + at.start, step=at.step)
        elif self.kept > 0:
            new = torch.cat([old[..., :self.kept, :], new], dim=3)
        self.kv[i] = new
        return new

    def mask(self, at):
        """For attention: which of n keys those at `at` see, (T', n): their own and W - 1 before."""
        T = self.x0.size(1)
        if T == 1 or at.step == 1 and self.kept == 0 and T <= self.W:   # all; all before: no mask
            return dict(is_causal=bool(T > 1))
        t = torch.arange(-self.kept, T, device=self.x0.device)          # 0: the first of the newest
        back = t[self.kept:][at, None] - t                  # how far back each key is
        return dict(attn_mask=(back >= 0) & (back < self.W))

    def advance(self):
        """The newest are done: pos, latent; of keys and values those stay that the next sees."""
        self.pos += self.x0.size(1)
        self.latent = None if self.latent is None else self.m_next[:, -1]
        self.kv = [kv[..., max(0, kv.size(3) - self.W + 1):, :] for kv in self.kv]
        self.x0 = None                                      # nothing is being computed

class Dropout(nn.Dropout):
    def forward(self, x):           # not in passes without gradients, which only look for m
        return F.dropout(x, self.p, self.training and torch.is_grad_enabled())
class Block(nn.Module):
    """A layer. config.lrt: with 2 H gates, 2 σ(W_g y), first H local, then H for the memory."""
    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.w_1, self.w_2 = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        self.w_g = nn.Linear(C, 2 * config.n_head, bias=False) if config.lrt else None
        self.dropout = Dropout(config.dropout)
    def split(self, x):             # (B, T, C) -> (B, H, T, D): head 0 has the first D numbers, ...
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def qkv(self, y, m_k=0, m_v=0):
        """Queries, keys, values, (B, H, T, D) each, of normed inputs y (B, T, C) and of what memory
        gives, m_k, m_v, same or 0: W_q y, g_local W_k y + g_mem m_k; v as k. Plain: no gates."""
        q, k, v = self.split(self.w_q(y)), self.split(self.w_k(y)), self.split(self.w_v(y))
        if self.w_g is not None:                                                            # LRT
            gates = 2 * torch.sigmoid(self.w_g(y))          # (B, T, 2H): H local, then H memory
            g_local, g_mem = gates.transpose(1, 2)[..., None].chunk(2, dim=1)   # (B, H, T, 1)
            k = g_local * k + g_mem * m_k
            v = g_local * v + g_mem * m_v
        return q, k, v

    def forward(self, x, i, cache, at, mask, m_k=0, m_v=0):
        """As layer i + 1 of L: x (B, T', C) of the cache's newest at `at` -> (B, T', C)."""
        q, k, v = self.qkv(norm(x), m_k, m_v)
        q, k = norm(rotate(torch.stack([q, k]), *cache.rope[:, at]))    # both at once: faster
        k, v = cache.put(i, k, v, at)                       # from here on, of all positions
        y = F.scaled_dot_product_attention(q, k, v, **mask)
        x = x + self.dropout(self.w_o(y.transpose(1, 2).flatten(2)))
        y = F.relu(self.w_1(norm(x)))
        return x + self.dropout(self.w_2(y * y))            # y.square() takes twice the time

class GPT(nn.Module):
    """A plain GPT as nanochat's: normed queries and keys, squared ReLU, untied head; and memory."""
    def __init__(self, config):
        super().__init__()
        self.config, C, L = config, config.n_embd, config.n_layer
        self.embed, self.dropout = nn.Embedding(config.vocab_size, C), Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(L))
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self.alpha, self.beta = nn.Parameter(torch.ones(L)), nn.Parameter(torch.full((L,), 0.1))
        if config.lrt:
            n = 1 if config.memory_proj == "shared" else L
            self.u_k, self.u_v = (nn.ModuleList(nn.Linear(C, C, bias=False) for _ in range(n))
                                  for _ in range(2))
            self.gamma = nn.Parameter(torch.full((L,), 0.1))
        nn.init.normal_(self.embed.weight)
        nn.init.normal_(self.head.weight, std=0.001)
        for name, p in self.named_parameters():
            if name.endswith(("w_o.weight", "w_2.weight", "w_g.weight")):
                nn.init.zeros_(p)                           # layers add nothing; gates are 1
            elif ".w_" in name or name.startswith("u_"):
                nn.init.uniform_(p, -(3 / C) ** 0.5, (3 / C) ** 0.5)        # variance 1/C

    def logits(self, h):            # 15 tanh(W_head h / 15): (..., C) -> (..., V), in float32 or 64
        return 15 * torch.tanh(self.head(h).to(torch.promote_types(h.dtype, torch.float32)) / 15)

    def layers(self, x0, m, cache, at):
        """The equations, of the newest at `at`: x0, memory m or None: 0 -> h, m_next; (B, T', C)"""
        outputs, mask, m_k, m_v = [x0], cache.mask(at), 0, 0            # outputs[n]: of layer n
        for i, block in enumerate(self.blocks):
            x = self.alpha[i] * outputs[i] + self.beta[i] * x0
            if m is not None:                                                               # LRT
                x = x + self.gamma[i] * m
                if i == 0 or len(self.u_k) > 1:             # one pair is shared by all layers
                    m_k, m_v = block.split(self.u_k[i](m)), block.split(self.u_v[i](m))
            outputs.append(block(x, i, cache, at, mask, m_k, m_v))
        h, source = norm(outputs[-1]), outputs[self.config.memory_layer]
        return h, h if source is outputs[-1] else norm(source)

    # ---- Exact: one token after the other
    def init_cache(self, batch_size):       # for sequences of which there is nothing yet
        return Cache(self.config, batch_size, like=self.alpha)

    def extend(self, idx, cache, m=None):
        """Compute new tokens idx (B, T), all at once, with memory m (B, T, C), None for 0."""
        need(len(idx) == cache.B and idx.numel(), f"{(*idx.shape,)} tokens: not {cache.B} rows")
        cache.begin(self.dropout(norm(self.embed(idx))))
        cache.h, cache.m_next = self.layers(cache.x0, m, cache, at=slice(0, None, 1))

    def step(self, idx, cache):
        """The recurrence: a token idx (B,) -> logits (B, V) for the next one. Differentiable."""
        self.extend(idx[:, None], cache, cache.latent[:, None] if self.config.lrt else None)
        cache.advance()
        return self.logits(cache.h[:, 0])

    def forward_sequential(self, idx, targets=None):
        """The definition: a loop. As forward, but T may be more than block_size."""
        need_whole(1, T=idx.size(1))
        cache = self.init_cache(idx.size(0))
        logits = torch.stack([self.step(token, cache) for token in idx.unbind(1)], dim=1)
        return logits, None if targets is None else cross_entropy(logits, targets)

    # ---- In parallel: pass 0, then sweeps over subsets
    def refine(self, cache, s, S):
        """A subset pass: compute every S-th of the newest, from s on, once more. Memory: latents as
        they are by now, cache.latent before the first. What is written are new tensors."""
        at = slice(s, None, S)
        m = shift_right(cache.m_next, cache.latent)[:, at]
        h, m_next = self.layers(cache.x0[:, at], m, cache, at)
        cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)
        cache.m_next = cache.m_next.slice_scatter(m_next, dim=1, start=s, step=S)
    def sweep(self, cache, S):      # all subsets in turn: each of the newest once more
        for s in range(min(S, cache.x0.size(1))):
            self.refine(cache, s, S)

    def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None, hops=None):
        """idx, targets (B, T), -1: none -> logits (B, T, V), mean loss in nats or None. WITHOUT
        subsets it is exact, and slow: the loop. With S subsets (S > T: T), logits are those after K
        sweeps, exact in the first max(K + 1, S K) positions; the loss is a mean: pass 0's counts
        once, each sweep's S times; or their sum by K + 1 loss_weights. Plain GPT: pass 0 alone."""
        T, W, S, K, weights = idx.size(1), self.config.block_size, subsets, sweeps, loss_weights
        need(1 <= T <= W, f"{T} positions: must be 1 to block_size = {W}")
        need_whole(1, subsets=1 if S is None else S)
        need_whole(0, sweeps=K, hops=0 if hops is None else hops)
        need(weights is None or S and hops is None, "loss_weights: with subsets and without hops")
        S = min(S or 1, T)
        weights = [n / (1 + S * K) for n in [1] + [S] * K] if weights is None else weights
        need(len(weights) == K + 1 and any(weights), f"loss_weights: {K + 1} numbers, not all 0")
        if not self.config.lrt:
            K, weights = 0, [1]
        elif hops is not None:
            return self.forward_hops(idx, targets, subsets, sweeps, hops)
        elif subsets is None:
            return self.forward_sequential(idx, targets)
        cache = self.init_cache(idx.size(0))
        self.extend(idx, cache)
        hidden = [cache.h]                                  # after pass 0, and after each sweep
        for _ in range(K):
            self.sweep(cache, S)
            hidden.append(cache.h)
        if targets is None:
            return self.logits(cache.h), None
        logits = [self.logits(h) for h in hidden]
        return logits[-1], sum(w * cross_entropy(z, targets) for w, z in zip(weights, logits) if w)

    def forward_hops(self, idx, targets=None, subsets=None, sweeps=1, hops=2):
        """As forward, but of one last pass: its logits (one position more is exact), its loss, and
        the gradient of a fixed point (as deep equilibrium models, arXiv:1909.01377). Passes without
        a graph, or the loop, find z = m_next(shift_right(z)), a constant in the last pass. To train
        what z comes from, that pass's m_next gets a gradient; g = ∂loss/∂z, J = ∂m_next/∂z:
            λ = g + Jᵀ g + (Jᵀ)² g + ...    `hops` terms, each a hop back; T - 1: all."""
        cache, z = self.init_cache(idx.size(0)), []
        with torch.no_grad():
            if subsets is None:
                for token in idx.unbind(1):
                    self.step(token, cache)
                    z.append(cache.latent)
                z = torch.stack(z, dim=1)
            else:
                self.extend(idx, cache)
                for _ in range(sweeps):
                    self.sweep(cache, subsets)
                z = cache.m_next
        torch.clear_autocast_cache()        # torch 2.9 keeps the weights of no_grad in it
        cache = self.init_cache(idx.size(0))
        self.extend(idx, cache, shift_right(z.requires_grad_(torch.is_grad_enabled())))
        logits = self.logits(cache.h)
        loss = None if targets is None else cross_entropy(logits, targets)
        if loss is None or not loss.requires_grad:
            return logits, loss
        said, credit = loss, torch.zeros_like(z)            # credit: λ
        for _ in range(hops):
            g, = torch.autograd.grad(said, z, retain_graph=True)
            said, credit = (g * cache.m_next).sum(), credit + g
        return logits, loss + (credit * (cache.m_next - cache.m_next.detach())).sum()   # adds 0

    @torch.no_grad()
    def prefill(self, idx, cache, subsets=2, tol=1e-3):
        """A prompt in parallel: idx (B, T) -> logits (B, V) after its last token; the cache is as
        after T steps. Pieces of 512 tokens (or W, if more) are swept until a sweep writes nothing
        that differs by more than tol, or rounding; n tokens are exact after ⌈n/S⌉.
        cache.sweeps: most a piece took (plain: 0); residual: largest last change, 0: exact."""
        need_whole(1, subsets=subsets, T=idx.size(1))
        tol = max(tol, 40 * torch.finfo(self.head(self.embed.weight[:1]).dtype).eps)    # rounding
        cache.sweeps, cache.residual = 0, 0.0
        for piece in idx.split(max(self.config.block_size, 512), dim=1):
            self.extend(piece, cache)
            n, change, enough = 0, 0.0, -(-piece.size(1) // subsets) if self.config.lrt else 0
            for n in range(1, enough + 1):
                old = [cache.h, cache.m_next, *cache.kv]
                self.sweep(cache, subsets)
                new = zip(old, [cache.h, cache.m_next, *cache.kv])
                change = max((b - a).abs().max().item() for a, b in new) if n < enough else 0.0
                if change <= tol:
                    break
            cache.sweeps, cache.residual = max(cache.sweeps, n), max(cache.residual, change)
            cache.advance()
        return self.logits(cache.h[:, -1])

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1, top_k=None, generator=None, cache=None):
        """Sample after the prompt idx (B, T): yields tokens (B,), max_new_tokens times; temperature
        0 (< 1e-6): the likeliest. A cache holds what came before; in the end, all but the last."""
        need_whole(1, top_k=1 if top_k is None else top_k)
        need(temperature >= 0, f"temperature={temperature}: must be 0 or more")
        cache = cache or self.init_cache(idx.size(0))
        logits = self.prefill(idx, cache)
        for n in range(max_new_tokens):
            logits = self.step(token, cache) if n else logits
            if top_k is not None:
                least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
                logits = logits.masked_fill(logits < least, -float("inf"))
            token = logits.argmax(-1)
            if temperature >= 1e-6:
                token = (logits / temperature).softmax(-1).multinomial(1, generator=generator)[:, 0]
            yield token
