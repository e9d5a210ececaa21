"""Which column of a table is the id, the text, the slide, the split: by the names that hospitals and tools use.

Names are those of Chinese pathology systems, HistGen (id, report, image_path), REG (id, report), STAMP (PATIENT,
FILENAME), CLAM (case_id, slide_id), HISTAI (case_mapping, conclusion) and TCGA.
To read another tool's tables, add its names here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError

ROLES = ("id", "text", "slide", "split")
_MAX_LISTED = 20  # columns that a message lists
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|【[^【】]*】")
_NOT_NAME = re.compile(r"[\W_]+")

# Of each role the names in ranks: a column of an earlier rank is preferred, two of one rank are ambiguous. Written as
# `simple_name` returns them. A patient is an id only if nothing names the case, the microscopy a text only if there is
# no diagnosis; HISTAI's `diagnosis` is the clinical one. Running numbers and gross descriptions are none of them.
_NAMES: dict[str, tuple[str, ...]] = {
    "id": (
        "病理号 病理编号 病理id 病理检查号 病理检查编号 病例号 病例编号 病例id case caseid casenumber caseno "
        "casename casesubmitterid accession accessionnumber accessionno pathologyid pathologynumber pathologyno",
        "id 编号 标本号 标本编号 标本id 样本号 样本编号 样本id specimen specimenid specimennumber sample "
        "sampleid studyid submitterid barcode",
        "住院号 住院编号 病案号 门诊号 患者id 患者号 患者编号 病人id 病人号 病人编号 登记号 检查号 patient "
        "patientid patientnumber mrn bcrpatientbarcode",
    ),
    "text": (
        "病理诊断 病理诊断结果 病理诊断意见 病理诊断结论 病理结果 病理结论 最终诊断 最后诊断 pathologydiagnosis "
        "pathologicdiagnosis pathologicaldiagnosis pathologicaldiagnoses histologicaldiagnosis "
        "histopathologicaldiagnosis finaldiagnosis conclusion",
        "诊断 诊断结果 诊断意见 诊断结论 诊断描述 diagnosis diagnoses diagnosistext",
        "病理报告 病理报告内容 病理描述 报告 报告内容 报告文本 报告结果 报告正文 report reports reporttext "
        "pathologyreport pathreport text caption captions description",
        "镜下所见 镜下描述 镜下 镜检 镜检所见 显微镜所见 光镜所见 microscopic microscopicdescription microscopy "
        "microscopicfindings histologicaldescription microprotocol",
    ),
    "slide": (
        "切片号 切片编号 切片id 切片名 切片名称 切片文件 切片文件名 切片 玻片号 slide slides slideid slideids "
        "slidename slidefile slidefilename wsi wsis wsiid wsiname wsifile wsifilename casemapping",
        "文件名 文件名称 文件 图像文件 图像文件名 图像名 图像名称 图像 图像路径 文件路径 扫描号 扫描文件 "
        "扫描文件名 filename file files filepath image images imageid imagename imagefile imagepath path "
        "featurefile featurepath h5file ptfile",
    ),
    "split": (
        "split 划分 数据划分 子集 数据子集 数据集划分 subset partition phase",
    ),
}
_RANK_OF = {role: {name: rank for rank, names in enumerate(ranks) for name in names.split()}
            for role, ranks in _NAMES.items()}

_CASE_OR_PATIENT = (0, 2)  # ranks of an id
_UNKNOWN = 99  # rank of a name that is none of a role


@dataclass(frozen=True)
class Columns:
    """The name of the column of each role in a table, None for what the table does not have.

    Attributes:
        id_is_slide: Whether there are no cases: `id` is a column of slides, and each of them is a case.
    """

    id: str
    text: str
    slide: str | None = None
    split: str | None = None
    id_is_slide: bool = False

    @property
    def used(self) -> set[str]:
        """The columns that have a role."""
        return {self.id, self.text} | {column for column in (self.slide, self.split) if column}

    def __str__(self) -> str:
        named = ((role, getattr(self, role)) for role in ROLES)
        return ", ".join(f"{role} = {column}" for role, column in named if column)


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a user has named (`data.id_column` ...); None finds a column by its name."""

    id: str | None = None
    text: str | None = None
    slide: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, options: Any) -> ColumnNames:
        """The names in the fields id_column, text_column ... of a config or of options."""
        return cls(*(getattr(options, f"{role}_column") for role in ROLES))


def find_columns(columns: Sequence[str], path: Path, named: ColumnNames | None = None) -> Columns:
    """Say which column has which role; those that are named win.

    Args:
        columns: Names of all columns of the table.
        path: Of the table, for messages.
        named: The columns that the user has named, if any.

    Raises:
        UserError: Listing the columns: a named column is absent, no column is an id or a text, or several may be.
    """
    found = {role: _column_of(role, columns, path, named and getattr(named, role)) for role in ROLES}
    id_is_slide = found["id"] is None or found["id"] == found["slide"]
    if id_is_slide:
        found["id"], found["slide"] = found["slide"], None
    for role in ("id", "text"):
        if found[role] is None:
            raise UserError(path, f"no column is known as the {role}; its columns: {list_columns(columns)}",
                            f"name it with data.{role}_column (on command lines --{role}_column)")
    return Columns(**found, id_is_slide=id_is_slide)


def _column_of(role: str, columns: Sequence[str], path: Path, named: str | None) -> str | None:
    if named is not None:
        return _named_column(role, columns, path, named)
    best = _best_ranked(role, columns)
    if len(best) > 1:
        raise UserError(path, f"{' and '.join(map(repr, best))} may both be the {role}",
                        f"say which with data.{role}_column (on command lines --{role}_column)")
    return best[0] if best else None


def _best_ranked(role: str, columns: Sequence[str]) -> list[str]:
    rank_of = {column: _RANK_OF[role].get(simple_name(column), _UNKNOWN) for column in columns}
    best_rank = min(rank_of.values(), default=_UNKNOWN)
    return [column for column, rank in rank_of.items() if rank == best_rank != _UNKNOWN]


def _named_column(role: str, columns: Sequence[str], path: Path, named: str) -> str:
    if named in columns:
        return named
    alike = [column for column in columns if simple_name(column) == simple_name(named)]
    if len(alike) == 1:
        return alike[0]
    raise UserError(path, f"has no column {named!r}; its columns: {list_columns(columns)}",
                    f"correct data.{role}_column (on command lines --{role}_column)")


def case_columns(columns: Iterable[str]) -> list[str]:
    """Those columns that name a case or a patient."""
    return [column for column in columns if _RANK_OF["id"].get(simple_name(column)) in _CASE_OR_PATIENT]


def simple_name(column: str) -> str:
    """A column's name without what differs between tables: case, width, spaces, punctuation, remarks in brackets."""
    name = unicodedata.normalize("NFKC", column).casefold()
    return _NOT_NAME.sub("", _IN_BRACKETS.sub("", name)) or _NOT_NAME.sub("", name)


def count_known(cells: Iterable[str]) -> int:
    """How many different roles the cells of a row name, if it is a header."""
    names = {simple_name(cell) for cell in cells}
    return sum(bool(names & ranks.keys()) for ranks in _RANK_OF.values())


def list_columns(columns: Sequence[str]) -> str:
    """The names of columns for a message."""
    more = f" and {len(columns) - _MAX_LISTED} more" if len(columns) > _MAX_LISTED else ""
    return ", ".join(columns[:_MAX_LISTED]) + more
