"""Write what a class gets into a new folder:

    python course/handout.py DIR [--variant=NAME] [--exercises=1-5]

lrt.py without the bodies of the exercises, its tests, the scripts, and the students' page. An
exercise that is not chosen is given, complete; with --exercises=none, all are.
"""
import argparse
import ast
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from variants import ROOT, write, write_variant

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
UNCHANGED = ("train.py", "sample.py", "prepare_data.py", "requirements.txt", "LICENSE",
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


def handout(folder, variant="", numbers=tuple(EXERCISES)):
    folder = Path(folder)
    folder.mkdir(parents=True)
    texts = write_variant(folder, variant)
    write(folder / "lrt.py", blanked(texts["lrt.py"], numbers))
    write(folder / "README.md", texts["course/STUDENT.md"])
    write(folder / "pytest.ini", "[pytest]\n")      # so that none of a folder above counts
    (folder / "assets").mkdir()
    for name in UNCHANGED:
        shutil.copyfile(ROOT / name, folder / name)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="a new folder")
    parser.add_argument("--variant", default="", metavar="NAME")
    parser.add_argument("--exercises", type=chosen, default=list(EXERCISES), metavar="1-5")
    args = parser.parse_args(argv)
    try:
        handout(args.folder, args.variant, args.exercises)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
