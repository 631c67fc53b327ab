"""The nouns: what a question, an answer, a judgment and a score are.

Records are frozen and hold no behaviour. ``key`` fields are content keys (:func:`evals.keys.content_key`):
equal keys mean that the same thing was asked of the same model in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPTS = "prompts"
"""The benchmark under whose name the answers lie that were sampled to train on; nobody scores it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn; ``temperature`` 0 is greedy, ``max_tokens`` bounds the reply, ``seed`` is the run's."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """One item of a benchmark: what the user says in each turn, and what is known of the right answer.

    ``reference`` holds one reference answer a turn (or nothing). ``check`` names the rule that scores the
    last answer without a judge (see the benchmark's file); None means that a judge is needed.
    """

    benchmark: str
    version: str
    id: str
    category: str
    turns: tuple[str, ...]
    system: str | None = None
    reference: tuple[str, ...] = ()
    check: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said in one turn (counted from 1) of one question."""

    key: str  # content key of model, benchmark, version, question, turn, messages, sampling
    model: str  # the model's identity (a content hash), not its name
    benchmark: str
    version: str
    question: str
    turn: int
    text: str
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    output_tokens: int
    seconds: float  # from asking to the whole reply, waiting in the batch included
    seed: int  # the seed this very reply was drawn with
    sampling: Sampling
    thinking: str = ""  # what the model wrote before its answer, where that was told apart
    thinking_tokens: int = 0  # of output_tokens; 0 also where nobody counted them
    cost: float | None = None  # US dollars, replies that were no use included; None: no price is known


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One thing to ask a judge about one model's answer, alone or beside a baseline's.

    ``order`` is "model_first", "baseline_first" or, where the answer stands alone, "single".
    ``answers`` are the keys of the answers shown (the model's, then the baseline's). ``reply`` names the
    reader in ``judges.replies.REPLIES``.
    """

    key: str  # content key of judge, benchmark, version, question, turn, answers, order, judgment
    judgment: str  # content key of judge, messages, sampling: what is paid for only once
    judge: str  # the judge model's identity
    benchmark: str
    version: str
    question: str
    turn: int
    model: str
    baseline: str | None
    order: str
    answers: tuple[str, ...]
    messages: tuple[Message, ...]
    sampling: Sampling
    reply: str


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judge's reply as it came; ``top_logprobs`` are those of its first token, as (token, natural log) pairs.

    Tokens, seconds and cost are those of all ``asked`` replies that it took to get this one.
    """

    key: str
    judge: str
    text: str
    finish_reason: str
    top_logprobs: tuple[tuple[str, float], ...]
    prompt_tokens: int
    output_tokens: int
    seconds: float
    served_model: str  # what the endpoint said it was; the identity again for a local model
    fingerprint: str = ""  # of the endpoint's system, where it tells one
    thinking: str = ""  # what the judge wrote before its reply, where that was told apart
    thinking_tokens: int = 0  # of output_tokens; 0 also where nobody counted them
    cost: float | None = None  # US dollars, replies that were no use included; None: no price is known
    asked: int = 1  # replies that it took: unreadable ones are asked for again


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge, or a check, said of one answer; ``value`` is None when its reply held no verdict.

    Of a comparison, ``value`` is the preference for the model over the baseline in [0, 1]; of a rating, the
    rating; of a check, 1 or 0. ``judge`` is the judge model's identity, or "check" where no judge was asked.
    """

    request: str  # key of the JudgeRequest, or of the Answer that was checked
    judge: str
    benchmark: str
    version: str
    question: str
    turn: int
    model: str
    baseline: str | None
    order: str
    value: float | None
    reader: int = 0  # which version of the readers read it; 0: a check


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One model's value of one metric on one question, the resampling unit; None where it could not be had."""

    model: str
    benchmark: str
    version: str
    judge: str
    baseline: str | None
    metric: str
    question: str
    value: float | None
    weight: float = 1.0  # of this question in the metric's mean


LOWER_IS_BETTER = "lower_is_better"
"""The flag of a score of which less is better, such as a perplexity."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric over all questions with its 95 % interval; ``value`` is None when every question is missing.

    ``n`` counts the questions that the value rests on, ``missing`` those without an answer or a verdict. More is better
    unless ``flags`` hold LOWER_IS_BETTER.
    """

    model: str
    benchmark: str
    version: str
    judge: str
    baseline: str | None
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """``model`` minus ``other`` in one metric over the questions that both have; ``p`` is two-sided, paired.

    ``p_holm`` is ``p`` corrected after Holm for all differences that were computed with it; ``detectable`` is the
    smallest true difference that a test at 5 % finds with a power of 80 % with so many questions.
    """

    model: str
    other: str
    benchmark: str
    version: str
    judge: str
    baseline: str | None  # of a metric that compares with a baseline: that baseline's identity
    metric: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    missing: int
    p_holm: float | None = None
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What the last run wanted of a model on a benchmark, and which of its stored answers count."""

    model: str
    benchmark: str
    version: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]  # keys
    baseline: str | None
    judges: tuple[str, ...]  # identities


@dataclass(frozen=True, slots=True)
class Measure:
    """What a task's own metric found of one answer; ``weight`` is the question's in the metric's mean."""

    answer: str  # its key
    metric: str
    model: str
    benchmark: str
    version: str
    question: str
    value: float | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A task's own metric over the ``n`` answers that the last run wanted of a model, as the task aggregates it.

    ``stderr`` is the task's own standard error, None where it has none. ``is_mean`` tells whether the value is the
    weighted mean of the answers' measures; where it is not, there are none.
    """

    model: str
    benchmark: str
    version: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    is_mean: bool
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that brought nothing: never an answer, a judgment or a score; asked again on the next run."""

    key: str  # of the answer or judgment that is missing
    stage: str  # "answer" or "judge"
    model: str  # who was asked
    benchmark: str
    question: str
    kind: str  # one of evals.chat.FAILURES
    message: str
    attempts: int
    cost: float | None = None  # US dollars for replies that were no use; None: no price is known


@dataclass(frozen=True, slots=True)
class Model:
    """A model that answers or judges: ``id`` is what it is (a content hash), ``name`` what people call it.

    ``kind`` is checkpoint, endpoint, sft, merge, or published where only answers or judgments are known; of those that
    no leaderboard shows as candidates, panel (several judges as one), control (answers that must lose) or retest (a
    judge asked the same again, ``parent`` being that judge). ``recipe`` is how it was made, as JSON text ("" for a
    model that was only found); ``parent`` is the identity of the model it was made from.
    """

    id: str
    name: str
    kind: str
    source: str  # a path, hub id or URL, for people
    parent: str | None = None
    recipe: str = ""


@dataclass(frozen=True, slots=True)
class AnswerFlag:
    """Why an answer looks like an attack on its judge, as one of the detectors of ``judges.flags`` found it."""

    answer: str  # its key
    detector: str
    model: str
    benchmark: str
    version: str
    question: str
    detail: str  # what was found, for people; hostile text


@dataclass(frozen=True, slots=True)
class Audit:
    """One measure of how far a judge can be trusted on a benchmark, with its 95 % interval where it has one.

    ``measure`` is one of ``judges.trust.MEASURES``; ``other`` is what it was measured against: another judge's
    identity, "human", a model's identity, or "" for the judge alone. ``n`` counts what it rests on.
    """

    judge: str  # "" for a measure of the answers alone
    benchmark: str
    version: str
    measure: str
    other: str
    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of requests that an endpoint works on by itself; ``requests`` are their custom ids."""

    id: str  # the endpoint's
    place: str  # the endpoint's base URL
    model: str  # as the endpoint calls it
    requests: tuple[str, ...]
    state: str  # submitted, collected, or what the endpoint called its end (failed, expired, cancelled)


@dataclass(frozen=True, slots=True)
class Reward:
    """How good a scorer finds an answer; ``value`` is None where it could not tell, and ``note`` then says why."""

    answer: str  # its key
    scorer: str  # the identity of a reward model or of a judge, or the name of a rule
    value: float | None  # a reward model's own scale; of a judge in [0, 1]; of a rule 1 or 0
    note: str = ""  # for people: why there is no value, or what the judge wrote; hostile text


@dataclass(frozen=True, slots=True)
class Imported:
    """A row of an imported file, less what other records hold of it."""

    key: str  # content key of the row, the model and the row's number among equal ones
    kind: str  # project and kind of row, like "fastchat/single"
    position: int  # grows in the order of importing
    extra: str  # JSON text


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A number that the merge which made ``model`` used of one tensor, for one source or for all together."""

    model: str
    tensor: str
    source: str | None  # a model identity; None: of all sources together
    name: str  # as the method calls it: eta, weight, kept, conflict, ...
    value: float


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """One logged step of a training run that made ``model``; ``loss`` in nats a token."""

    model: str
    step: int
    loss: float
    learning_rate: float
    tokens: int  # seen so far
    extra: tuple[tuple[str, float], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Study:
    """A search over merges of ``sources`` onto ``base`` for the best by an objective.

    The JSON texts say which merges there are, what makes one better than another, and how they are gone through.
    """

    id: str  # content key of all that follows but the name
    name: str
    base: str  # a model identity, as the sources are
    sources: tuple[str, ...]
    space: str  # JSON: the parameters, with their kinds and values, and what all merges share
    objective: str  # JSON: the scores that count, with their weights; penalties, constraints, questions
    search: str  # JSON: the kind of search, and how trials are dropped
    seed: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One merge that a study tried; ``params`` is its point of the space, a JSON object of dotted names.

    ``state`` is running (or killed: then it goes on), finished (asked every question of the search), dropped (after
    the rung that it could no longer win from) or failed. What it scored is in the outcomes of its model.
    """

    study: str
    number: int  # from 0, in the order in which they were proposed
    model: str  # the merge's identity, which two trials share whose points make the same merge
    params: str
    state: str
    rung: int  # rungs of questions that it has finished
    questions: int  # asked so far, of all benchmarks together
    making: float  # seconds that merging and loading took; 0 where nothing had to be made
    answering: float  # seconds of answering
    judging: float  # seconds of judging and scoring
    dollars: float | None  # charged for its answers and judgments; None: some price is not known
    note: str = ""  # why it was dropped or failed, for people


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model is worth by a study's objective, on some of its questions: larger is better, with 95 % intervals.

    A study's base and sources have outcomes too. ``amounts`` has one an objective; None where it could not be had.
    """

    study: str
    model: str
    part: str  # "search", or "holdout": questions that the search did not see
    rung: int  # from 1: the outcome of a later rung rests on more questions
    questions: int
    amounts: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    feasible: bool  # keeps every constraint
    parts: str  # JSON: [{"name", "kind": score, penalty, constraint or gap (to the base), "value", "low", ...}]
