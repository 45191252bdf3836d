"use strict";

/* The interactive plots of a report: reads the page's data, draws, and follows its controls. */
(() => {
  const data = JSON.parse(document.getElementById("plot-data").textContent);
  const { saes, projections, cosines, curves } = data;
  const byId = (id) => document.getElementById(id);

  const CONFIG = {
    displaylogo: false,
    // The button that would upload a plot to a service is there unless it is refused.
    showSendToCloud: false,
    plotlyServerURL: "",
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  /* The scale of the figures: red −1, white 0, blue 1 (ColorBrewer's RdBu). */
  const RED_WHITE_BLUE = [
    [0, "#67001f"], [0.1, "#b2182b"], [0.2, "#d6604d"], [0.3, "#f4a582"], [0.4, "#fddbc7"],
    [0.5, "#f7f7f7"],
    [0.6, "#d1e5f0"], [0.7, "#92c5de"], [0.8, "#4393c3"], [0.9, "#2166ac"], [1, "#053061"],
  ];
  /* Viridis without the end that does not show on the page's ground. */
  const ON_LIGHT = ["#440154", "#443983", "#31688e", "#21918c", "#35b779", "#7ad151"];
  const ON_DARK = ["#7b74c9", "#4c9bd1", "#2fb5ad", "#35c98a", "#90d743", "#fde725"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star"];
  const MOST_CLASSES = 8;
  const MISSING = -128;

  const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");

  /* ---------- values ---------- */

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  function floatsOf(base64) {
    return new Float32Array(bytesOf(base64).buffer);
  }

  function matrixOf(values, columns) {
    const rows = [];
    for (let start = 0; start < values.length; start += columns) {
      rows.push(values.slice(start, start + columns));
    }
    return rows;
  }

  function cosinesOf(frame) {
    const steps = new Int8Array(bytesOf(frame.values).buffer);
    const cosine = (step) => (step === MISSING ? null : step / 127);
    return matrixOf(Array.from(steps, cosine), frame.features.length);
  }

  /* Plotly reads some HTML in whatever it writes; names are to be shown as they are. */
  function plain(text) {
    return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }

  function format(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return String(value);
    const text = Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
    return text.replace("-", "−");
  }

  /* With as many decimals for each, so that a label keeps its width as the slider moves. */
  function fixed(value, decimals) {
    return Number.isFinite(value) ? value.toFixed(decimals).replace("-", "−") : "–";
  }

  function range(values) {
    const finite = values.filter(Number.isFinite);
    return finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  }

  function clipped(text, length = 40) {
    return text.length > length ? `${text.slice(0, length - 1)}…` : text;
  }

  /* ---------- looks ---------- */

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const palette = ["one", "two", "three", "four", "five", "six", "seven", "eight"].map(color);
    const ramp = darkScheme.matches ? ON_DARK : ON_LIGHT;
    return {
      palette,
      ramp,
      scale: ramp.map((shade, i) => [i / (ramp.length - 1), shade]),
      ink: color("ink"), soft: color("soft"), grid: color("grid"), line: color("line"),
      card: color("card"), truth: color("truth"),
    };
  }

  function axis(look, title, more = {}) {
    return {
      title: { text: title, standoff: 10 },
      automargin: true,
      gridcolor: look.grid,
      zerolinecolor: look.line,
      linecolor: look.line,
      tickcolor: look.line,
      ...more,
    };
  }

  function layout(look, more) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: look.ink, size: 13, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 60, r: 20, t: 20, b: 50 },
      hovermode: "closest",
      hoverlabel: {
        bgcolor: look.card, bordercolor: look.soft, align: "left",
        font: { color: look.ink, size: 13 }, namelength: -1,
      },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: look.soft, activecolor: look.ink },
      ...more,
    };
  }

  function colorBar(look, title, more = {}) {
    return {
      title: { text: title, side: "right" }, thickness: 12, outlinewidth: 0,
      tickcolor: look.line, ...more,
    };
  }

  /* A colour of the ramp, for a share between 0 and 1. */
  function shade(look, share) {
    const place = Math.min(Math.max(share, 0), 1) * (look.ramp.length - 1);
    const low = Math.floor(place);
    const high = Math.min(low + 1, look.ramp.length - 1);
    const part = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
    const mixed = [0, 1, 2].map((i) => {
      const start = part(look.ramp[low], i);
      return Math.round(start + (place - low) * (part(look.ramp[high], i) - start));
    });
    return `rgb(${mixed.join(",")})`;
  }

  /* ---------- what is chosen ---------- */

  const sweep = cosines ? cosines.frames.map((frame) => frame.sae) : saes.map((_, i) => i);
  const projectionRows = projections
    ? matrixOf(floatsOf(projections.values), projections.n.length)
    : [];
  const state = { n: 0, place: 0, colour: "" };

  const chosen = () => sweep[state.place];

  /* The place on the slider of an SAE, or of the nearest one by L0 that is on it. */
  function placeOf(sae) {
    let best = 0;
    sweep.forEach((other, place) => {
      if (Math.abs(other - sae) < Math.abs(sweep[best] - sae)) best = place;
    });
    return best;
  }

  function describe(index) {
    const sae = saes[index];
    const facts = Object.entries(sae.factors).filter(([name]) => data.varying.includes(name));
    const figures = Object.entries(sae.figures).filter(([, value]) => value !== null);
    const line = ([name, value]) => `${plain(name)}: ${plain(clipped(format(value)))}`;
    return [
      `<b>${plain(clipped(sae.id, 60))}</b>${sae.added ? " (added)" : ""}`,
      ...facts.map(line),
      `L0: ${format(sae.l0)}`,
      ...figures.map(line),
    ].join("<br>");
  }

  /* ---------- true L0 ---------- */

  /* The worlds' true L0s, each once: worlds may share theirs. */
  function truths(worlds) {
    const known = worlds.filter((world) => world in data.true_l0);
    const values = known.map((world) => Number(data.true_l0[world].toFixed(2)));
    return [...new Set(values)].sort((a, b) => a - b);
  }

  const worldsShown = [...new Set(saes.map((sae) => sae.world))];

  function truthLines(look, values) {
    return values.map((value) => ({
      type: "line", xref: "x", yref: "paper", x0: value, x1: value, y0: 0, y1: 1, layer: "below",
      line: { color: look.truth, dash: "dash", width: 1.5 },
    }));
  }

  /* A line in the legend for the lines that are shapes. */
  function truthKey(look, values) {
    if (!values.length) return [];
    const shown = values.map((value) => fixed(value, 2));
    const named = shown.length > 3 ? `${shown[0]} … ${shown.at(-1)}` : shown.join(", ");
    return [{
      x: [null], y: [null], mode: "lines", name: `true L0 ${named}`, hoverinfo: "skip",
      line: { color: look.truth, dash: "dash", width: 1.5 },
    }];
  }

  /* ---------- s_n against L0 ---------- */

  function pointsOf(indices, n) {
    return {
      x: indices.map((i) => saes[i].l0),
      y: indices.map((i) => projectionRows[i][n]),
      customdata: indices,
      hovertext: indices.map((i) => (
        `${describe(i)}<br>s<sub>${projections.n[n]}</sub>: ${format(projectionRows[i][n])}`
      )),
      hoverinfo: "text",
      type: "scatter",
    };
  }

  function byValue(indices, factor) {
    const groups = new Map();
    for (const i of indices) {
      const value = saes[i].factors[factor] ?? null;
      if (!groups.has(value)) groups.set(value, []);
      groups.get(value).push(i);
    }
    const sorter = (a, b) => (typeof a === "number" && typeof b === "number"
      ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    return [...groups.entries()].sort(([a], [b]) => sorter(a, b));
  }

  function markers(look, indices, color, symbol) {
    return {
      color: indices.map((i) => (saes[i].added ? look.card : color)),
      line: { color, width: 1.5 }, size: 8, symbol,
    };
  }

  /* A mark in the legend of its own: that of a trace may be hollow, as its first point is. */
  function key(name, color, symbol, fill) {
    return {
      x: [null], y: [null], type: "scatter", mode: "markers", name, hoverinfo: "skip",
      marker: { color: fill, line: { color, width: 1.5 }, size: 8, symbol },
    };
  }

  function addedKey(look, indices) {
    if (!indices.some((i) => saes[i].added)) return [];
    return [key("added to the published grid", look.soft, "circle", look.card)];
  }

  /* Only what differs in one factor alone is a line of its own. */
  function isLine() {
    return data.varying.filter((factor) => factor !== state.colour).length <= 1;
  }

  /* One trace per value of a factor, or one alone where no factor is chosen. */
  function classTraces(look, groups, n) {
    return groups.flatMap(([value, indices], place) => {
      const color = look.palette[place % look.palette.length];
      const symbol = SYMBOLS[Math.floor(place / look.palette.length) % SYMBOLS.length];
      const name = plain(clipped(`${state.colour} = ${format(value)}`, 48));
      const points = {
        ...pointsOf(indices, n),
        mode: isLine() ? "lines+markers" : "markers",
        line: { color, width: 1 },
        marker: markers(look, indices, color, symbol),
        showlegend: false,
      };
      return groups.length > 1 ? [points, key(name, color, symbol, color)] : [points];
    });
  }

  function scaleTrace(look, indices, n) {
    const values = indices.map((i) => saes[i].factors[state.colour]);
    return {
      ...pointsOf(indices, n),
      mode: "markers",
      showlegend: false,
      marker: {
        size: 8, color: values, colorscale: look.scale, showscale: true,
        line: { width: indices.map((i) => (saes[i].added ? 1.5 : 0)), color: look.ink },
        colorbar: colorBar(look, plain(clipped(state.colour))),
      },
    };
  }

  function projectionTraces(look, indices) {
    if (!state.colour) return classTraces(look, [["", indices]], state.n);
    const groups = byValue(indices, state.colour);
    const numeric = groups.every(([value]) => typeof value === "number");
    if (numeric && groups.length > MOST_CLASSES) return [scaleTrace(look, indices, state.n)];
    return classTraces(look, groups, state.n);
  }

  function ring(look) {
    return {
      ...pointsOf([chosen()], state.n),
      mode: "markers", hoverinfo: "skip", showlegend: false,
      marker: { size: 17, color: "rgba(0,0,0,0)", line: { color: look.ink, width: 2 } },
    };
  }

  function noteOnMissing(indices, log) {
    const parts = [];
    const nowhere = saes.length - indices.length;
    if (nowhere) parts.push(`${nowhere} of ${saes.length} SAEs have no finite value and are not drawn.`);
    const low = indices.filter((i) => projectionRows[i][state.n] <= 0).length;
    if (log && low) parts.push(`${low} at or below 0 cannot be drawn on this scale.`);
    byId("projections-note").textContent = parts.join(" ");
  }

  function drawProjections() {
    if (!projections) return;
    const look = theme();
    const n = projections.n[state.n];
    const log = byId("projection-scale").value === "log";
    const drawable = (i) => Number.isFinite(saes[i].l0) && Number.isFinite(projectionRows[i][state.n]);
    const indices = saes.map((_, i) => i).filter(drawable);
    const known = truths(worldsShown);
    byId("n-label").textContent = n;
    byId("n").setAttribute("aria-valuetext", `n = ${n}`);
    byId("projections").setAttribute("aria-label",
      `s_${n} of ${indices.length} SAEs against their L0; the numbers are in the table of results.`);
    noteOnMissing(indices, log);
    Plotly.react("projections",
      [
        ...projectionTraces(look, indices), ring(look),
        ...addedKey(look, indices), ...truthKey(look, known),
      ],
      layout(look, {
        xaxis: axis(look, "L0", { zeroline: false }),
        yaxis: axis(look, `s<sub>${n}</sub><sup>dec</sup>`, { type: log ? "log" : "linear" }),
        shapes: truthLines(look, known),
        showlegend: true,
      }), CONFIG);
  }

  /* ---------- one SAE ---------- */

  /* The SAE of the sweep whose L0 is nearest to one, or null where there is none. */
  function nearest(l0, wanted) {
    const distance = (i) => Math.abs(saes[i].l0 - l0);
    const candidates = sweep.filter((i) => Number.isFinite(saes[i].l0) && wanted(i));
    if (!Number.isFinite(l0) || !candidates.length) return null;
    return candidates.reduce((best, i) => (distance(i) < distance(best) ? i : best));
  }

  function drawHeatmap() {
    if (!cosines) return;
    const look = theme();
    const frame = cosines.frames[state.place];
    const values = cosinesOf(frame);
    const features = frame.features.map(String);
    byId("heatmap").setAttribute("aria-label",
      `Cosine similarity of ${frame.latents.length} latents of ${saes[chosen()].id} to `
      + `${features.length} true features.`);
    Plotly.react("heatmap", [{
      type: "heatmap",
      z: values,
      customdata: frame.latents.map((latent) => frame.features.map((feature) => [latent, feature])),
      hovertemplate:
        "latent %{customdata[0]}<br>feature %{customdata[1]}<br>cosine %{z:.2f}<extra></extra>",
      zmin: -1, zmax: 1, colorscale: RED_WHITE_BLUE,
      colorbar: colorBar(look, "", { tickvals: [-1, -0.5, 0, 0.5, 1], len: 0.9 }),
    }], layout(look, {
      margin: { l: 50, r: 10, t: 10, b: 50 },
      xaxis: axis(look, "true feature", {
        constrain: "domain", showgrid: false, zeroline: false, ...indexTicks(frame.features),
      }),
      yaxis: axis(look, "latent (matched order)", {
        autorange: "reversed", scaleanchor: "x", constrain: "domain", showgrid: false,
        zeroline: false, ...indexTicks(frame.latents.map((_, row) => row)),
      }),
    }), CONFIG);
  }

  /* At most six labels along an axis of cells: the numbers that the cells stand for. */
  function indexTicks(numbers) {
    const steps = [1, 2, 5, 10, 20, 50, 100, 200];
    const step = steps.find((each) => numbers.length <= 6 * each) ?? 500;
    const tickvals = numbers.map((_, i) => i).filter((i) => i % step === 0);
    return { tickvals, ticktext: tickvals.map((i) => String(numbers[i])) };
  }

  function drawSorted() {
    if (!projections) return;
    const look = theme();
    const sae = saes[chosen()];
    const known = truths([sae.world]);
    const line = (i, color, width) => ({
      x: projections.n, y: Array.from(projectionRows[i]), mode: "lines", type: "scatter",
      line: { color, width },
    });
    const best = nearest(known[0], (i) => saes[i].world === sae.world);
    const reference = best === null || best === chosen() ? [] : [{
      ...line(best, look.soft, 1.5), hoverinfo: "skip",
      name: `nearest to the truth, L0 ${fixed(saes[best].l0, 2)}`,
    }];
    byId("sorted").setAttribute("aria-label", `Sorted decoder projections of ${sae.id} over n.`);
    Plotly.react("sorted", [
      ...reference,
      {
        ...line(chosen(), look.palette[0], 2.5), name: `this SAE, L0 ${fixed(sae.l0, 2)}`,
        hovertemplate: "s<sub>%{x}</sub> = %{y:.4g}<extra></extra>",
      },
      ...truthKey(look, known),
    ], layout(look, {
      margin: { l: 60, r: 10, t: 10, b: 50 },
      xaxis: axis(look, "n", { zeroline: false }),
      yaxis: axis(look, "s<sub>n</sub><sup>dec</sup>"),
      shapes: truthLines(look, known),
      showlegend: true,
    }), CONFIG);
  }

  function drawChosen() {
    const slider = byId("sae");
    if (!slider) return;
    const sae = saes[chosen()];
    const parts = [sae.id, `L0 ${fixed(sae.l0, 2)}`];
    if (typeof sae.figures.mcc === "number") parts.push(`MCC ${fixed(sae.figures.mcc, 3)}`);
    const text = `${parts.join(" · ")} (${state.place + 1} of ${sweep.length})`;
    byId("sae-label").textContent = text;
    slider.value = state.place;
    slider.setAttribute("aria-valuetext", text);
    drawHeatmap();
    drawSorted();
  }

  /* ---------- training curves ---------- */

  function curveTrace(look, line, column, share) {
    const sae = saes[line.sae];
    const name = `<b>${plain(clipped(sae.id, 60))}</b>, L0 in the results ${format(sae.l0)}`;
    const values = matrixOf(Array.from(floatsOf(line.values)), line.steps.length)[column];
    return {
      x: line.steps,
      y: values.map((value) => (Number.isFinite(value) ? value : null)),
      type: "scatter", mode: "lines", showlegend: false, hoverinfo: "text",
      hovertext: line.steps.map((step, i) => `${name}<br>step ${step}: ${format(values[i])}`),
      line: { color: share === null ? look.soft : shade(look, share), width: 1.3 },
    };
  }

  function drawCurves() {
    if (!curves) return;
    const look = theme();
    const column = Number(byId("column").value);
    const name = curves.columns[column];
    const [lowest, highest] = range(curves.lines.map((line) => saes[line.sae].l0));
    const share = (l0) => (Number.isFinite(l0) ? (l0 - lowest) / (highest - lowest || 1) : null);
    const known = name === "l0" ? truths(worldsShown) : [];
    const scale = {
      x: [null], y: [null], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip",
      marker: {
        color: [lowest], cmin: lowest, cmax: highest, colorscale: look.scale, showscale: true,
        colorbar: colorBar(look, "L0 in the results"),
      },
    };
    byId("curves").setAttribute("aria-label",
      `${name} of ${curves.lines.length} SAEs over the training steps.`);
    Plotly.react("curves", [
      ...curves.lines.map((line) => curveTrace(look, line, column, share(saes[line.sae].l0))),
      scale,
      ...truthKey(look, known),
    ], layout(look, {
      xaxis: axis(look, "training step"),
      yaxis: axis(look, plain(name), { type: byId("curve-scale").value }),
      shapes: truthLines(look, known).map(({ x0, ...line }) => ({
        ...line, xref: "paper", yref: "y", x0: 0, x1: 1, y0: x0, y1: x0,
      })),
      showlegend: known.length > 0,
    }), CONFIG);
  }

  /* ---------- controls ---------- */

  function choose(place) {
    state.place = place;
    drawChosen();
    drawProjections();
  }

  function onInput(id, handler, event = "input") {
    byId(id)?.addEventListener(event, (each) => handler(each.target.value));
  }

  function firstPlace() {
    const best = nearest(truths(worldsShown)[0], () => true);
    return best === null ? Math.floor(sweep.length / 2) : sweep.indexOf(best);
  }

  function firstColour() {
    const classes = (factor) => new Set(saes.map((sae) => sae.factors[factor])).size;
    const few = data.varying.filter((factor) => classes(factor) <= MOST_CLASSES);
    const main = few.find((factor) => ["world", "architecture"].includes(factor));
    // With more worlds than colours, what sets them apart is one of the factors.
    return main ?? (data.varying.includes("world") && few.length ? few[0] : "");
  }

  function prepare() {
    state.place = firstPlace();
    if (byId("sae")) byId("sae").max = sweep.length - 1;
    if (projections) {
      state.n = Math.max(0, projections.n.indexOf(projections.first_n));
      byId("n").value = state.n;
    }
    if (byId("colour")) {
      state.colour = firstColour();
      byId("colour").value = state.colour;
    }
  }

  function connect() {
    onInput("n", (value) => { state.n = Number(value); drawProjections(); });
    onInput("colour", (value) => { state.colour = value; drawProjections(); }, "change");
    onInput("projection-scale", drawProjections, "change");
    onInput("sae", (value) => choose(Number(value)));
    onInput("column", drawCurves, "change");
    onInput("curve-scale", drawCurves, "change");
    if (projections) {
      byId("projections").on("plotly_click", ({ points }) => choose(placeOf(points[0].customdata)));
    }
    darkScheme.addEventListener("change", drawAll);
  }

  function drawAll() {
    drawChosen();
    drawProjections();
    drawCurves();
  }

  prepare();
  drawAll();
  connect();
})();
