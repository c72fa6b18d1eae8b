"""What the policy reads and writes: prompts, the turn grammar, tool calls and episodes."""
