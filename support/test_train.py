"""train.py: runs, resuming, stopping, reporting."""
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from support import checkpoint, files, script as scripts
from support.testing import HERE, SMALL_TASK, SMALL, once, run, rows, weights, same, all_files, ends_in_one_line


def test_task_of_ones_own_is_a_table(here, monkeypatch, capsys):
    """Sums modulo 3: targets, data, training and answers follow from the table alone."""
    monkeypatch.setitem(prepare_data.TASKS, "sums", np.add.outer(np.arange(3), np.arange(3)) % 3)
    prepare_data.prepare("sums", length=8, rows=100)
    meta, codec, data = prepare_data.load("sums")
    assert (meta["task"], codec.vocab_size, len(codec.index)) == ("sums", 3, 3)
    for split, count in (("train", 90), ("val", 10)):
        assert data[split].shape == (count, 8)
        assert np.array_equal(data[f"{split}_y"], data[split].cumsum(1) % 3)
    flags = ["--dataset=sums", *SMALL[1:], "--lrt=1", "--max_iters=2"]
    assert run(train, *flags) == 0 and "% at 128 (80 tokens)" in capsys.readouterr().out
    for table in ([[0, 2, 1], [1, 0, 2], [2, 1, 0]], [[0, 1], [1, 0]]):     # of what was prepared before
        monkeypatch.setitem(prepare_data.TASKS, "sums", np.array(table))
        assert "delete it and prepare it again" in ends_in_one_line(train, [*flags, "--overwrite=1"], capsys)
    monkeypatch.setitem(prepare_data.TASKS, "flip", np.array([[0, 1, 0], [1, 1, 0]]))       # more inputs than states
    prepare_data.prepare("flip", length=8, rows=100)
    assert run(train, "--dataset=flip", *flags[1:], "--overwrite=1") == 0
    assert "'3'; known: 0 to 2" in ends_in_one_line(sample, ["--prompt=0 1 3"], capsys)
    monkeypatch.setitem(prepare_data.TASKS, "still", np.array([[0]]))
    assert "--rows" in ends_in_one_line(prepare_data, ["--dataset=still", "--length=64", "--rows=20"], capsys)


