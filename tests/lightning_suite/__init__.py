"""Lightning's own tests, run with coded exchange forced on them.

Lightning's tests are not part of this project. With a checkout of its public repository at the tag nearest to the
installed version, and with what its ``requirements/pytorch/test.txt`` and ``extra.txt`` name installed beside this
project's ``dev``::

    python -m tests.lightning_suite.run --suite <checkout> --out <results> [--only loops --only core/test_saving.py]
    python -m tests.lightning_suite.report <results>

`plugin` puts `LWPDStrategy` where a test asks for "auto" or "ddp" on 1 to 4 CPU devices; `run` runs folder after folder
and starts again behind a test that hangs or kills its process; `report` compares with `expected.toml`, which names the
tests that cannot pass and why. A second ``run`` into the same directory goes on where the first one ended.
"""
