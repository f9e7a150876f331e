"""Foreign text that is safe to print."""


def harmless(text: str) -> str:
    """Replace unprintable characters, which could move the cursor or forge lines, by escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