def test_task_is_learned_exactly_and_reported_by_length(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_mode=sequential", "--max_iters=60", "--curriculum=2:10") == 0
    out, log = capsys.readouterr().out, rows("out")
    assert "% at 8, " in out
    assert out.endswith("$ python sample.py --out_dir=out '--prompt=1 0 1 1' --device=cpu\n1 1 0 1\n")
    assert [row["tokens"] for row in log] == [32 * (2 * 10 + 8 * (n - 10)) for n in (20, 40, 60)]
    assert list(log[-1]["accuracy_by_length"]) == ["8", "16", "32", "64", "128"] and log[-1]["val_accuracy_exact"] > 0.9
    model, codec, _ = checkpoint.load_checkpoint(Path("out/last.pt"), "cpu")
    x, y = prepare_data.task_rows("parity", 256, 128, np.random.default_rng((1337, 60)))
    right = model.forward_sequential(torch.from_numpy(x))[0].argmax(-1).numpy() == y
    assert log[-1]["accuracy_by_length"]["128"] == pytest.approx(right[:, 115:].mean(), abs=1e-3)
    assert run(sample, "--prompt=1 0 1 1 0 1") == 0
    assert capsys.readouterr().out.split() == ["1", "1", "0", "1", "1", "0"]


def test_verdict_follows_the_answers_and_its_threshold():
    def verdict(exact, graph, **accuracies):
        return train.verdict({"val_loss_exact": exact, "val_loss": graph, **accuracies})
    assert "agree" in verdict(1.528, 1.5) and "DISAGREE" not in verdict(1.528, 1.5)
    assert "DISAGREE" in verdict(1.56, 1.5) and "0.05" in verdict(1.56, 1.5) and "better" in verdict(1.44, 1.5)
    assert "better" in verdict(2.0, 1.5, val_accuracy_exact=0.68, val_accuracy=0.649)   # never against the answers
    assert "DISAGREE" in verdict(1.0, 1.5, val_accuracy_exact=0.6, val_accuracy=0.649)


def test_task_run_says_that_decoding_disagrees_with_training(here, capsys):
    """After training on the last sweep alone, S = 1: what the first pass leaves behind is not there when decoding."""
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_subsets=1", "--lrt_loss_weights=0,1", "--max_iters=60") == 0
    row = min(rows("out"), key=train.badness)
    assert row["val_accuracy"] > row["val_accuracy_exact"] + 0.02
    assert "THEY DISAGREE" in capsys.readouterr().out


def test_command_line_from_text_to_text(here):
    """As a user would: three commands, each a process of its own."""
    def command(script, *args):
        done = subprocess.run([sys.executable, HERE / script, *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert done.returncode == 0, done.stderr
        return done.stdout
    command("prepare_data.py", "--dataset=mine", "--input=text.txt")
    out = command("train.py", "--lrt=1", *SMALL)
    assert "100%" in out and "exact - training graph" in out
    log = rows("out")
    assert [row["iter"] for row in log] == [3, 6] and log[0]["val_loss_exact"] < math.log(60)
    assert set(log[0]) == {"iter", "tokens", "flops", "seconds", "train_loss", "val_loss", "val_loss_exact",
                           "val_bpb_exact", "val_tokens", "exact_by_position"}
    positions = [row["exact_by_position"] for row in log]
    assert [len(p) for p in positions] == [16, 16]
    assert np.mean(positions[1]) == pytest.approx(log[1]["val_loss_exact"], abs=0.01)
    text = command("sample.py", "--prompt=The ", "--max_new_tokens=40", "--num_samples=2")
    assert text.startswith("The ") and text.count("The ") >= 2 and "---" in text
    assert command("sample.py", "--max_new_tokens=40") == command("sample.py", "--max_new_tokens=40")


@pytest.mark.parametrize("flags", [["--lrt=0"], ["--lrt=1", "--lrt_mode=sequential"], ["--lrt=1", "--lrt_subsets=4", "--lrt_sweeps=2"],
                                   ["--lrt=1", "--lrt_loss_weights=0.5,1"], ["--lrt=1", "--lrt_memory_layer=1", "--dropout=0.2"],
                                   ["--lrt=1", "--lrt_memory_proj=layerwise", "--grad_clip=0"],
                                   ["--lrt=1", "--dtype=bfloat16"]])
def test_trains_in_every_mode(here, flags):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, *flags) == 0
    row = rows("out")[-1]
    assert row["val_loss_exact"] < 4.2 and abs(row["val_loss_exact"] - row["val_loss"]) < 0.1
    assert row["val_bpb_exact"] == pytest.approx(row["val_loss_exact"] / math.log(2) * 1, rel=0.05)


def test_sequential_training_is_the_dial_at_S_equals_T(here):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--lrt_mode=sequential", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--lrt_subsets=16", "--lrt_loss_weights=0,1", "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss_exact"] == pytest.approx(b["val_loss_exact"], abs=1e-4)


def test_evaluation_covers_the_split_and_stands_apart(here, monkeypatch):
    """The same whatever the batch size; equal to decoding the windows one by one; training does not notice it."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--eval_interval=1", "--out_dir=b") == 0
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
    assert rows("a")[-1]["val_loss_exact"] == pytest.approx(np.mean(nll), abs=1e-5)
    n_bytes = len(codec.decode(val[1:].tolist()).encode())
    assert rows("a")[-1]["val_bpb_exact"] == pytest.approx(sum(nll) / math.log(2) / n_bytes, abs=1e-5)


KILLER = """
import os, random, sys
import prepare_data, torch, train

moments, random_number = [0], random.Random(int(sys.argv[1]))
last = random_number.randrange(1, 30)

def moment(f):
    def counted(*args, **named):            # a call of f is two moments: before it, and after it
        for when in range(2):
            moments[0] += 1
            if moments[0] == last:
                os._exit(9)                 # as sudden as kill -9: nothing is flushed or tidied up
            if when == 0:
                result = f(*args, **named)
        return result
    return counted

def save_half(state, f):                    # a checkpoint is being written
    save(state, f)
    moments[0] += 1
    if moments[0] == last:
        f.truncate(f.tell() // 2)
        f.flush()
        os._exit(9)

save, torch.save = torch.save, save_half
train.batch, os.fsync, os.replace = moment(train.batch), moment(os.fsync), moment(os.replace)
train.main(sys.argv[2:])
"""


def test_run_killed_at_random_moments_is_the_same_run(here):
    """Between steps and in the middle of writing a file. Then resumed, or begun again where there is nothing to resume."""
    prepare_data.prepare("mine", "char", "text.txt")
    flags = [*SMALL, "--lrt=1", "--dropout=0.1", "--max_iters=40", "--eval_interval=3"]
    assert run(train, *flags, "--out_dir=a") == 0
    kills = 0
    for seed in range(40):
        args = ["--resume=b"] if Path("b/last.pt").exists() else [*flags, "--out_dir=b"]
        done = subprocess.run([sys.executable, "-c", KILLER, str(seed), *once(args)], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
        assert done.returncode in (0, 9), done.stderr
        kills += done.returncode == 9
        if Path("b/best.pt").exists():
            checkpoint.load_checkpoint(Path("b/best.pt"), "cpu")        # whole at any moment
        if kills == 4 or done.returncode == 0:
            break
    assert kills >= 3
    if done.returncode:
        assert run(train, "--resume=b") == 0
    assert same(weights("a"), weights("b"))
    strip = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    assert strip(rows("a")) == strip(rows("b"))
    state = lambda folder: torch.load(Path(folder, "last.pt"), weights_only=True)["optimizers"]
    assert str(state("a")) == str(state("b"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["batch", "windows"])
def test_told_to_stop_it_saves_and_says_how_to_go_on(here, capsys, monkeypatch, name, where):
    """Between two steps, and between two batches of an evaluation, which is then made up for."""
    if not hasattr(signal, name):
        pytest.skip("not on this system")
    signal.signal(getattr(signal, name), signal.SIG_DFL)        # who began these tests may have it ignored
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--out_dir=a") == 0
    function, calls = getattr(train, where), []
    def interrupted(*args):
        calls.append(1)
        if where == "windows" and len(calls) > 2 or where == "batch" and args[3] == 4:      # two: the first try
            signal.raise_signal(getattr(signal, name))
        return function(*args)
    monkeypatch.setattr(train, where, interrupted)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=the run") == 128 + getattr(signal, name)
    monkeypatch.undo()
    os.chdir(here)
    assert f"go on with: {scripts.command('python', 'train.py', '--resume=the run')}" in capsys.readouterr().out
    last = torch.load("the run/last.pt", weights_only=True)
    assert (last["iter"], len(last["rows"])) == ((5, 1) if where == "batch" else (3, 0))
    assert run(train, "--resume=the run") == 0 and same(weights("a"), weights("the run"))
    assert [row["val_loss_exact"] for row in rows("a")] == [row["val_loss_exact"] for row in rows("the run")]


def test_going_on(here, capsys):
    """Longer, as it was, or from its weights; anything else is refused with what to do."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--out_dir=a") == 0
    capsys.readouterr()
    assert run(train, "--resume=a/last.pt", "--n_embd=16", "--device=cpu") == 0     # its own settings may be repeated
    assert "finished" in capsys.readouterr().out
    assert run(train, "--resume=a", "--max_iters=8") == 0 and [row["iter"] for row in rows("a")] == [3, 6, 8]
    assert "falls over 8 steps" in capsys.readouterr().out
    assert torch.load("a/last.pt", weights_only=True)["settings"]["max_iters"] == 8
    for flags, named in ((["--resume=a", "--max_iters=7"], "less than 8"), (["--resume=a", "--n_embd=32"], "init_from"),
                         (["--resume=a", "--dataset=other"], "init_from"), (["--resume=nowhere"], "no checkpoint"),
                         ([*SMALL, "--out_dir=b", "--init_from=a", "--n_embd=32"], "--n_embd=16"),
                         ([*SMALL, "--out_dir=b", "--init_from=nowhere"], "no checkpoint")):
        assert named in ends_in_one_line(train, flags, capsys)
    assert run(train, *SMALL, "--lrt=1", "--init_from=a/best.pt", "--out_dir=b", "--learning_rate=0") == 0
    assert "u_k.0.weight" in capsys.readouterr().out                            # what a plain GPT does not have
    assert torch.equal(weights("b")["embed.weight"], torch.load("a/best.pt", weights_only=True)["model"]["embed.weight"])
    assert "--lrt=1" in ends_in_one_line(train, [*SMALL, "--init_from=b", "--out_dir=c"], capsys)
    prepare_data.prepare("mine", "bpe:40", "text.txt")
    for flags in (["--resume=a"], [*SMALL, "--init_from=a", "--out_dir=c"]):
        assert "--tokenizer=char" in (err := ends_in_one_line(train, flags, capsys)) and "--tokenizer=bpe:40" in err
    assert not Path("c").exists() and not Path("nowhere").exists()


def test_it_saves_before_the_first_evaluation_and_owns_its_folder(here, capsys, monkeypatch):
    prepare_data.prepare("mine", "char", "text.txt")
    draw, seen = train.batch, []
    def busy(data, s, T, step, *rest):
        if step == 2:
            seen.append(Path("out/last.pt").exists())
            for flags in ([*SMALL, "--overwrite=1"], ["--resume=out"]):
                seen.append(subprocess.run([sys.executable, HERE / "train.py", *flags], capture_output=True, text=True))
        return draw(data, s, T, step, *rest)
    monkeypatch.setattr(train, "batch", busy)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    assert run(train, *SMALL) == 0
    assert seen[0] and all(r.returncode == 2 and "in use" in r.stderr and r.stderr.count("\n") == 1 for r in seen[1:])
    assert [row["iter"] for row in rows("out")] == [3, 6]


def test_long_validation_splits_are_sampled_evenly(here, capsys):
    val = np.arange(1000, dtype=np.uint16)
    def places(most, T=8):
        return [row for x, y in train.windows({"val": val}, T, most, 65, "cpu") for row in x.tolist()]
    assert sum(places(1000), []) == list(range(999)) and places(999) == places(1000)        # all of it, once
    some = places(80)
    assert len(some) == 10 and places(80) == some and all(row == list(range(row[0], row[0] + 8)) for row in some)
    assert {b[0] - a[0] for a, b in zip(some, some[1:])} <= {96, 104} and some[-1][0] >= 880
    assert places(80, T=2000) == [list(range(999))]                                         # less than a row
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--eval_tokens=100") == 0
    assert rows("out")[-1]["val_tokens"] == 96 and "96 tokens" in capsys.readouterr().out


def test_time_left_counts_all_that_is_left(here, capsys, monkeypatch):
    """With steps of 1 s, evaluations of 20 s and a report of 5 s, by a clock that only they move."""
    now, step, evaluate, without = [0.0], train.take_step, train.evaluate, train.evaluate_without_latent
    def takes(seconds, function):
        def timed(*args, **named):
            now[0] += seconds(*args, **named)
            return function(*args, **named)
        return timed
    share = lambda model, s, codec, data, *_: 20 * min(1, s.eval_tokens / 1000)
    monkeypatch.setattr(train, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train, "take_step", takes(lambda run, rate: 1, step))
    monkeypatch.setattr(train, "evaluate", takes(share, evaluate))
    monkeypatch.setattr(train, "evaluate_without_latent", takes(lambda *_: 5, without))
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--max_iters=100", "--eval_interval=40", "--log_interval=10", "--eval_tokens=1000") == 0
    lines = {int(n): int(left) for n, left in re.findall(r"step +(\d+)/.* (\d+) s left", capsys.readouterr().out)}
    assert min(lines) <= 3                                                      # a line soon after the header
    for n, left in lines.items():
        evaluations = sum(n <= at for at in (40, 80, 100))
        assert left == pytest.approx(100 - n + 20 * evaluations + 5, rel=0.03), n


def test_overwrite_leaves_nothing_of_the_old_run_and_bad_numbers_stop_it(here, capsys):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1") == 0
    assert run(train, *SMALL, "--learning_rate=1e9", "--warmup_iters=0", "--overwrite=1") == 2
    err = capsys.readouterr().err
    assert "loss is nan" in err and "smaller --learning_rate" in err
    assert {p.name for p in Path("out").iterdir()} == {".lock", "run.json", "last.pt", "best.pt", "log.jsonl", "steps.csv"}
