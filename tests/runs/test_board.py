"""What TensorBoard shows of a run: read by TensorBoard's own plugins, and held to docs/metrics.md."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

from actfer_jax.runs.board import plain_name
from actfer_jax.runs.metrics import MetricWriter, write_evaluation

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
GROUPS = {"learning", "looking", "health", "time", "evaluation", "evaluation_part"}


def documented() -> list[str]:
    """The names in the tables of docs/metrics.md, with every choice `{a,b}` written out; `{emotion}` stays as it is."""
    cells = re.findall(r"^\| (`.+?`) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    names = list[str]()
    for name in (name for cell in cells for name in re.findall(r"`(.+?)`", cell)):
        parts = [part[1:-1].split(",") if "," in part else [part] for part in re.split(r"(\{[^}]+\})", name)]
        names += ["".join(chosen) for chosen in itertools.product(*parts)]
    return names


def figures(accuracy: float) -> dict:
    stratum = {"accuracy": {"value": accuracy}, "zoom_rate": {"value": 0.5}}
    return {
        **{name: {"value": accuracy} for name in ("accuracy", "macro_f1", "au_f1_sample")},
        "strata": {"subtle": stratum},
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> TBContext:
    """A run that has every documented metric, as TensorBoard reads it."""
    logdir = tmp_path_factory.mktemp("runs")
    workdir = logdir / "run"
    workdir.mkdir()
    with MetricWriter(workdir) as writer:
        writer.write_board({"config": "ucgrpo:demo", "steps": 3, "model.frozen": ["visual.*"]})
        writer.write(1, dict.fromkeys(documented(), 0.5))
        writer.write_histograms(1, {"rewards": np.array([0.0, 1.0])})
    for prefix in ("eval", "eval_part"):
        write_evaluation(workdir, 1, {"normal": figures(0.75), "no_tools": figures(0.5)}, prefix)
    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0}).AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    context = TBContext(data_provider=provider, multiplexer=multiplexer, plugin_name_to_instance={})
    context.plugin_name_to_instance["scalars"] = ScalarsPlugin(context)
    return context


def test_every_chart_of_every_question_has_a_curve(written):
    plugin, request = CustomScalarsPlugin(written), RequestContext()
    page = json.loads(plugin.layout_impl(request, ""))
    assert [category["title"] for category in page["category"]] == [
        *("Is it learning?", "Is it looking?", "Is it broken?", "Where does the time go?", "Evaluation")
    ]
    for chart in (chart for category in page["category"] for chart in category["chart"]):
        for pattern in chart["multiline"]["tag"]:
            found = plugin.scalars_impl(request, "run", pattern, "")
            assert found["regex_valid"] and found["tag_to_events"], (chart["title"], pattern)


def test_the_gain_of_looking_is_what_a_control_takes(written):
    plugin, request = CustomScalarsPlugin(written), RequestContext()
    for group in ("evaluation", "evaluation_part"):
        found = plugin.scalars_impl(request, "run", f"{group}/gain of looking", "")["tag_to_events"]
        ((_, step, gain),) = found[f"{group}/gain of looking over no_tools"]
        assert step == 1 and gain == pytest.approx(0.25)


def test_the_table_of_runs_has_what_differs_from_the_file(written):
    context, request = Context(written), RequestContext()
    tags = context.hparams_metadata(request, "")
    table = context.experiment_from_metadata(request, "", True, tags, [])
    assert {column.name for column in table.hparam_infos} == {"config", "steps", "model.frozen"}
    assert any(column.name.tag == "evaluation/accuracy" for column in table.metric_infos)


def test_plain_names_are_few_groups_and_no_two_the_same():
    names = documented()
    assert len(names) > 100
    plain = {name: plain_name(name.replace("{", "").replace("}", "")) for name in names}
    assert {name.partition("/")[0] for name in plain.values()} <= GROUPS
    # A run has either kind of training.
    for other in ("sft/", "policy/"):
        shown = [shown for name, shown in plain.items() if not name.startswith(other)]
        assert len(set(shown)) == len(shown)
    assert plain_name("mylab/thing") == "mylab/thing"


def test_the_documented_plain_names_are_those_that_are_shown():
    rows = re.findall(r"^\| ([a-z_]+/[^|`]+) \| `([^|`]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 40
    assert [(plain, name) for plain, name in rows if plain_name(name) != plain] == []
