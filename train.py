"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h lists all settings)
On several processes or machines:  torchrun --standalone --nproc_per_node=2 train.py --lrt=1

Writes out_dir/last.pt and best.pt (best by exact loss), log.jsonl (a row for each evaluation) and run.json.
"""
import json
import math
import os
import platform
import signal
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from lrt import GPT, GPTConfig
from prepare_data import MAX_SEED, Parser, check, fail, load, prepare, script, task_rows, write_atomic
from sample import find_device, hold_latent_at_zero, load_checkpoint, stream

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))     # torchrun sets them


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    # files
    dataset: str = option("shakespeare", "folder in data/, see prepare_data.py; parity and swaps are tasks with settings of their own")
    out_dir: str = option("out", "where checkpoints and the log go")
    overwrite: int = option(0, "1: replace the run that out_dir holds")
    resume: str = option("", "folder of a run to go on with, as it was started")
    # model
    block_size: int = option(128, "positions that attention can see; of text, also the tokens in a row, T")
    n_layer: int = option(2, "layers, L")
    n_head: int = option(4, "attention heads in each layer, H")
    n_embd: int = option(128, "width, C")
    dropout: float = option(0.0, "worth it when the same text is read many times")
    # latent recurrence
    lrt: int = option(0, "1: hand each token the state of the one before it")
    lrt_mode: str = option("parallel", "parallel: the dial below; sequential: token by token, exact and slow")
    lrt_subsets: int = option(2, "S: interleaved subsets of the positions; S = block_size is exact")
    lrt_sweeps: int = option(1, "K: how often each subset is recomputed")
    lrt_loss_weights: str = option("", "K + 1 numbers with commas: first pass, sweep 1 .. K (default: each pass alike)")
    lrt_memory_layer: int = option(-1, "layer whose output is the memory, 1 .. L; -1: the last")
    lrt_memory_proj: str = option("shared", "shared: one memory projection for all layers; layerwise: one in each")
    # training
    batch_size: int = option(8, "rows in a batch of each process, B; small, as Muon gains more from steps than from rows")
    gradient_accumulation_steps: int = option(1, "batches in a step, for more rows than fit into memory at once")
    max_iters: int = option(1750, "steps")
    max_flops: float = option(0.0, "stop at this much compute if max_iters would go further, to compare runs (0: no limit)")
    learning_rate: float = option(1.6e-2, "highest, after warm-up")
    min_lr: float = option(0.0, "at the end of the cosine")
    warmup_iters: int = option(50, "steps from 0 to learning_rate")
    weight_decay: float = option(0.1, "of the hidden matrices")
    grad_clip: float = option(1.0, "largest norm of the gradient (0: no limit)")
    curriculum: str = option("", "rows cut to a length for so many steps, then whole: 4:100,8:100 (tasks)")
    seed: int = option(1337, "of the weights and the data order")
    # evaluation
    eval_interval: int = option(600, "steps from one evaluation on the validation split to the next")
    log_interval: int = option(50, "steps from one line of progress to the next")
    # machine
    device: str = option("", "cpu, cuda, mps ... (default: the best one here)")
    dtype: str = option("", "float32 or bfloat16 (default: bfloat16 on a GPU that has it)")
    compile: int = option(-1, "1 or 0: torch.compile (default: on cuda, unless sequential; on a CPU a minute to compile, then faster or slower)")

    def loss_weights(self):
        """lrt_loss_weights as numbers, or None for the default. Raises ValueError if they are not K + 1 numbers."""
        weights = tuple(float(w) for w in self.lrt_loss_weights.split(",")) if self.lrt_loss_weights else None
        if weights and not (len(weights) == self.lrt_sweeps + 1 and math.isfinite(sum(weights)) and weights[-1]):
            raise ValueError("not one for each pass, or not to be used")
        return weights

    def row_lengths(self, T):
        """The length of the rows in each step, at most T. Raises ValueError if the curriculum is not like 4:100,8:100."""
        lengths, start = np.full(self.max_iters, T, dtype=np.int32), 0
        for stage in self.curriculum.split(",") if self.curriculum else []:
            length, steps = (int(number) for number in stage.split(":"))
            if length < 1 or steps < 1:
                raise ValueError("a stage needs a length and a number of steps of at least 1")
            lengths[start:start + steps] = min(length, T)
            start += steps
        return lengths


# What a task is trained with unless the command line says otherwise. Attention sees no more than the rows it learned on.
TASK_SETTINGS = {
    "parity": dict(block_size=32, batch_size=64, max_iters=150, learning_rate=8e-3, warmup_iters=20, eval_interval=50, log_interval=25),
    "swaps": dict(block_size=32, batch_size=64, max_iters=600, learning_rate=8e-3, warmup_iters=20, eval_interval=200,
                  curriculum="4:100,8:100,16:100"),
}


def parse_settings(argv):
    """The command line as Settings; every field is a flag."""
    parser = Parser(__doc__)
    for f in fields(Settings):
        default = f"(default: {f.default})" if f.default != "" and "(default" not in f.metadata["help"] else ""
        parser.add_argument(f"--{f.name}", type=f.type, default=f.default, metavar="X", help=f"{f.metadata['help']} {default}")
    parser.set_defaults(**TASK_SETTINGS.get(parser.parse_args(argv).dataset, {}))
    s = Settings(**vars(parser.parse_args(argv)))
    if s.resume and s != Settings(resume=s.resume):
        fail("--resume goes on with the settings of that run; give it no other flag")
    check_settings(s)
    return s


def check_settings(s):
    """Each in its range, and all of them together."""
    big = 10 ** 9
    check(s, batch_size=(1, big), gradient_accumulation_steps=(1, big), max_iters=(1, 10 ** 7), max_flops=(0, 1e30),
          learning_rate=(0, big), min_lr=(0, s.learning_rate), warmup_iters=(0, big), weight_decay=(0, big), grad_clip=(0, big),
          seed=(0, MAX_SEED), eval_interval=(1, big), log_interval=(1, big), lrt_subsets=(1, big), lrt_sweeps=(1, big),
          lrt=[0, 1], lrt_mode=["parallel", "sequential"], overwrite=[0, 1], dtype=["", "float32", "bfloat16"], compile=[-1, 0, 1])
    if not s.out_dir:
        fail("--out_dir is empty; give a folder for checkpoints and log")
    if s.lrt and 0 < s.block_size < s.lrt_subsets:
        fail(f"--lrt_subsets={s.lrt_subsets} is more than --block_size={s.block_size}, which is exact already")
    try:
        s.loss_weights()
    except ValueError:
        fail(f"--lrt_loss_weights={s.lrt_loss_weights}: must be {s.lrt_sweeps + 1} numbers (lrt_sweeps + 1), the last one not 0")
    try:
        s.row_lengths(s.block_size)
    except ValueError:
        fail(f"--curriculum={s.curriculum}: must be lengths and steps, like 4:100,8:100")
    for f in fields(s):
        if f.name.startswith("lrt_") and getattr(s, f.name) != f.default:
            if not s.lrt:
                fail(f"--{f.name}={getattr(s, f.name)} has no meaning for a plain GPT; add --lrt=1")
            if s.lrt_mode == "sequential" and f.name in ("lrt_subsets", "lrt_sweeps", "lrt_loss_weights"):
                fail(f"--{f.name}={getattr(s, f.name)} has no meaning with --lrt_mode=sequential, which is exact already")


# ---- Data: what a step sees depends on (seed, step) alone, so a run can stop and go on anywhere -----------------

def batch(data, s, T, step, part, device):
    """Inputs and targets (B, T) each, for one part (of gradient accumulation) of a step: text from random places, with
    its next tokens as targets, or random rows of a task, cut to T. Several processes share what one with as many times
    the rows would draw."""
    rng = np.random.default_rng((s.seed, step, part))
    draws = rng.integers(len(data["train"]) - (0 if "train_y" in data else T), size=WORLD * s.batch_size)[RANK::WORLD]
    if "train_y" in data:
        return tuple(torch.from_numpy(data[name][draws, :T].astype(np.int64)).to(device) for name in ("train", "train_y"))
    rows = torch.from_numpy(data["train"][draws[:, None] + np.arange(T + 1)].astype(np.int64)).to(device)
    return rows[:, :-1], rows[:, 1:]


def windows(data, T, vocab_size, device):
    """The whole validation split, in order, as batches (inputs, targets) of rows of T; of text, also the shorter last row.
    Logits of a batch take 256 MB at most, or are those of one row."""
    if "val_y" in data:
        pairs = zip(*(np.array_split(data[name], -(-len(data[name]) // 256)) for name in ("val", "val_y")))
    else:
        tokens, rows, per_batch = data["val"], (len(data["val"]) - 1) // T, max(1, min(1 << 14, (1 << 26) // vocab_size) // T)
        cuts = [(r * T, min(rows, r + per_batch) * T, T) for r in range(0, rows, per_batch)]
        rest = len(tokens) - 1 - rows * T
        cuts += [(rows * T, rows * T + rest, rest)] if rest else []
        pairs = [(tokens[a:b].reshape(-1, width), tokens[a + 1:b + 1].reshape(-1, width)) for a, b, width in cuts]
    for pair in pairs:
        yield tuple(torch.from_numpy(part.astype(np.int64)).to(device) for part in pair)


# ---- Loss ------------------------------------------------------------------------------------------------------

class TrainingLoss(torch.nn.Module):
    """The loss of the training graph, which is the dial's or the token loop: a module, as torch.compile and DDP take one."""

    def __init__(self, model, s):
        super().__init__()
        self.model, self.s, self.loss_weights = model, s, s.loss_weights()

    def forward(self, x, y):
        if self.s.lrt and self.s.lrt_mode == "sequential":
            return self.model.forward_sequential(x, y)[1]
        return self.model(x, y, self.s.lrt_subsets, self.s.lrt_sweeps, self.loss_weights)[1]


