"""Cleaning steps: what each changes, removes and keeps; changes and reasons are recorded."""

from __future__ import annotations

import html
import time
import unicodedata
from functools import cache
from itertools import combinations
from random import Random

import ftfy
import pytest
from ftfy.chardata import CHARMAP_ENCODINGS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_pipeline.corpus.cleaning.cleaner import EXCERPT_CHARS, Cleaner, excerpt
from bert_pipeline.errors import UsageError
from tests.helpers.text import invent_documents

TEXT_STEPS = ("mojibake", "html", "unicode", "control", "whitespace")
SUBSETS = [steps for count in range(6) for steps in combinations(TEXT_STEPS, count)]

ENGLISH = (
    "The boat left the harbour in the morning, and nobody who stood on the quay had any idea that "
    "it would not return before winter. Its owner had told them to expect it with the next tide."
)
PERSIAN = (
    "کتابی که دیروز خریده‌ام درباره‌ی تاریخ ایران است و نویسنده‌ی آن سال‌ها"
    " در دانشگاه تهران درس داده است."
)
GERMAN = (
    "Das Schiff verließ am Morgen den Hafen, und niemand ahnte, dass es vor dem Winter nicht"
    " zurückkehren würde."
)


make_cleaner = cache(Cleaner)


def clean(text: str, *steps: str, language: str = "en") -> str:
    return make_cleaner(steps, language).clean(text).text


def removal(text: str, *steps: str, language: str = "en") -> str | None:
    return make_cleaner(steps, language).clean(text).removed


# All text steps together

LETTERS = (
    "a b e \u0301 é Ã ³ â € ™ \u201d Â в ‚ Ђ \xa0 \x85 \x81 \x00 \x1f \t \r \n \u2028 \ufeff \u200c"
)
MARKUP = (
    "< > & ; # / ! - <b> </p> <!-- --> <script> </script> &amp; &lt; &gt; &Atilde; &sup3; &#38;"
    " &#x3c; lt; amp; b="
)
PIECES = st.sampled_from([" ", "=", '"', "'", *LETTERS.split(" "), *MARKUP.split(" ")])
MESSY = st.one_of(st.lists(PIECES, max_size=25).map("".join), st.text(max_size=40))


@pytest.mark.parametrize("steps", SUBSETS, ids="+".join)
@settings(max_examples=20)
@given(MESSY)
@example("a\x00\u0301")
@example("&Atilde;&sup3;")
@example("&amp;amp;lt;b&amp;gt;")
@example("<<b>b>")
@example(" Â x")
def test_cleaning_is_idempotent(steps: tuple[str, ...], text: str):
    cleaner = Cleaner(steps, "en")
    once = cleaner.clean(text)
    again = cleaner.clean(once.text)
    assert again.text == once.text
    assert not again.changes


@given(
    st.text(st.sampled_from("aé\u200c\u200d\u200e\u200f\u2067ـیيکك\u00ad “”ﬁＡ<>&\n"), max_size=40)
)
def test_joiners_direction_marks_and_similar_letters_are_kept(text: str):
    kept = clean(text, *TEXT_STEPS)
    assert "".join(kept.split()) == "".join(text.split())


def test_changes_record_each_step_with_text_before_and_after():
    cleaned = Cleaner(TEXT_STEPS, "en").clean("sÃ³  <b>e\u0301</b>\x00 \ud800")
    assert cleaned.text == "só é \ufffd"
    assert [change.step for change in cleaned.changes] == [
        "surrogates",
        "mojibake",
        "html",
        "unicode",
        "control",
        "whitespace",
    ]
    for earlier, later in zip(cleaned.changes, cleaned.changes[1:], strict=False):
        assert earlier.after == later.before


@given(MESSY)
def test_changed_text_has_a_recorded_change(text: str):
    cleaned = Cleaner(TEXT_STEPS, "en").clean(text)
    assert (cleaned.text != text) == bool(cleaned.changes)
    assert (cleaned.removed == "empty") == (not cleaned.text.strip())


