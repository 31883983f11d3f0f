"""sample.py."""
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import torch

import prepare_data
import sample
import train
from support.testing import SMALL, run


def test_a_sample_begins_with_a_line_break_or_the_first_token(here, capsys):
    Path("line.txt").write_text("one line " * 20, encoding="utf-8")
    for name, text, tokenizer, start in (("a", "line.txt", "char", " "), ("b", "text.txt", "bpe:5", "\n")):
        prepare_data.prepare(name, tokenizer, text)
        assert run(train, *SMALL, f"--dataset={name}", f"--out_dir={name}", "--max_iters=1") == 0
        capsys.readouterr()
        assert run(sample, f"--out_dir={name}", "--max_new_tokens=1") == 0
        assert capsys.readouterr().out.startswith(start)


def test_a_text_has_no_end(monkeypatch):
    """Nothing of 100 MB of text is kept, whatever the number of samples."""
    class Endless:
        embed = SimpleNamespace(weight=torch.zeros(1))
        def init_cache(self, B): return SimpleNamespace(sweeps=1, residual=0.0)
        def generate(self, idx, n, *_): return (torch.tensor([7]) for _ in range(n))
    codec = SimpleNamespace(decoder=lambda: lambda token: "x" * 50_000 if token == 7 else "")
    printed = []
    class Terminal:
        def write(self, text): printed[:] = [len(text) + sum(printed)]
        def flush(self): pass
    monkeypatch.setattr(sys, "stdout", Terminal())
    tracemalloc.start()
    for _ in range(2):
        sample.stream(Endless(), codec, [0], 1000, 1.0, 5, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.undo()
    assert sum(printed) > 10 ** 8 and peak < 10 ** 6
