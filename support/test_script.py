"""How scripts print and how they end."""
import errno
import io
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import prepare_data
import train
from support import checkpoint, files, script
from support.testing import HERE, SMALL, ends_in_one_line, rows, run


def script_of(function):
    """A module whose main(argv) does this."""
    return types.SimpleNamespace(main=script.script(lambda argv: function()))


def raises(error):
    def function():
        raise error
    return function


# ---- Ending

@pytest.mark.parametrize("function, said", [
    (raises(PermissionError(errno.EACCES, "Permission denied", "secret/last.pt")),
     "secret/last.pt: Permission denied"),
    (raises(OSError("no words")), "no words"),
    (raises(script.Unusable("two\nlines")), "two lines"),
    (raises(MemoryError()), "not enough memory"),
    (raises(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), "not enough memory"),
    (raises(RuntimeError("DefaultCPUAllocator: can't allocate memory")), "not enough memory"),
    (lambda: os.stat("x" * 300), "too long"),
    (lambda: files.read_text("a\0b"), "null"),
    (lambda: files.own("a\0b", "--out_dir"), "null"),
    (lambda: checkpoint.load_checkpoint("a\0b"), "null"),
    (lambda: checkpoint.load_checkpoint("~no-such-user/x"), "no-such-user"),
    (lambda: script.fail("all there is"), "error: all there is\n"),
])
def test_what_can_end_a_script_ends_it_in_one_line(here, capsys, function, said):
    assert said in ends_in_one_line(script_of(function), [], capsys)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x")])
def test_mistakes_in_the_code_are_not_hidden(error):
    with pytest.raises(type(error)):
        run(script_of(raises(error)))


@pytest.mark.parametrize("error, status", [
    (KeyboardInterrupt(), 130),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141),
    (SystemExit(7), 7),
])
def test_exit_status(error, status, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())       # whoever reads these tests stays
    assert run(script_of(raises(error))) == status


def test_main_gives_back_what_it_returns_and_keeps_its_name():
    @script.script
    def main(argv):
        """What it does."""
        return argv
    assert main([1]) == [1] and main() is None
    assert (main.__name__, main.__doc__) == ("main", "What it does.")


def test_from_python_no_library_call_exits(here):
    """The same line as from a script, as an exception that is a ValueError, too."""
    for call in (lambda: files.own("text.txt", "--x"),
                 lambda: files.read_text("missing"),
                 lambda: files.write_atomic("gone/x", lambda f: None),
                 lambda: checkpoint.find_device("gpu"),
                 lambda: checkpoint.load_checkpoint("text.txt")):
        with pytest.raises(ValueError) as error:
            call()
        assert type(error.value) is script.Unusable


def test_commands_can_be_pasted(monkeypatch):
    words = ["python", "train.py", "--out_dir=my run", Path("a/b")]
    assert script.command(*words) == "python train.py '--out_dir=my run' a/b"
    monkeypatch.setattr(script.os, "name", "nt")
    assert script.command(*words[:3], r"C:\out") == r'python train.py "--out_dir=my run" C:\out'


# ---- What cannot be shown does not end a run

