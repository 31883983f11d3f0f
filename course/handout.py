"""What a class gets, written into a new folder:  python course/handout.py DIR"""
import ast
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
from course.exercises import EXERCISES, KEPT


def definitions(source):
    """{"shift_right": node, "GPT.refine": node, ...}: all that is defined or imported at the top, and in
    classes there."""
    found = {}
    for node in ast.parse(source).body:
        names = [getattr(node, "name", "")]
        names += [(a.asname or a.name).split(".")[0] for a in getattr(node, "names", [])]
        for name in names + [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]:
            found[name] = node
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef):
                found[f"{node.name}.{inner.name}"] = inner
    return found


def blanked(source):
    """lrt.py with the bodies of the exercises taken out, and the lines taken out. Signatures and docstrings
    stay."""
    lines, found, removed = source.splitlines(), definitions(source), []
    for n, (name, _, _, what) in sorted(enumerate(EXERCISES, 1), key=lambda e: -found[e[1][0]].lineno):
        first, last = found[name].body[1].lineno - 1, found[name].end_lineno            # body[0]: docstring
        if name in KEPT:
            first = next(i for i in range(first, last) if KEPT[name] in lines[i]) + 1
        while lines[first - 1].strip().startswith("#"):
            first -= 1
        removed += lines[first:last]
        lines[first:last] = [" " * found[name].body[0].col_offset
                             + f'raise NotImplementedError("exercise {n}: {what}")']
    return "\n".join(lines) + "\n", removed


def handout(folder):
    """Writes what a class gets into a folder that is new or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"error: {folder} is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (folder / name).write_text(text, encoding="utf-8", newline="\n")
    write("lrt.py", blanked((HERE / "lrt.py").read_text(encoding="utf-8"))[0])
    write("test_lrt.py", (HERE / "test_lrt.py").read_text(encoding="utf-8"))
    table = "\n".join(f"| {n} | `{name}` | {points} | {minutes} min | {what} |"
                      for n, (name, points, minutes, what) in enumerate(EXERCISES, 1))
    readme = (HERE / "course" / "STUDENT.md").read_text(encoding="utf-8")
    write("README.md", readme.replace("{exercises}", table))
    for name in ("train.py", "sample.py", "prepare_data.py", "requirements.txt", "LICENSE"):
        write(name, (HERE / name).read_text(encoding="utf-8"))
    (folder / "support").mkdir()
    for path in (HERE / "support").glob("*.py"):
        if not path.name.startswith("test") and path.name != "conftest.py":
            write(f"support/{path.name}", path.read_text(encoding="utf-8"))
    shutil.copy(HERE / "course" / "known.npz", folder / "known.npz")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    handout(sys.argv[1])
