"""Judges against a real HTTP server in this process that answers in the OpenAI format, or fails to."""

import asyncio
import base64
import io
import json
import threading

import numpy as np
import pytest
from chat_endpoint import ChatEndpoint, completion
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.edit.judge import EditJudge
from blip3o_rl.rewards.preference.calibration import calibrate, drawn_cases
from blip3o_rl.rewards.preference.judge import VlmJudge
from blip3o_rl.rewards.preference.unified import UnifiedReward
from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric

IMAGES = [np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8) for seed in range(8)]
SAMPLES = [Sample(str(i), f"cat number {i}", image) for i, image in enumerate(IMAGES)]


def judge(endpoint, **options):
    return VlmJudge(**{"model": "some-model", "url": endpoint.url, "request_backoff_s": 0.0, **options})


def scored(reward, samples=SAMPLES[:1]):
    return asyncio.run(reward.score(samples))


def text_of(request):
    return request["messages"][0]["content"][1]["text"]


def image_of(request):
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_request_carries_question_and_exact_image(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    prompt = 'a {low} "cat" {prompt}'
    scored(judge(endpoint, api_key_env="JUDGE_TOKEN", max_tokens=99), [Sample("0", prompt, IMAGES[0])])
    request = endpoint.requests[0]
    assert request["model"] == "some-model"
    assert request["temperature"] == 0
    assert request["max_tokens"] == 99
    assert request["response_format"]["type"] == "json_schema"
    assert prompt in text_of(request)
    assert "from 0 (worst) to 10 (best)" in text_of(request)
    np.testing.assert_array_equal(image_of(request), IMAGES[0])
    assert endpoint.headers[0]["authorization"] == "Bearer secret"


def test_question_range_size_and_form_can_be_set(endpoint, tmp_path):
    (tmp_path / "question.txt").write_text("Is {prompt} cute? {low}-{high}", encoding="utf-8")
    reward = judge(endpoint, question_file=str(tmp_path / "question.txt"), low=1, high=9, structured=False, side=16)
    score = scored(reward)[0]
    assert text_of(endpoint.requests[0]) == "Is cat number 0 cute? 1-9"
    assert "response_format" not in endpoint.requests[0]
    assert "authorization" not in endpoint.headers[0]
    assert image_of(endpoint.requests[0]).shape == (16, 16, 3)
    assert score == Score(0.75, {"raw": 7.0}, "fine")


def test_answers_stay_with_their_images(endpoint):
    numbers = {f"cat number {i}": i for i in range(8)}

    def reply(request):
        number = next(n for words, n in numbers.items() if f"\n{words}\n" in text_of(request))
        return json.dumps({"score": number})

    endpoint.reply = reply
    assert [score.components["raw"] for score in scored(judge(endpoint), SAMPLES)] == list(range(8))


def test_no_more_requests_at_once_than_allowed(endpoint):
    together = threading.Barrier(2)

    def reply(request):
        together.wait()
        return '{"score": 1}'

    endpoint.reply = reply
    assert all(isinstance(score, Score) for score in scored(judge(endpoint, max_requests=2), SAMPLES))
    assert endpoint.busiest == 2


@pytest.mark.parametrize(
    "answer",
    [
        "7",
        "The score is 7.",
        '{"score": 7',
        '{"score": "7"}',
        '{"score": true}',
        '{"score": null}',
        '{"rating": 7}',
        "[7]",
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": 10.01}',
        '{"score": -1}',
        '{"score": 1' + "0" * 400 + "}",
        '{"score": 7} {"score": 1}',
        'Here you are:\n```json\n{"score": 7}\n```',
    ],
)
def test_an_answer_that_says_no_number_in_range_is_an_error_and_no_zero(endpoint, answer):
    endpoint.reply = lambda request: answer
    (result,) = scored(judge(endpoint))
    assert isinstance(result, RewardError)
    assert len(endpoint.requests) == 1


def test_a_fenced_answer_is_read(endpoint):
    endpoint.reply = lambda request: '```json\n{"score": 0, "reason": "two\\nlines"}\n```'
    assert scored(judge(endpoint)) == [Score(0.0, {"raw": 0.0}, "two lines")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>busy</html>", "did not send a chat completion"),
        (b'{"choices": []}', "did not send a chat completion"),
        (b'"text"', "did not send a chat completion"),
        (b"\xff\xfe", "did not send a chat completion"),
        (b"", "did not send a chat completion"),
        (completion(None), "the answer is empty"),
        (completion("  "), "the answer is empty"),
        (completion('{"score": 7}', "length"), "cut off at max_tokens"),
    ],
)
def test_a_malformed_reply_is_an_error(endpoint, body, message):
    endpoint.reply = lambda request: (200, {}, body)
    (result,) = scored(judge(endpoint))
    assert isinstance(result, RewardError)
    assert message in str(result)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(endpoint, status):
    endpoint.reply = lambda request: (status, {}, b"later") if len(endpoint.requests) < 3 else '{"score": 7}'
    assert scored(judge(endpoint, request_retries=2))[0].value == 0.7
    assert len(endpoint.requests) == 3


