"""Results of training. Runs are kept in results.jsonl; the tables of results.md are made of them.

    python assets/results.py missing TABLE [SEED]       print the commands of what a table misses
    python assets/results.py add FOLDER ...             add finished runs
    python assets/results.py                            write the tables of results.md

A run that is added replaces the run of the same flags and seed. The sentences of results.md are
written by hand: read those of a table whose runs have changed.
"""
import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import torch

import sample
import train
from prepare_data import UsageError, replace_file, run_script

# ---- Tables: {label: flags of train.py}, or, with a run in each cell, {label: {column: flags}}

PLAIN, DEEP = "", "--n_layer=4"
S2, S4, S8, S16 = (f"--lrt=1 --lrt_subsets={S}" for S in (2, 4, 8, 16))
THROUGH = S4 + " --lrt_sweeps=2"
HOPS, HOPS3 = THROUGH + " --lrt_hops=2", S4 + " --lrt_sweeps=3 --lrt_hops=2"
LOOP = "--lrt=1 --lrt_mode=sequential"
EXACT0, EXACT1, EXACT2 = (f"{LOOP} --lrt_hops={hops}" for hops in (0, 1, 2))
ROWS = "--dataset=python --batch_size=128 "


def cells(flags, name, values, columns=None):
    """Runs that differ in one setting. A value of None is no run."""
    return {column: f"{flags} --{name}={value}"
            for column, value in zip(columns or map(str, values), values) if value is not None}


