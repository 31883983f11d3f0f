"""Wrong versions of lrt.py, as students write them, and the tests that reject them.

    python course/mutants.py                    all of them, in a few minutes
    python course/mutants.py GPT.step ...       those of some functions

A version is a line (what is wrong, old text, new text); the old text stands once in the function.
One of an exercise must be rejected by the tests of its own exercise, any other by some test. If you
meet a wrong solution that passes, add a line here, and then a test.
"""
import functools
import inspect
import io
import multiprocessing
import os
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import lrt

EXERCISES = ["shift_right", "Chunk.finish", "Attention.qkv", "GPT.layers", "GPT.step", "GPT.sweep",
             "GPT.forward_parallel", "GPT.prefill", "GPT.forward_hops"]

SHIFT = "torch.cat([first[:, None], latent[:, :-1]], dim=1)"
KEEP = "room.trim(kv, keep) for room, kv in zip(self.cache.rooms, self.kv)"
QKV = "q, k, v = self.heads(self.w_q(y)), self.heads(self.w_k(y)), self.heads(self.w_v(y))"
CHUNK = "g_local, g_mem = gates.transpose(1, 2)[..., None].chunk(2, dim=1)   # (B, H, n, 1)"
BLOCK = "x = block(x, *memory[i], rope, mask, partial(chunk.store, i, at))"
RETURN = "return h, latent"
BEGIN = "chunk = self.begin(idx[:, None], cache, m)"
M = "m = cache.latent[:, None] if self.config.lrt else None"
SHIFTED = "m = shift_right(chunk.latent, chunk.cache.latent)[:, at]"
NEW_H = "chunk.h = chunk.h.slice_scatter(h, dim=1, start=s, step=S)"
NEW_LATENT = "chunk.latent = chunk.latent.slice_scatter(latent, dim=1, start=s, step=S)"
LAYERS = "h, latent = self.layers(chunk, at, m)"
FIRST = "chunk = self.begin(idx, self.init_cache(len(idx)))"
DEFAULT = "loss_weights = [n / (1 + S * K) for n in [1] + [S] * K]"
SWEEP = "self.sweep(chunk, S)"
LAST_LOSS = "loss = loss_weights[-1] * cross_entropy(logits, targets)"
ADD = "loss = loss + weight * cross_entropy(self.logits(h), targets)"
BEFORE = "before = [chunk.h, chunk.latent, *(kv.clone() for kv in chunk.kv)]"
AFTER = "after = [chunk.h, chunk.latent, *chunk.kv]"
CHANGE = "max((a - b).abs().max() for a, b in zip(after, before)) <= tol"
MOST = "most = -(-piece.size(1) // subsets) if self.config.lrt else 0"
LAM = "lam = implicit_gradient(loss, chunk.latent, z, hops)"
LAST_PASS = "chunk = self.begin(idx, self.init_cache(len(idx)), shift_right(z, zeros))"
BONUS = "bonus = (lam * chunk.latent).sum()"
STEP = "self.begin(token[:, None], cache, cache.latent[:, None]).finish()"
PIECES = "idx.split(max(self.config.block_size, 512), dim=1)"
OWN = "own = kv[..., self.past:, :]"
GRAD = "torch.is_grad_enabled() or kv.requires_grad"

