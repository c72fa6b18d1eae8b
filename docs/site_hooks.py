"""What `mkdocs` does to pages: the notebook becomes one, and links to files outside docs/ become text."""

import json
import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_look.ipynb"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of the notebook."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, f"{NOTEBOOK.stem}.md", content=notebook_page(NOTEBOOK.read_text())))
    return files


def notebook_page(notebook: str) -> str:
    """The cells of a notebook as Markdown; links into docs/ lead to its pages."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text.replace("](../docs/", "]("))
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Leaves the text of links to files outside docs/, since the site does not have the files."""
    del kwargs
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
