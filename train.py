"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h lists all settings)
On several processes or machines:  torchrun --standalone --nproc_per_node=2 train.py --lrt=1
Writes into out_dir: last.pt, to go on from; best.pt, of least exact loss; log.jsonl and run.json."""
import json, math, os, re, signal, sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prepare_data, sample
from lrt import GPT, GPTConfig
from support.checkpoint import find_device, load_checkpoint
from support.files import own, write_atomic
from support.optimizer import make_optimizers
from support.options import MAX_SEED, option, parse, value_of
from support.script import command, fail, script

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))      # torchrun sets them
SAVE_SECONDS = 60               # from one last.pt to the next, evaluation or not
BIG = 10 ** 9
say = lambda line: print(line, flush=True) if RANK == 0 else None     # by the first process alone

@dataclass
class Settings:
    dataset: str = option("shakespeare", "in data/; parity and swaps are tasks with their own settings")
    out_dir: str = option("out", "where checkpoints and the log go", bool)
    overwrite: int = option(0, "1: replace the run that out_dir holds", [0, 1])
    resume: str = option("", "folder of a run to go on with, as it was started or longer", bool)
    init_from: str = option("", "folder or checkpoint of a run whose weights a new one begins with", bool)
    block_size: int = option(128, "context: tokens attention sees; of text, length of rows, T", (1, BIG))
    n_layer: int = option(2, "layers, L", (1, BIG))
    n_head: int = option(4, "attention heads in each layer, H", (1, BIG))
    n_embd: int = option(128, "width (dim), C", (1, BIG))
    dropout: float = option(0.0, "worth it when the same text is read many times")
    lrt: int = option(0, "1: hand each token the state of the one before it", [0, 1])
    lrt_mode: str = option("parallel", "the dial, or token by token: exact, slow", ["parallel", "sequential"])
    lrt_subsets: int = option(2, "S: interleaved subsets of the positions; S = block_size is exact", (1, BIG))
    lrt_sweeps: int = option(1, "K: how often each subset is recomputed", (1, BIG))
    lrt_loss_weights: str = option("", "K + 1 numbers: of pass 0, of sweep 1 .. K; none: each pass alike")
    lrt_memory_layer: int = option(-1, "layer whose output is the memory, 1 .. L; -1: the last")
    lrt_memory_proj: str = option("shared", "one projection for all layers, or each", ["shared", "layerwise"])
    max_iters: int = option(1500, "steps (iterations; there are no epochs)", (1, 10 ** 7))
    batch_size: int = option(8, "rows in a batch of each process", (1, BIG))
    max_flops: float = option(0.0, "end where a step would go over this compute (0: no limit)", (0, 1e30))
    learning_rate: float = option(1.6e-2, "lr after the warm-up, the highest", (0, BIG))
    warmup_iters: int = option(50, "steps from 0 to learning_rate", (0, BIG))
    weight_decay: float = option(0.1, "of the hidden matrices", (0, BIG))
    grad_clip: float = option(1.0, "largest norm of the gradient (0: no limit)", (0, BIG))
    curriculum: str = option("", "rows cut to a length for so many steps, then whole: 4:100,8:100 (tasks)")
    seed: int = option(1337, "of the weights and the data order", (0, MAX_SEED))
    eval_interval: int = option(750, "steps from one evaluation to the next", (1, BIG))
    eval_tokens: int = option(2 ** 17, "of a longer validation split, this many, spread evenly", (1, BIG))
    log_interval: int = option(50, "steps from one line of progress to the next", (1, BIG))
    device: str = option("", "cpu, cuda, mps ...; none: the best one here")
    dtype: str = option("", "of products; none: bfloat16 on a GPU that has it", ["", "float32", "bfloat16"])
    compile: int = option(-1, "torch.compile; -1: on cuda; on a CPU, try it", [-1, 0, 1])

    def dial(self):
        """(S, or None for token by token; K; loss weights or None), as the model takes them."""
        exact = self.lrt and self.lrt_mode == "sequential"
        weights = [float(number) for number in self.lrt_loss_weights.split(",") if number]
        return None if exact else self.lrt_subsets, self.lrt_sweeps, weights or None

    def row_lengths(self, T):
        """Of the rows in each step, at most T."""
        stages = [map(int, stage.split(":")) for stage in self.curriculum.split(",") if stage]
        lengths, steps = zip(*stages, (T, self.max_iters))
        return np.repeat(lengths, steps)[:self.max_iters].clip(max=T)

# What a task is trained with unless told otherwise. Attention sees no more than the rows it learned on.
TASK = dict(block_size=32, batch_size=64, learning_rate=8e-3, warmup_iters=20)
TASKS = {**dict.fromkeys(prepare_data.TASKS, TASK),
         "parity": dict(TASK, max_iters=150, eval_interval=50, log_interval=25),
         "swaps": dict(TASK, max_iters=600, eval_interval=200, curriculum="4:100,8:100,16:100")}

def refuse_contradictions(s):
    """Settings that are allowed one by one, but not together, or not in this form, end the script."""
    lrt = [f.name for f in fields(s) if f.name.startswith("lrt_") and getattr(s, f.name) != f.default]
    dial = [name for name in lrt if name in ("lrt_subsets", "lrt_sweeps", "lrt_loss_weights")]
    number, part = r"(?:\d+\.?\d*|\.\d+)", r"[1-9]\d{,5}:[1-9]\d{,5}"
    weights = re.fullmatch(f"(?:{number},){{{s.lrt_sweeps}}}({number})", s.lrt_loss_weights)
    for name, wrong, why in [
            *((name, not s.lrt, "a plain GPT has no such thing; add --lrt=1") for name in lrt),
            *((name, s.lrt_mode == "sequential", "--lrt_mode=sequential is exact already") for name in dial),
            ("lrt_subsets", "lrt_subsets" in dial and s.lrt_subsets > s.block_size, "more than --block_size"),
            ("lrt_loss_weights", s.lrt_loss_weights and not (weights and float(weights[1])),
             f"must be {s.lrt_sweeps + 1} numbers, the last one not 0"),
            ("curriculum", not re.fullmatch(f"({part}(,{part})*)?", s.curriculum), "not like 4:100,8:100")]:
        if wrong:
            fail(f"--{name}={getattr(s, name)}: {why}")

tensors = lambda device, *arrays: [torch.from_numpy(a.astype(np.int64)).to(device) for a in arrays]

def batch(data, s, T, step, device):
    """Inputs and targets (B, T) of a step: text from random places, or random rows of a task, cut to T.
    Several processes share what one with as many more rows would draw."""
    rng, train = np.random.default_rng((s.seed, step)), data["train"]
    draw = lambda n: rng.integers(n, size=WORLD * s.batch_size)[RANK::WORLD]
    if "train_y" in data:
        rows = draw(len(train))
        return tensors(device, train[rows, :T], data["train_y"][rows, :T])
    text = train[draw(len(train) - T)[:, None] + np.arange(T + 1)]
    return tensors(device, text[:, :-1], text[:, 1:])

def windows(data, T, most, vocab_size, device):
    """The validation split in order, as batches of rows of T; of text, also the shorter last row. Of more
    than `most` tokens, that many, spread evenly. Logits of a batch take 256 MB at most, or are of one row."""
    val, size = data["val"], max(1, min(1 << 14, (1 << 26) // vocab_size) // T)
    x, y = (val.ravel(), data["val_y"].ravel()) if "val_y" in data else (val[:-1], val[1:])
    count, rest = divmod(len(x), T)
    some = count if len(x) <= max(most, T) else max(1, min(count, most // T))
    whole = [part[:count * T].reshape(count, T) for part in (x, y)]
    for first in range(0, some, size):
        rows = np.arange(first, min(first + size, some)) * count // some
        yield tensors(device, *(part[rows] for part in whole))
    if rest and some == count:
        yield tensors(device, x[None, -rest:], y[None, -rest:])

def scores(model, x, y, S=None, K=1):
    """Of every target its cross-entropy, in nats, and whether it was the likeliest: (2, B, T), on the CPU."""
    logits = (model(x, None, S, K) if S else model.forward_sequential(x))[0]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    return torch.stack([nll, (logits.argmax(-1) == y).to(nll)]).cpu().double()

@torch.no_grad()
def evaluate(model, s, codec, data, stop=None):
    """Exact loss, and accuracy (task) or bits per byte (text), over the validation split; and those of the
    training graph. s.lrt = 0: after pass 0, which holds the latent at 0. None if told to stop meanwhile."""
    (S, K, _), task, device = s.dial(), "val_y" in data, model.eval().embed.weight.device
    T, size = data["val"].shape[1] if task else s.block_size, min(data["val"].size, s.eval_tokens)
    n_bytes = torch.tensor([len(b) for b in codec.token_bytes], device=device)
    at, shown, n, bytes = torch.zeros(3, T, dtype=torch.float64), 0, 0, 0
    for x, y in windows(data, T, s.eval_tokens, codec.vocab_size, device):
        if stop and stop.signal:
            return None
        print(f"evaluating {n / size:4.0%}\r" if stop and sys.stdout.isatty() else "", end="", flush=True)
        exact = scores(model, x, y) if s.lrt else scores(model, x, y, 1, 0)
        at[:, :x.size(1)] += torch.cat([exact.sum(1), torch.full((1, x.size(1)), len(x))])
        shown = shown + (scores(model, x, y, S, K) if s.lrt and S else exact).sum((1, 2))
        n, bytes = n + y.numel(), bytes + n_bytes[y].sum().item()
    nll, right, count = at
    row = {"val_loss": shown[0] / n, "val_loss_exact": nll.sum() / n}
    row |= {"val_accuracy": shown[1] / n, "val_accuracy_exact": right.sum() / n} if task else \
        {"val_bpb_exact": nll.sum() / math.log(2) / bytes}
    return {**{name: round(value.item(), 6) for name, value in row.items()}, "val_tokens": n,
            "exact_by_position": [round(v, 4) for v in (nll / count.clamp(min=1)).tolist()]}

# What the best row has the least of: exact loss; of a task, the share of wrong answers, then that.
badness = lambda row: (-row.get("val_accuracy_exact", 0.0), row["val_loss_exact"])

def in_words(row, s):
    """The numbers of an evaluation; those of the training graph where it is not the exact one."""
    graph = lambda key, form: f" ({row[key]:{form}} on the training graph)" if s.lrt and s.dial()[0] else ""
    line = f"{row['val_loss_exact']:.4f} nats/token{graph('val_loss', '.4f')}, "
    if "val_bpb_exact" in row:
        return line + f"{row['val_bpb_exact']:.4f} bits/byte"
    shares = [f"{share:.1%} at {n}" for n, share in row.get("accuracy_by_length", {}).items()]
    return ", ".join([f"{line}{row['val_accuracy_exact']:.1%} right{graph('val_accuracy', '.1%')}", *shares])

def verdict(row):
    """A line: does decoding do what the training graph shows? A task's answers decide, not its loss."""
    name, most, better = ("accuracy", 0.02, 1) if "val_accuracy" in row else ("loss", 0.05, -1)
    gap = row[f"val_{name}_exact"] - row[f"val_{name}"]
    how = "they agree" if abs(gap) <= most else "decoding is better" if gap * better > 0 else \
        "THEY DISAGREE, decoding is worse; more --lrt_subsets or --lrt_sweeps train nearer to it"
    return f"exact - training graph = {gap:+.4f} in {name} (threshold {most}): {how}"

