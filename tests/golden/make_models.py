"""Records what transformers' Qwen3-VL computes on the small checkpoint of tests/models_fixtures.py.

    python tests/golden/make_models.py

needs torch and transformers (5.23.0 made the recorded file), and writes tests/golden/models.npz.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1]))
import models_fixtures as fixtures  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(fixtures.CONFIG | {"tie_word_embeddings": False}))
        config = AutoConfig.from_pretrained(directory)
    model = Qwen3VLForConditionalGeneration(config).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(array) for name, array in fixtures.weights(shapes).items()})

    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("left", extra=0)
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.tensor(batch.pixel_values),
        "image_grid_thw": torch.tensor(batch.grids),
        "mm_token_type_ids": torch.tensor((ids == fixtures.IMAGE).astype(np.int64)),
    }
    arrays: dict[str, np.ndarray] = {"shapes": np.array(json.dumps(shapes))}
    with torch.no_grad():
        arrays["logits_untied"] = model(**inputs).logits.numpy()[mask > 0]
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        arrays["positions"] = positions.permute(1, 2, 0).numpy()[mask > 0].astype(np.int32)
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
        arrays["logits_tied"] = model(**inputs).logits.numpy()[mask > 0]
        generated = model.generate(**inputs, max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
        arrays["generated"] = generated.numpy()[:, ids.shape[1] :].astype(np.int32)
    np.savez_compressed(fixtures.GOLDEN, **arrays)
    print({name: array.shape for name, array in arrays.items()}, f"{fixtures.GOLDEN.stat().st_size / 1e3:.0f} kB")
    print("logits", arrays["logits_tied"].std(), "generated", arrays["generated"].tolist())


if __name__ == "__main__":
    main()
