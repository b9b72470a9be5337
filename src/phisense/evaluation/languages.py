"""Parse yes and no in languages other than English.

Only decisive answers are parsed: those that are a word of the tables, or begin with one. Anything
else in another language is neither yes nor no, because a sentence without an English negation may
still be negated in its own language. Words with another meaning in one of the languages ("ja" is
"I" in Polish, "si" is "if" in French) count only alone before a punctuation mark or the end.
"""

from __future__ import annotations

import re
import unicodedata

from .english import listed

#: Decisive wherever they begin an answer.
_YES = listed("""
    jawohl oui ouais sí sim sì igen kyllä evet да так ναι áno yebo vâng đúng đúng_vậy có_chứ
    haan hanji نعم أجل بلى بله بلی آره जी_हाँ जी_हां हाँ हां হ্যাঁ ஆம் అవును כן ใช่ ใช่ครับ
    ใช่ค่ะ ครับ ค่ะ иә айо ndiyo naam opo betul benar iya claro_que_sí 네 예 그렇습니다
    맞습니다 있습니다 있어요 はい うん ええ そうです あります います
""")
#: Intensifiers of what follows: yes unless a "no" follows immediately, as in "certo che no".
_SURELY = listed("""
    tentu certo certamente claro ciertamente efectivamente por_supuesto desde_luego absolument
    certainement effectivement natürlich selbstverständlich bien_sûr oczywiście samozřejmě
    natuurlijk naturligtvis självklart selvfølgelig naturligvis com_certeza конечно разумеется
    действительно звичайно tabii elbette
""")
_NO = listed("""
    nein nö kein keine keiner keinen keines nee geen niet nej inte ingen inga inget ikke nei não
    nao nenhum nenhuma ningún ninguna ninguno nessun nessuna nessuno niente aucun aucune rien
    hayır hayir yok değil нет не нету нема ні немає nie_ma nie_jest brak žádný žiaden ne_non όχι
    δεν tidak bukan tiada tidak_ada không_có không_phải không لا ليس لیس ليست خیر نه نیست नहीं
    जी_नहीं ना না இல்லை లేదు לא אין ไม่ใช่ ไม่มี ไม่ ไม่ครับ ไม่ค่ะ жоқ hapana wala lo_hay_no
    아니요 아니오 아뇨 아니 없습니다 없어요 아닙니다 いいえ いえ いや ううん ありません いません
    ないです ない いない
""")
#: Decisive only before a punctuation mark or the end.
_YES_ALONE = listed("""
    ja jo da si sí_claro tak ano ya oo var có є есть jest ist_da мay μάλιστα eja jep klar sicher
    genau stimmt exacto vero vrai correct_oui 是 有
""")
_NO_ALONE = listed("""
    non ne nie nem ei nu na tak_ada nicht pas nenhures hindi jamais nunca mai nada não_há
    non_c'è
""")
#: Phrases with a negation that affirm ("no doubt", "not only"), wherever they begin an answer.
_AFFIRMING = re.compile(
    r"(?:没错|沒錯|不错|不錯|(?:毫)?无疑问?|(?:毫)?無疑問?|没有疑问|沒有疑問|[无無不]可否[认認]|不[仅僅](?:[仅僅])?|不只|不止|不但|不光|"
    r"不[难難]看出|"
    r"間違いな[くい](?:です)?|い?ないことはない(?:です)?|ないわけではない|틀림없(?:이|습니다)|"
    r"의심의 여지(?:가| 없이|가 없습니다)|"
    r"ไม่ต้องสงสัย|ไม่เพียง(?:แต่)?|ไม่ใช่แค่|ไม่ผิด|"
    r"(?:no (?:hay|cabe|queda)(?: ninguna| la menor)? dudas?|sin(?: ninguna)? duda|"
    r"no (?:solo|sólo|solamente|únicamente)|"
    r"não há(?: nenhuma)? dúvidas?|sem(?: nenhuma)? dúvida|não (?:só|apenas|somente)|"
    r"non c'è(?: alcun)? dubbio|non ci sono dubbi|senza(?: alcun)? dubbio|non (?:solo|soltanto)|"
    r"(?:il n'y a )?(?:pas de|aucun) doute|sans(?: aucun)? doute|(?:pas|non) seulement|"
    r"(?:es gibt |da gibt es )?(?:kein(?:en)? zweifel|keine frage)|"
    r"ohne(?: jeden)? zweifel|zweifellos|nicht nur|"
    r"(?:er is )?geen twijfel(?: mogelijk)?|zonder twijfel|niet alleen|"
    r"nie ma(?: żadnych)? wątpliwości|bez wątpienia|nie tylko|"
    r"ingen tvekan|inget tvivel|utan tvekan|inte bara|ingen tviv?l|uden tvivl|uten tvil|"
    r"ikke (?:kun|bare)|"
    r"není pochyb|bez pochyby?|nejen|nincs kétség|kétségtelen(?:ül)?|nem ?csak|"
    r"ei epäilystäkään|epäilemättä|ei vain|"
    r"нет(?: никаких)? сомнени[йя]|без сомнени[йя]|несомненно|не только|немає сумнів\w*|"
    r"без сумніву|не (?:тільки|лише)|"
    r"hiç şüphe yok|şüphe yok|şüphesiz|tidak diragukan(?: lagi)?|(?:tidak|bukan) hanya|"
    r"không nghi ngờ(?: gì)?|không chỉ|"
    r"χωρίς αμφιβολία|όχι μόνο|لا شك|بلا شك|بدون شک|بی شک|ليس فقط|نه تنها|אין ספק|לא רק|"
    r"(?:इसमें )?कोई (?:शक|संदेह) नहीं|न केवल)(?!\w))"
)
_AFFIRMING_INSIDE = re.compile(rf"(?<![^\W\u3400-\u9fff]){_AFFIRMING.pattern}")
_THAT = re.compile(
    r"^(?:(?:de que|que|che|dass|dat|att|at|že|że|hogy|что|що|rằng)(?!\w)|[\s,;:.，、。–-])+"
)
#: The answer says that it cannot tell: neither yes nor no, whatever its first word.
_UNKNOWN = re.compile(
    r"\b(?:no (?:lo )?s[eé]|no se (?:puede|sabe|ve bien)|no sabr[ií]a|no estoy segur[oa]|no puedo|"
    r"non (?:lo )?so\b|non (?:posso|sono sicur)|"
    r"(?:je )?ne (?:sais|peux|suis) pas|je n'en sais|"
    r"(?:weiß|weiss|kann|bin)(?: \w+){0,4} nicht|nicht (?:sicher|erkennbar|eindeutig)|"
    r"keine ahnung|n[ãa]o (?:sei|posso|tenho certeza|consigo)|nie (?:wiem|jestem pewn|mogę)|"
    r"weet (?:ik )?(?:het )?niet|"
    r"vet inte|ve[dt] ikke|"
    r"bilmiyorum|emin değil|không (?:biết|rõ|chắc|thể|xác định)|có (?:thể|lẽ)|"
    r"tidak (?:tahu|yakin|dapat|bisa|jelas)|en tiedä|nem tudom)"
    r"|не (?:знаю|увер|могу|ясно|видно)|неизвестно|невозможно|"
    r"लगता नहीं|पता नहीं|لا (?:أعرف|أعلم|أدري|أستطيع|يمكن)|لست متأكد|نمی‌?دانم|"
    r"לא (?:יודע|בטוח|יכול)|"
    r"ไม่(?:ทราบ|รู้|แน่ใจ|สามารถ|ชัดเจน)|"
    r"对不起|對不起|抱歉|不好意思|不知道|不确定|不確定|不清楚|不明|不一定|不能|无法|無法|难以|難以|可能|也许|也許|或许|或許|是否|是不是|有没有|有沒有|看不清|"
    r"说不准|[吗嗎呢]\W*$|"
    r"是(?:或|还是|還是|/)(?:否|不是)|有(?:或|还是|還是|/)(?:没有|沒有)"
    r"|はい(?:か|、|または|/)いいえ|네(?:나|/| 또는 )아니"
    r"|わから|分から|判断でき|確認でき|不確か|かもしれ|申し訳|すみません|"
    r"모르|알 수 없|확실하지|확인할 수|죄송"
)
#: Chinese answers begin with the decisive word; only a phrase of place may precede it.
_WHERE = re.compile(
    r"^(?:在)?(?:(?:这|這|该|該|此)(?:张|張|幅)?)?(?:图片|圖片|图像|圖像|照片|画面|畫面|图|圖)(?:之)?(?:中|里|裡|上|内|內)?"
    r"(?:确实|確實|的确|显示)?[,，:： ]*|^我(?:可以|能|们)?"
)
_CHINESE_NO = re.compile(
    r"^(?:不|看不到|看不见|看不見|没|沒|否|无|無|未|并没|並沒|并不|並不|并无|并非|錯|错)"
)
_CHINESE_YES = re.compile(
    r"^(?:是(?:的|啊|呀)?|有(?:的|啊)?|对(?:的|啊)?|對(?:的|啊)?|嗯|存在|正确|正確|当然|當然|可以看到|能看到|看到|看见|看見|看得到)"
)
_CHINESE_DENIAL = re.compile(r"没|沒|不|无|無|否|非")
_CHINESE_DENIAL_OF = re.compile(r"没有|沒有|不是|不存在|看不到|看不[见見]|并[没无非]|無|没看|不在")
#: Japanese and Korean sentences are decided by their final verb.
_ENDS_NO = re.compile(
    r"(?:いません|ありません|いない|はない|がない|ではない|じゃない|写っていません|見えません|見当たりません|"
    r"없습니다|없어요|없다|아닙니다|아니에요|않습니다|않아요)(?:です)?$"
)
_ENDS_YES = re.compile(
    r"(?:います|あります|がいる|がある|写っています|見えます|있습니다|있어요|있다|보입니다|보여요)$"
)
_KANA_OR_HANGUL = re.compile(r"[\u3041-\u30ff\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
#: Thai is written without spaces, so words are matched as prefixes.
_THAI = re.compile(r"(ไม่)|ใช่|มี|เห็น")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_MARK = r"(?=\s*(?:[,;:!?.\-–—(/、，。！？；：]|$))"


def _one_of(words: list[str]) -> str:
    found = sorted({unicodedata.normalize("NFC", word) for word in words}, key=len, reverse=True)
    return "|".join(map(re.escape, found))


_BEGINS_SURELY = re.compile(rf"(?:{_one_of(_SURELY)})(?!\w)")
#: "na" and "no" mean "on the" in other languages, "nu" means "now", "mai" may mean "but".
_ELSEWHERE = ("na", "nu", "mai", "ना", "না")
_SAID_NO = re.compile(
    rf"(?<!\w)(?:{_one_of([word for word in _NO + _NO_ALONE if word not in _ELSEWHERE])})(?!\w)"
)
_BEGINS_YES = re.compile(rf"(?:(?:{_one_of(_YES)})(?!\w)|(?:{_one_of(_YES_ALONE)}){_MARK})")
_BEGINS_NO = re.compile(rf"(?:(?:{_one_of(_NO)})(?!\w)|(?:{_one_of(_NO_ALONE)}){_MARK})")
_BOTH = re.compile(
    rf"(?:{_one_of(_YES + _YES_ALONE)})"
    r" (?:o|oder|ou|or|of|e|et|und|y|en|e|eller|och|i|и|или|або|veya|dan|atau|hoặc|ή|או|أو) "
    rf"(?:{_one_of(_NO + _NO_ALONE)}|no)(?!\w)"
)
_QUOTED = " \"'“”‘’„«»「」『』()[]*_`#¡¿"


def foreign_yes_or_no(sentence: str) -> str:
    """Return "yes" or "no"; "other" for a lower-case sentence that is in none of these languages,
    or not decisive.
    """
    text = unicodedata.normalize("NFC", sentence).strip(_QUOTED)
    if _UNKNOWN.search(text) or _BOTH.search(text):
        return "other"
    if stressed := _AFFIRMING.match(text) or _BEGINS_SURELY.match(text):
        rest = _THAT.sub("", text[stressed.end() :])
        if _denies_at_once(rest):
            return "no"
        return "other" if _denies(rest) else "yes"
    if _BEGINS_NO.match(text):
        return "no"
    if yes := _BEGINS_YES.match(text):
        rest = text[yes.end() :].lstrip(" ,;:、，")
        # "yes, there is none" contradicts itself
        return "other" if _denies_at_once(rest) or _denies(rest) else "yes"
    if thai := _THAI.match(text):
        return "no" if thai[1] else "yes"
    if _KANA_OR_HANGUL.search(text):
        ended = text.rstrip(" .。!！~")
        return "no" if _ENDS_NO.search(ended) else "yes" if _ENDS_YES.search(ended) else "other"
    return _chinese(_WHERE.sub("", text)) if _HAN.search(text) else "other"


def affirms_by_denying(sentence: str) -> bool:
    """Whether a sentence begins with a phrase whose "no" does not negate ("no hay duda"), or one
    that intensifies a "no" ("certo che no").
    """
    text = unicodedata.normalize("NFC", sentence).strip(_QUOTED)
    return (_AFFIRMING.match(text) or _BEGINS_SURELY.match(text)) is not None


def _denies_at_once(rest: str) -> bool:
    return (
        _BEGINS_NO.match(rest)
        or re.match(r"no(?!\w)", rest)
        or _CHINESE_NO.match(_WHERE.sub("", rest))
    ) is not None


def _denies(rest: str) -> bool:
    rest = _AFFIRMING_INSIDE.sub(" ", rest)
    return (
        _SAID_NO.search(rest) or _ENDS_NO.search(rest) or _CHINESE_DENIAL_OF.search(rest)
    ) is not None


def _chinese(text: str) -> str:
    if _CHINESE_NO.match(text):
        return "no"
    yes = _CHINESE_YES.match(text)
    if yes is None:
        return "other"
    rest = _AFFIRMING_INSIDE.sub("", text[yes.end() :].lstrip(" ,，、"))
    existence = yes[0][0] in "有存可能看"  # not negated by what else is missing
    return "other" if _CHINESE_DENIAL.match(rest) or (not existence and _denies(rest)) else "yes"


def says_unknown(sentence: str) -> bool:
    """Whether a sentence in another language says that it cannot tell ("no lo sé" is not "no")."""
    return _UNKNOWN.search(sentence) is not None
