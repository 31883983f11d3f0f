"""The training results:  python assets/results.py [--run] NAME ...

NAME is one of assets/experiments.py (tables, from the runs in assets/results.jsonl), grid (the picture of the dial), or
all: every table and what it says into assets/results.md. compute and grid also draw a picture, which needs matplotlib.
--run trains what is missing first, for hours, two runs at a time with one thread each: the first seed of everything,
then the others. Logs and checkpoints stay in runs/. Delete a line of results.jsonl to have that run repeated.
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
from experiments import ABOUT, BUDGETS, DEEP, EXPERIMENTS, LOOP, MODELS, MS, PLAIN, S2, S16, Experiment, at
from plot import pyplot
from prepare_data import SHAKESPEARE_SHA256, load, prepare, write_dataset
from support.files import write_atomic
from support.script import fail, script
from train import badness

CODE = 2        # of new rows; to be raised when the same flags train another model: an optimizer, a default


# ---- Runs ------------------------------------------------------------------------------------------------------------

RESULTS, LOCK = HERE / "results.jsonl", Lock()
ROWS = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def known(flags):
    """The rows of these flags, all of the newest code that has any. Of several flags: those of the least mean exact
    loss over the seeds that all have."""
    groups = {f: [row for row in ROWS if row["flags"] == f] for f in ([flags] if isinstance(flags, str) else flags)}
    newest = max((row["code"] for rows in groups.values() for row in rows), default=0)
    groups = [some for rows in groups.values() if (some := [row for row in rows if row["code"] == newest])]
    common = set.intersection(*({row["seed"] for row in rows} for rows in groups)) if groups else ()
    return min(groups, key=lambda rows: mean([r["exact"] for r in rows if r["seed"] in common] or [9]), default=[])


def prepare_variant(name):
    """data/shakespeare-10: a tenth of the training text of data/shakespeare; shakespeare-bpe1024: in other tokens."""
    folder, text = Path("data", name), Path("runs", "input.txt")
    if (folder / "meta.json").exists():
        return
    (meta, codec, splits), kind = load("shakespeare"), name.split("-")[1]
    if kind.isdecimal():
        folder.mkdir(parents=True, exist_ok=True)
        splits["train"] = splits["train"][:len(splits["train"]) * int(kind) // 100]
        write_dataset(folder, splits, {**meta, "dataset": name, "source": f"the first {kind} % of {meta['source']}"})
    else:
        text.write_bytes(b"".join(codec.token_bytes[token] for split in ("train", "val") for token in splits[split]))
        prepare(name, kind.replace("bpe", "bpe:"), text)


def run(flags, seed):
    """Train, unless that is known, and append a row: of the best evaluation."""
    if any((row["code"], row["flags"], row["seed"]) == (CODE, flags, seed) for row in ROWS):
        return
    with LOCK:
        if variant := re.search(r"--dataset=(shakespeare-\S+)", flags):
            prepare_variant(variant[1])
    folder = Path("runs", re.sub(r"[^\w.=]+", "_", f"{flags} {seed}"))
    script, *options = flags.split() if flags.startswith("assets/") else ["train.py", *flags.split()]
    if "--eval_interval" not in flags:
        options.append("--eval_interval=100000")        # at the end alone
    done = subprocess.run([sys.executable, script, *options, f"--seed={seed}",
                           f"--out_dir={folder}", "--overwrite=1"],
                          stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        return print(f"FAILED ({done.returncode}): {flags} --seed={seed}", file=sys.stderr, flush=True)
    read = lambda name: (folder / name).read_text(encoding="utf-8")
    rows, about = [json.loads(line) for line in read("log.jsonl").splitlines()], json.loads(read("run.json"))
    best = min(rows, key=badness)
    if right := best.get("accuracy_by_length"):
        right = {"on the graph": best["val_accuracy"], **{f"at {n}": share for n, share in right.items()}}
    at = best["exact_by_position"]
    held = re.search(r"held at 0\D+(\d+\.\d+)", done.stdout)
    octaves = [(1 << n, min(len(at), (2 << n) - 1)) for n in range(len(at).bit_length())]
    row = {"code": CODE, "flags": flags, "seed": seed, "parameters": about["parameters"], "torch": about["torch"],
           "exact": best["val_loss_exact"], "training_graph": best["val_loss"], "held_at_0": held and float(held[1]),
           **{key: best[key] for key in ("iter", "tokens", "flops", "seconds")},
           "bits_per_byte": best.get("val_bpb_exact"), "accuracy": right,
           "evaluations": [[r["iter"], r["val_loss_exact"]] for r in rows],
           "by_position": {f"{a}-{b}" if a < b else f"{a}": round(mean(at[a - 1:b]), 4) for a, b in octaves}}
    with LOCK, open(RESULTS, "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
        ROWS.append(row)
    print(f"exact {row['exact']:.4f}, {row['seconds']:.0f} s: {flags} --seed={seed}", file=sys.stderr, flush=True)


def run_all(experiment):
    """The first seed of all flags; then the other seeds, where several flags were tried only of the best."""
    Path("runs").mkdir(exist_ok=True)
    if (meta := load("shakespeare")[0])["sha256"] != SHAKESPEARE_SHA256:
        fail(f"data/shakespeare is {meta['source']}; prepare_data.py --dataset=shakespeare --input=FILE mends that")
    first, *others = experiment.seeds
    every = [(f, first) for flags in experiment.runs.values() for f in ([flags] if isinstance(flags, str) else flags)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda r: run(*r), every))
        best = [known(flags)[0]["flags"] for flags in experiment.runs.values() if known(flags)]
        list(pool.map(lambda r: run(*r), [(flags, seed) for seed in others for flags in best]))


# ---- Tables ----------------------------------------------------------------------------------------------------------

def spread(rows, key="exact"):
    numbers = [row[key] for row in rows if row[key] is not None]
    return f"{mean(numbers):.4f}" + (f" ± {stdev(numbers):.4f}" if len(numbers) > 1 else " (1)") if numbers else ""


def table(lines):
    """Dictionaries with the same keys, as Markdown."""
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def columns(label, rows, tried):
    """A line of a table, by the names of its columns. tried: of how many settings it is the best, or 0."""
    average, task = lambda key: mean(row[key] for row in rows), rows[0].get("accuracy")
    line = {"": label, **({"tried": f"{tried}"} if tried else {}), "code": f"{rows[0]['code']}",
            "seeds": f"{len(rows)}", "parameters": f"{rows[0]['parameters']:,}", "steps": f"{average('iter'):,.0f}",
            "tokens": f"{average('tokens') / 1e6:.2f}M", "FLOPs": f"{average('flops'):.1e}",
            "seconds": f"{average('seconds'):.0f}"}
    if task:
        return line | {f"right {n}, %": ", ".join(f"{100 * row['accuracy'][n]:.0f}" for row in rows) for n in task}
    gap = f"{average('exact') - average('training_graph'):+.4f}" if rows[0]["held_at_0"] else ""
    return line | {"exact loss": spread(rows), "gap": gap, "latent held at 0": spread(rows, "held_at_0"),
                   "bits per byte": spread(rows, "bits_per_byte")}


def page(name, experiment):
    """An experiment: its title, its table and what it says; of compute, also the losses by position."""
    lines, positions = [], {}
    for label, flags in experiment.runs.items():
        if rows := [row for row in known(flags) if row["seed"] in experiment.seeds]:
            lines.append(columns(label, rows, 0 if isinstance(flags, str) else sum(bool(known(f)) for f in flags)))
            model, _, budget = label.rpartition(", ")
            at = {p: f"{mean(row['by_position'][p] for row in rows):.3f}" for p in rows[0]["by_position"]}
            line = {f"{budget} FLOPs, by position": model, "code": lines[-1]["code"], **at}
            positions.setdefault(budget, []).append(line)
    if not lines:
        return f"## {name}\n\n{experiment.title}. No runs yet: `python assets/results.py --run {name}`.\n"
    tables = [table(lines)] + [table(some) for some in positions.values() if name == "compute"]
    return "\n".join([f"## {name}\n\n{experiment.title}.{experiment.reads and chr(10)}{experiment.reads}\n", *tables])


# ---- Pictures --------------------------------------------------------------------------------------------------------

def points(ax, model, groups):
    """A model's mean exact losses at x, with standard deviations: groups of (x, rows). Older code: hollow, paler."""
    _, style, color = MODELS[model]
    for code in sorted({rows[0]["code"] for _, rows in groups}):
        x, exact = zip(*((x, [row["exact"] for row in rows]) for x, rows in groups if rows[0]["code"] == code))
        look = {"label": model} if code == CODE else {"label": f"{model} (code {code})", "mfc": "white", "alpha": 0.6}
        ax.errorbar(x, [mean(e) for e in exact], [stdev(e) if len(e) > 1 else 0 for e in exact], fmt=style, color=color,
                    capsize=3, ms=5, **look)


