"""docs/report.html is docs/report.md, and its figures are there."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.analysis import page

DOCS = Path(__file__).parents[2] / "docs"
FIGURE_BYTES_MAX = 200_000


def test_the_published_page_is_that_of_its_markdown() -> None:
    text = (DOCS / "report.md").read_text()
    assert (DOCS / "report.html").read_text() == page.render(text), "run: python -m trainer.analysis.page docs/report.md"


def test_every_figure_that_it_shows_is_there_and_modest() -> None:
    shown = set(re.findall(r"\]\((figures/\S+\.png)\)", (DOCS / "report.md").read_text()))
    assert shown
    for name in shown:
        assert (DOCS / name).stat().st_size < FIGURE_BYTES_MAX, name