def exact(model, x, y):
    """Decoding token by token: of every target its cross-entropy, in nats, and whether it was the likeliest, (B, T) each,
    in float64 on the CPU."""
    cache, nll, right = model.init_cache(x.size(0)), [], []
    for t in range(x.size(1)):
        logits = model.step(x[:, t], cache)
        nll.append(F.cross_entropy(logits, y[:, t], reduction="none"))
        right.append(logits.argmax(-1) == y[:, t])
    return torch.stack(nll, 1).cpu().double(), torch.stack(right, 1).cpu().double()


@torch.no_grad()
def evaluate(model, s, codec, data, device):
    """Over the whole validation split, exactly and on the training graph after its last sweep. Draws no random numbers.

    Of text: losses and bits per byte; of a task: losses and accuracies."""
    model.eval()
    task, n_bytes = "val_y" in data, torch.tensor([len(b) for b in codec.token_bytes], device=device)
    totals = Counter()
    by_position = torch.zeros(3, data["val"].shape[1] if task else s.block_size, dtype=torch.float64)
    for x, y in windows(data, s.block_size, codec.vocab_size, device):
        nll, right = exact(model, x, y)
        by_position[:, :x.size(1)] += torch.stack([nll.sum(0), right.sum(0), torch.ones_like(nll).sum(0)])
        totals["bytes"] += n_bytes[y].sum().item()
        if s.lrt and s.lrt_mode == "parallel":
            logits = model(x, None, s.lrt_subsets, s.lrt_sweeps)[0]
            nll, right = F.cross_entropy(logits.transpose(1, 2), y, reduction="none").cpu().double(), (logits.argmax(-1) == y).cpu()
        totals["nll"] += nll.sum().item()                                   # a training graph in sequence is the exact one
        totals["right"] += right.sum().item()
    model.train()
    n, (nll, right, count) = by_position[2].sum().item(), by_position
    result = {"val_loss": totals["nll"] / n, "val_loss_exact": nll.sum().item() / n}
    if task:
        result |= {"val_accuracy": totals["right"] / n, "val_accuracy_exact": right.sum().item() / n}
    else:
        result["val_bpb_exact"] = nll.sum().item() / math.log(2) / totals["bytes"]
    return result | {"exact_by_position": [round(v, 4) for v in (nll / count.clamp(min=1)).tolist()]}


