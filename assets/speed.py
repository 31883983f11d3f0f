"""What dial, hops, decoding and optimizer cost here:  python assets/speed.py   (-h: sizes)

A small model with random weights. Times are medians of runs that alternate with a plain GPT's, so
that a busy machine is fair to all; a row is printed as soon as it is known. Memory is what a
process of its own has needed at its peak, less what it had before its first step (on Linux).
"""
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lrt import GPT, GPTConfig
from support.checkpoint import find_device
from support.optimizer import make_optimizers
from support.options import option, parse
from support.script import Unusable, say, script
from train import Settings as Training, dial


@dataclass
class Settings:
    block_size: int = option(128, "positions in a row, T", (2, 10 ** 6))
    batch_size: int = option(8, "rows, B", (1, 10 ** 6))
    n_layer: int = option(2, "layers, L", (1, 1000))
    n_head: int = option(4, "heads, H", (1, 1000))
    n_embd: int = option(128, "width, C", (1, 10 ** 6))
    runs: int = option(5, "how often each is timed", (1, 10 ** 6))
    every: int = option(0, "1: every power of two as S, with K = 1, in place of hops", [0, 1])
    memory: int = option(1, "0: leave out memory, which takes some seconds a row", [0, 1])
    device: str = option("cpu", "cpu, cuda, mps ...")


# ---- What is measured: (subsets, sweeps, hops); hops None: the gradient goes through all passes

THROUGH = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (16, 1)]
HOPS = [(4, 2, 0), (4, 2, 1), (4, 2, 2), (4, 3, 1), (4, 3, 2), (8, 2, 2)]


def rows(T, every):
    """(name, arguments of the model) of each row of the table of training."""
    through = [(2 ** n, 1) for n in range(T.bit_length() - 1)] if every else THROUGH
    found = []
    for S, K in [*through, (T, 1)]:
        if S <= T:
            found.append((f"S = {S}, K = {K}", dict(subsets=S, sweeps=K)))
    for S, K, hops in HOPS:
        if S <= T and not every:
            found.append((f"S = {S}, K = {K}, {hops} hops", dict(subsets=S, sweeps=K, hops=hops)))
    if not every:
        found.append(("loop, 0 hops", dict(hops=0)))
    found.append(("token by token", dict()))
    return list({name: arguments for name, arguments in found}.items())


def models(s, device="cpu"):
    """A plain GPT and an LRT, random tokens and targets."""
    sizes = dict(block_size=s.block_size, vocab_size=64, n_layer=s.n_layer, n_head=s.n_head,
                 n_embd=s.n_embd)
    try:
        configs = [GPTConfig(**sizes, lrt=lrt) for lrt in (False, True)]
    except ValueError as e:
        raise Unusable(f"--{e}") from e
    plain, model = (random_model(config, device) for config in configs)
    idx, targets = torch.randint(64, (2, s.batch_size, s.block_size), device=device)
    return plain, model, idx, targets


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


def one_step(model, idx, targets, arguments):
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    model(idx, targets, **arguments)[1].backward()


# ---- How it is measured

def times_ms(device, runs, *functions):
    """Milliseconds of each function: medians of calls in turn; the first of each does not count."""
    times = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, its_times in zip(functions, times):
            start = time.perf_counter()
            function()
            if device.type != "cpu":
                getattr(torch, device.type).synchronize()
            its_times.append(1000 * (time.perf_counter() - start))
    return [median(its_times[1:]) for its_times in times]


def flops_of_step(model, idx, targets, arguments):
    """Of a row, forward and backward."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        one_step(model, idx[:1], targets[:1], arguments)
    return counter.get_total_flops()


@torch.no_grad()
def logits_of(model, idx, arguments):
    return model(idx, None, **arguments)[0]


def peak_mb():
    """The most memory that this process has had so far (Linux says it; getrusage's number is
    handed on from the process that started this one)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def memory_of_step(s, is_lrt, arguments):
    """MB that a step needs at its peak, in a process that has done nothing else."""
    torch.set_num_threads(1)
    plain, model, idx, targets = models(s)
    one_step(model if is_lrt else plain, idx[:1, :2], targets[:1, :2], dict(subsets=1))
    before = peak_mb()
    one_step(model if is_lrt else plain, idx, targets, arguments)
    return peak_mb() - before


def memory_text(s, is_lrt, arguments):
    """memory_of_step in a new process, as a column of the table."""
    if not s.memory or s.device != "cpu" or not Path("/proc/self/status").exists():
        return f"{'':8}"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return f"{pool.submit(memory_of_step, s, is_lrt, arguments).result():8.0f}"


