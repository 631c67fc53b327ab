// Two models question by question: a dot for every pair of scores, and the questions where they differ most.

const SVG = "http://www.w3.org/2000/svg";
const MOST = 10; // questions listed on each side

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function scatter(data) {
  const [score, across, upward] = ["score", "x", "y"].map((name) => document.getElementById(`scatter-${name}`));
  const usable = data.scores.map((each, place) => [each, place]).filter(([each]) => Object.keys(each.values).length > 1);
  if (!usable.length) return;

  function models() {
    const scored = Object.keys(data.scores[score.value].values);
    for (const [select, other] of [[across, 0], [upward, 1]]) {
      options(select, scored.map((model) => [model, visible(data.models[model])]), scored.includes(select.value) ? select.value : scored[other]);
    }
  }

  function draw() {
    const by = data.scores[score.value];
    const [one, two] = [by.values[across.value], by.values[upward.value]];
    const names = [across, upward].map((select) => visible(data.models[select.value]));
    const both = data.questions.map((question, place) => ({ question, x: one[place], y: two[place] }))
      .filter(({ x, y }) => x !== undefined && x !== null && y !== undefined && y !== null);
    const counts = { above: both.filter(({ x, y }) => y > x).length, level: both.filter(({ x, y }) => y === x).length };
    const said = `${names[1]} is above ${names[0]} on ${counts.above} of ${both.length} questions, level on ${counts.level}, below on ${both.length - counts.above - counts.level}`;
    document.getElementById("scatter-said").textContent = `${said}.`;
    document.getElementById("scatter-figure").replaceChildren(plot(both, by, names, said));
    const apart = [...both].sort((a, b) => (b.y - b.x) - (a.y - a.x));
    list("scatter-wins", `Where ${names[1]} gains most`, apart.filter(({ x, y }) => y > x).slice(0, MOST));
    list("scatter-losses", `Where ${names[1]} loses most`, apart.filter(({ x, y }) => y < x).reverse().slice(0, MOST));
  }

  function list(id, heading, rows) {
    const shown = (number) => number.toLocaleString("en", { maximumFractionDigits: 1 });
    const models = [across, upward].map((select) => `&m=${encodeURIComponent(data.models[select.value])}`).join("");
    const entries = rows.map(({ question, x, y }) => {
      const anchor = element("a", "", element("b", "", visible(question.id)), " ", element("bdi", "", visible(question.prompt.slice(0, 70))));
      anchor.href = `#answers?q=${encodeURIComponent(`${data.sets[question.set]}/${question.id}`)}${models}`;
      return element("li", "", anchor, element("small", "", `${shown(y)} against ${shown(x)}`));
    });
    document.getElementById(id).replaceChildren(element("h3", "", heading), entries.length ? element("ol", "found", ...entries) : element("p", "empty", "Nowhere."));
  }

  function range(by, values) {
    if (by.baseline !== null || by.metric.startsWith("accuracy")) return [0, 100];
    if (values.every((value) => value >= 0 && value <= 1)) return [0, 1]; // lm-eval's shares
    return [Math.min(1, ...values), Math.max(10, ...values)]; // ratings
  }

  function plot(both, by, names, said) {
    const values = both.flatMap(({ x, y }) => [x, y]);
    const [low, high] = range(by, values);
    const at = (value) => 44 + 300 * ((value - low) / (high - low || 1));
    const dots = new Map();
    for (const { x, y } of both) dots.set(`${x} ${y}`, { x, y, count: (dots.get(`${x} ${y}`)?.count ?? 0) + 1 });
    const figure = drawn("svg", { viewBox: "0 0 360 372", role: "img", "aria-label": said, "font-size": 11 });
    figure.append(drawn("rect", { x: 44, y: 16, width: 300, height: 300, fill: "none", stroke: "currentColor", "stroke-opacity": 0.35 }));
    figure.append(drawn("line", { x1: 44, y1: 316, x2: 344, y2: 16, stroke: "currentColor", "stroke-dasharray": "4 4", "stroke-opacity": 0.6 }));
    for (const tick of [low, (low + high) / 2, high]) {
      const label = tick.toLocaleString("en", { maximumFractionDigits: 1 });
      figure.append(drawn("text", { x: at(tick), y: 332, "text-anchor": "middle", fill: "currentColor" }, label));
      figure.append(drawn("text", { x: 38, y: 360 - at(tick) + 4, "text-anchor": "end", fill: "currentColor" }, label));
    }
    for (const { x, y, count } of dots.values()) {
      const colour = y > x ? "#0072b2" : y < x ? "#d55e00" : "#808080";
      const title = drawn("title", {}, `${names[1]} ${y}, ${names[0]} ${x}: ${count} ${count === 1 ? "question" : "questions"}`);
      figure.append(drawn("circle", { cx: at(x), cy: 360 - at(y), r: Math.min(20, 2.5 + 1.2 * Math.sqrt(count)), fill: colour, "fill-opacity": 0.55 }, title));
    }
    const short = (name) => (name.length > 42 ? `${name.slice(0, 41)}…` : name);
    figure.append(drawn("text", { x: 194, y: 354, "text-anchor": "middle", fill: "currentColor" }, short(names[0])));
    figure.append(drawn("text", { x: 12, y: 166, "text-anchor": "middle", fill: "currentColor", transform: "rotate(-90 12 166)" }, short(names[1])));
    return figure;
  }

  options(score, usable.map(([each, place]) => [String(place), `${visible(data.sets[each.set])} · ${scoreName(each)}`]), String(usable[0][1]));
  score.addEventListener("input", () => { models(); draw(); });
  for (const select of [across, upward]) select.addEventListener("input", draw);
  models();
  draw();
  document.getElementById("section-questions").hidden = false;
}
