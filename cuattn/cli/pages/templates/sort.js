// Sorts the rows of each group of a table by a column: the better ones first, then the other way
// round, then as they were. Rows without a figure stay last.
for (const table of document.querySelectorAll("table")) {
  const titles = [...table.tHead.rows[0].cells];
  const before = new Map([...table.tBodies].map(body => [body, [...body.rows]]));
  table.tHead.addEventListener("click", event => {
    const title = event.target.closest("th");
    if (!title) return;
    const first = title.classList.contains("more") ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const next = {[first]: second, [second]: "none"}[title.ariaSort] ?? first;
    titles.forEach(other => other.removeAttribute("aria-sort"));
    if (next !== "none") title.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const figure = row => parseFloat(row.cells[title.cellIndex].textContent);
    for (const [body, rows] of before) {
      const [top, rest] = [rows.filter(row => row.className), rows.filter(row => !row.className)];
      if (next !== "none") {
        rest.sort((a, b) => {
          const [x, y] = [figure(a), figure(b)];
          return isNaN(x) - isNaN(y) || sign * (x - y) || 0;
        });
      }
      body.append(...top, ...rest);
    }
  });
}