def together(*numbers):
    """Sums over all processes, the same in each: what they do next may depend on nothing else. The others
    wait here while the first one evaluates, half an hour at most (gloo); eval_tokens need far less."""
    if WORLD > 1:
        torch.distributed.all_reduce(numbers := torch.tensor(numbers, dtype=torch.float64))
    return [float(n) for n in numbers]

class Stop:
    """Ctrl-C, or the system's wish that this process end (SIGTERM; SIGHUP: the terminal is gone), is noted
    and answered between two steps or two batches of an evaluation. A second one ends the process at once."""
    def __init__(self):
        self.signal = 0
        for one in signal.Signals:                                      # on Windows without SIGHUP
            if one.name in ("SIGINT", "SIGTERM", "SIGHUP") and signal.getsignal(one) != signal.SIG_IGN:
                signal.signal(one, self.note)                           # nohup ignores SIGHUP

    def note(self, number, frame):
        if self.signal and WORLD == 1:                                  # torchrun repeats what all have got
            sys.exit(128 + number)
        self.signal = self.signal or number

def resumed(s, given):
    """(settings, contents of last.pt) of a run that goes on as it was started, or longer."""
    path = Path(s.resume) if s.resume.endswith(".pt") else Path(s.resume, "last.pt")
    if RANK == 0 and os.path.isfile(path):
        own(path.parent, "--out_dir")
    last = load_checkpoint(path)[2]
    new = "new run, same weights: " + command(f"--init_from={path}", "--out_dir=NEW")
    try:
        if last["processes"] != WORLD:
            fail(f"{path} is of a run of {last['processes']} processes, this one has {WORLD}: another run")
        old = asdict(Settings(**last["settings"]))      # a TypeError, if it has settings that are no more
        old |= {f.name: value_of(f, str(old[f.name])) for f in fields(s) if old[f.name] != ""}
    except (KeyError, TypeError):
        fail(f"{path} is not of a run of this train.py, or has nothing to go on from; {new}")
    old |= {"out_dir": str(path.parent), "resume": str(path.parent)}
    changed = {name: getattr(s, name) for name in given if name != "resume" and getattr(s, name) != old[name]}
    for name in set(changed) - {"max_iters", "device", "compile", "eval_interval", "log_interval"}:
        fail(f"--{name}={changed[name]}: that run has {old[name]!r}, and goes on as it was started; {new}")
    s, steps = Settings(**{**old, **changed}), old["max_iters"]
    if s.max_iters < steps:
        fail(f"--max_iters={s.max_iters} is less than {steps}, which the learning rate is made for")
    if s.max_iters > steps:
        say(f"the learning rate now falls over {s.max_iters:,} steps, not {steps:,}: another plan")
    return s, last

