"""Training speed on one device: ours beside PyTorch, eager and compiled, turn by turn.

Ours is --dtype bfloat16 --activations bfloat16, with float32 master weights and moments.
PyTorch's is what its users write: float32 parameters, autocast to bfloat16, fused AdamW, SDPA.

tokens/s, and MFU: the FLOPs that the model needs, 6 N + 6 L D T for each token (N parameters
without the embedding's lookup; causal attention looks at half of T positions), over what the
device's largest matrix product reaches in bfloat16.  Each program is a process of its own that
waits for its turn, so that none disturbs the others and all see the same clocks.

Source: Chowdhery et al. 2022, appendix B (MFU)
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
TIED = {"T": 1024, "V": 50304, "tied": True}  # GPT-2's 50,257, filled up to a multiple of 64
SIZES = {  # name -> (model, sequences of a batch, ours beside the first)
    "GPT-2 124M": ({"L": 12, "D": 768, "H": 12, **TIED}, 16, ("blocks", "float32")),
    "1.3B": ({"L": 24, "D": 2048, "H": 16, **TIED}, 4, ()),  # all programs share the memory
}
REHEARSED = {
    "tiny": ({"L": 2, "D": 32, "H": 2, "T": 64, "V": 64, "tied": True}, 2, ("blocks", "float32"))
}
OURS = {  # name -> what chooses it
    "tparallel": {},
    "tparallel, blocks": {"TPARALLEL_ATTENTION": "blocks"},
    # activations in float32, products as with autocast: bfloat16 in linear layers, TF32 elsewhere
    "tparallel, float32": {"CUPY_TF32": "1", "TPARALLEL_PRODUCTS": "bfloat16"},
}
ROUNDS, WARM_UP = 12, 3


def run(env: dict, rehearse: bool) -> dict:
    """{size: {program: tokens/s, MFU}}; a program that cannot run says why."""
    skipped = _no_torch(rehearse)
    peers = [] if skipped else ["torch eager", "torch compiled"]
    if skipped:
        print(f"PyTorch: skipped: {skipped}")
    peak = _peak(env, rehearse)
    found: dict = {"failed": False, "peak_tflops": peak, "torch": skipped or "compared"}
    for size, (model, rows, others) in (REHEARSED if rehearse else SIZES).items():
        print(f"{size}: {rows} sequences of {model['T']} tokens", flush=True)
        spec = {"model": model, "rows": rows, "device": "cpu" if rehearse else "cuda"}
        programs = ["tparallel", *(f"tparallel, {other}" for other in others), *peers]
        found[size] = _size(env, programs, spec, peak, 2 if rehearse else ROUNDS)
        found["failed"] |= "error" in found[size]["tparallel"]
    return found


def flops_per_token(model: dict) -> float:
    L, D, T, V = (model[name] for name in ("L", "D", "T", "V"))
    return 6 * (12 * L * D * D + V * D) + 6 * L * D * T


class Worker:
    """A program in a process: ``turn()`` runs one step and returns its seconds."""

    def __init__(self, env: dict, program: str, spec: dict):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), program, json.dumps(spec)],
            env={**env, "TPARALLEL_KERNELS": "fast", **OURS.get(program, {})},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.error = ""

    def turn(self) -> float | None:
        """None once the program has failed; ``error`` says why."""
        return self._asked("go")

    def parts(self) -> dict | None:
        """{what: number} that the program tells of one more step."""
        return self._asked("parts")

    def _asked(self, word: str):
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        said = self.process.stdout.readline()
        try:
            return json.loads(said)
        except ValueError:
            self.error = said.strip() or f"exit code {self.process.wait()}"
            return None

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def _size(env: dict, programs: list, spec: dict, peak: float, rounds: int) -> dict:
    workers = {name: Worker(env, name, spec) for name in programs}
    seconds: dict[str, list] = {name: [] for name in programs}
    errors: dict[str, str] = {}
    for turn in range(WARM_UP + rounds):
        for name in [*workers]:
            took = workers[name].turn()
            if took is None:
                errors[name] = workers[name].error
                print(f"{name}: {errors[name]}", flush=True)
                workers.pop(name).process.kill()
                continue
            if turn >= WARM_UP:
                seconds[name].append(took)
    tokens = spec["rows"] * spec["model"]["T"]
    found: dict[str, dict] = {name: {"error": error} for name, error in errors.items()}
    for name in workers:
        found[name] = _figures(name, seconds[name], tokens, spec, peak)
    for name, worker in workers.items():
        found[name]["parts"] = worker.parts()
        worker.end()
        print(f"{name}: {found[name]['parts']}", flush=True)
    return found


def _figures(name: str, seconds: list, tokens: int, spec: dict, peak: float) -> dict:
    rate = tokens / median(seconds)
    share = rate * flops_per_token(spec["model"]) / 1e12 / peak if peak else None
    print(f"{name:28} {rate:12,.0f} tokens/s   MFU {share or 0:.1%}", flush=True)
    return {"tokens_per_second": rate, "mfu": share, "seconds": seconds}


def _peak(env: dict, rehearse: bool) -> float:
    """TFLOP/s of the largest product, bfloat16."""
    worker = Worker(env, "peak", {"n": 128 if rehearse else 8192})
    found = worker.turn()
    worker.end()
    print(f"largest product: {found or 0:,.1f} TFLOP/s in bfloat16 {worker.error}", flush=True)
    return found or 0.0


def _no_torch(rehearse: bool) -> str:
    """Why PyTorch is not compared with; a rehearsal has it compute on the processor."""
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    if rehearse:
        return ""
    code = "import torch; print(torch.cuda.is_available())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return "" if out.stdout.strip() == "True" else f"it sees no GPU {out.stderr[-200:]}"
