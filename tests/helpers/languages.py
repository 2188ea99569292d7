"""A few sentences in ten languages, and documents made of them."""

from pathlib import Path
from random import Random

SENTENCES = {
    "ar": [
        "ذهب الولد إلى المدرسة في الصباح.",
        "قرأت البنت كتابًا عن البحر.",
        "هذا البيت كبير وقديم.",
        "كَتَبَ المعلم الدرس على اللوح.",
        "أين وضعت المفتاح؟",
        "نزل المطر طوال الليل.",
        "يعمل أبي في السوق.",
        "اشترينا خبزًا وتفاحًا.",
    ],
    "de": [
        "Das Haus am See ist schön.",
        "Es war schon spät, als er kam.",
        "Die Straße führt über den Fluss.",
        "Wir grüßen die Gäste an der Tür.",
        "Hast du das Buch gelesen?",
        "Der Bäcker öffnet um sechs Uhr.",
        "Im Garten blühen Rosen.",
        "Sie fährt morgen nach Köln.",
    ],
    "fa": [
        "می‌خواهم این کتاب را بخوانم.",
        "کتاب‌ها روی میز بود.",
        "او نمی‌داند کجا برود.",
        "باران تمام شب بارید.",
        "پدرم در بازار کار می‌کند.",
        "آیا نامه‌ات را نوشته‌ای؟",
        "خانهٔ ما نزدیک رودخانه است.",
        "بچه‌ها در حیاط بازی می‌کنند.",
    ],
    "hi": [
        "मैं हर सुबह हिन्दी पढ़ती हूँ।",
        "कल रात बहुत बारिश हुई।",
        "उसका कुल गाँव में बड़ा माना जाता है।",
        "डॉक्टर ने दवा लिख दी।",
        "क्या तुमने खाना खाया?",
        "बच्चे मैदान में खेल रहे हैं।",
        "हमारी नदी गर्मियों में सूख जाती है।",
        "पिताजी दुकान पर बैठे हैं।",
    ],
    "ja": [
        "ガラスの窓が風で割れた。",
        "彼はカラスを見て笑った。",
        "駅の前に新しいパン屋ができた。",
        "昨日の夜は雨がひどかった。",
        "この本をもう読みましたか？",
        "子どもたちは公園で遊んでいる。",
        "父は市場で魚を売っています。",
        "川の水はとても冷たい。",
    ],
    "ko": [
        "나는 아침마다 도서관에 간다.",
        "어젯밤에는 비가 많이 내렸다.",
        "아버지는 시장에서 생선을 파신다.",
        "이 책을 벌써 읽었니?",
        "아이들이 마당에서 놀고 있다.",
        "강물이 아주 차갑다.",
        "우리 집은 바다 가까이에 있다.",
        "선생님이 칠판에 글을 쓰신다.",
    ],
    "ru": [
        "Мой дом стоит у реки.",
        "Ночью шёл сильный дождь.",
        "Отец работает на рынке.",
        "Ты уже прочитал эту книгу?",
        "Дети играют во дворе под ёлкой.",
        "Учитель пишет на доске.",
        "Вода в реке очень холодная.",
        "Завтра мы поедем к морю.",
    ],
    "th": [
        "เมื่อคืนฝนตกหนักมาก",
        "พ่อขายปลาอยู่ที่ตลาด",
        "ป้าซื้อผ้าใหม่ให้หลาน",
        "เด็กๆ",
        "เล่นอยู่ในสวน",
        "ป่าแห่งนี้เงียบมาก",
        "บ้านของเราอยู่ใกล้แม่น้ำ",
        "ครูเขียนหนังสือบนกระดาน",
        "พรุ่งนี้เราจะไปทะเล",
    ],
    "vi": [
        "Đêm qua trời mưa rất to.",
        "Má tôi bán mạ ở chợ.",
        "Bạn đã đọc cuốn sách này chưa?",
        "Bọn trẻ đang chơi ngoài sân.",
        "Nhà tôi ở gần con sông.",
        "Thầy giáo viết lên bảng.",
        "Ngày mai chúng tôi đi biển.",
        "Cái mả nằm dưới gốc cây.",
    ],
    "zh": [
        "昨天晚上下了一场大雨。",
        "爸爸在市场上卖鱼。",
        "你看过这本书吗？",
        "孩子们在院子里玩。",
        "我们的房子离河很近。",
        "老师在黑板上写字。",
        "明天我们去海边。",
        "河里的水很冷。",
    ],
}
"""Eight sentences each."""
UNSPACED = ("ja", "zh")
"""Languages without a space between sentences."""


def join(sentences: list[str], language: str) -> str:
    """Running text."""
    return ("" if language in UNSPACED else " ").join(sentences)


TEXTS = {language: join(sentences, language) for language, sentences in SENTENCES.items()}
"""All sentences of a language as running text."""


def make_documents(language: str, count: int = 40) -> list[str]:
    """Invented documents: three paragraphs of the sentences in random order."""
    random = Random(language)
    return [
        "\n\n".join(join(random.sample(SENTENCES[language], 6), language) for _ in range(3))
        for _ in range(count)
    ]


def write_documents(folder: Path, language: str, count: int = 40) -> None:
    """One text file per document."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(make_documents(language, count)):
        (folder / f"{number:02}.txt").write_text(text + "\n", encoding="utf-8")


PERSIAN = (
    "در این شهر مردم هر روز به بازار می\u200cروند و با دوستان خود درباره کار "
    "زندگی کتاب باران مدرسه خانه پدر مادر کودک درخت رودخانه کوه آسمان تاریخ "
    "هنر دانشگاه استاد دانشجو سفر راه جاده ماشین غذا نان آب چای سخن "
    "می\u200cگویند"
)


def invent_persian(seed: int) -> str:
    """An invented web page, long enough to pass the quality filters."""
    draw = Random(seed)
    return "\n".join(
        " ".join(draw.choices(PERSIAN.split(), k=draw.randint(12, 30))) + "." for _ in range(8)
    )