def accuracy_by_length(model, meta, seed, device, rows=256):
    """Exact accuracy on new rows of 1, 2, 4, 8 and 16 times the trained length: {length: over the last tenth}, and
    {length: over the whole}. A row's beginning is a shorter row, so one decoding of the longest does."""
    x, y = (torch.from_numpy(a).to(device) for a in task_rows(meta["task"], rows, 16 * meta["length"], np.random.default_rng(seed)))
    model.eval()
    right = exact(model, x, y)[1].mean(0)
    model.train()
    lengths = [meta["length"] * n for n in (1, 2, 4, 8, 16)]
    return ({n: round(right[min(n - 1, int(n * 0.9)):n].mean().item(), 5) for n in lengths},
            {n: round(right[:n].mean().item(), 5) for n in lengths})


def badness(row):
    """What `best` is the least of: the exact loss; of a task, the share of wrong answers, then that."""
    return -row.get("val_accuracy_exact", 0.0), row["val_loss_exact"]


def parted(row):
    """A line that says so where decoding does not do what the training graph shows, or None."""
    gap = row["val_loss_exact"] - row["val_loss"]
    accuracy = row.get("val_accuracy_exact", 0.0) - row.get("val_accuracy", 0.0)
    if abs(gap) > 0.02 or abs(accuracy) > 0.02:
        verdict = "THEY DISAGREE: decoding is worse than the parallel training shows; raise --lrt_subsets or --lrt_sweeps, " \
            "or use --lrt_mode=sequential" if gap > 0.02 or accuracy < -0.02 else "decoding is better"
        return f"step {row['iter']:,}: exact - training graph = {gap:+.4f}{f', {accuracy:+.1%} right' if accuracy else ''}: {verdict}"


