"""What is measured on every intact checkpoint of a run."""

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from configs.errors import InputError

__all__ = ["CheckpointMeasures", "measure_checkpoints"]

Model = TypeVar("Model")
Measure = TypeVar("Measure")


class CheckpointMeasures(NamedTuple, Generic[Measure]):
    """Measures by checkpoint.

    Attributes:
        found: By step, in the order of the steps.
        skipped: Steps on the disk that could not be loaded.
    """

    found: dict[int, Measure]
    skipped: tuple[int, ...]


def measure_checkpoints(
    steps: Iterable[int],
    load: Callable[[int], Model],
    measure: Callable[[int, Model], Measure],
    *,
    after_skip: Callable[[], object] | None = None,
) -> CheckpointMeasures[Measure]:
    """Load and measure one checkpoint after another; damaged ones are left out.

    Args:
        steps: Checkpoints to take.
        load: Returns the model of a step; raises `InputError` if it is damaged.
        measure: Returns what is wanted of a step and its model.
        after_skip: Called after a checkpoint that could not be loaded.

    Returns:
        The measures, and the steps that were left out.

    Raises:
        InputError: If no checkpoint could be loaded: what was wrong with the first.
    """
    found: dict[int, Measure] = {}
    errors: dict[int, InputError] = {}
    for step in steps:
        try:
            model = load(step)
        except InputError as error:
            errors[step] = error
            if after_skip is not None:
                after_skip()
            continue
        found[step] = measure(step, model)
    if errors and not found:
        raise next(iter(errors.values()))
    return CheckpointMeasures(found, tuple(errors))
