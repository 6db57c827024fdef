"use strict";
// Without this script the table is whole; with it, it can be sorted and filtered.
const table = document.querySelector("table.comparison");
const body = table.tBodies[0];
const rows = [...body.rows];
const form = document.querySelector("form.filters");
const selects = [...form.querySelectorAll("select")];

function filter() {
  for (const row of rows) {
    row.hidden = selects.some(({ value, dataset }) => value && row.dataset[dataset.key] !== value);
  }
  const shown = rows.filter((row) => !row.hidden).length;
  form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
}

function compare(column, one, other) {
  const [a, b] = [one.cells[column], other.cells[column]].map(
    (cell) => cell.dataset.value ?? cell.textContent.trim(),
  );
  // What is not known stands last, whichever way.
  if (a === "-" || b === "-") return a === b ? 0 : a === "-" ? Infinity : -Infinity;
  return a - b || a.localeCompare(b, "en", { numeric: true });
}

function sort(column, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const sorted = [...body.rows].sort((one, other) => {
    const order = compare(column, one, other);
    return Number.isFinite(order) && down ? -order : order;
  });
  body.append(...sorted);
}

[...table.tHead.rows[0].cells].forEach((header, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = header.textContent;
  button.addEventListener("click", () => sort(column, header));
  // Of what is half in view already, a browser leaves the other half where it is.
  button.addEventListener("focus", () => header.scrollIntoView({ block: "nearest", inline: "nearest" }));
  header.replaceChildren(button);
});
for (const select of selects) select.addEventListener("change", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
