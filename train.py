"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h: all settings)
On several processes or machines:  torchrun --standalone --nproc_per_node=2 train.py --lrt=1
Writes into out_dir: last.pt, to go on from; best.pt, of least exact loss; log.jsonl, a row for each
evaluation; steps.csv, a row each log_interval; run.json. The loop is train()."""
import math
import os
import re
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import prepare_data
import sample
from lrt import GPT, GPTConfig
from support.checkpoint import find_checkpoint, find_device, find_dtype, load_checkpoint
from support.going_on import (old_settings, refuse_other_data, refuse_other_model, row_of_best,
                              settings_to_go_on, take_over)
from support.optimizer import make_optimizers
from support.options import MAX_SEED, option, typed
from support.plan import Pace, Plan
from support.processes import device_name, joined, keep_gradients, who_am_i
from support.run_folder import RunFolder
from support.script import Unusable, command, on_terminal, say, script, warn
from support.stopping import Stop

SAVE_SECONDS = 60               # from one last.pt to the next, evaluation or not
SAVE_SHARE = 0.05               # of the time, at most, goes into writing last.pt
TRIAL_TOKENS = 2 ** 14          # evaluated before the first step, to see that and how fast it works
BIG = 10 ** 9


# ---- Settings

@dataclass
class Settings:
    dataset: str = option("shakespeare", "in data/; parity and swaps are tasks: other defaults")
    out_dir: str = option("out", "where checkpoints and the log go", bool)
    overwrite: int = option(0, "1: replace the run that out_dir holds", [0, 1])
    resume: str = option("", "folder of a run to go on with, as it was started or longer; "
                             "auto: with the one in out_dir, if there is one", bool)
    init_from: str = option("", "folder or checkpoint of a run whose weights a new one "
                                "begins with", bool)
    eval_only: int = option(0, "1: only the exact loss of the run in out_dir, or in init_from, "
                               "on its own or on another dataset", [0, 1])
    block_size: int = option(128, "context: tokens attention sees; of text, length of rows, T",
                             (1, BIG))
    n_layer: int = option(2, "layers, L", (1, BIG))
    n_head: int = option(4, "attention heads in each layer, H", (1, BIG))
    n_embd: int = option(128, "width (dim), C", (1, BIG))
    dropout: float = option(0.0, "worth it when the same text is read many times")
    lrt: int = option(0, "1: hand each token the state of the one before it", [0, 1])
    lrt_mode: str = option("parallel", "the dial, or token by token: exact, slow",
                           ["parallel", "sequential"])
    lrt_subsets: int = option(2, "S: interleaved subsets of the positions; S = block_size is exact",
                              (1, BIG))
    lrt_sweeps: int = option(1, "K: how often each subset is recomputed", (1, BIG))
    lrt_loss_weights: str = option("", "K + 1 numbers: of pass 0, of sweep 1 .. K; none: each pass "
                                   "alike")
    lrt_hops: str = option("", "the passes find the memory, one more has the gradient, which "
                               "goes back so many times; none: it goes through all passes")
    lrt_memory_layer: int = option(-1, "layer whose output is the memory, 1 .. L; -1: the last")
    lrt_memory_proj: str = option("shared", "one projection for all layers, or each",
                                  ["shared", "layerwise"])
    max_iters: int = option(1500, "steps (iterations; there are no epochs)", (1, 10 ** 7))
    batch_size: int = option(8, "rows in a batch of each process", (1, BIG))
    gradient_accumulation_steps: int = option(1, "batches whose gradients make one step", (1, BIG))
    max_flops: float = option(0.0, "compute that says how many steps there are; with max_iters: at "
                                   "most so many (0: no limit)", (0, 1e30))
    learning_rate: float = option(1.6e-2, "lr after the warm-up, the highest", (0, BIG))
    min_lr: float = option(0.0, "lr at the end, the lowest", (0, BIG))
    warmup_iters: int = option(50, "steps from 0 to learning_rate", (0, BIG))
    weight_decay: float = option(0.1, "of the hidden matrices", (0, BIG))
    grad_clip: float = option(1.0, "largest norm of the gradient (0: no limit)", (0, BIG))
    curriculum: str = option("", "rows cut to a length for so many steps, then whole: 4:100,8:100 "
                                 "(tasks)")
    seed: int = option(1337, "of the weights and the data order", (0, MAX_SEED))
    eval_interval: int = option(750, "steps from one evaluation to the next", (1, BIG))
    eval_tokens: int = option(2 ** 17, "of a longer validation split, this many, spread evenly",
                              (1, BIG))
    log_interval: int = option(50, "steps from one line of progress to the next", (1, BIG))
    device: str = option("", "cpu, cuda, mps ...; none: the best one here")
    dtype: str = option("", "of products; none: bfloat16 on a GPU that has it",
                        ["", "float32", "bfloat16"])
    compile: int = option(-1, "torch.compile; -1: on cuda; on a CPU, try it", [-1, 0, 1])


# What a task is trained with unless told otherwise. Attention sees no more than its rows.
ANY_TASK = dict(block_size=32, batch_size=64, learning_rate=8e-3, warmup_iters=20)
TASK_SETTINGS = dict.fromkeys(prepare_data.TASKS, ANY_TASK)
TASK_SETTINGS["parity"] = dict(ANY_TASK, max_iters=150, eval_interval=50, log_interval=25)
TASK_SETTINGS["swaps"] = dict(ANY_TASK, max_iters=600, eval_interval=200,
                              curriculum="4:100,8:100,16:100")

# What has a meaning with --eval_only=1
OF_AN_EVALUATION = ("eval_only", "out_dir", "resume", "init_from", "dataset", "eval_tokens",
                    "device")


def dial(s):
    """What the model is asked for in training: subsets (None: token by token), sweeps, loss_weights
    and hops."""
    arguments = {"subsets": s.lrt_subsets, "sweeps": s.lrt_sweeps, "loss_weights": None,
                 "hops": None}
    if s.lrt_mode == "sequential":
        arguments["subsets"] = None
    if s.lrt_loss_weights:
        arguments["loss_weights"] = [float(number) for number in s.lrt_loss_weights.split(",")]
    if s.lrt_hops:
        arguments["hops"] = int(s.lrt_hops)
    return arguments


def is_exact(s):
    """Is the training graph that of decoding? Of a plain GPT it always is."""
    return not s.lrt or s.lrt_mode == "sequential"


def refuse_contradictions(s):
    """Raises Unusable for settings that are allowed, but not together or not in this form."""
    changed = [f.name for f in fields(s) if getattr(s, f.name) != f.default]
    for name in changed:
        if name.startswith("lrt_") and not s.lrt:
            refuse(s, name, "a plain GPT has no such thing; add --lrt=1")
    if s.lrt_mode == "sequential":
        for name in ("lrt_subsets", "lrt_sweeps", "lrt_loss_weights"):
            if name in changed:
                refuse(s, name, "--lrt_mode=sequential is exact already")
    if "lrt_subsets" in changed and s.lrt_subsets > s.block_size:
        refuse(s, "lrt_subsets", "more than --block_size")
    if not re.fullmatch(r"\d{,9}", s.lrt_hops):
        refuse(s, "lrt_hops", "must be a whole number from 0, or none")
    if s.lrt_loss_weights:
        refuse_loss_weights(s)
    stage = r"[1-9]\d{,5}:[1-9]\d{,5}"
    if not re.fullmatch(f"({stage}(,{stage})*)?", s.curriculum):
        refuse(s, "curriculum", "not like 4:100,8:100")
    if s.min_lr > s.learning_rate:
        refuse(s, "min_lr", f"more than --learning_rate={s.learning_rate:g}")


def refuse_loss_weights(s):
    """Raises Unusable unless they are K + 1 numbers that lead somewhere."""
    if s.lrt_hops:
        refuse(s, "lrt_loss_weights", f"with --lrt_hops={s.lrt_hops} one pass has all of the loss")
    number = r"(\d+\.?\d*|\.\d+)"
    numbers = s.lrt_loss_weights.split(",")
    good = len(numbers) == s.lrt_sweeps + 1 and all(re.fullmatch(number, n) for n in numbers)
    if not good or float(numbers[-1]) == 0:
        refuse(s, "lrt_loss_weights", f"must be {s.lrt_sweeps + 1} numbers, the last one not 0")


def refuse(s, name, why):
    raise Unusable(f"--{name}={getattr(s, name)}: {why}")


def model_config(s, vocab_size):
    try:
        return GPTConfig(block_size=s.block_size, vocab_size=vocab_size, n_layer=s.n_layer,
                         n_head=s.n_head, n_embd=s.n_embd, dropout=s.dropout, lrt=bool(s.lrt),
                         memory_layer=s.lrt_memory_layer, memory_proj=s.lrt_memory_proj)
    except ValueError as e:
        prefix = "lrt_" if str(e).startswith("memory") else ""
        raise Unusable(f"--{prefix}{e}") from e


# ---- Data

def to_tensors(device, *arrays):
    return [torch.from_numpy(a.astype(np.int64)).to(device) for a in arrays]


def row_length(s, meta, data):
    """T, of the rows that are trained on. Raises Unusable if block_size does not suit the data."""
    T, name = s.block_size, f"--block_size={s.block_size} does not suit data/{s.dataset}"
    if "task" in meta:
        T = meta["length"]
        if T > s.block_size:
            raise Unusable(f"{name}: it has rows of {T}")
    elif len(data["train"]) <= T:
        raise Unusable(f"{name}: it has only {len(data['train'])} tokens for training")
    return T


def batch(data, s, T, step, processes, device):
    """Inputs and targets of a step, (B, T) each, B = batch_size * gradient_accumulation_steps: text
    from random places, or random rows of a task, cut to T. Several processes share what one with as
    many more rows would draw. They depend on nothing but seed and step."""
    rng = np.random.default_rng((s.seed, step))
    train = data["train"]
    count = processes.count * s.gradient_accumulation_steps * s.batch_size
    places = len(train) if "train_y" in data else len(train) - T
    draw = rng.integers(places, size=count)[processes.rank::processes.count]
    if "train_y" in data:
        return to_tensors(device, train[draw, :T], data["train_y"][draw, :T])
    text = train[draw[:, None] + np.arange(T + 1)]
    return to_tensors(device, text[:, :-1], text[:, 1:])


def windows(data, T, most, vocab_size, device):
    """The validation split in order, as batches of rows of T; of text, also the shorter last row.
    Of more than `most` tokens, that many, spread evenly. Logits of a batch take 256 MB at most, or
    are of one row."""
    x, y = data["val"][:-1], data["val"][1:]
    if "val_y" in data:
        x, y = data["val"].ravel(), data["val_y"].ravel()
    count, rest = divmod(len(x), T)
    chosen = count
    if len(x) > max(most, T):
        chosen = max(1, min(count, most // T))
    inputs, targets = (part[:count * T].reshape(count, T) for part in (x, y))
    size = max(1, min(2 ** 14, 2 ** 26 // vocab_size) // T)
    for first in range(0, chosen, size):
        rows = np.arange(first, min(first + size, chosen)) * count // chosen
        yield to_tensors(device, inputs[rows], targets[rows])
    if rest and chosen == count:
        yield to_tensors(device, x[None, -rest:], y[None, -rest:])


# ---- Evaluation. The logits of what? Of rows x (B, T), (B, T, V):

def exact_logits(model, x):
    """Token by token, as text is generated. Of a plain GPT all positions at once are the same."""
    if model.config.lrt:
        return model.forward_sequential(x)[0]
    return logits_without_latent(model, x)


def logits_of_training(model, x, s):
    """On the training graph."""
    return model(x, None, **dial(s))[0]


def logits_without_latent(model, x):
    """After pass 0, which holds the latent at 0."""
    return model(x, None, subsets=1, sweeps=0)[0]


def score(logits, y):
    """Of every target its cross-entropy, in nats, and whether it was the likeliest: (B, T) each, in
    float64 on the CPU."""
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    right = logits.argmax(-1) == y
    return nll.cpu().double(), right.cpu().double()


@dataclass
class Measured:
    loss: float             # nats per token
    accuracy: float         # share of right answers
    bpb: float              # bits per byte
    by_position: list       # the loss at each position of a row
    tokens: int


@torch.no_grad()
def measure(logits_of, s, codec, data, device, stop=None):
    """Measured, of logits_of(x) over the validation split; None if told to stop meanwhile."""
    T = data["val"].shape[1] if "val_y" in data else s.block_size
    total = min(data["val"].size, s.eval_tokens)
    bytes_of = torch.tensor([len(b) for b in codec.token_bytes], device=device)
    nll, right, count = torch.zeros(3, T, dtype=torch.float64)      # sums at each position
    tokens = size = 0
    for x, y in windows(data, T, s.eval_tokens, codec.vocab_size, device):
        if stop and stop.signal:
            return None
        if stop and on_terminal():
            say(f"evaluating {tokens / total:4.0%}", end="\r")
        losses, hits = score(logits_of(x), y)
        length = x.size(1)
        nll[:length] += losses.sum(0)
        right[:length] += hits.sum(0)
        count[:length] += len(x)
        tokens += y.numel()
        size += bytes_of[y].sum().item()
    total_nll = nll.sum().item()
    return Measured(loss=total_nll / tokens, accuracy=right.sum().item() / tokens,
                    bpb=total_nll / math.log(2) / size,
                    by_position=[round(v, 4) for v in (nll / count.clamp(min=1)).tolist()],
                    tokens=tokens)


def evaluate(model, s, codec, data, stop=None):
    """A part of a row of log.jsonl: exact loss, and accuracy (task) or bits per byte (text), over
    the validation split; and those of the training graph. None if told to stop meanwhile."""
    model.eval()
    device = model.embed.weight.device
    exact = measure(lambda x: exact_logits(model, x), s, codec, data, device, stop)
    graph = exact
    if exact and not is_exact(s):
        graph = measure(lambda x: logits_of_training(model, x, s), s, codec, data, device, stop)
    if graph is None:
        return None
    return as_row(exact, graph, data)


def as_row(exact, graph, data):
    """What a row of the log says of two Measured."""
    row = {"val_loss": round(graph.loss, 6), "val_loss_exact": round(exact.loss, 6)}
    if "val_y" in data:
        row["val_accuracy"] = round(graph.accuracy, 6)
        row["val_accuracy_exact"] = round(exact.accuracy, 6)
    else:
        row["val_bpb_exact"] = round(exact.bpb, 6)
    return {**row, "val_tokens": exact.tokens, "exact_by_position": exact.by_position}


@torch.no_grad()
def accuracy_by_length(model, meta, seed):
    """{length: share of right answers, exact, in the last tenth} for 1 to 16 times the trained
    length, of 256 rows that no training has seen."""
    T = meta["length"]
    rows = prepare_data.task_rows(meta["task"], 256, 16 * T, np.random.default_rng(seed))
    x, y = to_tensors(model.embed.weight.device, *rows)
    right = score(model.eval().forward_sequential(x)[0], y)[1].mean(0)
    shares = {}
    for length in (T, 2 * T, 4 * T, 8 * T, 16 * T):
        start = min(length - 1, int(length * 0.9))
        shares[length] = round(right[start:length].mean().item(), 5)
    return shares


def badness(row):
    """What the best row has least of: exact loss; of a task first the share of wrong answers."""
    return -row.get("val_accuracy_exact", 0.0), row["val_loss_exact"]


def in_words(row, s):
    """The numbers of an evaluation; those of the training graph where it is not the exact one."""
    def on_graph(number):
        return "" if is_exact(s) else f" ({number} on the training graph)"

    loss = f"{row['val_loss_exact']:.4f} nats/token{on_graph(format(row['val_loss'], '.4f'))}"
    if "val_bpb_exact" in row:
        return f"{loss}, {row['val_bpb_exact']:.4f} bits/byte"
    graph = on_graph(format(row["val_accuracy"], ".1%"))
    parts = [loss, f"{row['val_accuracy_exact']:.1%} right{graph}"]
    for length, share in row.get("accuracy_by_length", {}).items():
        parts.append(f"{share:.1%} at {length}")
    return ", ".join(parts)


def verdict(row):
    """A line: does decoding do what the training graph shows? Of a task, by its answers."""
    if "val_accuracy" in row:
        name, threshold = "accuracy", 0.02
        gap = row["val_accuracy_exact"] - row["val_accuracy"]
        worse = gap < -threshold
    else:
        name, threshold = "loss", 0.05
        gap = row["val_loss_exact"] - row["val_loss"]
        worse = gap > threshold
    if worse:
        words = ("THEY DISAGREE, decoding is worse; more --lrt_subsets or --lrt_sweeps train "
                 "nearer to it")
    elif abs(gap) > threshold:
        words = "decoding is better"
    else:
        words = "they agree"
    return f"exact - training graph = {gap:+.4f} in {name} (threshold {threshold}): {words}"


# ---- A run

class Run:
    """A model in training: what last.pt holds, and what follows from its settings and data."""

    def __init__(self, s, folder, processes):
        self.s, self.folder, self.processes = s, folder, processes
        self.device = find_device(device_name(processes, s.device))
        self.dtype = find_dtype(s.dtype, self.device)
        self.meta, self.codec, self.data = prepare_data.load(s.dataset)
        T = row_length(s, self.meta, self.data)
        self.config = model_config(s, self.codec.vocab_size)
        torch.manual_seed(s.seed)
        self.model = GPT(self.config).to(self.device)
        self.compute = self.model           # the same, compiled, or shared with other processes
        self.optimizers = make_optimizers(self.model, s)
        self.step = 0                       # how many are done
        self.seconds = 0.0                  # that they took until this process began
        self.began_at = self.saved_at = perf_counter()
        self.saved_step = -1                # of last.pt
        self.recent = []                    # losses since the last row
        self.rows = []                      # of the log, one for each evaluation
        self.best = None                    # the one whose weights are in best.pt
        self.evaluated = 0                  # the step of the last evaluation
        self.plan = Plan(self.model, dial(s), s, T, processes.count)     # sets max_iters, if 0

    def say(self, line):
        """Print a line; only the first process does."""
        if self.processes.first:
            say(line)

    def time(self):
        """Seconds that the run took so far, evaluations included."""
        return self.seconds + perf_counter() - self.began_at

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


# ---- Training

def learning_rate(s, step, steps):
    """In a step, from 0, of a run of so many: linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    cosine = math.cos(math.pi * (step - s.warmup_iters) / max(1, steps - s.warmup_iters))
    return s.min_lr + (s.learning_rate - s.min_lr) * (1 + cosine) / 2


