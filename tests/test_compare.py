"""Two results of one benchmark, side by side."""


def test_two_results_side_by_side(benchmark):
    compare = benchmark("compare").compare
    before = dict(commit="a", torch="2.11", rows=[dict(name="x", size=64, seconds={"ours": 2.0}, peak_mb={"ours": 8.0}),
                                                  dict(name="gone", seconds={"ours": 1.0})])
    after = dict(commit="b", torch="2.14", rows=[dict(name="x", size=96, seconds={"ours": 1.0, "new": 3.0},
                                                      peak_mb={"ours": 8.1})])
    lines = compare(before, after, least=1.1)
    assert lines[0] == "not alike: torch was '2.11', is '2.14'" and len(lines) == 3
    assert lines[2].split() == ["x:", "seconds", "ours", "2", "1", "0.50"]
    assert len(compare(before, after)) == 4
