"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h lists all settings)
On several processes or machines:  torchrun --standalone --nproc_per_node=2 train.py --lrt=1

Writes into out_dir: last.pt, to go on from; best.pt, of least exact loss; log.jsonl, a row per evaluation;
by_position.json, the exact losses at each position, by step; run.json, settings and versions.
"""
import json
import math
import os
import platform
import signal
import sys
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
SAVE_SECONDS = 60               # from one last.pt to the next, evaluation or not
BIG = 10 ** 9


@dataclass
class Settings:
    dataset: str = option("shakespeare", "in data/; parity and swaps are tasks with their own settings")
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
    lrt_mode: str = option("parallel", "the dial, or token by token: exact, slow", ["parallel", "sequential"])
    lrt_subsets: int = option(2, "S: interleaved subsets of the positions; S = block_size is exact", (1, BIG))
    lrt_sweeps: int = option(1, "K: how often each subset is recomputed", (1, BIG))
    lrt_loss_weights: str = option("", "K + 1 numbers: pass 0, sweep 1 .. K (default: each pass alike)")
    lrt_memory_layer: int = option(-1, "layer whose output is the memory, 1 .. L; -1: the last")
    lrt_memory_proj: str = option("shared", "one projection for all layers, or each", ["shared", "layerwise"])
    # training
    batch_size: int = option(8, "rows in a batch of each process; Muon gains more from steps", (1, BIG))
    gradient_accumulation_steps: int = option(1, "batches in a step, for more rows than memory", (1, BIG))
    max_iters: int = option(1750, "steps", (1, 10 ** 7))
    max_flops: float = option(0.0, "end where a step would go over this compute (0: no limit)", (0, 1e30))
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
    dtype: str = option("", "(default: bfloat16 on a GPU that has it)", ["", "float32", "bfloat16"])
    compile: int = option(-1, "torch.compile (default: on cuda; on a CPU, try it)", [-1, 0, 1])

    def dial(self):
        """(S, or None for token by token; K; loss weights), for the model. Raises ValueError if wrong."""
        w = [float(number) for number in self.lrt_loss_weights.split(",")] if self.lrt_loss_weights else None
        if w and not (len(w) == self.lrt_sweeps + 1 and math.isfinite(sum(w)) and w[-1]):
            raise ValueError(self.lrt_loss_weights)
        exact = self.lrt and self.lrt_mode == "sequential"
        return None if exact else self.lrt_subsets, self.lrt_sweeps, w

    def row_lengths(self, T):
        """Of the rows in each step, at most T. ValueError unless the curriculum is like 4:100,8:100."""
        lengths, start = np.full(self.max_iters, T), 0
        for stage in filter(None, self.curriculum.split(",")):
            length, steps = map(int, stage.split(":"))
            if min(length, steps) < 1:
                raise ValueError(stage)
            lengths[start:start + steps] = min(length, T)
            start += steps
        return lengths


# What a task is trained with unless told otherwise. Attention sees no more than the rows it learned on.
TASK = dict(block_size=32, batch_size=64, learning_rate=8e-3, warmup_iters=20)
TASKS = {"parity": dict(TASK, max_iters=150, eval_interval=50, log_interval=25),
         "swaps": dict(TASK, max_iters=600, eval_interval=200, curriculum="4:100,8:100,16:100")}


def read_settings(argv):
    """(Settings, names of those on the command line), which do not contradict each other."""
    s, given = parse(Settings, __doc__, argv)
    s, given = parse(Settings, __doc__, argv, **TASKS.get(s.dataset, {}))
    refuse = lambda name, why: fail(f"--{name}={getattr(s, name)}: {why}")
    changed = [f.name for f in fields(s) if getattr(s, f.name) != f.default]
    for name in changed:
        if name.startswith("lrt_") and not s.lrt:
            refuse(name, "a plain GPT has no such thing; add --lrt=1")
        if name in ("lrt_subsets", "lrt_sweeps", "lrt_loss_weights") and s.lrt_mode == "sequential":
            refuse(name, "has no meaning with --lrt_mode=sequential, which is exact already")
    if 0 < s.block_size < s.lrt_subsets and "lrt_subsets" in changed:
        refuse("lrt_subsets", f"more than --block_size={s.block_size}, which is exact already")
    if s.min_lr > s.learning_rate:
        refuse("min_lr", f"more than --learning_rate={s.learning_rate}")
    for name, check, form in (("lrt_loss_weights", s.dial, f"{s.lrt_sweeps + 1} numbers, the last one not 0"),
                              ("curriculum", lambda: s.row_lengths(1), "lengths and steps: 4:100,8:100")):
        try:
            check()
        except ValueError:
            refuse(name, f"must be {form}")
    for name in {"out_dir", "resume", "init_from"} & set(given):
        setattr(s, name, getattr(s, name) and str(Path(getattr(s, name)).expanduser()))
        getattr(s, name) or refuse(name, "give a folder")
    return s, given


# ---- Data: what a step sees depends on (seed, step) alone, so a run can stop and go on anywhere ------------

def batch(data, s, T, step, part, device):
    """Inputs and targets (B, T) for one part (of gradient accumulation) of a step: text from random places,
    or random rows of a task, cut to T. Several processes share what one with as many more rows would draw."""
    rng = np.random.default_rng((s.seed, step, part))
    places = len(data["train"]) - (0 if "train_y" in data else T)
    return rows_at(data, "train", rng.integers(places, size=WORLD * s.batch_size)[RANK::WORLD], T, device)


def rows_at(data, split, places, T, device):
    """T tokens of text from these places on, and the next ones; or rows of a task: (inputs, targets)."""
    if f"{split}_y" in data:
        x, y = data[split][places, :T], data[f"{split}_y"][places, :T]
    else:
        rows = data[split][places[:, None] + np.arange(T + 1)]
        x, y = rows[:, :-1], rows[:, 1:]
    return tuple(torch.from_numpy(part.astype(np.int64)).to(device) for part in (x, y))


def windows(data, T, most, vocab_size, device):
    """The validation split in order, as batches of rows of T; of text, also the shorter last row. Of more
    than `most` tokens, that many, spread evenly. Logits of a batch take 256 MB at most, or are of one row."""
    task, val = "val_y" in data, data["val"]
    count, rest = (len(val), 0) if task else divmod(len(val) - 1, T)
    some = count if count * T + rest <= most else max(1, min(count, most // T))
    size = 256 if task else max(1, min(1 << 14, (1 << 26) // vocab_size) // T)
    for first in range(0, some, size):
        rows = np.arange(first, min(first + size, some)) * count // some
        yield rows_at(data, "val", rows if task else rows * T, T, device)
    if rest and some == count:
        yield rows_at(data, "val", np.array([count * T]), rest, device)


# ---- Evaluation -------------------------------------------------------------------------------------------

def scores(model, x, y, S=None, K=1):
    """Of every target its cross-entropy, in nats, and whether it was the likeliest: (2, B, T), on the CPU."""
    logits = (model(x, None, S, K) if S else model.forward_sequential(x))[0]
    nll = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    return torch.stack([nll, (logits.argmax(-1) == y).to(nll)]).cpu().double()


@torch.no_grad()
def evaluate(model, s, codec, data, stop=None, graph=True):
    """Exact loss, and accuracy (of a task) or bits per byte (of text), over the validation split; with graph,
    also those of the training graph after its last sweep. Draws no random numbers. With stop, shows progress
    on a terminal, and exits between two batches if told to stop."""
    model.eval()
    (S, K, _), task, device = s.dial(), "val_y" in data, model.embed.weight.device
    T, size = data["val"].shape[1] if task else s.block_size, min(data["val"].size, s.eval_tokens)
    n_bytes = torch.tensor([len(b) for b in codec.token_bytes], device=device)
    at, shown, n, bytes = torch.zeros(3, T, dtype=torch.float64), 0, 0, 0
    for x, y in windows(data, T, s.eval_tokens, codec.vocab_size, device):
        if stop and stop.signal:
            sys.exit(128 + stop.signal)
        if stop and sys.stdout.isatty():
            print(f"evaluating {n / size:4.0%}", end="\r", flush=True)
        exact = scores(model, x, y, None if s.lrt else 1)           # a plain GPT has one way of computing
        at[:, :x.size(1)] += torch.cat([exact.sum(1), torch.full((1, x.size(1)), len(x))])
        shown = shown + (scores(model, x, y, S, K) if s.lrt and S and graph else exact).sum((1, 2))
        n, bytes = n + y.numel(), bytes + n_bytes[y].sum().item()
    nll, right, count = at
    row = {"val_loss": shown[0] / n, "val_loss_exact": nll.sum() / n}
    row |= {"val_accuracy": shown[1] / n, "val_accuracy_exact": right.sum() / n} if task else \
        {"val_bpb_exact": nll.sum() / math.log(2) / bytes}
    return {**{name: round(value.item(), 6) for name, value in row.items()}, "val_tokens": n,
            "exact_by_position": [round(v, 4) for v in (nll / count.clamp(min=1)).tolist()]}


@torch.no_grad()
def accuracy_by_length(model, meta, seed, rows=256):
    """{n: exact accuracy over the last tenth of n} for 1 to 16 times the trained length, in new rows."""
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


# ---- Optimizers --------------------------------------------------------------------------------------------

def orthogonalize(X):
    """Newton-Schulz: five times a X + b (X Xᵀ) X + c (X Xᵀ)² X takes singular values to about 1 (0.7 to 1.2).
    X (n, rows, columns), rows <= columns -> the same. In float32 on a CPU: in bfloat16, torch's Muon took
    518 to 709 ms of a step on one without AVX-512, this one 34."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = X.bfloat16() if X.is_cuda else X.float()
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    polynomial = lambda A: torch.baddbmm(A, A, A, beta=b, alpha=c)
    if X.is_cuda or X.size(2) < 2 * X.size(1):
        for _ in range(5):
            X = torch.baddbmm(X, polynomial(X @ X.mT), X, beta=a)
        return X
    A, I = X @ X.mT, a * torch.eye(X.size(1), device=X.device)
    P = Q = I + polynomial(A)                   # long rows: the same polynomials, on the short sides alone
    for _ in range(4):
        A = P @ A @ P
        P = I + polynomial(A)
        Q = P @ Q
    return Q @ X


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for hidden matrices (Keller Jordan, kellerjordan.github.io/posts/muon), as
    large as AdamW's updates (arXiv:2502.16982). It is torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), but
    matrices of one shape, or of its transpose, are stacked; the first of each stack has its state."""

    def __init__(self, matrices, lr=1e-3, momentum=0.85, weight_decay=0.1):
        stacks = {}
        for p in matrices:
            stacks.setdefault(tuple(sorted(p.shape)), []).append(p)
        super().__init__([{"params": stack} for stack in stacks.values()],
                         dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, momentum = group["params"], group["lr"], group["momentum"]
            wide = lambda x: x if x.size(0) <= x.size(1) else x.mT
            grad, state = torch.stack([wide(p.grad) for p in params]), self.state[params[0]]
            average = state.setdefault("momentum", torch.zeros_like(grad)).lerp_(grad, 1 - momentum)
            size = -lr * 0.2 * max(params[0].shape) ** 0.5
            for p, update in zip(params, orthogonalize(grad.lerp(average, momentum)).to(grad)):
                wide(p).mul_(1 - lr * group["weight_decay"]).add_(update, alpha=size)


def make_optimizers(model, s):
    """Muon for hidden matrices, AdamW for the others: at 3 times the learning rate, but for the head."""
    head, fast = model.head.weight, [model.embed.weight, *(p for p in model.parameters() if p.ndim < 2)]
    matrices = [p for p in model.parameters() if not any(p is q for q in (head, *fast))]
    return [Muon(matrices, weight_decay=s.weight_decay),
            torch.optim.AdamW([{"params": fast, "scale": 3.0}, {"params": [head]}], betas=(0.9, 0.95),
                              eps=1e-10, weight_decay=0.0, fused=head.device.type in ("cpu", "cuda"))]


def learning_rate(step, max_iters, s):
    """Linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    progress = (step - s.warmup_iters) / max(1, max_iters - s.warmup_iters)
    return s.min_lr + (s.learning_rate - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# ---- Going on, stopping, several processes ---------------------------------------------------------------

def refuse_to_replace(s):
    """A run goes only if that is asked for."""
    if not s.overwrite and any(os.path.exists(Path(s.out_dir, name)) for name in ("last.pt", "best.pt")):
        how = command("python", "train.py", f"--resume={s.out_dir}")
        fail(f"{s.out_dir} holds a run: go on with it ({how}), or replace it (--overwrite=1)")


def start_or_resume(argv):
    """(settings, contents of last.pt or None). A run that goes on does so as it was started, or longer."""
    s, given = read_settings(argv)
    if not s.resume:
        refuse_to_replace(s)
        return s, None
    path = Path(s.resume) if s.resume.endswith(".pt") else Path(s.resume, "last.pt")
    if RANK == 0 and os.path.isfile(path):
        own(path.parent, "--out_dir")
    last = or_fail(load_checkpoint, path)[2]
    new = "python", "train.py", f"--init_from={path}", "--out_dir=NEW"
    try:
        kinds = dict(iter=int, seconds=float, recent=list, rows=list, optimizers=list, processes=int)
        if wrong := [key for key, kind in kinds.items() if not isinstance(last.get(key), kind)]:
            raise TypeError(f"it has no {wrong[0]}")
        old = replace(Settings(**last["settings"]), out_dir=str(path.parent), resume=str(path.parent))
    except TypeError as e:
        fail(f"{path} is nothing to go on from ({e}); to begin a new run with its weights: {command(*new)}")
    for name in set(given) - {"resume", "max_iters", "device", "compile", "eval_interval", "log_interval"}:
        if getattr(s, name) != getattr(old, name):
            flag = f"--{name}={getattr(s, name)}"
            fail(f"{flag}: that run has {getattr(old, name)!r}, and goes on as it was started; a new run "
                 f"with its weights: {command(*new, flag)}")
    if last["processes"] != WORLD:
        fail(f"{path} is of a run of {last['processes']} processes, this one has {WORLD}: another run")
    both = {**asdict(old), **{name: getattr(s, name) for name in given if name != "resume"}}
    s, _ = read_settings([f"--{name}={value}" for name, value in both.items() if value != ""])
    if s.max_iters < old.max_iters:
        fail(f"--max_iters={s.max_iters} is less than {old.max_iters}, which the learning rate is made for")
    if s.max_iters > old.max_iters:
        say(f"the learning rate now falls over {s.max_iters:,} steps, not {old.max_iters:,}: another plan")
    return s, last


class Stop:
    """Ctrl-C, or the system's wish that this process end (SIGTERM; SIGHUP: the terminal is gone), is noted
    and answered between two steps or two batches of an evaluation. A second one ends the process at once."""

    def __init__(self):
        self.signal = 0
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):                # no SIGHUP on Windows; nohup ignores it
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
                signal.signal(getattr(signal, name), self.note)

    def note(self, number, frame):
        if self.signal and WORLD == 1:                                  # torchrun repeats what all have got
            sys.exit(128 + number)
        self.signal = number
        if number not in (signal.SIGINT, signal.SIGTERM) and sys.stdout.isatty():
            sys.stdout = open(os.devnull, "w")                          # there is nobody to print to


