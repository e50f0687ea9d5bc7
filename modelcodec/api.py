"""The public functions. Names and behaviour follow safetensors where it has them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelcodec.base import NamedBase, opened, read_container
from modelcodec.base import Source as BaseSource
from modelcodec.errors import BadRecipe, CorruptFile, UnsupportedFile
from modelcodec.formats import MARKER, OWN_PREFIX, container, identify
from modelcodec.formats.atomic import atomic_file, spool
from modelcodec.formats.container_layout import ORDINARY, Entry
from modelcodec.formats.folder import INDEX_PART, FolderFile, plan_folder
from modelcodec.formats.paths import inside, shard_names
from modelcodec.formats.write_behind import WriteBehind
from modelcodec.mapping import mapped
from modelcodec.names import compressed_name as compressed_name
from modelcodec.names import restored_name as restored_name
from modelcodec.pool import thread_count
from modelcodec.report import Report, TensorReport, weights_of
from modelcodec.restoration import restore
from modelcodec.tensor_file import Framework, TensorFile
from modelcodec.types import Loss

if TYPE_CHECKING:
    from modelcodec.compression import Settings
    from modelcodec.fitted import Fit
    from modelcodec.recipe import Recipe

Source = str | Path | BinaryIO
Destination = str | Path | BinaryIO | None
Progress = Callable[[int, int], None]


# ---- files and folders -------------------------------------------------------------------------------------------------------------


def compress(
    src: Source,
    dst: Destination = None,
    *,
    level: int | None = None,
    recipe: Recipe | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    sha256: bool = False,
    fit: Fit | None = None,
    base: str | Path | NamedBase | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compress a checkpoint file, or every checkpoint of a folder; decoding gives the same bytes.

    `src`: a path, or a binary file object (read to its end). `dst`: a path, a binary file object, or None for `model.mcodec.safetensors` beside
    `model.safetensors`, `NAME.mcodec` beside any other file or folder. In a folder every file keeps its name; files without tensors are copied.
    `level`: 1 (fast), 5 (default) or 9 (small). `verify`: decode each frame again and compare before it is kept. `sha256`: store the source's SHA-256 too.
    `fit`: makes tensors lossy (`modelcodec.fit`), in each file of a folder by itself; what comes back is then what the fit chose.
    `base`: a file or folder, compressed or not, that this one is a fine-tune or a later step of; its tensors are stored as what they changed, where that is
    smaller, and restoring needs the base again. `progress`: called with bytes done and bytes in all.

    The source is never changed. The destination appears complete or not at all. The bytes do not depend on `threads`.
    memory: eight frames a thread, twenty where nothing shrinks, the skeleton, and 64 MiB for sources up to 64 MiB.
    raises: BadRecipe, UnsafeInput, FileExistsError (without `overwrite`), OSError.
    """
    from modelcodec.compression import compress_view
    from modelcodec.fitted import NOTHING_FITTED
    from modelcodec.fitting import fitted_checkpoint

    if sha256 and fit is not None:
        raise BadRecipe("a lossy file does not give the source back, so that it cannot keep its SHA-256; leave one of them out")
    settings = _settings(level, recipe, threads, verify=verify, sha256=sha256)

    def work(source: BinaryIO | Path, target: BinaryIO | Path, name: str, tick: Progress | None) -> Report:
        path = source if isinstance(source, Path) else None
        with mapped(source) as view:
            checkpoint, fitted = identify(view, path), NOTHING_FITTED
            if fit is not None:
                checkpoint, fitted = fitted_checkpoint(view, checkpoint, fit)
            with _written(target, overwrite, path) as file:
                compress_view(view, checkpoint, file, settings, tick, fitted, against)
                file.flush()
                with mapped(file) as written:
                    report = _describe(container.read(written, name), name, str(target) if isinstance(target, Path) else "-")
        return report

    with opened(base) as against:
        return _each(src, dst, compressed_name, work, progress, overwrite, _holds_tensors)


def decompress(
    src: Source,
    dst: Destination = None,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    base: BaseSource | None = None,
    progress: Progress | None = None,
) -> Report:
    """Restore what `compress` read, byte for byte, with every digest checked. Arguments as for `compress`; the name loses what `compress` added.

    `base`, for deltas: the file, a folder that holds it, or a function from the name that was recorded to the file; without it, it is looked for beside `src`.

    raises: BadRecipe (a base is missing, or is another one), TruncatedFile, CorruptFile, UnsupportedFile, LimitExceeded, FileExistsError, OSError; the
    destination is then as it was before.
    """
    n_threads = thread_count(threads)

    def work(source: BinaryIO | Path, target: BinaryIO | Path, name: str, tick: Progress | None) -> Report:
        with read_container(source, name, base) as archive:
            if isinstance(target, Path) and not _is_device(target):
                _room(target, archive.source_size)
            with _written(target, overwrite, source if isinstance(source, Path) else None) as file, WriteBehind(file) as sink:
                restore(archive, sink, n_threads, tick)
            return _describe(archive, name, str(target) if isinstance(target, Path) else "-")

    return _each(src, dst, restored_name, work, progress, overwrite, _holds_container)


