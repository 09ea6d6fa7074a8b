"""The benchmark of one step at tiny sizes: what it counts, and what its ratios are of."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import one_step
import tables
from one_step import STUDENT, TEACHER


@pytest.fixture(scope="module")
def result():
    return one_step.main(["--quick"])


def test_passes_are_counted_where_they_run_and_stated_alike(result):
    assert [(c["precision"], c["batch"]) for c in result["cases"]] == [(p, b) for p in ("fp32", "bf16") for b in (1, 4)]
    for case in result["cases"]:
        assert case[TEACHER]["passes"] == case[TEACHER]["stated"] == 31  # the first step of the ramp is not guided
        assert case[STUDENT]["passes"] == case[STUDENT]["stated"] == 1


def test_ratios_are_of_rounds(result):
    for case in result["cases"]:
        assert len(case[TEACHER]["sample"]) == len(case[STUDENT]["sample"]) == len(case["decode"]) == 2
    rows = {TEACHER: {"sample": [8.0, 9.0, 40.0]}, STUDENT: {"sample": [2.0, 1.0, 4.0]}}
    found = one_step.summed_up(rows, [1.0, 1.0, 2.0])
    assert found["ratio"] == {"median": 9, "lowest": 4, "highest": 10}
    assert found["ratio_decoded"] == {"median": 5, "lowest": 3, "highest": 7}
    assert (found[TEACHER]["seconds"], found[STUDENT]["seconds_decoded"]) == (9, 3)


def test_a_part_replaces_its_cases_only_among_those_of_one_commit(result):
    cases = [c for c in result["cases"] if c["precision"] == "bf16"]
    part = result | {"cases": [c | {"decode": [0.0]} for c in cases]}
    for git, kept in (("1234", 2), ("1234+", 2), ("5678", 0)):
        before, after = ({"provenance": r["provenance"] | {"git": g}} for r, g in ((result, "1234"), (part, git)))
        found = one_step.merged(result | before, part | after)["cases"]
        assert found == [*result["cases"][:kept], *part["cases"]]


def test_the_table_shows_every_case(result):
    lines = tables.one_step(result).splitlines()
    assert sum(line.startswith(("| fp32", "| bf16")) for line in lines) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_run_in_the_precision_that_is_named(dtype):
    net, tokenizer, _ = one_step.networks(quick=True)
    seen = set()
    for layer in (net.last_layer[2], tokenizer.decoder.conv_in):
        layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    one_step.measured(net, tokenizer, 1, dtype, 2)
    assert seen == {dtype}


@pytest.mark.slow
def test_the_sizes_are_those_of_the_public_weights():
    with torch.device("meta"):
        net, tokenizer, sizes = one_step.networks(quick=False)
    assert (net.depth, net.width, net.shape.L, net.shape.V) == (24, 768, 256, 1024)
    assert sizes["parameters"] == 174_160_874  # as published: 174.161 M
    assert tokenizer.shape == net.shape
