"use strict";

/* Draws the page's plots in the reader's colour scheme, and sorts tables by the column clicked. */
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const places = [...document.querySelectorAll(".plot")];
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    // The button that would upload a plot to a service is there unless it is refused.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line, card] = ["ink", "soft", "line", "card"].map(
      (name) => style.getPropertyValue(`--${name}`).trim(),
    );
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    return { layout: {
      font: { color: ink, family: getComputedStyle(document.body).fontFamily },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: card, bordercolor: soft, align: "left", font: { color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      sliderdefaults: { bgcolor: line, activebgcolor: soft, bordercolor: soft, tickcolor: soft },
      // Plotly paints the active button near white, whatever the scheme.
      updatemenudefaults: { bgcolor: "#dfe3e8", bordercolor: soft, font: { color: "#1d2129" } },
    } };
  }

  /* Do what a step of a plot's slider does, and move the slider there. */
  function choose(place, number) {
    const slider = place?.layout.sliders?.[0];
    const step = slider?.steps[number];
    if (!step) return;
    Plotly.update(place, ...step.args);
    Plotly.relayout(place, "sliders[0].active", number);
  }

  for (const place of places) {
    const { data, layout } = JSON.parse(place.parentElement.nextElementSibling.textContent);
    Plotly.newPlot(place, data, { ...layout, template: theme() }, CONFIG);
    place.addEventListener("keydown", ({ key }) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (move) choose(place, (place.layout.sliders?.[0].active ?? 0) + move);
    });
  }
  dark.addEventListener("change", () => {
    for (const place of places) Plotly.relayout(place, { template: theme() });
  });
  // A click on an SAE among the projections shows it in the plot of single SAEs.
  document.getElementById("projections-plot")?.on("plotly_click", ({ points }) => {
    choose(document.getElementById("saes-plot"), points[0].customdata);
  });

  const compareText = new Intl.Collator("en", { numeric: true }).compare;
  const MISSING = "–";

  const numberOf = (text) => Number(text.replaceAll(",", "").replace("inf", "Infinity"));

  function compare(a, b) {
    const [x, y] = [numberOf(a), numberOf(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? compareText(a, b) : x - y || 0;
  }

  function sortBy(table, header) {
    const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [row.cells[header.cellIndex].textContent, row]);
    rows.sort(([a], [b]) => (
      a === MISSING || b === MISSING ? (a === MISSING) - (b === MISSING) : direction * compare(a, b)
    ));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      const cells = [...table.tBodies[0].rows].map((row) => row.cells[header.cellIndex]);
      if (cells.every(({ textContent }) => textContent === MISSING || !Number.isNaN(numberOf(textContent)))) {
        for (const cell of [header, ...cells]) cell.classList.add("number");
      }
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header));
      header.append(button);
    }
  }
})();