def together(*numbers):
    """Sums over all processes, the same in each: what they do next may depend on nothing else. The others
    wait here while the first one evaluates: for half an hour at most, and eval_tokens keeps that far away."""
    if WORLD > 1:
        numbers = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(numbers)
    return [float(n) for n in numbers]


def say(line):
    """Print from the first process alone."""
    if RANK == 0:
        print(line, flush=True)


# ---- The run ---------------------------------------------------------------------------------------------

class Run:
    """A model in training: what last.pt holds, and what follows from its settings and data."""

    def __init__(self, s, device):
        self.s, self.device, self.out = s, device, Path(s.out_dir)
        self.meta, self.codec, self.data = load(s.dataset)
        T = self.meta.get("length", s.block_size)
        if T > s.block_size:
            fail(f"data/{s.dataset} has rows of {T}, more than --block_size={s.block_size} can see")
        if len(self.data["train"]) <= T and "task" not in self.meta:
            fail(f"data/{s.dataset}: {len(self.data['train'])} training tokens; --block_size={T} is too long")
        try:
            self.config = GPTConfig(s.block_size, self.codec.vocab_size, s.n_layer, s.n_head, s.n_embd,
                                    s.dropout, bool(s.lrt), s.lrt_memory_layer, s.lrt_memory_proj)
        except ValueError as e:
            fail(f"--{'lrt_' if str(e).startswith('memory') else ''}{e}")
        torch.manual_seed(s.seed)
        self.model = self.compute = GPT(self.config).to(device)
        self.optimizers = make_optimizers(self.model, s)
        self.iter, self.seconds, self.recent, self.rows = 0, 0.0, [], []    # steps; losses since a row; log
        self.lengths, rows = s.row_lengths(T), WORLD * s.batch_size * s.gradient_accumulation_steps
        cost = {n: float(self.flops_of_row(n)) for n in set(self.lengths.tolist())}
        self.tokens = rows * self.lengths.cumsum()                          # after each step
        self.flops = rows * np.cumsum([cost[n] for n in self.lengths.tolist()])
        self.max_iters = int((self.flops <= s.max_flops).sum()) if s.max_flops else s.max_iters
        if self.max_iters < 1:
            fail(f"--max_flops={s.max_flops:g} is less than one step, {self.flops[0]:.3g}")
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = s.dtype or ("bfloat16" if half else "float32")

    def flops_of_row(self, T):
        """Of forward and backward, for one row of T; full attention as in SDPA's maths."""
        x = torch.zeros(1, T, dtype=torch.long, device=self.device)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.model(x, x, *self.s.dial())[1].backward()
        self.model.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    def take(self, path, checkpoint, same):
        """Begin with another run's weights, of which missing ones start as usual; or, the same run, go on."""
        meta = checkpoint["meta"]
        if any(meta.get(key) != self.meta[key] for key in ["codec"] + ["sha256"] * same):
            fail(f"{path} was trained on --tokenizer={meta.get('tokenizer')} of {meta.get('source')}; data/"
                 f"{self.s.dataset} is --tokenizer={self.meta['tokenizer']} of {self.meta['source']}")
        config = GPTConfig(**checkpoint["config"])
        for name in ["n_layer", "n_head", "n_embd"] + ["lrt", "memory_layer", "memory_proj"] * config.lrt:
            if (had := getattr(config, name)) != getattr(self.config, name):
                fail(f"{path} needs --{name.replace('mem', 'lrt_mem')}={int(had) if had is True else had}")
        new = self.model.load_state_dict(checkpoint["model"], strict=False).missing_keys
        if not same:
            return say(f"weights of {path}" + (f"; starting as usual: {', '.join(new)}" if new else ""))
        try:
            for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except Exception as e:      # a hostile file can raise anything at all
            fail(f"{path}: its optimizers are not those of this model ({type(e).__name__})")
        for name in ("iter", "seconds", "recent", "rows"):
            setattr(self, name, checkpoint[name])

    def claim(self):
        """Make out_dir this run's own, empty it of another one, and tell what is going to happen."""
        s, (S, K, _) = self.s, self.s.dial()
        if not s.resume:
            own(self.out, "--out_dir")
            refuse_to_replace(s)                                            # one may have ended meanwhile
            for name in ("last.pt", "best.pt", "log.jsonl", "by_position.json", "run.json"):
                (self.out / name).unlink(missing_ok=True)
        about = {"settings": asdict(s), "data": {k: v for k, v in self.meta.items() if k != "codec"},
                 "flops": self.flops[self.max_iters - 1], "processes": WORLD, "torch": torch.__version__,
                 "parameters": sum(p.numel() for p in self.model.parameters()),
                 "python": platform.python_version(), "machine": platform.platform()}
        write_atomic(self.out / "run.json", lambda f: f.write(json.dumps(about, indent=1).encode()))
        kind = f"LRT, S = {S} subsets, K = {K} sweeps" if S else "LRT, token by token"
        gflop, sizes = np.diff(self.flops, prepend=0).max() / 1e9, {k: v.size for k, v in self.data.items()}
        say(f"{kind if s.lrt else 'plain GPT'}: {about['parameters']:,} parameters, {gflop:.1f} GFLOP a step,"
            f" {self.device.type}{f' x {WORLD}' * (WORLD > 1)} {self.dtype}, torch {torch.__version__}\n"
            f"{self.meta['source']}: {sizes['train']:,} training tokens, {sizes['val']:,} for validation")

    def save(self, name, **more):
        state = {"model": self.model.state_dict(), "config": asdict(self.config), "settings": asdict(self.s),
                 "meta": self.meta, "iter": self.iter, **more}
        write_atomic(self.out / name, lambda f: torch.save(state, f))

    def save_last(self):
        """last.pt; and the log, whose losses by position, too long for a line, have a file of their own."""
        self.saved = perf_counter()
        self.save("last.pt", optimizers=[o.state_dict() for o in self.optimizers], processes=WORLD,
                  rows=self.rows, recent=self.recent, seconds=self.seconds + self.saved - self.start)
        rows = [{k: v for k, v in row.items() if k != "exact_by_position"} for row in self.rows]
        at = {row["iter"]: row["exact_by_position"] for row in self.rows}
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write_atomic(self.out / "log.jsonl", lambda f: f.write(lines),
                     self.out / "by_position.json", lambda f: f.write(json.dumps(at).encode()))

    def step(self):
        """Forward, backward, update. Returns the loss."""
        s, step, total = self.s, self.iter, 0.0
        torch.manual_seed((s.seed * 1_000_003 + step) * WORLD + RANK)       # for dropout
        self.model.train()
        for part in range(s.gradient_accumulation_steps):
            x, y = batch(self.data, s, int(self.lengths[step]), step, part, self.device)
            last_part = part == s.gradient_accumulation_steps - 1       # processes exchange gradients
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
            saved = "last.pt is earlier" if os.path.exists(self.out / "last.pt") else "nothing was saved yet"
            fail(f"{what} is {loss} in step {self.iter:,}; {saved}. Try a smaller --learning_rate")

    def validate(self, stop):
        """Evaluate: a row of the log, and the checkpoints. Or nothing, if told to stop meanwhile."""
        try:
            found = evaluate(self.model, self.s, self.codec, self.data, stop)
        except SystemExit:
            return
        self.must_be_finite(found["val_loss_exact"], "the validation loss")
        n, seconds = self.iter, self.seconds + perf_counter() - self.start
        if "task" in self.meta:
            found["accuracy_by_length"] = accuracy_by_length(self.model, self.meta, (self.s.seed, n))
        row = {"iter": n, "tokens": int(self.tokens[n - 1]), "flops": float(self.flops[n - 1]),
               "seconds": round(seconds, 1), "train_loss": round(float(np.mean(self.recent)), 6), **found}
        self.rows, self.recent = [*self.rows, row], []
        say(f"step {n:6,} validation: exact {in_words(row, self.s)} ({row['val_tokens']:,} tokens)")
        if row is min(self.rows, key=badness):
            self.save("best.pt")
        self.save_last()


