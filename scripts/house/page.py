# SPDX-License-Identifier: GPL-2.0
"""The results of a check run as one page of HTML that needs nothing else."""

import collections
import html
import time

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 68em;
       padding: 0 1em; color: #1c2128; background: #fff; }
h1 { font-size: 1.5em; margin-bottom: .2em }
h2 { font-size: 1.1em; margin: 1.6em 0 .4em }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th.n { width: 4.5em } th.n:last-child { width: 12em } td { overflow-wrap: anywhere }
th { font-weight: 600; text-align: left; color: #57606a }
td, th { padding: .25em .6em; border-bottom: 1px solid #d8dee4; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.failed td:first-child { border-left: 4px solid #b42318 }
.passed td:first-child { border-left: 4px solid #1a7f37 }
.skipped td:first-child { border-left: 4px solid #9aa4af }
.bad { color: #b42318; font-weight: 600 }
.bar { display: inline-block; height: .6em; background: #7aa7d9; margin-right: .5em }
summary { cursor: pointer } ul { margin: .3em 0 } .log { color: #57606a }
pre { background: #f6f8fa; padding: .7em; overflow: auto; max-height: 32em;
      white-space: pre-wrap; font-size: 12.5px }
@media (prefers-color-scheme: dark) {
 body { background: #12161c; color: #d5dbe3 } th, .log { color: #97a3b0 }
 td, th { border-color: #2b323b } pre { background: #1b2129 } .bad { color: #ff8a7a } }
"""
LOG_LINES = 60


def state(row):
    return "failed" if row.failed else "passed" if row.passed else "skipped"


def bullets(texts):
    """Texts as a list, the same one once with its count."""
    counts = collections.Counter(texts)
    return "<ul>" + "".join(
        f"<li>{html.escape(text)}{f' <b>&times;{n}</b>' if n > 1 else ''}</li>"
        for text, n in counts.items()) + "</ul>"


def details(row, unfolded):
    """What there is to say of a row besides its numbers."""
    parts = []
    if row.problems:
        parts.append("".join(f"<pre>{html.escape(p)}</pre>"
                             for p in dict.fromkeys(row.problems)))
    if row.reasons:
        parts.append("Skipped:" + bullets(row.reasons))
    if row.failed and row.text:
        last = "\n".join(row.text.splitlines()[-LOG_LINES:])
        parts.append(f"The end of its output:<pre>{html.escape(last)}</pre>")
    if row.log:
        parts.append(f"<div class=log>{html.escape(row.log)}</div>")
    name = html.escape(row.name)
    if not parts:
        return name
    unfold = " open" if unfolded else ""
    return f"<details{unfold}><summary>{name}</summary>{''.join(parts)}</details>"


def table(rows, longest, unfolded=False):
    lines = []
    for row in rows:
        bar = round(90 * row.seconds / longest)
        lines.append(
            f"<tr class={state(row)}><td>{details(row, unfolded)}</td>"
            f"<td class=n>{row.passed or ''}</td>"
            f"<td class='n bad'>{row.failed or ''}</td>"
            f"<td class=n>{row.skipped or ''}</td>"
            f"<td class=n><span class=bar style='width:{bar}px'></span>"
            f"{row.seconds:.1f} s</td></tr>")
    return ("<table><tr><th>what<th class=n>passed<th class=n>failed"
            "<th class=n>skipped<th class=n>time</tr>" + "\n".join(lines) +
            "</table>")


def page(title, groups):
    """The page for GROUPS, pairs of a heading and rows as ktap has them."""
    rows = [row for _, group in groups for row in group]
    passed, failed, skipped = (sum(getattr(row, column) for row in rows)
                               for column in ("passed", "failed", "skipped"))
    longest = max((row.seconds for row in rows), default=0) or 1
    head = [f"<h1>{html.escape(title)}</h1>",
            f"<p>{passed} passed, <span{' class=bad' if failed else ''}>{failed} "
            f"failed</span>, {skipped} skipped, {time.strftime('%Y-%m-%d %H:%M')}</p>"]
    bad = [row for row in rows if row.failed]
    if bad:
        head += ["<h2>Failed</h2>", table(bad, longest, unfolded=True)]
    body = [f"<h2>{html.escape(name)}</h2>" + table(group, longest)
            for name, group in groups if group]
    return ("<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
            + "\n".join(head + body) + "</html>\n")
