"""The README's training results:  python assets/results.py [--run] NAME ...

NAME is one of rate, compute, little, tuning, variants, memory, tokenizers (what each is: EXPERIMENTS below); position, more about the
runs of compute; grid, the picture of the dial; or all, which writes the tables to assets/results.md instead. Prints the table, and draws the
picture if there is one, of the runs that are known: each is a line in assets/results.jsonl. --run trains what is missing first (hours),
two runs at a time with one thread each (tuning before little, which takes the best of it); delete a line to have that run repeated. All on
the text of data/shakespeare. Logs and checkpoints stay in ./runs, which git ignores. Needs matplotlib.
"""
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from threading import Lock

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from prepare_data import load, prepare, write_dataset

RESULTS, LOCK = HERE / "results.jsonl", Lock()
SEEDS = (1337, 1, 2)
MODELS = {"plain, 2 layers": "", "plain, 4 layers": "--n_layer=4", "plain, wider": "--n_embd=136", "LRT, 2 layers": "--lrt=1"}
STYLES = dict(zip(MODELS, ("o--", "s:", "^-.", "D-")))
COMPUTE = [model for model in MODELS if model != "plain, wider"]
BUDGETS = (2e12, 5e12, 1e13, 2e13, 4e13)                            # FLOPs of training
PARTS = (5, 10, 20, 50, 100)                                        # percent of the training text
TRIED = [               # on a part of the text: percent, steps, dropout, and weight decays for each of MODELS
    (5, 300, 0.0, (2.0, 4.0), (0.5, 1.0, 2.0, 4.0), (1.0, 2.0, 4.0), (0.5, 1.0)),
    (5, 600, 0.0, (2.0,), (2.0,), (2.0,), (0.5,)),
    (10, 400, 0.0, *((0.1, 0.5, 1.0, 2.0),) * 4),
    (10, 400, 0.1, *((0.1, 0.5),) * 4),
    (10, 800, 0.0, (2.0, 4.0), (0.5, 1.0), (1.0, 2.0), (0.5, 1.0)),
    (10, 1000, 0.0, *((0.1,),) * 4),
    (10, 1000, 0.1, *((0.1,),) * 4),
    (10, 1000, 0.2, *((0.1,),) * 4),
    (10, 1600, 0.0, (2.0,), (), (), ()),
    (20, 700, 0.0, (0.5, 1.0, 2.0), (0.25, 0.5), (0.25, 0.5, 1.0), (0.1, 0.25, 0.5)),
    (20, 1400, 0.0, (0.5,), (0.5,), (0.5,), (0.25,)),
    (50, 1500, 0.0, (0.25, 0.5), (0.1, 0.25), (0.25, 0.5), (0.1, 0.25)),
    (50, 3000, 0.0, (0.5, 1.0), (0.25,), (0.25,), (0.25, 0.5)),
    (100, 0, 0.0, (0.1, 0.25, 0.5), (0.1, 0.25), (), (0.1, 0.25)),        # steps: what the largest budget buys
]


def short(number):
    """2e12, as a flag and in a picture."""
    return f"{number:.0e}".replace("e+", "e")


def at(budget, flags, rate=0.016):
    """The flags of train.py for a run of its own, with its own schedule, at a compute budget."""
    return f"{flags} --max_iters=100000 --max_flops={short(budget)} --learning_rate={rate}".strip()


