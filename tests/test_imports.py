"""Imports point one way, nothing runs code out of a file, and the package imports from a checkout as from a wheel."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("modelcodec", "cli", "formats", "kernels")

LAYERS = ("kernels", "shared", "stages", "core", "api", "cli")
"""Each may import itself and what stands before it; `kernels` and `shared` only themselves."""
SHARED = {"types", "errors", "limits", "wire", "stage", "version", "pool", "mapping", "arena"}
API = {"__init__", "api", "compression", "restoration", "tensor_file", "floor", "report", "comparison"}
CALLERS = ("fit", "runtime", "hub", "distributed")
"""They stand side by side between `api` and `cli`."""
ON_TORCH = ("modelcodec.fit", "modelcodec.runtime", "modelcodec.kernels.triton")
"""Folders whose modules may need torch to be imported: nothing else imports them before they are asked for."""

RUNS_CODE = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code", "codeop"}
REACHES_OUT = {"socket", "ssl", "urllib", "http", "ftplib", "requests", "httpx", "aiohttp"}
HEAVY = {"torch", "transformers"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (() if parts[0] == "modelcodec" else ("modelcodec",)) + parts if part != "__init__")


SOURCES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def layer(module: str) -> str:
    top = f"{module}.__init__".split(".")[1]
    if top == "__main__":
        return "cli"
    if top in ("kernels", "stages", "cli", *CALLERS):
        return top
    return "shared" if top in SHARED else "api" if top in API else "core"


def imported(node: ast.AST) -> Iterator[str]:
    """Full names that an import statement, or a call of `import_module` with a text that begins literally, brings in."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in SOURCES else node.module or ""
    elif isinstance(node, ast.Call) and node.args and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) == "import_module":
        text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield text.value.rstrip(".")


def own_imports(module: str) -> set[str]:
    """The project's modules that a module imports, at its top or inside a function."""
    return {name for node in ast.walk(TREES[module]) for name in imported(node) if name.split(".")[0] == "modelcodec"}


def at_top(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_top(node)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module: str) -> None:
    if module == "modelcodec":
        assert own_imports(module) == {"modelcodec", "modelcodec.version"}, "public names are imported when first used"
        return
    own = layer(module)
    if own in ("kernels", "shared"):
        allowed = {own}
    elif own in CALLERS:
        allowed = {own, *LAYERS} - {"cli"}
    else:
        allowed = {*LAYERS[: LAYERS.index(own) + 1], *(CALLERS if own == "cli" else ())}
    for name in own_imports(module):
        assert layer(name) in allowed, f"{module} ({own}) imports {name} ({layer(name)})"


def test_imports_make_no_circle() -> None:
    graph = {module: own_imports(module) - {module} for module in SOURCES if module != "modelcodec"}
    assert tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_runs_code_out_of_a_file(module: str) -> None:
    for node in ast.walk(TREES[module]):
        place = f"{SOURCES[module].relative_to(ROOT)}, line {getattr(node, 'lineno', 0)}"
        for name in imported(node):
            assert name.split(".")[0] not in RUNS_CODE | REACHES_OUT, f"{place}: imports {name}"
        if isinstance(node, ast.Name):
            assert node.id not in ("eval", "exec", "compile", "__import__"), f"{place}: {node.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("builtins", "eval"), ("builtins", "exec"), ("builtins", "compile")}, place
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True for keyword in node.keywords), place
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert getattr(node.value, "value", None) is False, f"{place}: allow_pickle"


WITHOUT_TORCH = {name: path for name, path in SOURCES.items() if not name.startswith(ON_TORCH)}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_is_imported_only_inside_functions(module: str) -> None:
    assert not {name.split(".")[0] for node in at_top(TREES[module]) for name in imported(node)} & HEAVY


IMPORT_ALL = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers")))  # as if they were not installed
from importlib import import_module
for name in sys.argv[1:]:
    print(import_module(name).__file__)
"""


def run_python(code: str, *arguments: str, folder: Path, path: str = "") -> str:
    """What a fresh interpreter prints, started in a folder, with nothing of this process's path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkout_imports_from_its_root_without_torch() -> None:
    assert [Path(line) for line in run_python(IMPORT_ALL, *WITHOUT_TORCH, folder=ROOT).splitlines()] == list(WITHOUT_TORCH.values())


def test_a_wheel_imports_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    # A copy, because a build leaves its own folder beside the sources, and takes old files out of it the next time.
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, tmp_path / "source" / name)
    installed = tmp_path / "installed"
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", installed, tmp_path / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"bin", "modelcodec"}
    assert (installed / "modelcodec" / "py.typed").is_file()
    places = {}
    for name, path in SOURCES.items():
        base = installed.joinpath(*name.split("."))
        places[name] = base / "__init__.py" if path.name == "__init__.py" else base.with_suffix(".py")
    assert set(installed.rglob("*.py")) == set(places.values())
    found = run_python(IMPORT_ALL, *WITHOUT_TORCH, folder=tmp_path, path=str(installed))
    assert [Path(line) for line in found.splitlines()] == [places[name] for name in WITHOUT_TORCH]


def test_help_imports_neither_numpy_nor_numba() -> None:
    code = """
import sys
from modelcodec.cli.main import main
sys.argv = ["mcodec", "--help"]
try:
    main()
finally:
    assert not {"numpy", "numba", "torch"} & sys.modules.keys(), sorted(sys.modules)
"""
    assert "Usage" in run_python(code, folder=ROOT)
