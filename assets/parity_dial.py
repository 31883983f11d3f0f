"""How far along the dial is far enough?  python assets/parity_dial.py

Trains on parity for every (S, K) and seed, two runs at a time with one thread each (about an hour of one core in all),
prints the README's table and draws assets/parity_dial.png. A run whose log exists is not repeated: runs/ keeps them.
"""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SUBSETS, SWEEPS, SEEDS, STEPS = (1, 2, 4, 8, 16, 32), (1, 2, 4), (1, 2, 3), 150


def run(S, K, seed):
    """The log row of a run: its only evaluation is after the last step, so "seconds" is training alone."""
    folder = Path("runs") / f"parity-S{S}-K{K}-{seed}"
    if not (folder / "log.jsonl").exists():
        subprocess.run([sys.executable, HERE.parent / "train.py", "--dataset=parity", "--lrt=1", f"--lrt_subsets={S}",
                        f"--lrt_sweeps={K}", f"--seed={seed}", f"--out_dir={folder}", "--overwrite=1", "--batch_size=32",
                        f"--max_iters={STEPS}", f"--eval_interval={STEPS}"],
                       check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def main():
    settings = [(S, K, seed) for K in SWEEPS for S in SUBSETS for seed in SEEDS]
    run(*settings[0])                                               # alone, as it may have to prepare the data
    with ThreadPoolExecutor(2) as pool:
        rows = dict(zip(settings, pool.map(lambda s: run(*s), settings)))
    far = {(S, K): [rows[S, K, seed]["accuracy_by_length"]["128"] for seed in SEEDS] for K in SWEEPS for S in SUBSETS}
    ms = {(S, K): mean(1000 * rows[S, K, seed]["seconds"] / STEPS for seed in SEEDS) for K in SWEEPS for S in SUBSETS}

    print("| | " + " | ".join(f"S = {S}" for S in SUBSETS) + " |\n|" + "---|" * (len(SUBSETS) + 1))
    for K in SWEEPS:
        cells = (f"{', '.join(f'{100 * a:.0f}' for a in far[S, K])} % · {ms[S, K]:.0f} ms" for S in SUBSETS)
        print(f"| K = {K} | " + " | ".join(cells) + " |")

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    image = axes.imshow([[100 * mean(far[S, K]) for S in SUBSETS] for K in SWEEPS], cmap="gray", vmin=50, vmax=100, aspect="auto")
    for y, K in enumerate(SWEEPS):
        for x, S in enumerate(SUBSETS):
            a = 100 * mean(far[S, K])
            axes.text(x, y, f"{a:.0f} %\n{ms[S, K]:.0f} ms", ha="center", va="center", color="black" if a > 75 else "white", fontsize=11)
    axes.set_xticks(range(len(SUBSETS)), SUBSETS)
    axes.set_yticks(range(len(SWEEPS)), SWEEPS)
    axes.set_xlabel("S, subsets of the 32 positions")
    axes.set_ylabel("K, sweeps")
    axes.set_title(f"Parity: accuracy at 4 times the trained length, ms per step ({STEPS} steps, {len(SEEDS)} seeds)", fontsize=10)
    figure.colorbar(image, label="exact accuracy, % (chance: 50)")
    figure.savefig(HERE / "parity_dial.png", dpi=150)


if __name__ == "__main__":
    main()