def results():
    """All that is known, by (flags, seed)."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(row["flags"], row["seed"]): row for row in map(json.loads, lines)}


def known(flags):
    """Of these flags, the runs that are known."""
    return [row for (known_flags, _), row in results().items() if known_flags == flags]


def little(model, percent, steps, decay=0.1, dropout=0.0):
    """On the first part of the training text, and all of the validation text; the best of ten evaluations counts."""
    flags = at(BUDGETS[-1], MODELS[model]) if percent == 100 else \
        f"{MODELS[model]} --dataset=shakespeare-{percent} --max_iters={steps} --eval_interval={steps // 10} --dropout={dropout}".strip()
    return flags + (f" --weight_decay={decay}" if decay != 0.1 else "")


def tried(model, percent):
    """The flags of all schedules, dropouts and weight decays tried for a model on a part of the text, by name."""
    return {f"{model}, {percent} %{f', {steps} steps' * (steps > 0)}, dropout {dropout}, decay {decay}": little(model, percent, steps, decay, dropout)
            for part, steps, dropout, *decays in TRIED if part == percent for decay in decays[list(MODELS).index(model)]}


def best_little(model, percent):
    """Of those the best mean over all seeds; or, where none has more than the first seed yet, the best run."""
    return min(tried(model, percent).values(), key=lambda flags: (-len(known(flags)), mean(row["exact"] for row in known(flags) or [{"exact": 9}])))


TOKENIZERS = [          # of each the budgets up to the one after which the loss turns up, if that can be paid
    ("bpe1024", "plain, 2 layers", (2e12, 5e12, 1e13)),
    ("bpe1024", "plain, 4 layers", (5e12, 1e13, 2e13)),
    ("bpe1024", "LRT, 2 layers", (5e12, 1e13, 2e13)),
    ("gpt2", "plain, 2 layers", (1e13,)),
    ("gpt2", "LRT, 2 layers", (1e13,)),
]

VARIANTS = {
    "S = 2, K = 1": "--lrt=1",
    "S = 1, K = 1": "--lrt=1 --lrt_subsets=1",
    "S = 4, K = 1": "--lrt=1 --lrt_subsets=4",
    "S = 8, K = 1": "--lrt=1 --lrt_subsets=8",
    "S = 1, K = 2": "--lrt=1 --lrt_subsets=1 --lrt_sweeps=2",
    "S = 2, K = 2": "--lrt=1 --lrt_sweeps=2",
    "S = 2, K = 1, layerwise": "--lrt=1 --lrt_memory_proj=layerwise",
    "S = 1, K = 1, no gradient through pass 0": "assets/no_gradient.py --lrt=1 --lrt_subsets=1",
    "S = 2, K = 1, no gradient through pass 0": "assets/no_gradient.py --lrt=1",
    "S = 2, K = 2, no gradient through pass 0": "assets/no_gradient.py --lrt=1 --lrt_sweeps=2",
    "T = 64, plain": "--block_size=64 --batch_size=16",
    "T = 64, S = 2, K = 1": "--lrt=1 --block_size=64 --batch_size=16",
    "T = 64, sequential": "--lrt=1 --lrt_mode=sequential --block_size=64 --batch_size=16",
}

# Of each: the runs by name, the flags of train.py (or of a script in assets/).
EXPERIMENTS = {
    # Which learning rate is best for each model?
    "rate": {f"{model}, {rate}": at(5e12, MODELS[model], rate) for model in COMPUTE for rate in (0.008, 0.016, 0.032)},
    # Exact loss against compute.
    "compute": {f"{model}, {short(budget)}": at(budget, MODELS[model]) for model in COMPUTE for budget in BUDGETS},
    # Where data, not compute, is the limit: which schedule, dropout and weight decay are best for each there; and those.
    "tuning": {name: flags for percent in PARTS for model in MODELS for name, flags in tried(model, percent).items()},
    "little": {f"{model}, {percent} %": best_little(model, percent) for percent in PARTS for model in MODELS if tried(model, percent)},
    # The dial as a training choice, the projections, a gradient through pass 0; at equal FLOPs and at equal tokens.
    "variants": {"plain": at(2e12, ""), **{name: at(2e12, flags) for name, flags in VARIANTS.items()},
                 **{f"{name}, 334 steps": f"{flags} --max_iters=334".strip() for name, flags in {"plain": "", **VARIANTS}.items()
                    if "plain" in name or "K = 2" in name and "gradient" not in name or "seq" in name}},
    # Which layer's state is the memory?
    "memory": {"plain": at(5e12, "--n_layer=4"),
               **{f"layer {n} of 4": at(5e12, f"--lrt=1 --n_layer=4 --lrt_memory_layer={n}") for n in (1, 2, 3, 4)}},
    # Other tokens, at several budgets: to be compared in bits per byte.
    "tokenizers": {f"{model}, {tokenizer}, {short(budget)}": at(budget, f"{MODELS[model]} --dataset=shakespeare-{tokenizer}".strip())
                   for tokenizer, model, budgets in TOKENIZERS for budget in budgets},
}
ONE_SEED = ("rate", "tuning")


# ---- Runs ----------------------------------------------------------------------------------------------------------------

def prepare_variant(name):
    """data/shakespeare-10: a tenth of the training text of data/shakespeare; data/shakespeare-bpe1024: its text in other tokens."""
    if (Path("data") / name / "meta.json").exists():
        return
    meta, codec, splits = load("shakespeare")
    kind = name.split("-")[1]
    if kind.isdecimal():
        part = splits["train"][:len(splits["train"]) * int(kind) // 100]
        folder = Path("data") / name
        folder.mkdir(parents=True, exist_ok=True)
        write_dataset(folder, {"train": part, "val": splits["val"]},
                      {**meta, "dataset": name, "source": f"the first {kind} % of {meta['source']}"})
    else:
        text = Path("runs") / "input.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_bytes(b"".join(codec.token_bytes[token] for split in ("train", "val") for token in splits[split]))
        prepare(name, kind.replace("bpe", "bpe:"), text)


def run(flags, seed):
    """Trains and appends a line: losses in nats per token, exact unless named otherwise, of the best evaluation."""
    if (flags, seed) in results():
        return
    if variant := re.search(r"--dataset=(\S+)", flags):
        with LOCK:
            prepare_variant(variant[1])
    folder = Path("runs") / re.sub(r"[^\w.=]+", "_", f"{flags} {seed}")
    script, *options = flags.split() if flags.startswith("assets/") else ["train.py", *flags.split()]
    done = subprocess.run([sys.executable, str(HERE.parent / script), "--eval_interval=100000", *options, f"--seed={seed}",
                           f"--out_dir={folder}", "--overwrite=1"],
                          check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    row = min(rows, key=lambda row: row["val_loss_exact"])
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    held = re.search(r"latent held at 0: ([\d.]+)", done.stdout)
    at = json.loads((folder / "by_position.json").read_text(encoding="utf-8"))[str(row["iter"])]
    octaves = [(1 << n, min(len(at), (2 << n) - 1)) for n in range(len(at).bit_length())]
    line = {"flags": flags, "seed": seed, "parameters": about["parameters"], "torch": about["torch"], "exact": row["val_loss_exact"],
            "training_graph": row["val_loss"], "held_at_0": held and float(held[1]), "bits_per_byte": row["val_bpb_exact"],
            "iter": row["iter"], "tokens": row["tokens"], "flops": row["flops"], "seconds": round(row["seconds"], 1),
            "evaluations": [[row["iter"], round(row["val_loss_exact"], 4)] for row in rows],
            "by_position": {f"{a}-{b}" if a < b else f"{a}": round(mean(at[a - 1:b]), 4) for a, b in octaves}}
    with LOCK, open(RESULTS, "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")
    print(f"exact {line['exact']:.4f}, {line['seconds']:.0f} s: {flags} --seed={seed}", file=sys.stderr, flush=True)


# ---- Tables and pictures -------------------------------------------------------------------------------------------------

def spread(rows, key="exact"):
    """Mean ± standard deviation; of a single run, its number."""
    numbers = [row[key] for row in rows if row[key] is not None]
    return f"{mean(numbers):.4f}" + (f" ± {stdev(numbers):.4f}" if len(numbers) > 1 else " (1)") if numbers else ""


def table(head, lines):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def show(name):
    """The runs of an experiment. A run of several evaluations shows the best one; the gap is exact - training graph."""
    lines = []
    for label, flags in EXPERIMENTS[name].items():
        if rows := [row for row in known(flags) if row["seed"] == SEEDS[0] or name not in ONE_SEED]:
            lines.append([label, f"{len(rows)}", f"{rows[0]['parameters']:,}", f"{mean(row['iter'] for row in rows):,.0f}",
                          f"{mean(row['tokens'] for row in rows) / 1e6:.2f}M", f"{mean(row['flops'] for row in rows):.1e}",
                          f"{mean(row['seconds'] for row in rows):.0f}", spread(rows),
                          f"{mean(row['exact'] - row['training_graph'] for row in rows):+.4f}", spread(rows, "held_at_0"),
                          spread(rows, "bits_per_byte")])
    print(f"## {name}\n")
    table([name, "seeds", "parameters", "steps", "tokens", "FLOPs", "seconds", "exact loss", "gap", "latent held at 0", "bits per byte"], lines)


def per_token(row):
    """FLOPs of a generated token, in millions: 2 for each parameter outside the embedding (as large as the head: 65 x 128)."""
    return 2e-6 * (row["parameters"] - 65 * 128)


def error_bars(ax, x, groups, model, less=0.0):
    """A model's mean exact loss at each x, with the standard deviation over seeds; less, if given, what to subtract at each x."""
    exact = [np.array([row["exact"] for row in rows]) - y for rows, y in zip(groups, np.broadcast_to(less, len(groups)))]
    ax.errorbar(x, [mean(e) for e in exact], [stdev(e) if len(e) > 1 else 0 for e in exact], fmt=STYLES[model], capsize=3, label=model,
                color="black", markerfacecolor="black" if "LRT" in model else "white")


