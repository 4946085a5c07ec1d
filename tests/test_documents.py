"""What the documents show runs, and what they point to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Each of these takes over five seconds.
SLOW = (
    "compare_scores.py",
    "evaluate_samples.py",
    "networks_and_weights.py",
    "train_on_a_folder.py",
)
# Those that a test of their own runs are not run again.
EXAMPLES = [
    pytest.param(
        path, id=path.name, marks=pytest.mark.slow if path.name in SLOW else ()
    )
    for path in sorted((ROOT / "examples").glob("*.py"))
    if path.name
    not in (
        "closed_form_scores.py",
        "fast_sampling.py",
        "few_calls.py",
        "own_transform.py",
        "teleport_diffusers.py",  # tests/samplers/test_diffusers_parity.py
        "teleport_mixture.py",
    )
]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_the_example_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 26
    printed = run("-c", code)
    assert "network calls: 35 and 23" in printed
    assert 0 < float(printed.split("solver error: ")[1].split()[0]) < 0.2


@pytest.mark.slow
def test_the_example_of_the_closed_forms_runs():
    text = (ROOT / "docs" / "closed_form.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert run("-c", code).count("(4, 8, 8, 1)") == 3


def test_the_example_of_score_augmentation_runs():
    text = (ROOT / "docs" / "score_augmentation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed = "(4, 16, 16, 3) (4, 8) ('identity', 'Brightness', 'Cutout', 'Rot90')"
    assert printed in run("-c", code)


@pytest.mark.slow
def test_the_example_of_sampling_runs():
    text = (ROOT / "docs" / "sampling.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "(4, 8, 8, 1) 8" in run("-c", code)


@pytest.mark.slow
def test_a_transform_of_ones_own_is_learned_and_takes_under_twenty_lines():
    text = (ROOT / "examples" / "own_transform.py").read_text()
    (body,) = re.findall(r"class Negative:\n(.*?)\n\n\n", text, re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) < 20
    printed = run("examples/own_transform.py")
    plain, negative = map(float, re.findall(r"[+-]\d\.\d+", printed))
    assert plain < -0.2 and negative > 0.2


@pytest.mark.slow
def test_a_mixture_explains_more_than_a_gaussian():
    lines = run("examples/closed_form_scores.py").splitlines()
    rows = {line.split()[0]: list(map(float, line.split()[1:])) for line in lines[2:]}
    assert all(a < b for a, b in zip(rows["Gaussian"], rows["mixture"], strict=True))


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_examples_run(path):
    assert run(str(path))


def test_a_teleport_in_the_example_beats_its_control():
    printed = run("examples/teleport_mixture.py")
    pairs = re.findall(r"grid (\S+) \(at sigma \* noise: (\S+)\)", printed)
    assert len(pairs) == 4
    assert all(3 * float(a) < float(b) for a, b in pairs[1:3])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_map_of_the_house_names_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room in ("configs", "diffusion", "samplers", "analysis"):
        for module in (ROOT / room).rglob("*.py"):
            if module.name != "__init__.py":
                assert module.name in text, f"{module} is not in architecture.md"


def test_every_command_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (?:\S+=\S+ )?(\S+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for module in re.findall(r"python -m (\S+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


def test_nothing_tracked_is_large_or_names_a_registry():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    paths = [ROOT / name for name in listed.stdout.split("\n") if name]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    assert sum(sizes) < 10 * 2**20
    constraints = (ROOT / "constraints.txt").read_text()
    assert "://" not in constraints and "--index" not in constraints


@pytest.mark.slow
def test_in_the_example_of_fast_sampling_start_and_linear_part_pay():
    rows = re.findall(
        r"^(.+?)\s+(\d+) calls.*?rms (\S+)", run("examples/fast_sampling.py"), re.M
    )
    found = {name: float(rms) for name, _, rms in rows}
    assert len(found) == 6
    best = found["DPM-Solver-v3, teleport"]
    assert best < 0.7 * found["UniPC-3, teleport"] < found["UniPC-3"] < found["Heun"]


@pytest.mark.slow
def test_in_the_example_of_few_calls_gains_and_the_automatic_skip_pay():
    text = run("examples/few_calls.py")
    rows = re.findall(r"^(.+?)\s+6 calls.*?rms (\S+)", text, re.M)
    found = {name: float(rms) for name, rms in rows}
    assert len(found) == 4 and "auto teleports to" in text
    assert found["the same, auto"] < 0.6 * found["DPM-Solver++ 2M"]
    assert found["residual, measured gains"] < found["residual, Gaussian"]
