"""A command that is refused before anything is imported that takes seconds."""

import subprocess
import sys

from tests.experiments.test_train_command import ROOT


def refused_before_torch(*words: str) -> str:
    """What `experiments.train` says to words that it refuses, with torch still not imported."""
    program = f"""
import sys
from experiments.train import main
sys.argv = {["train", *words]}
try:
    main()
except SystemExit as refused:
    print(refused, file=sys.stderr)
    sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr
