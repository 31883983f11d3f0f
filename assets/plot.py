"""Pictures, drawn with matplotlib (pip install matplotlib):

    python assets/plot.py losses out out-plain      exact losses of runs against steps
    python assets/plot.py settle out                how sweeps settle in a trained model
    python assets/plot.py knows out out-plain       where an LRT is ahead of a plain GPT, and when
    python assets/plot.py clock                     exact losses against minutes
    python assets/plot.py dial                      what each pass recomputes

settle prints the loss after K sweeps, and knows the losses by kind of character and by position.
"""
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import prepare_data
import results
import sample
import train
from prepare_data import Codec, UsageError, check_numbers, parse_args, run_script


@dataclass
class Settings:
    rows: int = 64                  # settle, knows: how many rows
    length: int = 0                 # tokens in a row; default: block_size; knows: 8 times that
    to: str = ""                    # the picture; default: losses.png, settle.png, ...


def pyplot():
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib
    except ImportError as e:
        raise UsageError("pictures need matplotlib: pip install matplotlib") from e
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def validation_rows(checkpoint, n, T):
    """Inputs and targets (n, T) of a run's text or task."""
    s = train.Settings(**checkpoint["settings"])
    s.block_size, s.eval_tokens = T, n * T * (8 if s.dataset in prepare_data.TASKS else 1)
    val = None
    if s.dataset not in prepare_data.TASKS:
        meta, _, val = prepare_data.load(s.dataset)
        if meta["sha256"] != checkpoint["sha256"]:
            raise UsageError(f"data/{s.dataset} is another text than this run has seen")
        if len(val) <= T:
            raise UsageError(f"--length={T}: the validation split has only {len(val):,} tokens")
    return train.tensors("cpu", *train.validation_rows(val, s))


# ---- Losses of runs

def losses(s, *folders):
    figure, ax = pyplot().subplots(figsize=(6.5, 4), layout="constrained")
    for folder in folders:
        log = sample.load_checkpoint(Path(folder, "last.pt"))[1]["log"]
        rows = [row for row in log if "exact" in row]
        exact, graph = ([row[name] for row in rows] for name in ("exact", "as_trained"))
        line, = ax.plot([row["step"] for row in rows], exact, ".-", label=folder)
        if graph != exact:
            ax.plot([row["step"] for row in rows], graph, ":", color=line.get_color(),
                    label=f"{folder}, as trained")
    ax.set(xlabel="steps", ylabel="validation loss, nats per token")
    ax.legend()
    return figure


# ---- How the dial settles

