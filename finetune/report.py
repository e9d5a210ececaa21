"""Rebuild report.html of a run: python -m finetune.report checkpoints"""

from .common.errors import run_script
from .pages.run_report import main

if __name__ == "__main__":
    run_script(main)
