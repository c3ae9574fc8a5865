"""What a layout brief may not say: one line with file, line and field, when prompts are loaded."""

from __future__ import annotations

import pytest

from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.scenes import SceneColors, SceneDetector
from blip3o_rl.rewards.layout.reward import LayoutReward
from blip3o_rl.rewards.observation import Observer
from blip3o_rl.scoring.rubric import Rubric

REWARD = LayoutReward(Observer(SceneDetector(), SceneColors(), object()))
TITLE = {"id": "title", "class": "text", "text": "HE", "region": "top left", "rank": 1, "color": "black"}
LOGO = {"id": "logo", "class": "circle", "color": "red", "region": "bottom right", "size": [0.2, 0.45]}
BAND = {"id": "band", "class": "panel", "color": "yellow", "box": [0, 0.78, 1, 1]}
GOOD = {
    "elements": [TITLE, LOGO, BAND], "under": [["title", "band"]], "order": ["title", "logo"],
    "align": [["title", "logo", "left"]], "margin": 0.03, "extra": "forbid",
}  # fmt: skip


def fault(layout):
    return REWARD.check_metadata({"prompt": "a", "layout": layout})


def title(**change):
    return {**GOOD, "elements": [{**TITLE, **change}, LOGO, BAND]}


def logo(**change):
    return {**GOOD, "elements": [TITLE, {**LOGO, **change}, BAND]}


def band(**change):
    return {**GOOD, "elements": [TITLE, LOGO, {**BAND, **change}]}


def without(element, *fields):
    return {key: value for key, value in element.items() if key not in fields}


def test_the_example_is_a_brief():
    assert fault(GOOD) == ""
    assert fault({**GOOD, "background": "gray", "contrast": True, "palette": True}) == ""
    assert REWARD.check_metadata(LayoutReward.example_metadata) == ""
    assert fault(logo(region="right", size=[0.2, 1.0])) == "" == fault(title(region=None)) == fault(band(color=None))