@given(
    st.text(st.sampled_from("ab \ud800\udc00\udbff\udfff\U00010000"), max_size=20),
    st.sampled_from(SUBSETS),
)
@example("\ud83d\ude00 \ud800", ())
def test_cleaned_text_is_valid_utf8_for_any_steps(text: str, steps: tuple[str, ...]):
    kept = clean(text, *steps)
    kept.encode()
    assert kept.count("a") == text.count("a")


def test_surrogate_pairs_are_joined_and_lone_surrogates_replaced():
    assert clean("a \ud83d\ude00 b \ud800 c") == "a 😀 b \ufffd c"


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<!--",
        "<script>",
        "<b ",
        "<b a=1 ",
        '<a x="',
        "&",
        "&amp;",
        "&#",
        "<<b>b>",
        "\x00a",
        " \n",
        "Ã³ ",
        "e\u0301",
    ],
)
def test_editing_steps_take_linear_time(unit: str):
    cleaner = Cleaner(TEXT_STEPS, "en")

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        cleaner.clean(text)
        return time.process_time() - start

    assert seconds(500_000) < 40 * seconds(50_000) + 0.5


# One step each


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "cp1250"])
@pytest.mark.parametrize(
    "text", ["schön wäre es, für größere Übungen", "Il était déjà là où l’été s’achève"]
)
def test_mojibake_of_common_encodings_is_fixed(text: str, encoding: str):
    broken = text.encode().decode(encoding, "replace")
    if "\ufffd" not in broken:
        assert (
            clean(f"“Fine.”\n{broken}\nOne ﬁne ＬＩＮＥ…", "mojibake")
            == f"“Fine.”\n{text}\nOne ﬁne ＬＩＮＥ…"
        )


def line_by_line(text: str) -> str:
    return "\n".join(ftfy.fix_encoding(line) for line in text.split("\n"))


# The step calls ftfy only for lines with certain characters, and must not miss one that ftfy fixes.


@pytest.mark.parametrize("encoding", CHARMAP_ENCODINGS)
def test_mojibake_equals_ftfy_for_all_its_encodings(encoding: str):
    words = [
        "naïve",
        "“so”",
        "it’s…",
        "–",
        "Größe",
        "œuvre",
        "№ 5",
        "½ €",
        "привет",
        "мир",
        "Ελλάδα",
        "سلام",
        "שלום",
        "日本",
    ]
    broken = [word.encode().decode(encoding, "ignore") for word in words]
    lines = [*broken, *(f"{one} {two}" for one in broken for two in ["and", *words, *broken])]
    assert clean("\n".join(lines), "mojibake") == line_by_line("\n".join(lines))


@settings(max_examples=150)
@given(
    st.text(
        st.one_of(
            st.sampled_from("aÃ©â€™вЂ„√°¤«»ØÙŸ×²œ…•  \n"), st.characters(max_codepoint=0x2700)
        ),
        max_size=12,
    )
)
def test_mojibake_equals_ftfy_for_random_text(text: str):
    fixed = line_by_line(text)
    assert clean(text, "mojibake") == line_by_line(fixed)


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d, if a<b and c>d",
        "a <b and c> d",
        "List<String> Map<K, V> <T> List<Object>",
        "read <stdin> from <a@b.c> or <https://example.com/>",
        "I <3 you -> x <- y <= z <> w << 2",
        "AT&T, R&D; ?a=1&copy=2&lt=3",
        "<not-an-element> & <Unknown/>",
        "<b",
        "no end <!-- here",
    ],
)
def test_html_keeps_text_that_is_not_markup(text: str):
    assert clean(text, "html") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wor<b>d</b> H<sub>2</sub>O", "word H2O"),
        ('<p class="x y" id=z hidden>One<br/>two</p><li>three', "One\ntwo\nthree"),
        ("<TABLE><TR><TD>a</TD><TD>b</TD></TR></TABLE>", "a b"),
        ("<a href='x?a=1&amp;b=2' target=_blank>link</a>.", "link."),
        ("a <!-- b <i> --> c<!----> d", "a c d"),
        ("a<script>if (a<b) { '</p>' }</script > b <STYLE type='text/css'>p {}</STYLE>c", "a b c"),
        ("<!DOCTYPE html><?xml version='1.0'?><html><body>x</body></html>", "x"),
        ("<script>the end was cut off", "the end was cut off"),
        ("&lt;p&gt;escaped &amp;amp;amp; twice&lt;/p&gt;", "escaped & twice"),
        (
            "l&rsquo;&eacute;t&eacute; &#233; &#xE9; &nbsp;x &bogus; &#x110000;",
            "l’été é é x &bogus; \ufffd",
        ),
        ("1 &lt; 2 &amp;&amp; 3 &gt; 2", "1 < 2 && 3 > 2"),
        ("1 &" + "amp;" * 100 + "lt; 2", "1 < 2"),
    ],
)
def test_html_removes_markup(text: str, expected: str):
    assert clean(text, "html", "whitespace") == expected


