-- The ledger's schema. Each `-- version N` section brings a ledger of version N-1 to version N.
-- Never edit a released section: add the next one. The `-- views` section is applied at every writable open.
--
-- Everywhere: `model`, `judge`, `baseline` and `other` are model identities (models.id), `judge` being 'check' where
-- no judge was asked; `recorded_at` is when the row was stored and `run` the run that stored it (NULL outside a run).

-- version 1

CREATE TABLE meta (
    version INTEGER PRIMARY KEY,           -- the highest is the ledger's
    fuseval VARCHAR NOT NULL,              -- the fuseval that brought the ledger to this version
    created TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE runs (
    id VARCHAR PRIMARY KEY,
    command VARCHAR NOT NULL,
    experiment VARCHAR NOT NULL,           -- JSON text
    versions JSON NOT NULL,                -- tool -> version
    started TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended TIMESTAMPTZ,
    outcome VARCHAR                        -- NULL: still running, or killed
);

CREATE TABLE models (
    id VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,                 -- checkpoint, endpoint, sft or merge
    source VARCHAR NOT NULL,
    parent VARCHAR,
    recipe VARCHAR NOT NULL,               -- JSON text, '' where the model was only found
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE questions (
    benchmark VARCHAR,
    version VARCHAR,
    id VARCHAR,
    category VARCHAR NOT NULL,
    turns VARCHAR[] NOT NULL,
    system VARCHAR,
    reference VARCHAR[] NOT NULL,
    check_rule VARCHAR,                    -- NULL: needs a judge
    position BIGINT NOT NULL,              -- grows in the order of adding: the benchmark's own order
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (benchmark, version, id)
);

CREATE TABLE answers (
    key VARCHAR PRIMARY KEY,
    model VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    turn BIGINT NOT NULL,                 -- from 1
    text VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    seed BIGINT NOT NULL,
    sampling JSON NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE judge_requests (
    key VARCHAR PRIMARY KEY,
    judgment VARCHAR NOT NULL,             -- judgments.key; several requests may share one judgment
    judge VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    turn BIGINT NOT NULL,
    model VARCHAR NOT NULL,
    baseline VARCHAR,
    answer_order VARCHAR NOT NULL,         -- model_first, baseline_first or single
    answers VARCHAR[] NOT NULL,            -- answers.key of the model's, then of the baseline's
    messages JSON NOT NULL,                -- [{"role", "content"}]
    sampling JSON NOT NULL,
    reply VARCHAR NOT NULL,                -- the reader's name
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE judgments (
    key VARCHAR PRIMARY KEY,
    judge VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    top_logprobs STRUCT(token VARCHAR, logprob DOUBLE)[] NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    served_model VARCHAR NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE verdicts (
    request VARCHAR,                       -- judge_requests.key, or answers.key of a checked answer
    judge VARCHAR,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    turn BIGINT NOT NULL,
    model VARCHAR NOT NULL,
    baseline VARCHAR,
    answer_order VARCHAR NOT NULL,
    value DOUBLE,                          -- NULL: the reply held no verdict
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (request, judge)
);

CREATE TABLE item_scores (
    model VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    judge VARCHAR,
    baseline VARCHAR,                      -- '' where there is none (a primary key takes no NULL)
    metric VARCHAR,
    question VARCHAR,
    value DOUBLE,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, benchmark, version, judge, baseline, metric, question)
);

CREATE TABLE scores (
    model VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    judge VARCHAR,
    baseline VARCHAR,                      -- '' where there is none
    metric VARCHAR,
    value DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n BIGINT NOT NULL,
    missing BIGINT NOT NULL,
    flags VARCHAR[] NOT NULL,
    -- scored_with: tool -> version; sampling: the distinct samplings of the answers; judgments and verdicts: digests
    -- of the judgments' keys and of the verdicts. What answered and judged is in runs, by answers.run, judgments.run.
    provenance JSON NOT NULL,
    scored_at TIMESTAMPTZ NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, benchmark, version, judge, baseline, metric)
);

CREATE TABLE differences (
    model VARCHAR,
    other VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    judge VARCHAR,
    baseline VARCHAR,                      -- '' where there is none
    metric VARCHAR,
    value DOUBLE,
    low DOUBLE,
    high DOUBLE,
    p DOUBLE,
    n BIGINT NOT NULL,
    missing BIGINT NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, other, benchmark, version, judge, baseline, metric)
);

CREATE TABLE selections (                  -- what the last run wanted of a model on a benchmark
    model VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    questions VARCHAR[] NOT NULL,
    answers VARCHAR[] NOT NULL,            -- answers.key of those that count
    baseline VARCHAR,
    judges VARCHAR[] NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, benchmark, version)
);

CREATE TABLE failures (
    key VARCHAR PRIMARY KEY,               -- of the answer or judgment that is missing
    stage VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    message VARCHAR NOT NULL,
    attempts BIGINT NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE training (
    model VARCHAR,
    step BIGINT,
    loss DOUBLE NOT NULL,                  -- nats a token
    learning_rate DOUBLE NOT NULL,
    tokens BIGINT NOT NULL,                -- seen so far
    extra STRUCT(name VARCHAR, value DOUBLE)[] NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, step)
);

-- version 2

CREATE TABLE coefficients (                -- what a merge used of every tensor: eta, weight, kept, conflict, ...
    model VARCHAR,
    tensor VARCHAR,
    source VARCHAR,                        -- a model identity; '' where the number is of all sources together
    name VARCHAR,
    value DOUBLE NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, tensor, name, source)
);

