"""The scripts keep their promises: tiny runs of train.py, sample.py and prepare_data.py."""
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from lrt import GPT, GPTConfig
from prepare_data import Codec, UsageError

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join(random.Random(0).choices(["to be, ", "or not ", "thát is\n", "the question "],
                                        k=600))
TINY = ["--dataset=tiny", "--block_size=16", "--n_layer=1", "--n_head=2", "--n_embd=16",
        "--batch_size=4", "--max_iters=12", "--eval_interval=5", "--eval_tokens=300",
        "--log_interval=4", "--warmup_iters=2", "--device=cpu"]
LRT = [*TINY, "--lrt=1", "--dropout=0.1"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder with data/tiny, and no network."""
    def urlopen(*args, **named):
        raise OSError("no network")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)                    # the bits of a sum depend on it
    Path("text.txt").write_bytes(TEXT.encode())
    prepare_data.main(["--dataset=tiny", "--input=text.txt"])
    return tmp_path


def start(*argv, before="", **env):
    """train.main(argv) in a process of its own, after the statements `before`."""
    code = f"import signal, train\ntrain.SAVE_SECONDS = 0\n{before}\ntrain.main({argv})"
    return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                                 **env})


def start_two(*argv, before=""):
    """The same in two processes, as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return [start(*argv, before=before, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)]


def checkpoint(out, name="last.pt"):
    return torch.load(Path(out, name), weights_only=True)


def without_seconds(log):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in log]


def assert_same_run(a, b):
    """Two folders hold the same weights, optimizers and log, bit for bit."""
    for name in ("last.pt", "best.pt"):
        x, y = checkpoint(a, name), checkpoint(b, name)
        assert x["step"] == y["step"] and x["losses"] == y["losses"]
        assert without_seconds(x["log"]) == without_seconds(y["log"])
        flat_x, flat_y = (torch.utils._pytree.tree_leaves([c["model"], c["optimizers"]])
                          for c in (x, y))
        assert len(flat_x) == len(flat_y)
        for p, q in zip(flat_x, flat_y):
            assert torch.equal(p, q) if isinstance(p, torch.Tensor) else p == q
    rows = [json.loads(line) for line in Path(a, "log.jsonl").read_text().splitlines()]
    assert rows == checkpoint(a)["log"]


# ---- Runs

def test_log_rows_and_final_lines(capsys):
    train.main(LRT)
    log = checkpoint("out")["log"]
    assert [row["step"] for row in log] == [4, 5, 8, 10, 12, 12]
    assert [list(row) for row in log[:2]] == [["step", "loss", "lr", "norm", "seconds"],
                                              ["step", "exact", "as_trained", "no_memory"]]
    printed = capsys.readouterr().out
    best = min(row["exact"] for row in log if "exact" in row)
    bits = best / np.log(2) / prepare_data.load("tiny")[0]["bytes_per_token"]
    assert f"exact: {best:.4f} nats per token, {bits:.4f} bits per byte" in printed
    assert "latent held at 0: " in printed and "$ python sample.py --out_dir=out\n" in printed
    about = checkpoint("out")
    assert about["sha256"] == json.loads(Path("data/tiny/meta.json").read_text())["sha256"]
    assert about["settings"]["lrt"] == 1 and about["versions"]["torch"] == torch.__version__


def test_it_learns():
    train.main([*TINY, "--lrt=1", "--max_iters=60", "--eval_interval=60"])
    assert checkpoint("out")["log"][-1]["exact"] < 1.2          # before: 2.7


