"""The budget of a run: what its agent may spend at the model API, when that is used up, and how it is raised."""

from __future__ import annotations

from workflows.messages import Message
from workflows.runs.messages import Amount, ContinueRequest, Count, TokenUsage

# Less than anybody is charged for: sums of dollars are compared beyond it.
_DIGITS = 6
# Most that is added at once: sums of so many as one run can have stay numbers that every message takes.
USD_MOST, TOKENS_MOST = 1e9, 10**15
CONTINUE_WITH = "sandbox task continue {} --budget USD"


class Budget(Message):
    """Limits of a run: US dollars by the price table, and tokens of every kind. Without one, that is not limited.

    With ``pause``, an agent that has used it up is held back, and may be let go on; without, it is refused for good.
    """

    usd: Amount | None = None
    tokens: Count | None = None
    pause: bool = False

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self.usd is None and self.tokens is None

    def used_up_by(self, usage: TokenUsage) -> str | None:
        """A sentence when the usage has reached a limit, else None."""
        spent = []
        if self.usd is not None and (dollars := counted_usd(usage)) >= self.usd:
            spent.append(f"${dollars:.2f} of ${self.usd:.2f} are spent")
        if self.tokens is not None and (tokens := counted_tokens(usage)) >= self.tokens:
            spent.append(f"{tokens:,} of {self.tokens:,} tokens are used")
        return f"The budget of this run is used up: {' and '.join(spent)}." if spent else None

    def raised(self, more: ContinueRequest) -> Budget:
        """The budget with what is added to the limits that it has."""
        usd, tokens = self.usd, self.tokens
        return self.model_copy(
            update={
                "usd": None if usd is None else round(usd + (more.budget_usd or 0.0), _DIGITS),
                "tokens": None if tokens is None else tokens + (more.tokens or 0),
            }
        )


def spent_in_words(usage: TokenUsage) -> str:
    """What was used of which limits, in words."""
    tokens = f"{counted_tokens(usage):,}"
    parts = [f"{tokens} of {usage.budget_tokens:,} tokens" if usage.budget_tokens is not None else f"{tokens} tokens"]
    if usage.budget_usd is not None:
        parts.append(f"${counted_usd(usage):.2f} of ${usage.budget_usd:.2f}")
    elif usage.cost_usd:
        parts.append(f"${usage.cost_usd:.2f}")
    return ", ".join(parts)


def counted_tokens(usage: TokenUsage) -> int:
    """Tokens of all kinds, those read from the cache too."""
    return usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


def counted_usd(usage: TokenUsage) -> float:
    """What counts against a budget of dollars: tokens without a price as if they were of the dearest model."""
    return round((usage.cost_usd or 0.0) + usage.unpriced_usd, _DIGITS)