@given(st.text(max_size=30))
def test_html_decodes_escaped_text(text: str):
    # The inverse, by the standard library. Escaped tags become markup, so they are excluded.
    if not set("<&") & set(text):
        assert clean(html.escape(text), "html") == text


@given(st.text(max_size=30))
def test_unicode_is_nfc(text: str):
    assert clean(text, "unicode") == unicodedata.normalize("NFC", text)


def test_unicode_keeps_compatibility_forms():
    assert clean("ﬁ Ａ ① ² ي ی ك ک e\u0301", "unicode") == "ﬁ Ａ ① ² ي ی ك ک é"


@given(
    st.text(
        st.one_of(st.characters(categories=["Cc", "Cf", "Zl", "Zp"]), st.sampled_from("ab ")),
        max_size=30,
    )
)
def test_control_removes_control_and_keeps_format_characters(text: str):
    kept = clean(text, "control")
    assert not [
        c for c in kept if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c not in "\t\n\r"
    ]
    shown = [
        c for c in text if unicodedata.category(c) not in ("Cc", "Zl", "Zp", "Zs") and c != "\ufeff"
    ]
    assert [c for c in kept if c not in " \t\n\r"] == shown


@pytest.mark.parametrize(
    "end", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_control_keeps_words_separate_at_line_separators(end: str):
    assert clean(f"one{end}two", "control") == "one two"


@given(st.text(st.sampled_from("ab\u200c \t\n\r\u00a0\u3000\u2003"), max_size=40))
def test_whitespace_is_normalized_and_words_and_lines_are_kept(text: str):
    kept = clean(text, "whitespace")
    lines = [line.split() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    assert kept == "\n".join(" ".join(words) for words in lines if words)


# Language


@pytest.mark.parametrize(
    ("text", "language", "removed"),
    [
        (ENGLISH, "en", None),
        (PERSIAN, "fa", None),
        (GERMAN, "de", None),
        (GERMAN, "de-AT", None),
        (ENGLISH, "fa", "language"),
        (PERSIAN, "en", "language"),
        (GERMAN, "en", "language"),
        (PERSIAN, "ar", "language"),
        ("Привет, как дела", "en", "language"),
        # Too short to identify.
        ("love song", "en", None),
        ("12345", "fa", None),
        ("!!!", "en", None),
    ],
)
def test_language_removes_documents_in_other_languages(
    text: str, language: str, removed: str | None
):
    assert removal(text, "language", language=language) == removed


def test_language_of_long_document_ignores_foreign_heading():
    text = "\n".join([GERMAN] * 6 + [ENGLISH] * 60)
    assert removal(text, "language") is None
    assert removal(text, "language", language="de") == "language"


@pytest.mark.parametrize("code", ["zh-cn", "iw", "nb", "in", "fil", "pt_BR", "EN"])
def test_language_aliases(code: str):
    Cleaner(["language"], code)


def test_unsupported_language_is_a_usage_error():
    with pytest.raises(UsageError, match=r"tlh cannot be identified.*languages: .* de .* fa .* zh"):
        Cleaner(["language"], "tlh")


# Quality

WORDS = ENGLISH.replace(",", "").replace(".", "").split(" ")


def prose(lines: int, words: int = 14, seed: int = 0) -> str:
    random = Random(seed)
    made = [
        " ".join(random.choice(WORDS) + str(random.choice(["", "s", "ed"])) for _ in range(words))
        for _ in range(lines)
    ]
    return "\n".join(f"The {line}, and it is so." for line in made)


@pytest.mark.parametrize("step", ["gopher-repetition", "gopher-quality", "c4", "fineweb"])
def test_quality_filters_keep_prose(step: str):
    cleaned = Cleaner([step], "en").clean(prose(12))
    assert (cleaned.removed, cleaned.changes) == (None, ())


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ("gopher-repetition", "\n".join([ENGLISH] * 5), "repeated lines"),
        ("gopher-repetition", "buy now " * 100, "repeated 2-grams"),
        ("gopher-quality", "Too short a text.", "too short"),
        ("gopher-quality", "12 34 56 " * 40 + "the of and word", "words too short"),
        ("gopher-quality", "1234 5678 " * 40 + "the of and word", "too few words with letters"),
        (
            "gopher-quality",
            "\n".join(f"- {line}" for line in prose(20).split("\n")),
            "too many bullets",
        ),
        ("gopher-quality", prose(10).replace(" ", " # "), "too many #"),
        ("gopher-quality", "Boote fahren weit hinaus " * 20, "too few stop words"),
        ("c4", "One line is here.\nTwo lines are here.", "too few sentences"),
        ("c4", prose(10) + "\nLorem ipsum dolor sit amet.", "lorem ipsum"),
        ("c4", prose(10) + "\nA block begins here { and ends.", "curly bracket"),
        ("fineweb", prose(10).replace(".", ""), "too few lines end in punctuation"),
        (
            "fineweb",
            "\n".join(f"Line {number} is here." for number in range(20)),
            "too many short lines",
        ),
        ("fineweb", prose(10) + "\n" + prose(2), "repeated lines"),
    ],
)
def test_quality_filters_name_the_reason(step: str, text: str, reason: str):
    assert removal(text, step) == f"{step}: {reason}"


