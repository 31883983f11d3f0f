"""Runs as pictures:

    python assets/plot.py out out-plain     validation losses, exact and of the training graph
    python assets/plot.py out --steps=1     training loss, learning rate, norm of the gradient

They read log.jsonl, or steps.csv, in each folder. Needs matplotlib.
"""
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.files import read_text
from support.options import option, parse_with_folders
from support.script import Unusable, say, script

AXES = {"iter": "steps", "flops": "FLOPs of training", "seconds": "seconds, with evaluations",
        "tokens": "tokens"}
COLUMNS = {"loss": "training loss", "learning_rate": "learning rate",
           "gradient_norm": "norm of the gradient"}


@dataclass
class Settings:
    x: str = option("iter", "what to draw the validation losses against", list(AXES))
    steps: int = option(0, "1: what steps.csv says", [0, 1])
    out: str = option("loss.png", "where the picture goes")


def pyplot():
    """matplotlib.pyplot, drawing into files. Raises Unusable that says how to get it."""
    try:
        import matplotlib
    except ImportError as e:
        raise Unusable("pictures need matplotlib: pip install matplotlib") from e
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


@script
def main(argv):
    folders, s, given = parse_with_folders(Settings, __doc__, argv)
    if s.steps:
        if "x" in given:
            raise Unusable("--x has no meaning with --steps=1")
        figure = picture_of_steps({folder: steps_of(folder) for folder in folders})
    else:
        figure = picture_of_losses({folder: log_of(folder) for folder in folders}, s.x)
    figure.savefig(s.out, dpi=150)
    say(f"wrote {s.out}")


# ---- What the files say

def text_of(folder, name, when):
    """The text of a file of a run. Raises Unusable if it is not there."""
    path = Path(folder, name)
    if not path.is_file():
        raise Unusable(f"no {name} in {folder}; train.py writes it {when}")
    return read_text(path)


def log_of(folder):
    """The rows of log.jsonl. Raises Unusable if it is damaged."""
    text = text_of(folder, "log.jsonl", "at the first evaluation")
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        for row in rows:
            for key in (*AXES, "val_loss", "val_loss_exact"):
                float(row[key])
    except (ValueError, KeyError, TypeError) as e:
        raise Unusable(f"{folder}/log.jsonl is not of train.py ({type(e).__name__}: {e})") from e
    return rows


def steps_of(folder):
    """The columns of steps.csv, {name: numbers}. Raises Unusable if it is damaged."""
    text = text_of(folder, "steps.csv", "after log_interval steps")
    try:
        rows = list(csv.DictReader(text.splitlines()))
        return {name: [float(row[name]) for row in rows] for name in ("step", *COLUMNS)}
    except (ValueError, KeyError, TypeError) as e:
        raise Unusable(f"{folder}/steps.csv is not of train.py ({type(e).__name__}: {e})") from e


# ---- Pictures

def picture_of_losses(logs, x):
    """Exact losses solid, those of the training graph dotted; of a plain GPT they are the same."""
    figure, ax = pyplot().subplots(figsize=(6.5, 4), layout="constrained")
    for folder, rows in logs.items():
        places = [row[x] for row in rows]
        exact = [row["val_loss_exact"] for row in rows]
        graph = [row["val_loss"] for row in rows]
        line, = ax.plot(places, exact, ".-", label=folder)
        if graph != exact:
            ax.plot(places, graph, ":", color=line.get_color(), label=f"{folder}, training graph")
    ax.set(xlabel=AXES[x], ylabel="validation loss, nats per token")
    ax.legend()
    return figure


def picture_of_steps(tables):
    """One below the other, against the steps."""
    figure, axes = pyplot().subplots(len(COLUMNS), figsize=(6.5, 7), layout="constrained",
                                     sharex=True)
    for ax, (name, title) in zip(axes, COLUMNS.items()):
        for folder, table in tables.items():
            ax.plot(table["step"], table[name], label=folder)
        ax.set(ylabel=title)
    axes[0].legend()
    axes[-1].set(xlabel="steps")
    return figure


if __name__ == "__main__":
    main()
