"""Plain-text renderer of documents: a table and a sentence of a comparison, one line a claim, tables of contrasts."""

from __future__ import annotations

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Document, Section
from lossscope.reports.render.text import WIDEST, paragraph, rows_text, table_text

__all__ = ["document_text"]


def document_text(document: Document, width: int = WIDEST) -> str:
    """Return the document as text without colors or control codes.

    A comparison is shown whole; of the claims of a file and of the contrasts of a study, each has one line, and its
    evidence is in the other formats.

    Args:
        document: The document.
        width: Length of the longest line in columns.

    Returns:
        The text, ending in a newline.
    """
    parts = [_line(one, width) for one in (document.alert,) if one]
    match document.kind:
        case "compare":
            parts += [_whole(section, width) for section in document.sections]
        case "check":
            parts += [_lines(document.sections, width)]
        case "contrasts":
            parts += [_heading(document, width)]
    parts += [table_text(table, width) for table in document.tables]
    if document.notes:
        parts.append("".join(_line(one, width, mark=" *") for one in document.notes))
    if document.closing:
        parts.append(_line(document.closing, width))
    separator = "" if document.kind == "check" else "\n"
    return separator.join(parts)


def _whole(section: Section, width: int) -> str:
    """Return a section with its tables, its sentence and its facts."""
    parts = [_line(one, width) for one in (section.setting,) if one]
    parts += [rows_text(table, width) + _note(table.note, width) for table in section.tables if table.rows]
    answer = _line(f"{section.status}: {section.sentence}" if section.status else section.sentence, width)
    parts.append(answer + "".join(_line(one, width, mark=" ") for one in (*section.facts, *section.change)))
    return "\n".join(parts)


def _lines(sections: tuple[Section, ...], width: int) -> str:
    """Return one line for each section: its key, status and sentence; what does not fit continues below itself."""
    longest = max((len(section.key) for section in sections), default=0)
    status = max((len(section.status) for section in sections), default=0)
    return "".join(
        _line(section.sentence, width, mark=f"{section.key:<{longest}}  {section.status:<{status}} ")
        for section in sections
    )


def _line(words: str, width: int, *, mark: str = "") -> str:
    """Return a paragraph on lines of its own, whatever line feeds a name may hold."""
    return paragraph(printable(words), width, mark=printable(mark))


def _heading(document: Document, width: int) -> str:
    """Return the title and the subtitle."""
    return "".join(_line(one, width) for one in (document.title, document.subtitle) if one)


def _note(note: str, width: int) -> str:
    """Return the note of a table; nothing if it has none."""
    return _line(note, width, mark=" *") if note else ""