def test_c4_removes_lines_and_records_the_change():
    text = prose(8)
    cleaned = Cleaner(["c4"], "en").clean(
        f"{text}\nHome | About | Login\nTurn on javascript to see this.\nIt is so.[3]"
    )
    assert cleaned.removed is None
    assert cleaned.text == f"{text}\nIt is so."
    assert [change.step for change in cleaned.changes] == ["c4"]


ENGLISH_LINES = st.lists(
    st.sampled_from(
        [
            *prose(8).split("\n"),
            "Menu",
            "No end here",
            "It went on and on...",
            'He said: "Go."',
            "Accept cookies, use cookies.",
            "{",
            "A b.",
        ]
    ),
    max_size=14,
)


@given(ENGLISH_LINES)
def test_c4_equals_datatrove_filter_in_english(lines: list[str]):
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter
    from datatrove.pipeline.filters.base_filter import get_filter_result

    from bert_pipeline.corpus.cleaning.quality import WhitespaceTokenizer

    document = Document(text="\n".join(lines), id="")
    keep, _ = get_filter_result(
        C4QualityFilter(language=WhitespaceTokenizer("en")).filter(document)
    )
    cleaned = Cleaner(["c4"], "en").clean("\n".join(lines))
    assert (cleaned.removed is None) == keep
    if keep:
        assert cleaned.text == document.text


