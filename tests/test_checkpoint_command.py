"""``tparallel train --save --resume``: a run that is interrupted, killed or cannot write."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from mpitest import mpirun
from published_folders import write_folder
from train_jobs import start, wait_for_lines

from tparallel import launch
from tparallel.checkpoint.folder import examine, is_whole, path_of, step_of, steps
from tparallel.launch.start import RANK_VARIABLES, processes

TRAIN = ["-m", "tparallel", "train"]
TINY = ["--L", "2", "--D", "16", "--H", "2", "--T", "8", "--validate-every", "0"]
LONG = ["--steps", "100000"]


def log_steps(log: Path) -> list[int]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["step"] for line in lines if "step" in line]


def files(path: Path) -> dict:
    """Bytes and checksum of each file."""
    return examine(path).content["files"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Six steps of two ranks, with checkpoints after 4 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    run, log = folder / "run", folder / "log"
    flags = ["--zero", "2", "--dropout", "0.1", "--steps", "6", "--log", str(log)]
    ended = mpirun(2, *TRAIN, *TINY, *flags, "--save", str(run), "--save-every", "4")
    assert ended.code == 0 and f"Checkpoint: {path_of(run, 6)}" in ended.out, ended.out
    assert [step_of(path) for path in steps(run)] == [6, 4]
    modes = {file.stat().st_mode for file in path_of(run, 6).iterdir()} | {log.stat().st_mode}
    assert len(modes) == 1, "all may be read by whom the user lets read files"
    return run, log


@pytest.mark.smoke
def test_a_resumed_run_ends_with_the_files_of_the_uninterrupted_one(uninterrupted, tmp_path):
    """From step 4 to 6, with the settings of the checkpoint: the same layout writes the same bytes
    and logs the same losses; an existing log of this run is continued, another is not touched."""
    run, log = uninterrupted
    other = tmp_path / "log"
    first = log.read_text().splitlines()
    other.write_text("\n".join(first[:5]) + "\n")
    resume = ["--zero", "2", "--resume", str(path_of(run, 4))]
    resume += ["--save", str(tmp_path / "run")]
    ended = mpirun(2, *TRAIN, *resume, "--log", str(other), "--validate-every", "0")
    assert ended.code == 0, ended.out
    assert files(path_of(tmp_path / "run", 6)) == files(path_of(run, 6))
    header, *again = map(json.loads, other.read_text().splitlines()[5:])
    assert header["resumed"] == 4 and log_steps(other) == [1, 2, 3, 4, 5, 6]
    for line, there in zip(again, map(json.loads, first[5:]), strict=True):
        assert line["loss"] == there["loss"] and line["learning_rate"] == there["learning_rate"]
    ended = mpirun(1, *TRAIN, "--resume", str(path_of(run, 4)), "--log", __file__)
    assert ended.code == 2 and "or the log of the run that goes on" in ended.out, ended.out


def test_a_job_that_is_always_started_with_resume_begins_at_the_beginning(tmp_path):
    """Killed before its first checkpoint, it leaves a log: the same command begins again, and goes
    on in that log; later it has nothing left to do, and says so."""
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*TRAIN, *TINY, "--steps", "2", "--save", str(run), "--resume", "--log", str(log)]
    for times in (1, 2):
        ended = mpirun(1, *argv)
        assert ended.code == 0 and "has no checkpoint: from the beginning" in ended.out, ended.out
        assert log_steps(log) == [1, 2] * times
        if times == 1:
            shutil.rmtree(run)
    ended = mpirun(1, *argv)
    assert ended.code == 0 and "no step is left: --steps with more" in ended.out, ended.out
    assert log_steps(log) == [1, 2, 1, 2]
    ended = mpirun(1, *argv, "--steps", "1")
    assert ended.code == 2 and "must not have had more steps already: 2 are" in ended.out, ended.out


def test_fine_tuning_goes_on_too(tmp_path):
    """From the weights of others: a run that goes on takes its numbers from the checkpoint, its
    model and its tokens may be named by --weights again, and must be the same."""
    weights, text = write_folder(tmp_path / "weights", "gpt2"), tmp_path / "text"
    text.write_bytes(bytes(i * i % 37 for i in range(999)))
    common = ["--weights", str(weights), "--data", str(text), "--validate-every", "0"]
    a, b = tmp_path / "a", tmp_path / "b"
    ended = mpirun(2, *TRAIN, *common, "--steps", "4", "--save", str(a), "--save-every", "2")
    assert ended.code == 0, ended.out
    ended = mpirun(2, *TRAIN, *common, "--resume", str(path_of(a, 2)), "--save", str(b))
    assert ended.code == 0, ended.out
    assert files(path_of(a, 4)) == files(path_of(b, 4))
    text.write_bytes(bytes(i * i % 37 for i in range(998)))
    ended = mpirun(2, *TRAIN, *common, "--resume", str(path_of(a, 2)), "--save", str(b))
    assert ended.code == 2 and "with the text and the tokens that it had" in ended.out, ended.out


def test_checkpoints_of_two_runs_are_not_mixed(uninterrupted):
    """A run from the beginning, or from step 4, into the folder that has step 6: refused, exit
    code 2, nothing is changed."""
    run = uninterrupted[0]
    before = {path: files(path) for path in steps(run)}
    for flags in (TINY, ["--resume", str(path_of(run, 4))]):
        ended = mpirun(1, *TRAIN, *flags, "--save", str(run))
        assert ended.code == 2, ended.out
        assert ended.out.count("two runs must not mix their checkpoints: this one starts") == 1
        assert f"and there is {path_of(run, 6)}" in ended.out
    assert before == {path: files(path) for path in steps(run)}


@pytest.mark.parametrize("flags", [["--save-every", "0"], ["--keep", "-1"], ["--resume"]])
def test_checkpoint_flags_that_make_no_sense_are_refused(flags):
    """Exit code 2 and a way out."""
    ended = mpirun(1, *TRAIN, *TINY, *flags)
    assert ended.code == 2 and "ConfigError" in ended.out and "Use " in ended.out, ended.out


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run(tmp_path, number, code):
    """To every rank, as Slurm sends it: the step that is under way is finished, logged and saved;
    four steps later, in another layout, the log has every step once."""
    run, log = tmp_path / "run", tmp_path / "log"
    common = ["--save", str(run), "--log", str(log), "--resume", "--validate-every", "0"]
    argv = [*TRAIN, *TINY, *common, *LONG, "--pp", "2"]
    with open(tmp_path / "out", "wb") as out:
        job = launch.Job(2, argv, stdout=out, stderr=out)
        try:
            wait_for_lines(log, 4, job.process)
            job.signal_ranks(number)
            assert job.process.wait(timeout=20) == code, (tmp_path / "out").read_text()
        finally:
            job.end()
    last = log_steps(log)[-1]
    assert examine(path_of(run, last)).step == last
    assert f"ended after step {last}" in (tmp_path / "out").read_text()
    ended = mpirun(1, *TRAIN, *common, "--steps", str(last + 4))
    assert ended.code == 0, ended.out
    assert log_steps(log) == list(range(1, last + 5))


def test_sigterm_to_the_command_saves_and_ends_the_run(tmp_path):
    """The process that a user or a service manager knows, which has started the ranks: 143."""
    run, log = tmp_path / "run", tmp_path / "log"
    flags = ["--tp", "2", "--save", str(run), "--log", str(log), "--async-save"]
    process = start(*TRAIN, *TINY, *LONG, *flags)
    wait_for_lines(log, 4, process)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == 143, out
    assert is_whole(path_of(run, log_steps(log)[-1])), out


LIMITED = """
import resource, sys
from tparallel import checkpoint, launch

