"""The text: the same tokens for every layout, none of them in both parts, every byte counted."""

import hashlib
from math import log
from platform import python_version
from pydoc_data.topics import topics

import numpy as np
import pytest
from mpitest import mpi

from tparallel.data import END, Corpus, agree, bits_per_byte, load
from tparallel.errors import DataError


def places(N: int = 2000) -> Corpus:
    """A text whose token at place i is i, so that a batch says where it was taken."""
    return Corpus("places", 1, N, "", np.arange(N, dtype=np.uint16))


def written(folder, **texts: bytes) -> list[str]:
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return [str(folder / name) for name in texts]


def test_batch_k_depends_on_the_seed_and_k_alone():
    """Asked for again, in another order, of another corpus object, batch k is the same; another
    step or seed gives another one."""
    first = [load().batch(k, 4, 16, seed=1)[0] for k in range(4)]
    again = load()
    for k in (3, 1, 0, 2):
        assert np.array_equal(again.batch(k, 4, 16, seed=1)[0], first[k])
    others = [load().batch(k, 4, 16, seed)[0] for k, seed in ((4, 1), (0, 0), (0, 2), (1, 0))]
    assert all(not np.array_equal(a, b) for a in others for b in first)


@pytest.mark.parametrize("part", ["batch", "validation"])
def test_a_target_is_the_token_that_comes_next(part):
    """targets[:, t] stands right after tokens[:, t] in the text; both are int64 of shape (G, T)."""
    rows = getattr(places(), part)
    tokens, targets = rows(5, 3, 8, seed=0) if part == "batch" else rows(5, 3, 8)
    assert tokens.shape == targets.shape == (3, 8)
    assert tokens.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, tokens + 1)
    assert np.array_equal(tokens, tokens[:, :1] + np.arange(8))


def test_training_reaches_its_whole_part_and_never_the_held_out_tenth():
    """Over many steps every place before the split occurs, and none behind it."""
    corpus = places(200)
    batches = [corpus.batch(k, 8, 16, seed=0) for k in range(300)]
    assert {int(i) for tokens, _ in batches for i in tokens.flat} == set(range(179))
    assert {int(i) for _, targets in batches for i in targets.flat} == set(range(1, 180))


def test_validation_reads_the_held_out_tenth_in_order_and_starts_again():
    """Rows follow each other without overlap; after the last whole row comes the first again."""
    corpus = places(2000)  # held out: 1800 to 1999, of which 12 rows of 16 and their successor
    assert corpus.validation_rows(16) == 12
    starts = np.concatenate([corpus.validation(k, 5, 16)[0][:, 0] for k in range(3)])
    assert starts.tolist() == [1800 + 16 * (i % 12) for i in range(15)]
    assert corpus.validation(2, 5, 16)[1].max() <= 1999


def test_files_are_read_as_bytes_whatever_they_mean(tmp_path):
    """All 256 byte values come back as tokens, in the order in which the files were named."""
    noise = np.random.default_rng(0).integers(0, 256, 900, np.uint8).tobytes()
    text = bytes(range(256))
    corpus = load(written(tmp_path, b=noise, a=text))
    assert corpus.tokens.tobytes() == noise + text
    assert corpus.identity() == {
        "name": "b + a",
        "documents": 2,
        "size": 1156,
        "sha256": hashlib.sha256(noise + text).hexdigest(),
        "tokenizer": "bytes",
    }


@pytest.mark.parametrize("V", [257, 259, 300])
def test_special_tokens_end_documents_where_another_follows(tmp_path, V):
    """With V > 256 token 256 stands between documents; without it the same bytes remain."""
    files = written(tmp_path, a=b"one", b=b"two", c=b"three")
    corpus = load(files, V)
    assert corpus.tokens.tolist() == [*b"one", END, *b"two", END, *b"three"]
    assert corpus.identity() == load(files).identity()
    assert load(files).tokens.tolist() == [*b"onetwothree"]


