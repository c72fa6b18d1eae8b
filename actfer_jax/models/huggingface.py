"""Reading and writing Hugging Face model directories.

A directory has a `config.json`, and weights in `model.safetensors`, or in shards with a `model.safetensors.index.json`
that maps names of tensors to files. Its tokenizer and processor files are copied unchanged.
"""

import hashlib
import json
import logging
import math
import os
import re
import struct
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from huggingface_hub import snapshot_download
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from actfer_jax.files import file_errors, is_remote, reason
from actfer_jax.models.companions import COMPANION, DOCUMENT, copy_licences, write_companions
from actfer_jax.models.config import Qwen3VLConfig
from actfer_jax.models.lora import Adapter, adapters, merged
from actfer_jax.models.qwen3_vl import Qwen3VL
from actfer_jax.outputs import Output, incomplete, publish, staged
from actfer_jax.parallel import sharding
from actfer_jax.parallel.finite import NotFiniteError, finite_arrays, listed, not_finite

log = logging.getLogger(__name__)

_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_WORDS = ["*.json", "*.jinja", "*.txt", "README.md", "LICENSE*", "LICENCE*", "NOTICE*"]
_STACKS = ("layers", "blocks", "deepstack_merger_list")
ADAPTER_CONFIG = "adapter_config.json"
_SHARD_BYTES = 4 * 2**30
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_HEAD_ROWS = 16_384
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
POLICY = Output(
    "a policy",
    re.compile("|".join([_SHARD.pattern, re.escape(_INDEX), re.escape(_CONFIG), COMPANION.pattern, DOCUMENT.pattern])),
    last=_CONFIG,
    signs=(_CONFIG, "actfer.json"),
    common=DOCUMENT,
)
"""A Hugging Face directory as an output."""
_READ_DTYPES = ("F32", "BF16", "F16", "F64")

Index = tuple[slice, ...]


