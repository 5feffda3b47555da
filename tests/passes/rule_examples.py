"""The examples of all rules."""

from __future__ import annotations

import rule_examples_arithmetic as arithmetic
import rule_examples_logic as logic
import rule_examples_movement as movement
from rule_harness import Example

FIRES: dict[str, list[Example]] = {**arithmetic.FIRES, **logic.FIRES, **movement.FIRES}
NEAR: dict[str, list[Example]] = {**arithmetic.NEAR, **logic.NEAR, **movement.NEAR}
