"""lrt.py as text: where each function is, and how one is put in the place of another."""
import ast
import functools
import inspect
import textwrap
from pathlib import Path

import lrt

HERE = Path(__file__).resolve().parent.parent


def lrt_text():
    return (HERE / "lrt.py").read_text(encoding="utf-8")


def definitions(source):
    """{"shift_right": node, "GPT.refine": node, ...}: all that is defined or imported at the top of
    a file, and the methods of classes there. What is defined twice is there as Python takes it: the
    last one."""
    found = {}
    for node in ast.parse(source).body:
        for name in names_bound_by(node):
            found[name] = node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found[f"{node.name}.{inner.name}"] = inner
    return found


def names_bound_by(node):
    """The names that a statement at the top of a file gives a meaning to."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target)
                if isinstance(name, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def owner_of(function):
    """"GPT.refine" -> (the class or module that it belongs to, its name there)."""
    *path, name = function.split(".")
    return functools.reduce(getattr, path, lrt), name


def text_of(function):
    """The text of a function of lrt.py, with no indentation before its def."""
    owner, name = owner_of(function)
    return textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))


def defined(source, name):
    """A function from its text, with the names of lrt.py."""
    made = {}
    exec(compile(textwrap.dedent(source), "<changed>", "exec"), vars(lrt), made)
    return made[name]
