r"""Multiple choice: the letter that a response declares.

| a response | its letter |
|---|---|
| B; (B); B.; B) text; **B**; $B$; \boxed{B}; \text{(B)}; Ｂ | B |
| b | none: a bare small letter is a word; "Answer: b", \boxed{b} and (b) count |
| Answer: B; the answer is (B); the correct option is B; my answer: I would choose B | B |
| several declarations | the last one: "Answer: A ... I correct this. Answer: B" is B |
| Answer: B. Option A fails. | B: an option that is only mentioned is not an answer |
| B is correct; I choose B; so B. | B, unless an answer is declared in another way |
| ... (B) ... | B, if the last sentence with bracketed letters names just one it does not reject |
| A or B; A and B; (A) or (D); AB; None of the above; not A | none |
| A-D; A | B; (A) (D); A (or B) | none |
| The answer is a dog; The answer I found ... | none: an article or a pronoun is not a letter |
| Answer: C60; B = 3 T; B/2; D-glucose | none: the letter begins a formula or a name |
| Wrong answer: D; if, suppose, whether, I doubt the answer is D | ignored, like "not D" |
| <think>Answer: A</think> B | B: the text before the last </think> is ignored |
"""

import re

from dfpo_jax.tasks.dress import plain

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b|<answer>", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</\w+>")
# Every repetition is bounded, so that matching takes linear time for any text.
_WRAP = r"[\s(\[{\"'$:=<>-]{0,10}"
_ENDS = r"(?=[\s)\]}]{0,9}(?:[.,;:!?\"'$<)\]}]|\n|$))"
# A or I before a small letter is a word, unless a reason follows.
_REASON = r"(?:because|since|as|for|which|due|by|and|but|with|not|from|or)\b"
# What may not follow a letter: the rest of a word or of a formula.
_ALONE = r"(?!'?[A-Za-z]|[\d^₀-₉(]|_[\w{]|/\d|\s?=(?!>)|-[A-Za-z]|\+\s[a-z])"
_CAPITAL = rf"(?:[B-HJ-Z]{_ALONE}|[AI]{_ALONE}(?![ ]{{1,9}}(?!{_REASON})[a-z]))"
_SMALL = rf"(?:[a-z](?!'?[A-Za-z])){_ENDS}"
_LETTER = rf"(?P<letter>{_CAPITAL}|{_SMALL})"
_MEANS = (
    r"(?:is|was|be|are|=|:|choose|chose|pick|select|say|guess|go with|going with|opt for"
    r"|conclude|would|must|should)"
)
_FILLER = (
    r"(?:(?:I|i|a|(?i:we|you|would|will|should|must|be|is|to|have|has|found|the|my|our|option|choice"
    r"|letter|answer|final|correct|right|best|choose|chose|pick|select|say|think|believe|go|with"
    r"|definitely|clearly|most|likely|probably|therefore|thus|indeed|again|still|simply|just"
    r"|obviously|that|it|it's|given|by))\b[\s:*=-]{0,6}){0,8}"
    r"(?:not\s(?:option\s)?\W{0,2}[A-Z]\W{1,4}but\s(?:rather\s)?)?"
)
_DECLARED = re.compile(
    rf"(?:\b(?i:answers?|ans)\b\.?|\b(?i:solution)(?=\s?:)|答案)(?:[^.\n!?]{{0,60}}?(?:(?<![A-Za-z])(?i:{_MEANS})(?![A-Za-z])|[是为為])[\s:=*-]{{0,6}}"
    rf"|[\s:=>*-]{{0,6}}){_FILLER}{_WRAP}{_LETTER}"
)
_CORRECT = re.compile(
    rf"(?i:\b(?:correct|right|best|final|my)\s(?:option|choice|letter|one|statement)\s?(?:is|:|=))\s?"
    rf"{_FILLER}{_WRAP}{_LETTER}"
)
_CHOSEN = re.compile(
    rf"(?:\b(?i:choose|chose|pick|select|opt for|go with|going with|conclude)\s{_FILLER}{_WRAP}"
    rf"{_LETTER}"
    rf"|\b(?i:it is|it's|it must be|say|believe|think|guess)\s{_FILLER}{_WRAP}(?P<said>{_CAPITAL})"
    r"(?=[\s)\]}*\"'$]{0,9}(?:[.,;:!?]|\n|$|because\b|since\b|as\b))"
    r"|(?P<option>\b[A-Z])\)?\s(?:is|must be|has to be|would be|should be)\s"
    r"(?:(?:therefore|thus|clearly)\s)?(?:(?:the|my)\s)?(?:correct|right|true|best|answer)\b"
    r"|(?:\b(?i:so|thus|hence|therefore)[\s,:]{1,4}|∴\s?)(?:(?:it|the answer) is\s|it's\s)?"
    r"(?:(?i:option|choice)\s)?\(?(?P<so>[A-Z])\)?\s?(?:[.!]|$))"
)
# Cheap patterns for the places where the patterns above may begin.
_ANSWER = re.compile(r"[Aa][Nn][Ss]|[Ss][Oo][Ll][Uu]|答案")
_OPTION = re.compile(r"\b(?=[CcRrBbFfMm])(?i:correct|right|best|final|my)\s")
_CHOICE = re.compile(r"\b[A-Zbcghiopst]|∴")
_FIRST = re.compile(
    rf"{_WRAP}(?:(?i:option|choice|letter)\s\(?)?([A-Z])(?:[)\]}}$\"'\s]{{0,9}}(?:[.):-][\s)].*"
    r"|,?\s?(?:because|since)\b.*|,\sas\b.*|[.):,])?[\s)\]}$.\"']{0,9})",
    re.DOTALL,
)
_SMALL_FIRST = re.compile(rf"{_WRAP}([a-z])[)\]}}$.:\"'\s]{{0,9}}")
_BRACKETED_SMALL = re.compile(r"\W*\(([a-z])\)\W*")
_LISTED = re.compile(r"^\W{0,3}[A-Z][.):]\s", re.MULTILINE)
_LISTED_INLINE = re.compile(r"(?:^|[\s,;(])[A-Z][.):](?=\s|\Z)")
_TAIL = 2000  # last characters that are searched for letters in brackets
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_REJECTS = (
    r"(?:is|are|was|were|seems?|looks?|must be|would be)\s+(?:\w+ly\s+)?(?:wrong|incorrect|not"
    r"|false|impossible|out|ruled|eliminated|excluded|invalid|no\b|never|n't|inconsistent)"
    r"|isn't|can't|cannot|can not|fails?|forgets?|ignores?|contradicts?|violates?|does(?:n't| not)"
    r"|won't|would not|overlooks?|confuses?"
)
_REJECTED_AFTER = re.compile(rf"[\s)\]}}*\"'$,]{{0,9}}(?:{_REJECTS})", re.IGNORECASE)
_REJECTED_BEFORE = re.compile(
    r"(?:\bnot|\bcannot|n't|\bnever|\bnor|\bneither|\bwithout|\bthan|\bunlike|\binstead of"
    r"|\brul\w+ out|\beliminat\w+|\bexclud\w+|\breject\w*|\bagainst|\bexcept"
    r"|\bunlikely to|\bhardly)[\s(\[*\"'$]*"
    r"(?:(?:be|the|option|choice|answer|letter)[\s(\[*\"'$]*)*\Z",
    re.IGNORECASE,
)
# Before the word "answer" or "option": the text calls it wrong or only supposes it.
_SUPPOSED_BEFORE = re.compile(
    r"(?:\b(?:wrong|incorrect|distractor) |\b(?:mistake|error|trap|tempting) (?:is )?to "
    r"|(?:\b(?:i|we) (?:\w+ )?doubt|(?<!\bi )\b(?:suppose|assume)|\bif|\bwhether|\bthought"
    r"|n't (?:think|believe)) (?:that )?(?:the )?(?:(?:correct|right|final|best) )?"
    r"|\bif\b[^.\n!?]{0,50}\b(?:forg[eo]t|ignor|neglect|omit|overlook)\w*[^.\n!?]{0,50} )\Z"
)
# Every match of that pattern has one of these.
_HINTS = ("if ", "wrong ", "incorrect ", "distractor ", "to ", "doubt ", "suppose ", "assume ",
          "whether ", "thought ", "n't ")  # fmt: skip
