// What happens when the page opens. Everything that a model, a judge or a benchmark wrote reaches the page as text
// nodes, or through DOMPurify (texts.js).

document.querySelectorAll("table.sortable").forEach(sortable);
const narrowed = document.getElementById("narrow");
if (narrowed) narrowing(narrowed);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));

const index = document.getElementById("answers-index");
const shown = index ? unpacked(index.textContent).then((data) => {
  scatter(data);
  answerBrowser(data);
}) : Promise.resolve();
shown.then(() => { document.documentElement.dataset.ready = "true"; });