def test_exact_loss_is_that_of_decoding():
    train.main([*TINY, "--lrt=1", "--lrt_subsets=3"])
    model, last = sample.load_checkpoint("out/last.pt")
    meta, _, val = prepare_data.load("tiny")
    n = min(len(val) - 1, 300) // 16
    start = np.arange(n) * ((len(val) - 1) // 16) // n * 16
    rows = torch.tensor(np.stack([val[i:i + 17] for i in start]).astype(np.int64))
    x, y = rows[:, :-1], rows[:, 1:]
    row = last["log"][-1]
    expected = {"exact": model.forward_sequential(x, y)[1],
                "as_trained": model(x, y, subsets=3, loss_weights=(0, 1))[1],
                "no_memory": model(x, y, subsets=1, sweeps=0)[1]}
    for name, loss in expected.items():
        assert row[name] == pytest.approx(loss.item(), abs=1e-4)
    assert len({row[name] for name in expected}) == 3


def test_logits_in_evaluation_are_few():
    class Fake:
        config = GPTConfig(vocab_size=50256)

        def __call__(self, x, **how):
            assert x.numel() * 50256 <= 2 ** 24
            return torch.zeros(1).expand(*x.shape, 50256), None
    x = torch.zeros(9, 128, dtype=torch.long)
    train.parallel_loss(Fake(), x, x, {})


def test_tasks():
    train.main([*TINY, "--dataset=parity", "--lrt=1", "--lrt_mode=sequential", "--curriculum=3"])
    row = checkpoint("out")["log"][-1]
    assert [name for name in row if name.startswith("right")] == [
        f"right_at_{length}" for length in (16, 32, 64, 128, 256)]
    assert row["exact"] == row["as_trained"] != row["no_memory"]
    x, y = prepare_data.task_rows("parity", (3, 2, 50), np.random.default_rng(0))
    assert (y == x.cumsum(-1) % 2).all()
    x, y = prepare_data.task_rows("swaps", (20,), np.random.default_rng(0))
    order, pairs = list(range(5)), list(itertools.combinations(range(5), 2))
    states = list(itertools.permutations(range(5)))
    for n, state in zip(x, y):
        if n > 0:
            i, j = pairs[n - 1]
            order[i], order[j] = order[j], order[i]
        assert states[state] == tuple(order)


def test_optimizers_and_schedule():
    model = GPT(GPTConfig(n_embd=16, lrt=True))
    groups = [group for o in train.make_optimizers(model, train.Settings())
              for group in o.param_groups]
    assert sorted(map(id, (p for group in groups for p in group["params"]))) \
        == sorted(map(id, model.parameters()))
    U, V = torch.linalg.qr(torch.randn(20, 20))[0], torch.linalg.qr(torch.randn(50, 20))[0]
    X = U * torch.linspace(0.05, 1, 20) @ V.T           # (20, 50)
    for matrix in (X, X.T):
        singular = torch.linalg.svdvals(train.orthogonalize(matrix))
        assert 0.6 < singular.min() and singular.max() < 1.3
    s = train.Settings(warmup_iters=10, max_iters=110, learning_rate=1.0, min_lr=0.2)
    rates = [train.get_lr(s, step) for step in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1, 1, 0.6, 0.2])


# ---- Stopped, killed, resumed

def test_killed_at_random_moments_and_resumed():
    train.main([*LRT, "--max_iters=80", "--out_dir=whole"])
    for _ in range(3):
        process = start(*LRT, "--max_iters=80", "--resume=1")
        for _ in range(random.randint(2, 10)):          # lines; 38 are all
            process.stdout.readline()
        time.sleep(random.random() * 0.03)
        process.kill()
        process.communicate()
        sample.load_checkpoint("out")                   # whole at any moment
    assert 0 < checkpoint("out")["step"] < 80
    train.main(["--resume=1"])
    assert_same_run("out", "whole")
    assert len(list(Path("out").iterdir())) == 3        # no temporary files


def send_at(monkeypatch, name, call, number=signal.SIGINT):
    """Send a signal at the call number `call` of a function of train.py."""
    function, calls = getattr(train, name), []

    def with_signal(*args):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return function(*args)
    monkeypatch.setattr(train, name, with_signal)


@pytest.mark.parametrize("name, call, number", [
    ("get_batch", 7, signal.SIGINT), ("evaluate", 1, signal.SIGINT),
    ("get_batch", 1, signal.SIGTERM)])
def test_stopped_and_resumed(name, call, number, monkeypatch, capsys):
    train.main([*LRT, "--out_dir=whole"])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        send_at(patch, name, call, number)
        train.main(LRT)
    captured = capsys.readouterr()
    assert "stopping after this step" in captured.err
    assert "to continue: python train.py --resume=1 --out_dir=out" in captured.out
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert checkpoint("out")["step"] < 12
    train.main(["--resume=1"])
    assert_same_run("out", "whole")


def test_second_ctrl_c_ends_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    send_at(monkeypatch, "evaluate", 1)
    send_at(monkeypatch, "exact_loss", 1)
    with pytest.raises(KeyboardInterrupt):
        train.main(LRT)
    assert signal.getsignal(signal.SIGINT) == before


def test_own_bug_keeps_its_traceback(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train, "get_lr", lambda s, step: {}[step])
    with pytest.raises(KeyError):
        train.main(LRT)
    assert signal.getsignal(signal.SIGINT) == before