class Bare:
    """All that an object needs to be printed to."""
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Failing(Bare):
    """A stream that cannot be written to any more."""
    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "none": None,
    "closed": closed(),
    "no flush": Bare(),
    "an object that fails": Failing(KeyError("x")),
    "a terminal that is gone": Failing(OSError(errno.EIO, "Input/output error")),
    "a pipe without a reader": Failing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "a full disk": Failing(OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_cannot_be_shown_ends_nothing(name, monkeypatch):
    """Neither a line of progress, nor a script that is about to end with a message."""
    monkeypatch.setattr(sys, "stdout", STREAMS[name])
    monkeypatch.setattr(sys, "stderr", STREAMS[name])
    assert not script.say("line") and not script.say() and not script.warn("line")
    assert not script.on_terminal()
    done = []
    assert run(script_of(lambda: done.append(script.say("line")))) == 0 and done == [False]
    assert run(script_of(raises(script.Unusable("x")))) == 2


def test_what_can_be_shown_is(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert script.say("one ", end="") and script.say("two") and script.say()
    assert stream.getvalue() == "one two\n\n"
    assert not script.on_terminal()
    stream.isatty = lambda: True
    assert script.on_terminal()


def test_a_slow_reader_is_no_broken_one(monkeypatch):
    stream = Failing(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(script, "silence", raises(AssertionError))
    assert script.say("line")


PRINTS = """
import os, sys
from support.script import say, script, warn

@script
def main(argv):
    for n in range(20_000):
        say(f"line {n}")
        warn(f"line {n}")
    open("finished", "w").close()

main()
"""


def python(code, **named):
    """A process that runs this code."""
    env = environment(**named.pop("env", {}))
    return subprocess.run([sys.executable, "-c", code], timeout=60, env=env, **named)


def environment(**changes):
    """As a user has it: output waits in a buffer, which Python empties when it ends."""
    return {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "", **changes}


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_reader_that_leaves_ends_no_run(here, which):
    """As with `| head`: all is done, the status is 0, and Python has nothing to complain about."""
    reading, writing = os.pipe()
    os.close(reading)
    other = "stderr" if which == "stdout" else "stdout"
    done = python(PRINTS, **{which: writing, other: subprocess.PIPE})
    os.close(writing)
    lines = getattr(done, other).decode().splitlines()
    assert done.returncode == 0 and Path("finished").exists()
    assert lines == [f"line {n}" for n in range(20_000)]


def test_a_full_disk_under_the_output_ends_no_run(here):
    if not os.path.exists("/dev/full"):
        pytest.skip("not on this system")
    with open("/dev/full", "w") as full:
        done = python(PRINTS, stdout=full, stderr=full)
    assert done.returncode == 0 and Path("finished").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell's way to close a stream")
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start(here, closing):
    Path("prints.py").write_text(PRINTS)
    done = subprocess.run(f"{shlex.quote(sys.executable)} prints.py {closing}", shell=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    assert done.returncode == 0 and Path("finished").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell's way to close a stream")
@pytest.mark.parametrize("closing, lrt", [(">&- 2>&-", 0), ("| true", 1)])
def test_training_needs_no_output(here, closing, lrt):
    """It goes on to its end and writes all files; its last sample is of no use to anybody."""
    prepare_data.prepare("mine", "char", "text.txt")
    words = [sys.executable, str(HERE / "train.py"), *SMALL, f"--lrt={lrt}"]
    line = f"({shlex.join(words)}; echo $? > status) {closing}"
    done = subprocess.run(line, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          env=environment())
    assert Path("status").read_text() == "0\n" and b"Traceback" not in done.stderr
    assert torch.load("out/last.pt", weights_only=True)["iter"] == 6
    assert Path("out/best.pt").exists() and len(rows("out")) == 2


@pytest.mark.parametrize("name", STREAMS)
def test_training_goes_on_when_nothing_can_be_shown(trained, monkeypatch, name):
    monkeypatch.setattr(sys, "stdout", STREAMS[name])
    assert run(train, *SMALL) == 0
    assert torch.load("out/last.pt", weights_only=True)["iter"] == 6 and len(rows("out")) == 2


# ---- Characters

SPEAKS = """
from support.script import say, script, warn

@script
def main(argv):
    say("naïve — 日本")
    warn("naïve — 日本")

main()
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "ascii:strict"])
def test_text_that_goes_into_a_file_keeps_its_characters(here, encoding):
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = python(SPEAKS, capture_output=True, env=env)
    assert done.stdout.decode("utf-8").splitlines() == ["naïve — 日本"]
    assert done.stderr.decode("utf-8").splitlines() == ["naïve — 日本"]


def test_an_encoding_that_has_all_characters_is_kept(here):
    done = python(SPEAKS, capture_output=True, env={"PYTHONIOENCODING": "utf-16-le"})
    assert done.stdout.decode("utf-16-le").splitlines() == ["naïve — 日本"]


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("encoding, shown", [
    ("ascii", "na?ve ? ??"), ("latin-1", "naïve ? ??"), ("utf-8", "naïve — 日本"),
])
def test_a_terminal_shows_what_it_can(monkeypatch, encoding, shown):
    terminal = Terminal(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(script_of(lambda: script.say("naïve — 日本"))) == 0
    assert terminal.buffer.getvalue().decode(encoding) == shown + "\n"


def test_an_object_that_cannot_show_a_character_shows_a_question_mark(monkeypatch):
    class Ascii(Bare):
        def write(self, text):
            text.encode("ascii")
            super().write(text)

        def flush(self):
            pass
    monkeypatch.setattr(sys, "stdout", Ascii())
    assert script.say("naïve") and sys.stdout.text == "na?ve\n"


@pytest.mark.parametrize("function", [
    lambda: None, raises(KeyboardInterrupt()), raises(KeyError("x")), raises(script.Unusable("x")),
])
def test_streams_are_given_back_as_they_were(monkeypatch, function):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    settings = []

    def look():
        settings.append([(stream.encoding, stream.errors) for stream in streams])
        function()

    try:
        run(script_of(look))
    except KeyError:
        pass
    assert settings == [[("utf-8", "replace")] * 2]
    assert [(stream.encoding, stream.errors) for stream in streams] == [("ascii", "strict")] * 2