def show_compute():
    show("compute")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for model in COMPUTE:
        points = {budget: rows for budget in BUDGETS if (rows := known(at(budget, MODELS[model])))}
        error_bars(left, list(points), list(points.values()), model)
        cost = per_token(points[2e12][0])
        error_bars(right, [cost] * len(points), list(points.values()), model)
        for budget, rows in points.items():
            y = {2e13: 2, 4e13: -8}.get(budget, -3)                 # these two are close
            side = dict(xytext=(7, y)) if "LRT" in model else dict(xytext=(-7, y), ha="right")
            right.annotate(short(budget), (cost, mean(row["exact"] for row in rows)), textcoords="offset points", fontsize=8, **side)
    left.set(xscale="log", xlabel="training compute, FLOPs", ylabel="exact validation loss, nats per character")
    left.set_xticks(BUDGETS, [short(budget) for budget in BUDGETS])
    left.minorticks_off()
    right.set(xlabel="FLOPs of a generated token, millions (label: of training)", xlim=(0.6, 1.8))
    left.legend()
    figure.savefig(HERE / "compute.png", dpi=150)


def show_little():
    """By how much the best loss is above LRT's, against the part of the text; and training on until the validation loss turns up."""
    show("little")
    best = {(model, percent): known(best_little(model, percent)) for percent in PARTS for model in MODELS if tried(model, percent)}
    lrt = {percent: mean(row["exact"] for row in best["LRT, 2 layers", percent]) for percent in PARTS}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for n, model in enumerate(MODELS):
        parts = [percent for percent in PARTS if best.get((model, percent))]
        error_bars(left, np.array(parts) * (0.94 + 0.04 * n), [best[model, percent] for percent in parts], model, [lrt[p] for p in parts])
        curve = known(little(model, 10, 1000))[0]["evaluations"]
        right.plot(*zip(*curve), STYLES[model], color="black", markerfacecolor="black" if "LRT" in model else "white", label=model)
    left.set(xscale="log", xlabel="percent of the training text", ylabel="best exact loss minus LRT's, nats per char.")
    left.set_xticks(PARTS, PARTS)
    left.minorticks_off()
    right.set(xlabel="steps of 1,000, on 10 % of the text", ylabel="exact loss, nats per character")
    right.legend()
    figure.savefig(HERE / "little.png", dpi=150)


