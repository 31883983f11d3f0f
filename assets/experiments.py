"""The experiments of results.py, as data: which runs there are, and what their tables say. Sentences age: edit them."""
from typing import NamedTuple

ABOUT = """# Training results

Written by `python assets/results.py all`. Means over seeds ± their standard deviation; (1): of one seed. Losses in
nats per token, of the best evaluation, decoded token by token over the whole validation split; gap: exact - training
graph; seconds: of one core, two or three runs at a time, evaluations included, on processors of different speed, and
with long pauses in some runs of code 2: "time" has what a step costs on a quiet machine. Runs "at a budget" are runs of
their own, with their own schedule; "tried" says of how many settings a row is the best.

**Code 1** is the first version of this project, with torch's Muon, in bfloat16; **code 2** has its own Muon, in
float32 on a CPU. A row is of one of them, never of both: of the newest that has it. Compare rows of the same code.
"""
MODELS = {      # flags of train.py; marker, line and colour in pictures
    "plain, 2 layers": ("", "o--", "0.1"),
    "plain, 4 layers": ("--n_layer=4", "s:", "0.5"),
    "LRT, S = 2": ("--lrt=1 --lrt_subsets=2", "D-", "tab:blue"),
    "LRT, S = 16": ("--lrt=1 --lrt_subsets=16", "^-", "tab:red"),
    "LRT, token by token": ("--lrt=1 --lrt_mode=sequential", "v-", "tab:green"),
    "plain, wider": ("--n_embd=136", "x-.", "0.3"),                 # as many parameters as LRT
}
PLAIN, DEEP, S2, S16, LOOP, WIDER = MODELS
MS = {PLAIN: 39, DEEP: 78, S2: 85, S16: 172, LOOP: 644}        # of a step with its update, two cores, AVX-512
BUDGETS = ("2e12", "5e12", "1e13", "2e13", "4e13")                  # FLOPs of training
PARTS = {       # of the training text, in percent: (steps, weight decay) that each model is tried with
    5: ((300, 0.5), (300, 1.0), (300, 2.0)), 10: ((400, 0.5), (400, 1.0), (800, 2.0)),
    20: ((700, 0.25), (700, 0.5), (1400, 0.5)), 50: ((1500, 0.25), (3000, 0.25), (3000, 0.5)),
}


MAIN = {        # runs of the experiment "main" that are at a budget, within 5 %
    ("5e12", PLAIN): "--max_iters=1750 --eval_interval=600", ("1e13", PLAIN): "--max_iters=3500 --eval_interval=1200",
    **{("1e13", model): f"{MODELS[model][0]} --max_iters=1750 --eval_interval=600" for model in (S2, S16)},
}


def at(budget, model, rate=0.016, decay=0.1):
    """The flags of a run at a compute budget, of a model by name or by its flags."""
    if (budget, model) in MAIN and (rate, decay) == (0.016, 0.1):
        return MAIN[budget, model]
    flags = f"{MODELS.get(model, [model])[0]} --max_iters=100000 --max_flops={budget} --learning_rate={rate}".strip()
    return flags + f" --weight_decay={decay}" * (decay != 0.1)


def part(model, percent, steps, decay):
    """The flags of a run on the first part of the training text, evaluated ten times."""
    flags = f"{MODELS[model][0]} --dataset=shakespeare-{percent} --max_iters={steps} --eval_interval={steps // 10}"
    return (flags + f" --weight_decay={decay}" * (decay != 0.1)).strip()


class Experiment(NamedTuple):
    title: str
    reads: str                  # what the table says: edit it when the numbers change
    runs: dict                  # label: flags of train.py (or of a script in assets/), or several: the best one counts
    seeds: tuple = (1337, 1, 2)


