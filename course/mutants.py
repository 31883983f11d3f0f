"""Wrong versions of lrt.py, and which tests reject them:  python course/mutants.py [FUNCTION]

The versions are in wrong_versions.txt, which says how they are written. One of an exercise must be
rejected by the tests of its own exercise.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from course.cases import cases
from course.exercises import NUMBERS
from course.source import defined, owner_of, text_of
from support.script import Unusable, say, script
from support.tiny import KNOWN, known

WRONG_VERSIONS = Path(__file__).resolve().parent / "wrong_versions.txt"


@dataclass
class Wrong:
    function: str
    what: str           # is wrong
    changes: list       # [(lines taken out, lines that come in their place)]

    @property
    def number(self):
        """Of its exercise; 0 for what is given."""
        return NUMBERS.get(self.function, 0)

    def text(self):
        """The function's text, made wrong. Raises Unusable if it is no longer what it was."""
        text = text_of(self.function)
        for old, new in self.changes:
            before, after = "\n".join(old) + "\n", "\n".join([*new, ""])
            if ("\n" + text).count("\n" + before) != 1:
                raise Unusable(f"{self.function}: {self.what}: the lines that begin with "
                               f"{old[0]!r} are not there once")
            text = ("\n" + text).replace("\n" + before, "\n" + after)[1:]
        return text


def wrong_versions(text=None):
    """All of a text in the format of wrong_versions.txt. Raises Unusable for what is not."""
    if text is None:
        text = WRONG_VERSIONS.read_text(encoding="utf-8")
    found, version, last = [], None, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        kind, rest, here = line[:1], line[2:], f"wrong versions, line {number}"
        if kind == "":
            version = None
        elif version is None:
            function, colon, what = line.partition(": ")
            if not colon or kind in "+-":
                raise Unusable(f"{here}: a block begins FUNCTION: what is wrong")
            version = Wrong(function, what, [])
            found.append(version)
        elif kind == "-":
            if last != "-":
                version.changes.append(([], []))
            version.changes[-1][0].append(rest)
        elif kind == "+" and version.changes:
            version.changes[-1][1].append(rest)
        else:
            raise Unusable(f"{here}: expected '- ' or '+ ', or an empty line")
        last = kind
    return found


def failures(function, new, quick=False, first_only=True):
    """[(name of a test, what it says)] of those that fail with a function of lrt.py replaced. Of an
    exercise its own tests are run, of what is given all. quick: two parameters of each."""
    for which in KNOWN:
        known(*which)                           # now, while all is right
    number, failed = NUMBERS.get(function, 0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*owner_of(function), new)
        for n in [number] if number else sorted({0, *NUMBERS.values()}):
            for name, test in cases(n, quick):
                try:
                    test()
                except pytest.fail.Exception as e:
                    failed.append((name, str(e)))
                    if first_only:
                        return failed
    return failed


@script
def main(argv):
    argv = sys.argv[1:] if argv is None else argv
    versions = [v for v in wrong_versions() if v.function in argv or not argv]
    if not versions:
        raise Unusable(f"there is no wrong version of {' '.join(argv)}")
    survived = 0
    for version in versions:
        new = defined(version.text(), version.function.split(".")[-1])
        failed = failures(version.function, new)
        if failed:
            say(f"rejected  {version.function}: {version.what}\n          {': '.join(failed[0])}")
        else:
            say(f"SURVIVED  {version.function}: {version.what}")
            survived += 1
    say(f"{survived} of {len(versions)} survived")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
