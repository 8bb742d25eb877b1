"""The parts of a self-contained HTML page: escaped text, tables, pictures, and a file that is whole or not there."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from dnas.pictures import Picture, bit_colour, contrast, counted

CSS = """
:root { color-scheme: light dark; --paper: #fefefe; --ink: #1b1d21; --muted: #636a75; --grid: #d6dae0; --band: #f4f5f7;
  --good: #116329; --bad: #a40e26; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e8eb; --muted: #9ba3af; --grid: #3a3f47;
  --band: #1d2024; --good: #6fd08c; --bad: #ff8f98; --accent: #6cb8ea; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --muted: #555; --grid: #ccc; --band: #f4f4f4;
  --good: #116329; --bad: #a40e26; --accent: #0072b2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 80ch; }
.sub, .note, figcaption { color: var(--muted); }
.note, figcaption { font-size: .88rem; }
.headline { border-left: 4px solid var(--accent); background: var(--band); padding: .8rem 1.1rem; margin: 1.3rem 0;
  font-size: 1.08rem; }
.headline.lost { border-left-color: var(--bad); }
.headline p { margin: .25rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid var(--grid); }
td.num, th.num { text-align: right; }
td.num { white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 9rem; }
td.bits span { display: inline-block; min-width: 2rem; text-align: center; border-radius: 3px; font-weight: 600; }
td small { display: block; color: var(--muted); font-weight: 400; }
tr.ours td { background: var(--band); font-weight: 600; }
figure { margin: 1rem 0; }
figure svg, figure img { max-width: 100%; height: auto; display: block; }
pre { background: var(--band); padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details > summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
@media print { body { padding: 0; max-width: none; font-size: 10.5pt; } .wide { overflow: visible; }
  h2, h3 { break-after: avoid; } tr, figure { break-inside: avoid; } thead { display: table-header-group; }
  details::details-content { display: block; content-visibility: visible; }
  figure svg { max-height: 235mm; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


NONE = "\u2013"


class Markup(str):
    """Text that is HTML already; everything else is escaped."""


def escape(value: Any) -> str:
    """Any value as HTML text."""
    return value if isinstance(value, Markup) else html.escape(plain(value))


def plain(value: Any) -> str:
    """Any value of a report as people read it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        whole = (value.is_integer() or abs(value) >= 1e5) and abs(value) < 1e15
        return plain(round(value)) if whole else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(key)}: {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value)
    return str(value)


def words(key: Any) -> str:
    """A key as words."""
    return str(key).replace("_", " ")


def tag(name: str, content: Any, kind: str = "") -> Markup:
    """An element; content that is not markup is escaped."""
    kind = f' class="{html.escape(kind)}"' if kind else ""
    return Markup(f"<{name}{kind}>{escape(content)}</{name}>")


def join(*parts: Any) -> Markup:
    """Parts one after the other."""
    return Markup("\n".join(escape(part) for part in parts if part is not None))


def table(
    header: Sequence[Any], rows: Sequence[Sequence[Any]], kinds: Sequence[str] = (), row_kinds: Sequence[str] = ()
) -> Markup:
    """A table that scrolls on its own if it is wide.

    Args:
        header: of the columns.
        rows: of cells.
        kinds: a class for each column (`num`, `name`, `bits`).
        row_kinds: a class for each row.
    """
    kinds = [*kinds, *[""] * (len(header) - len(kinds))]
    head = "".join(tag("th", cell, kind) for cell, kind in zip(header, kinds, strict=True))
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(tag("td", cell, kind) for cell, kind in zip(row, kinds, strict=True))
        lines.append(tag("tr", Markup(cells), row_kinds[index] if index < len(row_kinds) else ""))
    body = "\n".join(lines)
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>')


def facts(values: Mapping[str, Any]) -> Markup:
    """Names and values; a mapping of mappings with numbers becomes a table of its own."""
    simple, nested = {}, []
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values()):
            lines = list(dict.fromkeys(name for item in value.values() for name in item))
            rows = [[words(line), *[item.get(line) for item in value.values()]] for line in lines]
            columns = ["", *["num"] * len(value)]
            nested += [tag("h3", words(key).capitalize()), table(["", *map(words, value)], rows, columns)]
        else:
            simple[key] = value
    body = "".join(f"<tr><th>{escape(words(key))}</th>{tag('td', value)}</tr>" for key, value in simple.items())
    own = Markup(f'<div class="wide"><table><tbody>{body}</tbody></table></div>') if simple else None
    return join(own, *nested)


def bits_cell(bits: int | Sequence[int]) -> Markup:
    """A number of bits on its colour; where channels differ, how many of them have each."""
    counts, parts = counted(bits), []
    for width, count in counts.items():
        colour = bit_colour(width)
        number = f"{count} x " if len(counts) > 1 else ""
        parts.append(f'{number}<span style="background:{colour};color:{contrast(colour)}">{escape(width)}</span>')
    return Markup(" ".join(parts))


def figure(picture: Picture, salt: str, caption: str = "") -> Markup:
    """A picture in line, as text that follows the page's colours."""
    below = tag("figcaption", caption) if caption else ""
    return Markup(f"<figure>{picture.svg(salt)}{below}</figure>")


def section(title: str, *parts: Any) -> Markup:
    """A heading and what stands under it."""
    return join(Markup("<section>"), tag("h2", title), *parts, Markup("</section>"))


def page(title: str, *parts: Any) -> str:
    """The whole document; it refers to nothing outside of itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{join(*parts)}\n</body>\n</html>\n"
    )