EXPERIMENTS = {
    "main": Experiment("The two commands, and S", """
Code 2, one core each beside other work, so the seconds are no measure of speed: `python assets/speed.py --every=1` is.
After the same tokens LRT is ahead of plain GPT, and the nearer to exact it was trained, the lower its loss; held at
zero, its latent costs the more, the larger S. At equal FLOPs (plain GPT with 3,500 steps) S = 16 is ahead of plain GPT
by 0.018 and S = 8 by 0.011, of deviations up to 0.015; S = 4 and 2 are level with it.""", {
        "`python train.py`": "--max_iters=1500 --eval_interval=750",
        "`python train.py --lrt=1` (S = 2)": "--lrt=1 --lrt_subsets=2 --max_iters=1500 --eval_interval=750",
        "plain, 1,750 steps": MAIN["5e12", PLAIN], "plain, 3,500 steps": MAIN["1e13", PLAIN],
        **{f"S = {S}, 1,750 steps": f"--lrt=1 --lrt_subsets={S} --max_iters=1750 --eval_interval=600"
           for S in (2, 4, 8, 16)}}),
    "compute": Experiment("Loss against compute, time and the cost of a token", """
Code 2, to 2e13: token by token, LRT is ahead of everything at equal FLOPs: of plain GPT by 0.087 at 2e12 and 0.074 at
5e12 (three seeds), and by 0.051 at 1e13 (one seed, the same one), where it is also ahead of all that have 2e13. S = 16
is behind plain GPT at 2e12 (0.037) and 5e12 (0.023), ahead of it at 1e13 (0.018) and at 2e13 (0.030, two seeds). S = 2
is behind at 2e12 (0.074) and 5e12 (0.050), level at 1e13 and 2e13 (there one seed). Twice the depth is behind at 2e12
and 5e12, level with S = 4 and 8 at 1e13, and between plain GPT and S = 16 at 2e13 (0.015 from each, two seeds). In time
on a CPU plain GPT is ahead of token by token by far: its steps take 39 ms, those 644. The more exact the training, the
more the latent is worth: held at zero, LRT loses 1.3 to 1.6 token by token, 0.24 to 0.46 with S = 16, 0.03 to 0.09 with
S = 2.
Code 1, 4e13: when plain GPT has read the text fourteen times and S = 2 seven times, S = 2 is ahead of it by 0.023, and
twice the depth ahead of both.""", {
        f"{model}, {budget}": at(budget, model) for model in (PLAIN, DEEP, S2, S16, LOOP)
        for budget in BUDGETS[:3 if model == LOOP else 5]}),        # in the loop, 1e13 takes a core most of an hour
    "time": Experiment("The same time: about as long as 1,750 steps with S = 2", """
Why S = 2 is the default: level with S = 4 and plain GPT; S = 8 and 16 take too few steps in that time. The steps are
by another machine's times: by those below plain GPT had 8 % less time than S = 2, S = 4, 8 and 16 had 6 to 10 % more.

ms of a step by `python assets/speed.py --every=1`, B = 8, two cores, AVX-512, without the optimizer's 7 to 9:

| T | plain | S = 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256 | 512 | token by token |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 128 | 32 | 76 | 77 | 97 | 121 | 164 | 269 | 508 | 888 | | | 636 |
| 1,024 | 337 | 626 | 787 | 796 | 872 | 999 | 1,317 | 1,963 | 3,606 | 7,889 | 11,741 | 14,500 |

S = T = 1,024 needs more than 24 GB: each pass keeps its own copy of keys and values. **The token loop** takes 20 times
plain GPT's time here (13 on one core), 9 with 32 rows, 11 with 16 rows of 64, 6.3 with 32 rows of 32. Its time on one
core: 24 % copies of keys and values that grow by one, 12 % matrix products, 6 % attention; the rest is some 250 small
operations for each position and layer, forward and backward, of 3 to 15 µs each. Tried, without gain: torch.compile of
each layer around the cache (1,012 to 1,010 ms, after 24 s of compiling), keys and values with positions first in memory
(43 instead of 50 µs a copy), an allocator that keeps its memory (2 %), other forms of norm (one 10 % faster for one
position, 15 % slower for all), rotation by roll (1 % of a step), memory and h that share a copy (0 to 5 %).""", {
        "plain, 2 layers": MAIN["1e13", PLAIN], "S = 2": MAIN["1e13", S2],
        **{f"S = {S}": f"--lrt=1 --lrt_subsets={S} --max_iters={steps} --eval_interval=700"
           for S, steps in ((4, 1500), (8, 1250), (16, 950))}}),
    "tuning": Experiment("Learning rate and weight decay, alike for all, at 2e12 FLOPs", """
Code 2, seed 1337: with weight decay 0.1, the rate 0.016 is the best of three for plain GPT of 2 and 4 layers and for
S = 16; S = 2 has 0.009 less with 0.032. Other decays, and rates of the token loop, were not tried on this code.""", {
        f"{model}, rate {rate}, decay {decay}": at("2e12", model, rate, decay) for model in (PLAIN, DEEP, S2, S16, LOOP)
        for rate in (0.008, 0.016, 0.032) for decay in (0.05, 0.1, 0.25)}, (1337,)),
    "variants": Experiment("Variants, at 2e12 FLOPs and at equal steps", """
Code 1: more subsets help, at no FLOPs. A second sweep, projections U for each layer and, with K = 1, leaving out the
gradient through pass 0 do not pay. Token by token LRT is ahead of plain GPT at equal FLOPs, by 0.08; not in equal
time, as its small products take 200 s of one core for what plain GPT does in 45.""", {
        f"{name}{', 334 steps' * equal}": f"{flags} --max_iters=334".strip() if equal else at("2e12", flags)
        for name, flags, both in (
            ("plain", "", 1),
            *((f"S = {S}, K = {K}", f"--lrt=1 --lrt_subsets={S}" + f" --lrt_sweeps={K}" * (K > 1), K > 1)
              for S, K in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 2), (2, 2))),
            ("S = 2, layerwise", "--lrt=1 --lrt_subsets=2 --lrt_memory_proj=layerwise", 0),
            *((f"S = {S}, K = {K}, no gradient through pass 0", f"assets/no_gradient.py --lrt=1 --lrt_subsets={S}"
               + f" --lrt_sweeps={K}" * (K > 1), 0) for S, K in ((1, 1), (2, 1), (2, 2))),
            *((f"T = 64, {name}", f"{MODELS[model][0]} --block_size=64 --batch_size=16".strip(), model != S2)
              for name, model in (("plain", PLAIN), ("S = 2", S2), ("token by token", LOOP)))
        ) for equal in range(1 + both)}),
    "memory": Experiment("Which layer is the memory? Four layers, 5e12 FLOPs", """
Code 1: the first layer is worse, the others are alike; most of their deviation is common to the four.""", {
        "plain": at("5e12", DEEP), **{f"S = {S}, layer {n} of 4": at(
            "5e12", f"--lrt=1 --lrt_subsets={S} --n_layer=4 --lrt_memory_layer={n}")
            for S in (2, 16) for n in (1, 2, 3, 4)}}),
    "little": Experiment("Where text is the limit: the first part of the training text, all of the validation text", """
Code 1: LRT (S = 2) has the lowest mean from 5 to 50 % of the text. It is ahead of the nearest plain GPT by more than
two deviations at 10 % (0.025) and 50 % (0.032), level at 5, 20 and 100 % (4e13 FLOPs). Neither the wider plain GPT,
with LRT's parameters, nor four layers, with its training compute, reaches it there.""", {
        **{f"{model}, {percent} %": tuple(part(model, percent, *setting) for setting in settings)
           for percent, settings in PARTS.items() for model in MODELS if model != LOOP},
        **{f"{model}, 100 %": (at("4e13", model), at("4e13", model, decay=0.25)) for model in (PLAIN, DEEP, S2, S16)}}),
    "tokenizers": Experiment("Other tokens, to be compared in bits per byte", """
Code 1: with 1,280 tokens (bpe1024) LRT ends lowest, level with four layers; the loss of all three turns up within the
budgets tried. With GPT-2's, whose embedding and head are 97 % of the model, 1e13 FLOPs are less than one reading of
the text, and plain GPT is ahead.""", {
        f"{model}, {tokens}, {budget}": at(budget, f"{MODELS[model][0]} --dataset=shakespeare-{tokens}".strip())
        for tokens, models, budgets in (
            ("bpe1024", (PLAIN,), ("2e12", "5e12", "1e13")), ("bpe1024", (DEEP, S2, S16), ("5e12", "1e13", "2e13")),
            ("gpt2", (PLAIN, S2, S16), ("1e13",))) for model in models for budget in budgets}),
    "parity": Experiment("Parity: 150 steps on rows of 32, right in the last tenth of longer ones", "", {
        **{f"S = {S}, K = {K}": f"--dataset=parity --lrt=1 --lrt_subsets={S} --lrt_sweeps={K} --batch_size=32"
                                " --max_iters=150" for K in (1, 2, 4) for S in (1, 2, 4, 8, 16, 32)},
        "token by token": "--dataset=parity --lrt=1 --lrt_mode=sequential --max_iters=150",
        "S = 2, 1,000 steps": "--dataset=parity --lrt=1 --lrt_subsets=2 --max_iters=1000",
        "plain, sees all 512, 4,500 steps": "--dataset=parity --block_size=512 --max_iters=4500"}, (1, 2, 3)),
    "swaps": Experiment("Swaps of five objects, 600 steps on rows of 32", "", {
        **{f"S = {S}": f"--dataset=swaps --lrt=1 --lrt_subsets={S} --max_iters=600" for S in (2, 8, 32)},
        "token by token": f"--dataset=swaps {MODELS[LOOP][0]} --max_iters=600"}, (1337,)),
}
