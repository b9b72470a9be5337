"""Placeholders of other makers: used where they are plain, refused with what to write, and never
mistaken for HTML or code.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

import pytest

from phisense.conversations import IMAGE, tags
from phisense.conversations.rows import validate_row

#: Each stands for one picture, in whatever case.
SURE = (
    "<image_placeholder>",
    "<image-placeholder>",
    "<|image|>",
    "<|image_1|>",
    "<image_1>",
    "<image1>",
    "<image 1>",
    "<ImageHere>",
    "<Img><ImageHere></Img>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|image_pad|><|image_pad|>",
    "<image></image>",
    "<image_token>",
    "<image_soft_token>",
    "<start_of_image>",
    "<IMG_CONTEXT>",
    "<im_start><image><im_end>",
    "[image_placeholder]",
    "<|img|>",
    "<picture_1>",
    "(<image>./</image>)",
    "<image>./</image>",
    "<image:1>",
    "<image: 1>",
    "<image_tokens>",
    "<pic_1>",
    "<im_start><im_patch><im_patch><im_end>",
    "<im_patch><im_patch>",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
    "<IMG_CONTEXT><IMG_CONTEXT>",
)
PLAIN = (
    "<Image>",
    "<IMAGE>",
    "< image >",
    "<img>",
    "<IMG>",
    "[IMG]",
    "[image]",
    "[Image]",
    "<picture>",
    "<photo>",
    "<image/>",
    "<pic>",
    "[pic]",
    "[image1]",
    "[image 1]",
    "[img-1]",
    "{image}",
    "{IMAGE}",
    "{image_1}",
)
MEDIA = ("<video>", "<audio>", "<Video>", "<speech>", "<sound>", "[video]")
SURE_MEDIA = (
    "<|video|>",
    "<|audio_1|>",
    "<video_1>",
    "<audio_placeholder>",
    "<VideoHere>",
    "<|video_pad|>",
    "<Speech><SpeechHere></Speech>",
)
PLACES = (
    "<box>(1,2),(3,4)</box>",
    "<ref>a star</ref><box>(1,2),(3,4)</box>",
    "<box>[[1, 2, 3, 4]]</box>",
    "<bbox>",
    "<ref-object>",
    "<loc_12>",
    "<loc0123>",
    "<patch_index_0001>",
    "It is [SEG].",
)


def row(asked: str, told: str = "A star.", **more: Any) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}],
        **more,
    }


def counted_property(of: Any, name: str) -> cached_property[Any]:
    made = cached_property(of)
    made.__set_name__(tags.TaggedText, name)
    return made


def codes(raw: dict[str, Any]) -> set[str]:
    return {code for code, _ in validate_row(raw, 1).faults}


@pytest.mark.parametrize("tag", [*SURE, *PLAIN])
@pytest.mark.parametrize(
    "form",
    [
        "{}\nWhat is this?",
        "{}What is this?",
        "What is this?\n{}",
        "What is this? {}",
        "Look.\n{}\nWhat is this?",
    ],
)
def test_a_placeholder_becomes_the_pictures_marker(tag: str, form: str) -> None:
    examined = validate_row(row(form.format(tag), image="a.jpg"), 1)
    assert examined.faults == []
    assert examined.conversation().messages[0].text == form.format(IMAGE)


@pytest.mark.parametrize("tag", [*SURE, *PLAIN])
def test_without_a_picture_it_is_refused(tag: str) -> None:
    assert codes(row(f"{tag}\nWhat is this?")) == {"image-count"}


@pytest.mark.parametrize("tag", SURE)
def test_in_an_answer_it_is_refused(tag: str) -> None:
    found = codes(row(f"{IMAGE}\nWhat?", f"See {tag} there.", image="a.jpg"))
    assert found & {"foreign-tag", "control-token", "image-in-answer"}


@pytest.mark.parametrize("tag", MEDIA)
@pytest.mark.parametrize("form", ["{}\nWhat happens?", "{}What happens?", "What happens?\n{}"])
def test_videos_and_sounds_are_refused(tag: str, form: str) -> None:
    assert codes(row(form.format(tag))) == {"foreign-tag"}


@pytest.mark.parametrize("tag", [*SURE_MEDIA, *PLACES])
def test_what_is_no_text_is_refused_wherever_it_stands(tag: str) -> None:
    assert codes(row(f"Where is {tag} here?")) & {"foreign-tag", "control-token"}
    assert codes(row("Where?", f"At {tag} there.")) & {"foreign-tag", "control-token"}


@pytest.mark.parametrize("tag", ["<video>", "<audio>", "<Video>", "<speech>", "<Image>", "<IMAGE>"])
@pytest.mark.parametrize(
    "form",
    ["What happens in {}?", "Describe the clip {}", "Look at {} and tell me why.", "Is {} loud?"],
)
def test_within_a_sentence_it_is_refused_unless_the_row_speaks_of_html(tag: str, form: str) -> None:
    asked = form.format(tag)
    assert codes(row(asked)) & {"foreign-tag", "image-count"}
    assert codes(row(asked, "That is up to the browser.")) == set()
    assert codes(row(asked, "<p>Yes</p>")) == set()
    assert codes(row(form.format(f"`{tag}`"))) == set()
    assert codes(row(form.format(f"the {tag} tag"))) == set()


@pytest.mark.parametrize(
    "tag",
    [
        "<Image>",
        "[IMG]",
        "<img>",
        "[image]",
        "<picture>",
        "<pic>",
        "[image1]",
        "<video>",
        "[audio]",
    ],
)
@pytest.mark.parametrize("form", ["{}\nA star.", "{} A star.", "A star.\n{}", "A star. {}"])
def test_an_answer_that_begins_or_ends_with_one_is_refused(tag: str, form: str) -> None:
    told = form.format(tag)
    assert codes(row(f"{IMAGE}\nWhat?", told, image="a.jpg")) == {"foreign-tag"}
    assert codes(row("What?", told)) == {"foreign-tag"}
    assert codes(row("Which tag is it?", told)) == set()
    assert codes(row("What?", f"```\n{told}\n```")) == set()
    assert codes(row("What?", f"It says {tag} there")) <= (
        {"foreign-tag"} if tag == "<video>" else set()
    )


@pytest.mark.parametrize(
    "tag",
    ['<img src="a.jpg">', "<img alt='x' src='sub/a.jpg' />", "![](a.jpg)", "![a star](sub/a.jpg)"],
)
@pytest.mark.parametrize(
    "form",
    ["{}\nWhat is this?", "{}What is this?", "What is this? {}", "Describe {}", "What is in {}?"],
)
def test_a_picture_of_html_or_markdown_is_the_rows_own_or_refused(tag: str, form: str) -> None:
    asked = form.format(tag)
    examined = validate_row(row(asked, image="a.jpg"), 1)
    assert examined.faults == []
    assert examined.conversation().messages[0].text == form.format(IMAGE)
    assert codes(row(asked)) == {"foreign-tag"}
    assert codes(row(asked, image="b.jpg")) == {"foreign-tag"}
    for text in (
        f"```\n{asked}\n```",
        f"<div>\n{asked}\n</div>",
        f"# Readme\n{asked}",
        f"Mend my HTML: {asked}",
    ):
        assert codes(row(text)) == set(), text
    assert codes(row(f"{IMAGE}\n{asked}", image="a.jpg")) == set()
    assert codes(row("Show it.", tag)) == set()


def test_braces_of_a_program_are_text() -> None:
    for asked in (
        'print(f"a {image} b")',
        "`{image}`",
        "${image}",
        "x = {image: 1}",
        "\\includegraphics{image}",
        "{images}",
        "{imagine}",
    ):
        examined = validate_row(row(f"What is {asked} here?", image="a.jpg"), 1)
        assert {code for code, _ in examined.faults} == {"marker-added"}, asked


def test_several_pictures_and_their_numbers() -> None:
    two = {"images": ["a.jpg", "b.jpg"]}
    assert (
        validate_row(row("<|image_1|><|image_2|>\nSame?", **two), 1).conversation().messages[0].text
        == f"{IMAGE}{IMAGE}\nSame?"
    )
    assert validate_row(row("<image_0> or <image_1>?", **two), 1).good
    for asked in (
        "<image_2> or <image_1>?",
        "<image_1> and <image_1>?",
        "<image_2> and <image_3>?",
    ):
        assert "foreign-tag" in codes(row(asked, **two)), asked
    assert codes(row("<image_1> or <image_2>?", image="a.jpg")) == {"image-count"}


def test_pictures_that_the_text_names() -> None:
    qwen = "Picture 1: <img>a.jpg</img>\nPicture 2: <img>sub/b c.png</img>\nSame?"
    examined = validate_row(row(qwen), 1)
    assert examined.conversation().images == ("a.jpg", "sub/b c.png")
    assert (
        examined.conversation().messages[0].text == f"Picture 1: {IMAGE}\nPicture 2: {IMAGE}\nSame?"
    )
    assert validate_row(row("<img>a.jpg</img>What?", image="a.jpg"), 1).conversation().images == (
        "a.jpg",
    )
    assert codes(row("<img>a.jpg</img>What?", image="b.jpg")) == {"ambiguous-keys"}
    assert codes(row("<img>https://example.com/a.jpg</img>What?")) == {"remote-url"}
    assert codes(row("What?", "<img>a.jpg</img>")) == {"foreign-tag"}


#: HTML, code and brackets as people write them: text, in questions and answers, with and without a
#: picture.
TEXT = (
    "How do I centre a <div> in CSS?",
    "What does the <img> tag do?",
    "Use <img src='a.jpg'> or <picture><source></picture>.",
    "`<video>` or `<audio>`?",
    "<video controls>\n<source src='a.mp4'>\n</video>",
    "Why is the <video> element black?",
    "```html\n<img>\n<video>\n```",
    "x[image] = y[img]",
    "vector<Image> v; if (a < image && b > c) {}",
    "List<Image> images = new List<>();",
    "See [1] and [image credits].",
    "I <3 boxes <= 4",
    "<p>A paragraph</p><ref>Smith 2001</ref>",
    "<box>some words</box>",
    "a <= b <= c",
    "The box is [0.1, 0.2, 0.3, 0.4].",
    "<html><body></body></html>",
    "The <audio> tag and the <video> tag",
    "[Image 1: a cat]",
    "Text in [brackets] and <angles>",
    '"<image_placeholder>" is what they write',
    "<location>Paris</location>",
    "<references>",
    "[section 2]",
    "<sound-effect>",
    "</image",
    "<important>",
    "[video game]",
    "<image-set> in CSS",
    "<ref>Smith</ref> <b>bold</b>",
    "<ref>Smith</ref><ref>Jones</ref>",
    "- <p>\n- <b>\n<video>\n<audio>\n<img>",
    "Tags:\n<video>\n<source>",
    "List<Video> videos; Map<String, Audio> m;",
    "vector<video> v",
    "See [image 1] and [Image 2].",
    "a[img1]",
    "{picture: 1}",
    "f'{image}'",
    "[image](a.jpg)",
    "[![build](a.svg)](b)",
    "The <video> element",
    "<audio controls>\n</audio>",
    "Is <video> a tag?",
    "(`<video>`)",
)


@pytest.mark.parametrize("text", TEXT)
def test_html_and_code_are_text(text: str) -> None:
    shown = {"image": "a.jpg"}
    for asked, told, more in (
        (text, "Yes.", {}),
        ("Well?", text, {}),
        (f"{IMAGE}\n{text}", "Yes.", shown),
        (f"{IMAGE}\nWell?", text, shown),
    ):
        examined = validate_row(row(asked, told, **more), 1)
        assert examined.faults == [], (asked, told)
        assert [message.text for message in examined.conversation().messages] == [asked, told]


@pytest.mark.parametrize(
    "tag", ["<img>", "<video>", "[IMG]", "`<img>`", "{image}", "![](a.jpg)", "<bbox>"]
)
def test_a_text_is_looked_through_once_however_many_tags_it_has(
    tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the looks at a whole text: they are as many for 1,900 tags as for 20."""
    looks: Counter[str] = Counter()
    for name, was in list(vars(tags.TaggedText).items()):
        if isinstance(was, cached_property):

            def counted(self: Any, name: str = name, of: Any = was.func) -> Any:
                looks[name] += 1
                return of(self)

            monkeypatch.setattr(tags.TaggedText, name, counted_property(counted, name))

    def total(times: int) -> int:
        looks.clear()
        validate_row(
            row(" " * 1_000 + f"word {tag} " * times, f"word {tag} " * times, image="a.jpg"), 1
        )
        return looks.total()

    assert 0 < total(20) == total(1_900)


