"""A page of HTML that opens offline, on any screen, in light and in dark colours."""

import html
import os
from pathlib import Path
from string import Template

from dfpo_jax.training import charts


def write_page(path: str | os.PathLike, title: str, body: str) -> None:
    """Write a page, whole or not at all.

    Args:
      path: the HTML file.
      title: plain text.
      body: HTML; charts are those of `charts`.
    """
    page = _PAGE.substitute(
        title=html.escape(title),
        colours_light=_variables(0),
        colours_dark=_variables(1),
        style=_STYLE,
        body=body,
    )
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _variables(side: int) -> str:
    pairs = enumerate(charts.THEME.values())
    return " ".join(f"--c{number}: {colours[side]};" for number, colours in pairs)


_STYLE = """
  body { margin: 0 auto; max-width: 68rem; padding: 1.2rem 1rem 4rem; background: var(--page);
    color: var(--c6); font: 1rem/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 0; overflow-wrap: anywhere; }
  h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; border-bottom: 1px solid var(--c7);
    padding-bottom: .25rem; }
  h3, h4 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
  h4 { font-weight: 400; color: var(--c5); }
  code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .92em;
    white-space: pre-wrap; overflow-wrap: anywhere; }
  .note { color: var(--c5); font-size: .9rem; margin: .3rem 0 .9rem; }
  .headline { font-size: clamp(1.7rem, 7vw, 2.8rem); font-weight: 700; line-height: 1.2;
    margin: 1rem 0 0; display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.2rem; }
  .arrow { color: var(--c5); font-weight: 400; }
  .points { font-size: 1.1rem; font-weight: 600; padding: .2rem .7rem; border-radius: 1rem;
    border: 1px solid var(--c7); white-space: nowrap; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--c7);
    vertical-align: top; }
  thead th { font-size: .85rem; font-weight: 600; color: var(--c5); }
  tbody th { font-weight: 400; }
  .figures td, .figures thead th + th { text-align: right; padding-right: 0;
    padding-left: 1.1rem; }
  .figures td { white-space: nowrap; }
  .examples { width: 100%; }
  .facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.2rem 0; }
  .facts dt { font-size: .85rem; color: var(--c5); }
  .facts dd { margin: 0; font-variant-numeric: tabular-nums; }
  .charts { display: grid; gap: 1rem;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); }
  figure { display: flex; flex-direction: column; margin: 0; padding: .8rem;
    border-radius: .5rem; background: var(--card); }
  svg { display: block; width: 100%; height: auto; margin-top: auto;
    stroke-linejoin: round; }
  .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0 0 .4rem;
    padding: 0; font-size: .85rem; }
  .legend li { display: flex; align-items: center; gap: .4rem; }
  .key { flex: none; width: 1.75rem; height: .5rem; margin: 0; fill: none; }
  .state { margin: 1.6rem 0; }
  .state .charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
  .right, .wrong { font-size: .85rem; font-weight: 600; white-space: nowrap; }
  .right { color: var(--c2); }
  .wrong { color: var(--c1); }
  figure details { font-size: .85rem; margin-top: .4rem; }
  figure summary { color: var(--c5); }
  figure dl, figure dd { margin: .2rem 0 .5rem; }
  details pre { overflow-x: auto; background: var(--card); padding: 1rem; border-radius: .5rem;
    font-size: .85rem; }
  summary { cursor: pointer; }
  @media (max-width: 36rem) {
    .figures { font-size: .9rem; width: 100%; }
    .figures td, .figures thead th + th { padding-left: .5rem; }
    .examples thead { display: none; }
    .examples tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--c7); }
    .examples td { display: grid; grid-template-columns: 4.5rem 1fr auto; gap: .5rem; border: 0;
      padding: .15rem 0; }
    .examples td::before { content: attr(data-label); color: var(--c5); font-size: .85rem; }
  }
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
  :root { --page: #ffffff; --card: #f6f7f9; $colours_light }
  @media (prefers-color-scheme: dark) {
    :root { --page: #16181c; --card: #1e2126; $colours_dark }
  }
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
