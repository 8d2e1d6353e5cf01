"""What is no whole checkpoint of this program is named and refused, the one before it found."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mpitest import mpirun

from tparallel.checkpoint import manifest, newest, opened, resume
from tparallel.checkpoint.folder import Checkpoint, examine, is_whole, path_of
from tparallel.checkpoint.manifest import Damaged
from tparallel.commands import checkpoint as command
from tparallel.config import ModelConfig, replace
from tparallel.data import Corpus
from tparallel.errors import CheckpointError, ConfigError

TRAIN = ["-m", "tparallel", "train", "--L", "2", "--D", "16", "--H", "2", "--T", "8"]


class Alone:
    """A communicator of one rank."""

    rank, size = 0, 1

    def bcast(self, x):
        return x

    def allgather(self, x):
        return [x]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3, by two ranks."""
    folder = tmp_path_factory.mktemp("original") / "run"
    flags = ["--save", str(folder), "--save-every", "1", "--steps", "3"]
    ended = mpirun(2, *TRAIN, *flags, "--log", str(folder.parent / "log"))
    assert ended.code == 0, ended.out
    return folder


@pytest.fixture
def run(original, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def cut_off(file: Path, left: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])


def flip_a_bit(file: Path, at: float = 0.9) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 4
    file.write_bytes(content)


def writing(content: bytes) -> Callable:
    return lambda file: file.write_bytes(content)


def change(file: Path, **fields) -> None:
    """Other fields in the manifest, its checksum made to fit."""
    content = {**json.loads(file.read_text()), **fields}
    inner = {k: v for k, v in content.items() if k not in ("format", "version", "sha256")}
    file.write_text(json.dumps({**content, "sha256": manifest.digest(inner)}))


