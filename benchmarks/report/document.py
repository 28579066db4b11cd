"""What a report is made of, and how it is written: sections of text, tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jinja2

__all__ = ["Entry", "Figures", "Panel", "Paragraph", "Points", "Section", "Table", "render"]


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: what it says.
        bold: whether it stands out.
        tone: ``published`` marks numbers of others, ``missing`` what is not there, ``failed``
            what went wrong, ``code`` what a program said.
        note: a short remark in small print after the text.
    """

    text: str
    bold: bool = False
    tone: Literal["", "published", "missing", "failed", "code"] = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Running text; ``lead`` is the sentence to remember."""

    kind: ClassVar[str] = "paragraph"
    text: str
    lead: bool = False


@dataclass(frozen=True, kw_only=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    items: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first entry of every row heads it.

    Attributes:
        caption: what it shows, and what its marks mean.
        header: names of the columns.
        rows: as many entries each as there are columns; a plain string is an entry without marks.
        text: whether the entries are words, which stand at the left, and not numbers.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Entry | str]]
    text: bool = False

    @property
    def entries(self) -> list[list[Entry]]:
        """Rows with every string made an entry."""
        return [[Entry(e) if isinstance(e, str) else e for e in row] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: inline SVG, and what it shows in words."""

    svg: str
    title: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Drawings that share a caption and perhaps a legend (inline SVG)."""

    kind: ClassVar[str] = "figures"
    caption: str
    panels: Sequence[Panel]
    legend: str = ""


Block = Paragraph | Points | Table | Figures


@dataclass(kw_only=True)
class Section:
    """A titled part of the report; one without blocks is left out."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def render(title: str, sections: Sequence[Section]) -> tuple[str, str]:
    """Write the report as Markdown (without its figures) and as one HTML page.

    Returns:
        Markdown and HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchmarks.report", "."),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_cell
    shown = [section for section in sections if section.blocks]
    markdown, html = (
        environment.get_template(name).render(title=title, sections=shown)
        for name in ("report.md.jinja", "report.html.jinja")
    )
    return markdown, html


def _markdown_cell(entry: Entry) -> str:
    text, note = (" ".join(each.split()).replace("|", "\\|") for each in (entry.text, entry.note))
    if entry.tone == "code":
        text = "`" + text.replace("`", "'") + "`" if text else ""
    elif entry.bold:
        text = f"**{text}**"
    elif entry.tone == "published":
        text = f"*{text}*"
    return f"{text} ({note})" if note else text
