"""train.py: going on, stopping, saving; what a run's folder holds."""
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prepare_data
import train
from support import checkpoint, files
from support.run_folder import RunFolder
from support.script import Unusable, command
from support.testing import HERE, SMALL, all_files, ends_in_one_line, once, rows, run, same, weights

RUN_FILES = {".lock", "last.pt", "best.pt", "log.jsonl", "steps.csv", "run.json"}


@pytest.fixture
def mine(here):
    """A working folder with text.txt and data/mine."""
    prepare_data.prepare("mine", "char", "text.txt")
    return here


def step_numbers(folder):
    """Of the rows of steps.csv, which must be whole."""
    text = Path(folder, "steps.csv").read_text(encoding="utf-8")
    assert text.endswith("\n")
    head, *lines = text.splitlines()
    assert head.startswith("step,loss,") and all(line.count(",") == 4 for line in lines)
    return [int(line.split(",")[0]) for line in lines]


def without_seconds(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def at_step(monkeypatch, step, function):
    """Have function() called once, as a step begins, from 0. What it raises ends the run."""
    draw, done = train.batch, []
    def batch(data, s, T, n, *rest):
        if n == step and not done:
            done.append(n)
            function()
        return draw(data, s, T, n, *rest)
    monkeypatch.setattr(train, "batch", batch)


class Killed(BaseException):
    """Ends a run at once, as far as its files are concerned."""


def kill():
    raise Killed


def run_killed(*args):
    with pytest.raises(Killed):
        run(train, *args)


# ---- Killed, and gone on with

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
train.SAVE_SHARE = 1e9                      # last.pt is written at each evaluation
train.main(sys.argv[2:])
"""


def test_run_killed_at_random_moments_is_the_same_run(mine):
    """Between steps and in the middle of writing a file. One line starts it and goes on with it."""
    flags = [*SMALL, "--lrt=1", "--dropout=0.1", "--max_iters=40", "--eval_interval=3"]
    assert run(train, *flags, "--out_dir=a") == 0
    kills = 0
    for seed in range(40):
        args = once([*flags, "--out_dir=b", "--resume=auto"])
        done = subprocess.run([sys.executable, "-c", KILLER, str(seed), *args],
                              capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1",
                                   "PYTHONIOENCODING": "utf-8"})
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
    assert without_seconds("a") == without_seconds("b")
    assert step_numbers("a") == step_numbers("b") == list(range(2, 41, 2))
    def state(folder):
        return torch.load(Path(folder, "last.pt"), weights_only=True)["optimizers"]
    assert str(state("a")) == str(state("b"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["batch", "windows"])
def test_told_to_stop_it_saves_and_says_how_to_go_on(trained, capsys, monkeypatch, name, where):
    """Between two steps, and between two batches of an evaluation, which is then made up for."""
    if not hasattr(signal, name):
        pytest.skip("not on this system")
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)          # it may have been ignored
    function, calls = getattr(train, where), []
    def interrupted(*args):
        calls.append(1)
        due = args[3] == 4
        if where == "windows":
            due = len(calls) > 2                            # two are of the first try
        if due:
            signal.raise_signal(number)
        return function(*args)

    with monkeypatch.context() as patched:
        patched.setattr(train, where, interrupted)
        assert run(train, *SMALL, "--lrt=1", "--out_dir=the run") == 128 + number
    out, err = capsys.readouterr()
    assert f"go on with: {command('python', 'train.py', '--resume=the run')}" in out
    assert "stopping after this step; again to stop at once" in err
    last = torch.load("the run/last.pt", weights_only=True)
    assert (last["iter"], len(last["rows"])) == ((5, 1) if where == "batch" else (3, 0))
    assert run(train, "--resume=the run") == 0
    assert same(weights("run"), weights("the run"))
    assert without_seconds("run") == without_seconds("the run")
    assert step_numbers("the run") == [2, 4, 6]
    assert signal.signal(number, before) == signal.SIG_DFL


def test_going_on(mine, capsys):
    """Longer, as it was, or from its weights; anything else is refused with what to do."""
    assert run(train, *SMALL, "--out_dir=a") == 0
    capsys.readouterr()
    assert run(train, "--resume=a/last.pt", "--n_embd=16", "--device=cpu") == 0     # as it has them
    assert "finished" in capsys.readouterr().out
    assert run(train, "--resume=a", "--max_iters=8") == 0
    assert [row["iter"] for row in rows("a")] == [3, 6, 8]
    assert "falls over 8 steps" in capsys.readouterr().out
    assert torch.load("a/last.pt", weights_only=True)["settings"]["max_iters"] == 8
    new = [*SMALL, "--out_dir=b"]
    for flags, named in ((["--resume=a", "--max_iters=7"], "less than 8"),
                         (["--resume=a", "--n_embd=32"], "init_from"),
                         (["--resume=a", "--min_lr=0.1"], "init_from"),
                         (["--resume=a", "--dataset=other"], "init_from"),
                         (["--resume=nowhere"], "no checkpoint"),
                         ([*new, "--init_from=a", "--n_embd=32"], "--n_embd=16"),
                         ([*new, "--init_from=nowhere"], "no checkpoint")):
        assert named in ends_in_one_line(train, flags, capsys)
    assert run(train, *new, "--lrt=1", "--init_from=a/best.pt", "--learning_rate=0") == 0
    assert "u_k.0.weight" in capsys.readouterr().out            # what a plain GPT does not have
    old = torch.load("a/best.pt", weights_only=True)["model"]["embed.weight"]
    assert torch.equal(weights("b")["embed.weight"], old)
    err = ends_in_one_line(train, [*SMALL, "--init_from=b", "--out_dir=c"], capsys)
    assert "--lrt=1" in err
    prepare_data.prepare("mine", "bpe:40", "text.txt")
    for flags in (["--resume=a"], [*SMALL, "--init_from=a", "--out_dir=c"]):
        err = ends_in_one_line(train, flags, capsys)
        assert "--tokenizer=char" in err and "--tokenizer=bpe:40" in err
    assert not Path("c").exists() and not Path("nowhere").exists()


def test_one_line_starts_a_run_goes_on_and_says_that_it_is_done(trained, capsys, monkeypatch):
    line = [*SMALL, "--lrt=1", "--out_dir=b", "--resume=auto"]
    with monkeypatch.context() as patched:
        at_step(patched, 4, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(train, *line) == 128 + signal.SIGTERM
    assert run(train, *line) == 0
    assert same(weights("run"), weights("b")) and without_seconds("run") == without_seconds("b")
    capsys.readouterr()
    before = Path("b/last.pt").read_bytes()
    assert run(train, *line) == 0                       # all is done
    out = capsys.readouterr().out
    assert "b is finished" in out and "best, step" in out
    assert Path("b/last.pt").read_bytes() == before
    assert "that run has 16" in ends_in_one_line(train, [*line, "--n_embd=32"], capsys)


def test_run_of_an_older_version_goes_on(mine, monkeypatch):
    """Its last.pt knows fewer settings, its best.pt has no row."""
    assert run(train, *SMALL, "--out_dir=a") == 0
    with monkeypatch.context() as patched:
        at_step(patched, 4, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(train, *SMALL, "--out_dir=b") == 128 + signal.SIGTERM
    for name in ("last.pt", "best.pt"):
        state = torch.load(f"b/{name}", weights_only=True)
        state.pop("row", None)
        for setting in ("lrt_hops", "min_lr", "gradient_accumulation_steps", "eval_only"):
            del state["settings"][setting]
        torch.save(state, f"b/{name}")
    os.remove("b/steps.csv")
    assert run(train, "--resume=b") == 0
    assert same(weights("a"), weights("b")) and without_seconds("a") == without_seconds("b")
    assert step_numbers("b") == [6]


# ---- Nothing good is replaced by something worse

def test_old_run_stays_until_the_new_one_has_a_checkpoint(mine, capsys, monkeypatch):
    assert run(train, *SMALL, "--lrt=1", "--max_iters=7") == 0
    before = all_files()
    flags = [*SMALL, "--lrt=1", "--init_from=out", "--overwrite=1", "--log_interval=1"]
    with monkeypatch.context() as patched:
        at_step(patched, 2, kill)
        run_killed(*flags)
    assert all_files() == before
    with monkeypatch.context() as patched:              # bad numbers stop it, too
        assert run(train, *flags, "--learning_rate=1e9", "--warmup_iters=0") == 2
    err = capsys.readouterr().err
    assert "loss is nan" in err and "smaller --learning_rate" in err
    assert all_files() == before
    with monkeypatch.context() as patched:              # after the first evaluation
        at_step(patched, 4, kill)
        run_killed(*flags, "--seed=2")
    assert {path.name for path in Path("out").iterdir()} == RUN_FILES
    for name in ("last.pt", "best.pt"):
        state = torch.load(f"out/{name}", weights_only=True)
        assert (state["iter"], state["settings"]["seed"]) == (3, 2)
    assert json.loads(Path("out/run.json").read_text())["settings"]["seed"] == 2
    assert [row["iter"] for row in rows("out")] == [3]
    assert step_numbers("out") == [1, 2, 3, 4]
    assert run(train, "--resume=out") == 0
    assert step_numbers("out") == [1, 2, 3, 4, 5, 6]
    assert [row["iter"] for row in rows("out")] == [3, 6]


def test_it_saves_before_the_first_evaluation_and_owns_its_folder(mine, monkeypatch):
    seen = []
    def look():
        seen.append(Path("out/last.pt").exists())
        for flags in ([*SMALL, "--overwrite=1"], ["--resume=out"]):
            seen.append(subprocess.run([sys.executable, HERE / "train.py", *flags],
                                       capture_output=True, text=True))

    at_step(monkeypatch, 2, look)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    monkeypatch.setattr(train, "SAVE_SHARE", 1e9)
    assert run(train, *SMALL) == 0
    assert seen[0]
    for done in seen[1:]:
        assert done.returncode == 2 and "in use" in done.stderr and done.stderr.count("\n") == 1
    assert [row["iter"] for row in rows("out")] == [3, 6]


def test_rows_are_appended_and_links_stay(mine, monkeypatch):
    """Who follows a file sees each row when it is there; last.pt may lie on another disk."""
    Path("disk").mkdir()
    Path("out").mkdir()
    Path("out/last.pt").symlink_to(mine / "disk" / "last.pt")
    followed, seen = [], []
    def follow():
        for name in ("log.jsonl", "steps.csv"):
            followed.append(open(f"out/{name}", encoding="utf-8"))
        seen.extend(file.read() for file in followed)

    at_step(monkeypatch, 4, follow)
    assert run(train, *SMALL) == 0
    for name, file, before in zip(("log.jsonl", "steps.csv"), followed, seen):
        assert before and before.endswith("\n")
        assert before + file.read() == Path("out", name).read_text(encoding="utf-8")
        file.close()
    assert Path("out/last.pt").is_symlink() and Path("disk/last.pt").is_file()


def test_files_are_cut_back_to_what_the_checkpoint_knows(mine):
    assert run(train, *SMALL) == 0
    log, table = Path("out/log.jsonl"), Path("out/steps.csv")
    good = log.read_bytes(), table.read_bytes()
    log.write_bytes(good[0] + b'{"iter": 9}\n{"iter": 1')
    table.write_bytes(good[1] + b"8,1,1,1,1\n9,1,")
    assert run(train, "--resume=out") == 0
    assert (log.read_bytes(), table.read_bytes()) == good
    log.write_bytes(good[0][:100])                      # what is lost there, the checkpoint has
    assert run(train, "--resume=out") == 0
    assert log.read_bytes() == good[0]


def test_best_checkpoint_has_its_numbers(mine):
    assert run(train, *SMALL) == 0
    best = torch.load("out/best.pt", weights_only=True)
    assert best["row"] == json.loads(json.dumps(min(rows("out"), key=train.badness)))
    assert best["row"]["iter"] == best["iter"]


# ---- What the report needs

@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_run_whose_best_is_gone_goes_on_without(mine, capsys, monkeypatch, finished, content):
    with monkeypatch.context() as patched:
        if not finished:
            at_step(patched, 4, lambda: signal.raise_signal(signal.SIGTERM))
        run(train, *SMALL, "--lrt=1")
    Path("out/best.pt").unlink()
    if content:
        Path("out/best.pt").write_bytes(content)
    capsys.readouterr()
    monkeypatch.setattr(train.sample, "print_samples", lambda flags: None)
    assert run(train, "--resume=out") == 0
    out, err = capsys.readouterr()
    assert "no best.pt of this run" in err
    assert ("last, step 6" if finished else "best, step 6") in out and "latent held at 0" in out


def test_best_of_another_run_is_not_taken_for_its_own(mine, capsys):
    """As when a run that replaces another is killed just before the old best.pt goes."""
    assert run(train, *SMALL, "--out_dir=old") == 0
    assert run(train, *SMALL, "--seed=2") == 0
    os.replace("old/best.pt", "out/best.pt")
    capsys.readouterr()
    assert run(train, "--resume=out") == 0
    out, err = capsys.readouterr()
    assert "no best.pt of this run" in err and "last, step 6" in out


def test_best_that_goes_meanwhile_is_done_without(mine, capsys, monkeypatch):
    at_step(monkeypatch, 5, lambda: os.remove("out/best.pt"))
    monkeypatch.setattr(train, "badness", lambda row: row["iter"])      # the first one is the best
    monkeypatch.setattr(train.sample, "print_samples", lambda flags: None)
    assert run(train, *SMALL, "--lrt=1") == 0
    assert "left out: best.pt" in capsys.readouterr().out


# ---- Files that cannot be written, output that nobody reads

@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while it is on, nothing can be written into a checkpoint."""
    state = {"full": False}
    save = torch.save
    def failing(*args):
        if state["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)
    monkeypatch.setattr(torch, "save", failing)
    return state


def test_save_that_fails_in_between_is_a_warning(mine, capsys, monkeypatch, full_disk):
    at_step(monkeypatch, 1, lambda: full_disk.update(full=True))
    draw = train.batch
    def batch(data, s, T, n, *rest):
        full_disk["full"] = full_disk["full"] and n < 5
        return draw(data, s, T, n, *rest)
    monkeypatch.setattr(train, "batch", batch)
    assert run(train, *SMALL) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "No space left on device" in warnings[0]
    assert [row["iter"] for row in rows("out")] == [3, 6]
    for name in ("last.pt", "best.pt"):
        assert torch.load(f"out/{name}", weights_only=True)["iter"] == 6


@pytest.mark.parametrize("stopped", [False, True])
def test_last_save_that_fails_ends_in_an_error(mine, capsys, monkeypatch, full_disk, stopped):
    def fill():
        full_disk["full"] = True
        if stopped:
            signal.raise_signal(signal.SIGTERM)

    at_step(monkeypatch, 4, fill)
    assert run(train, *SMALL) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: cannot write out")
    assert "No space left on device" in err and "Traceback" not in err


def test_row_that_cannot_be_written_is_missed_and_said_once(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    (tmp_path / "log.jsonl").mkdir()
    folder.log_evaluation({"iter": 1})
    folder.log_evaluation({"iter": 2})
    folder.log_step(1, 2, 3, 4, 5)
    err = capsys.readouterr().err
    assert err.count("warning: cannot write") == 1 and "log.jsonl" in err
    assert step_numbers(tmp_path) == [1]


def test_checkpoints_take_at_most_a_twentieth_of_the_time(mine, monkeypatch):
    """With steps of 1 s and saves of 40 s, and an evaluation after each 50 steps."""
    now, saves = [0.0], []
    def take_step(run, rate):
        now[0] += 1
        run.step += 1
        return 1.0, 1.0
    def save(folder, **states):
        now[0] += 40 if "last" in states else 0
        folder.save_seconds = 40
        if "last" in states:
            saves.append(now[0])

    monkeypatch.setattr(train, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train, "take_step", take_step)
    monkeypatch.setattr(RunFolder, "save", save)
    monkeypatch.setattr(train, "report", lambda run, stop: None)
    flags = ["--max_iters=1700", "--eval_interval=50", "--eval_tokens=16", "--log_interval=100"]
    assert run(train, *SMALL, *flags) == 0
    first, second, third, end = saves       # the first one shows how long they take
    assert 800 <= second - first < 850 and 800 <= third - second < 850


# ---- In a notebook

def test_main_gives_back_what_it_took_however_it_ends(mine, monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(n) for n in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    def all_is_given_back():
        assert [signal.getsignal(n) for n in numbers] == handlers
        assert signal.set_wakeup_fd(wakeup) == wakeup
        with files.own("out", "--out_dir"):
            pass

    assert run(train, *SMALL, "--overwrite=1") == 0
    all_is_given_back()
    for what, status in ((lambda: signal.raise_signal(signal.SIGTERM), 128 + signal.SIGTERM),
                         (lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)],
                          128 + signal.SIGINT)):
        with monkeypatch.context() as patched:
            at_step(patched, 2, what)
            assert run(train, *SMALL, "--overwrite=1") == status
        all_is_given_back()
    def fails():
        raise Unusable("this went wrong")
    with monkeypatch.context() as patched:
        at_step(patched, 2, fails)
        assert run(train, *SMALL, "--overwrite=1") == 2
    all_is_given_back()
    assert run(train, *SMALL, "--overwrite=1") == 0


# ---- Pictures

@pytest.mark.parametrize("flags, name", [([], "log.jsonl"), (["--x=flops"], "log.jsonl"),
                                         (["--steps=1"], "steps.csv")])
def test_plot_draws_what_a_run_has_written(trained, capsys, flags, name):
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("assets.plot")
    assert run(plot, "run", *flags, "--out=picture.png") == 0
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    Path("run", name).write_text("what is\nthis?\n")
    for folder in ("run", "nowhere"):
        assert name in ends_in_one_line(plot, [folder, *flags], capsys)


def test_plot_is_a_script(trained):
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, HERE / "assets" / "plot.py", "run"], check=True)
    assert Path("loss.png").stat().st_size > 0