def take_step(run, rate):
    """Forward, backward, update. Returns the loss of this process' rows and the norm of the
    gradient of all, both before the update."""
    s, processes, n = run.s, run.processes, run.step
    torch.manual_seed((s.seed * 1_000_003 + n) * processes.count + processes.rank)  # for dropout
    run.model.train()
    T = int(run.plan.lengths[n])
    inputs, targets = batch(run.data, s, T, n, processes, run.device)
    parts = list(zip(inputs.split(s.batch_size), targets.split(s.batch_size)))
    total = 0.0
    for number, (x, y) in enumerate(parts, 1):
        sharing = nullcontext() if number == len(parts) else keep_gradients(run.compute)
        with sharing:
            with run.autocast():
                loss = run.compute(x, y, **dial(s))[1] / len(parts)
            loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), s.grad_clip or math.inf).item()
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        optimizer.step()
    run.model.zero_grad()
    run.step += 1
    return total, norm


def report_step(run, pace, loss, rate, norm):
    """The one place where a step is reported, after each. run.step steps are done; loss, gradient
    norm and learning rate are those of the last. To log them elsewhere, too, add a line here."""
    s, n, steps = run.s, run.step, run.plan.steps
    speed = pace.tokens_per_second()
    mean = float(np.mean(run.recent[-s.log_interval:]))
    if n % s.log_interval == 0 or n == steps:
        run.folder.log_step(n, f"{mean:.6f}", f"{rate:.6g}", f"{norm:.6g}", f"{speed:.0f}")
    if pace.line_is_due(s, run.plan, n):
        pace.said = perf_counter()
        left = pace.seconds_left(s, run.plan, n)
        say(f"step {n:6,}/{steps:,} {n / steps:4.0%}  {name_of_loss(s)} {mean:.4f} "
            f"{speed:9,.0f} tokens/s  {left:4.0f} s left")


