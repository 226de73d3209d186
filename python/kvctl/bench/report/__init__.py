"""What `kvctl bench spec` writes for readers: Markdown, and a page of its own for a browser."""

from .markdown import to_markdown
from .page import to_html

__all__ = ["to_html", "to_markdown"]
