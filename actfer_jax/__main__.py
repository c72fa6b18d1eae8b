"""All commands under one name: `actfer train ...` is `python -m actfer_jax.train ...`.

actfer COMMAND --help
"""

import ast
import runpy
import sys
from pathlib import Path

COMMANDS = {
    "train": "train",
    "traces": "traces",
    "texts": "training.texts",
    "evaluate": "evaluate",
    "study": "study",
    "table": "table",
    "diff": "diff",
    "share": "evaluation.share",
    "analyze": "analyze",
    "browse": "browse",
    "rehearse": "rehearse",
    "compile-check": "compile_check",
    "check-data": "data.check",
    "import-faces": "faces.import_detections",
    "export": "export",
    "make-demo": "make_demo",
}
"""The module of each command, in the package."""


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(overview())
        return
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        from actfer_jax.config import nearest

        near = nearest(name, COMMANDS)
        hint = f"did you mean {near}?" if near else "actfer --help lists them"
        sys.exit(f"error: there is no command {name!r}; {hint}")
    sys.argv[0] = f"actfer {name}"
    runpy.run_module(f"actfer_jax.{COMMANDS[name]}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """Every command with the first sentence of its help, for which nothing is imported."""
    lines = ["actfer COMMAND [--flags]; actfer COMMAND --help says more.", ""]
    width = max(map(len, COMMANDS))
    return "\n".join([*lines, *(f"  {name:<{width}}  {_summary(module)}" for name, module in COMMANDS.items())])


def _summary(module: str) -> str:
    path = Path(__file__).parent / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


if __name__ == "__main__":
    main()
