"""What a user can mend."""


class UserError(ValueError):
    """Bad input or a bad setting; its text is one line and all that a user needs to see."""


class ConfigError(UserError):
    """A config value, or a combination of them, that cannot be used."""


class DataError(UserError):
    """A file of a data set, or what the config says of it, is not as expected."""


def one_line(error: BaseException) -> str:
    """The text of an error, or else its kind, without line breaks."""
    return ' '.join(str(error).split()) or type(error).__name__
