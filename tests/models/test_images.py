"""Patch order and position interpolation against the Hugging Face processor and PyTorch's interpolation."""

import json
from pathlib import Path

import models_fixtures as fixtures
import numpy as np
import pytest

from actfer_jax.models import Qwen3VLConfig, image_inputs
from actfer_jax.models.images import patch_coordinates


@pytest.fixture
def config(tmp_path: Path) -> Qwen3VLConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fixtures.CONFIG))
    return Qwen3VLConfig.from_json(path)


def test_coordinates_follow_the_processor() -> None:
    """A picture whose pixels hold their patch's row and column comes out of the processor as the coordinates say."""
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = processing.Qwen2VLImageProcessorPil(
        patch_size=4,
        temporal_patch_size=2,
        merge_size=2,
        do_resize=False,
        do_normalize=False,
        do_rescale=False,
    )
    rows, columns = 6, 10
    picture = np.zeros((rows * 4, columns * 4, 3), np.uint8)
    picture[..., 0] = np.arange(rows * 4)[:, None] // 4
    picture[..., 1] = np.arange(columns * 4) // 4
    output = processor(picture, return_tensors="np", input_data_format="channels_last")
    assert output["image_grid_thw"].tolist() == [[1, rows, columns]]
    values = output["pixel_values"].reshape(rows * columns, 3, -1)[:, :2, 0]
    np.testing.assert_array_equal(values, patch_coordinates([1, rows, columns], 2))


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (10, 12), (2, 14)])
def test_positions_are_interpolated_as_pytorch_does(config: Qwen3VLConfig, grid: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    count = grid[0] * grid[1]
    inputs = image_inputs([np.zeros((count, fixtures.PATCH_DIM))], [[1, *grid]], count + 4, config)
    found = (table[inputs.position_index] * inputs.position_weight[..., None]).sum(-2)[0]
    square = torch.tensor(table).reshape(1, 5, 5, 3).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=grid, mode="bilinear", align_corners=True)[0].numpy()
    rows, columns = inputs.coordinates[0, :count].T
    np.testing.assert_allclose(found[:count], resized[:, rows, columns].T, atol=1e-6)
    assert not found[count:].any() and not inputs.mask[0, count:].any() and inputs.mask[0, :count].all()


def test_what_does_not_fit_is_said(config: Qwen3VLConfig) -> None:
    patches = np.zeros((24, fixtures.PATCH_DIM))
    with pytest.raises(ValueError, match=r"picture 0: 24 patches do not fit into 16"):
        image_inputs([patches], [[1, 4, 6]], 16, config)
    with pytest.raises(ValueError, match=r"picture 0: patches \(24, 96\), but grid \[1, 4, 4\] means \(16, 96\)"):
        image_inputs([patches], [[1, 4, 4]], 32, config)
    with pytest.raises(ValueError, match=r"grid \[2, 4, 6\]: one frame"):
        image_inputs([patches], [[2, 4, 6]], 32, config)
    with pytest.raises(ValueError, match="capacity 30 is not a multiple of the 4 patches"):
        image_inputs([patches], [[1, 4, 6]], 30, config)
    with pytest.raises(ValueError, match="1 pictures, but 2 grids"):
        image_inputs([patches], [[1, 4, 6]] * 2, 32, config)
