"""Writes the page of all config keys.

python docs/config_page.py > docs/config.md
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from actfer_jax import plugins
from actfer_jax.cli import load_config
from actfer_jax.config import named_config, section_class
from actfer_jax.config_help import Key, attribute_docs, keys
from actfer_jax.data.inventory import PictureConfig
from actfer_jax.evaluation.run import EvaluateConfig
from actfer_jax.training.config import TrainConfig

HEAD = """# Config keys

Every key can be given on the command line, as `--config.optimizer.learning_rate=1e-4`. `--config=ucgrpo --config.help`
prints the keys of one config. `python docs/config_page.py > docs/config.md` writes this page.
"""
CONFIGS = (
    ("Training from rollouts", "ucgrpo", TrainConfig),
    ("Training from traces", "sft", TrainConfig),
    ("Training of adapters", "ucgrpo:lora", TrainConfig),
    ("Evaluation", "eval/synth_faces", EvaluateConfig),
)


def page() -> str:
    lines, seen = [HEAD], set[str]()
    for title, name, cls in CONFIGS:
        found = [key for key in keys(load_config(name).to_dict(), cls) if cls is EvaluateConfig or key.name not in seen]
        seen |= {key.name for key in found}
        rest = " The keys that `configs/ucgrpo.py` has too mean the same." if name == "sft" else ""
        lines += [f"## {title}", "", f"As in `--config={name}`.{rest}", "", *table(found), ""]
    lines += ["## Extensions", "", "What a section has in addition, by its `name`, with the defaults.", ""]
    lines += ["### Data sets of files", "", *table(own(PictureConfig, section_class(TrainConfig, "data"), "data")), ""]
    for section, base in extensions().items():
        for name in plugins.names(base.FOLDER):
            extension: Any = named_config(base, name, f"{section}.name")
            common = PictureConfig if issubclass(extension, PictureConfig) else base
            if found := list(own(extension, common, section)):
                lines += [f'### `{section}.name` "{name}"', "", *table(found), ""]
    return "\n".join(lines)


def extensions() -> dict[str, Any]:
    """The classes of the sections that configure extensions, by the sections' names."""
    found = {}
    for *_, cls in CONFIGS:
        for field in dataclasses.fields(cls):
            section = section_class(cls, field.name)
            if section is not None and hasattr(section, "FOLDER"):
                found[field.name] = section
    return found


def own(extension: Any, common: Any, section: str) -> Iterator[Key]:
    """The keys of a class that another does not have, with their defaults."""
    meanings, others = attribute_docs(extension), {field.name for field in dataclasses.fields(common)}
    for field in dataclasses.fields(extension):
        if field.init and field.name not in others:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield Key(f"{section}.{field.name}", default, meanings.get(field.name, ""))


def table(found: Iterable[Key]) -> list[str]:
    rows = ["| key | value | meaning |", "|---|---|---|"]
    for key in found:
        cells = (cell.replace("|", "\\|") for cell in (f"`{key.name}`", f"`{key.value!r}`", key.meaning))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    print(page(), end="")
