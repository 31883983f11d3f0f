"""The proof that lrt.py is right. Everything is compared in float64, on random weights, none of them at its initial
value, so that no path is silent. `python -m pytest` runs it all."""
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from lrt import GPT, GPTConfig, shift_right

HERE = Path(__file__).parent
TIGHT = dict(rtol=0, atol=1e-10)

# Sizes that are small and odd. Every identity is tested on each of them.
CONFIGS = {
    "shared": dict(),
    "layerwise": dict(memory_proj="layerwise"),
    "first layer": dict(memory_layer=1),
    "middle layer, layerwise": dict(memory_layer=2, memory_proj="layerwise"),
    "one layer, one head": dict(n_layer=1, n_head=1, n_embd=6),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def random_model(seed=0, scale=0.3, **changes):
    """A float64 model, every weight of it away from its initial value."""
    torch.manual_seed(seed)
    config = dict(block_size=13, vocab_size=11, n_layer=3, n_head=2, n_embd=16, lrt=True)
    model = GPT(GPTConfig(**{**config, **changes})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * scale)
    return model


def tokens(model, B, T, seed=1):
    return torch.randint(model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **{**TIGHT, **tolerance})


# ---- A second implementation, as naive as can be: one sequence, one position at a time, nothing shared ----------

def naive_lrt(model, idx):
    """The equations in numpy: logits (T, V) and states (T, C) of one sequence of token numbers."""
    W = {name: p.detach().numpy() for name, p in model.named_parameters()}
    c = model.config
    C, H, L = c.n_embd, c.n_head, c.n_layer
    D = C // H
    source = c.memory_layer if c.memory_layer > 0 else L + 1 + c.memory_layer
    eps = np.finfo(np.float64).eps

    def norm(v):
        return v / np.sqrt(np.mean(v * v) + eps)

    def rope(v, t):
        out = np.empty(D)
        for j in range(D // 2):
            angle = t * 10000.0 ** (-2 * j / D)
            a, b = v[j], v[j + D // 2]
            out[j] = a * math.cos(angle) + b * math.sin(angle)
            out[j + D // 2] = b * math.cos(angle) - a * math.sin(angle)
        return out

    past = [[[] for _ in range(H)] for _ in range(L)]       # past[i][head]: (key, value) of each position so far
    m, all_logits, states = np.zeros(C), [], []
    for t, token in enumerate(idx):
        x = x0 = norm(W["embed.weight"][token])
        for i in range(L):
            w = lambda name: W[f"blocks.{i}.{name}.weight"]
            x = W["alpha"][i] * x + W["beta"][i] * x0 + W["gamma"][i] * m
            y = norm(x)
            q, k, v = w("w_q") @ y, w("w_k") @ y, w("w_v") @ y
            g = 2 / (1 + np.exp(-w("w_g") @ y))
            pair = i if c.memory_proj == "layerwise" else 0
            mk, mv = W[f"u_k.{pair}.weight"] @ m, W[f"u_v.{pair}.weight"] @ m
            result = np.zeros(C)
            for h in range(H):
                part = slice(h * D, h * D + D)
                key = norm(rope(g[h] * k[part] + g[H + h] * mk[part], t))
                past[i][h].append((key, g[h] * v[part] + g[H + h] * mv[part]))
                scores = np.array([norm(rope(q[part], t)) @ key / math.sqrt(D) for key, _ in past[i][h]])
                p = np.exp(scores - scores.max())
                result[part] = sum(p_t * value for p_t, (_, value) in zip(p / p.sum(), past[i][h]))
            x = x + w("w_o") @ result
            x = x + w("w_2") @ np.maximum(w("w_1") @ norm(x), 0) ** 2
            if i + 1 == source:
                m_next = norm(x)
        m = m_next
        states.append(m)
        all_logits.append(15 * np.tanh(W["head.weight"] @ norm(x) / 15))
    return np.array(all_logits), np.array(states)


@every_config
def test_definition_is_the_equations(name):
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, 13)
    logits, _ = model.forward_sequential(idx)
    for row in range(2):
        close(logits[row], torch.from_numpy(naive_lrt(model, idx[row].tolist())[0]))


# ---- The dial ----------------------------------------------------------------------------------------------------

@every_config
@pytest.mark.parametrize("B, T", [(2, 13), (1, 8), (3, 1)])
def test_step_loop_is_definition_is_dial_at_S_equals_T(name, B, T):
    model = random_model(**CONFIGS[name])
    idx, targets = tokens(model, B, T), tokens(model, B, T, seed=2)
    logits, loss = model.forward_sequential(idx, targets)
    dial_logits, dial_loss = model(idx, targets, subsets=T, sweeps=1, loss_weights=(0, 1))
    close(dial_logits, logits)
    close(dial_loss, loss)
    for mine, theirs in zip(gradients(dial_loss, model), gradients(loss, model)):
        close(mine, theirs)
    cache = model.init_cache(B)
    for t in range(T):
        close(model.step(idx[:, t], cache), logits[:, t])
        states = torch.from_numpy(np.array([naive_lrt(model, row.tolist())[1][t] for row in idx])) if t in (0, T - 1) else None
        if states is not None:
            close(cache.latent, states)
    assert cache.pos == T


@every_config
@pytest.mark.parametrize("T", [13, 12])
def test_exact_prefix_is_as_long_as_predicted_and_no_longer(name, T):
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, T)
    exact, _ = model.forward_sequential(idx)
    for S in (1, 2, 3, 4, 5, 7, T):
        for K in range(4):
            logits, _ = model(idx, subsets=S, sweeps=K)
            wrong = ((logits - exact).abs().amax((0, 2)) > 1e-8).tolist()
            prefix = wrong.index(True) if True in wrong else T
            assert prefix == min(T, max(K + 1, S * K)), f"S = {S}, K = {K}: {prefix} exact positions"


@pytest.mark.parametrize("S, K", [(1, 0), (1, 2), (2, 1), (3, 2), (5, 1)])
def test_loss_is_one_mean_for_each_pass(S, K):
    """The default loss, put together from logits that the model gives after each sweep and each subset."""
    model = random_model()
    T = 13
    idx, targets = tokens(model, 2, T), tokens(model, 2, T, seed=2)
    nll = lambda k: torch.nn.functional.cross_entropy(model(idx, subsets=S, sweeps=k)[0].transpose(1, 2), targets, reduction="none")
    terms = [nll(0).mean()] + [nll(k)[:, s::S].mean() for k in range(1, K + 1) for s in range(S)]
    assert len(terms) == 1 + S * K
    close(model(idx, targets, subsets=S, sweeps=K)[1], torch.stack(terms).mean())
    weights = [0.3, 0.0, 1.5][:K + 1]
    close(model(idx, targets, subsets=S, sweeps=K, loss_weights=weights)[1],
          torch.stack([w * nll(k).mean() for k, w in enumerate(weights)]).sum())


def test_targets_of_minus_one_do_not_count():
    model = random_model()
    idx, targets = tokens(model, 2, 12), tokens(model, 2, 12, seed=2)
    targets[:, 5:] = -1
    close(model.forward_sequential(idx, targets)[1], model.forward_sequential(idx[:, :5], targets[:, :5])[1])
    close(model(idx, targets, subsets=12, loss_weights=(0, 1))[1], model.forward_sequential(idx, targets)[1])


@pytest.mark.parametrize("lrt", [False, True])
def test_causality(lrt):
    """No position sees a later one: not in its logits, not through a gradient. And LRT sees all earlier ones."""
    model = random_model(lrt=lrt)
    idx = tokens(model, 2, 12)
    runs = [lambda i: model.forward_sequential(i)[0]] + [lambda i, S=S, K=K: model(i, subsets=S, sweeps=K)[0] for S, K in ((1, 1), (2, 1), (3, 2), (5, 1))]
    for run in runs:
        before = run(idx)
        for t in (0, 5, 11):
            changed = idx.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            difference = (run(changed) - before).abs().amax((0, 2))
            assert difference[:t].max() == 0 if t else True
            assert (difference[t:] > 1e-9).all()
    embedding = model.embed.weight
    used = torch.arange(11).expand(1, 11)                  # token t at position t alone, so its row is that position
    for S, K in ((2, 1), (3, 2)):
        logits, _ = model(used, subsets=S, sweeps=K)
        for t in range(11):
            grad = torch.autograd.grad(logits[0, t].sum(), embedding, retain_graph=True)[0].abs().sum(1)
            assert (grad[:t + 1] > 0).all() and (grad[t + 1:] == 0).all()


def test_plain_is_lrt_without_memory_and_without_gates():
    plain, model = random_model(lrt=False), random_model()
    names = {name for name, _ in plain.named_parameters()}
    model.load_state_dict({**model.state_dict(), **plain.state_dict()})
    lrt_names = {name for name, _ in model.named_parameters()} - names
    assert {name.split(".")[-2 if "." in name else 0] for name in lrt_names} <= {"gamma", "w_g", "0"}
    with torch.no_grad():
        model.gamma.zero_()
        for p in (*model.u_k.parameters(), *model.u_v.parameters(), *(b.w_g.weight for b in model.blocks)):
            p.zero_()                                       # gates 2 σ(0) = 1, and nothing for g_mem to let in
    idx, targets = tokens(model, 2, 13), tokens(model, 2, 13, seed=2)
    logits, loss = plain(idx, targets)
    close(plain.forward_sequential(idx)[0], logits)
    close(model.forward_sequential(idx)[0], logits)
    for S, K in ((1, 1), (2, 1), (3, 2), (13, 1)):
        close(model(idx, targets, subsets=S, sweeps=K)[0], logits)
    close(model(idx, targets, subsets=2, loss_weights=(0.5, 0.5))[1], loss)


@pytest.mark.parametrize("proj", ["shared", "layerwise"])
def test_parameter_counts(proj):
    C, L, H, V = 16, 3, 2, 11
    plain = 2 * V * C + L * (12 * C * C) + 2 * L
    assert sum(p.numel() for p in random_model(lrt=False).parameters()) == plain
    lrt = L + L * 2 * H * C + 2 * C * C * (L if proj == "layerwise" else 1)
    assert sum(p.numel() for p in random_model(memory_proj=proj).parameters()) == plain + lrt


def test_flops_depend_on_sweeps_alone():
    """(1 + K) passes whatever S is. A sweep is a pass and the memory's projections, 2C² of 12 L C² in a model of L layers."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    model = random_model(n_layer=8, block_size=24)
    def count(S, K):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(tokens(model, 2, 24), subsets=S, sweeps=K)
        return counter.get_total_flops()
    head = 2 * 2 * 24 * 16 * 11
    first = count(1, 0) - head
    for S in (1, 2, 3, 8, 24):
        for K in (1, 2, 3):
            assert abs((count(S, K) - head) / first - (1 + K)) < 0.03 * (1 + K), (S, K)


# ---- Inference ---------------------------------------------------------------------------------------------------

def windowed_reference(model, idx):
    """Logits of every position when attention sees the last block_size positions and the memory goes on: the token
    loop with all keys kept and an explicit window."""
    from lrt import attention
    W, x0, rope = model.config.block_size, model.embedding(idx), model.rope(0, idx.size(1))
    keys, values = ([[] for _ in model.blocks] for _ in range(2))
    def attend(i, q, k, v):
        keys[i].append(k)
        values[i].append(v)
        return attention(q, torch.cat(keys[i][-W:], 2), torch.cat(values[i][-W:], 2))
    out, m = [], torch.zeros_like(x0[:, :1]) if model.config.lrt else None
    for t in range(idx.size(1)):
        h, m = model.layers(x0[:, t:t + 1], rope[:, t:t + 1], attend, m)
        out.append(model.logits(h[:, 0]))
    return torch.stack(out, 1).detach()


@pytest.mark.parametrize("lrt", [False, True])
def test_steps_slide_over_the_last_block(lrt):
    model = random_model(lrt=lrt)
    idx = tokens(model, 2, 45)
    cache, expected = model.init_cache(2), windowed_reference(model, idx)
    for t in range(45):
        close(model.step(idx[:, t], cache), expected[:, t])


@every_config
@pytest.mark.parametrize("cuts", [[1], [13], [45], [1, 1, 43], [5, 8, 1, 20, 11], [13, 13, 13, 6], [44, 1]])
def test_prefill_in_pieces_is_stepping(name, cuts):
    """For random weights, which need not contract: exact when it has used up its sweeps."""
    model = random_model(**CONFIGS[name])
    idx = tokens(model, 2, 45)
    expected = windowed_reference(model, idx)
    for S in (1, 4, 100):
        cache, end = model.init_cache(2), 0
        for cut in cuts:
            logits = model.prefill(idx[:, end:end + cut], cache, subsets=S, tol=0.0)
            end += cut
            close(logits, expected[:, end - 1])
            assert cache.sweeps <= math.ceil(cut / min(S, cut)) and cache.pos == end
        for t in range(end, 45):                            # and the cache goes on as if all had been steps
            close(model.step(idx[:, t], cache), expected[:, t])


def test_prefill_stops_at_its_tolerance():
    model = random_model(scale=0.05)
    idx = tokens(model, 2, 13)
    for tol in (1e-1, 1e-4, 1e-8):
        cache, exact = model.init_cache(2), model.init_cache(2)
        logits = model.prefill(idx, cache, subsets=1, tol=tol)
        expected = model.prefill(idx, exact, subsets=13)
        assert cache.residual <= tol or cache.sweeps == 12
        close(logits, expected, atol=30 * tol)


def test_generation_uses_the_memory():
    """Greedy text is the definition's, and is another one when the latent is dropped, stale, doubled or shifted."""
    model = random_model()
    prompt = tokens(model, 2, 3)
    text = torch.stack(list(model.generate(prompt, 10, temperature=0)), 1)
    idx = prompt
    for _ in range(10):
        idx = torch.cat([idx, model.forward_sequential(idx)[0][:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(text, idx[:, 3:])
    idx = idx.expand(2, -1)
    expected, _ = model.forward_sequential(idx)
    for spoil in (lambda new, old: new * 0, lambda new, old: old, lambda new, old: new * 2, lambda new, old: new.roll(1, 0)):
        cache = model.init_cache(2)
        for t in range(6):
            old = cache.latent
            logits = model.step(idx[:, t], cache)
            cache.latent = spoil(cache.latent, old)
        assert (logits - expected[:, 5]).abs().max() > 1e-3


def test_generate_options():
    model = random_model()
    prompt = tokens(model, 3, 4)
    draw = lambda seed, **k: torch.stack(list(model.generate(prompt, 30, generator=torch.Generator().manual_seed(seed), **k)), 1)
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1, top_k=1), draw(2, temperature=0))
    assert draw(1).shape == (3, 30)


def test_batch_order_does_not_matter():
    model = random_model()
    idx, order = tokens(model, 4, 12), torch.tensor([2, 0, 3, 1])
    close(model(idx[order], subsets=3)[0], model(idx, subsets=3)[0][order])
    close(model.forward_sequential(idx[order])[0], model.forward_sequential(idx)[0][order])


def test_shift_right():
    h = torch.randn(2, 5, 3)
    m = shift_right(h)
    assert m.shape == h.shape and (m[:, 0] == 0).all() and torch.equal(m[:, 1:], h[:, :-1])
    assert torch.equal(shift_right(h, h[:, 4])[:, 0], h[:, 4])


@pytest.mark.parametrize("wrong", [dict(n_layer=0), dict(n_embd=10), dict(n_head=3), dict(dropout=1.0), dict(memory_layer=4),
                                   dict(memory_layer=0), dict(memory_proj="both"), dict(vocab_size=2.5), dict(lrt=2)])
def test_impossible_configurations_are_named(wrong):
    with pytest.raises(ValueError, match="n_embd" if "n_head" in wrong else next(iter(wrong))):
        random_model(**wrong)


def test_impossible_dials_are_named():
    model = random_model()
    for wrong in (dict(subsets=0), dict(sweeps=-1), dict(loss_weights=(1,)), dict(loss_weights=(0, 0))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model(tokens(model, 1, 5), tokens(model, 1, 5), **wrong)


# ---- Data --------------------------------------------------------------------------------------------------------

TEXT = "".join(f"SPEAKER {i % 7}:\nThe {i * 37 % 101} words of line {i}, naïvely counted — {'lo ' * (i % 5)}end.\n\n" for i in range(120))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.mark.parametrize("tokenizer", ["char", "bpe:40"])
def test_prepared_text_comes_back(here, tokenizer):
    prepare_data.prepare("mine", tokenizer, "text.txt")
    meta, codec, tokens = prepare_data.load("mine")
    cut = int(len(TEXT) * 0.9)
    assert codec.decode(tokens["train"].tolist()) == TEXT[:cut] and codec.decode(tokens["val"].tolist()) == TEXT[cut:]
    decode = codec.decoder()
    assert "".join(decode(t) for t in tokens["val"].tolist()) == TEXT[cut:]
    assert meta["train_tokens"] == len(tokens["train"]) and meta["vocab_size"] == codec.vocab_size
    assert codec.vocab_size == (len(set(TEXT)) if tokenizer == "char" else 256 + 40)


def test_bpe_learns_from_the_training_split_alone_and_encodes_anything(here):
    cut = int(len(TEXT) * 0.9)
    Path("other.txt").write_text(TEXT[:cut] + "QXQX" * ((len(TEXT) - cut) // 4), encoding="utf-8", newline="\n")
    prepare_data.prepare("a", "bpe:40", "text.txt")
    prepare_data.prepare("b", "bpe:40", "other.txt")
    a, b = (prepare_data.load(name)[0]["codec"] for name in "ab")
    assert a["tokens"] == b["tokens"]
    strange = "tab\t_under_ 12½ ٣ x\u0301 日本 \u200d\x1c\x85 🙂\n\n  end  "
    codec = prepare_data.Codec(a)
    assert codec.decode(codec.encode(strange)) == strange
    first = prepare_data.bpe_codec("ab ab abc", 2)["tokens"][256:]      # the commonest pair, then the next one
    assert [prepare_data.base64.b64decode(t) for t in first] == [b"ab", b" ab"]


def test_embedded_corpus_when_there_is_no_network(here, monkeypatch, capsys):
    def no_network(*args):
        raise OSError("no network")
    monkeypatch.setattr(prepare_data, "download", no_network)
    prepare_data.prepare()
    assert "EMBEDDED CORPUS" in capsys.readouterr().err
    meta, _, tokens = prepare_data.load("shakespeare")
    assert meta["source"].startswith("embedded") and len(tokens["train"]) > 300_000


def test_download_is_checked_by_size_and_sum(here, monkeypatch):
    class Server:
        def __init__(self, data): self.data = data
        def __enter__(self): return self
        def __exit__(self, *args): pass
        def read(self, n): self.data, out = self.data[n:], self.data[:n]; return out
    for data in (b"<html>not the file</html>", b"x" * 3_000_000):
        monkeypatch.setattr(prepare_data.urllib.request, "urlopen", lambda url, timeout, data=data: Server(data))
        with pytest.raises(OSError, match="sha256"):
            prepare_data.download("http://example.org", 1000, "0" * 64)


# ---- The scripts -------------------------------------------------------------------------------------------------

SMALL = ("--dataset=mine --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 --batch_size=4 --max_iters=6 --eval_interval=3 "
         "--log_interval=2 --device=cpu").split()


def run(module, *args):
    """A script's main() in this process; its exit status."""
    try:
        module.main(list(args))
    except SystemExit as e:
        return e.code
    return 0


def rows(folder):
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder):
    return torch.load(Path(folder, "last.pt"), weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_command_line_from_text_to_text(here):
    """As a user would: three commands, each a process of its own."""
    def command(script, *args):
        done = subprocess.run([sys.executable, HERE / script, *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert done.returncode == 0, done.stderr
        return done.stdout
    command("prepare_data.py", "--dataset=mine", "--input=text.txt")
    out = command("train.py", "--lrt=1", *SMALL)
    assert "100%" in out and "exact - training graph" in out
    log = rows("out")
    assert [row["iter"] for row in log] == [3, 6] and log[0]["val_loss_exact"] < math.log(60)
    assert {"iter", "tokens", "flops", "seconds", "train_loss", "val_loss", "val_loss_exact", "val_bpb_exact",
            "exact_by_position"} <= set(log[0]) and len(log[0]["exact_by_position"]) == 16
    text = command("sample.py", "--prompt=The ", "--max_new_tokens=40", "--num_samples=2")
    assert text.startswith("The ") and text.count("The ") >= 2 and "---" in text
    assert command("sample.py", "--max_new_tokens=40") == command("sample.py", "--max_new_tokens=40")


@pytest.mark.parametrize("flags", [["--lrt=0"], ["--lrt=1", "--lrt_mode=sequential"], ["--lrt=1", "--lrt_subsets=4", "--lrt_sweeps=2"],
                                   ["--lrt=1", "--lrt_loss_weights=0.5,1"], ["--lrt=1", "--lrt_memory_layer=1", "--dropout=0.2"],
                                   ["--lrt=1", "--lrt_memory_proj=layerwise", "--gradient_accumulation_steps=2"],
                                   ["--lrt=1", "--dtype=bfloat16"]])
def test_trains_in_every_mode(here, flags):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, *flags) == 0
    row = rows("out")[-1]
    assert row["val_loss_exact"] < 4.2 and abs(row["val_loss_exact"] - row["val_loss"]) < 0.1
    assert row["val_bpb_exact"] == pytest.approx(row["val_loss_exact"] / math.log(2) * 1, rel=0.05)


def test_sequential_training_is_the_dial_at_S_equals_T(here):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--lrt_mode=sequential", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--lrt_subsets=16", "--lrt_loss_weights=0,1", "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss_exact"] == pytest.approx(b["val_loss_exact"], abs=1e-4)


def test_evaluation_covers_the_split_and_stands_apart(here, monkeypatch):
    """The same whatever the batch size; equal to decoding the windows one by one; training does not notice it."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--eval_interval=1", "--out_dir=b") == 0
    assert same(weights("a"), weights("b"))
    model, codec, _ = sample.load_checkpoint(Path("a/last.pt"), "cpu")
    val = prepare_data.load("mine")[2]["val"]
    text = torch.from_numpy(val.astype(np.int64))
    nll = []
    for start in range(0, len(text) - 1, 16):
        x, y = text[start:start + 16][None], text[start + 1:start + 17][None]
        logits, _ = model.eval().forward_sequential(x[:, :y.size(1)])
        nll += torch.nn.functional.cross_entropy(logits[0], y[0], reduction="none").tolist()
    assert len(nll) == len(val) - 1
    assert rows("a")[-1]["val_loss_exact"] == pytest.approx(np.mean(nll), abs=1e-5)
    n_bytes = len(codec.decode(val[1:].tolist()).encode())
    assert rows("a")[-1]["val_bpb_exact"] == pytest.approx(sum(nll) / math.log(2) / n_bytes, abs=1e-5)


def test_resumed_run_is_the_same_run(here):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--out_dir=a") == 0
    saved = []
    atomic = train.write_atomic
    def write_and_stop(path, write):
        atomic(path, write)
        if Path(path).name == "last.pt":
            raise KeyboardInterrupt
    train.write_atomic = write_and_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train.main([*SMALL, "--lrt=1", "--out_dir=b"])
    finally:
        train.write_atomic = atomic
    assert run(train, "--resume=b") == 0
    assert same(weights("a"), weights("b"))
    strip = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    assert strip(rows("a")) == strip(rows("b"))


BAD_INPUT = [
    (train, ["--lrt=1", "--n_layers=3"], "n_layers"),
    (train, ["--n_embd=10"], "n_embd"),
    (train, ["--lrt=2"], "--lrt"),
    (train, ["--block_size=0"], "block_size"),
    (train, ["--block_size=100000"], "block_size"),
    (train, ["--lrt=1", "--lrt_memory_layer=9"], "memory_layer"),
    (train, ["--lrt=1", "--lrt_subsets=17"], "lrt_subsets"),
    (train, ["--lrt=1", "--lrt_loss_weights=1,2,3"], "lrt_loss_weights"),
    (train, ["--lrt=1", "--lrt_loss_weights=a,b"], "lrt_loss_weights"),
    (train, ["--lrt_mode=exact"], "lrt_mode"),
    (train, ["--learning_rate=-1"], "learning_rate"),
    (train, ["--learning_rate=nan"], "learning_rate"),
    (train, ["--max_iters=1.5"], "max_iters"),
    (train, ["--device=gpu"], "--device"),
    (train, ["--dataset=unknown"], "--dataset"),
    (train, ["--dataset=../mine"], "--dataset"),
    (train, ["--dataset=broken"], "broken"),
    (train, ["--out_dir=text.txt"], "out_dir"),
    (train, ["--out_dir=run"], "run"),
    (train, ["--resume=nowhere"], "nowhere"),
    (prepare_data, ["--input=missing.txt"], "missing.txt"),
    (prepare_data, ["--input=empty.txt"], "empty.txt"),
    (prepare_data, ["--input=latin1.txt"], "UTF-8"),
    (prepare_data, ["--tokenizer=bpe:0", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--tokenizer=words", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--dataset=a/b", "--input=text.txt"], "--dataset"),
    (prepare_data, ["--inputs=text.txt"], "inputs"),
    (sample, ["--out_dir=nowhere"], "no checkpoint"),
    (sample, ["--out_dir=pickled"], "pickled"),
    (sample, ["--out_dir=run", "--prompt=日本"], "日"),
    (sample, ["--out_dir=run", "--prompt="], "--prompt"),
    (sample, ["--out_dir=run", "--temperature=-1"], "--temperature"),
    (sample, ["--out_dir=run", "--num_samples=0"], "--num_samples"),
    (sample, ["--out_dir=run", "--top_k=x"], "--top_k"),
]


def test_bad_input_ends_in_one_line_and_changes_nothing(here, capsys):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes("naïve".encode("latin-1"))
    Path("data/broken").mkdir()
    Path("data/broken/meta.json").write_text("{", encoding="utf-8")
    Path("pickled").mkdir()
    class Evil:
        def __reduce__(self):
            return (open, ("evil_was_here", "w"))
    torch.save(Evil(), "pickled/best.pt")
    files = lambda: {p: p.read_bytes() for p in sorted(Path(".").rglob("*")) if p.is_file()}
    before = files()
    for module, args, named in BAD_INPUT:
        capsys.readouterr()
        flags = SMALL if module is train else []
        status, err = run(module, *flags, *args), capsys.readouterr().err
        assert status == 2, (args, status, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and named in err, (args, err)
        assert files() == before, args
