"""What `mkdocs` does to a page: files outside docs/, to which pages link, are named, since the site does not have them."""

import re
from typing import Any


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Leaves the text of such links."""
    del kwargs
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
