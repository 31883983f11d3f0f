"""assets/results.md and README.md say what the runs in assets/results.jsonl say."""
import json
import re
import shutil
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


def test_results_md_is_made_from_the_runs():
    assert results.page() == MARKDOWN, "python assets/results.py writes it again"


def test_readme_has_no_number_of_its_own():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number in re.findall(r"\d\.\d{4} ± \d\.\d{4}", readme):
        assert number in MARKDOWN, f"README.md has {number}, which is not in assets/results.md"


def test_flags_have_one_form():
    assert results.canonical("--max_iters=9 --lrt_subsets=2 --lrt=1 --seed=3 --out_dir=x") \
        == results.canonical("--lrt=1 --learning_rate=0.016 --max_iters=9") \
        == "--lrt=1 --max_iters=9"
    assert results.canonical("--dataset=parity") == "--dataset=parity --max_iters=150"
    for _, _, runs in results.TABLES.values():
        for flags in results.flags_of(runs):
            canonical = results.canonical(flags)
            assert results.canonical(canonical) == canonical


def test_a_run_is_added_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results.jsonl"
    shutil.copy(ROOT / "assets" / "results.jsonl", path)
    before = results.read(path)
    flags = ("--dataset=parity --n_layer=1 --n_embd=8 --max_iters=2 --eval_interval=1 "
             "--eval_tokens=64 --batch_size=2 --block_size=2")
    train.main(flags.split())
    results.add(path, "out")
    results.add(path, "out")
    new = results.read(path)
    log = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    assert new[:-1] == before
    assert new[-1]["evaluations"] == log and new[-1]["exact"] == min(row["exact"] for row in log)
    assert (new[-1]["steps"], new[-1]["seed"], new[-1]["final"]) == (2, 1337, log[-1]["exact"])

    longer = flags.replace("max_iters=2", "max_iters=3")
    monkeypatch.setitem(results.TABLES, "tiny", ("", "", {"a run": longer}))
    (folder, missing), = results.missing(path, "tiny", [1337])
    train.main([*missing.split(), "--eval_interval=3"])
    results.add(path, folder)
    assert not results.missing(path, "tiny", [1337])


def test_a_run_that_is_not_finished_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint"):
        results.row_of("out")


def test_kinds_of_characters():
    text = "long = f('x1')\n    long.don't = sh\n" + 9 * " " + "long\n"
    kinds = [plot.KINDS[kind] for kind in plot.kinds_of(text, window=20)]
    assert {kinds[i] for i in (10, 12, 13)} == {"other letters", "closing brackets and quotes"}
    assert kinds[9] == "other" and kinds[11] == "digits" and kinds[14] == "line breaks"
    assert set(kinds[15:19]) == {"indentation"}
    assert set(kinds[19:23]) == {"words last seen in the window"}
    assert kinds[text.index("'t")] == "other"           # an apostrophe closes nothing
    assert set(kinds[-5:-1]) == {"words last seen before it"}
