"""What a run will be: its steps, their tokens and FLOPs, and the time that is left."""
from collections import deque
from time import perf_counter

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from support.script import Unusable

MOST_STEPS = 10 ** 7


class Plan:
    """steps: how many; lengths: of the rows in each, (steps,); tokens, flops: after each so far,
    (steps,). model(x, x, **arguments) is a training pass; rows of T tokens, processes of them share
    a batch. With s.max_iters = 0, that becomes what max_flops allows. Raises Unusable if that is no
    step."""

    def __init__(self, model, arguments, s, T, processes):
        rows = processes * s.gradient_accumulation_steps * s.batch_size
        first = [min(length, T) for length in curriculum(s)]
        cost = {length: rows * flops_of_row(model, arguments, length) for length in {*first, T}}
        if s.max_iters == 0:
            s.max_iters = min(MOST_STEPS, 1 + len(first) + int(s.max_flops / cost[T]))
        first = np.array(first[:s.max_iters], dtype=int)
        lengths = np.concatenate([first, np.full(s.max_iters - len(first), T)])
        flops = np.cumsum([cost[length] for length in lengths.tolist()])
        self.steps = s.max_iters
        if s.max_flops:
            self.steps = int((flops <= s.max_flops).sum())
        if self.steps < 1:
            raise Unusable(f"--max_flops={s.max_flops:g} is less than one step, {flops[0]:.3g}")
        self.lengths = lengths[:self.steps]
        self.flops = flops[:self.steps]
        self.tokens = rows * self.lengths.cumsum()
        self.one_more = self.flops[-1] + cost[T]        # FLOPs, with one step more

    def tokens_of(self, step):
        """Of a step, from 1."""
        if step == 1:
            return self.tokens[0]
        return self.tokens[step - 1] - self.tokens[step - 2]

    def what_ends(self, s):
        """A line: which of --max_flops and --max_iters comes first."""
        if self.one_more > s.max_flops:
            return f"{self.steps:,} steps: as many as --max_flops={s.max_flops:g} allows"
        return f"{self.steps:,} steps: --max_iters comes before --max_flops={s.max_flops:g}"


def curriculum(s):
    """Lengths of the rows in its steps."""
    lengths = []
    for stage in s.curriculum.split(",") if s.curriculum else []:
        length, steps = map(int, stage.split(":"))
        lengths += [length] * steps
    return lengths


def flops_of_row(model, arguments, length):
    """FLOPs of a forward and a backward pass of one row; attention as in SDPA's maths."""
    x = torch.zeros(1, length, dtype=torch.long, device=model.embed.weight.device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, x, **arguments)[1].backward()
    model.zero_grad()
    return float(counter.get_total_flops())


class Pace:
    """How fast the steps are, and how long it all still takes."""

    def __init__(self, evaluation):
        self.evaluation = evaluation        # seconds that one takes: at first a guess
        self.steps = deque(maxlen=200)      # (seconds, tokens) of the last ones
        self.said = perf_counter()          # when the last line was printed

    def add(self, seconds, tokens):
        self.steps.append((seconds, tokens))
        if len(self.steps) == 2:            # the first one is slow: memory is taken, caches cold
            self.steps[0] = self.steps[1]

    def tokens_per_second(self):
        seconds, tokens = map(sum, zip(*self.steps))
        return tokens / max(seconds, 1e-9)

    def seconds_left(self, s, plan, step):
        """Of the tokens that are left, the evaluations, and the report, which holds the latent at
        0."""
        tokens = plan.tokens[-1] - plan.tokens[step - 1]
        evaluations = -(-plan.steps // s.eval_interval) - (step - 1) // s.eval_interval
        report = 0.25 if s.lrt else 0.0
        return tokens / self.tokens_per_second() + (evaluations + report) * self.evaluation

    def line_is_due(self, s, plan, step):
        """At each log_interval, soon after the start, and every 15 seconds."""
        regular = step % s.log_interval == 0 or step == plan.steps
        return regular or len(self.steps) == 2 or perf_counter() - self.said > 15