RANK_0, RANK_1 = "rank-0000.safetensors", "rank-0001.safetensors"
DAMAGE = {  # the file, what is done to it, what is said about it
    "a cut file": (RANK_1, cut_off, f"{RANK_1} has"),
    "an empty file": (RANK_0, partial(cut_off, left=0), f"{RANK_0} has 0 bytes"),
    "a flipped bit": (
        RANK_1,
        flip_a_bit,
        f"{RANK_1} is not what was written: its checksum differs",
    ),
    "a flipped bit in a header": (
        RANK_0,
        partial(flip_a_bit, at=0.001),
        f"{RANK_0} is not what was written",
    ),
    "a missing file": (RANK_1, Path.unlink, f"{RANK_1}: no such file"),
    "files of another checkpoint": (
        RANK_0,
        lambda file: shutil.copy(file.parent.with_name("step-000001") / RANK_0, file),
        f"{RANK_0} is not what was written",
    ),
    "no manifest": (manifest.NAME, Path.unlink, "it has no manifest.json"),
    "a cut manifest": (manifest.NAME, cut_off, "is no JSON"),
    "a binary manifest": (manifest.NAME, writing(b"\x80\x04\x95"), "is no JSON"),
    "a changed number": (
        manifest.NAME,
        lambda file: file.write_text(file.read_text().replace('"step": 3', '"step": 8')),
        "manifest.json is not what was written: its checksum differs",
    ),
    "a foreign manifest": (
        manifest.NAME,
        writing(b'{"weight_map": {}}'),
        "manifest.json is not that of a tparallel checkpoint",
    ),
    "a list": (manifest.NAME, writing(b"[]"), "is not that of a tparallel"),
    "a future version": (
        manifest.NAME,
        partial(change, version=2),
        "its format is version 2, this program knows version 1: a newer tparallel reads it",
    ),
    "a folder elsewhere": (
        manifest.NAME,
        partial(change, files={f"../step-000001/{RANK_0}": {}}),
        "names a file outside of its folder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_before_it_is_found(run, damage):
    """Every kind of damage to the newest of three: why, and the second newest."""
    file, do, why = DAMAGE[damage]
    last, before = path_of(run, 3), path_of(run, 2)
    assert newest(run, Alone())[0].path == last
    do(last / file)
    with pytest.raises(Damaged, match=why.replace("(", "\\(")):
        examine(last)
    found, refused = newest(run, Alone())
    assert found.path == before and found.step == 2
    assert len(refused) == 1 and refused[0].startswith(f"{last}: ") and why in refused[0]
    with pytest.raises(CheckpointError) as e:
        opened(last, Alone())
    assert why in str(e.value) and f"Use {before}, the newest whole one before it." in str(e.value)


def test_the_command_lists_what_is_whole_and_what_is_not(run, capsys):
    """The newest first; exit code 1 where one is refused; an error where there is none."""
    args = argparse.Namespace(folder=str(run))
    assert command.main(args) == 0
    flip_a_bit(path_of(run, 2) / "rank-0001.safetensors")
    assert command.main(args) == 1
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[:2] for line in lines] == [
        ["step-000003", "whole"],
        ["step-000002", "refused"],
        ["step-000001", "whole"],
    ]
    assert "dp=2 zero=0 on 2 ranks" in lines[0] and "rank-0001.safetensors is not" in lines[1]
    assert command.main(argparse.Namespace(folder=str(path_of(run, 1)))) == 0
    with pytest.raises(CheckpointError, match="has none"):
        command.main(argparse.Namespace(folder=str(run / "empty")))


def test_every_bit_counts(run):
    """A bit flipped anywhere, at forty places of each file, is noticed; the files are then as they
    were and whole again."""
    path = path_of(run, 3)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for i in range(40):
            flip_a_bit(file, i / 40)
            assert not is_whole(path), f"{file.name}: bit at {i}/40"
            file.write_bytes(content)
    assert is_whole(path)


def test_checksums_are_those_that_anybody_computes(run):
    """sha256 of the file."""
    content = examine(path_of(run, 1)).content
    for name, entry in content["files"].items():
        data = (path_of(run, 1) / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_resume_goes_on_from_the_newest_whole_one_and_says_what_it_refused(run):
    """--resume after damage: step 3 is refused by name, 3 and 4 are trained again; the checkpoint
    of step 3 is then whole.  That very one, asked for by name, is refused with exit code 2."""
    flip_a_bit(path_of(run, 3) / "rank-0000.safetensors")
    flags = ["--save", str(run), "--save-every", "1", "--steps", "4", "--resume"]
    ended = mpirun(2, *TRAIN, *flags, str(path_of(run, 3)))
    assert ended.code == 2 and ended.out.count("CheckpointError") == 1, ended.out
    assert f"Use {path_of(run, 2)}, the newest whole one before it." in ended.out
    ended = mpirun(1, *TRAIN, *flags)
    assert ended.code == 0, ended.out
    assert f"refused {path_of(run, 3)}: rank-0000.safetensors is not what was" in ended.out
    assert f"resume  {path_of(run, 2)}: 2 steps done" in ended.out
    assert [examine(path_of(run, step)).step for step in (3, 4)] == [3, 4]


def test_where_nothing_is_whole_nothing_is_trained(run):
    """--resume with damaged checkpoints only is refused; with none it starts at the beginning."""
    for step in (1, 2, 3):
        cut_off(path_of(run, step) / manifest.NAME)
    with pytest.raises(CheckpointError, match=r"needs a whole .*step-000003: .*no JSON"):
        resume.chosen("", str(run), Alone())
    empty = run / "empty"
    found, said = resume.chosen("", str(empty), Alone())
    assert found is None and said == [f"resume  {empty} has no checkpoint: from the beginning"]
    with pytest.raises(CheckpointError, match="has none"):
        resume.chosen(str(empty), None, Alone())
    with pytest.raises(ConfigError, match="--resume looks into the folder of --save"):
        resume.chosen("", None, Alone())
    assert resume.chosen(None, str(run), Alone()) == (None, [])


@pytest.mark.parametrize(
    "model, train, said",
    [
        ({"D": 32}, {}, "D = 16 there, 32 here .* Leave --D away"),
        ({"L": 4, "T": 16}, {}, "L = 2 there, 4 here, T = 8 there, 16 here"),
        ({"tied": True}, {}, "tied = False there, True here"),
        ({}, {"optimizer": "sgd"}, "optimizer = adamw there, sgd here"),
        ({}, {"dtype": "float16"}, "dtype = float32 there, float16 here"),
        ({}, {"seed": 1}, "seed = 0 there, 1 here .* Leave --seed away"),
        ({}, {"steps": 2}, "must not have had more steps already: 3 are done"),
    ],
)
def test_another_model_or_training_is_refused_with_names_and_values(original, model, train, said):
    """What the flags say against what the checkpoint says."""
    with pytest.raises(CheckpointError, match=said):
        resume.settings(examine(path_of(original, 3)), model, train)


def test_what_is_not_given_is_the_checkpoints(original):
    """Model and training; what may change is said."""
    found = examine(path_of(original, 3))
    model, train, said = resume.settings(found, {"F": 0, "D": 16}, {"steps": 9, "lr": 0.1})
    assert model == ModelConfig(L=2, D=16, H=2, T=8) and train.steps == 9 and train.lr == 0.1
    assert replace(train, steps=3, lr=3e-3).__dict__ == found.content["train"]
    assert said[1:] == ["changed steps: 3 -> 9", "changed lr: 0.003 -> 0.1"]


def test_another_text_and_settings_of_another_version_are_refused(original):
    """Batches are numbered in one text; a field that this version does not know may matter."""
    found = examine(path_of(original, 3))
    other = Corpus("other", 1, 9, "0" * 64, tokens=np.zeros(9, np.uint8))
    with pytest.raises(CheckpointError, match=r"that it had: topics .* other, 9 bytes"):
        resume.check_text(found, other)
    newer = {**found.content, "model": {**found.content["model"], "moe": 8}}
    with pytest.raises(CheckpointError, match="with moe in its model"):
        resume.settings(Checkpoint(found.path, newer), {}, {})