def test_from_a_notebook_and_from_a_thread():
    thread = threading.Thread(target=train.main, args=[LRT])
    thread.start()
    thread.join()
    train.main([*LRT, "--out_dir=out-2"])
    assert_same_run("out", "out-2")


def test_longer(capsys):
    train.main([*LRT, "--learning_rate=0"])
    train.main(["--resume=1", "--max_iters=14"])
    assert [row["step"] for row in checkpoint("out")["log"] if "exact" in row] == [5, 10, 12, 14]
    capsys.readouterr()
    train.main(["--eval_only=1"])
    best = min(row["exact"] for row in checkpoint("out")["log"] if "exact" in row)
    assert f"out, step 5: exact {best:.4f}, as_trained" in capsys.readouterr().out


def test_no_run_is_replaced_unasked(monkeypatch):
    train.main(LRT)
    before = Path("out/last.pt").read_bytes()
    with pytest.raises(UsageError, match="--resume=1 to continue it, --overwrite=1 to"):
        train.main(LRT)
    with pytest.raises(UsageError, match="--seed=1: the run in out has 1337"):
        train.main(["--resume=1", "--seed=1"])
    assert Path("out/last.pt").read_bytes() == before
    monkeypatch.setattr(train, "replace_file", lambda path, write: 1 / 0)       # "killed"
    with pytest.raises(ZeroDivisionError):
        train.main([*TINY, "--overwrite=1"])
    with pytest.raises(UsageError, match="no checkpoint"):
        sample.main([])


def test_infinite_once(monkeypatch):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    train.main([*LRT, "--max_iters=6", "--out_dir=whole"])
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(parameters, limit):
        calls.append(1)
        for p in parameters if len(calls) == 7 else ():
            p.grad.fill_(torch.inf)
        return real(parameters, limit)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_",
                        lambda parameters, limit: clip(list(parameters), limit))
    with pytest.raises(UsageError, match="step 6: .* norm of the gradient inf"):
        train.main(LRT)
    last = checkpoint("out")
    assert last["step"] == 6
    assert all(p.isfinite().all() for p in last["model"].values())


def test_init_from(capsys):
    train.main([*TINY, "--out_dir=plain"])
    train.main([*LRT, "--init_from=plain", "--learning_rate=0"])
    assert "not in it: gamma, blocks.0.attn.w_g.weight, u_k.0.weight" in capsys.readouterr().out
    weights, plain = checkpoint("out")["model"], checkpoint("plain", "best.pt")["model"]
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    with pytest.raises(UsageError, match=r"embed.weight is \(\d+, 16\), here \(\d+, 32\)"):
        train.main([*LRT, "--init_from=plain", "--n_embd=32", "--out_dir=new"])
    Path("other.txt").write_text(TEXT.swapcase())
    prepare_data.main(["--dataset=other", "--input=other.txt"])
    with pytest.raises(UsageError, match="other tokens"):
        train.main([*LRT, "--init_from=plain", "--dataset=other", "--out_dir=new"])


def test_data_that_changed_under_a_run():
    train.main(LRT)
    for text in (TEXT[::-1], TEXT.replace("e", "E")):   # the same characters; others
        Path("text.txt").write_text(text)
        prepare_data.main(["--dataset=tiny", "--input=text.txt"])
        with pytest.raises(UsageError, match="data/tiny differs from"):
            train.main(["--resume=1", "--max_iters=20"])


def test_a_run_keeps_its_batches_and_its_length():
    """Another number of batches in a step is another run; steps that are done stay."""
    train.main([*LRT, "--gradient_accumulation_steps=2"])
    path = Path("out/last.pt")
    with pytest.raises(UsageError, match="--max_iters=3: the run in out is at step 12"):
        train.main(["--resume=1", "--max_iters=3"])
    torch.save(torch.load(path) | {"parts": 4}, path)
    with pytest.raises(UsageError, match="4 batches in a step, not 2"):
        train.main(["--resume=1"])


def test_what_is_added_to_the_log_can_be_loaded(monkeypatch):
    """Whatever somebody adds to a row of the log, checkpoints stay readable."""
    given = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *args: given(*args) | {
        "array": np.float64(1.5), "text": "yes", "list": [1, 2], "none": None})
    monkeypatch.setattr(train, "in_words", lambda row, s: "")
    train.main(LRT)
    assert checkpoint("out")["log"][-1]["text"] == "yes"
    sample.load_checkpoint("out")


