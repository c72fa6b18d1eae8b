"""How long does the page of a large run take to open, and how large is it?

    python benchmarks/browse_size.py --episodes=100000 --json=docs/results/browse.json

Index lines are made by code: the page's index is built from them (Python) and opened (Node.js): its script is run, all
filters are counted and the episodes are put in order. A filter of six conditions is counted too.
"""

import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath

from actfer_jax import cli, facs
from actfer_jax.episodes.index import entry
from actfer_jax.errors import UserError
from actfer_jax.outputs import check_file, write_file
from actfer_jax.viewer import site as site_module
from actfer_jax.viewer.site import PAGE, Site

_EPISODES = flags.DEFINE_integer("episodes", 100_000, "How many.", lower_bound=128)
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")

STEP = 128  # Episodes of a step, in groups of eight.
OPENS = """
const fs = require("fs"), vm = require("vm"), now = () => performance.now();
vm.runInThisContext(fs.readFileSync(process.argv[1], "utf8"));
const script = fs.readFileSync(process.argv[2], "utf8");
let index = null;
globalThis.receive = (address, text) => { index = JSON.parse(text); };
const start = now();
vm.runInThisContext(script);
for (const facet of Object.values(index.facets)) facet.codes = Uint32Array.from(facet.codes);
const parsed = now();
const all = select(index, {});
const filtered = now();
sorted(index, all.rows, "wrong first");
const ordered = now();
const state = { class: "fear", outcome: "wrong", looked: "looked", region: "mouth", advantage: "negative", least: "0" };
const times = Array.from({ length: 20 }, () => { const from = now(); select(index, state); return now() - from; });
console.log(JSON.stringify({ parse_ms: parsed - start, filter_all_ms: filtered - parsed, order_ms: ordered - filtered,
  filter_six_ms: times.sort((a, b) => a - b)[10], episodes: all.rows.length, six: select(index, state).rows.length }));
"""


def write_lines(workdir: Path, episodes: int) -> None:
    """The shards of a run, of which only the indices have content."""
    rng, emotions = random.Random(0), facs.EMOTIONS
    (workdir / "episodes").mkdir(parents=True)
    for step in range(1, -(-episodes // STEP) + 1):
        lines = []
        for number in range(min(STEP, episodes - (step - 1) * STEP)):
            query, rollout = divmod(number, 8)
            emotion, answer = rng.choice(emotions), rng.choice([*emotions, None])
            answer = rng.choice([emotion, emotion, answer])
            zooms = rng.choices(facs.REGIONS, k=rng.randrange(3))
            replies = [{"tool": "zoom", "ok": rng.random() < 0.95, "inspects": True, "region": zoom} for zoom in zooms]
            line = entry(
                {
                    "id": f"{step}-{query}-{rollout}",
                    "dataset": "made",
                    "image": f"train/{(step * 16 + query) * 7919 % 12_271:06d}",
                    "turns": [{"reply": reply} for reply in replies],
                    "prediction": {"emotion": answer, "aus": None if answer is None else []},
                    "reference": {"emotion": emotion, "strata": [rng.choice(["subtle", "plain"])]},
                    "reward": {name: rng.random() for name in ("format", "tool", "au", "region", "emotion", "total")},
                    "advantage": rng.gauss(0, 1),
                    "arm": "looked" if any(reply["ok"] for reply in replies) else "direct",
                }
            )
            place = {
                "shard": f"episodes/step-{step:08d}-host0.jsonl",
                "offset": number * 9000,
                "bytes": 9000,
                "step": step,
            }
            lines.append(json.dumps(place | line, separators=(",", ":")))
        (workdir / "episodes" / f"step-{step:08d}-host0.jsonl").touch()
        (workdir / "episodes" / f"step-{step:08d}-host0.index").write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str]) -> None:
    del argv
    node = shutil.which("node")
    if node is None:
        raise UserError("there is no Node.js on this machine; install it (apt-get install nodejs)")
    if _JSON.value:
        check_file(_JSON.value, "JSON")
    with tempfile.TemporaryDirectory() as scratch:
        workdir, page = Path(scratch, "run"), Path(scratch, "page")
        write_lines(workdir, _EPISODES.value)
        start = time.process_time()
        site = Site([epath.Path(workdir)])
        index = site.index()
        figures = {
            "index_lines_mb": sum(path.stat().st_size for path in workdir.glob("episodes/*.index")) / 1e6,
            "page_kb": len(site.content(PAGE) or b"") / 1e3,
            "index_script_mb": len(index) / 1e6,
            "build_cpu_s": time.process_time() - start,
        }
        (page / "data").mkdir(parents=True)
        (page / "data" / "index.js").write_bytes(index)
        (page / PAGE).write_bytes(site.content(PAGE) or b"")
        filters = Path(site_module.__file__).parent / "page" / "filter.js"
        done = subprocess.run(
            [node, "-e", OPENS, str(filters), str(page / "data" / "index.js")],
            capture_output=True,
            text=True,
            check=True,
        )
        figures |= json.loads(done.stdout)
    for name, value in figures.items():
        print(f"{name:16} {value:,.1f}" if isinstance(value, float) else f"{name:16} {value:,}")
    if _JSON.value:
        write_file(_JSON.value, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
