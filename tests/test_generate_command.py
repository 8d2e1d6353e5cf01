"""``tparallel generate``: text in, text out, for a person and for another program."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpitest import mpi, mpirun
from published_folders import stored, write_folder
from refusals import assert_refused

from tparallel import cli
from tparallel.commands import generate as command
from tparallel.data import END
from tparallel.weights import Folder

GENERATE = ["-m", "tparallel", "generate"]
MODEL = ["--L", "2", "--D", "32", "--H", "4", "--T", "48", "--V", "259"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model trained by tp = 2, pp = 2 for 80 steps, saved as a checkpoint and exported."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("the cat sat on the mat. the dog sat on the log. " * 60)
    flags = [*MODEL, "--tp", "2", "--pp", "2", "--steps", "80", "--validate-every", "0"]
    flags += ["--lr", "0.01", "--data", str(folder / "text")]
    flags += ["--save", str(folder / "saved"), "--export", str(folder / "exported")]
    ended = mpirun(4, "-m", "tparallel", "train", *flags)
    assert ended.code == 0, ended.out
    return folder


def asked(ranks: int, *flags: str) -> str:
    ended = mpirun(ranks, *GENERATE, *flags)
    assert ended.code == 0, ended.out
    return ended.out


def test_a_trained_model_goes_on_with_its_text_in_another_layout(run):
    """Trained and saved by tp = 2, pp = 2; the checkpoint is asked by tp = 2, its export by one
    process: the same text, and it has learnt it.  Bytes and cache are as predicted."""
    prompts = ["--prompt", "the cat", "the dog sat", "--max-new", "20"]
    one = asked(2, "--weights", str(run / "saved"), *prompts, "--tp", "2")
    two = asked(1, "--weights", str(run / "exported"), *prompts)
    texts = [out.split("\n---\n") for out in (one, two)]
    for wanted in ("the cat sat on the ", "the dog sat on the "):
        assert wanted in one, one
        assert wanted in two, two
    assert texts[0][0].splitlines()[-1] == texts[1][0].splitlines()[-1]
    assert texts[0][1].splitlines()[0] == texts[1][1].splitlines()[0]
    # 2 layers x 2 sums and the embedding's of 2 x 32 float32, 2 candidates of 16 bytes, 19 times
    assert "sent    tp: " in one and "(closed form " in one
    sent = 19 * (5 * 2 * 32 * 4 + 2 * 16) / 38
    assert (
        f"tp: {sent:,.1f} bytes per new token by the busiest rank (closed form {sent:,.1f})" in one
    )


def test_other_programs_give_ids_and_get_ids(tmp_path, run):
    """Lists of unequal length in, a list of lists out, the same from four ranks and from one, with
    the cache and without; --stop shortens them; sampling is the seed's."""
    write_folder(tmp_path / "gpt2", "gpt2")
    ids, out = tmp_path / "prompts.json", tmp_path / "new.json"
    ids.write_text("[[1, 2, 3], [4], [36, 0]]")
    flags = ["--weights", str(tmp_path / "gpt2"), "--tokens", str(ids), "--max-new", "5"]
    flags += ["--dtype", "float64", "--json", str(out)]
    found = []
    for ranks, more in ((4, "--tp 2 --pp 2"), (1, ""), (1, "--no-cache")):
        asked(ranks, *flags, *more.split())
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] == found[2] and [len(row) for row in found[0]] == [5, 5, 5]
    stop = found[0][0][2]
    shown = asked(1, *flags[:-2], "--stop", str(stop))
    assert (
        json.dumps([row[: row.index(stop) + 1] if stop in row else row for row in found[0]])
        in shown
    )
    samples = [
        asked(1, *flags, "--temperature", "2", "--seed", s) and out.read_text() for s in "112"
    ]
    assert samples[0] == samples[1] != samples[2]


def test_text_comes_piece_by_piece(run):
    """Under the launcher, from two stages: the first piece is there long before the last."""
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    line = [sys.executable, *GENERATE, "--weights", str(run / "exported"), "--pp", "2"]
    line += ["--prompt", "the", "--max-new", "40", "--no-cache"]
    job = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pieces = []
    while piece := os.read(job.stdout.fileno(), 4096):
        pieces.append((time.monotonic(), piece))
    assert job.wait() == 0
    assert len(pieces) > 5
    assert pieces[-1][0] - pieces[0][0] > 0.01
    assert b"".join(p for _, p in pieces).startswith(b"the cat sat on the")


