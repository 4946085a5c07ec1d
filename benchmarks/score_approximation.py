"""A run's comparison with closed forms, beside the published one.

Command: .venv/bin/python -m analysis.compare WORKDIR
         .venv/bin/python -m benchmarks.score_approximation WORKDIR
Reads WORKDIR/comparison and writes the unexplained fractions at the published noise
levels, their course over training, the errors of finished samples, and whether each
published statement holds; prints the tables of docs/score_approximation.md.

Published: Wang & Vastola, arXiv 2412.09726 and the tables with its code, for EDM's
CIFAR-10 network of 56 million parameters, on noised training images.
"""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, write_result

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PUBLISHED = {
    "isotropic": (0.986, 0.953, 0.843, 0.469, 0.176, 0.048, 5.6e-3, 8.3e-4),
    "Gaussian": (0.265, 0.182, 0.108, 0.0412, 0.0157, 0.0043, 3.5e-4, 3.1e-5),
    "mixture 10": (0.249, 0.172, 0.103, 0.0396, 0.0149, 0.0040, 2.8e-4, 1.7e-5),
    "empirical": (0.370, 0.214, 0.121, 0.0538, 0.0278, 0.0140, 2.1e-3, 2.4e-5),
}
# Least unexplained fraction of the Gaussian over training, the images seen by then in
# thousands, and the fraction at the end of that run.
PUBLISHED_TURNS = {
    0.1: (0.11, 301, 0.17),
    0.5: (0.023, 301, 0.034),
    1.0: (0.0083, 301, 0.012),
    2.0: (2.2e-3, 602, 3.0e-3),
}
PUBLISHED_FINAL = {"Gaussian": 0.0130, "class mixture": 0.0118, "empirical": 0.0473}
FIGURES = ("unexplained_score", "training")


def main() -> None:
    """Read a comparison and write the table beside the published one."""
    workdir = Path(sys.argv[1])
    folder = workdir / "comparison"
    scores, training = _rows(folder / "comparison.csv"), _rows(folder / "training.csv")
    record = json.loads((workdir / "config.json").read_text())
    figures = {
        "network": {
            "images": record["config"]["data"]["name"],
            "training_images": record["data"]["num_training"],
            "trained_on_images": max(int(row["num_images"]) for row in training),
        },
        "probes": max(int(row["num_probes"]) for row in scores),
        "unexplained": {
            probes: _fractions(scores, probes)
            for probes in dict.fromkeys(row["probes"] for row in scores)
        },
        "published_unexplained": {
            name: dict(zip(map(str, SIGMAS), values, strict=True))
            for name, values in PUBLISHED.items()
        },
        "gaussian_over_training": _course(training),
        "final_squared_error": _finals(folder / "trajectories.csv"),
        "published_final_squared_error": PUBLISHED_FINAL,
    }
    figures["statements"] = _statements(figures)
    for name in FIGURES:
        source = folder / "figures" / f"{name}.png"
        shutil.copy(source, RESULTS / "figures" / f"score_approximation_{name}.png")
    write_result(
        "score_approximation",
        "python -m benchmarks.score_approximation WORKDIR",
        figures,
    )
    _print_tables(figures)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _fractions(rows: list[dict[str, str]], probes: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["probes"] == probes and float(row["sigma"]) in SIGMAS:
            found.setdefault(row["candidate"], {})[row["sigma"]] = (
                1 - float(row["score"]),
                float(row["score_standard_error"]),
            )
    return found


def _course(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Return the Gaussian's unexplained fraction over training, by noise level."""
    course: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["candidate"] == "Gaussian":
            unexplained = 1 - float(row["score"])
            course.setdefault(row["sigma"], {})[row["num_images"]] = unexplained
    return course


def _finals(path: Path) -> dict[str, float]:
    """Return the mean squared error per value where the grids end."""
    last: dict[str, tuple[float, float]] = {}
    for row in _rows(path):
        level = float(row["sigma"])
        if level <= last.get(row["candidate"], (level, 0.0))[0]:
            last[row["candidate"]] = (level, float(row["x_mean"]))
    return {name: error for name, (_, error) in last.items()}


def _statements(figures: dict[str, Any]) -> dict[str, Any]:
    """Say which of the published statements hold here."""
    held_out = figures["unexplained"].get("held-out", {})
    training = figures["unexplained"]["training"]
    low = [s for s in map(str, SIGMAS) if float(s) <= 5]
    high = [s for s in map(str, SIGMAS) if float(s) >= 5]

    def where(test: Callable[[str], bool], levels: list[str]) -> dict[str, bool]:
        return {sigma: test(sigma) for sigma in levels}

    return {
        "Gaussian unexplained below 1 %": where(
            lambda s: training["Gaussian"][s][0] < 0.01, list(map(str, SIGMAS))
        ),
        "Gaussian beats the training set, held-out probes": where(
            lambda s: held_out["Gaussian"][s][0] < held_out["empirical"][s][0], low
        ),
        "rank 128 within 5 % of all directions": where(
            lambda s: (
                training["Gaussian rank 128"][s][0] < 1.05 * training["Gaussian"][s][0]
            ),
            high,
        ),
        "Gaussian falls, then rises over training": {
            sigma: min(course.values()) < list(course.values())[-1]
            for sigma, course in figures["gaussian_over_training"].items()
        },
    }


def _print_tables(figures: dict[str, Any]) -> None:
    print("| candidate | " + " | ".join(f"{s:g}" for s in SIGMAS) + " |")
    print("|---" * (len(SIGMAS) + 1) + "|")
    for probes, table in figures["unexplained"].items():
        for name, cells in table.items():
            values = " | ".join(f"{cells[str(s)][0]:.2g}" for s in SIGMAS)
            print(f"| {name}, {probes} | {values} |")
    for name, values in PUBLISHED.items():
        cells = " | ".join(f"{value:.2g}" for value in values)
        print(f"| {name}, published | {cells} |")
    print(json.dumps(figures["statements"], indent=1))
    print(json.dumps(figures["final_squared_error"], indent=1))
    for sigma, course in figures["gaussian_over_training"].items():
        print(sigma, {images: round(value, 4) for images, value in course.items()})


if __name__ == "__main__":
    main()
