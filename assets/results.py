"""Results of training. Runs go to assets/results.jsonl, and from there to assets/results.md:

    python assets/results.py run TABLE [SEED ...]       train what a table misses, into runs/
    python assets/results.py missing TABLE [SEED ...]   print the commands of what it misses
    python assets/results.py add FOLDER ...             add finished runs
    python assets/results.py                            write results.md

TABLE is one of the names in TABLES below, or all; SEED is 1337 unless given. A run that is added
replaces the run of the same flags and seed. Sentences age: read those of a table whose runs change.
"""
import json
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
from prepare_data import TASKS, UsageError, replace_file, run_script

# ---- Tables: {name: (title, sentences, runs)}. runs is {label: flags of train.py}, or, for a table
# with a run in each cell, {label: {column: flags}}

PLAIN, DEEP = "", "--n_layer=4"
S2, S4, S8, S16 = (f"--lrt=1 --lrt_subsets={S}" for S in (2, 4, 8, 16))
THROUGH = S4 + " --lrt_sweeps=2"                # the gradient goes through all passes
HOPS, HOPS3 = THROUGH + " --lrt_hops=2", S4 + " --lrt_sweeps=3 --lrt_hops=2"
LOOP = "--lrt=1 --lrt_mode=sequential"

ABOUT = """# Results

`python assets/results.py` writes this file from `assets/results.jsonl`, and a test compares them.
The text is tiny Shakespeare by characters, and all settings are the defaults of train.py, unless a
table says otherwise. The exact loss is decoded token by token, over the whole validation split of
Shakespeare, and over 131,072 tokens of other texts. It is in nats per token, and of the run's best
evaluation; divided by 0.693, it is in bits. A number is the mean over seeds ± their standard
deviation. Behind it stands how many seeds there are, and which code trained them: `2a 1b` means two
seeds with code a and one with code b.

{codes}

The code of edition 2 was written differently, but computes the same: its model and the present one
agree to 1e-12 in float64. It took the rows of tasks from a fixed set; now they are drawn as the
training goes.

- *ms* and *MB*: time of a step with the optimizer, and its peak memory. They were measured on
  {machine}.
- *minutes*: ms times steps. The runs themselves shared a machine, so their own times say less.
- *FLOPs*: as torch's FlopCounterMode counts them.
- *gap*: the exact loss minus the loss on the graph of training.
- *latent held at 0*: the exact loss of the same weights when every memory is 0.
"""


def steps(flags, n, rate=None):
    """The flags of a run of n steps."""
    return f"{flags} --max_iters={n}" + (f" --learning_rate={rate}" if rate else "")


def by_column(flags, columns, numbers):
    """A row with a run of so many steps in each column; None: no run."""
    return {column: steps(flags, n) for column, n in zip(columns, numbers) if n}


def by_hops(flags, n, hops):
    """A row of the table of hops."""
    return {f"{h} hops": steps(f"{flags} --lrt_hops={h}", n) for h in hops}


def at_length(flags, T, n):
    """Rows of T tokens, as many tokens a step as in the default: 8 rows of 128."""
    return steps(f"{flags} --block_size={T} --batch_size={1024 // T}", n)


MINUTES = ("1 min", "3 min", "6 min", "8 min", "11 min", "16 min")

# Steps in three minutes of two quiet cores with AVX-512: 43, 84, 88, 126 and 143 ms a step
STEPS_PYTHON = {PLAIN: 4200, DEEP: 2150, S2: 2050, HOPS: 1425, HOPS3: 1260}

# ms of a step of 128 rows on the same cores. They fix the steps of runs: keep them after the first
MS_ROWS = {PLAIN: 700, S2: 1450, LOOP + " --lrt_hops=1": 1550, LOOP + " --lrt_hops=2": 1900}
BEST_RATE = dict.fromkeys(MS_ROWS, 0.016)       # after 12 minutes, of three; for the longer runs


def in_minutes(flags, minutes, ms):
    """The flags of a run of so many minutes, in tens of steps."""
    return steps(flags, round(minutes * 6000 / ms) * 10)