def name_of_loss(s):
    """What is printed while it trains: of one pass, or of all together."""
    if is_exact(s) or dial(s)["hops"] is not None:
        return "loss"
    return "loss over all passes"


def try_evaluation(run):
    """Evaluate a little, before the first step: if that cannot be done it is said now. Returns the
    seconds that a whole evaluation will take, about."""
    s, start = run.s, perf_counter()
    little = replace(s, eval_tokens=min(s.eval_tokens, TRIAL_TOKENS))
    found = evaluate(run.model, little, run.codec, run.data)
    tokens = min(run.data["val"].size, s.eval_tokens)
    if "task" in run.meta:
        tokens += 256 * 16 * run.meta["length"]         # longer rows
    return (perf_counter() - start) / found["val_tokens"] * tokens


def validate(run, stop):
    """Evaluate: a line, a row of the log, the checkpoints. Nothing, if told to stop meanwhile."""
    found = evaluate(run.model, run.s, run.codec, run.data, stop)
    if found is None:
        return
    loss, n = found["val_loss_exact"], run.step
    if not math.isfinite(loss):
        raise Unusable(f"the validation loss is {loss} in step {n:,}; "
                       "try a smaller --learning_rate")
    if "task" in run.meta:
        found["accuracy_by_length"] = accuracy_by_length(run.model, run.meta, (run.s.seed, n))
    row = {"iter": n, "tokens": int(run.plan.tokens[n - 1]), "flops": float(run.plan.flops[n - 1]),
           "seconds": round(run.time(), 1), "train_loss": round(float(np.mean(run.recent)), 6)}
    row |= found
    run.rows.append(row)
    run.recent = []
    run.say(f"step {n:6,} validation: exact {in_words(row, run.s)} ({row['val_tokens']:,} tokens)")
    save_or_warn(run, best=newest_is_best(run))
    run.folder.log_evaluation(row)


