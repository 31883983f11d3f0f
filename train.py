"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h lists all settings)
On several processes or machines:  torchrun --standalone --nproc_per_node=2 train.py --lrt=1

Writes into out_dir: last.pt, to go on from, and best.pt, of least exact loss; log.jsonl, a row for each evaluation;
by_position.json, the exact losses at each position, by step; run.json, settings and versions.
"""
import json
import math
import os
import platform
import signal
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from lrt import GPT, GPTConfig
from prepare_data import MAX_SEED, command, fail, load, option, own, parse, script, task_rows, write_atomic
from sample import answers, find_device, hold_latent_at_zero, load_checkpoint, or_fail, stream

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))      # torchrun sets them
SAVE_SECONDS = 60                                       # from one last.pt to the next, evaluation or not
BIG = 10 ** 9


@dataclass
class Settings:
    dataset: str = option("shakespeare", "folder in data/; parity and swaps are tasks with settings of their own")
    out_dir: str = option("out", "where checkpoints and the log go")
    overwrite: int = option(0, "1: replace the run that out_dir holds", [0, 1])
    resume: str = option("", "folder of a run to go on with as it was started, or longer: --max_iters")
    init_from: str = option("", "folder or checkpoint of a run whose weights a new one begins with")
    # model
    block_size: int = option(128, "positions that attention can see; of text, also the tokens in a row, T")
    n_layer: int = option(2, "layers, L")
    n_head: int = option(4, "attention heads in each layer, H")
    n_embd: int = option(128, "width, C")
    dropout: float = option(0.0, "worth it when the same text is read many times")
    # latent recurrence
    lrt: int = option(0, "1: hand each token the state of the one before it", [0, 1])
    lrt_mode: str = option("parallel", "the dial below, or token by token, exact and slow", ["parallel", "sequential"])
    lrt_subsets: int = option(2, "S: interleaved subsets of the positions; S = block_size is exact", (1, BIG))
    lrt_sweeps: int = option(1, "K: how often each subset is recomputed", (1, BIG))
    lrt_loss_weights: str = option("", "K + 1 numbers with commas: pass 0, sweep 1 .. K (default: each pass alike)")
    lrt_memory_layer: int = option(-1, "layer whose output is the memory, 1 .. L; -1: the last")
    lrt_memory_proj: str = option("shared", "one projection for all layers, or one in each", ["shared", "layerwise"])
    # training
    batch_size: int = option(8, "rows in a batch of each process; Muon gains more from steps than rows", (1, BIG))
    gradient_accumulation_steps: int = option(1, "batches in a step, for more rows than fit into memory", (1, BIG))
    max_iters: int = option(1750, "steps", (1, 10 ** 7))
    max_flops: float = option(0.0, "end before a step that would go over this much compute (0: no limit)", (0, 1e30))
    learning_rate: float = option(1.6e-2, "highest, after warm-up", (0, BIG))
    min_lr: float = option(0.0, "at the end of the cosine", (0, BIG))
    warmup_iters: int = option(50, "steps from 0 to learning_rate", (0, BIG))
    weight_decay: float = option(0.1, "of the hidden matrices", (0, BIG))
    grad_clip: float = option(1.0, "largest norm of the gradient (0: no limit)", (0, BIG))
    curriculum: str = option("", "rows cut to a length for so many steps, then whole: 4:100,8:100 (tasks)")
    seed: int = option(1337, "of the weights and the data order", (0, MAX_SEED))
    # evaluation, machine
    eval_interval: int = option(600, "steps from one evaluation to the next", (1, BIG))
    eval_tokens: int = option(2 ** 17, "of a longer validation split, this many, spread evenly", (1, BIG))
    log_interval: int = option(50, "steps from one line of progress to the next", (1, BIG))
    device: str = option("", "cpu, cuda, mps ... (default: the best one here)")
    dtype: str = option("", "of products (default: bfloat16 on a GPU that has it)", ["", "float32", "bfloat16"])
    compile: int = option(-1, "torch.compile (default: on cuda, unless sequential; on a CPU, try it)", [-1, 0, 1])

    def dial(self):
        """The training graph as model() takes it: (S, or None for token by token; K; loss weights). ValueError if wrong."""
        weights = [float(w) for w in self.lrt_loss_weights.split(",")] if self.lrt_loss_weights else None
        if weights and not (len(weights) == self.lrt_sweeps + 1 and math.isfinite(sum(weights)) and weights[-1]):
            raise ValueError("not one for each pass, or not to be used")
        return (None if self.lrt and self.lrt_mode == "sequential" else self.lrt_subsets), self.lrt_sweeps, weights

    def row_lengths(self, T):
        """The length of the rows in each step, at most T. ValueError if the curriculum is not like 4:100,8:100."""
        lengths, start = np.full(self.max_iters, T), 0
        for stage in self.curriculum.split(",") if self.curriculum else []:
            length, steps = (int(number) for number in stage.split(":"))
            if length < 1 or steps < 1:
                raise ValueError("a stage needs a length and a number of steps of at least 1")
            lengths[start:start + steps] = min(length, T)
            start += steps
        return lengths


# What a task is trained with unless told otherwise. Attention sees no more than the rows it learned on.
TASK = dict(block_size=32, batch_size=64, learning_rate=8e-3, warmup_iters=20)
TASK_SETTINGS = {"parity": dict(TASK, max_iters=150, eval_interval=50, log_interval=25),
                 "swaps": dict(TASK, max_iters=600, eval_interval=200, curriculum="4:100,8:100,16:100")}


def read_settings(argv):
    """(Settings, names of those on the command line), which do not contradict each other."""
    s, given = parse(Settings, __doc__, argv)
    s, given = parse(Settings, __doc__, argv, **TASK_SETTINGS.get(s.dataset, {}))
    changed = {f.name: getattr(s, f.name) for f in fields(s) if getattr(s, f.name) != f.default}
    for name in changed:
        if name.startswith("lrt_") and not s.lrt:
            fail(f"--{name}={changed[name]} has no meaning for a plain GPT; add --lrt=1")
        if name in ("lrt_subsets", "lrt_sweeps", "lrt_loss_weights") and s.lrt_mode == "sequential":
            fail(f"--{name}={changed[name]} has no meaning with --lrt_mode=sequential, which is exact already")
    if s.lrt and 0 < s.block_size < changed.get("lrt_subsets", 1):
        fail(f"--lrt_subsets={s.lrt_subsets} is more than --block_size={s.block_size}, which is exact already")
    if s.min_lr > s.learning_rate:
        fail(f"--min_lr={s.min_lr} is more than --learning_rate={s.learning_rate}")
    for name, check, form in (("lrt_loss_weights", s.dial, f"{s.lrt_sweeps + 1} numbers (K + 1), the last one not 0"),
                              ("curriculum", lambda: s.row_lengths(1), "lengths and steps, like 4:100,8:100")):
        try:
            check()
        except ValueError:
            fail(f"--{name}={getattr(s, name)}: must be {form}")
    for name in ("out_dir", "resume", "init_from"):
        if name in given and not getattr(s, name):
            fail(f"--{name} is empty; give a folder")
        setattr(s, name, getattr(s, name) and str(Path(getattr(s, name)).expanduser()))
    return s, given


# ---- Data: what a step sees depends on (seed, step) alone, so a run can stop and go on anywhere -------------------

def batch(data, s, T, step, part, device):
    """Inputs and targets (B, T) each, for one part (of gradient accumulation) of a step: text from random places, or
    random rows of a task, cut to T. Several processes share what one with as many times the rows would draw."""
    rng = np.random.default_rng((s.seed, step, part))
    places = len(data["train"]) - (0 if "train_y" in data else T)
    return rows_at(data, "train", rng.integers(places, size=WORLD * s.batch_size)[RANK::WORLD], T, device)


def rows_at(data, split, places, T, device):
    """Inputs and targets (B, T) each: T tokens of text from these places on, and the next ones; or rows of a task."""
    if f"{split}_y" in data:
        x, y = data[split][places, :T], data[f"{split}_y"][places, :T]
    else:
        rows = data[split][places[:, None] + np.arange(T + 1)]
        x, y = rows[:, :-1], rows[:, 1:]
    return tuple(torch.from_numpy(part.astype(np.int64)).to(device) for part in (x, y))


def windows(data, T, most, vocab_size, device):
    """The validation split once, in order, as batches of rows of T; of text, also the shorter last row. If it has more
    than `most` tokens, that many, in rows spread evenly. Logits of a batch take 256 MB at most, or are of one row."""
    task = "val_y" in data
    count, rest = (len(data["val"]), 0) if task else divmod(len(data["val"]) - 1, T)
    some = count if count * T + rest <= most else max(1, min(count, most // T))
    rows, size = np.arange(some) * count // max(1, some), 256 if task else max(1, min(1 << 14, (1 << 26) // vocab_size) // T)
    for start in range(0, some, size):
        yield rows_at(data, "val", rows[start:start + size] * (1 if task else T), T, device)
    if rest and some == count:
        yield rows_at(data, "val", np.array([count * T]), rest, device)


# ---- Evaluation --------------------------------------------------------------------------------------------------

def scores(model, x, y, S=None, K=1):
    """Of every target its cross-entropy, in nats, and whether it was the likeliest: (2, B, T), float64 on the CPU."""
    logits = (model(x, None, S, K) if S else model.forward_sequential(x))[0]
    nll = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    return torch.stack([nll, (logits.argmax(-1) == y).to(nll)]).cpu().double()


@torch.no_grad()
def evaluate(model, s, codec, data, stop=None, graph=True):
    """Over the validation split: exact losses and accuracies (of a task) or bits per byte (of text); with graph, also
    those of the training graph after its last sweep. Draws no random numbers. With stop, shows progress on a terminal,
    and exits between two batches if told to stop."""
    model.eval()
    (S, K, _), task, device = s.dial(), "val_y" in data, model.embed.weight.device
    T, size = data["val"].shape[1] if task else s.block_size, min(data["val"].size, s.eval_tokens)
    n_bytes = torch.tensor([len(b) for b in codec.token_bytes], device=device)
    at, totals = torch.zeros(3, T, dtype=torch.float64), Counter()
    for x, y in windows(data, T, s.eval_tokens, codec.vocab_size, device):
        if stop and stop.signal:
            sys.exit(128 + stop.signal)
        if stop and sys.stdout.isatty():
            print(f"\revaluating {totals['n'] / size:4.0%}", end="\r", flush=True)
        exact = scores(model, x, y, None if s.lrt else 1)               # a plain GPT computes in one way alone
        nll, right = (scores(model, x, y, S, K) if s.lrt and S and graph else exact).sum((1, 2)).tolist()
        at[:, :x.size(1)] += torch.cat([exact.sum(1), torch.full((1, x.size(1)), len(x))])
        totals.update(n=y.numel(), nll=nll, right=right, bytes=n_bytes[y].sum().item())
    (nll, right, count), n = at, totals["n"]
    row = {"val_loss": totals["nll"] / n, "val_loss_exact": nll.sum().item() / n}
    if task:
        row |= {"val_accuracy": totals["right"] / n, "val_accuracy_exact": right.sum().item() / n}
    else:
        row["val_bpb_exact"] = nll.sum().item() / math.log(2) / totals["bytes"]
    return {**{name: round(value, 6) for name, value in row.items()}, "val_tokens": n,
            "exact_by_position": [round(v, 4) for v in (nll / count.clamp(min=1)).tolist()]}


@torch.no_grad()
def accuracy_by_length(model, meta, seed, rows=256):
    """Exact accuracy over the last tenth of new rows of 1, 2, 4, 8 and 16 times the trained length, by length. A row's
    beginning is a shorter row, so one decoding of the longest does."""
    x, y = task_rows(meta["task"], rows, 16 * meta["length"], np.random.default_rng(seed))
    x, y = (torch.from_numpy(a).to(model.embed.weight.device) for a in (x, y))
    right, lengths = scores(model.eval(), x, y)[1].mean(0), [meta["length"] << n for n in range(5)]
    return {n: round(right[min(n - 1, int(n * 0.9)):n].mean().item(), 5) for n in lengths}


def badness(row):
    """What `best` is the least of: the exact loss; of a task, the share of wrong answers, then that."""
    return -row.get("val_accuracy_exact", 0.0), row["val_loss_exact"]


def verdict(row):
    """A line: does decoding do what the training graph shows? A task's answers decide, not its loss."""
    name, most, better = ("accuracy", 0.02, 1) if "val_accuracy" in row else ("loss", 0.05, -1)
    gap = row[f"val_{name}_exact"] - row[f"val_{name}"]
    how = "they agree" if abs(gap) <= most else "decoding is better" if gap * better > 0 else \
        "THEY DISAGREE, decoding is worse; more --lrt_subsets or --lrt_sweeps train nearer to it"
    return f"exact - training graph = {gap:+.4f} in {name} (threshold {most}): {how}"


