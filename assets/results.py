"""The training results:  python assets/results.py [--run] NAME ...

NAME is one of assets/experiments.py: tables, from the runs in assets/results.jsonl; or compute or
grid, the two pictures of the README, which need matplotlib; or all: every table and what it says
into assets/results.md, and both pictures. --run trains what is missing first, for hours, two runs
at a time with one thread each: the first seed of everything, then the others. Logs and checkpoints
stay in runs/. Delete a line of results.jsonl to have that run repeated.
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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from experiments import ABOUT, COST, CURVES, EXPERIMENTS, STYLE, SWEEPS
from plot import pyplot
from prepare_data import SHAKESPEARE_SHA256, load
from support.files import write_atomic
from support.script import fail, script
from train import badness

CODE = 3        # of new rows; to be raised when the same flags train another model


# ---- Runs

RESULTS, LOCK = HERE / "results.jsonl", Lock()
ROWS = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def known(flags, seeds=None):
    """The rows of these flags, one for each seed: of the newest code that has it."""
    newest = {}
    for row in ROWS:
        wanted = row["flags"] == flags and (seeds is None or row["seed"] in seeds)
        if wanted and row["code"] >= newest.get(row["seed"], row)["code"]:
            newest[row["seed"]] = row
    return list(newest.values())


def run(flags, seed):
    """Train, unless that is known, and append a row: of the best evaluation."""
    if known(flags, [seed]):
        return
    folder = Path("runs", re.sub(r"[^\w.=]+", "_", f"{flags} {seed}"))
    options = [*flags.split(), f"--seed={seed}", f"--out_dir={folder}", "--overwrite=1"]
    if "--eval_interval" not in flags:
        options.append("--eval_interval=100000")        # at the end alone
    done = subprocess.run([sys.executable, "train.py", *options], stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        tell(f"FAILED ({done.returncode}): {flags} --seed={seed}")
        return
    row = {"code": CODE, "flags": flags, "seed": seed, **row_of(folder, done.stdout)}
    with LOCK, open(RESULTS, "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
        ROWS.append(row)
    tell(f"exact {row['exact']:.4f}, {row['seconds']:.0f} s: {flags} --seed={seed}")


def tell(line):
    print(line, file=sys.stderr, flush=True)


def row_of(folder, printed):
    """What is kept of a run: its folder, and what it has printed."""
    log = (folder / "log.jsonl").read_text(encoding="utf-8")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    evaluations = [json.loads(line) for line in log.splitlines()]
    best = min(evaluations, key=badness)
    right = best.get("accuracy_by_length")
    if right:
        lengths = {f"at {n}": share for n, share in right.items()}
        right = {"on the graph": best["val_accuracy"], **lengths}
    held = re.search(r"held at 0\D+(\d+\.\d+)", printed)
    return {
        "parameters": about["parameters"],
        "torch": about["torch"],
        "exact": best["val_loss_exact"],
        "training_graph": best["val_loss"],
        "held_at_0": float(held[1]) if held else None,
        **{key: best[key] for key in ("iter", "tokens", "flops", "seconds")},
        "bits_per_byte": best.get("val_bpb_exact"),
        "accuracy": right,
        "evaluations": [[row["iter"], row["val_loss_exact"]] for row in evaluations],
        "by_position": by_octaves(best["exact_by_position"]),
    }


def by_octaves(losses):
    """Losses by position as means over positions 1, 2-3, 4-7, ..."""
    found, first = {}, 1
    while first <= len(losses):
        last = min(2 * first - 1, len(losses))
        name = f"{first}" if first == last else f"{first}-{last}"
        found[name] = round(mean(losses[first - 1:last]), 4)
        first *= 2
    return found


def flags_of(experiment):
    """The flags of all of its runs."""
    found = []
    for flags in experiment.runs.values():
        found.extend(flags.values() if experiment.columns else [flags])
    return found


def run_all(experiment):
    """The first seed of everything, then the others."""
    Path("runs").mkdir(exist_ok=True)
    meta = load("shakespeare")[0]
    if meta["sha256"] != SHAKESPEARE_SHA256:
        fail(f"data/shakespeare is {meta['source']}; "
             "prepare_data.py --dataset=shakespeare --input=FILE mends that")
    with ThreadPoolExecutor(2) as pool:
        for seed in experiment.seeds:
            list(pool.map(lambda flags: run(flags, seed), flags_of(experiment)))


# ---- Tables

def few(rows):
    """How many seeds there are, if they are not three."""
    return "" if len(rows) >= 3 else f" ({len(rows)})"


def spread(rows, key="exact"):
    """Mean and standard deviation over seeds, as text."""
    numbers = [row[key] for row in rows if row[key] is not None]
    if not numbers:
        return ""
    deviation = f" ± {stdev(numbers):.4f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.4f}{deviation}{few(numbers)}"


def right(rows):
    """How many of a hundred are right, at the length of training and at the longest, of a task."""
    shares = [row["accuracy"] for row in rows]
    lengths = list(shares[0])[1:]
    first, last = (f"{100 * mean(share[n] for share in shares):.1f}" for n in
                   (lengths[0], lengths[-1]))
    return f"{first}, {last}{few(rows)}"


def table(lines):
    """Dictionaries with the same keys, as Markdown."""
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def cost_of(flags):
    """ms of a step and MB, or None, of a model with these flags of a run."""
    length = r" ?--(max_iters|max_flops|eval_interval|learning_rate)=\S+"
    return COST.get(re.sub(length, "", flags).strip())


def line_of(label, flags, rows):
    """A line of a table with a run for each label."""
    steps, cost = mean(row["iter"] for row in rows), cost_of(flags)
    gap = mean(row["exact"] - row["training_graph"] for row in rows)
    is_lrt = "--lrt=1" in flags
    return {
        "": label,
        "seeds": f"{len(rows)}",
        "steps": f"{steps:,.0f}",
        "FLOPs": f"{mean(row['flops'] for row in rows):.2e}".replace("e+", "e"),
        "ms": f"{cost[0]:.0f}" if cost else "",
        "minutes": f"{cost[0] * steps / 60000:.1f}" if cost else "",
        "MB": f"{cost[1]:.0f}" if cost else "",
        "exact loss": spread(rows),
        "gap": f"{gap:+.4f}" if is_lrt else "",
        "latent held at 0": spread(rows, "held_at_0"),
        "bits per byte": spread(rows, "bits_per_byte"),
    }


def row_of_columns(label, by_column, experiment):
    """A line of a table with several runs for each label."""
    line = {"": label}
    for column in experiment.columns:
        rows = known(by_column.get(column), experiment.seeds)
        if not rows:
            line[column] = ""
        elif rows[0]["accuracy"]:
            line[column] = right(rows)
        else:
            line[column] = spread(rows)
    return line


def page(name, experiment):
    """An experiment: its title, what it says, its table."""
    lines = []
    for label, flags in experiment.runs.items():
        if experiment.columns:
            lines.append(row_of_columns(label, flags, experiment))
        elif known(flags, experiment.seeds):
            lines.append(line_of(label, flags, known(flags, experiment.seeds)))
    found = table(lines) if lines else f"No runs yet: `python assets/results.py --run {name}`.\n"
    return f"## {name}: {experiment.title}\n\n{experiment.reads.strip()}\n\n{found}"


def whole():
    """results.md: what is about all of them, each experiment, and what sweeps.py has measured."""
    pages = [page(name, experiment) for name, experiment in EXPERIMENTS.items()]
    return "\n".join([ABOUT, *pages, SWEEPS])


# ---- Pictures

def draw_curve(ax, model, scale, key):
    """A model's mean exact losses, with standard deviations, against scale times a key of rows."""
    name, style, color = STYLE[model]
    groups = [rows for flags in CURVES[model] if (rows := known(flags))]
    x = [scale * mean(row[key] for row in rows) for rows in groups]
    y = [[row["exact"] for row in rows] for rows in groups]
    ax.errorbar(x, [mean(losses) for losses in y],
                [stdev(losses) if len(losses) > 1 else 0 for losses in y],
                fmt=style, color=color, label=name, capsize=3, ms=5)


