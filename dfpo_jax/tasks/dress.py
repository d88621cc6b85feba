r"""Removes the formatting ("dress") that people and models put around an answer.

`plain` is the first step of every reader of numbers, letters and texts. It changes notation but not
content:

- typeset minus signs and dashes (U+2010 to U+2013, U+2212) become "-"; an em dash is kept;
- full-width characters and digits of every script become ASCII; superscripts become ^ and ½ 1/2;
- every space becomes an ordinary one, and characters without width are removed;
- every currency sign becomes "$";
- LaTeX: \dfrac{3}{4} becomes 3/4; \text, \mathbf, \boxed and other formatting commands become
  their argument; spacing, \left and \right are removed; \$, \%, \times, \le, \pi, ... become
  characters;
- bold, italics and code of Markdown, and tags of HTML become their content.
"""

import re
import unicodedata

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_SUPERSCRIPT = re.compile(f"[{_SUPERSCRIPTS}]+")
_AS_DIGITS = str.maketrans(_SUPERSCRIPTS, "0123456789+-")
_VULGAR = re.compile("(?:(\\d)\\s?)?([¼-¾⅐-⅞])")
_CHARACTERS = {
    "\u2212": "-", "\ufe63": "-", "\uff0d": "-",
    "·": "×", "⋅": "×", "∙": "×", "✕": "×", "÷": "/", "⁄": "/", "∕": "/",
    "’": "'", "‘": "'", "“": '"', "”": '"', "。": ".", "、": ",",
    "٫": ".", "٬": ",", "٪": "%",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "=", "≃": "=", "≅": "=",
    "→": "=>", "⇒": "=>", "⟹": "=>", "°": " degrees", "º": " degrees",
}  # fmt: skip


