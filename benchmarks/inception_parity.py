"""The Inception network against torch-fidelity's, under the same random weights.

    python -m benchmarks.inception_parity

The published weights need not be at hand: weights are drawn from the tensors' names
alone, torch-fidelity loads them from a file in the published layout, and we import that
same file.  Compared are every layer of two images and the Frechet distance of 24 images
from 24 others in every layer that has one.  What torch-fidelity gives is kept in
``tests/analysis/golden_inception.npz``, so that tests compare with it without torch.

Needs torch (the extra ``parity``) and ``pip install --no-deps torch-fidelity``: what it
imports of torchvision, which this does not use, is stood in for by empty modules.
"""

import importlib.util
import math
import sys
import tempfile
import types
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.metrics import frechet_distance
from analysis.metrics.inception import LAYERS, Inception, inception_layer
from analysis.metrics.inception_weights import (
    read_torch_inception,
    torch_inception_shapes,
)
from benchmarks.results_file import write_result

GOLDEN = Path(__file__).resolve().parent.parent / "tests/analysis/golden_inception.npz"
FRECHET_LAYERS = ("64", "192", "768", "2048")
KEPT = 512
"""Numbers of each layer and image that are kept, evenly spaced."""


def random_tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return values that depend on the name alone and keep activations of order one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return np.exp(values / 4, dtype=np.float32)
    if name.endswith("bn.weight"):
        return np.float32(1) + values / np.float32(4)
    if len(shape) == 1:
        return values / np.float32(4)
    # Relus halve the second moment, except behind the last layer.
    gain = 1 if name.startswith("fc") else 2
    return values * np.float32(math.sqrt(gain / math.prod(shape[1:])))


def random_weights() -> dict[str, NDArray[np.float32]]:
    """Return random tensors under the names of torch's file."""
    shapes = torch_inception_shapes()
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def random_images(seed: int, count: int, size: int) -> NDArray[np.uint8]:
    """Return images of smooth colours and noise, (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(128, 80, (count, 4, 4, 3)).repeat(size // 4, 1)
    values = coarse.repeat(size // 4, 2) + rng.normal(0, 20, (count, size, size, 3))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def two_images() -> NDArray[np.uint8]:
    """Return the images whose every layer is compared."""
    return random_images(0, 2, 32)


def image_sets() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the sets whose distance is compared; the second is darker."""
    return random_images(1, 24, 32), random_images(2, 24, 32) // 4 * 3


def kept(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the numbers of a layer (n, width) that are kept, (n, at most KEPT)."""
    return values[:, :: max(1, values.shape[1] // KEPT)]


def relative_error(found: Any, wanted: Any) -> float:
    """Return the norm of the difference over that of what is wanted."""
    found, wanted = (np.asarray(v, np.float64) for v in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def save_torch_weights(path: Path) -> None:
    """Write `random_weights` as torch-fidelity publishes its own."""
    import torch

    state = {name: torch.from_numpy(a) for name, a in random_weights().items()}
    for name in list(state):
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = torch.tensor(0)
    torch.save(state, path)


def _import_torch_fidelity() -> tuple[Any, Any]:
    """Return torch-fidelity's modules of the network and of the distance."""
    missing = importlib.util.find_spec("torchvision") is None
    stand_ins = _empty_torchvision() if missing else {}
    sys.modules.update(stand_ins)
    try:
        from torch_fidelity import feature_extractor_inceptionv3, metric_fid
    finally:
        # Others look for a torchvision that works.
        for name in stand_ins:
            del sys.modules[name]
    return feature_extractor_inceptionv3, metric_fid


def _empty_torchvision() -> dict[str, Any]:
    """Return modules with the names that torch-fidelity imports of torchvision."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
    names += ("torchvision.transforms.functional",)
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    root, datasets, transforms, functional = modules.values()
    root.datasets, root.transforms = datasets, transforms
    transforms.functional = functional
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(datasets, name, type(name, (), {}))
    return modules


def torch_layers(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return every layer of images by torch-fidelity, with the weights of a file."""
    import torch

    network = _import_torch_fidelity()[0].FeatureExtractorInceptionV3(
        "inception-v3-compat", list(LAYERS), feature_extractor_weights_path=str(path)
    )
    parts = []
    for start in range(0, len(images), 8):
        batch = images[start : start + 8].transpose(0, 3, 1, 2).copy()
        with torch.no_grad():
            parts.append([y.numpy() for y in network(torch.from_numpy(batch))])
    layers = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return dict(zip(LAYERS, layers, strict=True))


def torch_frechet(samples: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the Frechet distance of two sets of features by torch-fidelity."""
    import torch

    metric_fid = _import_torch_fidelity()[1]
    statistics = [
        metric_fid.fid_features_to_statistics(torch.from_numpy(features))
        for features in (samples, reference)
    ]
    found = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return found[metric_fid.KEY_METRIC_FID]


def our_layers(
    inception: Inception, images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    """Return every layer of images by ours."""
    return {name: inception_layer(inception, images, name) for name in LAYERS}


def our_frechet(samples: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the Frechet distance of two sets of features by ours."""
    moments = []
    for features in (samples, reference):
        values = np.asarray(features, np.float64)
        moments += [values.mean(0), np.cov(values, rowvar=False)]
    return frechet_distance(*moments)


def main() -> None:
    """Compute with both, keep torch-fidelity's numbers, write the errors."""
    import torch

    torch.set_num_threads(1)
    golden, features, distances = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        save_torch_weights(path)
        inception = read_torch_inception(path)
        theirs = torch_layers(path, two_images())
        ours = our_layers(inception, two_images())
        for name in LAYERS:
            features[name] = relative_error(ours[name], theirs[name])
            golden[f"layer/{name}"] = kept(theirs[name])
            print(f"layer {name}: relative error {features[name]:.1e}")
        sets = [torch_layers(path, images) for images in image_sets()]
        for name in FRECHET_LAYERS:
            wanted = torch_frechet(*(layers[name] for layers in sets))
            found = our_frechet(
                *(inception_layer(inception, images, name) for images in image_sets())
            )
            distances[name] = {"ours": found, "torch_fidelity": wanted}
            golden[f"frechet/{name}"] = np.float64(wanted)
            print(f"Frechet distance in {name}: {found:.8g}, theirs {wanted:.8g}")
    np.savez_compressed(GOLDEN, **golden)
    write_result(
        "inception_parity",
        "python -m benchmarks.inception_parity",
        {
            "relative_error_of_layers": features,
            "frechet_distance": distances,
            "peers": {name: version(name) for name in ("torch", "torch-fidelity")},
        },
    )


if __name__ == "__main__":
    main()
