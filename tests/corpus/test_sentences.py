"""Sentence splitting in many languages; no text is lost; linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_pipeline.corpus.sentences import split_running, split_sentences

# Sentences as an editor of each language would split them.
GOLD = [
    ("en", ["Dr. Smith and Prof. Jones met Mr. Hill.", "They talked."]),
    ("en", ["He met J. K. Rowling at 5 p.m. on Monday.", "She smiled."]),
    ("en", ["The U.S. Army left.", "He lives in the U.S.", "He likes it."]),
    ("en", ["It begins at 9 a.m. and ends at 5 p.m.", "Then we go."]),
    ("en", ["See No. 5 and Fig. 3 for this, e.g. the left one, i.e. this.", "It is there."]),
    ("en", ["See p. 5 and pp. 6-7, vol. 3, ch. 2.", "End."]),
    ("en", ["“Come in.”", "He came."]),
    ("en", ["“Come in!” he said.", "“Why?” she asked."]),
    ("en", ['"Come in."', "He came."]),
    ("en", ["He came (at last).", "(He was late.)", "She left."]),
    ("en", ["Wait... what is it?", "I do not know…", "Perhaps."]),
    ("en", ["“I do not know…”", "“Really?”"]),
    ("en", ["So… we went home.", "I do not know...", "Perhaps."]),
    ("en", ["See https://example.com/a.b?c=d.e for more.", "Pi is 3.14159.", "It cost $5.50."]),
    ("en", ["It is at www.example.com/news.asp?Number=5 now.", "Read it."]),
    ("en", ["Version 1.2.3 is out.", "Use file.txt instead of a.py now."]),
    ("en", ["Really?!", "Yes!!!", "No."]),
    ("en", ["1. First point is this.", "It has a sentence more."]),
    ("en", ["IV. The Wine-shop"]),
    ("en", ["It was 1990.", "5 men came."]),
    ("en", ["Vitamin C.", "It is good."]),
    ("en", ["So did I.", "We left."]),
    ("de", ["Das ist z.B. gut, d.h. sehr gut.", "Das ist z. B. gut.", "Ja!"]),
    ("de", ["Am 3. Oktober 1990 kam Dr. Müller.", "Der 2. Weltkrieg usw. war schlimm."]),
    ("de", ["Er sagte: „Komm!“", "Es kostet 3,5 Mio. Euro."]),
    ("fr", ["M. Dupont et Mme. Curie sont là.", "Est-ce vrai ?", "« Viens ! » dit-il."]),
    ("es", ["El Sr. López llegó a EE. UU. ayer.", "¿Por qué?", "¡No sé!"]),
    ("it", ["Il sig. Rossi e A. Bianchi sono qui.", "Bene."]),
    ("pt", ["O Sr. J. Silva chegou.", "Ele está aqui."]),
    ("pt-BR", ["O Sr. J. Silva chegou.", "Ele está aqui."]),
    ("nl", ["Dhr. Jansen kwam bijv. gisteren.", "Goed."]),
    ("sv", ["Det är t.ex. bra.", "Ja."]),
    ("no", ["Det er f.eks. godt.", "Ja."]),
    ("da", ["Det er f.eks. godt.", "Ja."]),
    ("fi", ["Se on esim. hyvä.", "Kyllä."]),
    ("hu", ["Ez pl. jó.", "Igen."]),
    ("ro", ["Dl. Popescu a venit.", "Da."]),
    ("pl", ["Prof. Kowalski i dr. Nowak mieszkają przy ul. Długiej, np. tam.", "Dobrze."]),
    ("cs", ["Je to např. dobré, tzv. dobré.", "Ano."]),
    ("ru", ["А. С. Пушкин родился в 1799 г. в Москве.", "Он сказал: «Иди!»", "Это т. е. хорошо."]),
    ("uk", ["Т. Г. Шевченко жив у м. Київ.", "Так."]),
    ("bg", ["А. С. Пушкин е тук.", "Да."]),
    ("el", ["Ο κ. Παπαδόπουλος ήρθε.", "Τι είναι;", "Δεν ξέρω."]),
    ("tr", ["Dr. Yılmaz geldi.", "19. yüzyılda yaşadı.", "İyi."]),
    ("vi", ["TS. Nguyễn đến.", "Tốt."]),
    ("id", ["Dr. Budi datang.", "Baik."]),
    ("ka", ["ის მოვიდა.", "ის წავიდა."]),
    ("hy", ["Նա եկավ։", "Նա գնաց։"]),
    ("am", ["እሱ መጣ።", "እሷ ሄደች።"]),
    ("hi", ["डॉ. शर्मा आए।", "क्या हुआ?", "३.५ रुपये।", "राम गया॥", "ठीक है"]),
    ("bn", ["আমি যাই।", "তুমি এসো।"]),
    ("ta", ["நான் வந்தேன்.", "அவன் போனான்."]),
    ("ko", ["안녕하세요.", "잘 지내요?", "네.", "좋아요."]),
    ("ar", ["السعر ٣.٥ دينار.", "هل جاء؟", "نعم!", "جاء د. حسن.", "لا."]),
    ("fa", ["قیمت ۳.۵ تومان است.", "او می\u200cرود.", "کجا؟", "نمی\u200cدانم!"]),
    ("fa", ["در سال ۱۳۵۷ ه.ش. انقلاب شد.", "او در سال ۳۲۰ ق.م. مرد.", "این ج. ۲ و ص. ۵ است."]),
    ("fa", ["«بیا.»", "او آمد … و رفت."]),
    ("ur", ["وہ آیا۔", "کیوں؟", "وہ گیا۔"]),
    ("he", ["ד״ר כהן בא.", "למה?", "כן!"]),
    ("km", ["គាត់មក។", "នាងទៅ។"]),
    ("bo", ["ཁོང་ཡོང་།", "མོ་ཕྱིན།"]),
    ("my", ["သူလာသည်။", "သူမသွားသည်။"]),
    (
        "zh",
        [
            "你好。",
            "再见！",
            "为什么？",
            "价格是3.5元。",
            "他说：“你好。”",
            "（他来了。）",
            "她走了。",
        ],
    ),
    ("ja", ["今日は。", "元気？", "はい！"]),
    # A language without rules, and text in another language than the given one.
    ("xx", ["It is 3.5.", "你好。", "राम गया।", "وہ آیا۔"]),
    ("fa", ["Dr. Smith came.", "He left."]),
]
UNSPACED = frozenset({"zh", "ja", "my", "km", "hy", "am"})


@pytest.mark.parametrize(("language", "sentences"), GOLD)
def test_sentences_of_every_language_equal_gold(language: str, sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences), language) == sentences
    if language in UNSPACED:
        assert split_sentences("".join(sentences), language) == sentences


def test_paragraph_ends_are_sentence_ends() -> None:
    assert split_sentences("A title\n\n \nIt begins. It ends", "en") == [
        "A title",
        "It begins.",
        "It ends",
    ]
    assert split_sentences(" \n", "en") == []


@pytest.mark.parametrize(
    ("language", "text", "pieces"),
    [
        ("en", "The cat sat. The dog ran.", ["The cat sat.", " The dog ran."]),
        (
            "en",
            "  A\ttitle \n\n It  begins.\u2028Then\xa0what? ",
            ["A title", " It begins.", " Then what?"],
        ),
        ("zh", "我来了。你呢？", ["我来了。", "你呢？"]),
        ("zh", "我来了。 你呢？\n他呢？", ["我来了。", " 你呢？", " 他呢？"]),
        ("zh", "你好 。\n\n再见", ["你好 。", " 再见"]),
        ("fa", "او می\u200cرود. کجا؟", ["او می\u200cرود.", " کجا؟"]),
        ("en", " \n", []),
    ],
)
def test_pieces_of_running_text_keep_the_space_before_them(
    language: str, text: str, pieces: list[str]
) -> None:
    assert split_running(text, language) == pieces


LANGUAGES = st.sampled_from(
    ["en", "fa", "hi", "zh", "xx", "de", "fr", "my", "am", "kk", "sk", "ja", "el", "ru", "km", ""]
)
TEXTS = st.text(
    st.one_of(
        st.sampled_from("abA .!?…\n3۳5।。؟۔។།\u200c\"'“”«»()（）\u00a0\u2028\x85\x1c"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=80,
)


@given(TEXTS, LANGUAGES)
@settings(max_examples=200)
@example("۳.۵", "fa")
@example("3.5.", "en")
@example("A\u2028. B", "en")
@example("Y\x85.", "el")
def test_pieces_join_to_the_running_text(text: str, language: str) -> None:
    pieces = split_running(text, language)
    assert "".join(pieces) == " ".join(text.split())
    assert all(piece == piece.rstrip() and piece.strip() for piece in pieces)
    assert not pieces or pieces[0] == pieces[0].lstrip()
    assert split_sentences(text, language) == [piece.lstrip() for piece in pieces]


@pytest.mark.parametrize(
    "sentence",
    ["It goes on and on.", "He paid 3.5 pounds to Mr. Hill.", "“Why?” she asked.", "راه ۳.۵ است."],
)
def test_long_paragraph_is_split_like_a_short_one(sentence: str) -> None:
    assert split_sentences(" ".join([sentence] * 8_011), "en") == [sentence] * 8_011


def test_sentence_longer_than_the_window() -> None:
    sentence = "Then " + "word " * 5_000 + "end."
    assert split_sentences(f"It begins. {sentence} It ends.", "en") == [
        "It begins.",
        sentence,
        "It ends.",
    ]


@pytest.mark.parametrize(
    "unit",
    [
        *("word ", ".", "1", "1.", "“", "'", "(", "… ", "(a.) ", "1. ", "A. ", "ه. ", "\n", "好。"),
        *("»", ".»", "! 1", "།", "។ ", "ไป ", "ไป", "x. y", "“a.” "),
    ],
)
def test_sentence_splitting_takes_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        split_sentences(text, "zh" if unit == "好。" else "en")
        return time.process_time() - start

    # Quadratic time would be a factor of 100; half a second covers noise.
    assert seconds(200_000) < 40 * seconds(20_000) + 0.5
