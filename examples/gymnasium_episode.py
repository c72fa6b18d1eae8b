"""An episode of a rendered face in Gymnasium, with turns written by hand: `python -m examples.gymnasium_episode`."""

from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.play import rules_of
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.agent.tools import Toolbox
from actfer_jax.data import synth_faces
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.integrations.gymnasium import FaceEpisodes
from actfer_jax.models import demo_checkpoint
from actfer_jax.rl.rewards import RewardConfig

face = synth_faces.face_of("validation", 0)
reference = Reference(synth_faces.DEMO_EMOTIONS, emotion=face.emotion, aus=frozenset(face.aus))
sample = Sample("rendered", "0", (synth_faces.render(face).image,), reference)
rules, views = rules_of(PolicyCard.load(demo_checkpoint()))
episodes = FaceEpisodes([sample], rules, Toolbox(FaceDetector(), views), RewardConfig())

look = '<think>I look.</think><tool_call>{"name": "zoom", "arguments": {"region": "mouth"}}</tool_call>'
aus = " ".join(f"AU{au}" for au in sorted(face.aus)) or "none"
observation, info = episodes.reset(seed=0)
for turn in (look, f"<think>It is clear.</think><aus>{aus}</aus><answer>{face.emotion}</answer>"):
    print(observation["text"], [view.shape for view in observation["views"]])
    observation, reward, terminated, truncated, info = episodes.step(turn)
print(reward, info["levels"])
