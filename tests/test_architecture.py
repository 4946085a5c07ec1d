"""The house: who imports whom, and that every public name says what it is."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "diffusion", "samplers", "analysis")
# Within diffusion: from the noun everything hangs on to what uses it all.
FORBIDDEN_WITHIN = {
    "diffusion.denoiser": ("diffusion.",),
    "diffusion.closed_form": (
        "diffusion.neural",
        "diffusion.loss",
        "diffusion.training",
    ),
    "diffusion.neural": ("diffusion.loss", "diffusion.training", "diffusion.networks"),
    "diffusion.loss": ("diffusion.training", "diffusion.networks", "diffusion.neural"),
    "diffusion.networks": ("diffusion.training", "diffusion.data", "diffusion.loss"),
    "diffusion.data": ("diffusion.training", "diffusion.networks", "diffusion.neural"),
}
ENTRY_MODULES = (
    "diffusion.fit_closed_form",
    "diffusion.import_checkpoint",
    "diffusion.posthoc_ema",
    "diffusion.prepare_data",
    "diffusion.train",
    "samplers.estimate_statistics",
    "samplers.generate",
    "samplers.tune",
    "analysis.augmentation_study",
    "analysis.autoencoder_study",
    "analysis.compare",
    "analysis.demo",
    "analysis.evaluate",
    "analysis.import_inception",
    "analysis.kernel_study",
)
SOLVERS = tuple(
    f"samplers.{name}"
    for name in (
        "adaptive",
        "dpm_solver_pp",
        "dpm_solver_v3",
        "euler",
        "heun",
        "langevin",
        "residual_exponential",
        "stochastic_heun",
        "unipc",
    )
)


def modules() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def starts_with(name: str, prefixes: tuple[str, ...]) -> bool:
    return any((name + ".").startswith(p.rstrip(".") + ".") for p in prefixes)


MODULES = modules()


def test_imports_go_one_way():
    for name, path in MODULES.items():
        above = ROOMS[ROOMS.index(name.split(".")[0]) + 1 :]
        for imported in imports(path):
            assert not starts_with(imported, above), f"{name} imports {imported}"


def test_configs_import_only_the_standard_library():
    for name, path in MODULES.items():
        if name.split(".")[0] == "configs":
            for imported in imports(path):
                top = imported.split(".")[0]
                assert top in sys.stdlib_module_names or top == "configs", (
                    f"{name} imports {imported}"
                )


def test_imports_within_diffusion_go_one_way():
    for module, forbidden in FORBIDDEN_WITHIN.items():
        for name, path in MODULES.items():
            if starts_with(name, (module,)):
                for imported in imports(path):
                    assert not starts_with(imported, forbidden), (
                        f"{name} imports {imported}"
                    )


def test_solvers_never_import_each_other():
    for name in SOLVERS:
        others = tuple(other for other in SOLVERS if other != name)
        for imported in imports(MODULES[name]):
            assert not starts_with(imported, others), f"{name} imports {imported}"


def test_samplers_never_import_networks():
    for name, path in MODULES.items():
        if name.startswith("samplers"):
            for imported in imports(path):
                assert not starts_with(imported, ("diffusion.networks",)), name


def test_nobody_imports_an_entry_module():
    for name, path in MODULES.items():
        for imported in imports(path):
            assert not starts_with(imported, ENTRY_MODULES), (
                f"{name} imports {imported}"
            )


def test_nothing_imports_torch_or_tensorflow_and_only_prepare_imports_tfds():
    for name, path in MODULES.items():
        for imported in imports(path):
            assert imported.split(".")[0] not in ("torch", "tensorflow"), name
            if imported.split(".")[0] == "tensorflow_datasets":
                assert name.startswith("diffusion.data.prepare"), name


def test_no_rooms_for_leftovers():
    for path in MODULES.values():
        assert path.stem not in ("utils", "common", "base", "registry", "trainer")
        assert path.parent.name != "core"


def test_files_stay_readable():
    for name, path in MODULES.items():
        limit = 500 if name == "configs.schema" else 420
        assert len(path.read_text().splitlines()) <= limit, f"{name}: split it by noun"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__, name
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if callable(value) and getattr(value, "__module__", "").startswith(ROOMS):
            assert value.__doc__, f"{name}.{public}"


@pytest.mark.parametrize("name", ENTRY_MODULES)
def test_entry_modules_parse_and_call_and_nothing_else(name):
    lines = MODULES[name].read_text().splitlines()
    assert len(lines) <= 120, f"{name} does more than parse and call"


def test_entry_modules_import_neither_tensorflow_nor_torch():
    # One process for all of them: with everything that they import inside functions.
    program = "\n".join(
        [
            "import ast, importlib, sys",
            *(f"import {name}" for name in ENTRY_MODULES),
            "import diffusion.training, samplers.generation, diffusion.data.prepare",
            "import diffusion.training.reconstruction",
            "import diffusion.training.noise_suggestion",
            "import analysis.run_report, analysis.comparison.report",
            "loaded = {m.split('.')[0] for m in sys.modules}",
            "bad = loaded & {'tensorflow', 'torch', 'tensorflow_datasets'}",
            "assert not bad, bad",
        ]
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
