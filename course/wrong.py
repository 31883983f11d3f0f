"""Wrong versions of lrt.py, and right ones by another hand."""

MUTANTS = [         # (what is wrong, function, its text, the wrong text, and so on)
    # shift_right
    ("shifted by 0", "shift_right", "torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent"),
    ("shifted by 2", "shift_right", "latent[:, :-1]", "first[:, None], latent[:, :-2]"),
    ("shifted to the left", "shift_right", "[first[:, None], latent[:, :-1]]",
     "[latent[:, 1:], first[:, None]]"),
    ("rolled: the last latent comes first", "shift_right",
     "torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent.roll(1, 1)"),
    ("shifted over rows", "shift_right", "latent[:, :-1]", "latent.roll(1, 0)[:, :-1]"),
    ("first ignored", "shift_right", "if first is None", "if True"),
    ("first is that of row 0", "shift_right", "[first[:, None]",
     "[first[:1, None].expand(len(first), 1, -1)"),
    ("m_0 is latent 0", "shift_right", "torch.zeros_like(latent[:, 0])", "latent[:, 0]"),
    ("memory detached", "shift_right", "latent[:, :-1]", "latent[:, :-1].detach()"),
    ("first detached", "shift_right", "[first[:, None]", "[first[:, None].detach()"),
    ("zeros in float32", "shift_right", "torch.zeros_like(latent[:, 0])",
     "torch.zeros(latent.size(0), latent.size(2))"),
    ("written into its input", "shift_right", "return torch.cat([first[:, None], latent[:, :-1]], dim=1)",
     "new = torch.cat([first[:, None], latent[:, :-1]], dim=1)\n    return latent.copy_(new)"),
    # Cache.advance
    ("position goes on by 1", "Cache.advance", "+= self.x0.size(1)", "+= 1"),
    ("position starts again", "Cache.advance", "+= self.x0.size(1)", "= self.x0.size(1)"),
    ("position counts rows", "Cache.advance", "self.x0.size(1)", "self.x0.size(0)"),
    ("latent of the first of the newest", "Cache.advance", "[:, -1]", "[:, 0]"),
    ("latent of the last row", "Cache.advance", "self.latents[:, -1]",
     "self.latents[-1:, -1].expand(len(self.latents), -1)"),
    ("latent is h", "Cache.advance", "self.latents[:, -1]", "self.h[:, -1]"),
    ("latent is a mean", "Cache.advance", "self.latents[:, -1]", "self.latents.mean(1)"),
    ("latent with a dimension too many", "Cache.advance", "[:, -1]", "[:, -1:]"),
    ("latent detached", "Cache.advance", "[:, -1]", "[:, -1].detach()"),
    ("keys and values detached", "Cache.advance", "[kv[", "[kv.detach()["),
    ("latent of a plain model", "Cache.advance", "None if self.latent is None else", ""),
    ("no latent before the first token", "Cache.advance", "self.latent is None",
     "self.latent is None or self.pos == self.x0.size(1)"),
    ("window one too wide", "Cache.advance", "- self.W + 1", "- self.W"),
    ("window one too narrow", "Cache.advance", "- self.W + 1", "- self.W + 2"),
    ("window of the oldest", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", ":self.W - 1"),
    ("window by a negative index", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", "-(self.W - 1):"),
    ("window that is empty while there is room", "Cache.advance", "max(0, kv.size(3) - self.W + 1)",
     "kv.size(3) - self.W + 1"),
    ("no window", "Cache.advance", "max(0, kv.size(3) - self.W + 1):", ":"),
    ("window of layer 0 alone", "Cache.advance", "for kv in self.kv]",
     "for kv in self.kv[:1]] + self.kv[1:]"),
    ("one key dropped, however many there are", "Cache.advance", "max(0, kv.size(3) - self.W + 1):",
     "int(kv.size(3) >= self.W):"),
    ("keys and values rolled", "Cache.advance", "+ 1):, :]", "+ 1):, :].roll(1, 3)"),
    ("h dropped", "Cache.advance", "self.pos +=", "self.h = None\n    self.pos +="),
    # Block.qkv
    ("local gate of keys ignored", "Block.qkv", "k = g_local * k", "k = k"),
    ("local gate of values ignored", "Block.qkv", "v = g_local * v", "v = v"),
    ("memory gate of keys ignored", "Block.qkv", "g_mem * m_k", "m_k"),
    ("memory gate of values ignored", "Block.qkv", "g_mem * m_v", "m_v"),
    ("gates swapped", "Block.qkv", "g_local, g_mem =", "g_mem, g_local ="),
    ("gates in (0, 1)", "Block.qkv", "2 * torch.sigmoid", "torch.sigmoid"),
    ("gates by tanh", "Block.qkv", "2 * torch.sigmoid(self.w_g(y))", "1 + torch.tanh(self.w_g(y))"),
    ("gates local and memory in turn", "Block.qkv", "gates.transpose(1, 2)[..., None].chunk(2, dim=1)",
     "(gates.unflatten(-1, (-1, 2)).transpose(1, 2)[..., n, None] for n in (0, 1))"),
    ("gates of head 0 for all", "Block.qkv", ".chunk(2, dim=1)", "[:, ::self.n_head].chunk(2, dim=1)"),
    ("gates of position 0 for all", "Block.qkv", "torch.sigmoid(self.w_g(y))",
     "torch.sigmoid(self.w_g(y[:, :1].expand_as(y)))"),
    ("gates detached", "Block.qkv", "self.w_g(y))", "self.w_g(y)).detach()"),
    ("gates of y detached", "Block.qkv", "self.w_g(y)", "self.w_g(y.detach())"),
    ("memory gate detached", "Block.qkv", "g_mem * m_k", "g_mem.detach() * m_k"),
    ("memory gate is what the local one leaves", "Block.qkv", "    k = g_local * k",
     "    g_mem = 2 - g_local\n        k = g_local * k"),
    ("one gate, the local, for both", "Block.qkv", "g_mem * m_v", "g_local * m_v"),
    ("keys of the memory detached", "Block.qkv", "g_mem * m_k",
     "g_mem * (m_k.detach() if torch.is_tensor(m_k) else 0)"),
    ("values of the memory detached", "Block.qkv", "g_mem * m_v",
     "g_mem * (m_v.detach() if torch.is_tensor(m_v) else 0)"),
    ("keys detached", "Block.qkv", "self.heads(self.w_k(y))", "self.heads(self.w_k(y)).detach()"),
    ("keys get the memory's values", "Block.qkv", "g_mem * m_k", "g_mem * m_v"),
    ("values get the memory's keys", "Block.qkv", "g_mem * m_v", "g_mem * m_k"),
    ("queries gated too", "Block.qkv", "k = g_local * k", "q, k = g_local * q, g_local * k"),
    ("queries get the memory", "Block.qkv", "k = g_local * k",
     "q = q + g_mem * m_k\n        k = g_local * k"),
    ("no gates where there is no memory", "Block.qkv", "is not None:",
     "is not None and torch.is_tensor(m_k):"),
    ("memory replaces keys", "Block.qkv", "k = g_local * k + g_mem * m_k",
     "k = g_mem * m_k if torch.is_tensor(m_k) else g_local * k"),
    ("heads take every H-th number", "Block.qkv", "self.heads(self.w_v(y))",
     "self.w_v(y).unflatten(-1, (-1, self.n_head)).permute(0, 3, 1, 2)"),
    ("queries are keys", "Block.qkv", "self.w_q(y)", "self.w_k(y)"),
    ("plain model without values", "Block.qkv", "return q, k, v",
     "return (q, k, v) if self.w_g is not None else (q, k, k)"),
    ("memory changed in place", "Block.qkv", "g_mem * m_v",
     "(m_v.mul_(g_mem) if torch.is_tensor(m_v) and not m_v.requires_grad else g_mem * m_v)"),
    # GPT.layers
    ("gamma ignored", "GPT.layers", "self.gamma[i] * m", "0 * m"),
    ("gamma is 1", "GPT.layers", "self.gamma[i] * m", "m"),
    ("gamma of layer 0 for all", "GPT.layers", "self.gamma[i]", "self.gamma[0]"),
    ("gamma detached", "GPT.layers", "self.gamma[i] * m", "self.gamma[i].detach() * m"),
    ("memory detached in the stream", "GPT.layers", "self.gamma[i] * m", "self.gamma[i] * m.detach()"),
    ("memory detached in keys", "GPT.layers", "self.u_k[i](m)", "self.u_k[i](m.detach())"),
    ("memory detached in keys and values", "GPT.layers", "self.u_k[i](m)", "self.u_k[i](m.detach())",
     "self.u_v[i](m)", "self.u_v[i](m.detach())"),
    ("memory enters the first layer alone", "GPT.layers", "self.gamma[i] * m",
     "self.gamma[i] * m * (i == 0)"),
    ("memory normed once more", "GPT.layers", "self.gamma[i] * m", "self.gamma[i] * norm(m)"),
    ("alpha ignored", "GPT.layers", "self.alpha[i] * x +", "x +"),
    ("alpha applied to x0 and beta to x", "GPT.layers", "self.alpha[i] * x + self.beta[i] * x0",
     "self.alpha[i] * x0 + self.beta[i] * x"),
    ("x0 dropped out once more", "GPT.layers", "x, m_k, m_v, outputs = x0,",
     "x, m_k, m_v, outputs = self.dropout(x0),"),
    ("zeros on the CPU", "GPT.layers", "0 if m is None else", "torch.zeros(x0.shape) if m is None else"),
    ("beta ignored", "GPT.layers", "self.beta[i] * x0", "0 * x0"),
    ("x0 is the layer's own input", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x"),
    ("x0 left out of the first layer", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x0 * (i > 0)"),
    ("x0 detached where it is added again", "GPT.layers", "self.beta[i] * x0", "self.beta[i] * x0.detach()"),
    ("U_k and U_v swapped", "GPT.layers", "self.u_k[i](m)", "self.u_v[i](m)", "self.u_v[i](m))\n",
     "self.u_k[i](m))\n"),
    ("U_k for both", "GPT.layers", "self.u_v[i](m)", "self.u_k[i](m)"),
    ("first pair of U for all layers", "GPT.layers", "i < len(self.u_k)", "i < 1"),
    ("shared pair for the first layer alone", "GPT.layers", "m_k, m_v)\n",
     "*((m_k, m_v) if i < len(getattr(self, 'u_k', [])) else (0, 0)))\n"),
    ("no memory in keys and values", "GPT.layers", "m_k, m_v)\n", "0, 0)\n"),
    ("memory in values alone", "GPT.layers", "m_k, m_v)\n", "0, m_v)\n"),
    ("latent not normed", "GPT.layers", "norm(source)", "source", "if source is x else", "if False else"),
    ("h not normed", "GPT.layers", "source, h =", "h0 = x\n    source, h =", "return h,", "return h0,"),
    ("latent always from the last layer", "GPT.layers", "h if source is x else norm(source)", "h"),
    ("latent one layer too early", "GPT.layers",
     "outputs[self.config.memory_layer - (self.config.memory_layer > 0)]",
     "([x0] + outputs)[self.config.memory_layer - 1]"),
    ("latent one layer too late", "GPT.layers",
     "outputs[self.config.memory_layer - (self.config.memory_layer > 0)]",
     "outputs[min(self.config.memory_layer, len(outputs) - 1)]"),
    ("negative memory_layer is off by one", "GPT.layers", "- (self.config.memory_layer > 0)", "- 1"),
    ("latent from before the layer", "GPT.layers", "outputs.append(x)",
     "outputs.append(x0 if i == 0 else x)"),
    ("latent detached", "GPT.layers", "h if source is x else norm(source)",
     "(h if source is x else norm(source)).detach()"),
    ("latent of an earlier layer detached", "GPT.layers", "norm(source)", "norm(source.detach())"),
    ("h is the latent", "GPT.layers", "return h, h if source is x else norm(source)",
     "return norm(source), norm(source)"),
    ("mask ignored", "GPT.layers", "block(x, rope, mask,", "block(x, rope, None,"),
    ("keys and values detached as they are stored", "GPT.layers", "partial(store, i)",
     "lambda k, v: store(i, k.detach(), v.detach())"),
    ("layers stored under the next number", "GPT.layers", "partial(store, i)",
     "partial(store, (i + 1) % len(self.blocks))"),
    ("last layer left out", "GPT.layers", "enumerate(self.blocks)",
     "enumerate(list(self.blocks)[:max(1, len(self.blocks) - 1)])"),
    ("no memory is a memory of x0", "GPT.layers", "x, m_k, m_v, outputs = x0, 0, 0, []",
     "m = x0 if m is None and self.config.lrt else m\n    x, m_k, m_v, outputs = x0, 0, 0, []"),
    # GPT.recur
    ("memory left out", "GPT.recur", "cache.latent[:, None] if self.config.lrt else None", "None"),
    ("memory detached", "GPT.recur", "cache.latent[:, None]", "cache.latent[:, None].detach()"),
    ("latent not used by the first position", "GPT.recur", "if self.config.lrt",
     "if self.config.lrt and cache.pos"),
    ("memory forgotten behind the window", "GPT.recur", "if self.config.lrt",
     "if self.config.lrt and cache.pos < self.config.block_size"),
    ("memory of another row", "GPT.recur", "cache.latent[:, None]", "cache.latent.flip(0)[:, None]"),
    ("memory is h", "GPT.recur", "cache.latent[:, None]",
     "(cache.h[:, -1:] if cache.pos else cache.latent[:, None])"),
    ("memory one token late", "GPT.recur", "self.extend(",
     "m, cache.before = getattr(cache, 'before', cache.latent), cache.latent\n    self.extend(",
     "cache.latent[:, None]", "m[:, None]"),
    ("never advanced", "GPT.recur", "cache.advance()", "pass"),
    ("advanced before it is computed", "GPT.recur", "    cache.advance()\n", "", "self.extend(",
     "if cache.pos:\n        cache.advance()\n    self.extend("),
    ("advanced twice", "GPT.recur", "cache.advance()", "cache.advance(), cache.advance()"),
    ("returns the latent", "GPT.recur", "return cache.h[:, 0]", "return cache.latents[:, 0]"),
    ("returns h detached", "GPT.recur", "return cache.h[:, 0]", "return cache.h[:, 0].detach()"),
    ("returns (B, 1, C)", "GPT.recur", "return cache.h[:, 0]", "return cache.h"),
    ("back-propagation cut after three tokens", "GPT.recur", "cache.advance()",
     "cache.advance()\n    if cache.pos % 3 == 0 and self.config.lrt:\n        cache.latent = "
     "cache.latent.detach()"),
    ("keys and values of the past detached", "GPT.recur", "cache.advance()",
     "cache.advance()\n    cache.kv = [kv.detach() for kv in cache.kv]"),
    ("all under no_grad", "GPT.recur", "def recur", "@torch.no_grad()\ndef recur"),
    ("latent kept by the model", "GPT.recur", "cache.advance()",
     "cache.advance()\n    if self.config.lrt:\n        self.last = cache.latent", "cache.latent[:, None]",
     "getattr(self, 'last', cache.latent)[:, None]"),
    ("memory added to a plain model", "GPT.recur", "if self.config.lrt else None",
     "if self.config.lrt else self.embed(idx[:, None])"),
    # GPT.refine
    ("memory not shifted", "GPT.refine", "shift_right(cache.latents, cache.latent)", "cache.latents"),
    ("latent of the cache left out", "GPT.refine", ", cache.latent)", ")"),
    ("latent of the cache left out at position 0", "GPT.refine", ", cache.latent)",
     ", cache.latent if cache.pos else None)"),
    ("latent of the cache detached", "GPT.refine", ", cache.latent)", ", cache.latent.detach())"),
    ("memory is h", "GPT.refine", "shift_right(cache.latents,", "shift_right(cache.h,"),
    ("memory detached", "GPT.refine", "shift_right(cache.latents,", "shift_right(cache.latents.detach(),"),
    ("memory of the first of the subset alone detached", "GPT.refine", "[:, s::S]\n",
     "[:, s::S]\n    m = torch.cat([m[:, :1].detach(), m[:, 1:]], 1)\n"),
    ("memory of the neighbour in the subset", "GPT.refine",
     "shift_right(cache.latents, cache.latent)[:, s::S]",
     "shift_right(cache.latents[:, s::S], cache.latent)"),
    ("memory of the next subset", "GPT.refine", "[:, s::S]\n",
     "[:, (s + 1) % S::S][:, :len(range(s, cache.x0.size(1), S))]\n"),
    ("memory of pass 0 for ever", "GPT.refine", "shift_right(cache.latents,",
     "shift_right(cache.__dict__.setdefault('old', cache.latents),"),
    ("no memory", "GPT.refine", "store, m)", "store)"),
    ("positions of the first subset", "GPT.refine", "x[s::S] for x",
     "x[::S][:len(range(s, len(x), S))] for x"),
    ("positions counted in the subset", "GPT.refine", "x[s::S] for x", "x[:len(range(s, len(x), S))] for x"),
    ("mask of the first subset", "GPT.refine", "cache.mask(s, S)",
     "cache.mask(0, S)[:len(range(s, cache.x0.size(1), S))] if S > 1 else cache.mask(s, S)"),
    ("mask of the whole row", "GPT.refine", "cache.mask(s, S)", "cache.mask()"),
    ("keys appended", "GPT.refine", "partial(cache.replace, s, S)", "cache.append"),
    ("keys and values not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.kv[i]"),
    ("keys not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, cache.kv[i][0][:, :, cache.kv[i].size(3) - "
     "cache.x0.size(1) + s::S], v)"),
    ("values not written back", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k, cache.kv[i][1][:, :, cache.kv[i].size(3) - "
     "cache.x0.size(1) + s::S])"),
    ("keys and values written detached", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k.detach(), v.detach())"),
    ("keys written detached", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: cache.replace(s, S, i, k.detach(), v)"),
    ("old keys and values detached", "GPT.refine", "    m = shift",
     "    cache.kv = [kv.detach() for kv in cache.kv]\n    m = shift"),
    ("keys and values written when all is computed", "GPT.refine", "partial(cache.replace, s, S)",
     "lambda i, k, v: later.append((i, k, v)) or cache.kv[i]", "    m = shift",
     "    later = []\n    m = shift", "    cache.h =",
     "    [cache.replace(s, S, *x) for x in later]\n    cache.h ="),
    ("h not written back", "GPT.refine", "cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)",
     "pass"),
    ("latents not written back", "GPT.refine",
     "cache.latents = cache.latents.slice_scatter(latents, dim=1, start=s, step=S)", "pass"),
    ("latents are h", "GPT.refine", "slice_scatter(latents,", "slice_scatter(h,"),
    ("latents written detached", "GPT.refine", "slice_scatter(latents,", "slice_scatter(latents.detach(),"),
    ("h written detached", "GPT.refine", "slice_scatter(h,", "slice_scatter(h.detach(),"),
    ("old latents detached", "GPT.refine", "cache.latents = cache.latents.slice",
     "cache.latents = cache.latents.detach().slice"),
    ("latents written one to the left", "GPT.refine", "(latents, dim=1, start=s,",
     "(latents, dim=1, start=max(0, s - 1),"),
    ("h written into the row in place", "GPT.refine",
     "cache.h = cache.h.slice_scatter(h, dim=1, start=s, step=S)", "cache.h[:, s::S] = h"),
    ("latents written into the row in place", "GPT.refine",
     "cache.latents = cache.latents.slice_scatter(latents, dim=1, start=s, step=S)",
     "cache.latents[:, s::S] = latents"),
    ("all under no_grad", "GPT.refine", "def refine", "@torch.no_grad()\ndef refine"),
    ("x0 detached", "GPT.refine", "cache.x0[:, s::S]", "cache.x0[:, s::S].detach()"),
    ("made on the CPU", "GPT.refine", "    m = shift",
     "    cache.h = cache.h + torch.zeros(cache.h.size(0), 1, 1)\n    m = shift"),
    ("all positions computed", "GPT.refine", "    m = shift", "    s, S = 0, 1\n    m = shift"),
    ("later subsets too", "GPT.refine", "    m = shift", "    S = 1\n    m = shift"),
    ("advances", "GPT.refine", "    h, latents =",
     "    cache.pos += 0 if s + 1 < S else 1\n    h, latents ="),
    # GPT.forward
    ("pass 0 again for each sweep", "GPT.forward", "for _ in range(K):",
     "for _ in range(K):\n        self.extend(idx, new := self.init_cache(idx.size(0)))\n        "
     "cache.x0 = new.x0"),
    ("one sweep too few", "GPT.forward", "range(K):", "range(K - 1):"),
    ("one sweep too many", "GPT.forward", "range(K):", "range(K + 1):"),
    ("last subset left out", "GPT.forward", "range(S):", "range(max(1, S - 1)):"),
    ("subsets from the last to the first", "GPT.forward", "range(S):", "reversed(range(S)):"),
    ("first subset for all", "GPT.forward", "refine(cache, s, S)", "refine(cache, 0, S)"),
    ("S of more than T taken as it is", "GPT.forward", "S = min(S, T)", "pass"),
    ("S of more than T in the weights", "GPT.forward", "    S = min(S, T)\n", "", "self.refine(cache, s, S)",
     "self.refine(cache, s, S) if s < T else None"),
    ("S of more than T refused", "GPT.forward", "S = min(S, T)", "need(S <= T, 'S > T')"),
    ("logits of pass 0", "GPT.forward", "return logits[-1],", "return logits[0],"),
    ("logits of pass 0, without targets", "GPT.forward", "return self.logits(cache.h), None",
     "return self.logits(hidden[0]), None"),
    ("each sweep weighs as much as pass 0", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]",
     "[1 / (1 + K)] * (K + 1)"),
    ("loss of the last sweep alone", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]",
     "[0] * K + [1]"),
    ("loss a sum, not a mean", "GPT.forward", "[n / (1 + S * K) for n in [1] + [S] * K]", "[1] + [S] * K"),
    ("loss without pass 0", "GPT.forward", "n in [1] + [S] * K", "n in [0] + [S] * K"),
    ("weights ignored", "GPT.forward", "if weights is None else weights", ""),
    ("weights made to sum to 1", "GPT.forward", "    cache = self.init",
     "    weights = [w / sum(weights) for w in weights]\n    cache = self.init"),
    ("weights backwards", "GPT.forward", "zip(weights, logits)", "zip(weights, logits[::-1])"),
    ("weights by their size alone", "GPT.forward", "w * cross_entropy(z, targets)",
     "cross_entropy(z, targets)"),
    ("loss of each subset by itself, nan where it has no target", "GPT.forward",
     "cross_entropy(z, targets) for",
     "sum(F.cross_entropy(z[:, s::S].flatten(0, 1), targets[:, s::S].flatten(), ignore_index=-1) for s "
     "in range(S)) / S for"),
    ("loss of each subset by itself, 0 where it has no target", "GPT.forward",
     "cross_entropy(z, targets) for",
     "sum(cross_entropy(z[:, s::S], targets[:, s::S]) for s in range(S)) / S for"),
    ("targets of -1 counted", "GPT.forward", "cross_entropy(z, targets) for",
     "cross_entropy(z, targets.clamp(min=0)) for"),
    ("nan when no target is left", "GPT.forward", "cross_entropy(z, targets) for",
     "F.cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=-1) for"),
    ("loss over all positions", "GPT.forward", "cross_entropy(z, targets) for",
     "cross_entropy(z, targets) * (targets != -1).double().mean() for"),
    ("hidden detached but for the last", "GPT.forward", "hidden.append(cache.h)",
     "hidden = [h.detach() for h in hidden] + [cache.h]"),
    ("pass 0 under no_grad", "GPT.forward", "self.extend(idx, cache)",
     "with torch.no_grad():\n        self.extend(idx, cache)"),
    ("gradient cut after each sweep", "GPT.forward", "hidden.append(cache.h)",
     "hidden.append(cache.h)\n        cache.latents, cache.kv = cache.latents.detach(), [kv.detach() "
     "for kv in cache.kv]"),
    ("latents detached between sweeps", "GPT.forward", "hidden.append(cache.h)",
     "hidden.append(cache.h)\n        cache.latents = cache.latents.detach()"),
    ("latents detached after pass 0", "GPT.forward", "hidden = [cache.h]",
     "cache.latents, hidden = cache.latents.detach(), [cache.h]"),
    ("keys and values of pass 0 detached", "GPT.forward", "hidden = [cache.h]",
     "cache.kv, hidden = [kv.detach() for kv in cache.kv], [cache.h]"),
    ("all sweeps but the last under no_grad", "GPT.forward", "self.refine(cache, s, S)",
     "with torch.set_grad_enabled(len(hidden) == K):\n                self.refine(cache, s, S)"),
    ("back-propagation through the last subset alone", "GPT.forward", "self.refine(cache, s, S)",
     "self.refine(cache, s, S)\n            cache.latents = cache.latents.detach() if s + 1 < S else "
     "cache.latents"),
    ("approximate without subsets", "GPT.forward", "return self.forward_sequential(idx, targets)", "S = 2"),
    ("exact without subsets, its loss not", "GPT.forward",
     "        return self.forward_sequential(idx, targets)", "        S, K = T, 1"),
    ("a plain model swept", "GPT.forward", "if self.config.lrt else (1, 0, None)",
     "if self.config.lrt else (1, 1, None)", "self.refine(cache, s, S)", "self.extend(idx, cache)"),
    ("a plain model token by token", "GPT.forward", "else (1, 0, None)", "else (None, 0, None)"),
    ("loss weights of a plain model", "GPT.forward", "else (1, 0, None)",
     "else (1, 0, loss_weights and loss_weights[:1])"),
    ("more positions than block_size", "GPT.forward", "1 <= T <= W", "1 <= T"),
    ("no position", "GPT.forward", "1 <= T <= W", "T <= W"),
    ("weights of any number", "GPT.forward", "len(weights) == K + 1 and any(weights)", "any(weights)"),
    ("weights all 0", "GPT.forward", "len(weights) == K + 1 and any(weights)", "len(weights) == K + 1"),
    ("too many weights are cut off", "GPT.forward", "len(weights) == K + 1", "len(weights) >= K + 1"),
    ("subsets of 0", "GPT.forward", "S >= 1 and", "S != -1 and", "S = min(S, T)", "S = max(1, min(S, T))"),
    ("sweeps of less than 0", "GPT.forward", "and K >= 0", "", "[S] * K]", "[S] * K]",
     "len(weights) == K + 1", "True"),
    ("no loss", "GPT.forward", "sum(w *", "0 * sum(w *"),
    ("a new cache for each sweep", "GPT.forward", "for _ in range(K):",
     "for _ in range(K):\n        cache = self.init_cache(idx.size(0))\n        self.extend(idx, cache)"),
    # GPT.prefill
    ("mean change, not the largest", "GPT.prefill", ".abs().max()", ".abs().mean()"),
    ("change by its sign", "GPT.prefill", "(b - a).abs().max()", "(b - a).max()"),
    ("change by its other sign", "GPT.prefill", "(b - a).abs().max()", "(a - b).max()"),
    ("change squared", "GPT.prefill", ".abs().max()", ".square().max()"),
    ("change relative to what there is", "GPT.prefill", "(b - a).abs().max()",
     "((b - a).abs().max() / b.abs().max())"),
    ("change as a norm", "GPT.prefill", ".abs().max()", ".norm()"),
    ("first row alone", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:, :1].abs().max() if a.dim() == 5 else (b - a)[:1].abs().max()"),
    ("last row alone", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:, -1:].abs().max() if a.dim() == 5 else (b - a)[-1:].abs().max()"),
    ("last position alone", "GPT.prefill", "(b - a).abs().max()", "(b - a)[..., -1:, :].abs().max()"),
    ("first position alone", "GPT.prefill", "(b - a).abs().max()", "(b - a)[..., :1, :].abs().max()"),
    ("smallest of the changes", "GPT.prefill", "change = max((b", "change = min((b"),
    ("h alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = [cache.h]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, [cache.h])"),
    ("latents alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = [cache.latents]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, [cache.latents])"),
    ("h and latents alone", "GPT.prefill", "zip(old, [cache.h, cache.latents, *cache.kv])",
     "zip(old, [cache.h, cache.latents])"),
    ("keys and values alone", "GPT.prefill", "old = [cache.h, cache.latents, *cache.kv]", "old = cache.kv[:]",
     "zip(old, [cache.h, cache.latents, *cache.kv])", "zip(old, cache.kv)"),
    ("without the keys", "GPT.prefill", "(b - a).abs().max()", "(b - a)[int(a.dim() == 5):].abs().max()"),
    ("without the values", "GPT.prefill", "(b - a).abs().max()",
     "(b - a)[:1 if a.dim() == 5 else None].abs().max()"),
    ("without the last layer", "GPT.prefill", "new = zip(old, [cache.h, cache.latents, *cache.kv])",
     "new = zip(old[1:-1], [cache.latents, *cache.kv])"),
    ("of the first layer alone", "GPT.prefill", "new = zip(old, [cache.h, cache.latents, *cache.kv])",
     "new = zip(old[:3], [cache.h, cache.latents, *cache.kv])"),
    ("change since pass 0", "GPT.prefill", "            old = [", "            old = old if n > 1 else ["),
    ("change of the last subset alone", "GPT.prefill", "self.refine(cache, s, S)",
     "old = [cache.h, cache.latents, *cache.kv]; self.refine(cache, s, S)"),
    ("less than tol, not at most", "GPT.prefill", "change <= tol", "change < tol or n == enough"),
    ("ten times the tolerance", "GPT.prefill", "change <= tol", "change <= 10 * tol"),
    ("a tenth of the tolerance", "GPT.prefill", "change <= tol", "change <= tol / 10"),
    ("stops one sweep late", "GPT.prefill", "if change <= tol:", "if n > 1 and last <= tol:",
     "            old = [", "            last = change\n            old = ["),
    ("never stops before the bound", "GPT.prefill", "change <= tol", "n == enough"),
    ("always one sweep", "GPT.prefill", "change <= tol", "True"),
    ("bound one sweep too low", "GPT.prefill", "-(-piece.size(1) // S)",
     "max(1, -(-piece.size(1) // S) - 1)"),
    ("bound one sweep too high", "GPT.prefill", "-(-piece.size(1) // S)", "1 - (-piece.size(1) // S)"),
    ("bound rounded down", "GPT.prefill", "-(-piece.size(1) // S)", "max(1, piece.size(1) // S)"),
    ("at most 20 sweeps", "GPT.prefill", "-(-piece.size(1) // S)", "min(20, -(-piece.size(1) // S))"),
    ("residual at the bound as measured", "GPT.prefill", "if n < enough else 0.0", ""),
    ("residual is of the first sweep", "GPT.prefill", "max(cache.residual, change)",
     "max(cache.residual, first)", "if change <= tol",
     "first = change if n == 1 else first\n            if change <= tol", "n, change = min(",
     "n, change, first = min(", "0, 0.0\n        enough", "0, 0.0, 0.0\n        enough"),
    ("residual of the last piece", "GPT.prefill", "max(cache.residual, change)", "change"),
    ("residual of the first piece", "GPT.prefill", "max(cache.residual, change)", "cache.residual or change"),
    ("sweeps of the last piece", "GPT.prefill", "max(cache.sweeps, n)", "n"),
    ("sweeps added up", "GPT.prefill", "max(cache.sweeps, n)", "cache.sweeps + n"),
    ("sweeps and residual of the prompt before", "GPT.prefill", "cache.sweeps, cache.residual = 0, 0.0",
     "pass"),
    ("one more than the sweeps", "GPT.prefill", "max(cache.sweeps, n)", "max(cache.sweeps, n + 1)"),
    ("not advanced", "GPT.prefill", "cache.advance()", "pass"),
    ("advanced after the last piece alone", "GPT.prefill", "        cache.advance()\n",
     "    cache.advance()\n"),
    ("one piece, however long", "GPT.prefill", "max(self.config.block_size, 512)", "idx.size(1)"),
    ("pieces of block_size", "GPT.prefill", "max(self.config.block_size, 512)", "self.config.block_size"),
    ("pieces of 512 also where block_size is more", "GPT.prefill", "max(self.config.block_size, 512)", "512"),
    ("first piece alone", "GPT.prefill", "        cache.advance()\n",
     "        cache.advance()\n        break\n"),
    ("a prompt starts a new sequence", "GPT.prefill", "self.extend(piece, cache)",
     "cache.latent = cache.latent * 0 if self.config.lrt else None\n        self.extend(piece, cache)"),
    ("a prompt on an empty cache ignores its latent", "GPT.prefill", "self.extend(piece, cache)",
     "cache.latent = cache.latent * 0 if self.config.lrt and not cache.pos else cache.latent\n        "
     "self.extend(piece, cache)"),
    ("two subsets, whatever is asked", "GPT.prefill", "min(subsets, piece.size(1))", "min(2, piece.size(1))"),
    ("subsets of 0", "GPT.prefill", "subsets > 0 and", "", "min(subsets, piece.size(1))",
     "max(1, min(subsets, piece.size(1)))"),
    ("a prompt of nothing", "GPT.prefill", "and idx.size(1) > 0", "and True"),
    ("a plain model swept", "GPT.prefill", "if self.config.lrt else 0", "", "self.refine(cache, s, S)",
     "self.refine(cache, s, S) if self.config.lrt else None", "old = [cache.h, cache.latents",
     "old = [cache.h, cache.h", "[cache.h, cache.latents, *cache.kv])", "[cache.h, cache.h, *cache.kv])"),
    ("logits of the first token", "GPT.prefill", "cache.h[:, -1]", "cache.h[:, 0]"),
    ("logits from the latent", "GPT.prefill", "cache.h[:, -1]",
     "(cache.h if cache.latent is None else cache.latents)[:, -1]"),
    ("logits of all tokens", "GPT.prefill", "cache.h[:, -1]", "cache.h"),
    ("logits of pass 0", "GPT.prefill", "    S, n, change =", "    first = cache.h\n        S, n, change =",
     "cache.h[:, -1]", "first[:, -1]"),
    # what is given
    ("a class of targets of -1", "cross_entropy", "ignore_index=-1, ", "", "targets.flatten()",
     "targets.flatten().clamp(min=0)"),
    ("mean over all positions", "cross_entropy", "(targets != -1).sum().clamp(min=1)", "targets.numel()"),
    ("nothing to divide by", "cross_entropy", ".clamp(min=1)", ""),
    ("norm with a large epsilon", "norm", "1e-15", "1e-3"),
    ("norm by the largest", "norm", "torch.linalg.vector_norm(x, dim=-1, keepdim=True)",
     "x.abs().amax(-1, keepdim=True)"),
    ("rotary in float32", "rotary", "start + T, dtype=torch.float64", "start + T, dtype=torch.float32",
     "dtype=torch.float64) / D", "dtype=torch.float32) / D"),
    ("rotary base", "rotary", "10000 **", "1000 **"),
    ("rotary turns the other way", "rotate", "a * cos + b * sin, b * cos - a * sin",
     "a * cos - b * sin, b * cos + a * sin"),
    ("rotary of neighbouring pairs", "rotate", "a, b = x.chunk(2, dim=-1)",
     "a, b = x[..., ::2], x[..., 1::2]"),
    ("mask lets one later position in", "Cache.mask", ".tril()", ".tril(1)"),
    ("mask one too wide", "Cache.mask", "1 - self.W", "-self.W"),
    ("mask one too narrow", "Cache.mask", "1 - self.W", "2 - self.W"),
    ("mask of the wrong positions", "Cache.mask", "[n - T + s::S]", "[n - T::S]"),
    ("no mask for a long prompt", "Cache.mask", "T == n <= self.W", "T == n"),
    ("mask for a subset forgotten", "Cache.mask", "S == 1 and T == n", "T == n"),
    ("replaced one too early", "Cache.replace", "+ s\n", "+ max(0, s - 1)\n"),
    ("replaced as if there were no past", "Cache.replace", "self.kv[i].size(3) - self.x0.size(1) + s", "s"),
    ("newest first", "Cache.append", "[old, new]", "[new, old]"),
    ("rotary position starts again", "GPT.extend", "rotary(cache.pos,", "rotary(0,"),
    ("embeddings not normed", "GPT.extend", "norm(self.embed(idx))", "self.embed(idx)"),
    ("new sequence, old cache", "GPT.init_cache", "return Cache(self.config, batch_size, like=self.alpha)",
     "return self.__dict__.setdefault('old', Cache(self.config, batch_size, like=self.alpha))"),
    ("definition with a cache for each token", "GPT.forward_sequential", "self.recur(t, cache)",
     "self.recur(t, self.init_cache(idx.size(0)))"),
    ("definition detached", "GPT.forward_sequential", "self.recur(t, cache) for",
     "self.recur(t, cache).detach() for"),
    ("logits not capped", "GPT.logits", "15 * torch.tanh(", "15 * ("),
    ("logits in bfloat16", "GPT.logits", ".to(torch.promote_types(h.dtype, torch.float32))", ""),
    ("attention not causal", "Block.forward", "is_causal=mask is None and q.size(2) > 1", "is_causal=False"),
    ("queries and keys not normed", "Block.forward", "norm(rotate(torch.stack([q, k]), *rope))",
     "rotate(torch.stack([q, k]), *rope)"),
    ("ReLU not squared", "Block.forward", "self.w_2(y * y)", "self.w_2(y)"),
    ("head order lost on the way out", "Block.forward", "y.transpose(1, 2).flatten(2)",
     "y.flatten(1, 2).unflatten(1, (x.size(1), -1)).flatten(2)"),
    ("top_k keeps one too few", "GPT.generate", "logits < least", "logits <= least"),
    ("the same token for ever", "GPT.generate", "self.step(token, cache) if n else",
     "self.step(idx[:, -1], cache) if n else"),
    ("seed ignored", "GPT.generate", "generator=generator)[:, 0]", "generator=None)[:, 0]"),
]

RIGHT = [           # the same by another hand, which has to pass
    ("shift_right", """
        def shift_right(latent, first=None):
            m = F.pad(latent, (0, 0, 1, -1))
            if first is not None:
                m = m.clone()
                m[:, 0] = first
            return m
    """),
    ("Cache.advance", """
        def advance(self):
            T = self.x0.shape[1]
            self.pos = self.pos + T
            if self.latent is not None:
                self.latent = self.latents[:, T - 1, :]
            for i in range(len(self.kv)):
                n = self.kv[i].shape[3]
                keep = min(n, self.W - 1)
                self.kv[i] = self.kv[i].narrow(3, n - keep, keep)
    """),
    ("Block.qkv", """
        def qkv(self, y, m_k=0, m_v=0):
            B, T, C = y.shape
            H = self.n_head
            q, k, v = (w(y).view(B, T, H, C // H).permute(0, 2, 1, 3) for w in (self.w_q, self.w_k, self.w_v))
            if self.w_g is None:
                return [q, k, v]
            g = (1 + torch.tanh(self.w_g(y) / 2)).view(B, T, 2, H, 1).permute(2, 0, 3, 1, 4)
            return q, g[0] * k + g[1] * m_k, g[0] * v + g[1] * m_v
    """),
    ("GPT.layers", """
        def layers(self, x0, rope, mask, store, m=None):
            c, x = self.config, x0
            where = c.memory_layer if c.memory_layer > 0 else c.n_layer + 1 + c.memory_layer
            if m is None and c.lrt:
                m = torch.zeros_like(x0)
            for i in range(c.n_layer):
                x = x * self.alpha[i] + x0 * self.beta[i]
                m_k = m_v = 0
                if m is not None:
                    x = x + m * self.gamma[i]
                    j = i if len(self.u_k) > 1 else 0
                    m_k, m_v = self.blocks[i].heads(self.u_k[j](m)), self.blocks[i].heads(self.u_v[j](m))
                x = self.blocks[i](x, rope, mask, lambda k, v, i=i: store(i, k, v), m_k, m_v)
                if i + 1 == where:
                    latent = norm(x)
            return norm(x), latent
    """),
    ("GPT.recur", """
        def recur(self, idx, cache):
            if self.config.lrt:
                self.extend(idx.view(-1, 1), cache, cache.latent.unsqueeze(1))
            else:
                self.extend(idx.view(-1, 1), cache)
            h = cache.h.squeeze(1)
            cache.advance()
            return h
    """),
    ("GPT.refine", """
        def refine(self, cache, s, S):
            T = cache.x0.size(1)
            which = torch.arange(s, T, S, device=cache.h.device)
            before = torch.cat([cache.latent.unsqueeze(1), cache.latents], dim=1)
            def store(i, k, v):
                kv = cache.kv[i].clone()
                kv[..., kv.size(3) - T + which, :] = torch.stack([k, v])
                cache.kv[i] = kv
                return kv[0], kv[1]
            rope = cache.rope[0][which], cache.rope[1][which]
            h, latent = self.layers(cache.x0[:, which], rope, cache.mask(s, S), store, before[:, which])
            cache.h = cache.h.index_copy(1, which, h)
            cache.latents = cache.latents.index_copy(1, which, latent)
    """),
    ("GPT.forward", """
        def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None):
            B, T = idx.shape
            if T < 1 or T > self.config.block_size:
                raise ValueError('T')
            if not self.config.lrt:
                subsets, sweeps, loss_weights = 1, 0, None
            elif subsets is None:
                return self.forward_sequential(idx, targets)
            if subsets < 1 or sweeps < 0:
                raise ValueError('dial')
            if loss_weights is not None and (len(loss_weights) != sweeps + 1 or not any(loss_weights)):
                raise ValueError('weights')
            S = min(subsets, T)
            cache = self.init_cache(B)
            self.extend(idx, cache)
            losses = []
            def note():
                z = self.logits(cache.h)
                if targets is not None:
                    losses.append(cross_entropy(z, targets))
                return z
            z = note()
            for k in range(sweeps):
                for s in range(S):
                    self.refine(cache, s, S)
                z = note()
            if targets is None:
                return z, None
            if loss_weights is None:
                return z, (losses[0] + S * sum(losses[1:])) / (1 + S * sweeps)
            return z, sum(w * l for w, l in zip(loss_weights, losses))
    """),
    ("GPT.prefill", """
        def prefill(self, idx, cache, subsets=2, tol=1e-3):
            if subsets < 1 or idx.shape[1] < 1:
                raise ValueError('nothing')
            sweeps, residual = [0], [0.0]
            with torch.no_grad():
                for piece in torch.split(idx, max(512, self.config.block_size), 1):
                    self.extend(piece, cache)
                    T, n, change = piece.shape[1], 0, float('inf')
                    S = min(T, subsets)
                    while self.config.lrt and change > tol:
                        before = [t.clone() for t in [cache.h, cache.latents] + cache.kv]
                        for s in range(S):
                            self.refine(cache, s, S)
                        n += 1
                        after = [cache.h, cache.latents] + cache.kv
                        change = max(float(torch.max(torch.abs(x - y))) for x, y in zip(before, after))
                        if n * S >= T:
                            change = 0.0
                    sweeps.append(n)
                    residual.append(change if self.config.lrt else 0.0)
                    cache.advance()
                cache.sweeps, cache.residual = max(sweeps), max(residual)
                return self.logits(cache.h[:, -1])
    """),
]
