"""Settings: a dataclass of options, and the command line made of it."""
import argparse, difflib, re, sys
from dataclasses import field, fields

from support.script import fail

MAX_SEED = 2 ** 32 - 1

def option(default, help, allowed=None):
    """A field of a dataclass of settings. allowed: (least, most), a list of values, bool: not empty; None."""
    rule = {int: "a whole number", float: "a number", str: "text"}[type(default)]
    rule += " from {:,} to {:,}".format(*allowed) if type(allowed) is tuple else ", not empty" * bool(allowed)
    if isinstance(allowed, list):
        rule = " or ".join(str(value) for value in allowed if value != "")
    return field(default=default, metadata={"help": help, "allowed": allowed, "rule": rule})

def value_of(f, text):
    """What was typed for an option, as its type. Ends with an error if it is not allowed."""
    allowed = f.metadata["allowed"] or (-sys.float_info.max, sys.float_info.max)
    if isinstance(allowed, list) and 1 in allowed:
        text = {"true": "1", "yes": "1", "false": "0", "no": "0"}.get(text.lower(), text)
    try:
        value = f.type(text)
    except ValueError:
        value = float("nan")                        # which is never allowed
    if not (value in allowed if isinstance(allowed, list) else bool(text) if allowed is bool else
            f.type is str or allowed[0] <= value <= allowed[1]):
        fail(f"--{f.name}={text}: must be {f.metadata['rule']}")
    return value

def parse(settings_class, doc, argv, **presets):
    """(instance of a dataclass of options, names of those on the command line). presets: other defaults."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message}; settings are written --name=value, and -h lists them")
    options = {f.name: f for f in fields(settings_class)}
    for name, f in options.items():
        note = f"({f.metadata['rule']}; default: {'none' if f.default == '' else f.default})"
        parser.add_argument(f"--{name}", metavar="X", help=f"{f.metadata['help']} {note}".replace("%", "%%"))
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        name = flag.lstrip("-").replace("-", "_").lower()
        said = {o: re.findall("[a-z]+", f"{o} {f.metadata['help']}".lower()) for o, f in options.items()}
        near = difflib.get_close_matches(name, options, 1, 0.85) + [o for o in said if name in said[o]]
        parser.error(f"there is no {flag}" + (f" (did you mean --{near[0]}?)" if near else ""))
    given = {name: value_of(options[name], text) for name, text in vars(typed).items()}
    return settings_class(**{**presets, **given}), tuple(given)
