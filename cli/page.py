"""A compressed checkpoint as one HTML page that needs nothing else: no network, no scripts. Every name in it is untrusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10
from pathlib import PurePath
from typing import TYPE_CHECKING

from modelcodec.cli import charts
from modelcodec.cli.charts import Point, text
from modelcodec.cli.distortion import REACH
from modelcodec.cli.layers import DB_PER_BIT, Distortion, Layer, Row, layers_of
from modelcodec.cli.messages import percent, size
from modelcodec.cli.page_style import STYLE
from modelcodec.cli.report import Total, leaves, total, totals_by_dtype
from modelcodec.version import VERSION

if TYPE_CHECKING:
    from modelcodec.comparison import Comparison
    from modelcodec.report import Report, TensorReport

MOST_LAYERS = 48
"""Layers that are shown at once; of more, the largest, and the others folded."""
LEAST_SHARE = 1 / 500
"""Of the largest's weights that a layer or tensor must have to count for a scale: bits of the smallest are high, and matter to nobody."""
MOST_OPEN = 40
"""Tensors up to which their tables are open from the start."""
MOST_NAMES = 12
"""Names of a list that may be long."""
NONE = "–"
MOST_DECIBELS = 500
"""What has its place in the rate-distortion plane; beyond lie exact tensors, and such as have nothing to do with the original."""
KINDS, REST = "abcd", "e"
"""Classes of a bar's parts: the dtypes, the last for all that are more, and what is no tensor."""
STRUCTURE = "names and structure"
LESS_CELL = '<td class="less"></td>'


@dataclass(frozen=True, slots=True)
class Subject:
    """What a page is about: a report of a file or folder, its tensors with their distortion, the SHA-256 of each file, a comparison where one was made."""

    report: Report
    rows: Sequence[Row]
    digests: Mapping[str, str]
    comparison: Comparison | None
    card: str


def page(subject: Subject) -> str:
    """The whole page. The same subject gives the same page."""
    layers = layers_of(subject.rows)
    plans = _plans(subject.rows)
    sections = [_header(subject), _sizes(subject)]
    if layers:
        sections += [_layer_sizes(layers), _layer_bits(layers)]
    if subject.comparison or any(row.distortion for row in subject.rows):
        sections.append(_distortion(subject.rows, subject.comparison))
    if layers:
        sections += [_plan_table(plans), _tensors(layers, plans)]
    if subject.report.files:
        sections.append(_files(subject.report, subject.digests))
    sections.append(_card(subject.card))
    return _document(_name(subject.report.source), "\n".join(sections))


def _document(title: str, body: str) -> str:
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{policy}{view}<meta name="generator" content="modelcodec {VERSION}"><title>{text(title)}</title><style>{STYLE}</style>'
    footer = f"<footer>Written by <code>mcodec report</code>, modelcodec {VERSION}.</footer>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><main>\n{body}\n</main>{footer}</body></html>\n'


# ---- words and figures -------------------------------------------------------------------------------------------------------------


def _name(path: str) -> str:
    return PurePath(path).name or "checkpoint"


def _broken(name: str) -> str:
    """A name that may break after its dots."""
    return text(name).replace(".", ".<wbr>")