TABLES = {
    "main": {
        "plain": PLAIN + " --max_iters=1750",
        "plain, twice the steps": PLAIN + " --max_iters=3500",
        "plain, in the time of hops": PLAIN + " --max_iters=5000",
        "S = 2, as in the paper": S2 + " --max_iters=1750",
        "S = 4": S4 + " --max_iters=1750",
        "S = 8": S8 + " --max_iters=1750",
        "S = 16": S16 + " --max_iters=1750",
        "S = 4, K = 2, through all passes": THROUGH + " --max_iters=1750",
        "S = 4, K = 2, 2 hops": HOPS + " --max_iters=1750",
        "S = 4, K = 3, 2 hops": HOPS3 + " --max_iters=1750",
        "token by token": LOOP + " --max_iters=1734",
    },
    "clock": {label: cells(flags, "max_iters", steps, [f"{n} min" for n in (1, 3, 6, 8, 11, 16)])
              for label, flags, steps in (
                  ("plain, 2 layers", PLAIN, (696, 1750, 3500, 5000, 6969)),
                  ("plain, 4 layers", DEEP, (351, 879, 1758, None, 3516)),
                  ("S = 2, as in the paper", S2, (335, 838, 1750, None, 3352)),
                  ("S = 16", S16, (None, None, 838, None, 1750)),
                  ("S = 4, K = 2, 2 hops", HOPS, (237, 605, 1190, 1750, 2400, 3500)))},
    "python": {label: cells("--dataset=python " + flags, "max_iters",
                            [steps, 2 * steps, 4 * steps, 8 * steps],
                            ["3 min", "6 min", "12 min", "24 min"])
               for label, flags, steps in (
                   ("plain, 2 layers", PLAIN, 4200), ("plain, 4 layers", DEEP, 2150),
                   ("S = 2, as in the paper", S2, 2050), ("S = 4, K = 2, 2 hops", HOPS, 1425),
                   ("S = 4, K = 3, 2 hops", HOPS3, 1260))},
    "rows": {label: cells(ROWS + flags, "max_iters", [steps, 2 * steps], ["6 min", "12 min"])
             for label, flags, steps in (
                 ("plain", PLAIN, 800), ("S = 2, as in the paper", S2, 320),
                 ("exact, 1 hop", EXACT1, 300), ("exact, 2 hops", EXACT2, 240))},
    "tasks": {f"{task}, {label}": f"--dataset={task} {flags}"
              for task in ("parity", "swaps")
              for label, flags in (
                  ("plain", PLAIN), ("S = 2, as in the paper", S2),
                  ("S = 4, K = 2, through all passes", THROUGH), ("S = 4, K = 2, 2 hops", HOPS),
                  ("exact", LOOP), ("exact, 1 hop", EXACT1), ("exact, 0 hops", EXACT0))},
    "gradient": {
        "S = 4, K = 2": cells(THROUGH + " --max_iters=693", "lrt_hops", (0, 1, 2, 4, 16)),
        "exact": cells(LOOP + " --max_iters=693", "lrt_hops", (0, 1, 2))
                 | {"all": LOOP + " --max_iters=693"}},
    "length": {
        f"{label}, T = {T:,}{when}":
            f"{flags} --block_size={T} --batch_size={1024 // T} --max_iters={steps}"
        for label, flags, T, steps, when in (
            ("plain", PLAIN, 128, 693, ""), ("plain", PLAIN, 512, 693, ""),
            ("plain", PLAIN, 1024, 693, ""), ("S = 4, K = 2, 2 hops", HOPS, 128, 693, ""),
            ("S = 4, K = 2, 2 hops", HOPS, 512, 693, ""),
            ("S = 4, K = 2, 2 hops", HOPS, 1024, 693, ""),
            ("plain", PLAIN, 512, 2190, ", in the time of hops"),
            ("plain", PLAIN, 1024, 2260, ", in the time of hops"))},
    "default": {
        "S = 2, as in the paper": S2 + " --max_iters=1500",
        "S = 4": S4 + " --max_iters=1500",
        "S = 4, K = 2, 1 hop": THROUGH + " --lrt_hops=1 --max_iters=1210",
        "S = 4, K = 2, 2 hops": HOPS + " --max_iters=1030",
        "S = 4, K = 3, 1 hop": S4 + " --lrt_sweeps=3 --lrt_hops=1 --max_iters=1055",
        "S = 4, K = 3, 2 hops": HOPS3 + " --max_iters=940",
        "S = 8, K = 2, 2 hops": S8 + " --lrt_sweeps=2 --lrt_hops=2 --max_iters=980"},
    "tuning": {f"{label}, {steps:,} steps": cells(f"{flags} --max_iters={steps}", "learning_rate",
                                                  (0.008, 0.016, 0.032))
               for label, flags, steps in (
                   ("plain, 2 layers", PLAIN, 696), ("plain, 4 layers", DEEP, 351),
                   ("S = 2, as in the paper", S2, 335), ("S = 16", S16, 335),
                   ("plain, 2 layers", PLAIN, 5000), ("S = 4, K = 2, 2 hops", HOPS, 693),
                   ("128 rows of python, plain", ROWS + PLAIN, 800),
                   ("128 rows of python, S = 2", ROWS + S2, 320),
                   ("128 rows of python, exact, 1 hop", ROWS + EXACT1, 300))},
}

# ---- Runs: a line of results.jsonl has the flags in one form, the seed, and what the log says

NOT_THE_RUN = ("out_dir", "resume", "overwrite", "eval_only", "seed", "eval_interval",
               "eval_tokens", "log_interval", "device")


def settings(flags):
    """What train.py makes of flags."""
    types = {f.name: type(f.default) for f in fields(train.Settings)}
    typed = dict(flag.removeprefix("--").split("=", 1) for flag in flags.split())
    typed = {name: types[name](value) for name, value in typed.items()}
    return train.Settings(**train.PRESETS.get(typed.get("dataset"), {}) | typed)


def canonical(flags, without=()):
    """Flags of train.py in one order, without defaults and without what does not change a run."""
    values = asdict(settings(flags))
    default = asdict(settings(f"--dataset={values['dataset']}"))
    default |= {"dataset": train.Settings.dataset, "max_iters": None}
    return " ".join(f"--{name}={value}" for name, value in values.items()
                    if value != default[name] and name not in (*NOT_THE_RUN, *without))