-- version 3

-- The order of arrival within one transaction; NULL in rows of older ledgers, which recorded_at orders.
ALTER TABLE answers ADD COLUMN position BIGINT;
ALTER TABLE judgments ADD COLUMN position BIGINT;
ALTER TABLE verdicts ADD COLUMN reader BIGINT;       -- which version of the readers read it; NULL: read it again
ALTER TABLE verdicts ADD COLUMN position BIGINT;     -- the order in which the judgments came
ALTER TABLE differences ADD COLUMN p_holm DOUBLE;    -- p corrected for all differences computed with it
ALTER TABLE differences ADD COLUMN detectable DOUBLE; -- the smallest true difference found with 80 % power

CREATE TABLE kept AS SELECT * FROM item_scores;
DROP TABLE item_scores;

CREATE TABLE item_scores (                 -- made anew by every scoring, so it needs no key
    model VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    judge VARCHAR NOT NULL,
    baseline VARCHAR,
    metric VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    value DOUBLE,                          -- NULL: missing
    weight DOUBLE NOT NULL,                -- of the question in the metric's mean
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
INSERT INTO item_scores BY NAME SELECT * REPLACE (nullif(baseline, '') AS baseline), 1.0 AS weight FROM kept;
DROP TABLE kept;

CREATE TABLE imported (                    -- the rows of imported files, so that they can be exported as they were
    key VARCHAR,                           -- of the file's row: its content, whose it is, which of equal ones
    kind VARCHAR,                          -- project and kind of row
    position BIGINT,                       -- grows in the order of importing
    extra VARCHAR NOT NULL,                -- JSON text: the row, less the texts that other tables hold, and their keys
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (key, kind, position)
);

-- version 4

ALTER TABLE answers ADD COLUMN thinking VARCHAR DEFAULT '';
ALTER TABLE answers ADD COLUMN thinking_tokens BIGINT DEFAULT 0;
ALTER TABLE answers ADD COLUMN cost DOUBLE;          -- US dollars; NULL: no price known
ALTER TABLE judgments ADD COLUMN fingerprint VARCHAR DEFAULT '';
ALTER TABLE judgments ADD COLUMN thinking VARCHAR DEFAULT '';
ALTER TABLE judgments ADD COLUMN thinking_tokens BIGINT DEFAULT 0;
ALTER TABLE judgments ADD COLUMN cost DOUBLE;        -- US dollars; NULL: no price known
ALTER TABLE judgments ADD COLUMN asked BIGINT DEFAULT 1; -- replies that it took
ALTER TABLE failures ADD COLUMN cost DOUBLE;         -- US dollars for replies that were no use

CREATE TABLE answer_flags (                -- answers that look like attacks on their judge; made anew by every scoring
    answer VARCHAR,                        -- answers.key
    detector VARCHAR,
    model VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    detail VARCHAR NOT NULL,               -- what was found
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (answer, detector)
);

CREATE TABLE audits (                      -- how far judges can be trusted; made anew by every scoring
    judge VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    measure VARCHAR,
    other VARCHAR,                         -- another judge, 'human', a model, or ''
    value DOUBLE,
    low DOUBLE,
    high DOUBLE,
    n BIGINT NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (judge, benchmark, version, measure, other)
);

CREATE TABLE batches (                     -- what endpoints work on by themselves, to be collected later
    id VARCHAR,
    place VARCHAR,                         -- the endpoint's base URL
    model VARCHAR NOT NULL,
    requests VARCHAR[] NOT NULL,           -- custom ids
    state VARCHAR NOT NULL,                -- submitted, collected, or how it ended
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (id, place)
);

-- version 5

CREATE TABLE rewards (                     -- how good answers were found, to choose what a model is trained on
    answer VARCHAR,                        -- answers.key
    scorer VARCHAR,                        -- identity of a reward model or judge, or the name of a rule
    value DOUBLE,                          -- NULL: it could not tell
    note VARCHAR NOT NULL,                 -- why, or what a judge wrote
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (answer, scorer)
);

-- version 6

CREATE TABLE studies (                     -- searches over merges
    id VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    base VARCHAR NOT NULL,                 -- models.id, as the sources are
    sources VARCHAR[] NOT NULL,
    space VARCHAR NOT NULL,                -- JSON text, as the next two
    objective VARCHAR NOT NULL,
    search VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    run VARCHAR,                           -- the last that went on with it
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE trials (
    study VARCHAR,                         -- studies.id
    number BIGINT,                         -- from 0, in the order in which they were proposed
    model VARCHAR NOT NULL,
    params VARCHAR NOT NULL,               -- JSON text: a point of the study's space
    state VARCHAR NOT NULL,                -- running, finished, dropped or failed
    rung BIGINT NOT NULL,                  -- rungs of questions that it has finished
    questions BIGINT NOT NULL,             -- asked so far
    making DOUBLE NOT NULL,                -- seconds, as the next two
    answering DOUBLE NOT NULL,
    judging DOUBLE NOT NULL,
    dollars DOUBLE,                        -- NULL: some price is not known
    note VARCHAR NOT NULL,                 -- why it was dropped or failed
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (study, number)
);

CREATE TABLE outcomes (                    -- what models are worth by a study's objective
    study VARCHAR,
    model VARCHAR,                         -- of a trial, or the study's base or a source of it
    part VARCHAR,                          -- search, or holdout: questions that the search did not see
    rung BIGINT,                           -- from 1
    questions BIGINT NOT NULL,             -- that it rests on
    amounts DOUBLE[] NOT NULL,             -- one an objective, larger is better; NULL: could not be had
    lows DOUBLE[] NOT NULL,
    highs DOUBLE[] NOT NULL,
    feasible BOOLEAN NOT NULL,             -- keeps every constraint
    parts VARCHAR NOT NULL,                -- JSON text: the scores, penalties and constraints that it is made of
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (study, model, part, rung)
);

-- version 7

CREATE TABLE measures (                    -- what a task's own metrics found of answers
    answer VARCHAR,                        -- answers.key
    metric VARCHAR,
    model VARCHAR NOT NULL,
    benchmark VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    value DOUBLE,
    weight DOUBLE NOT NULL,                -- of the question in the metric's mean
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (answer, metric)
);

CREATE TABLE aggregates (                  -- the same over all that the last run wanted of a model, as the task says it
    model VARCHAR,
    benchmark VARCHAR,
    version VARCHAR,
    metric VARCHAR,
    value DOUBLE,
    stderr DOUBLE,                         -- the task's own standard error; NULL where it has none
    n BIGINT NOT NULL,                     -- answers
    is_mean BOOLEAN NOT NULL,              -- the value is the weighted mean of measures
    higher_is_better BOOLEAN NOT NULL,
    run VARCHAR,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (model, benchmark, version, metric)
);

-- views

CREATE OR REPLACE VIEW model_names AS
WITH tried AS (
    SELECT name, digits, count(DISTINCT left(id, digits)) = count(*) AS told_apart
    FROM models CROSS JOIN range(4, 65) AS tried(digits)
    GROUP BY name, digits
), shared AS (
    SELECT name, count(*) > 1 AS is_shared, max(length(id)) AS longest FROM models GROUP BY name
), shortest AS (
    SELECT name, min(digits) AS digits FROM tried WHERE told_apart GROUP BY name
)
SELECT
    m.id,
    m.name,
    m.kind,
    CASE WHEN s.is_shared THEN m.name || '·' || left(m.id, coalesce(d.digits, s.longest)) ELSE m.name END AS display
FROM models m
JOIN shared s ON s.name = m.name
LEFT JOIN shortest d ON d.name = m.name;
COMMENT ON VIEW model_names IS 'Every model and the name it is shown under: its own, or, where other models bear it too, that with the first digits of its identity.';

CREATE OR REPLACE VIEW leaderboard AS
SELECT
    s.model,
    coalesce(m.display, s.model) AS name,
    coalesce(m.kind, '') AS kind,
    s.benchmark,
    s.version,
    s.judge,
    coalesce(j.display, s.judge) AS judge_name,
    coalesce(b.display, nullif(s.baseline, '')) AS baseline_name,
    s.metric,
    s.value,
    s.low,
    s.high,
    s.n,
    s.missing,
    s.flags,
    s.provenance,
    s.scored_at,
    u.value AS unflagged,
    u.low AS unflagged_low,
    u.high AS unflagged_high,
    u.n AS unflagged_n
FROM scores s
LEFT JOIN scores u ON u.model = s.model AND u.benchmark = s.benchmark AND u.version = s.version AND u.judge = s.judge
    AND u.baseline = s.baseline AND u.metric = s.metric || ':unflagged'
LEFT JOIN model_names m ON m.id = s.model
LEFT JOIN model_names j ON j.id = s.judge
LEFT JOIN model_names b ON b.id = s.baseline
WHERE NOT ends_with(s.metric, ':unflagged') AND coalesce(m.kind, '') NOT IN ('panel', 'control', 'retest')
ORDER BY s.benchmark, s.version, judge_name, baseline_name, s.metric,
    CASE WHEN list_contains(s.flags, 'lower_is_better') THEN -s.value ELSE s.value END DESC NULLS LAST, name, s.model;
COMMENT ON VIEW leaderboard IS 'Every score of a candidate with its 95 % interval, the same without its flagged answers (unflagged: NULL where none is flagged) and the names of model, judge and baseline; the best of each metric first.';

CREATE OR REPLACE VIEW answers_wide AS
SELECT
    a.key,
    a.model,
    coalesce(m.display, a.model) AS model_name,
    a.benchmark,
    a.version,
    a.question,
    coalesce(q.category, '') AS category,
    a.turn,
    coalesce(q.turns[a.turn], '') AS prompt,
    q.reference[a.turn] AS reference,
    q.check_rule,
    a.text,
    a.finish_reason,
    a.prompt_tokens,
    a.output_tokens,
    a.seconds,
    CAST(a.sampling ->> '$.temperature' AS DOUBLE) AS temperature,
    a.seed,
    a.run,
    a.recorded_at
FROM answers a
LEFT JOIN model_names m ON m.id = a.model
LEFT JOIN questions q ON q.benchmark = a.benchmark AND q.version = a.version AND q.id = a.question
ORDER BY a.benchmark, a.version, q.position, a.question, a.turn, model_name, a.model, a.key;
COMMENT ON VIEW answers_wide IS 'Every answer with its model''s name and what was asked in that turn (prompt), in the benchmark''s order.';

CREATE OR REPLACE VIEW rewards_wide AS
SELECT
    a.key AS answer,
    a.model,
    a.model_name,
    a.question AS prompt_id,
    a.category AS kind,
    a.prompt,
    a.text,
    a.temperature,
    a.seed,
    r.scorer,
    coalesce(s.display, r.scorer) AS scorer_name,
    r.value,
    r.note
FROM answers_wide a
LEFT JOIN rewards r ON r.answer = a.key
LEFT JOIN model_names s ON s.id = r.scorer
WHERE a.benchmark = 'prompts'
ORDER BY a.question, a.model_name, a.model, a.temperature, a.seed, a.key, scorer_name;
COMMENT ON VIEW rewards_wide IS 'Every answer that was sampled to train on, and how good each scorer found it (NULL: it could not tell, or was not asked).';

CREATE OR REPLACE VIEW judgments_wide AS
SELECT
    r.key AS request,
    r.judgment,
    r.judge,
    coalesce(j.display, r.judge) AS judge_name,
    r.benchmark,
    r.version,
    r.question,
    coalesce(q.category, '') AS category,
    r.turn,
    r.model,
    coalesce(m.display, r.model) AS model_name,
    r.baseline,
    coalesce(b.display, r.baseline) AS baseline_name,
    r.answer_order,
    v.value,
    g.text AS reply,
    g.finish_reason,
    g.top_logprobs,
    g.recorded_at
FROM judge_requests r
JOIN judgments g ON g.key = r.judgment
LEFT JOIN verdicts v ON v.request = r.key AND v.judge = r.judge
LEFT JOIN model_names j ON j.id = r.judge
LEFT JOIN model_names m ON m.id = r.model
LEFT JOIN model_names b ON b.id = r.baseline
LEFT JOIN questions q ON q.benchmark = r.benchmark AND q.version = r.version AND q.id = r.question
ORDER BY r.benchmark, r.version, judge_name, q.position, r.question, r.turn, model_name, r.model, baseline_name,
    r.answer_order DESC, r.key;
COMMENT ON VIEW judgments_wide IS 'Every judge request that was answered: who was compared with whom, in which order, the reply, and the value read from it (preference for the model in [0, 1], or a rating; NULL: no verdict).';

CREATE OR REPLACE VIEW coefficients_wide AS
SELECT
    c.model,
    coalesce(m.display, c.model) AS model_name,
    c.tensor,
    TRY_CAST(regexp_extract(c.tensor, '(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.', 1) AS INTEGER) AS layer,
    nullif(c.source, '') AS source,
    coalesce(s.display, nullif(c.source, '')) AS source_name,
    c.name,
    c.value
FROM coefficients c
LEFT JOIN model_names m ON m.id = c.model
LEFT JOIN model_names s ON s.id = c.source
ORDER BY model_name, c.model, c.name, layer NULLS FIRST, c.tensor, source_name;
COMMENT ON VIEW coefficients_wide IS 'Every coefficient that a merge used of a tensor, with the names of the model and of the source (NULL: of all sources together) and the tensor''s layer.';

-- Published answers and judgments were paid for by others, and nobody was asked for a control's answers. A judgment
-- that several requests share counts once, with the first of them.
CREATE OR REPLACE VIEW costs AS
WITH asked AS (
    SELECT judgment, benchmark, model FROM judge_requests
    QUALIFY row_number() OVER (PARTITION BY judgment ORDER BY recorded_at, key) = 1
), calls AS (
    SELECT model AS asked, 'answer' AS stage, benchmark, model, false AS failed, 1 AS replies, prompt_tokens,
        output_tokens, thinking_tokens, cost
    FROM answers
    UNION ALL
    SELECT g.judge, 'judge', coalesce(r.benchmark, ''), coalesce(r.model, ''), false, coalesce(g.asked, 1),
        g.prompt_tokens, g.output_tokens, g.thinking_tokens, g.cost
    FROM judgments g LEFT JOIN asked r ON r.judgment = g.key
    UNION ALL
    SELECT f.model, f.stage, f.benchmark, CASE f.stage WHEN 'judge' THEN coalesce(r.model, '') ELSE f.model END, true,
        0, 0, 0, 0, f.cost
    FROM failures f LEFT JOIN asked r ON r.judgment = f.key
)
SELECT
    c.asked,
    coalesce(a.display, c.asked) AS asked_name,
    coalesce(p.kind, a.kind, '') AS asked_kind,
    c.stage,
    c.benchmark,
    c.model,
    coalesce(m.display, c.model) AS model_name,
    count(*) FILTER (NOT c.failed) AS requests,
    count(*) FILTER (c.failed) AS failures,
    CAST(sum(c.replies) AS BIGINT) AS replies,
    CAST(sum(c.prompt_tokens) AS BIGINT) AS prompt_tokens,
    CAST(sum(c.output_tokens) AS BIGINT) AS output_tokens,
    CAST(sum(coalesce(c.thinking_tokens, 0)) AS BIGINT) AS thinking_tokens,
    fsum(c.cost) AS dollars,
    count(*) - count(c.cost) AS unpriced
FROM calls c
LEFT JOIN model_names a ON a.id = c.asked
LEFT JOIN models r ON r.id = c.asked AND r.kind = 'retest'
LEFT JOIN models p ON p.id = r.parent  -- a judge asked again is of its own kind still
LEFT JOIN model_names m ON m.id = c.model
WHERE coalesce(a.kind, '') NOT IN ('published', 'control')
GROUP BY ALL
ORDER BY c.benchmark, c.stage, asked_name, c.asked, model_name, c.model;
COMMENT ON VIEW costs IS 'What was asked of whom (asked) for which evaluated model: answers or judgments that came (requests), calls that failed, replies that it took, tokens, US dollars for those whose price is known (NULL: for none), and how many have no known price (unpriced).';

CREATE OR REPLACE VIEW served_models AS
SELECT
    g.judge,
    coalesce(j.display, g.judge) AS judge_name,
    coalesce(j.kind, '') AS judge_kind,
    g.served_model,
    g.fingerprint,
    g.run,
    min(g.recorded_at) AS first,
    max(g.recorded_at) AS last,
    count(*) AS judgments,
    g.run IS NOT NULL AND (
        coalesce(min(nullif(g.served_model, '')) OVER told <> max(nullif(g.served_model, '')) OVER told, false)
        OR coalesce(min(nullif(g.fingerprint, '')) OVER told <> max(nullif(g.fingerprint, '')) OVER told, false)
    ) AS changed
FROM judgments g
LEFT JOIN model_names j ON j.id = g.judge
GROUP BY g.judge, j.display, j.kind, g.served_model, g.fingerprint, g.run
WINDOW told AS (PARTITION BY g.judge, g.run)
ORDER BY judge_name, g.judge, first, g.served_model, g.fingerprint;
COMMENT ON VIEW served_models IS 'What endpoints said that they were while they judged, run by run; changed: the judge was served by several models or systems within one run.';

CREATE OR REPLACE VIEW audits_wide AS
SELECT
    a.judge,
    coalesce(j.display, a.judge) AS judge_name,
    coalesce(j.kind, '') AS judge_kind,
    a.benchmark,
    a.version,
    a.measure,
    a.other,
    coalesce(o.display, a.other) AS other_name,
    coalesce(o.kind, '') AS other_kind,
    a.value,
    a.low,
    a.high,
    a.n
FROM audits a
LEFT JOIN model_names j ON j.id = a.judge
LEFT JOIN model_names o ON o.id = a.other
ORDER BY a.benchmark, a.version, judge_name, a.judge, a.measure, other_name, a.other;
COMMENT ON VIEW audits_wide IS 'Every measure of how far a judge can be trusted, with the names of the judge and of what it was measured against.';

CREATE OR REPLACE VIEW answer_flags_wide AS
SELECT
    f.answer,
    f.detector,
    f.model,
    coalesce(m.display, f.model) AS model_name,
    coalesce(m.kind, '') AS kind,
    f.benchmark,
    f.version,
    f.question,
    a.turn,
    f.detail,
    a.text
FROM answer_flags f
LEFT JOIN answers a ON a.key = f.answer
LEFT JOIN model_names m ON m.id = f.model
LEFT JOIN questions q ON q.benchmark = f.benchmark AND q.version = f.version AND q.id = f.question
ORDER BY f.benchmark, f.version, model_name, f.model, f.detector, q.position, f.question, a.turn, f.answer;
COMMENT ON VIEW answer_flags_wide IS 'Every answer that looks like an attack on its judge: its model''s name, the detector, what it found, and the answer.';

CREATE OR REPLACE VIEW trials_wide AS
WITH last AS (
    SELECT * FROM outcomes
    QUALIFY row_number() OVER (PARTITION BY study, model, part ORDER BY rung DESC) = 1
)
SELECT
    t.study,
    s.name AS study_name,
    t.number,
    t.model,
    coalesce(m.display, t.model) AS model_name,
    t.params,
    t.state,
    t.rung,
    o.amounts[1] AS value,
    o.lows[1] AS low,
    o.highs[1] AS high,
    o.amounts AS amounts,
    o.lows,
    o.highs,
    o.feasible,
    t.state = 'finished' AND o.feasible AND len(o.amounts) = 1 AND row_number() OVER (
        PARTITION BY t.study
        ORDER BY t.state = 'finished' AND o.feasible DESC, o.amounts[1] DESC NULLS LAST, t.number
    ) = 1 AS best,
    h.amounts[1] AS holdout,
    h.lows[1] AS holdout_low,
    h.highs[1] AS holdout_high,
    o.parts,
    t.questions,
    t.dollars,
    t.making,
    t.answering,
    t.judging,
    t.making + t.answering + t.judging AS seconds,
    t.note
FROM trials t
LEFT JOIN studies s ON s.id = t.study
LEFT JOIN last o ON o.study = t.study AND o.model = t.model AND o.part = 'search'
LEFT JOIN last h ON h.study = t.study AND h.model = t.model AND h.part = 'holdout'
LEFT JOIN model_names m ON m.id = t.model
ORDER BY study_name, t.study, t.number;
COMMENT ON VIEW trials_wide IS 'Every merge that a study tried, with its name, parameters, what it is worth by the objective on the questions that it was asked (of several objectives: value is of the first, amounts of all) and on those held out, whether it is the best of the study, and what it cost.';