@torch.no_grad()
def settle(s, folder):
    """What a sweep changes: root mean square over the width (a latent has 1), mean over rows."""
    model, checkpoint = sample.load_checkpoint(folder)
    if not model.config.lrt:
        raise UsageError(f"{folder} is a plain GPT, which has no sweeps")
    x, y = validation_rows(checkpoint, s.rows, s.length or model.config.block_size)
    exact = train.exact_loss(model, x, y) / y.numel()
    print(f"exact loss {exact:.4f}; the loss after K sweeps minus the exact one:\n"
          + f"{'':10}" + "".join(f"{f'K = {K}':>10}" for K in range(6)))
    figure, axes = pyplot().subplots(3, figsize=(7, 7), layout="constrained", sharex=True)
    for ax, S in zip(axes, (1, 2, 8)):
        chunk = model.begin(x, model.init_cache(len(x)))
        changes, after = [], []
        for _ in range(min(24, -(-x.size(1) // S) + 1)):
            after.append(train.sum_of_losses(model.logits(chunk.h), y) / y.numel() - exact)
            before = chunk.latent
            model.sweep(chunk, S)
            changes.append((chunk.latent - before).square().mean(-1).sqrt().mean(0))
        print(f"S = {S:<6}" + "".join(f"{loss:+10.4f}" for loss in after[:6]))
        image = ax.imshow(torch.stack(changes).clamp(min=1e-9), norm="log", vmin=1e-5, vmax=1,
                          aspect="auto", origin="lower", interpolation="nearest",
                          extent=(-0.5, x.size(1) - 0.5, 0.5, len(changes) + 0.5))
        ax.set(ylabel="sweep", title=f"S = {S}")
    axes[-1].set(xlabel="position")
    figure.colorbar(image, ax=axes, label="change of the latent", extend="min")
    return figure


# ---- What the recurrence knows

KINDS = {       # the last one that matches a character counts; of a pattern with (), only that part
    "other": r"(?s).",
    "digits": r"\d",
    "other letters": r"[^\W\d]",
    "closing brackets": r"[)\]}]",
    "closing quotes": r"(?<![^\Wrbfu])(?P<open>['\"])[^\n]*?((?P=open))",
    "line breaks": r"\n",
    "indentation": r"(?m)^ +",
}
NEAR, FAR = "words in the window", "words before the window"


def kinds_of(text, window):
    """For each character its kind. A word is a name of at least three letters that was there before
    and is no keyword of Python; its first character counts, too."""
    kinds, last = np.empty(len(text), dtype=object), {}
    for kind, pattern in KINDS.items():
        for found in re.finditer(pattern, text):
            start, end = found.span(found.re.groups)
            kinds[start:end] = kind
    for word in re.finditer(r"[^\W\d]\w\w+", text):
        if word[0] in last and not keyword.iskeyword(word[0]):
            kinds[slice(*word.span())] = NEAR if word.start() - last[word[0]] < window else FAR
        last[word[0]] = word.start()
    return kinds


@torch.no_grad()
def losses_of(model, x, y, memory=True):
    """Of each token, decoded one by one: (n, T). Without memory, all m are 0."""
    cache, found = model.init_cache(len(x)), []
    for token, target in zip(x.unbind(1), y.unbind(1)):
        m = cache.latent[:, None] if memory and model.config.lrt else None
        chunk = model.begin(token[:, None], cache, m)
        chunk.finish()
        found.append(F.cross_entropy(model.logits(chunk.h[:, 0]), target, reduction="none"))
    return torch.stack(found, dim=1).numpy()


def knows(s, first, second):
    model, checkpoint = sample.load_checkpoint(first)
    plain, other = sample.load_checkpoint(second)
    codec, window = Codec(checkpoint["codec"]), model.config.block_size
    if codec.spec in (None, "gpt2") or checkpoint["sha256"] != other["sha256"]:
        raise UsageError(f"{first} and {second} must have the same text, by characters")
    x, y = validation_rows(checkpoint, s.rows, s.length or 8 * window)
    n, T = x.shape
    loss = {first: losses_of(model, x, y), second: losses_of(plain, x, y)}
    difference = loss[first] - loss[second]
    loss["latent held at 0"] = losses_of(model, x, y, memory=False)

    texts = ["".join(codec.spec[token] for token in (row[0], *row_y)) for row, row_y in zip(x, y)]
    kinds = np.array([kinds_of(text, window)[1:] for text in texts])
    groups = {kind: kinds == kind for kind in (*KINDS, NEAR, FAR)}
    edges = [0, *(2 ** i for i in range(T.bit_length()) if 2 ** i < T), T]
    spans = list(zip(edges, edges[1:]))
    position = np.arange(T) + np.zeros((n, 1))
    places = {f"positions {a + 1} to {b}": (a <= position) & (position < b) for a, b in spans}
    print(f"{n} rows of {T} characters, which continue beyond the window of {window}; in nats\n")
    print(f"{'':32}{'share':>7}" + "".join(f"{name[-16:]:>18}" for name in loss)
          + f"{'difference':>12}{'of the whole':>14}")
    for name, mask in {**groups, "all": kinds != "", **places}.items():
        if mask.any():
            print(f"{name:32}{mask.mean():7.1%}"
                  + "".join(f"{its[mask].mean():18.4f}" for its in loss.values())
                  + f"{difference[mask].mean():+12.4f}{(difference * mask).mean():+14.4f}")

    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    there = [kind for kind, mask in groups.items() if mask.any()]
    left.barh(there, [difference[groups[kind]].mean() for kind in there])
    left.axvline(0, color="black", lw=0.8)
    left.set(xlabel=f"loss of {first} - loss of {second}")
    by_row = np.stack([difference[:, a:b].mean(1) for a, b in spans])
    right.errorbar([(a + 1 + b) / 2 for a, b in spans], by_row.mean(1), by_row.std(1) / n ** 0.5,
                   fmt="o-", capsize=3)
    right.axhline(0, color="black", lw=0.8)
    right.axvline(window, color="black", ls=":", lw=0.8)
    right.set(xscale="log", xlabel="position (dotted: length of the window)")
    return figure


# ---- Pictures of README.md and results.md

def clock(s):
    """Exact losses against minutes, in two tables of results.md: runs, and lines of their means."""
    page = results.load()
    titles = {"clock": "tiny Shakespeare", "python": "source of Python"}
    colors = dict(zip(results.TABLES["clock"] | results.TABLES["python"],
                      ("0.1", "0.6", "tab:blue", "tab:green", "tab:red", "tab:orange")))
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for ax, (name, title) in zip(axes, titles.items()):
        for label, row in results.TABLES[name].items():
            runs = [(int(column.split()[0]), run["exact"]) for column, flags in row.items()
                    for run in page.of(flags)]
            if runs:
                ax.plot(*zip(*runs), ".", color=colors[label])
                minutes = sorted({minute for minute, _ in runs})
                ax.plot(minutes, [mean(exact for minute, exact in runs if minute == one)
                                  for one in minutes], "-", label=label, color=colors[label])
        ax.set(xscale="log", xlabel="minutes of training", title=title,
               ylabel="exact loss, nats per character")
        ax.set_xticks(ticks := [1, 2, 4, 8, 16, 32], ticks)
        ax.minorticks_off()
        ax.legend()
    return figure


def dial(s, T=8):
    """Dots: the positions that a pass recomputes. Grey: exact from then on."""
    panels = {(1, 2): "Jacobi", (2, 1): "the paper's", (2, 2): "", (T, 1): "S = T: exact"}
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 3.4), layout="constrained",
                                width_ratios=[1.3 + K * S for S, K in panels])
    for ax, ((S, K), note) in zip(axes, panels.items()):
        passes = [range(T)] + [range(i, T, S) for _ in range(K) for i in range(S)]
        exact = [t == 0 for t in range(T)]          # pass 0 has m = 0, which is right for 0
        for n, subset in enumerate(passes):
            if n > 0:
                exact = [exact[t] or (t in subset and all(exact[:t])) for t in range(T)]
            for t in range(T):
                color = "0.55" if exact[t] else "1"
                ax.add_patch(plt.Rectangle((n, t), 1, 1, facecolor=color, edgecolor="0.3"))
            ax.plot([n + 0.5] * len(subset), [t + 0.5 for t in subset], "o", color="black", ms=7)
        ax.set(xlim=(0, len(passes)), ylim=(T, 0), xlabel="pass", aspect="equal",
               title=f"S = {S}, K = {K}\n" + (f"({note})" if note else ""))
        ax.set_xticks([n + 0.5 for n in range(len(passes))], range(len(passes)))
        ax.set_yticks([t + 0.5 for t in range(T)], range(T))
    axes[0].set_ylabel("position t")
    return figure


FOLDERS = {losses: None, settle: 1, knows: 2, clock: 0, dial: 0}    # how many runs; None: some


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    words = [word for word in argv if not word.startswith("-")]
    s = Settings(**parse_args(Settings, __doc__, [word for word in argv if word.startswith("-")]))
    check_numbers(s, dict(rows=1))
    pictures = {function.__name__: function for function in FOLDERS}
    name, *folders = words or [""]
    if name not in pictures:
        raise UsageError(f"the first word must be one of {', '.join(pictures)} (-h says more)")
    count = FOLDERS[pictures[name]]
    if (not folders) if count is None else (len(folders) != count):
        raise UsageError(f"{name} needs {'at least 1' if count is None else count} folders of runs")
    to = s.to or f"{name}.png"
    pictures[name](s, *folders).savefig(to, dpi=150)
    print(f"wrote {to}")


if __name__ == "__main__":
    run_script(main)