def model_of(flags):
    """The flags that a step's time depends on."""
    return canonical(flags, without=("dataset", "max_iters", "learning_rate"))


def flags_of(table):
    """The flags of all runs of a table."""
    return [flags for value in table.values()
            for flags in (value.values() if isinstance(value, dict) else [value])]


def read():
    lines = (HERE / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def code():
    """The last commit that changed what trains; + if there are changes on top of it."""
    def git(*words):
        files = ("lrt.py", "train.py", "prepare_data.py")
        return subprocess.run(["git", *words, "--", *files], cwd=HERE.parent, text=True,
                              stdout=subprocess.PIPE).stdout.strip()
    return (git("log", "-1", "--format=%h") or "unknown") + "+" * bool(git("status", "--short"))


def row_of(folder):
    """What results.jsonl keeps of a run. Raises UsageError if the run is not finished."""
    checkpoint = sample.load_checkpoint(Path(folder, "last.pt"))[1]
    s, n = checkpoint["settings"], checkpoint["step"]
    evaluations = [row for row in checkpoint["log"] if "exact" in row]
    if n < s["max_iters"] or not evaluations:
        raise UsageError(f"{folder} is not finished: step {n:,} of {s['max_iters']:,}")
    best = min(evaluations, key=lambda row: row["exact"])
    return {"flags": canonical(" ".join(f"--{name}={value}" for name, value in s.items())),
            "seed": s["seed"], "steps": n, "commit": code(),
            "machine": torch.backends.cpu.get_cpu_capability(),
            "torch": checkpoint["versions"]["torch"], "text": (checkpoint["sha256"] or "")[:8],
            "exact": best["exact"], "final": evaluations[-1]["exact"],
            "as_trained": best["as_trained"], "no_memory": best["no_memory"],
            "evaluations": evaluations}


def with_run(rows, new):
    """rows, in which `new` takes the place of the run with its flags and seed."""
    dataset = settings(new["flags"]).dataset
    for row in rows:
        if settings(row["flags"]).dataset == dataset and row["text"] not in ("", new["text"]):
            raise UsageError(f"a run on another text named {dataset} is there: its sha256 begins "
                             f"with {row['text']}, and that of the new one with {new['text']}")
    key = new["flags"], new["seed"]
    return [row for row in rows if (row["flags"], row["seed"]) != key] + [new]


def missing(rows, table, seed):
    """Commands for the runs of a table that are not there."""
    there = {row["flags"] for row in rows if row["seed"] == seed}
    flags = dict.fromkeys(canonical(flags) for flags in flags_of(table))
    return [f"python train.py {one} --seed={seed} --out_dir=runs/"
            + f"{one}-{seed}".replace("--", "").replace(" ", "-") for one in flags
            if one not in there]


# ---- Tables of results.md

class Page:
    """What runs and speed.json say, as tables."""

    def __init__(self, rows, speed):
        self.rows, self.speed, self.letters = {}, speed, {}
        self.steps = {line[""].replace("plain", ""): line for line in speed["steps"]["lines"]}
        for row in rows:
            self.rows.setdefault(row["flags"], []).append(row)
        for commit in dict.fromkeys(row["commit"] for row in rows):
            self.letters[commit] = chr(ord("a") + len(self.letters))

    def of(self, flags):
        """The runs with these flags, one for each seed."""
        return self.rows.get(canonical(flags), [])

    def seeds(self, rows):
        """How many of which code: 2a 1b."""
        codes = [self.letters[row["commit"]] for row in rows]
        return " ".join(f"{codes.count(letter)}{letter}" for letter in sorted(set(codes)))

    def line(self, label, flags):
        """A line of a table with one run for each label."""
        rows, cost = self.of(flags), self.steps.get(model_of(flags))
        steps, is_lrt = rows[0]["steps"], "--lrt=1" in flags
        line = {"": label, "seeds": self.seeds(rows), "steps": f"{steps:,}"}
        best = [min(row["evaluations"], key=lambda one: one["exact"]) for row in rows]
        right = [name for name in best[0] if name.startswith("right_at_")]
        for name in right:
            line[name.removeprefix("right_at_")] = spread([100 * one[name] for one in best], 1)
        if right:
            return line
        if cost:
            line |= {"FLOPs": f"{steps * float(cost['FLOPs']):.2e}".replace("e+", "e"),
                     "ms": f"{float(cost['ms']):.0f}",
                     "minutes": f"{steps * float(cost['ms']) / 60000:.1f}",
                     "MB": cost["MB"]}
        gap = mean(row["exact"] - row["as_trained"] for row in rows)
        return line | {
            "exact loss": spread([row["exact"] for row in rows]),
            "gap": f"{gap:+.4f}" if is_lrt else "",
            "latent held at 0": spread([row["no_memory"] for row in rows]) if is_lrt else ""}

    def cell(self, flags):
        rows = self.of(flags) if flags else []
        return f"{spread([row['exact'] for row in rows])} ({self.seeds(rows)})" if rows else ""

    def table(self, name):
        if name == "codes":
            return "".join(f"- {letter}: {commit}\n" for commit, letter in self.letters.items())
        if name == "speed":
            return "\n".join(f"**{name}** ({one['machine']}): {one['title']}.\n\n"
                             + markdown(one["lines"]) for name, one in self.speed.items())
        runs = TABLES[name]
        columns = dict.fromkeys(column for value in runs.values() if isinstance(value, dict)
                                for column in value)
        if columns:
            lines = [{"": label} | {column: self.cell(value.get(column)) for column in columns}
                     for label, value in runs.items()]
        else:
            lines = [self.line(label, flags) for label, flags in runs.items() if self.of(flags)]
        return markdown(lines)


def spread(numbers, digits=4):
    """Mean and standard deviation."""
    deviation = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{deviation}"


def markdown(lines):
    """Dictionaries, as a table. The first one has all columns."""
    if not lines:
        return "No runs yet.\n"
    rows = [list(lines[0]), ["---"] * len(lines[0])]
    rows += [[line.get(column, "") for column in lines[0]] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def load():
    return Page(read(), json.loads((HERE / "speed.json").read_text(encoding="utf-8")))


def written(text):
    """The text of results.md with its tables made anew: each stands below <!-- its name -->."""
    page = load()
    return re.sub(r"(?s)(<!-- (\w+) -->\n).*?(<!-- end -->)",
                  lambda found: found[1] + page.table(found[2]) + found[3], text)


def save(name, text):
    replace_file(HERE / name, lambda path: path.write_bytes(text.encode()))


def main(argv=None):
    command, *words = (sys.argv[1:] if argv is None else argv) or ["write"]
    if command == "write" and not words:
        save("results.md", written((HERE / "results.md").read_text(encoding="utf-8")))
        print("wrote assets/results.md")
    elif command == "add" and words:
        for folder in words:
            new = row_of(folder)
            save("results.jsonl", "".join(f"{json.dumps(row)}\n" for row in with_run(read(), new)))
            print(f"exact {new['exact']:.4f}: {new['flags']} --seed={new['seed']}")
    elif command == "missing" and words and words[0] in TABLES and len(words) < 3 \
            and all(word.isdecimal() for word in words[1:]):
        print(*missing(read(), TABLES[words[0]], int((words[1:] or [1337])[0])), sep="\n")
    elif command in ("-h", "--help"):
        print(f"{__doc__}\nThe tables are {', '.join(TABLES)}.")
    else:
        raise UsageError("add FOLDER, missing TABLE [SEED], or nothing; the tables are "
                         f"{', '.join(TABLES)} (-h says more)")


if __name__ == "__main__":
    run_script(main)
