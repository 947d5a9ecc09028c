"""Wordings for training texts of the extraction tasks, besides the tasks' own templates.

A phrase says one fact. A telling is a template of a whole text, in other words than the tasks' own
templates; its alternatives are written as [a|b].
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

PHRASES: dict[str, tuple[str, ...]] = {
    "name": (
        "the name is {}", "we are talking about {}", "{} is the person", "it is {} this is about", "by {}", "with {}",
        "for {}", "a certain {}", "contact: {}", "person: {}", "{} takes part", "ask {} for more", "called {}",
        "{}, as you know", "it concerns {}",
    ),
    "age": ("{} years old", "aged {}", "the age is {}", "age {}", "{} years of age", "birthday number {}", "now {}"),
    "job": ("a {}", "works as a {}", "by trade a {}", "the job is {}", "profession: {}", "a trained {}", "the {} here"),
    "city": (
        "in {}", "from {}", "the city is {}", "the town of {}", "place: {}", "{} is the place", "where? {}",
        "out of {}", "near the centre of {}", "this is {}", "location {}", "somewhere in {}", "at home in {}",
    ),
    "company": (
        "at {}", "by {}", "from {}", "with {}", "the company is {}", "firm: {}", "{} is the firm", "thanks to {}",
        "on behalf of {}", "{} is in charge", "via {}", "business: {}", "the people of {}", "{} does the work",
    ),
    "hobby": (
        "likes {}", "in free time {}", "hobby: {}", "{} is the hobby", "a friend of {}", "dreams of {}", "practises {}",
        "on Sundays {}", "interested in {}", "cannot live without {}",
    ),
    "number": (
        "number {}", "no. {}", "the number is {}", "with number {}", "{} is its number", "reference {}",
        "filed under {}", "code {}", "marked {}",
    ),
    "date": (
        "on {}", "dated {}", "the date is {}", "day: {}", "{} is the day", "as of {}", "when? {}", "it was {}",
        "since {}", "calendar: {}", "set for {}",
    ),
    "total": (
        "{} dollars in total", "the total is {} dollars", "sum {} dollars", "{} dollars altogether",
        "to pay: {} dollars", "amount {} dollars", "a price of {} dollars for everything",
    ),
    "items": (
        "for {}", "items: {}", "it lists {}", "ordered: {}", "{} were bought", "goods: {}", "that is {}", "we got {}",
    ),
    "kind": ("a {}", "the {}", "kind: {}", "planned as a {}", "this {}", "come to the {}", "type of event: {}"),
    "topic": (
        "on {}", "about {}", "the topic is {}", "subject: {}", "all about {}", "{} is the topic", "it deals with {}",
        "devoted to {}", "for lovers of {}",
    ),
    "seats": (
        "{} seats", "room for {} guests", "{} places", "up to {} people", "seats: {}", "{} can come", "limited to {}",
        "chairs for {}",
    ),
    "product": ("{}", "goods: {}", "content: {}", "product {}", "it is {}", "filled with {}", "what? {}"),
    "quantity": ("{} pieces", "quantity {}", "{} of them", "count: {}", "{} units", "how many? {}"),
}  # fmt: skip
"""For each field of the extraction tasks, phrases that no template contains word for word."""


@cache
def tellings() -> dict[frozenset[str], list[str]]:
    """Return the tellings of `tellings.txt`, by the fields of the extraction tasks they fit."""
    by_fields: dict[frozenset[str], list[str]] = {}
    text = files(__package__).joinpath("tellings.txt").read_text(encoding="utf-8")
    for telling in text.splitlines():
        by_fields.setdefault(fields_of(telling), []).append(telling)
    return by_fields


def fields_of(template: str) -> frozenset[str]:
    """Return the fields that a template names in braces."""
    return frozenset(re.findall(r"\{(\w+)\}", template))


ANYTHING = (
    "think of {}", "have you heard of {}?", "remember {}!", "there is {}", "see {}", "note: {}", "speaking of {}", "then {}",
    "it is {} again", "and of course {}", "I mean {}", "what about {}?", "{} it is", "{} again", "consider {}", "{}, yes",
    "why {}?", "that would be {}", "they said {}", "I wrote down {}", "as always {}", "this time {}", "nothing but {}",
    "I only say {}", "it was {}, I think", "you know {}", "she mentioned {}", "please do not forget {}", "well, {}",
    "look: {}", "{}, what else?", "here we have {}", "somebody told me {}", "is it {}?", "so {}", "we chose {}", "no doubt {}",
    "did I say {}?", "the answer is {}", "of all things {}", "{} was the word", "let us say {}", "keep {} in mind",
)  # fmt: skip
"""Phrases for any fact, whose words do not name the field."""
