"""What `mkdocs` does to a page: links to files outside docs/ become text, since the site does not have the files."""

import re
from typing import Any


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Leaves the text of such links."""
    del kwargs
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
