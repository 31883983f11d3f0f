"""The README's training results:  python assets/results.py [--run] NAME ...

NAME is rate or compute (what each is: EXPERIMENTS below); position, more about the runs of compute; or grid, the picture of the
dial. Prints the table and draws the picture of the runs that are known: each is a line in assets/results.jsonl. --run trains
what is missing first (hours), two runs at a time with one thread each; delete a line to have that run repeated. Logs and
checkpoints stay in runs/, outside the repository. Needs matplotlib.
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

HERE = Path(__file__).parent
RESULTS, LOCK = HERE / "results.jsonl", Lock()
SEEDS = (1337, 1, 2)
MODELS = {"plain, 2 layers": "", "plain, 4 layers": "--n_layer=4", "LRT, 2 layers": "--lrt=1"}
STYLES = dict(zip(MODELS, ("o--", "s:", "D-")))
RATES = (0.008, 0.016, 0.032)
BUDGETS = (2e12, 5e12, 1e13, 2e13, 4e13)                            # FLOPs of training


def short(number):
    """2e12, as a flag and in a picture."""
    return f"{number:.0e}".replace("e+", "e")


def command(model, budget, rate=0.016):
    """The flags of train.py for a run of its own, with its own schedule, at a compute budget."""
    return f"{MODELS[model]} --max_iters=100000 --max_flops={short(budget)} --learning_rate={rate}".strip()


EXPERIMENTS = {
    # Which learning rate is best for each model? One seed, one budget.
    "rate": [(command(model, 5e12, rate), 1337) for model in MODELS for rate in RATES],
    # Exact loss against compute.
    "compute": [(command(model, budget), seed) for budget in BUDGETS for seed in SEEDS for model in MODELS],
}


# ---- Runs ----------------------------------------------------------------------------------------------------------------

def results():
    """All that is known, by (flags, seed)."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(row["flags"], row["seed"]): row for row in map(json.loads, lines)}


def run(flags, seed):
    """Trains and appends a line: exact losses (unless named otherwise) in nats per token after the last step."""
    if (flags, seed) in results():
        return
    folder = Path("runs") / re.sub(r"[^\w.=]+", "_", f"{flags} {seed}")
    script, *options = flags.split() if flags.startswith("assets/") else ["train.py", *flags.split()]
    done = subprocess.run([sys.executable, str(HERE.parent / script), "--eval_interval=100000", *options, f"--seed={seed}",
                           f"--out_dir={folder}", "--overwrite=1"],
                          check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    row = min(rows, key=lambda row: row["val_loss_exact"])
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    held, at = re.search(r"latent held at 0 +([\d.]+)", done.stdout), row["exact_by_position"]
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

def spread(numbers):
    """Mean ± standard deviation; of a single run, its number."""
    return f"{mean(numbers):.4f}" + (f" ± {stdev(numbers):.4f}" if len(numbers) > 1 else " (1 seed)")


def table(head, lines):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def of(model, budget):
    """The runs of "compute" with this model and budget that are known."""
    known = results()
    return [known[flags, seed] for flags, seed in EXPERIMENTS["compute"] if flags == command(model, budget) and (flags, seed) in known]


def per_token(row):
    """FLOPs of a generated token, in millions: 2 for each parameter outside the embedding (as large as the head: 65 x 128)."""
    return 2e-6 * (row["parameters"] - 65 * 128)


def show_rate():
    known = results()
    losses = {(model, rate): known[command(model, 5e12, rate), 1337]["exact"] for model in MODELS for rate in RATES}
    table(["", *(f"learning rate {rate}" for rate in RATES)],
          [[model, *(f"{losses[model, rate]:.4f}" for rate in RATES)] for model in MODELS])


def show_compute():
    lines = []
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for model in MODELS:
        points = [(budget, of(model, budget)) for budget in BUDGETS if of(model, budget)]
        lines += [[model, f"{rows[0]['parameters']:,}", f"{rows[0]['tokens'] / 1e6:.1f}M", short(budget),
                   f"{mean(row['seconds'] for row in rows):.0f}", spread([row["exact"] for row in rows])] for budget, rows in points]
        exact = [[row["exact"] for row in rows] for _, rows in points]
        losses, spreads = [mean(e) for e in exact], [stdev(e) if len(e) > 1 else 0 for e in exact]
        look = dict(color="black", markerfacecolor="white" if "plain" in model else "black")
        left.errorbar([budget for budget, _ in points], losses, spreads, fmt=STYLES[model], capsize=3, label=model, **look)
        cost = per_token(points[0][1][0])
        right.plot([cost] * len(points), losses, STYLES[model], **look)
        for (budget, _), loss in zip(points, losses):
            side = dict(xytext=(7, -3)) if "LRT" in model else dict(xytext=(-7, -3), ha="right")
            right.annotate(short(budget), (cost, loss), textcoords="offset points", fontsize=8, **side)
    shown = [budget for budget in BUDGETS if any(of(model, budget) for model in MODELS)]
    left.set(xscale="log", xlabel="training compute, FLOPs", ylabel="exact validation loss, nats per character")
    left.set_xticks(shown, [short(budget) for budget in shown])
    left.minorticks_off()
    right.set(xlabel="FLOPs of a generated token, millions (label: of training)", xlim=(0.6, 1.8))
    left.legend()
    figure.savefig(HERE / "compute.png", dpi=150)
    table(["", "parameters", "tokens", "FLOPs", "seconds", "exact loss"], lines)


def show_position():
    for budget in BUDGETS:
        if all(len(of(model, budget)) == len(SEEDS) for model in MODELS):
            positions = list(of("LRT, 2 layers", budget)[0]["by_position"])
            table([f"{short(budget)} FLOPs; position", *positions],
                  [[model, *(f"{mean(row['by_position'][p] for row in of(model, budget)):.3f}" for p in positions)] for model in MODELS])
    model = "LRT, 2 layers"
    table(["LRT, FLOPs", "exact", "training graph", "latent held at 0"],
          [[short(budget), *(spread([row[key] for row in of(model, budget)]) for key in ("exact", "training_graph", "held_at_0"))]
           for budget in BUDGETS if of(model, budget)])


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


SHOW = {"rate": show_rate, "compute": show_compute, "position": show_position, "grid": show_grid}

if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--run"]
    if not names or not set(names) <= set(SHOW):
        sys.exit(__doc__)
    for name in names:
        if "--run" in sys.argv:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda r: run(*r), EXPERIMENTS.get(name, [])))
        SHOW[name]()
