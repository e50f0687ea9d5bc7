"""Promise: what is pushed to the Hub comes back the same, in as few bytes as there are to send; nothing is lost by a cut, and nothing leaves the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("hf_xet")
from hub_stand_in import TOKEN, File, HubStandIn, serving
from safetensors.numpy import save_file

import modelcodec
from modelcodec import hub
from modelcodec.cli.main import main
from modelcodec.errors import BadRecipe, CorruptFile, UnsafeInput, UnsupportedFile
from modelcodec.hub import card, remote_file
from modelcodec.hub.arrival import Arrival
from modelcodec.hub.repository import Address, snapshot

REPO = "tester/model"
README = b"---\nlicense: mit\n---\n# A model\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(params=["lfs", "xet"])
def stand_in(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setattr(remote_file, "PAUSE_SECONDS", 0.01)
    with serving(tmp_path / "store" if request.param == "xet" else None, tmp_path / "cache") as served:
        yield served


@pytest.fixture
def over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub without Xet: connections that can be cut."""
    monkeypatch.setattr(remote_file, "PAUSE_SECONDS", 0.01)
    with serving(None, tmp_path / "cache") as served:
        yield served


def weights(seed: int, n: int = 2, rows: int = 256) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {f"layer.{seed}.{i}": (random.standard_normal((rows, 256)) * 0.02).astype(ml_dtypes.bfloat16) for i in range(n)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as `save_pretrained` leaves it, in two shards, and what else people keep beside it."""
    model = tmp_path / "local"
    for path in (model / "onnx", model / ".cache" / "huggingface", model / ".git"):
        path.mkdir(parents=True)
        (path / "note.txt").write_text("a note")
    index = {}
    for seed, name in enumerate(SHARDS):
        save_file(weights(seed), model / name, {"format": "pt"})
        index.update(dict.fromkeys(weights(seed), name))
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    (model / "config.json").write_text('{"hidden_size": 256}\n')
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    (model / "README.md").write_bytes(README)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder for a repository, and no attributes, which are the Hub's."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith((".cache", ".git"))}


# ---- there and back ----------------------------------------------------------------------------------------------------------------


def test_a_push_keeps_every_name_and_is_one_commit(stand_in: HubStandIn, folder: Path) -> None:
    done = hub.push(folder, REPO, private=True)
    expected, files = contents(folder), stand_in.files(REPO)
    assert done.commit == stand_in.repositories[REPO].at("main")[0]
    assert len(stand_in.repositories[REPO].commits) == 3, "made empty, with attributes, and then the push"
    assert files.keys() - {".gitattributes"} == expected.keys() == set(done.sent)
    assert stand_in.repositories[REPO].private
    for name, content in expected.items():
        if name.endswith(".safetensors"):
            assert files[name].size < 0.75 * len(content)
        elif name != card.NAME:
            assert stand_in.content(files[name]) == content
    readme = stand_in.content(files[card.NAME]).decode()
    assert readme.startswith(README.decode())
    assert f'from_pretrained("{REPO}")' in readme
    assert all(f"| {row.name} | {row.n_bytes:,} | {row.n_bytes_coded:,} | `{row.sha256}` |" in readme for row in done.compressed)
    assert len(done.compressed) == 2


def test_pushing_again_sends_nothing(stand_in: HubStandIn, folder: Path) -> None:
    hub.push(folder, REPO)
    with stand_in.asked() as requests:
        again = hub.push(folder, REPO)
    assert (again.commit, again.sent) == (None, ())
    assert {(request.method, request.path) for request in requests if request.method != "GET"} == {("POST", "/api/repos/create")}


def test_only_what_changed_is_sent(stand_in: HubStandIn, folder: Path) -> None:
    hub.push(folder, REPO)
    (folder / "config.json").write_text("{}")
    assert hub.push(folder, REPO).sent == ("config.json",)


def test_a_pull_restores_every_file(stand_in: HubStandIn, folder: Path, tmp_path: Path) -> None:
    pushed = hub.push(folder, REPO)
    ticks: list[tuple[int, int]] = []
    report = hub.pull(REPO, tmp_path / "back", restore=True, progress=lambda done, total: ticks.append((done, total)))
    assert contents(tmp_path / "back") == contents(folder)
    assert not (tmp_path / "back" / ".cache").exists()
    assert {Path(file.destination).name: file.sha256 for file in report.files if file.sha256} == {row.name: row.sha256 for row in pushed.compressed}
    assert ticks == sorted(ticks)
    assert ticks[-1][0] == ticks[-1][1] == sum(file.size for file in stand_in.files(REPO).values())


def test_a_pull_keeps_files_compressed_and_ready_to_load(stand_in: HubStandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(folder, REPO)
    monkeypatch.chdir(tmp_path)
    report = hub.pull(REPO)
    assert Path(report.destination) == Path("model")
    stored = {name: stand_in.content(file) for name, file in stand_in.files(REPO).items() if name != ".gitattributes"}
    assert contents(Path("model")) == stored
    with modelcodec.open(Path("model", SHARDS[0])) as file:
        assert np.array_equal(file.get_tensor("layer.0.1"), weights(0)["layer.0.1"])


def test_what_is_compressed_already_is_pushed_as_it_is(stand_in: HubStandIn, folder: Path, tmp_path: Path) -> None:
    modelcodec.compress(folder, tmp_path / "packed")
    hub.push(tmp_path / "packed", REPO)
    files = stand_in.files(REPO)
    assert all(stand_in.content(files[name]) == (tmp_path / "packed" / name).read_bytes() for name in SHARDS)
    hub.pull(REPO, tmp_path / "back", restore=True)
    assert contents(tmp_path / "back") == contents(folder)


def test_a_folder_pulled_compressed_is_pushed_without_change(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.push(folder, REPO)
    hub.pull(REPO, tmp_path / "kept")
    assert hub.push(tmp_path / "kept", REPO).commit is None


def test_a_folder_without_a_readme_comes_back_without_one(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    (folder / card.NAME).unlink()
    hub.push(folder, REPO)
    assert over_http.content(over_http.files(REPO)[card.NAME]).startswith(card.BEGIN)
    hub.pull(REPO, tmp_path / "back", restore=True)
    assert contents(tmp_path / "back") == contents(folder)


def test_the_block_of_the_readme_can_be_taken_out_again() -> None:
    row = card.CardRow("a|b.safetensors", 1000, 700, "00" * 32, False, ())
    for before in (b"", b"# No end of line", README, b"\n\n\n", b"\xff not UTF-8 \r\n"):
        after = card.with_block(before, [row], REPO)
        assert card.without_block(after) == before
        assert card.with_block(after, [row], REPO) == after
        assert card.without_block(after + b"added on the Hub") == before + b"added on the Hub"
    assert rb"| a\|b.safetensors | 1,000 | 700 |" in after


def test_branches(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.push(folder, REPO)
    (folder / "config.json").write_text("{}")
    hub.push(folder, REPO, branch="next")
    for address, expected in ((REPO, '{"hidden_size": 256}\n'), (f"{REPO}@next", "{}")):
        hub.pull(address, tmp_path / address)
        assert (tmp_path / address / "config.json").read_text() == expected


def test_from_pretrained_loads_from_the_hub(stand_in: HubStandIn, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_models import llama, same
    from transformers import LlamaForCausalLM

    original = llama()
    original.save_pretrained(tmp_path / "plain")
    name = f"tester/{'lfs' if stand_in.xet is None else 'xet'}"  # the Hub's client remembers what a repository holds
    hub.push(tmp_path / "plain", name)
    modelcodec.install()
    try:
        assert same(LlamaForCausalLM.from_pretrained(name, cache_dir=tmp_path / "cache"), original)
    finally:
        modelcodec.uninstall()


# ---- parts of files ----------------------------------------------------------------------------------------------------------------


def test_one_tensor_is_read_without_the_others(stand_in: HubStandIn, folder: Path) -> None:
    save_file(weights(7, 12, 1024), folder / SHARDS[0])
    hub.push(folder, REPO)
    with stand_in.asked() as requests, hub.open(REPO, SHARDS[0]) as file:
        assert np.array_equal(file.get_tensor("layer.7.3"), weights(7, 12, 1024)["layer.7.3"])
        assert np.array_equal(file.get_slice("layer.7.9")[100:200, :7], weights(7, 12, 1024)["layer.7.9"][100:200, :7])
    if stand_in.xet is None:
        ranges = [request.range.removeprefix("bytes=").split("-") for request in requests if request.path.startswith("/store")]
        travelled = sum(int(end) - int(start) + 1 for start, end in ranges)
        assert travelled < 16384 + 2 * 0.75 * 1024 * 256 * 2, "the front, and the two tensors' frames"
    else:
        assert not any(request.path.startswith("/store") for request in requests)


@pytest.mark.parametrize("level", [1, 5, 9])
def test_every_kind_of_entry_is_read_from_afar(over_http: HubStandIn, folder: Path, level: int) -> None:
    random = np.random.default_rng(3)
    grown = np.exp(random.standard_normal((1, 2048)) * 2) * random.standard_normal((3000, 2048))
    tensors = {"large": grown.astype(ml_dtypes.bfloat16), "noise": random.integers(0, 256, 3 << 20).astype(np.uint8), "scalar": np.array(3, np.float32)}
    tensors |= {"again": tensors["large"], "empty": np.zeros((0, 4), np.float32), "counts": np.arange(500)}
    save_file(tensors, folder / SHARDS[0])
    hub.push(folder, REPO, level=level)
    with hub.open(REPO, SHARDS[0], threads=2) as file:
        assert all(np.array_equal(file.get_tensor(name), x) for name, x in tensors.items())
        assert np.array_equal(file.get_slice("large")[2500:2600], tensors["large"][2500:2600])
    hub.pull(REPO, folder.parent / "back", restore=True)
    assert contents(folder.parent / "back") == contents(folder)


def test_what_cannot_be_opened_says_so(over_http: HubStandIn, folder: Path) -> None:
    hub.push(folder, REPO)
    with pytest.raises(FileNotFoundError, match="no such file"):
        hub.open(REPO, "other.safetensors")
    with pytest.raises(UnsupportedFile, match=r"config\.json: not a modelcodec file"):
        hub.open(REPO, "config.json")


# ---- cuts --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [False, True])
def test_a_connection_that_breaks_is_taken_up(over_http: HubStandIn, folder: Path, tmp_path: Path, restore: bool) -> None:
    hub.push(folder, REPO)
    over_http.faults.cut_after, over_http.faults.cuts = 50_000, 3
    with over_http.asked() as requests:
        hub.pull(REPO, tmp_path / "back", restore=restore)
    assert [request.range for request in requests if "bytes=50000-" in request.range]
    assert contents(tmp_path / "back").keys() == contents(folder).keys()
    assert not restore or contents(tmp_path / "back") == contents(folder)


@pytest.mark.parametrize("restore", [False, True])
def test_a_pull_that_broke_off_goes_on_where_it_was(over_http: HubStandIn, folder: Path, tmp_path: Path, restore: bool) -> None:
    hub.push(folder, REPO)
    over_http.faults.cut_after, over_http.faults.cuts = 50_000, 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_file, "ATTEMPTS", 1)
        with pytest.raises(OSError, match="what has come through is not sent again"):
            hub.pull(REPO, tmp_path / "back", restore=restore)
    assert not (tmp_path / "back" / SHARDS[0]).exists(), "a file is there whole or not at all"
    assert [part.stat().st_size for part in (tmp_path / "back" / ".cache" / "modelcodec").iterdir()] == [50_000]
    with over_http.asked() as requests:
        hub.pull(REPO, tmp_path / "back", restore=restore)
    assert [r.range.startswith("bytes=50000-") for r in requests if r.path.endswith(SHARDS[0])] == [True]
    assert not [r for r in requests if r.path.endswith(".gitattributes") and r.range == ""] or restore, "what was there is left alone"
    assert not restore or contents(tmp_path / "back") == contents(folder)
    assert not (tmp_path / "back" / ".cache").exists()


def test_a_push_that_broke_off_sends_the_rest(over_http: HubStandIn, folder: Path) -> None:
    over_http.faults.uploads = 1
    with pytest.raises(PermissionError, match="403"):
        hub.push(folder, REPO)
    assert len(over_http.repositories[REPO].commits) == 2, "no half of a push is to be seen"
    over_http.faults.uploads = None
    with over_http.asked() as requests:
        hub.push(folder, REPO)
    assert len([request for request in requests if request.method == "PUT"]) == 1
    assert contents(folder).keys() <= over_http.files(REPO).keys()


def test_one_pull_at_a_time_writes_a_file(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    hub.push(folder, REPO)
    found = snapshot(Address(REPO, None))
    stored = next(file for file in found.files if file.name == SHARDS[0])
    place = tmp_path / "back" / ".cache" / "modelcodec" / f"{stored.digest}.part"
    place.parent.mkdir(parents=True)
    with Arrival(remote_file.RemoteFile(found, stored), place), pytest.raises(BlockingIOError, match="another process"):
        hub.pull(REPO, tmp_path / "back")


# ---- damage and malice -------------------------------------------------------------------------------------------------------------


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("change", [damaged, lambda content: content[:-100], lambda content: content + b"\0" * 8], ids=["flipped", "cut", "longer"])
def test_a_damaged_upload_is_refused(over_http: HubStandIn, folder: Path, tmp_path: Path, restore: bool, change: Any) -> None:
    modelcodec.compress(folder / SHARDS[0], tmp_path / "packed")
    over_http.put(REPO, {SHARDS[0]: change((tmp_path / "packed").read_bytes())})
    with pytest.raises(CorruptFile, match=f"{REPO}/{SHARDS[0]}"):
        hub.pull(REPO, tmp_path / "back", restore=restore)
    assert not contents(tmp_path / "back")
    assert not list((tmp_path / "back" / ".cache" / "modelcodec").iterdir()), "the next attempt starts anew"


def test_a_file_that_is_not_what_the_hub_says_is_refused(over_http: HubStandIn, tmp_path: Path) -> None:
    over_http.put(REPO, {"config.json": b"{}", "plain.bin": b"weights"})
    for name, file in over_http.files(REPO).items():
        over_http.files(REPO)[name] = File(file.size, b"x" * file.size, file.sha256) if name == "plain.bin" else file
    with pytest.raises(CorruptFile, match=r"plain\.bin: its digest"):
        hub.pull(REPO, tmp_path / "back")
    assert contents(tmp_path / "back") == {"config.json": b"{}"}


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "C:outside", "a\\b", ".git/hooks/post-checkout", "a//b", "con"])
def test_names_of_a_repository_never_lead_out(over_http: HubStandIn, tmp_path: Path, name: str) -> None:
    over_http.put(REPO, {"config.json": b"{}", name: b"#!/bin/sh\n"})
    with pytest.raises(UnsafeInput, match="file name"):
        hub.pull(REPO, tmp_path / "back")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "back").exists()


def test_links_in_the_folder_are_not_followed_out_of_it(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.push(folder, REPO)
    (tmp_path / "back").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back" / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeInput, match="symbolic link"):
        hub.pull(REPO, tmp_path / "back")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_index_that_leads_out_is_refused(over_http: HubStandIn, tmp_path: Path) -> None:
    over_http.put(REPO, {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../../outside.safetensors"}}).encode()})
    with pytest.raises(UnsafeInput, match="outside"):
        hub.pull(REPO, tmp_path / "back")
    assert not contents(tmp_path / "back")


def test_files_that_are_there_are_not_overwritten_unasked(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.push(folder, REPO)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / SHARDS[1]).write_text("mine")
    with over_http.asked() as requests, pytest.raises(FileExistsError):
        hub.pull(REPO, tmp_path / "back", restore=True)
    assert not [request for request in requests if SHARDS[0] in request.path], "found before anything is downloaded"
    hub.pull(REPO, tmp_path / "back", restore=True, overwrite=True)
    assert contents(tmp_path / "back") == contents(folder)
    with over_http.asked() as requests:
        hub.pull(REPO, tmp_path / "back", restore=True)
    assert all(request.range.endswith(("-7", "-16383", "")) for request in requests), "fronts at most"


# ---- who may do what ---------------------------------------------------------------------------------------------------------------


def test_a_private_repository_without_a_token(stand_in: HubStandIn, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(folder, REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="a private one and there is no token; check the name, or log in with `hf auth login`, or set HF_TOKEN"):
        hub.pull(REPO, tmp_path / "back")
    with pytest.raises(PermissionError, match="there is no token"):
        hub.push(folder, "tester/other")
    assert not (tmp_path / "back").exists()


def test_nothing_is_made_for_what_cannot_be_pushed(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedFile, match="no file in this folder holds tensors"):
        hub.push(tmp_path / "empty", REPO)
    with pytest.raises(FileNotFoundError):
        hub.push(tmp_path / "missing", REPO)
    with pytest.raises(FileNotFoundError, match="no such repository"):
        hub.push(folder, REPO, base="tester/none@main")
    assert not over_http.repositories


def test_a_public_repository_is_not_taken_for_a_private_one(over_http: HubStandIn, folder: Path) -> None:
    hub.push(folder, REPO)
    (folder / "secret.txt").write_text("secret")
    with pytest.raises(BadRecipe, match="is public"):
        hub.push(folder, REPO, private=True)
    assert "secret.txt" not in over_http.files(REPO)


def test_nothing_secret_is_printed_or_stored(stand_in: HubStandIn, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), REPO, "-v"]) == 0
    assert main(["pull", REPO, "-o", str(tmp_path / "back"), "-v"]) == 0
    stand_in.faults.uploads = 0
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[1]).read_bytes())
    main(["push", str(folder), REPO])
    shown = "".join(capfd.readouterr())
    assert TOKEN not in shown
    assert "/store/" not in shown, "signed addresses"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("address", ["a/b/c", "../model", "-x/y", "tester/model@", "C:\\model"])
def test_what_is_no_repository_is_told(over_http: HubStandIn, folder: Path, address: str) -> None:
    with pytest.raises(BadRecipe):
        hub.pull(address, folder.parent / "back")
    with pytest.raises(BadRecipe):
        hub.push(folder, address)


def test_a_hub_that_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    with serving(None, tmp_path / "cache") as served:
        served.close()
        with pytest.raises(OSError, match="the connection to the Hub failed"):
            hub.pull(REPO, tmp_path / "back")


# ---- the command line --------------------------------------------------------------------------------------------------------------


def test_the_commands(stand_in: HubStandIn, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    code, out, err = run("push", str(folder), REPO, "--dry-run", "--json")
    assert (code, stand_in.repositories) == (0, {})
    told = json.loads(out)
    assert told["n_bytes_coded"] * 0.95 < told["n_bytes_sent"] < told["n_bytes"]
    code, _, err = run("push", str(folder), REPO, "-9", "-m", "First")
    assert code == 0
    assert "7 files sent to tester/model in commit" in err
    code, _, err = run("push", str(folder), REPO, "-9", "--dry-run")
    assert (code, "; 0 B would travel" in err) == (0, True)
    assert "nothing to send" in run("push", str(folder), REPO, "-9")[2]
    assert run("pull", REPO, "--restore", "-q", "-o", str(tmp_path / "back")) == (0, "", "")
    assert contents(tmp_path / "back") == contents(folder)
    code, out, err = run("pull", "tester/none", "--json")
    assert (code, json.loads(out)["exit_code"]) == (74, 74)
    assert err.startswith("mcodec: tester/none: no such repository")
    assert run("pull", REPO, "-o", str(tmp_path / "back"))[0] == 74, "compressed files over restored ones"


def test_a_dry_run_counts_what_the_cache_knows_out(over_http: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download

    save_file(weights(7, 12, 1024), folder / SHARDS[0])
    hub.push(folder, REPO)
    changed = weights(7, 12, 1024)
    changed["layer.7.5"] = weights(8, 1, 1024)["layer.8.0"]
    save_file(changed, folder / SHARDS[0])
    unknown = hub.estimate(folder, REPO)
    hf_hub_download(REPO, SHARDS[0])
    known = hub.estimate(folder, REPO)
    assert known.known == (SHARDS[0],)
    assert known.n_bytes_sent < 0.2 * unknown.n_bytes_sent


# ---- deltas ------------------------------------------------------------------------------------------------------------------------


def test_a_delta_finds_its_base_on_the_hub(over_http: HubStandIn, folder: Path, tmp_path: Path) -> None:
    hub.push(folder, "tester/base")
    plain = hub.push(folder, "tester/plain")
    moved = weights(0)
    moved["layer.0.1"] = (moved["layer.0.1"].astype(np.float32) * 1.01).astype(ml_dtypes.bfloat16)
    save_file(moved, folder / SHARDS[0], {"format": "pt"})
    done = hub.push(folder, REPO, base="tester/base@main")
    assert done.n_bytes_coded < 0.5 * plain.n_bytes_coded
    commit = over_http.repositories["tester/base"].at("main")[0]
    assert f"- `tester/base@{commit}/{SHARDS[0]}`" in over_http.content(over_http.files(REPO)[card.NAME]).decode()
    hub.pull(REPO, tmp_path / "back", restore=True)
    assert contents(tmp_path / "back") == contents(folder)
    hub.pull(REPO, tmp_path / "kept")
    with hub.open(REPO, SHARDS[0]) as file:
        assert np.array_equal(file.get_tensor("layer.0.1"), moved["layer.0.1"])
    del over_http.repositories["tester/base"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
        with pytest.raises(OSError, match=rf"no such repository.*tester/base@{commit}/{SHARDS[0]}"):
            hub.pull(REPO, tmp_path / "again", restore=True)
    hub.pull(REPO, tmp_path / "again", restore=True, base=tmp_path / "cache" / "models--tester--base" / "snapshots" / commit)
    assert contents(tmp_path / "again") == contents(folder)
