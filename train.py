"""Train a GPT, with or without latent recurrence:

    python train.py --lrt=1
    torchrun --standalone --nproc_per_node=2 train.py --lrt=1       on several GPUs or machines

It writes three files into out_dir: last.pt, from which a run continues; best.pt, which has the
lowest exact loss; and log.jsonl, for pandas.read_json(lines=True). A row of the log has "step,
loss, lr, norm, seconds" (loss and seconds of a step are means over the steps since the previous
row), or, at each evaluation, "step, exact, as_trained, no_memory" (see evaluate). Randomness
depends only on seed and step: a run that was stopped and resumed has the same final weights as an
uninterrupted run, on a CPU bit for bit.

To change the optimizer, see make_optimizers; the schedule, get_lr; what is logged, report in run;
the loss, cross_entropy in lrt.py (evaluation has its own, sum_of_losses). A setting is a line of
Settings: an int (0 or 1 for a switch), a float or a str. A checkpoint records the settings, and not
your edits to the code.
"""
import json
import math
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import prepare_data
import sample
from lrt import GPT, GPTConfig
from prepare_data import (TASKS, Codec, UsageError, check_numbers, parse_args, replace_file,
                          run_script, task_rows)


@dataclass
class Settings:
    dataset: str = "shakespeare"        # a folder in data/; or a task: parity, swaps (see PRESETS)
    out_dir: str = "out"
    resume: int = 0                     # 1: continue the run in out_dir, if there is one
    overwrite: int = 0                  # 1: replace the run in out_dir
    init_from: str = ""                 # folder of a run whose weights this run starts with
    eval_only: int = 0                  # 1: evaluate the best checkpoint of the run in out_dir
    # model
    block_size: int = 128               # T: context, and length of the training rows
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    # latent recurrence
    lrt: int = 0                        # 0: a plain GPT
    lrt_mode: str = "parallel"          # or sequential: exact, token by token, slow
    lrt_subsets: int = 2                # S: interleaved subsets of the positions
    lrt_sweeps: int = 1                 # K: how often each subset is recomputed
    lrt_loss_weights: str = ""          # K + 1 numbers, such as 0,1; default: all passes equal
    lrt_hops: int = -1                  # terms of the implicit gradient; -1: backpropagation
    lrt_memory_layer: int = -1          # the layer whose output is the latent; -1: the last
    lrt_memory_proj: str = "shared"     # or layerwise
    # optimization
    max_iters: int = 1500
    batch_size: int = 8                 # rows of a forward pass
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1.6e-2       # suits Muon
    min_lr: float = 0.0
    warmup_iters: int = 50
    weight_decay: float = 0.1
    grad_clip: float = 1.0              # 0: no limit
    curriculum: int = 0                 # tasks: rows of 4, twice as long every N steps
    seed: int = 1337
    # evaluation, logging, system
    eval_interval: int = 750
    eval_tokens: int = 131072           # of the validation split, spread evenly
    log_interval: int = 50
    device: str = ""                    # default: cuda, mps, ... if there is one
    dtype: str = ""                     # float32 or bfloat16; default: bfloat16 on CUDA
    compile: int = 0                    # 1: torch.compile; not worth it for lrt_mode=sequential


TASK_SETTINGS = dict(block_size=32, batch_size=64, learning_rate=8e-3, warmup_iters=20,
                     log_interval=25)
PRESETS = {"parity": TASK_SETTINGS | dict(max_iters=150, eval_interval=50),
           "swaps": TASK_SETTINGS | dict(max_iters=600, eval_interval=200, curriculum=100)}
MAY_CHANGE = ("out_dir", "overwrite", "resume", "eval_only", "max_iters", "eval_interval",
              "eval_tokens", "log_interval", "device", "compile")
SAVE_SECONDS = 60                       # last.pt is saved this often


