"""Files written with plain h5py and json, and the check of a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from finetune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block raises a `UserError` whose one printable line holds all `words`."""
    with pytest.raises(UserError) as caught:
        yield
    line = caught.value.line()
    assert line.isprintable() and len(line) <= 300, line
    assert line.count("; ") >= 1, f"no fix in: {line}"
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"


def random_tiles(count: int, width: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


def write_h5(path: Path, data: np.ndarray, key: str = "embeddings", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=data, **options)
    return path


def write_slides(folder: Path, counts: dict[str, int], width: int = 6) -> Path:
    """`folder`/ID.h5 with the given number of random tiles for each id."""
    for seed, (slide_id, count) in enumerate(counts.items()):
        write_h5(folder / f"{slide_id}.h5", random_tiles(count, width, seed))
    return folder


def write_json(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def paths_of(files: dict[str, list[str]], ids: Iterable[str] | None = None) -> list[str]:
    """The paths of the ids, or of all, in what `find_files` found."""
    return [path for i in (files if ids is None else ids) for path in files[i]]
