"""Pictures, drawn with matplotlib (pip install matplotlib):

    python assets/plot.py losses out out-plain      exact losses of runs against steps
    python assets/plot.py settle out                how sweeps settle in a trained model
    python assets/plot.py knows out out-plain       where an LRT is ahead of a plain GPT, and when
    python assets/plot.py clock                     exact losses against minutes: assets/clock.png
    python assets/plot.py dial                      what each pass recomputes: assets/dial.png

settle prints the loss after K sweeps, and knows the losses by kind of character and by position.
"""
import json
import keyword
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import prepare_data
import sample
import train
from prepare_data import TASKS, Codec, UsageError, check_numbers, parse_args, run_script


@dataclass
class Settings:
    rows: int = 64                  # settle, knows: how many rows
    length: int = 0                 # tokens in a row; default: block_size; knows: 8 times that
    sweeps: int = 24                # settle: the most sweeps
    to: str = ""                    # the picture; default: losses.png, settle.png, knows.png


def pyplot():
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib
    except ImportError as e:
        raise UsageError("pictures need matplotlib: pip install matplotlib") from e
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def run_and_rows(folder, s, times=1):
    """The model of a run, its codec, and s.rows validation rows (n, length + 1) as it sees them;
    of a task, inputs and answers (2, n, length)."""
    model, checkpoint = sample.load_checkpoint(folder)
    task, T = checkpoint["settings"]["dataset"], s.length or times * model.config.block_size
    if task in TASKS:
        return model, None, np.stack(
            prepare_data.task_rows(task, (s.rows, T), np.random.default_rng(0)))
    meta, _, val = prepare_data.load(task)
    if meta["sha256"] != checkpoint["sha256"]:
        raise UsageError(f"data/{task} is another text than the run in {folder} has seen")
    n = min(s.rows, (len(val) - 1) // T)
    if n < 1:
        raise UsageError(f"--length={T}: the validation split has only {len(val):,} tokens")
    start = np.arange(n) * ((len(val) - 1) // T) // n * T
    return model, Codec(meta["codec"]), val[start[:, None] + np.arange(T + 1)].astype(np.int64)


# ---- Losses of runs

def losses(s, folders):
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
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
def settle(s, folders):
    """Root mean square over the width (a latent has 1), mean over rows, of what a sweep changes."""
    folder, = folders
    model, _, rows = run_and_rows(folder, s)
    if not model.config.lrt:
        raise UsageError(f"{folder} is a plain GPT, which has no sweeps")
    x, y = torch.from_numpy(rows if rows.ndim == 3 else np.stack([rows[:, :-1], rows[:, 1:]]))
    exact = train.exact_loss(model, x, y) / y.numel()
    print(f"exact loss {exact:.4f}; the loss after K sweeps minus the exact one:\n"
          + f"{'':10}" + "".join(f"{f'K = {K}':>10}" for K in range(6)))
    plt = pyplot()
    figure, axes = plt.subplots(3, figsize=(7, 7), layout="constrained", sharex=True)
    for ax, S in zip(axes, (1, 2, 8)):
        chunk = model.begin(x, model.init_cache(len(x)))
        changes, after = [], [loss_of(model, chunk, y) - exact]
        for _ in range(min(s.sweeps, -(-x.size(1) // S) + 1)):
            before = chunk.latent
            model.sweep(chunk, S)
            changes.append((chunk.latent - before).square().mean(-1).sqrt().mean(0))
            after.append(loss_of(model, chunk, y) - exact)
        print(f"S = {S:<6}" + "".join(f"{loss:+10.4f}" for loss in after[:6]))
        image = ax.imshow(torch.stack(changes).clamp(min=1e-9), norm="log", vmin=1e-5, vmax=1,
                          aspect="auto", origin="lower", interpolation="nearest",
                          extent=(-0.5, x.size(1) - 0.5, 0.5, len(changes) + 0.5))
        ax.set(ylabel="sweep", title=f"S = {S}")
    axes[-1].set(xlabel="position")
    figure.colorbar(image, ax=axes, label="change of the latent", extend="min")
    return figure


def loss_of(model, chunk, y):
    return train.sum_of_losses(model.logits(chunk.h), y) / y.numel()


# ---- What the recurrence knows

KINDS = ("indentation", "line breaks", "closing brackets and quotes",
         "words last seen in the window", "words last seen before it", "other letters", "digits",
         "other")
APOSTROPHE = re.compile(r"\w\w$|[^\Wrbfu]$")      # what comes before one; a quote has less, or f


def kinds_of(text, window):
    """For each character, the number of its kind. Words are names of at least three letters; their
    first character counts, too. Python's keywords are no names."""
    kinds, last, quote = [KINDS.index("other")] * len(text), {}, None
    for i, char in enumerate(text):
        if char.isdigit():
            kinds[i] = KINDS.index("digits")
        elif char.isalpha() or char == "_":
            kinds[i] = KINDS.index("other letters")
        if char == "\n":
            kinds[i], quote = KINDS.index("line breaks"), None
        elif char in ")]}" or char == quote:
            kinds[i] = KINDS.index("closing brackets and quotes")
            quote = None if char == quote else quote
        elif char in "'\"" and quote is None and not APOSTROPHE.search(text[:i][-2:]):
            quote = char
    for match in re.finditer(r"(?m)^ +", text):
        kinds[match.start():match.end()] = [KINDS.index("indentation")] * len(match[0])
    for match in re.finditer(r"[^\W\d]\w\w+", text):
        if match[0] in last and not keyword.iskeyword(match[0]):
            near = match.start() - last[match[0]] < window
            kind = "words last seen in the window" if near else "words last seen before it"
            kinds[match.start():match.end()] = [KINDS.index(kind)] * len(match[0])
        last[match[0]] = match.start()
    return kinds


@torch.no_grad()
def losses_of(model, rows, memory=True):
    """Of each token but the first, decoded one by one: (n, T). Without memory, all m are 0."""
    rows, cache, found = torch.from_numpy(rows), model.init_cache(len(rows)), []
    for now, following in zip(rows.unbind(1), rows[:, 1:].unbind(1)):
        chunk = model.begin(now[:, None], cache, cache.latent[:, None]
                            if memory and model.config.lrt else None)
        chunk.finish()
        found.append(F.cross_entropy(model.logits(chunk.h[:, 0]), following, reduction="none"))
    return torch.stack(found, 1).numpy()


def knows(s, folders):
    first, second = folders
    model, codec, rows = run_and_rows(first, s, 8)
    plain, other_codec, other_rows = run_and_rows(second, s, 8)
    if codec is None or codec.spec == "gpt2":
        raise UsageError(f"{first}: this is for texts by characters")
    if other_codec is None or codec.spec != other_codec.spec or rows.shape != other_rows.shape:
        raise UsageError(f"{first} and {second} have other texts, or other lengths of rows")
    window, (n, T) = model.config.block_size, rows[:, 1:].shape
    loss = {first: losses_of(model, rows), second: losses_of(plain, rows)}
    if model.config.lrt:
        loss["latent held at 0"] = losses_of(model, rows, memory=False)
    difference = loss[first] - loss[second]

    texts = ["".join(codec.spec[token] for token in row) for row in rows]
    kinds = np.array([kinds_of(text, window)[1:] for text in texts])
    groups = {kind: kinds == i for i, kind in enumerate(KINDS) if (kinds == i).any()}
    print(f"{n} rows of {T} characters, which continue beyond the window of {window}; in nats\n")
    head = "".join(f"{name[-16:]:>18}" for name in loss)
    print(f"{'':32}{'share':>7}{head}{'difference':>12}{'of the whole':>14}")
    for kind, mask in groups.items():
        print(f"{kind:32}{mask.mean():7.1%}"
              + "".join(f"{its[mask].mean():18.4f}" for its in loss.values())
              + f"{difference[mask].mean():+12.4f}{(difference * mask).mean():+14.4f}")
    print(f"{'all':32}{1:7.1%}" + "".join(f"{its.mean():18.4f}" for its in loss.values())
          + f"{difference.mean():+12.4f}{difference.mean():+14.4f}\n")
    edges = [0, *(2 ** i for i in range(T.bit_length()) if 2 ** i < T), T]
    spans = {f"positions {a + 1} to {b}": slice(a, b) for a, b in zip(edges, edges[1:])}
    for name, at in spans.items():
        print(f"{name:39}" + "".join(f"{its[:, at].mean():18.4f}" for its in loss.values())
              + f"{difference[:, at].mean():+12.4f}")

    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.barh(list(groups)[::-1], [difference[mask].mean() for mask in groups.values()][::-1])
    left.axvline(0, color="black", lw=0.8)
    left.set(xlabel=f"loss of {first} - loss of {second}")
    by_row = np.stack([difference[:, at].mean(1) for at in spans.values()])
    middle = [(at.start + 1 + at.stop) / 2 for at in spans.values()]
    right.errorbar(middle, by_row.mean(1), by_row.std(1) / n ** 0.5, fmt="o-", capsize=3)
    right.axhline(0, color="black", lw=0.8)
    right.axvline(window, color="black", ls=":", lw=0.8)
    right.set(xscale="log", xlabel="position (dotted: length of the window)")
    return figure


# ---- Pictures of assets/

def clock(s, folders):
    """Exact losses against minutes, from results.jsonl and speed.json."""
    import results                      # only here: the other pictures do not need it
    speed = json.loads((HERE / "speed.json").read_text(encoding="utf-8"))
    page = results.Page(results.read(HERE / "results.jsonl"), speed)
    points = {}                         # of (table, label): minutes, mean, deviation
    for name in ("clock", "python"):
        for label, by_column in results.TABLES[name][2].items():
            for flags in by_column.values():
                cost, rows = speed["steps"].get(results.model_of(flags)), page.of(flags)
                if cost and rows:
                    exact = [row["exact"] for row in rows]
                    points.setdefault((name, label), []).append(
                        (rows[0]["steps"] * cost["ms"] / 60000, mean(exact),
                         stdev(exact) if len(exact) > 1 else 0))
    colors = dict(zip(dict.fromkeys(label for _, label in points),
                      ("0.1", "0.6", "tab:blue", "tab:red", "tab:orange", "tab:green")))
    tables = dict.fromkeys(name for name, _ in points)
    figure, axes = pyplot().subplots(1, len(tables), figsize=(5.5 * len(tables), 4.5),
                                     layout="constrained", squeeze=False)
    axes = dict(zip(tables, axes[0]))
    for (name, label), those in points.items():
        axes[name].errorbar(*zip(*those), fmt="o-", ms=4, capsize=3, label=label,
                            color=colors[label])
    for name, ax in axes.items():
        title = {"clock": "tiny Shakespeare", "python": "source of Python"}[name]
        ax.set(xscale="log", xlabel="minutes of training", title=title,
               ylabel="exact loss, nats per character")
        ax.set_xticks(ticks := [0.5, 1, 2, 4, 8, 16, 32], ticks)
        ax.minorticks_off()
    axes = axes.values()
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return figure


def dial(s, folders, T=8):
    """Dots: the positions that a pass recomputes. Grey: exact from then on."""
    plt = pyplot()
    panels = {(1, 2): "Jacobi", (2, 1): "the paper's", (2, 2): "", (T, 1): "S = T: exact"}
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


PICTURES = {losses: None, settle: 1, knows: 2, clock: 0, dial: 0}       # how many folders


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    words = [word for word in argv if not word.startswith("-")]
    s = Settings(**parse_args(Settings, __doc__, [word for word in argv if word.startswith("-")]))
    check_numbers(s, dict(rows=1, sweeps=1))
    pictures = {function.__name__: (function, count) for function, count in PICTURES.items()}
    name, *folders = words or [""]
    if name not in pictures:
        raise UsageError(f"the first word must be one of {', '.join(pictures)} (-h says more)")
    function, count = pictures[name]
    if not folders if count is None else len(folders) != count:
        raise UsageError(f"{name} needs {'at least 1' if count is None else count} folders of runs")
    to = s.to or (f"{name}.png" if count != 0 else HERE / f"{name}.png")
    function(s, folders).savefig(to, dpi=150)
    print(f"wrote {to}")


if __name__ == "__main__":
    run_script(main)
