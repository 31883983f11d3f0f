"""Fixtures of the tests of the scripts."""
from pathlib import Path

import pytest

import prepare_data
import train
from support.testing import TEXT, SMALL_TASK, SMALL, run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture
def trained(here):
    """text.txt, data/mine, data/parity, and the runs `run` and `task`."""
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=task") == 0