WRONG = {
    "shift_right": [
        ("shifted by 0", SHIFT, "latent"),
        ("shifted by 2", SHIFT, "torch.cat([first[:, None], first[:, None], latent[:, :-2]], 1)"),
        ("shifted to the left", SHIFT, "torch.cat([latent[:, 1:], first[:, None]], dim=1)"),
        ("the last latent comes first", SHIFT, "latent.roll(1, 1)"),
        ("shifted over rows", SHIFT, "torch.cat([first[:, None], latent.roll(1, 0)[:, :-1]], 1)"),
        ("m_0 is 0", "first[:, None]", "0 * first[:, None]"),
        ("m_0 is that of row 0", "first[:, None]", "first[:1, None].expand(len(first), 1, -1)"),
        ("m_0 is latent 0", "first[:, None]", "latent[:, :1]"),
        ("memory detached", "latent[:, :-1]", "latent[:, :-1].detach()"),
        ("first detached", "first[:, None]", "first[:, None].detach()"),
        ("written into its argument", SHIFT, f"latent.copy_({SHIFT})"),
    ],
    "Chunk.finish": [
        ("position goes on by 1", "+= self.x0.size(1)", "+= 1"),
        ("position starts again", "self.cache.pos += self", "self.cache.pos = self"),
        ("position counts rows", "self.x0.size(1)", "self.x0.size(0)"),
        ("latent of the first token", "self.latent[:, -1]", "self.latent[:, 0]"),
        ("latent of the last row", "self.latent[:, -1]", "0 * self.latent[:, -1] + self.latent[-1, -1]"),
        ("latent is h", "self.latent[:, -1]", "self.h[:, -1]"),
        ("latent is a mean", "self.latent[:, -1]", "self.latent.mean(1)"),
        ("latent with a dimension too many", "self.latent[:, -1]", "self.latent[:, -1:]"),
        ("latent detached", "self.latent[:, -1]", "self.latent[:, -1].detach()"),
        ("keys and values detached", "room.trim(kv, keep)", "room.trim(kv.detach(), keep)"),
        ("window one too wide", "self.window - 1", "self.window"),
        ("window one too narrow", "self.window - 1", "max(0, self.window - 2)"),
        ("window of the oldest", KEEP, "kv[..., :keep, :] for kv in self.kv"),
        ("window by a negative index", KEEP, "kv[..., -keep:, :] for kv in self.kv"),
        ("window that is empty while there is room", KEEP,
         "kv[..., kv.size(3) - keep:, :] for kv in self.kv"),
        ("no window", KEEP, "kv for kv in self.kv"),
        ("window of layer 0 only", f"[{KEEP}]", "[self.kv[0][..., -keep:, :], *self.kv[1:]]"),
        ("one key dropped, however many there are", KEEP, "kv[..., 1:, :] for kv in self.kv"),
        ("keys and values rolled", KEEP, f"kv.roll(1, 3) for kv in [{KEEP}]"),
        ("h dropped", "self.cache.pos +=", "self.h = None\n    self.cache.pos +="),
        ("finished as often as you like", "self.require_unfinished()", "pass"),
        ("the cache is the chunk's from before", "self.cache.kv = ", "self.kv = "),
    ],
    "Attention.qkv": [
        ("local gate of keys ignored", "k, v = g_local * k,", "k, v = k,"),
        ("local gate of values ignored", "g_local * k, g_local * v", "g_local * k, v"),
        ("memory gate of keys ignored", "g_mem * self.heads(m_k)", "self.heads(m_k)"),
        ("memory gate of values ignored", "g_mem * self.heads(m_v)", "self.heads(m_v)"),
        ("gates swapped", "g_local, g_mem = gates", "g_mem, g_local = gates"),
        ("gates in (0, 1)", "2 * torch.sigmoid", "torch.sigmoid"),
        ("gates by tanh", "2 * torch.sigmoid(self.w_g(y))", "(1 + torch.tanh(self.w_g(y)))"),
        ("gates local and memory in turn", CHUNK, "g_local, g_mem = (gates.transpose(1, 2)[:, n::2, "
         ":, None] for n in (0, 1))"),
        ("gates of head 0 for all", ".chunk(2, dim=1)", "[:, ::self.n_head].chunk(2, dim=1)"),
        ("gates of position 0 for all", "self.w_g(y)", "self.w_g(y[:, :1].expand_as(y))"),
        ("gates detached", "torch.sigmoid(self.w_g(y))", "torch.sigmoid(self.w_g(y)).detach()"),
        ("gates of y detached", "self.w_g(y)", "self.w_g(y.detach())"),
        ("memory gate detached", "k + g_mem *", "k + g_mem.detach() *"),
        ("memory gate is what the local one leaves", "k, v = g_local",
         "g_mem = 2 - g_local\n        k, v = g_local"),
        ("local gate for both", "v + g_mem", "v + g_local"),
        ("memory detached in keys", "self.heads(m_k)", "self.heads(m_k.detach())"),
        ("memory detached in values", "self.heads(m_v)", "self.heads(m_v.detach())"),
        ("keys detached", "self.heads(self.w_k(y))", "self.heads(self.w_k(y)).detach()"),
        ("keys get the memory's values", "self.heads(m_k)", "self.heads(m_v)"),
        ("values get the memory's keys", "self.heads(m_v)", "self.heads(m_k)"),
        ("queries gated too", "k, v = g_local", "q = g_local * q\n        k, v = g_local"),
        ("queries get the memory", "k = k + g_mem", "q = q + g_mem * self.heads(m_k)\n"
         "            k = k + g_mem"),
        ("no gates where there is no memory", "self.w_g is not None", "m_k is not None"),
        ("memory replaces keys", "k = k + g_mem", "k = g_mem"),
        ("heads take every H-th number", "self.heads(self.w_v(y))",
         "self.w_v(y).unflatten(-1, (-1, self.n_head)).permute(0, 3, 1, 2)"),
        ("queries are keys", "self.w_q(y)", "self.w_k(y)"),
        ("a plain GPT has no values", "return q, k, v", "return (q, k, v if m_k is not None else k)"),
        ("memory changed in place", "v = v + g_mem * self.heads(m_v)",
         "v = v + self.heads(m_v.data).mul_(g_mem.detach())"),
    ],
    "GPT.layers": [
        ("gamma ignored", "self.gamma[i] * m", "0 * m"),
        ("gamma is 1", "self.gamma[i] * m", "m"),
        ("gamma of layer 0 for all", "self.gamma[i]", "self.gamma[0]"),
        ("gamma detached", "self.gamma[i]", "self.gamma[i].detach()"),
        ("memory detached in the stream", "self.gamma[i] * m", "self.gamma[i] * m.detach()"),
        ("memory detached in keys and values", "self.memory_kv(m)",
         "self.memory_kv(None if m is None else m.detach())"),
        ("memory enters the first layer only", "self.gamma[i] * m", "self.gamma[i] * m * (i == 0)"),
        ("memory normed again", "self.gamma[i] * m", "self.gamma[i] * norm(m)"),
        ("alpha ignored", "self.alpha[i] * x +", "x +"),
        ("alpha and beta swapped", "self.alpha[i] * x + self.beta[i] * x0",
         "self.alpha[i] * x0 + self.beta[i] * x"),
        ("x0 dropped out again", "x = x0 = chunk.x0[:, at]", "x = x0 = self.dropout(chunk.x0[:, at])"),
        ("zeros on the CPU", "x = x0 = chunk.x0[:, at]", "x = x0 = chunk.x0[:, at]\n"
         "    m = torch.zeros(x0.shape, dtype=x0.dtype) if m is None and self.config.lrt else m"),
        ("beta ignored", "self.beta[i] * x0", "0 * x0"),
        ("x0 is the layer's own input", "self.beta[i] * x0", "self.beta[i] * x"),
        ("x0 left out of the first layer", "self.beta[i] * x0", "self.beta[i] * x0 * (i > 0)"),
        ("x0 detached where it is added again", "self.beta[i] * x0", "self.beta[i] * x0.detach()"),
        ("U_k and U_v swapped", "*memory[i]", "*memory[i][::-1]"),
        ("U_k for both", "*memory[i]", "memory[i][0], memory[i][0]"),
        ("first pair of U for all layers", "*memory[i]", "*memory[0]"),
        ("memory in the keys and values of the first layer only", "*memory[i]",
         "*(memory[i] if i == 0 else (None, None))"),
        ("no memory in keys and values", "*memory[i]", "None, None"),
        ("memory in values only", "*memory[i]", "None if m is None else 0 * memory[i][0], memory[i][1]"),
        ("latent not normed", "latent = norm(x)", "latent = x"),
        ("h not normed", "else norm(x)", "else x"),
        ("latent always from the last layer", RETURN, "return h, h"),
        ("latent one layer too early", "if i + 1 == memory_layer", "if i + 1 == max(1, memory_layer - 1)"),
        ("latent one layer too late", "if i + 1 == memory_layer",
         "if i + 1 == min(memory_layer + 1, self.config.n_layer)"),
        ("negative memory_layer is off by one", "% (self.config.n_layer + 1)",
         "% (self.config.n_layer + 1) if self.config.memory_layer > -2 else self.config.n_layer"),
        ("latent detached", RETURN, "return h, latent.detach()"),
        ("latent of an earlier layer detached", "latent = norm(x)",
         "latent = norm(x if i + 1 == self.config.n_layer else x.detach())"),
        ("h is the latent", RETURN, "return latent, latent"),
        ("mask ignored", "chunk.attention_mask(at)", "{}"),
        ("mask always causal", "chunk.attention_mask(at)", "{'is_causal': True}"),
        ("keys and values detached as they are stored", "partial(chunk.store, i, at)",
         "lambda k, v: chunk.store(i, at, k.detach(), v.detach())"),
        ("layers stored under the next number", "partial(chunk.store, i, at)",
         "partial(chunk.store, (i + 1) % len(self.blocks), at)"),
        ("all positions of the rotation", "chunk.rope[:, at]",
         "chunk.rope[:, :x0.size(1)]"),
        ("last layer left out", "enumerate(self.blocks)",
         "enumerate(self.blocks[:max(1, len(self.blocks) - 1)])"),
        ("no memory is a memory of x0", "x = x0 = chunk.x0[:, at]", "x = x0 = chunk.x0[:, at]\n"
         "    m = x0 if m is None and self.config.lrt else m"),
    ],
    "GPT.step": [
        ("memory left out", BEGIN, "chunk = self.begin(idx[:, None], cache)"),
        ("memory detached", "cache.latent[:, None]", "cache.latent[:, None].detach()"),
        ("latent not used by the first token", M, "m = cache.latent[:, None] if self.config.lrt and "
         "cache.pos else None"),
        ("memory forgotten behind the window", M, "m = cache.latent[:, None] if self.config.lrt and "
         "cache.pos < self.config.block_size else None"),
        ("memory of another row", "cache.latent[:, None]", "cache.latent.roll(1, 0)[:, None]"),
        ("never finished", "chunk.finish()", "pass"),
        ("finished before it is computed", M, M + "\n    cache.pos += 1"),
        ("finished twice", "chunk.finish()", "chunk.finish()\n    chunk.pos = cache.pos\n"
         "    chunk.finish()"),
        ("returns logits of the latent", "chunk.h[:, 0]", "chunk.latent[:, 0]"),
        ("returns h detached", "chunk.h[:, 0]", "chunk.h[:, 0].detach()"),
        ("returns (B, 1, V)", "chunk.h[:, 0]", "chunk.h"),
        ("keys and values of the past detached", BEGIN,
         "cache.kv = [kv.detach() for kv in cache.kv]\n    " + BEGIN),
        ("all under no_grad", M, "torch.set_grad_enabled(False)\n    " + M),
        ("latent kept by the model", M, "m = getattr(self, 'kept', cache.latent)[:, None] if "
         "self.config.lrt else None\n    object.__setattr__(self, 'kept', cache.latent)"),
        ("memory given to a plain GPT", M, "m = cache.latent[:, None]"),
        ("a new cache for each token", BEGIN, "cache = self.init_cache(len(idx))\n    " + BEGIN),
        ("the latent is the cache's from now on, not finished", "chunk.finish()",
         "cache.latent = chunk.latent[:, -1]"),
    ],
    "GPT.sweep": [
        ("memory not shifted", SHIFTED, "m = chunk.latent[:, at]"),
        ("latent of the cache left out", "chunk.cache.latent", "0 * chunk.cache.latent"),
        ("latent of the cache left out at position 0", "chunk.cache.latent",
         "chunk.cache.latent * (chunk.cache.pos > 0)"),
        ("latent of the cache detached", "chunk.cache.latent", "chunk.cache.latent.detach()"),
        ("memory is h", "shift_right(chunk.latent,", "shift_right(chunk.h,"),
        ("memory detached", "shift_right(chunk.latent,", "shift_right(chunk.latent.detach(),"),
        ("memory of the neighbour in the subset", SHIFTED,
         "m = shift_right(chunk.latent[:, at], chunk.cache.latent)"),
        ("memory as it was before the sweep", LAYERS, "old = chunk.latent if s == 0 else old\n"
         "        m = shift_right(old, chunk.cache.latent)[:, at]\n        " + LAYERS),
        ("no memory", LAYERS, "h, latent = self.layers(chunk, at)"),
        ("first subset for all", "at = slice(s, None, S)", "at = slice(0, None, S)"),
        ("subsets side by side", "at = slice(s, None, S)",
         "at = slice(s * -(-chunk.x0.size(1) // S), (s + 1) * -(-chunk.x0.size(1) // S))"),
        ("subsets from the last to the first", "range(min(S, chunk.x0.size(1)))",
         "reversed(range(min(S, chunk.x0.size(1))))"),
        ("a subset too few", "range(min(S, chunk.x0.size(1)))", "range(min(S, chunk.x0.size(1)) - 1)"),
        ("one subset", "at = slice(s, None, S)", "S = 1\n        at = slice(s, None, S)"),
        ("S of more than T taken as it is", "range(min(S, chunk.x0.size(1)))", "range(S)"),
        ("h not written back", NEW_H, "pass"),
        ("latents not written back", NEW_LATENT, "pass"),
        ("latents are h", "slice_scatter(latent,", "slice_scatter(h,"),
        ("latents written detached", "slice_scatter(latent,", "slice_scatter(latent.detach(),"),
        ("h written detached", "slice_scatter(h,", "slice_scatter(h.detach(),"),
        ("old latents detached", "= chunk.latent.slice_scatter", "= chunk.latent.detach().slice_scatter"),
        ("latents written one to the left", NEW_LATENT,
         "chunk.latent = chunk.latent.slice_scatter(latent, dim=1, start=s, step=S).roll(-1, 1)"),
        ("a subset written to the wrong place", NEW_H,
         "chunk.h = torch.cat([h, chunk.h[:, h.size(1):]], dim=1)"),
        ("h written in place", NEW_H, "chunk.h.data[:, at] = h.data"),
        ("latents written in place", NEW_LATENT, "chunk.latent.data[:, at] = latent.data"),
        ("keys and values not written back", LAYERS, "kv = list(chunk.kv)\n        " + LAYERS +
         "\n        chunk.kv = kv"),
        ("keys and values written detached", LAYERS, LAYERS +
         "\n        chunk.kv = [kv.detach() for kv in chunk.kv]"),
        ("all under no_grad", "for s in range", "torch.set_grad_enabled(False)\n    for s in range"),
        ("x0 detached", "for s in range", "chunk.x0 = chunk.x0.detach()\n    for s in range"),
        ("all positions computed, and written", LAYERS, "h, latent = (x[:, at] for x in self.layers("
         "chunk, slice(None), shift_right(chunk.latent, chunk.cache.latent)))"),
        ("finishes the chunk", "for s in range", "chunk.finish()\n    for s in range"),
        ("chunk and cache confused: memory of the end", "chunk.cache.latent", "chunk.latent[:, -1]"),
        ("S of any kind", "require_whole(1, subsets=S)", "S = max(1, int(S))"),
        ("a finished chunk swept", "chunk.require_unfinished()", "pass"),
    ],
    "GPT.forward_parallel": [
        ("pass 0 again for each sweep", SWEEP, FIRST + "\n        " + SWEEP),
        ("one sweep too few", "for _ in range(K)", "for _ in range(K - 1)"),
        ("one sweep too many", "for _ in range(K)", "for _ in range(K + 1)"),
        ("logits of pass 0", "logits = self.logits(chunk.h)", "logits = self.logits(hidden[0])"),
        ("a sweep weighs as much as pass 0", DEFAULT, "loss_weights = [1 / (1 + K)] * (1 + K)"),
        ("loss of the last sweep only", DEFAULT, "loss_weights = [0] * K + [1]"),
        ("loss a sum", "n / (1 + S * K)", "n"),
        ("loss without pass 0", "in [1] + [S] * K", "in [1e-9] + [S] * K"),
        ("S of more than T in the weights", "S, K = min(subsets, idx.size(1)), sweeps",
         "S, K = subsets, sweeps"),
        ("weights ignored", "if loss_weights is None:", "if True:"),
        ("weights made to sum to 1", "chunk = self.begin", "loss_weights = [w / sum(loss_weights) for "
         "w in loss_weights]\n    chunk = self.begin"),
        ("weights backwards", "zip(loss_weights, hidden[:-1])", "zip(loss_weights[::-1], hidden[:-1])"),
        ("targets of -1 counted", LAST_LOSS, "loss = loss_weights[-1] * cross_entropy(logits, "
         "targets.clamp(min=0))"),
        ("nan when no target is left", LAST_LOSS, "loss = loss_weights[-1] * F.cross_entropy("
         "logits.flatten(0, 1), targets.flatten(), ignore_index=-1)"),
        ("loss over all positions", LAST_LOSS, LAST_LOSS +
         " * (targets != -1).float().mean().double()"),
        ("hidden detached but for the last", "self.logits(h)", "self.logits(h.detach())"),
        ("pass 0 under no_grad", FIRST, "with torch.no_grad():\n        " + FIRST),
        ("gradient cut after each sweep", "hidden.append(chunk.h)", "hidden.append(chunk.h)\n"
         "        chunk.h = chunk.h.detach()"),
        ("latents detached between sweeps", SWEEP, "chunk.latent = chunk.latent.detach()\n        " +
         SWEEP),
        ("keys and values of pass 0 detached", "hidden = [chunk.h]",
         "chunk.kv = [kv.detach() for kv in chunk.kv]\n    hidden = [chunk.h]"),
        ("all sweeps but the last under no_grad", SWEEP, "with torch.set_grad_enabled(_ == K - 1):\n"
         "            " + SWEEP),
        ("a plain GPT swept", "if not self.config.lrt:", "if False:"),
        ("loss weights of a plain GPT", "K, loss_weights = 0, [1]", "K = 0"),
        ("weights of any number", "len(loss_weights) == K + 1 and", ""),
        ("weights all 0", "and any(loss_weights)", ""),
        ("subsets of 0", "require_whole(1, subsets=subsets)", "subsets = max(1, int(subsets))"),
        ("sweeps below 0", "require_whole(0, sweeps=sweeps)", "sweeps = max(0, int(sweeps))"),
        ("no loss", "return logits, loss", "return logits, None"),
        ("a loss without targets", "if targets is None:", "targets = idx if targets is None else "
         "targets\n    if False:"),
        ("a new cache for each sweep", SWEEP, "chunk.cache = self.init_cache(len(idx))\n        "
         "chunk.latent = chunk.latent * 0\n        " + SWEEP),
        ("logits of passes that do not count", "if weight != 0:", "if True:"),
        ("dropout drawn for each sweep", SWEEP, "chunk.x0 = self.dropout(norm(self.embed(idx)))\n"
         "        " + SWEEP),
        ("embeddings without norm", FIRST, FIRST + "\n    chunk.x0 = self.embed(idx)"),
    ],
    "GPT.prefill": [
        ("mean change", "(a - b).abs().max()", "(a - b).abs().mean()"),
        ("change by its sign", "(a - b).abs().max()", "(a - b).max()"),
        ("change by its other sign", "(a - b).abs().max()", "(b - a).max()"),
        ("change squared", "(a - b).abs().max()", "(a - b).square().max()"),
        ("change relative to what there is", "(a - b).abs().max()", "((a - b) / (1e-9 + b)).abs().max()"),
        ("change as a norm", "(a - b).abs().max()", "(a - b).norm()"),
        ("first row only", "(a - b).abs()", "(a - b).abs()[:1]"),
        ("last row only", "(a - b).abs()", "(a - b).abs()[-1:]"),
        ("smallest of the changes", "if max(", "if min("),
        ("h only", "zip(after, before)", "zip(after[:1], before[:1])"),
        ("latents only", "zip(after, before)", "zip(after[1:2], before[1:2])"),
        ("h and latents only", "zip(after, before)", "zip(after[:2], before[:2])"),
        ("keys and values only", "zip(after, before)", "zip(after[2:], before[2:])"),
        ("without the keys", "zip(after, before)",
         "zip(after[:2] + [x[1] for x in after[2:]], before[:2] + [x[1] for x in before[2:]])"),
        ("without the values", "zip(after, before)",
         "zip(after[:2] + [x[0] for x in after[2:]], before[:2] + [x[0] for x in before[2:]])"),
        ("without the last layer", "zip(after, before)", "zip(after[:-1], before[:-1])"),
        ("last position only", "zip(after, before)",
         "zip([x[:, -1:] for x in after[:2]], [x[:, -1:] for x in before[:2]])"),
        ("keys and values not copied before a sweep that writes in place", "kv.clone() for kv in",
         "kv for kv in"),
        ("change since pass 0", BEFORE, "before = before if _ else " + BEFORE[9:]),
        ("less than tol, not at most", "<= tol", "< tol"),
        ("ten times the tolerance", "<= tol", "<= 10 * tol"),
        ("a tenth of the tolerance", "<= tol", "<= tol / 10"),
        ("stops one sweep late", "break", "self.sweep(chunk, subsets)\n                break"),
        ("never stops before the bound", "break", "pass"),
        ("always one sweep", "<= tol", "<= tol or True"),
        ("bound one sweep too low", MOST, MOST + "\n        most -= most > 1"),
        ("bound one sweep too high", "for _ in range(most)", "for _ in range(most + (most > 0))"),
        ("bound rounded down", "-(-piece.size(1) // subsets)", "max(1, piece.size(1) // subsets)"),
        ("at most 20 sweeps", "for _ in range(most)", "for _ in range(min(most, 20))"),
        ("no bound", "for _ in range(most)", "for _ in range(999 * most)"),
        ("not finished", "chunk.finish()", "pass"),
        ("one piece, however long", PIECES, "[idx]"),
        ("pieces of block_size", "max(self.config.block_size, 512)", "self.config.block_size"),
        ("pieces of 512 also where block_size is more", "max(self.config.block_size, 512)", "512"),
        ("first piece only", "chunk.finish()", "chunk.finish()\n        break"),
        ("a prompt starts a new sequence", "chunk = self.begin(piece, cache)",
         "cache.pos, cache.kv = 0, self.init_cache(len(idx)).kv\n"
         "        chunk = self.begin(piece, cache)"),
        ("a prompt on an empty cache ignores its latent", "chunk = self.begin(piece, cache)",
         "cache.latent = cache.latent * (cache.pos > 0)\n        chunk = self.begin(piece, cache)"),
        ("two subsets, whatever is asked", "self.sweep(chunk, subsets)", "self.sweep(chunk, 2)"),
        ("subsets of 0", "require_whole(1, subsets=subsets)", "subsets = max(1, int(subsets))"),
        ("a tolerance below 0", "tol >= 0 and", ""),
        ("a plain GPT swept", "if self.config.lrt else 0", ""),
        ("logits of the first token", "chunk.h[:, -1]", "chunk.h[:, 0]"),
        ("logits from the latent", "chunk.h[:, -1]", "chunk.latent[:, -1]"),
        ("logits of all tokens", "chunk.h[:, -1]", "chunk.h"),
        ("read with gradients", "@torch.no_grad()\n", ""),
        ("the tolerance is the same in bfloat16", "max(tol, 40 * torch.finfo(self.alpha.dtype).eps)",
         "max(tol, 1e-14)"),
    ],
    "GPT.forward_hops": [
        ("a graph through the passes", "with torch.no_grad():", "with torch.enable_grad():"),
        ("a hop too many", "z, hops)", "z, hops + 1)"),
        ("a hop too few", "z, hops)", "z, max(0, hops - 1))"),
        ("0 hops taken as 1", "z, hops)", "z, hops or 1)"),
        ("at most two hops", "z, hops)", "z, min(hops, 2))"),
        ("credit for h", BONUS, "bonus = (lam * chunk.h).sum()"),
        ("hops go through h", LAM, "lam = implicit_gradient(loss, chunk.h, z, hops)"),
        ("the credit twice", BONUS, "bonus = 2 * (lam * chunk.latent).sum()"),
        ("the credit's mean", BONUS, "bonus = (lam * chunk.latent).mean()"),
        ("no credit", LAM, "lam = 0"),
        ("the loss is no longer the loss", "loss + bonus - bonus.detach()", "loss + bonus"),
        ("loss counted twice", "loss + bonus - bonus.detach()", "loss + bonus + loss - (bonus + loss)"
         ".detach()"),
        ("memory not shifted", LAST_PASS, "chunk = self.begin(idx, self.init_cache(len(idx)), z)"),
        ("memory detached", "shift_right(z, zeros)", "shift_right(z.detach(), zeros) + 0 * z"),
        ("the newest latents are m_0", "shift_right(z, zeros)", "shift_right(z, z[:, -1])"),
        ("no memory in the last pass", "shift_right(z, zeros)", "0 * shift_right(z, zeros)"),
        ("one sweep, whatever is asked", "for _ in range(sweeps)", "for _ in range(1)"),
        ("a sweep too few", "for _ in range(sweeps)", "for _ in range(sweeps - 1)"),
        ("a sweep too many", "for _ in range(sweeps)", "for _ in range(sweeps + 1)"),
        ("two subsets, whatever is asked", "self.sweep(chunk, subsets)", "self.sweep(chunk, 2)"),
        ("approximate without subsets", "if subsets is None:", "subsets = subsets or 2\n"
         "        if False:"),
        ("latents are h", "z = chunk.latent", "z = chunk.h"),
        ("loop: each latent is written one place later", "z[:, t] = cache.latent",
         "z[:, (t + 1) % idx.size(1)] = cache.latent"),
        ("loop without memory", STEP, "self.begin(token[:, None], cache).finish()"),
        ("loop computes logits", STEP, "self.step(token, cache)"),
        ("the last pass goes on with the cache of the passes", LAST_PASS,
         "chunk = self.begin(idx, cache, shift_right(z, zeros))"),
        ("no loss without gradients", "if not loss.requires_grad:", "if not loss.requires_grad:\n"
         "        return logits, None\n    if False:"),
        ("hops without gradients", "if not loss.requires_grad:", "if False:"),
        ("a plain GPT has hops", "if not self.config.lrt:", "if False:"),
        ("hops below 0", "hops=hops)", "hops=0)"),
        ("subsets of 0", "require_whole(1, subsets=subsets)", "pass"),
        ("a loss without targets", "if targets is None:", "targets = idx if targets is None else "
         "targets\n    if False:"),
        ("nan when no target is left", "loss = cross_entropy(logits, targets)",
         "loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)"),
    ],

    # ---- What is given
    "implicit_gradient": [
        ("every hop starts from the loss", "term = (g * latent).sum()", "pass"),
        ("the last term only", "lam = lam + g", "lam = g"),
        ("terms subtracted", "lam = lam + g", "lam = lam - g"),
        ("lambda keeps the graph of z", "retain_graph=True", "create_graph=True"),
    ],
    "Dropout.forward": [
        ("dropout without gradients, too", "self.training and torch.is_grad_enabled()", "True"),
        ("no dropout at all", "if self.training", "if False and self.training"),
    ],
    "cross_entropy": [
        ("a class for targets of -1", "ignore_index=-1", "ignore_index=0"),
        ("mean over all positions", "(targets != -1).sum()", "(targets != -2).sum()"),
        ("nothing to divide by", ".clamp(min=1)", ""),
        ("targets of any shape", "targets.shape == logits.shape[:2]", "True"),
    ],
    "norm": [
        ("a large epsilon", "(x.size(-1),)", "(x.size(-1),), eps=1e-3"),
        ("over all but the last dimension's half", "F.rms_norm(x, (x.size(-1),))",
         "x / x.abs().amax(-1, keepdim=True).clamp(min=1e-9)"),
    ],
    "rotary": [
        ("angles in float32", "dtype=torch.float64", "dtype=torch.float32"),
        ("another base", "8 / D - 4", "6 / D - 3"),
        ("made on the CPU", ".to(like)", ".to(like.dtype).cpu()"),
        ("positions start again", "start, start + T", "0, T"),
    ],
    "rotate": [
        ("turned the other way", "a * cos + b * sin, b * cos - a * sin",
         "a * cos - b * sin, b * cos + a * sin"),
        ("neighbouring pairs", "a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]"),
    ],
    "Attention.forward": [
        ("queries and keys not normed", "norm(rotate(torch.stack([q, k]), rope))",
         "rotate(torch.stack([q, k]), rope)"),
        ("not rotated", "rotate(torch.stack([q, k]), rope)", "torch.stack([q, k])"),
        ("order of heads lost", "y.transpose(1, 2).flatten(2)", "y.transpose(2, 3).flatten(1, 2).mT"),
        ("no mask", ", **mask)", ")"),
    ],
    "MLP.forward": [("ReLU not squared", ".square()", ""),
                    ("no ReLU", "F.relu(self.w_1(y))", "self.w_1(y)")],
    "Chunk.attention_mask": [
        ("one later position is seen", "back >= 0", "back >= -1"),
        ("one position too many", "back < self.window", "back <= self.window"),
        ("one position too few", "back < self.window", "back < self.window - 1"),
        ("no mask for a long prompt", "and T <= self.window", ""),
        ("causal from the first token of the cache", "and self.past == 0", ""),
        ("contiguous positions taken for all", "at.indices(T) == (0, T, 1)", "at.step in (None, 1)"),
        ("positions counted in the subset", "keys[self.past:][at][:, None]",
         "keys[self.past:][:len(range(*at.indices(T)))][:, None]"),
        ("made on the CPU", ", device=self.x0.device", ""),
    ],
    "Chunk.store": [
        ("in place with gradients", GRAD, "False"),
        ("in place although a graph needs it", " or kv.requires_grad", ""),
        ("never in place, and not the newest", OWN, "kv = kv.clone()\n        " + OWN),
        ("written one too early", "self.past + start, self.past + end", "self.past + start - 1, "
         "self.past + end - 1"),
        ("written as if there were no past", "self.past + start, self.past + end", "start, end"),
        ("written over the past", OWN, "own = kv"),
        ("newest first", "torch.cat([kv, new], dim=3)", "torch.cat([new, kv], dim=3)"),
        ("keys not written back", "own[0, :, :, at] = k", "own[0, :, :, at] = k if first_pass else "
         "own[0, :, :, at]"),
        ("values not written back", "own[1, :, :, at] = v", "own[1, :, :, at] = v if first_pass else "
         "own[1, :, :, at]"),
        ("every position of the step taken", "kv.slice_scatter(new, 3, self.past + start, self.past + "
         "end, step)", "kv.slice_scatter(new, 3, self.past + start, None, step)"),
        ("the chunk keeps the old ones", "self.kv[i] = kv", "pass"),
        ("keys of another layer", "self.cache.rooms[i]", "self.cache.rooms[0]"),
        ("appended at each pass", "first_pass = kv.size(3) == self.past", "first_pass = True"),
    ],
    "Chunk.__init__": [
        ("rotary position starts again", "rotary(cache.pos,", "rotary(0,"),
        ("the list of the cache is the chunk's", "list(cache.kv)", "cache.kv"),
        ("all positions can be seen", "cache.kv[0].size(3)     #", "cache.pos     #"),
    ],
    "Room.extend": [
        ("room of whoever came before", "kv is not self.newest or", "self.space is None or"),
        ("shared when only the length agrees", "kv is not self.newest",
         "self.newest is None or kv.shape != self.newest.shape"),
        ("room never grows", "or self.end + T > self.space.size(3)", ""),
        ("room one too small", "2 * (n + T)", "n + T - 1"),
        ("old keys not copied", "self.space[..., :n, :] = kv", "pass"),
        ("written over the newest", "self.end += T", "self.end += T - 1"),
        ("the first part of the room", "self.end - n - T:self.end", ":n + T"),
        ("an inference tensor", "torch.inference_mode(False)",
         "torch.inference_mode(torch.is_inference_mode_enabled())"),
    ],
    "Room.trim": [
        ("trimmed from the wrong end", "kv[..., max(0, kv.size(3) - n):, :]", "kv[..., :n, :]"),
        ("anything is the newest", "if kv is self.newest:", "if True:"),
    ],
    "Cache.copy": [
        ("the same cache", "Cache(list(self.kv), self.latent, self.pos)", "self"),
        ("a copy from the start", ", self.pos)", ")"),
        ("rooms are shared, and the keys are moved", "Cache(list(self.kv), self.latent, self.pos)",
         "Cache([kv.detach() for kv in self.kv], self.latent * 0, self.pos)"),
    ],
    "GPT.begin": [
        ("embeddings not normed", "norm(self.embed(idx))", "self.embed(idx)"),
        ("tokens of any number of rows", "len(idx) == B and", ""),
        ("no dropout of embeddings", "self.dropout(norm(self.embed(idx)))", "norm(self.embed(idx))"),
        ("memory ignored", "slice(None), m)", "slice(None))"),
    ],
    "GPT.memory_kv": [
        ("one pair for all layers", 'if self.config.memory_proj == "shared"', "if True"),
        ("U_k for values", "u_v(m))", "u_k(m))"),
    ],
    "GPT.logits": [
        ("not capped", "15 * torch.tanh(z / 15)", "z"),
        ("in bfloat16", "z.to(torch.promote_types(z.dtype, torch.float32))", "z"),
    ],
    "GPT.init_cache": [("begins with a latent of 1", "self.alpha.new_zeros(batch_size, H * D)",
                        "self.alpha.new_ones(batch_size, H * D)")],
    "GPT.init_weights": [
        ("gates are not 1", "block.attn.w_g.weight.zero_()", "pass"),
        ("branches add something", "block.mlp.w_2.weight.zero_()", "pass"),
        ("variance 1/(3C)", "(3 / self.config.n_embd)", "(1 / self.config.n_embd)"),
        ("a large head", "std=0.001", "std=0.02"),
    ],
    "GPT.forward_sequential": [
        ("a cache for each token", "self.step(token, cache)", "self.step(token, self.init_cache("
         "len(idx)))"),
        ("detached", "self.step(token, cache)", "self.step(token, cache).detach()"),
        ("no token", 'require(idx.size(1) > 0, "idx has rows of 0 tokens")', "pass"),
    ],
    "GPT.forward": [
        ("approximate without subsets", "return self.forward_sequential(idx, targets)",
         "return self.forward_parallel(idx, targets)"),
        ("more tokens than block_size", "1 <= idx.size(1) <= W", "1 <= idx.size(1)"),
        ("weights and hops", "and hops is None", ""),
        ("weights without subsets", "loss_weights is None or subsets is not None and hops is None",
         "loss_weights is None or hops is None"),
        ("sweeps below 0 without subsets", "require_whole(0, sweeps=sweeps)", "pass"),
        ("hops without subsets", "if hops is not None:", "if hops:"),
        ("weights not handed on", "sweeps, loss_weights)", "sweeps)"),
        ("sweeps not handed on", "idx, targets, subsets, sweeps, hops", "idx, targets, subsets, 1, hops"),
    ],
    "GPT.generate": [
        ("top_k keeps one too few", "min(top_k,", "min(max(1, top_k - 1),"),
        ("top_k keeps equal logits", "if top_k is not None:", "if top_k is not None:\n"
         "                least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]\n"
         "                logits = logits.masked_fill(logits < least, -torch.inf)\n"
         "            if False:"),
        ("top_k = 1 draws among equal logits", "if temperature < 1e-6 or top_k == 1:",
         "if top_k == 1:\n            token = (logits == logits.max(-1, True).values).double()"
         ".multinomial(1, generator=generator)[:, 0]\n        elif temperature < 1e-6:"),
        ("the same token for ever", "if n > 0:", "if n == 1:"),
        ("seed ignored", "generator=generator)", "generator=None)"),
        ("a prompt not read where no token is wanted", "logits = self.prefill(idx, cache)",
         "logits = self.prefill(idx, cache) if max_new_tokens else None"),
        ("top_k of 0", "require_whole(1, top_k=top_k)", "top_k = max(1, int(top_k)) if top_k is not "
         "None else None"),
        ("temperature below 0", "temperature >= 0,", "not temperature < -9,"),
        ("a tiny temperature divides", "temperature < 1e-6", "temperature == 0"),
        ("a number of tokens below 0", "require_whole(0, max_new_tokens=max_new_tokens)", "pass"),
        ("the cache is ignored", "if cache is None:", "if True:"),
    ],
}