def check(s, typed):
    """Raises UsageError for impossible values that neither the types nor the model refuse."""
    choices = {"lrt_mode": ("parallel", "sequential"), "dtype": ("", "float32", "bfloat16"),
               **dict.fromkeys(("resume", "overwrite", "eval_only", "lrt", "compile"), (0, 1))}
    for name, values in choices.items():
        if getattr(s, name) not in values:
            raise UsageError(f"--{name}={getattr(s, name)}: must be "
                             f"{' or '.join(str(value) for value in values if value != '')}")
    least = dict.fromkeys(("lrt_subsets", "lrt_sweeps", "max_iters", "batch_size", "log_interval",
                           "gradient_accumulation_steps", "eval_interval", "eval_tokens"), 1)
    check_numbers(s, least | {"lrt_hops": -1, "lrt_memory_layer": -s.n_layer})
    number = r"(\d+\.?\d*|\.\d+)"
    weights = s.lrt_loss_weights
    if weights and not (re.fullmatch(f"{number}(,{number}){{{s.lrt_sweeps}}}", weights)
                        and re.search("[1-9]", weights)):
        raise UsageError(f"--lrt_loss_weights={weights}: must be {s.lrt_sweeps + 1} numbers, not "
                         "all 0, such as 0,1")

    # Settings that have no effect together
    for name in typed:
        if name.startswith("lrt_") and not s.lrt:
            raise UsageError(f"--{name} is for latent recurrence; add --lrt=1")
        if name in ("lrt_subsets", "lrt_sweeps") and s.lrt_mode == "sequential":
            raise UsageError(f"--{name} has no effect with --lrt_mode=sequential")
    if weights and (s.lrt_mode == "sequential" or s.lrt_hops >= 0):
        raise UsageError("--lrt_loss_weights cannot be combined with --lrt_mode=sequential or "
                         "--lrt_hops")
    if s.curriculum and s.dataset not in TASKS:
        raise UsageError(f"--curriculum is for the tasks {', '.join(TASKS)}")
    if s.resume and s.overwrite:
        raise UsageError("--resume=1 continues a run, and --overwrite=1 replaces it: choose one")
    if not s.out_dir:
        raise UsageError("--out_dir=: must be the name of a folder")


def model_config(s, vocab_size):
    try:
        return GPTConfig(block_size=s.block_size, vocab_size=vocab_size, n_layer=s.n_layer,
                         n_head=s.n_head, n_embd=s.n_embd, dropout=s.dropout, lrt=bool(s.lrt),
                         memory_layer=s.lrt_memory_layer, memory_proj=s.lrt_memory_proj)
    except ValueError as e:
        raise UsageError(f"this model is impossible: {e}") from e


def how_to_train(s):
    """The arguments of the model's forward in training."""
    how = {}
    if s.lrt and s.lrt_mode == "parallel":
        how = {"subsets": s.lrt_subsets, "sweeps": s.lrt_sweeps}
    if s.lrt_loss_weights:
        how["loss_weights"] = [float(weight) for weight in s.lrt_loss_weights.split(",")]
    if s.lrt_hops >= 0:
        how["hops"] = s.lrt_hops
    return how


