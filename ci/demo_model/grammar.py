"""A small grammar engine: templates with choices and slots, expanded by a seeded random generator.

`{a|b|c}` is one of its parts, at random; parts may be empty and may nest. `<name>` is a slot: a binding of the scene
(`<A>`, `<A.his>`, `<thing.the>`) or else a rule of the lexicon (`<weather>`), which is a list of templates.
"""

import re
from functools import lru_cache

TOKEN = re.compile(r"[{}|]|<[^<>]+>|[^{}|<>]+")
ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeioAEIO]|u(?!ni|se|su)|hour|honest)(?!ne[ -]))")
SENTENCE_START = re.compile(r"(^|[.!?] |\n|[.!?] [\"“]|\n[\"“]|^[\"“])([a-zéà])|([.!?]\" )(?=(?:then|so|together|they|it|when|every|the|after)\b)([a-z])")
SPEECH_END = re.compile(r"\.\"(?= (?:(?:he|she) )?(?:said|asked|replied|answered|whispered|cried|thought|shouted)\b)")
SPACE_BEFORE = re.compile(r" +([.,!?])")


@lru_cache(maxsize=None)
def parse(template):
    """The tree of a template: a tuple of strings, ("slot", name) and ("choice", alternatives)."""
    tokens = TOKEN.findall(template)
    tree, end = parse_sequence(tokens, 0)
    if end != len(tokens):
        raise ValueError(f"unbalanced braces in {template!r}")
    return tree


def parse_sequence(tokens, at):
    nodes = []
    while at < len(tokens) and tokens[at] not in ("|", "}"):
        if tokens[at] == "{":
            alternatives = []
            while tokens[at] != "}":
                nodes_inside, at = parse_sequence(tokens, at + 1)
                alternatives.append(nodes_inside)
            nodes.append(("choice", tuple(alternatives)))
        elif tokens[at].startswith("<"):
            nodes.append(("slot", tokens[at][1:-1]))
        else:
            nodes.append(tokens[at])
        at += 1
    return tuple(nodes), at


class Scene:
    """One document in the making: the random generator, the lexicon and what its names are bound to."""

    def __init__(self, rng, rules):
        self.rng = rng
        self.rules = rules
        self.bound = {}

    def bind(self, **things):
        self.bound.update(things)

    def pick(self, rule):
        """Binds a rule's expansion to the rule's own name, so that later uses agree."""
        self.bound[rule] = self.expand(f"<{rule}>")
        return self.bound[rule]

    def say(self, *templates):
        """The sentences of the templates, with articles and capitals set right."""
        return " ".join(part for part in (polish(self.expand(t)) for t in templates) if part)

    def paragraphs(self, *groups):
        return "\n\n".join(text for text in (self.say(*group) for group in groups) if text)

    def maybe(self, share, template):
        return template if self.rng.random() < share else ""

    def expand(self, template):
        out = []
        self._expand(parse(template), out)
        return "".join(out)

    def _expand(self, nodes, out):
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif node[0] == "choice":
                self._expand(self.rng.choice(node[1]), out)
            else:
                self._fill(node[1], out)

    def _fill(self, name, out):
        head, _, attribute = name.partition(".")
        if head in self.bound:
            thing = self.bound[head]
            value = getattr(thing, attribute) if attribute else str(thing)
            out.append(value)
        else:
            self._expand(parse(self.rng.choice(self.rules[name])), out)


def polish(text):
    """Spaces, articles, quotation marks and capitals, which templates leave to chance."""
    text = re.sub(r"[ \t]+", " ", text).strip()
    text = SPACE_BEFORE.sub(r"\1", text)
    text = re.sub(r"\b([Ii])n a farm\b", lambda m: ("O" if m[1] == "I" else "o") + "n a farm", text)
    text = ARTICLE.sub(r"\1n ", text)
    text = SPEECH_END.sub(',"', text)
    return SENTENCE_START.sub(lambda m: (m[1] or m[3] or "") + (m[2] or m[4]).upper(), text)


PRONOUNS = {"m": ("he", "him", "his", "himself"), "f": ("she", "her", "her", "herself")}


class Person:
    """A character: a name, what they are, and the pronouns that follow."""

    def __init__(self, name, gender, kind):
        self.name, self.kind = name, kind
        self.he, self.him, self.his, self.himself = PRONOUNS[gender]
        self.the = "the " + kind.split()[-1]

    def __str__(self):
        return self.name


class Thing:
    """A countable object: "red kite", with its articles."""

    def __init__(self, noun, adjective=""):
        self.noun = noun
        self.full = f"{adjective} {noun}".strip()
        self.a = "a " + self.full
        self.the = "the " + noun

    def __str__(self):
        return self.full