def newest_is_best(run):
    """Is the newest evaluation better than the one that best.pt is of, if there is one?"""
    return run.best is None or badness(run.rows[-1]) < badness(run.best)


def save(run, last=True, best=False):
    """Write last.pt; or best.pt, of the newest row; or both. Raises Unusable if that fails."""
    state = {"model": run.model.state_dict(), "config": asdict(run.config),
             "settings": asdict(run.s), "meta": run.meta, "iter": run.step}
    states = {}
    if best:
        states["best"] = {**state, "row": run.rows[-1]}
    if last:
        states["last"] = {**state, "optimizers": [o.state_dict() for o in run.optimizers],
                          "processes": run.processes.count, "seconds": run.time(),
                          "recent": run.recent, "rows": run.rows}
    run.saved_at = perf_counter()
    run.folder.save(**states)
    if last:
        run.saved_step = run.step
    if best:
        run.best = run.rows[-1]


def save_or_warn(run, best=False):
    """After an evaluation. last.pt waits if writing it would take too much of the time."""
    rested = perf_counter() - run.saved_at >= run.folder.save_seconds / SAVE_SHARE
    try:
        if best or rested:
            save(run, last=rested, best=best)
    except Unusable as e:
        warn(f"warning: {e}; the run goes on")


def save_is_due(run):
    """Some time after the last one, whether or not there has been an evaluation?"""
    return perf_counter() - run.saved_at > max(SAVE_SECONDS, run.folder.save_seconds / SAVE_SHARE)


