"""What a training says of bad input: one line, before anything is trained."""

import pytest
from command_line import training_refused

from tests.training.test_train import arguments_of, start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.lerning_rate=1"], "lerning_rate"),
        (["--config.estimator.std=grop"], "config.estimator.std"),
        (["--config.model.path=/nowhere"], "/nowhere"),
        (["--config.batch.queries=3", "--config.batch.microbatches=2"], "microbatches"),
        (["--config.batch.rollouts=2", "--config.estimator.forced_arm_rate=0.5"], "config.batch.rollouts is 2"),
        (["--config.rollout.max_turns=2", "--config.estimator.forced_arm_rate=0.5"], "config.rollout.max_turns is 2"),
        (["--config.rollout.temperature=0.0"], "rollout.temperature is 0"),
        (["--config.estimator.credit=decision", "--config.loss.ratio=sequence"], "sequence_token"),
        (["--config.logging.every=0"], "every is 0"),
        (["--config.model.param_dtype=bfloat16"], "param_dtype is 'bfloat16'; it must be float32 in training"),
        (["--config.rollout.prompt_tokens=20"], "the largest prompt, with its scene, has"),
        (["--config.rollout.reply_tokens=12"], "a reply with the largest view has"),
        (["--config.batch.length_buckets=(500,)"], "length_buckets"),
        (["--config=configs/nowhere.py:demo"], "there is no file configs/nowhere.py"),
        (["--config", "configs"], "there is no file configs"),
        (["--workdir=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_named(shared, tmp_path, monkeypatch, arguments, words):
    assert words in training_refused(monkeypatch, *arguments_of(shared, "rl", tmp_path / "run", *arguments))


@pytest.mark.slow
def test_bad_input_fails_with_a_status_and_one_line(shared, tmp_path):
    run = start(shared, "rl", tmp_path / "run", "--config.model.path=/nowhere")
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("error: ") and "/nowhere" in run.stderr and run.stderr.count("\n") == 1
