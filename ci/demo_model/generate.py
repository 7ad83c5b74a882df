#!/usr/bin/env python3
"""Generates the training text of the demo model: documents from a grammar, the same for the same seed.

    python3 ci/demo_model/generate.py --documents 20 --seed 1

prints documents. The trainer calls `documents` in one process per shard.
"""

import argparse
import random

import daily
import facts
import lexicon
import stories
from grammar import Scene

# kind of document and its weight in the mix
KINDS = {
    stories.story: 34,
    stories.part_of_story: 5,
    stories.titled_story: 8,
    stories.requested_story: 8,
    facts.questions: 30,
    facts.knowledge: 14,
    facts.sums: 4,
    daily.recipe: 4,
    daily.instructions: 5,
    daily.letter: 6,
    daily.diary: 6,
    daily.conversation: 7,
    daily.about_person: 6,
    daily.weather_report: 2,
    daily.poem: 4,
    daily.reading: 5,
    daily.chat: 3,
}


def documents(count, seed):
    """`count` documents of shard `seed`."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    for kind in rng.choices(kinds, weights, k=count):
        yield kind(Scene(rng, lexicon.RULES))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("\n\n----\n\n".join(documents(arguments.documents, arguments.seed)))


if __name__ == "__main__":
    main()