def evaluation_is_due(run):
    """Also one that a stop has cut short."""
    regular = run.step % run.s.eval_interval == 0 or run.step == run.plan.steps
    return regular and run.step > run.evaluated


def stop_here(run, stop):
    """All processes have agreed to: save, say how to go on, and end the script."""
    if run.processes.first:
        save(run)
    python = "python"
    if run.processes.count > 1:
        python = f"torchrun --standalone --nproc_per_node={run.processes.count}"
    run.say(f"\nstopped after step {run.step:,}; go on with: {python} train.py "
            f"{command(f'--resume={run.folder.path}')}")
    run.processes.wait()
    sys.exit(128 + (stop.signal or 2))


def train(run, stop):
    """Steps and evaluations, until the last one, or until all processes agree to stop."""
    s, processes = run.s, run.processes
    run.began_at = run.saved_at = perf_counter()
    pace = Pace(try_evaluation(run) if processes.first else 0.0)
    while True:
        start = perf_counter()
        if evaluation_is_due(run):
            if pace.evaluation > 5:
                run.say(f"evaluating, for about {pace.evaluation:.0f} s ...")
            if processes.first:
                validate(run, stop)
            [stopping] = processes.sum(stop.signal)
            run.evaluated = run.step
            pace.evaluation = perf_counter() - start
        elif run.step == run.plan.steps:
            break
        else:
            rate = learning_rate(s, run.step, run.plan.steps)
            loss, norm = take_step(run, rate)
            loss, stopping = processes.sum(loss / processes.count, stop.signal)
            if not math.isfinite(loss):
                raise Unusable(f"the training loss is {loss} in step {run.step:,}; "
                               "try a smaller --learning_rate")
            run.recent.append(loss)
            pace.add(perf_counter() - start, run.plan.tokens_of(run.step))
            if processes.first:
                report_step(run, pace, loss, rate, norm)
                if save_is_due(run):
                    save_or_warn(run)
        if stopping:
            stop_here(run, stop)
    if processes.first and run.saved_step < run.step:
        save(run, best=newest_is_best(run))


