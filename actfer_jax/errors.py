"""What ends a command with a message instead of a traceback."""


class UserError(Exception):
    """Something that the person who started the command can put right; the message says what, where and how."""


class ConfigError(UserError, ValueError):
    """Something in the config is wrong; the message names the key."""


class FieldError(ConfigError):
    """A value of a section does not fit the others. Sections raise it in `__post_init__`.

    Args:
      field: the field, or a dotted name where it lies deeper: "length", "batch.length".
      problem: what follows it in the message, such as "is 3; it must be at least 4".
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem


class HostFailure(UserError):
    """Too much of a step failed on the hosts for it to teach anything."""


class ToolTimeout(UserError):
    """A face tool does not return. Nothing can stop its thread: only the end of the process does."""
