"""Turn the tutorials into pages: prose, code, and what the code printed when it really ran.

    .venv/bin/python scripts/make_pages.py                 every tutorial
    .venv/bin/python scripts/make_pages.py 00 06           some of them

A tutorial is a script of cells (``# %% Heading``, comment lines as prose, code).  It is run under
the launcher with the number of ranks that its docstring's command names; each cell's output
becomes a block below the cell.  A picture that a cell names (``![words](1f1b.svg)``) is the
schedule of that name, drawn for four stages and eight micro-batches.  ``tests/test_tutorials.py``
fails when a page no longer shows the script's text, or a picture the schedule.
"""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ROOT / "tutorials"
PAGES = TUTORIALS / "pages"


class Cell(NamedTuple):
    heading: str
    prose: str
    code: str
    line: int  # where the code starts in the script, so that errors name the right line


def cells(source: str) -> list[Cell]:
    """The script's cells, in order."""
    out = []
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    for start, stop in zip(starts, [*starts[1:], len(lines)]):
        body = start + 1
        while body < stop and lines[body].startswith("#"):
            body += 1
        prose = "\n".join(line[1:].strip() for line in lines[start + 1 : body])
        code = "\n".join(lines[body:stop]).strip("\n")
        while body < stop and not lines[body]:
            body += 1
        out.append(Cell(lines[start][4:].strip(), prose, code, body))
    return out


def ranks(source: str) -> int:
    """How many ranks the command in the docstring starts (1 if it does not use mpirun)."""
    found = re.search(r"mpirun -n (\d+)", ast.get_docstring(ast.parse(source)) or "")
    return int(found.group(1)) if found else 1


def render(name: str, source: str, outputs: list[str]) -> str:
    """The page, with the cells' outputs in place (blocks that start with ```text)."""
    title, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    intro = re.sub(r"(?m)^    (\S.*?)\s+\((.*)\)$", r"```sh\n\1\n```\n\nTakes \2.", rest.strip())
    parts = [f"# {title}", intro, f"*Made from [`{name}`](../{name}) by running it.*"]
    for cell, output in zip(cells(source), outputs):
        parts += [f"## {cell.heading}", cell.prose]
        parts += [f"```python\n{cell.code}\n```"] if cell.code else []
        parts += [f"```text\n{output}\n```"] if output else []
    return "\n\n".join(part for part in parts if part) + "\n"


def without_outputs(page: str) -> str:
    """The page's text apart from what was printed (times differ from run to run)."""
    return re.sub(r"```text\n.*?\n```\n\n?", "", page, flags=re.S).rstrip() + "\n"


def run_cells(script: Path, result: Path) -> None:
    """On every rank: execute the cells one by one in one namespace; rank 0 saves the outputs."""
    from mpi4py import MPI

    source, outputs = script.read_text(), []
    space = {"__name__": "__main__", "__file__": str(script)}
    for cell in cells(source):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * cell.line + cell.code, str(script), "exec"), space)
        outputs.append(printed.getvalue().strip("\n"))
    if MPI.COMM_WORLD.rank == 0:
        result.write_text(json.dumps(outputs))


def make(script: Path) -> Path:
    """Run one tutorial and write its page."""
    from tparallel import launch

    source = script.read_text()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outputs.json"
        me = ["-m", "mpi4py", __file__, "--cells", str(script), str(result)]
        line, env = launch.command(ranks(source), me)
        subprocess.run(line, env=env, cwd=ROOT, check=True)
        outputs = json.loads(result.read_text())
    PAGES.mkdir(exist_ok=True)
    page = PAGES / f"{script.stem}.md"
    page.write_text(render(script.name, source, outputs))
    return page


def drawn(schedule: str, stages: int = 4, microbatches: int = 8) -> str:
    """A schedule as it is planned, as SVG."""
    from tparallel.pipeline_parallel.schedules import make
    from tparallel.pipeline_parallel.simulate import simulate
    from tparallel.pipeline_parallel.svg import svg

    return svg({"planned": simulate(make(schedule, stages, microbatches))})


def pictures(text: str) -> list[str]:
    """The schedules whose pictures a page or a script shows."""
    return re.findall(r"!\[[^]]*\]\((?:tutorials/pages/)?([\w-]+)\.svg\)", text)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--cells"]:
        run_cells(Path(arguments[1]), Path(arguments[2]))
        return
    for script in sorted(TUTORIALS.glob("[0-9]*.py")):
        if not arguments or any(script.name.startswith(a) for a in arguments):
            print(make(script).relative_to(ROOT), flush=True)
            for name in pictures(script.read_text()):
                (PAGES / f"{name}.svg").write_text(drawn(name))


if __name__ == "__main__":
    main(sys.argv[1:])
