import dataclasses

import pytest

from diarist.asr.planning import MAX_DRAFT, Agreement, Assistance, Costs, Phrases, pays, plan

COSTS = Costs((1, 16), (1, 9), ((10.0, 12.0), (40.0, 72.0)), (0.0, 0.0), (2.0, 16.0), 30.0)


def test_costs_are_interpolated_in_rows_and_tokens():
    assert COSTS.verify(1, 1) == 10
    assert COSTS.verify(1, 5) == 11
    assert COSTS.verify(16, 5) == 56
    assert COSTS.verify(8, 1) == pytest.approx(10 + 30 * 7 / 15)
    assert (COSTS.draft(1, 1), COSTS.draft(16, 1), COSTS.draft(1, 3), COSTS.draft(1, 0)) == (2, 16, 6, 0)
    begun = dataclasses.replace(COSTS, begins=(1.0, 4.0))
    assert (begun.draft(1, 3), begun.draft(16, 2), begun.draft(16, 0)) == (7, 36, 0)


def expected_rate(agreement, length, rows):
    tokens = sum(agreement**k for k in range(length + 1)) * rows
    return tokens / (COSTS.draft(rows, length) + COSTS.verify(rows, 1 + length))


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("agreement", [0.1, 0.5, 0.8, 0.95])
def test_the_length_is_the_one_of_the_highest_rate(agreement, rows):
    found = plan([agreement] * rows, [MAX_DRAFT] * rows, COSTS).length
    rates = [expected_rate(agreement, length, rows) for length in range(MAX_DRAFT + 1)]
    assert rates[found] >= max(rates) / 1.031  # it must promise more than it costs, with a margin
    assert found == 0 or rates[found] > rates[0]


def test_what_does_not_pay_is_not_drafted_unless_asked_for():
    poor = [0.1] * 16, [MAX_DRAFT] * 16, COSTS
    assert plan(*poor).length == 0
    assert plan(*poor, least=1).length == 1
    assert plan([0.9] * 4, [0] * 4, COSTS, least=1).length == 0


def test_drafts_that_exist_are_read_as_far_as_reading_pays():
    assert plan([0.9], [5], COSTS, sunk=True).length == 5
    assert plan([0.9, 0.01], [0, 5], COSTS, sunk=True).length == 0
    assert plan([0.3], [5], COSTS, sunk=True).length >= plan([0.3], [5], COSTS).length


def test_a_draft_that_is_likely_right_is_worth_going_on_with():
    planned = plan([0.8] * 16, [MAX_DRAFT] * 16, COSTS)
    assert 0 < planned.worth < 16


def test_an_expensive_admission_must_be_repaid():
    assert pays(0.9, 100, 1, COSTS)
    assert not pays(0.9, 3, 1, COSTS)
    assert not pays(0.1, 1000, 16, COSTS)


def test_agreement_follows_what_was_seen():
    agreement = Agreement(20)
    assert agreement.estimate(0.7, 4) == pytest.approx(0.7)
    for _ in range(10):
        agreement.update(0, rejected=True)
    low = agreement.estimate(0.7, 4)
    assert low < 0.25
    for _ in range(20):
        agreement.update(4, rejected=False)
    assert agreement.estimate(0.7, 4) > 0.9


def test_phrases_are_told_by_their_last_tokens():
    phrases = Phrases()
    phrases.add([1, 2, 3, 4, 5, 1, 2, 3, 9])
    assert phrases.follow([7, 1, 2, 3], 8) == [9]  # the latest time counts
    assert phrases.follow([2, 3, 4], 2) == [5, 1]
    assert phrases.follow([4, 3, 2], 8) == phrases.follow([3], 8) == phrases.follow([2, 3, 4], 0) == []


def test_the_summary_says_what_was_chosen():
    assistance = Assistance()
    assert assistance.summary["chosen"] == "not assisted"
    assistance.count(written=4, drafted=4, accepted=3)
    assistance.count(written=1, drafted=0, accepted=0)
    assert assistance.summary == {
        "chosen": "partly assisted",
        "assisted_passes": 0.5,
        "acceptance_rate": 0.75,
        "tokens_per_pass": 2.5,
        "passes": 2,
        "tokens": 5,
        "drafted": 4,
        "accepted": 3,
    }
