"""Style, script of the HTML report: one page, no request to anywhere."""

CSS = """
:root { --bg:#fbfbfa; --card:#fff; --ink:#1d2126; --soft:#5d6670; --line:#dfe3e6; --accent:#2563a8; --good:#1d7a46;
  --bad:#b3372c; --bar:#5b8fc7; --bar2:#c9d3dc; }
@media (prefers-color-scheme: dark) { :root { --bg:#14171a; --card:#1c2024; --ink:#e6e9ec; --soft:#9aa4ae; --line:#32383e;
  --accent:#78b0ee; --good:#5cc98a; --bad:#f08377; --bar:#5b8fc7; --bar2:#3d464e; } }
* { box-sizing: border-box; }
.cr { background:var(--bg); color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; margin:0; }
.cr main { max-width:1080px; margin:0 auto; padding:20px 16px 48px; }
.cr h1 { font-size:1.6rem; line-height:1.25; margin:.2em 0 .1em; overflow-wrap:anywhere; }
.cr h2 { font-size:1.15rem; margin:2em 0 .6em; }
.cr h3 { font-size:1rem; margin:1.2em 0 .4em; overflow-wrap:anywhere; }
.cr p { margin:.4em 0; }
.cr .soft, .cr caption { color:var(--soft); font-size:.9rem; }
.cr .cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin:18px 0; }
.cr .cards.wide { grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr)); margin-bottom:0; }
.cr .card .bars { margin-top:10px; } .cr .card .bars span { color:inherit; }
.cr .card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px; }
.cr .card b { display:block; font-size:1.7rem; line-height:1.2; font-weight:650; font-variant-numeric:tabular-nums; }
.cr .card b.small { font-size:1.15rem; }
.cr .card span { color:var(--soft); font-size:.85rem; }
.cr .scroll { overflow-x:auto; border:1px solid var(--line); border-radius:10px; background:var(--card); }
.cr table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; font-size:.92rem; }
.cr th, .cr td { padding:7px 11px; text-align:right; white-space:nowrap; border-bottom:1px solid var(--line); }
.cr tr:last-child td { border-bottom:0; }
.cr th:first-child, .cr td:first-child, .cr td.text, .cr th.text { text-align:left; }
.cr td.text { white-space:normal; overflow-wrap:anywhere; min-width:9em; }
.cr th button { all:unset; cursor:pointer; font-weight:600; color:var(--soft); }
.cr th button:focus-visible { outline:2px solid var(--accent); }
.cr th[aria-sort=ascending] button::after { content:" ▲"; } .cr th[aria-sort=descending] button::after { content:" ▼"; }
.cr tr.base td { color:var(--soft); } .cr td.bad { font-weight:600; }
.cr td small { display:block; color:var(--soft); white-space:normal; font-size:.85em; max-width:24em; }
.cr .good { color:var(--good); } .cr .bad, .cr tr.base td.bad { color:var(--bad); }
.cr svg { display:block; width:100%; height:auto; } .cr svg text { fill:var(--ink); } .cr svg:not(.chart) text { font-size:13px; }
.cr svg .soft { fill:var(--soft); } .cr svg .axis { stroke:var(--line); } .cr svg .front { stroke:var(--accent); fill:none;
  stroke-width:2; stroke-dasharray:6 4; } .cr svg circle { fill:var(--bar); fill-opacity:.55; stroke:var(--accent); }
.cr svg .limit { stroke:var(--bad); stroke-width:1.5; stroke-dasharray:2 4; }
.cr svg .interval { stroke:var(--soft); stroke-width:1.5; fill:none; }
.cr svg .label { paint-order:stroke; stroke:var(--card); stroke-width:4px; stroke-linejoin:round; }
.cr svg .bar { fill:var(--bar); } .cr svg .bar2 { fill:var(--bar2); }
.cr svg.narrow { display:none; max-width:480px; margin:0 auto; }
@media (max-width: 800px) { .cr svg.wide { display:none; } .cr svg.narrow { display:block; } }
.cr .figure { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px; }
.cr .bars { display:grid; grid-template-columns:minmax(90px,32%) 1fr auto; gap:3px 10px; align-items:center; font-size:.85rem; }
.cr .bars .name { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; direction:rtl; text-align:left; }
.cr .bars .track { background:var(--bar2); border-radius:3px; height:11px; position:relative; overflow:hidden; }
.cr .bars .track.bare { background:none; }
.cr .bars .fill { background:var(--bar); height:100%; border-radius:3px; display:block; position:relative; }
.cr .bars .fill.pale { background:var(--bar2); }
.cr .bars .was { background:var(--bar2); height:100%; border-radius:3px; position:absolute; left:0; top:0; }
.cr .bars .value { font-variant-numeric:tabular-nums; text-align:right; }
@media (max-width: 600px) { .cr .bars { grid-template-columns:1fr auto; gap:1px 10px; }
  .cr .bars .name { grid-column:1/-1; margin-top:4px; } }
@media (max-width: 600px) { .cr table.stacked thead { display:none; }
  .cr table.stacked, .cr table.stacked tbody{display:block;}
  .cr table.stacked tr { display:grid; grid-template-columns:repeat(2,minmax(0,1fr)); gap:2px 18px; padding:10px 12px; border-bottom:1px solid var(--line); }
  .cr table.stacked tr:last-child { border-bottom:0; }
  .cr table.stacked td { display:flex; justify-content:space-between; flex-wrap:wrap; border:0; padding:0; }
  .cr table.stacked td::before { content:attr(data-name); color:var(--soft); }
  .cr table.stacked.one tr { grid-template-columns:1fr; }
  .cr table.stacked td:first-child { grid-column:1/-1; font-weight:600; overflow-wrap:anywhere; white-space:normal; }
  .cr table.stacked td small { font-weight:400; }
  .cr table.stacked td:first-child::before { content:none; } }
.cr ul.limits { list-style:none; padding-left:.2em; }
.cr details.more { margin-top:10px; } .cr details.more .scroll { border:0; }
.cr details.more th { white-space:normal; overflow-wrap:anywhere; min-width:5em; }
@media (max-width: 600px) { .cr details.more { padding:8px; } .cr details.more th, .cr details.more td { padding:5px; white-space:normal; }
  .cr details.more td.text { min-width:7em; } }
.cr .pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(270px,1fr)); gap:12px; }
.cr ul { padding-left:1.2em; } .cr li { margin:.2em 0; overflow-wrap:anywhere; }
.cr pre { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px; overflow-x:auto; font-size:.85rem; }
.cr code { font-size:.9em; overflow-wrap:anywhere; }
.cr details { border:1px solid var(--line); border-radius:10px; background:var(--card); padding:8px 14px; margin:8px 0; }
.cr summary { cursor:pointer; font-weight:600; } .cr details[open] summary { margin-bottom:8px; }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((th, column) => th.querySelector("button").addEventListener("click", () => {
    const up = th.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => { const v = row.cells[column].dataset.v; return v === "" ? null : isNaN(v) ? v : Number(v); };
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    }).forEach(row => body.append(row));
  }));
}
"""
