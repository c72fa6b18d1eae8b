"""GRPO of TRL with the face tools, on rendered faces: `pip install trl`, then `python -m examples.trl_tools MODEL`.

MODEL is a Qwen3-VL whose chat template TRL knows, such as Qwen/Qwen3-VL-4B-Instruct.
"""

import sys

from actfer_jax.agent.environment import EpisodeConfig
from actfer_jax.agent.episode import Reference, Sample
from actfer_jax.agent.tools import Toolbox
from actfer_jax.data import synth_faces
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import ViewConfig
from actfer_jax.integrations.trl import Faces
from actfer_jax.rl.rewards import RewardConfig

rendered = [synth_faces.face_of("train", index) for index in range(8)]
known = [Reference(synth_faces.DEMO_EMOTIONS, emotion=face.emotion, aus=frozenset(face.aus)) for face in rendered]
pictures = [(synth_faces.render(face).image,) for face in rendered]
samples = [Sample("rendered", str(index), *pair) for index, pair in enumerate(zip(pictures, known, strict=True))]
faces = Faces(samples, EpisodeConfig(), Toolbox(FaceDetector(), ViewConfig()), RewardConfig())

if __name__ == "__main__":
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        sys.argv[1],
        reward_funcs=[faces.reward],
        args=GRPOConfig("runs/trl", max_tool_calling_iterations=faces.rules.max_turns - 1, max_completion_length=2048),
        train_dataset=Dataset.from_list(faces.rows()),
        environment_factory=faces.environment,
    )
    trainer.train()
