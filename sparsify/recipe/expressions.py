"""Evaluate the arithmetic inside `${...}`.

Numbers, names, + - * / // % **, parentheses, min max round int.
"""

import ast
import math
import warnings
from collections.abc import Callable
from typing import Final

from sparsify.recipe.wording import describe_value, quote_text, suggest

Value = str | int | float | bool | None
Look = Callable[[str], Value]
"""Returns the value of a name. Raises ExpressionError where there is none."""

LONGEST: Final = 200
"""Characters of an expression."""
LARGEST: Final = 10**18
"""Bound of whole numbers."""
FUNCTIONS: Final = ("int", "max", "min", "round")
ALLOWED: Final = "only numbers, variables, + - * / // % **, parentheses, min, max, round and int"


class ExpressionError(Exception):
    """What is wrong with an expression, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def evaluate_expression(text: str, look: Look) -> Value:
    """Evaluate an expression by walking its syntax tree; nothing is executed. Raises ExpressionError."""
    value = _walk(_parse(text), look)
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError(f"{quote_text(text)} is not a finite number")
    return value


def _parse(text: str) -> ast.expr:
    if not text.strip():
        raise ExpressionError("an empty expression", "write a variable's name between the braces")
    if len(text) > LONGEST:
        raise ExpressionError(f"an expression of {len(text)} characters", f"at most {LONGEST}")
    try:
        with warnings.catch_warnings():
            # Warnings such as "invalid decimal literal" are of no use: bad syntax is refused below.
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ExpressionError(f"{quote_text(text)} is not an expression", ALLOWED) from None


def _walk(node: ast.expr, look: Look) -> Value:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _check_bounds(number)
        case ast.Name(id=name):
            return look(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, look)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, look)
        case ast.BinOp(left=left, op=operator, right=right):
            return _check_bounds(_combine(operator, _number(left, look), _number(right, look)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _check_bounds(_call(name, [_number(argument, look) for argument in arguments]))
        case ast.Call(func=ast.Name(id=name)):
            raise ExpressionError(f"'{name}' cannot be called", suggest(name, FUNCTIONS))
    raise ExpressionError(f"{quote_text(ast.unparse(node))} is not allowed in an expression", ALLOWED)


def _number(node: ast.expr, look: Look) -> int | float:
    value = _walk(node, look)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(
            f"arithmetic needs numbers, and {quote_text(ast.unparse(node))} is {describe_value(value)}"
        )
    return value


def _combine(operator: ast.operator, a: int | float, b: int | float) -> int | float:
    try:
        match operator:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return a / b
            case ast.FloorDiv():
                return a // b
            case ast.Mod():
                return a % b
            case ast.Pow():
                return _power(a, b)
    except ZeroDivisionError:
        raise ExpressionError("division by zero") from None
    except OverflowError:
        raise ExpressionError("the result is too large", f"whole numbers stay below {LARGEST:.0e}") from None
    raise ExpressionError("an operator that is not allowed", ALLOWED)


def _power(a: int | float, b: int | float) -> int | float:
    """Refused before it is computed where the result would be large: 9 ** 9 ** 9 must cost nothing."""
    if isinstance(a, int) and isinstance(b, int) and b > 0 and abs(a) > 1 and b * math.log2(abs(a)) > 60:
        raise OverflowError
    value = a**b
    if isinstance(value, complex):
        raise ExpressionError("a root of a negative number")
    return value


def _call(name: str, arguments: list[int | float]) -> int | float:
    try:
        match name, arguments:
            case "int", [value]:
                return int(value)
            case "round", [value]:
                return round(value)
            case "round", [value, int(digits)] if abs(digits) <= 15:
                return round(value, digits)
            case "min", [_, *_]:
                return min(arguments)
            case "max", [_, *_]:
                return max(arguments)
    except (OverflowError, ValueError):
        raise ExpressionError(f"{name} of a number that is not finite") from None
    raise ExpressionError(
        f"'{name}' does not take {len(arguments)} such arguments",
        "int(x), round(x), round(x, digits), min(x, ...), max(x, ...)",
    )


def _check_bounds(value: int | float) -> int | float:
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ExpressionError("the result is too large", f"whole numbers stay below {LARGEST:.0e}")
    return value
