"""Faults of the recipe as a whole are found in their place too."""

from __future__ import annotations

import pytest

from tests.recipe.toy import STUDENT

TRAIN, EVAL = STUDENT.index("train:"), STUDENT.index("eval:")


def changed(old: str, new: str, text: str = STUDENT) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def place(text: str, mark: str) -> str:
    """Line and column just after `mark`, which stands at one place of the text."""
    assert text.count(mark) == 1, mark
    before = text[: text.index(mark) + len(mark)]
    return f"recipe.yaml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def network(name: str) -> str:
    return changed("  iterations: 10", f"  network: {name}\n  iterations: 10")


NO_STUDENT = [
    ("{name: student, of: ", "eval.rows.2.of: no student is trained here: give its `weights:`"),
    ("of: student, decode: soft, sampler: {use: toy_sampler}}\n", "search: no student is trained here: give its "),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("tokenizer: {use: toy_tokenizer}\n", ""), [
            ("{use: toy_data}\n", "teacher: a teacher works on tokens: add a `tokenizer:` section"),
        ]),
        (changed("teacher:\n  use: toy_teacher\n  width: 8\n", "", STUDENT[:EVAL]), [
            ("{use: toy_tokenizer}\n", "train.network: training the student needs a `teacher:` section"),
        ]),
        (network("features"), [
            ("network: ", "train.network: training the features needs a `features:` section"),
            ("batch_size: 4\n  ", "train.terms: belong to the student's L_gen, but `train.network` is features"),
            *NO_STUDENT,
        ]),
        (STUDENT + "features: {use: toy_features}\n", [
            ("search: {use: toy_search}}\n", "features: is used only when it is what is trained"),
        ]),
        (network("teacher"), [
            ("batch_size: 4\n  ", "train.terms: belong to the student's L_gen, but `train.network` is teacher"),
            *NO_STUDENT,
        ]),
        (changed("  iterations: 10", "  label_drop: 0.2\n  label_smoothing: 0.1\n  iterations: 10"), [
            ("label_drop: ", "train.label_drop: belongs to the training of a teacher, but `train.network` is student"),
            ("label_smoothing: ", "train.label_smoothing: belongs to the training of a teacher"),
        ]),
        (STUDENT[:TRAIN] + "train: {iterations: 1, batch_size: 1, terms: []}\n", [
            ("batch_size: 1, ", "train.terms: training a student needs at least one term, for example `- use: dimo`"),
        ]),
        (STUDENT[:TRAIN] + "train: {iterations: 1, batch_size: 1}\n", [
            ("width: 8\n", "train.terms: training a student needs at least one term, for example `- use: dimo`"),
        ]),
        (STUDENT[:TRAIN] + "train: {network: tokenizer, iterations: 1, batch_size: 1, start: {lead: 3}}\n", [
            ("lead: ", "train.start.lead: there are no critics when `train.network` is tokenizer"),
        ]),
        (STUDENT[:TRAIN] + "train: {network: tokenizer, iterations: 1, batch_size: 1, sampler: {use: toy_sampler}}\n", [
            ("batch_size: 1, ", "train.sampler: draws samples of a teacher, but `train.network` is tokenizer"),
        ]),
        (changed("name: second\n      weight: {ratio: 0.5, of: first}", "name: first"), [
            ("use: toy_loss\n      name: first\n    - use: toy_loss\n      name: ",
             "train.terms.1.name: `first` names two terms; give one a `name:` of its own"),
        ]),
        (changed("of: first}", "of: frist}"), [
            ("ratio: 0.5, of: ", "train.terms.1.weight.of: there is no other term called `frist`; did you mean "
             "`first`? (other terms: first)"),
        ]),
        (changed("of: first}", "of: second}"), [
            ("ratio: 0.5, of: ", "train.terms.1.weight.of: `second` is this term itself; name another one, whose "),
        ]),
        (changed("{ratio: 0.5, of: first}", "{ratio: 0.5}"), [
            ("name: second\n      ", "train.terms.1.weight.of: there is no other term called `dimo` (other terms: "),
        ]),
        (changed("name: first", "name: first\n      weight: {ratio: 1, of: second}"), [
            ("ratio: 1, of: ", "train.terms.0.weight.of: the weight of `second` is itself a ratio; name a term whose "),
            ("ratio: 0.5, of: ", "train.terms.1.weight.of: the weight of `first` is itself a ratio; name a term"),
        ]),
        (changed("[0, 1, 2]", "[0, 1, 1]"), [
            ("[0, 1, ", "eval.seeds.2: seed 1 is given twice; repetitions need different seeds"),
        ]),
        (changed("{name: real, of: real}", "{name: student, of: real, decode: soft, weights: w}"), [
            ("of: real, decode: ", "eval.rows.0.decode: soft decoding is for the student's one step; use hard"),
            ("weights: ", "eval.rows.0.weights: a row of real images uses no network's weights; remove it"),
            ("{use: toy_sampler}}\n    - {name: ", "eval.rows.2.name: `student` names two rows"),
        ]),
        (changed("{name: real, of: real}", "{name: real, of: real, sampler: {use: toy_sampler, steps: 1}}"), [
            ("of: real, ", "eval.rows.0.sampler: a row of real images samples nothing; remove it"),
        ]),
        (changed("of: teacher, sampler: {use: toy_sampler}}", "of: teacher}"), [
            ("{name: teacher, of: ", "eval.rows.1.of: samples of the teacher need a `sampler:`, for example "),
        ]),
        (STUDENT[:TRAIN] + STUDENT[EVAL:], NO_STUDENT),
        (changed("name: other,", "name: other, reward: {use: toy_reward}}\n    - {name: other,"), [
            ("{use: toy_reward}}\n    - {name: ", "search.held_out.1.name: `other` names two held-out rewards"),
        ]),
        (changed("score: {use: toy_reward}", "score: [{reward: {use: toy_reward}}, {reward: {use: toy_reward}}]"), [
            ("reward: {use: toy_reward}}, ", "search.score.1.name: `toy_reward` names two rewards; give one a `name:`"),
        ]),
        ("title: t\ndata: {use: toy_data}\neval:\n  samples: 1\n  metrics: [{use: toy_metric}]\n  rows:\n"
         "    - {name: r, of: reconstruction}\n    - {name: t, of: teacher, sampler: {use: toy_sampler}}\n", [
            ("name: r, of: ", "eval.rows.0.of: reconstructions need a `tokenizer:` section"),
            ("name: t, of: ", "eval.rows.1.of: samples of a teacher need a `teacher:` section"),
        ]),
        ("title: t\ndata: {use: toy_data}\nsearch:\n  conditions: 1\n  score: {use: toy_reward}\n"
         "  methods: [{name: t, search: {use: toy_search}}]\n", [
            ("toy_data}\n", "search: searching the student's input needs `teacher:` and `tokenizer:` sections"),
        ]),
    ],
)  # fmt: skip
def test_cross_field_faults(faults, text, expected):
    lines = faults(text)
    assert len(lines) == len(expected), lines
    for line, (mark, message) in zip(lines, expected, strict=True):
        assert line.startswith(f"{place(text, mark)} {message}"), lines