BAD = [
    ("a string", "layout: is no JSON object"),
    ([TITLE], "layout: is no JSON object"),
    (None, "layout: is no JSON object"),
    ({}, "layout.elements: is missing"),
    ({"elements": []}, "layout.elements"),
    ({"elements": "title"}, "layout.elements=title"),
    ({"elements": ["title"]}, "layout.elements.0"),
    ({"elements": [[]]}, "layout.elements.0"),
    ({**GOOD, "element": []}, "layout.element: there is no such key; did you mean 'elements'?"),
    ({**GOOD, "margins": 0.1}, "layout.margins: there is no such key; did you mean 'margin'?"),
    ({**GOOD, "margin": 0}, "layout.margin=0"),
    ({**GOOD, "margin": 0.5}, "layout.margin=0.5"),
    ({**GOOD, "margin": "0.03"}, "layout.margin=0.03"),
    ({**GOOD, "margin": None}, "layout.margin=null"),
    ({**GOOD, "margin": True}, "layout.margin=True"),
    ({**GOOD, "extra": "ignore"}, "layout.extra=ignore"),
    ({**GOOD, "contrast": "yes"}, "layout.contrast=yes"),
    ({**GOOD, "palette": 1}, "layout.palette=1"),
    ({**GOOD, "background": "grey"}, "layout.background: 'grey' is no color"),
    ({**GOOD, "background": "red"}, "layout: background: is red, and so is an element"),
    ({**GOOD, "background": "#dd2929"}, "too close to"),
    ({**GOOD, "under": [["title", "logo"]]}, "layout: under.0: 'logo' is no panel"),
    ({**GOOD, "under": [["titel", "band"]]}, "layout: under.0: there is no element 'titel'"),
    ({**GOOD, "under": [["band", "band"]]}, "layout: under.0: names an element twice"),
    ({**GOOD, "under": [["title"]]}, "layout.under.0"),
    ({**GOOD, "under": ["title"]}, "layout.under.0"),
    ({**GOOD, "under": "title"}, "layout.under.0"),
    ({**GOOD, "under": 3}, "layout.under=3"),
    ({**GOOD, "order": ["title", "titel"]}, "layout: order: there is no element 'titel'"),
    ({**GOOD, "order": ["title", "title"]}, "layout: order: names an element twice"),
    ({**GOOD, "order": "title"}, "layout.order=title"),
    ({**GOOD, "order": [1]}, "layout.order.0=1"),
    ({**GOOD, "align": [["title", "logo", "leftt"]]}, "layout.align.0.2=leftt"),
    ({**GOOD, "align": [["title", "lgo", "left"]]}, "layout: align.0: there is no element 'lgo'"),
    ({**GOOD, "align": [["title", "title", "left"]]}, "layout: align.0: names an element twice"),
    ({**GOOD, "align": [["title", "logo"]]}, "layout.align.0"),
    ({"elements": [TITLE, TITLE]}, "layout: elements.1.id: 'title' is there twice"),
    ({"elements": [TITLE, {**TITLE, "id": "b"}]}, "layout: elements.1: 'b' and 'title' say the same"),
    ({"elements": [TITLE, {**TITLE, "id": "b", "text": "h e"}]}, "layout: elements.1: 'b' and 'title' say the same"),
    ({"elements": [LOGO, {**LOGO, "id": "b"}]}, "layout: elements.1: 'b' and 'logo' are of one class and color"),
    ({"elements": [without(LOGO, "color"), without({**LOGO, "id": "b"}, "color")]}, "cannot be told apart"),
    ({"elements": [{**TITLE, "id": str(n), "text": "ABCDEFG"[n]} for n in range(7)]}, "elements: there are over 6"),
    ({"elements": [LOGO, {**LOGO, "id": "b", "class": "square", "color": "#dd2929"}]}, "elements.1.color: #dd2929"),
    (title(text=" "), "layout.elements.0: text of 'title' is blank"),
    (title(text=""), "layout.elements.0: text of 'title' is blank"),
    (title(text=None), "layout.elements.0: text of 'title' belongs to class text"),
    (title(text=7), "layout.elements.0.text=7"),
    (title(text=["HE"]), "layout.elements.0.text="),
    (title(rank=0), "layout.elements.0.rank=0"),
    (title(rank=1.5), "layout.elements.0.rank=1.5"),
    (title(rank="1"), "layout.elements.0.rank=1"),
    (title(region="upper left"), "layout.elements.0.region: 'upper left' is no region"),
    (title(region="left top"), "layout.elements.0.region: 'left top' is no region"),
    (title(region="top top"), "layout.elements.0.region"),
    (title(region="top middle"), "layout.elements.0.region"),
    (title(region=""), "layout.elements.0.region"),
    (title(region="centre"), "layout.elements.0.region: 'centre' is no region"),
    (title(region=3), "layout.elements.0.region=3"),
    (title(region=["top", "left"]), "layout.elements.0.region="),
    (title(colour="red"), "layout.elements.0.colour: there is no such key; did you mean 'color'?"),
    (title(txt="HE"), "layout.elements.0.txt: there is no such key; did you mean 'text'?"),
    (title(id=3), "layout.elements.0.id=3"),
    ({"elements": [without(TITLE, "id")]}, "layout.elements.0.id: is missing"),
    ({"elements": [without(TITLE, "class")]}, "layout.elements.0.class: is missing"),
    ({"elements": [without(TITLE, "text")]}, "layout.elements.0: text of 'title' belongs to class text"),
    ({"elements": [{**TITLE, "kind": "text"}]}, "layout.elements.0.kind: there is no such key"),
    (logo(text="HE"), "layout.elements.1: text of 'logo' belongs to class text, and only there"),
    (logo(rank=1), "layout.elements.1: rank of 'logo' is for texts"),
    (logo(**{"class": "cirle"}), "layout.elements.1.class: 'cirle' is not known; did you mean 'circle'?"),
    (logo(**{"class": None}), "layout.elements.1.class=null"),
    (logo(**{"class": ["circle"]}), "layout.elements.1.class="),
    (logo(color="rde"), "layout.elements.1.color: 'rde' is no color"),
    (logo(color="purple"), "layout.elements.1.color: 'purple' is not seen"),
    (logo(color="#12345"), "layout.elements.1.color"),
    (logo(color="#12345g"), "layout.elements.1.color"),
    (logo(color="rgb(1,2,3)"), "layout.elements.1.color"),
    (logo(color=[220, 40, 40]), "layout.elements.1.color="),
    (logo(color="#fff"), "layout.elements.1.color"),
    (logo(box=[0, 0, 1, 1]), "layout.elements.1: region and box of 'logo' both say where"),
    (logo(size=[0.7, 0.9]), "layout.elements.1: size of 'logo': 0.7 has no room there, at most 0.67"),
    (logo(size=[0.4, 0.2]), "layout.elements.1: size of 'logo' is no range"),
    (logo(size=[0, 0.2]), "layout.elements.1: size of 'logo' is no range"),
    (logo(size=[0.2]), "layout.elements.1.size"),
    (logo(size=[0.2, 0.3, 0.4]), "layout.elements.1.size"),
    (logo(size=[0.2, 1.5]), "layout.elements.1.size.1=1.5"),
    (logo(size=0.3), "layout.elements.1.size=0.3"),
    (logo(size=["0.2", 0.3]), "layout.elements.1.size.0=0.2"),
    (band(box=[0, 0.78, 1, 1.2]), "layout.elements.2.box.3=1.2"),
    (band(box=[-0.1, 0.78, 1, 1]), "layout.elements.2.box.0=-0.1"),
    (band(box=[0, 0.9, 1, 0.7]), "layout.elements.2.box: is empty"),
    (band(box=[0.5, 0.7, 0.5, 1]), "layout.elements.2.box: is empty"),
    (band(box=[0, 0.78, 1]), "layout.elements.2.box"),
    (band(box={"left": 0}), "layout.elements.2.box="),
    (band(box=[0, 0.78, "1", 1]), "layout.elements.2.box.2=1"),
    (band(box=[0, 0.78, float("nan"), 1]), "layout.elements.2.box.2=nan"),
    (band(box=[0, 0.78, None, 1]), "layout.elements.2.box.2=null"),
    (band(size=[1.0, 1.0], box=[0, 0.5, 0.9, 1]), "layout.elements.2: size of 'band': 1.0 has no room there"),
    (band(text="HE"), "layout.elements.2: text of 'band' belongs to class text"),
    (band(rank=2), "layout.elements.2: rank of 'band' is for texts"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "message"), BAD)
