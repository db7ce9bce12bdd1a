"""Mathematics, tables and questions with answers, computed: true, without a source, the same at every run."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from fractions import Fraction
from random import Random

Texts = Iterator[tuple[str, str]]
_TEXTS = 24  # of each kind of mathematics and tables
_NAMES = ("Ada", "Bruno", "Chandra", "Dilek", "Emil", "Farida", "Goran", "Hana", "Imani", "Jonas", "Keiko", "Luis")
_GOODS = ("apples", "notebooks", "tickets", "bricks", "stamps", "cups of flour", "bottles", "pencils", "tiles")
_UNITS = (
    ("kilometres", "miles", Fraction(15625, 25146)), ("kilograms", "pounds", Fraction(100000000, 45359237)),
    ("litres", "US gallons", Fraction(1000000000, 3785411784)), ("metres", "feet", Fraction(10000, 3048)),
    ("inches", "centimetres", Fraction(254, 100)), ("hours", "seconds", Fraction(3600)),
)  # fmt: skip


def linear_equation(r: Random) -> str:
    """One unknown, solved step by step."""
    a, b, c, x = r.randint(2, 19), r.randint(-40, 40), r.randint(1, 12), r.randint(-20, 20)
    c += c == a
    d = (a - c) * x + b
    return (
        f"Solve {a}x {b:+d} = {c}x {d:+d}.\nSubtract {c}x on both sides: {a - c}x {b:+d} = {d}.\n"
        f"Subtract {b}: {a - c}x = {d - b}.\nDivide by {a - c}: x = {x}.\n"
        f"Check: {a}·({x}) {b:+d} = {a * x + b} and {c}·({x}) {d:+d} = {c * x + d}. Both sides agree.\n"
    )


def quadratic(r: Random) -> str:
    """With whole roots, by the formula, in TeX."""
    p, q = r.randint(-12, 12), r.randint(-12, 12)
    b, c = -(p + q), p * q
    root = abs(p - q)
    return (
        f"\\textbf{{Problem.}} Find all real solutions of $x^2 {b:+d}x {c:+d} = 0$.\n\n\\textbf{{Solution.}} The "
        f"discriminant is $\\Delta = ({b})^2 - 4 \\cdot ({c}) = {b * b - 4 * c} = {root}^2$, hence\n"
        f"$$x = \\frac{{{-b} \\pm {root}}}{{2}}, \\qquad x_1 = {max(p, q)}, \\quad x_2 = {min(p, q)}.$$\n"
    )


def euclid(r: Random) -> str:
    """Greatest common divisor, with every division."""
    a, b = r.randint(200, 9999), r.randint(100, 999)
    lines, x, y = [f"The greatest common divisor of {a} and {b}, by Euclid's algorithm:"], a, b
    while y:
        lines.append(f"  {x} = {x // y} × {y} + {x % y}")
        x, y = y, x % y
    lcm = a // x * b
    return "\n".join([*lines, f"so gcd({a}, {b}) = {x}, and the least common multiple is {a}·{b}/{x} = {lcm}."]) + "\n"


def word_problem(r: Random) -> str:
    """Shopping, in words and then in numbers."""
    one, two = r.sample(_NAMES, 2)
    goods, price, count, more = r.choice(_GOODS), r.randint(2, 25), r.randint(3, 30), r.randint(1, 9)
    cost, total = price * count, price * count + price * (count + more)
    return (
        f"{one} buys {count} {goods} at {price} euros each, and {two} buys {more} more of them than {one} at the same "
        f"price. How much do they spend together?\n{one} pays {count} × {price} = {cost} euros. {two} takes {count} + "
        f"{more} = {count + more} {goods} and pays {count + more} × {price} = {total - cost} euros. Together that is "
        f"{cost} + {total - cost} = {total} euros.\n"
    )


def fractions(r: Random) -> str:
    """A sum of two fractions, brought to one denominator."""
    a, b = Fraction(r.randint(1, 30), r.randint(2, 40)), Fraction(r.randint(1, 30), r.randint(2, 40))
    common = math.lcm(a.denominator, b.denominator)
    x, y = a.numerator * common // a.denominator, b.numerator * common // b.denominator
    total = a + b
    return (
        f"{a} + {b} = {x}/{common} + {y}/{common} = {x + y}/{common} = {total}, which is about {float(total):.5f}; "
        f"their product is {a * b}, their quotient {a / b}.\n"
    )


def derivative(r: Random) -> str:
    """Of a cubic, with its value at a point."""
    a, b, c, d, x = (r.randint(-9, 9) or 1 for _ in range(5))
    value = 3 * a * x * x + 2 * b * x + c
    return (
        f"Let f(x) = {a}x³ {b:+d}x² {c:+d}x {d:+d}. Term by term, f'(x) = {3 * a}x² {2 * b:+d}x {c:+d}, and at x = {x} "
        f"the slope is {3 * a}·{x * x} {2 * b:+d}·({x}) {c:+d} = {value}. The curve is there "
        f"{'rising' if value > 0 else 'falling' if value < 0 else 'level'}.\n"
    )


def mathematics(r: Random) -> Texts:
    """Worked problems, several kinds in a text."""
    kinds: tuple[Callable[[Random], str], ...] = (
        linear_equation, quadratic, euclid, word_problem, fractions, derivative,
    )  # fmt: skip
    for number in range(_TEXTS):
        yield f"worked problems {number}", "\n".join(r.choice(kinds)(r) for _ in range(18))


def _numbers(r: Random) -> list[dict[str, object]]:
    first = r.randint(2, 900)
    return [
        {"n": n, "square": n * n, "cube": n**3, "root": round(math.sqrt(n), 4), "log10": round(math.log10(n), 5),
         "binary": f"{n:b}", "divisors": sum(n % d == 0 for d in range(1, n + 1))}
        for n in range(first, first + 25)
    ]  # fmt: skip


def _calendar(r: Random) -> list[dict[str, object]]:
    first = date(r.randint(1900, 2090), r.randint(1, 12), r.randint(1, 28))
    days = [first + timedelta(days=step * r.randint(3, 40)) for step in range(22)]
    return [
        {"date": day.isoformat(), "weekday": f"{day:%A}", "month": f"{day:%B}", "day of year": day.timetuple().tm_yday,
         "ISO week": day.isocalendar()[1], "leap year": "yes" if day.year % 4 == 0 and day.year != 1900 else "no"}
        for day in days
    ]  # fmt: skip


def _loan(r: Random) -> list[dict[str, object]]:
    rest, rate, months = float(r.randint(5, 90) * 1000), r.randint(2, 9) / 100, 24
    payment = rest * (rate / 12) / (1 - (1 + rate / 12) ** -months)
    rows: list[dict[str, object]] = []
    for month in range(1, months + 1):
        interest = rest * rate / 12
        rest -= payment - interest
        paid = {"payment": f"{payment:.2f}", "interest": f"{interest:.2f}", "balance": f"{abs(rest):.2f}"}
        rows.append({"month": month, **paid})
    return rows


def _markdown(rows: list[dict[str, object]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _csv(rows: list[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _json(rows: list[dict[str, object]]) -> str:
    return json.dumps(rows[:12], indent=2) + "\n"


def _html(rows: list[dict[str, object]]) -> str:
    cells = ["".join(f"<td>{value}</td>" for value in row.values()) for row in rows]
    head = "".join(f"<th>{name}</th>" for name in rows[0])
    return "\n".join(["<table>", f"  <tr>{head}</tr>", *(f"  <tr>{line}</tr>" for line in cells), "</table>"]) + "\n"


def tables(r: Random) -> Texts:
    """Numbers, dates and loans, as Markdown, CSV, JSON and HTML."""
    for number in range(_TEXTS):
        parts = [r.choice((_markdown, _csv, _json, _html))(r.choice((_numbers, _calendar, _loan))(r)) for _ in range(4)]
        yield f"tables {number}", "\n".join(parts)


def _question(r: Random) -> tuple[str, str]:
    kind = r.randrange(5)
    a, b = r.randint(11, 99), r.randint(11, 99)
    if kind == 0:
        tens, ones = divmod(b, 10)
        return (
            f"What is {a} times {b}?",
            f"{a} × {b} = {a} × {tens * 10} + {a} × {ones} = {a * tens * 10} + {a * ones} = {a * b}.",
        )
    if kind == 1:
        day = date(r.randint(1800, 2099), r.randint(1, 12), r.randint(1, 28))
        return (
            f"Which day of the week was {day.day} {day:%B %Y}?",
            f"It is a {day:%A} in the Gregorian calendar, day {day.timetuple().tm_yday} of that year.",
        )
    if kind == 2:
        source, target, factor = r.choice(_UNITS)
        return (
            f"I have {a} {source}. How many {target} is that?",
            f"1 corresponds to {float(factor):.5g}, so {a} {source} are about {float(a * factor):,.2f} {target}.",
        )
    if kind == 3:
        prime = all(a % d for d in range(2, a))
        divisor = next(d for d in range(2, a + 1) if a % d == 0)
        yes, no = f"Yes: no number from 2 to {math.isqrt(a)} divides {a}.", f"No: {a} = {divisor} × {a // divisor}."
        return f"Is {a} a prime number?", yes if prime else no
    total, share = a * 10, r.choice((5, 10, 12, 15, 20, 25))
    return (
        f"What do I pay if something costs {total} euros and there are {share} % off?",
        f"{share} % of {total} is {total * share / 100:g}, so you pay {total} - {total * share / 100:g} = "
        f"{total - total * share / 100:g} euros.",
    )


def dialogues(r: Random) -> Texts:
    """Questions and answers of two people, in the forms that chats are written down."""
    for number in range(_TEXTS):
        one, two = r.sample(_NAMES, 2)
        forms = (("User: ", "Assistant: "), (f"{one}: ", f"{two}: "), ("**Question.** ", "**Answer.** "), ("— ", "— "))
        ask, answer = r.choice(forms)
        turns = (_question(r) for _ in range(14))
        yield f"questions {number}", "\n\n".join(f"{ask}{question}\n{answer}{reply}" for question, reply in turns)
