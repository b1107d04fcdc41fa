"""The price table: what tokens of each model cost, from a data file, and what the usage of one answer comes to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foundation.documents import Unreadable, read_yaml, text_of
from foundation.errors import InvalidParameter

BUILT_IN = Path(__file__).with_name("prices.yaml")
# A variant in brackets, a provider's own ending, or a date: the price does not depend on them.
_ENDING = re.compile(r"(\[[^\]]*\]|-latest|[-@]20\d{6}.*)$")
_MILLION = 1_000_000

Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Rates(BaseModel):
    """US dollars for a million tokens of each kind; what is written to the cache is kept for 5 minutes or an hour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Dollars
    output: Dollars
    cache_write_5m: Dollars
    cache_write_1h: Dollars
    cache_read: Dollars

    def cost(self, usage: Mapping[str, int], hour_tokens: int) -> float:
        """US dollars of a usage by the model API's names; ``hour_tokens`` of what was written stay for an hour."""
        written = usage.get("cache_creation_input_tokens", 0)
        hour = min(hour_tokens, written)
        return (
            usage.get("input_tokens", 0) * self.input
            + usage.get("output_tokens", 0) * self.output
            + usage.get("cache_read_input_tokens", 0) * self.cache_read
            + hour * self.cache_write_1h
            + (written - hour) * self.cache_write_5m
        ) / _MILLION


class LongPrompt(Rates):
    """The rates of a request whose input has more tokens than ``over``, those of the cache counted in."""

    over: int = Field(ge=1)


class Price(Rates):
    """The rates of the models that one of the patterns fits."""

    models: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    long_prompt: LongPrompt | None = None

    def rates(self, usage: Mapping[str, int]) -> Rates:
        """Those that hold for a request with this usage."""
        kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        whole = sum(usage.get(kind, 0) for kind in kinds)
        return self.long_prompt if self.long_prompt and whole > self.long_prompt.over else self


class PriceTable(BaseModel):
    """Prices as they were on a day. The first entry that fits a model's name counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: date
    prices: list[Price] = Field(min_length=1)

    def cost(self, model: str, usage: Mapping[str, int], hour_tokens: int = 0) -> float | None:
        """US dollars of one answer; None for a model that has no price."""
        name = model.lower()
        while (shorter := _ENDING.sub("", name)) != name:
            name = shorter
        for price in self.prices:
            if any(fnmatchcase(name, pattern) for pattern in price.models):
                return price.rates(usage).cost(usage, hour_tokens)
        return None

    def most(self, usage: Mapping[str, int], hour_tokens: int = 0) -> float:
        """What the same would cost of the dearest model of the table."""
        return max(price.rates(usage).cost(usage, hour_tokens) for price in self.prices)


def load_prices(chosen: Path | None) -> PriceTable:
    """The table of a file, or the built-in one. Raises InvalidParameter with every fault of the file."""
    path = chosen or BUILT_IN
    try:
        document = read_yaml(text_of(path.read_bytes()))
        return PriceTable.model_validate(document.data)
    except OSError as error:
        raise InvalidParameter(f"The price table {path} cannot be read: {error.strerror}.") from error
    except Unreadable as error:
        raise InvalidParameter(f"The price table {path} is not readable as YAML: {error}.") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()]
        raise InvalidParameter(f"The price table {path} is not valid: {'; '.join(faults)}.") from error