def _bits(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _decibels(value: float) -> str:
    return f"{value:.2f} dB" if isfinite(value) else "∞ dB" if value > 0 else NONE


def _small(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}" if isfinite(value) else "∞"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _weights(n: int) -> str:
    """As checkpoints are called: 7.24B, 15.2M, 271K."""
    for power, unit in ((9, "B"), (6, "M"), (3, "K")):
        if n >= 10**power:
            return f"{n / 10**power:.3g}{unit}"
    return str(n)


def _average(t: Total) -> float | None:
    return t.bits_per_weight if t.n_weights else None


def _left(heading: str) -> str:
    return f'<th scope="col" class="l">{heading}</th>'


def _less(heading: str) -> str:
    """Of a column that narrow displays leave out."""
    return f'<th scope="col" class="less">{heading}</th>'


def _table(label: str, headings: Iterable[str], body: Iterable[str], foot: str = "", kind: str = "facts") -> str:
    """A table of rows, in HTML as all that is given; headings with `<th` are whole cells."""
    cells = "".join(heading if heading.startswith("<th") else f'<th scope="col">{heading}</th>' for heading in headings)
    footed = f"<tfoot>{foot}</tfoot>" if foot else ""
    return f'<table class="{kind}" aria-label="{label}"><thead><tr>{cells}</tr></thead><tbody>{"".join(body)}</tbody>{footed}</table>'


def _wide(label: str, headings: Iterable[str], body: Iterable[str], foot: str = "", kind: str = "facts") -> str:
    """A table that scrolls by itself where it is wider than the page."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{label}">{_table(label, headings, body, foot, kind)}</div>'


def _row(head: str, cells: Iterable[str]) -> str:
    """A row; its head and cells are HTML, those with `<t` whole cells."""
    first = head if head.startswith("<t") else f'<th scope="row">{head}</th>'
    others = (cell if cell.startswith("<t") else f"<td>{cell}</td>" for cell in cells)
    return f"<tr>{first}{''.join(others)}</tr>"


def _fold(label: str, facts: str, body: str, *, is_open: bool) -> str:
    return f'<details{" open" if is_open else ""}><summary><span class="mono">{label}</span><span class="soft">{facts}</span></summary>{body}</details>'


# ---- the whole ---------------------------------------------------------------------------------------------------------------------


def _header(subject: Subject) -> str:
    report, every = subject.report, total("all", [row.tensor for row in subject.rows])
    n_lossy = sum(1 for row in subject.rows if row.tensor.loss)
    kind = _count(len(leaves(report)), "file") if report.files else text(report.format)
    quality = f"{n_lossy:,} of {_count(every.n_tensors, 'tensor')} lossy" if n_lossy else "lossless"
    facts = [
        ("original", size(report.n_bytes)),
        ("compressed", size(report.n_bytes_coded)),
        ("of the original", percent(report.n_bytes_coded, report.n_bytes)),
        ("bits a weight", _bits(_average(every))),
        ("weights", _weights(every.n_weights)),
        ("tensors", f"{every.n_tensors:,}"),
    ]
    figures = "".join(f"<div><dt>{label}</dt><dd>{figure}</dd></div>" for label, figure in facts)
    said = f'<p class="soft">Checkpoint compressed with modelcodec · {kind} · {quality}</p>'
    return f'<header><h1>{text(_name(report.source))}</h1>{said}</header><dl class="figures">{figures}</dl>{_digests(subject)}'


def _digests(subject: Subject) -> str:
    """Of a single file; those of a folder's stand in the list of its files."""
    report = subject.report
    if report.files:
        return ""
    lines = [("SHA-256", subject.digests[report.source]), ("SHA-256 of the original", report.sha256)]
    return '<dl class="digests">' + "".join(f"<dt>{label}</dt><dd>{digest}</dd>" for label, digest in lines if digest) + "</dl>"


def _sizes(subject: Subject) -> str:
    """Two bars, before and after, in parts by dtype; and the same as a table, whose sums are the whole files."""
    report = subject.report
    dtypes = totals_by_dtype(row.tensor for row in subject.rows)
    # Below zero where the source's own compression took less than its tensors.
    rest = (report.n_bytes - sum(t.n_bytes for t in dtypes), report.n_bytes_coded - sum(t.n_bytes_coded for t in dtypes))
    kinds = [KINDS[min(k, len(KINDS) - 1)] for k in range(len(dtypes))]
    whole = max(report.n_bytes, report.n_bytes_coded)
    before = [(kind, t.n_bytes, t.dtype) for kind, t in zip(kinds, dtypes, strict=True)]
    after = [(kind, t.n_bytes_coded, t.dtype) for kind, t in zip(kinds, dtypes, strict=True)]
    bars = ""
    for label, parts, others in (("original", before, rest[0]), ("compressed", after, rest[1])):
        bars += f"<span>{label}</span>{charts.stack([*parts, (REST, max(others, 0), STRUCTURE)], whole)}"
    body = [_dtype_row(kind, t) for kind, t in zip(kinds, dtypes, strict=True)]
    if min(rest) >= 0:
        head = f'<th scope="row" class="word"><span class="key {REST}"></span>{STRUCTURE}</th>'
        body.append(_row(head, (LESS_CELL, LESS_CELL, size(rest[0]), size(rest[1]), "", "")))
    ends = (LESS_CELL, LESS_CELL, size(report.n_bytes), size(report.n_bytes_coded), percent(report.n_bytes_coded, report.n_bytes), "")
    foot = _row('<th scope="row" class="word">whole</th>', ends)
    headings = ("dtype", _less("tensors"), _less("weights"), "original", "compressed", "ratio", "bits")
    return f'<h2>Size by dtype</h2><div class="sizes">{bars}</div>{_wide("Size by dtype", headings, body, foot)}'


def _dtype_row(kind: str, t: Total) -> str:
    counts = (f'<td class="less">{n:,}</td>' for n in (t.n_tensors, t.n_weights))
    figures = (size(t.n_bytes), size(t.n_bytes_coded), percent(t.n_bytes_coded, t.n_bytes), _bits(_average(t)))
    return _row(f'<span class="key {kind}"></span>{text(t.dtype)}', (*counts, *figures))


# ---- layers ------------------------------------------------------------------------------------------------------------------------


def _layer_sizes(layers: Sequence[Layer]) -> str:
    most = max(max(layer.total.n_bytes, layer.total.n_bytes_coded) for layer in layers) or 1

    def row(layer: Layer) -> str:
        t = layer.total
        bar = _bar(f'<i class="was" style="width:{100 * t.n_bytes / most:.2f}%"></i><i style="width:{100 * t.n_bytes_coded / most:.2f}%"></i>')
        figures = (f'<td class="less">{size(t.n_bytes)}</td>', size(t.n_bytes_coded), percent(t.n_bytes_coded, t.n_bytes))
        return _row(_broken(layer.name), (bar, *figures))

    key = '<p class="soft"><span class="key"></span>compressed<span class="next key was"></span>original</p>'
    return f"<h2>Size by layer</h2>{key}{_layer_table('Size by layer', layers, row, (_less('original'), 'compressed', 'ratio'))}"


def _layer_bits(layers: Sequence[Layer]) -> str:
    shown = [layer for layer in layers if layer.total.n_weights]
    if not shown:
        return ""
    least = max(layer.total.n_weights for layer in shown) * LEAST_SHARE
    most = max(max(layer.total.bits_per_weight, layer.floor_bits or 0.0) for layer in shown if layer.total.n_weights >= least) or 1.0

    def row(layer: Layer) -> str:
        bits, floor = layer.total.bits_per_weight, layer.floor_bits
        length = f'<i style="width:{100 * bits / most:.2f}%"></i>' if bits <= most else '<i class="cut"></i>'
        tick = f'<i class="floor" style="left:{100 * floor / most:.2f}%"></i>' if floor is not None and floor <= most else ""
        return _row(_broken(layer.name), (_bar(length + tick), f'<td class="less">{_weights(layer.total.n_weights)}</td>', _bits(bits), _bits(floor)))

    key = (
        '<p class="soft"><span class="key"></span>bits a weight<span class="next key floor"></span>floor: the least that a code of single exponents takes; '
        "for lossy tensors, the least that independent Gaussian weights take at the same error. Codes that know more get below it.</p>"
    )
    return f"<h2>Bits a weight by layer</h2>{key}{_layer_table('Bits a weight by layer', shown, row, (_less('weights'), 'bits', 'floor'))}"


def _bar(marks: str) -> str:
    return f'<td class="bar"><span>{marks}</span></td>'


def _layer_table(label: str, layers: Sequence[Layer], row: Callable[[Layer], str], headings: Sequence[str]) -> str:
    """A row a layer, in their order; where they are many, the largest, and the others in a fold."""
    ranked = sorted(layers, key=lambda layer: -layer.total.n_bytes)
    largest = {layer.name for layer in ranked[:MOST_LAYERS]}
    shown, others = ([layer for layer in layers if (layer.name in largest) is chosen] for chosen in (True, False))
    columns = ("layer", '<th scope="col"><span class="hidden">bar</span></th>', *headings)
    table = _table(label, columns, map(row, shown), kind="bars")
    if not others:
        return table
    return table + _fold(f"{len(others):,} more", "", _table(label, columns, map(row, others), kind="bars"), is_open=False)


# ---- distortion --------------------------------------------------------------------------------------------------------------------


def _distortion(rows: Sequence[Row], comparison: Comparison | None) -> str:
    """Errors, as the file tells or as measured: the rate-distortion plane, the histogram of all, and each tensor that has some."""
    said = _compared(comparison) if comparison else '<p class="soft">Errors as measured when the file was compressed.</p>'
    found = [(row, row.distortion) for row in rows if row.distortion]
    if not found:
        return f"<h2>Compared with the original</h2>{said}"
    headings = ("tensor", "bits", "SNR", "max error", *(("RMSE", "cosine", _left(f"errors, ±{REACH:g} RMSE")) if comparison else ()))
    table = _wide("Tensors with errors", headings, (_error_row(row, distortion, measured=comparison is not None) for row, distortion in found))
    fold = _fold(f"{_count(len(found), 'tensor')} with errors", "", table, is_open=len(found) <= MOST_OPEN)
    return f'<h2>Rate and distortion</h2>{said}<div class="pair">{_plane(found)}{_all_errors(found)}</div>{fold}'


def _compared(comparison: Comparison) -> str:
    n, changed = len(comparison.tensors), sum(1 for tensor in comparison.tensors if tensor.n_different)
    fact = f"{changed:,} of {n:,} tensors differ" if changed else f"{_count(n, 'tensor')} compared, all with the same bits"
    lists = ((comparison.missing, "Only in the original"), (comparison.added, "Only in this file"), (comparison.unlike, "Of other shape, or no numbers"))
    others = "".join(f"<p>{said}: {_names(names)}.</p>" for names, said in lists if names)
    return f'<p class="soft">Measured against the original: {fact}.</p>{others}'


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"<code>{text(name)}</code>" for name in names[:MOST_NAMES]) + more