def _characters() -> dict[int, str]:
    """Maps characters to the ASCII ones that they stand for, and those without width to ""."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= {code: "-" for code in range(0x2010, 0x2014)}
    for code in range(128, 0x20000):
        kind = unicodedata.category(chr(code))
        if kind == "Nd":
            table[code] = str(unicodedata.decimal(chr(code)))
        elif kind in ("Zs", "Zl", "Zp"):
            table[code] = " " if kind == "Zs" else "\n"
        elif kind == "Cf" or 0xFE00 <= code <= 0xFE0F:
            table[code] = ""
        elif kind == "Sc":
            table[code] = "$"
    return table | {ord(key): value for key, value in _CHARACTERS.items()}


_TABLE = _characters()

# Commands that format their argument, and commands that print nothing or a space.
_FORM = set(
    "text textbf textit textrm textsf texttt textnormal textup textsc mathrm mathbf mathit mathsf "
    "mathtt mathbb mathnormal mathcal mbox hbox operatorname boxed fbox framebox underline emph "
    "bold boldsymbol bm displaystyle textstyle scriptstyle large Large huge Huge small bf rm it "
    "mathop ensuremath overline".split()
)
_NOTHING = set("left right big Big bigg Bigg bigl bigr Bigl Bigr limits nolimits".split())
_AS = {
    "times": "×", "cdot": "×", "ast": "×", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=",
    "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=", "lt": "<", "gt": ">",
    "approx": "=", "sim": "=", "simeq": "=", "equiv": "=", "cong": "=", "pm": "±", "mp": "±",
    "pi": "π", "sqrt": "√", "infty": "∞", "degree": " degrees", "deg": " degrees",
    "pounds": "$", "euro": "$", "textdollar": "$", "percent": "%",
    "rightarrow": "=>", "Rightarrow": "=>", "implies": "=>", "to": "=>", "longrightarrow": "=>",
    "therefore": " ", "because": " ", "quad": " ", "qquad": " ", "dots": " ", "ldots": " ",
    "cdots": " ", "newline": "\n", "space": " ", "enspace": " ", "thinspace": " ", "hfill": " ",
    "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]",
}  # fmt: skip
_ESCAPED = {
    "!": "", "/": "", ",": " ", ";": " ", ":": " ", ">": " ", " ": " ", "\n": " ", "\\": "\n",
    "(": " ", ")": " ", "[": " ", "]": " ",
    "$": "$", "%": "%", "#": "#", "&": "&", "_": "_", "{": "{", "}": "}",
}  # fmt: skip
_COMMAND = re.compile(
    r"\\(?:text)?color\s*\{\w*\}|\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\([a-zA-Z]+)(\*?\s*\{?)|\\(.)",
    re.DOTALL,
)
_OPENED = "\x01"  # marks the brace that opens such an argument while `plain` runs
_BRACE = re.compile(f"[{{}}{_OPENED}]")
_ONE = r"(?:\s?\{\s?(-?[\d.,]{1,40}|-?[a-zA-Z])\s?\}|\s?(\d))"
_FRACTION = re.compile(rf"(?:(\d)\s?)?\\(?:d|t|c|s|x|nice)?frac{_ONE}{_ONE}")
_OVER = re.compile(r"(?:(\d)\s?)?\{\s?(-?\d{1,40})\s?\\over\s?(-?\d{1,40})\s?\}")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?")
_SEPARATOR = re.compile(r"\{\s*([.,])\s*\}")
_TIE = re.compile(r"(?<=[\w$%])~(?=[\w$\\])")
_TAG = re.compile(r"</?(?![A-Z]>)[a-zA-Z][\w\s=\"'/-]{0,40}>")
_ANGLES = re.compile(r"<([-\d.,]{1,40})>(?!>)")
_OPENING = re.compile(r"(?<![\w*`^\\)}\]])[*_`]{1,3}(?=[^\s*_`])|(?<!\S)[*`]{2,3}(?=\s)")
_CLOSING = re.compile(r"(?<=[^\s*_`])[*_`]{1,3}(?![\w*({^])")


def plain(text: str) -> str:
    """A text without its formatting, see the module; takes linear time."""
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(_AS_DIGITS) + "}", text)
        text = _VULGAR.sub(_vulgar, text).translate(_TABLE)
    if "_" in text or "`" in text or "*" in text.replace(" * ", ""):
        text = _CLOSING.sub("", _OPENING.sub("", text))
    if "<" in text:
        text = _ANGLES.sub(r" \1 ", _TAG.sub(" ", text))
    if "{" in text:
        text = _SEPARATOR.sub(r"\1", text)
        text = _OVER.sub(lambda m: _ratio(m[1], m[2], m[3]), text)
    if "~" in text:
        text = _TIE.sub(" ", text)
    if "\\" in text:
        text = _DEGREES.sub(" degrees", text)
        text = _FRACTION.sub(lambda m: _ratio(m[1], m[2] or m[3], m[4] or m[5]), text)
        text = _COMMAND.sub(_command, text)
        if _OPENED in text:
            text = _without_braces(text)
    return text


def _vulgar(match: re.Match) -> str:
    top, bottom = unicodedata.normalize("NFKC", match[2]).split("⁄")
    return _ratio(match[1], top, bottom or "1")


def _ratio(whole: str, top: str, bottom: str) -> str:
    return f"{whole} {top}/{bottom}" if whole else f"{top}/{bottom}"


def _without_braces(text: str) -> str:
    """Removes the braces around arguments of formatting commands and keeps the others."""
    parts, end, opened = [], 0, []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace[0])
        keep = brace[0] == "{" or (brace[0] == "}" and (not opened or opened.pop() == "{"))
        parts.append(text[end : brace.end() if keep else brace.start()])
        end = brace.end()
    return "".join([*parts, text[end:]])


def _command(match: re.Match) -> str:
    name, argument, character = match.groups()
    if character is not None:
        return _ESCAPED.get(character, match[0])
    if name is None:
        return " "
    if name in _FORM:
        return f" {_OPENED}" if argument.endswith("{") else " "
    if name in _NOTHING:
        return argument.strip()
    return _AS[name] + argument if name in _AS else match[0]
