"""A model's own tokenizer: its tokens and their bytes, in training, evaluation and as text."""

import argparse
import io
import json
import sys
from math import log
from pathlib import Path

import pytest
from mpitest import mpirun

from tparallel import data, tokenizer
from tparallel.commands import flags
from tparallel.errors import DataError
from tparallel.generate.text import Stream, Words

EVAL = ["-m", "tparallel", "eval"]
TEXT = "Grüße, 世界! the cat sat on the mat; the cat sat.\n" * 3


@pytest.fixture
def bpe(tmp_path):
    """A byte-level tokenizer.json of 300 tokens, the last one special, in a folder."""
    library = pytest.importorskip("tokenizers", reason="needs the extra hf")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tok = library.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator([TEXT], trainer)
    tok.add_special_tokens(["<|endoftext|>"])
    tok.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_models_own_tokenizer_makes_the_tokens_and_knows_their_bytes(bpe):
    """Two documents and the token between them; the sizes of all tokens add up to the files'."""
    end = 280
    (bpe / "config.json").write_text(f'{{"eos_token_id": [{end}]}}')
    found = tokenizer.of_folder(bpe, 300)
    for name in ("a", "b"):
        (bpe / name).write_text(TEXT, encoding="utf-8")
    corpus = data.load([bpe / "a", bpe / "b"], 300, found)
    assert len(corpus.tokens) < len(TEXT.encode()) and corpus.tokens.max() == end
    assert (corpus.tokens == end).sum() == 1
    assert corpus.sizes[corpus.tokens].sum() == corpus.size == 2 * len(TEXT.encode())
    targets = corpus.tokens[1:]
    bits = data.bits_per_byte(2.0, targets, corpus.sizes)
    count = corpus.size - corpus.sizes[corpus.tokens[0]]
    assert bits == pytest.approx(2.0 * len(targets) / count / log(2), rel=1e-12)


def test_a_prompt_in_a_models_own_tokens_is_text_again_as_it_grows(bpe):
    """With the special token that the tokenizer puts first; characters of several tokens appear
    when they are whole."""
    said = json.loads((bpe / "tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    said["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [280], "tokens": ["<|endoftext|>"]}
        },
    }
    (bpe / "tokenizer.json").write_text(json.dumps(said))
    words = Words(tokenizer.of_folder(bpe, 300), 300)
    ids = words.ids("the 界 cat", "prompt 0")
    assert ids[0] == 280 and words.text(ids) == "the 界 cat"
    out, seen = io.StringIO(), []
    stream = Stream(words, [ids[:2]], out)
    for n in range(len(ids) - 1):
        stream.tell(0, ids[2 : 2 + n], ended=n == len(ids) - 2)
        seen.append(out.getvalue())
    assert seen[-1] == "the 界 cat\n" and not any("\ufffd" in text for text in seen)


def test_a_tokenizer_that_cannot_serve_is_refused(bpe, monkeypatch):
    """A vocabulary too small; a text that is not UTF-8; another form; the library missing."""
    with pytest.raises(DataError, match=r"ids up to 280, V = 280"):
        tokenizer.of_folder(bpe, 280)
    (bpe / "latin").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8: latin has byte 0xfc at 2"):
        data.load([bpe / "latin"], 300, tokenizer.of_folder(bpe, 300))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="Install the extra hf"):
        tokenizer.of_folder(bpe, 300)
    (bpe / "tokenizer.json").rename(bpe / "vocab.json")
    with pytest.raises(DataError, match=r"has vocab.json alone"):
        tokenizer.of_folder(bpe, 300)
    (bpe / "vocab.json").unlink()
    assert tokenizer.of_folder(bpe, 300) is None
    args = argparse.Namespace(tokenizer=str(bpe))
    with pytest.raises(DataError, match="--tokenizer needs a folder"):
        flags.tokenizer(args, 300, None)


def test_the_tokenizer_goes_with_the_weights(bpe, tmp_path):
    """Trained from the beginning on a tokenizer's tokens: the export has its files, evaluation
    cuts the same text into the same tokens; the checkpoint alone is refused, and says why."""
    book, out, answer, saved = (str(tmp_path / n) for n in ("book", "out", "answer", "saved"))
    Path(book).write_text(TEXT * 4, encoding="utf-8")
    sizes = ["--L", "1", "--D", "8", "--H", "1", "--T", "8", "--V", "300"]
    run = ["--steps", "1", "--validate-every", "0", "--data", book, "--tokenizer", str(bpe)]
    ended = mpirun(1, "-m", "tparallel", "train", *sizes, *run, "--export", out, "--save", saved)
    assert ended.code == 0, ended.out
    ended = mpirun(1, *EVAL, "--weights", out, "--data", book, "--json", answer)
    assert ended.code == 0, ended.out
    corpus = data.load([book], 300, tokenizer.of_folder(bpe, 300))
    said = json.loads(Path(answer).read_text())
    assert said["targets"] == len(corpus.tokens) - 1 and said["data"] == corpus.identity()
    ended = mpirun(1, *EVAL, "--weights", saved, "--data", book)
    assert ended.code == 2 and "Use --tokenizer DIR" in ended.out, ended.out
    ended = mpirun(1, *EVAL, "--weights", saved, "--data", book, "--tokenizer", str(bpe))
    assert ended.code == 0 and f"loss {said['loss']:.6g}" in ended.out, ended.out
