"""The names of the files in a run folder that more than one room reads or writes."""

from __future__ import annotations

NAME = "report.html"
EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
CAPTIONS, RETRIEVAL = "validation_captions.jsonl", "retrieval.json"
MOST_RETRIEVED = 32  # rows and columns of the matrix