def _error_row(row: Row, d: Distortion, *, measured: bool) -> str:
    cells = [_bits(row.tensor.bits_per_weight), _decibels(d.snr_db), _small(d.max_error)]
    if measured:
        cosine = NONE if d.cosine is None or not isfinite(d.cosine) else f"{d.cosine:.6f}"
        cells += [_small(d.rmse), cosine, charts.spark(d.histogram) if d.histogram else ""]
    return _row(_broken(row.title), cells)


def _plane(found: Sequence[tuple[Row, Distortion]]) -> str:
    """The rate-distortion plane, of tensors whose errors are finite and not zero."""
    placed = [(row, d) for row, d in found if abs(d.snr_db) < MOST_DECIBELS and row.tensor.n_weights and 0 < d.error_energy < inf]
    if not placed:
        return ""
    most, n = max(row.tensor.n_weights for row, _ in placed), sum(row.tensor.n_weights for row, _ in placed)
    drawn = [(row, d) for row, d in placed if row.tensor.n_weights >= most * LEAST_SHARE]
    points = [Point(row.title, row.tensor.bits_per_weight, d.snr_db, row.tensor.n_weights / most) for row, d in drawn]
    whole = Point("all", 8 * sum(row.tensor.n_bytes_coded for row, _ in placed) / n, _snr_of_all([d for _, d in placed]), 1.0)
    left_out = f" ({len(placed) - len(drawn):,} very small ones are left out)" if len(drawn) < len(placed) else ""
    caption = (
        f"Each circle is a tensor, larger with more weights{left_out}. The diamond is all of them: {whole.bits:.3f} bits a weight, {whole.snr_db:.1f} dB. "
        "Dashed: the best that any code of independent Gaussian weights reaches, 6.02 dB a bit; above it lies what knows more of the weights."
    )
    return f"<figure>{charts.rate_distortion(points, whole, DB_PER_BIT)}<figcaption>{caption}</figcaption></figure>"


