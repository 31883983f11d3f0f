"""The exercises by another hand. What a student may hand in, and has to get full points."""
import torch
import torch.nn.functional as F

from lrt import cross_entropy, norm


def shift_right(latent, first=None):
    m = F.pad(latent, (0, 0, 1, -1))
    if first is not None:
        m = m.clone()
        m[:, 0] = first
    return m


def all_written(cache):
    return [cache.h, cache.m_next] + cache.kv


class Cache:
    def advance(self):
        T = self.x0.shape[1]
        self.pos = self.pos + T
        if self.latent is not None:
            self.latent = self.m_next[:, T - 1, :]
        for i in range(len(self.kv)):
            n = self.kv[i].shape[3]
            keep = min(n, self.W - 1)
            self.kv[i] = self.kv[i].narrow(3, n - keep, keep)


class Block:
    def qkv(self, y, m_k=0, m_v=0):
        B, T, C = y.shape
        H = self.n_head
        q, k, v = (w(y).view(B, T, H, C // H).permute(0, 2, 1, 3)
                   for w in (self.w_q, self.w_k, self.w_v))
        if self.w_g is None:
            return [q, k, v]
        g = (1 + torch.tanh(self.w_g(y) / 2)).view(B, T, 2, H, 1).permute(2, 0, 3, 1, 4)
        return q, g[0] * k + g[1] * m_k, g[0] * v + g[1] * m_v


class GPT:
    def layers(self, x0, m, cache, at):
        c, x = self.config, x0
        where = c.memory_layer if c.memory_layer > 0 else c.n_layer + 1 + c.memory_layer
        if m is None and c.lrt:
            m = torch.zeros_like(x0)
        mask = cache.mask(at)
        for i in range(c.n_layer):
            x = x * self.alpha[i] + x0 * self.beta[i]
            m_k = m_v = 0
            if m is not None:
                x = x + m * self.gamma[i]
                j = i if len(self.u_k) > 1 else 0
                m_k, m_v = (self.blocks[i].split(u[j](m)) for u in (self.u_k, self.u_v))
            x = self.blocks[i](x, i, cache, at, mask, m_k, m_v)
            if i + 1 == where:
                latent = norm(x)
        return norm(x), latent

    def step(self, idx, cache):
        if self.config.lrt:
            self.extend(idx.view(-1, 1), cache, cache.latent.unsqueeze(1))
        else:
            self.extend(idx.view(-1, 1), cache)
        cache.advance()
        return self.logits(cache.h.squeeze(1))

    def refine(self, cache, s, S):
        T = cache.x0.size(1)
        which = torch.arange(s, T, S, device=cache.h.device)
        before = torch.cat([cache.latent.unsqueeze(1), cache.m_next], dim=1)
        h, latent = self.layers(cache.x0[:, which], before[:, which], cache, slice(s, None, S))
        cache.h = cache.h.index_copy(1, which, h)
        cache.m_next = cache.m_next.index_copy(1, which, latent)

    def forward(self, idx, targets=None, subsets=None, sweeps=1, loss_weights=None, hops=None):
        B, T = idx.shape
        if T < 1 or T > self.config.block_size:
            raise ValueError("T")
        for number, least in ((subsets, 1), (sweeps, 0), (hops, 0)):
            if number is not None and (not isinstance(number, int) or number < least):
                raise ValueError("dial")
        if subsets is None and loss_weights is not None:
            raise ValueError("no subsets")
        if loss_weights is not None and hops is not None:
            raise ValueError("hops and weights")
        if loss_weights is not None and (len(loss_weights) != sweeps + 1 or not any(loss_weights)):
            raise ValueError("weights")
        if not self.config.lrt:
            sweeps, loss_weights, subsets = 0, None, 1
        elif hops is not None:
            return self.forward_hops(idx, targets, subsets, sweeps, hops)
        elif subsets is None:
            return self.forward_sequential(idx, targets)
        S, cache, losses = min(subsets, T), self.init_cache(B), []

        def note():
            z = self.logits(cache.h)
            if targets is not None:
                losses.append(cross_entropy(z, targets))
            return z

        self.extend(idx, cache)
        z = note()
        for k in range(sweeps):
            for s in range(S):
                self.refine(cache, s, S)
            z = note()
        if targets is None:
            return z, None
        if loss_weights is None:
            return z, (losses[0] + S * sum(losses[1:])) / (1 + S * sweeps)
        return z, sum(w * loss for w, loss in zip(loss_weights, losses))

    @torch.no_grad()
    def prefill(self, idx, cache, subsets=2, tol=1e-3):
        if not isinstance(subsets, int) or subsets < 1 or idx.shape[1] < 1:
            raise ValueError("nothing")
        sweeps, residual = [0], [0.0]
        tol = max(tol, 40 * torch.finfo(self.alpha.dtype).eps)
        for piece in torch.split(idx, max(512, self.config.block_size), 1):
            self.extend(piece, cache)
            T, n, change = piece.shape[1], 0, float("inf")
            S = min(T, subsets)
            while self.config.lrt and change > tol:
                before = [t.clone() for t in all_written(cache)]
                for s in range(S):
                    self.refine(cache, s, S)
                n += 1
                change = max(float((x - y).abs().max()) for x, y in zip(before, all_written(cache)))
                if n * S >= T:
                    change = 0.0
            sweeps.append(n)
            residual.append(change if self.config.lrt else 0.0)
            cache.advance()
        cache.sweeps, cache.residual = max(sweeps), max(residual)
        return self.logits(cache.h[:, -1])

    def forward_hops(self, idx, targets=None, subsets=None, sweeps=1, hops=2):
        with torch.no_grad():
            cache, latents = self.init_cache(len(idx)), []
            if subsets is None:
                for t in range(idx.size(1)):
                    self.step(idx[:, t], cache)
                    latents.append(cache.latent)
                latents = torch.stack(latents, 1)
            else:
                self.extend(idx, cache)
                for n in range(sweeps):
                    self.sweep(cache, subsets)
                latents = cache.m_next
            m = torch.cat([torch.zeros_like(latents[:, :1]), latents[:, :-1]], dim=1)
        if torch.is_grad_enabled():
            m = m.detach().requires_grad_()
        cache = self.init_cache(len(idx))
        self.extend(idx, cache, m)
        logits = self.logits(cache.h)
        if targets is None:
            return logits, None
        loss = cross_entropy(logits, targets)
        if not loss.requires_grad:
            return logits, loss

        def before(g):
            """What is said of m is said of the latents of the position before."""
            return torch.cat([g[:, 1:], torch.zeros_like(g[:, :1])], dim=1)

        terms, g = [], None
        for n in range(hops):
            if g is None:
                g = before(torch.autograd.grad(loss, m, retain_graph=True)[0])
            else:
                g = before(torch.autograd.grad(cache.m_next, m, g, retain_graph=True)[0])
            terms.append(g)
        bonus = sum((term.detach() * cache.m_next).sum() for term in terms)
        if hops:
            loss = loss + bonus - bonus.detach()
        return logits, loss