REFUSED = [
    ("--prompt a", "ConfigError: generation needs a model"),
    ("--weights {gpt2}", "ConfigError: prompts are texts or ids"),
    ("--weights {gpt2} --prompt a --tokens {ids}", "ConfigError: prompts are texts or ids"),
    ("--weights {gpt2} --tokens {no}", "DataError: --tokens must be a JSON file"),
    ("--weights {gpt2} --tokens {bad}", "DataError: --tokens must be a list of lists"),
    ("--weights {gpt2} --tokens {ids}", "DataError: a prompt and its new tokens must fit"),
    ("--weights {gpt2} --tokens {big} --max-new 1", "DataError: token ids must lie in"),
    ("--weights {gpt2} --tokens {none} --max-new 1", "DataError: a prompt must have a token"),
    ("--weights {gpt2} --prompt a --max-new 1", "DataError: the vocabulary must have a token"),
    ("--weights {gpt2} --tokens {ids} --temperature -1", "ConfigError: temperature must be"),
    ("--weights {gpt2} --tokens {ids} --stop 37", "ConfigError: a stop token must be in"),
    ("--weights {gpt2} --tokens {ids} --max-new 1 --pp 3", "LayoutError: "),
    ("--weights {gpt2} --tokens {ids} --dtype int8 --max-new 1", "ConfigError: dtype"),
    ("--weights {gpt2} --tokens {ids} --json {no}/x", "ConfigError: an answer needs a place"),
]


@mpi(2)
def test_a_wrong_request_is_refused_alike_on_every_rank(comm, tmp_path):
    """Before anything is computed: *rule; values; way out*."""
    names = {n: tmp_path / n for n in ("gpt2", "no", "bad", "ids", "big", "none")}
    if comm.rank == 0:
        write_folder(names["gpt2"], "gpt2")
        texts = {"bad": "[[1.5]]", "ids": "[[1]]", "big": "[[37]]", "none": "[[]]"}
        for name, text in texts.items():
            names[name].write_text(text)
    comm.Barrier()
    assert_refused(command, REFUSED, **names)


@pytest.mark.oracle
def test_transformers_goes_on_with_the_exported_model_in_the_same_words(run):
    """A run's export: greedy by transformers, float64, each prompt alone, is ours from tp = 2."""
    pytest.importorskip("transformers", reason="needs the oracle extra: transformers")
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [[*text.encode()] for text in ("the cat", "the dog sat on", "mat", "x")]
    (run / "ids.json").write_text(json.dumps(prompts))
    flags = ["--weights", str(run / "saved"), "--tokens", str(run / "ids.json"), "--max-new", "30"]
    asked(2, *flags, "--tp", "2", "--dtype", "float64", "--json", str(run / "new.json"))
    found = json.loads((run / "new.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(run / "exported").double().eval()
    for prompt, new in zip(prompts, found):
        assert transformers_greedy(model, torch.tensor([prompt]), 30) == new
    assert END not in found[0] and bytes(found[0]).startswith(b" sat on the ")


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama3-tied", "qwen2-tied"])
def test_greedy_tokens_are_those_of_transformers(name, tmp_path):
    """Random models of four families in float64, prompts of unequal length, tp = 2, pp = 2."""
    pytest.importorskip("transformers", reason="needs the oracle extra: transformers")
    import torch
    from oracle.published import in_float64
    from transformers import AutoModelForCausalLM

    folder = write_folder(tmp_path / name, name)
    V, T = Folder(folder).model.V, Folder(folder).model.T
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, n).tolist() for n in (1, 3, 2, 4)]
    (tmp_path / "ids").write_text(json.dumps(prompts))
    new = min(12, T - 4)
    flags = ["--weights", str(folder), "--tokens", str(tmp_path / "ids"), "--dtype", "float64"]
    flags += ["--max-new", str(new), "--tp", "2", "--pp", "2", "--json", str(tmp_path / "new")]
    asked(4, *flags)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().double()
    with in_float64():
        turned = getattr(model.base_model, "rotary_emb", None)
        if turned is not None:
            model.base_model.rotary_emb = type(turned)(model.config)
        wanted = [transformers_greedy(model, torch.tensor([p]), new) for p in prompts]
    assert json.loads((tmp_path / "new").read_text()) == wanted
    assert stored(name)[0]["vocab_size"] == V


def transformers_greedy(model, ids, new: int) -> list[int]:
    """``generate`` with its own cache, and no token that ends a text."""
    import torch

    mask = torch.ones_like(ids)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()
