"""The cost of the rule is printed for every code and size."""

from experiments.bench.rule import cost_ms, main
from lwpd_lightning.coding import lwpd_code


def test_it_prints_a_line_for_each_code_and_size(capsys):
    main(["--sizes", "8", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [c, n] for n in ("8", "16") for c in ("uncoded", "local", "lwpd")
    ]


def test_all_times_are_measured():
    assert all(milliseconds > 0 for milliseconds in cost_ms(lwpd_code(8, 4, 2), updates=3))