class Run:
    """A model in training: what last.pt holds, and what follows from its settings and data."""
    def __init__(self, s, device):
        self.s, self.device, self.out = s, device, Path(s.out_dir)
        self.meta, self.codec, self.data = prepare_data.load(s.dataset)
        T, n = self.meta["length"] if "task" in self.meta else s.block_size, len(self.data["train"])
        if T > s.block_size or n <= T and "task" not in self.meta:
            has = f"rows of {T}" if "task" in self.meta else f"only {n} tokens for training"
            fail(f"--block_size={s.block_size} does not suit data/{s.dataset}: it has {has}")
        try:
            self.config = GPTConfig(s.block_size, self.codec.vocab_size, s.n_layer, s.n_head, s.n_embd,
                                    s.dropout, bool(s.lrt), s.lrt_memory_layer, s.lrt_memory_proj)
        except ValueError as e:
            fail(f"--{'lrt_' if str(e).startswith('memory') else ''}{e}")
        torch.manual_seed(s.seed)
        self.model = self.compute = GPT(self.config).to(device)
        self.optimizers = make_optimizers(self.model, s)
        self.iter, self.seconds, self.recent, self.rows = 0, 0.0, [], []    # steps; losses since a row; log
        self.lengths, rows = s.row_lengths(T), WORLD * s.batch_size
        cost = {}                               # forward and backward of a row; attention as in SDPA's maths
        for n in set(self.lengths.tolist()):
            x = torch.zeros(1, n, dtype=torch.long, device=device)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                self.model(x, x, *s.dial())[1].backward()
            cost[n] = float(counter.get_total_flops())
        self.model.zero_grad()
        self.tokens = rows * self.lengths.cumsum()                          # after each step
        self.flops = rows * np.cumsum([cost[n] for n in self.lengths.tolist()])
        self.max_iters = int((self.flops <= s.max_flops).sum()) if s.max_flops else s.max_iters
        if self.max_iters < 1:
            fail(f"--max_flops={s.max_flops:g} is less than one step, {self.flops[0]:.3g}")
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = s.dtype or ("bfloat16" if half else "float32")

    def take(self, path, last, same):
        """Begin with another run's weights, of which missing ones start as usual; or, the same run, go on."""
        meta, config = last["meta"], GPTConfig(**last["config"])
        if any(meta.get(key) != self.meta[key] for key in ["codec"] + ["sha256"] * same):
            fail(f"{path} was trained on --tokenizer={meta.get('tokenizer')} of {meta.get('source')}; data/"
                 f"{self.s.dataset} is --tokenizer={self.meta['tokenizer']} of {self.meta['source']}")
        for name in ["n_layer", "n_head", "n_embd"] + ["lrt", "memory_layer", "memory_proj"] * config.lrt:
            if (had := getattr(config, name)) != getattr(self.config, name):
                fail(f"{path} needs --{name.replace('mem', 'lrt_mem')}={int(had) if had is True else had}")
        new = self.model.load_state_dict(last["model"], strict=False).missing_keys
        if not same:
            return say(f"weights of {path}" + (f"; starting as usual: {', '.join(new)}" if new else ""))
        try:
            for optimizer, state in zip(self.optimizers, last["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.iter, self.seconds = range(self.max_iters + 1).index(last["iter"]), float(last["seconds"])
            self.recent = [float(loss) for loss in last["recent"]]
            self.rows = [row for row in last["rows"] if row["iter"] > 0 and badness(row)[1] >= 0]
        except Exception as e:      # a hostile file can raise anything at all
            fail(f"{path} has not what a run of this model goes on from ({type(e).__name__})")

    def claim(self):
        """Make out_dir this run's own, empty it of another one, and tell what is going to happen."""
        s, (S, K, _) = self.s, self.s.dial()
        if not s.resume:
            own(self.out, "--out_dir")
            old = [self.out / name for name in ("last.pt", "best.pt", "log.jsonl", "run.json")]
            if not s.overwrite and (old[0].exists() or old[1].exists()):
                fail(f"{self.out} has a run: {command(f'--resume={self.out}')} or another, or --overwrite=1")
            for path in old:
                path.unlink(missing_ok=True)
        about = {"settings": asdict(s), "data": {k: v for k, v in self.meta.items() if k != "codec"},
                 "parameters": sum(p.numel() for p in self.model.parameters()), "processes": WORLD,
                 "flops": self.flops[self.max_iters - 1], "torch": torch.__version__, "python": sys.version}
        write_atomic(self.out / "run.json", lambda f: f.write(json.dumps(about, indent=1).encode()))
        kind, gflop = f"LRT, S = {S} subsets, K = {K} sweeps", np.diff(self.flops, prepend=0).max() / 1e9
        kind = "plain GPT" if not s.lrt else kind if S else "LRT, token by token"
        say(f"{kind}: {about['parameters']:,} parameters, {gflop:.1f} GFLOP a step, {self.device.type}"
            f"{f' x {WORLD}' * (WORLD > 1)} {self.dtype}, torch {torch.__version__}; {self.meta['source']}")

    def save(self, best=False):
        """last.pt and the log; if asked to, best.pt, too."""
        self.saved = perf_counter()
        state = {"model": self.model.state_dict(), "config": asdict(self.config), "settings": asdict(self.s),
                 "meta": self.meta, "iter": self.iter}
        last = {**state, "optimizers": [o.state_dict() for o in self.optimizers], "processes": WORLD,
                "seconds": self.seconds + self.saved - self.start, "recent": self.recent, "rows": self.rows}
        log = "".join(json.dumps(row) + "\n" for row in self.rows)
        of_best = (self.out / "best.pt", lambda f: torch.save(state, f)) if best else ()
        write_atomic(*of_best, self.out / "last.pt", lambda f: torch.save(last, f),
                     self.out / "log.jsonl", lambda f: f.write(log.encode()))

    def step(self):
        """Forward, backward, update; linear warm-up, then a cosine down to 0. Returns the loss."""
        s, n, warm = self.s, self.iter, self.s.warmup_iters
        torch.manual_seed((s.seed * 1_000_003 + n) * WORLD + RANK)          # for dropout
        self.model.train()
        x, y = batch(self.data, s, int(self.lengths[n]), n, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            loss = self.compute(x, y, *s.dial())[1]
        loss.backward()
        for p in self.model.parameters() if WORLD > 1 else ():      # their mean: torch's DDP over gloo twice
            torch.distributed.all_reduce(p.grad.div_(WORLD))        # hung or aborted at the end of a test
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.grad_clip or math.inf)
        cosine = math.cos(math.pi * (n - warm) / max(1, self.max_iters - warm))
        rate = s.learning_rate * (n + 1) / warm if n < warm else s.learning_rate * (1 + cosine) / 2
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            optimizer.step()
        self.model.zero_grad()
        self.iter += 1
        return loss.item()

    @torch.no_grad()
    def validate(self, stop):
        """Evaluate: a row of the log, and the checkpoints. Or nothing, if told to stop meanwhile."""
        if not (found := evaluate(self.model, self.s, self.codec, self.data, stop)):
            return
        if not math.isfinite(loss := found["val_loss_exact"]):
            fail(f"the validation loss is {loss} in step {self.iter:,}; try a smaller --learning_rate")
        n, seconds = self.iter, self.seconds + perf_counter() - self.start
        if "task" in self.meta:         # exact, over the last tenth of 1 to 16 times the trained length
            T, rng = self.meta["length"], np.random.default_rng((self.s.seed, n))
            rows = prepare_data.task_rows(self.meta["task"], 256, 16 * T, rng)
            right = scores(self.model, *tensors(self.device, *rows))[1].mean(0)
            share = lambda length: round(right[min(length - 1, int(length * 0.9)):length].mean().item(), 5)
            found["accuracy_by_length"] = {T << k: share(T << k) for k in range(5)}
        row = {"iter": n, "tokens": int(self.tokens[n - 1]), "flops": float(self.flops[n - 1]),
               "seconds": round(seconds, 1), "train_loss": round(float(np.mean(self.recent)), 6), **found}
        self.rows, self.recent = [*self.rows, row], []
        say(f"step {n:6,} validation: exact {in_words(row, self.s)} ({row['val_tokens']:,} tokens)")
        self.save(best=row is min(self.rows, key=badness))

def train(run, stop):
    """Steps and evaluations, until the last one, or until all processes agree to stop."""
    s, end, tokens, times, stopping = run.s, run.max_iters, np.concatenate([[0], run.tokens]), [], 0
    said = run.start = run.saved = perf_counter()
    few = evaluate(run.model, replace(s, eval_tokens=min(s.eval_tokens, 8192)), run.codec, run.data)
    size = min(run.data["val"].size, s.eval_tokens) + 4096 * run.lengths.max() * ("task" in run.meta)
    evaluation = (perf_counter() - said) / few["val_tokens"] * size         # how long one takes: a guess
    evaluated = run.rows[-1]["iter"] if run.rows else 0
    name = "loss over all passes" if s.lrt and s.dial()[0] else "loss"
    while not stopping:
        n, start = run.iter, perf_counter()
        if n > evaluated and (n % s.eval_interval == 0 or n == end):
            if evaluation > 5:
                say(f"evaluating, for about {evaluation:.0f} s ...")
            if RANK == 0:
                run.validate(stop)
            stopping, evaluated, evaluation = together(stop.signal)[0], n, perf_counter() - start
        elif n == end:
            return
        else:
            loss, stopping = together(run.step() / WORLD, stop.signal)
            if not math.isfinite(loss):
                fail(f"the training loss is {loss} in step {run.iter:,}; try a smaller --learning_rate")
            run.recent.append(loss)
            n, now = run.iter, perf_counter()
            times = [*times[-199:], now - start] if len(times) != 1 else [now - start] * 2   # first: slow
            due = n % s.log_interval == 0 or n == end or len(times) == 2 or now - said > 15
            if due and not stopping:
                speed, said = (tokens[n] - tokens[n - len(times)]) / sum(times), now
                evaluations = -(-end // s.eval_interval) - (n - 1) // s.eval_interval     # and a report
                left = (tokens[end] - tokens[n]) / speed + (evaluations + s.lrt / 4) * evaluation
                say(f"step {n:6,}/{end:,} {n / end:4.0%}  {name} {np.mean(run.recent[-s.log_interval:]):.4f} "
                    f"{speed:9,.0f} tokens/s  {left:4.0f} s left")
            if RANK == 0 and now - run.saved > SAVE_SECONDS:
                run.save()
    if RANK == 0:
        run.save()
    start = "python" if WORLD == 1 else f"torchrun --standalone --nproc_per_node={WORLD}"
    say(f"\nstopped after step {run.iter:,}; go on with: {start} train.py {command(f'--resume={run.out}')}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)       # torchrun sends it to who ends a moment later
    sys.exit(128 + (stop.signal or signal.SIGINT))

def report(run, stop):
    """The best evaluation, what it is without the latent, and a sample."""
    s, task, best = run.s, "task" in run.meta, min(run.rows, key=badness)
    say(f"\nbest, step {best['iter']:,}, {best['seconds']:,.0f} s: exact {in_words(best, s)}")
    if s.lrt:
        model = load_checkpoint(run.out / "best.pt", run.device)[0]
        if held := evaluate(model, replace(s, lrt=0), run.codec, run.data, stop):
            say(f"latent held at 0: {in_words(held, replace(s, lrt=0))}")
    if s.lrt and s.dial()[0]:
        say(verdict(best))
    flags = [f"--out_dir={run.out}", *["--prompt=1 0 1 1"] * task, *[f"--device={s.device}"] * bool(s.device)]
    say("\n$ " + command("python", "sample.py", *flags))
    sample.main(flags)

@script
def main(argv):
    s, given = parse(Settings, __doc__, argv)
    s, given = parse(Settings, __doc__, argv, **TASKS.get(s.dataset, {}))
    s.out_dir, s.resume = (os.path.expanduser(folder) for folder in (s.out_dir, s.resume))
    s, last = resumed(s, given) if s.resume else (s, None)
    refuse_contradictions(s)
    if WORLD > 1 and s.device in ("", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(find_device(f"cuda:{os.environ['LOCAL_RANK']}"))
    device = find_device(s.device)
    run = Run(s, device)
    if last or s.init_from:
        run.take(s.resume or s.init_from, last or load_checkpoint(s.init_from)[2], bool(last))
    if RANK == 0:
        run.claim()
    if run.rows and run.iter == run.max_iters == run.rows[-1]["iter"] and not s.max_flops:
        say(f"{run.out} is finished; longer: --max_iters={2 * run.iter}; new run, same weights: --init_from")
    if s.compile == 1 or (s.compile == -1 and device.type == "cuda" and s.dial()[0]):
        say("compiling, a minute or so ...")
        run.compute = torch.compile(run.compute)
    if WORLD > 1:       # what they agree on goes over gloo, on GPUs, too
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    stop = Stop()
    train(run, stop)
    if RANK == 0:
        report(run, stop)
    if WORLD > 1:
        torch.distributed.destroy_process_group()

if __name__ == "__main__":
    main()
