"""Requests for small Python functions, made from seeds; none is taken from a benchmark."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .different import different

NUMBERS = (
    "even numbers",
    "odd numbers",
    "positive numbers",
    "negative numbers",
    "numbers greater than {n}",
    "numbers smaller than {n}",
    "numbers divisible by {n}",
    "prime numbers",
    "perfect squares",
    "numbers that occur more than once",
    "numbers whose digits add up to {n}",
    "numbers at positions divisible by {n}",
)
NUMBER_RESULTS = (
    ("sum", "the sum of the {which} in a list"),
    ("product", "the product of the {which} in a list"),
    ("largest", "the largest of the {which} in a list, or None if there are none"),
    ("smallest", "the smallest of the {which} in a list, or None if there are none"),
    ("count", "how many {which} a list contains"),
    ("average", "the average of the {which} in a list"),
    ("sort", "a sorted list of the {which} in a list"),
    ("reverse", "the {which} in a list in reverse order"),
    ("split", "two lists: the {which} in a list, and all others"),
    ("position", "the positions of the {which} in a list"),
)
WORDS = (
    "words longer than {n} letters",
    "words that begin with a vowel",
    "words that are palindromes",
    "words that contain a digit",
    "words that occur only once",
    "words that end with '{letter}'",
    "words that begin with '{letter}'",
    "capitalised words",
    "words whose letters are in alphabetical order",
)
WORD_RESULTS = (
    ("count", "how many {which} a text contains"),
    ("list", "the {which} in a text, in order"),
    ("join", "the {which} in a text, joined by hyphens"),
    ("longest", "the longest of the {which} in a text"),
    ("remove", "a text without the {which}"),
    ("upper", "a text with the {which} in upper case"),
    ("frequency", "a dictionary of the {which} in a text and how often each occurs"),
)
OTHERS = (
    ("merge_sorted", "first, second", "one sorted list from two sorted lists"),
    ("transpose", "matrix", "the transpose of a matrix given as a list of lists"),
    ("rotate", "items, steps", "a list rotated to the right by some steps"),
    ("chunks", "items, size", "a list split into parts of a given size"),
    ("flatten", "nested", "a flat list of the items of nested lists"),
    ("invert", "mapping", "a dictionary with keys and values exchanged"),
    ("group_by_length", "words", "a dictionary of words by their length"),
    ("caesar", "text, shift", "a text with each letter shifted in the alphabet"),
    ("run_lengths", "text", "the runs of equal characters in a text with their lengths"),
    ("binary", "number", "the binary digits of a number as a string"),
    ("roman", "number", "a number between 1 and 3999 in Roman numerals"),
    ("fibonacci", "count", "the first Fibonacci numbers"),
    ("gcd", "a, b", "the greatest common divisor of two numbers"),
    ("factors", "number", "the prime factors of a number"),
    ("is_leap", "year", "whether a year is a leap year"),
    ("days_between", "first, second", "the days between two dates written as YYYY-MM-DD"),
    ("parse_pairs", "text", "a dictionary from a text such as 'a=1;b=2'"),
    ("balanced", "text", "whether the brackets in a text are balanced"),
    ("anagrams", "words", "groups of words that are anagrams of each other"),
    ("common_prefix", "words", "the longest prefix that all words share"),
    ("hamming", "a, b", "the number of positions at which two strings differ"),
    ("moving_average", "values, width", "the moving averages of a list"),
    ("median", "values", "the median of a list of numbers"),
    ("mode", "values", "the most frequent value of a list"),
    ("binary_search", "items, target", "the position of a target in a sorted list, or -1"),
    ("bubble_sort", "items", "a sorted list, by bubble sort"),
    ("quick_sort", "items", "a sorted list, by quicksort"),
    ("read_csv", "path", "the rows of a CSV file as dictionaries"),
    ("count_lines", "path", "the number of lines of a text file that are not empty"),
    ("celsius", "fahrenheit", "a temperature in degrees Celsius"),
    ("compound", "amount, rate, years", "an amount after some years of compound interest"),
    ("distance", "a, b", "the distance of two points given as tuples"),
    ("triangle", "a, b, c", "the kind of a triangle with three given sides"),
    ("password", "length", "a random password with letters and digits"),
    ("slug", "title", "a title in lower case with hyphens instead of spaces"),
    ("stack", "commands", "the content of a stack after a list of push and pop commands"),
    ("dedupe", "items", "the items of a list without repetitions, in order"),
    ("pascal", "rows", "the rows of Pascal's triangle"),
    ("collatz", "start", "the Collatz sequence from a number to 1"),
    ("change", "amount, coins", "the fewest coins that make an amount"),
)
FORMS = (
    "Write a Python function `{name}({arguments})` that returns {what}.",
    'Complete this Python function:\n\ndef {name}({arguments}):\n    """Return {what}."""\n',
    "How do I write a function in Python that returns {what}? Give a short example.",
    "Write a Python function that returns {what}. Explain how it works.",
    "I need {what} in Python. Show me the code with a test.",
    "Implement `{name}` in Python. It takes {arguments} and returns {what}. Add type hints.",
    "```python\ndef {name}({arguments}):\n    # return {what}\n    pass\n```\nFill in the body.",
)


def code_prompts(count: int, seed: int = 0) -> Iterator[str]:
    """Yield different requests; the same ones for the same seed.

    Raises:
        ValueError: there are not so many.
    """
    return different(_prompt, count, seed)


def _prompt(rng: random.Random) -> str:
    kind = rng.choice(("numbers", "words", "others"))
    if kind == "others":
        name, arguments, what = rng.choice(OTHERS)
    else:
        things, results = (NUMBERS, NUMBER_RESULTS) if kind == "numbers" else (WORDS, WORD_RESULTS)
        verb, what = rng.choice(results)
        which = rng.choice(things).format(n=rng.randint(2, 12), letter=rng.choice("abdehlnrst"))
        what = what.format(which=which)
        name, arguments = f"{verb}_{kind}", "numbers" if kind == "numbers" else "text"
    return rng.choice(FORMS).format(name=name, arguments=arguments, what=what)
