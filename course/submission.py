"""A student's file: what is taken of it, what is refused, and how it comes into lrt.

Of the file one function is taken, with what it uses of other functions, methods, constants and
imports at the top of that file that are not in lrt.py. Nothing else of it is run. Three things keep
accidents and jokes from the grades; they are no wall against somebody who means harm:
  - names that no exercise needs, and assignments to what is not the function's own, are refused;
  - the tests compare with methods that were saved before (see support/proof.py);
  - when the tests are done, Watch looks at what the code has done to torch, lrt and the tests.
"""
import ast
import builtins
import functools
import itertools
import math
import os
import stat

import numpy as np
import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import lrt
import test_lrt
from support import proof, tiny
from course.source import definitions, lrt_text, owner_of

MOST_BYTES = 10 ** 6
MODULES = set("torch math functools itertools operator typing collections dataclasses contextlib "
              "copy numpy __future__ lrt".split())

# Names that no exercise needs, as a variable, an attribute, an import, or a text for getattr.
SYSTEM = set("""os sys subprocess importlib builtins inspect gc ctypes pytest test_lrt traceback
    _exit exit quit open input breakpoint eval exec compile modules globals vars setattr delattr
    tb_frame f_back f_locals f_globals f_code gi_frame cr_frame""".split())
FILES = set("""load save loads savez savez_compressed savetxt loadtxt genfromtxt fromfile tofile
    memmap from_file DataSource hub multiprocessing distributed cpp_extension ctypeslib""".split())
TORCH = set("""_C as_subclass _make_subclass TorchFunctionMode TorchDispatchMode overrides library
    set_default_dtype set_default_device set_default_tensor_type""".split())
FORBIDDEN = SYSTEM | FILES | TORCH
# What has variables of its own
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp,
          ast.SetComp, ast.DictComp, ast.GeneratorExp)
ALLOWED_SPECIAL = {"__init__", "__call__", "__len__", "__getitem__", "__name__"}


class Refused(Exception):
    """Nothing of the file is run. The message is one line, and all that there is to say."""


def read(path):
    """The text of a file that may be anything."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):          # a pipe or a device may never end
            raise Refused("is not a plain file")
        if os.path.getsize(path) > MOST_BYTES:
            raise Refused(f"the file has {os.path.getsize(path):,} bytes: too many")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as e:
        raise Refused(f"cannot be read: {e.strerror or type(e).__name__}")
    except ValueError as e:                 # a name with a zero byte
        raise Refused(f"cannot be read: {e}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused("is not text in UTF-8")
    if not text.strip():
        raise Refused("the file is empty")
    return text


def parse(text):
    """definitions() of a text that may not be Python."""
    try:
        return definitions(text)
    except SyntaxError as e:
        where = f"syntax error in line {e.lineno}" if e.lineno else "is not Python"
        raise Refused(f"{where}: {e.msg}")
    except (RecursionError, MemoryError):
        raise Refused("is not Python that can be read: it is nested too deeply")
    except ValueError as e:
        raise Refused(f"is not Python: {e or type(e).__name__}")


def part_of(path, function):
    """[(qualified name, node)] of what is taken of a student's file. Raises Refused."""
    found = parse(read(path))
    node = found.get(function)
    if isinstance(node, ast.AsyncFunctionDef):
        raise Refused(f"{function} is an async def: write it as a plain def")
    if node is not None and not isinstance(node, ast.FunctionDef):
        raise Refused(f"there is no function {function}: the name is something else than a def, "
                      f"line {node.lineno}")
    if node is None:
        raise Refused(f"there is no function {function} at the top of the file or in its class")
    ours, wanted, taken = definitions(lrt_text()), [function], {}
    while wanted:
        part = wanted.pop()
        if part not in taken:
            taken[part] = found[part]
            refuse_what_no_exercise_needs(found[part])
            used = names_used(found[part])
            wanted += [name for name in used if name in found and name not in ours]
    return sorted(taken.items(), key=lambda item: item[1].lineno)


def names_used(tree):
    """Names that a part of a file may mean by what it says: x, and the x of self.x as a method."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.append(node.id)
        if isinstance(node, ast.Attribute):
            names += [f"{owner}.{node.attr}" for owner in ("Cache", "Block", "GPT")]
    return names


# ---- What is refused

def refuse_what_no_exercise_needs(tree):
    """Raises Refused for the first name, import or assignment that is not allowed."""
    own = names_of_its_own(tree)
    variables = own & variables_of(tree)
    asked = [node.func for node in ast.walk(tree)               # in type(x)
             if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords]
    for node in ast.walk(tree):
        line = getattr(node, "lineno", "?")
        for name in names_said_by(node):
            if is_forbidden(name) and not (isinstance(node, ast.Name) and name in variables):
                raise Refused(f"uses {name} (line {line}), which no exercise needs")
        for module in modules_imported_by(node):
            if module.split(".")[0] not in MODULES:
                raise Refused(f"uses {module or '.'} (line {line}), which no exercise needs")
        is_type = isinstance(node, ast.Name) and node.id == "type" and "type" not in variables
        if is_type and node not in asked:
            raise Refused(f"uses type (line {line}) for more than type(x), which no exercise needs")
        if isinstance(node, ast.Global):
            raise Refused(f"uses global (line {line}), which no exercise needs")
        if isinstance(node, ast.ClassDef) and any(base_name(base) in ("Tensor", "Parameter")
                                                  for base in node.bases):
            raise Refused(f"makes a tensor of its own kind (line {line}), which no exercise needs")
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            if root_of(node) not in own:
                raise Refused(f"assigns to {ast.unparse(node):.60} (line {line}): what is torch's, "
                              "lrt's or the tests' may be used, not changed")


def is_forbidden(name):
    special = name.startswith("__") and name.endswith("__") and len(name) > 4
    return name in FORBIDDEN or (special and name not in ALLOWED_SPECIAL)


def names_said_by(node):
    """The names that one node of the tree uses: a variable, an attribute, an import, a text."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
        return [node.value]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [word for alias in node.names for word in alias.name.split(".")]
    return []


