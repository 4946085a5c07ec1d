"""EDM's ``network-snapshot-*.pkl``: the averaged network with its arguments.

The file is a pickle of ``{"ema": EDMPrecond, ...}`` whose classes carry their source
text along; here it is read as data (see `restricted_unpickler`).  Tensors keep
PyTorch's names, ``model.enc.32x32_block0.conv0.weight``; attention's channels are
ordered (head, channel, {q, k, v}) there as here.  Layout: Karras et al., arXiv
2206.00364, reference implementation.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.network_schema import DhariwalUNetConfig, NetworkConfig, SongUNetConfig
from configs.schema import PreconditioningConfig
from diffusion.interop.imported_model import ImportedModel, Tensors, fill_params
from diffusion.interop.restricted_unpickler import Record, read_untrusted

__all__ = ["convert_edm", "load_edm"]

_NOTICE = (
    "NVIDIA publishes EDM's weights under CC BY-NC-SA 4.0: not for commercial use; "
    "share what you derive from them under the same terms, and name the source."
)
_PRECONDITIONINGS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}
_SONG = "SongUNet"
_MAX_MODULES = 10_000


def load_edm(path: str | Path) -> ImportedModel:
    """Read a network snapshot of EDM.

    Args:
        path: A ``.pkl`` file.

    Raises:
        InputError: If it is no snapshot of EDM, damaged, or of an unknown
            architecture.
    """
    content = read_untrusted(path)
    ema = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(ema, Record) or not isinstance(ema.state, dict):
        raise InputError(f"{path} is no network snapshot of EDM: it holds no 'ema'")
    arguments = ema.state.get("_init_kwargs")
    if not isinstance(arguments, dict):
        raise InputError(f"{path} holds a network without its arguments")
    arguments = {**arguments}
    for name in ("sigma_data", "label_dim"):
        if name in ema.state:
            arguments.setdefault(name, ema.state[name])
    return convert_edm(ema.name, arguments, _tensors(ema))


def convert_edm(
    class_name: str, arguments: dict[str, Any], tensors: Tensors
) -> ImportedModel:
    """Bring a network of EDM into this project's terms.

    Args:
        class_name: The class of its preconditioning, such as ``"EDMPrecond"``.
        arguments: What it was made with: img_resolution, img_channels, model_type and
            the network's own.
        tensors: Parameters and buffers by name, such as ``"model.map_layer0.weight"``.

    Raises:
        InputError: If the class or an argument is unknown, or a tensor does not fit.
    """
    if class_name not in _PRECONDITIONINGS:
        raise InputError(
            f"networks of class {class_name[:60]!r} are not known; known are "
            f"{', '.join(_PRECONDITIONINGS)}"
        )
    name = _PRECONDITIONINGS[class_name]
    size = _integer(arguments, "img_resolution")
    event_shape = (size, size, _integer(arguments, "img_channels"))
    config = _network(arguments, size)
    sigma_data = arguments.get("sigma_data", 0.5)
    if not isinstance(sigma_data, float | int):
        raise InputError(f"the checkpoint's sigma_data is {sigma_data!r:.60}")
    preconditioning = PreconditioningConfig(
        name=name, sigma_data=float(sigma_data) if name == "edm" else None
    )
    buffers = {key for key in tensors if key.endswith("resample_filter")}
    for key in sorted(buffers):
        _check_filter(key, tensors[key], config)
    params = fill_params(
        config,
        event_shape,
        tensors,
        lambda place: _edm_name(place, size, isinstance(config, SongUNetConfig)),
        output_factor=2 if name == "iddpm" else 1,
        ignored=lambda key: key in buffers or key in ("u", "model.u"),
    )
    return ImportedModel(config, preconditioning, event_shape, params, _NOTICE)


def _tensors(root: Record) -> Tensors:
    """Collect the parameters and buffers of a module and all its children."""
    found: Tensors = {}
    todo: list[tuple[str, Any]] = [("", root)]
    for _ in range(_MAX_MODULES):
        if not todo:
            return found
        prefix, module = todo.pop()
        if not isinstance(module, Record) or not isinstance(module.state, dict):
            raise InputError("the checkpoint holds a module without a state")
        for kind in ("_parameters", "_buffers"):
            for name, value in (module.state.get(kind) or {}).items():
                if value is None:
                    continue
                if not isinstance(value, np.ndarray):
                    raise InputError(f"{prefix}{name} is no tensor in the checkpoint")
                found[f"{prefix}{name}"] = value
        for name, child in (module.state.get("_modules") or {}).items():
            if child is not None:
                todo.append((f"{prefix}{name}.", child))
    raise InputError("the checkpoint holds too many modules")


def _integer(arguments: dict[str, Any], name: str, default: int | None = None) -> int:
    value = arguments.get(name, default)
    if type(value) is not int or not 0 <= value <= 65_536:
        raise InputError(f"the checkpoint's {name} is {value!r:.60}; a size is needed")
    return value


def _integers(arguments: dict[str, Any], name: str, default: tuple) -> tuple[int, ...]:
    value = arguments.get(name, default)
    if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
        raise InputError(f"the checkpoint's {name} is {value!r:.60}; sizes are needed")
    return tuple(value)


def _network(arguments: dict[str, Any], size: int) -> NetworkConfig:
    """Return the architecture; anything that this project cannot build is refused."""
    kind = arguments.get("model_type", "DhariwalUNet")
    if kind not in (_SONG, "DhariwalUNet"):
        raise InputError(f"the checkpoint's model_type is {kind!r:.60}")
    common: dict[str, Any] = {
        "dropout": float(arguments.get("dropout", 0.1)),
        "label_dropout": float(arguments.get("label_dropout", 0) or 0),
        "label_dim": _integer(arguments, "label_dim", 0),
        "augment_dim": _integer(arguments, "augment_dim", 0),
    }
    if arguments.get("channel_mult_emb", 4) != 4:
        raise InputError("the checkpoint's channel_mult_emb is not 4")
    if kind != _SONG:
        return DhariwalUNetConfig(
            model_channels=_integer(arguments, "model_channels", 192),
            channel_mult=_integers(arguments, "channel_mult", (1, 2, 3, 4)),
            num_blocks=_integer(arguments, "num_blocks", 3),
            attention_resolutions=_integers(arguments, "attn_resolutions", (32, 16, 8)),
            **common,
        )
    encoder = arguments.get("encoder_type", "standard")
    if arguments.get("decoder_type", "standard") != "standard":
        raise InputError("the checkpoint's decoder_type is not 'standard'")
    return SongUNetConfig(
        model_channels=_integer(arguments, "model_channels", 128),
        channel_mult=_integers(arguments, "channel_mult", (1, 2, 2, 2)),
        num_blocks=_integer(arguments, "num_blocks", 4),
        attention_resolutions=_integers(arguments, "attn_resolutions", (16,)),
        encoder=str(encoder),
        embedding=str(arguments.get("embedding_type", "positional")),
        noise_channel_mult=_integer(arguments, "channel_mult_noise", 1),
        resample_filter=_integers(arguments, "resample_filter", (1, 1)),
        **common,
    )


def _check_filter(name: str, found: NDArray[Any], config: NetworkConfig) -> None:
    """Compare a stored filter with the one that the architecture implies."""
    taps = np.array(getattr(config, "resample_filter", (1, 1)), np.float64)
    wanted = np.outer(taps, taps) / taps.sum() ** 2
    if found.shape[-2:] != wanted.shape or not np.allclose(found, wanted, atol=1e-6):
        raise InputError(
            f"{name} is another filter than {taps.astype(int).tolist()}, which the "
            "checkpoint's arguments name"
        )


def _edm_name(place: str, size: int, song: bool) -> str:
    """Return EDM's name of a parameter of ours."""
    if place == "frequencies":
        return "model.map_noise.freqs"
    owner, _, leaf = place.rpartition("/")
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    owner = owner.replace("attention/norm", "norm2").replace("attention/", "")
    if owner == "unet/conv_in":
        owner = f"enc.{size}x{size}_conv"
    elif owner == "unet/norm_out":
        owner = f"dec.{size}x{size}_aux_norm" if song else "out_norm"
    elif owner == "unet/conv_out":
        owner = f"dec.{size}x{size}_aux_conv" if song else "out_conv"
    else:
        owner = re.sub(
            r"^unet/(encoder|decoder|pyramid)/level(\d+)_?(\w*)",
            lambda match: _block_name(match[1], size >> int(match[2]), match[3]),
            owner,
        )
    return f"model.{owner.replace('/', '.')}.{leaf}"


def _block_name(part: str, size: int, rest: str) -> str:
    if part == "pyramid":
        return f"enc.{size}x{size}_aux_residual"
    return f"{part[:3]}.{size}x{size}_{rest}"
