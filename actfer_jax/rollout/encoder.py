"""From the pixels of a view to the patches that the vision tower reads, by the checkpoint's own image processor."""

from pathlib import Path

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from actfer_jax.faces.images import check_image
from actfer_jax.faces.views import View, ViewConfig
from actfer_jax.rollout.batch import Patches


class ViewEncoder:
    """The image processor of a Hugging Face directory, held to the sizes of our views.

    Raises:
      ValueError: a view could be smaller or larger than the processor's limits, or not a multiple of its patches: the
        processor would resize it, and the saved view would no longer give the same patches. Or there is none.
    """

    def __init__(self, path: str | Path, views: ViewConfig):
        try:
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(path)
            size = self.processor.size
            smallest, largest = int(size["shortest_edge"]), int(size["longest_edge"])
        # A damaged file makes the library raise nearly anything.
        except Exception as error:
            found = "cannot be loaded" if (Path(path) / "preprocessor_config.json").is_file() else "is not there"
            raise ValueError(
                f"{path}: the image processor {found}; copy preprocessor_config.json from the Qwen3-VL it is made of"
            ) from error
        multiple = self.processor.patch_size * self.processor.merge_size
        if views.multiple != multiple:
            raise ValueError(f"views.multiple is {views.multiple}; the image processor in {path} wants {multiple}")
        limits = {
            "views.scene_min_pixels": views.scene_min_pixels,
            "views.scene_max_pixels": views.scene_max_pixels,
            "views.aligned_side**2": views.aligned_side**2,
            "views.zoom_min_pixels": views.zoom_min_pixels,
            "views.zoom_max_pixels": views.zoom_max_pixels,
        }
        for name, pixels in limits.items():
            if not smallest <= pixels <= largest:
                raise ValueError(
                    f"{name} is {pixels} pixels; the image processor in {path} keeps {smallest} to {largest}"
                )

    def __call__(self, pixels: np.ndarray) -> Patches:
        """Patches [p, C] float32 and the grid of a view uint8 [H, W, 3]; no patches of a view without pixels, whose
        array is [H, W, 0].

        Raises:
          ImageError: it is neither.
        """
        is_seen = getattr(pixels, "shape", ())[2:] != (0,)
        if is_seen:
            check_image(pixels)
        expected = (1, pixels.shape[0] // self.processor.patch_size, pixels.shape[1] // self.processor.patch_size)
        if not is_seen:
            return Patches(np.zeros((0, 0), np.float32), expected)
        inputs = self.processor(images=[pixels], return_tensors="np")
        grid = tuple(int(n) for n in inputs["image_grid_thw"][0])
        if grid != expected:
            raise ValueError(
                f"the image processor resized a {pixels.shape[1]}x{pixels.shape[0]} view to the grid {grid}"
            )
        return Patches(inputs["pixel_values"].astype(np.float32), expected)

    def tokens(self, view: View) -> int:
        """Image tokens that a view becomes."""
        return view.height * view.width // (self.processor.patch_size * self.processor.merge_size) ** 2
