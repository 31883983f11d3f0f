"""sample.py."""
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prepare_data
import sample
import train
from support.testing import HERE, SMALL, ends_in_one_line, run


@pytest.mark.parametrize("words, tokenizer, start", [
    ("one line " * 20, "char", " "),                    # no line break in it: its first token
    ("one\nline\n" * 20, "char", "\n"),
    ("one\nline\n" * 20, "bpe:5", "\n"),
])
def test_a_sample_begins_with_a_line_break(here, capsys, words, tokenizer, start):
    """Or with the first token."""
    Path("text.txt").write_text(words, encoding="utf-8", newline="\n")
    prepare_data.prepare("mine", tokenizer, "text.txt")
    assert run(train, *SMALL, "--max_iters=1") == 0
    capsys.readouterr()
    assert run(sample, "--max_new_tokens=1") == 0
    assert capsys.readouterr().out.startswith(start)


def test_samples_are_what_the_model_generates(trained, capsys):
    """The prompt and what follows, several times; the same with the same seed, none without one."""
    capsys.readouterr()
    flags = ["--out_dir=run", "--max_new_tokens=30", "--device=cpu"]
    outputs = []
    for more in (["--prompt=The "], ["--prompt=The "], ["--prompt=The ", "--seed=1"],
                 ["--prompt=FILE:prompt.txt"], ["--prompt=The ", "--num_samples=2"]):
        Path("prompt.txt").write_text("The ", encoding="utf-8")
        assert run(sample, *flags, *more) == 0
        out, err = capsys.readouterr()
        assert err.startswith("prompt of 4 tokens in ") and err.count("\n") == 1
        assert "tokens per second" in err
        outputs.append(out)
    first, again, other, from_file, two = outputs
    assert first == again == from_file != other
    assert first.startswith("The ") and len(first) == 4 + 30 + 1
    assert two.startswith(first + "---------------\nThe ") and len(two) == 2 * len(first) + 16
    assert two[len(first) + 16:] != first               # the second is not the first once more
    model, codec, _ = sample.load_checkpoint("run")
    prompt = torch.tensor([codec.encode("The ")])
    generator = torch.Generator().manual_seed(1337)
    tokens = [token.item() for token in model.generate(prompt, 30, 0.8, 200, generator)]
    assert first == "The " + codec.decode(tokens) + "\n"


def test_temperature_and_top_k(trained, capsys):
    """0 and one token to choose from are both the likeliest, whatever the seed."""
    capsys.readouterr()
    outputs = []
    for more in (["--temperature=0"], ["--top_k=1"], ["--temperature=0", "--seed=1"],
                 ["--temperature=1000", "--top_k=1000"]):
        assert run(sample, "--out_dir=run", "--max_new_tokens=30", "--prompt=The", *more) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2] != outputs[3]


def test_a_task_is_answered(trained, capsys):
    """One answer to each input, that of the model step by step."""
    capsys.readouterr()
    assert run(sample, "--out_dir=task", "--prompt=1 0 1 1 0 1") == 0
    model, _, _ = sample.load_checkpoint("task")
    logits, _ = model.forward_sequential(torch.tensor([[1, 0, 1, 1, 0, 1]]))
    expected = " ".join(str(n) for n in logits[0].argmax(-1).tolist())
    assert capsys.readouterr().out == expected + "\n"
    for flags in ([], ["--prompt="], ["--prompt= "]):
        assert '--prompt="1 0 1 1"' in ends_in_one_line(sample, ["--out_dir=task", *flags], capsys)


def test_a_text_has_no_end(monkeypatch):
    """Nothing of 100 MB of text is kept, whatever the number of samples."""
    class Endless:
        def init_cache(self, batch_size):
            return SimpleNamespace(sweeps=1, residual=0.0)

        def generate(self, prompt, n, *how):
            return (torch.tensor([7]) for _ in range(n))

    class Counting:
        printed = 0

        def write(self, text):
            self.printed += len(text)

        def flush(self):
            pass

    def decode(token):
        return "x" * 50_000 if token == 7 else ""

    codec = SimpleNamespace(decoder=lambda: decode)
    settings = sample.Settings(max_new_tokens=1000)
    terminal = Counting()
    monkeypatch.setattr(sys, "stdout", terminal)
    tracemalloc.start()
    for _ in range(2):
        sample.stream(Endless(), codec, torch.tensor([[0]]), settings, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.undo()
    assert terminal.printed > 10 ** 8 and peak < 10 ** 6


def test_it_stops_when_its_reader_has_left(trained):
    """Without a word; a million tokens would take minutes."""
    if os.name == "nt":
        pytest.skip("a pipe of another kind")
    words = [sys.executable, HERE / "sample.py", "--out_dir=run", "--max_new_tokens=1000000"]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    sampler = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert sampler.stdout.read(10)
    sampler.stdout.close()
    assert sampler.wait(timeout=60) == 141 and sampler.stderr.read() == b""


def test_weights_that_are_not_finite_are_said_so(trained, capsys):
    """A model that would print blank lines, or end in a traceback."""
    saved = torch.load("run/best.pt", weights_only=True)
    saved["model"]["head.weight"].fill_(float("nan"))
    torch.save(saved, "run/best.pt")
    line = ends_in_one_line(sample, ["--out_dir=run"], capsys)
    assert "run/best.pt has weights that are not finite, in head.weight" in line
