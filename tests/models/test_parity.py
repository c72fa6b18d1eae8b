"""The model against transformers' PyTorch one: recorded arrays always, a live comparison where torch is there."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import pytest
from flax import nnx

from actfer_jax.models import (
    ImageFeatures,
    KVCache,
    Past,
    Qwen3VL,
    cached_attention,
    image_inputs,
    init_cache,
    load_pretrained,
    logits,
    mrope_positions,
    write_cache,
)

TOLERANCE = 2e-4
SIDES = ("left", "right", "mixed")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(fixtures.GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_checkpoint(tmp_path_factory.mktemp("tied") / "model")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Qwen3VL:
    return load_pretrained(checkpoint)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_logits_are_those_recorded_from_transformers(
    head: str, model: Qwen3VL, tmp_path: Path, golden: dict[str, np.ndarray]
) -> None:
    if head == "untied":
        model = load_pretrained(fixtures.write_checkpoint(tmp_path / "model", tied=False))
    expected = golden[f"logits_{head}"]
    batch = fixtures.make_batch(fixtures.LAYOUT)
    for side in SIDES:
        ids, mask = batch.padded(side)
        found = np.asarray(logits(model, ids, mask, batch.pixel_values, batch.grids))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[mask > 0], expected, atol=TOLERANCE, rtol=0)


def test_float32_is_multiplied_as_float32_on_every_device(model: Qwen3VL) -> None:
    """GPUs and TPUs round the operands of a product in the default precision."""
    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("right")
    graphdef, params = nnx.split(model)

    def loss(params: nnx.State) -> jax.Array:
        return logits(nnx.merge(graphdef, params), ids, mask, batch.pixel_values, batch.grids).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert program.count("dot_general[") > 50
    assert program.count("precision=None") == 0
    assert program.count("HIGHEST") >= program.count("dot_general[")


def test_rotary_positions_are_those_recorded_from_transformers(model: Qwen3VL, golden: dict[str, np.ndarray]) -> None:
    batch = fixtures.make_batch(fixtures.LAYOUT)
    parts, used = [], 0
    for row, pieces in zip(batch.rows, fixtures.LAYOUT, strict=True):
        count = sum(isinstance(piece, tuple) for piece in pieces)
        positions, following = mrope_positions(row, batch.grids[used : used + count], model.config)
        used += count
        parts.append(positions)
        assert following == positions.max() + 1
    np.testing.assert_array_equal(np.concatenate(parts), golden["positions"])


def test_rotary_positions_of_a_row_in_two_parts(model: Qwen3VL) -> None:
    batch = fixtures.make_batch([[3, (4, 6), 5, (2, 10), 4]])
    row, config = batch.rows[0], model.config
    whole, following = mrope_positions(row, batch.grids, config)
    first, middle = mrope_positions(row[:14], batch.grids[:1], config)
    second, end = mrope_positions(row[14:], batch.grids[1:], config, start=middle)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    assert end == following


class Decoder:
    """Stepwise use of the model with per-row cursors, as a rollout does it."""

    def __init__(self, model: Qwen3VL, batch: int, length: int):
        self.config = model.config
        graph, self.state = nnx.split(model)
        self.cache = init_cache(model.config, batch, length, jnp.float32)
        self.length = np.zeros(batch, np.int32)
        self.position = np.zeros(batch, np.int32)

        @jax.jit
        def append(state, cache, length_B, tokens_BxL, index_BxL, images, positions_BxLx3, count_B):
            model = nnx.merge(graph, state)
            features = None
            if images is not None:  # one picture a row
                tokens, deepstack = model.encode_images(images)
                features = ImageFeatures(tokens, deepstack)
            x, deepstack = model.embed(tokens_BxL, index_BxL, features)
            segment_ids = (jnp.arange(tokens_BxL.shape[1])[None] < count_B[:, None]).astype(jnp.int32)
            past = Past(*cache, length_B, jnp.arange(len(tokens_BxL)))
            hidden, new = model.hidden(x, deepstack, positions_BxLx3, segment_ids, [past])
            return model.unembed(hidden), write_cache(cache, new, length_B, count_B)

        self.compiled = append

    def append(self, rows: list[list[int]], pictures: list[Any] | None = None) -> list[np.ndarray]:
        """Appends tokens to the rows, with a picture (patches, grid) in some; returns the logits of each row."""
        size = 16 if pictures else max(map(len, rows))
        tokens, index = np.zeros((len(rows), size), np.int32), np.full((len(rows), size), -1, np.int32)
        positions = np.zeros((len(rows), size, 3), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            grids = [pictures[i][1]] if pictures and pictures[i] else []
            positions[i, : len(row)], self.position[i] = mrope_positions(row, grids, self.config, self.position[i])
            index[i, tokens[i] == fixtures.IMAGE] = np.arange((tokens[i] == fixtures.IMAGE).sum())
        images = None
        if pictures:
            empty = (np.zeros((4, fixtures.PATCH_DIM), np.float32), [1, 2, 2])
            patches, grids = zip(*[picture or empty for picture in pictures], strict=True)
            images = image_inputs(patches, grids, 24, self.config)
        count = np.array([len(row) for row in rows], np.int32)
        values, self.cache = self.compiled(self.state, self.cache, self.length, tokens, index, images, positions, count)
        self.length = self.length + count
        return [np.asarray(values[i, :n]) for i, n in enumerate(count)]


@pytest.mark.slow
def test_prefill_slots_and_single_steps_equal_one_full_forward(model: Qwen3VL) -> None:
    """Rows in different turns: prompts with a picture, decoding, replies with a picture for some rows, decoding."""
    layout: list[list[int | tuple[int, int]]] = [
        [3, (4, 6), 6, (2, 10), 5],
        [2, (6, 2), 11],
        [5, (2, 2), 4, (4, 4), 9],
    ]
    batch = fixtures.make_batch(layout, seed=3)
    ids, mask = batch.padded("right")
    full = np.asarray(logits(model, ids, mask, batch.pixel_values, batch.grids))
    patches = np.split(batch.pixel_values, np.cumsum(batch.grids.prod(-1))[:-1])
    pictures = list(zip(patches, batch.grids, strict=True))

    decoder = Decoder(model, batch=3, length=40)
    rows = [list(row) for row in batch.rows]
    found: list[list[np.ndarray]] = [[], [], []]

    def append(counts: list[int], pictures: list[Any] | None = None) -> None:
        taken = [[row.pop(0) for _ in range(count)] for row, count in zip(rows, counts, strict=True)]
        for part, values in zip(found, decoder.append(taken, pictures), strict=True):
            part.append(values)

    append([3 + 8 + 2, 2 + 5 + 1, 5 + 3 + 1], [pictures[0], pictures[2], pictures[3]])  # prompts
    for _ in range(2):
        append([1, 1, 1])
    append([2 + 7, 0, 1 + 6], [pictures[1], None, pictures[4]])  # replies for the rows 0 and 2
    while min(map(len, rows)):
        append([1, 1, 1])
    for row, (parts, length) in enumerate(zip(found, (29, 15, 23), strict=True)):
        np.testing.assert_allclose(np.concatenate(parts), full[row, :length], atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", ["rows", "ragged_interpret"])
def test_rows_continue_a_prompt_that_they_share_as_whole_rows_do(
    model: Qwen3VL, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of several lengths with pictures, which are kept once; a reply of three tokens, then single ones."""
    monkeypatch.setattr(cached_attention, "_backend", lambda *_: backend)
    prompts = fixtures.make_batch([[3, (4, 6), 6, (2, 10), 5], [2, (6, 2), 11], [4]], seed=3)
    group, batch = 2, 6
    queries = len(prompts.rows)
    tokens_BxL = np.random.default_rng(0).integers(0, fixtures.TEXT_TOKENS, (batch, 5))
    pictures = np.split(prompts.pixel_values, np.cumsum(prompts.grids.prod(-1))[:-1])
    seen = [0, 1, 0, 1, 2, 2]  # of each row in turn
    rows = [[*prompts.rows[b // group], *tokens_BxL[b]] for b in range(batch)]
    whole = fixtures.Batch(rows, prompts.grids[seen], np.concatenate([pictures[n] for n in seen]))
    full = logits(model, *whole.padded("right"), whole.pixel_values, whole.grids)
    expected = np.stack([full[b, len(row) - 5 : len(row)] for b, row in enumerate(rows)])

    decoder = Decoder(model, batch=queries, length=128)
    prefill(decoder, model, prompts)
    graph, state = nnx.split(model)

    @partial(jax.jit, static_argnums=3)
    def append(state: nnx.State, cache: KVCache, filled: int, together: bool, tokens_BxL: np.ndarray) -> Any:
        model = nnx.merge(graph, state)
        query = np.arange(queries) if together else np.arange(batch) // group
        pasts = Past(*decoder.cache, decoder.length[query], query), Past(*cache, filled, np.arange(batch))
        first_B = np.repeat(decoder.position, group) + filled
        positions_BxL = first_B[:, None] + np.arange(tokens_BxL.shape[1])[None]
        x, _ = model.embed(tokens_BxL)
        positions_BxLx3 = jnp.broadcast_to(positions_BxL[..., None], (*tokens_BxL.shape, 3))
        hidden, new = model.hidden(x, None, positions_BxLx3, jnp.ones_like(tokens_BxL), pasts)
        return model.unembed(hidden), write_cache(cache, new, filled, jnp.full(batch, tokens_BxL.shape[1]))

    cache, found = init_cache(model.config, batch, 128, jnp.float32), []
    for begin, end in ((0, 3), (3, 4), (4, 5)):
        filled = np.full(batch, begin, np.int32)
        values, cache = append(state, cache, filled, end - begin == 1, tokens_BxL[:, begin:end])
        found.append(values)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=2e-5, rtol=0)


def test_greedy_generation_is_token_identical_to_transformers(model: Qwen3VL, golden: dict[str, np.ndarray]) -> None:
    expected = golden["generated"]
    found = generate(model, fixtures.make_batch(fixtures.LAYOUT), expected.shape[1])
    np.testing.assert_array_equal(found, expected)


def generate(model: Qwen3VL, batch: fixtures.Batch, count: int) -> np.ndarray:
    """The likeliest tokens [rows, count] that follow, none of them a picture's: a prefill, then step by step."""

    def likeliest(logits_BxV: np.ndarray) -> np.ndarray:
        is_picture_V = np.isin(np.arange(logits_BxV.shape[-1]), fixtures.PICTURE_TOKENS)
        return np.where(is_picture_V, -np.inf, logits_BxV).argmax(-1)

    decoder = Decoder(model, batch=len(batch.rows), length=max(map(len, batch.rows)) + count)
    tokens = [likeliest(prefill(decoder, model, batch))]
    while len(tokens) < count:
        values = decoder.append([[int(token)] for token in tokens[-1]])
        tokens.append(likeliest(np.concatenate(values)))
    return np.stack(tokens, 1)


def prefill(decoder: Decoder, model: Qwen3VL, batch: fixtures.Batch) -> np.ndarray:
    """Fills the cache with rows of any number of pictures each, in one forward; the logits [rows, V] at their ends."""
    ids, mask = batch.padded("right", extra=0)
    counts = [row.count(fixtures.VISION_START) for row in batch.rows]
    patches = np.split(batch.pixel_values, np.cumsum(batch.grids.prod(-1))[:-1])
    images = image_inputs(patches, batch.grids, int(batch.grids.prod(-1).max()), model.config)
    capacity = images.mask.shape[1] // 4
    index, positions = np.full(ids.shape, -1, np.int32), np.zeros((*ids.shape, 3), np.int32)
    pictures = np.split(np.arange(len(batch.grids)), np.cumsum(counts)[:-1])
    for i, row in enumerate(batch.rows):
        grids = batch.grids[pictures[i]]
        places = [n * capacity + np.arange(size) for n, size in zip(pictures[i], grids.prod(-1) // 4, strict=True)]
        index[i, ids[i] == fixtures.IMAGE] = np.concatenate([np.zeros(0, int), *places])
        positions[i, : len(row)], decoder.position[i] = mrope_positions(row, grids, model.config)

    @nnx.jit
    def run(model: Qwen3VL) -> tuple[jax.Array, KVCache]:
        tokens, deepstack = model.encode_images(images)
        tokens = jnp.tile(tokens.reshape(1, -1, tokens.shape[-1]), (len(ids), 1, 1))
        deepstack = jnp.tile(deepstack.reshape(len(deepstack), 1, *tokens.shape[1:]), (1, len(ids), 1, 1))
        hidden, new = model.hidden(*model.embed(ids, index, ImageFeatures(tokens, deepstack)), positions, mask)
        return model.unembed(hidden), new

    values, new = run(model)
    decoder.length = mask.sum(-1).astype(np.int32)
    decoder.cache = write_cache(decoder.cache, new, np.zeros_like(decoder.length), decoder.length)
    return np.asarray(values)[np.arange(len(ids)), decoder.length - 1]


def test_write_cache_changes_only_what_it_says() -> None:
    random = np.random.default_rng(0)
    layers, batch, heads = 2, 4, 3
    old = random.normal(size=(layers, batch, heads, 9, 2)).astype(np.float32)
    new = random.normal(size=(layers, batch, heads, 4, 2)).astype(np.float32)
    start, count = np.array([0, 3, 7, 5]), np.array([4, 0, 4, 1])  # the third row runs over the end
    expected = old.copy()
    for row in range(batch):
        for offset in range(count[row]):
            if start[row] + offset < 9:
                expected[:, row, :, start[row] + offset] = new[:, row, :, offset]
    written = jax.jit(write_cache)(KVCache(old, -old), KVCache(new, -new), start, count)
    np.testing.assert_array_equal(written.keys, expected)
    np.testing.assert_array_equal(written.values, -expected)


def test_pictures_and_their_tokens_must_match(model: Qwen3VL) -> None:
    batch = fixtures.make_batch([[3, (4, 6), 5]])
    ids, mask = batch.padded("right")
    with pytest.raises(ValueError, match="6 image tokens, but the pictures make 4"):
        logits(model, ids, mask, batch.pixel_values[:16], [[1, 4, 4]])
    with pytest.raises(ValueError, match=r"grid \[1, 3, 8\].*multiples of 2"):
        logits(model, ids, mask, batch.pixel_values, [[1, 3, 8]])
    with pytest.raises(ValueError, match="left over"):
        mrope_positions(batch.rows[0], [], model.config)


def live(checkpoint: Path, dtype: str = "float32") -> Any:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()


def live_inputs(batch: fixtures.Batch, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    import torch

    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if len(batch.grids):
        inputs |= {
            "pixel_values": torch.tensor(batch.pixel_values),
            "image_grid_thw": torch.tensor(batch.grids),
            "mm_token_type_ids": torch.tensor((ids == fixtures.IMAGE).astype(np.int64)),
        }
    return inputs


def live_logits(model: Any, batch: fixtures.Batch, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(**live_inputs(batch, ids, mask)).logits.float().numpy()


@pytest.mark.parametrize("seed", range(4, 8))  # among them all three sizes of heads, one to three DeepStack layers
@pytest.mark.slow
def test_random_models_agree_with_transformers_now(seed: int, tmp_path: Path) -> None:
    """Logits, and greedy generation token by token, of a checkpoint that transformers wrote."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(fixtures.random_config(seed)))
    reference = transformers.Qwen3VLForConditionalGeneration(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    shapes = {name: list(tensor.shape) for name, tensor in reference.named_parameters()}
    values = {name: torch.tensor(array) for name, array in fixtures.weights(shapes).items()}
    reference.load_state_dict(values, strict=False)  # a tied head is no parameter of its own
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)

    batch = fixtures.make_batch(fixtures.random_layout(seed), seed)
    ids, mask = batch.padded("mixed")
    found = np.asarray(logits(model, ids, mask, batch.pixel_values, batch.grids))
    expected = live_logits(reference, batch, ids, mask)
    np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=TOLERANCE, rtol=0)

    ids, mask = batch.padded("left", extra=0)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    options |= {"suppress_tokens": fixtures.PICTURE_TOKENS}
    tokens = reference.generate(**live_inputs(batch, ids, mask), **options).numpy()[:, ids.shape[1] :]
    np.testing.assert_array_equal(generate(model, batch, 12), tokens)


@pytest.mark.parametrize(
    "layout",
    [
        [[12], [3], [8]],  # text only
        [[(10, 12), 3], [2, (2, 2), 1, (2, 2), 1, (2, 2), 1]],  # larger than the position table, and the smallest
    ],
    ids=["text", "sizes"],
)
def test_logits_equal_transformers_now(
    checkpoint: Path, model: Qwen3VL, layout: list[list[int | tuple[int, int]]]
) -> None:
    reference = live(checkpoint)
    batch = fixtures.make_batch(layout, seed=1)
    pixels, grids = (batch.pixel_values, batch.grids) if len(batch.grids) else (None, None)
    for side in ("left", "right"):
        ids, mask = batch.padded(side)
        found = np.asarray(logits(model, ids, mask, pixels, grids))
        expected = live_logits(reference, batch, ids, mask)
        np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=TOLERANCE, rtol=0)


def test_bfloat16_is_as_close_to_float32_as_pytorch_in_bfloat16(checkpoint: Path) -> None:
    """Tolerance: the root-mean-square error of log-probabilities is under 0.06 nats and 1.2 times PyTorch's own."""
    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("right")

    def log_probs(values: np.ndarray) -> np.ndarray:
        return np.asarray(jax.nn.log_softmax(values))[mask > 0]

    exact = log_probs(live_logits(live(checkpoint), batch, ids, mask))
    theirs = log_probs(live_logits(live(checkpoint, "bfloat16"), batch, ids, mask))
    ours = log_probs(
        logits(load_pretrained(checkpoint, dtype=jnp.bfloat16), ids, mask, batch.pixel_values, batch.grids)
    )
    error, their_error = (float(np.sqrt(np.mean((values - exact) ** 2))) for values in (ours, theirs))
    print(f"bfloat16 error {error:.4f} nats, PyTorch {their_error:.4f}")
    assert error < 1.2 * their_error
    assert error < 0.06