def get_lr(s, step):
    """Linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    progress = (step - s.warmup_iters) / max(1, s.max_iters - s.warmup_iters)
    return s.min_lr + (s.learning_rate - s.min_lr) * (1 + math.cos(math.pi * progress)) / 2


# ---- Data

def tensors(device, *arrays):
    return [torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays]


def get_batch(train, s, step, part, parts, device):
    """Part number `part` of a step's rows: inputs and targets (B, T). They depend only on
    seed and step, so two processes get what one gets with gradient_accumulation_steps=2."""
    rng = np.random.default_rng((s.seed, step))
    T = s.block_size
    if s.dataset in TASKS:
        if s.curriculum:
            T = min(T, 4 * 2 ** min(step // s.curriculum, 30))
        x, y = task_rows(s.dataset, (parts, s.batch_size, T), rng)
        return tensors(device, x[part], y[part])
    start = rng.integers(len(train) - T, size=(parts, s.batch_size))[part]
    rows = train[start[:, None] + np.arange(T + 1)]
    return tensors(device, rows[:, :-1], rows[:, 1:])


def validation_rows(val, s):
    """Inputs and targets (n, T), always the same ones: eval_tokens tokens, evenly spread over the
    text; an eighth of that for tasks, whose rows are cheap to repeat."""
    T = s.block_size
    if s.dataset in TASKS:
        return task_rows(s.dataset, (max(1, s.eval_tokens // T // 8), T), np.random.default_rng(0))
    there = (len(val) - 1) // T
    n = max(1, min(there, s.eval_tokens // T))
    start = np.arange(n) * there // n * T
    rows = val[start[:, None] + np.arange(T + 1)]
    return rows[:, :-1], rows[:, 1:]


# ---- Evaluation

def sum_of_losses(logits, targets):
    """The sum in nats. (..., V), (...) -> number"""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum").item()


def parallel_loss(model, x, y, how):
    """A few rows at a time, so that their logits (B, T, V) take at most 64 MB, or one row."""
    rows = max(1, min(64, 2 ** 24 // (x.size(1) * model.config.vocab_size)))
    return sum(sum_of_losses(model(x, **how)[0], y) for x, y in zip(x.split(rows), y.split(rows)))


def exact_loss(model, x, y):
    """Token by token, as in generation. A plain GPT gives the same for all positions at once."""
    if not model.config.lrt:
        return parallel_loss(model, x, y, {})
    cache = model.init_cache(len(x))
    return sum(sum_of_losses(model.step(x[:, t], cache), y[:, t]) for t in range(x.size(1)))


@torch.no_grad()
def evaluate(model, s, val, rank=0, world=1):
    """Mean validation loss in nats per token. "exact" is decoded token by token, as in generation;
    compare models by it. "as_trained" is computed as in training. "no_memory" has all m = 0. They
    are equal for a plain GPT. For a task, also the share of right answers in the last tenth
    of rows of 1 to 16 times the trained length."""
    model.eval()
    device, T = model.alpha.device, s.block_size
    x, y = validation_rows(val, s)
    exact = as_trained = no_memory = 0.0
    rows = max(1, min(256, 2 ** 27 // (2 * s.n_layer * T * s.n_embd)))      # keys, values: 0.5 GB
    for i in range(rows * rank, len(x), rows * world):
        idx, targets = tensors(device, x[i:i + rows], y[i:i + rows])
        exact += exact_loss(model, idx, targets)
        if s.lrt and s.lrt_mode == "parallel":
            as_trained += parallel_loss(model, idx, targets, how_to_train(s))
        if s.lrt:
            no_memory += parallel_loss(model, idx, targets, dict(subsets=1, sweeps=0))
    sums = torch.tensor([exact, as_trained, no_memory], dtype=torch.float64)
    if world > 1:
        dist.all_reduce(sums)
    exact, as_trained, no_memory = (round(nll / y.size, 5) for nll in sums.tolist())
    if not s.lrt:
        no_memory = exact
    if not s.lrt or s.lrt_mode == "sequential":
        as_trained = exact
    row = {"exact": exact, "as_trained": as_trained, "no_memory": no_memory}
    if s.dataset in TASKS:
        x, y = tensors(device, *task_rows(s.dataset, (256, 16 * T), np.random.default_rng(1)))
        right, cache = [], model.init_cache(len(x))
        for t in range(16 * T):
            right.append((model.step(x[:, t], cache).argmax(-1) == y[:, t]).float().mean().item())
        for length in (T, 2 * T, 4 * T, 8 * T, 16 * T):
            row[f"right_at_{length}"] = round(float(np.mean(right[length * 9 // 10:length])), 4)
    return row


def in_words(row, s):
    hidden = ("step",) if s.lrt else ("step", "as_trained", "no_memory")
    return ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in hidden)


# ---- Optimizers: Muon for the matrices between hidden states, AdamW for all other parameters

class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (kellerjordan.github.io/posts/muon), scaled as in arXiv:2502.16982.
    torch.optim.Muon computes in bfloat16. Most CPUs only emulate it, 15 times more slowly."""

    def __init__(self, matrices, weight_decay, momentum=0.85):
        super().__init__(matrices, dict(lr=0.0, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(average, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonalize(X):
    """Five Newton-Schulz steps take the singular values of X (m, n) to 0.7 .. 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    Y = X if X.size(0) <= X.size(1) else X.mT
    Y = Y / Y.norm().clamp(min=1e-7)
    for _ in range(5):
        A = Y @ Y.mT
        Y = a * Y + (b * A + c * A @ A) @ Y
    return Y if X.size(0) <= X.size(1) else Y.mT


def make_optimizers(model, s):
    """A list of any optimizers. "scale" (1 if missing) multiplies the learning rate of a group."""
    embed, head = model.embed.weight, model.head.weight
    others = [p for p in model.parameters() if p is not embed and p is not head]
    matrices = [p for p in others if p.ndim == 2]
    vectors = [p for p in others if p.ndim != 2]
    groups = [dict(params=[embed, *vectors], scale=3.0), dict(params=[head])]
    return [Muon(matrices, s.weight_decay),
            torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0,
                              fused=model.alpha.device.type in ("cpu", "cuda"))]


# ---- The run in out_dir; other processes; Ctrl-C

def settings_and_checkpoint(argv):
    """The settings, and the checkpoint of the run that is continued, or None."""
    typed = parse_args(Settings, __doc__, argv)
    s = Settings(**PRESETS.get(typed.get("dataset"), {}) | typed)
    out = Path(s.out_dir).expanduser()
    there = [name for name in ("best.pt", "last.pt") if (out / name).exists()]
    if not s.eval_only and (not there or s.overwrite and not s.resume):
        check(s, typed)
        return s, None
    if not s.eval_only and not s.resume:
        raise UsageError(f"{out} has a run: add --resume=1 to continue it, --overwrite=1 to "
                         "replace it, or another --out_dir")
    path = out if s.eval_only else out / "last.pt"
    checkpoint = sample.load_checkpoint(path)[1]
    old, types = checkpoint["settings"], {f.name: type(f.default) for f in fields(Settings)}
    if not all(types.get(name) is type(value) for name, value in old.items()):
        raise UsageError(f"{path} was written by another version of train.py")
    before, s = Settings(**old), Settings(**old | typed)
    for name, value in typed.items():
        if name not in MAY_CHANGE and value != getattr(before, name):
            raise UsageError(f"--{name}={value}: the run in {out} has {getattr(before, name)} and "
                             f"cannot change it; --init_from={out} starts another run with its "
                             "weights")
    check(s, typed)
    return s, checkpoint


def start_with_weights(model, path, codec):
    """Those of another run, as far as there are any. Returns a line about the others."""
    checkpoint = sample.load_checkpoint(path)[1]
    if checkpoint["codec"] != codec:
        raise UsageError(f"--init_from={path} has other tokens than the data set")
    there, own = checkpoint["model"], model.state_dict()
    for name in own:
        if name in there and own[name].shape != there[name].shape:
            raise UsageError(f"--init_from={path}: {name} is {tuple(there[name].shape)}, here "
                             f"{tuple(own[name].shape)}; the sizes must be the same")
    missing, unused = model.load_state_dict(there, strict=False)
    return (f"weights of {path}; not in it: {', '.join(missing) or 'none'}; not used: "
            f"{', '.join(unused) or 'none'}")


@contextmanager
def processes(device):
    """Join the other processes of torchrun. Yields the rank of this one, and how many there are."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield rank, world
    finally:
        dist.destroy_process_group()


@contextmanager
def told_to_stop(rank, world):
    """Yields a list that stays empty until SIGINT (Ctrl-C) or SIGTERM. A second signal ends the
    process (but not one of several: torchrun passes each signal on, so they get it twice)."""
    told = []

    def on_signal(number, frame):
        told.append(number)
        if world == 1:
            signal.signal(number, old[number])
        if rank == 0 and len(told) == 1:
            print("\nstopping after this step or evaluation; press Ctrl-C again to stop at once",
                  file=sys.stderr, flush=True)

    old = {}
    try:
        if threading.current_thread() is threading.main_thread():       # only it may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, on_signal)
        yield told
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main(argv=None):
    s, resumed = settings_and_checkpoint(argv)
    device = sample.find_device(s.device)
    with processes(device) as (rank, world), told_to_stop(rank, world) as told:
        finished = run(s, resumed, device, rank, world, told)
    if finished:
        sample.main([f"--out_dir={s.out_dir}", f"--device={device}"])


# ---- The run

def run(s, resumed, device, rank, world, told):
    """Returns whether a sample of the run is wanted: it is finished, and this process reports."""
    out, master = Path(s.out_dir).expanduser(), rank == 0
    kind = torch.device(device).type
    bfloat16 = s.dtype == "bfloat16"
    if not s.dtype and kind == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    torch.set_float32_matmul_precision("high")          # TF32 on CUDA

    # ---- Data
    if s.dataset in TASKS:
        train = val = codec = None
        vocab_size, meta = max(TASKS[s.dataset].shape), {"source": s.dataset}
    else:
        if not master:
            dist.barrier()              # the first process may have to prepare the data
        meta, train, val = prepare_data.load(s.dataset)
        if master and world > 1:
            dist.barrier()
        codec = meta["codec"]
        vocab_size = Codec(codec).vocab_size
        if min(len(train), len(val)) <= s.block_size:
            raise UsageError(f"--block_size={s.block_size}: must be less than the tokens of "
                             f"data/{s.dataset}, {len(train):,} for training and {len(val):,} "
                             "for validation")
    if resumed and (resumed.get("codec"), resumed.get("sha256")) != (codec, meta.get("sha256")):
        raise UsageError(f"data/{s.dataset} differs from the text or the tokens that the run in "
                         f"{out} was trained on")

    # ---- Model and optimizers
    torch.manual_seed(s.seed)
    model = GPT(model_config(s, vocab_size)).to(device)
    step, log, losses = 0, [], []                       # losses since the last report
    if resumed:
        step, log, losses = resumed["step"], resumed["log"], resumed["losses"]
        model.load_state_dict(resumed["model"])
    if s.eval_only:
        row = evaluate(model, s, val, rank, world)
        if master:
            print(f"{out}, step {step:,}: {in_words(row, s)}")
        return
    optimizers = make_optimizers(model, s)
    parts = world * s.gradient_accumulation_steps       # batches of a step, every world-th here
    if resumed:
        if resumed["parts"] != parts:
            raise UsageError(f"the run in {out} has {resumed['parts']} batches in a step, not "
                             f"{parts}: use as many processes as before")
        if step > s.max_iters:
            raise UsageError(f"--max_iters={s.max_iters}: the run in {out} is at step {step}")
        try:
            for optimizer, state in zip(optimizers, resumed["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise UsageError(f"the optimizer state in {out} does not fit make_optimizers") from e
    elif s.init_from:
        line = start_with_weights(model, s.init_from, codec)
        if master:
            print(line)
    if world > 1:
        steps = torch.tensor([step, -step])
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if steps.sum() != 0:
            raise UsageError(f"{out} must be on a disk that all processes share")
    compute = torch.compile(model) if s.compile else model
    if master:
        print(f"{'LRT' if s.lrt else 'plain GPT'}: {sum(p.numel() for p in model.parameters()):,} "
              f"parameters, {device} x {world}, torch {torch.__version__}; {meta['source']}"
              + (f"; {out} is at step {step:,}" if resumed else ""), flush=True)

    # ---- Files. last.pt is written before the first step, so that another command sees the run
    if master:
        out.mkdir(parents=True, exist_ok=True)
        if not resumed:
            for name in ("best.pt", "last.pt", "log.jsonl"):
                (out / name).unlink(missing_ok=True)

    def save(name):
        if master:
            checkpoint = {"model": model.state_dict(), "config": asdict(model.config),
                          "settings": asdict(s), "codec": codec, "sha256": meta.get("sha256"),
                          "step": step, "log": log, "losses": losses, "parts": parts,
                          "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                          "versions": {"torch": str(torch.__version__), "python": sys.version}}
            replace_file(out / name, lambda path: torch.save(checkpoint, path))
            lines = "".join(json.dumps(row) + "\n" for row in log)
            replace_file(out / "log.jsonl", lambda path: path.write_bytes(lines.encode()))

    def report(row, line):
        log.append(json.loads(json.dumps(row, default=float)))      # plain values only
        if master:
            print(line, flush=True)

    # ---- The loop
    best = min((row["exact"] for row in log if "exact" in row), default=math.inf)
    evaluated = max((row["step"] for row in log if "exact" in row), default=0)
    stop, saved, seconds = False, -math.inf, []
    while True:
        if not stop and step > evaluated and (step % s.eval_interval == 0 or step >= s.max_iters):
            row = {"step": step, **evaluate(model, s, val, rank, world)}
            report(row, f"step {step:,} validation: {in_words(row, s)}")
            evaluated = step
            if row["exact"] < best:
                best = row["exact"]
                save("best.pt")

        done = stop or step >= s.max_iters
        if done or time.perf_counter() - saved > SAVE_SECONDS:
            save("last.pt")
            saved = time.perf_counter()
        if done:
            break

        # Forward and backward
        began = time.perf_counter()
        model.train()
        sums = torch.zeros(2, device=device)            # the loss, and the number of stop signals
        for part in range(rank, parts, world):
            torch.manual_seed((s.seed * 1_000_003 + step) * parts + part)   # for dropout
            x, y = get_batch(train, s, step, part, parts, device)
            with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
                part_loss = compute(x, y, **how_to_train(s))[1]     # of all passes, in lrt.py
            (part_loss / parts).backward()
            sums[0] += part_loss.detach() / parts
        sums[1] = len(told)
        if world > 1:
            for tensor in [sums, *(p.grad for p in model.parameters() if p.grad is not None)]:
                dist.all_reduce(tensor)
        loss, stop = sums[0].item(), sums[1].item() > 0
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip or math.inf).item()
        if not math.isfinite(loss + norm):              # before the update, so weights stay finite
            raise UsageError(f"step {step:,}: the loss is {loss}, the norm of the gradient {norm}; "
                             f"{out} keeps its last checkpoint; start another run with a smaller "
                             "--learning_rate")

        # Update
        rate = get_lr(s, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        losses.append(loss)
        seconds.append(time.perf_counter() - began)

        # Report
        if step % s.log_interval == 0:
            mean, pace = float(np.mean(losses)), float(np.mean(seconds))
            losses, seconds = [], []
            speed = parts * x.numel() / pace
            report({"step": step, "loss": mean, "lr": rate, "norm": norm, "seconds": pace},
                   f"step {step:6,}/{s.max_iters:,}  loss {mean:.4f}  lr {rate:.4f}  "
                   f"{speed:7,.0f} tokens/s  {pace * (s.max_iters - step):4.0f} s left")

    # ---- The end
    if not master:
        return
    if stop:
        print(f"stopped after step {step:,}; to continue: python train.py --resume=1 "
              f"--out_dir={out}")
        return
    row = min((row for row in log if "exact" in row), key=lambda row: row["exact"])
    print(f"\nbest evaluation: step {row['step']:,}")
    for name, title in (("exact", "exact"), ("no_memory", "latent held at 0"))[:1 + s.lrt]:
        line = f"{title}: {row[name]:.4f} nats per token"
        if codec:
            line += f", {row[name] / math.log(2) / meta['bytes_per_token']:.4f} bits per byte"
        print(line)
    print(f"\n$ python sample.py --out_dir={out}")
    return True


if __name__ == "__main__":
    run_script(main)
