"""Settings, and the command line made of them."""
import dataclasses
import functools
from pathlib import Path

import pytest

import prepare_data
import sample
import train
from support import options
from support.script import Unusable
from support.testing import ends_in_one_line


@dataclasses.dataclass
class SomeSettings:
    max_iters: int = options.option(10, "steps, 5% of all (no epochs)", (1, 1000))
    min_lr: float = options.option(0.0, "any number")
    lrt: int = options.option(0, "on or off", [0, 1])
    lrt_sweeps: int = options.option(1, "some")
    lrt_mode: str = options.option("parallel", "how", ["parallel", "sequential"])
    n_layer: int = options.option(2, "layers", (1, 100))
    out_dir: str = options.option("out", "where", bool)
    input: tuple = options.option((), "texts", bool, repeat=True)
    init_from: str = options.option("", "a run")


parse = functools.partial(options.parse, SomeSettings, "what it is")


def refused(*args):
    """The line that the command line of SomeSettings is refused with."""
    with pytest.raises(Unusable) as error:
        parse(args)
    line = str(error.value)
    assert line and "\n" not in line and len(line) < 250
    return line


def test_what_is_typed_wins_over_presets_and_these_over_defaults():
    assert parse([]) == (SomeSettings(), ())
    assert parse([], n_layer=5)[0] == SomeSettings(n_layer=5)
    typed = ["--lrt=True", "--min_lr", "-1.5", "--n_layer=3", "--out_dir=True"]
    settings, given = parse(typed, n_layer=5, max_iters=7)
    expected = SomeSettings(lrt=1, min_lr=-1.5, n_layer=3, out_dir="True", max_iters=7)
    assert settings == expected
    assert given == ("lrt", "min_lr", "n_layer", "out_dir")
    values = {"lrt": 1, "min_lr": -1.5, "n_layer": 3, "out_dir": "True"}
    assert options.typed(SomeSettings, "", typed) == values


def test_help_has_ranges_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["-h"])
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "what it is" in out
    assert "5% of all (no epochs) (a whole number from 1 to 1,000; default: 10)" in out
    assert "where (text, not empty; default: out)" in out
    assert "how (parallel or sequential; default: parallel)" in out
    assert "texts (text, not empty; may be repeated; default: none)" in out


@pytest.mark.parametrize("arg, line", [
    ("--max_iters=0", "--max_iters=0: must be a whole number from 1 to 1,000"),
    ("--max_iters=1.5", "must be a whole number"),
    ("--max_iters=" + "9" * 5000, "must be a whole number"),
    ("--min_lr=nan", "--min_lr=nan: must be a number"),
    ("--min_lr=inf", "must be a number"),
    ("--min_lr=", "must be a number"),
    ("--out_dir=", "--out_dir=: must be text, not empty"),
    ("--input=", "--input=: must be text, not empty"),
    ("--lrt=2", "--lrt=2: must be 0 or 1"),
    ("--lrt=maybe", "must be 0 or 1"),
    ("--lrt_mode=x", "must be parallel or sequential"),
    ("--lrt", "--lrt: expected one argument"),
])
def test_values_that_are_not_allowed(arg, line):
    assert line in refused(arg)


@pytest.mark.parametrize("arg, meant", [
    ("--steps=3", "max_iters"), ("--epochs", "max_iters"), ("--max-iters=3", "max_iters"),
    ("--n_layers=3", "n_layer"), ("--layers=2", "n_layer"), ("--lr=0.1", "min_lr"),
    ("--max_it=3", ""), ("--", ""), ("--dim=3", ""), ("--top_k=3", ""), ("-x", ""),
])
def test_names_that_are_not_there(arg, meant):
    """No beginning of a name is taken for it; what is like it is said."""
    line = refused(arg)
    assert line.startswith(f"there is no {arg.split('=')[0]}")
    assert line.endswith("settings are written --name=value, and -h lists them")
    if meant:
        assert f"(did you mean --{meant}?)" in line
    else:
        assert "did you mean" not in line


