"""What ends a command with a message instead of a traceback."""


class UserError(Exception):
    """Something that the person who started the command can put right; the message says what, where and how."""


class ConfigError(UserError, ValueError):
    """Something in the config is wrong; the message names the key."""


class ToolTimeout(UserError):
    """A face tool does not return. Nothing can stop its thread: only the end of the process does."""
