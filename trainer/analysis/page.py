"""`python -m trainer.analysis.page docs/report.md`: a Markdown report as a page beside it, with the same figures."""

from __future__ import annotations

import html
import sys
from pathlib import Path

from markdown_it import MarkdownIt

from trainer.analysis.report import STYLE, TABLE_BEGINS, TABLE_ENDS


def render(markdown: str) -> str:
    """A whole page; its title is the first heading. Links and figures stay relative."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace("<table>", f"{TABLE_BEGINS}<table>").replace("</table>", f"</table>{TABLE_ENDS}")
    title = next((line.removeprefix("# ") for line in markdown.splitlines() if line.startswith("# ")), "Report")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}</body>\n</html>\n"
    )


def main(argv: list[str]) -> int:
    """0: written; 2: no such file."""
    if len(argv) != 1:
        print("usage: python -m trainer.analysis.page REPORT.md", file=sys.stderr)
        return 2
    source = Path(argv[0])
    try:
        text = source.read_text(encoding="utf-8")
        source.with_suffix(".html").write_text(render(text), encoding="utf-8")
    except OSError as error:
        print(f"{error.filename or source}: {error.strerror}", file=sys.stderr)
        return 2
    print(source.with_suffix(".html"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