@pytest.mark.parametrize("args, word, meant", [
    (["out"], "out", "out_dir"), (["lrt=1"], "lrt=1", "lrt"),
    (["--out_dir=my", "run"], "run", ""), (["--out_dir", "my", "steps"], "steps", ""),
    (["config/train.py"], "config/train.py", ""), (["in"], "in", ""), (["of"], "of", ""),
])
def test_a_word_without_dashes_is_unexpected(args, word, meant):
    line = refused(*args)
    assert line.startswith(f"unexpected word {word}")
    assert (f"(did you mean --{meant}?)" in line) == bool(meant)


@pytest.mark.parametrize("args", [
    ["--n_layer=2", "--n_layer=3"], ["--n_layer=2", "--lrt=1", "--n_layer", "2"],
    ["--n_layer=1", "--n_layer=2", "--n_layer=3"],
])
def test_a_flag_is_not_repeated(args):
    count = sum(arg.startswith("--n_layer") for arg in args)
    assert refused(*args) == f"--n_layer is given {count} times, and must be given once"


def test_a_flag_that_may_be_repeated():
    assert parse([])[0].input == ()
    assert parse(["--input=a"])[0].input == ("a",)
    settings, given = parse(["--input=b", "--lrt=1", "--input", "a", "--input=b"])
    assert settings.input == ("b", "a", "b") and given == ("input", "lrt")


# ---- Names that people bring along

NANOGPT = ("eval_iters decay_lr lr_decay_iters always_save_checkpoint wandb_log wandb_project "
           "wandb_run_name bias beta1 beta2 backend start").split()


@pytest.mark.parametrize("name", NANOGPT)
@pytest.mark.parametrize("script", [train, sample])
def test_nanogpts_names_that_are_not_here_get_a_line_that_helps(script, name, capsys):
    line = ends_in_one_line(script, [f"--{name}=1"], capsys)
    assert line == f"error: there is no --{name} here: {options.INSTEAD[name]}\n"


@pytest.mark.parametrize("flag", ["--eval-iters", "--Eval_Iters", "-eval_iters", "--eval_iters"])
def test_a_name_may_be_written_in_other_ways(flag):
    for args in ([f"{flag}=3"], [flag, "3"], [flag]):
        assert refused(*args) == f"there is no {flag} here: {options.INSTEAD['eval_iters']}"


def test_what_is_used_instead_is_there():
    """Each option that a hint names, of the script that it names, or of train.py."""
    there = {f"--{f.name}" for script in (train, sample, prepare_data)
             for f in dataclasses.fields(script.Settings)}
    for advice in options.INSTEAD.values():
        for word in advice.replace(";", " ").replace(",", " ").split():
            if word.startswith("--"):
                assert word.split("=")[0] in there, advice


@pytest.mark.parametrize("value", ["resume", "scratch", "gpt2"])
def test_nanogpts_values(value, tmp_path, monkeypatch, capsys):
    """Unless there is a file or folder of this name."""
    advice = options.INSTEAD[f"init_from={value}"]
    assert refused(f"--init_from={value}") == f"--init_from={value}: {advice}"
    line = ends_in_one_line(sample, [f"--init_from={value}"], capsys)
    assert line == f"error: there is no --init_from here: {advice}\n"
    monkeypatch.chdir(tmp_path)
    Path(value).mkdir()
    assert parse([f"--init_from={value}"])[0].init_from == value


@pytest.mark.parametrize("said, meant", [
    ("lr", "learning_rate"), ("steps", "max_iters"), ("iters", "max_iters"),
    ("epochs", "max_iters"), ("layers", "n_layer"), ("heads", "n_head"), ("dim", "n_embd"),
    ("width", "n_embd"), ("batch", "batch_size"), ("context", "block_size"),
    ("subsets", "lrt_subsets"), ("n_layers", "n_layer"), ("temperature", ""), ("bs", ""),
])
def test_everyday_names_get_a_hint(said, meant, capsys):
    line = ends_in_one_line(train, [f"--{said}=1"], capsys)
    if meant:
        assert f"(did you mean --{meant}?)" in line
    else:
        assert "did you mean" not in line
