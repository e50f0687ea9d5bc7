"""Promise: `mcodec run` puts the hook on for one run and its children, `mcodec hook` for an environment until it is taken off; neither breaks a start."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import numpy as np
import pytest

import modelcodec
from modelcodec.cli.main import main

# What a script that knows nothing of modelcodec sees: whether the hook is on, and what was imported before it began.
SCRIPT = """
import sys
before = sorted({"numpy", "safetensors", "modelcodec"} & set(sys.modules))
import safetensors
print("hooked" if type(safetensors.safe_open).__name__ == "_SafeOpen" else "plain", before, sys.argv[1:])
"""
RUN = (sys.executable, "-m", "modelcodec.cli.main", "run")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def output(*command: str | Path, code: int = 0, **environment: str) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""} | environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_a_script_runs_with_the_hook(script: Path, tmp_path: Path) -> None:
    assert output(sys.executable, script) == "plain [] []"
    assert output(*RUN, "--", script, "--level", "-h") == "hooked ['modelcodec'] ['--level', '-h']"
    assert output(*RUN, script, "-q") == "hooked ['modelcodec'] ['-q']"
    assert output(*RUN, "-m", "script", "x", PYTHONPATH=str(tmp_path)) == "hooked ['modelcodec'] ['x']"


def test_a_script_reads_a_compressed_file(tmp_path: Path) -> None:
    modelcodec.save_file({"w": np.arange(6000, dtype=np.float32).reshape(60, 100) % 7}, tmp_path / "w.safetensors")
    code = "import sys; from safetensors.numpy import load_file; print(load_file(sys.argv[1])['w'].shape)"
    assert output(*RUN, "-c", code, tmp_path / "w.safetensors") == "(60, 100)"


def test_children_have_the_hook_and_the_exit_code_comes_back(script: Path) -> None:
    child = f"import subprocess, sys; print(subprocess.check_output([sys.executable, {str(script)!r}], text=True)); sys.exit(9)"
    assert output(*RUN, "-c", child, code=9) == "hooked ['modelcodec'] []"


def test_the_environments_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.theirs = True")
    code = "import sys, sitecustomize; print(theirs, sitecustomize.__file__, [entry for entry in sys.path if entry.endswith('startup')])"
    assert output(*RUN, "-c", code, PYTHONPATH=str(tmp_path)) == f"True {tmp_path / 'sitecustomize.py'} []"


def test_a_child_of_another_environment_is_left_alone() -> None:
    start = "import site, sys; sys.modules['modelcodec'] = None; site.execsitecustomize(); print(any(hasattr(f, 'modelcodec_watch') for f in sys.meta_path))"
    code = f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-S', '-c', {start!r}], text=True))"
    assert output(*RUN, "-c", code) == "False"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the command takes for the environment's site-packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_enabled_until_disabled(site: Path, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def started(site: Path) -> str:
        code = f"import site, sys; site.addsitedir({str(site)!r}); sys.argv.pop(0); exec(open(sys.argv[0]).read())"
        return output(sys.executable, "-c", code, script)

    assert main(["hook", "status"]) == 0
    assert "disabled" in capsys.readouterr().out
    assert main(["hook", "enable"]) == main(["hook", "enable"]) == main(["hook", "status"]) == 0
    assert capsys.readouterr().out == f"enabled: {site / 'modelcodec_on_import.pth'}\n" * 3
    # Nothing was imported at the start, modelcodec neither.
    assert started(site) == "hooked [] []"
    (site / "modelcodec_on_import.py").write_text("def watch(): pass")
    main(["hook", "status"])
    assert "another version" in capsys.readouterr().out
    assert main(["hook", "disable"]) == main(["hook", "disable"]) == 0
    assert not [path for path in site.rglob("*") if path.is_file()]
    assert started(site) == "plain [] []"


def test_what_enable_leaves_behind_breaks_nothing(site: Path) -> None:
    main(["hook", "enable"])
    code = f"import site, sys; site.addsitedir({str(site)!r}); sys.modules['modelcodec'] = None; import safetensors; print(safetensors.safe_open)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "safe_open" in done.stdout
    assert done.stderr.startswith("modelcodec: compressed checkpoints cannot be opened, the hook is not installed")
    assert len(done.stderr.splitlines()) == 1


def test_safetensors_is_imported_as_ever(site: Path) -> None:
    main(["hook", "enable"])
    code = f"""
import site, sys
site.addsitedir({str(site)!r})
before = len(sys.meta_path)
import importlib.resources, importlib.util
assert importlib.util.find_spec("safetensors")  # who asks whether it is there does not import it
import safetensors
print(type(safetensors.__loader__).__name__, type(safetensors.__spec__.loader).__name__, len(sys.meta_path) - before, type(safetensors.safe_open).__name__)
print(importlib.resources.files("safetensors").joinpath("torch.py").is_file())
"""
    assert output(sys.executable, "-c", code).splitlines() == ["SourceFileLoader SourceFileLoader -1 _SafeOpen", "True"]


def test_a_folder_that_cannot_be_written(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.rmdir()
    site.write_bytes(b"")
    assert main(["hook", "enable"]) == 74
    assert str(site) in capsys.readouterr().err


def test_plugins_of_the_engines_are_registered() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group in ("vllm.general_plugins", "sglang.srt.plugins"):
        module, _, function = project["entry-points"][group]["modelcodec"].partition(":")
        assert (module, function) == (modelcodec.install.__module__, modelcodec.install.__name__)
