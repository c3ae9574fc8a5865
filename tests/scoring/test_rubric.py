"""A failed reward must be loud and must not touch its neighbors; a working one must add up."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time

import numpy as np
import pytest
from editing import edit_row, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.config.reward import RewardEntry
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Found, RewardError, Sample, Score, as_score
from blip3o_rl.scoring.rubric import Rubric, RubricEntry


class Made:
    """A reward out of a function on samples."""

    required_metadata: tuple[str, ...] = ()

    def __init__(self, function, name: str = "made"):
        self.name = name
        self.function = function
        self.calls = 0

    def score(self, samples):
        self.calls += 1
        return self.function(samples)


def samples(n: int = 3) -> list[Sample]:
    return [Sample(f"s{i}", f"prompt {i}", np.full((8, 8, 3), i, np.uint8), {"i": i}) for i in range(n)]


def entry(function, name: str = "made", **options) -> RubricEntry:
    return RubricEntry(name, Made(function, name), RewardEntry(**options))


def ones(batch):
    return [Score(1.0) for _ in batch]


def explode(batch):
    raise ValueError("no such thing")


def test_weighted_sum_and_components():
    def index(batch):
        seen = (Found(f"cup {len(batch)}", (0.0, 0.1, 0.5, 0.6)),)
        return [Score(s.metadata["i"], {"half": s.metadata["i"] / 2}, "seen", seen) for s in batch]

    rubric = Rubric([entry(index, "a", weight=2.0), entry(lambda b: [0.5] * len(b), "b", weight=-1.0)])
    results = rubric.score(samples())
    assert [r.value for r in results] == [-0.5, 1.5, 3.5]
    assert results[2].components == {"a": 2.0, "a/half": 1.0, "b": 0.5}
    assert results[2].reason == "a: seen" and not results[2].failed
    assert [item.label for item in results[2].found] == ["cup 3"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=4))
def test_sum_is_linear_in_weights(pairs):
    rubric = Rubric([entry(lambda b, v=v: [v] * len(b), f"r{i}", weight=w) for i, (w, v) in enumerate(pairs)])
    assert rubric.score(samples(1))[0].value == pytest.approx(sum(w * v for w, v in pairs))


def level(batch):
    return [float(s.metadata["i"]) for s in batch]


def test_a_gate_lets_a_reward_count_only_where_the_other_is_good_enough():
    looks = entry(lambda b: [Score(10.0 + s.metadata["i"]) for s in b], "looks", weight=0.5, only_if={"right": 2.0})
    results = Rubric([looks, entry(level, "right", weight=2.0)]).score(samples(4))
    assert [r.values for r in results] == [(0.0, 0.0), (0.0, 1.0), (12.0, 2.0), (13.0, 3.0)]
    assert [r.value for r in results] == [0.0, 2.0, 10.0, 12.5]
    assert looks.reward.calls == 1
    assert [r.components.get("looks") for r in results] == [None, None, 12.0, 13.0]
    assert [r.components["looks/open"] for r in results] == [0.0, 0.0, 1.0, 1.0]


def test_behind_a_closed_gate_is_the_value_of_otherwise_and_the_reward_is_not_asked():
    never = entry(explode, "judge", weight=3.0, only_if={"right": 9.0}, otherwise=-2.0)
    results = Rubric([entry(level, "right", weight=0.0), never]).score(samples(2))
    assert [r.value for r in results] == [-6.0, -6.0] and never.reward.calls == 0
    assert not any(r.failed for r in results)


def test_gates_of_gates():
    chain = [
        entry(ones, "c", only_if={"b": 0.5}),
        entry(lambda b: [0.0 if s.id == "s2" else 1.0 for s in b], "b", only_if={"a": 1.0}, otherwise=1.0),
        entry(level, "a"),
    ]
    results = Rubric(chain).score(samples(4))
    assert [r.values for r in results] == [(0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 2.0), (1.0, 1.0, 3.0)]


def test_a_gate_that_failed_is_closed_and_the_sample_fails():
    late = entry(ones, "late", only_if={"made": 0.0})
    results = Rubric([entry(explode, on_error="skip_sample"), late]).score(samples(2))
    assert all(r.failed and math.isnan(r.value) and r.values == () for r in results) and late.reward.calls == 0


def tagged(*tags: str) -> list[PromptRow]:
    return [PromptRow("x", {"prompt": "x", "tag": tag}, f"p.jsonl:{line}") for line, tag in enumerate(tags, 1)]


def test_a_reward_of_other_prompts_is_not_asked_and_adds_nothing():
    seen = []
    letters = entry(lambda b: [seen.append(s.id) or 0.5 for s in b], "letters", weight=2.0, only_for=["text", "sign"])
    rubric = Rubric([letters, entry(level, "objects", only_for=["scene"]), entry(ones, "looks")])
    tags = ["text", "scene", "sign", ""]
    results = rubric.score(
        [dataclasses.replace(s, metadata={"i": 4, "tag": t}) for s, t in zip(samples(4), tags, strict=True)]
    )
    assert seen == ["s0", "s2"]
    assert [r.values for r in results] == [(0.5, 0.0, 1.0), (0.0, 4.0, 1.0), (0.5, 0.0, 1.0), (0.0, 0.0, 1.0)]
    assert [r.value for r in results] == [2.0, 5.0, 2.0, 1.0]
    assert ["letters" in r.components for r in results] == [True, False, True, False]


def test_prompts_are_checked_for_their_own_rewards():
    objects = entry(ones, "objects", only_for=["scene"])
    objects.reward.required_metadata = ("include",)
    rubric = Rubric([objects, entry(ones, "letters", only_for=["text"]), entry(ones, "looks", held_out=True)])
    rubric.check_prompts(tagged("text"))
    with pytest.raises(
        UserError, match=r"p\.jsonl:2: field 'include' is missing, .*reward\.rewards\.objects\.only_for"
    ):
        rubric.check_prompts(tagged("text", "scene"))
    with pytest.raises(
        UserError, match=r"p\.jsonl:2: no reward is for tag 'txt'; add the tag to reward\.rewards\.objects"
    ):
        rubric.check_prompts(tagged("text", "txt"))
    with pytest.raises(UserError, match=r"letters\.only_for=\[text\]: no prompt has such a tag; there are 'scene'"):
        rubric.check_tags(tagged("scene", "scene"))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            [entry(ones, "a", only_if={"geneval": 1.0}), entry(ones, "genevl")],
            ["a.only_if.geneval", "did you mean 'genevl'"],
        ),
        ([entry(ones, "a", only_if={"b": 1.0})], ["a.only_if.b", "this run has no other"]),
        ([entry(ones, "a", only_if={"a": 1.0})], ["a.only_if.a", "its own gate"]),
        ([entry(ones, "a", only_if={"b": 1.0}), entry(ones, "b", held_out=True)], ["a.only_if.b", "held out"]),
        ([entry(ones, n, only_if={m: 1.0}) for n, m in ("ab", "bc", "ca")], [".only_if", "circle", "a", "b", "c"]),
        ([entry(ones, "a"), entry(ones, "a")], ["rewards.a", "two rewards of this name"]),
        ([entry(ones, "a", held_out=True)], ["nothing to train on"]),
    ],
)
def test_rubrics_that_cannot_work(entries, words):
    with pytest.raises(UserError) as caught:
        Rubric(entries)
    assert str(caught.value).startswith("reward.rewards") and "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_held_out_rewards_are_logged_and_change_nothing():
    def flaky(batch):
        return [math.nan if s.id == "s1" else Score(100.0, {"x": 1.0}, "nice") for s in batch]

    held = entry(flaky, "taste", held_out=True, on_error="skip_sample")
    plain = Rubric([entry(level, "a")]).score(samples())
    rubric = Rubric([held, entry(level, "a")])
    results = rubric.score(samples())
    assert [(r.value, r.values, r.failed) for r in results] == [(r.value, r.values, r.failed) for r in plain]
    assert rubric.weights == {"a": 1.0}
    assert results[0].components == {
        "held_out/taste": 100.0,
        "held_out/taste/x": 1.0,
        "held_out/taste/failed": 0.0,
        "a": 0.0,
    }
    assert results[1].components == {"held_out/taste/failed": 1.0, "a": 1.0}
    assert "returned nan" in results[1].reason


def test_each_reward_is_logged_by_the_prompts_tag():
    tagged = [
        Sample(s.id, s.prompt, s.image, {**s.metadata, "tag": tag})
        for s, tag in zip(samples(), ("counting", "position", "counting"), strict=True)
    ]
    results = Rubric([entry(level, "a"), entry(ones, "b", held_out=True)]).score(tagged)
    assert [r.components["a/tag_counting"] for r in results[::2]] == [0.0, 2.0]
    assert results[1].components["a/tag_position"] == 1.0 and "a/tag_counting" not in results[1].components
    assert results[1].components["held_out/b/tag_position"] == 1.0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.booleans()), min_size=1, max_size=5))
def test_weighted_values_add_up_to_the_value(drawn):
    entries = [
        entry(lambda b, v=v: [v] * len(b), f"r{i}", weight=w, only_if={"gate": 1.0 if is_open else 2.0})
        for i, (w, v, is_open) in enumerate(drawn)
    ]
    rubric = Rubric([entry(ones, "gate", weight=0.0), *entries])
    result = rubric.score(samples(1))[0]
    assert len(result.values) == len(rubric.weights) and result.value == pytest.approx(
        sum(w * v for w, v in zip(rubric.weights.values(), result.values, strict=True))
    )
    assert result.value == pytest.approx(sum(w * v for w, v, is_open in drawn if is_open))


def test_a_reward_may_return_an_error_in_the_place_of_a_sample():
    results = Rubric([entry(lambda b: [1.0, RewardError("too dark"), 2.0], on_error="skip_sample")]).score(samples())
    assert [r.failed for r in results] == [False, True, False]
    assert results[1].reason == "reward 'made' too dark (sample s1)" and results[2].value == 2.0


def test_a_reward_that_stops_the_run_does_not_wait_for_the_others():
    async def endless(batch):
        await asyncio.sleep(3600)

    slow = Made(ones, "slow")
    slow.score = endless
    with pytest.raises(RewardError, match="no such thing"):
        Rubric([RubricEntry("slow", slow), entry(explode, on_error="stop")]).score(samples(1))


def test_no_samples():
    assert Rubric([entry(explode)]).score([]) == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda b: [math.nan] * len(b), "nan"),
        (lambda b: [math.inf] * len(b), "inf"),
        (lambda b: [Score(1.0, {"part": math.nan})] * len(b), "component 'part'"),
        (lambda b: [1.0] * (len(b) - 1), "2 scores for 3 samples"),
        (lambda b: [1.0] * (len(b) + 1), "4 scores for 3 samples"),
        (lambda b: 1.0, "list of 3 scores"),
        (lambda b: None, "NoneType"),
        (lambda b: "0.5", "str"),
        (lambda b: ["0.5"] * len(b), "str"),
        (lambda b: [None] * len(b), "NoneType"),
        (lambda b: [{"value": 1.0}] * len(b), "without 'score'"),
        (lambda b: [np.ones(2)] * len(b), "several elements"),
        (explode, "ValueError: no such thing"),
    ],
)
def test_bad_scores_fail_loudly_and_are_never_a_number(returned, message):
    batch = samples()
    results = Rubric([entry(returned, on_error="skip_sample"), entry(ones, "fine")]).score(batch)
    for sample, result in zip(batch, results, strict=True):
        assert result.failed
        assert math.isnan(result.value)
        assert "made" not in result.components and result.components["fine"] == 1.0
        assert message in result.reason and "'made'" in result.reason and sample.id in result.reason
    with pytest.raises(RewardError, match="made"):
        Rubric([entry(returned, on_error="stop")]).score(batch)


def test_one_bad_sample_does_not_fail_the_batch():
    def picky(batch):
        if any(s.metadata["i"] == 1 for s in batch):
            raise ValueError("cannot read image 1")
        return [1.0] * len(batch)

    results = Rubric([entry(picky, on_error="skip_sample")]).score(samples())
    assert [r.failed for r in results] == [False, True, False]
    assert [r.value for r in results][::2] == [1.0, 1.0]


def test_one_nan_does_not_fail_the_batch():
    results = Rubric([entry(lambda b: [math.nan if s.id == "s1" else 1.0 for s in b])]).score(samples())
    assert [r.failed for r in results] == [False, True, False]


def test_retry_repeats_the_failed_samples_only():
    seen: list[list[str]] = []

    def flaky(batch):
        seen.append([s.id for s in batch])
        return [math.nan if s.id == "s1" and len(seen) < 3 else 1.0 for s in batch]

    results = Rubric([entry(flaky, on_error="retry", retries=2)]).score(samples())
    assert seen == [["s0", "s1", "s2"], ["s1"], ["s1"]]
    assert [r.value for r in results] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("on_error", "retries", "calls"), [("retry", None, 3), ("skip_sample", None, 1), ("retry", 4, 5)]
)
def test_number_of_attempts(on_error, retries, calls):
    one = entry(explode, on_error=on_error, retries=retries)
    assert Rubric([one]).score(samples(1))[0].failed
    assert one.reward.calls == calls


def test_a_reward_that_hangs_times_out_and_the_others_go_on():
    release, finished = threading.Event(), threading.Event()

    def hangs(batch):
        release.wait(60)  # if there were no time limit, the samples would be scored after a minute
        finished.set()
        return ones(batch)

    slow = entry(hangs, on_error="skip_sample", timeout_s=0.2)
    results = Rubric([slow, entry(ones, "fine")]).score(samples(2))
    assert not finished.is_set()
    release.set()
    assert all(r.failed and "0.2 s" in r.reason and r.components == {"fine": 1.0} for r in results)


def test_a_timeout_error_of_the_rewards_own_is_reported_as_such():
    def unreachable(batch):
        raise TimeoutError("judge did not answer")

    result = Rubric([entry(unreachable, on_error="skip_sample")]).score(samples(1))[0]
    assert "raised TimeoutError: judge did not answer" in result.reason


@pytest.mark.parametrize("raised", [StopIteration, SystemExit])
def test_rewards_cannot_end_the_process(raised):
    def end(batch):
        raise raised("1")

    result = Rubric([entry(end, on_error="skip_sample")]).score(samples(1))[0]
    assert result.failed and raised.__name__ in result.reason


def test_the_event_loop_is_free_while_a_synchronous_reward_works():
    begun, release = threading.Event(), threading.Event()

    def waits_for_the_loop(batch):
        begun.set()
        return [float(release.wait(60)) for _ in batch]

    async def run():
        task = asyncio.create_task(Rubric([entry(waits_for_the_loop)]).score_async(samples(1)))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        release.set()
        return await task

    assert asyncio.run(run())[0].value == 1


class Judge:
    """An asynchronous reward that counts how many calls are under way."""

    name = "judge"
    required_metadata: tuple[str, ...] = ()

    def __init__(self):
        self.now = self.most = 0

    async def score(self, batch):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        return [1.0] * len(batch)


@pytest.mark.parametrize(("concurrency", "most"), [(None, 8), (3, 3)])
def test_asynchronous_rewards_run_concurrently_up_to_the_limit(concurrency, most):
    judge = Judge()
    rubric = Rubric([RubricEntry("judge", judge, RewardEntry(concurrency=concurrency))])

    async def run():
        return await asyncio.gather(*(rubric.score_async([sample]) for sample in samples(8)))

    assert all(result[0].value == 1 for result in asyncio.run(run()))
    assert judge.most == most


def test_synchronous_rewards_run_one_at_a_time_by_default():
    running, most = 0, 0

    def work(batch):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return ones(batch)

    rubric = Rubric([entry(work)])

    async def run():
        await asyncio.gather(*(rubric.score_async([sample]) for sample in samples(6)))

    asyncio.run(run())
    assert most == 1


def test_waiting_for_a_turn_does_not_count_as_time(clock):
    def works(batch):
        clock.now += 0.9
        return ones(batch)

    rubric = Rubric([entry(works, timeout_s=1.0, on_error="skip_sample")])

    async def run():
        return await asyncio.gather(*(rubric.score_async([sample]) for sample in samples(8)))

    assert not any(result[0].failed for result in clock.run_until_complete(run()))


def test_score_works_inside_a_running_loop_and_passes_errors_on():
    async def run(rubric):
        return rubric.score(samples(1))

    assert asyncio.run(run(Rubric([entry(ones)])))[0].value == 1
    with pytest.raises(RewardError):
        asyncio.run(run(Rubric([entry(explode, on_error="stop")])))


def test_self_check_finds_broken_rewards_before_the_run():
    Rubric([entry(ones)]).self_check()
    for broken in (explode, lambda b: [math.nan] * len(b), lambda b: [1.0]):
        with pytest.raises(UserError, match="reward 'made'.*blank") as caught:
            Rubric([entry(ones, "fine"), entry(broken)]).self_check()
        assert "\n" not in str(caught.value)


def test_self_check_tries_a_real_line_before_the_rewards_example():
    def reads_a_number(batch):
        return [sample.metadata["target"] / 2 for sample in batch]

    with pytest.raises(UserError, match="raised KeyError"):
        Rubric([entry(reads_a_number)]).self_check()
    assert Rubric([entry(reads_a_number)]).self_check([PromptRow("p", {"target": 3}, "f:1")]) == []


def test_self_check_tries_an_edit_and_a_text_to_image_line(tmp_path):
    seen = []

    def looks(batch):
        seen.extend(sample.references for sample in batch)
        return [sample.references[0].mean() if sample.metadata.get("references") else 1.0 for sample in batch]

    rows = [PromptRow("p", {}, "f:1"), PromptRow("p", {}, "f:2"), *(edit_row(tmp_path, "x", n) for n in (1, 2))]
    assert Rubric([entry(looks)]).self_check(rows) == []
    assert sorted(len(references) for references in seen) == [0, 0, 1, 1]
    assert all(np.array_equal(references[0], photo(1)) for references in seen if references)
    with pytest.raises(UserError, match="raised IndexError"):
        Rubric([entry(lambda batch: [sample.references[0].mean() for sample in batch])]).self_check(rows)


def test_a_reward_that_skips_samples_may_raise_on_a_blank_image_but_not_give_nonsense():
    (remark,) = Rubric([entry(explode, on_error="skip_sample")]).self_check([PromptRow("p", {}, "f:1")])
    assert "reward 'made' raised" in remark and "\n" not in remark
    with pytest.raises(UserError, match="nan"):
        Rubric([entry(lambda batch: [math.nan] * len(batch), on_error="skip_sample")]).self_check()


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(0.25), np.array([2.0]), np.bool_(True), {"score": 1.0}])
def test_numbers_of_all_kinds_are_scores(value):
    assert isinstance(as_score(value).value, float)


def test_verl_mapping_keeps_numbers_as_components():
    score = as_score({"score": 0.5, "accuracy": 1, "text": "abc", "reason": "because"})
    assert (score.value, score.components, score.reason) == (0.5, {"accuracy": 1.0}, "because")


def test_a_call_that_was_given_up_ends_before_the_next_one_begins():
    """A synchronous reward need not be thread-safe."""
    at_once, most, calls = 0, 0, 0

    def slow(batch):
        nonlocal at_once, most, calls
        at_once, calls = at_once + 1, calls + 1
        most = max(most, at_once)
        time.sleep(0.3)
        at_once -= 1
        return ones(batch)

    result = Rubric([entry(slow, on_error="retry", retries=3, timeout_s=0.2)]).score(samples(1))[0]
    assert most == 1 and calls >= 2
    assert result.failed and "0.2 s" in result.reason