def test_tries_are_bounded(endpoint):
    endpoint.reply = lambda request: (500, {}, b"out of memory")
    (result,) = scored(judge(endpoint, request_retries=3))
    assert isinstance(result, RewardError)
    assert "after 4 attempts: HTTP 500: out of memory" in str(result)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_not_repeated(endpoint, status):
    endpoint.reply = lambda request: (status, {}, b"no such model")
    (result,) = scored(judge(endpoint))
    assert isinstance(result, RewardError)
    assert f"refused: HTTP {status}: no such model" in str(result)
    assert len(endpoint.requests) == 1


def test_a_redirect_is_not_followed(endpoint):
    endpoint.reply = lambda request: (307, {"Location": endpoint.url + "/elsewhere"}, b"")
    (result,) = scored(judge(endpoint))
    assert isinstance(result, RewardError)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("reply", [None, (200, {"Content-Length": "1000"}, b'{"choices": ')], ids=["silent", "stuck"])
def test_a_slow_server_runs_into_the_time_limit(endpoint, reply):
    endpoint.reply = lambda request: reply
    (result,) = scored(judge(endpoint, request_timeout_s=0.2, request_retries=1))
    assert isinstance(result, RewardError)
    assert "after 2 attempts: nothing within 0.2 s" in str(result)


def test_nobody_listening_is_an_error():
    server = ChatEndpoint()
    server.server_close()
    (result,) = scored(judge(server, request_retries=1))
    assert isinstance(result, RewardError)
    assert "after 2 attempts" in str(result)


