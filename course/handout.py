"""What a class gets, written into a new folder:  python course/handout.py DIR

lrt.py without the bodies of the exercises in the table (course/exercises.py), the tests, the
scripts, and a README made from course/STUDENT.md.
"""
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
from course.exercises import (EXERCISES, GIVEN_UP_TO, STAGES, asked, checked, in_words,
                              points_of)
from course.source import definitions, lrt_text
from support.files import read_text
from support.script import Unusable, say, script

UNCHANGED = ("test_lrt.py", "train.py", "sample.py", "prepare_data.py", "requirements.txt",
             "LICENSE")
COUNTS = "no one two three four five six seven eight nine".split()


def blanked(table):
    """The text of lrt.py with the bodies of exercises taken out, and the lines taken out.
    Signatures and docstrings stay, and what GIVEN_UP_TO says."""
    text = lrt_text()
    lines, found, removed = text.splitlines(), definitions(text), []
    for exercise in sorted(table.values(), key=lambda e: -found[e.function].lineno):
        node = found[exercise.function]
        indentation = " " * node.body[0].col_offset
        first, last = node.body[1].lineno - 1, node.end_lineno      # body[0] is the docstring
        if exercise.function in GIVEN_UP_TO:
            given = GIVEN_UP_TO[exercise.function]
            first = next(i for i in range(first, last) if given in lines[i]) + 1
        while lines[first - 1].strip().startswith("#"):
            first -= 1
        removed += lines[first:last]
        message = f"exercise {exercise.number}: {exercise.what}"
        lines[first:last] = [f'{indentation}raise NotImplementedError("{message}")']
    return "\n".join(lines) + "\n", removed


# ---- The students' page

def students_page(table, template=None):
    """STUDENT.md with what the table says. A part that begins <!-- only 9 --> is there if exercise
    9 is; <!-- question 2 --> is a written question, there if it is asked; <!-- after 5 --> is what
    can be done with exercises up to 5: see stages_text. Raises Unusable for another kind."""
    if template is None:
        template = read_text(HERE / "course" / "STUDENT.md")
    head, *parts = re.split(r"^<!-- (.*?) -->\n", template, flags=re.MULTILINE)
    body, after = [("all", head)], {}
    for what, text in zip(parts[::2], parts[1::2]):
        kind, _, number = what.partition(" ")
        if kind == "after" and number.isdecimal():
            after[int(number)] = text.strip("\n")
        elif what in ("all", "stages"):
            body.append((what, text))
        elif kind == "only" and number.isdecimal():
            body.append(("all", text if int(number) in table else ""))
        elif kind == "question" and number.isdecimal():
            body.append(("all", question_text(int(number), text, table)))
        else:
            raise Unusable(f"STUDENT.md: there is no part <!-- {what} -->")
    page = ""
    for what, text in body:
        page += stages_text(table, after) + "\n\n" if what == "stages" else text
    hours = round(sum(exercise.minutes for exercise in table.values()) / 60)
    several = len({exercise.stage for exercise in table.values()}) > 1
    words = {"table": table_text(table), "functions": counted(len(table), "function"),
             "points": str(points_of(table)), "answers": str(points_of(asked(table))),
             "first": str(min(table)), "last": str(max(table)),
             "hours": counted(max(1, hours), "hour"),
             "days": "; each stage on its own day" if several else ""}
    for name, text in words.items():
        page = page.replace("{" + name + "}", text)
    return re.sub(r"\n{3,}", "\n\n", page)


def counted(n, what):
    """"one function", "eight functions"."""
    number = COUNTS[n] if n < len(COUNTS) else str(n)
    return f"{number} {what}" + ("" if n == 1 else "s")


def question_text(number, text, table):
    """A written question with its points, and the stage that it is due with; "" if not asked."""
    if number not in asked(table):
        return ""
    question = asked(table)[number]
    stages = [e.stage for n, e in table.items() if n in question.about]
    due = f", with stage {max(stages)}" if stages else ""
    return f"**Question {number}** ({question.points} points{due}).\n{text}"


def table_text(table):
    return "\n".join(f"| {n} | `{e.function}` | {e.points} | {e.minutes} min | {e.what} |"
                     for n, e in table.items())


def stages_text(table, after):
    """Heading, hints and commands of each stage that has an exercise. after: {5: what can be done
    when 5 is written, 7: ...}: it comes at the end of the stage of the last exercise up to 5, and
    for 7, of 6 and 7. If there is none it is left out: the class has nothing to try there."""
    sections, done = [], 0
    before = dict(zip(sorted(after), [0, *sorted(after)]))
    after = {number: text for number, text in after.items()
             if any(before[number] < n <= number for n in table)}
    for stage in sorted({exercise.stage for exercise in table.values()}):
        those = {n: e for n, e in table.items() if e.stage == stage}
        later = [n for n in table if n > max(those)]
        end = min(later) if later else max(max(after, default=0), max(table)) + 1
        name = "exercise" if len(those) == 1 else "exercises"
        lines = [f"### Stage {stage}, {name} {in_words(those)}: {STAGES[stage]}", ""]
        lines += [f"- {n}: {e.hint}" for n, e in those.items()]
        for number in sorted(after):
            if done < number < end:
                lines += ["", after[number]]
        sections.append("\n".join(lines))
        done = end - 1
    return "\n\n".join(sections)


# ---- The folder

def handout(folder, table=None):
    """Writes what a class gets into a folder that is new or empty. Raises Unusable if it is not."""
    table = checked(EXERCISES) if table is None else table
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Unusable(f"{folder} is not an empty folder")
    page, (code, _) = students_page(table), blanked(table)
    (folder / "support").mkdir(parents=True, exist_ok=True)
    write(folder / "lrt.py", code)
    write(folder / "README.md", page)
    for name in UNCHANGED:
        write(folder / name, read_text(HERE / name))
    for path in sorted((HERE / "support").glob("*.py")):
        if not path.name.startswith("test") and path.name != "conftest.py":
            write(folder / "support" / path.name, read_text(path))
    (folder / "assets").mkdir(exist_ok=True)
    write(folder / "assets" / "plot.py", read_text(HERE / "assets" / "plot.py"))
    shutil.copyfile(HERE / "course" / "known.npz", folder / "known.npz")


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


@script
def main(argv):
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or argv[0].startswith("-"):
        raise Unusable("one folder is needed: python course/handout.py DIR")
    table = checked(EXERCISES)
    handout(argv[0], table)
    say(f"wrote {argv[0]}: exercises {in_words(table)}, {points_of(table)} points")


if __name__ == "__main__":
    main()
