"""What a proof says, and how it ends when something does not hold."""


class Failed(Exception):
    """Something is not as the proof wants it."""


def say(text):
    print(text, flush=True)


def prove(sentence, holds, detail=""):
    """One line per promise; the first broken one ends the proof."""
    if not holds:
        raise Failed(f"NOT SO: {sentence}" + (f" ({detail})" if detail else ""))
    say(f"  ok: {sentence}" + (f" ({detail})" if detail else ""))
