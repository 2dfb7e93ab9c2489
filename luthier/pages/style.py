"""The one style sheet of every report: CSS variables, light and dark, print, small screens.

What: a string that `page.page` puts inside the file. Why here: a report is one file that opens from a mail or an
  archive
in ten years, so it loads nothing. Colours follow Okabe and Ito (2008), darkened or lightened until text on them reaches
a contrast of 4.5; status never rests on colour alone (every badge and chart row also carries a word).
"""

LIGHT = """
  --paper: #fcfcfa; --card: #ffffff; --ink: #1d2125; --muted: #5d666f; --rule: #e0e2de; --zebra: #f5f6f3;
  --accent: #1f5f8b; --good: #1c6b3f; --bad: #a52a22; --warn: #86580a; --info: #1f5f8b;
  --good-bg: #e7f3ea; --bad-bg: #fbeae8; --warn-bg: #fbf1dc; --info-bg: #e8f0f6;
  --series-1: #1f6fa8; --series-2: #c4620c; --series-3: #1f8060; --series-4: #9a4f7f; --series-5: #7a6a00;
    --series-6: #55606a;
"""

DARK = """
  --paper: #15181b; --card: #1c2024; --ink: #e6e8e6; --muted: #a0a9b1; --rule: #343a40; --zebra: #212629;
  --accent: #7cb8e4; --good: #7fcf9d; --bad: #f2978f; --warn: #e6bb6a; --info: #8dc1e8;
  --good-bg: #1b3325; --bad-bg: #3c211f; --warn-bg: #372b14; --info-bg: #1c2f3d;
  --series-1: #6fb3e3; --series-2: #efa05a; --series-3: #66c7a2; --series-4: #d79bc2; --series-5: #d6c553;
    --series-6: #aab4bd;
"""

RULES = """
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
.wrap { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
header { margin-bottom: 2rem; }
header .brand { color: var(--muted); font-size: .8rem; letter-spacing: .12em; text-transform: uppercase; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: .3rem 0 .4rem; text-wrap: balance; }
header .subtitle { color: var(--muted); font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
nav { border-block: 1px solid var(--rule); padding: .6rem 0; margin-bottom: 1rem; font-size: .9rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: 0; padding: 0; }
a { color: var(--accent); text-underline-offset: .2em; text-decoration-thickness: 1px; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset:
  2px; border-radius: 2px; }
.skip { position: absolute; left: -999rem; } .skip:focus { left: 1rem; top: 1rem; background: var(--card); padding:
  .4rem .8rem; }
section { margin-top: 2.6rem; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 .8rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p, ul, ol { margin: 0 0 .9rem; max-width: 44rem; }
section > p { overflow-wrap: anywhere; }
.muted { color: var(--muted); } .small { font-size: .875rem; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Consolas, monospace;
  font-size: .86em; }
code { background: var(--zebra); border-radius: 3px; padding: .08em .3em; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .8rem 1rem; margin: 0 0 1rem;
  line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { background: none; padding: 0; }
.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.45; font-variant-numeric:
  tabular-nums lining-nums; }
caption { text-align: left; color: var(--muted); font-size: .875rem; padding-bottom: .45rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; }
th code, td code { overflow-wrap: normal; white-space: nowrap; }
th:last-child, td:last-child { padding-right: .2rem; }
thead th { font-weight: 600; color: var(--muted); font-size: .8rem; border-bottom: 1.5px solid var(--muted);
  vertical-align: bottom; overflow-wrap: normal; }
tbody th { font-weight: 600; }
.num { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--zebra); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem; margin: 0 0 1.4rem; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .8rem 1rem; }
.tile dt { color: var(--muted); font-size: .8rem; line-height: 1.3; }
.tile dd { margin: .15rem 0 0; font-size: 1.5rem; line-height: 1.25; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums lining-nums; overflow-wrap: anywhere; }
dl.tiles { padding: 0; }
.banner { border: 1px solid var(--rule); border-left: 6px solid var(--tone); background: var(--tone-bg);
  border-radius: 8px; padding: 1.1rem 1.4rem; margin: 0 0 1.6rem; }
.banner strong { display: block; font-size: 1.5rem; line-height: 1.25; letter-spacing: -.01em; color: var(--tone); }
.banner p { margin: .4rem 0 0; }
.note { border-left: 4px solid var(--tone); background: var(--tone-bg); border-radius: 0 6px 6px 0; padding: .65rem
  1rem; margin: 0 0 1.1rem; max-width: 48rem; overflow-wrap: anywhere; }
.note b { color: var(--tone); margin-right: .35em; }
.badge { display: inline-block; white-space: nowrap; font-size: .78rem; line-height: 1.35; font-weight: 600;
  padding: .1rem .55rem; border-radius: 1rem; color: var(--tone); background: var(--tone-bg); }
.good { --tone: var(--good); --tone-bg: var(--good-bg); } .bad { --tone: var(--bad); --tone-bg: var(--bad-bg); }
.warn { --tone: var(--warn); --tone-bg: var(--warn-bg); } .info { --tone: var(--info); --tone-bg: var(--info-bg); }
details { border: 1px solid var(--rule); border-radius: 6px; background: var(--card); margin: 0 0 1rem; padding: 0
  1rem; }
summary { cursor: pointer; padding: .55rem 0; font-weight: 600; font-size: .93rem; }
details[open] > summary { border-bottom: 1px solid var(--rule); margin-bottom: .8rem; }
figure { margin: 0 0 1.5rem; } figcaption { font-weight: 600; font-size: .93rem; margin-bottom: .35rem; }
figcaption .muted { font-weight: 400; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem; }
svg { display: block; width: 100%; min-width: 30rem; max-width: 46rem; height: auto; font-size: 12px; font-family:
  inherit; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums lining-nums; } svg .soft { fill: var(--muted); }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--muted); } svg .mark { stroke: var(--bad);
  stroke-dasharray: 5 3; } svg .mark-text { fill: var(--bad); font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .85rem; color: var(--muted); margin: 0 0
  .3rem; padding: 0; list-style: none; }
.legend i { display: inline-block; width: 1.1em; height: .28em; border-radius: 2px; vertical-align: middle;
  margin-right: .45em; }
footer { margin-top: 3.5rem; padding-top: .8rem; border-top: 1px solid var(--rule); color: var(--muted); font-size:
  .85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .wrap { padding: 1.6rem 1rem 3rem; } h1 { font-size: 1.55rem; }
  th, td { padding-right: .7rem; } td:not(.num) { min-width: 7rem; }
}
@media print {
  body { font-size: 10.5pt; } .wrap { max-width: none; padding: 0; } nav, .skip { display: none; }
  section, figure, tr, .banner, .note, .tile { break-inside: avoid; } section { break-inside: auto; margin-top:
    1.6rem; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } svg { min-width: 0; } * { -webkit-print-color-adjust: exact; print-color-adjust:
    exact; }
}
"""

STYLE = (
    f":root {{ color-scheme: light dark;{LIGHT}}}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{{DARK}}} }}{RULES}"
)
