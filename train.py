"""Train a GPT, with or without latent recurrence:  python train.py --lrt=1   (-h lists all settings)

Writes out_dir/last.pt and best.pt (best by exact loss), log.jsonl (a row for each evaluation) and run.json.
"""
import json
import math
import platform
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrt import GPT, GPTConfig
from prepare_data import Parser, fail, load, prepare, write_atomic
from sample import find_device, hold_latent_at_zero, load_checkpoint, stream


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    # files
    dataset: str = option("shakespeare", "folder in data/, see prepare_data.py")
    out_dir: str = option("out", "where checkpoints and the log go")
    overwrite: int = option(0, "1: replace the run that out_dir holds")
    resume: str = option("", "folder of a run to go on with, as it was started")
    # model
    block_size: int = option(128, "tokens in a row, T")
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
    batch_size: int = option(8, "rows in a step, B; small, as Muon gains more from steps than from rows")
    gradient_accumulation_steps: int = option(1, "batches in a step, for more rows than fit into memory")
    max_iters: int = option(1750, "steps")
    max_flops: float = option(0.0, "stop at this much compute instead, to compare runs (0: no limit)")
    learning_rate: float = option(1.6e-2, "highest, after warm-up")
    min_lr: float = option(0.0, "at the end of the cosine")
    warmup_iters: int = option(50, "steps from 0 to learning_rate")
    weight_decay: float = option(0.1, "of the hidden matrices")
    grad_clip: float = option(1.0, "largest norm of the gradient (0: no limit)")
    seed: int = option(1337, "of the weights and the data order")
    # evaluation
    eval_interval: int = option(600, "steps from one evaluation on the validation split to the next")
    log_interval: int = option(50, "steps from one line of progress to the next")
    # machine
    device: str = option("", "cpu, cuda, mps ... (default: the best one here)")
    dtype: str = option("", "float32 or bfloat16 (default: bfloat16 on a GPU that has it)")
    compile: int = option(-1, "1 or 0: torch.compile (default: on cuda only; on a CPU it takes a minute and then saves a quarter)")

    def loss_weights(self):
        """lrt_loss_weights as numbers, or None for the default. Raises ValueError if they are not K + 1 numbers."""
        weights = tuple(float(w) for w in self.lrt_loss_weights.split(",")) if self.lrt_loss_weights else None
        if weights and (len(weights) != self.lrt_sweeps + 1 or not sum(map(abs, weights)) > 0):
            raise ValueError("not as many as there are passes")
        return weights


def parse_settings(argv):
    """The command line as Settings; every field is a flag."""
    parser = Parser(__doc__)
    for f in fields(Settings):
        default = f"(default: {f.default})" if f.default != "" and "(default" not in f.metadata["help"] else ""
        parser.add_argument(f"--{f.name}", type=f.type, default=f.default, metavar="X", help=f"{f.metadata['help']} {default}")
    s = Settings(**vars(parser.parse_args(argv)))
    if s.resume and s != Settings(resume=s.resume):
        fail("--resume goes on with the settings of that run; give it no other flag")
    for name, least in (("batch_size", 1), ("gradient_accumulation_steps", 1), ("max_iters", 1), ("max_flops", 0),
                        ("learning_rate", 0), ("min_lr", 0), ("warmup_iters", 0), ("weight_decay", 0), ("grad_clip", 0),
                        ("seed", 0), ("eval_interval", 1), ("log_interval", 1), ("lrt_subsets", 1), ("lrt_sweeps", 0)):
        if not getattr(s, name) >= least:
            fail(f"--{name}={getattr(s, name)}: must be at least {least}")
    for name, allowed in (("lrt", (0, 1)), ("lrt_mode", ("parallel", "sequential")), ("overwrite", (0, 1)),
                          ("dtype", ("", "float32", "bfloat16")), ("compile", (-1, 0, 1))):
        if getattr(s, name) not in allowed:
            fail(f"--{name}={getattr(s, name)}: must be one of {', '.join(str(a) for a in allowed if a != '')}")
    if s.lrt and 0 < s.block_size < s.lrt_subsets:
        fail(f"--lrt_subsets={s.lrt_subsets} is more than --block_size={s.block_size}, which is exact already")
    try:
        s.loss_weights()
    except ValueError:
        fail(f"--lrt_loss_weights={s.lrt_loss_weights}: must be {s.lrt_sweeps + 1} numbers (lrt_sweeps + 1), not all 0")
    if not s.lrt:
        for f in fields(s):
            if f.name.startswith("lrt_") and getattr(s, f.name) != f.default:
                fail(f"--{f.name}={getattr(s, f.name)} has no meaning for a plain GPT; add --lrt=1")
    return s


