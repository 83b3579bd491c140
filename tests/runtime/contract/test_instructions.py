"""What the system says of the CPU's instructions."""

import pytest

from runtime.contract import instructions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu sse avx512f avx512_bf16 avx512_vnni\n", True),
        ("model name : X\nflags : fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu sse avx512f avx512_vnni\n", False),
        ("Features : fp asimd\n", True),  # not x86: nothing is known, the library decides
        (None, True),
    ],
)
def test_bf16_is_read_from_what_the_system_says_of_the_cpu(text, expected, tmp_path, monkeypatch) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(instructions, "_CPUINFO", tmp_path / "cpuinfo")
    assert instructions.has_bf16() is expected
