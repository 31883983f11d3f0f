"""The folder of a run: its checkpoints, and the files about it that grow by rows."""
import json
import time
from pathlib import Path

import torch

from support.files import append_line, keep_lines, own, remove, write_together
from support.script import Unusable, command, warn

FILES = ("last.pt", "best.pt", "log.jsonl", "steps.csv", "run.json")
STEP_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_second")
HEADS = {"steps.csv": ",".join(STEP_COLUMNS)}


class RunFolder:
    """last.pt, to go on from; best.pt, of the best evaluation; log.jsonl, a row for each
    evaluation; steps.csv, a row each log_interval; run.json, what the run is. An old run that this
    one replaces stays whole until this one's first checkpoint: until then, what is to be written
    waits."""

    def __init__(self, path):
        self.path = Path(path)
        self.lock = None
        self.old = []               # names of the files of a run that this one replaces
        self.waiting = []           # (name, line): rows for log.jsonl and steps.csv
        self.about = None           # run.json, as text, until it is written
        self.save_seconds = 0.0     # what the last checkpoint took
        self.troubles = set()       # files that could not be written, and that this was said of

    def __truediv__(self, name):
        return self.path / name

    def claim(self):
        """Make the folder this process's own, until the end of the with statement that the object
        was made for. Raises Unusable if it is another's."""
        self.lock = own(self.path, "--out_dir")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.lock:
            self.lock.release()

    def begin(self, overwrite):
        """A new run begins in the folder. Raises Unusable if it holds one that is not to go."""
        there = [name for name in FILES if (self / name).exists()]
        if not overwrite and ("last.pt" in there or "best.pt" in there):
            raise Unusable(f"{self.path} has a run: {command(f'--resume={self.path}')} or another, "
                           "or --overwrite=1")
        self.old = there

    def go_on(self, step, rows):
        """The run goes on after this step: the files get the rows that its checkpoint knows."""
        (self / "log.jsonl").touch()
        known = [json.dumps(row) for row in rows]
        keep_lines(self / "log.jsonl", lambda line: line in known)
        text = (self / "log.jsonl").read_text(encoding="utf-8")
        if text.splitlines() != known:
            text = "".join(line + "\n" for line in known)
            write_together({self / "log.jsonl": lambda f: f.write(text.encode())})
        keep_lines(self / "steps.csv", lambda line: is_of_a_step(line, step))

    def describe(self, about):
        """Write run.json, which says what the run is: values that JSON can hold."""
        self.about = json.dumps(about, indent=1).encode()
        if not self.old:
            write_together({self / "run.json": self.write_about})

    def write_about(self, f):
        f.write(self.about)

    def log_evaluation(self, row):
        self.append("log.jsonl", json.dumps(row))

    def log_step(self, *values):
        """A row of steps.csv: values for STEP_COLUMNS."""
        self.append("steps.csv", ",".join(str(value) for value in values))

    def append(self, name, line):
        """A row more. One that cannot be written is missed, and a line says so."""
        if self.old:
            self.waiting.append((name, line))
            return
        path = self / name
        try:
            if name in HEADS and not (path.exists() and path.stat().st_size):
                append_line(path, HEADS[name])
            append_line(path, line)
        except (OSError, Unusable) as e:
            if name not in self.troubles:
                self.troubles.add(name)
                warn(f"warning: {e}; the run goes on")

    def save(self, **states):
        """Write checkpoints: last=state, best=state, or both, all or none of them. Then an old run
        that this one replaces is gone. Raises Unusable if they cannot be written."""
        start = time.perf_counter()
        writers = {}
        for name, state in states.items():
            writers[self / f"{name}.pt"] = lambda f, state=state: torch.save(state, f)
        if self.old:
            writers[self / "run.json"] = self.write_about
        write_together(writers)
        self.save_seconds = time.perf_counter() - start
        if self.old:
            self.remove_old(writers)

    def remove_old(self, written):
        """Remove what the old run has left, but for what was written over; then come the rows."""
        for name in self.old:
            if self / name not in written:
                remove(self / name)
        self.old, waiting = [], self.waiting
        for name, line in waiting:
            self.append(name, line)


def is_of_a_step(line, step):
    """Is it a row of steps.csv of at most this step, or the head of the table?"""
    number = line.split(",")[0]
    return line == HEADS["steps.csv"] or number.isdecimal() and int(number) <= step
