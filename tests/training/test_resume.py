"""The promise: a run killed at any moment, and killed again when resumed, ends bit-equal to an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from finetune.checkpoints.format import Checkpoint
from finetune.common.errors import UserError
from tests.helpers.files import random_tiles, write_h5
from tests.helpers.kill_runs import MUTATIONS, WIDTH, fingerprint, make_data, train_in

pytestmark = [pytest.mark.full, pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")]
KILLED, INTERRUPTED, TERMINATED = -9, 130, 143
# how often each point is passed in a whole run
PASSED = {"step": 12, "before_write": 10, "mid_write": 10, "before_replace": 14, "after_replace": 14, "before_log": 4,
          "after_log": 4, "validation": 4, "between": 2}
IN_VALIDATION = {"validation": 4, "validated": 8, "captioned": 8, "scored": 4}
IN_CACHE_FILL = {"encoded": 1, "cached": 14, "before_cached": 14}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, the reference of the others."""
    base = tmp_path_factory.mktemp("resume")
    make_data(base)
    assert train_in(base / "whole") == 0
    return base / "whole"


def assert_same_end(whole: Path, folder: Path) -> None:
    assert train_in(folder) == 0
    assert fingerprint(folder) == fingerprint(whole)
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".lock"))


def kill_twice(whole: Path, folder: Path, kill: str, again: str = "step:2") -> None:
    """Killed, resumed and killed again; every file with a final name is complete."""
    assert train_in(folder, kill) == KILLED, f"{kill} was not reached"
    for path in (folder / "run").glob("*.pth"):
        Checkpoint.load(path)
    assert train_in(folder, again) in (KILLED, 0)
    assert_same_end(whole, folder)


def test_A01_files_and_folders_of_others_stay_when_a_run_starts(whole, tmp_path):
    folder = whole.parent / "not_alone"
    (folder / "run" / "x.tmp").mkdir(parents=True)
    mine = [folder / "run" / "x.tmp" / "mine", folder / "run" / "y.tmp", folder / "run" / "last_model.pth.tmp"]
    for path in mine:
        path.write_text("mine", encoding="utf-8")
    assert train_in(folder, "mid_write:2") == KILLED
    assert len(list((folder / "run").glob(".*.tmp"))) == 1, "what the killed run was writing"
    assert train_in(folder) == 0
    assert all(path.read_text(encoding="utf-8") == "mine" for path in mine)
    assert not list((folder / "run").glob(".*.tmp"))


def position(folder: Path) -> tuple[int, int, int]:
    """(epochs finished, steps of the next one, steps) of last_model.pth."""
    progress = Checkpoint.load(folder / "run" / "last_model.pth").progress
    return progress["epoch"], progress["batches_done"], progress["step"]


def random_kill(seed: int) -> tuple[str, str]:
    rng = random.Random(seed)
    first, second = (f"{point}:{rng.randint(1, PASSED[point])}" for point in rng.choices(sorted(PASSED), k=2))
    return first, second


def test_the_uninterrupted_run_is_the_same_twice_and_has_what_makes_resuming_hard(whole):
    assert_same_end(whole, whole.parent / "again")
    last, best = (Checkpoint.load(whole / "run" / n) for n in ("last_model.pth", "best_model.pth"))
    assert last.progress["step"] == 12 and len(list((whole / "run").glob("*.pth"))) == 4
    assert best.progress["epoch"] == 2, "later epochs must be worse, else a forgotten best value changes nothing"
    assert last.scaler["scale"] > 2.0**8, "the loss scale has moved"


@pytest.mark.parametrize("kill", ["step:8", "before_write:5", "mid_write:6", "before_replace:6", "after_replace:9",
                                  "between:2", "finish:1"])
def test_K16_a_run_killed_at_any_point_and_again_ends_bit_equal(whole, kill):
    kill_twice(whole, whole.parent / kill.replace(":", "_"), kill)


