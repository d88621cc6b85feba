"""Chat templates that write today's date, given one day for good."""

import datetime

_DIRECTIVES = "aAbBcdDeFGgHIjmMpRSTuUVwWxXyY"
# strftime in the template's own language: what `transformers` hands to a template is plain data,
# and its own strftime_now reads the clock. A directive is one letter behind %, or two with "-".
_MACRO = """{%- macro strftime_now(format) -%}
{%- set day = DAY -%}
{%- for part in format.split('%') -%}
{%- if loop.first -%}{{ part }}
{%- elif part[:2] in day -%}{{ day[part[:2]] ~ part[2:] }}
{%- elif part[:1] in day -%}{{ day[part[:1]] ~ part[1:] }}
{%- else -%}{{ '%' ~ part }}
{%- endif -%}
{%- endfor -%}
{%- endmacro %}{{ '' }}"""


def dated(template: str, date: str) -> tuple[str, dict[str, str]]:
    """A template for which it is always the same day, and what it must be given besides.

    Args:
      template: the text of a chat template; one that asks for no date stays as it is.
      date: YYYY-MM-DD.

    Returns:
      The template, and variables: `date_string`, in Llama's format, where the template reads it.
    """
    day = datetime.datetime.fromisoformat(date)
    variables = {"date_string": day.strftime("%d %b %Y")} if "date_string" in template else {}
    if "strftime_now" not in template:
        return template, variables
    table = {letter: day.strftime(f"%{letter}") for letter in _DIRECTIVES}
    table |= {f"-{letter}": day.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dHIjmMSy"}
    return _MACRO.replace("DAY", repr(table)) + template, variables
