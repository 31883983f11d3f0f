"""Losses of runs, exact (solid) and of the training graph (dotted):  python assets/plot.py out out-plain ...

Reads log.jsonl in each folder. Needs matplotlib.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.files import read_text
from support.options import option, parse
from support.script import fail, script

AXES = {"iter": "steps", "flops": "FLOPs of training", "seconds": "seconds, with evaluations",
        "tokens": "tokens"}


@dataclass
class Settings:
    x: str = option("iter", "what to draw the losses against", list(AXES))
    out: str = option("loss.png", "where the picture goes")


def pyplot():
    """matplotlib.pyplot, drawing into files; without it, one line says how to get it."""
    try:
        import matplotlib
    except ImportError:
        fail("pictures need matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


@script
def main(argv):
    argv = sys.argv[1:] if argv is None else argv
    folders = [word for word in argv if not word.startswith("-")]
    s, _ = parse(Settings, __doc__, [word for word in argv if word.startswith("-")])
    logs = {folder: Path(folder, "log.jsonl") for folder in folders or ["out"]}
    if missing := [folder for folder, path in logs.items() if not path.is_file()]:
        fail(f"no log.jsonl in {', '.join(missing)}; train.py writes it at the first evaluation")
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for folder, path in logs.items():
        try:
            rows = [json.loads(line) for line in read_text(path).splitlines()]
            x, exact, graph = ([row[key] for row in rows] for key in (s.x, "val_loss_exact", "val_loss"))
        except (ValueError, KeyError, TypeError) as e:
            fail(f"{path} is not a log of train.py ({type(e).__name__}: {e})")
        line, = ax.plot(x, exact, ".-", label=folder)
        if graph != exact:                                      # a plain GPT's are the same
            ax.plot(x, graph, ":", color=line.get_color(), label=f"{folder}, training graph")
    ax.set(xlabel=AXES[s.x], ylabel="validation loss, nats per token")
    ax.legend()
    figure.savefig(s.out, dpi=150)
    print(f"wrote {s.out}")


if __name__ == "__main__":
    main()
