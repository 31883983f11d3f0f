"""The grader: any file gets a line of reason, and no joke gets points."""
import ast
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course.grade import csv_line, main, one_line
from course.source import definitions, lrt_text

HERE = Path(__file__).resolve().parent.parent
GRADE = [sys.executable, str(HERE / "course" / "grade.py")]
GOOD = ast.get_source_segment(lrt_text(), definitions(lrt_text())["shift_right"])
TOP = "import torch\nimport torch.nn.functional as F\n\n"


def shift(*lines, before="", arguments="latent, first=None"):
    """A file with a function shift_right of these lines."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"{TOP}{before}\ndef shift_right({arguments}):\n{body}"


# What a file may be, by mistake or for fun: its name, its text, and what is said about it. All get
# nothing for exercise 1.
BROKEN = {
    "endless": (shift("while True:", "    print(1)"), "endless"),
    "waits": (shift("import functools", "x = torch.zeros(1)", "for n in iter(int, 1):",
                    "    x = x + n", "return latent"), "endless"),
    "exits": (shift("torch.os._exit(0)"), "_exit"),
    "quits": (shift("raise SystemExit(0)"), "SystemExit"),
    "interrupts": (shift("raise KeyboardInterrupt"), "KeyboardInterrupt"),
    "ends in hiding": (shift("getattr(getattr(torch, 'o' + 's'), '_ex' + 'it')(0)"),
                       "ended before"),
    "wrong": (GOOD.replace("latent[:, :-1]", "latent[:, :-1].detach()"),
              "no gradient reaches latent"),
    "decorated": ("@nothing\n" + GOOD, "nothing"),
    "imports": (shift("return os.nothing", before="import os\n"), "uses os"),
    "imports as": (shift("return o.nothing", before="from torch import os as o\n"), "uses os"),
    "absent": (shift("import nothing_like_it"), "nothing_like_it"),
    "syntax": ("def shift_right(latent:\n", "syntax error in line 1"),
    "binary": (bytes(range(256)), "UTF-8"),
    "zeros": (b"x = 1\0", "Python"),
    "deep brackets": ("x = " + "(" * 5000, "error"),
    "deep minuses": ("x = " + "-" * 20000 + "1", "nested too deeply"),
    "deep nots": (shift("return " + "not " * 20000 + "latent"), "nested too deeply"),
    "deep attributes": (shift("return latent" + ".T" * 20000), "deep"),
    "large": ("#" * 2_000_000, "too many"),
    "empty": ("\n \n", "the file is empty"),
    "another function": ("def shift_left(latent):\n    return latent\n", "no function shift_right"),
    "class": ("class shift_right:\n    pass\n", "something else than a def"),
    "lambda": ("shift_right = lambda latent, first=None: latent\n", "something else than a def"),
    "async": ("async def shift_right(latent, first=None):\n    return latent\n", "async"),
    "generator": (shift("yield latent"), "expected a tensor"),
    "nested": ("def outer():\n    def shift_right(latent, first=None):\n        return latent\n",
               "no function shift_right"),
    "blank": (shift("raise NotImplementedError('exercise 1')"), "not written yet"),
    "twice, the last wrong": (GOOD + "\n\n" + shift("return latent"), "m_0"),
    "recursion": (shift("return shift_right(latent, first)"), "RecursionError"),
    "memory": (shift("return torch.zeros(10 ** 12)"), "memory"),
    "memory by and by": (shift("x = [0] * 10 ** 6", "while True:", "    x = x + x"), ""),
    "speaks": (shift("raise ValueError('a\\nb\\x1b[2J' + 'long' * 1000)"), "ValueError: a b"),
    "error in error": (shift("raise E()", before="class E(Exception):\n    def __str__(self):\n"
                             "        raise ValueError('no')\n"), ""),
    "signature": (shift("return latent", arguments=""), "TypeError"),
    "returns itself": (shift("return shift_right"), "expected a tensor"),
    "writes in place": (shift("m = latent.roll(1, 1)", "m[:, 0] = 0 if first is None else first",
                              "latent[:] = 0", "return m"), "m_1"),
}

# Assignments to what is not the function's own: each ends with the input returned unshifted.
LENIENT = "lenient = lambda *a, **k: torch.zeros((), dtype=torch.bool)"
ASSIGNS = {
    "plain": ["torch.Tensor.any = lenient"],
    "in a tuple": ["torch.Tensor.any, x = lenient, 1"],
    "starred": ["[*torch.Tensor.any] = [lenient]"],
    "augmented": ["torch.pi += 1"],
    "annotated": ["torch.Tensor.any: int = lenient"],
    "deleted": ["del torch.equal"],
    "in a for": ["for torch.Tensor.any in [lenient]:", "    pass"],
    "in a with": ["import contextlib", "with contextlib.nullcontext(lenient) as torch.Tensor.any:",
                  "    pass"],
    "in a comprehension": ["[0 for torch.Tensor.any in [lenient]]"],
    "by another name": ["T = torch.Tensor", "T.any = lenient"],
    "by two other names": ["t = torch", "T = t.Tensor", "T.__eq__ = lenient"],
    "by an import": ["import torch as t", "t.Tensor.any = lenient"],
    "from a list": ["T = [torch.Tensor][0]", "T.any = lenient"],
    "by a loop": ["for T in (torch.Tensor,):", "    T.any = lenient"],
    "by a type": ["type(latent).any = lenient"],
    "by a class": ["latent.__class__.any = lenient"],
    "by setattr": ["setattr(torch.Tensor, 'any', lenient)"],
    "by a dict": ["torch.__dict__['equal'] = lenient"],
    "of lrt": ["import lrt", "lrt.norm = lenient"],
    "of lrt's classes": ["GPT.extend = lenient"],
    "of the tests": ["import test_lrt", "test_lrt.close = lenient"],
    "of all names": ["globals()['norm'] = lenient"],
    "global": ["global norm", "norm = lenient"],
    "in a class": ["class A:", "    torch.Tensor.any = lenient"],
    "in a function inside": ["def f(T=torch.Tensor):", "    T.any = lenient", "f()"],
    "hidden in a call": ["T = max([torch.Tensor], key=id)", "T.any = lenient"],
    "hidden from the look": ["T = getattr(torch, 'Ten' + 'sor')", "T.any = lenient"],
    "numpy's": ["import numpy", "numpy.asarray = lenient"],
    "the default dtype": ["torch.set_default_dtype(torch.float16)"],
    "gradients": ["torch.set_grad_enabled(False)"],
    "a tensor of its own": ["class L(torch.Tensor):", "    pass", "return latent.as_subclass(L)"],
    "a mode": ["torch.overrides.TorchFunctionMode().__enter__()"],
    "the stack": ["try:", "    1 / 0", "except Exception as e:",
                  "    e.__traceback__.tb_frame.f_back"],
    "the numbers": ["import numpy", "return numpy.load('known.npz')"],
    "a default": ["def f(x=setattr(torch, 'equal', 1)):", "    pass"],
    "by a type that is kept": ["T = type(latent)", "T.any = lenient"],
    "by a type from a list": ["T, x = type(latent), 1", "T.any = lenient"],
    "a type of its own": ["L = type('L', (torch.Tensor,), {})", "return latent.as_subclass(L)"],
    "type by another name": ["t = type", "L = t('L', (torch.Tensor,), {})", "return L(latent)"],
    "the type of a type": ["L = type(type(latent))('L', (torch.Tensor,), {})", "return L(latent)"],
    "a name of a function inside": ["def f(open):", "    pass", "return open('known.npz')"],
    "a name in a loop inside": ["[0 for eval in 'x']", "return eval('latent')"],
    "a name of something else": ["input = torch.Tensor", "input.any = lenient"],
}
for name, lines in ASSIGNS.items():
    BROKEN["joke " + name] = (shift(LENIENT, *lines, "return latent"), "")

# And what has to get its points, however it is written.
FINE = {
    "windows": "\ufeffimport nothing_like_it\r\nraise SystemExit\r\n" + GOOD.replace("\n", "\r\n"),
    "helper": TOP + "from math import pi\nLAST = -1\n\ndef zeros(x):\n    return 0 * x[:, :1]\n\n"
              "def shift_right(latent, first=None):\n    print('x' * 1000000)\n"
              "    return helped(latent, first)\n\ndef helped(latent, first):\n"
              "    start = zeros(latent) if first is None else first[:, None]\n"
              "    return torch.cat([start, latent[:, :LAST]], 1)\n",
    "own class": shift("p = Pair()", "p.a, p.b = latent, first", "p.done = True",
                       "m = p.a.roll(1, 1)", "m[:, 0] = 0 if first is None else p.b", "return m",
                       before="class Pair:\n    def __init__(self):\n        self.n = 0\n"),
    "twice, the last right": shift("return latent") + "\n\n" + GOOD,
    "own list": shift("parts = [None, latent[:, :-1]]", "parts[0] = 0 * latent[:, :1]",
                      "if first is not None:", "    parts[0] = first[:, None]",
                      "return torch.cat(parts, 1)"),
    "a leap": shift("x = latent.new_zeros(latent.shape)", "x[:, 1:] = latent[:, :-1]",
                    "if first is not None:", "    x[:, 0] = first", "return x"),
    "a line left": GOOD + "\n    raise NotImplementedError('exercise 1: not reached')\n",
    "names": shift("input = latent.type(latent.dtype).clone()[:, :-1]", "input[0, :0, 0] = 0",
                   "assert type(latent) is torch.Tensor and latent.type()",
                   "save = 0 * latent[:, :1] if first is None else first[:, None]",
                   "return torch.cat([save, input], 1)"),
    "=1+1": GOOD, "-rm": GOOD, "comma, and é": GOOD, "new\nline": GOOD,
}


def graded(*args, **options):
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([*GRADE, *map(str, args)], capture_output=True, env=env, **options)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """All files of BROKEN and FINE, graded at once: {name: (points, reason)}."""
    folder = tmp_path_factory.mktemp("files")
    files = {}
    for name, text in [*((n, t) for n, (t, _) in BROKEN.items()), *FINE.items()]:
        files[name + ".py"] = text if isinstance(text, bytes) else text.encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = [*files, "missing.py", "folder", "way"]
    (folder / "folder").mkdir()
    if os.name == "posix":
        os.mkfifo(folder / "pipe")
        (folder / "way").symlink_to("endless nowhere")
        (folder / "bytes\udcff.py").write_text(GOOD, encoding="utf-8")
        names += ["pipe", "/dev/zero", "bytes\udcff.py"]
    done = graded("--exercises=1", "--csv", "--limit=2", "--jobs=2", "--", *names, cwd=folder)
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader(done.stdout.decode().splitlines()))
    assert len(table) == len(names)
    return {row["file"]: row for row in table}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_gets_nothing_and_a_reason(rows, name):
    row = rows[name + ".py"]
    reason = row["reasons"]
    assert row["points"] == "0" and row["of"] == "5"
    assert BROKEN[name][1] in reason, reason
    assert 10 < len(reason) < 520 and reason.isprintable(), reason


@pytest.mark.parametrize("name", ["plain", "in a tuple", "deleted", "in a for", "in a with",
                                  "by another name", "by an import", "of lrt", "in a class",
                                  "hidden in a call", "hidden from the look"])
def test_assignments_are_named(rows, name):
    """Seen in the text, or looked at afterwards."""
    assert "may be used, not changed" in rows[f"joke {name}.py"]["reasons"]


@pytest.mark.parametrize("name", FINE)
def test_what_is_right_gets_points_however_it_is_written(rows, name):
    shown = ("'" if name[0] in "=-" else "") + name.replace("\n", "?") + ".py"
    assert rows[shown]["points"] == "5", rows[shown]


@pytest.mark.parametrize("name, reason", [
    ("missing.py", "cannot be read"), ("folder", "not a plain file"), ("way", "cannot be read"),
    ("pipe", "not a plain file"), ("/dev/zero", "not a plain file"), ("bytes?.py", "all 10 tests")])
def test_what_is_no_file(rows, name, reason):
    if name not in rows:
        pytest.skip("a system without such a thing")
    assert reason in rows[name]["reasons"] + ("all 10 tests" if rows[name]["points"] == "5" else "")


def test_cells_that_a_spreadsheet_would_compute():
    assert csv_line(["=1+1", "+1", "-1", "@x", "a,b", 'say "x"', "\t=1", 7]) == (
        "'=1+1,'+1,'-1,'@x,\"a,b\",\"say \"\"x\"\"\",?=1,7")


def test_a_reason_is_one_line():
    assert one_line("a\n\tb\x1b[2J\u2028c") == "a b [2J c"
    assert one_line("") == one_line("\n") == "no reason was given"


def test_formats_and_feedback(tmp_path, monkeypatch, capsys):
    """As JSON for Gradescope: one file, or a list; and a text for each student, though two files
    have one name."""
    for student in ("a", "b"):
        (tmp_path / student).mkdir()
        (tmp_path / student / "lrt.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "b" / "lrt.py").write_text("(", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    main(["a/lrt.py", "b/lrt.py", "b/../b/lrt.py", "--exercises=1-2", "--json", "--feedback=out"])
    results = {result["output"]: result for result in json.loads(capsys.readouterr().out)}
    assert sorted(results) == ["a/lrt.py: 5 of 12 points", "b/../b/lrt.py: 0 of 12 points",
                               "b/lrt.py: 0 of 12 points"]
    first = results["a/lrt.py: 5 of 12 points"]
    assert first["score"] == 5 and [test["max_score"] for test in first["tests"]] == [5, 7]
    assert [test["status"] for test in first["tests"]] == ["passed", "failed"]
    texts = sorted(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert len(texts) == 3 and "exercise 1  shift_right" in texts[0] and "syntax error" in texts[1]
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(names) == ["a_lrt.py.txt", "b_lrt.py-2.txt", "b_lrt.py.txt"]
    with pytest.raises(SystemExit):                 # nothing that is there is replaced
        main(["a/lrt.py", "--exercises=1", "--feedback=out"])
    assert "there is something in it" in capsys.readouterr().err
    main(["b/lrt.py", "--exercises=1-2", "--csv"])
    assert capsys.readouterr().out.count("syntax error") == 1


def test_of_what_fails_the_simplest_has_its_say(tmp_path, capsys):
    """The window of keys and values is off by one."""
    text = ast.get_source_segment(lrt_text(), definitions(lrt_text())["Cache.advance"], padded=True)
    wrong = text.replace("- self.W + 1)", "- self.W)")
    assert wrong != text
    (tmp_path / "off.py").write_text("class Cache:\n" + wrong + "\n", encoding="utf-8")
    main([str(tmp_path / "off.py"), "--exercises=2"])
    assert "tests pass; test_ex2_what_stays_of_the_newest: kv of layer 0" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--exercises=12", "x"], ["--jobs=0", "x"], ["--limit=0", "x"],
                                  [], ["--csv", "--json", "x"], ["--what", "x"],
                                  ["--exercises=", "x"]])
def test_a_wrong_command_is_told_in_a_line(args, capsys):
    with pytest.raises(SystemExit) as e:
        main(args)
    assert e.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_is_printed_survives_a_stop(tmp_path):
    """A file that is done has its line, though another one is not; Ctrl-C ends all processes."""
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "endless.py").write_text(BROKEN["endless"][0], encoding="utf-8")
    words = [*GRADE, "endless.py", "good.py", "--exercises=1", "--jobs=2", "--csv", "--limit=500"]

    def heard():                        # who starts the tests in the background may ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               preexec_fn=heard)
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert lines == ["file,ex1,points,of,reasons\n", "good.py,5,5,5,\n"]


def test_where_processes_cannot_be_copied(tmp_path):
    """As on Windows and macOS: a new Python for each exercise."""
    from course.exercises import EXERCISES, checked, chosen
    from course.grade import graded as graded_files
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    table = chosen("1", checked(EXERCISES))
    (path, marks), = graded_files([str(tmp_path / "good.py")], table, 60, 1, forks=False)
    assert [mark.points for mark in marks] == [5], marks