@pytest.mark.parametrize(
    "text",
    [
        " " * 180_000 + "<img>" * 1_990, ("x" * 90 + "<img>\n") * 1_990,
        "<img>" + "x " * 90_000 + "<video>" * 1_900, "```<img>" * 1_990, "![](a.jpg)" * 1_990,
        "![" * 90_000, "<img src=" * 20_000, "<img " + "src= " * 30_000 + ">", "{image}" * 1_990,
        "<im_patch>" * 1_990, "<img " + "src=" * 1_000 + "a" * 40_000,
        ("![](" + "a" * 1_990 + " b" * 50) * 90, "<img>" * 40_000, "<img> " * 500 + "x",
        "<img>" + " " * 50_000, "<bbox>" * 20_000 + "</bbox>", "[img]" * 30_000,
        "<video>\n" * 1_900, "`<img>" * 1_900, "```\n<img>\n" * 1_500, "<ref>" * 30_000,
        "<im_start>" * 20_000, "<" * 100_000, "[" * 100_000 + "<img>", "<image_1>" * 1_900,
        "<image>" * 3_000,
    ],
    ids=range(26),
)  # fmt: skip
def test_no_text_of_tags_takes_long(text: str) -> None:
    for asked, told in ((text, "Yes."), ("Well?", text), (f"{IMAGE}\n{text}", "Yes.")):
        assert validate_row(row(asked, told, image="a.jpg"), 1).number == 1