_NOT_THOUGHT = re.compile(r"n't (?:(?:think|believe|say) (?:that )?)?\Z")
_ANOTHER = (
    r"[A-HJ-Z](?!'?[A-Za-z])(?!\)?\s(?:is|was|are|being|having|fails?|isn't|cannot|can't|can|would"
    r"|could|does|doesn't|has|gives?|violates?|ignores?|contradicts?|requires?)\b)"
)
_JOINED_AFTER = re.compile(
    r"[\s)\]}*\"'$]{0,9}(?:(?:,\s?)?\(?(?i:and/or|or|and|as well as|plus)\b|[/&,+]|\|(?![ ]*\n))"
    r"[\s(\[{*\"'$]{0,9}(?:(?i:option|choice|possibly|maybe|perhaps)\s+)?[(\[]?"
    rf"(?:both\b|{_ANOTHER})|\)[ ]?\((?=[A-Z]\)){_ANOTHER}"
    r"|\)?[ ]?-[ ]?\(?[A-HJ-Z]\)?[ ]{0,3}(?:[.\n]|\Z)"
)
# Joins the letters of a list in brackets, which are all rejected together.
_LINK = re.compile(r",?\s(?:(?:and|or|nor)\s)?(?:(?:option|choice)\s)?")
_NOT_REJECTED = re.compile(r"\s(?:is|must|fits|remains)\b")