def modules_imported_by(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "." if not node.level else "."]
    return []


def base_name(node):
    return getattr(node, "attr", getattr(node, "id", ""))


def root_of(node):
    """The variable that an expression like x.y[0].z begins with, or None: f(x).y has none."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def names_of_its_own(tree):
    """Parameters and variables of a function, but for those that only name something from outside,
    like T in T = torch.Tensor."""
    own, assigned = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            plain = node.posonlyargs + node.args
            defaults = [None] * (len(plain) - len(node.defaults)) + node.defaults
            for arg, default in zip(plain + node.kwonlyargs, defaults + node.kw_defaults):
                own.add(arg.arg)
                if default is not None:
                    assigned.append((ast.Name(arg.arg), default))
            own |= {arg.arg for arg in (node.vararg, node.kwarg) if arg}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        if isinstance(node, ast.Assign):
            assigned += [(target, node.value) for target in node.targets]
        if isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value:
            assigned.append((node.target, node.value))
        if isinstance(node, (ast.For, ast.comprehension)):
            assigned.append((node.target, node.iter))
        if isinstance(node, ast.withitem) and node.optional_vars:
            assigned.append((node.optional_vars, node.context_expr))
    own -= imported_in(tree)
    for _ in range(len(assigned)):          # names of names of names ...
        before = len(own)
        for target, value in assigned:
            if names_something_else(value, own):
                own -= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)
                        and not isinstance(name.ctx, ast.Load)}
        if len(own) == before:
            break
    return own


def variables_of(function):
    """Parameters and variables of a function itself, not of functions in it. In all of it such a
    name means the variable, whatever else it is the name of."""
    if not isinstance(function, ast.FunctionDef):
        return set()
    given = function.args
    names = {arg.arg for arg in given.posonlyargs + given.args + given.kwonlyargs}
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, SCOPES):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return names


def imported_in(tree):
    return {(alias.asname or alias.name).split(".")[0] for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}


def names_something_else(value, own):
    """Whether an expression may be something from outside itself: torch.Tensor, [torch.Tensor][0].
    What a call gives is the function's own, as far as can be seen here."""
    new = ast.Call, ast.Constant, ast.BinOp, ast.Compare, ast.Lambda, ast.JoinedStr
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "type":
        return True                         # type(latent) is torch.Tensor
    if isinstance(value, new):
        return False
    if isinstance(value, ast.Name):
        return value.id not in own
    if isinstance(value, (ast.Attribute, ast.Subscript)):
        return names_something_else(value.value, own)
    return any(names_something_else(child, own) for child in ast.iter_child_nodes(value)
               if isinstance(child, ast.expr))


# ---- Into lrt, and what became of everything else

def take_over(path, function):
    """Put a student's function into lrt, in the place of its own. Raises Refused, and whatever the
    code at the top of the file that it uses raises."""
    path = str(path)
    proof.STUDENTS.add(path)
    for part, node in part_of(path, function):
        made = {}
        try:
            code = compile(ast.Module([node], []), path, "exec")
        except (RecursionError, MemoryError):
            raise Refused("is not Python that can be run: it is nested too deeply")
        except (SyntaxError, ValueError) as e:
            raise Refused(f"is not Python: {e}")
        exec(code, vars(lrt), made)
        for key, value in made.items():
            if "." in part:
                setattr(*owner_of(part), value)
            else:
                setattr(lrt, key, value)


class Watch:
    """What is torch's, lrt's and the tests' before a student's code runs, to be looked at after."""
    MODULES = (builtins, math, functools, itertools, np, pytest, torch, torch.autograd, torch.nn,
               torch.nn.functional, torch.nn.init, lrt, test_lrt, proof, tiny)
    CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.nn.Embedding, torch.nn.Dropout,
               torch.nn.Parameter, lrt.GPT, lrt.Block, lrt.Cache, lrt.GPTConfig)

    def __init__(self):
        self.before = {owner: dict(vars(owner)) for owner in self.MODULES + self.CLASSES}
        self.state = self.settings()

    def settings(self):
        return {"the default dtype": torch.get_default_dtype(),
                "whether there are gradients": torch.is_grad_enabled(),
                "inference mode": torch.is_inference_mode_enabled(),
                "what torch's functions are": _get_current_function_mode_stack(),
                "what torch's operations are": _get_current_dispatch_mode_stack()}

    def change(self):
        """What is not as it was, or None. Modules may get new names: torch loads parts when they
        are needed."""
        for owner, before in self.before.items():
            now = vars(owner)
            names = list(before)
            if owner in self.CLASSES:
                names += [name for name in now if name not in before]
            for name in names:
                if now.get(name, self) is not before.get(name, self):
                    return f"{owner.__name__}.{name}"
        now = self.settings()
        for what, before in self.state.items():
            if now[what] != before:
                return what
        return None
