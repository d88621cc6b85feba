"""Fixes the date in chat templates that write today's date."""

import datetime

_DIRECTIVES = "aAbBcdDeFGgHIjmMpRSTuUVwWxXyY"
# strftime in the template's language: `transformers` passes only plain data to a template, and its
# own strftime_now reads the clock. A directive is % with one letter, or with "-" and a letter.
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
    """A template that always sees the same date, and the variables to render it with.

    Args:
      template: the text of a chat template; one without a date is returned unchanged.
      date: YYYY-MM-DD.

    Returns:
      The template, and variables: `date_string`, in Llama's format, if the template reads it.
    """
    day = datetime.datetime.fromisoformat(date)
    variables = {"date_string": day.strftime("%d %b %Y")} if "date_string" in template else {}
    if "strftime_now" not in template:
        return template, variables
    table = {letter: day.strftime(f"%{letter}") for letter in _DIRECTIVES}
    table |= {f"-{letter}": day.strftime(f"%{letter}").lstrip("0") or "0" for letter in "dHIjmMSy"}
    return _MACRO.replace("DAY", repr(table)) + template, variables