def in_words(row, s):
    """The numbers of an evaluation; those of the training graph where it is not the exact one."""
    graph = lambda key, form: f" ({row[key]:{form}} on the training graph)" if s.lrt and s.dial()[0] else ""
    line = f"{row['val_loss_exact']:.4f} nats/token{graph('val_loss', '.4f')}, "
    if "val_bpb_exact" in row:
        return line + f"{row['val_bpb_exact']:.4f} bits/byte"
    shares = ", ".join(f"{n}: {share:.1%}" for n, share in row.get("accuracy_by_length", {}).items())
    return line + f"{row['val_accuracy_exact']:.1%} right{graph('val_accuracy', '.1%')}" + \
        f"; last tenth of {shares}" * bool(shares)


def seconds_of_evaluation(run, graph):
    """An estimate: of more and more of its tokens, until that takes a moment."""
    few, size = 256, min(run.data["val"].size, run.s.eval_tokens)
    new = 4096 * run.meta["length"] if graph and "task" in run.meta else 0      # tokens of accuracy_by_length
    while True:
        few, start = 4 * few, perf_counter()
        evaluate(run.model, replace(run.s, eval_tokens=few), run.codec, run.data, graph=graph)
        if few >= size or perf_counter() - start > 0.3:
            return (perf_counter() - start) * (size + new) / min(few, size)


