"""Everyday queries, and sentences that no photograph shows: what a score is judged by. See `fit.py`."""

from __future__ import annotations

_SUBJECTS = """
a dog | a cat | a horse | a bird | a cow | a herd of sheep | a butterfly | an elephant | a fish | a bear | a duck
a squirrel | a lizard | an insect | a man | a woman | a child | a baby | an old couple | a group of friends
a crowd of people | a family | a bride and groom | a football player | a cyclist | a skier | a surfer | a swimmer
a runner | a climber | a dancer | a musician with a guitar | a singer | a cook | a farmer | a worker with a helmet
a police officer | a doctor | a student | a fisherman | a market stall | a portrait of a face | a selfie
two hands | a tattoo | a pair of shoes | a dress | a hat | sunglasses | an umbrella | a backpack | a watch
a car | a truck | a bus | a train | a tram | a motorcycle | a bicycle | an aeroplane | a helicopter | a sailing boat
a ferry | a traffic light | a road sign | a bridge | a tower | a church | a castle | a skyscraper | a house | a barn
a ruin | a statue | a fountain | a playground | a stadium | a shop window | a narrow street | a staircase | a door
a window | a kitchen | a bathroom | a bed | a sofa | a dining table | a desk with a computer | a bookshelf | a lamp
a mountain | a lake | a river | a waterfall | a forest | a desert | a field of flowers | a garden | a tree | a beach
the open sea | waves | an island | a cloudy sky | a rainbow | the moon | fireworks | a campfire | a snowman | a cave
a cake | a pizza | a bowl of soup | a plate of vegetables | fruit | bread | a cup of coffee | a glass of wine
ice cream | a toy | a ball | a kite | a balloon | a book | a letter | a map | a telephone | a camera | a painting
a flag | a bunch of roses | a mushroom | a spider in its web | a tent | a swimming pool
"""
_SETTINGS = """
at night | in the snow | in the rain | at sunset | in black and white | on the grass | in the city | near water
indoors | in front of a wall | seen from above | close up | in bright sunlight | in the background | in winter
in the mountains | on a road | on a table | blurred by motion | in the morning fog
"""
_FORMS = ("{subject}", "a photo of {subject}", "{subject} {setting}", "{subject} {other}")

# Sentences about what cannot be seen. They are as long as queries are, and of all kinds.
_UNSEEN = """
the square root of two is irrational | the bill was passed in its second reading | she has changed her mind since
inflation fell by half a percent | this theorem follows by induction | he speaks four languages | the past tense of go
the contract ends in march | why did they never answer | a better argument than the last | his opinion on taxes
the meeting is moved to thursday | an increase of the interest rate | the sum of all its angles
a sentence without a verb | what the author means by freedom | it depends on the definition
the law of supply and demand | an unpaid invoice from last year | the price went up again | all rights reserved
the password has expired | to whom it may concern | the third law of thermodynamics | yes but not always
the half-life of an isotope | a proof by contradiction | the causes of the first world war | in the year of his birth
they agreed to disagree | forty two divided by six | the opposite of courage | a promise that was not kept
the reason for the delay | a rumour about the merger | the rate of change of velocity | nobody knows for certain
the grammar of a dead language | an appeal against the verdict | her second novel was never finished
we regret to inform you | the probability of the opposite event | a matter of principle | the minutes of the meeting
an error in the third paragraph | a change of the constitution | his theory of knowledge
the melting point of tungsten | an exchange of ideas | the deadline has passed | ten percent of the shares
how to pronounce this word | a subscription renews itself | the difference between since and because
the speed of sound in a vacuum | please find attached | their common ancestor | a false memory
the cost of living | the end of the argument | an honest mistake | a question of time | the sense of smell
the terms and conditions apply | the boiling point at sea level | the translation is not exact
the frequency of the letter e | a hypothesis that cannot be tested | an allergy to nuts | the debt was forgiven
a number that divides no other | the last digit of pi | he resigned for personal reasons | it was only a dream
the second verse of the anthem | an unwritten rule | a long history of neglect | the pension reform
an average of seven hours | her blood type is unknown | the loan is due | a quiet conscience | the rules of inheritance
"""


def everyday_queries() -> list[str]:
    """Some 500 short sentences of what people search their photographs for."""
    subjects, settings = _entries(_SUBJECTS), _entries(_SETTINGS)
    queries = []
    for number, subject in enumerate(subjects):
        setting, other = settings[number % len(settings)], settings[(7 * number + 3) % len(settings)]
        if other == setting:
            other = settings[(number + 1) % len(settings)]
        queries += [form.format(subject=subject, setting=setting, other=other) for form in _FORMS]
    return queries


def unseen_sentences() -> list[str]:
    """Sentences that fit no photograph."""
    return _entries(_UNSEEN)


def _entries(text: str) -> list[str]:
    return [entry.strip() for line in text.strip().splitlines() for entry in line.split("|")]