def _snr_of_all(distortions: Sequence[Distortion]) -> float:
    """Energy of all weights over that of all errors; in shares of the largest, so that no sum overflows."""
    most = max(log10(d.error_energy) for d in distortions), max(log10(d.error_energy) + d.snr_db / 10 for d in distortions)
    errors = sum(10 ** (log10(d.error_energy) - most[0]) for d in distortions)
    weights = sum(10 ** (log10(d.error_energy) + d.snr_db / 10 - most[1]) for d in distortions)
    return 10 * (log10(weights) + most[1] - log10(errors) - most[0])


def _all_errors(found: Sequence[tuple[Row, Distortion]]) -> str:
    histograms = [d.histogram for _, d in found if d.histogram]
    counts = [sum(bins) for bins in zip(*histograms, strict=True)]
    if not any(counts):
        return ""
    caption = "The errors of all these weights, each divided by the RMSE of its tensor. The line is a normal distribution."
    return f"<figure>{charts.histogram(counts, REACH)}<figcaption>{caption}</figcaption></figure>"


# ---- tensors -----------------------------------------------------------------------------------------------------------------------


def _plans(rows: Iterable[Row]) -> dict[str, Total]:
    """Totals by plan, that with most bytes first."""
    groups: dict[str, list[TensorReport]] = {}
    for row in rows:
        groups.setdefault(row.tensor.plan, []).append(row.tensor)
    totals = {plan: total("all", tensors) for plan, tensors in groups.items()}
    return dict(sorted(totals.items(), key=lambda item: (-item[1].n_bytes, item[0])))


