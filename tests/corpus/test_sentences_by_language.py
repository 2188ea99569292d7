"""Sentence splitting in ten languages: abbreviations, quotations, brackets, numbers, ellipses."""

import pytest

from bert_pipeline.corpus.sentences import split_running, split_sentences

# Sentences as an editor of each language would split them.
GOLD = {
    "hi": [
        ["गाँव शहर से १२ कि.मी. दूर है।", "बस रोज़ जाती है।"],
        ["डॉ. मीरा और प्रो. राव मिले।", "वे पुराने मित्र हैं।"],
        ["मि. दास ने पूछा, “आप कब आए?”", "“कल शाम।”", "फिर वे चुप हो गए।"],
        ["भा.ज.पा. की सभा हुई।", "भीड़ बहुत थी।"],
        ["दाम २.५ रुपये है।", "वह सस्ता है!", "क्या आप लेंगे?"],
        ["वह आया (देर से)।", "(उसने कुछ नहीं कहा।)", "हम चले गए।"],
        ["एस. के. वर्मा ने लिखा।", "पुस्तक अच्छी है।"],
        ["मैं सोचता हूँ…", "पर मुझे नहीं पता।"],
    ],
    "th": [
        ["ปี พ.ศ. 2560 ฝนตกมาก"],
        ["ดร. สมศรี มาถึงเมื่อ 5 ก.ค. 2560"],
        ["ราคา 3.50 บาท"],
        ["คุณจะไปไหน?", "ไปตลาด!"],
        ["เขาพูดว่า “มาแล้ว!”", "เราดีใจ"],
        ["นมราคา 10 บาท (ขวดเล็ก)"],
        ["ที่ทำการ จ. น่าน เปิด 8.30 น. ทุกวัน"],
    ],
    "ja": [
        ["「そこにいるの？」と聞いた。", "返事はなかった。"],
        ["彼は「待て。まだだ。」と言った。", "皆は黙った。"],
        ["モーニング娘。は歌った。", "客は喜んだ。"],
        ["あれは私の娘。", "その人は母だ。"],
        ["値段は2.5万円だ。", "高い！", "そうだろうか？"],
        ["雨だ（たぶん明日も）。", "（傘がない。）", "困った。"],
        ["「行こう。」", "ところが雨だった。", "「困った！」", "とても寒い。"],
        ["そう…だったのか。", "知らなかった……。"],
        ["待て！と彼は叫んだ。", "私は止まった。"],
        ["本の題は『なぜ空は青いか？』である。", "子供の本だ。"],
    ],
    "zh": [
        ["我读过《谁来了？》这本书。", "很有意思。"],
        ["他问：“你去吗？”", "我没有回答。"],
        ["气温是零下3.5度。", "真冷！", "你不冷吗？"],
        ["（他没有来。）", "我们走了。"],
        ["我想……也许是吧。", "谁知道呢……"],
        ["约翰·史密斯来了。", "他住在U.S.A.的东部。"],
        ["“走吧！”", "她站了起来。"],
    ],
    "ko": [
        ["그는 “가자.”라고 말했다.", "우리는 일어났다."],
        ['"왜 왔니?" 하고 물었다.', "대답이 없었다."],
        ["회의는 2020. 5. 3. 에 열렸다.", "열 명이 왔다."],
        ["값은 3.5달러다.", "싸다!", "살까?"],
        ["그는 늦었다(눈 때문에).", "(길이 막혔다.)", "우리는 기다렸다."],
        ["글쎄…", "모르겠다."],
        ["김 씨는 A. 스미스를 만났다.", "둘은 친구다."],
    ],
    "de": [
        ["Am 3. Mai kam Fr. Dr. Weber, u. a. mit Hrn. Kunz.", "Sie blieb bis 17.30 Uhr."],
        ["„Wer ist da?“, fragte er.", "„Ich bin es.", "Mach auf!“", "Er öffnete."],
        ["Das sind ca. 2,5 Mio. Euro bzw. 10 %.", "Viel Geld!"],
        ["Siehe Abb. 3 und S. 12 ff. im Anhang.", "Dort steht alles."],
        ["Er kam (endlich).", "(Es war spät.)", "Wir aßen."],
        ["Ludwig XIV. regierte lange.", "Im 17. Jahrhundert war das so."],
        ["Ich weiß nicht …", "Vielleicht doch."],
        ["Die Fa. Maier GmbH & Co. KG zog um.", "Der 1. FC gewann."],
    ],
    "ru": [
        ["В 1812 г. армия отступила.", "Зима была холодной."],
        ["«Кто там?» — спросил он.", "Никто не ответил."],
        ["— Иди сюда! — крикнула мать.", "Мальчик побежал."],
        ["Это был А. П. Чехов, т. е. врач и писатель.", "Он жил в Ялте."],
        ["Цена 5 тыс. руб. за штуку.", "Дорого!", "Правда?"],
        ["Он жил на ул. Мира, д. 5, кв. 12.", "Дом снесли."],
        ["Я не знаю…", "Может быть."],
        ["Он пришёл (поздно).", "(Шёл дождь.)", "Мы ждали."],
    ],
    "vi": [
        ["TP. Huế rất đẹp.", "GS.TS. Lan sống ở đó."],
        ["“Anh đi đâu?” chị hỏi.", "Anh không trả lời."],
        ["Giá là 3.500 đồng, tức 3,5 nghìn.", "Rẻ quá!", "Thật không?"],
        ["Anh đến (muộn).", "(Trời mưa.)", "Chúng tôi đợi."],
        ["Tôi không biết...", "Có lẽ vậy."],
        ["ThS. Minh ở Q. 3, TP. HCM.", "Nhà anh ở P. 7."],
    ],
    "ar": [
        ["وصل د. سامي و أ.د. هدى.", "بدأ الاجتماع."],
        ["قال: «من هناك؟»", "لم يجب أحد."],
        ["ولد عام ٣٠٠ ق.م. في المدينة.", "مات شابا."],
        ["السعر ٢.٥ دينار.", "غال جدا!", "أليس كذلك؟"],
        ["جاء متأخرا (بسبب المطر).", "(كان الطريق مغلقا.)", "انتظرنا."],
        ["لا أعرف…", "سنرى."],
        ["انظر ص. ٥ من الكتاب.", "هناك الجواب."],
    ],
    "fa": [
        ["«کی آمد؟»", "کسی پاسخ نداد."],
        ["او در سال ۵۰ ه.ش. به دنیا آمد.", "شهرش کوچک بود."],
        ["بها ۲.۵ میلیون است.", "گران است!", "می\u200cخری؟"],
        ["او دیر آمد (باران بود).", "(راه بسته بود.)", "ما ماندیم."],
        ["نان و پنیر و… روی میز بود.", "خوردیم."],
        ["گفت: «بیا، زود باش.»", "من رفتم."],
        ["م. آزاد شاعر بود.", "ر.ک. صفحهٔ ۷ کتاب."],
    ],
}
UNSPACED = ("ja", "zh")
CASES = [(language, case) for language, cases in GOLD.items() for case in cases]


