"""The programs of assets/ that measure: what they print is what they have measured."""
import pytest

from assets import results, speed, sweeps
from support.testing import run


def test_speed_has_a_row_for_each_place_of_the_dial(capsys):
    tiny = ("--block_size=4", "--batch_size=1", "--n_layer=1", "--n_head=2", "--n_embd=8")
    assert run(speed, *tiny, "--every=1", "--runs=1", "--memory=0") == 0
    said = capsys.readouterr().out
    for row in ("plain GPT", "S = 2, K = 1", "token by token", "LRT", "prefill, S = 4"):
        assert row in said
    dial = next(line for line in said.splitlines() if line.startswith("S = 4, K = 1 "))
    assert dial.split()[-1] == "4"                          # S = T: all positions are exact


@pytest.mark.parametrize("differences, K", [
    ([0.1, 0.001, -0.003, 0.0], "4"), ([0.001, -0.002], "1"), ([0.0, 0.01], "> 2")])
def test_enough_sweeps_are_enough_from_there_on(differences, K):
    assert sweeps.enough(differences, 0.002) == K


def test_sweeps_of_a_run(trained, capsys):
    """After T sweeps all is exact."""
    assert run(sweeps, "run", "--subsets=1", "--most=16", "--tokens=64") == 0
    numbers = capsys.readouterr().out.splitlines()[-1].split()
    assert numbers[0] == "16" and numbers[3 + 15] in ("+0.0000", "-0.0000")
    assert float(numbers[2]) > 0


def test_results_are_of_the_runs_that_are_written_down():
    """results.md is neither older than results.jsonl nor than what experiments.py says of it."""
    written = (results.HERE / "results.md").read_text(encoding="utf-8")
    assert results.whole() == written, "python assets/results.py all writes it anew"