def owner_of(function):
    """"GPT.step" -> (the class or module that it belongs to, its name there)."""
    *path, name = function.split(".")
    return functools.reduce(getattr, path, lrt), name


def text_of(function):
    owner, name = owner_of(function)
    return textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))


def replaced(function, old, new):
    """The function's text, made wrong."""
    text = text_of(function)
    if text.count(old) != 1:
        raise ValueError(f"{function}: {old!r} stands there {text.count(old)} times, not once")
    return text.replace(old, new)


def tests_of(function):
    """Which tests have to reject a wrong version: expressions for pytest -k, in turn."""
    if function in EXERCISES:
        return [f"test_ex{EXERCISES.index(function) + 1}_"]
    return ["not test_ex", "test_ex"]


class Failures:
    """A plug-in of pytest that notes what fails."""

    def __init__(self):
        self.names = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.names.append(report.nodeid.rpartition("::")[2])


def rejected_by(version, stop_at_first=True):
    """The names of tests that fail with a wrong version in place."""
    function, what, old, new = version
    owner, name = owner_of(function)
    original, made, failures = inspect.getattr_static(owner, name), {}, Failures()
    exec(compile(replaced(function, old, new), "<wrong>", "exec"), vars(lrt), made)
    setattr(owner, name, made[name])
    try:
        for expression in tests_of(function):
            if not failures.names:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    pytest.main(["-qq", *["-x"] * stop_at_first, "-p", "no:cacheprovider", "--tb=no",
                                 "-k", expression, str(test_file())], plugins=[failures])
    finally:
        setattr(owner, name, original)
        lrt.torch.set_grad_enabled(True)
    return failures.names


def test_file():
    return HERE.parent / "test_lrt.py"


def versions(functions=()):
    """[(function, what is wrong, old text, new text)] of these functions, or of all."""
    return [(function, *line) for function, lines in WRONG.items() for line in lines
            if function in functions or not functions]


if __name__ == "__main__":
    chosen = versions(sys.argv[1:])
    if not chosen:
        sys.exit(f"no wrong version of {' '.join(sys.argv[1:])}; there are some of "
                 f"{', '.join(WRONG)}")
    for function, _, old, new in chosen:
        replaced(function, old, new)
    survived = 0
    with multiprocessing.Pool(min(os.cpu_count(), 4)) as pool:
        for version, names in zip(chosen, pool.imap(rejected_by, chosen)):
            survived += not names
            print(f"{'rejected' if names else 'SURVIVED'}  {version[0]}: {version[1]}"
                  f"{'    ' + names[0] if names else ''}", flush=True)
    print(f"{survived} of {len(chosen)} survived")
    sys.exit(survived > 0)
