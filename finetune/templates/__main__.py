"""Find the template that the texts of a labels file follow: python -m finetune.templates labels.json -o template.yaml

Writes the fixed text, the slots with all their values, optional parts and conditions, as a file to be edited by hand
and given to `inference.py --template`. Training finds the same template for `--template auto`. The labels are not
changed; texts that labels put on the validation or test side are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import UserError, run_script, say
from ..common.files import expand, write_atomically
from ..config.flags import Parser, add_debug_flag

if TYPE_CHECKING:
    from .search import FoundTemplate
    from .template import Template


def main() -> int:
    """The command line of `python -m finetune.templates`."""
    args = _parser().parse_args()
    output = expand(args.output)
    if output.exists() and not args.overwrite:
        raise UserError(output, "already exists", "choose another -o, or add --overwrite")
    found = _found_in(args.labels, args.encoding)
    is_usable = found.template is not None or (args.anyway and found.candidate)
    if not is_usable:
        raise UserError(args.labels, found.summary(), "caption without a template, write one by hand, or look at the "
                        "best one with --anyway")
    _write(found.candidate, output)
    say(found.summary(), f"written: {output}")
    return 0


def _found_in(labels_file: str, encoding: str | None) -> FoundTemplate:
    """The template of the texts that a labels file has for training."""
    from ..data.labels import load_labels
    from .search import find_template

    labels, problems = load_labels(labels_file, encoding=encoding)
    for_training = [label for label in labels.values() if label.split in (None, "train")]
    found = find_template([text for label in for_training for text in label.texts])
    if problems:
        say(f"{len(problems)} labels without a usable text are left out")
    return found


def _write(template: Template, output: Path) -> None:
    try:
        write_atomically(output, template.to_yaml())
    except OSError as error:
        raise UserError(output, f"cannot be written ({error.strerror})", "choose another -o") from None


def _parser() -> Parser:
    parser = Parser(prog="python -m finetune.templates", description=__doc__)
    parser.add_argument("labels", metavar="LABELS", help="labels as for training: .json, .xlsx, .csv, .tsv or .jsonl")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.yaml", help="the template file to write")
    parser.add_argument("--encoding", metavar="NAME", help="of a text file (default: recognised)")
    parser.add_argument("--anyway", action="store_true",
                        help="write the best template found even if too few texts follow it")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    add_debug_flag(parser)
    return parser


if __name__ == "__main__":
    run_script(main)