# ---- Data: what a step sees depends on (seed, step) alone, so a run can stop and go on anywhere -----------------

def batch(tokens, s, step, part, device):
    """Inputs and next tokens (B, T) each, at random places, for one part (of gradient accumulation) of a step."""
    rng = np.random.default_rng((s.seed, step, part))
    start = rng.integers(len(tokens) - s.block_size, size=(s.batch_size, 1))
    rows = torch.from_numpy(tokens[start + np.arange(s.block_size + 1)].astype(np.int64)).to(device)
    return rows[:, :-1], rows[:, 1:]


def windows(tokens, T, device, size=1 << 14):
    """The whole split, in order, as batches (inputs, next tokens) of rows of T, and the shorter last row."""
    rows = (len(tokens) - 1) // T
    per_batch = max(1, size // T)
    cuts = [(r * T, min(rows, r + per_batch) * T, T) for r in range(0, rows, per_batch)]
    rest = len(tokens) - 1 - rows * T
    for a, b, width in cuts + ([(rows * T, rows * T + rest, rest)] if rest else []):
        x, y = (torch.from_numpy(tokens[a + d:b + d].astype(np.int64)).view(-1, width).to(device) for d in (0, 1))
        yield x, y


# ---- Loss ------------------------------------------------------------------------------------------------------

def training_loss(model, s, x, y, loss_weights=None):
    """The loss of the training graph: the dial's, or that of the token loop."""
    if s.lrt and s.lrt_mode == "sequential":
        return model.forward_sequential(x, y)[1]
    return model(x, y, s.lrt_subsets, s.lrt_sweeps, loss_weights)[1]


def exact_nll(model, x, y):
    """Cross-entropy, in nats, of every next token when decoding token by token: (B, T)."""
    cache, nll = model.init_cache(x.size(0)), []
    for t in range(x.size(1)):
        nll.append(F.cross_entropy(model.step(x[:, t], cache), y[:, t], reduction="none"))
    return torch.stack(nll, 1)


@torch.no_grad()
def evaluate(model, s, codec, tokens, device):
    """Over the whole split: the exact loss, and that of the training graph after its last sweep. Draws no random numbers."""
    model.eval()
    after_last_sweep = [0.0] * s.lrt_sweeps + [1.0]
    n_bytes = torch.tensor([len(b) for b in codec.token_bytes], device=device)
    graph, total_bytes = 0.0, 0
    sums, counts = torch.zeros(2, s.block_size, dtype=torch.float64)        # by position in the window
    for x, y in windows(tokens, s.block_size, device):
        nll = exact_nll(model, x, y).double()
        sums[:x.size(1)] += nll.sum(0).cpu()
        counts[:x.size(1)] += x.size(0)
        total_bytes += n_bytes[y].sum().item()
        if s.lrt and s.lrt_mode == "parallel":
            graph += training_loss(model, s, x, y, after_last_sweep).item() * x.numel()
        else:                                                               # this training graph is the exact one
            graph += nll.sum().item()
    model.train()
    exact = sums.sum().item()
    return {"val_loss": graph / counts.sum().item(), "val_loss_exact": exact / counts.sum().item(),
            "val_bpb_exact": exact / math.log(2) / total_bytes,
            "exact_by_position": [round(v, 4) for v in (sums / counts.clamp(min=1)).tolist()]}


def flops_per_step(model, s, device):
    """Of forward and backward, multiplications and additions, counted on one row; full attention as in SDPA's maths."""
    x = torch.zeros(1, s.block_size, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        training_loss(model, s, x, x).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() * s.batch_size * s.gradient_accumulation_steps


# ---- Optimizers --------------------------------------------------------------------------------------------------

def make_optimizers(model, s):
    """Muon for the hidden matrices; AdamW for embedding, head and scalars, each at its multiple of the learning rate."""
    adam = {"embed": model.embed.weight, "head": model.head.weight,
            **{name: p for name, p in model.named_parameters() if p.ndim < 2}}
    scale = {"embed": 3.0, "head": 1.0, "alpha": 3.0, "beta": 3.0, "gamma": 3.0}
    matrices = [p for p in model.parameters() if not any(p is q for q in adam.values())]
    return [torch.optim.Muon(matrices, momentum=0.85, weight_decay=s.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([{"params": [p], "scale": scale[name]} for name, p in adam.items()],
                              betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)]


def learning_rate(step, max_iters, s):
    """Linear warm-up, then a cosine down to min_lr."""
    if step < s.warmup_iters:
        return s.learning_rate * (step + 1) / s.warmup_iters
    progress = (step - s.warmup_iters) / max(1, max_iters - s.warmup_iters)
    return s.min_lr + (s.learning_rate - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# ---- The run -----------------------------------------------------------------------------------------------------

def start_or_resume(s):
    """(settings, checkpoint or None). Ends with an error rather than replace a run unasked."""
    if s.resume:
        folder, checkpoint = Path(s.resume), load_checkpoint(Path(s.resume) / "last.pt", "cpu")[2]
        s = Settings(**{**checkpoint["settings"], "out_dir": str(folder), "resume": str(folder)})
        return s, checkpoint
    folder = Path(s.out_dir)
    if (folder / "last.pt").exists() and not s.overwrite:
        fail(f"{folder} holds a run: go on with it (--resume={folder}), replace it (--overwrite=1) or use another --out_dir")
    return s, None


def make_out_dir(folder):
    """The folder, without what another run left in it: start_or_resume has seen to it that this is wanted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("last.pt", "best.pt", "log.jsonl", "run.json"):
            (folder / name).unlink(missing_ok=True)
    except OSError as e:
        fail(f"--out_dir={folder}: {e.strerror}")


def main(argv=None):
    s, checkpoint = start_or_resume(parse_settings(argv))
    device = find_device(s.device)
    if not (Path("data") / s.dataset / "meta.json").exists():
        prepare(s.dataset)
    meta, codec, tokens = load(s.dataset)
    if len(tokens["train"]) <= s.block_size:
        fail(f"data/{s.dataset}: {len(tokens['train']):,} training tokens are fewer than a row of --block_size={s.block_size} + 1")
    try:
        config = GPTConfig(s.block_size, codec.vocab_size, s.n_layer, s.n_head, s.n_embd, s.dropout, bool(s.lrt),
                           s.lrt_memory_layer, s.lrt_memory_proj)
    except ValueError as e:
        fail(f"--{'lrt_' if str(e).startswith('memory') else ''}{e}")
    torch.manual_seed(s.seed)
    model = GPT(config).to(device)
    optimizers = make_optimizers(model, s)
    out, log = Path(s.out_dir), Path(s.out_dir) / "log.jsonl"
    first, seconds, best, recent, rows = 0, 0.0, math.inf, [], []
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        if checkpoint["meta"]["sha256"] != meta["sha256"] or checkpoint["meta"]["codec"] != meta["codec"]:
            fail(f"data/{s.dataset} is not what {out} was trained on ({checkpoint['meta']['source']}); prepare that again")
        first, seconds, best, recent, rows = (checkpoint[k] for k in ("iter", "seconds", "best", "recent", "rows"))

    flops = flops_per_step(model, s, device)
    max_iters = min(s.max_iters, int(s.max_flops // flops)) if s.max_flops else s.max_iters
    if max_iters < 1:
        fail(f"--max_flops={s.max_flops:g} is less than one step, {flops:.3g}")
    tokens_per_step = s.batch_size * s.gradient_accumulation_steps * s.block_size
    dtype = s.dtype or ("bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    compute_loss = training_loss
    if s.compile == 1 or (s.compile == -1 and device.type == "cuda"):
        compute_loss = torch.compile(training_loss)
    kind = "plain GPT" if not s.lrt else "LRT, token by token" if s.lrt_mode == "sequential" else \
        f"LRT, S = {s.lrt_subsets} subsets, K = {s.lrt_sweeps} sweeps"
    print(f"{kind}: {sum(p.numel() for p in model.parameters()):,} parameters, {flops / 1e9:.1f} GFLOP a step, "
          f"{device.type} {dtype}, torch {torch.__version__}")
    print(f"{meta['source']}: {len(tokens['train']):,} training tokens, {len(tokens['val']):,} for validation")
    run = {"settings": asdict(s), "data": {k: v for k, v in meta.items() if k != "codec"}, "flops_per_step": flops,
           "parameters": sum(p.numel() for p in model.parameters()),
           "torch": torch.__version__, "python": platform.python_version(), "machine": platform.platform()}
    if not checkpoint:
        make_out_dir(out)
    write_atomic(out / "run.json", lambda f: f.write(json.dumps(run, indent=1).encode()))

    def save(path, **more):
        state = {"model": model.state_dict(), "config": asdict(config), "settings": asdict(s), "meta": meta, **more}
        write_atomic(path, lambda f: torch.save(state, f))

    def save_last():
        save(out / "last.pt", optimizers=[o.state_dict() for o in optimizers], iter=n, best=best, recent=recent, rows=rows,
             seconds=seconds + time.perf_counter() - start)

    def stop_after_this_step(*_):
        interrupted.append(True)
        print("\nstopping after this step ...", flush=True)

    def check(loss, what):
        if not math.isfinite(loss):
            saved = f"{out / 'last.pt'} is from step {rows[-1]['iter']:,}" if rows else "nothing was saved yet"
            fail(f"{what} is {loss} in step {step + 1:,}; {saved}. Try a smaller --learning_rate")

    interrupted = []
    signal.signal(signal.SIGINT, stop_after_this_step)
    start = lap = time.perf_counter()
    lap_step, n = first, first
    for step in range(first, max_iters):
        torch.manual_seed(s.seed * 1_000_003 + step)       # for dropout
        total = 0.0
        for part in range(s.gradient_accumulation_steps):
            x, y = batch(tokens["train"], s, step, part, device)
            with autocast:
                loss = compute_loss(model, s, x, y, s.loss_weights()) / s.gradient_accumulation_steps
            loss.backward()
            total += loss.item()
        check(total, "the training loss")
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
            speed = (n - lap_step) / (now - lap)
            print(f"step {n:6,}/{max_iters:,} {100 * n / max_iters:3.0f}%  loss {np.mean(recent[-s.log_interval:]):.4f}  "
                  f"{speed * tokens_per_step:8,.0f} tokens/s  {(max_iters - n) / speed:4.0f} s left", flush=True)
            lap, lap_step = now, n
        if n % s.eval_interval == 0 or n == max_iters:
            result = evaluate(model, s, codec, tokens["val"], device)
            check(result["val_loss_exact"], "the validation loss")
            row = {"iter": n, "tokens": n * tokens_per_step, "flops": n * flops,
                   "seconds": seconds + time.perf_counter() - start, "train_loss": float(np.mean(recent)), **result}
            recent = []
            rows.append(row)
            print(f"step {n:6,} validation: exact {row['val_loss_exact']:.4f}, training graph {row['val_loss']:.4f} nats/token; "
                  f"exact {row['val_bpb_exact']:.4f} bits/byte", flush=True)
            if row["val_loss_exact"] < best:
                best = row["val_loss_exact"]
                save(out / "best.pt", iter=n)
            save_last()
            write_atomic(log, lambda f: f.write("".join(json.dumps(r) + "\n" for r in rows).encode()))
            lap, lap_step = time.perf_counter(), n
        if interrupted:
            save_last()
            print(f"\nstopped after step {n}; go on with: python train.py --resume={out}")
            sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report(s, out, rows, tokens, device)


def report(s, out, rows, tokens, device):
    """The final table, and a short sample of the best checkpoint."""
    model, codec, _ = load_checkpoint(out / "best.pt", device)
    last, best = rows[-1], min(rows, key=lambda row: row["val_loss_exact"])
    table = [("validation, exact decoding", best), ("  on the training graph", {"loss": best["val_loss"]})]
    if s.lrt:
        hold_latent_at_zero(model)
        table.append(("  exact, latent held at 0", evaluate(model, replace(s, lrt_mode="sequential"), codec, tokens["val"], device)))
    if best is not last:
        table.append(("  exact, at the last step", last))
    print(f"\n{'':28}{'nats/token':>12}{'bits/byte':>12}{'step':>9}{'seconds':>9}")
    for name, row in table:
        bpb = f"{row['val_bpb_exact']:12.4f}" if "val_bpb_exact" in row else ""
        when = f"{row['iter']:9,}{row['seconds']:9.0f}" if "iter" in row else ""
        print(f"{name:28}{row.get('loss', row.get('val_loss_exact')):12.4f}{bpb}{when}")
    if s.lrt:
        gap = best["val_loss_exact"] - best["val_loss"]
        print(f"exact - training graph = {gap:+.4f}: " + ("they agree" if abs(gap) < 0.02 else "THEY DISAGREE: decoding does not "
              "do what the parallel training shows; raise --lrt_subsets or --lrt_sweeps, or use --lrt_mode=sequential"))
    print(f"\n---- sample of {out / 'best.pt'}; more: python sample.py --out_dir={out} " + "-" * 20)
    model, codec, _ = load_checkpoint(out / "best.pt", device)
    prompt = codec.encode("\n") if b"\n" in codec.token_bytes else [0]
    stream(model.eval(), codec, prompt, 1, 400, 0.8, 200, torch.Generator(device).manual_seed(s.seed))


if __name__ == "__main__":
    main()
