// The answer browser: questions found by filters, and the answers of two or three models side by side.

const AT_ONCE = 100; // questions listed at a time

function answerBrowser(data) {
  const field = (name) => document.getElementById(`pick-${name}`);
  const [benchmark, category, score, verdict, disagreement] = ["benchmark", "category", "score", "verdict", "disagreement"].map(field);
  const [least, most, words, written] = ["least", "most", "words", "written"].map(field);
  const columns = ["a", "b", "c"].map(field);
  const article = document.getElementById("question");
  data.questions.forEach((question, place) => { question.place = place; });
  let found = [];
  let listed = 0;
  let current = data.questions[0];

  const chosen = () => columns.map((select) => (select.value === "" ? null : Number(select.value))).filter((model) => model !== null);
  const value = (question, model, by = scoring()) => by?.values[model]?.[question.place];
  const scoring = () => data.scores[score.value];

  function link(question) {
    const models = chosen().map((model) => `&m=${encodeURIComponent(data.models[model])}`).join("");
    return `#answers?q=${encodeURIComponent(`${data.sets[question.set]}/${question.id}`)}${models}`;
  }

  // What the first model's score on a question means, and how it stands beside the second's.
  function verdicts() {
    const by = scoring();
    const [first, second] = chosen().map((model) => data.models[model]);
    const listed = [["", "any"]];
    if (!by) return listed;
    if (by.baseline !== null) listed.push(["won", `${first} won against ${by.baseline}`], ["tied", `${first} tied`], ["lost", `${first} lost`]);
    else if (by.metric.startsWith("accuracy")) listed.push(["won", `${first} right`], ["lost", `${first} wrong`]);
    if (second) listed.push(["above", `${first} above ${second}`], ["level", "both the same"], ["below", `${first} below ${second}`]);
    return [...listed, ["missing", `${first} without a verdict`]];
  }

  function matchesVerdict(question) {
    const wanted = verdict.value;
    if (!wanted) return true;
    const [one, two] = chosen().map((model) => value(question, model));
    if (wanted === "missing") return one === null;
    if (one === undefined || one === null) return false;
    const test = { won: one > 50, tied: one === 50, lost: one < 50 };
    if (wanted in test) return test[wanted];
    if (two === undefined || two === null) return false;
    return { above: one > two, level: one === two, below: one < two }[wanted];
  }

  function matchesDisagreement(question) {
    const models = chosen();
    if (disagreement.value === "models") {
      const values = models.map((model) => value(question, model)).filter((each) => each !== undefined && each !== null);
      return values.length > 1 && Math.max(...values) !== Math.min(...values);
    }
    if (disagreement.value === "flagged") return models.some((model) => question.attacks?.includes(model));
    return !disagreement.value || models.some((model) => question[disagreement.value]?.includes(model));
  }

  function matchesLength(question) {
    if (!least.value && !most.value) return true;
    const length = question.lengths[chosen()[0]];
    return length !== undefined && length >= Number(least.value || 0) && length <= Number(most.value || Infinity);
  }

  function filter() {
    const wanted = words.value.trim().toLowerCase();
    found = data.questions.filter((question) => question.set === Number(benchmark.value)
      && (!category.value || question.category === category.value.slice(1))
      && (!wanted || `${question.id} ${question.prompt}`.toLowerCase().includes(wanted))
      && matchesVerdict(question) && matchesDisagreement(question) && matchesLength(question));
    document.getElementById("found").replaceChildren();
    listed = 0;
    more();
    document.getElementById("position").value = `${found.length.toLocaleString("en")} ${found.length === 1 ? "question" : "questions"}`;
  }

  function more() {
    const list = document.getElementById("found");
    list.append(...found.slice(listed, listed + AT_ONCE).map(entry));
    listed = Math.min(found.length, listed + AT_ONCE);
    document.getElementById("more").hidden = listed === found.length;
    mark();
  }

  function entry(question) {
    const anchor = element("a", "", element("b", "", visible(question.id)), " ", element("bdi", "", visible(question.prompt)));
    anchor.href = link(question);
    anchor.dataset.place = question.place;
    const values = chosen().map((model) => shownValue(value(question, model))).join(" · ");
    return element("li", "", anchor, ...(scoring() ? [element("small", "", values)] : []));
  }

  function shownValue(number) {
    return number === undefined ? "–" : number === null ? "missing" : number.toLocaleString("en", { maximumFractionDigits: 1 });
  }

  function mark() {
    const list = document.getElementById("found").parentElement;
    for (const anchor of document.querySelectorAll("#found a")) {
      if (Number(anchor.dataset.place) === current.place) {
        anchor.setAttribute("aria-current", "true");
        const [top, bottom] = [anchor.offsetTop - list.offsetTop, anchor.offsetTop - list.offsetTop + anchor.offsetHeight];
        if (top < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
      }
      else anchor.removeAttribute("aria-current");
    }
    const at = found.indexOf(current);
    document.getElementById("previous").disabled = at <= 0;
    document.getElementById("next").disabled = at === found.length - 1;
  }

  // What can be chosen depends on the benchmark; what was chosen stays where it still can be.
  function offer() {
    const set = Number(benchmark.value);
    const questions = data.questions.filter((question) => question.set === set);
    const scores = data.scores.map((each, place) => [each, place]).filter(([each]) => each.set === set);
    const offered = (select, values) => options(select, values, values.some(([each]) => each === select.value) ? select.value : values[0]?.[0]);
    offered(category, [["", "all"], ...[...new Set(questions.map((question) => question.category))].map((each) => [`=${each}`, visible(each) || "(none)"])]);
    offered(score, scores.map(([each, place]) => [String(place), scoreName(each)]));
    offered(verdict, verdicts().map(([key, text]) => [key, visible(text)]));
    const answering = new Set(questions.flatMap((question) => Object.keys(question.lengths)));
    columns.forEach((select, place) => {
      for (const option of select.options) option.disabled = option.value !== "" && !answering.has(option.value);
      if (select.selectedOptions[0]?.disabled) choose(place, [...answering].map(Number));
    });
  }

  function choose(place, from) {
    const taken = columns.filter((_, other) => other !== place).map((select) => select.value);
    const free = from.filter((model) => !taken.includes(String(model)));
    columns[place].value = place === 2 || !free.length ? (place === 0 ? String(from[0] ?? "") : "") : String(free[0]);
  }

  function refresh({ keep = true } = {}) {
    offer();
    kept(verdict);
    filter();
    if (!keep && !found.includes(current) && found.length) go(found[0]);
    else show();
  }

  function kept(select) { // its texts name the chosen models
    options(select, verdicts().map(([key, text]) => [key, visible(text)]), select.value);
  }

  async function show() {
    const question = current;
    const names = (kind) => question[kind] && data.parts[kind][question[kind][0]];
    mark();
    try {
      const texts = (await part(names("answers")))[question.answers[1]];
      if (question !== current) return; // another was asked for meanwhile
      draw(question, texts, null);
      if (!question.replies) return;
      const replies = (await part(names("replies")))[question.replies[1]];
      if (question === current) draw(question, texts, replies);
    } catch (error) {
      article.append(element("p", "note", `Some of this question's texts cannot be shown: ${error.message}.`));
    }
  }

  function draw(question, texts, replies) {
    const anchor = element("a", "", visible(question.id));
    anchor.href = link(question);
    anchor.title = "Link to this question and these models";
    const parts = [element("h3", "", anchor, " ", element("span", "chip", visible(question.category) || "no category"))];
    for (const turn of texts.turns) {
      if (texts.turns.length > 1) parts.push(element("p", "turn", `Turn ${turn.turn}`));
      const prompt = plainText(visible(turn.prompt), "p", "prompt");
      parts.push(prompt);
      if (turn.reference !== null) {
        const rule = turn.check ? `Reference (checked by “${turn.check}”)` : "Reference";
        parts.push(element("p", "turn", rule), plainText(visible(turn.reference), "p", "reference"));
      } else if (turn.check) parts.push(element("p", "turn", `Checked by “${turn.check}”`));
      const beside = element("div", "columns", ...chosen().map((model) => column(data.models[model], turn.turn, texts, replies)));
      beside.setAttribute("role", "group");
      beside.setAttribute("aria-label", `Answers, turn ${turn.turn}`);
      parts.push(beside);
    }
    article.replaceChildren(...parts);
    for (const box of article.querySelectorAll(".columns, .text, pre")) { // reachable by keyboard where it scrolls
      if (box.scrollHeight > box.clientHeight || box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    }
  }

  function column(model, turn, texts, replies) {
    const mine = (row) => row.model === model && row.turn === turn;
    const head = element("h4", "", element("bdi", "", visible(model)));
    for (const check of texts.checks.filter(mine)) {
      const said = check.value === null ? ["chip", "check: missing"] : check.value ? ["chip good", "✓ right"] : ["chip bad", "✗ wrong"];
      head.append(element("span", ...said));
    }
    const box = element("section", "column", head);
    const answers = texts.answers.filter(mine);
    if (!answers.length) box.append(element("p", "empty", "No answer."));
    for (const answer of answers) {
      const length = `${answer.text.length.toLocaleString("en")} characters`;
      const drawn = `${answer.output_tokens} tokens in ${answer.seconds.toFixed(1)} s · temperature ${answer.temperature ?? "unknown"} · seed ${answer.seed}`;
      const facts = answer.output_tokens ? `${length} · ${drawn}` : length; // of an imported answer no more is known
      box.append(answer.text.trim() ? shownText(answer.text, { asWritten: written.checked }) : element("p", "empty", "An empty answer."), element("p", "meta", facts));
      if (answer.flags.length) box.append(element("span", "chip warn", `looks like an attack: ${answer.flags.join(", ")}`), " ");
      if (answer.finish_reason !== "stop") box.append(element("span", "chip warn", `ended by ${answer.finish_reason}`));
    }
    box.append(...(replies ?? []).filter(mine).map(judgment));
    return box;
  }

  function judgment(row) {
    const order = { model_first: "this answer first", baseline_first: "this answer second", single: "this answer alone" }[row.order] ?? row.order;
    const said = row.value === null ? "no verdict (missing)"
      : row.baseline === null ? `rated ${row.value}`
      : `${(100 * row.value).toFixed(0)} % for this answer, ${(100 - 100 * row.value).toFixed(0)} % for ${visible(row.baseline)}’s`;
    const likely = row.top_logprobs.filter(([, log]) => log > -5).slice(0, 4)
      .map(([token, log]) => `${visible(JSON.stringify(token))} ${(100 * Math.exp(log)).toFixed(0)} %`);
    const made = element("div", "judgment", element("strong", "", said), element("p", "meta", `Judge ${visible(row.judge)}, ${order}. Its reply:`), plainText(visible(row.reply), "pre", ""));
    if (likely.length) made.append(element("p", "meta", `First token: ${likely.join(", ")}`));
    return made;
  }

  function go(question) {
    current = question;
    show();
    history.replaceState(null, "", link(question));
  }

  // A fragment names a question and models: #answers?q=BENCHMARK VERSION/ID&m=MODEL&m=MODEL
  function follow() {
    if (!location.hash.startsWith("#answers?")) return false;
    const asked = new URLSearchParams(location.hash.slice("#answers?".length));
    const question = data.questions.find((each) => `${data.sets[each.set]}/${each.id}` === asked.get("q"));
    if (!question) return false;
    const named = asked.getAll("m").map((name) => data.models.indexOf(name)).filter((model) => model >= 0);
    if (named.length) columns.forEach((select, place) => { select.value = String(named[place] ?? ""); });
    current = question;
    if (Number(benchmark.value) !== question.set || !found.includes(question)) {
      benchmark.value = String(question.set);
      for (const each of [category, verdict, disagreement, least, most, words]) each.value = "";
      refresh();
    } else {
      if (named.length) refresh();
      else show();
    }
    document.getElementById("section-answers").scrollIntoView();
    return true;
  }

  options(benchmark, data.sets.map((each, place) => [String(place), visible(each)]), "0");
  columns.forEach((select, place) => {
    const none = place ? [["", "nobody"]] : [];
    options(select, [...none, ...data.models.map((model, number) => [String(number), visible(model)])], "");
  });
  const first = Object.keys(data.questions[0].lengths).map(Number).sort((a, b) => a - b);
  columns[0].value = String(first[0]);
  columns[1].value = String(first[1] ?? "");
  benchmark.addEventListener("input", () => refresh({ keep: false }));
  for (const each of [...columns, category, score, verdict, disagreement, least, most, words]) each.addEventListener("input", () => refresh({ keep: each === columns[0] || columns.includes(each) }));
  written.addEventListener("input", show);
  document.getElementById("more").addEventListener("click", more);
  document.getElementById("previous").addEventListener("click", () => go(found[found.indexOf(current) - 1]));
  document.getElementById("next").addEventListener("click", () => go(found[found.indexOf(current) + 1]));
  addEventListener("hashchange", follow);
  document.getElementById("browser").hidden = false;
  if (!follow()) refresh();
  return { follow };
}

function scoreName(score) {
  return visible(`${score.metric}, ${score.judge === "check" ? "checked" : `by ${score.judge}`}${score.baseline === null ? "" : `, against ${score.baseline}`}`);
}
