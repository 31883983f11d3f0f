"""What the dial, decoding and the optimizer cost on this machine:  python assets/speed.py   (-h: sizes)

A small model with random weights. Times are medians of runs that alternate with a plain GPT's, so that a busy
machine is fair to all; a row is printed as soon as it is known.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
from lrt import GPT, GPTConfig
from support.checkpoint import find_device
from support.optimizer import make_optimizers
from support.options import option, parse
from support.script import fail, script
from train import Settings as Training


@dataclass
class Settings:
    block_size: int = option(128, "positions in a row, T", (2, 10 ** 6))
    batch_size: int = option(8, "rows, B", (1, 10 ** 6))
    n_layer: int = option(2, "layers, L", (1, 1000))
    n_head: int = option(4, "heads, H", (1, 1000))
    n_embd: int = option(128, "width, C", (1, 10 ** 6))
    runs: int = option(5, "how often each is timed", (1, 10 ** 6))
    every: int = option(0, "1: every power of two as S, with K = 1", [0, 1])
    device: str = option("cpu", "cpu, cuda, mps ...")


def times_ms(device, runs, *functions):
    """Milliseconds of each function: medians of calls in turn, after one for each that does not count."""
    times = [[] for _ in functions]
    for _ in range(runs + 1):
        for f, t in zip(functions, times):
            start = time.perf_counter()
            f()
            if device.type != "cpu":
                getattr(torch, device.type).synchronize()
            t.append(1000 * (time.perf_counter() - start))
    return [median(t[1:]) for t in times]


def random_model(config, device):
    """With weights that are not at their initial values: zeros would leave the layers silent."""
    torch.manual_seed(0)
    model = GPT(config).to(device)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2 and not p.any():
                p.normal_(std=0.5 / p.size(1) ** 0.5)
        model.head.weight.normal_(std=config.n_embd ** -0.5)
    return model


@script
def main(argv):
    s, _ = parse(Settings, __doc__, argv)
    T, B, device = s.block_size, s.batch_size, find_device(s.device)
    try:
        configs = [GPTConfig(T, 64, s.n_layer, s.n_head, s.n_embd, lrt=lrt) for lrt in (False, True)]
    except ValueError as e:
        fail(f"--{e}")
    plain, model = (random_model(config, device) for config in configs)
    idx, targets = torch.randint(64, (2, B, T), device=device)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {device}, torch "
          f"{torch.__version__}; {s.n_layer} layers of width {s.n_embd}, T = {T}, B = {B}\n\n{'training':16}"
          f"{'ms/step':>9}{'ratio':>7}{'FLOPs':>7}{'error':>10}{'exact':>7}    (of logits; first positions)", flush=True)

    def step(m, *dial):
        m.zero_grad(set_to_none=True)
        m(idx, targets, *dial)[1].backward()

    def flops_and_logits(m, *dial):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            logits, _ = m(idx, None, *dial)
        return counter.get_total_flops(), logits

    def busy(what):
        if sys.stderr.isatty():
            print(f"{what} ...", end="\r", file=sys.stderr, flush=True)

    plain_flops, _ = flops_and_logits(plain)
    print(f"{'plain GPT':16}{times_ms(device, s.runs, lambda: step(plain))[0]:9.1f}{1:7.2f}{1:7.2f}", flush=True)
    exact = None
    dials = [(S, K) for S, K in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (8, 1), (8, 2), (16, 1), (T, 1))]
    dials = [(1 << n, 1) for n in range(T.bit_length()) if 1 << n < T] + [(T, 1)] if s.every else dials
    for dial in [d for d in dict.fromkeys(dials) if d[0] <= T] + [()]:
        name = "S = {:3}, K = {}".format(*dial) if dial else "token by token"
        busy(name)
        exact = flops_and_logits(model)[1] if exact is None else exact
        flops, logits = flops_and_logits(model, *dial)
        base, ms = times_ms(device, s.runs, lambda: step(plain), lambda: step(model, *dial))
        error = (logits - exact).abs().amax((0, 2))
        first = int((error < 1e-3).long().cumprod(0).sum())
        print(f"{name:16}{ms:9.1f}{ms / base:7.2f}{flops / plain_flops:7.2f}{error.max().item():10.1e}{first:7}", flush=True)

    print(f"\n{'optimizer':16}{'ms/step':>9}{'share':>7}    (of a default step: plain GPT; S = {Training().lrt_subsets})")
    for name, m, dial in (("plain GPT", plain, ()), ("LRT", model, (Training().lrt_subsets,))):
        busy(name)
        optimizers = make_optimizers(m, Training())
        step(m, *dial)
        other, ms = times_ms(device, s.runs, lambda: step(m, *dial), lambda: [o.step() for o in optimizers])
        print(f"{name:16}{ms:9.1f}{ms / (ms + other):7.1%}", flush=True)

    @torch.inference_mode()
    def decode(m, tokens=64):
        cache = m.init_cache(1)
        for t in range(tokens):
            m.step(idx[:1, t % T], cache)

    busy("decoding")
    rows = dict(zip(("plain GPT", "LRT"), times_ms(device, s.runs, lambda: decode(plain), lambda: decode(model))))
    print(f"\n{'decoding, B = 1':16}{'ms/token':>9}{'ratio':>7}{'tokens/s':>10}")
    for name, ms in rows.items():
        print(f"{name:16}{ms / 64:9.2f}{ms / rows['plain GPT']:7.2f}{64000 / ms:10,.0f}")

    print(f"\n{f'{T} tokens':16}{'ms':>9}{'ratio':>7}{'sweeps':>8}{'residual':>10}")
    print(f"{'step by step':16}{rows['LRT'] / 64 * T:9.1f}{1:7.2f}")
    for S in (S for S in (1, 2, 4, 8, 16) if S <= T):
        busy(f"prefill, S = {S}")
        caches = []
        ms, = times_ms(device, s.runs, lambda: model.prefill(idx[:1], caches.append(model.init_cache(1)) or caches[-1], S))
        print(f"{f'prefill, S = {S}':16}{ms:9.1f}{ms / (rows['LRT'] / 64 * T):7.2f}{caches[-1].sweeps:8}"
              f"{caches[-1].residual:10.0e}", flush=True)


if __name__ == "__main__":
    main()
