"""Output to a terminal: its width, its encoding, and text that cannot change it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from lossscope.errors import LossscopeError
from lossscope.landscape.storage.safe_text import printable

if TYPE_CHECKING:
    from lossscope.reports.render.rendering import Format

__all__ = ["OutputError", "SafeStream", "ascii_text", "echo", "safe_streams", "safe_text", "text_width"]

# what a decomposition into ASCII letters does not give; anything else becomes a question mark
_ASCII: Final = {
    **{"λ": "lambda", "θ": "theta", "Δ": "d", "Σ": "sum", "Φ": "Phi", "η": "eta", "τ": "tau", "ρ": "rho", "σ": "sigma"},
    **{bar: str(level) for level, bar in enumerate("▁▂▃▄▅▆▇█", 1)},
    **{"φ": "phi", "√": "sqrt ", "∞": "inf", "‖": "|", "±": "+-", "×": "x", "·": "*", "°": "deg", "−": "-", "–": "-"},
    **{"—": "-", "…": "...", "→": "->", "≥": ">=", "≤": "<=", "ᵀ": "'", "’": "'", "‘": "'", "“": '"', "”": '"'},
    **{"²": "^2", "³": "^3", "⁻": "-", "¹": "^1", "ₘ": "m", "│": "|", "─": "-", "━": "-", "┃": "|", "�": "?"},
}
_ESCAPES: Final[dict[str, Callable[[str], str]]] = {
    "json": lambda letter: json.dumps(letter)[1:-1],
    "markdown": lambda letter: f"&#{ord(letter)};",
    "html": lambda letter: f"&#{ord(letter)};",
}
_CLOSED: Final = (errno.EPIPE, errno.ESHUTDOWN)


class OutputError(LossscopeError):
    """Standard output cannot be written; `quiet` if its reader has gone, as that of `lossscope runs | head` has."""

    def __init__(self, reason: str, *, quiet: bool) -> None:
        super().__init__(f"cannot write to standard output: {reason}; free some space or write elsewhere")
        self.quiet = quiet


class SafeStream:
    """A text stream that accepts every text: what its encoding lacks is written in ASCII, control characters are not.

    Line feeds and tabs pass. All other attributes are those of the stream.

    Args:
        original: The stream of the process.
    """

    encoding: Final = "utf-8"  # every text is accepted, so that nobody encodes it first

    def __init__(self, original: TextIO) -> None:
        self.original = original

    def write(self, text: str) -> int:
        """Write a text and return its length. Raises OutputError if the stream cannot be written."""
        with _told(self.original):
            self.original.write(safe_text(text, self.original))
        return len(text)

    def takes(self, letter: str) -> bool:
        """Return True if a character is written as it is."""
        return (letter.isprintable() or letter in "\n\t") and _has(getattr(self.original, "encoding", None), letter)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream. Raises OutputError if it cannot be written."""
        with _told(self.original):
            self.original.flush()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self.original, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Replace the standard streams by safe ones within the context; a stream that is None stays None."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(Any, None if one is None else SafeStream(one)) for one in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def echo(text: str, *, format: Format = "text") -> None:
    """Write a text to standard output with a line feed at its end, as `SafeStream` does.

    Args:
        text: What to write.
        format: In all but `text`, characters that cannot be written are escaped, so that no data are lost.
    """
    if sys.stdout is None:
        return
    stream = sys.stdout if isinstance(sys.stdout, SafeStream) else SafeStream(sys.stdout)
    if format != "text":
        text = "".join(letter if stream.takes(letter) else _ESCAPES[format](letter) for letter in text)
    stream.write(text if text.endswith("\n") else f"{text}\n")
    stream.flush()


def safe_text(text: str, stream: TextIO) -> str:
    """Return the text as it can be written to a stream: see `SafeStream`."""
    return _encodable(_without_controls(text), getattr(stream, "encoding", None))


def ascii_text(text: str) -> str:
    """Return the text in ASCII: known symbols by name, letters without their accents, anything else as `?`.

    Example:
        >>> ascii_text("λ_max ± 2, Zoë")
        'lambda_max +- 2, Zoe'
    """
    return "".join(_ascii(letter) for letter in text)


def text_width() -> int:
    """Return the width of text printed to stdout, in columns.

    On a terminal this is its width, or `COLUMNS` if set, limited to 80..120. A pipe or a file always gets 120, whatever
    `COLUMNS` says, so that saved output does not depend on the window it was made in.
    """
    from lossscope.reports.render.text import NARROWEST, WIDEST

    if sys.stdout is None or not sys.stdout.isatty():
        return WIDEST
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def _ascii(letter: str) -> str:
    """Return a character in ASCII."""
    if letter.isascii():
        return letter
    if letter in _ASCII:
        return _ASCII[letter]
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"


def _encodable(text: str, encoding: str | None) -> str:
    """Return the text with the characters that the encoding lacks in ASCII."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "".join(letter if _has(encoding, letter) else _ascii(letter) for letter in text)
    return text


def _has(encoding: str | None, letter: str) -> bool:
    """Return True if the encoding has the character."""
    try:
        letter.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return letter.isascii()
    return True


def _without_controls(text: str) -> str:
    """Return the text with unprintable characters replaced, except line feeds and tabs."""
    if text.isprintable():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


@contextmanager
def _told(stream: TextIO) -> Iterator[None]:
    """Turn an error of the stream into an OutputError, after which nothing more is written to it."""
    try:
        yield
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        _discard(stream)
        raise OutputError(str(getattr(error, "strerror", None) or error), quiet=number in _CLOSED) from error


def _discard(stream: TextIO) -> None:
    """Lead the stream's descriptor nowhere, so that its buffer is not written again when the process ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return
