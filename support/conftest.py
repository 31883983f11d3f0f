"""Fixtures of the tests of the scripts."""
import os
import shutil
import signal
from pathlib import Path

import pytest

import prepare_data
import train
from support.testing import TEXT, SMALL_TASK, SMALL, run


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Who starts the tests in the background may ignore Ctrl-C for them."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with data/mine, data/parity, and the runs `run` and `task`: made once."""
    folder, before = tmp_path_factory.mktemp("runs"), os.getcwd()
    os.chdir(folder)
    try:
        Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
        prepare_data.prepare("mine", "char", "text.txt")
        prepare_data.prepare("parity", length=8, rows=120)
        assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
        assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=task") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def trained(here, runs):
    """A copy of them, and text.txt, for a test to do with what it likes."""
    shutil.copytree(runs, here, dirs_exist_ok=True)
