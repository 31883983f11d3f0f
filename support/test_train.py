"""train.py: what a run computes, and what it reports."""
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from lrt import GPT
from support import checkpoint
from support.processes import Processes
from support.testing import HERE, SMALL, SMALL_TASK, ends_in_one_line, rows, run, same, weights


@pytest.fixture
def mine(here):
    """A working folder with text.txt and data/mine."""
    prepare_data.prepare("mine", "char", "text.txt")
    return here


def steps(folder):
    """The rows of steps.csv, as numbers, without its head."""
    lines = Path(folder, "steps.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,loss,learning_rate,gradient_norm,tokens_per_second"
    return [[float(number) for number in line.split(",")] for line in lines[1:]]


# ---- Tasks

def test_task_of_ones_own_is_a_table(here, monkeypatch, capsys):
    """Sums modulo 3: targets, data, training and answers follow from the table alone."""
    sums = np.add.outer(np.arange(3), np.arange(3)) % 3
    monkeypatch.setitem(prepare_data.TASKS, "sums", sums)
    prepare_data.prepare("sums", length=8, rows=100)
    meta, codec, data = prepare_data.load("sums")
    assert (meta["task"], codec.vocab_size, len(codec.index)) == ("sums", 3, 3)
    for split, count in (("train", 90), ("val", 10)):
        assert data[split].shape == (count, 8)
        assert np.array_equal(data[f"{split}_y"], data[split].cumsum(1) % 3)
    flags = ["--dataset=sums", *SMALL[1:], "--lrt=1", "--max_iters=2"]
    assert run(train, *flags) == 0
    assert "% at 128 (80 tokens)" in capsys.readouterr().out
    for table in ([[0, 2, 1], [1, 0, 2], [2, 1, 0]], [[0, 1], [1, 0]]):     # not what was prepared
        monkeypatch.setitem(prepare_data.TASKS, "sums", np.array(table))
        err = ends_in_one_line(train, [*flags, "--overwrite=1"], capsys)
        assert "delete it and prepare it again" in err
    more_inputs_than_states = np.array([[0, 1, 0], [1, 1, 0]])
    monkeypatch.setitem(prepare_data.TASKS, "flip", more_inputs_than_states)
    prepare_data.prepare("flip", length=8, rows=100)
    assert run(train, "--dataset=flip", *flags[1:], "--overwrite=1") == 0
    assert "'3'; known: 0 to 2" in ends_in_one_line(sample, ["--prompt=0 1 3"], capsys)
    monkeypatch.setitem(prepare_data.TASKS, "still", np.array([[0]]))
    flags = ["--dataset=still", "--length=64", "--rows=20"]
    assert "--rows" in ends_in_one_line(prepare_data, flags, capsys)


def test_plain_task_is_evaluated_at_lengths_that_attention_does_not_see(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    flags = [flag for flag in SMALL_TASK if flag != "--lrt=1"]
    assert run(train, *flags, "--block_size=8", "--max_iters=2") == 0
    row = rows("out")[-1]
    assert len(row["accuracy_by_length"]) == 5 and row["val_loss"] == row["val_loss_exact"]
    capsys.readouterr()
    assert run(train, "--eval_only=1") == 0
    said = re.findall(r"exact ([\d.]+) nats.*at 128", capsys.readouterr().out)
    assert said == [f"{row['val_loss_exact']:.4f}"]
    prepare_data.prepare("swaps", length=9, rows=20)
    err = ends_in_one_line(train, ["--eval_only=1", "--dataset=swaps"], capsys)
    assert "other tokens" in err


def test_task_is_learned_exactly_and_reported_by_length(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    flags = [*SMALL_TASK, "--lrt_mode=sequential", "--max_iters=60", "--curriculum=2:10"]
    assert run(train, *flags) == 0
    out, log = capsys.readouterr().out, rows("out")
    assert "% at 8, " in out
    assert out.endswith("$ python sample.py --out_dir=out '--prompt=1 0 1 1' --device=cpu\n"
                        "1 1 0 1\n")
    assert [row["tokens"] for row in log] == [32 * (2 * 10 + 8 * (n - 10)) for n in (20, 40, 60)]
    assert list(log[-1]["accuracy_by_length"]) == ["8", "16", "32", "64", "128"]
    assert log[-1]["val_accuracy_exact"] > 0.9
    model, codec, _ = checkpoint.load_checkpoint(Path("out/last.pt"), "cpu")
    x, y = prepare_data.task_rows("parity", 256, 128, np.random.default_rng((1337, 60)))
    right = model.forward_sequential(torch.from_numpy(x))[0].argmax(-1).numpy() == y
    found = log[-1]["accuracy_by_length"]["128"]
    assert found == pytest.approx(right[:, 115:].mean(), abs=1e-3)
    assert run(sample, "--prompt=1 0 1 1 0 1") == 0
    assert capsys.readouterr().out.split() == ["1", "1", "0", "1", "1", "0"]


# ---- What the last lines say

@pytest.mark.parametrize("exact, graph, said", [
    (1.528, 1.5, "agree"), (1.56, 1.5, "DISAGREE"), (1.56, 1.5, "0.05"), (1.44, 1.5, "better")])
def test_verdict_of_a_text_is_that_of_its_loss(exact, graph, said):
    line = train.verdict({"val_loss_exact": exact, "val_loss": graph})
    assert said in line and ("DISAGREE" in line) == (exact == 1.56)


@pytest.mark.parametrize("exact, graph, said", [
    (0.68, 0.649, "better"), (0.6, 0.649, "DISAGREE"), (0.64, 0.649, "agree")])
def test_verdict_of_a_task_is_that_of_its_answers(exact, graph, said):
    """Whatever its loss says."""
    for loss in (1.0, 2.0):
        row = {"val_loss_exact": loss, "val_loss": 1.5}
        assert said in train.verdict({**row, "val_accuracy_exact": exact, "val_accuracy": graph})


def test_task_run_says_that_decoding_disagrees_with_training(here, capsys):
    """After training on the last sweep alone, S = 1: what the first pass leaves behind is not there
    when decoding."""
    prepare_data.prepare("parity", length=8, rows=120)
    flags = ["--lrt_subsets=1", "--lrt_loss_weights=0,1", "--max_iters=60"]
    assert run(train, *SMALL_TASK, *flags) == 0
    row = min(rows("out"), key=train.badness)
    assert row["val_accuracy"] > row["val_accuracy_exact"] + 0.02
    assert "THEY DISAGREE" in capsys.readouterr().out


def test_command_line_from_text_to_text(here, capsys):
    """As a user would: three commands, each a process of its own; also where the locale is not
    UTF-8."""
    def command(script, *args):
        done = subprocess.run([sys.executable, HERE / script, *args], capture_output=True,
                              env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C",
                                   "PYTHONUTF8": "0"})
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        return done.stdout.decode("utf-8").replace(os.linesep, "\n")

    command("prepare_data.py", "--dataset=mine", "--input=text.txt")
    out = command("train.py", "--lrt=1", *SMALL)
    assert "100%" in out and "exact - training graph" in out
    log = rows("out")
    assert [row["iter"] for row in log] == [3, 6] and log[0]["val_loss_exact"] < math.log(60)
    assert set(log[0]) == {"iter", "tokens", "flops", "seconds", "train_loss", "val_loss",
                           "val_loss_exact", "val_bpb_exact", "val_tokens", "exact_by_position"}
    positions = [row["exact_by_position"] for row in log]
    assert [len(p) for p in positions] == [16, 16]
    assert np.mean(positions[1]) == pytest.approx(log[1]["val_loss_exact"], abs=0.01)
    Path("prompt.txt").write_text("naïve", encoding="utf-8")
    flags = ["--prompt=FILE:prompt.txt", "--max_new_tokens=40", "--num_samples=2"]
    text = command("sample.py", *flags)
    assert text.startswith("naïve") and text.count("naïve") >= 2 and "---" in text
    capsys.readouterr()
    assert run(sample, *flags) == 0
    assert capsys.readouterr().out == text              # the same seed, in another process


# ---- Modes

@pytest.mark.parametrize("flags", [
    "--lrt=0", "--lrt=1 --lrt_mode=sequential", "--lrt=1 --lrt_subsets=4 --lrt_sweeps=2",
    "--lrt=1 --lrt_loss_weights=0.5,1", "--lrt=1 --lrt_memory_layer=1 --dropout=0.2",
    "--lrt=1 --lrt_memory_proj=layerwise --grad_clip=0", "--lrt=1 --dtype=bfloat16"])
def test_trains_in_every_mode(mine, flags):
    assert run(train, *SMALL, *flags.split()) == 0
    row = rows("out")[-1]
    assert row["val_loss_exact"] < 4.2 and abs(row["val_loss_exact"] - row["val_loss"]) < 0.1
    assert row["val_bpb_exact"] == pytest.approx(row["val_loss_exact"] / math.log(2), rel=0.05)


def test_sequential_training_is_the_dial_at_S_equals_T(mine):
    dial = ["--lrt_subsets=16", "--lrt_loss_weights=0,1"]
    assert run(train, *SMALL, "--lrt=1", "--lrt_mode=sequential", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", *dial, "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss_exact"] == pytest.approx(b["val_loss_exact"], abs=1e-4)


@pytest.mark.parametrize("flags, named", [
    (["--lrt_hops=2"], "add --lrt=1"), (["--lrt=1", "--lrt_hops=-1"], "whole number"),
    (["--lrt=1", "--lrt_hops=1.5"], "whole number"), (["--lrt=1", "--lrt_hops=x"], "whole number"),
    (["--lrt=1", "--lrt_hops=1", "--lrt_loss_weights=0,1"], "one pass has all of the loss"),
    (["--lrt=1", "--lrt_hops=0", "--lrt_loss_weights=0,1"], "one pass has all of the loss"),
    (["--min_lr=1"], "--min_lr"), (["--gradient_accumulation_steps=0"], "from 1")])
def test_contradictions_end_in_one_line(mine, capsys, flags, named):
    assert named in ends_in_one_line(train, [*SMALL, *flags], capsys)
    assert not Path("out").exists()


# ---- Steps

def test_learning_rate_rises_falls_and_ends_at_the_lowest():
    s = train.Settings(learning_rate=0.1, min_lr=0.01, warmup_iters=10)
    rates = [train.learning_rate(s, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    assert rates[10] == 0.1 and rates[55] == pytest.approx(0.055)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 < rates[-1] < 0.0101
    assert train.learning_rate(s, 100, 100) == 0.01
    zero = replace(s, warmup_iters=0, min_lr=0.0)
    assert train.learning_rate(zero, 0, 100) == 0.1 and train.learning_rate(zero, 100, 100) == 0


def test_parts_of_a_batch_are_the_batch(mine, capsys):
    """Two times 4 rows are 8: the same losses, tokens and FLOPs."""
    whole, parts = "--batch_size=8", "--gradient_accumulation_steps=2"
    assert run(train, *SMALL, "--lrt=1", whole, "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", parts, "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b"), strict=True):
        for key in ("tokens", "flops", "train_loss", "val_loss", "val_loss_exact"):
            assert a[key] == pytest.approx(b[key], rel=1e-5), key
    s = train.Settings(batch_size=4, gradient_accumulation_steps=3)
    data = {"train": np.arange(1000, dtype=np.uint16)}
    x, y = train.batch(data, s, 16, 5, Processes(), "cpu")
    assert x.shape == y.shape == (12, 16) and torch.equal(x + 1, y)
    of_two = [train.batch(data, replace(s, batch_size=2), 16, 5, Processes(rank, 2), "cpu")[0]
              for rank in range(2)]
    assert torch.equal(torch.stack(of_two, dim=1).flatten(0, 1), x)


def flops_of_a_step(*flags):
    assert run(train, *SMALL, *flags, "--out_dir=one", "--overwrite=1") == 0
    return rows("one")[0]["flops"] / rows("one")[0]["iter"]


@pytest.mark.parametrize("max_iters, ends, said", [
    ([], 11, "11 steps: as many as --max_flops"), (["--max_iters=11"], 11, "as many as"),
    (["--max_iters=9"], 9, "--max_iters comes before"), (["--max_iters=99"], 11, "as many as")])
def test_compute_sets_the_number_of_steps_and_it_says_so(mine, capsys, max_iters, ends, said):
    budget = f"--max_flops={11.5 * flops_of_a_step()}"
    flags = [flag for flag in SMALL if "max_iters" not in flag]
    assert run(train, *flags, *max_iters, budget) == 0
    assert said in capsys.readouterr().out.split("GFLOP")[-1]
    assert rows("out")[-1]["iter"] == ends
    assert run(train, "--resume=out", *max_iters, budget) == 0          # the same plan
    assert rows("out")[-1]["iter"] == ends


@pytest.mark.parametrize("warmup, said", [(6, True), (5, False)])
def test_run_that_ends_in_its_warm_up_says_so(mine, capsys, warmup, said):
    assert run(train, *SMALL, f"--warmup_iters={warmup}") == 0
    assert ("still rises" in capsys.readouterr().out) == said


def test_steps_are_reported_in_one_place(mine, monkeypatch):
    """steps.csv has what is said there: the mean loss, and of the last step rate and norm."""
    seen, report_step = [], train.report_step
    def noted(run, pace, loss, rate, norm):
        seen.append((run.step, loss, rate, norm))
        report_step(run, pace, loss, rate, norm)

    monkeypatch.setattr(train, "report_step", noted)
    assert run(train, *SMALL, "--warmup_iters=2", "--log_interval=3", "--max_iters=7") == 0
    assert [n for n, *_ in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert [row[0] for row in steps("out")] == [3, 6, 7]
    for step, loss, rate, norm, speed in steps("out")[:2]:
        _, losses, rates, norms = zip(*seen[int(step) - 3:int(step)])
        assert loss == pytest.approx(np.mean(losses), abs=1e-5)
        assert rate == pytest.approx(rates[-1], rel=1e-4)
        assert norm == pytest.approx(norms[-1], rel=1e-4)
        assert norm > 0 and speed > 0


# ---- Evaluation

def test_evaluation_covers_the_split_and_stands_apart(mine):
    """Equal to decoding the windows one by one; training does not notice it."""
    flags = [*SMALL, "--lrt=1", "--dropout=0.1"]
    assert run(train, *flags, "--out_dir=a") == 0
    assert run(train, *flags, "--eval_interval=1", "--out_dir=b") == 0
    assert same(weights("a"), weights("b"))
    model, codec, _ = checkpoint.load_checkpoint(Path("a/last.pt"), "cpu")
    val = prepare_data.load("mine")[2]["val"]
    text = torch.from_numpy(val.astype(np.int64))
    nll = []
    for start in range(0, len(text) - 1, 16):
        x, y = text[start:start + 16][None], text[start + 1:start + 17][None]
        logits, _ = model.eval().forward_sequential(x[:, :y.size(1)])
        nll += torch.nn.functional.cross_entropy(logits[0], y[0], reduction="none").tolist()
    assert len(nll) == len(val) - 1
    row = rows("a")[-1]
    assert row["val_loss_exact"] == pytest.approx(np.mean(nll), abs=1e-5)
    n_bytes = len(codec.decode(val[1:].tolist()).encode())
    assert row["val_bpb_exact"] == pytest.approx(sum(nll) / math.log(2) / n_bytes, abs=1e-5)


def test_long_validation_splits_are_sampled_evenly(mine, capsys):
    val = np.arange(1000, dtype=np.uint16)
    def places(most, T=8):
        batches = train.windows({"val": val}, T, most, 65, "cpu")
        return [row for x, y in batches for row in x.tolist()]

    assert sum(places(1000), []) == list(range(999))                    # all of it, once
    assert places(999) == places(1000)
    some = places(80)
    assert len(some) == 10 and places(80) == some
    assert all(row == list(range(row[0], row[0] + 8)) for row in some)
    assert {b[0] - a[0] for a, b in zip(some, some[1:])} <= {96, 104} and some[-1][0] >= 880
    assert places(80, T=2000) == [list(range(999))]                     # less than a row
    assert run(train, *SMALL, "--eval_tokens=100") == 0
    assert rows("out")[-1]["val_tokens"] == 96 and "96 tokens" in capsys.readouterr().out


def test_evaluate_only(mine, capsys):
    """A run on its own data and on others, in its own tokens; nothing is written."""
    assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
    text = Path("text.txt").read_text(encoding="utf-8")[::-1]
    Path("other.txt").write_text(text.replace("—", ","), encoding="utf-8")     # fewer characters
    Path("foreign.txt").write_text(text + "日本" * 99, encoding="utf-8")
    prepare_data.prepare("other", "char", "other.txt")
    prepare_data.prepare("foreign", "char", "foreign.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    before = sorted(Path(".").rglob("*"))
    best = f"exact {min(row['val_loss_exact'] for row in rows('run')):.4f} nats/token"
    capsys.readouterr()
    for flags in (["--out_dir=run"], ["--resume=run"], ["--init_from=run/best.pt"]):
        assert run(train, "--eval_only=1", *flags) == 0
        assert best in capsys.readouterr().out
    assert run(train, "--eval_only=1", "--init_from=run", "--dataset=other") == 0
    out = capsys.readouterr().out
    loss, bits = (float(n) for n in re.findall(r"exact ([\d.]+) nats.* ([\d.]+) bits", out)[0])
    val = text.replace("—", ",")[int(len(text) * 0.9):]
    model, codec, _ = checkpoint.load_checkpoint("run")
    tokens = torch.tensor(codec.encode(val))
    whole = (len(tokens) - 1) // 16 * 16
    x, y = tokens[:whole].view(-1, 16), tokens[1:whole + 1].view(-1, 16)
    assert loss == pytest.approx(model.forward_sequential(x, y)[1].item(), abs=0.01)
    assert bits == pytest.approx(loss / math.log(2) * len(val) / len(val.encode()), abs=0.01)
    for flags, named in (("--dataset=foreign", "日"), ("--n_embd=16", "--n_embd"),
                         ("--dataset=parity", "parity"), ("--init_from=nowhere", "no checkpoint")):
        assert named in ends_in_one_line(train, ["--eval_only=1", "--out_dir=run", flags], capsys)
    assert sorted(Path(".").rglob("*")) == before


def test_time_left_counts_all_that_is_left(mine, capsys, monkeypatch):
    """With steps of 1 s, evaluations of 20 s and a report of 5 s, by a clock that only they
    move."""
    now = [0.0]
    def takes(name, seconds):
        function = getattr(train, name)
        def timed(*args, **named):
            now[0] += seconds(*args, **named)
            return function(*args, **named)
        monkeypatch.setattr(train, name, timed)

    monkeypatch.setattr(train, "perf_counter", lambda: now[0])
    takes("take_step", lambda run, rate: 1)
    takes("evaluate", lambda model, s, codec, data, *_: 20 * min(1, s.eval_tokens / 1000))
    takes("evaluate_without_latent", lambda *_: 5)
    flags = "--lrt=1 --max_iters=100 --eval_interval=40 --log_interval=10 --eval_tokens=1000"
    assert run(train, *SMALL, *flags.split()) == 0
    found = re.findall(r"step +(\d+)/.* (\d+) s left", capsys.readouterr().out)
    lines = {int(n): int(left) for n, left in found}
    assert min(lines) <= 3                                  # a line soon after the header
    for n, left in lines.items():
        evaluations = sum(n <= at for at in (40, 80, 100))
        assert left == pytest.approx(100 - n + 20 * evaluations + 5, rel=0.03), n


# ---- What lrt.py lacks

def not_written(*args, **named):
    raise NotImplementedError("not written yet")


def dial_not_written(self, idx, targets=None, subsets=None, *rest, **named):
    if subsets is None:
        return self.forward_sequential(idx, targets)
    raise NotImplementedError("not written yet")


@pytest.mark.parametrize("dataset, left_out", [("parity", 1), ("mine", 2)])
def test_what_is_not_written_is_left_out(mine, capsys, monkeypatch, dataset, left_out):
    """Token by token it trains, and is evaluated exactly, with neither the dial nor prefill."""
    prepare_data.prepare("parity", length=8, rows=120)
    monkeypatch.setattr(GPT, "refine", not_written)
    monkeypatch.setattr(GPT, "prefill", not_written)
    monkeypatch.setattr(GPT, "forward", dial_not_written)
    flags = SMALL if dataset == "mine" else [*SMALL_TASK, "--max_iters=2"]
    assert run(train, *flags, "--lrt=1", "--lrt_mode=sequential") == 0
    out = capsys.readouterr()
    lines = [line for line in out.out.splitlines() if line.startswith("left out: ")]
    assert len(lines) == left_out and all("not written yet" in line for line in lines)
    assert "Traceback" not in out.err and rows("out")[-1]["val_loss_exact"] > 0
    err = ends_in_one_line(train, [*flags, "--lrt=1", "--out_dir=b"], capsys)      # needs the dial
    assert "not written yet" in err


# ---- Compiling

def fails_to_compile(model):
    def compiled(*args, **named):
        raise RuntimeError("no compiler found\nwith details\nin many lines")
    return compiled


def test_compiling_is_an_extra(mine, capsys, monkeypatch):
    """By default it goes on without; asked for, one line says why it cannot be had."""
    monkeypatch.setattr(torch, "compile", fails_to_compile)
    err = ends_in_one_line(train, [*SMALL, "--compile=1", "--out_dir=b"], capsys)
    assert "--compile=1" in err and "no compiler found" in err
    monkeypatch.setattr(train, "compiles_by_default", lambda s, device: True)
    assert run(train, *SMALL, "--out_dir=a") == 0
    out = capsys.readouterr().out
    assert "not compiled" in out and "no compiler found" in out and "details" not in out
    monkeypatch.undo()
    os.chdir(mine)
    assert run(train, *SMALL, "--out_dir=c") == 0
    assert same(weights("a"), weights("c"))
