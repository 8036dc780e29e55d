"""What every page of `cliplet.page` looks like, with the styles of the charts in it."""

from __future__ import annotations

from string import Template

STYLE = """
:root { --paper: #fff; --ink: #1c2024; --faint: #5c636a; --rule: #d9dce0; --panel: #f5f6f7; --heat: 31 95 191;
  --one: #1f5fbf; --two: #b4500a; --three: #6b3fa0; --four: #0b7a75; --good: #137333; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e8eaed; --faint: #a2a9b0; --rule: #363b41;
  --panel: #1f2327; --heat: 127 176 255; --one: #7fb0ff; --two: #ffab66; --three: #c7a4f5; --four: #5fd0c8;
  --good: #6ddb8b; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; line-height: 1.35; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { color: var(--faint); margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.notes { padding-left: 1.2rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem .9rem; font-size: .9rem; }
a { color: var(--one); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { font-weight: 600; }
small { display: block; font-size: .75rem; font-weight: 400; color: var(--faint); white-space: nowrap; }
tr > :first-child { padding-left: 0; }
.numbers { font-variant-numeric: tabular-nums; min-width: min(100%, 30rem); }
.numbers td, .numbers thead th { text-align: right; }
.meanings td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.meanings th:first-child { min-width: 7rem; }
.meanings td:last-child { color: var(--faint); font-size: .9rem; }
.facts { width: 100%; }
.facts th { color: var(--faint); font-weight: 400; width: 1%; white-space: nowrap; }
td { overflow-wrap: anywhere; }
.numbers td { overflow-wrap: normal; white-space: nowrap; }
pre { background: var(--panel); border-radius: 6px; padding: .75rem; overflow-x: auto; font-size: .85rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem;
  margin-top: 1rem; align-items: end; }
figure { margin: 0; }
.wide + figure { margin-top: 1rem; }
figcaption { font-weight: 600; }
figure > svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.key { font-weight: 400; font-size: .85rem; color: var(--faint); white-space: nowrap; margin-left: .4rem; }
.key svg { vertical-align: middle; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--faint); }
.level { stroke: var(--faint); stroke-width: 1.5; stroke-dasharray: 2 4; }
.line { fill: none; stroke: var(--one); stroke-width: 2; stroke-linejoin: round; }
.line1 { stroke: var(--two); stroke-dasharray: 7 4; }
.line2 { stroke: var(--three); stroke-dasharray: 2 3; }
.line3 { stroke: var(--four); stroke-dasharray: 10 3 2 3; }
.bar, .dot0 { fill: var(--one); }
.beyond, .bar1, .dot1 { fill: var(--two); }
.bar2, .dot2 { fill: var(--three); }
.bar3, .dot3 { fill: var(--four); }
.cut { stroke: var(--two); stroke-width: 1.5; stroke-dasharray: 4 3; }
.heat { font-size: .75rem; line-height: 1.2; font-variant-numeric: tabular-nums; margin-top: .4rem; }
.heat th, .heat td { padding: .25rem; border: 1px solid var(--paper); text-align: center; vertical-align: middle;
  overflow-wrap: normal; }
.heat th { font-weight: 400; color: var(--faint); }
.heat tbody th { text-align: right; min-width: 5rem; max-width: 14rem; overflow-wrap: anywhere; }
.heat td { min-width: 2.2rem; height: 2.2rem; }
.upright thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem; }
.heat.upright thead th { vertical-align: bottom; }
.heat .deep { color: var(--paper); }
.heat .same { outline: 2px solid var(--good); outline-offset: -2px; }
.heat img, .heat .missing { width: 3rem; height: 3rem; object-fit: cover; padding: 0; }
.scale { display: inline-block; width: 8rem; height: .7rem; margin: 0 .4rem; vertical-align: middle; }
.ranges { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr max-content; gap: .35rem .75rem;
  align-items: center; margin: .4rem 0 0; font-variant-numeric: tabular-nums; }
.ranges > span { overflow-wrap: anywhere; }
.ranges small { display: inline; }
.ranges svg { width: 100%; height: 1.2rem; overflow: visible; }
.ranges .whisker { stroke: var(--ink); stroke-width: 2; }
.ranges .bar-line { stroke: var(--one); stroke-width: 12; opacity: .55; }
article { margin: 0 0 1.5rem; }
article h3 { margin-top: 0; }
.with-picture { display: grid; grid-template-columns: 9rem 1fr; gap: 1rem; align-items: start; }
.with-picture h3 { margin-bottom: .25rem; }
.answers { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.answers.pictures { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.answers li { background: var(--panel); border: 3px solid transparent; border-radius: 6px; padding: 4px; min-width: 0; }
.answers.texts { gap: .25rem; }
.answers.texts li { padding: .2rem .5rem; display: grid; grid-template-columns: 8.5rem 1fr; gap: .5rem;
  overflow-wrap: anywhere; font-size: .9rem; }
.answers .right { border-color: var(--good); }
.answers .far { margin-top: .75rem; }
.answers.pictures .far { margin: 0; border-style: dashed; }
.answers img, .asked img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.asked img { background: var(--panel); border-radius: 6px; }
.missing { background: var(--rule); font-size: .8rem; padding: .5rem; overflow: auto; overflow-wrap: anywhere; }
.score { display: block; font-size: .85rem; color: var(--faint); font-variant-numeric: tabular-nums; }
.pictures .score { margin-top: 4px; }
.right b { color: var(--good); white-space: nowrap; }
.note { margin: 0 0 .5rem; font-size: .9rem; }
@media (max-width: 34rem) {
  .numbers { min-width: 0; width: 100%; }
  .ranges { grid-template-columns: 1fr max-content; gap: 0 .75rem; }
  .ranges > :nth-child(3n + 1) { grid-column: 1 / -1; }
  .ranges > :nth-child(3n) { margin-bottom: .4rem; }
  .numbers th, .numbers td { padding: .4rem .15rem; font-size: .75rem; }
  .numbers small { font-size: .6875rem; line-height: 1.25; white-space: normal; }
  .numbers thead th { white-space: normal; vertical-align: bottom; }
  .facts th { white-space: normal; }
  .answers.pictures { grid-template-columns: repeat(3, 1fr); gap: .4rem; }
  .with-picture { grid-template-columns: 5.5rem 1fr; gap: .6rem; }
  .answers.texts li { grid-template-columns: 1fr; gap: 0; padding: .2rem .35rem; }
  .meanings thead { display: none; }
  .meanings tr { display: grid; grid-template-columns: 1fr max-content; border-bottom: 1px solid var(--rule); }
  .meanings th, .meanings td { border: none; padding: .4rem 0 0; }
  .meanings td:last-child { grid-column: 1 / -1; padding: 0 0 .4rem; }
  .heat { font-size: .625rem; }
  .compact { table-layout: fixed; width: 100%; }
  .compact thead td { width: 28%; }
  .heat.compact th, .heat.compact td { padding: 1px; min-width: 0; }
  .heat.compact tbody td { font-size: 0; height: 1.75rem; }
  .heat.compact img, .heat.compact .missing { width: 100%; height: 1.4rem; }
  .compact tbody th span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
    overflow: hidden; }
}
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="$generator">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$lead
$sections</body>
</html>
""")
