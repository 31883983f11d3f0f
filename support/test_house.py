"""The house: what imports what, and that it runs where we say."""
import ast
import sys

import pytest

from support.testing import HERE

MODULES = {path.stem for path in HERE.glob("*.py")} | {"support", "course", "assets"}

# What each may import of this project. Arrows point down only.
BELOW = {
    "lrt.py": set(),
    "support": {"lrt", "support"},
    "prepare_data.py": {"lrt", "support"},
    "sample.py": {"lrt", "support", "prepare_data"},
    "train.py": {"lrt", "support", "prepare_data", "sample"},
}


def sources(folder):
    """The files of a folder that are no tests."""
    helpers = ("conftest.py", "testing.py")
    return [path for path in sorted((HERE / folder).glob("*.py"))
            if not path.name.startswith("test_") and path.name not in helpers]


def imported(path):
    """The first part of the name of every module that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module.split(".")[0])
    return names


def places():
    """(file, what it may import of this project)"""
    for place, below in BELOW.items():
        files = [HERE / place] if place.endswith(".py") else sources(place)
        for path in files:
            yield pytest.param(path, below, id=path.relative_to(HERE).as_posix())


@pytest.mark.parametrize("path, below", list(places()))
def test_arrows_point_down(path, below):
    assert imported(path) & MODULES <= below


def all_sources():
    for folder in (".", "support", "course", "assets"):
        yield from sorted((HERE / folder).glob("*.py"))


def name_of(path):
    return path.relative_to(HERE).as_posix()


@pytest.mark.parametrize("path", list(all_sources()), ids=name_of)
def test_nothing_else_is_needed_and_nothing_newer_than_python_3_10(path):
    """torch, numpy, tiktoken, pytest for tests, and matplotlib in assets/ alone."""
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    of_all = {"torch", "numpy", "tiktoken", "fcntl", "msvcrt"}
    others = imported(path) - MODULES - set(sys.stdlib_module_names) - of_all
    if path.name.startswith("test_") or path.name in ("conftest.py", "proof.py", "testing.py"):
        others.discard("pytest")
    if path.parent.name == "course":                            # grading is testing
        others.discard("pytest")
    if path.parent.name == "assets":
        others.discard("matplotlib")
    own = {neighbour.stem for neighbour in path.parent.glob("*.py")}       # a script's own folder
    assert others <= own, others