def _plan_table(plans: Mapping[str, Total]) -> str:
    body = []
    for number, (plan, t) in enumerate(plans.items(), 1):
        figures = (f"{t.n_tensors:,}", size(t.n_bytes), size(t.n_bytes_coded), percent(t.n_bytes_coded, t.n_bytes))
        body.append(_row(str(number), (f'<td class="l plan">{text(plan)}</td>', *figures)))
    intro = '<p class="soft">How tensors are coded: the stages that the decoder runs, with what each takes from others in brackets.</p>'
    return f"<h2>Plans</h2>{intro}{_wide('Plans', ('plan', _left('stages'), 'tensors', 'original', 'compressed', 'ratio'), body, kind='plans')}"


def _tensors(layers: Sequence[Layer], plans: Iterable[str]) -> str:
    numbers = {plan: number for number, plan in enumerate(plans, 1)}
    is_open = sum(len(layer.rows) for layer in layers) <= MOST_OPEN
    headings = ("tensor", _left("dtype"), _left("shape"), _left("plan"), "original", "compressed", "ratio", "bits", "floor")
    folds = []
    for layer in layers:
        table = _wide(text(layer.name), headings, (_tensor_row(row, numbers[row.tensor.plan]) for row in layer.rows), kind="tensors")
        facts = f"{_count(len(layer.rows), 'tensor')}, {size(layer.total.n_bytes_coded)}"
        folds.append(_fold(_broken(layer.name), facts, table, is_open=is_open))
    return "<h2>Tensors</h2>" + "".join(folds)


def _tensor_row(row: Row, plan: int) -> str:
    t = row.tensor
    left = (text(t.dtype), _shape(t.shape), str(plan))
    bits = _bits(t.bits_per_weight if t.n_weights else None)
    return _row(_broken(row.label), (*left, size(t.n_bytes), size(t.n_bytes_coded), percent(t.n_bytes_coded, t.n_bytes), bits, _bits(row.floor_bits)))


# ---- files and card ----------------------------------------------------------------------------------------------------------------


def _files(report: Report, digests: Mapping[str, str]) -> str:
    root, body = PurePath(report.source), []
    for file in leaves(report):
        figures = (size(file.n_bytes), size(file.n_bytes_coded), percent(file.n_bytes_coded, file.n_bytes))
        cells = (f'<td class="l">{text(file.format)}</td>', *figures, f'<td class="mono">{digests[file.source]}</td>')
        body.append(_row(text(PurePath(file.source).relative_to(root).as_posix()), cells))
    return f"<h2>Files</h2>{_wide('Files', ('file', _left('format'), 'original', 'compressed', 'ratio', 'SHA-256'), body)}"


def _card(markdown: str) -> str:
    intro = '<p class="soft">Markdown for a model card, to copy. <code>mcodec report --markdown</code> prints it.</p>'
    lines = "\n".join(map(text, markdown.splitlines()))
    return f'<h2>Model card</h2>{intro}<pre tabindex="0">{lines}</pre>'