# ---- Several processes

def test_two_processes_are_two_accumulated_batches():
    processes = start_two(*LRT, "--out_dir=two")
    assert [process.wait(300) for process in processes] == [0, 0]
    train.main([*LRT, "--gradient_accumulation_steps=2"])
    a, b = checkpoint("two"), checkpoint("out")
    assert without_seconds(a["log"])[-2] == without_seconds(b["log"])[-2]
    assert all(torch.equal(p, q) for p, q in zip(a["model"].values(), b["model"].values()))
    assert "step 12 validation" in processes[0].stdout.read()
    assert processes[1].stdout.read() == ""             # each line once


@pytest.mark.parametrize("what, code", [("signal.raise_signal(signal.SIGINT)", 0), ("1 / 0", 1)])
def test_one_of_two_processes(what, code):
    """Told to stop, both stop, and the run can go on. If one fails, the other does not wait."""
    before = f"""
old = train.get_batch
def batch(train_, s, step, part, *rest):
    if step == 3 and part == 1:
        {what}
    return old(train_, s, step, part, *rest)
train.get_batch = batch"""
    processes = start_two(*LRT, before=before)
    assert [process.wait(300) for process in processes] == [code, code]
    assert checkpoint("out")["step"] == (4 if code == 0 else 3)


# ---- Hostile and damaged files

class Bomb:
    def __reduce__(self):
        return open, ("bomb", "w")


CHANGES = {
    "code": lambda c: c | {"model": Bomb()},
    "no dict": lambda c: [1, 2],
    "older edition": lambda c: {"model": c["model"], "config": c["config"], "iter": 3},
    "no step": lambda c: {key: value for key, value in c.items() if key != "step"},
    "type of step": lambda c: c | {"step": "3"},
    "rows": lambda c: c | {"log": [3]},
    "losses": lambda c: c | {"losses": ["3"]},
    "evaluations": lambda c: c | {"log": [{"step": 1, "exact": "3"}]},
    "config, unknown": lambda c: c | {"config": c["config"] | {"x": 1}},
    "config, type": lambda c: c | {"config": c["config"] | {"n_layer": "1"}},
    "config, huge": lambda c: c | {"config": c["config"] | {"n_layer": 10 ** 9}},
    "weights": lambda c: c | {"model": {**c["model"], "head.weight": torch.zeros(2, 2)}},
    "settings": lambda c: c | {"settings": 3},
    "codec": lambda c: c | {"codec": "ab"},
    "codec, type": lambda c: c | {"codec": 7},
}


@pytest.mark.parametrize("change", CHANGES)
def test_hostile_checkpoint(change):
    Path("out").mkdir()
    train.main([*LRT, "--max_iters=1", "--out_dir=good"])
    bad = CHANGES[change](checkpoint("good"))
    torch.save(bad, "out/last.pt")
    for main, argv in ((sample.main, []), (train.main, ["--resume=1"]),
                       (train.main, [*LRT, "--init_from=out", "--out_dir=new"])):
        with pytest.raises(UsageError, match="of an older edition of this code, or damaged"):
            main(argv)
    assert not Path("bomb").exists()


@pytest.mark.parametrize("size", [0, 10, 3000])
def test_truncated_checkpoint(size):
    train.main([*LRT, "--max_iters=1"])
    path = Path("out/last.pt")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match="or damaged"):
        train.main(["--resume=1"])


META = {"not JSON": b"{", "no dict": b"[1]", "deep": b"[" * 100_000, "empty": b"{}",
        "no text": b"\xff\xfe",
        "types": json.dumps({"source": 1, "sha256": [], "codec": {}, "tokens": 3,
                             "bytes_per_token": "x"}).encode()}


@pytest.mark.parametrize("damage", [*META, "odd", "short", "empty", "large tokens"])
def test_damaged_data(damage):
    path = Path("data/tiny/train.bin")
    old = path.read_bytes()
    bins = {"odd": old[:-1], "short": old[:-2], "empty": b"", "large tokens": b"\xff" * len(old)}
    if damage in META:
        Path("data/tiny/meta.json").write_bytes(META[damage])
    else:
        path.write_bytes(bins[damage])
    with pytest.raises(UsageError, match="data/tiny is damaged.*prepare it again"):
        train.main(LRT)


# ---- Texts

