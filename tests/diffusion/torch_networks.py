"""DDPM++, NCSN++ and ADM in torch, from their formulas, for comparison only.

Plain functions over a store of tensors that makes each one when it is first asked for,
under the names of published checkpoints, with values that depend on the name alone.
"""

import math
import zlib

import numpy as np


def random_tensor(name, shape):
    """Return float32 values that keep activations of order one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.normal(size=shape)
    if name.endswith("freqs"):
        return (16 * values).astype(np.float32)
    if len(shape) == 1:
        is_scale = "norm" in name and name.endswith("weight")
        return (0.1 * values + (1.0 if is_scale else 0.0)).astype(np.float32)
    return (values / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def random_inputs(case, batch=2):
    rng = np.random.default_rng(case["seed"])
    h, w = case["size"]
    return {
        "x": rng.normal(size=(batch, h, w, 3)).astype(np.float32),
        "c_noise": rng.uniform(-1, 1, batch).astype(np.float32),
        "labels": np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch)],
        "condition": rng.normal(size=(batch, 9)).astype(np.float32),
        "cotangent": rng.normal(size=(batch, h, w, 3)).astype(np.float32),
    }


class Store:
    """Tensors by name; made on demand."""

    def __init__(self, torch):
        self.torch, self.tensors = torch, {}

    def __call__(self, name, *shape):
        if name not in self.tensors:
            value = self.torch.from_numpy(random_tensor(name, shape))
            self.tensors[name] = value.requires_grad_(not name.endswith("freqs"))
        return self.tensors[name]


class Net:
    """What the architectures share."""

    def __init__(self, torch, case):
        self.torch, self.case, self.get = torch, case, Store(torch)
        self.fn = torch.nn.functional
        taps = torch.tensor(case["taps"], dtype=torch.float32)
        self.fir = torch.outer(taps, taps) / taps.sum() ** 2
        self.pad = len(taps) // 2 - 1

    def dense(self, name, x, out, bias=True):
        w = self.get(f"{name}.weight", out, x.shape[1])
        return self.fn.linear(x, w, self.get(f"{name}.bias", out) if bias else None)

    def conv(self, name, x, out, k, padding=None):
        w = self.get(f"{name}.weight", out, x.shape[1], k, k)
        padding = k // 2 if padding is None else padding
        return self.fn.conv2d(x, w, self.get(f"{name}.bias", out), padding=padding)

    def norm(self, name, x):
        c = x.shape[1]
        w, b = self.get(f"{name}.weight", c), self.get(f"{name}.bias", c)
        return self.fn.group_norm(x, min(32, c // 4), w, b, eps=self.case["eps"])

    def down(self, x, pad=None):
        kernel = self.fir[None, None].repeat(x.shape[1], 1, 1, 1)
        pad = self.pad if pad is None else pad
        return self.fn.conv2d(x, kernel, stride=2, padding=pad, groups=x.shape[1])

    def up(self, x):
        kernel = 4 * self.fir[None, None].repeat(x.shape[1], 1, 1, 1)
        return self.fn.conv_transpose2d(
            x, kernel, stride=2, padding=self.pad, groups=x.shape[1]
        )

    def block(self, name, x, emb, out, resample=None, attention=False):
        case, silu = self.case, self.fn.silu
        change = {"down": self.down, "up": self.up, None: lambda y: y}[resample]
        y = self.conv(
            f"{name}.conv0", change(silu(self.norm(f"{name}.norm0", x))), out, 3
        )
        if case["adaptive"]:
            both = self.dense(f"{name}.affine", emb, 2 * out)[:, :, None, None]
            scale, shift = both[:, :out], both[:, out:]
            y = silu(self.norm(f"{name}.norm1", y) * (scale + 1) + shift)
        else:
            shift = self.dense(f"{name}.affine", emb, out)[:, :, None, None]
            y = silu(self.norm(f"{name}.norm1", y + shift))
        y = self.conv(f"{name}.conv1", y, out, 3)
        skip = change(x)
        if out != x.shape[1] or (resample and case["project"]):
            skip = self.conv(f"{name}.skip", skip, out, 1)
        y = (y + skip) * case["skip_scale"]
        if attention:
            y = (y + self.attention(name, y)) * case["skip_scale"]
        return y

    def attention(self, name, x):
        b, c, h, w = x.shape
        heads = c // 64 if self.case["head_channels"] else 1
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * c, 1)
        q, k, v = qkv.reshape(b * heads, c // heads, 3, h * w).unbind(2)
        logits = self.torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(c // heads)
        mixed = self.torch.einsum("nqk,nck->ncq", logits.softmax(dim=2), v)
        return self.conv(f"{name}.proj", mixed.reshape(b, c, h, w), c, 1)

    def trunk(self, x, emb, aux_names):
        case = self.case
        width, mult, blocks = case["width"], case["mult"], case["blocks"]
        size = case["size"][0]
        y = self.conv(f"enc.{size}x{size}_conv", x, width, 3)
        skips, image = [y], x
        for level, factor in enumerate(mult):
            res = size >> level
            if level:
                y = self.block(f"enc.{res}x{res}_down", y, emb, y.shape[1], "down")
                if case["pyramid"]:
                    wide = self.conv(
                        f"enc.{res}x{res}_aux_residual",
                        image, y.shape[1], 3, padding=1 + self.pad,
                    )  # fmt: skip
                    y = image = (y + self.down(wide, pad=0)) / math.sqrt(2)
                skips.append(y)
            for index in range(blocks):
                name = f"enc.{res}x{res}_block{index}"
                attend = res in case["attention"]
                y = self.block(name, y, emb, factor * width, attention=attend)
                skips.append(y)
        for level in reversed(range(len(mult))):
            res = size >> level
            if level == len(mult) - 1:
                y = self.block(
                    f"dec.{res}x{res}_in0", y, emb, y.shape[1], attention=True
                )
                y = self.block(f"dec.{res}x{res}_in1", y, emb, y.shape[1])
            else:
                y = self.block(f"dec.{res}x{res}_up", y, emb, y.shape[1], "up")
            for index in range(blocks + 1):
                attend = res in case["attention"]
                attend = attend and (case["attend_all"] or index == blocks)
                y = self.torch.cat([y, skips.pop()], dim=1)
                name = f"dec.{res}x{res}_block{index}"
                y = self.block(name, y, emb, mult[level] * width, attention=attend)
        norm, conv = aux_names
        return self.conv(conv, self.fn.silu(self.norm(norm, y)), 3, 3)

    def __call__(self, x, c_noise, labels, condition):
        torch, silu, case = self.torch, self.fn.silu, self.case
        width, size = case["width"], case["size"][0]
        x = x.permute(0, 3, 1, 2)
        if case["kind"] == "adm":
            exponent = torch.arange(width // 2) / (width // 2)
            angles = c_noise[:, None] * (1 / 10000) ** exponent
            emb = torch.cat([angles.cos(), angles.sin()], dim=1)
            emb = emb + self.dense("map_augment", condition, width, bias=False)
            emb = self.dense("map_layer0", emb, 4 * width)
            emb = self.dense("map_layer1", silu(emb), 4 * width)
            emb = silu(emb + self.dense("map_label", labels, 4 * width, bias=False))
            return self.trunk(x, emb, ("out_norm", "out_conv")).permute(0, 2, 3, 1)
        if case["pyramid"]:
            freqs = self.get("map_noise.freqs", width)
            angles = c_noise[:, None] * (2 * math.pi * freqs)
            noise_width = 2 * width
        else:
            exponent = torch.arange(width // 2) / (width // 2 - 1)
            angles = c_noise[:, None] * (1 / 10000) ** exponent
            noise_width = width
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        emb = emb + self.dense("map_label", labels * math.sqrt(10), noise_width)
        emb = emb + self.dense("map_augment", condition, noise_width, bias=False)
        emb = silu(self.dense("map_layer0", emb, 4 * width))
        emb = silu(self.dense("map_layer1", emb, 4 * width))
        names = f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv"
        return self.trunk(x, emb, names).permute(0, 2, 3, 1)


SONG = {
    "kind": "song", "width": 32, "mult": (2, 2, 2), "blocks": 4, "attention": (16,),
    "size": (32, 32), "taps": (1, 1), "eps": 1e-6, "adaptive": False, "project": True,
    "skip_scale": math.sqrt(0.5), "head_channels": None, "pyramid": False,
    "attend_all": False, "seed": 0,
}  # fmt: skip
NCSN = {**SONG, "taps": (1, 3, 3, 1), "pyramid": True, "seed": 1}
ADM = {
    **SONG, "kind": "adm", "mult": (1, 2, 3, 4), "blocks": 3, "size": (64, 64),
    "attention": (32, 16, 8), "eps": 1e-5, "adaptive": True, "project": False,
    "skip_scale": 1.0, "head_channels": 64, "attend_all": True, "seed": 2,
}  # fmt: skip
DEEP = {"mult": (1, 2, 2, 2), "size": (64, 64)}
SMALL = {"blocks": 1, "mult": (1, 2), "size": (8, 16), "attention": (4,)}

CASES = {
    "ddpmpp_32": SONG,
    "ddpmpp_64": {**SONG, **DEEP},
    "ddpmpp_32x48": {**SONG, "size": (32, 48)},
    "ddpmpp_long_filter": {**SONG, "taps": (1, 3, 3, 1)},
    "ncsnpp_32": NCSN,
    "ncsnpp_64": {**NCSN, **DEEP},
    "ncsnpp_32x48": {**NCSN, "size": (32, 48)},
    "adm_64": ADM,
    "adm_64x32": {**ADM, "size": (64, 32)},
    "ddpmpp_small": {**SONG, **SMALL},
    "ncsnpp_small": {**NCSN, **SMALL},
    "adm_small": {**ADM, **SMALL, "mult": (2, 4)},
}  # fmt: skip


def edm_arguments(case):
    """Return the arguments under which EDM's checkpoints describe such a network."""
    common = {
        "img_resolution": case["size"][0],
        "img_channels": 3,
        "label_dim": 10,
        "augment_dim": 9,
        "model_channels": case["width"],
        "channel_mult": list(case["mult"]),
        "num_blocks": case["blocks"],
        "attn_resolutions": list(case["attention"]),
        "dropout": 0.1,
        "sigma_data": 0.5,
    }
    if case["kind"] == "adm":
        return {**common, "model_type": "DhariwalUNet"}
    pyramid = case["pyramid"]
    return {
        **common,
        "model_type": "SongUNet",
        "embedding_type": "fourier" if pyramid else "positional",
        "encoder_type": "residual" if pyramid else "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 2 if pyramid else 1,
        "resample_filter": list(case["taps"]),
    }
