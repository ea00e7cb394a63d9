"""Events of mkdocs: pages from outside docs/, links, tables from the code, and a look at what the site would load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathematics import Mathematics
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from outside_requests import in_site
from site_links import MOVED, ROOT, relinked, with_lists
from site_tables import completed

ALONE = ["navigation"]  # no other page stands below the same tab
HIDDEN = {
    **dict.fromkeys(("index.md", "first_ten_minutes.md", "glossary.md", "gallery.md"), ALONE),
    "comparison.md": [*ALONE, "toc"],  # its tables take the place of the table of contents
    "measures/index.md": ["toc"],
}


def on_config(config: Any) -> Any:
    """Read the formulas of docstrings."""
    config.markdown_extensions.append(Mathematics())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside docs/ in the repository."""
    for path, place in MOVED.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the text of a page as the site has it."""
    place = page.file.src_uri
    page.meta["hide"] = HIDDEN.get(place, [])
    return with_lists(completed(relinked(markdown, place), place))


def on_post_build(config: Any) -> None:
    """Refuse a site that would load something from elsewhere."""
    if outside := list(in_site(Path(config["site_dir"]))):
        raise PluginError("the site must make no outside request, got\n" + "\n".join(outside))