def draw_compute():
    """Exact loss against FLOPs and seconds of training, and against FLOPs of a generated token."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 4), layout="constrained", sharey=True)
    for n, model in enumerate((PLAIN, DEEP, S2, S16, LOOP)):
        groups = [rows for budget in BUDGETS if (rows := known(at(budget, model)))]
        for ax, key, scale in zip(axes, ("flops", "iter"), (1, MS[model] / 1000)):
            points(ax, model, [(scale * mean(row[key] for row in rows), rows) for rows in groups])
        beside = 0.015 * max(0, n - 2)                              # the LRTs cost the same
        points(axes[2], model, [(2e-6 * (rows[0]["parameters"] - 65 * 128) + beside, rows) for rows in groups])
    axes[0].set(xscale="log", xlabel="FLOPs of training", ylabel="exact validation loss, nats per character")
    axes[0].set_xticks([float(budget) for budget in BUDGETS], BUDGETS)
    axes[0].minorticks_off()
    axes[1].set(xscale="log", xlabel="seconds of training, two cores")
    axes[2].set(xlabel="millions of FLOPs of a generated token", xlim=(0.6, 1.8))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(HERE / "compute.png", dpi=150)


def draw_grid(T=8):
    """The dial: which positions each pass recomputes (dots), and which of them are exact from then on (grey)."""
    plt, panels = pyplot(), {(1, 2): "Jacobi", (2, 1): "the paper's", (2, 2): "", (T, 1): "S = T: exact"}
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), layout="constrained",
                                width_ratios=[1.3 + K * S for S, K in panels])
    for ax, ((S, K), note) in zip(axes, panels.items()):
        exact = [t == 0 for t in range(T)]                          # pass 0 has m = 0, which is right for position 0
        passes = [range(T)] + [range(s, T, S) for _ in range(K) for s in range(S)]
        for n, subset in enumerate(passes):
            exact = [exact[t] or (n > 0 and t in subset and all(exact[:t])) for t in range(T)]
            for t in range(T):
                ax.add_patch(plt.Rectangle((n, t), 1, 1, facecolor="0.55" if exact[t] else "1", edgecolor="0.3"))
                if t in subset:
                    ax.plot(n + 0.5, t + 0.5, "o", color="black", markersize=7)
        ax.set(xlim=(0, len(passes)), ylim=(T, 0), xlabel="pass", aspect="equal")
        ax.set_xticks([n + 0.5 for n in range(len(passes))], range(len(passes)))
        ax.set_yticks([t + 0.5 for t in range(T)], range(T))
        ax.set_title(f"S = {S}, K = {K}\n{note and f'({note})'}", fontsize=10)
    axes[0].set_ylabel("position t")
    figure.savefig(HERE / "dial.png", dpi=150)


@script
def main(argv):
    os.chdir(HERE.parent)
    argv = sys.argv[1:] if argv is None else argv
    names = [name for name in argv if name != "--run"]
    possible = [*EXPERIMENTS, "grid", "all"]
    if not names or {"-h", "--help"} & {*names}:
        return print(f"{__doc__}\nNAME: {', '.join(possible)}")
    if wrong := [name for name in names if name not in possible]:
        fail(f"there is no {wrong[0]}; NAME is one of {', '.join(possible)}")
    names = [*EXPERIMENTS, "grid"] if "all" in names else names
    if "--run" in argv:
        for name in names:
            run_all(EXPERIMENTS[name]) if name in EXPERIMENTS else None
    tables = [page(name, EXPERIMENTS[name]) for name in names if name in EXPERIMENTS]
    if "all" in argv:
        shown = {rows[0]["flags"] for e in EXPERIMENTS.values() for flags in e.runs.values() if (rows := known(flags))}
        others = sorted({row["flags"] for row in ROWS if not row.get("accuracy")} - shown)
        tables.append(page("others", Experiment("Tried on the way, by their flags", "", dict(zip(others, others)))))
        write_atomic(HERE / "results.md", lambda f: f.write("\n".join([ABOUT, *tables]).encode()))
        print("wrote assets/results.md")
    else:
        print("\n".join(tables))
    for name, draw in (("compute", draw_compute), ("grid", draw_grid)):
        if name in names:
            draw()


if __name__ == "__main__":
    main()
