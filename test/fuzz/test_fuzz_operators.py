import hypothesis
import pytest

from fuzz.campaigns import CAMPAIGNS
from fuzz.fuzz_operators import Campaign
from torch_geometric_ext.ops import functions


@pytest.mark.parametrize('entry', CAMPAIGNS, ids=lambda entry: entry[0])
def test_kernels_equal_references(kernels, entry):
    campaign = Campaign(*entry[:3], **dict(entry[3:]))
    settings = hypothesis.settings(
        max_examples=60, derandomize=True, database=None
    )
    settings(hypothesis.given(campaign.arguments)(campaign.check))()
    assert 0 < campaign.num_refused < campaign.num_cases


def test_each_operator_has_a_campaign():
    names = {entry[0] for entry in CAMPAIGNS}
    others = {'calibrate'} | {x for x in functions if 'crossover' in x}
    assert {*functions} - others - names == set()
