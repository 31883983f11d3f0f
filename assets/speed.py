"""Time and memory of training and decoding on this machine:

    python assets/speed.py                          about half an hour
    python assets/speed.py --rows=8 --lengths=128
    python assets/speed.py --save=1                 and the models of results.md

Times are medians of calls that alternate with those of a plain GPT, whose ratio is therefore fair
on a busy machine, too. Memory is the peak of a step in a process of its own, on Linux or CUDA.
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
from prepare_data import UsageError, check_numbers, parse_args, replace_file, run_script


@dataclass
class Settings:
    rows: str = "8,32,128,256"      # of a step, in the table of training
    lengths: str = "128,512"        # T, in the same table
    runs: int = 3                   # how often each is timed
    threads: int = 0                # default: as torch chooses
    device: str = "cpu"
    max_gb: float = 8.0             # leave out what is estimated to take more memory
    save: int = 0                   # 1: write assets/speed.json, which results.md needs


WAYS = {"plain": "", "S = 2": "--lrt=1", "S = 4, K = 2, 2 hops": results.HOPS,
        "token by token": results.LOOP, "exact, 1 hop": results.LOOP + " --lrt_hops=1",
        "exact, 2 hops": results.LOOP + " --lrt_hops=2"}


def numbers(name, text):
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise UsageError(f"--{name}={text}: must be whole numbers, such as 8,32")
    return [int(number) for number in text.split(",")]


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


def times(device, runs, *functions):
    """Milliseconds of each function: medians of calls in turn; the first of each does not count."""
    found = [[] for _ in functions]
    for _ in range(runs + 1):
        for function, its_times in zip(functions, found):
            began = time.perf_counter()
            function()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            its_times.append(1000 * (time.perf_counter() - began))
    return [median(its_times[1:]) for its_times in found]


def peak(device):
    """The most memory so far, in MB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def memory_here(flags, device, threads):
    torch.set_num_threads(threads)
    Step(f"{flags} --batch_size=1 --block_size=2", device).whole()
    step, before = Step(flags, device), peak(device)
    step.whole()
    return peak(device) - before


def memory(flags, device):
    """MB that a step takes at its peak, in a new process; nan where nothing says so."""
    if not device.startswith("cuda") and not (device == "cpu" and Path("/proc/self").exists()):
        return float("nan")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory_here, flags, device, torch.get_num_threads()).result()


def show(lines, line):
    """Print a line of a table as soon as it is known."""
    lines.append(line)
    for cells in (line, line.values())[len(lines) > 1:]:
        print(" ".join(f"{cell:>16}" if n else f"{cell:30}" for n, cell in enumerate(cells)),
              flush=True)


# ---- Tables: lists of {column: text}

def training(s):
    """Forward and backward, by rows and length. A cell is µs a token, ratio to plain, and MB."""
    lines, known = [], {}
    for T in numbers("lengths", s.lengths):
        for name, flags in WAYS.items():
            line = {"": f"T = {T}, {name}"}
            for rows in numbers("rows", s.rows):
                line[f"{rows} rows"] = ""
                size = rows * T ** (2 if name == "token by token" else 1)   # as memory grows
                if known.get(name, 0) * size > 1000 * s.max_gb:
                    continue
                sized = f"--block_size={T} --batch_size={rows}"
                mb = memory(f"{flags} {sized}", s.device)
                known[name] = mb / size
                plain, step = Step(sized, s.device), Step(f"{flags} {sized}", s.device)
                base, ms = times(s.device, s.runs, plain.backward, step.backward)
                line[f"{rows} rows"] = f"{1000 * ms / (rows * T):.0f}, {ms / base:.2f}, {mb:,.0f}"
            show(lines, line)
    return lines


@torch.inference_mode()
def decode(model, rows, n):
    cache, token = model.init_cache(rows), torch.full((rows,), 1, device=model.alpha.device)
    for _ in range(n):
        model.step(token, cache)


def decoding(s):
    """A token of the default model, on average of the first 256."""
    plain, lrt = Step("", s.device).model, Step("--lrt=1", s.device).model
    lines = []
    for rows in (1, 64):
        base, ms = times(s.device, s.runs, lambda: decode(plain, rows, 256),
                         lambda: decode(lrt, rows, 256))
        show(lines, {"": f"{rows} rows", "plain, ms": f"{base / 256:.2f}",
                     "LRT, ms": f"{ms / 256:.2f}", "ratio": f"{ms / base:.2f}"})
    return lines


def rest_of_a_run(s):
    """The optimizers' share of a step, and an evaluation over as many tokens as Shakespeare's."""
    val, lines = np.random.default_rng(0).integers(65, size=111_540), []
    for name, flags in (("plain", ""), ("S = 2", "--lrt=1"), ("exact", results.LOOP)):
        step = Step(flags, s.device)
        step.backward()
        whole, update = times(s.device, s.runs, step.whole, step.update)
        evaluation, = times(s.device, 1, lambda: train.evaluate(step.model, step.s, val))
        show(lines, {"": name, "step, ms": f"{whole:.0f}", "optimizers, ms": f"{update:.1f}",
                     "share": f"{update / whole:.1%}", "evaluation, s": f"{evaluation / 1000:.1f}"})
    return lines


TABLES = {"µs a token in training, ratio to plain, MB of a step (empty: too many MB)": training,
          "a generated token": decoding, "the rest of a run": rest_of_a_run}


def steps_of_results(s):
    """{flags: ms of a step with the optimizers, MB, FLOPs} of the models of results.md."""
    names = ("main", "clock", "python", "rows", "length", "default")
    models = dict.fromkeys(results.model_of(flags) for name in names
                           for flags in results.flags_of(results.TABLES[name][2]))
    found, lines, plain = {}, [], Step("", s.device)
    for flags in models:
        step = Step(flags, s.device)
        base, ms = times(s.device, s.runs, plain.whole, step.whole)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            step.backward(1)
        flops, mb = counter.get_total_flops() * step.s.batch_size, memory(flags, s.device)
        found[flags] = {"ms": round(ms, 1), "MB": round(mb, 1), "flops": flops}
        show(lines, {"ms, ratio, MB, GFLOPs": f"{ms:9.1f} {ms / base:6.2f} {mb:7,.0f} "
                                              f"{flops / 1e9:7.1f}", " ": flags or "plain"})
    return found


def main(argv=None):
    s = Settings(**parse_args(Settings, __doc__, argv))
    check_numbers(s, dict(runs=1))
    s.device = sample.find_device(s.device)
    torch.set_num_threads(s.threads or torch.get_num_threads())
    machine = f"{s.device}, torch {torch.__version__}"
    if s.device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        machine = f"a CPU with {capability}, {torch.get_num_threads()} threads, torch " \
                  f"{torch.__version__}"
    machine += f", code {results.code()}"
    print(machine)
    tables = {}
    for title, function in TABLES.items():
        print(f"\n{title}")
        tables[title] = function(s)
    if s.save:
        print("\nsteps of the models in results.md")
        text = json.dumps({"machine": machine, "steps": steps_of_results(s), "tables": tables},
                          indent=1)
        replace_file(HERE / "speed.json", lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
