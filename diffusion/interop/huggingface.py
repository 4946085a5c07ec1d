"""``UNet2DModel`` of the diffusers library: ``config.json`` beside safetensors.

Covers DDPM's layout (``DownBlock2D``, ``AttnDownBlock2D`` and their counterparts), with
attention under its present names (``to_q``) and its old ones (``query``).  Queries,
keys and values, three layers there, are one here, its channels ordered (head, channel,
{q, k, v}).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.network_schema import DDPMUNetConfig
from configs.schema import PreconditioningConfig
from diffusion.interop.imported_model import ImportedModel, Tensors, fill_params
from diffusion.interop.safetensors import read_safetensors

__all__ = ["convert_unet2d", "load_unet2d"]

_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def load_unet2d(path: str | Path) -> ImportedModel:
    """Read a folder of the diffusers library.

    Args:
        path: The folder, or its ``unet`` subfolder, or the safetensors file in it.

    Raises:
        InputError: If files are missing or damaged, or the network is of another kind.
    """
    folder = Path(path)
    weights = folder if folder.is_file() else folder / _WEIGHTS
    folder = weights.parent
    if not weights.is_file() and (folder / "unet").is_dir():
        return load_unet2d(folder / "unet")
    config = folder / "config.json"
    for needed in (weights, config):
        if not needed.is_file():
            raise InputError(
                f"there is no file {needed}; both it and the other of "
                f"{_WEIGHTS} and config.json are needed"
            )
    try:
        values = json.loads(config.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{config} holds no settings")
    return convert_unet2d(values, read_safetensors(weights))


def convert_unet2d(values: dict[str, Any], tensors: Tensors) -> ImportedModel:
    """Bring a ``UNet2DModel`` into this project's terms.

    Args:
        values: The settings of its ``config.json``.
        tensors: Its tensors by name.

    Raises:
        InputError: If a setting is not DDPM's or a tensor does not fit.
    """
    config, size = _network(values)
    channels = values.get("in_channels", 3)
    if channels != values.get("out_channels", channels):
        raise InputError("the network's input and output have different channels")
    event_shape = (size, size, channels)
    joined = _joined_attention(tensors, config)
    params = fill_params(config, event_shape, joined, _name_of)
    return ImportedModel(
        config, PreconditioningConfig(name="ddpm"), event_shape, params, ""
    )


def _network(values: dict[str, Any]) -> tuple[DDPMUNetConfig, int]:
    def refuse(name: str) -> InputError:
        return InputError(
            f"config.json has {name} = {values.get(name)!r:.80}, which is not DDPM's; "
            "only networks of DDPM's layout are read"
        )

    expected = {
        "act_fn": "silu",
        "time_embedding_type": "positional",
        "center_input_sample": False,
        "mid_block_scale_factor": 1,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None,
    }
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise refuse(name)
    down, up = values.get("down_block_types"), values.get("up_block_types")
    if not isinstance(down, list) or not all(kind in _DOWN for kind in down):
        raise refuse("down_block_types")
    if not isinstance(up, list) or not all(kind in _UP for kind in up):
        raise refuse("up_block_types")
    size = values.get("sample_size")
    if type(size) is not int:
        raise refuse("sample_size")
    try:
        config = DDPMUNetConfig(
            block_channels=tuple(values["block_out_channels"]),
            num_blocks=values.get("layers_per_block", 2),
            attention_down=tuple(_DOWN[kind] for kind in down),
            attention_up=tuple(_UP[kind] for kind in up),
            channels_per_head=values.get("attention_head_dim", 8),
            num_groups=values.get("norm_num_groups", 32),
            epsilon=values.get("norm_eps", 1e-5),
            flip_sin_to_cos=values.get("flip_sin_to_cos", True),
            frequency_shift=values.get("freq_shift", 0),
            downsample_padding=values.get("downsample_padding", 1),
            dropout=values.get("dropout", 0.0),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"config.json lacks a setting or has a wrong one: {error}"
        ) from error
    return config, size


def _joined_attention(tensors: Tensors, config: DDPMUNetConfig) -> Tensors:
    """Replace three layers q, k, v by one, and old names by present ones."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        for old, new in _OLD_ATTENTION.items():
            if ".attentions." in owner and owner.endswith(f".{old}"):
                owner = owner.removesuffix(old) + new
        renamed[f"{owner}.{leaf}"] = tensor
    for name in [n for n in renamed if ".to_q." in n]:
        parts = []
        for which in "qkv":
            part = renamed.pop(name.replace(".to_q.", f".to_{which}."), None)
            if part is None:
                raise InputError(f"the checkpoint has {name} but no to_{which}")
            parts.append(np.asarray(part).reshape(len(part), -1).squeeze())
        # (channels, 3, ...) flattened: q, k, v fastest.
        joined = np.stack(parts, axis=1)
        renamed[name.replace(".to_q.", ".qkv.")] = joined.reshape(-1, *joined.shape[2:])
    return renamed


_TOP = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
}
_IN_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
_IN_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj": "to_out.0"}


def _name_of(place: str) -> str:
    """Return the diffusers library's name of a parameter of ours."""
    owner, _, leaf = place.rpartition("/")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    if "/" not in owner:
        return f"{_TOP.get(owner, owner)}.{leaf}"
    part, block, *rest = owner.split("/")
    if part == "middle":
        index = block.removeprefix("block")
        base, attention = f"mid_block.resnets.{index}", "mid_block.attentions.0"
    else:
        level, kind = block.removeprefix("level").split("_")
        if not kind.startswith("block"):
            return f"{part}_blocks.{level}.{part}samplers.0.conv.{leaf}"
        index = kind.removeprefix("block")
        base = f"{part}_blocks.{level}.resnets.{index}"
        attention = f"{part}_blocks.{level}.attentions.{index}"
    if rest[0] == "attention":
        return f"{attention}.{_IN_ATTENTION[rest[1]]}.{leaf}"
    return f"{base}.{_IN_BLOCK[rest[0]]}.{leaf}"
