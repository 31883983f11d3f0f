"""Time and memory of training and decoding on this machine:

    python assets/speed.py                          about half an hour
    python assets/speed.py --tables=training --rows=8 --lengths=128
    python assets/speed.py --save=1                 and write speed.json, for results.md

Times are medians of calls that alternate with those of a plain GPT. So their ratio is fair on a
busy machine, too. Memory is the peak of a step in a process of its own, on Linux or CUDA.
"""
import json
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import results
import sample
import train
from prepare_data import UsageError, check_numbers, parse_args, run_script


@dataclass
class Settings:
    tables: str = "training,decoding,run,steps"
    rows: str = "8,32,128,256"      # of a step, in the table of training
    lengths: str = "128,512"        # T, in the same table
    runs: int = 3                   # how often each is timed
    threads: int = 0                # default: as torch chooses
    device: str = "cpu"
    save: int = 0                   # 1: write these tables into assets/speed.json


class Step:
    """A model by flags of train.py, random tokens, and what a step of training calls."""

    def __init__(self, flags, device):
        self.s = results.settings(flags)
        torch.manual_seed(0)
        self.model = train.GPT(train.model_config(self.s, 65)).to(device)
        self.optimizers = train.make_optimizers(self.model, self.s)
        tokens = torch.randint(65, (2, self.s.batch_size, self.s.block_size))
        self.idx, self.targets = tokens.to(device)

    def backward(self, rows=None):
        self.model.zero_grad()
        x, y = self.idx[:rows], self.targets[:rows]
        self.model(x, y, **train.how_to_train(self.s))[1].backward()

    def update(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def whole(self):
        self.backward()
        self.update()


def times(s, *functions, runs=None):
    """Milliseconds of each function: medians of calls in turn; the first of each does not count."""
    found = [[] for _ in functions]
    for _ in range((runs or s.runs) + 1):
        for function, its_times in zip(functions, found):
            began = time.perf_counter()
            function()
            if s.device.startswith("cuda"):
                torch.cuda.synchronize()
            its_times.append(1000 * (time.perf_counter() - began))
    return [median(its_times[1:]) for its_times in found]


def peak(device):
    """The most memory so far, in MB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def memory_here(flags, device):
    Step(f"{flags} --batch_size=1 --block_size=2", device).whole()
    step, before = Step(flags, device), peak(device)
    step.whole()
    return peak(device) - before


def memory(flags, device):
    """MB that a step takes at its peak, in a new process; nan where nothing says so."""
    if not device.startswith("cuda") and not (device == "cpu" and Path("/proc/self").exists()):
        return float("nan")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_here, flags, device).result()


# ---- Tables: they yield lines {column: text}

WAYS = {"plain": "", "S = 2": results.S2, "S = 4, K = 2, 2 hops": results.HOPS,
        "token by token": results.LOOP, "exact, 1 hop": results.EXACT1,
        "exact, 2 hops": results.EXACT2}


def training(s):
    """µs a token of forward and backward, ratio to plain, MB; empty: it takes too much memory"""
    for T in map(int, s.lengths.split(",")):
        for name, flags in WAYS.items():
            line = {"": f"T = {T}, {name}"}
            for rows in map(int, s.rows.split(",")):
                line[f"{rows} rows"] = ""
                if name == "token by token" and rows * T ** 2 > 2 ** 22:
                    continue                            # its graph has every state of the cache
                sized = f"--block_size={T} --batch_size={rows}"
                plain, step = Step(sized, s.device), Step(f"{flags} {sized}", s.device)
                base, ms = times(s, plain.backward, step.backward)
                mb = memory(f"{flags} {sized}", s.device)
                line[f"{rows} rows"] = f"{1000 * ms / (rows * T):.0f}, {ms / base:.2f}, {mb:,.0f}"
            yield line


@torch.inference_mode()
def decode(model, rows, n):
    cache, token = model.init_cache(rows), torch.full((rows,), 1, device=model.alpha.device)
    for _ in range(n):
        model.step(token, cache)


def decoding(s):
    """a generated token of the default model, on average of the first 256"""
    plain, lrt = Step("", s.device).model, Step("--lrt=1", s.device).model
    for rows in (1, 64):
        base, ms = times(s, lambda: decode(plain, rows, 256), lambda: decode(lrt, rows, 256))
        yield {"": f"{rows} rows", "plain, ms": f"{base / 256:.2f}",
               "LRT, ms": f"{ms / 256:.2f}", "ratio": f"{ms / base:.2f}"}


def run(s):
    """the rest of a run: optimizers, and an evaluation over as many tokens as Shakespeare's"""
    val = np.random.default_rng(0).integers(65, size=111_540)
    for name, flags in (("plain", ""), ("S = 2", results.S2), ("exact", results.LOOP)):
        step = Step(flags, s.device)
        step.backward()
        whole, update = times(s, step.whole, step.update)
        evaluation, = times(s, lambda: train.evaluate(step.model, step.s, val), runs=1)
        yield {"": name, "step, ms": f"{whole:.0f}", "optimizers, ms": f"{update:.1f}",
               "share": f"{update / whole:.1%}", "evaluation, s": f"{evaluation / 1000:.1f}"}


def steps(s):
    """a step of the models of results.md: ms with the optimizers, ratio to plain, MB, FLOPs"""
    names = ("main", "clock", "python", "rows", "length", "default")
    models = dict.fromkeys(results.model_of(flags) for name in names
                           for flags in results.flags_of(results.TABLES[name]))
    plain = Step("", s.device)
    for flags in models:
        step = Step(flags, s.device)
        base, ms = times(s, plain.whole, step.whole)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            step.backward(1)
        yield {"": flags or "plain", "ms": f"{ms:.1f}", "ratio": f"{ms / base:.2f}",
               "MB": f"{memory(flags, s.device):.0f}",
               "FLOPs": f"{counter.get_total_flops() * step.s.batch_size:.4e}"}


TABLES = {function.__name__: function for function in (training, decoding, run, steps)}


def main(argv=None):
    s = Settings(**parse_args(Settings, __doc__, argv))
    check_numbers(s, dict(runs=1))
    for name, text, pattern in (("rows", s.rows, r"[1-9]\d{0,5}"),
                                ("lengths", s.lengths, r"[1-9]\d{0,5}"),
                                ("tables", s.tables, "|".join(TABLES))):
        if not re.fullmatch(f"({pattern})(,({pattern}))*", text):
            raise UsageError(f"--{name}={text}: must be like {getattr(Settings, name)}")
    s.device = sample.find_device(s.device)
    torch.set_num_threads(s.threads or torch.get_num_threads())
    machine = f"{s.device}, torch {torch.__version__}, code {results.code()}"
    if s.device == "cpu":
        machine = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} " \
                  f"threads, {machine}"
    for name in s.tables.split(","):
        lines = []
        print(f"\n{TABLES[name].__doc__} ({machine})")
        for line in TABLES[name](s):
            lines.append(line)
            for cells in (line, line.values())[len(lines) > 1:]:
                print(" ".join(f"{text:>16}" if n else f"{text:30}"
                               for n, text in enumerate(cells)), flush=True)
        if s.save:
            tables = json.loads((HERE / "speed.json").read_text(encoding="utf-8"))
            tables[name] = {"title": TABLES[name].__doc__, "machine": machine, "lines": lines}
            results.save("speed.json", json.dumps(tables, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    run_script(main)
