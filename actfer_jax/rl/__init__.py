"""Rewards, advantages and losses as pure functions; `docs/algorithm.md` has the formulas."""
