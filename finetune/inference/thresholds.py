"""Below which probability captions and fields are withheld: --abstain_below. No torch: --help is quick."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import UserError
from ..config.values import set_field, setting

FLAG = "--abstain_below"


@dataclass
class _Probability:
    """A number with its limits, to be read as other flags are."""

    value: float = setting(0.0, "", 0, 1)


@dataclass(frozen=True)
class Thresholds:
    """What is less probable is withheld.

    Attributes:
        common: Of captions, and of the fields that have none of their own; 0 withholds none.
        fields: {field: its own}.
    """

    common: float = 0.0
    fields: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Iterable[str]) -> Thresholds:
        """Read `P` and `FIELD=P`, each at most once. Raises UserError."""
        found: dict[str, float] = {}
        for part in parts:
            name, _, number = part.rpartition("=")
            if name in found:
                raise UserError(FLAG, f"has two thresholds {f'of field {name}' if name else 'for all'}",
                                "leave one of them out")
            read = _Probability()
            set_field(read, "value", FLAG.removeprefix("--"), number, FLAG)
            found[name] = read.value
        common = found.pop("", 0.0)
        return cls(common, found)

    def __bool__(self) -> bool:
        """Whether anything is withheld."""
        return self.common > 0 or any(threshold > 0 for threshold in self.fields.values())

    def of_field(self, name: str) -> float:
        """The threshold of a field."""
        return self.fields.get(name, self.common)

    def require_known(self, fields: Container[str] | None) -> None:
        """Raise UserError for the threshold of a field that captions do not have. fields: None for free captions."""
        if fields is None and self.fields:
            raise UserError(FLAG, f"field {next(iter(self.fields))}: only --template and --choices give fields",
                            "add one of them, or give one number")
        for name in self.fields:
            if name not in fields:
                raise UserError(FLAG, f"{name} is not a field of the template", "use the names of its slots")

    def to_json(self) -> Any:
        """What tells these from others; one number as in earlier versions."""
        return [self.common, dict(self.fields)] if self.fields else self.common