# ---- Optimizers --------------------------------------------------------------------------------------------------

def orthogonalize(X):
    """Newton-Schulz: five times a X + b (X Xᵀ) X + c (X Xᵀ)² X takes all singular values to about 1 (0.7 to 1.2). X
    (n, rows, columns), rows <= columns -> the same. In float32 on a CPU, where bfloat16 is slow: torch's Muon took 518
    to 709 ms of a step on one without AVX-512, this one 34."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = X.bfloat16() if X.is_cuda else X.float()
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    polynomial = lambda A: torch.baddbmm(A, A, A, beta=b, alpha=c)
    if X.is_cuda or X.size(2) < 2 * X.size(1):
        for _ in range(5):
            X = torch.baddbmm(X, polynomial(X @ X.mT), X, beta=a)
        return X
    Q = I = torch.eye(X.size(1), device=X.device).expand(len(X), -1, -1)    # long rows: the same product of five
    A = X @ X.mT                                                            # polynomials in X Xᵀ, on its short sides
    for _ in range(5):
        P = a * I + polynomial(A)
        Q, A = P @ Q, P @ A @ P
    return Q @ X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for hidden matrices (Keller Jordan, kellerjordan.github.io/posts/muon), as large as
    AdamW's updates (arXiv:2502.16982). The same as torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), but matrices of
    one shape, or of its transpose, are stacked; the first one of each stack has its state."""

    def __init__(self, matrices, lr=1e-3, momentum=0.85, weight_decay=0.1):
        stacks = {}
        for p in matrices:
            stacks.setdefault(tuple(sorted(p.shape)), []).append(p)
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__([{"params": stack} for stack in stacks.values()], defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, momentum = group["params"], group["lr"], group["momentum"]
            wide = lambda x: x if x.size(0) <= x.size(1) else x.mT
            grad, state = torch.stack([wide(p.grad) for p in params]), self.state[params[0]]
            average = state.setdefault("momentum", torch.zeros_like(grad)).lerp_(grad, 1 - momentum)
            update = orthogonalize(grad.lerp(average, momentum)).to(grad)
            for p, direction in zip(params, update):
                wide(p).mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def make_optimizers(model, s):
    """Muon for hidden matrices; AdamW for embedding, head and scalars, each at its multiple of the learning rate."""
    fast = [model.embed.weight, *(p for p in model.parameters() if p.ndim < 2)]
    others = {id(p) for p in (*fast, model.head.weight)}
    return [Muon([p for p in model.parameters() if id(p) not in others], weight_decay=s.weight_decay),
            torch.optim.AdamW([{"params": fast, "scale": 3.0}, {"params": [model.head.weight]}], betas=(0.9, 0.95),
                              eps=1e-10, weight_decay=0.0, fused=model.head.weight.device.type in ("cpu", "cuda"))]


def learning_rate(step, max_iters, s):
    """Linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    progress = (step - s.warmup_iters) / max(1, max_iters - s.warmup_iters)
    return s.min_lr + (s.learning_rate - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# ---- The run -----------------------------------------------------------------------------------------------------

class Stop:
    """Ctrl-C, or the system's wish that this process end (SIGTERM; SIGHUP: the terminal is gone), is noted, and answered
    between two steps or two batches of an evaluation. A second one ends the process at once."""

    def __init__(self):
        self.signal = 0
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):                        # Windows has not all of them
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:     # as nohup does
                signal.signal(getattr(signal, name), self.note)

    def note(self, number, frame):
        if self.signal and WORLD == 1:                                      # torchrun repeats what all have got already
            sys.exit(128 + number)
        self.signal = number
        if number not in (signal.SIGINT, signal.SIGTERM) and sys.stdout.isatty():
            sys.stdout = open(os.devnull, "w")                              # there is nobody to print to


def together(*numbers):
    """Sums over all processes, the same in each: what they do next may depend on nothing else. The others wait here
    while the first one evaluates; the limit is half an hour, and eval_tokens keeps it far away."""
    if WORLD > 1:
        numbers = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(numbers)
    return [float(n) for n in numbers]


def say(line):
    """Print from the first process alone."""
    if RANK == 0:
        print(line, flush=True)


def refuse_to_replace(s):
    """A run goes only if that is asked for."""
    if not s.overwrite and any(os.path.exists(Path(s.out_dir, name)) for name in ("last.pt", "best.pt", "log.jsonl")):
        how = command("python", "train.py", f"--resume={s.out_dir}")
        fail(f"{s.out_dir} holds a run: go on with it ({how}), replace it (--overwrite=1) or use another --out_dir")


def start_or_resume(argv):
    """(settings, contents of last.pt or None). A run that goes on does so as it was started, or longer."""
    s, given = read_settings(argv)
    if not s.resume:
        refuse_to_replace(s)
        return s, None
    path = Path(s.resume) if s.resume.endswith(".pt") else Path(s.resume, "last.pt")
    if RANK == 0 and os.path.isfile(path):
        own(path.parent, "--out_dir")
    last, new = or_fail(load_checkpoint, path)[2], ["python", "train.py", f"--init_from={path}", "--out_dir=NEW"]
    try:
        kinds = dict(iter=int, seconds=float, recent=list, rows=list, optimizers=list, processes=int)
        if wrong := [key for key, kind in kinds.items() if not isinstance(last.get(key), kind)]:
            raise TypeError(f"it has no {wrong[0]}")
        old = replace(Settings(**last["settings"]), out_dir=str(path.parent), resume=str(path.parent))
    except TypeError as e:
        fail(f"{path} is not a checkpoint to go on from ({e}); to begin a new run with its weights: {command(*new)}")
    for name in set(given) - {"resume", "max_iters", "device", "compile", "eval_interval", "log_interval"}:
        if getattr(s, name) != getattr(old, name):
            fail(f"--{name}={getattr(s, name)}: {path.parent} has {getattr(old, name)!r} and goes on as it was started; "
                 f"a new run with its weights: {command(*new, f'--{name}={getattr(s, name)}')}")
    if last["processes"] != WORLD:
        fail(f"{path} is of a run of {last['processes']} processes, this one has {WORLD}: it would be another run")
    stored = [f"--{name}={value}" for name, value in asdict(old).items() if value != ""]
    s, _ = read_settings(stored + [f"--{name}={getattr(s, name)}" for name in given if name != "resume"])
    if s.max_iters < old.max_iters:
        fail(f"--max_iters={s.max_iters} is less than the {old.max_iters} that the learning rate has been planned for")
    if s.max_iters > old.max_iters:
        say(f"the learning rate now falls over {s.max_iters:,} steps, not {old.max_iters:,}: this is another schedule")
    return s, last


class Run:
    """A model in training: what last.pt holds, and what follows from its settings and data."""

    def __init__(self, s, device):
        self.s, self.device, self.out = s, device, Path(s.out_dir)
        self.meta, self.codec, self.data = load(s.dataset)
        T = self.meta.get("length", s.block_size)
        if T > s.block_size:
            fail(f"data/{s.dataset} has rows of {T}, more than --block_size={s.block_size} can see")
        if len(self.data["train"]) <= T and "task" not in self.meta:
            fail(f"data/{s.dataset}: {len(self.data['train']):,} training tokens; --block_size={T} needs one more")
        try:
            self.config = GPTConfig(s.block_size, self.codec.vocab_size, s.n_layer, s.n_head, s.n_embd, s.dropout,
                                    bool(s.lrt), s.lrt_memory_layer, s.lrt_memory_proj)
        except ValueError as e:
            fail(f"--{'lrt_' if str(e).startswith('memory') else ''}{e}")
        torch.manual_seed(s.seed)
        self.model = self.compute = GPT(self.config).to(device)
        self.optimizers = make_optimizers(self.model, s)
        self.iter, self.seconds, self.recent, self.rows = 0, 0.0, [], []    # steps done; losses since a row; the log
        self.lengths, rows = s.row_lengths(T), WORLD * s.batch_size * s.gradient_accumulation_steps
        cost = {n: float(self.flops_of_row(n)) for n in set(self.lengths.tolist())}
        self.tokens = rows * self.lengths.cumsum()                          # after each step
        self.flops = rows * np.cumsum([cost[n] for n in self.lengths.tolist()])
        self.max_iters = int((self.flops <= s.max_flops).sum()) if s.max_flops else s.max_iters
        if self.max_iters < 1:
            fail(f"--max_flops={s.max_flops:g} is less than one step, {self.flops[0]:.3g}")
        self.dtype = s.dtype or ("bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32")

    def flops_of_row(self, T):
        """Of forward and backward, for one row of T; full attention as in SDPA's maths."""
        x = torch.zeros(1, T, dtype=torch.long, device=self.device)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.model(x, x, *self.s.dial())[1].backward()
        self.model.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    def take(self, path, checkpoint, same):
        """Begin with another run's weights, of which missing ones start as usual; or go on, if it is the same run."""
        ours, theirs = (f"--tokenizer={m.get('tokenizer')} of {m.get('source')}" for m in (self.meta, checkpoint["meta"]))
        if any(checkpoint["meta"].get(key) != self.meta[key] for key in ["codec"] + ["sha256"] * same):
            fail(f"{path} was trained on {theirs}, which data/{self.s.dataset} is not: it is {ours}")
        config = GPTConfig(**checkpoint["config"])
        for name in ["n_layer", "n_head", "n_embd"] + ["lrt", "memory_layer", "memory_proj"] * config.lrt:
            if (had := getattr(config, name)) != getattr(self.config, name):
                fail(f"{path} needs --{name.replace('mem', 'lrt_mem')}={int(had) if had is True else had}")
        new = self.model.load_state_dict(checkpoint["model"], strict=False).missing_keys
        if not same:
            return say(f"weights of {path}" + (f"; it has no {', '.join(new)}: these start as usual" if new else ""))
        try:
            for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except Exception as e:      # a hostile file can raise anything at all
            fail(f"{path}: its optimizers are not those of this model ({type(e).__name__})")
        self.iter, self.seconds, self.recent, self.rows = (checkpoint[k] for k in ("iter", "seconds", "recent", "rows"))

    def claim(self):
        """Make out_dir this run's own, empty it of another one, and tell what is going to happen."""
        if not self.s.resume:
            own(self.out, "--out_dir")
            refuse_to_replace(self.s)                                       # again: one may have ended meanwhile
            for name in ("last.pt", "best.pt", "log.jsonl", "by_position.json", "run.json"):
                (self.out / name).unlink(missing_ok=True)
        parameters, (S, K, _) = sum(p.numel() for p in self.model.parameters()), self.s.dial()
        about = {"settings": asdict(self.s), "data": {k: v for k, v in self.meta.items() if k != "codec"},
                 "flops": self.flops[self.max_iters - 1], "parameters": parameters, "processes": WORLD,
                 "torch": torch.__version__, "python": platform.python_version(), "machine": platform.platform()}
        write_atomic(self.out / "run.json", lambda f: f.write(json.dumps(about, indent=1).encode()))
        kind = "plain GPT" if not self.s.lrt else f"LRT, S = {S} subsets, K = {K} sweeps" if S else "LRT, token by token"
        print(f"{kind}: {parameters:,} parameters, {np.diff(self.flops, prepend=0).max() / 1e9:.1f} GFLOP a step, "
              f"{self.device.type}{f' x {WORLD}' if WORLD > 1 else ''} {self.dtype}, torch {torch.__version__}\n"
              f"{self.meta['source']}: {self.data['train'].size:,} training tokens, {self.data['val'].size:,} for validation")

    def clock(self):
        return self.seconds + perf_counter() - self.start

    def save(self, name, **more):
        state = {"model": self.model.state_dict(), "config": asdict(self.config), "settings": asdict(self.s),
                 "meta": self.meta, "iter": self.iter, **more}
        write_atomic(self.out / name, lambda f: torch.save(state, f))

    def save_last(self):
        """last.pt; and the log, in which the losses by position, too long for its rows, have a file of their own."""
        self.saved = perf_counter()
        self.save("last.pt", optimizers=[o.state_dict() for o in self.optimizers], recent=self.recent, rows=self.rows,
                  processes=WORLD, seconds=self.clock())
        rows = [{k: v for k, v in row.items() if k != "exact_by_position"} for row in self.rows]
        positions = {row["iter"]: row["exact_by_position"] for row in self.rows}
        write_atomic(self.out / "log.jsonl", lambda f: f.writelines(json.dumps(row).encode() + b"\n" for row in rows),
                     self.out / "by_position.json", lambda f: f.write(json.dumps(positions).encode()))

    def step(self):
        """Forward, backward, update. Returns the loss."""
        s, step, total = self.s, self.iter, 0.0
        torch.manual_seed((s.seed * 1_000_003 + step) * WORLD + RANK)       # for dropout
        self.model.train()
        for part in range(s.gradient_accumulation_steps):
            x, y = batch(self.data, s, int(self.lengths[step]), step, part, self.device)
            last_part = part == s.gradient_accumulation_steps - 1           # only then do processes exchange gradients
            with nullcontext() if WORLD == 1 or last_part else self.compute.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                    loss = self.compute(x, y, *s.dial())[1] / s.gradient_accumulation_steps
                loss.backward()
            total += loss.item()
        if s.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.grad_clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.max_iters, s) * group.get("scale", 1.0)
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.iter += 1
        return total

    def must_be_finite(self, loss, what):
        if not math.isfinite(loss):
            saved = "last.pt is of an earlier one" if (self.out / "last.pt").exists() else "nothing was saved yet"
            fail(f"{what} is {loss} in step {self.iter:,}; {saved}. Try a smaller --learning_rate")

    def validate(self, stop):
        """Evaluate: a row of the log, and the checkpoints. Or nothing, if told to stop meanwhile."""
        try:
            found = evaluate(self.model, self.s, self.codec, self.data, stop)
        except SystemExit:
            return
        self.must_be_finite(found["val_loss_exact"], "the validation loss")
        n, lengths = self.iter, {}
        if "task" in self.meta:
            lengths = {"accuracy_by_length": accuracy_by_length(self.model, self.meta, (self.s.seed, n))}
        row = {"iter": n, "tokens": int(self.tokens[n - 1]), "flops": float(self.flops[n - 1]),
               "seconds": round(self.clock(), 1), "train_loss": round(float(np.mean(self.recent)), 6), **found, **lengths}
        self.rows, self.recent = [*self.rows, row], []
        print(f"step {n:6,} validation: {results(row, self.s)} ({row['val_tokens']:,} tokens)", flush=True)
        if row is min(self.rows, key=badness):
            self.save("best.pt")
        self.save_last()


