"""Adapters against PEFT's on the same weights, and against the arithmetic that defines them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import optax
import pytest
from flax import nnx
from models.test_parity import live, live_inputs

from actfer_jax.config import ConfigError
from actfer_jax.models import Qwen3VL, Qwen3VLConfig, load_pretrained, logits, save_pretrained
from actfer_jax.models.lora import LoraConfig, adapters, add_adapters, draw_dropout, products
from actfer_jax.models.peft import StoredAdapter, save_adapter
from actfer_jax.training.optimizer import OptimizerConfig, make_optimizer

EVERYWHERE = LoraConfig(rank=4, alpha=6.0, rslora=True, merger=True, vision=True)


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """With fewer optimizations of machine code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_checkpoint(tmp_path_factory.mktemp("base") / "model")


def adapted(checkpoint: Path, config: LoraConfig = EVERYWHERE, *, b: float = 0.0, **options: Any) -> Qwen3VL:
    """The model with new adapters, whose B are normal with deviation `b`."""
    model = load_pretrained(checkpoint, **options)
    add_adapters(model, config, seed=0)
    rng = np.random.default_rng(0)
    for adapter in adapters(model).values():
        adapter.b[...] = jnp.asarray(b * rng.standard_normal(adapter.b.shape), jnp.float32)
    return model


def logits_of(model: Qwen3VL) -> np.ndarray:
    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("right")
    return np.asarray(logits(model, ids, mask, batch.pixel_values, batch.grids))[mask > 0]


def test_a_new_adapter_changes_nothing_and_merged_equals_unmerged(checkpoint: Path, tmp_path: Path) -> None:
    base = logits_of(load_pretrained(checkpoint))
    np.testing.assert_array_equal(logits_of(adapted(checkpoint)), base)
    model = adapted(checkpoint, b=0.02)
    save_pretrained(model, tmp_path / "merged")
    found, expected = logits_of(load_pretrained(tmp_path / "merged")), logits_of(model)
    assert np.abs(expected - base).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("b", [0.0, 0.1])
def test_adapters_beside_bfloat16_weights_are_in_float32(checkpoint: Path, b: float) -> None:
    linear = products(adapted(checkpoint, b=b, dtype=jnp.bfloat16))["visual.merger.linear_fc1"]
    adapter = linear.adapter
    assert linear.kernel.dtype == jnp.bfloat16 and adapter.a.dtype == adapter.b.dtype == jnp.float32
    x = jax.random.normal(jax.random.key(0), (5, linear.kernel.shape[0])).astype(jnp.bfloat16)
    found, linear.adapter = linear(x), None
    delta = EVERYWHERE.scale * (np.asarray(x, np.float64) @ adapter.a[...] @ adapter.b[...])
    expected = np.asarray(linear(x), np.float64) + delta
    np.testing.assert_allclose(found, expected, rtol=0.01 if b else 0, atol=0.01 if b else 0)


def test_training_equals_pefts(checkpoint: Path, tmp_path: Path) -> None:
    """Losses, gradients and adapters over five updates of AdamW with clipping, on rows with and without pictures; then
    PEFT loads what we write, and we what PEFT writes."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = adapted(checkpoint, b=0.01)
    save_adapter(model, tmp_path / "before", EVERYWHERE, str(checkpoint))
    theirs = peft.PeftModel.from_pretrained(live(checkpoint), tmp_path / "before", is_trainable=True)
    batch = fixtures.make_batch(fixtures.LAYOUT)
    ids, mask = batch.padded("right")
    learned = torch.tensor(mask[:, 1:] > 0)

    graph, trained, frozen = nnx.split(model, nnx.LoRAParam, ...)
    # With a smaller eps, a gradient of nearly 0 moves its parameter by a whole learning rate, to one side or the other.
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0, eps=1e-3)
    optimizer = make_optimizer(config, 5)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained: nnx.State, state: Any) -> Any:
        def loss(trained: nnx.State) -> jax.Array:
            values = logits(nnx.merge(graph, trained, frozen), ids, mask, batch.pixel_values, batch.grids)
            log_probs = jax.nn.log_softmax(values[:, :-1])
            taken = jnp.take_along_axis(log_probs, ids[:, 1:, None], -1)[..., 0]
            return -jnp.where(mask[:, 1:] > 0, taken, 0).sum() / (mask[:, 1:] > 0).sum()

        value, gradient = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(gradient, state, trained)
        return value, gradient, optax.apply_updates(trained, updates), state

    parameters = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    betas = (config.b1, config.b2)
    adam = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1, betas=betas, eps=config.eps)

    def same(ours: nnx.State, name: str, value: Any) -> None:
        """All of one of PEFT's tensors by name, against those in a tree of ours."""
        place = tmp_path / name
        save_adapter(nnx.merge(graph, ours, frozen), place, EVERYWHERE, str(checkpoint))
        tensors = StoredAdapter.read(place).tensors
        assert len(tensors) == len(parameters)
        for key, parameter in parameters.items():
            expected = value(parameter).detach().numpy()
            scale = max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(tensors[key.replace(".default", "")] / scale, expected / scale, atol=1e-4)

    for number in range(5):
        adam.zero_grad()
        values = theirs(**live_inputs(batch, ids, mask)).logits[:, :-1].float()
        expected = torch.nn.functional.cross_entropy(values[learned], torch.tensor(ids[:, 1:])[learned])
        expected.backward()
        loss, gradient, trained, state = step(trained, state)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
        same(gradient, f"gradient-{number}", lambda parameter: parameter.grad)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        adam.step()
        same(trained, f"trained-{number}", lambda parameter: parameter)

    model = nnx.merge(graph, trained, frozen)
    reloaded = peft.PeftModel.from_pretrained(live(checkpoint), tmp_path / "trained-4")
    with torch.no_grad():
        expected = reloaded(**live_inputs(batch, ids, mask)).logits.numpy()[mask > 0]
    np.testing.assert_allclose(logits_of(model), expected, atol=2e-4)
    reloaded.save_pretrained(tmp_path / "by_peft")
    stored, base = StoredAdapter.read(tmp_path / "by_peft"), load_pretrained(checkpoint)
    stored.check(EVERYWHERE, base)
    add_adapters(base, EVERYWHERE, 0, stored.values(base))
    np.testing.assert_array_equal(logits_of(base), logits_of(model))


