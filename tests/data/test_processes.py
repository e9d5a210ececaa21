"""Processes that read or clean: killed ones end in one line, and none outlives the main one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from finetune.data.loader_process import map_in_processes
from tests.helpers.files import ROOT, refused

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
MAIN = """
import signal
from finetune.data.loader_process import map_in_processes
from tests.data.test_processes import tell_and_sleep
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    list(map_in_processes(tell_and_sleep, range(8), 2, 1))
"""


def double(number: int) -> int:
    return 2 * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    time.sleep(0 if number < 3 else 60)
    return number


def tell_and_sleep(number: int) -> int:
    print(os.getpid(), flush=True)
    time.sleep(60)
    return number


def set_factor(factor: int) -> None:
    os.environ["FACTOR_OF_A_TEST"] = str(factor)


def times_factor(number: int) -> int:
    return number * int(os.environ["FACTOR_OF_A_TEST"])


def test_results_are_in_order_and_the_set_up_is_called_in_each_process():
    assert list(map_in_processes(double, range(7), 2, 3)) == [0, 2, 4, 6, 8, 10, 12]
    assert list(map_in_processes(times_factor, range(5), 2, 1, set_factor, (3,))) == [0, 3, 6, 9, 12]


def test_A06_a_killed_process_is_one_line():
    with refused("was killed", "out of memory?"):
        list(map_in_processes(die_at_three, range(20), 2, 1))


def test_A06_after_an_error_the_others_are_not_waited_for():
    start = time.monotonic()
    with pytest.raises(ValueError, match="three"):
        list(map_in_processes(fail_at_three, range(8), 2, 1))
    assert time.monotonic() - start < 50


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_A06_when_the_main_process_is_killed_no_other_is_left_and_stdout_is_closed(tmp_path, number):
    (tmp_path / "main.py").write_text(MAIN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    main = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        children = [int(main.stdout.readline()) for _ in range(2)]
        main.send_signal(number)
        assert main.communicate(timeout=50)[0] is not None, "communicate returns when nobody holds stdout any more"
        assert not [child for child in children if _is_running(child)]
    finally:
        main.kill()


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
