"""Locks, files that are whole or not there, rows that are appended."""
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import prepare_data
from support import files
from support.script import Unusable
from support.testing import HERE, all_files, ends_in_one_line


# ---- Folders with one owner

HOLDER = """
from support import files
lock = files.own("run", "--x")
print("ok", flush=True)
input()
"""


def test_folder_has_one_owner_until_its_process_dies(here):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(HERE)})
    assert holder.stdout.readline().strip() == b"ok"
    with pytest.raises(Unusable) as refused:
        files.own("run", "--out_dir")
    advice = "run is in use by another run; wait for it or use another --out_dir"
    assert str(refused.value) == advice
    holder.kill()
    holder.wait()
    files.own("run", "--out_dir").release()


def test_a_lock_is_given_back(here):
    """By a with statement, also after an error, and by hand, once or twice."""
    with files.own("run", "--out_dir"):
        with pytest.raises(Unusable):
            files.own("run", "--out_dir")
    with pytest.raises(KeyError):
        with files.own("run", "--out_dir"):
            raise KeyError
    lock = files.own("run", "--out_dir")
    lock.release()
    lock.release()
    with files.own("run", "--out_dir"):
        pass


def test_who_waits_gets_the_folder_when_it_is_free(here, capsys):
    lock = files.own("run", "--out_dir")
    threading.Timer(1.5, lock.release).start()
    with files.own("run", "--out_dir", wait=True):
        pass
    assert capsys.readouterr().err == "waiting for another run that uses run\n"


def test_who_is_interrupted_while_waiting_holds_nothing(here, monkeypatch):
    lock = files.own("run", "--out_dir")
    opened = []

    def open_and_note(*args, **named):
        opened.append(open(*args, **named))
        return opened[-1]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "open", open_and_note, raising=False)
    monkeypatch.setattr(files.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.own("run", "--out_dir", wait=True)
    assert [file.closed for file in opened] == [True]
    lock.release()


@pytest.mark.parametrize("folder", ["text.txt", "text.txt/run", "x" * 300, "a\0b"])
def test_what_cannot_be_a_folder_is_said_so(here, folder):
    with pytest.raises(Unusable, match="^--out_dir: .* cannot be used: "):
        files.own(folder, "--out_dir")


def test_a_file_system_without_locks_keeps_nobody_out(here, monkeypatch):
    if files.fcntl is None:
        pytest.skip("on Windows all have them")

    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with files.own("run", "--out_dir"), files.own("run", "--out_dir"):
        pass


# ---- Whole files

def text(content):
    """What write_atomic() takes: a function that writes some text."""
    return lambda f: f.write(content.encode())


def tensors(f):
    torch.save({"w": torch.zeros(10_000)}, f)


def names():
    return sorted(path.name for path in Path(".").iterdir())


def test_files_are_written_together(here):
    files.write_together({"a": text("1"), Path("b"): text("2"), "text.txt": tensors})
    assert Path("a").read_text() == "1" and Path("b").read_text() == "2"
    assert torch.load("text.txt", weights_only=True)["w"].shape == (10_000,)
    assert names() == ["a", "b", "text.txt"]


def full_disk(after):
    """What open() is on a disk that is full after some bytes of every file."""
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)
    return lambda path, mode, **named: Full(path, mode)


@pytest.mark.parametrize("after", [0, 1000])
def test_full_disk_loses_nothing(trained, capsys, monkeypatch, after):
    """Written one by one, or together, or as a row; torch's own words are not shown."""
    before = all_files()
    monkeypatch.setattr(files, "open", full_disk(after), raising=False)
    for path in ("run/last.pt", "run/new.pt"):
        with pytest.raises(Unusable) as refused:
            files.write_atomic(path, tensors)
        assert str(refused.value) == f"cannot write {path}: No space left on device"
        with pytest.raises(Unusable, match=f"cannot write {path}: No space"):
            files.write_together({"text.txt": text(""), path: tensors, "run/log.jsonl": text("")})
    with pytest.raises(Unusable, match="log.jsonl: No space"):
        files.append_line("run/log.jsonl", "x" * 2000)
    args = ["--dataset=mine", "--input=text.txt"]
    assert "No space left" in ends_in_one_line(prepare_data, args, capsys)
    assert all_files() == before


LIMITED = """
import resource
import torch
from support import files

def attempt(function, *args):
    try:
        function(*args)
    except files.Unusable as e:
        print(e)

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
attempt(files.write_atomic, "new", lambda f: torch.save(torch.zeros(10_000), f))
attempt(files.write_atomic, "new", lambda f: f.write(bytes(20_000)))
attempt(files.append_line, "log", "x" * 2000)
attempt(files.append_line, "log", "short")
"""


