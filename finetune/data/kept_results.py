"""What takes seconds for the texts of a large data set, and depends on them alone, is found once and kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..common.log import logger
from .summed_json import read_summed, why_unread, write_summed

_MADE_FOR = "texts 1"
_MAX_KEPT = 100  # results in a file: each split and each change of the labels adds one


class KeptResults:
    """A file of results, a `summed_json`, each under a key that says what it was found from.

    Nothing in the file is believed unchecked, and one that cannot be read or written only costs time.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def beside(cls, header_cache: Path | None) -> KeptResults:
        """Those of the folder whose headers are in `header_cache`; None keeps nothing."""
        return cls(header_cache and header_cache.with_name(f"{header_cache.stem}_texts.json"))

    def get(self, key: str, find: Callable[[], Any], is_valid: Callable[[Any], bool]) -> Any:
        """The result under a key, found now if it is not there.

        Args:
            key: Of what it is found from, see `key_of`.
            find: Finds it.
            is_valid: Whether what stands in the file can be such a result.
        """
        results = self._read()
        if key not in results or not is_valid(results[key]):
            results[key] = find()
            self._write(dict(list(results.items())[-_MAX_KEPT:]))
        return results[key]

    def _read(self) -> dict[str, Any]:
        try:
            results = read_summed(self._path, _MADE_FOR) if self._path else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s): the texts are compared again", self._path, why_unread(error))
            return {}
        return results if isinstance(results, dict) else {}

    def _write(self, results: dict[str, Any]) -> None:
        # a start that ends in an error makes no folder; the first run that fills the slide cache does
        if self._path is None or not self._path.parent.exists():
            return
        try:
            write_summed(self._path, _MADE_FOR, results)
        except OSError as error:
            logger.warning("%s cannot be written (%s): the next run compares the texts again", self._path,
                           error.strerror)


def key_of(name: str, *lists_of_texts: Iterable[str]) -> str:
    """The key of what is found from lists of texts. name: Of the result, with a version of how it is found."""
    digest = hashlib.sha256()
    for texts in lists_of_texts:
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(b"end of a list")
    return f"{name} {digest.hexdigest()}"
