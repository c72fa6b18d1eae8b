"""Reading and writing adapters in the format of Hugging Face's PEFT.

A directory has an `adapter_config.json`, which names the base model, and the adapters in `adapter_model.safetensors`.
PEFT's `lora_A` and `lora_B` of a product are transposed, and every layer has its own.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from actfer_jax.config import FieldError
from actfer_jax.files import file_errors
from actfer_jax.models.companions import DOCUMENT, copy_licences
from actfer_jax.models.huggingface import ADAPTER_CONFIG, is_hub_name, tensor_names
from actfer_jax.models.lora import LoraConfig, adapters, products, targeted
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.outputs import Output, publish, staged
from actfer_jax.parallel.finite import NotFiniteError, listed, not_finite

_WEIGHTS = "adapter_model.safetensors"
ADAPTER = Output(
    "an adapter",
    re.compile(rf"{re.escape(ADAPTER_CONFIG)}|{re.escape(_WEIGHTS)}|actfer\.json|{DOCUMENT.pattern}"),
    last=ADAPTER_CONFIG,
    signs=(ADAPTER_CONFIG, "actfer.json"),
    common=DOCUMENT,
)
"""A directory with an adapter as an output."""


def has_adapter(path: epath.PathLike) -> bool:
    """Whether a directory holds an adapter in place of a model; a name on the hub is taken for a model."""
    return not is_hub_name(path) and (epath.Path(path) / ADAPTER_CONFIG).exists()


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as a directory holds it.

    Attributes:
      directory: where it is.
      base: the model that it adapts: a directory, or a name on the hub.
      lora: its rank and scale; the products that it adapts are not known before `values`.
      tensors: by PEFT's names.
    """

    directory: epath.Path
    base: str
    lora: LoraConfig
    tensors: dict[str, np.ndarray]

    @classmethod
    def read(cls, directory: epath.PathLike) -> "StoredAdapter":
        """
        Raises:
          FileNotFoundError: there is no adapter.
          ValueError: it is damaged, or of a kind other than LoRA as it is here.
        """
        directory = epath.Path(directory)
        file, weights = directory / ADAPTER_CONFIG, directory / _WEIGHTS
        for path in (file, weights):
            if not path.exists():
                raise FileNotFoundError(f"{path} is not there; give a directory with an adapter as PEFT saves it")
        try:
            config: dict[str, Any] = json.loads(file.read_text())
            kind = config["peft_type"]
            lora = LoraConfig(
                rank=config["r"],
                alpha=float(config["lora_alpha"]),
                dropout=float(config.get("lora_dropout", 0.0)),
                rslora=bool(config.get("use_rslora", False)),
                merger=True,
                vision=True,
            )
            base = config["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a configuration of a LoRA adapter ({error!r})") from error
        if kind != "LORA" or config.get("alpha_pattern") or config.get("use_dora"):
            raise ValueError(f"{file}: a plain LoRA with one alpha is needed; merge this adapter into its base")
        try:
            tensors = load(weights.read_bytes())
        except SafetensorError as error:
            raise ValueError(f"{weights}: not a sound safetensors file ({error}); save it again") from error
        return cls(directory, str(base or ""), lora, tensors)

    def values(self, model: Qwen3VL) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The (a, b) of each product that the adapter adapts, as `lora.add_adapters` takes them.

        Raises:
          ValueError: the tensors are not those of adapters of such a model.
        """
        found, used = dict[str, tuple[np.ndarray, np.ndarray]](), set[str]()
        for name, linear in products(model).items():
            *stack, size_in, size_out = linear.kernel.shape
            names = _names(model, name, linear.kernel.shape)
            present = [tensor for pair in names for tensor in pair if tensor in self.tensors]
            if not present:
                continue
            rank = self.lora.rank
            for pair in names:
                for tensor, shape in zip(pair, ((rank, size_in), (size_out, rank)), strict=True):
                    there = None if tensor not in self.tensors else self.tensors[tensor].shape
                    if there != shape:
                        raise ValueError(
                            f"{self.directory / _WEIGHTS}: tensor {tensor} "
                            f"{'is missing' if there is None else f'has shape {there}'}; {shape} is needed: an "
                            "adapter here has one rank, and is in all layers of a stack"
                        )
            used.update(present)
            a, b = (np.stack([self.tensors[tensor].T for tensor in side]) for side in zip(*names, strict=True))
            found[name] = (a, b) if stack else (a[0], b[0])
        if left := sorted(self.tensors.keys() - used):
            raise ValueError(
                f"{self.directory / _WEIGHTS}: {left[0]} and {len(left) - 1} more tensors have no place in the model"
            )
        return {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in found.items()}

    def check(self, lora: LoraConfig, model: Qwen3VL) -> None:
        """
        Raises:
          FieldError: a section `config.lora` describes another adapter.
        """
        for key in ("rank", "alpha", "rslora"):
            here, there = getattr(lora, key), getattr(self.lora, key)
            if here != there:
                raise FieldError(f"config.lora.{key}", f"is {here}; it must be {there} to begin with {self.directory}")
        differ = targeted(model, lora).keys() ^ self.values(model).keys()
        if differ:
            raise FieldError(
                "config.lora.targets",
                f"with the parts that are on is not what {self.directory} adapts; only one of the two has: "
                f"{', '.join(sorted(differ))}",
            )


def _names(model: Qwen3VL, name: str, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """The tensors (lora_A, lora_B) of a product, of each layer."""
    kernels = tensor_names((*name.split("."), "kernel"), shape, model.config)
    modules = [f"base_model.model.{kernel.removesuffix('.weight')}" for kernel in kernels]
    return [(f"{module}.lora_A.weight", f"{module}.lora_B.weight") for module in modules]


def save_adapter(
    model: Qwen3VL, path: epath.PathLike, lora: LoraConfig, base: str, more: Mapping[str, str] | None = None
) -> None:
    """Writes the adapters of a model as a directory that PEFT loads, in float32.

    Places and processes are as for `save_pretrained`.

    Args:
      lora: what the adapters were made by.
      base: the base model, as `adapter_config.json` shall name it.
      more: more files, their text by name.

    Raises:
      NotFiniteError: adapters are not finite; nothing is written.
      OutputError: the directory holds something else, or cannot be written.
      OSError: writing failed.
    """
    if named := not_finite(nnx.state(model, nnx.LoRAParam), model.execution.mesh):
        raise NotFiniteError(f"{path}: not written: {len(named)} parameters are NaN or infinite ({listed(named)})")
    tensors, modules = dict[str, np.ndarray](), list[str]()
    for name, adapter in adapters(model).items():
        shape = (*adapter.a.shape[:-1], adapter.b.shape[-1])
        names = _names(model, name, shape)
        for side, factor in enumerate((adapter.a[...], adapter.b[...])):
            if not factor.is_fully_addressable:
                factor = multihost_utils.process_allgather(factor, tiled=True)
            layers = np.asarray(factor).reshape(len(names), *factor.shape[-2:])
            tensors |= {pair[side]: np.ascontiguousarray(layer.T) for pair, layer in zip(names, layers, strict=True)}
        first = re.escape(names[0][0].removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        modules.append(first.replace(r"\.0\.", r"\.\d+\.") if len(shape) > 2 else first)
    if jax.process_index():
        return
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": "|".join(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    try:
        with staged(path, ADAPTER) as staging:
            copy_licences(model.source, staging)
            for file, text in (more or {}).items():
                (staging / file).write_text(text)
            save_file(tensors, staging / _WEIGHTS, metadata={"format": "pt"})
            (staging / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            publish(staging, path, ADAPTER)
    except file_errors() as error:
        raise OSError(f"{path}: could not be written ({error}); free some space or choose another place") from error