def many_rows(dataset, flags):
    """A row of the table of 128 rows: a model and a text."""
    large, ms = f"--dataset={dataset} {flags} --batch_size=128", MS_ROWS[flags]
    row = {f"12 min, {rate}": f"{in_minutes(large, 12, ms)} --learning_rate={rate}"
           for rate in (0.008, 0.016, 0.032)}
    return row | {"30 min": f"{in_minutes(large, 30, ms)} --learning_rate={BEST_RATE[flags]}"}


TABLES = {
    "main": ("Equal tokens, equal FLOPs, equal time", """
After the same tokens, each LRT is ahead of a plain GPT, and training that is nearer to exact gives
a lower loss. **By the clock**, hops (S = 4, K = 2) are a little ahead of a plain GPT that trains as
long, with each of three seeds, and their steps need hardly more memory. A third sweep gains 0.005.
A gradient through all passes is worth no more than two hops, and it takes more time and three times
the memory. **Per FLOP**, token by token is the best by far, as it computes each position once. The
loss with the latent held at 0 is high where training always had a memory (hops, token by token) and
low where the loss of pass 0 was trained, too: it says how much a model relies on its memory, not
what it gains by it.""", {
        "plain": steps(PLAIN, 1750),
        "plain, twice the steps": steps(PLAIN, 3500),
        "plain, in the time of hops": steps(PLAIN, 5000),
        "S = 2, as in the paper": steps(S2, 1750),
        "S = 4": steps(S4, 1750),
        "S = 8": steps(S8, 1750),
        "S = 16": steps(S16, 1750),
        "S = 4, K = 2, through all passes": steps(THROUGH, 1750),
        "S = 4, K = 2, 2 hops": steps(HOPS, 1750),
        "S = 4, K = 3, 2 hops": steps(HOPS3, 1750),
        "token by token": steps(LOOP, 1734),
    }),
    "clock": ("By the clock", """
The columns are minutes of training on two quiet cores with AVX2 only; evaluation is not counted.
**Up to 6 minutes the plain GPT is ahead** of hops, by 0.07, 0.05 and 0.01, and ahead of S = 2.
**From 8 minutes on hops are ahead of it**, by 0.010, and by 0.019 at 11 minutes (two seeds: 0.004
and 0.033). A plain GPT of four layers is level with hops at 11 minutes, but a generated token costs
1.8 times as much. S = 2 is level with the plain GPT from 6 minutes on. The plain GPT gains only
0.004 from 8 to 11 minutes: by then it has read the text five to seven times, and hops two to two
and a half times. With more text this can be otherwise. Only hops were run for 16 minutes.""", {
        "plain, 2 layers": by_column(PLAIN, MINUTES, (696, 1750, 3500, 5000, 6969)),
        "plain, 4 layers": by_column(DEEP, MINUTES, (351, 879, 1758, None, 3516)),
        "S = 2, as in the paper": by_column(S2, MINUTES, (335, 838, 1750, None, 3352)),
        "S = 16": by_column(S16, MINUTES, (None, None, 838, None, 1750)),
        "S = 4, K = 2, 2 hops": by_column(HOPS, MINUTES, (237, 605, 1190, 1750, 2400, 3500)),
    }),
    "python": ("By the clock, on the source of Python", """
The text is the source of Python's own modules (`--dataset=python`). The columns are minutes of
training on two quiet cores with AVX-512. After 3 minutes a plain GPT is ahead of hops by 0.024, and
after 6 minutes hops are ahead by 0.002: the lines cross there. This is one seed; longer runs are
not measured yet.""", {
        name: {f"{n} min": steps(f"--dataset=python {flags}", n * STEPS_PYTHON[flags] // 3)
               for n in (3, 6, 12, 24)}
        for name, flags in (("plain, 2 layers", PLAIN), ("plain, 4 layers", DEEP),
                            ("S = 2, as in the paper", S2), ("S = 4, K = 2, 2 hops", HOPS),
                            ("S = 4, K = 3, 2 hops", HOPS3))
    }),
    "rows": ("With 128 rows in a step", """
With 256 rows of 128 tokens, exact training with one hop takes 2.6 plain steps, and S = 2 takes 2.9;
with 128 rows they take 2.9 and 2.6, and with 8 rows exact training takes three times as long as
S = 2 (see the table of speed). The columns are minutes of two cores, and the learning rate; the long runs have the best rate of the
short ones.""", {
        f"{text}, {name}": many_rows(text, flags)
        for text in ("shakespeare", "python")
        for name, flags in (("plain", PLAIN), ("S = 2, as in the paper", S2),
                            ("exact, 1 hop", LOOP + " --lrt_hops=1"),
                            ("exact, 2 hops", LOOP + " --lrt_hops=2"))
    }),
    "tasks": ("Parity and swaps", """
Of a hundred answers at the end of rows of 32 tokens, as in training, to 512 tokens, how many are
right. Chance is 50 for parity and 0.8 for swaps. **Here the forward pass has to be exact.** Then
parity is learned with no gradient through time at all, and swaps nearly so; one hop makes them
perfect. With two sweeps of four subsets, hops teach neither, and a gradient through all passes
teaches a part of the 32 places of training and nothing beyond. An exact forward pass finds the
state; each position need only learn how to use and how to pass on what it received.""", {
        f"{task}, {name}": steps(f"--dataset={task} {flags}", n)
        for task, n in (("parity", 150), ("swaps", 600))
        for name, flags in (("plain", PLAIN), ("S = 2, as in the paper", S2),
                            ("S = 4, K = 2, through all passes", THROUGH),
                            ("S = 4, K = 2, 2 hops", HOPS), ("exact", LOOP),
                            ("exact, 1 hop", LOOP + " --lrt_hops=1"),
                            ("exact, 0 hops", LOOP + " --lrt_hops=0"))
    }),
    "gradient": ("Which has to be exact, forward or backward?", """
The rows differ in how exact the memory of the forward pass is. The columns differ in how many
latents the gradient goes back. **On text the gradient matters, and two hops suffice.** Without a
gradient through time the loss is 1.66. The first hop gains 0.05, the second 0.01, and more hops
gain nothing, whether the memory comes from two sweeps or is exact: the rows differ by at most
0.003.""", {
        "S = 4, K = 2": by_hops(THROUGH, 693, (0, 1, 2, 4, 16)),
        "exact": by_hops(LOOP, 693, (0, 1, 2)) | {"all": steps(LOOP, 693)},
    }),
    "length": ("Longer rows, equal tokens", """
Each step has 1,024 tokens. **After the same tokens**, a plain GPT learns less from few long rows
than from many short ones, and hops lose little: they are ahead by 0.09 at T = 128, by 0.15 at 512
and by 0.22 at 1,024. **In the same time** a plain GPT has seen three times the tokens. It is ahead
by 0.031 at 512 and by 0.006 at 1,024; at T = 128 it is ahead by 0.05 (clock, 3 minutes).""", {
        "plain, T = 128": steps(PLAIN, 693),
        "plain, T = 512": at_length(PLAIN, 512, 693),
        "plain, T = 1,024": at_length(PLAIN, 1024, 693),
        "S = 4, K = 2, 2 hops, T = 128": steps(HOPS, 693),
        "S = 4, K = 2, 2 hops, T = 512": at_length(HOPS, 512, 693),
        "S = 4, K = 2, 2 hops, T = 1,024": at_length(HOPS, 1024, 693),
        "plain, T = 512, in the time of hops": at_length(PLAIN, 512, 2190),
        "plain, T = 1,024, in the time of hops": at_length(PLAIN, 1024, 2260),
    }),
    "default": ("In the time of 1,500 steps with S = 2", """
No setting is clearly ahead of S = 2, K = 1 in this time: the differences are within two deviations.
S = 4 takes 14 % longer. So the paper's setting is the default. Hops take fewer steps in this time,
which costs them as much as they gain; in longer runs they are ahead (table main).""", {
        "S = 2, as in the paper": steps(S2, 1500),
        "S = 4": steps(S4, 1500),
        "S = 4, K = 2, 1 hop": steps(THROUGH + " --lrt_hops=1", 1210),
        "S = 4, K = 2, 2 hops": steps(HOPS, 1030),
        "S = 4, K = 3, 1 hop": steps(S4 + " --lrt_sweeps=3 --lrt_hops=1", 1055),
        "S = 4, K = 3, 2 hops": steps(HOPS3, 940),
        "S = 8, K = 2, 2 hops": steps(S8 + " --lrt_sweeps=2 --lrt_hops=2", 980),
    }),
    "tuning": ("The learning rate is tuned alike for all", """
In most rows 0.016 is the best of three rates. S = 2 has 0.009 less with 0.032, and a plain GPT that
trains for 5,000 steps has 0.002 less with 0.008 (1.5165; hops with the same seed have 1.5100 in
that time).""", {
        f"{name}, {n:,} steps": {f"{rate}": steps(flags, n, rate) for rate in (0.008, 0.016, 0.032)}
        for name, flags, n in (("plain, 2 layers", PLAIN, 696), ("plain, 4 layers", DEEP, 351),
                               ("S = 2, as in the paper", S2, 335), ("S = 16", S16, 335),
                               ("plain, 2 layers", PLAIN, 5000),
                               ("S = 4, K = 2, 2 hops", HOPS, 693))
    }),
}

SWEEPS = """## sweeps: Does K have to grow with training, or with T?

![Change of the latents by position and sweep, for S = 1, 2 and 8](settle.png)

The picture shows how far each sweep changes the latents of a trained model (S = 4, K = 2, 2 hops,
1,750 steps; `python assets/plot.py settle FOLDER`). Each sweep changes them less, at all positions,
and at the left the latents are exact; more subsets need fewer sweeps.

How far the loss after K sweeps of S = 4 subsets is from the exact one, on 16,384 validation tokens
(edition 2; `python assets/plot.py settle FOLDER` prints such a table).

| trained with | steps | K = 1 | 2 | 3 | 4 |
| --- | --- | --- | --- | --- | --- |
| S = 4, K = 2, 2 hops | 693 | +0.2929 | +0.0073 | +0.0001 | -0.0000 |
| S = 4, K = 2, 2 hops | 1,750 | +0.3542 | +0.0106 | -0.0005 | -0.0001 |
| S = 4, K = 2, 2 hops, seed 1 | 1,750 | +0.3773 | +0.0139 | +0.0001 | +0.0002 |
| S = 4, K = 2, 2 hops | 2,400 | +0.3737 | +0.0090 | -0.0012 | +0.0002 |
| S = 4, K = 2, 2 hops, seed 1 | 2,400 | +0.3896 | +0.0149 | +0.0004 | +0.0000 |
| S = 4, K = 3, 2 hops | 1,750 | +0.3683 | +0.0155 | +0.0004 | -0.0000 |
| S = 4, K = 2, 2 hops, T = 512 | 693 | +0.3698 | +0.0098 | -0.0006 | -0.0000 |
| S = 4, K = 2, 2 hops, T = 1,024 | 693 | +0.3988 | +0.0151 | -0.0005 | +0.0000 |
| S = 4, K = 2, 0 hops | 693 | +0.2587 | +0.0054 | +0.0004 | +0.0001 |
| exact, 0 hops | 693 | +0.2802 | +0.0056 | +0.0003 | -0.0001 |

Late in training and with longer rows, a sweep leaves a little more: after two sweeps the loss
differs by 0.007 early, by 0.009 to 0.016 late, and by 0.015 at T = 1,024. After three sweeps it
differs by at most 0.002 everywhere, so K does not have to grow beyond three. Hops with K = 2 train
on a third pass, after two sweeps: their gap is at most 0.004. A rule for hops: if the gap ends
above 0.002, take one sweep more.
"""


# ---- Runs

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


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flags_of(runs):
    """The flags of all runs of a table."""
    return [flags for value in runs.values()
            for flags in (value.values() if isinstance(value, dict) else [value])]


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
    device = sample.find_device(s["device"])
    return {"flags": canonical(" ".join(f"--{name}={value}" for name, value in s.items())),
            "seed": s["seed"], "steps": n, "commit": code(),
            "machine": torch.backends.cpu.get_cpu_capability() if device == "cpu" else device,
            "torch": checkpoint["versions"]["torch"], "text": (checkpoint["sha256"] or "")[:8],
            "exact": best["exact"], "final": evaluations[-1]["exact"],
            "as_trained": best["as_trained"], "no_memory": best["no_memory"],
            "evaluations": evaluations}


def dataset_of(flags):
    return dict(flag.split("=") for flag in flags.split()).get("--dataset", "shakespeare")


def add(path, folder):
    """Append a run's row to results.jsonl, or put it in the place of the run's older row."""
    rows, new = read(path), row_of(folder)
    for row in rows:
        same_name = dataset_of(row["flags"]) == dataset_of(new["flags"])
        if same_name and row["text"] and row["text"] != new["text"]:
            raise UsageError(f"{folder} was trained on another text of this name than earlier "
                             f"runs: sha256 {new['text']}..., not {row['text']}...")
    same = [i for i, row in enumerate(rows)
            if (row["flags"], row["seed"]) == (new["flags"], new["seed"])]
    print(f"exact {new['exact']:.4f}: {new['flags']} --seed={new['seed']}"
          + "".join(f" (was {rows[i]['exact']:.4f}, {rows[i]['commit']})" for i in same))
    rows = [row for i, row in enumerate(rows) if i not in same] + [new]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    replace_file(path, lambda temporary: temporary.write_bytes(text.encode()))


def missing(path, name, seeds):
    """[(folder, flags of train.py)] of the runs that a table misses, the first seed first."""
    tables = TABLES if name == "all" else {name: TABLES[name]}
    wanted = dict.fromkeys((canonical(flags), seed) for seed in seeds
                           for _, _, runs in tables.values() for flags in flags_of(runs))
    there = {(row["flags"], row["seed"]) for row in read(path)}
    found = []
    for flags, seed in wanted:
        if (flags, seed) not in there:
            folder = "runs/" + f"{flags}-{seed}".replace("--", "").replace(" ", "-")
            n = int(flags.split("--max_iters=")[1].split()[0])
            if dataset_of(flags) not in TASKS:
                flags += f" --eval_interval={-(-n // 3)}"
            found.append((folder, f"{flags} --seed={seed} --out_dir={folder}"))
    return found


# ---- Tables

class Page:
    """results.md, of the rows of results.jsonl and what speed.py has measured."""

    def __init__(self, rows, speed):
        self.rows, self.speed, self.letters = {}, speed, {}
        for row in rows:
            self.rows.setdefault(row["flags"], []).append(row)
        for commit in dict.fromkeys(row["commit"] for row in rows):
            self.letters[commit] = chr(ord("a") + len(self.letters))

    def of(self, flags):
        """The rows of a run: one for each seed."""
        return self.rows.get(canonical(flags), [])

    def seeds(self, rows):
        """How many of which code: 2a 1b."""
        codes = [self.letters[row["commit"]] for row in rows]
        return " ".join(f"{codes.count(letter)}{letter}" for letter in sorted(set(codes)))

    def line(self, label, flags):
        """A line of a table with a run for each label."""
        rows = self.of(flags)
        n, cost = rows[0]["steps"], self.speed["steps"].get(model_of(flags), {})
        line = {"": label, "seeds": self.seeds(rows), "steps": f"{n:,}"}
        best = [min(row["evaluations"], key=lambda one: one["exact"]) for row in rows]
        right = [name for name in best[0] if name.startswith("right_at_")]
        if right:
            shares = {name: spread([100 * one[name] for one in best], 1) for name in right}
            return line | {name.removeprefix("right_at_"): share for name, share in shares.items()}
        is_lrt = "--lrt=1" in flags
        return line | {
            "FLOPs": f"{n * cost['flops']:.2e}".replace("e+", "e") if cost else "",
            "ms": f"{cost['ms']:.0f}" if cost else "",
            "minutes": f"{n * cost['ms'] / 60000:.1f}" if cost else "",
            "MB": f"{cost['MB']:.0f}" if cost else "",
            "exact loss": spread([row["exact"] for row in rows]),
            "gap": f"{mean(r['exact'] - r['as_trained'] for r in rows):+.4f}" if is_lrt else "",
            "latent held at 0": spread([row["no_memory"] for row in rows]) if is_lrt else "",
        }

    def grid_line(self, label, by_column, columns):
        """A line of a table with a run in each cell."""
        line = {"": label}
        for column in columns:
            rows = self.of(by_column[column]) if column in by_column else []
            exact = [row["exact"] for row in rows]
            line[column] = f"{spread(exact)} ({self.seeds(rows)})" if rows else ""
        return line

    def table(self, name):
        title, sentences, runs = TABLES[name]
        grid = {label: value for label, value in runs.items() if isinstance(value, dict)}
        columns = dict.fromkeys(column for value in grid.values() for column in value)
        head = f"## {name}: {title}\n\n{sentences.strip()}\n\n"
        if not any(map(self.of, flags_of(runs))):
            return f"{head}No runs yet.\n"
        if grid:
            lines = [self.grid_line(label, value, columns) for label, value in grid.items()]
        else:
            lines = [self.line(label, flags) for label, flags in runs.items() if self.of(flags)]
        return head + markdown(lines)

    def text(self):
        codes = "\n".join(f"- {letter}: {commit}" for commit, letter in self.letters.items())
        about = ABOUT.format(codes=codes, machine=self.speed["machine"])
        where = self.speed.get("tables_on", self.speed["machine"])
        speed = [f"## speed: {title}\n\nMeasured on {where}.\n\n{markdown(lines)}"
                 for title, lines in self.speed["tables"].items()]
        return "\n".join([about, *map(self.table, TABLES), SWEEPS, *speed])


def model_of(flags):
    """The flags that a step's time depends on."""
    return canonical(flags, without=("dataset", "max_iters", "learning_rate"))


def spread(numbers, digits=4):
    """Mean and standard deviation."""
    deviation = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.{digits}f}{deviation}"


