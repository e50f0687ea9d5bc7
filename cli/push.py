"""`mcodec push`: a folder to the Hugging Face Hub, compressed."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import each, label
from modelcodec.cli.lossy import Loss, fit_of, lossy_options
from modelcodec.cli.messages import percent, say, size
from modelcodec.cli.options import Voice
from modelcodec.cli.progress import bar
from modelcodec.cli.report import print_json

if TYPE_CHECKING:
    from modelcodec.hub.traffic import Traffic
    from modelcodec.hub.uploading import Pushed

UPLOAD_LEVEL = 9


@click.command(short_help="Compress a folder and upload it to the Hugging Face Hub.")
@click.argument("folder", type=click.Path())
@click.argument("repo", metavar="USER/REPO")
@options.level
@click.option(
    "--base", metavar="PATH|USER/REPO@REVISION", help="Store tensors as what they changed in this file, folder or repository. Restoring needs it again."
)
@click.option("--private", is_flag=True, help="Make the repository private; one that exists and is public is refused.")
@click.option("--branch", metavar="NAME", help="Upload to this branch, made where it does not exist, instead of main.")
@click.option("-m", "--message", metavar="TEXT", help="The commit's title.")
@click.option("--dry-run", is_flag=True, help="Send nothing; tell how many bytes would travel, measured with the Hub's own chunker.")
@lossy_options
@options.threads
@options.voice_options
def push(
    folder: str,
    repo: str,
    level: int | None,
    base: str | None,
    private: bool,
    branch: str | None,
    message: str | None,
    dry_run: bool,
    loss: Loss,
    threads: int,
    voice: Voice,
) -> int:
    """Compress FOLDER and upload it to USER/REPO in one commit: every file under its own name, README.md with a block on how to load it.

    Only what the repository lacks is sent, so that a push that broke off can be repeated. The token is the one of 'hf auth login', or HF_TOKEN.
    With -v the Hub's client shows its own progress. The level is 9 where none is given.
    """

    if loss.recipe is not None or loss.target_size is not None:
        raise click.UsageError("push has no --recipe and no --target-size; compress the folder with them, then push the result")

    def work(source: str) -> None:
        from modelcodec import hub

        packed_at = level or UPLOAD_LEVEL
        fit = fit_of(loss, loss.rules, packed_at, None)
        begin = time.perf_counter()
        hub.quieten(bars=voice.verbose)
        with bar(label(source), wanted=not voice.quiet and not voice.verbose) as progress:
            done: Traffic | Pushed
            if dry_run:
                done = traffic = hub.estimate(source, repo, branch=branch, level=packed_at, threads=threads or None, fit=fit, base=base, progress=progress)
                told = _travelling(traffic)
            else:
                done = pushed = hub.push(
                    source, repo, branch=branch, private=private, level=packed_at, threads=threads or None, fit=fit, base=base, message=message,
                    progress=progress,
                )  # fmt: skip
                told = _sent(pushed)
        if voice.json:
            print_json({"source": source, "repo": repo, "n_bytes": done.n_bytes, "n_bytes_coded": done.n_bytes_coded} | asdict(done))
        elif not voice.quiet:
            shrunk = f"{size(done.n_bytes)} -> {size(done.n_bytes_coded)} ({percent(done.n_bytes_coded, done.n_bytes)})"
            say(f"{source}: {shrunk}; {told}" + (f", {time.perf_counter() - begin:.2f} s" if voice.verbose else ""))

    return each([folder], work, voice)


def _sent(done: Pushed) -> str:
    if done.commit is None:
        return f"nothing to send, {done.repo} has it all"
    return f"{len(done.sent)} file{'s' * (len(done.sent) != 1)} sent to {done.repo} in commit {done.commit[:8]}"


def _travelling(done: Traffic) -> str:
    known = f", counted against {len(done.known)} of the repository's files in the Hub's cache" if done.known else ""
    return f"{size(done.n_bytes_sent)} would travel ({percent(done.n_bytes_sent, done.n_bytes)}){known}"
