"""flatlm.runtime.evaluation.answers: hard cases, each with what the authors' rule makes of it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from flatlm.runtime.evaluation import authors
from flatlm.runtime.evaluation.answers import boxes, choice, number, vote, yes_no

NUMBERS = [  # an answer, what it says, what the authors' rule reads
    # why there is a parser of our own
    (r"\boxed{1,234,567}", 1234567, "1234"),
    (r"\boxed{\frac{1}{2}}", "1/2", "1"),
    (r"\boxed{\$1,250.50}", "2501/2", "1250"),
    (r"\boxed{12 out of 20}", "3/5", "12"),
    # plain
    (r"\boxed{18}", 18, "18"),
    (r"\boxed{0}", 0, "0"),
    (r"\boxed{18.00}", 18, "18.00"),
    (r"\boxed{.5}", "1/2", ".5"),
    (r"\boxed{+5}", 5, "+5"),
    (r"\boxed{007}", 7, "007"),
    # signs
    (r"\boxed{-5}", -5, "-5"),
    ("\\boxed{\u22125}", -5, "5"),
    ("\\boxed{\u20135}", -5, "5"),
    (r"\boxed{- 5}", -5, "5"),
    (r"\boxed{-\$5}", -5, "5"),
    (r"\boxed{\$-5}", -5, "-5"),
    (r"\boxed{-\frac{3}{4}}", "-3/4", "3"),
    (r"\boxed{negative 4}", -4, "4"),
    (r"\boxed{20-5}", None, "20"),
    # thousands
    (r"\boxed{1,000}", 1000, "1000"),
    (r"\boxed{1{,}234}", 1234, "1"),
    (r"\boxed{12\,000}", 12000, "12"),
    ("\\boxed{3\u202f500}", 3500, "3"),
    (r"\boxed{12,34,567}", 1234567, "1234"),
    (r"\boxed{5,000,}", 5000, "5000"),
    (r"\boxed{1,23}", None, "123"),
    (r"\boxed{1.234,56}", None, "1.234"),
    # fractions
    (r"\boxed{3/4}", "3/4", "3/4"),
    (r"\boxed{\dfrac{10}{4}}", "5/2", "10"),
    (r"\boxed{\frac12}", "1/2", "12"),
    (r"\boxed{1\frac{1}{2}}", "3/2", "1"),
    (r"\boxed{2 3/4}", "11/4", "2"),
    (r"\boxed{-1 1/2}", "-3/2", "-1"),
    (r"\boxed{\left(\frac{1}{2}\right)}", "1/2", "1"),
    ("\\boxed{1\u00bd}", "3/2", "1"),
    (r"\boxed{1/0}", None, "1/0"),
    (r"\boxed{1/2/2020}", None, "1/2"),
    # powers and roots
    (r"\boxed{1e5}", 100000, "1"),
    (r"\boxed{1.5 \times 10^{3}}", 1500, "1.5"),
    ("\\boxed{2\u00d710^-2}", "1/50", "2"),
    (r"\boxed{10^3}", 1000, "10"),
    (r"\boxed{2^5}", None, "2"),
    (r"\boxed{\sqrt{2}}", None, "2"),
    (r"\boxed{3\pi}", None, "3"),
    # units
    (r"\boxed{50\%}", 50, "50"),
    (r"\boxed{18\text{ eggs}}", 18, "18"),
    (r"\boxed{\text{18 dollars}}", 18, "18"),
    (r"\boxed{18 \text{ m}^2}", 18, "18"),
    (r"\boxed{45^\circ}", 45, "45"),
    ("\\boxed{\u20ac1.50}", "3/2", "1.50"),
    (r"\boxed{18km}", 18, "18"),
    (r"\boxed{$1.5 million}", 1500000, "1.5"),
    (r"\boxed{2x}", None, "2"),
    # nesting, several boxes, none
    (r"\boxed{\boxed{7}}", 7, "7"),
    (r"\boxed{{18}}", 18, "18"),
    (r"\boxed{\textbf{42}}", 42, "42"),
    (r"\boxed{\$\text{1{,}200}}", 1200, "1"),
    (r"boxed{18}", 18, "18"),
    (r"\boxed{3} or rather \boxed{4}", 4, "4"),
    (r"\boxed{3} as \boxed{answer}", 3, "3"),
    ("5 of \\boxed{answer}", 5, "5"),
    # several numbers
    (r"\boxed{5, 7}", None, "5"),
    (r"\boxed{5 or 6}", None, "5"),
    (r"\boxed{3 hours 20 minutes}", None, "3"),
    (r"\boxed{10:30}", None, "10"),
    (r"\boxed{9 \times 2 = 18}", 18, "9"),
    (r"\boxed{18 = x}", 18, "18"),
    (r"\boxed{x = 3, y = 4}", None, "3"),
    (r"\boxed{\frac{10}{3} \approx 3.33}", "333/100", "10"),
    # without a box
    ("She makes 9 * 2 = 18.\n#### 1,000", 1000, "1000"),
    ("The answer is **42**.", 42, "42"),
    ("**Answer:** $18", 18, "18"),
    ("The answer is:\n\n42", 42, "42"),
    ("The answer to the question is 3/4.", "3/4", "3/4"),
    ("The answer is 9 * 2 = 18 dollars in 7 days", 18, "9"),
    ("The answer is not 5, it is 6", 6, "5"),
    ("The final answer is $\\frac{3}{8}$", "3/8", "3"),
    ("So she has 5 + 3 = 8 apples.", 8, "5"),
    ("1. 5 apples\n2. 7 pears", 7, "7"),
    ("**42**", 42, "42"),
    ("\u7b54\u6848\u662f18\u4e2a", 18, "18"),
    ("\\boxed{\uff13\uff10}", 30, "\uff13\uff10"),
    # nothing that is a number
    ("", None, None),
    ("I do not know.", None, None),
    ("It is H2O.", None, "2"),
    ("He was the 3rd.", None, "3"),
    ("Let x_1 be it.", None, "1"),
    ("\\boxed{" + "9" * 60 + "}", None, "9" * 60),
]


@pytest.mark.parametrize(("text", "expected", "theirs"), NUMBERS, ids=[case[0][:40] for case in NUMBERS])
def test_numbers_are_read_strictly_and_by_the_authors_rule(text, expected, theirs):
    assert number(text) == (None if expected is None else Fraction(expected))
    assert authors.number(text) == theirs


def test_the_last_line_of_an_answer_that_was_cut_off_is_no_answer():
    assert number("First, 16 - 3 = 13", complete=False) is None
    assert number(r"\boxed{18} since 9 * 2", complete=False) == 18


OPTIONS = ("5(√3 + 1)", "6", "$7.50", "8 days", "None of these")
CHOICES = [
    (r"\boxed{A}", "A", "A"),
    (r"\boxed{(B)}", "B", "B"),
    (r"\boxed{C) $7.50}", "C", "C"),
    (r"\boxed{\text{D}}", "D", "D"),
    (r"\boxed{d}", "D", "A"),
    (r"\boxed{Option E.}", "E", "E"),
    (r"\boxed{7.5}", "C", "A"),
    (r"\boxed{None of these}", "E", "E"),
    (r"\boxed{A, B}", None, "B"),
    (r"\boxed{9}", None, "A"),
    (r"\boxed{Apple}", None, "A"),
    (r"\boxed{B}, not \boxed{choice}", "B", "A"),
    ("The answer is (C).", "C", "C"),
    ("The answer is C because 7 < 8", "C", "C"),
    ("The answer is A car", None, "A"),
    ("The answer is C or D", None, "D"),
    ("The answer is 6.", "B", "A"),
    ("The correct option is B.", "B", "B"),
    ("So option D is right.", "D", "D"),
    ("It is (A) or (B).", None, "B"),
    ("Answer Choices: (A) 5 (B) 6", None, "B"),
    ("**C**", "C", "C"),
    ("C) $7.50", "C", "C"),
    ("A car drives.", None, "A"),
    ("", None, "A"),
]


@pytest.mark.parametrize(("text", "expected", "theirs"), CHOICES, ids=[case[0] for case in CHOICES])
def test_choices_are_read_strictly_and_by_the_authors_rule(text, expected, theirs):
    assert choice(text, OPTIONS) == expected
    assert authors.choice(text, OPTIONS) == theirs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{yes}", "yes"),
        (r"Yes and no, so \boxed{No}", "no"),
        ("The answer is no.", "no"),
        ("Not at first.\nSo yes.", "yes"),
        ("yes and no", None),
        ("nobody knows", None),
    ],
)
def test_yes_and_no(text, expected):
    assert yes_no(text) == expected


STARTS = [
    "Q:", "q:", "Question:", "**Question:**", "### Question 2", "Question 2:", "Next question:",
    "Human:", "User:",
]  # fmt: skip


@pytest.mark.parametrize("start", STARTS)
def test_an_answer_ends_where_a_question_of_its_own_begins(start):
    assert number(f"3 * 6 = 18.\n#### 18\n\n{start} And 4 * 5?\nIt is 20.\n#### 20") == 18
    assert number(f"So \\boxed{{18}}.\n{start} And 4 * 5?\n\\boxed{{20}}", complete=False) == 18
    assert choice(f"(B)\n{start} Which of these?\nThe answer is (C).") == "B"
    assert yes_no(f"Yes.\n{start} Is it?\nThe answer is no.") == "yes"


def test_a_question_that_is_only_repeated_ends_nothing():
    assert number("Question: What is 3 * 6?\nAnswer: \\boxed{18}") == 18
    assert number("Let me say it again.\nQuestion: What is 3 * 6?\nA: 18\n\nQuestion: 4 * 5?\nA: 20") == 18
    assert number("The question: 3 * 6?\nA new user: 5 pens.\n\\boxed{18}") == 18


def test_the_last_number_is_still_the_answers():
    assert number("\\boxed{17}, no: \\boxed{18}\nQ: 4 * 5?\n\\boxed{20}") == 18


def test_what_a_question_follows_was_not_cut_off():
    assert number("It is\n18\nQ: And 4 * 5", complete=False) == 18


def test_boxes_are_matched_brace_by_brace_and_unclosed_ones_do_not_count():
    assert boxes(r"\boxed{a{b}{c{d}}} \boxed{\boxed{e}} \boxed{f") == ["a{b}{c{d}}", "e"]


def test_a_vote_goes_to_the_most_frequent_and_of_equals_to_the_first():
    assert vote(["3", "5", None, "5", "3", None, None]) == "3"
    assert vote(["3", "5", "5"]) == "5"
    assert vote([None, None]) is None


def test_the_authors_rule_scores_within_a_thousandth():
    assert authors.right("18.0005", "18") and not authors.right("18.01", "18")
    assert authors.right("c", "C") and not authors.right(None, "C")
    assert not authors.right("1/2", "2")
