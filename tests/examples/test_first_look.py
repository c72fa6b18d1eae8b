"""The notebook runs from its first cell to its last, and its page in the site has all of them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
# A cell is run, and its last expression shown, as a kernel does it.
RUN = """
import ast, json, sys
import matplotlib
matplotlib.use("agg")
scope = {}
for cell in json.loads(open(sys.argv[1]).read())["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), scope)
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), scope) if last else None
        if html := getattr(shown, "_repr_html_", lambda: None)():
            print("HTML", len(html))
"""


@pytest.mark.slow
def test_the_notebook_runs():
    done = subprocess.run([sys.executable, "-c", RUN, NOTEBOOK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (page,) = [line for line in done.stdout.splitlines() if line.startswith("HTML")]
    assert int(page.split()[1]) > 10_000
    assert '"prediction"' in done.stdout and "zooms" in done.stdout


def test_the_notebook_is_light_and_a_page_of_the_site():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    specification = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    page = hooks.on_page_markdown(hooks.notebook_page(NOTEBOOK.read_text()))
    assert page.startswith("# A first look") and page.count("```python") == sum(c["cell_type"] == "code" for c in cells)
    assert "(architecture.md)" in page