TOKENIZER = (
    "title: t\ndata: {use: toy_data}\ntokenizer: {use: toy_tokenizer}\n"
    "train: {network: tokenizer, iterations: 1, batch_size: 1}\n"
)


def test_recipes_that_are_referred_to_are_read_too(faults, tmp_path):
    text = changed("  width: 8", "  weights: {recipe: other.yaml}")
    assert faults(text, other=TOKENIZER) == [
        "recipe.yaml:6:21 teacher.weights.recipe: trains a tokenizer, but weights of a teacher are needed here"
    ]
    assert faults(text, other=TOKENIZER.replace("iterations", "iteration"))[0].startswith(
        f"{tmp_path}/other.yaml:4:1 train.iterations: is missing"
    )
    assert faults(text, other=TOKENIZER[: TOKENIZER.index("train")]) == [
        "recipe.yaml:6:21 teacher.weights.recipe: has no `train:` section, so it makes no weights"
    ]
    assert faults(text.replace("other", "nowhere")) == [
        f"recipe.yaml:6:21 teacher.weights.recipe: {tmp_path}/nowhere.yaml does not exist"
    ]


def test_faults_of_overrides_in_a_reference_are_where_they_were_written(faults, tmp_path):
    teacher = network("teacher")
    teacher = teacher[: teacher.index("  terms:")]
    text = changed("  width: 8", "  weights: {recipe: other.yaml, set: {sead: 1, train.iterations: x}}")
    first, second = faults(text, other=teacher)
    assert first.startswith("recipe.yaml:6:39 sead: unknown key; did you mean `seed`")
    assert second == "recipe.yaml:6:48 train.iterations: must be a whole number, not the text `x`"


def test_recipes_that_refer_to_each_other(faults, tmp_path):
    text = changed("  width: 8", "  weights: {recipe: other.yaml}")
    back = changed("  width: 8", "  weights: {recipe: recipe.yaml}")
    assert faults(text, other=back) == [
        f"{tmp_path}/other.yaml:6:21 teacher.weights.recipe: is circular: recipe.yaml -> other.yaml -> recipe.yaml"
    ]
    assert faults(changed("  width: 8", "  weights: {recipe: recipe.yaml}")) == [
        "recipe.yaml:6:21 teacher.weights.recipe: is circular: recipe.yaml -> recipe.yaml"
    ]
