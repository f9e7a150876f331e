"""Random crontab lines, valid and broken ones, the same for the same seed."""

import random

FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))

SPACES = (" ", " ", " ", " ", "  ", "\t", " \t ", "\u00a0", "\ufeff", "\u3000", "\v", "\f", "\r")
NO_SPACES = ("\x1c", "\x1f", "\x85", "\u180e", "\u200b", "")
BROKEN_FIELDS = (
    "", "-", "/", "*/", "*/0", "*/*", "**", "1-", "-1", "1-2-3", "1-5/2", "5/2", "5-5", "7-3",
    "MON", "L", "5L", "1W", "1#2", "?", "@daily", "60", "24", "32", "13", "8", "0",
    "99999999999999999999", "1,", ",1", "1,,2", "*,x", "٣", "1.5", "+1", "0x1", "1e1", "1;2", "٣-٤",
)  # fmt: skip
TASKS = (
    "task", "t", "_x", "send_email", "a/b/c", "a:b", "a-b", "A1", "x_1:y/z-2", "constructor",
    "__proto__",
)  # fmt: skip
BROKEN_TASKS = ("1task", "-a", "a.b", "a b", "täsk", "a@b", "a#b", "{}", "?", "a?b", ":a", "/a", "")
OPTIONS = (
    "id=a", "id=_b-9", "id=ID_1", "fill=1d", "fill=1d2h", "fill=1h1h", "fill=0s", "fill=90m5s3w",
    "fill=001h", "max=1", "max=0", "max=025", "max=40000", "queue=q", "queue=a:b-c_1", "jobKey=k",
    "jobKey=", "jobKey", "jobKey=a%20b", "jobKey=a+b", "jobKey=%zz", "jobKey=%C3%A9", "jobKey=%ff",
    "jobKey=é", "jobKey=a=b", "jobKey=%26%3D", "jobKey={a:1}", "jobKey=%2", "jobKey=%",
    "jobKeyMode=replace", "jobKeyMode=preserve_run_at", "priority=1", "priority=-1", "priority=-0",
    "priority=007", "%69d=x", "id=%61",
)  # fmt: skip
BROKEN_OPTIONS = (
    "id=", "id=1a", "id=a:b", "id=a/b", "id=ä", "ID=a", "fill=", "fill=1", "fill=d", "fill=1y",
    "fill=1.5d", "fill=-1d", "fill=1d%202h", "fill=1D", "max=", "max=-1", "max=1.5", "max=x",
    "max=1e3", "max=٣", "queue=", "queue=a/b", "queue=a.b", "jobKeyMode=unsafe_dedupe",
    "jobKeyMode=", "jobKeyMode=Replace", "priority=", "priority=+1", "priority=1.0", "priority=--1",
    "foo=1", "=1", "=", "toString=1", "__proto__=1", "flags=a", "job_key=a", " ",
)  # fmt: skip
PAYLOADS = (
    "{}", "{ }", "{a:1}", '{"a":1}', "{'a':'b'}", "{a:1,}", "{a:[1,2,],}", "{a:{b:{c:null}}}",
    "{a:NaN,b:Infinity,c:-Infinity}", "{a:0x1F,b:.5,c:5.,d:+1,e:-0,f:1e3,g:1E-2}", "{a:1.0,b:1e21}",
    "{a:12345678901234567890,b:9007199254740993}", "{a:'# no comment'}", "{/* c */a:1}",
    "{a:1} // c }", "{a:'\\x41\\u0042\\n\\'\\\"'}", "{a:'\\0'}", "{$a_1:true,_b:false}",
    "{ünï:1}", "{\\u0061b:1}", '{"":1}', "{a:1,a:2}", "{a:'é 💡 \\u2028'}", "{__proto__:1}",
    "{1:'not an identifier',}", "{'1':2,b:1}", "{null:1}", "{a:\u00a01\ufeff}", '{"a":"\\/"}',
    "{a:'\\q'}", "{a:'\\8'}", "{a:1e400,b:-1e400}", "{_cron:{ts:1}}", "{a:'}'}", "{true:1,if:2}",
    "{a:0xDEADBEEFCAFEBABE}", "{a:1e-400}", "{a:'\t'}", "{a:123456789.123456789}",
)  # fmt: skip
BROKEN_PAYLOADS = (
    "{", "}", "[]", "[1]", "null", "1", "{a}", "{a:}", "{a:1,,}", "{,}", "{a:1}{b:2}", "{a:1} x",
    "{a:01}", "{a:1_000}", "{a:'b}", "{a:b}", "{a 1}", "{a:1 b:2}", "{a:undefined}", "{a:0x}",
    "{a:--1}", "{a:.}", "{a:'\\x4'}", "{a:'\\u12'}", "{a-b:1}", "{a:1}#c", "{a:1} # c", "{a:'\\1'}",
    "{a:1}}", "{{a:1}", "{a:/*}", "{a:nan}", "{a:+ 1}", "{a:1;}", "{...a}", "{[a]:1}", "{a:`b`}",
    "{a:\u200b1}", "{a:1n}", "{a:00}", "{a:1e}", "{a:+'1'}", "{a:TRUE}",
)  # fmt: skip
OTHER_LINES = ("", "   ", "# comment", "  # * * * * * task", "#", "\t", "#\u00a0x", "\ufeff# bom")


