"""This year's variant: other equations, in lrt.py and in all that follows from it.

A variant is what `git diff -U1` writes, course/variants/NAME.diff. Each piece of a diff is found by
its text and not by its line number, so it still fits when other parts of a file have changed. The
known numbers are made again by the variant's own second implementation.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("lrt.py", "test_lrt.py", "course/second.py", "course/right.py", "course/STUDENT.md")


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
    """The texts {"lrt.py": ..., "course/right.py": ...} of a variant; "a,b" is both. Raises
    ValueError."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in FILES}
    diffs = {path.stem: path for path in sorted(ROOT.glob("course/variants/*.diff"))}
    for name in variant.split(",") if variant else []:
        if name not in diffs:
            raise ValueError(f"there is no variant {name!r}, only {', '.join(diffs)}")
        apply(diffs[name].read_text(encoding="utf-8"), texts)
    return texts


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


def write_variant(folder, variant=""):
    """Write lrt.py, test_lrt.py and known.npz of a variant into a folder; returns all texts."""
    texts = edition(variant)
    for path in FILES[:3]:
        write(folder / Path(path).name, texts[path])
    subprocess.run([sys.executable, folder / "second.py"], check=True)      # writes known.npz
    (folder / "second.py").unlink()
    return texts
