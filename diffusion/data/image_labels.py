"""Classes of image files: EDM's ``dataset.json``, or the folders that they lie in."""

import json
import re
import sys
from typing import Any

import numpy as np

from configs.errors import InputError
from diffusion.data.limits import place, reading

__all__ = ["LABEL_FILE", "folder_labels", "json_labels"]

LABEL_FILE = "dataset.json"
_EDM_NAME = re.compile(r"\d{5}/img\d{8}\.\w+")
_MAX_CLASS = 2**31 - 1


def json_labels(text: bytes, names: list[str], path: str) -> np.ndarray | None:
    """Return (N,) int64 classes from the text of dataset.json; None for null labels.

    Labels of images that are not there are passed over, as EDM's reader does: a part of
    a set may keep the whole file.  A line on standard error says so.

    Args:
        text: The file's bytes.
        names: The images.
        path: The archive, for messages.

    Raises:
        InputError: If the labels are of another form, or an image has none.
    """
    where = place(path, LABEL_FILE)
    with reading(where):
        content: Any = json.loads(text)
    if not isinstance(content, dict):
        raise InputError(f'{where} must be {{"labels": [[name, class], ...]}}')
    labels = content.get("labels")
    if labels is None:
        return None
    classes = _classes_by_name(labels, where)
    for name in names:
        if name not in classes:
            raise InputError(
                f"{where} has no label for image {name!r}; label every image, "
                "or none (null)"
            )
    unused = sorted(classes.keys() - set(names))
    if unused:
        print(
            f"warning: {where} labels {len(unused)} images that are not there, such as "
            f"{unused[0]!r:.80}; these labels are left out",
            file=sys.stderr,
        )
    return np.array([classes[name] for name in names], np.int64)


def _classes_by_name(labels: Any, where: str) -> dict[str, int]:
    """Return the class of each name, from pairs or a dict as JSON gives them."""
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    if not isinstance(pairs, list):
        raise InputError(f"{where}: labels must be a list of [name, class], or null")
    classes: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise InputError(f"{where}: label {pair!r:.80} must be [name, class]")
        name, label = pair
        if not isinstance(name, str) or name in classes:
            raise InputError(
                f"{where} labels {name!r:.80}, which is no name or occurs twice; "
                "give one label for each image"
            )
        if type(label) is not int or not 0 <= label <= _MAX_CLASS:
            raise InputError(
                f"{where} labels {name!r:.80} with {label!r:.80}; labels must be "
                f"integers from 0 to {_MAX_CLASS}: number the classes"
            )
        classes[name] = label
    return classes


def folder_labels(names: list[str]) -> np.ndarray | None:
    """Return (N,) int64 classes from first sub-folders, None where there are none.

    EDM's numbered folders are no classes.
    """
    if not all("/" in name for name in names):
        return None
    if all(_EDM_NAME.fullmatch(name) for name in names):
        return None
    folders = [name.split("/")[0] for name in names]
    classes = {folder: number for number, folder in enumerate(sorted(set(folders)))}
    return np.array([classes[folder] for folder in folders], np.int64)
