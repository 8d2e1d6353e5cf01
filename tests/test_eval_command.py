"""The commands ``eval`` and ``export``, and ``train`` from weights and to weights."""

import json
from math import exp, log

import numpy as np
import pytest
from mpitest import mpi, mpirun
from published_folders import stored, write_folder
from refusals import assert_refused
from safetensors.numpy import load_file
from standin_cupy import CUPY

from tparallel import cli, data
from tparallel.checkpoint import Saver, resume
from tparallel.commands import eval as command
from tparallel.config import Layout, ModelConfig, TrainConfig
from tparallel.evaluate import Evaluator
from tparallel.serial.loss import cross_entropy_forward
from tparallel.serial.model import model_forward
from tparallel.serial.train import initial_params
from tparallel.train import Trainer
from tparallel.weights import export_source, export_trainer, opened

EVAL = ["-m", "tparallel", "eval"]
TINY = ["--L", "2", "--D", "16", "--H", "2", "--T", "8", "--V", "259"]
MODEL = ModelConfig(L=2, D=16, H=2, T=8, V=259)


@pytest.mark.parametrize("name, env", [("gpt2", {}), ("llama3-tied", CUPY)])
def test_other_programs_give_tokens_and_get_logits_and_the_loss(name, env, tmp_path):
    """Four ranks, tp=2 dp=2, three rows: a file (B, T, V) in the dtype asked for, the mean loss of
    the B · (T − 1) next tokens printed and in the JSON file.  On NumPy, and on the stand-in for
    CuPy."""
    _, _, tokens, logits = stored(name)
    folder, ids, out, answer = (tmp_path / n for n in ("gpt2", "ids.npy", "out.npy", "a.json"))
    write_folder(folder, name, count=3)
    np.save(ids, tokens.astype(np.int64))
    flags = ["--weights", folder, "--tokens", ids, "--logits", out, "--json", answer]
    flags += ["--dtype", "float64", "--tp", "2", "--dp", "2", "--zero", "3"]
    ended = mpirun(4, *EVAL, *map(str, flags), env=env)
    assert ended.code == 0, ended.out
    found = np.load(out)
    assert found.dtype == np.float64 and found.shape == logits.shape
    assert np.abs(found - logits).max() <= 1e-10 * np.abs(logits).max()
    said = json.loads(answer.read_text())
    wanted = float(cross_entropy_forward(logits[:, :-1], tokens[:, 1:], tokens[:, 1:].size)[0])
    assert said["loss"] == pytest.approx(wanted, rel=1e-10) and said["targets"] == 15
    assert said["perplexity"] == pytest.approx(exp(wanted), rel=1e-10)
    assert f"loss {said['loss']:.10g} nats" in ended.out and "bits_per_byte" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "gpt2", "ids.npy", "out.npy"]


def test_every_token_of_a_text_but_the_first_is_a_target_once(tmp_path):
    """The reference model before training, pp=2, two files of 61 and 34 bytes and the token
    between them: 12 rows of 8, the last one short; the loss of serial, over 95 targets."""
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("The cat sat on the mat. It was soft. The dog sat beside the cat")
    files[1].write_text("and nobody said a word until noon.")
    answer = tmp_path / "a.json"
    flags = [*TINY, "--init", "random", "--dtype", "float64", "--pp", "2", "--json", str(answer)]
    ended = mpirun(2, *EVAL, *flags, "--data", *map(str, files))
    assert ended.code == 0, ended.out
    text = data.load(files, 259).tokens.astype(np.int64)
    params = initial_params(MODEL, TrainConfig(init="random", dtype="float64"))
    total = 0.0
    for start in range(0, len(text) - 1, 8):
        row = text[start : start + 9][None]
        part = cross_entropy_forward(model_forward(row[:, :-1], params)[0], row[:, 1:], 1)[0]
        total += float(part)
    said = json.loads(answer.read_text())
    assert said["targets"] == len(text) - 1 and len(text) % 8 != 1
    assert said["loss"] == pytest.approx(total / (len(text) - 1), rel=1e-10)
    count = int((text[1:] < 256).sum())
    assert count == len(text) - 2
    assert said["bits_per_byte"] == pytest.approx(total / count / log(2), rel=1e-10)