def test_the_default_text_ships_with_python_and_says_which_one_it_is():
    """The topics behind help(): name with the Python version, size and sha256 of its bytes."""
    text = "".join(topics[name] for name in sorted(topics)).encode()
    corpus = load()
    assert corpus.tokens.tobytes() == text
    assert corpus.identity() == {
        "name": f"topics of Python {python_version()}",
        "documents": len(topics),
        "size": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "tokenizer": "bytes",
    }


def test_the_standard_library_is_a_text_too():
    """Its sources, one document each, without installed packages and tests."""
    corpus = load(["stdlib"], V=257)
    documents = bytes(corpus.tokens[: corpus.size].astype(np.uint8))
    assert corpus.documents > 300
    assert int((corpus.tokens == END).sum()) == corpus.documents - 1
    assert b"class OrderedDict" in documents


def test_a_vocabulary_must_hold_every_byte(tmp_path):
    """V = 128 holds ASCII and nothing else; the error says which byte, and the way out."""
    ascii_only, first_beyond = written(tmp_path, a=b"plain text\x7f", b=b"\x80")
    assert load([ascii_only], V=128).tokens.tobytes() == b"plain text\x7f"
    with pytest.raises(DataError, match=r"byte 128, V = 128\. Use V = 256 or pure ASCII text"):
        load([first_beyond], V=128)


def test_a_short_text_is_refused_with_the_size_that_it_needs(tmp_path):
    """The held-out tenth needs a row and the token after it: 10 (T + 1) bytes do, one less not."""
    enough, short = written(tmp_path, a=bytes(90), b=bytes(89))
    for corpus, T in ((load([enough]), 8), (load([short]), 7)):
        assert corpus.batch(0, 1, T, 0)[0].shape == corpus.validation(0, 1, T)[0].shape == (1, T)
    for ask in (lambda c: c.batch(0, 1, 8, 0), lambda c: c.validation(0, 1, 8)):
        with pytest.raises(DataError, match=r"T = 8\. Use a text of at least 90 bytes, or T = 7"):
            ask(load([short]))
    with pytest.raises(DataError, match=r"at least 20 bytes\.$"):
        load(written(tmp_path, empty=b"")).check(1)


@pytest.mark.parametrize("what, reason", [("nothing", "no such file"), (".", "is a directory")])
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, what, reason):
    """A missing file and a folder: DataError, not a traceback."""
    with pytest.raises(DataError, match=f"{what}.*{reason}.*Use a path"):
        load([tmp_path / what])


def test_bits_per_byte_spread_the_whole_loss_over_the_bytes():
    """A model that knows nothing pays 8 bits per byte; what special tokens cost is paid by the
    bytes; targets without a byte have no such number."""
    targets = np.array([[1, 2, 255], [3, END, 4]])
    assert bits_per_byte(log(256), targets[:1]) == pytest.approx(8, rel=1e-15)
    assert bits_per_byte(log(2), targets) == pytest.approx(6 / 5, rel=1e-15)
    assert np.isnan(bits_per_byte(1.0, targets[1:, 1:2]))


@mpi(3)
def test_ranks_that_read_the_same_text_agree(comm):
    """No error on any rank: the check itself is one message."""
    agree(load(), comm)


@mpi(3)
def test_ranks_that_read_different_texts_are_refused_alike(comm, tmp_path):
    """Rank 2 finds other bytes under the same name: the same DataError on all three ranks."""
    folder = tmp_path / f"host{comm.rank}"
    folder.mkdir()
    (file,) = written(folder, text=b"different" if comm.rank == 2 else b"the same!")
    with pytest.raises(DataError) as refusal:
        agree(load([file]), comm)
    said = comm.allgather(str(refusal.value))
    assert said[0] == said[1] == said[2]
    assert "rank 0 text, 1 documents, 9 bytes" in said[0] and "rank 2 text" in said[0]
    assert "rank 1" not in said[0]