launch.defer_mpi()
write = checkpoint.Saver._write

def limited(self, arrays):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if self.comm.rank == 1 else -1, -1))
    write(self, arrays)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

checkpoint.Saver._write = limited
from tparallel.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("flags", [[], ["--async-save"]])
def test_a_rank_that_cannot_write_ends_the_job_and_leaves_what_was_there(tmp_path, flags):
    """A limit on the size of files on one of two ranks, as a full disk: one error that names the
    rank and the file, exit code 2, nothing half-written, and the old checkpoint is gone on from."""
    run = tmp_path / "run"
    common = ["--save", str(run), "--resume", "--save-every", "1"]
    assert mpirun(1, *TRAIN, *TINY, *common, "--steps", "1").code == 0
    limited = ["-c", LIMITED, "train", *common, "--steps", "3", *flags]
    ended = mpirun(2, *limited, "--zero", "0")
    assert ended.code == 2, ended.out
    assert ended.out.count("CheckpointError") == 1 and "Traceback" not in ended.out
    assert "rank 1" in ended.out and "rank-0001.safetensors" in ended.out
    assert "File too large" in ended.out
    assert [path.name for path in run.iterdir()] == ["step-000001"] and is_whole(path_of(run, 1))
    ended = mpirun(1, *TRAIN, *common, "--steps", "2")
    assert ended.code == 0 and is_whole(path_of(run, 2)), ended.out


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    """--save below a file."""
    (tmp_path / "file").touch()
    ended = mpirun(2, *TRAIN, *TINY, "--save", str(tmp_path / "file" / "run"))
    assert ended.code == 2 and ended.out.count("CheckpointError") == 1, ended.out
    assert "step    loss" not in ended.out


def kill_while_saving(run: Path, rng: random.Random, ranks: int) -> bool:
    """Train with a checkpoint each step; kill -9 any rank at any moment.  Was one being written?

    Whatever is there under the name of a checkpoint is then whole, and none is lost: the newest is
    not older than the newest before.
    """
    flags = ["--save", str(run), "--save-every", "1", "--keep", "2", "--resume", *LONG]
    flags += ["--async-save"] * (rng.random() < 0.3)
    before = max(map(step_of, steps(run)), default=0)
    mark = f"TEST_RUN={run}"
    with open(run.with_suffix(".out"), "wb") as out:
        job = launch.Job(ranks, [*TRAIN, *TINY, *flags], env=dict([mark.split("=")]), stdout=out)
        try:
            end = time.monotonic() + 60
            while max(map(step_of, steps(run)), default=0) <= before:
                assert job.process.poll() is None and time.monotonic() < end, "nothing is saved"
                time.sleep(0.002)
            time.sleep(rng.random() * 0.1)
            there = max(map(step_of, steps(run)))
            os.kill(rng.choice(processes(mark, *RANK_VARIABLES)), signal.SIGKILL)
            assert job.process.wait(timeout=30) != 0
        finally:
            job.end()
    now = steps(run)
    assert before < there <= step_of(now[0])
    for path in now:
        assert examine(path).step == step_of(path)
    return any(run.glob("step-*.tmp"))


def kills(folder: Path, times: int) -> int:
    rng = random.Random(1)
    return sum(kill_while_saving(folder / "run", rng, rng.choice([2, 4])) for _ in range(times))


@pytest.mark.smoke
def test_kill_9_of_a_rank_never_loses_the_previous_checkpoint(tmp_path):
    """Three random kills, each time --resume goes on from the newest."""
    kills(tmp_path, 3)


@pytest.mark.slow
def test_fifty_kills_lose_no_checkpoint(tmp_path):
    """Fifty; many of them in the middle of writing."""
    unfinished = kills(tmp_path, 50)
    print(f"{unfinished} of 50 kills came while a checkpoint was being written")
    assert unfinished >= 10
