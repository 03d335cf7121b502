"""Adapters in the files of Hugging Face's peft: `adapter_config.json`, `adapter_model.safetensors`.

LoRA, IA3, prompts and prefixes are read and written. The outputs of p-tuning's network are what
peft writes, so that it is read as a prompt.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from pfljax.core import Params, Path
from pfljax.errors import UserError
from pfljax.models.adapters.dense import has_matrix, ia3, lora
from pfljax.models.adapters.overlay import Kind, Layer, attach, layers_of
from pfljax.models.adapters.tokens import prefix, prompt
from pfljax.models.language.hugging_face import Format
from pfljax.models.model import Model

CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
_ROWS = "prompt_embeddings"
_BASE = ("base_model.model.", "base_model.")  # of adapters of layers, and of tokens
# Settings with which peft computes something else; all others do not change the outputs.
_PLAIN = {
    **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "use_bdlora"), (False, None)),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "layer_replication"), ({}, None)),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens"), (None,)),
    **dict.fromkeys(("target_parameters", "arrow_config", "kasa_config"), (None, [])),
    "prefix_projection": (False, None),
    "bias": ("none", None),
}


class Imported(NamedTuple):
    """An adapter that was read.

    Attributes:
      model: The network with the adapter.
      params: The arrays of the adapter and, if the files have one, those of the head.
    """

    model: Model
    params: Params


def load(directory: pathlib.Path, model: Model, format: Format) -> Imported:
    """Reads an adapter that peft has written.

    Args:
      directory: The directory with both files.
      model: The network of its base, such as `language.gpt2` of the same sizes.
      format: How the other library names the arrays of the network, of `language.FORMATS`.

    Raises:
      UserError: A file cannot be read, the adapter is of another kind or has settings that change
        its equation, or it is of another network.
    """
    settings, arrays = _read(directory)
    kind = settings.get("peft_type")
    if kind not in _READERS:
        raise UserError(
            f"{directory / CONFIG} is of the kind {kind!r}; those that can be read are "
            f"{', '.join(_READERS)}."
        )
    for name, plain in _PLAIN.items():
        if settings.get(name, plain[0]) not in plain:
            raise UserError(
                f"{directory / CONFIG} has {name} {settings[name]!r}, which is not supported; "
                "train the adapter without it."
            )
    layers, head = layers_of(model), {}
    names = {
        format.array(path): path
        for path in flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
        if model.is_head(path)
    }
    of_adapter = {}
    for name, array in arrays.items():
        short = name
        for start in _BASE:
            short = short.removeprefix(start) if short == name else short
        if short in names:
            head[names[short]] = format.convert(names[short], array)
        else:
            of_adapter[short] = array
    try:
        own, found = _READERS[kind](settings, of_adapter, layers, format)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{directory} is no complete adapter of the kind {kind} ({error}); write it with peft."
        ) from error
    adapted = attach(model, own, lambda path: path in {path[:-1] for path in found})
    shapes = flatten_dict(jax.eval_shape(adapted.init, jax.random.key(0)))
    wanted = [path for path in shapes if adapted.is_adapter(path) and not model.is_adapter(path)]
    for path in sorted({*wanted, *found, *head}):
        array, shape = {**found, **head}.get(path), getattr(shapes.get(path), "shape", None)
        if array is None or array.shape != shape:
            raise UserError(
                f"{directory} gives {'/'.join(path)} the shape {getattr(array, 'shape', None)}, "
                f"and that of the network is {shape}; the adapter is of another network."
            )
        if not np.all(np.isfinite(array)):
            raise UserError(f"{directory} gives {'/'.join(path)} values that are not finite.")
    return Imported(adapted, unflatten_dict({**found, **head}))


def save(
    directory: pathlib.Path,
    params: Params,
    model: Model,
    format: Format,
    *,
    scale: float = 1.0,
    task_type: str | None = None,
    base: str | None = None,
) -> None:
    """Writes an adapter, and the head if it is among the params, in the files of peft.

    Args:
      directory: The directory, which is made.
      params: The arrays of one kind of adapter, and possibly the head's: those that a client has.
      model: The network of its base, without the adapter.
      format: How the other library names the arrays of the network.
      scale: Of `lora`, the factor on an update.
      task_type: peft's name of the task, such as 'CAUSAL_LM', 'SEQ_CLS' or 'SEQ_2_SEQ_LM'.
      base: The name of the base in the other library.

    Raises:
      UserError: The arrays are of a kind of adapter that peft has not.
    """
    flat = {path: np.asarray(array) for path, array in flatten_dict(params).items()}
    head = {path: array for path, array in flat.items() if path[-1] in ("kernel", "bias")}
    own = {path: array for path, array in flat.items() if path not in head}
    kinds = [name for name, ours in _NAMES.items() if {path[-1] for path in own} <= ours]
    if not own or not kinds:
        names = ", ".join(sorted({path[-1] for path in own})) or "of the head"
        raise UserError(
            f"The arrays {names} are of no kind of adapter that peft has; those that it has are "
            f"{', '.join(_NAMES)}."
        )
    settings, arrays = _WRITERS[kinds[0]](own, layers_of(model), format, scale)
    start = _BASE[1 if kinds[0] in ("PROMPT_TUNING", "PREFIX_TUNING") else 0]
    for path, array in head.items():
        arrays[start + format.array(path)] = format.convert(path, array)
    settings |= {
        "peft_type": kinds[0],
        "task_type": task_type,
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, directory / ARRAYS, metadata={"format": "pt"})


def _read(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        settings = json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory / CONFIG} cannot be read ({error}); name a directory that peft has "
            "written."
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{directory / CONFIG} is no config of an adapter; write it with peft.")
    try:
        return settings, safetensors.numpy.load_file(directory / ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{directory / ARRAYS} cannot be read ({error}); name a directory that peft has "
            "written."
        ) from error


Arrays = dict[str, np.ndarray]
Flat = dict[Path, np.ndarray]


def _at_layers(
    arrays: Arrays, layers: list[Layer], format: Format, endings: Mapping[str, str]
) -> Flat:
    """Returns arrays of layers by our paths.

    Args:
      arrays: The arrays of a file, without the start of their names.
      layers: The layers of the network.
      format: How the other library names them.
      endings: `{ending of a name there: our name}`.
    """
    modules = {format.module(layer.path): layer.path for layer in layers if has_matrix(layer)}
    found = {}
    for name, array in arrays.items():
        ending = next((end for end in endings if name.endswith(end)), "")
        module = name.removesuffix(ending)
        if not ending or module not in modules:
            raise KeyError(f"the network has no layer for {name!r}")
        found[(*modules[module], endings[ending])] = array
    return found


def _read_lora(settings, arrays, layers, format) -> tuple[Kind, Flat]:
    rank, alpha = int(settings["r"]), settings["lora_alpha"]
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    endings = {".lora_A.weight": "lora_a", ".lora_B.weight": "lora_b"}
    found = _at_layers(arrays, layers, format, endings)
    return lora(rank=rank, scale=scale), {path: array.T for path, array in found.items()}


def _read_ia3(settings, arrays, layers, format) -> tuple[Kind, Flat]:
    found = {
        (*path[:-1], "ia3_input" if array.shape[0] == 1 and array.ndim == 2 else "ia3_output"): (
            array.reshape(-1)
        )
        for path, array in _at_layers(arrays, layers, format, {".ia3_l": "ia3_output"}).items()
    }
    inputs = {path[:-1] for path in found if path[-1] == "ia3_input"}
    return ia3(scales_inputs=lambda path: path in inputs), found


def _read_prompt(settings, arrays, layers, format) -> tuple[Kind, Flat]:
    rows, paths = arrays.pop(_ROWS), _token_layers(layers)
    if arrays:
        raise KeyError(f"the network has no array for {min(arrays)!r}")
    tokens = settings["num_virtual_tokens"]
    if rows.shape[0] < tokens or rows.shape[0] % tokens:
        raise ValueError(f"{rows.shape[0]} rows for {tokens} tokens")
    # Where there are rows for a decoder too, peft uses those of the encoder only.
    return prompt(tokens=tokens), {(*paths[0], "prompt"): rows[:tokens]}


def _token_layers(layers: list[Layer]) -> list[Path]:
    """Returns the layers that can have a prompt."""
    fits = prompt(tokens=1).fits
    return [layer.path for layer in layers if fits(layer)]


def _products(layers: list[Layer]) -> list[Layer]:
    """Returns the layers that can have a prefix."""
    fits = prefix(tokens=1).fits
    return [layer for layer in layers if fits(layer)]


def _read_prefix(settings, arrays, layers, format) -> tuple[Kind, Flat]:
    rows, products = arrays.pop(_ROWS), _products(layers)
    if arrays:
        raise KeyError(f"the network has no array for {min(arrays)!r}")
    tokens = rows.shape[0]
    size = products[0].inputs[1].shape[2:] if products else ()
    parts = rows.reshape(tokens, 2 * len(products), *size)
    found = {}
    for number, layer in enumerate(products):
        found[(*layer.path, "prefix_key")] = parts[:, 2 * number]
        found[(*layer.path, "prefix_value")] = parts[:, 2 * number + 1]
    return prefix(tokens=tokens), found


def _module_names(own: Flat, format: Format) -> dict[Path, str]:
    return {path[:-1]: format.module(path[:-1]) for path in own}


def _write_lora(own, layers, format, scale) -> tuple[dict[str, Any], Arrays]:
    ending = {"lora_a": "lora_A", "lora_b": "lora_B"}
    modules = _module_names(own, format)
    arrays = {
        f"{_BASE[0]}{modules[path[:-1]]}.{ending[path[-1]]}.weight": array.T
        for path, array in own.items()
    }
    rank = next(array.shape[1] for path, array in own.items() if path[-1] == "lora_a")
    settings = {
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules.values()),
        "fan_in_fan_out": not format.transposed,
        "bias": "none",
    }
    return settings, arrays


def _write_ia3(own, layers, format, scale) -> tuple[dict[str, Any], Arrays]:
    modules, arrays, inputs = _module_names(own, format), {}, []
    for path, array in own.items():
        of_inputs = path[-1] == "ia3_input"
        name = modules[path[:-1]]
        arrays[f"{_BASE[0]}{name}.ia3_l"] = array.reshape((1, -1) if of_inputs else (-1, 1))
        inputs += [name] if of_inputs else []
    settings = {
        "target_modules": sorted(modules.values()),
        "feedforward_modules": sorted(inputs),
        "fan_in_fan_out": not format.transposed,
    }
    return settings, arrays


def _write_prompt(own, layers, format, scale) -> tuple[dict[str, Any], Arrays]:
    (path, rows), *others = own.items()
    if others or path[:-1] != _token_layers(layers)[0]:
        raise UserError(
            "peft has prompts before the input of the encoder only; train the adapter with "
            "config.adapter.layers=encoder."
        )
    settings = {
        "num_virtual_tokens": rows.shape[0],
        "token_dim": rows.shape[1],
        "num_transformer_submodules": 1,
    }
    return settings, {_ROWS: rows}


def _write_prefix(own, layers, format, scale) -> tuple[dict[str, Any], Arrays]:
    parts = [
        own[(*layer.path, name)]
        for layer in _products(layers)
        for name in ("prefix_key", "prefix_value")
    ]
    rows = np.stack(parts, axis=1)
    tokens, _, heads, size = rows.shape
    settings = {
        "num_virtual_tokens": tokens,
        "num_layers": len(parts) // 2,
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
        "num_transformer_submodules": 1,
    }
    return settings, {_ROWS: rows.reshape(tokens, -1)}


_READERS: dict[str, Callable[..., tuple[Kind, Flat]]] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}
_WRITERS: dict[str, Callable[..., tuple[dict[str, Any], Arrays]]] = {
    "LORA": _write_lora,
    "IA3": _write_ia3,
    "PROMPT_TUNING": _write_prompt,
    "PREFIX_TUNING": _write_prefix,
}
_NAMES = {
    "LORA": {"lora_a", "lora_b"},
    "IA3": {"ia3_input", "ia3_output"},
    "PROMPT_TUNING": {"prompt"},
    "PREFIX_TUNING": {"prefix_key", "prefix_value"},
}