def draw_compute():
    """Exact loss against FLOPs and minutes of training, and against FLOPs of a generated token."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 4.2), layout="constrained", sharey=True)
    beside = -0.03
    for model in CURVES:
        draw_curve(axes[0], model, 1, "flops")
        draw_curve(axes[1], model, COST[model][0] / 60000, "iter")
        if "--lrt=1" in model:
            draw_token(axes[2], model, beside)
            beside += 0.02                                          # they all cost the same
        else:
            draw_token(axes[2], model, 0)
    axes[0].set(xscale="log", xlabel="FLOPs of training",
                ylabel="exact validation loss, nats per character")
    axes[0].set_xticks([2e12, 5e12, 1e13, 2e13], ["2e12", "5e12", "1e13", "2e13"])
    axes[0].minorticks_off()
    axes[1].set(xscale="log", xlabel="minutes of training, two slow cores (AVX2)")
    axes[1].set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    axes[1].minorticks_off()
    axes[2].set(xlabel="millions of FLOPs of a generated token\n(all LRTs: 0.87, side by side)",
                xlim=(0.6, 1.8))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  fontsize=9)
    figure.savefig(HERE / "compute.png", dpi=150)


def draw_token(ax, model, beside):
    """A model's losses above what a token costs it: two FLOPs for each weight but embeddings."""
    name, style, color = STYLE[model]
    for flags in CURVES[model]:
        rows = known(flags)
        if rows:
            millions = 2e-6 * (rows[0]["parameters"] - 65 * 128) + beside
            ax.plot(millions, mean(row["exact"] for row in rows), style[0], color=color, ms=5)