class Lines:
    """Makes lines; about half of them are valid."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def line(self) -> str:
        """A line."""
        pick = self._random
        if pick.random() < 0.04:
            return pick.choice(OTHER_LINES)
        broken = pick.random() < 0.4
        # A broken line has one fault, or else a fault that is overlooked would stay hidden.
        fault = (
            pick.choice(("field", "task", "option", "payload", "space", "shape")) if broken else ""
        )
        fields = [self._field(low, high) for low, high in FIELDS]
        if fault == "field":
            fields[pick.randrange(5)] = pick.choice(BROKEN_FIELDS)
        elif fault == "shape":
            fields = fields[: pick.randrange(5)] if pick.random() < 0.5 else [*fields, "*"]
        words = [*fields, pick.choice(BROKEN_TASKS if fault == "task" else TASKS)]
        if fault == "option" or pick.random() < 0.4:
            words.append("?" + self._options(fault))
        if fault == "payload" or pick.random() < 0.4:
            words.append(pick.choice(BROKEN_PAYLOADS if fault == "payload" else PAYLOADS))
        line = words[0]
        gap = pick.randrange(1, len(words)) if fault == "space" else 0
        for number, word in enumerate(words[1:], start=1):
            line += pick.choice(NO_SPACES if number == gap else SPACES) + word
        if pick.random() < 0.1:
            line = pick.choice(SPACES) + line
        return line + pick.choice(SPACES) if pick.random() < 0.1 else line

    def pattern(self) -> str:
        """A valid pattern."""
        return " ".join(self._field(low, high) for low, high in FIELDS)

    def any_pattern(self) -> str:
        """A pattern, maybe a broken one."""
        pick = self._random
        fault = pick.choice(("", "", "field", "space", "shape", "around"))
        fields = [self._field(low, high) for low, high in FIELDS]
        if fault == "field":
            fields[pick.randrange(5)] = pick.choice(BROKEN_FIELDS)
        elif fault == "shape":
            fields = fields[: pick.randrange(5)] if pick.random() < 0.5 else [*fields, "*"]
        pattern = fields[0] if fields else ""
        gap = pick.randrange(1, 5) if fault == "space" else 0
        for number, field in enumerate(fields[1:], start=1):
            pattern += pick.choice(NO_SPACES if number == gap else SPACES) + field
        if fault != "around":
            return pattern
        space = pick.choice((*SPACES, *NO_SPACES, "\n"))
        return pick.choice((space + pattern, pattern + space))

    def file(self) -> str:
        """A few lines with any line ends."""
        lines = [self.line() for _ in range(self._random.randrange(2, 6))]
        return "".join(line + self._random.choice(("\n", "\r\n")) for line in lines)

    def _options(self, fault: str) -> str:
        pick = self._random
        options = pick.sample(OPTIONS, pick.randrange(0 if fault == "option" else 1, 4))
        if fault == "option":
            options.insert(pick.randrange(len(options) + 1), pick.choice(BROKEN_OPTIONS))
        return "&".join(options) + pick.choice(("", "", "", "&"))

    def _field(self, low: int, high: int) -> str:
        pick = self._random
        if pick.random() < 0.35:
            return "*"
        return ",".join(self._part(low, high) for _ in range(pick.choice((1, 1, 1, 2, 3))))

    def _part(self, low: int, high: int) -> str:
        pick = self._random
        kind = pick.random()
        if kind < 0.25:
            return f"*/{pick.choice((1, 2, 3, 5, 7, 10, 15, 29, 31, 60, 100))}"
        if kind < 0.55:
            first = pick.randrange(low, high)
            return f"{first}-{pick.choice((high, pick.randrange(first + 1, high + 1)))}"
        return pick.choice(("", "", "", "0", "00")) + str(pick.randrange(low, high + 1))