def busy(what):
    if sys.stderr.isatty():
        print(f"{what} ...", end="\r", file=sys.stderr, flush=True)


# ---- Tables

def table_of_training(s, device):
    plain, model, idx, targets = models(s, device)
    say(f"{'training':22}{'ms/step':>9}{'ratio':>7}{'FLOPs':>7}{'MB':>8}{'error':>10}{'exact':>7}"
        "    (of logits; first positions)")
    plain_flops = flops_of_step(plain, idx, targets, {})
    ms, = times_ms(device, s.runs, lambda: one_step(plain, idx, targets, {}))
    say(f"{'plain GPT':22}{ms:9.1f}{1:7.2f}{1:7.2f}{memory_text(s, False, {})}")
    exact = logits_of(model, idx, {})
    for name, arguments in rows(s.block_size, s.every):
        busy(name)
        base, ms = times_ms(device, s.runs, lambda: one_step(plain, idx, targets, {}),
                            lambda: one_step(model, idx, targets, arguments))
        flops = flops_of_step(model, idx, targets, arguments) / plain_flops
        memory = memory_text(s, True, arguments)
        error = (logits_of(model, idx, arguments) - exact).abs().amax((0, 2))
        first = int((error < 1e-3).long().cumprod(0).sum())
        say(f"{name:22}{ms:9.1f}{ms / base:7.2f}{flops:7.2f}{memory}"
            f"{error.max().item():10.1e}{first:7}")


def table_of_optimizer(s, device):
    plain, model, idx, targets = models(s, device)
    say(f"\n{'optimizer':22}{'ms/step':>9}{'share':>7}    (of a step with train.py's defaults)")
    for name, m, arguments in (("plain GPT", plain, {}), ("LRT", model, dial(Training(lrt=1)))):
        busy(name)
        optimizers = make_optimizers(m, Training())
        one_step(m, idx, targets, arguments)
        other, ms = times_ms(device, s.runs, lambda: one_step(m, idx, targets, arguments),
                             lambda: [optimizer.step() for optimizer in optimizers])
        say(f"{name:22}{ms:9.1f}{ms / (ms + other):7.1%}")


@torch.inference_mode()
def decode(model, idx, tokens):
    cache = model.init_cache(1)
    for t in range(tokens):
        model.step(idx[:1, t % idx.size(1)], cache)


def table_of_decoding(s, device):
    plain, model, idx, _ = models(s, device)
    T, tokens = s.block_size, 64
    busy("decoding")
    ms = times_ms(device, s.runs, lambda: decode(plain, idx, tokens),
                  lambda: decode(model, idx, tokens))
    say(f"\n{'decoding, B = 1':22}{'ms/token':>9}{'ratio':>7}{'tokens/s':>10}")
    for name, its_ms in zip(("plain GPT", "LRT"), ms):
        say(f"{name:22}{its_ms / tokens:9.2f}{its_ms / ms[0]:7.2f}{1000 * tokens / its_ms:10,.0f}")
    all_steps = ms[1] / tokens * T
    say(f"\n{f'{T} tokens':22}{'ms':>9}{'ratio':>7}{'sweeps':>8}{'residual':>10}")
    say(f"{'step by step':22}{all_steps:9.1f}{1:7.2f}")
    for S in (1, 2, 4, 8, 16):
        if S <= T:
            row_of_prefill(s, model, idx, S, all_steps, device)


def row_of_prefill(s, model, idx, S, all_steps, device):
    caches = []

    def read():
        caches.append(model.init_cache(1))
        model.prefill(idx[:1], caches[-1], S)

    busy(f"prefill, S = {S}")
    ms, = times_ms(device, s.runs, read)
    last = caches[-1]
    say(f"{f'prefill, S = {S}':22}{ms:9.1f}{ms / all_steps:7.2f}{last.sweeps:8}"
        f"{last.residual:10.0e}")


@script
def main(argv):
    s, _ = parse(Settings, __doc__, argv)
    device = find_device(s.device)
    say(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {device}, "
        f"torch {torch.__version__}; {s.n_layer} layers of width {s.n_embd}, T = {s.block_size}, "
        f"B = {s.batch_size}\n")
    table_of_training(s, device)
    table_of_optimizer(s, device)
    table_of_decoding(s, device)


if __name__ == "__main__":
    main()
