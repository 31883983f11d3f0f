"""README: what it says is what works."""
import re
import shlex
import textwrap
from pathlib import Path

import pytest

import prepare_data
import sample
import train
from support import options
from support.testing import HERE, TEXT, SMALL_TASK, SMALL, run


README = (HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else ""


# Indented lines that begin with a program: without their remark, which two spaces set off.
COMMANDS = [re.split(r" {2,}", line.strip())[0] for line in re.findall(r"^    (?:python|pip|torchrun) .*", README, re.M)]


SETTINGS = {"train.py": train, "sample.py": sample, "prepare_data.py": prepare_data}


def words_of(command):
    """The script that a command of the README runs, and its arguments."""
    words = shlex.split(command.split("&&")[-1])
    script = next(n for n, word in enumerate(words) if word.endswith(".py") or word == "pytest")
    return words[script], words[script + 1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_have_scripts_and_flags_that_exist(command):
    script, args = words_of(command)
    assert script == "pytest" or (HERE / script).exists()
    flags = {arg.split("=")[0].lstrip("-") for arg in args if arg.startswith("--")}
    if script in SETTINGS and "-h" not in args:
        module = SETTINGS[script]
        options.parse(module.Settings, "", args)               # ends with an error if not
    elif script != "pytest":
        source = (HERE / script).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{flag}: |\"--{flag}", source) for flag in flags), flags


def test_readme_quick_commands_and_python_block_run(here, capsys, monkeypatch):
    """What takes no more than a few seconds, in its order, on small stand-ins of the runs that it needs."""
    Path("text.txt").write_text(TEXT + "ROMEO: what?\n" * 9, encoding="utf-8", newline="\n")
    monkeypatch.setattr(prepare_data, "download", lambda: prepare_data.short_text("test", TEXT))
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=out") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=out-parity") == 0
    Path("bits.txt").write_text("1 0 1 1 " * 50)
    quick = [words_of(command) for command in COMMANDS]
    quick = [(script, args) for script, args in quick if script in ("sample.py", "prepare_data.py") or "-h" in args]
    for script, args in quick:
        args = [arg.replace("FILE", "text.txt") if arg == "--input=FILE" else arg for arg in args]
        args = ["--max_new_tokens=30" if arg.startswith("--max_new_tokens") else arg for arg in args]
        assert run(SETTINGS[script], *args) == 0, (script, args, capsys.readouterr().err)
    assert len(quick) >= 6
    block = textwrap.dedent("\n".join(re.search(r"^    import torch\n(?:    .*\n|\n(?=    ))*", README, re.M)[0].splitlines()))
    capsys.readouterr()
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "torch.Size([1, 16])" in said and len(said) > 80
