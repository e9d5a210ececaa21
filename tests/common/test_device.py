"""The page faults of successive large tensors, with and without `keep_freed_memory`."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys, torch
from finetune.common.device import keep_freed_memory
assert not int(sys.argv[1]) or keep_freed_memory(torch.device("cpu"))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(48):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a matter of glibc")
def test_a_freed_tensor_is_used_again_without_page_faults():
    def faults(keep: int) -> int:
        done = subprocess.run([sys.executable, "-c", _SCRIPT, str(keep)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(keep=1) < faults(keep=0) / 3  # the first few find no place: small blocks took theirs