@pytest.mark.parametrize(("language", "sentences"), CASES)
def test_sentences_equal_gold(language: str, sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences), language) == sentences
    if language in UNSPACED:
        assert split_running("".join(sentences), language) == sentences


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["dr. hill came home.", "then he slept.", "it was 5 p.m. on monday, e.g. late."]),
        ("en", ["“why?” she asked.", "she left... then came back.", "he did not."]),
        ("de", ["er kam z. b. am 3. mai.", "dann schlief er.", "„gut!“, sagte sie."]),
        ("ru", ["в 1812 г. армия отступила.", "зима была холодной."]),
        ("fr", ["m. dupont est là.", "est-ce vrai ?", "oui."]),
        ("tr", ["dr. yılmaz geldi.", "ışık söndü."]),
    ],
)
def test_text_without_capitals_ends_at_full_stops(language: str, sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences), language) == sentences


def test_small_letter_after_a_full_stop_continues_where_others_are_capital() -> None:
    sentences = ["The firm foo inc. was sold.", "It moved to sect. nine."]
    assert split_sentences(" ".join(sentences), "en") == sentences


# One phrase of each script that is written without spaces between words.
PHRASES = {
    "th": "วันนี้อากาศดีมากเราจึงไปตลาด",
    "lo": "ມື້ນີ້ອາກາດດີພວກເຮົາໄປຕະຫຼາດ",
    "km": "ថ្ងៃនេះអាកាសធាតុល្អយើងទៅផ្សារ",
    "my": "ဒီနေ့ရာသီဥတုကောင်းတယ်ဈေးသွားတယ်",
    "bo": "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག",
}


