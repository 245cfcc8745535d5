"""Patterns and word lists of the prompt filter's rules: markup, chatter, announced text, quotes, languages.

A `*_GATE` is a cheap pattern that matches wherever its rule can.
"""

QUOTED = r'"[^"]*"|“[^”]*”|「[^」]*」|『[^』]*』'
QUOTED_TEXT = r'"\s*[^"\s][^"]*"|“\s*[^”\s][^”]*”|「[^」]+」|『[^』]+』'
MARKUP = (
    r"^\s*(?:[{\[#>*]|```|[-•]\s|\d+[.)]\s)"  # JSON, markdown, list items
    r"|[\r\n]\s*[\r\n]|</?[a-z][^>]*>|\*\*|\\n"
    r"|--(?:ar|v|style|stylize|no|q|s)\b|\(\S[^()]*:\d+(?:\.\d+)?\)|<lora:"  # parameters of image tools
    r"|\b(?:scene|camera|lighting|mood|style|subject|setting|composition|background)\s*:[^:]*"
    r"\b(?:camera|lighting|mood|style|setting|composition|background)\s*:"  # a form that was filled in
    r"|^\s*(?:prompt|image prompt|description|caption|title|id|提示词|描述)\s*[:：]"
)
CHATTER = (
    r"^\s*[\"“']?(?:sure[,!.]|certainly[,!.]|of course[,!.]|okay[,!.]|here(?:'s| is| are)\b.*:|i(?:'m"
    r"| am) sorry|sorry[,!.]"
    r"|as an ai\b|i can(?:not|'t|’t)\b|i(?:'m| am) unable|i apologi[sz]e|unfortunately, i\b|抱歉|对不起"
    r"|好的[，,]|作为(?:一个)?(?:ai|人工智能))"
    r"|\b(?:as a language model|the user (?:wants|asks|requested)|i hope this helps|let me know if)\b"
)
# Phrases that announce text in the image. "Reading" or "says" alone would catch people, so a thing that
# bears text precedes; what plainly is a person's reading or speaking is cut out first.
PERSON_READS = (
    r"\b(?:read(?:s|ing)?|say(?:s|ing)?|spell(?:s|ing)?) (?:(?:a|an|the|his|her|their|my|some|nothing|aloud"
    r"|goodbye|hello|grace|prayers?|quietly|silently|to|in|at|by"
    r"|on|with|under|from|while|about|books?|news|newspapers?|comics|room|glasses|lamp|chair|nook"
    r"|light|corner|area|desk|table|list)\b|[.,;])"
)
BEARER = (
    r"(?:signs?|signboards?|boards?|blackboard|whiteboard|chalkboard|banners?|posters?|billboards?"
    r"|labels?|headlines?|slogan|title|subtitle|"
    r"caption|inscription|buttons?|badge|logo|stickers?|plaque|screen|menu|notes?|cards?|t-shirt"
    r"|shirt|placards?|tags?|cover|marquee|neon|text|"
    r"graffiti|doormat|mat|slip|words?|lettering|letters|tagline|heading|ticket|envelope|plate|flag|mug|cap|tombstone"
    r"|gravestone|flyer|slide|display|paper)"
)
ANNOUNCES = (
    rf"\b{BEARER}\b[^.!?\"“]{{0,40}}?\b(?:reads?|reading|says?|saying|spelling|spells|stating|states"
    rf"|proclaims?|proclaiming)\b"
    r"|\b(?:with|bearing|displaying|showing|displays|shows|bears) the (?:words?|text|title|headline"
    r"|slogan|inscription|message|phrase)\b"
    r"|\b(?:is|are|poster|book|slide|film|painting|album|menu|chart|cover) (?:titled|entitled"
    r"|captioned)\b"
    r"|\b(?:inscribed|emblazoned|lettered|printed) with the words?\b"
    r"|写着|写有|印着|标题为|刻着|上书|题字为"
)
# Without these no announcement and no text in single quotes can be there.
ANNOUNCES_GATE = (
    r"read|say|spell|stat(?:es|ing)|proclaim|titled|captioned"
    r"|the (?:word|text|title|headline|slogan|inscription|message|phrase)"
    r"|写着|写有|印着|标题为|刻着|上书|题字为|[\s:：,，]['‘`«]"
)
MARKUP_GATE = r"^\s*(?:[{\[#>*`\-•]|\d+[.)])|[\r\n<:：]|\*\*|\\n|--"
CHATTER_GATE = (
    r"^\s*[\"“']?(?:sure|certainly|of course|okay|here|i|sorry|as an|unfortunately|抱歉|对不起|好的|作为)"
    r"|a language model|the user |i hope this helps|let me know if"
)
# Text in any other kind of quotes.
BARE_TEXT = r"(?:[\s:：,，])(?:'[^']{2,}'|‘[^’]{2,}’|`[^`]{2,}`|«[^»]{2,}»)(?:[\s.,;:!?。，]|$)"
HAN = r"\p{Han}"
LATIN = r"[A-Za-z]"
FOREIGN = (
    r"[\p{Cyrillic}\p{Arabic}\p{Hangul}\p{Hiragana}\p{Katakana}\p{Thai}\p{Devanagari}\p{Hebrew}\p{Greek}]"
)
ENGLISH_WORDS = [
    f" {word} " for word in ("the", "of", "with", "and", "is", "are", "its", "on", "by", "from", "at")
]
OTHER_WORDS = [
    f" {word} "
    for words in (
        ("le", "la", "les", "des", "du", "une", "sur", "avec", "dans", "et"),
        ("der", "das", "und", "ein", "eine", "auf", "mit", "dem", "den"),
        ("el", "los", "las", "una", "con", "y", "del", "il", "di", "che", "sul", "nel"),
        ("com", "uma", "em", "na", "het", "een", "op", "met", "och", "ett", "jest", "się"),
    )
    for word in words
]
