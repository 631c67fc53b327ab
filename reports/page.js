"use strict";
// Everything that a model, a judge or a benchmark wrote reaches the page through textContent alone.

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children); // strings become text nodes
  return made;
}

// Marks that reorder or hide what follows are written out, so that nothing reads otherwise than it is.
function visible(text) {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase()}⟩`);
}

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const numeric = [...body.rows].some((row) => "value" in row.cells[column].dataset);
    const button = element("button", "", header.textContent);
    button.type = "button";
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      // The first click on a number asks for the best.
      const before = header.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !numeric;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => (numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim());
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // missing stays last
        return (numeric ? x - y : x.localeCompare(y)) * (rising ? 1 : -1);
      }));
    });
  });
}

function browser(data) {
  const pick = Object.fromEntries(["benchmark", "category", "question"].map((n) => [n, document.getElementById(`pick-${n}`)]));
  const step = { previous: document.getElementById("previous"), next: document.getElementById("next") };
  const title = (q) => `${q.benchmark} ${q.version}`;
  const ids = new Map();
  for (const q of data.questions) ids.set(q.id, (ids.get(q.id) ?? 0) + 1);
  const link = (q) => (ids.get(q.id) === 1 ? q.id : `${title(q)}/${q.id}`);
  const hidden = new Set();
  let shown = [];
  let current = data.questions[0];

  function options(select, values, chosen) {
    select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
  }

  function filter() {
    const ofBenchmark = data.questions.filter((q) => title(q) === title(current));
    const categories = [...new Set(ofBenchmark.map((q) => q.category))];
    const category = categories.includes(pick.category.value) ? pick.category.value : "";
    options(pick.benchmark, [...new Set(data.questions.map(title))].map((t) => [t, t]), title(current));
    options(pick.category, [["", "all"], ...categories.map((c) => [c, c || "(none)"])], category);
    shown = ofBenchmark.filter((q) => !category || q.category === category);
    if (!shown.includes(current)) current = shown[0];
    const text = (q) => `${q.id} — ${q.turns[0].prompt.replace(/\s+/g, " ").slice(0, 90)}`;
    options(pick.question, shown.map((q) => [link(q), text(q)]), link(current));
  }

  function show(question) {
    current = question;
    filter();
    const at = shown.indexOf(current);
    document.getElementById("position").value = `${at + 1} of ${shown.length}`;
    step.previous.disabled = at === 0;
    step.next.disabled = at === shown.length - 1;
    draw();
  }

  function draw() {
    const anchor = element("a", "", current.id);
    anchor.href = `#${encodeURIComponent(link(current))}`;
    anchor.title = "Link to this question";
    const parts = [element("h3", "", anchor, " ", element("span", "chip", current.category || "no category"))];
    const models = data.models.filter((m) => !hidden.has(m));
    for (const turn of current.turns) {
      const prompt = element("p", "prompt", visible(turn.prompt));
      prompt.dir = "auto";
      if (current.turns.length > 1) parts.push(element("p", "turn", `Turn ${turn.turn}`));
      parts.push(prompt);
      if (turn.reference !== null) {
        const rule = turn.check ? `Reference (checked by “${turn.check}”)` : "Reference";
        parts.push(element("p", "turn", rule), element("p", "reference", visible(turn.reference)));
      } else if (turn.check) parts.push(element("p", "turn", `Checked by “${turn.check}”`));
      const columns = element("div", "columns", ...models.map((model) => column(model, turn.turn)));
      columns.setAttribute("role", "group");
      columns.setAttribute("aria-label", `Answers, turn ${turn.turn}`);
      parts.push(columns);
    }
    const article = document.getElementById("question");
    article.replaceChildren(...parts);
    for (const box of article.querySelectorAll(".columns, .text, pre")) { // reachable by keyboard where it scrolls
      if (box.scrollHeight > box.clientHeight || box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    }
  }

  function column(model, turn) {
    const mine = (row) => row.model === model && row.turn === turn;
    const head = element("h4", "", element("bdi", "", visible(model)));
    for (const check of current.checks.filter(mine)) {
      const verdict = check.value === null ? ["chip", "check: missing"] : check.value ? ["chip good", "✓ right"] : ["chip bad", "✗ wrong"];
      head.append(element("span", ...verdict));
    }
    const box = element("section", "column", head);
    const answers = current.answers.filter(mine);
    if (!answers.length) box.append(element("p", "empty", "No answer."));
    for (const answer of answers) {
      const text = element("p", "text", visible(answer.text));
      text.dir = "auto";
      const facts = `${answer.output_tokens} tokens in ${answer.seconds.toFixed(1)} s · temperature ${answer.temperature ?? "unknown"} · seed ${answer.seed}`;
      box.append(answer.text.trim() ? text : element("p", "empty", "An empty answer."), element("p", "meta", facts));
      if (answer.flags.length) box.append(element("span", "chip warn", `looks like an attack: ${answer.flags.join(", ")}`), " ");
      if (answer.finish_reason !== "stop") box.append(element("span", "chip warn", `ended by ${answer.finish_reason}`));
    }
    box.append(...current.judgments.filter(mine).map(judgment));
    return box;
  }

  function judgment(row) {
    const order = { model_first: "this answer first", baseline_first: "this answer second", single: "this answer alone" }[row.order] ?? row.order;
    const value = row.value === null ? "no verdict (missing)"
      : row.baseline === null ? `rated ${row.value}`
      : `${(100 * row.value).toFixed(0)} % for this answer, ${(100 - 100 * row.value).toFixed(0)} % for ${row.baseline}’s`;
    const likely = row.top_logprobs.filter(([, log]) => log > -5).slice(0, 4)
      .map(([token, log]) => `${JSON.stringify(token)} ${(100 * Math.exp(log)).toFixed(0)} %`);
    const reply = element("pre", "", visible(row.reply));
    const made = element("div", "judgment", element("strong", "", value), element("p", "meta", `Judge ${row.judge}, ${order}. Its reply:`), reply);
    if (likely.length) made.append(element("p", "meta", `First token: ${likely.join(", ")}`));
    return made;
  }

  function go(question) {
    show(question);
    history.replaceState(null, "", `#${encodeURIComponent(link(question))}`);
  }

  function follow() {
    let wanted = location.hash.slice(1);
    try { wanted = decodeURIComponent(wanted); } catch { /* not ours */ }
    const found = data.questions.find((q) => link(q) === wanted || q.id === wanted);
    if (!found) return false;
    pick.category.value = "";
    show(found);
    document.getElementById("section-answers").scrollIntoView();
    return true;
  }

  for (const model of data.models) {
    const box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](model); draw(); });
    document.getElementById("pick-models").append(element("label", "", box, " ", element("bdi", "", visible(model))));
  }
  pick.benchmark.addEventListener("change", () => go(data.questions.find((q) => title(q) === pick.benchmark.value)));
  pick.category.addEventListener("change", () => { filter(); go(current); });
  pick.question.addEventListener("change", () => go(shown[pick.question.selectedIndex]));
  step.previous.addEventListener("click", () => go(shown[shown.indexOf(current) - 1]));
  step.next.addEventListener("click", () => go(shown[shown.indexOf(current) + 1]));
  addEventListener("hashchange", follow);
  document.getElementById("browser").hidden = false;
  if (!follow()) show(current);
}

document.querySelectorAll("table.sortable").forEach(sortable);
const answers = document.getElementById("answers-data");
if (answers) browser(JSON.parse(answers.textContent));
