"""The experiments of results.py, as data: which runs there are, and what their tables say.

Sentences age: edit them when the numbers change.
"""
from dataclasses import dataclass

ABOUT = """# Training results

Written by `python assets/results.py all`. Tiny Shakespeare by characters and train.py's defaults,
where a row says nothing else. Exact loss: nats per token of the best evaluation, decoded token by
token over the whole validation split; means over three seeds ± their deviation; (1), (2): so many.
Gap: exact - training graph. ms: of a step with the optimizer, by one run of `python
assets/speed.py` on two quiet cores (AVX2 alone, 2 GHz, torch 2.13.0); minutes: ms times steps, as
the runs themselves shared a machine; MB: what a step needs at its peak. FLOPs: by FlopCounterMode,
which counts the masked half of attention, too: 7 % of a plain step here, of token by token none.

Rows with `code` 2 in results.jsonl are from before there were hops. The same flags compute the
same (the old file and the new one agree to 4e-14 in float64, and `python train.py --lrt=1` gave
1.5540 and gives 1.5538), so they stand beside the new ones. What the first version of this code
measured (parts of the text, other tokens, which layer is the memory) is not repeated, and gone.
"""


def dial(S, K=1, hops=None):
    """The flags of an LRT."""
    flags = f"--lrt=1 --lrt_subsets={S}"
    if K > 1:
        flags += f" --lrt_sweeps={K}"
    if hops is not None:
        flags += f" --lrt_hops={hops}"
    return flags


def budget(flags, flops, rate=0.016):
    """The flags of a run with so many FLOPs of training."""
    return f"{flags} --max_iters=100000 --max_flops={flops} --learning_rate={rate}".strip()


def steps(flags, n, interval=None):
    """The flags of a run of n steps, evaluated each `interval`, or in the end alone."""
    flags = f"{flags} --max_iters={n}".strip()
    return flags if interval is None else f"{flags} --eval_interval={interval}"


def at_length(flags, T):
    """The same, with rows of T tokens: as many tokens a step as the default's 8 rows of 128."""
    return f"{flags} --block_size={T} --batch_size={1024 // T}".strip()


# ---- Models: their flags, and what a step costs

PLAIN, DEEP = "", "--n_layer=4"
S2, S16, HOPS, HOPS3, THROUGH = dial(2), dial(16), dial(4, 2, 2), dial(4, 3, 2), dial(4, 2)
LOOP = "--lrt=1 --lrt_mode=sequential"

COST = {        # flags of a model: (ms of a step with the optimizer, MB)
    PLAIN: (95, 44),
    DEEP: (186, 85),                # measured in turn with two layers, of which it takes 1.95
    S2: (200, 99),
    dial(4): (229, 98),
    dial(8): (273, 106),
    S16: (374, 118),
    THROUGH: (359, 158),
    dial(4, 2, 0): (222, 51),
    dial(4, 2, 1): (238, 63),
    HOPS: (278, 51),
    HOPS3: (314, 52),
    dial(4, 3, 1): (284, 54),
    dial(8, 2, 2): (303, 60),
    at_length(PLAIN, 512): (116, 46),
    at_length(PLAIN, 1024): (136, 40),
    at_length(S2, 512): (240, 81),
    at_length(S2, 1024): (305, 79),
    at_length(HOPS, 512): (365, 58),
    at_length(HOPS, 1024): (443, 64),
    LOOP: (1356, 186),
    LOOP + " --lrt_hops=0": (592, 53),
}