@dataclass(frozen=True)
class _Tensor:
    """One parameter and its tensors in a checkpoint.

    Attributes:
      names: tensors of the checkpoint, one per layer of a stack.
      shape: of each of these tensors.
      stacked: whether the parameter has a leading layer axis.
      kernel: whether it is the weight of a matrix product, which is stored transposed or as a convolution.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    kernel: bool

    @classmethod
    def of(cls, path: tuple[Any, ...], shape: tuple[int, ...], config: Qwen3VLConfig) -> "_Tensor":
        stacked = any(part in _STACKS for part in path)
        layers, shape = (range(shape[0]), shape[1:]) if stacked else (range(1), shape)
        kernel = path[-1] == "kernel"
        *parents, leaf = path
        if leaf in ("kernel", "scale", "bias"):
            leaf = "bias" if leaf == "bias" else "weight"
        else:
            parents, leaf = [*parents, leaf], "weight"
        if parents[-1] == "patch_embed":
            parents.append("proj")
        if parents != ["lm_head"]:
            parents.insert(0, "model")
        names = tuple(
            ".".join(f"{part}.{layer}" if part in _STACKS else part for part in [*parents, leaf]) for layer in layers
        )
        if kernel:
            shape = shape[::-1]
            if "patch_embed" in parents:
                vision = config.vision
                sides = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
                shape = (shape[0], *sides)
        return cls(names, shape, stacked, kernel)

    def read(self, files: "_Files", index: Index, dtype: DTypeLike) -> np.ndarray:
        """The slice `index` of the parameter."""
        if not self.stacked:
            return self._read(files, self.names[0], index).astype(dtype)
        return np.stack([self._read(files, name, index[1:]).astype(dtype) for name in self.names[index[0]]])

    def _read(self, files: "_Files", name: str, index: Index) -> np.ndarray:
        if not self.kernel:
            return files.read(name, index)
        if len(self.shape) > 2:
            return files.read(name, (slice(None),)).reshape(self.shape[0], -1).T[index]
        return files.read(name, index[::-1]).T

    def stored(self, value: np.ndarray) -> np.ndarray:
        """One tensor of the checkpoint, from the parameter or from one of its layers."""
        return np.ascontiguousarray((value.T if self.kernel else value).reshape(self.shape))


class _Files(ExitStack):
    """The open weight files of a directory."""

    def __init__(self, directory: Path):
        super().__init__()
        self.where: dict[str, tuple[Path, Any]] = {}
        for path in _weight_files(directory):
            try:
                file = self.enter_context(safe_open(path, framework="np"))
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{path}: {_INDEX} names this file, but it is not there") from error
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not a sound safetensors file ({error}); fetch or export it again") from error
            for name in file.keys():
                if name in self.where:
                    raise ValueError(
                        f"{path}: tensor {name} is in {self.where[name][0].name} too; fetch or export the model again"
                    )
                self.where[name] = path, file
        self.directory = directory

    def check(self, tensors: list[_Tensor], tied: bool) -> None:
        """Raises ValueError unless the files hold exactly these tensors, with these shapes and supported types."""
        expected = {name: tensor.shape for tensor in tensors for name in tensor.names}
        missing = sorted(expected.keys() - self.where.keys())
        if missing:
            raise ValueError(f"{self.directory}: {_listed(missing)} missing from the weights; fetch them again")
        unknown = sorted(self.where.keys() - expected.keys() - ({_HEAD} if tied else set()))
        if unknown:
            raise ValueError(f"{self.directory}: {_listed(unknown)} in the weights, but {_CONFIG} has no place for it")
        for name, shape in expected.items():
            path, file = self.where[name]
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise ValueError(f"{path}: tensor {name} has shape {found}, but {_CONFIG} means {shape}")
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _READ_DTYPES:
                raise ValueError(
                    f"{path}: tensor {name} is of type {dtype}; weights of one of {', '.join(_READ_DTYPES)} are needed"
                )
        if tied and _HEAD in self.where:
            self._check_head(expected[_EMBEDDING])

    def _check_head(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the files have a head that differs from the tied embeddings."""
        path, file = self.where[_HEAD]
        same = tuple(file.get_slice(_HEAD).get_shape()) == shape
        for begin in range(0, shape[0] if same else 0, _HEAD_ROWS):
            rows = (slice(begin, min(begin + _HEAD_ROWS, shape[0])),)
            same = same and np.array_equal(self.read(_HEAD, rows), self.read(_EMBEDDING, rows))
        if not same:
            raise ValueError(
                f"{path}: tensor {_HEAD} differs from {_EMBEDDING}, but {_CONFIG} says tie_word_embeddings; set that "
                "to false, or remove the tensor"
            )

    def check_finite(self, tensors: Sequence[_Tensor], finite: Sequence[bool], dtype: DTypeLike) -> None:
        """Raises NotFiniteError, with file and tensor, unless all loaded parameters are finite."""
        suspects = [name for tensor, fine in zip(tensors, finite, strict=True) if not fine for name in tensor.names]
        bad = [name for name in suspects if not np.isfinite(self.read(name, ()).astype(dtype)).all()]
        if bad:
            raise NotFiniteError(
                f"{self.where[bad[0]][0]}: {_listed(bad)} with numbers that are NaN or infinite as "
                f"{np.dtype(dtype).name}; the model is damaged: fetch or export it again"
            )

    def read(self, name: str, index: Index) -> np.ndarray:
        return self.where[name][1].get_slice(name)[index]