# ---- To begin, and to go on

def new_run(s, taken, processes):
    """A Run from its start. Its folder is its own until `taken`, an ExitStack, is closed."""
    refuse_contradictions(s)
    folder = taken.enter_context(RunFolder(s.out_dir))
    run = Run(s, folder, processes)
    if s.init_from:
        begin_with_weights(run, s.init_from)
    if processes.first:
        folder.claim()
        folder.begin(s.overwrite)
    return run


def begin_with_weights(run, path):
    """Another run's weights; what they lack starts as usual."""
    checkpoint = load_checkpoint(path)[2]
    refuse_other_data(path, checkpoint, run.meta, run.s.dataset, ["codec"])
    refuse_other_model(path, checkpoint, run.config)
    missing = run.model.load_state_dict(checkpoint["model"], strict=False).missing_keys
    usual = f"; starting as usual: {', '.join(missing)}" if missing else ""
    run.say(f"weights of {path}{usual}")


def with_auto_resumed(s, given, processes):
    """(s, given), of which s.resume is a folder or a file, or empty: --resume=auto goes on with the
    run in out_dir if there is one."""
    if s.resume != "auto":
        return s, given
    there = processes.first and Path(s.out_dir, "last.pt").is_file()
    [there] = processes.sum(there)          # the first process looks for all
    given = [name for name in given if name != "out_dir"]
    return replace(s, resume=s.out_dir if there else ""), given


