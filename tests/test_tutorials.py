"""Every tutorial runs as its docstring says, and its page shows what the script says now."""

import importlib.util
from pathlib import Path

import pytest
from mpitest import mpirun

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))

_spec = importlib.util.spec_from_file_location("make_pages", ROOT / "scripts" / "make_pages.py")
make_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_pages)


@pytest.mark.mpi
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_tutorial_runs_and_its_assertions_hold(script):
    """The command in the docstring exits 0; each tutorial ends by comparing itself with serial."""
    ended = mpirun(make_pages.ranks(script.read_text()), "-m", "mpi4py", str(script), timeout=120)
    assert ended.code == 0, ended.out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_page_shows_the_text_of_the_script(script):
    """Prose and code of the page are the script's; scripts/make_pages.py renews it."""
    source = script.read_text()
    page = (ROOT / "tutorials" / "pages" / f"{script.stem}.md").read_text()
    nothing = [""] * len(make_pages.cells(source))
    fresh = make_pages.render(script.name, source, nothing)
    assert make_pages.without_outputs(page) == make_pages.without_outputs(fresh)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_page_shows_what_was_printed(script):
    """A page without a single output was not made by running the tutorial."""
    page = (ROOT / "tutorials" / "pages" / f"{script.stem}.md").read_text()
    assert page.count("```text\n") >= 2


def test_pictures_show_the_schedules_as_they_are_planned_now():
    """Each that is named is there, and is what the program draws; each that is there is named."""
    pages = ROOT / "tutorials" / "pages"
    texts = [page.read_text() for page in (*pages.glob("*.md"), ROOT / "README.md")]
    named = {name for text in texts for name in make_pages.pictures(text)}
    assert named == {path.stem for path in pages.glob("*.svg")} and len(named) >= 5
    for name in named:
        assert (pages / f"{name}.svg").read_text() == make_pages.drawn(name)


@pytest.mark.mpi
def test_the_tensor_parallel_tutorial_runs_on_two_ranks_too():
    """Its docstring says so: four heads are cut over two ranks as well as over four."""
    script = ROOT / "tutorials" / "03_tensor_parallel.py"
    ended = mpirun(2, "-m", "mpi4py", str(script), timeout=120)
    assert ended.code == 0, ended.out