@pytest.mark.parametrize(
    ("language", "mark", "sentence"),
    [
        ("hi", "।", "राम आज सुबह बाजार से फल लेकर घर आया और"),
        ("ur", "۔", "وہ آج صبح بازار سے پھل لے کر گھر آیا اور"),
        ("fa", "؟", PERSIAN[:-1]),
    ],
)
def test_quality_filters_support_end_marks_of_other_scripts(
    language: str, mark: str, sentence: str
):
    random = Random(1)
    lines = []
    for _ in range(8):
        words = sentence.split()
        random.shuffle(words)
        lines.append(" ".join(words) + mark)
    text = "\n".join(lines)
    cleaned = Cleaner(["c4", "fineweb"], language).clean(text)
    assert (cleaned.text, cleaned.removed) == (text, None)
    assert removal("\n".join(line[:-1] for line in lines), "fineweb", language=language) is not None


def test_stop_words_apply_to_english_only():
    text = (
        prose(10)
        .replace("and", "und")
        .replace("the", "das")
        .replace("of", "von")
        .replace("that", "was")
    )
    text = (
        text.replace("The", "Das").replace("to", "zu").replace("had", "hat").replace("with", "mit")
    )
    assert removal(text, "gopher-quality") == "gopher-quality: too few stop words"
    assert removal(text, "gopher-quality", language="de") is None


@pytest.mark.parametrize("step", ["gopher-repetition", "gopher-quality", "c4", "fineweb"])
def test_quality_filters_reject_languages_without_spaces(step: str):
    with pytest.raises(UsageError, match=f"--clean {step}: counts words, but zh has no spaces"):
        Cleaner([step], "zh-CN")


def test_filters_print_nothing(capfd: pytest.CaptureFixture[str]):
    cleaner = Cleaner(["language", "gopher-repetition", "gopher-quality", "c4", "fineweb"], "en")
    for text in [*invent_documents()[:10], "", " \n", "\u200c", ".", "…\n"]:
        cleaner.clean(text)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "step", ["gopher-repetition", "gopher-quality", "c4", "fineweb", "language"]
)
@given(text=st.text(st.sampled_from('aB .…\n\u200c\u00a0#-•{"1'), max_size=40))
def test_filters_accept_any_text(step: str, text: str):
    cleaned = make_cleaner((step,), "en").clean(text)
    assert cleaned.removed is None or cleaned.removed.startswith((step, "empty"))


# Excerpts


@given(
    st.text(max_size=200),
    st.text(max_size=200),
    st.text(min_size=1, max_size=5),
    st.text(max_size=5),
)
def test_excerpt_is_short_and_has_the_first_difference(head: str, tail: str, old: str, new: str):
    before = head + old + tail
    after = head + new + tail
    shown_before, shown_after = excerpt(before, after)
    assert max(len(shown_before), len(shown_after)) <= EXCERPT_CHARS
    assert shown_before in before
    assert shown_after in after
    assert (shown_before != shown_after) == (before != after)


# The step `nfkc`
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ｐｙｔｈｏｎ３．１１", "Python3．11"),
        ("ﾊﾟｿｺﾝのｶﾞｲﾄﾞ｡", "パソコンのガイド。"),
        ("ﻛﺘﺎﺏ ﭘﻨﺞ ﻻ", "کتاب پنج لا".replace("ک", "ك", 1)),
        ("ﬁnal oﬀer", "final offer"),
        ("第Ⅲ章　㌔", "第III章 キロ"),
    ],
)
def test_nfkc_replaces_other_forms_of_letters(text: str, expected: str):
    assert clean(text, "nfkc") == expected


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "क्\u200dष",
        "n² + m₃ = ½",
        "（はい！）、「本当？」……",
        "ㅋㅋㅋ",
        "น้ำ ນ້ຳ",
        "ﷺ",
        "№ 5 ™ ①",
        "a´b",
    ],
)
def test_nfkc_keeps_what_has_a_meaning_of_its_own(text: str):
    assert clean(text, "nfkc") == text


@pytest.mark.parametrize(
    ("language", "expected"), [("ja", "12"), ("zh-Hant", "12"), ("ko", "12"), ("fa", "１２")]
)
def test_default_cleaning_narrows_digits_where_they_are_written_wide(language: str, expected: str):
    assert clean("１２", "unicode", language=language) == expected
