"""base64, hash and crypto (lua-api.md 3.11); docs/lua has the known answers."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from lua_driver import run


def printed(source: str) -> list[str]:
    finished = run(source)
    assert finished.finished.error is None, finished.finished.error
    return finished.printed


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256", "sha512"])
def test_digests_are_those_of_the_standard(name: str):
    data, key = bytes(range(256)), b"\xff\x00key"
    literal = "local d = '' for i = 0, 255 do d = d .. string.char(i) end local k = '\\xff\\0key'"
    raw = f"(hash.{name}(d, true)):gsub('.', function(c) return ('%02x'):format(c:byte()) end)"
    assert printed(f"{literal} print((hash.{name}(d))) print(({raw})) print((hash.hmac_{name}(d, k)))") == [
        hashlib.new(name, data).hexdigest(),
        hashlib.new(name, data).hexdigest(),
        hmac.digest(key, data, name).hex(),
    ]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("hash.sha256(nil)", "data must be a string"),
        ("hash.md5({})", "data must be a string"),
        ("hash.hmac_sha1('x', 5)", "secret must be a string"),
        ("hash.fnv32(5)", "data must be a string"),
        ("hash.fnv64()", "data must be a string"),
        ("base64.encode(5)", "data must be a string"),
        ("base64.decode('a=b=')", "not base64"),
        ("base64.decode('YQ')", "not base64"),
        ("base64.decode('YQ==\\n')", "not base64"),
        ("base64.decode('-_8=')", "not base64"),
        ("base64.encode(('x'):rep(16 * 1024 * 1024 + 1))", "more than"),
        ("crypto.random.bytes(0)", "length must be"),
        ("crypto.random.bytes(1048577)", "length must be"),
        ("crypto.random.bytes(1.5)", "length must be"),
        ("crypto.random.bytes(1/0)", "length must be"),
        ("crypto.random.bytes('5')", "length must be"),
        ("crypto.random.string(5, '')", "charset must be"),
        ("crypto.random.string(5, 5)", "charset must be"),
        ("crypto.hmac.sha256('k')", "data must be a string"),
    ],
)
def test_wrong_arguments_are_invalid_with_the_reason(call: str, text: str):
    value, kind, message = printed(f"local v, err = {call} print(v) print(err:kind()) print(err)")
    assert (value, kind) == ("nil", "Invalid")
    assert text in message


@pytest.mark.parametrize(
    "call",
    [
        "encrypt.aes",
        "encrypt.chacha20",
        "decrypt.aes",
        "decrypt.chacha20",
        "jwt.encode",
        "jwt.verify",
        "pbkdf2",
    ],
)
def test_what_crypto_does_not_do_says_so(call: str):
    assert printed(f"local v, err = crypto.{call}('a', 'b') print(v, err:kind(), err)") == [
        f"nil Unavailable crypto.{call} is not available in this version of Lunaq"
    ]


def test_random_strings_use_the_whole_charset_evenly():
    source = """
        local seen = {}
        for c in crypto.random.string(30000, 'abc'):gmatch('.') do seen[c] = (seen[c] or 0) + 1 end
        print(seen.a > 9000 and seen.b > 9000 and seen.c > 9000 and seen.a + seen.b + seen.c == 30000)
        print(#crypto.random.bytes(1048576), #crypto.random.string(1048576))
    """
    assert printed(source) == ["true", "1048576 1048576"]


def test_comparing_takes_strings_only():
    assert printed(
        "local c = crypto.constant_time_compare print(c('a', 'a'), c('a', 'b'), c('a', 5), c(5, 5))"
    ) == ["true false false false"]


def test_the_tables_within_crypto_are_read_only():
    error = run("crypto.random.bytes = print").finished.error
    assert error is not None
    assert "read-only" in error.text
