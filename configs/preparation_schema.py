"""How images are prepared for training: the options of `diffusion.prepare_data`."""

from dataclasses import dataclass

from configs.errors import require, require_choice

__all__ = ["PreparationConfig"]


@dataclass(frozen=True)
class PreparationConfig:
    """Where the images are, how they are cut, and which are held out."""

    source: str | None = None
    """The images: a folder, zip, npz, idx file or, for cifar10, its tar archive; None
    lets cifar10 and mnist be downloaded by tensorflow-datasets."""
    data_dir: str = "data"
    """Folder to write to: packed sets into DATA_DIR/packed, TFDS ones beside it."""
    name: str | None = None
    """What training will call the set; None takes the preset's or the source's name."""
    image_size: tuple[int, int] | None = None
    """Height and width to resize to; None keeps them (ffhq64 and the like: 64 64)."""
    crop: str | None = None
    """none (the aspect changes), center, adm or pad (adds zeros); None: pad for mnist,
    else center."""
    held_out_fraction: float | None = None
    """Share of the images kept from training, in [0, 1); None: the official test split,
    else what the preset says, else 0."""
    held_out_source: str | None = None
    """Images to hold out instead: another archive of the same kind of images."""
    max_images: int | None = None
    """Keep so many training images, a random subset that contains each smaller one."""
    split_seed: int = 0
    """Seed of the choice of held-out images and of the subset."""
    on_corrupt: str = "fail"
    """Images that cannot be read are named at the end; then fail, or skip them."""
    source_sha256: str | None = None
    """cifar10: expected digest of the tar archive, if it is not the official one."""
    write_tfds: bool = False
    """Write a TFDS directory of the packed images too; always done for ffhq64 and
    afhqv2_64. (The official cifar10 and mnist are one before they are packed, but not
    cifar10 from a zip or folder.)"""

    def __post_init__(self) -> None:
        """Check the ranges."""
        size = self.image_size
        require(
            size is None or min(size) > 0,
            "image_size",
            size,
            "two integers > 0, height and width",
        )
        if self.crop is not None:
            require_choice("crop", self.crop, ("none", "center", "adm", "pad"))
        fraction = self.held_out_fraction
        require(
            fraction is None or 0 <= fraction < 1,
            "held_out_fraction",
            fraction,
            "in [0, 1)",
        )
        require(
            fraction is None or self.held_out_source is None,
            "held_out_fraction",
            fraction,
            "left out when held_out_source is given",
        )
        require(
            self.max_images is None or self.max_images > 0,
            "max_images",
            self.max_images,
            "> 0",
        )
        require(self.split_seed >= 0, "split_seed", self.split_seed, ">= 0")
        require_choice("on_corrupt", self.on_corrupt, ("fail", "skip"))
