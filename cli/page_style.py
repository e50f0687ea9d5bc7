"""The page's style: one column that becomes narrow by itself, light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #16191d; --soft: #59616b; --line: #dfe3e8; --faint: #eff1f4; --track: #dde2e9;
  --fill: #2b62b3; --second: #0f766e; --mark: #b4490c;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --soft: #a0a9b4; --line: #30363e; --faint: #21262c; --track: #3a424c;
  --fill: #78a6ef; --second: #3fb8a6; --mark: #f0a063; } }

* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 var(--sans); font-variant-numeric: tabular-nums; }
main, footer { max-width: 1000px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 56px; }
footer { padding-top: 64px; padding-bottom: 48px; font-size: 13px; }
h1 { margin: 0 0 8px; font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 56px 0 8px; font-size: 18px; line-height: 1.3; font-weight: 650; }
p { margin: 0 0 12px; max-width: 76ch; }
.soft, footer, figcaption, thead th, .figures dt, .digests dt { color: var(--soft); }
code, pre, .mono, .digests dd { font: 13px/1.45 var(--mono); overflow-wrap: anywhere; }
pre { margin: 0; padding: 16px; border: 1px solid var(--line); border-radius: 4px; white-space: pre-wrap; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.wide:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--fill); outline-offset: 2px; }

.figures { display: flex; flex-wrap: wrap; gap: 20px 48px; margin: 28px 0 24px; }
.figures div { display: flex; flex-direction: column-reverse; }
.figures dt { font-size: 13px; }
.figures dd { margin: 0; font-size: 24px; line-height: 1.3; font-weight: 600; }
.digests { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 16px; margin: 0; font-size: 13px; }
.digests dd { margin: 0; }

.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { font-weight: 400; text-align: left; }
td, th { padding: 5px 0 5px 16px; vertical-align: middle; }
tr > :first-child { padding-left: 0; }
thead th { border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--faint); }
tfoot tr > * { border-top: 1px solid var(--line); font-weight: 600; }
tbody th { font-family: var(--mono); overflow-wrap: anywhere; min-width: 13ch; }
.plans tbody th { min-width: 0; }
tbody th.word { font-family: inherit; }
td { text-align: right; white-space: nowrap; }
thead th:not(:first-child) { text-align: right; }
table .l, thead th.l, .tensors td:nth-child(-n+4) { text-align: left; }
.plan { white-space: normal; overflow-wrap: anywhere; min-width: 24ch; font-family: var(--mono); }

.bars tbody th { width: 26%; min-width: 24ch; }
.bars .bar { width: 40%; min-width: 120px; }
.bar span { position: relative; display: block; height: 12px; }
.bar i { position: absolute; inset: 0 auto 0 0; min-width: 1px; background: var(--fill); }
.bar .was { background: var(--track); }
.bar .floor { width: 2px; min-width: 0; margin-left: -1px; top: -3px; bottom: -3px; background: var(--mark); outline: 1px solid var(--paper); }
.bar .cut { right: 0; clip-path: polygon(0 0, 100% 0, calc(100% - 6px) 50%, 100% 100%, 0 100%); }
.key { display: inline-block; width: 18px; height: 10px; margin-right: 6px; background: var(--fill); }
.next { margin-left: 16px; }
.key.was { background: var(--track); }
.key.floor { width: 2px; height: 14px; background: var(--mark); vertical-align: -2px; }
.a { fill: var(--fill); background: var(--fill); }
.b { fill: var(--second); background: var(--second); }
.c { fill: var(--mark); background: var(--mark); }
.d { fill: var(--soft); background: var(--soft); }
.e { fill: var(--track); background: var(--track); }
.stack rect { stroke: var(--paper); }
.sizes { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 8px 16px; align-items: center; margin: 12px 0; font-size: 13px; }
.sizes svg, .spark, .plot { display: block; }
.spark { width: 120px; height: 24px; }
.spark path { fill: var(--fill); }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 40px; margin-bottom: 24px; }
figure { margin: 0; }
figcaption { font-size: 13px; }
.plot { overflow: visible; width: calc(100% - 48px); margin: 40px 12px 56px 36px; }
.plot text { fill: var(--soft); font-size: 12px; }
.plot .name { fill: var(--ink); }
.plot .label { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.x, .middle { text-anchor: middle; }
.y, .end { text-anchor: end; }
.grid { stroke: var(--line); }
.tick { stroke: var(--soft); }
.bound, .normal { stroke: var(--mark); stroke-width: 1.5; stroke-linecap: round; }
.bound { stroke-dasharray: 5 4; }
.at { overflow: visible; }
.plot .bounding text { fill: var(--mark); }
circle { fill: var(--fill); fill-opacity: .35; stroke: var(--fill); }
circle:hover { fill-opacity: .8; }
.whole { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.plot rect { fill: var(--fill); fill-opacity: .6; shape-rendering: crispEdges; }

details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
details > .wide, details > table { margin-bottom: 16px; }
summary { display: flex; gap: 12px; padding: 8px 0; cursor: pointer; font-size: 13px; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "+"; width: 1ch; color: var(--soft); font-family: var(--mono); }
[open] > summary::before { content: "\\2212"; }
summary .mono { flex: 1; }
summary .soft { white-space: nowrap; }

@media (max-width: 640px) {
  main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 32px; }
  h1 { font-size: 22px; }
  h2 { margin-top: 44px; }
  .figures { gap: 16px 32px; }
  .figures dd { font-size: 20px; }
  .digests { grid-template-columns: 1fr; }
  .less, .tensors :nth-child(5), .tensors :nth-child(7) { display: none; }
  .bars .bar { width: 32%; min-width: 72px; }
  .bars td, .bars th { padding-left: 10px; }
  .bars tr > :first-child { padding-left: 0; min-width: 0; width: auto; }
}
"""
