"""Training speed on one device: ours beside PyTorch, eager and compiled, turn by turn.

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
SIZES = {  # name -> (model, sequences of a micro-batch)
    "GPT-2 124M": ({"L": 12, "D": 768, "H": 12, "T": 1024, "V": 50257, "tied": True}, 8),
    "1.3B": ({"L": 24, "D": 2048, "H": 16, "T": 1024, "V": 50257, "tied": True}, 4),
}
REHEARSED = {"tiny": ({"L": 2, "D": 32, "H": 2, "T": 16, "V": 64, "tied": True}, 2)}
ROUNDS, WARM_UP = 12, 3


def run(env: dict, rehearse: bool) -> dict:
    """{size: {program: tokens/s, MFU}}; a program that cannot run says why."""
    programs = ["tparallel", "tparallel, bfloat16 products"]
    skipped = _no_torch(rehearse)
    if skipped:
        print(f"PyTorch: skipped: {skipped}")
    else:
        programs += ["torch eager", "torch compiled"]
    peak = _peak(env, rehearse)
    found: dict = {"failed": False, "peak_tflops": peak, "torch": skipped or "compared"}
    for size, (model, rows) in (REHEARSED if rehearse else SIZES).items():
        spec = {"model": model, "rows": rows}
        found[size] = _size(env, programs, spec, peak, 2 if rehearse else ROUNDS)
        found["failed"] |= "error" in found[size]["tparallel"]
    return found


def flops_per_token(model: dict) -> float:
    L, D, T, V = (model[name] for name in ("L", "D", "T", "V"))
    return 6 * (12 * L * D * D + V * D) + 6 * L * D * T


# float32 products on tensor cores, as in PyTorch's runs: TF32 or, of linear layers, bfloat16
SWITCHES = {
    "tparallel": {"CUPY_TF32": "1"},
    "tparallel, bfloat16 products": {"CUPY_TF32": "1", "TPARALLEL_PRODUCTS": "bfloat16"},
}


class Worker:
    """A program in a process: ``turn()`` runs one step and returns its seconds."""

    def __init__(self, env: dict, program: str, spec: dict):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), program, json.dumps(spec)],
            env={**env, **SWITCHES.get(program, {})},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.error = ""

    def turn(self) -> float | None:
        """None once the program has failed; ``error`` says why."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        said = self.process.stdout.readline()
        try:
            return float(said)
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
    for turn in range(WARM_UP + rounds):
        for name in [*workers]:
            took = workers[name].turn()
            if took is None:
                seconds[name] = []
                print(f"{name}: {workers[name].error}", flush=True)
                workers.pop(name).process.kill()
                programs = [p for p in programs if p != name]
                continue
            if turn >= WARM_UP:
                seconds[name].append(took)
    for worker in workers.values():
        worker.end()
    tokens = spec["rows"] * spec["model"]["T"]
    return {name: _figures(name, s, tokens, spec, peak) for name, s in seconds.items()}


def _figures(name: str, seconds: list, tokens: int, spec: dict, peak: float) -> dict:
    if not seconds:
        return {"error": "did not run to the end"}
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
    if rehearse or importlib.util.find_spec("torch") is None:
        return "not installed" if not rehearse else "rehearsal"
    code = "import torch; print(torch.cuda.is_available())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return "" if out.stdout.strip() == "True" else f"it sees no GPU {out.stderr[-200:]}"
