"""assets/results.md and README.md say what the runs in assets/results.jsonl say."""
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "assets")]
import plot
import results
import train
from prepare_data import UsageError

MARKDOWN = (ROOT / "assets" / "results.md").read_text(encoding="utf-8")


def test_tables_of_results_md_are_made_from_the_runs():
    assert results.written(MARKDOWN) == MARKDOWN, "python assets/results.py writes them again"
    assert re.findall(r"<!-- (\w+) -->\n\S", MARKDOWN) == ["codes", *results.TABLES, "speed"]


def test_readme_has_no_number_of_its_own():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number in re.findall(r"\d\.\d{4} ± \d\.\d{4}", readme):
        assert number in MARKDOWN, f"README.md has {number}, which is not in assets/results.md"


def test_flags_have_one_form():
    assert results.canonical("--max_iters=9 --lrt_subsets=2 --lrt=1 --seed=3 --out_dir=x") \
        == results.canonical("--lrt=1 --learning_rate=0.016 --max_iters=9") \
        == "--lrt=1 --max_iters=9"
    assert results.canonical("--dataset=parity") == "--dataset=parity --max_iters=150"
    for table in results.TABLES.values():
        for flags in results.flags_of(table):
            canonical = results.canonical(flags)
            assert results.canonical(canonical) == canonical


def test_a_run_is_added_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--dataset=parity --n_layer=1 --n_embd=8 --max_iters=2 --eval_interval=1 "
             "--eval_tokens=64 --batch_size=2 --block_size=2")
    before = results.read()
    command, = results.missing(before, {"a run": flags}, 1)
    train.main([*command.split()[2:], "--eval_interval=1", "--eval_tokens=64", "--out_dir=out"])
    new = results.row_of("out")
    log = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    assert new["evaluations"] == log and new["exact"] == min(row["exact"] for row in log)
    assert (new["steps"], new["seed"], new["final"]) == (2, 1, log[-1]["exact"])

    rows = results.with_run(before, new)
    assert rows == [*before, new] and results.with_run(rows, new) == rows
    assert not results.missing(rows, {"a run": flags}, 1)
    assert results.missing(rows, {"a run": flags}, 1337)
    other = new | {"flags": "--max_iters=1750", "text": "0" * 8}
    with pytest.raises(UsageError, match="another text named shakespeare"):
        results.with_run(rows, other)


def test_a_run_that_is_not_finished_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        results.row_of("out")


def test_kinds_of_characters():
    text = "long = f('x1')\n    long.don't = sh\n" + 9 * " " + "long\n"
    kinds = plot.kinds_of(text, window=20)
    assert kinds[10] == "other letters" and kinds[11] == "digits" and kinds[9] == "other"
    assert kinds[12] == "closing quotes" and kinds[13] == "closing brackets"
    assert kinds[14] == "line breaks" and set(kinds[15:19]) == {"indentation"}
    assert set(kinds[19:23]) == {plot.NEAR} and set(kinds[-5:-1]) == {plot.FAR}
    assert kinds[text.index("'t")] == "other"           # an apostrophe closes nothing
