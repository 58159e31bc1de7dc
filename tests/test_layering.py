"""The shape of the code, as its imports show it: stages, pure arithmetic, torch, environment, file sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stream_app"
STAGES = ("events", "content", "interests", "learning", "ranking", "recommendations", "serving")
SHARED = ("settings", "errors", "secret", "topics", "hashing", "kafka", "observability")
ARITHMETIC = (
    *(f"interests/{name}.py" for name in ("decay", "update", "statistics", "slab")),
    *(f"ranking/{name}.py" for name in ("retrieve", "features", "blend", "diversify", "explain")),
    *(f"ranking/{name}.py" for name in ("arms", "candidates", "catalogue", "histories", "learned")),
    "serving/rate.py",
    *(f"recommendations/inspect/{name}.py" for name in ("plot", "page")),
    *(f"learning/{name}.py" for name in ("activity", "checkpoint", "coengagement", "features", "habits")),
    *(f"learning/{name}.py" for name in ("counts", "history", "model", "neighbours_record", "trainer")),
)
LONGEST = 600
ENVIRONMENT = {
    "stream_app/settings.py": "the one reader of settings",
    "stream_app/worker.py": "tells NumPy's BLAS how many threads to use",
    "stream_app/supervisor.py": "hands its environment on to the worker processes",
    "stream_app/demo/roles.py": "likewise",
    "stream_app/chaos/crew.py": "likewise",
}

HOUSES = {
    "aiokafka": "stream_app/kafka/",
    "faust": "stream_app/kafka/faust/",
    "mode": "stream_app/kafka/faust/",
}
"""Libraries that nobody else knows."""

FILES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(file) for file in FILES}


def imports(file: str, *, at_import: bool = False) -> set[str]:
    """Modules that a file imports, by full name; ``at_import`` leaves out imports within functions
    and those for the type checker alone."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                base = child.module or ""
                for alias in child.names:  # what is imported may be a module itself
                    full = f"{base}.{alias.name}"
                    found.add(full if full in MODULES else base)
            if not (at_import and not_at_import(child)):
                walk(child)

    walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    return found


def not_at_import(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def folder(module: str) -> str:
    """``stream_app.events.decode`` → ``events``; empty outside the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "stream_app" and len(parts) > 1 else ""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_lower_stages_and_shared_modules_only(stage: str) -> None:
    allowed = {*STAGES[: STAGES.index(stage) + 1], *SHARED}
    files = [file for file in FILES if file.startswith(f"stream_app/{stage}/")]
    assert len(files) > 2
    wrong = {
        (file, module)
        for file in files
        for module in imports(file)
        if module.startswith("stream_app") and folder(module) not in allowed
    }
    assert not wrong


def test_shared_modules_know_no_stage() -> None:
    files = [file for file in FILES if folder(module_of(file)) in SHARED]
    wrong = {(file, m) for file in files for m in imports(file) if folder(m) in STAGES}
    assert not wrong


def test_nothing_live_knows_the_evaluation() -> None:
    users = {f for f in FILES for m in imports(f) if folder(m) == "evaluation"}
    assert {f for f in users if folder(module_of(f)) != "evaluation"} == {"stream_app/commands/evaluate.py"}


@pytest.mark.parametrize("file", [f"stream_app/{name}" for name in ARITHMETIC])
def test_arithmetic_does_no_input_or_output(file: str) -> None:
    roots = {module.split(".")[0] for module in imports(file)}
    assert not roots & {"faust", "mode", "aiokafka", "kafka", "asyncio", "rocksdict"}
    assert not {m for m in imports(file) if m.startswith("stream_app.kafka")}


@pytest.mark.parametrize("entry", ["oracle", "archive"])
def test_the_oracle_shares_no_code_with_what_it_judges(entry: str) -> None:
    todo, seen = {f"stream_app.chaos.{entry}"}, set[str]()
    while todo:
        module = todo.pop()
        seen.add(module)
        found = {m for m in imports(f"{module.replace('.', '/')}.py") if m.startswith("stream_app")}
        assert not {m for m in found if folder(m) in (*STAGES, "hashing", "replay", "evaluation")}, module
        todo |= {m for m in found if folder(m) == "chaos"} - seen
    assert "stream_app.chaos.layouts" in seen


@pytest.mark.parametrize(("library", "house"), HOUSES.items())
def test_a_library_stays_in_its_house(library: str, house: str) -> None:
    users = {file for file in FILES if library in {module.split(".")[0] for module in imports(file)}}
    assert users
    assert {file for file in users if not file.startswith(house)} == set()


@pytest.mark.parametrize(
    "source",
    [
        "import faust",
        "from faust.types import TP",
        "if TYPE_CHECKING:\n    from faust.types import TP",
        "def late():\n    import faust.types",
    ],
)
def test_every_way_to_import_is_seen(source: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(source, encoding="utf-8")
    assert {name.split(".")[0] for name in imports(str(module))} == {"faust"}


def test_a_stage_speaks_no_faust() -> None:
    """What it is to its app, ``kafka/stage.py`` says."""
    words = {"agent", "noack", "Table"}
    files = [file for file in FILES if folder(module_of(file)) in STAGES]
    nodes = ((file, node) for file in files for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))))
    assert {(f, n.attr) for f, n in nodes if isinstance(n, ast.Attribute) and n.attr in words} == set()


def test_torch_is_imported_by_the_encoder_and_the_ranking_only() -> None:
    users = {f for f in FILES if {m.split(".")[0] for m in imports(f)} & {"torch", "transformers"}}
    assert users
    others = {f for f in users if f != "stream_app/content/encoder.py" and folder(module_of(f)) != "ranking"}
    assert not others


def test_the_environment_is_read_in_one_place() -> None:
    users = {
        file
        for file in FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if ast.unparse(node) in ("os.environ", "os.getenv", "environ", "getenv")
    }
    assert users - ENVIRONMENT.keys() == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module_of(f): {m for m in imports(f, at_import=True) if m in MODULES} for f in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("folder_", ["stream_app", "tests", "benchmarks", "examples"])
def test_no_file_is_long(folder_: str) -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in (ROOT / folder_).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long


def test_a_worker_says_how_many_threads_numpy_may_use_before_it_is_loaded() -> None:
    command = "import sys, stream_app.commands.worker; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, timeout=60).returncode == 0


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Blocked())
import stream_app.interests.app
from stream_app.observability.health import Health
from stream_app.settings import Settings
stream_app.interests.app.create_app(Settings(), Health(Settings()))
"""


def test_an_interests_worker_needs_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