def results(row, s):
    """The numbers of an evaluation in words."""
    both = lambda key, form: f"{row[f'{key}_exact']:{form}}" + \
        (f", training graph {row[key]:{form}}" if s.lrt and s.dial()[0] else "")
    line = f"exact {both('val_loss', '.4f')} nats/token; "
    if "val_bpb_exact" in row:
        return line + f"{row['val_bpb_exact']:.4f} bits/byte"
    by_length = ", ".join(f"{length}: {share:.1%}" for length, share in row["accuracy_by_length"].items())
    return line + f"right {both('val_accuracy', '.1%')}; last tenth of {by_length}"


def seconds_of_evaluation(run, graph):
    """An estimate: of more and more of its tokens, until that takes a moment."""
    few, size = 256, min(run.data["val"].size, run.s.eval_tokens)
    new = 4096 * run.meta["length"] if graph and "task" in run.meta else 0          # tokens of accuracy_by_length
    while True:
        few, start = 4 * few, perf_counter()
        evaluate(run.model, replace(run.s, eval_tokens=few), run.codec, run.data, graph=graph)
        if few >= size or perf_counter() - start > 0.3:
            return (perf_counter() - start) * (size + new) / min(few, size)


def train(run, stop):
    """Steps and evaluations, until all processes agree that it is enough."""
    s, end, stopping, evaluated = run.s, run.max_iters, 0, run.rows[-1]["iter"] if run.rows else 0
    said = run.start = run.saved = perf_counter()
    evaluation, report = ((seconds_of_evaluation(run, graph) if RANK == 0 else 1.0) for graph in (True, False))
    since, at, losses, wait = perf_counter(), run.iter, [], 2               # of the next line of progress
    while not stopping:
        if run.iter > evaluated and (run.iter % s.eval_interval == 0 or run.iter == end):
            start, evaluated = perf_counter(), run.iter
            if evaluation > 5 and not sys.stdout.isatty():
                say(f"evaluating, for about {evaluation:.0f} s ...")
            if RANK == 0:
                run.validate(stop)
            stopping = together(stop.signal)[0]
            report, evaluation = report * (perf_counter() - start) / evaluation, perf_counter() - start
            since, at, losses = perf_counter(), run.iter, []
        elif run.iter == end:
            return
        else:
            loss, stopping = together(run.step() / WORLD, stop.signal)
            run.must_be_finite(loss, "the training loss")
            run.recent.append(loss)
            losses.append(loss)
            n, now = run.iter, perf_counter()
            if n % s.log_interval == 0 or n == end or now - said > wait:
                speed = run.tokens[at:n].size and (run.tokens[n - 1] - (run.tokens[at - 1] if at else 0)) / (now - since)
                left = (run.tokens[end - 1] - run.tokens[n - 1]) / speed + evaluation * (
                    -(-end // s.eval_interval) - (n - 1) // s.eval_interval) + (report if s.lrt else 0)
                say(f"step {n:6,}/{end:,} {n / end:4.0%}  loss{' over all passes' if s.lrt and s.dial()[0] else ''} "
                    f"{np.mean(losses):.4f}  {speed:8,.0f} tokens/s  {left:4.0f} s left")
                since, at, losses, said, wait = now, n, [], now, 15
            elif wait == 2 and len(losses) == 1:                            # the very first step takes longer
                since, at = now, n
            if RANK == 0 and now - run.saved > SAVE_SECONDS:
                run.save_last()
    if RANK == 0:
        run.save_last()
    again = ["python"] if WORLD == 1 else ["torchrun", "--standalone", f"--nproc_per_node={WORLD}"]
    say(f"\nstopped after step {run.iter:,}; go on with: {command(*again, 'train.py', f'--resume={run.out}')}")
    sys.exit(128 + (stop.signal or signal.SIGINT))


def report(run, stop):
    """The final table, and what the best checkpoint says."""
    s, task, best, last = run.s, "task" in run.meta, min(run.rows, key=badness), run.rows[-1]
    second, graph = "val_accuracy" if task else "val_bpb", s.lrt and s.dial()[0]

    def line(name, row, end="_exact"):
        value = f"{row[second + end]:12.4f}" if second + end in row else " " * 12
        when = f"{row['iter']:9,}{row['seconds']:9.0f}" if "iter" in row else ""
        print(f"{name:28}{row['val_loss' + end]:12.4f}{value}{when}")

    print(f"\n{'':28}{'nats/token':>12}{'accuracy' if task else 'bits/byte':>12}{'step':>9}{'seconds':>9}")
    line("validation, exact decoding" if s.lrt else "validation", best)
    if graph:
        line("  on the training graph", best, "")
    model, codec, _ = or_fail(load_checkpoint, run.out / "best.pt", run.device)
    if s.lrt:
        held = or_fail(load_checkpoint, run.out / "best.pt", run.device)[0]
        hold_latent_at_zero(held)
        line("  exact, latent held at 0", evaluate(held, s, codec, run.data, stop, graph=False))
    if best is not last:
        line("  at the last step", last)
    if graph:
        print(verdict(best))
    if task:
        at_4 = list(best["accuracy_by_length"].values())[2]
        print(f"\n{'exact accuracy at length':28}" + "".join(f"{n:>9}" for n in best["accuracy_by_length"]))
        print(f"{'  over the last tenth':28}" + "".join(f"{v:9.2%}" for v in best["accuracy_by_length"].values()))
        if best["val_accuracy"] > 0.95 and at_4 < 0.9:
            print(f"SOLVED FOR THE TRAINED LENGTH ONLY: right {best['val_accuracy']:.1%} on the training graph, {at_4:.1%} "
                  f"at 4 times the length; {'' if s.lrt else '--lrt=1 '}--lrt_mode=sequential trains what decoding does")
    print("\n$", command("python", "sample.py", f"--out_dir={run.out}", *["--prompt=1 0 1 1"] * task))
    if task:
        print(answers(model, codec, codec.encode("1 0 1 1")))
    else:
        stream(model, codec, codec.start(), 400, 0.8, 200, torch.Generator(run.device).manual_seed(s.seed))


@script
def main(argv):
    s, last = start_or_resume(argv)
    own_gpu = WORLD > 1 and s.device in ("", "cuda") and torch.cuda.is_available()
    device = or_fail(find_device, f"cuda:{os.environ['LOCAL_RANK']}" if own_gpu else s.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")                          # TF32
    run = Run(s, device)
    if last or s.init_from:
        run.take(s.resume or s.init_from, last or or_fail(load_checkpoint, s.init_from)[2], bool(last))
    if RANK == 0:
        run.claim()
    if run.rows and run.iter == run.max_iters == run.rows[-1]["iter"]:
        say(f"{run.out} is finished; to go on: {command('python', 'train.py', f'--resume={run.out}')} --max_iters=N, with N "
            f"above {run.iter}; a new run with its weights: --init_from")
    if s.compile == 1 or (s.compile == -1 and device.type == "cuda" and s.dial()[0]):
        say("compiling, a minute or so ...")
        run.compute = torch.compile(run.compute)
    if WORLD > 1:       # what they agree on goes over gloo, on GPUs, too
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        run.compute = DistributedDataParallel(run.compute)
    stop = Stop()
    train(run, stop)
    if RANK == 0:
        report(run, stop)
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
