"""Import Inception weights: ``python -m analysis.import_inception FILE --out PATH``.

FILE is torch-fidelity's or pytorch-fid's ``.pth``; nothing in it is executed, and
nothing is downloaded.
"""

import sys
from dataclasses import dataclass

from diffusion.command_line import exit_on_error, parse_options, split_positional

__all__ = ["main"]

_PROGRAM = "python -m analysis.import_inception"


@dataclass(frozen=True)
class Options:
    """Everything the command takes after the file."""

    out: str = "inception.npz"
    """File to write; analysis.evaluate reads it."""


def main() -> None:
    """Parse the command line and import."""
    path, rest = split_positional(
        sys.argv[1:],
        "the file",
        f"{_PROGRAM} weights-inception-2015-12-05-6726825d.pth --out inception.npz",
    )
    options = parse_options(
        Options(),
        rest,
        program=f"{_PROGRAM} {path or 'FILE'}",
        description="Import the weights of the Inception network that FID is defined "
        "with, from torch-fidelity's or pytorch-fid's .pth file. Nothing in it is "
        "executed.",
    )
    # Imported here: a wrong command line should not wait for the libraries.
    import jax

    from analysis.metrics.inception import save_inception
    from analysis.metrics.inception_weights import read_torch_inception

    inception = read_torch_inception(path or "")
    save_inception(options.out, inception)
    leaves = jax.tree.leaves(inception.params)
    count = sum(leaf.size for leaf in leaves)
    print(f"read {len(leaves)} tensors, {count:,} numbers, from {path}")
    print(f"sha256 {inception.digest}")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    exit_on_error(main)