STYLE = {       # in pictures: name, marker and line, colour
    PLAIN: ("plain, 2 layers", "o--", "0.1"),
    DEEP: ("plain, 4 layers", "s:", "0.5"),
    S2: ("LRT, S = 2, the paper's", "D-", "tab:blue"),
    S16: ("LRT, S = 16", "^-", "tab:red"),
    HOPS: ("LRT, S = 4, K = 2, 2 hops", "P-", "tab:orange"),
    LOOP: ("LRT, token by token", "v-", "tab:green"),
}
CURVES = {      # of each, runs of different length
    PLAIN: [budget(PLAIN, "2e12"), steps(PLAIN, 1750, 600), steps(PLAIN, 3500, 1200),
            steps(PLAIN, 5000, 5000), budget(PLAIN, "2e13"), steps(PLAIN, 10000, 10000)],
    DEEP: [budget(DEEP, flops) for flops in ("2e12", "5e12", "1e13", "2e13")],
    S2: [budget(S2, "2e12"), budget(S2, "5e12"), steps(S2, 1750, 600), budget(S2, "2e13")],
    S16: [budget(S16, "2e12"), budget(S16, "5e12"), steps(S16, 1750, 600), budget(S16, "2e13")],
    HOPS: [steps(HOPS, 237), steps(HOPS, 605), steps(HOPS, 1190), steps(HOPS, 1750, 600),
           steps(HOPS, 2400, 2400), steps(HOPS, 3500, 3500)],
    LOOP: [budget(LOOP, "2e12"), budget(LOOP, "5e12"), budget(LOOP, "1e13")],
}


# ---- Experiments

@dataclass
class Experiment:
    """runs: label: flags of train.py. Or, with columns, label: {column: flags}, of which a table
    shows the loss alone, or of tasks how many of a hundred are right at the end of rows."""
    title: str
    reads: str
    runs: dict
    seeds: tuple = (1337, 1, 2)
    columns: tuple = ()


def by_hops(flags, n, hops=(0, 1, 2)):
    """A row of a table of hops."""
    return {f"hops = {h}": steps(f"{flags} --lrt_hops={h}", n) for h in hops}


def by_minutes(model, *minutes):
    """A row of a table of minutes: the runs of CURVES, in this order; None: in no column."""
    return {f"{n} min": flags for n, flags in zip(minutes, CURVES[model]) if n is not None}