def train(run, stop):
    """Steps and evaluations, until the last one, or until all processes agree to stop."""
    s, end, tokens, stopping = run.s, run.max_iters, np.concatenate([[0], run.tokens]), 0
    said = run.start = run.saved = perf_counter()
    evaluation, report = (seconds_of_evaluation(run, graph) if RANK == 0 else 1.0 for graph in (True, False))
    since, at, losses, quiet = perf_counter(), run.iter, [], 2              # of the next line of progress
    evaluated, spent, done = run.rows[-1]["iter"] if run.rows else 0, 0.0, 0
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
            if n % s.log_interval == 0 or n == end or now - said > quiet:
                speed = (tokens[n] - tokens[at]) / (now - since)
                spent, done = spent + now - since, done + tokens[n] - tokens[at]
                evaluations = -(-end // s.eval_interval) - (n - 1) // s.eval_interval
                left = (tokens[end] - tokens[n]) * spent / done + evaluations * evaluation + report * s.lrt
                name = "loss over all passes" if s.lrt and s.dial()[0] else "loss"
                say(f"step {n:6,}/{end:,} {n / end:4.0%}  {name} {np.mean(losses):.4f}  "
                    f"{speed:8,.0f} tokens/s  {left:4.0f} s left")
                since, at, losses, said, quiet = now, n, [], now, 15
            elif quiet == 2 and len(losses) == 1:                           # the very first step takes longer
                since, at = now, n
            if RANK == 0 and now - run.saved > SAVE_SECONDS:
                run.save_last()
    if RANK == 0:
        run.save_last()
    start = ["python"] if WORLD == 1 else ["torchrun", "--standalone", f"--nproc_per_node={WORLD}"]
    again = command(*start, "train.py", f"--resume={run.out}")
    say(f"\nstopped after step {run.iter:,}; go on with: {again}")
    sys.exit(128 + (stop.signal or signal.SIGINT))


def report(run, stop):
    """The results, and what the best checkpoint says."""
    s, task, best, last = run.s, "task" in run.meta, min(run.rows, key=badness), run.rows[-1]
    model, codec, _ = or_fail(load_checkpoint, run.out / "best.pt", run.device)
    for name, row in {"best": best, "last": last}.items() if best is not last else [("result", best)]:
        print(f"\n{name}, step {row['iter']:,}, {row['seconds']:,.0f} s: exact {in_words(row, s)}")
    if s.lrt:
        held = or_fail(load_checkpoint, run.out / "best.pt", run.device)[0]
        hold_latent_at_zero(held)
        found = evaluate(held, s, codec, run.data, stop, graph=False)
        print(f"latent held at 0: {in_words(found, replace(s, lrt=0))}")
    if s.lrt and s.dial()[0]:
        print(verdict(best))
    if task and best["val_accuracy"] > 0.95 and (at_4 := list(best["accuracy_by_length"].values())[2]) < 0.9:
        print(f"SOLVED FOR THE TRAINED LENGTH ONLY: right {best['val_accuracy']:.1%} on the training graph, "
              f"{at_4:.1%} at 4 times the length when it decodes; {'' if s.lrt else '--lrt=1 '}"
              "--lrt_mode=sequential trains that")
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
        how = command("python", "train.py", f"--resume={run.out}", f"--max_iters={2 * run.iter}")
        say(f"{run.out} is finished; to go on: {how}; to begin a new run with its weights: --init_from")
    if s.compile == 1 or (s.compile == -1 and device.type == "cuda" and s.dial()[0]):
        say("compiling, a minute or so ...")
        run.compute = torch.compile(run.compute)
    if WORLD > 1:       # what they agree on goes over gloo, on GPUs, too
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
        run.compute = DistributedDataParallel(run.compute)
    stop = Stop()
    train(run, stop)
    if RANK == 0:
        report(run, stop)
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
