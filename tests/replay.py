"""Records replayed by transformers' PyTorch model, from what a run leaves: records, PNG files, an exported policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actfer_jax.episodes.store import read_episodes


def replayed(workdir: Path, policy: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Each record with the positions that the policy chose, and PyTorch's log-probabilities of the tokens there."""
    torch = pytest.importorskip("torch")
    from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration

    processor = AutoImageProcessor.from_pretrained(policy)
    network = Qwen3VLForConditionalGeneration.from_pretrained(policy, dtype=torch.float32).eval()
    for record in read_episodes(workdir):
        views = [Image.open(workdir / name) for name in record["images"]]
        ids = torch.tensor([record["token_ids"]])
        with torch.no_grad():
            output = network(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == network.config.image_token_id).int(),
                **processor(images=views, return_tensors="pt"),
            )
        log_probs = torch.log_softmax(output.logits[0].float(), -1).numpy()
        chosen = np.flatnonzero(record["loss_mask"])
        yield record, chosen, log_probs[chosen - 1, np.array(record["token_ids"])[chosen]]
