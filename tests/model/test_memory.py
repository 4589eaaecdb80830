"""Loading peaks below twice the weights: measured by the operating system, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from inference_opt import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model, _ = load_model(sys.argv[1], dtype=sys.argv[2])
print((peak() - before) / model.weight_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_peaks_below_twice_the_weights(smollm2_path, dtype):
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, smollm2_path, dtype], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 2, f"{float(out.stdout):.2f} times the weights"
