"""Checkpoints, and the device that a model is put on."""
import os
import shutil
import types
import zipfile
from pathlib import Path

import pytest
import torch

from support import checkpoint
from support.checkpoint import find_checkpoint, load_checkpoint
from support.script import Unusable
from support.testing import same


@pytest.fixture
def saved(trained):
    """What the checkpoint of a run holds."""
    return torch.load("run/best.pt", weights_only=True)


def changed(saved, **changes):
    """A checkpoint file with other values than these."""
    torch.save({**saved, **changes}, "changed.pt")
    return "changed.pt"


def refused(saved, **changes):
    """The line that a changed checkpoint is refused with."""
    with pytest.raises(Unusable) as error:
        load_checkpoint(changed(saved, **changes))
    line = str(error.value)
    assert line.startswith("changed.pt ") and "\n" not in line
    return line


# ---- Which file is meant

@pytest.mark.parametrize("name", ["m.ckpt", "model", "out.pt", "last.pt.old", ".pt"])
def test_a_file_is_a_checkpoint_whatever_its_name(saved, name):
    shutil.copy("run/best.pt", name)
    assert same(load_checkpoint(name)[0].state_dict(), saved["model"])
    assert find_checkpoint(name, ("last.pt",)) == Path(name)


@pytest.mark.parametrize("name", ["run.pt", "m.ckpt", "a b"])
def test_a_folder_is_a_run_whatever_its_name(saved, name):
    Path("run").rename(name)
    assert find_checkpoint(name) == Path(name, "best.pt")
    assert find_checkpoint(name, ("last.pt",)) == Path(name, "last.pt")
    assert same(load_checkpoint(name)[0].state_dict(), saved["model"])
    Path(name, "best.pt").unlink()
    assert find_checkpoint(name) == Path(name, "last.pt")
    assert load_checkpoint(name)[2]["optimizers"]


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pt", "nowhere/last.pt"])
def test_what_is_not_there_is_said_so(here, name):
    with pytest.raises(FileNotFoundError) as error:
        load_checkpoint(name)
    assert str(error.value) == f"no checkpoint {name}; train.py writes one into its --out_dir"
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint empty/last.pt;"):
        load_checkpoint("empty")


def test_a_path_may_begin_at_home(saved, monkeypatch):
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(Path.cwd()))
    assert find_checkpoint("~/run") == Path.cwd() / "run/best.pt"
    assert load_checkpoint("~/run")[2]["iter"] == saved["iter"]


def test_a_link_to_a_checkpoint_is_one(saved):
    try:
        os.symlink("run", "linked")
        os.symlink("run/best.pt", "linked.pt")
    except OSError:
        pytest.skip("this system makes no links")
    for path in ("linked", "linked.pt"):
        assert load_checkpoint(path)[2]["iter"] == saved["iter"]


# ---- Whose weights they are

def test_what_is_loaded(saved):
    model, codec, values = load_checkpoint("run")
    assert not model.training and same(model.state_dict(), saved["model"])
    assert codec.decode(codec.encode("The ")) == "The "
    assert values["settings"] == saved["settings"] and values["config"] == saved["config"]
    assert same(values["model"], saved["model"])


@pytest.mark.parametrize("prefix", [
    "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module.",
])
def test_checkpoints_of_wrapped_models_load(saved, prefix):
    wrapped = {prefix + name: weight for name, weight in saved["model"].items()}
    model, _, values = load_checkpoint(changed(saved, model=wrapped))
    assert same(model.state_dict(), saved["model"])
    assert values["model"].keys() == saved["model"].keys()


@pytest.mark.parametrize("name, plain", [
    ("module.embed.weight", "embed.weight"), ("embed.weight", "embed.weight"),
    ("submodule.weight", "submodule.weight"), ("a._orig_mod.b", "a._orig_mod.b"),
    ("module.submodule.module.w", "submodule.module.w"), ("module", "module"),
])
def test_prefixes_are_prefixes(name, plain):
    assert checkpoint.plain_name(name) == plain


