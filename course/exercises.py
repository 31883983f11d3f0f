"""The table of exercises. Edit it: take a row out, give other points, other stages.

    python course/exercises.py        shows the table and its sums, and says what is wrong with it

Handout, tests, grader and texts follow from it. A function that is not in the table is given to the
class, complete.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.script import Unusable, say, script

# The number of a function stays the same, whatever is left out: its tests bear it, test_ex2_...
NUMBERS = {
    "shift_right": 1, "Cache.advance": 2, "Block.qkv": 3, "GPT.layers": 4, "GPT.step": 5,
    "GPT.refine": 6, "GPT.forward": 7, "GPT.prefill": 8, "GPT.forward_hops": 9,
}

# Of these, a part of the body is given: that up to the line with this text.
GIVEN_UP_TO = {
    "GPT.forward": "return self.forward_sequential(idx, targets)",
}


@dataclass(frozen=True)
class Exercise:
    function: str       # one of NUMBERS
    points: int
    minutes: int
    stage: int          # one of STAGES; exercises of a later stage have larger numbers
    what: str           # is to be written: a line of the students' page
    teaches: str        # a line for instructors
    hint: str           # a hint for students, in Markdown

    @property
    def number(self):
        return NUMBERS[self.function]


EXERCISES = [
    Exercise(
        "shift_right", points=5, minutes=10, stage=1,
        what="the memory of every position: the latent of the one before it",
        teaches="the recurrence as a shift; what the first position gets",
        hint="one `torch.cat`. Mind a single position."),
    Exercise(
        "Cache.advance", points=7, minutes=30, stage=1,
        what="hand on the latent; keep the keys and values that the next token sees",
        teaches="what decoding has to remember; windows and their off-by-one",
        hint="count how many keys a token attends to, itself among them. Try W = 1."),
    Exercise(
        "Block.qkv", points=12, minutes=40, stage=1,
        what="queries, keys and values; the memory enters through gates",
        teaches="gates, heads, where a memory enters attention",
        hint="`chunk` or `unflatten` the gates; look at the shapes in `split`. A plain GPT has no\n"
             "  `w_g`."),
    Exercise(
        "GPT.layers", points=13, minutes=50, stage=1,
        what="the equations of one pass",
        teaches="the equations of a pass; shared and layerwise projections",
        hint="where is U shared, and where is it not? `memory_layer` may be negative. Nothing is\n"
             "  changed in place."),
    Exercise(
        "GPT.step", points=8, minutes=20, stage=1,
        what="the recurrence, one token",
        teaches="a recurrence with gradients through time: it trains",
        hint="three lines; `extend` does the work. What is the memory of the first token of a\n"
             "  text, and of the first token after a prompt?"),
    Exercise(
        "GPT.refine", points=13, minutes=60, stage=2,
        what="a subset pass",
        teaches="Gauss–Seidel on a sequence; functional updates",
        hint="`x[:, at]` takes a subset, `slice_scatter` puts it back; whatever the cache held\n"
             "  before must stay whole, as gradients and later exercises need it. Which memory\n"
             "  does the first of the newest positions get?"),
    Exercise(
        "GPT.forward", points=12, minutes=50, stage=2,
        what="the dial: pass 0, sweeps, loss",
        teaches="the dial; losses that are averages of the right things",
        hint="the checks and the exact form are given. The loss of a sweep is a mean over *all*\n"
             "  positions, taken when the sweep is done. What if every target is -1?"),
    Exercise(
        "GPT.prefill", points=10, minutes=60, stage=3,
        what="a prompt in parallel, until it has settled",
        teaches="fixed points, stopping rules, bounds that make them safe",
        hint="pieces one after the other, each swept until nothing that a sweep writes changes\n"
             "  by more than `tol`. The largest change counts, over rows, positions, layers.\n"
             "  After how many sweeps is it exact, whatever the weights? What does `tol` mean in\n"
             "  a dtype of few digits?"),
    Exercise(
        "GPT.forward_hops", points=12, minutes=90, stage=4,
        what="the gradient of a solution, without the way to it",
        teaches="implicit differentiation; a Neumann series; what a gradient is of",
        hint="passes without gradients find the latents; one pass has the graph.\n"
             "  `autograd.grad` of a number gives what that number says of z, and `z` of one pass\n"
             "  was `m_next` of another. How does a gradient come into the weights, when the loss\n"
             "  itself may not change?"),
]

# Their titles
STAGES = {1: "exact", 2: "the dial", 3: "inference", 4: "for those who want more"}


@dataclass(frozen=True)
class Question:
    """A written question; its text is a part of STUDENT.md."""
    number: int
    points: int
    about: tuple = ()   # exercises: asked if one of them is in the table; (): in any case


QUESTIONS = [Question(1, 5, about=(6, 7)), Question(2, 5, about=(6,)), Question(3, 5, about=(7,)),
             Question(4, 5)]


def checked(exercises):
    """The exercises by their numbers, {n: exercise}. Raises Unusable that says what is wrong."""
    table = {}
    for exercise in exercises:
        name = exercise.function
        if name not in NUMBERS:
            raise Unusable(f"{name} is no exercise: the table has {', '.join(NUMBERS)}")
        if exercise.number in table:
            raise Unusable(f"{name} is in the table twice")
        if type(exercise.points) is not int or exercise.points < 1:
            raise Unusable(f"{name}: points={exercise.points!r} is not a whole number of 1 or more")
        if exercise.stage not in STAGES:
            raise Unusable(f"{name}: stage={exercise.stage!r} is not in STAGES: {list(STAGES)}")
        table[exercise.number] = exercise
    if not table:
        raise Unusable("the table of exercises is empty")
    table = dict(sorted(table.items()))
    before = None
    for exercise in table.values():
        if before and exercise.stage < before.stage:
            raise Unusable(f"{exercise.function} needs {before.function}, whose stage is later: "
                           f"{exercise.stage} is less than {before.stage}")
        before = exercise
    return table


def chosen(text, table):
    """The exercises that a text like "1-5" or "1,3,6-8" names, {n: exercise}. Raises Unusable."""
    wanted = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Unusable(f"exercises {text!r}: write them as 1-5 or 1,3,6-8")
        numbers = {n for n in table if int(first) <= n <= int(last if dash else first)}
        if not numbers:
            raise Unusable(f"exercises {text!r}: there is no {part.strip()}; there are "
                           f"{in_words(table)}")
        wanted |= numbers
    return {n: exercise for n, exercise in table.items() if n in wanted}


def asked(table):
    """The written questions that go with a table, {number: Question}."""
    return {q.number: q for q in QUESTIONS if not q.about or any(n in table for n in q.about)}


def points_of(table):
    return sum(exercise.points for exercise in table.values())


def in_words(numbers):
    """[1, 2, 3, 5, 7, 8] -> "1 to 3, 5, 7 and 8"."""
    runs = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    parts = []
    for run in runs:
        if len(run) < 3:
            parts += [str(n) for n in run]
        else:
            parts.append(f"{run[0]} to {run[-1]}")
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


@script
def main(argv):
    table = checked(EXERCISES)
    for stage, title in STAGES.items():
        those = {n: exercise for n, exercise in table.items() if exercise.stage == stage}
        if those:
            say(f"stage {stage}, {title}: {points_of(those)} points")
        for n, e in those.items():
            say(f"    {n}  {e.function:17} {e.points:3} points {e.minutes:4} min   {e.teaches}")
    minutes = sum(exercise.minutes for exercise in table.values())
    say(f"{len(table)} exercises, {points_of(table)} points, about {minutes / 60:.1f} hours; "
        f"{len(asked(table))} questions, {points_of(asked(table))} points")


if __name__ == "__main__":
    main()