def test_a_brief_that_cannot_be_judged_is_one_line_with_its_field(layout, message):
    found = fault(layout)
    assert message in found and "\n" not in found and found.startswith("layout")


def test_the_line_names_the_file(tmp_path):
    file = tmp_path / "briefs.jsonl"
    file.write_text('{"prompt": "a", "layout": {"elements": [{"id": "a", "class": "cirle"}]}}\n')
    with pytest.raises(
        UserError, match="briefs.jsonl:1: reward 'layout' cannot score this prompt: layout.elements.0.class"
    ):
        Rubric.of(REWARD).check_prompts(read_prompts(file))


def test_a_brief_without_the_asked_terms_and_text_without_a_reader_are_refused():
    line = {"prompt": "a", "layout": {"elements": [TITLE]}}
    only = LayoutReward(REWARD.observer, terms=["contrast", "under"])
    assert only.check_metadata(line).startswith("layout: asks for none of the terms contrast, under, only for text")
    blind = LayoutReward(Observer(SceneDetector(), SceneColors(), None))
    assert (
        blind.check_metadata(line)
        == "layout.elements: has a text, and the observer does not read; set observer.read: true"
    )
    assert blind.check_metadata({"prompt": "a", "layout": {"elements": [LOGO]}}) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"txt": 1}}, "weights.txt: there is no such term; did you mean 'text'?"),
        ({"weights": {"text": -1}}, "weights.text: is -1; set a number of at least 0"),
        ({"terms": ["regions"]}, "terms.regions: there is no such term; did you mean 'region'?"),
        ({"terms": []}, "terms: is empty"),
        ({"sharpness": 0}, "sharpness: is 0; set a number above 0"),
        ({"sharpness": float("nan")}, "sharpness: is nan"),
        ({"reach": 0}, "reach: is 0"),
        ({"observer": {"detektor": "scenes"}}, "observer.detektor: there is no such option; did you mean 'detector'?"),
        ({"observer": {"detector": "yolo"}}, "observer.detector: is 'yolo'"),
        ({"observer": {"min_confidence": None}}, "observer.min_confidence=null: must be a valid number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LayoutReward(**options)
