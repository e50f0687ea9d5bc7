"""`mcodec pull`: a repository of the Hugging Face Hub to a folder, as it is or restored."""

from __future__ import annotations

import time

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import announce_compilation
from modelcodec.cli.messages import complain, describe, say, size
from modelcodec.cli.options import Voice
from modelcodec.cli.progress import bar
from modelcodec.cli.report import as_json, print_json, speed
from modelcodec.errors import EXIT_OS_ERROR, ModelCodecError


@click.command(short_help="Download a repository from the Hugging Face Hub, restored if wanted.")
@click.argument("repo", metavar="USER/REPO[@REVISION]")
@click.option("-o", "--output", type=click.Path(), metavar="FOLDER", help="Where the files go; default: a folder named after the repository.")
@click.option("--restore", is_flag=True, help="Restore the original files while they come, and compare their SHA-256.")
@click.option("-f", "--force", is_flag=True, help="Overwrite files that differ.")
@options.base
@options.threads
@options.voice_options
def pull(repo: str, output: str | None, restore: bool, force: bool, base: str | None, threads: int, voice: Voice) -> int:
    """Download USER/REPO to a folder: every file under its own name and checked, compressed ones ready to load, or with --restore as they once were.

    A pull that broke off goes on where it was when it is repeated. The token is the one of 'hf auth login', or HF_TOKEN.
    """
    begin = time.perf_counter()
    if not voice.quiet:
        announce_compilation()
    try:
        from modelcodec import hub

        hub.quieten(bars=False)
        with bar(repo, wanted=not voice.quiet) as progress:
            report = hub.pull(repo, output, restore=restore, threads=threads or None, overwrite=force, base=base, progress=progress)
    except (ModelCodecError, OSError) as error:
        failed = error.exit_code if isinstance(error, ModelCodecError) else EXIT_OS_ERROR
        complain(repo, error)
        if voice.json:
            print_json({"source": repo, "error": describe(error), "kind": type(error).__name__, "exit_code": failed})
        return failed
    seconds = time.perf_counter() - begin
    if voice.json:
        print_json(as_json(report) | {"seconds": round(seconds, 3)})
    elif not voice.quiet:
        for file in report.files if voice.verbose else ():
            say(f"{file.source}: {size(file.n_bytes_coded)} -> {size(file.n_bytes)}, {file.format}{f', SHA-256 {file.sha256}' if file.sha256 else ''}")
        became = f"{size(report.n_bytes)} in {len(report.files)} files, every digest matches; wrote {report.destination}"
        say(f"{repo}: {size(report.n_bytes_coded)} -> {became}" + (f", {seconds:.2f} s, {speed(report.n_bytes, seconds)}" if voice.verbose else ""))
    return 0