TEXTS = {"crlf": b"one\r\ntwo\r\n" * 20, "one line": b"abc " * 250_000, "one kind": b"a" * 500,
         "bom": b"\xef\xbb\xbf" + b"hello\n" * 20, "world": "привет 😀 ".encode() * 50,
         "only in validation": b"abc\n" * 50 + b"z" * 9}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(kind, capsys):
    """Tokens stand for the bytes of the file, on any system; such texts are trained on, sampled."""
    Path("in.txt").write_bytes(TEXTS[kind])
    prepare_data.main(["--dataset=mine", "--input=in.txt"])
    meta, *splits = prepare_data.load("mine")
    codec = Codec(meta["codec"])
    written = b"".join(codec.token_bytes[token] for split in splits for token in split)
    assert written == TEXTS[kind].removeprefix(b"\xef\xbb\xbf")
    size = sum(len(codec.token_bytes[token]) for token in splits[1])
    assert meta["bytes_per_token"] == pytest.approx(size / len(splits[1]))
    train.main([*TINY, "--dataset=mine", "--block_size=8", "--max_iters=1"])
    capsys.readouterr()
    sample.main(["--max_new_tokens=50", "--num_samples=2"])
    first, second = capsys.readouterr().out.split("---------------\n")
    sample.main(["--max_new_tokens=50"])
    assert capsys.readouterr().out == first             # the same seed, the same text


BAD_TEXTS = {"utf-16": ("text\n" * 50).encode("utf-16"), "latin": b"caf\xe9 " * 50,
             "utf-16-le": ("text\n" * 50).encode("utf-16-le"), "empty": b"", "short": b"abc"}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_bad_texts(kind):
    Path("in.txt").write_bytes(BAD_TEXTS[kind])
    with pytest.raises(UsageError, match="in.txt is (not UTF-8|too short)"):
        prepare_data.main(["--dataset=mine", "--input=in.txt"])
    assert not Path("data/mine").exists()


def test_no_network(monkeypatch, capsys):
    text = "import this\n" * 300
    monkeypatch.setattr(prepare_data, "python_source", lambda: (text, "the source of Python 3"))
    train.main([*TINY, "--dataset=shakespeare"])
    said = capsys.readouterr()
    assert "WARNING: The text is the source of Python instead" in said.err
    assert "the source of Python 3" in said.out
    with pytest.raises(UsageError, match="stays as it is"):     # it is tried again
        prepare_data.main([])
    real = b"First Citizen:\n" * 50
    Path("real.txt").write_bytes(real)
    prepare_data.main(["--dataset=shakespeare", "--input=real.txt"])
    prepare_data.main([])                                       # it is there
    with pytest.raises(UsageError, match="stays as it is"):
        prepare_data.main(["--dataset=shakespeare"])
    assert prepare_data.load("shakespeare")[0]["source"] == "real.txt"
    monkeypatch.undo()
    text, source = prepare_data.python_source()
    assert len(text) > 10 ** 6 and text.isascii() and source.startswith("the source of Python")


def test_download(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **named: open("text.txt", "rb"))
    monkeypatch.setattr(prepare_data, "python_source", lambda: ("x = 1\n" * 99, "Python"))
    prepare_data.main([])                                       # another file came
    assert prepare_data.load("shakespeare")[0]["source"] == "Python"
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    monkeypatch.setattr(prepare_data, "SHAKESPEARE_SHA256", sha256)
    prepare_data.main(["--dataset=shakespeare"])
    meta = prepare_data.load("shakespeare")[0]
    assert (meta["source"], meta["sha256"]) == (prepare_data.SHAKESPEARE, sha256)


# ---- What the user types