@pytest.mark.parametrize("language", PHRASES)
def test_text_without_marks_is_split_at_spaces(language: str) -> None:
    text = " ".join([PHRASES[language]] * 40)
    pieces = split_running(text, language)
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert max(map(len, pieces)) <= 300
    assert all(len(piece) >= len(PHRASES[language]) for piece in pieces)


def test_khmer_sentence_with_a_mark_keeps_its_spaces() -> None:
    sentence = " ".join([PHRASES["km"]] * 4) + "។"
    assert split_sentences(f"{sentence} {sentence}", "km") == [sentence, sentence]


def test_quotation_that_is_never_closed_hides_no_sentence_ends() -> None:
    assert split_sentences("He said: “Go. She left. They came. It was late.", "en") == [
        "He said: “Go.",
        "She left.",
        "They came.",
        "It was late.",
    ]
    single = ["He said: 'Go on.", "She left.", "They came.'", "It wasn't late."]
    assert split_sentences(" ".join(single), "en") == single
    # The mark inside the Hebrew word is an abbreviation sign.
    hebrew = ['הוא גר בארה"ב.', "היא גרה כאן.", "הם שמחו."]
    assert split_sentences(" ".join(hebrew), "he") == hebrew


def test_bracket_that_is_never_closed_hides_no_sentence_ends() -> None:
    sentences = ["He said (so.", "She left at noon.", *["Nobody came to the house."] * 5, "Late."]
    assert split_sentences(" ".join(sentences), "en") == sentences


@pytest.mark.parametrize("marker", ["1)", "(1)", "•"])
def test_list_item_of_several_sentences(marker: str) -> None:
    sentences = [f"{marker} He came home.", "She left.", "They slept."]
    assert split_sentences(" ".join(sentences), "en") == sentences


def test_quotation_marks_between_spaces_stay_with_their_sentence() -> None:
    tokenized = ['He said : " Go on . "', "She left ."]
    assert split_sentences(" ".join(tokenized), "en") == tokenized


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("de", ["Er wohnte in Bremen.", "1990 zog er um.", "Wann genau?", "12 Uhr."]),
        ("cs", ["Bydlel v Praze.", "1990 odjel.", "Kdy?", "3 roky poté."]),
        ("fi", ["Hän asui täällä.", "1990 hän muutti."]),
        ("ja", ["彼は来た。", "2001年に去った。", "「もう？」", "3年後だ。"]),
        ("zh", ["他来了。", "2001年他走了。"]),
    ],
)
def test_sentence_that_begins_with_a_number(language: str, sentences: list[str]) -> None:
    joint = "" if language in UNSPACED else " "
    assert split_sentences(joint.join(sentences), language) == sentences


def test_two_closing_marks_stay_with_their_sentence() -> None:
    sentences = ["«Она шепнула: „Стой тут!“», — сказал он.", "«Он кричал „Беги!“»", "Мы ушли."]
    assert split_sentences(" ".join(sentences), "ru") == sentences


def test_tibetan_double_mark_belongs_to_the_sentence_before() -> None:
    assert split_running("ཁོང་ཡོང་ངོ་། །མོ་ཕྱིན་ནོ། །", "bo") == ["ཁོང་ཡོང་ངོ་། །", "མོ་ཕྱིན་ནོ། །"]
