"""To go on with a run as it was started, or to begin with another one's weights."""
from dataclasses import fields, replace

from lrt import GPTConfig
from support.checkpoint import load_checkpoint
from support.options import value_of
from support.script import Unusable, command, say, warn

# What a run may have another value of when it goes on
MAY_CHANGE = ("max_iters", "device", "compile", "eval_interval", "log_interval")


# ---- Settings

def settings_to_go_on(s, given, path, last, processes):
    """The settings that last.pt, of this path, was written with, but for those that may change and
    are given. Raises Unusable for what may not change."""
    again = "new run, same weights: " + command(f"--init_from={path}", "--out_dir=NEW")
    if "processes" not in last:
        raise Unusable(f"{path} has nothing to go on from, only weights; {again}")
    old = old_settings(type(s), path, last, again)
    if last["processes"] != processes.count:
        raise Unusable(f"{path} is of a run of {last['processes']} processes, this one has "
                       f"{processes.count}: another run")
    old.out_dir = old.resume = str(path.parent)
    new = replace(old)
    for name in given:
        had, value = getattr(old, name), getattr(s, name)
        if name == "resume" or value == had:
            continue
        if name not in MAY_CHANGE:
            raise Unusable(f"--{name}={value}: that run has {had!r}, and goes on as it was "
                           f"started; {again}")
        setattr(new, name, value)
    if new.max_iters < old.max_iters:
        raise Unusable(f"--max_iters={new.max_iters} is less than {old.max_iters}, which the "
                       "learning rate is made for")
    if new.max_iters > old.max_iters and processes.first:
        say(f"the learning rate now falls over {new.max_iters:,} steps, not {old.max_iters:,}: "
            "another plan")
    return new


def old_settings(settings_class, path, checkpoint, again):
    """Settings, from a checkpoint; of what it does not know, the defaults. Raises Unusable if they
    could not be typed."""
    try:
        old = settings_class(**checkpoint["settings"])      # TypeError: settings that are no more
        for f in fields(old):
            value = getattr(old, f.name)
            if value != "":
                setattr(old, f.name, value_of(f, str(value)))
        return old
    except (KeyError, TypeError) as e:
        raise Unusable(f"{path} is not of a run of this train.py; {again}") from e


# ---- Data and model

def refuse_other_data(path, checkpoint, meta, dataset, keys):
    """Raises Unusable if the meta data of checkpoint and data differ in one of the keys."""
    old = checkpoint["meta"]
    if any(old.get(key) != meta[key] for key in keys):
        raise Unusable(f"{path} was trained on --tokenizer={old.get('tokenizer')} of "
                       f"{old.get('source')}; data/{dataset} is --tokenizer={meta['tokenizer']} of "
                       f"{meta['source']}")


def refuse_other_model(path, checkpoint, config):
    """Raises Unusable if the checkpoint's weights do not fit into a model of this config."""
    old = GPTConfig(**checkpoint["config"])
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd"}
    if old.lrt:
        names["lrt"] = "lrt"
        names["lrt_memory_layer"] = "memory_layer"
        names["lrt_memory_proj"] = "memory_proj"
    for setting, name in names.items():
        had = getattr(old, name)
        if had != getattr(config, name):
            if had is True:
                had = 1
            raise Unusable(f"{path} needs --{setting}={had}")


# ---- What changes in a run

def take_over(run, path, last):
    """All that changes in a run, from last.pt. Raises Unusable if that has not all of it."""
    run.model.load_state_dict(last["model"])
    try:
        for optimizer, state in zip(run.optimizers, last["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        run.step = range(run.plan.steps + 1).index(last["iter"])
        run.seconds = float(last["seconds"])
        run.recent = [float(loss) for loss in last["recent"]]
        run.rows = [row for row in last["rows"] if row["iter"] > 0 and row["val_loss_exact"] >= 0]
        run.evaluated = run.rows[-1]["iter"] if run.rows else 0
    except Exception as e:      # a hostile file can raise anything at all
        raise Unusable(f"{path} has not what a run of this model goes on from "
                       f"({type(e).__name__})") from e


def row_of_best(run):
    """The row of the evaluation that best.pt was written after. None if there is no best.pt, or not
    of this run: then the next evaluation writes one."""
    try:
        best = load_checkpoint(run.folder / "best.pt")[2]
    except (OSError, Unusable):
        best = {}
    for row in run.rows:
        if row["iter"] == best.get("iter") and best.get("row", row) == row:
            return row
    if run.rows:
        warn(f"warning: {run.folder.path} has no best.pt of this run; the next evaluation makes "
             "one")
    return None