def markdown(lines):
    """Dictionaries with the same keys, as a table."""
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def page(folder=HERE):
    """The text of results.md."""
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    return Page(read(folder / "results.jsonl"), speed).text()


def main(argv=None):
    command, *words = (sys.argv[1:] if argv is None else argv) or ["write"]
    results = HERE / "results.jsonl"
    if command == "write" and not words:
        replace_file(HERE / "results.md", lambda path: path.write_bytes(page().encode()))
        print("wrote assets/results.md")
    elif command == "add" and words:
        for folder in words:
            add(results, folder)
    elif command in ("run", "missing") and words and words[0] in (*TABLES, "all") \
            and all(word.isdecimal() for word in words[1:]):
        for folder, flags in missing(results, words[0], list(map(int, words[1:])) or [1337]):
            print(f"python train.py {flags}", flush=True)
            if command == "run":
                words = [*flags.split(), "--resume=1"]          # if it was stopped
                if subprocess.run([sys.executable, HERE.parent / "train.py", *words]).returncode:
                    raise UsageError(f"the run in {folder} failed")
                add(results, folder)
    elif command in ("-h", "--help"):
        print(f"{__doc__}\nThe tables are {', '.join(TABLES)}.")
    else:
        raise UsageError("add FOLDER, run TABLE, missing TABLE, or nothing; the tables are "
                         f"{', '.join(TABLES)}, and all (-h says more)")


if __name__ == "__main__":
    run_script(main)