@pytest.mark.parametrize("dtype, error", [
    (torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 0.0),
])
def test_weights_of_another_dtype_load(saved, dtype, error):
    """The model computes in float32, as if they had been converted by hand."""
    weights = {name: weight.to(dtype) for name, weight in saved["model"].items()}
    model, _, values = load_checkpoint(changed(saved, model=weights))
    for name, weight in model.state_dict().items():
        assert weight.dtype == values["model"][name].dtype == torch.float32
        assert torch.equal(weight, weights[name].float())
        assert torch.allclose(weight, saved["model"][name], rtol=error, atol=error)
    assert model(torch.tensor([[1, 2, 3]]))[0].isfinite().all()


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "mps", "xpu:0"])
def test_weights_made_on_another_device_load(saved, monkeypatch, device):
    """A file says of each tensor where it was; that may be a device that is not here."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        path = changed(saved)
    archive = zipfile.ZipFile(path)
    assert device.encode() in archive.read("changed/data.pkl")
    assert same(load_checkpoint(path)[0].state_dict(), saved["model"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["embed.weight", "alpha", "head.weight"])
def test_weights_that_are_not_finite_are_said_so(saved, value, name):
    saved["model"][name].view(-1)[-1] = value
    line = refused(saved)
    assert f"weights that are not finite, in {name}" in line and "learning_rate" in line


def test_weights_too_large_for_float32_are_not_finite(saved):
    weights = {name: weight.double() * 1e300 for name, weight in saved["model"].items()}
    assert "not finite" in refused(saved, model=weights)


def test_weights_of_another_kind_are_refused(saved):
    weights = saved["model"]
    name = "embed.weight"
    wrong = [weights[name].to(torch.int32), weights[name].to(torch.complex64),
             weights[name].to("meta"), weights[name][:-1], weights[name].to_sparse(), "x", None]
    changes = [{name: value} for value in wrong]
    changes += [{"more": torch.zeros(1)}, {f"module.{name}": weights[name]}]
    for change in changes:
        assert "is not a checkpoint of this project" in refused(saved, model={**weights, **change})
    fewer = dict(weights)
    del fewer[name]
    for model in (fewer, {}, [], None, 3):
        assert "is not a checkpoint of this project" in refused(saved, model=model)


def test_a_config_that_the_weights_are_not_of_is_refused(saved):
    """Before a model of its size takes so much memory."""
    for changes in (dict(n_embd=10 ** 6), dict(n_layer=10 ** 9), dict(vocab_size=10 ** 12),
                    dict(n_embd="x"), dict(n_head=3), dict(lrt=False), dict(more=1)):
        assert "(" in refused(saved, config={**saved["config"], **changes})


def test_a_small_file_does_not_hold_much(saved):
    """An archive that is compressed could be a thousand times as large in memory."""
    with zipfile.ZipFile("run/best.pt") as plain:
        with zipfile.ZipFile("small.pt", "w", zipfile.ZIP_DEFLATED) as small:
            for entry in plain.infolist():
                small.writestr(entry.filename, plain.read(entry))
    with pytest.raises(Unusable, match="small.pt is not .* is compressed"):
        load_checkpoint("small.pt")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\3\4", b"PK\5\6" + bytes(18)])
def test_other_files_are_refused(here, content):
    Path("x.pt").write_bytes(content)
    with pytest.raises(ValueError, match="x.pt is not a checkpoint of this project"):
        load_checkpoint("x.pt")


# ---- Devices

@pytest.mark.parametrize("name", [
    "gpu", "meta", "cuda:99", "cpu:x", "xpu", "xla", "hpu", "vulkan", "-1", "privateuseone",
])
def test_devices_that_are_not_here(name):
    with pytest.raises(Unusable) as error:
        checkpoint.find_device(name)
    line = str(error.value)
    assert line.startswith(f"--device={name} cannot be used here: ") and "\n" not in line
    assert line.endswith("; --device=cpu can")


def test_the_best_device_is_found():
    assert checkpoint.find_device("cpu") == torch.device("cpu")
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert checkpoint.find_device().type == checkpoint.find_device("").type == best.type


def test_a_device_that_fails_is_said_so(monkeypatch):
    """One that is there but cannot be used: a driver that is too old, another's process on it."""
    def fails(*args, device):
        raise RuntimeError("CUDA error: all devices are busy\nand more")
    monkeypatch.setattr(torch, "zeros", fails)
    with pytest.raises(Unusable, match="here: CUDA error: all devices are busy; --device=cpu can$"):
        checkpoint.find_device("cpu")


@pytest.mark.parametrize("device, computes, emulates, dtype", [
    ("cpu", True, True, "float32"),
    ("mps", True, True, "float32"),
    ("cuda", True, True, "bfloat16"),
    ("cuda", False, True, "float32"),
    ("cuda", False, False, "float32"),
])
def test_bfloat16_where_a_device_computes_in_it(monkeypatch, device, computes, emulates, dtype):
    def is_supported(including_emulation=True):
        return computes or (emulates and including_emulation)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    device = types.SimpleNamespace(type=device)
    assert checkpoint.find_dtype("", device) == dtype
    assert checkpoint.find_dtype("bfloat16", device) == "bfloat16"
    assert checkpoint.find_dtype("float32", device) == "float32"
