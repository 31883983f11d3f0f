"""README: what it says is what works."""
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest

import prepare_data
import sample
import train
from support import options
from support.testing import HERE, SMALL, SMALL_TASK, TEXT, run

RESULTS = HERE / "assets" / "results.md"
SCRIPTS = {"train.py": train, "sample.py": sample, "prepare_data.py": prepare_data}


def readme():
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def commands():
    """Indented lines that begin with a program, without their remark, which two spaces set off."""
    lines = re.findall(r"^    ((?:python|pip|torchrun) .*)", readme(), re.MULTILINE)
    return [re.split(r" {2,}", line.strip())[0] for line in lines]


def words_of(command):
    """The script that a command runs, or "pytest", and its arguments."""
    words = shlex.split(command.split("&&")[-1])
    for n, word in enumerate(words):
        if word.endswith(".py") or word == "pytest":
            return word, words[n + 1:]
    raise ValueError(f"no script in {command}")


def python_block():
    """The lines of "From Python"."""
    block = re.search(r"^    import torch\n(?:    .*\n|\n(?=    ))*", readme(), re.MULTILINE)
    return textwrap.dedent(block[0])


@pytest.mark.parametrize("command", commands())
def test_commands_have_scripts_and_flags_that_exist(command):
    script, args = words_of(command)
    assert script == "pytest" or (HERE / script).exists()
    if script == "pytest" or "-h" in args:
        return
    if script in SCRIPTS:
        options.parse(SCRIPTS[script].Settings, "", args)       # raises Unusable if not
        return
    source = (HERE / script).read_text(encoding="utf-8")
    for arg in args:
        flag = arg.split("=")[0]
        if flag.startswith("--"):
            assert re.search(rf"\b{flag.lstrip('-')}: |\"{flag}", source), flag


@pytest.fixture
def stand_ins(here, monkeypatch):
    """Small ones of the texts, data and runs that the README's quick commands need."""
    text = TEXT + "ROMEO: what?\n" * 9
    Path("text.txt").write_text(text, encoding="utf-8", newline="\n")
    monkeypatch.setattr(prepare_data, "download", lambda: prepare_data.short_text("test", TEXT))
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=out") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=out-parity") == 0
    shutil.copytree("out-parity", "out-plain-parity")
    Path("bits.txt").write_text("1 0 1 1 " * 50, encoding="utf-8")


def shortened(arg):
    """An argument for a stand-in: the file that there is, a text of no great length."""
    if arg.endswith("=FILE"):
        return arg.replace("FILE", "text.txt")
    if arg.startswith("--max_new_tokens"):
        return "--max_new_tokens=30"
    return arg


def is_quick(script, args):
    return script in ("sample.py", "prepare_data.py") or "-h" in args


@pytest.mark.skipif(not readme(), reason="a copy without a README")
def test_quick_commands_and_the_python_block_run(stand_ins, capsys):
    """Those that take no more than a few seconds, in their order."""
    quick = [words for words in map(words_of, commands()) if is_quick(*words)]
    assert len(quick) >= 6
    for script, args in quick:
        status = run(SCRIPTS[script], *map(shortened, args))
        assert status == 0, (script, args, capsys.readouterr().err)
    capsys.readouterr()
    exec(compile(python_block(), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "torch.Size([1, 16])" in said and len(said) > 80


@pytest.mark.skipif(not RESULTS.exists(), reason="a copy without the results")
def test_losses_are_those_of_the_results():
    """Each mean loss ± deviation that the README gives stands in assets/results.md."""
    losses = re.findall(r"\d\.\d{4} ± \d\.\d{4}", readme().replace("**", ""))
    assert len(losses) >= 5
    written = RESULTS.read_text(encoding="utf-8")
    assert [loss for loss in losses if loss not in written] == []