def show_position():
    print("## position\n\nExact loss by position in the row, from 1.\n")
    for budget in BUDGETS:
        groups = {model: known(at(budget, MODELS[model])) for model in COMPUTE}
        if all(groups.values()):
            positions = list(groups[COMPUTE[0]][0]["by_position"])
            table([f"{short(budget)} FLOPs; position", *positions],
                  [[model, *(f"{mean(row['by_position'][p] for row in rows):.3f}" for p in positions)] for model, rows in groups.items()])


def show_grid(T=8):
    """The dial: which positions each pass recomputes, and which of them are exact from then on."""
    panels = [(1, 2), (2, 1), (2, 2), (T, 1)]
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), layout="constrained", width_ratios=[1.3 + K * S for S, K in panels])
    for ax, (S, K) in zip(axes, panels):
        exact = [t == 0 for t in range(T)]                          # the first pass has m = 0, which is right for position 0
        passes = [range(T)] + [range(s, T, S) for _ in range(K) for s in range(S)]
        for n, subset in enumerate(passes):
            exact = [exact[t] or (n > 0 and t in subset and all(exact[:t])) for t in range(T)]
            for t in range(T):
                ax.add_patch(plt.Rectangle((n, t), 1, 1, facecolor="0.55" if exact[t] else "1", edgecolor="0.3", linewidth=0.8))
                if t in subset:
                    ax.plot(n + 0.5, t + 0.5, "o", color="black", markersize=7)
        ax.set(xlim=(0, len(passes)), ylim=(T, 0), xticks=[n + 0.5 for n in range(len(passes))], yticks=[t + 0.5 for t in range(T)],
               xlabel="pass", aspect="equal")
        ax.set_xticklabels(range(len(passes)))
        ax.set_yticklabels(range(T))
        ax.set_title(f"S = {S}, K = {K}" + {(1, 2): "\n(Jacobi)", (2, 1): "\n(the paper's)", (T, 1): "\n(S = T: exact)"}.get((S, K), "\n"), fontsize=10)
    axes[0].set_ylabel("position t")
    figure.savefig(HERE / "dial.png", dpi=150)


PICTURES = {"compute": show_compute, "little": show_little, "position": show_position, "grid": show_grid}

KEY = """# Every run on text, by python assets/results.py all

Means over the seeds (1337, 1, 2; the first alone in rate and tuning) ± their standard deviation; "(1)": one seed. Losses in nats per token,
exact: decoded token by token over the whole validation split. gap: exact - training graph. Seconds of one core, with evaluations, until the
best one; they come from processors of different speed.
"""

if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--run"]
    if names == ["all"]:
        names = [*EXPERIMENTS, *(name for name in PICTURES if name not in EXPERIMENTS)]
        sys.stdout = open(HERE / "results.md", "w", encoding="utf-8")
        print(KEY)
    if not names or not set(names) <= {*EXPERIMENTS, *PICTURES}:
        sys.exit(__doc__)
    for name in names:
        if "--run" in sys.argv:
            wanted = [(flags, seed) for seed in SEEDS[:1 if name in ONE_SEED else None] for flags in EXPERIMENTS.get(name, {}).values()]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda r: run(*r), wanted))
        PICTURES[name]() if name in PICTURES else show(name)
