"""The simulator against published numbers: the zero-bubble paper's bubble rates (Qi et al. 2023,
arXiv:2401.10241), from the times that it measured.
"""

import pytest

from tparallel.pipeline_parallel.schedule import BW, B, F, W
from tparallel.pipeline_parallel.schedules import make
from tparallel.pipeline_parallel.simulate import simulate

# Table 9: stages, micro-batches, chunks per stage of 1F1B-I, milliseconds of F, B, W and of a
# message; and Table 5's bubble rates of 1F1B, 1F1B-I, ZB-H1, ZB-H2.
TABLE = {
    "1.5B, 24": (8, 24, 3, (18.522, 18.086, 9.337), 0.601, (0.2431, 0.1055, 0.1585, 0.1083)),
    "1.5B, 64": (8, 64, 3, (18.546, 18.097, 9.321), 0.762, (0.124, 0.0443, 0.0674, 0.0444)),
    "6.2B, 24": (8, 24, 4, (29.718, 29.444, 19.927), 0.527, (0.2347, 0.0808, 0.1323, 0.0698)),
    "6.2B, 64": (8, 64, 4, (29.935, 29.621, 19.388), 0.535, (0.1091, 0.032, 0.0554, 0.0294)),
    "14.6B, 48": (16, 48, 3, (11.347, 11.248, 8.132), 0.377, (0.2552, 0.1104, 0.1397, 0.0672)),
    "14.6B, 128": (16, 128, 3, (11.325, 11.308, 8.109), 0.378, (0.1251, 0.0445, 0.0576, 0.0266)),
    "28.3B, 96": (32, 96, 2, (10.419, 10.207, 7.715), 0.408, (0.2646, 0.1493, 0.1421, 0.0641)),
    "28.3B, 256": (32, 256, 2, (10.402, 10.248, 7.698), 0.46, (0.1352, 0.0624, 0.0594, 0.0257)),
}
CASES = [
    (row, schedule, rate)
    for row, (*_, rates) in TABLE.items()
    for schedule, rate in zip(("1f1b", "interleaved", "zb-h1", "zb-h2"), rates)
]


@pytest.mark.parametrize("row, schedule, rate", CASES, ids=lambda x: str(x))
def test_table_5_follows_from_table_9(row, schedule, rate):
    """All 32 rates to their last digit.  Rate = (cost − M (F + B + W)) / cost.  The cost of ZB-H2
    is the time of one stage, first action to last; 1F1B-I's is printed without one message per
    stage (by subtraction: a simulation in order has them)."""
    S, M, v, (f, b, w), message, _ = TABLE[row]
    v = v if schedule == "interleaved" else 1
    cost = {F: f / v, B: b / v, W: w / v, BW: (b + w) / v}
    timeline = simulate(make(schedule, S, M, v if v > 1 else 0), cost, message)
    total = timeline.span if schedule == "zb-h2" else timeline.makespan
    if schedule == "interleaved":
        total -= S * message
    assert (total - M * (f + b + w)) / total == pytest.approx(rate, abs=2e-4)


def test_table_5_is_not_reproduced_without_the_messages():
    """The comparison can fail: leave the messages' time out, and the rate is off by a digit."""
    S, M, _, (f, b, w), _, rates = TABLE["1.5B, 24"]
    timeline = simulate(make("1f1b", S, M), {F: f, BW: b + w})
    assert abs(timeline.bubble - rates[0]) > 2e-3