def test_a_judge_is_asked_through_the_proxy_of_the_environment_but_not_one_on_this_machine(endpoint, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", endpoint.url.removesuffix("/v1"))
    (score,) = scored(judge(endpoint, url="http://judge.example:8000/v1"))
    assert score.value == 0.7
    assert endpoint.headers[0]["host"] == "judge.example:8000"
    monkeypatch.setenv("no_proxy", "judge.example")
    (error,) = scored(judge(endpoint, url="http://judge.example:8000/v1", request_retries=0))
    assert isinstance(error, RewardError)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (score,) = scored(judge(endpoint))
    assert score.value == 0.7


def test_the_first_pause_is_set_and_doubles(endpoint, monkeypatch):
    pauses = []

    async def note(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", note)
    endpoint.reply = lambda request: (503, {}, b"")
    scored(judge(endpoint, request_retries=4, request_backoff_s=6))
    assert pauses == [6, 12, 24, 30]


def test_the_server_s_wish_for_a_pause_counts(endpoint, monkeypatch):
    pauses = []

    async def note(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", note)
    endpoint.reply = lambda r: (429, {"Retry-After": "7"}, b"") if len(endpoint.requests) < 3 else '{"score": 7}'
    (score,) = scored(judge(endpoint, request_backoff_s=3600.0))
    assert score.value == 0.7
    assert pauses == [7, 7]


def test_one_bad_answer_fails_one_sample_of_a_rubric(endpoint):
    endpoint.reply = lambda request: "hm" if "cat number 2\n" in text_of(request) else '{"score": 7}'
    entry = {"model": "some-model", "url": endpoint.url, "request_backoff_s": 0.0, "on_error": "skip_sample"}
    rubric = build_rubric({"j": {"name": "blip3o_rl.rewards.preference.judge:VlmJudge", **entry}})
    for _ in range(2):
        scores = rubric.score(SAMPLES)
        assert [score.failed for score in scores] == [i == 2 for i in range(8)]
        assert [score.value for score in scores if not score.failed] == [0.7] * 7
        assert "the answer is not JSON: hm" in scores[2].reason


@given(st.floats(1, 5).map(lambda x: round(x, 3)))
def test_unified_reward_1_5_is_the_final_score_over_5(number):
    reward = UnifiedReward()
    for answer in (
        f"cat (object): 1\nFinal Score: {number}",
        f"**Final Score:** {number}.",
        f"Final Score: **{number}**",
    ):
        assert reward.read(answer) == Score(number / 5, {"raw": number})


@given(st.tuples(*[st.floats(1, 5).map(lambda x: round(x, 3))] * 3))
def test_unified_reward_2_0_is_the_mean_of_three_axes_on_0_to_1(axes):
    lines = zip(("Alignment", "Coherence", "Style"), axes, strict=True)
    score = UnifiedReward(version="2.0").read("\n".join(f"{axis} Score (1-5): {number}" for axis, number in lines))
    assert score.value == pytest.approx((sum(axes) / 3 - 1) / 4)
    assert 0 <= score.value <= 1
    assert (score.components["alignment"], score.components["coherence"], score.components["style"]) == axes


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("1.5", "4"),
        ("1.5", "Final Score: good"),
        ("1.5", "Final Score:"),
        ("1.5", "Final Score: 10"),
        ("1.5", "Final Score: 5.7"),
        ("1.5", "Final Score: 0"),
        ("1.5", "Final Score: -3"),
        ("1.5", "Final Score: 45"),
        ("1.5", "Final Score: 8/10"),
        ("1.5", "Final Score: nan"),
        ("1.5", "Final Score: 2\nFinal Score: 5"),
        ("2.0", "Alignment Score (1-5): 3\nCoherence Score (1-5): 3"),
        ("2.0", "Alignment Score (1-5): 3\nCoherence Score (1-5): 3\nStyle Score (1-5): 6"),
        ("2.0", "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z"),
        ("2.0", "Final Score: 4"),
    ],
)
def test_unified_reward_answers_in_another_form_are_errors(version, answer):
    with pytest.raises(RewardError):
        UnifiedReward(version=version).read(answer)


def test_unified_reward_asks_its_model_about_a_512_px_image(endpoint):
    endpoint.reply = lambda request: "Final Score: 4"
    assert scored(UnifiedReward(url=endpoint.url)) == [Score(0.8, {"raw": 4.0})]
    request = endpoint.requests[0]
    assert request["model"] == "CodeGoat24/UnifiedReward-7b-v1.5"
    assert "Text Caption: [cat number 0]" in text_of(request)
    assert "<image>" not in text_of(request)
    assert image_of(request).shape == (512, 512, 3)


def looks(request):
    """A judge with eyes: how near the image is to one of the good ones, 0 to 1."""
    image = image_of(request).astype(float)
    return max(1 - np.abs(image - case.images["good"]).mean() / 255 for case in drawn_cases(2, 64))


@pytest.mark.parametrize("kind", ["judge", "1.5", "2.0"])
def test_calibration_orders_good_bad_and_hacked(endpoint, kind):
    if kind == "judge":
        endpoint.reply = lambda request: json.dumps({"score": 10 * looks(request)})
        reward = judge(endpoint)
    else:
        axes = ("Final",) if kind == "1.5" else ("Alignment", "Coherence", "Style")
        endpoint.reply = lambda r: "\n".join(f"{axis} Score: {1 + 4 * looks(r):.5f}" for axis in axes)
        reward = UnifiedReward(version=kind, url=endpoint.url, side=None)
    results = calibrate(reward, drawn_cases(2, 64))
    assert [failure for result in results for failure in result.failures] == []
    assert all(result.values["good"] == pytest.approx(1.0) for result in results)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VlmJudge(), "model: is missing"),
        (lambda: VlmJudge(model="m", url="127.0.0.1:8000"), "url: is '127.0.0.1:8000'"),
        (lambda: VlmJudge(model="m", url="file:///etc/passwd"), "url: is"),
        (lambda: VlmJudge(model="m", url="http://user:word@host/v1"), "url: has a user name or password"),
        (lambda: VlmJudge(model="m", api_key_env="NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is not set"),
        (lambda: VlmJudge(model="m", low=5, high=5), "low: is 5, high is 5"),
        (lambda: VlmJudge(model="m", request_timeout_s=0), "request_timeout_s=0: .*greater than 0"),
        (lambda: VlmJudge(model="m", request_retries=-1), "request_retries=-1: .*greater than or equal"),
        (lambda: VlmJudge(model="m", max_requests=0), "max_requests=0: "),
        (lambda: VlmJudge(model="m", max_request=1), "max_request: there is no such key; did you mean 'max_requests'"),
        (lambda: VlmJudge(model="m", question_file="/no/such/file"), "question_file: /no/such/file: there is no"),
        (lambda: VlmJudge(model="m", question_file=__file__.replace("judge", "clip")), "has no {prompt} in it"),
        (lambda: UnifiedReward(version="3"), "version=3: .* '1.5' or '2.0'"),
    ],
)
def test_wrong_settings_are_named(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_rubric_of_one_judge_checks_itself(endpoint):
    Rubric.of(judge(endpoint)).self_check()
    endpoint.reply = lambda request: (404, {}, b"no such model")
    with pytest.raises(UserError, match="judge.*refused: HTTP 404: no such model"):
        Rubric.of(judge(endpoint)).self_check()


def edit_judge(endpoint, **options):
    return EditJudge(**{"model": "some-model", "url": endpoint.url, "request_backoff_s": 0.0, **options})


def marks(compliance, preservation, quality):
    numbers = {"compliance": compliance, "preservation": preservation, "quality": quality}
    return json.dumps({"reason": "x", **numbers})


def edit_sample(number, output, reference):
    return Sample(str(number), "remove the cat", output, references=(reference,))


def test_an_edits_judge_sees_the_reference_first_and_the_instruction(endpoint):
    endpoint.reply = lambda request: marks(5, 5, 5)
    (score,) = scored(edit_judge(endpoint, gain=False), [edit_sample(0, IMAGES[1], IMAGES[0])])
    *images, question = endpoint.requests[0]["messages"][0]["content"]
    urls = [base64.b64decode(image["image_url"]["url"].partition(",")[2]) for image in images]
    assert [np.array_equal(np.asarray(Image.open(io.BytesIO(u))), IMAGES[n]) for n, u in enumerate(urls)] == [True] * 2
    assert (
        "<instruction>\nremove the cat\n</instruction>" in question["text"]
        and "from 1 (worst) to 5" in question["text"]
    )
    assert score.value == 1 and score.components == {"compliance": 5, "preservation": 5, "quality": 5, "raw": 5}


@pytest.mark.parametrize(
    ("given", "raw"), [((1, 5, 5), 1.0), ((3, 5, 2), 8 / 3), ((5, 4, 3), 4.0), ((2, 2, 2), 2.0), ((4, 5, 5), 4.0)]
)
def test_no_score_of_an_edit_exceeds_its_compliance(given, raw):
    score = EditJudge(model="m").read(marks(*given))
    assert score.components["raw"] == pytest.approx(raw) and score.value == pytest.approx((raw - 1) / 4)


@pytest.mark.parametrize("answer", [marks(0, 3, 3), marks(3, 6, 3), marks(True, 3, 3), '{"score": 3}', "3"])
def test_an_edits_verdict_that_is_none_is_an_error(answer):
    with pytest.raises(RewardError):
        EditJudge(model="m").read(answer)


def test_a_copy_gains_nothing_over_the_reference_whatever_the_judge_pays_it(endpoint):
    def reply(request):
        first, second = (part["image_url"]["url"] for part in request["messages"][0]["content"][:2])
        return marks(3, 5, 5) if first == second else marks(4, 5, 5)

    endpoint.reply = reply
    rewarded = edit_judge(endpoint)
    batch = [edit_sample(0, IMAGES[0], IMAGES[0]), edit_sample(1, IMAGES[1], IMAGES[0])]
    assert [score.value for score in scored(rewarded, batch)] == pytest.approx([0.0, 0.5])
    assert len(endpoint.requests) == 3  # the reference's own verdict is asked for once
    scored(rewarded, [edit_sample(2, IMAGES[2], IMAGES[0])])
    assert len(endpoint.requests) == 4


def test_an_edit_without_reference_or_without_room_for_a_gain_is_an_error(endpoint):
    endpoint.reply = lambda request: marks(5, 5, 5)
    batch = [Sample("0", "x", IMAGES[0]), edit_sample(1, IMAGES[1], IMAGES[0])]
    none, full = scored(edit_judge(endpoint), batch)
    assert "has no reference image" in str(none) and "full marks" in str(full)