def test_K16_a_run_killed_at_a_random_point_ends_bit_equal(whole):
    seed = int(os.environ.get("PRISM_COCA_TEST_SEED", random.randrange(10**6)))
    print(f"PRISM_COCA_TEST_SEED={seed}: {random_kill(seed)}")
    kill_twice(whole, whole.parent / "random", *random_kill(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_K16_fifty_random_kills(whole, seed):
    kill_twice(whole, whole.parent / f"random_{seed}", *random_kill(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_K16_a_hundred_kills_in_cache_fill_and_validation(whole, seed):
    """Five in each run: two while the cache is filled, three in validations."""
    folder, rng = whole.parent / f"phase_{seed}", random.Random(seed)
    for points, most in ((IN_CACHE_FILL, 4), (IN_CACHE_FILL, 4), (IN_VALIDATION, 2), (IN_VALIDATION, 2), (IN_VALIDATION, 2)):
        point = rng.choice(sorted(points))
        kill = f"{point}:{rng.randint(1, min(most, points[point]))}"
        assert train_in(folder, kill) == KILLED, f"{kill} was not reached"
    assert_same_end(whole, folder)


def test_K16_a_kill_in_a_validation_costs_no_step(whole):
    folder = whole.parent / "no_step_lost"
    assert train_in(folder, "captioned:3") == KILLED
    assert position(folder) == (1, 3, 6)
    assert train_in(folder, "step:1") == KILLED, "the second epoch is validated, the first step is of the third one"
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == [3, 6] and position(folder) == (2, 0, 6)
    assert_same_end(whole, folder)


@pytest.mark.parametrize(("kill", "at"), [("captioned:3:SIGTERM", (1, 3, 6)), ("validated:8:SIGINT", (3, 3, 12)),
                                          ("cached:5:SIGTERM", None), ("finish:1:SIGTERM", (4, 0, 12))])
def test_K17_a_signal_in_a_long_phase_ends_it_at_once_and_the_run_resumes_bit_equal(whole, kill, at):
    folder = whole.parent / kill.replace(":", "_")
    assert train_in(folder, kill) == (INTERRUPTED if kill.endswith("INT") else TERMINATED)
    if at is None:
        assert not list((folder / "run").glob("*.pth"))
    else:
        assert position(folder) == at
    assert not list(folder.rglob(".lock")) and not list(folder.rglob("*.tmp"))
    assert_same_end(whole, folder)


def test_K16_two_kills_in_one_epoch_and_one_at_its_end(whole):
    folder = whole.parent / "three"
    for kill in ("step:4", "step:1", "after_log:1"):
        assert train_in(folder, kill) == KILLED
    assert_same_end(whole, folder)


@pytest.mark.parametrize("kill", ["start:1:SIGINT", "step:5:SIGINT", "validation:2:SIGTERM", "mid_write:4:SIGTERM",
                                  "before_replace:4:SIGINT"])
def test_K17_a_signal_saves_and_exits_in_time_and_the_run_resumes_bit_equal(whole, kill):
    folder, started = whole.parent / kill.replace(":", "_"), time.monotonic()
    assert train_in(folder, kill) == (INTERRUPTED if kill.endswith("INT") else TERMINATED)
    assert time.monotonic() - started < 30
    Checkpoint.load(folder / "run" / "last_model.pth")
    assert_same_end(whole, folder)


@pytest.mark.parametrize("cached", ["data.latents_cache=auto", "data.latents_cache=null"])
def test_A08_a_run_goes_on_with_copies_of_its_files_but_not_with_others_of_the_same_shape(whole, cached):
    more, name = [cached], cached[-4:]
    if cached.endswith("null"):
        more.append("model.probe_tokens=0")
    for folder in ("same", "other"):
        shutil.copytree(whole.parent / "h5", whole.parent / f"{folder}_{name}")  # with times of their own
    one = whole.parent / f"other_{name}" / "s3.h5"
    write_h5(one, random_tiles(2, WIDTH, seed=99))
    folder, undisturbed = whole.parent / f"killed_{name}", whole.parent / f"undisturbed_{name}"
    assert train_in(folder, "step:8", "", *more) == KILLED
    assert train_in(folder, "", "", *more, f"data.embeddings_dir=../other_{name}") == 2
    log = (folder / "stderr.txt").read_text(encoding="utf-8")
    assert "other tiles of 1 of 14 slides, such as s3; restore these files" in log
    for where in (folder, undisturbed):
        assert train_in(where, "", "", *more, f"data.embeddings_dir=../same_{name}") == 0
    assert fingerprint(folder) == fingerprint(undisturbed)


def test_K18_a_finished_run_is_left_as_it_is(whole):
    def files() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*")
                if path.is_file() and path.suffix != ".log" and path.name != "stderr.txt"
                and not path.name.endswith("_texts.json")}  # beside the slide cache, from the second start on

    before = files()
    assert train_in(whole) == 0
    assert files() == before


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_K01_auto_falls_back_to_an_older_checkpoint_and_ends_bit_equal(whole, how):
    folder = whole.parent / how
    assert train_in(folder, "step:11") == KILLED
    path = folder / "run" / "last_model.pth"
    path.unlink() if how == "gone" else os.truncate(path, path.stat().st_size // 2)
    assert_same_end(whole, folder)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_detects_each_mutation(whole, mutation):
    """With one line removed from restoring or saving, a resumed run must differ from the uninterrupted one."""
    folder = whole.parent / f"without {mutation}"
    if mutation == "atomic write":
        assert train_in(folder, "mid_write:6", mutation) == KILLED
        with pytest.raises(UserError, match="truncated"):
            for path in (folder / "run").glob("*.pth"):
                Checkpoint.load(path)
        return
    kill = {"log truncation": "after_log:3", "scaler": "step:11", "best": "step:8"}.get(mutation, "step:5")
    assert train_in(folder, kill) == KILLED
    assert train_in(folder, "", mutation) == 0
    assert fingerprint(folder) != fingerprint(whole), f"{mutation} is not restored, and nothing shows"


