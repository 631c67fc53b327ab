from __future__ import annotations

import pytest

from fusion.language import main_script


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("你可以用 pandas.read_csv 和 DataFrame 读取文件", "CJK"),
        ("答案:\n```python\nfor word in words: print(word)\n```", "CJK"),
        ("```python\nprint(1)\n``` Прочти это", "CYRILLIC"),
        ("吾輩は猫である。名前はまだ無い。", "JAPANESE"),
        ("カタカナ", "JAPANESE"),
        ("한국어 문장입니다", "HANGUL"),
        ("English with one 字", "LATIN"),
        ("ＦＵＬＬ width", "LATIN"),
        ("42 + 1 = 43 😀", None),
        ("", None),
    ],
)
def test_the_main_script_is_that_of_most_words(text, script):
    assert main_script(text) == script
