"""The style of the pages that commands write, for light and dark screens, large and small."""

__all__ = ["STYLE"]

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --ink-2: #565b63; --line: #dcdee2;
  --accent: #2456a6; --stripe: #f3f4f6;
  --s0: #2456a6; --s1: #c4500c; --s2: #1a7f4b; --s3: #a3297a;
  --s4: #8a6d00; --s5: #0b7f8f; --s6: #6b4fc0; --s7: #5c6470;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1c1f25; --ink: #e8eaed; --ink-2: #a9b0bb; --line: #363b44;
    --accent: #8ab4f8; --stripe: #22262d;
    --s0: #7aa7f5; --s1: #f59a5b; --s2: #5ec98f; --s3: #ea7fc6;
    --s4: #dcb93c; --s5: #4fc8d8; --s6: #ab95f5; --s7: #a9b0bb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
header p { margin: .15rem 0; color: var(--ink-2); overflow-wrap: anywhere; }
footer { padding-bottom: 3rem; color: var(--ink-2); font-size: .875rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .6rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; line-height: 1.35; margin: 1.6rem 0 .2rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
section > p, section > h3 + p { color: var(--ink-2); }
a { color: var(--accent); }
nav { margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.cards {
  display: grid; gap: 1rem; margin: 1rem 0 1.6rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
figure {
  margin: 0; padding: 1rem 1rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; max-width: 38rem; min-width: 0;
}
figure h3 { margin: 0 0 .5rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: .7rem; font-size: .875rem; line-height: 1.5; color: var(--ink-2); }
dl { margin: .6rem 0 1.2rem; }
dt { font-weight: 500; overflow-wrap: anywhere; }
dd { margin: 0 0 .6rem 1.2rem; color: var(--ink-2); overflow-wrap: anywhere; }
details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .65rem .2rem; }
summary span { color: var(--ink-2); font-size: .9rem; margin-left: .5rem; }
.table {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; width: fit-content; max-width: 100%; margin-bottom: 1.4rem;
}
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
table th, table td { padding: .32rem .8rem; white-space: nowrap; text-align: right; }
table td { font-variant-numeric: tabular-nums; }
thead th { color: var(--ink-2); font-weight: 600; border-bottom: 1px solid var(--line); }
thead td { border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 500; }
tr > :first-child { position: sticky; left: 0; background: var(--card); }
tbody tr:nth-child(even) > * { background: var(--stripe); }
tr.group th {
  font-weight: 600; color: var(--ink-2); padding-top: .8rem; white-space: normal;
  background: var(--card) !important;
}
@media (max-width: 40rem) {
  header { padding-top: 1.4rem; }
  header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  h1 { font-size: 1.5rem; }
  table th, table td { padding: .3rem .55rem; }
  tbody th { white-space: normal; min-width: 7.5rem; max-width: 42vw; }
}
@media print { details { break-inside: avoid; } body { background: none; } }
"""