def draw_grid(T=8):
    """The dial: which positions each pass recomputes (dots), and which are exact from then on."""
    plt = pyplot()
    panels = {(1, 2): "Jacobi", (2, 1): "the paper's", (2, 2): "", (T, 1): "S = T: exact"}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), layout="constrained",
                                width_ratios=[1.3 + K * S for S, K in panels])
    for ax, ((S, K), note) in zip(axes, panels.items()):
        draw_passes(plt, ax, T, [range(T)] + [range(s, T, S) for _ in range(K) for s in range(S)])
        ax.set_title(f"S = {S}, K = {K}\n" + (f"({note})" if note else ""), fontsize=10)
    axes[0].set_ylabel("position t")
    figure.savefig(HERE / "dial.png", dpi=150)


def draw_passes(plt, ax, T, passes):
    """One panel of the dial: a column for each pass."""
    exact = [t == 0 for t in range(T)]              # pass 0 has m = 0: right for position 0 alone
    for n, subset in enumerate(passes):
        if n > 0:
            exact = [exact[t] or (t in subset and all(exact[:t])) for t in range(T)]
        for t in range(T):
            color = "0.55" if exact[t] else "1"
            ax.add_patch(plt.Rectangle((n, t), 1, 1, facecolor=color, edgecolor="0.3"))
            if t in subset:
                ax.plot(n + 0.5, t + 0.5, "o", color="black", markersize=7)
    ax.set(xlim=(0, len(passes)), ylim=(T, 0), xlabel="pass", aspect="equal")
    ax.set_xticks([n + 0.5 for n in range(len(passes))], range(len(passes)))
    ax.set_yticks([t + 0.5 for t in range(T)], range(T))


PICTURES = {"compute": draw_compute, "grid": draw_grid}


@script
def main(argv):
    if argv is None:
        argv = sys.argv[1:]
    os.chdir(HERE.parent)
    names = [name for name in argv if name != "--run"]
    possible = [*EXPERIMENTS, *PICTURES, "all"]
    if not names or "-h" in names or "--help" in names:
        print(f"{__doc__}\nNAME: {', '.join(possible)}")
        return
    for name in names:
        if name not in possible:
            fail(f"there is no {name}; NAME is one of {', '.join(possible)}")
    wanted = possible if "all" in names else names
    experiments = {name: EXPERIMENTS[name] for name in wanted if name in EXPERIMENTS}
    if "--run" in argv:
        for experiment in experiments.values():
            run_all(experiment)
    if "all" in names:
        write_atomic(HERE / "results.md", lambda f: f.write(whole().encode()))
        print("wrote assets/results.md")
    else:
        print("\n".join(page(name, experiment) for name, experiment in experiments.items()))
    for name, draw in PICTURES.items():
        if name in wanted:
            draw()


if __name__ == "__main__":
    main()