def resumed_run(s, given, taken, processes):
    """A Run as its last.pt left it, with the settings that it was started with; see new_run()."""
    path = find_checkpoint(s.resume, ["last.pt"])
    folder = taken.enter_context(RunFolder(path.parent))
    if processes.first and path.is_file():
        folder.claim()
    last = load_checkpoint(path)[2]
    s = settings_to_go_on(s, given, path, last, processes)
    refuse_contradictions(s)
    run = Run(s, folder, processes)
    refuse_other_data(path, last, run.meta, s.dataset, ["codec", "sha256"])
    refuse_other_model(path, last, run.config)
    take_over(run, path, last)
    run.saved_step = run.step
    if processes.first:
        folder.go_on(run.step, run.rows)
        run.best = row_of_best(run)
    if run.rows and run.step == run.plan.steps == run.evaluated and not s.max_flops:
        run.say(f"{folder.path} is finished; longer: --max_iters={2 * run.step}; new run, same "
                "weights: --init_from")
    return run


def compiles_by_default(s, device):
    return device.type == "cuda" and s.lrt_mode != "sequential"


def compiled(run):
    """The model, compiled if that is asked for or, on CUDA, by default. If it does not work: raises
    Unusable if it is asked for; by default the run goes on without."""
    s = run.s
    if s.compile == 0 or s.compile == -1 and not compiles_by_default(s, run.device):
        return run.model
    run.say("compiling, a minute or so ...")
    compute = torch.compile(run.model)
    x = torch.zeros(s.batch_size, int(run.plan.lengths[-1]), dtype=torch.long, device=run.device)
    try:
        with run.autocast():
            loss = compute(x, x, **dial(s))[1]
        loss.backward()
    except Exception as e:      # a compiler can raise anything at all
        first_line = str(e).strip().splitlines()[0] if str(e).strip() else ""
        why = f"torch.compile does not work here ({type(e).__name__}: {first_line:.120})"
        if s.compile == 1:
            raise Unusable(f"--compile=1: {why}") from e
        run.say(f"not compiled, so slower: {why}")
        return run.model
    finally:
        run.model.zero_grad()
    return compute


def announce(run):
    """Write run.json, and tell what is going to happen."""
    s, processes, plan = run.s, run.processes, run.plan
    parameters = sum(p.numel() for p in run.model.parameters())
    if processes.first:
        data = {key: value for key, value in run.meta.items() if key != "codec"}
        run.folder.describe({"settings": asdict(s), "data": data, "parameters": parameters,
                             "processes": processes.count, "flops": plan.flops[-1],
                             "torch": torch.__version__, "python": sys.version})
    gflop = np.diff(plan.flops, prepend=0).max() / 1e9
    where = run.device.type
    if processes.count > 1:
        where += f" x {processes.count}"
    run.say(f"{name_of(s)}: {parameters:,} parameters, {gflop:.1f} GFLOP a step, "
            f"{where} {run.dtype}, torch {torch.__version__}; {run.meta['source']}")
    if run.step > 0:
        return
    if s.max_flops:
        run.say(plan.what_ends(s))
    if plan.steps <= s.warmup_iters:
        run.say(f"the run ends while its learning rate still rises: {plan.steps:,} steps, "
                f"--warmup_iters={s.warmup_iters:,}")


def name_of(s):
    """What is trained, and how."""
    if not s.lrt:
        return "plain GPT"
    name = f"LRT, S = {s.lrt_subsets} subsets, K = {s.lrt_sweeps} sweeps"
    if s.lrt_mode == "sequential":
        name = "LRT, token by token"
    if dial(s)["hops"] is not None:
        name += f", one pass with gradients, {dial(s)['hops']} hops"
    return name


# ---- The end

def attempt(what, function):
    """What function() returns; or None and a line, if that cannot be had: a part of lrt.py that is
    an exercise and not written yet, a file that is gone."""
    try:
        return function()
    except (NotImplementedError, OSError, Unusable) as e:
        reason = str(e) or "not written yet"
        say(f"left out: {what}: {reason.splitlines()[0]}")
        return None


