"""What every benchmark writes: figures with date, machine, versions and command."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from diffusion.atomic import write_json
from diffusion.versions import versions

RESULTS = Path(__file__).resolve().parent / "results"


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, system and, if there are any, accelerators."""
    model = platform.processor() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        **_accelerators(),
    }


def _accelerators() -> dict[str, Any]:
    """Return the devices that JAX computes on, unless they are the processor's."""
    import jax

    if jax.default_backend() == "cpu":
        return {}
    devices = jax.devices()
    return {"accelerator": devices[0].device_kind, "accelerators": len(devices)}


def write_result(name: str, command: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json`` and return its path."""
    values = {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": describe_machine(),
        "versions": versions(),
        "figures": figures,
    }
    path = RESULTS / f"{name}.json"
    write_json(path, values)
    print(path)
    return path
