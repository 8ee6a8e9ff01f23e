from __future__ import annotations

import json

import pytest

from heatkv.policies import POLICIES, load_policy, parameters
from kvscope.cli import main
from kvscope.options import default_output
from kvscope.policy_list import policies_text, policy_records


def test_every_policy_is_listed_with_its_parameters() -> None:
    records = {one.name: one for one in policy_records()}

    assert set(records) == set(POLICIES)
    snapkv = records["snapkv"]
    assert {each.name: each.default for each in snapkv.parameters} == parameters(load_policy("snapkv")())
    assert snapkv.what == "Keeps the tokens with most attention from a grid of observing queries."
    assert snapkv.parameters[1].meaning == "Width of the pooling along the cache; 1: none."
    assert (snapkv.chooses, snapkv.rows, records["heatkv"].chooses, records["heatkv"].rows) == (
        "online",
        "each",
        "planned",
        None,
    )


def test_every_parameter_says_what_it_means() -> None:
    silent = [(one.name, each.name) for one in policy_records() for each in one.parameters if not each.meaning]

    assert silent == []


def test_a_line_has_parameters_as_they_are_given() -> None:
    (line,) = [line for line in policies_text(policy_records()).splitlines() if line.startswith("scalekv")]

    assert "(window=16,kernel=5,pooling=max,start=none,drafters=0.06,budget_file=none)" in line


def test_the_command_prints_lines_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["policies", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)

    assert len(lines) == len(POLICIES) == len(record["policies"])
    assert record["policies"][0]["name"] == "adakv"


def test_a_traces_name_has_the_policys_name_only() -> None:
    assert "-scalekv-2" in default_output("infinity-tiny", "scalekv:budget_file=/data/a.json").name
