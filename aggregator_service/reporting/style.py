"""The style sheet of a report: light and dark, phone to wide screen, print."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1c2127;
  --soft: #5d6670; --line: #e3e5e8; --c1: #2459d6; --c2: #0b8a7d; --c3: #8a4fd0; --c4: #cf6a12;
  --c5: #6b7480; --wash: #eef2fc; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1b2026; --ink: #e6e9ec;
  --soft: #9aa4af; --line: #2d343c; --c1: #7ba2ff; --c2: #3fc9b8; --c3: #bd93f5; --c4: #f2a04f;
  --c5: #98a2ad; --wash: #1f2937; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .45rem 0; max-width: 74ch; }
.lead, .empty, figcaption { color: var(--soft); }
figcaption { font-size: .88rem; margin-top: .5rem; }
.phase { display: inline-block; font-size: .8rem; font-weight: 600; padding: .08rem .6rem;
  border-radius: 1rem; vertical-align: .35rem; margin-left: .5rem; color: #fff;
  background: var(--c5); }
.phase.completed { background: #12805c; } .phase.failed, .phase.stopped { background: #b3321f; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.4rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0; }
.tile, figure, .note { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tile { padding: .75rem .95rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; }
.tile span { color: var(--soft); font-size: .84rem; line-height: 1.35; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem; }
figure { margin: 1rem 0; padding: 1rem 1rem .8rem; min-width: 0; }
.pair figure { margin: 0; }
.note { border-left: 4px solid var(--c1); padding: .7rem 1.1rem; margin: 1rem 0;
  background: var(--wash); }
.wide, .scroll { overflow-x: auto; } .wide svg { min-width: 34rem; max-width: 50rem; }
svg { width: 100%; height: auto; display: block; overflow: visible; }
.tick { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid, .zero { stroke: var(--line); stroke-width: 1; } .zero { stroke: var(--soft); }
.range { stroke: var(--line); stroke-width: 3; stroke-linecap: round; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.dot { stroke: var(--card); stroke-width: 1; } .band { opacity: .13; stroke: none; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); }
.line { stroke: var(--c); } .dot, .bar, .band { fill: var(--c); } .cell { fill: var(--c1); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .84rem; margin: .55rem 0 0;
  color: var(--soft); }
.key { display: inline-block; width: 1.05rem; height: 0; border-top: 3px solid var(--c);
  vertical-align: .28rem; margin-right: .4rem; border-radius: 2px; }
.key.dashed { border-top-style: dashed; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .34rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { white-space: normal; min-width: 3.4rem; color: var(--soft); font-weight: 600;
  font-size: .82rem; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
tr:last-child td { border-bottom: 0; }
.share { display: inline-block; height: .62rem; border-radius: 2px; background: var(--c1);
  vertical-align: -.02rem; margin-left: .5rem; min-width: 2px; }
.settings { columns: 20rem; column-gap: 2rem; }
.settings div { break-inside: avoid; margin-bottom: 1rem; }
.settings dl { display: grid; grid-template-columns: max-content 1fr; gap: .05rem .9rem; margin: 0;
  font-size: .86rem; }
.settings dt { color: var(--soft); } .settings dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.5; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .92em; }
footer { margin-top: 3rem; color: var(--soft); font-size: .84rem; }
@media print { figure, .tile, .note { break-inside: avoid; } main { max-width: none; } }
"""
