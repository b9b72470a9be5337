"""The style sheet. Colors are CSS variables, so that inline SVG plots follow dark mode and print
styles.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --faint: #5b6475; --paper: #fff;
  --soft: #f3f5f9; --line: #d5dae3; --right: #17713f; --wrong: #b3261e;
  --s0: #1f5fbf; --s1: #c07a12; --s2: #7b8798; --s3: #8a3fa8; --s4: #1b8a7a; --s5: #b8433a }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --faint: #a3adbd; --paper: #14171d;
  --soft: #1f242d; --line: #394150; --right: #5fcf97;
  --wrong: #ff8a80; --s0: #6ea8ff; --s1: #f0b155; --s2: #98a3b3; --s3: #cf8fe8; --s4: #58cfbc;
  --s5: #ff8d83 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.3rem;
  margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.7rem 0 .5rem } p { margin: .6rem 0; max-width: 46rem }
.small, .ci, footer, figcaption { font-size: .85rem; color: var(--faint) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: .4rem } a {
  color: var(--s0) }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line) }
.verdict, .note { padding: .8rem 1rem; background: var(--soft);
  border-left: .3rem solid var(--line); border-radius: .3rem; max-width: none }
.verdict b { font-size: 1.15rem; display: block } .verdict.looks { border-color: var(--right) }
  .verdict.blind { border-color: var(--wrong) } .verdict.too-few { border-color: var(--soft) }
.right { color: var(--right) } .wrong { color: var(--wrong) }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
  tbody th { min-width: 7rem } th, td { padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th { font-weight: 600 } th:first-child { text-align: left } tbody th { font-weight: 400 }
  tr.ours th, tr.ours td { font-weight: 600 }
table.told td, table.told th { text-align: left } .ci { display: block; font-weight: 400;
  white-space: nowrap }
.published td, .published th { color: var(--faint) } .source { text-align: left;
  font-size: .85rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.2rem; align-items: start }
figure { margin: .6rem 0 } figure svg * { stroke-linejoin: round; stroke-linecap: butt }
  figure svg { width: 100%; height: auto; max-width: 34rem; display: block } figcaption {
  margin-top: .2rem }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr));
  gap: .6rem 1.2rem; margin: .8rem 0 } dl div { min-width: 0 }
dt { font-size: .85rem; color: var(--faint) } dd { margin: 0 }
pre { font: .8rem/1.5 ui-monospace, monospace; white-space: pre-wrap; background: var(--soft);
  border-radius: .3rem; padding: .8rem 1rem; columns: 17rem; column-gap: 2rem; margin: .6rem 0 }
.gallery { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 13.5rem), 1fr)); gap: 1rem }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
.card { background: var(--soft); border-radius: .4rem; padding: .8rem; break-inside: avoid }
  .card p { margin: .3rem 0 } .card img { width: 100%; height: auto; border-radius: .25rem;
  display: block; background: var(--line) }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; margin-bottom: .4rem } .q {
  font-weight: 600 } .none { display: grid; place-items: center; min-height: 6rem;
  background: var(--line); border-radius: .25rem; font-size: .85rem; color: var(--faint) }
@media (max-width: 30rem) { .gallery { grid-template-columns: 1fr 1fr; gap: .6rem }
  .gallery.wide { grid-template-columns: 1fr } .card { padding: .6rem; font-size: .9rem }
  th, td { padding-right: .5rem } table { font-size: .92rem } .ci { white-space: normal }
  tbody th { min-width: 5rem } body { padding-top: 1rem } }
@page { size: A4; margin: 16mm 14mm }
@media print { :root { color-scheme: light; --ink: #000; --faint: #444; --paper: #fff;
  --soft: #fff; --line: #999; --right: #000; --wrong: #000;
  --s0: #10438f; --s1: #a8700f; --s2: #8b95a3; --s3: #5e2775; --s4: #49a89a; --s5: #8c221b }
  body { font-size: 10.5pt; max-width: none; padding: 0 } nav { display: none } .scroll {
  overflow: visible } th, td { padding: .2rem .5rem .2rem 0 } table { font-size: .9em }
  h2, h3 { break-after: avoid } h2 { margin-top: 1.4rem } figure, tr, .verdict {
  break-inside: avoid } .card { border: 1px solid var(--line); padding: .5rem; font-size: .9em }
  .gallery { grid-template-columns: repeat(4, 1fr); gap: .5rem } .gallery.wide {
  grid-template-columns: repeat(2, 1fr) } .plots { grid-template-columns: 1fr 1fr } pre {
  border: 1px solid var(--line); columns: 3 } }
"""