def report(run, stop):
    """The best evaluation, what it is without the latent, and a sample."""
    s = run.s
    row, model = run.best, None
    if row:
        model = attempt("best.pt", lambda: load_checkpoint(run.folder / "best.pt", run.device)[0])
    if model is None:
        row, model = run.rows[-1], run.model
    title = "best" if row is run.best else "last"
    say(f"\n{title}, step {row['iter']:,}, {row['seconds']:,.0f} s: exact {in_words(row, s)}")
    if s.lrt:
        held = attempt("the loss without the latent",
                       lambda: evaluate_without_latent(run, model, stop))
        if held:
            say(f"latent held at 0: {held}")
    if not is_exact(s):
        say(verdict(row))
    flags = [f"--out_dir={run.folder.path}"]
    if "task" in run.meta:
        flags.append("--prompt=1 0 1 1")
    if s.device:
        flags.append(f"--device={s.device}")
    say("\n$ " + command("python", "sample.py", *flags))
    attempt("a sample", lambda: sample.print_samples(flags))


def evaluate_without_latent(run, model, stop):
    """In words; None if told to stop meanwhile."""
    model.eval()
    found = measure(lambda x: logits_without_latent(model, x), run.s, run.codec, run.data,
                    run.device, stop)
    if found is None:
        return None
    row = as_row(found, found, run.data)
    return in_words(row, replace(run.s, lrt=0))     # lrt=0: there is no training graph to speak of


def evaluate_only(s, given):
    """Exact loss and bits per byte of a checkpoint, on its own data or others. Writes nothing."""
    for name in given:
        if name not in OF_AN_EVALUATION:
            refuse(s, name, "--eval_only=1 takes it from the run; it knows "
                            + ", ".join(f"--{known}" for known in OF_AN_EVALUATION[1:]))
    path = s.out_dir
    if s.init_from or s.resume not in ("", "auto"):
        path = s.init_from or s.resume
    model, codec, checkpoint = load_checkpoint(path, find_device(s.device))
    old = old_settings(Settings, path, checkpoint, "so there is nothing to evaluate")
    old.eval_tokens = s.eval_tokens
    if "dataset" in given:
        old.dataset = s.dataset
    meta, its_codec, data = prepare_data.load(old.dataset)
    if meta["codec"] != checkpoint["meta"]["codec"]:
        data = in_tokens_of(codec, its_codec, data, old.dataset)
    if meta.get("length", 0) > old.block_size:
        raise Unusable(f"--dataset={old.dataset} has rows of {meta['length']}, more than "
                       f"--block_size={old.block_size} of the run")
    found = evaluate(model, old, codec, data)
    if "task" in meta:
        seed = (old.seed, checkpoint["iter"])
        found["accuracy_by_length"] = accuracy_by_length(model, meta, seed)
    say(f"{path}, step {checkpoint['iter']:,}, on data/{old.dataset}: exact {in_words(found, old)} "
        f"({found['val_tokens']:,} tokens)")


def in_tokens_of(codec, its_codec, data, dataset):
    """The validation text of a data set in another codec's tokens. Raises Unusable if it is no
    text, or has what that codec lacks."""
    if "numbers" in (codec.kind, its_codec.kind):
        raise Unusable(f"--dataset={dataset} is of other tokens than the model's")
    text = its_codec.decode(data["val"].tolist())
    return {"val": np.array(codec.encode(text))}


@script
def main(argv):
    given = typed(Settings, __doc__, argv)
    presets = TASK_SETTINGS.get(given.get("dataset", Settings.dataset), {})
    s = Settings(**{**presets, **given})
    s.out_dir, s.resume = os.path.expanduser(s.out_dir), os.path.expanduser(s.resume)
    processes = who_am_i()
    if s.lrt_hops == "none":
        s.lrt_hops = ""
    if "max_flops" in given and "max_iters" not in given and s.max_flops:
        s.max_iters = 0             # as many as that allows: see Plan
    try:
        if not s.eval_only:
            with joined(processes):
                whole_run(s, given, processes)
        elif processes.first:
            evaluate_only(s, given)
    except NotImplementedError as e:
        raise Unusable(f"this needs a part of lrt.py that is not there: {e}") from e


def whole_run(s, given, processes):
    """A run, from its start or where it was, to its report. However it ends, all is given back."""
    with ExitStack() as taken:
        s, given = with_auto_resumed(s, given, processes)
        if s.resume:
            run = resumed_run(s, given, taken, processes)
        else:
            run = new_run(s, taken, processes)
        announce(run)
        run.compute = processes.share(compiled(run))
        stop = taken.enter_context(Stop(processes.count > 1, processes.first))
        train(run, stop)
        if processes.first:
            report(run, stop)


if __name__ == "__main__":
    main()