def verify(path: str | Path, *, threads: int | None = None, base: BaseSource | None = None, progress: Progress | None = None) -> Report:
    """Decode everything and check every digest, writing nothing. For a folder, every container in it. `base` and what is raised: as for `decompress`."""
    root = Path(path)
    if root.is_dir():
        names = _containers_in(root)
        if not names:
            raise UnsupportedFile(f"{root}: no file in this folder was written by modelcodec")
        reports = [verify(root / name, threads=threads, base=base, progress=progress) for name in names]
        return _folder_report(root, "", reports)
    with read_container(root, str(root), base) as archive:
        restore(archive, None, thread_count(threads), progress)
        return _describe(archive, str(root), "")


def inspect(path: str | Path, *, floors: bool = False, base: BaseSource | None = None) -> Report:
    """What a container holds, tensor by tensor, from directory and frame heads alone. `floors` decodes the tensors to tell their order-0 entropy and that of
    the model used, and needs the `base` that a delta has.
    """
    root = Path(path)
    if root.is_dir():
        return _folder_report(root, "", [inspect(root / name, floors=floors, base=base) for name in _containers_in(root)])
    with read_container(root, str(root), base) as archive:
        return _describe(archive, str(root), "", floors=floors)


def rebase(
    src: Source,
    dst: Destination,
    *,
    base: BaseSource | None = None,
    onto: str | Path | NamedBase | None = None,
    level: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    sha256: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compress what a container holds again: without a base, which ends a chain of deltas, or as a delta to another one, `onto`.

    `src`: a container, or a folder of them. `base` as for `decompress`, other arguments as for `compress`. disk: the restored file, in a temporary one.
    Raises what `compress` and `decompress` raise; BadRecipe for a container with lossy tensors, since a new one would not tell their losses.
    """
    from modelcodec.compression import compress_view

    settings = _settings(level, None, threads, sha256=sha256)

    def work(source: BinaryIO | Path, target: BinaryIO | Path, name: str, tick: Progress | None) -> Report:
        with read_container(source, name, base) as archive, spool() as plain:
            if archive.losses():
                raise BadRecipe(f"{name}: it has lossy tensors, whose losses another file would not tell; restore it and compress that")
            restore(archive, plain, settings.threads, None)
            plain.flush()
            with mapped(plain) as view, _written(target, overwrite, source if isinstance(source, Path) else None) as file:
                compress_view(view, identify(view, None), file, settings, tick, base=against)
                file.flush()
                with mapped(file) as written:
                    return _describe(container.read(written, name), name, str(target) if isinstance(target, Path) else "-")

    with opened(onto) as against:
        return _each(src, dst, _no_name, work, progress, overwrite, _holds_container)


def _no_name(path: Path) -> Path:
    raise BadRecipe(f"{path}: name the destination")


# ---- tensors -----------------------------------------------------------------------------------------------------------------------


def open(path: str | Path, framework: Framework = "np", *, threads: int | None = None, base: BaseSource | None = None) -> TensorFile:
    """Open a compressed checkpoint for random access, as `safetensors.safe_open` does: keys, metadata, get_tensor, get_slice. A context manager.

    `base`, for deltas: the file, a folder that holds it, or a function from the name that was recorded to the file; without it, it is looked for beside `path`.
    """
    return TensorFile(path, framework, threads=threads, base=base)


def load_file(path: str | Path, framework: Framework = "np", *, threads: int | None = None, base: BaseSource | None = None) -> dict[str, Any]:
    """All tensors of a compressed checkpoint."""
    with TensorFile(path, framework, threads=threads, base=base) as file:
        return _all(file)


def load(data: bytes | memoryview, framework: Framework = "np", *, threads: int | None = None, base: BaseSource | None = None) -> dict[str, Any]:
    """All tensors of a compressed checkpoint held in memory."""
    with TensorFile.of_bytes(data, framework, threads=threads, base=base) as file:
        return _all(file)


def _all(file: TensorFile) -> dict[str, Any]:
    return file.get_tensors()


def save(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, *, level: int | None = None, recipe: Recipe | None = None) -> bytes:
    """Compress named tensors (numpy or torch) to bytes: as safetensors would write them, then as `compress` would."""
    out = BytesIO()
    _save(tensors, metadata, out, _settings(level, recipe, None))
    return out.getvalue()


def save_file(
    tensors: Mapping[str, Any],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    level: int | None = None,
    recipe: Recipe | None = None,
    threads: int | None = None,
) -> None:
    """Compress named tensors (numpy or torch) to a file; as with safetensors, a file that is there is replaced. Written whole or not at all."""
    settings = _settings(level, recipe, threads)
    with atomic_file(Path(path), overwrite=True) as file:
        _save(tensors, metadata, file, settings)


def _save(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None, file: BinaryIO, settings: Settings) -> None:
    from modelcodec.compression import compress_view

    first, chosen = next(iter(tensors.values()), None), dict(tensors)
    if type(first).__module__.partition(".")[0] == "torch":
        import safetensors.torch

        serialize: Callable[..., bytes] = safetensors.torch.save
    else:
        import safetensors.numpy

        serialize = safetensors.numpy.save
        # safetensors writes an array's memory as it lies, which for a transposed one is another array.
        import numpy as np

        chosen = {name: np.asarray(tensor, order="C") for name, tensor in chosen.items()}
    view = memoryview(serialize(chosen, dict(metadata) if metadata else None))
    checkpoint = identify(view, None)
    if {extent.spec.name for extent in checkpoint.extents} != set(tensors):
        raise BadRecipe(f"a tensor named __metadata__ or {OWN_PREFIX}*, or metadata with the key {MARKER!r}: the container keeps these for itself; rename it")
    compress_view(view, checkpoint, file, settings, None)


# ---- behind them -------------------------------------------------------------------------------------------------------------------

_Choice = Callable[[Path, FolderFile], bool]
_Work = Callable[[BinaryIO | Path, BinaryIO | Path, str, Progress | None], Report]


def _settings(level: int | None, recipe: Recipe | None, threads: int | None, *, verify: bool = True, sha256: bool = False) -> Settings:
    """Checked. What compresses is imported only here: restoring starts sooner without it."""
    from modelcodec import compression
    from modelcodec import recipe as recipes

    if level is not None and level not in recipes.LEVELS:
        raise BadRecipe(f"level {level} does not exist; the levels are {', '.join(map(str, recipes.LEVELS))}")
    return compression.Settings(recipe or recipes.Recipe(), level or recipes.DEFAULT_LEVEL, thread_count(threads), verify, sha256)


def _each(
    src: Source, dst: Destination, name_for: Callable[[Path], Path], work: _Work, progress: Progress | None, overwrite: bool, worked_on: _Choice
) -> Report:
    """Run `work` on a file, a file object, or each file of a folder."""
    if not isinstance(src, str | Path):
        if dst is None:
            raise BadRecipe("a source without a name needs a destination")
        with _seekable(src) as file:
            return work(file, Path(dst) if isinstance(dst, str) else dst, "-", progress)
    path = Path(src)
    if path.name in ("", ".."):
        path = path.resolve()
    if path.is_dir():
        return _folder(path, dst, name_for, work, progress, overwrite, worked_on)
    target = name_for(path) if dst is None else Path(dst) if isinstance(dst, str) else dst
    if dst is not None and isinstance(target, Path) and target.is_dir():
        target = target / name_for(path).name
    if isinstance(target, Path) and target.exists() and path.exists() and target.samefile(path):
        raise BadRecipe(f"{path}: source and destination are the same file; name another destination")
    return work(path, target, str(path), progress)


def _folder(
    path: Path, dst: Destination, name_for: Callable[[Path], Path], work: _Work, progress: Progress | None, overwrite: bool, worked_on: _Choice
) -> Report:
    """Every file of a folder under its own name: containers made or restored, the others copied."""
    if dst is not None and not isinstance(dst, str | Path):
        raise BadRecipe(f"{path}: a folder needs a folder as its destination")
    target = name_for(path) if dst is None else Path(dst)
    if target.exists() and (not target.is_dir() or target.samefile(path)):
        raise BadRecipe(f"{target}: the destination of a folder must be another folder")
    if target.resolve().is_relative_to(path.resolve()):
        raise BadRecipe(f"{target}: the destination lies inside the source")
    files = plan_folder(path)
    _check_shards(path, files)
    sizes = {file.name: (path / file.name).stat().st_size for file in files}
    total, done, reports = sum(sizes.values()), 0, []
    if not overwrite:
        for file in files:
            if (target / file.name).exists():
                raise FileExistsError(f"{target / file.name} exists already; allow overwriting or name another folder")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        source, before, size = path / file.name, done, sizes[file.name]
        place = inside(target, file.name)  # what already lies in the destination may be links that lead elsewhere
        place.parent.mkdir(parents=True, exist_ok=True)

        def tick(part: int, whole: int, before: int = before, size: int = size) -> None:
            if progress:
                progress(before + (part * size // whole if whole else 0), total)

        if worked_on(path, file):
            reports.append(work(source, place, str(source), tick))
        else:
            with mapped(source) as view, atomic_file(place, overwrite=overwrite, like=source.stat()) as copy:
                copy.write(view)
            reports.append(Report(str(source), str(place), "copy", size, size))
        done += size
        if progress:
            progress(done, total)
    return _folder_report(path, str(target), reports)


def _holds_tensors(folder: Path, file: FolderFile) -> bool:
    return file.has_tensors


def _holds_container(folder: Path, file: FolderFile) -> bool:
    if not file.has_tensors:
        return False
    with mapped(folder / file.name) as view:
        return container.is_container(view)


def _containers_in(folder: Path) -> list[str]:
    files = plan_folder(folder)
    _check_shards(folder, files)
    return [file.name for file in files if _holds_container(folder, file)]


def _check_shards(folder: Path, files: Sequence[FolderFile]) -> None:
    """Every shard that an index names is there, or none: a download of one format may bring another one's index along. Raises CorruptFile."""
    there = {file.name for file in files}
    for file in files:
        if INDEX_PART in file.name and file.name.endswith(".json"):
            beside = file.name.rpartition("/")[0]
            shards = shard_names((folder / file.name).read_bytes())
            missing = [shard for shard in shards if (f"{beside}/{shard}" if beside else shard) not in there]
            if 0 < len(missing) < len(shards):
                raise CorruptFile(f"{folder / file.name}: the shard {missing[0]!r} that it names is missing; fetch it again")


def _folder_report(folder: Path, target: str, reports: list[Report]) -> Report:
    before, after = sum(r.n_bytes for r in reports), sum(r.n_bytes_coded for r in reports)
    return Report(str(folder), target, "folder", before, after, files=tuple(reports))


@contextmanager
def _written(target: Path | BinaryIO, overwrite: bool, source: Path | None) -> Iterator[BinaryIO]:
    """A seekable file that becomes `target`: a path atomically, with permissions and time of `source`; a file object from a spool once all is well."""
    if isinstance(target, Path) and not _is_device(target):
        with atomic_file(target, overwrite=overwrite, like=source.stat() if source else None) as file:
            yield file
        return
    with spool() as file:
        yield file
        file.seek(0)
        if isinstance(target, Path):
            with target.open("wb") as device:
                shutil.copyfileobj(file, device, 1 << 20)
            return
        shutil.copyfileobj(file, target, 1 << 20)
        target.flush()


def _is_device(path: Path) -> bool:
    """Something that can be written but not be replaced: /dev/null, a fifo."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def _seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """A file object as a real file: what cannot be mapped is spooled to an unlinked temporary file."""
    with spool() as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        yield file


def _room(target: Path, size: int) -> None:
    """A file that cannot fit is refused before it is begun."""
    free = shutil.disk_usage(target.resolve().parent).free
    if size > free:
        raise OSError(28, f"the restored file takes {size} bytes, {free} are free", str(target))


def _describe(archive: container.Container, source: str, destination: str, *, floors: bool = False) -> Report:
    names: dict[int, list[str]] = {}
    for view in archive.views():
        names.setdefault(view.extent, []).append(view.spec.name)
    losses = archive.losses()
    rows = tuple(_tensor_report(archive, entry, " = ".join(names.get(k, [entry.name])), floors, losses) for k, entry in enumerate(archive.tensors))
    digest = archive.sha256.hex() if archive.sha256 else None
    return Report(source, destination, archive.source_format, archive.source_size, len(archive.buffer), rows, digest)


def _tensor_report(archive: container.Container, entry: Entry, name: str, floors: bool, losses: Mapping[str, Loss]) -> TensorReport:
    spec = entry.spec
    if entry.coded:
        plans = Counter(str(archive.frame_head(entry, number).root) for number in range(entry.n_frames))
        plan = plans.most_common(1)[0][0]
        if entry.base:
            plan += f", given {archive.base_names[entry.base.file]}"
    else:
        plan = "stored" if entry.kind == ORDINARY else f"same as {archive.resolve(entry).name}"
    floor = model = None
    if floors:
        from modelcodec.floor import floor_bits, model_bits

        floor, model = floor_bits(archive, entry), model_bits(archive, entry)
    return TensorReport(name, spec.dtype.name, spec.shape, plan, spec.n_bytes, entry.size, weights_of(spec), floor, model, losses.get(entry.name))

