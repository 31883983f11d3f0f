"""Settings: a dataclass of options, and the command line made of it."""
import argparse
import difflib
import math
import os
import re
import sys
from dataclasses import field, fields

from support.script import Unusable

MAX_SEED = 2 ** 32 - 1
HELP = "settings are written --name=value, and -h lists them"
KINDS = {int: "a whole number", float: "a number", str: "text"}
YES_OR_NO = {"true": "1", "yes": "1", "false": "0", "no": "0"}

# What to use in the place of names that nanoGPT has, in whatever script they are typed. With a
# value: of an option that is there, but has no such value.
LOG = "out_dir has log.jsonl and steps.csv to read or send elsewhere"
OPTIMIZER = "it is set in support/optimizer.py"
INSTEAD = {
    "always_save_checkpoint": "last.pt is always saved, and best.pt is of the best evaluation",
    "backend": "the device decides it",
    "beta1": OPTIMIZER,
    "beta2": OPTIMIZER,
    "bias": "no layer has a bias",
    "compile": "only train.py compiles",
    "decay_lr": "the learning rate falls to --min_lr; with --min_lr=RATE, as --learning_rate, it "
                "stays",
    "dtype": "only train.py has it; sampling is in float32",
    "eval_iters": "an evaluation takes the whole validation split, or --eval_tokens=N of it",
    "init_from": "use train.py --init_from=DIR, or sample.py --out_dir=DIR",
    "init_from=resume": "use train.py --resume=DIR, or sample.py --out_dir=DIR",
    "init_from=scratch": "without it, train.py starts from scratch",
    "init_from=gpt2": "GPT-2's weights are of another model",
    "lr_decay_iters": "the learning rate falls until the last step, --max_iters",
    "start": "use sample.py --prompt=TEXT or --prompt=FILE:path",
    "wandb_log": LOG,
    "wandb_project": LOG,
    "wandb_run_name": LOG,
}


def option(default, help, allowed=None, repeat=False):
    """A field of a dataclass of settings. allowed: (least, most); a list of values; bool: any text
    that is not empty; None: anything of the default's type. repeat: the flag may be repeated, and
    the setting is a tuple of texts (default: none of them)."""
    if repeat:
        default = tuple(default)
    rule = rule_of(default, allowed)
    return field(default=default, metadata={"help": help, "allowed": allowed, "rule": rule})


def rule_of(default, allowed):
    """In words, what is allowed."""
    if isinstance(allowed, list):
        return " or ".join(str(value) for value in allowed if value != "")
    if isinstance(default, tuple):
        rule = KINDS[str]
    else:
        rule = KINDS[type(default)]
    if isinstance(allowed, tuple):
        rule += f" from {allowed[0]:,} to {allowed[1]:,}"
    if allowed is bool:
        rule += ", not empty"
    if isinstance(default, tuple):
        rule += "; may be repeated"
    return rule


def value_of(f, text):
    """What was typed for an option (once, if it may be repeated), as a value of its type. Raises
    Unusable if it is not allowed."""
    allowed = f.metadata["allowed"]
    kind = str if isinstance(f.default, tuple) else type(f.default)
    if isinstance(allowed, list) and 1 in allowed:
        text = YES_OR_NO.get(text.lower(), text)
    try:
        value = kind(text)
        good = is_allowed(value, allowed)
    except ValueError:
        good = False
    if not good:
        raise Unusable(f"--{f.name}={text:.60}: must be {f.metadata['rule']}")
    return value


def is_allowed(value, allowed):
    """Whether a value of the right type is one that an option may have."""
    if isinstance(allowed, list):
        return value in allowed
    if isinstance(allowed, tuple):
        return allowed[0] <= value <= allowed[1]        # which no "nan" is
    if allowed is bool:
        return value != ""
    return not isinstance(value, float) or math.isfinite(value)


def parse(settings_class, doc, argv, **presets):
    """(instance of a dataclass of options, names of those on the command line). presets: values of
    what is not typed, other than the defaults. Raises Unusable: a line that says what to do."""
    given = typed(settings_class, doc, argv)
    return settings_class(**{**presets, **given}), tuple(given)


def parse_with_folders(settings_class, doc, argv):
    """(folders, options, names of those typed): words that are no options are folders of runs; none
    means out. argv: None for that of this process. Raises Unusable."""
    words = sys.argv[1:] if argv is None else argv
    folders = [word for word in words if not word.startswith("-")] or ["out"]
    flags = [word for word in words if word.startswith("-")]
    return folders, *parse(settings_class, doc, flags)


def typed(settings_class, doc, argv):
    """What was typed, {name: value}, for presets that depend on it. Raises Unusable."""
    options = {f.name: f for f in fields(settings_class)}
    words, unknown = parser_of(options, doc).parse_known_args(argv)
    if unknown:
        raise Unusable(about_unknown(unknown[0], options))
    given = {}
    for name, texts in vars(words).items():
        given[name] = value_of_all(options[name], texts)
    return given


def parser_of(options, doc):
    """An argparse parser for {name: field}, in which every option may be repeated."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     argument_default=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse
    for name, f in options.items():
        default = "none" if f.default in ("", ()) else f.default
        text = f"{f.metadata['help']} ({f.metadata['rule']}; default: {default})"
        parser.add_argument(f"--{name}", metavar="X", action="append",
                            help=text.replace("%", "%%"))
    return parser


def refuse(message):
    raise Unusable(f"{message}; {HELP}")


def value_of_all(f, texts):
    """The value of an option that was typed once or several times. Raises Unusable."""
    if isinstance(f.default, tuple):
        return tuple(value_of(f, text) for text in texts)
    if len(texts) > 1:
        raise Unusable(f"--{f.name} is given {len(texts)} times, and must be given once")
    advice = INSTEAD.get(f"{f.name}={texts[0]}")
    if advice and not os.path.exists(texts[0]):
        raise Unusable(f"--{f.name}={texts[0]}: {advice}")
    return value_of(f, texts[0])


def about_unknown(word, options):
    """A line about something typed that is no option: what to use, or what is like it."""
    flag, _, value = word.partition("=")
    name = flag.lstrip("-").replace("-", "_").lower()
    if word.startswith("-"):
        advice = INSTEAD.get(f"{name}={value}") or INSTEAD.get(name)
        if advice:
            return f"there is no {flag} here: {advice}"
        line = f"there is no {flag}"
        meant = meant_by(name, options)
    else:
        line = f"unexpected word {word:.60}; a text with spaces needs quotes"
        meant = next((option_name for option_name in options if name in option_name.split("_")), "")
    if meant:
        line += f" (did you mean --{meant}?)"
    return f"{line}; {HELP}"


def meant_by(name, options):
    """The option that has nearly this name, or the first that has it as a word of its name or of
    its help; else an empty text."""
    for near in difflib.get_close_matches(name, options, 1, 0.85):
        return near
    for option_name, f in options.items():
        if name in re.findall("[a-z]+", f"{option_name} {f.metadata['help']}".lower()):
            return option_name
    return ""