def test_a_limit_on_file_sizes_is_said_in_the_systems_words(here):
    """A real one, in a process of its own. Of a row that does not fit nothing is left, and there is
    room for the next."""
    pytest.importorskip("resource")
    Path("log").write_text("x" * 8999 + "\n")
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(HERE)})
    lines = ["cannot write new: File too large"] * 2 + ["cannot write log: File too large"]
    assert done.stdout.splitlines() == lines and done.stderr == ""
    assert names() == ["log", "text.txt"]
    assert Path("log").read_text() == "x" * 8999 + "\nshort\n"


def test_what_is_no_matter_of_files_is_not_told_as_one(here):
    """Errors of what is to be written stay what they are, and leave nothing behind either."""
    before = all_files()
    for error in (RuntimeError("CUDA error"), MemoryError(), KeyboardInterrupt(), KeyError("x")):
        def write(f):
            f.write(b"half")
            raise error
        with pytest.raises(type(error)):
            files.write_together({"a": text("1"), "b": write})
        assert all_files() == before


def link(path, target):
    try:
        os.symlink(target, path)
    except OSError:
        pytest.skip("this system makes no links")


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there yet"])
def test_a_link_stays_a_link(here, there):
    """last.pt may be on another disk: the new file is filled and renamed there."""
    Path("disk").mkdir()
    if there:
        Path("disk/real.pt").write_text("old")
    link("last.pt", Path("disk/real.pt"))
    link("chain.pt", "last.pt")
    files.write_together({"last.pt": text("1")})
    files.write_together({"chain.pt": text("2")})
    assert Path("last.pt").is_symlink() and Path("chain.pt").is_symlink()
    assert Path("disk/real.pt").read_text() == "2"
    assert os.listdir("disk") == ["real.pt"]
    assert names() == ["chain.pt", "disk", "last.pt", "text.txt"]


def test_what_is_no_file_is_not_replaced(here):
    Path("folder").mkdir()
    link("device", os.devnull)
    for path in ("folder", "device"):
        with pytest.raises(Unusable, match=f"cannot write {path}: .* is not a file"):
            files.write_together({"text.txt": text(""), path: text("x")})
    assert Path("folder").is_dir() and not Path(os.devnull).is_file()
    assert Path("text.txt").stat().st_size > 0


def test_a_folder_that_is_gone_is_said_so(here):
    with pytest.raises(Unusable, match="cannot write gone/a: No such file or directory"):
        files.write_atomic("gone/a", text("x"))


# ---- Rows

def test_rows_are_appended_whole_while_somebody_reads(here):
    """A reader that holds the file open sees every row, once, and whole rows only."""
    files.append_line("log", "first")
    with open("log", encoding="utf-8") as reader:
        seen = []
        for n in range(20):
            files.append_line("log", json.dumps({"n": n, "text": "é" * 1000}, ensure_ascii=False))
            new = reader.read()
            assert new.endswith("\n")
            seen += new.splitlines()
        files.keep_lines("log", lambda line: line == "first" or json.loads(line)["n"] < 10)
        files.append_line("log", "next")
    assert seen[0] == "first" and [json.loads(line)["n"] for line in seen[1:]] == list(range(20))
    lines = Path("log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12 and lines[-1] == "next"


@pytest.mark.parametrize("old, kept", [
    (b"", b""),
    (b"1\n2\n3\n", b"1\n2\n3\n"),
    (b"1\n2\n3", b"1\n2\n"),                    # torn
    (b"1\n2\n7\n", b"1\n2\n"),
    (b"1\n7\n2\n7\n3", b"1\n2\n"),              # not the first ones alone
    (b"7\n", b""),
    (b"3\r4\n\xff\n", b"3\r4\n\xff\n"),
])
def test_lines_are_cut_back(here, old, kept):
    Path("log").write_bytes(old)
    number = os.stat("log").st_ino
    files.keep_lines("log", lambda line: line != "7")
    assert Path("log").read_bytes() == kept
    if old.startswith(kept):                    # in place: who follows it can go on
        assert os.stat("log").st_ino == number


def test_no_lines_are_cut_where_there_is_no_file(here):
    files.keep_lines("log", lambda line: True)
    assert not Path("log").exists()
    with pytest.raises(Unusable, match="cannot read .: "):
        files.keep_lines(".", lambda line: True)
    with pytest.raises(Unusable, match="cannot write gone/log: No such"):
        files.append_line("gone/log", "x")


# ---- Reading

def test_text_is_read_as_it_is(here):
    Path("marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\xc3\xa9\n")
    assert files.read_text("marked.txt") == "one\r\ntwoé\n"


@pytest.mark.parametrize("path, why", [
    ("missing", "No such file"), (".", ""), ("a\0b", "null"), ("~no-such-user/x", "no-such-user"),
    ("", "a file with no name"), ("x" * 300, "too long"), ("latin1.txt", "utf-8"),
])
def test_what_cannot_be_read_is_said_so(here, path, why):
    Path("latin1.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(Unusable, match="cannot read .* as UTF-8 text: ") as refused:
        files.read_text(path)
    assert why in str(refused.value)
