"""The augmentation studies of docs/score_augmentation.md, and their figures kept.

Command: python -m benchmarks.augmentation_study glyphs --workdir DIR
         python -m benchmarks.augmentation_study cifar10_5k --workdir DIR \\
             --data-dir DATA

DATA is where ``diffusion.prepare_data cifar10_5k`` has packed the lossless images.  An
interrupted study goes on with the same command.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, write_result
from diffusion.training.log import read_metrics

STUDIES = {
    "glyphs": "glyphs --arms none nla score score=rot90 score-blind=rot90 "
    "--background True",
    "cifar10_5k": "cifar10_5k:cpu --arms none nla score "
    "--augmentation.transforms scoreaug-linear --training.num-steps 500 "
    "--training.log-every-steps 250 --training.checkpoint-every-steps 250 "
    "--training.checkpoint-every-seconds 1e9 --num-samples 300",
}


def figures_of(folder: Path) -> dict[str, Any]:
    """Return the rows of a study, its curves, and how long its training took."""
    values = json.loads((folder / "study.json").read_text())
    seconds = {
        path.parent.name: round(read_metrics(path.parent)[-1]["seconds"], 1)
        for path in sorted(folder.glob("*/metrics.jsonl"))
    }
    curves = {
        arm: {
            "steps": runs[0]["steps"],
            "sigmas": runs[0]["sigmas"],
            "held_out_by_seed_step_sigma": _rounded([r["held_out"] for r in runs]),
            "training_by_seed_step_sigma": _rounded([r["training"] for r in runs]),
            "equivariance_error": _rounded([r["equivariance"] for r in runs]),
        }
        for arm, runs in values["runs"].items()
    }
    return {
        "summary": values["summary"],
        "arms_with_95_percent_intervals": _rounded(values["arms"]),
        "curves": curves,
        "training_seconds": seconds,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--data-dir", default="data")
    options = parser.parse_args()
    line = f"analysis.augmentation_study {STUDIES[options.study]}"
    places = f"--workdir {options.workdir} --data.data-dir {options.data_dir}"
    subprocess.run([sys.executable, "-m", *line.split(), *places.split()], check=True)
    name = f"augmentation_{options.study}"
    write_result(name, f"python -m {line}", figures_of(options.workdir))
    shutil.copyfile(options.workdir / "study.png", RESULTS / "figures" / f"{name}.png")


if __name__ == "__main__":
    main()
