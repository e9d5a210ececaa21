"""Make a labels file of a table of reports: python -m finetune.labels TABLE.xlsx -o labels.json

Picks the diagnosis, drops what a slide cannot show (immunohistochemistry, staging, references to other reports,
recommendations, addenda), masks identifiers, and writes the labels and a Markdown summary of what was done. The table
itself is never changed. Rules find many identifiers, not all: a person must read the labels before they are passed on.
"""

from .common.errors import run_script, say
from .common.log import log_to_console
from .config.flags import Parser, add_debug_flag


def main() -> int:
    """The command line of `python -m finetune.labels`."""
    parser = _parser()
    args = parser.parse_args()
    from .cleaning.run import Options, make_labels, write_rules

    if args.write_rules:
        say(f"written: {write_rules(args.write_rules)}")
        return 0
    if args.table is None or args.output is None:
        parser.error("TABLE and -o are needed")
    log_to_console()
    done = make_labels(Options(
        table=args.table, output=args.output, summary=args.summary, details=args.details, rules=args.rules,
        sections=tuple(args.sections or ()), text_columns=tuple(args.text_column or ()), id_column=args.id_column,
        slide_column=args.slide_column, split_column=args.split_column, encoding=args.encoding,
        embeddings_dir=args.embeddings_dir, case_pattern=args.case_pattern, overwrite=args.overwrite,
        show_identifiers=args.show_identifiers))
    say(f"written: {done.paths.labels} ({done.num_cases} cases; {done.num_left_out} rows or cases left out)",
        f"written: {done.paths.summary}", *([f"written: {done.paths.details}"] if done.paths.details else []))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m finetune.labels", description=__doc__)
    parser.add_argument("table", nargs="?", metavar="TABLE", help=".xlsx, .csv, .tsv, .jsonl or a JSON list of records")
    parser.add_argument("-o", "--output", metavar="labels.json", help="the labels file to write")
    parser.add_argument("--summary", metavar="FILE.md", help="default: as the labels, with .md")
    parser.add_argument("--details", metavar="FILE.jsonl",
                        help="also write, for each row, its text before and after and every piece taken out")
    parser.add_argument("--rules", metavar="FILE.yaml", help="rules in place of the shipped ones; see --write_rules")
    parser.add_argument("--write_rules", metavar="FILE.yaml",
                        help="write a copy of the shipped rules, to change, and stop")
    parser.add_argument("--sections", nargs="+", metavar="NAME",
                        help="sections that become the text, in this order, such as diagnosis microscopic "
                             "(default: keep_sections of the rules)")
    parser.add_argument("--text_column", nargs="+", metavar="NAME", help="columns of text (default: found by name)")
    for role in ("id", "slide", "split"):
        parser.add_argument(f"--{role}_column", metavar="NAME", help=f"column of the {role} (default: found by name)")
    parser.add_argument("--encoding", metavar="NAME", help="of a text file (default: recognised)")
    parser.add_argument("--embeddings_dir", metavar="FOLDER", help="write only cases whose feature files are there")
    parser.add_argument("--case_pattern", metavar="REGEX",
                        help="with --embeddings_dir: finds the id of a case in the names of its files, as "
                             "data.case_pattern")
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")
    parser.add_argument("--show_identifiers", action="store_true",
                        help="show in the summary's examples the identifiers that were taken out")
    add_debug_flag(parser)
    return parser


if __name__ == "__main__":
    run_script(main)