def test_training_starts_from_weights_and_ends_in_weights(tmp_path):
    """Two ranks, tp = 2: a run of lr 0 from an exported model leaves every bit as it was; the loss
    of its first step is that of the weights; a run that learns changes them."""
    first = [*TINY, "--steps", "2", "--validate-every", "0"]
    train = ["-m", "tparallel", "train"]
    ended = mpirun(2, *train, *first, "--zero", "1", "--export", str(tmp_path / "one"))
    assert ended.code == 0 and f"Weights: {tmp_path / 'one'}" in ended.out, ended.out
    still = ["--lr", "0", "--steps", "1", "--tp", "2", "--validate-every", "0"]
    folders = ["--weights", str(tmp_path / "one"), "--export", str(tmp_path / "two")]
    ended = mpirun(2, *train, *still, *folders, "--log", str(tmp_path / "log"))
    assert ended.code == 0, ended.out
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    header, line = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert ModelConfig(**header["model"]) == MODEL
    start = initial_params(MODEL, TrainConfig())
    moved = np.abs(one["lm_head.weight"] - start["head"]["w_tok"]).max()
    assert 0 < moved < 0.01 and np.isfinite(line["loss"])


REFUSED = [
    ("--weights {gpt2} --L 3", "ConfigError: the weights say what the model is"),
    ("--weights {gpt2} --model gpt2", "ConfigError: the weights say what the model is"),
    ("--weights {here}", "WeightsError: a model is a folder with config.json"),
    ("--weights {gpt2} --tokens {big}", "DataError: token ids must lie in the vocabulary"),
    ("--weights {gpt2} --tokens {long}", "WeightsError: rows are at most as long as"),
    ("--weights {gpt2} --tokens {flat}", "DataError: --tokens must be integers of shape"),
    ("--weights {gpt2} --tokens {here}/x", "DataError: --tokens must be a NumPy file"),
    ("--weights {gpt2} --tokens {big} --T 5", "ConfigError: the rows say how long they are"),
    ("--weights {gpt2} --logits {here}/x", "ConfigError: logits are those of rows of tokens"),
    ("--tokens {big} --json {here}/no/x", "ConfigError: an answer needs a place"),
    ("--weights {gpt2} --data {big}", "DataError: the vocabulary must have a token"),
    ("--dtype int8", "ConfigError: dtype is not one"),
]


@mpi(2)
def test_a_wrong_request_is_refused_alike_on_every_rank(comm, tmp_path):
    """Before anything is computed: *rule; values; way out*."""
    names = {name: tmp_path / f"{name}.npy" for name in ("big", "long", "flat")}
    names |= {"gpt2": tmp_path / "gpt2", "here": tmp_path}
    if comm.rank == 0:
        write_folder(names["gpt2"], "gpt2")
        np.save(names["big"], np.array([[0, 37]]))
        np.save(names["long"], np.zeros((1, 9), int))
        np.save(names["flat"], np.zeros(9, int))
    comm.Barrier()
    assert_refused(command, REFUSED, **names)


def test_export_writes_a_folder_once_more_in_another_dtype(tmp_path, capsys):
    """float32 to float16: every number rounded, the tokenizer's files beside it."""
    source = write_folder(tmp_path / "gpt2", "gpt2")
    (source / "tokenizer.json").write_text("{}")
    out = tmp_path / "half"
    assert cli.main(["export", str(source), "--out", str(out), "--dtype", "float16"]) == 0
    found = load_file(out / "model.safetensors")
    for name, a in stored("gpt2")[1].items():
        assert np.array_equal(found[name], a.astype(np.float16)), name
    assert (out / "tokenizer.json").read_text() == "{}"
    assert "float16" in capsys.readouterr().out
    assert cli.main(["export", str(source), "--out", str(out)]) == 2
    assert cli.main(["export", str(source), "--out", str(tmp_path / "x"), "--dtype", "int8"]) == 2


@mpi(2)
def test_a_checkpoint_is_asked_and_exported_as_a_folder_is(comm, tmp_path):
    """Saved by tp = 2 in float64: asked in dp = 2, zero = 3, it gives the loss of the trainer that
    saved it; its export is the trainer's own, to the bit."""
    text = data.load([__file__], 259)
    train = TrainConfig(init="random", dtype="float64", global_batch=4)
    trainer = Trainer(MODEL, train, Layout(tp=2), comm)
    trainer.step(0, *text.batch(0, 4, 8, 0))
    Saver(trainer, tmp_path / "runs", resume.text(text)).save(1)
    tokens, targets = text.validation(0, 4, 8)
    wanted = trainer.evaluate(tokens, targets)
    export_trainer(trainer, tmp_path / "one")
    trainer.close()
    saved = opened(tmp_path / "runs", comm=comm)
    assert saved.model == MODEL and saved.dtype == "float64" and saved.tokenizer() is None
    asked = Trainer(saved.model, train, Layout(dp=2, zero=3), comm, start=saved.part, learns=False)
    found = Evaluator(asked).loss(tokens, targets) / targets.size
    asked.close()
    assert abs(found - wanted) < 1e-12 * wanted
    if comm.rank == 0:
        export_source(saved, tmp_path / "two")
        one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
        assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    other = opened(tmp_path / "runs" / "step-000001", T=5, comm=comm)
    assert other.model.T == 5 and other.part("embed")["w_pos"].shape == (5, 16)