def letter(text: str, declared: bool = False) -> str | None:
    """The letter that a text declares, as a capital; None if it declares none.

    Args:
      text: a response, or the part of it with the answer.
      declared: whether the text is known to be an answer, such as a reference or the content of a
        box. Then a small letter counts too.
    """
    if "A" <= text <= "Z" and len(text) == 1:
        return text
    if "\\" in text or "<" in text:
        text = text.rpartition("</think>")[2]
        text = _CLOSING_TAG.sub(" .\n", _BOX.sub(" answer: ", text))
    text = plain(text).replace("—", " - ").strip()
    for keyword, pattern in ((_ANSWER, _DECLARED), (_OPTION, _CORRECT)):
        if (found := _accepted(text, keyword, pattern)) is not None:
            return found or None
    if declared and (first := _SMALL_FIRST.fullmatch(text)):
        return first[1].upper()
    if bracketed := _BRACKETED_SMALL.fullmatch(text):
        return bracketed[1].upper()
    if first := _first(text):
        return first
    if (chosen := _accepted(text, _CHOICE, _CHOSEN)) is not None:
        return chosen or None
    return _bracketed(text[-_TAIL:])


def _first(text: str) -> str | None:
    """The letter at the start of a text, unless it lists the choices or names two."""
    first = _FIRST.fullmatch(text)
    if not first or len(_LISTED.findall(text)) > 1 or len(_LISTED_INLINE.findall(text)) > 2:
        return None
    joined = _JOINED_AFTER.match(text, first.end(1))
    return None if joined or _REJECTED_AFTER.match(text, first.end(1)) else first[1]


def _accepted(text: str, keyword: re.Pattern, pattern: re.Pattern) -> str | None:
    """The last letter that a pattern declares and the text does not reject; "" if it names several.

    The pattern is tried wherever its keyword begins, from the end of the text.
    """
    for begin in reversed([found.start() for found in keyword.finditer(text)]):
        match = pattern.match(text, begin)
        if not match:
            continue
        start, end = match.span(match.lastgroup)
        before = text[max(start - 40, 0) : start]
        if pattern is _CHOSEN:
            supposed = _NOT_THOUGHT.search(text[max(begin - 20, 0) : begin])
        else:
            head = text[max(begin - 110, 0) : begin].lower()
            supposed = any(hint in head for hint in _HINTS) and _SUPPOSED_BEFORE.search(head)
        if supposed:
            continue
        if not _REJECTED_AFTER.match(text, end) and not _REJECTED_BEFORE.search(before):
            return "" if _JOINED_AFTER.match(text, end) else match[match.lastgroup].upper()
    return None


def _bracketed(text: str) -> str | None:
    for sentence in reversed(re.split(r"[.!?]\s+|\n", text)):
        found, denied = set(), -1
        for match in _IN_BRACKETS.finditer(sentence):
            start, end = match.span()
            listed = denied >= 0 and _LINK.fullmatch(sentence, denied, start)
            if _REJECTED_BEFORE.search(sentence[max(start - 40, 0) : start]) or (
                listed and not _NOT_REJECTED.match(sentence, end)
            ):
                denied = end
            elif not _REJECTED_AFTER.match(sentence, end):
                found.add(match[1])
        if found:
            return found.pop() if len(found) == 1 else None
    return None
