"""Checkpoints, and the device that a model is put on."""
import os
import zipfile
from pathlib import Path

import torch

from lrt import GPT, GPTConfig
from support.script import Unusable
from support.tokens import Codec

# With what torch.compile and DistributedDataParallel begin the names of parameters
WRAPPERS = ("_orig_mod.", "module.")


# ---- Devices

def find_device(name=""):
    """The device of that name, or the best one here (cuda, mps, ..., cpu). Raises Unusable if it
    cannot be used."""
    if not name:
        name = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except Exception as e:                  # each kind of device has its own
        reason = first_line(e)
        raise Unusable(f"--device={name} cannot be used here: {reason}; --device=cpu can") from e


def find_dtype(name, device):
    """What products are computed in, "float32" or "bfloat16": that of the name, or bfloat16 where a
    GPU computes in it. An older one emulates it, which is slower than float32."""
    if name:
        return name
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


# ---- Checkpoints

def find_checkpoint(path, names=("best.pt", "last.pt")):
    """The checkpoint that a path means, by what is there and not by its name: the path itself if it
    is a file; else the first of these names that is in it as a folder. If there is none, the last
    of the names: where it would be."""
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        return path
    for name in names:
        if os.path.isfile(path / name):
            return path / name
    return path / names[-1]


def load_checkpoint(path, device="cpu"):
    """(model, codec, checkpoint) from a file that train.py wrote, or a run's folder: its best.pt,
    or else its last.pt. The model is on the device, in float32; the checkpoint's values are on the
    CPU. Runs no code from the file. Raises FileNotFoundError if there is none, Unusable if it is
    damaged, not of this project, or has weights that are not finite."""
    file = find_checkpoint(path)
    try:
        checkpoint = read_checkpoint(file)
        codec = Codec(checkpoint["meta"]["codec"])
        weights = plain_weights(checkpoint["model"])
        refuse_infinite(weights, file)
        model = build(checkpoint["config"], weights)
    except Unusable:
        raise
    except FileNotFoundError:
        if not os.path.exists(os.path.expanduser(path)):
            file = path
        line = f"no checkpoint {file}; train.py writes one into its --out_dir"
        raise FileNotFoundError(line) from None
    except Exception as e:                  # a damaged or hostile file can raise anything at all
        line = f"{file} is not a checkpoint of this project, or cannot be read"
        raise Unusable(f"{line} ({type(e).__name__}: {first_line(e):.150})") from e
    return model.to(device).eval(), codec, {**checkpoint, "model": weights}


def first_line(error):
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def read_checkpoint(file):
    """What a checkpoint holds, on the CPU wherever it was made. It is a zip archive with checksums,
    of entries that are not compressed, or a small file could hold more than there is memory."""
    with open(file, "rb") as f, zipfile.ZipFile(f) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"checksum of {damaged}")
    return torch.load(file, map_location="cpu", weights_only=True)


def plain_weights(weights):
    """{name: tensor in float32}, named as in a model that is not wrapped."""
    plain = {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise ValueError(f"{name} is {weight.dtype}")
        plain[plain_name(name)] = weight.float()
    if len(plain) < len(weights):
        raise ValueError("two weights of one name")
    return plain


def plain_name(name):
    """The name of a parameter without what wrappers put before it, once or several times."""
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return plain_name(name.removeprefix(wrapper))
    return name


def refuse_infinite(weights, file):
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise Unusable(f"{file} has weights that are not finite, in {name}: its training went "
                           "wrong; train anew with a smaller --learning_rate")


def build(config, weights):
    """A model of this config (a dict) with these weights. The sizes are compared before a model of
    any size is made."""
    config = GPTConfig(**config)
    vocab_size, n_embd = weights["embed.weight"].shape
    n_layer = len(weights["alpha"])
    if (config.vocab_size, config.n_embd, config.n_layer) != (vocab_size, n_embd, n_layer):
        raise ValueError("the weights are not those of its config")
    model = GPT(config)
    model.load_state_dict(weights)
    return model