def tensor_shapes(config: Qwen3VLConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint with this config, by name."""
    state = nnx.state(nnx.eval_shape(lambda: Qwen3VL(config, rngs=nnx.Rngs(0))), nnx.Param)
    tensors = [_Tensor.of(key, variable.shape, config) for key, variable in nnx.to_flat_state(state)]
    return {name: tensor.shape for tensor in tensors for name in tensor.names}


def tensor_names(path: tuple[Any, ...], shape: tuple[int, ...], config: Qwen3VLConfig) -> tuple[str, ...]:
    """The tensors of a parameter in a checkpoint, one for each layer of a stack."""
    return _Tensor.of(path, shape, config).names


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"tensor {names[0]}{more}"


def _weight_files(directory: Path) -> list[Path]:
    """The weight files. If the directory has a whole file and shards, the whole one, as in transformers."""
    index = directory / _INDEX
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if not index.is_file():
        others = sorted(path.name for path in directory.glob("*.bin"))
        convert = f"; save {others[0]} as safetensors with transformers first" if others else ""
        raise FileNotFoundError(f"{directory}: holds neither {_WEIGHTS} nor {_INDEX}{convert}")
    try:
        return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors shards ({error!r})") from error


def _from_hub(name: str, patterns: list[str], revision: str | None = None) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, revision=revision))
    except OSError as error:
        said = reason(error)
        raise FileNotFoundError(
            f"{name} is no directory here, and the Hugging Face hub does not give it: {said}"
        ) from error


def config_file(path: epath.PathLike) -> epath.Path:
    """The `config.json` of a model directory. Nothing else is fetched; see `local_directory`."""
    if is_hub_name(path):
        return epath.Path(_from_hub(os.fspath(path), [_CONFIG])) / _CONFIG
    return epath.Path(path) / _CONFIG


def words_directory(path: epath.PathLike) -> Path:
    """The directory with the tokenizer, chat template and processor of a model. Of one on the hub nothing else is
    fetched; a directory needs nothing else."""
    if is_hub_name(path):
        return _from_hub(os.fspath(path), _WORDS)
    if is_remote(path) or not (Path(path) / "tokenizer_config.json").is_file():
        return local_directory(path)
    return Path(path)


def is_hub_name(path: epath.PathLike) -> bool:
    """Whether a path has the form of a Hugging Face hub model, `owner/name`, and does not exist here."""
    name = os.fspath(path)
    return not is_remote(path) and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def local_directory(path: epath.PathLike) -> Path:
    """A model directory that can be read by slices: the directory itself, or a local copy of one in an object store or
    on the Hugging Face hub (`owner/name`, if no such directory exists here; kept in the hub's own cache).

    The `config.json` is fetched and checked first, before gigabytes of weights.

    The copy from an object store is made once, under `~/.cache/actfer_jax/models`, and again when the size or time of a
    file changes. A copy is always complete, and stays until somebody deletes it.

    Raises:
      FileNotFoundError: the path is not, or not yet, a model directory.
      ValueError: this package does not run the model (`Qwen3VLConfig.from_json`).
      OSError: the directory changed while it was copied, or the disk is full.
    """
    if is_hub_name(path):
        name = os.fspath(path)
        known = _from_hub(name, [_CONFIG, ADAPTER_CONFIG])
        _read_config(known)
        return _from_hub(name, [*_WORDS, "*.safetensors"], revision=known.name)
    if said := incomplete(path, POLICY):
        raise FileNotFoundError(said)
    if not is_remote(path):
        return Path(path)
    remote = epath.Path(path)
    files = _listing(remote)
    if _CONFIG not in files:
        raise FileNotFoundError(f"{remote}: there is no {_CONFIG}; a whole Hugging Face model directory is needed")
    _read_config(remote)
    key = hashlib.sha256(json.dumps([str(remote), files]).encode()).hexdigest()[:24]
    copy = Path("~/.cache/actfer_jax/models").expanduser() / key
    if copy.is_dir():
        return copy
    log.info("copying %s to %s: %.1f GB", remote, copy, sum(size for size, _ in files.values()) / 1e9)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, ignore_cleanup_errors=True) as scratch:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: (remote / name).copy(Path(scratch) / name), files))
        if _listing(remote) != files:
            raise OSError(f"{remote} changed while it was copied; try again when it is whole")
        if not copy.is_dir():  # Another process may have been faster.
            os.rename(scratch, copy)
    log.info("copied %s", remote)
    return copy


def _read_config(directory: epath.PathLike) -> Qwen3VLConfig:
    """The config of a model directory.

    Raises:
      FileNotFoundError: the directory has no config.
      ValueError: this package does not run the model.
    """
    directory = epath.Path(directory)
    if (directory / ADAPTER_CONFIG).exists():
        raise ValueError(
            f"{directory / ADAPTER_CONFIG}: adapters are no whole model; merge them into their base (those of a run "
            "with `python -m actfer_jax.export --merged`), and give that"
        )
    return Qwen3VLConfig.from_json(directory / _CONFIG)


def _listing(directory: epath.Path) -> dict[str, tuple[int, int]]:
    """Size and time of a directory's files, by name."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    stats = {path.name: path.stat() for path in paths if not path.is_dir()}
    return {name: (stat.length, stat.mtime) for name, stat in stats.items()}


def load_pretrained(
    path: epath.PathLike, *, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None, **options: Any
) -> Qwen3VL:
    """Loads a Hugging Face directory of a Qwen3-VL model.

    Args:
      path: the directory. A local copy is kept of a directory in an object store (`local_directory`).
      dtype: of the computation and, unless `param_dtype` is among the options, of the parameters.
      mesh: divides the parameters (`sharding`). Each process reads only the slices that it holds, and each slice once.
      **options: `param_dtype`, `remat`, `unroll` of `Qwen3VL`.

    Raises:
      FileNotFoundError: the directory or one of its files does not exist.
      ValueError: another architecture, a missing key, or a missing, unknown, misshapen or damaged tensor.
      NotFiniteError: a tensor holds numbers that are not finite in the parameters' type.
    """
    directory = local_directory(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; a Hugging Face model directory is needed")
    config = _read_config(directory)
    options = {"dtype": dtype, "param_dtype": dtype, "mesh": mesh} | options
    graph, state = nnx.split(nnx.eval_shape(lambda: Qwen3VL(config, rngs=nnx.Rngs(0), **options)))
    variables = dict(nnx.to_flat_state(state))
    tensors = {key: _Tensor.of(key, variable.shape, config) for key, variable in variables.items()}
    with _Files(directory) as files:
        files.check(list(tensors.values()), config.tie_word_embeddings)
        for key, variable in variables.items():
            variables[key] = variable.replace(_place(tensors[key], files, variable, mesh))
        # Checked on the devices, where it takes no time. They tell which parameters, the files which tensors.
        finite = jax.device_get(finite_arrays([variable[...] for variable in variables.values()], mesh))
        files.check_finite(list(tensors.values()), finite, options["param_dtype"])
    model = nnx.merge(graph, nnx.from_flat_state(variables))
    model.source = str(directory)
    return model


def _place(tensor: _Tensor, files: _Files, variable: nnx.Variable[Any], mesh: Mesh | None) -> jax.Array:
    """Reads one parameter onto its devices."""
    shape, dtype = variable.shape, variable.dtype
    if mesh is None:
        return jnp.asarray(tensor.read(files, (slice(None),) * len(shape), dtype))
    spec = sharding.spec(mesh, variable.get_metadata("out_sharding"), shape)
    read: dict[str, np.ndarray] = {}  # Several devices may hold the same slice.

    def part(index: Index | None) -> np.ndarray:
        if str(index) not in read:
            read[str(index)] = tensor.read(files, index or (), dtype)
        return read[str(index)]

    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), part)


def save_pretrained(model: Qwen3VL, path: epath.PathLike) -> None:
    """Writes a Hugging Face directory that transformers loads, with the tokenizer and processor files of the source.

    Weights are written in the type of the model's parameters. Adapters are merged into them.

    An existing directory must be empty or an earlier output of this program (`outputs`). The output's files are
    replaced, and files of other names stay. Nothing loads a directory without `config.json`, so it is removed first and
    written last. If there are several processes, all must call this; the first one writes.

    Raises:
      NotFiniteError: parameters are not finite; nothing is written.
      OutputError: the directory holds something else, or cannot be written.
      OSError: writing failed.
    """
    write_model_directory(model, path)


def write_model_directory(model: Qwen3VL, path: epath.PathLike, more: Mapping[str, str] | None = None) -> None:
    """`save_pretrained`, with more files (their text by name) that appear together with the rest."""
    if named := not_finite(nnx.state(model, nnx.Param), model.execution.mesh):
        raise NotFiniteError(f"{path}: not written: {len(named)} parameters are NaN or infinite ({listed(named)})")
    try:
        with staged(path, POLICY) if jax.process_index() == 0 else nullcontext() as staging:
            if staging is not None:
                write_companions(model, staging)
                copy_licences(model.source, staging)
                for name, text in (more or {}).items():
                    (staging / name).write_text(text)
            _write_weights(model, staging)
            if staging is not None:
                publish(staging, path, POLICY)
    except file_errors() as error:
        raise OSError(f"{path}: could not be written ({error}); free some space or choose another place") from error


def _write_weights(model: Qwen3VL, directory: Path | None) -> None:
    """Writes tensors one by one, so that only one is held in memory in addition to the model. A process without a
    directory only takes part in gathering them."""
    state = dict(nnx.to_flat_state(nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))))
    adapted: dict[Any, Adapter] = {(*name.split("."), "kernel"): adapter for name, adapter in adapters(model).items()}
    owner = {
        name: (key, tensor, layer)
        for key, variable in state.items()
        for tensor in [_Tensor.of(key, variable.shape, model.config)]
        for layer, name in enumerate(tensor.names)
    }
    dtype = np.dtype(model.execution.param_dtype)
    shapes = {name: tensor.shape for name, (_, tensor, _) in owner.items()}
    files = _layout(shapes, dtype.itemsize, None if model.source is None else Path(model.source))

    def value(name: str) -> np.ndarray:
        key, tensor, layer = owner[name]

        def own(variable: Any) -> jax.Array:
            return _layer(variable[...], layer) if tensor.stacked else variable[...]

        part = own(state[key])
        if adapter := adapted.get(key):
            part = merged(part, own(adapter.a), own(adapter.b), adapter.scale)
        if not part.is_fully_addressable:
            part = multihost_utils.process_allgather(part, tiled=True)
        return tensor.stored(np.asarray(part).astype(dtype, copy=False))

    for file, names in files.items():
        values = map(value, names)
        if directory is not None:
            _write_file(directory / file, {name: shapes[name] for name in names}, dtype, values)
        else:
            deque(values, maxlen=0)
    if directory is not None and list(files) != [_WEIGHTS]:
        weight_map = {name: file for file, names in files.items() for name in names}
        size = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


@jax.jit
def _layer(stack: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def _layout(shapes: dict[str, tuple[int, ...]], itemsize: int, source: Path | None) -> dict[str, list[str]]:
    """The tensors of each file, in order. A model from a checkpoint in shards keeps the checkpoint's files."""
    index = None if source is None else source / _INDEX
    if index is not None and index.is_file():
        there = json.loads(index.read_text())["weight_map"]
        if shapes.keys() <= there.keys() and all(map(_SHARD.fullmatch, there.values())):
            return {
                file: [name for name in sorted(shapes) if there[name] == file] for file in sorted(set(there.values()))
            }
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(shapes):
        if size > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += math.prod(shapes[name]) * itemsize
    if len(shards) == 1:
        return {_WEIGHTS: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}


def _write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any], values: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file (length of the header, header, tensors) without holding all tensors in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values:
            file.write(value.reshape(-1).view(np.uint8).data)