def flops_of_row(model, s, T, device):
    """Of forward and backward, multiplications and additions, for one row of T; full attention as in SDPA's maths."""
    x = torch.zeros(1, T, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        TrainingLoss(model, s)(x, x).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


# ---- Optimizers --------------------------------------------------------------------------------------------------

def make_optimizers(model, s):
    """Muon for the hidden matrices; AdamW for embedding, head and scalars, each at its multiple of the learning rate."""
    adam = {"embed": model.embed.weight, "head": model.head.weight,
            **{name: p for name, p in model.named_parameters() if p.ndim < 2}}
    scale = {"embed": 3.0, "head": 1.0, "alpha": 3.0, "beta": 3.0, "gamma": 3.0}
    matrices = [p for p in model.parameters() if not any(p is q for q in adam.values())]
    return [torch.optim.Muon(matrices, momentum=0.85, weight_decay=s.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([{"params": [p], "scale": scale[name]} for name, p in adam.items()],
                              betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=model.head.weight.is_cuda)]


def learning_rate(step, max_iters, s):
    """Linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    progress = (step - s.warmup_iters) / max(1, max_iters - s.warmup_iters)
    return s.min_lr + (s.learning_rate - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# ---- The run -----------------------------------------------------------------------------------------------------

def start_or_resume(s):
    """(settings, checkpoint or None). Ends with an error rather than replace a run unasked."""
    s.out_dir = str(Path(s.out_dir).expanduser())
    if not s.resume:
        if any((Path(s.out_dir) / name).exists() for name in ("last.pt", "best.pt", "log.jsonl")) and not s.overwrite:
            fail(f"{s.out_dir} holds a run: go on with it (--resume={s.out_dir}), replace it (--overwrite=1) or use another --out_dir")
        return s, None
    path = Path(s.resume).expanduser() / "last.pt"
    checkpoint = load_checkpoint(path, "cpu")[2]
    try:
        if not {"optimizers", "iter", "seconds", "recent", "rows", "processes"} <= set(checkpoint):
            raise ValueError("it has no optimizers")
        if not (isinstance(checkpoint["iter"], int) and isinstance(checkpoint["rows"], list) and isinstance(checkpoint["recent"], list)
                and isinstance(checkpoint["seconds"], float) and len(checkpoint["optimizers"]) == 2 and "sha256" in checkpoint["meta"]):
            raise ValueError("its entries are not what train.py writes")
        s = Settings(**{**checkpoint["settings"], "out_dir": str(path.parent), "resume": str(path.parent)})
        check_settings(s)
        if checkpoint["processes"] != WORLD:
            fail(f"{path} is of a run with {checkpoint['processes']} processes, this one has {WORLD}: it would not be the same run")
        return s, checkpoint
    except (TypeError, ValueError) as e:
        fail(f"{path} is not a checkpoint to go on from ({e}); sample.py can use it, train.py cannot")


def make_out_dir(folder):
    """The folder, without what another run left in it: start_or_resume has seen to it that this is wanted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("last.pt", "best.pt", "log.jsonl", "run.json"):
            (folder / name).unlink(missing_ok=True)
    except OSError as e:
        fail(f"--out_dir={folder}: {e.strerror}")


def prepare_once(s):
    """load(), after making the data if they are not there: one process at a time, so once for each disk."""
    for turn in range(WORLD):
        if turn == RANK and not (Path("data") / s.dataset / "meta.json").exists():
            prepare(s.dataset)
        if WORLD > 1:
            dist.barrier()
    return load(s.dataset)


@script
def main(argv):
    # ---- What to train, on what
    s, checkpoint = start_or_resume(parse_settings(argv))
    own_gpu = WORLD > 1 and s.device in ("", "cuda") and torch.cuda.is_available()
    device = find_device(f"cuda:{os.environ['LOCAL_RANK']}" if own_gpu else s.device)
    if WORLD > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    meta, codec, data = prepare_once(s)
    T = meta.get("length", s.block_size)
    if T > s.block_size:
        fail(f"data/{s.dataset} has rows of {T}, more than --block_size={s.block_size} can see")
    if "task" not in meta and len(data["train"]) <= T:
        fail(f"data/{s.dataset}: {len(data['train']):,} training tokens are fewer than a row of --block_size={T} + 1")
    try:
        config = GPTConfig(s.block_size, codec.vocab_size, s.n_layer, s.n_head, s.n_embd, s.dropout, bool(s.lrt),
                           s.lrt_memory_layer, s.lrt_memory_proj)
    except ValueError as e:
        fail(f"--{'lrt_' if str(e).startswith('memory') else ''}{e}")
    torch.manual_seed(s.seed)
    torch.set_float32_matmul_precision("high")              # TF32 where there is such a thing
    model = GPT(config).to(device)
    optimizers = make_optimizers(model, s)
    out, first, seconds, recent, rows = Path(s.out_dir), 0, 0.0, [], []
    if checkpoint:
        if checkpoint["meta"]["sha256"] != meta["sha256"] or checkpoint["meta"]["codec"] != meta["codec"]:
            fail(f"data/{s.dataset} is not what {out} was trained on ({checkpoint['meta']['source']}); prepare that again")
        model.load_state_dict(checkpoint["model"])
        try:
            for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
                optimizer.load_state_dict(state)
        except Exception as e:      # a hostile file can raise anything at all
            fail(f"{out / 'last.pt'}: its optimizers are not those of this model ({type(e).__name__})")
        first, seconds, recent, rows = (checkpoint[k] for k in ("iter", "seconds", "recent", "rows"))

    # ---- How long, how fast
    lengths, rows_per_step = s.row_lengths(T), WORLD * s.batch_size * s.gradient_accumulation_steps
    cost = {n: flops_of_row(model, s, int(n), device) for n in np.unique(lengths)}
    tokens = rows_per_step * np.cumsum(lengths)                         # after each step
    flops = rows_per_step * np.cumsum([float(cost[n]) for n in lengths])
    max_iters = int((flops <= s.max_flops).sum()) if s.max_flops else s.max_iters
    if max_iters < 1:
        fail(f"--max_flops={s.max_flops:g} is less than one step, {flops[0]:.3g}")
    dtype = s.dtype or ("bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    compute = TrainingLoss(model, s)
    if s.compile == 1 or (s.compile == -1 and device.type == "cuda" and s.lrt_mode == "parallel"):
        compute = torch.compile(compute)
    if WORLD > 1:
        compute = DistributedDataParallel(compute)
    kind = "plain GPT" if not s.lrt else "LRT, token by token" if s.lrt_mode == "sequential" else \
        f"LRT, S = {s.lrt_subsets} subsets, K = {s.lrt_sweeps} sweeps"
    say(f"{kind}: {sum(p.numel() for p in model.parameters()):,} parameters, {rows_per_step * max(cost.values()) / 1e9:.1f} GFLOP a step, "
        f"{device.type}{f' x {WORLD}' if WORLD > 1 else ''} {dtype}, torch {torch.__version__}\n"
        f"{meta['source']}: {data['train'].size:,} training tokens, {data['val'].size:,} for validation")

    # ---- Files
    def save(path, **more):
        state = {"model": model.state_dict(), "config": asdict(config), "settings": asdict(s), "meta": meta, **more}
        write_atomic(path, lambda f: torch.save(state, f))

    def save_last():
        if RANK == 0:
            save(out / "last.pt", optimizers=[o.state_dict() for o in optimizers], iter=n, recent=recent, rows=rows, processes=WORLD,
                 seconds=seconds + time.perf_counter() - start)

    def write_log():
        write_atomic(out / "log.jsonl", lambda f: f.write("".join(json.dumps(row) + "\n" for row in rows).encode()))

    def stop_unless_finite(loss, what):
        if not math.isfinite(loss):
            saved = f"{out / 'last.pt'} is from step {rows[-1]['iter']:,}" if rows else "nothing was saved yet"
            fail(f"{what} is {loss} in step {step + 1:,}; {saved}. Try a smaller --learning_rate")

    if RANK == 0:
        if not checkpoint:
            make_out_dir(out)
        run = {"settings": asdict(s), "data": {k: v for k, v in meta.items() if k != "codec"}, "flops": flops[max_iters - 1],
               "parameters": sum(p.numel() for p in model.parameters()), "processes": WORLD,
               "torch": torch.__version__, "python": platform.python_version(), "machine": platform.platform()}
        write_atomic(out / "run.json", lambda f: f.write(json.dumps(run, indent=1).encode()))
        if checkpoint:
            write_log()

    # ---- The loop. Ctrl-C is answered between two steps
    interrupted = []

    def stop_after_this_step(*_):
        interrupted.append(True)
        say("\nstopping after this step ...")

    old_handler = signal.signal(signal.SIGINT, stop_after_this_step)
    start = lap = time.perf_counter()
    lap_tokens, n = tokens[first - 1] if first else 0, first
    for step in range(first, max_iters):
        torch.manual_seed((s.seed * 1_000_003 + step) * WORLD + RANK)       # for dropout
        total = 0.0
        for part in range(s.gradient_accumulation_steps):
            x, y = batch(data, s, int(lengths[step]), step, part, device)
            last_part = part == s.gradient_accumulation_steps - 1           # only then do processes exchange gradients
            with nullcontext() if WORLD == 1 or last_part else compute.no_sync():
                with autocast:
                    loss = compute(x, y) / s.gradient_accumulation_steps
                loss.backward()
            total += loss.item()
        if WORLD > 1:
            shared = torch.tensor([total, len(interrupted)], device=device)
            dist.all_reduce(shared)
            total, interrupted = shared[0].item() / WORLD, [True] * int(shared[1])
        stop_unless_finite(total, "the training loss")
        if s.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, max_iters, s) * group.get("scale", 1.0)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        recent.append(total)
        n = step + 1
        if n % s.log_interval == 0 or n == max_iters:
            now = time.perf_counter()
            speed = (tokens[step] - lap_tokens) / (now - lap)
            say(f"step {n:6,}/{max_iters:,} {100 * n / max_iters:3.0f}%  loss {np.mean(recent[-s.log_interval:]):.4f}  "
                f"{speed:8,.0f} tokens/s  {(tokens[max_iters - 1] - tokens[step]) / speed:4.0f} s left")
            lap, lap_tokens = now, tokens[step]
        if RANK == 0 and (n % s.eval_interval == 0 or n == max_iters):
            row = {"iter": n, "tokens": int(tokens[step]), "flops": float(flops[step]),
                   "seconds": seconds + time.perf_counter() - start, "train_loss": float(np.mean(recent)),
                   **evaluate(model, s, codec, data, device)}
            stop_unless_finite(row["val_loss_exact"], "the validation loss")
            if "task" in meta:
                row["accuracy_by_length"], row["accuracy_whole_by_length"] = accuracy_by_length(model, meta, (s.seed, n), device)
            recent = []
            rows.append(row)
            say(f"step {n:6,} validation: exact {row['val_loss_exact']:.4f}, training graph {row['val_loss']:.4f} nats/token; "
                + (f"exact {row['val_bpb_exact']:.4f} bits/byte" if "task" not in meta else
                   f"right {row['val_accuracy_exact']:.1%} and {row['val_accuracy']:.1%}; last tenth of "
                   + ", ".join(f"{k}: {v:.1%}" for k, v in row["accuracy_by_length"].items())))
            if parted(row):
                say(parted(row))
            if row is min(rows, key=badness):
                save(out / "best.pt", iter=n)
            save_last()
            write_log()
            lap, lap_tokens = time.perf_counter(), tokens[step]
        if interrupted:
            save_last()
            say(f"\nstopped after step {n}; go on with: "
                + (f"torchrun --standalone --nproc_per_node={WORLD}" if WORLD > 1 else "python") + f" train.py --resume={out}")
            sys.exit(130)
    signal.signal(signal.SIGINT, old_handler)
    if RANK == 0:
        report(s, out, rows, data, device)
    if WORLD > 1:
        dist.destroy_process_group()


def say(line):
    """Print from the first process alone."""
    if RANK == 0:
        print(line, flush=True)


def report(s, out, rows, data, device):
    """The final table, and of text a short sample of the best checkpoint."""
    last, best, task = rows[-1], min(rows, key=badness), "val_y" in data
    second = "val_accuracy" if task else "val_bpb"
    table = [("validation, exact decoding", best),
             ("  on the training graph", {"val_loss_exact": best["val_loss"], f"{second}_exact": best.get(second)})]
    if s.lrt:
        model, codec, _ = load_checkpoint(out / "best.pt", device)
        hold_latent_at_zero(model)
        table.append(("  exact, latent held at 0", evaluate(model, replace(s, lrt_mode="sequential"), codec, data, device)))
    if best is not last:
        table.append(("  exact, at the last step", last))
    print(f"\n{'':28}{'nats/token':>12}{'accuracy' if task else 'bits/byte':>12}{'step':>9}{'seconds':>9}")
    for name, row in table:
        value = row[f"{second}_exact"]
        when = f"{row['iter']:9,}{row['seconds']:9.0f}" if "iter" in row else ""
        print(f"{name:28}{row['val_loss_exact']:12.4f}{'' if value is None else f'{value:12.4f}'}{when}")
    if s.lrt:
        warnings = dict.fromkeys(filter(None, (parted(best), parted(last))))
        print("\n".join(warnings) or f"exact - training graph = {best['val_loss_exact'] - best['val_loss']:+.4f}: they agree")
    if task:
        print(f"\n{'exact accuracy at length':28}" + "".join(f"{n:>9}" for n in best["accuracy_by_length"]))
        for name, key in (("  over the last tenth", "accuracy_by_length"), ("  over the whole row", "accuracy_whole_by_length")):
            print(f"{name:28}" + "".join(f"{v:9.2%}" for v in best[key].values()))
        at_4 = list(best["accuracy_by_length"].values())[2]
        if best["val_accuracy"] > 0.95 and at_4 < 0.9:
            print(f"SOLVED FOR THE TRAINED LENGTH ONLY: right {best['val_accuracy']:.1%} on the training graph, {at_4:.1%} at 4 times "
                  "the length when it decodes; " + ("--lrt_mode=sequential trains what decoding does" if s.lrt else
                  "--lrt=1 --lrt_mode=sequential trains a memory for it"))
        return
    print(f"\n---- sample of {out / 'best.pt'}; more: python sample.py --out_dir={out} " + "-" * 20)
    model, codec, _ = load_checkpoint(out / "best.pt", device)
    prompt = codec.encode("\n") if b"\n" in codec.token_bytes else [0]
    stream(model.eval(), codec, prompt, 1, 400, 0.8, 200, torch.Generator(device).manual_seed(s.seed))


if __name__ == "__main__":
    main()