def test_dropout_is_a_function_of_its_key(checkpoint: Path) -> None:
    config = LoraConfig(rank=4, dropout=0.25, merger=True, vision=True)

    def with_key(key: int) -> Qwen3VL:
        model = adapted(checkpoint, config, b=0.1)
        draw_dropout(model, jax.random.key(key))
        return model

    first, again, second = map(logits_of, map(with_key, (1, 1, 2)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-2

    adapter = adapters(with_key(1))["visual.merger.linear_fc1"]
    x = jnp.ones((4000, adapter.a.shape[0]))
    mean = x[0] @ adapter.a[...] @ adapter.b[...] * config.scale
    found = adapter(x)
    assert found.std(0).min() > 0
    np.testing.assert_allclose(found.mean(0), mean, atol=6 * float(found.std(0).max()) / 4000**0.5)
    keys = adapters(with_key(1))["language_model.layers.mlp.up_proj"].key[...]
    assert len({tuple(key) for key in keys.tolist()}) == 3  # layers


def test_adapters_are_where_the_config_says(checkpoint: Path) -> None:
    base = load_pretrained(checkpoint)

    def names(**options: Any) -> set[str]:
        model = nnx.merge(*nnx.split(base))
        add_adapters(model, LoraConfig(**options), 0)
        return set(adapters(model))

    decoder = {f"language_model.layers.self_attn.{name}_proj" for name in "qkvo"}
    decoder |= {f"language_model.layers.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert names() == decoder
    assert names(targets=("q_proj", "*.mlp.*")) == {name for name in decoder if "mlp" in name or "q_proj" in name}
    mergers = {"visual.merger.linear_fc1", "visual.deepstack_merger_list.linear_fc1"}
    assert names(decoder=False, merger=True, targets=("linear_fc1",)) == mergers
    assert "visual.blocks.attn.qkv" in names(vision=True) - decoder
    with pytest.raises(ConfigError, match=r"config\.lora\.targets\[1\] is 'k_poj'.*there are: .*k_proj"):
        names(targets=("q_proj", "k_poj"))
    with pytest.raises(ConfigError, match="one of them must be True"):
        names(decoder=False)


def test_a_training_state_of_rank_16_at_4b_is_small() -> None:
    """Adapters everywhere and both moments of Adam, by their shapes."""
    path = Path(__file__).parents[2] / "actfer_jax" / "models" / "qwen3_vl_4b.json"

    def make() -> Qwen3VL:
        model = Qwen3VL(Qwen3VLConfig.from_json(path), rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
        add_adapters(model, LoraConfig(rank=16, merger=True, vision=True), 0)
        return model

    trained = nnx.state(nnx.eval_shape(make), nnx.LoRAParam)
    state = trained, jax.eval_shape(make_optimizer(OptimizerConfig(), 1).init, trained)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) < 500e6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "a plain LoRA"),
        ({"alpha_pattern": {"q_proj": 2}}, "a plain LoRA"),
        ({"r": None}, "not a configuration of a LoRA adapter"),
        ({"r": 8}, r"lora_A.weight has shape \(4, .*\(8, "),
    ],
)
def test_an_adapter_of_another_kind_is_refused(checkpoint: Path, tmp_path: Path, config: dict, message: str) -> None:
    model = adapted(checkpoint)
    save_adapter(model, tmp_path / "adapter", EVERYWHERE, str(checkpoint))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ValueError, match=message):
        StoredAdapter.read(tmp_path / "adapter").values(model)