MAIN = Experiment("At equal tokens, equal FLOPs, equal time", """
After the same tokens each LRT is ahead of plain GPT, and the nearer to exact its training, the
lower its loss. **By the clock** (8 minutes here) hops are ahead of plain GPT by a little, 1.5149
and 1.5248, with each of three seeds (0.0085, 0.0069, 0.0141), and need 51 MB, it 44. A third sweep
is worth 0.005 and takes a minute more. With the same dial a gradient through all passes is worth no
more than two hops (1.5168 and 1.5149), and takes 1.3 times as long and three times the memory.
**Per FLOP** token by token is the best by far: in 5.0e12 it has what hops have in 1.64e13, as it
computes each position once.
Held at zero, the latent costs token by token 1.4, hops 1.3, and S = 2 0.04: the first two never
train without a memory, where the others have the loss of pass 0, too. It is not their gain.""", {
    "plain": steps(PLAIN, 1750, 600),
    "plain, twice the steps": steps(PLAIN, 3500, 1200),
    "plain, the time of hops": steps(PLAIN, 5000, 5000),
    "S = 2, the paper's": steps(S2, 1750, 600),
    "S = 4": steps(dial(4), 1750, 600),
    "S = 4, K = 2, through all passes": steps(THROUGH, 1750, 600),
    "S = 4, K = 2, 2 hops": steps(HOPS, 1750, 600),
    "S = 4, K = 3, 2 hops": steps(HOPS3, 1750, 600),
    "S = 8": steps(dial(8), 1750, 600),
    "S = 16": steps(S16, 1750, 600),
    "token by token": budget(LOOP, "5e12"),
})
CLOCK = Experiment("By the clock", """
Exact loss after so many minutes of training: steps are taken by ms of a quiet step (next table),
so that columns are equal within a tenth, and evaluation is not counted. **Up to 6 minutes plain
GPT is ahead**, of hops by 0.07, 0.05 and 0.01, and so is it of S = 2. **From 8 minutes on hops
are ahead of it**, by 0.010, and at 11 by 0.019 (two seeds, 0.004 and 0.033). Twice the depth is
level with hops at 11 minutes (one seed 0.012 ahead, the other 0.020 behind), but a generated
token costs it 1.8 times as much. S = 2 is level with plain GPT from 6 minutes on. From 8 to 11
minutes plain GPT gains 0.004: it has read the text five to seven times by then, hops two to two
and a half times; with more text this might be otherwise. Longer than 11 minutes only hops were
run.
""", {
    STYLE[PLAIN][0]: by_minutes(PLAIN, 1, 3, 6, 8, 11),
    STYLE[DEEP][0]: by_minutes(DEEP, 1, 3, 6, 11),
    STYLE[S2][0]: by_minutes(S2, 1, 3, 6, 11),
    STYLE[S16][0]: by_minutes(S16, None, 6, 11),
    STYLE[HOPS][0]: by_minutes(HOPS, 1, 3, 6, 8, 11, 16),
}, columns=("1 min", "3 min", "6 min", "8 min", "11 min", "16 min"))
CURVE = Experiment("The runs of the clock, and of the picture", """
Steps, FLOPs and all else of the table before. **Per FLOP** plain GPT is ahead of S = 2 at 2e12 and
5e12 and level with it from 1e13 on; S = 16 is ahead of plain GPT from 1e13 on (0.018, 0.030). Hops
are with S = 2 up to 1e13, and ahead of plain GPT from 1.4e13 on (0.010, 0.019). Token by token is
ahead of all at each of its lengths. Rows with (1) are one seed, and seeds deviate by up to 0.025:
compare the same seed.
""", {
    f"{STYLE[model][0]}, {n + 1}": flags
    for model, several in CURVES.items() for n, flags in enumerate(several)
})
DEFAULT = Experiment("As long as 1,500 steps with S = 2", """
Steps are by ms, within 5 % but for S = 4 (14 % longer, 0.0115 ahead). S = 2 and one hop are level,
the others up to 0.02 behind, within two deviations; none is ahead: so the paper's S = 2, K = 1 is
the default. Hops take fewer steps in that time, which costs at this length what they are worth;
with 1,750 steps they are ahead (table main).""", {
    "S = 2, the paper's": steps(S2, 1500, 750),
    "S = 4": steps(dial(4), 1500, 700),
    "S = 4, K = 2, 1 hop": steps(dial(4, 2, 1), 1210, 605),
    "S = 4, K = 2, 2 hops": steps(HOPS, 1030, 515),
    "S = 4, K = 3, 1 hop": steps(dial(4, 3, 1), 1055, 528),
    "S = 4, K = 3, 2 hops": steps(HOPS3, 940, 470),
    "S = 8, K = 2, 2 hops": steps(dial(8, 2, 2), 980, 490),
})
GRADIENT = Experiment("Forward or backward: which has to be exact?", """
One seed, 693 steps. Rows: how exact the memory is that the forward pass has; columns: over how many
latents the gradient goes back. **On text it is the gradient that matters, and two hops of it
suffice**: with none through time 1.66, a hop is worth 0.05, the second 0.01, and more of them
nothing, whether the memory is that of two sweeps or exact: the rows differ by 0.003 at most. Two
hops with two sweeps are level with all there is (three seeds of that: 1.6162 ± 0.0190). (4 and 16
hops with the loop were not run.)""", {
    "S = 4, K = 2": by_hops("--lrt=1 --lrt_subsets=4 --lrt_sweeps=2", 693, (0, 1, 2, 4, 16)),
    "exact (loop)": {**by_hops(LOOP, 693, (0, 1, 2, 4)), "all": budget(LOOP, "2e12")},
}, (1337,), ("hops = 0", "hops = 1", "hops = 2", "hops = 4", "hops = 16", "all"))
TASKS = Experiment("Parity and swaps by hops", """
How many of a hundred are right at the end of rows of 32, as in training, and of 512. Parity 150
steps, swaps 600; chance is 50 and 0.8. **Here the forward pass matters**: if it is exact, parity
is learned with no gradient through time at all, and swaps nearly so: one hop makes them perfect.
With two sweeps of four subsets hops teach neither, and a gradient through all passes teaches the
32 places of training in part (95, 67), and nothing beyond; nor does the paper's setting. What it
means: the forward pass finds the state; each position need only be told how to use, and hand on,
what it got.""", {
    f"{task}, {name}": {
        **by_hops(f"--dataset={task} {flags}", n),
        "all": steps(f"--dataset={task} {flags}", n)}
    for task, n in (("parity", 150), ("swaps", 600))
    for name, flags in (("S = 4, K = 2", "--lrt=1 --lrt_subsets=4 --lrt_sweeps=2"),
                        ("exact (loop)", LOOP))
} | {
    f"parity, {name}": {"all": steps(f"--dataset=parity {flags}".strip(), 150)}
    for name, flags in (("plain GPT", ""), ("S = 2, the paper's", S2), ("S = T = 32", dial(32)))
}, columns=("hops = 0", "hops = 1", "hops = 2", "all"))
LENGTH = Experiment("Longer rows, equal tokens", """
One seed, 1,024 tokens a step, 693 steps. **With the same tokens** plain GPT learns less from few
long rows than from many short ones, and hops hardly: they are ahead by 0.09 at T = 128, by 0.15 at
512 and by 0.22 at 1,024. **With the same time** (and FLOPs) plain GPT has seen three times the
tokens, and is ahead by 0.031 at 512 and by 0.006 at 1,024, where it was by 0.03 at T = 128 (table
clock, 3 minutes). A step of hops takes 3.1 to 3.3 times as long as a plain one at each length, and
its memory hardly grows.""", {
    f"{name}, T = {T}": steps(at_length(flags, T) if T > 128 else flags, 693)
    for name, flags in (("plain", PLAIN), ("S = 4, K = 2, 2 hops", HOPS))
    for T in (128, 512, 1024)
} | {
    "plain, T = 512, the time of hops": steps(at_length(PLAIN, 512), 2190),
    "plain, T = 1024, the time of hops": steps(at_length(PLAIN, 1024), 2260),
}, (1337,))
TUNING = Experiment("Learning rate, alike for all", """
With weight decay 0.1, the rate 0.016 is the best of three for plain GPT of 2 and 4 layers and
for S = 16, and for hops; S = 2 has 0.009 less with 0.032, and plain GPT in 8 minutes 0.002 less
with 0.008 (1.5165, where the same seed of hops has 1.5100).""", {
    f"{name}, {rate}": budget(flags, "2e12", rate)
    for name, flags in (("plain, 2 layers", PLAIN), ("plain, 4 layers", DEEP), ("S = 2", S2),
                        ("S = 16", S16))
    for rate in (0.008, 0.016, 0.032)
} | {
    f"{name}, {rate}": run if rate == 0.016 else f"{run} --learning_rate={rate}"
    for name, run in (("plain, 2 layers, 8 minutes", steps(PLAIN, 5000, 5000)),
                      ("S = 4, K = 2, 2 hops", steps(HOPS, 693)))
    for rate in (0.008, 0.016, 0.032)
}, (1337,))

SWEEPS = """## sweeps: Does K have to grow with training, or with T?

`python assets/sweeps.py runs/...` on those of the tables above (seed 1337, and 1 where it says so):
how far the loss after K sweeps of S = 4 subsets is from the exact one, on 16,384 validation tokens.

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
| exact (loop), 0 hops | 693 | +0.2802 | +0.0056 | +0.0003 | -0.0001 |

Late in training, and with longer rows, a sweep leaves a little more: after two of them 0.007, later
0.009 to 0.016, at T = 1,024 0.015. After three the loss is within 0.002 in all of them: K has to
grow with neither beyond that. Hops add one pass with a graph to the K sweeps, so with K = 2 they
train on the third: their gap is at most 0.004 (tables main, clock, length). A rule for hops: if
exact - training graph ends above 0.002 (train.py warns from 0.05 on), take a sweep more.
"""

EXPERIMENTS = {"main": MAIN, "clock": CLOCK, "curve": CURVE, "default": DEFAULT,
               "gradient": GRADIENT, "tasks": TASKS, "length": LENGTH, "tuning": TUNING}
