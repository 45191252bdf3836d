"use strict";

/* Tables that are sorted by clicking a column's name: numbers as numbers, what is missing last. */
(() => {
  const compareText = new Intl.Collator("en", { numeric: true }).compare;

  function valueOf(row, column) {
    const text = row.cells[column].dataset.value;
    const number = Number(text);
    return { missing: text === "", text, number: text === "" ? NaN : number };
  }

  function compare(a, b) {
    const bothNumbers = !Number.isNaN(a.number) && !Number.isNaN(b.number);
    if (bothNumbers) return a.number < b.number ? -1 : Number(a.number > b.number);
    return compareText(a.text, b.text);
  }

  function sortBy(table, column, direction) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
    rows.sort((a, b) => {
      if (a.value.missing || b.value.missing) return a.value.missing - b.value.missing;
      return direction * compare(a.value, b.value);
    });
    body.append(...rows.map(({ row }) => row));
  }

  function onClick(table, header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(table, header.cellIndex, descending ? -1 : 1);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      header.querySelector("button")?.addEventListener("click", () => onClick(table, header));
    }
  }
})();
