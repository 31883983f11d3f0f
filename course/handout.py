"""Write what a class gets into a new folder:

    python course/handout.py DIR [--variant=NAME] [--exercises=1-5]

lrt.py without the bodies of the exercises, its tests, the scripts, and the students' page. An
exercise that is not chosen is given, complete; with --exercises=none, all are.

A variant has other equations, in lrt.py and in all that follows from it. It is what `git diff -U1`
writes, course/variants/NAME.diff. Each piece of a diff is found by its text and not by its line
number, so it still fits when other parts of a file have changed. The known numbers are made again
by the variant's own second implementation.
"""
import argparse
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = {       # number: (points, functions); tests are named by number, test_ex2_...
    1: (5, ["shift_right"]),
    2: (7, ["Chunk.finish"]),
    3: (12, ["Attention.qkv"]),
    4: (13, ["GPT.layers"]),
    5: (8, ["GPT.step"]),
    6: (13, ["GPT.sweep"]),
    7: (12, ["GPT.forward_parallel"]),
    8: (10, ["GPT.prefill"]),
    9: (12, ["GPT.forward_hops", "implicit_gradient"]),         # a bonus
}
VARIED = ("lrt.py", "test_lrt.py", "course/second.py", "course/right.py", "course/STUDENT.md")
COPIED = ("train.py", "sample.py", "prepare_data.py", "requirements.txt", "LICENSE",
          "assets/dial.png")


def chosen(text):
    """The numbers of "1-5" or "1,3,6-8", in order. Raises ValueError."""
    numbers = set()
    for part in text.split(",") if text != "none" else []:
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    if not numbers <= set(EXERCISES):
        raise ValueError(f"exercises {text}: there are 1 to {max(EXERCISES)}")
    return sorted(numbers)


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


# ---- Variants


def apply(diff, texts):
    """Raises ValueError unless the old lines of each piece are there exactly once."""
    for part in re.split(r"^diff --git .*\n", diff, flags=re.M)[1:]:
        path = re.search(r"^\+\+\+ b/(.*)$", part, re.M)[1]
        for piece in re.split(r"^@@ .*\n", part, flags=re.M)[1:]:
            lines = piece.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            if texts[path].count(old) != 1:
                raise ValueError(f"{path}: this is there {texts[path].count(old)} times, not once:"
                                 f"\n{old}")
            texts[path] = texts[path].replace(old, new)


def edition(variant=""):
    """The texts of a variant, {"lrt.py": ..., "course/right.py": ...}; "a,b" combines two. Raises
    ValueError."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in VARIED}
    diffs = {path.stem: path for path in sorted(ROOT.glob("course/variants/*.diff"))}
    for name in variant.split(",") if variant else []:
        if name not in diffs:
            raise ValueError(f"there is no variant {name!r}, only {', '.join(diffs)}")
        apply(diffs[name].read_text(encoding="utf-8"), texts)
    return texts


def write_tests(folder, texts):
    """Write lrt.py, test_lrt.py and known.npz of an edition into a folder."""
    for path in ("lrt.py", "test_lrt.py", "course/second.py"):
        write(folder / Path(path).name, texts[path])
    subprocess.run([sys.executable, folder / "second.py"], check=True)      # writes known.npz
    (folder / "second.py").unlink()


# ---- The handout


def definitions(tree):
    """{"shift_right": node, "GPT.sweep": node, ...}: functions of a module, methods of classes."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": inner for inner in node.body
                      if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = node
    return found


def blanked(text, numbers):
    """lrt.py without the bodies of these exercises; signatures and docstrings stay."""
    functions = {name: n for n in numbers for name in EXERCISES[n][1]}
    lines, found = text.splitlines(), definitions(ast.parse(text))
    for name in sorted(functions, key=lambda name: -found[name].lineno):    # from the end
        body = found[name].body
        first, last = body[0].end_lineno, body[-1].end_lineno   # body[0] is the docstring
        what = f"exercise {functions[name]}: {name} is not written yet"
        lines[first:last] = [f'{" " * body[0].col_offset}raise NotImplementedError("{what}")']
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    parser.add_argument("--variant", default="", metavar="NAME")
    parser.add_argument("--exercises", type=chosen, default=list(EXERCISES), metavar="1-5")
    args = parser.parse_args(argv)
    try:
        texts = edition(args.variant)
        args.folder.mkdir(parents=True)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    write_tests(args.folder, texts)
    write(args.folder / "lrt.py", blanked(texts["lrt.py"], args.exercises))
    write(args.folder / "README.md", texts["course/STUDENT.md"])
    write(args.folder / "pytest.ini", "[pytest]\n")     # so that none of a folder above counts
    (args.folder / "assets").mkdir()
    for name in COPIED:
        shutil.copyfile(ROOT / name, args.folder / name)


if __name__ == "__main__":
    main()