BAD_INPUT = [
    ("train --max_iter=5", "unrecognized arguments: --max_iter=5"),
    ("train lrt=1", "unrecognized arguments: lrt=1"),
    ("train --max_iters=1e3", "--max_iters: invalid int value: '1e3'"),
    ("train --max_iters=0", "--max_iters=0: must be from 1"),
    ("train --batch_size=-1", "--batch_size=-1: must be from 1"),
    ("train --learning_rate=nan", "--learning_rate=nan: must be"),
    ("train --learning_rate=-1", "--learning_rate=-1.0: must be"),
    ("train --dropout=1", "dropout=1.0: must be"),
    ("train --seed=10000000000", "--seed=10000000000: must be"),
    ("train --n_head=3", "n_embd=16: must be a multiple of"),
    ("train --block_size=900", "--block_size=900: must be less"),
    ("train --dataset=nothere", "prepare_data.py --dataset=nothere --input=FILE"),
    ("train --dataset=..", "must be the name of a folder in data/"),
    ("train --dataset=a/b", "must be the name of a folder in data/"),
    ("train --out_dir=", "--out_dir=: must be the name"),
    ("train --lrt=2", "--lrt=2: must be 0 or 1"),
    ("train --lrt_subsets=4", "--lrt_subsets is for latent recurrence; add --lrt=1"),
    ("train --lrt=1 --lrt_subsets=0", "--lrt_subsets=0: must be from 1"),
    ("train --lrt=1 --lrt_mode=exact", "--lrt_mode=exact: must be parallel or sequential"),
    ("train --lrt=1 --lrt_mode=sequential --lrt_subsets=4", "no effect"),
    ("train --lrt=1 --lrt_memory_layer=2", "memory_layer=2"),
    ("train --lrt=1 --lrt_memory_proj=each", "memory_proj="),
    ("train --lrt=1 --lrt_loss_weights=1", "must be 2 numbers, not all 0, such as 0,1"),
    ("train --lrt=1 --lrt_loss_weights=0,0", "must be 2 numbers, not all 0"),
    ("train --lrt=1 --lrt_loss_weights=0,1 --lrt_hops=1", "--lrt_loss_weights cannot be combined with"),
    ("train --curriculum=3", "--curriculum is for the tasks parity, swaps"),
    ("train --dtype=float16", "--dtype=float16: must be float32 or bfloat16"),
    ("train --device=meta", "--device=meta cannot be used here"),
    ("train --device=banana", "--device=banana cannot be used here"),
    ("train --init_from=nowhere", "there is no checkpoint nowhere"),
    ("train --eval_only=1", "there is no checkpoint"),
    ("sample --out_dir=nowhere", "there is no checkpoint nowhere"),
    ("sample --temperature=-1", "--temperature=-1.0: must be from 0"),
    ("sample --top_k=0", "--top_k=0: must be from 1"),
    ("sample --out_dir=good --prompt=%", "the training text had none of these characters: '%'"),
    ("sample --out_dir=task --prompt=2", "parity knows the inputs 0, 1"),
    ("prepare_data --input=text.txt", "--dataset=NAME"),
    ("prepare_data --dataset=new --tokenizer=bpe --input=text.txt", "must be char or gpt2"),
    ("prepare_data --dataset=parity --input=text.txt", "must be the name of a folder"),
]


@pytest.mark.parametrize("line, says", BAD_INPUT)
def test_bad_input(line, says):
    script, *argv = line.split()
    if "good" in line or "task" in line:
        train.main([*TINY, "--max_iters=1", "--out_dir=good"])
        train.main([*TINY, "--max_iters=1", "--out_dir=task", "--dataset=parity"])
    argv = [*TINY, *argv] if script == "train" else argv
    with pytest.raises(UsageError, match=re.escape(says)) as e:
        {"train": train, "sample": sample, "prepare_data": prepare_data}[script].main(argv)
    assert "\n" not in str(e.value)
    assert not Path("out").exists() and not Path("data/new").exists()


@pytest.mark.parametrize("script", ["train.py", "sample.py", "prepare_data.py"])
def test_one_line_in_the_shell(script):
    done = subprocess.run([sys.executable, ROOT / script, "--lrt=x"], text=True,
                          capture_output=True)
    assert done.returncode == 1 and re.fullmatch("error: .*--lrt.*\n", done.stderr)


def test_help(capsys):
    with pytest.raises(SystemExit):
        train.main(["-h"])
    printed = capsys.readouterr().out
    for field in train.fields(train.Settings):
        assert re.search(rf"  --{field.name}=\S+ ", printed)
    assert "# S: interleaved subsets of the positions" in printed


def readme_commands():
    """The scripts and flags of the commands that README shows in indented lines."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    found = re.findall(r"^ {4}.*?\b(train|sample|prepare_data)\.py((?: -[^\s\"]*(?:\"[^\"]*\")?)*)",
                       "\n".join(lines), re.M)
    return [(script, shlex.split(flags)) for script, flags in found]


def test_readme():
    commands = readme_commands()
    assert {script for script, _ in commands} == {"train", "sample", "prepare_data"}
    for script, flags in commands:
        module = sys.modules[script]
        if flags != ["-h"]:
            typed = prepare_data.parse_args(module.Settings, "", flags)
            if script == "train":
                train.check(train.Settings(**typed), typed)
