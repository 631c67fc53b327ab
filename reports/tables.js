// Tables: sorted by their headers, and the leaderboard's narrowed by model, benchmark and judge.

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const numeric = [...body.rows].some((row) => "value" in row.cells[column].dataset);
    const button = element("button", "", ...header.childNodes);
    button.type = "button";
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      // The first click on a number asks for the best.
      const before = header.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !numeric || "lower" in header.dataset;
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

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function narrowing(box) {
  const [name, benchmark, judge] = ["name", "benchmark", "judge"].map((field) => document.getElementById(`narrow-${field}`));
  const panels = [...document.querySelectorAll("[data-benchmark]")];
  const rows = [...document.querySelectorAll("tr[data-model]")];
  const all = (field) => [["", "all"], ...[...new Set(panels.map((panel) => panel.dataset[field]))].map((each) => [each, visible(each)])];
  options(benchmark, all("benchmark"), "");
  options(judge, all("judge"), "");

  function narrow() {
    const wanted = name.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.dataset.model.toLowerCase().includes(wanted);
    for (const panel of panels) {
      const fits = (select, value) => !select.value || select.value === value;
      panel.hidden = !fits(benchmark, panel.dataset.benchmark) || !fits(judge, panel.dataset.judge)
        || (panel.matches(".panel") && ![...panel.querySelectorAll("tr[data-model]")].some((row) => !row.hidden));
    }
    const shown = rows.filter((row) => !row.hidden && !row.closest("[data-benchmark][hidden]"));
    document.getElementById("narrowed").value = shown.length === rows.length ? "" : `${shown.length} of ${rows.length} rows`;
  }

  for (const field of [name, benchmark, judge]) field.addEventListener("input", narrow);
  box.hidden = false;
}
